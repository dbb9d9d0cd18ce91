//! What an authority is answered that asks whether a name is ours, while it may ask: by this node's own order, or by that of another
//! node, which says so. Read by whoever serves entry points: where nothing is pending that is one look at a flag. Not here: who orders
//! (`acme`), the bytes of connections (`proxy`), and how nodes tell one another (`app`).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The protocol by which an authority asks for a certificate alone (RFC 8737).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Where an authority asks by HTTP (RFC 8555, 8.3): a token follows.
const HTTP_PATH: &str = "/.well-known/acme-challenge/";

/// What an authority is to be answered: all that a node needs that is asked in another's place. It tells nothing that the authority's
/// question would not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Challenge {
    Http {
        token: String,
        answer: String,
    },
    /// `digest`: SHA-256 of the challenge's key authorization.
    Tls {
        host: String,
        digest: Vec<u8>,
    },
}

/// What this node's own order has pending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// One more with each change.
    pub number: u64,
    pub challenges: Vec<Challenge>,
}

/// Other nodes that an authority may ask as well.
pub trait Elsewhere: Send + Sync {
    /// Waits until they answer what `Own` of that number has. Errors: who does not, for a person.
    fn in_place(&self, number: u64) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
}

/// The answers that are pending on this node, if any are.
#[derive(Default)]
pub struct Challenges {
    is_pending: AtomicBool,
    pending: ArcSwap<Vec<Arc<Pending>>>,
    /// By whose they are, another node's by its name. std mutex: for a moment each.
    by: Mutex<BTreeMap<Whose, Vec<Arc<Pending>>>>,
    own: watch::Sender<Own>,
    elsewhere: OnceLock<Arc<dyn Elsewhere>>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenges")
    }
}

/// Another node's, or this node's own.
type Whose = Option<Arc<str>>;

#[derive(Debug)]
struct Pending {
    challenge: Challenge,
    /// What is shown where it is asked for by TLS.
    key: Option<Arc<CertifiedKey>>,
}

impl Challenges {
    /// What a request for `path` (as it came, with its query) is answered in the place of any route's answer.
    pub fn answer(&self, path: &str) -> Option<Arc<str>> {
        if !self.is_pending.load(Ordering::Acquire) {
            return None;
        }
        let asked = path.strip_prefix(HTTP_PATH)?;
        let pending = self.pending.load();
        pending.iter().find_map(|one| match &one.challenge {
            Challenge::Http { token, answer } if asked == token => Some(answer.as_str().into()),
            _ => None,
        })
    }

    /// Whether an authority may ask for a certificate now.
    pub(super) fn is_tls_pending(&self) -> bool {
        self.is_pending.load(Ordering::Acquire) && self.pending.load().iter().any(|one| one.key.is_some())
    }

    /// Whether an authority may ask now for the certificate of that name.
    pub fn is_asked_for(&self, name: &str) -> bool {
        self.is_pending.load(Ordering::Acquire) && self.certificate(Some(name)).is_some()
    }

    /// What it is shown. `None`: it asks for another name, or for none.
    pub(super) fn certificate(&self, asked: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let asked = asked?;
        let pending = self.pending.load();
        pending.iter().find_map(|one| match &one.challenge {
            Challenge::Tls { host, .. } if asked.eq_ignore_ascii_case(host) => one.key.clone(),
            _ => None,
        })
    }

    /// Answers so until what is returned is dropped. One at a time. Errors: for a person.
    pub(super) fn offer(self: &Arc<Challenges>, challenge: Challenge) -> Result<Offered, String> {
        let pending = Arc::new(Pending::new(challenge.clone())?);
        self.set(None, vec![pending]);
        self.say_own(vec![challenge]);
        Ok(Offered(self.clone()))
    }

    /// Answers so what node `of` has pending, in the place of what it had before. Errors: what of it cannot be answered, for a person;
    /// the rest is.
    pub fn put(&self, of: &Arc<str>, challenges: Vec<Challenge>) -> Result<(), String> {
        let key = Some(of.clone());
        let before = {
            let by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
            by.get(&key).cloned().unwrap_or_default()
        };
        let mut fault = None;
        let mut pending = Vec::new();
        if challenges.len() > OF_A_NODE_MOST {
            fault = Some(format!(
                "{} challenges, expected {OF_A_NODE_MOST} at most",
                challenges.len()
            ));
        }
        for challenge in challenges.into_iter().take(OF_A_NODE_MOST) {
            let known = before.iter().find(|known| known.challenge == challenge);
            match known.cloned().map_or_else(|| Pending::new(challenge).map(Arc::new), Ok) {
                Ok(one) => pending.push(one),
                Err(error) => fault = Some(error),
            }
        }
        self.set(key, pending);
        fault.map_or(Ok(()), Err)
    }

    fn set(&self, of: Whose, pending: Vec<Arc<Pending>>) {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        match pending.is_empty() {
            true => drop(by.remove(&of)),
            false => drop(by.insert(of, pending)),
        }
        let all: Vec<Arc<Pending>> = by.values().flatten().cloned().collect();
        let is_pending = !all.is_empty();
        // The lock is held: nobody puts less than this in its place.
        self.pending.store(Arc::new(all));
        self.is_pending.store(is_pending, Ordering::Release);
    }

    fn say_own(&self, challenges: Vec<Challenge>) {
        self.own.send_modify(|own| {
            own.number += 1;
            own.challenges = challenges;
        });
    }

    /// What this node's own order has pending, now and with each change.
    pub fn own(&self) -> watch::Receiver<Own> {
        self.own.subscribe()
    }

    /// Set once, where other nodes may be asked.
    pub fn set_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        // A second one would be a mistake of the program; the first stays.
        let _ = self.elsewhere.set(elsewhere);
    }

    /// Waits until all other nodes answer what is offered here. Errors: who does not, for a person.
    pub(super) async fn in_place_elsewhere(&self) -> Result<(), String> {
        let number = self.own.borrow().number;
        match self.elsewhere.get() {
            Some(elsewhere) => elsewhere.in_place(number).await,
            None => Ok(()),
        }
    }
}

impl Pending {
    /// Errors: it cannot be answered, for a person.
    fn new(challenge: Challenge) -> Result<Pending, String> {
        let key = match &challenge {
            Challenge::Http { token, answer } => {
                let is_short = token.len() <= TEXT_MOST && answer.len() <= TEXT_MOST;
                let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
                if !is_short || !is_plain(token) || !is_plain(answer) {
                    return Err("a token that no authority gives".to_owned());
                }
                None
            }
            Challenge::Tls { host, digest } => {
                if digest.len() != DIGEST_BYTES || host.len() > TEXT_MOST {
                    return Err("a digest of another length than SHA-256's".to_owned());
                }
                Some(Arc::new(certificate(host, digest)?))
            }
        };
        Ok(Pending { challenge, key })
    }
}

/// What an authority is shown that asks by TLS (RFC 8737).
fn certificate(host: &str, digest: &[u8]) -> Result<CertifiedKey, String> {
    let made = || {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        Ok((params.self_signed(&key)?, key))
    };
    let (certificate, key) = made().map_err(|error: rcgen::Error| error.to_string())?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = any_supported_type(&key).map_err(|error| error.to_string())?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

/// A challenge that is answered.
#[derive(Debug)]
#[must_use]
pub(super) struct Offered(Arc<Challenges>);

impl Drop for Offered {
    fn drop(&mut self) {
        self.0.set(None, Vec::new());
        self.0.say_own(Vec::new());
    }
}

/// A node has one order at a time, of one name.
const OF_A_NODE_MOST: usize = 4;
const TEXT_MOST: usize = 1024;
const DIGEST_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn http(token: &str) -> Challenge {
        Challenge::Http {
            token: token.to_owned(),
            answer: format!("{token}.thumb"),
        }
    }

    #[test]
    fn the_very_path_is_answered_while_it_is_offered() {
        let challenges: Arc<Challenges> = Arc::default();
        let ask = |path: &str| challenges.answer(path).map(|answer| answer.to_string());
        assert_eq!(ask("/.well-known/acme-challenge/abc"), None);
        let offered = challenges.offer(http("abc")).unwrap();
        assert_eq!(ask("/.well-known/acme-challenge/abc").as_deref(), Some("abc.thumb"));
        for other in [
            "/.well-known/acme-challenge/ab",
            "/.well-known/acme-challenge/abcd",
            "/.well-known/acme-challenge/",
            "/.well-known/acme-challenge/abc?x",
            "/abc",
            "",
        ] {
            assert_eq!(ask(other), None, "{other}");
        }
        assert!(!challenges.is_tls_pending() && challenges.certificate(Some("a.test")).is_none());
        assert_eq!(challenges.own().borrow().challenges, [http("abc")]);
        drop(offered);
        assert_eq!(ask("/.well-known/acme-challenge/abc"), None);
        assert_eq!(
            challenges.own().borrow().clone(),
            Own {
                number: 2,
                challenges: Vec::new()
            }
        );
    }

    #[test]
    fn what_other_nodes_have_pending_is_answered_beside_it_until_they_say_otherwise() {
        let challenges: Arc<Challenges> = Arc::default();
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let is_answered = |token: &str| challenges.answer(&format!("{HTTP_PATH}{token}")).is_some();
        let tls = Challenge::Tls {
            host: "a.test".to_owned(),
            digest: vec![7; 32],
        };
        challenges.put(&one, vec![http("x"), tls.clone()]).unwrap();
        challenges.put(&two, vec![http("y")]).unwrap();
        let offered = challenges.offer(http("z")).unwrap();
        assert!(["x", "y", "z"].into_iter().all(is_answered) && challenges.is_tls_pending());
        let shown = challenges.certificate(Some("A.test")).unwrap();
        assert!(challenges.is_asked_for("a.test") && !challenges.is_asked_for("b.test"));
        // The same again is the same certificate.
        challenges.put(&one, vec![tls]).unwrap();
        assert!(Arc::ptr_eq(&shown, &challenges.certificate(Some("a.test")).unwrap()));
        assert!(!is_answered("x") && is_answered("y") && is_answered("z"));
        drop(offered);
        challenges.put(&one, Vec::new()).unwrap();
        assert!(is_answered("y") && !is_answered("z") && !challenges.is_tls_pending());
        // Its own are what this node tells others of, and no more.
        assert!(challenges.own().borrow().challenges.is_empty());
        // No more than a node has reason to have, and nothing that no authority asks for.
        let many: Vec<Challenge> = (0..9).map(|i| http(&format!("t{i}"))).collect();
        assert!(challenges.put(&two, many).is_err());
        assert!(is_answered("t3") && !is_answered("t4"));
        let wrong = Challenge::Tls {
            host: "a.test".to_owned(),
            digest: vec![7; 31],
        };
        assert!(challenges.put(&two, vec![wrong, http("u"), http("a b")]).is_err());
        assert!(is_answered("u") && !challenges.is_tls_pending() && !is_answered("a b"));
    }
}

//! What an authority is answered that asks whether a name is ours, while it may ask. Read by whoever serves entry points: where
//! nothing is pending that is one look at a flag. Not here: who orders (`acme`), and the bytes of connections (`proxy`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;

/// The protocol by which an authority asks for a certificate alone (RFC 8737).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Where an authority asks by HTTP (RFC 8555, 8.3): a token follows.
const HTTP_PATH: &str = "/.well-known/acme-challenge/";

/// The answer that is pending on this node, if one is.
#[derive(Debug, Default)]
pub struct Challenges {
    is_pending: AtomicBool,
    pending: ArcSwapOption<Pending>,
}

#[derive(Debug)]
pub(super) enum Pending {
    Http { token: String, answer: Arc<str> },
    Tls { host: String, key: Arc<CertifiedKey> },
}

impl Challenges {
    /// What a request for `path` (as it came, with its query) is answered in the place of any route's answer.
    pub fn answer(&self, path: &str) -> Option<Arc<str>> {
        if !self.is_pending.load(Ordering::Acquire) {
            return None;
        }
        let asked = path.strip_prefix(HTTP_PATH)?;
        match &**self.pending.load().as_ref()? {
            Pending::Http { token, answer } if asked == token => Some(answer.clone()),
            _ => None,
        }
    }

    /// Whether an authority may ask for a certificate now.
    pub(super) fn is_tls_pending(&self) -> bool {
        self.is_pending.load(Ordering::Acquire) && matches!(self.pending.load().as_deref(), Some(Pending::Tls { .. }))
    }

    /// Whether an authority may ask now for the certificate of that name.
    pub fn is_asked_for(&self, name: &str) -> bool {
        self.is_pending.load(Ordering::Acquire) && self.certificate(Some(name)).is_some()
    }

    /// What it is shown. `None`: it asks for another name, or for none.
    pub(super) fn certificate(&self, asked: Option<&str>) -> Option<Arc<CertifiedKey>> {
        match &**self.pending.load().as_ref()? {
            Pending::Tls { host, key } if asked?.eq_ignore_ascii_case(host) => Some(key.clone()),
            _ => None,
        }
    }

    /// Answers so until what is returned is dropped. One at a time.
    pub(super) fn offer(self: &Arc<Challenges>, pending: Pending) -> Offered {
        self.pending.store(Some(Arc::new(pending)));
        self.is_pending.store(true, Ordering::Release);
        Offered(self.clone())
    }
}

/// A challenge that is answered.
#[derive(Debug)]
#[must_use]
pub(super) struct Offered(Arc<Challenges>);

impl Drop for Offered {
    fn drop(&mut self) {
        self.0.is_pending.store(false, Ordering::Release);
        self.0.pending.store(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_very_path_is_answered_while_it_is_offered() {
        let challenges: Arc<Challenges> = Arc::default();
        let ask = |path: &str| challenges.answer(path).map(|answer| answer.to_string());
        assert_eq!(ask("/.well-known/acme-challenge/abc"), None);
        let offered = challenges.offer(Pending::Http {
            token: "abc".to_owned(),
            answer: "abc.thumb".into(),
        });
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
        drop(offered);
        assert_eq!(ask("/.well-known/acme-challenge/abc"), None);
    }
}

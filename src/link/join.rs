//! How a node comes by its first certificate: both sides prove that they know the cluster's token, each bound to this very
//! TLS session, so that nobody in between can use what he hears. The token itself is never sent.
//!
//! A proof is something to try guesses of the token on, so nobody gets one for asking: the manager shows its certificate and
//! its authority, the node that joins proves the token first, and only to one who has that certificate's key; a wrong proof
//! is answered without one. Whoever stands in a manager's place while a node joins can still guess, which a token of 128
//! bits makes hopeless (`Token::weakness`).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use rustls::ConnectionCommon;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::identity::{Authority, Identity, Role, check_manager, joining_config};
use super::wire::{FRAME_BYTES_MAX, Messages, from_hex, to_hex};
use crate::model::Cluster;

/// What lets a node join.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("link.token_file = {path}: expected a file with the cluster's token")]
    File {
        path: String,
        #[source]
        error: io::Error,
    },
    #[error(
        "link.token_file = {path}: the token has {found} characters: expected at least 32 hexadecimal digits, or 22 \
         characters of base64, drawn at random"
    )]
    Short { path: String, found: usize },
}

/// What a token is worth if all its characters were drawn at random.
const BITS_LEAST: f64 = 128.0;
/// One that is so long is taken, however little it is worth.
const LENGTH_TAKEN: usize = 32;
/// Of 32 characters that were drawn at random, fewer are different once in a million times.
const DIFFERENT_LEAST: usize = 8;

impl Token {
    /// Reads the token; space around it does not count.
    pub fn read(path: &Path) -> Result<Token, TokenError> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| TokenError::File { path: shown(), error })?;
        let token = Token(text.trim().to_owned());
        match token.0.chars().count() {
            found @ ..LENGTH_TAKEN if token.weakness().is_some() => Err(TokenError::Short { path: shown(), found }),
            _ => Ok(token),
        }
    }

    /// What makes it worth less than 128 bits, if it is. Whoever hears a proof of it could find it by trying.
    pub fn weakness(&self) -> Option<String> {
        let different: BTreeSet<char> = self.0.chars().collect();
        if different.len() < DIFFERENT_LEAST {
            return Some(format!(
                "the token has {} different characters: expected 128 bits drawn at random",
                different.len()
            ));
        }
        let bits = self.bits();
        (bits < BITS_LEAST).then(|| {
            format!(
                "the token has {} characters of that kind, {bits:.0} bits at most: expected 128 bits drawn at random, such \
                 as 32 hexadecimal digits",
                self.0.chars().count()
            )
        })
    }

    /// By its length and the kinds of characters in it.
    fn bits(&self) -> f64 {
        let has = |is: fn(&char) -> bool| self.0.chars().any(|c| is(&c));
        let is_hex = self.0.chars().all(|c| c.is_ascii_hexdigit());
        let kinds = match is_hex && has(char::is_ascii_alphabetic) {
            true => 16.0,
            false => {
                let digits = f64::from(u8::from(has(char::is_ascii_digit)) * 10);
                let small = f64::from(u8::from(has(char::is_ascii_lowercase)) * 26);
                let large = f64::from(u8::from(has(char::is_ascii_uppercase)) * 26);
                let others = f64::from(u8::from(has(|c| !c.is_ascii_alphanumeric())) * 2);
                digits + small + large + others
            }
        };
        // An empty token has no kind.
        self.0.chars().count() as f64 * f64::max(kinds, 1.0).log2()
    }

    /// What proves to know this token within one TLS session, as `side` and about `what`.
    fn proof(&self, side: &str, session: &[u8], what: &[&str]) -> Hmac<Sha256> {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()) else {
            unreachable!("HMAC takes keys of any length");
        };
        for part in [side.as_bytes(), session]
            .into_iter()
            .chain(what.iter().map(|part| part.as_bytes()))
        {
            // With its length, so that no two lists of parts read alike.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }

    fn proves(&self, side: &str, session: &[u8], what: &[&str]) -> String {
        to_hex(&self.proof(side, session, what).finalize().into_bytes())
    }

    /// In constant time.
    fn is_proven(&self, side: &str, session: &[u8], what: &[&str], proof: &str) -> bool {
        from_hex(proof).is_some_and(|proof| self.proof(side, session, what).verify_slice(&proof).is_ok())
    }
}

const SERVER: &str = "anynode join 2: the manager";
const CLIENT: &str = "anynode join 2: the node that joins";

/// Bytes that only the two ends of a TLS session know (RFC 8446 7.5).
fn session_of<D>(connection: &ConnectionCommon<D>) -> io::Result<[u8; 32]> {
    let session = connection.export_keying_material([0; 32], b"EXPORTER-anynode-join", None);
    session.map_err(io::Error::other)
}

#[derive(Serialize, Deserialize)]
struct Hello {
    authority_pem: String,
}

#[derive(Serialize, Deserialize)]
struct Request {
    node: String,
    /// SubjectPublicKeyInfo, DER, hexadecimal.
    public_key: String,
    proof: String,
}

#[derive(Serialize, Deserialize)]
struct Reply {
    certificate_pem: Option<String>,
    /// That the manager knows the token too; only to who has proven it.
    proof: Option<String>,
    error: Option<String>,
}

/// Joins by asking the manager at `manager`. Errors say what to do about it.
pub async fn join(identity: &Identity, token: &Token, manager: SocketAddr) -> io::Result<()> {
    tokio::time::timeout(PATIENCE, join_now(identity, token, manager)).await?
}

async fn join_now(identity: &Identity, token: &Token, manager: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect(manager).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(joining_config().map_err(io::Error::other)?);
    // Nobody checks this name: the token proves who it is.
    let stream = connector.connect(Identity::server_name("joining")?, stream).await?;
    let session = session_of(stream.get_ref().1)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.cloned().ok_or(io::ErrorKind::InvalidData)?;
    let mut messages = Messages::new(stream, FRAME_BYTES_MAX);
    let Hello { authority_pem } = messages.next().await?;
    check_manager(&certificate, &authority_pem).map_err(|error| {
        let error = format!("who answers shows no manager's certificate: {error}");
        io::Error::new(io::ErrorKind::PermissionDenied, error)
    })?;
    let node = identity.node().to_string();
    let public_key = to_hex(&identity.public_key());
    let proof = token.proves(CLIENT, &session, &[&authority_pem, &node, &public_key]);
    messages
        .send(&Request {
            node,
            public_key,
            proof,
        })
        .await?;
    let reply: Reply = messages.next().await?;
    let denied = |error: String| io::Error::new(io::ErrorKind::PermissionDenied, error);
    let Some(certificate) = reply.certificate_pem else {
        let error = reply.error.unwrap_or_else(|| "no reason was given".to_owned());
        return Err(denied(format!("the manager refused: {error}")));
    };
    let proof = reply.proof.unwrap_or_default();
    if !token.is_proven(SERVER, &session, &[&authority_pem, &certificate], &proof) {
        let error = "the manager does not know this node's token: expected the same token on all nodes";
        return Err(denied(error.to_owned()));
    }
    identity
        .take_and_keep(&certificate, &authority_pem)
        .map_err(io::Error::other)
}

/// What a manager needs to let nodes in.
pub(super) struct Gatekeeper<'a> {
    pub(super) token: &'a Token,
    pub(super) authority: &'a Authority,
    pub(super) cluster: &'a Cluster,
    pub(super) life: Duration,
    pub(super) checks_address: bool,
}

/// Answers one node that wants to join.
pub(super) async fn admit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: tokio_rustls::server::TlsStream<S>,
    peer: SocketAddr,
    keeper: Gatekeeper<'_>,
) -> io::Result<()> {
    let session = session_of(stream.get_ref().1)?;
    let mut messages = Messages::new(stream, FRAME_BYTES_MAX);
    let authority_pem = keeper.authority.certificate_pem().to_owned();
    let hello = Hello { authority_pem };
    messages.send(&hello).await?;
    let request: Request = tokio::time::timeout(PATIENCE, messages.next()).await??;
    let reply = match keeper.judge(&session, &hello.authority_pem, &request, peer) {
        Ok(certificate) => {
            tracing::info!(node = request.node, %peer, "joined");
            let known = [hello.authority_pem.as_str(), certificate.as_str()];
            Reply {
                proof: Some(keeper.token.proves(SERVER, &session, &known)),
                certificate_pem: Some(certificate),
                error: None,
            }
        }
        Err(error) => {
            tracing::warn!(node = request.node, %peer, "not let in: {error}");
            Reply {
                certificate_pem: None,
                proof: None,
                error: Some(error),
            }
        }
    };
    messages.send(&reply).await
}

impl Gatekeeper<'_> {
    /// The certificate, or why there is none.
    fn judge(&self, session: &[u8], authority: &str, request: &Request, peer: SocketAddr) -> Result<String, String> {
        let known = [authority, &request.node, &request.public_key];
        if !self.token.is_proven(CLIENT, session, &known, &request.proof) {
            return Err("wrong token: expected the same token on all nodes".to_owned());
        }
        let Some(node) = self.cluster.node(&request.node) else {
            return Err(format!("the swarm has no node {:?}", request.node));
        };
        if node.is_manager {
            return Err(format!(
                "node {} is a manager of the swarm: it has the authority itself",
                node.hostname
            ));
        }
        let ip = peer.ip().to_canonical();
        if self.checks_address && node.addr != Some(ip) {
            return Err(format!(
                "it comes from {ip}, but the swarm knows node {} at {}: expected that address (link.check_address)",
                node.hostname,
                node.addr
                    .map_or_else(|| "no address".to_owned(), |addr| addr.to_string()),
            ));
        }
        let public_key = from_hex(&request.public_key).ok_or("public_key: expected hexadecimal digits")?;
        let certificate = self.authority.issue(&node.id, Role::Worker, &public_key, self.life);
        certificate.map_err(|error| error.to_string())
    }
}

/// Keeps one address from trying often: each try may be a guess.
#[derive(Debug, Default)]
pub(super) struct JoinLimit {
    tries: Mutex<HashMap<IpAddr, (Instant, u32)>>,
}

impl JoinLimit {
    pub(super) fn may_try(&self, ip: IpAddr, now: Instant) -> bool {
        let mut tries = self.tries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Who has one address of IPv6 has all of its network.
        let ip = match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        };
        if tries.len() >= ADDRESSES_MAX && !tries.contains_key(&ip) {
            tries.retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
            // Many strangers keep nobody out: the oldest is forgotten for a new one.
            let oldest = tries.iter().min_by_key(|(_, (since, _))| *since).map(|(ip, _)| *ip);
            if let Some(oldest) = oldest.filter(|_| tries.len() >= ADDRESSES_MAX) {
                tries.remove(&oldest);
            }
        }
        let entry = tries.entry(ip).or_insert((now, 0));
        if now.saturating_duration_since(entry.0) >= WINDOW {
            *entry = (now, 0);
        }
        entry.1 += 1;
        entry.1 <= TRIES_PER_WINDOW
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(10);
const TRIES_PER_WINDOW: u32 = 10;
const ADDRESSES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_worth_what_its_length_and_kinds_of_characters_say() {
        for (text, is_weak) in [
            ("0123456789abcdef0123456789abcdef", false),
            ("9f86d081884c7d659a2feaa0c55ad015", false),
            // `openssl rand -base64 16`, without its filling too.
            ("n4bQgYhMfWWaL+qgxVrQFQ==", false),
            ("n4bQgYhMfWWaL+qgxVrQFQ", false),
            ("9f86d081884c7d659a2feaa0c55ad01", true),
            ("n4bQgYhMfWWaL-qgxVrQ", true),
            ("01234567890123456789012345678901", true),
            ("password", true),
            ("", true),
            (&"x".repeat(64), true),
            (&"ab".repeat(32), true),
        ] {
            let weakness = Token(text.to_owned()).weakness();
            assert_eq!(weakness.is_some(), is_weak, "{text}: {weakness:?}");
        }
    }

    #[test]
    fn many_addresses_that_try_keep_no_other_from_trying() {
        let (limit, now) = (JoinLimit::default(), Instant::now());
        for n in 0..10_000_u32 {
            assert!(limit.may_try(IpAddr::from((n + 1).to_be_bytes()), now), "{n}");
        }
        assert!(limit.tries.lock().unwrap().len() <= ADDRESSES_MAX);
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        let n_heard = (0..100)
            .filter(|n| limit.may_try(of(&format!("2001:db8::{n}")), now))
            .count();
        assert_eq!(n_heard, TRIES_PER_WINDOW as usize, "of one network");
        assert!(limit.may_try(of("2001:db8:0:1::1"), now));
    }
}

//! How a node comes by its first certificate: both sides prove that they know the cluster's token, each bound to this very
//! TLS session, so that nobody in between can use what he hears. The token itself is never sent.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
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

use super::identity::{Authority, Identity, Role, joining_config};
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
    #[error("link.token_file = {path}: the token has {found} characters: expected at least {TOKEN_LEAST}")]
    Short { path: String, found: usize },
}

const TOKEN_LEAST: usize = 32;

impl Token {
    /// Reads the token; space around it does not count.
    pub fn read(path: &Path) -> Result<Token, TokenError> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| TokenError::File { path: shown(), error })?;
        let text = text.trim();
        match text.chars().count() {
            TOKEN_LEAST.. => Ok(Token(text.to_owned())),
            found => Err(TokenError::Short { path: shown(), found }),
        }
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

const SERVER: &str = "anynode join 1: the manager";
const CLIENT: &str = "anynode join 1: the node that joins";

/// Bytes that only the two ends of a TLS session know (RFC 8446 7.5).
fn session_of<D>(connection: &ConnectionCommon<D>) -> io::Result<[u8; 32]> {
    let session = connection.export_keying_material([0; 32], b"EXPORTER-anynode-join", None);
    session.map_err(io::Error::other)
}

#[derive(Serialize, Deserialize)]
struct Hello {
    authority_pem: String,
    proof: String,
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
    let mut messages = Messages::new(stream, FRAME_BYTES_MAX);
    let hello: Hello = messages.next().await?;
    if !token.is_proven(SERVER, &session, &[&hello.authority_pem], &hello.proof) {
        let error = "the manager does not know this node's token: expected the same token on all nodes";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    let node = identity.node().to_string();
    let public_key = to_hex(&identity.public_key());
    let proof = token.proves(CLIENT, &session, &[&node, &public_key]);
    messages
        .send(&Request {
            node,
            public_key,
            proof,
        })
        .await?;
    let reply: Reply = messages.next().await?;
    match reply.certificate_pem {
        Some(certificate) => identity
            .take_and_keep(&certificate, &hello.authority_pem)
            .map_err(io::Error::other),
        None => {
            let error = reply.error.unwrap_or_else(|| "no reason was given".to_owned());
            Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the manager refused: {error}"),
            ))
        }
    }
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
    let proof = keeper.token.proves(SERVER, &session, &[&authority_pem]);
    messages.send(&Hello { authority_pem, proof }).await?;
    let request: Request = tokio::time::timeout(PATIENCE, messages.next()).await??;
    let reply = match keeper.judge(&session, &request, peer) {
        Ok(certificate) => {
            tracing::info!(node = request.node, %peer, "joined");
            Reply {
                certificate_pem: Some(certificate),
                error: None,
            }
        }
        Err(error) => {
            tracing::warn!(node = request.node, %peer, "not let in: {error}");
            Reply {
                certificate_pem: None,
                error: Some(error),
            }
        }
    };
    messages.send(&reply).await
}

impl Gatekeeper<'_> {
    /// The certificate, or why there is none.
    fn judge(&self, session: &[u8], request: &Request, peer: SocketAddr) -> Result<String, String> {
        if !self
            .token
            .is_proven(CLIENT, session, &[&request.node, &request.public_key], &request.proof)
        {
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
        if tries.len() > ADDRESSES_MAX {
            tries.retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
            if tries.len() > ADDRESSES_MAX {
                return false;
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

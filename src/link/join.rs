//! How a node comes by its first certificate: both sides prove that they know the cluster's token, each bound to this very
//! TLS session, so that nobody in between can use what he hears. The token itself is never sent.
//!
//! A proof is something to try guesses of the token on, so nobody gets one for asking: the manager shows its certificate and
//! its authority, the node that joins proves the token first, and only to one who has that certificate's key; a wrong proof
//! is answered without one. Whoever stands in a manager's place while a node joins can still guess, which a token of 128
//! bits makes hopeless (`Token::weakness`).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustls::ConnectionCommon;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::identity::{Authority, Identity, Role, check_manager, joining_config};
use super::token::Token;
use super::wire::{FRAME_BYTES_MAX, Messages, from_hex, to_hex};
use crate::model::Cluster;

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

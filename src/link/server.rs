//! The accepting side: one listening socket, handshakes bounded in number and time, then join, control or tunnel by ALPN.
//! Whatever a peer does costs its own connection only.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::identity::{Role, peer_of};
use super::join::{self, Gatekeeper};
use super::wire::{ALPN_CONTROL, ALPN_JOIN, ALPN_TUNNEL};
use super::{LinkState, subscribe, tunnel};

/// Accepts connections of other nodes until `shutdown`.
pub async fn serve(state: Arc<LinkState>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a connection that went away.
                tracing::debug!(%error, "accept on the link");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        state.stats.accepted.fetch_add(1, Relaxed);
        let (Ok(place), Ok(handshake)) = (
            connections.clone().try_acquire_owned(),
            handshakes.clone().try_acquire_owned(),
        ) else {
            // Those who are in keep their places.
            state.stats.failed.fetch_add(1, Relaxed);
            continue;
        };
        let Ok(stream) = stream.into_std() else { continue };
        let for_job = state.clone();
        state.handler().spawn(Box::new(move || {
            Box::pin(async move {
                let served = match TcpStream::from_std(stream) {
                    Ok(stream) => serve_one(&for_job, stream, peer, handshake).await,
                    Err(error) => Err(error),
                };
                drop(place);
                if let Err(error) = served {
                    for_job.stats.failed.fetch_add(1, Relaxed);
                    tracing::debug!(%peer, %error, "link");
                }
            })
        }));
    }
}

async fn serve_one(
    state: &Arc<LinkState>,
    stream: TcpStream,
    peer: SocketAddr,
    handshake: OwnedSemaphorePermit,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let config = state.identity().and_then(|identity| identity.server());
    let config = config.ok_or_else(|| io::Error::other("this node has no certificate yet"))?;
    let stream = tokio::time::timeout(HANDSHAKE_PATIENCE, TlsAcceptor::from(config).accept(stream)).await??;
    drop(handshake);
    let connection = stream.get_ref().1;
    let alpn = connection.alpn_protocol().unwrap_or_default().to_vec();
    if alpn == ALPN_JOIN {
        return tokio::time::timeout(JOIN_PATIENCE, admit(state, stream, peer)).await?;
    }
    let denied = |error: String| io::Error::new(io::ErrorKind::PermissionDenied, error);
    let caller = peer_of(connection.peer_certificates());
    let caller = caller.map_err(|error| {
        state.stats.refused.fetch_add(1, Relaxed);
        denied(error.to_string())
    })?;
    match alpn.as_slice() {
        ALPN_CONTROL => subscribe::serve(state.clone(), caller, TlsStream::Server(stream)).await,
        ALPN_TUNNEL => tunnel::serve(state.clone(), caller, TlsStream::Server(stream)).await,
        _ => Err(denied("no protocol of ours was asked for".to_owned())),
    }
}

async fn admit(
    state: &Arc<LinkState>,
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    peer: SocketAddr,
) -> io::Result<()> {
    let is_manager = state.identity().and_then(|identity| identity.role()) == Some(Role::Manager);
    let (Some(authority), Some(token)) = (state.authority(), state.token.load_full()) else {
        return Err(io::Error::other("only managers let nodes join"));
    };
    if !is_manager || !state.join_limit.may_try(peer.ip().to_canonical(), Instant::now()) {
        state.stats.refused.fetch_add(1, Relaxed);
        return Err(io::Error::other("too many tries to join"));
    }
    let cluster = state.cluster.borrow().clone();
    let keeper = Gatekeeper {
        token: &token,
        authority: &authority,
        cluster: &cluster,
        life: state.settings.certificate_life,
        checks_address: state.settings.checks_address,
    };
    join::admit(stream, peer, keeper).await
}

const HANDSHAKES_MAX: usize = 256;
const CONNECTIONS_MAX: usize = 8192;
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);

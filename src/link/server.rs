//! The accepting side: one listening socket, handshakes bounded in number and time, then join, control or tunnel by ALPN.
//! Whatever a peer does costs its own connection only: there are places for strangers, for each node and for each purpose,
//! so that nobody takes those of others.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::identity::{Role, peer_of};
use super::join::{self, Gatekeeper};
use super::wire::{ALPN_CONTROL, ALPN_JOIN, ALPN_TUNNEL};
use super::{LinkState, subscribe, tunnel};
use crate::model::Cluster;

/// Accepts connections of other nodes until `shutdown`.
pub async fn serve(state: Arc<LinkState>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let mut doors = Doors::default();
    let places = Arc::new(Places::default());
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
        let cluster = state.cluster.borrow().clone();
        let Some(handshake) = doors.place(&cluster, peer.ip().to_canonical()) else {
            state.stats.failed.fetch_add(1, Relaxed);
            continue;
        };
        let Ok(stream) = stream.into_std() else { continue };
        let (for_job, places) = (state.clone(), places.clone());
        state.handler().spawn(Box::new(move || {
            Box::pin(async move {
                let served = match TcpStream::from_std(stream) {
                    Ok(stream) => serve_one(&for_job, &places, stream, peer, handshake).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = served {
                    for_job.stats.failed.fetch_add(1, Relaxed);
                    tracing::debug!(%peer, %error, "link");
                }
            })
        }));
    }
}

/// Places in handshakes, by where a connection comes from: each address of a node of the cluster has some of its own, and
/// all strangers together have some.
struct Doors {
    cluster: Arc<Cluster>,
    nodes: HashMap<IpAddr, Arc<Semaphore>>,
    strangers: Arc<Semaphore>,
}

impl Default for Doors {
    fn default() -> Doors {
        Doors {
            cluster: Arc::default(),
            nodes: HashMap::new(),
            strangers: Arc::new(Semaphore::new(HANDSHAKES_OF_STRANGERS)),
        }
    }
}

impl Doors {
    /// `None` when all places are taken. Costs what differs from the cluster of the last time.
    fn place(&mut self, cluster: &Arc<Cluster>, ip: IpAddr) -> Option<OwnedSemaphorePermit> {
        if !Arc::ptr_eq(&self.cluster, cluster) {
            if Cluster::diff(&self.cluster, cluster).any(|diff| diff.key.starts_with("node/")) {
                let mut before = std::mem::take(&mut self.nodes);
                for ip in cluster.nodes().filter_map(|node| node.addr) {
                    let places = self.nodes.entry(ip);
                    places.or_insert_with(|| {
                        let kept = before.remove(&ip);
                        kept.unwrap_or_else(|| Arc::new(Semaphore::new(HANDSHAKES_OF_A_NODE)))
                    });
                }
            }
            self.cluster = cluster.clone();
        }
        let places = self.nodes.get(&ip).unwrap_or(&self.strangers);
        places.clone().try_acquire_owned().ok()
    }
}

/// Places of those who are in: control connections by node, and tunnels of all nodes.
struct Places {
    /// std mutex: held for one count.
    controls: Mutex<HashMap<Arc<str>, usize>>,
    tunnels: Semaphore,
}

impl Default for Places {
    fn default() -> Places {
        Places {
            controls: Mutex::default(),
            tunnels: Semaphore::new(TUNNELS_MAX),
        }
    }
}

/// A control connection's place; given back when it is dropped.
struct ControlPlace<'a> {
    places: &'a Places,
    node: Arc<str>,
}

impl Places {
    fn control(&self, node: &Arc<str>) -> io::Result<ControlPlace<'_>> {
        let mut controls = self.controls.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = controls.entry(node.clone()).or_default();
        if *taken >= CONTROLS_OF_A_NODE {
            return Err(io::Error::other("the node has too many control connections"));
        }
        *taken += 1;
        Ok(ControlPlace {
            places: self,
            node: node.clone(),
        })
    }
}

impl Drop for ControlPlace<'_> {
    fn drop(&mut self) {
        let mut controls = self.places.controls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = controls.get_mut(&self.node) {
            *taken -= 1;
            if *taken == 0 {
                controls.remove(&self.node);
            }
        }
    }
}

async fn serve_one(
    state: &Arc<LinkState>,
    places: &Places,
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
        ALPN_CONTROL => {
            let _place = places.control(&caller.node)?;
            subscribe::serve(state.clone(), caller, TlsStream::Server(stream)).await
        }
        ALPN_TUNNEL => {
            let _place = places.tunnels.try_acquire().map_err(io::Error::other)?;
            tunnel::serve(state.clone(), caller, TlsStream::Server(stream)).await
        }
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

const HANDSHAKES_OF_STRANGERS: usize = 128;
/// A node opens some ahead on each of its workers.
const HANDSHAKES_OF_A_NODE: usize = 512;
/// One, and during an update of the program two; those that the other end lost sight of last for a few seconds.
const CONTROLS_OF_A_NODE: usize = 16;
const TUNNELS_MAX: usize = 32_768;
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);

//! The accepting side: one listening socket, handshakes bounded in number and time, then join, control or tunnel by ALPN.
//! Whatever a peer does costs its own connection only: there are places for strangers, for each node and for each purpose,
//! so that nobody takes those of others, and where there are too many of one party, its silent oldest goes (`places`).

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::identity::{Role, peer_of};
use super::join::{self, Gatekeeper};
use super::wire::{ALPN_CONTROL, ALPN_JOIN, ALPN_TUNNEL};
use super::{LinkState, subscribe, tunnel};
use crate::model::Cluster;
use crate::places::{Crowd, Place, Places, Table};
use crate::sys::limits;

/// Accepts connections of other nodes until `shutdown`.
pub async fn serve(state: Arc<LinkState>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let mut doors = Doors::default();
    let rooms = Arc::new(Rooms::default());
    let mut crowd = Crowd::default();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            // Before whoever comes: the listener may be another run's now, which others are told of at the same moment.
            biased;
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
        let handshake = doors.place(&cluster, peer.ip().to_canonical());
        let is_crowded = handshake.is_in_anothers();
        let Ok(stream) = stream.into_std() else { continue };
        let (for_job, rooms) = (state.clone(), rooms.clone());
        state.handler().spawn(Box::new(move || {
            Box::pin(async move {
                let served = match TcpStream::from_std(stream) {
                    Ok(stream) => serve_one(&for_job, &rooms, stream, peer, handshake).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = served {
                    for_job.stats.failed.fetch_add(1, Relaxed);
                    tracing::debug!(%peer, %error, "link");
                }
            })
        }));
        if is_crowded && crowd.is_enough() {
            tokio::task::yield_now().await;
        }
    }
}

/// Places in handshakes, by where a connection comes from: each address of a node of the cluster has some of its own, and
/// all strangers together have some.
struct Doors {
    cluster: Arc<Cluster>,
    nodes: HashSet<IpAddr>,
    of_nodes: Arc<Places<IpAddr>>,
    of_strangers: Arc<Places<IpAddr>>,
}

impl Default for Doors {
    fn default() -> Doors {
        Doors {
            cluster: Arc::default(),
            nodes: HashSet::new(),
            of_nodes: Places::with_each(Table::LinkHandshakes, HANDSHAKES_MAX, HANDSHAKES_OF_A_NODE),
            of_strangers: Places::new(Table::LinkStrangers, HANDSHAKES_OF_STRANGERS),
        }
    }
}

impl Doors {
    /// Costs what differs from the cluster of the last time.
    fn place(&mut self, cluster: &Arc<Cluster>, ip: IpAddr) -> Place<IpAddr> {
        if !Arc::ptr_eq(&self.cluster, cluster) {
            if Cluster::diff(&self.cluster, cluster).any(|diff| diff.key.starts_with("node/")) {
                self.nodes = cluster.nodes().filter_map(|node| node.addr).collect();
            }
            self.cluster = cluster.clone();
        }
        match self.nodes.contains(&ip) {
            true => self.of_nodes.take(ip),
            false => self.of_strangers.take(ip),
        }
    }
}

/// Places of those who have a certificate, by node.
struct Rooms {
    controls: Arc<Places<Arc<str>>>,
    /// Of those who are not of the cluster: not yet, or no more.
    controls_of_others: Arc<Places<Arc<str>>>,
    tunnels: Arc<Places<Arc<str>>>,
}

impl Default for Rooms {
    fn default() -> Rooms {
        // One descriptor each; so many that nobody else wants for any.
        Rooms {
            controls: Places::with_each(Table::LinkControls, limits::share(usize::MAX, 8), CONTROLS_OF_A_NODE),
            controls_of_others: Places::with_each(Table::LinkControls, CONTROLS_OF_OTHERS, CONTROLS_OF_A_NODE),
            tunnels: Places::new(Table::LinkTunnels, limits::share(TUNNELS_MAX, 8)),
        }
    }
}

async fn serve_one(
    state: &Arc<LinkState>,
    rooms: &Rooms,
    stream: TcpStream,
    peer: SocketAddr,
    handshake: Place<IpAddr>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let config = state.identity().and_then(|identity| identity.server());
    let config = config.ok_or_else(|| io::Error::other("this node has no certificate yet"))?;
    let greet = async {
        let shaken = tokio::time::timeout(HANDSHAKE_PATIENCE, TlsAcceptor::from(config).accept(stream)).await??;
        match shaken.get_ref().1.alpn_protocol() {
            Some(ALPN_JOIN) => {
                tokio::time::timeout(JOIN_PATIENCE, admit(state, shaken, peer)).await??;
                Ok(None)
            }
            _ => Ok::<_, io::Error>(Some(shaken)),
        }
    };
    let Some(stream) = unless_told(&handshake, greet).await? else {
        return Ok(());
    };
    drop(handshake);
    let connection = stream.get_ref().1;
    let alpn = connection.alpn_protocol().unwrap_or_default().to_vec();
    let refused = |error: String| {
        state.stats.refused.fetch_add(1, Relaxed);
        io::Error::new(io::ErrorKind::PermissionDenied, error)
    };
    let caller = peer_of(connection.peer_certificates()).map_err(|error| refused(error.to_string()))?;
    let (node, is_known) = (caller.node.clone(), state.knows(&caller.node));
    let stream = TlsStream::Server(stream);
    match alpn.as_slice() {
        ALPN_CONTROL => {
            // Who is not of the cluster is told so, and asks again: it may be known here in a moment.
            let place = match is_known {
                true => rooms.controls.take(node),
                false => rooms.controls_of_others.take(node),
            };
            unless_told(&place, subscribe::serve(state.clone(), caller, stream)).await
        }
        ALPN_TUNNEL if !is_known => Err(refused("the node is not of this cluster".to_owned())),
        ALPN_TUNNEL => {
            let place = rooms.tunnels.take(node);
            unless_told(&place, tunnel::serve(state.clone(), caller, stream, &place)).await
        }
        _ => {
            let error = "no protocol of ours was asked for";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
        }
    }
}

/// Errors: those of what is done, or that the place was given up for another.
async fn unless_told<P: Eq + std::hash::Hash + Clone, T>(
    place: &Place<P>,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::select! {
        done = work => done,
        () = place.told_to_leave() => Err(io::Error::other("silent for longest of too many connections")),
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

/// Of all strangers together.
const HANDSHAKES_OF_STRANGERS: usize = 128;
/// Of all nodes together, and of one: a node opens some ahead on each of its workers.
const HANDSHAKES_MAX: usize = 1024;
const HANDSHAKES_OF_A_NODE: usize = 512;
/// One, and during an update of the program two; those that the other end lost sight of last for a few seconds.
const CONTROLS_OF_A_NODE: usize = 16;
const CONTROLS_OF_OTHERS: usize = 64;
const TUNNELS_MAX: usize = 32_768;
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);

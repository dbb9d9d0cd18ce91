//! The authenticated connection between two nodes, all over one TCP port with TLS 1.3 both ways: the cluster to the nodes
//! that cannot read it themselves, connections to tasks of other nodes, and what nodes know of each other. Not here: where
//! the cluster comes from (`source`), and what connects to tasks (`proxy`); `app` joins them by `Handler`.

pub mod identity;
mod join;
mod peers;
mod server;
mod subscribe;
mod token;
mod tunnel;
mod wire;

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

pub use self::identity::{Authority, Identity, IdentityError, Peer, Role};
pub use self::join::join;
pub use self::peers::{PeerState, PeerTable, Peers, Target};
pub use self::server::serve;
pub use self::token::{Token, TokenError};
pub use self::tunnel::{Dialer, PendingTunnel, Refusal, Tunnel, TunnelRequest};
pub use self::wire::NodeReport;
use crate::model::Cluster;

/// Something that is waited for.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Work for a worker thread: made there, and run there.
pub type Job = Box<dyn FnOnce() -> Later<()> + Send>;

/// What others do for the link.
pub trait Handler: Send + Sync {
    /// Runs a job on one of the threads that serve connections.
    fn spawn(&self, job: Job);
    /// Connects a tunnel to its task, and relays until it is over. Called on such a thread.
    fn serve_tunnel(&self, request: TunnelRequest, pending: PendingTunnel) -> Later<()>;
    /// Answers a call of another node. Errors: what to tell it.
    fn call(&self, caller: Peer, method: String, body: serde_json::Value) -> Later<Result<serde_json::Value, String>>;
}

/// What is counted about the link.
#[derive(Debug, Default)]
pub struct LinkStats {
    /// Tunnels asked for, and those for which none stood ready.
    pub dials: AtomicU64,
    pub dials_unready: AtomicU64,
    /// TLS handshakes begun for tunnels.
    pub handshakes: AtomicU64,
    /// Connections accepted, those that failed before anything was asked, and what was refused.
    pub accepted: AtomicU64,
    pub failed: AtomicU64,
    pub refused: AtomicU64,
    /// Changes of the cluster taken from managers, and times that the whole had to be asked for.
    pub changes: AtomicU64,
    pub resyncs: AtomicU64,
}

/// What a node says of itself and what all parts of the link share.
pub struct LinkState {
    /// Of this run of the program; no two have the same.
    pub instance: u64,
    /// The cluster that this node serves by.
    pub cluster: watch::Receiver<Arc<Cluster>>,
    /// This node learns the cluster itself, and gives it to others.
    pub is_source: AtomicBool,
    pub stats: LinkStats,
    pub settings: LinkSettings,
    draining: watch::Sender<bool>,
    identity: ArcSwapOption<Identity>,
    authority: ArcSwapOption<Authority>,
    token: ArcSwapOption<Token>,
    handler: OnceLock<Arc<dyn Handler>>,
    leaving: Leaving,
    join_limit: join::JoinLimit,
}

#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// The port of every node's link.
    pub port: u16,
    pub certificate_life: Duration,
    /// A joining node must come from the address that the cluster knows it by.
    pub checks_address: bool,
}

impl LinkState {
    pub fn new(cluster: watch::Receiver<Arc<Cluster>>, settings: LinkSettings) -> LinkState {
        LinkState {
            instance: fastrand::u64(1..),
            cluster,
            is_source: AtomicBool::new(false),
            stats: LinkStats::default(),
            settings,
            draining: watch::Sender::new(false),
            identity: ArcSwapOption::empty(),
            authority: ArcSwapOption::empty(),
            token: ArcSwapOption::empty(),
            handler: OnceLock::new(),
            leaving: Leaving::default(),
            join_limit: join::JoinLimit::default(),
        }
    }

    /// Set once, before anything is served.
    pub fn set_handler(&self, handler: Arc<dyn Handler>) {
        // A second handler would be a mistake of the program; the first stays.
        let _ = self.handler.set(handler);
    }

    fn handler(&self) -> Arc<dyn Handler> {
        struct Nobody;
        impl Handler for Nobody {
            fn spawn(&self, _: Job) {}
            fn serve_tunnel(&self, _: TunnelRequest, pending: PendingTunnel) -> Later<()> {
                Box::pin(pending.refuse(Refusal::Gone))
            }
            fn call(&self, _: Peer, _: String, _: serde_json::Value) -> Later<Result<serde_json::Value, String>> {
                Box::pin(async { Err("nobody answers".to_owned()) })
            }
        }
        self.handler.get().cloned().unwrap_or_else(|| Arc::new(Nobody))
    }

    pub fn set_identity(&self, identity: Arc<Identity>) {
        self.identity.store(Some(identity));
    }

    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.load_full()
    }

    /// `None`: this node is no manager (any more), and lets nobody join.
    pub fn set_authority(&self, authority: Option<Arc<Authority>>) {
        self.authority.store(authority);
    }

    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.load_full()
    }

    /// One that could be found by trying is taken, and complained of once.
    pub fn set_token(&self, token: Option<Arc<Token>>) {
        let weakness = token.as_ref().and_then(|token| token.weakness());
        let before = self.token.swap(token);
        if let Some(weakness) = weakness
            && before.is_none()
        {
            tracing::warn!("link.token_file: {weakness}; whoever hears a node join could guess it");
        }
    }

    /// From here on nothing new is taken, and others are told so.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    pub fn report(&self) -> NodeReport {
        let cluster = self.cluster.borrow().clone();
        NodeReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance,
            revision: cluster.revision(),
            digest: cluster.digest(),
            is_source: self.is_source.load(Relaxed),
            is_draining: *self.draining.borrow(),
        }
    }

    /// Whether a node is of the cluster, as far as is known: without a cluster, certificates alone decide.
    fn knows(&self, node: &str) -> bool {
        let cluster = self.cluster.borrow();
        cluster.is_empty() || cluster.node(node).is_some()
    }
}

/// Runs of the program on other nodes that said that they are about to end. Each node speaks for itself only.
#[derive(Debug, Default)]
struct Leaving {
    /// By node. std lock: read when a connection is taken or put back, written when a node ends.
    instances: RwLock<HashMap<Arc<str>, Vec<u64>>>,
}

impl Leaving {
    fn contains(&self, node: &str, instance: u64) -> bool {
        let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
        instances.get(node).is_some_and(|leaving| leaving.contains(&instance))
    }

    fn add(&self, node: &Arc<str>, instance: u64) {
        if self.contains(node, instance) {
            return;
        }
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        let leaving = instances.entry(node.clone()).or_default();
        if leaving.len() >= LEAVING_MAX {
            // It ended long ago.
            leaving.remove(0);
        }
        leaving.push(instance);
    }
}

/// Of one node: during an update of the program one ends while another begins.
const LEAVING_MAX: usize = 8;

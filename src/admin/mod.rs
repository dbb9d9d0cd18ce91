//! What an operator sees of a node: metrics, liveness and readiness, the table, its status. It reads what the other rooms
//! count and changes nothing. One HTTP server, on loopback unless told otherwise.

mod detail;
mod family;
mod files;
mod guest;
mod live;
mod metrics;
mod moment;
mod names;
mod plain;
mod server;
mod tls;
mod views;
pub mod why;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::watch;

use crate::health::HealthStats;
use crate::link::{LinkState, Peers};
use crate::proxy::{Ports, ProxyHandle};
use crate::routing::TableHandle;
use crate::source::SourceStatus;
use crate::source::cluster::Faults;
use crate::source::names::NamesStatus;
use crate::source::swarm::{EngineInfo, SwarmStatus};
use crate::store::{Store, StoreHealth};
use crate::takeover::Takeover;
use crate::tasknet::TaskNets;
use crate::tls::{Terminators, Trust};

pub use self::guest::{AdminSettings, read_token};
pub use self::live::{Live, follow};
pub use self::server::serve;

/// Everything that is looked at.
pub struct AdminState {
    pub table: Arc<TableHandle>,
    pub ports: Arc<Ports>,
    /// The workers, to be asked whether they work.
    pub workers: ProxyHandle,
    pub source: Arc<SourceStatus>,
    /// `None`: there is no services file.
    pub names: Option<Arc<NamesStatus>>,
    pub health: Arc<HealthStats>,
    pub dns: Option<Arc<crate::dns::DnsStats>>,
    pub readiness: Arc<Readiness>,
    pub started: Instant,
    pub n_workers: usize,
    /// `None`: no port is taken over.
    pub takeover: Option<Arc<Takeover>>,
    /// What tasks reach from inside. `None`: it is not looked at.
    pub networks: Option<TaskNets>,
    /// What is wrong with services' labels and ports. `None`: no node of a swarm of any kind.
    pub faults: Option<Arc<Faults>>,
    /// `None`: this node has no store.
    pub store: Option<Arc<StoreHealth>>,
    /// What is declared, where this node is a swarm by itself. Not held: an update gives the store to the next instance.
    pub declared: Option<Weak<dyn Store>>,
    /// `None`: no node of a swarm.
    pub swarm: Option<Arc<SwarmView>>,
    /// What this node cannot do yet.
    pub doors: Arc<ClosedDoors>,
    /// `None`: no entry point ends TLS.
    pub tls: Option<Arc<Terminators>>,
    pub trust: Arc<Trust>,
    pub settings: AdminSettings,
    /// What the page shows.
    pub live: Arc<Live>,
    /// Looks at all nodes of the cluster, or at this one where there is none.
    pub verify: Verify,
}

/// What this node cannot do yet, by the key or label that asks for it: why. An address that cannot be listened at, certificates that no entry
/// point shows.
#[derive(Debug, Default)]
pub struct ClosedDoors(Mutex<BTreeMap<String, String>>);

impl ClosedDoors {
    /// Notes why what `key` asks for cannot be done, or with `None` that it is. Returns whether that is news.
    pub fn set(&self, key: &str, why: Option<String>) -> bool {
        let mut doors = self.lock();
        let known = match &why {
            Some(why) => doors.insert(key.to_owned(), why.clone()),
            None => doors.remove(key),
        };
        known != why
    }

    /// Each key of what cannot be done, and why.
    pub fn snapshot(&self) -> BTreeMap<String, String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // std mutex: nothing awaits under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes what `/v1/verify` shows.
pub type Verify = Box<dyn Fn() -> Pin<Box<dyn Future<Output = serde_json::Value> + Send>> + Send + Sync>;

/// What there is to see of a node of a swarm.
pub struct SwarmView {
    pub status: Arc<SwarmStatus>,
    pub link: Arc<LinkState>,
    pub peers: Arc<Peers>,
    pub info: watch::Receiver<EngineInfo>,
    /// What other nodes are told that show the page.
    pub live: Arc<Live>,
}

/// Where a node is in its life.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No table yet.
    Starting,
    Serving,
    /// It accepts no more, and finishes what is open.
    Draining,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
        }
    }
}

impl Readiness {
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }
}

//! The Docker Engine API on a unix socket: its swarm part, answered from the store; everything else is passed on to the
//! engine beside it, if there is one. Not here: what follows from a change (`control`).

mod engine;
mod error;
mod events;
mod filters;
mod find;
mod http;
mod logs;
mod networks;
mod nodes;
mod payloads;
mod services;
mod swarm;
mod system;
mod tasks;
mod validate;
mod view;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::net::UnixListener;
use tokio::sync::Mutex;

use crate::model::swarm::{Id, Time, Write};
use crate::places::{Places, Table};
use crate::store::{self, Snapshot, Store};
use error::ApiError;

/// What is answered later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The lines of a task's output.
pub type LogStream = Pin<Box<dyn Stream<Item = LogLine> + Send>>;

/// Which lines of a task's output are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    pub follow: bool,
    /// Only so many of the last lines; `None` for all.
    pub tail: Option<usize>,
    pub since: Option<Time>,
    pub until: Option<Time>,
    pub stdout: bool,
    pub stderr: bool,
}

/// A line of a task's output, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub at: Time,
    pub is_stderr: bool,
    pub bytes: Bytes,
}

/// This machine, as a node of a swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub hostname: String,
    /// As `uname -m` says.
    pub architecture: String,
    pub kernel: String,
    pub nano_cpus: i64,
    /// In bytes.
    pub memory: i64,
    /// Its addresses other than loopback ones, the best first.
    pub addrs: Vec<IpAddr>,
}

/// What the API needs of others; `app` joins it.
pub trait Outside: Send + Sync {
    /// The output of a task of this node. Errors: why there is none.
    fn logs(&self, task: &Id, query: LogQuery) -> Result<LogStream, String>;

    fn host(&self) -> Host;

    /// Who holds a TCP port of this host, if it is not anynode.
    fn port_holder(&self, port: u16) -> Option<String>;

    /// What is wrong with services' labels and ports, by service name.
    fn faults(&self) -> BTreeMap<String, Vec<String>>;

    /// The published ports that this node cannot listen on, each with why.
    fn ports_not_served(&self) -> BTreeMap<u16, String>;

    /// The socket of the engine beside this one.
    fn engine(&self) -> Option<PathBuf>;
}

/// The API.
pub struct Api {
    store: Arc<dyn Store>,
    outside: Arc<dyn Outside>,
    /// Held while it is decided about a request that changes something: a decision may hang on other objects than it writes,
    /// such as whose a port is, and only those written are watched by the store.
    deciding: Mutex<()>,
    events: events::Events,
    engine: engine::Known,
    /// For each long body that is being read.
    long_bodies: Arc<Places<http::Caller>>,
    /// For each answer that has no end, and each connection that became the engine's.
    streams: Arc<Places<http::Caller>>,
    /// Ends streams that would go on for ever.
    stopping: tokio::sync::watch::Sender<bool>,
}

impl Api {
    pub fn new(store: Arc<dyn Store>, outside: Arc<dyn Outside>) -> Arc<Api> {
        Arc::new(Api {
            deciding: Mutex::new(()),
            events: events::Events::new(&*store),
            engine: engine::Known::default(),
            long_bodies: Places::new(Table::ApiBodies, http::LONG_BODIES_MAX),
            streams: Places::new(Table::ApiStreams, http::STREAMS_MAX),
            store,
            outside,
            stopping: tokio::sync::watch::Sender::new(false),
        })
    }

    /// Decides by a snapshot and commits, one request at a time.
    async fn update<T>(
        &self,
        decide: impl FnMut(&Snapshot) -> Result<(Vec<Write>, T), ApiError>,
    ) -> Result<(Arc<Snapshot>, T), ApiError> {
        let _turn = self.deciding.lock().await;
        store::update(&*self.store, decide).await
    }

    /// Serves until `shutdown`; what is being answered then is cut.
    pub async fn serve(self: Arc<Api>, listener: UnixListener, shutdown: impl Future<Output = ()>) {
        let stopping = self.stopping.clone();
        let follow = events::follow(&self);
        tokio::select! {
            () = http::serve(self.clone(), listener) => {}
            () = follow => {}
            () = shutdown => {}
        }
        stopping.send_replace(true);
    }
}

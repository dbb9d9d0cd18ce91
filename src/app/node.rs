//! One node: the data plane, a source, and what watches and answers beside them, started in order and drained together.
//! Not here: signals, logs, arguments (`up`, `demo`).

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use super::config::Config;
use super::datadir::{self, DataDirError, DataDirLock};
use crate::proxy::{PortState, Proxy};
use crate::routing::{Listen, TableHandle};
use crate::source::SourceStatus;
use crate::source::file::FileSource;
use crate::sys::limits;

/// A node that is started and serves.
pub struct Node {
    pub table: Arc<TableHandle>,
    config: Config,
    proxy: Proxy,
    source: Option<FileSource>,
    stopping: watch::Sender<bool>,
    /// Held until the node is gone.
    _lock: DataDirLock,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("start the workers")]
    Workers(#[source] std::io::Error),
}

impl Node {
    /// Starts a node. When this returns, the first table is applied and its ports are listened on. Must be called within
    /// a tokio runtime.
    pub fn start(mut config: Config) -> Result<Node, NodeError> {
        let n_files = limits::raise_open_files();
        let room = usize::try_from(n_files.saturating_sub(FILES_KEPT)).unwrap_or(usize::MAX) / FILES_PER_CONNECTION;
        config.proxy.connections_max = config.proxy.connections_max.min(room.max(1));
        let lock = datadir::lock(&config.data_dir)?;
        let table = Arc::new(TableHandle::default());
        let mut proxy = Proxy::start(config.proxy.clone(), table.clone()).map_err(NodeError::Workers)?;
        let status = Arc::new(SourceStatus::default());
        let source = config.services.clone().map(|path| {
            FileSource::start(
                path,
                &config.data_dir,
                config.vip_network,
                table.clone(),
                status.clone(),
            )
        });
        proxy.settle();
        Ok(Node {
            table,
            config,
            proxy,
            source,
            stopping: watch::Sender::new(false),
            _lock: lock,
        })
    }

    /// What is wrong with a port that the table names, if anything is.
    pub fn port_error(&self, listen: &Listen) -> Option<String> {
        match self.proxy.ports().get(listen) {
            Some(PortState::Failed { error, .. }) => Some(error),
            Some(PortState::Listening) | None => None,
        }
    }

    /// Serves until `shutdown`, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Node {
            table,
            config,
            proxy,
            source,
            stopping,
            _lock,
        } = self;
        let stopped = |stopping: &watch::Sender<bool>| {
            let mut stopping = stopping.subscribe();
            // An error means that the sender is gone, which is as much of an end.
            async move { drop(stopping.wait_for(|is_stopping| *is_stopping).await) }
        };
        let source = source.map(|source| tokio::spawn(source.run(stopped(&stopping))));
        let refilling = tokio::spawn(refill_retry_budgets(table));
        let n_cut = proxy.run(config.shutdown_grace, shutdown).await;
        match n_cut {
            0 => tracing::info!("drained"),
            _ => tracing::warn!(connections = n_cut, "drained; connections that were left are reset"),
        }
        stopping.send_replace(true);
        refilling.abort();
        if let Some(source) = source
            && source.await.is_err()
        {
            tracing::error!("the source panicked");
        }
    }
}

async fn refill_retry_budgets(table: Arc<TableHandle>) {
    let mut ticks = tokio::time::interval(REFILL_EVERY);
    loop {
        ticks.tick().await;
        table.refill_retry_budgets(REFILL_EVERY);
    }
}

const REFILL_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
/// Descriptors for listeners, pipes, DNS and the admin server.
const FILES_KEPT: u64 = 2048;
/// Its own and its upstream's.
const FILES_PER_CONNECTION: usize = 2;

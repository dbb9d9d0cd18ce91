//! One node: the data plane, a source, and what watches and answers beside them, started in order and drained together.
//! Not here: signals, logs, arguments (`up`, `demo`).

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::config::Config;
use super::datadir::{self, DataDirError, DataDirLock};
use super::swarm::{LinkListenError, SwarmNode};
use super::verify;
use crate::admin::{AdminState, Phase, Readiness};
use crate::dns::{DnsConfig, DnsServer};
use crate::health::Prober;
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
    swarm: Option<SwarmNode>,
    prober: Prober,
    dns: Option<DnsServer>,
    admin: Option<(tokio::net::TcpListener, Arc<AdminState>)>,
    readiness: Arc<Readiness>,
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
    #[error("admin.listen = {addr}: expected an address that is free, or \"none\"")]
    Admin {
        addr: SocketAddr,
        #[source]
        error: std::io::Error,
    },
    #[error(transparent)]
    Link(#[from] LinkListenError),
    #[error("dns.listen = {addr}: expected an address that is free, or \"none\"")]
    Dns {
        addr: SocketAddr,
        #[source]
        error: crate::dns::BindError,
    },
}

impl Node {
    /// Starts a node. When this returns, the first table is applied and its ports are listened on. Must be called within
    /// a tokio runtime.
    pub fn start(mut config: Config) -> Result<Node, NodeError> {
        config.proxy.files_max = usize::try_from(limits::raise_open_files()).unwrap_or(usize::MAX);
        let lock = datadir::lock(&config.data_dir)?;
        let table = Arc::new(TableHandle::default());
        // What may be refused comes first, before anything serves.
        let admin = config.admin.map(listen_admin).transpose()?;
        let dns = config.dns.map(|listen| bind_dns(listen, &config, &table)).transpose()?;
        let status = Arc::new(SourceStatus::default());
        let swarm = config
            .swarm
            .clone()
            .map(|swarm| SwarmNode::new(swarm, &config.data_dir, table.clone(), status.clone()));
        let swarm = swarm.transpose()?;
        let dialer = swarm.as_ref().map(SwarmNode::dialer);
        let mut proxy = Proxy::start(config.proxy.clone(), table.clone(), dialer).map_err(NodeError::Workers)?;
        let source = config.services.clone().map(|path| {
            FileSource::start(
                path,
                &config.data_dir,
                config.vip_network,
                table.clone(),
                status.clone(),
            )
        });
        if source.is_none() && swarm.is_none() {
            status.applied();
        }
        let prober = Prober::new(table.clone());
        let readiness = Arc::new(Readiness::default());
        let state = Arc::new(AdminState {
            table: table.clone(),
            ports: proxy.ports().clone(),
            source: status,
            health: prober.stats().clone(),
            dns: dns.as_ref().map(DnsServer::stats),
            readiness: readiness.clone(),
            started: Instant::now(),
            n_workers: config.proxy.n_workers,
            swarm: swarm.as_ref().map(|swarm| swarm.view.clone()),
            verify: swarm
                .as_ref()
                .map(|swarm| verify::for_admin(table.clone(), swarm.view.clone())),
        });
        proxy.settle();
        readiness.set(Phase::Serving);
        Ok(Node {
            table,
            config,
            proxy,
            source,
            swarm,
            prober,
            dns,
            admin: admin.map(|listener| (listener, state)),
            readiness,
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
            swarm,
            prober,
            dns,
            admin,
            readiness,
            _lock,
        } = self;
        let stopping = watch::Sender::new(false);
        let stopped = || {
            let mut stopping = stopping.subscribe();
            // An error means that the sender is gone, which is as much of an end.
            async move { drop(stopping.wait_for(|is_stopping| *is_stopping).await) }
        };
        let mut beside = JoinSet::new();
        if let Some(source) = source {
            beside.spawn(source.run(stopped()));
        }
        let drain_link = swarm.as_ref().map(SwarmNode::drain);
        if let Some(swarm) = swarm {
            beside.spawn(swarm.run(proxy.handle(), stopped()));
        }
        beside.spawn(prober.run(stopped()));
        if let Some(dns) = dns {
            let running = dns.run(stopped());
            beside.spawn(async {
                if let Err(error) = running.await {
                    tracing::error!("{}", super::chain(&error));
                }
            });
        }
        if let Some((listener, state)) = admin {
            beside.spawn(crate::admin::serve(listener, state, stopped()));
        }
        beside.spawn(refill_retry_budgets(table, stopped()));
        let draining = async {
            shutdown.await;
            readiness.set(Phase::Draining);
            drain_link.into_iter().for_each(|drain| drain());
        };
        let n_cut = proxy.run(config.shutdown_grace, draining).await;
        match n_cut {
            0 => tracing::info!("drained"),
            _ => tracing::warn!(connections = n_cut, "drained; connections that were left are reset"),
        }
        stopping.send_replace(true);
        while let Some(ended) = beside.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the node panicked");
            }
        }
    }
}

fn listen_admin(addr: SocketAddr) -> Result<tokio::net::TcpListener, NodeError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    listen().map_err(|error| NodeError::Admin { addr, error })
}

fn bind_dns(addr: SocketAddr, config: &Config, table: &Arc<TableHandle>) -> Result<DnsServer, NodeError> {
    let dns = DnsConfig {
        listen: addr,
        upstreams: config.dns_upstreams.clone(),
        upstream_timeout: config.dns_upstream_timeout,
        ..DnsConfig::default()
    };
    DnsServer::bind(dns, table.clone()).map_err(|error| NodeError::Dns { addr, error })
}

async fn refill_retry_budgets(table: Arc<TableHandle>, shutdown: impl Future<Output = ()>) {
    let mut ticks = tokio::time::interval(REFILL_EVERY);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = ticks.tick() => table.refill_retry_budgets(REFILL_EVERY),
        }
    }
}

const REFILL_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

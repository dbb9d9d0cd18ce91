//! A node of a Docker Swarm: joins the swarm source, the link and the data plane. Who this node is comes from its engine;
//! by that it gets a certificate, learns the cluster, links to every other node, and serves its tasks to them.
//! Not here: any of their work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::acme_nodes::AcmeNodes;
use super::chain;
use super::config::SwarmConfig;
use super::doors::Door;
use super::freshness;
use super::verify;
use crate::admin::SwarmView;
use crate::link::{
    self, Authority, Handler, Identity, Job, Later, LinkSettings, LinkState, Peer, Peers, Role, Target, Token,
    TunnelRequest,
};
use crate::model::{Asker, Cluster, TaskRef};
use crate::proxy::{self, Dialing, HopRequest, ProxyHandle, Refused, TunnelFor};
use crate::routing::{RoutingTable, Service, ServiceDiff, TableHandle};
use crate::source::SourceStatus;
use crate::source::cluster::{ClusterSource, Faults, OwnNode};
use crate::source::swarm::{ClusterKeeper, Engine, EngineInfo, SwarmPaths, SwarmSource, SwarmStatus};
use crate::takeover::{Mode, Takeover, TakeoverConfig};

/// The parts of a node of a swarm, made before anything serves.
pub(super) struct SwarmNode {
    pub(super) view: Arc<SwarmView>,
    status: Arc<SourceStatus>,
    pub(super) faults: Arc<Faults>,
    config: SwarmConfig,
    data_dir: PathBuf,
    table: Arc<TableHandle>,
    cluster: watch::Sender<Arc<Cluster>>,
    keeper: ClusterKeeper,
    source: SwarmSource,
    tables: ClusterSource,
    link: Arc<LinkState>,
    peers: Arc<Peers>,
    door: Option<Door<TcpListener>>,
}

impl SwarmConfig {
    /// `None`: it is not wanted, or nothing of it can be had here, which is said.
    pub(super) fn start_takeover(&self) -> Option<Arc<Takeover>> {
        if self.takeover == Mode::Off {
            return None;
        }
        let config = TakeoverConfig {
            mode: self.takeover,
            ..TakeoverConfig::default()
        };
        match Takeover::start(config) {
            Ok(takeover) => Some(Arc::new(takeover)),
            Err(error) => {
                tracing::warn!("ports that Docker holds are not taken over: {}", chain(&error));
                None
            }
        }
    }
}

impl SwarmNode {
    /// Begins with the last cluster, if there is one in `data_dir`.
    pub(super) async fn new(
        config: SwarmConfig,
        data_dir: &Path,
        table: Arc<TableHandle>,
        status: Arc<SourceStatus>,
        may_write: watch::Receiver<bool>,
        door: Option<Door<TcpListener>>,
    ) -> SwarmNode {
        let mut keeper = ClusterKeeper::new(data_dir, may_write);
        keeper.tell(status.clone());
        let kept = keeper.read();
        if kept.is_some() {
            status.recalled(keeper.kept_at().unwrap_or(std::time::UNIX_EPOCH));
        }
        let (info, cluster) = kept.unwrap_or_default();
        let cluster = Arc::new(cluster);
        let clusters = watch::Sender::new(cluster.clone());
        let port = config.link.map_or(0, |addr| addr.port());
        let settings = LinkSettings {
            port,
            certificate_life: config.certificate_life,
            checks_address: config.link_checks_address,
        };
        let link = Arc::new(LinkState::new(clusters.subscribe(), settings));
        let swarm_status = Arc::new(SwarmStatus::default());
        let for_source = link.clone();
        let is_source = Arc::new(move |is_source| for_source.is_source.store(is_source, Relaxed));
        let paths = SwarmPaths {
            docker_socket: config.docker_socket.clone(),
            control_socket: config.control_socket.clone(),
        };
        let source = SwarmSource::new(paths, swarm_status.clone(), clusters.clone(), is_source);
        let source = source.reading_traefik(config.reads_traefik);
        source.recall(info.clone());
        let faults = Arc::new(Faults::default());
        let tables = ClusterSource::new(table.clone(), status.clone(), faults.clone(), port, NOT_TCP);
        let mut tables = tables.of_what_may_be_old().reading_traefik(config.reads_traefik);
        if !cluster.is_empty() {
            tracing::info!(revision = cluster.revision(), "serving the last cluster");
            let own = OwnNode {
                id: info.node.as_str().into(),
            };
            let tasks = source.recall_tasks(ENGINE_PATIENCE).await;
            tables.follow(&cluster, &tasks, &own);
        }
        if !info.node.is_empty() {
            // So that other nodes are reached, and reach this one, from the first moment on.
            match Identity::open(data_dir, &info.node) {
                Ok(identity) => link.set_identity(Arc::new(identity)),
                Err(error) => tracing::warn!("the link's certificate: {}", chain(&error)),
            }
        }
        let peers = Arc::new(Peers::new(link.clone(), clusters.clone()));
        let view = Arc::new(SwarmView {
            status: swarm_status,
            link: link.clone(),
            peers: peers.clone(),
            info: source.info(),
            live: Arc::default(),
        });
        SwarmNode {
            view,
            status,
            faults,
            config,
            data_dir: data_dir.to_owned(),
            table,
            cluster: clusters,
            keeper,
            source,
            tables,
            link,
            peers,
            door,
        }
    }

    /// Who reaches tasks of other nodes for the data plane.
    pub(super) fn dialer(&self) -> Arc<dyn proxy::Dialer> {
        Arc::new(Dials {
            dialer: link::Dialer::new(self.link.clone()),
        })
    }

    /// The socket that other nodes connect to, to be lent to the next instance.
    pub(super) fn listener(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.door.as_ref()?.opened().map(std::os::fd::AsFd::as_fd)
    }

    /// Others hear that this node is about to end.
    pub(super) fn drain(&self) -> impl Fn() + use<> {
        let link = self.link.clone();
        move || link.drain()
    }

    /// Runs everything until `shutdown`. Connections of other nodes are accepted from the moment that `accepting` says
    /// so until `handed_over`.
    pub(super) async fn run(
        self,
        proxy: ProxyHandle,
        acme: Option<Arc<AcmeNodes>>,
        mut accepting: watch::Receiver<bool>,
        handed_over: impl Future<Output = ()> + Send + 'static,
        shutdown: impl Future<Output = ()>,
    ) {
        let SwarmNode {
            view,
            status,
            faults: _,
            config,
            data_dir,
            table,
            cluster,
            keeper,
            source,
            tables,
            link,
            peers,
            door,
        } = self;
        let for_lost = proxy.clone();
        link.set_handler(Arc::new(Serves {
            proxy,
            table: table.clone(),
            view: view.clone(),
            acme: acme.clone(),
        }));
        let stopping = watch::Sender::new(false);
        let stopped = || {
            let mut stopping = stopping.subscribe();
            // An error means that the sender is gone, which is as much of an end.
            async move { drop(stopping.wait_for(|is_stopping| *is_stopping).await) }
        };
        let own = watch::Sender::new(OwnNode {
            id: source.info().borrow().node.as_str().into(),
        });
        let targets = watch::Sender::new(Vec::new());
        let mut parts = JoinSet::new();
        let (tasks, info) = (source.tasks(), source.info());
        let keeps = info.clone();
        let keep = keeper.run(cluster.subscribe(), move || Some(keeps.borrow().clone()), stopped());
        parts.spawn(keep);
        parts.spawn(tables.run(cluster.subscribe(), tasks, own.subscribe(), stopped()));
        parts.spawn(follow_node(info.clone(), own, stopped()));
        parts.spawn(freshness::watch(view, status, stopped()));
        if let Some(door) = door {
            let targets_of = targets.subscribe();
            parts.spawn(follow_targets(
                cluster.subscribe(),
                info.clone(),
                link.settings.port,
                targets,
                stopped(),
            ));
            parts.spawn(keep_identity(config, data_dir, link.clone(), info, stopped()));
            let (state, until) = (link.clone(), stopped());
            parts.spawn(async move {
                // An error means that the node ends before it began.
                if accepting.wait_for(|is| *is).await.is_err() {
                    return;
                }
                let over = async {
                    tokio::select! {
                        () = handed_over => {}
                        () = until => {}
                    }
                };
                tokio::pin!(over);
                let listener = tokio::select! {
                    () = &mut over => return,
                    listener = door.listener() => listener,
                };
                match listener {
                    Ok(listener) => link::serve(state, listener, over).await,
                    Err(error) => tracing::error!(%error, "the link's listener cannot be watched"),
                }
            });
            let for_peers = peers.clone();
            let until = stopped();
            parts.spawn(async move { for_peers.run(targets_of, until).await });
            parts.spawn(follow_peers(table, peers, for_lost, stopped()));
        }
        if let Some(acme) = acme {
            let until = stopped();
            parts.spawn(async move {
                tokio::select! {
                    never = acme.run() => match never {},
                    () = until => {}
                }
            });
        }
        let until = stopped();
        parts.spawn(async move { source.run(until).await });
        shutdown.await;
        stopping.send_replace(true);
        while let Some(ended) = parts.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the swarm node panicked");
            }
        }
    }
}

/// Passes on who this node is.
async fn follow_node(
    mut info: watch::Receiver<EngineInfo>,
    own: watch::Sender<OwnNode>,
    shutdown: impl Future<Output = ()>,
) {
    let follow = async {
        loop {
            let node = OwnNode {
                id: info.borrow_and_update().node.as_str().into(),
            };
            own.send_if_modified(|known| {
                let is_news = *known != node;
                *known = node;
                is_news
            });
            if info.changed().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown => {}
    }
}

/// Every other node: those of the cluster, and before there is one, the managers that the engine knows.
async fn follow_targets(
    mut clusters: watch::Receiver<Arc<Cluster>>,
    mut info: watch::Receiver<EngineInfo>,
    port: u16,
    targets: watch::Sender<Vec<Target>>,
    shutdown: impl Future<Output = ()>,
) {
    let follow = async {
        loop {
            let (cluster, info_now) = (clusters.borrow_and_update().clone(), info.borrow_and_update().clone());
            let mut by_node: BTreeMap<String, (IpAddr, bool)> = info_now
                .managers
                .iter()
                .map(|(node, ip)| (node.clone(), (*ip, true)))
                .collect();
            for node in cluster.nodes() {
                if let Some(ip) = node.addr {
                    by_node.insert(node.id.clone(), (ip, node.is_manager));
                }
            }
            by_node.remove(&info_now.node);
            let wanted: Vec<Target> = by_node
                .into_iter()
                .filter(|_| !info_now.node.is_empty())
                .map(|(node, (ip, is_manager))| Target {
                    node: node.as_str().into(),
                    addr: SocketAddr::new(ip, port),
                    is_manager,
                })
                .collect();
            targets.send_if_modified(|known| {
                let is_news = *known != wanted;
                *known = wanted;
                is_news
            });
            let changed = tokio::select! {
                changed = clusters.changed() => changed,
                changed = info.changed() => changed,
            };
            if changed.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown => {}
    }
}

/// Tasks of a node that does not answer get no traffic while other tasks are left, and requests that are there already are
/// waited for no longer once it is silent.
async fn follow_peers(
    table: Arc<TableHandle>,
    peers: Arc<Peers>,
    proxy: ProxyHandle,
    shutdown: impl Future<Output = ()>,
) {
    let follow = async {
        let mut silent: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut changed = peers.subscribe();
        let mut revision = table.subscribe();
        let mut seen = Arc::new(RoutingTable::default());
        let mut are_peers_new = true;
        loop {
            revision.mark_unchanged();
            let states = peers.table();
            let mark = |service: &Service| {
                for endpoint in service.endpoints() {
                    let Some(task) = endpoint.task().filter(|task| task.is_remote) else {
                        continue;
                    };
                    // Of a node that nobody has tried to reach yet nothing is known.
                    if let Some(peer) = states.get(&task.node) {
                        endpoint.set_probed(peer.is_up);
                    }
                }
            };
            let now = table.load();
            if are_peers_new {
                now.services().for_each(|service| mark(service));
            } else {
                for diff in RoutingTable::diff(&seen, &now) {
                    match diff {
                        ServiceDiff::Added(after) | ServiceDiff::Changed { after, .. } => mark(after),
                        ServiceDiff::Removed(_) => {}
                    }
                }
            }
            let silent_now = states.iter().filter(|(_, peer)| peer.is_silent);
            let silent_now: BTreeSet<Arc<str>> = silent_now.map(|(node, _)| node.clone()).collect();
            let is_lost =
                |task: &Arc<TaskRef>| task.is_remote && silent_now.contains(&task.node) && !silent.contains(&task.node);
            if silent_now.iter().any(|node| !silent.contains(node)) {
                // After they were marked: who goes elsewhere does not come back.
                let endpoints = now.services().flat_map(|service| service.endpoints());
                let lost = endpoints.filter(|endpoint| endpoint.task().is_some_and(is_lost));
                proxy.endpoints_lost(&lost.map(|endpoint| endpoint.id()).collect::<Vec<_>>());
            }
            silent = silent_now;
            seen = now;
            let woken;
            (woken, are_peers_new) = tokio::select! {
                changed = changed.changed() => (changed, true),
                changed = revision.changed() => (changed, false),
            };
            if woken.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown => {}
    }
}

/// Sees to this node's certificate: managers write their own, workers join and renew.
async fn keep_identity(
    config: SwarmConfig,
    data_dir: PathBuf,
    link: Arc<LinkState>,
    mut info: watch::Receiver<EngineInfo>,
    shutdown: impl Future<Output = ()>,
) {
    let keep = async {
        let mut said = String::new();
        loop {
            let now = info.borrow_and_update().clone();
            let pause = match keep_identity_once(&config, &data_dir, &link, &now).await {
                Ok(pause) => {
                    said.clear();
                    pause
                }
                Err(error) => {
                    if said != error {
                        tracing::warn!("the link's certificate: {error}");
                        said = error;
                    }
                    IDENTITY_AGAIN
                }
            };
            tokio::select! {
                changed = info.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(pause) => {}
            }
        }
    };
    tokio::select! {
        () = keep => {}
        () = shutdown => {}
    }
}

/// One step; returns when to look again. Errors: what is missing, in words.
async fn keep_identity_once(
    config: &SwarmConfig,
    data_dir: &Path,
    link: &Arc<LinkState>,
    info: &EngineInfo,
) -> Result<Duration, String> {
    if info.node.is_empty() {
        return Ok(IDENTITY_AGAIN);
    }
    let identity = match link.identity().filter(|identity| **identity.node() == *info.node) {
        Some(identity) => identity,
        None => {
            let identity = Arc::new(Identity::open(data_dir, &info.node).map_err(|error| chain(&error))?);
            link.set_identity(identity.clone());
            identity
        }
    };
    let token = Token::read("link.token_file", &config.token_file).map(Arc::new);
    link.set_token(token.as_ref().ok().cloned());
    if info.is_manager {
        let authority = match link.authority() {
            Some(authority) => authority,
            None => {
                let engine = Engine::connect(&config.docker_socket)
                    .await
                    .map_err(|error| chain(&error))?;
                let candidate = Authority::generate().map_err(|error| chain(&error))?;
                let pem = engine
                    .create_or_read_config(AUTHORITY_CONFIG, candidate.as_bytes())
                    .await;
                let pem = String::from_utf8(pem.map_err(|error| chain(&error))?).map_err(|error| error.to_string())?;
                let authority = Arc::new(Authority::from_pem(&pem).map_err(|error| chain(&error))?);
                link.set_authority(Some(authority.clone()));
                authority
            }
        };
        let is_ours = identity.authority_pem().as_deref() == Some(authority.certificate_pem());
        let is_due = identity.renew_at().is_none_or(|at| at <= std::time::SystemTime::now());
        if is_due || !is_ours || identity.role() != Some(Role::Manager) {
            identity
                .issue_own(&authority, config.certificate_life)
                .map_err(|error| chain(&error))?;
            tracing::info!("certificate written");
        }
        if let Err(error) = token {
            return Err(format!("no other node can join: {}", chain(&error)));
        }
        return Ok(IDENTITY_CHECK.min(config.certificate_life / 8));
    }
    link.set_authority(None);
    if identity.role().is_some() {
        // It is renewed over the link.
        return Ok(IDENTITY_CHECK.min(config.certificate_life / 8));
    }
    let token = token.map_err(|error| format!("this node cannot join: {}", chain(&error)))?;
    let mut errors = Vec::new();
    let mut managers: Vec<SocketAddr> = info
        .managers
        .iter()
        .map(|(_, ip)| SocketAddr::new(*ip, link.settings.port))
        .collect();
    let known = link.cluster.borrow().clone();
    managers.extend(
        known
            .nodes()
            .filter(|node| node.is_manager)
            .filter_map(|node| Some(SocketAddr::new(node.addr?, link.settings.port))),
    );
    managers.sort_unstable();
    managers.dedup();
    fastrand::shuffle(&mut managers);
    for manager in managers {
        match link::join(&identity, &token, manager).await {
            Ok(()) => {
                tracing::info!(%manager, "joined");
                return Ok(IDENTITY_CHECK);
            }
            Err(error) => errors.push(format!("{manager}: {error}")),
        }
    }
    match errors.is_empty() {
        true => Err("no manager is known".to_owned()),
        false => Err(format!("no manager lets this node join: {}", errors.join("; "))),
    }
}

/// The swarm's config that holds the authority, so that all managers have the same, and nobody else any.
const AUTHORITY_CONFIG: &str = "anynode-authority";
/// How long a start waits for the engine's word on this node's tasks.
const NOT_TCP: &str = "not served here, Docker's own ingress has it";
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);
const IDENTITY_AGAIN: Duration = Duration::from_millis(500);
const IDENTITY_CHECK: Duration = Duration::from_secs(30);

/// The link's tunnels as the data plane wants them.
struct Dials {
    dialer: link::Dialer,
}

impl proxy::Tunnel for link::Tunnel {
    fn socket(&self) -> Option<&tokio::net::TcpStream> {
        Some(link::Tunnel::socket(self))
    }

    fn is_leaving(&self) -> bool {
        link::Tunnel::is_leaving(self)
    }

    fn leaving(&self) -> Option<proxy::Leaving> {
        Some(Box::new(link::Tunnel::leaving(self)))
    }
}

impl proxy::Dialer for Dials {
    fn dial(&self, hop: TunnelFor<'_>) -> Dialing {
        let dialer = self.dialer.clone();
        let (node, addr) = (hop.task.node.clone(), hop.link);
        let request = TunnelRequest {
            task: hop.task.id.to_string(),
            target: hop.target,
            client: hop.client,
            asker: Some(match hop.network {
                Some(network) => Asker::Network(network.clone()),
                None => Asker::Client,
            }),
        };
        Box::pin(async move {
            let tunnel = dialer.dial(node, addr, request).await?;
            Ok(Box::new(tunnel) as Box<dyn proxy::Tunnel>)
        })
    }
}

/// What this node does for others.
struct Serves {
    proxy: ProxyHandle,
    table: Arc<TableHandle>,
    view: Arc<SwarmView>,
    /// `None`: no certificates are ordered.
    acme: Option<Arc<AcmeNodes>>,
}

impl Handler for Serves {
    fn spawn(&self, job: Job) {
        self.proxy.spawn(job);
    }

    fn serve_tunnel(&self, request: TunnelRequest, pending: link::PendingTunnel) -> Later<()> {
        let request = HopRequest {
            task: request.task,
            target: request.target,
            client: request.client,
            asker: request.asker,
        };
        Box::pin(self.proxy.serve_last_hop(request, Box::new(Pending(pending))))
    }

    fn call(&self, caller: Peer, method: String, body: serde_json::Value) -> Later<Result<serde_json::Value, String>> {
        let (table, view, acme) = (self.table.clone(), self.view.clone(), self.acme.clone());
        Box::pin(async move {
            if let Some(acme) = acme
                && let Some(answer) = acme.answer(caller, &method, body.clone()).await
            {
                return answer;
            }
            if let Some(answer) = view.live.answer(&method, &body).await {
                return answer;
            }
            match method.as_str() {
                "verify" => Ok(verify::own(&table, &view).await),
                _ => Err(format!("no such call: {method}")),
            }
        })
    }
}

struct Pending(link::PendingTunnel);

impl proxy::PendingTunnel for Pending {
    fn accept(self: Box<Self>) -> Dialing {
        Box::pin(async move { Ok(Box::new(self.0.accept().await?) as Box<dyn proxy::Tunnel>) })
    }

    fn refuse(self: Box<Self>, why: Refused) -> Later<()> {
        let why = match why {
            Refused::NotReached => link::Refusal::NotReached,
            Refused::TimedOut => link::Refusal::TimedOut,
            Refused::Gone => link::Refusal::Gone,
            Refused::NotAllowed => link::Refusal::NotAllowed,
        };
        Box::pin(self.0.refuse(why))
    }
}

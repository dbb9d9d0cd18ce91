//! A node that is a swarm by itself: its store, the control plane, the agent and the API, joined to the same data plane that
//! serves a Docker Swarm. Not here: what any of them does.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::api_socket::{ApiSocket, ApiSocketError};
use super::attached::{AttachedContainers, Reaches};
use super::config::{EngineChoice, OwnConfig};
use super::declared_certificates::{self, DeclaredCertificates};
use super::lock::{self, OwnLock};
use super::volumes::NodeVolumes;
use crate::admin::ClosedDoors;
use crate::agent::containers::{Containers, EngineError};
use crate::agent::process::{ProcessSettings, Processes, UserRange};
use crate::agent::{self, Agent, Assignment, Assignments, Barrier, Later, Reports, Runtime, TaskNetworks};
use crate::api::{self, Api, Host, Lock, Outside};
use crate::control;
use crate::link::Authority;
use crate::model::exec::{ExecError, ExecSpec};
use crate::model::swarm::{Generic, Id, Object, SwarmAuthority, Task, TaskState, TaskStatus, UnlockKey, Write};
use crate::model::{Cluster, EntryPointSpec};
use crate::proxy::{PortState, Ports};
use crate::routing::TableHandle;
use crate::source::SourceStatus;
use crate::source::cluster::{ClusterSource, Faults, LocalTasks, OwnNode};
use crate::source::native::NativeSource;
use crate::source::swarm::ClusterKeeper;
use crate::store::{CommitError, Embedded, Late, OpenError, Snapshot, Store, StoreHealth, update};
use crate::streams::{Exec, LogQuery, LogStream};
use crate::sys::inet_diag::Holders;
use crate::sys::rtnetlink::RtNetlink;
use crate::tls::Terminators;

/// Why a node cannot be a swarm by itself.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Api(#[from] ApiSocketError),
    #[error("api.engine")]
    Engine(#[from] EngineError),
    #[error("this program's own path")]
    Program(#[source] io::Error),
    #[error("process.users = {range}: {reason}")]
    Users { range: UserRange, reason: String },
}

/// Where this program has what is its own, and where others listen who do what root asks.
fn hidden_from_tasks(data_dir: &Path) -> Vec<PathBuf> {
    const OBEY_ROOT: [&str; 8] = [
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/docker",
        "/run/containerd",
        "/run/podman",
        "/run/crio",
        "/run/dbus",
        "/run/systemd/private",
    ];
    let mut hidden = vec![data_dir.to_owned()];
    hidden.extend(OBEY_ROOT.map(PathBuf::from));
    hidden
}

/// The directory of a socket, unless it is one of many. Others than root may not use the socket anyway.
fn own_dir(socket: &Path) -> Option<PathBuf> {
    const SHARED: [&str; 7] = ["", "/", "/run", "/var/run", "/tmp", "/var/tmp", "/dev/shm"];
    let dir = socket.parent()?;
    let is_shared = SHARED.iter().any(|shared| dir.as_os_str() == *shared);
    if is_shared && rustix::process::geteuid().is_root() {
        tracing::warn!(
            socket = %socket.display(),
            "api.socket: expected a path in a directory of its own, so that tasks of root do not find it"
        );
    }
    (!is_shared).then(|| dir.to_owned())
}

/// The parts of a node that is a swarm by itself.
pub struct OwnSwarm {
    store: Arc<dyn Store>,
    clusters: watch::Sender<Arc<Cluster>>,
    tables: ClusterSource,
    pub(super) faults: Arc<Faults>,
    /// Those of entry points.
    shared_ports: BTreeSet<u16>,
    /// `None`: somebody else opened it.
    pub(super) store_health: Option<Arc<StoreHealth>>,
    /// `None`: it was open when this began.
    lock: Option<Arc<OwnLock>>,
    /// Of the last cluster. `None`: nothing is kept.
    keeper: Option<ClusterKeeper>,
    certificates: DeclaredCertificates,
    status: Arc<SourceStatus>,
    agent: Arc<Agent>,
    reporter: Reporter,
    api: Arc<Api>,
    listener: UnixListener,
    socket: Arc<ApiSocket>,
    /// `None`: there can be none.
    attached: Option<Arc<AttachedContainers>>,
}

/// What tasks have beside them.
struct EngineOrNot {
    /// The socket of the engine that gets what is not the swarm's.
    engine: Option<PathBuf>,
    /// `None`: there can be none.
    attached: Option<Arc<AttachedContainers>>,
    /// `None`: an engine has them, or nobody can.
    volumes: Option<Arc<NodeVolumes>>,
    generic: Generic,
    /// Traefik's labels are read beside ours.
    reads_traefik: bool,
}

/// The data plane that a swarm's services are served by.
pub struct Plane {
    pub table: Arc<TableHandle>,
    pub status: Arc<SourceStatus>,
    pub ports: Arc<Ports>,
    pub networks: Arc<dyn TaskNetworks>,
    /// `None`: no entry point ends TLS.
    pub tls: Option<Arc<Terminators>>,
    /// Where it is said what this node cannot do yet.
    pub doors: Arc<ClosedDoors>,
}

impl OwnSwarm {
    /// What is declared, for as long as this has it.
    pub(super) fn store(&self) -> Weak<dyn Store> {
        Arc::downgrade(&self.store)
    }

    /// Opens the store and the API's socket. `unlock_key`: from the instance before.
    pub(super) async fn new(
        config: OwnConfig,
        data_dir: &Path,
        plane: Plane,
        unlock_key: Option<UnlockKey>,
    ) -> Result<OwnSwarm, OwnError> {
        let (dir, health) = (data_dir.join("store"), Arc::new(StoreHealth::default()));
        let (store, lock): (Arc<dyn Store>, _) = match open_released(&dir, unlock_key.as_ref(), &health).await {
            Ok(store) => (Arc::new(store), None),
            Err(OpenError::Locked { .. } | OpenError::WrongKey { .. }) => {
                tracing::warn!("{}", lock::WAITS);
                let late = Arc::new(Late::default());
                let lock = OwnLock::new(dir, late.clone(), health.clone());
                (late, Some(Arc::new(lock)))
            }
            Err(error) => return Err(error.into()),
        };
        let (mut attached, mut volumes) = (None, None);
        let engine = match config.engine {
            EngineChoice::None => None,
            EngineChoice::Socket(path) => Some(path),
            EngineChoice::Usual => Some(PathBuf::from(USUAL_ENGINE)).filter(|path| path.exists()),
        };
        let api = Arc::new(ApiSocket::open(&config.api, data_dir, engine.as_deref())?);
        let runtime: Arc<dyn Runtime> = match &engine {
            // Another anynode has another directory.
            Some(path) => {
                let owner = data_dir.display().to_string();
                let containers = Containers::connect(path, owner, plane.networks.clone()).await?;
                if containers.can_attach() {
                    attached = Some(Arc::new(AttachedContainers::new(store.clone(), containers.clone())));
                }
                Arc::new(containers.with_api(api.clone()))
            }
            None => {
                if rustix::process::geteuid().is_root() {
                    let range = config.process_users;
                    range.is_nobodys().map_err(|reason| OwnError::Users { range, reason })?;
                }
                let processes = Processes::new(
                    ProcessSettings {
                        dir: data_dir.join("tasks"),
                        program: std::env::current_exe().map_err(OwnError::Program)?,
                        images: config.images,
                        addresses: config.process_addresses,
                        users: config.process_users,
                        hidden: hidden_from_tasks(data_dir),
                        // A socket is made anew with each run: what is mounted over the old one does not hide the new one.
                        hidden_from_root: own_dir(&config.api).into_iter().collect(),
                    },
                    plane.networks.clone(),
                );
                volumes = processes.volumes().map(|volumes| Arc::new(NodeVolumes(volumes)));
                Arc::new(processes)
            }
        };
        let beside = EngineOrNot {
            engine,
            attached,
            volumes,
            generic: config.generic,
            reads_traefik: config.reads_traefik,
        };
        let own = OwnSwarm::join(store, lock, runtime, beside, api, plane)?;
        Ok(OwnSwarm {
            store_health: Some(health),
            keeper: Some(ClusterKeeper::new(data_dir, watch::Sender::new(true).subscribe())),
            ..own
        })
    }

    /// Joins them. `engine` is the socket of the engine that gets what is not the swarm's, `api` where the API is to be
    /// served. Errors: it cannot be.
    pub fn assemble(
        store: Arc<dyn Store>,
        runtime: Arc<dyn Runtime>,
        engine: Option<PathBuf>,
        api: Arc<ApiSocket>,
        plane: Plane,
    ) -> Result<OwnSwarm, OwnError> {
        let beside = EngineOrNot {
            engine,
            attached: None,
            volumes: None,
            generic: Generic::default(),
            reads_traefik: false,
        };
        OwnSwarm::join(store, None, runtime, beside, api, plane)
    }

    /// `lock`: what the store, which is empty before, waits for.
    fn join(
        store: Arc<dyn Store>,
        lock: Option<Arc<OwnLock>>,
        runtime: Arc<dyn Runtime>,
        beside: EngineOrNot,
        api: Arc<ApiSocket>,
        plane: Plane,
    ) -> Result<OwnSwarm, OwnError> {
        let EngineOrNot {
            engine,
            attached,
            volumes,
            generic,
            reads_traefik,
        } = beside;
        let Plane {
            table,
            status,
            ports,
            networks,
            tls,
            doors,
        } = plane;
        let listener = api.listener()?;
        let (reports, received) = mpsc::unbounded_channel();
        let reporter = Reporter {
            store: store.clone(),
            reports: received,
        };
        let leaves = Leaves { table: table.clone() };
        let faults = Arc::new(Faults::default());
        let agent = Agent::new(runtime, Arc::new(Tells { reports }), Arc::new(leaves), networks);
        let beside = Beside {
            agent: agent.clone(),
            ports,
            entry_points: table
                .load()
                .entry_points()
                .iter()
                .map(|one| EntryPointSpec::clone(one.spec()))
                .collect(),
            faults: faults.clone(),
            engine,
            lock: lock.clone(),
            attached: attached.clone(),
            volumes,
            generic,
            reads_traefik,
        };
        let tables = ClusterSource::new(table, status.clone(), faults.clone(), 0, NOT_TCP);
        let mut tables = tables
            .reading_traefik(reads_traefik)
            .stopping_within(OUT_LONGEST + IN_FLIGHT_LONGEST);
        let mut certificates = DeclaredCertificates::new(store.clone(), tls, doors);
        match lock.is_some() {
            true => {
                tables = tables.of_what_may_be_old();
                certificates.wait();
            }
            // They are there before anybody is served.
            false => certificates.look(),
        }
        Ok(OwnSwarm {
            shared_ports: beside.entry_points.iter().map(|one| one.port).collect(),
            clusters: watch::Sender::default(),
            tables,
            faults,
            store_health: None,
            lock,
            keeper: None,
            certificates,
            status,
            agent,
            reporter,
            api: Api::new(store.clone(), Arc::new(beside)),
            listener,
            socket: api,
            attached,
            store,
        })
    }

    /// Runs everything until `shutdown`; tasks live on. Answers what unlocks the store, which is let go of.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Option<UnlockKey> {
        let stopping = watch::Sender::new(false);
        let stopped = || {
            let mut stopping = stopping.subscribe();
            // An error means that the sender is gone, which is as much of an end.
            async move { drop(stopping.wait_for(|is_stopping| *is_stopping).await) }
        };
        let own = watch::Sender::new(OwnNode::default());
        let local = watch::Sender::new(None);
        let mut parts = JoinSet::new();
        parts.spawn(
            self.tables
                .run(self.clusters.subscribe(), local.subscribe(), own.subscribe(), stopped()),
        );
        let of_others = self
            .attached
            .as_ref()
            .map_or_else(nobody, |attached| attached.reaches());
        parts.spawn(follow_addresses(self.agent.addresses(), of_others, local, stopped()));
        parts.spawn(self.api.serve(self.listener, stopped()));
        tracing::info!(socket = %self.socket.path().display(), "the Docker API is served");
        tokio::pin!(shutdown);
        let is_open = match &self.lock {
            None => true,
            Some(lock) => {
                recall(self.keeper.as_ref(), &self.status, &self.clusters, &own);
                tokio::select! {
                    () = self.agent.watch_over() => false,
                    () = watch_over(self.attached.as_deref()) => false,
                    () = lock.opened() => true,
                    () = &mut shutdown => false,
                }
            }
        };
        if is_open {
            parts.spawn(self.certificates.follow(stopped()));
            let assignments = watch::Sender::new(Arc::new(assignments(&self.store.snapshot())));
            let native = NativeSource::default();
            parts.spawn(native.run(self.store.clone(), self.clusters.clone(), stopped()));
            parts.spawn(self.agent.run(assignments.subscribe(), stopped()));
            if let Some(attached) = self.attached.clone() {
                let stopped = stopped();
                parts.spawn(async move { attached.run(stopped).await });
            }
            parts.spawn(follow_store(self.store.clone(), own, assignments, stopped()));
            parts.spawn(self.reporter.run(stopped()));
            parts.spawn(control::run(self.store.clone(), self.shared_ports, stopped()));
            if let Some(mut keeper) = self.keeper {
                keeper.tell(self.status.clone());
                let (store, clusters) = (self.store.clone(), self.clusters.subscribe());
                parts.spawn(keeper.run(clusters, move || lock::whose(&*store), stopped()));
            }
            if self.lock.is_some() {
                tracing::info!("the swarm is unlocked");
                self.status.confirmed();
            }
            shutdown.await;
        }
        stopping.send_replace(true);
        while let Some(ended) = parts.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the swarm panicked");
            }
        }
        let is_left = |task: &&Arc<Task>| task.status.state == TaskState::Running;
        let n_left = self.store.snapshot().tasks().filter(is_left).count();
        match n_left {
            0 => {}
            n => tracing::info!(
                tasks = n,
                "tasks go on running, and the next start finds them; to end them all, `docker swarm leave --force` before this"
            ),
        }
        // Of a swarm that is locked nobody knows which run.
        self.socket.close(n_left > 0 || !is_open);
        self.store.snapshot().unlock_key().cloned()
    }
}

/// Opens the store. The instance before may be about to close it.
async fn open_released(
    dir: &Path,
    unlock_key: Option<&UnlockKey>,
    health: &Arc<StoreHealth>,
) -> Result<Embedded, OpenError> {
    let until = Instant::now() + CLOSED_WITHIN;
    loop {
        match Embedded::open_with(dir, unlock_key, health.clone()) {
            Err(OpenError::InUse { .. }) if Instant::now() < until => tokio::time::sleep(CLOSED_LOOK).await,
            opened => return opened,
        }
    }
}

/// Has what was kept served.
fn recall(
    keeper: Option<&ClusterKeeper>,
    status: &SourceStatus,
    clusters: &watch::Sender<Arc<Cluster>>,
    own: &watch::Sender<OwnNode>,
) {
    if let Some((keeper, (info, cluster))) = keeper.and_then(|keeper| Some((keeper, keeper.read()?))) {
        status.recalled(keeper.kept_at().unwrap_or(std::time::UNIX_EPOCH));
        own.send_replace(OwnNode {
            id: info.node.as_str().into(),
        });
        clusters.send_replace(Arc::new(cluster));
    }
    status.stale(lock::WAITS.to_owned());
}

/// The tasks of this node, with what they need.
fn assignments(snapshot: &Snapshot) -> Assignments {
    let own = snapshot.swarm().and_then(|swarm| snapshot.node(swarm.node.as_str()));
    let Some(node) = own else { return Assignments::new() };
    let is_given = |task: &&Arc<Task>| task.status.state >= TaskState::Assigned;
    let tasks = snapshot.tasks_of_node(node.id.as_str()).filter(is_given);
    let assigned = tasks.map(|task| {
        let container = task.spec.container_spec.as_ref();
        let configs = container
            .and_then(|container| container.configs.as_ref())
            .into_iter()
            .flatten();
        let secrets = container
            .and_then(|container| container.secrets.as_ref())
            .into_iter()
            .flatten();
        let config = |id: &str| Some((Id::from(id), snapshot.config(id)?.clone()));
        let secret = |id: &str| Some((Id::from(id), snapshot.secret(id)?.clone()));
        let service = snapshot.service(task.service.as_str());
        let registry_auth = service.and_then(|service| service.registry_auth_of(task.template));
        let assignment = Assignment {
            task: task.clone(),
            service: service.cloned(),
            node: node.clone(),
            configs: configs
                .filter_map(|named| config(named.config_id.as_deref()?))
                .collect(),
            secrets: secrets
                .filter_map(|named| secret(named.secret_id.as_deref()?))
                .collect(),
            registry_auth: registry_auth.map(|auth| auth.0.to_string()),
        };
        (task.id.clone(), Arc::new(assignment))
    });
    assigned.collect()
}

/// Passes on who this node is and what it is to run.
async fn follow_store(
    store: Arc<dyn Store>,
    own: watch::Sender<OwnNode>,
    assigned: watch::Sender<Arc<Assignments>>,
    shutdown: impl Future<Output = ()>,
) {
    let mut changed = store.changed();
    let follow = async {
        loop {
            changed.mark_unchanged();
            let snapshot = store.snapshot();
            let node = OwnNode {
                id: snapshot.swarm().map_or("", |swarm| swarm.node.as_str()).into(),
            };
            own.send_if_modified(|known| {
                let is_news = *known != node;
                *known = node;
                is_news
            });
            assigned.send_replace(Arc::new(assignments(&snapshot)));
            if changed.changed().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown => {}
    }
}

/// Passes on where this node's tasks are reached, and other containers on its networks.
async fn follow_addresses(
    mut tasks: watch::Receiver<Arc<agent::Addresses>>,
    mut others: watch::Receiver<Arc<Reaches>>,
    local: watch::Sender<Option<Arc<LocalTasks>>>,
    shutdown: impl Future<Output = ()>,
) {
    let follow = async {
        loop {
            let now = tasks.borrow_and_update().clone();
            let others_now = others.borrow_and_update().clone();
            let all = now.iter().chain(others_now.iter());
            let all = all.map(|(id, reach)| (Arc::from(id.as_str()), reach.clone()));
            local.send_replace(Some(Arc::new(all.collect())));
            let changed = tokio::select! {
                changed = tasks.changed() => changed,
                Ok(()) = others.changed() => Ok(()),
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

/// Never ends.
async fn watch_over(attached: Option<&AttachedContainers>) {
    match attached {
        Some(attached) => attached.watch_over().await,
        None => std::future::pending().await,
    }
}

/// Where there are no other containers, ever.
fn nobody() -> watch::Receiver<Arc<Reaches>> {
    watch::Sender::default().subscribe()
}

/// The agent's words, on their way to the store.
struct Tells {
    reports: mpsc::UnboundedSender<(Id, TaskStatus)>,
}

impl Reports for Tells {
    fn report(&self, task: &Id, status: TaskStatus) {
        // An error means that this program ends; the next run looks for itself.
        let _ = self.reports.send((task.clone(), status));
    }
}

/// What the API asks of the rest of this node.
struct Beside {
    agent: Arc<Agent>,
    ports: Arc<Ports>,
    entry_points: Vec<EntryPointSpec>,
    faults: Arc<Faults>,
    engine: Option<PathBuf>,
    lock: Option<Arc<OwnLock>>,
    attached: Option<Arc<AttachedContainers>>,
    volumes: Option<Arc<NodeVolumes>>,
    generic: Generic,
    reads_traefik: bool,
}

impl Outside for Beside {
    fn exec<'a>(&'a self, task: &'a Id, spec: ExecSpec) -> Later<'a, Result<Exec, ExecError>> {
        Box::pin(self.agent.exec(task, spec))
    }

    fn logs(&self, task: &Id, query: LogQuery) -> Result<LogStream, String> {
        self.agent.logs(task, query).map_err(|error| error.to_string())
    }

    fn host(&self) -> Host {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let info = rustix::system::sysinfo();
        Host {
            hostname: text(uname.nodename()),
            architecture: text(uname.machine()),
            kernel: text(uname.release()),
            nano_cpus: i64::try_from(cpus).unwrap_or(1).saturating_mul(1_000_000_000),
            memory: i64::try_from(u64::from(info.mem_unit).saturating_mul(info.totalram as u64)).unwrap_or(i64::MAX),
            generic: self.generic.clone(),
            addrs: outgoing_addr().into_iter().collect(),
        }
    }

    fn interface(&self, name: &str) -> Option<Vec<IpAddr>> {
        let asked = RtNetlink::open().and_then(|mut netlink| netlink.addresses_of(name));
        asked.unwrap_or_else(|error| {
            tracing::warn!(%error, "the addresses of interfaces");
            None
        })
    }

    fn new_authority(&self) -> Result<SwarmAuthority, String> {
        let made = Authority::generate().and_then(|pem| {
            let authority = Authority::from_pem(&pem)?;
            let (subject, public_key) = authority.subject_and_public_key()?;
            let certificate = authority.certificate_pem().to_owned();
            Ok(SwarmAuthority {
                key: pem.replace(&certificate, "").into(),
                certificate,
                subject: STANDARD.encode(subject),
                public_key: STANDARD.encode(public_key),
            })
        });
        made.map_err(|error| error.to_string())
    }

    fn certificate_fault(&self, data: &[u8], is_secret: bool) -> Option<String> {
        declared_certificates::held(data, is_secret).err()
    }

    fn port_holder(&self, port: u16) -> Option<String> {
        let is_ours = |state: &PortState| matches!(state, PortState::Listening);
        if self
            .ports
            .snapshot()
            .iter()
            .any(|(listen, state)| listen.port == port && is_ours(state))
        {
            return None;
        }
        match std::net::TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = Holders::default().name(port);
                Some(holder.unwrap_or_else(|| "another program on this host".to_owned()))
            }
            _ => None,
        }
    }

    fn entry_points(&self) -> Vec<EntryPointSpec> {
        self.entry_points.clone()
    }

    fn reads_traefik(&self) -> bool {
        self.reads_traefik
    }

    fn faults(&self) -> BTreeMap<String, Vec<String>> {
        self.faults.snapshot()
    }

    fn ports_not_served(&self) -> BTreeMap<u16, String> {
        let failed = self.ports.failed().into_iter();
        failed.map(|(listen, error)| (listen.port, error)).collect()
    }

    fn engine(&self) -> Option<PathBuf> {
        self.engine.clone()
    }

    fn lock(&self) -> Option<&dyn Lock> {
        self.lock.as_deref().map(|lock| lock as &dyn Lock)
    }

    fn volumes(&self) -> Option<Arc<dyn api::Volumes>> {
        self.volumes.clone().map(|volumes| volumes as Arc<dyn api::Volumes>)
    }

    fn attaching(&self) -> Option<Arc<dyn api::Attaching>> {
        self.attached
            .clone()
            .map(|attached| attached as Arc<dyn api::Attaching>)
    }
}

/// The address that this host would speak from to the world. Nothing is sent.
fn outgoing_addr() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SocketAddr::from(([192, 0, 2, 1], 9))).ok()?;
    let addr = socket.local_addr().ok()?.ip();
    (!addr.is_unspecified()).then_some(addr)
}

/// Takes what the agent saw into the store: many words at a time, the last word on a task counts, and a task only ever goes
/// forward.
struct Reporter {
    store: Arc<dyn Store>,
    reports: mpsc::UnboundedReceiver<(Id, TaskStatus)>,
}

impl Reporter {
    async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let take = async {
            let mut together = Vec::new();
            while self.reports.recv_many(&mut together, REPORTS_TOGETHER).await > 0 {
                let mut by_task: BTreeMap<Id, TaskStatus> = BTreeMap::new();
                for (task, status) in together.drain(..) {
                    let is_newer = by_task.get(&task).is_none_or(|known| known.state <= status.state);
                    if is_newer {
                        by_task.insert(task, status);
                    }
                }
                self.commit(&by_task).await;
            }
        };
        tokio::select! {
            () = take => {}
            () = shutdown => {}
        }
    }

    async fn commit(&self, by_task: &BTreeMap<Id, TaskStatus>) {
        let mut changed = self.store.changed();
        loop {
            changed.mark_unchanged();
            let taken = update(&*self.store, |snapshot| {
                let writes = by_task.iter().filter_map(|(id, status)| {
                    let task = snapshot.task(id.as_str())?;
                    taken(task, status).map(|task| Write::Put(Object::Task(Arc::new(task))))
                });
                Ok::<_, CommitError>((writes.collect(), ()))
            });
            match taken.await {
                Ok(_) | Err(CommitError::Closed) => break,
                // The disk may be full for a while, which the store says itself. What was seen is not forgotten.
                Err(error) => {
                    tracing::debug!(%error, "what tasks do cannot be written");
                    // An error says that it is closed, as the next commit will.
                    drop(tokio::time::timeout(REPORT_AGAIN, changed.changed()).await);
                }
            }
        }
    }
}

/// The task with what was seen of it; `None` where that is nothing new.
fn taken(task: &Task, status: &TaskStatus) -> Option<Task> {
    if status.state < task.status.state || *status == task.status {
        return None;
    }
    let mut status = status.clone();
    let ran = (status.state == TaskState::Running).then_some(status.at);
    status.ran_at = task.status.ran_at.or(status.ran_at).or(ran);
    let meta = crate::model::swarm::Meta {
        updated_at: status.at,
        version: crate::store::THIS_REVISION,
        ..task.meta.clone()
    };
    Some(Task {
        status,
        meta,
        ..task.clone()
    })
}

/// When a task may be stopped: it is out of the table, and what it was asked before is answered.
struct Leaves {
    table: Arc<TableHandle>,
}

impl Barrier for Leaves {
    fn leave<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        Box::pin(self.left(task.as_str()))
    }
}

impl Leaves {
    async fn left(&self, task: &str) {
        let mut revision = self.table.subscribe();
        let mut endpoint = None;
        // It goes with the next revision, or has gone.
        let is_out = async {
            loop {
                revision.mark_unchanged();
                match self.table.load().local_task(task) {
                    Some((_, found)) => endpoint = Some(found.clone()),
                    None => break,
                }
                if revision.changed().await.is_err() {
                    break;
                }
            }
        };
        // A table that does not follow must not keep a task from ending.
        if tokio::time::timeout(OUT_LONGEST, is_out).await.is_err() {
            tracing::warn!(task, "it is still in the routing table, and is stopped all the same");
        }
        // The table may have been quicker than who asks.
        let Some(endpoint) = endpoint.or_else(|| self.table.left_task(task)) else {
            return;
        };
        let is_done = async {
            while endpoint.in_flight() > 0 {
                tokio::time::sleep(IN_FLIGHT_LOOK).await;
            }
        };
        // What takes longer has the stop grace period.
        drop(tokio::time::timeout(IN_FLIGHT_LONGEST, is_done).await);
    }
}

const NOT_TCP: &str = "not served yet, only tcp is";
/// Where Docker Engines mostly listen.
const USUAL_ENGINE: &str = "/var/run/docker.sock";
const REPORTS_TOGETHER: usize = 1024;
const REPORT_AGAIN: Duration = Duration::from_secs(1);
const CLOSED_WITHIN: Duration = Duration::from_secs(10);
const CLOSED_LOOK: Duration = Duration::from_millis(10);
const OUT_LONGEST: Duration = Duration::from_secs(5);
const IN_FLIGHT_LONGEST: Duration = Duration::from_secs(5);
const IN_FLIGHT_LOOK: Duration = Duration::from_millis(5);

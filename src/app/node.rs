//! One node: the data plane, a source, and what watches and answers beside them, started in order and drained together.
//! Not here: signals, logs, arguments (`up`, `demo`).

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::acme;
use super::acme_nodes::AcmeNodes;
use super::config::Config;
use super::doors::Door;
use super::handoff::{self, HandoffError, Inherited, Offer, OwnRelease, Succession};
use super::own::{OwnError, OwnSwarm, Plane};
use super::swarm::SwarmNode;
use super::verify;
use crate::admin::{AdminState, ClosedDoors, Phase, Readiness};
use crate::dns::{DnsConfig, DnsServer, Responder};
use crate::health::Prober;
use crate::link::{IdentityError, identity};
use crate::model::swarm::UnlockKey;
use crate::proxy::{Beside, Grace, PortState, Proxy};
use crate::routing::{Listen, TableHandle};
use crate::source::SourceStatus;
use crate::source::file::FileSource;
use crate::source::names::NamesConfig;
use crate::sys::limits;
use crate::takeover::Takeover;
use crate::tasknet::{Served, TaskNets};
use crate::tls::{Terminators, Trust};

/// A node that is started and serves.
pub struct Node {
    pub table: Arc<TableHandle>,
    config: Config,
    proxy: Proxy,
    source: Option<FileSource>,
    swarm: Option<SwarmNode>,
    /// With whom it tells that it has let go of its store, and with what that is unlocked.
    own: Option<(OwnSwarm, watch::Sender<Option<Option<UnlockKey>>>)>,
    takeover: Option<Arc<Takeover>>,
    tls: Option<Arc<Terminators>>,
    /// Certificates are ordered in a swarm.
    acme_nodes: Option<Arc<AcmeNodes>>,
    trust: Arc<Trust>,
    networks: TaskNets,
    prober: Prober,
    dns: Option<Door<DnsServer>>,
    responder: Responder,
    admin: Option<Door<TcpListener>>,
    shown: Arc<AdminState>,
    readiness: Arc<Readiness>,
    status: Arc<SourceStatus>,
    /// For the instance that comes after this one.
    offer: Offer,
    /// From the instance that was before.
    inherited: Inherited,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    #[error("duplicate a listening socket")]
    Lend(#[source] std::io::Error),
    #[error("start the workers")]
    Workers(#[source] std::io::Error),
    #[error("{0}")]
    Tls(String),
    #[error("the key that certificates are sealed by")]
    Secret(#[source] IdentityError),
    #[error(transparent)]
    Own(#[from] OwnError),
}

impl Node {
    /// Starts a node. When this returns, the first table is applied and its ports are listened on. An instance that has
    /// the data directory has lent its sockets, and is superseded once `run` begins.
    pub async fn start(mut config: Config) -> Result<Node, NodeError> {
        config.proxy.files_max = usize::try_from(limits::raise_open_files()).unwrap_or(usize::MAX);
        let claim = handoff::claim(&config.data_dir, config.proxy.n_workers).await?;
        let mut inherited = claim.inherited;
        let mut named = Vec::new();
        let table = Arc::new(TableHandle::with_entry_points(config.entry_points.clone()));
        // A cluster says otherwise, where there is one.
        table.set_place(fastrand::u32(..));
        let doors: Arc<ClosedDoors> = Arc::default();
        let admin = config
            .admin
            .map(|addr| Door::of_listener("admin.listen", handoff::ADMIN, addr, &mut inherited, doors.clone()));
        let are_vips_off = Arc::default();
        let responder = Responder::new(dns_config(&config, &are_vips_off), table.clone());
        let dns = config
            .dns
            .map(|addr| dns_door(addr, &responder, &mut inherited, doors.clone()));
        lend(
            &mut named,
            handoff::ADMIN,
            admin.iter().filter_map(Door::opened).map(AsFd::as_fd),
        )?;
        lend(
            &mut named,
            handoff::DNS,
            dns.iter().filter_map(Door::opened).flat_map(DnsServer::sockets),
        )?;
        let may_write = watch::Sender::new(!inherited.is_waited_for());
        let status = Arc::new(SourceStatus::default());
        let swarm = match config.swarm.clone() {
            Some(swarm) => {
                let door = swarm
                    .link
                    .map(|addr| Door::of_listener("link.listen", handoff::LINK, addr, &mut inherited, doors.clone()));
                let (table, status, may_write) = (table.clone(), status.clone(), may_write.subscribe());
                Some(SwarmNode::new(swarm, &config.data_dir, table, status, may_write, door).await)
            }
            None => None,
        };
        lend(&mut named, handoff::LINK, swarm.iter().filter_map(SwarmNode::listener))?;
        let takeover = config.swarm.as_ref().and_then(|swarm| swarm.start_takeover());
        let tls = match config.tls.policies.is_empty() {
            true => None,
            false => Some(Arc::new(Terminators::new(config.tls.clone()).map_err(NodeError::Tls)?)),
        };
        let mut acme_nodes = None;
        if let Some(tls) = &tls {
            let is_used = !config.tls.acme.is_empty();
            match swarm.as_ref().filter(|_| is_used) {
                Some(swarm) => {
                    let secret = identity::secret(&config.data_dir, SEALS_CERTIFICATES).map_err(NodeError::Secret)?;
                    tls.acme().open(&config.data_dir, Some(&secret));
                    acme_nodes = Some(AcmeNodes::new(tls, swarm.view.clone()));
                }
                None => tls.acme().open(&config.data_dir, None),
            }
        }
        let trust = Arc::new(Trust::new(config.authorities.clone()));
        let outside = Beside {
            dialer: swarm.as_ref().map(SwarmNode::dialer),
            takeover: takeover.clone(),
            tls: tls.clone(),
            trust: trust.clone(),
            are_vips_off: are_vips_off.clone(),
        };
        let mut proxy = Proxy::start(config.proxy.clone(), table.clone(), outside).map_err(NodeError::Workers)?;
        proxy.offer(inherited.take_ports(&config.proxy.liveness));
        let liveness = config.proxy.liveness.clone();
        let networks = TaskNets::new(table.clone(), proxy.handle(), responder.clone(), liveness);
        let source = config.services.clone().map(|path| {
            let mut source = FileSource::start(
                path,
                &config.data_dir,
                config.vip_network,
                names_config(&config),
                table.clone(),
                status.clone(),
            );
            source.keep_while(may_write.subscribe());
            source
        });
        let own = match config.own.clone() {
            Some(own) => {
                proxy.handle().sweep_outside();
                let plane = Plane {
                    table: table.clone(),
                    status: status.clone(),
                    ports: proxy.ports().clone(),
                    networks: Arc::new(networks.clone()),
                    tls: tls.clone(),
                    doors: doors.clone(),
                };
                let unlock_key = inherited.release().await?;
                Some(OwnSwarm::new(own, &config.data_dir, plane, unlock_key).await?)
            }
            None => None,
        };
        if source.is_none() && swarm.is_none() && own.is_none() {
            status.applied();
        }
        let prober = Prober::new(table.clone(), trust.clone());
        let readiness = Arc::new(Readiness::default());
        let of_swarm = swarm.as_ref().map(|swarm| swarm.faults.clone());
        let of_own = own.as_ref().map(|own| own.faults.clone());
        let store = own.as_ref().and_then(|own| own.store_health.clone());
        let declared = own.as_ref().map(|own| own.store());
        let live = swarm
            .as_ref()
            .map_or_else(Arc::default, |swarm| swarm.view.live.clone());
        let state = Arc::new(AdminState {
            table: table.clone(),
            ports: proxy.ports().clone(),
            workers: proxy.handle(),
            source: status.clone(),
            names: source.as_ref().map(|source| source.names().clone()),
            health: prober.stats().clone(),
            dns: dns.as_ref().map(|_| responder.stats()),
            readiness: readiness.clone(),
            started: Instant::now(),
            n_workers: config.proxy.n_workers,
            faults: of_swarm.or(of_own),
            store,
            declared,
            swarm: swarm.as_ref().map(|swarm| swarm.view.clone()),
            takeover: takeover.clone(),
            networks: Some(networks.clone()),
            doors,
            tls: tls.clone(),
            trust: trust.clone(),
            settings: config.admin_settings.clone(),
            live,
            verify: verify::for_admin(table.clone(), swarm.as_ref().map(|swarm| swarm.view.clone())),
        });
        proxy.settle();
        let released = own.as_ref().map(|_| watch::Sender::new(None));
        let offer = Offer {
            lock: claim.lock,
            door: claim.door,
            instance: claim.instance,
            named,
            proxy: proxy.handle(),
            may_write,
            release: released.as_ref().map(|released| OwnRelease {
                asked: watch::Sender::new(false),
                released: released.subscribe(),
                is_lost: watch::Sender::new(false),
            }),
        };
        Ok(Node {
            table,
            config,
            proxy,
            source,
            swarm,
            own: own.zip(released),
            takeover,
            tls,
            acme_nodes,
            trust,
            networks,
            prober,
            dns,
            responder,
            admin,
            shown: state,
            readiness,
            status,
            offer,
            inherited,
        })
    }

    /// What is wrong with a port that the table names, if anything is.
    pub fn port_error(&self, listen: &Listen) -> Option<String> {
        match self.proxy.ports().get(listen) {
            Some(PortState::Failed { error, .. }) => Some(error),
            Some(PortState::Listening) | None => None,
        }
    }

    /// Serves until `shutdown` or until another instance has taken over, then drains. Errors: the instance before this one
    /// does not hand over after all, and goes on.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Node {
            table,
            config,
            mut proxy,
            source,
            swarm,
            own,
            takeover,
            tls,
            acme_nodes,
            trust,
            networks,
            prober,
            dns,
            responder,
            admin,
            shown,
            readiness,
            status,
            offer,
            inherited,
        } = self;
        let succession = watch::Sender::new(None);
        let handed_over = |name: &'static str| {
            let mut succession = succession.subscribe();
            async move {
                let taken = succession.wait_for(Option::is_some).await;
                let is_taken =
                    taken.is_ok_and(|taken| taken.as_ref().is_some_and(|taken: &Succession| taken.takes(name)));
                if !is_taken {
                    std::future::pending().await
                }
            }
        };
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
        if let Some(takeover) = takeover {
            beside.spawn(takeover.run(stopped()));
        }
        if let Some(acme) = tls.as_ref().map(|tls| tls.acme().clone()) {
            let (table, may_order, stopped) = (table.clone(), offer.may_write.subscribe(), stopped());
            beside.spawn(async move {
                tokio::select! {
                    () = acme::follow(table, acme.clone()) => {}
                    () = acme.run(may_order) => {}
                    () = stopped => {}
                }
            });
        }
        let (following, trust_stopped) = (trust.follow(), stopped());
        beside.spawn(async move {
            tokio::select! {
                () = following => {}
                () = trust_stopped => {}
            }
        });
        if let Some(tls) = tls {
            let stopped = stopped();
            beside.spawn(async move {
                tokio::select! {
                    () = tls.follow() => {}
                    () = stopped => {}
                }
            });
        }
        let served = match &config.swarm {
            Some(swarm) => swarm.services_inside.then_some(Served::Tasks),
            // Of a swarm of our own the agent says what there is.
            None => own.is_none().then_some(Served::Declared),
        };
        beside.spawn(serve_inside(networks.clone(), served, stopped()));
        if dns.is_none() {
            let (responder, stopped) = (responder.clone(), stopped());
            beside.spawn(async move {
                tokio::select! {
                    () = responder.follow() => {}
                    () = stopped => {}
                }
            });
        }
        // Of a swarm of our own the next instance has the store before it is ready.
        let release = offer.release.as_ref();
        let release = release.map(|release| (release.asked.subscribe(), release.is_lost.subscribe()));
        let (is_asked_for, mut is_lost) = release.unzip();
        if let Some(((own, released), mut is_asked_for)) = own.zip(is_asked_for) {
            let (stopped, networks) = (stopped(), networks.clone());
            beside.spawn(async move {
                let asked = async {
                    // An error says that nobody can ask any more.
                    let is_over = is_asked_for.wait_for(|is_asked| *is_asked).await.is_err();
                    if is_over {
                        std::future::pending().await
                    }
                };
                let ends = async {
                    tokio::select! {
                        () = stopped => {}
                        () = asked => {}
                    }
                };
                let unlock_key = own.run(ends).await;
                if *is_asked_for.borrow() {
                    networks.leave_all().await;
                }
                released.send_replace(Some(unlock_key));
            });
        }
        let shutdown = async move {
            let lost = async {
                match &mut is_lost {
                    // An error says that it is not lost any more.
                    Some(is_lost) => is_lost.wait_for(|is_lost| *is_lost).await.is_err(),
                    None => true,
                }
            };
            let lost = async {
                let is_none = lost.await;
                if is_none {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = shutdown => {}
                () = lost => {}
            }
        };
        let drain_link = swarm.as_ref().map(SwarmNode::drain);
        let accepting = watch::Sender::new(false);
        if let Some(swarm) = swarm {
            let run = swarm.run(
                proxy.handle(),
                acme_nodes,
                accepting.subscribe(),
                handed_over(handoff::LINK),
                stopped(),
            );
            beside.spawn(run);
        }
        tokio::pin!(shutdown);
        if inherited.is_waited_for() && served.is_some() {
            // Whoever is inside goes on being answered: by the instance before as long as it lives, and from here on by this one.
            drop(tokio::time::timeout(LOOK_INSIDE_WITHIN, networks.has_looked()).await);
        }
        let is_up = match inherited.is_waited_for() {
            true => tokio::select! {
                biased;
                () = &mut shutdown => false,
                finished = inherited.finish(&mut proxy, &table, &status) => {
                    finished?;
                    offer.may_write.send_replace(true);
                    true
                }
            },
            false => true,
        };
        if !is_up {
            // Nothing has begun: the instance before goes on.
            return Ok(());
        }
        accepting.send_replace(true);
        readiness.set(Phase::Serving);
        beside.spawn(offer.run(succession.clone(), stopped()));
        beside.spawn(prober.run(stopped()));
        beside.spawn(crate::health::say_losses(table.clone(), stopped()));
        if let Some(door) = dns {
            let (handed_over, closing, stopped) = (handed_over(handoff::DNS), handed_over(handoff::DNS), stopped());
            beside.spawn(async move {
                tokio::pin!(stopped);
                let opened = async {
                    tokio::select! {
                        dns = door.wait() => dns,
                        // The address is the next instance's.
                        () = closing => std::future::pending().await,
                    }
                };
                // Tasks ask meanwhile.
                let dns = tokio::select! {
                    () = &mut stopped => return,
                    () = responder.follow() => return,
                    dns = opened => dns,
                };
                if let Err(error) = dns.run(handed_over, stopped).await {
                    tracing::error!("{}", super::chain(&error));
                }
            });
        }
        beside.spawn(crate::admin::follow(shown.clone(), stopped()));
        if let Some(door) = admin {
            let (handed_over, closing, stopped) = (handed_over(handoff::ADMIN), handed_over(handoff::ADMIN), stopped());
            beside.spawn(async move {
                tokio::pin!(stopped);
                let listener = tokio::select! {
                    () = &mut stopped => return,
                    () = closing => return,
                    listener = door.listener() => listener,
                };
                match listener {
                    Ok(listener) => crate::admin::serve(listener, shown, handed_over, stopped).await,
                    Err(error) => tracing::error!(%error, "the admin server's listener cannot be watched"),
                }
            });
        }
        let is_asked = watch::Sender::new(false);
        let asked = async {
            shutdown.await;
            is_asked.send_replace(true);
            // Whoever is asked while it drains goes on draining; being asked again is not for us.
            std::future::pending::<Infallible>().await
        };
        let draining = async {
            let (mut asked, mut succession) = (is_asked.subscribe(), succession.subscribe());
            tokio::select! {
                _ = asked.wait_for(|asked| *asked) => networks.leave_all().await,
                // What is inside is the next instance's; what waits at this one is answered until it ends.
                _ = succession.wait_for(Option::is_some) => {}
            }
            readiness.set(Phase::Draining);
            drain_link.into_iter().for_each(|drain| drain());
        };
        let hurry = async {
            // An error means that the node ends.
            drop(is_asked.subscribe().wait_for(|is_asked| *is_asked).await);
        };
        let grace = Grace {
            asked: config.shutdown_grace,
            handed_over: config.handoff_grace,
        };
        tokio::pin!(asked);
        let n_cut = tokio::select! {
            n_cut = proxy.run(grace, draining, hurry) => n_cut,
            never = &mut asked => match never {},
        };
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
        if succession.borrow().is_some() && !config.superseded_wait.is_zero() {
            // Whoever supervises this process would start it again.
            tracing::info!("nothing is left to do; waiting to be stopped");
            let mut told = is_asked.subscribe();
            tokio::select! {
                _ = told.wait_for(|is_asked| *is_asked) => {}
                () = tokio::time::sleep(config.superseded_wait) => {}
                never = &mut asked => match never {},
            }
        }
        Ok(())
    }
}

/// Has sockets ready to be lent under `name`.
fn lend<'a>(
    named: &mut Vec<(String, OwnedFd)>,
    name: &str,
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
) -> Result<(), NodeError> {
    for socket in sockets {
        let duplicate = socket.try_clone_to_owned().map_err(NodeError::Lend)?;
        named.push((name.to_owned(), duplicate));
    }
    Ok(())
}

fn dns_door(
    addr: SocketAddr,
    responder: &Responder,
    inherited: &mut Inherited,
    doors: Arc<ClosedDoors>,
) -> Door<DnsServer> {
    let lent = inherited.take_dns(addr);
    if lent.is_none() {
        inherited.give_up(handoff::DNS);
    }
    let lent = lent.map(|(at, udp, tcp)| DnsServer::adopt(responder.clone(), at, udp, tcp));
    let responder = responder.clone();
    let open = move || Ok(DnsServer::bind_for(responder.clone(), addr)?);
    Door::new("dns.listen", addr, lent, doors, open)
}

fn dns_config(config: &Config, are_vips_off: &Arc<AtomicBool>) -> DnsConfig {
    let usual = DnsConfig::default();
    DnsConfig {
        listen: config.dns.unwrap_or(usual.listen),
        upstreams: config.dns_upstreams.clone(),
        upstream_timeout: config.dns_upstream_timeout,
        are_vips_off: are_vips_off.clone(),
        ..usual
    }
}

/// Who is asked for the names of endpoints: whom the DNS server would ask.
fn names_config(config: &Config) -> NamesConfig {
    NamesConfig {
        servers: config.dns_upstreams.clone(),
        timeout: config.dns_upstream_timeout,
        ..NamesConfig::default()
    }
}

/// Keeps the insides of namespaces up with the table.
async fn serve_inside(networks: TaskNets, served: Option<Served>, shutdown: impl Future<Output = ()>) {
    let endpoints = async {
        if let Some(served) = served
            && let Err(error) = networks.serve_endpoints(served).await
        {
            tracing::warn!(%error, "endpoints in namespaces do not reach services from inside");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = networks.run() => {}
        () = endpoints => {}
        () = shutdown => {}
    }
}

/// What the secret is for that follows from the link's key.
const SEALS_CERTIFICATES: &str = "anynode acme at rest 1";

/// An instance that takes over waits so long for what it serves inside namespaces.
const LOOK_INSIDE_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

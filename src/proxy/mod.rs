//! The data plane: listeners, connections, bytes. It knows the routing table and nothing of who made it.

mod announced;
mod auth;
mod balancer;
mod config;
mod core;
mod crowd;
mod entrance;
mod files;
mod h1;
mod h2;
mod heavy;
mod hello;
pub mod http;
mod inside;
mod last_hop;
mod lending;
mod listener;
mod manager;
mod outside;
mod park;
mod patience;
mod ports;
mod relay;
mod rounds;
mod sealed;
mod secured;
mod session;
mod side;
mod speaks;
mod streams;
mod tcp;
mod upstream;
mod vips;
mod wire;
mod within;
mod worker;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use config::ProxyConfig;
pub use last_hop::HopRequest;
pub use lending::LentListener;
pub use manager::Adopted;
pub use ports::{PortState, Ports};
pub use secured::Agreed;
pub use vips::{VipMode, VipState};
pub use wire::{Dialer, Dialing, Leaving, PendingTunnel, Refused, Tunnel, TunnelFor};
pub use within::{Caller, Destination, Serving};

use self::core::OpenConnections;
use self::lending::Lending;
use self::manager::Manager;
use self::outside::Outside;
use self::worker::{Command, Workers};
use crate::routing::{EndpointId, Listen, Service, ServiceStats, TableHandle};
use crate::takeover::Takeover;
use crate::tls::{Terminators, Trust};

/// What all workers share.
struct Shared {
    config: ProxyConfig,
    table: Arc<TableHandle>,
    ports: Arc<Ports>,
    open: Arc<OpenConnections>,
    dialer: Option<Arc<dyn Dialer>>,
    takeover: Option<Arc<Takeover>>,
    tls: Option<Arc<Terminators>>,
    trust: Arc<Trust>,
    lending: Lending,
    outside: Arc<Outside>,
    passwords: auth::Checker,
    /// What goes from inside namespaces to no service of ours is counted by it.
    outgoing: Arc<Service>,
}

/// Work for a worker: made there, and run there.
pub type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What others may ask of the workers of a running data plane.
#[derive(Clone)]
pub struct ProxyHandle {
    shared: Arc<Shared>,
    commands: Arc<[tokio::sync::mpsc::UnboundedSender<Command>]>,
    next: Arc<AtomicUsize>,
}

impl ProxyHandle {
    /// Gives work to the workers in turn. After they have ended, nothing comes of it.
    pub fn spawn(&self, job: Job) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.commands.len().max(1);
        if let Some(worker) = self.commands.get(next) {
            // An error means that the worker has ended.
            let _ = worker.send(Command::Run(job));
        }
    }

    /// The workers, by number, that do not come to a piece of work within `patience`. One that has ended is none of them.
    pub async fn stuck(&self, patience: Duration) -> Vec<usize> {
        let asked: Vec<_> = self
            .commands
            .iter()
            .map(|worker| {
                let (answer, answered) = tokio::sync::oneshot::channel::<()>();
                let job: Job = Box::new(move || {
                    // An error means that it took too long.
                    let _ = answer.send(());
                    Box::pin(std::future::ready(()))
                });
                // An error drops the answer's sender, which is an answer.
                let _ = worker.send(Command::Run(job));
                answered
            })
            .collect();
        let until = tokio::time::Instant::now() + patience;
        let mut stuck = Vec::new();
        for (number, answered) in asked.into_iter().enumerate() {
            if tokio::time::timeout_at(until, answered).await.is_err() {
                stuck.push(number);
            }
        }
        stuck
    }

    /// Serves the connections that a listener inside a network namespace takes, until what this returns is dropped; the
    /// listener must not wait in `accept`. One worker has them all.
    pub fn serve_within(&self, listener: std::net::TcpListener, caller: Arc<dyn Caller>) -> Serving {
        within::serve(self, listener, caller)
    }

    /// Clears away what a killed run has left of the way from inside namespaces to this machine's own addresses.
    pub fn sweep_outside(&self) {
        self.spawn(Box::new(|| Box::pin(outside::sweep())));
    }

    /// The nodes of these endpoints do not answer any more: HTTP requests that wait for them go elsewhere, if they may be sent
    /// twice, or end. Connections in tcp mode go on, since a node that comes back has them still.
    pub fn endpoints_lost(&self, endpoints: &[EndpointId]) {
        if endpoints.is_empty() {
            return;
        }
        let endpoints: Arc<[EndpointId]> = endpoints.into();
        for worker in &*self.commands {
            // An error means that the worker has ended.
            let _ = worker.send(Command::EndpointsLost(endpoints.clone()));
        }
    }

    /// Connections from inside namespaces to no service of ours, since this program began.
    pub fn outgoing(&self) -> &ServiceStats {
        self.shared.outgoing.stats()
    }

    /// Connects a stream from another node to a task of this one, and relays until it is over. To be run on a worker.
    pub fn serve_last_hop(
        &self,
        request: HopRequest,
        pending: Box<dyn PendingTunnel>,
    ) -> impl Future<Output = ()> + Send + use<> {
        last_hop::serve(self.shared.clone(), request, pending)
    }
}

/// What stands beside a data plane, where it does.
#[derive(Default, Clone)]
pub struct Beside {
    /// Reaches tasks of other nodes.
    pub dialer: Option<Arc<dyn Dialer>>,
    /// Takes connections to published ports ahead of Docker.
    pub takeover: Option<Arc<Takeover>>,
    /// Ends TLS at entry points.
    pub tls: Option<Arc<Terminators>>,
    /// Says whom endpoints are believed to be that speak TLS.
    pub trust: Arc<Trust>,
    /// Is set when VIPs turn out to lead nowhere on this node.
    pub are_vips_off: Arc<AtomicBool>,
}

/// How long connections that are open may go on once a node ends.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// Where it was asked to end.
    pub asked: Duration,
    /// Where another instance has taken over.
    pub handed_over: Duration,
}

/// The data plane of one node: its worker threads, and what keeps them with the table.
pub struct Proxy {
    manager: Manager,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts the workers. Errors: a thread or its runtime cannot be made, or the system has no random numbers.
    pub fn start(config: ProxyConfig, table: Arc<TableHandle>, beside: Beside) -> std::io::Result<Proxy> {
        let open: Arc<OpenConnections> = Arc::default();
        let shared = Arc::new(Shared {
            config,
            table,
            ports: Arc::new(Ports::new(beside.are_vips_off)),
            outside: Arc::new(Outside::new(open.clone())),
            open,
            passwords: auth::Checker::new()?,
            dialer: beside.dialer,
            takeover: beside.takeover,
            tls: beside.tls,
            trust: beside.trust,
            lending: Lending::default(),
            outgoing: Arc::new(within::outgoing()),
        });
        let workers = Workers::start(&shared)?;
        let manager = Manager::new(shared.clone(), workers);
        Ok(Proxy { manager, shared })
    }

    pub fn ports(&self) -> &Arc<Ports> {
        &self.shared.ports
    }

    pub fn handle(&self) -> ProxyHandle {
        ProxyHandle {
            shared: self.shared.clone(),
            commands: self.manager.workers().commands().into(),
            next: Arc::default(),
        }
    }

    /// Client connections now open.
    pub fn n_connections(&self) -> usize {
        self.shared.open.count()
    }

    /// Brings listeners to the current table at once, as `run` does whenever the table changes.
    pub fn settle(&mut self) {
        self.manager.step(Instant::now());
    }

    /// Takes listening sockets of an instance before this one, for the ports that the table names or comes to name until
    /// `end_adopting`. Nothing is accepted on them before `accept_adopted`.
    pub fn offer(&mut self, sockets: Vec<(Listen, std::net::TcpListener)>) {
        self.manager.offer(sockets);
    }

    /// Gives up what was offered and is not in the table.
    pub fn end_adopting(&mut self) -> Adopted {
        self.manager.end_adopting()
    }

    /// Begins to accept on what was adopted.
    pub fn accept_adopted(&mut self) {
        self.manager.accept_adopted();
    }

    /// Follows the table until `shutdown`, then drains: nothing more is accepted, idle connections end, the others have
    /// `grace` to end by themselves, and what is left is reset. Ends when the workers have.
    ///
    /// After `ProxyHandle::hand_over` there is somebody else to serve, and nobody waits for this program to end: the others
    /// have `Grace::handed_over`, unless `hurry` ends. Idle HTTP connections wait for one more request first, for most of
    /// `Grace::asked`: their clients can come back at once, so that there is no need to end one while a request is on its way.
    ///
    /// Returns the number of connections that were reset.
    pub async fn run(
        mut self,
        grace: Grace,
        shutdown: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> usize {
        let mut revision = self.shared.table.subscribe();
        let mut rules = self.shared.takeover.as_ref().map(|takeover| takeover.changes());
        let room = crowd::make_room(self.shared.open.clone(), self.manager.workers().commands());
        tokio::pin!(shutdown, room);
        loop {
            revision.mark_unchanged();
            let wake_at = self.manager.step(Instant::now());
            let wake = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut shutdown => break,
                _ = revision.changed() => {}
                () = wake => {}
                never = &mut room => match never {},
                () = self.shared.lending.returned() => {}
                () = changed(&mut rules) => self.manager.recheck_takeover(),
            }
        }
        let (began_at, asked) = (Instant::now(), grace.asked);
        let is_handed_over = self.shared.lending.is_over();
        let drain = async {
            if is_handed_over {
                self.drained_until(began_at + asked - asked / 10).await;
            }
            self.manager.workers().tell_all(|| Command::Drain);
            let left = match is_handed_over {
                true => grace.handed_over.max(asked),
                false => asked,
            };
            self.drained_until(began_at + left).await;
        };
        tokio::select! {
            () = drain => {}
            () = hurry, if is_handed_over => {
                self.manager.workers().tell_all(|| Command::Drain);
                self.drained_until(Instant::now() + asked).await;
            }
        }
        let n_left = self.n_connections();
        let workers = self.manager.into_workers();
        // Joining blocks, but nothing else of this runtime matters any more, and workers end within a turn.
        workers.stop();
        self.shared.outside.end();
        n_left
    }

    async fn drained_until(&self, at: Instant) {
        let began_at = Instant::now();
        let drained = async {
            while self.n_connections() > 0 {
                // It may last an hour: the longer, the seldomer.
                let pause = (began_at.elapsed() / 20).clamp(Duration::from_millis(5), Duration::from_millis(500));
                tokio::time::sleep(pause).await;
            }
        };
        // An error means that some are left.
        let _ = tokio::time::timeout_at(at.into(), drained).await;
    }
}

/// Waits until Docker's rules changed; for ever where nobody watches them.
async fn changed(rules: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    if let Some(rules) = rules
        && rules.changed().await.is_ok()
    {
        return;
    }
    *rules = None;
    std::future::pending().await
}

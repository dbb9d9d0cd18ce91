//! The threads that serve connections: each has a runtime, listeners and connections of its own, and takes commands from
//! the rest of the program. A connection never changes its thread.

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::core;
use super::crowd::{Census, Party};
use super::files;
use super::h1;
use super::h2;
use super::inside;
use super::listener;
use super::park;
use super::secured;
use super::{Job, Shared};
use crate::routing::{CloseReason, EndpointId, Listen};
use crate::sys::splice::PipePool;

/// What a worker may be told.
pub(super) enum Command {
    /// Accept on this socket; several may be for the same port.
    Listen(Listen, TcpListener),
    Unlisten(Listen),
    /// Say what is listened on.
    Lend(mpsc::UnboundedSender<Lent>),
    /// Another process accepts from now on, except on these ports: accept no more, and end HTTP connections with their
    /// next response.
    HandOver(Arc<HashSet<Listen>>),
    /// The endpoint left the table: forget idle connections to it.
    EndpointGone(EndpointId),
    /// They do not answer any more: forget idle connections to them, and tell those that wait for them.
    EndpointsLost(Arc<[EndpointId]>),
    /// Its stop grace period is over: end the connections that hold it.
    EndpointOver(EndpointId),
    /// Say how many connections each party has, with this number of the worker.
    Count(usize, mpsc::UnboundedSender<(usize, Census)>),
    /// End so many connections of a party.
    GiveUp(Party, usize),
    /// Work from elsewhere.
    Run(Job),
    /// Accept no more, and end what is idle.
    Drain,
    /// End everything that is left, then the thread.
    Stop,
}

/// A listening socket of a worker, which goes on accepting.
pub(super) type Lent = (Listen, Arc<tokio::net::TcpListener>);

/// A socket that is accepted on.
struct Listening {
    socket: Arc<tokio::net::TcpListener>,
    stop: oneshot::Sender<()>,
}

/// The workers, as the rest of the program sees them.
pub(super) struct Workers {
    commands: Vec<mpsc::UnboundedSender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Errors: a thread or its runtime cannot be made.
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Workers> {
        let mut workers = Workers {
            commands: Vec::new(),
            threads: Vec::new(),
        };
        for i in 0..shared.config.n_workers.max(1) {
            let (sender, receiver) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let shared = shared.clone();
            let run = move || {
                let pipes = PipePool::new(files::n_pipes(&shared.config), shared.config.splice_pipe_bytes);
                files::set_up(&shared.config);
                core::set_up(
                    pipes,
                    shared.open.clone(),
                    shared.config.liveness.clone(),
                    shared.dialer.clone(),
                    shared.trust.clone(),
                );
                runtime.block_on(work(shared, receiver));
            };
            workers
                .threads
                .push(std::thread::Builder::new().name(format!("worker-{i}")).spawn(run)?);
            workers.commands.push(sender);
        }
        Ok(workers)
    }

    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    pub(super) fn commands(&self) -> Vec<mpsc::UnboundedSender<Command>> {
        self.commands.clone()
    }

    /// Tells one worker.
    pub(super) fn tell(&self, worker: usize, command: Command) {
        // An error means that the worker has ended, with all that it had.
        let _ = self.commands[worker].send(command);
    }

    /// Tells every worker.
    pub(super) fn tell_all(&self, command: impl Fn() -> Command) {
        (0..self.len()).for_each(|worker| self.tell(worker, command()));
    }

    /// Stops the workers and waits for their threads.
    pub(super) fn stop(self) {
        self.tell_all(|| Command::Stop);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

async fn work(shared: Arc<Shared>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut listeners: HashMap<Listen, Vec<Listening>> = HashMap::new();
    park::set_up(shared.config.park_after);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            _ = ticks.tick() => {
                core::tick();
                inside::tick();
                h1::pool::expire(Instant::now(), shared.config.http_pool_idle);
                h2::pool::expire(Instant::now(), shared.config.http_pool_idle);
                continue;
            }
        };
        let Some(command) = command else { break };
        match command {
            Command::Listen(listen, socket) => match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    let (stop, stopped) = oneshot::channel();
                    tokio::spawn(listener::serve_port(socket.clone(), listen, shared.clone(), stopped));
                    listeners.entry(listen).or_default().push(Listening { socket, stop });
                }
                Err(error) => tracing::error!(%listen, %error, "listener cannot be watched"),
            },
            // Dropping the senders stops whoever accepts there.
            Command::Unlisten(listen) => drop(listeners.remove(&listen)),
            Command::Lend(to) => {
                for (listen, listening) in &listeners {
                    for Listening { socket, .. } in listening {
                        // An error means that nobody asks any more.
                        let _ = to.send((*listen, socket.clone()));
                    }
                }
            }
            Command::HandOver(left) => {
                for (listen, listening) in listeners.drain() {
                    for Listening { stop, .. } in listening.into_iter().filter(|_| !left.contains(&listen)) {
                        // An error means that it does not accept anyway.
                        let _ = stop.send(());
                    }
                }
                core::drain_gently();
            }
            Command::EndpointGone(endpoint) => {
                h1::pool::forget(endpoint);
                h2::pool::forget(endpoint);
                secured::forget(endpoint);
                inside::forget(endpoint);
            }
            Command::EndpointsLost(endpoints) => {
                endpoints.iter().copied().for_each(h1::pool::forget);
                endpoints.iter().copied().for_each(h2::pool::forget);
                core::lose(&endpoints);
            }
            Command::EndpointOver(endpoint) => core::end_endpoint(endpoint, CloseReason::DrainForced),
            Command::Count(i, to) => {
                // An error means that nobody asks any more.
                let _ = to.send((i, core::census()));
            }
            Command::GiveUp(party, n) => core::give_up(party, n),
            Command::Run(job) => drop(tokio::spawn(job())),
            Command::Drain => {
                listeners.clear();
                core::drain();
            }
            Command::Stop => break,
        }
    }
    core::end_all(CloseReason::ProxyShutdown);
    h1::pool::clear();
    h2::pool::clear();
    // Each connection sees that it was ended at its next turn, and counts itself.
    while core::n_connections() > 0 {
        tokio::task::yield_now().await;
    }
}

//! The runs of the program on one node, which follow each other as it is updated: how one is reached, how the next one is
//! found once one says that it ends, and what becomes of the earlier ones. Not here: what is said to the one that counts (`talk`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use super::{Kept, NEXT_LONGEST, PING_EVERY, Target, UNHEARD_MAX, Unheard};
use crate::link::LinkState;
use crate::link::identity::{Identity, Role, peer_of};
use crate::link::wire::{ANSWER_BYTES_MAX, Answer, Ask, Budget, CLUSTER_BYTES_MAX, Messages, NodeReport};

/// A connection, and what its certificate says that the peer is.
pub(super) struct Begun {
    pub(super) role: Role,
    pub(super) messages: Conversation,
}

pub(super) type Conversation = Messages<TlsStream<TcpStream>>;

pub(super) async fn connect(state: &LinkState, target: &Target) -> io::Result<Begun> {
    let config = state.identity().and_then(|identity| identity.client_control());
    let config = config.ok_or_else(|| io::Error::other("this node has no certificate yet"))?;
    let connecting = async {
        let stream = TcpStream::connect(target.addr).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config)
            .connect(Identity::server_name(&target.node)?, stream)
            .await
    };
    let stream = match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
        Ok(stream) => TlsStream::Client(stream?),
        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no connection in time")),
    };
    let peer = peer_of(stream.get_ref().1.peer_certificates()).map_err(io::Error::other)?;
    let most = match peer.role {
        Role::Manager => CLUSTER_BYTES_MAX,
        Role::Worker => ANSWER_BYTES_MAX,
    };
    Ok(Begun {
        role: peer.role,
        messages: Messages::new(stream, most),
    })
}

/// A run of the program that is about to end, or has ended after it said so.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) instance: u64,
    /// It gave the cluster until then.
    pub(super) is_source: bool,
}

impl Ends {
    /// Of the run that has given this report.
    pub(super) fn of(report: &NodeReport) -> Ends {
        Ends {
            instance: report.instance,
            is_source: report.is_source,
        }
    }
}

/// A connection to whoever has taken the place of a run of the program that ends, once there is one. It is looked for less and less
/// often: one that ends for good has nobody after it.
pub(super) async fn successor(state: Arc<LinkState>, target: Target, ends: Ends, mut pause: Duration) -> Begun {
    let until = Instant::now() + SOURCE_PATIENCE;
    loop {
        // All peers are told at the same moment.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        // The one that ends still gives it.
        let needs_source = ends.is_source && Instant::now() < until;
        match look(&state, &target, ends.instance, needs_source).await {
            Ok(begun) => return begun,
            Err(error) => tracing::debug!(node = %target.node, %error, "its next run is not reached"),
        }
        pause = (pause * 3).min(NEXT_LONGEST);
    }
}

/// The same after one that has ended: at once, or not at all.
pub(super) async fn successor_now(state: &LinkState, target: &Target, ended: Ends) -> io::Result<Begun> {
    // Until then its tasks get connections in vain, where there is none.
    tokio::time::timeout(AT_ONCE, look(state, target, ended.instance, false)).await?
}

/// Errors: nobody answers, or not as the next run.
async fn look(state: &LinkState, target: &Target, earlier: u64, needs_source: bool) -> io::Result<Begun> {
    let mut begun = connect(state, target).await?;
    match tokio::time::timeout(CONNECT_PATIENCE, who(state, &mut begun)).await?? {
        report if report.instance == earlier => Err(io::Error::other("it is the same run")),
        report if report.is_draining => Err(io::Error::other("it ends too")),
        report if needs_source && !report.is_source => Err(io::Error::other("it does not give the cluster yet")),
        _ => Ok(begun),
    }
}

/// Asks how the other end is.
async fn who(state: &LinkState, begun: &mut Begun) -> io::Result<NodeReport> {
    let report = state.report();
    begun.messages.send(&Ask::Ping { n: 0, report }).await?;
    for _ in 0..MESSAGES_BEFORE_PONG {
        if let Answer::Pong { report, .. } = begun.messages.next().await? {
            return Ok(report);
        }
    }
    Err(io::Error::other("it says everything but how it is"))
}

/// Runs that were left for the next one. What is open to them stays, so each is asked how it is until its connection ends: while
/// one of them answers, the node is not silent.
#[derive(Default)]
pub(super) struct Earlier {
    runs: Vec<Left>,
}

struct Left {
    task: Kept,
    /// In how many turns nothing came of it.
    n_unheard: Arc<AtomicU32>,
}

impl Left {
    fn has_ended(&self) -> bool {
        self.task.0.is_finished()
    }
}

impl Earlier {
    pub(super) fn add(&mut self, state: &Arc<LinkState>, messages: Conversation) {
        self.runs.retain(|run| !run.has_ended());
        if self.runs.len() >= EARLIER_MAX {
            self.runs.remove(0);
        }
        let (state, n_unheard) = (state.clone(), Arc::new(AtomicU32::new(0)));
        let counted = n_unheard.clone();
        let run = async move {
            if let Err(error) = stay_with(&state, messages, &counted).await {
                tracing::debug!(%error, "an earlier run has ended");
            }
        };
        let task = Kept(tokio::spawn(run));
        self.runs.push(Left { task, n_unheard });
    }

    /// Whether any of them does. One that has been silent for almost as long as the next run does not: they are on one machine, and
    /// neither is asked at the other's moments.
    pub(super) fn answers(&self) -> bool {
        let answers = |run: &Left| !run.has_ended() && run.n_unheard.load(Relaxed) + 1 < UNHEARD_MAX;
        self.runs.iter().any(answers)
    }
}

/// Asks a run how it is, and tells it how this node is, until its connection ends, as an error. One that is silent may answer again.
async fn stay_with(state: &LinkState, mut messages: Conversation, n_unheard: &AtomicU32) -> io::Result<()> {
    let mut ticks = tokio::time::interval(PING_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut draining = state.draining.subscribe();
    let (mut budget, mut unheard, mut n) = (Budget::default(), Unheard::default(), 0);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let n_turns = unheard.count(messages.heard_at());
                n_unheard.store(n_turns, Relaxed);
                if n_turns >= UNHEARD_MAX {
                    // It has enough to answer.
                    continue;
                }
            }
            // Told at once, and not with the next ping.
            Ok(()) = draining.changed() => {}
            // What it says of the cluster counts no more.
            said = messages.next::<Answer>() => {
                said?;
                n_unheard.store(0, Relaxed);
                budget.spend(1)?;
                continue;
            }
        }
        n += 1;
        messages
            .send(&Ask::Ping {
                n,
                report: state.report(),
            })
            .await?;
    }
}

const CONNECT_PATIENCE: Duration = Duration::from_millis(1000);
/// For the look for the next run of one that has ended.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How long a next run has until it gives the cluster as the one before does.
const SOURCE_PATIENCE: Duration = Duration::from_secs(5);
/// From one that was asked how it is.
const MESSAGES_BEFORE_PONG: usize = 16;
/// Of one node. One that is updated again and again while connections last has more: of the oldest nothing is asked then.
const EARLIER_MAX: usize = 4;

//! What is said to the run of the program that counts on one node, over one connection until it ends.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::runs::{Begun, Conversation, Ends, successor};
use super::{Call, PING_EVERY, Shared, Target, UNHEARD_MAX, Unheard};
use crate::link::Later;
use crate::link::identity::Role;
use crate::link::wire::{Answer, Ask, Budget, to_hex};
use crate::model::Cluster;

/// How a conversation ends.
pub(super) enum End {
    Failed(io::Error),
    /// The peer's certificate may have changed: nothing is wrong with it.
    Anew,
    /// The peer's run of the program ends: the connection to its next one, and the one to itself.
    Next {
        begun: Box<Begun>,
        left: Box<Conversation>,
    },
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Failed(error)
    }
}

/// Speaks over one connection until it ends.
pub(super) async fn converse(
    shared: &Shared,
    target: &Target,
    (begun, pause): (Begun, Duration),
    called: &mut mpsc::Receiver<Call>,
) -> End {
    let mut talk = Talk {
        shared,
        target,
        role: begun.role,
        since: Instant::now(),
        budget: Budget::default(),
        messages: begun.messages,
        pings: HashMap::new(),
        calls: HashMap::new(),
        subscribed: None,
        renewal_asked: None,
        ends: None,
        pause,
    };
    match talk.run(called).await {
        Ok(begun) => End::Next {
            begun: Box::new(begun),
            left: Box::new(talk.messages),
        },
        Err(end) => end,
    }
}

struct Talk<'a> {
    shared: &'a Shared,
    target: &'a Target,
    /// What its certificate says that it is.
    role: Role,
    since: Instant,
    budget: Budget,
    messages: Conversation,
    /// When each ping was sent that was not answered yet.
    pings: HashMap<u64, Instant>,
    calls: HashMap<u64, oneshot::Sender<Result<serde_json::Value, String>>>,
    /// The cluster as this manager sent it, once we asked.
    subscribed: Option<Arc<Cluster>>,
    renewal_asked: Option<Instant>,
    /// The peer's run of the program, once it has said that it is about to end.
    ends: Option<Ends>,
    /// Before that run's successor is looked for.
    pause: Duration,
}

impl Talk<'_> {
    /// The connection to its next run, once there is one.
    async fn run(&mut self, called: &mut mpsc::Receiver<Call>) -> Result<Begun, End> {
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut n = 0;
        let mut unheard = Unheard::default();
        let mut draining = self.shared.state.draining.subscribe();
        let mut next: Option<Later<Begun>> = None;
        loop {
            if let Some(ends) = self.ends
                && next.is_none()
            {
                let (state, target) = (self.shared.state.clone(), self.target.clone());
                next = Some(Box::pin(successor(state, target, ends, self.pause)));
            }
            let next = async {
                match &mut next {
                    Some(next) => next.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What is open to the run that ends stays: each tunnel is a connection of its own.
                begun = next => return Ok(begun),
                _ = ticks.tick() => {
                    if unheard.count(self.messages.heard_at()) >= UNHEARD_MAX {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer").into());
                    }
                    n += 1;
                    self.ping(n).await?;
                    self.subscribe_if_due().await?;
                    self.renew_if_due().await?;
                }
                // Told at once, and not with the next ping.
                Ok(()) = draining.changed() => {
                    n += 1;
                    self.ping(n).await?;
                }
                Some(call) = called.recv() => {
                    let id = self.shared.next_call.fetch_add(1, Relaxed);
                    self.calls.retain(|_, answer| !answer.is_closed());
                    self.calls.insert(id, call.answer);
                    self.messages.send(&Ask::Call { id, method: call.method, body: call.body }).await?;
                }
                answer = self.messages.next::<Answer>() => {
                    self.take(answer?).await?;
                }
            }
        }
    }

    async fn ping(&mut self, n: u64) -> io::Result<()> {
        if self.pings.len() >= PINGS_MAX {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it answers no pings"));
        }
        self.pings.insert(n, Instant::now());
        self.messages
            .send(&Ask::Ping {
                n,
                report: self.shared.state.report(),
            })
            .await
    }

    async fn subscribe_if_due(&mut self) -> Result<(), End> {
        if !self.shared.is_follower() {
            self.subscribed = None;
            return Ok(());
        }
        // Whoever says that it gives the cluster is asked for it; whoever is thought to is asked too, before it has said so.
        let says_so = {
            let table = self.shared.table();
            let report = table.get(&self.target.node).and_then(|peer| peer.report.as_ref());
            report.map_or(self.target.is_manager, |report| report.is_source)
        };
        if !says_so || self.role != Role::Manager {
            // What an earlier run of it said counts no more. Once it gives the cluster, it is asked anew.
            self.shared.follow().from.remove(&self.target.node);
            self.subscribed = None;
        }
        if !says_so || self.subscribed.is_some() {
            return Ok(());
        }
        // Whatever it says: only a manager's word on the cluster counts, and its certificate tells. One that became a
        // manager since we connected shows its new certificate when we connect anew.
        if self.role != Role::Manager {
            return match self.since.elapsed() >= ROLE_LOOK {
                true => Err(End::Anew),
                false => Ok(()),
            };
        }
        let has = self.shared.publish.borrow().clone();
        let (revision, digest) = (has.revision(), has.digest());
        self.subscribed = Some(has.clone());
        // Whatever it sends next is a step from this.
        self.shared.follow().from.insert(self.target.node.clone(), has);
        Ok(self.messages.send(&Ask::Subscribe { revision, digest }).await?)
    }

    async fn renew_if_due(&mut self) -> io::Result<()> {
        let Some(identity) = self.shared.state.identity() else {
            return Ok(());
        };
        // Managers write their own.
        let is_due = identity.renew_at().is_some_and(|at| at <= std::time::SystemTime::now());
        let is_asked = self.renewal_asked.is_some_and(|at| at.elapsed() < RENEW_AGAIN);
        if !is_due || is_asked || self.shared.state.authority().is_some() || !self.target.is_manager {
            return Ok(());
        }
        self.renewal_asked = Some(Instant::now());
        self.messages
            .send(&Ask::Renew {
                public_key: to_hex(&identity.public_key()),
            })
            .await
    }

    async fn take(&mut self, answer: Answer) -> io::Result<()> {
        // Changes are as many as we take.
        if !matches!(answer, Answer::Change { .. }) {
            self.budget.spend(1)?;
        }
        match answer {
            Answer::Pong { n, report } => {
                let round_trip = self.pings.remove(&n).map(|sent| sent.elapsed());
                self.pings.retain(|old, _| *old > n);
                if report.is_draining {
                    self.ends = Some(Ends::of(&report));
                }
                self.shared.answered(self.target, report, round_trip);
            }
            Answer::Change { change } => {
                let Some(has) = &self.subscribed else { return Ok(()) };
                self.shared.state.stats.changes.fetch_add(1, Relaxed);
                let is_whole = change.is_whole;
                match has.apply(change) {
                    Ok(cluster) => {
                        let cluster = Arc::new(cluster);
                        self.subscribed = Some(cluster.clone());
                        let taken = Ask::Taken {
                            revision: cluster.revision(),
                            digest: cluster.digest(),
                        };
                        self.shared.received(&self.target.node, cluster);
                        self.messages.send(&taken).await?;
                    }
                    Err(mismatch) => {
                        tracing::warn!(node = %self.target.node, %mismatch, "asking for the whole cluster");
                        self.shared.state.stats.resyncs.fetch_add(1, Relaxed);
                        if is_whole {
                            // It would say the same again: later, and not at once.
                            return Err(io::Error::new(io::ErrorKind::InvalidData, mismatch));
                        }
                        let has = Arc::new(Cluster::default());
                        let (revision, digest) = (has.revision(), has.digest());
                        self.subscribed = Some(has);
                        self.messages.send(&Ask::Subscribe { revision, digest }).await?;
                    }
                }
            }
            Answer::Renewed {
                certificate_pem,
                authority_pem,
            } => {
                // Only what was asked for: it may be an older one that somebody kept.
                let is_asked = self.renewal_asked.take().is_some();
                let Some(identity) = self.shared.state.identity().filter(|_| is_asked) else {
                    return Ok(());
                };
                if identity.authority_pem().is_some_and(|known| known != authority_pem) {
                    tracing::warn!(node = %self.target.node, "a certificate of another authority is not taken");
                    return Ok(());
                }
                match identity.take_and_keep(&certificate_pem, &authority_pem) {
                    Ok(()) => tracing::info!(node = %self.target.node, "certificate renewed"),
                    Err(error) => tracing::warn!(node = %self.target.node, %error, "certificate not renewed"),
                }
            }
            Answer::Result { id, ok, error } => {
                if let Some(answer) = self.calls.remove(&id) {
                    let result = match (ok, error) {
                        (_, Some(error)) => Err(error),
                        (ok, None) => Ok(ok.unwrap_or_default()),
                    };
                    // An error means that nobody waits any more.
                    let _ = answer.send(result);
                }
            }
            Answer::Refused { what, reason } => {
                if what == "subscribe" {
                    self.subscribed = None;
                    self.shared.follow().from.remove(&self.target.node);
                }
                tracing::debug!(node = %self.target.node, what, reason, "refused");
            }
            Answer::Unknown => {}
        }
        Ok(())
    }
}

const RENEW_AGAIN: Duration = Duration::from_secs(2);
/// Not answered, while other things are said.
const PINGS_MAX: usize = 64;
/// How often a node that says that it gives the cluster is looked at for a manager's certificate.
const ROLE_LOOK: Duration = Duration::from_secs(2);

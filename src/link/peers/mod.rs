//! The connecting side of control connections: one to every other node, kept up, so that each node knows how every other
//! one is. Over those to managers comes the cluster, for a node that cannot read it itself: from all of them at once, so
//! that the loss of one is not noticed; the newest counts. A node whose run of the program ends is gone over to its next run
//! as soon as there is one, and is not lost in between.

mod keep;
mod runs;
mod talk;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use self::keep::keep;
use self::runs::Ends;
use super::LinkState;
use super::wire::NodeReport;
use crate::model::Cluster;

/// A node to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub node: Arc<str>,
    /// Of its link.
    pub addr: SocketAddr,
    /// It is thought to give the cluster.
    pub is_manager: bool,
}

/// What is known of another node.
#[derive(Debug, Clone)]
pub struct PeerState {
    pub addr: SocketAddr,
    /// It answers.
    pub is_up: bool,
    /// It is not up since it does not answer: what is open to it leads nowhere. One that refuses, or ended its connection, may
    /// be about to begin again, and has what is open to it.
    pub is_silent: bool,
    /// Since when it is as `is_up` says.
    pub since: Instant,
    pub round_trip: Option<Duration>,
    /// What it said last.
    pub report: Option<NodeReport>,
    /// Why it is not up.
    pub error: Option<String>,
}

/// By node id.
pub type PeerTable = BTreeMap<Arc<str>, PeerState>;

/// The control connections of this node.
pub struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    state: Arc<LinkState>,
    /// std mutex: held for a few moves, never while anything is awaited.
    table: Mutex<PeerTable>,
    /// Counts changes of who is up and who is leaving.
    changed: watch::Sender<u64>,
    calls: Mutex<HashMap<Arc<str>, mpsc::Sender<Call>>>,
    follow: Mutex<Follow>,
    /// Where the newest cluster goes.
    publish: watch::Sender<Arc<Cluster>>,
    next_call: AtomicU64,
}

struct Call {
    method: String,
    body: serde_json::Value,
    answer: oneshot::Sender<Result<serde_json::Value, String>>,
}

/// What managers sent, and what of it was taken.
#[derive(Default)]
struct Follow {
    from: HashMap<Arc<str>, Arc<Cluster>>,
    /// Since when every manager that answers is behind what was published.
    behind_since: Option<Instant>,
}

impl Peers {
    /// `publish`: where the cluster goes that managers send, while this node does not learn it itself.
    pub fn new(state: Arc<LinkState>, publish: watch::Sender<Arc<Cluster>>) -> Peers {
        Peers {
            shared: Arc::new(Shared {
                state,
                table: Mutex::default(),
                changed: watch::Sender::new(0),
                calls: Mutex::default(),
                follow: Mutex::default(),
                publish,
                next_call: AtomicU64::new(1),
            }),
        }
    }

    /// What is known of every other node now.
    pub fn table(&self) -> PeerTable {
        self.shared.table().clone()
    }

    /// Whether a manager that answers sends what changes to this node.
    pub fn is_following(&self) -> bool {
        let table = self.shared.table();
        let is_up = |node: &Arc<str>| table.get(node).is_some_and(|peer| peer.is_up);
        self.shared.follow().from.keys().any(is_up)
    }

    /// Wakes when a node comes, goes, falls silent, or is about to go.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Asks another node. Errors: it is not up, or does not answer within `timeout`, or what it says is wrong.
    pub async fn call(
        &self,
        node: &str,
        method: &str,
        body: serde_json::Value,
        timeout: Duration,
    ) -> Result<serde_json::Value, String> {
        let calls = self.shared.calls().get(node).cloned();
        let calls = calls.ok_or_else(|| format!("node {node} is not known"))?;
        let (answer, answered) = oneshot::channel();
        let call = Call {
            method: method.to_owned(),
            body,
            answer,
        };
        let asked = async {
            calls
                .send(call)
                .await
                .map_err(|_| "the connection to it ended".to_owned())?;
            answered.await.map_err(|_| "the connection to it ended".to_owned())?
        };
        tokio::time::timeout(timeout, asked)
            .await
            .map_err(|_| "no answer in time".to_owned())?
    }

    /// Keeps a connection to each of `targets`, as they come and go, until `shutdown`.
    pub async fn run(&self, mut targets: watch::Receiver<Vec<Target>>, shutdown: impl Future<Output = ()>) {
        let mut tasks: HashMap<Arc<str>, (Target, Kept)> = HashMap::new();
        tokio::pin!(shutdown);
        loop {
            let wanted: HashMap<Arc<str>, Target> = targets
                .borrow_and_update()
                .iter()
                .map(|target| (target.node.clone(), target.clone()))
                .collect();
            let ended = tasks.extract_if(|node, (target, task)| {
                let stays = wanted.get(node) == Some(target) && !task.0.is_finished();
                !stays
            });
            for (node, (_, mut task)) in ended.collect::<Vec<_>>() {
                task.0.abort();
                // Until it has really ended it may still say how the node is. An error says that it was aborted.
                let _ = (&mut task.0).await;
                if !wanted.contains_key(&node) {
                    self.shared.forget(&node);
                }
            }
            for (node, target) in wanted {
                if tasks.contains_key(&node) {
                    continue;
                }
                let (calls, called) = mpsc::channel(CALLS_MAX);
                self.shared.calls().insert(node.clone(), calls);
                let task = tokio::spawn(keep(self.shared.clone(), target.clone(), called));
                tasks.insert(node, (target, Kept(task)));
            }
            tokio::select! {
                () = &mut shutdown => break,
                changed = targets.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(BEHIND_CHECK) => self.shared.follow_back(),
            }
        }
    }
}

/// In how many turns of pings in a row nothing came of the other end. Turns are counted, and not time: where this node itself was
/// held up, what has come meanwhile is yet to be read.
#[derive(Default)]
struct Unheard {
    /// At the turn before.
    heard_at: Option<Instant>,
    n: u32,
}

impl Unheard {
    /// To be called at each turn with when something came last.
    fn count(&mut self, heard_at: Instant) -> u32 {
        self.n = match self.heard_at.replace(heard_at) {
            Some(before) if before == heard_at => self.n + 1,
            _ => 0,
        };
        self.n
    }
}

/// In so many turns it does not answer: 1.2 s.
const UNHEARD_MAX: u32 = 3;

/// A task that does not outlive who keeps it.
struct Kept(tokio::task::JoinHandle<()>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, PeerTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<Arc<str>, mpsc::Sender<Call>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self) -> MutexGuard<'_, Follow> {
        self.follow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, node: &str) {
        self.table().remove(node);
        self.calls().remove(node);
        self.follow().from.remove(node);
        self.changed.send_modify(|n| *n += 1);
    }

    fn is_follower(&self) -> bool {
        !self.state.is_source.load(Relaxed)
    }

    fn answered(&self, target: &Target, report: NodeReport, round_trip: Option<Duration>) {
        if report.is_draining {
            self.state.leaving.add(&target.node, report.instance);
        }
        let mut table = self.table();
        let before = table.get(&target.node);
        let was_up = before.filter(|before| before.is_up);
        let is_news = was_up
            .and_then(|before| before.report.as_ref())
            .is_none_or(|before| before.instance != report.instance || before.is_draining != report.is_draining);
        let round_trip = round_trip.or_else(|| before.and_then(|before| before.round_trip));
        let since = was_up.map_or_else(Instant::now, |before| before.since);
        if was_up.is_none() {
            tracing::info!(node = %target.node, addr = %target.addr, "linked");
        }
        let state = PeerState {
            addr: target.addr,
            is_up: true,
            is_silent: false,
            since,
            round_trip,
            report: Some(report),
            error: None,
        };
        table.insert(target.node.clone(), state);
        drop(table);
        if is_news {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// The run that was talked to last, where it has said to anybody that it ends.
    fn ending(&self, target: &Target) -> Option<Ends> {
        let table = self.table();
        let report = table.get(&target.node)?.report.as_ref()?;
        let is_leaving = self.state.leaving.contains(&target.node, report.instance);
        is_leaving.then(|| Ends::of(report))
    }

    /// `is_silent`: none of its runs answers.
    fn lost(&self, target: &Target, error: &io::Error, is_silent: bool) {
        self.follow().from.remove(&target.node);
        let mut table = self.table();
        let before = table.get(&target.node);
        let was_up = before.is_some_and(|before| before.is_up);
        let was_silent = before.is_some_and(|before| before.is_silent);
        let is_silent = was_silent || is_silent;
        let is_news = was_up || before.is_none() || is_silent != was_silent;
        if was_up {
            tracing::warn!(node = %target.node, addr = %target.addr, "link lost: {error}");
        }
        let since = before
            .filter(|before| !before.is_up)
            .map_or_else(Instant::now, |before| before.since);
        let report = before.and_then(|before| before.report.clone());
        let state = PeerState {
            addr: target.addr,
            is_up: false,
            is_silent,
            since,
            round_trip: None,
            report,
            error: Some(error.to_string()),
        };
        table.insert(target.node.clone(), state);
        drop(table);
        if is_news {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Takes what a manager sent.
    fn received(&self, node: &Arc<str>, cluster: Arc<Cluster>) {
        let mut follow = self.follow();
        let before = follow.from.insert(node.clone(), cluster.clone());
        if !self.is_follower() {
            return;
        }
        self.publish.send_if_modified(|published| {
            // One commit may come in several steps: of the manager that was followed so far, the next step counts too.
            let is_next_step = cluster.revision() == published.revision()
                && before.is_some_and(|before| before.digest() == published.digest());
            let is_newer = cluster.revision() > published.revision() || is_next_step || published.is_empty();
            if is_newer {
                *published = cluster;
            }
            is_newer
        });
    }

    /// A cluster that went back, as after a restore of the swarm: when every manager has been behind for a while, the
    /// newest of theirs counts.
    fn follow_back(&self) {
        let mut follow = self.follow();
        let newest = follow.from.values().max_by_key(|cluster| cluster.revision()).cloned();
        let Some(newest) = newest.filter(|_| self.is_follower()) else {
            follow.behind_since = None;
            return;
        };
        let published = self.publish.borrow().clone();
        // One may be a step behind the other within the same commit.
        let agrees = follow
            .from
            .values()
            .any(|has| has.revision() == published.revision() && has.digest() == published.digest())
            && newest.revision() == published.revision();
        if newest.revision() > published.revision() || agrees {
            follow.behind_since = None;
            return;
        }
        let since = *follow.behind_since.get_or_insert_with(Instant::now);
        let patience = match newest.revision() == published.revision() {
            // Only what was read in several steps differs.
            true => STEPS_LONGEST,
            false => BEHIND_LONGEST,
        };
        if since.elapsed() >= patience {
            tracing::warn!(
                from = published.revision(),
                to = newest.revision(),
                "all managers say otherwise: following"
            );
            follow.behind_since = None;
            self.publish.send_replace(newest);
        }
    }
}

const PING_EVERY: Duration = Duration::from_millis(400);
/// How seldom the next run of a node that ends is looked for.
const NEXT_LONGEST: Duration = Duration::from_secs(30);
const BEHIND_CHECK: Duration = Duration::from_millis(500);
const BEHIND_LONGEST: Duration = Duration::from_secs(10);
const STEPS_LONGEST: Duration = Duration::from_millis(500);
const CALLS_MAX: usize = 64;

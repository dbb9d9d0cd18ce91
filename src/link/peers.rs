//! The connecting side of control connections: one to every other node, kept up, so that each node knows how every other
//! one is. Over those to managers comes the cluster, for a node that cannot read it itself: from all of them at once, so
//! that the loss of one is not noticed; the newest counts. A node whose run of the program ends is gone over to its next run
//! as soon as there is one, and is not lost in between.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::{TlsConnector, TlsStream};

use super::identity::{Identity, Role, peer_of};
use super::wire::{ANSWER_BYTES_MAX, Answer, Ask, Budget, CLUSTER_BYTES_MAX, Messages, NodeReport, to_hex};
use super::{Later, LinkState};
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

    fn lost(&self, target: &Target, error: &io::Error) {
        self.follow().from.remove(&target.node);
        let mut table = self.table();
        let before = table.get(&target.node);
        let was_up = before.is_some_and(|before| before.is_up);
        let was_silent = before.is_some_and(|before| before.is_silent);
        let is_silent = was_silent || error.kind() == io::ErrorKind::TimedOut;
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

/// Keeps a connection to one node, for ever.
async fn keep(shared: Arc<Shared>, target: Target, mut called: mpsc::Receiver<Call>) {
    let mut backoff = BACKOFF_FIRST;
    let mut next: Option<Begun> = None;
    // Of a node whose runs come and go there is a look less and less often.
    let mut pause = NEXT_FIRST;
    loop {
        let started = Instant::now();
        let begun = match next.take() {
            Some(begun) => Ok(begun),
            None => connect(&shared.state, &target).await,
        };
        let error = match begun {
            Ok(begun) => match converse(&shared, &target, (begun, pause), &mut called).await {
                End::Anew => continue,
                End::Next(begun) => {
                    tracing::info!(node = %target.node, addr = %target.addr, "linked to its next run");
                    next = Some(*begun);
                    pause = match started.elapsed() > NEXT_LONGEST {
                        true => NEXT_FIRST,
                        false => (pause * 3).min(NEXT_LONGEST),
                    };
                    continue;
                }
                End::Failed(error) => error,
            },
            Err(error) => error,
        };
        shared.lost(&target, &error);
        while let Ok(call) = called.try_recv() {
            // An error means that nobody waits any more.
            let _ = call.answer.send(Err(format!("not linked: {error}")));
        }
        if started.elapsed() > BACKOFF_LONGEST {
            backoff = BACKOFF_FIRST;
        }
        tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        backoff = (backoff * 2).min(BACKOFF_LONGEST);
    }
}

/// A connection, and what its certificate says that the peer is.
struct Begun {
    role: Role,
    messages: Messages<TlsStream<TcpStream>>,
}

async fn connect(state: &LinkState, target: &Target) -> io::Result<Begun> {
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

/// A connection to whoever has taken the place of a run of the program that ends, once there is one. It is looked for less and less
/// often: one that ends for good has nobody after it.
async fn successor(state: Arc<LinkState>, target: Target, ends: Ends, mut pause: Duration) -> Begun {
    let until = Instant::now() + SOURCE_PATIENCE;
    loop {
        // All peers are told at the same moment.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        let reached = async {
            let mut begun = connect(&state, &target).await?;
            match tokio::time::timeout(CONNECT_PATIENCE, who(&state, &mut begun)).await?? {
                report if report.instance == ends.instance => Err(io::Error::other("it is the same run")),
                report if report.is_draining => Err(io::Error::other("it ends too")),
                // The one that ends still does.
                report if ends.is_source && !report.is_source && Instant::now() < until => {
                    Err(io::Error::other("it does not give the cluster yet"))
                }
                _ => Ok(begun),
            }
        };
        match reached.await {
            Ok(begun) => return begun,
            Err(error) => tracing::debug!(node = %target.node, %error, "its next run is not reached"),
        }
        pause = (pause * 3).min(NEXT_LONGEST);
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

/// How a conversation ends.
enum End {
    Failed(io::Error),
    /// The peer's certificate may have changed: nothing is wrong with it.
    Anew,
    /// The peer's run of the program ends, and this is the connection to its next one.
    Next(Box<Begun>),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Failed(error)
    }
}

/// Speaks over one connection until it ends.
async fn converse(
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
        Ok(never) => match never {},
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
    messages: Messages<TlsStream<TcpStream>>,
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

/// A run of the program that is about to end.
#[derive(Clone, Copy)]
struct Ends {
    instance: u64,
    /// It gave the cluster until then.
    is_source: bool,
}

enum Never {}

impl Talk<'_> {
    async fn run(&mut self, called: &mut mpsc::Receiver<Call>) -> Result<Never, End> {
        let mut ticks = tokio::time::interval(PING_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut n = 0;
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
                begun = next => return Err(End::Next(Box::new(begun))),
                _ = ticks.tick() => {
                    if self.messages.heard_at().elapsed() >= SILENCE_LONGEST {
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
                    self.ends = Some(Ends {
                        instance: report.instance,
                        is_source: report.is_source,
                    });
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

const PING_EVERY: Duration = Duration::from_millis(400);
const SILENCE_LONGEST: Duration = Duration::from_millis(1200);
const CONNECT_PATIENCE: Duration = Duration::from_millis(1000);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(1);
/// Until the next run of a node that ends is looked for, and how seldom that becomes.
const NEXT_FIRST: Duration = Duration::from_millis(100);
const NEXT_LONGEST: Duration = Duration::from_secs(30);
/// How long a next run has until it gives the cluster as the one before does.
const SOURCE_PATIENCE: Duration = Duration::from_secs(5);
/// From one that was asked how it is.
const MESSAGES_BEFORE_PONG: usize = 16;
const BEHIND_CHECK: Duration = Duration::from_millis(500);
const BEHIND_LONGEST: Duration = Duration::from_secs(10);
const STEPS_LONGEST: Duration = Duration::from_millis(500);
const RENEW_AGAIN: Duration = Duration::from_secs(2);
const CALLS_MAX: usize = 64;
/// Not answered, while other things are said.
const PINGS_MAX: usize = 64;
/// How often a node that says that it gives the cluster is looked at for a manager's certificate.
const ROLE_LOOK: Duration = Duration::from_secs(2);

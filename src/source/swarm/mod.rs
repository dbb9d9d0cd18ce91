//! A Docker Swarm as the source: what its managers know becomes a `Cluster`, the quick way or the slow one, or not here at
//! all, on workers. Beside it, what only this node's engine knows: who the node is, and where its tasks are.
//!
//! Fail static: whatever goes away, what was published last stays.

mod docker;
mod keep;
mod picture;
mod proto;
mod watch;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::models::EventMessage;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::net::UnixStream;
use tokio::sync::watch as latest;

pub use self::docker::{Engine, EngineError, EngineInfo};
pub use self::keep::ClusterKeeper;
use self::picture::Picture;
use self::watch::{Control, WatchError};
use super::cluster::LocalTasks;
use crate::model::Cluster;

/// How this node learns of the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// Not at all yet.
    #[default]
    None,
    /// Managers' Watch stream: within milliseconds.
    Watch,
    /// Asking a manager's engine again and again.
    Poll,
    /// From other nodes.
    Link,
    /// A manager whose engine does not say: what was learned last stays, until another manager has something newer.
    Kept,
}

impl Way {
    pub const ALL: [Way; 5] = [Way::None, Way::Watch, Way::Poll, Way::Link, Way::Kept];

    pub fn as_str(self) -> &'static str {
        match self {
            Way::None => "none",
            Way::Watch => "watch",
            Way::Poll => "poll",
            Way::Link => "link",
            Way::Kept => "kept",
        }
    }
}

/// How the source fares; read by `admin`.
#[derive(Debug, Default)]
pub struct SwarmStatus {
    /// std mutex: nothing awaits under it.
    now: Mutex<Now>,
    /// Commits or polls taken.
    pub events: AtomicU64,
    /// Streams that went on where the last one broke, and those that began anew.
    pub resumes: AtomicU64,
    pub resyncs: AtomicU64,
}

#[derive(Debug, Default)]
struct Now {
    way: Way,
    since: Option<Instant>,
    errors: BTreeMap<Part, String>,
}

/// What may be wrong beside the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Stream,
    Polling,
    Engine,
}

impl SwarmStatus {
    /// The way in use, since when, and what is wrong at present.
    pub fn way(&self) -> (Way, Option<Instant>, Option<String>) {
        let now = self.lock();
        let mut errors: Vec<&str> = now.errors.values().map(String::as_str).collect();
        errors.dedup();
        (now.way, now.since, (!errors.is_empty()).then(|| errors.join("; ")))
    }

    fn set(&self, way: Way) {
        let mut now = self.lock();
        if now.way != way {
            tracing::info!(way = way.as_str(), "learning of the swarm");
            (now.way, now.since) = (way, Some(Instant::now()));
        }
        match way {
            // Why it is not the quick way stays said.
            Way::Poll => drop(now.errors.remove(&Part::Polling)),
            Way::Watch | Way::Link => now.errors.retain(|part, _| *part == Part::Engine),
            Way::None | Way::Kept => {}
        }
    }

    fn worked(&self, part: Part) {
        self.lock().errors.remove(&part);
    }

    /// Says what is new.
    fn failed(&self, part: Part, error: &dyn std::error::Error) {
        let error = chain(error);
        let known = self.lock().errors.insert(part, error.clone());
        if known.as_ref() != Some(&error) {
            tracing::warn!("learning of the swarm: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the swarm is learned from.
#[derive(Debug, Clone)]
pub struct SwarmPaths {
    pub docker_socket: PathBuf,
    pub control_socket: PathBuf,
}

/// What this node's parts learn of the swarm, each followed by itself.
pub struct SwarmSource {
    paths: SwarmPaths,
    status: Arc<SwarmStatus>,
    /// Where the cluster goes, while this node learns it itself.
    cluster: latest::Sender<Arc<Cluster>>,
    info: latest::Sender<EngineInfo>,
    /// `None`: the engine has not said yet.
    tasks: latest::Sender<Option<Arc<LocalTasks>>>,
    is_source: Arc<dyn Fn(bool) + Send + Sync>,
    /// The engine answered when it was asked last.
    is_engine_up: AtomicBool,
    reads_traefik: bool,
}

impl SwarmSource {
    /// `is_source`: told whether this node learns the cluster itself.
    pub fn new(
        paths: SwarmPaths,
        status: Arc<SwarmStatus>,
        cluster: latest::Sender<Arc<Cluster>>,
        is_source: Arc<dyn Fn(bool) + Send + Sync>,
    ) -> SwarmSource {
        SwarmSource {
            paths,
            status,
            cluster,
            info: latest::Sender::default(),
            tasks: latest::Sender::default(),
            is_source,
            is_engine_up: AtomicBool::new(false),
            reads_traefik: false,
        }
    }

    /// Whether Traefik's labels of services are taken along.
    pub fn reading_traefik(mut self, reads_traefik: bool) -> SwarmSource {
        self.reads_traefik = reads_traefik;
        self
    }

    /// Who this node is; empty until the engine has said so.
    pub fn info(&self) -> latest::Receiver<EngineInfo> {
        self.info.subscribe()
    }

    /// Takes what is known of this node from an earlier run, until the engine says so itself.
    pub fn recall(&self, info: EngineInfo) {
        self.info.send_replace(info);
    }

    /// The addresses of this node's tasks; `None` until the engine has said.
    pub fn tasks(&self) -> latest::Receiver<Option<Arc<LocalTasks>>> {
        self.tasks.subscribe()
    }

    /// Asks the engine for this node's tasks once, before anything is followed; none where it does not answer in time.
    pub async fn recall_tasks(&self, patience: Duration) -> LocalTasks {
        let asked = async { Engine::connect(&self.paths.docker_socket).await?.local_tasks().await };
        match tokio::time::timeout(patience, asked).await {
            Ok(Ok(tasks)) => {
                self.tasks.send_replace(Some(Arc::new(tasks.clone())));
                tasks
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    "the addresses of this node's tasks are not known yet: {}",
                    chain(&error)
                );
                LocalTasks::default()
            }
            Err(_) => {
                tracing::warn!("the addresses of this node's tasks are not known yet: the engine does not answer");
                LocalTasks::default()
            }
        }
    }

    pub fn is_engine_up(&self) -> bool {
        self.is_engine_up.load(Relaxed)
    }

    /// Follows the engine and the swarm until `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        tokio::select! {
            () = &mut shutdown => {}
            () = self.follow_info() => {}
            () = self.follow_tasks() => {}
            () = self.follow_swarm() => {}
        }
    }

    async fn follow_info(&self) {
        let mut pause = Pause::new();
        loop {
            match self.ask_info().await {
                Ok(info) => {
                    self.is_engine_up.store(true, Relaxed);
                    self.status.worked(Part::Engine);
                    pause.reset();
                    let mut changed = false;
                    self.info.send_if_modified(|known| {
                        // An engine that is just starting knows of no swarm yet: who this node is stays.
                        let is_news = *known != info && (!info.node.is_empty() || known.node.is_empty());
                        if is_news {
                            *known = info;
                        }
                        changed = is_news;
                        is_news
                    });
                    if changed {
                        let info = self.info.borrow().clone();
                        tracing::info!(node = info.node, manager = info.is_manager, "the engine's node");
                    }
                    tokio::time::sleep(INFO_EVERY).await;
                }
                Err(error) => {
                    self.is_engine_up.store(false, Relaxed);
                    self.status.failed(Part::Engine, &error);
                    pause.wait().await;
                }
            }
        }
    }

    async fn ask_info(&self) -> Result<EngineInfo, EngineError> {
        Engine::connect(&self.paths.docker_socket).await?.info().await
    }

    /// Keeps the addresses of local tasks, by the engine's events, and by asking again while one is missing.
    async fn follow_tasks(&self) {
        let mut pause = Pause::new();
        loop {
            let Ok(engine) = Engine::connect(&self.paths.docker_socket).await else {
                pause.wait().await;
                continue;
            };
            let mut events = pin!(engine.events(&["container"]));
            let mut clusters = self.cluster.subscribe();
            let mut missing_again = MISSING_FIRST;
            loop {
                match engine.local_tasks().await {
                    Ok(tasks) => {
                        pause.reset();
                        self.tasks.send_if_modified(|known| {
                            let is_news = known.as_deref() != Some(&tasks);
                            if is_news {
                                *known = Some(Arc::new(tasks));
                            }
                            is_news
                        });
                    }
                    Err(error) => {
                        tracing::debug!("addresses of tasks: {}", chain(&error));
                        break;
                    }
                }
                let wait = match self.is_any_missing() {
                    true => {
                        missing_again = (missing_again * 2).min(MISSING_LONGEST);
                        missing_again
                    }
                    false => {
                        missing_again = MISSING_FIRST;
                        TASKS_EVERY
                    }
                };
                let now = tokio::time::Instant::now();
                let is_over = loop {
                    tokio::select! {
                        event = events.next() => match event {
                            Some(Ok(event)) if is_about_tasks(&event) => break false,
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => break true,
                        },
                        Ok(()) = clusters.changed() => if self.is_any_missing() { break false },
                        () = tokio::time::sleep_until(now + wait) => break false,
                    }
                };
                // Many come at once: one look serves them all.
                tokio::time::sleep_until(now + SOONEST).await;
                if is_over || !skip_all(&mut events) {
                    break;
                }
            }
            pause.wait().await;
        }
    }

    /// Whether the cluster has a task of this node whose address is not known.
    fn is_any_missing(&self) -> bool {
        let info = self.info.borrow().clone();
        let (cluster, tasks) = (self.cluster.borrow().clone(), self.tasks.borrow().clone());
        cluster.tasks().any(|task| {
            task.node == info.node && !tasks.as_ref().is_some_and(|tasks| tasks.contains_key(task.id.as_str()))
        })
    }

    /// Learns the swarm where this node is a manager; elsewhere waits until it is.
    async fn follow_swarm(&self) {
        let mut info = self.info.subscribe();
        let mut pause = Pause::new();
        let mut learned = Learned::of(&info.borrow().node);
        let mut broken_since = None;
        loop {
            let now = info.borrow_and_update().clone();
            learned.is_now_of(&now.node);
            if !now.is_manager {
                (self.is_source)(false);
                if !now.node.is_empty() {
                    self.status.set(Way::Link);
                }
                // An error means that nobody will ever say more.
                if info.changed().await.is_err() {
                    return;
                }
                continue;
            }
            learned.stands = false;
            let other = async {
                let is_other = |info: &EngineInfo| !info.is_manager || info.node != now.node;
                if info.wait_for(is_other).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let ended = tokio::select! {
                () = other => continue,
                ended = self.learn(&mut learned) => ended,
            };
            if learned.stands {
                broken_since = None;
                pause.reset();
            }
            let Err(is_silence) = ended else {
                continue;
            };
            // Others may know more than a manager who does not say anything; but a break that is mended at once is none.
            let since: Instant = *broken_since.get_or_insert_with(Instant::now);
            if is_silence || since.elapsed() > BREAK_LONGEST {
                (self.is_source)(false);
                self.status.set(Way::Kept);
            }
            pause.wait().await;
        }
    }

    /// Learns the swarm one way, until another is to be taken. Errors: it broke; whether nothing was heard for too long.
    async fn learn(&self, learned: &mut Learned) -> Result<(), bool> {
        if learned.streams_failed < STREAMS_TRIED && self.has_control().await {
            let Err(error) = self.watch(learned).await;
            if learned.stands {
                (learned.streams_failed, learned.stream_again) = (0, STREAM_AGAIN_FIRST);
            }
            learned.streams_failed += match (error.is_silence(), learned.stands) {
                // Whoever is silent was waited for long enough.
                (true, _) => STREAMS_TRIED,
                (false, true) => 0,
                (false, false) => 1,
            };
            self.status.failed(Part::Stream, &error);
            return Err(error.is_silence());
        }
        let polled = self.poll(learned).await;
        polled.map_err(|error| {
            learned.streams_failed = 0;
            self.status.failed(Part::Polling, &error);
            error.is_silence()
        })
    }

    /// Whether somebody listens there: a socket's file outlives its engine.
    async fn has_control(&self) -> bool {
        let connecting = UnixStream::connect(&self.paths.control_socket);
        matches!(tokio::time::timeout(CONNECT_LONGEST, connecting).await, Ok(Ok(_)))
    }

    /// Follows the Watch stream until it breaks.
    async fn watch(&self, learned: &mut Learned) -> Result<Never, WatchError> {
        let mut control = Control::connect(&self.paths.control_socket).await?;
        let floor = self.floor(learned);
        let last = learned.picture.cluster().revision();
        // Where others brought news meanwhile, what was seen here is no beginning.
        let may_resume = !learned.picture.cluster().is_empty() && last >= floor;
        let resumed = match may_resume {
            true => control.watch(Some(last)).await.ok(),
            false => None,
        };
        let mut stream = match resumed {
            Some(stream) => {
                self.status.resumes.fetch_add(1, Relaxed);
                stream
            }
            None => {
                // The stream first, then what there is: nothing falls between.
                let stream = control.watch(None).await?;
                learned.picture = Picture::of(control.list().await?, self.before(learned), self.reads_traefik);
                learned.picture.committed(floor);
                self.status.resyncs.fetch_add(1, Relaxed);
                stream
            }
        };
        self.stand(Way::Watch, learned);
        let picture = &mut learned.picture;
        self.publish(picture.cluster());
        // Beside the stream, which must not wait for it.
        let mut asks = control.clone();
        let mut silence = pin!(async move {
            loop {
                tokio::time::sleep(ALIVE_EVERY).await;
                if let Err(error) = asks.is_alive().await {
                    break error;
                }
            }
        });
        loop {
            let commit = tokio::select! {
                commit = stream.next() => commit?,
                error = &mut silence => return Err(error),
            };
            let mut lacks_address = false;
            for (seen, is_removed) in commit.changes {
                if is_removed {
                    picture.remove(&seen.object);
                    continue;
                }
                let object = seen.object.clone();
                picture.put(seen);
                lacks_address |= picture.lacks_address(&object);
            }
            if lacks_address {
                let nodes = control.list_nodes().await?;
                nodes.into_iter().for_each(|node| picture.put(node));
            }
            if let Some(index) = commit.index {
                picture.committed(index);
            }
            self.status.events.fetch_add(1, Relaxed);
            self.publish(picture.cluster());
        }
    }

    /// Asks the engine again and again. Ends well when the stream is to be tried. Errors: the engine does not answer.
    async fn poll(&self, learned: &mut Learned) -> Result<(), EngineError> {
        let engine = Engine::connect(&self.paths.docker_socket).await?;
        let mut events = pin!(engine.events(&["service", "node", "container"]));
        let begun = Instant::now();
        let mut quick_until = begun + QUICK_FOR;
        loop {
            let asked = tokio::time::Instant::now();
            let mut picture = Picture::of(engine.list().await?, self.before(learned), self.reads_traefik);
            picture.committed(self.floor(learned));
            self.stand(Way::Poll, learned);
            self.status.events.fetch_add(1, Relaxed);
            self.publish(picture.cluster());
            if learned.streams_failed < STREAMS_TRIED {
                if self.has_control().await {
                    return Ok(());
                }
            } else if begun.elapsed() > learned.stream_again {
                learned.streams_failed = STREAMS_TRIED - 1;
                learned.stream_again = (learned.stream_again * 2).min(STREAM_AGAIN_LONGEST);
                return Ok(());
            }
            let wait = match Instant::now() < quick_until {
                true => QUICK_EVERY,
                false => POLL_EVERY,
            };
            let has_event = loop {
                tokio::select! {
                    () = tokio::time::sleep_until(asked + wait) => break false,
                    event = events.next() => match event {
                        Some(Ok(event)) if is_about_tasks(&event) || is_about_swarm(&event) => break true,
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Err(engine.failed("events", error)),
                        None => return Err(engine.ended("events")),
                    },
                }
            };
            if has_event {
                quick_until = Instant::now() + QUICK_FOR;
                tokio::time::sleep_until(asked + SOONEST).await;
            }
            if !skip_all(&mut events) {
                return Err(engine.ended("events"));
            }
        }
    }

    /// What is learned this way from now on counts.
    fn stand(&self, way: Way, learned: &mut Learned) {
        learned.stands = true;
        learned.is_other_swarm = false;
        self.status.set(way);
        (self.is_source)(true);
    }

    /// What is published, if it is of the same swarm.
    fn before(&self, learned: &Learned) -> Arc<Cluster> {
        match learned.is_other_swarm {
            true => Arc::default(),
            false => self.cluster.borrow().clone(),
        }
    }

    /// The revision that must not be gone back behind: that of what is published, of the same swarm.
    fn floor(&self, learned: &Learned) -> u64 {
        match learned.is_other_swarm {
            true => 0,
            false => self.cluster.borrow().revision(),
        }
    }

    fn publish(&self, cluster: &Cluster) {
        self.cluster.send_if_modified(|published| {
            let is_news = published.revision() != cluster.revision() || published.digest() != cluster.digest();
            if is_news {
                *published = Arc::new(cluster.clone());
            }
            is_news
        });
    }
}

/// What was learned of the swarm so far, and how that went.
#[derive(Default)]
struct Learned {
    /// This node's id in the swarm: in another swarm it has another.
    node: String,
    /// What is published is not of this swarm.
    is_other_swarm: bool,
    /// By the stream, so that it can be resumed.
    picture: Picture,
    /// The present way has brought the swarm.
    stands: bool,
    /// In a row, without ever standing.
    streams_failed: u32,
    stream_again: Duration,
}

impl Learned {
    fn of(node: &str) -> Learned {
        Learned {
            node: node.to_owned(),
            stream_again: STREAM_AGAIN_FIRST,
            ..Learned::default()
        }
    }

    fn is_now_of(&mut self, node: &str) {
        if node.is_empty() || node == self.node {
            return;
        }
        let is_first = self.node.is_empty();
        *self = Learned {
            is_other_swarm: !is_first,
            ..Learned::of(node)
        };
    }
}

enum Never {}

/// A task of this node may run now, or have ended.
fn is_about_tasks(event: &EventMessage) -> bool {
    let action = event.action.as_deref().unwrap_or_default();
    matches!(action, "start" | "die" | "destroy" | "unpause") || action.starts_with("health_status")
}

fn is_about_swarm(event: &EventMessage) -> bool {
    use bollard::models::EventMessageTypeEnum::{NODE, SERVICE};
    matches!(event.typ, Some(NODE | SERVICE))
}

/// Takes all events that wait. Whether more may come.
fn skip_all<T, E>(events: &mut (impl Stream<Item = Result<T, E>> + Unpin)) -> bool {
    loop {
        match events.next().now_or_never() {
            None => return true,
            Some(Some(Ok(_))) => {}
            Some(Some(Err(_)) | None) => return false,
        }
    }
}

/// A pause between tries that grows.
struct Pause(Duration);

impl Pause {
    fn new() -> Pause {
        Pause(PAUSE_FIRST)
    }

    fn reset(&mut self) {
        self.0 = PAUSE_FIRST;
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.0.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.0 = (self.0 * 2).min(PAUSE_LONGEST);
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);
const INFO_EVERY: Duration = Duration::from_secs(2);
const TASKS_EVERY: Duration = Duration::from_secs(30);
const MISSING_FIRST: Duration = Duration::from_millis(5);
const MISSING_LONGEST: Duration = Duration::from_secs(2);
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// Between two looks at the same thing, however much happens.
const SOONEST: Duration = Duration::from_millis(10);
const CONNECT_LONGEST: Duration = Duration::from_secs(1);
const BREAK_LONGEST: Duration = Duration::from_millis(500);
const STREAMS_TRIED: u32 = 3;
const STREAM_AGAIN_FIRST: Duration = Duration::from_secs(1);
const STREAM_AGAIN_LONGEST: Duration = Duration::from_secs(60);
const POLL_EVERY: Duration = Duration::from_secs(2);
const QUICK_EVERY: Duration = Duration::from_millis(100);
const QUICK_FOR: Duration = Duration::from_secs(10);

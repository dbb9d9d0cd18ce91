//! A Docker Swarm as the source: what its managers know becomes a `Cluster`, the quick way or the slow one, or not here at
//! all, on workers. Beside it, what only this node's engine knows: who the node is, and where its tasks are.
//!
//! Fail static: whatever goes away, what was published last stays.

mod docker;
mod keep;
mod picture;
mod proto;
mod watch;

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
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
}

impl Way {
    pub const ALL: [Way; 4] = [Way::None, Way::Watch, Way::Poll, Way::Link];

    pub fn as_str(self) -> &'static str {
        match self {
            Way::None => "none",
            Way::Watch => "watch",
            Way::Poll => "poll",
            Way::Link => "link",
        }
    }
}

/// How the source fares; read by `admin`.
#[derive(Debug, Default)]
pub struct SwarmStatus {
    way: Mutex<(Way, Option<Instant>, Option<String>)>,
    /// Commits or polls taken.
    pub events: AtomicU64,
    /// Streams that went on where the last one broke, and those that began anew.
    pub resumes: AtomicU64,
    pub resyncs: AtomicU64,
}

impl SwarmStatus {
    /// The way in use, since when, and what went wrong last.
    pub fn way(&self) -> (Way, Option<Instant>, Option<String>) {
        self.way.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, way: Way) {
        let mut now = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if now.0 != way {
            tracing::info!(way = way.as_str(), "learning of the swarm");
            *now = (way, Some(Instant::now()), None);
        }
        now.2 = None;
    }

    fn failed(&self, error: String) {
        let mut now = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if now.2.as_ref() != Some(&error) {
            tracing::warn!("learning of the swarm: {error}");
            now.2 = Some(error);
        }
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
        }
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
                    if self.is_engine_up.swap(false, Relaxed) {
                        tracing::warn!("the Docker Engine does not answer: {}", chain(&error));
                    }
                    self.status.failed(chain(&error));
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
                let deadline = tokio::time::Instant::now() + wait;
                let is_over = loop {
                    tokio::select! {
                        event = events.next() => match event {
                            Some(Ok(event)) if is_about_addresses(&event) => break false,
                            Some(Ok(_)) => {}
                            Some(Err(_)) | None => break true,
                        },
                        Ok(()) = clusters.changed() => if self.is_any_missing() { break false },
                        () = tokio::time::sleep_until(deadline) => break false,
                    }
                };
                if is_over {
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
        let mut picture = Picture::default();
        loop {
            let is_manager = info.borrow_and_update().is_manager;
            if !is_manager {
                (self.is_source)(false);
                if !info.borrow().node.is_empty() {
                    self.status.set(Way::Link);
                }
                // An error means that nobody will ever say more.
                if info.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let started = Instant::now();
            let demoted = async {
                while info.wait_for(|info| !info.is_manager).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let has_control = tokio::fs::try_exists(&self.paths.control_socket).await.unwrap_or(false);
            let error = if has_control {
                tokio::select! {
                    () = demoted => continue,
                    error = self.follow_watch(&mut picture) => chain(&error),
                }
            } else {
                tokio::select! {
                    () = demoted => continue,
                    error = self.follow_poll() => chain(&error),
                }
            };
            self.status.failed(error);
            if started.elapsed() > PAUSE_LONGEST {
                pause.reset();
            }
            pause.wait().await;
        }
    }

    /// Follows the Watch stream until it breaks; returns why it did.
    async fn follow_watch(&self, picture: &mut Picture) -> WatchError {
        match self.watch(picture).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn watch(&self, picture: &mut Picture) -> Result<Never, WatchError> {
        let mut control = Control::connect(&self.paths.control_socket).await?;
        let last = picture.cluster().revision();
        let resumed = match picture.cluster().is_empty() {
            true => None,
            false => control.watch(Some(last)).await.ok(),
        };
        let mut stream = match resumed {
            Some(stream) => {
                self.status.resumes.fetch_add(1, Relaxed);
                stream
            }
            None => {
                // The stream first, then what there is: nothing falls between.
                let stream = control.watch(None).await?;
                *picture = Picture::of(control.list().await?);
                picture.committed(last);
                self.status.resyncs.fetch_add(1, Relaxed);
                stream
            }
        };
        self.status.set(Way::Watch);
        (self.is_source)(true);
        self.publish(picture.cluster());
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let commit = tokio::select! {
                commit = stream.next() => commit?,
                _ = alive.tick() => {
                    control.is_alive().await?;
                    continue;
                }
            };
            for (seen, is_removed) in commit.changes {
                match is_removed {
                    true => picture.remove(&seen.object),
                    false => picture.put(seen),
                }
            }
            if let Some(index) = commit.index {
                picture.committed(index);
            }
            self.status.events.fetch_add(1, Relaxed);
            self.publish(picture.cluster());
        }
    }

    /// Asks the engine again and again until it fails; returns why it did.
    async fn follow_poll(&self) -> EngineError {
        match self.poll().await {
            Ok(()) => EngineError::Silent {
                path: self.paths.docker_socket.clone(),
                what: "events",
            },
            Err(error) => error,
        }
    }

    /// Ends well when the control socket appears.
    async fn poll(&self) -> Result<(), EngineError> {
        let engine = Engine::connect(&self.paths.docker_socket).await?;
        let mut events = pin!(engine.events(&["service", "node", "container"]));
        let mut quick_until = Instant::now() + QUICK_FOR;
        loop {
            let picture = Picture::of(engine.list().await?);
            self.status.set(Way::Poll);
            (self.is_source)(true);
            self.status.events.fetch_add(1, Relaxed);
            self.publish(picture.cluster());
            if tokio::fs::try_exists(&self.paths.control_socket).await.unwrap_or(false) {
                return Ok(());
            }
            let wait = match Instant::now() < quick_until {
                true => QUICK_EVERY,
                false => POLL_EVERY,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                event = events.next() => match event {
                    Some(Ok(_)) => quick_until = Instant::now() + QUICK_FOR,
                    Some(Err(_)) | None => return Ok(()),
                },
            }
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

enum Never {}

fn is_about_addresses(event: &bollard::models::EventMessage) -> bool {
    matches!(event.action.as_deref(), Some("start" | "die" | "destroy" | "unpause"))
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
const POLL_EVERY: Duration = Duration::from_secs(2);
const QUICK_EVERY: Duration = Duration::from_millis(100);
const QUICK_FOR: Duration = Duration::from_secs(10);

//! Makes the tasks of this node real: has each prepared, started, watched and stopped, by what is wished of it, and says what
//! became of it. Tasks outlive this program: a later run finds them again.
//!
//! Not here: which tasks there are (`control`), where traffic goes (`routing`), how a task is made (`process`; a Docker
//! Engine's containers).

pub mod containers;
mod drive;
mod files;
mod network;
pub mod process;
mod runtime;
mod template;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::model::Reach;
use crate::model::exec::{ExecError, ExecSpec};
use crate::model::swarm::{Id, Node, Payload, Service, Task, TaskStatus};
use crate::streams::{Exec, LogQuery, LogStream};

pub use network::{NoNetworks, TaskNetworks};
pub use runtime::{Failure, Found, HealthState, PinnedSocket, Runtime, Started};

/// What is answered later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A task that this node is to make real, with all that it needs.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub task: Arc<Task>,
    /// `None` when the service is gone.
    pub service: Option<Arc<Service>>,
    pub node: Arc<Node>,
    /// By id; those that the task's spec names.
    pub configs: BTreeMap<Id, Arc<Payload>>,
    pub secrets: BTreeMap<Id, Arc<Payload>>,
    /// By which a registry gives out the image: the `X-Registry-Auth` that the service was declared with.
    pub registry_auth: Option<String>,
}

/// Several may name the same objects.
impl PartialEq for Assignment {
    fn eq(&self, other: &Assignment) -> bool {
        let is_same_service = match (&self.service, &other.service) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
            (one, other) => one.is_none() && other.is_none(),
        };
        // Mostly they are the very same, and specs are long.
        (Arc::ptr_eq(&self.task, &other.task) || self.task == other.task) && is_same_service
    }
}

/// All tasks of this node, those included that are to stop. One that vanishes is to be stopped and removed.
pub type Assignments = BTreeMap<Id, Arc<Assignment>>;

/// Where tasks of this node are reached. Port 0 stands for the target port of each connection.
pub type Addresses = BTreeMap<Id, Reach>;

/// Hears what became of tasks.
pub trait Reports: Send + Sync {
    /// Does not wait.
    fn report(&self, task: &Id, status: TaskStatus);
}

/// Sees to it that nothing of value is on its way to a task before it is stopped.
pub trait Barrier: Send + Sync {
    /// Ready when the task is out of the routing table of every node that lives, and what was asked of it by then is
    /// answered, as far as that does not take long. The task is not in `Addresses` any more when this is called.
    fn leave<'a>(&'a self, task: &'a Id) -> Later<'a, ()>;
}

/// The tasks of this node.
pub struct Agent {
    runtime: Arc<dyn Runtime>,
    reports: Arc<dyn Reports>,
    barrier: Arc<dyn Barrier>,
    networks: Arc<dyn TaskNetworks>,
    addresses: watch::Sender<Arc<Addresses>>,
    /// std mutex: held for moments.
    running: Mutex<HashMap<Id, Running>>,
}

struct Running {
    assignment: watch::Sender<Option<Arc<Assignment>>>,
    /// Its program runs or has run, or never will.
    has_begun: watch::Receiver<bool>,
    ended: tokio::task::JoinHandle<()>,
}

impl Agent {
    /// `networks`: as the runtime has it.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        reports: Arc<dyn Reports>,
        barrier: Arc<dyn Barrier>,
        networks: Arc<dyn TaskNetworks>,
    ) -> Arc<Agent> {
        Arc::new(Agent {
            runtime,
            reports,
            barrier,
            networks,
            addresses: watch::Sender::default(),
            running: Mutex::default(),
        })
    }

    pub fn addresses(&self) -> watch::Receiver<Arc<Addresses>> {
        self.addresses.subscribe()
    }

    /// The output of a task; of one that is to begin, from when it does. Errors: there is no such task here, or its output
    /// cannot be read.
    pub fn logs(&self, task: &Id, query: LogQuery) -> io::Result<LogStream> {
        let has_begun = self.lock().get(task).map(|running| running.has_begun.clone());
        let Some(mut has_begun) = has_begun else {
            let reason = format!("task {task} is not on this node");
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        };
        if !query.follow || *has_begun.borrow_and_update() {
            return self.runtime.logs(task, query);
        }
        let (runtime, task) = (self.runtime.clone(), task.clone());
        let lines = async move {
            // An error means that it never will.
            drop(has_begun.wait_for(|has_begun| *has_begun).await);
            runtime.logs(&task, query).unwrap_or_else(|error| {
                tracing::debug!(%task, %error, "its output cannot be read");
                stream::empty().boxed()
            })
        };
        Ok(stream::once(lines).flatten().boxed())
    }

    /// Runs a program beside a task's.
    pub async fn exec(&self, task: &Id, spec: ExecSpec) -> Result<Exec, ExecError> {
        let is_here = self.lock().contains_key(task);
        match is_here {
            true => self.runtime.exec(task, spec).await,
            false => Err(ExecError::NotRunning),
        }
    }

    /// Follows `assignments` until `shutdown`, or until it is dropped; tasks live on.
    pub async fn run(
        self: Arc<Agent>,
        mut assignments: watch::Receiver<Arc<Assignments>>,
        shutdown: impl Future<Output = ()>,
    ) {
        let _ends = EndsDriving(&self);
        let follow = async {
            let first = assignments.borrow_and_update().clone();
            let _removing = self.remove_strays(&first).await;
            loop {
                let now = assignments.borrow_and_update().clone();
                self.assign(&now);
                drop(now);
                if assignments.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = shutdown => {}
        }
    }

    /// Says where the tasks are reached that run already, for as long as nobody can say which there are to be. Nothing is done to
    /// any of them. Never ends; what was said by then holds until `run` says otherwise.
    pub async fn watch_over(&self) {
        let mut watched: FuturesUnordered<_> = self.list().await.into_iter().map(|id| self.watch_one(id)).collect();
        while watched.next().await.is_some() {}
        std::future::pending().await
    }

    async fn watch_one(&self, id: Id) {
        let Found::Running(started) = self.runtime.find(&id).await else {
            return;
        };
        tracing::info!(task = %id, pid = started.container.pid, "it goes on while the swarm is locked");
        self.publish(&id, started.reach.as_ref());
        self.runtime.ended(&id).await;
        self.unpublish(&id);
        self.networks.close(&id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assign(self: &Arc<Agent>, now: &Assignments) {
        let mut running = self.lock();
        running.retain(|id, task| {
            if !now.contains_key(id) {
                task.assignment
                    .send_if_modified(|assignment| assignment.take().is_some());
            }
            !task.ended.is_finished()
        });
        for (id, assignment) in now {
            match running.get(id) {
                Some(task) => {
                    task.assignment.send_if_modified(|known| {
                        let is_news = known.as_ref() != Some(assignment);
                        *known = Some(assignment.clone());
                        is_news
                    });
                }
                None => {
                    let sender = watch::Sender::new(Some(assignment.clone()));
                    let (begins, has_begun) = watch::channel(false);
                    let driven = drive::drive(self.clone(), assignment.clone(), sender.subscribe(), begins);
                    let task = Running {
                        assignment: sender,
                        has_begun,
                        ended: tokio::spawn(driven),
                    };
                    running.insert(id.clone(), task);
                }
            }
        }
    }

    /// Has what an earlier run made and nobody knows any more be taken away, as long as the answer lives.
    async fn remove_strays(&self, assignments: &Assignments) -> JoinSet<()> {
        let found = self.list().await;
        let mut removing = JoinSet::new();
        for id in found.into_iter().filter(|id| !assignments.contains_key(id)) {
            tracing::warn!(task = %id, "it runs here and belongs to no service: removed");
            self.unpublish(&id);
            self.networks.close(&id);
            let runtime = self.runtime.clone();
            removing.spawn(async move { runtime.remove(&id).await });
        }
        removing
    }

    /// All tasks that there is something of.
    async fn list(&self) -> Vec<Id> {
        loop {
            match self.runtime.list().await {
                Ok(found) => break found,
                Err(error) => {
                    tracing::warn!(%error, "what runs here cannot be listed");
                    tokio::time::sleep(LIST_AGAIN).await;
                }
            }
        }
    }

    fn publish(&self, task: &Id, reach: Option<&Reach>) {
        let Some(reach) = reach else { return };
        self.addresses.send_if_modified(|addresses| {
            let before = Arc::make_mut(addresses).insert(task.clone(), reach.clone());
            before.as_ref() != Some(reach)
        });
    }

    fn unpublish(&self, task: &Id) {
        self.addresses.send_if_modified(|addresses| {
            addresses.contains_key(task) && Arc::make_mut(addresses).remove(task).is_some()
        });
    }
}

/// Nothing is done to tasks any more once this is dropped.
struct EndsDriving<'a>(&'a Agent);

impl Drop for EndsDriving<'_> {
    fn drop(&mut self) {
        for (_, running) in self.0.lock().drain() {
            running.ended.abort();
        }
    }
}

const LIST_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;

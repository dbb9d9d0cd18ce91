//! What managers know beside the table: tasks on their way to traffic or away from it, how many are wanted, how an update goes.
//! Of a node that is a swarm by itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::objects::json;
use super::{Json, Key};
use crate::model::swarm::{self, Mode, Task, TaskState};
use crate::store::Snapshot;

/// What is declared, as it was at the last look.
#[derive(Default)]
pub(super) struct Declared {
    seen: Option<Arc<Snapshot>>,
    /// Names of services by their ids.
    names: HashMap<String, String>,
}

/// What differs from the last look.
#[derive(Default)]
pub(super) struct News {
    /// Ids of tasks, with the name of their service.
    pub tasks: Vec<(Arc<str>, String)>,
    /// Names of services, those of the tasks among them.
    pub services: BTreeSet<String>,
    /// What ended that was not meant to: the service, and why.
    pub failures: Vec<(String, String)>,
}

/// What is shown of a service beside what the table says.
#[derive(Debug, Default, Serialize)]
pub(super) struct ServiceMore {
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    update: Option<UpdateObject>,
}

#[derive(Debug, Serialize)]
struct UpdateObject {
    state: &'static str,
    /// Tasks of the new template that run, and how many there are to be.
    done: u64,
    total: u64,
    since_ms: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// What is shown of a task beside what its endpoint says.
#[derive(Debug, Default, Serialize)]
pub(super) struct TaskMore {
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    made_ms: Option<u64>,
}

/// A task that takes no traffic.
#[derive(Serialize)]
struct WaitingObject<'a> {
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    name: String,
    state: &'static str,
    since_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(flatten)]
    more: TaskMore,
}

impl Declared {
    /// Takes what is declared now. The first time nothing has failed.
    pub(super) fn look(&mut self, now: Arc<Snapshot>) -> News {
        let before = self.seen.replace(now.clone());
        let is_first = before.is_none();
        let before = before.unwrap_or_default();
        let mut news = News::default();
        for (id, service) in now.services_since(&before) {
            match service {
                Some(service) => {
                    let name = swarm_name(service);
                    if let Some(old) = self.names.insert(id.to_string(), name.clone()) {
                        news.services.insert(old);
                    }
                    news.services.insert(name);
                }
                None => news.services.extend(self.names.remove(&id.to_string())),
            }
        }
        for (id, task) in now.tasks_since(&before) {
            let was = before.task(id.as_str());
            let Some(known) = task.or(was) else { continue };
            let name = known.service_name.to_string();
            if let Some(task) = task
                && !is_first
                && is_failure(task, was.map(|was| &**was))
            {
                let why = task.status.error.as_deref().unwrap_or(&task.status.message);
                news.failures
                    .push((name.clone(), format!("task {} has failed: {why}", short_name(task))));
            }
            news.services.insert(name.clone());
            news.tasks.push((id.as_str().into(), name));
        }
        news
    }

    pub(super) fn task_more(&self, id: &str) -> TaskMore {
        match self.task(id) {
            Some(task) => TaskMore {
                image: task
                    .spec
                    .container_spec
                    .as_ref()
                    .and_then(|spec| spec.image.as_deref())
                    .map(plain_image),
                made_ms: Some(ms(task.meta.created_at)),
            },
            None => TaskMore::default(),
        }
    }

    /// What is shown of a task that is no endpoint; `None`: nothing.
    pub(super) fn waiting(&self, id: &str) -> Option<(Key, Json)> {
        let task = self.task(id)?;
        let state = waiting_state(task)?;
        let object = WaitingObject {
            service: &task.service_name,
            node: task.node.as_ref().map(|node| node.as_str()),
            name: short_name(task),
            state,
            since_ms: ms(task.status.at),
            why: task
                .status
                .error
                .as_deref()
                .or(Some(&task.status.message))
                .filter(|why| !why.is_empty()),
            more: self.task_more(id),
        };
        Some((format!("task/{id}").into(), json(&object)))
    }

    /// What is shown of a service beside what the table says; `None`: nothing is declared of it.
    pub(super) fn service_more(&self, name: &str) -> Option<ServiceMore> {
        let seen = self.seen.as_ref()?;
        let service = seen.service_named(name)?;
        let live = || seen.tasks_of_service(service.id.as_str()).filter(|task| task.is_live());
        let n_live = live().count() as u64;
        let container = service
            .spec
            .task_template
            .as_ref()
            .and_then(|template| template.container_spec.as_ref());
        Some(ServiceMore {
            wanted: match service.mode() {
                Mode::Replicated { replicas } => Some(replicas),
                Mode::Global => Some(n_live),
                Mode::ReplicatedJob { total_completions, .. } => Some(total_completions),
                Mode::GlobalJob => None,
            },
            image: container.and_then(|spec| spec.image.as_deref()).map(plain_image),
            update: service.update.as_ref().map(|update| UpdateObject {
                state: update.state.as_str(),
                done: live()
                    .filter(|task| task.template == service.template && task.is_serving())
                    .count() as u64,
                total: n_live.max(update.n_slots),
                since_ms: ms(update.completed_at.unwrap_or(update.started_at)),
                message: update.message.clone(),
            }),
        })
    }

    /// How many tasks of a service run as they are to.
    pub(super) fn n_running(&self, name: &str) -> usize {
        let tasks = self.seen.as_ref().and_then(|seen| {
            let service = seen.service_named(name)?;
            Some(seen.tasks_of_service(service.id.as_str()))
        });
        tasks.into_iter().flatten().filter(|task| task.is_serving()).count()
    }

    fn task(&self, id: &str) -> Option<&Arc<Task>> {
        self.seen.as_ref()?.task(id)
    }
}

fn swarm_name(service: &swarm::Service) -> String {
    service.spec.name.clone().unwrap_or_default()
}

/// Without the digest that an image is pinned by.
fn plain_image(image: &str) -> String {
    image.split_once('@').map_or(image, |(name, _)| name).to_owned()
}

/// `web.1`; of a global service the node stands for the slot.
fn short_name(task: &Task) -> String {
    match (task.slot, &task.node) {
        (0, Some(node)) => format!("{}.{}", task.service_name, node.as_str()),
        (slot, _) => format!("{}.{slot}", task.service_name),
    }
}

/// In what state a task that is no endpoint is shown; `None`: it is over, and is not.
fn waiting_state(task: &Task) -> Option<&'static str> {
    let (is_wanted, state) = (task.is_wanted(), task.status.state);
    match state {
        state if state.is_terminal() => match (is_wanted, state) {
            (true, TaskState::Complete) if task.job.is_some() => Some("complete"),
            (true, _) => Some("failed"),
            (false, _) => None,
        },
        _ if !is_wanted => Some("stopping"),
        TaskState::Running => Some("running"),
        TaskState::New | TaskState::Pending => Some("pending"),
        _ => Some("starting"),
    }
}

/// Whether it has ended by now, and was not meant to.
fn is_failure(task: &Task, was: Option<&Task>) -> bool {
    let has_failed = |task: &Task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
    has_failed(task) && !was.is_some_and(has_failed)
}

fn ms(at: swarm::Time) -> u64 {
    at.0 / 1_000_000
}

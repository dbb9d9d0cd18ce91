//! Tasks: shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;

use crate::api::backend::Backend;
use crate::api::wire::{self, Answer, ApiError, Asked, Filters};
use crate::api::{find, view};
use crate::control::{is_up_to_date, shortcomings};
use crate::model::swarm::{Id, Task, TaskState};
use crate::store::Snapshot;

pub(in crate::api) fn list(backend: &Backend, asked: &Asked) -> Result<Answer, ApiError> {
    let filters = Filters::parse(asked.query("filters"))?;
    let snapshot = backend.store.snapshot();
    find::swarm(&snapshot)?;
    let known = [
        "id",
        "name",
        "label",
        "service",
        "node",
        "desired-state",
        "runtime",
        "_up-to-date",
    ];
    let filters = filters.only(&known)?;
    let mut services = BTreeSet::new();
    for text in filters.values("service") {
        services.insert(find::service(&snapshot, text)?.id.clone());
    }
    let mut nodes: BTreeSet<Id> = BTreeSet::new();
    for text in filters.values("node") {
        nodes.insert(find::node(&snapshot, text)?.id.clone());
    }
    // An empty word is none.
    let states: Vec<&String> = filters
        .values("desired-state")
        .iter()
        .filter(|state| !state.is_empty())
        .collect();
    for state in &states {
        if !TaskState::ALL.iter().any(|known| is_state(state, *known)) {
            return Err(ApiError::internal(format!("Invalid desired-state filter: '{state}'")));
        }
    }
    let matches = |task: &&Arc<Task>| {
        // What is left of a service that is gone is there until it has stopped, and not a moment longer: `docker stack rm`
        // counts tasks that have ended, and would go on for ever where some vanish after it has counted others.
        let spec = match snapshot.service(task.service.as_str()) {
            Some(service) => Some(service.spec.clone()),
            None if task.has_stopped() => return false,
            None => backend.gone(&task.service),
        };
        let is_wanted_up_to_date = || is_up_to_date(&snapshot, task);
        (services.is_empty() || services.contains(&task.service))
            && (nodes.is_empty() || task.node.as_ref().is_some_and(|node| nodes.contains(node)))
            && filters.prefix("id", task.id.as_str())
            && filters.prefix("name", &task.name())
            && filters.labels("label", |key| {
                spec.as_ref()?.labels.as_ref()?.get(key).map(String::as_str)
            })
            && (states.is_empty() || states.iter().any(|state| is_state(state, task.desired)))
            && filters.any("runtime", |runtime| runtime == "container")
            && filters.any("_up-to-date", |is| {
                matches!(is.as_str(), "true" | "1") == is_wanted_up_to_date()
            })
    };
    let faults = Faults::now(backend, &snapshot);
    let shown = |task: &Arc<Task>| view::task(&snapshot, task, faults.of(task));
    let tasks: Vec<Value> = snapshot.tasks().filter(matches).map(shown).collect();
    Ok(wire::json(StatusCode::OK, &tasks))
}

fn is_state(text: &str, state: TaskState) -> bool {
    text.eq_ignore_ascii_case(state.as_str())
}

pub(in crate::api) fn inspect(backend: &Backend, id: &str) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    find::swarm(&snapshot)?;
    let task = find::task(&snapshot, id)?;
    let faults = Faults::now(backend, &snapshot);
    Ok(wire::json(
        StatusCode::OK,
        &view::task(&snapshot, &task, faults.of(&task)),
    ))
}

/// What keeps running tasks from being reached as they were declared to be.
struct Faults<'a> {
    snapshot: &'a Snapshot,
    by_service: BTreeMap<String, Vec<String>>,
    by_port: BTreeMap<u16, String>,
    /// What services asked for and were not given.
    lacking: BTreeMap<Id, Vec<String>>,
}

impl<'a> Faults<'a> {
    fn now(backend: &Backend, snapshot: &'a Snapshot) -> Faults<'a> {
        let lacking = snapshot.services().filter_map(|service| {
            let lacks = shortcomings(snapshot, service);
            (!lacks.is_empty()).then(|| (service.id.clone(), lacks))
        });
        Faults {
            snapshot,
            by_service: backend.outside.faults(),
            by_port: backend.outside.ports_not_served(),
            lacking: lacking.collect(),
        }
    }

    fn of(&self, task: &Task) -> Option<String> {
        let has_none = self.by_service.is_empty() && self.by_port.is_empty() && self.lacking.is_empty();
        if task.status.state != TaskState::Running || has_none {
            return None;
        }
        let service = self.snapshot.service(task.service.as_str())?;
        let ports = service.endpoint.ports.iter().filter_map(|port| {
            let number = u16::try_from(port.published_port?).ok()?;
            let error = self.by_port.get(&number)?;
            Some(format!("port {number}: {error}"))
        });
        let faults = self.by_service.get(service.name()).into_iter().flatten().cloned();
        let lacks = self.lacking.get(&task.service).into_iter().flatten().cloned();
        let all: Vec<String> = ports.chain(faults).chain(lacks).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

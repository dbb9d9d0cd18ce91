//! The tasks of a service by slot, and what is true of a slot.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::constraint::Constraint;
use crate::model::swarm::{Id, Node, Service, Task, TaskSpec};
use crate::store::Snapshot;

/// A slot: a number for a replicated service or job, a node for a global one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    Number(u64),
    Node(Id),
}

impl Slot {
    pub(super) fn of(task: &Task) -> Slot {
        // Slots of a job are counted from 0.
        let is_global = task.job.map_or(task.slot == 0, |job| job.is_global);
        match &task.node {
            Some(node) if is_global => Slot::Node(node.clone()),
            _ => Slot::Number(task.slot),
        }
    }
}

/// The tasks of one slot, oldest first.
pub(super) type Tasks<'a> = Vec<&'a Arc<Task>>;

/// The tasks of a service that are not to be deleted, by slot.
pub(super) fn of_service<'a>(snapshot: &'a Snapshot, service: &str) -> BTreeMap<Slot, Tasks<'a>> {
    let mut slots: BTreeMap<Slot, Tasks<'a>> = BTreeMap::new();
    for task in snapshot.tasks_of_service(service) {
        if task.desired < crate::model::swarm::TaskState::Remove {
            slots.entry(Slot::of(task)).or_default().push(task);
        }
    }
    for tasks in slots.values_mut() {
        tasks.sort_by_key(|task| (task.meta.created_at, task.id.clone()));
    }
    slots
}

/// The task is of another template than its service's, of an earlier run of a job, or stands where it may not.
pub(super) fn is_dirty(snapshot: &Snapshot, service: &Service, task: &Task) -> bool {
    if let (Some(status), Some(run)) = (&service.job, &task.job) {
        return status.iteration != run.iteration;
    }
    task.template != service.template || !may_stay(snapshot, service, task)
}

/// The node of a task is one that its service may be placed on.
fn may_stay(snapshot: &Snapshot, service: &Service, task: &Task) -> bool {
    let Some(template) = service.spec.task_template.as_ref() else {
        return true;
    };
    // Made by the same words: the scheduler has seen to it, and the enforcer does.
    if template.placement == task.spec.placement {
        return true;
    }
    match task.node.as_ref().and_then(|node| snapshot.node(node.as_str())) {
        Some(node) => meets(template, node),
        // It waits for a node by the old words.
        None => false,
    }
}

/// A node meets the constraints of a spec. One that cannot be read is never met.
pub(super) fn meets(spec: &TaskSpec, node: &Node) -> bool {
    let constraints = spec
        .placement
        .as_ref()
        .and_then(|placement| placement.constraints.as_ref());
    let mut constraints = constraints.into_iter().flatten();
    constraints.all(|text| {
        text.parse::<Constraint>()
            .is_ok_and(|constraint| constraint.is_met_by(node))
    })
}

//! Task history: each slot keeps so many tasks, the living one among them; the oldest that have ended go first. However much
//! was asked to be kept, there is a bound.

use super::bounds::Wishes;
use super::draft::Draft;
use super::slots;
use super::{Context, Plan};
use crate::model::swarm::{Cause, Service, Task, UpdateState, restart_policy};

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    let Some(swarm) = context.snapshot.swarm() else {
        return draft.into_plan();
    };
    let asked = swarm.task_history();
    let wishes = Wishes::of(context.snapshot);
    for service in context.snapshot.services() {
        let attempts = restart_policy(&service.task_spec()).max_attempts;
        let limit = match usize::try_from(attempts) {
            // What the restart policy counts by must not be forgotten.
            Ok(attempts @ 1..) => Some(attempts.saturating_add(1)),
            _ => asked,
        };
        let limit = wishes.history(limit);
        for tasks in slots::of_service(context.snapshot, service.id.as_str()).into_values() {
            if draft.is_full() {
                return draft.into_plan();
            }
            let n_over = tasks.len().saturating_sub(limit);
            // By the last one it is known that the slot has had one, and what became of it.
            let older = tasks.split_last().map_or(&[][..], |(_, older)| older);
            let ended = older
                .iter()
                .filter(|task| is_over(task) && task.has_stopped() && !counts(service, task));
            ended.take(n_over).for_each(|task| draft.remove_task(task));
        }
    }
    draft.into_plan()
}

/// Nothing is wished of it any more. A job's task that has completed is as it was wished to be, but others of its slot have
/// come after it.
fn is_over(task: &Task) -> bool {
    !task.is_wanted() || task.job.is_some()
}

/// An update that goes on still counts by it.
fn counts(service: &Service, task: &Task) -> bool {
    let going_on = service
        .update
        .as_ref()
        .filter(|update| matches!(update.state, UpdateState::Updating | UpdateState::RollbackStarted));
    going_on.is_some_and(|update| task.cause == Cause::Update && task.meta.created_at >= update.started_at)
}

//! Replaces tasks by those of a newer spec, a few slots at a time, watches whether the new ones last, and stops, goes on or
//! goes back if they do not. Everything is read off the tasks and the status, so that an update goes on after a crash where
//! it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::draft::Draft;
use super::orchestrator::{STOP_PATIENCE, new_task};
use super::slots::{self, Slot, Tasks};
use super::{Context, Plan};
use crate::model::swarm::{
    Cause, Hold, Object, OnFailure, Order, Service, Task, TaskState, Time, UpdateConfig, UpdateState, UpdateStatus,
    rollback_config, update_config,
};
use crate::store::THIS_REVISION;

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    for service in context.snapshot.services() {
        if service.update.is_none() && !may_be_dirty(context, service) {
            continue;
        }
        let slots = slots::of_service(context.snapshot, service.id.as_str());
        Update::of(context, service, slots).go_on(context, &mut draft);
    }
    draft.into_plan()
}

/// Some task is not as the service declares: most services have none, and cost no more than this.
fn may_be_dirty(context: &Context<'_>, service: &Service) -> bool {
    let mut tasks = context.snapshot.tasks_of_service(service.id.as_str());
    tasks.any(|task| slots::is_dirty(context.snapshot, service, task))
}

struct Update<'a> {
    service: &'a Arc<Service>,
    config: UpdateConfig,
    slots: BTreeMap<Slot, Tasks<'a>>,
    /// Those whose tasks are to be replaced.
    dirty: Vec<Slot>,
}

impl<'a> Update<'a> {
    fn of(context: &Context<'a>, service: &'a Arc<Service>, slots: BTreeMap<Slot, Tasks<'a>>) -> Update<'a> {
        let is_rollback = service.update.as_ref().is_some_and(|update| update.state.is_rollback());
        let is_dirty = |tasks: &Tasks<'_>| {
            let mut wanted = tasks.iter().filter(|task| task.is_wanted()).peekable();
            match wanted.peek() {
                Some(_) => wanted.any(|task| slots::is_dirty(context.snapshot, service, task)),
                // Its last task ended for good; a newer one may do better.
                None => tasks.last().is_some_and(|last| last.template != service.template),
            }
        };
        let mut dirty: Vec<Slot> = slots
            .iter()
            .filter(|(_, tasks)| is_dirty(tasks))
            .map(|(slot, _)| slot.clone())
            .collect();
        // What does not serve anyway comes first.
        dirty.sort_by_key(|slot| {
            slots
                .get(slot)
                .is_some_and(|tasks| tasks.iter().any(|task| task.is_serving()))
        });
        Update {
            service,
            config: match is_rollback {
                true => rollback_config(&service.spec),
                false => update_config(&service.spec),
            },
            slots,
            dirty,
        }
    }

    fn go_on(&self, context: &mut Context<'_>, draft: &mut Draft) {
        let now = context.now;
        match &self.service.update {
            Some(update) => match update.state {
                UpdateState::Paused | UpdateState::RollbackPaused => {}
                UpdateState::Updating | UpdateState::RollbackStarted
                    if update.n_slots == 0 && !self.dirty.is_empty() =>
                {
                    self.set(draft, |update| update.n_slots = self.dirty.len() as u64);
                }
                UpdateState::Updating | UpdateState::RollbackStarted => self.replace(context, draft, update),
                UpdateState::Completed | UpdateState::RollbackCompleted if self.dirty.is_empty() => {}
                UpdateState::Completed | UpdateState::RollbackCompleted => self.begin(draft, now),
            },
            None if self.dirty.is_empty() => {}
            None => self.begin(draft, now),
        }
    }

    fn begin(&self, draft: &mut Draft, now: Time) {
        let n_slots = self.dirty.len() as u64;
        draft.change_service(self.service, |service| {
            service.update = Some(UpdateStatus {
                state: UpdateState::Updating,
                started_at: now,
                completed_at: None,
                message: "update in progress".to_owned(),
                n_slots,
            });
        });
    }

    fn set(&self, draft: &mut Draft, change: impl FnOnce(&mut UpdateStatus)) {
        draft.change_service(self.service, |service| {
            if let Some(update) = &mut service.update {
                change(update);
            }
        });
    }

    /// The tasks that this update made.
    fn made<'b>(&'b self, update: &'b UpdateStatus) -> impl Iterator<Item = &'b Arc<Task>> {
        let is_made = |task: &Task| {
            task.cause == Cause::Update
                && task.template == self.service.template
                && task.meta.created_at >= update.started_at
        };
        let tasks = self.slots.values().flatten().copied();
        tasks.filter(move |task| is_made(task))
    }

    fn replace(&self, context: &mut Context<'_>, draft: &mut Draft, update: &UpdateStatus) {
        let now = context.now;
        if self.config.on_failure != OnFailure::Continue && self.has_failed(draft, update, now) {
            return;
        }
        let is_clean = |task: &Arc<Task>| !slots::is_dirty(context.snapshot, self.service, task);
        // New ones that run let the old ones of their slot go; so does one that failed where that is borne.
        for tasks in self.slots.values() {
            let is_over =
                |task: &Arc<Task>| task.is_serving() || task.cause == Cause::Update && done_at(task).is_some();
            if tasks.iter().any(|task| is_clean(task) && is_over(task)) {
                let old = tasks.iter().filter(|task| task.is_wanted() && !is_clean(task));
                old.for_each(|task| draft.wish(task, TaskState::Shutdown));
            }
        }
        let mut n_busy = 0;
        let mut last_done: Option<Time> = None;
        for task in self.made(update) {
            match done_at(task) {
                Some(at) => {
                    last_done = last_done.max(Some(at));
                    if now < at + self.config.delay {
                        n_busy += 1;
                        draft.wake_at(at + self.config.delay);
                    }
                }
                None if task.is_wanted() => n_busy += 1,
                // Scaled down meanwhile.
                None => {}
            }
        }
        if n_busy == 0 && self.dirty.is_empty() {
            self.end(draft, update, last_done, now);
            return;
        }
        // One that is new already needs no other; one whose task has just ended is the orchestrator's first.
        let is_open = |slot: &&Slot| {
            self.slots.get(slot).is_some_and(|tasks| {
                let is_done =
                    |task: &&Arc<Task>| task.is_wanted() && (task.status.state.is_terminal() || is_clean(task));
                !tasks.iter().any(is_done)
            })
        };
        let waiting = self.dirty.iter().filter(is_open);
        let n_free = match self.config.parallelism {
            0 => usize::MAX,
            n => usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(n_busy),
        };
        for slot in waiting.take(n_free).cloned().collect::<Vec<_>>() {
            self.replace_slot(context, draft, &slot);
        }
    }

    fn replace_slot(&self, context: &mut Context<'_>, draft: &mut Draft, slot: &Slot) {
        let Some(tasks) = self.slots.get(slot) else { return };
        let is_clean = |task: &Arc<Task>| !slots::is_dirty(context.snapshot, self.service, task);
        let old: Vec<&Arc<Task>> = tasks
            .iter()
            .filter(|task| task.is_wanted() && !is_clean(task))
            .copied()
            .collect();
        let hold = match self.config.order {
            Order::StopFirst => {
                old.iter().for_each(|task| draft.wish(task, TaskState::Shutdown));
                let stopping = tasks.iter().filter(|task| !task.has_stopped());
                Some(Hold {
                    until: context.now,
                    stopped: stopping.map(|task| task.id.clone()).collect(),
                    patience: context.now + STOP_PATIENCE,
                })
            }
            Order::StartFirst => {
                // One that serves is enough to wait for its successor.
                let stays = old
                    .iter()
                    .rev()
                    .find(|task| task.is_serving())
                    .map(|task| task.id.clone());
                let others = old.iter().filter(|task| Some(&task.id) != stays.as_ref());
                others.for_each(|task| draft.wish(task, TaskState::Shutdown));
                None
            }
        };
        let task = new_task(context, self.service, slot, Cause::Update, hold);
        draft.put(Object::Task(task));
    }

    /// Whether too many new tasks ended; what is to be done about that is done.
    fn has_failed(&self, draft: &mut Draft, update: &UpdateStatus, now: Time) -> bool {
        let failed: Vec<&Arc<Task>> = self
            .made(update)
            .filter(|task| is_failure(task, &self.config))
            .collect();
        let Some(last) = failed.iter().max_by_key(|task| task.status.at) else {
            return false;
        };
        let ratio = failed.len() as f64 / update.n_slots.max(1) as f64;
        if ratio <= self.config.max_failure_ratio {
            return false;
        }
        let is_rollback = update.state.is_rollback();
        let why = format!("due to failure or early termination of task {}", last.id);
        match (self.config.on_failure, &self.service.previous) {
            (OnFailure::Rollback, Some(previous)) if !is_rollback => {
                let previous = previous.clone();
                draft.change_service(self.service, |service| {
                    service.spec = previous.spec;
                    service.template = previous.template;
                    service.registry_auth = previous.registry_auth;
                    service.previous = None;
                    service.spec_version = THIS_REVISION;
                    service.meta.version = THIS_REVISION;
                    service.update = Some(UpdateStatus {
                        state: UpdateState::RollbackStarted,
                        started_at: now,
                        completed_at: None,
                        message: format!("update rolled back {why}"),
                        n_slots: 0,
                    });
                });
            }
            _ => self.set(draft, |update| {
                (update.state, update.message) = match is_rollback {
                    true => (UpdateState::RollbackPaused, format!("rollback paused {why}")),
                    false => (UpdateState::Paused, format!("update paused {why}")),
                };
            }),
        }
        true
    }

    /// All slots are replaced: it is over once the last new task was watched for long enough.
    fn end(&self, draft: &mut Draft, update: &UpdateStatus, last_done: Option<Time>, now: Time) {
        let ends_at = last_done.map_or(now, |at| at + self.config.monitor.max(self.config.delay));
        if now < ends_at {
            draft.wake_at(ends_at);
            return;
        }
        let is_rollback = update.state.is_rollback();
        self.set(draft, |update| {
            update.completed_at = Some(now);
            (update.state, update.message) = match is_rollback {
                true => (UpdateState::RollbackCompleted, "rollback completed".to_owned()),
                false => (UpdateState::Completed, "update completed".to_owned()),
            };
        });
    }
}

/// When a new task first ran, or ended without.
fn done_at(task: &Task) -> Option<Time> {
    let ended = task.status.state.is_terminal().then_some(task.status.at);
    task.status.ran_at.or(ended)
}

/// It ended by itself, before it ran or soon after.
fn is_failure(task: &Task, config: &UpdateConfig) -> bool {
    let by_itself = matches!(
        task.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected
    );
    let is_early = task
        .status
        .ran_at
        .is_none_or(|ran| task.status.at.since(ran) <= config.monitor);
    by_itself && is_early
}

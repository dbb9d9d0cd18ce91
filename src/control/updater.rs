//! Replaces tasks by those of a newer spec, a few slots at a time, watches whether the new ones last, and stops, goes on or
//! goes back if they do not. Everything is read off the tasks and the status, so that an update goes on after a crash where
//! it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::draft::Draft;
use super::orchestrator::{STOP_PATIENCE, new_task, waits_until};
use super::scheduler;
use super::slots::{self, Slot, Tasks};
use super::{Context, Plan};
use crate::model::swarm::{
    Cause, Hold, Object, OnFailure, Order, Service, Task, TaskState, Time, UpdateConfig, UpdateState, UpdateStatus,
    rollback_config, update_config,
};
use crate::store::THIS_REVISION;

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    for service in context.snapshot.services().filter(|service| !service.is_job()) {
        if draft.is_full() {
            break;
        }
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
        let is_dirty = |slot: &Slot, tasks: &Tasks<'_>| {
            // What runs on a node that takes no tasks is left as it is until it does again.
            if let Slot::Node(node) = slot
                && !context
                    .snapshot
                    .node(node.as_str())
                    .is_some_and(|node| node.is_available())
            {
                return false;
            }
            let mut wanted = tasks.iter().filter(|task| task.is_wanted()).peekable();
            match wanted.peek() {
                Some(_) => wanted.any(|task| slots::is_dirty(context.snapshot, service, task)),
                // Its last task ended for good; a newer one may do better.
                None => tasks.last().is_some_and(|last| last.template != service.template),
            }
        };
        let mut dirty: Vec<Slot> = slots
            .iter()
            .filter(|(slot, tasks)| is_dirty(slot, tasks))
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
        self.let_old_go(context, draft);
        match &self.service.update {
            Some(update) => match update.state {
                UpdateState::Paused | UpdateState::RollbackPaused => self.rest(context, draft),
                UpdateState::Updating | UpdateState::RollbackStarted
                    if update.n_slots == 0 && !self.dirty.is_empty() =>
                {
                    self.set(draft, |update| update.n_slots = self.dirty.len() as u64);
                }
                UpdateState::Updating | UpdateState::RollbackStarted => {
                    self.make_way(context, draft);
                    self.replace(context, draft, update);
                }
                // What failed beside an old one that was kept is tried again as the restart policy has it.
                UpdateState::Completed | UpdateState::RollbackCompleted
                    if self.dirty.iter().all(|slot| self.has_clean(context, slot)) => {}
                UpdateState::Completed | UpdateState::RollbackCompleted => self.begin(draft, now),
            },
            None if self.dirty.is_empty() => {}
            None => self.begin(draft, now),
        }
    }

    fn is_clean(&self, context: &Context<'_>, task: &Task) -> bool {
        !slots::is_dirty(context.snapshot, self.service, task)
    }

    /// New ones that have lasted let the old ones of their slot go. Until then the old one stays, in case the new one fails: the
    /// next slots do not wait for that.
    fn let_old_go(&self, context: &Context<'_>, draft: &mut Draft) {
        for tasks in self.slots.values() {
            match self.lasts_at(context, tasks) {
                Some(at) if at <= context.now => {
                    let old = tasks
                        .iter()
                        .filter(|task| task.is_wanted() && !self.is_clean(context, task));
                    old.for_each(|task| draft.wish(task, TaskState::Shutdown));
                }
                Some(at) if self.has_old(context, tasks) => draft.wake_at(at),
                Some(_) | None => {}
            }
        }
    }

    fn has_old(&self, context: &Context<'_>, tasks: &Tasks<'_>) -> bool {
        tasks.iter().any(|task| task.is_live() && !self.is_clean(context, task))
    }

    /// When a new task that runs will have done so for as long as an update watches. A clock that was set back is no reason to
    /// wait.
    fn lasts_at(&self, context: &Context<'_>, tasks: &Tasks<'_>) -> Option<Time> {
        let new = tasks
            .iter()
            .filter(|task| task.is_serving() && self.is_clean(context, task));
        let at = new.map(|task| match task.status.ran_at {
            Some(ran_at) if ran_at <= context.now => ran_at + self.config.monitor,
            Some(_) | None => context.now,
        });
        at.min()
    }

    /// A new one that is to start first and cannot, for a place or a port that the old one of its slot holds, would wait for
    /// ever: the old one stops first, and that is said. Not while one of another slot is about to make room.
    fn make_way(&self, context: &Context<'_>, draft: &mut Draft) {
        let is_about_to = |tasks: &Tasks<'_>| self.has_old(context, tasks) && self.lasts_at(context, tasks).is_some();
        if self.slots.values().any(is_about_to) {
            return;
        }
        for tasks in self.slots.values() {
            let is_new = |task: &&&Arc<Task>| {
                task.is_live() && task.status.state < TaskState::Assigned && self.is_clean(context, task)
            };
            let Some(new) = tasks.iter().find(is_new) else { continue };
            let is_in_the_way = |task: &&&Arc<Task>| {
                let is_old = task.is_wanted() && !self.is_clean(context, task);
                is_old && scheduler::is_in_the_way(task, self.service, &new.status.unfit)
            };
            let said = new.status.error.as_deref().unwrap_or_default();
            for old in tasks.iter().filter(is_in_the_way) {
                draft.wish(old, TaskState::Shutdown);
                self.set(draft, |update| {
                    update.message =
                        format!("update in progress: tasks stop first, as they cannot start first: {said}");
                });
            }
        }
    }

    /// Paused: where an old one serves, none that failed is to be followed.
    fn rest(&self, context: &Context<'_>, draft: &mut Draft) {
        let is_clean = |task: &Task| self.is_clean(context, task);
        let is_next =
            |task: &Task| task.is_wanted() && !task.is_serving() && task.cause == Cause::Restart && is_clean(task);
        for tasks in self.slots.values() {
            if tasks.iter().any(|task| task.is_serving() && !is_clean(task)) {
                let next = tasks.iter().filter(|task| is_next(task));
                next.for_each(|task| draft.wish(task, TaskState::Shutdown));
            }
        }
    }

    fn has_clean(&self, context: &Context<'_>, slot: &Slot) -> bool {
        let mut tasks = self.slots.get(slot).into_iter().flatten();
        tasks.any(|task| self.is_clean(context, task))
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
        let tasks = self.slots.values().flatten().copied();
        tasks.filter(|task| self.is_made(update, task))
    }

    fn is_made(&self, update: &UpdateStatus, task: &Task) -> bool {
        self.is_new(task) && task.meta.created_at >= update.started_at
    }

    /// Made by this update, or by one that this one has taken the place of.
    fn is_new(&self, task: &Task) -> bool {
        task.cause == Cause::Update && task.template == self.service.template
    }

    fn replace(&self, context: &mut Context<'_>, draft: &mut Draft, update: &UpdateStatus) {
        let now = context.now;
        if self.config.on_failure != OnFailure::Continue && self.has_failed(draft, update, now) {
            return;
        }
        let mut n_busy = 0;
        // Not only those that it has made itself: what the one before it took down is not up yet.
        for task in self.slots.values().flatten().filter(|task| self.is_new(task)) {
            match done_at(task) {
                Some(at) if now < at + self.config.delay => {
                    n_busy += 1;
                    draft.wake_at(at + self.config.delay);
                }
                None if task.is_wanted() => n_busy += 1,
                // Long enough ago, or scaled down meanwhile.
                Some(_) | None => {}
            }
        }
        // Where the new one failed beside the old one, which stays.
        let is_tried = |slot: &Slot| {
            let mut tasks = self.slots.get(slot).into_iter().flatten();
            tasks.any(|task| self.is_made(update, task) && done_at(task).is_some())
        };
        if n_busy == 0 && self.dirty.iter().all(is_tried) {
            let last_done = self.made(update).filter_map(|task| done_at(task)).max();
            self.end(draft, update, last_done, now);
            return;
        }
        // One that is new already needs no other; one whose task has just ended is the orchestrator's first, unless that
        // waits.
        let is_open = |slot: &&Slot| {
            self.slots.get(slot).is_some_and(|tasks| {
                let is_followed = waits_until(self.service, tasks, now).is_none();
                let is_done = |task: &&Arc<Task>| {
                    let has_ended = task.status.state.is_terminal() && is_followed;
                    task.is_wanted() && (has_ended || self.is_clean(context, task))
                };
                !tasks.iter().any(is_done) && !is_tried(slot)
            })
        };
        let waiting = self.dirty.iter().filter(is_open);
        let n_free = match self.config.parallelism {
            0 => usize::MAX,
            n => usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(n_busy),
        };
        for slot in waiting.take(n_free).cloned().collect::<Vec<_>>() {
            if draft.is_full() {
                return;
            }
            self.replace_slot(context, draft, &slot);
        }
    }

    fn replace_slot(&self, context: &mut Context<'_>, draft: &mut Draft, slot: &Slot) {
        let Some(tasks) = self.slots.get(slot) else { return };
        let old: Vec<&Arc<Task>> = tasks
            .iter()
            .filter(|task| task.is_wanted() && !self.is_clean(context, task))
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
                // One that serves is enough to wait for its successor: of two the one that has lasted for longer.
                let stays = old.iter().find(|task| task.is_serving()).map(|task| task.id.clone());
                let others = old.iter().filter(|task| Some(&task.id) != stays.as_ref());
                others.for_each(|task| draft.wish(task, TaskState::Shutdown));
                None
            }
        };
        let task = new_task(context, draft, self.service, slot, Cause::Update, hold);
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
        let previous = match self.config.on_failure {
            OnFailure::Rollback if !is_rollback => self.service.rolled_back(now, THIS_REVISION),
            _ => None,
        };
        match previous {
            Some(previous) => draft.change_service(self.service, |service| {
                *service = Service {
                    // Nothing to return to once more.
                    previous: None,
                    ..previous
                };
                if let Some(update) = &mut service.update {
                    update.message = format!("update rolled back {why}");
                }
            }),
            None => self.set(draft, |update| {
                (update.state, update.message) = match is_rollback {
                    true if self.config.on_failure == OnFailure::Rollback => {
                        (UpdateState::RollbackPaused, format!("rollback paused {why}"))
                    }
                    true => (UpdateState::RollbackPaused, format!("update paused {why}")),
                    false => (UpdateState::Paused, format!("update paused {why}")),
                };
            }),
        }
        true
    }

    /// All slots are replaced: it is over once the last new task was watched for long enough.
    fn end(&self, draft: &mut Draft, update: &UpdateStatus, last_done: Option<Time>, now: Time) {
        // The delay follows the last slot, too.
        let watched = match self.config.delay >= self.config.monitor {
            true => self.config.delay + A_MOMENT,
            false => self.config.monitor,
        };
        let ends_at = last_done.map_or(now, |at| at + self.config.delay + watched);
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

const A_MOMENT: Duration = Duration::from_secs(1);

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

#[cfg(test)]
mod tests {
    use bollard_stubs::models::NodeSpecAvailabilityEnum;
    use serde_json::{Value, json};

    use super::super::testing::{World, replicated, seconds, spec};
    use super::*;
    use crate::model::swarm::Id;

    /// A converged service, its update configured by `config`.
    fn converged(image: &str, replicas: u64, config: Value) -> (World, Id) {
        let mut world = World::new(1, 1);
        let mut value = replicated("web", image, replicas);
        value["UpdateConfig"] = config;
        let id = world.create(spec(value));
        world.run_for(seconds(10));
        (world, id)
    }

    fn message(world: &World, id: &Id) -> String {
        let update = world.service(id).update.as_ref();
        update.map_or_else(String::new, |update| update.message.clone())
    }

    /// Lets time go by until `is_true`, and looks at the world after each event.
    fn run_until(world: &mut World, mut is_true: impl FnMut(&World) -> bool) {
        let until = world.now + seconds(600);
        while !is_true(world) {
            assert!(world.now < until, "it never comes");
            world.advance(until);
        }
    }

    #[test]
    fn replaces_one_after_the_other_with_the_delay_between() {
        let config = json!({ "Parallelism": 1, "Delay": 10_000_000_000u64 });
        let (mut world, id) = converged("healthy:1", 3, config);
        assert_eq!(world.update_state(&id), None, "a new service has no update");
        world.image(&id, "healthy:2");
        let began = world.now;
        run_until(&mut world, |world| {
            assert!(world.serving(&id).len() >= 2);
            world.update_state(&id) == Some(UpdateState::Completed)
        });
        assert_eq!(message(&world, &id), "update completed");
        // The delay follows the last slot too, and then its task is watched for longer than that.
        let took = world.now.since(began);
        assert!(took >= seconds(41) && took < seconds(45), "{took:?}");
        let ran: Vec<Time> = world
            .serving(&id)
            .iter()
            .filter_map(|task| task.status.ran_at)
            .collect();
        assert!(ran.windows(2).all(|ran| ran[1].since(ran[0]) >= seconds(10)), "{ran:?}");
    }

    #[test]
    fn what_is_no_new_template_is_no_update() {
        let (mut world, id) = converged("healthy", 2, Value::Null);
        let before = world.tasks(&id);
        world.update(&id, |spec| spec["Labels"] = json!({ "a": "b" }));
        world.scale(&id, 3);
        world.run_for(seconds(10));
        assert_eq!(world.update_state(&id), None);
        assert_eq!(world.tasks(&id)[..2], before);
        assert_eq!(world.serving(&id).len(), 3);
    }

    #[test]
    fn a_change_that_comes_between_takes_down_no_more() {
        let (mut world, id) = converged("healthy:1", 4, json!({ "Parallelism": 1 }));
        world.longest_step = seconds(30);
        world.image(&id, "healthy:2");
        for n in 0..10 {
            world.run_for(seconds(1));
            world.update(&id, |spec| spec["Labels"] = json!({ "n": n.to_string() }));
            assert!(world.serving(&id).len() >= 3, "{n}");
        }
        run_until(&mut world, |world| {
            assert!(world.serving(&id).len() >= 3);
            world.update_state(&id) == Some(UpdateState::Completed)
        });
    }

    #[test]
    fn the_next_update_begins_with_what_the_last_has_left_down() {
        let (mut world, id) = converged("healthy:1", 3, json!({ "Parallelism": 1 }));
        world.longest_stop = seconds(1);
        world.image(&id, "rejected");
        world.run_for(seconds(20));
        assert_eq!(world.update_state(&id), Some(UpdateState::Paused));
        assert_eq!(world.serving(&id).len(), 2);
        world.image(&id, "healthy:2");
        run_until(&mut world, |world| {
            assert!(world.serving(&id).len() >= 2);
            world.update_state(&id) == Some(UpdateState::Completed)
        });
    }

    #[test]
    fn starting_first_an_image_that_fails_takes_nothing_away() {
        for action in ["continue", "pause"] {
            for condition in ["any", "none"] {
                let config = json!({ "Parallelism": 2, "Order": "start-first", "FailureAction": action });
                let (mut world, id) = converged("healthy:1", 3, config);
                world.update(&id, |spec| {
                    spec["TaskTemplate"]["RestartPolicy"] = json!({ "Condition": condition });
                    spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("fails:2");
                });
                let until = world.now + seconds(120);
                while world.now < until {
                    world.advance(until);
                    assert_eq!(world.serving(&id).len(), 3, "{action} {condition}");
                }
                let state = if action == "pause" {
                    UpdateState::Paused
                } else {
                    UpdateState::Completed
                };
                assert_eq!(world.update_state(&id), Some(state));
                assert!(
                    world.tasks(&id).len() < 30,
                    "it is tried again only as the restart policy has it"
                );
            }
        }
    }

    #[test]
    fn starting_first_what_ends_while_it_is_watched_takes_nothing_away() {
        for (image, condition) in [("crashes:2", "any"), ("exits:2", "any"), ("exits:2", "on-failure")] {
            for action in ["continue", "pause", "rollback"] {
                // Longer than either runs.
                let config = json!({ "Order": "start-first", "FailureAction": action, "Monitor": 9_000_000_000u64 });
                let (mut world, id) = converged("healthy:1", 3, config);
                let old: Vec<Id> = world.serving(&id).iter().map(|task| task.id.clone()).collect();
                world.update(&id, |spec| {
                    spec["TaskTemplate"]["RestartPolicy"] = json!({ "Condition": condition });
                    spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(image);
                });
                let until = world.now + seconds(200);
                while world.now < until {
                    world.advance(until);
                    let serving = world.serving(&id);
                    let stays = |id: &Id| serving.iter().any(|task| task.id == *id);
                    assert!(old.iter().all(stays), "{image} {condition} {action}");
                }
                let state = match action {
                    "continue" => UpdateState::Completed,
                    "pause" => UpdateState::Paused,
                    _ => UpdateState::RollbackCompleted,
                };
                assert_eq!(world.update_state(&id), Some(state), "{image} {condition} {action}");
            }
        }
    }

    #[test]
    fn a_rollback_that_starts_first_keeps_what_runs_until_the_restored_has_lasted() {
        let mut world = World::new(1, 1);
        let mut value = replicated("web", "crashes:1", 2);
        value["TaskTemplate"]["RestartPolicy"] = json!({ "Condition": "any", "Delay": 1_000_000_000 });
        value["RollbackConfig"] = json!({ "Order": "start-first", "Monitor": 9_000_000_000u64 });
        let id = world.create(spec(value));
        world.image(&id, "healthy:2");
        world.run_for(seconds(120));
        assert_eq!(world.serving(&id).iter().filter(|task| task.template == 2).count(), 2);
        assert!(world.roll_back(&id));
        let until = world.now + seconds(120);
        while world.now < until {
            world.advance(until);
            assert_eq!(world.serving(&id).iter().filter(|task| task.template == 2).count(), 2);
        }
        assert_eq!(world.update_state(&id), Some(UpdateState::RollbackPaused));
    }

    #[test]
    fn starting_first_no_slot_waits_for_another_to_have_lasted() {
        let n = 20;
        let config = json!({ "Parallelism": 1, "Order": "start-first" });
        let (mut world, id) = converged("healthy:1", n, config);
        world.image(&id, "healthy:2");
        let (began, mut most) = (world.now, 0);
        run_until(&mut world, |world| {
            let serving = world.serving(&id);
            let lasts = |task: &&Arc<Task>| task.template == 2 && world.now >= task.status.ran_at.unwrap() + seconds(5);
            let n_old = serving.iter().filter(|task| task.template == 1).count();
            let n_lasting = serving.iter().filter(lasts).count();
            assert!(n_old + n_lasting >= 20, "one goes when the other has lasted");
            most = most.max(serving.len());
            world.update_state(&id) == Some(UpdateState::Completed)
        });
        // Starting them takes a moment each, and the last is watched for 5 s: as long as it took without waiting for others.
        assert!(
            world.now.since(began) < seconds(n / 2 + 6),
            "{:?}",
            world.now.since(began)
        );
        assert!(world.serving(&id).iter().all(|task| task.template == 2) && most > 20);
    }

    #[test]
    fn of_two_that_run_in_a_slot_the_next_update_keeps_the_one_that_has_lasted() {
        let (mut world, id) = converged("healthy:1", 1, json!({ "Order": "start-first" }));
        let old = world.serving(&id)[0].id.clone();
        world.image(&id, "healthy:2");
        run_until(&mut world, |world| world.serving(&id).len() == 2);
        world.image(&id, "fails:3");
        world.run_for(seconds(60));
        let serving: Vec<Id> = world.serving(&id).iter().map(|task| task.id.clone()).collect();
        assert_eq!(serving, [old]);
    }

    #[test]
    fn what_cannot_start_first_for_the_sake_of_the_old_one_stops_that_first_and_says_so() {
        for (what, said) in [
            ("port", "host-mode port already in use"),
            ("place", "max replicas per node limit exceed"),
        ] {
            let mut world = World::new(2, 1);
            let mut value = replicated("web", "healthy:1", 2);
            value["UpdateConfig"] = json!({ "Parallelism": 1, "Order": "start-first" });
            match what {
                "port" => {
                    let port = json!({ "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host" });
                    value["EndpointSpec"] = json!({ "Ports": [port] });
                }
                _ => value["TaskTemplate"]["Placement"] = json!({ "MaxReplicas": 1 }),
            }
            let id = world.create(spec(value));
            world.run_for(seconds(10));
            world.image(&id, "healthy:2");
            let mut heard = false;
            run_until(&mut world, |world| {
                assert!(!world.serving(&id).is_empty(), "{what}: one after the other");
                heard |= message(world, &id).contains(said);
                world.update_state(&id) == Some(UpdateState::Completed)
            });
            assert!(heard, "{what}");
            assert_eq!(world.serving(&id).iter().filter(|task| task.template == 2).count(), 2);
        }
    }

    #[test]
    fn a_pause_leaves_no_two_in_a_slot() {
        let config = json!({ "Parallelism": 2, "Order": "start-first" });
        let (mut world, id) = converged("healthy:1", 2, config);
        world.image(&id, "healthy:2");
        let is_made = |world: &World| world.tasks(&id).len() == 4;
        run_until(&mut world, is_made);
        let first = world.tasks(&id)[2].id.clone();
        world.end(&first, TaskState::Failed, "task: non-zero exit (1)");
        world.run_for(seconds(60));
        assert_eq!(world.update_state(&id), Some(UpdateState::Paused));
        let expect = format!("update paused due to failure or early termination of task {first}");
        assert_eq!(message(&world, &id), expect);
        let serving = world.serving(&id);
        let slots: Vec<(u64, u64)> = serving.iter().map(|task| (task.slot, task.template)).collect();
        assert_eq!(slots, [(1, 1), (2, 2)], "slot 1 keeps its old one");
    }

    #[test]
    fn rolls_back_what_does_not_get_healthy_while_the_old_ones_serve() {
        let config = json!({ "Parallelism": 1, "Order": "start-first", "FailureAction": "rollback" });
        let (mut world, id) = converged("healthy:1", 3, config);
        let old: Vec<Id> = world.serving(&id).iter().map(|task| task.id.clone()).collect();
        world.image(&id, "fails:2");
        let mut messages = Vec::new();
        run_until(&mut world, |world| {
            assert_eq!(world.serving(&id).len(), 3);
            let message = message(world, &id);
            if messages.last() != Some(&message) {
                messages.push(message);
            }
            world.update_state(&id) == Some(UpdateState::RollbackCompleted)
        });
        // Nothing was taken away, so that going back takes no time.
        assert_eq!(
            messages[messages.len() - 2..],
            ["update in progress", "rollback completed"]
        );
        let now: Vec<Id> = world.serving(&id).iter().map(|task| task.id.clone()).collect();
        assert_eq!(now, old);
        let service = world.service(&id);
        assert_eq!((service.template, service.previous.is_none()), (1, true));
        assert_eq!(service.meta.version, service.spec_version);
    }

    #[test]
    fn rolls_back_by_hand_and_again() {
        let (mut world, id) = converged("healthy:1", 3, json!({ "Parallelism": 0 }));
        world.image(&id, "healthy:2");
        world.run_for(seconds(60));
        for template in [1, 2] {
            assert!(world.roll_back(&id));
            assert_eq!(message(&world, &id), "manually requested rollback");
            world.run_for(seconds(120));
            assert_eq!(message(&world, &id), "rollback completed");
            assert!(world.serving(&id).iter().all(|task| task.template == template));
        }
    }

    #[test]
    fn a_rollback_that_fails_pauses() {
        let (mut world, id) = converged("fails:1", 1, Value::Null);
        world.image(&id, "healthy:2");
        world.run_for(seconds(60));
        assert_eq!(world.update_state(&id), Some(UpdateState::Completed));
        assert!(world.roll_back(&id));
        world.run_for(seconds(60));
        assert_eq!(world.update_state(&id), Some(UpdateState::RollbackPaused));
        assert!(message(&world, &id).starts_with("update paused due to failure or early termination of task "));
    }

    #[test]
    fn the_ratio_is_of_the_slots_and_must_be_exceeded() {
        for (ratio, state) in [(0.5, UpdateState::Completed), (0.49, UpdateState::Paused)] {
            let config = json!({ "Parallelism": 1, "MaxFailureRatio": ratio });
            let (mut world, id) = converged("healthy:1", 2, config);
            world.image(&id, "healthy:2");
            run_until(&mut world, |world| {
                world.serving(&id).iter().any(|task| task.template == 2)
            });
            let new = world.serving(&id).into_iter().find(|task| task.template == 2).unwrap();
            world.end(&new.id, TaskState::Complete, "");
            world.run_for(seconds(60));
            assert_eq!(world.update_state(&id), Some(state), "{ratio}");
        }
    }

    #[test]
    fn an_update_that_is_sent_again_goes_on_after_a_pause() {
        let (mut world, id) = converged("healthy:1", 3, json!({ "Parallelism": 1 }));
        world.image(&id, "healthy:2");
        run_until(&mut world, |world| {
            world.serving(&id).iter().any(|task| task.template == 2)
        });
        let new = world.serving(&id).into_iter().find(|task| task.template == 2).unwrap();
        world.end(&new.id, TaskState::Failed, "task: non-zero exit (1)");
        world.run_for(seconds(60));
        assert_eq!(world.update_state(&id), Some(UpdateState::Paused));
        world.update(&id, |_| {});
        world.run_for(seconds(60));
        assert_eq!(world.update_state(&id), Some(UpdateState::Completed));
        assert!(world.serving(&id).iter().all(|task| task.template == 2));
    }

    #[test]
    fn tasks_of_a_paused_node_are_left_as_they_are() {
        let mut world = World::new(2, 1);
        let mut value = replicated("web", "healthy:1", 0);
        value["Mode"] = json!({ "Global": {} });
        let id = world.create(spec(value));
        world.run_for(seconds(10));
        world.availability(2, NodeSpecAvailabilityEnum::PAUSE);
        world.image(&id, "healthy:2");
        world.run_for(seconds(60));
        assert_eq!(world.update_state(&id), Some(UpdateState::Completed));
        let templates = |world: &World| -> Vec<u64> { world.serving(&id).iter().map(|task| task.template).collect() };
        assert_eq!(templates(&world), [1, 2]);
        world.availability(2, NodeSpecAvailabilityEnum::ACTIVE);
        world.run_for(seconds(60));
        assert_eq!(templates(&world), [2, 2], "it follows once the node takes tasks again");
    }

    #[test]
    fn another_placement_keeps_the_tasks_that_may_stay() {
        let mut world = World::new(2, 1);
        let id = world.create(spec(replicated("web", "healthy", 4)));
        world.run_for(seconds(10));
        let stays = |task: &Arc<Task>| task.node == Some(Id::from("node1"));
        let old: Vec<Id> = world
            .serving(&id)
            .iter()
            .filter(|task| stays(task))
            .map(|task| task.id.clone())
            .collect();
        assert_eq!(old.len(), 2);
        world.update(&id, |spec| {
            spec["TaskTemplate"]["Placement"] = json!({ "Constraints": ["node.id == node1"] });
        });
        world.run_for(seconds(60));
        let serving = world.serving(&id);
        assert!(serving.len() == 4 && serving.iter().all(stays));
        assert!(old.iter().all(|id| serving.iter().any(|task| task.id == *id)));
    }
}

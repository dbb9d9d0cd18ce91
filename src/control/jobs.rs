//! Jobs: services whose tasks are to end well, so many times or once on each node. Makes their tasks, a few at a time, has
//! those that failed followed by others, and takes away what an earlier run has left going. What has completed is never run
//! again; another declaration of the service is another run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bounds::{PORTION_OF_SERVICE, Wishes};
use super::draft::Draft;
use super::orchestrator::{STOP_PATIENCE, new_task, should_follow, waits_until};
use super::slots::{self, Slot, Tasks};
use super::{Context, Plan};
use crate::model::swarm::{
    Availability, Cause, Hold, Id, JobRun, Mode, Object, Service, Task, TaskState, restart_policy,
};
use crate::store::Snapshot;

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    let wishes = Wishes::of(context.snapshot);
    for service in context.snapshot.services() {
        if draft.is_full() {
            break;
        }
        // A service that was stored as a job by others than us has no status, and is none.
        let Some(status) = &service.job else { continue };
        let slots = slots::of_service(context.snapshot, service.id.as_str());
        let mut job = Job {
            service,
            iteration: status.iteration,
            n_busy: n_busy(context.snapshot, service),
            slots,
            stopping: BTreeMap::new(),
        };
        job.end_earlier_runs(&mut draft);
        job.note_stopping(context.snapshot);
        match service.mode() {
            Mode::ReplicatedJob { max_concurrent, .. } => {
                let total = wishes.replicas(service).unwrap_or(0);
                job.go_on(context, &mut draft, (0..total).map(Slot::Number), max_concurrent);
            }
            Mode::GlobalJob => {
                let nodes: Vec<Slot> = job.nodes(context.snapshot).into_iter().map(Slot::Node).collect();
                job.leave_nodes(context.snapshot, &mut draft);
                job.go_on(context, &mut draft, nodes.into_iter(), u64::MAX);
            }
            Mode::Replicated { .. } | Mode::Global => {}
        }
    }
    draft.into_plan()
}

/// How many tasks of a service take one of the places that there are at a time: those that are to run, and those that still do,
/// of an earlier run too. What a node is silent about is not waited for.
fn n_busy(snapshot: &Snapshot, service: &Service) -> u64 {
    let tasks = snapshot.tasks_of_service(service.id.as_str());
    let is_busy = |task: &&Arc<Task>| {
        // One that failed and waits to be followed keeps its place, for the one that follows it.
        let is_to_run = task.is_wanted() && task.status.state != TaskState::Complete;
        let node = task.node.as_ref().and_then(|node| snapshot.node(node.as_str()));
        is_to_run || !task.has_stopped() && node.is_some_and(|node| node.is_up)
    };
    tasks.filter(is_busy).count() as u64
}

struct Job<'a> {
    service: &'a Arc<Service>,
    iteration: u64,
    n_busy: u64,
    slots: BTreeMap<Slot, Tasks<'a>>,
    /// What still runs of those that are not to.
    stopping: BTreeMap<Slot, Vec<Id>>,
}

/// How far a slot is in the present run.
enum Progress<'a> {
    /// It has had no task, or its last one was stopped without having failed.
    Open,
    /// A task is on its way.
    Going,
    /// The last task has ended, although it was wanted.
    Failed(&'a Arc<Task>),
    /// The last task's node is to have none, or is gone.
    Leaving(&'a Arc<Task>),
    /// It is completed, or was given up as the restart policy has it.
    Over,
}

impl<'a> Job<'a> {
    fn is_present(&self, task: &Task) -> bool {
        task.job
            .is_some_and(|JobRun { iteration, .. }| iteration == self.iteration)
    }

    /// What is still going of a run before this one is not to go on. What has completed is remembered.
    fn end_earlier_runs(&self, draft: &mut Draft) {
        let all = self.slots.values().flatten();
        for task in all.filter(|task| task.is_wanted() && !self.is_present(task)) {
            match task.status.state {
                TaskState::Complete => {}
                state if state.is_terminal() => draft.wish(task, TaskState::Shutdown),
                _ => draft.wish(task, TaskState::Remove),
            }
        }
    }

    fn note_stopping(&mut self, snapshot: &Snapshot) {
        let is_stopping = |task: &&Arc<Task>| !(task.has_stopped() || task.is_wanted() && self.is_present(task));
        let all = snapshot.tasks_of_service(self.service.id.as_str()).filter(is_stopping);
        let mut stopping: BTreeMap<Slot, Vec<Id>> = BTreeMap::new();
        for task in all {
            stopping.entry(Slot::of(task)).or_default().push(task.id.clone());
        }
        self.stopping = stopping;
    }

    fn progress(&self, snapshot: &Snapshot, slot: &Slot) -> Progress<'a> {
        let tasks = self.slots.get(slot).into_iter().flatten();
        let mut present: Vec<&'a Arc<Task>> = tasks.copied().filter(|task| self.is_present(task)).collect();
        if present.iter().any(|task| task.status.state == TaskState::Complete) {
            return Progress::Over;
        }
        let Some(last) = present.pop() else {
            return Progress::Open;
        };
        let by_itself = matches!(last.status.state, TaskState::Failed | TaskState::Rejected);
        if last.is_wanted() && last.status.state.is_terminal() {
            return Progress::Failed(last);
        }
        if !last.is_wanted() {
            return if by_itself { Progress::Over } else { Progress::Open };
        }
        let node = last.node.as_ref().map(|node| snapshot.node(node.as_str()));
        match node {
            Some(None) => Progress::Leaving(last),
            Some(Some(node)) if !node.is_up || node.availability() == Availability::Drain => Progress::Leaving(last),
            _ => Progress::Going,
        }
    }

    /// The nodes that a global job is to run on.
    fn nodes(&self, snapshot: &Snapshot) -> Vec<Id> {
        let template = self.service.task_spec();
        let fits = snapshot
            .nodes()
            .filter(|node| node.is_available() && slots::meets(&template, node));
        fits.map(|node| node.id.clone()).collect()
    }

    /// Tasks of a global job do not move from a node that may not have them.
    fn leave_nodes(&self, snapshot: &Snapshot, draft: &mut Draft) {
        let leaving = self
            .slots
            .keys()
            .filter_map(|slot| match self.progress(snapshot, slot) {
                Progress::Leaving(task) => Some(task),
                _ => None,
            });
        leaving.for_each(|task| draft.wish(task, TaskState::Shutdown));
    }

    /// Each of `slots` once to its end, at most so many at a time.
    fn go_on(
        &mut self,
        context: &mut Context<'_>,
        draft: &mut Draft,
        slots: impl Iterator<Item = Slot>,
        max_concurrent: u64,
    ) {
        let mut n_made = 0;
        let mut open = Vec::new();
        // First those that have begun: what follows a task takes its place.
        for slot in slots {
            match self.progress(context.snapshot, &slot) {
                Progress::Open => open.push(slot),
                Progress::Failed(task) => self.follow(context, draft, &slot, task),
                Progress::Leaving(task) if matches!(slot, Slot::Number(_)) => {
                    draft.wish(task, TaskState::Shutdown);
                    let hold = Hold {
                        until: context.now,
                        stopped: vec![task.id.clone()],
                        patience: context.now + STOP_PATIENCE,
                    };
                    // That was no fault of the task's: it is no attempt.
                    self.make(context, draft, &slot, Cause::Scale, Some(hold));
                }
                Progress::Leaving(_) | Progress::Going | Progress::Over => {}
            }
        }
        for slot in open {
            if self.n_busy >= max_concurrent {
                return;
            }
            if n_made >= PORTION_OF_SERVICE || draft.is_full() {
                return draft.cut();
            }
            n_made += 1;
            self.n_busy += 1;
            let hold = self.stopping.get(&slot).map(|stopped| Hold {
                until: context.now,
                stopped: stopped.clone(),
                patience: context.now + STOP_PATIENCE,
            });
            self.make(context, draft, &slot, Cause::Scale, hold);
        }
    }

    fn follow(&self, context: &mut Context<'_>, draft: &mut Draft, slot: &Slot, task: &Arc<Task>) {
        let Some(tasks) = self.slots.get(slot) else { return };
        if !should_follow(self.service, task, tasks) {
            return draft.wish(task, TaskState::Shutdown);
        }
        // It stays wanted meanwhile: by that it is known that it is still to be followed.
        if let Some(at) = waits_until(self.service, tasks, context.now) {
            return draft.wake_at(at);
        }
        draft.wish(task, TaskState::Shutdown);
        let until = task.status.at + restart_policy(&self.service.task_spec()).delay;
        let hold = Hold {
            until,
            stopped: task.hold.as_ref().map_or_else(Vec::new, |hold| hold.stopped.clone()),
            patience: until + STOP_PATIENCE,
        };
        self.make(context, draft, slot, Cause::Restart, Some(hold));
    }

    fn make(&self, context: &mut Context<'_>, draft: &mut Draft, slot: &Slot, cause: Cause, hold: Option<Hold>) {
        let task = new_task(context, draft, self.service, slot, cause, hold);
        draft.put(Object::Task(task));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bollard_stubs::models::NodeSpecAvailabilityEnum;
    use serde_json::{Value, json};

    use super::super::testing::{World, replicated, seconds, spec};
    use super::*;

    /// So many tasks of an image that are to end well, at most so many at a time.
    fn job(image: &str, total: u64, max_concurrent: u64) -> Value {
        let mut value = replicated("job", image, 1);
        value["Mode"] = json!({ "ReplicatedJob": { "MaxConcurrent": max_concurrent, "TotalCompletions": total } });
        value
    }

    /// Slot and state of the tasks of the present run, oldest first.
    fn present(world: &World, id: &Id) -> Vec<(u64, TaskState)> {
        let iteration = world.service(id).job.as_ref().unwrap().iteration;
        let mut tasks = world.tasks(id);
        tasks.retain(|task| task.job.unwrap().iteration == iteration);
        tasks.iter().map(|task| (task.slot, task.status.state)).collect()
    }

    fn n_running(world: &World, id: &Id) -> usize {
        let is_running = |task: &&Arc<Task>| matches!(task.status.state, TaskState::Starting | TaskState::Running);
        world.tasks(id).iter().filter(is_running).count()
    }

    /// Until then; the most tasks that ran at once.
    fn run_until(world: &mut World, id: &Id, until: Duration) -> usize {
        let until = world.now + until;
        let mut most = 0;
        while world.now < until {
            world.advance(until);
            most = most.max(n_running(world, id));
        }
        most
    }

    #[test]
    fn each_slot_from_0_completes_once_and_no_more_run_at_a_time_than_may() {
        let mut world = World::new(2, 1);
        let id = world.create(spec(job("exits", 5, 2)));
        assert_eq!(run_until(&mut world, &id, seconds(60)), 2);
        let mut done = present(&world, &id);
        done.sort_unstable();
        let expect: Vec<(u64, TaskState)> = (0..5).map(|slot| (slot, TaskState::Complete)).collect();
        assert_eq!(done, expect);
        assert!(world.tasks(&id).iter().all(|task| task.desired == TaskState::Complete));
        let n_commits = world.n_commits;
        world.run_for(seconds(3_600));
        assert_eq!(world.n_commits, n_commits, "a job that is done is at rest");
    }

    #[test]
    fn what_fails_is_followed_as_the_restart_policy_has_it_and_then_given_up() {
        for (policy, n) in [
            (json!({ "Condition": "none" }), 1),
            (
                json!({ "Condition": "on-failure", "Delay": 1_000_000_000, "MaxAttempts": 2 }),
                3,
            ),
            (
                json!({ "Condition": "any", "Delay": 1_000_000_000, "MaxAttempts": 1 }),
                2,
            ),
        ] {
            for mode in [
                json!({ "ReplicatedJob": { "TotalCompletions": 3, "MaxConcurrent": 1 } }),
                json!({ "GlobalJob": {} }),
            ] {
                let mut world = World::new(3, 1);
                let mut value = job("fails", 1, 1);
                value["Mode"] = mode;
                value["TaskTemplate"]["RestartPolicy"] = policy.clone();
                let id = world.create(spec(value));
                world.run_for(seconds(60));
                let tasks = world.tasks(&id);
                assert_eq!(
                    tasks.len(),
                    3 * n,
                    "{policy}: one that was given up keeps none from its turn"
                );
                assert!(tasks.iter().all(|task| task.desired == TaskState::Shutdown));
                let n_commits = world.n_commits;
                world.run_for(seconds(3_600));
                assert_eq!(world.n_commits, n_commits);
            }
        }
    }

    #[test]
    fn another_declaration_is_another_run_once_the_one_before_has_stopped() {
        let mut world = World::new(1, 1);
        world.longest_stop = seconds(20);
        let id = world.create(spec(job("healthy", 2, 2)));
        world.run_for(seconds(5));
        assert_eq!(n_running(&world, &id), 2);
        world.image(&id, "exits");
        assert_eq!(run_until(&mut world, &id, seconds(60)), 2);
        assert_eq!(world.service(&id).job.as_ref().unwrap().iteration, 1);
        assert_eq!(present(&world, &id).len(), 2);
        assert_eq!(
            world.tasks(&id).len(),
            2,
            "of what did not come to its end nothing is kept"
        );
        for run in 2..8 {
            world.update(&id, |_| {});
            run_until(&mut world, &id, seconds(30));
            assert_eq!(world.service(&id).job.as_ref().unwrap().iteration, run);
            assert!(
                present(&world, &id)
                    .iter()
                    .all(|(_, state)| *state == TaskState::Complete)
            );
        }
        assert_eq!(world.tasks(&id).len(), 10, "the history of each slot is bounded");
    }

    #[test]
    fn a_drained_node_s_tasks_run_elsewhere_and_its_completed_ones_stay_done() {
        let mut world = World::new(2, 1);
        let mut value = job("exits", 2, 2);
        value["TaskTemplate"]["RestartPolicy"] = json!({ "Condition": "none" });
        let id = world.create(spec(value.clone()));
        world.run_for(seconds(30));
        assert_eq!(present(&world, &id).len(), 2);
        value["Name"] = json!("long");
        value["TaskTemplate"]["ContainerSpec"]["Image"] = json!("healthy");
        let long = world.create(spec(value));
        world.run_for(seconds(5));
        world.availability(1, NodeSpecAvailabilityEnum::DRAIN);
        world.run_for(seconds(30));
        assert_eq!(present(&world, &id).len(), 2);
        assert!(
            world
                .serving(&long)
                .iter()
                .all(|task| task.node == Some(Id::from("node2")))
        );
        assert_eq!(world.serving(&long).len(), 2);
    }

    #[test]
    fn a_global_job_runs_once_on_each_node_that_fits_also_on_one_that_comes_later() {
        let mut world = World::new(2, 1);
        let mut value = job("exits", 1, 1);
        value["Mode"] = json!({ "GlobalJob": {} });
        world.availability(2, NodeSpecAvailabilityEnum::DRAIN);
        let id = world.create(spec(value));
        world.run_for(seconds(30));
        assert_eq!(present(&world, &id), [(0, TaskState::Complete)]);
        world.availability(2, NodeSpecAvailabilityEnum::ACTIVE);
        world.run_for(seconds(30));
        assert_eq!(present(&world, &id), [(0, TaskState::Complete); 2]);
        world.availability(1, NodeSpecAvailabilityEnum::DRAIN);
        world.run_for(seconds(30));
        world.availability(1, NodeSpecAvailabilityEnum::ACTIVE);
        world.run_for(seconds(30));
        assert_eq!(present(&world, &id).len(), 2);
    }
}

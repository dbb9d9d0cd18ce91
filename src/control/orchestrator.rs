//! As many tasks as are wished for: makes and takes away tasks, has those that ended followed by others, lets go those that
//! waited, and deletes what is over. Not here: replacing tasks by those of a newer spec (`updater`), and how many tasks a job
//! has (`jobs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::bounds::{FOLLOW_LEAST, PORTION_OF_SERVICE, Wishes};
use super::draft::Draft;
use super::shortcomings;
use super::slots::{self, Slot, Tasks};
use super::{Context, Plan};
use crate::model::swarm::{
    Availability, Cause, Generic, Hold, Id, JobRun, Meta, Node, Object, RestartCondition, Service, Task, TaskState,
    TaskStatus, Time, UpdateState, restart_policy,
};
use crate::store::{Snapshot, THIS_REVISION};

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    let wishes = Wishes::of(context.snapshot);
    for said in shortcomings::of_replicas(context.snapshot) {
        draft.complain(said);
    }
    for service in context.snapshot.services().filter(|service| !service.is_job()) {
        if draft.is_full() {
            break;
        }
        let slots = slots::of_service(context.snapshot, service.id.as_str());
        follow_ended(context, &mut draft, service, &slots);
        match wishes.replicas(service) {
            Some(replicas) => replicate(context, &mut draft, service, replicas, slots),
            None => spread(context, &mut draft, service, &slots),
        }
    }
    clear(context.snapshot, &mut draft);
    let_go(context.snapshot, context.now, &mut draft);
    draft.into_plan()
}

/// A task of `service` as it is declared now.
pub(super) fn new_task(
    context: &mut Context<'_>,
    draft: &mut Draft,
    service: &Service,
    slot: &Slot,
    cause: Cause,
    hold: Option<Hold>,
) -> Arc<Task> {
    let now = context.now;
    let job = service.job.as_ref().map(|status| JobRun {
        iteration: status.iteration,
        is_global: matches!(slot, Slot::Node(_)),
    });
    let (slot, node) = match slot {
        Slot::Number(slot) => (*slot, None),
        Slot::Node(node) => (0, Some(node.clone())),
    };
    Arc::new(Task {
        job,
        id: (context.ids)(),
        meta: Meta::new(THIS_REVISION, now),
        service: service.id.clone(),
        service_name: service.name().into(),
        slot,
        node,
        spec: draft.task_spec(service, context.snapshot.swarm().map(|swarm| &**swarm)),
        template: service.template,
        spec_version: service.spec_version,
        cause,
        desired: match (&hold, job) {
            (Some(_), _) => TaskState::Ready,
            (None, Some(_)) => TaskState::Complete,
            (None, None) => TaskState::Running,
        },
        hold,
        status: TaskStatus {
            at: now,
            state: TaskState::New,
            message: "created".to_owned(),
            error: None,
            unfit: Vec::new(),
            container: None,
            ran_at: None,
        },
        host_ports: Vec::new(),
        generic: Generic::default(),
        addresses: Vec::new(),
    })
}

/// Tasks that ended although they were wanted, or whose node is to have none: others follow them, if they should. One that
/// ended by itself is followed no sooner than the restart delay after the last task of its slot was made, whatever it was
/// that ended it: one that cannot even be prepared may end long before its hold does.
fn follow_ended(
    context: &mut Context<'_>,
    draft: &mut Draft,
    service: &Arc<Service>,
    slots: &BTreeMap<Slot, Tasks<'_>>,
) {
    let update = service.update.as_ref().map(|update| update.state);
    let is_paused = matches!(update, Some(UpdateState::Paused | UpdateState::RollbackPaused));
    for (slot, tasks) in slots {
        if draft.is_full() {
            return;
        }
        let mut is_followed = false;
        for task in tasks.iter().filter(|task| task.is_wanted()) {
            let node = task.node.as_ref().map(|node| context.snapshot.node(node.as_str()));
            let end = match node {
                _ if task.status.state.is_terminal() => End::Itself,
                // A global service's task that has not been placed yet has a node all the same.
                Some(None) => End::NodeIsGone,
                Some(Some(node)) if !node.is_up => End::NodeIsGone,
                Some(Some(node)) if node.availability() == Availability::Drain => End::Drained,
                _ => continue,
            };
            // Of two in a slot, as in an update that starts first, the other is enough, unless it is the older and the update
            // goes on.
            let is_dirty = |task: &Task| slots::is_dirty(context.snapshot, service, task);
            let is_enough = |other: &&&Arc<Task>| {
                let is_good = is_paused || is_dirty(task) || !is_dirty(other);
                other.id != task.id && other.is_live() && is_good
            };
            let has_other = is_followed || tasks.iter().any(|other| is_enough(&other));
            if has_other || service.is_global() && end != End::Itself || !should_follow(service, task, tasks) {
                draft.wish(task, TaskState::Shutdown);
                continue;
            }
            // It stays wanted meanwhile: by that it is known that it is still to be followed.
            if end == End::Itself
                && let Some(at) = waits_until(service, tasks, context.now)
            {
                draft.wake_at(at);
                continue;
            }
            draft.wish(task, TaskState::Shutdown);
            is_followed = true;
            let delay = restart_policy(&service.task_spec()).delay;
            let until = match end {
                End::Itself => task.status.at + delay,
                End::NodeIsGone => context.now + delay,
                End::Drained => task
                    .hold
                    .as_ref()
                    .map_or(context.now, |hold| hold.until.max(context.now)),
            };
            // What it waited for itself may still stop.
            let mut stopped = task.hold.as_ref().map_or_else(Vec::new, |hold| hold.stopped.clone());
            if end == End::Drained {
                stopped.push(task.id.clone());
            }
            let hold = Hold {
                until,
                stopped,
                patience: until + STOP_PATIENCE,
            };
            let next = new_task(context, draft, service, slot, Cause::Restart, Some(hold));
            draft.put(Object::Task(next));
        }
    }
}

/// Until when a slot whose task ended by itself has no other: the restart delay after its last task was made. `None`: it may
/// have one. A clock that was set back is no reason to wait.
pub(super) fn waits_until(service: &Service, tasks: &Tasks<'_>, now: Time) -> Option<Time> {
    let made_at = tasks.iter().map(|task| task.meta.created_at).max()?;
    let at = made_at + restart_policy(&service.task_spec()).delay.max(FOLLOW_LEAST);
    (made_at <= now && now < at).then_some(at)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Itself,
    NodeIsGone,
    Drained,
}

/// Whether the restart policy has another follow the last task of a slot.
pub(super) fn should_follow(service: &Service, task: &Task, tasks: &Tasks<'_>) -> bool {
    let policy = restart_policy(&service.task_spec());
    let is_good_end = task.status.state == TaskState::Complete;
    match policy.condition {
        RestartCondition::None => return false,
        RestartCondition::OnFailure if is_good_end => return false,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    if policy.max_attempts == 0 {
        return true;
    }
    let counts = |other: &&&Arc<Task>| {
        let is_attempt = other.cause == Cause::Restart && other.spec_version == service.spec_version;
        let is_recent = policy.window.is_zero() || other.meta.created_at + policy.window >= task.status.at;
        is_attempt && is_recent
    };
    u64::try_from(tasks.iter().filter(counts).count()).is_ok_and(|n| n < policy.max_attempts)
}

/// So many slots; a slot whose task ended and is not to be followed is one too.
fn replicate(
    context: &mut Context<'_>,
    draft: &mut Draft,
    service: &Arc<Service>,
    replicas: u64,
    slots: BTreeMap<Slot, Tasks<'_>>,
) {
    let n_slots = slots.len() as u64;
    if n_slots < replicas {
        let taken: BTreeSet<&Slot> = slots.keys().collect();
        let free = (1..).map(Slot::Number).filter(|slot| !taken.contains(slot));
        let missing = usize::try_from(replicas - n_slots).unwrap_or(usize::MAX);
        if missing > PORTION_OF_SERVICE {
            draft.cut();
        }
        for slot in free.take(missing.min(PORTION_OF_SERVICE)).collect::<Vec<_>>() {
            let task = new_task(context, draft, service, &slot, Cause::Scale, None);
            draft.put(Object::Task(task));
        }
        return;
    }
    let n_over = usize::try_from(n_slots - replicas).unwrap_or(usize::MAX);
    if n_over == 0 {
        return;
    }
    for tasks in in_order_of_removal(slots).into_iter().take(n_over) {
        if draft.is_full() {
            return;
        }
        tasks.iter().for_each(|task| draft.wish(task, TaskState::Remove));
    }
}

/// Which slots go first: those without a node or with several tasks, then further copies on crowded nodes, those that do
/// not run before those that do, the highest number first.
fn in_order_of_removal(slots: BTreeMap<Slot, Tasks<'_>>) -> Vec<Tasks<'_>> {
    let mut ordered: Vec<(Slot, Tasks<'_>)> = slots.into_iter().collect();
    let is_running = |tasks: &Tasks<'_>| tasks.iter().any(|task| task.is_serving());
    ordered.sort_by_key(|(slot, tasks)| (!is_running(tasks), slot.clone()));
    let mut copies: BTreeMap<Id, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, Slot, Tasks<'_>)> = Vec::with_capacity(ordered.len());
    for (slot, tasks) in ordered {
        let mut live = tasks.iter().filter(|task| task.is_wanted());
        let rank = match (live.next().and_then(|task| task.node.clone()), live.next()) {
            (Some(node), None) => {
                let nth = copies.entry(node).or_default();
                *nth += 1;
                *nth
            }
            _ => usize::MAX,
        };
        ranked.push((rank, slot, tasks));
    }
    // Stable: what is kept stands first.
    ranked.sort_by_key(|(rank, _, _)| *rank);
    ranked.into_iter().rev().map(|(_, _, tasks)| tasks).collect()
}

/// A task on each node that a global service may use.
fn spread(context: &mut Context<'_>, draft: &mut Draft, service: &Arc<Service>, slots: &BTreeMap<Slot, Tasks<'_>>) {
    let template = service.task_spec();
    let nodes: Vec<Arc<Node>> = context.snapshot.nodes().cloned().collect();
    let may_have =
        |node: &Node| node.is_up && node.availability() != Availability::Drain && slots::meets(&template, node);
    for node in nodes.iter().filter(|node| node.is_available() && may_have(node)) {
        let slot = Slot::Node(node.id.clone());
        // What was shut down with its node does not count once the node is back.
        let is_there = slots.get(&slot).is_some_and(|tasks| {
            tasks.iter().any(|task| task.is_wanted())
                || tasks.last().is_some_and(|last| is_left_alone(service, last, tasks))
        });
        if !is_there {
            let task = new_task(context, draft, service, &slot, Cause::Scale, None);
            draft.put(Object::Task(task));
        }
    }
    for (slot, tasks) in slots {
        let Slot::Node(id) = slot else { continue };
        if !nodes.iter().any(|node| node.id == *id && may_have(node)) {
            tasks.iter().for_each(|task| draft.wish(task, TaskState::Shutdown));
        }
    }
}

/// The last task of a slot ended by itself and is not to be followed.
fn is_left_alone(service: &Service, last: &Task, tasks: &Tasks<'_>) -> bool {
    let by_itself = matches!(
        last.status.state,
        TaskState::Complete | TaskState::Failed | TaskState::Rejected
    );
    by_itself && last.template == service.template && !should_follow(service, last, tasks)
}

/// Tasks of services that are gone go; what is to go and has stopped is deleted.
fn clear(snapshot: &Snapshot, draft: &mut Draft) {
    for service in snapshot.services_with_tasks() {
        if snapshot.service(service.as_str()).is_none() {
            for task in snapshot.tasks_of_service(service.as_str()) {
                if draft.is_full() {
                    return;
                }
                draft.wish(task, TaskState::Remove);
            }
        }
    }
    for task in snapshot.tasks() {
        if draft.is_full() {
            return;
        }
        let is_beyond_reach = || {
            let node = task.node.as_ref().and_then(|node| snapshot.node(node.as_str()));
            node.is_none()
        };
        if task.desired == TaskState::Remove && (task.has_stopped() || is_beyond_reach()) {
            draft.remove_task(task);
        }
        // One that no node ever had is over once it is not wanted.
        let is_unplaced = task.node.is_none() || task.status.state < TaskState::Assigned;
        if task.desired == TaskState::Shutdown && is_unplaced && !task.status.state.is_terminal() {
            draft.change_task(task, |task| {
                task.status.state = TaskState::Shutdown;
                task.status.message = "shutdown".to_owned();
                task.status.error = None;
                task.status.unfit.clear();
                task.status.at = task.meta.updated_at;
            });
        }
        if task.desired == TaskState::Remove && is_unplaced {
            draft.remove_task(task);
        }
    }
}

/// Tasks that wait in `Ready` go on when their time has come and what they wait for has stopped.
fn let_go(snapshot: &Snapshot, now: Time, draft: &mut Draft) {
    let waits = |task: &&Arc<Task>| task.desired == TaskState::Ready && !task.status.state.is_terminal();
    for task in snapshot.tasks().filter(waits) {
        if draft.is_full() {
            return;
        }
        let Some(hold) = &task.hold else {
            draft.wish(task, task.goal());
            continue;
        };
        let has_stopped = |id: &Id| {
            snapshot.task(id.as_str()).is_none_or(|other| {
                let node = other.node.as_ref().and_then(|node| snapshot.node(node.as_str()));
                other.has_stopped() || node.is_none_or(|node| !node.is_up)
            })
        };
        let are_stopped = hold.stopped.iter().all(has_stopped);
        if now < hold.until {
            draft.wake_at(hold.until);
        } else if are_stopped || now >= hold.patience {
            draft.change_task(task, |task| {
                task.desired = task.desired.max(task.goal());
                task.hold = None;
            });
        } else {
            draft.wake_at(hold.patience);
        }
    }
}

/// How long a task that is to stop is waited for.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use bollard_stubs::models::NodeSpecAvailabilityEnum;
    use serde_json::json;

    use super::super::testing::{World, replicated, seconds, spec};
    use super::*;

    #[test]
    fn restarts_after_the_delay_and_not_after_the_last_attempt() {
        let mut world = World::new(1, 1);
        let mut value = replicated("web", "fails", 1);
        value["TaskTemplate"]["RestartPolicy"] = json!({ "Delay": 2_000_000_000u64, "MaxAttempts": 2 });
        let id = world.create(spec(value));
        world.run_for(seconds(100));
        let tasks = world.tasks(&id);
        let causes: Vec<Cause> = tasks.iter().map(|task| task.cause).collect();
        assert_eq!(causes, [Cause::Scale, Cause::Restart, Cause::Restart]);
        for pair in tasks.windows(2) {
            assert!(pair[1].status.at.since(pair[0].status.at) >= seconds(2));
        }
        assert!(
            tasks
                .iter()
                .all(|task| task.desired == TaskState::Shutdown && task.slot == 1)
        );
        world.image(&id, "healthy");
        world.run_for(seconds(10));
        assert_eq!(
            world.serving(&id).len(),
            1,
            "an update replaces what has ended for good"
        );
    }

    #[test]
    fn what_is_rejected_waits_for_the_delay_like_what_fails() {
        let mut world = World::new(1, 1);
        let id = world.create(spec(replicated("web", "rejected", 2)));
        let mut made: BTreeMap<(u64, Id), Time> = BTreeMap::new();
        let until = world.now + seconds(60);
        while world.now < until {
            world.advance(until);
            for task in world.tasks(&id) {
                made.insert((task.slot, task.id.clone()), task.meta.created_at);
            }
        }
        for slot in 1..=2 {
            let mut made: Vec<Time> = made
                .iter()
                .filter(|((of, _), _)| *of == slot)
                .map(|(_, at)| *at)
                .collect();
            made.sort_unstable();
            assert!((11..=13).contains(&made.len()), "{} in a minute", made.len());
            assert!(
                made.windows(2).all(|pair| pair[1].since(pair[0]) >= seconds(5)),
                "{made:?}"
            );
        }
        // An update does not wait for what waits.
        let asked = world.now;
        world.image(&id, "healthy");
        world.run_for(seconds(4));
        let serving = world.serving(&id);
        assert!(!serving.is_empty() && serving[0].meta.created_at.since(asked) < seconds(1));
    }

    #[test]
    fn more_than_can_be_planned_at_once_is_planned_in_portions() {
        let mut world = World::new(1, 1);
        let one = world.create(spec(replicated("one", "healthy", 1_000_000_000)));
        let other = world.create(spec(replicated("other", "healthy", 3)));
        let snapshot = world.snapshot.clone();
        let mut n_ids = 0;
        let made = plan(&mut Context {
            snapshot: &snapshot,
            now: world.now,
            shared_ports: &Default::default(),
            ids: &mut || {
                n_ids += 1;
                Id::from_bits(n_ids)
            },
        });
        assert!(made.is_cut);
        let of = |id: &Id| {
            let tasks = made.writes.iter().filter(|write| match write {
                crate::model::swarm::Write::Put(Object::Task(task)) => task.service == *id,
                _ => false,
            });
            tasks.count()
        };
        assert_eq!(
            (of(&one), of(&other)),
            (PORTION_OF_SERVICE, 3),
            "others have their share at once"
        );
        assert_eq!(made.complaints.len(), 1);
    }

    #[test]
    fn what_ended_for_good_stays_so_however_little_is_remembered() {
        for (condition, image) in [("none", "fails"), ("on-failure", "exits")] {
            let mut world = World::new(1, 1);
            world.task_history(0);
            let mut value = replicated("once", image, 1);
            value["TaskTemplate"]["RestartPolicy"] = json!({ "Condition": condition });
            let id = world.create(spec(value));
            world.run_for(seconds(100));
            let tasks = world.tasks(&id);
            assert_eq!(tasks.len(), 1, "{condition}");
            assert_eq!(tasks[0].cause, Cause::Scale);
            assert_eq!(tasks[0].meta.created_at, world.service(&id).meta.created_at);
        }
    }

    #[test]
    fn a_restart_waits_for_all_that_still_stops_in_its_slot() {
        let mut world = World::new(1, 1);
        world.longest_stop = seconds(40);
        world.rng.seed(2);
        let mut value = replicated("web", "healthy:1", 1);
        value["UpdateConfig"] = json!({ "FailureAction": "continue" });
        value["TaskTemplate"]["RestartPolicy"] = json!({ "Delay": 1_000_000_000u64 });
        let id = world.create(spec(value));
        world.run_for(seconds(10));
        world.image(&id, "rejected");
        let old = world.tasks(&id)[0].id.clone();
        let still_stops = |world: &World| {
            world
                .snapshot
                .task(old.as_str())
                .is_some_and(|task| !task.has_stopped())
        };
        let until = world.now + seconds(40);
        while still_stops(&world) {
            world.advance(until);
            let newer = world.tasks(&id);
            let mut newer = newer.iter().filter(|task| task.id != old && still_stops(&world));
            assert!(newer.all(|task| task.desired != TaskState::Running));
        }
        assert!(world.tasks(&id).len() > 2, "none was to be restarted");
    }

    #[test]
    fn a_drained_node_is_left_at_once_but_not_before_the_old_task_has_stopped() {
        let mut world = World::new(2, 1);
        world.longest_stop = seconds(8);
        let id = world.create(spec(replicated("web", "healthy", 2)));
        world.run_for(seconds(10));
        world.availability(1, NodeSpecAvailabilityEnum::DRAIN);
        world.run_for(seconds(20));
        let serving = world.serving(&id);
        assert_eq!(serving.len(), 2);
        assert!(serving.iter().all(|task| task.node == Some(Id::from("node2"))));
        let tasks = world.tasks(&id);
        let old = tasks.iter().find(|task| task.node == Some(Id::from("node1"))).unwrap();
        let new = tasks.iter().find(|task| task.cause == Cause::Restart).unwrap();
        assert!(new.status.ran_at.unwrap() > old.status.at);
        assert!(new.status.at.since(old.status.at) < seconds(1));
    }

    #[test]
    fn scaling_down_takes_crowded_nodes_and_high_slots_first() {
        let mut world = World::new(2, 1);
        let id = world.create(spec(replicated("web", "healthy", 5)));
        world.run_for(seconds(10));
        let failed = world.serving(&id).into_iter().find(|task| task.slot == 1).unwrap();
        world.end(&failed.id, TaskState::Failed, "task: non-zero exit (1)");
        world.run_for(seconds(1));
        world.scale(&id, 3);
        world.run_for(seconds(20));
        let mut slots: Vec<u64> = world.serving(&id).iter().map(|task| task.slot).collect();
        slots.sort_unstable();
        assert!(!slots.contains(&1), "one that does not run goes first: {slots:?}");
        assert_eq!(world.tasks(&id).len(), 3, "nothing of a removed slot is remembered");
        world.scale(&id, 4);
        world.run_for(seconds(20));
        assert!(
            world.serving(&id).iter().any(|task| task.slot == 1),
            "free numbers are used again"
        );
    }

    #[test]
    fn removed_services_leave_nothing_even_on_nodes_that_are_gone() {
        let mut world = World::new(2, 1);
        let id = world.create(spec(replicated("web", "healthy", 4)));
        world.run_for(seconds(10));
        world.remove_node(2);
        world.remove(&id);
        world.run_for(seconds(10));
        assert!(world.tasks(&id).is_empty());
    }

    #[test]
    fn a_task_whose_node_no_longer_fits_is_replaced_elsewhere() {
        let mut world = World::new(2, 1);
        let mut value = replicated("web", "healthy", 1);
        value["TaskTemplate"]["Placement"] = json!({ "Constraints": ["node.labels.zone != b"] });
        let id = world.create(spec(value));
        world.run_for(seconds(10));
        let first = world.serving(&id)[0].clone();
        let label = |node: &mut Node| {
            node.spec.labels = Some([("zone".to_owned(), "b".to_owned())].into_iter().collect());
        };
        world.change_node(1, label);
        world.run_for(seconds(20));
        assert_eq!(world.serving(&id)[0].node, Some(Id::from("node2")));
        let first = world.snapshot.task(first.id.as_str()).unwrap();
        assert_eq!(
            first.status.error.as_deref(),
            Some("assigned node no longer meets constraints")
        );
        world.change_node(2, label);
        world.run_for(seconds(20));
        assert!(world.serving(&id).is_empty());
        let waiting = world.tasks(&id).pop().unwrap();
        let expect = "no suitable node (scheduling constraints not satisfied on 2 nodes)";
        assert_eq!(waiting.status.error.as_deref(), Some(expect));
    }
}

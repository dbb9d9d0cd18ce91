//! The law of the control plane: nothing spins. For any state and any failure (tasks that are rejected, fail, crash or exit, no
//! address, no port, no node that fits, nodes that come and go, a store that refuses) a plan leads to a state whose plan is
//! empty or waits for a time; a slot gets at most one new task per restart delay, but for what a user, a node or a new spec does; at rest
//! nothing is written; and the writes that follow one event are bounded. Jobs are among the services.
//!
//! `ANYNODE_HISTORIES=100000` runs so many random histories; `ANYNODE_SEED` begins with another.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::NodeSpecAvailabilityEnum as Availability;
use serde_json::{Value, json};

use super::bounds::FOLLOW_LEAST;
use super::slots::{self, Slot};
use super::testing::{World, network, replicated, seconds, spec};
use crate::model::swarm::{Cause, Id, Mode, Node, Object, Service, TaskState, Time, restart_policy};
use crate::store::Snapshot;

#[test]
fn nothing_spins_in_any_history() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number"))
    };
    let n = number("ANYNODE_HISTORIES").unwrap_or(60);
    let first = number("ANYNODE_SEED").unwrap_or(1);
    let mut seen = Seen::default();
    for seed in first..first + n {
        let told = Told(seed);
        History::new(seed).run(&mut seen);
        drop(told);
    }
    println!("{n} histories: {seen:?}");
    if n >= 50 {
        for (what, n_seen) in [
            ("followed", seen.followed),
            ("waited", seen.waited),
            ("calm", seen.calm),
            ("in vain", seen.in_vain),
            ("refused", seen.refused),
            ("jobs", seen.jobs),
        ] {
            assert!(n_seen > 0, "no history has seen {what}: {seen:?}");
        }
    }
}

/// How often something was seen that the histories are for.
#[derive(Debug, Default)]
struct Seen {
    /// Tasks that followed others that had ended by themselves.
    followed: usize,
    /// Histories in which one that had ended waited to be followed.
    waited: usize,
    /// Histories that came to rest.
    calm: usize,
    /// Histories in which something could not be had.
    in_vain: usize,
    /// Histories in which the store refused.
    refused: usize,
    /// Jobs whose last run has come to its end.
    jobs: usize,
    most_writes: usize,
}

/// Names the seed when a test panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ANYNODE_SEED={} ANYNODE_HISTORIES=1", self.0);
        }
    }
}

struct History {
    world: World,
    services: Vec<Id>,
    n_names: usize,
    /// When a user or a node did something last.
    event_at: Rc<Cell<Time>>,
    followed: Rc<Cell<usize>>,
}

impl History {
    fn new(seed: u64) -> History {
        let mut world = World::new(2, seed);
        world.longest_step = Duration::from_millis(world.rng.u64(1..1_500));
        world.longest_stop = Duration::from_millis(world.rng.u64(1..4_000));
        world.is_shuffled = world.rng.u8(..4) == 0;
        world.conflicts = world.rng.u8(..10);
        world.refusals = world.rng.choice([0, 0, 0, 50]).unwrap_or(0);
        let mut small = network("small", false);
        small.subnet = Some("192.0.2.0/30".parse().unwrap());
        small.gateway = Some([192, 0, 2, 1].into());
        world.put(Object::Network(Arc::new(small)));
        let event_at = Rc::new(Cell::new(world.now));
        let followed = Rc::new(Cell::new(0));
        let mut law = Law {
            event_at: event_at.clone(),
            followed: followed.clone(),
            updates: RefCell::default(),
        };
        world.checks.push(Box::new(move |before, now| law.check(before, now)));
        History {
            world,
            services: Vec::new(),
            n_names: 0,
            event_at,
            followed,
        }
    }

    fn run(mut self, seen: &mut Seen) {
        let mut has_waited = false;
        let mut is_in_vain = false;
        for _ in 0..self.world.rng.usize(3..12) {
            self.event_at.set(self.world.now);
            self.event();
            self.reconcile(seen);
            is_in_vain |= !self.world.complaints.is_empty();
            has_waited |= self
                .world
                .snapshot
                .tasks()
                .any(|task| task.is_wanted() && task.status.state.is_terminal());
            let rest = self.world.rng.choice([0, 1, 300, 2_000, 12_000]).unwrap_or(0);
            self.live(Duration::from_millis(rest));
        }
        self.live(seconds(15));
        self.check_pace();
        self.repair();
        self.live(seconds(300));
        seen.calm += usize::from(self.check_rest());
        seen.jobs += self.n_jobs_done();
        seen.waited += usize::from(has_waited);
        seen.in_vain += usize::from(is_in_vain);
        seen.refused += usize::from(self.world.refusals > 0);
        seen.followed += self.followed.get();
    }

    /// What follows one event is bounded by what there is.
    fn reconcile(&mut self, seen: &mut Seen) {
        let snapshot = &self.world.snapshot;
        let asked: u64 = snapshot.services().map(|service| service.replicas().unwrap_or(2)).sum();
        let n_things = snapshot.tasks().count() + snapshot.services().count() + snapshot.networks().count();
        let n_most = 8 * (n_things + usize::try_from(asked).unwrap());
        (self.world.n_commits, self.world.n_writes) = (0, 0);
        self.world.reconcile();
        let n_writes = self.world.n_writes;
        assert!(
            n_writes <= n_most,
            "{n_writes} writes for one event, among {n_things} and {asked} asked for"
        );
        seen.most_writes = seen.most_writes.max(n_writes);
    }

    fn live(&mut self, time: Duration) {
        let until = self.world.now + time;
        let mut n = 0;
        while self.world.now < until {
            self.world.advance(until);
            n += 1;
            assert!(n < 200_000, "no progress: {} until {until}", self.world.now);
        }
    }

    /// However often tasks end, no slot writes more than its restart delay lets it.
    fn check_pace(&mut self) {
        self.event_at.set(Time(0));
        (self.world.n_commits, self.world.n_writes) = (0, 0);
        let time = seconds(10);
        let n_slots: u64 = self
            .world
            .snapshot
            .services()
            .map(|service| service.replicas().unwrap_or(2))
            .sum();
        self.live(time);
        let delays = self
            .world
            .snapshot
            .services()
            .map(|service| restart_policy(&service.task_spec()).delay);
        let delay = delays.min().unwrap_or(time).max(FOLLOW_LEAST);
        let n_turns = u64::try_from(time.as_millis() / delay.as_millis()).unwrap() + 2;
        let n_most = 12 * (n_slots + 1) * n_turns + 100;
        let n = self.world.n_writes as u64;
        assert!(n <= n_most, "{n} writes in {time:?} for {n_slots} slots with {delay:?}");
    }

    /// Whether all is as it was wished, as far as it can be had; then nothing moves.
    fn check_rest(&mut self) -> bool {
        let is_healthy = |task: &&Arc<crate::model::swarm::Task>| {
            let image = task.spec.container_spec.as_ref().and_then(|spec| spec.image.as_deref());
            let runs = image.is_some_and(|image| image.starts_with("healthy")) && !task.status.state.is_terminal();
            runs || task.job.is_some() && task.status.state == TaskState::Complete
        };
        let snapshot = self.world.snapshot.clone();
        if !snapshot
            .tasks()
            .filter(|task| task.is_wanted())
            .all(|task| is_healthy(&task))
        {
            return false;
        }
        (self.world.n_commits, self.world.n_writes) = (0, 0);
        let complaints = self.world.complaints.clone();
        self.live(seconds(3_600));
        assert_eq!(self.world.n_commits, 0, "it is not at rest");
        assert_eq!(self.world.complaints, complaints);
        assert_eq!(
            self.world.wake_at, None,
            "somebody wakes although nothing is to be done"
        );
        true
    }

    /// Those of which each slot has completed in the present run.
    fn n_jobs_done(&self) -> usize {
        let snapshot = &self.world.snapshot;
        let is_done = |service: &&Arc<Service>| {
            let Some(status) = &service.job else { return false };
            let tasks = snapshot.tasks_of_service(service.id.as_str());
            let present = tasks.filter(|task| task.job.is_some_and(|run| run.iteration == status.iteration));
            let n_done = present.filter(|task| task.status.state == TaskState::Complete).count() as u64;
            n_done > 0 && service.replicas().is_none_or(|total| n_done == total)
        };
        snapshot.services().filter(is_done).count()
    }

    fn repair(&mut self) {
        for service in self.services.clone() {
            self.event_at.set(self.world.now);
            // A job that is well ends, or goes on for ever.
            let image = match self.world.service(&service).is_job() && self.world.rng.u8(..4) != 0 {
                true => "exits:repaired",
                false => "healthy:repaired",
            };
            self.world.update(&service, |spec| {
                spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(image);
                spec["UpdateConfig"]["FailureAction"] = json!("continue");
            });
            self.world.reconcile();
        }
    }

    fn event(&mut self) {
        let service = self.world.rng.choice(&self.services).cloned();
        let Some(id) = service.filter(|_| self.world.rng.u8(..6) != 0) else {
            return self.create();
        };
        match self.world.rng.u8(..16) {
            0..=4 => {
                let (image, version) = (self.image(), self.world.rng.u8(..3));
                let mut value = serde_json::to_value(&*self.world.service(&id).spec).unwrap();
                self.configure(&mut value);
                value["TaskTemplate"]["ContainerSpec"]["Image"] = json!(format!("{image}:{version}"));
                self.world.update(&id, |spec| *spec = value);
            }
            5..=6 if !self.world.service(&id).is_global() => {
                let replicas = self.world.rng.u64(..6);
                match self.world.service(&id).mode() {
                    Mode::Replicated { .. } => self.world.scale(&id, replicas),
                    Mode::ReplicatedJob { max_concurrent, .. } => self.world.update(&id, |spec| {
                        let mode = json!({ "MaxConcurrent": max_concurrent, "TotalCompletions": replicas });
                        spec["Mode"] = json!({ "ReplicatedJob": mode });
                    }),
                    Mode::Global | Mode::GlobalJob => {}
                }
            }
            7 => drop(self.world.roll_back(&id)),
            8 => {
                self.services.retain(|other| *other != id);
                self.world.remove(&id);
            }
            9..=10 => {
                let n = self.world.rng.u8(1..=2);
                let all = [Availability::DRAIN, Availability::PAUSE, Availability::ACTIVE];
                let availability = self.world.rng.choice(all).unwrap_or(Availability::ACTIVE);
                self.world.availability(n, availability);
            }
            11 => {
                let is_up = self.world.rng.bool();
                self.world.change_node(2, |node: &mut Node| node.is_up = is_up);
                let ids: Vec<Id> = self.world.snapshot.tasks().map(|task| task.id.clone()).collect();
                for id in ids {
                    self.world.acts.entry(id).or_insert(self.world.now);
                }
            }
            12 => {
                let label = self.world.rng.choice(["a", "b"]).unwrap_or("a");
                let labels = [("zone".to_owned(), label.to_owned())].into_iter().collect();
                self.world
                    .change_node(1, |node: &mut Node| node.spec.labels = Some(labels));
            }
            13 => {
                let limit = self.world.rng.choice([-1, 0, 1, 5]).unwrap_or(5);
                self.world.task_history(limit);
            }
            14 => {
                let serving = self.world.serving(&id);
                if let Some(task) = self.world.rng.choice(&serving) {
                    let id = task.id.clone();
                    let state = self
                        .world
                        .rng
                        .choice([TaskState::Failed, TaskState::Complete, TaskState::Rejected]);
                    self.world.end(&id, state.unwrap_or(TaskState::Failed), "");
                }
            }
            _ => self.create(),
        }
    }

    fn image(&mut self) -> &'static str {
        let images = ["rejected", "rejected", "fails", "crashes", "exits", "healthy"];
        self.world.rng.choice(images).unwrap_or("healthy")
    }

    fn create(&mut self) {
        if self.services.len() >= 3 {
            return;
        }
        self.n_names += 1;
        let (name, image) = (format!("s{}", self.n_names), self.image());
        let mut value = replicated(&name, image, self.world.rng.u64(..5));
        match self.world.rng.u8(..8) {
            0..=1 => value["Mode"] = json!({ "Global": {} }),
            2 => {
                let mode =
                    json!({ "MaxConcurrent": self.world.rng.u64(1..4), "TotalCompletions": self.world.rng.u64(..5) });
                value["Mode"] = json!({ "ReplicatedJob": mode });
            }
            3 => value["Mode"] = json!({ "GlobalJob": {} }),
            _ => {}
        }
        self.configure(&mut value);
        self.services.push(self.world.create(spec(value)));
    }

    fn configure(&mut self, value: &mut Value) {
        let rng = &mut self.world.rng;
        for key in ["UpdateConfig", "RollbackConfig"] {
            value[key] = json!({
                "Parallelism": rng.u64(..3),
                "Delay": rng.choice([0u64, 0, 2_000_000_000]),
                "FailureAction": rng.choice(if key == "UpdateConfig" { &["pause", "continue", "rollback"][..] } else { &["pause", "continue"] }),
                "Monitor": rng.choice([0u64, 1_000_000, 3_000_000_000]),
                "MaxFailureRatio": rng.choice([0.0, 0.5, 1.0]),
                "Order": rng.choice(["stop-first", "start-first"]),
            });
        }
        let policy = &mut value["TaskTemplate"]["RestartPolicy"];
        policy["Condition"] = json!(rng.choice(["any", "any", "any", "on-failure", "none"]));
        policy["Delay"] = json!(rng.choice([0u64, 1_000_000, 1_000_000_000, 5_000_000_000]));
        policy["MaxAttempts"] = json!(rng.choice([0, 0, 0, 2]));
        policy["Window"] = json!(rng.choice([0u64, 20_000_000_000]));
        value["TaskTemplate"]["Placement"] = match rng.u8(..8) {
            0 => json!({ "Constraints": ["node.labels.zone != b"] }),
            1 => json!({ "Constraints": ["node.labels.zone == nowhere"] }),
            2 => json!({ "MaxReplicas": 1 }),
            _ => Value::Null,
        };
        value["TaskTemplate"]["Networks"] = match rng.u8(..3) {
            0 => json!([{ "Target": "small" }]),
            _ => Value::Null,
        };
        let port = match rng.u8(..4) {
            0 => json!([{ "TargetPort": 80 }]),
            1 => json!([{ "TargetPort": 80, "PublishedPort": rng.u16(30_000..30_003), "PublishMode": "host" }]),
            _ => Value::Null,
        };
        value["EndpointSpec"] = json!({ "Ports": port });
    }
}

/// What holds of each new task.
struct Law {
    event_at: Rc<Cell<Time>>,
    followed: Rc<Cell<usize>>,
    /// How many tasks updates made, by service, slot, template and version of the spec.
    updates: RefCell<BTreeMap<(Id, Slot, u64, u64), usize>>,
}

impl Law {
    fn check(&mut self, before: &Snapshot, now: &Snapshot) {
        let mut new: BTreeMap<(Id, Slot), usize> = BTreeMap::new();
        for (id, task) in now.tasks_since(before) {
            let Some(task) = task.filter(|_| before.task(id.as_str()).is_none()) else {
                continue;
            };
            let slot = Slot::of(task);
            let n_new = new.entry((task.service.clone(), slot.clone())).or_default();
            *n_new += 1;
            assert_eq!(*n_new, 1, "two tasks are made for one slot at once");
            let Some(service) = now.service(task.service.as_str()) else {
                continue;
            };
            if task.cause == Cause::Update {
                let key = (task.service.clone(), slot, task.template, task.spec_version);
                let mut updates = self.updates.borrow_mut();
                let n = updates.entry(key).or_default();
                *n += 1;
                assert!(*n <= 3, "updates make one task after the other: {task:?}");
                continue;
            }
            let slots = slots::of_service(before, task.service.as_str());
            let Some(tasks) = slots.get(&slot) else { continue };
            // What a user or a node did since is a reason of its own, and so is another spec: an update that failed goes back to
            // the one before, once.
            let newest = tasks.iter().max_by_key(|task| task.meta.created_at);
            let made_at = newest.map(|task| task.meta.created_at).unwrap_or_default();
            let is_of_another_spec = newest.is_some_and(|newest| newest.spec_version != task.spec_version);
            let have_ended = tasks
                .iter()
                .all(|task| !task.is_wanted() || task.status.state.is_terminal());
            if !have_ended || is_of_another_spec || self.event_at.get() >= made_at {
                continue;
            }
            self.followed.set(self.followed.get() + 1);
            let delay = restart_policy(&service.task_spec()).delay.max(FOLLOW_LEAST);
            let pause = task.meta.created_at.since(made_at);
            assert!(
                pause >= delay,
                "another {pause:?} after the last was made, not {delay:?}: {tasks:#?} {task:#?}"
            );
        }
    }
}

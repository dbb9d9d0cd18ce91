//! All reconcilers together in a swarm that is changed, killed and crashed at random: what must always hold, holds.
//! `ANYNODE_SEED` runs one seed alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bollard_stubs::models::NodeSpecAvailabilityEnum as Availability;
use serde_json::{Value, json};

use super::testing::{World, replicated, seconds, spec};
use super::{Context, PLANNERS};
use crate::model::swarm::{
    Id, Mode, Node, Order, Service, Task, TaskState, UpdateState, rollback_config, update_config,
};
use crate::store::Snapshot;

const SEEDS: std::ops::Range<u64> = 12..16;
const COMMANDS: usize = 40;
const STEPS_MAX: usize = 600_000;

/// What is promised of a service while an update of healthy tasks goes on that began with all of them running.
type Floors = Rc<RefCell<BTreeMap<Id, u64>>>;

#[test]
fn whatever_happens_what_is_promised_holds() {
    let one = std::env::var("ANYNODE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(SEEDS, |seed| seed..seed + 1);
    let seen = Seen::default();
    for seed in seeds {
        let told = Told(seed);
        Simulation::new(seed, &seen).run();
        drop(told);
    }
    if one.is_none() {
        eprintln!("{seen:?}");
        for what in [
            "Completed",
            "Paused",
            "RollbackCompleted",
            "RollbackStarted",
            "floor",
            "overlap",
            "job done",
            "job again",
        ] {
            assert!(seen.borrow().contains_key(what), "no run has seen {what}: {seen:?}");
        }
    }
}

/// How often something was seen that the runs are for.
type Seen = Rc<RefCell<BTreeMap<String, usize>>>;

fn see(seen: &Seen, what: &str) {
    *seen.borrow_mut().entry(what.to_owned()).or_default() += 1;
}

/// Names the seed when a test panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ANYNODE_SEED={}", self.0);
        }
    }
}

struct Simulation {
    world: World,
    floors: Floors,
    services: Vec<Id>,
    n_names: usize,
    n: usize,
}

impl Simulation {
    fn new(seed: u64, seen: &Seen) -> Simulation {
        let mut world = World::new(3, seed);
        world.longest_step = Duration::from_millis(world.rng.u64(1..2_000));
        world.longest_stop = seconds(world.rng.u64(1..12));
        world.is_shuffled = world.rng.u8(..4) == 0;
        world.conflicts = world.rng.u8(..30);
        let floors = Floors::default();
        let of_check = floors.clone();
        let seen_by_check = seen.clone();
        world.checks.push(Box::new(move |before, now| {
            check(before, now, &of_check.borrow(), &seen_by_check)
        }));
        Simulation {
            world,
            floors,
            services: Vec::new(),
            n_names: 0,
            n: 0,
        }
    }

    fn run(mut self) {
        for _ in 0..COMMANDS {
            self.command();
            let rest = self.world.rng.choice([0, 1, 500, 3_000, 20_000, 200_000]).unwrap_or(0);
            self.live(Duration::from_millis(rest));
        }
        self.floors.borrow_mut().clear();
        for n in 1..=3 {
            self.world.availability(n, Availability::ACTIVE);
            self.world.change_node(n, |node| node.is_up = true);
        }
        self.wake_agents();
        self.live(seconds(900));
        self.check_rest();
    }

    /// Time goes by, and planners crash.
    fn live(&mut self, time: Duration) {
        let until = self.world.now + time;
        while self.world.now < until {
            self.world.advance(until);
            self.n += 1;
            assert!(self.n < STEPS_MAX, "no progress: {} until {until}", self.world.now);
        }
    }

    fn wake_agents(&mut self) {
        let ids: Vec<Id> = self.world.snapshot.tasks().map(|task| task.id.clone()).collect();
        for id in ids {
            self.world.acts.entry(id).or_insert(self.world.now);
        }
    }

    fn command(&mut self) {
        let service = self.world.rng.choice(&self.services).cloned();
        let Some(service) = service.filter(|_| self.world.rng.u8(..8) != 0) else {
            return self.create();
        };
        let n = self.world.rng.u8(1..=3);
        match self.world.rng.u8(..20) {
            0..=7 => self.update(&service),
            8..=9 => {
                let replicas = self.world.rng.u64(..7);
                if matches!(self.world.service(&service).mode(), Mode::Replicated { .. }) {
                    self.floors.borrow_mut().remove(&service);
                    self.world.scale(&service, replicas);
                }
            }
            10 => {
                self.floors.borrow_mut().remove(&service);
                self.world.roll_back(&service);
            }
            11 if self.services.len() > 1 => {
                self.floors.borrow_mut().remove(&service);
                self.services.retain(|other| *other != service);
                self.world.remove(&service);
            }
            12 => {
                self.floors.borrow_mut().clear();
                let all = [Availability::DRAIN, Availability::PAUSE, Availability::ACTIVE];
                let availability = self.world.rng.choice(all).unwrap_or(Availability::ACTIVE);
                self.world.availability(n, availability);
            }
            13 => {
                self.floors.borrow_mut().clear();
                let is_up = self.world.rng.bool();
                self.world.change_node(n, |node: &mut Node| node.is_up = is_up);
                self.wake_agents();
            }
            14 => {
                self.floors.borrow_mut().clear();
                let label = self.world.rng.choice(["a", "b"]).unwrap_or("a");
                let labels = [("zone".to_owned(), label.to_owned())].into_iter().collect();
                self.world
                    .change_node(n, |node: &mut Node| node.spec.labels = Some(labels));
            }
            15..=16 => {
                self.floors.borrow_mut().remove(&service);
                let serving = self.world.serving(&service);
                if let Some(task) = self.world.rng.choice(&serving) {
                    let id = task.id.clone();
                    self.world.end(&id, TaskState::Failed, "task: non-zero exit (137)");
                }
            }
            17 => self.world.update(&service, |spec| spec["Labels"] = json!({ "n": "1" })),
            _ => self.create(),
        }
    }

    fn create(&mut self) {
        if self.services.len() >= 4 {
            return;
        }
        self.n_names += 1;
        let name = format!("s{}", self.n_names);
        let mut value = replicated(&name, "healthy", self.world.rng.u64(..6));
        match self.world.rng.u8(..8) {
            0..=1 => value["Mode"] = json!({ "Global": {} }),
            2 => {
                let mode =
                    json!({ "MaxConcurrent": self.world.rng.u64(1..4), "TotalCompletions": self.world.rng.u64(1..5) });
                value["Mode"] = json!({ "ReplicatedJob": mode });
            }
            3 => value["Mode"] = json!({ "GlobalJob": {} }),
            _ => {}
        }
        self.configure(&mut value);
        let port = json!({ "TargetPort": 80 });
        value["EndpointSpec"] = json!({ "Ports": [port] });
        self.services.push(self.world.create(spec(value)));
    }

    fn configure(&mut self, value: &mut Value) {
        let rng = &mut self.world.rng;
        value["UpdateConfig"] = config(rng, &["pause", "continue", "rollback"]);
        value["RollbackConfig"] = config(rng, &["pause", "continue"]);
        let policy = &mut value["TaskTemplate"]["RestartPolicy"];
        policy["Condition"] = json!(rng.choice(["any", "any", "any", "on-failure", "none"]));
        policy["Delay"] = json!(rng.choice([1_000_000u64, 1_000_000_000, 2_000_000_000, 5_000_000_000, 5_000_000_000]));
        policy["MaxAttempts"] = json!(rng.choice([0, 0, 0, 2]));
        if rng.u8(..3) == 0 {
            policy["Window"] = json!(20_000_000_000u64);
        }
    }

    fn update(&mut self, id: &Id) {
        let is_calm = is_converged(&self.world.snapshot, self.world.service(id));
        let is_label = self.world.rng.u8(..10) == 0;
        let image = match self.world.rng.u8(..10) {
            0 => "rejected",
            1 => "fails",
            2 => "crashes",
            3 => "exits",
            // What a job is for.
            4..=7 if self.world.service(id).is_job() => "exits",
            _ => "healthy",
        };
        let mut value = serde_json::to_value(&*self.world.service(id).spec).unwrap();
        if self.world.rng.u8(..3) == 0 {
            self.configure(&mut value);
        }
        let version = self.world.rng.u8(..);
        value["TaskTemplate"]["ContainerSpec"]["Image"] = json!(format!("{image}:{version}"));
        let placement = &mut value["TaskTemplate"]["Placement"];
        *placement = match self.world.rng.u8(..8) {
            0 => json!({ "Constraints": ["node.labels.zone != b"] }),
            1 => json!({ "Preferences": [{ "Spread": { "SpreadDescriptor": "node.labels.zone" } }] }),
            _ => Value::Null,
        };
        if is_label {
            value["Labels"] = json!({ "x": version.to_string() });
        }
        self.floors.borrow_mut().remove(id);
        self.world.update(id, |spec| *spec = value);
        let service = self.world.service(id).clone();
        let was_healthy = |task: &&std::sync::Arc<Task>| is_healthy(task);
        let is_calm = is_calm && self.world.serving(id).iter().all(|task| was_healthy(&task));
        let is_placed = service
            .spec
            .task_template
            .as_ref()
            .is_none_or(|spec| spec.placement.is_none());
        if let Some(replicas) = service
            .replicas()
            .filter(|_| is_calm && image == "healthy" && is_placed && !service.is_job())
        {
            let config = update_config(&service.spec);
            let down = match (config.order, config.parallelism) {
                (Order::StartFirst, _) => 0,
                (Order::StopFirst, 0) => replicas,
                (Order::StopFirst, parallelism) => parallelism,
            };
            self.floors
                .borrow_mut()
                .insert(id.clone(), replicas.saturating_sub(down));
        }
    }

    fn check_rest(&mut self) {
        let snapshot = self.world.snapshot.clone();
        let now = self.world.now;
        for (name, plan) in PLANNERS {
            let plan = plan(&mut Context {
                snapshot: &snapshot,
                now,
                shared_ports: &Default::default(),
                ids: &mut || Id::from("none"),
            });
            let is_crashing = snapshot.services().any(|service| !self.is_settled(service));
            assert!(
                plan.writes.is_empty() || is_crashing,
                "the {name} is not at rest: {:?}",
                plan.writes
            );
        }
        for task in snapshot.tasks() {
            assert!(
                snapshot.service(task.service.as_str()).is_some(),
                "{} stays",
                task.name()
            );
        }
        let mut ports = BTreeSet::new();
        let mut vips = BTreeSet::new();
        for service in snapshot.services() {
            let name = service.name();
            let state = service.update.as_ref().map(|update| update.state);
            let is_open = matches!(state, Some(UpdateState::Updating | UpdateState::RollbackStarted));
            assert!(!is_open, "the update of {name} does not end: {:?}", service.update);
            for port in &service.endpoint.ports {
                assert!(ports.insert(port.published_port), "{name} has a port that another has");
            }
            for vip in &service.endpoint.vips {
                assert!(vips.insert(vip.addr), "{name} has an address that another has");
            }
            let serving: Vec<_> = self.world.serving(&service.id);
            let is_paused = matches!(state, Some(UpdateState::Paused | UpdateState::RollbackPaused));
            if self.is_settled(service) && !is_paused && is_always_restarted(service) && !service.is_job() {
                let wish = service.replicas().unwrap_or_else(|| n_eligible(&snapshot, service));
                assert_eq!(
                    u64::try_from(serving.len()).unwrap(),
                    wish,
                    "{name}: {:#?}",
                    self.world.tasks(&service.id)
                );
            }
            if self.is_settled(service) {
                check_history(&snapshot, service);
            }
            check_job(&snapshot, service);
        }
    }

    /// All of its tasks are of an image that runs.
    fn is_settled(&self, service: &Service) -> bool {
        let tasks = self.world.tasks(&service.id);
        let image = service
            .spec
            .task_template
            .as_ref()
            .and_then(|spec| spec.container_spec.as_ref()?.image.clone());
        let is_declared = image.is_some_and(|image| image.starts_with("healthy"));
        is_declared
            && tasks
                .iter()
                .filter(|task| task.is_wanted())
                .all(|task| is_healthy(task))
    }
}

fn config(rng: &mut fastrand::Rng, actions: &[&str]) -> Value {
    json!({
        "Parallelism": rng.u64(..4),
        "Delay": rng.choice([0u64, 0, 2_000_000_000, 7_000_000_000]),
        "FailureAction": rng.choice(actions),
        "Monitor": rng.choice([0u64, 1_000_000, 3_000_000_000]),
        "MaxFailureRatio": rng.choice([0.0, 0.0, 0.5]),
        "Order": rng.choice(["stop-first", "start-first"]),
    })
}

fn is_healthy(task: &Task) -> bool {
    let image = task.spec.container_spec.as_ref().and_then(|spec| spec.image.as_deref());
    image.is_some_and(|image| image.starts_with("healthy"))
}

/// A job that has come to rest is done, unless its program fails or goes on for ever, or no node takes it.
fn check_job(snapshot: &Snapshot, service: &Service) {
    let Some(status) = &service.job else { return };
    let task_spec = service.task_spec();
    let image = task_spec.container_spec.as_ref().and_then(|spec| spec.image.as_deref());
    if !image.is_some_and(|image| image.starts_with("exits")) {
        return;
    }
    let tasks = snapshot.tasks_of_service(service.id.as_str());
    let present = tasks.filter(|task| task.job.is_some_and(|run| run.iteration == status.iteration));
    let mut done: BTreeMap<super::slots::Slot, usize> = BTreeMap::new();
    for task in present.filter(|task| task.status.state == TaskState::Complete) {
        *done.entry(super::slots::Slot::of(task)).or_default() += 1;
    }
    let name = service.name();
    assert!(
        done.values().all(|n| *n == 1),
        "{name}: a slot is done more than once: {done:?}"
    );
    let n_wished = match service.replicas() {
        Some(total) if n_eligible(snapshot, service) > 0 => total,
        Some(_) => 0,
        None => n_eligible(snapshot, service),
    };
    assert!(
        done.len() as u64 >= n_wished,
        "{name}: {} of {n_wished} are done",
        done.len()
    );
}

fn is_always_restarted(service: &Service) -> bool {
    let policy = service
        .spec
        .task_template
        .as_ref()
        .map(crate::model::swarm::restart_policy);
    policy.is_some_and(|policy| {
        policy.condition == crate::model::swarm::RestartCondition::Any && policy.max_attempts == 0
    })
}

fn n_eligible(snapshot: &Snapshot, service: &Service) -> u64 {
    let nodes = snapshot.nodes().filter(|node| {
        node.is_up
            && node.availability() != crate::model::swarm::Availability::Drain
            && super::slots::meets(&service.task_spec(), node)
    });
    u64::try_from(nodes.count()).unwrap()
}

fn is_converged(snapshot: &Snapshot, service: &Service) -> bool {
    let live: Vec<_> = snapshot
        .tasks_of_service(service.id.as_str())
        .filter(|task| task.is_wanted())
        .collect();
    let is_good = |task: &&std::sync::Arc<Task>| {
        let node = task.node.as_ref().and_then(|n| snapshot.node(n.as_str()));
        let is_lost = node.is_none_or(|node| {
            !node.is_up
                || node.availability() == crate::model::swarm::Availability::Drain
                || !super::slots::meets(&task.spec, node)
        });
        task.is_serving() && !is_lost && super::is_up_to_date(snapshot, task)
    };
    let wish = service.replicas().unwrap_or(u64::MAX);
    u64::try_from(live.len()).unwrap() == wish && live.iter().all(is_good)
}

fn check_history(snapshot: &Snapshot, service: &Service) {
    let policy = service
        .spec
        .task_template
        .as_ref()
        .map(crate::model::swarm::restart_policy);
    let limit = match policy.map_or(0, |policy| policy.max_attempts) {
        0 => 5,
        attempts => usize::try_from(attempts).unwrap() + 1,
    };
    for (place, slot) in super::slots::of_service(snapshot, service.id.as_str()) {
        assert!(
            slot.len() <= limit.max(1),
            "{place:?} of {} keeps {}",
            service.name(),
            slot.len()
        );
    }
}

/// What holds after each step.
fn check(before: &Snapshot, now: &Snapshot, floors: &BTreeMap<Id, u64>, seen: &Seen) {
    let mut touched = BTreeSet::new();
    for (id, service) in now.services_since(before) {
        let state = |service: &Service| service.update.as_ref().map(|update| update.state);
        let old = before.service(id.as_str()).and_then(|service| state(service));
        if let Some(state) = service
            .and_then(|service| state(service))
            .filter(|state| Some(*state) != old)
        {
            see(seen, &format!("{state:?}"));
        }
        let run = |service: &Service| service.job.as_ref().map_or(0, |job| job.iteration);
        if service.map_or(0, |service| run(service)) > before.service(id.as_str()).map_or(0, |service| run(service)) {
            see(seen, "job again");
        }
    }
    for (id, task) in now.tasks_since(before) {
        let (Some(task), Some(old)) = (task, before.task(id.as_str())) else {
            continue;
        };
        assert!(task.desired >= old.desired, "{} is wished back", task.name());
        assert!(task.status.state >= old.status.state, "{} goes back", task.name());
        assert!(old.node.is_none() || old.node == task.node, "{} moves", task.name());
        if task.job.is_some() && old.status.state != task.status.state && task.status.state == TaskState::Complete {
            see(seen, "job done");
        }
        touched.insert(task.service.clone());
    }
    for id in &touched {
        let Some(service) = now.service(id.as_str()) else {
            continue;
        };
        let mut running: BTreeMap<_, Vec<&Task>> = BTreeMap::new();
        for task in now.tasks_of_service(id.as_str()).filter(|task| task.is_serving()) {
            running.entry(super::slots::Slot::of(task)).or_default().push(task);
        }
        if let Mode::ReplicatedJob { max_concurrent, .. } = service.mode() {
            let n = running.values().map(Vec::len).sum::<usize>() as u64;
            let most = before.service(id.as_str()).map_or(0, |before| match before.mode() {
                Mode::ReplicatedJob { max_concurrent, .. } => max_concurrent,
                _ => 0,
            });
            assert!(
                n <= max_concurrent.max(most),
                "{} runs {n} of {max_concurrent} at a time",
                service.name()
            );
        }
        let n_running: usize = running.values().map(Vec::len).sum();
        for tasks in running.values().filter(|tasks| tasks.len() > 1) {
            let is_overlap = tasks.len() == 2 && may_overlap(service) && tasks[0].template != tasks[1].template;
            let is_overlap = is_overlap
                || tasks.len() == 2
                    && may_overlap(service)
                    && tasks.iter().any(|task| !super::is_up_to_date(now, task));
            see(seen, "overlap");
            assert!(is_overlap, "two run in one slot: {tasks:#?}");
        }
        if let Some(floor) = floors.get(id) {
            let n_running = u64::try_from(n_running).unwrap();
            see(seen, "floor");
            assert!(n_running >= *floor, "{} has {n_running} of {floor}", service.name());
        }
    }
}

/// An update of it, or of what it was before, starts first.
fn may_overlap(service: &Service) -> bool {
    let previous = service.previous.as_ref().map(|previous| &previous.spec);
    let mut specs = std::iter::once(&service.spec).chain(previous);
    specs.any(|spec| update_config(spec).order == Order::StartFirst || rollback_config(spec).order == Order::StartFirst)
}

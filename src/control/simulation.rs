//! The reconcilers against a world of chance: an agent that takes its time, tasks that fail, commands at any moment, a
//! control plane that dies between any two commits. The clock is a number. ANYNODE_SEED repeats a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::{NodeSpec, NodeSpecAvailabilityEnum, SwarmSpec, TaskSpecPlacement};
use serde_json::json;

use super::{Context, PLANNERS};
use crate::model::swarm::{
    Cause, Generic, Id, Key, Kind, Meta, Mode, Network, Node, Object, Order, Service, ServiceSpec, Swarm, Task,
    TaskState, Time, UpdateState, Write, update_config,
};
use crate::store::{Snapshot, THIS_REVISION};

struct World {
    snapshot: Snapshot,
    now: Time,
    random: fastrand::Rng,
    /// Tasks whose image begins so never run.
    is_chaotic: bool,
    wake_at: Option<Time>,
    n_ids: u128,
}

fn seed() -> u64 {
    let seed = std::env::var("ANYNODE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("ANYNODE_SEED={seed}");
    seed
}

fn meta(now: Time) -> Meta {
    Meta::new(THIS_REVISION, now)
}

fn node(id: &str, now: Time) -> Node {
    Node {
        id: id.into(),
        meta: meta(now),
        spec: NodeSpec {
            availability: Some(NodeSpecAvailabilityEnum::ACTIVE),
            ..NodeSpec::default()
        },
        hostname: format!("host-{id}"),
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
        nano_cpus: 4_000_000_000,
        memory: 8 << 30,
        engine_version: "1".to_owned(),
        engine_labels: BTreeMap::new(),
        generic: Generic::default(),
        is_manager: true,
        is_up: true,
        addr: [127, 0, 0, 1].into(),
    }
}

impl World {
    fn new(seed: u64, nodes: &[&str]) -> World {
        let mut world = World {
            snapshot: Snapshot::default(),
            now: Time(1_000_000_000_000),
            random: fastrand::Rng::with_seed(seed),
            is_chaotic: false,
            wake_at: None,
            n_ids: 0,
        };
        let now = world.now;
        let ingress = Network {
            id: "ingress".into(),
            meta: meta(now),
            name: "ingress".to_owned(),
            labels: BTreeMap::new(),
            driver: "overlay".to_owned(),
            options: BTreeMap::new(),
            is_internal: false,
            is_attachable: false,
            is_ingress: true,
            ipv6: false,
            subnet: None,
            gateway: None,
            range: None,
            auxiliary: Default::default(),
        };
        let swarm = Swarm {
            id: "swarm".into(),
            meta: meta(now),
            spec: SwarmSpec::default(),
            node: nodes[0].into(),
            join_token_worker: String::new(),
            join_token_manager: String::new(),
            addr_pool: vec!["10.0.0.0/8".parse().unwrap()],
            subnet_size: 24,
            authority: None,
            unlock_key: None,
            data_path_port: 4789,
        };
        let mut writes = vec![
            Write::Put(Object::Network(Arc::new(ingress))),
            Write::Put(Object::Swarm(Arc::new(swarm))),
        ];
        writes.extend(nodes.iter().map(|id| Write::Put(Object::Node(Arc::new(node(id, now))))));
        world.commit(writes);
        world
    }

    fn commit(&mut self, writes: Vec<Write>) {
        let before = self.snapshot.clone();
        let (next, _) = before.next(&before, writes).unwrap();
        self.snapshot = next;
        self.check_step(&before);
    }

    /// What holds between any two commits.
    fn check_step(&self, before: &Snapshot) {
        for (id, task) in self.snapshot.tasks_since(before) {
            if let (None, Some(new)) = (before.task(id.as_str()), task) {
                self.check_not_done(before, new);
            }
            let (Some(was), Some(is)) = (before.task(id.as_str()), task) else {
                continue;
            };
            assert!(was.status.state <= is.status.state, "{was:?} went back to {is:?}");
            assert!(was.desired <= is.desired, "{was:?} is wished back to {is:?}");
        }
        for service in self.snapshot.services() {
            // Of the two of an update that starts first, another update may find both.
            let n = self.most_in_a_slot(service.id.as_str());
            assert!(n <= 2, "{n} tasks in one slot of {}", service.name());
            self.check_concurrency(service);
        }
    }

    /// What a run of a job has completed is not run again.
    fn check_not_done(&self, before: &Snapshot, new: &Task) {
        let Some(run) = new.job else { return };
        let is_same = |task: &&Arc<Task>| {
            task.job == Some(run) && task.slot == new.slot && (!run.is_global || task.node == new.node)
        };
        let mut same = before.tasks_of_service(new.service.as_str()).filter(is_same);
        let done = same.find(|task| task.status.state == TaskState::Complete);
        assert!(done.is_none(), "{new:?} is made although {done:?} has completed");
    }

    /// No more of a job's tasks are on their way than may be.
    fn check_concurrency(&self, service: &Service) {
        let (Mode::ReplicatedJob { max_concurrent, .. }, Some(status)) = (service.mode(), &service.job) else {
            return;
        };
        let is_going =
            |task: &&Arc<Task>| task.is_live() && task.job.is_some_and(|run| run.iteration == status.iteration);
        let n = self
            .snapshot
            .tasks_of_service(service.id.as_str())
            .filter(is_going)
            .count() as u64;
        assert!(
            n <= max_concurrent,
            "{n} tasks of {max_concurrent} of {}",
            service.name()
        );
    }

    /// At the end of all of a job's present run: each slot has completed once, and nothing else goes on.
    fn check_job_is_done(&self, service: &Service) {
        let n_wished = service.replicas().unwrap_or(3);
        let tasks = self.tasks_in_short(service.id.as_str()).join("\n");
        let all = || self.snapshot.tasks_of_service(service.id.as_str());
        assert!(all().all(|task| task.status.state.is_terminal()), "{tasks}");
        let iteration = service.job.as_ref().map(|status| status.iteration);
        let is_done = |task: &&Arc<Task>| {
            task.job.map(|run| run.iteration) == iteration && task.status.state == TaskState::Complete
        };
        assert_eq!(all().filter(is_done).count() as u64, n_wished, "{tasks}");
        assert_eq!(service.update, None);
    }

    fn most_in_a_slot(&self, service: &str) -> usize {
        let mut serving: BTreeMap<(u64, Option<Id>), usize> = BTreeMap::new();
        for task in self.serving(service) {
            *serving
                .entry((task.slot, task.node.clone().filter(|_| task.slot == 0)))
                .or_default() += 1;
        }
        serving.into_values().max().unwrap_or(0)
    }

    /// Has the reconcilers plan once each; with chance the control plane dies in between.
    fn reconcile_once(&mut self) -> bool {
        let mut is_at_rest = true;
        self.wake_at = None;
        for (name, planner) in PLANNERS {
            if self.is_chaotic && self.random.u8(..10) == 0 {
                return false;
            }
            let snapshot = self.snapshot.clone();
            let n_ids = &mut self.n_ids;
            let mut ids = || {
                *n_ids += 1;
                Id::from_bits(*n_ids)
            };
            let mut context = Context {
                snapshot: &snapshot,
                now: self.now,
                shared_ports: &Default::default(),
                ids: &mut ids,
            };
            let plan = planner(&mut context);
            self.wake_at = [self.wake_at, plan.wake_at].into_iter().flatten().min();
            assert!(
                plan.wake_at.is_none_or(|at| at > self.now),
                "{name} wants to be woken in the past"
            );
            if !plan.writes.is_empty() {
                is_at_rest = false;
                self.commit(plan.writes);
            }
        }
        is_at_rest
    }

    fn reconcile(&mut self) {
        for _ in 0..200 {
            if self.reconcile_once() {
                return;
            }
        }
        panic!("the reconcilers never rest");
    }

    /// The agent moves some tasks a step on.
    fn agent(&mut self, share: u8) {
        let tasks: Vec<Arc<Task>> = self.snapshot.tasks().cloned().collect();
        for task in tasks {
            if self.random.u8(..100) >= share {
                continue;
            }
            self.step(&task);
        }
    }

    fn step(&mut self, task: &Task) {
        let Some(next) = self.next_state(task) else { return };
        let mut changed = task.clone();
        changed.status.state = next;
        changed.status.at = self.now;
        if next == TaskState::Running {
            changed.status.ran_at = Some(self.now);
        }
        self.commit(vec![Write::Put(Object::Task(Arc::new(changed)))]);
    }

    fn next_state(&mut self, task: &Task) -> Option<TaskState> {
        let state = task.status.state;
        if state < TaskState::Assigned || state.is_terminal() {
            return None;
        }
        if task.desired >= TaskState::Shutdown {
            return Some(TaskState::Shutdown);
        }
        let image = task
            .spec
            .container_spec
            .as_ref()
            .and_then(|container| container.image.clone());
        let is = |what: &str| image.as_ref().is_some_and(|image| image.starts_with(what));
        let (is_bad, is_once) = (is("bad"), is("once"));
        match state {
            TaskState::Assigned => Some(TaskState::Accepted),
            TaskState::Accepted => Some(TaskState::Preparing),
            TaskState::Preparing => Some(TaskState::Ready),
            TaskState::Ready if task.desired < TaskState::Running => None,
            TaskState::Ready => Some(TaskState::Starting),
            TaskState::Starting if is_bad => Some(TaskState::Failed),
            TaskState::Starting => Some(TaskState::Running),
            TaskState::Running if is_once && self.is_chaotic && self.random.u8(..10) == 0 => Some(TaskState::Failed),
            TaskState::Running if is_once => Some(TaskState::Complete),
            TaskState::Running if self.is_chaotic && self.random.u8(..200) == 0 => {
                Some([TaskState::Failed, TaskState::Complete][self.random.usize(..2)])
            }
            _ => None,
        }
    }

    /// Time goes on, to the next moment that somebody waits for or a little.
    fn tick(&mut self) {
        let little = self.now + Duration::from_millis(self.random.u64(1..300));
        self.now = match self.wake_at {
            Some(at) if self.random.u8(..4) == 0 => at.max(little),
            _ => little,
        };
    }

    fn turn(&mut self) {
        match self.is_chaotic {
            true => drop(self.reconcile_once()),
            false => self.reconcile(),
        }
        self.agent(60);
        self.tick();
    }

    /// Until nothing moves any more.
    fn settle(&mut self) {
        self.is_chaotic = false;
        for _ in 0..20_000 {
            self.reconcile();
            let before = self.snapshot.revision();
            self.agent(100);
            if self.snapshot.revision() == before {
                match self.wake_at {
                    Some(at) => self.now = at,
                    None => return,
                }
            }
            self.now = self.now + Duration::from_millis(10);
        }
        panic!("it never comes to rest");
    }

    fn put_service(&mut self, name: &str, spec: ServiceSpec) {
        let now = self.now;
        let next = match self.snapshot.service(name) {
            None => Service::new(name.into(), spec, None, now, THIS_REVISION),
            Some(before) => before.declared(spec, None, now, THIS_REVISION),
        };
        self.commit(vec![Write::Put(Object::Service(Arc::new(next)))]);
    }

    fn rollback_by_hand(&mut self, name: &str) {
        let Some(before) = self.snapshot.service(name) else {
            return;
        };
        let Some(next) = before.rolled_back(self.now, THIS_REVISION) else {
            return;
        };
        self.commit(vec![Write::Put(Object::Service(Arc::new(next)))]);
    }

    fn remove_service(&mut self, name: &str) {
        if self.snapshot.service(name).is_some() {
            let key = Key {
                kind: Kind::Service,
                id: name.into(),
            };
            self.commit(vec![Write::Remove(key)]);
        }
    }

    fn set_availability(&mut self, id: &str, availability: NodeSpecAvailabilityEnum) {
        let mut node = Node::clone(self.snapshot.node(id).unwrap());
        node.spec.availability = Some(availability);
        self.commit(vec![Write::Put(Object::Node(Arc::new(node)))]);
    }

    fn serving(&self, name: &str) -> Vec<&Arc<Task>> {
        self.snapshot
            .tasks_of_service(name)
            .filter(|task| task.is_serving())
            .collect()
    }

    fn tasks_in_short(&self, service: &str) -> Vec<String> {
        let mut tasks: Vec<&Arc<Task>> = self.snapshot.tasks_of_service(service).collect();
        tasks.sort_by_key(|task| (task.slot, task.meta.created_at));
        let short = |task: &&Arc<Task>| {
            let (state, template, node) = (task.status.state, task.template, &task.node);
            let (cause, desired, hold) = (task.cause, task.desired, &task.hold);
            format!(
                "{} {node:?} t{template} {cause:?} {desired:?} {state:?} {hold:?} {:?}",
                task.slot, task.status.error
            )
        };
        tasks.iter().map(short).collect()
    }

    fn update_state(&self, name: &str) -> Option<UpdateState> {
        Some(self.snapshot.service(name)?.update.as_ref()?.state)
    }
}

fn spec(image: &str, replicas: u64, more: serde_json::Value) -> ServiceSpec {
    let mut spec = json!({
        "Name": "web",
        "TaskTemplate": { "ContainerSpec": { "Image": image } },
        "Mode": { "Replicated": { "Replicas": replicas } },
        "EndpointSpec": { "Ports": [{ "TargetPort": 80, "PublishedPort": 8080 }] },
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

fn random_spec(random: &mut fastrand::Rng, name: &str) -> ServiceSpec {
    let image = format!(
        "{}:{}",
        match name.starts_with("job") || name.starts_with("once") {
            _ if random.u8(..6) == 0 => "bad",
            true => "once",
            false => "good",
        },
        random.u8(..3)
    );
    let order = |random: &mut fastrand::Rng| ["stop-first", "start-first"][random.usize(..2)];
    let update = |random: &mut fastrand::Rng, actions: &[&str]| {
        json!({
            "Parallelism": random.u8(..4),
            "Delay": random.u64(..3) * 1_000_000_000,
            "Monitor": random.u64(..4) * 1_000_000_000,
            "FailureAction": (actions[random.usize(..actions.len())]),
            "MaxFailureRatio": ([0.0, 0.3][random.usize(..2)]),
            "Order": order(random),
        })
    };
    let mut value = json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": { "Image": image },
            "RestartPolicy": {
                "Condition": (["any", "on-failure", "any", "any", "none"][random.usize(..5)]),
                "Delay": random.u64(..3) * 1_000_000_000,
                "MaxAttempts": ([0, 0, 3][random.usize(..3)]),
            },
        },
        "UpdateConfig": update(random, &["pause", "continue", "rollback"]),
        "RollbackConfig": update(random, &["pause", "continue"]),
    });
    value["Mode"] = match random.u8(..5) {
        _ if name.starts_with("global") => json!({ "Global": {} }),
        _ if name.starts_with("once") => json!({ "GlobalJob": {} }),
        n if name.starts_with("job") => json!({
            "ReplicatedJob": { "MaxConcurrent": n.max(1), "TotalCompletions": random.u8(..8) }
        }),
        _ => json!({ "Replicated": { "Replicas": random.u8(..6) } }),
    };
    if name.starts_with("job") || name.starts_with("once") {
        value["UpdateConfig"] = serde_json::Value::Null;
    }
    serde_json::from_value(value).unwrap()
}

#[test]
fn whatever_happens_it_ends_as_it_was_wished() {
    let seed = seed();
    let n_runs = std::env::var("ANYNODE_RUNS").map_or(60, |n| n.parse().unwrap());
    for run in 0..n_runs {
        let mut world = World::new(seed + run, &["n1", "n2", "n3"]);
        world.is_chaotic = true;
        let names = ["web", "api", "global", "job", "once"];
        for _ in 0..world.random.usize(50..300) {
            let name = names[world.random.usize(..names.len())];
            match world.random.u8(..40) {
                0..3 => {
                    let spec = random_spec(&mut world.random, name);
                    world.put_service(name, spec);
                }
                3 => world.rollback_by_hand(name),
                4 if world.random.bool() => world.remove_service(name),
                5 => {
                    use NodeSpecAvailabilityEnum::{ACTIVE, DRAIN, PAUSE};
                    let availability = [ACTIVE, ACTIVE, PAUSE, DRAIN][world.random.usize(..4)];
                    let id = ["n2", "n3"][world.random.usize(..2)];
                    world.set_availability(id, availability);
                }
                _ => {}
            }
            world.turn();
        }
        // What never works is repaired, and then everything must come to rest as it was wished.
        for name in names {
            let Some(service) = world.snapshot.service(name) else {
                continue;
            };
            let mut spec = ServiceSpec::clone(&service.spec);
            let template = spec.task_template.as_mut().unwrap();
            let image = if service.is_job() { "once:9" } else { "good:9" };
            template.container_spec.as_mut().unwrap().image = Some(image.to_owned());
            template.restart_policy = None;
            world.put_service(name, spec);
        }
        for id in ["n2", "n3"] {
            world.set_availability(id, NodeSpecAvailabilityEnum::ACTIVE);
        }
        world.settle();
        for service in world.snapshot.services() {
            if service.is_job() {
                world.check_job_is_done(service);
            }
            for tasks in super::slots::of_service(&world.snapshot, service.id.as_str()).values() {
                assert!(tasks.len() <= 5, "run {run}: a history of {}", tasks.len());
            }
        }
        for service in world.snapshot.services().filter(|service| !service.is_job()) {
            let wished = service.replicas().unwrap_or(3);
            let serving = world.serving(service.id.as_str());
            let tasks = world.tasks_in_short(service.id.as_str()).join("\n");
            let (name, update) = (service.name(), &service.update);
            assert_eq!(serving.len() as u64, wished, "run {run}: {name}: {update:?}\n{tasks}");
            assert!(
                serving.iter().all(|task| task.template == service.template),
                "run {run}"
            );
            let state = service.update.as_ref().map(|update| update.state);
            assert!(
                matches!(state, None | Some(UpdateState::Completed)),
                "run {run}: {state:?}"
            );
        }
        for task in world.snapshot.tasks() {
            assert!(
                world.snapshot.service(task.service.as_str()).is_some(),
                "run {run}: a task of a service that is gone"
            );
        }
    }
}

/// The least number of tasks that serve at any moment while `work` goes on.
fn least_serving(world: &mut World, name: &str, mut is_over: impl FnMut(&World) -> bool) -> usize {
    let mut least = usize::MAX;
    for _ in 0..5_000 {
        world.reconcile();
        least = least.min(world.serving(name).len());
        if update_config(&world.snapshot.service(name).unwrap().spec).order == Order::StopFirst {
            assert!(world.most_in_a_slot(name) <= 1);
        }
        let tasks: Vec<Arc<Task>> = world.snapshot.tasks().cloned().collect();
        for task in tasks {
            if world.random.bool() {
                continue;
            }
            world.step(&task);
            least = least.min(world.serving(name).len());
        }
        if is_over(world) {
            return least;
        }
        world.tick();
    }
    panic!("the update never ends: {:#?}", world.snapshot.service(name));
}

#[test]
fn an_update_never_has_fewer_tasks_than_its_order_promises() {
    let seed = seed();
    for run in 0..40 {
        let mut world = World::new(seed + run, &["n1", "n2"]);
        let replicas = world.random.u64(2..7);
        let parallelism = world.random.u64(1..4);
        let order = ["stop-first", "start-first"][world.random.usize(..2)];
        let update = json!({ "UpdateConfig": { "Parallelism": parallelism, "Order": order, "Delay": 1_000_000_000 } });
        world.put_service("web", spec("good:1", replicas, update.clone()));
        world.settle();
        assert_eq!(world.serving("web").len() as u64, replicas);
        world.put_service("web", spec("good:2", replicas, update));
        let ended = |world: &World| world.update_state("web") == Some(UpdateState::Completed);
        let least = least_serving(&mut world, "web", ended) as u64;
        let promised = match order {
            "start-first" => replicas,
            _ => replicas.saturating_sub(parallelism),
        };
        assert!(
            least >= promised,
            "run {run}: {order}, {parallelism} of {replicas} at a time: only {least} served"
        );
        assert!(world.serving("web").iter().all(|task| task.template == 2));
    }
}

#[test]
fn an_update_that_fails_pauses_goes_on_or_goes_back() {
    for (action, expected) in [
        ("pause", UpdateState::Paused),
        ("continue", UpdateState::Completed),
        ("rollback", UpdateState::RollbackCompleted),
    ] {
        for order in ["stop-first", "start-first"] {
            let mut world = World::new(seed(), &["n1"]);
            let update = json!({ "UpdateConfig": { "Parallelism": 1, "Order": order, "FailureAction": action } });
            world.put_service("web", spec("good:1", 3, update.clone()));
            world.settle();
            world.put_service("web", spec("bad:1", 3, update.clone()));
            let ended = |world: &World| world.update_state("web") == Some(expected);
            let least = least_serving(&mut world, "web", ended);
            let service = world.snapshot.service("web").unwrap();
            let message = &service.update.as_ref().unwrap().message;
            match action {
                "pause" => {
                    assert!(
                        message.starts_with("update paused due to failure or early termination of task "),
                        "{message}"
                    );
                    assert!(least >= 2);
                }
                "continue" => assert_eq!(message, "update completed"),
                _ => {
                    assert_eq!(message, "rollback completed");
                    assert_eq!(service.previous, None);
                    let image = |task: &Arc<Task>| task.spec.container_spec.as_ref().unwrap().image.clone().unwrap();
                    assert!(world.serving("web").iter().all(|task| image(task) == "good:1"));
                    assert_eq!(world.serving("web").len(), 3);
                    assert_eq!(least, if order == "start-first" { 3 } else { 2 });
                    // Two slots were never touched.
                    let touched = world
                        .snapshot
                        .tasks_of_service("web")
                        .filter(|task| task.cause == Cause::Update);
                    assert!(touched.count() <= 2);
                }
            }
        }
    }
}

#[test]
fn scale_and_labels_touch_no_task_and_have_no_status() {
    let mut world = World::new(seed(), &["n1"]);
    world.put_service("web", spec("good:1", 2, json!({})));
    world.settle();
    let before: Vec<Id> = world.serving("web").iter().map(|task| task.id.clone()).collect();
    world.put_service(
        "web",
        spec(
            "good:1",
            5,
            json!({ "Labels": { "a": "b" }, "UpdateConfig": { "Parallelism": 2 } }),
        ),
    );
    world.settle();
    let now: Vec<Id> = world.serving("web").iter().map(|task| task.id.clone()).collect();
    assert_eq!(now.len(), 5);
    assert!(before.iter().all(|id| now.contains(id)));
    assert_eq!(world.update_state("web"), None);
    world.put_service("web", spec("good:1", 2, json!({})));
    world.settle();
    let left: Vec<u64> = world.serving("web").iter().map(|task| task.slot).collect();
    assert_eq!(left.len(), 2);
    assert!(
        left.iter().all(|slot| *slot <= 2),
        "the highest numbers go first: {left:?}"
    );
}

#[test]
fn the_restart_policy_is_followed() {
    let mut world = World::new(seed(), &["n1"]);
    let template = json!({
        "ContainerSpec": { "Image": "bad:1" },
        "RestartPolicy": { "Condition": "on-failure", "Delay": 2_000_000_000_i64, "MaxAttempts": 3 },
    });
    world.put_service("web", spec("", 1, json!({ "TaskTemplate": template })));
    world.settle();
    let mut tasks: Vec<&Arc<Task>> = world.snapshot.tasks_of_service("web").collect();
    tasks.sort_by_key(|task| task.meta.created_at);
    assert_eq!(tasks.len(), 4, "one, and three attempts");
    assert!(
        tasks
            .iter()
            .all(|task| task.status.state == TaskState::Failed && task.desired == TaskState::Shutdown)
    );
    for pair in tasks.windows(2) {
        let pause = pair[1].status.at.since(pair[0].status.at);
        assert!(pause >= Duration::from_secs(2), "{pause:?}");
    }
    // A newer spec has another try.
    world.put_service("web", spec("good:1", 1, json!({})));
    world.settle();
    assert_eq!(world.serving("web").len(), 1);
}

#[test]
fn no_node_fits_is_said_and_taken_back() {
    let mut world = World::new(seed(), &["n1", "n2"]);
    let template = json!({
        "ContainerSpec": { "Image": "good:1" },
        "Placement": { "Constraints": ["node.labels.disk==ssd"] },
        "Resources": { "Reservations": { "MemoryBytes": 3_i64 << 30 } },
    });
    world.put_service("web", spec("", 3, json!({ "TaskTemplate": template })));
    world.settle();
    let error = |world: &World| {
        world
            .snapshot
            .tasks_of_service("web")
            .find_map(|task| task.status.error.clone())
    };
    assert_eq!(
        error(&world).unwrap(),
        "no suitable node (scheduling constraints not satisfied on 2 nodes)"
    );
    let mut node = Node::clone(world.snapshot.node("n1").unwrap());
    node.spec.labels = Some([("disk".to_owned(), "ssd".to_owned())].into());
    world.commit(vec![Write::Put(Object::Node(Arc::new(node.clone())))]);
    world.settle();
    assert_eq!(world.serving("web").len(), 2);
    assert_eq!(
        error(&world).unwrap(),
        "no suitable node (insufficient resources on 1 node; scheduling constraints not satisfied on 1 node)"
    );
    // The label goes, and with it the tasks.
    node.spec.labels = None;
    world.commit(vec![Write::Put(Object::Node(Arc::new(node)))]);
    for _ in 0..5 {
        world.turn();
    }
    assert_eq!(world.serving("web").len(), 0);
    // Without the constraint the tasks that run are as good as new.
    let mut anywhere = ServiceSpec::clone(&world.snapshot.service("web").unwrap().spec);
    anywhere.task_template.as_mut().unwrap().placement = Some(TaskSpecPlacement::default());
    world.put_service("web", anywhere);
    world.settle();
    assert_eq!(world.serving("web").len(), 3);
}

#[test]
fn ports_and_addresses_are_given_once_and_kept() {
    let mut world = World::new(seed(), &["n1"]);
    let two = json!({ "EndpointSpec": { "Ports": [{ "TargetPort": 80 }, { "TargetPort": 81 }] } });
    world.put_service("web", spec("good:1", 1, two.clone()));
    let named = |name: &str, mut spec: ServiceSpec| {
        spec.name = Some(name.to_owned());
        spec
    };
    world.put_service(
        "api",
        named(
            "api",
            spec(
                "good:1",
                1,
                json!({ "EndpointSpec": { "Ports": [{ "TargetPort": 80 }] } }),
            ),
        ),
    );
    world.settle();
    let ports = |world: &World, name: &str| -> Vec<i64> {
        let service = world.snapshot.service(name).unwrap();
        service
            .endpoint
            .ports
            .iter()
            .map(|port| port.published_port.unwrap())
            .collect()
    };
    let (web, api) = (ports(&world, "web"), ports(&world, "api"));
    let mut all = [web.clone(), api.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, [30_000, 30_001, 30_002]);
    let vip = world.snapshot.service("web").unwrap().endpoint.vips.clone();
    assert_eq!(vip.len(), 1);
    let three =
        json!({ "EndpointSpec": { "Ports": [{ "TargetPort": 80 }, { "TargetPort": 81 }, { "TargetPort": 82 }] } });
    world.put_service("web", spec("good:1", 1, three));
    world.settle();
    assert_eq!(ports(&world, "web"), [web[0], web[1], 30_003]);
    assert_eq!(world.snapshot.service("web").unwrap().endpoint.vips, vip);
    let clash = spec(
        "good:1",
        1,
        json!({ "EndpointSpec": { "Ports": [{ "TargetPort": 1, "PublishedPort": 30_003 }] } }),
    );
    let said = super::port_conflict(&world.snapshot, &clash, None).unwrap();
    assert_eq!(
        said,
        "port '30003' is already in use by service 'web' (web) as an ingress port"
    );
    assert_eq!(super::port_conflict(&world.snapshot, &clash, Some(&"web".into())), None);
}

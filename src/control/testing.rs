//! A swarm without sockets or processes for the tests of this room: a store in memory, a clock that is moved by hand, and an
//! agent that only says what tasks would do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bollard_stubs::models::{NodeSpec, NodeSpecAvailabilityEnum, NodeSpecRoleEnum, SwarmSpec};
use serde_json::{Value, json};

use super::{Context, PLANNERS, Plan};
use crate::model::swarm::{
    Generic, Id, Key, Kind, Meta, Network, Node, Object, Service, ServiceSpec, Swarm, Task, TaskState, Time,
    UpdateState, Write,
};
use crate::store::{Snapshot, THIS_REVISION};

pub(super) const BEGINNING: Time = Time(1_800_000_000_000_000_000);

/// What one plan, or all of them, come to.
enum Step {
    Commit(Vec<Write>),
    Sleep(Option<Time>, BTreeSet<String>),
}

/// All a test moves by hand.
pub(super) struct World {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) now: Time,
    pub(super) rng: fastrand::Rng,
    pub(super) wake_at: Option<Time>,
    /// When the agent looks at a task next, and what it does with each.
    pub(super) acts: BTreeMap<Id, Time>,
    /// Longest delays: of a step on the way up, and of a stop.
    pub(super) longest_step: Duration,
    pub(super) longest_stop: Duration,
    /// Reconcilers are run in any order, and forget all between two runs.
    pub(super) is_shuffled: bool,
    /// Between a plan and its commit so many times of a hundred something else is written.
    pub(super) conflicts: u8,
    /// Commits that are refused, of a hundred.
    pub(super) refusals: u8,
    /// What was wanted in vain when the reconcilers last came to rest.
    pub(super) complaints: BTreeSet<String>,
    /// Commits and writes of the reconcilers since somebody last set these to nought.
    pub(super) n_commits: usize,
    pub(super) n_writes: usize,
    n_ids: u64,
    /// Is told of each step of the store.
    pub(super) checks: Vec<Check>,
}

pub(super) type Check = Box<dyn FnMut(&Snapshot, &Snapshot)>;

pub(super) fn meta() -> Meta {
    Meta::new(THIS_REVISION, BEGINNING)
}

pub(super) fn node(n: u8) -> Node {
    Node {
        id: Id::from(format!("node{n}").as_str()),
        meta: meta(),
        spec: NodeSpec {
            name: None,
            labels: None,
            role: Some(NodeSpecRoleEnum::MANAGER),
            availability: Some(NodeSpecAvailabilityEnum::ACTIVE),
        },
        hostname: format!("host{n}"),
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
        nano_cpus: 4_000_000_000,
        memory: 8 << 30,
        engine_version: String::new(),
        engine_labels: BTreeMap::new(),
        generic: Generic::default(),
        is_manager: true,
        is_up: true,
        addr: IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)),
    }
}

pub(super) fn network(name: &str, is_ingress: bool) -> Network {
    Network {
        id: Id::from(name),
        meta: meta(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        driver: "overlay".to_owned(),
        options: BTreeMap::new(),
        is_internal: false,
        is_attachable: false,
        is_ingress,
        ipv6: false,
        subnet: None,
        gateway: None,
        range: None,
        auxiliary: Default::default(),
    }
}

fn swarm(history: i64) -> Swarm {
    let mut spec = SwarmSpec::default();
    spec.orchestration.get_or_insert_default().task_history_retention_limit = Some(history);
    Swarm {
        id: Id::from("swarm"),
        meta: meta(),
        spec,
        node: Id::from("node1"),
        join_token_worker: String::new(),
        join_token_manager: String::new(),
        addr_pool: vec!["10.0.0.0/8".parse().unwrap()],
        subnet_size: 24,
        data_path_port: 4789,
        authority: None,
        unlock_key: None,
    }
}

pub(super) fn spec(value: Value) -> ServiceSpec {
    serde_json::from_value(value).unwrap()
}

/// So many tasks of an image. What an image does stands in its name: see `World::act`.
pub(super) fn replicated(name: &str, image: &str, replicas: u64) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": image } },
        "Mode": { "Replicated": { "Replicas": replicas } },
    })
}

pub(super) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl World {
    pub(super) fn new(n_nodes: u8, seed: u64) -> World {
        let mut world = World {
            snapshot: Arc::new(Snapshot::default()),
            now: BEGINNING,
            rng: fastrand::Rng::with_seed(seed),
            wake_at: None,
            acts: BTreeMap::new(),
            longest_step: Duration::from_millis(50),
            longest_stop: Duration::from_millis(500),
            is_shuffled: false,
            conflicts: 0,
            refusals: 0,
            complaints: BTreeSet::new(),
            n_commits: 0,
            n_writes: 0,
            n_ids: 0,
            checks: Vec::new(),
        };
        world.put(Object::Swarm(Arc::new(swarm(5))));
        world.put(Object::Network(Arc::new(network("ingress", true))));
        for n in 1..=n_nodes {
            world.put(Object::Node(Arc::new(node(n))));
        }
        world
    }

    pub(super) fn put(&mut self, object: Object) {
        let base = self.snapshot.clone();
        assert!(self.commit(&base, vec![Write::Put(object)]), "nobody else writes");
    }

    /// Whether it was written.
    pub(super) fn commit(&mut self, base: &Snapshot, writes: Vec<Write>) -> bool {
        let Ok((next, _)) = self.snapshot.next(base, writes) else {
            return false;
        };
        let before = std::mem::replace(&mut self.snapshot, Arc::new(next));
        for (id, task) in self.snapshot.tasks_since(&before) {
            match task {
                Some(_) => drop(self.acts.entry(id.clone()).or_insert(self.now)),
                None => drop(self.acts.remove(id)),
            }
        }
        for check in &mut self.checks {
            check(&before, &self.snapshot);
        }
        true
    }

    /// What the API does with a new service.
    pub(super) fn create(&mut self, spec: ServiceSpec) -> Id {
        self.n_ids += 1;
        let id = Id::from(format!("service{}", self.n_ids).as_str());
        let service = Service::new(id.clone(), spec, None, self.now, THIS_REVISION);
        self.put(Object::Service(Arc::new(service)));
        id
    }

    pub(super) fn service(&self, id: &Id) -> &Arc<Service> {
        self.snapshot.service(id.as_str()).unwrap()
    }

    /// What the API does with an update.
    pub(super) fn update(&mut self, id: &Id, change: impl FnOnce(&mut Value)) {
        let before = self.service(id).clone();
        let mut value = serde_json::to_value(&*before.spec).unwrap();
        change(&mut value);
        let spec = serde_json::from_value(value).unwrap();
        let service = before.declared(spec, None, self.now, THIS_REVISION);
        self.put(Object::Service(Arc::new(service)));
    }

    pub(super) fn image(&mut self, id: &Id, image: &str) {
        self.update(id, |spec| spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(image));
    }

    pub(super) fn scale(&mut self, id: &Id, replicas: u64) {
        self.update(id, |spec| {
            spec["Mode"] = json!({ "Replicated": { "Replicas": replicas } })
        });
    }

    /// What the API does with a rollback by hand, if there is something to return to.
    pub(super) fn roll_back(&mut self, id: &Id) -> bool {
        let Some(service) = self.service(id).rolled_back(self.now, THIS_REVISION) else {
            return false;
        };
        self.put(Object::Service(Arc::new(service)));
        true
    }

    pub(super) fn remove(&mut self, id: &Id) {
        let base = self.snapshot.clone();
        let key = Key {
            kind: Kind::Service,
            id: id.clone(),
        };
        assert!(self.commit(&base, vec![Write::Remove(key)]));
    }

    pub(super) fn change_node(&mut self, n: u8, change: impl FnOnce(&mut Node)) {
        let id = format!("node{n}");
        let mut node = Node::clone(self.snapshot.node(&id).unwrap());
        change(&mut node);
        self.put(Object::Node(Arc::new(node)));
    }

    pub(super) fn remove_node(&mut self, n: u8) {
        let base = self.snapshot.clone();
        let key = Key {
            kind: Kind::Node,
            id: Id::from(format!("node{n}").as_str()),
        };
        assert!(self.commit(&base, vec![Write::Remove(key)]));
    }

    pub(super) fn task_history(&mut self, limit: i64) {
        self.put(Object::Swarm(Arc::new(swarm(limit))));
    }

    pub(super) fn availability(&mut self, n: u8, availability: NodeSpecAvailabilityEnum) {
        self.change_node(n, |node| node.spec.availability = Some(availability));
    }

    /// A task's program ends by itself.
    pub(super) fn end(&mut self, id: &Id, state: TaskState, error: &str) {
        let mut task = Task::clone(self.snapshot.task(id.as_str()).unwrap());
        task.status.state = state;
        task.status.at = self.now;
        task.status.error = Some(error.to_owned()).filter(|error| !error.is_empty());
        self.put(Object::Task(Arc::new(task)));
    }

    pub(super) fn tasks(&self, service: &Id) -> Vec<Arc<Task>> {
        let mut tasks: Vec<_> = self.snapshot.tasks_of_service(service.as_str()).cloned().collect();
        tasks.sort_by(|one, other| (one.meta.created_at, &one.id).cmp(&(other.meta.created_at, &other.id)));
        tasks
    }

    /// Those that run and are to.
    pub(super) fn serving(&self, service: &Id) -> Vec<Arc<Task>> {
        let mut tasks = self.tasks(service);
        tasks.retain(|task| task.is_serving());
        tasks
    }

    pub(super) fn update_state(&self, service: &Id) -> Option<UpdateState> {
        self.service(service).update.as_ref().map(|update| update.state)
    }

    /// Runs the reconcilers until they rest.
    pub(super) fn reconcile(&mut self) {
        for _ in 0..10_000 {
            let base = self.snapshot.clone();
            let now = self.now;
            let mut n_ids = self.n_ids;
            let mut draw = || {
                n_ids += 1;
                Id::from(format!("task{n_ids:06}").as_str())
            };
            let step = match self.is_shuffled {
                false => in_order(&base, now, &mut draw),
                true => shuffled(&mut self.rng, &base, now, &mut draw),
            };
            self.n_ids = n_ids;
            match step {
                Step::Sleep(wake_at, complaints) => {
                    assert!(wake_at.is_none_or(|at| at > now), "woken in the past");
                    self.wake_at = wake_at;
                    self.complaints = complaints;
                    return;
                }
                Step::Commit(writes) => {
                    let keys: BTreeSet<Key> = writes.iter().map(Write::key).collect();
                    assert_eq!(keys.len(), writes.len(), "an object is written twice in one plan");
                    if self.refusals > 0 && self.rng.u8(..100) < self.refusals {
                        continue;
                    }
                    self.n_commits += 1;
                    self.n_writes += writes.len();
                    if self.rng.u8(..100) < self.conflicts {
                        self.act_any();
                    }
                    self.commit(&base, writes);
                }
            }
        }
        panic!("the reconcilers do not come to rest");
    }

    /// Moves the clock to the next thing that happens, at most to `until`. Whether something happened before.
    pub(super) fn advance(&mut self, until: Time) -> bool {
        self.reconcile();
        let next = self.acts.values().copied().chain(self.wake_at).min();
        let at = next.unwrap_or(until).min(until);
        self.now = self.now.max(at);
        let due: Vec<Id> = self
            .acts
            .iter()
            .filter(|(_, at)| **at <= self.now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.act(&id);
        }
        self.reconcile();
        next.is_some_and(|at| at < until)
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..1_000_000 {
            if !self.advance(until) && self.now >= until {
                return;
            }
        }
        panic!("the clock does not get on");
    }

    fn act_any(&mut self) {
        let ids: Vec<Id> = self.acts.keys().cloned().collect();
        if let Some(id) = self.rng.choice(&ids) {
            self.act(&id.clone());
        }
    }

    fn delay(&mut self, longest: Duration) -> Duration {
        Duration::from_nanos(self.rng.u64(1..=u64::try_from(longest.as_nanos()).unwrap()))
    }

    /// What the agent does with a task. An image that is `rejected` cannot be had, one that `fails` never gets healthy, one
    /// that `crashes` or `exits` runs for a while.
    fn act(&mut self, id: &Id) {
        let Some(task) = self.snapshot.task(id.as_str()).cloned() else {
            self.acts.remove(id);
            return;
        };
        let image = task.spec.container_spec.as_ref().and_then(|spec| spec.image.clone());
        let image = image.unwrap_or_default();
        let node = task.node.as_ref().and_then(|node| self.snapshot.node(node.as_str()));
        let is_mine = node.is_some_and(|node| node.is_up) && task.status.state >= TaskState::Assigned;
        if !is_mine || task.status.state.is_terminal() {
            self.acts.remove(id);
            return;
        }
        let is_stopping = task.desired >= TaskState::Shutdown;
        let state = task.status.state;
        let (next, error) = match state {
            // A stop takes its time once it is known of.
            _ if is_stopping && task.status.message != "stopping" => {
                let longest = self.longest_stop;
                let at = self.now + self.delay(longest);
                let mut task = Task::clone(&task);
                task.status.message = "stopping".to_owned();
                self.put(Object::Task(Arc::new(task)));
                self.acts.insert(id.clone(), at);
                return;
            }
            _ if is_stopping => (TaskState::Shutdown, ""),
            TaskState::Assigned => (TaskState::Accepted, ""),
            TaskState::Accepted => (TaskState::Preparing, ""),
            TaskState::Preparing if image.contains("rejected") => (TaskState::Rejected, "No such image"),
            TaskState::Preparing => (TaskState::Ready, ""),
            TaskState::Ready if task.desired < TaskState::Running => {
                self.acts.remove(id);
                return;
            }
            TaskState::Ready => (TaskState::Starting, ""),
            TaskState::Starting if image.contains("fails") => (TaskState::Failed, "task: non-zero exit (1)"),
            TaskState::Starting => (TaskState::Running, ""),
            TaskState::Running if image.contains("crashes") => (TaskState::Failed, "task: non-zero exit (137)"),
            TaskState::Running if image.contains("exits") => (TaskState::Complete, ""),
            _ => {
                self.acts.remove(id);
                return;
            }
        };
        let mut task = Task::clone(&task);
        task.status.state = next;
        task.status.at = self.now;
        task.status.message = next.as_str().to_owned();
        task.status.error = Some(error.to_owned()).filter(|error| !error.is_empty());
        if next == TaskState::Running {
            task.status.ran_at = Some(self.now);
        }
        self.put(Object::Task(Arc::new(task)));
        let longest = match next {
            TaskState::Running => seconds(8),
            _ => self.longest_step,
        };
        let at = self.now + self.delay(longest);
        self.acts.insert(id.clone(), at);
    }
}

fn in_order(base: &Snapshot, now: Time, ids: &mut dyn FnMut() -> Id) -> Step {
    each(PLANNERS, base, now, ids)
}
fn each(all: &[(&str, super::Planner)], base: &Snapshot, now: Time, ids: &mut dyn FnMut() -> Id) -> Step {
    let mut wake_at: Option<Time> = None;
    let mut complaints = BTreeSet::new();
    for (name, plan) in all {
        let plan: Plan = plan(&mut Context {
            snapshot: base,
            now,
            shared_ports: &Default::default(),
            ids,
        });
        if !plan.writes.is_empty() {
            assert!(
                plan.writes.len() < 2 * super::bounds::PORTION,
                "the {name} plans too much at once"
            );
            return Step::Commit(plan.writes);
        }
        assert!(
            !plan.is_cut,
            "the {name} leaves something to a plan that nobody asks for"
        );
        complaints.extend(plan.complaints);
        wake_at = wake_at.into_iter().chain(plan.wake_at).min();
    }
    Step::Sleep(wake_at, complaints)
}
fn shuffled(rng: &mut fastrand::Rng, base: &Snapshot, now: Time, ids: &mut dyn FnMut() -> Id) -> Step {
    let mut all = PLANNERS.to_vec();
    rng.shuffle(&mut all);
    each(&all, base, now, ids)
}

//! An agent over a runtime of the test's choice; it writes down what is reported, and can end as if it were killed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anynode::agent::{
    Addresses, Agent, Assignment, Assignments, Barrier, Failure, Later, NoNetworks, Reports, Runtime, TaskNetworks,
};
use anynode::model::swarm::{
    Cause, Generic, Id, Meta, Node, Payload, Service, ServiceSpec, Task, TaskState, TaskStatus, Time,
};
use anynode::model::{Reach, TaskPlace};
use anynode::streams::{LogLine, LogQuery};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;

pub const PATIENCE: Duration = Duration::from_secs(20);

fn meta() -> Meta {
    Meta::new(1, Time(0))
}

/// What was reported of each task, the last one last.
#[derive(Default)]
pub struct Reported(Mutex<BTreeMap<Id, Vec<TaskStatus>>>);

impl Reports for Reported {
    fn report(&self, task: &Id, status: TaskStatus) {
        self.0.lock().unwrap().entry(task.clone()).or_default().push(status);
    }
}

impl Barrier for Reported {
    fn leave<'a>(&'a self, _: &'a Id) -> Later<'a, ()> {
        Box::pin(async {})
    }
}

/// In the place of what makes networks ready: what was asked of it, and what it answers.
#[derive(Default)]
pub struct Recorder {
    opened: Mutex<BTreeMap<Id, Vec<TaskPlace>>>,
    pub closed: Mutex<Vec<Id>>,
    /// Each opening takes as long as this is set.
    pub is_held: watch::Sender<bool>,
    pub fails: Mutex<Option<String>>,
}

impl TaskNetworks for Recorder {
    fn open<'a>(&'a self, task: &'a Id, place: TaskPlace) -> Later<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.opened.lock().unwrap().entry(task.clone()).or_default().push(place);
            drop(self.is_held.subscribe().wait_for(|is_held| !is_held).await);
            let fails = self.fails.lock().unwrap().clone();
            fails.map_or(Ok(()), |reason| Err(Failure(reason)))
        })
    }

    fn close(&self, task: &Id) {
        self.closed.lock().unwrap().push(task.clone());
    }
}

impl Recorder {
    pub fn places(&self, task: &Id) -> Vec<TaskPlace> {
        self.opened.lock().unwrap().get(task).cloned().unwrap_or_default()
    }
}

pub struct World {
    pub reported: Arc<Reported>,
    tasks: Mutex<BTreeMap<Id, Assignment>>,
    assigned: watch::Sender<Arc<Assignments>>,
    networks: Arc<dyn TaskNetworks>,
    agent: Arc<Agent>,
    running: tokio::task::JoinHandle<()>,
}

impl World {
    pub fn start(runtime: Arc<dyn Runtime>) -> World {
        World::with_networks(runtime, Arc::new(NoNetworks))
    }

    /// `networks`: as the runtime has it.
    pub fn with_networks(runtime: Arc<dyn Runtime>, networks: Arc<dyn TaskNetworks>) -> World {
        let reported = Arc::new(Reported::default());
        let assigned = watch::Sender::default();
        let (agent, running) = run(runtime, &reported, &assigned, networks.clone());
        World {
            reported,
            tasks: Mutex::default(),
            assigned,
            networks,
            agent,
            running,
        }
    }

    /// Ends the agent between two of its steps, as kill -9 does, and begins anew. What the store would know is what was
    /// reported by then.
    pub async fn restart(&mut self, runtime: Arc<dyn Runtime>) {
        self.running.abort();
        drop((&mut self.running).await);
        for (id, assignment) in self.tasks.lock().unwrap().iter_mut() {
            if let Some(status) = self.latest(id) {
                let task = Task {
                    status,
                    ..(*assignment.task).clone()
                };
                assignment.task = Arc::new(task);
            }
        }
        // What the old one followed must not be ended with it.
        self.assigned = watch::Sender::default();
        self.publish();
        (self.agent, self.running) = run(runtime, &self.reported, &self.assigned, self.networks.clone());
    }

    /// A task of a `ContainerSpec`, and of more of a `TaskSpec`.
    pub fn task(&self, container: Value, more: Value) -> Id {
        let id = Id::from_bits(fastrand::u128(..));
        let assignment = assignment(&id, container, more);
        self.assign(assignment);
        id
    }

    pub fn assign(&self, assignment: Assignment) {
        let id = assignment.task.id.clone();
        self.tasks.lock().unwrap().insert(id, assignment);
        self.publish();
    }

    pub fn wish(&self, id: &Id, desired: TaskState) {
        if let Some(assignment) = self.tasks.lock().unwrap().get_mut(id) {
            let task = Task {
                desired,
                ..(*assignment.task).clone()
            };
            assignment.task = Arc::new(task);
        }
        self.publish();
    }

    pub fn forget(&self, id: &Id) {
        self.tasks.lock().unwrap().remove(id);
        self.publish();
    }

    fn publish(&self) {
        let tasks = self.tasks.lock().unwrap();
        let now = tasks.iter().map(|(id, task)| (id.clone(), Arc::new(task.clone())));
        self.assigned.send_replace(Arc::new(now.collect()));
    }

    pub fn latest(&self, id: &Id) -> Option<TaskStatus> {
        self.reported.0.lock().unwrap().get(id)?.last().cloned()
    }

    pub async fn wait(&self, id: &Id, state: TaskState) -> TaskStatus {
        let started = Instant::now();
        loop {
            match self.latest(id) {
                Some(status) if status.state == state => return status,
                latest if started.elapsed() > PATIENCE || latest.as_ref().is_some_and(|s| s.state.is_terminal()) => {
                    panic!("waited in vain for {state:?}: {latest:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Its process.
    pub fn pid(&self, id: &Id) -> u32 {
        let container = self.latest(id).unwrap().container.unwrap();
        u32::try_from(container.pid).unwrap()
    }

    pub fn addr(&self, id: &Id) -> Option<SocketAddr> {
        self.reach(id).map(|reach| reach.addr)
    }

    pub fn reach(&self, id: &Id) -> Option<Reach> {
        let addresses: Arc<Addresses> = self.agent.addresses().borrow().clone();
        addresses.get(id).cloned()
    }

    pub async fn logs(&self, id: &Id, query: LogQuery) -> Vec<LogLine> {
        let lines = self.agent.logs(id, query).unwrap().collect();
        tokio::time::timeout(PATIENCE, lines).await.unwrap()
    }

    /// All that it said until now.
    pub async fn said(&self, id: &Id) -> Vec<String> {
        let lines = self.logs(id, ALL).await;
        lines
            .iter()
            .map(|line| String::from_utf8_lossy(&line.bytes).into_owned())
            .collect()
    }

    /// A line that begins with this, without it.
    pub async fn wait_said(&self, id: &Id, begin: &str) -> String {
        let started = Instant::now();
        loop {
            let said = self.said(id).await;
            if let Some(rest) = said.iter().find_map(|line| line.strip_prefix(begin)) {
                return rest.to_owned();
            }
            assert!(started.elapsed() < PATIENCE, "waited in vain for {begin:?}: {said:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub const ALL: LogQuery = LogQuery {
    follow: false,
    tail: None,
    since: None,
    until: None,
    stdout: true,
    stderr: true,
};

fn run(
    runtime: Arc<dyn Runtime>,
    reported: &Arc<Reported>,
    assigned: &watch::Sender<Arc<Assignments>>,
    networks: Arc<dyn TaskNetworks>,
) -> (Arc<Agent>, tokio::task::JoinHandle<()>) {
    let agent = Agent::new(runtime, reported.clone(), reported.clone(), networks);
    let running = agent.clone().run(assigned.subscribe(), std::future::pending());
    (agent, tokio::spawn(running))
}

pub fn assignment(id: &Id, container: Value, more: Value) -> Assignment {
    let mut template = json!({ "ContainerSpec": container });
    for (key, value) in more.as_object().into_iter().flatten() {
        template[key] = value.clone();
    }
    let spec: ServiceSpec = serde_json::from_value(json!({ "Name": "web", "TaskTemplate": template })).unwrap();
    let service = Service::new(Id::from("service"), spec, None, Time(0), 1);
    let task = Task {
        id: id.clone(),
        meta: meta(),
        service: service.id.clone(),
        service_name: "web".into(),
        slot: 1,
        node: Some(Id::from("node")),
        spec: Arc::new(service.task_spec()),
        template: 1,
        spec_version: 1,
        job: None,
        cause: Cause::Scale,
        desired: TaskState::Running,
        hold: None,
        status: TaskStatus {
            at: Time(0),
            state: TaskState::Assigned,
            message: String::new(),
            error: None,
            unfit: Vec::new(),
            container: None,
            ran_at: None,
        },
        host_ports: Vec::new(),
        generic: Generic::default(),
        addresses: Vec::new(),
    };
    let node = Node {
        id: Id::from("node"),
        meta: meta(),
        spec: Default::default(),
        hostname: "host".to_owned(),
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
        nano_cpus: 0,
        memory: 0,
        engine_version: String::new(),
        engine_labels: BTreeMap::new(),
        generic: Generic::default(),
        is_manager: true,
        is_up: true,
        addr: [127, 0, 0, 1].into(),
    };
    Assignment {
        task: Arc::new(task),
        service: Some(Arc::new(service)),
        node: Arc::new(node),
        configs: BTreeMap::new(),
        secrets: BTreeMap::new(),
        registry_auth: None,
    }
}

pub fn payload(name: &str, data: &str) -> Arc<Payload> {
    Arc::new(Payload {
        id: Id::from(name),
        meta: meta(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        data: data.as_bytes().into(),
        templating: None,
    })
}

/// The processes that have this in their environment or their command line.
pub fn processes_with(mark: &Path) -> Vec<u32> {
    let mark = mark.as_os_str().as_encoded_bytes();
    let has = |pid: &u32| {
        ["environ", "cmdline"].iter().any(|what| {
            let text = std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            text.windows(mark.len()).any(|window| window == mark)
        })
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(has).collect()
}

pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    state.is_some_and(|state| state != "Z")
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

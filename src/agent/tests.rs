//! The agent against a runtime that does as it is told and writes down what it was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::{
    Agent, Assignment, Assignments, Barrier, Failure, Found, HealthState, Later, NoNetworks, Reports, Runtime, Started,
};
use crate::model::swarm::{
    Cause, Container, Exit, Generic, Id, Meta, Node, Payload, Service, ServiceSpec, Task, TaskState, TaskStatus, Time,
};
use crate::streams::{LogLine, LogQuery, LogStream};

fn meta() -> Meta {
    Meta::new(1, Time(0))
}

/// Slot 3 of a service of this spec, given to a node and to run.
pub(super) fn assignment(spec: Value) -> Assignment {
    let spec: ServiceSpec = serde_json::from_value(spec).unwrap();
    let service = Service::new(Id::from("service"), spec, None, Time(0), 1);
    let task = Task {
        id: Id::from("task"),
        meta: meta(),
        service: service.id.clone(),
        service_name: "web".into(),
        slot: 3,
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

pub(super) fn payload(name: &str, data: &str) -> Payload {
    Payload {
        id: Id::from(name),
        meta: meta(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        data: data.as_bytes().into(),
        templating: None,
    }
}

/// A runtime, and what hears and holds up the agent: all of it as the test says, all of it written down in one list.
struct Fake {
    said: Mutex<Vec<String>>,
    found: Mutex<Found>,
    strays: Mutex<BTreeSet<Id>>,
    exit: watch::Sender<Option<i64>>,
    health: watch::Sender<HealthState>,
    /// What it ends with when it is asked to.
    on_stop: Option<i64>,
    missing: Option<&'static str>,
    /// Leaving takes so long.
    leaving: Duration,
    addresses: Mutex<Option<watch::Receiver<Arc<super::Addresses>>>>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            said: Mutex::default(),
            found: Mutex::new(Found::Nothing),
            strays: Mutex::default(),
            exit: watch::Sender::new(None),
            health: watch::Sender::new(HealthState::Healthy),
            on_stop: Some(0),
            missing: None,
            leaving: Duration::ZERO,
            addresses: Mutex::default(),
        }
    }
}

const ADDR: ([u8; 4], u16) = ([127, 0, 0, 1], 4000);

impl Fake {
    fn say(&self, what: impl Into<String>) {
        // Each with whether the task is reached at that moment.
        let addresses = self.addresses.lock().unwrap();
        let is_reached = addresses
            .as_ref()
            .is_some_and(|addresses| addresses.borrow().contains_key("task"));
        let mark = if is_reached { "*" } else { "" };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push(format!("{}{mark}", what.into()));
    }

    fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    fn started() -> Started {
        Started {
            container: Container {
                id: "c".to_owned(),
                pid: 77,
                exit_code: 0,
                hostname: String::new(),
            },
            reach: Some(SocketAddr::from(ADDR).into()),
            note: None,
        }
    }
}

impl Runtime for Fake {
    fn prepare<'a>(&'a self, _: &'a Assignment) -> Later<'a, Result<(), Failure>> {
        self.say("prepare");
        let missing = self.missing;
        Box::pin(async move { missing.map_or(Ok(()), |reason| Err(Failure(reason.to_owned()))) })
    }

    fn start<'a>(&'a self, _: &'a Assignment) -> Later<'a, Result<Started, Failure>> {
        self.say("start");
        Box::pin(async { Ok(Fake::started()) })
    }

    fn find<'a>(&'a self, _: &'a Id) -> Later<'a, Found> {
        Box::pin(async { self.found.lock().unwrap().clone() })
    }

    fn ended<'a>(&'a self, _: &'a Id) -> Later<'a, Exit> {
        Box::pin(async {
            let exit = *self.exit.subscribe().wait_for(Option::is_some).await.unwrap();
            Exit {
                code: exit.unwrap(),
                is_out_of_memory: false,
            }
        })
    }

    fn health<'a>(&'a self, _: &'a Assignment, before: HealthState) -> Later<'a, HealthState> {
        Box::pin(async move { *self.health.subscribe().wait_for(|now| *now != before).await.unwrap() })
    }

    fn stop<'a>(&'a self, _: &'a Assignment) -> Later<'a, ()> {
        self.say("stop");
        if self.on_stop.is_some() {
            self.exit.send_replace(self.on_stop);
        }
        Box::pin(async {})
    }

    fn kill<'a>(&'a self, _: &'a Id) -> Later<'a, ()> {
        self.say("kill");
        self.exit.send_replace(Some(137));
        Box::pin(async {})
    }

    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        self.say(format!("remove {task}"));
        Box::pin(async {})
    }

    fn list(&self) -> Later<'_, std::io::Result<Vec<Id>>> {
        Box::pin(async { Ok(self.strays.lock().unwrap().iter().cloned().collect()) })
    }

    fn logs(&self, _: &Id, _: LogQuery) -> std::io::Result<LogStream> {
        self.say("logs");
        let line = LogLine {
            at: Time(1),
            is_stderr: false,
            bytes: Bytes::from_static(b"hello"),
        };
        Ok(Box::pin(stream::iter([line])))
    }
}

impl Barrier for Fake {
    fn leave<'a>(&'a self, _: &'a Id) -> Later<'a, ()> {
        self.say("leave");
        let leaving = self.leaving;
        Box::pin(async move {
            tokio::time::sleep(leaving).await;
            self.say("left");
        })
    }
}

impl Reports for Fake {
    fn report(&self, _: &Id, status: TaskStatus) {
        let error = status.error.map(|error| format!(": {error}")).unwrap_or_default();
        self.say(format!("{}{error}", status.state.as_str()));
    }
}

struct Rig {
    fake: Arc<Fake>,
    agent: Arc<Agent>,
    assigned: watch::Sender<Arc<Assignments>>,
    shutdown: Option<oneshot::Sender<()>>,
    ended: tokio::task::JoinHandle<()>,
}

impl Rig {
    fn start(fake: Fake, task: Option<Task>) -> Rig {
        let fake = Arc::new(fake);
        let agent = Agent::new(fake.clone(), fake.clone(), fake.clone(), Arc::new(NoNetworks));
        *fake.addresses.lock().unwrap() = Some(agent.addresses());
        let assigned = watch::Sender::default();
        let (shutdown, stopping) = oneshot::channel::<()>();
        let rig = Rig {
            ended: tokio::spawn(agent.clone().run(assigned.subscribe(), async { drop(stopping.await) })),
            agent,
            fake,
            assigned,
            shutdown: Some(shutdown),
        };
        task.into_iter().for_each(|task| rig.assign(task));
        rig
    }

    fn assign(&self, task: Task) {
        let mut of = assignment(json!({}));
        of.task = Arc::new(task);
        let now = Assignments::from([(Id::from("task"), Arc::new(of))]);
        self.assigned.send_replace(Arc::new(now));
    }

    fn forget(&self) {
        self.assigned.send_replace(Arc::default());
    }

    /// Until that was said, and nothing else.
    async fn expect(&self, expected: &[&str]) {
        let started = Instant::now();
        while self.fake.said().len() < expected.len() && started.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Nothing more comes.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(self.fake.said(), expected);
    }
}

fn task(desired: TaskState) -> Task {
    let spec = json!({ "TaskTemplate": { "ContainerSpec": { "StopGracePeriod": 30_000_000 } } });
    let task = assignment(spec).task;
    Task {
        desired,
        ..(*task).clone()
    }
}

const UP: [&str; 7] = [
    "accepted",
    "preparing",
    "prepare",
    "ready",
    "starting",
    "start",
    "running*",
];

fn after_up<'a>(then: &[&'a str]) -> Vec<&'a str> {
    [&UP[..], then].concat()
}

#[tokio::test]
async fn it_leaves_the_table_before_it_is_asked_to_end() {
    let fake = Fake {
        leaving: Duration::from_millis(50),
        ..Fake::default()
    };
    let rig = Rig::start(fake, Some(task(TaskState::Running)));
    rig.expect(&UP).await;
    rig.assign(task(TaskState::Shutdown));
    rig.expect(&after_up(&["leave", "left", "stop", "shutdown"])).await;
    // What it said can be read until nobody knows it.
    rig.forget();
    rig.expect(&after_up(&["leave", "left", "stop", "shutdown", "remove task"]))
        .await;
}

#[tokio::test]
async fn who_does_not_listen_is_ended_after_the_whole_grace_period() {
    let fake = Fake {
        on_stop: None,
        ..Fake::default()
    };
    let rig = Rig::start(fake, Some(task(TaskState::Running)));
    rig.expect(&UP).await;
    let asked = Instant::now();
    rig.assign(task(TaskState::Shutdown));
    rig.expect(&after_up(&["leave", "left", "stop", "kill", "shutdown"]))
        .await;
    assert!(asked.elapsed() >= Duration::from_millis(30));
}

#[tokio::test]
async fn what_is_to_be_removed_is_gone_when_that_is_said() {
    let rig = Rig::start(Fake::default(), Some(task(TaskState::Running)));
    rig.expect(&UP).await;
    rig.assign(task(TaskState::Remove));
    rig.expect(&after_up(&["leave", "left", "stop", "remove task", "shutdown"]))
        .await;
}

#[tokio::test]
async fn one_that_vanishes_is_stopped_and_removed() {
    let rig = Rig::start(Fake::default(), Some(task(TaskState::Running)));
    rig.expect(&UP).await;
    rig.forget();
    let expected = ["leave", "left", "stop", "remove task", "shutdown", "remove task"];
    rig.expect(&after_up(&expected)).await;
    assert!(rig.agent.logs(&Id::from("task"), query(false)).is_ok());
    // The agent looks at its tasks when something changes.
    rig.forget();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(rig.agent.logs(&Id::from("task"), query(false)).is_err());
}

#[tokio::test]
async fn it_waits_when_it_is_ready_as_long_as_no_more_is_wished() {
    let rig = Rig::start(Fake::default(), Some(task(TaskState::Ready)));
    rig.expect(&UP[..4]).await;
    rig.assign(task(TaskState::Running));
    rig.expect(&UP).await;
}

#[tokio::test]
async fn one_that_waits_can_be_called_off() {
    let rig = Rig::start(Fake::default(), Some(task(TaskState::Ready)));
    rig.expect(&UP[..4]).await;
    rig.assign(task(TaskState::Shutdown));
    rig.expect(&[&UP[..4], &["remove task", "shutdown"]].concat()).await;
}

#[tokio::test]
async fn one_that_was_never_to_run_is_not_prepared() {
    let rig = Rig::start(Fake::default(), Some(task(TaskState::Shutdown)));
    rig.expect(&["remove task", "shutdown"]).await;
}

#[tokio::test]
async fn health_decides_when_it_runs_and_when_it_ends() {
    let failed = "failed: task: non-zero exit (143): dockerexec: unhealthy container";
    for (code, end) in [(143, failed), (0, "complete")] {
        let fake = Fake {
            health: watch::Sender::new(HealthState::Starting),
            on_stop: Some(code),
            ..Fake::default()
        };
        let rig = Rig::start(fake, Some(task(TaskState::Running)));
        rig.expect(&UP[..6]).await;
        rig.fake.health.send_replace(HealthState::Healthy);
        rig.expect(&UP).await;
        rig.fake.health.send_replace(HealthState::Unhealthy);
        rig.expect(&after_up(&["leave", "left", "stop", end])).await;
    }
}

#[tokio::test]
async fn a_program_that_ends_gets_nothing_more() {
    for (code, state) in [(0, "complete"), (1, "failed: task: non-zero exit (1)")] {
        let rig = Rig::start(Fake::default(), Some(task(TaskState::Running)));
        rig.expect(&UP).await;
        rig.fake.exit.send_replace(Some(code));
        rig.expect(&after_up(&[state])).await;
    }
}

#[tokio::test]
async fn without_an_image_it_is_rejected() {
    let fake = Fake {
        missing: Some("No such image: nginx:latest"),
        ..Fake::default()
    };
    let rig = Rig::start(fake, Some(task(TaskState::Running)));
    rig.expect(&[
        "accepted",
        "preparing",
        "prepare",
        "rejected: No such image: nginx:latest",
    ])
    .await;
}

#[tokio::test]
async fn the_next_run_finds_what_runs_and_takes_away_what_is_nobodys() {
    let fake = Fake {
        found: Mutex::new(Found::Running(Fake::started())),
        strays: Mutex::new([Id::from("stray"), Id::from("task")].into()),
        ..Fake::default()
    };
    let mut known = task(TaskState::Running);
    known.status.state = TaskState::Running;
    let assigned = {
        let mut of = assignment(json!({}));
        of.task = Arc::new(known);
        Assignments::from([(Id::from("task"), Arc::new(of))])
    };
    let fake = Arc::new(fake);
    let agent = Agent::new(fake.clone(), fake.clone(), fake.clone(), Arc::new(NoNetworks));
    let (_keep, assigned) = watch::channel(Arc::new(assigned));
    let mut addresses = agent.addresses();
    let running = tokio::spawn(agent.clone().run(assigned, std::future::pending()));
    let found = addresses.wait_for(|addresses| addresses.contains_key("task"));
    found.await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(fake.said(), ["remove stray"]);
    running.abort();
}

#[tokio::test]
async fn one_that_is_gone_has_failed() {
    let mut known = task(TaskState::Running);
    known.status.state = TaskState::Running;
    let rig = Rig::start(Fake::default(), Some(known));
    rig.expect(&["failed: task: it is gone from its node"]).await;
}

#[tokio::test]
async fn the_end_of_this_program_touches_no_task() {
    let mut rig = Rig::start(Fake::default(), Some(task(TaskState::Running)));
    rig.expect(&UP).await;
    drop(rig.shutdown.take());
    (&mut rig.ended).await.unwrap();
    rig.expect(&UP).await;
}

fn query(follow: bool) -> LogQuery {
    LogQuery {
        follow,
        tail: None,
        since: None,
        until: None,
        stdout: true,
        stderr: true,
    }
}

#[tokio::test]
async fn who_follows_hears_of_a_task_that_begins_later() {
    let rig = Rig::start(Fake::default(), None);
    let id = Id::from("task");
    assert!(rig.agent.logs(&id, query(true)).is_err());
    rig.assign(task(TaskState::Ready));
    rig.expect(&UP[..4]).await;
    let lines = rig.agent.logs(&id, query(true)).unwrap();
    rig.expect(&UP[..4]).await;
    rig.assign(task(TaskState::Running));
    let lines: Vec<LogLine> = tokio::time::timeout(Duration::from_secs(5), lines.collect())
        .await
        .unwrap();
    assert_eq!(lines.len(), 1);
}

//! What the control plane costs with 500 services of four tasks each: looking when nothing is to be done, and one change
//! until nothing is, in memory; then a whole node with its store on disk and its API, through the docker command line. Tasks
//! are fake and do at once what they are asked to.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anynode::agent::{Assignment, Failure, Found, HealthState, Later, NoNetworks, Runtime, Started};
use anynode::app::{ApiSocket, OwnSwarm, Plane};
use anynode::control::{Context, PLANNERS};
use anynode::model::swarm::{
    Container, Exit, Generic, Id, Meta, Node, Object, Service, ServiceSpec, Swarm, Task, TaskState, Time, Write,
};
use anynode::store::{CommitError, Embedded, Snapshot, Store, THIS_REVISION, update};
use anynode::streams::{LogQuery, LogStream};
use criterion::{Criterion, criterion_group, criterion_main};
use tokio::sync::watch;

const SERVICES: usize = 500;
const REPLICAS: i64 = 4;

fn meta() -> Meta {
    Meta::new(THIS_REVISION, Time(1))
}

fn spec(name: &str, replicas: i64) -> ServiceSpec {
    let mut spec = ServiceSpec {
        name: Some(name.to_owned()),
        ..ServiceSpec::default()
    };
    spec.mode
        .get_or_insert_default()
        .replicated
        .get_or_insert_default()
        .replicas = Some(replicas);
    spec
}

fn service(name: &str) -> Object {
    let spec = spec(name, REPLICAS);
    Object::Service(Arc::new(Service::new(name.into(), spec, None, Time(1), THIS_REVISION)))
}

fn commit(snapshot: &Snapshot, writes: Vec<Write>) -> Snapshot {
    snapshot.next(snapshot, writes).unwrap().0
}

fn plan_once(snapshot: &mut Snapshot, n_ids: &mut u128) -> bool {
    let mut is_at_rest = true;
    for (_, planner) in PLANNERS {
        let base = snapshot.clone();
        let plan = planner(&mut Context {
            snapshot: &base,
            now: Time(1 << 40),
            shared_ports: &Default::default(),
            ids: &mut || {
                *n_ids += 1;
                Id::from_bits(*n_ids)
            },
        });
        if !plan.writes.is_empty() {
            is_at_rest = false;
            *snapshot = commit(snapshot, plan.writes);
        }
    }
    is_at_rest
}

/// Until nobody wants anything; what is assigned runs at once, what is to end has ended.
fn settle(mut snapshot: Snapshot, n_ids: &mut u128) -> Snapshot {
    loop {
        let is_at_rest = plan_once(&mut snapshot, n_ids);
        let moved: Vec<Write> = snapshot.tasks().filter_map(moved).collect();
        if is_at_rest && moved.is_empty() {
            return snapshot;
        }
        snapshot = commit(&snapshot, moved);
    }
}

fn moved(task: &Arc<Task>) -> Option<Write> {
    let state = match (task.status.state, task.desired) {
        (TaskState::Assigned, TaskState::Running) => TaskState::Running,
        (TaskState::Running, TaskState::Remove) => TaskState::Shutdown,
        _ => return None,
    };
    let mut task = Task::clone(task);
    task.status.state = state;
    task.status.ran_at = Some(Time(1));
    Some(Write::Put(Object::Task(Arc::new(task))))
}

fn full() -> Snapshot {
    let node = Node {
        id: "node".into(),
        meta: meta(),
        spec: Default::default(),
        hostname: "node".to_owned(),
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
        nano_cpus: 2_000_000_000,
        memory: 8 << 30,
        engine_version: String::new(),
        engine_labels: BTreeMap::new(),
        generic: Generic::default(),
        is_manager: true,
        is_up: true,
        addr: [127, 0, 0, 1].into(),
    };
    let swarm = Swarm {
        id: "swarm".into(),
        meta: meta(),
        spec: Default::default(),
        node: "node".into(),
        join_token_worker: String::new(),
        join_token_manager: String::new(),
        addr_pool: Vec::new(),
        subnet_size: 24,
        data_path_port: 4789,
        authority: None,
        unlock_key: None,
    };
    let mut writes = vec![
        Write::Put(Object::Swarm(Arc::new(swarm))),
        Write::Put(Object::Node(Arc::new(node))),
    ];
    writes.extend((0..SERVICES).map(|i| Write::Put(service(&format!("s{i}")))));
    let snapshot = settle(commit(&Snapshot::default(), writes), &mut 0);
    assert_eq!(snapshot.tasks().filter(|task| task.is_serving()).count(), 2000);
    snapshot
}

fn control(criterion: &mut Criterion) {
    let full = full();
    criterion.bench_function("control: nothing to do, 500 services, 2,000 tasks", |bencher| {
        bencher.iter(|| {
            let mut snapshot = full.clone();
            assert!(plan_once(black_box(&mut snapshot), &mut 0));
        });
    });
    let mut n_ids = 1 << 64;
    let more = full
        .service("s7")
        .unwrap()
        .declared(spec("s7", REPLICAS + 1), None, Time(2), THIS_REVISION);
    criterion.bench_function(
        "control: one service scaled until all is at rest, among 500",
        |bencher| {
            bencher.iter(|| {
                let asked = commit(&full, vec![Write::Put(Object::Service(Arc::new(more.clone())))]);
                let after = settle(black_box(asked), &mut n_ids);
                assert_eq!(after.tasks_of_service("s7").count(), 5);
            });
        },
    );
}

/// Tasks that are nothing but words.
#[derive(Default)]
struct Words {
    ended: Mutex<BTreeMap<Id, watch::Sender<bool>>>,
}

impl Words {
    fn of(&self, task: &Id) -> watch::Sender<bool> {
        let mut ended = self.ended.lock().unwrap();
        ended.entry(task.clone()).or_default().clone()
    }
}

impl Runtime for Words {
    fn prepare<'a>(&'a self, _: &'a Assignment) -> Later<'a, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn start<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<Started, Failure>> {
        self.of(&assignment.task.id);
        let started = Started {
            container: Container {
                id: assignment.task.id.to_string(),
                pid: 1,
                exit_code: 0,
                hostname: String::new(),
            },
            reach: Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()),
            note: None,
        };
        Box::pin(async { Ok(started) })
    }

    fn find<'a>(&'a self, _: &'a Id) -> Later<'a, Found> {
        Box::pin(async { Found::Nothing })
    }

    fn ended<'a>(&'a self, task: &'a Id) -> Later<'a, Exit> {
        let mut ended = self.of(task).subscribe();
        Box::pin(async move {
            drop(ended.wait_for(|is| *is).await);
            Exit {
                code: 0,
                is_out_of_memory: false,
            }
        })
    }

    fn health<'a>(&'a self, _: &'a Assignment, before: HealthState) -> Later<'a, HealthState> {
        Box::pin(async move {
            match before {
                HealthState::Healthy => std::future::pending().await,
                _ => HealthState::Healthy,
            }
        })
    }

    fn stop<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, ()> {
        self.kill(&assignment.task.id)
    }

    fn kill<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        self.of(task).send_replace(true);
        Box::pin(async {})
    }

    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()> {
        self.ended.lock().unwrap().remove(task);
        Box::pin(async {})
    }

    fn list(&self) -> Later<'_, std::io::Result<Vec<Id>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn logs(&self, _: &Id, _: LogQuery) -> std::io::Result<LogStream> {
        Ok(Box::pin(futures_util::stream::empty()))
    }
}

/// A whole node in a thread of its own, and the docker command line before it.
struct Whole {
    store: Arc<dyn Store>,
    socket: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Whole {
    fn start() -> Whole {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("store")).unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (for_thread, api) = (store.clone(), socket.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let words = Arc::new(Words::default());
                let plane = Plane {
                    table: Arc::default(),
                    status: Arc::default(),
                    ports: Arc::default(),
                    networks: Arc::new(NoNetworks),
                    tls: None,
                    doors: Arc::default(),
                };
                let api = ApiSocket::open(&api, api.parent().unwrap(), None).unwrap();
                let swarm = OwnSwarm::assemble(for_thread, words, None, Arc::new(api), plane);
                swarm.unwrap().run(async { drop(stopped.await) }).await;
            });
        });
        Whole {
            store,
            socket,
            stop: Some(stop),
            thread: Some(thread),
            _dir: dir,
        }
    }

    fn docker(&self, args: &[&str]) -> Option<String> {
        let host = format!("unix://{}", self.socket.display());
        let out = Command::new("docker")
            .env("DOCKER_HOST", host)
            .args(args)
            .output()
            .ok()?;
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn wait(&self, is_so: impl Fn(&Snapshot) -> bool) {
        while !is_so(&self.store.snapshot()) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// As a user declares it, but without the command line's own time.
    fn declare(&self, name: &str, replicas: i64) {
        let snapshot = self.store.snapshot();
        let known = snapshot.services().find(|service| service.name() == name);
        let now = Time::now();
        let service = match known {
            Some(known) => known.declared(spec(name, replicas), None, now, THIS_REVISION),
            None => Service::new(name.into(), spec(name, replicas), None, now, THIS_REVISION),
        };
        let commit = update(&*self.store, |_| {
            Ok::<_, CommitError>((vec![Write::Put(Object::Service(Arc::new(service.clone())))], ()))
        });
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(commit)
            .unwrap();
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn n_serving(snapshot: &Snapshot, name: &str) -> usize {
    let is_serving = |task: &&Arc<Task>| task.is_serving();
    snapshot.tasks_of_service(name).filter(is_serving).count()
}

/// Processor time of this process, in hundredths of a second.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn whole(criterion: &mut Criterion) {
    let whole = Whole::start();
    let is_up = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        whole.socket.exists()
    });
    assert!(is_up);
    if whole.docker(&["swarm", "init"]).is_none() {
        println!("skipped: this needs the docker command line");
        return;
    }
    let started = Instant::now();
    for i in 0..SERVICES {
        whole.declare(&format!("s{i}"), REPLICAS);
    }
    whole.wait(|snapshot| snapshot.tasks().filter(|task| task.is_serving()).count() == 2000);
    println!(
        "500 services with 2,000 tasks declared one by one run after {:?}",
        started.elapsed()
    );

    let mut group = criterion.benchmark_group("a node with 500 services, 2,000 tasks");
    group.sample_size(10);
    group.bench_function("docker service ls", |bencher| {
        bencher.iter(|| {
            let services = whole.docker(&["service", "ls"]).unwrap();
            assert_eq!(services.matches("4/4").count(), SERVICES);
        });
    });
    group.bench_function("docker version", |bencher| {
        bencher.iter(|| whole.docker(&["version"]).unwrap());
    });
    let mut n = REPLICAS;
    group.bench_function("one service scaled by one until its task runs, or is gone", |bencher| {
        bencher.iter(|| {
            n = if n == REPLICAS { REPLICAS + 1 } else { REPLICAS };
            whole.declare("s7", n);
            whole.wait(|snapshot| {
                let left = snapshot
                    .tasks_of_service("s7")
                    .filter(|task| !task.has_stopped())
                    .count();
                (left, n_serving(snapshot, "s7")) == (n as usize, n as usize)
            });
        });
    });
    group.finish();

    let revision = whole.store.snapshot().revision();
    let before = ticks();
    let seconds = if std::env::args().any(|arg| arg == "--test") {
        1
    } else {
        10
    };
    std::thread::sleep(Duration::from_secs(seconds));
    let ms = (ticks() - before) * 10;
    assert_eq!(whole.store.snapshot().revision(), revision, "nothing changes");
    println!("at rest for {seconds} s the node takes {ms} ms of processor time");
}

criterion_group!(benches, control, whole);
criterion_main!(benches);

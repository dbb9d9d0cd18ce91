//! What the control plane costs with 500 services of four tasks each: looking when nothing is to be done, and one change
//! until nothing is. Nodes are fake and answer at once.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use anynode::control::{Context, PLANNERS};
use anynode::model::swarm::{Id, Meta, Node, Object, Service, ServiceSpec, Swarm, Task, TaskState, Time, Write};
use anynode::store::{Snapshot, THIS_REVISION};
use criterion::{Criterion, criterion_group, criterion_main};

const SERVICES: usize = 500;
const REPLICAS: i64 = 4;

fn meta() -> Meta {
    Meta {
        version: THIS_REVISION,
        created_at: Time(1),
        updated_at: Time(1),
    }
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

criterion_group!(benches, control);
criterion_main!(benches);

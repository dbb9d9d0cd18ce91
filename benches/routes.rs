//! Routes of an entry point: whose a request is among 1, 1,000 and 10,000 hosts, ten routes to a service; committing one changed
//! service; building the table whole. What is found and what a change costs hardly grow with the hosts. Not here: sockets
//! (`relay`).

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anynode::model::{EntryPointSpec, Mode, RouteSpec, ServiceName, ServiceSpec};
use anynode::proxy::http::{HeaderSlots, RouteKey, parse_request};
use anynode::routing::{Change, TableHandle};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

/// Hosts, each with one route.
const SIZES: [usize; 3] = [1, 1_000, 10_000];
const ROUTES_EACH: usize = 10;

fn spec(service: usize, n_routes: usize, stop_grace: u64) -> ServiceSpec {
    let name = ServiceName::new(&format!("service-{service}")).expect("a valid name");
    let mut spec = ServiceSpec::new(name);
    spec.mode = Mode::Http;
    spec.stop_grace = Duration::from_secs(stop_grace);
    spec.endpoints = vec!["10.0.0.1:80".parse().expect("a valid endpoint")];
    let first = service * ROUTES_EACH;
    let route = |host: usize| RouteSpec {
        rule: format!("Host(`h{host}.example.test`) && PathPrefix(`/`)")
            .parse()
            .expect("a rule"),
        priority: None,
        entry_points: Vec::new(),
        target: 80,
    };
    spec.routes = (first..(first + ROUTES_EACH).min(n_routes)).map(route).collect();
    spec
}

fn changes(n_routes: usize) -> Vec<Change> {
    let services = 0..n_routes.div_ceil(ROUTES_EACH);
    services.map(|service| upsert(spec(service, n_routes, 10))).collect()
}

fn upsert(spec: ServiceSpec) -> Change {
    Change::Upsert {
        spec: Arc::new(spec),
        vip: None,
    }
}

fn empty() -> TableHandle {
    TableHandle::with_entry_points(vec![EntryPointSpec::new(
        "web".parse().expect("a valid name"),
        None,
        80,
    )])
}

fn table_of(n_routes: usize) -> TableHandle {
    let handle = empty();
    handle.commit(&changes(n_routes)).expect("no conflicts");
    handle
}

/// From a parsed head to the route.
fn find(c: &mut Criterion) {
    let mut group = c.benchmark_group("find a route");
    for n in SIZES {
        let table = table_of(n).load();
        let front = table.entry_points()[0].front();
        let text = format!(
            "GET /a/b?c HTTP/1.1\r\nHost: h{}.example.test\r\nAccept: */*\r\n\r\n",
            n / 2
        );
        let mut slots = HeaderSlots::with_most(100);
        let head = parse_request(text.as_bytes(), 0, 65536, &mut slots)
            .expect("a good head")
            .expect("a whole head");
        let client = IpAddr::from([192, 0, 2, 1]);
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| {
                let key = RouteKey::of(&head, false, |host| front.asks_for_path(host)).expect("a plain path");
                black_box(front.find(&key.asked(client)).expect("a route").route.target)
            });
        });
    }
    group.finish();
}

fn commit_one(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit of one changed service with ten routes");
    for n in SIZES {
        let handle = table_of(n);
        let mut seconds = 10;
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_batched(
                || {
                    seconds += 1;
                    upsert(spec(n / ROUTES_EACH / 2, n, seconds))
                },
                |change| handle.commit(&[change]).expect("no conflicts"),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build routes whole");
    group.sample_size(10);
    for n in SIZES {
        let changes = changes(n);
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_batched(
                empty,
                |handle| {
                    handle.commit(&changes).expect("no conflicts");
                    handle
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, find, commit_one, build);
criterion_main!(benches);

//! Routes of an entry point, 1, 1,000 and 10,000 of them, ten to a service: each for a host of its own, for a path of one host that
//! all share, or for a path of any host. Whose a request is; committing one service whose routes change, and one whose do not;
//! building the table whole, and what it takes of memory; reading a service's labels anew. What is found and what a change
//! costs hardly grow with the routes. Not here: sockets (`relay`).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anynode::model::{EntryPointSpec, Mode, RouteSpec, ServiceName, ServiceSpec, labels};
use anynode::proxy::http::{HeaderSlots, RouteKey, parse_request};
use anynode::routing::{Change, TableHandle};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

/// Routes.
const SIZES: [usize; 3] = [1, 1_000, 10_000];
const ROUTES_EACH: usize = 10;

/// What tells routes apart.
#[derive(Clone, Copy)]
enum Kind {
    Hosts,
    PathsOfOneHost,
    PathsOfAnyHost,
}

const KINDS: [Kind; 3] = [Kind::Hosts, Kind::PathsOfOneHost, Kind::PathsOfAnyHost];

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Hosts => "hosts",
            Kind::PathsOfOneHost => "paths of one host",
            Kind::PathsOfAnyHost => "paths of any host",
        }
    }

    fn rule(self, route: usize) -> String {
        match self {
            Kind::Hosts => format!("Host(`h{route}.example.test`) && PathPrefix(`/`)"),
            Kind::PathsOfOneHost => format!("Host(`example.test`) && PathPrefix(`/p{route}/`)"),
            Kind::PathsOfAnyHost => format!("PathPrefix(`/p{route}/`)"),
        }
    }

    fn head(self, route: usize) -> String {
        let (host, path) = match self {
            Kind::Hosts => (format!("h{route}.example.test"), "/a/b?c".to_owned()),
            Kind::PathsOfOneHost | Kind::PathsOfAnyHost => ("example.test".to_owned(), format!("/p{route}/b?c")),
        };
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n\r\n")
    }
}

/// `variant`: of the routes, by their priority, which is otherwise all the same.
fn spec(kind: Kind, service: usize, n_routes: usize, stop_grace: u64, variant: i64) -> ServiceSpec {
    let name = ServiceName::new(&format!("service-{service}")).expect("a valid name");
    let mut spec = ServiceSpec::new(name);
    spec.mode = Mode::Http;
    spec.stop_grace = Duration::from_secs(stop_grace);
    spec.endpoints = vec!["10.0.0.1:80".parse().expect("a valid endpoint")];
    let first = service * ROUTES_EACH;
    let route = |route: usize| RouteSpec {
        priority: Some(1_000 + variant),
        target: 80,
        ..RouteSpec::new(kind.rule(route).parse().expect("a rule"), "route")
    };
    spec.routes = (first..(first + ROUTES_EACH).min(n_routes)).map(route).collect();
    spec
}

fn changes(kind: Kind, n_routes: usize) -> Vec<Change> {
    let services = 0..n_routes.div_ceil(ROUTES_EACH);
    services
        .map(|service| upsert(spec(kind, service, n_routes, 10, 0)))
        .collect()
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

fn table_of(kind: Kind, n_routes: usize) -> TableHandle {
    let handle = empty();
    handle.commit(&changes(kind, n_routes)).expect("no conflicts");
    handle
}

fn of_each_kind_and_size(mut one: impl FnMut(Kind, usize, BenchmarkId)) {
    for kind in KINDS {
        for n in SIZES {
            one(kind, n, BenchmarkId::new(kind.as_str(), n));
        }
    }
}

/// From a parsed head to the route.
fn find(c: &mut Criterion) {
    let mut group = c.benchmark_group("find a route");
    of_each_kind_and_size(|kind, n, id| {
        let table = table_of(kind, n).load();
        let front = table.entry_points()[0].front();
        let text = kind.head(n / 2);
        let mut slots = HeaderSlots::with_most(100);
        let head = parse_request(text.as_bytes(), 0, 65536, &mut slots)
            .expect("a good head")
            .expect("a whole head");
        let client = IpAddr::from([192, 0, 2, 1]);
        group.bench_function(id, |b| {
            b.iter(|| {
                let mut hosted = front.at("");
                let asks_for_path = |host: &str| {
                    hosted = front.at(host);
                    hosted.asks_for_path()
                };
                let key = RouteKey::of(&head, false, asks_for_path).expect("a plain path");
                black_box(hosted.find(&key.asked(client)).expect("a route").route.target)
            });
        });
    });
    group.finish();
}

fn commit_one(c: &mut Criterion, name: &str, next: fn(Kind, usize, u64) -> ServiceSpec) {
    let mut group = c.benchmark_group(name);
    of_each_kind_and_size(|kind, n, id| {
        let handle = table_of(kind, n);
        let mut count = 10;
        group.bench_function(id, |b| {
            b.iter_batched(
                || {
                    count += 1;
                    upsert(next(kind, n, count))
                },
                |change| handle.commit(&[change]).expect("no conflicts"),
                BatchSize::SmallInput,
            );
        });
    });
    group.finish();
}

fn commit(c: &mut Criterion) {
    commit_one(c, "commit of a service with ten routes that stay", |kind, n, count| {
        spec(kind, n / ROUTES_EACH / 2, n, count, 0)
    });
    commit_one(c, "commit of a service whose ten routes change", |kind, n, count| {
        let variant = i64::try_from(count % 2).expect("0 or 1");
        spec(kind, n / ROUTES_EACH / 2, n, 10, variant)
    });
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build routes whole");
    group.sample_size(10);
    of_each_kind_and_size(|kind, n, id| {
        let changes = changes(kind, n);
        group.bench_function(id, |b| {
            b.iter_batched(
                empty,
                |handle| {
                    handle.commit(&changes).expect("no conflicts");
                    handle
                },
                BatchSize::LargeInput,
            );
        });
    });
    group.finish();
}

/// What an event of a task costs the labels of its service, whose rule is in use.
fn read(c: &mut Criterion) {
    let labels = |n: usize| {
        let rule = format!("Host(`shop-{n}.example.test`) && PathRegexp(`^/[a-z]+/[0-9]{{1,8}}$`)");
        BTreeMap::from([("anynode.route".to_owned(), rule)])
    };
    let mut n = 0;
    c.bench_function("read labels with a rule, new", |b| {
        b.iter(|| {
            n += 1;
            black_box(labels::routes(&labels(n)))
        });
    });
    let in_use = labels::routes(&labels(0));
    c.bench_function("read labels with a rule, in use", |b| {
        b.iter(|| black_box(labels::routes(&labels(0))));
    });
    drop(in_use);
}

/// Said beside the figures, since it is no time.
fn memory(_: &mut Criterion) {
    // Until the end: what is freed would be taken again, and not be seen.
    let mut kept = Vec::new();
    for kind in KINDS {
        let n = SIZES[SIZES.len() - 1];
        let before = resident();
        let changes = changes(kind, n);
        let rules = resident();
        let handle = empty();
        handle.commit(&changes).expect("no conflicts");
        let table = resident();
        println!(
            "memory of {n} routes, {}: rules and services {} KiB, table {} KiB",
            kind.as_str(),
            (rules - before) / 1024,
            (table - rules) / 1024,
        );
        kept.push((handle, changes));
    }
}

/// Bytes.
fn resident() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok());
    pages.expect("a number of pages") * 4096
}

criterion_group!(benches, memory, read, find, commit, build);
criterion_main!(benches);

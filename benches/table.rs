//! The routing table: picking an endpoint, committing one changed service, walking that difference, building it whole, at
//! 10, 1,000 and 10,000 services of 10 endpoints. A commit and a difference cost what changes, so their times hardly grow
//! with the table. Times are per operation. Not here: reading files (`source`), sockets (`relay`).

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anynode::model::{Balance, ServiceName, ServiceSpec};
use anynode::routing::{Change, RoutingTable, TableHandle};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

const SIZES: [usize; 3] = [10, 1_000, 10_000];

fn spec(i: usize, stop_grace_seconds: u64) -> ServiceSpec {
    let mut spec = ServiceSpec::new(ServiceName::new(&format!("service-{i}")).expect("a valid name"));
    spec.publish = vec![format!("{}:80", 1024 + i).parse().expect("a valid port")];
    spec.endpoints = (0..10)
        .map(|j| {
            format!("10.{}.{}.{}:80", i / 250, i % 250, j + 1)
                .parse()
                .expect("a valid endpoint")
        })
        .collect();
    spec.stop_grace = std::time::Duration::from_secs(stop_grace_seconds);
    spec
}

fn upsert(spec: ServiceSpec) -> Change {
    Change::Upsert {
        spec: Arc::new(spec),
        vip: None,
    }
}

fn table_of(n: usize) -> TableHandle {
    let handle = TableHandle::default();
    let changes: Vec<Change> = (0..n).map(|i| upsert(spec(i, 10))).collect();
    handle.commit(&changes).expect("no conflicts");
    handle
}

fn pick(c: &mut Criterion) {
    let handle = TableHandle::default();
    let mut group = c.benchmark_group("pick");
    for balance in [Balance::RoundRobin, Balance::LeastRequest] {
        let mut declared = spec(0, 10);
        declared.balance = balance;
        handle.commit(&[upsert(declared)]).expect("no conflicts");
        let service = handle.load().services().next().expect("one service").clone();
        let now = Instant::now();
        group.bench_function(balance.as_str(), |b| {
            b.iter(|| {
                let picks = service.picks(now);
                let i = match balance {
                    Balance::RoundRobin | Balance::Hash => picks.next(),
                    Balance::LeastRequest => picks.two().map(|[(one, _), (other, _)]| {
                        let load = |i: usize| service.endpoints()[i].in_flight();
                        if load(other) < load(one) { other } else { one }
                    }),
                };
                black_box(i)
            });
        });
    }
    for n in [3, 100] {
        let mut declared = spec(0, 10);
        declared.endpoints = (0..n)
            .map(|i| format!("10.0.0.{}:80", i + 1).parse().expect("a valid endpoint"))
            .collect();
        for weighty in [false, true] {
            let weights = (0..n).map(|i| if weighty && i == 0 { "2" } else { "1" });
            declared.set_weights(weights.map(|weight| weight.parse().expect("a valid weight")).collect());
            for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::Hash] {
                declared.balance = balance;
                handle.commit(&[upsert(declared.clone())]).expect("no conflicts");
                let service = handle.load().services().next().expect("one service").clone();
                let weighty = if weighty { ", weights" } else { "" };
                let now = Instant::now();
                let mut key = 0u64;
                group.bench_function(format!("{}, {n} endpoints{weighty}", balance.as_str()), |b| {
                    b.iter(|| {
                        let picks = service.picks(now);
                        key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
                        black_box(match balance {
                            Balance::RoundRobin => picks.next(),
                            Balance::LeastRequest => picks.two().map(|[one, other]| one.0 + other.0),
                            Balance::Hash => picks.ranked(key).next(),
                        })
                    });
                });
            }
        }
    }
    group.finish();
}

fn commit_one(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit of one changed service");
    for n in SIZES {
        let handle = table_of(n);
        let mut seconds = 10;
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_batched(
                || {
                    seconds += 1;
                    upsert(spec(n / 2, seconds))
                },
                |change| handle.commit(&[change]).expect("no conflicts"),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn diff_one(c: &mut Criterion) {
    let mut group = c.benchmark_group("difference of one changed service");
    for n in SIZES {
        let handle = table_of(n);
        let before = handle.load();
        handle.commit(&[upsert(spec(n / 2, 99))]).expect("no conflicts");
        let after = handle.load();
        assert_eq!(RoutingTable::diff(&before, &after).count(), 1);
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| {
                let services = RoutingTable::diff(&before, &after).count();
                black_box(services + RoutingTable::diff_listens(&before, &after).count())
            });
        });
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build whole");
    group.sample_size(10);
    for n in SIZES {
        let changes: Vec<Change> = (0..n).map(|i| upsert(spec(i, 10))).collect();
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter_batched(
                TableHandle::default,
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

criterion_group!(benches, pick, commit_one, diff_one, build);
criterion_main!(benches);

//! A task's network, made ready and let go: the listener, the names, the program and the routes inside its namespace, with
//! 1,000 services in the table, of which so many share its network. Goal: less than 5 ms for both together. Needs root and
//! network namespaces, and says so where they are not. Says how many descriptors it holds.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use anynode::dns::{DnsConfig, Responder};
use anynode::model::{Attachment, ServiceName, ServiceSpec, TaskPlace};
use anynode::proxy::{Beside, Proxy, ProxyConfig};
use anynode::routing::{Change, TableHandle};
use anynode::sys::socket::Liveness;
use anynode::tasknet::TaskNets;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const N_SERVICES: u16 = 1000;
const SHARED: [u16; 3] = [1, 10, 100];
/// The task's own address.
const TASK: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
/// What `TaskNets::open` promises.
const DESCRIPTORS_MAX: usize = 5;

/// A network namespace with a name, gone when dropped.
struct Space(String);

impl Space {
    fn new() -> Option<Space> {
        let name = format!("any-bench-{}", std::process::id());
        let space = ip(&["netns", "add", &name]).then_some(Space(name))?;
        let has_address = ip(&["-n", &space.0, "link", "set", "lo", "up"])
            && ip(&["-n", &space.0, "addr", "add", &format!("{TASK}/32"), "dev", "lo"]);
        has_address.then_some(space)
    }
}

fn ip(words: &[&str]) -> bool {
    let out = Command::new("ip").args(words).output();
    out.is_ok_and(|out| out.status.success())
}

impl Drop for Space {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

/// The network `shared-N` has the first N services.
fn service(i: u16) -> Change {
    let [high, low] = i.to_be_bytes();
    let name = ServiceName::new(&format!("service-{i}")).expect("a good name");
    let mut spec = ServiceSpec::new(name);
    let attached = |network: String, third: u8| Attachment {
        network: network.as_str().into(),
        network_name: network.as_str().into(),
        vip: Some(Ipv4Addr::new(10, third, high, low).into()),
        aliases: Vec::new(),
        subnet: None,
    };
    let shared = SHARED.iter().filter(|n| i <= **n).zip(1..);
    spec.attachments = shared
        .map(|(n, third)| attached(format!("shared-{n}"), third))
        .collect();
    spec.attachments.push(attached("others".to_owned(), 0));
    Change::Upsert {
        spec: Arc::new(spec),
        vip: None,
    }
}

fn n_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn bench(criterion: &mut Criterion) {
    let Some(space) = Space::new() else {
        println!("skipped: this needs root and network namespaces");
        return;
    };
    let table = Arc::new(TableHandle::default());
    let changes: Vec<Change> = (1..=N_SERVICES).map(service).collect();
    table.commit(&changes).expect("no conflicts");
    let mut proxy = Proxy::start(ProxyConfig::default(), table.clone(), Beside::default()).expect("a worker");
    proxy.settle();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let responder = Responder::new(DnsConfig::default(), table.clone());
    let networks = TaskNets::new(table, proxy.handle(), responder, Liveness::default());
    let place = |n: u16| TaskPlace {
        netns: std::path::Path::new(&format!("/run/netns/{}", space.0)).into(),
        networks: vec![format!("shared-{n}").as_str().into()],
        address: Some(TASK.into()),
        addresses: Vec::new(),
        is_internal: false,
        is_closed: false,
        has_dns: true,
        nameservers: Vec::new(),
        links: Vec::new(),
    };
    let open = async |n: u16| networks.open("task", place(n)).await.expect("the privileges");
    // What is made once for all is there after the first.
    runtime.block_on(async {
        open(1).await;
        networks.leave("task").await;
    });
    let before = n_descriptors();
    runtime.block_on(open(SHARED[0]));
    let held = n_descriptors().saturating_sub(before);
    println!("a task's network holds {held} descriptors");
    assert!(held <= DESCRIPTORS_MAX, "{held} descriptors");
    runtime.block_on(networks.leave("task"));

    let mut group = criterion.benchmark_group("task_network_opened_and_left");
    for n in SHARED {
        group.bench_with_input(BenchmarkId::new("services", n), &n, |bencher, n| {
            bencher.iter(|| {
                runtime.block_on(async {
                    open(*n).await;
                    networks.leave("task").await;
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);

//! The DNS answer, from the query's bytes to the reply's, with 1,000 services of 10 endpoints in the table. Baseline: a
//! UDP datagram's way through the kernel and back costs some 10 us, so an answer should cost a small part of that.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use anynode::dns::{Response, ReverseIndex, Transport, Zone, respond};
use anynode::model::{EndpointSpec, ServiceName, ServiceSpec};
use anynode::routing::{Change, TableHandle};
use criterion::{Criterion, criterion_group, criterion_main};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

const N_SERVICES: u16 = 1000;
const N_ENDPOINTS: u8 = 10;

fn table() -> TableHandle {
    let handle = TableHandle::default();
    let changes: Vec<Change> = (0..N_SERVICES).map(service).collect();
    if let Err(error) = handle.commit(&changes) {
        panic!("{error}");
    }
    handle
}

fn service(i: u16) -> Change {
    let [high, low] = i.to_be_bytes();
    let name = ServiceName::new(&format!("service-{i}")).expect("a good name");
    let mut spec = ServiceSpec::new(name);
    let endpoint = |n| EndpointSpec::at((Ipv4Addr::new(10, high, low, n), 80).into());
    spec.endpoints = (1..=N_ENDPOINTS).map(endpoint).collect();
    Change::Upsert {
        spec: Arc::new(spec),
        vip: Some(Ipv4Addr::new(127, 77, high, low)),
    }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).expect("a good name"), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().expect("a good message")
}

fn bench(criterion: &mut Criterion) {
    let handle = table();
    let table = handle.load();
    let reverse = ReverseIndex::new(&table);
    let zone = Zone {
        table: &table,
        reverse: &reverse,
        has_vips: true,
    };
    let mut group = criterion.benchmark_group("dns_answer_1000_services");
    for (what, name, kind) in [
        ("vip", "service-500.", RecordType::A),
        ("tasks", "tasks.service-500.", RecordType::A),
        ("nothing", "service-500.", RecordType::AAAA),
        ("vip_ptr", "244.1.77.127.in-addr.arpa.", RecordType::PTR),
        ("task_ptr", "7.244.1.10.in-addr.arpa.", RecordType::PTR),
        ("not_ours", "www.example.org.", RecordType::A),
    ] {
        let query = query(name, kind);
        let mut rng = fastrand::Rng::with_seed(1);
        group.bench_function(what, |bencher| {
            bencher.iter(|| respond(black_box(&query), Transport::Udp, &zone, None, Instant::now(), &mut rng));
        });
        let response = respond(&query, Transport::Udp, &zone, None, Instant::now(), &mut rng);
        assert_eq!(
            matches!(response, Response::Forward(_)),
            what == "not_ours",
            "{response:?}"
        );
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);

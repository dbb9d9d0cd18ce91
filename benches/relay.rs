//! TCP throughput, a message there and back, for messages of 64 B to 16 MB: direct, through `copy_bidirectional` of tokio,
//! and through this program's data plane with one worker. All in one process on loopback, so that client, proxy and
//! endpoint share the machine: compare the three with each other, in one run. Bytes are verified once per size.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anynode::model::{ServiceName, ServiceSpec};
use anynode::proxy::{Beside, Grace, Proxy, ProxyConfig};
use anynode::routing::{Change, TableHandle};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Sends back what it gets, on a thread for each connection.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let _ = stream.set_nodelay(true);
            std::thread::spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    addr
}

/// What most programs on tokio do.
fn baseline(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("its address");
    listener.set_nonblocking(true).expect("a listener");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((mut client, _)) = listener.accept().await {
                let _ = client.set_nodelay(true);
                tokio::spawn(async move {
                    let Ok(mut upstream) = tokio::net::TcpStream::connect(to).await else {
                        return;
                    };
                    let _ = upstream.set_nodelay(true);
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                });
            }
        });
    });
    addr
}

fn anynode(to: SocketAddr) -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("its address").port();
    drop(free);
    let table = Arc::new(TableHandle::default());
    let mut spec = ServiceSpec::new(ServiceName::new("echo").expect("a valid name"));
    spec.publish = vec![format!("127.0.0.1:{port}:80").parse().expect("a valid port")];
    spec.endpoints = vec![to.to_string().parse().expect("a valid endpoint")];
    let change = Change::Upsert {
        spec: Arc::new(spec),
        vip: None,
    };
    table.commit(&[change]).expect("no conflicts");
    let mut proxy = Proxy::start(ProxyConfig::default(), table, Beside::default()).expect("a worker");
    proxy.settle();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(proxy.run(
            Grace {
                asked: Duration::ZERO,
                handed_over: Duration::ZERO,
            },
            std::future::pending(),
            std::future::pending(),
        ))
    });
    ([127, 0, 0, 1], port).into()
}

/// Sends `message` while it receives it back into `answer`.
fn exchange(stream: &TcpStream, message: &[u8], answer: &mut [u8]) {
    let (mut reading, mut writing) = (stream, stream);
    if message.len() <= 16 * 1024 {
        writing.write_all(message).expect("a connection");
        return reading.read_exact(answer).expect("an answer");
    }
    std::thread::scope(|scope| {
        scope.spawn(move || writing.write_all(message).expect("a connection"));
        reading.read_exact(answer).expect("an answer");
    });
}

fn throughput(c: &mut Criterion) {
    let origin = echo();
    let ways = [
        ("direct", origin),
        ("copy_bidirectional", baseline(origin)),
        ("anynode", anynode(origin)),
    ];
    let mut group = c.benchmark_group("echo");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    for n_bytes in [64, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 16 << 20] {
        let message: Vec<u8> = (0..n_bytes)
            .map(|i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        group.throughput(Throughput::Bytes(n_bytes as u64));
        for (name, addr) in ways {
            let stream = TcpStream::connect(addr).expect("a connection");
            stream.set_nodelay(true).expect("a connection");
            let mut answer = vec![0; n_bytes];
            exchange(&stream, &message, &mut answer);
            assert!(answer == message, "{name} changed the bytes");
            group.bench_function(BenchmarkId::new(name, n_bytes), |b| {
                b.iter(|| exchange(&stream, &message, &mut answer));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, throughput);
criterion_main!(benches);

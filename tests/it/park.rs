//! Connections that are put aside while nothing passes: whatever happens to one brings it back as it was, and until then
//! it takes next to no memory.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anynode::proxy::ProxyConfig;
use anynode::routing::CloseReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{self, Node, Origin, dial, door, read_to_end, reset, service, wait_until};

const PARK_AFTER: Duration = Duration::from_millis(60);

fn config() -> ProxyConfig {
    ProxyConfig {
        n_workers: 2,
        park_after: PARK_AFTER,
        ..ProxyConfig::default()
    }
}

fn n_parked(node: &Node, name: &str) -> i64 {
    node.service(name).stats().connections_parked.load(Ordering::Relaxed)
}

fn wait_for_parked(node: &Node, n: i64) {
    wait_until("connections to be parked", || n_parked(node, "web") == n);
}

fn exchange(mut stream: &TcpStream, byte: u8) {
    stream.write_all(&[byte]).unwrap();
    let mut back = [0];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, [byte]);
}

/// An endpoint whose one connection the test itself holds.
fn held_origin() -> (Origin, Receiver<TcpStream>) {
    let (sender, receiver): (Sender<TcpStream>, _) = channel();
    let origin = Origin::start(move |stream| {
        stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
        sender.send(stream).unwrap();
    });
    (origin, receiver)
}

/// A node with one parked connection: both its ends.
fn parked_pair(node: &Node, change: impl FnOnce(&mut anynode::model::ServiceSpec)) -> (Origin, TcpStream, TcpStream) {
    let (origin, accepted) = held_origin();
    let mut web = service("web", &[origin.addr]);
    change(&mut web);
    node.apply(&web);
    let client = dial(door(&web));
    let server = accepted.recv_timeout(harness::PATIENCE).unwrap();
    wait_for_parked(node, 1);
    (origin, client, server)
}

#[test]
fn bytes_of_either_side_wake_it_and_it_parks_again() {
    let node = Node::start_with(config());
    let (_origin, mut client, mut server) = parked_pair(&node, |_| {});
    for byte in 0..4 {
        client.write_all(&[byte]).unwrap();
        let mut came = [9];
        server.read_exact(&mut came).unwrap();
        assert_eq!(came, [byte]);
        assert_eq!(n_parked(&node, "web"), 0);
        wait_for_parked(&node, 1);
        server.write_all(&[byte + 100]).unwrap();
        client.read_exact(&mut came).unwrap();
        assert_eq!(came, [byte + 100]);
        wait_for_parked(&node, 1);
    }
    let stats = node.service("web");
    let active = || stats.stats().connections_active.load(Ordering::Relaxed);
    assert_eq!((active(), stats.endpoints()[0].in_flight()), (1, 1), "it is open");
    drop(client);
    wait_until("the end to arrive", || read_to_end(&server).is_empty());
    drop(server);
    wait_until("the close", || node.closed("web", CloseReason::ClientFin) == 1);
    assert_eq!((active(), n_parked(&node, "web")), (0, 0));
    wait_until("the endpoint's count", || stats.endpoints()[0].in_flight() == 0);
    assert_eq!(stats.stats().connections_total.load(Ordering::Relaxed), 1);
}

#[test]
fn a_client_that_ends_its_half_wakes_it_and_is_answered_from_parking_again() {
    let node = Node::start_with(config());
    let (_origin, client, mut server) = parked_pair(&node, |_| {});
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    // Half-closed, it is parked as well, and the end that is known does not wake it.
    wait_for_parked(&node, 1);
    std::thread::sleep(PARK_AFTER);
    assert_eq!(n_parked(&node, "web"), 1);
    server.write_all(b"late answer").unwrap();
    wait_for_parked(&node, 1);
    server.write_all(b", in two parts").unwrap();
    drop(server);
    assert_eq!(read_to_end(&client), b"late answer, in two parts");
    wait_until("the close", || node.closed("web", CloseReason::ClientFin) == 1);
}

#[test]
fn an_endpoint_that_ends_its_half_wakes_it_and_hears_from_parking_again() {
    let node = Node::start_with(config());
    let (_origin, mut client, server) = parked_pair(&node, |_| {});
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    wait_for_parked(&node, 1);
    client.write_all(b"goes on").unwrap();
    wait_for_parked(&node, 1);
    drop(client);
    assert_eq!(read_to_end(&server), b"goes on");
    wait_until("the close", || node.closed("web", CloseReason::UpstreamFin) == 1);
}

#[test]
fn a_reset_of_either_side_stays_a_reset() {
    let node = Node::start_with(config());
    let (_origin, client, mut server) = parked_pair(&node, |_| {});
    reset(client);
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    wait_until("the close", || node.closed("web", CloseReason::ClientRst) == 1);
    let (_origin, mut client, server) = parked_pair(&node, |_| {});
    reset(server);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    wait_until("the close", || node.closed("web", CloseReason::UpstreamRst) == 1);
    assert_eq!(n_parked(&node, "web"), 0);
}

#[test]
fn a_reset_after_an_end_is_noticed_while_it_is_parked() {
    let node = Node::start_with(config());
    let (_origin, client, mut server) = parked_pair(&node, |_| {});
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    wait_for_parked(&node, 1);
    reset(client);
    wait_until("the close", || node.closed("web", CloseReason::ClientRst) == 1);
    let (_origin, mut client, server) = parked_pair(&node, |_| {});
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    wait_for_parked(&node, 1);
    reset(server);
    wait_until("the close", || node.closed("web", CloseReason::UpstreamRst) == 1);
}

#[test]
fn the_grace_of_a_removed_endpoint_ends_what_is_parked_there_and_nothing_else() {
    let node = Node::start_with(config());
    let (first, second) = (Origin::echo(), Origin::echo());
    let mut web = service("web", &[first.addr, second.addr]);
    web.stop_grace = Duration::from_secs(3);
    node.apply(&web);
    // One after the other: two workers may take them in any order.
    let mut on_first = dial(door(&web));
    exchange(&on_first, 1);
    let on_second = dial(door(&web));
    exchange(&on_second, 2);
    wait_for_parked(&node, 2);
    web.endpoints.remove(0);
    node.apply(&web);
    assert_eq!(on_first.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    wait_until("the close", || node.closed("web", CloseReason::DrainForced) == 1);
    assert_eq!(n_parked(&node, "web"), 1);
    exchange(&on_second, 3);
}

#[test]
fn stopping_lets_what_is_parked_end_and_resets_what_does_not() {
    let origin = Origin::echo();
    let mut node = Node::start_draining(config(), Duration::from_millis(500));
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let (ends, mut stays) = (dial(door(&web)), dial(door(&web)));
    exchange(&ends, 1);
    exchange(&stays, 1);
    wait_for_parked(&node, 2);
    let state = node.service("web");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        exchange(&ends, 2);
    });
    assert_eq!(node.stop(), 1);
    ending.join().unwrap();
    assert_eq!(stays.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let closed = |reason| state.stats().closed_count(reason);
    assert_eq!(closed(CloseReason::ProxyShutdown), 1);
    assert_eq!(closed(CloseReason::ClientFin), 1);
    assert_eq!(state.stats().connections_parked.load(Ordering::Relaxed), 0);
}

#[test]
fn idle_limits_hold_while_it_is_parked_and_bytes_put_them_off() {
    let node = Node::start_with(config());
    let idle = Duration::from_millis(700);
    let (_origin, mut client, mut server) = parked_pair(&node, |web| web.timeouts.idle = idle);
    for _ in 0..3 {
        std::thread::sleep(idle / 2);
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        wait_for_parked(&node, 1);
    }
    let put_off = Instant::now();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(put_off.elapsed() > idle / 4, "{:?}", put_off.elapsed());
    wait_until("the close", || node.closed("web", CloseReason::IdleTimeout) == 1);
    // The other limit begins with the end of a half.
    let (_origin, mut client, mut server) = parked_pair(&node, |web| web.timeouts.half_closed = idle);
    std::thread::sleep(idle + 2 * PARK_AFTER);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    wait_for_parked(&node, 1);
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    wait_until("the close", || node.closed("web", CloseReason::IdleTimeout) == 2);
}

#[test]
fn what_is_held_for_a_slow_reader_is_not_parked_and_arrives() {
    let node = Node::start_with(config());
    let (_origin, client, server) = parked_pair(&node, |_| {});
    // More than all buffers on the way take.
    let bytes: Vec<u8> = (0..40u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || (&server).write_all(&sent).unwrap());
    std::thread::sleep(4 * PARK_AFTER);
    assert_eq!(n_parked(&node, "web"), 0, "it holds bytes");
    assert!(read_to_end(&client) == bytes);
    writer.join().unwrap();
}

#[test]
fn zero_is_never() {
    let node = Node::start_with(ProxyConfig {
        park_after: Duration::ZERO,
        ..config()
    });
    let origin = Origin::echo();
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let client = dial(door(&web));
    exchange(&client, 1);
    std::thread::sleep(4 * PARK_AFTER);
    assert_eq!(n_parked(&node, "web"), 0);
    exchange(&client, 2);
}

/// Pauses as long as what it takes to be parked: bytes come before, while and after connections are put aside.
#[test]
fn pauses_around_the_limit_lose_nothing() {
    let node = Node::start_with(ProxyConfig {
        park_after: Duration::from_millis(10),
        ..config()
    });
    let origins = [Origin::echo(), Origin::echo()];
    let web = service("web", &origins.each_ref().map(|origin| origin.addr));
    node.apply(&web);
    let (is_over, n_seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(4);
    let n_rounds: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|seed| {
                let web = &web;
                scope.spawn(move || echo_with_pauses(door(web), seed, until))
            })
            .collect();
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                n_seen.fetch_add(u64::from(n_parked(&node, "web") > 0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let n_rounds = clients.into_iter().map(|client| client.join().unwrap()).sum();
        is_over.store(true, Ordering::Relaxed);
        n_rounds
    });
    println!("{n_rounds} rounds");
    assert!(n_rounds > 100 && n_seen.into_inner() > 100);
    wait_until("the closes", || node.closed("web", CloseReason::ClientFin) == 24);
}

fn echo_with_pauses(door: SocketAddr, seed: u64, until: Instant) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut stream = dial(door);
    let mut n_rounds = 0;
    while Instant::now() < until {
        let most = if rng.u8(..8) == 0 { 300_000 } else { 300 };
        let mut bytes = vec![0; rng.usize(1..most)];
        rng.fill(&mut bytes);
        let mut writing = stream.try_clone().unwrap();
        let mut came = vec![0; bytes.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| writing.write_all(&bytes).unwrap());
            stream.read_exact(&mut came).unwrap();
        });
        assert!(came == bytes, "seed {seed}: other bytes in round {n_rounds}");
        n_rounds += 1;
        std::thread::sleep(Duration::from_micros(rng.u64(..30_000)));
    }
    n_rounds
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Memory that it has for itself.
    fn private_bytes(&self) -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024
    }
}

fn scrape(admin: SocketAddr, series: &str) -> i64 {
    let mut stream = dial(admin);
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let text = String::from_utf8(read_to_end(&stream)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

const N_MANY: usize = 5000;
const PARKED_BYTES_MAX: i64 = 700;

/// Five thousand at once, in the program as it is run: they are small, and all of them are there again at once.
#[test]
fn thousands_that_are_parked_take_next_to_no_memory_and_wake_together() {
    let n_files = anynode::sys::limits::raise_open_files();
    if n_files < 2 * N_MANY as u64 + 1000 {
        return println!("skipped: {n_files} descriptors are too few for both ends of {N_MANY} connections");
    }
    if std::env::var("RUSTFLAGS").is_ok_and(|flags| flags.contains("sanitizer")) {
        return println!("skipped: a sanitizer takes memory of its own");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    runtime.block_on(async {
        let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = service("web", &[origin.local_addr().unwrap()]);
        tokio::spawn(echo_all(origin));
        let services = dir.path().join("services.yml");
        let text = format!(
            "services:\n  web:\n    publish: [\"{}\"]\n    endpoints: [\"{}\"]\n",
            web.publish[0], web.endpoints[0].addr
        );
        std::fs::write(&services, text).unwrap();
        let program = Program(
            Command::new(env!("CARGO_BIN_EXE_anynode"))
                .args(["up", "--dns", "none", "--admin", &admin.to_string()])
                .arg("--services")
                .arg(&services)
                .arg("--data-dir")
                .arg(dir.path().join("data"))
                .env("ANYNODE_LOG", "warn")
                .env("ANYNODE_TCP_PARK_AFTER", "200ms")
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let door = door(&web);
        wait_until("the port", || TcpStream::connect(door).is_ok());
        let n_parked = || scrape(admin, "anynode_connections_parked{service=\"web\"}");
        // What the first connections cost once is no cost of each.
        let mut first = open(door, 100).await;
        wait_for_count(&n_parked, 100).await;
        drop(first.split_off(1));
        wait_for_count(&n_parked, 1).await;
        let before = program.private_bytes();
        let mut many = open(door, N_MANY).await;
        wait_for_count(&n_parked, 1 + N_MANY as i64).await;
        let per_connection = || (program.private_bytes() - before) / N_MANY as i64;
        let started = Instant::now();
        // What they had before is given back a moment later.
        while per_connection() > PARKED_BYTES_MAX && started.elapsed() < harness::PATIENCE {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{} bytes for each of {N_MANY} parked connections", per_connection());
        assert!(per_connection() <= PARKED_BYTES_MAX, "{} bytes", per_connection());
        for stream in &mut many {
            stream.write_all(b"y").await.unwrap();
        }
        for stream in &mut many {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            assert_eq!(&byte, b"y");
        }
        wait_for_count(&n_parked, 1 + N_MANY as i64).await;
        drop(many);
        wait_for_count(&n_parked, 1).await;
        let n_active = || scrape(admin, "anynode_connections_active{service=\"web\"}");
        wait_for_count(&n_active, 1).await;
    });
}

async fn wait_for_count(count: &impl Fn() -> i64, n: i64) {
    let started = Instant::now();
    loop {
        let now = count();
        if now == n {
            return;
        }
        assert!(started.elapsed() < 3 * harness::PATIENCE, "{now} instead of {n}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn open(door: SocketAddr, n: usize) -> Vec<tokio::net::TcpStream> {
    let mut streams = Vec::new();
    while streams.len() < n {
        let opening: Vec<_> = (0..(n - streams.len()).min(50))
            .map(|_| {
                tokio::spawn(async move {
                    let mut stream = tokio::net::TcpStream::connect(door).await.unwrap();
                    stream.write_all(b"x").await.unwrap();
                    stream.read_exact(&mut [0]).await.unwrap();
                    stream
                })
            })
            .collect();
        for opened in opening {
            streams.push(opened.await.unwrap());
        }
    }
    streams
}

async fn echo_all(origin: tokio::net::TcpListener) {
    loop {
        let (mut stream, _) = origin.accept().await.unwrap();
        tokio::spawn(async move {
            let (mut reading, mut writing) = stream.split();
            let _ = tokio::io::copy(&mut reading, &mut writing).await;
        });
    }
}

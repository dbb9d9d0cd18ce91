//! Active health checks over a live data plane: who is probed, when the verdict turns, and where traffic then goes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anynode::health::{HealthStats, Prober};
use anynode::model::{HealthCheck, HealthProbe, Mode, ServiceSpec};
use anynode::routing::{EndpointState, TableHandle};
use tokio::sync::oneshot;

use crate::harness::{Node, Origin, dial, door, free_port, read_to_end, service, wait_until};

/// A prober on a thread of its own, until it is dropped.
struct Probing {
    stats: Arc<HealthStats>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Probing {
    fn of(table: &Arc<TableHandle>) -> Probing {
        let prober = Prober::new(table.clone(), Arc::default());
        let stats = prober.stats().clone();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(prober.run(async { drop(stopped.await) }));
        };
        Probing {
            stats,
            stop: Some(stop),
            thread: Some(std::thread::spawn(run)),
        }
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

/// An origin with `/health`, whose answer is a test's to choose; every other path answers the origin's name.
struct Patient {
    origin: Origin,
    chart: Arc<Chart>,
}

#[derive(Default)]
struct Chart {
    /// The status of `/health`, 0 never answers, and the probes since it was chosen.
    probed: Mutex<(u16, usize)>,
    n_requests: AtomicUsize,
}

impl Patient {
    fn start(name: &'static str, status: u16) -> Patient {
        let chart = Arc::new(Chart::default());
        chart.probed.lock().unwrap().0 = status;
        let seen = chart.clone();
        let origin = Origin::start(move |mut stream| {
            while let Some(head) = read_head(&mut stream) {
                let (status, body) = match head.starts_with("GET /health HTTP/1.1\r\n") {
                    true => {
                        let status = {
                            let mut probed = seen.probed.lock().unwrap();
                            probed.1 += 1;
                            probed.0
                        };
                        if status == 0 {
                            let _ = stream.read(&mut [0]);
                            return;
                        }
                        (status, "")
                    }
                    false => {
                        seen.n_requests.fetch_add(1, Ordering::SeqCst);
                        (200, name)
                    }
                };
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Patient { origin, chart }
    }

    fn turns(&self, status: u16) {
        *self.chart.probed.lock().unwrap() = (status, 0);
    }

    fn n_probes(&self) -> usize {
        self.chart.probed.lock().unwrap().1
    }

    fn n_requests(&self) -> usize {
        self.chart.n_requests.load(Ordering::SeqCst)
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = String::new();
    let mut byte = [0];
    while !head.ends_with("\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0] as char),
            _ => return None,
        }
    }
    Some(head)
}

fn checked(endpoints: &[&Patient], rise: u32, fall: u32) -> ServiceSpec {
    let addrs: Vec<SocketAddr> = endpoints.iter().map(|patient| patient.origin.addr).collect();
    let mut spec = service("web", &addrs);
    spec.mode = Mode::Http;
    spec.health = Some(HealthCheck {
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(2),
        rise,
        fall,
        ..HealthCheck::new(HealthProbe::Http { path: "/health".into() })
    });
    spec
}

fn wait_for(node: &Node, i: usize, state: EndpointState) {
    wait_until(state.as_str(), || {
        node.service("web").endpoints()[i].state(Instant::now()) == state
    });
}

/// Who answers six requests, sorted.
fn six(spec: &ServiceSpec) -> String {
    let mut names: Vec<char> = (0..6)
        .map(|_| {
            let mut client = dial(door(spec));
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
                .unwrap();
            let answer = String::from_utf8(read_to_end(&client)).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            answer.chars().last().unwrap()
        })
        .collect();
    names.sort_unstable();
    names.into_iter().collect()
}

#[test]
fn an_endpoint_leaves_after_fall_bad_probes_and_returns_after_rise_good_ones() {
    let (a, b) = (Patient::start("a", 200), Patient::start("b", 302));
    let node = Node::start();
    let web = checked(&[&a, &b], 2, 3);
    node.apply(&web);
    let probing = Probing::of(&node.table);
    wait_for(&node, 0, EndpointState::Ready);
    wait_for(&node, 1, EndpointState::Ready);
    assert!(a.n_probes() >= 2 && b.n_probes() >= 2);
    assert_eq!(six(&web), "aaabbb");
    for round in 0..3 {
        a.turns(500);
        wait_for(&node, 0, EndpointState::Unready);
        assert!(
            a.n_probes() >= 3,
            "round {round}: out after {} bad probes",
            a.n_probes()
        );
        let before = a.n_requests();
        assert_eq!(six(&web), "bbbbbb");
        assert_eq!(a.n_requests(), before);
        a.turns(200);
        wait_for(&node, 0, EndpointState::Ready);
        assert!(
            a.n_probes() >= 2,
            "round {round}: in after {} good probes",
            a.n_probes()
        );
        assert_eq!(six(&web), "aaabbb");
    }
    assert!(probing.stats.good.load(Ordering::Relaxed) > 0);
    assert!(probing.stats.bad.load(Ordering::Relaxed) >= 9);
    assert_eq!(probing.stats.timed_out.load(Ordering::Relaxed), 0);
}

#[test]
fn a_new_endpoint_waits_for_its_first_good_probe() {
    let (a, b) = (Patient::start("a", 200), Patient::start("b", 503));
    let node = Node::start();
    let mut web = checked(&[&a], 1, 3);
    node.apply(&web);
    let _probing = Probing::of(&node.table);
    wait_for(&node, 0, EndpointState::Ready);
    web.endpoints = checked(&[&a, &b], 1, 3).endpoints;
    node.apply(&web);
    assert_eq!(six(&web), "aaaaaa");
    wait_until("some probes", || b.n_probes() >= 3);
    assert_eq!(six(&web), "aaaaaa");
    assert_eq!(b.n_requests(), 0);
    b.turns(204);
    wait_for(&node, 1, EndpointState::Ready);
    assert_eq!(six(&web), "aaabbb");
}

#[test]
fn without_its_check_an_endpoint_is_used_and_left_in_peace() {
    let (a, b) = (Patient::start("a", 200), Patient::start("b", 500));
    let node = Node::start();
    let mut web = checked(&[&a, &b], 1, 1);
    node.apply(&web);
    let _probing = Probing::of(&node.table);
    wait_for(&node, 0, EndpointState::Ready);
    wait_until("a probe", || b.n_probes() >= 1);
    let check = web.health.take();
    node.apply(&web);
    // It is used, and nothing is known of it until then.
    wait_for(&node, 1, EndpointState::Untried);
    assert_eq!(six(&web), "aaabbb");
    wait_for(&node, 1, EndpointState::Ready);
    // One may have been under way.
    let n_probes = a.n_probes() + b.n_probes() + 2;
    std::thread::sleep(Duration::from_millis(120));
    assert!(a.n_probes() + b.n_probes() <= n_probes);
    // With the check back it is in use until proven otherwise.
    web.health = check;
    node.apply(&web);
    wait_for(&node, 1, EndpointState::Unready);
    assert_eq!(six(&web), "aaaaaa");
}

#[test]
fn an_endpoint_that_leaves_is_probed_no_more() {
    let (a, b) = (Patient::start("a", 200), Patient::start("b", 200));
    let node = Node::start();
    let mut web = checked(&[&a, &b], 1, 1);
    node.apply(&web);
    let _probing = Probing::of(&node.table);
    wait_until("probes", || b.n_probes() >= 2);
    web.endpoints.truncate(1);
    node.apply(&web);
    a.turns(200);
    wait_until("the change to have come through", || a.n_probes() >= 3);
    b.turns(200);
    a.turns(200);
    wait_until("more probes", || a.n_probes() >= 5);
    assert_eq!(b.n_probes(), 0);
}

#[test]
fn a_tcp_check_wants_a_connection() {
    let stays = Origin::named("a");
    let addr: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let comes_and_goes = Origin::start_at(addr, |mut stream| {
        let _ = stream.write_all(b"b");
    });
    let node = Node::start();
    let mut web = service("web", &[stays.addr, addr]);
    web.health = Some(HealthCheck {
        interval: Duration::from_millis(20),
        ..HealthCheck::new(HealthProbe::Tcp)
    });
    node.apply(&web);
    let probing = Probing::of(&node.table);
    let ask_six = || {
        let mut names: Vec<u8> = (0..6).flat_map(|_| read_to_end(&dial(door(&web)))).collect();
        names.sort_unstable();
        String::from_utf8(names).unwrap()
    };
    wait_for(&node, 0, EndpointState::Ready);
    wait_for(&node, 1, EndpointState::Ready);
    assert_eq!(ask_six(), "aaabbb");
    drop(comes_and_goes);
    wait_for(&node, 1, EndpointState::Unready);
    assert_eq!(ask_six(), "aaaaaa");
    assert!(probing.stats.bad.load(Ordering::Relaxed) >= 3);
    let _back = Origin::start_at(addr, |mut stream| {
        let _ = stream.write_all(b"b");
    });
    wait_for(&node, 1, EndpointState::Ready);
    assert_eq!(ask_six(), "aaabbb");
}

#[test]
fn silence_is_a_bad_probe() {
    let (a, b) = (Patient::start("a", 200), Patient::start("b", 200));
    let node = Node::start();
    let mut web = checked(&[&a, &b], 1, 2);
    web.health.as_mut().unwrap().timeout = Duration::from_millis(100);
    node.apply(&web);
    let probing = Probing::of(&node.table);
    wait_for(&node, 1, EndpointState::Ready);
    b.turns(0);
    wait_for(&node, 1, EndpointState::Unready);
    assert!(probing.stats.timed_out.load(Ordering::Relaxed) >= 2);
    b.turns(200);
    wait_for(&node, 1, EndpointState::Ready);
}

#[test]
fn when_all_are_down_all_are_used_and_it_is_counted() {
    let (a, b) = (Patient::start("a", 200), Patient::start("b", 200));
    let node = Node::start();
    let web = checked(&[&a, &b], 1, 1);
    node.apply(&web);
    let _probing = Probing::of(&node.table);
    wait_for(&node, 0, EndpointState::Ready);
    wait_for(&node, 1, EndpointState::Ready);
    let n_panics = || node.service("web").stats().panic_picks.load(Ordering::Relaxed);
    assert_eq!((six(&web).as_str(), n_panics()), ("aaabbb", 0));
    a.turns(500);
    b.turns(500);
    wait_for(&node, 0, EndpointState::Unready);
    wait_for(&node, 1, EndpointState::Unready);
    assert_eq!((six(&web).as_str(), n_panics()), ("aaabbb", 6));
    // One that is healthy again is enough, and has it all.
    b.turns(200);
    wait_for(&node, 1, EndpointState::Ready);
    assert_eq!((six(&web).as_str(), n_panics()), ("bbbbbb", 6));
}

//! Clients that come while a service has nobody to serve them: they wait, bounded in number and time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anynode::model::{Mode, ServiceName, ServiceSpec, TaskRef};
use anynode::routing::{Change, CloseReason};
use socket2::{Domain, Socket, Type};

use crate::harness::{Node, Origin, PATIENCE, ask, dial, door, free_port, read_to_end, service, wait_until};
use crate::netns::Space;

/// A service whose clients wait.
fn patient(endpoints: &[SocketAddr]) -> ServiceSpec {
    let mut spec = service("web", endpoints);
    spec.limits.hold_timeout = 3 * PATIENCE;
    spec
}

fn held(node: &Node, name: &str) -> u32 {
    node.service(name).state().hold_gate.depth()
}

/// The endpoint as a cluster's task.
fn as_task(spec: &mut ServiceSpec) {
    for endpoint in &mut spec.endpoints {
        endpoint.task = Some(Arc::new(TaskRef {
            id: "task".into(),
            name: format!("{}.1", spec.name),
            service: spec.name.as_str().into(),
            node: "node".into(),
            hostname: "host".into(),
            is_remote: false,
            addresses: Vec::new(),
            names: Vec::new(),
        }));
    }
}

#[test]
fn who_comes_between_two_tasks_waits_for_the_next() {
    let (old, new) = (Origin::named("old"), Origin::named("new"));
    let node = Node::start();
    let mut web = patient(&[old.addr]);
    node.apply(&web);
    assert_eq!(ask(door(&web)), "old");
    web.endpoints.clear();
    node.apply(&web);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(|| ask(door(&web)))).collect();
        wait_until("twenty to wait", || held(&node, "web") == 20);
        let next = service("web", &[new.addr]);
        node.apply(&ServiceSpec {
            endpoints: next.endpoints,
            ..web.clone()
        });
        for client in clients {
            assert_eq!(client.join().unwrap(), "new");
        }
    });
    assert_eq!(held(&node, "web"), 0);
    assert_eq!(node.closed("web", CloseReason::NoEndpoint), 0);
}

#[test]
fn requests_wait_too() {
    let origin = Origin::start(|mut stream| {
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer), Ok(1..)) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        }
    });
    let node = Node::start();
    let mut web = service("web", &[]);
    web.mode = Mode::Http;
    node.apply(&web);
    let mut client = dial(door(&web));
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
        .unwrap();
    wait_until("the request to wait", || held(&node, "web") == 1);
    web.endpoints = service("web", &[origin.addr]).endpoints;
    node.apply(&web);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn a_task_that_does_not_listen_yet_is_waited_for() {
    let node = Node::start();
    let port = free_port();
    let mut web = patient(&[format!("127.0.0.1:{port}").parse().unwrap()]);
    as_task(&mut web);
    node.apply(&web);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| ask(door(&web)));
        wait_until("one to wait", || held(&node, "web") == 1);
        std::thread::sleep(Duration::from_millis(200));
        let _late = Origin::start_at(format!("127.0.0.1:{port}").parse().unwrap(), |mut stream| {
            let _ = stream.write_all(b"late");
        });
        assert_eq!(client.join().unwrap(), "late");
    });
    wait_until("nobody to wait", || held(&node, "web") == 0);
}

#[test]
fn only_so_many_wait_and_only_so_long() {
    let node = Node::start();
    let mut web = service("web", &[]);
    (web.limits.hold, web.limits.hold_timeout) = (2, Duration::from_millis(300));
    node.apply(&web);
    let refused = |mut client: TcpStream| {
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    };
    let started = Instant::now();
    let waiting = [dial(door(&web)), dial(door(&web))];
    wait_until("two to wait", || held(&node, "web") == 2);
    refused(dial(door(&web)));
    assert_eq!(held(&node, "web"), 2, "the third was refused at once");
    waiting.into_iter().for_each(refused);
    assert!(started.elapsed() >= Duration::from_millis(300));
    wait_until("the closes", || node.closed("web", CloseReason::NoEndpoint) == 3);
    assert_eq!(held(&node, "web"), 0);
    // Where a task refuses, the reason is that.
    web.endpoints = service("web", &[format!("127.0.0.1:{}", free_port()).parse().unwrap()]).endpoints;
    as_task(&mut web);
    node.apply(&web);
    refused(dial(door(&web)));
    wait_until("the close", || node.closed("web", CloseReason::ConnectFailed) == 1);
    // Nor where nobody is to wait.
    web.endpoints.iter_mut().for_each(|endpoint| endpoint.task = None);
    web.limits.hold_timeout = Duration::ZERO;
    node.apply(&web);
    let started = Instant::now();
    refused(dial(door(&web)));
    assert!(started.elapsed() < PATIENCE / 2);
}

/// Loopback stands for many, so that these have addresses of their own.
#[test]
fn whoever_takes_all_places_keeps_nobody_else_from_waiting() {
    let Some(space) = Space::new() else {
        return;
    };
    space.sh("ip link set lo up");
    for ip in ["192.0.2.1/32", "192.0.2.2/32"] {
        space.sh(&format!("ip addr add {ip} dev lo"));
    }
    space.run(|| {
        let node = Node::start();
        let mut web = patient(&[]);
        web.limits.hold = 4;
        node.apply(&web);
        let dial_from = |ip: [u8; 4]| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
            socket.connect(&door(&web).into()).unwrap();
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let is_refused = |mut client: &TcpStream| {
            let error = client.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        };
        let greedy: Vec<TcpStream> = (1..=4)
            .map(|n| {
                let client = dial_from([192, 0, 2, 1]);
                wait_until("it to wait", || held(&node, "web") == n);
                client
            })
            .collect();
        is_refused(&dial_from([192, 0, 2, 1]));
        let other = dial_from([192, 0, 2, 2]);
        is_refused(&greedy[3]);
        assert_eq!(held(&node, "web"), 4);
        let closed = |reason| node.closed("web", reason);
        wait_until("the closes", || {
            (closed(CloseReason::NoEndpoint), closed(CloseReason::Limit)) == (1, 1)
        });
        let task = Origin::named("task");
        web.endpoints = service("web", &[task.addr]).endpoints;
        node.apply(&web);
        for client in greedy[..3].iter().chain([&other]) {
            assert_eq!(read_to_end(client), b"task");
        }
    });
}

/// One of those who wait tries, and nobody else: 300 that waited made 300 connects to each endpoint at once, and again
/// after 20 ms, 40 ms and so on.
#[test]
fn of_all_who_wait_one_tries_and_its_success_lets_all_through() {
    let node = Node::start();
    let port = free_port();
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let web = patient(&[at(port), at(free_port()), at(free_port())]);
    node.apply(&web);
    let first = dial(door(&web));
    wait_until("the first to wait", || held(&node, "web") == 1);
    let mut others: Vec<_> = (0..300).map(|_| dial(door(&web))).collect();
    wait_until("all to wait", || held(&node, "web") == 301);
    // Whoever tries goes away: somebody else does then.
    crate::harness::reset(first);
    wait_until("one to leave", || held(&node, "web") == 300);
    let failures = || -> u64 {
        let service = node.service("web");
        service
            .endpoints()
            .iter()
            .map(|endpoint| endpoint.connect_failures_total())
            .sum()
    };
    let n_failures = failures();
    assert!(n_failures <= 60, "{n_failures} failed connects while 300 wait");
    let _late = Origin::start_at(at(port), |mut stream| {
        let _ = stream.write_all(b"late");
    });
    for client in &mut others {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "late");
    }
    wait_until("nobody to wait", || held(&node, "web") == 0);
    let n_failures = failures();
    println!("{n_failures} failed connects in all");
    assert!(n_failures <= 150, "{n_failures} failed connects");
    assert_eq!(node.service("web").stats().connections_total.load(Relaxed), 301);
}

/// A place is for one port: who looks out for another that nobody listens on is in nobody's way.
#[test]
fn who_waits_for_another_port_is_not_waited_for() {
    let node = Node::start();
    let (dead, alive) = (free_port(), free_port());
    let mut web = patient(&["127.0.0.1:1".parse().unwrap()]);
    web.endpoints = vec!["127.0.0.1".parse().unwrap()];
    web.publish = [dead, alive]
        .map(|target| format!("127.0.0.1:{}:{target}", free_port()).parse().unwrap())
        .to_vec();
    node.apply(&web);
    let door = |i: usize| SocketAddr::from(([127, 0, 0, 1], web.publish[i].published));
    let waits = dial(door(0));
    wait_until("one to wait", || held(&node, "web") == 1);
    let _origin = Origin::start_at(SocketAddr::from(([127, 0, 0, 1], alive)), |mut stream| {
        let _ = stream.write_all(b"alive");
    });
    assert_eq!(ask(door(1)), "alive");
    drop(waits);
}

#[test]
fn who_gives_up_leaves_its_place_and_a_service_that_goes_takes_nobody_along() {
    let node = Node::start();
    let web = service("web", &[]);
    node.apply(&web);
    let client = dial(door(&web));
    wait_until("one to wait", || held(&node, "web") == 1);
    crate::harness::reset(client);
    wait_until("nobody to wait", || held(&node, "web") == 0);
    let mut client = dial(door(&web));
    wait_until("one to wait", || held(&node, "web") == 1);
    let name = ServiceName::new("web").unwrap();
    node.table.commit(&[Change::Remove(name)]).unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

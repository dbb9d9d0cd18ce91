//! Clients that come while a service has nobody to serve them: they wait, bounded in number and time.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anynode::model::{Mode, ServiceName, ServiceSpec, TaskRef};
use anynode::routing::{Change, CloseReason};

use crate::harness::{Node, Origin, ask, dial, door, free_port, service, wait_until};

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
        }));
    }
}

#[test]
fn who_comes_between_two_tasks_waits_for_the_next() {
    let (old, new) = (Origin::named("old"), Origin::named("new"));
    let node = Node::start();
    let mut web = service("web", &[old.addr]);
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
    let mut web = service("web", &[format!("127.0.0.1:{port}").parse().unwrap()]);
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
    let refused = |mut client: std::net::TcpStream| {
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
    // What was declared by its address is not waited for.
    web.endpoints.iter_mut().for_each(|endpoint| endpoint.task = None);
    web.limits.hold_timeout = Duration::from_secs(3600);
    node.apply(&web);
    refused(dial(door(&web)));
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

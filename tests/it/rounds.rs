//! Services whose endpoints are published ports of the same node: chains are well, loops end by themselves.

use std::io::{Read, Write};
use std::time::Duration;

use anynode::model::Mode;
use anynode::routing::CloseReason;

use crate::harness::{Node, Origin, ask, dial, door, read_to_end, service, wait_until};

fn n_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_tcp_service_that_leads_to_itself_takes_few_descriptors_and_its_client_is_reset() {
    let node = Node::start();
    let mut web = service("web", &[]);
    web.endpoints = service("web", &[door(&web)]).endpoints;
    node.apply(&web);
    let before = n_descriptors();
    let mut most = 0;
    for round in 1..=20 {
        let mut client = dial(door(&web));
        client.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        while let Err(error) = client.read(&mut [0]) {
            most = most.max(n_descriptors());
            if !matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) {
                break;
            }
        }
        wait_until("the loop to be found", || {
            node.closed("web", CloseReason::Loop) >= round
        });
    }
    let stats = node.service("web");
    let active = || {
        stats
            .stats()
            .connections_active
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    wait_until("all to end", || active() == 0);
    // Other tests of this process have some too.
    assert!(most < before + 2000, "{before} to {most} descriptors");
    let total = stats
        .stats()
        .connections_total
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(total, 20 * 9, "connections for 20 clients");
}

#[test]
fn an_http_service_that_leads_to_itself_answers_508() {
    let node = Node::start();
    let mut web = service("web", &[]);
    web.mode = Mode::Http;
    web.endpoints = service("web", &[door(&web)]).endpoints;
    node.apply(&web);
    for method in ["GET", "POST"] {
        let mut client = dial(door(&web));
        write!(client, "{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let answer = String::from_utf8(read_to_end(&client)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 508 Loop Detected\r\n"), "{answer}");
    }
    let total = node
        .service("web")
        .stats()
        .connections_total
        .load(std::sync::atomic::Ordering::Relaxed);
    assert!(total <= 2 * 12, "{total} connections for two clients");
}

#[test]
fn a_chain_of_services_is_well() {
    let origin = Origin::named("end");
    let node = Node::start();
    let mut at = origin.addr;
    for i in 0..6 {
        let next = service(&format!("s{i}"), &[at]);
        node.apply(&next);
        at = door(&next);
    }
    for _ in 0..10 {
        assert_eq!(ask(at), "end");
    }
}

//! Programs in namespaces see their clients' addresses.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Place, ip, run};
use crate::harness::wait_until;

#[test]
fn a_program_sees_its_clients_and_others_are_not_disturbed() {
    let Some(mut place) = Place::set_up("inside") else {
        return;
    };
    place.task("0.0.0.0:80");
    place.task("[::]:81");
    place.task("10.99.2.2:82");
    let netns = place.path("task");
    place.node(&format!(
        "services:
  any: {{ publish: ['8080:80'], endpoints: [{{ address: '127.0.0.1:80', netns: {netns} }}] }}
  six: {{ publish: ['8081:81'], endpoints: [{{ address: '[::1]:81', netns: {netns} }}] }}
  own: {{ publish: ['8082:82'], endpoints: [{{ address: 10.99.2.2, netns: {netns} }}] }}
  none: {{ publish: ['8083:80'], client_address: none, endpoints: [{{ address: '127.0.0.1:80', netns: {netns} }}] }}
  http: {{ publish: ['8084:80'], mode: http, health: {{ http: /health, interval: 100ms }}, endpoints: [{{ address: '127.0.0.1:80', netns: {netns} }}] }}
  shut: {{ publish: ['8085:85'], limits: {{ hold_timeout: 0s }}, endpoints: [{{ address: '127.0.0.1:85', netns: {netns} }}] }}
"
    ));
    let from = |port: u16| format!("http://10.99.1.1:{port}");
    wait_until("an answer", || place.peer("client", &[&from(8080)]).is_some());
    // The address and the port, whatever the program listens on.
    for (port, own) in [(8080, 5555), (8082, 5556)] {
        let (own_port, url) = (format!("{own}"), from(port));
        let args = ["--local-port", &own_port, &url];
        assert_eq!(
            place.peer("client", &args),
            Some(("10.99.1.2".to_owned(), own)),
            "{port}"
        );
    }
    let args = ["-g", "--local-port", "5557", "http://[fd99:1::1]:8081"];
    assert_eq!(place.peer("client", &args).unwrap(), ("fd99:1::2".to_owned(), 5557));
    // One of the other family can only be told by a proxy's address.
    assert_eq!(place.peer("client", &[&from(8081)]).unwrap().0, "::1");
    assert_eq!(place.peer("client", &[&from(8083)]).unwrap().0, "127.0.0.1");
    assert_eq!(place.peer("node", &["http://127.0.0.1:8080"]).unwrap().0, "127.0.0.1");
    assert_eq!(place.peer("node", &["http://10.99.1.1:8080"]).unwrap().0, "10.99.1.1");
    // In http mode a connection is many clients', and the field says who.
    let answer = run(place
        .inside("client", "curl")
        .args(["-s", "-f", "-m", "5", &from(8084)]));
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(answer["headers"]["x-forwarded-for"], "10.99.1.2");
    // Two clients with one source port, at the same time.
    std::thread::scope(|scope| {
        let both = ["10.99.1.2", "10.99.1.3"].map(|addr| {
            let (place, url) = (&place, format!("{}/?delay=500", from(8080)));
            let peer = move || place.peer("client", &["--interface", addr, "--local-port", "5558", &url]);
            (addr, scope.spawn(peer))
        });
        for (addr, peer) in both {
            assert_eq!(peer.join().unwrap().unwrap(), (addr.to_owned(), 5558));
        }
    });
    // One client twice, at the same time.
    std::thread::scope(|scope| {
        let both = [8080, 8080].map(|port| {
            let (place, url) = (&place, format!("{}/?delay=500", from(port)));
            scope.spawn(move || place.peer("client", &["--interface", "10.99.1.2", &url]))
        });
        assert!(
            both.into_iter()
                .all(|peer| peer.join().unwrap().unwrap().0 == "10.99.1.2")
        );
    });
    // Who talks to the task over its own interface is not disturbed, on a port that is proxied too.
    assert_eq!(place.peer("node", &["http://10.99.2.2:80"]).unwrap().0, "10.99.2.1");
    // A closed port is refused at once, where nobody is to wait.
    let started = Instant::now();
    assert!(place.peer("client", &[&from(8085)]).is_none());
    assert!(
        started.elapsed() < Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
    let status = place.status().unwrap();
    let any = status["services"]
        .as_array()
        .unwrap()
        .iter()
        .find(|service| service["name"] == "any")
        .unwrap();
    assert_eq!(any["endpoints"][0]["netns"], netns);
    assert!(any["endpoints"][0]["opaque"].is_null());
}

#[test]
fn what_left_holds_nothing_and_what_returns_is_found() {
    let Some(mut place) = Place::set_up("inside2") else {
        return;
    };
    place.task("0.0.0.0:80");
    let netns = place.path("task");
    let other = "  other: { publish: ['8090:80'], endpoints: ['10.99.2.2:80'] }\n";
    place.node(&format!("services:\n{other}"));
    let url = "http://10.99.1.1:8080";
    let mut before = None;
    for round in 0..3 {
        let web = format!(
            "  web: {{ publish: ['8080:80'], stop_grace: 100ms, endpoints: [{{ address: '127.0.0.1:80', netns: {netns} }}] }}\n"
        );
        place.declare(&format!("services:\n{other}{web}"));
        wait_until("an answer", || place.peer("client", &[url]).is_some());
        for _ in 0..20 {
            assert_eq!(place.peer("client", &[url]).unwrap().0, "10.99.1.2");
        }
        // The namespace is made anew under its name, and its program with it.
        let task = place.netns("task");
        let mut old = place.running.remove(0);
        old.kill().unwrap();
        old.wait().unwrap();
        ip(&format!("netns del {task}"));
        ip(&format!("netns add {task}"));
        ip(&format!("-n {task} link set lo up"));
        place.task("0.0.0.0:80");
        let last = place.running.pop().unwrap();
        place.running.insert(0, last);
        wait_until("an answer of the new one", || {
            place
                .peer("client", &[url])
                .is_some_and(|(peer, _)| peer == "10.99.1.2")
        });
        place.declare(&format!("services:\n{other}"));
        // The thread that enters namespaces knows its way home from the first time on.
        wait_until("the port to close", || place.peer("client", &[url]).is_none());
        std::thread::sleep(Duration::from_millis(300));
        let most = *before.get_or_insert_with(|| place.n_descriptors());
        wait_until(&format!("nothing to be held, round {round}"), || {
            place.n_descriptors() <= most
        });
    }
}

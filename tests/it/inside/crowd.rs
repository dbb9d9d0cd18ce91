//! Who takes all the connections that there may be keeps nobody else out: neither a task that calls from inside, nor a client
//! of a published port. Seen with room for 64.

use std::process::{Child, Stdio};

use super::Place;
use crate::harness::wait_until;

/// Opens connections to `to` (an address and a port with a slash between), more than there may be, and keeps what it can.
fn hoard(place: &mut Place, who: &str, from: Option<&str>, to: &str) -> Child {
    // bash alone cannot say where a connection is to come from.
    let script = match from {
        None => format!("for i in $(seq 200); do exec {{fd}}<>/dev/tcp/{to}; done; echo full; exec sleep 60"),
        Some(from) => format!(
            "ip route replace {}/32 dev eth0 src {from}; for i in $(seq 200); do exec {{fd}}<>/dev/tcp/{to}; done; echo full; exec sleep 60",
            to.split('/').next().unwrap()
        ),
    };
    let mut command = place.inside(who, "bash");
    command
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn given_up(place: &Place) -> u64 {
    let out = place
        .inside("node", "curl")
        .args(["-s", "-m", "5", "http://127.0.0.1:9377/metrics"])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let closed = text.lines().filter(|line| line.contains("reason=\"given_up\""));
    closed
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>() as u64
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn who_holds_most_connections_keeps_nobody_out() {
    let Some(mut place) = Place::set_up("crowd") else {
        return;
    };
    place.task("0.0.0.0:80");
    place.serve_in("client", "0.0.0.0:9000");
    let (task, client) = (place.path("task"), place.path("client"));
    let services = format!(
        "services:
  web: {{ publish: ['8080:80'], endpoints: [{{ address: '10.99.2.2:80', netns: {task} }}] }}
  api: {{ endpoints: [{{ address: '10.99.1.2:9000', netns: {client} }}] }}
"
    );
    place.node_with(
        &services,
        &[("ANYNODE_TCP_CONNECTIONS_MAX", "64"), ("ANYNODE_WORKERS", "2")],
    );
    let vip = || {
        let status = place.status().unwrap();
        status["services"][0]["vip"].as_str().unwrap().to_owned()
    };
    let vip = vip();
    let from_outside = |place: &Place| place.peer("client", &["http://10.99.1.1:8080/"]);
    let from_inside = |place: &Place| place.peer("task", &[&format!("http://{vip}/")]);
    wait_until("the services", || {
        from_outside(&place).is_some() && from_inside(&place).is_some()
    });
    for round in ["a task", "a client"] {
        let hoarder = match round {
            "a task" => hoard(&mut place, "task", None, &format!("{vip}/80")),
            _ => hoard(&mut place, "client", Some("10.99.1.3"), "10.99.1.1/8080"),
        };
        let before = given_up(&place);
        wait_until("the places to be taken", || {
            let status = place.status().unwrap();
            let services = status["services"].as_array().unwrap();
            services.iter().filter_map(|s| s["connections"].as_u64()).sum::<u64>() >= 60
        });
        for i in 0..10 {
            // Of the client's two addresses the other one.
            let outside = place.peer("client", &["--interface", "10.99.1.2", "http://10.99.1.1:8080/"]);
            assert!(outside.is_some(), "{round} keeps clients out ({i})");
            assert!(
                place.status().is_some(),
                "{round} keeps the admin server from answering"
            );
            if round == "a client" {
                assert!(from_inside(&place).is_some(), "{round} keeps tasks out ({i})");
            }
        }
        assert!(given_up(&place) > before, "nobody gave a place up for {round}");
        end(hoarder);
    }
}

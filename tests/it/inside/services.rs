//! From inside a namespace the services of a file are reached, by name and by address, on any port.

use std::collections::BTreeMap;
use std::process::Command;

use super::{Place, ip};
use crate::harness::wait_until;

/// Has programs that run inside ask anynode for names. Undone when dropped.
struct ResolvConf(std::path::PathBuf);

impl ResolvConf {
    fn of(netns: &str) -> ResolvConf {
        let dir = std::path::Path::new("/etc/netns").join(netns);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("resolv.conf"), "nameserver 127.0.0.77\noptions ndots:0\n").unwrap();
        ResolvConf(dir)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        // Only if it is empty.
        let _ = std::fs::remove_dir("/etc/netns");
    }
}

/// What a shell inside says; with its own view of /etc/resolv.conf.
fn sh(place: &Place, who: &str, script: &str) -> String {
    let out = Command::new("ip")
        .args(["netns", "exec", &place.netns(who), "sh", "-c", script])
        .output()
        .unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn peer_of(answer: &str) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(answer).ok()?;
    Some(answer["peer"].as_str()?.to_owned())
}

#[test]
fn a_program_reaches_services_by_name_and_by_address_on_any_port() {
    let Some(mut place) = Place::set_up("within") else {
        return;
    };
    let _resolv = ResolvConf::of(&place.netns("task"));
    place.task("0.0.0.0:80");
    place.serve_in("client", "0.0.0.0:9000");
    place.serve_in("client", "0.0.0.0:9001");
    let (task, client) = (place.path("task"), place.path("client"));
    let services = |more: &str| {
        format!(
            "services:
  web: {{ endpoints: [{{ address: '10.99.2.2:80', netns: {task} }}] }}
  api: {{ endpoints: [{{ address: '10.99.1.2:9000', netns: {client} }}, {{ address: '10.99.1.2:9001', netns: {client} }}] }}
  site: {{ mode: http, endpoints: [{{ address: '10.99.1.2:9000', netns: {client} }}] }}
  plain: {{ endpoints: ['127.0.0.1:9377'] }}
  empty: {{ limits: {{ hold_timeout: 10s }}, endpoints: [] }}
{more}"
        )
    };
    place.node(&services(""));
    let names = || sh(&place, "task", "dig +short +time=1 +tries=1 api");
    wait_until("names inside", || names().starts_with("127.77."));
    let vip = names();
    // Any port, by address and by name; the one that is asked sees the one that asks.
    for url in [
        format!("http://{vip}:80/"),
        format!("http://{vip}:1234/"),
        "http://api:5/".to_owned(),
        "http://API/".to_owned(),
        "http://site:77/".to_owned(),
    ] {
        let answer = sh(&place, "task", &format!("curl -s -f -m 5 {url}"));
        let expect = if url.contains("site") { "10.99.1.2" } else { "10.99.2.2" };
        assert_eq!(peer_of(&answer).as_deref(), Some(expect), "{url} {answer}");
    }
    let site = sh(&place, "task", "curl -s -f -m 5 http://site/");
    let site: serde_json::Value = serde_json::from_str(&site).unwrap();
    assert_eq!(site["headers"]["x-forwarded-for"], "10.99.2.2");
    // In turn.
    let mut seen = BTreeMap::new();
    for _ in 0..6 {
        let answer = sh(&place, "task", "curl -s -m 5 http://api/");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        *seen.entry(answer["slot"].to_string()).or_insert(0) += 1;
    }
    assert_eq!(seen.into_values().collect::<Vec<_>>(), [3, 3]);
    // A service of the node's own namespace, and itself, seen as itself.
    let livez = sh(
        &place,
        "task",
        "curl -s -o /dev/null -w '%{http_code}' -m 5 http://plain/livez",
    );
    assert_eq!(livez, "200");
    let own = sh(&place, "task", "curl -s -f -m 5 http://web/");
    assert_eq!(peer_of(&own).as_deref(), Some("10.99.2.2"));
    // What the names stand for.
    let dig = |what: &str| sh(&place, "task", &format!("dig +short +time=2 +tries=1 {what}"));
    assert_eq!(dig("tasks.api"), "10.99.1.2");
    assert_eq!(dig("+tcp api"), vip);
    assert_eq!(dig(&format!("-x {vip}")), "api.services.");
    assert!(sh(&place, "task", "getent hosts api").starts_with(&vip));
    assert_eq!(place.status().unwrap()["task_networks"], 2);
    // Nobody else is at the address that names are answered at.
    let refused = sh(&place, "task", "curl -s -m 2 http://127.0.0.77:80/; echo $?");
    assert!(["7", "56"].contains(&&*refused), "refused or reset: {refused}");
    // Names are answered where Docker does so too.
    assert_eq!(dig("@127.0.0.11 api"), vip);
    assert_eq!(dig("+tcp @127.0.0.11 api"), vip);
    // A service with nobody holds its clients until there is somebody.
    let held = std::thread::scope(|scope| {
        let held = scope.spawn(|| sh(&place, "task", "curl -s -f -m 20 http://empty/"));
        wait_until("a held client", || {
            let status = place.status().unwrap();
            let services = status["services"].as_array().unwrap();
            services
                .iter()
                .any(|service| service["name"] == "empty" && service["connections"] == 1)
        });
        let text = services("").replace(
            "endpoints: []",
            &format!("endpoints: [{{ address: '10.99.1.2:9001', netns: {client} }}]"),
        );
        place.declare(&text);
        held.join().unwrap()
    });
    assert_eq!(peer_of(&held).as_deref(), Some("10.99.2.2"));
    // What goes is not there any more, what comes is.
    place.declare(&services("  late: { endpoints: ['10.99.1.2:9000'] }\n").replace("  site:", "  sites:"));
    wait_until("a new name", || !dig("late").is_empty());
    assert_eq!(dig("site"), "");
    wait_until("a new service", || {
        peer_of(&sh(&place, "task", "curl -s -f -m 5 http://late/")).is_some()
    });
}

/// A program that waits for another service and listens on the same port then, as entry points of containers do, and one that
/// is started again in the same network.
#[test]
fn a_program_may_listen_on_a_port_that_it_is_connected_to() {
    let Some(mut place) = Place::set_up("within4") else {
        return;
    };
    let _resolv = ResolvConf::of(&place.netns("task"));
    place.task("0.0.0.0:8080");
    place.serve_in("client", "0.0.0.0:9000");
    let (task, client) = (place.path("task"), place.path("client"));
    place.node(&format!(
        "services:
  web: {{ endpoints: [{{ address: '10.99.2.2:8080', netns: {task} }}] }}
  api: {{ endpoints: [{{ address: '10.99.1.2:9000', netns: {client} }}] }}
"
    ));
    wait_until("a way to the service", || {
        !sh(&place, "task", "curl -s -m 5 http://api:80/").is_empty()
    });
    let script = "import socket
def listen():
    with socket.create_server(('0.0.0.0', 80)):
        pass
listen()                                        # what has just ended lingers
held = socket.create_connection(('api', 80))
listen()
print('listened')";
    assert_eq!(sh(&place, "task", &format!("python3 -c \"{script}\" 2>&1")), "listened");
}

/// As Docker has it in a container on a network of its own: its rules lead from there to its resolver, on another port.
#[test]
fn where_dockers_own_resolver_is_it_is_the_one_that_is_asked() {
    let Some(mut place) = Place::set_up("within3") else {
        return;
    };
    let task = place.path("task");
    let to_dockers = "meta l4proto { tcp, udp } ip daddr 127.0.0.11 th dport 53 dnat to 127.0.0.11:35353";
    let rules = format!("table ip nat {{\nchain out {{\ntype nat hook output priority -100;\n{to_dockers}\n}}\n}}\n");
    let load = format!("nft -f - 2>&1 <<END\n{rules}END\n");
    assert_eq!(sh(&place, "task", &load), "");
    // It says more than names, so that one knows who has answered.
    place.serve_in("task", "127.0.0.11:35353");
    place.node(&format!(
        "services:\n  web: {{ endpoints: [{{ address: '10.99.2.2:80', netns: {task} }}] }}\n"
    ));
    let dig = |words: &str| sh(&place, "task", &format!("dig +short +time=1 +tries=1 {words}"));
    wait_until("names inside", || dig("@127.0.0.77 web").starts_with("127.77."));
    let dockers = sh(&place, "task", "curl -s -f -m 5 http://127.0.0.11:53/");
    assert!(peer_of(&dockers).is_some(), "{dockers}");
    assert!(
        !dig("@127.0.0.11 web").contains("127.77."),
        "nobody is there for datagrams"
    );
}

#[test]
fn a_namespace_that_comes_goes_and_stays_has_nothing_of_ours_left() {
    let Some(mut place) = Place::set_up("within2") else {
        return;
    };
    let task = place.path("task");
    let before = sh(&place, "task", "ip route show table all; ip rule");
    let web = format!("services:\n  web: {{ endpoints: [{{ address: '10.99.2.2:80', netns: {task} }}] }}\n");
    let other = "services:\n  other: { endpoints: ['127.0.0.1:1'] }\n";
    place.node(other);
    let vip = || sh(&place, "task", "dig +short +time=1 +tries=1 @127.0.0.77 web");
    let mut most = None;
    for _ in 0..3 {
        place.declare(&web);
        wait_until("a name inside", || vip().starts_with("127.77."));
        // Its name leads elsewhere from now on.
        let netns = place.netns("task");
        ip(&format!("netns del {netns}"));
        ip(&format!("netns add {netns}"));
        ip(&format!("-n {netns} link set lo up"));
        ip(&format!("-n {netns} addr add 10.99.2.2/32 dev lo"));
        wait_until("a name inside the new one", || vip().starts_with("127.77."));
        place.declare(other);
        wait_until("nobody to answer", || !vip().starts_with("127.77."));
        let n = place.n_descriptors();
        // Those who enter namespaces keep a few.
        let most = *most.get_or_insert(n + 1);
        wait_until("nothing to be held", || place.n_descriptors() <= most);
    }
    // One that cannot be served says so: its address is not there, and then it is.
    place.declare(&web.replace("10.99.2.2", "10.99.2.77"));
    wait_until("what is wrong", || {
        let status = place.status().unwrap();
        status["task_network_faults"][&task]
            .as_str()
            .is_some_and(|fault| fault.contains("route"))
    });
    ip(&format!("-n {} addr add 10.99.2.77/32 dev lo", place.netns("task")));
    wait_until("nothing wrong", || {
        place.status().unwrap()["task_network_faults"].is_null()
    });
    // And when anynode ends, in order or not.
    place.declare(&web);
    wait_until("a name inside", || vip().starts_with("127.77."));
    let node = place.running.last_mut().unwrap();
    let pid = rustix::process::Pid::from_child(node);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    node.wait().unwrap();
    let after = sh(&place, "task", "ip route show table all; ip rule");
    let lines = |text: &str| {
        text.lines()
            .filter(|line| !line.contains("eth0") && !line.contains("10.99.2."))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(&after), lines(&before));
}

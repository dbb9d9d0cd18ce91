//! Who reaches whom from inside containers, whatever the protocol and whichever way: their networks separate them, the engine's
//! bridge is the way out and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};

use super::names::{addresses_of, dig, pid_of};
use super::rig::{self, LONG, Own, Tasks};

/// Prints those of its arguments (`tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT`, `icmp:ADDRESS`) that answer within a second.
const PROBE: &str = r#"
import socket, sys, threading
def tcp(ip, port):
    # Accepted may be by somebody who asks then whose it is.
    s = socket.create_connection((ip, int(port)), 1)
    s.settimeout(1)
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    return s.recv(1)
def udp(ip, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.connect((ip, int(port)))
    s.send(b"x")
    return s.recv(1)
def icmp(ip):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.settimeout(1)
    s.sendto(b"\x08\x00\xf7\xfd\x00\x01\x00\x01", (ip, 0))
    while True:
        packet, peer = s.recvfrom(99)
        if peer[0] == ip and packet[20] == 0:
            return packet
reached = []
def probe(target):
    kind, *rest = target.split(":")
    try:
        if globals()[kind](*rest):
            reached.append(target)
    except OSError:
        pass
threads = [threading.Thread(target=probe, args=(target,)) for target in sys.argv[1:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(" ".join(target for target in sys.argv[1:] if target in reached))
"#;

/// Answers datagrams, and streams.
const ECHO: &str = r#"
import socket, threading
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("0.0.0.0", 9))
t = socket.socket()
t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind(("0.0.0.0", 9))
t.listen()
def streams():
    while True:
        s, _ = t.accept()
        s.sendall(b"hello")
        s.close()
threading.Thread(target=streams, daemon=True).start()
while True:
    data, peer = u.recvfrom(99)
    u.sendto(data, peer)
"#;

pub(super) struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

/// Answers on port 9 where the command leads.
pub(super) fn echo(mut command: Command) -> Echo {
    let child = command.args(["-c", ECHO]).stdin(Stdio::null()).spawn();
    Echo(child.unwrap())
}

/// A program in the network of a process.
pub(super) fn within(pid: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", program]);
    command
}

/// Those that answer.
pub(super) fn reached(mut from: Command, targets: &[String]) -> Vec<String> {
    let out = from.args(["-c", PROBE]).args(targets).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let said = String::from_utf8(out.stdout).unwrap();
    said.split_whitespace().map(str::to_owned).collect()
}

/// Waits until all of them answer.
fn wait_reached(own: &Own, what: &str, from: impl Fn() -> Command, targets: &[String]) {
    let started = std::time::Instant::now();
    loop {
        let reached = reached(from(), targets);
        if reached == targets {
            return;
        }
        assert!(
            started.elapsed() < LONG,
            "{what}: of {targets:?} only {reached:?}\n{}",
            own.log_tail()
        );
    }
}

/// By each protocol.
pub(super) fn all_ways(ip: &str) -> Vec<String> {
    vec![format!("tcp:{ip}:9"), format!("udp:{ip}:9"), format!("icmp:{ip}")]
}

/// What is outside, and the host. A datagram to another of the host's addresses is answered from the bridge's.
fn way_out(bridge: &str) -> Vec<String> {
    let mut out = [all_ways("10.213.0.100"), all_ways("10.213.0.1"), all_ways(bridge)].concat();
    out.retain(|target| target != "udp:10.213.0.1:9");
    out
}

/// The address on the engine's bridge.
fn bridge_address(pid: u32) -> Option<String> {
    let out = within(pid, "ip")
        .args(["-4", "-o", "addr", "show", "eth0"])
        .output()
        .unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let net = said.split_whitespace().skip_while(|word| *word != "inet").nth(1)?;
    Some(net.split('/').next()?.to_owned())
}

/// The bridge's own.
fn bridge_of(pid: u32) -> String {
    let out = within(pid, "ip").args(["route", "show", "default"]).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let mut words = said.split_whitespace().skip_while(|word| *word != "via");
    words.nth(1).unwrap().to_owned()
}

fn create(own: &Own, name: &str, more: &[&str]) {
    let words = ["service", "create", "--detach", "-e", "PORT=80", "--name", name];
    own.docker(&[&words[..], more, &["nginx:latest"]].concat());
}

#[test]
fn the_engines_bridge_leads_out_and_to_no_other_task() {
    let Some(mut own) = rig::up("isolation", Tasks::Containers) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    for network in ["one", "two"] {
        own.docker(&["network", "create", "-d", "overlay", network]);
    }
    create(&own, "a", &["--network", "one"]);
    create(&own, "b", &["--network", "two"]);
    create(&own, "a2", &["--network", "one"]);
    create(&own, "plain", &["--publish", "8080:80"]);
    let names = ["a", "b", "a2", "plain"];
    let mut echoes = vec![echo(own.client("python3")), echo(own.inside("python3"))];
    for name in names {
        own.wait_for(name, LONG, || pid_of(&own, name).is_some());
        echoes.push(echo(within(pid_of(&own, name).unwrap(), "python3")));
    }
    let check = |own: &Own| {
        let tasks = names.map(|name| {
            let pid = pid_of(own, name).unwrap();
            (pid, bridge_address(pid).unwrap())
        });
        let targets: Vec<String> = tasks.iter().flat_map(|(_, address)| all_ways(address)).collect();
        // From the host, which the bridge is of, all of them answer.
        wait_reached(own, "from the host", || own.inside("python3"), &targets);
        for (pid, address) in &tasks {
            let bridge = bridge_of(*pid);
            let out = way_out(&bridge);
            wait_reached(own, "the way out", || within(*pid, "python3"), &out);
            let others: Vec<&String> = tasks
                .iter()
                .map(|(_, other)| other)
                .filter(|other| *other != address)
                .collect();
            let targets: Vec<String> = others.iter().flat_map(|other| all_ways(other)).collect();
            let none: [&str; 0] = [];
            assert_eq!(reached(within(*pid, "python3"), &targets), none, "from {address}");
            // Whoever may say where its packets go sends them to the host, which would forward them.
            let routes = |change: &str| {
                for other in &others {
                    let route = ["route", change, &format!("{other}/32"), "via", &bridge];
                    assert!(within(*pid, "ip").args(route).status().unwrap().success());
                }
            };
            routes("add");
            let by_host = reached(within(*pid, "python3"), &targets);
            assert_eq!(by_host, none, "from {address}, by way of the host");
            routes("del");
        }
        assert!(own.curl("http://localhost:8080").is_some());
    };
    check(&own);
    // By the addresses of their networks, those meet that share one.
    let address = |name: &str| addresses_of(&own, name).into_values().next().unwrap();
    let tcp = |name: &str| format!("tcp:{}:9", address(name));
    let from = |name: &str, targets: &[String]| reached(within(pid_of(&own, name).unwrap(), "python3"), targets);
    let all = ["a", "b", "a2"].map(tcp);
    assert_eq!(from("a", &all), [tcp("a"), tcp("a2")]);
    assert_eq!(from("b", &all), [tcp("b")]);
    let none: [&str; 0] = [];
    assert_eq!(from("plain", &all), none);
    assert_eq!(from("a", &all_ways(&address("b"))), none);
    // It holds without us, and another run finds it.
    own.kill();
    own.start();
    check(&own);
    drop(echoes);
}

/// Tasks of an internal network alone: they reach one another, and nothing else.
fn internal(name: &str, tasks: Tasks) {
    let Some(mut own) = rig::up(name, tasks) else { return };
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["network", "create", "-d", "overlay", "--internal", "vault"]);
    own.docker(&["network", "create", "-d", "overlay", "open"]);
    create(&own, "safe", &["--network", "vault", "--publish", "8080:80"]);
    create(&own, "chest", &["--network", "vault"]);
    create(&own, "both", &["--network", "vault", "--network", "open"]);
    let (host, mut echoes) = match tasks {
        Tasks::Containers => ("10.213.0.1", vec![echo(own.client("python3"))]),
        Tasks::Processes => {
            let add = ["addr", "add", "10.213.0.1/32", "dev", "lo"];
            assert!(own.inside("ip").args(add).status().unwrap().success());
            ("10.213.0.1", Vec::new())
        }
    };
    echoes.push(echo(own.inside("python3")));
    for name in ["safe", "chest", "both"] {
        own.wait_for(name, LONG, || pid_of(&own, name).is_some());
        echoes.push(echo(within(pid_of(&own, name).unwrap(), "python3")));
    }
    let pid = |name: &str| pid_of(&own, name).unwrap();
    let from = |name: &str, targets: &[String]| reached(within(pid(name), "python3"), targets);
    let bridge = match tasks {
        Tasks::Containers => bridge_of(pid("both")),
        Tasks::Processes => "172.17.0.1".to_owned(),
    };
    let out: Vec<String> = [host, &bridge, "10.213.0.100"].into_iter().flat_map(all_ways).collect();
    let way_out = match tasks {
        Tasks::Containers => way_out(&bridge),
        Tasks::Processes => vec![format!("tcp:{host}:9")],
    };
    let python_of = |pid: u32| move || within(pid, "python3");
    wait_reached(&own, "the way out", python_of(pid("both")), &way_out);
    let none: [&str; 0] = [];
    assert_eq!(from("safe", &out), none);
    let vault = |name: &str| format!("tcp:{}:9", addresses_of(&own, name)["vault"]);
    let all = ["safe", "chest", "both"].map(vault);
    for name in ["safe", "chest", "both"] {
        wait_reached(&own, "all of the network", python_of(pid(name)), &all);
    }
    let open = format!("tcp:{}:9", addresses_of(&own, "both")["open"]);
    let only = [open.clone()];
    assert_eq!(from("both", &only), only);
    assert_eq!(from("safe", &[open]), none);
    assert!(!dig(pid("safe"), "chest").is_empty());
    assert_eq!(dig(pid("safe"), "example.test"), "", "answered at once, by nobody");
    // Who is let in from outside is another matter.
    assert!(own.curl("http://localhost:8080").is_some());
    drop(echoes);
}

/// The services of `sweep`, with the networks of each.
const MIXED: [(&str, &[&str]); 6] = [
    ("one-a", &["one"]),
    ("one-b", &["one"]),
    ("two", &["two"]),
    ("both", &["one", "two"]),
    ("safe", &["vault"]),
    ("bridge", &["vault", "two"]),
];

/// From each task, every address of every other task, every VIP and the host: what shares a network answers, and nothing else.
fn sweep(name: &str, tasks: Tasks) {
    let Some(mut own) = rig::up(name, tasks) else { return };
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["network", "create", "-d", "overlay", "one"]);
    own.docker(&["network", "create", "-d", "overlay", "two"]);
    own.docker(&["network", "create", "-d", "overlay", "--internal", "vault"]);
    for (service, networks) in MIXED {
        let words: Vec<&str> = networks.iter().flat_map(|network| ["--network", network]).collect();
        create(&own, service, &words);
    }
    if tasks == Tasks::Processes {
        let add = ["addr", "add", "10.213.0.1/32", "dev", "lo"];
        assert!(own.inside("ip").args(add).status().unwrap().success());
    }
    let mut echoes = vec![echo(own.inside("python3"))];
    for (service, _) in MIXED {
        own.wait_for(service, LONG, || pid_of(&own, service).is_some());
        echoes.push(echo(within(pid_of(&own, service).unwrap(), "python3")));
    }
    // What there is to try, each with the networks by which it may be.
    let mut targets: Vec<(String, Vec<&str>)> = Vec::new();
    for (service, networks) in MIXED {
        let addresses = addresses_of(&own, service);
        let vips = vips_of(&own, service);
        let of = |known: &BTreeMap<String, String>| known.keys().cloned().collect::<BTreeSet<_>>();
        let wanted: BTreeSet<String> = networks.iter().map(|network| (*network).to_owned()).collect();
        assert_eq!((of(&addresses), of(&vips)), (wanted.clone(), wanted), "{service}");
        for network in networks {
            targets.push((format!("tcp:{}:9", addresses[*network]), vec![network]));
            targets.push((format!("tcp:{}:80", vips[*network]), vec![network]));
        }
        if tasks == Tasks::Containers {
            let address = bridge_address(pid_of(&own, service).unwrap());
            targets.extend(address.iter().map(|ip| (format!("tcp:{ip}:9"), Vec::new())));
        }
    }
    // Each has its own beside; the host is there for whoever may leave.
    targets.push(("tcp:10.213.0.1:9".to_owned(), vec!["one", "two"]));
    let all: Vec<String> = targets.iter().map(|(target, _)| target.clone()).collect();
    for (service, networks) in MIXED {
        let pid = pid_of(&own, service).unwrap();
        let bridge = bridge_address(pid).map(|ip| format!("tcp:{ip}:9"));
        let may = |(target, by): &&(String, Vec<&str>)| {
            by.iter().any(|network| networks.contains(network)) || Some(target) == bridge.as_ref()
        };
        let expected: Vec<String> = targets.iter().filter(may).map(|(target, _)| target.clone()).collect();
        wait_reached(&own, service, || within(pid, "python3"), &expected);
        assert_eq!(reached(within(pid, "python3"), &all), expected, "{service}");
    }
    drop(echoes);
}

/// A service's VIPs by the names of their networks.
fn vips_of(own: &Own, service: &str) -> BTreeMap<String, String> {
    let format = "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{.Addr}}\n{{end}}";
    let said = own.docker(&["service", "inspect", "-f", format, service]);
    let pairs = said.lines().filter_map(|line| line.trim().split_once(' '));
    pairs
        .map(|(network, addr)| {
            let name = own.docker(&["network", "inspect", "-f", "{{.Name}}", network]);
            (
                name.trim().to_owned(),
                addr.split('/').next().unwrap_or_default().to_owned(),
            )
        })
        .collect()
}

#[test]
fn containers_reach_what_shares_a_network_and_nothing_else() {
    sweep("sweep-c", Tasks::Containers);
}

#[test]
fn processes_reach_what_shares_a_network_and_nothing_else() {
    sweep("sweep-p", Tasks::Processes);
}

#[test]
fn an_internal_network_has_no_way_out_of_a_container() {
    internal("internal-c", Tasks::Containers);
}

#[test]
fn an_internal_network_has_no_way_out_of_a_process() {
    internal("internal-p", Tasks::Processes);
}

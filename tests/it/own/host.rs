//! What a process task sends to the addresses of its own host: it comes from the task's address, not from the host itself, and
//! nothing of the host is otherwise than it was, for its programs and for its neighbours.

use std::process::{Child, Command, Stdio};

use super::isolation::within;
use super::names::{addresses_of, pid_of};
use super::rig::{self, LONG, Own, Tasks};

/// Tells each client its address, on port 7000 of all addresses.
const WHO: &str = r#"
import socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", 7000))
s.listen(512)
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode())
    c.close()
"#;

/// The same on port 7002, whose queue is full until two packets of a connection were lost.
const FULL: &str = r#"
import socket, time
def n_lost():
    names, numbers = [line.split() for line in open("/proc/net/netstat") if line.startswith("TcpExt:")]
    return int(numbers[names.index("ListenDrops")])
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", 7002))
s.listen(0)
first = socket.create_connection(("127.0.0.1", 7002))
expected = n_lost() + 2
while n_lost() < expected:
    time.sleep(0.01)
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode())
    c.close()
"#;

/// What is said at ADDRESS PORT, from the address FROM where one is named, N at once.
const ASK: &str = r#"
import socket, sys
where, port, source, n = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def ask():
    s = socket.socket()
    s.settimeout(5)
    if source:
        s.bind((source, 0))
    s.connect((where, port))
    return s
def read(s):
    said = b""
    while more := s.recv(99):
        said += more
    return said.decode()
try:
    print(" ".join(sorted({read(s) for s in [ask() for _ in range(n)]})))
except OSError as error:
    print(type(error).__name__)
"#;

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

fn start(mut command: Command, program: &str) -> Program {
    Program(command.args(["-c", program]).stdin(Stdio::null()).spawn().unwrap())
}

/// How many wait to be accepted there.
fn n_queued(command: &mut Command, port: u16) -> usize {
    let out = command.args(["-Hltn", &format!("sport = {port}")]).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let queued = said.split_whitespace().nth(1);
    queued.map_or(0, |queued| queued.parse().unwrap())
}

fn ask_from(mut command: Command, to: &str, port: u16, source: &str, n: usize) -> String {
    let out = command
        .args(["-c", ASK, to, &port.to_string(), source, &n.to_string()])
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A host with a neighbour on its cable, a task, and who tells clients their addresses on both.
struct Stage {
    own: Own,
    /// The task's process, and its address.
    task: u32,
    address: String,
    neighbour: Neighbour,
    /// What the host had before anynode.
    before: String,
    _who: [Program; 2],
}

const HOST: &str = "192.0.2.10";
const NEIGHBOUR: &str = "192.0.2.20";

/// A network of its own, at the other end of the host's cable.
struct Neighbour(String);

impl Neighbour {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg(program);
        command
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn sh(mut command: Command, words: &str) -> String {
    let out = command.args(["-c", words]).output().unwrap();
    assert!(out.status.success(), "{words}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

impl Stage {
    /// The host looks strictly at where packets come from, and has no default route.
    fn new(name: &str) -> Option<Stage> {
        let mut own = rig::up(name, Tasks::Processes)?;
        let neighbour = Neighbour(format!("an-own-{name}-n"));
        let _ = Command::new("ip").args(["netns", "del", &neighbour.0]).output();
        let words = format!(
            "ip netns add {0} && ip link add eth0 type veth peer name eth0 netns {0} && ip link set eth0 up && \
             ip addr add {HOST}/24 dev eth0 && ip addr add 192.0.2.11/24 dev eth0 && ip addr add 198.51.100.1/32 dev lo && \
             sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.ip_forward=1",
            neighbour.0
        );
        sh(own.inside("sh"), &words);
        let words = format!(
            "ip link set lo up && ip link set eth0 up && ip addr add {NEIGHBOUR}/24 dev eth0 && \
             ip route add default via {HOST}"
        );
        sh(neighbour.command("sh"), &words);
        let before = host(&own);
        let _who = [own.inside("python3"), neighbour.command("python3")].map(|command| start(command, WHO));
        own.start();
        own.docker(&["swarm", "init"]);
        own.docker(&["network", "create", "-d", "overlay", "--internal", "vault"]);
        own.docker(&["network", "create", "-d", "overlay", "app"]);
        let create = ["service", "create", "--detach", "-e", "PORT=80", "--name", "caller"];
        // What goes outside goes by the network that leads there.
        let networks = ["--network", "vault", "--network", "app", "--publish", "8080:80"];
        own.docker(&[&create[..], &networks, &["nginx:latest"]].concat());
        own.wait_for("the task", LONG, || pid_of(&own, "caller").is_some());
        Some(Stage {
            task: pid_of(&own, "caller").unwrap(),
            address: addresses_of(&own, "caller")["app"].clone(),
            own,
            neighbour,
            before,
            _who,
        })
    }

    fn ask(&self, to: &str) -> String {
        ask_from(within(self.task, "python3"), to, 7000, "", 1)
    }

    fn host(&self, words: &str) -> String {
        sh(self.own.inside("sh"), words)
    }

    fn wait_ask(&self, to: &str, said: &str) {
        self.own
            .wait_for(&format!("{said} to be said at {to}"), LONG, || self.ask(to) == said);
    }
}

/// Where the host's packets go, and its settings; without what is of anynode's own link.
fn host(own: &Own) -> String {
    let words = "ip -4 route show table all; ip -6 route show table all | grep -v -e fe80: -e ff00:; \
                 sysctl -a 2>/dev/null | grep '^net.ipv[46]' | grep -v -e '[.]anynode-' -e '[.]tcp_fastopen_key'";
    sh(own.inside("sh"), words)
}

/// The same without the routing tables that nobody is led to but tasks' connections.
fn host_for_others(own: &Own) -> String {
    let host = host(own);
    let lines = host.lines().filter(|line| !line.contains("anynode-"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Says only what differs.
fn assert_same(found: &str, expected: &str) {
    let only_in = |one: &str, other: &str| -> Vec<String> {
        let lines = one.lines().filter(|line| !other.lines().any(|other| other == *line));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(only_in(found, expected), only_in(expected, found));
    assert_eq!(found.lines().count(), expected.lines().count());
}

/// Rules, links and anynode's routes.
fn traces(own: &Own) -> String {
    sh(
        own.inside("sh"),
        "ip rule; ip -6 rule; ip route show table all | grep anynode; ip -br link | sed 's/@.*//'",
    )
}

#[test]
fn what_a_task_sends_to_its_host_comes_from_the_task() {
    let Some(mut stage) = Stage::new("host") else { return };
    let address = stage.address.clone();
    let leads = |stage: &Stage| stage.host(&format!("ip route get {address} 2>&1 || true"));
    let led = leads(&stage);
    let traced = traces(&stage.own);
    for to in [HOST, "192.0.2.11", "198.51.100.1"] {
        assert_eq!(stage.ask(to), address, "{to}\n{}", stage.own.log_tail());
    }
    // Elsewhere it is the host's, as ever.
    assert_eq!(stage.ask(NEIGHBOUR), HOST);
    // A published port is one of the host's, its own too.
    let url = format!("http://{HOST}:8080");
    let curl = within(stage.task, "curl").args(["-s", "-f", &url]).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&curl.stdout).unwrap();
    assert_eq!(said["peer"], *address, "{}", stage.own.log_tail());
    // All addresses may be bound to inside, and stand for nothing out here.
    for bound in ["203.0.113.7", "127.0.0.1", HOST] {
        let said = ask_from(within(stage.task, "python3"), "198.51.100.1", 7000, bound, 1);
        assert_eq!(said, address, "bound to {bound}");
    }
    assert_eq!(ask_from(within(stage.task, "python3"), HOST, 7000, "", 300), address);
    assert_eq!(
        ask_from(within(stage.task, "python3"), HOST, 7001, "", 1),
        "ConnectionResetError"
    );
    // What is lost is sent again, as long as the task waits: nobody else can be asked.
    let full = [stage.own.inside("python3"), stage.neighbour.command("python3")].map(|command| start(command, FULL));
    for (to, mut listing, said) in [
        (HOST, stage.own.inside("ss"), &*address),
        (NEIGHBOUR, stage.neighbour.command("ss"), HOST),
    ] {
        stage
            .own
            .wait_for("a full queue", LONG, || n_queued(&mut listing, 7002) == 1);
        assert_eq!(ask_from(within(stage.task, "python3"), to, 7002, "", 1), said, "{to}");
    }
    drop(full);
    // The host's own rules decide, and those for loopback are not asked.
    stage.host("iptables -A INPUT -i lo -j ACCEPT");
    let subnet = format!("{}/24", address.rsplit_once('.').unwrap().0);
    for (what, seen) in [("DROP", "TimeoutError"), ("REJECT", "ConnectionResetError")] {
        stage.host(&format!("iptables -A INPUT -s {subnet} -j {what}"));
        assert_eq!(stage.ask(HOST), seen, "{what}");
        stage.host(&format!("iptables -D INPUT -s {subnet} -j {what}"));
    }
    stage.host("iptables -P INPUT DROP");
    assert_eq!(stage.ask(HOST), "TimeoutError");
    stage.host("iptables -P INPUT ACCEPT; iptables -F");
    assert_eq!(stage.ask(HOST), address);
    // What the host sends on to somebody else comes back as well.
    let dnat = format!("PREROUTING -t nat -d {HOST} -p tcp --dport 7070 -j DNAT --to-destination {NEIGHBOUR}:7000");
    stage.host(&format!("iptables -A {dnat}"));
    assert_eq!(ask_from(within(stage.task, "python3"), HOST, 7070, "", 1), address);
    stage.host(&format!("iptables -D {dnat}"));
    // Nothing of this shows to others.
    assert_eq!(leads(&stage), led);
    assert_same(&host_for_others(&stage.own), &stage.before);
    // Whoever has the very address of the task out there is reached, and reaches.
    sh(
        stage.neighbour.command("sh"),
        &format!("ip addr add {address}/32 dev lo"),
    );
    stage.host(&format!("ip route add {address}/32 via {NEIGHBOUR}"));
    assert_eq!(ask_from(stage.own.inside("python3"), &address, 7000, "", 50), HOST);
    assert_eq!(
        ask_from(stage.neighbour.command("python3"), HOST, 7000, &address, 50),
        address
    );
    assert_eq!(stage.ask(HOST), address);
    stage.host(&format!("ip route del {address}/32"));
    // Who has another address of the task's network out there is nobody to it.
    let other = format!("{}.250", address.rsplit_once('.').unwrap().0);
    sh(stage.neighbour.command("sh"), &format!("ip addr add {other}/32 dev lo"));
    stage.host(&format!("ip route add {other}/32 via {NEIGHBOUR}"));
    assert_eq!(ask_from(stage.own.inside("python3"), &other, 7000, "", 1), HOST);
    assert_eq!(stage.ask(&other), "ConnectionResetError");
    stage.host(&format!("ip route del {other}/32"));
    // Who flushes rules and links does no lasting harm.
    stage.host("ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default");
    stage.wait_ask(HOST, &address);
    stage.host("ip link del $(ip -br link | grep -o 'anynode-[0-9]')");
    stage.wait_ask(HOST, &address);
    stage.own.stop();
    assert_eq!(traces(&stage.own), traced);
    assert_same(&host(&stage.own), &stage.before);
}

#[test]
fn nothing_of_the_way_to_the_host_outlives_a_kill() {
    let Some(mut stage) = Stage::new("hostkill") else {
        return;
    };
    let address = stage.address.clone();
    let traced = traces(&stage.own);
    assert_eq!(stage.ask(HOST), address, "{}", stage.own.log_tail());
    for _ in 0..2 {
        assert_ne!(traces(&stage.own), traced);
        stage.own.kill();
        stage.own.start();
        // The kernel takes the link down in its own time.
        stage
            .own
            .wait_for("nothing to be left", LONG, || traces(&stage.own) == traced);
        stage.wait_ask(HOST, &address);
    }
    stage.own.docker(&["service", "rm", "caller"]);
    stage.own.wait_for("the route of the task to go", LONG, || {
        !stage.host("ip route show table all").contains(&address)
    });
    stage.own.kill();
    stage.own.start();
    stage
        .own
        .wait_for("nothing to be left", LONG, || traces(&stage.own) == traced);
    stage.own.stop();
    assert_eq!(traces(&stage.own), traced);
    assert_same(&host(&stage.own), &stage.before);
}

#[test]
fn without_a_way_of_its_own_nothing_is_sent_to_the_host() {
    let Some(stage) = Stage::new("hostless") else { return };
    // Whoever has all the names keeps the link from being made.
    stage.host("for i in 0 1 2 3; do ip link add anynode-$i type veth peer name taken-$i; done");
    for _ in 0..3 {
        assert_eq!(stage.ask(HOST), "ConnectionResetError");
    }
    assert_eq!(stage.ask(NEIGHBOUR), HOST);
    let said = stage.own.log();
    let said = said.lines().filter(|line| line.contains("the host's own addresses"));
    let said: Vec<&str> = said.collect();
    assert!(said.len() == 1 && said[0].contains("WARN"), "{said:?}");
    let metrics = stage.own.curl("http://127.0.0.1:9377/metrics").unwrap();
    let counted = |reason: &str| {
        let of = format!("anynode_outgoing_connections_closed_total{{reason=\"{reason}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&of));
        line.map(|n| n.parse::<u64>().unwrap())
    };
    assert_eq!(counted("connect_failed"), Some(3), "{metrics}");
    stage.host("for i in 0 1 2 3; do ip link del anynode-$i; done");
    stage.wait_ask(HOST, &stage.address);
}

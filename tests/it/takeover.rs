//! Ports that Docker holds are answered by us: with NAT rules like Docker's, with a socket like dockerd's that is never
//! accepted from, over IPv4 and IPv6, through kill -9, firewall reloads and handovers. Each test makes network namespaces
//! of its own: a node, a client, and a task where Docker's rules lead. Needs root, `ip`, `iptables` and `nft`.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anynode::sys::sk_lookup::listen_hidden;
use anynode::sys::socket::Liveness;
use anynode::takeover::{Feature, Mode, Takeover, TakeoverConfig, TakeoverError, TakeoverNeed, borrow};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

const PORT: u16 = 8080;
const NODE: &str = "10.9.0.1";
const NODE6: &str = "fd00:9::1";
const DEADLINE: Duration = Duration::from_secs(20);

// The stage: namespaces, programs, rules.

/// A network namespace, gone when dropped.
struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("any-{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        Namespace(name)
    }

    fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.0))
    }

    /// Runs `act` on a thread that is inside.
    fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.0);
                act()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// What whoever answers there says; an error where nobody does.
    fn ask(&self, ip: &str) -> io::Result<String> {
        self.run(|| ask(SocketAddr::new(ip.parse().unwrap(), PORT)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn enter(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

fn ask(addr: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_millis(500))?;
    stream.set_read_timeout(Some(Duration::from_millis(1500)))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Why these tests cannot run here, if they cannot.
fn is_possible(programs: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root");
        return false;
    }
    for program in programs {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output();
        if !found.is_ok_and(|output| output.status.success()) {
            println!("skipped: there is no {program} here");
            return false;
        }
    }
    // A container may lack what it takes.
    let probe = format!("any-probe-{:?}", std::thread::current().id()).replace(['(', ')'], "");
    let made = Command::new("ip").args(["netns", "add", &probe]).output();
    let is_made = made.is_ok_and(|output| output.status.success());
    if is_made {
        let _ = Command::new("ip").args(["netns", "del", &probe]).status();
    } else {
        println!("skipped: no network namespaces here");
    }
    is_made
}

/// A node with a client on one side and, behind it, the task that Docker's rules lead to.
struct Stage {
    node: Namespace,
    client: Namespace,
    _task: Namespace,
    _server: Server,
}

impl Stage {
    fn new() -> Stage {
        let (node, client, task) = (Namespace::new("n"), Namespace::new("c"), Namespace::new("t"));
        for (peer, net) in [(&client, 0), (&task, 1)] {
            let (n, p) = (&node.0, &peer.0);
            sh(&format!(
                "ip link add v{net} netns {n} type veth peer name v0 netns {p} && \
                 ip -n {n} addr add 10.9.{net}.1/24 dev v{net} && ip -n {p} addr add 10.9.{net}.2/24 dev v0 && \
                 ip -n {n} link set v{net} up && ip -n {p} link set v0 up && \
                 ip -n {p} route add default via 10.9.{net}.1"
            ));
        }
        sh(&format!(
            "ip -n {} addr add {NODE6}/64 dev v0 nodad && ip -n {} addr add fd00:9::2/64 dev v0 nodad",
            node.0, client.0
        ));
        node.sh("sysctl -qw net.ipv4.ip_forward=1");
        let listener = task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let server = Server::new(vec![listener], "docker");
        Stage {
            node,
            client,
            _task: task,
            _server: server,
        }
    }

    /// Rules as dockerd writes them, from the port to `to`.
    fn docker_rules(&self, iptables: &str, to: &str) {
        assert!(self.try_docker_rules(iptables, to), "{iptables}");
    }

    /// Whether this kernel takes them.
    fn try_docker_rules(&self, iptables: &str, to: &str) -> bool {
        [
            "-N DOCKER-INGRESS".to_owned(),
            "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS".to_owned(),
            "-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER-INGRESS".to_owned(),
            format!("-A DOCKER-INGRESS -p tcp -m tcp --dport {PORT} -j DNAT --to-destination {to}"),
            "-A DOCKER-INGRESS -j RETURN".to_owned(),
        ]
        .iter()
        .all(|rule| {
            let command = format!("ip netns exec {} {iptables} -w -t nat {rule}", self.node.0);
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            if !output.status.success() {
                println!("{command}: {}", String::from_utf8_lossy(&output.stderr));
            }
            output.status.success()
        })
    }

    fn takeover(&self, config: TakeoverConfig) -> Takeover {
        let takeover = self.node.run(|| Takeover::start(config).unwrap());
        let status = takeover.status();
        assert_eq!((&status.redirect, &status.assign), (&Feature::On, &Feature::On));
        takeover
    }

    /// The first words of the answers from outside and from the node itself.
    fn heard(&self) -> [String; 2] {
        let first = |said: io::Result<String>| match said {
            Ok(said) => said.split(' ').next().unwrap().to_owned(),
            Err(error) => format!("error: {error}"),
        };
        [first(self.client.ask(NODE)), first(self.node.ask(NODE))]
    }

    fn tables(&self) -> Vec<String> {
        let listed = self.node.sh("nft list tables");
        listed
            .lines()
            .filter_map(|line| Some(line.strip_prefix("table inet ")?.to_owned()))
            .filter(|name| name.starts_with("anynode_"))
            .collect()
    }

    /// A process called `program` that listens on the port and never accepts.
    fn holder(&self, program: &str, listen: &str) -> Process {
        Process::start(
            program,
            &[("role", "holder"), ("netns", &self.node.0), ("listen", listen)],
        )
    }
}

/// Answers on listening sockets with a word and the address that the accepted socket has.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    n_served: Arc<Vec<AtomicU64>>,
    listeners: Vec<TcpListener>,
}

impl Server {
    fn new(listeners: Vec<TcpListener>, word: &str) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let n_served: Arc<Vec<AtomicU64>> = Arc::new(listeners.iter().map(|_| AtomicU64::new(0)).collect());
        let threads = listeners
            .iter()
            .enumerate()
            .map(|(i, listener)| {
                let listener = listener.try_clone().unwrap();
                listener.set_nonblocking(true).unwrap();
                let (stop, n_served, word) = (stop.clone(), n_served.clone(), word.to_owned());
                std::thread::spawn(move || {
                    loop {
                        match listener.accept() {
                            Ok((mut stream, _)) => {
                                n_served[i].fetch_add(1, Relaxed);
                                let said = format!("{word} {}", stream.local_addr().unwrap());
                                let _ = stream.write_all(said.as_bytes());
                            }
                            Err(_) if stop.load(Relaxed) => break,
                            Err(_) => std::thread::sleep(Duration::from_millis(1)),
                        }
                    }
                })
            })
            .collect();
        Server {
            stop,
            threads,
            n_served,
            listeners,
        }
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        borrow(&self.listeners)
    }
}

impl Drop for Server {
    /// Whoever waits is answered first.
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// This test binary again, under another name, as one of the roles in `child`.
struct Process {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Process {
    fn start(program: &str, variables: &[(&str, &str)]) -> Process {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(program);
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &path).unwrap();
        let mut child = Command::new(path)
            .args(["takeover::child", "--exact", "--ignored", "--nocapture"])
            .envs(
                variables
                    .iter()
                    .map(|(name, value)| (format!("TAKEOVER_{name}"), value)),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.ends_with("ready"));
        assert!(ready, "{program} did not start");
        // Whatever else it says is not waited for.
        std::thread::spawn(move || lines.for_each(drop));
        Process { child, _dir: dir }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "not a test: what the other processes of these tests do"]
fn child() {
    let variable = |name: &str| std::env::var(format!("TAKEOVER_{name}"));
    let Ok(role) = variable("role") else {
        return;
    };
    enter(&variable("netns").unwrap());
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    match role.as_str() {
        "holder" => held.push(Box::new(TcpListener::bind(variable("listen").unwrap()).unwrap())),
        "instance" => {
            let takeover = Takeover::start(TakeoverConfig {
                wants_owner: variable("owner").unwrap() == "yes",
                ..TakeoverConfig::default()
            })
            .unwrap();
            let server = Server::new(listen_hidden(2, &Liveness::default()).unwrap(), "child");
            takeover.redirect(PORT).unwrap();
            takeover.assign(PORT, &server.fds()).unwrap();
            held.push(Box::new((takeover, server)));
        }
        role => panic!("no role {role}"),
    }
    println!("\nready");
    // Until whoever started this is gone.
    let _ = io::stdin().read(&mut [0]);
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const PROGRAMS: &[&str] = &["ip", "iptables", "nft", "sysctl"];

// The tests.

fn answers_before_docker(iptables: &str) {
    let stage = Stage::new();
    stage.docker_rules(iptables, "10.9.1.2:80");
    assert_eq!(stage.heard(), ["docker", "docker"], "the rules work");
    let takeover = stage.takeover(TakeoverConfig::default());
    let ours = Server::new(
        stage.node.run(|| vec![TcpListener::bind(("::", PORT)).unwrap()]),
        "ours",
    );
    assert_eq!(stage.heard(), ["docker", "docker"], "not asked yet");
    assert_eq!(stage.node.run(|| takeover.needs(PORT)), TakeoverNeed::Redirect);
    assert_eq!(stage.node.run(|| takeover.needs(PORT + 1)), TakeoverNeed::None);
    takeover.redirect(PORT).unwrap();
    takeover.redirect(PORT).unwrap();
    assert_eq!(stage.heard(), ["ours", "ours"]);
    let said = stage.client.ask(NODE).unwrap();
    assert_eq!(
        said,
        format!("ours [::ffff:{NODE}]:{PORT}"),
        "the address that was asked"
    );
    for ip in ["127.0.0.1", "10.9.1.1", "::1", NODE6] {
        let said = stage.node.ask(ip).unwrap();
        assert!(said.starts_with("ours") && said.contains(ip), "{said}");
    }
    assert!(stage.client.ask(NODE6).unwrap().starts_with("ours"));
    takeover.unredirect(PORT).unwrap();
    takeover.unredirect(PORT).unwrap();
    assert_eq!(stage.heard(), ["docker", "docker"]);
    takeover.redirect(PORT).unwrap();
    assert_eq!(stage.heard(), ["ours", "ours"]);
    drop(takeover);
    assert_eq!(stage.heard(), ["docker", "docker"]);
    assert_eq!(stage.tables(), [""; 0]);
    // The same with nobody where Docker's rules lead.
    stage.node.sh(&format!("{iptables} -w -t nat -F DOCKER-INGRESS"));
    stage.node.sh(&format!(
        "{iptables} -w -t nat -A DOCKER-INGRESS -p tcp -m tcp --dport {PORT} -j DNAT --to-destination 10.99.0.2:80"
    ));
    assert!(stage.heard().iter().all(|said| said.starts_with("error")));
    let takeover = stage.takeover(TakeoverConfig::default());
    takeover.redirect(PORT).unwrap();
    assert_eq!(stage.heard(), ["ours", "ours"]);
    drop(ours);
}

#[test]
fn we_answer_before_rules_of_iptables_nft() {
    if is_possible(PROGRAMS) && is_possible(&["iptables-nft"]) {
        answers_before_docker("iptables-nft");
    }
}

#[test]
fn we_answer_before_rules_of_iptables_legacy() {
    if !is_possible(PROGRAMS) || !is_possible(&["iptables-legacy"]) {
        return;
    }
    match Stage::new().try_docker_rules("iptables-legacy", "10.9.1.2:80") {
        true => answers_before_docker("iptables-legacy"),
        false => println!("skipped: this kernel has no NAT for iptables-legacy"),
    }
}

#[test]
fn what_a_port_takes_is_told_by_rules_and_holders() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let auto = stage.takeover(TakeoverConfig::default());
    let on = stage.takeover(TakeoverConfig {
        mode: Mode::On,
        ..TakeoverConfig::default()
    });
    let off = stage.node.run(|| {
        Takeover::start(TakeoverConfig {
            mode: Mode::Off,
            ..TakeoverConfig::default()
        })
        .unwrap()
    });
    let needs = || {
        stage
            .node
            .run(|| [&auto, &on, &off].map(|takeover| takeover.needs(PORT)))
    };
    use TakeoverNeed::{None, Redirect, RedirectAndAssign};
    assert_eq!(needs(), [None, Redirect, None]);
    stage.docker_rules("iptables", "10.9.1.2:80");
    assert_eq!(needs(), [Redirect, Redirect, None]);
    assert_eq!(stage.node.run(|| auto.needs(PORT + 1)), None);
    let dockerd = stage.holder("dockerd", "[::]:8080");
    assert_eq!(needs(), [RedirectAndAssign, RedirectAndAssign, None]);
    let who = auto.who_listens(PORT).unwrap();
    assert_eq!(who.len(), 1, "{who:?}");
    assert_eq!(who[0].program, Some((dockerd.child.id(), "dockerd".to_owned())));
    dockerd.kill();
    // Our own socket is nobody's.
    let own = stage.node.run(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap());
    assert_eq!(needs(), [Redirect, Redirect, None]);
    drop(own);
    let many = stage.node.run(|| auto.needs_of(&BTreeSet::from([PORT, PORT + 1])));
    assert_eq!(many.into_values().collect::<Vec<_>>(), [Redirect, None]);
    assert!(matches!(off.redirect(PORT), Err(TakeoverError::RedirectOff { .. })));
}

#[test]
fn another_programs_port_is_refused_by_name() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let takeover = stage.takeover(TakeoverConfig::default());
    let squatter = stage.holder("squatter", "127.0.0.1:8080");
    let need = stage.node.run(|| takeover.needs(PORT));
    let pid = squatter.child.id();
    assert!(
        matches!(&need, TakeoverNeed::HeldBy { program, .. } if program == "squatter"),
        "{need:?}"
    );
    let said = need.to_string();
    assert!(
        said.contains(&format!("squatter (pid {pid}) listens on 127.0.0.1:8080")),
        "{said}"
    );
    let ours = stage.node.run(|| listen_hidden(1, &Liveness::default()).unwrap());
    let refused = takeover.assign(PORT, &borrow(&ours)).unwrap_err();
    assert!(refused.to_string().contains("squatter"), "{refused}");
    assert!(
        stage.node.ask("127.0.0.1").is_err(),
        "it does not accept, and it still has its port"
    );
}

#[test]
fn a_port_that_dockerd_never_accepts_from_is_answered_by_the_whole_group() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let _dockerd = stage.holder("dockerd", "[::]:8080");
    stage.docker_rules("iptables", "10.99.0.2:80");
    let takeover = stage.takeover(TakeoverConfig::default());
    assert_eq!(stage.node.run(|| takeover.needs(PORT)), TakeoverNeed::RedirectAndAssign);
    let ours = Server::new(
        stage.node.run(|| listen_hidden(2, &Liveness::default()).unwrap()),
        "ours",
    );
    takeover.redirect(PORT).unwrap();
    takeover.assign(PORT, &ours.fds()).unwrap();
    for (ip, shown) in [
        (NODE, format!("[::ffff:{NODE}]:{PORT}")),
        (NODE6, format!("[{NODE6}]:{PORT}")),
    ] {
        let before: Vec<u64> = ours.n_served.iter().map(|n| n.load(Relaxed)).collect();
        let addr = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), PORT);
        stage.client.run(|| {
            for i in 0..1000 {
                assert_eq!(ask(addr).unwrap(), format!("ours {shown}"), "connection {i}");
            }
        });
        let spread: Vec<u64> = ours
            .n_served
            .iter()
            .zip(before)
            .map(|(n, was)| n.load(Relaxed) - was)
            .collect();
        assert_eq!(spread.iter().sum::<u64>(), 1000);
        assert!(spread.iter().all(|n| *n > 300), "{spread:?}");
        println!("{ip}: 1000 connections spread as {spread:?}");
    }
    for ip in ["127.0.0.1", "::1", NODE] {
        assert!(stage.node.ask(ip).unwrap().starts_with("ours"), "{ip}");
    }
    assert_eq!(takeover.status().assigned, [(PORT, true)].into());
    takeover.unassign(PORT).unwrap();
    assert!(stage.client.ask(NODE).is_err(), "dockerd has it again");
    takeover.assign(PORT, &ours.fds()).unwrap();
    assert!(stage.client.ask(NODE).unwrap().starts_with("ours"));
    // Sockets that are closed are assigned no more, and status knows.
    drop(ours);
    assert_eq!(takeover.status().assigned, [(PORT, false)].into());
    assert!(stage.client.ask(NODE).is_err(), "dockerd has it again");
}

#[test]
fn sockets_of_one_family_take_that_family() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let _dockerd = stage.holder("dockerd", "[::]:8080");
    let takeover = stage.takeover(TakeoverConfig::default());
    let v4 = Server::new(
        stage.node.run(|| vec![TcpListener::bind("127.0.0.1:0").unwrap()]),
        "four",
    );
    takeover.assign(PORT, &v4.fds()).unwrap();
    assert!(stage.client.ask(NODE).unwrap().starts_with("four"));
    assert!(stage.client.ask(NODE6).is_err());
    let stream = stage
        .node
        .run(|| TcpStream::connect(v4.listeners[0].local_addr().unwrap()).unwrap());
    assert!(takeover.assign(PORT, &[stream.as_fd()]).is_err(), "it does not listen");
}

#[test]
fn after_kill_9_the_port_is_as_before_and_the_next_instance_clears_away() {
    if !is_possible(PROGRAMS) {
        return;
    }
    for owner in ["yes", "no"] {
        let stage = Stage::new();
        stage.docker_rules("iptables", "10.9.1.2:80");
        let _dockerd = stage.holder("dockerd", "[::]:8080");
        let variables = [("role", "instance"), ("netns", stage.node.0.as_str()), ("owner", owner)];
        let instance = Process::start("anynode", &variables);
        assert_eq!(stage.heard(), ["child", "child"]);
        let left = stage.tables();
        assert_eq!(left.len(), 1);
        instance.kill();
        if owner == "yes" {
            until("the table is gone", || stage.tables().is_empty());
            assert_eq!(stage.heard(), ["docker", "docker"]);
        } else {
            // Before Linux 5.12 the table stays until the next instance starts.
            assert_eq!(stage.tables(), left);
        }
        let takeover = stage.takeover(TakeoverConfig::default());
        let tables = stage.tables();
        assert_eq!(tables.len(), 1, "{tables:?}");
        assert_ne!(tables, left);
        assert_eq!(stage.heard(), ["docker", "docker"]);
        let ours = Server::new(
            stage.node.run(|| listen_hidden(2, &Liveness::default()).unwrap()),
            "ours",
        );
        takeover.redirect(PORT).unwrap();
        takeover.assign(PORT, &ours.fds()).unwrap();
        assert_eq!(stage.heard(), ["ours", "ours"]);
    }
}

#[test]
fn a_living_instances_table_is_left_alone() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let unowned = || TakeoverConfig {
        wants_owner: false,
        ..TakeoverConfig::default()
    };
    let first = stage.takeover(unowned());
    let second = stage.takeover(unowned());
    let third = stage.takeover(TakeoverConfig::default());
    assert_eq!(stage.tables().len(), 3);
    drop(third);
    drop(second);
    assert_eq!(stage.tables(), [first.status().table.unwrap()]);
}

#[test]
fn a_flushed_ruleset_is_repaired() {
    if !is_possible(PROGRAMS) {
        return;
    }
    for wants_owner in [true, false] {
        let stage = Stage::new();
        stage.docker_rules("iptables", "10.9.1.2:80");
        let takeover = Arc::new(stage.takeover(TakeoverConfig {
            wants_owner,
            // So that only what was heard can have brought it back.
            check_every: Duration::from_secs(3600),
            ..TakeoverConfig::default()
        }));
        let _ours = Server::new(
            stage.node.run(|| vec![TcpListener::bind(("::", PORT)).unwrap()]),
            "ours",
        );
        takeover.redirect(PORT).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut changes = takeover.changes();
        let watching = takeover.clone().run(async { drop(stopped.await) });
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(watching);
        });
        until("Docker's rules are seen", || changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(stage.heard(), ["ours", "ours"]);
        for damage in ["flush ruleset", "delete the chain", "flush the set"] {
            let name = takeover.status().table.unwrap();
            let n_before = takeover.status().n_repairs;
            let begun = Instant::now();
            match damage {
                "flush ruleset" => drop(stage.node.sh("nft flush ruleset")),
                // Nobody but us can do these to a table that is tied to us.
                _ if wants_owner => {
                    let tried = format!("ip netns exec {} nft delete table inet {name}", stage.node.0);
                    let tried = Command::new("sh").args(["-c", &tried]).output().unwrap();
                    assert!(!tried.status.success(), "somebody else deleted it");
                    continue;
                }
                "delete the chain" => drop(stage.node.sh(&format!("nft flush chain inet {name} output"))),
                _ => drop(stage.node.sh(&format!("nft flush set inet {name} ports"))),
            }
            if !wants_owner {
                until(damage, || takeover.status().n_repairs > n_before);
                println!("{damage}: repaired after {:?}", begun.elapsed());
            }
            stage.node.sh("nft flush ruleset");
            stage.docker_rules("iptables", "10.9.1.2:80");
            until("the port is ours again", || stage.heard() == ["ours", "ours"]);
        }
        until("the loss of Docker's rules is seen", || changes.has_changed().unwrap());
        stop.send(()).unwrap();
        running.join().unwrap();
        assert_eq!(stage.node.run(|| takeover.needs(PORT)), TakeoverNeed::Redirect);
        drop(takeover);
        assert_eq!(stage.tables(), [""; 0]);
    }
}

/// Connects over and over, from outside, until stopped; keeps what went wrong.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<HashMap<String, u64>>>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    fn start(stage: &Stage) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let threads = [(&stage.client, NODE), (&stage.client, NODE6), (&stage.node, NODE)].map(|(from, ip)| {
            let addr = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), PORT);
            let (stop, failures, from) = (stop.clone(), failures.clone(), from.0.clone());
            std::thread::spawn(move || {
                enter(&from);
                let mut heard = HashMap::new();
                while !stop.load(Relaxed) {
                    match ask(addr) {
                        Ok(said) if !said.is_empty() => {
                            *heard.entry(said.split(' ').next().unwrap().to_owned()).or_insert(0) += 1;
                        }
                        other => failures.lock().unwrap().push(format!("{addr}: {other:?}")),
                    }
                }
                heard
            })
        });
        Load {
            stop,
            threads: threads.into(),
            failures,
        }
    }

    /// Who answered how often.
    fn end(self) -> HashMap<String, u64> {
        self.stop.store(true, Relaxed);
        let mut heard = HashMap::new();
        for (who, n) in self.threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            *heard.entry(who).or_insert(0) += n;
        }
        let failures = self.failures.lock().unwrap();
        assert!(
            failures.is_empty(),
            "{} failed: {:?}; {heard:?}",
            failures.len(),
            failures.first()
        );
        heard
    }
}

#[test]
fn instances_come_and_go_side_by_side_and_nobody_is_refused() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let _dockerd = stage.holder("dockerd", "[::]:8080");
    stage.docker_rules("iptables", "10.99.0.2:80");
    let join = |word: &str| {
        let takeover = stage.takeover(TakeoverConfig::default());
        let server = Server::new(stage.node.run(|| listen_hidden(2, &Liveness::default()).unwrap()), word);
        takeover.assign(PORT, &server.fds()).unwrap();
        takeover.redirect(PORT).unwrap();
        (takeover, server)
    };
    let leave = |(takeover, server): (Takeover, Server)| {
        takeover.unassign(PORT).unwrap();
        std::thread::sleep(PAUSE);
        drop(server);
        drop(takeover);
    };
    let mut old = join("0");
    let load = Load::start(&stage);
    for round in 1..=5 {
        std::thread::sleep(PAUSE);
        let new = join(&round.to_string());
        std::thread::sleep(PAUSE);
        match round % 2 {
            1 => leave(std::mem::replace(&mut old, new)),
            // The new one gives up.
            _ => leave(new),
        }
    }
    std::thread::sleep(PAUSE);
    let heard = load.end();
    println!("{heard:?}");
    assert_eq!(heard.len(), 6, "each was heard, Docker never: {heard:?}");
    leave(old);
}

const PAUSE: Duration = Duration::from_millis(200);

#[test]
fn listening_sockets_pass_from_one_instance_to_the_next() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let _dockerd = stage.holder("dockerd", "[::]:8080");
    stage.docker_rules("iptables", "10.99.0.2:80");
    let sockets = stage.node.run(|| listen_hidden(2, &Liveness::default()).unwrap());
    let ours = Server::new(sockets, "ours");
    let mut takeover = stage.takeover(TakeoverConfig::default());
    takeover.redirect(PORT).unwrap();
    takeover.assign(PORT, &ours.fds()).unwrap();
    let load = Load::start(&stage);
    for _ in 0..20 {
        let next = stage.takeover(TakeoverConfig::default());
        next.redirect(PORT).unwrap();
        next.assign(PORT, &ours.fds()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        takeover = next;
    }
    let heard = load.end();
    println!("{heard:?}");
    assert_eq!(heard.keys().collect::<Vec<_>>(), ["ours"]);
    drop(takeover);
}

#[test]
fn each_missing_capability_turns_off_what_needs_it() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let listener = stage.node.run(|| listen_hidden(1, &Liveness::default()).unwrap());
    let with = |effective: CapabilitySet| {
        stage.node.run(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective = effective & sets.permitted;
            rustix::thread::set_capabilities(None, sets).unwrap();
            let takeover = Takeover::start(TakeoverConfig::default()).unwrap();
            let done = (takeover.redirect(PORT), takeover.assign(PORT, &borrow(&listener)));
            // An ordinary user's look at the port is no error.
            assert_eq!(takeover.needs(PORT), TakeoverNeed::None);
            let status = takeover.status();
            (done.0, done.1, status.redirect, status.assign)
        })
    };
    let all = CapabilitySet::NET_ADMIN | CapabilitySet::BPF;
    let (redirected, assigned, ..) = with(all);
    assert!(redirected.is_ok() && assigned.is_ok(), "{redirected:?} {assigned:?}");
    let (redirected, assigned, _, assign) = with(CapabilitySet::NET_ADMIN);
    assert!(redirected.is_ok());
    assert_eq!(assign, Feature::Off("missing: CAP_BPF".to_owned()));
    assert!(assigned.unwrap_err().to_string().contains("missing: CAP_BPF"));
    for (effective, missing) in [
        (CapabilitySet::empty(), "missing: CAP_NET_ADMIN, CAP_BPF"),
        (CapabilitySet::BPF, "missing: CAP_NET_ADMIN"),
    ] {
        let (redirected, assigned, redirect, assign) = with(effective);
        assert_eq!(redirect, Feature::Off("missing: CAP_NET_ADMIN".to_owned()));
        assert_eq!(assign, Feature::Off(missing.to_owned()));
        let said = redirected.unwrap_err().to_string();
        assert!(said.contains("missing: CAP_NET_ADMIN"), "{said}");
        assert!(assigned.is_err());
    }
}

#[test]
fn a_thousand_ports_are_taken_and_given_back() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let takeover = stage.takeover(TakeoverConfig::default());
    let ours = stage.node.run(|| listen_hidden(2, &Liveness::default()).unwrap());
    let ours = Server::new(ours, "ours");
    let ports: BTreeSet<u16> = (20_000..21_000).collect();
    let mut begun = Instant::now();
    let mut took = |what: &str| {
        println!("{what}: {:?} for {} ports", begun.elapsed(), ports.len());
        begun = Instant::now();
    };
    let needs = stage.node.run(|| takeover.needs_of(&ports));
    assert!(needs.into_values().all(|need| need == TakeoverNeed::None));
    took("needs_of");
    ports.iter().for_each(|port| takeover.redirect(*port).unwrap());
    took("redirect");
    ports
        .iter()
        .for_each(|port| takeover.assign(*port, &ours.fds()).unwrap());
    took("assign");
    let status = takeover.status();
    assert_eq!(status.redirected, ports);
    assert!(status.assigned.len() == ports.len() && status.assigned.values().all(|is_assigned| *is_assigned));
    took("status");
    let last = SocketAddr::new(NODE.parse().unwrap(), 20_999);
    let said = stage.client.run(|| ask(last).unwrap());
    assert!(said.starts_with("ours") && said.ends_with(":20999"), "{said}");
    ports.iter().for_each(|port| takeover.unredirect(*port).unwrap());
    took("unredirect");
    ports.iter().for_each(|port| takeover.unassign(*port).unwrap());
    took("unassign");
    assert!(stage.client.run(|| ask(last)).is_err());
}

#[test]
fn an_ordinary_user_gets_errors_and_cannot_see_who_holds_a_port() {
    if !is_possible(PROGRAMS) {
        return;
    }
    let stage = Stage::new();
    let _dockerd = stage.holder("dockerd", "[::]:8080");
    let listener = stage.node.run(|| listen_hidden(1, &Liveness::default()).unwrap());
    let nobody = rustix::process::Uid::from_raw(65534);
    stage.node.run(|| {
        rustix::thread::set_thread_uid(nobody).unwrap();
        let takeover = Takeover::start(TakeoverConfig::default()).unwrap();
        let status = takeover.status();
        assert!(matches!(status.redirect, Feature::Off(_)) && matches!(status.assign, Feature::Off(_)));
        assert!(takeover.redirect(PORT).is_err() && takeover.assign(PORT, &borrow(&listener)).is_err());
        assert!(takeover.unredirect(PORT).is_ok() && takeover.unassign(PORT).is_ok());
        let need = takeover.needs(PORT);
        assert!(matches!(need, TakeoverNeed::HeldByUnseen { .. }), "{need:?}");
        assert!(need.to_string().contains("--pid host"), "{need}");
        assert_eq!(takeover.needs(PORT + 1), TakeoverNeed::None);
        assert_eq!(takeover.who_listens(PORT).unwrap()[0].program, None);
    });
}

/// An instance in a container sees no process of the host, and need not: Docker's rules say whose the port is.
#[test]
fn a_holder_that_cannot_be_seen_is_passed_over_where_dockers_rules_name_the_port() {
    if !is_possible(PROGRAMS) {
        return;
    }
    for iptables in ["iptables-nft", "iptables-legacy"] {
        if !is_possible(&[iptables]) {
            continue;
        }
        let stage = Stage::new();
        let _dockerd = stage.holder("dockerd", "[::]:8080");
        let (takeover, server, refused) = stage.node.run(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective &= CapabilitySet::NET_ADMIN | CapabilitySet::BPF;
            rustix::thread::set_capabilities(None, sets).unwrap();
            let takeover = Takeover::start(TakeoverConfig::default()).unwrap();
            assert_eq!(takeover.who_listens(PORT).unwrap()[0].program, None);
            let server = Server::new(listen_hidden(2, &Liveness::default()).unwrap(), "ours");
            let refused = takeover.assign(PORT, &server.fds());
            (takeover, server, refused)
        });
        assert!(matches!(
            refused,
            Err(TakeoverError::Held {
                need: TakeoverNeed::HeldByUnseen { .. },
                ..
            })
        ));
        if !stage.try_docker_rules(iptables, "10.99.0.2:80") {
            println!("skipped: this kernel has no NAT for {iptables}");
            continue;
        }
        stage.node.run(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            sets.effective &= CapabilitySet::NET_ADMIN | CapabilitySet::BPF;
            rustix::thread::set_capabilities(None, sets).unwrap();
            takeover.redirect(PORT).unwrap();
            takeover.assign(PORT, &server.fds()).unwrap();
        });
        assert_eq!(stage.heard(), ["ours", "ours"]);
    }
}

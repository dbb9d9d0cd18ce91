//! Names as `dig` asks for them and `dnsperf` insists on them, of the real program, while upstream is dead and while it is
//! slow. Skipped, with a word, where Debian's dnsutils or dnsperf are missing.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use crate::harness::{Origin, free_port, wait_until};

struct Program {
    child: Child,
    dns: SocketAddr,
    exposed: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(upstream: SocketAddr, endpoints: &str) -> Program {
        let dir = tempfile::tempdir().unwrap();
        let dns: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        // Another program of ours on this machine may give the same name the same VIP.
        let exposed = free_port();
        let services = format!(
            "services:\n  my-web: {{ expose: [{exposed}], endpoints: [{endpoints}] }}\n  empty: {{ endpoints: [] }}\n"
        );
        std::fs::write(dir.path().join("services.yml"), services).unwrap();
        let has_vips = anynode::sys::sk_lookup::missing_capabilities().is_empty();
        let child = Command::new(env!("CARGO_BIN_EXE_anynode"))
            .env("ANYNODE_VIPS", if has_vips { "auto" } else { "bind" })
            .args(["up", "--admin", "none", "--dns", &dns.to_string(), "--services"])
            .arg(dir.path().join("services.yml"))
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "warn")
            .env("ANYNODE_DNS_UPSTREAMS", upstream.to_string())
            .env("ANYNODE_DNS_UPSTREAM_TIMEOUT", "300ms")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let program = Program {
            child,
            dns,
            exposed,
            _dir: dir,
        };
        wait_until("DNS to answer", || {
            program.dig(&["+short", "my-web"]).starts_with("127.")
        });
        program
    }

    fn dig(&self, arguments: &[&str]) -> String {
        let output = Command::new("dig")
            .args(["@127.0.0.1", "-p", &self.dns.port().to_string(), "+tries=1", "+time=5"])
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn is_here(program: &str, argument: &str) -> bool {
    let is_here = Command::new(program)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !is_here {
        println!("skipped: there is no {program} here");
    }
    is_here
}

#[test]
fn dig_finds_what_a_table_says() {
    if !is_here("dig", "-v") {
        return;
    }
    let origin = Origin::named("hello");
    // A port where nobody answers: upstream is dead.
    let dead = ([127, 0, 0, 1], free_port()).into();
    let program = Program::start(dead, &format!("\"{}\", \"127.0.0.9:80\"", origin.addr));
    let vip = program.dig(&["+short", "my-web"]).trim().to_owned();
    assert!(vip.starts_with("127.77."), "{vip}");
    assert_eq!(program.dig(&["+short", "+tcp", "MY-WEB"]).trim(), vip);
    assert_eq!(program.dig(&["+short", "-x", &vip]).trim(), "my-web.");
    assert!(
        program.dig(&["+short", "empty"]).starts_with("127.77."),
        "a VIP without endpoints too"
    );
    let mut tasks: Vec<String> = program
        .dig(&["+short", "tasks.my-web"])
        .lines()
        .map(str::to_owned)
        .collect();
    tasks.sort();
    assert_eq!(tasks, ["127.0.0.1", "127.0.0.9"]);
    let (with_ttl, tasks_ttl) = (program.dig(&["my-web"]), program.dig(&["tasks.my-web"]));
    assert!(with_ttl.contains("my-web.\t\t\t5\tIN\tA\t"), "{with_ttl}");
    assert!(tasks_ttl.contains("\t0\tIN\tA\t127.0.0.1"), "{tasks_ttl}");
    for lacking in [["my-web", "AAAA"], ["my-web", "MX"], ["tasks.empty", "A"]] {
        let answer = program.dig(&lacking);
        assert!(
            answer.contains("status: NOERROR") && answer.contains("ANSWER: 0"),
            "{answer}"
        );
    }
    let foreign = program.dig(&["elsewhere.example"]);
    assert!(foreign.contains("status: SERVFAIL"), "{foreign}");
    // What DNS says is where the service is: the VIP answers on a target port.
    let vip: SocketAddr = format!("{vip}:{}", program.exposed).parse().unwrap();
    wait_until("the VIP's port", || std::net::TcpStream::connect(vip).is_ok());
}

#[test]
fn local_names_are_answered_at_a_fixed_rate_while_upstream_is_silent() {
    if !is_here("dnsperf", "-h") || !is_here("dig", "-v") {
        return;
    }
    // It takes every query and answers none.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let program = Program::start(silent.local_addr().unwrap(), "\"127.0.0.9:80\"");
    let mut queries = tempfile::NamedTempFile::new().unwrap();
    for _ in 0..20 {
        writeln!(queries, "my-web A\ntasks.my-web A\nmy-web AAAA\nempty A").unwrap();
    }
    // One in eighty is for upstream, and must not hold up the others.
    writeln!(queries, "elsewhere.example A").unwrap();
    let output = Command::new("dnsperf")
        .args([
            "-s",
            "127.0.0.1",
            "-p",
            &program.dns.port().to_string(),
            "-Q",
            "5000",
            "-l",
            "2",
            "-t",
            "1",
            "-v",
            "-d",
        ])
        .arg(queries.path())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    let mut latencies: Vec<f64> = Vec::new();
    let mut n_lost = 0;
    for line in report.lines().filter(|line| line.starts_with("> ")) {
        let is_local = !line.contains("elsewhere.example");
        match line.split_ascii_whitespace().last().and_then(|last| last.parse().ok()) {
            Some(seconds) if is_local => latencies.push(seconds),
            Some(_) => {}
            None if is_local => n_lost += 1,
            None => {}
        }
    }
    latencies.sort_by(f64::total_cmp);
    assert!(latencies.len() > 5000, "{report}");
    assert_eq!(n_lost, 0, "local names that got no answer");
    println!(
        "p99 of local names: {:.0} us of {}",
        latencies[latencies.len() * 99 / 100] * 1e6,
        latencies.len()
    );
}

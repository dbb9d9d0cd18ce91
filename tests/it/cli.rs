//! The program itself, as a user runs it: exit codes, messages, signals, what it leaves behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::admin::{Scrape, request};
use crate::harness::{Origin, PATIENCE, dial, free_port, read_to_end, wait_until};

/// The program, without the variables of whoever runs the tests.
pub fn anynode(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anynode"));
    command.args(args).stdin(Stdio::null());
    forget_variables(&mut command);
    command
}

/// Takes away the variables that whoever runs the tests has for the program, or for the tests.
pub fn forget_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ANYNODE_") {
            command.env_remove(name);
        }
    }
}

/// Runs a command that ends by itself.
pub fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A process in the background, killed when dropped.
pub struct Running {
    pub child: Child,
    said: [Arc<Mutex<String>>; 2],
}

impl Running {
    pub fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = [
            listen(child.stdout.take().unwrap()),
            listen(child.stderr.take().unwrap()),
        ];
        Running { child, said }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn stdout(&self) -> String {
        self.said[0].lock().unwrap().clone()
    }

    pub fn stderr(&self) -> String {
        self.said[1].lock().unwrap().clone()
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the program to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("stdout: {}\nstderr: {}", self.stdout(), self.stderr());
        }
    }
}

fn listen(pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let said: Arc<Mutex<String>> = Arc::default();
    let heard = said.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut said = heard.lock().unwrap();
            said.push_str(&line);
            said.push('\n');
        }
    });
    said
}

/// A directory for one node: its services file, its configuration and its data, and the ports it is given.
pub struct Home {
    pub dir: tempfile::TempDir,
    pub admin: SocketAddr,
    pub dns: SocketAddr,
    pub port: u16,
}

impl Home {
    pub fn new() -> Home {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Home {
            dir: tempfile::tempdir().unwrap(),
            admin: local(free_port()),
            dns: local(free_port()),
            port: free_port(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.text(name)
    }

    /// Replaces the services file by rename, as editors do.
    pub fn serve(&self, text: &str) {
        self.write("services.new", text);
        std::fs::rename(self.path("services.new"), self.path("services.yaml")).unwrap();
    }

    pub fn up(&self) -> Command {
        let mut command = anynode(&["up", "--services", &self.text("services.yaml")]);
        command.args(["--data-dir", &self.text("data")]).args([
            "--admin",
            &self.admin.to_string(),
            "--dns",
            &self.dns.to_string(),
        ]);
        command
    }

    /// Starts a node and waits until it is ready.
    pub fn start(&self, command: &mut Command) -> Running {
        let mut node = Running::start(command);
        wait_until("the node to be ready", || {
            assert_eq!(node.child.try_wait().unwrap(), None, "{}", node.stderr());
            TcpStream::connect(self.admin).is_ok()
        });
        wait_until("the node to serve", || request(self.admin, "GET", "/readyz").0 == 200);
        node
    }

    pub fn door(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn readyz(&self) -> (u16, String) {
        let (status, _, body) = request(self.admin, "GET", "/readyz");
        (status, body)
    }

    pub fn metric(&self, name: &str) -> f64 {
        let (_, _, body) = request(self.admin, "GET", "/metrics");
        Scrape::parse(&body).unwrap().sum(name, &[])
    }
}

/// The services file of one service on the home's port.
pub fn one_service(home: &Home, mode: &str, endpoint: SocketAddr) -> String {
    format!(
        "services:\n  my-web:\n    mode: {mode}\n    publish: [\"127.0.0.1:{}:{}\"]\n    endpoints: [\"{endpoint}\"]\n",
        home.port,
        endpoint.port(),
    )
}

/// An HTTP server that answers each connection's first request with its name.
pub fn web(name: &'static str) -> Origin {
    web_at(name, (Ipv4Addr::LOCALHOST, 0).into())
}

pub fn web_at(name: &'static str, addr: SocketAddr) -> Origin {
    Origin::start_at(addr, move |mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read(&mut byte), Ok(1)) {
                return;
            }
            head.push(byte[0]);
        }
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}",
            name.len()
        );
    })
}

/// What `curl -s` would print, if there is an answer.
pub fn curl(addr: SocketAddr) -> Option<String> {
    let mut client = TcpStream::connect(addr).ok()?;
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: my-web\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    client.read_to_string(&mut text).ok()?;
    Some(text.strip_prefix("HTTP/1.1 200 ")?.split_once("\r\n\r\n")?.1.to_owned())
}

/// The first address that a DNS server gives for a name.
pub fn dig(server: SocketAddr, name: &str) -> Option<Ipv4Addr> {
    let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(b"\x00\x00\x01\x00\x01");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&query, server).unwrap();
    let mut answer = [0; 512];
    let n = socket.recv(&mut answer).unwrap();
    // One answer, of four bytes, at the end.
    let answer = &answer[..n];
    (answer[..2] == query[..2] && answer[6..8] == [0, 1]).then_some(())?;
    let address: [u8; 4] = answer[n - 4..].try_into().unwrap();
    Some(address.into())
}

#[test]
fn a_terminal_that_has_gone_or_files_that_have_changed_end_nothing() {
    let origin = Origin::named("a");
    let (web, dir) = (free_port(), tempfile::tempdir().unwrap());
    let services = dir.path().join("services.yml");
    let text = format!(
        "services:\n  web:\n    publish: [\"127.0.0.1:{web}:80\"]\n    endpoints: [\"{}\"]\n",
        origin.addr
    );
    std::fs::write(&services, text).unwrap();
    let mut run = anynode(&["up", "--dns", "none", "--admin", "none", "--services"]);
    run.arg(&services).arg("--data-dir").arg(dir.path().join("data"));
    let mut running = Running::start(&mut run);
    let addr: SocketAddr = (Ipv4Addr::LOCALHOST, web).into();
    wait_until("the port", || TcpStream::connect(addr).is_ok());
    running.signal(Signal::HUP);
    wait_until("what it says of that", || {
        running.stderr().contains("SIGHUP: nothing to do")
    });
    assert!(TcpStream::connect(addr).is_ok() && running.child.try_wait().unwrap().is_none());
    running.signal(Signal::TERM);
    assert_eq!(running.ended().code(), Some(0));
}

#[test]
fn check_says_what_is_wrong_with_key_value_and_expectation() {
    let home = Home::new();
    let bad_config = home.write("bad.toml", "workers = -1\n[admin]\nlisten = \"here\"\n");
    let good = home.write(
        "good.yaml",
        "services:\n  web:\n    publish: [\"8080:80\"]\n    endpoints: [\"127.0.0.1:9001\"]\n",
    );
    let bad_mode = home.write(
        "mode.yaml",
        "services:\n  web:\n    mode: udp\n    endpoints: [\"127.0.0.1:9001\"]\n",
    );
    let clash = home.write(
        "clash.yaml",
        "services:\n  a:\n    publish: [\"8080:80\"]\n    endpoints: []\n  b:\n    publish: [\"8080:80\"]\n    endpoints: []\n",
    );
    let itself = home.write(
        "itself.yaml",
        "services:\n  web:\n    publish: [\"8080:80\"]\n    endpoints: [\"127.0.0.1:8080\"]\n",
    );
    let yaml =
        |name: &str, rest: &str| home.write(name, &format!("services:\n  web:\n    endpoints: []\n    {rest}\n"));
    let (queue, limits) = (
        yaml("queue.yaml", "limits: { queue: many }"),
        yaml("limits.yaml", "limits: 7"),
    );
    let (publish, twice) = (
        yaml("publish.yaml", "publish: 8080:80"),
        yaml("twice.yaml", "endpoints: []"),
    );
    let (health, slip) = (
        yaml("health.yaml", "health: { tcp: maybe }"),
        yaml("slip.yaml", "modus: tcp"),
    );
    let empty = home.write("empty.yaml", "services:\n  web:\n");
    let missing = home.text("missing");
    let weak = home.write("weak.token", "01234567890123456789012345678901\n");
    let short = home.write("short.token", "password\n");
    let swarm = |token: &str| format!("[swarm]\nenabled = true\n[link]\ntoken_file = {token:?}\n");
    let (weak_config, short_config) = (
        home.write("weak.toml", &swarm(&weak)),
        home.write("short.toml", &swarm(&short)),
    );
    for (args, code, parts) in [
        (
            vec!["--config", &weak_config],
            64,
            vec![
                "link.token_file = ",
                &weak,
                "32 characters",
                "106 bits",
                "expected 128 bits",
            ],
        ),
        (
            vec!["--config", &short_config],
            64,
            vec![
                "link.token_file = ",
                &short,
                "8 characters",
                "expected at least 32 hexadecimal digits",
            ],
        ),
        (vec![], 0, vec!["ok: ", "no services file"]),
        (vec!["--services", &good], 0, vec!["ok: ", "1 services of ", &good]),
        (
            vec!["--config", &bad_config],
            64,
            vec![
                "bad.toml:1: workers = -1: expected a whole number from 0 to 1024",
                "bad.toml:3: admin.listen = \"here\": expected an address with a port",
            ],
        ),
        (vec!["--config", &missing], 64, vec![&missing, "cannot be read"]),
        (
            vec!["--dns", "nowhere"],
            64,
            vec!["flag --dns: dns.listen = \"nowhere\": expected an address with a port"],
        ),
        (
            vec!["--services", &bad_mode],
            64,
            vec!["mode.yaml: ", "3", "mode", "udp", "expected", "tcp", "http"],
        ),
        (vec![&good], 0, vec!["ok: ", &good]),
        (
            vec![&queue],
            64,
            vec!["line 4: services.web.limits.queue: \"many\" is not valid: expected a whole number"],
        ),
        (
            vec![&limits],
            64,
            vec!["line 4: services.web.limits: \"7\" is not valid: expected keys with values, such as"],
        ),
        (
            vec![&publish],
            64,
            vec!["line 4: services.web.publish: \"8080:80\" is not valid: expected a list, such as"],
        ),
        (
            vec![&twice],
            64,
            vec!["line 4: services.web: endpoints is there twice: expected it once"],
        ),
        (
            vec![&health],
            64,
            vec!["line 4: services.web.health.tcp: \"maybe\" is not valid: expected true or false"],
        ),
        (
            vec![&slip],
            64,
            vec!["line 4: services.web.modus: no such key: `modus`: expected one of mode, publish"],
        ),
        (
            vec![&empty],
            64,
            vec!["line 2: services.web: expected the service's keys, such as endpoints: "],
        ),
        (vec!["--services", &clash], 64, vec!["clash.yaml: ", "8080", "a", "b"]),
        (
            vec!["--services", &itself],
            64,
            vec![
                "itself.yaml: service web: endpoints: 127.0.0.1:8080 is a published port of the service itself: expected",
            ],
        ),
        (
            vec!["--services", &missing],
            64,
            vec!["services = ", &missing, "expected a file"],
        ),
    ] {
        let (ended, stdout, stderr) = run(anynode(&["check"]).args(&args));
        assert_eq!(ended, code, "{args:?}: {stdout}{stderr}");
        let said = if code == 0 { &stdout } else { &stderr };
        for part in parts {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
        assert!(code != 0 || stderr.is_empty(), "{stderr}");
    }
}

#[test]
fn a_file_without_its_flag_is_told_how() {
    let (code, _, stderr) = run(&mut anynode(&["up", "services.yml"]));
    assert_eq!(code, 64);
    assert!(stderr.contains("anynode up --services services.yml"), "{stderr}");
}

#[test]
fn a_node_that_is_told_nonsense_binds_nothing() {
    let home = Home::new();
    let held = std::net::TcpListener::bind(home.admin).unwrap();
    let bad = home.write("bad.toml", "shutdown_grace = 10\n");
    let (code, _, stderr) = run(home.up().args(["--config", &bad]));
    assert_eq!(code, 64);
    assert!(
        stderr.contains("bad.toml:1: shutdown_grace = 10: expected a duration") && !stderr.contains("admin"),
        "{stderr}"
    );
    assert!(!home.path("data").exists());
    drop(held);
    let (code, _, stderr) = run(home.up().env("ANYNODE_LOG", "a=b=c"));
    assert_eq!(code, 64);
    assert!(stderr.contains("log = "), "{stderr}");
}

#[test]
fn a_log_filter_that_would_silence_everything_is_refused() {
    for (said, word) in [("warning", "warning"), ("info,wran", "wran"), ("verbose", "verbose")] {
        let (code, _, stderr) = run(anynode(&["check"]).env("ANYNODE_LOG", said));
        assert_eq!(code, 64, "{said}");
        assert!(
            stderr.contains("variable ANYNODE_LOG: log = ")
                && stderr.contains(word)
                && stderr.contains("expected a level"),
            "{stderr}"
        );
    }
    for said in [
        "warn",
        "WARN",
        "off",
        "info,anynode::proxy=debug",
        "anynode=trace",
        "debug,hyper=info",
    ] {
        let (code, _, stderr) = run(anynode(&["check"]).env("ANYNODE_LOG", said));
        assert_eq!((code, stderr.as_str()), (0, ""), "{said}");
    }
    // A filter about one module leaves the errors of all others.
    let home = Home::new();
    home.serve("services: 7\n");
    let node = Running::start(home.up().env("ANYNODE_LOG", "anynode::dns=debug"));
    wait_until("the error", || node.stderr().contains("ERROR"));
}

#[test]
fn variables_that_mean_nothing_are_said_once_and_stop_nobody() {
    let slips = [
        (
            "ANYNODE_WROKERS",
            "3",
            "ANYNODE_WROKERS: no such key; there is ANYNODE_WORKERS",
        ),
        (
            "ANYNODE_ADMIN_LISTN",
            "x",
            "ANYNODE_ADMIN_LISTN: no such key; there is ANYNODE_ADMIN_LISTEN",
        ),
        // What orchestrators say of a service that is called anynode.
        ("ANYNODE_PORT", "tcp://10.0.0.1:80", "ANYNODE_PORT: no such key"),
    ];
    for (name, value, message) in slips {
        let (code, _, stderr) = run(anynode(&["check"]).env(name, value));
        assert_eq!(code, 64, "{name}");
        assert!(stderr.contains(message), "{stderr}");
    }
    // What is ours and no key.
    let (code, _, stderr) = run(anynode(&["check"])
        .env("ANYNODE_IMAGE", "x")
        .env("ANYNODE_TASK_DIR", "/x"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let home = Home::new();
    home.serve("services:\n  my-web:\n    endpoints: []\n");
    let mut command = home.up();
    for (name, value, _) in slips {
        command.env(name, value);
    }
    let node = home.start(&mut command);
    wait_until("the warning", || node.stderr().contains("ANYNODE_WROKERS"));
    let about: Vec<String> = node
        .stderr()
        .lines()
        .filter(|line| line.contains("no such key"))
        .map(str::to_owned)
        .collect();
    assert_eq!(about.len(), 1, "{about:?}");
    for (_, _, message) in slips {
        assert!(about[0].contains(message), "{about:?}");
    }
}

#[test]
fn up_follows_its_services_file_and_outlives_a_broken_one() {
    let home = Home::new();
    let (one, two) = (web("one"), web("two"));
    home.serve(&one_service(&home, "http", one.addr));
    let mut node = home.start(&mut home.up());
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    let vip = dig(home.dns, "my-web").unwrap();
    assert_eq!(vip.octets()[..2], [127, 77]);
    assert_eq!(curl((vip, one.addr.port()).into()).as_deref(), Some("one"));
    assert_eq!(dig(home.dns, "tasks.my-web"), Some(Ipv4Addr::LOCALHOST));

    home.serve(&one_service(&home, "http", two.addr));
    wait_until("the new endpoint", || curl(home.door()).as_deref() == Some("two"));
    assert_eq!(dig(home.dns, "my-web"), Some(vip));
    assert_eq!(
        (home.readyz().1.as_str(), home.metric("anynode_source_stale")),
        ("serving\n", 0.0)
    );

    let revision = home.metric("anynode_config_revision");
    home.serve("services:\n  my-web:\n    mode: udp\n    endpoints: [\"127.0.0.1:1\"]\n");
    wait_until("the file to be refused", || home.metric("anynode_source_stale") == 1.0);
    let (status, body) = home.readyz();
    assert!(
        status == 200 && body.contains("services.yaml") && body.contains("mode") && body.contains('3'),
        "{status} {body}"
    );
    assert_eq!(curl(home.door()).as_deref(), Some("two"));
    assert_eq!(home.metric("anynode_config_revision"), revision);
    wait_until("the log", || node.stderr().contains("services file not applied"));
    assert_eq!(node.stderr().matches("services file not applied").count(), 1);

    std::fs::remove_file(home.path("services.yaml")).unwrap();
    wait_until("the loss to be noticed", || {
        home.metric("anynode_source_rejected_total") >= 2.0
    });
    assert_eq!(curl(home.door()).as_deref(), Some("two"));
    home.serve(&one_service(&home, "http", one.addr));
    wait_until("the file to be back", || curl(home.door()).as_deref() == Some("one"));
    wait_until("the source to be current", || {
        home.metric("anynode_source_stale") == 0.0
    });
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
    assert_eq!(curl(home.door()), None);
}

#[test]
fn a_c_library_that_would_copy_slowly_is_told_before_it_starts() {
    let Ok(out) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else {
        println!("skipped: there is no getconf here");
        return;
    };
    let version = String::from_utf8_lossy(&out.stdout).into_owned();
    let minor = version
        .trim()
        .strip_prefix("glibc 2.")
        .map(|minor| minor.parse::<u32>().unwrap());
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let is_slow =
        minor.is_some_and(|minor| minor < 40) && processor.contains("AuthenticAMD") && processor.contains(" erms");
    let told = |tunables: Option<&str>| -> Vec<String> {
        let home = Home::new();
        let origin = web("a");
        home.serve(&one_service(&home, "tcp", origin.addr));
        let mut up = home.up();
        up.env_remove("GLIBC_TUNABLES")
            .envs(tunables.map(|said| ("GLIBC_TUNABLES", said)));
        let node = home.start(&mut up);
        let environment = std::fs::read_to_string(format!("/proc/{}/environ", node.pid())).unwrap();
        let is_of_it = |line: &&str| line.starts_with("GLIBC_TUNABLES=") || line.starts_with("ANYNODE_BEGAN_AGAIN=");
        environment.split('\0').filter(is_of_it).map(str::to_owned).collect()
    };
    let threshold = "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=0x7fffffffffffffff";
    let mut of_itself = told(None);
    of_itself.sort();
    let expected = if is_slow {
        vec!["ANYNODE_BEGAN_AGAIN=1", threshold]
    } else {
        Vec::new()
    };
    assert_eq!(of_itself, expected, "{version}");
    // Who has said something is left alone.
    assert_eq!(
        told(Some("glibc.malloc.check=0")),
        ["GLIBC_TUNABLES=glibc.malloc.check=0"]
    );
}

#[test]
fn a_signal_drains_and_what_is_left_then_is_reset() {
    let home = Home::new();
    let echo = Origin::echo();
    home.serve(&one_service(&home, "tcp", echo.addr));
    let mut node = home.start(home.up().env("ANYNODE_SHUTDOWN_GRACE", "700ms"));
    let (mut ends, mut stays) = (dial(home.door()), dial(home.door()));
    let echoes = |client: &mut TcpStream| {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    };
    echoes(&mut ends);
    echoes(&mut stays);
    node.signal(Signal::TERM);
    wait_until("the drain", || home.readyz().0 == 503);
    echoes(&mut stays);
    echoes(&mut ends);
    wait_until("the port to close", || TcpStream::connect(home.door()).is_err());
    assert_eq!(node.child.try_wait().unwrap(), None);
    ends.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_to_end(&ends).is_empty());
    let error = stays.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(node.ended().code(), Some(0));
    wait_until("the log", || node.stderr().contains("connections=1"));
    assert!(!node.stderr().contains('\x1b'), "colors, and no terminal");
}

#[test]
fn a_second_signal_ends_at_once() {
    let home = Home::new();
    let echo = Origin::echo();
    home.serve(&one_service(&home, "tcp", echo.addr));
    let mut node = home.start(home.up().env("ANYNODE_SHUTDOWN_GRACE", "1h"));
    let mut client = dial(home.door());
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    node.signal(Signal::INT);
    wait_until("the drain", || home.readyz().0 == 503);
    assert_eq!(node.child.try_wait().unwrap(), None);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(130));
    // Without connections one signal is enough, whatever the grace.
    let mut node = home.start(home.up().env("ANYNODE_SHUTDOWN_GRACE", "1h"));
    node.signal(Signal::INT);
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn a_data_directory_serves_one_node_and_keeps_its_table() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let mut node = home.start(&mut home.up());
    let vip = dig(home.dns, "my-web").unwrap();
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
    std::fs::remove_file(home.path("services.yaml")).unwrap();
    // A second start at once finds the directory free, and the table in it.
    let mut node = home.start(&mut home.up());
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    assert_eq!(dig(home.dns, "my-web"), Some(vip));
    assert_eq!(home.metric("anynode_source_stale"), 1.0);
    assert!(home.readyz().1.contains("services.yaml"), "{}", home.readyz().1);
    // So does one after a kill: the lock goes with the process.
    node.child.kill().unwrap();
    node.ended();
    let node = home.start(&mut home.up());
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    drop(node);
}

/// Not a line in the log, readyz or status said so, and `3/3 ready` did.
#[test]
fn a_service_that_loses_its_last_endpoint_says_so_once() {
    let home = Home::new();
    let ports = [0; 3].map(|_| free_port());
    let list = ports.map(|port| format!("\"127.0.0.1:{port}\"")).join(", ");
    home.serve(&format!(
        "services:\n  my-web: {{ mode: http, publish: [\"127.0.0.1:{}:{}\"], endpoints: [{list}], limits: {{ hold_timeout: 0s }} }}\n",
        home.port, ports[0]
    ));
    let node = home.start(&mut home.up());
    let admin = home.admin.to_string();
    let shows = |text: &str| {
        let (_, stdout, _) = run(&mut anynode(&["status", "--admin", &admin]));
        stdout.contains(text)
    };
    assert!(shows("0 ready, 3 untried"));
    assert_eq!(home.readyz(), (200, "serving\n".to_owned()));
    let lost = "the last endpoint is lost: none of 3 is well, so all are tried";
    wait_until("the loss to be said", || {
        curl(home.door());
        node.stderr().contains(lost)
    });
    let (code, text) = home.readyz();
    assert_eq!(code, 200);
    assert!(
        text.contains("service my-web: none of its 3 endpoints is well, so all are tried"),
        "{text}"
    );
    assert!(shows("0 ready") && !shows("untried"));
    assert_eq!(home.metric("anynode_service_losses_total"), 1.0);
    // Nothing more is said of what stays as it is.
    (0..20).for_each(|_| drop(curl(home.door())));
    let said = node.stderr();
    assert_eq!(
        (said.matches(lost).count(), said.matches("endpoint rests").count()),
        (1, 3),
        "{said}"
    );
    assert!(
        said.contains("3 connects in a row failed: connection refused"),
        "{said}"
    );
    let _one = web_at("one", format!("127.0.0.1:{}", ports[1]).parse().unwrap());
    wait_until("it to be back", || {
        curl(home.door());
        let said = node.stderr();
        said.contains("an endpoint is well again") && said.contains("endpoint is back")
    });
    assert!(shows("1 ready"));
    assert_eq!(home.readyz(), (200, "serving\n".to_owned()));
    assert_eq!(home.metric("anynode_service_recoveries_total"), 1.0);
    assert_eq!(home.metric("anynode_endpoint_returns_total"), 1.0);
}

#[test]
fn status_shows_a_running_node() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let admin = home.admin.to_string();
    let (code, stdout, stderr) = run(&mut anynode(&["status", "--admin", &admin]));
    assert_eq!(code, 69);
    assert!(
        stdout.is_empty() && stderr.contains(&format!("no node answers at {admin}")),
        "{stdout}{stderr}"
    );
    let node = home.start(&mut home.up());
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    let (code, stdout, stderr) = run(&mut anynode(&["status", "--admin", &admin]));
    assert_eq!(code, 0, "{stderr}");
    let row = |first: &str| -> Vec<String> {
        let line = stdout
            .lines()
            .find(|line| line.trim_start().starts_with(first))
            .unwrap();
        line.split("   ")
            .map(|cell| cell.trim().to_owned())
            .filter(|cell| !cell.is_empty())
            .collect()
    };
    assert!(
        stdout.contains("   serving   ") && stdout.contains("source current"),
        "{stdout}"
    );
    let port = format!("127.0.0.1:{}:{}", home.port, one.addr.port());
    let vip = dig(home.dns, "my-web").unwrap().to_string();
    assert_eq!(row("service my-web"), ["service my-web", "http", &vip, &port]);
    assert_eq!(row("1 ready")[0], "1 ready");
    let endpoint = one.addr.to_string();
    assert_eq!(row(&endpoint), [&endpoint, "ready", "0", "1", "0"]);

    let (code, stdout, _) = run(&mut anynode(&["status", "--json", "--admin", &admin]));
    assert_eq!(code, 0);
    let status: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(status["services"][0]["name"], "my-web");
    assert_eq!(status["services"][0]["endpoints"][0]["state"], "ready");
    assert_eq!(
        status["ports"].as_array().unwrap().len(),
        2,
        "the published one and the VIP's: {status}"
    );
    assert!(status["revision"].as_u64() > Some(0));
    // The variable and the configuration file lead there too.
    let config = home.write("node.toml", &format!("[admin]\nlisten = \"{admin}\"\n"));
    for command in [
        anynode(&["status"]).env("ANYNODE_ADMIN", &admin),
        anynode(&["status", "--config", &config]).env("IGNORED", ""),
    ] {
        assert_eq!(run(command).0, 0);
    }
    drop(node);
}

#[test]
fn flags_override_variables_override_the_file() {
    let home = Home::new();
    home.serve("services:\n  my-web:\n    endpoints: []\n");
    let [in_file, in_variable] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let config = home.write(
        "node.toml",
        &format!("workers = 1\n[admin]\nlisten = \"{in_file}\"\n[dns]\nlisten = \"none\"\n"),
    );
    let answers = |addr: &str| TcpStream::connect(addr).is_ok();
    let command = || {
        let mut command = anynode(&["up", "--services", &home.text("services.yaml"), "--config", &config]);
        command.args(["--data-dir", &home.text("data")]);
        command
    };
    let flag = home.admin.to_string();
    let node = Running::start(command().env("ANYNODE_ADMIN", &in_variable).args(["--admin", &flag]));
    wait_until("the flag's address", || answers(&flag));
    assert!(!answers(&in_variable) && !answers(&in_file));
    drop(node);
    let node = Running::start(command().env("ANYNODE_ADMIN", &in_variable));
    wait_until("the variable's address", || answers(&in_variable));
    assert!(!answers(&flag) && !answers(&in_file));
    drop(node);
    let node = Running::start(&mut command());
    wait_until("the file's address", || answers(&in_file));
    assert!(!answers(&flag) && !answers(&in_variable));
    let (_, _, body) = request(in_file.parse().unwrap(), "GET", "/v1/status");
    assert!(body.contains("\"workers\":1"), "{body}");
    drop(node);
}

/// A demo on a free port, with a temporary directory of its own and out of the way of other nodes.
fn demo(port: u16, tmp: &Path) -> Running {
    let demo = Running::start(
        anynode(&["demo", "--port", &port.to_string()])
            .env("TMPDIR", tmp)
            .env("ANYNODE_ADMIN", format!("127.0.0.1:{}", free_port()))
            .env("ANYNODE_DNS", format!("127.0.0.1:{}", free_port())),
    );
    wait_until("the demo to say what to do", || {
        demo.stdout().contains("Ctrl-C ends it all")
    });
    demo
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|child| stat(*child).is_some_and(|(_, parent)| parent == pid))
        .collect()
}

/// The state and the parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process has ended; nobody may have reaped it yet.
fn is_gone(pid: u32) -> bool {
    stat(pid).is_none_or(|(state, _)| state == 'Z')
}

#[test]
fn the_demo_shows_three_endpoints_in_turn_and_leaves_nothing() {
    let (port, tmp) = (free_port(), tempfile::tempdir().unwrap());
    let mut demo = demo(port, tmp.path());
    assert!(
        demo.stdout().contains(&format!("curl -s localhost:{port}")),
        "{}",
        demo.stdout()
    );
    let names: Vec<String> = (0..6)
        .map(|_| {
            let answer = curl((Ipv4Addr::LOCALHOST, port).into()).unwrap();
            let answer: Value = serde_json::from_str(&answer).unwrap();
            answer["hostname"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(names[..3], names[3..], "{names:?}");
    let mut three = names[..3].to_vec();
    three.sort_unstable();
    assert_eq!(three, ["whoami-1", "whoami-2", "whoami-3"], "{names:?}");
    wait_until("the screen to say who answered", || {
        three
            .iter()
            .all(|name| demo.stdout().contains(&format!("{name} answered")))
    });
    let endpoints = children(demo.pid());
    assert_eq!(endpoints.len(), 3);
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().code(), Some(0));
    assert!(endpoints.iter().all(|pid| is_gone(*pid)));
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    assert_eq!(curl((Ipv4Addr::LOCALHOST, port).into()), None);
}

#[test]
fn keys_kill_an_endpoint_of_the_demo_and_start_it_again_and_nobody_who_asks_notices() {
    let (port, tmp) = (free_port(), tempfile::tempdir().unwrap());
    let mut demo = Running::start(
        anynode(&["demo", "--port", &port.to_string()])
            .stdin(Stdio::piped())
            .env("TMPDIR", tmp.path())
            .env("ANYNODE_ADMIN", format!("127.0.0.1:{}", free_port()))
            .env("ANYNODE_DNS", "none"),
    );
    wait_until("the demo to say what to do", || {
        demo.stdout().contains("Ctrl-C ends it all") && demo.stdout().contains("To see it all: http://127.0.0.1:")
    });
    let mut keys = demo.child.stdin.take().unwrap();
    let ask = || {
        let answer: Value = serde_json::from_str(&curl((Ipv4Addr::LOCALHOST, port).into()).unwrap()).unwrap();
        answer["hostname"].as_str().unwrap().to_owned()
    };
    keys.write_all(b"2").unwrap();
    wait_until("it to be killed", || {
        ask();
        demo.stdout().contains("whoami-2 is killed; 2 starts it again")
    });
    for _ in 0..9 {
        assert_ne!(ask(), "whoami-2");
    }
    assert_eq!(children(demo.pid()).iter().filter(|pid| !is_gone(**pid)).count(), 2);
    keys.write_all(b"x 9\n2").unwrap();
    wait_until("it to answer again", || ask() == "whoami-2");
    assert!(demo.stdout().contains("whoami-2 runs again"), "{}", demo.stdout());
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().code(), Some(0));
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}

#[test]
fn a_demo_that_is_killed_takes_its_endpoints_along() {
    let (port, tmp) = (free_port(), tempfile::tempdir().unwrap());
    let mut demo = demo(port, tmp.path());
    let endpoints = children(demo.pid());
    assert_eq!(endpoints.len(), 3);
    demo.child.kill().unwrap();
    demo.ended();
    wait_until("the endpoints to end", || endpoints.iter().all(|pid| is_gone(*pid)));
}

#[test]
fn demos_beside_one_another_are_asked_where_they_say() {
    // Both want the usual addresses; whoever has them, each says where it is asked.
    let tmp = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let demos = tmp.each_ref().map(|tmp| {
        let demo = Running::start(anynode(&["demo", "--port", "0"]).env("TMPDIR", tmp.path()));
        wait_until("the demo to say what to do", || {
            demo.stdout().contains("Ctrl-C ends it all")
        });
        demo
    });
    let asked = demos.each_ref().map(|demo| {
        let said = demo.stdout();
        let status = said.lines().find(|line| line.contains("anynode status"));
        let admin = status
            .unwrap_or_else(|| panic!("{said}"))
            .trim_start()
            .strip_prefix(concat!(env!("CARGO_BIN_EXE_anynode"), " status"));
        let admin = admin
            .unwrap()
            .trim()
            .strip_prefix("--admin ")
            .unwrap_or("127.0.0.1:9377")
            .to_owned();
        let (_, port) = said.split_once("curl -s localhost:").unwrap();
        let port: u16 = port.split(';').next().unwrap().parse().unwrap();
        assert_ne!(port, 0);
        (admin, port)
    });
    assert_ne!(asked[0], asked[1]);
    for (admin, port) in &asked {
        let (code, stdout, stderr) = run(&mut anynode(&["status", "--admin", admin]));
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains(&format!("{port}:8000")), "{stdout}");
        assert!(curl((Ipv4Addr::LOCALHOST, *port).into()).unwrap().contains("whoami-"));
    }
    for mut demo in demos {
        demo.signal(Signal::INT);
        assert_eq!(demo.ended().code(), Some(0));
    }
}

#[test]
fn a_demo_whose_port_is_taken_says_so_and_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let held = std::net::TcpListener::bind(("0.0.0.0", free_port())).unwrap();
    let port = held.local_addr().unwrap().port();
    let mut demo = Running::start(
        anynode(&["demo", "--port", &port.to_string()])
            .env("TMPDIR", tmp.path())
            .env("ANYNODE_ADMIN", "none")
            .env("ANYNODE_DNS", "none"),
    );
    assert_eq!(demo.ended().code(), Some(69));
    wait_until("the message", || {
        demo.stderr().contains(&format!("port {port} cannot be published"))
    });
    // By whom: a test's thread is called after the test.
    let me = format!("(pid {}) listens on 0.0.0.0:{port}", std::process::id());
    assert!(demo.stderr().contains(&me), "{}", demo.stderr());
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}

#[test]
fn nobody_need_read_what_is_printed() {
    let home = Home::new();
    home.serve("services:\n  my-web:\n    endpoints: []\n");
    let _node = home.start(&mut home.up());
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let admin = home.admin.to_string();
    for args in [&["status"][..], &["status", "--json"]] {
        let Output { status, stderr, .. } = anynode(args)
            .args(["--admin", &admin])
            .stdout(closed())
            .output()
            .unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success() && stderr.is_empty(), "{args:?}: {status} {stderr}");
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut child = anynode(&["demo", "--port", &home.port.to_string()])
        .env("TMPDIR", tmp.path())
        .env("ANYNODE_ADMIN", "none")
        .env("ANYNODE_DNS", "none")
        .stdout(closed())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let heard = listen(child.stderr.take().unwrap());
    let mut demo = Running {
        child,
        said: [Arc::default(), heard],
    };
    wait_until("the demo to serve", || curl(home.door()).is_some());
    wait_until("more", || curl(home.door()).is_some());
    demo.signal(Signal::INT);
    assert_eq!(demo.ended().code(), Some(0));
    assert_eq!(demo.stderr(), "");
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}

#[test]
fn a_node_of_a_swarm_that_learned_nothing_says_so() {
    let home = Home::new();
    let missing = home.text("no-docker.sock");
    let node = Running::start(
        anynode(&[
            "up",
            "--swarm",
            "--data-dir",
            &home.text("data"),
            "--admin",
            &home.admin.to_string(),
        ])
        .args(["--dns", "none"])
        .env("ANYNODE_SWARM_DOCKER_SOCKET", &missing)
        .env("ANYNODE_SWARM_CONTROL_SOCKET", home.text("no-control.sock"))
        .env("ANYNODE_SWARM_TAKEOVER", "off")
        .env("ANYNODE_LINK_LISTEN", "none"),
    );
    let health = || run(&mut anynode(&["health", "--admin", &home.admin.to_string()]));
    wait_until("the node to say why", || {
        TcpStream::connect(home.admin).is_ok() && home.readyz().1.contains(&missing)
    });
    let (status, said) = home.readyz();
    assert_eq!(status, 503);
    assert!(
        said.starts_with("starting\n") && said.contains("nothing was learned yet, and nothing kept"),
        "{said}"
    );
    let (code, _, stderr) = health();
    assert_eq!(code, 69);
    assert!(
        stderr.contains("nothing was learned yet") && stderr.contains(&missing),
        "{stderr}"
    );
    let (code, stdout, _) = run(&mut anynode(&["status", "--admin", &home.admin.to_string()]));
    assert_eq!(code, 0);
    assert!(
        stdout.contains("   starting   ") && stdout.contains("source starting"),
        "{stdout}"
    );
    assert!(
        stdout.contains("cluster learned from nobody yet") && !stdout.contains("is served"),
        "{stdout}"
    );
    assert_eq!(request(home.admin, "GET", "/livez").0, 200);
    drop(node);

    // A node with a services file is well as soon as it has read it.
    let home = Home::new();
    home.serve("services:\n  my-web:\n    endpoints: []\n");
    let _node = home.start(&mut home.up());
    let (code, stdout, _) = run(&mut anynode(&["health", "--admin", &home.admin.to_string()]));
    assert_eq!((code, stdout.as_str()), (0, "ok\n"));
}

#[test]
fn an_address_that_is_taken_stops_nobody_and_is_used_once_it_is_free() {
    let home = Home::new();
    let endpoint = web("one");
    home.serve(&one_service(&home, "http", endpoint.addr));
    let (admin, dns) = (
        std::net::TcpListener::bind(home.admin).unwrap(),
        std::net::TcpListener::bind(home.dns).unwrap(),
    );
    let node = Running::start(&mut home.up());
    wait_until("the node to serve", || curl(home.door()).as_deref() == Some("one"));
    let holder = format!("(pid {}) listens on ", std::process::id());
    for key in [
        format!("admin.listen = {}", home.admin),
        format!("dns.listen = {}", home.dns),
    ] {
        wait_until("it to be said", || {
            node.stderr().contains(&format!("{key}: cannot listen, trying again"))
        });
        let said = node.stderr();
        let lines: Vec<&str> = said.lines().filter(|line| line.contains(&key)).collect();
        assert!(lines.len() == 1 && lines[0].contains(&holder), "{lines:?}");
    }
    drop(admin);
    wait_until("the admin server", || TcpStream::connect(home.admin).is_ok());
    let (status, said) = home.readyz();
    assert_eq!(status, 200);
    assert!(said.contains(&format!("dns.listen = {}: in use", home.dns)), "{said}");
    drop(dns);
    wait_until("nothing to be wrong", || home.readyz() == (200, "serving\n".to_owned()));
    assert!(dig(home.dns, "my-web").is_some());
    assert!(home.metric("anynode_dns_queries_total") >= 1.0);
}

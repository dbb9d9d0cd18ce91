//! One party takes all that a listener of the program has, in every way that costs it little, and others are served all the
//! same: liveness, the API's ping, names, published ports. Not here: the link (`link::strangers`) and the connections of
//! clients (`inside`), whose places are of other kinds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;

use crate::harness::{Origin, free_port, wait_until};

struct Program {
    child: Child,
    admin: SocketAddr,
    dns: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// `flags` are for a program whose directory is given. Its upstream DNS server takes all queries and answers none.
    fn start(flags: impl FnOnce(&std::path::Path) -> Vec<String>, upstream: SocketAddr) -> Program {
        let dir = tempfile::tempdir().unwrap();
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (admin, dns) = (local(free_port()), local(free_port()));
        let child = Command::new(env!("CARGO_BIN_EXE_anynode"))
            .args(["up", "--admin", &admin.to_string(), "--dns", &dns.to_string()])
            .args(flags(dir.path()))
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "error")
            .env("ANYNODE_DNS_UPSTREAMS", upstream.to_string())
            .env("ANYNODE_DNS_UPSTREAM_TIMEOUT", "20s")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let program = Program { child, admin, dns, dir };
        wait_until("the program", || get(program.admin, "/livez").is_ok());
        program
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    fn given_up(&self, table: &str) -> u64 {
        let scrape = get(self.admin, "/metrics").unwrap();
        let series = format!("anynode_places_given_up_total{{table=\"{table}\"}} ");
        let line = scrape.lines().find_map(|line| line.strip_prefix(&series));
        line.map_or(0, |n| n.trim().parse().unwrap())
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
/// In one try of some: other programs may hold this machine up.
const SOON: Duration = Duration::from_secs(1);

/// The body of a good answer.
pub fn http(mut stream: impl Read + Write, path: &str) -> std::io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let body = answer
        .strip_prefix("HTTP/1.1 200")
        .and_then(|rest| rest.split_once("\r\n\r\n"));
    let body = body.map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other(format!("{answer:?} is no good answer")))
}

fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    http(stream, path)
}

fn ping(program: &Program) -> std::io::Result<()> {
    let stream = UnixStream::connect(program.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    http(stream, "/_ping").map(drop)
}

/// A query for the address of a name, without a prefix.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

pub fn framed(query: &[u8]) -> Vec<u8> {
    [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], query].concat()
}

/// Errors: there is no answer, or one without an address.
pub fn check_answer(answer: &[u8]) -> std::io::Result<()> {
    match answer.get(3).map(|flags| flags & 15) == Some(0) && matches!(answer.get(7), Some(1..)) {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("{answer:?} has no address"))),
    }
}

fn name_by_udp(dns: SocketAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(dns)?;
    // A datagram may get lost; then another is sent, as a resolver does.
    socket.set_read_timeout(Some(SOON))?;
    socket.send(&query(7, "web"))?;
    let mut answer = [0; 512];
    let n = socket.recv(&mut answer)?;
    check_answer(&answer[..n])
}

fn name_by_tcp(dns: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&dns, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&framed(&query(7, "web")))?;
    let mut answer = [0; 512];
    let n = stream.read(&mut answer)?;
    check_answer(answer.get(2..n).unwrap_or_default())
}

/// Whether it is served soon, in one of some tries. `why`: under what.
fn is_served(why: &str, what: &str, ask: impl Fn() -> std::io::Result<()>) {
    let began = Instant::now();
    loop {
        let started = Instant::now();
        let answer = ask();
        match &answer {
            Ok(()) if started.elapsed() < SOON => break,
            _ => assert!(
                began.elapsed() < PATIENCE,
                "{what} under {why}: {answer:?} after {:?}",
                started.elapsed()
            ),
        }
    }
}

/// So many connections that say `bytes` and nothing more, and never read.
fn hold(n: usize, addr: SocketAddr, bytes: &[u8]) -> Vec<TcpStream> {
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        // One that was given up already is reset.
        let _ = stream.write_all(bytes);
        stream
    };
    (0..n).map(|_| connect()).collect()
}

fn hold_api(n: usize, program: &Program, bytes: &[u8]) -> Vec<UnixStream> {
    let connect = || {
        let mut stream = UnixStream::connect(program.socket()).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(bytes);
        stream
    };
    (0..n).map(|_| connect()).collect()
}

#[test]
fn whoever_takes_all_of_admin_or_dns_keeps_nobody_from_anything() {
    let origin = Origin::start(|mut stream| {
        let mut head = [0; 1024];
        while let Ok(1..) = stream.read(&mut head) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        }
    });
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let published = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let services = |dir: &std::path::Path| {
        let path = dir.join("services.yml");
        let text = format!(
            "services:\n  web: {{ publish: [\"{published}:80\"], mode: http, endpoints: [\"{}\"] }}\n",
            origin.addr
        );
        std::fs::write(&path, text).unwrap();
        vec!["--services".to_owned(), path.display().to_string()]
    };
    let program = Program::start(services, silent.local_addr().unwrap());
    wait_until("the published port", || get(published, "/").is_ok());
    let all_are_served = |why: &str| {
        is_served(why, "/livez", || get(program.admin, "/livez").map(drop));
        is_served(why, "a published port", || get(published, "/").map(drop));
        is_served(why, "a name by UDP", || name_by_udp(program.dns));
        is_served(why, "a name by TCP", || name_by_tcp(program.dns));
    };
    all_are_served("nothing");
    let scrapes = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(60);
    for (why, bytes) in [
        ("silence", &b""[..]),
        ("half a head", b"GET /livez HT"),
        ("answers that are never read", scrapes.as_bytes()),
    ] {
        let before = program.given_up("admin");
        let held = hold(150, program.admin, bytes);
        all_are_served(&format!("{why} to admin"));
        assert!(program.given_up("admin") > before, "{why}: it was full");
        drop(held);
    }
    let foreign = framed(&query(1, "elsewhere.example"));
    for (why, bytes) in [
        ("silence", &b""[..]),
        ("half a query", &foreign[..9]),
        ("queries for upstream, which is silent,", &foreign.repeat(32)),
    ] {
        let before = program.given_up("dns_streams");
        let held = hold(600, program.dns, bytes);
        all_are_served(&format!("{why} to DNS by TCP"));
        assert!(program.given_up("dns_streams") > before, "{why}: it was full");
        drop(held);
    }
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    for id in 0..3000 {
        flood.send_to(&query(id, "elsewhere.example"), program.dns).unwrap();
        if id % 50 == 0 {
            // Paced, so that no socket buffer overflows. Whether one of these is lost does not matter here.
            let _ = name_by_udp(program.dns);
        }
    }
    all_are_served("queries for upstream by UDP");
    // Upstream is asked for others too: the new query takes the place of an old one.
    let answered = |socket: &UdpSocket| socket.recv(&mut [0; 512]).is_ok();
    flood.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(answered(&flood), "the oldest ones are refused, not forgotten");
    assert!(program.given_up("dns_upstream") > 0);
    // A client that is not at once given an answer by its own service's port holds no other up either.
    let held = hold(300, published, b"GET / HTTP/1.1\r\n");
    all_are_served("half a head to a published port");
    drop(held);
}

#[test]
fn whoever_takes_all_of_the_api_keeps_nobody_from_anything() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let own = |dir: &std::path::Path| {
        let socket = dir.join("docker.sock").display().to_string();
        ["--api", &socket, "--engine", "none"].map(str::to_owned).to_vec()
    };
    let program = Program::start(own, silent.local_addr().unwrap());
    wait_until("the API", || ping(&program).is_ok());
    let all_are_served = |why: &str| {
        is_served(why, "/_ping", || ping(&program));
        is_served(why, "/livez", || get(program.admin, "/livez").map(drop));
    };
    let long = "POST /swarm/init HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n{";
    let infos = "GET /info HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    // Some of many: each makes the program work until its buffers are full.
    let unread = hold_api(40, &program, infos.as_bytes());
    all_are_served("answers that are never read, of the API");
    for (why, table, bytes) in [
        ("silence", "api", &b""[..]),
        ("half a head", "api", b"GET /_pi"),
        ("streams", "api_streams", b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("long bodies that never come", "api_bodies", long.as_bytes()),
    ] {
        let before = program.given_up(table);
        let held = hold_api(600, &program, bytes);
        all_are_served(&format!("{why} to the API"));
        wait_until("it to be full", || program.given_up(table) > before);
        drop(held);
    }
    drop(unread);
    // A long body that does come is read meanwhile, and streams that are silent last while there is room.
    let bodies = hold_api(8, &program, long.as_bytes());
    // Four have places. Until the others were told so, they are newer than who comes next, and take his.
    let is_told =
        |stream: &&UnixStream| rustix::net::recv(stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok();
    // More may, where places of those before are not free yet.
    wait_until("four to give way", || bodies.iter().filter(is_told).count() >= 4);
    let mut events = hold_api(1, &program, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
    let body = format!("{{{}}}", " ".repeat(100_000));
    let mut stream = UnixStream::connect(program.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /swarm/init HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    events[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let mut told = Vec::new();
    while !String::from_utf8_lossy(&told).contains("\"Type\":\"node\"") {
        let mut bytes = [0; 4096];
        let n = events[0].read(&mut bytes).unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&told));
        told.extend(&bytes[..n]);
    }
}

/// ARCHITECTURE.md lists every listener and every table of places: who adds one says there who may take how much of it.
#[test]
fn every_listener_and_every_table_of_places_is_listed() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let list = text
        .split("## Nothing starves")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    for table in anynode::places::Table::ALL {
        let name = format!("`{}`", table.as_str());
        assert!(list.contains(&name), "no table {name} in ARCHITECTURE.md");
    }
    let mut dirs = vec![root.join("src")];
    let mut n_listeners = 0;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let code = std::fs::read_to_string(&path).unwrap();
            let code = code.split("#[cfg(test)]").next().unwrap();
            if !["listener.accept()", "door.accept()"]
                .iter()
                .any(|accept| code.contains(accept))
            {
                continue;
            }
            let module = path.strip_prefix(root.join("src")).unwrap().with_extension("");
            let module = module.display().to_string().replace('/', "::");
            assert!(
                list.contains(&format!("`{module}`")),
                "no listener {module} in ARCHITECTURE.md"
            );
            n_listeners += 1;
        }
    }
    assert!(n_listeners >= 7, "{n_listeners}");
}

//! The mesh under load while everything changes: endpoints come, go, are killed and come back, and the services file is
//! rewritten ten times a second. The real program, real sockets; ANYNODE_SOAK_SECONDS makes it longer than its short form.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::harness::{self, dial, free_port, wait_until};

/// An endpoint that can be killed as a process is: all its sockets are gone at once, and whoever was being served sees
/// a reset. It counts every POST by its number.
pub struct Endpoint {
    pub addr: SocketAddr,
    posts: Arc<Mutex<HashMap<u64, u32>>>,
    alive: Mutex<Option<Alive>>,
}

struct Alive {
    is_dead: Arc<AtomicBool>,
    listener: TcpListener,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Endpoint {
    pub fn start(posts: &Arc<Mutex<HashMap<u64, u32>>>) -> Endpoint {
        let endpoint = Endpoint {
            addr: ([127, 0, 0, 1], free_port()).into(),
            posts: posts.clone(),
            alive: Mutex::new(None),
        };
        endpoint.revive();
        endpoint
    }

    fn revive(&self) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&self.addr.into()).unwrap();
        socket.listen(1024).unwrap();
        let listener: TcpListener = socket.into();
        let is_dead = Arc::new(AtomicBool::new(false));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let alive = Alive {
            is_dead: is_dead.clone(),
            listener: listener.try_clone().unwrap(),
            open: open.clone(),
        };
        let posts = self.posts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                if is_dead.load(Ordering::SeqCst) {
                    harness::reset(stream);
                    break;
                }
                let mut all = open.lock().unwrap();
                all.retain(|stream| stream.peer_addr().is_ok());
                all.push(stream.try_clone().unwrap());
                drop(all);
                let (posts, is_dead) = (posts.clone(), is_dead.clone());
                std::thread::spawn(move || {
                    let last = stream.try_clone();
                    serve(stream, &posts, &is_dead);
                    // The list has a copy, so that dropping ours would not end the connection.
                    let _ = last.and_then(|stream| stream.shutdown(std::net::Shutdown::Both));
                });
            }
        });
        *self.alive.lock().unwrap() = Some(alive);
    }

    fn kill(&self) {
        let Some(alive) = self.alive.lock().unwrap().take() else {
            return;
        };
        alive.is_dead.store(true, Ordering::SeqCst);
        let _ = socket2::SockRef::from(&alive.listener).shutdown(std::net::Shutdown::Both);
        for stream in alive.open.lock().unwrap().drain(..) {
            // Shutting down wakes the thread that serves it; its last reference then resets the connection.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(std::net::Shutdown::Read);
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(mut stream: TcpStream, posts: &Mutex<HashMap<u64, u32>>, is_dead: &AtomicBool) {
    let mut buffer = Vec::new();
    loop {
        let Some(request) = read_message(&mut stream, &mut buffer) else {
            return;
        };
        if is_dead.load(Ordering::SeqCst) {
            return harness::reset(stream);
        }
        let number: u64 = request
            .split_once("/n/")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .unwrap();
        if request.starts_with("POST ") {
            *posts.lock().unwrap().entry(number).or_default() += 1;
        }
        let body = format!("n={number}");
        let close = if request.contains("Connection: close") {
            "Connection: close\r\n"
        } else {
            ""
        };
        let answer = format!("HTTP/1.1 200 OK\r\n{close}Content-Length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() || !close.is_empty() {
            return;
        }
    }
}

/// Reads one message with a Content-Length or without a body. `None` when the peer is gone.
fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end + 4]).into_owned();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
                .unwrap_or(0);
            if buffer.len() >= end + 4 + length {
                let message = String::from_utf8_lossy(&buffer[..end + 4 + length]).into_owned();
                buffer.drain(..end + 4 + length);
                return Some(message);
            }
        }
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => buffer.extend_from_slice(&chunk[..n]),
            _ => return None,
        }
    }
}

/// What went wrong for a client, and when.
pub struct Failed {
    at: Instant,
    pub what: String,
}

#[derive(Default)]
pub struct Tally {
    pub n_ok: AtomicU64,
    pub failed: Mutex<Vec<Failed>>,
    next: AtomicU64,
    /// POSTs that were answered with 200, which must have arrived exactly once.
    posted: Mutex<Vec<u64>>,
}

impl Tally {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn judge(&self, number: u64, is_post: bool, answer: Option<String>) -> bool {
        match answer {
            Some(answer) if answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("n={number}")) => {
                self.n_ok.fetch_add(1, Ordering::Relaxed);
                if is_post {
                    self.posted.lock().unwrap().push(number);
                }
                true
            }
            other => {
                let what = other.unwrap_or_else(|| "closed without an answer".to_owned());
                self.failed.lock().unwrap().push(Failed {
                    at: Instant::now(),
                    what,
                });
                false
            }
        }
    }
}

/// Requests on one connection for as long as it lasts; every fourth is a POST.
pub fn keep_alive(door: SocketAddr, has_posts: bool, tally: &Tally, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = dial(door);
        let mut buffer = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let number = tally.number();
            let is_post = has_posts && number.is_multiple_of(4);
            let request = match is_post {
                true => format!("POST /n/{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"),
                false => format!("GET /n/{number} HTTP/1.1\r\nHost: h\r\n\r\n"),
            };
            let answer = stream
                .write_all(request.as_bytes())
                .ok()
                .and_then(|()| read_message(&mut stream, &mut buffer));
            let says_close = answer
                .as_ref()
                .is_some_and(|answer| answer.contains("\r\nConnection: close\r\n"));
            if !tally.judge(number, is_post, answer) || says_close {
                break;
            }
        }
    }
}

/// A new connection for every request.
pub fn one_by_one(door: SocketAddr, tally: &Tally, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let number = tally.number();
        let answer = TcpStream::connect(door).ok().and_then(|mut stream| {
            stream.set_read_timeout(Some(harness::PATIENCE)).ok()?;
            let request = format!("GET /n/{number} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).ok()?;
            read_message(&mut stream, &mut Vec::new())
        });
        tally.judge(number, false, answer);
    }
}

struct Program {
    child: Child,
    admin: SocketAddr,
}

impl Program {
    fn start(dir: &Path) -> Program {
        let admin: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let child = Command::new(env!("CARGO_BIN_EXE_anynode"))
            .args(["up", "--dns", "none", "--admin", &admin.to_string()])
            .arg("--services")
            .arg(dir.join("services.yml"))
            .arg("--data-dir")
            .arg(dir.join("data"))
            .env("ANYNODE_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let program = Program { child, admin };
        wait_until("the program to be up", || TcpStream::connect(admin).is_ok());
        // Its sockets come first, its answers once everything else stands.
        assert!(program.metrics().contains("anynode_config_revision 1"));
        program
    }

    fn metrics(&self) -> String {
        let mut stream = dial(self.admin);
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        String::from_utf8(harness::read_to_end(&stream)).unwrap()
    }

    /// The sum of a metric over its series that have all of `labels`.
    fn sum(metrics: &str, name: &str, labels: &str) -> u64 {
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(labels));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }

    fn n_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }

    fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Services {
    path: PathBuf,
    tcp: u16,
    http: u16,
    n_written: u64,
}

impl Services {
    fn write(&mut self, endpoints: &[&Endpoint]) {
        let list = endpoints
            .iter()
            .map(|endpoint| format!("\"{}\"", endpoint.addr))
            .collect::<Vec<_>>()
            .join(", ");
        self.n_written += 1;
        let text = format!(
            "# {}\nservices:\n  t: {{ publish: [\"{}:80\"], stop_grace: 500ms, endpoints: [{list}] }}\n  \
             h: {{ mode: http, publish: [\"{}:80\"], stop_grace: 500ms, endpoints: [{list}] }}\n",
            self.n_written, self.tcp, self.http
        );
        if self.n_written.is_multiple_of(2) {
            std::fs::write(&self.path, text).unwrap();
        } else {
            let aside = self.path.with_extension("new");
            std::fs::write(&aside, text).unwrap();
            std::fs::rename(aside, &self.path).unwrap();
        }
    }
}

#[test]
fn nobody_notices_that_everything_changes() {
    let seconds = std::env::var("ANYNODE_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(8);
    let dir = tempfile::tempdir().unwrap();
    let posts: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    let endpoints: Vec<Endpoint> = (0..6).map(|_| Endpoint::start(&posts)).collect();
    let mut services = Services {
        path: dir.path().join("services.yml"),
        tcp: free_port(),
        http: free_port(),
        n_written: 0,
    };
    services.write(&endpoints.iter().collect::<Vec<_>>());
    let program = Program::start(dir.path());
    let door = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let (tcp, http) = (door(services.tcp), door(services.http));
    let stop = AtomicBool::new(false);
    let (by_connection, by_request) = (Tally::default(), Tally::default());
    let mut kills: Vec<Instant> = Vec::new();
    let (mut files_before, mut memory_before) = (0, 0);

    std::thread::scope(|scope| {
        for _ in 0..LOADERS {
            scope.spawn(|| keep_alive(http, true, &by_request, &stop));
            scope.spawn(|| one_by_one(http, &by_request, &stop));
            scope.spawn(|| one_by_one(tcp, &by_connection, &stop));
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut round = 0usize;
        while Instant::now() < until {
            round += 1;
            // One endpoint is always there; the others come and go by the bits of a counter.
            let chosen: Vec<&Endpoint> = endpoints
                .iter()
                .enumerate()
                .filter(|(i, _)| *i == 0 || !(round >> (i - 1)).is_multiple_of(2))
                .map(|(_, e)| e)
                .collect();
            services.write(&chosen);
            std::thread::sleep(Duration::from_millis(100));
            if round.is_multiple_of(7) {
                let victim = &endpoints[1 + round % (endpoints.len() - 1)];
                kills.push(Instant::now());
                victim.kill();
                std::thread::sleep(Duration::from_millis(60));
                victim.revive();
            }
            if round == 20 {
                (files_before, memory_before) = (program.n_files(), program.resident_kb());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });

    // http mode: a GET is tried elsewhere, so only a POST may fail, and only on a killed endpoint. tcp mode: a connection
    // that stood when its endpoint was killed is cut. Each loader has one in flight at a time.
    for (name, tally) in [("tcp", &by_connection), ("http", &by_request)] {
        let failed = tally.failed.lock().unwrap();
        println!(
            "{name}: {} requests, {} failed, {} kills",
            tally.n_ok.load(Ordering::Relaxed),
            failed.len(),
            kills.len()
        );
        assert!(tally.n_ok.load(Ordering::Relaxed) > 500);
        for failure in failed.iter() {
            let is_excused = kills
                .iter()
                .any(|kill| (*kill..*kill + EXCUSED_FOR).contains(&failure.at));
            assert!(is_excused, "{name}: {}", failure.what);
        }
        assert!(failed.len() <= kills.len() * LOADERS, "{name}");
    }
    for failure in by_request.failed.lock().unwrap().iter() {
        assert!(failure.what.starts_with("HTTP/1.1 502 "), "http: {}", failure.what);
    }
    let posts = posts.lock().unwrap();
    for number in by_request.posted.lock().unwrap().iter() {
        assert_eq!(posts.get(number), Some(&1), "POST {number}");
    }
    assert!(posts.values().all(|count| *count == 1), "a POST arrived twice");

    let is_settled = || {
        let metrics = program.metrics();
        ["t", "h"].iter().all(|service| {
            let label = format!("service=\"{service}\"");
            let total = Program::sum(&metrics, "anynode_connections_total", &label);
            let closed = Program::sum(&metrics, "anynode_connections_closed_total", &label);
            let active = Program::sum(&metrics, "anynode_connections_active", &label);
            active == 0 && total == closed && total > 0
        })
    };
    wait_until("every connection to be closed for one reason", is_settled);
    if files_before > 0 {
        // What was open under load is an upper bound of what may be open without.
        wait_until("descriptors to be given back", || program.n_files() <= files_before);
        let memory = program.resident_kb();
        println!(
            "memory: {memory_before} kB early, {memory} kB at the end; {} descriptors",
            program.n_files()
        );
        assert!(
            memory < memory_before + 20_000,
            "{memory_before} kB grew to {memory} kB"
        );
    }
}

const LOADERS: usize = 3;
/// A kill is noticed within this; the clients of the machine's two cores may be slow to see it.
const EXCUSED_FOR: Duration = Duration::from_millis(500);

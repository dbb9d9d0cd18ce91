//! A source that goes on sending while the other side takes nothing: nobody is woken for it, and nothing of it is lost. In
//! both modes; the worker's switches are counted, as the kernel does.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::harness::{self, Origin, dial, free_port, read_to_end, reset, wait_until};

/// One worker, one service, and the connections that its endpoint has.
struct Stage {
    child: Child,
    door: SocketAddr,
    admin: SocketAddr,
    accepted: Receiver<TcpStream>,
    _origin: Origin,
    _dir: tempfile::TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stage {
    fn new(mode: &str) -> Stage {
        let (sender, accepted) = channel();
        let origin = Origin::start(move |stream| {
            stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
            stream.set_write_timeout(Some(harness::PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            // An error means that the test is over.
            let _ = sender.send(stream);
        });
        let dir = tempfile::tempdir().unwrap();
        let services = dir.path().join("services.yml");
        let door: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            "services:\n  web:\n    mode: {mode}\n    publish: [\"{door}:80\"]\n    endpoints: [\"{}\"]\n",
            origin.addr
        );
        std::fs::write(&services, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_anynode"))
            .args(["up", "--dns", "none", "--admin", &admin.to_string()])
            .arg("--services")
            .arg(&services)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "warn")
            .env("ANYNODE_WORKERS", "1")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let stage = Stage {
            child,
            door,
            admin,
            accepted,
            _origin: origin,
            _dir: dir,
        };
        wait_until("the port", || TcpStream::connect(door).is_ok());
        if mode == "tcp" {
            drop(stage.endpoint());
        }
        stage
    }

    fn endpoint(&self) -> TcpStream {
        self.accepted.recv_timeout(harness::PATIENCE).unwrap()
    }

    /// Bytes that clients were sent.
    fn n_out(&self) -> usize {
        let mut stream = dial(self.admin);
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        let text = String::from_utf8(read_to_end(&stream)).unwrap();
        let of_clients = |line: &&str| line.starts_with("anynode_bytes_total{") && line.contains("direction=\"out\"");
        let values = text.lines().filter(of_clients);
        values
            .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
            .sum()
    }

    /// How often the worker has slept.
    fn n_sleeps(&self) -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of_worker = |path: std::path::PathBuf| {
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            name.starts_with("worker-").then(|| line.trim().parse::<u64>().unwrap())
        };
        let mut sleeps = threads.filter_map(|thread| of_worker(thread.unwrap().path()));
        sleeps.next().expect("a thread of that name")
    }

    /// Sends until the client, which reads nothing, is sent no more. Returns how much was sent.
    fn block(&self, endpoint: &mut TcpStream, head: &[u8]) -> usize {
        let before = self.n_out();
        endpoint.write_all(head).unwrap();
        let mut n_sent = 0;
        loop {
            endpoint.write_all(&pattern(n_sent, CHUNK)).unwrap();
            n_sent += CHUNK;
            assert!(n_sent < MOST, "the client is sent as much as there is");
            let since = Instant::now();
            while self.n_out() < before + n_sent {
                if since.elapsed() > Duration::from_millis(300) {
                    return n_sent;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

const CHUNK: usize = 256 * 1024;
const MOST: usize = 64 << 20;

/// A prime number long, so that bytes that were lost or swapped show.
fn pattern(at: usize, n: usize) -> Vec<u8> {
    (at..at + n).map(|at| (at % 65_521 % 251) as u8).collect()
}

/// Sends a little many times. Returns how often the worker slept meanwhile, and how much was sent by then.
fn drip(stage: &Stage, endpoint: &mut TcpStream, mut n_sent: usize) -> (u64, usize) {
    let before = stage.n_sleeps();
    for _ in 0..N_DRIPS {
        endpoint.write_all(&pattern(n_sent, 10)).unwrap();
        n_sent += 10;
        std::thread::sleep(Duration::from_millis(1));
    }
    (stage.n_sleeps() - before, n_sent)
}

const N_DRIPS: u64 = 300;

fn read(client: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn nobody_is_woken_for_what_a_tcp_client_does_not_take() {
    let stage = Stage::new("tcp");
    let mut client = dial(stage.door);
    let mut endpoint = stage.endpoint();
    let n_sent = stage.block(&mut endpoint, b"");
    let (n_sleeps, n_sent) = drip(&stage, &mut endpoint, n_sent);
    println!("{n_sleeps} sleeps while {N_DRIPS} segments came");
    // It wakes once a second by itself, and now and then for what the client's kernel says.
    assert!(n_sleeps < N_DRIPS / 10, "{n_sleeps} of {N_DRIPS}");
    // The other direction goes on.
    client.write_all(b"stop").unwrap();
    assert_eq!(read(&mut endpoint, 4), b"stop");
    endpoint.write_all(b"the end").unwrap();
    drop(endpoint);
    assert!(
        read(&mut client, n_sent) == pattern(0, n_sent),
        "what came is not what was sent"
    );
    assert_eq!(read_to_end(&client), b"the end");
}

#[test]
fn a_source_that_was_not_heard_is_heard_again() {
    let stage = Stage::new("tcp");
    let mut client = dial(stage.door);
    let mut endpoint = stage.endpoint();
    for round in 0..3 {
        let n_sent = stage.block(&mut endpoint, b"");
        assert!(read(&mut client, n_sent) == pattern(0, n_sent), "round {round}");
        for _ in 0..3 {
            client.write_all(b"ping").unwrap();
            assert_eq!(read(&mut endpoint, 4), b"ping");
            endpoint.write_all(b"pong").unwrap();
            assert_eq!(read(&mut client, 4), b"pong");
        }
    }
}

/// Both directions wait, and share their sockets.
#[test]
fn a_direction_goes_on_while_the_other_one_is_stuck() {
    let stage = Stage::new("tcp");
    let mut client = dial(stage.door);
    let mut endpoint = stage.endpoint();
    client.set_nonblocking(true).unwrap();
    let mut n_up = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        match client.write(&pattern(n_up, 16 * 1024)) {
            Ok(n) => (n_up, last) = (n_up + n, Instant::now()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    let n_down = stage.block(&mut endpoint, b"");
    assert!(
        read(&mut endpoint, n_up) == pattern(0, n_up),
        "what came is not what was sent"
    );
    client.set_nonblocking(false).unwrap();
    assert!(
        read(&mut client, n_down) == pattern(0, n_down),
        "what came is not what was sent"
    );
}

#[test]
fn a_reset_of_a_source_that_is_not_heard_is_passed_on() {
    let stage = Stage::new("tcp");
    let mut client = dial(stage.door);
    let mut endpoint = stage.endpoint();
    stage.block(&mut endpoint, b"");
    reset(endpoint);
    let error = std::io::copy(&mut client, &mut std::io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn nobody_is_woken_for_what_an_http_client_does_not_take() {
    let stage = Stage::new("http");
    let mut client = dial(stage.door);
    let request = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    client.write_all(request).unwrap();
    let mut endpoint = stage.endpoint();
    let mut asked = [0; 4096];
    assert!(endpoint.read(&mut asked).unwrap() > 0);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {MOST}\r\n\r\n");
    let n_sent = stage.block(&mut endpoint, head.as_bytes());
    let (n_sleeps, n_sent) = drip(&stage, &mut endpoint, n_sent);
    println!("{n_sleeps} sleeps while {N_DRIPS} segments came");
    assert!(n_sleeps < N_DRIPS / 10, "{n_sleeps} of {N_DRIPS}");
    let rest = std::thread::spawn(move || {
        endpoint.write_all(&pattern(n_sent, MOST - n_sent)).unwrap();
        endpoint
    });
    let mut byte = [0];
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(
        read(&mut client, MOST) == pattern(0, MOST),
        "what came is not what was sent"
    );
    let mut endpoint = rest.join().unwrap();
    // Its connection is kept, and used again.
    client.write_all(request).unwrap();
    assert!(endpoint.read(&mut asked).unwrap() > 0);
    endpoint
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nagain")
        .unwrap();
    let answer = String::from_utf8(read_to_end_of(&mut client)).unwrap();
    assert!(answer.ends_with("\r\n\r\nagain"), "{answer}");
}

/// What comes until the word that is waited for.
fn read_to_end_of(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !bytes.ends_with(b"again") {
        let n = client.read(&mut buffer).unwrap();
        assert!(n > 0, "an end before the answer");
        bytes.extend(&buffer[..n]);
    }
    bytes
}

//! Random byte streams, both ways at once, through both modes: random chunk sizes and pauses, either side ending first,
//! resets, slow readers. What arrives is what was sent, byte by byte; an end comes after the last byte and never before;
//! a reset never looks like an end. ANYNODE_SEED repeats a run, ANYNODE_SOAK_SECONDS makes it longer.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use anynode::model::Mode;
use anynode::proxy::ProxyConfig;

use crate::harness::{self, Node, Origin, dial, door, service};

/// The bytes of one direction: known to both ends from its seed and the position. They repeat after a prime number, so
/// that bytes that were lost, doubled or swapped in any likely unit show.
struct Pattern {
    at: usize,
}

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..65_521).map(|_| rng.u8(..)).collect()
});

impl Pattern {
    fn new(seed: u64) -> Pattern {
        Pattern {
            at: (seed % BYTES.len() as u64) as usize,
        }
    }

    fn next(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(n);
        while bytes.len() < n {
            let run = (BYTES.len() - self.at).min(n - bytes.len());
            bytes.extend_from_slice(&BYTES[self.at..self.at + run]);
            self.at = (self.at + run) % BYTES.len();
        }
        bytes
    }
}

/// What one connection does, known to both ends from its first bytes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    /// Bytes from the client, and to it.
    n_in: u64,
    n_out: u64,
    /// The client resets after so many bytes sent, if this is less than `n_in`.
    reset_at: u64,
}

impl Plan {
    fn random(rng: &mut fastrand::Rng) -> Plan {
        let size = |rng: &mut fastrand::Rng| match rng.u8(..4) {
            0 => rng.u64(..64),
            1 => rng.u64(..20_000),
            2 => rng.u64(..400_000),
            _ => rng.u64(..2_000_000),
        };
        let (seed, n_in, n_out) = (rng.u64(..), size(rng), size(rng));
        Plan {
            seed,
            n_in,
            // Who has next to no buffer takes a round trip for every few bytes.
            n_out: if Plan::has_small_buffer(seed) {
                n_out % 30_000
            } else {
                n_out
            },
            reset_at: if rng.u8(..8) == 0 { rng.u64(..=n_in) } else { u64::MAX },
        }
    }

    fn has_small_buffer(seed: u64) -> bool {
        seed.is_multiple_of(5)
    }

    fn is_reset(&self) -> bool {
        self.reset_at <= self.n_in
    }

    fn encode(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes
            .chunks_mut(8)
            .zip([self.seed, self.n_in, self.n_out, self.reset_at])
        {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: [u8; 32]) -> Plan {
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|j| bytes[i * 8 + j]));
        Plan {
            seed: word(0),
            n_in: word(1),
            n_out: word(2),
            reset_at: word(3),
        }
    }
}

const PARK_AFTER_MS: u64 = 10;

fn send(mut stream: &TcpStream, seed: u64, n_bytes: u64) -> std::io::Result<()> {
    let (mut pattern, mut rng) = (Pattern::new(seed), fastrand::Rng::with_seed(seed ^ 1));
    let mut left = n_bytes;
    while left > 0 {
        let most = if rng.bool() { 1 << 8 } else { 1 << 18 };
        let n = rng.u64(1..=most).min(left);
        stream.write_all(&pattern.next(n as usize))?;
        left -= n;
        if rng.u8(..32) == 0 {
            // Mostly short, and now and then long enough for the connection to be parked.
            let longest = if rng.u8(..8) == 0 { 4 * PARK_AFTER_MS } else { 4 };
            std::thread::sleep(Duration::from_millis(rng.u64(..longest)));
        }
    }
    Ok(())
}

/// Reads to the end. Returns the number of bytes, all of them as they should be, or the error that ended it.
fn receive(mut stream: &TcpStream, seed: u64) -> (u64, std::io::Result<()>) {
    let (mut pattern, mut rng) = (Pattern::new(seed), fastrand::Rng::with_seed(seed ^ 2));
    let is_slow = rng.u8(..4) == 0;
    let mut buffer = vec![0; 1 << 17];
    let mut received = 0;
    loop {
        let most = if is_slow { 1 << 10 } else { buffer.len() };
        match stream.read(&mut buffer[..rng.usize(1..=most)]) {
            Ok(0) => return (received, Ok(())),
            Ok(n) => {
                assert!(pattern.next(n) == buffer[..n], "wrong bytes after {received}");
                received += n as u64;
            }
            Err(error) => return (received, Err(error)),
        }
        if is_slow && rng.u8(..64) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The other end. What it finds wrong is left in `FAULTS`, since nobody waits for its thread.
fn serve(mut stream: TcpStream) {
    let mut bytes = [0; 32];
    if stream.read_exact(&mut bytes).is_err() {
        return;
    }
    let plan = Plan::decode(bytes);
    let _ = stream.set_read_timeout(Some(harness::PATIENCE));
    let (sent, (received, end)) = std::thread::scope(|scope| {
        let sending =
            scope.spawn(|| send(&stream, plan.seed + 1, plan.n_out).and_then(|()| stream.shutdown(Shutdown::Write)));
        let received = receive(&stream, plan.seed);
        (sending.join().unwrap(), received)
    });
    let fault = match end {
        // The kernel reports a reset once: if the sender was told, the receiver only sees an end.
        Ok(()) if sent.is_err() && plan.is_reset() => None,
        Ok(()) if received == plan.n_in => None,
        Ok(()) => Some(format!("an end after {received} bytes")),
        Err(error) if plan.is_reset() && error.kind() != ErrorKind::WouldBlock => None,
        Err(error) => Some(format!("{error} after {received} bytes")),
    };
    FAULTS
        .lock()
        .unwrap()
        .extend(fault.map(|fault| format!("{fault}: {plan:?}")));
}

static FAULTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn drive(door: SocketAddr, plan: Plan) {
    let mut stream = dial(door);
    if Plan::has_small_buffer(plan.seed) {
        let _ = socket2::SockRef::from(&stream).set_recv_buffer_size(4096);
    }
    stream.write_all(&plan.encode()).unwrap();
    if plan.is_reset() {
        let _ = send(&stream, plan.seed, plan.reset_at);
        return harness::reset(stream);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send(&stream, plan.seed, plan.n_in).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let (received, end) = receive(&stream, plan.seed + 1);
        end.unwrap_or_else(|error| panic!("{error} after {received} for {plan:?}"));
        assert_eq!(received, plan.n_out, "an end before the last byte: {plan:?}");
    });
}

fn seconds() -> u64 {
    std::env::var("ANYNODE_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5)
}

fn seed() -> u64 {
    let seed = std::env::var("ANYNODE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("ANYNODE_SEED={seed}");
    seed
}

#[test]
fn what_arrives_is_what_was_sent() {
    let origins = [Origin::start(serve), Origin::start(serve)];
    let node = Node::start_with(ProxyConfig {
        n_workers: 2,
        park_after: Duration::from_millis(PARK_AFTER_MS),
        ..ProxyConfig::default()
    });
    let web = service("web", &origins.each_ref().map(|origin| origin.addr));
    node.apply(&web);
    let (seed, until) = (seed(), Instant::now() + Duration::from_secs(seconds()));
    let (n_connections, n_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for i in 0..12 {
            let (web, n_connections, n_bytes) = (&web, &n_connections, &n_bytes);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed + i);
                while Instant::now() < until {
                    let plan = Plan::random(&mut rng);
                    drive(door(web), plan);
                    n_connections.fetch_add(1, Ordering::Relaxed);
                    n_bytes.fetch_add(plan.n_in + plan.n_out, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{n_connections:?} connections, {n_bytes:?} bytes");
    let faults = FAULTS.lock().unwrap();
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(n_connections.into_inner() > 20);
}

/// A request's body, framed one way or the other, comes back framed the other way.
fn serve_http(mut stream: TcpStream) {
    let mut buffered = Vec::new();
    while let Some((head, body)) = read_message(&mut stream, &mut buffered) {
        let is_chunked = head.contains("Transfer-Encoding: chunked");
        let answer = frame("HTTP/1.1 200 OK\r\n", &body, !is_chunked);
        let (mut at, mut rng) = (0, fastrand::Rng::with_seed(body.len() as u64));
        while at < answer.len() {
            let n = rng.usize(1..200_000).min(answer.len() - at);
            if stream.write_all(&answer[at..at + n]).is_err() {
                return;
            }
            at += n;
        }
    }
}

fn frame(start: &str, body: &[u8], is_chunked: bool) -> Vec<u8> {
    let mut bytes = start.as_bytes().to_vec();
    if !is_chunked {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        return bytes;
    }
    bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    let mut rng = fastrand::Rng::with_seed(body.len() as u64 + 7);
    let mut rest = body;
    while !rest.is_empty() {
        let n = rng.usize(1..=rest.len().min(100_000));
        bytes.extend_from_slice(format!("{n:x}\r\n").as_bytes());
        bytes.extend_from_slice(&rest[..n]);
        bytes.extend_from_slice(b"\r\n");
        rest = &rest[n..];
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Reads one message; chunks are joined. `None` at the end of the connection.
fn read_message(stream: &mut TcpStream, buffered: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let mut fill = |buffered: &mut Vec<u8>| {
        let mut chunk = [0; 1 << 16];
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => {
                buffered.extend_from_slice(&chunk[..n]);
                Some(())
            }
            _ => None,
        }
    };
    let end = loop {
        match buffered.windows(4).position(|window| window == b"\r\n\r\n") {
            Some(at) => break at + 4,
            None => fill(buffered)?,
        }
    };
    let head = String::from_utf8_lossy(&buffered[..end]).into_owned();
    buffered.drain(..end);
    let mut body = Vec::new();
    let mut take = |buffered: &mut Vec<u8>, n: usize| {
        while buffered.len() < n {
            fill(buffered)?;
        }
        Some(buffered.drain(..n).collect::<Vec<u8>>())
    };
    if let Some(n) = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
    {
        return Some((head, take(buffered, n)?));
    }
    if !head.contains("Transfer-Encoding: chunked") {
        return Some((head, body));
    }
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(take(buffered, 1)?);
        }
        let n = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
        body.extend(take(buffered, n)?);
        assert_eq!(take(buffered, 2)?, b"\r\n");
        if n == 0 {
            return Some((head, body));
        }
    }
}

#[test]
fn bodies_in_any_framing_come_back_as_they_were() {
    let origins = [Origin::start(serve_http), Origin::start(serve_http)];
    let node = Node::start();
    let mut web = service("web", &origins.each_ref().map(|origin| origin.addr));
    web.mode = Mode::Http;
    node.apply(&web);
    let (seed, until) = (seed(), Instant::now() + Duration::from_secs(seconds()));
    let n_requests = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for i in 0..6 {
            let (web, n_requests) = (&web, &n_requests);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed + i);
                let mut stream = dial(door(web));
                let mut buffered = Vec::new();
                while Instant::now() < until {
                    let n = if rng.bool() {
                        rng.usize(..2000)
                    } else {
                        rng.usize(..1_500_000)
                    };
                    let body = Pattern::new(rng.u64(..)).next(n);
                    let request = frame("POST / HTTP/1.1\r\nHost: web\r\n", &body, rng.bool());
                    let mut writing = stream.try_clone().unwrap();
                    let mut rng_out = rng.fork();
                    let (head, answer) = std::thread::scope(|inner| {
                        inner.spawn(move || {
                            let mut rest = &request[..];
                            while !rest.is_empty() {
                                let n = rng_out.usize(1..100_000).min(rest.len());
                                writing.write_all(&rest[..n]).unwrap();
                                rest = &rest[n..];
                            }
                        });
                        read_message(&mut stream, &mut buffered).unwrap()
                    });
                    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                    assert!(answer == body, "{} bytes became {}", body.len(), answer.len());
                    n_requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{n_requests:?} requests");
    assert!(n_requests.into_inner() > 10);
}

//! Hostile clients: at each door, in each manner that costs them little.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use super::load::connect;
use super::stage::{
    ADMIN, DNS, FILE_ADMIN, FILE_DNS, HOSTILE, HTTP, NAMES, NODE, ORIGIN, Stage, Until, VICTIM, WEB, enter,
};
use crate::crowded::{framed, query};
use crate::harness::reset;

/// What a listener expects to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    Http,
    Names,
}

/// Where a party goes, and whence.
#[derive(Debug, Clone)]
pub struct Door {
    netns: PathBuf,
    from: Option<IpAddr>,
    to: SocketAddr,
    words: Words,
}

/// What it does there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Silent,
    Half,
    /// A byte now and then.
    Slow,
    /// Asks for much and takes none of it.
    Unread,
    /// Goes in the middle of a body.
    Reset,
    Damaged,
    /// Comes and goes.
    Flood,
}

pub const MANNERS: [Manner; 7] = [
    Manner::Silent,
    Manner::Half,
    Manner::Slow,
    Manner::Unread,
    Manner::Reset,
    Manner::Damaged,
    Manner::Flood,
];

/// The doors of both nodes, from addresses of clients and from inside a task.
pub fn doors(stage: &Stage, rng: &mut Rng) -> Vec<Door> {
    let outside = |to, words| Door {
        netns: stage.host(),
        from: None,
        to,
        words,
    };
    let client = |to, rng: &mut Rng| Door {
        from: Some(IpAddr::V4(HOSTILE[rng.usize(..HOSTILE.len())])),
        ..outside(to, Words::Http)
    };
    let task = |to, words| Door {
        netns: stage.villain.clone(),
        ..outside(to, words)
    };
    vec![
        client(WEB, rng),
        client(HTTP, rng),
        client(VICTIM, rng),
        client(ORIGIN, rng),
        outside(ADMIN, Words::Http),
        outside(FILE_ADMIN, Words::Http),
        outside(DNS, Words::Names),
        outside(FILE_DNS, Words::Names),
        task(NAMES, Words::Names),
        task(stage.vip, Words::Http),
        task(WEB, Words::Http),
        task(SocketAddr::new(IpAddr::V4(NODE), 9), Words::Http),
    ]
}

/// Names inside a task, asked by that task.
pub fn names_inside(stage: &Stage) -> Door {
    Door {
        netns: stage.villain.clone(),
        from: None,
        to: NAMES,
        words: Words::Names,
    }
}

impl Words {
    fn whole(self) -> Vec<u8> {
        match self {
            Words::Http => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            Words::Names => framed(&query(1, "elsewhere.example")),
        }
    }

    fn much(self) -> Vec<u8> {
        match self {
            Words::Http => b"GET /?bytes=300000 HTTP/1.1\r\nHost: x\r\n\r\n"
                .repeat(10)
                .into_iter()
                .chain(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50))
                .collect(),
            Words::Names => framed(&query(1, "elsewhere.example"))
                .into_iter()
                .chain(framed(&query(2, "web")).repeat(200))
                .collect(),
        }
    }
}

const CONNECT: Duration = Duration::from_secs(5);

/// One that does not wait for its peer; `None` where none can be had just now.
fn open(door: &Door, bytes: &[u8]) -> Option<TcpStream> {
    let mut stream = connect(door.from, door.to, CONNECT).ok()?;
    stream.set_nonblocking(true).ok()?;
    let _ = stream.write(bytes);
    Some(stream)
}

/// Until the end; then all of its connections are gone.
pub fn misbehave(door: &Door, manner: Manner, n: usize, rng: &mut Rng, until: Until) {
    if enter(&door.netns).is_err() {
        return;
    }
    let whole = door.words.whole();
    match manner {
        Manner::Silent => hold(door, n, &[], until),
        Manner::Half => hold(door, n, &whole[..whole.len() / 2], until),
        // Each makes an endpoint work until buffers are full.
        Manner::Unread => hold(door, n.min(60), &door.words.much(), until),
        Manner::Slow => trickle(door, n, &whole, until),
        Manner::Reset => come_and_go(door, until, |stream| {
            let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n";
            let _ = stream.write_all(head);
            let _ = stream.write_all(&[b'x'; 1000]);
            std::thread::sleep(Duration::from_millis(5));
            true
        }),
        Manner::Damaged => come_and_go(door, until, |stream| {
            let mut bytes = [&whole[..], &whole].concat();
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(..bytes.len());
                match rng.u8(..3) {
                    0 => bytes[at] = rng.u8(..),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, rng.u8(..)),
                }
            }
            let _ = stream.write_all(&bytes);
            let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
            let _ = stream.read(&mut [0; 4096]);
            rng.bool()
        }),
        Manner::Flood => come_and_go(door, until, |_| rng.bool()),
    }
}

/// Holds so many that have said `bytes`, and replaces those that were ended.
fn hold(door: &Door, n: usize, bytes: &[u8], until: Until) {
    let mut held: Vec<TcpStream> = Vec::new();
    while !until.is_over() {
        held.retain(is_open);
        // Some at a time: the door is to be crowded, and the machine not to be busy with nothing else.
        for _ in 0..(n - held.len()).min(50) {
            if until.is_over() {
                break;
            }
            held.extend(open(door, bytes));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_open(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(n) => n > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn trickle(door: &Door, n: usize, whole: &[u8], until: Until) {
    let mut held: Vec<(TcpStream, usize)> = Vec::new();
    while !until.is_over() {
        held.retain(|(stream, _)| is_open(stream));
        for _ in 0..(n - held.len()).min(50) {
            held.extend(open(door, &[]).map(|stream| (stream, 0)));
        }
        for (stream, at) in &mut held {
            // Never the last one.
            if *at + 1 < whole.len() && stream.write(&whole[*at..=*at]).is_ok() {
                *at += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One after another; `act` says whether it ends by a reset.
fn come_and_go(door: &Door, until: Until, mut act: impl FnMut(&mut TcpStream) -> bool) {
    while !until.is_over() {
        if let Ok(mut stream) = connect(door.from, door.to, CONNECT)
            && act(&mut stream)
        {
            reset(stream);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Queries that nobody waits for: for our names, for others' and for nothing.
pub fn datagrams(door: &Door, rng: &mut Rng, until: Until) {
    if enter(&door.netns).is_err() {
        return;
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    while !until.is_over() {
        for _ in 0..20 {
            let mut bytes = query(rng.u16(..), ["web", "elsewhere.example", "tasks.web"][rng.usize(..3)]);
            if rng.u8(..4) == 0 {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            // A full queue is what it wants.
            let _ = socket.send_to(&bytes, door.to);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Connections to the API that say `bytes`, and no more.
fn hold_api(stage: &Stage, n: usize, bytes: &[u8], until: Until) {
    let mut held: Vec<UnixStream> = Vec::new();
    while !until.is_over() {
        held.retain(|stream| {
            let mut byte = [std::mem::MaybeUninit::new(0)];
            match socket2::SockRef::from(stream).peek(&mut byte) {
                Ok(n) => n > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            }
        });
        for _ in 0..(n - held.len()).min(50) {
            let Ok(mut stream) = UnixStream::connect(stage.own.socket()) else {
                break;
            };
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(bytes);
            held.push(stream);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn at_the_api(stage: &Stage, rng: &mut Rng, until: Until) {
    let infos = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let n = rng.usize(100..700);
    match rng.u8(..4) {
        0 => hold_api(stage, n, b"", until),
        1 => hold_api(stage, n, b"GET /_pi", until),
        2 => hold_api(stage, n.min(40), &infos, until),
        _ => {
            let long = b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n{";
            hold_api(stage, n, long, until);
        }
    }
}

/// Streams without end that nobody reads.
pub fn followers(stage: &Stage, rng: &mut Rng, until: Until) {
    let path = ["/events", "/services/web/logs?follow=1&stdout=1&stderr=1"][rng.usize(..2)];
    let bytes = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    hold_api(stage, rng.usize(50..400), bytes.as_bytes(), until);
}

/// Bodies that mean nothing, and asks for what nobody can have: refused, in words.
pub fn nonsense(stage: &Stage, rng: &mut Rng, until: Until) {
    while !until.is_over() {
        let mut spec = json!({
            "Name": stage.name("nonsense"),
            "TaskTemplate": { "ContainerSpec": { "Image": "nginx:latest" } },
            "Mode": { "Replicated": { "Replicas": 1 } },
        });
        match rng.u8(..5) {
            0 => spec["Mode"]["Replicated"]["Replicas"] = json!(1_000_000_000_u64),
            1 => spec["TaskTemplate"] = json!([rng.u32(..)]),
            2 => spec["EndpointSpec"] = json!({ "Ports": [{ "PublishedPort": "x".repeat(rng.usize(..100_000)) }] }),
            3 => spec["Labels"] = json!({ "anynode.mode": "htp" }),
            _ => spec["Mode"] = json!({ "Replicated": { "Replicas": -1 } }),
        }
        if let Ok((status, said)) = stage.api("POST", "/services/create", &spec) {
            // A long one may find all places for such bodies taken, by others of its user.
            let is_refused = (400..500).contains(&status) || (status == 503 && said.contains("try again"));
            assert!(is_refused && said.contains("message"), "{status} {said}\n{spec}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

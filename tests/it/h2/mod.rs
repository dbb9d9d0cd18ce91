//! Clients that speak HTTP/2, in raw frames: conformance, floods, and what endpoints see of odd requests.

mod floods;
mod frames;
mod odd;
mod spec;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use anynode::model::{Mode, ServiceSpec};

use crate::harness::{Node, Origin, door, read_head, service};

/// An endpoint that speaks HTTP/1.1: `/bytes/N` is answered with so many bytes, `/never` not at all, all else with `HELLO`.
pub struct Endpoint {
    pub origin: Origin,
    /// Whole requests as they were received; of those that were cut off what came.
    seen: Arc<Mutex<Vec<String>>>,
}

pub const HELLO: &[u8] = b"hello, client";

impl Endpoint {
    pub fn start() -> Endpoint {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = seen.clone();
        let origin = Origin::start(move |mut stream| {
            while let Some(head) = read_head(&mut stream) {
                let (body, is_whole) = read_body(&head, &mut stream);
                record.lock().unwrap().push(format!("{head}{body}"));
                if !is_whole || answer(&head, &mut stream).is_err() {
                    return;
                }
            }
        });
        Endpoint { origin, seen }
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// What comes of a body, and whether it is all.
fn read_body(head: &str, stream: &mut TcpStream) -> (String, bool) {
    let head = head.to_ascii_lowercase();
    let mut body = Vec::new();
    let is_whole = match head.contains("\r\ntransfer-encoding: chunked\r\n") {
        true => read_chunks(stream, &mut body).is_ok(),
        false => {
            let length = head.split_once("\r\ncontent-length: ").map_or(0, |(_, rest)| {
                rest.split("\r\n").next().unwrap().parse::<u64>().unwrap()
            });
            let read = Read::by_ref(stream).take(length).read_to_end(&mut body);
            read.is_ok() && body.len() as u64 == length
        }
    };
    (String::from_utf8_lossy(&body).into_owned(), is_whole)
}

/// Reads chunks and trailers as they are, to their end.
fn read_chunks(stream: &mut TcpStream, body: &mut Vec<u8>) -> std::io::Result<()> {
    let mut in_trailers = false;
    loop {
        let from = body.len();
        while !body[from..].ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            body.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&body[from..body.len() - 2]).into_owned();
        if in_trailers {
            match line.is_empty() {
                true => return Ok(()),
                false => continue,
            }
        }
        let size = u64::from_str_radix(&line, 16).unwrap();
        in_trailers = size == 0;
        if size > 0 {
            stream.take(size + 2).read_to_end(body)?;
        }
    }
}

fn answer(head: &str, stream: &mut TcpStream) -> std::io::Result<()> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    if path == "/never" {
        // Until the proxy has enough of it.
        let _ = stream.read(&mut [0]);
        return Err(std::io::ErrorKind::ConnectionReset.into());
    }
    let body = match path.strip_prefix("/bytes/") {
        Some(n) => vec![b'x'; n.parse().unwrap()],
        None => HELLO.to_vec(),
    };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
    match head.starts_with("HEAD ") {
        true => Ok(()),
        false => stream.write_all(&body),
    }
}

/// A service in http mode on a port of its own.
pub fn web(endpoints: &[SocketAddr]) -> ServiceSpec {
    let mut spec = service("web", endpoints);
    spec.mode = Mode::Http;
    spec
}

/// A node with one endpoint behind one door.
pub struct Rig {
    _node: Node,
    pub endpoint: Endpoint,
    pub door: SocketAddr,
}

impl Rig {
    pub fn start() -> Rig {
        let endpoint = Endpoint::start();
        let node = Node::start();
        let spec = web(&[endpoint.origin.addr]);
        node.apply(&spec);
        Rig {
            _node: node,
            endpoint,
            door: door(&spec),
        }
    }
}

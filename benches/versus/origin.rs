//! The origin behind every proxy: three endpoints in one process, which answer small bodies and bulk ones, count what
//! they answered, and refuse a request whose forwarding headers are missing. Not a web server: it reads requests
//! without bodies, one at a time.
//!
//! Paths: `/s/ID` small, `/h/ID` small and needs the forwarding headers, `/b/ID` bulk, `/l/ID` a long stream, `/stats` the
//! counts as JSON.

use std::cell::Cell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const N_ENDPOINTS: usize = 3;
pub const BULK_BYTES: usize = 1 << 20;
/// Of how many bulk bodies a long stream is.
pub const STREAM_PIECES: u64 = 32;

/// How many requests each endpoint answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: [u64; N_ENDPOINTS],
    pub connections: [u64; N_ENDPOINTS],
}

/// The body of the small answer `id` of endpoint number `endpoint`.
pub fn small_body(id: u64, endpoint: usize) -> String {
    format!("answer {id:016} of endpoint {endpoint}, as the origin of anynode's bench says\n")
}

/// What bulk bodies are cut from: noise, so that a piece at a wrong place does not go unseen.
pub fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(BULK_BYTES + BULK_STARTS + 8);
    while bytes.len() < BULK_BYTES + BULK_STARTS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The body of the bulk answer `id`.
pub fn bulk_body(noise: &[u8], id: u64) -> &[u8] {
    let start = (id.wrapping_mul(4099) % BULK_STARTS as u64) as usize;
    &noise[start..start + BULK_BYTES]
}

/// Which bulk bodies, one after the other, are the answer `id` to a request for `path`.
pub fn pieces(path: char, id: u64) -> std::ops::Range<u64> {
    match path {
        'b' => id..id + 1,
        'l' => id * STREAM_PIECES..(id + 1) * STREAM_PIECES,
        _ => 0..0,
    }
}

/// Serves until stdin ends, which is when the parent is gone. Prints the endpoints' addresses, as JSON in one line.
///
/// `ip`: where it listens.
pub fn run(ip: Option<String>) -> anyhow::Result<()> {
    let ip = ip.context("expected an address to listen on")?.parse()?;
    std::thread::spawn(|| {
        // Whatever ends it, it is over.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let origin = Rc::new(Origin {
            noise: noise(),
            requests: Default::default(),
            connections: Default::default(),
        });
        let mut addrs = Vec::new();
        for endpoint in 0..N_ENDPOINTS {
            let listener = listen(ip)?;
            addrs.push(listener.local_addr()?);
            let origin = origin.clone();
            tokio::task::spawn_local(async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    let origin = origin.clone();
                    tokio::task::spawn_local(async move {
                        // A client that goes away is the generator's to notice.
                        let _ = origin.serve(stream, endpoint).await;
                    });
                }
            });
        }
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{}", serde_json::to_string(&addrs)?)?;
        stdout.flush()?;
        std::future::pending::<()>().await;
        Ok(())
    })
}

fn listen(ip: IpAddr) -> anyhow::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(ip, 0))?;
    Ok(socket.listen(4096)?)
}

struct Origin {
    noise: Vec<u8>,
    requests: [Cell<u64>; N_ENDPOINTS],
    connections: [Cell<u64>; N_ENDPOINTS],
}

impl Origin {
    async fn serve(&self, mut stream: TcpStream, endpoint: usize) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut heads = vec![0_u8; HEAD_BYTES_MAX];
        let mut n = 0;
        let mut answer = Vec::new();
        let mut is_first = true;
        loop {
            let request = loop {
                match Request::read(&heads[..n]) {
                    Ok(Some(request)) => break Ok(request),
                    Ok(None) if n == heads.len() => break Err("the head is too long".to_owned()),
                    Ok(None) => {}
                    Err(what) => break Err(what),
                }
                match stream.read(&mut heads[n..]).await? {
                    0 => return Ok(()),
                    more => n += more,
                }
            };
            answer.clear();
            let mut bulk = 0..0;
            let mut is_last = false;
            match request {
                Err(what) => {
                    is_last = true;
                    write_answer(&mut answer, "400 Bad Request", &what, true)?;
                }
                Ok(Request { path: Path::Stats, .. }) => {
                    is_last = true;
                    let counts = Counts {
                        requests: self.requests.each_ref().map(Cell::get),
                        connections: self.connections.each_ref().map(Cell::get),
                    };
                    write_answer(&mut answer, "200 OK", &serde_json::to_string(&counts)?, true)?;
                }
                Ok(Request {
                    path,
                    is_close,
                    n_bytes,
                }) => {
                    heads.copy_within(n_bytes..n, 0);
                    n -= n_bytes;
                    is_last |= is_close;
                    self.requests[endpoint].set(self.requests[endpoint].get() + 1);
                    if std::mem::take(&mut is_first) {
                        self.connections[endpoint].set(self.connections[endpoint].get() + 1);
                    }
                    match path {
                        Path::Bulk(pieces) => {
                            let n_bytes = (pieces.end - pieces.start) * BULK_BYTES as u64;
                            bulk = pieces;
                            write!(answer, "HTTP/1.1 200 OK\r\nContent-Length: {n_bytes}\r\n\r\n")?;
                        }
                        Path::Small(id) => {
                            write_answer(&mut answer, "200 OK", &small_body(id, endpoint), is_close)?;
                        }
                        Path::Stats => {}
                    }
                }
            }
            stream.write_all(&answer).await?;
            for piece in bulk {
                stream.write_all(bulk_body(&self.noise, piece)).await?;
            }
            if is_last {
                return stream.shutdown().await;
            }
        }
    }
}

fn write_answer(to: &mut Vec<u8>, status: &str, body: &str, is_close: bool) -> std::io::Result<()> {
    let close = if is_close { "Connection: close\r\n" } else { "" };
    let n = body.len();
    write!(
        to,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {n}\r\n{close}\r\n{body}"
    )
}

enum Path {
    /// Which pieces.
    Bulk(std::ops::Range<u64>),
    Small(u64),
    Stats,
}

struct Request {
    path: Path,
    is_close: bool,
    n_bytes: usize,
}

impl Request {
    /// `None`: there is more to come. Errors: what is wrong with it.
    fn read(bytes: &[u8]) -> Result<Option<Request>, String> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        let n_bytes = match request.parse(bytes) {
            Ok(httparse::Status::Complete(n)) => n,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let text = request.path.unwrap_or_default();
        let id = |digits: &str| digits.parse().map_err(|_| format!("no such path: {text}"));
        let path = match text.get(..3) {
            Some("/s/") => Path::Small(id(&text[3..])?),
            Some("/b/") => Path::Bulk(pieces('b', id(&text[3..])?)),
            Some("/l/") => Path::Bulk(pieces('l', id(&text[3..])?)),
            Some("/h/") => {
                for (name, values) in FORWARDED {
                    let found = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
                    if found.is_none_or(|found| !values.iter().any(|value| found.value == value.as_bytes())) {
                        return Err(format!("{name}: {values:?} is missing"));
                    }
                }
                Path::Small(id(&text[3..])?)
            }
            _ if text == "/stats" => Path::Stats,
            _ => return Err(format!("no such path: {text}")),
        };
        let is_close = request
            .headers
            .iter()
            .any(|h| h.name.eq_ignore_ascii_case("connection") && h.value.eq_ignore_ascii_case(b"close"));
        Ok(Some(Request {
            path,
            is_close,
            n_bytes,
        }))
    }
}

/// The Host that the generator sends.
pub const HOST: &str = "bench.test";

/// What a proxy in http mode must have added: one of these.
const FORWARDED: [(&str, &[&str]); 3] = [
    ("X-Forwarded-For", &["127.0.0.1", "10.98.1.1", "10.98.3.2"]),
    ("X-Forwarded-Proto", &["http", "https"]),
    ("X-Forwarded-Host", &[HOST]),
];
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
const HEAD_BYTES_MAX: usize = 2048;
/// At how many places of the noise a bulk body may begin.
const BULK_STARTS: usize = 1 << 16;

//! The load that behaves well: each voice asks one thing, again and again, and counts what was not answered and what was
//! answered late.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::stage::{ADMIN, CALM, DNS, FILE_ADMIN, FILE_DNS, HTTP, NAMES, ORIGIN, Stage, WEB, enter};
use crate::crowded::{check_answer, framed, http, query};

/// Then it was not answered.
const PATIENCE: Duration = Duration::from_secs(20);
/// After this it was answered late. A lost datagram is sent again, as resolvers do.
pub const SOON: Duration = Duration::from_secs(1);

type Ask = Box<dyn FnMut() -> io::Result<()> + Send>;

/// What became of one voice's asking.
#[derive(Debug, Default)]
pub struct Heard {
    pub what: String,
    /// How long each answer took, in microseconds.
    pub took: Vec<u32>,
    /// When, since the beginning, and why.
    pub failures: Vec<(Duration, String)>,
}

impl Heard {
    pub fn n_late(&self) -> usize {
        let soon = SOON.as_micros() as u32;
        self.took.iter().filter(|took| **took > soon).count()
    }

    /// The time that this share of all answers took at most.
    pub fn at(&self, share: f64) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let place = (took.len().saturating_sub(1) as f64 * share) as usize;
        Duration::from_micros(took.get(place).copied().unwrap_or(0).into())
    }
}

pub struct Load {
    stop: Arc<AtomicBool>,
    voices: Vec<JoinHandle<Heard>>,
}

impl Load {
    /// All voices, in the networks that they belong to.
    pub fn start(stage: &Stage) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let voices = voices(stage).into_iter().map(|(what, netns, pause, mut ask)| {
            let stop = stop.clone();
            let listen = move || {
                enter(&netns).unwrap();
                let mut heard = Heard {
                    what: what.to_owned(),
                    ..Heard::default()
                };
                let began = Instant::now();
                while !stop.load(Relaxed) {
                    let asked = Instant::now();
                    let answer = ask();
                    heard
                        .took
                        .push(asked.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
                    if let Err(error) = answer {
                        let took = asked.elapsed();
                        heard
                            .failures
                            .push((began.elapsed(), format!("after {took:?}: {error}")));
                    }
                    std::thread::sleep(pause);
                }
                heard
            };
            std::thread::spawn(listen)
        });
        Load {
            voices: voices.collect(),
            stop,
        }
    }

    pub fn stop(self) -> Vec<Heard> {
        self.stop.store(true, Relaxed);
        self.voices.into_iter().map(|voice| voice.join().unwrap()).collect()
    }
}

/// What each asks, where, and how long it waits before it asks again.
fn voices(stage: &Stage) -> Vec<(&'static str, PathBuf, Duration, Ask)> {
    let (host, calm) = (stage.host(), stage.calm.clone());
    let (often, seldom) = (Duration::from_millis(30), Duration::from_secs(1));
    let socket = stage.own.socket();
    let ping = move || {
        let stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        http(stream, "/_ping").map(drop)
    };
    let mut docker = stage.own.docker_command(&["service", "ls"]);
    let docker = move || {
        let out = docker.output()?;
        let (said, wrong) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        let is_given_up = ["reset by peer", "broken pipe", ": EOF"]
            .iter()
            .any(|word| wrong.contains(word));
        match out.status.success() && said.contains("web") {
            true => Ok(()),
            // For `again`: what the command line says of a connection that is closed depends on how far it was.
            false if is_given_up => Err(io::Error::new(io::ErrorKind::ConnectionReset, format!("{out:?}"))),
            false => Err(io::Error::other(format!("{out:?}"))),
        }
    };
    let from_calm = Some(IpAddr::V4(CALM));
    let all: Vec<(&'static str, &PathBuf, Duration, Ask)> = vec![
        ("tcp, new", &host, often, new(from_calm, WEB, "/")),
        ("tcp, kept", &host, often, kept(from_calm, WEB, "/")),
        ("tcp, 200 kB", &host, often * 4, kept(from_calm, WEB, "/?bytes=200000")),
        ("http, new", &host, often, new(from_calm, HTTP, "/")),
        ("http, kept", &host, often, kept(from_calm, HTTP, "/")),
        ("a file's port", &host, often, new(from_calm, ORIGIN, "/")),
        ("/livez", &host, often, again(new(None, ADMIN, "/livez"))),
        (
            "/livez of the file's node",
            &host,
            often * 2,
            again(new(None, FILE_ADMIN, "/livez")),
        ),
        ("/metrics", &host, seldom, again(new(None, ADMIN, "/metrics"))),
        ("/_ping", &host, often, again(Box::new(ping))),
        ("docker service ls", &host, seldom, again(Box::new(docker))),
        ("a name by UDP", &host, often, by_udp(DNS, "web")),
        ("a name by TCP", &host, often, again(by_tcp(DNS, "web"))),
        ("a file's name", &host, often * 2, by_udp(FILE_DNS, "origin")),
        ("a name inside by UDP", &calm, often, by_udp(NAMES, "web")),
        ("a name inside by TCP", &calm, often, by_tcp(NAMES, "web")),
        ("a service from inside", &calm, often, new(None, stage.vip, "/")),
        ("a port from inside", &calm, often, new(None, HTTP, "/")),
    ];
    let all = all.into_iter();
    all.map(|(what, netns, pause, ask)| (what, netns.clone(), pause, ask))
        .collect()
}

/// Asks again where it was reset: who takes all places of a listener is the same party here, since all that there is comes from
/// one user and from loopback, and this may have been the one that was silent for longest. Of 92,563 pings in an hour
/// two were reset twice in a row, and of 2,976 `docker service ls` three ended so.
fn again(mut ask: Ask) -> Ask {
    Box::new(move || {
        let mut answer = ask();
        for _ in 0..2 {
            match &answer {
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                    answer = ask();
                }
                _ => break,
            }
        }
        answer
    })
}

/// From an address of his own, if one is said.
pub fn connect(from: Option<IpAddr>, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    Ok(socket.into())
}

fn new(from: Option<IpAddr>, to: SocketAddr, path: &'static str) -> Ask {
    Box::new(move || http(connect(from, to, PATIENCE)?, path).map(drop))
}

/// On a connection that is kept. One that its peer has ended before it answered anything is no failure: clients open another.
fn kept(from: Option<IpAddr>, to: SocketAddr, path: &'static str) -> Ask {
    let mut stream = None;
    Box::new(move || {
        if let Some(kept) = stream.take()
            && let Some(kept) = exchange(kept, path)?
        {
            stream = Some(kept);
            return Ok(());
        }
        stream = exchange(connect(from, to, PATIENCE)?, path)?;
        match stream {
            Some(_) => Ok(()),
            None => Err(io::Error::other("a new connection ends without an answer")),
        }
    })
}

/// `None`: it ended before anything was answered.
fn exchange(mut stream: TcpStream, path: &str) -> io::Result<Option<TcpStream>> {
    // What cannot be written any more shows in what is read.
    let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    let mut held = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 if held.is_empty() => return Ok(None),
            0 => {
                let text = String::from_utf8_lossy(&held[..held.len().min(200)]).into_owned();
                return Err(io::Error::other(format!(
                    "the end after {} bytes: {text:?}",
                    held.len()
                )));
            }
            n => held.extend_from_slice(&buffer[..n]),
        }
        let Some(end) = held.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&held[..end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        if !head.starts_with("http/1.1 200") {
            return Err(io::Error::other(format!("{head:?} is no good answer")));
        }
        if held.len() >= end + 4 + length {
            return Ok(Some(stream));
        }
    }
}

fn by_udp(dns: SocketAddr, name: &'static str) -> Ask {
    Box::new(move || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(dns)?;
        socket.set_read_timeout(Some(SOON / 2))?;
        let began = Instant::now();
        let mut answer = [0; 512];
        loop {
            let sent = socket.send(&query(7, name));
            match sent.and_then(|_| socket.recv(&mut answer)) {
                Ok(n) => return check_answer(&answer[..n]),
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    })
}

fn by_tcp(dns: SocketAddr, name: &'static str) -> Ask {
    Box::new(move || {
        let mut stream = connect(None, dns, PATIENCE)?;
        stream.write_all(&framed(&query(7, name)))?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        check_answer(&answer)
    })
}

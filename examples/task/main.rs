//! A program for the tests of a cluster: `task serve` is what runs in containers, and behaves as it is told; `task load`
//! makes requests and says what became of each. Not a part of anynode, and nothing to build on.
//!
//! `task serve` answers HTTP on `$HTTP` (0.0.0.0:80) with who it is (its hostname, `$SLOT`, `$NODE`) and who it thinks its
//! client is (`?delay=MS`, `?bytes=N`), and on `$TCP` (0.0.0.0:9000) says its peer on a line and echoes; with `$PROXY` set
//! it only echoes, so that a PROXY header comes back as it was. On port 50051 it answers gRPC (`grpc`), unless `$PORT` or `$TCP` says where it listens. `$ON_TERM`: `graceful` ends as a good program does, `exit`
//! at once, `ignore` never. `/health` answers 200, or what `/health?set=STATUS` said last. A POST with `?id=ID` is a line in
//! a file of its own in the directory `$RECEIVED` before it is answered, so that lost and doubled ones show, also those of
//! tasks that are gone.
//!
//! It is the walkthroughs' program too: `$PORT` is where it listens, with `$APP_VERSION` it answers its version and hostname
//! on `/`, `/file?path=PATH` is what a file of the task holds, with its mode, `/healthz` is `/health`, which answers 500 from the start with `--unhealthy`; and under the name `curl` it is the
//! `curl -f URL` of a health check. `task cat` says what it hears, `task hostname` its host's name.
//! With `$ASKS_ONCE` (`NAME:PORT`) it asks there, once and at once, and ends well if it was answered.

mod grpc;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_curl = std::env::args().next().is_some_and(|name| name.ends_with("curl"));
    // Before all else, and once.
    if let Ok(whom) = std::env::var("ASKS_ONCE") {
        let answered = curl(&[format!("http://{whom}/")]);
        println!("asked {whom}: {answered}");
        std::process::exit(answered);
    }
    match args.first().map(String::as_str) {
        _ if is_curl => std::process::exit(curl(&args)),
        Some("serve") => tokio::runtime::Runtime::new_current().block_on(serve()),
        Some("load") => load(&args[1..]),
        Some("hostname") => println!("{}", rustix::system::uname().nodename().to_string_lossy()),
        Some("cat") => drop(std::io::copy(&mut std::io::stdin(), &mut std::io::stdout())),
        _ => panic!("expected `serve` or `load`"),
    }
}

trait NewCurrent {
    fn new_current() -> tokio::runtime::Runtime;
}

impl NewCurrent for tokio::runtime::Runtime {
    fn new_current() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }
}

/// 0 if the URL, which comes last, answers with success; 22 if it answers otherwise, 7 if it does not, as curl has it.
fn curl(args: &[String]) -> i32 {
    let url = args.last().map_or("", String::as_str).trim_start_matches("http://");
    let (host, path) = url.split_once('/').unwrap_or((url, ""));
    let ask = || {
        let mut stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    match ask() {
        Ok(answer) if answer.starts_with(b"HTTP/1.1 2") => 0,
        Ok(_) => 22,
        Err(_) => 7,
    }
}

async fn serve() {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let port = format!("0.0.0.0:{}", variable("PORT", "80"));
    let http = TcpListener::bind(variable("HTTP", &port)).await.unwrap();
    let is_told = |name: &str| std::env::var_os(name).is_some();
    // Beside others on one host it has its one port, and one that is told where to listen has no others.
    let (tcp, grpc) = match (is_told("PORT"), is_told("TCP")) {
        (true, _) => ("127.0.0.1:0".to_owned(), "127.0.0.1:0"),
        (false, true) => (variable("TCP", ""), "127.0.0.1:0"),
        (false, false) => ("0.0.0.0:9000".to_owned(), "0.0.0.0:50051"),
    };
    let tcp = TcpListener::bind(tcp).await.unwrap();
    let grpc = TcpListener::bind(grpc).await.unwrap();
    if std::env::args().any(|arg| arg == "--unhealthy") {
        HEALTH.store(500, SeqCst);
    }
    println!("listening on {port}");
    let on_term = variable("ON_TERM", "graceful");
    let hostname = variable("HOSTNAME", &rustix::system::uname().nodename().to_string_lossy());
    let mut term = signal(SignalKind::terminate()).unwrap();
    let ending = watch::Sender::new(false);
    let n_open = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        loop {
            let (stream, peer) = tcp.accept().await.unwrap();
            tokio::spawn(echo(stream, peer));
        }
    });
    loop {
        tokio::select! {
            accepted = http.accept() => {
                let (stream, peer) = accepted.unwrap();
                let (hostname, ended, n_open) = (hostname.clone(), ending.subscribe(), n_open.clone());
                n_open.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let answer = service_fn(move |request| answer(request, peer, hostname.clone()));
                    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    finish(connection, |connection| connection.graceful_shutdown(), ended).await;
                    n_open.fetch_sub(1, SeqCst);
                });
            }
            accepted = grpc.accept() => {
                let (stream, _) = accepted.unwrap();
                let (hostname, ended, n_open) = (hostname.clone(), ending.subscribe(), n_open.clone());
                n_open.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let answer = service_fn(move |request| grpc::answer(request, hostname.clone()));
                    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), answer);
                    finish(connection, |connection| connection.graceful_shutdown(), ended).await;
                    n_open.fetch_sub(1, SeqCst);
                });
            }
            _ = term.recv() => match on_term.as_str() {
                "exit" => std::process::exit(0),
                "ignore" => {}
                _ => break,
            },
        }
    }
    // Refuses new connections, and finishes what it has.
    drop((http, grpc));
    ending.send_replace(true);
    while n_open.load(SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Serves a connection to its end, which is brought about gracefully once the task is to end.
async fn finish<C: Future>(connection: C, end: impl FnOnce(Pin<&mut C>), mut ended: watch::Receiver<bool>) {
    tokio::pin!(connection);
    tokio::select! {
        _ = &mut connection => {}
        _ = async { drop(ended.wait_for(|is| *is).await) } => {
            end(connection.as_mut());
            connection.await;
        }
    }
}

/// What `/health` answers.
static HEALTH: AtomicU16 = AtomicU16::new(200);

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    hostname: String,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let number = |key: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == key)
            .find_map(|(_, value)| value.parse::<u64>().ok())
    };
    let (delay, bytes) = (number("delay"), number("bytes"));
    if matches!(request.uri().path(), "/health" | "/healthz") {
        if let Some(status) = number("set").and_then(|n| u16::try_from(n).ok()) {
            HEALTH.store(status, SeqCst);
        }
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::from_u16(HEALTH.load(SeqCst)).unwrap();
        return Ok(response);
    }
    if let Some(path) = query.strip_prefix("path=").filter(|_| request.uri().path() == "/file") {
        return Ok(Response::new(Full::new(file(path).into())));
    }
    let id = query.split('&').find_map(|pair| pair.strip_prefix("id="));
    let id = id.filter(|_| request.method() == Method::POST).map(str::to_owned);
    let headers: BTreeMap<String, String> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let body = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    if let (Some(id), Some(dir)) = (id, std::env::var_os("RECEIVED")) {
        let path = Path::new(&dir).join(&hostname);
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        file.write_all(format!("{id}\n").as_bytes()).unwrap();
    }
    if let Some(delay) = delay {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let body = match bytes {
        Some(n) => vec![b'x'; usize::try_from(n).unwrap()].into(),
        None if std::env::var_os("APP_VERSION").is_some() => {
            let version = std::env::var("APP_VERSION").unwrap();
            let who = format!("\"container_id\":\"{hostname}\",\"hostname\":\"{hostname}\"");
            format!("{{\"message\":\"Hello from version: {version}\",{who}}}").into()
        }
        None => serde_json::json!({
            "hostname": hostname,
            "slot": std::env::var("SLOT").ok(),
            "node": std::env::var("NODE").ok(),
            "peer": peer.ip().to_string(),
            "peer_port": peer.port(),
            "headers": headers,
            "body_bytes": body.len(),
        })
        .to_string()
        .into(),
    };
    let mut response = Response::new(Full::new(body));
    let name = hyper::header::HeaderValue::from_str(&hostname).unwrap();
    response.headers_mut().insert("x-task", name);
    Ok(response)
}

/// Where a task is a process, its files are not at the root.
fn file(path: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let root = std::env::var("ANYNODE_TASK_DIR").unwrap_or_default();
    let path = format!("{root}{path}");
    let read = || {
        let mode = std::fs::metadata(&path)?.permissions().mode() & 0o7777;
        std::io::Result::Ok(format!("{mode:o} {}", std::fs::read_to_string(&path)?))
    };
    read().unwrap_or_else(|error| format!("{path}: {error}"))
}

async fn echo(mut stream: tokio::net::TcpStream, peer: SocketAddr) {
    let mut buffer = vec![0; 64 * 1024];
    let expects_proxy = std::env::var("PROXY").is_ok();
    if !expects_proxy && stream.write_all(format!("{}\n", peer.ip()).as_bytes()).await.is_err() {
        return;
    }
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    break;
                }
            }
        }
    }
}

/// `task load ADDR,... [--seconds S] [--new] [--threads N] [--path P] [--pause-us N] [--post FILE]`: makes requests until the
/// time is over or SIGTERM, and prints what became of each, as JSON. Each of `N` threads has a connection at a time: to the
/// same address, a kept one or, with `--new`, one for each request. `--post`: POSTs, each with an id of its own, and a line
/// in `FILE` for each that was answered.
fn load(args: &[String]) {
    let option = |name: &str| {
        args.iter()
            .position(|arg| arg == name)
            .and_then(|i| args.get(i + 1))
            .cloned()
    };
    let addrs: Vec<SocketAddr> = args[0].split(',').map(|addr| addr.parse().unwrap()).collect();
    let is_new = args.iter().any(|arg| arg == "--new");
    let n_threads: usize = option("--threads").map_or(6, |n| n.parse().unwrap());
    let seconds = option("--seconds").map_or(1e6, |n| n.parse().unwrap());
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let is_post = option("--post").is_some();
    let path = option("--path").unwrap_or_else(|| "/".to_owned());
    let pause = Duration::from_micros(option("--pause-us").map_or(0, |n| n.parse().unwrap()));
    let stop = Arc::new(AtomicBool::new(false));
    let answered: Arc<Mutex<Vec<String>>> = Arc::default();
    std::thread::spawn({
        let stop = stop.clone();
        move || {
            tokio::runtime::Runtime::new_current()
                .block_on(async { signal(SignalKind::terminate()).unwrap().recv().await });
            stop.store(true, SeqCst);
        }
    });
    let counts: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
    let times: Arc<Mutex<Vec<u32>>> = Arc::default();
    let threads: Vec<_> = (0..n_threads)
        .map(|i| {
            let (addr, path, stop) = (addrs[i % addrs.len()], path.clone(), stop.clone());
            let (counts, times, answered) = (counts.clone(), times.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut own: BTreeMap<String, u64> = BTreeMap::new();
                let mut own_times = Vec::new();
                let mut own_answered = Vec::new();
                let mut kept: Option<TcpStream> = None;
                let mut n = 0_u64;
                while Instant::now() < until && !stop.load(SeqCst) {
                    let started = Instant::now();
                    n += 1;
                    let id = is_post.then(|| format!("{}-{i}-{n}", std::process::id()));
                    let outcome = request(addr, &path, id.as_deref(), is_new, &mut kept);
                    own_times.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
                    match outcome {
                        Ok(task) => {
                            *own.entry("ok".to_owned()).or_default() += 1;
                            *own.entry(format!("task {task}")).or_default() += 1;
                            own_answered.extend(id);
                        }
                        Err((kind, error)) => {
                            *own.entry("failed".to_owned()).or_default() += 1;
                            *own.entry(format!("kind {}", word(kind))).or_default() += 1;
                            *own.entry(format!("error at {addr}: {error}")).or_default() += 1;
                            kept = None;
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                    std::thread::sleep(pause);
                }
                let mut all = counts.lock().unwrap();
                own.into_iter().for_each(|(key, n)| *all.entry(key).or_default() += n);
                times.lock().unwrap().extend(own_times);
                answered.lock().unwrap().extend(own_answered);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    if let Some(path) = option("--post") {
        let lines: String = answered.lock().unwrap().iter().map(|id| format!("{id}\n")).collect();
        std::fs::write(path, lines).unwrap();
    }
    let mut times = std::mem::take(&mut *times.lock().unwrap());
    times.sort_unstable();
    let at = |share: f64| {
        times
            .get(((times.len() as f64 - 1.0) * share) as usize)
            .copied()
            .unwrap_or(0)
    };
    let counts = std::mem::take(&mut *counts.lock().unwrap());
    let count = |key: &str| counts.get(key).copied().unwrap_or(0);
    let report = serde_json::json!({
        "ok": count("ok"), "failed": count("failed"),
        "p50_us": at(0.5), "p99_us": at(0.99), "max_us": at(1.0),
        "tasks": counts.iter().filter(|(key, _)| key.starts_with("task ")).collect::<BTreeMap<_, _>>(),
        "kinds": counts.iter().filter_map(|(key, n)| Some((key.strip_prefix("kind ")?, n))).collect::<BTreeMap<_, _>>(),
        "errors": counts.iter().filter(|(key, _)| key.starts_with("error ")).collect::<BTreeMap<_, _>>(),
    });
    println!("{report}");
}

/// What kind of failure it was, in a word; `status` is an answer other than 200.
fn word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset",
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout",
        ErrorKind::UnexpectedEof => "eof",
        ErrorKind::InvalidData => "status",
        _ => "other",
    }
}

/// One request, on a new connection or the kept one. A kept connection that its peer had ended before anything of the
/// request was answered is no failure: clients open another, as RFC 9112 9.3.1 has it, for requests that may be repeated.
/// One with an `id` may not.
fn request(
    addr: SocketAddr,
    path: &str,
    id: Option<&str>,
    is_new: bool,
    kept: &mut Option<TcpStream>,
) -> Result<String, (ErrorKind, String)> {
    if let Some(stream) = kept.take().filter(|_| !is_new) {
        match exchange(stream, path, id, is_new, kept) {
            Err((0, ErrorKind::UnexpectedEof, _)) if id.is_none() => {}
            result => return result.map_err(|(n, kind, error)| (kind, format!("kept, after {n} bytes: {error}"))),
        }
    }
    let stream =
        TcpStream::connect_timeout(&addr, PATIENCE).map_err(|error| (error.kind(), format!("connect: {error}")))?;
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    exchange(stream, path, id, is_new, kept)
        .map_err(|(n, kind, error)| (kind, format!("new, after {n} bytes: {error}")))
}

type Failed = (usize, ErrorKind, String);

fn exchange(
    mut stream: TcpStream,
    path: &str,
    id: Option<&str>,
    is_new: bool,
    kept: &mut Option<TcpStream>,
) -> Result<String, Failed> {
    let connection = if is_new { "close" } else { "keep-alive" };
    let request = match id {
        None => format!("GET {path} HTTP/1.1\r\nHost: load\r\nConnection: {connection}\r\n\r\n"),
        Some(id) => format!(
            "POST {path}?id={id} HTTP/1.1\r\nHost: load\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n{id}",
            id.len()
        ),
    };
    // What cannot be written any more shows in what is read.
    let _ = stream.write_all(request.as_bytes());
    let mut received = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let (head_len, length, task, is_kept) = loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => return Err((received.len(), ErrorKind::UnexpectedEof, "the end".to_owned())),
            Ok(n) => n,
            Err(error) => return Err((received.len(), error.kind(), error.to_string())),
        };
        received.extend_from_slice(&buffer[..n]);
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_lowercase();
            let field = |name: &str| {
                let line = head.lines().find(|line| line.starts_with(name))?;
                Some(line[name.len()..].trim().to_owned())
            };
            if !head.starts_with("http/1.1 200") {
                return Err((
                    received.len(),
                    ErrorKind::InvalidData,
                    head.lines().next().unwrap_or_default().to_owned(),
                ));
            }
            let length: usize = field("content-length:").and_then(|text| text.parse().ok()).unwrap_or(0);
            let is_kept = field("connection:").is_none_or(|value| value != "close");
            break (end + 4, length, field("x-task:").unwrap_or_default(), is_kept);
        }
    };
    let mut left = (head_len + length).saturating_sub(received.len());
    while left > 0 {
        match stream.read(&mut buffer) {
            Ok(0) => return Err((1, ErrorKind::UnexpectedEof, format!("the end, {left} bytes early"))),
            Ok(n) => left = left.saturating_sub(n),
            Err(error) => return Err((1, error.kind(), format!("{left} bytes early: {error}"))),
        }
    }
    if !is_new && is_kept {
        *kept = Some(stream);
    }
    Ok(task)
}

const PATIENCE: Duration = Duration::from_secs(15);

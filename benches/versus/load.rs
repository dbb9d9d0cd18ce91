//! The load generator: a process of its own that does one job against one address, verifies every byte that comes back,
//! and prints what it saw as JSON in one line. The first wrong byte or failed request ends it with an error. It reads the
//! proxy's CPU time itself, so that figures and requests are of the same moments.
//!
//! Closed loop: a connection sends its next request when the last one is answered. What it tells is cost per unit, not
//! latency under load and not a ceiling.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http2;
use crate::machine::{self, Ticks};
use crate::origin::{BULK_BYTES, Counts, HOST, N_ENDPOINTS, bulk_body, noise, pieces, small_body};
use crate::tls::{Opener, Speaks, Stream};

/// What to do, and against whom.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub kind: Kind,
    pub addr: SocketAddr,
    /// Where the origin itself answers.
    pub origin: SocketAddr,
    /// Whose CPU time and memory is read; empty: nobody's.
    pub pids: Vec<u32>,
    /// Who else works for this job, besides the generator.
    pub helpers: Vec<u32>,
    /// `None`: no TLS.
    pub tls: Option<Speaks>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Kind {
    /// Requests on connections that stay.
    KeepAlive {
        path: char,
        n_connections: usize,
        warm: Duration,
        run: Duration,
    },
    /// Requests of HTTP/2 on connections that stay, several at a time on each.
    Http2 {
        n_connections: usize,
        n_at_a_time: usize,
        warm: Duration,
        run: Duration,
    },
    /// A connection for each request.
    Short {
        n_connections: usize,
        warm: Duration,
        run: Duration,
    },
    /// Connections that do nothing after one request.
    Idle {
        n_connections: usize,
        /// Before memory is read for the first time, with no connection open.
        settle: Duration,
        /// How long nothing is sent before it is read again.
        rest: Duration,
    },
    /// Services files that move a service from one endpoint to another.
    Change {
        services: PathBuf,
        /// The file that names endpoint 0 alone, and the one that names endpoint 1.
        texts: [String; 2],
        n_changes: usize,
    },
}

/// What was seen.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Requests, or connections.
    pub n_units: u64,
    pub n_bytes: u64,
    pub seconds: f64,
    /// Of the proxy, over the same time.
    pub cpu_ns: u64,
    /// The part of the machine's time that its host took away.
    pub steal: f64,
    /// The part of the machine's time that others used, who have nothing to do with this.
    pub others: f64,
    /// Growth of the proxy's private memory.
    pub memory_bytes: i64,
    pub latencies_ms: Vec<f64>,
    /// Requests that failed while the table changed; with any other job the first one ends it.
    pub failures: Vec<String>,
}

/// Does the job that `text` says and prints what was seen.
pub fn run(text: &str) -> anyhow::Result<()> {
    let job: Job = serde_json::from_str(text)?;
    let seen = match &job.kind {
        Kind::Change {
            services,
            texts,
            n_changes,
        } => change(&job, services, texts, *n_changes)?,
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let tasks = tokio::task::LocalSet::new();
            tasks.block_on(&runtime, async {
                tokio::time::timeout(JOB_TIME_MAX, job.run())
                    .await
                    .context("it hangs")?
            })?
        }
    };
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

impl Job {
    async fn run(self) -> anyhow::Result<Seen> {
        let before = counts(self.origin).await?;
        let progress = Rc::new(Progress::default());
        let opener = Opener::new(self.tls.as_ref())?;
        let seen = match self.kind {
            Kind::KeepAlive {
                path,
                n_connections,
                warm,
                run,
            } => {
                let noise: Rc<[u8]> = noise().into();
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..n_connections {
                    let (progress, noise, opener) = (progress.clone(), noise.clone(), opener.clone());
                    tasks.spawn_local(async move {
                        let is_bulk = !pieces(path, 0).is_empty();
                        let mut connection = Connection::open_by(&opener, self.addr, is_bulk, true).await?;
                        while !progress.is_over.get() {
                            connection.ask(path, &noise, &progress, false).await?;
                        }
                        anyhow::Ok(())
                    });
                }
                self.watch(tasks, &progress, warm, run).await?
            }
            Kind::Http2 {
                n_connections,
                n_at_a_time,
                warm,
                run,
            } => {
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..n_connections {
                    let (progress, opener) = (progress.clone(), opener.clone());
                    tasks.spawn_local(async move {
                        let stream = TcpStream::connect(self.addr).await.context("connect")?;
                        stream.set_nodelay(true)?;
                        let stream = opener.open(stream, true).await.context("TLS")?;
                        http2::ask(stream, n_at_a_time, &progress).await
                    });
                }
                self.watch(tasks, &progress, warm, run).await?
            }
            Kind::Short {
                n_connections,
                warm,
                run,
            } => {
                let mut tasks = tokio::task::JoinSet::new();
                for _ in 0..n_connections {
                    let progress = progress.clone();
                    // Its own tickets: a store has room for a few.
                    let opener = Opener::new(self.tls.as_ref())?;
                    tasks.spawn_local(async move {
                        let mut n_opened = 0_u32;
                        while !progress.is_over.get() {
                            let is_first = n_opened == 0;
                            n_opened += 1;
                            let mut connection = Connection::open_by(&opener, self.addr, false, is_first).await?;
                            connection.ask('s', &[], &progress, true).await?;
                            connection.end().await?;
                        }
                        anyhow::Ok(())
                    });
                }
                self.watch(tasks, &progress, warm, run).await?
            }
            Kind::Idle {
                n_connections,
                settle,
                rest,
            } => self.idle(&progress, n_connections, settle, rest).await?,
            Kind::Change { .. } => bail!("changes are timed without a runtime"),
        };
        let after = counts(self.origin).await?;
        let n_answered: u64 = (0..N_ENDPOINTS).map(|i| after.requests[i] - before.requests[i]).sum();
        ensure!(
            n_answered == progress.n_units.get(),
            "{} requests were sent, and the origin answered {n_answered}",
            progress.n_units.get()
        );
        if self.addr != self.origin {
            ensure!(
                (0..N_ENDPOINTS).all(|i| after.requests[i] > before.requests[i]),
                "an endpoint got no request: {:?} before, {:?} after",
                before.requests,
                after.requests
            );
        }
        Ok(seen)
    }

    /// Takes the figures of `run` after `warm`, then ends the tasks.
    async fn watch(
        &self,
        mut tasks: tokio::task::JoinSet<anyhow::Result<()>>,
        progress: &Progress,
        warm: Duration,
        run: Duration,
    ) -> anyhow::Result<Seen> {
        let timed = async {
            tokio::time::sleep(warm).await;
            let ticks = Ticks::now()?;
            let ours = [&self.pids[..], &self.helpers, &[std::process::id()]].concat();
            let ours_before = machine::cpu_ns(&ours)?;
            let n = (progress.n_units.get(), progress.n_bytes.get());
            let (start, cpu) = (Instant::now(), machine::cpu_ns(&self.pids)?);
            tokio::time::sleep(run).await;
            // On a busy machine a short turn may end before anything was answered.
            while progress.n_bytes.get() == n.1 && start.elapsed() < run + ANSWER_TIME_MAX {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let cpu_ns = machine::cpu_ns(&self.pids)? - cpu;
            let (seconds, (steal, busy)) = (start.elapsed().as_secs_f64(), ticks.since()?);
            let n_cores = std::fs::read_to_string("/proc/cpuinfo")?.matches("processor\t").count();
            let ours = (machine::cpu_ns(&ours)? - ours_before) as f64 / 1e9 / seconds / n_cores.max(1) as f64;
            anyhow::Ok(Seen {
                n_units: progress.n_units.get() - n.0,
                n_bytes: progress.n_bytes.get() - n.1,
                seconds,
                cpu_ns,
                steal,
                others: (busy - ours).max(0.0),
                ..Seen::default()
            })
        };
        tokio::pin!(timed);
        let seen = loop {
            tokio::select! {
                seen = &mut timed => break seen?,
                Some(ended) = tasks.join_next() => ended??,
            }
        };
        progress.is_over.set(true);
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        // A long stream may take longer than a short turn.
        ensure!(seen.n_bytes > 0, "nothing was answered in {run:?}");
        Ok(seen)
    }

    async fn idle(
        &self,
        progress: &Rc<Progress>,
        n_connections: usize,
        settle: Duration,
        rest: Duration,
    ) -> anyhow::Result<Seen> {
        // What the first connections cost once is no cost of each.
        drop(self.open(progress, OPENING_AT_ONCE).await?);
        tokio::time::sleep(settle).await;
        let before = machine::private_bytes(&self.pids)?;
        let mut connections = self.open(progress, n_connections).await?;
        tokio::time::sleep(rest).await;
        let memory_bytes = machine::private_bytes(&self.pids)? - before;
        // All of them must still be there.
        for connection in &mut connections {
            connection.ask('s', &[], progress, false).await?;
        }
        Ok(Seen {
            n_units: n_connections as u64,
            memory_bytes,
            ..Seen::default()
        })
    }

    /// Opens connections, each of which has had one answer.
    async fn open(&self, progress: &Rc<Progress>, n_connections: usize) -> anyhow::Result<Vec<Connection>> {
        let n_left = Rc::new(Cell::new(n_connections));
        let mut tasks = tokio::task::JoinSet::new();
        let addr = self.addr;
        for _ in 0..OPENING_AT_ONCE {
            let (n_left, progress) = (n_left.clone(), progress.clone());
            tasks.spawn_local(async move {
                let mut connections = Vec::new();
                while let Some(n) = n_left.get().checked_sub(1) {
                    n_left.set(n);
                    let mut connection = Connection::open(addr, false).await?;
                    connection.ask('s', &[], &progress, false).await?;
                    connections.push(connection);
                }
                anyhow::Ok(connections)
            });
        }
        let mut connections = Vec::with_capacity(n_connections);
        while let Some(opened) = tasks.join_next().await {
            connections.extend(opened??);
        }
        Ok(connections)
    }
}

#[derive(Default)]
pub struct Progress {
    pub n_units: Cell<u64>,
    pub n_bytes: Cell<u64>,
    pub is_over: Cell<bool>,
}

/// Of the next request of this process.
pub fn next_id() -> u64 {
    NEXT_ID.replace(NEXT_ID.get() + 1)
}

/// A connection to a proxy, or to the origin.
struct Connection {
    stream: Stream,
    buf: Vec<u8>,
    n: usize,
}

impl Connection {
    async fn open(addr: SocketAddr, is_bulk: bool) -> anyhow::Result<Connection> {
        Connection::open_by(&Opener::new(None)?, addr, is_bulk, false).await
    }

    async fn open_by(opener: &Opener, addr: SocketAddr, is_bulk: bool, is_first: bool) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(addr).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream: opener.open(stream, is_first).await.context("TLS")?,
            buf: vec![0; if is_bulk { BULK_BUF_BYTES } else { SMALL_BUF_BYTES }],
            n: 0,
        })
    }

    /// Sends a request and verifies its answer.
    async fn ask(&mut self, path: char, noise: &[u8], progress: &Progress, is_last: bool) -> anyhow::Result<()> {
        let id = next_id();
        let request = request(&format!("/{path}/{id}"), is_last);
        self.stream
            .write_all(request.as_bytes())
            .await
            .context("send a request")?;
        let (head, n_body) = loop {
            if let Some(found) = read_head(&self.buf[..self.n])? {
                break found;
            }
            self.fill().await?;
        };
        progress.n_bytes.set(progress.n_bytes.get() + (self.n - head) as u64);
        let pieces = pieces(path, id);
        if !pieces.is_empty() {
            let n_wanted = (pieces.end - pieces.start) as usize * BULK_BYTES;
            ensure!(
                n_body == n_wanted,
                "a bulk body of {n_body} bytes instead of {n_wanted}"
            );
            let mut from = head;
            for piece in pieces {
                let mut wanted = bulk_body(noise, piece);
                while !wanted.is_empty() {
                    if from == self.n {
                        (self.n, from) = (0, 0);
                        let n = self.fill().await?;
                        progress.n_bytes.set(progress.n_bytes.get() + n as u64);
                    }
                    let n = wanted.len().min(self.n - from);
                    ensure!(
                        wanted[..n] == self.buf[from..from + n],
                        "wrong bytes within the {} before the end of piece {piece} of a bulk body",
                        wanted.len()
                    );
                    wanted = &wanted[n..];
                    from += n;
                }
            }
            ensure!(from == self.n, "bytes after a bulk body");
            self.n = 0;
        } else {
            while self.n < head + n_body {
                let n = self.fill().await?;
                progress.n_bytes.set(progress.n_bytes.get() + n as u64);
            }
            endpoint_of(&self.buf[head..self.n], id)?;
            self.n = 0;
        }
        progress.n_units.set(progress.n_units.get() + 1);
        Ok(())
    }

    async fn fill(&mut self) -> anyhow::Result<usize> {
        ensure!(self.n < self.buf.len(), "an answer is longer than it may be");
        let n = self
            .stream
            .read(&mut self.buf[self.n..])
            .await
            .context("read an answer")?;
        ensure!(n > 0, "the connection ended within an answer");
        self.n += n;
        Ok(n)
    }

    /// The other side must end it now, in order.
    async fn end(mut self) -> anyhow::Result<()> {
        let n = self.stream.read(&mut self.buf).await.context("wait for the end")?;
        ensure!(n == 0, "bytes after the last answer");
        Ok(())
    }
}

/// Whom a small body is from.
///
/// Errors: it is not the body for `id`, to the byte.
pub fn endpoint_of(body: &[u8], id: u64) -> anyhow::Result<usize> {
    (0..N_ENDPOINTS)
        .find(|endpoint| small_body(id, *endpoint).as_bytes() == body)
        .with_context(|| format!("a wrong body for request {id}: {:?}", String::from_utf8_lossy(body)))
}

fn request(path: &str, is_last: bool) -> String {
    let close = if is_last { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: versus\r\nAccept: */*\r\n{close}\r\n")
}

/// The lengths of the head and of the body. `None`: there is more to come. Errors: it is no good answer.
fn read_head(bytes: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(n) = answer.parse(bytes).context("an answer that is not HTTP")? else {
        return Ok(None);
    };
    ensure!(
        answer.code == Some(200),
        "an answer with status {}: {:?}",
        answer.code.unwrap_or_default(),
        String::from_utf8_lossy(&bytes[n..])
    );
    let length = answer
        .headers
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = length.context("an answer without Content-Length")?;
    let n_body = str::from_utf8(length.value)?.trim().parse()?;
    Ok(Some((n, n_body)))
}

async fn counts(origin: SocketAddr) -> anyhow::Result<Counts> {
    let mut connection = Connection::open(origin, false).await.context("the origin")?;
    connection.stream.write_all(request("/stats", true).as_bytes()).await?;
    let mut answer = Vec::new();
    connection.stream.read_to_end(&mut answer).await?;
    let (head, _) = read_head(&answer)?.context("half an answer from the origin")?;
    Ok(serde_json::from_slice(&answer[head..])?)
}

/// Asks once on a connection of its own, and says which endpoint answered.
/// Asks once, by the words of the command line: an address and a path.
pub fn ask(mut words: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let (addr, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    ask_once(addr.parse()?, path.chars().next().unwrap_or('s')).map(drop)
}

pub fn ask_once(addr: SocketAddr, path: char) -> anyhow::Result<usize> {
    let id = next_id();
    let mut stream = std::net::TcpStream::connect_timeout(&addr, ANSWER_TIME_MAX).context("connect")?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.write_all(request(&format!("/{path}/{id}"), true).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read an answer")?;
    let (head, _) = read_head(&answer)?.context("half an answer")?;
    endpoint_of(&answer[head..], id)
}

/// Replaces the services file by rename, then asks until the answer is from the endpoint that it names. From the moment
/// before the rename to the moment after that answer.
fn change(job: &Job, services: &Path, texts: &[String; 2], n_changes: usize) -> anyhow::Result<Seen> {
    let new_file = services.with_extension("new");
    let mut seen = Seen {
        n_units: n_changes as u64,
        ..Seen::default()
    };
    let mut now_at = ask_once(job.addr, 's')?;
    ensure!(now_at < 2, "endpoint {now_at} answered, which no file names");
    for i in 0..n_changes {
        let next = 1 - now_at;
        std::fs::write(&new_file, &texts[next])?;
        let start = Instant::now();
        std::fs::rename(&new_file, services)?;
        let mut ask = || {
            let asked = start.elapsed();
            ask_once(job.addr, 's').inspect_err(|error| {
                let failed = start.elapsed();
                seen.failures.push(format!(
                    "change {i}: asked {asked:?} after it, failed {failed:?} after it: {error:#}"
                ));
            })
        };
        while !ask().is_ok_and(|endpoint| endpoint == next) {
            ensure!(
                start.elapsed() < CHANGE_TIME_MAX,
                "change {i} did not take effect in {CHANGE_TIME_MAX:?}"
            );
            std::thread::sleep(PROBE_PAUSE);
        }
        let took = start.elapsed();
        for _ in 0..3 {
            let is_gone = ask().is_ok_and(|endpoint| endpoint != next);
            ensure!(!is_gone, "the endpoint that is gone answered after the new one");
        }
        seen.latencies_ms.push(took.as_secs_f64() * 1e3);
        now_at = next;
        // Not in step with anybody's timer.
        std::thread::sleep(Duration::from_millis(5 + (i as u64 * 7) % 17));
    }
    Ok(seen)
}

thread_local! {
    static NEXT_ID: Cell<u64> = const { Cell::new(1) };
}

const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
const CHANGE_TIME_MAX: Duration = Duration::from_secs(5);
const JOB_TIME_MAX: Duration = Duration::from_secs(90);
const PROBE_PAUSE: Duration = Duration::from_micros(500);
const OPENING_AT_ONCE: usize = 32;
const BULK_BUF_BYTES: usize = 256 << 10;
const SMALL_BUF_BYTES: usize = 1 << 10;

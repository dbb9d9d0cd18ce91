//! Bytes between two sockets, both ways at once: copied while they are few, spliced once a stream is bulk.
//!
//! What is kept: half-close (the end of one direction is passed on, the other goes on), reset (a reset of one side
//! resets the other), back pressure (nothing is read that cannot be written, besides one buffer), and that a connection
//! without traffic holds no buffer and no pipe. Not here: who connects to whom, and HTTP.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::core::{self, Connection, Signal};
use crate::routing::{BytePath, CloseReason, Direction, ServiceStats};
use crate::sys::socket::{self, Liveness};
use crate::sys::splice::{self, Pipe};

/// Time limits of a relay; zero is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct IdleLimits {
    pub(super) idle: Duration,
    /// The limit from when one side has ended its half.
    pub(super) half_closed: Duration,
}

/// Relays until both directions have ended or the connection is ended from outside, and says why it ended. After it,
/// both sockets may be closed at once: where a reset is due, they are prepared for it.
///
/// `early`: bytes of each direction that were read already.
pub(super) async fn relay(
    connection: &Connection,
    client: &TcpStream,
    upstream: &TcpStream,
    limits: IdleLimits,
    liveness: &Liveness,
    early: [Vec<u8>; 2],
) -> CloseReason {
    let [early_in, early_out] = early;
    let mut relay = Relay {
        stats: connection.service().stats(),
        halves: [
            Half::new(Direction::In, client, upstream, early_in),
            Half::new(Direction::Out, upstream, client, early_out),
        ],
        watches: [None, None],
        first_end: None,
        idle: None,
        limits,
    };
    let reason = poll_fn(|cx| {
        match connection.poll_signal(cx) {
            Poll::Ready(Signal::End(reason)) => return Poll::Ready(Ending::Cut(reason)),
            Poll::Ready(Signal::Aged) => {
                // An error means that the connection is gone already, which its next read will say.
                let _ = socket::set_liveness(&socket2::SockRef::from(upstream), liveness);
            }
            Poll::Pending => {}
        }
        relay.poll(cx)
    })
    .await;
    match reason {
        Ending::Done(reason) => reason,
        Ending::Cut(reason) => {
            socket::reset_on_close(client);
            socket::reset_on_close(upstream);
            reason
        }
        Ending::Discard => {
            // The upstream has said everything and wants no more. Closing now, with the client still sending, would
            // reset the connection and could destroy what the client has yet to read.
            let _ = tokio::time::timeout(DISCARD_AT_MOST, discard(client)).await;
            CloseReason::UpstreamFin
        }
    }
}

/// How a relay ended.
enum Ending {
    /// Both directions came to their end.
    Done(CloseReason),
    /// To be reset on both sides.
    Cut(CloseReason),
    /// The client still sends to an upstream that has ended and closed.
    Discard,
}

struct Relay<'a> {
    stats: &'a ServiceStats,
    /// In, then out.
    halves: [Half<'a>; 2],
    /// For each half, a watch over its source while nobody reads that: a reset would go unnoticed.
    watches: [Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>; 2],
    /// The direction that ended first.
    first_end: Option<Direction>,
    /// Made when it is first needed, since most services have no limit.
    idle: Option<Box<IdleTimer>>,
    limits: IdleLimits,
}

struct IdleTimer {
    sleep: Pin<Box<Sleep>>,
    last_bytes_at: Instant,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let mut is_moved = false;
        for i in 0..2 {
            let half = &mut self.halves[i];
            if half.is_over {
                continue;
            }
            let polled = half.poll(cx, self.stats);
            is_moved |= std::mem::take(&mut half.is_moved);
            match polled {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    half.is_over = true;
                    let direction = half.direction;
                    if self.first_end.is_some() {
                        return Poll::Ready(Ending::Done(self.reason_of_first_end()));
                    }
                    self.first_end = Some(direction);
                    // The last direction is ended by closing the socket; this one must be ended while the other goes on.
                    self.halves[i].end();
                }
                Poll::Ready(Err(failure)) => return Poll::Ready(self.failed(i, failure)),
            }
        }
        for i in 0..2 {
            if let Poll::Ready(ending) = self.poll_watch(i, cx) {
                return Poll::Ready(ending);
            }
        }
        self.poll_idle(cx, is_moved)
    }

    fn reason_of_first_end(&self) -> CloseReason {
        match self.first_end {
            Some(Direction::Out) => CloseReason::UpstreamFin,
            _ => CloseReason::ClientFin,
        }
    }

    fn failed(&self, i: usize, failure: Failure) -> Ending {
        let source_is_client = self.halves[i].direction == Direction::In;
        match failure {
            Failure::Source if source_is_client => Ending::Cut(CloseReason::ClientRst),
            Failure::Source => Ending::Cut(CloseReason::UpstreamRst),
            // The other half has already ended in good order: this reset says "no more", and takes nothing back.
            Failure::Sink if source_is_client && self.first_end == Some(Direction::Out) => Ending::Discard,
            Failure::Sink if source_is_client => Ending::Cut(CloseReason::UpstreamRst),
            Failure::Sink => Ending::Cut(CloseReason::ClientRst),
        }
    }

    /// Looks out for a reset of the source of half `i` while that half does not read it.
    fn poll_watch(&mut self, i: usize, cx: &mut Context<'_>) -> Poll<Ending> {
        let half = &self.halves[i];
        let is_unread = half.is_over || half.is_blocked();
        if !is_unread {
            self.watches[i] = None;
            return Poll::Pending;
        }
        let source = half.source;
        let watch = self.watches[i].get_or_insert_with(|| {
            Box::pin(async move {
                // An error of the wait itself means that the runtime is going down.
                let _ = source.ready(Interest::ERROR).await;
            })
        });
        ready!(watch.as_mut().poll(cx));
        Poll::Ready(self.failed(i, Failure::Source))
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>, is_moved: bool) -> Poll<Ending> {
        let limit = if self.first_end.is_some() && !self.limits.half_closed.is_zero() {
            self.limits.half_closed
        } else {
            self.limits.idle
        };
        if limit.is_zero() {
            return Poll::Pending;
        }
        let now = Instant::now();
        let timer = self.idle.get_or_insert_with(|| {
            let sleep = Box::pin(tokio::time::sleep(limit));
            Box::new(IdleTimer {
                sleep,
                last_bytes_at: now,
            })
        });
        if is_moved {
            timer.last_bytes_at = now;
        }
        loop {
            // The timer is not moved with each byte, only when it fires; by then it mostly need not have.
            let due = timer.last_bytes_at + limit;
            if now >= due {
                return Poll::Ready(Ending::Cut(CloseReason::IdleTimeout));
            }
            let due = tokio::time::Instant::from_std(due);
            if timer.sleep.deadline() > due || timer.sleep.is_elapsed() {
                timer.sleep.as_mut().reset(due);
            }
            ready!(timer.sleep.as_mut().poll(cx));
        }
    }
}

/// Which socket of a half failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Source,
    Sink,
}

/// One direction of a relay.
pub(super) struct Half<'a> {
    direction: Direction,
    source: &'a TcpStream,
    sink: &'a TcpStream,
    /// Bytes that were read and could not be written yet. Owns memory only while there are some.
    held: Held,
    pipe: Option<Pipe>,
    way: Way,
    is_over: bool,
    is_moved: bool,
}

/// How the next bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Copied; so many large reads in a row by now.
    Copy { n_large: u8 },
    /// Spliced; so many small moves in a row by now.
    Splice { n_small: u8 },
    /// These sockets cannot be spliced.
    CopyOnly,
}

#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    start: usize,
}

impl Held {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn wrote(&mut self, n: usize) {
        self.start += n;
        if self.start >= self.bytes.len() {
            *self = Held::default();
        }
    }
}

impl<'a> Half<'a> {
    fn new(direction: Direction, source: &'a TcpStream, sink: &'a TcpStream, early: Vec<u8>) -> Half<'a> {
        Half {
            direction,
            source,
            sink,
            held: Held { bytes: early, start: 0 },
            pipe: None,
            way: Way::Copy { n_large: 0 },
            is_over: false,
            is_moved: false,
        }
    }

    /// Something was read that the sink does not take.
    fn is_blocked(&self) -> bool {
        !self.held.is_empty() || self.pipe.is_some()
    }

    /// Moves bytes until the source has no more (`Pending`), or has ended and everything is written (`Ready`).
    fn poll(&mut self, cx: &mut Context<'_>, stats: &ServiceStats) -> Poll<Result<(), Failure>> {
        // One side may send faster than the other core of the machine can follow; others want their turn too.
        for _ in 0..MOVES_PER_TURN {
            ready!(self.poll_flush(cx, stats))?;
            let n = match self.way {
                Way::Splice { .. } => ready!(self.poll_splice(cx, stats))?,
                Way::Copy { .. } | Way::CopyOnly => ready!(self.poll_copy(cx, stats))?,
            };
            if n == Some(0) {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is held.
    fn poll_flush(&mut self, cx: &mut Context<'_>, stats: &ServiceStats) -> Poll<Result<(), Failure>> {
        while !self.held.is_empty() {
            let n = ready!(poll_write(self.sink, cx, self.held.rest())).map_err(|_| Failure::Sink)?;
            self.held.wrote(n);
            self.count(stats, BytePath::Copy, n);
        }
        while let Some(pipe) = &mut self.pipe {
            if pipe.is_empty() {
                self.put_pipe();
                break;
            }
            ready!(self.sink.poll_write_ready(cx)).map_err(|_| Failure::Sink)?;
            match self.sink.try_io(Interest::WRITABLE, || pipe.drain(self.sink)) {
                Ok(n) => self.count(stats, BytePath::Splice, n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Failure::Sink)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes what was read; what the sink does not take is held. Returns the number read, 0 at the end.
    fn poll_copy(&mut self, cx: &mut Context<'_>, stats: &ServiceStats) -> Poll<Result<Option<usize>, Failure>> {
        core::with_scratch(|scratch| {
            let n = ready!(poll_read(self.source, cx, scratch)).map_err(|_| Failure::Source)?;
            if n == 0 {
                return Poll::Ready(Ok(Some(0)));
            }
            let bytes = &scratch[..n];
            let n_written = match poll_write(self.sink, cx, bytes) {
                Poll::Pending => 0,
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Sink)),
            };
            self.count(stats, BytePath::Copy, n_written);
            if n_written < n {
                self.held = Held {
                    bytes: bytes[n_written..].to_vec(),
                    start: 0,
                };
            }
            if let Way::Copy { n_large } = self.way {
                self.way = match n {
                    ..LARGE_READ => Way::Copy { n_large: 0 },
                    _ if n_large + 1 >= LARGE_READS => Way::Splice { n_small: 0 },
                    _ => Way::Copy { n_large: n_large + 1 },
                };
            }
            Poll::Ready(Ok(Some(n)))
        })
    }

    /// Fills a pipe once and empties it as far as the sink takes it. Returns the number moved in, 0 at the end, `None`
    /// when this turn was not spliced.
    fn poll_splice(&mut self, cx: &mut Context<'_>, stats: &ServiceStats) -> Poll<Result<Option<usize>, Failure>> {
        loop {
            ready!(self.source.poll_read_ready(cx)).map_err(|_| Failure::Source)?;
            let Some(mut pipe) = core::take_pipe() else {
                return self.poll_copy(cx, stats);
            };
            match self
                .source
                .try_io(Interest::READABLE, || pipe.fill(self.source, SPLICE_AT_MOST))
            {
                Ok(0) => {
                    core::put_pipe(pipe);
                    return Poll::Ready(Ok(Some(0)));
                }
                Ok(n) => {
                    let n_small = match self.way {
                        Way::Splice { n_small } if n < SMALL_SPLICE => n_small + 1,
                        _ => 0,
                    };
                    self.way = match n_small {
                        ..SMALL_SPLICES => Way::Splice { n_small },
                        _ => Way::Copy { n_large: 0 },
                    };
                    // Emptied at the next turn's start.
                    self.pipe = Some(pipe);
                    return Poll::Ready(Ok(Some(n)));
                }
                Err(error) => {
                    core::put_pipe(pipe);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => {}
                        _ if splice::is_unsupported(&error) => {
                            self.way = Way::CopyOnly;
                            return Poll::Ready(Ok(None));
                        }
                        _ => return Poll::Ready(Err(Failure::Source)),
                    }
                }
            }
        }
    }

    /// Passes the end of this direction on.
    fn end(&self) {
        // An error means that the peer is gone, which the other direction will notice.
        let _ = socket2::SockRef::from(self.sink).shutdown(std::net::Shutdown::Write);
    }

    fn put_pipe(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            core::put_pipe(pipe);
        }
    }

    fn count(&mut self, stats: &ServiceStats, path: BytePath, n: usize) {
        self.is_moved |= n > 0;
        stats.add_bytes(self.direction, path, n as u64);
    }
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        self.put_pipe();
    }
}

/// Reads into `buffer`; 0 is the end. A read that does not fill the buffer has emptied the socket, and tokio is told so:
/// that saves the call that would only say "nothing more".
pub(super) fn poll_read(stream: &TcpStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let mut n_short = 0;
        let result = stream.try_io(Interest::READABLE, || {
            let (n, _) = rustix::net::recv(stream, &mut *buffer, RecvFlags::empty())?;
            if n > 0 && n < buffer.len() {
                n_short = n;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(n)
        });
        match result {
            Ok(n) => return Poll::Ready(Ok(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if n_short > 0 {
                    return Poll::Ready(Ok(n_short));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Writes of `bytes` what the socket takes; never 0 unless there are none.
///
/// The socket is asked before tokio is: it mostly takes everything, also before its first event has come.
pub(super) fn poll_write(stream: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let send = || Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)?);
    let mut result: io::Result<usize> = send();
    loop {
        match result {
            Ok(n) => return Poll::Ready(Ok(n)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return Poll::Ready(Err(error)),
            },
        }
        ready!(stream.poll_write_ready(cx))?;
        result = stream.try_io(Interest::WRITABLE, send);
    }
}

/// Reads and forgets until the peer ends or resets.
pub(super) async fn discard(stream: &TcpStream) {
    let read = |cx: &mut Context<'_>| core::with_scratch(|scratch| poll_read(stream, cx, scratch));
    while let Ok(1..) = poll_fn(read).await {}
}

const MOVES_PER_TURN: usize = 4;
const LARGE_READ: usize = 16 * 1024;
const LARGE_READS: u8 = 2;
const SPLICE_AT_MOST: usize = 1 << 20;
const SMALL_SPLICE: usize = 4 * 1024;
const SMALL_SPLICES: u8 = 4;
pub(super) const DISCARD_AT_MOST: Duration = Duration::from_secs(1);

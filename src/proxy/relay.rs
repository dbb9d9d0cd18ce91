//! Bytes between two sockets, both ways at once: copied while they are few, spliced once a stream is bulk.
//!
//! What is kept: half-close (the end of one direction is passed on, the other goes on), reset (a reset of one side
//! resets the other), back pressure (nothing is read that cannot be written, besides one buffer), and that a connection
//! without traffic holds no buffer and no pipe. Not here: who connects to whom, and HTTP.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::core::{self, Connection, Signal};
use super::side::Side;
use super::wire::Wire;
use crate::model::Timeouts;
use crate::routing::{BytePath, CloseReason, Direction, ServiceStats};
use crate::sys::splice::{self, Pipe};

/// A relay's connection, and what it goes by.
pub(super) trait Relayed {
    fn connection(&self) -> &Connection;
    /// What its bytes are counted by.
    fn stats(&self) -> &ServiceStats {
        self.connection().stats()
    }
    fn timeouts(&self) -> &Timeouts {
        &self.connection().service().spec().timeouts
    }
}

impl Relayed for Connection {
    fn connection(&self) -> &Connection {
        self
    }
}

impl Relayed for &Connection {
    fn connection(&self) -> &Connection {
        self
    }
}

/// Relays until both directions have ended or the connection is ended from outside, and says why it ended. After it,
/// both sockets may be closed at once: where a reset is due, they are prepared for it.
pub(super) async fn run<C, S, U>(relay: &mut Relay<C, S, U>) -> CloseReason
where
    C: Relayed,
    S: Wire,
    U: Wire,
{
    loop {
        if let Some(reason) = run_until_quiet(relay).await {
            return reason;
        }
    }
}

/// The same, but also returns when nothing has passed for a while and the relay may be parked (`let_park`): `None` then.
///
/// A block, since an `async fn` would keep its argument twice.
#[expect(clippy::manual_async_fn, reason = "smaller")]
pub(super) fn run_until_quiet<C, S, U>(relay: &mut Relay<C, S, U>) -> impl Future<Output = Option<CloseReason>>
where
    C: Relayed,
    S: Wire,
    U: Wire,
{
    async move {
        let reason = match poll_fn(|cx| relay.poll(cx)).await {
            Ending::Done(reason) => reason,
            Ending::Cut(reason) => {
                relay.client.reset_on_close();
                relay.upstream.reset_on_close();
                reason
            }
            Ending::Discard => {
                // The upstream has said everything and wants no more. Closing now, with the client still sending, would
                // reset the connection and could destroy what the client has yet to read.
                relay.client.hear(&mut Context::from_waker(Waker::noop()));
                if let Some(client) = relay.client.wire() {
                    Box::pin(discard_a_while(client)).await;
                }
                CloseReason::UpstreamFin
            }
            Ending::Quiet => return None,
        };
        Some(reason)
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
    /// Not ended, but nothing passes and nothing is held.
    Quiet,
}

/// Two sockets and the bytes between them. It owns them or borrows them; small, since there is one for each open
/// connection, and what few connections need is in boxes of its own.
pub(super) struct Relay<C, S, U> {
    connection: C,
    client: Side<S>,
    upstream: Side<U>,
    /// In, then out.
    halves: [Half; 2],
    /// Made when it is first needed, since most services have no limit.
    idle: Option<Box<IdleTimer>>,
    /// The direction that ended first.
    first_end: Option<Direction>,
    may_park: bool,
    /// A byte of the upstream has come.
    has_answered: bool,
}

struct IdleTimer {
    sleep: Pin<Box<Sleep>>,
    last_bytes_at: Instant,
}

/// What makes a relay go on that is quiet, besides its connection and sockets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    /// In, then out.
    ways: [Way; 2],
    is_over: [bool; 2],
    first_end: Option<Direction>,
    has_answered: bool,
    /// `None`: the service has no limit.
    last_bytes_at: Option<Instant>,
}

impl Rest {
    pub(super) fn has_client_ended(&self) -> bool {
        self.is_over[0]
    }

    pub(super) fn has_upstream_ended(&self) -> bool {
        self.is_over[1]
    }

    /// When it will have been idle for as long as it may be.
    pub(super) fn idle_due(&self, timeouts: &Timeouts) -> Option<Instant> {
        Some(self.last_bytes_at? + idle_limit(timeouts, self.first_end.is_some()))
    }
}

/// How long nothing may pass. Zero: for ever.
fn idle_limit(timeouts: &Timeouts, is_half_closed: bool) -> Duration {
    match is_half_closed {
        true if !timeouts.half_closed.is_zero() => timeouts.half_closed,
        _ => timeouts.idle,
    }
}

impl<C: Relayed, S: Wire, U: Wire> Relay<C, S, U> {
    /// `early`: bytes of each direction that were read already.
    pub(super) fn new(connection: C, client: S, upstream: U, early: [Vec<u8>; 2]) -> Relay<C, S, U> {
        connection.connection().grow_old();
        let [early_in, early_out] = early;
        Relay {
            connection,
            client: Side::Hears(client),
            upstream: Side::Hears(upstream),
            halves: [Half::new(Direction::In, early_in), Half::new(Direction::Out, early_out)],
            idle: None,
            first_end: None,
            may_park: false,
            has_answered: false,
        }
    }

    /// A relay that was quiet and goes on.
    pub(super) fn resume(connection: C, client: S, upstream: U, rest: Rest) -> Relay<C, S, U> {
        let due = rest.idle_due(connection.timeouts());
        let idle = rest.last_bytes_at.zip(due).map(|(last_bytes_at, due)| {
            let sleep = Box::pin(tokio::time::sleep_until(due.into()));
            Box::new(IdleTimer { sleep, last_bytes_at })
        });
        let half = |i: usize| {
            let mut half = Half::new(Direction::ALL[i], Vec::new());
            half.way = rest.ways[i];
            (half.is_ended, half.is_over) = (rest.is_over[i], rest.is_over[i]);
            half
        };
        Relay {
            connection,
            client: Side::Hears(client),
            upstream: Side::Hears(upstream),
            halves: [half(0), half(1)],
            idle,
            first_end: rest.first_end,
            may_park: true,
            has_answered: rest.has_answered,
        }
    }

    /// Allows `run_until_quiet` to end.
    pub(super) fn let_park(&mut self) {
        self.may_park = true;
    }

    pub(super) fn connection(&self) -> &Connection {
        self.connection.connection()
    }

    /// The client's and the upstream's. `None`: one of them is deaf.
    pub(super) fn sockets(&self) -> Option<(&S, &U)> {
        Some((self.client.wire()?, self.upstream.wire()?))
    }

    /// The client's address, while it is there.
    pub(super) fn client_addr(&self) -> Option<SocketAddr> {
        let client = self.client.spliced()?;
        socket2::SockRef::from(&client).peer_addr().ok()?.as_socket()
    }

    /// What there is to keep of it while it is quiet.
    pub(super) fn rest(&self) -> Rest {
        Rest {
            ways: self.halves.each_ref().map(|half| half.way),
            is_over: self.halves.each_ref().map(|half| half.is_over),
            first_end: self.first_end,
            has_answered: self.has_answered,
            last_bytes_at: self.idle.as_ref().map(|timer| timer.last_bytes_at),
        }
    }

    /// Only a relay that is quiet has no more than this. Without its sockets: one of them was lost.
    pub(super) fn into_parts(self) -> (C, Option<(S, U)>, Rest) {
        let rest = self.rest();
        let sockets = self.client.into_wire().zip(self.upstream.into_wire());
        (self.connection, sockets, rest)
    }

    /// Whether a byte of the upstream has come.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered
    }

    pub(super) fn into_connection(self) -> C {
        self.connection
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        let connection = self.connection.connection();
        let mut is_to_park = false;
        match connection.poll_signal(cx) {
            Poll::Ready(Signal::End(reason)) => return Poll::Ready(Ending::Cut(reason)),
            Poll::Ready(Signal::Aged) => self.upstream.set_liveness(),
            Poll::Ready(Signal::LookForReset) => {
                if let Some(ending) = self.look_for_reset() {
                    return Poll::Ready(ending);
                }
            }
            Poll::Ready(Signal::Park) => is_to_park = true,
            // A node that comes back has its connections still.
            Poll::Ready(Signal::Lost) | Poll::Pending => {}
        }
        let connection = self.connection.connection();
        let stats = self.connection.stats();
        let mut is_moved = false;
        for i in 0..2 {
            let is_last = self.first_end.is_some();
            let half = &mut self.halves[i];
            if half.is_over {
                continue;
            }
            let polled = match i {
                0 => half.poll(cx, &mut self.client, &self.upstream, is_last, stats),
                _ => half.poll(cx, &mut self.upstream, &self.client, is_last, stats),
            };
            let half_moved = std::mem::take(&mut half.is_moved);
            self.has_answered |= half_moved && i == 1;
            is_moved |= half_moved;
            match polled {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    half.is_over = true;
                    let direction = half.direction;
                    if is_last {
                        return Poll::Ready(Ending::Done(self.reason_of_first_end()));
                    }
                    self.first_end = Some(direction);
                }
                Poll::Ready(Err(failure)) => return Poll::Ready(self.failed(i, failure)),
            }
        }
        // A source that nobody reads may be reset without anybody noticing.
        let has_unread = self.halves.iter().any(Half::is_unread);
        let can_park = self.may_park && self.halves.iter().all(Half::is_empty) && self.sockets().is_some();
        connection.had_turn(has_unread, can_park, is_moved);
        match self.poll_idle(cx, is_moved) {
            Poll::Pending if is_to_park && can_park && !is_moved => Poll::Ready(Ending::Quiet),
            polled => polled,
        }
    }

    /// Asks those sources for errors that nobody reads now.
    fn look_for_reset(&self) -> Option<Ending> {
        let take_error = |i: usize| match i {
            0 => self.client.take_error(),
            _ => self.upstream.take_error(),
        };
        let is_reset = |i: &usize| self.halves[*i].is_unread() && !matches!(take_error(*i), Ok(None));
        (0..2).find(is_reset).map(|i| self.failed(i, Failure::Source))
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

    fn poll_idle(&mut self, cx: &mut Context<'_>, is_moved: bool) -> Poll<Ending> {
        let timeouts = self.connection.timeouts();
        let limit = idle_limit(timeouts, self.first_end.is_some());
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
enum Failure {
    Source,
    Sink,
}

/// One direction of a relay, without its sockets.
struct Half {
    /// Bytes that were read and could not be written yet. Owns memory only while there are some.
    held: Option<Box<Held>>,
    pipe: Option<Pipe>,
    way: Way,
    direction: Direction,
    /// The source has ended; the sink is still to be told.
    is_ended: bool,
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

struct Held {
    bytes: Vec<u8>,
    start: usize,
}

impl Half {
    fn new(direction: Direction, early: Vec<u8>) -> Half {
        let mut half = Half {
            held: None,
            pipe: None,
            way: Way::Copy { n_large: 0 },
            direction,
            is_ended: false,
            is_over: false,
            is_moved: false,
        };
        half.hold(early);
        half
    }

    fn hold(&mut self, bytes: Vec<u8>) {
        self.held = (!bytes.is_empty()).then(|| Box::new(Held { bytes, start: 0 }));
    }

    /// Nobody reads the source now: it has ended, or something was read that the sink does not take.
    fn is_unread(&self) -> bool {
        self.is_over || self.is_ended || self.held.is_some() || self.pipe.is_some()
    }

    /// It has nothing that is still to be written or told.
    fn is_empty(&self) -> bool {
        self.held.is_none() && self.pipe.is_none() && self.is_ended == self.is_over
    }

    /// Moves bytes until the source has no more (`Pending`), or has ended and everything is written and the sink was told
    /// (`Ready`).
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Side<impl Wire>,
        sink: &Side<impl Wire>,
        is_last: bool,
        stats: &ServiceStats,
    ) -> Poll<Result<(), Failure>> {
        // One side may send faster than the other core of the machine can follow; others want their turn too.
        for _ in 0..MOVES_PER_TURN {
            if self.poll_flush(cx, sink, stats)?.is_pending() {
                source.deafen(cx);
                return Poll::Pending;
            }
            if self.is_ended {
                ready!(sink.poll_end(cx, is_last));
                return Poll::Ready(Ok(()));
            }
            let n = match self.way {
                Way::Splice { .. } => ready!(self.poll_splice(cx, source, sink, stats))?,
                Way::Copy { .. } | Way::CopyOnly => ready!(self.poll_copy(cx, source, sink, stats))?,
            };
            if n == Some(0) {
                self.is_ended = true;
                ready!(sink.poll_end(cx, is_last));
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is held.
    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        sink: &Side<impl Wire>,
        stats: &ServiceStats,
    ) -> Poll<Result<(), Failure>> {
        while let Some(held) = &mut self.held {
            let n = ready!(sink.poll_write(cx, &held.bytes[held.start..])).map_err(|_| Failure::Sink)?;
            held.start += n;
            if held.start >= held.bytes.len() {
                self.held = None;
            }
            self.count(stats, BytePath::Copy, n);
        }
        while let Some(pipe) = &mut self.pipe {
            let Some(sink) = sink.spliced().filter(|_| !pipe.is_empty()) else {
                self.put_pipe();
                break;
            };
            ready!(sink.poll_write_ready(cx)).map_err(|_| Failure::Sink)?;
            match sink.try_write(|| pipe.drain(sink)) {
                Ok(n) => self.count(stats, BytePath::Splice, n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Failure::Sink)),
            }
        }
        sink.poll_flush(cx).map_err(|_| Failure::Sink)
    }

    /// Reads once and writes what was read; what the sink does not take is held. Returns the number read, 0 at the end.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Side<impl Wire>,
        sink: &Side<impl Wire>,
        stats: &ServiceStats,
    ) -> Poll<Result<Option<usize>, Failure>> {
        core::with_scratch(|scratch| {
            let n = ready!(source.poll_read(cx, scratch)).map_err(|_| Failure::Source)?;
            if n == 0 {
                return Poll::Ready(Ok(Some(0)));
            }
            let bytes = &scratch[..n];
            let n_written = match sink.poll_write(cx, bytes) {
                Poll::Pending => 0,
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Sink)),
            };
            self.count(stats, BytePath::Copy, n_written);
            if n_written < n {
                self.hold(bytes[n_written..].to_vec());
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
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Side<impl Wire>,
        sink: &Side<impl Wire>,
        stats: &ServiceStats,
    ) -> Poll<Result<Option<usize>, Failure>> {
        loop {
            let (Some(from), Some(_)) = (source.spliced(), sink.spliced()) else {
                self.way = Way::CopyOnly;
                return Poll::Ready(Ok(None));
            };
            ready!(from.poll_read_ready(cx)).map_err(|_| Failure::Source)?;
            let Some(mut pipe) = core::take_pipe() else {
                return self.poll_copy(cx, source, sink, stats);
            };
            match from.try_read(|| pipe.fill(from, SPLICE_AT_MOST)) {
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
                        io::ErrorKind::WouldBlock => source.hear(cx),
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

impl Drop for Half {
    fn drop(&mut self) {
        self.put_pipe();
    }
}

/// Reads and forgets for a bounded time, so that closing does not reset what the peer has yet to read.
pub(super) async fn discard_a_while(stream: &impl Wire) {
    let _ = tokio::time::timeout(DISCARD_AT_MOST, discard(stream)).await;
}

/// Reads and forgets until the peer ends or resets.
async fn discard(stream: &impl Wire) {
    let read = |cx: &mut Context<'_>| core::with_scratch(|scratch| stream.poll_read(cx, scratch));
    while let Ok(1..) = poll_fn(read).await {}
}

const MOVES_PER_TURN: usize = 4;
const LARGE_READ: usize = 16 * 1024;
const LARGE_READS: u8 = 2;
const SPLICE_AT_MOST: usize = 1 << 20;
const SMALL_SPLICE: usize = 4 * 1024;
const SMALL_SPLICES: u8 = 4;
const DISCARD_AT_MOST: Duration = Duration::from_secs(1);

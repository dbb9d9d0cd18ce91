//! What is counted about a service: plain atomics that the hot path adds to and a scrape reads. Label sets are closed
//! enums, so that no peer can make a series. Not here: names and text formats (`admin`).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::model::EndpointHandshake;

/// Why a client's connection ended. Each closed connection has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CloseReason {
    /// The client sent something that is not HTTP, or must not be forwarded; it was told so where possible.
    BadRequest,
    /// The client ended its half within its request, or, where that ends it, while it waited for the response; its endpoint
    /// was reset.
    ClientAbort,
    /// The client ended its half first, and the connection then came to its end.
    ClientFin,
    /// The client reset the connection.
    ClientRst,
    /// The client took too long over a request head.
    ClientTimeout,
    /// No endpoint accepted a connection.
    ConnectFailed,
    /// No endpoint accepted a connection in time.
    ConnectTimeout,
    /// Ended in good order because its service or endpoint left the table.
    Drain,
    /// Reset when the stop grace period of its endpoint had passed.
    DrainForced,
    /// No more connections could be had, and its client or calling task held most: of those through it nothing had passed for
    /// longest.
    GivenUp,
    /// Nothing was sent for the idle limit.
    IdleTimeout,
    /// A cap was reached and the queue was full, or the wait too long.
    Limit,
    /// It came round: its endpoint is a published port of this program's own, and so is the one behind that, and so on.
    Loop,
    /// The service has no endpoint.
    NoEndpoint,
    /// This program is ending.
    ProxyShutdown,
    /// The last response was sent on an HTTP connection that was not to be kept.
    ResponseEnd,
    /// Of an entry point's: it is a service's from there on, and counted there (`HostSNI`).
    Routed,
    /// The client and we came to no agreement on TLS, or it spoke none; it was told so where possible.
    TlsHandshake,
    /// The upstream broke the protocol, or ended, in the middle of a response.
    UpstreamError,
    /// The upstream ended its half first, and the connection then came to its end.
    UpstreamFin,
    /// The upstream reset the connection.
    UpstreamRst,
}

impl CloseReason {
    pub const ALL: [CloseReason; 21] = [
        CloseReason::BadRequest,
        CloseReason::ClientAbort,
        CloseReason::ClientFin,
        CloseReason::ClientRst,
        CloseReason::ClientTimeout,
        CloseReason::ConnectFailed,
        CloseReason::ConnectTimeout,
        CloseReason::Drain,
        CloseReason::DrainForced,
        CloseReason::GivenUp,
        CloseReason::IdleTimeout,
        CloseReason::Limit,
        CloseReason::Loop,
        CloseReason::NoEndpoint,
        CloseReason::ProxyShutdown,
        CloseReason::ResponseEnd,
        CloseReason::Routed,
        CloseReason::TlsHandshake,
        CloseReason::UpstreamError,
        CloseReason::UpstreamFin,
        CloseReason::UpstreamRst,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::BadRequest => "bad_request",
            CloseReason::ClientAbort => "client_abort",
            CloseReason::ClientFin => "client_fin",
            CloseReason::ClientRst => "client_rst",
            CloseReason::ClientTimeout => "client_timeout",
            CloseReason::ConnectFailed => "connect_failed",
            CloseReason::ConnectTimeout => "connect_timeout",
            CloseReason::Drain => "drain",
            CloseReason::DrainForced => "drain_forced",
            CloseReason::GivenUp => "given_up",
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::Limit => "limit",
            CloseReason::Loop => "loop",
            CloseReason::NoEndpoint => "no_endpoint",
            CloseReason::ProxyShutdown => "proxy_shutdown",
            CloseReason::ResponseEnd => "response_end",
            CloseReason::Routed => "routed",
            CloseReason::TlsHandshake => "tls_handshake",
            CloseReason::UpstreamError => "upstream_error",
            CloseReason::UpstreamFin => "upstream_fin",
            CloseReason::UpstreamRst => "upstream_rst",
        }
    }
}

/// Which way bytes went, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the endpoint.
    In,
    /// From the endpoint to the client.
    Out,
}

impl Direction {
    pub const ALL: [Direction; 2] = [Direction::In, Direction::Out];

    pub fn as_str(self) -> &'static str {
        match self {
            Direction::In => "in",
            Direction::Out => "out",
        }
    }
}

/// How bytes went through this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BytePath {
    /// Through a buffer of ours.
    Copy,
    /// Inside the kernel.
    Splice,
}

impl BytePath {
    pub const ALL: [BytePath; 2] = [BytePath::Copy, BytePath::Splice];

    pub fn as_str(self) -> &'static str {
        match self {
            BytePath::Copy => "copy",
            BytePath::Splice => "splice",
        }
    }
}

/// The class of a response's status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HttpCode {
    Informational,
    Success,
    Redirection,
    ClientError,
    ServerError,
}

impl HttpCode {
    pub const ALL: [HttpCode; 5] = [
        HttpCode::Informational,
        HttpCode::Success,
        HttpCode::Redirection,
        HttpCode::ClientError,
        HttpCode::ServerError,
    ];

    /// The class of `status`; whatever is not 1xx to 4xx counts as a server's error.
    pub fn of(status: u16) -> HttpCode {
        match status / 100 {
            1 => HttpCode::Informational,
            2 => HttpCode::Success,
            3 => HttpCode::Redirection,
            4 => HttpCode::ClientError,
            _ => HttpCode::ServerError,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            HttpCode::Informational => "1xx",
            HttpCode::Success => "2xx",
            HttpCode::Redirection => "3xx",
            HttpCode::ClientError => "4xx",
            HttpCode::ServerError => "5xx",
        }
    }
}

/// What came of trying another endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RetryOutcome {
    /// A later endpoint accepted.
    Success,
    /// The last one tried failed too.
    Failure,
    /// Not tried: the retry budget was spent.
    OverBudget,
}

impl RetryOutcome {
    pub const ALL: [RetryOutcome; 3] = [RetryOutcome::Success, RetryOutcome::Failure, RetryOutcome::OverBudget];

    pub fn as_str(self) -> &'static str {
        match self {
            RetryOutcome::Success => "success",
            RetryOutcome::Failure => "failure",
            RetryOutcome::OverBudget => "over_budget",
        }
    }
}

/// Why a request was answered by a guard of its route or service, in the place of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestRefusal {
    /// The service that says whether requests may pass could not be asked.
    AuthUnavailable,
    /// Its body is longer than it may be.
    BodyTooLong,
    /// That service has answered itself.
    ForwardAuth,
    /// As many are under way as may be, from all or from the client.
    InFlight,
    /// A name and a password are asked for, and none were said.
    NoPassword,
    /// The password could not be tried: too many others are to be.
    PasswordBusy,
    /// The client has said too many wrong passwords.
    PasswordGuesses,
    /// The client asks too fast.
    Rate,
    WrongPassword,
}

impl RequestRefusal {
    pub const ALL: [RequestRefusal; 9] = [
        RequestRefusal::AuthUnavailable,
        RequestRefusal::BodyTooLong,
        RequestRefusal::ForwardAuth,
        RequestRefusal::InFlight,
        RequestRefusal::NoPassword,
        RequestRefusal::PasswordBusy,
        RequestRefusal::PasswordGuesses,
        RequestRefusal::Rate,
        RequestRefusal::WrongPassword,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            RequestRefusal::AuthUnavailable => "auth_unavailable",
            RequestRefusal::BodyTooLong => "body_too_long",
            RequestRefusal::ForwardAuth => "forward_auth",
            RequestRefusal::InFlight => "in_flight",
            RequestRefusal::NoPassword => "no_password",
            RequestRefusal::PasswordBusy => "password_busy",
            RequestRefusal::PasswordGuesses => "password_guesses",
            RequestRefusal::Rate => "rate",
            RequestRefusal::WrongPassword => "wrong_password",
        }
    }
}

/// Everything counted about one service. Relaxed atomics: each is right by itself, a scrape is no snapshot.
#[derive(Debug, Default)]
pub struct ServiceStats {
    pub connections_total: AtomicU64,
    /// Client connections now open. Never below zero; signed only so that a bug would show.
    pub connections_active: AtomicI64,
    /// Those of them that are parked: open, and waiting without a task.
    pub connections_parked: AtomicI64,
    closed: [AtomicU64; CloseReason::ALL.len()],
    bytes: [[AtomicU64; BytePath::ALL.len()]; Direction::ALL.len()],
    requests: [AtomicU64; HttpCode::ALL.len()],
    retries: [AtomicU64; RetryOutcome::ALL.len()],
    refusals: [AtomicU64; RequestRefusal::ALL.len()],
    endpoint_handshakes: [AtomicU64; EndpointHandshake::ALL.len()],
    /// Bytes of answers that were compressed, before it and after.
    compressed: [AtomicU64; 2],
    /// Times that no endpoint was healthy and all were used.
    pub panic_picks: AtomicU64,
    /// Times that an endpoint began to rest, and that one came back from it.
    pub ejections: AtomicU64,
    pub returns: AtomicU64,
    /// Times that the last endpoint was lost, and that there was one again.
    pub losses: AtomicU64,
    pub recoveries: AtomicU64,
    /// From accept to close.
    pub connection_duration: Histogram,
    /// From the first attempt to an accepted connection.
    pub upstream_connect: Histogram,
    /// From a request's head received to its response fully sent.
    pub request_duration: Histogram,
    /// From a request's head received to its response's head sent.
    pub request_ttfb: Histogram,
}

impl ServiceStats {
    pub fn opened(&self) {
        self.connections_total.fetch_add(1, Relaxed);
        self.connections_active.fetch_add(1, Relaxed);
    }

    pub fn closed(&self, reason: CloseReason, after: Duration) {
        self.closed[reason as usize].fetch_add(1, Relaxed);
        self.connections_active.fetch_sub(1, Relaxed);
        self.connection_duration.observe(after);
    }

    pub fn closed_count(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].load(Relaxed)
    }

    pub fn add_bytes(&self, direction: Direction, path: BytePath, n_bytes: u64) {
        self.bytes[direction as usize][path as usize].fetch_add(n_bytes, Relaxed);
    }

    pub fn byte_count(&self, direction: Direction, path: BytePath) -> u64 {
        self.bytes[direction as usize][path as usize].load(Relaxed)
    }

    pub fn add_request(&self, status: u16) {
        self.requests[HttpCode::of(status) as usize].fetch_add(1, Relaxed);
    }

    pub fn request_count(&self, code: HttpCode) -> u64 {
        self.requests[code as usize].load(Relaxed)
    }

    pub fn add_refusal(&self, refusal: RequestRefusal) {
        self.refusals[refusal as usize].fetch_add(1, Relaxed);
    }

    pub fn refusal_count(&self, refusal: RequestRefusal) -> u64 {
        self.refusals[refusal as usize].load(Relaxed)
    }

    pub fn add_retry(&self, outcome: RetryOutcome) {
        self.retries[outcome as usize].fetch_add(1, Relaxed);
    }

    /// `bytes`: before and after.
    pub fn add_compressed(&self, bytes: (u64, u64)) {
        self.compressed[0].fetch_add(bytes.0, Relaxed);
        self.compressed[1].fetch_add(bytes.1, Relaxed);
    }

    /// Before and after.
    pub fn compressed(&self) -> (u64, u64) {
        let [before, after] = &self.compressed;
        (before.load(Relaxed), after.load(Relaxed))
    }

    pub fn add_endpoint_handshake(&self, result: EndpointHandshake) {
        self.endpoint_handshakes[result as usize].fetch_add(1, Relaxed);
    }

    pub fn endpoint_handshake_count(&self, result: EndpointHandshake) -> u64 {
        self.endpoint_handshakes[result as usize].load(Relaxed)
    }

    pub fn retry_count(&self, outcome: RetryOutcome) -> u64 {
        self.retries[outcome as usize].load(Relaxed)
    }
}

/// A histogram of durations with fixed bounds; one relaxed addition each to a bucket and the sum.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one counts what is above every bound.
    buckets: [AtomicU64; Histogram::BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Upper bounds in microseconds: a local connect takes tens of them, a long poll a minute, a session a day.
    pub const BOUNDS_US: [u64; 18] = [
        100,
        250,
        500,
        1_000,
        2_500,
        5_000,
        10_000,
        50_000,
        100_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        30_000_000,
        60_000_000,
        300_000_000,
        3_600_000_000,
    ];

    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = Histogram::BOUNDS_US
            .iter()
            .position(|bound| us <= *bound)
            .unwrap_or(Histogram::BOUNDS_US.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Counts by bucket (not cumulative), as `BOUNDS_US` orders them, the unbounded one last; and the sum in seconds.
    pub fn read(&self) -> ([u64; Histogram::BOUNDS_US.len() + 1], f64) {
        let counts = std::array::from_fn(|i| self.buckets[i].load(Relaxed));
        (counts, self.sum_us.load(Relaxed) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_index_their_own_tables() {
        for (i, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
        let mut names: Vec<_> = CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        names.dedup();
        assert_eq!(names.len(), CloseReason::ALL.len());
        for (i, refusal) in RequestRefusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, i);
        }
    }

    #[test]
    fn a_histogram_counts_each_observation_once() {
        let histogram = Histogram::default();
        for us in [0, 100, 101, 3_600_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[18]), (2, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 4);
        assert!((sum - 3600.000202).abs() < 1e-9);
    }
}

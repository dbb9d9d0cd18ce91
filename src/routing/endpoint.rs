//! One endpoint as the data plane sees it: its address, and what is known about it right now.
//!
//! An `Endpoint` lives as long as it stays in the table under the same address, through every revision; its health is
//! kept beside the table. Health is written by `health` (probes) and by `proxy` (the outcome of connects and requests), both
//! through this file; whoever changes it moves the service's epoch, and the next pick sees it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::endpoint_id::EndpointId;
use super::ranks::stable_hash;
use super::said::Said;
use super::state::ServiceState;
use crate::model::{EndpointSpec, TaskRef};

#[derive(Debug)]
pub struct Endpoint {
    id: EndpointId,
    spec: EndpointSpec,
    service: Arc<ServiceState>,
    probe: AtomicU8,
    /// It left the table: whoever still holds it finishes what is open and picks it no more.
    draining: AtomicBool,
    in_flight: AtomicU32,
    /// Connections (tcp) or requests (http) given to it since it is known.
    picks_total: AtomicU64,
    connect_failures_total: AtomicU64,
    /// Failed connects in a row, and `UNTRIED` until one succeeds; zero on the way of success, so that it takes no lock.
    connects: AtomicU32,
    /// Requests in a row without an answer, and `RESTED` since it last rested for that; zero likewise.
    unanswered: AtomicU32,
    rest: Mutex<Rest>,
    /// Why it does not see its clients' addresses although it should. std mutex: touched when that changes or is shown.
    opaque: Mutex<Option<Arc<str>>>,
    /// Why it could not be spoken to by TLS, the last time. std mutex: touched by handshakes and who shows it.
    tls_fault: Mutex<TlsFault>,
    /// When TLS was last agreed on with it, in milliseconds since `beginning()`; 0: never.
    agreed_at: AtomicU64,
    /// When it began to take traffic, in milliseconds since `beginning()`; `NOT_YET` while it takes none. Kept where a service asks.
    takes_since: AtomicU64,
    /// std mutex: touched by each check and who shows it.
    check: Mutex<Option<Check>>,
}

/// Why TLS failed with an endpoint the last time, if it did, and what was said of it.
#[derive(Debug, Default)]
struct TlsFault {
    why: Option<Arc<str>>,
    said: Said,
}

/// What came of the last active check.
#[derive(Debug, Clone)]
pub struct Check {
    pub at: SystemTime,
    /// `None`: it passed.
    pub fault: Option<Arc<str>>,
}

/// How an endpoint rests, and what was said of it.
#[derive(Debug, Default)]
struct Rest {
    /// Why it rested last.
    why: Option<Arc<str>>,
    for_connects: Ejection,
    for_silence: Ejection,
    /// Who got no answer: the first of them, and whether there were others.
    asker: Option<Asker>,
    is_of_several: bool,
    said: Said,
}

#[derive(Debug, Default)]
struct Ejection {
    /// How often in a row; doubles the time. Forgotten by a success.
    times: u32,
    until: Option<Instant>,
}

impl Ejection {
    fn is_at(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Begins to rest, for twice as long as the last time. Returns how long.
    fn begin(&mut self, now: Instant) -> Duration {
        let length = EJECTION_FIRST
            .saturating_mul(1 << self.times.min(16))
            .min(EJECTION_LONGEST);
        self.times += 1;
        self.until = Some(now + length);
        length
    }
}

/// A client, as far as it matters whether two requests are of one: an IPv4 address, or a network of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker(u128);

impl Asker {
    /// On the machine's own loopback each connection counts as a client of its own.
    pub fn of(peer: SocketAddr) -> Asker {
        let bits = match peer.ip().to_canonical() {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            std::net::IpAddr::V6(ip) if ip.is_loopback() => ip.to_bits(),
            std::net::IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        };
        match peer.ip().to_canonical().is_loopback() {
            true => Asker(bits | u128::from(peer.port()) << 64),
            false => Asker(bits),
        }
    }
}

/// What is known of an endpoint, in the words that `status` and metrics use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// Takes traffic: the last that went there was taken, or its active check passes.
    Ready,
    /// Gets traffic; nothing is known of it yet.
    Untried,
    /// Gets traffic; the last that went there was not taken.
    Failing,
    /// Its active check fails, or has not passed yet.
    Unready,
    /// Left the table, finishes what is open.
    Draining,
    /// Failed connects, or requests without an answer, took it out for a while.
    Resting,
}

impl EndpointState {
    pub const ALL: [EndpointState; 6] = [
        EndpointState::Ready,
        EndpointState::Untried,
        EndpointState::Failing,
        EndpointState::Unready,
        EndpointState::Draining,
        EndpointState::Resting,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EndpointState::Ready => "ready",
            EndpointState::Untried => "untried",
            EndpointState::Failing => "failing",
            EndpointState::Unready => "unready",
            EndpointState::Draining => "draining",
            EndpointState::Resting => "resting",
        }
    }

    /// Whether such an endpoint is among those that are picked from.
    pub fn is_picked(self) -> bool {
        match self {
            EndpointState::Ready | EndpointState::Untried | EndpointState::Failing => true,
            EndpointState::Unready | EndpointState::Draining | EndpointState::Resting => false,
        }
    }
}

/// What came of trying to reach an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Reached,
    Failed(io::ErrorKind),
}

/// Failed connects, or requests without an answer, in a row after which an endpoint rests.
const EJECT_AFTER: u32 = 3;
/// The first rest's length; each further one in a row is twice as long, up to `EJECTION_LONGEST`.
const EJECTION_FIRST: Duration = Duration::from_secs(1);
const EJECTION_LONGEST: Duration = Duration::from_secs(60);

/// In `Endpoint::takes_since`.
const NOT_YET: u64 = u64::MAX;

/// A moment that all others are counted from.
fn beginning() -> Instant {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    *BEGINNING.get_or_init(Instant::now)
}

/// In milliseconds.
fn since_beginning(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(beginning()).as_millis()).unwrap_or(u64::MAX - 1)
}

/// In `Endpoint::connects`.
const UNTRIED: u32 = 1 << 31;
/// In `Endpoint::unanswered`.
const RESTED: u32 = 1 << 31;

const PROBE_NONE: u8 = 0;
const PROBE_UNKNOWN: u8 = 1;
const PROBE_UP: u8 = 2;
const PROBE_DOWN: u8 = 3;

impl Endpoint {
    /// `is_probed`: the service has an active check, so the endpoint waits for its first good probe.
    pub(super) fn new(spec: EndpointSpec, service: Arc<ServiceState>, is_probed: bool) -> Endpoint {
        Endpoint {
            id: EndpointId::next(),
            spec,
            service,
            probe: AtomicU8::new(if is_probed { PROBE_UNKNOWN } else { PROBE_NONE }),
            draining: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            picks_total: AtomicU64::new(0),
            connect_failures_total: AtomicU64::new(0),
            connects: AtomicU32::new(UNTRIED),
            unanswered: AtomicU32::new(0),
            rest: Mutex::default(),
            opaque: Mutex::default(),
            tls_fault: Mutex::default(),
            agreed_at: AtomicU64::new(0),
            takes_since: AtomicU64::new(NOT_YET),
            check: Mutex::default(),
        }
    }

    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// As declared; port 0 stands for the target port.
    pub fn addr(&self) -> SocketAddr {
        self.spec.addr
    }

    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    /// The task that it is, if it is one.
    pub fn task(&self) -> Option<&Arc<TaskRef>> {
        self.spec.task.as_ref()
    }

    /// For how long it has taken traffic, as `takes` says that it does now.
    pub(super) fn taken_for(&self, takes: bool, now: Instant) -> Duration {
        if !takes {
            self.takes_since.store(NOT_YET, Ordering::Relaxed);
            return Duration::ZERO;
        }
        let now = since_beginning(now);
        match self
            .takes_since
            .compare_exchange(NOT_YET, now, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => Duration::ZERO,
            Err(since) => Duration::from_millis(now.saturating_sub(since)),
        }
    }

    /// What every node knows it by: the task's id, or what was declared.
    pub(super) fn identity(&self) -> u64 {
        let netns = self.spec.netns.as_ref().map(|path| path.as_os_str().as_encoded_bytes());
        match &self.spec.task {
            Some(task) => stable_hash([task.id.as_bytes()]),
            None => stable_hash([self.spec.addr.to_string().as_bytes(), netns.unwrap_or_default()]),
        }
    }

    /// A name of it that no other endpoint of its service has: the task as Docker names it, or the address.
    pub fn label(&self) -> String {
        match &self.spec.task {
            Some(task) => format!("{}.{}", task.name, task.id),
            None => self.spec.addr.to_string(),
        }
    }

    /// Where a connection for `target` goes.
    pub fn dial_addr(&self, target: u16) -> SocketAddr {
        match self.spec.addr.port() {
            0 => SocketAddr::new(self.spec.addr.ip(), target),
            _ => self.spec.addr,
        }
    }

    pub fn opaque(&self) -> Option<Arc<str>> {
        self.opaque
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Returns whether that is news.
    pub fn set_opaque(&self, why: Option<Arc<str>>) -> bool {
        let mut opaque = self.opaque.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_news = *opaque != why;
        *opaque = why;
        is_news
    }

    pub fn tls_fault(&self) -> Option<Arc<str>> {
        let fault = self.tls_fault.lock();
        fault.unwrap_or_else(std::sync::PoisonError::into_inner).why.clone()
    }

    /// Says what came of TLS with it: `None` is all well. It is logged once, and not by each turn of what flaps.
    pub fn set_tls_fault(&self, why: Option<&str>) {
        let mut fault = self.tls_fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if fault.why.as_deref() == why {
            return;
        }
        fault.why = why.map(Arc::from);
        let (service, endpoint, now) = (self.service.name(), self.label(), Instant::now());
        match why {
            Some(why) => {
                if let Some(n_unsaid) = fault.said.out(now) {
                    tracing::warn!(%service, %endpoint, n_unsaid, "TLS with it fails: {why}");
                }
            }
            None if fault.said.back(now) => tracing::info!(%service, %endpoint, "TLS with it works again"),
            None => {}
        }
    }

    /// TLS was agreed on with it.
    pub fn agreed(&self, now: Instant) {
        self.agreed_at.store(since_beginning(now).max(1), Ordering::Relaxed);
    }

    /// Whether TLS was agreed on with it after `at`, by anybody.
    pub fn has_agreed_since(&self, at: Instant) -> bool {
        self.agreed_at.load(Ordering::Relaxed) > since_beginning(at)
    }

    /// It is spoken to without TLS from now on.
    pub(super) fn drop_tls_fault(&self) {
        let mut fault = self.tls_fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        fault.why = None;
    }

    pub fn service(&self) -> &Arc<ServiceState> {
        &self.service
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub fn picks_total(&self) -> u64 {
        self.picks_total.load(Ordering::Relaxed)
    }

    pub fn connect_failures_total(&self) -> u64 {
        self.connect_failures_total.load(Ordering::Relaxed)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn state(&self, now: Instant) -> EndpointState {
        if self.is_draining() {
            return EndpointState::Draining;
        }
        if matches!(self.probe.load(Ordering::Acquire), PROBE_DOWN | PROBE_UNKNOWN) {
            return EndpointState::Unready;
        }
        if self.ejected_until().is_some_and(|until| until > now) {
            return EndpointState::Resting;
        }
        match (
            self.connects.load(Ordering::Acquire),
            self.unanswered.load(Ordering::Acquire),
        ) {
            (0, 0) => EndpointState::Ready,
            (UNTRIED, 0) => EndpointState::Untried,
            (0, unanswered) if unanswered & RESTED == 0 => EndpointState::Ready,
            _ => EndpointState::Failing,
        }
    }

    /// Whether it is known not to take traffic: its check fails, or it failed often enough to rest, also while it is tried
    /// again.
    pub fn is_out(&self) -> bool {
        self.is_draining()
            || self.probe.load(Ordering::Acquire) == PROBE_DOWN
            || self.connects.load(Ordering::Acquire) & !UNTRIED >= EJECT_AFTER
            || self.unanswered.load(Ordering::Acquire) & RESTED != 0
    }

    /// When its rest ends or ended; `None` if it does not rest.
    pub(super) fn ejected_until(&self) -> Option<Instant> {
        // A shortcut past the lock: who rests has failures in a row.
        if self.connects.load(Ordering::Acquire) & !UNTRIED == 0 && self.unanswered.load(Ordering::Acquire) == 0 {
            return None;
        }
        let rest = self.lock_rest();
        rest.for_connects.until.max(rest.for_silence.until)
    }

    /// The active check's verdict. A good one also ends a rest for failed connects: the endpoint accepts connections again.
    /// Returns whether it is news.
    pub fn set_probed(&self, is_up: bool) -> bool {
        let verdict = if is_up { PROBE_UP } else { PROBE_DOWN };
        let was = self.probe.swap(verdict, Ordering::AcqRel);
        if is_up {
            self.reached();
        }
        if was != verdict {
            self.service.health_changed();
        }
        was != verdict
    }

    /// What came of a check, whatever the verdict is by now.
    pub fn checked(&self, fault: Option<&str>) {
        let mut check = self.check.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *check = Some(Check {
            at: SystemTime::now(),
            fault: fault.map(Arc::from),
        });
    }

    pub fn last_check(&self) -> Option<Check> {
        let check = self.check.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        check.clone()
    }

    /// Why it is not ready, in words; `None` where it is, or where there is no more to say than its state does.
    pub fn why_not_ready(&self, now: Instant) -> Option<Arc<str>> {
        match self.state(now) {
            EndpointState::Unready => match self.last_check() {
                Some(check) => check.fault,
                None => Some("its check has not passed yet".into()),
            },
            EndpointState::Resting | EndpointState::Failing => {
                self.tls_fault().or_else(|| self.lock_rest().why.clone())
            }
            EndpointState::Ready | EndpointState::Untried => self.opaque(),
            EndpointState::Draining => None,
        }
    }

    /// The service has no active check any more: only the passive one speaks.
    pub fn clear_probed(&self) {
        if self.probe.swap(PROBE_NONE, Ordering::AcqRel) != PROBE_NONE {
            self.service.health_changed();
        }
    }

    /// What came of a connect. Three failures in a row have the endpoint rest, for longer each time; one success forgets.
    pub fn report(&self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Reached => self.reached(),
            Outcome::Failed(why) => {
                self.connect_failures_total.fetch_add(1, Ordering::Relaxed);
                let failures = self.connects.fetch_add(1, Ordering::AcqRel).saturating_add(1) & !UNTRIED;
                match failures {
                    1 => self.service.tell(),
                    ..EJECT_AFTER => {}
                    _ => self.eject_for_connects(why, now),
                }
            }
        }
    }

    fn eject_for_connects(&self, why: io::ErrorKind, now: Instant) {
        let mut rest = self.lock_rest();
        if rest.for_connects.is_at(now) {
            // Those who were on their way when it began to rest fail too; that is not a second rest.
            return;
        }
        let length = rest.for_connects.begin(now);
        let n_unsaid = rest.said.out(now);
        let why = format!("{EJECT_AFTER} connects in a row failed: {why}");
        rest.why = Some(why.as_str().into());
        drop(rest);
        self.ejected(length, n_unsaid, &why);
    }

    /// `n_unsaid`: `None` if it was said already.
    fn ejected(&self, length: Duration, n_unsaid: Option<Option<u32>>, why: &str) {
        self.service.stats.ejections.fetch_add(1, Ordering::Relaxed);
        self.service.health_changed();
        if let Some(n_unsaid) = n_unsaid {
            let (service, endpoint) = (self.service.name(), self.label());
            tracing::warn!(%service, endpoint, n_unsaid, "endpoint rests, for {length:?} at first: {why}");
        }
    }

    fn came_back(&self, is_to_say: bool) {
        self.service.stats.returns.fetch_add(1, Ordering::Relaxed);
        self.service.health_changed();
        if is_to_say {
            let (service, endpoint) = (self.service.name(), self.label());
            tracing::info!(%service, endpoint, "endpoint is back");
        }
    }

    fn reached(&self) {
        if self.connects.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut rest = self.lock_rest();
        let was_ejected = std::mem::take(&mut rest.for_connects).until.is_some();
        self.connects.store(0, Ordering::Release);
        // One that has yet to answer is not back.
        let is_back = was_ejected && rest.for_silence.until.is_none();
        let is_to_say = is_back && rest.said.back(Instant::now());
        drop(rest);
        match is_back {
            true => self.came_back(is_to_say),
            false => self.service.tell(),
        }
    }

    /// It answered a request.
    pub fn answered(&self) {
        if self.unanswered.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut rest = self.lock_rest();
        let was_ejected = std::mem::take(&mut rest.for_silence).until.is_some();
        (rest.asker, rest.is_of_several) = (None, false);
        self.unanswered.store(0, Ordering::Release);
        let is_to_say = was_ejected && rest.said.back(Instant::now());
        drop(rest);
        if was_ejected {
            self.came_back(is_to_say);
        }
    }

    /// It accepted a connection, got a request of `asker`, and ended without an answer. `may_rest`, asked when it is due:
    /// whether the service can do without it.
    ///
    /// Three in a row have it rest, if they are of two clients at least, so that nobody alone can take an endpoint away.
    pub(super) fn left_unanswered(&self, asker: Asker, now: Instant, may_rest: impl FnOnce() -> bool) {
        let mut rest = self.lock_rest();
        if rest.for_silence.is_at(now) {
            return;
        }
        rest.is_of_several |= rest.asker.is_some_and(|first| first != asker);
        rest.asker.get_or_insert(asker);
        let n = self.unanswered.fetch_add(1, Ordering::AcqRel).saturating_add(1) & !RESTED;
        if n < EJECT_AFTER || !rest.is_of_several || !may_rest() {
            return;
        }
        let length = rest.for_silence.begin(now);
        // After its rest it takes as many of as many clients again.
        (rest.asker, rest.is_of_several) = (None, false);
        self.unanswered.store(RESTED, Ordering::Release);
        let n_unsaid = rest.said.out(now);
        let why = format!("{EJECT_AFTER} requests in a row got no answer");
        rest.why = Some(why.as_str().into());
        drop(rest);
        self.ejected(length, n_unsaid, &why);
    }

    /// Counts one more in flight, unless that would pass `cap` (0: none).
    pub fn begin(&self, cap: u32) -> bool {
        let before = self.in_flight.fetch_add(1, Ordering::SeqCst);
        if cap != 0 && before >= cap {
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        self.picks_total.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Counts one less in flight, and lets one who waits for an endpoint look again.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.service.endpoint_gate.freed();
    }

    /// Enters or leaves the draining state with the table.
    pub(super) fn set_draining(&self, draining: bool) {
        if draining {
            // Should it return, it is new again.
            self.takes_since.store(NOT_YET, Ordering::Relaxed);
        }
        if self.draining.swap(draining, Ordering::AcqRel) != draining {
            self.service.health_changed();
        }
    }

    /// std mutex: held for a few loads and stores, nothing awaits or panics under it.
    fn lock_rest(&self) -> std::sync::MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;

    const REFUSED: Outcome = Outcome::Failed(io::ErrorKind::ConnectionRefused);

    fn endpoint(is_probed: bool) -> Endpoint {
        let service = Arc::new(ServiceState::new(ServiceName::new("web").unwrap(), Arc::default()));
        Endpoint::new("127.0.0.1:9001".parse().unwrap(), service, is_probed)
    }

    #[test]
    fn three_failures_in_a_row_eject_for_longer_each_time() {
        let endpoint = endpoint(false);
        let mut now = Instant::now();
        let fail = |n: u32, now| (0..n).for_each(|_| endpoint.report(REFUSED, now));
        fail(2, now);
        endpoint.report(Outcome::Reached, now);
        fail(2, now);
        assert_eq!(endpoint.state(now), EndpointState::Failing);
        assert!(!endpoint.is_out());
        fail(1, now);
        assert_eq!(endpoint.state(now), EndpointState::Resting);
        fail(5, now);
        now += EJECTION_FIRST;
        assert_eq!(
            endpoint.state(now),
            EndpointState::Failing,
            "late failures do not lengthen it"
        );
        assert!(endpoint.is_out());
        fail(1, now);
        assert_eq!(endpoint.state(now + EJECTION_FIRST), EndpointState::Resting);
        now += 2 * EJECTION_FIRST;
        assert_eq!(endpoint.state(now), EndpointState::Failing);
        endpoint.report(Outcome::Reached, now);
        assert_eq!(endpoint.state(now), EndpointState::Ready);
        fail(3, now);
        assert_eq!(endpoint.state(now + EJECTION_FIRST), EndpointState::Failing);
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let stats = &endpoint.service().stats;
        assert_eq!((count(&stats.ejections), count(&stats.returns)), (3, 1));
    }

    #[test]
    fn requests_without_an_answer_count_if_they_are_of_two_clients_and_others_are_left() {
        let (endpoint, mut now) = (endpoint(false), Instant::now());
        let asker = |n: u8| Asker::of(SocketAddr::from(([192, 0, 2, n], 1)));
        endpoint.report(Outcome::Reached, now);
        let ask = |n: u8, may_rest: bool, now| {
            endpoint.left_unanswered(asker(n), now, || may_rest);
            endpoint.state(now)
        };
        for _ in 0..10 {
            assert_eq!(ask(1, true, now), EndpointState::Ready, "one client alone");
        }
        assert_eq!(ask(2, false, now), EndpointState::Ready, "nobody else is there");
        endpoint.answered();
        assert_eq!(ask(1, true, now), EndpointState::Ready);
        assert_eq!(ask(2, true, now), EndpointState::Ready);
        assert_eq!(ask(1, true, now), EndpointState::Resting);
        endpoint.report(Outcome::Reached, now);
        assert_eq!(
            endpoint.state(now),
            EndpointState::Resting,
            "it accepts: that is no answer"
        );
        now += EJECTION_FIRST;
        assert_eq!(endpoint.state(now), EndpointState::Failing);
        assert!(endpoint.is_out());
        assert_eq!(ask(1, true, now), EndpointState::Failing);
        assert_eq!(ask(1, true, now), EndpointState::Failing);
        assert_eq!(ask(2, true, now), EndpointState::Resting);
        assert_eq!(
            endpoint.state(now + EJECTION_FIRST),
            EndpointState::Resting,
            "twice as long"
        );
        endpoint.answered();
        assert_eq!((endpoint.state(now), endpoint.is_out()), (EndpointState::Ready, false));
    }

    #[test]
    fn who_counts_as_one_client() {
        let of = |text: &str| Asker::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1:1"), of("192.0.2.1:2"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::2:1]:1"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_ne!(of("127.0.0.1:1"), of("127.0.0.1:2"));
        assert_ne!(of("[::1]:1"), of("[::1]:2"));
    }

    #[test]
    fn a_probed_endpoint_waits_for_its_first_good_probe() {
        let endpoint = endpoint(true);
        let now = Instant::now();
        assert_eq!(endpoint.state(now), EndpointState::Unready);
        endpoint.set_probed(true);
        assert_eq!(endpoint.state(now), EndpointState::Ready);
        (0..3).for_each(|_| endpoint.report(REFUSED, now));
        assert_eq!(endpoint.state(now), EndpointState::Resting);
        endpoint.set_probed(true);
        assert_eq!(endpoint.state(now), EndpointState::Ready);
        endpoint.set_probed(false);
        assert_eq!(endpoint.state(now), EndpointState::Unready);
        endpoint.clear_probed();
        assert_eq!(endpoint.state(now), EndpointState::Ready);
    }

    #[test]
    fn in_flight_never_passes_its_cap() {
        let endpoint = endpoint(false);
        assert!(endpoint.begin(2) && endpoint.begin(2) && !endpoint.begin(2));
        endpoint.end();
        assert!(endpoint.begin(2));
        assert_eq!((endpoint.in_flight(), endpoint.picks_total()), (2, 3));
    }
}

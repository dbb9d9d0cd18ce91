//! One endpoint as the data plane sees it: its address, and what is known about it right now.
//!
//! An `Endpoint` lives as long as it stays in the table under the same address, through every revision; its health is
//! kept beside the table. Health is written by `health` (probes) and by `proxy` (the outcome of connects), both through
//! this file; whoever changes it moves the service's epoch, and the next pick sees it.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::state::ServiceState;
use crate::model::{EndpointSpec, TaskRef};

/// Names one endpoint for the life of this program; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(NonZeroU64);

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
    /// Failed connects in a row; zero on the way of success, so that success need not take the lock.
    failures_in_row: AtomicU32,
    ejection: Mutex<Ejection>,
    /// Why it does not see its clients' addresses although it should. std mutex: touched when that changes or is shown.
    opaque: Mutex<Option<Arc<str>>>,
}

#[derive(Debug, Default)]
struct Ejection {
    /// How often in a row; doubles the time. Forgotten by a success.
    times: u32,
    until: Option<Instant>,
}

/// What is known of an endpoint, in the words that `status` and metrics use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// Takes traffic.
    Ready,
    /// Its active check fails, or has not passed yet.
    Unready,
    /// Left the table, finishes what is open.
    Draining,
    /// Failed connects took it out for a while.
    Ejected,
}

impl EndpointState {
    pub const ALL: [EndpointState; 4] = [
        EndpointState::Ready,
        EndpointState::Unready,
        EndpointState::Draining,
        EndpointState::Ejected,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            EndpointState::Ready => "ready",
            EndpointState::Unready => "unready",
            EndpointState::Draining => "draining",
            EndpointState::Ejected => "ejected",
        }
    }
}

/// What came of trying to reach an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Reached,
    Failed,
}

/// Failed connects in a row after which an endpoint is ejected.
const EJECT_AFTER: u32 = 3;
/// The first ejection's length; each further one in a row is twice as long, up to `EJECTION_LONGEST`.
const EJECTION_FIRST: Duration = Duration::from_secs(1);
const EJECTION_LONGEST: Duration = Duration::from_secs(60);

const PROBE_NONE: u8 = 0;
const PROBE_UNKNOWN: u8 = 1;
const PROBE_UP: u8 = 2;
const PROBE_DOWN: u8 = 3;

impl Endpoint {
    /// `is_probed`: the service has an active check, so the endpoint waits for its first good probe.
    pub(super) fn new(spec: EndpointSpec, service: Arc<ServiceState>, is_probed: bool) -> Endpoint {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Endpoint {
            // It begins at one, and nobody lives long enough to see it wrap.
            id: EndpointId(NonZeroU64::new(NEXT_ID.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MAX)),
            spec,
            service,
            probe: AtomicU8::new(if is_probed { PROBE_UNKNOWN } else { PROBE_NONE }),
            draining: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            picks_total: AtomicU64::new(0),
            connect_failures_total: AtomicU64::new(0),
            failures_in_row: AtomicU32::new(0),
            ejection: Mutex::new(Ejection::default()),
            opaque: Mutex::default(),
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
        match self.probe.load(Ordering::Acquire) {
            PROBE_DOWN | PROBE_UNKNOWN => EndpointState::Unready,
            _ if self.ejected_until().is_some_and(|until| until > now) => EndpointState::Ejected,
            _ => EndpointState::Ready,
        }
    }

    /// When its ejection ends or ended; `None` if it is not ejected.
    pub(super) fn ejected_until(&self) -> Option<Instant> {
        // A shortcut past the lock: an ejected endpoint has failures in a row.
        if self.failures_in_row.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.lock_ejection().until
    }

    /// The active check's verdict. A good one also ends an ejection: the endpoint accepts connections again.
    pub fn set_probed(&self, is_up: bool) {
        let verdict = if is_up { PROBE_UP } else { PROBE_DOWN };
        let was = self.probe.swap(verdict, Ordering::AcqRel);
        if is_up {
            self.forget_failures();
        }
        if was != verdict {
            self.service.health_changed();
        }
    }

    /// The service has no active check any more: only the passive one speaks.
    pub fn clear_probed(&self) {
        if self.probe.swap(PROBE_NONE, Ordering::AcqRel) != PROBE_NONE {
            self.service.health_changed();
        }
    }

    /// What came of a connect. Three failures in a row eject the endpoint, for longer each time; one success forgets.
    pub fn report(&self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Reached => self.forget_failures(),
            Outcome::Failed => {
                self.connect_failures_total.fetch_add(1, Ordering::Relaxed);
                let failures = self.failures_in_row.fetch_add(1, Ordering::AcqRel).saturating_add(1);
                if failures >= EJECT_AFTER {
                    self.eject(now);
                }
            }
        }
    }

    fn eject(&self, now: Instant) {
        let mut ejection = self.lock_ejection();
        if ejection.until.is_some_and(|until| until > now) {
            // Those who were on their way when it was ejected fail too; that is not a second ejection.
            return;
        }
        let length = EJECTION_FIRST
            .saturating_mul(1 << ejection.times.min(16))
            .min(EJECTION_LONGEST);
        ejection.times += 1;
        ejection.until = Some(now + length);
        drop(ejection);
        self.service.stats.ejections.fetch_add(1, Ordering::Relaxed);
        self.service.health_changed();
    }

    fn forget_failures(&self) {
        if self.failures_in_row.load(Ordering::Acquire) == 0 {
            return;
        }
        let was_ejected = std::mem::take(&mut *self.lock_ejection()).until.is_some();
        self.failures_in_row.store(0, Ordering::Release);
        if was_ejected {
            self.service.health_changed();
        }
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
        if self.draining.swap(draining, Ordering::AcqRel) != draining {
            self.service.health_changed();
        }
    }

    /// std mutex: held for a few loads and stores, nothing awaits or panics under it.
    fn lock_ejection(&self) -> std::sync::MutexGuard<'_, Ejection> {
        self.ejection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;

    fn endpoint(is_probed: bool) -> Endpoint {
        let service = Arc::new(ServiceState::new(ServiceName::new("web").unwrap()));
        Endpoint::new("127.0.0.1:9001".parse().unwrap(), service, is_probed)
    }

    #[test]
    fn three_failures_in_a_row_eject_for_longer_each_time() {
        let endpoint = endpoint(false);
        let mut now = Instant::now();
        let fail = |n: u32, now| (0..n).for_each(|_| endpoint.report(Outcome::Failed, now));
        fail(2, now);
        endpoint.report(Outcome::Reached, now);
        fail(2, now);
        assert_eq!(endpoint.state(now), EndpointState::Ready);
        fail(1, now);
        assert_eq!(endpoint.state(now), EndpointState::Ejected);
        fail(5, now);
        now += EJECTION_FIRST;
        assert_eq!(
            endpoint.state(now),
            EndpointState::Ready,
            "late failures do not lengthen it"
        );
        fail(1, now);
        assert_eq!(endpoint.state(now + EJECTION_FIRST), EndpointState::Ejected);
        now += 2 * EJECTION_FIRST;
        assert_eq!(endpoint.state(now), EndpointState::Ready);
        endpoint.report(Outcome::Reached, now);
        fail(3, now);
        assert_eq!(endpoint.state(now + EJECTION_FIRST), EndpointState::Ready);
    }

    #[test]
    fn a_probed_endpoint_waits_for_its_first_good_probe() {
        let endpoint = endpoint(true);
        let now = Instant::now();
        assert_eq!(endpoint.state(now), EndpointState::Unready);
        endpoint.set_probed(true);
        assert_eq!(endpoint.state(now), EndpointState::Ready);
        (0..3).for_each(|_| endpoint.report(Outcome::Failed, now));
        assert_eq!(endpoint.state(now), EndpointState::Ejected);
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

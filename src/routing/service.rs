//! One service of one routing table, and what of it outlives the table: counters, gates, the retry budget.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::endpoint::Endpoint;
use super::picks::Picks;
use super::stats::ServiceStats;
use crate::model::{ServiceName, ServiceSpec};

/// A service in one revision of the table. A revision that does not change it shares it.
#[derive(Debug)]
pub struct Service {
    spec: Arc<ServiceSpec>,
    vip: Option<Ipv4Addr>,
    state: Arc<ServiceState>,
    endpoints: Box<[Arc<Endpoint>]>,
    picks: ArcSwap<Picks>,
}

impl Service {
    /// Builds the service of the next table. Endpoints that stay are the same objects, and the turn passes to the one
    /// whose turn it was, or else to the next that stays.
    pub(super) fn build(
        spec: Arc<ServiceSpec>,
        vip: Option<Ipv4Addr>,
        state: Arc<ServiceState>,
        before: Option<&Service>,
    ) -> Service {
        let is_probed = spec.health.is_some();
        let mut retired = state.retired.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        retired.retain(|endpoint| endpoint.strong_count() > 0);
        let mut known: std::collections::HashMap<_, Arc<Endpoint>> = retired
            .iter()
            .filter_map(Weak::upgrade)
            .map(|endpoint| (endpoint.spec().clone(), endpoint))
            .collect();
        for endpoint in before.iter().flat_map(|service| &service.endpoints) {
            known.insert(endpoint.spec().clone(), endpoint.clone());
        }
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(spec.endpoints.len());
        for declared in &spec.endpoints {
            let endpoint = known.get(declared).cloned().unwrap_or_else(|| {
                Arc::new(Endpoint::new(
                    declared.clone(),
                    state.clone(),
                    is_probed && !declared.is_remote(),
                ))
            });
            endpoints.push(endpoint);
        }
        drop(retired);
        let now = Instant::now();
        let first = before
            .and_then(|service| {
                let picks = service.picks.load();
                let stays = |i: usize| {
                    let id = service.endpoints[i].id();
                    endpoints.iter().position(|endpoint| endpoint.id() == id)
                };
                picks.upcoming().find_map(stays)
            })
            .map_or(0, |i| u32::try_from(i).unwrap_or(0));
        let picks = Picks::new(&endpoints, state.epoch(), now, first);
        Service {
            spec,
            vip,
            state,
            endpoints: endpoints.into(),
            picks: ArcSwap::from_pointee(picks),
        }
    }

    /// A service that is in no table, to count by.
    pub fn apart(spec: ServiceSpec) -> Service {
        let state = Arc::new(ServiceState::new(spec.name.clone()));
        Service::build(Arc::new(spec), None, state, None)
    }

    pub fn name(&self) -> &ServiceName {
        &self.spec.name
    }

    pub fn spec(&self) -> &Arc<ServiceSpec> {
        &self.spec
    }

    pub fn vip(&self) -> Option<Ipv4Addr> {
        self.vip
    }

    pub fn state(&self) -> &Arc<ServiceState> {
        &self.state
    }

    pub fn stats(&self) -> &ServiceStats {
        &self.state.stats
    }

    /// In table order.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The endpoints that may be picked now. O(1), no lock, unless health changed since the last call.
    pub fn picks(&self, now: Instant) -> arc_swap::Guard<Arc<Picks>> {
        let picks = self.picks.load();
        let is_fresh = picks.epoch == self.state.epoch() && picks.valid_until.is_none_or(|until| now < until);
        if is_fresh {
            return picks;
        }
        // Two cores may both come here; each stores a right list, and at worst one turn is taken twice.
        let epoch = self.state.epoch();
        let first = picks.upcoming().next().map_or(0, |i| u32::try_from(i).unwrap_or(0));
        self.picks
            .store(Arc::new(Picks::new(&self.endpoints, epoch, now, first)));
        self.picks.load()
    }

    /// Takes back endpoints that had left, before the table that has them again is the current one.
    pub(super) fn welcome(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.set_draining(false));
    }

    /// Marks the endpoints that `after` has no more, once the table that says so is the current one.
    pub(super) fn dismiss(&self, after: Option<&Service>) {
        let before = self;
        let stays = |endpoint: &Endpoint| {
            after.is_some_and(|service| service.endpoints.iter().any(|other| other.id() == endpoint.id()))
        };
        let leavers: Vec<&Arc<Endpoint>> = before.endpoints.iter().filter(|endpoint| !stays(endpoint)).collect();
        if leavers.is_empty() {
            return;
        }
        let mut retired = before
            .state
            .retired
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for endpoint in leavers {
            endpoint.set_draining(true);
            retired.retain(|old| !std::ptr::eq(old.as_ptr(), Arc::as_ptr(endpoint)));
            retired.push(Arc::downgrade(endpoint));
        }
    }
}

/// What of a service outlives tables.
#[derive(Debug)]
pub struct ServiceState {
    name: ServiceName,
    pub stats: ServiceStats,
    /// What came from other nodes for tasks of this one: apart, since the other nodes count it as their clients'.
    last_hops: OnceLock<Box<ServiceStats>>,
    /// Where clients wait while the service has as many connections as it may.
    pub connection_gate: Gate,
    /// Where clients wait while every endpoint has as much in flight as it may.
    pub endpoint_gate: Gate,
    /// Where clients wait while there is no endpoint that takes them.
    pub hold_gate: Gate,
    pub retry_budget: RetryBudget,
    health_epoch: AtomicU64,
    /// Endpoints that left the table, for as long as connections hold them: one that comes back is the same again.
    retired: Mutex<Vec<Weak<Endpoint>>>,
}

impl ServiceState {
    pub fn new(name: ServiceName) -> ServiceState {
        ServiceState {
            name,
            stats: ServiceStats::default(),
            last_hops: OnceLock::new(),
            connection_gate: Gate::default(),
            endpoint_gate: Gate::default(),
            hold_gate: Gate::default(),
            retry_budget: RetryBudget::default(),
            health_epoch: AtomicU64::new(0),
            retired: Mutex::new(Vec::new()),
        }
    }

    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The counters of what came from other nodes; made by the first.
    pub fn last_hops(&self) -> &ServiceStats {
        self.last_hops.get_or_init(Box::default)
    }

    /// The same, unless nothing came yet.
    pub fn last_hops_so_far(&self) -> Option<&ServiceStats> {
        self.last_hops.get().map(|stats| &**stats)
    }

    /// Endpoints that left the table and still have connections.
    pub fn draining(&self) -> Vec<Arc<Endpoint>> {
        let retired = self.retired.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        retired
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|endpoint| endpoint.is_draining())
            .collect()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.health_epoch.load(Ordering::Acquire)
    }

    pub(super) fn health_changed(&self) {
        self.health_epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// Something of which there is only so much, and a bounded queue of those who wait for it.
#[derive(Debug, Default)]
pub struct Gate {
    taken: AtomicU32,
    waiting: AtomicU32,
    notify: Notify,
}

impl Gate {
    /// Takes one, unless `cap` are taken already (0: no cap). Whoever took gives back with `release`.
    pub fn try_take(&self, cap: u32) -> bool {
        let before = self.taken.fetch_add(1, Ordering::SeqCst);
        let is_taken = cap == 0 || before < cap;
        if !is_taken {
            self.taken.fetch_sub(1, Ordering::SeqCst);
        }
        is_taken
    }

    pub fn release(&self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
        self.freed();
    }

    /// How many wait.
    pub fn depth(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes a place in the queue, unless `limit` already wait.
    pub fn enter(&self, limit: u32) -> Option<GatePlace<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        let place = GatePlace { gate: self };
        // Dropping the place gives it back.
        (before < limit).then_some(place)
    }

    /// Something was freed: the first who waits looks again.
    pub fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.notify.notify_one();
        }
    }
}

/// A place in the queue of a `Gate`; given back when dropped.
#[derive(Debug)]
pub struct GatePlace<'a> {
    gate: &'a Gate,
}

impl GatePlace<'_> {
    /// Waits until something may have been freed. The caller looks again before and after: a wake-up is a hint.
    pub async fn freed(&self) {
        self.gate.notify.notified().await;
    }
}

impl Drop for GatePlace<'_> {
    fn drop(&mut self) {
        self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
        // Whoever leaves may have swallowed a wake-up that the next one needs.
        self.gate.freed();
    }
}

/// How many retries a service may still spend: each request earns a fifth of one, each retry costs one, and a small
/// reserve grows back with time. What keeps retries from doubling the load on endpoints that are failing.
#[derive(Debug)]
pub struct RetryBudget {
    milli_tokens: AtomicI64,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget {
            milli_tokens: AtomicI64::new(RETRY_RESERVE),
        }
    }
}

const RETRY_COST: i64 = 1000;
const RETRY_EARNED: i64 = 200;
const RETRY_RESERVE: i64 = 20 * RETRY_COST;
const RETRY_SAVED_MOST: i64 = 500 * RETRY_COST;

impl RetryBudget {
    /// A request was made.
    pub fn earn(&self) {
        if self.milli_tokens.load(Ordering::Relaxed) < RETRY_SAVED_MOST {
            self.milli_tokens.fetch_add(RETRY_EARNED, Ordering::Relaxed);
        }
    }

    /// Takes a retry out of the budget, if there is one.
    pub fn spend(&self) -> bool {
        self.milli_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left >= RETRY_COST).then_some(left - RETRY_COST)
            })
            .is_ok()
    }

    /// Tops the budget up to its reserve: called once a second, so that a quiet service may retry too.
    pub fn refill(&self, elapsed: Duration) {
        let earned = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX).saturating_mul(3);
        let _ = self
            .milli_tokens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left < RETRY_RESERVE).then(|| left.saturating_add(earned).min(RETRY_RESERVE))
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_may_be_retried() {
        let budget = RetryBudget::default();
        let reserve = std::iter::repeat_with(|| budget.spend())
            .take_while(|spent| *spent)
            .count();
        assert_eq!(reserve, 20);
        (0..5).for_each(|_| budget.earn());
        assert!(budget.spend() && !budget.spend());
        budget.refill(Duration::from_secs(1));
        assert_eq!(
            std::iter::repeat_with(|| budget.spend())
                .take_while(|spent| *spent)
                .count(),
            3
        );
        (0..100_000).for_each(|_| budget.earn());
        assert_eq!(
            std::iter::repeat_with(|| budget.spend())
                .take_while(|spent| *spent)
                .count(),
            500
        );
    }

    #[test]
    fn a_gate_lets_only_so_many_wait() {
        let gate = Gate::default();
        let first = gate.enter(1);
        assert!(first.is_some() && gate.enter(1).is_none());
        assert_eq!(gate.depth(), 1);
        drop(first);
        assert!(gate.enter(1).is_some());
        assert_eq!(gate.depth(), 0);
    }
}

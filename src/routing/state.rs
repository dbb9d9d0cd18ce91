//! What of a service outlives tables: counters, gates, the retry budget, and that something about its endpoints' health
//! changed. Its endpoints hold it, and it knows none of them.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::closes::LastCloses;
use super::gate::Gate;
use super::guards::GuardStates;
use super::lookout::Lookouts;
use super::retry_budget::RetryBudget;
use super::stats::ServiceStats;
use crate::model::ServiceName;

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
    /// What is counted for what is asked of its requests.
    pub guards: GuardStates,
    /// Who looks out for an endpoint on behalf of those who wait.
    pub lookouts: Lookouts,
    /// How its last connections ended.
    pub last_closes: LastCloses,
    health_epoch: AtomicU64,
    /// How many versions of the service were built by now.
    versions: AtomicU64,
    news: Arc<HealthNews>,
    /// Whose news it is among, a bit for each.
    is_news: AtomicU8,
    /// Held while it is decided whether the service can do without an endpoint.
    resting: Mutex<()>,
}

impl ServiceState {
    pub(super) fn new(name: ServiceName, news: Arc<HealthNews>) -> ServiceState {
        ServiceState {
            name,
            stats: ServiceStats::default(),
            last_hops: OnceLock::new(),
            connection_gate: Gate::default(),
            endpoint_gate: Gate::default(),
            hold_gate: Gate::default(),
            retry_budget: RetryBudget::default(),
            guards: GuardStates::default(),
            lookouts: Lookouts::default(),
            last_closes: LastCloses::default(),
            health_epoch: AtomicU64::new(0),
            versions: AtomicU64::new(0),
            news,
            is_news: AtomicU8::new(0),
            resting: Mutex::new(()),
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

    /// The number of a version of the service that is being built.
    pub(super) fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the version that was built last.
    pub(super) fn version(&self) -> u64 {
        self.versions.load(Ordering::Acquire)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.health_epoch.load(Ordering::Acquire)
    }

    pub(super) fn health_changed(&self) {
        self.health_epoch.fetch_add(1, Ordering::AcqRel);
        self.tell();
    }

    /// Something is to be said of an endpoint, who is picked from stays.
    pub(super) fn tell(&self) {
        let all = Listener::ALL
            .into_iter()
            .fold(0, |bits, listener| bits | listener.bit());
        let before = self.is_news.fetch_or(all, Ordering::AcqRel);
        for listener in Listener::ALL {
            if before & listener.bit() == 0 {
                self.news.add(listener, self.name.clone());
            }
        }
    }

    /// Whoever heard the news is about to look at the endpoints: what changes from here on is news again.
    pub fn heard_news(&self, listener: Listener) {
        self.is_news.fetch_and(!listener.bit(), Ordering::AcqRel);
    }

    /// std mutex: nothing awaits under it.
    pub(super) fn lock_resting(&self) -> MutexGuard<'_, ()> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who follows the health of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Says when a service has lost its last endpoint.
    Losses,
    /// Keeps what the page shows.
    Page,
}

impl Listener {
    const ALL: [Listener; 2] = [Listener::Losses, Listener::Page];

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Services some endpoint of which changed its health, for each listener, who says of each that he has heard of it.
#[derive(Debug, Default)]
pub struct HealthNews([News; Listener::ALL.len()]);

#[derive(Debug, Default)]
struct News {
    /// Somebody listens.
    is_heard: AtomicBool,
    /// std mutex: touched when an endpoint's health changes. Each service is in it once at most.
    services: Mutex<Vec<ServiceName>>,
    notify: Notify,
}

impl HealthNews {
    fn add(&self, listener: Listener, service: ServiceName) {
        let news = &self.0[listener as usize];
        if news.is_heard.load(Ordering::Acquire) {
            news.lock().push(service);
            news.notify.notify_one();
        }
    }

    /// From here on there is news for `listener`, who looks at all services now. Nothing is kept for who does not listen.
    pub fn listen(&self, listener: Listener) {
        self.0[listener as usize].is_heard.store(true, Ordering::Release);
    }

    /// Waits for some. Nothing is lost when this is cancelled. One at a time may wait as `listener`.
    pub async fn next(&self, listener: Listener) -> Vec<ServiceName> {
        let news = &self.0[listener as usize];
        loop {
            let services = std::mem::take(&mut *news.lock());
            if !services.is_empty() {
                return services;
            }
            news.notify.notified().await;
        }
    }
}

impl News {
    fn lock(&self) -> MutexGuard<'_, Vec<ServiceName>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

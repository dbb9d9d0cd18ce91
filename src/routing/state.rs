//! What of a service outlives tables: counters, gates, the retry budget, and that something about its endpoints' health
//! changed. Its endpoints hold it, and it knows none of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

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
    health_epoch: AtomicU64,
    /// How many versions of the service were built by now.
    versions: AtomicU64,
    news: Arc<HealthNews>,
    /// It is among the news.
    is_news: AtomicBool,
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
            health_epoch: AtomicU64::new(0),
            versions: AtomicU64::new(0),
            news,
            is_news: AtomicBool::new(false),
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
        if !self.is_news.swap(true, Ordering::AcqRel) {
            self.news.add(self.name.clone());
        }
    }

    /// Whoever heard the news is about to look at the endpoints: what changes from here on is news again.
    pub fn heard_news(&self) {
        self.is_news.store(false, Ordering::Release);
    }

    /// std mutex: nothing awaits under it.
    pub(super) fn lock_resting(&self) -> MutexGuard<'_, ()> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Services some endpoint of which changed its health. For one listener, who says of each that he has heard of it.
#[derive(Debug, Default)]
pub struct HealthNews {
    /// std mutex: touched when an endpoint's health changes. Each service is in it once at most.
    services: Mutex<Vec<ServiceName>>,
    notify: Notify,
}

impl HealthNews {
    fn add(&self, service: ServiceName) {
        self.lock().push(service);
        self.notify.notify_one();
    }

    /// Waits for some. Nothing is lost when this is cancelled.
    pub async fn next(&self) -> Vec<ServiceName> {
        loop {
            let services = std::mem::take(&mut *self.lock());
            if !services.is_empty() {
                return services;
            }
            self.notify.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ServiceName>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

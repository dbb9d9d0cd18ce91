//! What of a service outlives tables: counters, gates, the retry budget, and that something about its endpoints' health
//! changed. Its endpoints hold it, and it knows none of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gate::{Gate, RetryBudget};
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
    health_epoch: AtomicU64,
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

    pub(super) fn epoch(&self) -> u64 {
        self.health_epoch.load(Ordering::Acquire)
    }

    pub(super) fn health_changed(&self) {
        self.health_epoch.fetch_add(1, Ordering::AcqRel);
    }
}

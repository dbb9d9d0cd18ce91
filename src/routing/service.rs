//! One service of one routing table: its spec, its endpoints and whose turn it is. Not here: what of it outlives the table
//! (`state`).

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::endpoint::{Asker, Endpoint};
use super::marks::Mark;
use super::picks::{Picks, Start};
use super::state::ServiceState;
use super::stats::ServiceStats;
use crate::model::{ServiceName, ServiceSpec};

/// A service in one revision of the table. A revision that does not change it shares it.
#[derive(Debug)]
pub struct Service {
    spec: Arc<ServiceSpec>,
    vip: Option<Ipv4Addr>,
    state: Arc<ServiceState>,
    /// Counts the versions that were built of it.
    version: u64,
    endpoints: Box<[Arc<Endpoint>]>,
    /// Of each endpoint, where cookies keep clients at theirs.
    marks: Box<[Mark]>,
    picks: ArcSwap<Picks>,
}

impl Service {
    /// Builds the service of the next table. Endpoints that stay are the same objects, and the turn passes to the one
    /// whose turn it was, or else to the next that stays. `retired`: those that left it before and are still held. `place`: who
    /// begins where nobody was picked yet, as an index counted round.
    pub(super) fn build(
        spec: Arc<ServiceSpec>,
        vip: Option<Ipv4Addr>,
        state: Arc<ServiceState>,
        before: Option<&Service>,
        retired: Vec<Arc<Endpoint>>,
        place: u32,
    ) -> Service {
        let is_probed = spec.health.is_some();
        let mut known: HashMap<_, Arc<Endpoint>> = retired
            .into_iter()
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
        let now = Instant::now();
        let start = before.and_then(|service| {
            let picks = service.picks.load();
            if let Start::Place(_) = picks.start() {
                return None;
            }
            let stays = |i: usize| {
                let id = service.endpoints[i].id();
                endpoints.iter().position(|endpoint| endpoint.id() == id)
            };
            let first = picks.upcoming().find_map(stays)?;
            Some(Start::Of {
                first: u32::try_from(first).unwrap_or(0),
                turn: picks.turn(),
            })
        });
        let start = start.unwrap_or(Start::Place(place));
        let picks = Picks::new(&endpoints, &spec, state.epoch(), now, start);
        let marks = spec.sticky.iter().flat_map(|sticky| {
            let of = |endpoint| Mark::of(sticky, &spec.name, endpoint);
            spec.endpoints.iter().map(of)
        });
        let marks = marks.collect();
        Service {
            spec,
            vip,
            version: state.next_version(),
            state,
            endpoints: endpoints.into(),
            marks,
            picks: ArcSwap::from_pointee(picks),
        }
    }

    /// A service that is in no table, to count by.
    pub fn apart(spec: ServiceSpec) -> Service {
        let state = Arc::new(ServiceState::new(spec.name.clone(), Arc::default()));
        Service::build(Arc::new(spec), None, state, None, Vec::new(), 0)
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

    /// Whether no other version of it was built since: then no table has a newer one. Cheaper than to ask the table.
    pub fn is_latest(&self) -> bool {
        self.version == self.state.version()
    }

    /// In table order.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Which of its endpoints a cookie is of.
    pub fn marked(&self, mark: Mark) -> Option<usize> {
        self.marks.iter().position(|known| *known == mark)
    }

    /// What the cookie of a client of this endpoint says, where there is to be one. The endpoint may be of a newer table.
    pub fn mark_of(&self, endpoint: &Endpoint) -> Option<Mark> {
        let sticky = self.spec.sticky.as_ref()?;
        let place = self.endpoints.iter().position(|known| known.id() == endpoint.id());
        let known = place.and_then(|place| self.marks.get(place).copied());
        Some(known.unwrap_or_else(|| Mark::of(sticky, &self.spec.name, endpoint.spec())))
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
        let start = picks.start();
        self.picks
            .store(Arc::new(Picks::new(&self.endpoints, &self.spec, epoch, now, start)));
        self.picks.load()
    }

    /// An endpoint of this service accepted a connection, got a request of `asker`, and ended without an answer. It may come
    /// to rest for that, but never the last that is left, and never more than half of them.
    pub fn left_unanswered(&self, endpoint: &Endpoint, asker: Asker, now: Instant) {
        let _one_at_a_time = self.state.lock_resting();
        let can_do_without = || {
            let is_left = |other: &&Arc<Endpoint>| other.state(now).is_picked() && !other.is_out();
            let others = self.endpoints.iter().filter(|other| other.id() != endpoint.id());
            2 * others.filter(is_left).count() >= self.endpoints.len().max(2)
        };
        endpoint.left_unanswered(asker, now, can_do_without);
    }

    /// Whether it has endpoints, and is known to have none that is well.
    pub fn is_lost(&self) -> bool {
        !self.endpoints.is_empty() && self.endpoints.iter().all(|endpoint| endpoint.is_out())
    }

    /// Takes back endpoints that had left, before the table that has them again is the current one.
    pub(super) fn welcome(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.set_draining(false));
    }

    /// Marks the endpoints that `after` has no more, once the table that says so is the current one, and returns them.
    pub(super) fn dismiss(&self, after: Option<&Service>) -> Vec<&Arc<Endpoint>> {
        let stays = |endpoint: &Endpoint| {
            after.is_some_and(|service| service.endpoints.iter().any(|other| other.id() == endpoint.id()))
        };
        let leavers: Vec<&Arc<Endpoint>> = self.endpoints.iter().filter(|endpoint| !stays(endpoint)).collect();
        leavers.iter().for_each(|endpoint| endpoint.set_draining(true));
        leavers
    }
}

//! Which endpoints of a service may be picked right now, and whose turn it is. A small immutable list beside the table,
//! made anew when health changes; a pick reads it without a lock. Not here: the policy (`proxy::balancer`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::endpoint::{Endpoint, EndpointState};

/// The endpoints that may be picked, in table order, as indices into the service's endpoints.
#[derive(Debug)]
pub struct Picks {
    order: Box<[u32]>,
    /// Shared by all cores, so that turns are exact.
    cursor: AtomicUsize,
    /// Where the cursor began, and the place that it was for, if nobody had been picked by then.
    fresh: Option<(usize, u32)>,
    /// The health epoch that this list shows.
    pub(super) epoch: u64,
    /// When an ejection ends and the list is stale by time alone.
    pub(super) valid_until: Option<Instant>,
    is_panic: bool,
}

/// Who begins a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Nobody was picked yet: whoever is at this place, counted round. Nodes with places of their own begin apart.
    Place(u32),
    /// The endpoint with this index, or else the next after it that may be picked.
    Of(u32),
}

impl Picks {
    /// The list for `endpoints` now.
    ///
    /// Panic rule: when none is ready, all are used rather than none.
    pub(super) fn new(endpoints: &[Arc<Endpoint>], epoch: u64, now: Instant, start: Start) -> Picks {
        let index = |i: usize| u32::try_from(i).unwrap_or(u32::MAX);
        let mut order: Vec<u32> = Vec::with_capacity(endpoints.len());
        let mut valid_until: Option<Instant> = None;
        for (i, endpoint) in endpoints.iter().enumerate() {
            match endpoint.state(now) {
                EndpointState::Ready | EndpointState::Untried | EndpointState::Failing => order.push(index(i)),
                EndpointState::Resting => {
                    let until = endpoint.ejected_until();
                    valid_until = [valid_until, until].into_iter().flatten().min();
                }
                EndpointState::Unready | EndpointState::Draining => {}
            }
        }
        let is_panic = order.is_empty() && !endpoints.is_empty();
        if is_panic {
            order.extend((0..endpoints.len()).map(index));
        }
        let cursor = match start {
            Start::Place(place) => (place as usize).checked_rem(order.len()).unwrap_or(0),
            Start::Of(first) => order.iter().position(|i| *i >= first).unwrap_or(0),
        };
        let fresh = match start {
            Start::Place(place) => Some((cursor, place)),
            Start::Of(_) => None,
        };
        Picks {
            order: order.into(),
            cursor: AtomicUsize::new(cursor),
            fresh,
            epoch,
            valid_until,
            is_panic,
        }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// No endpoint is ready, so all are in the list.
    pub fn is_panic(&self) -> bool {
        self.is_panic
    }

    /// Takes the next turn; `None` if there is no endpoint. O(1).
    pub fn next(&self) -> Option<usize> {
        if self.order.is_empty() {
            return None;
        }
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed) % self.order.len();
        Some(self.order[turn] as usize)
    }

    /// The endpoint at `place` of the list, for whoever draws its own lots. `place` wraps around; the list is not empty.
    pub fn at(&self, place: usize) -> Option<usize> {
        let place = place.checked_rem(self.order.len())?;
        Some(self.order[place] as usize)
    }

    /// Who begins the list that follows this one, where the endpoints are the same.
    pub(super) fn start(&self) -> Start {
        match self.fresh {
            Some((began_at, place)) if self.cursor.load(Ordering::Relaxed) == began_at => Start::Place(place),
            _ => Start::Of(self.upcoming().next().map_or(0, |i| u32::try_from(i).unwrap_or(0))),
        }
    }

    /// Whose turn is next, without taking it: the whole order of turns from here.
    pub(super) fn upcoming(&self) -> impl Iterator<Item = usize> {
        let (len, at) = (self.order.len(), self.cursor.load(Ordering::Relaxed));
        (0..len).map(move |i| self.order[at.wrapping_add(i) % len] as usize)
    }
}

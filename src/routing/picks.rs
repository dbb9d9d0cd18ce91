//! Which endpoints of a service may be picked right now, and whose turn it is. A small immutable list beside the table,
//! made anew when health changes; a pick reads it without a lock. Not here: the policy (`proxy::balancer`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::{Endpoint, EndpointState};
use super::ranks::Ranks;
use super::shares::Shares;
use crate::model::{Balance, Prefer, ServiceSpec};

/// The endpoints that may be picked, as indices into the service's endpoints.
#[derive(Debug)]
pub struct Picks {
    /// In table order those that take turns, then likewise those that are asked where these cannot take it or have much to do, then
    /// those that get something only where nobody else takes it.
    order: Box<[u32]>,
    /// How many take turns.
    n_turns: usize,
    /// Up to where they are asked where others have much to do.
    end_of_others: usize,
    /// Shared by all cores, so that turns are exact.
    cursor: AtomicUsize,
    /// Where not all that take turns have as many.
    shares: Option<Box<Shares>>,
    /// Of those that take turns, where keys are hashed.
    ranks: Option<Box<Ranks>>,
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
    Of {
        /// The endpoint with this index, or else the next after it that takes turns.
        first: u32,
        /// Where shares are not alike: how many turns there were.
        turn: usize,
    },
}

impl Picks {
    /// The list for `endpoints`, which are those of `spec`, now.
    ///
    /// Panic rule: when none is ready, all are used rather than none. Endpoints without weight take turns only where no other
    /// is in the list, and those of other nodes, where this one's are preferred, only where none of this one's is.
    pub(super) fn new(
        endpoints: &[Arc<Endpoint>],
        spec: &ServiceSpec,
        epoch: u64,
        now: Instant,
        start: Start,
    ) -> Picks {
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
        // Before the panic rule: whoever is used for want of better has not begun.
        let growth = Growth::of(endpoints, &order, spec.slow_start, now);
        if let Some(growth) = &growth {
            valid_until = [valid_until, Some(growth.next)].into_iter().flatten().min();
        }
        if is_panic {
            order.extend((0..endpoints.len()).map(index));
        }
        let (mut n_turns, mut end_of_others) = (order.len(), order.len());
        let mut shares = None;
        if !spec.weights.is_empty() || spec.prefer == Prefer::Local || growth.is_some() {
            let weight_of = |i: &u32| spec.weight_of(*i as usize).get();
            let is_near = |i: &u32| spec.prefer == Prefer::Any || spec.is_near(*i as usize);
            let rank = |i: &u32| match (weight_of(i), is_near(i)) {
                (0, _) => 2,
                (_, true) => 0,
                (_, false) => 1,
            };
            order.sort_by_key(rank);
            let up_to = |rank_of_last| order.partition_point(|i| rank(i) <= rank_of_last);
            end_of_others = up_to(1);
            // Whoever comes first takes turns.
            n_turns = [up_to(0), end_of_others, order.len()]
                .into_iter()
                .find(|n| *n != 0)
                .unwrap_or(0);
            end_of_others = end_of_others.max(n_turns);
            let grown = |i: &u32| match &growth {
                Some(growth) => weight_of(i) * growth.of[*i as usize],
                None => weight_of(i),
            };
            let parts: Vec<(u32, u32)> = order[..n_turns].iter().map(|i| (*i, grown(i))).collect();
            let are_alike = parts.windows(2).all(|pair| pair[0].1 == pair[1].1);
            shares = (!are_alike).then(|| Box::new(Shares::new(&parts, endpoints.len())));
        }
        let ranks = (spec.balance == Balance::Hash).then(|| {
            let part = |i: &u32| {
                (
                    endpoints[*i as usize].identity(),
                    spec.weight_of(*i as usize).get().max(1),
                )
            };
            Box::new(Ranks::new(order[..n_turns].iter().map(part)))
        });
        let cursor = match (start, &shares) {
            (Start::Place(place), Some(_)) => place as usize,
            (Start::Place(place), None) => (place as usize).checked_rem(n_turns).unwrap_or(0),
            (Start::Of { turn, .. }, Some(_)) => turn,
            (Start::Of { first, .. }, None) => order[..n_turns].iter().position(|i| *i >= first).unwrap_or(0),
        };
        let fresh = match start {
            Start::Place(place) => Some((cursor, place)),
            Start::Of { .. } => None,
        };
        Picks {
            order: order.into(),
            n_turns,
            end_of_others,
            cursor: AtomicUsize::new(cursor),
            shares,
            ranks,
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

    /// How many of them take turns.
    pub fn n_turns(&self) -> usize {
        self.n_turns
    }

    /// No endpoint is ready, so all are in the list.
    pub fn is_panic(&self) -> bool {
        self.is_panic
    }

    /// Takes the next turn; `None` if there is no endpoint. O(1).
    pub fn next(&self) -> Option<usize> {
        if self.n_turns == 0 {
            return None;
        }
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
        if let Some(shares) = &self.shares {
            return Some(shares.at(turn));
        }
        Some(self.order[turn % self.n_turns] as usize)
    }

    /// Two endpoints that take turns, drawn by lot, each with its weight; not the same one, where there are others. `None` if there
    /// is none. O(1).
    pub fn two(&self) -> Option<[(usize, u32); 2]> {
        if self.n_turns == 0 {
            return None;
        }
        if let Some(shares) = &self.shares {
            return Some(two_of(shares));
        }
        let first = fastrand::usize(..self.n_turns);
        // Another one than the first, where there is another.
        let second = first + 1 + fastrand::usize(..self.n_turns.saturating_sub(1).max(1));
        let at = |place: usize| (self.order[place % self.n_turns] as usize, 1);
        Some([at(first), at(second)])
    }

    /// Those that take turns and may not have come up in `n_turns` of them.
    pub fn missed(&self) -> impl Iterator<Item = usize> {
        let missed = match self.shares {
            Some(_) => &self.order[..self.n_turns],
            None => &[],
        };
        missed.iter().map(|i| *i as usize)
    }

    /// Whether this endpoint is in the list.
    pub fn has(&self, index: usize) -> bool {
        self.order.iter().any(|i| *i as usize == index)
    }

    /// Those that take turns, the first for `key` first, where keys are hashed. O(n) each, no allocation.
    pub fn ranked(&self, key: u64) -> impl Iterator<Item = usize> {
        let ranks = self.ranks.iter().flat_map(move |ranks| ranks.of(key));
        ranks.map(|place| self.order[place] as usize)
    }

    /// Whether there are others beside those that take turns, for when these have much to do.
    pub fn has_others(&self) -> bool {
        self.n_turns != self.end_of_others
    }

    /// All of these others, whichever first: turns of the first are no measure for theirs.
    pub fn others(&self) -> impl Iterator<Item = usize> {
        let others = &self.order[self.n_turns..self.end_of_others];
        let first = fastrand::usize(..others.len().max(1));
        (0..others.len()).map(move |place| others[first.wrapping_add(place) % others.len()] as usize)
    }

    /// Those that get something only where nobody else takes it.
    pub fn reserve(&self) -> impl Iterator<Item = usize> {
        self.order[self.end_of_others..].iter().map(|i| *i as usize)
    }

    /// The endpoint at `place` of the whole list.
    pub fn at(&self, place: usize) -> Option<usize> {
        self.order.get(place).map(|i| *i as usize)
    }

    /// Who begins the list that follows this one, where the endpoints are the same.
    pub(super) fn start(&self) -> Start {
        match self.fresh {
            Some((began_at, place)) if self.cursor.load(Ordering::Relaxed) == began_at => Start::Place(place),
            _ => Start::Of {
                first: self.upcoming().next().map_or(0, |i| u32::try_from(i).unwrap_or(0)),
                turn: self.turn(),
            },
        }
    }

    pub(super) fn turn(&self) -> usize {
        self.cursor.load(Ordering::Relaxed)
    }

    /// Whose turn is next, without taking it: an order of all that take turns from here.
    pub fn upcoming(&self) -> impl Iterator<Item = usize> {
        let (n, at) = (self.n_turns, self.turn());
        let next = self.shares.as_ref().map(|shares| shares.at(at));
        let at = next.map_or(at, |next| {
            let mut turns = self.order[..n].iter();
            turns.position(|i| *i as usize == next).unwrap_or(0)
        });
        (0..n).map(move |i| self.order[at.wrapping_add(i) % n] as usize)
    }
}

/// How much of its share each endpoint has while some are new.
struct Growth {
    /// Per mille, by index.
    of: Vec<u32>,
    /// When it is worth another look.
    next: Instant,
}

impl Growth {
    /// `None` where nobody grows. `order`: who takes traffic, ascending.
    fn of(endpoints: &[Arc<Endpoint>], order: &[u32], slow_start: Duration, now: Instant) -> Option<Growth> {
        if slow_start.is_zero() {
            return None;
        }
        let mut takes = order.iter().map(|i| *i as usize).peekable();
        let of = endpoints.iter().enumerate().map(|(i, endpoint)| {
            let takes = takes.next_if_eq(&i).is_some();
            let part = endpoint.taken_for(takes, now).as_secs_f64() / slow_start.as_secs_f64();
            // From 0 to 1, both of them kept apart from what is less and more.
            ((part * 1000.0) as u32).clamp(LEAST_PER_MILLE, 1000)
        });
        let of: Vec<u32> = of.collect();
        let grows = order.iter().any(|i| of[*i as usize] < 1000);
        grows.then(|| Growth {
            of,
            next: now + (slow_start / STEPS).max(SHORTEST_STEP),
        })
    }
}

/// What a new endpoint begins with: something, so that it is known whether it answers.
const LEAST_PER_MILLE: u32 = 20;
/// Looks at who has grown.
const STEPS: u32 = 50;
const SHORTEST_STEP: Duration = Duration::from_millis(10);

fn two_of(shares: &Shares) -> [(usize, u32); 2] {
    let draw = || shares.at(fastrand::usize(..shares.period()));
    let first = draw();
    let mut second = draw();
    // Who has most of the turns would mostly be drawn against itself.
    for _ in 0..DRAWS_MOST {
        if second != first {
            break;
        }
        second = draw();
    }
    [(first, shares.weight(first)), (second, shares.weight(second))]
}

/// For a second endpoint; an endpoint that has nearly all turns gets this one too.
const DRAWS_MOST: u32 = 3;

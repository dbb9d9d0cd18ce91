//! Which endpoint a connection or request goes to, and how it waits where caps are reached. Not here: health and turns
//! (`routing`), the sockets (`upstream`).

use std::cell::Cell;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::patience::Patience;
use super::rounds::Round;
use crate::model::Balance;
use crate::routing::{CloseReason, Endpoint, EndpointId, Gate, Mark, Picks, Service, stable_hash};

/// One connection or request in flight at an endpoint, counted for as long as this lives.
#[derive(Debug)]
pub(super) struct Lease {
    endpoint: Arc<Endpoint>,
    /// Of a connection to a port of our own.
    round: Option<Box<Round>>,
}

impl Lease {
    /// Of an endpoint that was told to `begin` already.
    pub(super) fn of(endpoint: Arc<Endpoint>) -> Lease {
        Lease { endpoint, round: None }
    }

    /// Keeps what is known of the connection for as long.
    pub(super) fn keep(&mut self, round: Option<Box<Round>>) {
        self.round = round;
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.end();
    }
}

/// What a client says of the endpoint that it is to have, where its service asks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wish {
    /// The hash of what is to lead to the same endpoint.
    pub(super) key: Option<u64>,
    /// The endpoint that it had.
    pub(super) mark: Option<Mark>,
}

impl Wish {
    /// For all that has this text in common.
    pub(super) fn of_key(text: &[u8]) -> Wish {
        Wish {
            key: Some(stable_hash([text])),
            mark: None,
        }
    }

    /// For all of one client.
    pub(super) fn of_client(ip: IpAddr) -> Wish {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Wish::of_key(&ip.octets()),
            IpAddr::V6(ip) => Wish::of_key(&ip.octets()),
        }
    }
}

/// Why there is no endpoint to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPick {
    /// The service has none.
    None,
    /// All of them were tried.
    Tried,
    /// Those left have as much in flight as they may.
    Full,
    /// The client is not to be waited with any longer.
    Gone(CloseReason),
}

/// Picks an endpoint that is not in `tried`. O(1) where none was tried and none is full; no allocation.
///
/// Where keys are hashed O(n); a client without one has turns.
///
/// Source for `least-request`: power of two random choices (Mitzenmacher 2001).
pub(super) fn pick(service: &Service, wish: Wish, tried: &[EndpointId], now: Instant) -> Result<Lease, NoPick> {
    let picks = service.picks(now);
    // What it mostly comes to.
    let is_any = wish.key.is_none() && wish.mark.is_none() && tried.is_empty();
    if is_any
        && service.spec().balance == Balance::RoundRobin
        && !picks.is_panic()
        && !picks.has_others()
        && let Some(i) = picks.next()
    {
        let endpoint = &service.endpoints()[i];
        if endpoint.begin(service.spec().limits.endpoint_connections) {
            return Ok(Lease::of(endpoint.clone()));
        }
    }
    pick_among(service, &picks, wish, tried)
}

#[inline(never)]
fn pick_among(service: &Service, picks: &Picks, wish: Wish, tried: &[EndpointId]) -> Result<Lease, NoPick> {
    if picks.is_empty() {
        return Err(NoPick::None);
    }
    if picks.is_panic() {
        service.stats().panic_picks.fetch_add(1, Ordering::Relaxed);
    }
    let cap = service.spec().limits.endpoint_connections;
    let is_full = Cell::new(false);
    let mut lease = |i: usize| {
        let endpoint = &service.endpoints()[i];
        if tried.contains(&endpoint.id()) {
            return None;
        }
        if !endpoint.begin(cap) {
            is_full.set(true);
            return None;
        }
        Some(Lease::of(endpoint.clone()))
    };
    if let Some(mark) = wish.mark
        && let Some(i) = service.marked(mark).filter(|i| picks.has(*i))
    {
        // Its own is worth waiting for.
        match lease(i) {
            Some(lease) => return Ok(lease),
            None if is_full.get() => return Err(NoPick::Full),
            None => {}
        }
    }
    if let Some(key) = wish.key
        && let Some(lease) = picks.ranked(key).find_map(&mut lease)
    {
        return Ok(lease);
    }
    if picks.has_others()
        && let Some(lease) = near_or_idle(service, picks).and_then(&mut lease)
    {
        return Ok(lease);
    }
    if service.spec().balance == Balance::LeastRequest
        && let Some(lease) = less_loaded_of_two(service, picks).and_then(&mut lease)
    {
        return Ok(lease);
    }
    for _ in 0..picks.n_turns() {
        if let Some(lease) = picks.next().and_then(&mut lease) {
            return Ok(lease);
        }
    }
    if let Some(lease) = picks.missed().find_map(&mut lease) {
        return Ok(lease);
    }
    if let Some(lease) = picks.others().find_map(&mut lease) {
        return Ok(lease);
    }
    // Whoever has no weight is no place to put what others are about to have room for.
    if is_full.get() {
        return Err(NoPick::Full);
    }
    picks.reserve().find_map(&mut lease).ok_or_else(|| match is_full.get() {
        true => NoPick::Full,
        false => NoPick::Tried,
    })
}

/// An endpoint of this node, or one of another where the former has much in flight and the latter less than half as much.
/// The others are looked at in turn, so that over many picks this compares with their mean. O(1).
fn near_or_idle(service: &Service, picks: &Picks) -> Option<usize> {
    let load = |i: usize| service.endpoints()[i].in_flight();
    let near = match service.spec().balance {
        Balance::LeastRequest => less_loaded_of_two(service, picks),
        Balance::RoundRobin | Balance::Hash => None,
    };
    let near = near.or_else(|| picks.next())?;
    if load(near) < MUCH {
        return Some(near);
    }
    let is_idle = |other: &usize| load(*other) < load(near) / 2;
    Some(picks.others().next().filter(is_idle).unwrap_or(near))
}

/// In flight at one endpoint of this node before those of others are considered beside it.
const MUCH: u32 = 100;

fn less_loaded_of_two(service: &Service, picks: &Picks) -> Option<usize> {
    let [(first, its_weight), (second, other_weight)] = picks.two()?;
    let load = |i: usize| u64::from(service.endpoints()[i].in_flight());
    let is_less = load(second) * u64::from(its_weight) < load(first) * u64::from(other_weight);
    Some(if is_less { second } else { first })
}

/// Picks an endpoint, waiting in the service's queue while all have as much in flight as they may.
///
/// Errors: `Full` when the queue is full or the wait too long.
pub(super) async fn pick_or_wait(
    service: &Service,
    wish: Wish,
    tried: &[EndpointId],
    now: Instant,
    patience: &mut Patience<'_>,
) -> Result<Lease, NoPick> {
    match pick(service, wish, tried, now) {
        Err(NoPick::Full) => {}
        result => return result,
    }
    let limits = &service.spec().limits;
    let attempt = || match pick(service, wish, tried, Instant::now()) {
        Err(NoPick::Full) => None,
        result => Some(result),
    };
    let gate = &service.state().endpoint_gate;
    // It does not take whichever endpoint is free next.
    let is_choosy = wish.mark.is_some() || !tried.is_empty();
    match wait(gate, is_choosy, limits.queue, limits.queue_timeout, patience, attempt).await {
        Ok(result) => result,
        Err(CloseReason::Limit) => Err(NoPick::Full),
        Err(reason) => Err(NoPick::Gone(reason)),
    }
}

/// Takes one of the service's client connections, if there is one left and nobody waits for it already. Whoever was
/// admitted gives it back with `connection_gate.release()`.
pub(super) fn try_admit(service: &Service) -> bool {
    let gate = &service.state().connection_gate;
    gate.depth() == 0 && gate.try_take(service.spec().limits.connections)
}

/// Takes one of the service's client connections, waiting in its queue while it has as many as it may.
///
/// Errors: `limit` when the queue is full or the wait too long, else what became of the client.
pub(super) async fn admit(service: &Service, patience: &mut Patience<'_>) -> Result<(), CloseReason> {
    let limits = &service.spec().limits;
    let gate = &service.state().connection_gate;
    let attempt = || gate.try_take(limits.connections).then_some(());
    wait(gate, false, limits.queue, limits.queue_timeout, patience, attempt).await
}

/// Waits in the queue of `gate` until `attempt` gives something. Errors: `limit` when no place is left or the time over, else
/// what became of the client.
async fn wait<T>(
    gate: &Gate,
    is_choosy: bool,
    queue: u32,
    timeout: std::time::Duration,
    patience: &mut Patience<'_>,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T, CloseReason> {
    let mut place = patience.enter(gate, queue).ok_or(CloseReason::Limit)?;
    if is_choosy {
        place.chooses();
    }
    let waiting = async {
        loop {
            let mut freed = pin!(place.freed());
            // What is freed from here on is heard.
            freed.as_mut().enable();
            if let Some(result) = attempt() {
                return result;
            }
            freed.await;
        }
    };
    let waiting = patience.wait(&place, waiting);
    if timeout.is_zero() {
        return waiting.await;
    }
    tokio::time::timeout(timeout, waiting)
        .await
        .unwrap_or(Err(CloseReason::Limit))
}

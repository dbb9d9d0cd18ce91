//! Idle upstream connections of one worker, by endpoint and the port there, the last one used first. Not here: when one may be used again
//! (`serve`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::proxy::files::Spare;
use crate::proxy::secured::{Agreed, Offer};
use crate::proxy::wire::Leg;
use crate::routing::EndpointId;
use crate::tls::Seal;

thread_local! {
    static POOL: Pool<(EndpointId, u16)> = RefCell::new(HashMap::new());
    /// Those over TLS, by how the endpoint was judged too, and what it could choose from.
    static SECURED: Pool<(EndpointId, u16, Seal, Offer)> = RefCell::new(HashMap::new());
}

type Pool<K> = RefCell<HashMap<K, Vec<Idle>>>;

struct Idle {
    stream: Leg,
    since: Instant,
    _spare: Spare,
}

/// An idle connection to `target` of `endpoint` that its peer has neither ended nor written to, as far as is known.
pub(super) fn take(endpoint: EndpointId, target: u16) -> Option<Leg> {
    POOL.with(|pool| take_from(pool, (endpoint, target)))
}

/// The same over TLS, of those whose endpoint was judged so. Where HTTP/2 would do, an endpoint that was not offered it is no word on what it
/// speaks.
pub(super) fn take_secured(endpoint: EndpointId, target: u16, seal: Seal, offer: Offer) -> Option<Leg> {
    let of = |offer| SECURED.with(|pool| take_from(pool, (endpoint, target, seal, offer)));
    match offer {
        Offer::Any => of(Offer::Any),
        Offer::Http1 => of(Offer::Http1).or_else(|| of(Offer::Any)),
    }
}

fn take_from<K: Hash + Eq>(pool: &Pool<K>, key: K) -> Option<Leg> {
    let mut pool = pool.borrow_mut();
    let idle = pool.get_mut(&key)?;
    while let Some(Idle { stream, .. }) = idle.pop() {
        // Nothing is due on an idle connection: whatever there is to read is its end, or not for us.
        if stream.is_quiet() && !stream.is_leaving() {
            return Some(stream);
        }
    }
    None
}

/// Keeps a connection for the next request, unless `most` are kept already or this worker keeps as much as it may.
pub(super) fn put(endpoint: EndpointId, target: u16, stream: Leg, now: Instant, most: usize) {
    match stream.agreed() {
        None => POOL.with(|pool| put_into(pool, (endpoint, target), stream, now, most)),
        Some(Agreed { seal, offer, .. }) => {
            SECURED.with(|pool| put_into(pool, (endpoint, target, seal, offer), stream, now, most));
        }
    }
}

fn put_into<K: Hash + Eq>(pool: &Pool<K>, key: K, stream: Leg, now: Instant, most: usize) {
    let mut pool = pool.borrow_mut();
    let idle = pool.entry(key).or_default();
    if idle.len() < most
        && let Some(spare) = Spare::take()
    {
        idle.push(Idle {
            stream,
            since: now,
            _spare: spare,
        });
    }
}

/// Closes all connections to an endpoint that left the table.
pub(in crate::proxy) fn forget(endpoint: EndpointId) {
    POOL.with(|pool| pool.borrow_mut().retain(|(of, _), _| *of != endpoint));
    SECURED.with(|pool| pool.borrow_mut().retain(|(of, ..), _| *of != endpoint));
}

/// Closes those that were idle for `longest`.
pub(in crate::proxy) fn expire(now: Instant, longest: Duration) {
    let is_any_left = |idle: &mut Vec<Idle>| {
        // The oldest come first, as the last one used is taken first.
        let n_old = idle.partition_point(|idle| now.saturating_duration_since(idle.since) >= longest);
        idle.drain(..n_old);
        !idle.is_empty()
    };
    POOL.with(|pool| pool.borrow_mut().retain(|_, idle| is_any_left(idle)));
    SECURED.with(|pool| pool.borrow_mut().retain(|_, idle| is_any_left(idle)));
}

/// Closes everything, before the runtime that watches the connections ends.
pub(in crate::proxy) fn clear() {
    POOL.with(|pool| pool.borrow_mut().clear());
    SECURED.with(|pool| pool.borrow_mut().clear());
}

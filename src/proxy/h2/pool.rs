//! Connections of one worker to endpoints that speak HTTP/2, by endpoint and the port there. Each carries many requests; another is
//! made where those that stand carry as many as the endpoint takes. Not here: when one is wanted (`h1`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};

use super::io::Io;
use super::leg::{Leg, Place};
use crate::proxy::files::Spare;
use crate::proxy::wire::{self, TunnelLeg, Wire};
use crate::routing::EndpointId;
use crate::tls::Seal;

thread_local! {
    /// By how the endpoint was judged too, where it is spoken to over TLS.
    static POOL: RefCell<HashMap<Way, Vec<Shared>>> = RefCell::new(HashMap::new());
}

/// To an endpoint, a port of it, and how it was judged.
type Way = (EndpointId, u16, Option<Seal>);

/// A connection that requests share.
struct Shared {
    sender: SendRequest<Bytes>,
    /// Of its URLs.
    scheme: &'static str,
    /// Each request holds one more.
    places: Arc<Place>,
    /// Whether the node of the endpoint is about to end, where that can be known.
    leaving: Option<wire::Leaving>,
    /// When it last carried a request, as far as was seen.
    since: Instant,
    spare: Option<Spare>,
}

/// A place for one more request on a connection that stands to `target` of `endpoint`. `seal`: how that must have been judged; `None`: it
/// is spoken to without TLS.
pub(in crate::proxy) fn take(endpoint: EndpointId, target: u16, seal: Option<Seal>) -> Option<wire::Leg> {
    POOL.with(|pool| {
        let mut pool = pool.borrow_mut();
        let shared = pool.get_mut(&(endpoint, target, seal))?;
        // What has ended, or takes nothing new, carries what it has to its end.
        shared.retain_mut(Shared::takes_more);
        let free = shared.iter_mut().find(|shared| shared.has_room())?;
        free.since = Instant::now();
        Some(free.leg())
    })
}

/// Speaks HTTP/2 on a connection that was just made, and keeps it for others unless this worker keeps as much as it may. It ends
/// once nobody has it. `head_bytes_max`: what a response's head may have. `None`: it has gone already.
pub(in crate::proxy) async fn open(
    endpoint: EndpointId,
    target: u16,
    made: wire::Leg,
    head_bytes_max: usize,
) -> Option<wire::Leg> {
    made.set_liveness();
    let leaving = made.leaving();
    let seal = made.agreed().map(|agreed| agreed.seal);
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOW_BYTES)
        // One response that nobody takes must not hold up the others.
        .initial_connection_window_size(WINDOW_BYTES * STREAMS_MOST)
        // Until the endpoint has said how many it takes.
        .initial_max_send_streams(1)
        // Faults of one response, and what comes of one that was taken back, are none of the others.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(RESET_STREAMS_KEPT)
        .data_frame_budget(FRAMES_BUDGET_BYTES)
        .max_header_list_size(u32::try_from(head_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let (sender, connection) = builder.handshake(Io::new(made, Vec::new())).await.ok()?;
    tokio::spawn(drive(connection));
    let mut shared = Shared {
        sender,
        scheme: if seal.is_some() { "https" } else { "http" },
        places: Arc::default(),
        leaving,
        since: Instant::now(),
        spare: None,
    };
    let leg = shared.leg();
    shared.spare = Spare::take();
    if shared.spare.is_some() {
        POOL.with(|pool| {
            pool.borrow_mut()
                .entry((endpoint, target, seal))
                .or_default()
                .push(shared)
        });
    }
    Some(leg)
}

async fn drive(connection: Connection<Io<wire::Leg>, Bytes>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to an endpoint");
    }
}

impl Shared {
    fn leg(&self) -> wire::Leg {
        let leg = Leg::new(self.sender.clone(), self.scheme, self.places.clone());
        wire::Leg::Tunnel(TunnelLeg::new(Box::new(leg)))
    }

    /// What has ended, goes away, or does not answer takes nothing new.
    fn takes_more(&mut self) -> bool {
        let is_leaving = self.leaving.as_ref().is_some_and(|is_leaving| is_leaving());
        let is_doubtful = self.places.is_doubtful.load(Ordering::Relaxed);
        !is_leaving && !is_doubtful && !matches!(poll_ready(&mut self.sender), Some(Err(_)))
    }

    fn n_requests(&self) -> usize {
        Arc::strong_count(&self.places) - 1
    }

    fn has_room(&self) -> bool {
        self.n_requests() < self.sender.current_max_send_streams().min(STREAMS_MOST as usize)
    }
}

/// `None`: not now.
fn poll_ready(sender: &mut SendRequest<Bytes>) -> Option<Result<(), h2::Error>> {
    match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(ready) => Some(ready),
        std::task::Poll::Pending => None,
    }
}

/// Nothing new goes to an endpoint that left the table.
pub(in crate::proxy) fn forget(endpoint: EndpointId) {
    POOL.with(|pool| pool.borrow_mut().retain(|(of, ..), _| *of != endpoint));
}

/// Gives up those that have carried nothing for `longest`.
pub(in crate::proxy) fn expire(now: Instant, longest: Duration) {
    POOL.with(|pool| {
        pool.borrow_mut().retain(|_, all| {
            all.retain_mut(|shared| {
                if shared.n_requests() > 0 {
                    shared.since = now;
                }
                let is_new = now.saturating_duration_since(shared.since) < longest;
                is_new && shared.takes_more()
            });
            !all.is_empty()
        });
    });
}

/// Gives up everything, before the runtime that drives the connections ends.
pub(in crate::proxy) fn clear() {
    POOL.with(|pool| pool.borrow_mut().clear());
}

/// Requests at most on one connection, whatever the endpoint takes.
const STREAMS_MOST: u32 = 100;
/// What an endpoint may send of one response before it was taken.
const WINDOW_BYTES: u32 = 128 * 1024;
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Of requests that were taken back: what still comes for them is passed over.
const RESET_STREAMS_KEPT: usize = 1000;
/// What small frames may cost that nobody has taken yet, of all requests.
const FRAMES_BUDGET_BYTES: usize = 16 << 20;

//! Parking: a connection in tcp mode through which nothing has passed for a while leaves tokio, and its task ends. What
//! stays is one small entry, watched together with all others through a single epoll instance of the worker. Whatever
//! happens to one of its sockets brings it back, as it was, in a new task. Not here: how bytes are moved (`relay`), and
//! the list of connections (`core`).
//!
//! Nothing is lost on the way, because only what holds no byte is parked, and what came in between shows as soon as the
//! sockets are watched.

use std::cell::{Cell, RefCell};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::balancer::Lease;
use super::core::{self, Connection};
use super::relay::{Relay, Rest};
use super::tcp::{self, TcpRelay};
use super::wire::{Leg, Wire};
use crate::routing::CloseReason;
use crate::sys::epoll::{self, EVENTS_MAX, Watch};
use crate::sys::{memory, socket};

thread_local! {
    /// Of this worker. `None`: nothing is parked.
    static WATCH: RefCell<Option<Arc<Watch>>> = const { RefCell::new(None) };
    /// Connections parked since memory was last given back.
    static N_LATELY: Cell<usize> = const { Cell::new(0) };
}

/// A parked connection: with its entry in the worker's list, all that it costs.
pub(super) struct Parked {
    connection: Connection,
    client: TcpStream,
    upstream: TcpStream,
    lease: Lease,
    rest: Rest,
}

/// Has the calling worker park what is quiet for `after`, for as long as its runtime lives. Zero: never.
pub(super) fn set_up(after: Duration) {
    if after.is_zero() {
        return;
    }
    let watched = || {
        let watch = Arc::new(Watch::new()?);
        let fd = epoll::wait_for_events(watch.clone())?;
        std::io::Result::Ok((watch, fd))
    };
    match watched() {
        Ok((watch, fd)) => {
            WATCH.set(Some(watch));
            tokio::spawn(wake_for_events(fd));
            tokio::spawn(park_the_quiet(after));
        }
        Err(error) => tracing::warn!(%error, "idle connections cannot be parked, and take more memory"),
    }
}

/// Parks a relay that is quiet, or gives it back where that cannot be done.
#[expect(clippy::result_large_err, reason = "what cannot be parked is handed back as it was")]
pub(super) fn park(relay: TcpRelay, lease: Lease) -> Result<(), (TcpRelay, Lease)> {
    let Some(watch) = WATCH.with_borrow(Clone::clone) else {
        return Err((relay, lease));
    };
    if let Err(error) = watch_both(&watch, &relay) {
        tracing::debug!(%error, "a connection cannot be parked");
        return Err((relay, lease));
    }
    let (connection, sockets, rest) = relay.into_parts();
    let Some((client, upstream)) = sockets else {
        connection.close(CloseReason::Limit);
        return Ok(());
    };
    if connection.stop_growing_old() {
        // Nobody tells it any more that it has lasted: it has.
        upstream.set_liveness();
    }
    let upstream = match upstream {
        Leg::Tcp(stream) => stream.into_std(),
        Leg::Tunnel(_) => Err(std::io::ErrorKind::Unsupported.into()),
    };
    match (client.into_std(), upstream) {
        (Ok(client), Ok(upstream)) => {
            connection.stats().connections_parked.fetch_add(1, Ordering::Relaxed);
            N_LATELY.set(N_LATELY.get() + 1);
            core::keep_parked(Box::new(Parked {
                connection,
                client,
                upstream,
                lease,
                rest,
            }));
        }
        // tokio lets go of what it has; it has closed it otherwise.
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "a connection was lost while it was parked");
            connection.close(CloseReason::Limit);
        }
    }
    Ok(())
}

fn watch_both(watch: &Watch, relay: &TcpRelay) -> std::io::Result<()> {
    let (client, upstream) = relay.sockets().ok_or(std::io::ErrorKind::Unsupported)?;
    let upstream = upstream.tcp().ok_or(std::io::ErrorKind::Unsupported)?;
    let (key, rest) = (relay.connection().key(), relay.rest());
    watch.add(client, key, rest.has_client_ended())?;
    watch
        .add(upstream, key, rest.has_upstream_ended())
        .inspect_err(|_| watch.remove(client))
}

impl Parked {
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Whether nothing has passed for longer than the service allows.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.rest
            .idle_due(&self.connection.service().spec().timeouts)
            .is_some_and(|due| due <= now)
    }

    /// Resets both sides. What is closed is watched no more.
    pub(super) fn cut(self, reason: CloseReason) {
        self.count_off();
        socket::reset_on_close(&self.client);
        socket::reset_on_close(&self.upstream);
        self.connection.close(reason);
    }

    /// Goes on as a task.
    fn wake(self) {
        WATCH.with_borrow(|watch| {
            if let Some(watch) = watch {
                watch.remove(&self.client);
                watch.remove(&self.upstream);
            }
        });
        self.count_off();
        let Parked {
            connection,
            client,
            upstream,
            lease,
            rest,
        } = self;
        let registered = tokio::net::TcpStream::from_std(client)
            .and_then(|client| Ok((client, tokio::net::TcpStream::from_std(upstream)?)));
        match registered {
            Ok((client, upstream)) => {
                let relay = Relay::resume(connection, client, Leg::Tcp(upstream), rest);
                tokio::spawn(tcp::go_on(relay, lease));
            }
            // The kernel watched both until now, so that it can; unless it has no memory.
            Err(error) => {
                tracing::warn!(%error, "a parked connection was lost");
                connection.close(CloseReason::Limit);
            }
        }
    }

    fn count_off(&self) {
        self.connection
            .stats()
            .connections_parked
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// Wakes those to whom something happened. Returns whether there may be more.
fn wake_some(watch: &Watch) -> bool {
    let mut n_told = 0;
    let told = match watch.take() {
        Ok(told) => told,
        Err(error) => {
            tracing::error!(%error, "parked connections");
            return false;
        }
    };
    for key in told {
        n_told += 1;
        // Both sockets of one connection may be told of at once: the second finds nobody, since nobody is parked while
        // this goes on.
        if let Some(parked) = core::take_parked(key) {
            parked.wake();
        }
    }
    n_told == EVENTS_MAX
}

async fn wake_for_events(fd: AsyncFd<Arc<Watch>>) {
    loop {
        let mut ready = match fd.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                // The runtime ends.
                return tracing::debug!(%error, "parked connections");
            }
        };
        if !wake_some(fd.get_ref()) {
            ready.clear_ready();
        }
        // Those who were woken, and others, have their turn before more are.
        tokio::task::yield_now().await;
    }
}

/// Asks what is quiet to park, ends what is idle for too long, and gives memory back.
async fn park_the_quiet(after: Duration) {
    let every = (after / TICKS_MIN).clamp(TICK_SHORTEST, TICK_LONGEST);
    let n_ticks = u16::try_from(after.as_nanos().div_ceil(every.as_nanos())).unwrap_or(u16::MAX);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut gave_back_at = Instant::now();
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let core::Quiet { to_ask, overdue } = core::count_quiet(n_ticks, now);
        if !overdue.is_empty() {
            end_overdue(overdue);
        }
        for keys in to_ask.chunks(ASKED_AT_ONCE) {
            core::ask_to_park(keys);
            // Many may fall quiet at once, and parking takes each of them four calls: others want their turn too.
            tokio::time::sleep(PAUSE).await;
        }
        // With fewer it is not worth its cost; and what is given back is missed when connections come at this rate.
        if N_LATELY.get() >= GIVE_BACK_AFTER && now >= gave_back_at + GIVE_BACK_EVERY {
            gave_back_at = now;
            N_LATELY.set(0);
            memory::give_back();
        }
    }
}

fn end_overdue(keys: Vec<usize>) {
    // Bytes that came in time put it off, also when nobody has looked yet.
    let watch = WATCH.with_borrow(Clone::clone);
    while watch.as_ref().is_some_and(|watch| wake_some(watch)) {}
    for parked in keys.into_iter().filter_map(core::take_parked) {
        parked.cut(CloseReason::IdleTimeout);
    }
}

const TICKS_MIN: u32 = 4;
const TICK_SHORTEST: Duration = Duration::from_millis(10);
const TICK_LONGEST: Duration = Duration::from_secs(1);
const ASKED_AT_ONCE: usize = 128;
const PAUSE: Duration = Duration::from_millis(2);
const GIVE_BACK_AFTER: usize = 256;
const GIVE_BACK_EVERY: Duration = Duration::from_secs(1);

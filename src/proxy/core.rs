//! What one worker thread has to itself: a scratch buffer, pipes, and the list of its connections. Thread-local, so that
//! connection tasks need no lock and no reference to it. Not here: what connections do (`tcp`, `http`).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Instant, SystemTime};

use slab::Slab;
use tokio::sync::Notify;

use super::balancer;
use super::crowd::{Census, Party};
use super::park::Parked;
use super::patience::Patience;
use super::wire::Dialer;
use crate::routing::{Close, CloseReason, EndpointId, Service, ServiceStats};
use crate::sys::socket::{self, Liveness};
use crate::sys::splice::{Pipe, PipePool};
use crate::tls::Trust;

/// Bytes that one read may take. Two reads in a row that fill a good part of it show a bulk stream.
pub(super) const SCRATCH_BYTES: usize = 64 * 1024;

thread_local! {
    static CORE: Core = Core {
        scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
        pipes: RefCell::new(PipePool::new(0, 0)),
        connections: RefCell::new(Slab::with_capacity(ROOM_AT_FIRST)),
        open: RefCell::default(),
        liveness: RefCell::default(),
        dialer: RefCell::default(),
        trust: RefCell::default(),
        is_draining: Cell::new(false),
        ends_idle: Cell::new(false),
    };
}

struct Core {
    scratch: RefCell<Box<[u8]>>,
    pipes: RefCell<PipePool>,
    connections: RefCell<Slab<Entry>>,
    /// What all workers share, kept here so that a connection need not hold it.
    open: RefCell<Arc<OpenConnections>>,
    liveness: RefCell<Liveness>,
    dialer: RefCell<Option<Arc<dyn Dialer>>>,
    trust: RefCell<Arc<Trust>>,
    is_draining: Cell<bool>,
    ends_idle: Cell<bool>,
}

/// One connection of this worker, as those who may end it see it.
#[derive(Default)]
struct Entry {
    /// The endpoint that it holds now, if any.
    endpoint: Option<EndpointId>,
    /// It may be ended without anybody losing anything: an HTTP connection between two requests.
    is_idle: bool,
    ended: Option<CloseReason>,
    age: Age,
    /// One of its sockets is not read, so that a reset would go unnoticed: it is asked to look now and then.
    has_unread: bool,
    is_to_look: bool,
    /// It holds no byte, and may be parked once it is quiet for long enough.
    can_park: bool,
    is_to_park: bool,
    /// The endpoint that it holds does not answer any more.
    is_lost: bool,
    /// Ticks of `count_quiet` in which nothing passed.
    n_quiet: u16,
    /// Seconds in which nothing passed.
    n_silent: u16,
    party: Party,
    /// Its task wants to know when the worker begins to drain.
    hears_drain: bool,
    waker: Option<Waker>,
    /// What is left of it, if it has no task.
    parked: Option<Box<Parked>>,
}

impl Entry {
    /// Whether there is a signal. Asked at every turn of every connection, and mostly answered with no.
    fn is_told(&self) -> bool {
        self.ended.is_some() | self.is_to_look | self.is_lost | self.is_to_park | (self.age == Age::Due)
    }

    #[inline(never)]
    fn take_signal(&mut self) -> Option<Signal> {
        if let Some(reason) = self.ended {
            return Some(Signal::End(reason));
        }
        if self.age == Age::Due {
            self.age = Age::None;
            return Some(Signal::Aged);
        }
        if std::mem::take(&mut self.is_to_look) {
            return Some(Signal::LookForReset);
        }
        if std::mem::take(&mut self.is_lost) {
            return Some(Signal::Lost);
        }
        std::mem::take(&mut self.is_to_park).then_some(Signal::Park)
    }
}

/// How far a connection is on its way to `Signal::Aged`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Age {
    /// It has no upstream connection yet, or was told.
    #[default]
    None,
    /// So many ticks of the worker are left.
    Young(u8),
    Due,
}

/// What a connection is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// End, for this reason.
    End(CloseReason),
    /// It has lasted so long that what short connections do without is worth its cost.
    Aged,
    /// Ask the sockets that are not read whether they were reset.
    LookForReset,
    /// Nothing has passed for a while: end the task, if nothing passes now.
    Park,
    /// The endpoint that it holds does not answer any more.
    Lost,
}

/// Seconds after which a connection has aged. Most end sooner.
const AGE_TICKS: u8 = 5;

/// Connections that the list has room for before it must move. Memory that was never touched is not there.
const ROOM_AT_FIRST: usize = 32 * 1024;

/// Prepares the calling thread to be a worker.
pub(super) fn set_up(
    pipes: PipePool,
    open: Arc<OpenConnections>,
    liveness: Liveness,
    dialer: Option<Arc<dyn Dialer>>,
    trust: Arc<Trust>,
) {
    CORE.with(|core| {
        core.pipes.replace(pipes);
        core.open.replace(open);
        core.liveness.replace(liveness);
        core.dialer.replace(dialer);
        core.trust.replace(trust);
    });
}

/// Who reaches tasks of other nodes, if anybody does.
pub(super) fn dialer() -> Option<Arc<dyn Dialer>> {
    CORE.with(|core| core.dialer.borrow().clone())
}

/// Whom endpoints are believed to be that speak TLS.
pub(super) fn trust() -> Arc<Trust> {
    CORE.with(|core| core.trust.borrow().clone())
}

/// Has dead peers of `stream` noticed. An error means that the connection is gone already, which its next read will say.
pub(super) fn set_liveness(stream: &impl AsFd) {
    CORE.with(|core| {
        drop(socket::set_liveness(
            &socket2::SockRef::from(stream),
            &core.liveness.borrow(),
        ))
    });
}

/// Lends the scratch buffer. Its contents mean nothing before and after.
pub(super) fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    CORE.with(|core| use_it(&mut core.scratch.borrow_mut()))
}

pub(super) fn take_pipe() -> Option<Pipe> {
    CORE.with(|core| core.pipes.borrow_mut().take())
}

pub(super) fn put_pipe(pipe: Pipe) {
    CORE.with(|core| core.pipes.borrow_mut().put(pipe));
}

/// This worker accepts no more: HTTP connections end with the response that they are at.
pub(super) fn is_draining() -> bool {
    CORE.with(|core| core.is_draining.get())
}

/// Whether there may be one more.
pub(super) fn has_room() -> bool {
    CORE.with(|core| core.open.borrow().has_room())
}

pub(super) fn n_connections() -> usize {
    CORE.with(|core| core.connections.borrow().len())
}

/// Whether connections between two requests end, too.
pub(super) fn ends_idle() -> bool {
    CORE.with(|core| core.ends_idle.get())
}

/// Begins to drain: HTTP connections end with their next response. An idle one waits for its next request, which may be on
/// its way already.
pub(super) fn drain_gently() {
    let mut wakers = Vec::new();
    CORE.with(|core| {
        core.is_draining.set(true);
        for (_, entry) in core.connections.borrow_mut().iter_mut() {
            if entry.hears_drain {
                wakers.extend(entry.waker.take());
            }
        }
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// Begins to drain: idle connections end now, the others at their next chance.
pub(super) fn drain() {
    drain_gently();
    CORE.with(|core| core.ends_idle.set(true));
    end_where(CloseReason::ProxyShutdown, |entry| entry.is_idle);
}

/// Signals the connections that have come of age, and those that have a socket nobody reads. Called once a second.
pub(super) fn tick() {
    let mut wakers = Vec::new();
    CORE.with(|core| {
        for (_, entry) in core.connections.borrow_mut().iter_mut() {
            entry.n_silent = entry.n_silent.saturating_add(1);
            match entry.age {
                Age::None | Age::Due => {}
                Age::Young(0) => entry.age = Age::Due,
                Age::Young(left) => entry.age = Age::Young(left - 1),
            }
            entry.is_to_look |= entry.has_unread;
            if entry.age == Age::Due || entry.is_to_look {
                wakers.extend(entry.waker.take());
            }
        }
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// How many connections of this worker are each party's.
pub(super) fn census() -> Census {
    let mut census = Census::new();
    CORE.with(|core| {
        for (_, entry) in core.connections.borrow().iter() {
            if entry.ended.is_none() && entry.party != Party::ALONE {
                *census.entry(entry.party).or_default() += 1;
            }
        }
    });
    census
}

/// Ends `n` connections of a party, those through which nothing has passed for longest.
pub(super) fn give_up(party: Party, n: usize) {
    let mut meant: Vec<(u16, usize)> = CORE.with(|core| {
        let connections = core.connections.borrow();
        let of_party = connections
            .iter()
            .filter(|(_, entry)| entry.ended.is_none() && entry.party == party);
        of_party.map(|(key, entry)| (entry.n_silent, key)).collect()
    });
    meant.sort_unstable_by_key(|(n_silent, key)| (std::cmp::Reverse(*n_silent), *key));
    meant.truncate(n);
    meant
        .into_iter()
        .for_each(|(_, key)| end_one(key, CloseReason::GivenUp));
}

/// Connections that nothing passed through.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// May be asked to park.
    pub(super) to_ask: Vec<usize>,
    /// Are parked, and idle for longer than they may be.
    pub(super) overdue: Vec<usize>,
}

/// Counts a tick for each connection that may be parked, and says which were quiet for `n_ticks` by now.
pub(super) fn count_quiet(n_ticks: u16, now: Instant) -> Quiet {
    let mut quiet = Quiet::default();
    CORE.with(|core| {
        for (key, entry) in core.connections.borrow_mut().iter_mut() {
            match &entry.parked {
                Some(parked) if parked.is_overdue(now) => quiet.overdue.push(key),
                None if entry.can_park => {
                    entry.n_quiet = entry.n_quiet.saturating_add(1);
                    if entry.n_quiet > n_ticks {
                        quiet.to_ask.push(key);
                    }
                }
                _ => {}
            }
        }
    });
    quiet
}

/// Asks connections to park. Those that nothing passes through still do at their next turn.
pub(super) fn ask_to_park(keys: &[usize]) {
    let mut wakers = Vec::new();
    CORE.with(|core| {
        let mut connections = core.connections.borrow_mut();
        for key in keys {
            // It may have ended meanwhile, or have become another.
            if let Some(entry) = connections.get_mut(*key)
                && entry.can_park
                && entry.n_quiet > 0
            {
                entry.n_quiet = 0;
                entry.is_to_park = true;
                wakers.extend(entry.waker.take());
            }
        }
    });
    wakers.into_iter().for_each(Waker::wake);
}

/// Keeps what is left of a connection until it is taken or ended.
pub(super) fn keep_parked(parked: Box<Parked>) {
    CORE.with(|core| {
        let entry = &mut core.connections.borrow_mut()[parked.connection().key];
        // It would keep the task's memory.
        entry.waker = None;
        (entry.can_park, entry.is_to_park) = (false, false);
        entry.parked = Some(parked);
    });
}

/// Takes a parked connection out. `None`: it is not parked.
pub(super) fn take_parked(key: usize) -> Option<Box<Parked>> {
    CORE.with(|core| {
        let mut connections = core.connections.borrow_mut();
        let entry = connections.get_mut(key)?;
        let parked = entry.parked.take()?;
        entry.n_quiet = 0;
        // What woke it may be a reset of a socket that nobody reads.
        entry.is_to_look |= entry.has_unread;
        Some(parked)
    })
}

/// Ends every connection of this worker.
pub(super) fn end_all(reason: CloseReason) {
    end_where(reason, |_| true);
}

/// Ends the connections that hold `endpoint`.
pub(super) fn end_endpoint(endpoint: EndpointId, reason: CloseReason) {
    end_where(reason, |entry| entry.endpoint == Some(endpoint));
}

/// Tells the connections that hold one of `endpoints` that it does not answer any more.
pub(super) fn lose(endpoints: &[EndpointId]) {
    let mut wakers = Vec::new();
    CORE.with(|core| {
        for (_, entry) in core.connections.borrow_mut().iter_mut() {
            // What is parked has no request to be told of.
            if entry.parked.is_none() && entry.endpoint.is_some_and(|held| endpoints.contains(&held)) {
                entry.is_lost = true;
                wakers.extend(entry.waker.take());
            }
        }
    });
    wakers.into_iter().for_each(Waker::wake);
}

fn end_where(reason: CloseReason, is_meant: impl Fn(&Entry) -> bool) {
    let keys: Vec<usize> = CORE.with(|core| {
        let connections = core.connections.borrow();
        let meant = connections.iter().filter(|(_, entry)| is_meant(entry));
        meant.map(|(key, _)| key).collect()
    });
    keys.into_iter().for_each(|key| end_one(key, reason));
}

/// Ends a connection, unless it has ended or was told to.
fn end_one(key: usize, reason: CloseReason) {
    let told = CORE.with(|core| {
        let mut connections = core.connections.borrow_mut();
        let entry = connections.get_mut(key).filter(|entry| entry.ended.is_none())?;
        entry.ended = Some(reason);
        Some((entry.waker.take(), entry.parked.take()))
    });
    let Some((waker, parked)) = told else { return };
    waker.into_iter().for_each(Waker::wake);
    parked.into_iter().for_each(|parked| parked.cut(reason));
}

/// The number of connections open in all workers, how many there may be, and a place to wait for less of them.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    n: AtomicUsize,
    most: AtomicUsize,
    n_waiting: AtomicUsize,
    freed: Notify,
    wanted: Notify,
    /// Descriptors that others took who come and go.
    pub(super) n_kept: AtomicUsize,
}

impl OpenConnections {
    pub(super) fn count(&self) -> usize {
        self.n.load(Ordering::SeqCst)
    }

    pub(super) fn set_most(&self, most: usize) {
        self.most.store(most.max(1), Ordering::SeqCst);
        self.freed.notify_waiters();
    }

    /// How many there may be.
    pub(super) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn has_room(&self) -> bool {
        self.count() < self.most()
    }

    /// Waits until somebody waits for room.
    pub(super) async fn wanted(&self) {
        loop {
            let wanted = self.wanted.notified();
            if self.n_waiting.load(Ordering::SeqCst) > 0 && !self.has_room() {
                return;
            }
            wanted.await;
        }
    }

    /// Waits until there may be one more.
    pub(super) async fn wait_for_room(&self) {
        if self.has_room() {
            return;
        }
        let _waiting = Waiting::begin(&self.n_waiting);
        loop {
            let freed = self.freed.notified();
            if self.has_room() {
                break;
            }
            self.wanted.notify_one();
            freed.await;
        }
    }

    fn closed(&self) {
        self.n.fetch_sub(1, Ordering::SeqCst);
        if self.n_waiting.load(Ordering::SeqCst) > 0 {
            // All of them: each is the accept loop of another port, and only some have anybody waiting.
            self.freed.notify_waiters();
        }
    }
}

/// Counted while it is there.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn begin(n: &AtomicUsize) -> Waiting<'_> {
        n.fetch_add(1, Ordering::SeqCst);
        Waiting(n)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One client connection: counted as open while it lives, and as closed for exactly one reason when it ends.
pub(super) struct Connection {
    service: Arc<Service>,
    key: usize,
    opened_at: Instant,
    reason: Option<CloseReason>,
    is_admitted: bool,
    kind: Kind,
}

/// Whose a connection is, which says where it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A client's.
    Client,
    /// Of another node, which counts it as a client's.
    LastHop,
    /// One request of a client's connection, which is counted there; here as what it takes of the process's descriptors.
    Stream,
}

impl Connection {
    /// A connection that was just accepted for `service`.
    pub(super) fn open(service: Arc<Service>, party: Party, now: Instant) -> Connection {
        service.stats().opened();
        Connection::new(service, party, now, Kind::Client)
    }

    /// A connection that another node opened to a task of `service` on this one.
    pub(super) fn open_last_hop(service: Arc<Service>, party: Party, now: Instant) -> Connection {
        service.state().last_hops().opened();
        Connection::new(service, party, now, Kind::LastHop)
    }

    /// One request of many that this connection carries at once.
    pub(super) fn stream(&self) -> Connection {
        Connection::new(self.service.clone(), self.party(), Instant::now(), Kind::Stream)
    }

    fn new(service: Arc<Service>, party: Party, now: Instant, kind: Kind) -> Connection {
        let key = CORE.with(|core| {
            core.open.borrow().n.fetch_add(1, Ordering::SeqCst);
            let entry = Entry {
                party,
                ..Entry::default()
            };
            core.connections.borrow_mut().insert(entry)
        });
        Connection {
            service,
            key,
            opened_at: now,
            reason: None,
            is_admitted: false,
            kind,
        }
    }

    /// Has the connection be that service's from here on. Of what it was counted by until now it is closed, as routed.
    pub(super) fn go_to(&mut self, service: Arc<Service>) {
        self.stats().closed(CloseReason::Routed, self.opened_at.elapsed());
        self.service = service;
        self.stats().opened();
    }

    /// Whether the service may have this connection at once, which it then has.
    pub(super) fn try_admit(&mut self) -> bool {
        self.is_admitted = balancer::try_admit(&self.service);
        self.is_admitted
    }

    /// Waits until the service may have this connection. Errors: the reason to close with.
    pub(super) async fn admit(&mut self, patience: &mut Patience<'_>) -> Result<(), CloseReason> {
        if self.try_admit() {
            return Ok(());
        }
        balancer::admit(&self.service, patience).await?;
        self.is_admitted = true;
        Ok(())
    }

    /// Where this connection and its bytes are counted.
    pub(super) fn stats(&self) -> &ServiceStats {
        match self.kind {
            Kind::LastHop => self.service.state().last_hops(),
            Kind::Client | Kind::Stream => self.service.stats(),
        }
    }

    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Whose it is.
    pub(super) fn party(&self) -> Party {
        self.entry(|entry| entry.party)
    }

    /// Says whose it is, once that is known.
    pub(super) fn set_party(&self, party: Party) {
        self.entry(|entry| entry.party = party);
    }

    /// Has its task woken when the worker begins to drain.
    pub(super) fn hear_drain(&self) {
        self.entry(|entry| entry.hears_drain = true);
    }

    /// Whether the service has this connection.
    pub(super) fn is_admitted(&self) -> bool {
        self.is_admitted
    }

    /// Says which endpoint the connection now holds.
    pub(super) fn hold(&self, endpoint: Option<EndpointId>) {
        self.entry(|entry| (entry.endpoint, entry.is_lost) = (endpoint, false));
    }

    /// Says whether the connection may be ended at once when the worker drains.
    pub(super) fn set_idle(&self, is_idle: bool) {
        self.entry(|entry| {
            entry.is_idle = is_idle;
            entry.n_silent = 0;
        });
    }

    /// Has `Signal::Aged` come once the connection has lasted a while from now.
    pub(super) fn grow_old(&self) {
        self.entry(|entry| entry.age = Age::Young(AGE_TICKS));
    }

    /// Has no `Signal::Aged` come. Returns whether one was still to come.
    pub(super) fn stop_growing_old(&self) -> bool {
        self.entry(|entry| std::mem::take(&mut entry.age)) != Age::None
    }

    /// Says how a turn ended: whether one of its sockets is not read at the moment, whether the connection may be parked
    /// as it is now, and whether anything passed.
    pub(super) fn had_turn(&self, has_unread: bool, can_park: bool, is_moved: bool) {
        self.entry(|entry| {
            entry.has_unread = has_unread;
            entry.can_park = can_park;
            if is_moved {
                (entry.n_quiet, entry.n_silent) = (0, 0);
            }
        });
    }

    /// Names it on its worker, while it lives.
    pub(super) fn key(&self) -> usize {
        self.key
    }

    /// What the connection was told since the last call; the task is woken when there is something.
    #[inline]
    pub(super) fn poll_signal(&self, cx: &mut Context<'_>) -> Poll<Signal> {
        self.entry(|entry| {
            if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                entry.waker = Some(cx.waker().clone());
            }
            match entry.is_told() {
                true => entry.take_signal().map_or(Poll::Pending, Poll::Ready),
                false => Poll::Pending,
            }
        })
    }

    /// Waits until somebody ends this connection.
    pub(super) async fn ended(&self) -> CloseReason {
        poll_fn(|cx| {
            loop {
                match ready!(self.poll_signal(cx)) {
                    Signal::End(reason) => return Poll::Ready(reason),
                    Signal::Aged | Signal::LookForReset | Signal::Park | Signal::Lost => {}
                }
            }
        })
        .await
    }

    /// The connection is over.
    pub(super) fn close(mut self, reason: CloseReason) {
        self.reason = Some(reason);
    }

    fn entry<T>(&self, use_it: impl FnOnce(&mut Entry) -> T) -> T {
        CORE.with(|core| use_it(&mut core.connections.borrow_mut()[self.key]))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let entry = CORE.with(|core| core.connections.borrow_mut().remove(self.key));
        if self.kind == Kind::Stream {
            return CORE.with(|core| core.open.borrow().closed());
        }
        // A task that is dropped without a word goes down with its runtime.
        let reason = self.reason.or(entry.ended).unwrap_or(CloseReason::ProxyShutdown);
        let after = self.opened_at.elapsed();
        self.stats().closed(reason, after);
        if self.kind == Kind::Client {
            self.service.state().last_closes.add(Close {
                at: SystemTime::now(),
                reason,
                client: entry.party.address(),
                endpoint: entry.endpoint,
                after,
            });
        }
        let is_well = matches!(
            reason,
            CloseReason::ClientFin | CloseReason::UpstreamFin | CloseReason::ResponseEnd
        );
        if !is_well {
            tracing::debug!(service = %self.service.name(), reason = reason.as_str(), last_hop = self.kind == Kind::LastHop, "closed");
        }
        if self.is_admitted {
            self.service.state().connection_gate.release();
        }
        CORE.with(|core| core.open.borrow().closed());
    }
}

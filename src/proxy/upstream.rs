//! A connection to an endpoint: one attempt, and attempts at one endpoint after the other until one accepts. Nothing is
//! forwarded here, so that every attempt but the last leaves no trace. Not here: pooled connections (`http`).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::balancer::{self, Lease, NoPick, Wish};
use super::core;
use super::inside;
use super::patience::Patience;
use super::rounds::Rounds;
use super::secured::{self, Offer};
use super::wire::{Leg, TunnelFor, TunnelLeg};
use crate::model::{ClientAddress, EndpointHandshake, Mode, Scheme, ServiceSpec, proxy_protocol};
use crate::routing::{
    Able, CloseReason, Endpoint, EndpointId, GatePlace, Lookout, Outcome, RetryOutcome, Service, ServiceState,
    TableHandle, Turn,
};
use crate::sys::socket;
use crate::tls::TlsFault;

/// A connection that an endpoint accepted, and its place in the endpoint's count.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: Leg,
    pub(super) lease: Lease,
    /// It stood already.
    pub(super) is_reused: bool,
    /// What is spoken on it: of the service as it was when the endpoint's turn came.
    pub(super) scheme: Scheme,
}

/// On whose behalf an endpoint is connected to.
#[derive(Clone, Copy)]
pub(super) struct Behalf<'a> {
    /// Whose address the endpoint's node is told, where the connection is for one client alone.
    pub(super) client: Option<Whom<'a>>,
    /// The network by which a task asks from inside; `None`: a client of a port.
    pub(super) network: Option<&'a Arc<str>>,
    /// Remembers connections that may come round; `None` where that is told in another way.
    pub(super) rounds: Option<&'a Rounds<'a>>,
    pub(super) wish: Wish,
    /// Of endpoints that are spoken to by TLS.
    pub(super) offer: Offer,
}

/// What has come of a client's tries so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// Endpoints that are not to be tried again.
    pub(super) tried: Vec<EndpointId>,
    /// One that it is the turn of already.
    pub(super) turn: Option<Lease>,
    /// An endpoint does not speak HTTP/1.1, which the request needs: it is not waited for one that does.
    pub(super) lacks_http1: bool,
}

/// What `connect` mostly comes to, without the room that its waiting takes: a connection that stands already to the endpoint whose turn
/// it is. `None`: `connect` is to be asked, with `tries`.
pub(super) fn at_once(
    service: &Service,
    target: u16,
    wish: Wish,
    tries: &mut Tries,
    reuse: impl FnOnce(EndpointId) -> Option<Leg>,
) -> Option<Upstream> {
    let state = service.state();
    if state.hold_gate.depth() > 0 && tries.tried.is_empty() && state.lookouts.is_kept(target) {
        return None;
    }
    let lease = balancer::pick(service, wish, &tries.tried, Instant::now()).ok()?;
    match reuse(lease.endpoint().id()) {
        Some(stream) => Some(Upstream {
            stream,
            lease,
            is_reused: true,
            scheme: service.spec().scheme,
        }),
        None => {
            tries.turn = Some(lease);
            None
        }
    }
}

/// A client, by its socket and by what a proxy in front has said of it.
#[derive(Clone, Copy)]
pub(super) struct Whom<'a> {
    pub(super) socket: &'a TcpStream,
    /// `None`: it has come by itself.
    pub(super) announced: Option<SocketAddr>,
}

impl Whom<'_> {
    /// `None`: it is gone already.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.announced.or_else(|| self.socket.peer_addr().ok())
    }

    /// Its address, and the address that it came to. `None`: it is gone already.
    pub(super) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.peer()?, self.socket.local_addr().ok()?))
    }
}

/// Connects to an endpoint of `service` for a client that came for the port `target`.
///
/// Tries the endpoint whose turn it is, then those that are not in `tries`, and adds those that fail to it; none is left when as much time has passed as
/// three attempts may take. One that leaves the table before it has answered is not waited for. `reuse` may have a connection
/// to an endpoint that stands already, for the service as it is declared then: after each wait it may be another.
/// When none is left, the service is looked up again: a newer table may have others. While no endpoint takes the client,
/// it waits for one (`Limits::hold`), as long as `patience` has it: of all who wait, one at a time tries. Errors: the reason
/// to close with.
pub(super) async fn connect(
    table: &TableHandle,
    service: &Arc<Service>,
    target: u16,
    behalf: Behalf<'_>,
    tries: &mut Tries,
    patience: &mut Patience<'_>,
    mut reuse: impl FnMut(&ServiceSpec, EndpointId) -> Option<Leg>,
) -> Result<Upstream, CloseReason> {
    let started = Instant::now();
    let Tries {
        tried,
        turn,
        lacks_http1,
    } = tries;
    // What was sent a request is not asked again, however long nobody else is there.
    let n_tried = tried.len();
    // It outlives tables.
    let state = service.state();
    let mut service = service.clone();
    let mut held: Option<Held<'_>> = None;
    // Attempts count from here: nobody tries while held.
    let mut attempts_since = started;
    let timeout = service.spec().timeouts.connect;
    let mut last_failure: Option<CloseReason> = None;
    if state.hold_gate.depth() > 0 && n_tried == 0 && state.lookouts.is_kept(target) {
        // Somebody tries already, on behalf of all.
        let wait = wait_first(table, &mut service, state, target, behalf, patience);
        held = Some(Box::pin(wait).await?);
        attempts_since = Instant::now();
    }
    loop {
        let picked = match turn.take() {
            Some(lease) => Ok(lease),
            None => balancer::pick_or_wait(&service, behalf.wish, tried, started, patience).await,
        };
        let lease = match picked {
            Ok(lease) => lease,
            Err(NoPick::Gone(reason)) => return Err(reason),
            Err(no_pick) => {
                if let Some(newer) = newer(table, &service) {
                    service = newer;
                    continue;
                }
                let may_come = match no_pick {
                    NoPick::None => true,
                    NoPick::Tried => n_tried == 0,
                    NoPick::Full | NoPick::Gone(_) => false,
                };
                if may_come && !*lacks_http1 {
                    if held.is_none() {
                        held = Held::begin(table, service.spec(), state, target, behalf, patience);
                    }
                    if let Some(held) = &mut held
                        && Box::pin(held.wait(table, &mut service, patience)).await?
                    {
                        tried.truncate(n_tried);
                        attempts_since = Instant::now();
                        continue;
                    }
                }
                let reason = last_failure.unwrap_or(match no_pick {
                    NoPick::None => CloseReason::NoEndpoint,
                    NoPick::Tried => CloseReason::ConnectFailed,
                    NoPick::Full => CloseReason::Limit,
                    NoPick::Gone(reason) => reason,
                });
                if last_failure.is_some() {
                    service.stats().add_retry(RetryOutcome::Failure);
                }
                return Err(reason);
            }
        };
        let endpoint = lease.endpoint();
        // Its turn may have been waited for: it is reached as the service asks now.
        if let Some(newer) = newer(table, &service) {
            service = newer;
            // Asked of the table, and not of the endpoint, which is told after everybody sees the table: else it would be tried in
            // vain on behalf of a table that is without it, and not again when it is back.
            if !service.endpoints().iter().any(|other| Arc::ptr_eq(other, endpoint)) {
                continue;
            }
        }
        if let Some(stream) = reuse(service.spec(), endpoint.id()) {
            held.iter().for_each(Held::succeeded);
            return Ok(Upstream {
                stream,
                lease,
                is_reused: true,
                scheme: service.spec().scheme,
            });
        }
        // Whoever waited does not wait longer for this.
        let left = |held: &Held<'_>| held.due.saturating_duration_since(Instant::now());
        let patience_left = held.as_ref().map_or(timeout, |held| left(held).min(timeout));
        let attempting = attempt(table, service.spec(), endpoint, target, behalf, patience_left);
        let result = match service.spec().scheme == Scheme::Https && behalf.offer == Offer::Any {
            false => attempting.await,
            true => {
                // Boxed, since few have a use for it.
                let meanwhile = Box::pin(shared_meanwhile(|| reuse(service.spec(), endpoint.id())));
                tokio::select! {
                    biased;
                    result = attempting => result,
                    stream = meanwhile => {
                        held.iter().for_each(Held::succeeded);
                        return Ok(Upstream {
                            stream,
                            lease,
                            is_reused: true,
                            scheme: service.spec().scheme,
                        });
                    }
                }
            }
        };
        let now = Instant::now();
        // It left the table meanwhile. That it was reached nonetheless is too late: its last connections may have been
        // counted already.
        let Some(result) = result.filter(|result| result.is_err() || !endpoint.is_draining()) else {
            match newer(table, &service) {
                // It is not tried: it may return.
                Some(newer) => service = newer,
                None => tried.push(endpoint.id()),
            }
            continue;
        };
        match result {
            Ok(stream) => {
                endpoint.report(Outcome::Reached, now);
                held.iter().for_each(Held::succeeded);
                service.stats().upstream_connect.observe(now - attempts_since);
                if last_failure.is_some() {
                    service.stats().add_retry(RetryOutcome::Success);
                }
                return Ok(Upstream {
                    stream,
                    lease,
                    is_reused: false,
                    scheme: service.spec().scheme,
                });
            }
            Err(error) => {
                let fault = secured::fault(&error);
                // It is slow, and not away, where others have agreed with it meanwhile.
                let began = now.checked_sub(patience_left).unwrap_or(started);
                let is_slow = fault.is_some_and(|fault| fault.result == EndpointHandshake::TimedOut)
                    && endpoint.has_agreed_since(began);
                if fault.is_none_or(TlsFault::is_of_endpoint) && !is_slow {
                    endpoint.report(Outcome::Failed(error.kind()), now);
                }
                *lacks_http1 |= fault.is_some_and(|fault| fault.result == EndpointHandshake::NoHttp1);
                tracing::debug!(service = %service.name(), endpoint = %endpoint.addr(), %error, "connect");
                tried.push(endpoint.id());
                last_failure = Some(match error.kind() {
                    io::ErrorKind::TimedOut => CloseReason::ConnectTimeout,
                    _ => CloseReason::ConnectFailed,
                });
                let is_over = held.as_ref().is_some_and(|held| now >= held.due);
                if is_over || now - attempts_since >= timeout.saturating_mul(ATTEMPTS_OF_FULL_LENGTH) {
                    // Enough for once: it goes on as if all had been tried.
                    let rest = service.endpoints().iter().map(|endpoint| endpoint.id());
                    tried.extend(rest);
                }
            }
        }
    }
}

/// A connection that others have made to an endpoint meanwhile and that has room: of many who need one at once few make their own.
async fn shared_meanwhile(mut look: impl FnMut() -> Option<Leg>) -> Leg {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(leg) = look() {
            return leg;
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A client that waits for a service to have an endpoint that takes it.
struct Held<'a> {
    place: GatePlace<'a>,
    due: Instant,
    lookout: Arc<Lookout>,
    /// Somebody else got through.
    successes: watch::Receiver<u64>,
    /// It is this client's to try.
    turn: Option<Turn>,
    /// What it asks of an endpoint is what others do.
    able: Option<Able>,
    revision: watch::Receiver<u64>,
}

impl<'a> Held<'a> {
    /// `None`: nobody may wait, or as many as may do.
    fn begin(
        table: &TableHandle,
        spec: &ServiceSpec,
        state: &'a ServiceState,
        target: u16,
        behalf: Behalf<'_>,
        patience: &Patience<'_>,
    ) -> Option<Held<'a>> {
        let limits = &spec.limits;
        if limits.hold_timeout.is_zero() {
            return None;
        }
        let place = patience.enter(&state.hold_gate, limits.hold)?;
        let lookout = state.lookouts.join(target);
        let asks_for_more = spec.scheme == Scheme::Https && behalf.offer == Offer::Http1;
        Some(Held {
            place,
            due: Instant::now() + limits.hold_timeout,
            successes: lookout.subscribe(),
            able: (!asks_for_more).then(|| lookout.able()),
            lookout,
            turn: None,
            revision: table.subscribe(),
        })
    }

    /// Waits until it is worth another try, with the service as it is then. `false`: the time is over, or the service gone.
    /// Errors: what became of the client.
    async fn wait(
        &mut self,
        table: &TableHandle,
        service: &mut Arc<Service>,
        patience: &mut Patience<'_>,
    ) -> Result<bool, CloseReason> {
        let Held {
            place,
            due,
            lookout,
            successes,
            turn,
            able,
            revision,
        } = self;
        let until = tokio::time::Instant::from_std(*due);
        let taking = async {
            match able {
                Some(_) => lookout.turn().await,
                None => lookout.last_turn().await,
            }
        };
        let waiting = async {
            if turn.is_none() {
                // Neither fails: the lookout is there for as long as this is.
                tokio::select! {
                    biased;
                    _ = successes.changed() => {}
                    taken = taking => *turn = Some(taken),
                    () = tokio::time::sleep_until(until) => return false,
                }
            }
            if turn.is_some() {
                let until = until.min(tokio::time::Instant::now() + lookout.next_pause());
                // An error means that this program ends.
                let _ = tokio::time::timeout_at(until, revision.changed()).await;
            }
            true
        };
        if !patience.wait(place, waiting).await? {
            return Ok(false);
        }
        match table.peek().service(service.name()) {
            Some(now) => *service = now.clone(),
            None => return Ok(false),
        }
        Ok(Instant::now() < self.due)
    }

    /// This client got through. If it tried on behalf of the others, they may try too.
    fn succeeded(&self) {
        if let Some(turn) = &self.turn {
            self.lookout.succeeded(turn);
        }
    }
}

/// Waits, without an attempt before, while somebody else tries. Errors: the reason to close with.
async fn wait_first<'a>(
    table: &TableHandle,
    service: &mut Arc<Service>,
    state: &'a ServiceState,
    target: u16,
    behalf: Behalf<'_>,
    patience: &mut Patience<'_>,
) -> Result<Held<'a>, CloseReason> {
    let reason = match service.endpoints().is_empty() {
        true => CloseReason::NoEndpoint,
        false => CloseReason::ConnectFailed,
    };
    let held = Held::begin(table, service.spec(), state, target, behalf, patience);
    let mut held = held.ok_or(reason)?;
    match held.wait(table, service, patience).await? {
        true => Ok(held),
        false => Err(reason),
    }
}

/// The service as of a newer table, if there is one.
pub(super) fn newer(table: &TableHandle, service: &Arc<Service>) -> Option<Arc<Service>> {
    if service.is_latest() {
        return None;
    }
    table
        .peek()
        .service(service.name())
        .filter(|newer| !Arc::ptr_eq(newer, service))
        .cloned()
}

/// Refusals are quick and all endpoints may be tried; of attempts that time out, only so many.
const ATTEMPTS_OF_FULL_LENGTH: u32 = 3;

/// What the endpoint is told before the first byte: nothing, or who its client is.
///
/// `addresses`: the client's address, and the address that it came to; asked for only where they are needed.
pub(super) fn proxy_header(
    spec: &ServiceSpec,
    addresses: impl FnOnce() -> Option<(SocketAddr, SocketAddr)>,
) -> Vec<u8> {
    match spec.proxy_protocol {
        Some(version) => proxy_protocol::header(version, addresses()),
        None => Vec::new(),
    }
}

/// As `reach`, but `None` as soon as the endpoint leaves the table without having answered: whoever took it away knows more
/// than its silence says, and somebody else may answer.
async fn attempt(
    table: &TableHandle,
    spec: &ServiceSpec,
    endpoint: &Arc<Endpoint>,
    target: u16,
    behalf: Behalf<'_>,
    timeout: Duration,
) -> Option<io::Result<Leg>> {
    // A block, which borrows: each `async fn` on the way would copy all of it. One call of `get_to`, which then is part of it.
    let reach = async {
        let is_secured = spec.scheme == Scheme::Https && spec.mode == Mode::Http;
        let towards = match is_secured {
            true => Some((secured::towards(spec, endpoint)?, Instant::now() + timeout)),
            false => None,
        };
        let leg = get_to(spec, endpoint, target, &behalf, timeout).await?;
        match towards {
            None => Ok(leg),
            // Begun on this node wherever the endpoint is, as the requests are that go through it. Boxed, since few have a use for it.
            Some((towards, due)) => Box::pin(secured::begin(leg, &towards, spec, endpoint, behalf.offer, due)).await,
        }
    };
    let mut reaching = pin!(reach);
    // Most answer at once.
    if let Poll::Ready(result) = poll_fn(|cx| Poll::Ready(reaching.as_mut().poll(cx))).await {
        return Some(result);
    }
    let mut revision = table.subscribe();
    while !endpoint.is_draining() {
        tokio::select! {
            biased;
            result = &mut reaching => return Some(result),
            changed = revision.changed() => if changed.is_err() {
                // This program ends.
                return Some(reaching.await);
            },
        }
    }
    inside::forget(endpoint.id());
    None
}

/// One attempt at a connection to an endpoint, on this node or another.
async fn get_to(
    spec: &ServiceSpec,
    endpoint: &Endpoint,
    target: u16,
    behalf: &Behalf<'_>,
    timeout: Duration,
) -> io::Result<Leg> {
    let Some(task) = endpoint.task().filter(|task| task.is_remote) else {
        let addr = endpoint.dial_addr(target);
        if let Some(rounds) = behalf.rounds.filter(|_| endpoint.spec().netns.is_none()) {
            return stand(rounds.connect(addr)?, timeout).await.map(Leg::Tcp);
        }
        let client = || behalf.client.and_then(|client| client.peer());
        return connect_here(spec, endpoint, addr, client, timeout).await.map(Leg::Tcp);
    };
    let Some(dialer) = core::dialer() else {
        return Err(io::ErrorKind::NetworkUnreachable.into());
    };
    let hop = TunnelFor {
        task,
        link: endpoint.addr(),
        target,
        network: behalf.network,
        // A client whose address cannot be told is gone already.
        client: behalf.client.and_then(|client| client.addresses()),
        timeout,
    };
    let dialing = dialer.dial(hop);
    match tokio::time::timeout(timeout, dialing).await {
        Ok(tunnel) => Ok(Leg::Tunnel(TunnelLeg::new(tunnel?))),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One attempt at an endpoint of this node, at one of its addresses. `client`: the address of the client that it is for, if it is for one alone;
/// asked for only where it is needed.
pub(super) async fn connect_here(
    spec: &ServiceSpec,
    endpoint: &Endpoint,
    addr: SocketAddr,
    client: impl FnOnce() -> Option<SocketAddr>,
    timeout: Duration,
) -> io::Result<TcpStream> {
    match &endpoint.spec().netns {
        None => connect_once(addr, timeout).await,
        Some(netns) => {
            let is_transparent = spec.mode == Mode::Tcp && spec.client_address == ClientAddress::Transparent;
            let client = if is_transparent { client() } else { None };
            inside::connect(endpoint, netns, addr, client, timeout).await
        }
    }
}

/// One attempt at an address. Errors: `TimedOut` after `timeout`, else what the kernel says.
pub(super) async fn connect_once(addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    stand(socket::connect(addr)?, timeout).await
}

/// Waits until what was begun stands. Errors as `connect_once`.
async fn stand((stream, is_connected): (std::net::TcpStream, bool), timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(stream)?;
    if !is_connected {
        match tokio::time::timeout(timeout, socket::established(&stream)).await {
            Ok(result) => result?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(stream)
}

//! One client connection in http mode: requests in turn, each given to an endpoint, retried where that is safe, answered
//! with a reason where it fails.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::time::Sleep;

use super::asker;
use super::buffer::Buffer;
use super::ended;
use super::exchange::{Ended, Exchange, Failure, Watch};
use super::pool;
use super::wish;
use crate::model::filters::Filters;
use crate::model::{Balance, HashKey, Scheme, ServiceSpec, Timeouts};
use crate::proxy::Shared;
use crate::proxy::balancer::Wish;
use crate::proxy::core::{self, Connection, Signal};
use crate::proxy::h2;
use crate::proxy::http::{
    Body, Coding, Framing, HeaderSlots, LocalAnswer, Method, Peer, Refusal, Reply, RequestHead, RequestMeta, RouteKey,
    Version, filter_request, https_location, https_place, lower_request, parse_request, write_challenge,
    write_options_reply, write_redirect,
};
use crate::proxy::patience::Patience;
use crate::proxy::relay::{self, Relay, Relayed};
use crate::proxy::side::Side;
use crate::proxy::upstream::{self, Behalf, Tries, Upstream};
use crate::proxy::wire::{Client, Leg, News, Watched};
use crate::routing::{Asker, CloseReason, EndpointId, Listen, Mark, RetryOutcome, Service, ServiceStats};

/// How a client's connection came in.
#[derive(Debug, Clone)]
pub(in crate::proxy) enum Entry {
    /// To a port, which may be another service's by the next request.
    Listener(Listen),
    /// To an entry point, where each request's head says whose it is.
    Front(Listen),
    /// From inside a namespace, to one service, by this network.
    Inside(Option<Arc<str>>),
}

/// A client that turned out to speak HTTP/2 before it has asked for anything.
pub(in crate::proxy) struct Preface<C> {
    pub(in crate::proxy) connection: Connection,
    pub(in crate::proxy) client: C,
    pub(in crate::proxy) entry: Entry,
    /// What was read of it.
    pub(in crate::proxy) early: Vec<u8>,
}

/// Serves one client from accept to close; or, if it speaks HTTP/2, until that shows.
pub(in crate::proxy) async fn serve<C: Client>(
    mut connection: Connection,
    client: C,
    peer: SocketAddr,
    entry: Entry,
    target: u16,
    shared: Arc<Shared>,
) -> Option<Box<Preface<C>>> {
    let has_request = || ended::has_whole_request(&client, shared.config.http_head_bytes_max);
    let admitted = match connection.try_admit() {
        true => Ok(()),
        false => {
            let party = connection.party();
            Box::pin(async {
                connection
                    .admit(&mut Patience::new(client.watched(), party, &has_request))
                    .await
            })
            .await
        }
    };
    let reason = match admitted {
        Ok(()) => {
            let trusted = is_trusted(peer, &entry, &shared);
            let mut server = Server {
                route: match entry {
                    Entry::Front(_) => None,
                    Entry::Listener(_) | Entry::Inside(_) => Some((connection.service().clone(), target)),
                },
                revision: shared.table.peek().revision(),
                entry,
                peer: describe(&client, peer, trusted),
                from: peer,
                asks_for_others: trusted,
                connection: &connection,
                client: &client,
                shared: &shared,
                instead: None,
                filters: None,
                from_client: Buffer::default(),
                wire: Spoken::Nothing,
            };
            let reason = loop {
                match server.next_request().await {
                    Ok(()) => {}
                    Err(reason) => break reason,
                }
            };
            if server.wire == Spoken::Http2 {
                let (entry, early) = (server.entry, server.from_client.into_rest());
                return Some(Box::new(Preface {
                    connection,
                    client,
                    entry,
                    early,
                }));
            }
            reason
        }
        Err(reason) => {
            client.reset_on_close();
            reason
        }
    };
    if client.tcp().is_none() && reason == CloseReason::ResponseEnd {
        // A reader that is slow gets TLS's goodbye too, or would have what it got for cut off.
        let end = poll_fn(|cx| client.poll_end(cx, true));
        let _ = Box::pin(tokio::time::timeout(SEND_AT_MOST, end)).await;
    }
    connection.close(reason);
    None
}

/// Who sends requests: the same for all of one connection.
pub(in crate::proxy) struct Requester {
    peer: Peer,
    from: SocketAddr,
    /// It is a proxy that is trusted to say who its clients are.
    asks_for_others: bool,
    /// The address that it came to.
    local: SocketAddr,
    entry: Entry,
    target: u16,
    shared: Arc<Shared>,
}

impl Requester {
    pub(in crate::proxy) fn new(
        client: &impl Client,
        peer: SocketAddr,
        entry: Entry,
        target: u16,
        shared: Arc<Shared>,
    ) -> Requester {
        let trusted = is_trusted(peer, &entry, &shared);
        Requester {
            peer: describe(client, peer, trusted),
            from: peer,
            asks_for_others: trusted,
            local: client.watched().local_addr().unwrap_or(peer),
            entry,
            target,
            shared,
        }
    }

    pub(in crate::proxy) fn local(&self) -> SocketAddr {
        self.local
    }

    pub(in crate::proxy) fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Sees one request through whose client may have others under way. `client` has all but its `head`. What has not been answered when
/// this ends is lost.
pub(in crate::proxy) async fn serve_one(
    connection: Connection,
    client: &impl Client,
    head: Vec<u8>,
    requester: &Requester,
) {
    let mut server = Server {
        route: match requester.entry {
            Entry::Front(_) => None,
            Entry::Listener(_) | Entry::Inside(_) => Some((connection.service().clone(), requester.target)),
        },
        // The connection may be older than the table.
        revision: u64::MAX,
        entry: requester.entry.clone(),
        peer: requester.peer,
        from: requester.from,
        asks_for_others: requester.asks_for_others,
        connection: &connection,
        client,
        shared: &requester.shared,
        instead: None,
        filters: None,
        from_client: Buffer::of(head),
        wire: Spoken::Http1,
    };
    // What has come of the body can be sent with the head, and again.
    let come = poll_fn(|cx| Poll::Ready(server.from_client.poll_fill(client, cx))).await;
    let reason = match come {
        Poll::Ready(Err(_)) => CloseReason::ClientRst,
        _ => match server.next_request().await {
            Ok(()) => CloseReason::ResponseEnd,
            Err(reason) => reason,
        },
    };
    drop(server);
    connection.close(reason);
}

fn describe(client: &impl Client, peer: SocketAddr, trusted: bool) -> Peer {
    let ip = peer.ip().to_canonical();
    // Without it the connection is gone already.
    let local = client.watched().local_addr().unwrap_or(peer);
    let described = Peer::new(ip, local, trusted);
    match client.tcp() {
        Some(_) => described,
        None => described.over_tls(),
    }
}

/// Whether it is a proxy that is believed who its clients are.
fn is_trusted(peer: SocketAddr, entry: &Entry, shared: &Shared) -> bool {
    let ip = peer.ip().to_canonical();
    let is_among = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&ip));
    if let Entry::Front(listen) = entry
        && let Some(entry_point) = shared.table.peek().entry_point_at(listen)
        && let Some(networks) = &entry_point.spec().trusted_proxies
    {
        return is_among(networks);
    }
    is_among(&shared.config.trusted_proxies)
}

struct Server<'a, C> {
    connection: &'a Connection,
    client: &'a C,
    shared: &'a Shared,
    entry: Entry,
    peer: Peer,
    from: SocketAddr,
    /// It is a proxy that is trusted to say who its clients are.
    asks_for_others: bool,
    /// The service and target port as of `revision`; `None` once the port left the table. At an entry point, those of the last
    /// request, and `None` where no route takes it.
    route: Option<(Arc<Service>, u16)>,
    revision: u64,
    /// What the client of the request at hand is told in the place of a route's answer.
    instead: Option<Instead>,
    /// What its route has done to the request at hand.
    filters: Option<Arc<Filters>>,
    from_client: Buffer,
    wire: Spoken,
}

/// What a client has shown to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Nothing,
    Http1,
    Http2,
}

/// Whose a request to an entry point is.
enum Found {
    Service(Arc<Service>, u16, Option<Arc<Filters>>),
    /// No route's.
    Nobody,
    Instead(Instead),
}

/// What a filter answers.
enum Filtered {
    Forbidden,
    /// Where, and whether for good.
    ToHttps(String, bool),
    /// Its path could be read in two ways, and is to be changed.
    Refused(Refusal),
}

/// Whether the client has come by TLS, as we or a trusted proxy say in the head; of several proxies the first.
fn came_by_tls(head: &[u8]) -> bool {
    let said = wish::field(head, "x-forwarded-proto").unwrap_or_default();
    let first = said.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    first.eq_ignore_ascii_case(b"https") || first.eq_ignore_ascii_case(b"wss")
}

/// Why an entry point answers a request itself, where some route or none at all takes it.
enum Instead {
    /// The client is sent there.
    Elsewhere(Box<str>),
    /// An authority asks whether a name is ours.
    Challenge(Arc<str>),
    /// Its route lets nobody through.
    Closed(Arc<Service>),
}

/// A request that was parsed, its head written anew.
struct Begun {
    meta: RequestMeta,
    to_upstream: Buffer,
    at: Instant,
}

impl<C: Client> Server<'_, C> {
    /// Waits for one request and sees it through. Errors: the reason to close with.
    async fn next_request(&mut self) -> Result<(), CloseReason> {
        if self.from_client.is_empty() {
            self.wait_idle().await?;
        }
        let begun = match self.begin(0) {
            Ok(Some(begun)) => begun,
            Ok(None) => Box::pin(self.read_head()).await?,
            Err(refusal) => return Err(Box::pin(self.refuse(refusal)).await),
        };
        // Boxed: a connection between requests has no use for the room that a request takes.
        Box::pin(self.exchange(begun)).await
    }

    /// Those that hold before it is known whose the next request is.
    fn timeouts(&self) -> Option<&Timeouts> {
        let service = match (&self.entry, &self.route) {
            (Entry::Front(_), _) => self.connection.service(),
            (_, route) => &route.as_ref()?.0,
        };
        Some(&service.spec().timeouts)
    }

    /// Waits for the first byte of a request. No memory is held meanwhile.
    async fn wait_idle(&mut self) -> Result<(), CloseReason> {
        let idle = self.timeouts().map_or(Duration::ZERO, |timeouts| timeouts.idle);
        self.connection.set_idle(true);
        if core::ends_idle() {
            return Err(CloseReason::ProxyShutdown);
        }
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        let result = poll_fn(|cx| {
            if let Poll::Ready(Signal::End(reason)) = self.connection.poll_signal(cx) {
                return Poll::Ready(Err(reason));
            }
            if let Poll::Ready(filled) = self.from_client.poll_fill(self.client, cx) {
                return Poll::Ready(match filled {
                    Ok(1..) => Ok(()),
                    Ok(_) => Err(CloseReason::ClientFin),
                    Err(_) => Err(CloseReason::ClientRst),
                });
            }
            if !idle.is_zero() {
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(CloseReason::IdleTimeout));
                }
            }
            Poll::Pending
        })
        .await;
        self.connection.set_idle(false);
        result
    }

    /// Parses the head at the front of what was received. `None`: more bytes are needed.
    /// `seen`: bytes of it that were looked at in vain before.
    fn begin(&mut self, seen: usize) -> Result<Option<Begun>, Refusal> {
        let mut slots = HeaderSlots::with_most(self.shared.config.http_fields_max);
        let max = self.shared.config.http_head_bytes_max;
        let head = match parse_request(self.from_client.rest(), seen, max, &mut slots) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(Refusal::Version) => return self.begin_lowered(),
            Err(refusal) => return Err(refusal),
        };
        let meta = head.meta;
        let found = match self.entry {
            Entry::Front(listen) => Some(self.find_route(listen, &head)?),
            Entry::Listener(_) | Entry::Inside(_) => None,
        };
        let mut to_upstream = Buffer::default();
        head.forward(&self.peer, to_upstream.tail());
        match found {
            None => {}
            Some(Found::Service(service, target, filters)) => {
                (self.route, self.filters) = (Some((service, target)), filters)
            }
            Some(Found::Instead(instead)) => (self.route, self.instead) = (None, Some(instead)),
            Some(Found::Nobody) => (self.route, self.instead) = (None, None),
        }
        self.from_client.consume(meta.head_len);
        self.wire = Spoken::Http1;
        Ok(Some(Begun {
            meta,
            to_upstream,
            at: Instant::now(),
        }))
    }

    /// Whose a request to an entry point is.
    fn find_route(&self, listen: Listen, head: &RequestHead<'_, '_>) -> Result<Found, Refusal> {
        let table = self.shared.table.peek();
        let Some(entry_point) = table.entry_point_at(&listen) else {
            return Ok(Found::Nobody);
        };
        if let Some(tls) = &self.shared.tls
            && let Some(answer) = tls.challenges().answer(&head.target())
        {
            return Ok(Found::Instead(Instead::Challenge(answer)));
        }
        if let Some(port) = entry_point.spec().redirect {
            let local = self
                .client
                .watched()
                .local_addr()
                .map_or_else(|_| self.from.ip(), |local| local.ip());
            let location = https_location(head, local, port).into();
            return Ok(Found::Instead(Instead::Elsewhere(location)));
        }
        let front = entry_point.front();
        let key = RouteKey::of(head, self.asks_for_others, |host| front.asks_for_path(host))?;
        let found = front.find(&key.asked(self.from.ip().to_canonical()));
        let found = found.and_then(|routed| Some((table.service(&routed.service)?.clone(), &routed.route)));
        Ok(match found {
            None => Found::Nobody,
            Some((service, route)) if route.is_closed => Found::Instead(Instead::Closed(service)),
            Some((service, route)) => Found::Service(service, route.target, route.filters.clone()),
        })
    }

    /// As `begin`, where the version is one to be read as 1.1.
    #[cold]
    fn begin_lowered(&mut self) -> Result<Option<Begun>, Refusal> {
        match lower_request(self.from_client.rest_mut()) {
            true => self.begin(0),
            false => {
                if self.wire == Spoken::Nothing && self.from_client.rest().starts_with(PREFACE) {
                    self.wire = Spoken::Http2;
                }
                Err(Refusal::Version)
            }
        }
    }

    /// Reads on until the head is whole, within the service's limit.
    async fn read_head(&mut self) -> Result<Begun, CloseReason> {
        let limit = self.timeouts().map_or(Duration::ZERO, |timeouts| timeouts.request_head);
        let reading = async {
            loop {
                let seen = self.from_client.rest().len();
                let read = poll_fn(|cx| {
                    if let Poll::Ready(Signal::End(reason)) = self.connection.poll_signal(cx) {
                        return Poll::Ready(Err(reason));
                    }
                    self.from_client.poll_fill(self.client, cx).map(|filled| match filled {
                        Ok(1..) => Ok(()),
                        Ok(_) => Err(CloseReason::ClientFin),
                        Err(_) => Err(CloseReason::ClientRst),
                    })
                });
                read.await?;
                match self.begin(seen) {
                    Ok(Some(begun)) => return Ok(begun),
                    Ok(None) => {}
                    Err(refusal) => return Err(self.refuse(refusal).await),
                }
            }
        };
        if limit.is_zero() {
            return reading.await;
        }
        match tokio::time::timeout(limit, reading).await {
            Ok(result) => result,
            Err(_) => {
                self.connection.service().stats().add_request(408);
                self.say(408, "the request took too long", false, Method::Get).await;
                Err(CloseReason::ClientTimeout)
            }
        }
    }

    async fn refuse(&mut self, refusal: Refusal) -> CloseReason {
        if self.wire == Spoken::Http2 {
            // It goes on elsewhere.
            return CloseReason::BadRequest;
        }
        self.connection.service().stats().add_request(refusal.status());
        self.say(refusal.status(), refusal.text(), false, Method::Get).await;
        self.finish().await;
        CloseReason::BadRequest
    }

    /// Sees one request through. Errors: the reason to close with.
    async fn exchange(&mut self, begun: Begun) -> Result<(), CloseReason> {
        let Begun {
            meta,
            mut to_upstream,
            at: began_at,
        } = begun;
        if let Some(answer) = meta.local_answer {
            return self.answer_locally(answer, &meta).await;
        }
        let Some((service, target)) = self.current_route() else {
            if let Entry::Front(_) = self.entry {
                return match self.instead.take() {
                    Some(Instead::Elsewhere(location)) => {
                        self.connection.service().stats().add_request(301);
                        self.say_elsewhere(&location, true, &meta).await
                    }
                    Some(Instead::Challenge(answer)) => self.say_challenge(&answer, &meta).await,
                    Some(Instead::Closed(service)) => {
                        let text = format!(
                            "service {}: this route is closed: anynode status says why",
                            service.name()
                        );
                        self.fail(&service, 503, text, &meta, meta.framing == Framing::None)
                            .await
                    }
                    None => self.say_no_route(&meta).await,
                };
            }
            self.say(503, "this port is not published any more", false, meta.method)
                .await;
            self.finish().await;
            return Err(CloseReason::Drain);
        };
        let wish = match (service.spec().balance, &service.spec().sticky) {
            (Balance::RoundRobin | Balance::LeastRequest, None) => Wish::default(),
            _ => self.wish(service.spec(), &to_upstream),
        };
        let mut filters = Vec::new();
        if self.filters.is_some() || service.spec().filters.is_some() {
            filters.extend(self.filters.take());
            filters.extend(service.spec().filters.clone());
            if let Some(answer) = self.filter(&filters, to_upstream.tail()) {
                return match answer {
                    Filtered::Forbidden => {
                        let text = format!("service {}: not for clients of that address", service.name());
                        self.fail(&service, 403, text, &meta, meta.framing == Framing::None)
                            .await
                    }
                    Filtered::Refused(refusal) => Err(self.refuse(refusal).await),
                    Filtered::ToHttps(location, is_permanent) => {
                        service.stats().add_request(301);
                        self.say_elsewhere(&location, is_permanent, &meta).await
                    }
                };
            }
        }
        let stats = service.stats();
        service.state().retry_budget.earn();
        let mut request_body = Body::of_request(meta.framing);
        self.append_early_body(&mut request_body, &mut to_upstream)?;
        let mut tries = Tries::default();
        let mut n_retries = 0;
        loop {
            let scheme = service.spec().scheme;
            let reuse = |endpoint| standing(scheme, endpoint, target, meta.method);
            let acquired = match upstream::at_once(&service, target, wish, &mut tries, reuse) {
                Some(upstream) => Ok(upstream),
                // Boxed: waiting takes room that few requests have a use for.
                None => {
                    let acquiring = self.acquire(&service, target, wish, &mut tries, meta.method, request_body);
                    Box::pin(acquiring).await?
                }
            };
            let upstream = match acquired {
                Ok(upstream) => upstream,
                Err(reason) => {
                    return self
                        .fail(
                            &service,
                            reason_status(reason),
                            reason_text(reason, &service),
                            &meta,
                            request_body.is_done(),
                        )
                        .await;
                }
            };
            let Upstream {
                stream,
                lease,
                is_reused,
            } = upstream;
            let mut stream = Side::Hears(stream);
            let endpoint = lease.endpoint().clone();
            self.connection.hold(Some(endpoint.id()));
            let mut exchange = Exchange {
                client: self.client,
                upstream: &mut stream,
                stats,
                head_bytes_max: self.shared.config.http_head_bytes_max,
                fields_max: self.shared.config.http_fields_max,
                request: meta,
                from_client: &mut self.from_client,
                to_upstream: &mut to_upstream,
                request_body,
                is_replayable: true,
                is_cut_short: false,
                sent_at: None,
                response: None,
                from_upstream: Buffer::default(),
                to_client: Buffer::default(),
                pipe: None,
                n_interim: 0,
                filters: &filters,
                set_cookie: wish::set_cookie(&service, &endpoint, wish.mark),
                has_begun: false,
                watch: Watch::Reads,
            };
            let outcome = run(self.connection, &mut exchange, service.spec()).await;
            if let Some(response) = &exchange.response {
                stats.add_request(response.meta.status);
                stats.request_ttfb.observe(response.at - began_at);
                stats.request_duration.observe(began_at.elapsed());
                endpoint.answered();
            }
            let has_responded = exchange.response.is_some();
            let is_kept = exchange.is_replayable;
            let may_replay = is_kept && !exchange.has_begun;
            request_body = exchange.request_body;
            let is_request_read = exchange.is_request_read();
            let is_request_sent = exchange.is_request_sent();
            let from_upstream = std::mem::take(&mut exchange.from_upstream);
            drop(exchange);
            let ended = match outcome {
                Outcome::Ended(ended) => ended,
                Outcome::Lost => {
                    stream.reset_on_close();
                    Ended::Failed(Failure::Lost)
                }
                Outcome::Cut(reason) => {
                    self.client.reset_on_close();
                    stream.reset_on_close();
                    return Err(reason);
                }
                Outcome::TooLate => {
                    drop((stream, lease));
                    self.connection.hold(None);
                    return self
                        .fail(
                            &service,
                            504,
                            "the endpoint did not answer in time".into(),
                            &meta,
                            is_request_read,
                        )
                        .await;
                }
            };
            if !is_request_sent && !matches!(ended, Ended::Switched) {
                // An orderly end could be taken for the end of the request's body.
                stream.reset_on_close();
            }
            match ended {
                Ended::Response {
                    upstream_stays,
                    client_stays,
                } => {
                    self.connection.hold(None);
                    let stays = upstream_stays && !lease.endpoint().is_draining();
                    let stream = if stays {
                        stream.into_wire()
                    } else {
                        drop(stream);
                        None
                    };
                    if let Some(stream) = stream.filter(|stream| !stream.is_leaving()) {
                        pool::put(
                            endpoint.id(),
                            target,
                            stream,
                            Instant::now(),
                            self.shared.config.http_pool_per_endpoint,
                        );
                    }
                    drop(lease);
                    if n_retries > 0 {
                        stats.add_retry(RetryOutcome::Success);
                    }
                    if client_stays {
                        return Ok(());
                    }
                    if !is_request_read || self.has_client_sent_on() {
                        self.finish().await;
                    }
                    return Err(CloseReason::ResponseEnd);
                }
                Ended::Switched => {
                    let Some(stream) = stream.into_wire() else {
                        return Err(CloseReason::UpstreamError);
                    };
                    return Err(self.switch(&service, stream, from_upstream).await);
                }
                Ended::Failed(failure) => {
                    self.connection.hold(None);
                    let reason = match failure {
                        Failure::ClientGone => Some(CloseReason::ClientRst),
                        Failure::ClientEnded => Some(CloseReason::ClientAbort),
                        _ => None,
                    };
                    if let Some(reason) = reason {
                        stream.reset_on_close();
                        if has_responded {
                            self.client.reset_on_close();
                        }
                        return Err(reason);
                    }
                    if !has_responded && !is_reused && failure.is_silence() {
                        let asker = self.asker(is_kept.then_some(&mut to_upstream));
                        service.left_unanswered(&endpoint, asker, Instant::now());
                    }
                    let is_unprocessed = stream.wire().is_some_and(Leg::is_unprocessed);
                    drop((stream, lease));
                    match failure {
                        Failure::NoResponse | Failure::Lost
                            if may_replay
                                && (is_unprocessed || meta.method.is_idempotent())
                                && n_retries < RETRIES_MAX =>
                        {
                            if service.state().retry_budget.spend() {
                                n_retries += 1;
                                tries.tried.push(endpoint.id());
                                to_upstream.rewind();
                                continue;
                            }
                            stats.add_retry(RetryOutcome::OverBudget);
                        }
                        _ => {}
                    }
                    if n_retries > 0 {
                        stats.add_retry(RetryOutcome::Failure);
                    }
                    if has_responded {
                        // Whoever was promised a whole response must not take what it got for one.
                        self.client.reset_on_close();
                        return Err(CloseReason::UpstreamError);
                    }
                    let (status, text) = match failure {
                        Failure::RequestBody(fault) => {
                            stats.add_request(400);
                            self.say(400, fault.text(), false, meta.method).await;
                            self.finish().await;
                            return Err(CloseReason::BadRequest);
                        }
                        Failure::ResponseHead(refusal) => {
                            (502, format!("the endpoint's response is refused: {refusal}"))
                        }
                        Failure::Lost => (504, "the endpoint's node does not answer".to_owned()),
                        Failure::NoResponse => {
                            (502, "the endpoint closed the connection without a response".to_owned())
                        }
                        _ => (502, "the endpoint's response was cut off, or is malformed".to_owned()),
                    };
                    return self.fail(&service, status, text, &meta, is_request_read).await;
                }
            }
        }
    }

    /// Whose request it is. `sent`: what was sent of it, where that is kept.
    fn asker(&self, sent: Option<&mut Buffer>) -> Asker {
        let by_proxy = sent.filter(|_| self.asks_for_others).and_then(|sent| {
            sent.rewind();
            asker::of_forwarded(sent.rest())
        });
        Asker::of(by_proxy.map_or(self.from, |ip| SocketAddr::new(ip, 0)))
    }

    /// Which endpoint a request is to have. `sent`: its head, as the endpoint would have it without filters.
    fn wish(&self, spec: &ServiceSpec, sent: &Buffer) -> Wish {
        let head = sent.rest();
        let mark = spec.sticky.as_ref().and_then(|sticky| {
            let said = wish::cookie(head, sticky.cookie.as_str())?;
            Mark::read(said)
        });
        let wish = match &spec.hash {
            _ if spec.balance != Balance::Hash => Wish::default(),
            HashKey::ClientAddress => {
                let by_proxy = self.asks_for_others.then(|| asker::of_forwarded(head)).flatten();
                Wish::of_client(by_proxy.unwrap_or_else(|| self.from.ip()))
            }
            HashKey::Header(name) => wish::field(head, name).map_or_else(Wish::default, Wish::of_key),
            HashKey::Cookie(name) => wish::cookie(head, name).map_or_else(Wish::default, Wish::of_key),
        };
        Wish { mark, ..wish }
    }

    /// Changes a head as filters say, the whole of `head` and not more. Returns what the client is told in the place of an endpoint's
    /// answer.
    fn filter(&self, filters: &[Arc<Filters>], head: &mut Vec<u8>) -> Option<Filtered> {
        // All are judged by what came, before any of them changes it.
        let is_let_in = |ip: IpAddr| filters.iter().all(|filters| filters.lets_in(ip));
        if filters.iter().any(|filters| filters.allow.is_some()) {
            let client = match self.asks_for_others {
                true => asker::client_of(head, |ip| is_trusted(SocketAddr::new(ip, 0), &self.entry, self.shared)),
                false => Ok(None),
            };
            if !client.is_ok_and(|client| is_let_in(client.unwrap_or_else(|| self.from.ip()))) {
                return Some(Filtered::Forbidden);
            }
        }
        let to_https = filters.iter().find_map(|filters| filters.to_https);
        if let Some(to) = to_https.filter(|_| !came_by_tls(head)) {
            let local = self.client.watched().local_addr();
            let local = local.map_or_else(|_| self.from.ip(), |local| local.ip());
            return Some(Filtered::ToHttps(https_place(head, local, to.port), to.is_permanent));
        }
        let changed = filters.iter().try_for_each(|filters| filter_request(head, filters));
        changed.err().map(Filtered::Refused)
    }

    /// Body bytes that came with the head go out with it, in one call.
    fn append_early_body(&mut self, body: &mut Body, to_upstream: &mut Buffer) -> Result<(), CloseReason> {
        if body.is_done() || self.from_client.is_empty() {
            return Ok(());
        }
        let coding = match body {
            Body::Chunked(_) => Coding::Chunked,
            _ => Coding::Plain,
        };
        let before = *body;
        let len = to_upstream.tail().len();
        match body.forward(self.from_client.rest(), coding, to_upstream.tail()) {
            Ok(progress) => self.from_client.consume(progress.consumed),
            Err(_) => {
                // Found again, and answered, where the exchange meets it.
                *body = before;
                to_upstream.tail().truncate(len);
            }
        }
        Ok(())
    }

    /// An endpoint's connection, kept or new. The outer error is the reason to close with.
    async fn acquire(
        &mut self,
        service: &Arc<Service>,
        target: u16,
        wish: Wish,
        tries: &mut Tries,
        method: Method,
        request_body: Body,
    ) -> Result<Result<Upstream, CloseReason>, CloseReason> {
        let received = self.from_client.rest();
        let ends = service.spec().abort_on_client_close;
        let is_whole = || !ends && ended::has_rest_of_body(self.client, received, request_body);
        let mut patience = Patience::new(self.client.watched(), self.connection.party(), &is_whole);
        let scheme = service.spec().scheme;
        let reuse = |endpoint| standing(scheme, endpoint, target, method);
        let behalf = Behalf {
            client: None,
            network: match &self.entry {
                Entry::Inside(network) => network.as_ref(),
                Entry::Listener(_) | Entry::Front(_) => None,
            },
            rounds: None,
            wish,
        };
        let acquired = tokio::select! {
            biased;
            result = upstream::connect(&self.shared.table, service, target, behalf, tries, &mut patience, reuse) => match result {
                Err(reason @ (CloseReason::ClientAbort | CloseReason::ClientRst)) => Err(reason),
                result => Ok(result),
            },
            reason = self.connection.ended() => Err(reason),
            _ = self.client.watched().news(false) => Err(CloseReason::ClientRst),
        }?;
        match acquired {
            Ok(upstream) if scheme == Scheme::H2c && !upstream.is_reused => {
                let head_bytes_max = self.shared.config.http_head_bytes_max;
                Ok(Box::pin(speak_http2(upstream, target, head_bytes_max)).await)
            }
            acquired => Ok(acquired),
        }
    }

    /// The service behind the port now.
    fn current_route(&mut self) -> Option<(Arc<Service>, u16)> {
        if let Entry::Front(_) = self.entry {
            // Found when the head was read. Between two requests the connection holds none.
            return self.route.take();
        }
        let table = self.shared.table.peek();
        if table.revision() != self.revision {
            self.revision = table.revision();
            let route = match (&self.entry, &self.route) {
                (Entry::Listener(listen), _) => table.route(listen).map(|route| (&route.service, route.target)),
                (Entry::Inside(_), Some((service, target))) => Some((service.name(), *target)),
                (Entry::Inside(_), None) | (Entry::Front(_), _) => None,
            };
            self.route = route.and_then(|(name, target)| Some((table.service(name)?.clone(), target)));
        }
        self.route.clone()
    }

    /// Answers for an endpoint that did not.
    async fn fail(
        &mut self,
        service: &Service,
        status: u16,
        text: String,
        meta: &RequestMeta,
        is_request_read: bool,
    ) -> Result<(), CloseReason> {
        service.stats().add_request(status);
        let stays = meta.keep_alive && meta.version == Version::Http11 && is_request_read && !core::is_draining();
        self.say(status, &text, stays, meta.method).await;
        if stays {
            return Ok(());
        }
        self.finish().await;
        Err(CloseReason::ResponseEnd)
    }

    async fn say_no_route(&mut self, meta: &RequestMeta) -> Result<(), CloseReason> {
        let entry_point = self.connection.service().clone();
        let text = format!("no route of entry point {} takes this request", entry_point.name());
        self.fail(&entry_point, 404, text, meta, meta.framing == Framing::None)
            .await
    }

    async fn say_challenge(&mut self, answer: &str, meta: &RequestMeta) -> Result<(), CloseReason> {
        self.connection.service().stats().add_request(200);
        let mut out = Buffer::default();
        write_challenge(answer, meta.method == Method::Head, out.tail());
        self.send(out).await;
        self.finish().await;
        Err(CloseReason::ResponseEnd)
    }

    /// Sends the client on, for good or for now. Methods besides GET and HEAD are kept by it.
    async fn say_elsewhere(
        &mut self,
        location: &str,
        is_permanent: bool,
        meta: &RequestMeta,
    ) -> Result<(), CloseReason> {
        let status = match (meta.method, is_permanent) {
            (Method::Get | Method::Head, true) => 301,
            (Method::Get | Method::Head, false) => 302,
            (_, true) => 308,
            (_, false) => 307,
        };
        let stays = meta.keep_alive && meta.framing == Framing::None && !core::is_draining();
        let mut out = Buffer::default();
        write_redirect(status, location, stays, out.tail());
        self.send(out).await;
        if stays {
            return Ok(());
        }
        self.finish().await;
        Err(CloseReason::ResponseEnd)
    }

    async fn answer_locally(&mut self, answer: LocalAnswer, meta: &RequestMeta) -> Result<(), CloseReason> {
        let stays = meta.keep_alive && meta.framing == Framing::None && !core::is_draining();
        match answer {
            LocalAnswer::Options => {
                let mut out = Buffer::default();
                write_options_reply(stays, out.tail());
                self.send(out).await;
            }
            LocalAnswer::Trace => self.say(501, "TRACE is not reflected", stays, meta.method).await,
        }
        match stays {
            true => Ok(()),
            false => Err(CloseReason::ResponseEnd),
        }
    }

    /// Sends a response of our own. Whether the client still takes it is the client's affair.
    async fn say(&mut self, status: u16, text: &str, keep_alive: bool, method: Method) {
        let reply = Reply {
            status,
            text,
            keep_alive,
            to_head: method == Method::Head,
        };
        let mut out = Buffer::default();
        reply.write(out.tail());
        self.send(out).await;
    }

    async fn send(&mut self, mut out: Buffer) {
        let flush = poll_fn(|cx| out.poll_flush(self.client, cx));
        let _ = tokio::time::timeout(SEND_AT_MOST, flush).await;
    }

    /// Whether there is more of the client to read, as far as is known without asking the kernel.
    fn has_client_sent_on(&self) -> bool {
        self.client.watched().has_more()
    }

    /// Ends our half and lets the client finish, so that closing does not reset what it has yet to read.
    async fn finish(&mut self) {
        let end = poll_fn(|cx| self.client.poll_end(cx, false));
        let _ = tokio::time::timeout(SEND_AT_MOST, end).await;
        relay::discard_a_while(self.client).await;
    }

    /// Goes on as a relay of bytes.
    async fn switch(&mut self, service: &Service, upstream: Leg, from_upstream: Buffer) -> CloseReason {
        let early = [
            std::mem::take(&mut self.from_client).into_rest(),
            from_upstream.into_rest(),
        ];
        let of_service = OfService {
            connection: self.connection,
            service,
        };
        let mut relay = Relay::new(of_service, self.client, upstream, early);
        relay::run(&mut relay).await
    }
}

/// A connection that goes on with one service, whoever's it was when it came.
struct OfService<'a> {
    connection: &'a Connection,
    service: &'a Service,
}

impl Relayed for OfService<'_> {
    fn connection(&self) -> &Connection {
        self.connection
    }

    fn stats(&self) -> &ServiceStats {
        self.service.stats()
    }

    fn timeouts(&self) -> &Timeouts {
        &self.service.spec().timeouts
    }
}

/// A connection that stands to an endpoint, for a request by `method`.
fn standing(scheme: Scheme, endpoint: EndpointId, target: u16, method: Method) -> Option<Leg> {
    if scheme == Scheme::H2c {
        return h2::pool::take(endpoint, target);
    }
    loop {
        let stream = pool::take(endpoint, target)?;
        // What cannot be sent twice is sent on a connection that stood a moment ago.
        if method.is_idempotent() || stream.stands() {
            return Some(stream);
        }
    }
}

/// Has a new connection carry many requests, and this one first.
async fn speak_http2(upstream: Upstream, target: u16, head_bytes_max: usize) -> Result<Upstream, CloseReason> {
    let Upstream {
        stream,
        lease,
        is_reused,
    } = upstream;
    let opened = h2::pool::open(lease.endpoint().id(), target, stream, head_bytes_max).await;
    Ok(Upstream {
        stream: opened.ok_or(CloseReason::ConnectFailed)?,
        lease,
        is_reused,
    })
}

enum Outcome {
    Ended(Ended),
    /// The endpoint's node does not answer any more.
    Lost,
    /// Ended from outside.
    Cut(CloseReason),
    /// No response within the limit.
    TooLate,
}

/// Runs an exchange to its end, within `response_limit` from the request sent to the response's head (zero: none).
async fn run(connection: &Connection, exchange: &mut Exchange<'_, impl Client>, spec: &ServiceSpec) -> Outcome {
    let response_limit = spec.timeouts.response;
    let client = exchange.client.watched();
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    // Made for few: most clients wait for the response without a word.
    let mut news: Option<(bool, Coming<'_>)> = None;
    poll_fn(|cx| {
        match connection.poll_signal(cx) {
            Poll::Ready(Signal::End(reason)) => return Poll::Ready(Outcome::Cut(reason)),
            Poll::Ready(Signal::Lost) => return Poll::Ready(Outcome::Lost),
            _ => {}
        }
        if let Poll::Ready(ended) = exchange.poll(cx) {
            return Poll::Ready(Outcome::Ended(ended));
        }
        if exchange.watch == Watch::HasEnded && spec.abort_on_client_close {
            return Poll::Ready(Outcome::Ended(Ended::Failed(Failure::ClientEnded)));
        }
        if exchange.watch != Watch::Reads || exchange.is_held_up() {
            // Nobody reads from it now, so that nobody else would notice.
            let also_ended = exchange.watch == Watch::HasSaid && spec.abort_on_client_close;
            let (_, news) = match &mut news {
                Some(news) if news.0 == also_ended => news,
                _ => news.insert((also_ended, Box::pin(client_news(client, also_ended)))),
            };
            if let Poll::Ready(failure) = news.as_mut().poll(cx) {
                return Poll::Ready(Outcome::Ended(Ended::Failed(failure)));
            }
        }
        if !response_limit.is_zero()
            && exchange.response.is_none()
            && let Some(sent_at) = exchange.sent_at
        {
            let due = tokio::time::Instant::from_std(sent_at + response_limit);
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Outcome::TooLate);
            }
        }
        Poll::Pending
    })
    .await
}

type Coming<'a> = Pin<Box<dyn Future<Output = Failure> + Send + 'a>>;

async fn client_news(client: Watched<'_>, also_ended: bool) -> Failure {
    match client.news(also_ended).await {
        News::Ended => Failure::ClientEnded,
        News::Gone => Failure::ClientGone,
    }
}

fn reason_status(reason: CloseReason) -> u16 {
    match reason {
        CloseReason::ConnectTimeout => 504,
        CloseReason::ConnectFailed => 502,
        _ => 503,
    }
}

fn reason_text(reason: CloseReason, service: &Service) -> String {
    let what = match reason {
        CloseReason::ConnectTimeout => "no endpoint accepted a connection in time",
        CloseReason::ConnectFailed => "no endpoint accepted a connection",
        CloseReason::NoEndpoint => "no endpoint",
        CloseReason::Limit => "at its limit",
        _ => "not available",
    };
    format!("service {}: {what}", service.name())
}

/// How HTTP/2 begins, so that whoever speaks HTTP/1.1 refuses it (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Times that one request is sent again.
const RETRIES_MAX: u32 = 2;
/// A client may take so long to take a short answer.
const SEND_AT_MOST: Duration = Duration::from_secs(5);

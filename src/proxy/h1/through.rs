//! One request to an endpoint and its answer, again where that is safe, with a reason where it fails. Not here: whose it is (`whose`), and
//! the bytes (`exchange`).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::time::Sleep;

use super::buffer::Buffer;
use super::ended;
use super::exchange::{Ended, Exchange, Failure, Watch};
use super::passing::Passed;
use super::pool;
use super::way::{self, Way};
use super::wish;
use crate::model::filters::Filters;
use crate::model::{Balance, Scheme, ServiceSpec, Timeouts};
use crate::proxy::balancer::Wish;
use crate::proxy::core::{Connection, Signal};
use crate::proxy::h2;
use crate::proxy::http::{self, Body, BodyFault, Coding, Framing, Method, filter_request};
use crate::proxy::patience::Patience;
use crate::proxy::relay::{self, Relay, Relayed};
use crate::proxy::side::Side;
use crate::proxy::upstream::{self, Behalf, Tries, Upstream};
use crate::proxy::wire::{Client, Leg, News, Watched};
use crate::routing::{CloseReason, EndpointId, RetryOutcome, Service, ServiceStats};

use super::server::{Begun, Entry, Instead, Server};

impl<C: Client> Server<'_, C> {
    /// Sees one request through. Errors: the reason to close with.
    pub(super) async fn exchange(&mut self, begun: Begun) -> Result<(), CloseReason> {
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
                    Some(Instead::Misdirected) => self.say_misdirected(&meta).await,
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
        let mut passed = Passed::default();
        // Whether the service has become another one while the request waited.
        let mut is_of_before = false;
        let (mut compress, mut takes_gzip) = (None, false);
        if self.filters.is_some() || service.spec().filters.is_some() {
            let (said_by, of_route) = self.filters.take().unzip();
            filters.extend(of_route);
            filters.extend(service.spec().filters.clone());
            let answer = self.judge(&filters, to_upstream.rest());
            // As the client says it, whatever the endpoint is told.
            compress = filters.iter().find_map(|filters| filters.compress.clone());
            takes_gzip = compress.is_some() && http::takes_gzip(to_upstream.rest());
            if answer.is_some() || filters.iter().any(|filters| filters.guards.is_some()) {
                // Boxed: asking takes room that few requests have a use for.
                let passing = self.pass(&service, said_by.as_deref(), &filters, answer, &mut to_upstream, &meta);
                match Box::pin(passing).await {
                    // Counted as under way until all of this ends, however it does.
                    Ok(is_passed) => passed = is_passed,
                    Err(answered) => return answered,
                }
                is_of_before = upstream::newer(&self.shared.table, &service).is_some();
            }
            let change = |filters: &Arc<Filters>| filter_request(to_upstream.tail(), filters);
            if let Err(refusal) = filters.iter().try_for_each(change) {
                return Err(self.refuse(refusal).await);
            }
        }
        let way = match Way::of(service.spec(), to_upstream.rest()) {
            Ok(way) => way,
            Err(refusal) => return Err(self.refuse(refusal).await),
        };
        let stats = service.stats();
        service.state().retry_budget.earn();
        let mut request_body = passed.body.unwrap_or_else(|| Body::of_request(meta.framing));
        if passed.tells_user || filters.iter().any(|filters| !filters.request_fields.is_empty()) {
            request_body = request_body.without_trailers();
        }
        if let Err(fault @ BodyFault::TooLong) = self.append_early_body(&mut request_body, &mut to_upstream) {
            return Err(self.say_broken(&service, fault, &meta).await);
        }
        let retries_max = passed.retries.unwrap_or(RETRIES_MAX);
        let mut tries = Tries::default();
        let mut n_retries = 0;
        // The endpoint that was asked last has ended its connection without a word.
        let mut has_closed = false;
        // On a connection that was kept too long: no word on the endpoint, and not one of its tries.
        let mut is_anew = false;
        loop {
            let asked = Asked {
                wish,
                method: meta.method,
                is_anew,
            };
            // What was waited for since the way was chosen may have changed it.
            let at_once = match n_retries == 0 && !is_anew && !is_of_before {
                true => {
                    let reuse = |endpoint| asked.standing(way, endpoint, target);
                    upstream::at_once(&service, target, wish, &mut tries, reuse)
                }
                false => None,
            };
            let acquired = match at_once {
                Some(upstream) => Ok(upstream),
                // Boxed: waiting takes room that few requests have a use for.
                None => {
                    let head = to_upstream.rest();
                    let network = self.network();
                    let acquiring = self.acquire(
                        &service,
                        target,
                        asked,
                        head,
                        &mut tries,
                        request_body,
                        network.as_ref(),
                    );
                    Box::pin(acquiring).await?
                }
            };
            let upstream = match acquired {
                Ok(upstream) => upstream,
                Err(reason) => {
                    if n_retries > 0 {
                        stats.add_retry(RetryOutcome::Failure);
                    }
                    let text = match tries.lacks_http1 && reason == CloseReason::ConnectFailed {
                        true => format!(
                            "service {}: no endpoint speaks HTTP/1.1, which an Upgrade, or a Host that is no authority, needs",
                            service.name()
                        ),
                        false
                            if has_closed
                                && reason == CloseReason::ConnectFailed
                                && service.spec().scheme != Scheme::Https =>
                        {
                            format!(
                                "service {}: {NO_RESPONSE}, and no other took the request",
                                service.name()
                            )
                        }
                        false => reason_text(reason, &service),
                    };
                    return self
                        .fail(&service, reason_status(reason), text, &meta, request_body.is_done())
                        .await;
                }
            };
            let Upstream {
                stream,
                lease,
                is_reused,
                ..
            } = upstream;
            let mut stream = Side::Hears(stream);
            let endpoint = lease.endpoint().clone();
            self.connection.hold(Some(endpoint.id()));
            let sides = (self.client, &mut stream);
            let buffers = (&mut self.from_client, &mut to_upstream);
            let mut exchange = Exchange::new(sides, (meta, request_body), buffers, stats, &self.shared.config);
            exchange.filters = &filters;
            exchange.compress = compress.as_deref().map(|compress| (compress, takes_gzip));
            exchange.set_cookie = wish::set_cookie(&service, &endpoint, wish.mark);
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
                    stream.wire().into_iter().for_each(Leg::distrust);
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
                    let is_unprocessed = stream.wire().is_some_and(Leg::is_unprocessed);
                    if !has_responded && !is_reused && !is_unprocessed && failure.is_silence() {
                        let asker = self.asker(is_kept.then_some(&mut to_upstream));
                        service.left_unanswered(&endpoint, asker, Instant::now());
                    }
                    let was_kept = is_reused && !stream.wire().is_some_and(Leg::is_one_of_many);
                    drop((stream, lease));
                    has_closed = matches!(failure, Failure::NoResponse) && !is_unprocessed;
                    match failure {
                        // It has answered, and may take it on another connection.
                        Failure::NoResponse
                            if is_unprocessed && may_replay && n_retries < retries_max.max(RETRIES_MAX) =>
                        {
                            n_retries += 1;
                            to_upstream.rewind();
                            continue;
                        }
                        Failure::NoResponse if was_kept && !is_anew && may_replay && meta.method.is_idempotent() => {
                            is_anew = true;
                            to_upstream.rewind();
                            continue;
                        }
                        Failure::NoResponse | Failure::Lost
                            if may_replay && meta.method.is_idempotent() && n_retries < retries_max =>
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
                        Failure::RequestBody(fault) => return Err(self.say_broken(&service, fault, &meta).await),
                        Failure::ResponseHead(refusal) => {
                            (502, format!("the endpoint's response is refused: {refusal}"))
                        }
                        Failure::Lost => (504, "the endpoint's node does not answer".to_owned()),
                        Failure::NoResponse => (502, NO_RESPONSE.to_owned()),
                        _ => (502, "the endpoint's response was cut off, or is malformed".to_owned()),
                    };
                    return self.fail(&service, status, text, &meta, is_request_read).await;
                }
            }
        }
    }

    /// Body bytes that came with the head go out with it, in one call. Errors: it is broken, which is found again, and answered, where
    /// the exchange meets it.
    #[inline(always)]
    pub(super) fn append_early_body(&mut self, body: &mut Body, to_upstream: &mut Buffer) -> Result<(), BodyFault> {
        match body.is_done() || self.from_client.is_empty() {
            true => Ok(()),
            false => self.append_body(body, to_upstream),
        }
    }

    fn append_body(&mut self, body: &mut Body, to_upstream: &mut Buffer) -> Result<(), BodyFault> {
        let coding = match body {
            Body::Chunked(_) => Coding::Chunked,
            _ => Coding::Plain,
        };
        let before = *body;
        let len = to_upstream.tail().len();
        match body.forward(self.from_client.rest(), coding, to_upstream.tail()) {
            Ok(progress) => self.from_client.consume(progress.consumed),
            Err(fault) => {
                *body = before;
                to_upstream.tail().truncate(len);
                return Err(fault);
            }
        }
        Ok(())
    }

    /// The network by which a task asks from inside.
    fn network(&self) -> Option<Arc<str>> {
        match &self.entry {
            Entry::Inside(network) => network.clone(),
            Entry::Listener(_) | Entry::Front(_) => None,
        }
    }

    /// An endpoint's connection, kept or new, for a request with this `head`, which came with `request_body`. The outer error is the reason to
    /// close with.
    #[expect(clippy::too_many_arguments, reason = "each is of one request")]
    pub(super) async fn acquire(
        &mut self,
        service: &Arc<Service>,
        target: u16,
        asked: Asked,
        head: &[u8],
        tries: &mut Tries,
        request_body: Body,
        network: Option<&Arc<str>>,
    ) -> Result<Result<Upstream, CloseReason>, CloseReason> {
        let received = self.from_client.rest();
        let ends = service.spec().abort_on_client_close;
        let is_whole = || !ends && ended::has_rest_of_body(self.client, received, request_body);
        let mut patience = Patience::new(self.client.watched(), self.connection.party(), &is_whole);
        let reuse = |spec: &ServiceSpec, endpoint| asked.standing(Way::of(spec, head).ok()?, endpoint, target);
        let behalf = Behalf {
            client: None,
            network,
            rounds: None,
            wish: asked.wish,
            offer: way::offer(head),
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
            // It was not so when the request came.
            Ok(upstream) if upstream.scheme == Scheme::H2c && !way::has_authority(head) => {
                Ok(Err(CloseReason::ConnectFailed))
            }
            Ok(upstream) if !upstream.is_reused && way::is_shared(upstream.scheme, &upstream.stream) => {
                let head_bytes_max = self.shared.config.http_head_bytes_max;
                Ok(Box::pin(speak_http2(upstream, target, head_bytes_max)).await)
            }
            acquired => Ok(acquired),
        }
    }

    /// Whether there is more of the client to read, as far as is known without asking the kernel.
    pub(super) fn has_client_sent_on(&self) -> bool {
        self.client.watched().has_more()
    }

    /// Goes on as a relay of bytes.
    pub(super) async fn switch(&mut self, service: &Service, upstream: Leg, from_upstream: Buffer) -> CloseReason {
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

/// What a request asks of an endpoint and of the connection there.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) wish: Wish,
    pub(super) method: Method,
    /// None that is kept will do.
    pub(super) is_anew: bool,
}

impl Asked {
    fn standing(self, way: Way, endpoint: EndpointId, target: u16) -> Option<Leg> {
        match self.is_anew {
            true => None,
            false => way.standing(endpoint, target, self.method),
        }
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

/// Has a new connection carry many requests, and this one first.
async fn speak_http2(upstream: Upstream, target: u16, head_bytes_max: usize) -> Result<Upstream, CloseReason> {
    let Upstream {
        stream,
        lease,
        is_reused,
        scheme,
    } = upstream;
    let opened = h2::pool::open(lease.endpoint().id(), target, stream, head_bytes_max).await;
    Ok(Upstream {
        stream: opened.ok_or(CloseReason::ConnectFailed)?,
        lease,
        is_reused,
        scheme,
    })
}

pub(super) enum Outcome {
    Ended(Ended),
    /// The endpoint's node does not answer any more.
    Lost,
    /// Ended from outside.
    Cut(CloseReason),
    /// No response within the limit.
    TooLate,
}

/// Runs an exchange to its end, within `response_limit` from the request sent to the response's head (zero: none).
pub(super) async fn run(
    connection: &Connection,
    exchange: &mut Exchange<'_, impl Client>,
    spec: &ServiceSpec,
) -> Outcome {
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
        CloseReason::ConnectFailed if service.spec().scheme == Scheme::Https => {
            "no endpoint accepted a connection and was believed: anynode status says more"
        }
        CloseReason::ConnectFailed => "no endpoint accepted a connection",
        CloseReason::NoEndpoint => "no endpoint",
        CloseReason::Limit => "at its limit",
        _ => "not available",
    };
    format!("service {}: {what}", service.name())
}

const NO_RESPONSE: &str = "the endpoint closed the connection without a response";

/// Times that one request is sent again, where nothing is said of that.
const RETRIES_MAX: u32 = 2;

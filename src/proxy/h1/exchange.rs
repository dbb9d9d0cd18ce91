//! One request and its response between two sockets, both directions at once. A state machine that is polled; it parses
//! and frames with `proxy::http` and holds no time limit. Not here: which endpoint, and what follows (`serve`).

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::Interest;

use super::buffer::Buffer;
use super::gzip::Gzip;
use crate::model::compress::Compress;
use crate::model::filters::Filters;
use crate::proxy::ProxyConfig;
use crate::proxy::core;
use crate::proxy::http::{
    Body, BodyFault, Coding, HeaderSlots, Refusal, RequestMeta, ResponseMeta, Version, add_field, code_response,
    filter_response, lower_response, parse_response,
};
use crate::proxy::side::Side;
use crate::proxy::wire::{Client, Leg, Look};
use crate::routing::{BytePath, Direction, ServiceStats};
use crate::sys::splice::Pipe;

/// How an exchange ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The response was sent whole.
    Response {
        /// Whether the upstream connection may carry another request.
        upstream_stays: bool,
        /// Whether the client was told that its connection stays open.
        client_stays: bool,
    },
    /// The endpoint speaks another protocol from here on, and the client knows.
    Switched,
    Failed(Failure),
}

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The client reset its connection.
    ClientGone,
    /// The client ended its half within its request.
    ClientEnded,
    /// The request's body is not what its head says.
    RequestBody(BodyFault),
    /// The upstream ended or reset before a byte of a response.
    NoResponse,
    /// The endpoint's node does not answer any more.
    Lost,
    /// The response's head is not HTTP, or must not be forwarded.
    ResponseHead(Refusal),
    /// The upstream ended in the middle of the response, or its body is not what its head says.
    ResponseBody,
}

impl Failure {
    /// Whether the endpoint ended in the middle of what it was to answer. What it said of it is not asked here.
    pub(super) fn is_silence(self) -> bool {
        matches!(self, Failure::NoResponse | Failure::ResponseBody)
    }
}

pub(super) struct Exchange<'a, C: Client> {
    pub(super) client: &'a C,
    pub(super) upstream: &'a mut Side<Leg>,
    pub(super) stats: &'a ServiceStats,
    pub(super) head_bytes_max: usize,
    pub(super) fields_max: usize,
    pub(super) request: RequestMeta,
    /// What the client sent and nobody has dealt with: the body, and beyond it the next request.
    pub(super) from_client: &'a mut Buffer,
    /// What goes to the upstream: the head at first.
    pub(super) to_upstream: &'a mut Buffer,
    pub(super) request_body: Body,
    /// `to_upstream` holds all that was sent of the request and is kept, so that it may be sent again.
    pub(super) is_replayable: bool,
    /// The upstream takes no more of the request.
    pub(super) is_cut_short: bool,
    /// When the whole request was sent.
    pub(super) sent_at: Option<Instant>,
    pub(super) response: Option<Response>,
    pub(super) from_upstream: Buffer,
    pub(super) to_client: Buffer,
    pub(super) pipe: Option<Pipe>,
    pub(super) n_interim: u8,
    /// A field that the response gets beside its own.
    pub(super) set_cookie: Option<Box<str>>,
    /// What else is done to the response's head.
    pub(super) filters: &'a [Arc<Filters>],
    /// Which responses are compressed, and whether the client takes it.
    pub(super) compress: Option<(&'a Compress, bool)>,
    /// What compresses this one.
    pub(super) gzip: Option<Box<Gzip>>,
    /// Bytes of the response were received; it is too late for another try.
    pub(super) has_begun: bool,
    pub(super) watch: Watch,
}

/// How it is noticed that the client has gone while it waits for the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// By whatever comes from it.
    Reads,
    /// It has ended its half; it is not read any more.
    HasEnded,
    /// It has sent more, which waits for its turn; it is not read before.
    HasSaid,
}

/// A response whose head was forwarded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Response {
    pub(super) meta: ResponseMeta,
    body: Body,
    coding: Coding,
    client_stays: bool,
    pub(super) at: Instant,
}

impl<'a, C: Client> Exchange<'a, C> {
    /// One that has nothing done to its response. `from_client` and `to_upstream`: as their fields say.
    #[inline]
    pub(super) fn new(
        (client, upstream): (&'a C, &'a mut Side<Leg>),
        (request, request_body): (RequestMeta, Body),
        (from_client, to_upstream): (&'a mut Buffer, &'a mut Buffer),
        stats: &'a ServiceStats,
        config: &ProxyConfig,
    ) -> Exchange<'a, C> {
        Exchange {
            client,
            upstream,
            stats,
            head_bytes_max: config.http_head_bytes_max,
            fields_max: config.http_fields_max,
            request,
            from_client,
            to_upstream,
            request_body,
            is_replayable: true,
            is_cut_short: false,
            sent_at: None,
            response: None,
            from_upstream: Buffer::default(),
            to_client: Buffer::default(),
            pipe: None,
            n_interim: 0,
            set_cookie: None,
            filters: &[],
            compress: None,
            gzip: None,
            has_begun: false,
            watch: Watch::Reads,
        }
    }
}

impl<C: Client> Exchange<'_, C> {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        match self.poll_request(cx) {
            Poll::Ready(Err(failure)) => return Poll::Ready(Ended::Failed(failure)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match self.poll_response(cx) {
            Poll::Ready(Ok(ended)) => Poll::Ready(ended),
            Poll::Ready(Err(failure)) => Poll::Ready(Ended::Failed(failure)),
            Poll::Pending => {
                if self.sent_at.is_some() && self.watch == Watch::Reads && self.is_client_reset(cx) {
                    return Poll::Ready(Ended::Failed(Failure::ClientGone));
                }
                Poll::Pending
            }
        }
    }

    /// Whether everything of the request was read from the client.
    pub(super) fn is_request_read(&self) -> bool {
        self.request_body.is_done()
    }

    /// Whether the upstream was sent all of the request.
    pub(super) fn is_request_sent(&self) -> bool {
        self.sent_at.is_some()
    }

    /// Whether the upstream does not take what it is to be sent.
    pub(super) fn is_held_up(&self) -> bool {
        self.sent_at.is_none() && !self.is_cut_short && !self.to_upstream.is_empty()
    }

    fn is_request_over(&self) -> bool {
        self.is_cut_short || (self.request_body.is_done() && self.sent_at.is_some())
    }

    /// Sends the request. `Ready` once all of it is sent, or the upstream takes no more.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.is_request_over() {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..MOVES_PER_TURN {
            while !self.to_upstream.is_empty() {
                match ready!(self.upstream.poll_write(cx, self.to_upstream.rest())) {
                    Ok(n) => {
                        self.stats.add_bytes(Direction::In, BytePath::Copy, n as u64);
                        match self.is_replayable {
                            true => self.to_upstream.skip(n),
                            false => self.to_upstream.consume(n),
                        }
                    }
                    Err(_) => {
                        // It may have answered before it stopped to listen; the response says what it was.
                        self.is_cut_short = true;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            if ready!(self.upstream.poll_flush(cx)).is_err() {
                self.is_cut_short = true;
                return Poll::Ready(Ok(()));
            }
            if self.request_body.is_done() {
                self.sent_at = Some(Instant::now());
                return Poll::Ready(Ok(()));
            }
            self.is_replayable &= self.to_upstream.n_kept() <= REPLAY_AT_MOST;
            if self.forward_request_body()? == 0 && self.to_upstream.is_empty() && !self.request_body.is_done() {
                match ready!(self.from_client.poll_fill(self.client, cx)) {
                    Ok(1..) => {
                        self.forward_request_body()?;
                    }
                    Ok(0) => return Poll::Ready(Err(Failure::ClientEnded)),
                    Err(_) => return Poll::Ready(Err(Failure::ClientGone)),
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn forward_request_body(&mut self) -> Result<usize, Failure> {
        let (input, out) = (self.from_client.rest(), self.to_upstream.tail());
        let coding = coding_of(&self.request_body);
        let progress = self
            .request_body
            .forward(input, coding, out)
            .map_err(Failure::RequestBody)?;
        self.from_client.consume(progress.consumed);
        if self.to_upstream.is_empty() && !self.is_replayable {
            self.to_upstream.release();
        }
        Ok(progress.consumed)
    }

    /// Receives the response and passes it on. `Ready` once all of it was sent.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, Failure>> {
        for i in 0..MOVES_PER_TURN {
            if i >= COMPRESSIONS_PER_TURN && self.gzip.is_some() {
                break;
            }
            if self.poll_flush(cx)?.is_pending() {
                self.upstream.deafen(cx);
                return Poll::Pending;
            }
            let Some(response) = self.response else {
                if !self.from_upstream.is_empty()
                    && let Some(ended) = self.forward_head()?
                {
                    if let Ended::Switched = ended {
                        ready!(self.poll_flush(cx))?;
                        return Poll::Ready(Ok(Ended::Switched));
                    }
                    continue;
                }
                ready!(self.poll_fill(cx))?;
                continue;
            };
            if response.meta.is_switch() {
                return Poll::Ready(Ok(Ended::Switched));
            }
            if response.body.is_done() {
                let upstream_stays = response.meta.keep_alive && self.is_request_over() && !self.is_cut_short;
                return Poll::Ready(Ok(Ended::Response {
                    upstream_stays: upstream_stays && self.from_upstream.is_empty(),
                    client_stays: response.client_stays && self.request_body.is_done(),
                }));
            }
            if self.from_upstream.is_empty()
                && self.gzip.is_none()
                && self.client.tcp().is_some()
                && response.body.verbatim(response.coding) >= SPLICE_AT_LEAST
                && ready!(self.poll_splice(cx))?
            {
                continue;
            }
            if self.forward_body()? == 0 && self.to_client.is_empty() && !self.is_response_over() {
                if self.poll_fill(cx)?.is_pending() {
                    // More may be long in coming.
                    if self.flush_gzip()? {
                        continue;
                    }
                    return Poll::Pending;
                }
                self.forward_body()?;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_response_over(&self) -> bool {
        self.response.is_some_and(|response| response.body.is_done())
    }

    /// Sends what is ready for the client.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while !self.to_client.is_empty() {
            let written = ready!(self.client.poll_write(cx, self.to_client.rest()));
            let n = written.map_err(|_| Failure::ClientGone)?;
            self.stats.add_bytes(Direction::Out, BytePath::Copy, n as u64);
            self.to_client.consume(n);
        }
        while let Some(pipe) = &mut self.pipe {
            if pipe.is_empty() {
                self.pipe.take().into_iter().for_each(core::put_pipe);
                break;
            }
            let Some(client) = self.client.tcp() else {
                // Pipes are only filled for sockets.
                return Poll::Ready(Err(Failure::ClientGone));
            };
            ready!(client.poll_write_ready(cx)).map_err(|_| Failure::ClientGone)?;
            match client.try_io(Interest::WRITABLE, || pipe.drain(client)) {
                Ok(n) => self.stats.add_bytes(Direction::Out, BytePath::Splice, n as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Failure::ClientGone)),
            }
        }
        self.client.poll_flush(cx).map_err(|_| Failure::ClientGone)
    }

    /// Reads from the upstream. An end that completes the response's body is dealt with here.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.upstream.hear(cx);
        let result = match self.upstream.wire() {
            Some(wire) => ready!(self.from_upstream.poll_fill(wire, cx)),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        Poll::Ready(match (result, &mut self.response) {
            (Ok(1..), _) => {
                self.has_begun = true;
                Ok(())
            }
            (Ok(_), Some(response)) => {
                let out = self.to_client.tail();
                let result = match &mut self.gzip {
                    None => response
                        .body
                        .end_of_input(response.coding, out)
                        .map_err(|_| Failure::ResponseBody),
                    Some(gzip) => {
                        let ended = response.body.end_of_input(Coding::Plain, &mut gzip.plain);
                        let ended = ended.map_err(|_| Failure::ResponseBody);
                        ended.and_then(|()| finish(gzip, self.stats, out))
                    }
                };
                if self.to_client.is_empty() {
                    self.to_client.release();
                }
                result
            }
            (Err(_), Some(_)) => Err(Failure::ResponseBody),
            (_, None) if self.has_begun => Err(Failure::ResponseBody),
            (_, None) => Err(Failure::NoResponse),
        })
    }

    /// Parses a response head and writes the one that the client gets. `None`: more bytes are needed.
    fn forward_head(&mut self) -> Result<Option<Ended>, Failure> {
        let mut slots = HeaderSlots::with_most(self.fields_max);
        let rest = self.from_upstream.rest();
        // By reference: it is large.
        let parsed = parse_response(rest, 0, self.head_bytes_max, &self.request, &mut slots);
        let head = match &parsed {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(Refusal::Version) => return self.forward_lowered_head(),
            Err(refusal) => return Err(Failure::ResponseHead(*refusal)),
        };
        let meta = head.meta;
        let out = self.to_client.tail();
        if meta.is_interim() {
            self.n_interim += 1;
            if self.n_interim > INTERIM_MAX {
                return Err(Failure::ResponseHead(Refusal::Status));
            }
            if self.request.version == Version::Http11 {
                head.forward(&self.request, true, out);
            } else if out.is_empty() {
                self.to_client.release();
            }
            self.from_upstream.consume(meta.head_len);
            return Ok(Some(Ended::Response {
                upstream_stays: false,
                client_stays: false,
            }));
        }
        let may_stay = !core::is_draining() && self.request_body.is_done();
        let start = out.len();
        let onward = head.forward(&self.request, may_stay, out);
        for filters in self.filters {
            filter_response(out, start, filters);
        }
        if let Some(field) = &self.set_cookie {
            add_field(field, out);
        }
        if let Some((compress, is_taken)) = self.compress
            && self.request.version == Version::Http11
        {
            let is_coded = code_response(out, start, compress, &meta, is_taken && Gzip::has_room());
            self.gzip = is_coded.then(Gzip::begin);
        }
        self.from_upstream.consume(meta.head_len);
        self.response = Some(Response {
            meta,
            body: Body::of_response(meta.framing),
            coding: onward.coding,
            client_stays: onward.keep_alive,
            at: Instant::now(),
        });
        if meta.is_switch() {
            return Ok(Some(Ended::Switched));
        }
        if let Err(failure) = self.forward_body() {
            // Nothing of it has been sent: the client can be told.
            self.to_client.release();
            (self.response, self.gzip) = (None, None);
            return Err(failure);
        }
        Ok(Some(Ended::Response {
            upstream_stays: false,
            client_stays: false,
        }))
    }

    /// As `forward_head`, where the version is one to be read as 1.1.
    #[cold]
    fn forward_lowered_head(&mut self) -> Result<Option<Ended>, Failure> {
        match lower_response(self.from_upstream.rest_mut()) {
            true => self.forward_head(),
            false => Err(Failure::ResponseHead(Refusal::Version)),
        }
    }

    /// Frames what was received of the body for the client. Returns how much of it was dealt with.
    fn forward_body(&mut self) -> Result<usize, Failure> {
        let Some(response) = &mut self.response else {
            return Ok(0);
        };
        let (input, out) = (self.from_upstream.rest(), self.to_client.tail());
        let forwarded = match &mut self.gzip {
            None => response.body.forward(input, response.coding, out),
            Some(gzip) => response.body.forward(input, Coding::Plain, &mut gzip.plain),
        };
        let progress = forwarded.map_err(|_| Failure::ResponseBody)?;
        if let Some(gzip) = self.gzip.as_mut().filter(|_| progress.consumed > 0) {
            gzip.take(out).map_err(|_| Failure::ResponseBody)?;
            if response.body.is_done() {
                finish(gzip, self.stats, out)?;
            }
        }
        self.from_upstream.consume(progress.consumed);
        if self.to_client.is_empty() {
            self.to_client.release();
        }
        Ok(progress.consumed)
    }

    /// Sends what the compressor holds back. Whether there was any.
    fn flush_gzip(&mut self) -> Result<bool, Failure> {
        match &mut self.gzip {
            None => Ok(false),
            Some(gzip) => gzip.flush(self.to_client.tail()).map_err(|_| Failure::ResponseBody),
        }
    }

    /// Moves body bytes that go on as they are through a pipe. Whether it did; if not, they are to be copied.
    fn poll_splice(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Failure>> {
        let Some(response) = &mut self.response else {
            return Poll::Ready(Ok(false));
        };
        loop {
            let Some(upstream) = self.upstream.spliced() else {
                return Poll::Ready(Ok(false));
            };
            ready!(upstream.poll_read_ready(cx)).map_err(|_| Failure::ResponseBody)?;
            let Some(mut pipe) = core::take_pipe() else {
                return Poll::Ready(Ok(false));
            };
            let most = usize::try_from(response.body.verbatim(response.coding))
                .unwrap_or(usize::MAX)
                .min(SPLICE_AT_MOST);
            match upstream.try_read(|| pipe.fill(upstream, most)) {
                Ok(n @ 1..) => {
                    response.body.advance(n as u64);
                    self.pipe = Some(pipe);
                    return Poll::Ready(Ok(true));
                }
                Ok(0) => {
                    core::put_pipe(pipe);
                    // The end: the copying way knows what it means.
                    return Poll::Ready(Ok(false));
                }
                Err(error) => {
                    core::put_pipe(pipe);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => self.upstream.hear(cx),
                        _ => return Poll::Ready(Ok(false)),
                    }
                }
            }
        }
    }

    /// Whether the client reset its connection while it waits for the response. A client that has ended its half, or
    /// sends its next request, is left in peace, and not looked at again.
    fn is_client_reset(&mut self, cx: &mut Context<'_>) -> bool {
        match self.client.watched().look(cx) {
            Look::Nothing => {}
            Look::Ended => self.watch = Watch::HasEnded,
            Look::Said => self.watch = Watch::HasSaid,
            Look::Reset => return true,
        }
        false
    }
}

impl<C: Client> Drop for Exchange<'_, C> {
    fn drop(&mut self) {
        self.pipe.take().into_iter().for_each(core::put_pipe);
    }
}

/// Ends a compressed body, and counts it.
fn finish(gzip: &mut Gzip, stats: &ServiceStats, out: &mut Vec<u8>) -> Result<(), Failure> {
    let done = gzip.finish(out).map_err(|_| Failure::ResponseBody);
    stats.add_compressed(gzip.totals());
    done
}

/// A request's body goes on in the framing that it came in.
fn coding_of(body: &Body) -> Coding {
    match body {
        Body::Chunked(_) => Coding::Chunked,
        Body::Done | Body::Length(_) | Body::UntilClose => Coding::Plain,
    }
}

const MOVES_PER_TURN: usize = 8;
/// Of what was read, each of which takes its time.
const COMPRESSIONS_PER_TURN: usize = 2;
/// A request that has sent more is not kept. One read more may come before that is seen.
const REPLAY_AT_MOST: usize = 16 * 1024;
const INTERIM_MAX: u8 = 8;
const SPLICE_AT_LEAST: u64 = 64 * 1024;
const SPLICE_AT_MOST: usize = 1 << 20;

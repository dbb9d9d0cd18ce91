//! One client connection that speaks HTTP/2, from its preface to its end: each request is a task of its own, and the connection ends
//! once none is left. Not here: what becomes of a request (`h1`).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection as Http2, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, StatusCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use super::stream::Stream;
use crate::proxy::Shared;
use crate::proxy::core::{self, Connection, Signal};
use crate::proxy::h1::{self, Entry, Requester};
use crate::proxy::h2::{Io, Malformed, Verdict, write_request};
use crate::proxy::patience::{Patience, within};
use crate::proxy::wire::Client;
use crate::routing::CloseReason;

/// Serves one client from its preface to close. `early`: what was read of it already.
pub(in crate::proxy) async fn serve(
    mut connection: Connection,
    client: impl Client + Unpin,
    early: Vec<u8>,
    peer: SocketAddr,
    entry: Entry,
    target: u16,
    shared: Arc<Shared>,
) {
    let reason = match admit(&mut connection, &client).await {
        Ok(()) => {
            let requester = Requester::new(&client, peer, entry, target, shared);
            run(&connection, Io::metered(client, early), requester).await
        }
        Err(reason) => {
            client.reset_on_close();
            reason
        }
    };
    connection.close(reason);
}

async fn admit(connection: &mut Connection, client: &impl Client) -> Result<(), CloseReason> {
    if connection.is_admitted() || connection.try_admit() {
        return Ok(());
    }
    let party = connection.party();
    connection
        .admit(&mut Patience::new(client.watched(), party, &|| true))
        .await
}

async fn run<C: Client + Unpin>(
    connection: &Connection,
    (io, verdict): (Io<C>, Verdict),
    requester: Requester,
) -> CloseReason {
    let timeouts = &connection.service().spec().timeouts;
    let head_bytes_max = u32::try_from(requester.shared().config.http_head_bytes_max).unwrap_or(u32::MAX);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MOST)
        .max_header_list_size(head_bytes_max)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(RESET_STREAMS_KEPT)
        .max_pending_accept_reset_streams(RESET_STREAMS_PENDING)
        .max_local_error_reset_streams(Some(FAULTS_MOST));
    let shaken = tokio::select! {
        biased;
        shaken = within(timeouts.request_head, builder.handshake::<_, Bytes>(io)) => shaken,
        reason = connection.ended() => return reason,
    };
    let http2 = match shaken {
        Some(Ok(http2)) => http2,
        Some(Err(error)) if error.is_io() => return CloseReason::ClientRst,
        Some(Err(_)) => return CloseReason::BadRequest,
        None => return CloseReason::ClientTimeout,
    };
    // It is no idle connection to who ends those: it is told first.
    connection.hear_drain();
    let mut session = Session {
        connection,
        http2,
        requests: JoinSet::new(),
        requester: Arc::new(requester),
        idle: None,
        idle_limit: timeouts.idle,
        is_leaving: false,
        n_resets_left: RESETS_MOST,
        resets_since: Instant::now(),
        verdict,
        sent_off: None,
    };
    let ended = poll_fn(|cx| session.poll(cx)).await;
    // Requests that are left have nobody to answer.
    session.requests.shutdown().await;
    ended
}

/// A connection beyond its handshake.
struct Session<'a, C> {
    connection: &'a Connection,
    http2: Http2<Io<C>, Bytes>,
    /// Each ends with whether the client took it back.
    requests: JoinSet<bool>,
    requester: Arc<Requester>,
    /// Runs while no request is there.
    idle: Option<Pin<Box<Sleep>>>,
    /// Zero: none.
    idle_limit: Duration,
    /// The client was told to send no more.
    is_leaving: bool,
    /// How many more requests it may take back.
    n_resets_left: u32,
    /// Since when none were given back.
    resets_since: Instant,
    verdict: Verdict,
    /// The client was told what is wrong with it; the time by which it has to have taken that.
    sent_off: Option<Pin<Box<Sleep>>>,
}

impl<C: Client + Unpin> Session<'_, C> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        while let Poll::Ready(signal) = self.connection.poll_signal(cx) {
            if let Signal::End(reason) = signal {
                return Poll::Ready(reason);
            }
        }
        self.reap(cx);
        for _ in 0..REQUESTS_PER_TURN {
            match self.http2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(close_reason(&error)),
                Poll::Ready(None) => {
                    return Poll::Ready(match (&self.sent_off, self.is_leaving) {
                        (Some(_), _) => CloseReason::BadRequest,
                        (None, true) => CloseReason::ResponseEnd,
                        (None, false) => CloseReason::ClientFin,
                    });
                }
                Poll::Pending => {
                    if let Some(reason) = self.verdict.get() {
                        self.send_off(*reason, cx);
                    }
                    if core::is_draining() {
                        self.leave(cx);
                    }
                    return self.poll_idle(cx);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives a request to a task of its own.
    fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        if self.requests.is_empty() {
            self.idle = None;
        }
        self.connection.had_turn(false, false, true);
        if !core::has_room() {
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        let (parts, body) = request.into_parts();
        let mut head = Vec::with_capacity(HEAD_BYTES);
        let framing = match write_request(&parts, body.is_end_stream(), &mut head) {
            Ok(framing) => framing,
            Err(Malformed) => {
                self.connection
                    .service()
                    .stats()
                    .add_request(StatusCode::BAD_REQUEST.as_u16());
                self.n_resets_left = self.n_resets_left.saturating_sub(1);
                return respond.send_reset(Reason::PROTOCOL_ERROR);
            }
        };
        let stream = Stream::new(
            self.requester.local(),
            body,
            framing,
            respond,
            parts.method == Method::HEAD,
        );
        let connection = self.connection.stream();
        let requester = self.requester.clone();
        self.requests.spawn(async move {
            h1::serve_one(connection, &stream, head, &requester).await;
            stream.is_taken_back()
        });
    }

    /// Counts those that have ended. Who takes back more than it lets be answered is told to calm down.
    fn reap(&mut self, cx: &mut Context<'_>) {
        let mut has_any = false;
        while let Poll::Ready(Some(ended)) = self.requests.poll_join_next(cx) {
            has_any = true;
            self.n_resets_left = match ended {
                Ok(true) => self.n_resets_left.saturating_sub(1),
                _ => (self.n_resets_left + 1).min(RESETS_MOST),
            };
        }
        if has_any {
            self.connection.had_turn(false, false, true);
            let n_seconds = u32::try_from(self.resets_since.elapsed().as_secs()).unwrap_or(u32::MAX);
            if n_seconds > 0 {
                let given_back = n_seconds.saturating_mul(RESETS_PER_SECOND);
                self.n_resets_left = self.n_resets_left.saturating_add(given_back).min(RESETS_MOST);
                self.resets_since = Instant::now();
            }
        }
        if self.n_resets_left == 0 {
            self.send_off(Reason::ENHANCE_YOUR_CALM, cx);
        }
    }

    /// Tells the client to send no more; what it has sent is answered.
    fn leave(&mut self, cx: &mut Context<'_>) {
        if std::mem::replace(&mut self.is_leaving, true) {
            return;
        }
        self.http2.graceful_shutdown();
        // It goes out with the next turn.
        cx.waker().wake_by_ref();
    }

    /// Ends everything, and says why.
    fn send_off(&mut self, reason: Reason, cx: &mut Context<'_>) {
        if self.sent_off.is_some() {
            return;
        }
        self.sent_off = Some(Box::pin(tokio::time::sleep(LEAVE_WITHIN)));
        self.http2.abrupt_shutdown(reason);
        // It goes out with the next turn.
        cx.waker().wake_by_ref();
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        if let Some(timer) = &mut self.sent_off {
            return timer.as_mut().poll(cx).map(|()| CloseReason::BadRequest);
        }
        if !self.requests.is_empty() {
            return Poll::Pending;
        }
        let limit = match self.is_leaving {
            true => LEAVE_WITHIN,
            false if self.idle_limit.is_zero() => return Poll::Pending,
            false => self.idle_limit,
        };
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if idle.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if self.is_leaving {
            // It was told, and has not gone.
            return Poll::Ready(CloseReason::IdleTimeout);
        }
        idle.as_mut().reset(Instant::now() + LEAVE_WITHIN);
        self.leave(cx);
        Poll::Pending
    }
}

fn close_reason(error: &h2::Error) -> CloseReason {
    match (error.is_io(), error.is_remote(), error.reason()) {
        (true, _, _) => CloseReason::ClientRst,
        (_, true, Some(Reason::NO_ERROR)) => CloseReason::ClientFin,
        (_, true, _) => CloseReason::ClientAbort,
        _ => CloseReason::BadRequest,
    }
}

/// Requests that a client may have under way at once, on one connection.
const STREAMS_MOST: u32 = 100;
/// What a client may send of one request before anybody takes it; and of all, so that one that nobody takes holds up no other.
const WINDOW_BYTES: u32 = 128 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = WINDOW_BYTES * STREAMS_MOST;
/// What is kept of one response that the client does not read.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Of requests that were taken back: remembered, and waiting to be begun.
const RESET_STREAMS_KEPT: usize = 16;
const RESET_STREAMS_PENDING: usize = 20;
/// Faults of a client that end a request, not the connection.
const FAULTS_MOST: usize = 256;
/// How many more requests a client may take back than it lets be answered.
const RESETS_MOST: u32 = 200;
/// And so many more with each second.
const RESETS_PER_SECOND: u32 = 10;
const REQUESTS_PER_TURN: usize = 32;
const HEAD_BYTES: usize = 1024;
/// A client has so long to go once it was told to.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

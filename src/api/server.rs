//! The socket: who has how many connections and streams, and how long each may take over what it asks.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixListener;

use super::backend::Backend;
use super::outside::Outside;
use super::router::Router;
use super::wire::{Answer, Caller};
use crate::places::{Busy, Crowd, Place, Places, Table};
use crate::store::Store;
use crate::sys::limits;

/// The API.
pub struct Api {
    router: Router,
}

impl Api {
    pub fn new(store: Arc<dyn Store>, outside: Arc<dyn Outside>) -> Arc<Api> {
        let streams = Places::new(Table::ApiStreams, limits::share(STREAMS_MAX, 16));
        Arc::new(Api {
            router: Router::new(Backend::new(store, outside, streams)),
        })
    }

    /// Serves until `shutdown`; what is being answered then is cut.
    pub async fn serve(self: Arc<Api>, listener: UnixListener, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = serve(self.clone(), listener) => {}
            () = self.router.follow_events() => {}
            () = shutdown => {}
        }
        self.router.backend.stopping.send_replace(true);
    }
}

/// Accepts and serves for ever, whoever has how many connections: when there are too many, the user who has most loses the
/// silent oldest one.
async fn serve(api: Arc<Api>, listener: UnixListener) {
    let places = Places::new(Table::Api, limits::share(CONNECTIONS_MAX, 8));
    let mut crowd = Crowd::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the API does not accept");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let caller = Caller(stream.peer_cred().map_or(u32::MAX, |peer| peer.uid()));
        let place = Arc::new(places.take(caller));
        let is_crowded = place.is_in_anothers();
        let api = api.clone();
        tokio::spawn(async move {
            let mut stopping = api.router.backend.stopping.subscribe();
            let stream = place.watch(stream);
            let of_connection = place.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                let (api, busy) = (api.clone(), of_connection.busy());
                request.extensions_mut().insert(caller);
                async move {
                    if !request.uri().path().ends_with("/_ping") {
                        // One answer a turn, though a client asks for many at once: the next is that of another.
                        tokio::task::yield_now().await;
                    }
                    let answer = api.router.answer(request).await;
                    let stream = is_stream(&answer).then(|| api.router.backend.streams.take(caller));
                    Ok::<_, Infallible>(answer.map(|body| UnsyncBoxBody::new(Told::new(body, busy, stream))))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::select! {
                served = connection => if let Err(error) = served {
                    tracing::debug!(%error, "API connection");
                },
                () = place.told_to_leave() => tracing::debug!("API: silent for longest of too many connections"),
                _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
            }
        });
        if is_crowded && crowd.is_enough() {
            tokio::task::yield_now().await;
        }
    }
}

/// Nobody knows how long it will be, such as `logs --follow`.
fn is_stream(answer: &Answer) -> bool {
    answer.status() != StatusCode::SWITCHING_PROTOCOLS && answer.body().size_hint().exact().is_none()
}

/// The body of an answer, for which the other end waits until it has all of it. A stream ends when it has to give up its
/// place among streams.
struct Told {
    body: UnsyncBoxBody<Bytes, io::Error>,
    _busy: Busy,
    stream: Option<Streaming>,
}

struct Streaming {
    place: Arc<Place<Caller>>,
    told_to_leave: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Told {
    fn new(body: UnsyncBoxBody<Bytes, io::Error>, busy: Busy, stream: Option<Place<Caller>>) -> Told {
        let stream = stream.map(|place| {
            let place = Arc::new(place);
            let told = place.clone();
            let told_to_leave: Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(async move { told.told_to_leave().await });
            Streaming { place, told_to_leave }
        });
        Told {
            body,
            _busy: busy,
            stream,
        }
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(stream) = &mut self.stream
            && stream.told_to_leave.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(io::Error::other(
                "too many streams, and this one was silent for longest",
            ))));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(stream) = &self.stream
            && frame.is_ready()
        {
            stream.place.moved();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

const HEAD_BYTES_MAX: usize = 64 << 10;
const HEAD_PATIENCE: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: usize = 512;
const STREAMS_MAX: usize = 256;
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

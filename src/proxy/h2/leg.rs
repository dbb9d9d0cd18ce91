//! One request to an endpoint that speaks HTTP/2, as the engine of HTTP/1.1 knows connections: what is written to it is a request, and
//! what is read from it is the response. It carries no second one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::head::{Framing, read_request, write_response};
use super::incoming::{Incoming, io_error};
use super::outgoing::{Outgoing, malformed};
use crate::proxy::wire::Tunnel;

/// What the requests of one connection share; each holds it while it is there.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Somebody has waited on it in vain.
    pub(super) is_doubtful: AtomicBool,
}

/// A request on its way to an endpoint.
pub(super) struct Leg {
    sender: SendRequest<Bytes>,
    /// Of its URL.
    scheme: &'static str,
    request: Outgoing,
    body: Option<SendStream<Bytes>>,
    response: Response,
    is_head: bool,
    /// The endpoint has said that it did nothing about it.
    is_unprocessed: bool,
    /// It was taken back.
    is_reset: bool,
    place: Arc<Place>,
}

enum Response {
    /// The request's head was not sent yet.
    Unasked,
    Awaited(ResponseFuture),
    /// Its head, as far as it was not read yet, and its body.
    Begun(Vec<u8>, usize, Incoming),
    /// An interim head is read first.
    Interim(Vec<u8>, usize, ResponseFuture),
    Failed,
}

impl Leg {
    pub(super) fn new(sender: SendRequest<Bytes>, scheme: &'static str, place: Arc<Place>) -> Leg {
        Leg {
            sender,
            scheme,
            request: Outgoing::new(),
            body: None,
            response: Response::Unasked,
            is_head: false,
            is_unprocessed: false,
            is_reset: false,
            place,
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut awaited = match std::mem::replace(&mut self.response, Response::Failed) {
                Response::Awaited(awaited) => awaited,
                Response::Interim(text, n_given, awaited) if n_given == text.len() => awaited,
                begun @ (Response::Begun(..) | Response::Interim(..)) => {
                    self.response = begun;
                    return Poll::Ready(Ok(()));
                }
                // It is asked for once the request was sent, or not at all.
                Response::Unasked | Response::Failed => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            };
            if let Poll::Ready(Some(Ok(interim))) = awaited.poll_informational(cx) {
                let mut text = Vec::new();
                write_response(&interim.into_parts().0, true, false, &mut text);
                self.response = Response::Interim(text, 0, awaited);
                continue;
            }
            match Pin::new(&mut awaited).poll(cx) {
                Poll::Pending => {
                    self.response = Response::Awaited(awaited);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(error))),
                Poll::Ready(Ok(response)) => {
                    let (parts, body) = response.into_parts();
                    let is_bodiless =
                        self.is_head || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                    let mut text = Vec::with_capacity(HEAD_BYTES);
                    let framing = write_response(&parts, is_bodiless, body.is_end_stream(), &mut text);
                    self.response = Response::Begun(text, 0, Incoming::new(body, framing));
                }
            }
        }
    }

    fn failed(&mut self, error: h2::Error) -> io::Error {
        // Of requests that it has begun it says neither.
        let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        self.is_unprocessed = error.is_remote() && (error.is_go_away() || is_refused);
        io_error(error)
    }
}

impl AsyncRead for Leg {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let leg = self.get_mut();
        ready!(leg.poll_head(cx))?;
        let (Response::Begun(text, n_given, _) | Response::Interim(text, n_given, _)) = &mut leg.response else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let head = &text[*n_given..];
        let n = head.len().min(buffer.remaining());
        buffer.put_slice(&head[..n]);
        *n_given += n;
        if let Response::Begun(_, _, body) = &mut leg.response {
            let rest = buffer.initialize_unfilled();
            match body.poll_read(cx, rest) {
                Poll::Ready(Ok(read)) => buffer.advance(read),
                Poll::Ready(Err(error)) if n == 0 => return Poll::Ready(Err(error)),
                Poll::Pending if n == 0 => return Poll::Pending,
                Poll::Ready(Err(_)) | Poll::Pending => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Leg {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Leg {
            sender,
            scheme,
            request,
            body,
            response,
            is_head,
            is_unprocessed,
            ..
        } = self.get_mut();
        let open = |head: &[u8]| {
            let (asked, framing) = read_request(head, scheme).map_err(malformed)?;
            *is_head = asked.method() == Method::HEAD;
            let has_ended = matches!(framing, Framing::None | Framing::Length(0));
            match sender.send_request(asked, has_ended) {
                Ok((awaited, stream)) => {
                    *response = Response::Awaited(awaited);
                    Ok(Some((framing, stream)))
                }
                Err(error) => {
                    *is_unprocessed = true;
                    Err(io_error(error))
                }
            }
        };
        request.poll_write(cx, bytes, body, open)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A request says itself where it ends.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Tunnel for Leg {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    fn is_leaving(&self) -> bool {
        true
    }

    fn is_unprocessed(&self) -> bool {
        self.is_unprocessed
    }

    fn is_one_of_many(&self) -> bool {
        true
    }

    fn distrust(&self) {
        self.place.is_doubtful.store(true, Ordering::Relaxed);
    }

    fn keep_up(&mut self, cx: &mut Context<'_>) {
        if let Response::Begun(_, _, body) = &mut self.response {
            body.keep_up(cx);
        }
    }

    fn reset(&mut self) {
        self.is_reset = true;
        if let Some(body) = &mut self.body {
            body.send_reset(Reason::CANCEL);
        }
    }
}

impl Drop for Leg {
    /// A response whose length was said is whole before its end is said, which may come a moment later. Whoever has answered is not told that
    /// nobody wanted it, and does not meet a stream that nobody knows.
    fn drop(&mut self) {
        if self.is_reset || !self.request.has_ended() {
            return;
        }
        let Response::Begun(_, _, body) = std::mem::replace(&mut self.response, Response::Failed) else {
            return;
        };
        if let (false, Ok(worker)) = (body.has_come(), tokio::runtime::Handle::try_current()) {
            let place = self.place.clone();
            worker.spawn(async move {
                // An error means that it takes too long.
                let _ = tokio::time::timeout(LINGER, body.discard()).await;
                drop(place);
            });
        }
    }
}

const HEAD_BYTES: usize = 1024;
/// The end of a response may come so much later than its last byte.
const LINGER: Duration = Duration::from_secs(5);

//! One request of a client that speaks HTTP/2, as the engine of HTTP/1.1 knows clients: what it reads is the request's body, and what
//! it writes is the response, head and all.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use tokio::net::TcpStream;

use crate::proxy::h2::{Framing, Incoming, Outgoing, io_error, malformed, read_response};
use crate::proxy::wire::{Client, Streamed, Watched, Wire};

/// A client's request on its way.
pub(super) struct Stream {
    /// The address that the client came to.
    local: SocketAddr,
    /// std mutex: one task has it, and nothing awaits under it.
    halves: Mutex<Halves>,
    is_to_reset: AtomicBool,
}

struct Halves {
    request: Incoming,
    response: Outgoing,
    respond: SendResponse<Bytes>,
    /// Where the response's body goes, once its head was sent.
    body: Option<SendStream<Bytes>>,
    is_head: bool,
}

impl Stream {
    /// `framing`: how its body is to be marked off. `is_head`: its method is HEAD.
    pub(super) fn new(
        local: SocketAddr,
        body: RecvStream,
        framing: Framing,
        respond: SendResponse<Bytes>,
        is_head: bool,
    ) -> Stream {
        Stream {
            local,
            halves: Mutex::new(Halves {
                request: Incoming::new(body, framing),
                response: Outgoing::new(),
                respond,
                body: None,
                is_head,
            }),
            is_to_reset: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client took it back, or made a fault in it, before it was answered in whole.
    pub(super) fn is_taken_back(&self) -> bool {
        let mut halves = self.lock();
        !halves.response.has_ended() && halves.is_reset()
    }
}

impl Halves {
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.body {
            Some(body) => body.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(drop)
    }

    /// The same now, with nobody to wake.
    fn is_reset(&mut self) -> bool {
        self.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready()
    }
}

impl Client for Stream {
    fn watched(&self) -> Watched<'_> {
        Watched::Stream(self)
    }
}

impl Streamed for Stream {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        let halves = &mut *self.lock();
        // Who asks does not read.
        halves.request.keep_up(cx);
        halves.poll_reset(cx)
    }
}

impl Wire for Stream {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.lock().request.poll_read(cx, buffer)
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Halves {
            response,
            respond,
            body,
            is_head,
            ..
        } = &mut *self.lock();
        let open = |head: &[u8]| {
            let (answer, framing) = read_response(head, *is_head).map_err(malformed)?;
            if answer.status().is_informational() {
                respond.send_informational(answer).map_err(io_error)?;
                return Ok(None);
            }
            let has_ended = matches!(framing, Framing::None | Framing::Length(0));
            let stream = respond.send_response(answer, has_ended).map_err(io_error)?;
            Ok(Some((framing, stream)))
        };
        response.poll_write(cx, bytes, body, open)
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_end(&self, _: &mut Context<'_>, _: bool) -> Poll<()> {
        let Halves { response, body, .. } = &mut *self.lock();
        response.close(body);
        Poll::Ready(())
    }

    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(None)
    }

    fn reset_on_close(&self) {
        self.is_to_reset.store(true, Ordering::Relaxed);
    }

    fn set_liveness(&self) {}
}

impl Drop for Stream {
    /// The client never takes what it got of a response for the whole.
    fn drop(&mut self) {
        let is_to_reset = self.is_to_reset.load(Ordering::Relaxed);
        let halves = &mut *self.lock();
        if !is_to_reset {
            halves.response.close(&mut halves.body);
        }
        if halves.response.has_ended() || halves.is_reset() {
            return;
        }
        match &mut halves.body {
            Some(body) => body.send_reset(Reason::INTERNAL_ERROR),
            None => halves.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

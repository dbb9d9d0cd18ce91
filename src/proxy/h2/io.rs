//! A wire as the `h2` crate wants it, with what was read of it before; a client's is metered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::meter::{Meter, Verdict};
use crate::proxy::core;
use crate::proxy::wire::Wire;

/// Bytes from and to `wire`.
pub(in crate::proxy) struct Io<W> {
    wire: W,
    /// Was read already, and comes first.
    early: Vec<u8>,
    /// How much of `early` was given.
    n_given: usize,
    /// Of a client.
    meter: Option<Meter>,
}

impl<W> Io<W> {
    pub(in crate::proxy) fn new(wire: W, early: Vec<u8>) -> Io<W> {
        Io {
            wire,
            early,
            n_given: 0,
            meter: None,
        }
    }

    /// A client's, and where it shows that the client is to be sent off. From then on nothing more of it is read, and nobody is woken:
    /// whoever polls looks there after each poll.
    pub(in crate::proxy) fn metered(wire: W, early: Vec<u8>) -> (Io<W>, Verdict) {
        let meter = Meter::new(Instant::now());
        let verdict = meter.verdict().clone();
        let io = Io {
            meter: Some(meter),
            ..Io::new(wire, early)
        };
        (io, verdict)
    }

    /// Gives the reader `bytes`, of which there are some or it is the end.
    fn give(meter: &mut Option<Meter>, bytes: &[u8], buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n_taken = match meter {
            Some(meter) => meter.receive(bytes),
            None => bytes.len(),
        };
        buffer.put_slice(&bytes[..n_taken]);
        match n_taken == 0 && !bytes.is_empty() {
            // Nothing in place of something would be the end.
            true => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }
}

impl<W: Wire + Unpin> AsyncRead for Io<W> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        if io.meter.as_ref().is_some_and(|meter| meter.verdict().get().is_some()) {
            return Poll::Pending;
        }
        let early = &io.early[io.n_given..];
        if !early.is_empty() {
            let n = early.len().min(buffer.remaining());
            let given = Io::<W>::give(&mut io.meter, &early[..n], buffer);
            io.n_given += n;
            if io.n_given == io.early.len() {
                (io.early, io.n_given) = (Vec::new(), 0);
            }
            return given;
        }
        // What the reader has there is not initialised.
        core::with_scratch(|scratch| {
            let most = scratch.len().min(buffer.remaining());
            let n = ready!(io.wire.poll_read(cx, &mut scratch[..most]))?;
            Io::<W>::give(&mut io.meter, &scratch[..n], buffer)
        })
    }
}

impl<W: Wire + Unpin> AsyncWrite for Io<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        let n = ready!(io.wire.poll_write(cx, bytes))?;
        if let Some(meter) = &mut io.meter {
            meter.send(&bytes[..n]);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_end(cx, false).map(Ok)
    }
}

//! A wire as the `h2` crate wants it, with what was read of it before.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::core;
use crate::proxy::wire::Wire;

/// Bytes from and to `wire`.
pub(in crate::proxy) struct Io<W> {
    wire: W,
    /// Was read already, and comes first.
    early: Vec<u8>,
    /// How much of `early` was given.
    n_given: usize,
}

impl<W> Io<W> {
    pub(in crate::proxy) fn new(wire: W, early: Vec<u8>) -> Io<W> {
        Io {
            wire,
            early,
            n_given: 0,
        }
    }
}

impl<W: Wire + Unpin> AsyncRead for Io<W> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        let early = &io.early[io.n_given..];
        if !early.is_empty() {
            let n = early.len().min(buffer.remaining());
            buffer.put_slice(&early[..n]);
            io.n_given += n;
            if io.n_given == io.early.len() {
                (io.early, io.n_given) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        // What the reader has there is not initialised.
        core::with_scratch(|scratch| {
            let most = scratch.len().min(buffer.remaining());
            let n = ready!(io.wire.poll_read(cx, &mut scratch[..most]))?;
            buffer.put_slice(&scratch[..n]);
            Poll::Ready(Ok(()))
        })
    }
}

impl<W: Wire + Unpin> AsyncWrite for Io<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wire.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_end(cx, false).map(Ok)
    }
}

//! A stream whose bytes end its place's silence. One that was told to leave is reset, so that the kernel keeps nothing for
//! an end that takes nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::seat::Seat;
use crate::sys::socket;

/// A stream that can be ended so that nothing of it is left.
pub trait Cut {
    /// Has what was not taken yet forgotten when it is dropped.
    fn cut(&self);
}

impl Cut for TcpStream {
    fn cut(&self) {
        socket::reset_on_close(self);
    }
}

impl Cut for UnixStream {
    /// Its bytes are the other end's own.
    fn cut(&self) {}
}

/// See `Place::watch`.
#[derive(Debug)]
pub struct Watched<S: Cut> {
    stream: S,
    seat: Arc<Seat>,
}

impl<S: Cut> Watched<S> {
    pub(super) fn new(stream: S, seat: Arc<Seat>) -> Watched<S> {
        Watched { stream, seat }
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: Cut> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.seat.is_told_to_leave() {
            self.stream.cut();
        }
    }
}

impl<S: Cut + AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.seat.moved();
        }
        read
    }
}

impl<S: Cut + AsyncWrite + Unpin> Watched<S> {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(_)) => self.seat.moved(),
            Poll::Pending => self.seat.stuck(),
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl<S: Cut + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

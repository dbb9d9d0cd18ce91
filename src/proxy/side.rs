//! One side of a relay: a wire, which can be made deaf while nobody would read what comes.
//!
//! tokio has a socket watched for both directions for as long as it is registered. While the other side takes nothing, a
//! source that goes on sending would wake the worker with each segment, to do nothing. So such a source is registered for
//! writing only. It is read without being asked first, as it mostly holds much by then, and hears again once it holds
//! nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use super::wire::Wire;
use crate::sys::{epoll, socket};

pub(super) enum Side<W> {
    Hears(W),
    Deaf(AsyncFd<std::net::TcpStream>),
    /// tokio could neither keep it nor let go of it: closed.
    Lost,
}

impl<W: Wire> Side<W> {
    // The one variant that nearly every call meets is asked for first, and in the caller's own code.

    /// What comes wakes nobody from now on. Only a TCP socket can be deaf.
    ///
    /// The other direction may have waited for room in the same socket, and tokio has forgotten it: so `cx` is woken.
    pub(super) fn deafen(&mut self, cx: &mut Context<'_>) {
        if let Side::Deaf(_) | Side::Lost = self {
            return;
        }
        *self = match std::mem::replace(self, Side::Lost) {
            Side::Hears(wire) => match wire.into_tcp() {
                Ok(stream) => {
                    cx.waker().wake_by_ref();
                    Side::deaf(stream)
                }
                Err(wire) => {
                    wire.keep_up(cx);
                    Side::Hears(wire)
                }
            },
            other => other,
        };
    }

    fn deaf(stream: TcpStream) -> Side<W> {
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => return Side::lost(error),
        };
        match epoll::watch_for_room(stream) {
            Ok(stream) => Side::Deaf(stream),
            Err(stream) => Side::hearing(stream),
        }
    }

    fn hearing(stream: std::net::TcpStream) -> Side<W> {
        match TcpStream::from_std(stream) {
            Ok(stream) => W::from_tcp(stream).map_or(Side::Lost, Side::Hears),
            Err(error) => Side::lost(error),
        }
    }

    /// What comes is told again. `cx` is woken as by `deafen`.
    pub(super) fn hear(&mut self, cx: &mut Context<'_>) {
        if let Side::Deaf(_) = self {
            cx.waker().wake_by_ref();
            *self = std::mem::replace(self, Side::Lost).heard();
        }
    }

    fn heard(self) -> Side<W> {
        match self {
            Side::Deaf(stream) => Side::hearing(stream.into_inner()),
            other => other,
        }
    }

    #[cold]
    fn lost(error: io::Error) -> Side<W> {
        tracing::warn!(%error, "a connection was lost: its socket cannot be watched");
        Side::Lost
    }

    /// The wire, unless it is deaf.
    #[inline]
    pub(super) fn wire(&self) -> Option<&W> {
        match self {
            Side::Hears(wire) => Some(wire),
            Side::Deaf(_) | Side::Lost => None,
        }
    }

    pub(super) fn into_wire(self) -> Option<W> {
        match self.heard() {
            Side::Hears(wire) => Some(wire),
            Side::Deaf(_) | Side::Lost => None,
        }
    }

    /// As `Wire::poll_read`. A deaf one that holds nothing hears again.
    #[inline]
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Side::Hears(wire) => wire.poll_read(cx, buffer),
            Side::Deaf(_) | Side::Lost => self.poll_read_deaf(cx, buffer),
        }
    }

    #[inline(never)]
    fn poll_read_deaf(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Side::Deaf(stream) = self {
            match rustix::net::recv(stream.get_ref(), &mut *buffer, RecvFlags::empty()) {
                Ok((n, _)) => return Poll::Ready(Ok(n)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => self.hear(cx),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        match self {
            Side::Hears(wire) => wire.poll_read(cx, buffer),
            Side::Deaf(_) | Side::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// As `Wire::poll_write`.
    #[inline]
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Side::Hears(wire) => wire.poll_write(cx, bytes),
            Side::Deaf(stream) => poll_write_deaf(stream, cx, bytes),
            Side::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// As `Wire::poll_flush`.
    #[inline]
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Side::Hears(wire) => wire.poll_flush(cx),
            Side::Deaf(_) | Side::Lost => Poll::Ready(Ok(())),
        }
    }

    /// As `Wire::poll_end`.
    #[inline]
    pub(super) fn poll_end(&self, cx: &mut Context<'_>, is_last: bool) -> Poll<()> {
        match self {
            Side::Hears(wire) => wire.poll_end(cx, is_last),
            Side::Deaf(stream) => {
                if !is_last {
                    // An error means that the peer is gone, which the other direction will notice.
                    let _ = stream.get_ref().shutdown(std::net::Shutdown::Write);
                }
                Poll::Ready(())
            }
            Side::Lost => Poll::Ready(()),
        }
    }

    /// What can be spliced from and to.
    #[inline]
    pub(super) fn spliced(&self) -> Option<Spliced<'_>> {
        match self {
            Side::Hears(wire) => wire.tcp().map(Spliced::Hears),
            Side::Deaf(stream) => Some(Spliced::Deaf(stream)),
            Side::Lost => None,
        }
    }

    /// As `Wire::take_error`.
    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Side::Hears(wire) => wire.take_error(),
            Side::Deaf(stream) => stream.get_ref().take_error(),
            Side::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// As `Wire::reset_on_close`.
    pub(super) fn reset_on_close(&self) {
        match self {
            Side::Hears(wire) => wire.reset_on_close(),
            Side::Deaf(stream) => socket::reset_on_close(stream.get_ref()),
            Side::Lost => {}
        }
    }

    /// As `Wire::set_liveness`.
    pub(super) fn set_liveness(&self) {
        match self {
            Side::Hears(wire) => wire.set_liveness(),
            Side::Deaf(stream) => super::core::set_liveness(stream.get_ref()),
            Side::Lost => {}
        }
    }
}

#[inline(never)]
fn poll_write_deaf(
    stream: &AsyncFd<std::net::TcpStream>,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let send = |stream: &std::net::TcpStream| Ok(rustix::net::send(stream, bytes, SendFlags::NOSIGNAL)?);
    loop {
        let mut guard = ready!(stream.poll_write_ready(cx))?;
        // An error of this kind means that it was not ready after all.
        if let Ok(result) = guard.try_io(|stream| send(stream.get_ref())) {
            return Poll::Ready(result);
        }
    }
}

/// A socket whose bytes are the stream's.
#[derive(Clone, Copy)]
pub(super) enum Spliced<'a> {
    Hears(&'a TcpStream),
    Deaf(&'a AsyncFd<std::net::TcpStream>),
}

impl AsFd for Spliced<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Spliced::Hears(stream) => stream.as_fd(),
            Spliced::Deaf(stream) => stream.as_fd(),
        }
    }
}

impl Spliced<'_> {
    /// A deaf one is always to be asked.
    pub(super) fn poll_read_ready(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Spliced::Hears(stream) => stream.poll_read_ready(cx),
            Spliced::Deaf(_) => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn poll_write_ready(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Spliced::Hears(stream) => stream.poll_write_ready(cx),
            Spliced::Deaf(stream) => stream.poll_write_ready(cx).map_ok(drop),
        }
    }

    /// Reads by `read`, which says `WouldBlock` where there is nothing.
    pub(super) fn try_read<T>(self, read: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Spliced::Hears(stream) => stream.try_io(Interest::READABLE, read),
            Spliced::Deaf(_) => read(),
        }
    }

    /// Writes by `write`, which says `WouldBlock` where there is no room.
    pub(super) fn try_write<T>(self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Spliced::Hears(stream) => stream.try_io(Interest::WRITABLE, write),
            Spliced::Deaf(stream) => stream.try_io(Interest::WRITABLE, |_| write()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn pair() -> (Side<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Side::Hears(listener.accept().await.unwrap().0), peer)
    }

    #[tokio::test]
    async fn a_change_wakes_so_that_room_is_waited_for_anew() {
        let (mut side, peer) = pair().await;
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let cx = &mut Context::from_waker(&waker);
        let n_woken = || count.0.load(Ordering::SeqCst);
        side.hear(cx);
        assert_eq!(n_woken(), 0, "it heard already");
        side.deafen(cx);
        assert_eq!(n_woken(), 1);
        side.deafen(cx);
        assert_eq!(n_woken(), 1, "it was deaf already");
        assert!(side.wire().is_none());
        // What a deaf one holds is read; once it holds nothing it hears, and wakes for that.
        peer.writable().await.unwrap();
        peer.try_write(b"bytes").unwrap();
        let mut buffer = [0; 8];
        assert!(matches!(side.poll_read(cx, &mut buffer), Poll::Ready(Ok(5))));
        assert_eq!((n_woken(), side.wire().is_none()), (1, true));
        assert!(side.poll_read(cx, &mut buffer).is_pending());
        assert_eq!((n_woken(), side.wire().is_some()), (2, true));
    }

    #[tokio::test]
    async fn a_deaf_side_takes_what_is_written_and_its_end() {
        let (mut side, peer) = pair().await;
        side.deafen(&mut Context::from_waker(Waker::noop()));
        let mut n_written = 0;
        let bytes = vec![7; 1 << 16];
        // Until there is no room, and after there is some again.
        for _ in 0..2 {
            while let Ok(written) = tokio::time::timeout(
                Duration::from_millis(100),
                std::future::poll_fn(|cx| side.poll_write(cx, &bytes)),
            )
            .await
            {
                n_written += written.unwrap();
            }
            let mut buffer = vec![0; 1 << 20];
            while n_written > 0 {
                peer.readable().await.unwrap();
                match peer.try_read(&mut buffer) {
                    Ok(n) => n_written -= n,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        }
        std::future::poll_fn(|cx| side.poll_end(cx, false)).await;
        peer.readable().await.unwrap();
        assert_eq!(peer.try_read(&mut [0]).unwrap(), 0);
    }
}

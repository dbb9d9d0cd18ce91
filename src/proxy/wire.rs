//! What bytes come from and go to: a TCP socket, or a stream through another node. The relay and the HTTP engine know
//! sockets by this; the way to another node is a trait that others implement (`link`, joined by `app`).

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::secured::Agreed;
use crate::model::TaskRef;
use crate::sys::socket;

/// A stream to a task of another node, or from another node to a task of this one; or one request on a connection that others share.
///
/// Its end without the stream's own goodbye is an error; `poll_shutdown` ends this direction alone.
pub trait Tunnel: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket below, for its options. `None`: it shares one with others.
    fn socket(&self) -> Option<&TcpStream>;
    /// The other side is about to end, or takes one request alone: nothing new should be given to it.
    fn is_leaving(&self) -> bool;
    /// The other side has said that it did nothing about what it was sent.
    fn is_unprocessed(&self) -> bool {
        false
    }
    /// It is one request of a connection that carries others too.
    fn is_one_of_many(&self) -> bool {
        false
    }
    /// Ends what is no socket of its own, so that nobody takes it for whole.
    fn reset(&mut self) {}
    /// What it shares with others was waited for in vain.
    fn distrust(&self) {}
    /// Whether nothing has come on it, neither its end nor bytes that nobody asked for, as far as the kernel knows.
    fn stands(&self) -> bool {
        let peek = |socket| rustix::net::recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let peeked = self.socket().map(peek);
        matches!(peeked, None | Some(Err(rustix::io::Errno::AGAIN)))
    }
    /// What was agreed on with the endpoint. `None`: it is spoken to without TLS.
    fn agreed(&self) -> Option<Agreed> {
        None
    }
    /// Nobody reads from it at the moment: it may take what comes out of others' way.
    fn keep_up(&mut self, _: &mut Context<'_>) {}
    /// Whether the other side is about to end, to be asked later. `None`: that cannot be known.
    fn leaving(&self) -> Option<Leaving> {
        None
    }
}

/// Says whether another node is about to end.
pub type Leaving = Box<dyn Fn() -> bool + Send>;

/// Who a connection to another node's task is for.
#[derive(Debug, Clone, Copy)]
pub struct TunnelFor<'a> {
    pub task: &'a TaskRef,
    /// The link of the task's node.
    pub link: SocketAddr,
    /// The port that the task listens on.
    pub target: u16,
    /// The network by which a task asks from inside; `None`: a client of a published port.
    pub network: Option<&'a Arc<str>>,
    /// The client's address, and the address that it came to; `None` where connections are shared by clients.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// For the whole of it.
    pub timeout: Duration,
}

/// A dial under way.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Tunnel>>> + Send>>;

/// Connects to tasks of other nodes. Called on the worker that will use the connection.
pub trait Dialer: Send + Sync {
    /// Errors: as a connect would have them; `NotFound` when the task left its node.
    fn dial(&self, target: TunnelFor<'_>) -> Dialing;
}

/// A stream from another node that waits for its task to accept.
pub trait PendingTunnel: Send {
    /// Says that the task accepted. Errors: the other node is gone.
    fn accept(self: Box<Self>) -> Dialing;
    /// Says why not, and ends.
    fn refuse(self: Box<Self>, why: Refused) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Why a stream from another node is not connected to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The task refused, or is not well.
    NotReached,
    /// The task did not answer in time.
    TimedOut,
    /// No such task runs here (any more).
    Gone,
    /// The service does not publish that port, nor is it on the network of the task that asks.
    NotAllowed,
}

/// One side of a relay.
pub(super) trait Wire: Sized {
    /// Reads into `buffer`; 0 is the end.
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Writes of `bytes` what is taken; never 0 unless there are none.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// Sends what was taken and not sent yet.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the direction that is written to. `is_last`: the other has ended, and closing follows.
    fn poll_end(&self, cx: &mut Context<'_>, is_last: bool) -> Poll<()>;
    /// The socket, where its bytes are the stream's: only those can be spliced.
    fn tcp(&self) -> Option<&TcpStream>;
    /// The socket, where it is the stream's and this one's own.
    fn into_tcp(self) -> Result<TcpStream, Self> {
        Err(self)
    }
    /// What `into_tcp` gave away. `None`: it gives nothing away.
    fn from_tcp(_: TcpStream) -> Option<Self> {
        None
    }
    /// An error that nobody has read yet, or that there is none.
    fn take_error(&self) -> io::Result<Option<io::Error>>;
    /// Closing will reset, so that the peer never takes a truncated stream for a complete one.
    fn reset_on_close(&self);
    /// Has dead peers noticed.
    fn set_liveness(&self);
    /// Nobody reads from it at the moment.
    fn keep_up(&self, _: &mut Context<'_>) {}
}

/// A client's stream. What it says may be sealed, or be one of many on a connection.
pub(super) trait Client: Wire + Send + Sync {
    fn watched(&self) -> Watched<'_>;
}

impl Client for TcpStream {
    fn watched(&self) -> Watched<'_> {
        Watched::Socket(self)
    }
}

/// Where it is seen what became of a client, without reading what it says.
#[derive(Clone, Copy)]
pub(super) enum Watched<'a> {
    /// The socket of its own.
    Socket(&'a TcpStream),
    /// One of many on a connection.
    Stream(&'a dyn Streamed),
}

/// A client's stream that shares its connection with others. Its end is the end of one request, which says nothing of the client.
pub(super) trait Streamed: Send + Sync {
    /// The address that the client came to.
    fn local_addr(&self) -> SocketAddr;
    /// `Ready` once the client has reset it, or its connection is gone.
    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()>;
}

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It has reset its connection, or this program ends.
    Gone,
    /// It has ended its half.
    Ended,
}

/// What a look at a client shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Nothing,
    /// It has reset its connection.
    Reset,
    /// It has ended its half.
    Ended,
    /// It has said more.
    Said,
}

impl Watched<'_> {
    /// The address that the client came to. Errors: the client is gone.
    pub(super) fn local_addr(self) -> io::Result<SocketAddr> {
        match self {
            Watched::Socket(socket) => socket.local_addr(),
            Watched::Stream(stream) => Ok(stream.local_addr()),
        }
    }

    /// Waits until the client has reset its connection, or, `also_ended`, has ended its half. Nothing is read.
    pub(super) async fn news(self, also_ended: bool) -> News {
        // tokio counts the end of the other side to PRIORITY, which nothing else is.
        let interest = match also_ended {
            true => Interest::ERROR | Interest::PRIORITY,
            false => Interest::ERROR,
        };
        match self {
            Watched::Socket(socket) => match socket.ready(interest).await {
                Ok(ready) if !ready.is_error() => News::Ended,
                // An error means that the runtime ends.
                _ => News::Gone,
            },
            Watched::Stream(stream) => {
                poll_fn(|cx| stream.poll_reset(cx)).await;
                News::Gone
            }
        }
    }

    /// Whether there is more to read, as far as is known without asking the kernel.
    pub(super) fn has_more(self) -> bool {
        match self {
            Watched::Socket(socket) => socket
                .poll_read_ready(&mut Context::from_waker(Waker::noop()))
                .is_ready(),
            Watched::Stream(_) => false,
        }
    }

    /// Looks at the client without reading. The task is woken when it is worth another look.
    pub(super) fn look(self, cx: &mut Context<'_>) -> Look {
        let socket = match self {
            Watched::Socket(socket) => socket,
            Watched::Stream(stream) => {
                return match stream.poll_reset(cx) {
                    Poll::Ready(()) => Look::Reset,
                    Poll::Pending => Look::Nothing,
                };
            }
        };
        if socket.poll_read_ready(cx).is_pending() {
            return Look::Nothing;
        }
        let mut byte = [0];
        match rustix::net::recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Look::Ended,
            Ok(_) => Look::Said,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                // A stale event: clear it, and be woken by the next.
                let nothing = socket.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                debug_assert!(nothing.is_err());
                let _ = socket.poll_read_ready(cx);
                Look::Nothing
            }
            Err(_) => Look::Reset,
        }
    }
}

impl Wire for TcpStream {
    /// A read that does not fill the buffer has emptied the socket, and tokio is told so: that saves the call that would
    /// only say "nothing more".
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            let mut n_short = 0;
            let result = self.try_io(Interest::READABLE, || {
                let (n, _) = rustix::net::recv(self, &mut *buffer, RecvFlags::empty())?;
                if n > 0 && n < buffer.len() {
                    n_short = n;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(n)
            });
            match result {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if n_short > 0 {
                        return Poll::Ready(Ok(n_short));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// The socket is asked before tokio is: it mostly takes everything, also before its first event has come.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let send = || Ok(rustix::net::send(self, bytes, SendFlags::NOSIGNAL)?);
        let mut result: io::Result<usize> = send();
        loop {
            match result {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    _ => return Poll::Ready(Err(error)),
                },
            }
            ready!(self.poll_write_ready(cx))?;
            result = self.try_io(Interest::WRITABLE, send);
        }
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_end(&self, _: &mut Context<'_>, is_last: bool) -> Poll<()> {
        if !is_last {
            // An error means that the peer is gone, which the other direction will notice.
            let _ = socket2::SockRef::from(self).shutdown(std::net::Shutdown::Write);
        }
        Poll::Ready(())
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn into_tcp(self) -> Result<TcpStream, TcpStream> {
        Ok(self)
    }

    fn from_tcp(stream: TcpStream) -> Option<TcpStream> {
        Some(stream)
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        TcpStream::take_error(self)
    }

    fn reset_on_close(&self) {
        socket::reset_on_close(self);
    }

    fn set_liveness(&self) {
        super::core::set_liveness(self);
    }
}

/// An upstream connection: straight to the endpoint, or through the endpoint's node.
pub(super) enum Leg {
    Tcp(TcpStream),
    Tunnel(TunnelLeg),
}

impl std::fmt::Debug for Leg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Leg::Tcp(stream) => stream.fmt(f),
            Leg::Tunnel(tunnel) => tunnel.lock().socket().fmt(f),
        }
    }
}

/// A tunnel that is used through a shared reference, as sockets are.
pub(super) struct TunnelLeg {
    /// std mutex: one task has it, and nothing awaits under it.
    tunnel: Box<Mutex<Box<dyn Tunnel>>>,
    is_to_reset: AtomicBool,
}

impl Drop for TunnelLeg {
    /// As closing a socket does: the peer learns that no more will come. Only a tunnel that is to be reset goes without
    /// a word.
    fn drop(&mut self) {
        if !self.is_to_reset.load(Ordering::Relaxed) {
            let _ = Pin::new(&mut *self.lock()).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl TunnelLeg {
    pub(super) fn new(tunnel: Box<dyn Tunnel>) -> TunnelLeg {
        TunnelLeg {
            tunnel: Box::new(Mutex::new(tunnel)),
            is_to_reset: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Tunnel>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire for TunnelLeg {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *self.lock()).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut tunnel = self.lock();
        let n = ready!(Pin::new(&mut *tunnel).poll_write(cx, bytes))?;
        // What the socket does not take now is flushed later; an error shows then too.
        let _ = Pin::new(&mut *tunnel).poll_flush(cx)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_end(&self, cx: &mut Context<'_>, _: bool) -> Poll<()> {
        // An error means that the peer is gone, which the other direction will notice.
        Pin::new(&mut *self.lock()).poll_shutdown(cx).map(drop)
    }

    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.lock().socket().map_or(Ok(None), TcpStream::take_error)
    }

    fn reset_on_close(&self) {
        self.is_to_reset.store(true, Ordering::Relaxed);
        let mut tunnel = self.lock();
        tunnel.reset();
        tunnel.socket().into_iter().for_each(socket::reset_on_close);
    }

    fn set_liveness(&self) {
        self.lock().socket().into_iter().for_each(super::core::set_liveness);
    }

    fn keep_up(&self, cx: &mut Context<'_>) {
        self.lock().keep_up(cx);
    }
}

impl<W: Wire> Wire for &W {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Wire::poll_read(*self, cx, buffer)
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Wire::poll_write(*self, cx, bytes)
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Wire::poll_flush(*self, cx)
    }

    fn poll_end(&self, cx: &mut Context<'_>, is_last: bool) -> Poll<()> {
        (*self).poll_end(cx, is_last)
    }

    fn tcp(&self) -> Option<&TcpStream> {
        (*self).tcp()
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        Wire::take_error(*self)
    }

    fn reset_on_close(&self) {
        (*self).reset_on_close();
    }

    fn set_liveness(&self) {
        (*self).set_liveness();
    }
}

macro_rules! either {
    ($leg:expr, $wire:ident => $call:expr) => {
        match $leg {
            Leg::Tcp($wire) => $call,
            Leg::Tunnel($wire) => $call,
        }
    };
}

impl Wire for Leg {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        either!(self, wire => Wire::poll_read(wire, cx, buffer))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, wire => Wire::poll_write(wire, cx, bytes))
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, wire => Wire::poll_flush(wire, cx))
    }

    fn poll_end(&self, cx: &mut Context<'_>, is_last: bool) -> Poll<()> {
        either!(self, wire => wire.poll_end(cx, is_last))
    }

    fn tcp(&self) -> Option<&TcpStream> {
        either!(self, wire => wire.tcp())
    }

    fn into_tcp(self) -> Result<TcpStream, Leg> {
        match self {
            Leg::Tcp(stream) => Ok(stream),
            Leg::Tunnel(_) => Err(self),
        }
    }

    fn from_tcp(stream: TcpStream) -> Option<Leg> {
        Some(Leg::Tcp(stream))
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        either!(self, wire => Wire::take_error(wire))
    }

    fn reset_on_close(&self) {
        either!(self, wire => wire.reset_on_close());
    }

    fn set_liveness(&self) {
        either!(self, wire => wire.set_liveness());
    }

    fn keep_up(&self, cx: &mut Context<'_>) {
        either!(self, wire => wire.keep_up(cx));
    }
}

impl Leg {
    /// Whether nothing has come on a connection on which nothing is due: neither its end nor bytes that are not for us.
    pub(super) fn is_quiet(&self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        match self {
            Leg::Tcp(stream) => stream.poll_read_ready(cx).is_pending() || is_ready_no_more(stream),
            Leg::Tunnel(tunnel) => Wire::poll_read(tunnel, cx, &mut [0]).is_pending(),
        }
    }

    /// Its other end is about to end: it should not be kept for another request.
    pub(super) fn is_leaving(&self) -> bool {
        match self {
            Leg::Tcp(_) => false,
            Leg::Tunnel(tunnel) => tunnel.lock().is_leaving(),
        }
    }

    /// It was waited for in vain, so that what others share with it may be dead.
    pub(super) fn distrust(&self) {
        if let Leg::Tunnel(tunnel) = self {
            tunnel.lock().distrust();
        }
    }

    /// As `Tunnel::leaving`.
    pub(super) fn leaving(&self) -> Option<Leaving> {
        match self {
            Leg::Tcp(_) => None,
            Leg::Tunnel(tunnel) => tunnel.lock().leaving(),
        }
    }

    /// Its other end has said that it did nothing about the request.
    pub(super) fn is_unprocessed(&self) -> bool {
        match self {
            Leg::Tcp(_) => false,
            Leg::Tunnel(tunnel) => tunnel.lock().is_unprocessed(),
        }
    }

    /// It is one request of a connection that carries others too.
    pub(super) fn is_one_of_many(&self) -> bool {
        match self {
            Leg::Tcp(_) => false,
            Leg::Tunnel(tunnel) => tunnel.lock().is_one_of_many(),
        }
    }

    /// The same, asked of the kernel at once rather than of what it has told so far.
    pub(super) fn stands(&self) -> bool {
        match self {
            Leg::Tcp(stream) => {
                let peeked = rustix::net::recv(stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
                matches!(peeked, Err(rustix::io::Errno::AGAIN))
            }
            Leg::Tunnel(tunnel) => tunnel.lock().stands(),
        }
    }

    /// As `Tunnel::agreed`.
    pub(super) fn agreed(&self) -> Option<Agreed> {
        match self {
            Leg::Tcp(_) => None,
            Leg::Tunnel(tunnel) => tunnel.lock().agreed(),
        }
    }
}

/// Whether the readiness is that of a body that was read to its end, and not a byte further, before.
fn is_ready_no_more(stream: &TcpStream) -> bool {
    let peek = || Ok(rustix::net::recv(stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0);
    let peeked = stream.try_io(Interest::READABLE, peek);
    matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

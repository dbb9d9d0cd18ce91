//! Asks upstream servers what is not ours, one after the other, and takes only answers to what was asked. Not here: who
//! they are (`resolv`), a cache.
//!
//! Each query has a socket of its own, so that the kernel draws its port at random and lets nobody but the server answer,
//! and that a port nobody listens on is known at once; the ID is drawn at random beside that.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::resolv::Upstreams;
use super::stats::{DnsStats, UpstreamFailure};
use super::wire::{Request, Transport, check_answer, set_id};
use crate::sys::pktinfo;

const CODE_SERVFAIL: u16 = 2;
const CODE_REFUSED: u16 = 5;

#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: Upstreams,
    /// For one server's answer.
    timeout: Duration,
    /// Keyed with the system's randomness: IDs are its hashes of a counter, which nobody can foretell who sees some.
    ids: RandomState,
    n_drawn: AtomicU64,
    /// The local ends of queries in flight: one that comes to us from there is going in a circle.
    own_ends: Mutex<HashSet<SocketAddr>>,
    /// Datagrams are received here, whole, whatever their size; the lock is never waited for by the one thread.
    scratch: Mutex<Box<[u8]>>,
    stats: Arc<DnsStats>,
}

impl Forwarder {
    pub(super) fn new(upstreams: Upstreams, timeout: Duration, stats: Arc<DnsStats>) -> Forwarder {
        Forwarder {
            upstreams,
            timeout,
            ids: RandomState::new(),
            n_drawn: AtomicU64::new(0),
            own_ends: Mutex::default(),
            scratch: Mutex::new(vec![0; usize::from(u16::MAX)].into()),
            stats,
        }
    }

    /// Whether a client's address is the local end of a query of ours: then upstream is, by some detour, ourselves.
    pub(super) fn is_own_end(&self, from: SocketAddr) -> bool {
        lock(&self.own_ends).contains(&canonical(from))
    }

    /// The first answer that is neither SERVFAIL nor REFUSED, with its code; `None` if no server has one.
    /// Time: at most the timeout for each server.
    pub(super) async fn ask(&self, mut query: Vec<u8>, request: &Request) -> Option<(Vec<u8>, u16)> {
        self.upstreams.refresh(Instant::now()).await;
        for upstream in self.upstreams.in_order(Instant::now()) {
            let id = self.draw_id();
            set_id(&mut query, id);
            let asking = async {
                match request.transport() {
                    Transport::Udp => self.ask_udp(upstream, &query, id, request).await,
                    // A client comes by TCP when an answer is long: by UDP it would only be truncated once more.
                    Transport::Tcp => self.ask_tcp(upstream, &query, id, request).await,
                }
            };
            let failure = match timeout(self.timeout, asking).await {
                Ok(Ok((_, CODE_SERVFAIL))) => UpstreamFailure::ServFail,
                Ok(Ok((_, CODE_REFUSED))) => UpstreamFailure::Refused,
                Ok(Ok(answer)) => {
                    self.upstreams.answered(upstream);
                    return Some(answer);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%upstream, %error, "upstream DNS server");
                    UpstreamFailure::Unreachable
                }
                Err(_) => UpstreamFailure::Timeout,
            };
            self.stats.upstream_failed(failure);
            if matches!(failure, UpstreamFailure::Timeout | UpstreamFailure::Unreachable) {
                self.upstreams.failed(upstream, Instant::now());
            }
        }
        None
    }

    async fn ask_udp(
        &self,
        upstream: SocketAddr,
        query: &[u8],
        id: u16,
        request: &Request,
    ) -> io::Result<(Vec<u8>, u16)> {
        let socket = connected(upstream)?;
        let _end = self.own_end(socket.local_addr()?);
        socket.send(query).await?;
        let mut answer = std::pin::pin!(self.receive(&socket, query, id, request));
        // Datagrams get lost; a second one costs less than the next server.
        match timeout(self.timeout / 2, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                socket.send(query).await?;
                answer.await
            }
        }
    }

    async fn receive(
        &self,
        socket: &UdpSocket,
        query: &[u8],
        id: u16,
        request: &Request,
    ) -> io::Result<(Vec<u8>, u16)> {
        // That nobody listens there is told as an error of the socket, which is not "readable".
        let interest = Interest::READABLE | Interest::ERROR;
        loop {
            let taken = socket.async_io(interest, || {
                let mut scratch = lock(&self.scratch);
                let datagram = pktinfo::recv(socket.as_fd(), &mut scratch)?;
                let answer = &scratch[..datagram.len];
                Ok(check_answer(query, request, id, answer).map(|code| (answer.to_vec(), code)))
            });
            match taken.await? {
                Some(answer) => return Ok(answer),
                None => self.stats.mismatched(),
            }
        }
    }

    async fn ask_tcp(
        &self,
        upstream: SocketAddr,
        query: &[u8],
        id: u16,
        request: &Request,
    ) -> io::Result<(Vec<u8>, u16)> {
        let mut stream = TcpStream::connect(upstream).await?;
        let _end = self.own_end(stream.local_addr()?);
        let len = u16::try_from(query.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let framed = [&len.to_be_bytes()[..], query].concat();
        stream.write_all(&framed).await?;
        let len = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await?;
        match check_answer(query, request, id, &answer) {
            Some(code) => Ok((answer, code)),
            None => {
                self.stats.mismatched();
                Err(io::Error::from(io::ErrorKind::InvalidData))
            }
        }
    }

    fn draw_id(&self) -> u16 {
        let n = self.n_drawn.fetch_add(1, Ordering::Relaxed);
        // The low bits of a keyed hash are as good as any.
        self.ids.hash_one(n) as u16
    }

    fn own_end(&self, addr: SocketAddr) -> OwnEnd<'_> {
        let addr = canonical(addr);
        lock(&self.own_ends).insert(addr);
        OwnEnd { forwarder: self, addr }
    }
}

/// Forgets the local end of a query when that is over.
struct OwnEnd<'a> {
    forwarder: &'a Forwarder,
    addr: SocketAddr,
}

impl Drop for OwnEnd<'_> {
    fn drop(&mut self) {
        lock(&self.forwarder.own_ends).remove(&self.addr);
    }
}

/// A socket that only `upstream` can answer, at a port that the kernel draws.
fn connected(upstream: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(upstream),
        socket2::Type::DGRAM.nonblocking(),
        Some(socket2::Protocol::UDP),
    )?;
    socket.connect(&upstream.into())?;
    UdpSocket::from_std(socket.into())
}

/// An IPv4 client of an IPv6 socket has the address that it has everywhere else.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// std mutexes: nothing awaits under them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

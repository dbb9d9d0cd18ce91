//! The DNS server: its configuration and its sockets, and what answers on the sockets of others. Not here: what is done with
//! a socket (`udp`, `tcp`), and what is answered (`core`).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::{TcpListener, UdpSocket};

use super::core::{Client, Core, MAX_STREAMS, MAX_WAITING, follow_tables};
use super::forward::Forwarder;
use super::inside::View;
use super::resolv::Upstreams;
use super::reverse::ReverseIndex;
use super::stats::DnsStats;
use super::{tcp, udp};
use crate::places::{Places, Table};
use crate::routing::TableHandle;
use crate::sys::limits;
use crate::sys::pktinfo;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// For UDP and TCP both; port 0: one that is free for both.
    pub listen: SocketAddr,
    /// Who is asked for names that are not ours, in this order; empty: the name servers of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    /// How long one upstream server has for an answer.
    pub upstream_timeout: Duration,
    /// Read again when it changes.
    pub resolv_conf: PathBuf,
    /// VIPs lead nowhere on this node, so that names had better stand for endpoints. May change at any time.
    pub are_vips_off: Arc<AtomicBool>,
}

impl Default for DnsConfig {
    fn default() -> DnsConfig {
        DnsConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 8553)),
            upstreams: Vec::new(),
            upstream_timeout: Duration::from_secs(2),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            are_vips_off: Arc::default(),
        }
    }
}

/// Why the DNS server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("DNS: listen on {addr}/udp")]
    Udp {
        addr: SocketAddr,
        #[source]
        err: io::Error,
    },
    #[error("DNS: listen on {addr}/tcp")]
    Tcp {
        addr: SocketAddr,
        #[source]
        err: io::Error,
    },
    #[error("DNS: watch the sockets of {addr}")]
    Watch {
        addr: SocketAddr,
        #[source]
        err: io::Error,
    },
}

/// A DNS server that has its sockets. Clients that come before it runs wait.
#[derive(Debug)]
pub struct DnsServer {
    responder: Responder,
    addr: SocketAddr,
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// Bursts wait here while a turn of the thread's other work is done.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Whether a port is free for UDP and for TCP is only known by trying.
const PORT_TRIES: usize = 16;

impl DnsServer {
    /// Opens the sockets, and reads resolv.conf if that is to name the upstream servers. It may block for that moment.
    pub fn bind(config: DnsConfig, table: Arc<TableHandle>) -> Result<DnsServer, BindError> {
        let (addr, udp, tcp) = bind_both(config.listen)?;
        let responder = Responder::new(DnsConfig { listen: addr, ..config }, table);
        Ok(DnsServer::adopt(responder, addr, udp, tcp))
    }

    /// As `bind`, with what answers at `listen`.
    pub fn bind_for(responder: Responder, listen: SocketAddr) -> Result<DnsServer, BindError> {
        let (addr, udp, tcp) = bind_both(listen)?;
        Ok(DnsServer::adopt(responder, addr, udp, tcp))
    }

    /// With sockets that are open at `addr`.
    pub fn adopt(
        responder: Responder,
        addr: SocketAddr,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
    ) -> DnsServer {
        DnsServer {
            responder,
            addr,
            udp,
            tcp,
        }
    }

    /// What answers for it, for others who have sockets.
    pub fn responder(&self) -> Responder {
        self.responder.clone()
    }

    pub fn stats(&self) -> Arc<DnsStats> {
        self.responder.stats()
    }

    /// Where it listens, with the port that was found if the configuration left it open.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The sockets, for another process: datagrams, then streams.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.udp.as_fd(), self.tcp.as_fd()]
    }

    /// Answers until `shutdown` is done; then whoever still waits for upstream is left to ask again. Once `handed_over` is
    /// done, nothing more is taken from the sockets, and this ends with the last answer.
    ///
    /// Runs on whatever tokio runtime it is polled on; made for a thread of its own or one that only controls.
    /// Errors: the runtime cannot watch the sockets.
    pub async fn run(self, handed_over: impl Future, shutdown: impl Future) -> Result<(), BindError> {
        let addr = self.addr;
        let watch = |err| BindError::Watch { addr, err };
        let datagrams = Arc::new(UdpSocket::from_std(self.udp).map_err(watch)?);
        let streams = TcpListener::from_std(self.tcp).map_err(watch)?;
        let handed_over = handed_over.map(drop).shared();
        let core = &self.responder.core;
        let client = Client::default();
        let serving = futures_util::future::join(
            udp::serve(core, &client, &datagrams, handed_over.clone()),
            tcp::serve(core, streams, handed_over),
        );
        tokio::select! {
            _ = shutdown => {}
            _ = serving => {}
            () = self.responder.follow() => {}
        }
        Ok(())
    }
}

/// What answers, without sockets of its own. Clones share everything.
#[derive(Debug, Clone)]
pub struct Responder {
    core: Arc<Core>,
}

impl Responder {
    /// Reads resolv.conf if that is to name the upstream servers. It may block for that moment.
    pub fn new(config: DnsConfig, table: Arc<TableHandle>) -> Responder {
        let stats = Arc::new(DnsStats::default());
        let upstreams = Upstreams::new(&config.upstreams, config.resolv_conf, config.listen);
        let indexed = table.load();
        let core = Core {
            reverse: Mutex::new(ReverseIndex::new(&indexed)),
            indexed: Mutex::new(indexed),
            table,
            upstream_timeout: config.upstream_timeout,
            are_vips_off: config.are_vips_off,
            forwarder: Arc::new(Forwarder::new(upstreams, config.upstream_timeout, stats.clone())),
            stats,
            streams: Places::new(Table::DnsStreams, limits::share(MAX_STREAMS, 16)),
            waiting: Places::new(Table::DnsUpstream, limits::share(MAX_WAITING, 8)),
            n_tasks: AtomicU64::new(0),
        };
        Responder { core: Arc::new(core) }
    }

    pub fn stats(&self) -> Arc<DnsStats> {
        self.core.stats.clone()
    }

    /// A task that asks at `at`, and sees `view`. `nameservers`: who knows other names; empty: whom this node asks.
    pub fn task(&self, view: View, at: SocketAddr, nameservers: &[SocketAddr]) -> Client {
        let own = || {
            let upstreams = Upstreams::new(nameservers, PathBuf::new(), at);
            Forwarder::new(upstreams, self.core.upstream_timeout, self.core.stats.clone())
        };
        Client {
            task: Some(self.core.n_tasks.fetch_add(1, Ordering::Relaxed)),
            view: Some(view),
            forwarder: (!nameservers.is_empty()).then(|| Arc::new(own())),
            is_internal: false,
        }
    }

    /// A task that sees `view`, for which other names are nobody's.
    pub fn internal_task(&self, view: View) -> Client {
        Client {
            task: Some(self.core.n_tasks.fetch_add(1, Ordering::Relaxed)),
            view: Some(view),
            forwarder: None,
            is_internal: true,
        }
    }

    /// Answers a client's datagrams until it is dropped. Errors: the runtime cannot watch the socket.
    pub async fn serve(&self, client: Client, socket: std::net::UdpSocket) -> io::Result<()> {
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        udp::serve(&self.core, &client, &socket, std::future::pending()).await;
        Ok(())
    }

    /// Answers what comes on one stream of a client, to its end, which may be that others need its place.
    pub async fn serve_stream(&self, client: &Client, stream: tokio::net::TcpStream, from: SocketAddr) {
        let place = self.core.streams.take(client.party(from));
        tcp::serve_connection(&self.core, client, stream, from, &place).await;
    }

    /// Keeps the names of addresses up with the tables, in turns so short that no query waits for them; by one caller at a
    /// time. Never ends.
    pub async fn follow(&self) {
        follow_tables(&self.core).await;
    }
}

fn bind_both(listen: SocketAddr) -> Result<(SocketAddr, std::net::UdpSocket, std::net::TcpListener), BindError> {
    let mut tries = PORT_TRIES;
    loop {
        tries -= 1;
        let (udp, addr) = bind_udp(listen).map_err(|err| BindError::Udp { addr: listen, err })?;
        match bind_tcp(addr) {
            Ok(tcp) => return Ok((addr, udp, tcp)),
            Err(err) if listen.port() == 0 && tries > 0 && err.kind() == io::ErrorKind::AddrInUse => {}
            Err(err) => return Err(BindError::Tcp { addr, err }),
        }
    }
}

fn bind_udp(addr: SocketAddr) -> io::Result<(std::net::UdpSocket, SocketAddr)> {
    let socket = socket(addr, socket2::Type::DGRAM)?;
    // As much as the system allows.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.bind(&addr.into())?;
    if addr.ip().is_unspecified() {
        pktinfo::enable(socket.as_fd(), addr.ip())?;
    }
    let socket = std::net::UdpSocket::from(socket);
    let addr = socket.local_addr()?;
    Ok((socket, addr))
}

fn bind_tcp(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(addr, socket2::Type::STREAM)?;
    // So that connections of an earlier run do not keep the port.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(256)?;
    Ok(socket.into())
}

fn socket(addr: SocketAddr, kind: socket2::Type) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), kind.nonblocking(), None)?;
    if addr.is_ipv6() {
        // `[::]` is every address, IPv4 ones too, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests;

//! The DNS server: its configuration, its sockets, and the loop that answers datagrams, its own and those of tasks. What is
//! ours is answered where it is received, so that it never waits for upstream; what is not becomes a task. Not here: streams
//! (`tcp`).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use hickory_proto::op::ResponseCode;
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::forward::{Forwarder, Slot};
use super::inside::View;
use super::resolv::Upstreams;
use super::reverse::ReverseIndex;
use super::stats::{DnsStats, Rcode, Source};
use super::tcp;
use super::wire::{self, MAX_QUERY_BYTES, Request, Response, Transport};
use super::zone::Zone;
use crate::routing::{RoutingTable, TableHandle};
use crate::sys::pktinfo;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// For UDP and TCP both; port 0: one that is free for both.
    pub listen: SocketAddr,
    /// Who is asked for names that are not ours, in this order; empty: the name servers of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    /// How long one upstream server has for an answer.
    pub upstream_timeout: Duration,
    /// Read again when it changes.
    pub resolv_conf: PathBuf,
}

impl Default for DnsConfig {
    fn default() -> DnsConfig {
        DnsConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 8553)),
            upstreams: Vec::new(),
            upstream_timeout: Duration::from_secs(2),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
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

/// Datagrams taken in a row before others have their turn.
const BATCH: usize = 64;
/// Differences between tables taken into the reverse index in a row; each costs microseconds.
const DIFF_BATCH: usize = 64;
/// Bursts wait here while a turn of the thread's other work is done.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Whether a port is free for UDP and for TCP is only known by trying.
const PORT_TRIES: usize = 16;
const ERROR_PAUSE: Duration = Duration::from_millis(20);

impl DnsServer {
    /// Opens the sockets, and reads resolv.conf if that is to name the upstream servers. It may block for that moment.
    pub fn bind(config: DnsConfig, table: Arc<TableHandle>) -> Result<DnsServer, BindError> {
        let mut tries = PORT_TRIES;
        let (udp, tcp, addr) = loop {
            tries -= 1;
            let (udp, addr) = bind_udp(config.listen).map_err(|err| BindError::Udp {
                addr: config.listen,
                err,
            })?;
            match bind_tcp(addr) {
                Ok(tcp) => break (udp, tcp, addr),
                Err(err) if config.listen.port() == 0 && tries > 0 && err.kind() == io::ErrorKind::AddrInUse => {}
                Err(err) => return Err(BindError::Tcp { addr, err }),
            }
        };
        Ok(DnsServer::adopt(config, table, addr, udp, tcp))
    }

    /// As `bind`, with sockets that are open at `addr`.
    pub fn adopt(
        config: DnsConfig,
        table: Arc<TableHandle>,
        addr: SocketAddr,
        udp: std::net::UdpSocket,
        tcp: std::net::TcpListener,
    ) -> DnsServer {
        DnsServer {
            responder: Responder::new(DnsConfig { listen: addr, ..config }, table),
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
        let udp = Arc::new(UdpSocket::from_std(self.udp).map_err(watch)?);
        let tcp = TcpListener::from_std(self.tcp).map_err(watch)?;
        let handed_over = handed_over.map(drop).shared();
        let core = &self.responder.core;
        let client = Client::default();
        let serving = futures_util::future::join(
            serve_datagrams(core, &client, &udp, handed_over.clone()),
            tcp::serve(core, tcp, handed_over),
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

/// Who asks on a socket.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// What it sees, if it is a task; the table's services otherwise.
    view: Option<View>,
    /// Who knows other names; `None`: whom everybody asks.
    forwarder: Option<Arc<Forwarder>>,
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
            forwarder: Arc::new(Forwarder::new(upstreams, config.upstream_timeout, stats.clone())),
            stats,
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
            view: Some(view),
            forwarder: (!nameservers.is_empty()).then(|| Arc::new(own())),
        }
    }

    /// Answers a client's datagrams until it is dropped. Errors: the runtime cannot watch the socket.
    pub async fn serve(&self, client: Client, socket: std::net::UdpSocket) -> io::Result<()> {
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        serve_datagrams(&self.core, &client, &socket, std::future::pending()).await;
        Ok(())
    }

    /// Answers what comes on one stream of a client, to its end.
    pub async fn serve_stream(&self, client: &Client, stream: tokio::net::TcpStream, from: SocketAddr) {
        if let Err(error) = tcp::serve_connection(&self.core, client, stream, from).await {
            tracing::debug!(client = %from, %error, "DNS connection");
        }
    }

    /// Keeps the names of addresses up with the tables, in turns so short that no query waits for them; by one caller at a
    /// time. Never ends.
    pub async fn follow(&self) {
        follow_tables(&self.core).await;
    }
}

/// What answers, behind the sockets.
#[derive(Debug)]
pub(super) struct Core {
    table: Arc<TableHandle>,
    reverse: Mutex<ReverseIndex>,
    /// The table that the reverse index shows. std mutex: held for moments.
    indexed: Mutex<Arc<RoutingTable>>,
    forwarder: Arc<Forwarder>,
    upstream_timeout: Duration,
    stats: Arc<DnsStats>,
}

/// What became of a client's message.
pub(super) enum Handled {
    Nothing,
    Reply(Vec<u8>),
    /// `Core::finish` has the answer, later.
    Pending(Pending),
}

/// A query that upstream is to answer.
pub(super) struct Pending {
    request: Box<Request>,
    query: Vec<u8>,
    slot: Slot,
    forwarder: Arc<Forwarder>,
    arrived: Instant,
}

impl Core {
    /// Never waits.
    pub(super) fn handle(&self, client: &Client, message: &[u8], transport: Transport, from: SocketAddr) -> Handled {
        let arrived = Instant::now();
        let response = {
            let table = self.table.peek();
            let zone = Zone {
                table: &table,
                reverse: &self.lock_reverse(),
            };
            wire::respond(
                message,
                transport,
                &zone,
                client.view.as_ref(),
                arrived,
                &mut fastrand::Rng::new(),
            )
        };
        match response {
            Response::Ignore => Handled::Nothing,
            Response::Reply { bytes, code } => self.reply(bytes, code, Source::Local, arrived),
            Response::Forward(request) => {
                let forwarder = client.forwarder.as_ref().unwrap_or(&self.forwarder);
                let is_circle = forwarder.is_own_end(from);
                match forwarder.reserve().filter(|_| !is_circle) {
                    Some(slot) => Handled::Pending(Pending {
                        request,
                        query: message.to_vec(),
                        slot,
                        forwarder: forwarder.clone(),
                        arrived,
                    }),
                    None => self.refuse(&request, ResponseCode::Refused, arrived),
                }
            }
        }
    }

    /// What upstream says, or that it says nothing. Time: bounded by the upstream timeouts.
    pub(super) async fn finish(&self, pending: Pending) -> Option<Vec<u8>> {
        let Pending {
            request,
            query,
            slot,
            forwarder,
            arrived,
        } = pending;
        let handled = match forwarder.ask(slot, query, &request).await {
            Some((answer, code)) => self.reply(request.pass_on(answer), code, Source::Upstream, arrived),
            None => self.refuse(&request, ResponseCode::ServFail, arrived),
        };
        match handled {
            Handled::Reply(bytes) => Some(bytes),
            Handled::Nothing | Handled::Pending(_) => None,
        }
    }

    fn refuse(&self, request: &Request, code: ResponseCode, arrived: Instant) -> Handled {
        match request.fail(code) {
            Response::Reply { bytes, code } => self.reply(bytes, code, Source::Upstream, arrived),
            Response::Ignore | Response::Forward(_) => Handled::Nothing,
        }
    }

    fn reply(&self, bytes: Vec<u8>, code: u16, source: Source, arrived: Instant) -> Handled {
        self.stats.answered(Rcode::from(code), source, arrived.elapsed());
        Handled::Reply(bytes)
    }

    /// std mutex: nothing awaits under it, and only this thread takes it.
    fn lock_reverse(&self) -> MutexGuard<'_, ReverseIndex> {
        self.reverse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve_datagrams(
    core: &Arc<Core>,
    client: &Client,
    socket: &Arc<UdpSocket>,
    handed_over: impl Future<Output = ()>,
) {
    tokio::pin!(handed_over);
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    let mut forwards = JoinSet::new();
    loop {
        match answer_batch(core, client, socket, &mut buffer, &mut forwards) {
            Ok(n) => tokio::select! {
                biased;
                () = &mut handed_over => break,
                () = tokio::task::yield_now(), if n == BATCH => {}
                ready = socket.readable(), if n < BATCH => {
                    if let Err(error) = ready {
                        pause_after(&error).await;
                    }
                }
            },
            Err(error) => pause_after(&error).await,
        }
        while let Some(ended) = forwards.try_join_next() {
            log_panic(ended);
        }
    }
    while let Some(ended) = forwards.join_next().await {
        log_panic(ended);
    }
}

/// Answers datagrams until there are none, or enough for one turn. Returns how many it took.
fn answer_batch(
    core: &Arc<Core>,
    client: &Client,
    socket: &Arc<UdpSocket>,
    buffer: &mut [u8],
    forwards: &mut JoinSet<()>,
) -> io::Result<usize> {
    for n in 0..BATCH {
        let received = socket.try_io(Interest::READABLE, || pktinfo::recv(socket.as_fd(), buffer));
        let datagram = match received {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(n),
            Err(error) => return Err(error),
        };
        match core.handle(client, &buffer[..datagram.len], Transport::Udp, datagram.from) {
            Handled::Nothing => {}
            Handled::Reply(reply) => send(core, socket, &reply, &datagram),
            Handled::Pending(pending) => {
                let (core, socket) = (core.clone(), socket.clone());
                forwards.spawn(async move {
                    if let Some(reply) = core.finish(pending).await {
                        send(&core, &socket, &reply, &datagram);
                    }
                });
            }
        }
    }
    Ok(BATCH)
}

/// Sends a reply from the address that was asked. A reply that the socket does not take is lost, as any datagram may be.
fn send(core: &Core, socket: &UdpSocket, reply: &[u8], asked: &pktinfo::Datagram) {
    if let Err(error) = pktinfo::send(socket.as_fd(), reply, asked.from, asked.to) {
        core.stats.unsent();
        tracing::debug!(client = %asked.from, %error, "DNS reply not sent");
    }
}

async fn follow_tables(core: &Core) {
    let lock_indexed = || core.indexed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut indexed = lock_indexed().clone();
    let mut revision = core.table.subscribe();
    loop {
        revision.mark_unchanged();
        let next = core.table.load();
        let mut diffs = RoutingTable::diff(&indexed, &next).peekable();
        while diffs.peek().is_some() {
            {
                let mut reverse = core.lock_reverse();
                diffs.by_ref().take(DIFF_BATCH).for_each(|diff| reverse.apply(&diff));
            }
            tokio::task::yield_now().await;
        }
        drop(diffs);
        indexed = next;
        lock_indexed().clone_from(&indexed);
        if revision.changed().await.is_err() {
            // The handle is ours as well, so its sender cannot be gone.
            std::future::pending::<()>().await;
        }
    }
}

pub(super) async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "DNS socket");
    tokio::time::sleep(ERROR_PAUSE).await;
}

pub(super) fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a DNS task did not end by itself");
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

//! Connections to tasks of other nodes: a TLS connection for each, opened ahead so that no handshake stands in a client's
//! way. What the stream keeps: half-close (TLS's own goodbye), reset (an end without it), back pressure.
//! Not here: who connects to the task on the other node (`LastHop`), and what goes through.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream};

use super::LinkState;
use super::identity::{Identity, Peer};
use crate::model::proxy_protocol::{self, Addressed};
use crate::model::{Asker, ProxyProtocol};
use crate::places::Place;

/// Which task a tunnel is for, and whose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelRequest {
    /// The task's id.
    pub task: String,
    /// The port that it listens on.
    pub target: u16,
    pub client: Option<Addressed>,
    /// On whose behalf; `None`: a node of an earlier version does not say.
    pub asker: Option<Asker>,
}

#[derive(Serialize, Deserialize)]
struct Preface {
    task: String,
    target: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asker: Option<Asker>,
}

/// Why the other node does not connect to the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The task refused, or is not well.
    NotReached,
    TimedOut,
    /// No such task runs there (any more).
    Gone,
    /// The service does not publish that port, nor is it on the network of the task that asks.
    NotAllowed,
}

impl Refusal {
    fn to_byte(self) -> u8 {
        match self {
            Refusal::NotReached => 1,
            Refusal::TimedOut => 2,
            Refusal::Gone => 3,
            Refusal::NotAllowed => 4,
        }
    }

    fn error_of(byte: u8) -> io::Error {
        let (kind, text) = match byte {
            1 => (io::ErrorKind::ConnectionRefused, "the task refused the connection"),
            2 => (io::ErrorKind::TimedOut, "the task did not answer in time"),
            3 => (io::ErrorKind::NotFound, "the task left its node"),
            4 => (
                io::ErrorKind::PermissionDenied,
                "the service has no such port for who asks",
            ),
            _ => (
                io::ErrorKind::InvalidData,
                "the other node gave an answer that is not known",
            ),
        };
        io::Error::new(kind, text)
    }
}

const ACCEPTED: u8 = 0;

/// A stream to a task of another node, or from another node to a task of this one.
pub struct Tunnel {
    stream: TlsStream<TcpStream>,
    state: Arc<LinkState>,
    /// The node and the run of the program at the other end; `None` where they dialed us, and so will not be dialed.
    peer: Option<(Arc<str>, u64)>,
}

impl Tunnel {
    /// The socket below, for its options and errors.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref().0
    }

    /// The other end is about to end: it finishes what is open, and nothing new should be given to it.
    pub fn is_leaving(&self) -> bool {
        let peer = self.peer.as_ref();
        peer.is_some_and(|(node, instance)| self.state.leaving.contains(node, *instance))
    }

    /// The same, to be asked later.
    pub fn leaving(&self) -> impl Fn() -> bool + Send + use<> {
        let (state, peer) = (self.state.clone(), self.peer.clone());
        move || {
            let peer = peer.as_ref();
            peer.is_some_and(|(node, instance)| state.leaving.contains(node, *instance))
        }
    }

    /// Nothing has come: neither bytes nor the end.
    fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(&mut self.stream)
            .poll_read(cx, &mut ReadBuf::new(&mut byte))
            .is_pending()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream)
            .poll_read(cx, buffer)
            .map_err(|error| match error.kind() {
                // Without a goodbye it is no end.
                io::ErrorKind::UnexpectedEof => io::ErrorKind::ConnectionReset.into(),
                _ => error,
            })
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

thread_local! {
    /// Of this worker, by node.
    static POOLS: RefCell<HashMap<Arc<str>, Pool>> = RefCell::new(HashMap::new());
}

/// Connections to one node that were opened ahead.
struct Pool {
    addr: SocketAddr,
    ready: Vec<(Tunnel, Instant)>,
    n_opening: usize,
    /// So many are kept ready.
    wanted: usize,
    dialed_at: Instant,
}

/// Opens connections to tasks of other nodes. What it opens belongs to the thread that asked.
#[derive(Clone)]
pub struct Dialer {
    state: Arc<LinkState>,
}

impl Dialer {
    pub fn new(state: Arc<LinkState>) -> Dialer {
        Dialer { state }
    }

    /// Connects to a task of `node`, whose link is at `addr`. To be called within a runtime that lives as long as the
    /// connection; put a time limit around it.
    ///
    /// Errors: `ConnectionRefused`, `TimedOut`, `NotFound` when the task left, `PermissionDenied`, or that the node
    /// cannot be reached.
    pub async fn dial(&self, node: Arc<str>, addr: SocketAddr, request: TunnelRequest) -> io::Result<Tunnel> {
        let preface = write_preface(&request)?;
        while let Some(mut tunnel) = self.take(&node, addr) {
            match ask(&mut tunnel, &preface).await {
                Ok(ACCEPTED) => return Ok(tunnel),
                Ok(refusal) => return Err(Refusal::error_of(refusal)),
                // It ended while it waited, as when the other end is about to end: nothing was sent to a task.
                Err(_) => {}
            }
        }
        self.state
            .stats
            .dials_unready
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut tunnel = open(&self.state, &node, addr).await?;
        match ask(&mut tunnel, &preface).await? {
            ACCEPTED => Ok(tunnel),
            refusal => Err(Refusal::error_of(refusal)),
        }
    }

    /// One that stands ready; sees to it that others will.
    fn take(&self, node: &Arc<str>, addr: SocketAddr) -> Option<Tunnel> {
        self.state
            .stats
            .dials
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        POOLS.with(|pools| {
            let mut pools = pools.borrow_mut();
            let pool = pools.entry(node.clone()).or_insert_with(|| {
                tokio::spawn(keep(node.clone()));
                Pool {
                    addr,
                    ready: Vec::new(),
                    n_opening: 0,
                    wanted: READY_LEAST,
                    dialed_at: Instant::now(),
                }
            });
            pool.dialed_at = Instant::now();
            if pool.addr != addr {
                // The node moved: what stands to its old address may lead nowhere.
                pool.addr = addr;
                pool.ready.clear();
            }
            let taken = loop {
                let Some((mut tunnel, _)) = pool.ready.pop() else {
                    break None;
                };
                if tunnel.is_quiet() && !tunnel.is_leaving() {
                    break Some(tunnel);
                }
            };
            if taken.is_none() {
                pool.wanted = (pool.wanted * 2).min(READY_MOST);
            }
            while pool.ready.len() + pool.n_opening < pool.wanted {
                pool.n_opening += 1;
                tokio::spawn(open_ahead(self.state.clone(), node.clone(), addr));
            }
            taken
        })
    }
}

async fn open_ahead(state: Arc<LinkState>, node: Arc<str>, addr: SocketAddr) {
    let opened = tokio::time::timeout(OPEN_PATIENCE, open(&state, &node, addr)).await;
    // An error means that the thread ends.
    let _ = POOLS.try_with(|pools| {
        let mut pools = pools.borrow_mut();
        let Some(pool) = pools.get_mut(&node) else { return };
        pool.n_opening = pool.n_opening.saturating_sub(1);
        match opened {
            Ok(Ok(_)) if pool.addr != addr => {}
            Ok(Ok(tunnel)) => pool.ready.push((tunnel, Instant::now())),
            Ok(Err(error)) => tracing::debug!(%node, %addr, %error, "no connection ahead"),
            Err(_) => tracing::debug!(%node, %addr, "no connection ahead in time"),
        }
    });
}

/// Lets the pool of one node shrink with the demand, and ends with it.
async fn keep(node: Arc<str>) {
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let is_over = POOLS.try_with(|pools| {
            let mut pools = pools.borrow_mut();
            let Some(pool) = pools.get_mut(&node) else { return true };
            let now = Instant::now();
            pool.wanted = (pool.wanted - pool.wanted / 4).max(READY_LEAST);
            let n_over = pool.ready.len().saturating_sub(pool.wanted);
            // The oldest come first.
            pool.ready.drain(..n_over);
            pool.ready.retain_mut(|(tunnel, since)| {
                now.saturating_duration_since(*since) < READY_LONGEST && tunnel.is_quiet() && !tunnel.is_leaving()
            });
            let is_idle = now.saturating_duration_since(pool.dialed_at) > DEMAND_LASTS && pool.n_opening == 0;
            if is_idle {
                pools.remove(&node);
            }
            is_idle
        });
        if is_over.unwrap_or(true) {
            break;
        }
    }
}

/// Opens a connection that is ready for a preface: the other end has accepted us too.
async fn open(state: &Arc<LinkState>, node: &Arc<str>, addr: SocketAddr) -> io::Result<Tunnel> {
    let config = state.identity().and_then(|identity| identity.client_tunnel());
    let config = config.ok_or_else(|| io::Error::other("this node has no certificate yet"))?;
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    state
        .stats
        .handshakes
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let stream = TlsConnector::from(config)
        .connect(Identity::server_name(node)?, stream)
        .await?;
    let mut stream = TlsStream::Client(stream);
    let instance = stream.read_u64().await?;
    Ok(Tunnel {
        stream,
        state: state.clone(),
        peer: Some((node.clone(), instance)),
    })
}

async fn ask(tunnel: &mut Tunnel, preface: &[u8]) -> io::Result<u8> {
    tunnel.stream.write_all(preface).await?;
    tunnel.stream.flush().await?;
    tunnel.stream.read_u8().await
}

fn write_preface(request: &TunnelRequest) -> io::Result<Vec<u8>> {
    let head = Preface {
        task: request.task.clone(),
        target: request.target,
        asker: request.asker.clone(),
    };
    let head = serde_json::to_vec(&head).map_err(io::Error::other)?;
    let length = u16::try_from(head.len()).map_err(io::Error::other)?;
    let mut preface = length.to_be_bytes().to_vec();
    preface.extend_from_slice(&head);
    preface.extend(proxy_protocol::header(ProxyProtocol::V2, request.client));
    Ok(preface)
}

async fn read_preface(stream: &mut (impl AsyncRead + Unpin), length: u16) -> io::Result<TunnelRequest> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if length > PREFACE_BYTES_MAX {
        return Err(wrong("the preface is too long"));
    }
    let mut head = vec![0; usize::from(length)];
    stream.read_exact(&mut head).await?;
    let head: Preface = serde_json::from_slice(&head)?;
    let mut header = Vec::with_capacity(64);
    let client = loop {
        match proxy_protocol::read_v2(&header).map_err(|error| wrong(&error.to_string()))? {
            Some((_, client)) => break client,
            None if header.len() > PROXY_BYTES_MAX => return Err(wrong("the PROXY header is too long")),
            // Byte by byte at first, so that nothing behind it is taken: it is in memory already.
            None => header.push(stream.read_u8().await?),
        }
    };
    Ok(TunnelRequest {
        task: head.task,
        target: head.target,
        asker: head.asker,
        client,
    })
}

/// A tunnel whose task is still to be connected to.
pub struct PendingTunnel {
    tunnel: Tunnel,
}

impl PendingTunnel {
    /// Says that the task accepted; from here on the bytes are the task's.
    pub async fn accept(mut self) -> io::Result<Tunnel> {
        self.tunnel.stream.write_u8(ACCEPTED).await?;
        self.tunnel.stream.flush().await?;
        Ok(self.tunnel)
    }

    /// Says why not.
    pub async fn refuse(mut self, why: Refusal) {
        let say = async {
            self.tunnel.stream.write_u8(why.to_byte()).await?;
            self.tunnel.stream.shutdown().await
        };
        // Whether the other end still hears it is its own affair.
        let _ = tokio::time::timeout(PREFACE_PATIENCE, say).await;
    }
}

/// Serves one connection of another node until its request is known, and gives it to the handler. `place`: what it holds
/// among the tunnels of all nodes.
pub(super) async fn serve(
    state: Arc<LinkState>,
    peer: Peer,
    stream: TlsStream<TcpStream>,
    place: &Place<Arc<str>>,
) -> io::Result<()> {
    let mut stream = stream;
    stream.write_u64(state.instance).await?;
    stream.flush().await?;
    let mut draining = state.draining.subscribe();
    let is_draining = async { drop(draining.wait_for(|is_draining| *is_draining).await) };
    let length = tokio::select! {
        // Opened ahead: it may never be used.
        length = tokio::time::timeout(UNUSED_LONGEST, stream.read_u16()) => length??,
        () = is_draining => {
            stream.shutdown().await?;
            return Ok(());
        }
    };
    place.moved();
    let request = tokio::time::timeout(PREFACE_PATIENCE, read_preface(&mut stream, length)).await??;
    // Whose node has left the cluster gets nothing, whatever its certificate says.
    if !state.knows(&peer.node) {
        state.stats.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the node is not of this cluster",
        ));
    }
    let tunnel = Tunnel {
        stream,
        state: state.clone(),
        peer: None,
    };
    // Those that were only opened ahead go before it.
    let _busy = place.busy();
    state.handler().serve_tunnel(request, PendingTunnel { tunnel }).await;
    Ok(())
}

const READY_LEAST: usize = 2;
const READY_MOST: usize = 32;
const READY_LONGEST: Duration = Duration::from_secs(30);
const DEMAND_LASTS: Duration = Duration::from_secs(30);
const KEEP_EVERY: Duration = Duration::from_secs(5);
const OPEN_PATIENCE: Duration = Duration::from_secs(2);
/// Longer than they are kept ready at the other end.
const UNUSED_LONGEST: Duration = Duration::from_secs(60);
const PREFACE_PATIENCE: Duration = Duration::from_secs(5);
const PREFACE_BYTES_MAX: u16 = 1024;
const PROXY_BYTES_MAX: usize = 256;

//! Connections that programs inside network namespaces make to wherever services are, taken by one listener there. Not here:
//! how they come to that listener (`sys::vips`), and who may reach what (`Caller`, which others implement).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::balancer::Lease;
use super::core::{Connection, OpenConnections};
use super::crowd::Party;
use super::h1;
use super::listener::{self, Acceptor};
use super::outside::Sender;
use super::patience::Patience;
use super::relay::{self, Relay};
use super::speaks;
use super::tcp::{self, Accepted};
use super::upstream;
use super::wire::{Leg, Watched};
use super::{ProxyHandle, Shared};
use crate::model::{Mode, ServiceName, ServiceSpec};
use crate::routing::{CloseReason, Endpoint, EndpointState, Outcome, RoutingTable, Service};
use crate::sys::socket;

/// Who calls from inside one namespace, as far as this matters to where the call goes.
pub trait Caller: Send + Sync {
    /// Where a connection to `to` goes.
    fn destination(&self, table: &RoutingTable, to: SocketAddr) -> Destination;

    /// By which of its networks it reaches a service (the network's id).
    fn network_of(&self, service: &Service) -> Option<Arc<str>>;

    /// Whom it is known as to this machine. A program inside may bind to any address that it likes.
    fn address(&self) -> Option<Ipv4Addr>;

    /// Serves a connection to `Destination::Caller` to its end.
    fn serve(&self, stream: TcpStream, from: SocketAddr) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Where a connection from inside a namespace goes.
#[derive(Debug)]
pub enum Destination {
    /// To any endpoint of a service, as one to a published port does.
    Service(Arc<Service>),
    /// To this endpoint of a service, at the address of it that was asked for.
    Endpoint(Arc<Service>, Arc<Endpoint>),
    /// To the same address as this program's own namespace knows it; if it is of this machine itself, from the caller's.
    Outside,
    /// To what the caller has for it.
    Caller,
    /// It is reset.
    Nobody,
}

/// A listener inside a namespace that is served for as long as this lives. Connections go on without it.
#[derive(Debug)]
pub struct Serving {
    _stop: oneshot::Sender<()>,
    _kept: Kept,
}

/// Descriptors that a namespace takes besides those of connections, kept out of what connections may take.
#[derive(Debug)]
struct Kept(Arc<OpenConnections>);

impl Kept {
    fn new(open: Arc<OpenConnections>) -> Kept {
        open.n_kept.fetch_add(FILES_WITHIN, Ordering::Relaxed);
        Kept(open)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.n_kept.fetch_sub(FILES_WITHIN, Ordering::Relaxed);
    }
}

pub(super) fn serve(proxy: &ProxyHandle, listener: std::net::TcpListener, caller: Arc<dyn Caller>) -> Serving {
    let (stop, stopped) = oneshot::channel();
    let shared = proxy.shared.clone();
    let kept = Kept::new(shared.open.clone());
    let party = Party::task(N_SERVED.fetch_add(1, Ordering::Relaxed));
    proxy.spawn(Box::new(move || {
        Box::pin(async move {
            let acceptor = Within {
                party,
                sender: Sender::new(shared.outside.clone(), caller.address()),
                caller,
                shared: shared.clone(),
            };
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener::accept_loop(&listener, &"inside", &shared, acceptor, stopped).await,
                Err(error) => tracing::error!(%error, "a listener inside a network namespace cannot be watched"),
            }
        })
    }));
    Serving {
        _stop: stop,
        _kept: kept,
    }
}

/// The service that outgoing connections are counted by.
pub(super) fn outgoing() -> Service {
    Service::apart(ServiceSpec::new(ServiceName::outgoing()))
}

struct Within {
    party: Party,
    caller: Arc<dyn Caller>,
    /// What the caller sends outside.
    sender: Arc<Sender>,
    shared: Arc<Shared>,
}

impl Acceptor for Within {
    fn accepted(&mut self, stream: TcpStream, peer: SocketAddr) {
        let Ok(to) = stream.local_addr() else {
            return; // It is gone already.
        };
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let now = Instant::now();
        match self.caller.destination(&self.shared.table.peek(), to) {
            Destination::Service(service) => self.to_service(stream, peer, to.port(), service, now),
            Destination::Endpoint(service, endpoint) => {
                let connection = Connection::open(service, self.party, now);
                tokio::spawn(to_endpoint(connection, stream, endpoint, to));
            }
            Destination::Outside => {
                let connection = Connection::open(self.shared.outgoing.clone(), self.party, now);
                tokio::spawn(to_outside(connection, stream, self.sender.clone(), to));
            }
            Destination::Caller => drop(tokio::spawn(self.caller.serve(stream, peer))),
            Destination::Nobody => socket::reset_on_close(&stream),
        }
    }
}

impl Within {
    fn to_service(&self, client: TcpStream, peer: SocketAddr, target: u16, service: Arc<Service>, now: Instant) {
        let network = self.caller.network_of(&service);
        let connection = Connection::open(service, self.party, now);
        match connection.service().spec().mode {
            Mode::Tcp => tokio::spawn(tcp::serve(Box::new(Accepted {
                connection,
                client,
                announced: None,
                target,
                table: self.shared.table.clone(),
                network,
            }))),
            Mode::Http => tokio::spawn(speaks::serve(
                connection,
                client,
                peer,
                h1::Entry::Inside(network),
                target,
                self.shared.clone(),
            )),
        };
    }
}

/// One connection to one endpoint and no other, whatever the service's mode.
async fn to_endpoint(mut connection: Connection, client: TcpStream, endpoint: Arc<Endpoint>, to: SocketAddr) {
    let reached = Box::pin(reach(&mut connection, &client, endpoint, to)).await;
    let (stream, _lease) = match reached {
        Ok(reached) => reached,
        Err(reason) => {
            socket::reset_on_close(&client);
            return connection.close(reason);
        }
    };
    let whom = upstream::Whom {
        socket: &client,
        announced: None,
    };
    let early = upstream::proxy_header(connection.service().spec(), || whom.addresses());
    let mut relay = Relay::new(&connection, client, Leg::Tcp(stream), [early, Vec::new()]);
    let reason = relay::run(&mut relay).await;
    connection.close(reason);
}

async fn reach(
    connection: &mut Connection,
    client: &TcpStream,
    endpoint: Arc<Endpoint>,
    to: SocketAddr,
) -> Result<(TcpStream, Lease), CloseReason> {
    let party = connection.party();
    connection
        .admit(&mut Patience::new(Watched::Socket(client), party, &|| true))
        .await?;
    let spec = connection.service().spec().clone();
    if endpoint.state(Instant::now()) == EndpointState::Unready {
        return Err(CloseReason::ConnectFailed);
    }
    if !endpoint.begin(spec.limits.endpoint_connections) {
        return Err(CloseReason::Limit);
    }
    let lease = Lease::of(endpoint);
    connection.hold(Some(lease.endpoint().id()));
    let peer = || client.peer_addr().ok();
    let connect = upstream::connect_here(&spec, lease.endpoint(), to, peer, LONGER_THAN_THE_KERNEL);
    let connected = while_wanted(connection, client, connect).await?;
    let outcome = match &connected {
        Ok(_) => Outcome::Reached,
        Err(error) => Outcome::Failed(error.kind()),
    };
    lease.endpoint().report(outcome, Instant::now());
    connected.map(|stream| (stream, lease)).map_err(reason_of)
}

async fn to_outside(connection: Connection, client: TcpStream, sender: Arc<Sender>, to: SocketAddr) {
    let connect = sender.connect(to, LONGER_THAN_THE_KERNEL);
    let connected = Box::pin(while_wanted(&connection, &client, connect)).await;
    let reason = match connected.and_then(|connected| connected.map_err(reason_of)) {
        Ok(stream) => {
            let mut relay = Relay::new(&connection, client, Leg::Tcp(stream), [Vec::new(), Vec::new()]);
            relay::run(&mut relay).await
        }
        Err(reason) => {
            socket::reset_on_close(&client);
            reason
        }
    };
    connection.close(reason);
}

/// Waits for a connection to where nobody else can be asked instead: as long as the client does, or until the kernel has sent its
/// SYN in vain as often as for a program that connects by itself. Who has ended his side may have given up, or wait for an
/// answer, and has the time of one attempt at an endpoint more.
///
/// Errors: the client is gone, or the connection was ended.
async fn while_wanted<T>(
    connection: &Connection,
    client: &TcpStream,
    connect: impl Future<Output = T>,
) -> Result<T, CloseReason> {
    let is_over = async {
        // tokio counts the end of the other side to PRIORITY, which nothing else is.
        let ready = client.ready(Interest::ERROR | Interest::PRIORITY).await;
        if ready.is_ok_and(|ready| !ready.is_error()) {
            let rest = client.ready(Interest::ERROR);
            if tokio::time::timeout(connection.service().spec().timeouts.connect, rest)
                .await
                .is_err()
            {
                return CloseReason::ConnectTimeout;
            }
        }
        CloseReason::ClientRst
    };
    tokio::select! {
        biased;
        connected = connect => Ok(connected),
        reason = connection.ended() => Err(reason),
        reason = is_over => Err(reason),
    }
}

fn reason_of(error: io::Error) -> CloseReason {
    match error.kind() {
        io::ErrorKind::TimedOut => CloseReason::ConnectTimeout,
        _ => CloseReason::ConnectFailed,
    }
}

/// The kernel's own patience is 67 or 127 s by default (net.ipv4.tcp_syn_retries).
const LONGER_THAN_THE_KERNEL: Duration = Duration::from_secs(3600);
/// Namespaces that were served so far: each is a party of its own.
static N_SERVED: AtomicU64 = AtomicU64::new(0);
/// Listener, BPF link, trie of addresses, two sockets for names.
const FILES_WITHIN: usize = 5;

//! Accepts connections on one worker and gives each of one port to a task of its own. Not here: which ports there are
//! (`worker`, `manager`), and what becomes of connections from inside tasks (`within`).

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::Shared;
use super::core::Connection;
use super::crowd::Party;
use super::entrance::{self, Asks};
use super::h1;
use super::speaks;
use super::tcp::{self, Accepted};
use crate::model::{EntryPointSpec, Mode};
use crate::routing::{Listen, ListenKind, Route, RoutingTable, Service};
use crate::sys::socket;
use crate::tls::Terminator;

/// What becomes of accepted connections.
pub(super) trait Acceptor {
    fn accepted(&mut self, stream: TcpStream, peer: SocketAddr);
}

/// Accepts connections to a port until `stop` is dropped or sent.
pub(super) async fn serve_port(
    listener: Arc<TcpListener>,
    listen: Listen,
    shared: Arc<Shared>,
    stop: oneshot::Receiver<()>,
) {
    if listen == Listen::VIPS {
        let acceptor = VipAcceptor { shared: shared.clone() };
        return accept_loop(&listener, &listen, &shared, acceptor, stop).await;
    }
    let acceptor = PortAcceptor {
        listen,
        route: Known::default(),
        shared: shared.clone(),
    };
    accept_loop(&listener, &listen, &shared, acceptor, stop).await;
}

/// Accepts until `stop` is dropped; then whoever waits in the kernel's queue is still accepted. Once `stop` is sent,
/// another process has the socket as well, and the queue is left to it. `what` names the listener where accepting fails.
pub(super) async fn accept_loop(
    listener: &TcpListener,
    what: &(dyn Display + Sync),
    shared: &Shared,
    mut acceptor: impl Acceptor,
    stop: oneshot::Receiver<()>,
) {
    tokio::pin!(stop);
    let mut backoff = FIRST_BACKOFF;
    loop {
        let accept = async {
            shared.open.wait_for_room().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            biased;
            is_handed_over = &mut stop => match is_handed_over {
                Ok(()) => return,
                Err(_) => break,
            },
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff = FIRST_BACKOFF;
                acceptor.accepted(stream, peer);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Out of descriptors or memory: those who wait stay in the kernel's queue meanwhile.
                tracing::warn!(listen = %what, %error, "accept");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
        }
    }
    // Closing a listening socket resets those in its queue.
    while let Some(Ok((stream, peer))) = accept_now(listener).await {
        acceptor.accepted(stream, peer);
    }
}

/// Accepts one that waits already; `None` when none does.
async fn accept_now(listener: &TcpListener) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    tokio::select! {
        biased;
        accepted = listener.accept() => Some(accepted),
        () = tokio::task::yield_now() => None,
    }
}

struct PortAcceptor {
    listen: Listen,
    route: Known,
    shared: Arc<Shared>,
}

/// What a port is for, as of a revision of the table.
#[derive(Default)]
struct Known {
    /// `None`: not looked up yet.
    revision: Option<u64>,
    /// `None` once the port left the table.
    door: Option<Door>,
}

/// What a connection is for, when it is accepted.
struct Door {
    service: Arc<Service>,
    target: u16,
    entry: h1::Entry,
    /// Of an entry point.
    before: Option<Before>,
}

/// What an entry point asks of connections before HTTP.
struct Before {
    spec: Arc<EntryPointSpec>,
    tls: Option<Arc<Terminator>>,
    has_streams: bool,
}

impl Door {
    /// What listens there, as `table` has it.
    fn of(shared: &Shared, table: &RoutingTable, listen: Listen, route: &Route) -> Option<Door> {
        let mut before = None;
        let (service, entry) = match route.kind {
            ListenKind::EntryPoint => {
                let entry_point = table.entry_point_at(&listen)?;
                let tls = match entry_point.spec().is_tls {
                    true => Some(shared.tls.as_ref()?.of(entry_point.name())?.clone()),
                    false => None,
                };
                let spec = entry_point.spec().clone();
                before = Some(Before {
                    spec,
                    tls,
                    has_streams: entry_point.has_streams(),
                });
                (entry_point.connections().clone(), h1::Entry::Front(listen))
            }
            ListenKind::Published | ListenKind::Vip => {
                (table.service(&route.service)?.clone(), h1::Entry::Listener(listen))
            }
        };
        Some(Door {
            service,
            target: route.target,
            entry,
            before,
        })
    }
}

impl Acceptor for PortAcceptor {
    fn accepted(&mut self, stream: TcpStream, peer: SocketAddr) {
        serve(
            &self.shared,
            self.route.look_up(&self.shared, self.listen),
            stream,
            peer,
        );
    }
}

/// Connections to all VIPs: which it is, each says by its own address.
struct VipAcceptor {
    shared: Arc<Shared>,
}

impl Acceptor for VipAcceptor {
    fn accepted(&mut self, stream: TcpStream, peer: SocketAddr) {
        let Ok(to) = stream.local_addr() else {
            return; // It is gone already.
        };
        let listen = Listen {
            ip: Some(to.ip().to_canonical()),
            port: to.port(),
        };
        let table = self.shared.table.peek();
        // None for who has found the listener itself.
        let route = table.route(&listen).filter(|route| route.kind == ListenKind::Vip);
        let door = route.and_then(|route| Door::of(&self.shared, &table, listen, route));
        serve(&self.shared, door.as_ref(), stream, peer);
    }
}

/// Gives a connection to a task of its own; resets it where there is no service.
fn serve(shared: &Arc<Shared>, door: Option<&Door>, stream: TcpStream, peer: SocketAddr) {
    let Some(Door {
        service,
        target,
        entry,
        before,
    }) = door
    else {
        // The port left the table and its listener is about to.
        socket::reset_on_close(&stream);
        return;
    };
    let mut trusted = &shared.config.trusted_proxies[..];
    let mut asks = None;
    if let Some(before) = before {
        trusted = before.spec.trusted_proxies.as_deref().unwrap_or(trusted);
        asks = Some(Asks {
            is_announced: before.spec.is_announced(peer.ip()),
            tls: before.tls.clone(),
            has_streams: before.has_streams,
        });
    }
    let party = match &asks {
        // It stands for many, until it has said for whom.
        Some(Asks { is_announced: true, .. }) => Party::ALONE,
        _ => Party::client(peer.ip(), trusted),
    };
    let connection = Connection::open(service.clone(), party, Instant::now());
    if let Some(asks) = asks.filter(Asks::are_any) {
        tokio::spawn(entrance::serve(
            connection,
            stream,
            peer,
            entry.clone(),
            shared.clone(),
            asks,
        ));
        return;
    }
    match connection.service().spec().mode {
        Mode::Tcp => tokio::spawn(tcp::serve(Box::new(Accepted {
            connection,
            client: stream,
            announced: None,
            target: *target,
            table: shared.table.clone(),
            network: None,
        }))),
        Mode::Http => tokio::spawn(speaks::serve(
            connection,
            stream,
            peer,
            entry.clone(),
            *target,
            shared.clone(),
        )),
    };
}

impl Known {
    /// What is behind this listener now. Looked up once per revision.
    fn look_up(&mut self, shared: &Shared, listen: Listen) -> Option<&Door> {
        let table = shared.table.peek();
        if self.revision != Some(table.revision()) {
            let route = table.route(&listen);
            self.door = route.and_then(|route| Door::of(shared, &table, listen, route));
            self.revision = Some(table.revision());
        }
        self.door.as_ref()
    }
}

/// Errors of a connection that went away while it waited; the listener is well.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_millis(500);

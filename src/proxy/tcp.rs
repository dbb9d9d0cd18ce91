//! One client connection in tcp mode: admitted, connected to an endpoint, relayed, closed for one reason.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::balancer::{Lease, Wish};
use super::core::Connection;
use super::park;
use super::patience::Patience;
use super::relay::{self, Relay};
use super::rounds::Rounds;
use super::sealed::Sealed;
use super::secured::Offer;
use super::upstream::{self, Behalf, Tries, Upstream, Whom};
use super::wire::{Client, Leg, Watched, Wire};
use crate::model::{Balance, Passive};
use crate::routing::{Asker, CloseReason, TableHandle};

/// A connection that was accepted and waits for its task's first turn. Many may: this is what each of them costs.
pub(super) struct Accepted<S = TcpStream> {
    pub(super) connection: Connection,
    pub(super) client: S,
    /// The client's address, where a proxy in front has said it.
    pub(super) announced: Option<SocketAddr>,
    pub(super) target: u16,
    pub(super) table: Arc<TableHandle>,
    /// The network by which a task called from inside.
    pub(super) network: Option<Arc<str>>,
}

/// A client with a socket of its own; what passes on it may be sealed.
trait OwnSocket: Client {
    fn socket(&self) -> &TcpStream;
}

impl OwnSocket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl OwnSocket for Sealed {
    fn socket(&self) -> &TcpStream {
        Sealed::socket(self)
    }
}

/// From accept to a relay with a connected endpoint; `None`: it is over. Boxed: most of a connection's life needs none of
/// this state, and a task is as large as the largest state that it may be in.
type Beginning<S> = Pin<Box<dyn Future<Output = Option<(Relay<Connection, S, Leg>, Lease)>> + Send>>;

fn begin<S: OwnSocket + 'static>(accepted: Box<Accepted<S>>) -> Beginning<S> {
    Box::pin(async move {
        let Accepted {
            mut connection,
            client,
            announced,
            target,
            table,
            network,
        } = *accepted;
        let whom = Whom {
            socket: client.socket(),
            announced,
        };
        let connected = connect(&mut connection, &client, announced, target, &table, network.as_ref()).await;
        let Upstream { stream, lease, .. } = match connected {
            Ok(upstream) => upstream,
            Err(reason) => {
                client.reset_on_close();
                connection.close(reason);
                return None;
            }
        };
        let early = early(&connection, whom, &stream);
        connection.hold(Some(lease.endpoint().id()));
        let is_judged = connection.service().spec().passive == Passive::Strict;
        let asker = match is_judged && (announced.is_some() || client.tcp().is_none()) {
            true => whom.peer(),
            false => None,
        };
        // One whose TLS was ended here keeps its session's keys.
        let is_parkable = client.tcp().is_some() && stream.tcp().is_some();
        let mut relay = Relay::new(connection, client, stream, [early, Vec::new()]);
        if asker.is_some() {
            // Here, where the room for it is: few have a use for that.
            relay_judged(relay, lease, asker).await;
            return None;
        }
        if is_parkable {
            relay.let_park();
        }
        Some((relay, lease))
    })
}

/// A client's connection with what it is relayed to.
pub(super) type TcpRelay = Relay<Connection, TcpStream, Leg>;

/// Serves one client from its beginning to its close, or until it is parked.
pub(super) async fn serve(accepted: Box<Accepted>) {
    // Not borrowed from before they are moved, or they would be held twice.
    let Some((mut relay, mut lease)) = begin(accepted).await else {
        return;
    };
    // As `go_on`, whose future in this one would be larger than both.
    loop {
        let reason = relay::run_until_quiet(&mut relay).await;
        match rest(relay, lease, reason) {
            Some(back) => (relay, lease) = back,
            None => return,
        }
    }
}

/// Relays until the close, for a client whom its socket does not tell: the other end is a proxy, which is not who asks, or it is sealed.
async fn relay_judged<S: Wire>(mut relay: Relay<Connection, S, Leg>, lease: Lease, asker: Option<SocketAddr>) {
    let reason = relay::run(&mut relay).await;
    judge(&relay, asker, &lease, reason);
    relay.into_connection().close(reason);
}

/// Serves a client whose TLS was ended here, from its beginning to its close. It is not parked.
pub(super) async fn serve_opened(accepted: Box<Accepted<Sealed>>) {
    let Some((mut relay, _lease)) = begin(accepted).await else {
        return;
    };
    let reason = relay::run(&mut relay).await;
    relay.into_connection().close(reason);
}

/// What the endpoint is told before the client's first byte.
fn early(connection: &Connection, client: Whom<'_>, upstream: &Leg) -> Vec<u8> {
    match upstream {
        Leg::Tcp(_) => upstream::proxy_header(connection.service().spec(), || client.addresses()),
        // The node of a remote task tells it itself.
        Leg::Tunnel(_) => Vec::new(),
    }
}

/// Relays until the close, or until it is parked.
///
/// A block, since an `async fn` would keep its arguments twice: a task of this size is there for each connection.
#[expect(clippy::manual_async_fn, reason = "half the size")]
pub(super) fn go_on(mut relay: TcpRelay, mut lease: Lease) -> impl Future<Output = ()> {
    async move {
        loop {
            let reason = relay::run_until_quiet(&mut relay).await;
            match rest(relay, lease, reason) {
                Some(back) => (relay, lease) = back,
                None => return,
            }
        }
    }
}

/// Closes a relay for this reason, or parks it. Gives back what could not be parked.
#[inline(always)]
fn rest(relay: TcpRelay, lease: Lease, reason: Option<CloseReason>) -> Option<(TcpRelay, Lease)> {
    let Some(reason) = reason else {
        return park::park(relay, lease).err();
    };
    if relay.connection().service().spec().passive == Passive::Strict {
        judge(&relay, relay.client_addr(), &lease, reason);
    }
    relay.into_connection().close(reason);
    None
}

/// Where it is asked for: an endpoint that ends a connection without a word is as bad as one that takes none.
fn judge<S: Wire>(relay: &Relay<Connection, S, Leg>, client: Option<SocketAddr>, lease: &Lease, reason: CloseReason) {
    let has_ended = matches!(reason, CloseReason::UpstreamFin | CloseReason::UpstreamRst);
    match relay.has_answered() {
        true => lease.endpoint().answered(),
        false if has_ended => {
            // Without an address the client is gone already.
            if let Some(peer) = client {
                let service = relay.connection().service();
                service.left_unanswered(lease.endpoint(), Asker::of(peer), Instant::now());
            }
        }
        false => {}
    }
}

async fn connect<S: OwnSocket>(
    connection: &mut Connection,
    client: &S,
    announced: Option<SocketAddr>,
    target: u16,
    table: &TableHandle,
    network: Option<&Arc<str>>,
) -> Result<Upstream, CloseReason> {
    let client = Whom {
        socket: client.socket(),
        announced,
    };
    let rounds = Rounds::of_client(client.socket, table)?;
    let is_hashed = connection.service().spec().balance == Balance::Hash;
    let peer = is_hashed.then(|| client.peer()).flatten();
    let behalf = Behalf {
        client: Some(client),
        network,
        rounds: Some(&rounds),
        wish: peer.map_or_else(Wish::default, |peer| Wish::of_client(peer.ip())),
        offer: Offer::default(),
    };
    let client = client.socket;
    // Whatever it has sent may be all that it has to say.
    let mut patience = Patience::new(Watched::Socket(client), connection.party(), &|| true);
    if !connection.try_admit() {
        Box::pin(connection.admit(&mut patience)).await?;
    }
    let connection = &*connection;
    let mut tries = Tries::default();
    let mut upstream = tokio::select! {
        biased;
        result = upstream::connect(
            table, connection.service(), target, behalf, &mut tries, &mut patience, |_, _| None,
        ) => result,
        reason = connection.ended() => Err(reason),
        // A client that waits may lose patience; one that has only ended its half has not.
        _ = client.ready(Interest::ERROR) => Err(CloseReason::ClientRst),
    }?;
    upstream.lease.keep(rounds.into_round_of(&upstream.stream));
    Ok(upstream)
}

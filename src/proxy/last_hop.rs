//! The last hop: streams that came from other nodes are connected to the tasks of this one. Not here: how they came
//! (`link`), and who may send them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::balancer::Lease;
use super::core::Connection;
use super::crowd::Party;
use super::relay::{self, Relay};
use super::upstream;
use super::wire::{Leg, PendingTunnel, Refused, TunnelLeg};
use crate::routing::{CloseReason, Endpoint, EndpointState, Outcome, Service};

/// What a stream from another node asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HopRequest {
    /// The task's id.
    pub task: String,
    /// The port that it listens on.
    pub target: u16,
    /// The client's address, and the address that it came to.
    pub client: Option<(SocketAddr, SocketAddr)>,
}

/// Connects one stream to its task, and relays until it is over. On a worker.
pub(super) async fn serve(shared: Arc<Shared>, request: HopRequest, pending: Box<dyn PendingTunnel>) {
    let found = match find(&shared, &request.task).await {
        Some((service, _)) if !publishes(&service, request.target) => Err(Refused::NotAllowed),
        Some(found) => Ok(found),
        None => Err(Refused::Gone),
    };
    let (service, endpoint) = match found {
        Ok(found) => found,
        Err(why) => return pending.refuse(why).await,
    };
    let now = Instant::now();
    if endpoint.state(now) == EndpointState::Unready || !endpoint.begin(service.spec().limits.endpoint_connections) {
        return pending.refuse(Refused::NotReached).await;
    }
    let lease = Lease::of(endpoint);
    let endpoint = lease.endpoint().clone();
    let spec = service.spec();
    let client = || request.client.map(|(client, _)| client);
    let connected = upstream::connect_here(spec, &endpoint, request.target, client, spec.timeouts.connect).await;
    let stream = match connected {
        Ok(stream) => {
            endpoint.report(Outcome::Reached, Instant::now());
            stream
        }
        Err(error) => {
            endpoint.report(Outcome::Failed, Instant::now());
            tracing::debug!(service = %service.name(), task = request.task, %error, "connect for another node");
            let why = match error.kind() {
                std::io::ErrorKind::TimedOut => Refused::TimedOut,
                _ => Refused::NotReached,
            };
            return pending.refuse(why).await;
        }
    };
    let early = upstream::proxy_header(service.spec(), || request.client);
    let trusted = &shared.config.trusted_proxies;
    let party = request
        .client
        .map_or(Party::ALONE, |(client, _)| Party::client(client.ip(), trusted));
    let connection = Connection::open_last_hop(service, party, now);
    connection.hold(Some(endpoint.id()));
    let reason = match pending.accept().await {
        Ok(tunnel) => {
            let client = Leg::Tunnel(TunnelLeg::new(tunnel));
            let mut relay = Relay::new(&connection, client, Leg::Tcp(stream), [early, Vec::new()]);
            relay::run(&mut relay).await
        }
        Err(_) => CloseReason::ClientRst,
    };
    connection.close(reason);
}

/// Whether other nodes may ask for a port of the service: from inside its networks every port of it is reached.
fn publishes(service: &Service, target: u16) -> bool {
    let spec = service.spec();
    !spec.attachments.is_empty() || spec.publish.iter().any(|port| port.target == target)
}

/// The task in the table of this node. The other node may know it a moment sooner.
async fn find(shared: &Shared, task: &str) -> Option<(Arc<Service>, Arc<Endpoint>)> {
    let look = || {
        let table = shared.table.peek();
        table
            .local_task(task)
            .map(|(service, endpoint)| (service.clone(), endpoint.clone()))
    };
    let mut revision = shared.table.subscribe();
    let waiting = async {
        loop {
            if let Some(found) = look() {
                return Some(found);
            }
            revision.changed().await.ok()?;
        }
    };
    tokio::time::timeout(LATE_AT_MOST, waiting).await.ok().flatten()
}

/// How much later this node may learn of a task of its own than another node.
const LATE_AT_MOST: Duration = Duration::from_millis(250);

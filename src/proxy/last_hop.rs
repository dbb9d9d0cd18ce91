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
use crate::model::{Asker, ServiceSpec};
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
    /// On whose behalf; `None`: the other node does not say.
    pub asker: Option<Asker>,
}

/// Connects one stream to its task, and relays until it is over. On a worker.
pub(super) async fn serve(shared: Arc<Shared>, request: HopRequest, pending: Box<dyn PendingTunnel>) {
    let found = match find(&shared, &request.task).await {
        Some((service, _)) if !may_ask(service.spec(), request.target, request.asker.as_ref()) => {
            Err(Refused::NotAllowed)
        }
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
    let addr = endpoint.dial_addr(request.target);
    let connected = upstream::connect_here(spec, &endpoint, addr, client, spec.timeouts.connect).await;
    let stream = match connected {
        Ok(stream) => {
            endpoint.report(Outcome::Reached, Instant::now());
            stream
        }
        Err(error) => {
            endpoint.report(Outcome::Failed(error.kind()), Instant::now());
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

/// Whether a port of a service's tasks may be asked for: one that it publishes or that a route leads to by everybody; any by a task of one of its networks,
/// from where all are reached. Nodes of earlier versions do not say who asks, and are believed that they have looked.
fn may_ask(spec: &ServiceSpec, target: u16, asker: Option<&Asker>) -> bool {
    let is_attached = |network: Option<&Arc<str>>| {
        let mut attachments = spec.attachments.iter();
        attachments.any(|attachment| network.is_none_or(|network| attachment.network == *network))
    };
    let is_published = spec.publish.iter().any(|port| port.target == target);
    let is_routed = spec.routes.iter().any(|route| route.target == target);
    is_published
        || is_routed
        || match asker {
            Some(Asker::Client) => false,
            Some(Asker::Network(network)) => is_attached(Some(network)),
            None => is_attached(None),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Attachment, ServiceName};

    #[test]
    fn a_port_is_had_by_who_is_on_the_network_or_where_it_is_published() {
        let mut spec = ServiceSpec::new(ServiceName::new("db").unwrap());
        spec.publish = vec!["8080:80".parse().unwrap()];
        let by = |network: &str| Asker::Network(network.into());
        let [own, other] = [by("own"), by("other")];
        for asker in [None, Some(&Asker::Client), Some(&own)] {
            assert!(may_ask(&spec, 80, asker), "{asker:?}");
            assert!(!may_ask(&spec, 5432, asker), "{asker:?}");
        }
        let attachment = |network: &str| Attachment {
            network: network.into(),
            network_name: Arc::default(),
            vip: None,
            aliases: Vec::new(),
            subnet: None,
        };
        spec.attachments = vec![attachment("own"), attachment("second")];
        assert!(may_ask(&spec, 5432, Some(&own)) && may_ask(&spec, 5432, Some(&by("second"))));
        assert!(!may_ask(&spec, 5432, Some(&other)), "a task of another network");
        assert!(!may_ask(&spec, 5432, Some(&Asker::Client)), "no port of its own");
        assert!(may_ask(&spec, 80, Some(&other)) && may_ask(&spec, 80, Some(&Asker::Client)));
        assert!(may_ask(&spec, 5432, None), "an earlier version looks by itself");
    }
}

//! Addresses and ports: subnets for networks, VIPs for services, published ports for those that name none. What was given
//! stays as long as it is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bollard_stubs::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum as Protocol, EndpointPortConfigPublishModeEnum as PublishMode,
    EndpointSpecModeEnum,
};
use ipnet::Ipv4Net;

use super::draft::Draft;
use super::{Context, Plan};
use crate::model::swarm::{Endpoint, Id, Network, Object, Service, ServiceSpec, Vip, fill_port};
use crate::store::Snapshot;

/// Ports for services that name none.
const PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    let networks = place_networks(context.snapshot, &mut draft);
    let mut open: Vec<&Arc<Service>> = context
        .snapshot
        .services()
        .filter(|service| !is_up_to_date(service, &networks))
        .collect();
    if open.is_empty() {
        return draft.into_plan();
    }
    // Who came first has the choice.
    open.sort_by_key(|service| (service.meta.created_at, service.id.clone()));
    let mut taken = Taken::of(context.snapshot, &open);
    for service in open {
        let endpoint = taken.endpoint(service, &networks);
        draft.change_service(service, |service| service.endpoint = endpoint);
    }
    draft.into_plan()
}

/// The networks with their subnets, those included that are given one now.
fn place_networks(snapshot: &Snapshot, draft: &mut Draft) -> BTreeMap<Id, Arc<Network>> {
    let mut networks: BTreeMap<Id, Arc<Network>> = snapshot
        .networks()
        .map(|network| (network.id.clone(), network.clone()))
        .collect();
    let Some(swarm) = snapshot.swarm() else { return networks };
    let mut used: Vec<Ipv4Net> = networks.values().filter_map(|network| network.subnet).collect();
    let open: Vec<Id> = networks
        .values()
        .filter(|network| network.subnet.is_none())
        .map(|network| network.id.clone())
        .collect();
    for id in open {
        let mut subnets = swarm
            .addr_pool
            .iter()
            .filter_map(|pool| pool.subnets(swarm.subnet_size).ok())
            .flatten();
        let overlaps =
            |one: &Ipv4Net, other: &Ipv4Net| one.contains(&other.network()) || other.contains(&one.network());
        let Some(subnet) = subnets.find(|subnet| !used.iter().any(|used| overlaps(used, subnet))) else {
            tracing::warn!(network = %id, "the swarm's address pool is used up");
            continue;
        };
        used.push(subnet);
        if let Some(network) = networks.get_mut(&id) {
            let network = Arc::make_mut(network);
            network.subnet = Some(subnet);
            network.gateway = subnet.hosts().next();
            draft.put(Object::Network(Arc::new(network.clone())));
        }
    }
    networks
}

fn wanted_spec(service: &Service) -> bollard_stubs::models::EndpointSpec {
    service.spec.endpoint_spec.clone().unwrap_or_default()
}

fn ports_of(spec: &bollard_stubs::models::EndpointSpec) -> Vec<EndpointPortConfig> {
    let mut ports = spec.ports.clone().unwrap_or_default();
    ports.iter_mut().for_each(fill_port);
    ports
}

/// The networks in which a service is to have an address of its own.
fn vip_networks(service: &Service, networks: &BTreeMap<Id, Arc<Network>>) -> BTreeSet<Id> {
    let spec = wanted_spec(service);
    if matches!(spec.mode, Some(EndpointSpecModeEnum::DNSRR)) {
        return BTreeSet::new();
    }
    let attached = service
        .networks()
        .iter()
        .filter_map(|attachment| attachment.target.as_deref());
    let mut wanted: BTreeSet<Id> = attached.filter_map(|id| Some(networks.get(id)?.id.clone())).collect();
    if ports_of(&spec)
        .iter()
        .any(|port| port.publish_mode == Some(PublishMode::INGRESS))
    {
        wanted.extend(
            networks
                .values()
                .find(|network| network.is_ingress)
                .map(|network| network.id.clone()),
        );
    }
    // One that has no subnet has no addresses to give.
    wanted.retain(|id| networks.get(id).is_some_and(|network| network.subnet.is_some()));
    wanted
}

fn is_up_to_date(service: &Service, networks: &BTreeMap<Id, Arc<Network>>) -> bool {
    let has: BTreeSet<Id> = service.endpoint.vips.iter().map(|vip| vip.network.clone()).collect();
    service.endpoint.spec.as_ref() == Some(&wanted_spec(service)) && has == vip_networks(service, networks)
}

/// What others have.
struct Taken {
    ports: BTreeSet<(String, i64)>,
    addrs: BTreeSet<(Id, Ipv4Addr)>,
}

fn protocol(port: &EndpointPortConfig) -> String {
    port.protocol.unwrap_or(Protocol::TCP).to_string()
}

impl Taken {
    fn of(snapshot: &Snapshot, open: &[&Arc<Service>]) -> Taken {
        let mut taken = Taken {
            ports: BTreeSet::new(),
            addrs: BTreeSet::new(),
        };
        for service in snapshot.services() {
            let asked = ports_of(&wanted_spec(service));
            let is_open = open.iter().any(|open| open.id == service.id);
            // Those of a service that is given others now are free unless it keeps them.
            let given = service.endpoint.ports.iter().filter(|_| !is_open);
            for port in asked.iter().chain(given) {
                if let Some(published @ 1..) = port.published_port {
                    taken.ports.insert((protocol(port), published));
                }
            }
            taken
                .addrs
                .extend(service.endpoint.vips.iter().map(|vip| (vip.network.clone(), vip.addr)));
        }
        taken
    }

    fn endpoint(&mut self, service: &Service, networks: &BTreeMap<Id, Arc<Network>>) -> Endpoint {
        let spec = wanted_spec(service);
        let mut ports = ports_of(&spec);
        let mut kept = service.endpoint.ports.clone();
        for port in &mut ports {
            if port.published_port.is_some_and(|published| published > 0)
                || port.publish_mode == Some(PublishMode::HOST)
            {
                continue;
            }
            let before = kept.iter().position(|before| {
                let is_same = before.target_port == port.target_port && protocol(before) == protocol(port);
                let is_free = before
                    .published_port
                    .is_some_and(|number| !self.ports.contains(&(protocol(port), number)));
                is_same && is_free && before.published_port.is_some_and(|number| PORTS.contains(&number))
            });
            port.published_port = match before {
                Some(at) => kept.remove(at).published_port,
                None => PORTS
                    .clone()
                    .find(|number| !self.ports.contains(&(protocol(port), *number))),
            };
            if let Some(number) = port.published_port {
                self.ports.insert((protocol(port), number));
            }
        }
        let wanted = vip_networks(service, networks);
        let mut vips: Vec<Vip> = service
            .endpoint
            .vips
            .iter()
            .filter(|vip| wanted.contains(&vip.network))
            .cloned()
            .collect();
        for id in wanted {
            if vips.iter().any(|vip| vip.network == id) {
                continue;
            }
            let network = networks
                .get(&id)
                .and_then(|network| Some((network.subnet?, network.gateway)));
            let Some((subnet, gateway)) = network else { continue };
            let is_free = |addr: &Ipv4Addr| Some(*addr) != gateway && !self.addrs.contains(&(id.clone(), *addr));
            let Some(addr) = subnet.hosts().find(is_free) else {
                tracing::warn!(service = service.name(), network = %id, "the network has no address left");
                continue;
            };
            self.addrs.insert((id.clone(), addr));
            vips.push(Vip {
                network: id,
                addr,
                prefix: subnet.prefix_len(),
            });
        }
        Endpoint {
            spec: Some(spec),
            ports,
            vips,
        }
    }
}

/// Why a service with this spec cannot have its published ports, in Docker's words. `except`: the service that it is of.
pub fn port_conflict(snapshot: &Snapshot, spec: &ServiceSpec, except: Option<&Id>) -> Option<String> {
    let wanted = ports_of(&spec.endpoint_spec.clone().unwrap_or_default());
    let is_host = |port: &EndpointPortConfig| port.publish_mode == Some(PublishMode::HOST);
    for service in snapshot.services().filter(|service| Some(&service.id) != except) {
        let asked = ports_of(&wanted_spec(service));
        for theirs in asked.iter().chain(&service.endpoint.ports) {
            let clash = wanted.iter().find(|port| {
                let is_same = port.published_port.is_some_and(|number| number > 0)
                    && port.published_port == theirs.published_port
                    && protocol(port) == protocol(theirs);
                // Two services may have one host port, on different nodes.
                is_same && !(is_host(port) && is_host(theirs))
            });
            if let Some(port) = clash {
                let how = if is_host(theirs) {
                    "a host-published port"
                } else {
                    "an ingress port"
                };
                let number = port.published_port.unwrap_or(0);
                return Some(format!(
                    "port '{number}' is already in use by service '{}' ({}) as {how}",
                    service.name(),
                    service.id
                ));
            }
        }
    }
    None
}

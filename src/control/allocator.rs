//! Addresses and ports: subnets for networks, VIPs for services, published ports for those that name none. What was given
//! stays as long as it is wanted. What cannot be had is no reason to plan: it is said, and given once there is some again.
//! Published ports need no address of the ingress network: services get one while there are any, since clients show them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bollard_stubs::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum as Protocol, EndpointPortConfigPublishModeEnum as PublishMode,
    EndpointSpecModeEnum,
};
use ipnet::Ipv4Net;

use super::addresses;
use super::draft::Draft;
use super::{Context, Plan};
use crate::model::swarm::{Endpoint, Id, Network, Object, Service, ServiceSpec, Vip, fill_port};
use crate::store::Snapshot;

/// Ports for services that name none.
const PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    let networks = place_networks(context.snapshot, &mut draft);
    let supply = Supply::of(context.snapshot, &networks, context.shared_ports);
    let mut open: Vec<&Arc<Service>> = Vec::new();
    for service in context.snapshot.services() {
        if is_open(service, &networks, &supply) {
            open.push(service);
        }
    }
    complain(context.snapshot, &networks, &mut draft);
    if open.is_empty() {
        return draft.into_plan();
    }
    // Who came first has the choice.
    open.sort_by_key(|service| (service.meta.created_at, service.id.clone()));
    let mut taken = Taken::of(context.snapshot, &networks, context.shared_ports);
    for service in open {
        if draft.is_full() {
            break;
        }
        let endpoint = taken.endpoint(service, &networks);
        draft.change_service(service, |service| service.endpoint = endpoint);
    }
    draft.into_plan()
}

/// Something is to be given to the service or taken from it, and can be.
fn is_open(service: &Service, networks: &BTreeMap<Id, Arc<Network>>, supply: &Supply) -> bool {
    if service.endpoint.spec.as_ref() != Some(&wanted_spec(service)) {
        return true;
    }
    let wanted = vip_networks(service, networks);
    let has = |id: &Id| service.endpoint.vips.iter().any(|vip| vip.network == *id);
    let has_too_much = service.endpoint.vips.iter().any(|vip| !wanted.contains(&vip.network));
    has_too_much
        || wanted.iter().any(|id| !has(id) && supply.networks.contains(id))
        || ports_lacking(service).any(|port| supply.ports.contains(&protocol(port)))
}

/// What there is left to give.
struct Supply {
    /// Those that have an address left.
    networks: BTreeSet<Id>,
    /// Protocols that have a number left.
    ports: BTreeSet<String>,
}

impl Supply {
    fn of(snapshot: &Snapshot, networks: &BTreeMap<Id, Arc<Network>>, shared: &BTreeSet<u16>) -> Supply {
        let mut used: BTreeMap<&Id, usize> = BTreeMap::new();
        for vip in snapshot.services().flat_map(|service| &service.endpoint.vips) {
            *used.entry(&vip.network).or_default() += 1;
        }
        let tasks = snapshot.tasks().filter(|task| addresses::holds(task));
        let of_containers = snapshot.containers().filter_map(|container| container.address.as_ref());
        for own in tasks.flat_map(|task| &task.addresses).chain(of_containers) {
            *used.entry(&own.network).or_default() += 1;
        }
        let has_left = |network: &&Arc<Network>| {
            let n_used = used.get(&network.id).copied().unwrap_or(0);
            n_used < n_addrs(network)
        };
        let networks = networks.values().filter(has_left);
        let mut supply = Supply {
            networks: networks.map(|network| network.id.clone()).collect(),
            ports: snapshot
                .services()
                .flat_map(|service| ports_lacking(service))
                .map(protocol)
                .collect(),
        };
        // Mostly nobody waits for one.
        if !supply.ports.is_empty() {
            let given = snapshot.services().flat_map(|service| &service.endpoint.ports);
            let shared = shared.iter().map(|port| (TCP.to_owned(), i64::from(*port)));
            let used: BTreeSet<(String, i64)> = given
                .filter_map(|port| {
                    Some((
                        protocol(port),
                        port.published_port.filter(|number| PORTS.contains(number))?,
                    ))
                })
                .chain(shared.filter(|(_, port)| PORTS.contains(port)))
                .collect();
            let n_used = |protocol: &String| used.iter().filter(|(of, _)| of == protocol).count();
            supply.ports.retain(|protocol| n_used(protocol) < PORTS.count());
        }
        supply
    }
}

/// How many services and tasks can have an address of it.
fn n_addrs(network: &Network) -> usize {
    let Some(hosts) = network.hosts() else { return 0 };
    let reserved: BTreeSet<u32> = network
        .reserved()
        .map(u32::from)
        .filter(|addr| hosts.contains(addr))
        .collect();
    let n = (u64::from(*hosts.end()) + 1).saturating_sub(u64::from(*hosts.start()));
    usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(reserved.len())
}

/// Ports of its that are to be published and have no number.
fn ports_lacking(service: &Service) -> impl Iterator<Item = &EndpointPortConfig> {
    let ports = service.endpoint.ports.iter();
    ports.filter(|port| port.publish_mode != Some(PublishMode::HOST) && port.published_port.unwrap_or(0) == 0)
}

/// Networks that a service is to have an address of and has none. The ingress network is none of them.
fn vips_lacking<'a>(
    service: &'a Service,
    network_of: impl Fn(&str) -> Option<&'a Arc<Network>> + 'a,
) -> impl Iterator<Item = &'a Arc<Network>> {
    let endpoint = service.endpoint.spec.as_ref();
    let is_vip = endpoint.is_some_and(|spec| !matches!(spec.mode, Some(EndpointSpecModeEnum::DNSRR)));
    let attached = service.networks().iter().filter(move |_| is_vip);
    let attached = attached.filter_map(move |attachment| network_of(attachment.target.as_deref()?));
    attached.filter(|network| !network.is_ingress && !service.endpoint.vips.iter().any(|vip| vip.network == network.id))
}

fn no_port(port: &EndpointPortConfig) -> String {
    format!(
        "port {}: none from {} to {} is left to publish it on",
        port.target_port.unwrap_or(0),
        PORTS.start(),
        PORTS.end()
    )
}

fn no_addr(network: &Network) -> String {
    match network.subnet {
        Some(subnet) => format!(
            "network {}: no address of {subnet} is left for the service",
            network.name
        ),
        None => format!(
            "network {}: no subnet is left in the swarm's address pool",
            network.name
        ),
    }
}

/// What a service asked for and was not given, for users.
pub(super) fn lacks(snapshot: &Snapshot, service: &Service) -> Vec<String> {
    let ports = ports_lacking(service).map(no_port);
    let vips = vips_lacking(service, |id| snapshot.network(id)).map(|network| no_addr(network));
    ports.chain(vips).collect()
}

/// What all services lack, in few words.
fn complain(snapshot: &Snapshot, networks: &BTreeMap<Id, Arc<Network>>, draft: &mut Draft) {
    let mut said: BTreeSet<String> = BTreeSet::new();
    for service in snapshot.services() {
        if ports_lacking(service).next().is_some() {
            let (from, to) = (PORTS.start(), PORTS.end());
            said.insert(format!(
                "no port from {from} to {to} is left: services that name none are not published"
            ));
        }
        said.extend(vips_lacking(service, |id| networks.get(id)).map(|network| no_addr(network)));
    }
    let unplaced = networks.values().filter(|network| network.subnet.is_none());
    said.extend(unplaced.map(|network| no_addr(network)));
    said.into_iter().for_each(|said| draft.complain(said));
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
            break;
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

fn protocol(port: &EndpointPortConfig) -> String {
    port.protocol.unwrap_or(Protocol::TCP).to_string()
}

/// What services have.
struct Taken {
    /// And who has it.
    ports: BTreeMap<(String, i64), Id>,
    /// No service's (TCP).
    shared: BTreeSet<i64>,
    addrs: BTreeMap<Id, Addrs>,
}

/// The addresses of a network.
struct Addrs {
    taken: BTreeSet<u32>,
    /// None before it is free.
    next: u32,
    last: u32,
}

impl Addrs {
    fn take(&mut self) -> Option<Ipv4Addr> {
        let free = (self.next..=self.last).find(|addr| !self.taken.contains(addr))?;
        self.taken.insert(free);
        self.next = free;
        Some(Ipv4Addr::from(free))
    }
}

impl Taken {
    fn of(snapshot: &Snapshot, networks: &BTreeMap<Id, Arc<Network>>, shared: &BTreeSet<u16>) -> Taken {
        let addrs_of = |network: &Arc<Network>| {
            let (next, last) = network.hosts()?.into_inner();
            let taken = network.reserved().map(u32::from).collect();
            Some((network.id.clone(), Addrs { taken, next, last }))
        };
        let mut taken = Taken {
            shared: shared.iter().map(|port| i64::from(*port)).collect(),
            ports: BTreeMap::new(),
            addrs: networks.values().filter_map(addrs_of).collect(),
        };
        for task in snapshot.tasks().filter(|task| addresses::holds(task)) {
            for own in &task.addresses {
                if let Some(addrs) = taken.addrs.get_mut(&own.network) {
                    addrs.taken.insert(u32::from(own.addr));
                }
            }
        }
        for own in snapshot.containers().filter_map(|container| container.address.as_ref()) {
            if let Some(addrs) = taken.addrs.get_mut(&own.network) {
                addrs.taken.insert(u32::from(own.addr));
            }
        }
        for service in snapshot.services() {
            let asked = ports_of(&wanted_spec(service));
            for port in asked.iter().chain(&service.endpoint.ports) {
                if let Some(published @ 1..) = port.published_port {
                    let key = (protocol(port), published);
                    taken.ports.entry(key).or_insert_with(|| service.id.clone());
                }
            }
            for vip in &service.endpoint.vips {
                if let Some(addrs) = taken.addrs.get_mut(&vip.network) {
                    addrs.taken.insert(u32::from(vip.addr));
                }
            }
        }
        taken
    }

    fn is_shared(&self, (protocol, number): &(String, i64)) -> bool {
        protocol == TCP && self.shared.contains(number)
    }

    fn endpoint(&mut self, service: &Service, networks: &BTreeMap<Id, Arc<Network>>) -> Endpoint {
        let spec = wanted_spec(service);
        let mut ports = ports_of(&spec);
        let mut kept = service.endpoint.ports.clone();
        // Those that it asks for by number are no longer ones that it was given.
        let asked = ports
            .iter()
            .filter_map(|port| Some((protocol(port), port.published_port?)));
        let asked: BTreeSet<(String, i64)> = asked.collect();
        for port in &mut ports {
            if port.published_port.is_some_and(|published| published > 0)
                || port.publish_mode == Some(PublishMode::HOST)
            {
                continue;
            }
            let before = kept.iter().position(|before| {
                let Some(number) = before.published_port.filter(|number| PORTS.contains(number)) else {
                    return false;
                };
                let key = (protocol(port), number);
                let is_same = before.target_port == port.target_port && protocol(before) == protocol(port);
                is_same
                    && !asked.contains(&key)
                    && !self.is_shared(&key)
                    && self.ports.get(&key).is_none_or(|owner| *owner == service.id)
            });
            port.published_port = match before {
                Some(at) => kept.remove(at).published_port,
                None => PORTS.clone().find(|number| {
                    let key = (protocol(port), *number);
                    !self.ports.contains_key(&key) && !self.is_shared(&key)
                }),
            };
            if let Some(number) = port.published_port {
                self.ports.insert((protocol(port), number), service.id.clone());
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
            let Some(subnet) = networks.get(&id).and_then(|network| network.subnet) else {
                continue;
            };
            if let Some(addr) = self.addrs.get_mut(&id).and_then(Addrs::take) {
                vips.push(Vip {
                    network: id,
                    addr,
                    prefix: subnet.prefix_len(),
                });
            }
        }
        Endpoint {
            spec: Some(spec),
            ports,
            vips,
        }
    }
}

/// Entry points take it alone.
const TCP: &str = "tcp";

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{World, network, replicated, spec};
    use super::*;
    use crate::model::swarm::Write;

    fn with_subnet(id: &str, is_ingress: bool, subnet: &str) -> Object {
        let mut network = network(id, is_ingress);
        network.subnet = Some(subnet.parse().unwrap());
        network.gateway = network.subnet.and_then(|subnet| subnet.hosts().next());
        Object::Network(Arc::new(network))
    }

    fn has_vip(world: &World, id: &Id, network: &str) -> bool {
        let vips = &world.service(id).endpoint.vips;
        vips.iter().any(|vip| vip.network.as_str() == network)
    }

    #[test]
    fn a_thousand_services_publish_and_each_has_an_address_while_there_are_any() {
        let mut world = World::new(1, 1);
        let ids: Vec<Id> = (0..1_000)
            .map(|i| {
                let mut value = replicated(&format!("s{i}"), "healthy", 0);
                value["EndpointSpec"] = json!({ "Ports": [{ "TargetPort": 80 }] });
                world.create(spec(value))
            })
            .collect();
        world.reconcile();
        let ports: BTreeSet<i64> = ids
            .iter()
            .map(|id| world.service(id).endpoint.ports[0].published_port.unwrap())
            .collect();
        assert_eq!(ports.len(), 1_000);
        let with_vip = |world: &World| {
            ids.iter()
                .filter(|id| {
                    world
                        .snapshot
                        .service(id.as_str())
                        .is_some_and(|service| !service.endpoint.vips.is_empty())
                })
                .count()
        };
        assert_eq!(with_vip(&world), 253);
        assert!(
            ids.iter()
                .all(|id| lacks(&world.snapshot, world.service(id)).is_empty()),
            "that is no error"
        );
        let revision = world.snapshot.revision();
        world.reconcile();
        assert_eq!(world.snapshot.revision(), revision, "at rest nothing is written");
        let gone = ids.iter().find(|id| has_vip(&world, id, "ingress")).unwrap().clone();
        world.remove(&gone);
        let before = world.snapshot.revision();
        world.reconcile();
        assert_eq!(
            world.snapshot.revision(),
            before + 1,
            "one commit gives what is free again"
        );
        assert_eq!(with_vip(&world), 253);
    }

    #[test]
    fn an_address_that_cannot_be_had_is_said_and_given_once_it_is_free() {
        let mut world = World::new(1, 1);
        world.put(with_subnet("small", false, "192.0.2.0/29"));
        let ids: Vec<Id> = (0..7)
            .map(|i| {
                let mut value = replicated(&format!("s{i}"), "healthy", 1);
                value["TaskTemplate"]["Networks"] = json!([{ "Target": "small" }]);
                world.create(spec(value))
            })
            .collect();
        world.reconcile();
        let without = |world: &World| {
            ids.iter()
                .filter(|id| world.snapshot.service(id.as_str()).is_some() && !has_vip(world, id, "small"))
                .cloned()
                .collect::<Vec<Id>>()
        };
        assert_eq!(without(&world).len(), 2);
        let said = "network small: no address of 192.0.2.0/29 is left for the service";
        assert_eq!(lacks(&world.snapshot, world.service(&without(&world)[0])), [said]);
        assert!(world.complaints.contains(said));
        world.remove(&ids[0]);
        world.reconcile();
        assert_eq!(without(&world).len(), 1);
        world.remove(&ids[1]);
        world.reconcile();
        assert!(without(&world).is_empty());
        assert!(world.complaints.is_empty(), "{:?}", world.complaints);
    }

    #[test]
    fn a_port_that_cannot_be_had_is_said_and_given_once_it_is_free() {
        let mut world = World::new(1, 1);
        let n = PORTS.count();
        let ports: Vec<_> = (0..n).map(|i| json!({ "TargetPort": i + 1 })).collect();
        let mut many = replicated("many", "healthy", 0);
        many["EndpointSpec"] = json!({ "Ports": ports });
        let many = world.create(spec(many));
        world.reconcile();
        let mut late = replicated("late", "healthy", 0);
        late["EndpointSpec"] = json!({ "Ports": [{ "TargetPort": 80 }] });
        let late = world.create(spec(late));
        world.reconcile();
        let said = "port 80: none from 30000 to 32767 is left to publish it on";
        assert_eq!(lacks(&world.snapshot, world.service(&late)), [said]);
        assert_eq!(world.complaints.len(), 1);
        world.remove(&many);
        world.reconcile();
        assert_eq!(world.service(&late).endpoint.ports[0].published_port, Some(30_000));
    }

    #[test]
    fn a_port_that_services_share_is_given_to_none() {
        let mut world = World::new(1, 1);
        let mut web = replicated("web", "healthy", 0);
        web["EndpointSpec"] = json!({ "Ports": [{ "TargetPort": 80 }, { "TargetPort": 53, "Protocol": "udp" }] });
        let web = world.create(spec(web));
        let plan = plan(&mut Context {
            snapshot: &world.snapshot,
            now: world.now,
            shared_ports: &BTreeSet::from([30_000, 30_001]),
            ids: &mut || Id::from("none"),
        });
        let services = plan.writes.iter().filter_map(|write| match write {
            Write::Put(Object::Service(service)) if service.id == web => Some(service),
            _ => None,
        });
        let ports = services.flat_map(|service| &service.endpoint.ports);
        let numbers: Vec<_> = ports.filter_map(|port| port.published_port).collect();
        assert_eq!(numbers, [30_002, 30_000]);
    }

    #[test]
    fn a_network_without_a_subnet_is_said_and_gets_one_once_it_is_free() {
        let mut world = World::new(1, 1);
        let mut swarm = crate::model::swarm::Swarm::clone(world.snapshot.swarm().unwrap());
        swarm.addr_pool = vec!["10.0.0.0/24".parse().unwrap()];
        world.put(Object::Swarm(Arc::new(swarm)));
        world.reconcile();
        world.put(Object::Network(Arc::new(network("late", false))));
        world.reconcile();
        let said = "network late: no subnet is left in the swarm's address pool";
        assert!(world.complaints.contains(said));
        let revision = world.snapshot.revision();
        world.reconcile();
        assert_eq!(world.snapshot.revision(), revision);
        let mut value = replicated("web", "healthy", 1);
        value["TaskTemplate"]["Networks"] = json!([{ "Target": "late" }]);
        let web = world.create(spec(value));
        world.reconcile();
        assert_eq!(lacks(&world.snapshot, world.service(&web)), [said]);
    }
}

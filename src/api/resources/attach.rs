//! A container that is no task on a network of the swarm, as requests and answers have it: what its user asks for becomes what
//! the engine is asked for and what the label says, and answers show the one as the other. Pure. Not here: who makes the
//! network ready (`outside`), and the requests themselves (`containers`).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::api::network_view::endpoint_id;
use crate::api::wire::ApiError;
use crate::api::{backend, find};
use crate::model::swarm::{ATTACHED_LABEL, AttachSpec, Network, SANDBOX_LABEL};
use crate::store::Snapshot;

type Members = Map<String, Value>;

/// What is asked for as a container's networks, the first by `NetworkMode` if that names one.
fn networks(host: &Members, endpoints: &Members) -> Vec<String> {
    let mode = member(host, "NetworkMode").and_then(Value::as_str).unwrap_or_default();
    // Docker's clients say so where nothing is said.
    let is_said = !mode.is_empty() && (mode != "default" || endpoints.is_empty());
    let mode = is_said.then(|| mode.to_owned());
    mode.into_iter().chain(endpoints.keys().cloned()).collect()
}

/// The container that the engine is to be asked for. `None`: it is on no network of the swarm. Errors: what cannot be had there.
pub(super) fn rewritten(body: &Value, snapshot: &Snapshot) -> Result<Option<Value>, ApiError> {
    let Value::Object(body) = body else { return Ok(None) };
    let mut body = body.clone();
    let mut host = object(take(&mut body, "HostConfig"));
    let mut endpoints = take(&mut body, "NetworkingConfig").map_or_else(Map::new, |config| {
        object(take(&mut object(Some(config)), "EndpointsConfig"))
    });
    let asked = networks(&host, &endpoints);
    let of_swarm: Vec<(&String, Arc<Network>)> = asked
        .iter()
        .filter_map(|name| Some((name, find::network(snapshot, name).ok()?)))
        .collect();
    let Some((asked_name, network)) = of_swarm.first() else {
        return Ok(None);
    };
    if !network.is_attachable {
        return Err(not_attachable(asked_name));
    }
    let cannot = |what: &str, expected: &str| {
        Err(ApiError::bad(format!(
            "a container on network {}, which is the swarm's, {what}: expected {expected}",
            network.name
        )))
    };
    let is_it = |name: &String| {
        of_swarm
            .iter()
            .any(|(known, found)| *known == name && found.id == network.id)
    };
    if let Some(other) = asked.iter().find(|name| !is_it(name)) {
        return cannot(
            &format!("cannot be on network {other} too"),
            &format!(
                "{} alone, which leads outside as well unless it is internal",
                network.name
            ),
        );
    }
    let is_on = |value: Option<&Value>| {
        value.is_some_and(|value| match value {
            Value::Bool(is) => *is,
            Value::Object(members) => !members.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => false,
        })
    };
    if is_on(member(&host, "PortBindings")) || is_on(member(&host, "PublishAllPorts")) {
        return cannot(
            "cannot publish ports",
            "no -p and no -P (in compose files, no ports), or a service of the swarm that publishes them",
        );
    }
    // One may be by its name and another by its id; all of them are the one network.
    let names: Vec<String> = endpoints.keys().cloned().collect();
    let endpoints: Vec<Members> = names.iter().map(|name| object(endpoints.remove(name))).collect();
    let said = |name: &str| endpoints.iter().any(|endpoint| is_on(member(endpoint, name)));
    if is_on(member(&body, "MacAddress")) || said("MacAddress") {
        return cannot("has no MAC address", "none (--mac-address)");
    }
    if said("DriverOpts") {
        return cannot("has no driver that takes options", "none (driver-opt)");
    }
    let mut spec = AttachSpec {
        id: backend::new_id(),
        swarm: find::swarm(snapshot)?.id.clone(),
        network: network.id.clone(),
        network_name: network.name.clone(),
        aliases: Vec::new(),
        links: texts(take(&mut host, "Links")),
        address: None,
        hostname: text(take(&mut body, "Hostname")),
        domainname: text(take(&mut body, "Domainname")),
        dns: texts(take(&mut host, "Dns")),
        dns_search: texts(take(&mut host, "DnsSearch")),
        dns_options: texts(take(&mut host, "DnsOptions")),
        extra_hosts: texts(take(&mut host, "ExtraHosts")),
        sysctls: Default::default(),
        exposed: object(take(&mut body, "ExposedPorts"))
            .into_iter()
            .map(|(port, _)| port)
            .collect(),
    };
    for endpoint in &endpoints {
        spec.aliases.extend(texts(member(endpoint, "Aliases").cloned()));
        // Clients say them in both places.
        let links = texts(member(endpoint, "Links").cloned()).into_iter();
        let links: Vec<String> = links.filter(|link| !spec.links.contains(link)).collect();
        spec.links.extend(links);
        let ipam = object(member(endpoint, "IPAMConfig").cloned());
        if is_on(member(&ipam, "IPv6Address")) || is_on(member(&ipam, "LinkLocalIPs")) {
            return cannot("has an address of IPv4 and no other", "no --ip6 and no --link-local-ip");
        }
        if let Some(wanted) = member(&ipam, "IPv4Address")
            .and_then(Value::as_str)
            .filter(|ip| !ip.is_empty())
        {
            spec.address = Some(address(wanted, network)?);
        }
    }
    if let Some(link) = spec.links.iter().find(|link| link.contains(',')) {
        return cannot(&format!("cannot have a link {link:?}"), "CONTAINER:ALIAS (--link)");
    }
    let sysctls = object(take(&mut host, "Sysctls"));
    let (of_network, others): (Members, Members) = sysctls.into_iter().partition(|(key, _)| key.starts_with("net."));
    spec.sysctls = of_network
        .into_iter()
        .map(|(key, value)| (key, text(Some(value))))
        .collect();
    if !others.is_empty() {
        host.insert("Sysctls".to_owned(), Value::Object(others));
    }
    take(&mut host, "NetworkMode");
    host.insert("NetworkMode".to_owned(), spec.network_mode().into());
    let mut labels = object(take(&mut body, "Labels"));
    // A spec is plain strings, which serialize without fail.
    labels.insert(
        ATTACHED_LABEL.to_owned(),
        serde_json::to_string(&spec).unwrap_or_default().into(),
    );
    body.insert("Labels".to_owned(), Value::Object(labels));
    body.insert("HostConfig".to_owned(), Value::Object(host));
    Ok(Some(Value::Object(body)))
}

pub(super) fn not_attachable(network: &str) -> ApiError {
    ApiError::forbidden(format!(
        "Could not attach to network {network}: rpc error: code = PermissionDenied desc = network {network} not manually \
         attachable"
    ))
}

/// One that a user asks for.
fn address(text: &str, network: &Network) -> Result<Ipv4Addr, ApiError> {
    let subnet = network.subnet.map(|subnet| subnet.to_string()).unwrap_or_default();
    let wrong = |expected: &str| {
        ApiError::bad(format!(
            "invalid address {text} on network {}: expected {expected}",
            network.name
        ))
    };
    let address: Ipv4Addr = text.parse().map_err(|_| wrong("an IPv4 address such as 10.0.1.7"))?;
    let is_a_hosts = network
        .hosts_of_subnet()
        .is_some_and(|hosts| hosts.contains(&u32::from(address)));
    if !is_a_hosts {
        return Err(wrong(&format!("one of its subnet {subnet}")));
    }
    match network.reserved().any(|reserved| reserved == address) {
        true => Err(wrong("one that is not reserved there")),
        false => Ok(address),
    }
}

/// Shows a container, as the engine inspects it, on the network that its user asked for.
pub(super) fn show(container: &mut Value, snapshot: &Snapshot) {
    let label = container["Config"]["Labels"][ATTACHED_LABEL].as_str();
    let mode = container["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    let Some(spec) = AttachSpec::read(mode, label) else {
        return;
    };
    without_label(&mut container["Config"]["Labels"]);
    let id = container["Id"].as_str().unwrap_or_default().to_owned();
    let config = &mut container["Config"];
    if !spec.hostname.is_empty() {
        config["Hostname"] = json!(spec.hostname);
    }
    config["Domainname"] = json!(spec.domainname);
    if !spec.exposed.is_empty() {
        let mut exposed = object(Some(config["ExposedPorts"].take()));
        exposed.extend(spec.exposed.iter().map(|port| (port.clone(), json!({}))));
        config["ExposedPorts"] = Value::Object(exposed);
    }
    let host = &mut container["HostConfig"];
    host["NetworkMode"] = json!(spec.network_name);
    host["Dns"] = json!(spec.dns);
    host["DnsSearch"] = json!(spec.dns_search);
    host["DnsOptions"] = json!(spec.dns_options);
    if !spec.extra_hosts.is_empty() {
        host["ExtraHosts"] = json!(spec.extra_hosts);
    }
    if !spec.sysctls.is_empty() {
        let mut sysctls = object(Some(host["Sysctls"].take()));
        sysctls.extend(spec.sysctls.iter().map(|(key, value)| (key.clone(), json!(value))));
        host["Sysctls"] = Value::Object(sysctls);
    }
    container["NetworkSettings"]["Networks"] = endpoints(&spec, &id, snapshot);
}

/// The same of one in a list.
pub(super) fn show_in_list(container: &mut Value, snapshot: &Snapshot) {
    let label = container["Labels"][ATTACHED_LABEL].as_str();
    let mode = container["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    let Some(spec) = AttachSpec::read(mode, label) else {
        return;
    };
    without_label(&mut container["Labels"]);
    let id = container["Id"].as_str().unwrap_or_default().to_owned();
    container["HostConfig"]["NetworkMode"] = json!(spec.network_name);
    container["NetworkSettings"]["Networks"] = endpoints(&spec, &id, snapshot);
}

/// Whether an inspected container is one of these, and no sandbox.
pub(super) fn is_attached(container: &Value) -> Option<AttachSpec> {
    let labels = &container["Config"]["Labels"];
    if labels.get(SANDBOX_LABEL).is_some() {
        return None;
    }
    let mode = container["HostConfig"]["NetworkMode"].as_str().unwrap_or_default();
    AttachSpec::read(mode, labels[ATTACHED_LABEL].as_str())
}

fn without_label(labels: &mut Value) {
    if let Value::Object(labels) = labels {
        labels.remove(ATTACHED_LABEL);
    }
}

/// Its one network, with its address there while it runs.
fn endpoints(spec: &AttachSpec, container: &str, snapshot: &Snapshot) -> Value {
    let stored = snapshot.container(spec.id.as_str());
    let own = stored.and_then(|stored| stored.address.as_ref());
    let wanted = spec.address.map(|address| json!({ "IPv4Address": address }));
    let short: String = container.chars().take(12).collect();
    let mut seen = BTreeSet::new();
    let aliases = spec
        .aliases
        .iter()
        .chain([&short])
        .filter(|alias| seen.insert(alias.as_str()));
    let endpoint = json!({
        "IPAMConfig": wanted,
        "Links": (!spec.links.is_empty()).then_some(&spec.links),
        "Aliases": aliases.collect::<Vec<_>>(),
        // Nothing of it is on a link.
        "MacAddress": "",
        "NetworkID": spec.network,
        "EndpointID": own.map_or_else(String::new, |_| endpoint_id(&spec.network, &spec.id)),
        "Gateway": "",
        "IPAddress": own.map(|own| own.addr.to_string()).unwrap_or_default(),
        "IPPrefixLen": own.map_or(0, |own| own.prefix),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DriverOpts": null,
        "DNSNames": stored.map(|stored| stored.names.clone()),
    });
    Value::Object(Map::from_iter([(spec.network_name.clone(), endpoint)]))
}

/// As Go reads it: whatever the case of its letters, and the last that says something.
fn member<'a>(of: &'a Members, name: &str) -> Option<&'a Value> {
    let mut found = of
        .iter()
        .filter(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null());
    found.next_back().map(|(_, value)| value)
}

fn take(of: &mut Members, name: &str) -> Option<Value> {
    let keys: Vec<String> = of
        .keys()
        .filter(|key| key.eq_ignore_ascii_case(name))
        .cloned()
        .collect();
    let values = keys
        .iter()
        .filter_map(|key| of.remove(key))
        .filter(|value| !value.is_null());
    values.last()
}

fn object(value: Option<Value>) -> Members {
    match value {
        Some(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn texts(value: Option<Value>) -> Vec<String> {
    let Some(Value::Array(items)) = value else {
        return Vec::new();
    };
    items
        .into_iter()
        .map(|item| text(Some(item)))
        .filter(|text| !text.is_empty())
        .collect()
}

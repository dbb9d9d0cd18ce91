//! Options of a service of a cluster, from its labels that begin with `anynode.`. Pure. A wrong one is a fault, and the option
//! keeps its default; what becomes of the service then, whoever asks decides. Not here: the services file, which has the
//! same options.

mod filters;
mod names;
pub mod payload;
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

pub use names::{BASIC_AUTH, DOCKER_SOCKET, KNOWN, MODE, PORT, ROUTE, ROUTES, STICKY, WEIGHT, beside, is_ours, shown};

use self::names::{HASH, SCHEME, hint, is_field, may_ask_of_requests, named_route};
use self::payload::CERTIFICATE;
use self::reader::Reader;
use super::guards::Users;
use super::{AtOdds, InvalidValue, Mode, OneMode, RoutePart, RouteSpec, ServiceName, ServiceSpec, Weight, traefik};

/// What labels say beside the spec itself.
#[derive(Debug, Default, PartialEq)]
pub struct Labels {
    /// The address that published ports are bound to; `None`: all.
    pub bind: Option<IpAddr>,
    /// What is wrong: label, value and what was expected.
    pub faults: Vec<String>,
    /// The labels of ours whose values mean nothing.
    pub wrong: BTreeSet<String>,
    /// Those of them that concern one route of several, and take nothing but that away.
    pub wrong_of_routes: BTreeSet<String>,
}

/// Of a service's labels those that may say how it is served: ours, and Traefik's if they say that it is to see them. Whether those are
/// read, each node's configuration says.
pub fn meant<'a>(all: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> BTreeMap<String, String> {
    let is_traefiks = traefik::is_enabled(all.clone());
    all.filter(|(label, _)| is_ours(label) || (is_traefiks && traefik::is_label(label)))
        .map(|(label, value)| {
            // Passwords are no affair of other nodes, but for hashes that are asked for: what else stands there closes the route.
            let value = match label {
                _ if label == BASIC_AUTH || traefik::is_of_users(label) => Users::without_secrets(value),
                _ if traefik::is_secret(label) => String::new(),
                _ => value.to_owned(),
            };
            (label.to_owned(), value)
        })
        .collect()
}

/// The first port that labels name for tasks to listen on.
pub fn port(labels: &BTreeMap<String, String>) -> Option<u16> {
    let named = labels
        .iter()
        .filter(|(label, _)| matches!(named_route(label), Some((_, RoutePart::Port))));
    let ours = labels.get(PORT).into_iter().chain(named.map(|(_, port)| port));
    let ours = ours.filter_map(|port| port.trim().parse::<u16>().ok());
    ours.chain(traefik::ports(labels)).find(|port| *port > 0)
}

/// The labels of ours whose values mean nothing. Of names that are no options those that are like a guard's are among them.
pub fn wrong(labels: &BTreeMap<String, String>) -> BTreeSet<String> {
    let labels = alone(labels).unwrap_or_default();
    labels.wrong.into_iter().chain(labels.wrong_of_routes).collect()
}

/// Whether a label asks for a route, however it is written.
pub fn ask_for_routes(labels: &BTreeMap<String, String>) -> bool {
    let mut named = labels.range::<str, _>((Bound::Included(ROUTES), Bound::Unbounded));
    labels.contains_key(ROUTE) || named.next().is_some_and(|(label, _)| label.starts_with(ROUTES))
}

/// What is wrong with `label`, as it stands among `labels`.
pub fn faults_of(label: &str, labels: &BTreeMap<String, String>) -> Vec<String> {
    let about = [format!("label {label}:"), format!("label {label}=")];
    let faults = alone(labels)
        .map(|labels| labels.faults)
        .unwrap_or_default()
        .into_iter();
    faults
        .filter(|fault| about.iter().any(|about| fault.starts_with(about)))
        .collect()
}

/// The routes that labels ask for; none where they are wrong.
pub fn routes(labels: &BTreeMap<String, String>) -> Vec<RouteSpec> {
    let Ok(any) = ServiceName::new("any") else {
        return Vec::new();
    };
    let mut spec = ServiceSpec::new(any);
    match apply(labels, &mut spec).wrong.is_empty() {
        true => spec.routes,
        false => Vec::new(),
    }
}

/// Whether a label asks for a route, of ours or of Traefik's, whether those are read or not.
pub fn may_ask_for_routes(labels: &BTreeMap<String, String>) -> bool {
    ask_for_routes(labels) || traefik::ask_for_routes(labels)
}

/// What a node's labels say its tasks weigh, and what is wrong with those of ours.
pub fn of_node(labels: &BTreeMap<String, String>) -> (Weight, Vec<String>) {
    let mut weight = Weight::default();
    let mut faults = Vec::new();
    for (label, value) in labels.iter().filter(|(label, _)| is_ours(label)) {
        match (label.as_str(), value.trim().parse()) {
            (WEIGHT, Ok(said)) => weight = said,
            (WEIGHT, Err(error)) => faults.push(format!("label {label}: {error}")),
            _ => faults.push(format!("label {label}: no such option of a node: expected {WEIGHT}")),
        }
    }
    (weight, faults)
}

/// All that is wrong with labels.
pub fn faults(labels: &BTreeMap<String, String>) -> Vec<String> {
    alone(labels).map(|labels| labels.faults).unwrap_or_default()
}

/// What labels say, whatever the service. Traefik's are among them only where they are read.
fn alone(labels: &BTreeMap<String, String>) -> Option<Labels> {
    let mut spec = ServiceSpec::new(ServiceName::new("any").ok()?);
    // Its routes say which mode a service is of; what else is wrong with them is said elsewhere.
    traefik::apply(labels, &mut spec);
    Some(apply(labels, &mut spec))
}

/// Sets the options of `spec` that `labels` name. What it has of routes already, of Traefik's labels, is judged with them.
pub fn apply(labels: &BTreeMap<String, String>, spec: &mut ServiceSpec) -> Labels {
    let mut reader = Reader {
        labels,
        faults: Vec::new(),
        wrong: BTreeSet::new(),
        wrong_of_routes: BTreeSet::new(),
    };
    let mut bind = None;
    reader.set(MODE, &mut spec.mode);
    reader.set("anynode.balance", &mut spec.balance);
    reader.set(HASH, &mut spec.hash);
    reader.set("anynode.prefer", &mut spec.prefer);
    reader.set(SCHEME, &mut spec.scheme);
    reader.endpoint_tls(spec);
    spec.sticky = reader.sticky(spec.sticky.take());
    spec.filters = reader.filters();
    reader.span("anynode.slow-start", Duration::ZERO, &mut spec.slow_start);
    reader.set_some("anynode.proxy-protocol", &mut spec.proxy_protocol);
    reader.set("anynode.client-address", &mut spec.client_address);
    reader.flag("anynode.abort-on-client-close", &mut spec.abort_on_client_close);
    reader.read("anynode.bind", |text| match text.parse::<IpAddr>() {
        Ok(ip) => {
            // As Docker has it: everywhere.
            bind = Some(ip).filter(|ip| !ip.is_unspecified());
            Ok(())
        }
        Err(_) => Err(InvalidValue::new(text, "an IP address, such as 192.0.2.1 or ::1")),
    });
    spec.routes.extend(reader.route(None));
    spec.routes.extend(reader.named_routes());
    if let Some(mode) = Mode::of_routes(&spec.routes)
        && !labels.contains_key(MODE)
    {
        spec.mode = mode;
    }
    spec.health = reader.health().or_else(|| spec.health.take());
    reader.set("anynode.health.passive", &mut spec.passive);
    let timeouts = &mut spec.timeouts;
    reader.span(
        "anynode.timeout.connect",
        Duration::from_millis(1),
        &mut timeouts.connect,
    );
    reader.span("anynode.timeout.idle", Duration::ZERO, &mut timeouts.idle);
    reader.span("anynode.timeout.half-closed", Duration::ZERO, &mut timeouts.half_closed);
    reader.span(
        "anynode.timeout.request-head",
        Duration::ZERO,
        &mut timeouts.request_head,
    );
    reader.span("anynode.timeout.response", Duration::ZERO, &mut timeouts.response);
    let limits = &mut spec.limits;
    reader.number("anynode.limit.connections", 0, &mut limits.connections);
    reader.number(
        "anynode.limit.endpoint-connections",
        0,
        &mut limits.endpoint_connections,
    );
    reader.number("anynode.limit.queue", 0, &mut limits.queue);
    reader.span("anynode.limit.queue-timeout", Duration::ZERO, &mut limits.queue_timeout);
    reader.number("anynode.limit.hold", 0, &mut limits.hold);
    reader.span("anynode.limit.hold-timeout", Duration::ZERO, &mut limits.hold_timeout);
    reader.read(DOCKER_SOCKET, |text| match text {
        "swarm" | "engine" => Ok(()),
        _ => Err(InvalidValue::new(text, "swarm or engine")),
    });
    // Of a way to balance that means nothing it is not known what goes with it.
    let says_hash = labels.contains_key(HASH) && !reader.wrong.contains(HASH);
    if !reader.wrong.contains("anynode.balance")
        && let Some(odds) = AtOdds::of(spec, says_hash)
        && let Some(value) = labels.get(odds.label)
    {
        reader
            .faults
            .push(format!("label {}={value}: {}", odds.label, odds.expected));
        reader.wrong.insert(odds.label.to_owned());
    }
    reader.refuse_endpoint_tls_at_odds(spec);
    // Of a mode that means nothing it is not known what it was to be.
    if !reader.wrong.contains(MODE) {
        let was_said = |option: &OneMode| labels.contains_key(option.label) && !reader.wrong.contains(option.label);
        for option in OneMode::out_of_place(spec, was_said).collect::<Vec<_>>() {
            let value = &labels[option.label];
            reader.faults.push(format!("label {}={value}: {option}", option.label));
            reader.wrong.insert(option.label.to_owned());
        }
        spec.proxy_protocol = spec.proxy_protocol.filter(|_| spec.mode == Mode::Tcp);
        reader.refuse_routes_of_the_other_mode(spec);
        reader.refuse_filters_without_requests(spec);
    }
    for (label, value) in labels {
        if label == WEIGHT {
            reader.faults.push(format!(
                "label {label}={value}: expected on nodes (docker node update --label-add {label}=2 NODE): \
                 of a service it would say the same of all tasks"
            ));
        } else if label == CERTIFICATE {
            // Its value may be anything, a key too.
            reader.faults.push(format!(
                "label {label}: no such option of a service: expected on secrets and configs (docker secret create --label \
                 {label}=true NAME FILE)"
            ));
        } else if is_ours(label) && !KNOWN.contains(&label.as_str()) && named_route(label).is_none() && !is_field(label)
        {
            // Its value may be anything, a password too.
            reader
                .faults
                .push(format!("label {label}: no such option{}", hint(label)));
            if may_ask_of_requests(label) {
                // What was to be asked of requests is not: it is not served as if nothing had been said.
                reader.wrong.insert(label.clone());
            }
        }
    }
    Labels {
        bind,
        faults: reader.faults,
        wrong: reader.wrong,
        wrong_of_routes: reader.wrong_of_routes,
    }
}

#[cfg(test)]
mod tests;

//! Traefik's labels, of its versions 2 and 3, as what they mean here: routes, ports, checks. Pure. What has no counterpart is a fault, and
//! the route that it concerns lets nobody through: served without, say, its password it would be worse than not at all, and so would be its
//! requests by another route. Not here: whether
//! they are read at all (`labels.traefik` in the configuration), our own labels (`model::labels`).

mod guards;
mod middlewares;
mod routers;
mod services;
mod streams;
mod tree;

use std::collections::BTreeMap;

use self::tree::{Tree, is_list};
use super::{Balance, HealthCheck, Mode, ProxyProtocol, RouteSpec, Scheme, ServiceSpec, Sticky};

/// What Traefik's labels of one service say.
#[derive(Debug, Default, PartialEq)]
struct Translated {
    routes: Vec<RouteSpec>,
    health: Option<HealthCheck>,
    balance: Option<Balance>,
    scheme: Option<Scheme>,
    sticky: Option<Sticky>,
    proxy_protocol: Option<ProxyProtocol>,
    /// What is wrong or has no counterpart: label, value and what was expected, or what holds instead.
    faults: Vec<String>,
}

/// Whether Traefik is to see the service at all.
pub fn is_enabled<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> bool {
    let mut labels = labels.into_iter();
    labels.any(|(label, value)| label.eq_ignore_ascii_case(ENABLE) && tree::flag(value) == Some(true))
}

/// Whether a label is Traefik's.
pub fn is_label(label: &str) -> bool {
    let begin = label.get(..PREFIX.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX))
}

/// Whether a label's value may be a password: of a kind of middleware that is refused whatever it says, or in a section that there is
/// none of. By its kind and never by a name, which may be any word: what is done needs its values.
pub fn is_secret(label: &str) -> bool {
    let parts: Vec<String> = label.splitn(6, '.').map(str::to_ascii_lowercase).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["traefik", "http", "middlewares", _, "basicauth", option] => {
            !is_list(option, "users") && !["headerfield", "realm", "removeheader"].contains(option)
        }
        // Where it leads may have a password in it, and is then none that there is a counterpart of.
        ["traefik", "http", "middlewares", _, "forwardauth", option] => option.starts_with("tls"),
        ["traefik", "http", "middlewares", _, kind, ..] => {
            ["basicauth", "digestauth", "forwardauth", "plugin"].contains(kind)
        }
        ["traefik", "http", section, ..] => section.starts_with("middleware") && *section != "middlewares",
        _ => false,
    }
}

/// Whether a label's value is users and hashes of their passwords.
pub fn is_of_users(label: &str) -> bool {
    let parts: Vec<String> = label.splitn(6, '.').map(str::to_ascii_lowercase).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    matches!(parts.as_slice(), ["traefik", "http", "middlewares", _, "basicauth", option] if is_list(option, "users"))
}

/// Whether they ask for a route, if they are read.
pub fn ask_for_routes(labels: &BTreeMap<String, String>) -> bool {
    name_routers(labels) && is_enabled(pairs(labels))
}

/// Whether any of them is a router's.
pub fn name_routers(labels: &BTreeMap<String, String>) -> bool {
    let begins = |label: &String, with: &str| {
        let begin = label.get(..with.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(with))
    };
    let is_routers = |label: &String| begins(label, ROUTERS) || begins(label, TCP_ROUTERS);
    labels.keys().any(is_routers)
}

/// The ports that tasks listen on.
pub fn ports(labels: &BTreeMap<String, String>) -> Vec<u16> {
    let tree = Tree::of(labels);
    let (services, streams) = (services::all(&tree), streams::all(&tree));
    let services = services.values().chain(streams.values());
    services.filter_map(|service| service.port).collect()
}

/// Sets what they say; our own labels, which are read after, come first. Returns what is wrong.
pub fn apply(labels: &BTreeMap<String, String>, spec: &mut ServiceSpec) -> Vec<String> {
    if !is_enabled(pairs(labels)) {
        return Vec::new();
    }
    let read = translated(labels);
    match Mode::of_routes(&read.routes) {
        Some(Mode::Http) => {
            spec.health = read.health;
            spec.balance = read.balance.unwrap_or(spec.balance);
            spec.scheme = read.scheme.unwrap_or(spec.scheme);
            spec.sticky = read.sticky;
        }
        Some(Mode::Tcp) => spec.proxy_protocol = read.proxy_protocol,
        // All are closed; a published port is not.
        None => spec.scheme = read.scheme.unwrap_or(spec.scheme),
    }
    spec.routes.extend(read.routes);
    read.faults
}

/// What is wrong with them.
pub fn faults(labels: &BTreeMap<String, String>) -> Vec<String> {
    let is_said = labels.keys().any(|label| label.eq_ignore_ascii_case(ENABLE));
    match is_enabled(pairs(labels)) {
        true => translated(labels).faults,
        false if name_routers(labels) && !is_said => {
            vec![format!(
                "labels traefik.* are read of services with {ENABLE}=true alone"
            )]
        }
        false => Vec::new(),
    }
}

fn translated(labels: &BTreeMap<String, String>) -> Translated {
    let tree = Tree::of(labels);
    let mut out = Translated::default();
    let mut has_routers = false;
    let mut unknown = Vec::new();
    for kind in [Kind::Requests, Kind::Connections] {
        let mut services = match kind {
            Kind::Requests => services::all(&tree),
            Kind::Connections => streams::all(&tree),
        };
        services::agree(kind, &mut services, &mut out);
        for (name, options) in tree.section(&format!("{}.routers", kind.as_str())) {
            has_routers = true;
            let read = routers::read(kind, &name, &options, &services, &tree);
            if read.route.is_none() && read.restricts {
                unknown.push(name);
            }
            out.routes.extend(read.route);
            out.faults.extend(read.said);
        }
        out.faults
            .extend(services.into_values().flat_map(|service| service.faults));
    }
    streams::close_beside_requests(&mut out);
    if !unknown.is_empty() {
        // Its requests may be any that another route would take, without what it was to ask of them.
        out.routes.iter_mut().for_each(|route| route.close(|_| false));
        out.faults.push(format!(
            "labels traefik.*.routers.*: no route is served before it is known which requests are those of {}, of which something is to be asked",
            unknown.join(", ")
        ));
    }
    let others = tree.unserved();
    if !has_routers && others.is_empty() {
        out.faults.push(format!(
            "label {ENABLE}=true: no label says a route: expected {ROUTERS}NAME.rule"
        ));
    }
    out.faults.extend(others);
    out
}

fn pairs(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(label, value)| (label.as_str(), value.as_str()))
}

const PREFIX: &str = "traefik.";
const ENABLE: &str = "traefik.enable";
const ROUTERS: &str = "traefik.http.routers.";
const TCP_ROUTERS: &str = "traefik.tcp.routers.";

/// What routers route: one section of labels each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Requests,
    Connections,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Requests => "http",
            Kind::Connections => "tcp",
        }
    }
}

#[cfg(test)]
mod tests;

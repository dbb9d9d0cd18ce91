//! `traefik.http.routers.NAME` and `traefik.tcp.routers.NAME`: one route each.

use std::collections::BTreeMap;

use super::Kind;
use super::middlewares::Chain;
use super::services::Service;
use super::tree::{Label, Options, Tree, elements, flag, is_list, local};
use crate::model::rule::Rule;
use crate::model::{AcmeName, EntryPointName, RoutePart, RouteSpec, RouteTls};

/// A router as far as it is understood.
struct Router<'a> {
    kind: Kind,
    rule: Option<(Label<'a>, Rule)>,
    priority: Option<i64>,
    entry_points: Vec<EntryPointName>,
    needs_tls: bool,
    /// It goes on as it came (connections).
    passes: bool,
    acme: Option<AcmeName>,
    /// What certificates are to be for, as far as labels say.
    domains: Vec<(Label<'a>, String)>,
    service: Option<(Label<'a>, String)>,
    /// The route is not served.
    faults: Vec<String>,
    /// What of its place is not known.
    unknown: Vec<RoutePart>,
    chain: Chain,
    /// Something is to be asked of its clients.
    restricts: bool,
    /// It is, otherwise than they may expect.
    notes: Vec<String>,
}

/// A router, understood.
pub(super) struct Read {
    /// Closed where it is not served. `None`: nobody knows whose requests it would have.
    pub(super) route: Option<RouteSpec>,
    /// It may have been to ask something of its clients, so that none of its requests may go by another route.
    pub(super) restricts: bool,
    /// What is to be known of it, or is wrong.
    pub(super) said: Vec<String>,
}

pub(super) fn read(
    kind: Kind,
    name: &str,
    options: &Options<'_>,
    services: &BTreeMap<String, Service>,
    tree: &Tree<'_>,
) -> Read {
    let mut router = Router::new(kind);
    for (option, label) in options {
        if let Err(fault) = router.take(option, *label, tree) {
            router.unknown.extend(part_of(option));
            router.faults.push(format!("{label}: {fault}: the route is not served"));
        }
    }
    let target = router.target(name, services);
    let (tls, has_tls) = (router.tls(), router.has_tls());
    let Some((label, rule)) = router.rule else {
        if !options.contains_key("rule") {
            router.faults.push(format!(
                "label traefik.{}.routers.{name}.rule: expected one, such as {}(`a.example`)",
                kind.as_str(),
                match kind {
                    Kind::Requests => "Host",
                    Kind::Connections => "HostSNI",
                }
            ));
        }
        return Read {
            route: None,
            restricts: router.restricts,
            said: router.faults,
        };
    };
    if kind == Kind::Connections && !has_tls && rule.asks_for_name() {
        router.faults.push(format!(
            "{label}: expected traefik.tcp.routers.{name}.tls=true beside it: without TLS no client says a name, and HostSNI(`*`) is all: \
             the route is not served"
        ));
    }
    if let Some(fault) = router.chain.fault_beside(&rule) {
        router
            .faults
            .push(format!("{label}: middleware {fault}: the route is not served"));
    }
    let hosts = rule.named_hosts();
    for (label, domain) in router.domains.iter().filter(|(_, domain)| !hosts.contains(&**domain)) {
        let why = match domain.contains('*') {
            true => "a wildcard takes dnsChallenge, which there is not",
            false => "certificates are ordered for the hosts that the rule names",
        };
        router
            .notes
            .push(format!("{label}: no certificate is ordered for {domain}: {why}"));
    }
    let mut route = RouteSpec::new(rule, label.key);
    route.priority = router.priority;
    route.entry_points = router.entry_points;
    route.tls = tls;
    route.acme = router.acme;
    route.target = target.unwrap_or(0);
    route.filters = router.chain.into_filters();
    if !router.faults.is_empty() {
        route.close(|part| router.unknown.contains(&part));
        if tls == RouteTls::Without {
            // What was to be of its TLS may not be known.
            route.tls = RouteTls::AsEntryPoint;
        }
    }
    let said = match route.is_closed {
        true => router.faults,
        false => router.notes,
    };
    Read {
        route: Some(route),
        restricts: router.restricts,
        said,
    }
}

/// Which part of a route an option says.
fn part_of(option: &str) -> Option<RoutePart> {
    match option {
        "priority" => Some(RoutePart::Priority),
        _ if is_list(option, "entrypoints") => Some(RoutePart::EntryPoints),
        _ => None,
    }
}

impl<'a> Router<'a> {
    fn new(kind: Kind) -> Router<'a> {
        Router {
            kind,
            rule: None,
            priority: None,
            entry_points: Vec::new(),
            needs_tls: false,
            passes: false,
            acme: None,
            domains: Vec::new(),
            service: None,
            faults: Vec::new(),
            unknown: Vec::new(),
            chain: Chain::default(),
            restricts: false,
            notes: Vec::new(),
        }
    }

    fn has_tls(&self) -> bool {
        self.needs_tls || self.passes
    }

    fn tls(&self) -> RouteTls {
        match self.kind {
            _ if self.passes => RouteTls::Passthrough,
            _ if self.needs_tls => RouteTls::Ended,
            Kind::Requests => RouteTls::AsEntryPoint,
            Kind::Connections => RouteTls::Without,
        }
    }

    /// Errors: what was expected, or what has no counterpart.
    fn take(&mut self, option: &str, label: Label<'a>, tree: &Tree<'_>) -> Result<(), String> {
        let text = label.value;
        self.restricts |= is_list(option, "middlewares") || option == "tls.options";
        match option {
            "rule" => {
                let rule = text
                    .parse::<Rule>()
                    .map_err(|error| format!("expected {}", error.expected))?;
                match (self.kind, rule.is_of_connections()) {
                    (Kind::Requests, true) => {
                        return Err("expected Host, Path and the like: HostSNI is of traefik.tcp.routers".to_owned());
                    }
                    (Kind::Connections, false) => {
                        return Err("expected HostSNI: what is asked of requests is of traefik.http.routers".to_owned());
                    }
                    _ => self.rule = Some((label, rule)),
                }
            }
            "priority" => {
                let priority = text.parse::<i64>();
                let priority = priority.map_err(|_| "expected a whole number, such as 100".to_owned())?;
                // As Traefik has it: nothing is said.
                self.priority = Some(priority).filter(|priority| *priority != 0);
            }
            "service" => self.service = Some((label, local(text)?)),
            "tls" => {
                let is_asked_for = flag(text).ok_or_else(|| "expected true or false".to_owned())?;
                self.needs_tls |= is_asked_for;
            }
            "tls.certresolver" => {
                self.needs_tls = true;
                let name = text.parse::<AcmeName>();
                self.acme = Some(name.map_err(|error| format!("expected {}", error.expected))?);
            }
            _ if option.starts_with("tls.domains") => {
                self.needs_tls = true;
                self.domains
                    .extend(elements(text).map(|name| (label, name.to_ascii_lowercase())));
            }
            // What is asked of clients may be a certificate.
            "tls.options" if local(text).is_ok_and(|name| name == "default") => self.needs_tls = true,
            "tls.passthrough" if self.kind == Kind::Connections => {
                self.passes = flag(text).ok_or_else(|| "expected true or false".to_owned())?;
            }
            _ if is_list(option, "middlewares") && self.kind == Kind::Connections => {
                return Err("no counterpart: in mode tcp nothing is done on the way".to_owned());
            }
            "rulesyntax" if matches!(text, "v2" | "v3" | "default") => {}
            _ if option.starts_with("observability.") => {}
            _ if is_list(option, "entrypoints") => {
                for name in elements(text) {
                    let name = name.parse::<EntryPointName>();
                    self.entry_points
                        .push(name.map_err(|error| format!("expected {}", error.expected))?);
                }
            }
            _ if is_list(option, "middlewares") => {
                let refused: Vec<String> = elements(text)
                    .filter_map(|reference| self.chain.take(reference, tree).err())
                    .collect();
                if !refused.is_empty() {
                    return Err(refused.join("; "));
                }
            }
            _ if option == "tls.options" => return Err("no counterpart yet".to_owned()),
            _ => return Err("no such option, or none with a counterpart".to_owned()),
        }
        Ok(())
    }

    /// The port that tasks listen on for it, 0 where no label says; `None`: it leads nowhere, as is noted.
    fn target(&mut self, name: &str, services: &BTreeMap<String, Service>) -> Option<u16> {
        let known = || services.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let service = match (&self.service, services.len()) {
            (None, 0) => return Some(0),
            (None, 1) => services.values().next(),
            (None, _) => {
                self.faults.push(format!(
                    "label traefik.{}.routers.{name}.service: expected one of {}: the route is not served",
                    self.kind.as_str(),
                    known()
                ));
                return None;
            }
            (Some((label, wanted)), _) => {
                let service = services.get(wanted);
                if service.is_none() {
                    self.faults.push(format!(
                        "{label}: there is no service {wanted} among the labels of this service ({}): the route is not served",
                        known()
                    ));
                }
                service
            }
        }?;
        if !service.faults.is_empty() {
            self.faults.push(format!(
                "label traefik.{}.routers.{name}: the route is not served before what is wrong with its service's labels is put right",
                self.kind.as_str()
            ));
            return None;
        }
        Some(service.port.unwrap_or(0))
    }
}

//! Options of a service of a cluster, from its labels that begin with `anynode.`. Pure. A wrong one is a fault, and the option
//! keeps its default; what becomes of the service then, whoever asks decides. Not here: the services file, which has the
//! same options.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::Bound;
use std::str::FromStr;
use std::time::Duration;

use super::{
    AtOdds, EntryPointName, HealthCheck, HealthProbe, InvalidValue, Mode, OneMode, RoutePart, RouteParts, RouteSpec,
    ServiceName, ServiceSpec, Sticky, Weight, nearest, parse_duration, traefik,
};

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

/// Every label that is understood.
pub const KNOWN: [&str; 37] = [
    MODE,
    "anynode.balance",
    HASH,
    "anynode.prefer",
    "anynode.slow-start",
    STICKY,
    COOKIE,
    SECURE,
    HTTP_ONLY,
    SAME_SITE,
    "anynode.bind",
    ROUTE,
    "anynode.priority",
    "anynode.entrypoints",
    PORT,
    "anynode.proxy-protocol",
    "anynode.health.http",
    "anynode.health.tcp",
    "anynode.health.interval",
    "anynode.health.timeout",
    "anynode.health.rise",
    "anynode.health.fall",
    "anynode.health.passive",
    "anynode.timeout.connect",
    "anynode.timeout.idle",
    "anynode.timeout.half-closed",
    "anynode.timeout.request-head",
    "anynode.timeout.response",
    "anynode.limit.connections",
    "anynode.limit.endpoint-connections",
    "anynode.limit.queue",
    "anynode.limit.queue-timeout",
    "anynode.limit.hold",
    "anynode.limit.hold-timeout",
    "anynode.client-address",
    "anynode.abort-on-client-close",
    DOCKER_SOCKET,
];

/// What our labels begin with.
const PREFIX: &str = "anynode.";

/// Whether a label is meant for us. In other letters than small ones it is none of our options, which is to be said.
pub fn is_ours(label: &str) -> bool {
    let begin = label.get(..PREFIX.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX))
}

pub const STICKY: &str = "anynode.sticky";
const COOKIE: &str = "anynode.sticky.cookie";
const SECURE: &str = "anynode.sticky.secure";
const HTTP_ONLY: &str = "anynode.sticky.http-only";
const SAME_SITE: &str = "anynode.sticky.same-site";

const HASH: &str = "anynode.hash";

pub const MODE: &str = "anynode.mode";

/// Which requests to entry points are the service's.
pub const ROUTE: &str = "anynode.route";

/// What labels of several routes begin with: a name of each follows, and one of `ROUTE_OPTIONS`.
pub const ROUTES: &str = "anynode.routes.";

const ROUTE_OPTIONS: [RoutePart; 4] = [
    RoutePart::Rule,
    RoutePart::Priority,
    RoutePart::EntryPoints,
    RoutePart::Port,
];

/// The port that tasks listen on for them.
pub const PORT: &str = "anynode.port";

/// How much the tasks on a node get beside those of other nodes: a label of nodes.
pub const WEIGHT: &str = "anynode.weight";

/// Whose socket tasks get that mount the engine's. It says nothing of connections to the service.
pub const DOCKER_SOCKET: &str = "anynode.docker-socket";

/// Of a service's labels those that may say how it is served: ours, and Traefik's if they say that it is to see them. Whether those are
/// read, each node's configuration says.
pub fn meant<'a>(all: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> BTreeMap<String, String> {
    let is_traefiks = traefik::is_enabled(all.clone());
    all.filter(|(label, _)| is_ours(label) || (is_traefiks && traefik::is_label(label)))
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
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

/// The labels of ours whose values mean nothing. Names that are no options are none of them.
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
    for (label, value) in labels.iter().filter(|(label, _)| label.starts_with("anynode.")) {
        match (label.as_str(), value.trim().parse()) {
            (WEIGHT, Ok(said)) => weight = said,
            (WEIGHT, Err(error)) => faults.push(format!("label {label}: {error}")),
            _ => faults.push(format!(
                "label {label}={value}: no such option of a node: expected {WEIGHT}"
            )),
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
    // By its routes a service is of mode http; what else is wrong with them is said elsewhere.
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
    spec.sticky = reader.sticky();
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
    if !spec.routes.is_empty() && !labels.contains_key(MODE) {
        spec.mode = Mode::Http;
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
    // Of a mode that means nothing it is not known what it was to be.
    if !reader.wrong.contains(MODE) {
        let was_said = |option: &OneMode| labels.contains_key(option.label) && !reader.wrong.contains(option.label);
        for option in OneMode::out_of_place(spec, was_said).collect::<Vec<_>>() {
            let value = &labels[option.label];
            reader.faults.push(format!("label {}={value}: {option}", option.label));
            reader.wrong.insert(option.label.to_owned());
        }
        spec.proxy_protocol = spec.proxy_protocol.filter(|_| spec.mode == Mode::Tcp);
        reader.refuse_routes_without_requests(spec);
    }
    for (label, value) in labels {
        if label == WEIGHT {
            reader.faults.push(format!(
                "label {label}={value}: expected on nodes (docker node update --label-add {label}=2 NODE): \
                 of a service it would say the same of all tasks"
            ));
        } else if is_ours(label) && !KNOWN.contains(&label.as_str()) && named_route(label).is_none() {
            reader
                .faults
                .push(format!("label {label}={value}: no such option{}", hint(label)));
        }
    }
    Labels {
        bind,
        faults: reader.faults,
        wrong: reader.wrong,
        wrong_of_routes: reader.wrong_of_routes,
    }
}

/// Which option was meant, by its spelling; all there are where it is like none.
fn hint(label: &str) -> String {
    let label = label.to_ascii_lowercase();
    let route = label.strip_prefix(ROUTES).and_then(|rest| rest.split_once('.'));
    let named = ROUTE_OPTIONS.map(|part| label_of(Some(route.map_or("NAME", |(name, _)| name)), part));
    let known = KNOWN.map(str::to_owned).into_iter().chain(named);
    match nearest(&label, known.clone()) {
        Some(nearest) => format!("; there is {nearest}"),
        None => format!(": expected one of {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// The name of the route that a label is of, and which part of it.
fn named_route(label: &str) -> Option<(&str, RoutePart)> {
    let (name, option) = label.strip_prefix(ROUTES)?.split_once('.')?;
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let part = ROUTE_OPTIONS.into_iter().find(|part| part.as_str() == option)?;
    (!name.is_empty() && name.bytes().all(is_name)).then_some((name, part))
}

/// The label of a part of the route whose rule the label `rule` says.
pub fn beside(rule: &str, part: RoutePart) -> String {
    match rule.strip_suffix(".rule") {
        Some(route) => format!("{route}.{}", part.as_str()),
        None => label_of(None, part),
    }
}

/// The label of a part of that route; `None`: of the one without a name.
fn label_of(name: Option<&str>, part: RoutePart) -> String {
    match (name, part) {
        (Some(name), part) => format!("{ROUTES}{name}.{}", part.as_str()),
        (None, RoutePart::Rule) => ROUTE.to_owned(),
        (None, part) => format!("anynode.{}", part.as_str()),
    }
}

struct Reader<'a> {
    labels: &'a BTreeMap<String, String>,
    faults: Vec<String>,
    wrong: BTreeSet<String>,
    wrong_of_routes: BTreeSet<String>,
}

impl Reader<'_> {
    /// Gives the label's text to `take`, if there is such a label, and notes what it refuses.
    fn read<E: Display>(&mut self, label: &str, take: impl FnOnce(&str) -> Result<(), E>) {
        if let Some(text) = self.labels.get(label)
            && let Err(error) = take(text.trim())
        {
            self.faults.push(format!("label {label}: {error}"));
            self.wrong.insert(label.to_owned());
        }
    }

    fn set<T: FromStr<Err: Display>>(&mut self, label: &str, to: &mut T) {
        self.read(label, |text| text.parse().map(|value| *to = value));
    }

    fn set_some<T: FromStr<Err: Display>>(&mut self, label: &str, to: &mut Option<T>) {
        self.read(label, |text| text.parse().map(|value| *to = Some(value)));
    }

    fn span(&mut self, label: &str, least: Duration, to: &mut Duration) {
        self.read(label, |text| {
            let span = parse_duration(text)?;
            if span < least {
                return Err(InvalidValue::new(
                    text,
                    "a longer duration: 1ms at least, for health.interval 10ms",
                ));
            }
            *to = span;
            Ok(())
        });
    }

    fn number(&mut self, label: &str, least: u32, to: &mut u32) {
        self.read(label, |text| match text.parse::<u32>() {
            Ok(number) if number >= least => {
                *to = number;
                Ok(())
            }
            _ if least > 0 => Err(InvalidValue::new(text, "a whole number from 1 to 4294967295")),
            _ => Err(InvalidValue::new(
                text,
                "a whole number up to 4294967295; 0 means no limit",
            )),
        });
    }

    fn flag(&mut self, label: &str, to: &mut bool) {
        self.read(label, |text| match text {
            "true" | "false" => {
                *to = text == "true";
                Ok(())
            }
            _ => Err(InvalidValue::new(text, "true or false")),
        });
    }

    fn sticky(&mut self) -> Option<Sticky> {
        let (mut is_on, mut sticky) = (false, Sticky::default());
        self.flag(STICKY, &mut is_on);
        self.set(COOKIE, &mut sticky.cookie);
        self.flag(SECURE, &mut sticky.secure);
        self.flag(HTTP_ONLY, &mut sticky.http_only);
        self.set_some(SAME_SITE, &mut sticky.same_site);
        if let Err(expected) = sticky.check()
            && let Some(value) = self.labels.get(SAME_SITE)
        {
            self.faults.push(format!("label {SAME_SITE}={value}: {expected}"));
            self.wrong.insert(SAME_SITE.to_owned());
        }
        let is_alone = !is_on && !self.wrong.contains(STICKY);
        for label in [COOKIE, SECURE, HTTP_ONLY, SAME_SITE] {
            if let Some(value) = self.labels.get(label)
                && is_alone
                && !self.wrong.contains(label)
            {
                // It asks for nothing by itself, so that nothing is served otherwise for it.
                let fault = format!("label {label}={value}: expected {STICKY}=true beside it");
                self.faults.push(fault);
            }
        }
        is_on.then_some(sticky)
    }

    /// The route with that name, or the one without.
    fn route(&mut self, name: Option<&str>) -> Option<RouteSpec> {
        let label = |part| label_of(name, part);
        let mut parts = RouteParts::default();
        self.set_some(&label(RoutePart::Rule), &mut parts.rule);
        self.read(&label(RoutePart::Priority), |text| match text.parse::<i64>() {
            // As Traefik has it: nothing is said.
            Ok(0) => Ok(()),
            Ok(priority) => {
                parts.priority = Some(priority);
                Ok(())
            }
            Err(_) => Err(InvalidValue::new(text, "a whole number, such as 100")),
        });
        self.read(&label(RoutePart::EntryPoints), |text| {
            let names: Result<Vec<EntryPointName>, _> = text.split(',').map(|name| name.trim().parse()).collect();
            names.map(|names| parts.entry_points = Some(names))
        });
        self.read(&label(RoutePart::Port), |text| match text.parse::<u16>() {
            Ok(port @ 1..) => {
                parts.port = Some(port);
                Ok(())
            }
            _ => Err(InvalidValue::new(text, "a port from 1 to 65535")),
        });
        if self.wrong.contains(&label(RoutePart::Rule)) {
            return None;
        }
        let route = parts.into_route(&label(RoutePart::Rule));
        route.unwrap_or_else(|(part, expected)| {
            let label = label(part);
            let value = self.labels.get(&label).map_or("", String::as_str);
            // It asks for nothing by itself, so that nothing is served otherwise for it.
            self.faults.push(format!("label {label}={value}: {expected}"));
            None
        })
    }

    /// Those with names. One that is wrong in anything is left out, and nothing else for it.
    fn named_routes(&mut self) -> Vec<RouteSpec> {
        let labels = self.labels;
        let names: BTreeSet<&str> = labels.keys().filter_map(|label| Some(named_route(label)?.0)).collect();
        let of_service = std::mem::take(&mut self.wrong);
        let mut routes = Vec::new();
        for name in names {
            let route = self.route(Some(name));
            let wrong = std::mem::take(&mut self.wrong);
            routes.extend(route.filter(|_| wrong.is_empty()));
            self.wrong_of_routes.extend(wrong);
        }
        self.wrong = of_service;
        routes
    }

    /// Routes of a service in mode tcp, but for the one without a name, which is refused with its service.
    fn refuse_routes_without_requests(&mut self, spec: &mut ServiceSpec) {
        if spec.mode == Mode::Http {
            return;
        }
        for route in spec.routes.extract_if(.., |route| &*route.said_by != ROUTE) {
            let RouteSpec { rule, said_by, .. } = route;
            self.faults.push(format!(
                "label {said_by}={rule}: expected mode http: in tcp mode there are no requests"
            ));
            self.wrong_of_routes.insert(said_by.to_string());
        }
    }

    fn health(&mut self) -> Option<HealthCheck> {
        let mut path = None;
        self.read("anynode.health.http", |text| {
            match text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) {
                true => {
                    path = Some(text.to_owned());
                    Ok(())
                }
                false => Err(InvalidValue::new(text, "a path that begins with /, such as /health")),
            }
        });
        let mut is_tcp = false;
        self.flag("anynode.health.tcp", &mut is_tcp);
        let probe = match (path, is_tcp) {
            (Some(path), false) => Some(HealthProbe::Http { path }),
            (None, true) => Some(HealthProbe::Tcp),
            (Some(path), true) => {
                let fault = "labels anynode.health.http and anynode.health.tcp: expected one of them; http is used";
                self.faults.push(fault.to_owned());
                Some(HealthProbe::Http { path })
            }
            (None, false) => None,
        };
        let mut check = HealthCheck::new(probe.clone().unwrap_or(HealthProbe::Tcp));
        self.span(
            "anynode.health.interval",
            Duration::from_millis(10),
            &mut check.interval,
        );
        self.span("anynode.health.timeout", Duration::from_millis(1), &mut check.timeout);
        self.number("anynode.health.rise", 1, &mut check.rise);
        self.number("anynode.health.fall", 1, &mut check.fall);
        probe.map(|_| check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Balance, ProxyProtocol};

    fn read(labels: &[(&str, &str)]) -> (ServiceSpec, Labels) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
        let rest = apply(&labels, &mut spec);
        (spec, rest)
    }

    #[test]
    fn labels_set_what_the_services_file_sets() {
        let (spec, labels) = read(&[
            ("anynode.mode", "tcp"),
            ("anynode.balance", "least-request"),
            ("anynode.bind", "192.0.2.1"),
            ("anynode.proxy-protocol", "v2"),
            ("anynode.health.http", "/health"),
            ("anynode.health.interval", "2s"),
            ("anynode.timeout.idle", "1m"),
            ("anynode.limit.connections", "7"),
        ]);
        assert_eq!(labels.faults, [] as [String; 0]);
        assert_eq!(labels.bind, Some("192.0.2.1".parse().unwrap()));
        assert_eq!((spec.mode, spec.balance), (Mode::Tcp, Balance::LeastRequest));
        assert_eq!(spec.proxy_protocol, Some(ProxyProtocol::V2));
        assert_eq!(spec.timeouts.idle, Duration::from_secs(60));
        assert_eq!(spec.limits.connections, 7);
        let check = spec.health.unwrap();
        assert_eq!(
            check.probe,
            HealthProbe::Http {
                path: "/health".to_owned()
            }
        );
        assert_eq!(check.interval, Duration::from_secs(2));
    }

    #[test]
    fn a_route_is_of_several_labels_and_makes_the_mode_http() {
        let (spec, labels) = read(&[
            ("anynode.route", "Host(`a.test`) && PathPrefix(`/api`)"),
            ("anynode.priority", "7"),
            ("anynode.entrypoints", "web, other"),
            ("anynode.port", "8080"),
        ]);
        assert_eq!(labels, Labels::default());
        assert_eq!(
            (spec.mode, spec.routes[0].target, spec.routes[0].priority()),
            (Mode::Http, 8080, 7)
        );
        let names: Vec<&str> = spec.routes[0].entry_points.iter().map(EntryPointName::as_str).collect();
        assert_eq!(names, ["web", "other"]);
        for (wrong, expected) in [
            (
                ("anynode.route", "Hots(`a`)"),
                "label anynode.route: \"Hots(`a`)\" is not valid: expected Host, ",
            ),
            (
                ("anynode.priority", "5"),
                "label anynode.priority=5: expected a route beside it",
            ),
            (
                ("anynode.entrypoints", "web"),
                "label anynode.entrypoints=web: expected a route beside it",
            ),
            (
                ("anynode.port", "80"),
                "label anynode.port=80: expected a route beside it",
            ),
            (
                ("anynode.port", "0"),
                "label anynode.port: \"0\" is not valid: expected a port from 1",
            ),
            (
                ("anynode.entrypoints", "a b"),
                "label anynode.entrypoints: \"a b\" is not valid: expected an entry point's name",
            ),
        ] {
            let (spec, labels) = read(&[wrong]);
            assert!(labels.faults[0].starts_with(expected), "{labels:?}");
            // What asks for nothing by itself takes nothing away either.
            let is_left_over = expected.contains("expected a route");
            assert_eq!((labels.wrong.is_empty(), spec.routes.len()), (is_left_over, 0));
        }
        let (_, labels) = read(&[("anynode.mode", "tcp"), ("anynode.route", "Host(`a`)")]);
        assert_eq!(
            labels.faults,
            ["label anynode.route=Host(`a`): expected mode http: in tcp mode there are no requests"]
        );
    }

    #[test]
    fn routes_with_names_stand_and_fall_each_by_itself() {
        let (spec, labels) = read(&[
            ("anynode.route", "Host(`a.test`)"),
            ("anynode.port", "80"),
            ("anynode.routes.admin.rule", "Host(`a.test`) && PathPrefix(`/admin`)"),
            ("anynode.routes.admin.port", "8080"),
            ("anynode.routes.admin.priority", "900"),
            ("anynode.routes.admin.entrypoints", "inner"),
            ("anynode.routes.wrong.rule", "Hots(`a`)"),
            ("anynode.routes.port.rule", "Host(`b.test`)"),
            ("anynode.routes.port.port", "0"),
            ("anynode.routes.none.port", "80"),
            ("anynode.routes.a.b.rule", "Host(`c.test`)"),
        ]);
        let routes: Vec<_> = spec
            .routes
            .iter()
            .map(|route| (&*route.said_by, route.target, route.priority()))
            .collect();
        let first = spec.routes[0].rule.priority();
        assert_eq!(
            routes,
            [("anynode.route", 80, first), ("anynode.routes.admin.rule", 8080, 900)]
        );
        assert_eq!(spec.routes[1].entry_points, ["inner".parse().unwrap()]);
        assert_eq!(labels.wrong, BTreeSet::new());
        let wrong = ["anynode.routes.port.port", "anynode.routes.wrong.rule"];
        assert_eq!(labels.wrong_of_routes, wrong.map(str::to_owned).into());
        for expected in [
            "label anynode.routes.wrong.rule: \"Hots(`a`)\" is not valid: expected Host, ",
            "label anynode.routes.port.port: \"0\" is not valid: expected a port",
            "label anynode.routes.none.port=80: expected a route beside it",
            "label anynode.routes.a.b.rule=Host(`c.test`): no such option; there is anynode.routes.a.rule",
        ] {
            let is_said = labels.faults.iter().any(|fault| fault.starts_with(expected));
            assert!(is_said, "{expected}: {labels:?}");
        }
        assert_eq!(labels.faults.len(), 4);

        let (spec, labels) = read(&[("anynode.mode", "tcp"), ("anynode.routes.x.rule", "Host(`a`)")]);
        assert_eq!((spec.mode, spec.routes.len(), labels.wrong.len()), (Mode::Tcp, 0, 0));
        assert!(labels.faults[0].starts_with("label anynode.routes.x.rule=Host(`a`): expected mode http"));
    }

    #[test]
    fn an_option_of_the_other_mode_is_refused() {
        let of_http = [
            ("anynode.abort-on-client-close", "true"),
            ("anynode.timeout.request-head", "1s"),
            ("anynode.timeout.response", "5s"),
        ];
        let of_tcp = [
            ("anynode.proxy-protocol", "v1"),
            ("anynode.client-address", "transparent"),
        ];
        for (mode, fits, others) in [("http", &of_http[..], &of_tcp[..]), ("tcp", &of_tcp, &of_http)] {
            for option in fits {
                assert_eq!(read(&[("anynode.mode", mode), *option]).1, Labels::default());
            }
            for option in others {
                let (_, labels) = read(&[("anynode.mode", mode), *option]);
                let begin = format!("label {}={}: expected mode ", option.0, option.1);
                assert!(labels.faults[0].starts_with(&begin), "{labels:?}");
                assert_eq!(labels.wrong, BTreeSet::from([option.0.to_owned()]));
                // Of a mode that is none nothing follows.
                assert_eq!(read(&[("anynode.mode", "htp"), *option]).1.faults.len(), 1);
            }
        }
        for said_and_kept in [
            ("anynode.abort-on-client-close", "false"),
            ("anynode.timeout.response", "0s"),
        ] {
            assert_eq!(read(&[said_and_kept]).1, Labels::default());
        }
        let none = read(&[("anynode.mode", "http"), ("anynode.client-address", "none")]);
        assert_eq!(none.1, Labels::default());
    }

    #[test]
    fn what_goes_only_with_other_labels_is_refused_without_them() {
        for (labels, expected) in [
            (
                &[("anynode.hash", "header:X-User"), ("anynode.mode", "http")][..],
                "label anynode.hash=header:X-User: expected balance hash",
            ),
            (
                &[("anynode.hash", "cookie:a"), ("anynode.balance", "hash")],
                "label anynode.hash=cookie:a: expected mode http",
            ),
            (
                &[("anynode.prefer", "local"), ("anynode.balance", "hash")],
                "label anynode.prefer=local: expected another balance",
            ),
            (
                &[("anynode.slow-start", "1s"), ("anynode.balance", "hash")],
                "label anynode.slow-start=1s: expected another balance",
            ),
            (
                &[("anynode.sticky", "true")],
                "label anynode.sticky=true: expected mode http",
            ),
            (
                &[("anynode.sticky.secure", "true"), ("anynode.mode", "http")],
                "label anynode.sticky.secure=true: expected anynode.sticky=true",
            ),
            (
                &[
                    ("anynode.sticky", "true"),
                    ("anynode.sticky.same-site", "none"),
                    ("anynode.mode", "http"),
                ],
                "label anynode.sticky.same-site=none: expected secure",
            ),
            (&[("anynode.weight", "2")], "label anynode.weight=2: expected on nodes"),
        ] {
            let (_, said) = read(labels);
            assert!(
                said.faults.len() == 1 && said.faults[0].starts_with(expected),
                "{said:?}"
            );
        }
        let (spec, labels) = read(&[
            ("anynode.mode", "http"),
            ("anynode.sticky", "true"),
            ("anynode.sticky.cookie", "at"),
            ("anynode.sticky.http-only", "false"),
            ("anynode.balance", "hash"),
            ("anynode.hash", "cookie:user"),
        ]);
        assert_eq!(labels, Labels::default());
        let sticky = spec.sticky.unwrap();
        assert_eq!((sticky.cookie.as_str(), sticky.http_only), ("at", false));
        assert_eq!(spec.hash, crate::model::HashKey::Cookie("user".into()));
    }

    #[test]
    fn each_wrong_label_is_named_and_changes_nothing() {
        let default = read(&[]).0;
        for label in KNOWN {
            // A word is an entry point's name, or a cookie's.
            let wrong = if ["anynode.entrypoints", COOKIE].contains(&label) {
                "z z"
            } else {
                "zzz"
            };
            let (spec, labels) = read(&[(label, wrong)]);
            assert_eq!(labels.faults.len(), 1, "{label}");
            assert!(
                labels.faults[0].contains(label) && labels.faults[0].contains(&format!("{wrong:?}")),
                "{label}"
            );
            assert!(labels.faults[0].contains("expected"), "{label}");
            assert_eq!(labels.wrong, BTreeSet::from([label.to_owned()]));
            assert_eq!(spec, default, "{label}");
        }
        let (spec, labels) = read(&[("anynode.moda", "http"), ("anynode.mode", "http")]);
        assert_eq!(spec.mode, Mode::Http);
        assert_eq!(
            labels.faults,
            ["label anynode.moda=http: no such option; there is anynode.mode"]
        );
        for (label, hint) in [
            ("Anynode.Mode", "; there is anynode.mode"),
            ("ANYNODE.routes.shop.rule", "; there is anynode.routes.shop.rule"),
            ("anynode.routes.shop.prority", "; there is anynode.routes.shop.priority"),
            ("anynode.entrypoint", "; there is anynode.entrypoints"),
            (
                "anynode.something-else",
                ": expected one of anynode.mode, anynode.balance, ",
            ),
        ] {
            let (spec, labels) = read(&[(label, "http")]);
            let expected = format!("label {label}=http: no such option{hint}");
            assert!(labels.faults[0].starts_with(&expected), "{labels:?}");
            assert_eq!((spec.mode, labels.wrong.len()), (Mode::Tcp, 0));
        }
    }
}

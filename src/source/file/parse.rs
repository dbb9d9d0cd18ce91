//! The text of a services file to what it declares. Pure. Not here: where the text comes from (`watch`), and conflicts
//! between services (`routing`).

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::endpoints::{Declared, EndpointDto};
use super::guards::{BasicAuthDto, CompressDto, ForwardAuthDto, RedirectDto};
use super::text::Text;
use super::words;
use crate::model::filters::{FieldEdit, Filters, PathText, ToHttps, network};
use crate::model::guards::{BodyMost, Cap, Guards, Rate, Retries};
use crate::model::rule::Rule;
use crate::model::{
    AcmeName, AtOdds, Balance, CaName, ClientAddress, CookieName, EndpointTls, EntryPointName, HashKey, HealthCheck,
    HealthProbe, HostName, Limits, Mode, OneMode, Passive, Pins, Prefer, ProxyProtocol, PublishedPort, RoutePart,
    RouteParts, RouteSpec, RouteTls, SameSite, Scheme, ServiceName, ServiceSpec, Sticky, StickyKey, TlsOption, Verify,
    parse_duration,
};

/// Why a services file says nothing: where, under which key, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    pub line: Option<u64>,
    /// As in `services.my-web.publish[0]`; empty where the text is not YAML at all.
    pub key: String,
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Reads a services file. Errors: the first thing that is wrong; then nothing of the file counts.
pub fn parse(text: &str) -> Result<Vec<Declared>, ParseError> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Err(ParseError {
            line: None,
            key: "services".to_owned(),
            message: "the file is empty: expected services by their names".to_owned(),
        });
    }
    // Twice the size of any file that makes sense, and small enough to be refused before it hurts.
    let budget = serde_saphyr::budget! {
        max_events: 40_000_000,
        max_nodes: 20_000_000,
        max_total_scalar_bytes: 256 * 1024 * 1024,
        max_aliases: 0,
        max_anchors: 0,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::Error,
        with_snippet: false,
    };
    let mut key = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_path_to_error::deserialize::<_, FileDto>(deserializer).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    match parsed {
        Ok(file) => Ok(file.services.0),
        Err(error) => {
            let error = error.without_snippet();
            let place = error.location().filter(|place| place.line() > 0);
            let shown = error.to_string();
            // The position is said once, by us.
            let message = shown.split(" at line ").next().unwrap_or(&shown);
            // Where the library lost its way through a list of keys, it says so with a question mark.
            let key = words::plain_key(key.trim_end_matches(['.', '?'])).to_owned();
            let value = place.and_then(|place| scalar_at(text, place.line(), place.column()));
            let message = words::plain(message, &key, value);
            let line = place.map(|place| place.line());
            Err(ParseError { line, key, message })
        }
    }
}

/// What stands at a place of a text, as far as a scalar without quotes goes; both count from one.
fn scalar_at(text: &str, line: u64, column: u64) -> Option<&str> {
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let column = usize::try_from(column).ok()?.checked_sub(1)?;
    let (start, _) = line.char_indices().nth(column)?;
    let rest = &line[start..];
    let scalar = rest.split([',', '}', ']', '#', '[', '{']).next().unwrap_or(rest).trim();
    (!matches!(scalar, "" | ":" | "-")).then_some(scalar)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDto {
    services: ServicesDto,
}

/// Services in file order. A visitor of its own, because two spellings of one name are one name.
struct ServicesDto(Vec<Declared>);

impl<'de> Deserialize<'de> for ServicesDto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ServicesDto, D::Error> {
        struct Services;
        impl<'de> Visitor<'de> for Services {
            type Value = ServicesDto;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("services by their names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ServicesDto, A::Error> {
                let mut services = Vec::new();
                let mut names = HashSet::new();
                while let Some(Text(name)) = map.next_key::<Text<Name>>()? {
                    if !names.insert(name.0.clone()) {
                        return Err(de::Error::custom(format_args!("service {} is declared twice", name.0)));
                    }
                    let service: ServiceDto = map.next_value()?;
                    let declared = service.into_declared(name.0.clone());
                    let declared =
                        declared.map_err(|error| de::Error::custom(format_args!("service {}: {error}", name.0)))?;
                    services.push(declared);
                }
                if services.is_empty() {
                    return Err(de::Error::custom(
                        "no service is declared: expected at least one, so that a half-written file stops nothing",
                    ));
                }
                Ok(ServicesDto(services))
            }
        }
        deserializer.deserialize_map(Services)
    }
}

/// Why a new file is not taken, though one that was taken before goes on: what it says could be read in two ways, or cannot be kept.
pub(super) fn objection(services: &[Declared]) -> Option<ParseError> {
    let of_one = services.iter().find_map(|it| {
        let expected = it.objection.as_ref()?;
        Some(format!("service {}: {expected}", it.spec.name))
    });
    let message = of_one.or_else(|| find_unasked(services))?;
    Some(ParseError {
        line: None,
        key: String::new(),
        message,
    })
}

/// A service whose requests another one is to be asked about that is not there, in words. One of the same stack may be called by what is left of
/// its name without the stack's.
fn find_unasked(services: &[Declared]) -> Option<String> {
    let names: HashSet<&str> = services.iter().map(|it| it.spec.name.key()).collect();
    services.iter().find_map(|it| {
        let spec = &it.spec;
        let forward = spec.filters.as_ref()?.guards.as_ref()?.forward.as_ref()?;
        let called = forward.address.service().to_ascii_lowercase();
        let mut beside = forward.address.names_beside(spec.name.key());
        let is_there = names.contains(&*called) || beside.any(|name| names.contains(&*name.to_ascii_lowercase()));
        (!is_there).then(|| {
            let key = format!("service {}: forward_auth.address", spec.name);
            format!("{key}: there is no service {called:?}: expected one of this file")
        })
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceDto {
    mode: Option<Text<Mode>>,
    publish: Option<Vec<Text<PublishedPort>>>,
    expose: Option<Vec<Port>>,
    route: Option<Text<Rule>>,
    priority: Option<Text<Priority>>,
    #[serde(default, deserialize_with = "said")]
    entrypoints: Option<Vec<Text<EntryPointName>>>,
    acme: Option<Text<AcmeName>>,
    port: Option<Port>,
    tls: Option<Text<RouteTls>>,
    routes: Option<Vec<RouteDto>>,
    balance: Option<Text<Balance>>,
    hash: Option<Text<HashKey>>,
    prefer: Option<Text<Prefer>>,
    #[serde(default, deserialize_with = "said")]
    scheme: Option<Text<Scheme>>,
    #[serde(default, deserialize_with = "said")]
    endpoint_tls: Option<EndpointTlsDto>,
    sticky: Option<StickyDto>,
    #[serde(default, deserialize_with = "said")]
    allow: Option<Vec<Text<Network>>>,
    #[serde(default, deserialize_with = "said")]
    https_only: Option<bool>,
    #[serde(default, deserialize_with = "said")]
    redirect_regex: Option<RedirectDto>,
    #[serde(default, deserialize_with = "said")]
    basic_auth: Option<BasicAuthDto>,
    #[serde(default, deserialize_with = "said")]
    forward_auth: Option<ForwardAuthDto>,
    #[serde(default, deserialize_with = "said")]
    rate: Option<Text<Rate>>,
    #[serde(default, deserialize_with = "said")]
    in_flight: Option<Text<Cap>>,
    #[serde(default, deserialize_with = "said")]
    in_flight_per_client: Option<Text<Cap>>,
    #[serde(default, deserialize_with = "said")]
    max_body: Option<Text<BodyMost>>,
    retries: Option<Text<Retries>>,
    strip_prefix: Option<Vec<Text<PathText>>>,
    replace_path: Option<Text<PathText>>,
    add_prefix: Option<Text<PathText>>,
    request_headers: Option<BTreeMap<String, Option<String>>>,
    response_headers: Option<BTreeMap<String, Option<String>>>,
    #[serde(default, deserialize_with = "said")]
    compress: Option<CompressDto>,
    slow_start: Option<Text<Span>>,
    proxy_protocol: Option<Text<ProxyProtocol>>,
    client_address: Option<Text<ClientAddress>>,
    abort_on_client_close: Option<bool>,
    health: Option<HealthDto>,
    stop_grace: Option<Text<Span>>,
    limits: Option<LimitsDto>,
    timeouts: Option<TimeoutsDto>,
    endpoints: Vec<EndpointDto>,
}

struct Network(IpNet);

impl FromStr for Network {
    type Err = crate::model::InvalidValue;

    fn from_str(text: &str) -> Result<Network, Self::Err> {
        network(text).map(Network)
    }
}

/// Fields by their names; null or nothing takes one away. Errors: which, and what was expected.
fn edits(key: &str, fields: Option<BTreeMap<String, Option<String>>>) -> Result<Arc<[FieldEdit]>, String> {
    let edit = |(name, value): (String, Option<String>)| -> Result<FieldEdit, String> {
        let wrong = |error: crate::model::InvalidValue| format!("{key}.{name}: {error}");
        let value = value.filter(|value| !value.trim().is_empty());
        let value = value.map(|value| value.parse().map_err(wrong)).transpose()?;
        Ok((name.parse().map_err(wrong)?, value))
    };
    let edits: Vec<FieldEdit> = fields
        .unwrap_or_default()
        .into_iter()
        .map(edit)
        .collect::<Result<_, _>>()?;
    for (i, (name, _)) in edits.iter().enumerate() {
        if edits[..i].iter().any(|(other, _)| other.is_same(name)) {
            return Err(format!(
                "{key}.{}: expected each header once, whatever its case",
                name.as_str()
            ));
        }
    }
    Ok(edits.into())
}

/// One of several.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteDto {
    rule: Text<Rule>,
    priority: Option<Text<Priority>>,
    entrypoints: Option<Vec<Text<EntryPointName>>>,
    acme: Option<Text<AcmeName>>,
    port: Option<Port>,
    tls: Option<Text<RouteTls>>,
}

impl RouteDto {
    /// `key`: where it stands.
    fn into_route(self, key: &str) -> Result<Option<RouteSpec>, String> {
        into_route(
            Some(self.rule),
            self.priority,
            self.entrypoints,
            self.port,
            self.tls,
            self.acme,
            key,
        )
        .map_err(|(part, expected)| format!("{key}.{}: {expected}", part.as_str()))
    }
}

fn into_route(
    rule: Option<Text<Rule>>,
    priority: Option<Text<Priority>>,
    entry_points: Option<Vec<Text<EntryPointName>>>,
    port: Option<Port>,
    tls: Option<Text<RouteTls>>,
    acme: Option<Text<AcmeName>>,
    key: &str,
) -> Result<Option<RouteSpec>, (RoutePart, &'static str)> {
    if entry_points.as_ref().is_some_and(Vec::is_empty) {
        return Err((
            RoutePart::EntryPoints,
            "expected at least one; without the key all are meant",
        ));
    }
    let parts = RouteParts {
        rule: rule.map(|text| text.0),
        // As in a label.
        priority: priority.map(|text| text.0.0).filter(|priority| *priority != 0),
        entry_points: entry_points.map(|names| names.into_iter().map(|text| text.0).collect()),
        port: port.map(|port| port.0),
        tls: tls.map(|text| text.0),
        acme: acme.map(|text| text.0),
    };
    parts.into_route(key)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StickyDto {
    key: Option<Text<StickyKey>>,
    cookie: Option<Text<CookieName>>,
    secure: Option<bool>,
    http_only: Option<bool>,
    same_site: Option<Text<SameSite>>,
}

impl StickyDto {
    fn into_sticky(self) -> Result<Sticky, String> {
        let Some(Text(key)) = self.key else {
            return Err("sticky.key: expected 16 characters at least, drawn at random, without which the cookie would tell addresses".to_owned());
        };
        let mut sticky = Sticky {
            key,
            same_site: self.same_site.map(|text| text.0),
            ..Sticky::default()
        };
        set(&mut sticky.cookie, self.cookie.map(|text| text.0));
        set(&mut sticky.secure, self.secure);
        set(&mut sticky.http_only, self.http_only);
        sticky
            .check()
            .map_err(|expected| format!("sticky.same_site: {expected}"))?;
        Ok(sticky)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointTlsDto {
    #[serde(default, deserialize_with = "said")]
    ca: Option<Text<CaName>>,
    #[serde(default, deserialize_with = "said")]
    server_name: Option<Text<HostName>>,
    #[serde(default, deserialize_with = "said")]
    pin: Option<Text<Pins>>,
    #[serde(default, deserialize_with = "said")]
    verify: Option<Text<Verify>>,
}

/// What stands under a key that is there: without a value it would say less than whoever wrote it meant.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl EndpointTlsDto {
    fn said(&self) -> Vec<TlsOption> {
        let all = [
            (self.ca.is_some(), EndpointTls::CA),
            (self.server_name.is_some(), EndpointTls::SERVER_NAME),
            (self.pin.is_some(), EndpointTls::PIN),
            (self.verify.is_some(), EndpointTls::VERIFY),
        ];
        all.into_iter()
            .filter_map(|(is_said, option)| is_said.then_some(option))
            .collect()
    }

    fn into_tls(self) -> EndpointTls {
        let mut tls = EndpointTls {
            ca: self.ca.map(|text| text.0),
            server_name: self.server_name.map(|text| text.0.0),
            ..EndpointTls::default()
        };
        set(&mut tls.pins, self.pin.map(|text| text.0));
        set(&mut tls.verify, self.verify.map(|text| text.0));
        tls
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthDto {
    http: Option<Text<Path>>,
    tcp: Option<bool>,
    interval: Option<Text<Span>>,
    timeout: Option<Text<Span>>,
    rise: Option<Count>,
    fall: Option<Count>,
    passive: Option<Text<Passive>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsDto {
    connections: Option<u32>,
    endpoint_connections: Option<u32>,
    queue: Option<u32>,
    queue_timeout: Option<Text<Span>>,
    hold: Option<u32>,
    hold_timeout: Option<Text<Span>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeoutsDto {
    connect: Option<Text<PositiveSpan>>,
    idle: Option<Text<Span>>,
    half_closed: Option<Text<Span>>,
    request_head: Option<Text<Span>>,
    response: Option<Text<Span>>,
}

impl ServiceDto {
    fn into_declared(self, name: ServiceName) -> Result<Declared, String> {
        let mut spec = ServiceSpec::new(name);
        let route = into_route(
            self.route,
            self.priority,
            self.entrypoints,
            self.port,
            self.tls,
            self.acme,
            "route",
        );
        spec.routes
            .extend(route.map_err(|(part, expected)| format!("{}: {expected}", key_of(part)))?);
        for (i, route) in self.routes.into_iter().flatten().enumerate() {
            spec.routes.extend(route.into_route(&format!("routes[{i}]"))?);
        }
        set(&mut spec.mode, Mode::of_routes(&spec.routes));
        set(&mut spec.mode, self.mode.map(|text| text.0));
        set(&mut spec.balance, self.balance.map(|text| text.0));
        let says_hash = self.hash.is_some();
        set(&mut spec.hash, self.hash.map(|text| text.0));
        set(&mut spec.prefer, self.prefer.map(|text| text.0));
        set(&mut spec.scheme, self.scheme.map(|text| text.0));
        let says_tls = self.endpoint_tls.is_some();
        let said_of_tls = self.endpoint_tls.as_ref().map(EndpointTlsDto::said).unwrap_or_default();
        set(&mut spec.endpoint_tls, self.endpoint_tls.map(EndpointTlsDto::into_tls));
        spec.sticky = self.sticky.map(StickyDto::into_sticky).transpose()?;
        if let Some(sticky) = &mut spec.sticky {
            sticky.settle_name(&spec.name);
        }
        let of_requests = [
            ("allow", self.allow.is_some()),
            ("https_only", self.https_only == Some(true)),
            ("redirect_regex", self.redirect_regex.is_some()),
            ("basic_auth", self.basic_auth.is_some()),
            ("forward_auth", self.forward_auth.is_some()),
            ("rate", self.rate.is_some()),
            ("in_flight", self.in_flight.is_some()),
            ("in_flight_per_client", self.in_flight_per_client.is_some()),
            ("max_body", self.max_body.is_some()),
            ("retries", self.retries.is_some()),
            ("strip_prefix", self.strip_prefix.is_some()),
            ("replace_path", self.replace_path.is_some()),
            ("add_prefix", self.add_prefix.is_some()),
            ("request_headers", self.request_headers.is_some()),
            ("response_headers", self.response_headers.is_some()),
            ("compress", self.compress.is_some()),
        ];
        let of_requests: Vec<&str> = of_requests.iter().filter(|key| key.1).map(|key| key.0).collect();
        let guards = Guards {
            auth: self.basic_auth.map(BasicAuthDto::into_auth).transpose()?,
            forward: self.forward_auth.map(ForwardAuthDto::into_auth),
            rate: self.rate.map(|text| text.0),
            in_flight: self.in_flight.map(|text| text.0),
            in_flight_per_client: self.in_flight_per_client.map(|text| text.0),
            max_body: self.max_body.map(|text| text.0),
            retries: self.retries.map(|text| text.0),
        };
        let filters = Filters {
            redirect: self.redirect_regex.map(RedirectDto::into_redirect).transpose()?,
            guards: guards.into_some(),
            allow: self.allow.map(|all| all.into_iter().map(|text| text.0.0).collect()),
            to_https: self.https_only.unwrap_or(false).then_some(ToHttps {
                is_permanent: true,
                port: None,
            }),
            strip_prefix: self.strip_prefix.into_iter().flatten().map(|text| text.0).collect(),
            replace_path: self.replace_path.map(|text| text.0),
            add_prefix: self.add_prefix.map(|text| text.0),
            request_fields: edits("request_headers", self.request_headers)?,
            response_fields: edits("response_headers", self.response_headers)?,
            compress: self.compress.map(CompressDto::into_compress),
        };
        if !filters.is_empty() && spec.mode != Mode::Http {
            return Err(format!(
                "{}: expected mode: http: in tcp mode there are no requests",
                of_requests.join(", ")
            ));
        }
        spec.filters = (!filters.is_empty()).then(|| Arc::new(filters));
        set(&mut spec.slow_start, self.slow_start.map(|text| text.0.0));
        if let Some(odds) = AtOdds::of(&spec, says_hash) {
            return Err(format!("{}: {}", odds.key, odds.expected));
        }
        spec.proxy_protocol = self.proxy_protocol.map(|text| text.0);
        set(&mut spec.stop_grace, self.stop_grace.map(|text| text.0.0));
        spec.publish = self
            .publish
            .unwrap_or_default()
            .into_iter()
            .map(|text| text.0)
            .collect();
        spec.expose = self.expose.unwrap_or_default().into_iter().map(|port| port.0).collect();
        let says_client_address = self.client_address.is_some();
        set(&mut spec.client_address, self.client_address.map(|text| text.0));
        set(&mut spec.abort_on_client_close, self.abort_on_client_close);
        let endpoints = self.endpoints.into_iter();
        let mut objection = None;
        let endpoints = endpoints.map(|endpoint| {
            objection = objection.take().or(endpoint.objection);
            (endpoint.written, endpoint.weight)
        });
        let mut declared = Declared::new(spec, endpoints.collect())?;
        declared.objection = objection;
        let takes_target = declared.ports().any(|port| port == 0);
        let only_name = declared.only_name().cloned();
        let has_names = declared.has_names();
        let ports_of_names: Vec<u16> = match has_names {
            true => declared.ports().filter(|port| *port != 0).collect(),
            false => Vec::new(),
        };
        let spec = &mut declared.spec;
        if let Some(mut health) = self.health {
            let passive = health.passive.take().map(|text| text.0);
            set(&mut spec.passive, passive);
            spec.health = health.into_check(passive.is_some())?;
        }
        spec.limits.hold_timeout = Limits::DECLARED_HOLD_TIMEOUT;
        if takes_target && spec.publish.is_empty() && spec.expose.is_empty() && spec.routes.is_empty() {
            return Err("endpoints: one has no port, and neither publish nor expose names a target port".to_owned());
        }
        let settled = spec.settle_routes(!takes_target);
        settled.map_err(|expected| format!("route: {expected}"))?;
        if let Some(limits) = self.limits {
            let to = &mut spec.limits;
            set(&mut to.connections, limits.connections);
            set(&mut to.endpoint_connections, limits.endpoint_connections);
            set(&mut to.queue, limits.queue);
            set(&mut to.queue_timeout, limits.queue_timeout.map(|text| text.0.0));
            set(&mut to.hold, limits.hold);
            set(&mut to.hold_timeout, limits.hold_timeout.map(|text| text.0.0));
        }
        let mut says_request_head = false;
        if let Some(timeouts) = self.timeouts {
            says_request_head = timeouts.request_head.is_some();
            let to = &mut spec.timeouts;
            set(&mut to.connect, timeouts.connect.map(|text| text.0.0));
            set(&mut to.idle, timeouts.idle.map(|text| text.0.0));
            set(&mut to.half_closed, timeouts.half_closed.map(|text| text.0.0));
            set(&mut to.request_head, timeouts.request_head.map(|text| text.0.0));
            set(&mut to.response, timeouts.response.map(|text| text.0.0));
        }
        // What the others are by default asks for nothing.
        let was_said = |option: &OneMode| match option.key {
            "client_address" => says_client_address,
            "timeouts.request_head" => says_request_head,
            _ => true,
        };
        for route in &spec.routes {
            if let Some(expected) = route.out_of_place(spec.mode) {
                return Err(format!("{}: {}: {expected}", route.said_by, route.rule));
            }
        }
        if let Some(option) = OneMode::out_of_place(spec, was_said).next() {
            return Err(format!("{}: {option}", option.key));
        }
        if let Some((option, expected)) = EndpointTls::at_odds(spec, |option| said_of_tls.contains(&option)) {
            return Err(format!("{}: {expected}", option.key));
        }
        if says_tls && spec.scheme != Scheme::Https {
            return Err(format!("endpoint_tls: {}", EndpointTls::WITHOUT_TLS));
        }
        let routed = spec.routes.iter().any(|route| route.target != 0);
        if spec.publish.is_empty() && spec.expose.is_empty() && !routed {
            // What the VIP answers is not to depend on which addresses are known.
            spec.expose = ports_of_names;
        }
        if let Some(name) = only_name.filter(|_| spec.scheme == Scheme::Https) {
            let by_name = || ServerName::try_from(name.host().to_owned()).ok();
            spec.endpoint_tls.server_name = spec.endpoint_tls.server_name.take().or_else(by_name);
        }
        // Whom an address is to be that a name server gave is not the name server's to say.
        let is_nobody =
            spec.endpoint_tls.server_name.is_none() && ServerName::try_from(spec.name.key().to_owned()).is_err();
        if spec.scheme == Scheme::Https && has_names && spec.endpoint_tls.verify == Verify::Full && is_nobody {
            return Err(format!(
                "endpoint_tls.server_name: expected the name in the endpoints' certificates: the service's, {}, is none of a host",
                spec.name
            ));
        }
        Ok(declared)
    }
}

fn key_of(part: RoutePart) -> &'static str {
    match part {
        RoutePart::Rule => "route",
        other => other.as_str(),
    }
}

impl HealthDto {
    /// `None`, where that may be: it says nothing of checks.
    fn into_check(self, may_be_none: bool) -> Result<Option<HealthCheck>, String> {
        let is_bare = self.is_bare();
        let probe = match (self.http, self.tcp) {
            (Some(Text(path)), None | Some(false)) => HealthProbe::Http { path: path.0 },
            (None, Some(true)) => HealthProbe::Tcp,
            (Some(_), Some(true)) => return Err("health: both http and tcp: expected one of them".to_owned()),
            (None, None | Some(false)) if may_be_none && is_bare => return Ok(None),
            (None, None | Some(false)) => {
                return Err("health: neither http nor tcp: expected { http: /path } or { tcp: true }".to_owned());
            }
        };
        let mut check = HealthCheck::new(probe);
        set(&mut check.interval, self.interval.map(|text| text.0.0));
        set(&mut check.timeout, self.timeout.map(|text| text.0.0));
        set(&mut check.rise, self.rise.map(|count| count.0));
        set(&mut check.fall, self.fall.map(|count| count.0));
        if check.interval < SHORTEST_INTERVAL {
            return Err("health.interval: expected at least 10ms".to_owned());
        }
        if check.timeout.is_zero() {
            return Err("health.timeout: expected more than 0".to_owned());
        }
        Ok(Some(check))
    }

    /// Nothing is said of how to check.
    fn is_bare(&self) -> bool {
        self.interval.is_none() && self.timeout.is_none() && self.rise.is_none() && self.fall.is_none()
    }
}

const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

struct Name(ServiceName);

impl FromStr for Name {
    type Err = crate::model::InvalidValue;

    fn from_str(text: &str) -> Result<Name, Self::Err> {
        ServiceName::new(text).map(Name)
    }
}

struct Span(Duration);

impl FromStr for Span {
    type Err = crate::model::InvalidValue;

    fn from_str(text: &str) -> Result<Span, Self::Err> {
        parse_duration(text).map(Span)
    }
}

struct Priority(i64);

impl FromStr for Priority {
    type Err = crate::model::InvalidValue;

    fn from_str(text: &str) -> Result<Priority, Self::Err> {
        let number = text.parse().map(Priority);
        number.map_err(|_| crate::model::InvalidValue::new(text, "a whole number, such as 100"))
    }
}

struct PositiveSpan(Duration);

impl FromStr for PositiveSpan {
    type Err = crate::model::InvalidValue;

    fn from_str(text: &str) -> Result<PositiveSpan, Self::Err> {
        match parse_duration(text)? {
            Duration::ZERO => Err(crate::model::InvalidValue::new(text, "a duration above zero")),
            span => Ok(PositiveSpan(span)),
        }
    }
}

struct Path(String);

impl FromStr for Path {
    type Err = crate::model::InvalidValue;

    fn from_str(text: &str) -> Result<Path, Self::Err> {
        match text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(Path(text.to_owned())),
            false => Err(crate::model::InvalidValue::new(
                text,
                "a path that begins with /, such as /health",
            )),
        }
    }
}

/// A port from 1 to 65535.
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Port, D::Error> {
        let Text(port) =
            Text::<u32>::deserialize(deserializer).map_err(|_| de::Error::custom("expected a port from 1 to 65535"))?;
        match u16::try_from(port) {
            Ok(port @ 1..) => Ok(Port(port)),
            _ => Err(de::Error::custom(format_args!(
                "{port} is not valid: expected a port from 1 to 65535"
            ))),
        }
    }
}

/// A count of at least one.
struct Count(u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Count, D::Error> {
        match u32::deserialize(deserializer)? {
            0 => Err(de::Error::custom("0 is not valid: expected at least 1")),
            count => Ok(Count(count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: &str = r#"
services:
  my-web:
    mode: http
    publish: ["8080:80", 127.0.0.1:8081:80]
    expose: [443]
    balance: least-request
    health: { http: /health, interval: 2s, timeout: 250ms, rise: 2, fall: 5, passive: strict }
    stop_grace: 30s
    limits: { connections: 5, endpoint_connections: 4, queue: 3, queue_timeout: 2s, hold: 7, hold_timeout: 6s }
    timeouts: { connect: 3s, idle: 1h, half_closed: 1m, request_head: 5s, response: 9s }
    endpoints: ["127.0.0.1:9001", 127.0.0.1:9002]
  plain:
    endpoints: []
  routed:
    route: Host(`a.test`) && PathPrefix(`/api`)
    priority: 9
    entrypoints: [web]
    port: 8080
    endpoints: [10.0.0.1]
  strict:
    health: { passive: strict }
    endpoints: []
"#;

    #[test]
    fn every_key_is_read() {
        let specs: Vec<ServiceSpec> = parse(WHOLE).unwrap().into_iter().map(|it| it.spec).collect();
        let web = &specs[0];
        assert_eq!(
            (web.name.as_str(), web.mode, web.balance),
            ("my-web", Mode::Http, Balance::LeastRequest)
        );
        assert_eq!(web.publish.len(), 2);
        assert_eq!(web.vip_ports(), [80, 443]);
        let health = web.health.as_ref().unwrap();
        assert_eq!(
            health.probe,
            HealthProbe::Http {
                path: "/health".to_owned()
            }
        );
        assert_eq!(
            (health.rise, health.fall, health.timeout),
            (2, 5, Duration::from_millis(250))
        );
        assert_eq!(web.stop_grace, Duration::from_secs(30));
        assert_eq!((web.limits.connections, web.limits.queue), (5, 3));
        assert_eq!((web.limits.hold, web.limits.hold_timeout), (7, Duration::from_secs(6)));
        assert_eq!(
            (web.timeouts.connect, web.timeouts.idle),
            (Duration::from_secs(3), Duration::from_secs(3600))
        );
        assert_eq!(web.endpoints.len(), 2);
        assert_eq!(web.passive, Passive::Strict);
        let mut plain = ServiceSpec::new(ServiceName::new("plain").unwrap());
        plain.limits.hold_timeout = Duration::from_secs(5);
        assert_eq!(specs[1], plain);
        assert_eq!((specs[3].passive, &specs[3].health), (Passive::Strict, &None));
        let (routed, route) = (&specs[2], &specs[2].routes[0]);
        assert_eq!((routed.mode, route.target, route.priority()), (Mode::Http, 8080, 9));
        assert_eq!(route.rule.as_str(), "Host(`a.test`) && PathPrefix(`/api`)");
        assert_eq!(
            (route.entry_points[0].as_str(), routed.vip_ports()),
            ("web", vec![8080])
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_line_key_value_and_expectation() {
        let web = |line: &str| format!("services:\n  web:\n    endpoints: []\n    {line}\n");
        for (text, line, key, parts) in [
            (String::new(), None, "", &["services"][..]),
            ("services:\n".to_owned(), None, "services", &["service"]),
            (
                "services: {}\n".to_owned(),
                None,
                "services",
                &["no service is declared"],
            ),
            ("- a\n- b\n".to_owned(), Some(1), "", &[]),
            (
                "services:\n  web:\n    mode: tcp\n".to_owned(),
                None,
                "services.web",
                &["endpoints"],
            ),
            (web("mode: udp"), Some(4), "services.web.mode", &["udp", "tcp or http"]),
            (
                web("publish: [8080]"),
                Some(4),
                "services.web.publish[0]",
                &["8080", "PUBLISHED:TARGET"],
            ),
            (
                web("stop_grace: 10"),
                Some(4),
                "services.web.stop_grace",
                &["10", "500ms"],
            ),
            (web("colour: red"), Some(4), "services.web.colour", &["colour"]),
            (
                web("expose: [0]"),
                Some(4),
                "services.web.expose[0]",
                &["0", "1 to 65535"],
            ),
            (
                web("health: { http: health }"),
                Some(4),
                "services.web.health.http",
                &["health", "begins with /"],
            ),
            (
                web("health: { tcp: true, rise: 0 }"),
                Some(4),
                "services.web.health.rise",
                &["0", "at least 1"],
            ),
            (
                web("health: { rise: 1 }"),
                None,
                "services",
                &["web", "health", "neither http nor tcp"],
            ),
            (
                web("timeouts: { connect: 0s }"),
                Some(4),
                "services.web.timeouts.connect",
                &["above zero"],
            ),
            (
                "services:\n  a b:\n    endpoints: []\n".to_owned(),
                Some(2),
                "services",
                &["a b", "service name"],
            ),
            (
                "services:\n  web: { endpoints: [] }\n  web: { endpoints: [] }\n".to_owned(),
                Some(3),
                "",
                &["web"],
            ),
            (
                "services:\n  web: { endpoints: [] }\n  Web: { endpoints: [] }\n".to_owned(),
                None,
                "services",
                &["Web", "twice"],
            ),
            (
                "services:\n  web: { endpoints: [local_host:80] }\n".to_owned(),
                Some(2),
                "services.web.endpoints[0]",
                &["local_host:80", "127.0.0.1:9001", "db.internal:5432"],
            ),
            (
                "services:\n  web: { endpoints: [\"127.0.0.1:80\", \"1.2.3:80\"] }\n".to_owned(),
                Some(2),
                "services.web.endpoints[1]",
                &["1.2.3:80", "expected an address or the name of a host"],
            ),
            (
                "services:\n  web: { endpoints: [{ address: \"a.test:80\", netns: /run/netns/x }] }\n".to_owned(),
                Some(2),
                "services.web.endpoints[0]",
                &["a.test:80", "expected an address beside netns"],
            ),
            (
                "services:\n  web: { endpoints: [\"a.test:80\", \"A.test:80\"] }\n".to_owned(),
                None,
                "services",
                &["web", "endpoints: a.test:80 is listed twice"],
            ),
            (
                "services:\n  web: { endpoints: [a.test] }\n".to_owned(),
                None,
                "services",
                &["web", "no port"],
            ),
            (
                "services:\n  web: { endpoints: [10.0.0.1] }\n".to_owned(),
                None,
                "services",
                &["web", "no port"],
            ),
            (
                web("timeouts: { response: 5s }"),
                None,
                "services",
                &["web", "timeouts.response: expected mode http"],
            ),
            (
                web("mode: http\n    client_address: transparent"),
                None,
                "services",
                &["web", "client_address: expected mode tcp"],
            ),
            (
                web("route: Hots(`a`)"),
                Some(4),
                "services.web.route",
                &["Hots(`a`)", "expected Host, HostRegexp"],
            ),
            (
                web("port: 80"),
                None,
                "services",
                &["web", "port: expected a route beside it"],
            ),
            (
                web("mode: tcp\n    route: Host(`a`)"),
                None,
                "services",
                &["web", "route: Host(`a`): expected mode http"],
            ),
            (
                "services:\n  web: { route: Host(`a`), publish: [\"1:1\", \"2:2\"], endpoints: [10.0.0.1] }\n"
                    .to_owned(),
                None,
                "services",
                &["web", "route: expected a port beside it", "several"],
            ),
            ("services: [\n".to_owned(), None, "", &[]),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(line.is_none() || error.line == line, "{text}: {error:?}");
            assert!(error.key.starts_with(key), "{text}: {error:?}");
            for part in parts {
                assert!(error.to_string().contains(part), "{part} in {error}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_mutation_of_a_file_panics(at in 0..WHOLE.len(), n in 0usize..20, with in "[ -~\\n]{0,8}") {
            let end = (at + n).min(WHOLE.len());
            let _ = parse(&format!("{}{with}{}", &WHOLE[..at], &WHOLE[end..]));
        }
    }
}

//! Routes: requests or connections to an entry point that are a service's, where several share one port. Not here: what a rule asks (`rule`), which
//! entry points a node has (its configuration).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::filters::Filters;
use super::rule::Rule;
use super::{InvalidValue, Mode, ServiceName, Timeouts};

/// The name of an entry point: a port of a node that services share. Spelled as a service's name, and none of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPointName(ServiceName);

impl EntryPointName {
    /// Errors: as `ServiceName::new`, by another noun.
    pub fn new(name: &str) -> Result<EntryPointName, InvalidValue> {
        ServiceName::new(name).map(EntryPointName).map_err(|_| {
            InvalidValue::new(
                name,
                "an entry point's name of at most 63 letters, digits, '-' and '_', with a letter or digit at both ends",
            )
        })
    }

    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// What its connections are counted by.
    pub fn as_counted(&self) -> &ServiceName {
        &self.0
    }
}

impl fmt::Display for EntryPointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EntryPointName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<EntryPointName, InvalidValue> {
        EntryPointName::new(text)
    }
}

/// The name of an authority that certificates are ordered from, as the node's configuration has it (`[acme.NAME]`), and as Traefik's
/// resolvers have theirs. Spelled as a service's name, and none of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AcmeName(ServiceName);

impl AcmeName {
    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for AcmeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AcmeName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AcmeName, InvalidValue> {
        ServiceName::new(text).map(AcmeName).map_err(|_| {
            InvalidValue::new(
                text,
                "the NAME of an [acme.NAME], of at most 63 letters, digits, '-' and '_', with a letter or digit at both ends",
            )
        })
    }
}

/// A port of a node that services share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPointSpec {
    pub name: EntryPointName,
    /// `None`: every address of the node, IPv4 and IPv6.
    pub ip: Option<IpAddr>,
    pub port: u16,
    /// TLS ends here, and requests go on without.
    pub is_tls: bool,
    /// Whom certificates for the hosts of its routes are ordered from, where a route names nobody else.
    pub acme: Option<AcmeName>,
    /// The port to which clients are sent, by https. `None`: requests are served here.
    pub redirect: Option<u16>,
    /// Who says who its clients are, by X-Forwarded-For and the like. `None`: those of all ports.
    pub trusted_proxies: Option<Vec<IpNet>>,
    /// Who begins each connection with a header of the PROXY protocol, and is believed.
    pub proxy_protocol: Vec<IpNet>,
    /// Zero: without end.
    pub request_head_timeout: Duration,
    /// Between requests. Zero: without end.
    pub idle_timeout: Duration,
}

impl EntryPointSpec {
    /// One that serves requests as they come.
    pub fn new(name: EntryPointName, ip: Option<IpAddr>, port: u16) -> EntryPointSpec {
        EntryPointSpec {
            name,
            ip,
            port,
            is_tls: false,
            acme: None,
            redirect: None,
            trusted_proxies: None,
            proxy_protocol: Vec::new(),
            request_head_timeout: Timeouts::default().request_head,
            idle_timeout: Timeouts::default().idle,
        }
    }

    /// Whether a connection from there begins by saying whose it is.
    pub fn is_announced(&self, peer: IpAddr) -> bool {
        let ip = peer.to_canonical();
        self.proxy_protocol.iter().any(|network| network.contains(&ip))
    }

    /// Whether who listens on that port, at that address or all, is in its way.
    pub fn is_at(&self, ip: Option<IpAddr>, port: u16) -> bool {
        self.port == port && (self.ip.is_none() || ip.is_none() || self.ip == ip)
    }

    /// Whether that route is served here.
    pub fn takes(&self, route: &RouteSpec) -> bool {
        route.is_for(&self.name) && route.tls.may_be_at(self.is_tls)
    }
}

/// Which requests, or connections, are a service's.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteSpec {
    pub rule: Rule,
    /// Of two rules that both take a request the one with more comes first; `None`: the length of the rule.
    pub priority: Option<i64>,
    /// Empty: all that the node has.
    pub entry_points: Vec<EntryPointName>,
    /// The port that tasks listen on for them; 0: the one that the service names elsewhere (`ServiceSpec::settle_routes`).
    pub target: u16,
    pub tls: RouteTls,
    /// Whom certificates for its hosts are ordered from; `None`: whom its entry points name.
    pub acme: Option<AcmeName>,
    /// Nobody is let through, since what else was asked for cannot be done: it keeps its place, so that no other route, which may
    /// ask for less, has its requests.
    pub is_closed: bool,
    /// What is done to its requests, before what its service has done to all.
    pub filters: Option<Arc<Filters>>,
    /// The label, or the key in a services file, that says the rule.
    pub said_by: Arc<str>,
}

impl RouteSpec {
    /// A route with every option at its default.
    pub fn new(rule: Rule, said_by: &str) -> RouteSpec {
        RouteSpec {
            rule,
            priority: None,
            entry_points: Vec::new(),
            target: 0,
            tls: RouteTls::default(),
            acme: None,
            is_closed: false,
            filters: None,
            said_by: said_by.into(),
        }
    }

    /// Lets nobody through. What is not known of where it stands is taken for as much as it may be.
    pub fn close(&mut self, is_unknown: impl Fn(RoutePart) -> bool) {
        self.is_closed = true;
        if is_unknown(RoutePart::Priority) {
            self.priority = Some(i64::MAX);
        }
        if is_unknown(RoutePart::EntryPoints) {
            self.entry_points.clear();
        }
    }

    /// What counts of two that both take a request: more comes first.
    pub fn priority(&self) -> i64 {
        self.priority.unwrap_or_else(|| self.rule.priority())
    }

    /// What was expected, where services of that mode have no such route.
    pub fn out_of_place(&self, mode: Mode) -> Option<&'static str> {
        match (mode, self.rule.is_of_connections()) {
            (Mode::Tcp, false) => {
                Some("expected mode http: in tcp mode there are no requests, and a route is of HostSNI")
            }
            (Mode::Http, true) => Some(
                "expected mode tcp: in http mode requests are told apart, and a route is of Host, Path and the like",
            ),
            _ => None,
        }
    }

    /// Whether it is for that entry point.
    pub fn is_for(&self, entry_point: &EntryPointName) -> bool {
        self.entry_points.is_empty() || self.entry_points.contains(entry_point)
    }
}

/// Where a route is served, and what becomes of its clients' TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteTls {
    /// As its entry points have it: ended at those that end it, and at the others what comes goes on as it is.
    #[default]
    AsEntryPoint,
    /// At entry points that end it alone: what goes on is what was in it.
    Ended,
    /// It goes on as it came, whatever the entry point would do (connections alone).
    Passthrough,
    /// At entry points that end none alone.
    Without,
}

impl RouteTls {
    /// Whether a route may be at an entry point that ends TLS, or one that ends none.
    fn may_be_at(self, is_tls: bool) -> bool {
        match self {
            RouteTls::AsEntryPoint | RouteTls::Passthrough => true,
            RouteTls::Ended => is_tls,
            RouteTls::Without => !is_tls,
        }
    }
}

impl FromStr for RouteTls {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<RouteTls, InvalidValue> {
        match text {
            "ended" => Ok(RouteTls::Ended),
            "passthrough" => Ok(RouteTls::Passthrough),
            "none" => Ok(RouteTls::Without),
            _ => Err(InvalidValue::new(text, "ended, passthrough or none")),
        }
    }
}

/// A route as it is written, option by option, before it is known whether they make one.
#[derive(Debug, Clone, Default)]
pub struct RouteParts {
    pub rule: Option<Rule>,
    pub priority: Option<i64>,
    pub entry_points: Option<Vec<EntryPointName>>,
    pub port: Option<u16>,
    pub tls: Option<RouteTls>,
    pub acme: Option<AcmeName>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoutePart {
    Rule,
    Priority,
    EntryPoints,
    Port,
    Tls,
    Acme,
}

impl RoutePart {
    /// As labels of routes with names and keys of the services file have it.
    pub fn as_str(self) -> &'static str {
        match self {
            RoutePart::Rule => "rule",
            RoutePart::Priority => "priority",
            RoutePart::EntryPoints => "entrypoints",
            RoutePart::Port => "port",
            RoutePart::Tls => "tls",
            RoutePart::Acme => "acme",
        }
    }
}

impl RouteParts {
    /// The route, if one is asked for. `said_by`: as in `RouteSpec`. Errors: the part that cannot stand as it is, and what was
    /// expected.
    pub fn into_route(self, said_by: &str) -> Result<Option<RouteSpec>, (RoutePart, &'static str)> {
        let Some(rule) = self.rule else {
            let alone = [
                (self.priority.is_some(), RoutePart::Priority),
                (self.entry_points.is_some(), RoutePart::EntryPoints),
                (self.port.is_some(), RoutePart::Port),
                (self.tls.is_some(), RoutePart::Tls),
                (self.acme.is_some(), RoutePart::Acme),
            ];
            return match alone.into_iter().find(|(is_said, _)| *is_said) {
                Some((_, part)) => Err((part, "expected a route beside it, such as Host(`a.example`)")),
                None => Ok(None),
            };
        };
        if self.tls == Some(RouteTls::Passthrough) && !rule.is_of_connections() {
            return Err((
                RoutePart::Tls,
                "expected ended or none beside that route: requests are read here, and only connections (HostSNI) can be passed through",
            ));
        }
        Ok(Some(RouteSpec {
            tls: self.tls.unwrap_or_default(),
            priority: self.priority,
            entry_points: self.entry_points.unwrap_or_default(),
            target: self.port.unwrap_or(0),
            acme: self.acme,
            ..RouteSpec::new(rule, said_by)
        }))
    }
}

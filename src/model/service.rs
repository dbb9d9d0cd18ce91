//! A service as its user declared it: the spec. Not here: what became of it (`routing`), how it was written (`source`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::filters::Filters;
use super::{Balance, EndpointTls, HashKey, InvalidValue, Prefer, RouteSpec, Scheme, Sticky, Weight};

/// The name of a service: one DNS label in Docker's spelling (letters, digits, inner `-` and `_`, at most 63).
///
/// Names compare without regard to case, as DNS does and as Docker does when it refuses a second `Web` beside `web`;
/// the spelling is kept for display. Cloning is a reference count.
#[derive(Clone)]
pub struct ServiceName {
    shown: Arc<str>,
    /// Lower case; the same allocation as `shown` where that already is.
    key: Arc<str>,
}

impl ServiceName {
    pub fn new(name: &str) -> Result<ServiceName, InvalidValue> {
        let bytes = name.as_bytes();
        let inner = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_';
        let ends_well = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        if bytes.len() > 63 || !bytes.iter().all(inner) || !ends_well(bytes.first()) || !ends_well(bytes.last()) {
            return Err(InvalidValue::new(
                name,
                "a service name of at most 63 letters, digits, '-' and '_', with a letter or digit at both ends",
            ));
        }
        let shown: Arc<str> = Arc::from(name);
        let key = if bytes.iter().any(u8::is_ascii_uppercase) {
            Arc::from(name.to_ascii_lowercase())
        } else {
            shown.clone()
        };
        Ok(ServiceName { shown, key })
    }

    /// What counts connections from inside tasks to no service at all. It is in no table, so it may be a service's name too.
    pub fn outgoing() -> ServiceName {
        let name: Arc<str> = Arc::from("outgoing");
        ServiceName {
            shown: name.clone(),
            key: name,
        }
    }

    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.shown
    }

    /// In lower case: what two spellings of one name have in common.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.shown)
    }
}

impl PartialEq for ServiceName {
    fn eq(&self, other: &ServiceName) -> bool {
        self.key == other.key
    }
}

impl Eq for ServiceName {}

impl PartialOrd for ServiceName {
    fn partial_cmp(&self, other: &ServiceName) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ServiceName {
    fn cmp(&self, other: &ServiceName) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl std::hash::Hash for ServiceName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl std::borrow::Borrow<str> for ServiceName {
    /// The key, so that maps are searched by lower-case text.
    fn borrow(&self) -> &str {
        &self.key
    }
}

/// What the user declared about one service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub mode: Mode,
    /// Ports that every node answers, each with the port that the tasks listen on.
    pub publish: Vec<PublishedPort>,
    /// Target ports that only the VIP answers, beside those of `publish`.
    pub expose: Vec<u16>,
    /// Requests, or connections, to entry points that are its own.
    pub routes: Vec<RouteSpec>,
    pub balance: Balance,
    /// Of what, where that is how it is balanced.
    pub hash: HashKey,
    pub prefer: Prefer,
    /// How the endpoints are spoken to (http).
    pub scheme: Scheme,
    /// Whom they are believed to be, where that is over TLS.
    pub endpoint_tls: EndpointTls,
    /// A cookie keeps each client at its endpoint (http).
    pub sticky: Option<Sticky>,
    /// What is done to its requests and their answers, by whichever way they come (http).
    pub filters: Option<Arc<Filters>>,
    /// For how long the share of an endpoint that is new, or is back, grows; zero: it has all of it at once.
    pub slow_start: Duration,
    /// `None`: what becomes of clients' connections and requests is all that is known of endpoints.
    pub health: Option<HealthCheck>,
    pub passive: Passive,
    /// What the endpoints are told of their clients' addresses, before the first byte (tcp).
    pub proxy_protocol: Option<ProxyProtocol>,
    pub client_address: ClientAddress,
    /// A client that ends its half while it waits for a response has gone: its request is aborted (http).
    pub abort_on_client_close: bool,
    /// How long connections of a removed endpoint may go on.
    pub stop_grace: Duration,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub endpoints: Vec<EndpointSpec>,
    /// One for each of `endpoints`, or none where all have as much: `set_weights`.
    pub weights: Vec<Weight>,
    /// Which of `endpoints` are at addresses of this node; empty where none was asked for. Tasks say it themselves.
    pub near: Vec<bool>,
    /// The networks that it is on, by whose tasks it is reached from inside.
    pub attachments: Vec<Attachment>,
}

impl ServiceSpec {
    /// A service with every option at its default.
    pub fn new(name: ServiceName) -> ServiceSpec {
        ServiceSpec {
            name,
            mode: Mode::default(),
            publish: Vec::new(),
            expose: Vec::new(),
            routes: Vec::new(),
            balance: Balance::default(),
            hash: HashKey::default(),
            prefer: Prefer::default(),
            scheme: Scheme::default(),
            endpoint_tls: EndpointTls::default(),
            sticky: None,
            filters: None,
            slow_start: Duration::ZERO,
            health: None,
            passive: Passive::default(),
            proxy_protocol: None,
            client_address: ClientAddress::default(),
            abort_on_client_close: false,
            stop_grace: ServiceSpec::DEFAULT_STOP_GRACE,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            endpoints: Vec::new(),
            weights: Vec::new(),
            near: Vec::new(),
            attachments: Vec::new(),
        }
    }

    /// Docker's stop grace period.
    pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

    /// The ports that the service's VIP answers, ascending: the targets of what is published, exposed and routed;
    /// where none is declared, the ports that its endpoints name.
    pub fn vip_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.publish.iter().map(|port| port.target).collect();
        ports.extend(&self.expose);
        ports.extend(
            self.routes
                .iter()
                .map(|route| route.target)
                .filter(|target| *target != 0),
        );
        if ports.is_empty() {
            ports.extend(self.endpoints.iter().map(|endpoint| endpoint.addr.port()));
            ports.retain(|port| *port != 0);
        }
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

impl ServiceSpec {
    /// Says how much each of `endpoints` gets beside the others.
    pub fn set_weights(&mut self, weights: Vec<Weight>) {
        let are_alike = weights.windows(2).all(|pair| pair[0] == pair[1]);
        self.weights = if are_alike { Vec::new() } else { weights };
    }

    /// Whether the endpoint at this place in `endpoints` is of this node.
    pub fn is_near(&self, place: usize) -> bool {
        match self.endpoints.get(place).and_then(|endpoint| endpoint.task.as_ref()) {
            Some(task) => !task.is_remote,
            None => self.near.get(place).copied().unwrap_or(false),
        }
    }

    /// Of the endpoint at this place in `endpoints`.
    pub fn weight_of(&self, place: usize) -> Weight {
        self.weights.get(place).copied().unwrap_or_default()
    }
}

impl ServiceSpec {
    /// Has routes that name no port lead to the only one that the service publishes or exposes. `may_be_none`: endpoints name
    /// their own. Errors: what was expected.
    pub fn settle_routes(&mut self, may_be_none: bool) -> Result<(), &'static str> {
        let published = self.publish.iter().map(|port| port.target);
        let mut targets: Vec<u16> = published.chain(self.expose.iter().copied()).collect();
        targets.sort_unstable();
        targets.dedup();
        for route in self
            .routes
            .iter_mut()
            .filter(|route| route.target == 0 && !route.is_closed)
        {
            match targets.as_slice() {
                [one] => route.target = *one,
                _ if may_be_none => {}
                [] => return Err("expected a port beside it, on which tasks listen, since the service publishes none"),
                _ => {
                    return Err(
                        "expected a port beside it, on which tasks listen, since the service publishes several",
                    );
                }
            }
        }
        Ok(())
    }
}

/// How the data plane treats a service's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Bytes, a connection at a time.
    #[default]
    Tcp,
    /// HTTP/1.1, a request at a time.
    Http,
}

impl Mode {
    /// The mode that routes ask for, of requests before connections; `None`: none is open.
    pub fn of_routes(routes: &[RouteSpec]) -> Option<Mode> {
        let open = || routes.iter().filter(|route| !route.is_closed);
        match open().any(|route| !route.rule.is_of_connections()) {
            true => Some(Mode::Http),
            false => open().next().map(|_| Mode::Tcp),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Tcp => "tcp",
            Mode::Http => "http",
        }
    }
}

impl FromStr for Mode {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Mode, InvalidValue> {
        match text {
            "tcp" => Ok(Mode::Tcp),
            "http" => Ok(Mode::Http),
            _ => Err(InvalidValue::new(text, "tcp or http")),
        }
    }
}

/// The version of the PROXY protocol (haproxy.org, proxy-protocol.txt) that endpoints expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    V1,
    V2,
}

impl ProxyProtocol {
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyProtocol::V1 => "v1",
            ProxyProtocol::V2 => "v2",
        }
    }
}

impl FromStr for ProxyProtocol {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<ProxyProtocol, InvalidValue> {
        match text {
            "v1" => Ok(ProxyProtocol::V1),
            "v2" => Ok(ProxyProtocol::V2),
            _ => Err(InvalidValue::new(text, "v1 or v2")),
        }
    }
}

/// Whose address endpoints in a network namespace of their own see (tcp).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAddress {
    /// The client's.
    #[default]
    Transparent,
    /// One of the namespace.
    None,
}

impl ClientAddress {
    pub fn as_str(self) -> &'static str {
        match self {
            ClientAddress::Transparent => "transparent",
            ClientAddress::None => "none",
        }
    }
}

impl FromStr for ClientAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<ClientAddress, InvalidValue> {
        match text {
            "transparent" => Ok(ClientAddress::Transparent),
            "none" => Ok(ClientAddress::None),
            _ => Err(InvalidValue::new(text, "transparent or none")),
        }
    }
}

/// What counts against an endpoint besides failed connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Passive {
    /// In http mode a request that ends without an answer.
    #[default]
    Normal,
    /// In tcp mode too a connection that the endpoint ends without a byte. Not for those that never answer, such as a sink
    /// of logs.
    Strict,
}

impl FromStr for Passive {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Passive, InvalidValue> {
        match text {
            "normal" => Ok(Passive::Normal),
            "strict" => Ok(Passive::Strict),
            _ => Err(InvalidValue::new(text, "normal or strict")),
        }
    }
}

/// One published port, in Docker's short form `[ADDRESS:]PUBLISHED:TARGET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// `None`: every address of the node, IPv4 and IPv6.
    pub bind: Option<IpAddr>,
    pub published: u16,
    pub target: u16,
}

impl FromStr for PublishedPort {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<PublishedPort, InvalidValue> {
        const EXPECTED: &str = "PUBLISHED:TARGET or ADDRESS:PUBLISHED:TARGET with ports from 1 to 65535, such as 8080:80 or 127.0.0.1:8080:80";
        let invalid = || InvalidValue::new(text, EXPECTED);
        let port = |digits: &str| match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(invalid()),
        };
        let bare = text.strip_suffix("/tcp").unwrap_or(text);
        let (rest, target) = bare.rsplit_once(':').ok_or_else(invalid)?;
        let (bind, published) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, published)) => {
                let address = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
                    Some(v6) => IpAddr::V6(v6.parse().map_err(|_| invalid())?),
                    None => IpAddr::V4(address.parse().map_err(|_| invalid())?),
                };
                (Some(address), published)
            }
        };
        Ok(PublishedPort {
            // Docker treats 0.0.0.0 as "everywhere", and so do those who write it.
            bind: bind.filter(|address| !address.is_unspecified()),
            published: port(published)?,
            target: port(target)?,
        })
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bind {
            None => write!(f, "{}:{}", self.published, self.target),
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:{}:{}", self.published, self.target),
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}:{}", self.published, self.target),
        }
    }
}

/// An active check of every endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub probe: HealthProbe,
    /// From one probe's start to the next one's.
    pub interval: Duration,
    pub timeout: Duration,
    /// Good probes in a row after which an unhealthy endpoint is healthy.
    pub rise: u32,
    /// Bad probes in a row after which a healthy endpoint is unhealthy.
    pub fall: u32,
}

impl HealthCheck {
    pub fn new(probe: HealthProbe) -> HealthCheck {
        HealthCheck {
            probe,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 1,
            fall: 3,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthProbe {
    /// GET of this path answers 2xx or 3xx.
    Http { path: String },
    /// The connection is accepted.
    Tcp,
}

/// Caps of one service; zero means no cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once.
    pub connections: u32,
    /// Connections (tcp) or requests in flight (http) at once for one endpoint.
    pub endpoint_connections: u32,
    /// Clients that may wait while a cap is reached; more are refused at once.
    pub queue: u32,
    /// How long one may wait.
    pub queue_timeout: Duration,
    /// Clients that may wait while no endpoint takes them, as between the tasks of an update; more are refused at once.
    /// One of them at a time tries.
    pub hold: u32,
    /// How long one may wait for an endpoint; zero: not at all.
    pub hold_timeout: Duration,
}

impl Limits {
    /// `hold_timeout` of endpoints that are declared by their addresses: nobody is about to replace them.
    pub const DECLARED_HOLD_TIMEOUT: Duration = Duration::from_secs(5);
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 0,
            endpoint_connections: 0,
            queue: 1024,
            queue_timeout: Duration::from_secs(5),
            hold: 1024,
            hold_timeout: Duration::from_secs(30),
        }
    }
}

/// Time limits of one service; zero means no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For one connection attempt to one endpoint. By default more than the second after which a kernel sends a SYN again: one that
    /// was lost, or found a full accept queue, is no failed attempt.
    pub connect: Duration,
    /// Without a byte in either direction (tcp, upgraded connections) or between requests (http).
    pub idle: Duration,
    /// Without a byte once one side has ended its half.
    pub half_closed: Duration,
    /// For a client to send a whole request head, once it began (http).
    pub request_head: Duration,
    /// From the whole request sent to the response's head received (http).
    pub response: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_millis(1250),
            idle: Duration::ZERO,
            half_closed: Duration::ZERO,
            request_head: Duration::from_secs(10),
            response: Duration::ZERO,
        }
    }
}

/// A service in one network: by what the tasks of that network reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's id.
    pub network: Arc<str>,
    /// The network's name; empty while it is not known.
    #[serde(default)]
    pub network_name: Arc<str>,
    /// The service's own address there; without one (`dnsrr`) its name stands for its tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<IpAddr>,
    /// Names beside its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Arc<str>>,
    /// Where all services' addresses on that network are from, and nothing else is that anybody reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<IpNet>,
}

/// What a task's network namespace is to have of a cluster's services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskPlace {
    /// The way to the namespace, such as `/proc/PID/ns/net`.
    pub netns: Arc<Path>,
    /// The ids of the networks that the task is on.
    pub networks: Vec<Arc<str>>,
    /// The task's own address, which it calls services from where `addresses` is empty, and this machine where `is_closed` is
    /// set; `None` for whichever its namespace has.
    pub address: Option<IpAddr>,
    /// The task's address on each of its networks, with the network's prefix: made there, and what it calls services from.
    /// Empty for a task that was given none.
    pub addresses: Vec<IpNet>,
    /// The namespace has no way out of its own: every connection to anywhere else is taken, and made outside.
    pub is_closed: bool,
    /// It is to reach its networks alone: what else would be made outside, or asked of others, is not.
    pub is_internal: bool,
    /// Whether names are answered, at `TaskPlace::NAMESERVER` and `TaskPlace::DOCKERS_NAMESERVER`.
    pub has_dns: bool,
    /// Who is asked for names that are not the cluster's; empty: whom this node asks.
    pub nameservers: Vec<SocketAddr>,
    /// Names that are said to this task alone, each with the one that it stands for on the task's networks; in lower case.
    pub links: Vec<(Arc<str>, Arc<str>)>,
}

impl TaskPlace {
    /// What a task's resolv.conf has to name, where `has_dns` is set.
    pub const NAMESERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);
    /// Where Docker answers names, which many a configuration says. Where Docker does so here too, its own rules lead there first.
    pub const DOCKERS_NAMESERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
}

/// One endpoint as declared, or as a cluster's task made it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointSpec {
    /// Port 0: whichever target port the client's connection was for. Of a task on another node: that node's link.
    pub addr: SocketAddr,
    /// The network namespace that the address is of, such as `/run/netns/x`; `None` for this program's own.
    pub netns: Option<Arc<Path>>,
    /// The task that it is; `None` for an endpoint that was declared by its address.
    pub task: Option<Arc<TaskRef>>,
}

/// Where a task of this node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Port 0 stands for the target port of each connection.
    pub addr: SocketAddr,
    /// The network namespace that the address is of; `None` for this program's own.
    pub netns: Option<Arc<Path>>,
}

impl From<SocketAddr> for Reach {
    fn from(addr: SocketAddr) -> Reach {
        Reach { addr, netns: None }
    }
}

/// A task as the data plane knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskRef {
    pub id: Arc<str>,
    /// As Docker shows it: `web.1`.
    pub name: String,
    /// The service's id, which the node of the task knows it by.
    pub service: Arc<str>,
    /// The id of its node.
    pub node: Arc<str>,
    pub hostname: Arc<str>,
    /// It runs on another node, and is reached over the link.
    pub is_remote: bool,
    /// Its address on each of its networks, by the network's id, where it has one inside.
    pub addresses: Vec<(Arc<str>, IpAddr)>,
    /// What it alone is called by on its networks besides, in lower case: its container's short id, its hostname.
    pub names: Vec<Arc<str>>,
}

impl TaskRef {
    pub fn address_on(&self, network: &str) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter();
        addresses.find(|(of, _)| **of == *network).map(|(_, ip)| *ip)
    }

    /// Whether it is a container that is no task of a service: it stands for itself, under the aliases of its attachment.
    pub fn is_by_itself(&self) -> bool {
        self.id == self.service
    }
}

impl EndpointSpec {
    /// An endpoint by its address alone.
    pub fn at(addr: SocketAddr) -> EndpointSpec {
        EndpointSpec {
            addr,
            netns: None,
            task: None,
        }
    }

    /// Whether it is reached over another node.
    pub fn is_remote(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.is_remote)
    }
}

impl FromStr for EndpointSpec {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<EndpointSpec, InvalidValue> {
        let addr = match text.parse::<SocketAddr>() {
            Ok(addr) if addr.port() != 0 => Ok(addr),
            Ok(_) => Err(()),
            Err(_) => text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0)).map_err(|_| ()),
        };
        match addr {
            Ok(addr) if !addr.ip().is_unspecified() && !addr.ip().is_multicast() => Ok(EndpointSpec::at(addr)),
            _ => Err(InvalidValue::new(
                text,
                "an address with a port, such as 127.0.0.1:9001 or [::1]:9001, or an address alone for the target port",
            )),
        }
    }
}

impl fmt::Display for EndpointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr.port() {
            0 => write!(f, "{}", self.addr.ip()),
            _ => write!(f, "{}", self.addr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_read_as_docker_writes_them() {
        let read = |text: &str| text.parse::<PublishedPort>().map(|port| port.to_string());
        for (text, shown) in [
            ("8080:80", "8080:80"),
            ("8080:80/tcp", "8080:80"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80"),
            ("0.0.0.0:8080:80", "8080:80"),
            ("[::]:8080:80", "8080:80"),
            ("[::1]:8080:80", "[::1]:8080:80"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(shown), "{text}");
        }
        for text in [
            "",
            "80",
            "8080:",
            ":80",
            "0:80",
            "8080:0",
            "8080:65536",
            "+80:80",
            "a:80:80",
            "::1:80:80",
            "8080:80/udp",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_are_addresses_that_can_be_dialed() {
        for text in ["127.0.0.1:9001", "[::1]:9001", "10.0.0.3", "::1"] {
            let endpoint: EndpointSpec = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "",
            "localhost:80",
            "127.0.0.1:0",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "127.0.0.1:99999",
        ] {
            assert!(text.parse::<EndpointSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_one_label_and_compare_without_case() {
        let web = ServiceName::new("Web-1_a").unwrap();
        assert_eq!(web, ServiceName::new("web-1_A").unwrap());
        assert_eq!(web.to_string(), "Web-1_a");
        for bad in ["", "-a", "a-", "a.b", "a b", "ü", &"a".repeat(64)] {
            assert!(ServiceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_vip_answers_targets_and_else_the_endpoints_ports() {
        let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
        spec.endpoints = vec!["10.0.0.1:9002".parse().unwrap(), "10.0.0.1:9001".parse().unwrap()];
        assert_eq!(spec.vip_ports(), [9001, 9002]);
        spec.publish = vec!["8080:80".parse().unwrap(), "8081:80".parse().unwrap()];
        assert_eq!(spec.vip_ports(), [80]);
        spec.expose = vec![443];
        assert_eq!(spec.vip_ports(), [80, 443]);
    }
}

//! What a node answers by its own table, without taking a turn.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Question;
use crate::admin::AdminState;
use crate::admin::moment::unix_ms;
use crate::admin::views::describe_route;
use crate::model::{Balance, Mode, RouteSpec, ServiceName, format_duration};
use crate::proxy::PortState;
use crate::proxy::http::{HeaderSlots, Refusal, RouteKey, parse_request};
use crate::routing::{Endpoint, EndpointState, EntryPoint, First, Listen, ListenKind, RoutingTable, Service};

/// The answer, part by part, in the order in which it is decided. What is not there was not come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// All of it in a sentence.
    pub text: String,
    pub listener: ListenerPart,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RulePart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointPart>,
    /// Who is next, as far as that is known before a client is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How the last connections of the service ended at this node, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closes: Vec<ClosePart>,
    /// What other nodes answer that is not the same.
    #[serde(default)]
    pub elsewhere: Vec<ElsewherePart>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListenerPart {
    pub address: String,
    /// listening, starting, failed, off or none.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RulePart {
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointPart {
    /// The task as Docker names it, or the address: the same at each node.
    pub name: String,
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It is among those that get traffic.
    pub is_for: bool,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClosePart {
    pub at_ms: u64,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    pub took_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ElsewherePart {
    pub node: String,
    pub text: String,
}

impl Answer {
    fn of(listener: ListenerPart) -> Answer {
        Answer {
            text: listener.text.clone(),
            listener,
            rule: None,
            service: None,
            mode: None,
            endpoints: Vec::new(),
            next: None,
            closes: Vec::new(),
            elsewhere: Vec::new(),
        }
    }

    fn saying(mut self, text: impl Into<String>) -> Answer {
        self.text = text.into();
        self
    }
}

/// What becomes of that client at this node. `held_by`: who else listens at the port, asked only where we do not.
pub(super) fn answer(state: &AdminState, asked: &Question, held_by: impl FnOnce() -> Option<String>) -> Answer {
    let table = state.table.load();
    let Some((listen, route)) = listen_of(&table, asked) else {
        return Answer::of(nobody(asked, held_by()));
    };
    let listener = listener(state, &listen, &route.service, route.kind);
    if listener.state == "failed" || listener.state == "off" {
        return Answer::of(listener);
    }
    let answer = Answer::of(listener);
    match table.entry_point_at(&listen) {
        Some(entry_point) => at_entry_point(state, &table, entry_point, asked, answer),
        None => match table.service(&route.service) {
            Some(service) => at_service(state, service, asked, answer),
            None => answer.saying(format!("service {} has just left the table", route.service)),
        },
    }
}

/// A listener at the very address comes before one at all.
fn listen_of<'a>(table: &'a RoutingTable, asked: &Question) -> Option<(Listen, &'a crate::routing::Route)> {
    let at = |ip: Option<IpAddr>| {
        let listen = Listen { port: asked.port, ip };
        Some((listen, table.route(&listen)?))
    };
    // Where no address is said, whichever is there.
    let any = || {
        let mut listens = table.listens().filter(|(listen, _)| listen.port == asked.port);
        let (listen, route) = listens.next()?;
        asked.ip.is_none().then_some((*listen, route))
    };
    asked.ip.and_then(|ip| at(Some(ip))).or_else(|| at(None)).or_else(any)
}

fn nobody(asked: &Question, held_by: Option<String>) -> ListenerPart {
    let place = match asked.ip {
        Some(ip) => std::net::SocketAddr::new(ip, asked.port).to_string(),
        None => format!("*:{}", asked.port),
    };
    let text = match &held_by {
        Some(holder) => format!("no service is published at {place}, and {holder}"),
        None => format!("no service is published at {place}, and nobody listens there"),
    };
    ListenerPart {
        address: place,
        state: "none".to_owned(),
        held_by,
        text,
    }
}

fn listener(state: &AdminState, listen: &Listen, service: &ServiceName, kind: ListenKind) -> ListenerPart {
    let owner = match kind {
        ListenKind::EntryPoint => format!("entry point {service}"),
        ListenKind::Published => format!("service {service}"),
        ListenKind::Vip => format!("the VIP of service {service}"),
    };
    let (word, error) = match state.ports.get(listen) {
        Some(PortState::Listening) => ("listening", None),
        Some(PortState::Failed { error, .. }) => ("failed", Some(error)),
        None if kind == ListenKind::Vip => ("listening", None),
        None => ("starting", None),
    };
    let text = match &error {
        Some(error) => format!("{listen} of {owner} cannot be listened at: {error}"),
        None => format!("{listen} is {owner}'s"),
    };
    ListenerPart {
        address: listen.to_string(),
        state: word.to_owned(),
        held_by: error,
        text,
    }
}

fn at_entry_point(
    state: &AdminState,
    table: &Arc<RoutingTable>,
    entry_point: &EntryPoint,
    asked: &Question,
    mut answer: Answer,
) -> Answer {
    let name = entry_point.name();
    let first = match &asked.sni {
        Some(sni) => First::Tls(Some(sni).filter(|sni| !sni.is_empty()).map(String::as_str)),
        // What a client of a port that ends TLS begins with.
        None if entry_point.spec().is_tls => {
            First::Tls(Some(&asked.host).filter(|host| !host.is_empty()).map(String::as_str))
        }
        None => First::Other,
    };
    if let Some(routed) = entry_point.find_stream(first, asked.from) {
        answer.rule = Some(rule(&routed.route, Some(&routed.service)));
        return match table.service_of(routed) {
            Some(service) => at_service(state, service, asked, answer),
            None => answer.saying(format!("service {} has just left the table", routed.service)),
        };
    }
    if entry_point.spec().redirect.is_some() {
        return answer.saying(format!(
            "entry point {name} sends every request to the same place by https"
        ));
    }
    let head = match asked.host.is_empty() {
        true => format!("{} {} HTTP/1.0\r\n\r\n", asked.method, asked.path),
        false => format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\n\r\n",
            asked.method, asked.path, asked.host
        ),
    };
    let mut slots = HeaderSlots::default();
    let found = match parse_request(head.as_bytes(), 0, usize::MAX, &mut slots) {
        Ok(Some(head)) => {
            let mut hosted = entry_point.front().at("");
            let key = RouteKey::of(&head, false, |host| {
                hosted = entry_point.front().at(host);
                hosted.asks_for_path()
            });
            key.map(|key| hosted.find(&key.asked(asked.from)).cloned())
        }
        Ok(None) => Err(Refusal::RequestLine),
        Err(refusal) => Err(refusal),
    };
    let routed = match found {
        Ok(Some(routed)) => routed,
        Ok(None) => {
            let n = entry_point.front().len();
            return answer.saying(format!(
                "none of the {n} rules of entry point {name} takes {} {} for {:?}: 404",
                asked.method, asked.path, asked.host
            ));
        }
        Err(refusal) => return answer.saying(format!("entry point {name} refuses such a request: {refusal}")),
    };
    answer.rule = Some(rule(&routed.route, Some(&routed.service)));
    if routed.route.is_closed {
        return answer.saying(format!("the route of service {} is closed: 503", routed.service));
    }
    if let Some(filters) = &routed.route.filters
        && !filters.lets_in(asked.from)
    {
        return answer.saying(format!(
            "{} is not among those that the route lets in (allow): 403",
            asked.from
        ));
    }
    match table.service_of(&routed) {
        Some(service) => at_service(state, service, asked, answer),
        None => answer.saying(format!("service {} has just left the table", routed.service)),
    }
}

fn rule(route: &RouteSpec, service: Option<&ServiceName>) -> RulePart {
    RulePart {
        text: describe_route(route),
        service: service.map(ToString::to_string),
    }
}

fn at_service(state: &AdminState, service: &Arc<Service>, asked: &Question, mut answer: Answer) -> Answer {
    let (spec, now) = (service.spec(), Instant::now());
    let name = service.name();
    answer.service = Some(name.to_string());
    answer.mode = Some(spec.mode.as_str().to_owned());
    answer.closes = closes(service);
    if spec.mode == Mode::Http
        && let Some(filters) = &spec.filters
        && !filters.lets_in(asked.from)
    {
        return answer.saying(format!(
            "{} is not among those that service {name} lets in (allow): 403",
            asked.from
        ));
    }
    let picks = service.picks(now);
    let draining = state.table.draining(name);
    let of_table = service.endpoints().iter().enumerate().map(|(i, endpoint)| {
        let is_for = picks.has(i);
        let weight = spec.weight_of(i).get();
        EndpointPart::of(
            endpoint,
            is_for,
            reason(
                endpoint,
                is_for,
                picks.is_panic(),
                weight,
                spec.limits.endpoint_connections,
                now,
            ),
        )
    });
    let leaving = draining.iter().map(|endpoint| {
        EndpointPart::of(
            endpoint,
            false,
            "it has left the table, and finishes what is open".to_owned(),
        )
    });
    answer.endpoints = of_table.chain(leaving).collect();
    let (n, n_for) = (service.endpoints().len(), picks.len());
    let held = match spec.limits.hold_timeout.is_zero() {
        true => "is refused at once".to_owned(),
        false => format!(
            "is held for {}, and refused then",
            format_duration(spec.limits.hold_timeout)
        ),
    };
    if n == 0 {
        return answer.saying(format!("service {name} has no endpoint: a client {held}"));
    }
    let next = picks.upcoming().next().map(|i| shown(&service.endpoints()[i]));
    let how = match spec.balance {
        Balance::RoundRobin => next
            .as_ref()
            .map_or_else(String::new, |next| format!(", the next is {next}")),
        Balance::LeastRequest => ", the less busy of two that are drawn by lot".to_owned(),
        Balance::Hash => ", by the hash of what the client says".to_owned(),
    };
    let sticky = match spec.sticky.is_some() {
        true => ", unless its cookie leads to another",
        false => "",
    };
    if spec.balance == Balance::RoundRobin {
        answer.next = next;
    }
    let text = match picks.is_panic() {
        true => format!(
            "service {name}: none of its {n} endpoints is well, so all are tried; if none takes it a client {held}"
        ),
        false => format!("service {name}: {n_for} of {n} endpoints get traffic{how}{sticky}"),
    };
    answer.saying(text)
}

fn reason(endpoint: &Endpoint, is_for: bool, is_panic: bool, weight: u32, cap: u32, now: Instant) -> String {
    let state = endpoint.state(now);
    let why = endpoint
        .why_not_ready(now)
        .map(|why| format!(": {why}"))
        .unwrap_or_default();
    let said = match state {
        EndpointState::Ready => "the last that went there was taken, or its check passes".to_owned(),
        EndpointState::Untried => "nothing is known of it yet".to_owned(),
        EndpointState::Failing => format!("the last that went there was not taken{why}"),
        EndpointState::Unready => format!("its check fails, or has not passed yet{why}"),
        EndpointState::Resting => format!("it rests{why}"),
        EndpointState::Draining => "it has left the table".to_owned(),
    };
    if cap != 0 && endpoint.in_flight() >= cap {
        return format!("{said}; it has as much in flight as it may ({cap})");
    }
    match (is_for, is_panic) {
        (true, true) => format!("{said}; tried nonetheless, since no other is well"),
        (true, false) if weight == 0 => {
            format!("{said}; its weight is 0: it gets something only where nobody else takes it")
        }
        _ => said,
    }
}

impl EndpointPart {
    fn of(endpoint: &Endpoint, is_for: bool, why: String) -> EndpointPart {
        EndpointPart {
            name: endpoint.label(),
            address: endpoint.spec().to_string(),
            node: endpoint.task().map(|task| task.hostname.to_string()),
            is_for,
            why,
        }
    }
}

/// As a person finds it.
fn shown(endpoint: &Endpoint) -> String {
    match endpoint.task() {
        Some(task) => format!("{} on {}", task.name, task.hostname),
        None => endpoint.spec().to_string(),
    }
}

fn closes(service: &Service) -> Vec<ClosePart> {
    let ends = service.state().last_closes.snapshot();
    let name_of = |id| {
        let mut endpoints = service.endpoints().iter();
        endpoints
            .find(|endpoint| endpoint.id() == id)
            .map(|endpoint| shown(endpoint))
    };
    let part = |close: &crate::routing::Close| ClosePart {
        at_ms: unix_ms(close.at),
        reason: close.reason.as_str().to_owned(),
        client: close.client,
        endpoint: close.endpoint.and_then(name_of),
        took_ms: u64::try_from(close.after.as_millis()).unwrap_or(u64::MAX),
    };
    ends.iter().rev().map(part).collect()
}

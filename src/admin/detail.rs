//! One service in detail, as this node sees it and counts it, as JSON.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::Serialize;

use super::AdminState;
use super::moment::unix_ms;
use super::views::{PortView, describe_health, describe_route, hostname, ports};
use crate::routing::{CloseReason, Endpoint};

#[derive(Serialize)]
pub(super) struct ServiceDetail {
    name: String,
    /// Whose figures these are.
    node: String,
    mode: &'static str,
    balance: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    vip: Option<String>,
    publish: Vec<String>,
    routes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<String>,
    ports: Vec<PortView>,
    endpoints: Vec<EndpointDetail>,
    connections: i64,
    connections_total: u64,
    /// How connections ended, by reason, those that never happened left out.
    closes: Vec<Closes>,
}

#[derive(Serialize)]
struct Closes {
    reason: &'static str,
    count: u64,
}

#[derive(Serialize)]
struct EndpointDetail {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// The hostname of its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    in_flight: u32,
    total: u64,
    connect_failures: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<CheckView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Serialize)]
struct CheckView {
    at_ms: u64,
    ok: bool,
    text: String,
}

/// `None`: there is no such service.
pub(super) fn service(state: &AdminState, name: &str) -> Option<ServiceDetail> {
    let table = state.table.load();
    let service = table.service_by_key(&name.to_ascii_lowercase())?;
    let (spec, stats) = (service.spec(), service.stats());
    let draining = state.table.draining(service.name());
    let weights = spec.weights.iter().map(|weight| Some(weight.get()));
    let weights = weights.chain(std::iter::repeat(None));
    let now = Instant::now();
    let closes = CloseReason::ALL.into_iter().filter_map(|reason| {
        let count = stats.closed_count(reason);
        (count > 0).then_some(Closes {
            reason: reason.as_str(),
            count,
        })
    });
    let endpoints = service.endpoints().iter().chain(&draining).zip(weights);
    Some(ServiceDetail {
        name: service.name().to_string(),
        node: hostname(),
        mode: spec.mode.as_str(),
        balance: spec.balance.as_str(),
        vip: service.vip().map(|vip| vip.to_string()),
        publish: spec.publish.iter().map(ToString::to_string).collect(),
        routes: spec.routes.iter().map(describe_route).collect(),
        health: describe_health(spec),
        ports: ports(state, &table).filter(|port| port.is_of(service.name())).collect(),
        endpoints: endpoints
            .map(|(endpoint, weight)| EndpointDetail::of(endpoint, weight, now))
            .collect(),
        connections: stats.connections_active.load(Relaxed),
        connections_total: stats.connections_total.load(Relaxed),
        closes: closes.collect(),
    })
}

impl EndpointDetail {
    fn of(endpoint: &Arc<Endpoint>, weight: Option<u32>, now: Instant) -> EndpointDetail {
        EndpointDetail {
            address: endpoint.spec().to_string(),
            task: endpoint.task().map(|task| task.name.clone()),
            node: endpoint.task().map(|task| task.hostname.to_string()),
            state: endpoint.state(now).as_str(),
            weight,
            in_flight: endpoint.in_flight(),
            total: endpoint.picks_total(),
            connect_failures: endpoint.connect_failures_total(),
            check: endpoint.last_check().map(|check| CheckView {
                at_ms: unix_ms(check.at),
                ok: check.fault.is_none(),
                text: check
                    .fault
                    .map_or_else(|| "passed".to_owned(), |fault| fault.to_string()),
            }),
            why: endpoint.why_not_ready(now).map(|why| why.to_string()),
        }
    }
}

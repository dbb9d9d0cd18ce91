//! What is shown of services and their tasks, as JSON.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::declared::{ServiceMore, TaskMore};
use super::{Json, Key};
use crate::admin::views::describe_route;
use crate::routing::{Endpoint, Service};

#[derive(Serialize)]
struct ServiceObject<'a> {
    mode: &'static str,
    balance: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    vip: Option<std::net::Ipv4Addr>,
    publish: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<String>,
    ready: usize,
    endpoints: usize,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    faults: &'a [String],
    #[serde(flatten)]
    more: ServiceMore,
}

/// A service that the table does not have: a job, or one that is on no network.
#[derive(Serialize)]
struct BareServiceObject {
    ready: usize,
    #[serde(flatten)]
    more: ServiceMore,
}

#[derive(Serialize)]
struct TaskObject<'a> {
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    state: &'static str,
    since_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(flatten)]
    more: TaskMore,
}

/// How long an endpoint has been in a state, and why.
pub(super) struct Standing<'a> {
    pub state: &'static str,
    pub since_ms: u64,
    pub why: Option<&'a str>,
}

pub(super) fn service_key(name: &str) -> Key {
    format!("service/{name}").into()
}

/// A task has its id; an endpoint of a services file has its service and its address.
pub(super) fn task_key(service: &Service, endpoint: &Endpoint) -> Key {
    match endpoint.task() {
        Some(task) => format!("task/{}", task.id).into(),
        None => format!("task/{}/{}", service.name(), endpoint.spec()).into(),
    }
}

pub(super) fn service(service: &Service, faults: &[String], more: ServiceMore, now: Instant) -> Json {
    let spec = service.spec();
    let is_ready = |endpoint: &&Arc<Endpoint>| endpoint.state(now).is_picked();
    json(&ServiceObject {
        mode: spec.mode.as_str(),
        balance: spec.balance.as_str(),
        vip: service.vip(),
        publish: spec.publish.iter().map(ToString::to_string).collect(),
        routes: spec.routes.iter().map(describe_route).collect(),
        ready: service.endpoints().iter().filter(is_ready).count(),
        endpoints: service.endpoints().len(),
        faults,
        more,
    })
}

/// `n_running`: of its tasks.
pub(super) fn bare_service(n_running: usize, more: ServiceMore) -> Json {
    json(&BareServiceObject { ready: n_running, more })
}

pub(super) fn task(service: &Service, endpoint: &Endpoint, standing: &Standing, more: TaskMore) -> Json {
    let address = endpoint.spec().to_string();
    let task = endpoint.task();
    json(&TaskObject {
        service: service.name().as_str(),
        node: task.map(|task| &*task.node),
        name: task.map_or(&*address, |task| &task.name),
        // Of another node's task it is the link's.
        address: task.is_none_or(|task| !task.is_remote).then(|| address.clone()),
        state: standing.state,
        since_ms: standing.since_ms,
        why: standing.why,
        more,
    })
}

/// Of structs with plain fields, which does not fail.
pub(super) fn json(object: &impl Serialize) -> Json {
    serde_json::to_string(object).unwrap_or_else(|_| "{}".to_owned()).into()
}

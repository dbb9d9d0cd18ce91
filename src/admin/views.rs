//! What `/v1/table` and `/v1/status` show, as JSON. These types are a promise to whoever reads it; the rooms' own are not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::names::{self, NameView};
use super::tls::TlsView;
use super::{AdminState, Phase, SwarmView};
use crate::model::{
    EntryPointName, HealthProbe, RouteSpec, RouteTls, Scheme, ServiceName, ServiceSpec, format_duration,
};
use crate::proxy::{PortState, VipState};
use crate::routing::{Endpoint, EndpointState, ListenKind, RoutingTable, Service, TableHandle};
use crate::source::SourceHealth;
use crate::store::StoreHealth;
use crate::takeover::{Feature, TakeoverStatus};
use crate::tasknet::TaskNets;

#[derive(Serialize)]
pub(super) struct TableView {
    revision: u64,
    /// Over names and specs, not over what is counted: two nodes that serve the same have the same.
    hash: String,
    services: Vec<ServiceView>,
}

#[derive(Serialize)]
pub(super) struct StatusView {
    version: &'static str,
    hostname: String,
    phase: &'static str,
    uptime_seconds: u64,
    workers: usize,
    revision: u64,
    source: SourceView,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterView>,
    /// What is wrong with services, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    faults: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    takeover: Option<TakeoverView>,
    /// How many tasks reach services from inside their own networks.
    task_networks: usize,
    /// What is wrong there, by the task or the way to its namespace.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    task_network_faults: BTreeMap<String, String>,
    /// How VIPs are answered on this node: unused, answered, bound, or why they are not.
    vips: String,
    /// What this node cannot do yet, by the key or label that asks for it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    closed: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsView>,
    /// What is wrong with files of authorities that endpoints are judged by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authority_faults: Vec<String>,
    /// Of endpoints by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<NameView>,
    ports: Vec<PortView>,
    services: Vec<ServiceView>,
}

/// Where what is declared is kept.
#[derive(Serialize)]
struct StoreView {
    /// written, failing, or locked.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    revision: u64,
    write_failures: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lost: Vec<LostView>,
}

/// Acknowledged commits that are gone.
#[derive(Serialize)]
struct LostView {
    first: u64,
    last: u64,
    seen_at: String,
    what: String,
}

impl StoreView {
    fn of(store: &StoreHealth, now: Instant) -> StoreView {
        let failing = store.failing();
        let lost = store.lost().into_iter().map(|lost| LostView {
            first: lost.first,
            last: lost.last,
            seen_at: lost.seen_at.to_string(),
            what: lost.to_string(),
        });
        StoreView {
            state: match &failing {
                _ if store.is_locked() => "locked",
                Some(_) => "failing",
                None => "written",
            },
            failing_seconds: failing
                .as_ref()
                .map(|failing| now.saturating_duration_since(failing.since).as_secs()),
            reason: failing.map(|failing| failing.reason),
            revision: store.revision(),
            write_failures: store.write_failures_total.load(std::sync::atomic::Ordering::Relaxed),
            lost: lost.collect(),
        }
    }
}

/// Ports whose connections are taken ahead of Docker.
#[derive(Serialize)]
struct TakeoverView {
    mode: String,
    /// on, or what is missing.
    redirect: String,
    assign: String,
    redirected: Vec<u16>,
    assigned: Vec<u16>,
    repairs: u64,
}

impl TakeoverView {
    fn of(status: TakeoverStatus) -> TakeoverView {
        let feature = |feature: Feature| match feature {
            Feature::On => "on".to_owned(),
            Feature::Off(missing) => missing,
        };
        TakeoverView {
            mode: status.mode.to_string(),
            redirect: feature(status.redirect),
            assign: feature(status.assign),
            redirected: status.redirected.into_iter().collect(),
            assigned: status.assigned.into_keys().collect(),
            repairs: status.n_repairs,
        }
    }
}

/// The cluster as this node sees it.
#[derive(Serialize)]
struct ClusterView {
    /// This node's id.
    node: String,
    is_manager: bool,
    /// How the cluster is learned: watch, poll, link or none.
    way: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    way_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    revision: u64,
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_seconds: Option<u64>,
    nodes: Vec<NodeView>,
}

#[derive(Serialize)]
struct NodeView {
    id: String,
    hostname: String,
    address: Option<String>,
    role: &'static str,
    availability: String,
    /// up or down, as the managers see it.
    swarm: &'static str,
    /// self, up, draining or down, as this node sees it.
    link: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    revision: Option<u64>,
    digest: Option<String>,
    /// How many revisions behind the newest that this node knows of.
    lag: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct SourceView {
    state: &'static str,
    /// Anything was ever learned or kept.
    is_known: bool,
    /// How old what is served is: 0 while it is current, none where nothing is known.
    age_seconds: Option<u64>,
    /// When it was last known to be current, while it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    known_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Why what is served cannot be kept for a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_kept: Option<String>,
}

#[derive(Serialize)]
pub(super) struct PortView {
    listen: String,
    service: String,
    target: u16,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct ServiceView {
    name: String,
    mode: &'static str,
    balance: &'static str,
    vip: Option<String>,
    vip_ports: Vec<u16>,
    publish: Vec<String>,
    /// Rules, with the entry points where some are named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<String>,
    stop_grace: String,
    connections: i64,
    connections_total: u64,
    /// Of the last five seconds on this node; absent where nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    figures: Option<serde_json::Value>,
    endpoints: Vec<EndpointView>,
}

#[derive(Serialize)]
struct EndpointView {
    address: String,
    /// The network namespace that the address is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    /// Why it does not see its clients' addresses although it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    opaque: Option<String>,
    /// Why it cannot be spoken to by TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_fault: Option<String>,
    /// As Docker names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// Such as `my-web.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The hostname of its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Where not all have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    state: &'static str,
    /// Since when, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    in_flight: u32,
    total: u64,
    connect_failures: u64,
}

/// What is known of a node's services beside its table.
pub(super) struct Lately<'a> {
    /// Since when an endpoint has been in its state, in milliseconds since 1970.
    pub since_ms: &'a dyn Fn(&Service, &Endpoint) -> Option<u64>,
    /// What a service did in the last sample, by its name.
    pub figures: &'a dyn Fn(&str) -> Option<serde_json::Value>,
}

pub(super) fn table(handle: &TableHandle, now: Instant) -> TableView {
    let table = handle.load();
    TableView {
        revision: table.revision(),
        hash: format!("{:016x}", content_hash(&table)),
        services: services(handle, &table, None, now),
    }
}

/// `lately`: what else is known of them.
fn services(handle: &TableHandle, table: &RoutingTable, lately: Option<&Lately>, now: Instant) -> Vec<ServiceView> {
    let view = |service: &Arc<Service>| ServiceView::of(service, &handle.draining(service.name()), lately, now);
    table.services().map(view).collect()
}

pub(super) fn status(state: &AdminState, lately: &Lately, now: Instant) -> StatusView {
    let table = state.table.load();
    let (source, reason) = match state.source.health() {
        SourceHealth::Stale { reason } if !state.source.is_known() => ("starting", Some(reason)),
        SourceHealth::Starting => ("starting", None),
        SourceHealth::Current => ("current", None),
        SourceHealth::Stale { reason } => ("stale", Some(reason)),
    };
    let vips = state.ports.vips();
    StatusView {
        version: env!("CARGO_PKG_VERSION"),
        hostname: hostname(),
        phase: phase(state).as_str(),
        uptime_seconds: now.saturating_duration_since(state.started).as_secs(),
        workers: state.n_workers,
        revision: table.revision(),
        source: SourceView {
            state: source,
            is_known: state.source.is_known(),
            age_seconds: state.source.age().map(|age| age.as_secs()),
            known_at: state
                .source
                .known_at()
                .map(|at| humantime::format_rfc3339_seconds(at).to_string()),
            reason,
            not_kept: state.source.not_kept(),
        },
        takeover: state
            .takeover
            .as_ref()
            .map(|takeover| TakeoverView::of(takeover.status())),
        task_networks: state.networks.as_ref().map_or(0, TaskNets::len),
        task_network_faults: state.networks.as_ref().map(TaskNets::faults).unwrap_or_default(),
        closed: state.doors.snapshot(),
        cluster: state.swarm.as_ref().map(|swarm| ClusterView::of(swarm, now)),
        faults: state
            .faults
            .as_ref()
            .map(|faults| faults.snapshot())
            .unwrap_or_default(),
        vips: vips.to_string(),
        store: state.store.as_ref().map(|store| StoreView::of(store, now)),
        tls: state.tls.as_deref().map(TlsView::of),
        authority_faults: trust_faults(state, &table),
        names: state.names.as_deref().map(names::views).unwrap_or_default(),
        ports: ports(state, &table).collect(),
        services: services(&state.table, &table, Some(lately), now),
    }
}

/// What is listened on, and what came of it.
pub(super) fn ports<'a>(state: &'a AdminState, table: &'a RoutingTable) -> impl Iterator<Item = PortView> + 'a {
    let states = state.ports.snapshot();
    let are_vips_off = matches!(state.ports.vips(), VipState::Off(_));
    table.listens().map(move |(listen, route)| {
        let (state, error) = match states.get(listen) {
            Some(PortState::Listening) => ("listening", None),
            Some(PortState::Failed { error, .. }) => ("failed", Some(error.clone())),
            None if route.kind == ListenKind::Vip && are_vips_off => ("off", None),
            None => ("starting", None),
        };
        PortView {
            listen: listen.to_string(),
            service: match route.kind {
                ListenKind::EntryPoint => format!("entry point {}", route.service),
                ListenKind::Published | ListenKind::Vip => route.service.to_string(),
            },
            target: route.target,
            state,
            error,
        }
    })
}

impl PortView {
    pub(super) fn is_of(&self, service: &ServiceName) -> bool {
        self.service == service.as_str()
    }
}

impl ClusterView {
    fn of(swarm: &SwarmView, now: Instant) -> ClusterView {
        let (way, since, error) = swarm.status.way();
        let (info, cluster, peers) = (
            swarm.info.borrow().clone(),
            swarm.link.cluster.borrow().clone(),
            swarm.peers.table(),
        );
        let own = swarm.link.report();
        let newest = peers.values().filter_map(|peer| Some(peer.report.as_ref()?.revision));
        let newest = newest.chain([own.revision]).max().unwrap_or(0);
        let nodes = cluster.nodes().map(|node| {
            let peer = peers.get(node.id.as_str());
            let is_own = node.id == info.node;
            let report = match is_own {
                true => Some(&own),
                false => peer.and_then(|peer| peer.report.as_ref()),
            };
            let link = match peer {
                _ if is_own => "self",
                Some(peer) if peer.is_up && report.is_some_and(|report| report.is_draining) => "draining",
                Some(peer) if peer.is_up => "up",
                _ => "down",
            };
            NodeView {
                id: node.id.clone(),
                hostname: node.hostname.clone(),
                address: node.addr.map(|addr| addr.to_string()),
                role: if node.is_manager { "manager" } else { "worker" },
                availability: node.availability.clone(),
                swarm: if node.is_up { "up" } else { "down" },
                link,
                round_trip_us: peer
                    .and_then(|peer| peer.round_trip)
                    .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                version: report.map(|report| report.version.clone()),
                revision: report.map(|report| report.revision),
                digest: report.map(|report| report.digest.to_string()),
                lag: report.map(|report| newest.saturating_sub(report.revision)),
                error: peer.and_then(|peer| peer.error.clone()),
            }
        });
        let certificate = swarm.link.identity().and_then(|identity| identity.expires_at());
        ClusterView {
            node: info.node.clone(),
            is_manager: info.is_manager,
            way: way.as_str(),
            way_seconds: since.map(|since| now.saturating_duration_since(since).as_secs()),
            error,
            revision: cluster.revision(),
            digest: cluster.digest().to_string(),
            certificate_seconds: certificate
                .and_then(|at| at.duration_since(SystemTime::now()).ok())
                .map(|left| left.as_secs()),
            nodes: nodes.collect(),
        }
    }
}

/// This machine's name.
pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Where a node is in its life, as others should see it: it serves once it has something to serve.
pub(super) fn phase(state: &AdminState) -> Phase {
    match state.readiness.phase() {
        Phase::Serving if !state.source.is_known() => Phase::Starting,
        phase => phase,
    }
}

/// Why there is nothing to serve yet.
pub(super) fn unknown(state: &AdminState) -> String {
    match state.source.health() {
        SourceHealth::Stale { reason } => format!("source: nothing was learned yet, and nothing kept: {reason}"),
        SourceHealth::Starting | SourceHealth::Current => {
            "source: nothing was learned yet, and nothing kept".to_owned()
        }
    }
}

/// The lines of `/readyz`: one for each thing that is not as it should be.
pub(super) fn complaints(state: &AdminState) -> Vec<String> {
    let mut lines = Vec::new();
    match state.source.health() {
        _ if !state.source.is_known() => lines.push(unknown(state)),
        SourceHealth::Stale { reason } => {
            let since = state.source.known_at().map(since).unwrap_or_default();
            lines.push(format!("source: stale{since}, the last good table is served: {reason}"));
        }
        SourceHealth::Starting | SourceHealth::Current => {}
    }
    if let Some(reason) = state.source.not_kept() {
        lines.push(format!("source: what is served cannot be kept for a restart: {reason}"));
    }
    if let Some(store) = &state.store {
        if store.is_locked() {
            lines.push("store: locked: nothing can be declared before \"docker swarm unlock\"".to_owned());
        }
        if let Some(failing) = store.failing() {
            let secs = failing.since.elapsed().as_secs();
            lines.push(format!(
                "store: cannot be written for {secs} s, what is declared goes on and changes are refused: {}",
                failing.reason
            ));
        }
        lines.extend(store.lost().iter().map(|lost| format!("store: {lost}")));
    }
    lines.extend(
        state
            .doors
            .snapshot()
            .into_iter()
            .map(|(key, why)| format!("{key}: {why}")),
    );
    lines.extend(state.tls.iter().flat_map(|tls| bounded("tls", tls.faults())));
    let table = state.table.load();
    lines.extend(trust_faults(state, &table));
    lines.extend(state.names.iter().flat_map(|known| names::complaints(known)));
    let lost = table.services().filter(|service| service.is_lost());
    lines.extend(lost.map(|service| {
        let n = service.endpoints().len();
        format!(
            "service {}: none of its {n} endpoints is well, so all are tried",
            service.name()
        )
    }));
    let failed = state.ports.failed().into_iter();
    lines.extend(failed.map(|(listen, error)| format!("port {listen}: {error}")));
    lines
}

/// The first of many that are of one kind.
fn bounded(kind: &str, mut faults: Vec<String>) -> Vec<String> {
    let n_more = faults.len().saturating_sub(LIKE_LINES_MAX);
    if n_more > 0 {
        faults.truncate(LIKE_LINES_MAX);
        faults.push(format!("{kind}: {n_more} more: \"anynode status\" shows all"));
    }
    faults
}

/// Of `/readyz`: of one kind.
const LIKE_LINES_MAX: usize = 32;

/// Why endpoints of services are not believed, as far as that is this node's own affair.
fn trust_faults(state: &AdminState, table: &RoutingTable) -> Vec<String> {
    let mut faults = state.trust.faults();
    let secured = table
        .services()
        .filter(|service| service.spec().scheme == Scheme::Https);
    faults.extend(secured.filter_map(|service| {
        let why = state.trust.lacks(&service.spec().endpoint_tls)?;
        Some(format!("service {}: {why}", service.name()))
    }));
    faults
}

/// A moment in words: when, and how long ago.
fn since(at: SystemTime) -> String {
    let ago = Duration::from_secs(at.elapsed().unwrap_or_default().as_secs());
    format!(
        " since {} ({} ago)",
        humantime::format_rfc3339_seconds(at),
        humantime::format_duration(ago)
    )
}

impl ServiceView {
    fn of(service: &Service, draining: &[Arc<Endpoint>], lately: Option<&Lately>, now: Instant) -> ServiceView {
        let spec = service.spec();
        let health = describe_health(spec);
        let weights = spec.weights.iter().map(|weight| Some(weight.get()));
        let weights = weights.chain(std::iter::repeat(None));
        let endpoints = service.endpoints().iter().chain(draining).zip(weights);
        ServiceView {
            name: service.name().to_string(),
            mode: spec.mode.as_str(),
            balance: spec.balance.as_str(),
            vip: service.vip().map(|vip| vip.to_string()),
            vip_ports: spec.vip_ports(),
            publish: spec.publish.iter().map(ToString::to_string).collect(),
            routes: spec.routes.iter().map(describe_route).collect(),
            health,
            stop_grace: format_duration(spec.stop_grace),
            connections: service
                .stats()
                .connections_active
                .load(std::sync::atomic::Ordering::Relaxed),
            connections_total: service
                .stats()
                .connections_total
                .load(std::sync::atomic::Ordering::Relaxed),
            figures: lately.and_then(|lately| (lately.figures)(service.name().as_str())),
            endpoints: endpoints
                .map(|(endpoint, weight)| {
                    let since_ms = lately.and_then(|lately| (lately.since_ms)(service, endpoint));
                    EndpointView::of(endpoint, weight, since_ms, now)
                })
                .collect(),
        }
    }
}

/// Such as "http /health every 5s".
pub(super) fn describe_health(spec: &ServiceSpec) -> Option<String> {
    let check = spec.health.as_ref()?;
    let probe = match &check.probe {
        HealthProbe::Http { path } => format!("http {path}"),
        HealthProbe::Tcp => "tcp".to_owned(),
    };
    Some(format!("{probe} every {}", format_duration(check.interval)))
}

pub(super) fn describe_route(route: &RouteSpec) -> String {
    let names: Vec<&str> = route.entry_points.iter().map(EntryPointName::as_str).collect();
    let closed = if route.is_closed { " (closed)" } else { "" };
    let passed = match route.tls {
        RouteTls::Passthrough => " (TLS passed through)",
        RouteTls::AsEntryPoint | RouteTls::Ended | RouteTls::Without => "",
    };
    match names.is_empty() {
        true => format!("{}{passed}{closed}", route.rule),
        false => format!("{} at {}{passed}{closed}", route.rule, names.join(", ")),
    }
}

impl EndpointView {
    fn of(endpoint: &Endpoint, weight: Option<u32>, since_ms: Option<u64>, now: Instant) -> EndpointView {
        let state: EndpointState = endpoint.state(now);
        EndpointView {
            address: endpoint.spec().to_string(),
            netns: endpoint.spec().netns.as_ref().map(|path| path.display().to_string()),
            opaque: endpoint.opaque().map(|why| why.to_string()),
            tls_fault: endpoint.tls_fault().map(|why| why.to_string()),
            task: endpoint.task().map(|_| endpoint.label()),
            name: endpoint.task().map(|task| task.name.clone()),
            node: endpoint.task().map(|task| task.hostname.to_string()),
            weight,
            state: state.as_str(),
            since_ms,
            why: endpoint.why_not_ready(now).map(|why| why.to_string()),
            in_flight: endpoint.in_flight(),
            total: endpoint.picks_total(),
            connect_failures: endpoint.connect_failures_total(),
        }
    }
}

/// FNV-1a over what services are declared as.
fn content_hash(table: &RoutingTable) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for service in table.services() {
        let shown = format!("{:?}{:?}", service.spec(), service.vip());
        for byte in shown.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

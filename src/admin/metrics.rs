//! The Prometheus view: a collector that reads the rooms' atomics when somebody scrapes. Nothing is registered per
//! service, so a service that is gone takes its series along, and nothing is sampled on the way of a byte.
//!
//! Labels are names of services and closed sets. Per-endpoint series are shown only when asked for (`?detail=endpoint`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::family::Family;
use super::{AdminState, SwarmView, names, tls};
use crate::dns::{DnsStats, Rcode, Source};
use crate::model::EndpointHandshake;
use crate::model::Mode;
use crate::places::Table;
use crate::proxy::PortState;
use crate::routing::{
    BytePath, CloseReason, Direction, Endpoint, EndpointState, HttpCode, RequestRefusal, RetryOutcome, RoutingTable,
    Service, ServiceState, ServiceStats,
};
use crate::source::SourceHealth;
use crate::source::swarm::Way;
use crate::store::StoreHealth;
use crate::tasknet::TaskNets;

/// What is said of one service: in the table, or gone while connections of its last.
struct Counted {
    state: Arc<ServiceState>,
    service: Option<Arc<Service>>,
    /// Endpoints that left the table and still have connections.
    draining: Vec<Arc<Endpoint>>,
}

impl Counted {
    /// Its endpoints, those that left included.
    fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let known = self.service.iter().flat_map(|service| service.endpoints());
        known.chain(&self.draining)
    }

    fn name(&self) -> &str {
        self.state.name().as_str()
    }

    fn proto(&self) -> &'static str {
        self.service
            .as_ref()
            .map_or(Mode::Tcp, |service| service.spec().mode)
            .as_str()
    }
}

/// The whole scrape, in OpenMetrics' text format.
pub(super) fn scrape(state: &Arc<AdminState>, has_detail: bool) -> String {
    let mut registry = Registry::default();
    let state = state.clone();
    registry.register_collector(Box::new(Scrape { state, has_detail }));
    let mut text = String::with_capacity(64 * 1024);
    // Writing to memory cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

struct Scrape {
    state: Arc<AdminState>,
    has_detail: bool,
}

impl std::fmt::Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape")
            .field("has_detail", &self.has_detail)
            .finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let now = Instant::now();
        let table = self.state.table.load();
        let handle = &self.state.table;
        let known = table.services().map(|service| Counted {
            state: service.state().clone(),
            service: Some(service.clone()),
            draining: handle.draining(service.name()),
        });
        let gone = handle.lingering().into_iter().map(|state| Counted {
            draining: handle.draining(state.name()),
            state,
            service: None,
        });
        let all: Vec<Counted> = known.chain(gone).collect();
        let out = &mut encoder;
        write_node(&self.state, &table, out);
        if let Some(swarm) = &self.state.swarm {
            write_swarm(swarm, out);
            write_link(swarm, out);
        }
        if let Some(takeover) = &self.state.takeover {
            let status = takeover.status();
            let mut family = Family::new(
                out,
                MetricType::Gauge,
                "anynode_takeover_ports",
                "Published ports whose connections are taken ahead of Docker.",
            );
            family.sample(&[("by", "redirect")], status.redirected.len() as u64);
            family.sample(&[("by", "assign")], status.assigned.len() as u64);
            Family::new(
                out,
                MetricType::Counter,
                "anynode_takeover_repairs",
                "Times that rules of ours were gone and were put back.",
            )
            .sample(&[], status.n_repairs);
        }
        write_connections(&all, out);
        write_entry_points(&table, out);
        if let Some(tls) = &self.state.tls {
            tls::write_metrics(tls, out);
        }
        write_last_hops(&all, out);
        write_requests(&all, out);
        write_endpoint_handshakes(&all, out);
        write_endpoints(&all, now, out);
        if self.has_detail {
            write_detail(&all, now, out);
        }
        Ok(())
    }
}

fn write_node(state: &AdminState, table: &RoutingTable, out: &mut DescriptorEncoder<'_>) {
    Family::new(out, MetricType::Gauge, "anynode_build_info", "This program.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    Family::new(
        out,
        MetricType::Gauge,
        "anynode_config_revision",
        "Revision of the routing table.",
    )
    .sample(&[], table.revision());
    Family::new(
        out,
        MetricType::Gauge,
        "anynode_services",
        "Services in the routing table.",
    )
    .sample(&[], table.len() as u64);
    let is_stale = matches!(state.source.health(), SourceHealth::Stale { .. });
    Family::new(
        out,
        MetricType::Gauge,
        "anynode_source_stale",
        "Whether the source cannot be used and the last good table is served.",
    )
    .sample(&[], u64::from(is_stale));
    if let Some(age) = state.source.age() {
        Family::new(
            out,
            MetricType::Gauge,
            "anynode_source_age_seconds",
            "For how long what is served was not known to be what the source says; absent while nothing is known.",
        )
        .sample(&[], age.as_secs());
    }
    Family::new(
        out,
        MetricType::Gauge,
        "anynode_source_not_kept",
        "Whether what is served cannot be written for a restart.",
    )
    .sample(&[], u64::from(state.source.not_kept().is_some()));
    Family::new(
        out,
        MetricType::Counter,
        "anynode_source_rejected",
        "Times that what the source said could not be used.",
    )
    .sample(&[], load(&state.source.rejected_total));
    Family::new(
        out,
        MetricType::Counter,
        "anynode_source_applied",
        "Times that what the source said was taken.",
    )
    .sample(&[], load(&state.source.applied_total));
    Family::new(
        out,
        MetricType::Counter,
        "anynode_sockets_adopted",
        "Sockets that an instance before this one handed over.",
    )
    .sample(&[], load(&state.ports.adopted_total));
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_listener_bind_errors",
        "Attempts so far of ports that cannot be bound.",
    );
    for (listen, port) in state.ports.snapshot() {
        if let PortState::Failed { attempts, .. } = port {
            family.sample(&[("port", &listen.to_string())], attempts);
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_health_checks",
        "Active probes by result.",
    );
    let health = &state.health;
    for (result, count) in [
        ("ok", &health.good),
        ("fail", &health.bad),
        ("timeout", &health.timed_out),
    ] {
        family.sample(&[("result", result)], load(count));
    }
    if let Some(faults) = &state.faults {
        let faults: usize = faults.snapshot().values().map(Vec::len).sum();
        Family::new(
            out,
            MetricType::Gauge,
            "anynode_service_faults",
            "What is wrong with services' labels and ports; status says what.",
        )
        .sample(&[], faults as u64);
    }
    if let Some(known) = &state.names {
        names::write_metrics(known, out);
    }
    if let Some(store) = &state.store {
        write_store(store, out);
    }
    if let Some(networks) = &state.networks {
        write_task_networks(networks, out);
    }
    if let Some(dns) = &state.dns {
        write_dns(dns, out);
    }
    write_places(out);
    write_process(out);
}

/// Where what is declared is kept, on a node that is a swarm by itself.
fn write_store(store: &StoreHealth, out: &mut DescriptorEncoder<'_>) {
    let lost = store.lost();
    let lost = lost.iter().map(|lost| lost.last.saturating_sub(lost.first) + 1);
    for (kind, name, help, value) in [
        (
            MetricType::Gauge,
            "anynode_store_writable",
            "Whether changes to what is declared can be written; 0: they are refused, and status says why.",
            u64::from(store.failing().is_none()),
        ),
        (
            MetricType::Gauge,
            "anynode_store_locked",
            "Whether the swarm waits for the key that unlocks it; tasks and traffic go on meanwhile.",
            u64::from(store.is_locked()),
        ),
        (
            MetricType::Gauge,
            "anynode_store_revision",
            "Revision of what is declared.",
            store.revision(),
        ),
        (
            MetricType::Gauge,
            "anynode_store_lost_revisions",
            "Acknowledged changes that a damaged store has lost, until somebody has seen to it; status says which.",
            lost.sum(),
        ),
        (
            MetricType::Counter,
            "anynode_store_write_failures",
            "Changes that could not be written and were refused.",
            load(&store.write_failures_total),
        ),
    ] {
        Family::new(out, kind, name, help).sample(&[], value);
    }
}

/// What tasks reach from inside: of services, their connections are counted with the services.
fn write_task_networks(networks: &TaskNets, out: &mut DescriptorEncoder<'_>) {
    for (name, help, value) in [
        (
            "anynode_task_networks",
            "Tasks that reach services from inside their own networks.",
            networks.len(),
        ),
        (
            "anynode_task_network_faults",
            "What is wrong there; status says what.",
            networks.faults().len(),
        ),
    ] {
        Family::new(out, MetricType::Gauge, name, help).sample(&[], value as u64);
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_outgoing_connections_closed",
        "Connections of tasks to no service, made outside for them, by the reason of their end.",
    );
    for reason in CloseReason::ALL {
        sample_if_any(
            &mut family,
            &[("reason", reason.as_str())],
            networks.outgoing().closed_count(reason),
        );
    }
}

/// How the cluster is learned, and what every other node is like from here.
fn write_swarm(swarm: &SwarmView, out: &mut DescriptorEncoder<'_>) {
    let (way, ..) = swarm.status.way();
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_cluster_source",
        "How the cluster is learned: one of the ways is 1. Polling is the slow one.",
    );
    for one in Way::ALL {
        family.sample(&[("way", one.as_str())], u64::from(one == way));
    }
    let own = swarm.link.report();
    Family::new(
        out,
        MetricType::Gauge,
        "anynode_cluster_revision",
        "The last commit of the swarm that this node serves by.",
    )
    .sample(&[], own.revision);
    for (name, help, count) in [
        (
            "anynode_cluster_events",
            "Commits seen, or polls taken.",
            &swarm.status.events,
        ),
        (
            "anynode_cluster_resumes",
            "Streams that went on where the last one broke.",
            &swarm.status.resumes,
        ),
        (
            "anynode_cluster_resyncs",
            "Times that all of the swarm was read anew.",
            &swarm.status.resyncs,
        ),
    ] {
        Family::new(out, MetricType::Counter, name, help).sample(&[], load(count));
    }
    let (cluster, peers) = (swarm.link.cluster.borrow().clone(), swarm.peers.table());
    let hostname = |id: &str| {
        cluster
            .node(id)
            .map_or_else(|| id.to_owned(), |node| node.hostname.clone())
    };
    // Two nodes may have one hostname: the id tells them apart.
    let peers: Vec<_> = peers
        .iter()
        .map(|(id, peer)| (id.to_string(), hostname(id), peer))
        .collect();
    let newest = peers
        .iter()
        .filter_map(|(.., peer)| Some(peer.report.as_ref()?.revision));
    let newest = newest.chain([own.revision]).max().unwrap_or(0);
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_peer_up",
        "Whether another node answers this one.",
    );
    for (id, name, peer) in &peers {
        family.sample(&[("node", id), ("hostname", name)], u64::from(peer.is_up));
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_peer_lag",
        "How many revisions another node is behind the newest known here.",
    );
    for (id, name, peer) in &peers {
        if let Some(report) = &peer.report {
            family.sample(
                &[("node", id), ("hostname", name)],
                newest.saturating_sub(report.revision),
            );
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_peer_agrees",
        "Whether another node's cluster has the same contents as this one's.",
    );
    for (id, name, peer) in &peers {
        if let Some(report) = &peer.report {
            family.sample(
                &[("node", id), ("hostname", name)],
                u64::from(report.digest == own.digest),
            );
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_peer_round_trip_seconds",
        "From a ping to its answer, the last one.",
    );
    for (id, name, peer) in &peers {
        if let Some(took) = peer.round_trip {
            family.fraction(&[("node", id), ("hostname", name)], took.as_secs_f64());
        }
    }
}

fn write_link(swarm: &SwarmView, out: &mut DescriptorEncoder<'_>) {
    let stats = &swarm.link.stats;
    for (name, help, count) in [
        (
            "anynode_link_dials",
            "Connections to tasks of other nodes asked for.",
            &stats.dials,
        ),
        (
            "anynode_link_dials_unready",
            "Those that had to wait for a handshake.",
            &stats.dials_unready,
        ),
        (
            "anynode_link_handshakes",
            "TLS handshakes begun for connections to other nodes' tasks.",
            &stats.handshakes,
        ),
        (
            "anynode_link_accepted",
            "Connections of other nodes accepted.",
            &stats.accepted,
        ),
        (
            "anynode_link_failed",
            "Connections of other nodes that failed.",
            &stats.failed,
        ),
        (
            "anynode_link_refused",
            "What other nodes asked for and may not have.",
            &stats.refused,
        ),
        (
            "anynode_link_changes",
            "Changes of the cluster taken from managers.",
            &stats.changes,
        ),
        (
            "anynode_link_resyncs",
            "Times that the whole cluster was asked for anew.",
            &stats.resyncs,
        ),
    ] {
        Family::new(out, MetricType::Counter, name, help).sample(&[], load(count));
    }
}

fn write_places(out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_places_given_up",
        "Places given up for others because all were taken: by the party that held most, its silent oldest.",
    );
    for table in Table::ALL {
        sample_if_any(&mut family, &[("table", table.as_str())], table.n_given_up());
    }
}

fn write_dns(dns: &DnsStats, out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(out, MetricType::Counter, "anynode_dns_queries", "DNS queries answered.");
    for source in Source::ALL {
        for rcode in Rcode::ALL {
            let labels = [("rcode", rcode.as_str()), ("source", source.as_str())];
            sample_if_any(&mut family, &labels, dns.queries(rcode, source));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Histogram,
        "anynode_dns_query_seconds",
        "From a query to its answer.",
    );
    for source in Source::ALL {
        family.histogram(&[("source", source.as_str())], dns.seconds(source));
    }
}

fn write_process(out: &mut DescriptorEncoder<'_>) {
    let n_open = std::fs::read_dir("/proc/self/fd")
        .map(Iterator::count)
        .unwrap_or_default();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    Family::new(out, MetricType::Gauge, "process_open_fds", "Open descriptors.").sample(&[], n_open as u64);
    Family::new(
        out,
        MetricType::Gauge,
        "process_max_fds",
        "Most descriptors that may be open.",
    )
    .sample(&[], limit);
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = |i: usize| {
        statm
            .split(' ')
            .nth(i)
            .and_then(|n| n.trim().parse::<u64>().ok())
            .unwrap_or_default()
    };
    let page_bytes = rustix::param::page_size() as u64;
    Family::new(
        out,
        MetricType::Gauge,
        "process_resident_memory_bytes",
        "Resident memory.",
    )
    .sample(&[], pages(1) * page_bytes);
    Family::new(
        out,
        MetricType::Gauge,
        "process_virtual_memory_bytes",
        "Virtual memory.",
    )
    .sample(&[], pages(0) * page_bytes);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold anything: state is field 3, utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let ticks = |i: usize| {
        fields
            .get(i - 3)
            .and_then(|n| n.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let per_second = rustix::param::clock_ticks_per_second().max(1) as f64;
    Family::new(out, MetricType::Counter, "process_cpu_seconds", "Processor time used.")
        .fraction(&[], (ticks(14) + ticks(15)) as f64 / per_second);
    let booted = boot_time();
    if let Some(booted) = booted {
        Family::new(
            out,
            MetricType::Gauge,
            "process_start_time_seconds",
            "When this program was started, in seconds since 1970.",
        )
        .fraction(&[], booted as f64 + ticks(22) as f64 / per_second);
    }
    if let Ok(threads) = std::fs::read_dir("/proc/self/task") {
        Family::new(out, MetricType::Gauge, "process_threads", "Threads of this program.")
            .sample(&[], threads.count() as u64);
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        write_runtime(&runtime.metrics(), out);
    }
}

/// The runtime of everything but the data plane, whose workers have one each.
fn write_runtime(runtime: &tokio::runtime::RuntimeMetrics, out: &mut DescriptorEncoder<'_>) {
    for (name, help, value) in [
        (
            "anynode_runtime_tasks",
            "Tasks of the control plane's runtime that are not over.",
            runtime.num_alive_tasks(),
        ),
        (
            "anynode_runtime_queue_depth",
            "Tasks that are to run and wait for the control plane's runtime.",
            runtime.global_queue_depth(),
        ),
    ] {
        Family::new(out, MetricType::Gauge, name, help).sample(&[], value as u64);
    }
    let busy: f64 = (0..runtime.num_workers())
        .map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64())
        .sum();
    Family::new(
        out,
        MetricType::Counter,
        "anynode_runtime_busy_seconds",
        "Time that the control plane's runtime was at work.",
    )
    .fraction(&[], busy);
}

/// Seconds since 1970.
fn boot_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

fn write_connections(all: &[Counted], out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_connections",
        "Client connections accepted.",
    );
    for one in all {
        let labels = [("service", one.name()), ("proto", one.proto())];
        family.sample(&labels, load(&one.state.stats.connections_total));
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_connections_active",
        "Client connections open.",
    );
    for one in all {
        family.sample(
            &[("service", one.name())],
            u64::try_from(one.state.stats.connections_active.load(Relaxed)).unwrap_or(0),
        );
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_connections_parked",
        "Client connections that are open and put aside, since nothing passes.",
    );
    for one in all {
        let n = u64::try_from(one.state.stats.connections_parked.load(Relaxed)).unwrap_or(0);
        sample_if_any(&mut family, &[("service", one.name())], n);
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_connections_closed",
        "Client connections ended, each for one reason.",
    );
    for one in all {
        for reason in CloseReason::ALL {
            let labels = [("service", one.name()), ("reason", reason.as_str())];
            sample_if_any(&mut family, &labels, one.state.stats.closed_count(reason));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_bytes",
        "Bytes relayed, by direction and way through this program.",
    );
    for one in all {
        for direction in Direction::ALL {
            for path in BytePath::ALL {
                let labels = [
                    ("service", one.name()),
                    ("direction", direction.as_str()),
                    ("path", path.as_str()),
                ];
                sample_if_any(&mut family, &labels, one.state.stats.byte_count(direction, path));
            }
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_queue_depth",
        "Clients that wait because a cap is reached.",
    );
    for one in all {
        let depth = one.state.connection_gate.depth() + one.state.endpoint_gate.depth();
        family.sample(&[("service", one.name())], u64::from(depth));
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_held",
        "Clients that wait because no endpoint takes them.",
    );
    for one in all {
        family.sample(&[("service", one.name())], u64::from(one.state.hold_gate.depth()));
    }
    let mut family = Family::new(
        out,
        MetricType::Histogram,
        "anynode_connection_duration_seconds",
        "From accept to close.",
    );
    for one in all {
        family.histogram(&[("service", one.name())], &one.state.stats.connection_duration);
    }
    let mut family = Family::new(
        out,
        MetricType::Histogram,
        "anynode_upstream_connect_seconds",
        "Until an endpoint accepted.",
    );
    for one in all {
        family.histogram(&[("service", one.name())], &one.state.stats.upstream_connect);
    }
}

/// Connections to entry points, which are no service's, and the requests that no route took.
fn write_entry_points(table: &RoutingTable, out: &mut DescriptorEncoder<'_>) {
    let all = table.entry_points();
    if all.is_empty() {
        return;
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_entrypoint_routes",
        "Routes of services at the entry point.",
    );
    for one in all {
        family.sample(&[("entrypoint", one.name().as_str())], one.n_routes() as u64);
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_entrypoint_connections_active",
        "Client connections to the entry point now open.",
    );
    for one in all {
        let n = one.connections().stats().connections_active.load(Relaxed);
        family.sample(&[("entrypoint", one.name().as_str())], u64::try_from(n).unwrap_or(0));
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_entrypoint_connections_closed",
        "Client connections to the entry point that ended, by reason.",
    );
    for one in all {
        for reason in CloseReason::ALL {
            let labels = [("entrypoint", one.name().as_str()), ("reason", reason.as_str())];
            sample_if_any(&mut family, &labels, one.connections().stats().closed_count(reason));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_entrypoint_unrouted_requests",
        "Requests that no route took or that were refused, by class of the answer's code.",
    );
    for one in all {
        for code in HttpCode::ALL {
            let labels = [("entrypoint", one.name().as_str()), ("code_class", code.as_str())];
            sample_if_any(&mut family, &labels, one.connections().stats().request_count(code));
        }
    }
}

/// What other nodes sent for tasks of this one. They count it as their clients' connections; here it stands apart.
fn write_last_hops(all: &[Counted], out: &mut DescriptorEncoder<'_>) {
    let some: Vec<(&str, &ServiceStats)> = all
        .iter()
        .filter_map(|one| Some((one.name(), one.state.last_hops_so_far()?)))
        .collect();
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_last_hop_connections",
        "Connections from other nodes to tasks of this one.",
    );
    for (name, stats) in &some {
        family.sample(&[("service", name)], load(&stats.connections_total));
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_last_hop_connections_active",
        "Connections from other nodes that are open.",
    );
    for (name, stats) in &some {
        family.sample(
            &[("service", name)],
            u64::try_from(stats.connections_active.load(Relaxed)).unwrap_or(0),
        );
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_last_hop_connections_closed",
        "Connections from other nodes that ended, each for one reason.",
    );
    for (name, stats) in &some {
        for reason in CloseReason::ALL {
            let labels = [("service", *name), ("reason", reason.as_str())];
            sample_if_any(&mut family, &labels, stats.closed_count(reason));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_last_hop_bytes",
        "Bytes relayed for other nodes, by direction.",
    );
    for (name, stats) in &some {
        for direction in Direction::ALL {
            let n = BytePath::ALL
                .iter()
                .map(|path| stats.byte_count(direction, *path))
                .sum();
            sample_if_any(&mut family, &[("service", *name), ("direction", direction.as_str())], n);
        }
    }
}

fn write_requests(all: &[Counted], out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_requests",
        "HTTP requests by class of the answer's code.",
    );
    for one in all {
        for code in HttpCode::ALL {
            let labels = [("service", one.name()), ("code_class", code.as_str())];
            sample_if_any(&mut family, &labels, one.state.stats.request_count(code));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Histogram,
        "anynode_request_duration_seconds",
        "From a request's head to its answer's end.",
    );
    for one in all {
        family.histogram(&[("service", one.name())], &one.state.stats.request_duration);
    }
    let mut family = Family::new(
        out,
        MetricType::Histogram,
        "anynode_request_ttfb_seconds",
        "From a request's head to its answer's head.",
    );
    for one in all {
        family.histogram(&[("service", one.name())], &one.state.stats.request_ttfb);
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_requests_denied",
        "HTTP requests that were answered in the place of an endpoint by what is asked of them on the way, by reason.",
    );
    for one in all {
        for refusal in RequestRefusal::ALL {
            let labels = [("service", one.name()), ("reason", refusal.as_str())];
            sample_if_any(&mut family, &labels, one.state.stats.refusal_count(refusal));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_compressed_bytes",
        "Bytes of answers that were compressed on their way, before it and after.",
    );
    for one in all {
        let (before, after) = one.state.stats.compressed();
        for (stage, n_bytes) in [("before", before), ("after", after)] {
            sample_if_any(&mut family, &[("service", one.name()), ("stage", stage)], n_bytes);
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_retries",
        "Further endpoints tried, by what came of it.",
    );
    for one in all {
        for outcome in RetryOutcome::ALL {
            let labels = [("service", one.name()), ("outcome", outcome.as_str())];
            sample_if_any(&mut family, &labels, one.state.stats.retry_count(outcome));
        }
    }
}

fn write_endpoint_handshakes(all: &[Counted], out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_endpoint_tls_handshakes",
        "Handshakes with endpoints that are to speak TLS, by what came of them.",
    );
    for one in all {
        for result in EndpointHandshake::ALL {
            let labels = [("service", one.name()), ("result", result.as_str())];
            sample_if_any(&mut family, &labels, one.state.stats.endpoint_handshake_count(result));
        }
    }
}

fn write_endpoints(all: &[Counted], now: Instant, out: &mut DescriptorEncoder<'_>) {
    let mut family = Family::new(out, MetricType::Gauge, "anynode_endpoints", "Endpoints by state.");
    for one in all {
        let mut counts = [0u64; EndpointState::ALL.len()];
        for endpoint in one.endpoints() {
            counts[endpoint.state(now) as usize] += 1;
        }
        for (state, count) in EndpointState::ALL.into_iter().zip(counts) {
            let labels = [("service", one.name()), ("state", state.as_str())];
            if state == EndpointState::Ready {
                family.sample(&labels, count);
            } else {
                sample_if_any(&mut family, &labels, count);
            }
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_inflight",
        "Connections (tcp) or requests (http) at endpoints.",
    );
    for one in all {
        let n: u64 = one.endpoints().map(|endpoint| u64::from(endpoint.in_flight())).sum();
        family.sample(&[("service", one.name())], n);
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_ejections",
        "Times that an endpoint began to rest, for failed connects or requests without an answer.",
    );
    for one in all {
        sample_if_any(
            &mut family,
            &[("service", one.name())],
            load(&one.state.stats.ejections),
        );
    }
    let more: [(&str, &str, CountOf); 3] = [
        (
            "anynode_endpoint_returns",
            "Times that an endpoint that rested was back.",
            |stats| &stats.returns,
        ),
        (
            "anynode_service_losses",
            "Times that a service lost its last endpoint.",
            |stats| &stats.losses,
        ),
        (
            "anynode_service_recoveries",
            "Times that a service that had lost its last endpoint had one again.",
            |stats| &stats.recoveries,
        ),
    ];
    for (name, help, count) in more {
        let mut family = Family::new(out, MetricType::Counter, name, help);
        for one in all {
            sample_if_any(&mut family, &[("service", one.name())], load(count(&one.state.stats)));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_panic_picks",
        "Picks among all endpoints because none was ready.",
    );
    for one in all {
        sample_if_any(
            &mut family,
            &[("service", one.name())],
            load(&one.state.stats.panic_picks),
        );
    }
}

fn write_detail(all: &[Counted], now: Instant, out: &mut DescriptorEncoder<'_>) {
    let mut lines: Vec<(String, String, &'static str, u32, u64, u64)> = Vec::new();
    for one in all {
        let mut seen = HashSet::new();
        for endpoint in one.endpoints().filter(|endpoint| seen.insert(endpoint.id())) {
            lines.push((
                one.name().to_owned(),
                endpoint.label(),
                endpoint.state(now).as_str(),
                endpoint.in_flight(),
                endpoint.picks_total(),
                endpoint.connect_failures_total(),
            ));
        }
    }
    let mut family = Family::new(
        out,
        MetricType::Gauge,
        "anynode_endpoint_inflight",
        "In flight at one endpoint.",
    );
    for (service, endpoint, state, in_flight, ..) in &lines {
        family.sample(
            &[("service", service), ("endpoint", endpoint), ("state", state)],
            u64::from(*in_flight),
        );
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_endpoint_picks",
        "Connections or requests given to one endpoint.",
    );
    for (service, endpoint, _, _, picks, _) in &lines {
        family.sample(&[("service", service), ("endpoint", endpoint)], *picks);
    }
    let mut family = Family::new(
        out,
        MetricType::Counter,
        "anynode_endpoint_connect_failures",
        "Failed connects to one endpoint.",
    );
    for (service, endpoint, .., failures) in &lines {
        family.sample(&[("service", service), ("endpoint", endpoint)], *failures);
    }
}

/// Series of a closed set that never counted are left out: most services never see most reasons.
/// One of a service's counts.
type CountOf = fn(&ServiceStats) -> &AtomicU64;

fn sample_if_any(family: &mut Family<'_>, labels: &[(&str, &str)], count: u64) {
    if count > 0 {
        family.sample(labels, count);
    }
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Relaxed)
}

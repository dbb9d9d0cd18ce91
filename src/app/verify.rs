//! `anynode verify`: whether all nodes of a cluster hold the same table, whether every node reaches every published port of
//! every node, and whether anybody is behind them. Each node looks for itself; the one that is asked gathers what they
//! found. A node of no cluster looks at itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;

use super::status::admin_of;
use super::up::block_on;
use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, Flags, print};
use crate::admin::SwarmView;
use crate::model::{ClusterNode, Mode};
use crate::routing::{EndpointState, Listen, ListenKind, RoutingTable, Service, TableHandle};

/// What one node found.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    revision: u64,
    digest: String,
    /// What it could not reach, by node id: port and why.
    unreached: BTreeMap<String, BTreeMap<u16, String>>,
    /// How many ports of how many nodes it tried.
    n_tried: usize,
    /// The slowest that it reached.
    slowest_us: u64,
    /// Services with published ports, and how many of how many endpoints are ready, as it sees them.
    #[serde(default)]
    services: BTreeMap<String, Behind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Behind {
    n_ready: usize,
    /// Nothing is known of them, and they get traffic: nothing has come to them yet.
    #[serde(default)]
    n_untried: usize,
    n_endpoints: usize,
}

/// What this node finds: its table, and every published port of every node as seen from here.
pub(super) async fn own(table: &Arc<TableHandle>, view: &Arc<SwarmView>) -> Value {
    let cluster = view.link.cluster.borrow().clone();
    let now = table.load();
    // A port that is bound to one address is no other node's.
    let everywhere = published(&now).filter(|listen| listen.ip.is_none());
    let mut ports: Vec<u16> = everywhere.map(|listen| listen.port).collect();
    ports.dedup();
    let nodes = cluster.nodes().filter_map(|node| Some((node.id.clone(), node.addr?)));
    let doors = nodes.flat_map(|(node, ip)| {
        let at = move |port: &u16| (node.clone(), SocketAddr::new(ip, *port));
        ports.iter().map(at).collect::<Vec<_>>()
    });
    let found = look(&now, doors.collect()).await;
    let found = Found {
        revision: cluster.revision(),
        digest: cluster.digest().to_string(),
        ..found
    };
    serde_json::to_value(found).unwrap_or_default()
}

fn published(table: &RoutingTable) -> impl Iterator<Item = &Listen> {
    let listens = table.listens();
    listens
        .filter(|(_, route)| route.kind == ListenKind::Published)
        .map(|(listen, _)| listen)
}

/// What a node that is of no cluster finds: its own ports, where it has them.
async fn alone(table: &TableHandle) -> Value {
    let now = table.load();
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let at = |listen: &Listen| {
        let ip = listen.ip.filter(|ip| !ip.is_unspecified());
        SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), listen.port)
    };
    let doors = published(&now).map(|listen| (node.clone(), at(listen)));
    let found = look(&now, doors.collect()).await;
    let found = Found {
        revision: now.revision(),
        ..found
    };
    serde_json::json!({ "asked": node, "nodes": { &*node: { "hostname": node, "found": found } } })
}

/// Opens each of `waiting`, the doors of nodes, and counts who is behind the published ports.
async fn look(table: &RoutingTable, mut waiting: Vec<(String, SocketAddr)>) -> Found {
    let mut found = Found {
        revision: 0,
        digest: String::new(),
        unreached: BTreeMap::new(),
        n_tried: waiting.len(),
        slowest_us: 0,
        services: BTreeMap::new(),
    };
    let mut tries = FuturesUnordered::new();
    loop {
        while tries.len() < TRIES_AT_ONCE {
            let Some((node, addr)) = waiting.pop() else { break };
            tries.push(async move {
                let started = Instant::now();
                let result = match tokio::time::timeout(PATIENCE, TcpStream::connect(addr)).await {
                    Ok(Ok(_)) => Ok(started.elapsed()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("no answer in time".to_owned()),
                };
                (node, addr.port(), result)
            });
        }
        let Some((node, port, result)) = tries.next().await else {
            break;
        };
        match result {
            Ok(took) => {
                found.slowest_us = found
                    .slowest_us
                    .max(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
            }
            Err(error) => drop(found.unreached.entry(node).or_default().insert(port, error)),
        }
    }
    found.services = behind(table).await;
    found
}

/// Who is behind the published ports, once what was opened in tcp mode has come to an endpoint.
async fn behind(table: &RoutingTable) -> BTreeMap<String, Behind> {
    let published = || table.services().filter(|service| !service.spec().publish.is_empty());
    let is_on_its_way = |service: &Arc<Service>| {
        let behind = Behind::of(service);
        service.spec().mode == Mode::Tcp && behind.n_ready == 0 && behind.n_untried > 0
    };
    for _ in 0..ARRIVAL_LOOKS {
        if !published().any(is_on_its_way) {
            break;
        }
        tokio::time::sleep(ARRIVAL_LOOK_EVERY).await;
    }
    published()
        .map(|service| (service.name().to_string(), Behind::of(service)))
        .collect()
}

impl Behind {
    fn of(service: &Service) -> Behind {
        let now = Instant::now();
        let n = |state: EndpointState| service.endpoints().iter().filter(|one| one.state(now) == state).count();
        Behind {
            n_ready: n(EndpointState::Ready),
            n_untried: n(EndpointState::Untried),
            n_endpoints: service.endpoints().len(),
        }
    }
}

/// What every node found, for the admin server.
async fn all(table: Arc<TableHandle>, view: Arc<SwarmView>) -> Value {
    let cluster = view.link.cluster.borrow().clone();
    let own_node = view.info.borrow().node.clone();
    let names: BTreeMap<String, String> = cluster
        .nodes()
        .map(|node| (node.id.clone(), node.hostname.clone()))
        .collect();
    let mut nodes = serde_json::Map::new();
    let peers = view.peers.table();
    // Swarm runs no global service there, on purpose.
    let is_left_out = |node: &&ClusterNode| {
        let is_up = peers.get(node.id.as_str()).is_some_and(|peer| peer.is_up);
        node.availability == "drain" && node.id != own_node && !is_up
    };
    for node in cluster.nodes().filter(is_left_out) {
        let entry =
            serde_json::json!({ "hostname": node.hostname, "left_out": "it is drained, and no anynode answers there" });
        nodes.insert(node.id.clone(), entry);
    }
    let mut asked = FuturesUnordered::new();
    for node in names.keys().filter(|node| !nodes.contains_key(*node)).cloned() {
        let (table, view) = (table.clone(), view.clone());
        let is_own = node == own_node;
        asked.push(async move {
            let found = match is_own {
                true => Ok(own(&table, &view).await),
                false => view.peers.call(&node, "verify", Value::Null, CALL_PATIENCE).await,
            };
            (node, found)
        });
    }
    while let Some((node, found)) = asked.next().await {
        let entry = match found {
            Ok(found) => serde_json::json!({ "hostname": names.get(&node), "found": found }),
            Err(error) => serde_json::json!({ "hostname": names.get(&node), "error": error }),
        };
        nodes.insert(node, entry);
    }
    serde_json::json!({ "asked": own_node, "nodes": nodes })
}

/// The same, as the admin server asks for it; of a node that is of no swarm, what it finds by itself.
pub(super) fn for_admin(table: Arc<TableHandle>, view: Option<Arc<SwarmView>>) -> crate::admin::Verify {
    Box::new(move || {
        let (table, view) = (table.clone(), view.clone());
        Box::pin(async move {
            match view {
                Some(view) => all(table, view).await,
                None => alone(&table).await,
            }
        })
    })
}

/// Prints what every node found. Returns the exit code: 0 where all agree and reach all.
pub fn verify(flags: Flags, is_json: bool) -> i32 {
    let admin = match admin_of(flags) {
        Ok(admin) => admin,
        Err(code) => return code,
    };
    block_on(async {
        let asked = tokio::time::timeout(ALL_PATIENCE, admin.ask("/v1/verify")).await;
        let answer = match asked {
            Ok(Ok(body)) => serde_json::from_slice::<Value>(&body).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err("no answer in time".to_owned()),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                eprintln!("error: the node at {admin} cannot verify: {error}");
                return Ok(EXIT_UNAVAILABLE);
            }
        };
        let (text, is_well) = describe(&answer);
        match is_json {
            true => print(&format!("{answer:#}\n")),
            false => print(&text),
        }
        Ok(if is_well { 0 } else { EXIT_FAILURE })
    })
}

/// The matrix: who (rows) reaches how many ports of whom (columns); then each thing that is wrong, and what it comes to.
fn describe(answer: &Value) -> (String, bool) {
    let empty = serde_json::Map::new();
    let nodes = answer["nodes"].as_object().unwrap_or(&empty);
    let name = |id: &str| {
        nodes
            .get(id)
            .and_then(|node| node["hostname"].as_str())
            .unwrap_or(id)
            .to_owned()
    };
    let (left_out, looked): (Vec<_>, Vec<_>) = nodes.iter().partition(|(_, node)| node["left_out"].is_string());
    let found: Vec<(&String, Result<Found, String>)> = looked
        .into_iter()
        .map(|(id, node)| {
            let found = match node["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => serde_json::from_value(node["found"].clone()).map_err(|error| error.to_string()),
            };
            (id, found)
        })
        .collect();
    let ids: Vec<&String> = found.iter().map(|(id, _)| *id).collect();
    let mut rows = vec![vec!["FROM \\ TO".to_owned()]];
    rows[0].extend(ids.iter().map(|id| name(id)));
    rows[0].extend(["REVISION", "HASH", "SLOWEST"].map(str::to_owned));
    let mut faults = Vec::new();
    let mut n_ports = 0;
    for (id, found) in &found {
        let mut row = vec![name(id)];
        match found {
            Ok(found) => {
                // Those that are left out were tried too.
                n_ports = found.n_tried / nodes.len().max(1);
                for other in &ids {
                    let unreached = found.unreached.get(*other);
                    for (port, error) in unreached.into_iter().flatten() {
                        faults.push(format!("from {} to {} port {port}: {error}", name(id), name(other)));
                    }
                    let n_bad = unreached.map_or(0, BTreeMap::len);
                    row.push(format!("{}/{n_ports}", n_ports.saturating_sub(n_bad)));
                }
                row.push(found.revision.to_string());
                row.push(found.digest.chars().take(12).collect());
                row.push(format!("{:.1} ms", found.slowest_us as f64 / 1000.0));
            }
            Err(error) => {
                faults.push(format!("{}: {error}", name(id)));
                row.extend(ids.iter().map(|_| "?".to_owned()));
                row.extend(["-", "-", "-"].map(str::to_owned));
            }
        }
        rows.push(row);
    }
    let found: Vec<(&String, Found)> = found
        .into_iter()
        .filter_map(|(id, found)| Some((id, found.ok()?)))
        .collect();
    if found.iter().any(|(_, one)| one.digest != found[0].1.digest) {
        faults.push("the tables differ".to_owned());
    }
    let unknown = untried(&found);
    faults.extend(nobody_behind(&found, name));
    if nodes.is_empty() {
        faults.push("no node of the cluster is known".to_owned());
    }
    let mut out = String::new();
    push_columns(&rows, &mut out);
    for (id, node) in left_out {
        let why = node["left_out"].as_str().unwrap_or_default();
        out.push_str(&format!("node {} is left out: {why}\n", name(id)));
    }
    faults.iter().for_each(|fault| out.push_str(&format!("! {fault}\n")));
    unknown.iter().for_each(|(service, n)| {
        out.push_str(&format!(
            "service {service}: nothing has come to its endpoints yet ({n}), so that nothing is known of them\n"
        ));
    });
    let somebody = match unknown.is_empty() {
        true => "somebody is ready behind each",
        false => "somebody is ready behind each, as far as it is known",
    };
    let verdict = match (faults.len(), ids.len(), n_ports) {
        (0, 1, 0) => "well, as far as there is anything: no port is published".to_owned(),
        (0, 1, _) => format!("this node reaches every published port of its own, and {somebody}"),
        (0, _, 0) => "all nodes hold the same table; no port is published".to_owned(),
        (0, _, _) => {
            format!("all nodes hold the same table and reach every published port of every node, and {somebody}")
        }
        (1, ..) => "not well: 1 fault".to_owned(),
        (n, ..) => format!("not well: {n} faults"),
    };
    out.push_str(&verdict);
    out.push('\n');
    (out, faults.is_empty())
}

/// Services that have published ports, nobody of whom any node knows that he is ready, and somebody who may be, and how many.
fn untried<'a>(found: &'a [(&String, Found)]) -> BTreeMap<&'a String, usize> {
    let all = || found.iter().flat_map(|(_, one)| &one.services);
    let is_ready = |service: &String| all().any(|(name, behind)| name == service && behind.n_ready > 0);
    let untried = all().filter(|(service, behind)| behind.n_untried > 0 && !is_ready(service));
    untried.map(|(service, behind)| (service, behind.n_untried)).collect()
}

/// Services that have published ports and nobody who is ready, and who sees them so.
fn nobody_behind(found: &[(&String, Found)], name: impl Fn(&str) -> String) -> Vec<String> {
    let mut seen_by: BTreeMap<&String, (usize, Vec<String>)> = BTreeMap::new();
    for (id, one) in found {
        for (service, behind) in one
            .services
            .iter()
            .filter(|(_, behind)| behind.n_ready + behind.n_untried == 0)
        {
            let (n_endpoints, seen) = seen_by.entry(service).or_default();
            *n_endpoints = behind.n_endpoints;
            seen.push(name(id));
        }
    }
    let say = |(service, (n_endpoints, seen)): (&String, (usize, Vec<String>))| {
        let what = match n_endpoints {
            0 => "it has no endpoint".to_owned(),
            n => format!("none of its {n} endpoints is ready"),
        };
        format!("service {service}: {what}, as seen from {}", seen.join(", "))
    };
    seen_by.into_iter().map(say).collect()
}

fn push_columns(rows: &[Vec<String>], out: &mut String) {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        out.push('\n');
    }
}

const PATIENCE: Duration = Duration::from_secs(2);
const CALL_PATIENCE: Duration = Duration::from_secs(20);
const ALL_PATIENCE: Duration = Duration::from_secs(30);
const TRIES_AT_ONCE: usize = 64;
/// Together longer than one attempt at an endpoint has.
const ARRIVAL_LOOKS: usize = 60;
const ARRIVAL_LOOK_EVERY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(digest: &str, unreached: &Value, n_ready: usize) -> Value {
        json!({
            "revision": 7, "digest": digest, "unreached": unreached, "n_tried": 4, "slowest_us": 500,
            "services": { "web": { "n_ready": n_ready, "n_endpoints": 3 } },
        })
    }

    fn check(nodes: &Value, is_well: bool, lines: &[&str]) {
        let (text, was_well) = describe(&json!({ "asked": "a", "nodes": nodes }));
        assert_eq!(was_well, is_well, "{text}");
        for line in lines {
            assert!(
                text.lines().any(|said| said.starts_with(line)),
                "no {line:?} in\n{text}"
            );
        }
        let n_faults = text.lines().filter(|line| line.starts_with("! ")).count();
        assert_eq!(
            n_faults == 0,
            is_well,
            "a reason for each verdict that is no good:\n{text}"
        );
    }

    #[test]
    fn each_verdict_has_its_reason() {
        let well = json!({ "hostname": "a", "found": found("d", &json!({}), 3) });
        let also = json!({ "hostname": "b", "found": found("d", &json!({}), 3) });
        let all = ["all nodes hold the same table and reach every published port"];
        check(&json!({ "1": well, "2": also }), true, &all);
        let deaf = json!({ "hostname": "b", "found": found("d", &json!({ "1": { "80": "refused" } }), 3) });
        check(
            &json!({ "1": well, "2": deaf }),
            false,
            &["! from b to a port 80: refused", "not well: 1 fault"],
        );
        let silent = json!({ "hostname": "b", "error": "not up" });
        check(&json!({ "1": well, "2": silent }), false, &["! b: not up"]);
        let other = json!({ "hostname": "b", "found": found("x", &json!({}), 3) });
        check(&json!({ "1": well, "2": other }), false, &["! the tables differ"]);
        let nobody = json!({ "hostname": "b", "found": found("d", &json!({}), 0) });
        let line = "! service web: none of its 3 endpoints is ready, as seen from b";
        check(&json!({ "1": well, "2": nobody }), false, &[line]);
        let mut unasked = found("d", &json!({}), 0);
        unasked["services"]["web"]["n_untried"] = 3.into();
        let unasked = json!({ "hostname": "a", "found": unasked });
        let line = "service web: nothing has come to its endpoints yet (3), so that nothing is known of them";
        let verdict = "this node reaches every published port of its own, and somebody is ready behind each, as far as it is known";
        check(&json!({ "1": unasked }), true, &[line, verdict]);
        // Another knows.
        check(&json!({ "1": unasked, "2": well }), true, &all);
        check(&json!({}), false, &["! no node of the cluster is known"]);
        // Drained on purpose: neither asked nor missed.
        let drained = json!({ "hostname": "c", "left_out": "it is drained, and no anynode answers there" });
        let misses = json!({ "hostname": "b", "found": found("d", &json!({ "3": { "80": "refused" } }), 3) });
        let nodes = json!({ "1": well, "2": misses, "3": drained });
        check(&nodes, true, &["node c is left out: it is drained", all[0]]);
        let mut empty = found("d", &json!({}), 3);
        (empty["n_tried"], empty["services"]) = (0.into(), json!({}));
        check(
            &json!({ "1": { "hostname": "a", "found": empty } }),
            true,
            &["well, as far as there is anything"],
        );
    }
}

//! `anynode verify`: whether all nodes of a cluster hold the same table, and whether every node reaches every published
//! port of every node. Each node looks for itself; the one that is asked gathers what they found.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;

use super::config::Config;
use super::status::ask;
use super::up::block_on;
use super::{EXIT_CONFIG, EXIT_FAILURE, EXIT_UNAVAILABLE, Flags, print};
use crate::admin::SwarmView;
use crate::routing::{ListenKind, TableHandle};

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
}

/// What this node finds: its table, and every published port of every node as seen from here.
pub(super) async fn own(table: &Arc<TableHandle>, view: &Arc<SwarmView>) -> Value {
    let cluster = view.link.cluster.borrow().clone();
    let now = table.load();
    let published = now.listens().filter(|(_, route)| route.kind == ListenKind::Published);
    // A port that is bound to one address is no other node's.
    let mut ports: Vec<u16> = published
        .filter(|(listen, _)| listen.ip.is_none())
        .map(|(listen, _)| listen.port)
        .collect();
    ports.dedup();
    let nodes: Vec<(String, IpAddr)> = cluster
        .nodes()
        .filter_map(|node| Some((node.id.clone(), node.addr?)))
        .collect();
    let mut found = Found {
        revision: cluster.revision(),
        digest: cluster.digest().to_string(),
        unreached: BTreeMap::new(),
        n_tried: nodes.len() * ports.len(),
        slowest_us: 0,
    };
    let mut waiting: Vec<(String, SocketAddr)> = nodes
        .iter()
        .flat_map(|(node, ip)| ports.iter().map(|port| (node.clone(), SocketAddr::new(*ip, *port))))
        .collect();
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
    serde_json::to_value(found).unwrap_or_default()
}

/// What every node found, for the admin server.
async fn all(table: Arc<TableHandle>, view: Arc<SwarmView>) -> Value {
    let cluster = view.link.cluster.borrow().clone();
    let own_node = view.info.borrow().node.clone();
    let names: BTreeMap<String, String> = cluster
        .nodes()
        .map(|node| (node.id.clone(), node.hostname.clone()))
        .collect();
    let mut asked = FuturesUnordered::new();
    for node in names.keys().cloned() {
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
    let mut nodes = serde_json::Map::new();
    while let Some((node, found)) = asked.next().await {
        let entry = match found {
            Ok(found) => serde_json::json!({ "hostname": names.get(&node), "found": found }),
            Err(error) => serde_json::json!({ "hostname": names.get(&node), "error": error }),
        };
        nodes.insert(node, entry);
    }
    serde_json::json!({ "asked": own_node, "nodes": nodes })
}

/// The same, as the admin server asks for it.
pub(super) fn for_admin(table: Arc<TableHandle>, view: Arc<SwarmView>) -> crate::admin::Verify {
    Box::new(move || Box::pin(all(table.clone(), view.clone())))
}

/// Prints what every node found. Returns the exit code: 0 where all agree and reach all.
pub fn verify(flags: Flags, is_json: bool) -> i32 {
    let config = match Config::load_or_say(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Some(admin) = config.admin else {
        eprintln!("error: admin.listen = \"none\": expected the address of a node's admin server");
        return EXIT_CONFIG;
    };
    block_on(async {
        let asked = tokio::time::timeout(ALL_PATIENCE, ask(admin, "/v1/verify")).await;
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

/// The matrix: who (rows) reaches how many ports of whom (columns).
fn describe(answer: &Value) -> (String, bool) {
    let mut out = String::new();
    let empty = serde_json::Map::new();
    let nodes = answer["nodes"].as_object().unwrap_or(&empty);
    let name = |id: &str| {
        nodes
            .get(id)
            .and_then(|node| node["hostname"].as_str())
            .unwrap_or(id)
            .to_owned()
    };
    let found: Vec<(&String, Result<Found, String>)> = nodes
        .iter()
        .map(|(id, node)| {
            let found = match node["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => serde_json::from_value(node["found"].clone()).map_err(|error| error.to_string()),
            };
            (id, found)
        })
        .collect();
    let mut is_well = !found.is_empty();
    let mut rows = vec![vec!["FROM \\ TO".to_owned()]];
    rows[0].extend(nodes.keys().map(|id| name(id)));
    rows[0].extend(["REVISION", "HASH", "SLOWEST"].map(str::to_owned));
    let mut digests: Vec<&str> = Vec::new();
    for (id, found) in &found {
        let mut row = vec![name(id)];
        match found {
            Ok(found) => {
                let n_ports = found.n_tried / nodes.len().max(1);
                for other in nodes.keys() {
                    let n_bad = found.unreached.get(other).map_or(0, BTreeMap::len);
                    is_well &= n_bad == 0;
                    row.push(format!("{}/{n_ports}", n_ports.saturating_sub(n_bad)));
                }
                row.push(found.revision.to_string());
                row.push(found.digest.chars().take(12).collect());
                row.push(format!("{:.1} ms", found.slowest_us as f64 / 1000.0));
                digests.push(&found.digest);
            }
            Err(_) => {
                is_well = false;
                row.extend(nodes.keys().map(|_| "?".to_owned()));
                row.extend(["-", "-", "-"].map(str::to_owned));
            }
        }
        rows.push(row);
    }
    let n_columns = rows[0].len();
    let width = |i: usize| {
        rows.iter()
            .filter_map(|row| row.get(i))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(cells.join("   ").trim_end());
        out.push('\n');
    }
    for (id, found) in &found {
        match found {
            Err(error) => out.push_str(&format!("! {}: {error}\n", name(id))),
            Ok(found) => {
                for (other, ports) in &found.unreached {
                    for (port, error) in ports {
                        out.push_str(&format!(
                            "! from {} to {} port {port}: {error}\n",
                            name(id),
                            name(other)
                        ));
                    }
                }
            }
        }
    }
    digests.sort_unstable();
    digests.dedup();
    if digests.len() > 1 {
        is_well = false;
        out.push_str("! the tables differ\n");
    }
    out.push_str(match is_well {
        true => "all nodes hold the same table and reach every published port of every node\n",
        false => "not well\n",
    });
    (out, is_well)
}

const PATIENCE: Duration = Duration::from_secs(2);
const CALL_PATIENCE: Duration = Duration::from_secs(20);
const ALL_PATIENCE: Duration = Duration::from_secs(30);
const TRIES_AT_ONCE: usize = 64;

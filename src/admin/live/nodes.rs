//! What is shown of nodes: of this one alone, or of each of a swarm as this one sees it.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::events::{Events, Kind};
use super::objects::json;
use super::problems::Problem;
use super::{Batch, Json, Key};
use crate::admin::moment::unix_ms;
use crate::admin::views::{self, hostname};
use crate::admin::{AdminState, SwarmView};

#[derive(Serialize, Default)]
struct NodeObject {
    name: String,
    is_self: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swarm: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    /// Revisions behind the newest that this node knows of.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What is turned off since this program may not do it. Of this node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<Missing>,
    /// Open, and as many as there may be. Of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptors: Option<(u64, u64)>,
    /// Bytes that are resident, and all of the machine. Of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<(u64, u64)>,
}

#[derive(Serialize)]
struct Missing {
    what: String,
    off: &'static str,
}

/// What was shown of nodes last.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    shown: HashMap<Key, Known>,
    /// What this program takes, and when that was looked at.
    taken: Option<(Instant, Taken)>,
}

/// What is looked at seldom, since it costs a look at each descriptor.
#[derive(Debug, Clone, Copy)]
struct Taken {
    descriptors: Option<(u64, u64)>,
    memory: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Known {
    json: Json,
    name: String,
    state: &'static str,
    since_ms: Option<u64>,
    error: Option<String>,
    is_self: bool,
    /// It is to answer: a node that is drained may run no anynode, and one that never said anything then does not.
    is_expected: bool,
    /// Since when it is behind, if it is.
    lag_since_ms: Option<u64>,
}

impl Nodes {
    /// What is wrong with nodes, by the last look: which do not answer, and that none does.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let others = || self.shown.values().filter(|known| !known.is_self && known.is_expected);
        let mut down: Vec<&Known> = others().filter(|known| known.state == "down").collect();
        down.sort_by_key(|known| &known.name);
        let n_others = others().count();
        let mut all = Vec::new();
        if n_others > 0 && down.len() == n_others {
            all.push(Problem {
                name: "alone".to_owned(),
                text: match n_others {
                    1 => "this node does not reach the other node".to_owned(),
                    n => format!("this node reaches none of the {n} other nodes"),
                },
                since_ms: down.iter().filter_map(|known| known.since_ms).max(),
                is_told: false,
            });
        }
        all.extend(down.into_iter().map(|known| Problem {
            name: format!("node {}", known.name),
            text: match &known.error {
                Some(error) => format!("node {} is down: {error}", known.name),
                None => format!("node {} is down", known.name),
            },
            since_ms: known.since_ms,
            is_told: true,
        }));
        all
    }

    /// What differs from what was shown.
    pub(super) fn look(&mut self, state: &AdminState, events: &mut Events, batch: &mut Batch) {
        let taken = self.taken();
        let nodes = match &state.swarm {
            Some(swarm) => of_swarm(swarm, state, taken),
            None => vec![alone(state, taken)],
        };
        let mut before = std::mem::take(&mut self.shown);
        let is_first = before.is_empty();
        for (id, mut node) in nodes {
            let key: Key = format!("node/{id}").into();
            let known = before.remove(&key);
            let lag_since_ms = node.lag.filter(|lag| *lag > 0).map(|_| {
                let since = known.as_ref().and_then(|known| known.lag_since_ms);
                since.unwrap_or_else(|| unix_ms(SystemTime::now()))
            });
            node.lag_since_ms = lag_since_ms;
            let json = json(&node);
            let is_expected = node.availability.as_deref() != Some("drain") || node.version.is_some();
            let was = known.as_ref().map(|known| known.state);
            if was != Some(node.state) && !is_first {
                let text = match (was, &node.error) {
                    (None, _) => format!("node {} is part of the cluster, {}", node.name, node.state),
                    (Some(was), Some(error)) => format!("node {} is {}, it was {was}: {error}", node.name, node.state),
                    (Some(was), None) => format!("node {} is {}, it was {was}", node.name, node.state),
                };
                events.say(Kind::Node, None, Some(&node.name), &text, batch);
            }
            if known.is_none_or(|known| known.json != json) {
                batch.put(key.clone(), json.clone());
            }
            let known = Known {
                json,
                name: node.name,
                state: node.state,
                since_ms: node.since_ms,
                error: node.error,
                is_self: node.is_self,
                is_expected,
                lag_since_ms,
            };
            self.shown.insert(key, known);
        }
        for (key, known) in before {
            let text = format!("node {} has left the cluster", known.name);
            events.say(Kind::Node, None, Some(&known.name), &text, batch);
            batch.del(key);
        }
    }
}

impl Nodes {
    fn taken(&mut self) -> Taken {
        match self.taken {
            Some((at, taken)) if at.elapsed() < LOOKED_AT_EVERY => taken,
            _ => {
                let taken = Taken {
                    descriptors: descriptors(),
                    memory: memory(),
                };
                self.taken = Some((Instant::now(), taken));
                taken
            }
        }
    }
}

const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// Who this node is: its id, and its name.
pub(super) fn own(state: &AdminState) -> (String, String) {
    let name = hostname();
    let declared = || {
        Some(
            state
                .declared
                .as_ref()?
                .upgrade()?
                .snapshot()
                .nodes()
                .next()?
                .id
                .to_string(),
        )
    };
    match &state.swarm {
        Some(swarm) => (swarm.info.borrow().node.clone(), name),
        None => (declared().unwrap_or_else(|| name.clone()), name),
    }
}

fn alone(state: &AdminState, taken: Taken) -> (String, NodeObject) {
    let (id, name) = own(state);
    let node = NodeObject {
        name,
        state: match views::phase(state) {
            crate::admin::Phase::Draining => "draining",
            _ => "up",
        },
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        revision: Some(state.table.peek().revision()),
        ..NodeObject::default()
    };
    (id, itself(state, taken, node))
}

/// What a node knows of itself alone.
fn itself(state: &AdminState, taken: Taken, node: NodeObject) -> NodeObject {
    let started = SystemTime::now() - state.started.elapsed();
    NodeObject {
        is_self: true,
        since_ms: Some(unix_ms(started)),
        missing: missing(state),
        descriptors: taken.descriptors,
        memory: taken.memory,
        ..node
    }
}

fn missing(state: &AdminState) -> Vec<Missing> {
    let mut all = Vec::new();
    if let Some(takeover) = &state.takeover {
        let status = takeover.status();
        for (feature, off) in [
            (status.redirect, "ports that Docker holds are not redirected to anynode"),
            (status.assign, "ports that Docker holds are not assigned to anynode"),
        ] {
            if let crate::takeover::Feature::Off(what) = feature {
                all.push(Missing { what, off });
            }
        }
    }
    if let crate::proxy::VipState::Off(why) = state.ports.vips() {
        all.push(Missing {
            what: why.to_string(),
            off: "services' own addresses (VIPs) are not answered on the node itself",
        });
    }
    all
}

/// Rounded, so that a node that does little says little.
fn descriptors() -> Option<(u64, u64)> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    Some((rounded(open), limit.current?))
}

fn memory() -> Option<(u64, u64)> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let resident: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let info = rustix::system::sysinfo();
    let of_machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    Some((rounded(resident * rustix::param::page_size() as u64), of_machine))
}

/// To two digits.
fn rounded(n: u64) -> u64 {
    let unit = 10_u64.pow(n.max(1).ilog10().saturating_sub(1));
    (n + unit / 2) / unit * unit
}

fn of_swarm(swarm: &SwarmView, state: &AdminState, taken: Taken) -> Vec<(String, NodeObject)> {
    let (info, cluster, peers) = (
        swarm.info.borrow().clone(),
        swarm.link.cluster.borrow().clone(),
        swarm.peers.table(),
    );
    let own = swarm.link.report();
    let newest = peers.values().filter_map(|peer| Some(peer.report.as_ref()?.revision));
    let newest = newest.chain([own.revision]).max().unwrap_or(0);
    let (now, clock) = (Instant::now(), SystemTime::now());
    let nodes = cluster.nodes().map(|node| {
        let is_self = node.id == info.node;
        let peer = peers.get(node.id.as_str());
        let report = match is_self {
            true => Some(&own),
            false => peer.and_then(|peer| peer.report.as_ref()),
        };
        let object = NodeObject {
            name: node.hostname.clone(),
            address: node.addr.map(|addr| addr.to_string()),
            role: Some(if node.is_manager { "manager" } else { "worker" }),
            availability: Some(node.availability.clone()),
            state: match peer {
                _ if report.is_some_and(|report| report.is_draining) => "draining",
                _ if is_self => "up",
                Some(peer) if peer.is_up => "up",
                _ => "down",
            },
            since_ms: peer.map(|peer| unix_ms(clock - now.saturating_duration_since(peer.since))),
            swarm: Some(if node.is_up { "up" } else { "down" }),
            version: report.map(|report| report.version.clone()),
            revision: report.map(|report| report.revision),
            lag: report.map(|report| newest.saturating_sub(report.revision)),
            digest: report.map(|report| report.digest.to_string()),
            round_trip_us: peer.and_then(|peer| peer.round_trip).map(micros),
            error: peer.and_then(|peer| peer.error.clone()),
            ..NodeObject::default()
        };
        let object = if is_self { itself(state, taken, object) } else { object };
        (node.id.clone(), object)
    });
    nodes.collect()
}

fn micros(took: Duration) -> u64 {
    rounded(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, state: &'static str, is_expected: bool) -> (Key, Known) {
        let known = Known {
            json: "{}".into(),
            name: name.to_owned(),
            state,
            since_ms: None,
            error: (state == "down").then(|| "no answer".to_owned()),
            is_self: name == "self",
            is_expected,
            lag_since_ms: None,
        };
        (name.into(), known)
    }

    #[test]
    fn nodes_that_are_to_answer_and_do_not_are_wrong() {
        let wrong = |others: &[(&str, &'static str, bool)]| -> Vec<String> {
            let others = others
                .iter()
                .map(|(name, state, is_expected)| known(name, state, *is_expected));
            let nodes = Nodes {
                shown: others.chain([known("self", "up", true)]).collect(),
                taken: None,
            };
            nodes.problems().into_iter().map(|problem| problem.text).collect()
        };
        assert!(wrong(&[]).is_empty());
        assert!(wrong(&[("a", "up", true), ("b", "draining", true), ("c", "down", false)]).is_empty());
        assert_eq!(
            wrong(&[("a", "up", true), ("b", "down", true), ("c", "down", false)]),
            ["node b is down: no answer"]
        );
        assert_eq!(
            wrong(&[("b", "down", true), ("c", "down", false)]),
            ["this node does not reach the other node", "node b is down: no answer"]
        );
    }

    #[test]
    fn figures_are_rounded_to_two_digits() {
        for (n, shown) in [
            (0, 0),
            (9, 9),
            (99, 99),
            (104, 100),
            (105, 110),
            (12_345, 12_000),
            (u64::MAX / 2, 9_200_000_000_000_000_000),
        ] {
            assert_eq!(rounded(n), shown);
        }
    }
}

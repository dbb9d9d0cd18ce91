//! Finds a node for each task that has none, and says why there is none; takes tasks off nodes that they may not be on any
//! more.

use std::collections::BTreeMap;
use std::sync::Arc;

use bollard_stubs::models::{EndpointPortConfig, EndpointPortConfigPublishModeEnum as PublishMode};

use super::addresses;
use super::draft::Draft;
use super::slots;
use super::{Context, Plan};
use crate::model::swarm::{
    Generic, Id, Node, Service, Task, TaskSpec, TaskState, Unfit, reserved as reserved_of_kinds,
};
use crate::store::Snapshot;

pub(super) fn plan(context: &mut Context<'_>) -> Plan {
    let mut draft = Draft::new(context.now);
    enforce(context, &mut draft);
    let is_open = |task: &&Arc<Task>| task.is_wanted() && task.status.state < TaskState::Assigned;
    let mut open: Vec<&Arc<Task>> = context.snapshot.tasks().filter(is_open).collect();
    if open.is_empty() {
        return draft.into_plan();
    }
    open.sort_by_key(|task| (task.meta.created_at, task.slot, task.id.clone()));
    let mut nodes = Load::of_all(context.snapshot);
    // Nodes only take on more here: where one did not fit, none of the same kind does.
    let mut unfit: BTreeMap<(Id, u64, u64, Option<Id>), Misfit> = BTreeMap::new();
    for task in open {
        if draft.is_full() {
            break;
        }
        let Some(service) = context.snapshot.service(task.service.as_str()) else {
            continue;
        };
        // Its ports come first.
        if service.endpoint.spec.is_none() {
            continue;
        }
        // So do its addresses; who gives them says why there is none.
        if !addresses::is_given(task, context.snapshot) {
            continue;
        }
        let kind = (
            task.service.clone(),
            task.template,
            task.spec_version,
            task.node.clone(),
        );
        let placed = match unfit.get(&kind) {
            Some(misfit) => Err(misfit.clone()),
            None => place(task, service, &nodes),
        };
        match placed {
            Ok((node, ports)) => {
                let mut given = Generic::default();
                if let Some(load) = nodes.iter_mut().find(|load| load.node.id == node) {
                    given = load.generic.take(&reserved_of_kinds(&task.spec)).unwrap_or_default();
                    load.add(task, &ports);
                }
                let message = match task.node {
                    Some(_) => "scheduler confirmed task can run on preassigned node",
                    None => "scheduler assigned task to node",
                };
                draft.change_task(task, |task| {
                    task.node = Some(node);
                    task.host_ports = ports;
                    task.generic = given;
                    task.status.state = TaskState::Assigned;
                    task.status.message = message.to_owned();
                    task.status.error = None;
                    task.status.unfit.clear();
                    task.status.at = task.meta.updated_at;
                });
            }
            Err(misfit) => {
                unfit.entry(kind).or_insert_with(|| misfit.clone());
                let is_said = task.status.error.as_deref() == Some(&misfit.said) && task.status.unfit == misfit.reasons;
                if task.status.state == TaskState::Pending && is_said {
                    continue;
                }
                draft.change_task(task, |task| {
                    task.status.state = TaskState::Pending;
                    task.status.message = "pending task scheduling".to_owned();
                    task.status.error = Some(misfit.said);
                    task.status.unfit = misfit.reasons;
                    task.status.at = task.meta.updated_at;
                });
            }
        }
    }
    draft.into_plan()
}

/// What a node has taken on.
struct Load<'a> {
    node: &'a Arc<Node>,
    nano_cpus: i64,
    memory: i64,
    /// What nobody was given yet.
    generic: Generic,
    ports: Vec<EndpointPortConfig>,
    n_tasks: usize,
    by_service: BTreeMap<Id, usize>,
}

fn reserved(spec: &TaskSpec) -> (i64, i64) {
    let reservations = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.reservations.as_ref());
    reservations.map_or((0, 0), |wanted| {
        (wanted.nano_cpus.unwrap_or(0), wanted.memory_bytes.unwrap_or(0))
    })
}

fn host_ports(service: &Service) -> Vec<EndpointPortConfig> {
    let is_host = |port: &&EndpointPortConfig| port.publish_mode == Some(PublishMode::HOST);
    service.endpoint.ports.iter().filter(is_host).cloned().collect()
}

impl<'a> Load<'a> {
    fn of_all(snapshot: &'a Snapshot) -> Vec<Load<'a>> {
        let load = |node: &'a Arc<Node>| {
            let mut load = Load {
                node,
                nano_cpus: 0,
                memory: 0,
                generic: node.generic.clone(),
                ports: Vec::new(),
                n_tasks: 0,
                by_service: BTreeMap::new(),
            };
            // What is on its way out holds what it has until it has stopped.
            let has = |task: &&Arc<Task>| task.status.state >= TaskState::Assigned && !task.status.state.is_terminal();
            for task in snapshot.tasks_of_node(node.id.as_str()).filter(has) {
                load.generic.without(&task.generic);
                load.add(task, &task.host_ports);
            }
            load
        };
        snapshot.nodes().map(load).collect()
    }

    fn add(&mut self, task: &Task, ports: &[EndpointPortConfig]) {
        let (nano_cpus, memory) = reserved(&task.spec);
        self.nano_cpus += nano_cpus;
        self.memory += memory;
        self.ports.extend(ports.iter().cloned());
        if task.is_wanted() {
            self.n_tasks += 1;
            *self.by_service.entry(task.service.clone()).or_default() += 1;
        }
    }

    /// `Err`: what keeps the task from this node.
    fn may_take(&self, task: &Task, ports: &[EndpointPortConfig]) -> Result<(), Unfit> {
        if !self.node.is_available() {
            return Err(Unfit::NotAvailable);
        }
        let (nano_cpus, memory) = reserved(&task.spec);
        let is_enough = |has: i64, used: i64, wanted: i64| wanted <= has.saturating_sub(used);
        if !is_enough(self.node.nano_cpus, self.nano_cpus, nano_cpus)
            || !is_enough(self.node.memory, self.memory, memory)
            || !self.generic.has(&reserved_of_kinds(&task.spec))
        {
            return Err(Unfit::Resources);
        }
        if !slots::meets(&task.spec, self.node) {
            return Err(Unfit::Constraints);
        }
        if !fits_platform(&task.spec, self.node) {
            return Err(Unfit::Platform);
        }
        let is_taken = |port: &EndpointPortConfig| {
            let is_same = |other: &&EndpointPortConfig| {
                other.published_port == port.published_port && other.protocol == port.protocol
            };
            port.published_port.is_some_and(|number| number > 0) && self.ports.iter().any(|other| is_same(&other))
        };
        if ports.iter().any(is_taken) {
            return Err(Unfit::HostPort);
        }
        let most = task
            .spec
            .placement
            .as_ref()
            .and_then(|placement| placement.max_replicas)
            .unwrap_or(0);
        let has = self.by_service.get(&task.service).copied().unwrap_or(0);
        if most > 0 && usize::try_from(most).is_ok_and(|most| has >= most) {
            return Err(Unfit::MaxReplicas);
        }
        Ok(())
    }
}

/// Why no node takes a task.
#[derive(Debug, Clone)]
struct Misfit {
    /// What keeps it from most nodes first.
    reasons: Vec<Unfit>,
    /// The same in Docker's words.
    said: String,
}

/// In Docker's words, for one node and for several.
fn say(reason: Unfit, n: usize) -> String {
    let nodes = if n == 1 { "node" } else { "nodes" };
    match reason {
        Unfit::NotAvailable => format!("{n} {nodes} not available for new tasks"),
        Unfit::Resources => format!("insufficient resources on {n} {nodes}"),
        Unfit::Constraints => format!("scheduling constraints not satisfied on {n} {nodes}"),
        Unfit::Platform => format!("unsupported platform on {n} {nodes}"),
        Unfit::HostPort => format!("host-mode port already in use on {n} {nodes}"),
        Unfit::MaxReplicas => "max replicas per node limit exceed".to_owned(),
    }
}

/// Whether a task may have no node for the sake of `old`, which has its slot until the task runs: it is `unfit` for a place or a
/// port that `old` holds itself.
pub(super) fn is_in_the_way(old: &Task, service: &Service, unfit: &[Unfit]) -> bool {
    let holds_port = || {
        let is_same = |held: &EndpointPortConfig, wanted: &EndpointPortConfig| {
            held.published_port == wanted.published_port && held.protocol == wanted.protocol
        };
        let wanted = host_ports(service);
        old.host_ports
            .iter()
            .any(|held| wanted.iter().any(|wanted| is_same(held, wanted)))
    };
    let is_for = |reason: Unfit| unfit.contains(&reason);
    old.node.is_some() && (is_for(Unfit::MaxReplicas) || is_for(Unfit::HostPort) && holds_port())
}

fn fits_platform(spec: &TaskSpec, node: &Node) -> bool {
    let platforms = spec
        .placement
        .as_ref()
        .and_then(|placement| placement.platforms.as_deref());
    let platforms = platforms.unwrap_or_default();
    let normal = |architecture: &str| match architecture {
        "amd64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        other => other.to_owned(),
    };
    let fits = |wanted: Option<&str>, has: &str| {
        wanted.is_none_or(|wanted| wanted.is_empty() || normal(wanted) == normal(has))
    };
    platforms.is_empty()
        || platforms.iter().any(|platform| {
            fits(platform.architecture.as_deref(), &node.architecture) && fits(platform.os.as_deref(), &node.os)
        })
}

/// The node for a task, and the host ports that it takes there. `Err`: why there is none.
fn place(task: &Task, service: &Service, nodes: &[Load<'_>]) -> Result<(Id, Vec<EndpointPortConfig>), Misfit> {
    let ports = host_ports(service);
    let mut reasons: BTreeMap<Unfit, usize> = BTreeMap::new();
    let mut fit: Vec<&Load<'_>> = Vec::new();
    // A task of a global service belongs to one node.
    for load in nodes
        .iter()
        .filter(|load| task.node.as_ref().is_none_or(|node| load.node.id == *node))
    {
        match load.may_take(task, &ports) {
            Ok(()) => fit.push(load),
            Err(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    let of_service = |load: &Load<'_>| load.by_service.get(&task.service).copied().unwrap_or(0);
    let branches = preferences(&task.spec);
    let best = fit.iter().min_by_key(|load| {
        // Branch by branch: how many tasks of the service the nodes with the same label have together.
        let in_branch: Vec<usize> = (1..=branches.len())
            .map(|depth| {
                let is_mine = |other: &Node| {
                    branches[..depth]
                        .iter()
                        .all(|key| label(other, key) == label(load.node, key))
                };
                fit.iter()
                    .filter(|other| is_mine(other.node))
                    .map(|other| of_service(other))
                    .sum()
            })
            .collect();
        (in_branch, of_service(load), load.n_tasks, load.node.id.clone())
    });
    if let Some(load) = best {
        return Ok((load.node.id.clone(), ports));
    }
    let mut reasons: Vec<(Unfit, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(reason, n)| (std::cmp::Reverse(*n), *reason));
    let said: Vec<String> = reasons.iter().map(|(reason, n)| say(*reason, *n)).collect();
    Err(Misfit {
        reasons: reasons.into_iter().map(|(reason, _)| reason).collect(),
        said: match said.is_empty() {
            true => "no suitable node".to_owned(),
            false => format!("no suitable node ({})", said.join("; ")),
        },
    })
}

/// What tasks are spread over, in order. Descriptors that nobody knows are passed over.
fn preferences(spec: &TaskSpec) -> Vec<String> {
    let preferences = spec
        .placement
        .as_ref()
        .and_then(|placement| placement.preferences.as_ref());
    let spread = preferences
        .into_iter()
        .flatten()
        .filter_map(|preference| preference.spread.as_ref());
    let keys = spread.filter_map(|spread| spread.spread_descriptor.clone());
    keys.filter(|key| key.starts_with("node.labels.") || key.starts_with("engine.labels."))
        .collect()
}

fn label<'a>(node: &'a Node, key: &str) -> &'a str {
    let found = match key.strip_prefix("node.labels.") {
        Some(label) => node.spec.labels.as_ref().and_then(|labels| labels.get(label)),
        None => key
            .strip_prefix("engine.labels.")
            .and_then(|label| node.engine_labels.get(label)),
    };
    found.map_or("", String::as_str)
}

/// Tasks whose node has changed so that they may not be there are rejected, and follow the restart policy.
fn enforce(context: &Context<'_>, draft: &mut Draft) {
    let has_constraints = |task: &&Arc<Task>| {
        let constraints = task
            .spec
            .placement
            .as_ref()
            .and_then(|placement| placement.constraints.as_ref());
        constraints.is_some_and(|constraints| !constraints.is_empty())
    };
    let is_placed = |task: &&Arc<Task>| task.is_live() && task.status.state >= TaskState::Assigned;
    for task in context.snapshot.tasks().filter(is_placed).filter(has_constraints) {
        if draft.is_full() {
            return;
        }
        let node = task.node.as_ref().and_then(|node| context.snapshot.node(node.as_str()));
        if node.is_some_and(|node| node.is_available() && !slots::meets(&task.spec, node)) {
            draft.change_task(task, |task| {
                task.status.state = TaskState::Rejected;
                task.status.error = Some("assigned node no longer meets constraints".to_owned());
                task.status.at = task.meta.updated_at;
            });
        }
    }
}

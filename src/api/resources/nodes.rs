//! Nodes: for now the one that this is.

use std::sync::Arc;

use bollard_stubs::models::{NodeSpec, NodeSpecAvailabilityEnum, NodeSpecRoleEnum};
use hyper::StatusCode;

use crate::api::backend::Backend;
use crate::api::wire::{self, Answer, ApiError, Asked, Filters};
use crate::api::{find, view};
use crate::model::labels;
use crate::model::swarm::{Node, Object, Time, Write};
use crate::store::THIS_REVISION;

pub(in crate::api) fn list(backend: &Backend, asked: &Asked) -> Result<Answer, ApiError> {
    let filters = Filters::parse(asked.query("filters"))?;
    let snapshot = backend.store.snapshot();
    let swarm = find::swarm(&snapshot)?;
    let filters = filters.only(&["id", "name", "label", "node.label", "role", "membership"])?;
    for (key, values) in [("role", ["manager", "worker"]), ("membership", ["accepted", "pending"])] {
        let is_one = |value: &String| values.iter().any(|known| known.eq_ignore_ascii_case(value));
        let is_none = |value: &&String| !value.is_empty() && !is_one(value);
        if let Some(other) = filters.values(key).iter().find(is_none) {
            return Err(ApiError::internal(format!("Invalid {key} filter: '{other}'")));
        }
    }
    // An empty word is none.
    let is_any = |key: &str, word: &str| {
        let mut wanted = filters
            .values(key)
            .iter()
            .filter(|wanted| !wanted.is_empty())
            .peekable();
        wanted.peek().is_none() || wanted.any(|wanted| wanted.eq_ignore_ascii_case(word))
    };
    let matches = |node: &&Arc<Node>| {
        let role = if node.is_manager { "manager" } else { "worker" };
        filters.prefix("id", node.id.as_str())
            && filters.prefix("name", &node.hostname)
            && filters.labels("label", |key| node.engine_labels.get(key).map(String::as_str))
            && filters.labels("node.label", |key| {
                node.spec.labels.as_ref()?.get(key).map(String::as_str)
            })
            && is_any("role", role)
            && is_any("membership", "accepted")
    };
    let nodes: Vec<_> = snapshot
        .nodes()
        .filter(matches)
        .map(|node| view::node(node, Some(&swarm)))
        .collect();
    Ok(wire::json(StatusCode::OK, &nodes))
}

pub(in crate::api) fn inspect(backend: &Backend, id: &str) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    let swarm = find::swarm(&snapshot)?;
    let node = find::node(&snapshot, id)?;
    Ok(wire::json(StatusCode::OK, &view::node(&node, Some(&swarm))))
}

pub(in crate::api) fn remove(backend: &Backend, id: &str) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    find::swarm(&snapshot)?;
    let node = find::node(&snapshot, id)?;
    Err(ApiError::precondition(format!(
        "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
        node.id
    )))
}

/// Errors: a label of ours that means nothing, and was not there `before`.
fn refuse_labels(spec: &NodeSpec, before: &NodeSpec) -> Result<(), ApiError> {
    let faults = |spec: &NodeSpec| -> Vec<String> {
        let labels = spec.labels.iter().flatten();
        labels::of_node(&labels.map(|(label, value)| (label.clone(), value.clone())).collect()).1
    };
    let known = faults(before);
    let faults: Vec<String> = faults(spec)
        .into_iter()
        .filter(|fault| !known.contains(fault))
        .collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(ApiError::bad(faults.join("; "))),
    }
}

pub(in crate::api) async fn update(backend: &Arc<Backend>, asked: Asked, id: &str) -> Result<Answer, ApiError> {
    let version = asked.version("node")?;
    find::swarm(&backend.store.snapshot())?;
    let spec: NodeSpec = asked.json().await?;
    if matches!(spec.role, None | Some(NodeSpecRoleEnum::EMPTY)) {
        return Err(ApiError::bad("invalid Role: \"\": expected worker or manager"));
    }
    if matches!(spec.availability, None | Some(NodeSpecAvailabilityEnum::EMPTY)) {
        return Err(ApiError::bad(
            "invalid Availability: \"\": expected active, pause or drain",
        ));
    }
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let node = find::node(snapshot, id)?;
            if node.meta.version != version {
                return Err(ApiError::unknown("update out of sequence"));
            }
            if node.is_manager && spec.role == Some(NodeSpecRoleEnum::WORKER) {
                return Err(ApiError::precondition(
                    "attempting to demote the last manager of the swarm",
                ));
            }
            refuse_labels(&spec, &node.spec)?;
            let mut next = Node::clone(&node);
            next.spec = spec.clone();
            next.meta.version = THIS_REVISION;
            next.meta.updated_at = Time::now();
            Ok((vec![Write::Put(Object::Node(Arc::new(next)))], ()))
        })
        .await?;
    Ok(wire::empty(StatusCode::OK))
}

//! Nodes: for now the one that this is.

use std::sync::Arc;

use bollard_stubs::models::{NodeSpec, NodeSpecAvailabilityEnum, NodeSpecRoleEnum};
use hyper::StatusCode;

use super::error::ApiError;
use super::filters::Filters;
use super::http::{self, Answer, Asked};
use super::{Api, find, services, view};
use crate::model::swarm::{Node, Object, Time, Write};
use crate::store::THIS_REVISION;

pub(super) fn list(api: &Api, asked: &Asked) -> Result<Answer, ApiError> {
    let snapshot = api.store.snapshot();
    find::swarm(&snapshot)?;
    let known = ["id", "name", "label", "node.label", "role", "membership"];
    let filters = Filters::read(asked.query("filters"), &known)?;
    for (key, values) in [("role", ["manager", "worker"]), ("membership", ["accepted", "pending"])] {
        if let Some(other) = filters
            .values(key)
            .iter()
            .find(|value| !values.contains(&value.as_str()))
        {
            return Err(ApiError::bad(format!(
                "invalid {key} filter: '{other}': expected {} or {}",
                values[0], values[1]
            )));
        }
    }
    let matches = |node: &&Arc<Node>| {
        let role = if node.is_manager { "manager" } else { "worker" };
        filters.prefix("id", node.id.as_str())
            && filters.prefix("name", &node.hostname)
            && filters.labels("label", |key| node.engine_labels.get(key).map(String::as_str))
            && filters.labels("node.label", |key| {
                node.spec.labels.as_ref()?.get(key).map(String::as_str)
            })
            && filters.any("role", |wanted| wanted == role)
            && filters.any("membership", |wanted| wanted == "accepted")
    };
    let nodes: Vec<_> = snapshot.nodes().filter(matches).map(|node| view::node(node)).collect();
    Ok(http::json(StatusCode::OK, &nodes))
}

pub(super) fn inspect(api: &Api, id: &str) -> Result<Answer, ApiError> {
    let snapshot = api.store.snapshot();
    find::swarm(&snapshot)?;
    let node = find::node(&snapshot, id)?;
    Ok(http::json(StatusCode::OK, &view::node(&node)))
}

pub(super) fn remove(api: &Api, id: &str) -> Result<Answer, ApiError> {
    let snapshot = api.store.snapshot();
    find::swarm(&snapshot)?;
    let node = find::node(&snapshot, id)?;
    Err(ApiError::precondition(format!(
        "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
        node.id
    )))
}

pub(super) async fn update(api: &Arc<Api>, asked: Asked, id: &str) -> Result<Answer, ApiError> {
    let version = services::version(&asked, "node")?;
    find::swarm(&api.store.snapshot())?;
    let spec: NodeSpec = asked.json(api).await?;
    if matches!(spec.availability, None | Some(NodeSpecAvailabilityEnum::EMPTY)) {
        return Err(ApiError::bad("invalid Availability: expected active, pause or drain"));
    }
    match spec.role {
        Some(NodeSpecRoleEnum::MANAGER) => {}
        Some(NodeSpecRoleEnum::WORKER) => {
            return Err(ApiError::precondition(
                "attempting to demote the last manager of the swarm",
            ));
        }
        _ => return Err(ApiError::bad("invalid Role: expected worker or manager")),
    }
    api.update(|snapshot| {
        find::swarm(snapshot)?;
        let node = find::node(snapshot, id)?;
        if node.meta.version != version {
            return Err(ApiError::unknown("update out of sequence"));
        }
        let mut next = Node::clone(&node);
        next.spec = spec.clone();
        next.meta.version = THIS_REVISION;
        next.meta.updated_at = Time::now();
        Ok((vec![Write::Put(Object::Node(Arc::new(next)))], ()))
    })
    .await?;
    Ok(http::empty(StatusCode::OK))
}

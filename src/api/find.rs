//! Objects by what users call them: the whole id, the exact name, or the beginning of an id if there is only one such.

use std::sync::Arc;

use super::wire::ApiError;
use crate::model::swarm::{Network, Node, Payload, Service, Swarm, Task};
use crate::store::Snapshot;

fn pick<'a, T>(
    kind: &str,
    text: &str,
    all: impl Iterator<Item = &'a Arc<T>> + Clone,
    id: impl Fn(&T) -> &str,
    is_named: impl Fn(&T) -> bool,
) -> Result<Arc<T>, ApiError>
where
    T: 'a,
{
    if let Some(found) = all.clone().find(|object| id(object) == text) {
        return Ok(found.clone());
    }
    let named: Vec<&Arc<T>> = all.clone().filter(|object| is_named(object)).collect();
    let found = match named.is_empty() {
        false => named,
        true => all
            .filter(|object| !text.is_empty() && id(object).starts_with(text))
            .collect(),
    };
    match found.as_slice() {
        [] => Err(ApiError::not_found(format!("{kind} {text} not found"))),
        [one] => Ok((*one).clone()),
        several => {
            let n = several.len();
            Err(ApiError::bad(format!("{kind} {text} is ambiguous ({n} matches found)")))
        }
    }
}

pub(super) fn swarm(snapshot: &Snapshot) -> Result<Arc<Swarm>, ApiError> {
    snapshot.swarm().cloned().ok_or_else(ApiError::no_swarm)
}

pub(super) fn service(snapshot: &Snapshot, text: &str) -> Result<Arc<Service>, ApiError> {
    let all: Vec<&Arc<Service>> = snapshot.services().collect();
    pick(
        "service",
        text,
        all.into_iter(),
        |service| service.id.as_str(),
        |service| service.name() == text,
    )
}

pub(super) fn task(snapshot: &Snapshot, text: &str) -> Result<Arc<Task>, ApiError> {
    let all: Vec<&Arc<Task>> = snapshot.tasks().collect();
    pick(
        "task",
        text,
        all.into_iter(),
        |task| task.id.as_str(),
        |task| task.name() == text,
    )
}

pub(super) fn node(snapshot: &Snapshot, text: &str) -> Result<Arc<Node>, ApiError> {
    let all: Vec<&Arc<Node>> = snapshot.nodes().collect();
    pick(
        "node",
        text,
        all.into_iter(),
        |node| node.id.as_str(),
        |node| node.hostname == text,
    )
}

pub(super) fn network(snapshot: &Snapshot, text: &str) -> Result<Arc<Network>, ApiError> {
    let all: Vec<&Arc<Network>> = snapshot.networks().collect();
    pick(
        "network",
        text,
        all.into_iter(),
        |network| network.id.as_str(),
        |network| network.name == text,
    )
}

pub(super) fn config(snapshot: &Snapshot, text: &str) -> Result<Arc<Payload>, ApiError> {
    let all: Vec<&Arc<Payload>> = snapshot.configs().collect();
    let is_named = |config: &Payload| config.name.eq_ignore_ascii_case(text);
    pick("config", text, all.into_iter(), |config| config.id.as_str(), is_named)
}

pub(super) fn secret(snapshot: &Snapshot, text: &str) -> Result<Arc<Payload>, ApiError> {
    let all: Vec<&Arc<Payload>> = snapshot.secrets().collect();
    let is_named = |secret: &Payload| secret.name.eq_ignore_ascii_case(text);
    pick("secret", text, all.into_iter(), |secret| secret.id.as_str(), is_named)
}

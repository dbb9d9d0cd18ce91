//! Containers that are no tasks: the engine's, but for those that are to be on a network of the swarm, of which the engine knows
//! nothing. These are made, started and shown otherwise than the engine has it (`attach`).

use std::sync::Arc;

use hyper::Method;
use serde_json::Value;

use super::attach;
use crate::api::backend::Backend;
use crate::api::find;
use crate::api::outside::Turn;
use crate::api::wire::{self, Answer, ApiError, Asked, Json, Version};

/// `POST /containers/create`.
pub(in crate::api) async fn create(backend: &Arc<Backend>, asked: Asked, version: Version) -> Result<Answer, ApiError> {
    if backend.outside.engine().is_none() {
        // It says so, whatever was to be made.
        return backend
            .engine
            .send(Method::POST, version, "/containers/create", Vec::new())
            .await;
    }
    let path = wire::with_query("/containers/create", &asked.query);
    let (bytes, _): (_, Json) = asked.json_and_bytes().await?;
    // What is wrong with the rest the engine says.
    let wanted: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let body = match attach::rewritten(&wanted, &backend.store.snapshot())? {
        Some(_) if backend.outside.attaching().is_none() => return Err(cannot_attach()),
        Some(rewritten) => serde_json::to_vec(&rewritten).unwrap_or_default(),
        None => bytes.to_vec(),
    };
    backend.engine.send(Method::POST, version, &path, body).await
}

fn cannot_attach() -> ApiError {
    ApiError::not_implemented(
        "containers that are no tasks of a service cannot join the swarm's networks here: expected an anynode with CAP_NET_ADMIN, \
         CAP_SYS_ADMIN and CAP_BPF in the host's PID namespace",
    )
}

/// What is to be done before the engine gets a request: a container that is about to start has its network first. The turn
/// is to be held until the engine has answered.
pub(in crate::api) async fn before(
    backend: &Backend,
    method: &Method,
    path: &[&str],
) -> Result<Option<Turn>, ApiError> {
    let (&Method::POST, ["containers", id, "start" | "restart"]) = (method, path) else {
        return Ok(None);
    };
    let Some(attaching) = backend.outside.attaching() else {
        return Ok(None);
    };
    // What is wrong the engine says itself.
    let Ok(container) = backend
        .engine
        .get(&format!("/containers/{}/json", wire::encode(id)))
        .await
    else {
        return Ok(None);
    };
    let Some(spec) = attach::is_attached(&container) else {
        return Ok(None);
    };
    let network = &spec.network_name;
    let could_not = |why: &str| format!("Could not attach to network {network}: {why}");
    let snapshot = backend.store.snapshot();
    if snapshot.swarm().is_none_or(|swarm| swarm.id != spec.swarm) || snapshot.network(spec.network.as_str()).is_none()
    {
        let why = format!("rpc error: code = NotFound desc = network {network} not found");
        return Err(ApiError::not_found(could_not(&why)));
    }
    let id = container["Id"].as_str().unwrap_or_default();
    let turn = attaching.attach(id).await;
    turn.map_err(|reason| ApiError::conflict(could_not(&reason)))
}

/// `POST /networks/ID/connect` and `disconnect`.
pub(in crate::api) async fn join(
    backend: &Arc<Backend>,
    asked: Asked,
    network: &str,
    what: &str,
    version: Version,
) -> Result<Answer, ApiError> {
    refuse_swarms(backend, network)?;
    let path = format!("/networks/{}/{what}", wire::encode(network));
    if backend.outside.engine().is_none() {
        return backend.engine.send(Method::POST, version, &path, Vec::new()).await;
    }
    let (body, _): (_, Json) = asked.json_and_bytes().await?;
    backend.engine.send(Method::POST, version, &path, body.to_vec()).await
}

fn refuse_swarms(backend: &Backend, network: &str) -> Result<(), ApiError> {
    let Ok(found) = find::network(&backend.store.snapshot(), network) else {
        return Ok(());
    };
    if !found.is_attachable {
        return Err(attach::not_attachable(network));
    }
    Err(ApiError::not_implemented(format!(
        "Could not attach to network {network}: it is the swarm's, and a container is on such a network from its making to its end, \
         or never: expected a new container (docker run --network {network})"
    )))
}

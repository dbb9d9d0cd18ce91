//! Containers that are no tasks: the engine's, but for those that are to be on a network of the swarm, of which the engine knows
//! nothing. These are refused in words.

use std::collections::HashMap;
use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;

use crate::api::backend::Backend;
use crate::api::find;
use crate::api::wire::{self, Answer, ApiError, Asked, Json, Version};

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    host_config: Option<HostConfig>,
    networking_config: Option<NetworkingConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkingConfig {
    endpoints_config: Option<HashMap<String, serde::de::IgnoredAny>>,
}

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
    let (body, json) = asked.json_and_bytes().await?;
    // What is wrong with the rest the engine says.
    let wanted: Create = wire::typed(&json).unwrap_or_default();
    let mode = wanted.host_config.and_then(|host| host.network_mode);
    let endpoints = wanted.networking_config.and_then(|config| config.endpoints_config);
    for network in mode
        .into_iter()
        .chain(endpoints.into_iter().flatten().map(|(network, _)| network))
    {
        refuse_swarms(backend, &network)?;
    }
    backend.engine.send(Method::POST, version, &path, body.to_vec()).await
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
        return Err(ApiError::forbidden(format!(
            "Could not attach to network {network}: rpc error: code = PermissionDenied desc = network {network} not manually \
             attachable"
        )));
    }
    Err(ApiError::not_implemented(format!(
        "Could not attach to network {network}: it is the swarm's, and containers that are no tasks of a service cannot join such a \
         network here yet: expected a service, or a network of the engine"
    )))
}

//! Networks: overlay ones are the swarm's, all others the engine's.

use std::sync::Arc;

use bollard_stubs::models::NetworkAttachmentConfig;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::new_network;
use crate::api::backend::Backend;
use crate::api::find;
use crate::api::network_view::{self, PREDEFINED};
use crate::api::wire::{self, Answer, ApiError, Asked, Filters, Version};
use crate::model::swarm::{Key, Kind, Network, ServiceSpec, Task, Time, Write};
use crate::store::Snapshot;

pub(in crate::api) async fn dispatch(
    backend: &Arc<Backend>,
    asked: Asked,
    rest: &[&str],
    version: Version,
) -> Result<Answer, ApiError> {
    let (get, post) = (asked.method == Method::GET, asked.method == Method::POST);
    match rest {
        [] if get => list(backend, &asked).await,
        ["create"] if post => new_network::create(backend, asked, version).await,
        ["prune"] if post => prune(backend, &asked, version).await,
        [id] if get => inspect(backend, &asked, id).await,
        [id] if asked.method == Method::DELETE => {
            let id = (*id).to_owned();
            match find::network(&backend.store.snapshot(), &id) {
                Ok(_) => remove(backend, &id).await,
                Err(error) => match backend.outside.engine() {
                    Some(_) => {
                        let path = format!("/networks/{}", wire::encode(&id));
                        backend.engine.send(Method::DELETE, version, &path, Vec::new()).await
                    }
                    None if PREDEFINED.contains(&&*id) => Err(ApiError::forbidden(format!(
                        "{id} is a pre-defined network and cannot be removed"
                    ))),
                    None => Err(error),
                },
            }
        }
        _ => Err(ApiError::page_not_found()),
    }
}

async fn inspect(backend: &Backend, asked: &Asked, id: &str) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    let scope = asked.query("scope").filter(|scope| !scope.is_empty());
    match find::network(&snapshot, id) {
        Ok(network) if scope != Some("local") => {
            let shown = network_view::with_tasks(&snapshot, &network, asked.is_on("verbose"));
            Ok(wire::json(StatusCode::OK, &shown))
        }
        // The command line asks for it so, before it makes a service with `--network host`.
        _ if PREDEFINED.contains(&id)
            && (scope == Some("swarm") && snapshot.swarm().is_some() || backend.outside.engine().is_none()) =>
        {
            Ok(wire::json(StatusCode::OK, &network_view::predefined(id)))
        }
        found => match backend.engine.get(&format!("/networks/{}", wire::encode(id))).await {
            Ok(network) if scope != Some("swarm") => Ok(wire::json(StatusCode::OK, &network)),
            _ => Err(found
                .err()
                .unwrap_or_else(|| ApiError::not_found(format!("network {id} not found")))),
        },
    }
}

/// Networks of a service as their clients name them, which may be by the engine's ids. Errors: one of the engine's own.
pub(super) async fn resolve(backend: &Backend, spec: &mut ServiceSpec) -> Result<(), ApiError> {
    let of_tasks = spec
        .task_template
        .as_mut()
        .and_then(|template| template.networks.as_mut());
    let all = of_tasks.into_iter().chain(spec.networks.as_mut()).flatten();
    let targets: Vec<&mut String> = all.filter_map(|attachment| attachment.target.as_mut()).collect();
    for target in targets {
        let is_known = PREDEFINED.contains(&target.as_str())
            || target == "none"
            || find::network(&backend.store.snapshot(), target).is_ok();
        if is_known || backend.outside.engine().is_none() {
            continue;
        }
        let Ok(network) = backend.engine.get(&format!("/networks/{}", wire::encode(target))).await else {
            continue;
        };
        let name = network["Name"].as_str().unwrap_or_default();
        if !PREDEFINED.contains(&name) {
            return Err(ApiError::forbidden(format!(
                "The network {name} cannot be used with services. Only networks scoped to the swarm can be used, such as those \
                 created with the overlay driver."
            )));
        }
        *target = name.to_owned();
    }
    Ok(())
}

async fn list(backend: &Backend, asked: &Asked) -> Result<Answer, ApiError> {
    let known = ["driver", "id", "label", "name", "scope", "type", "dangling"];
    let text = asked.query("filters");
    let filters = Filters::read(text, &known)?;
    let dangling = match filters.values("dangling") {
        [] => None,
        [value] => match value.as_str() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => {
                return Err(ApiError::bad(
                    "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")",
                ));
            }
        },
        _ => return Err(ApiError::bad("got more than one value for filter key \"dangling\"")),
    };
    let is_no_type = |kind: &&String| !matches!(kind.as_str(), "builtin" | "custom");
    if let Some(kind) = filters.values("type").iter().find(is_no_type) {
        return Err(ApiError::internal(format!("invalid filter: 'type'='{kind}'")));
    }
    let (ids, names) = (filters.patterns("id"), filters.patterns("name"));
    let snapshot = backend.store.snapshot();
    let matches = |network: &&Arc<Network>| {
        filters.any("driver", |driver| *driver == network.driver)
            && ids.are_in(network.id.as_str())
            && names.are_in(&network.name)
            && filters.any("scope", |scope| scope == "swarm")
            && filters.any("type", |kind| {
                kind == if network.is_ingress { "builtin" } else { "custom" }
            })
            && dangling.is_none_or(|is| is != (network.is_ingress || is_used(&snapshot, network)))
            && filters.exact_labels("label", |key| network.labels.get(key).map(String::as_str))
    };
    let mut networks: Vec<Value> = snapshot
        .networks()
        .filter(matches)
        .map(|network| network_view::network(network))
        .collect();
    let query = text
        .map(|text| format!("?filters={}", wire::encode(text)))
        .unwrap_or_default();
    if let Ok(Value::Array(others)) = backend.engine.get(&format!("/networks{query}")).await {
        networks.extend(others);
    }
    Ok(wire::json(StatusCode::OK, &networks))
}

async fn remove(backend: &Arc<Backend>, id: &str) -> Result<Answer, ApiError> {
    see_who_has_ended(backend).await;
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let network = find::network(snapshot, id)?;
            if network.is_ingress {
                return Err(ApiError::precondition(format!(
                    "ingress network {} cannot be removed: it does not work without one yet",
                    network.id
                )));
            }
            if let Some(user) = user_of(snapshot, &network) {
                let id = &network.id;
                return Err(ApiError::precondition(format!("network {id} is in use by {user}")));
            }
            Ok((vec![Write::Remove(Key::new(Kind::Network, &network.id))], ()))
        })
        .await?;
    Ok(wire::empty(StatusCode::NO_CONTENT))
}

/// Who keeps a network from being removed. What of a service is about to end does not.
fn user_of(snapshot: &Snapshot, network: &Network) -> Option<String> {
    let id = Some(network.id.as_str());
    let uses = |attachment: &NetworkAttachmentConfig| attachment.target.as_deref() == id;
    let mut services = snapshot.services();
    if let Some(service) = services.find(|service| service.networks().iter().any(uses)) {
        return Some(format!("service {}", service.id));
    }
    // Those of a service that was just removed are about to end, though nobody has told them yet.
    let is_kept = |task: &&Arc<Task>| task.is_live() && snapshot.service(task.service.as_str()).is_some();
    let mut tasks = snapshot.tasks().filter(is_kept);
    if let Some(task) = tasks.find(|task| task.spec.networks.iter().flatten().any(uses)) {
        return Some(format!("task {}", task.id));
    }
    let container = snapshot
        .containers()
        .find(|container| container.network == network.id)?;
    Some(format!("container {}", container.name))
}

/// A container that has just ended uses no network any more, though the engine may not have said so yet.
async fn see_who_has_ended(backend: &Backend) {
    let attaching = backend.outside.attaching();
    if let Some(attaching) = attaching.filter(|_| backend.store.snapshot().containers().next().is_some()) {
        attaching.look().await;
    }
}

fn is_used(snapshot: &Snapshot, network: &Network) -> bool {
    user_of(snapshot, network).is_some()
}

/// Removes the swarm's networks that nobody uses, and has the engine do so with its own.
async fn prune(backend: &Arc<Backend>, asked: &Asked, version: Version) -> Result<Answer, ApiError> {
    let text = asked.query("filters");
    let filters = Filters::read(text, &["label", "label!", "until"])?;
    let until = match filters.values("until") {
        [] => None,
        [until] => Some(moment(until)?),
        _ => return Err(ApiError::bad("more than one until filter specified")),
    };
    let mut deleted = Vec::new();
    see_who_has_ended(backend).await;
    if backend.store.snapshot().swarm().is_some() {
        let pruned = backend.update(|snapshot| {
            let is_meant = |network: &&Arc<Network>| {
                let label = |key: &str| network.labels.get(key).map(String::as_str);
                !network.is_ingress
                    && until.is_none_or(|until| network.meta.created_at <= until)
                    && filters.exact_labels("label", label)
                    && !filters.is_unwanted("label!", label)
                    && !is_used(snapshot, network)
            };
            let networks: Vec<&Arc<Network>> = snapshot.networks().filter(is_meant).collect();
            let writes = networks
                .iter()
                .map(|network| Write::Remove(Key::new(Kind::Network, &network.id)));
            let names: Vec<String> = networks.iter().map(|network| network.name.clone()).collect();
            Ok((writes.collect(), names))
        });
        deleted = pruned.await?.1;
    }
    if backend.outside.engine().is_some() {
        let query = text.map(|text| format!("?filters={}", wire::encode(text)));
        let path = format!("/networks/prune{}", query.unwrap_or_default());
        let answer = backend.engine.send(Method::POST, version, &path, Vec::new()).await?;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| ApiError::gateway(error.to_string()))?.to_bytes();
        let said: Value = serde_json::from_slice(&body).map_err(|error| ApiError::gateway(error.to_string()))?;
        let names = said["NetworksDeleted"].as_array().into_iter().flatten();
        deleted.extend(names.filter_map(|name| name.as_str().map(str::to_owned)));
    }
    let deleted = Some(deleted).filter(|deleted| !deleted.is_empty());
    Ok(wire::json(StatusCode::OK, &json!({ "NetworksDeleted": deleted })))
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<Time, ApiError> {
    match humantime::parse_duration(text) {
        Ok(ago) => {
            let nanos = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
            Ok(Time(Time::now().0.saturating_sub(nanos)))
        }
        Err(_) => wire::parse_time("until", text),
    }
}

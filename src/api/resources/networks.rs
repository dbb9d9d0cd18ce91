//! Networks: overlay ones are the swarm's, all others the engine's.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::backend::{Backend, new_id};
use crate::api::wire::{self, Answer, ApiError, Asked, Filters, Version};
use crate::api::{find, validate, view};
use crate::model::swarm::{Key, Kind, Meta, Network, Object, Time, Write};
use crate::store::THIS_REVISION;

pub(in crate::api) async fn dispatch(
    backend: &Arc<Backend>,
    asked: Asked,
    rest: &[&str],
    version: Version,
) -> Result<Answer, ApiError> {
    let (get, post) = (asked.method == Method::GET, asked.method == Method::POST);
    match rest {
        [] if get => list(backend, &asked).await,
        ["create"] if post => create(backend, asked, version).await,
        [id] if get => {
            let snapshot = backend.store.snapshot();
            match find::network(&snapshot, id) {
                Ok(network) if asked.query("scope") != Some("local") => {
                    Ok(wire::json(StatusCode::OK, &view::network(&network)))
                }
                // The command line asks for it so, before it makes a service with `--network host`.
                _ if *id == "host" && (asked.query("scope") == Some("swarm") || backend.outside.engine().is_none()) => {
                    Ok(wire::json(StatusCode::OK, &view::host_network()))
                }
                found => match backend.engine.get(&format!("/networks/{}", wire::encode(id))).await {
                    Ok(network) if asked.query("scope") != Some("swarm") => Ok(wire::json(StatusCode::OK, &network)),
                    _ => Err(found
                        .err()
                        .unwrap_or_else(|| ApiError::not_found(format!("network {id} not found")))),
                },
            }
        }
        [id] if asked.method == Method::DELETE => {
            let id = (*id).to_owned();
            match find::network(&backend.store.snapshot(), &id) {
                Ok(_) => remove(backend, &id).await,
                Err(error) => match backend.outside.engine() {
                    Some(_) => {
                        let path = format!("/networks/{}", wire::encode(&id));
                        backend.engine.send(Method::DELETE, version, &path, Vec::new()).await
                    }
                    None => Err(error),
                },
            }
        }
        _ => Err(ApiError::page_not_found()),
    }
}

async fn list(backend: &Backend, asked: &Asked) -> Result<Answer, ApiError> {
    let known = ["driver", "id", "label", "name", "scope", "type", "dangling"];
    let text = asked.query("filters");
    let filters = Filters::read(text, &known)?;
    let snapshot = backend.store.snapshot();
    let is_used = |network: &Network| {
        let id = Some(network.id.as_str());
        snapshot.services().any(|service| {
            service
                .networks()
                .iter()
                .any(|attachment| attachment.target.as_deref() == id)
        })
    };
    let matches = |network: &&Arc<Network>| {
        filters.any("driver", |driver| *driver == network.driver)
            && filters.prefix("id", network.id.as_str())
            && filters.any("name", |name| network.name.contains(name.as_str()))
            && filters.any("scope", |scope| scope == "swarm")
            && filters.any("type", |kind| {
                kind == if network.is_ingress { "builtin" } else { "custom" }
            })
            && filters.any("dangling", |is| matches!(is.as_str(), "true" | "1") != is_used(network))
            && filters.labels("label", |key| network.labels.get(key).map(String::as_str))
    };
    let mut networks: Vec<Value> = snapshot
        .networks()
        .filter(matches)
        .map(|network| view::network(network))
        .collect();
    let query = text
        .map(|text| format!("?filters={}", wire::encode(text)))
        .unwrap_or_default();
    if let Ok(Value::Array(others)) = backend.engine.get(&format!("/networks{query}")).await {
        networks.extend(others);
    }
    Ok(wire::json(StatusCode::OK, &networks))
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: String,
    driver: Option<String>,
    scope: Option<String>,
    #[serde(rename = "IPAM")]
    ipam: Option<Ipam>,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    config_from: Option<ConfigFrom>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    options: Option<HashMap<String, String>>,
    labels: Option<HashMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigFrom {
    network: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    config: Option<Vec<IpamConfig>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct IpamConfig {
    subnet: Option<String>,
    gateway: Option<String>,
}

async fn create(backend: &Arc<Backend>, asked: Asked, version: Version) -> Result<Answer, ApiError> {
    let (body, json) = asked.json_and_bytes().await?;
    let wanted: Create = wire::typed(&json)?;
    let is_swarms = wanted.driver.as_deref() == Some("overlay") || wanted.scope.as_deref() == Some("swarm");
    if !is_swarms {
        return backend
            .engine
            .send(Method::POST, version, "/networks/create", body.to_vec())
            .await;
    }
    if backend.store.snapshot().swarm().is_none() {
        return Err(ApiError::forbidden(ApiError::no_swarm().message));
    }
    validate::name(&wanted.name)?;
    if wanted.config_only || wanted.config_from.is_some_and(|from| !from.network.is_empty()) {
        return Err(ApiError::bad(
            "overlay networks do not come from config-only ones: expected neither ConfigOnly nor ConfigFrom",
        ));
    }
    if wanted.ingress {
        return Err(ApiError::exists("an ingress network is already present"));
    }
    let config = wanted
        .ipam
        .and_then(|ipam| ipam.config)
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default();
    let subnet: Option<ipnet::Ipv4Net> = match config.subnet.filter(|subnet| !subnet.is_empty()) {
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::bad(format!(
                "invalid subnet {text}: expected an IPv4 network such as 10.0.9.0/24"
            ))
        })?),
        None => None,
    };
    let gateway: Option<Ipv4Addr> = match config.gateway.filter(|gateway| !gateway.is_empty()) {
        Some(text) => {
            let gateway = text.parse().ok();
            let is_inside = |gateway: &Ipv4Addr| subnet.is_none_or(|subnet| subnet.contains(gateway));
            let wrong = || {
                ApiError::bad(format!(
                    "invalid gateway address {text}: expected an IPv4 address of the subnet"
                ))
            };
            Some(gateway.filter(is_inside).ok_or_else(wrong)?)
        }
        None => subnet.and_then(|subnet| subnet.hosts().next()),
    };
    let sorted = |map: Option<HashMap<String, String>>| map.unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>();
    let (labels, options) = (sorted(wanted.labels), sorted(wanted.options));
    let id = new_id();
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let overlaps = |other: &ipnet::Ipv4Net| {
                subnet.is_some_and(|subnet| subnet.contains(&other.network()) || other.contains(&subnet.network()))
            };
            if let Some(other) = snapshot
                .networks()
                .find(|network| network.subnet.as_ref().is_some_and(overlaps))
            {
                return Err(ApiError::invalid(format!(
                    "Pool overlaps with other one on this address space: network {}",
                    other.name
                )));
            }
            let now = Time::now();
            let network = Network {
                id: id.clone(),
                meta: Meta {
                    version: THIS_REVISION,
                    created_at: now,
                    updated_at: now,
                },
                name: wanted.name.clone(),
                labels: labels.clone(),
                driver: "overlay".to_owned(),
                options: options.clone(),
                is_internal: wanted.internal,
                is_attachable: wanted.attachable,
                is_ingress: false,
                ipv6: wanted.enable_ipv6.unwrap_or(false),
                subnet,
                gateway,
            };
            Ok((vec![Write::Put(Object::Network(Arc::new(network)))], ()))
        })
        .await?;
    Ok(wire::json(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" })))
}

async fn remove(backend: &Arc<Backend>, id: &str) -> Result<Answer, ApiError> {
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
            let uses = |attachment: &bollard_stubs::models::NetworkAttachmentConfig| {
                attachment.target.as_deref() == Some(network.id.as_str())
            };
            if let Some(service) = snapshot.services().find(|service| service.networks().iter().any(uses)) {
                return Err(ApiError::precondition(format!(
                    "network {} is in use by service {}",
                    network.id, service.id
                )));
            }
            Ok((vec![Write::Remove(Key::new(Kind::Network, &network.id))], ()))
        })
        .await?;
    Ok(wire::empty(StatusCode::NO_CONTENT))
}

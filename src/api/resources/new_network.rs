//! A network as it is asked for: made as the swarm's, passed on to the engine, or refused in words. Nothing of what was asked
//! for becomes something else.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hyper::{Method, StatusCode};
use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::json;

use crate::api::backend::{Backend, new_id};
use crate::api::network_view::PREDEFINED;
use crate::api::wire::{self, Answer, ApiError, Asked, Version};
use crate::api::{find, validate};
use crate::model::swarm::{Meta, Network, Object, Time, Write};
use crate::store::THIS_REVISION;

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
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
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
    driver: Option<String>,
    config: Option<Vec<IpamConfig>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct IpamConfig {
    subnet: Option<String>,
    #[serde(rename = "IPRange")]
    range: Option<String>,
    gateway: Option<String>,
    auxiliary_addresses: Option<HashMap<String, String>>,
}

impl IpamConfig {
    fn is_empty(&self) -> bool {
        let is_said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let has_auxiliary = self.auxiliary_addresses.as_ref().is_some_and(|all| !all.is_empty());
        !is_said(&self.subnet) && !is_said(&self.range) && !is_said(&self.gateway) && !has_auxiliary
    }
}

/// The addresses of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Plan {
    /// `None`: one of the swarm's pool.
    subnet: Option<Ipv4Net>,
    range: Option<Ipv4Net>,
    gateway: Option<Ipv4Addr>,
    auxiliary: BTreeMap<String, Ipv4Addr>,
}

pub(super) async fn create(backend: &Arc<Backend>, asked: Asked, version: Version) -> Result<Answer, ApiError> {
    let (body, json) = asked.json_and_bytes().await?;
    let wanted: Create = wire::typed(&json)?;
    let is_overlay = wanted.driver.as_deref() == Some("overlay");
    if !is_overlay && wanted.scope.as_deref() != Some("swarm") || wanted.config_only {
        let snapshot = backend.store.snapshot();
        if snapshot.networks().any(|network| network.name == wanted.name) {
            return Err(exists(&wanted.name));
        }
        return backend
            .engine
            .send(Method::POST, version, "/networks/create", body.to_vec())
            .await;
    }
    if backend.store.snapshot().swarm().is_none() {
        return Err(ApiError::forbidden(ApiError::no_swarm().message));
    }
    let plan = check(&wanted)?;
    if backend.outside.engine().is_some() {
        let same = backend
            .engine
            .get(&format!("/networks/{}", wire::encode(&wanted.name)))
            .await;
        if same.is_ok_and(|same| same["Name"] == *wanted.name) {
            return Err(exists(&wanted.name));
        }
    }
    let sorted = |map: Option<HashMap<String, String>>| map.unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>();
    let (labels, options) = (sorted(wanted.labels), sorted(wanted.options));
    let id = new_id();
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let overlaps = |other: &Ipv4Net| {
                plan.subnet
                    .is_some_and(|subnet| subnet.contains(&other.network()) || other.contains(&subnet.network()))
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
            let network = Network {
                id: id.clone(),
                meta: Meta::new(THIS_REVISION, Time::now()),
                name: wanted.name.clone(),
                labels: labels.clone(),
                driver: "overlay".to_owned(),
                options: options.clone(),
                is_internal: wanted.internal,
                is_attachable: wanted.attachable,
                is_ingress: false,
                ipv6: false,
                subnet: plan.subnet,
                gateway: plan.gateway,
                range: plan.range,
                auxiliary: plan.auxiliary.clone(),
            };
            Ok((vec![Write::Put(Object::Network(Arc::new(network)))], ()))
        })
        .await?;
    Ok(wire::json(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" })))
}

fn exists(name: &str) -> ApiError {
    ApiError::conflict(format!("network with name {name} already exists"))
}

/// What is asked of the swarm. Errors: it cannot be had, or nobody can have it.
fn check(wanted: &Create) -> Result<Plan, ApiError> {
    let name = &wanted.name;
    if matches!(name.as_str(), "none" | "default") || name.starts_with("container:") {
        return Err(ApiError::forbidden(format!(
            "operation is not permitted on predefined {name} network "
        )));
    }
    if PREDEFINED.contains(&name.as_str()) {
        return Err(exists(name));
    }
    validate::name(name)?;
    match wanted.driver.as_deref() {
        Some("overlay") if wanted.scope.as_deref() == Some("local") => {
            return Err(ApiError::forbidden(
                "cannot downgrade network scope for overlay networks",
            ));
        }
        Some("overlay") => {}
        driver => {
            let driver = driver.filter(|driver| !driver.is_empty()).unwrap_or("bridge");
            return Err(ApiError::bad(format!(
                "driver {driver} in scope swarm: expected overlay, which is the only one that networks of the swarm have here"
            )));
        }
    }
    if wanted.config_from.as_ref().is_some_and(|from| !from.network.is_empty()) {
        return Err(ApiError::bad(
            "overlay networks do not come from config-only ones: expected no ConfigFrom",
        ));
    }
    if wanted.ingress {
        return Err(ApiError::exists("an ingress network is already present"));
    }
    if wanted.enable_ipv6 == Some(true) || wanted.enable_ipv4 == Some(false) {
        return Err(ApiError::bad(
            "EnableIPv6: expected false, and EnableIPv4 true: networks of the swarm have IPv4 and nothing else here",
        ));
    }
    match wanted.ipam.as_ref() {
        Some(ipam) => addresses(ipam),
        None => Ok(Plan::default()),
    }
}

fn addresses(ipam: &Ipam) -> Result<Plan, ApiError> {
    match ipam.driver.as_deref() {
        None | Some("" | "default") => {}
        Some(driver) => return Err(ApiError::invalid(format!("error during lookup of plugin {driver}"))),
    }
    let configs: Vec<&IpamConfig> = ipam
        .config
        .iter()
        .flatten()
        .filter(|config| !config.is_empty())
        .collect();
    let config = match configs.as_slice() {
        [] => return Ok(Plan::default()),
        [one] => one,
        several => {
            return Err(ApiError::bad(format!(
                "IPAM.Config: {} subnets: expected one, of IPv4: a network of the swarm has no more here",
                several.len()
            )));
        }
    };
    let text = config.subnet.as_deref().unwrap_or_default();
    let subnet = net("subnet", text)?;
    let within = |what: &str, text: &str| {
        let found: Option<Ipv4Addr> = text.parse().ok().filter(|addr| subnet.contains(addr));
        found.ok_or_else(|| {
            ApiError::bad(format!(
                "invalid {what} address {text}: expected an IPv4 address of the subnet {subnet}"
            ))
        })
    };
    let range = config.range.as_deref().filter(|range| !range.is_empty());
    let range = range.map(|range| net("ip-range", range)).transpose()?;
    if let Some(range) = range.filter(|range| !subnet.contains(range)) {
        return Err(ApiError::invalid(format!(
            "ipam configuration: subnet {subnet} does not contain range {range}"
        )));
    }
    let gateway = config.gateway.as_deref().filter(|gateway| !gateway.is_empty());
    let gateway = gateway.map(|gateway| within("gateway", gateway)).transpose()?;
    let mut auxiliary = BTreeMap::new();
    for (name, text) in config.auxiliary_addresses.iter().flatten() {
        auxiliary.insert(name.clone(), within("auxiliary", text)?);
    }
    Ok(Plan {
        subnet: Some(subnet),
        range,
        gateway: gateway.or_else(|| subnet.hosts().next()),
        auxiliary,
    })
}

fn net(what: &str, text: &str) -> Result<Ipv4Net, ApiError> {
    let net: Ipv4Net = text.parse().map_err(|_| {
        ApiError::bad(format!(
            "invalid {what} {text}: expected an IPv4 network such as 10.0.9.0/24"
        ))
    })?;
    match net == net.trunc() {
        true => Ok(net),
        false => Err(ApiError::bad(format!(
            "invalid network config: invalid {what} {net}: it should be {}",
            net.trunc()
        ))),
    }
}

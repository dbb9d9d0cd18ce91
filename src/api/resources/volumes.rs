//! Volumes of this node, where no engine has them: as Docker's local driver has them. Not here: how they are kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::events::Events;
use super::local_events::of_pruned_volumes;
use crate::api::outside::{Volume, VolumeError, Volumes};
use crate::api::wire::{self, Answer, ApiError, Asked, Filters, Version};
use crate::model::swarm::Time;

/// `volumes`: those of this node.
pub(in crate::api) async fn dispatch(
    volumes: Arc<dyn Volumes>,
    events: &Events,
    asked: Asked,
    rest: &[&str],
    version: Version,
) -> Result<Answer, ApiError> {
    let (get, post) = (asked.method == Method::GET, asked.method == Method::POST);
    match rest {
        [] if get => list(&*volumes, &asked).await,
        ["create"] if post => create(&*volumes, asked).await,
        ["prune"] if post => prune(&*volumes, events, &asked, version).await,
        [name] if get => inspect(&*volumes, name).await,
        [name] if asked.method == Method::DELETE => remove(&*volumes, &asked, name).await,
        _ => Err(ApiError::page_not_found()),
    }
}

fn shown(volume: &Volume) -> Value {
    json!({
        "CreatedAt": seconds(volume),
        "Driver": DRIVER,
        "Labels": Some(&volume.labels).filter(|labels| !labels.is_empty()),
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    })
}

/// As the local driver says times.
fn seconds(volume: &Volume) -> String {
    humantime::format_rfc3339_seconds(volume.created_at.into()).to_string()
}

async fn list(volumes: &dyn Volumes, asked: &Asked) -> Result<Answer, ApiError> {
    let filters = Filters::read(asked.query("filters"), &["dangling", "driver", "label", "name"])?;
    let dangling = filters.truth("dangling")?;
    let names = filters.patterns("name");
    let all = volumes.list().await.map_err(|error| failed("list", "", error))?;
    let listed = all.iter().filter(|volume| {
        dangling.is_none_or(|dangling| dangling == volume.tasks.is_empty())
            && filters.any("driver", |driver| driver == DRIVER)
            && names.are_in(&volume.name)
            && filters.exact_labels("label", |key| volume.labels.get(key).map(String::as_str))
    });
    let listed: Vec<Value> = listed.map(shown).collect();
    Ok(wire::json(
        StatusCode::OK,
        &json!({ "Volumes": listed, "Warnings": null }),
    ))
}

async fn inspect(volumes: &dyn Volumes, name: &str) -> Result<Answer, ApiError> {
    let all = volumes.list().await.map_err(|error| failed("get", name, error))?;
    match all.iter().find(|volume| volume.name == name) {
        Some(volume) => Ok(wire::json(StatusCode::OK, &shown(volume))),
        None => Err(failed("get", name, VolumeError::NotFound)),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: String,
    driver: Option<String>,
    driver_opts: Option<HashMap<String, String>>,
    labels: Option<HashMap<String, String>>,
    cluster_volume_spec: Option<Value>,
}

async fn create(volumes: &dyn Volumes, asked: Asked) -> Result<Answer, ApiError> {
    let wanted: Create = asked.json().await?;
    if let Some(driver) = wanted.driver.filter(|driver| !driver.is_empty() && driver != DRIVER) {
        return Err(ApiError::not_found(format!(
            "error looking up volume plugin {driver}: plugin \"{driver}\" not found: expected \"local\""
        )));
    }
    if wanted.cluster_volume_spec.is_some() {
        return Err(ApiError::bad(
            "ClusterVolumeSpec: there are no cluster volumes: expected none",
        ));
    }
    let options = wanted.driver_opts.unwrap_or_default();
    if let Some(option) = options.keys().min() {
        return Err(ApiError::bad(format!(
            "DriverOpts {option:?}: expected none: volumes are directories of this node here"
        )));
    }
    let mut labels: BTreeMap<String, String> = wanted.labels.unwrap_or_default().into_iter().collect();
    let name = match wanted.name.as_str() {
        "" => {
            labels.insert(ANONYMOUS.to_owned(), String::new());
            (0..4).map(|_| format!("{:016x}", fastrand::u64(..))).collect()
        }
        name => name.to_owned(),
    };
    let made = volumes.create(&name, labels).await;
    let volume = made.map_err(|error| failed("create", &name, error))?;
    Ok(wire::json(StatusCode::CREATED, &shown(&volume)))
}

async fn remove(volumes: &dyn Volumes, asked: &Asked, name: &str) -> Result<Answer, ApiError> {
    match volumes.remove(name).await {
        Ok(()) => Ok(wire::empty(StatusCode::NO_CONTENT)),
        Err(VolumeError::NotFound) if asked.is_on("force") => Ok(wire::empty(StatusCode::NO_CONTENT)),
        Err(VolumeError::NotFound) => Err(failed("get", name, VolumeError::NotFound)),
        Err(error) => Err(failed("remove", name, error)),
    }
}

/// Those that no task has; unless `all` is asked for, of these the ones that were made without a name.
async fn prune(volumes: &dyn Volumes, events: &Events, asked: &Asked, version: Version) -> Result<Answer, ApiError> {
    let filters = Filters::read(asked.query("filters"), &["all", "label", "label!"])?;
    let knows_no_others = version < Version(1, 42);
    let is_all = match filters.values("all") {
        [] => knows_no_others,
        [value] => wire::is_true(value)
            .ok_or_else(|| ApiError::bad(format!("invalid filter 'all': \"{value}\": expected true or false")))?,
        several => {
            let several = several.join(" ");
            return Err(ApiError::bad(format!(
                "invalid filter 'all=[{several}]': only one value is expected"
            )));
        }
    };
    let all = volumes.list().await.map_err(|error| failed("list", "", error))?;
    let is_meant = |volume: &&Volume| {
        let label = |key: &str| volume.labels.get(key).map(String::as_str);
        volume.tasks.is_empty()
            && (is_all || volume.labels.contains_key(ANONYMOUS))
            && filters.exact_labels("label", label)
            && !filters.is_unwanted("label!", label)
    };
    let (mut deleted, mut n_bytes) = (Vec::new(), 0_u64);
    for volume in all.iter().filter(is_meant) {
        let size = volumes.size(&volume.name).await;
        match volumes.remove(&volume.name).await {
            Ok(()) => {
                deleted.push(volume.name.clone());
                n_bytes = n_bytes.saturating_add(size);
            }
            // A task has it by now, or somebody else was quicker.
            Err(VolumeError::InUse(_) | VolumeError::NotFound) => {}
            Err(error) => return Err(failed("remove", &volume.name, error)),
        }
    }
    let at = Time::now();
    events.say(at, of_pruned_volumes(n_bytes, at));
    Ok(wire::json(
        StatusCode::OK,
        &json!({ "VolumesDeleted": deleted, "SpaceReclaimed": n_bytes }),
    ))
}

fn failed(what: &str, name: &str, error: VolumeError) -> ApiError {
    match error {
        VolumeError::NotFound => ApiError::not_found(format!("{what} {name}: no such volume")),
        VolumeError::Name(reason) => ApiError::bad(format!("{what} {name}: {reason}")),
        VolumeError::InUse(tasks) => {
            ApiError::conflict(format!("{what} {name}: volume is in use - [{}]", tasks.join(", ")))
        }
        VolumeError::Mounted(reason) => ApiError::conflict(format!("{what} {name}: {reason}")),
        VolumeError::Failed(reason) => ApiError::internal(format!("{what} {name}: {reason}")),
    }
}

pub(super) const DRIVER: &str = "local";
/// What the label of one that was made without a name is called.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

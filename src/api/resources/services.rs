//! Services: made, shown, updated, rolled back, removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bollard_stubs::models::{EndpointSpecModeEnum, MountType, ServiceSpecMode, ServiceSpecModeReplicated, TaskSpec};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::{networks, routes};
use crate::api::backend::{Backend, new_id};
use crate::api::wire::{self, Answer, ApiError, Asked, Filters, Json, Version};
use crate::api::{find, validate, view};
use crate::control::port_conflict;
use crate::model::swarm::{Key, Kind, Mode, Object, RegistryAuth, Service, ServiceSpec, Time, Write, fill_port, mode};
use crate::model::{labels, traefik};
use crate::store::{Snapshot, THIS_REVISION};

pub(in crate::api) fn list(backend: &Backend, asked: &Asked, version: Version) -> Result<Answer, ApiError> {
    let filters = Filters::parse(asked.query("filters"))?;
    let has_status = version >= Version(1, 41) && asked.truth("status")?;
    let snapshot = backend.store.snapshot();
    find::swarm(&snapshot)?;
    let filters = filters.only(&["id", "name", "label", "mode", "runtime"])?;
    let matches = |service: &&Arc<Service>| {
        let mode = mode_name(service.mode());
        filters.prefix("id", service.id.as_str())
            && filters.prefix("name", service.name())
            && filters.labels("label", |key| {
                service.spec.labels.as_ref()?.get(key).map(String::as_str)
            })
            && filters.any("mode", |wanted| wanted == mode)
            && filters.any("runtime", |wanted| wanted == "container")
    };
    let services = snapshot.services().filter(matches).map(|service| {
        let mut shown = view::service(service, false);
        if has_status {
            shown["ServiceStatus"] = view::service_status(&snapshot, service);
        }
        shown
    });
    Ok(wire::json(StatusCode::OK, &services.collect::<Vec<Value>>()))
}

pub(in crate::api) fn inspect(backend: &Backend, asked: &Asked, id: &str) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    find::swarm(&snapshot)?;
    let has_defaults = asked.truth("insertDefaults")?;
    let service = find::service(&snapshot, id)?;
    Ok(wire::json(StatusCode::OK, &view::service(&service, has_defaults)))
}

/// The spec that a body holds. Errors: also where a mode is named that there is none of, which would become another.
async fn spec_of(asked: Asked) -> Result<ServiceSpec, ApiError> {
    let (_, body) = asked.json_and_bytes().await?;
    let spec: ServiceSpec = wire::typed(&body)?;
    let default = TaskSpec::default();
    validate::runtime(spec.task_template.as_ref().unwrap_or(&default))?;
    const MODES: [&str; 4] = ["Replicated", "Global", "ReplicatedJob", "GlobalJob"];
    let is_unsaid = spec
        .mode
        .as_ref()
        .is_some_and(|mode| *mode == ServiceSpecMode::default());
    let named = match body.member("Mode") {
        Some(Json::Object(members)) if is_unsaid => members.iter().map(|(name, _)| name),
        _ => return Ok(spec),
    };
    let mut unknown = named.filter(|name| !MODES.iter().any(|mode| mode.eq_ignore_ascii_case(name)));
    match unknown.next() {
        Some(name) => Err(ApiError::bad(format!(
            "invalid Mode: \"{name}\" is none: expected one of {}",
            MODES.join(", ")
        ))),
        None => Ok(spec),
    }
}

/// As filters have them.
fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Replicated { .. } => "replicated",
        Mode::Global => "global",
        Mode::ReplicatedJob { .. } => "replicated-job",
        Mode::GlobalJob => "global-job",
    }
}

/// The spec with what is meant where nothing is said, and networks by id. Errors: in Docker's words.
fn normalized(snapshot: &Snapshot, mut spec: ServiceSpec) -> Result<ServiceSpec, ApiError> {
    validate::service(snapshot, &spec)?;
    let meant = mode(&spec);
    let mode = spec.mode.get_or_insert_with(ServiceSpecMode::default);
    if let (
        Some(job),
        Mode::ReplicatedJob {
            max_concurrent,
            total_completions,
        },
    ) = (&mut mode.replicated_job, meant)
    {
        job.max_concurrent = i64::try_from(max_concurrent).ok();
        job.total_completions = i64::try_from(total_completions).ok();
    }
    if matches!(meant, Mode::Replicated { .. }) {
        let replicated = mode.replicated.get_or_insert_with(ServiceSpecModeReplicated::default);
        replicated.replicas.get_or_insert(1);
    }
    let container = spec
        .task_template
        .as_mut()
        .and_then(|template| template.container_spec.as_mut());
    for mount in container
        .into_iter()
        .flat_map(|container| container.mounts.iter_mut().flatten())
    {
        mount.typ.get_or_insert(MountType::BIND);
    }
    if let Some(endpoint) = &mut spec.endpoint_spec {
        endpoint.mode = endpoint.mode.filter(|mode| *mode != EndpointSpecModeEnum::EMPTY);
        endpoint.mode.get_or_insert(EndpointSpecModeEnum::VIP);
        endpoint.ports.iter_mut().flatten().for_each(fill_port);
    }
    let attachments = [
        spec.task_template
            .as_mut()
            .and_then(|template| template.networks.as_mut()),
        spec.networks.as_mut(),
    ];
    for attachment in attachments.into_iter().flatten().flatten() {
        let target = attachment.target.clone().unwrap_or_default();
        // Networks of the engine, such as `host`, stay as they are.
        match find::network(snapshot, &target) {
            Ok(network) if network.is_ingress => {
                return Err(ApiError::invalid(
                    "Service cannot be explicitly attached to the ingress network \"ingress\"",
                ));
            }
            Ok(network) => attachment.target = Some(network.id.to_string()),
            Err(_) if matches!(target.as_str(), "host" | "bridge" | "none") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(spec)
}

pub(in crate::api) async fn create(backend: &Arc<Backend>, asked: Asked) -> Result<Answer, ApiError> {
    find::swarm(&backend.store.snapshot())?;
    let registry_auth = registry_auth(&asked)?;
    let mut spec = spec_of(asked).await?;
    networks::resolve(backend, &mut spec).await?;
    if spec.name.as_deref().unwrap_or_default().is_empty() {
        spec.name = Some(random_name());
    }
    let id = new_id();
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let spec = normalized(snapshot, spec.clone())?;
            refuse_labels(backend, &spec, None)?;
            routes::refuse(snapshot, &backend.outside.entry_points(), &spec, None)?;
            if let Some(conflict) = port_conflict(snapshot, &spec, None) {
                return Err(ApiError::invalid(conflict));
            }
            let service = Service::new(id.clone(), spec, registry_auth.clone(), Time::now(), THIS_REVISION);
            Ok((vec![Write::Put(Object::Service(Arc::new(service)))], ()))
        })
        .await?;
    Ok(wire::json(
        StatusCode::CREATED,
        &json!({ "ID": id, "Warnings": warnings(backend, &spec) }),
    ))
}

/// Errors: an option of ours that means nothing, and was not there `before`.
fn refuse_labels(backend: &Backend, spec: &ServiceSpec, before: Option<&ServiceSpec>) -> Result<(), ApiError> {
    let reads_traefik = backend.outside.reads_traefik();
    let ours = |spec: &ServiceSpec| -> BTreeMap<String, String> {
        let labels = spec.labels.iter().flatten();
        let ours = labels.filter(|(label, _)| labels::is_ours(label) || (reads_traefik && traefik::is_label(label)));
        ours.map(|(label, value)| (label.clone(), value.clone())).collect()
    };
    let (now, before) = (ours(spec), before.map(ours).unwrap_or_default());
    // One that is new may be of a label that is not, which does not go with the others any more.
    let known = match now == before {
        true => return Ok(()),
        false => labels::faults(&before),
    };
    let faults = labels::faults(&now).into_iter().filter(|fault| !known.contains(fault));
    let faults: Vec<String> = faults.collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(ApiError::bad(faults.join("; "))),
    }
}

/// What a user should know although it is no error; null when there is nothing.
fn warnings(backend: &Backend, spec: &ServiceSpec) -> Value {
    let mut said = Vec::new();
    let ports = spec.endpoint_spec.as_ref().and_then(|endpoint| endpoint.ports.as_ref());
    for port in ports.into_iter().flatten() {
        let protocol = port
            .protocol
            .map(|protocol| protocol.to_string())
            .filter(|protocol| !protocol.is_empty());
        let number = port
            .published_port
            .and_then(|number| u16::try_from(number).ok())
            .unwrap_or(0);
        match protocol.as_deref() {
            None | Some("tcp") => {
                if let Some(holder) = Some(number)
                    .filter(|number| *number > 0)
                    .and_then(|number| backend.outside.port_holder(number))
                {
                    said.push(format!(
                        "port {number} is held by {holder}: it is not served until that lets go of it"
                    ));
                }
            }
            Some(protocol) => said.push(format!("port {number}/{protocol} is not served yet: only tcp is")),
        }
    }
    let container = spec
        .task_template
        .as_ref()
        .and_then(|task| task.container_spec.as_ref());
    let of_containers = container.iter().flat_map(|container| container.labels.iter().flatten());
    let reads_traefik = backend.outside.reads_traefik();
    let is_meant = |label: &str| labels::is_ours(label) || (reads_traefik && traefik::is_label(label));
    for (label, _) in of_containers.filter(|(label, _)| is_meant(label)) {
        said.push(format!(
            "label {label} is the container's, where it says nothing: expected it to be the service's (--label, or deploy.labels)"
        ));
    }
    let of_service = spec.labels.iter().flatten();
    let of_service: BTreeMap<String, String> = of_service
        .map(|(label, value)| (label.clone(), value.clone()))
        .collect();
    if reads_traefik {
        said.extend(traefik::faults(&of_service));
    } else if traefik::name_routers(&of_service) {
        said.push(format!(
            "labels traefik.* are not read, since the configuration does not say labels.traefik = true: a route is said by the label {}",
            labels::ROUTE
        ));
    }
    match said.is_empty() {
        true => Value::Null,
        false => json!(said),
    }
}

/// As Docker makes them: two words.
fn random_name() -> String {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "dapper", "eager", "fleet", "gentle", "hardy", "jolly", "keen", "lucid", "mellow",
        "nimble", "quiet", "sturdy", "vivid",
    ];
    const SECOND: [&str; 16] = [
        "badger", "crane", "dolphin", "egret", "falcon", "gecko", "heron", "ibis", "jackal", "kestrel", "lynx",
        "marten", "otter", "puffin", "raven", "stoat",
    ];
    let pick = |words: &[&'static str; 16]| words[fastrand::usize(..16)];
    format!("{}_{}{}", pick(&FIRST), pick(&SECOND), fastrand::u32(..10_000))
}

pub(in crate::api) async fn update(backend: &Arc<Backend>, asked: Asked, id: &str) -> Result<Answer, ApiError> {
    let version = asked.version("service")?;
    let is_rollback = match asked.query("rollback") {
        None | Some("") => false,
        Some("previous") => true,
        Some(other) => {
            return Err(ApiError::bad(format!(
                "unrecognized rollback option {other}: expected previous"
            )));
        }
    };
    let is_previous_auth = match asked.query("registryAuthFrom") {
        None | Some("" | "spec") => false,
        Some("previous-spec") => true,
        Some(other) => {
            return Err(ApiError::bad(format!(
                "unsupported registryAuthFrom value {other}: expected spec or previous-spec"
            )));
        }
    };
    let registry_auth = registry_auth(&asked)?;
    find::swarm(&backend.store.snapshot())?;
    let mut spec = spec_of(asked).await?;
    networks::resolve(backend, &mut spec).await?;
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let service = find::service(snapshot, id)?;
            let now = Time::now();
            if is_rollback {
                if service.meta.version != version {
                    return Err(ApiError::unknown("update out of sequence"));
                }
                let next = service.rolled_back(now, THIS_REVISION);
                let next = next.ok_or_else(|| {
                    ApiError::precondition(format!("service {} does not have a previous spec", service.id))
                })?;
                let before = Some((&service.id, &*service.spec));
                routes::refuse(snapshot, &backend.outside.entry_points(), &next.spec, before)?;
                validate::replicas(snapshot, &next.spec)?;
                return Ok((vec![Write::Put(Object::Service(Arc::new(next)))], ()));
            }
            let spec = normalized(snapshot, spec.clone())?;
            refuse_labels(backend, &spec, Some(&service.spec))?;
            let before = Some((&service.id, &*service.spec));
            routes::refuse(snapshot, &backend.outside.entry_points(), &spec, before)?;
            if spec.name.as_deref() != Some(service.name()) {
                return Err(not_supported("renaming services is not supported"));
            }
            if mode_name(mode(&spec)) != mode_name(service.mode()) {
                return Err(not_supported("service mode change is not allowed"));
            }
            if spec.endpoint_spec != service.spec.endpoint_spec
                && let Some(conflict) = port_conflict(snapshot, &spec, Some(&service.id))
            {
                return Err(ApiError::invalid(conflict));
            }
            if service.meta.version != version {
                return Err(ApiError::unknown("update out of sequence"));
            }
            let known_auth = match (&service.previous, is_previous_auth) {
                (Some(previous), true) => &previous.registry_auth,
                (None, true) if registry_auth.is_none() => {
                    return Err(ApiError::bad("service does not have a previous spec"));
                }
                _ => &service.registry_auth,
            };
            let registry_auth = registry_auth.clone().or_else(|| known_auth.clone());
            let next = service.declared(spec, registry_auth, now, THIS_REVISION);
            Ok((vec![Write::Put(Object::Service(Arc::new(next)))], ()))
        })
        .await?;
    Ok(wire::json(
        StatusCode::OK,
        &json!({ "Warnings": warnings(backend, &spec) }),
    ))
}

/// What clients send with `--with-registry-auth`.
fn registry_auth(asked: &Asked) -> Result<Option<RegistryAuth>, ApiError> {
    let Some(given) = asked.headers.get("x-registry-auth") else {
        return Ok(None);
    };
    match given.to_str() {
        Ok("") => Ok(None),
        Ok(text) => Ok(Some(RegistryAuth(text.into()))),
        Err(_) => Err(ApiError::bad("X-Registry-Auth: expected JSON in base64")),
    }
}

fn not_supported(message: &str) -> ApiError {
    ApiError::not_implemented(format!("rpc error: code = Unimplemented desc = {message}"))
}

pub(in crate::api) async fn remove(backend: &Arc<Backend>, id: &str) -> Result<Answer, ApiError> {
    let (_, service) = backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let service = find::service(snapshot, id)?;
            // Its tasks follow: lists show them until they have stopped.
            let removal = Write::Remove(Key::new(Kind::Service, &service.id));
            Ok::<_, ApiError>((vec![removal], service))
        })
        .await?;
    backend.is_gone(&service);
    Ok(wire::empty(StatusCode::OK))
}

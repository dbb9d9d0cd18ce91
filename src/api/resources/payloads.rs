//! Configs and secrets: made, shown, relabelled, removed. What a secret holds never comes back out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::api::backend::{Backend, new_id};
use crate::api::wire::{self, Answer, ApiError, Asked, Filters, Json};
use crate::api::{find, view};
use crate::model::labels::payload::{self, CERTIFICATE};
use crate::model::swarm::{Key, Kind, Meta, Object, Payload, Service, Time, Write};
use crate::store::{Snapshot, THIS_REVISION};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Of {
    kind: Kind,
    bytes_max: usize,
}

const CONFIGS: Of = Of {
    kind: Kind::Config,
    bytes_max: 1_024_000,
};
const SECRETS: Of = Of {
    kind: Kind::Secret,
    bytes_max: 512_000,
};

impl Of {
    fn word(self) -> &'static str {
        self.kind.as_str()
    }

    fn find(self, snapshot: &Snapshot, text: &str) -> Result<Arc<Payload>, ApiError> {
        match self.kind {
            Kind::Config => find::config(snapshot, text),
            _ => find::secret(snapshot, text),
        }
    }

    fn object(self, payload: Payload) -> Object {
        match self.kind {
            Kind::Config => Object::Config(Arc::new(payload)),
            _ => Object::Secret(Arc::new(payload)),
        }
    }

    fn view(self, payload: &Payload) -> serde_json::Value {
        view::payload(
            payload,
            (self.kind == Kind::Config).then(|| STANDARD.encode(&payload.data)),
        )
    }

    /// The services that name it.
    fn users(self, snapshot: &Snapshot, payload: &Payload) -> Vec<String> {
        let uses = |service: &&Arc<Service>| {
            let container = service
                .spec
                .task_template
                .as_ref()
                .and_then(|template| template.container_spec.as_ref());
            let Some(container) = container else { return false };
            let is_it = |id: &Option<String>| id.as_deref() == Some(payload.id.as_str());
            match self.kind {
                Kind::Config => container
                    .configs
                    .iter()
                    .flatten()
                    .any(|config| is_it(&config.config_id)),
                _ => container
                    .secrets
                    .iter()
                    .flatten()
                    .any(|secret| is_it(&secret.secret_id)),
            }
        };
        let mut names: Vec<String> = snapshot
            .services()
            .filter(uses)
            .map(|service| service.name().to_owned())
            .collect();
        names.sort();
        names
    }
}

pub(in crate::api) async fn dispatch(backend: &Arc<Backend>, asked: Asked, rest: &[&str]) -> Result<Answer, ApiError> {
    let of = match asked.path.first().map(String::as_str) {
        Some("configs") => CONFIGS,
        _ => SECRETS,
    };
    let snapshot = backend.store.snapshot();
    let (get, post) = (asked.method == Method::GET, asked.method == Method::POST);
    match rest {
        [] if get => {
            let filters = Filters::parse(asked.query("filters"))?;
            find::swarm(&snapshot)?;
            let filters = filters.only(&["id", "name", "names", "label"])?;
            let matches = |payload: &&Arc<Payload>| {
                filters.prefix("id", payload.id.as_str())
                    && filters.prefix("name", &payload.name)
                    && filters.any("names", |name| *name == payload.name)
                    && filters.labels("label", |key| payload.labels.get(key).map(String::as_str))
            };
            let all: Vec<_> = match of.kind {
                Kind::Config => snapshot
                    .configs()
                    .filter(matches)
                    .map(|payload| of.view(payload))
                    .collect(),
                _ => snapshot
                    .secrets()
                    .filter(matches)
                    .map(|payload| of.view(payload))
                    .collect(),
            };
            Ok(wire::json(StatusCode::OK, &all))
        }
        ["create"] if post => create(backend, asked, of).await,
        [id] if get => {
            find::swarm(&snapshot)?;
            Ok(wire::json(StatusCode::OK, &of.view(&*of.find(&snapshot, id)?)))
        }
        [id] if asked.method == Method::DELETE => remove(backend, of, id).await,
        [id, "update"] if post => update(backend, asked, of, id).await,
        _ => Err(ApiError::page_not_found()),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Spec {
    name: String,
    labels: Option<HashMap<String, String>>,
    data: Option<String>,
    templating: Option<Driver>,
    driver: Option<Json>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Driver {
    name: String,
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::invalid("name must be provided"));
    }
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let is_good = name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && is_end(name.bytes().next())
        && is_end(name.bytes().last());
    match is_good {
        true => Ok(()),
        false => Err(ApiError::invalid(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        )),
    }
}

/// Base64 as Go has it: lines may end anywhere.
fn decoded(text: &str, of: Of, name: &str) -> Result<Vec<u8>, ApiError> {
    let text = text.replace(['\r', '\n'], "");
    STANDARD
        .decode(text)
        .map_err(|error| ApiError::bad(format!("Data of {} \"{name}\": {error}: expected base64", of.word())))
}

/// Errors: an option of ours that means nothing and was not there `before`, or what it holds is not what a label says.
fn check_labels(
    backend: &Backend,
    of: Of,
    next: &Payload,
    before: Option<&BTreeMap<String, String>>,
) -> Result<(), ApiError> {
    let mut unknown = payload::unknown(&next.labels);
    let was_there = |fault: &String| before.is_some_and(|before| payload::unknown(before).any(|one| one == *fault));
    if let Some(fault) = unknown.find(|fault| !was_there(fault)) {
        return Err(ApiError::bad(fault));
    }
    if !payload::is_certificate(&next.labels).map_err(ApiError::bad)? {
        return Ok(());
    }
    if next.templating.is_some() {
        let (word, name) = (of.word(), &next.name);
        return Err(ApiError::bad(format!(
            "label {CERTIFICATE}: {word} {name:?}: it is a template, which is filled in for a task alone: expected one without a template driver"
        )));
    }
    match backend.outside.certificate_fault(&next.data, of.kind == Kind::Secret) {
        None => Ok(()),
        Some(fault) => {
            let (word, name) = (of.word(), &next.name);
            Err(ApiError::bad(format!("label {CERTIFICATE}: {word} {name:?}: {fault}")))
        }
    }
}

async fn create(backend: &Arc<Backend>, asked: Asked, of: Of) -> Result<Answer, ApiError> {
    find::swarm(&backend.store.snapshot())?;
    let spec: Spec = asked.json().await?;
    check_name(&spec.name)?;
    // Configs have none.
    if let (Kind::Secret, Some(driver)) = (of.kind, spec.driver) {
        let driver: Driver = wire::typed(&driver)?;
        return Err(match driver.name.is_empty() {
            true => ApiError::invalid("secret driver must have a name"),
            false => ApiError::not_implemented("secret drivers do not work: expected the secret's data"),
        });
    }
    let data = decoded(&spec.data.unwrap_or_default(), of, &spec.name)?;
    if data.is_empty() || data.len() >= of.bytes_max {
        let most = of.bytes_max;
        return Err(ApiError::invalid(format!(
            "{} data must be larger than 0 and less than {most} bytes",
            of.word()
        )));
    }
    let labels: BTreeMap<String, String> = spec.labels.unwrap_or_default().into_iter().collect();
    let templating = spec
        .templating
        .map(|driver| driver.name)
        .filter(|name| !name.is_empty());
    let id = new_id();
    let payload = Payload {
        id: id.clone(),
        meta: Meta::new(THIS_REVISION, Time::now()),
        name: spec.name,
        labels,
        data: data.into(),
        templating,
    };
    check_labels(backend, of, &payload, None)?;
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            Ok::<_, ApiError>((vec![Write::Put(of.object(payload.clone()))], ()))
        })
        .await?;
    Ok(wire::json(StatusCode::CREATED, &json!({ "ID": id })))
}

async fn remove(backend: &Arc<Backend>, of: Of, id: &str) -> Result<Answer, ApiError> {
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let payload = of.find(snapshot, id)?;
            let users = of.users(snapshot, &payload);
            if !users.is_empty() {
                let services = if users.len() == 1 { "service" } else { "services" };
                return Err(ApiError::invalid(format!(
                    "{} '{}' is in use by the following {services}: {}",
                    of.word(),
                    payload.name,
                    users.join(", ")
                )));
            }
            Ok((vec![Write::Remove(Key::new(of.kind, &payload.id))], ()))
        })
        .await?;
    Ok(wire::empty(StatusCode::NO_CONTENT))
}

async fn update(backend: &Arc<Backend>, asked: Asked, of: Of, id: &str) -> Result<Answer, ApiError> {
    let version = asked.version(of.word())?;
    let spec: Spec = asked.json().await?;
    let only_labels = || ApiError::invalid("only updates to Labels are allowed");
    let data = spec.data.filter(|data| !data.is_empty());
    if let (Kind::Secret, Some(driver)) = (of.kind, spec.driver) {
        wire::typed::<Driver>(&driver)?;
    }
    let data = data.map(|data| decoded(&data, of, &spec.name)).transpose()?;
    let labels: BTreeMap<String, String> = spec.labels.unwrap_or_default().into_iter().collect();
    backend
        .update(|snapshot| {
            find::swarm(snapshot)?;
            let payload = of.find(snapshot, id)?;
            if payload.name != spec.name || data.as_ref().is_some_and(|data| **data != *payload.data) {
                return Err(only_labels());
            }
            if payload.meta.version != version {
                return Err(ApiError::unknown("update out of sequence"));
            }
            let mut next = Payload::clone(&payload);
            next.labels = labels.clone();
            check_labels(backend, of, &next, Some(&payload.labels))?;
            next.meta.version = THIS_REVISION;
            next.meta.updated_at = Time::now();
            Ok((vec![Write::Put(of.object(next))], ()))
        })
        .await?;
    Ok(wire::empty(StatusCode::OK))
}

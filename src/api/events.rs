//! `docker events`: what changes in the store, a JSON object in each line; tasks among it, which Docker leaves out.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::filters::Filters;
use super::http::{Answer, Asked};
use super::{Api, logs};
use crate::model::swarm::{Id, Kind, Object, Time};
use crate::store::Snapshot;

pub(super) fn stream(api: &Arc<Api>, asked: &Asked) -> Result<Answer, ApiError> {
    let known = [
        "type",
        "event",
        "scope",
        "label",
        "service",
        "node",
        "network",
        "secret",
        "config",
        "task",
        "container",
        "image",
        "volume",
        "plugin",
        "daemon",
    ];
    let filters = Filters::read(asked.query("filters"), &known)?;
    let until = logs::time(asked, "until")?;
    logs::time(asked, "since")?;
    let watching = Watching {
        changed: api.store.changed(),
        stopping: api.stopping.subscribe(),
        before: api.store.snapshot(),
        api: api.clone(),
        ready: VecDeque::new(),
        filters,
        until,
    };
    let lines = stream::unfold(watching, |mut watching| async move {
        let line = watching.next().await?;
        Some((Ok::<_, io::Error>(Frame::data(line)), watching))
    });
    let mut answer = Response::new(StreamBody::new(lines).boxed_unsync());
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}

struct Watching {
    api: Arc<Api>,
    changed: tokio::sync::watch::Receiver<u64>,
    stopping: tokio::sync::watch::Receiver<bool>,
    before: Arc<Snapshot>,
    ready: VecDeque<Bytes>,
    filters: Filters,
    until: Option<Time>,
}

impl Watching {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            let left = self.until.map(|until| until.since(Time::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let is_over = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = is_over => return None,
                _ = self.stopping.wait_for(|is_stopping| *is_stopping) => return None,
            }
            let now = self.api.store.snapshot();
            let before = std::mem::replace(&mut self.before, now.clone());
            let mut events = events(&before, &now);
            events.retain(|event| self.wants(event));
            self.ready
                .extend(events.into_iter().map(|event| Bytes::from(format!("{event}\n"))));
        }
    }

    fn wants(&self, event: &Value) -> bool {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        let attribute = |key: &str| event["Actor"]["Attributes"][key].as_str();
        let (kind, id, name) = (
            text("Type"),
            event["Actor"]["ID"].as_str().unwrap_or_default(),
            attribute("name"),
        );
        let is_named = |wanted: &String| *wanted == id || Some(wanted.as_str()) == name;
        let kinds = ["service", "node", "network", "secret", "config", "task"];
        let named = kinds.into_iter().filter(|kind| !self.filters.values(kind).is_empty());
        let is_actor = named.clone().count() == 0
            || named
                .into_iter()
                .any(|of| of == kind && self.filters.values(of).iter().any(is_named));
        self.filters.any("type", |wanted| wanted == kind)
            && self.filters.any("event", |wanted| wanted == text("Action"))
            && self.filters.any("scope", |wanted| wanted == "swarm")
            && self.filters.labels("label", attribute)
            && is_actor
    }
}

/// What was made, changed and removed between two snapshots.
fn events(before: &Snapshot, now: &Snapshot) -> Vec<Value> {
    let mut events = Vec::new();
    for (id, service) in now.services_since(before) {
        let was = before.service(id.as_str());
        let Some(known) = service.or(was) else { continue };
        let mut attributes = Map::new();
        attributes.insert("name".to_owned(), json!(known.name()));
        if let (Some(was), Some(is)) = (was, service) {
            let image = |service: &crate::model::swarm::Service| {
                let template = service.spec.task_template.clone().unwrap_or_default();
                template
                    .container_spec
                    .and_then(|container| container.image)
                    .unwrap_or_default()
            };
            let state = |service: &crate::model::swarm::Service| {
                service.update.as_ref().map_or("", |update| update.state.as_str())
            };
            let replicas =
                |service: &crate::model::swarm::Service| service.replicas().map(|n| n.to_string()).unwrap_or_default();
            for (key, old, new) in [
                ("image", image(was), image(is)),
                ("replicas", replicas(was), replicas(is)),
                ("updatestate", state(was).to_owned(), state(is).to_owned()),
            ] {
                if old != new {
                    attributes.insert(format!("{key}.old"), json!(old));
                    attributes.insert(format!("{key}.new"), json!(new));
                }
            }
        }
        events.push(event(
            "service",
            id,
            action(was.is_some(), service.is_some()),
            attributes,
        ));
    }
    for (id, task) in now.tasks_since(before) {
        let was = before.task(id.as_str());
        let Some(known) = task.or(was) else { continue };
        let mut attributes = Map::new();
        attributes.insert("name".to_owned(), json!(known.name()));
        attributes.insert("service.name".to_owned(), json!(&*known.service_name));
        attributes.insert("state".to_owned(), json!(known.status.state.as_str()));
        attributes.insert("desired".to_owned(), json!(known.desired.as_str()));
        events.push(event("task", id, action(was.is_some(), task.is_some()), attributes));
    }
    // Of the other kinds there are few.
    for kind in [Kind::Node, Kind::Network, Kind::Config, Kind::Secret] {
        let all = |snapshot: &Snapshot| {
            snapshot
                .keys()
                .into_iter()
                .filter(move |key| key.kind == kind)
                .collect::<Vec<_>>()
        };
        let mut keys = all(now);
        keys.extend(all(before).into_iter().filter(|key| now.revision_of(key).is_none()));
        for key in keys {
            if before.revision_of(&key) == now.revision_of(&key) {
                continue;
            }
            let name = match now.object(&key).or_else(|| before.object(&key)) {
                Some(Object::Node(node)) => node.hostname.clone(),
                Some(object) => object.unique_name().unwrap_or_default().to_owned(),
                None => continue,
            };
            let mut attributes = Map::new();
            attributes.insert("name".to_owned(), json!(name));
            let action = action(before.revision_of(&key).is_some(), now.revision_of(&key).is_some());
            events.push(event(kind.as_str(), &key.id, action, attributes));
        }
    }
    events
}

fn action(was: bool, is: bool) -> &'static str {
    match (was, is) {
        (false, _) => "create",
        (true, true) => "update",
        (true, false) => "remove",
    }
}

fn event(kind: &str, id: &Id, action: &str, attributes: Map<String, Value>) -> Value {
    let now = Time::now();
    json!({
        "Type": kind,
        "Action": action,
        "Actor": { "ID": id, "Attributes": attributes },
        "scope": "swarm",
        "time": now.0 / 1_000_000_000,
        "timeNano": now.0,
    })
}

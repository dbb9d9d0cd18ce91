//! Containers as `docker ps` and `docker inspect` show them. An engine knows nothing of the swarm's networks and ports, and its
//! containers that only hold the networks of tasks are nobody's: what it says of tasks is filled in here, and those are left out.
//! Without an engine processes are listed as containers are. Not here: making any of them.

use std::collections::BTreeMap;

use http_body_util::BodyExt;
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{attach, processes};
use crate::api::backend::Backend;
use crate::api::network_view;
use crate::api::wire::{self, Answer, ApiError, Asked, Filters, Patterns, Version};
use crate::model::swarm::{Container, SANDBOX_LABEL, Task, TaskState, Time};
use crate::store::Snapshot;

/// `GET /containers/json`, with an engine.
pub(in crate::api) async fn list(backend: &Backend, asked: &Asked, version: Version) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    let filters = asked.query("filters").unwrap_or_default();
    // Only the engine knows all of its filters, and says what is wrong with them.
    let networks = Filters::any_of(filters, "network");
    let is_ours = |wanted: &String| {
        let mut known = snapshot.networks();
        known.any(|network| network.name == *wanted || network.id.as_str().starts_with(wanted.as_str()))
    };
    let is_by_network = networks.iter().any(is_ours);
    let mut query: Vec<(&String, String)> = Vec::new();
    for (key, value) in &asked.query {
        let value = match key.as_str() {
            "filters" if is_by_network => Filters::without(value, "network"),
            // So many of those that are left.
            "limit" if is_by_network => continue,
            _ => value.clone(),
        };
        query.push((key, value));
    }
    let answer = backend
        .engine
        .send(
            Method::GET,
            version,
            &wire::with_query("/containers/json", query),
            Vec::new(),
        )
        .await?;
    // Whoever asks for them sees them.
    let is_for_sandboxes = filters.contains(SANDBOX_LABEL);
    amended(answer, |said| {
        let Some(containers) = said.as_array_mut() else { return };
        let sandboxes = sandbox_networks(containers);
        if !is_for_sandboxes {
            containers.retain(|container| sandbox_of(container).is_none());
        }
        for container in containers.iter_mut() {
            let Some(task) = task_of(&snapshot, &container["Labels"]) else {
                attach::show_in_list(container, &snapshot);
                continue;
            };
            let endpoints = network_view::endpoints(&snapshot, &task);
            let own = sandboxes.get(task.id.as_str()).filter(|_| endpoints.is_empty());
            let shown = own.cloned().unwrap_or(Value::Object(endpoints));
            if shown.as_object().is_some_and(|shown| !shown.is_empty()) {
                container["NetworkSettings"]["Networks"] = shown;
            }
            if container["State"] == "running" {
                container["Ports"] = ports(&snapshot, &task, container["Ports"].as_array());
            }
            hide_sandbox(&mut container["HostConfig"]);
        }
        if is_by_network {
            containers.retain(|container| is_on(container, &networks));
            let limit = asked.query("limit").and_then(|limit| limit.parse::<usize>().ok());
            containers.truncate(limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX));
        }
    })
    .await
}

/// `GET /containers/ID/json` without an engine: of a task that is a process.
pub(in crate::api) fn inspect_process(backend: &Backend, asked: &Asked) -> Result<Answer, ApiError> {
    let id = asked.path.get(1).map(String::as_str).unwrap_or_default();
    processes::inspect(backend, id, |snapshot, task| ports(snapshot, task, None))
}

/// The same with one.
pub(in crate::api) async fn inspect(
    backend: &Backend,
    asked: &Asked,
    id: &str,
    version: Version,
) -> Result<Answer, ApiError> {
    let path = wire::with_query(&format!("/containers/{}/json", wire::encode(id)), &asked.query);
    let answer = backend.engine.send(Method::GET, version, &path, Vec::new()).await?;
    let snapshot = backend.store.snapshot();
    amended(answer, |container| {
        let Some(task) = task_of(&snapshot, &container["Config"]["Labels"]) else {
            return attach::show(container, &snapshot);
        };
        let endpoints = network_view::endpoints(&snapshot, &task);
        if !endpoints.is_empty() {
            container["NetworkSettings"]["Networks"] = Value::Object(endpoints);
        }
        if container["State"]["Running"] == true {
            let mut shown = container["NetworkSettings"]["Ports"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            for port in ports(&snapshot, &task, None).as_array().into_iter().flatten() {
                let key = format!("{}/{}", port["PrivatePort"], port["Type"].as_str().unwrap_or_default());
                let public = port.get("PublicPort");
                let public = public.map(|public| json!([{ "HostIp": port["IP"], "HostPort": public.to_string() }]));
                shown.insert(key, public.unwrap_or_default());
            }
            container["NetworkSettings"]["Ports"] = Value::Object(shown);
        }
        hide_sandbox(&mut container["HostConfig"]);
    })
    .await
}

/// An answer of the engine in JSON, changed; one that says that something is wrong stays.
async fn amended(answer: Answer, change: impl FnOnce(&mut Value)) -> Result<Answer, ApiError> {
    if !answer.status().is_success() {
        return Ok(answer);
    }
    let (mut head, body) = answer.into_parts();
    let bytes = body.collect().await;
    let bytes = bytes.map_err(|error| ApiError::gateway(error.to_string()))?.to_bytes();
    let bytes = match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut said) => {
            change(&mut said);
            // What was JSON is JSON again.
            let mut bytes = serde_json::to_vec(&said).unwrap_or_default();
            bytes.push(b'\n');
            bytes.into()
        }
        Err(_) => bytes,
    };
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    head.headers.remove(TRANSFER_ENCODING);
    Ok(hyper::Response::from_parts(head, wire::whole(bytes)))
}

/// The task whose network a container holds.
fn sandbox_of(container: &Value) -> Option<&str> {
    container["Labels"].get(SANDBOX_LABEL)?.as_str()
}

/// The networks of the engine that tasks are on, by task.
fn sandbox_networks(containers: &[Value]) -> BTreeMap<String, Value> {
    let of = |container: &Value| {
        let networks = container["NetworkSettings"]["Networks"].clone();
        Some((sandbox_of(container)?.to_owned(), networks))
    };
    containers.iter().filter_map(of).collect()
}

fn task_of(snapshot: &Snapshot, labels: &Value) -> Option<std::sync::Arc<Task>> {
    let id = labels.get(TASK_LABEL)?.as_str()?;
    snapshot.task(id).cloned()
}

/// That it is another container which holds its network is nobody's affair.
fn hide_sandbox(host_config: &mut Value) {
    let mode = host_config["NetworkMode"].as_str().unwrap_or_default();
    if mode.starts_with("container:") {
        host_config["NetworkMode"] = json!("default");
    }
}

fn is_on(container: &Value, networks: &[String]) -> bool {
    let own = container["NetworkSettings"]["Networks"].as_object();
    own.into_iter().flatten().any(|(name, endpoint)| {
        let id = endpoint["NetworkID"].as_str().unwrap_or_default();
        networks
            .iter()
            .any(|wanted| wanted == name || !wanted.is_empty() && id.starts_with(wanted.as_str()))
    })
}

/// What a task listens on: of ports in ingress mode the task's own, since the node's answer for all tasks; and `others`.
fn ports(snapshot: &Snapshot, task: &Task, others: Option<&Vec<Value>>) -> Value {
    let service = snapshot.service(task.service.as_str());
    let of_service = service
        .map(|service| service.endpoint.ports.as_slice())
        .unwrap_or_default();
    let is_host = |port: &&bollard_stubs::models::EndpointPortConfig| {
        port.publish_mode == Some(bollard_stubs::models::EndpointPortConfigPublishModeEnum::HOST)
    };
    let kind = |port: &bollard_stubs::models::EndpointPortConfig| {
        port.protocol
            .map_or_else(|| "tcp".to_owned(), |protocol| protocol.to_string())
    };
    let mut all: Vec<Value> = others.cloned().unwrap_or_default();
    for port in of_service.iter().filter(|port| !is_host(port)) {
        all.push(json!({ "PrivatePort": port.target_port, "Type": kind(port) }));
    }
    for port in &task.host_ports {
        let (target, published) = (port.target_port, port.published_port);
        all.push(json!({ "IP": "0.0.0.0", "PrivatePort": target, "PublicPort": published, "Type": kind(port) }));
    }
    let mut shown: Vec<Value> = Vec::new();
    for port in all {
        if !shown.contains(&port) {
            shown.push(port);
        }
    }
    Value::Array(shown)
}

/// The same without one: the tasks that are processes, as containers.
pub(in crate::api) fn list_processes(backend: &Backend, asked: &Asked) -> Result<Answer, ApiError> {
    if backend.lock().is_some() {
        return Err(ApiError::locked());
    }
    let filters = Filters::read(asked.query("filters"), &FILTERS)?;
    let wanted = Wanted::read(&filters)?;
    let limit = match asked.query("limit").filter(|limit| !limit.is_empty()) {
        None => None,
        Some(text) => Some(
            text.parse::<i64>()
                .map_err(|_| ApiError::bad(format!("invalid limit \"{text}\": expected a number")))?,
        ),
    };
    let limit = limit
        .and_then(|limit| usize::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    // Who asks for some of those that have ended sees them.
    let is_all = asked.is_on("all")
        || limit.is_some()
        || !filters.values("status").is_empty()
        || !filters.values("exited").is_empty();
    let snapshot = backend.store.snapshot();
    let now = Time::now();
    let mut tasks: Vec<(&Task, &Container)> = snapshot
        .tasks()
        .filter_map(|task| Some((&**task, task.status.container.as_ref()?)))
        .collect();
    tasks.sort_by_key(|(task, _)| std::cmp::Reverse((task.meta.created_at, task.id.clone())));
    let shown = tasks
        .into_iter()
        .map(|(task, container)| process(&snapshot, task, container, now))
        .filter(|shown| is_all || shown["State"] == "running")
        .filter(|shown| wanted.has(shown));
    let shown: Vec<Value> = shown.take(limit.unwrap_or(usize::MAX)).collect();
    Ok(wire::json(StatusCode::OK, &shown))
}

/// What a list of processes is cut down to.
struct Wanted<'a> {
    filters: &'a Filters,
    ids: Patterns,
    names: Patterns,
    codes: Vec<i64>,
    /// All are.
    is_task: bool,
}

impl Wanted<'_> {
    /// Errors: a value that there is none of, in Docker's words.
    fn read(filters: &Filters) -> Result<Wanted<'_>, ApiError> {
        let code = |text: &String| {
            let wrong = |_| ApiError::bad(format!("invalid filter 'exited={text}': expected an exit code"));
            text.parse::<i64>().map_err(wrong)
        };
        let is_none = |state: &&String| !STATES.contains(&state.as_str());
        if let Some(state) = filters.values("status").iter().find(is_none) {
            let all = STATES.join(", ");
            return Err(ApiError::bad(format!(
                "invalid filter 'status={state}': invalid value for state ({state}): must be one of {all}"
            )));
        }
        Ok(Wanted {
            filters,
            ids: filters.patterns("id"),
            names: filters.patterns("name"),
            codes: filters.values("exited").iter().map(code).collect::<Result<_, _>>()?,
            is_task: filters.truth("is-task")?.unwrap_or(true),
        })
    }

    fn has(&self, shown: &Value) -> bool {
        let text = |key: &str| shown[key].as_str().unwrap_or_default();
        let label = |key: &str| shown["Labels"][key].as_str();
        let name = shown["Names"][0].as_str().unwrap_or_default();
        let code = text("Status")
            .strip_prefix("Exited (")
            .and_then(|rest| rest.split(')').next()?.parse::<i64>().ok());
        let networks = self.filters.values("network");
        self.is_task
            && self.ids.are_in(text("Id"))
            && (self.names.are_in(name) || self.names.are_in(name.trim_start_matches('/')))
            && self.filters.exact_labels("label", label)
            && self.filters.any("status", |state| state == text("State"))
            && (self.codes.is_empty() || code.is_some_and(|code| self.codes.contains(&code)))
            && self.filters.any("ancestor", |image| {
                text("Image") == image || text("Image").strip_suffix(":latest") == Some(image.as_str())
            })
            && (networks.is_empty() || is_on(shown, networks))
    }
}

fn process(snapshot: &Snapshot, task: &Task, container: &Container, now: Time) -> Value {
    let spec = task.spec.container_spec.clone().unwrap_or_default();
    let state = task.status.state;
    let (state, status) = match state {
        TaskState::Starting | TaskState::Running => {
            let since = task.status.ran_at.unwrap_or(task.status.at);
            ("running", format!("Up {}", duration(now.since(since).as_secs())))
        }
        state if state.is_terminal() => {
            let ago = duration(now.since(task.status.at).as_secs());
            ("exited", format!("Exited ({}) {ago} ago", container.exit_code))
        }
        _ => ("created", "Created".to_owned()),
    };
    let command: Vec<String> = spec
        .command
        .into_iter()
        .flatten()
        .chain(spec.args.into_iter().flatten())
        .collect();
    let ports = match state {
        "running" => ports(snapshot, task, None),
        _ => json!([]),
    };
    json!({
        "Id": container.id,
        "Names": [format!("/{}", task.name())],
        "Image": spec.image.unwrap_or_default(),
        "ImageID": "",
        "Command": command.join(" "),
        "Created": task.meta.created_at.0 / 1_000_000_000,
        "Ports": ports,
        "Labels": processes::labels(task),
        "State": state,
        "Status": status,
        "HostConfig": { "NetworkMode": "default" },
        "NetworkSettings": { "Networks": network_view::endpoints(snapshot, task) },
        "Mounts": [],
    })
}

/// As Docker words it, of seconds.
fn duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1_800) / 3_600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, ..48) => format!("{hours} hours"),
        (_, _, ..336) => format!("{} days", hours / 24),
        (_, _, ..1_440) => format!("{} weeks", hours / 24 / 7),
        (_, _, ..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

const TASK_LABEL: &str = "com.docker.swarm.task.id";
/// As Docker names them.
const STATES: [&str; 7] = [
    "created",
    "running",
    "paused",
    "restarting",
    "removing",
    "exited",
    "dead",
];
/// What processes can be cut down by.
const FILTERS: [&str; 8] = [
    "id", "name", "label", "status", "exited", "ancestor", "network", "is-task",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_docker_says_them() {
        for (seconds, said) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3_599, "59 minutes"),
            (3_600, "About an hour"),
            (3_600 * 47, "47 hours"),
            (3_600 * 48, "2 days"),
            (86_400 * 14, "2 weeks"),
            (86_400 * 60, "2 months"),
            (86_400 * 365 * 2, "2 years"),
        ] {
            assert_eq!(duration(seconds), said, "{seconds}");
        }
    }
}

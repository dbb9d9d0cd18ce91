//! Tasks that are processes, as containers: found by what users call them, and looked at. Not here: the list of them
//! (`container_list`).

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::task_mounts::TaskMounts;
use crate::api::backend::Backend;
use crate::api::network_view;
use crate::api::wire::{self, Answer, ApiError};
use crate::model::swarm::{Container, Task, TaskState};
use crate::store::Snapshot;

/// A container that is a process: the whole id, the name, or the beginning of an id if there is only one such.
fn find(backend: &Backend, text: &str) -> Result<(Arc<Snapshot>, Arc<Task>, Container), ApiError> {
    if backend.lock().is_some() {
        return Err(ApiError::locked());
    }
    let snapshot = backend.store.snapshot();
    let all = || {
        let with_container = |task: &'_ Arc<Task>| Some((task.clone(), task.status.container.clone()?));
        snapshot.tasks().filter_map(with_container)
    };
    let name = text.strip_prefix('/').unwrap_or(text);
    let exact = all().find(|(_, container)| container.id == text);
    let exact = exact.or_else(|| all().find(|(task, _)| task.name() == name));
    let mut begun = all().filter(|(_, container)| !text.is_empty() && container.id.starts_with(text));
    let found = match exact {
        Some(found) => Some(found),
        None => {
            let first = begun.next();
            if begun.next().is_some() {
                return Err(ApiError::bad(format!(
                    "Multiple IDs found with provided prefix: {text}"
                )));
            }
            first
        }
    };
    let found = found.ok_or_else(|| ApiError::not_found(format!("No such container: {text}")))?;
    drop(begun);
    Ok((snapshot.clone(), found.0, found.1))
}

pub(super) fn is_running(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Starting | TaskState::Running)
}

pub(super) fn not_running(container: &str) -> ApiError {
    ApiError::conflict(format!("container {container} is not running"))
}

/// The task of a container that runs, and the container's id.
pub(super) fn running(backend: &Backend, text: &str) -> Result<(Arc<Task>, String), ApiError> {
    let (_, task, container) = find(backend, text)?;
    match is_running(&task) {
        true => Ok((task, container.id)),
        false => Err(not_running(&container.id)),
    }
}

/// What Docker says of every task's container, and what its service says.
pub(super) fn labels(task: &Task) -> Map<String, Value> {
    let spec = task.spec.container_spec.as_ref();
    let of_service = spec.and_then(|spec| spec.labels.clone()).unwrap_or_default();
    let mut labels: Map<String, Value> = of_service.into_iter().map(|(key, value)| (key, json!(value))).collect();
    for (key, value) in [
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", task.id.to_string()),
        ("com.docker.swarm.task.name", task.name()),
        (
            "com.docker.swarm.node.id",
            task.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        ("com.docker.swarm.service.id", task.service.to_string()),
        ("com.docker.swarm.service.name", task.service_name.to_string()),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    labels
}

/// `GET /containers/ID/json`. `ports`: what a task that runs listens on, as a list of containers has it.
pub(super) fn inspect(
    backend: &Backend,
    text: &str,
    ports: impl Fn(&Snapshot, &Task) -> Value,
) -> Result<Answer, ApiError> {
    let (snapshot, task, container) = find(backend, text)?;
    let spec = task.spec.container_spec.clone().unwrap_or_default();
    let state = task.status.state;
    let status = match is_running(&task) {
        true => "running",
        false if state.is_terminal() => "exited",
        false => "created",
    };
    let since = task.status.ran_at.map(|at| at.to_string());
    let mut words = spec
        .command
        .clone()
        .into_iter()
        .flatten()
        .chain(spec.args.clone().into_iter().flatten());
    let mut shown_ports: Map<String, Value> = Map::new();
    if is_running(&task) {
        for port in ports(&snapshot, &task).as_array().into_iter().flatten() {
            let key = format!("{}/{}", port["PrivatePort"], port["Type"].as_str().unwrap_or_default());
            let public = port.get("PublicPort");
            let public = public.map(|public| json!([{ "HostIp": port["IP"], "HostPort": public.to_string() }]));
            shown_ports.insert(key, public.unwrap_or_default());
        }
    }
    let mounted = TaskMounts::of(backend, &task);
    let shown = json!({
        "Id": container.id,
        "Created": task.meta.created_at.to_string(),
        "Path": words.next().unwrap_or_default(),
        "Args": words.collect::<Vec<_>>(),
        "State": {
            "Status": status,
            "Running": is_running(&task),
            "Paused": false,
            "Restarting": false,
            "OOMKilled": false,
            "Dead": false,
            "Pid": if is_running(&task) { container.pid } else { 0 },
            "ExitCode": container.exit_code,
            "Error": task.status.error.clone().unwrap_or_default(),
            "StartedAt": since.unwrap_or_else(|| NEVER.to_owned()),
            "FinishedAt": if state.is_terminal() { task.status.at.to_string() } else { NEVER.to_owned() },
        },
        "Image": "",
        "Name": format!("/{}", task.name()),
        "RestartCount": 0,
        "Driver": "",
        "Platform": "linux",
        "HostConfig": mounted.host_config(&spec),
        "Mounts": mounted.shown(&task.id),
        "Config": {
            "Hostname": container.hostname,
            "User": spec.user,
            "Tty": spec.tty.unwrap_or(false),
            "Env": spec.env,
            "Cmd": spec.args,
            "Entrypoint": spec.command,
            "Image": spec.image,
            "WorkingDir": spec.dir.unwrap_or_default(),
            "Labels": labels(&task),
        },
        "NetworkSettings": {
            "Ports": shown_ports,
            "Networks": network_view::endpoints(&snapshot, &task),
        },
    });
    Ok(wire::json(StatusCode::OK, &shown))
}

/// As Go writes a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

//! What there is, by path; and the answers about the whole: ping, version, info.

use std::sync::Arc;

use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, SERVER};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::http::{self, Answer, Asked, NEWEST, OLDEST, Version};
use super::{Api, engine, events, find, logs, networks, nodes, payloads, services, swarm, tasks, view};

/// Whether a path is the swarm's, or belongs to the engine.
pub(super) fn is_ours(method: &Method, path: &[&str]) -> bool {
    match path {
        ["_ping" | "version" | "info" | "events"] => true,
        ["swarm" | "services" | "tasks" | "nodes" | "configs" | "secrets", ..] => true,
        // Containers join and leave networks of the engine.
        ["networks", _, "connect" | "disconnect"] | ["networks", "prune"] => false,
        ["networks", ..] => matches!(*method, Method::GET | Method::HEAD | Method::POST | Method::DELETE),
        _ => false,
    }
}

/// Whether an engine has such a path; where there is none, others lead nowhere.
pub(super) fn is_an_engines(path: &[&str]) -> bool {
    const FIRST: [&str; 14] = [
        "auth",
        "build",
        "commit",
        "containers",
        "debug",
        "distribution",
        "exec",
        "grpc",
        "images",
        "networks",
        "plugins",
        "session",
        "system",
        "volumes",
    ];
    path.first().is_some_and(|first| FIRST.contains(first))
}

/// Answers on a thread beside: a long list is no reason for others to wait. A few at a time.
async fn beside(
    api: &Arc<Api>,
    asked: Asked,
    answer: impl FnOnce(&Api, &Asked) -> Result<Answer, ApiError> + Send + 'static,
) -> Result<Answer, ApiError> {
    static PLACES: Semaphore = Semaphore::const_new(4);
    // An error would say that it is closed, which it never is.
    let _place = PLACES.acquire().await;
    let api = api.clone();
    let answered = tokio::task::spawn_blocking(move || answer(&api, &asked)).await;
    answered.unwrap_or_else(|error| Err(ApiError::unknown(error.to_string())))
}

pub(super) async fn dispatch(api: &Arc<Api>, asked: Asked, version: Version) -> Result<Answer, ApiError> {
    let path = asked.path.clone();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let method = asked.method.clone();
    let (get, post, delete) = (method == Method::GET, method == Method::POST, method == Method::DELETE);
    match path.as_slice() {
        ["_ping"] if get || method == Method::HEAD => Ok(ping(api, get).await),
        ["version"] if get => Ok(http::json(StatusCode::OK, &version_answer(api).await)),
        ["info"] if get => Ok(http::json(StatusCode::OK, &info(api).await)),
        ["events"] if get => events::stream(api, &asked, version).await,
        ["swarm", rest @ ..] => swarm::dispatch(api, asked, rest).await,
        ["services"] if get => beside(api, asked, move |api, asked| services::list(api, asked, version)).await,
        ["services", "create"] if post => services::create(api, asked).await,
        ["services", id] if get => services::inspect(api, &asked, id),
        ["services", id] if delete => services::remove(api, id).await,
        ["services", id, "update"] if post => services::update(api, asked, id).await,
        ["services", id, "logs"] if get => logs::of_service(api, &asked, id, version),
        ["tasks"] if get => beside(api, asked, tasks::list).await,
        ["tasks", id] if get => tasks::inspect(api, id),
        ["tasks", id, "logs"] if get => logs::of_task(api, &asked, id, version),
        ["nodes"] if get => nodes::list(api, &asked),
        ["nodes", id] if get => nodes::inspect(api, id),
        ["nodes", id] if delete => nodes::remove(api, id),
        ["nodes", id, "update"] if post => nodes::update(api, asked, id).await,
        ["configs" | "secrets", rest @ ..] => payloads::dispatch(api, asked, rest).await,
        ["networks", rest @ ..] => networks::dispatch(api, asked, rest, version).await,
        _ => Err(ApiError::page_not_found()),
    }
}

/// What each answer has in its head.
pub(super) fn stamp(headers: &mut HeaderMap) {
    let version = HeaderValue::from_str(&NEWEST.to_string());
    // What the engine beside it answered says so of itself.
    if let Ok(version) = version {
        headers.entry("Api-Version").or_insert(version);
    }
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.entry(SERVER).or_insert(HeaderValue::from_static(concat!(
        "anynode/",
        env!("CARGO_PKG_VERSION"),
        " (linux)"
    )));
}

async fn ping(api: &Api, has_body: bool) -> Answer {
    let newest = engine::newest(api).await;
    let state = match api.store.snapshot().swarm() {
        Some(_) => "active/manager",
        None => "inactive",
    };
    let mut answer = http::empty(StatusCode::OK);
    let headers = answer.headers_mut();
    // To HEAD it is not said by itself.
    headers.insert(CONTENT_LENGTH, HeaderValue::from(if has_body { 2 } else { 0 }));
    if let Ok(version) = HeaderValue::from_str(&newest.to_string()) {
        headers.insert("Api-Version", version);
    }
    headers.insert("Swarm", HeaderValue::from_static(state));
    headers.insert(
        "Builder-Version",
        HeaderValue::from_static(if api.outside.engine().is_some() { "2" } else { "1" }),
    );
    headers.insert(
        "Cache-Control",
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    headers.insert("Pragma", HeaderValue::from_static("no-cache"));
    if has_body {
        *answer.body_mut() = http::whole("OK");
    }
    answer
}

async fn version_answer(api: &Api) -> Value {
    let host = api.outside.host();
    let (newest, oldest) = (engine::newest(api).await.to_string(), OLDEST.to_string());
    let mut answer = json!({
        "Platform": { "Name": "anynode" },
        "Components": [{
            "Name": "Engine",
            "Version": env!("CARGO_PKG_VERSION"),
            "Details": { "ApiVersion": newest, "MinAPIVersion": oldest, "Os": "linux", "Arch": go_arch(&host.architecture) },
        }],
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": newest,
        "MinAPIVersion": oldest,
        "Os": "linux",
        "Arch": go_arch(&host.architecture),
        "KernelVersion": host.kernel,
        "GitCommit": "",
        "GoVersion": "",
        "BuildTime": "",
    });
    // The engine beside it is a component.
    if let Ok(Value::Object(engine)) = engine::get(api, "/version").await {
        let component = json!({
            "Name": "Docker Engine",
            "Version": engine.get("Version").cloned().unwrap_or_default(),
            "Details": { "ApiVersion": engine.get("ApiVersion").cloned().unwrap_or_default() },
        });
        if let Some(components) = answer["Components"].as_array_mut() {
            components.push(component);
        }
    }
    answer
}

/// Architectures have other names there.
fn go_arch(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn info(api: &Api) -> Value {
    let host = api.outside.host();
    let mut info = match engine::get(api, "/info").await {
        Ok(info @ Value::Object(_)) => info,
        _ => json!({
            "ID": "",
            "Containers": 0, "ContainersRunning": 0, "ContainersPaused": 0, "ContainersStopped": 0, "Images": 0,
            "Driver": "none",
            "Plugins": { "Volume": [], "Network": ["overlay"], "Authorization": null, "Log": [] },
            "MemoryLimit": true, "SwapLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": true, "CPUSet": true,
            "PidsLimit": true, "IPv4Forwarding": true,
            "OSType": "linux",
            "Architecture": host.architecture,
            "KernelVersion": host.kernel,
            "NCPU": host.nano_cpus / 1_000_000_000,
            "MemTotal": host.memory,
            "Name": host.hostname,
            "ServerVersion": env!("CARGO_PKG_VERSION"),
            "LoggingDriver": "json-file",
            "CgroupDriver": "none",
            "SecurityOptions": [],
            "Warnings": [],
        }),
    };
    let snapshot = api.store.snapshot();
    info["Swarm"] = match snapshot.swarm() {
        None => json!({
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
            "RemoteManagers": null,
        }),
        Some(swarm) => {
            let node = find::node(&snapshot, "self").ok();
            let addr = node.as_ref().map(|node| node.addr.to_string()).unwrap_or_default();
            let manager = node.map(|node| std::net::SocketAddr::new(node.addr, swarm::PORT).to_string());
            json!({
                "NodeID": swarm.node,
                "NodeAddr": addr,
                "LocalNodeState": "active",
                "ControlAvailable": true,
                "Error": "",
                "RemoteManagers": [{ "NodeID": swarm.node, "Addr": manager.unwrap_or_default() }],
                "Nodes": snapshot.nodes().count(),
                "Managers": 1,
                "Cluster": view::swarm(swarm, false),
            })
        }
    };
    info
}

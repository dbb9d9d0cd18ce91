//! The answers about the whole: ping, version, info.

use crate::api::backend::Backend;
use crate::api::view;
use crate::api::wire::{self, Answer, LOCKED, OLDEST};
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

pub(in crate::api) async fn ping(backend: &Backend, has_body: bool) -> Answer {
    let newest = backend.engine.newest().await;
    let state = match backend.store.snapshot().swarm() {
        Some(_) => "active/manager",
        None if backend.lock().is_some() => "locked",
        None => "inactive",
    };
    let mut answer = wire::empty(StatusCode::OK);
    let headers = answer.headers_mut();
    // To HEAD it is not said by itself.
    headers.insert(CONTENT_LENGTH, HeaderValue::from(if has_body { 2 } else { 0 }));
    if let Ok(version) = HeaderValue::from_str(&newest.to_string()) {
        headers.insert("Api-Version", version);
    }
    headers.insert("Swarm", HeaderValue::from_static(state));
    headers.insert(
        "Builder-Version",
        HeaderValue::from_static(if backend.outside.engine().is_some() { "2" } else { "1" }),
    );
    headers.insert(
        "Cache-Control",
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    headers.insert("Pragma", HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if has_body {
        *answer.body_mut() = wire::whole("OK");
    }
    answer
}

pub(in crate::api) async fn version(backend: &Backend) -> Value {
    let host = backend.outside.host();
    let (newest, oldest) = (backend.engine.newest().await.to_string(), OLDEST.to_string());
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
    // The engine beside it is a component, and so are its own.
    if let Ok(engine) = backend.engine.get("/version").await
        && let Some(components) = answer["Components"].as_array_mut()
    {
        components.extend(components_of(&engine));
    }
    answer
}

/// What an engine is made of, as it says of itself. Engines of old have no components.
fn components_of(engine: &Value) -> Vec<Value> {
    const NAME: &str = "Docker Engine";
    let own = engine["Components"].as_array().cloned().unwrap_or_default();
    if own.is_empty() {
        let details = [
            "ApiVersion",
            "MinAPIVersion",
            "GitCommit",
            "GoVersion",
            "Os",
            "Arch",
            "KernelVersion",
            "BuildTime",
        ];
        let details = details
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), engine.get(key)?.clone())));
        return vec![
            json!({ "Name": NAME, "Version": engine["Version"], "Details": Value::Object(details.collect()) }),
        ];
    }
    let renamed = own.into_iter().map(|mut component| {
        // The command line shows only the first of that name, which is anynode.
        if component["Name"] == "Engine" {
            component["Name"] = json!(NAME);
        }
        component
    });
    renamed.collect()
}

/// Architectures have other names there.
fn go_arch(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(in crate::api) async fn info(backend: &Backend) -> Value {
    let host = backend.outside.host();
    let volume_drivers = backend.outside.volumes().map_or(Vec::new(), |_| vec!["local"]);
    let mut info = match backend.engine.get("/info").await {
        Ok(info @ Value::Object(_)) => info,
        _ => json!({
            "ID": "",
            "Containers": 0, "ContainersRunning": 0, "ContainersPaused": 0, "ContainersStopped": 0, "Images": 0,
            "Driver": "none",
            "Plugins": { "Volume": volume_drivers, "Network": ["overlay"], "Authorization": null, "Log": [] },
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
    if !host.generic.is_empty() {
        info["GenericResources"] = json!(host.generic.shown());
    }
    let snapshot = backend.store.snapshot();
    info["Swarm"] = match snapshot.swarm() {
        None => {
            let (state, error) = match backend.lock() {
                Some(_) => ("locked", LOCKED),
                None => ("inactive", ""),
            };
            json!({
                "NodeID": "", "NodeAddr": "", "LocalNodeState": state, "ControlAvailable": false, "Error": error,
                "RemoteManagers": null,
            })
        }
        Some(swarm) => {
            let node = snapshot.node(swarm.node.as_str());
            let addr = node.as_ref().map(|node| node.addr.to_string()).unwrap_or_default();
            let manager = node.map(|node| std::net::SocketAddr::new(node.addr, view::SWARM_PORT).to_string());
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

//! Objects as the Docker API shows them: what is always there, what is left out when empty.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::network_view;
use crate::model::swarm::{Meta, Mode, Node, Payload, Service, ServiceSpec, Swarm, Task, TaskSpec, TaskState, tidy};
use crate::store::Snapshot;

/// Where other nodes will find this one.
pub(super) const SWARM_PORT: u16 = 2377;

/// Plain structs with string keys serialize without fail.
fn value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn with_meta(id: &str, meta: &Meta, rest: Value) -> Value {
    let mut all = json!({
        "ID": id,
        "Version": { "Index": meta.version },
        "CreatedAt": meta.created_at.to_string(),
        "UpdatedAt": meta.updated_at.to_string(),
    });
    if let (Some(all), Value::Object(rest)) = (all.as_object_mut(), rest) {
        all.extend(rest);
    }
    all
}

fn default(object: &mut Value, key: &str, default: Value) {
    if let Some(object) = object.as_object_mut() {
        object.entry(key).or_insert(default);
    }
}

/// The member of `object` under `key`, made if it is not there.
fn member<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    &mut object[key]
}

fn task_spec(spec: &TaskSpec) -> Value {
    let mut spec = value(spec);
    tidy(&mut spec, "TaskTemplate");
    default(&mut spec, "ForceUpdate", json!(0));
    default(&mut spec, "Runtime", json!("container"));
    // The command line takes it for granted.
    default(&mut spec, "ContainerSpec", json!({}));
    default(&mut spec["ContainerSpec"], "Isolation", json!("default"));
    if let Some(container) = spec["ContainerSpec"].as_object_mut()
        && let Some(check) = container.remove("HealthCheck")
    {
        container.insert("Healthcheck".to_owned(), check);
    }
    spec
}

pub(super) fn service_spec(spec: &ServiceSpec, has_defaults: bool) -> Value {
    let mut all = value(spec);
    tidy(&mut all, "");
    default(&mut all, "Labels", json!({}));
    all["TaskTemplate"] = task_spec(&spec.task_template.clone().unwrap_or_default());
    if all.get("EndpointSpec").is_some() {
        default(&mut all["EndpointSpec"], "Mode", json!("vip"));
    }
    if !has_defaults {
        return all;
    }
    let template = member(&mut all, "TaskTemplate");
    let container = member(template, "ContainerSpec");
    default(container, "StopGracePeriod", json!(10_000_000_000_i64));
    default(container, "DNSConfig", json!({}));
    default(template, "Resources", json!({}));
    default(template, "RestartPolicy", json!({}));
    let restart = member(template, "RestartPolicy");
    default(restart, "Condition", json!("any"));
    default(restart, "Delay", json!(5_000_000_000_i64));
    default(restart, "MaxAttempts", json!(0));
    default(template, "Placement", json!({}));
    for key in ["UpdateConfig", "RollbackConfig"] {
        default(&mut all, key, json!({ "Parallelism": 1 }));
        default(&mut all[key], "Monitor", json!(5_000_000_000_i64));
        tidy(&mut all[key], key);
    }
    all
}

pub(super) fn service(service: &Service, has_defaults: bool) -> Value {
    let mut endpoint = json!({});
    // What was said of it: the allocator's has Docker's defaults in it.
    if let Some(spec) = service
        .endpoint
        .spec
        .as_ref()
        .filter(|_| service.spec.endpoint_spec.is_some())
    {
        endpoint["Spec"] = value(spec);
        default(&mut endpoint["Spec"], "Mode", json!("vip"));
    } else {
        endpoint["Spec"] = json!({});
    }
    if !service.endpoint.ports.is_empty() {
        endpoint["Ports"] = value(&service.endpoint.ports);
    }
    if !service.endpoint.vips.is_empty() {
        let vips = service.endpoint.vips.iter();
        let vips = vips.map(|vip| json!({ "NetworkID": vip.network, "Addr": format!("{}/{}", vip.addr, vip.prefix) }));
        endpoint["VirtualIPs"] = vips.collect();
    }
    let mut all = with_meta(
        service.id.as_str(),
        &service.meta,
        json!({ "Spec": service_spec(&service.spec, has_defaults), "Endpoint": endpoint }),
    );
    if let Some(previous) = &service.previous {
        all["PreviousSpec"] = service_spec(&previous.spec, has_defaults);
    }
    if let Some(update) = &service.update {
        let mut status = json!({
            "State": update.state.as_str(),
            "StartedAt": update.started_at.to_string(),
            "Message": update.message,
        });
        if let Some(at) = update.completed_at {
            status["CompletedAt"] = json!(at.to_string());
        }
        all["UpdateStatus"] = status;
    }
    if let Some(job) = &service.job {
        all["JobStatus"] = json!({
            "JobIteration": iteration(job.iteration),
            "LastExecution": job.last_execution.to_string(),
        });
    }
    all
}

/// A version, as which Docker has them.
fn iteration(n: u64) -> Value {
    match n {
        0 => json!({}),
        n => json!({ "Index": n }),
    }
}

/// How many of its tasks run, are wished for, and have completed in a job's present run.
pub(super) fn service_status(snapshot: &Snapshot, service: &Service) -> Value {
    let tasks = || snapshot.tasks_of_service(service.id.as_str());
    let is_present = |task: &Task| match (&service.job, &task.job) {
        (Some(status), Some(run)) => status.iteration == run.iteration,
        _ => false,
    };
    let is_completed = |task: &Task| task.status.state == TaskState::Complete;
    let running = tasks().filter(|task| task.status.state == TaskState::Running).count();
    let desired = match service.mode() {
        Mode::Replicated { replicas } => replicas,
        Mode::ReplicatedJob { max_concurrent, .. } => max_concurrent,
        Mode::Global => tasks().filter(|task| task.desired == TaskState::Running).count() as u64,
        Mode::GlobalJob => {
            let is_to_complete = |task: &Task| task.desired == TaskState::Complete && !is_completed(task);
            tasks().filter(|task| is_present(task) && is_to_complete(task)).count() as u64
        }
    };
    let completed = tasks().filter(|task| is_present(task) && is_completed(task)).count();
    json!({ "RunningTasks": running, "DesiredTasks": desired, "CompletedTasks": completed })
}

/// `fault` is what is wrong besides what the task itself says.
pub(super) fn task(snapshot: &Snapshot, task: &Task, fault: Option<String>) -> Value {
    let mut status = json!({
        "Timestamp": task.status.at.to_string(),
        "State": task.status.state.as_str(),
        "Message": task.status.message,
        "PortStatus": {},
    });
    if let Some(error) = task.status.error.clone().or(fault) {
        status["Err"] = json!(error);
    }
    if let Some(container) = &task.status.container {
        status["ContainerStatus"] = json!({
            "ContainerID": container.id,
            "PID": container.pid,
            "ExitCode": container.exit_code,
        });
    }
    if !task.host_ports.is_empty() && task.status.state == TaskState::Running {
        status["PortStatus"] = json!({ "Ports": value(&task.host_ports) });
    }
    let mut all = with_meta(
        task.id.as_str(),
        &task.meta,
        json!({
            "Labels": {},
            "Spec": task_spec(&task.spec),
            "ServiceID": task.service,
            "Status": status,
            "DesiredState": task.desired.as_str(),
            "Volumes": null,
        }),
    );
    if !task.generic.is_empty() {
        all["GenericResources"] = json!(task.generic.shown());
    }
    if task.slot > 0 {
        all["Slot"] = json!(task.slot);
    }
    if let Some(node) = &task.node {
        all["NodeID"] = json!(node);
    }
    if let Some(run) = &task.job {
        all["JobIteration"] = iteration(run.iteration);
    }
    let attachments = network_view::attachments(snapshot, task);
    if !attachments.is_empty() {
        all["NetworksAttachments"] = json!(attachments);
    }
    all
}

/// What the certificates of a swarm's nodes are trusted by.
fn tls_info(swarm: Option<&Swarm>) -> Value {
    let authority = swarm.and_then(|swarm| swarm.authority.as_ref());
    authority.map_or_else(
        || json!({}),
        |authority| {
            json!({
                "TrustRoot": authority.certificate,
                "CertIssuerSubject": authority.subject,
                "CertIssuerPublicKey": authority.public_key,
            })
        },
    )
}

/// `swarm`: the one that it is a node of.
pub(super) fn node(node: &Node, swarm: Option<&Swarm>) -> Value {
    let mut spec = value(&node.spec);
    default(&mut spec, "Labels", json!({}));
    let mut engine = json!({ "EngineVersion": node.engine_version });
    if !node.engine_labels.is_empty() {
        engine["Labels"] = json!(node.engine_labels);
    }
    let mut resources = json!({ "NanoCPUs": node.nano_cpus, "MemoryBytes": node.memory });
    if !node.generic.is_empty() {
        resources["GenericResources"] = json!(node.generic.shown());
    }
    let mut all = with_meta(
        node.id.as_str(),
        &node.meta,
        json!({
            "Spec": spec,
            "Description": {
                "Hostname": node.hostname,
                "Platform": { "Architecture": node.architecture, "OS": node.os },
                "Resources": resources,
                "Engine": engine,
                "TLSInfo": tls_info(swarm),
            },
            "Status": { "State": if node.is_up { "ready" } else { "down" }, "Addr": node.addr },
        }),
    );
    if node.is_manager {
        all["ManagerStatus"] = json!({
            "Leader": true,
            "Reachability": "reachable",
            "Addr": std::net::SocketAddr::new(node.addr, SWARM_PORT).to_string(),
        });
    }
    all
}

/// `data`: only configs ever show theirs.
pub(super) fn payload(payload: &Payload, data: Option<String>) -> Value {
    let mut spec = json!({ "Name": payload.name, "Labels": payload.labels });
    if let Some(data) = data {
        spec["Data"] = json!(data);
    }
    if let Some(driver) = &payload.templating {
        spec["Templating"] = json!({ "Name": driver });
    }
    with_meta(payload.id.as_str(), &payload.meta, json!({ "Spec": spec }))
}

/// Tokens are for those who ask for the swarm itself.
pub(super) fn swarm(swarm: &Swarm, has_tokens: bool) -> Value {
    let mut spec = value(&swarm.spec);
    default(&mut spec, "Labels", json!({}));
    for key in [
        "Orchestration",
        "Raft",
        "Dispatcher",
        "CAConfig",
        "TaskDefaults",
        "EncryptionConfig",
    ] {
        default(&mut spec, key, json!({}));
    }
    default(&mut spec["EncryptionConfig"], "AutoLockManagers", json!(false));
    default(&mut spec["Raft"], "KeepOldSnapshots", json!(0));
    let mut all = with_meta(
        swarm.id.as_str(),
        &swarm.meta,
        json!({
            "Spec": spec,
            "TLSInfo": tls_info(Some(swarm)),
            "RootRotationInProgress": false,
            "DefaultAddrPool": swarm.addr_pool,
            "SubnetSize": swarm.subnet_size,
            "DataPathPort": swarm.data_path_port,
        }),
    );
    if has_tokens {
        all["JoinTokens"] = json!({ "Worker": swarm.join_token_worker, "Manager": swarm.join_token_manager });
    }
    all
}

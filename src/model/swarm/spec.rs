//! What a spec means: Docker's defaults filled in, and which specs are the same however they are spelled.

use std::time::Duration;

use bollard_stubs::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum, EndpointPortConfigPublishModeEnum, EndpointSpec,
    EndpointSpecModeEnum, ServiceSpec, ServiceSpecRollbackConfigFailureActionEnum as RollbackAction,
    ServiceSpecRollbackConfigOrderEnum as RollbackOrder, ServiceSpecUpdateConfigFailureActionEnum as UpdateAction,
    ServiceSpecUpdateConfigOrderEnum as UpdateOrder, TaskSpec, TaskSpecRestartPolicyConditionEnum as Condition,
};
use serde_json::{Map, Value};

use super::Mode;
use super::tidy::tidy;

/// How slots are replaced, every default filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateConfig {
    /// Slots at a time; 0 for all at once.
    pub parallelism: u64,
    /// Between a slot's new task running and the next slot.
    pub delay: Duration,
    pub on_failure: OnFailure,
    /// How long after it runs the end of a new task is a failure of the update.
    pub monitor: Duration,
    /// More failed slots than this part of them are too many.
    pub max_failure_ratio: f64,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    StopFirst,
    StartFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    Pause,
    Continue,
    Rollback,
}

/// When a task that ended is followed by another, every default filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// Between the end of one and the start of the next.
    pub delay: Duration,
    /// 0 for no limit.
    pub max_attempts: u64,
    /// Attempts longer ago do not count; zero when all do.
    pub window: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCondition {
    None,
    OnFailure,
    Any,
}

const DEFAULT_MONITOR: Duration = Duration::from_secs(5);
const DEFAULT_RESTART_DELAY: Duration = Duration::from_secs(5);
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

fn nanos(value: Option<i64>) -> Duration {
    Duration::from_nanos(u64::try_from(value.unwrap_or(0)).unwrap_or(0))
}

fn count(value: Option<i64>, default: u64) -> u64 {
    value.map_or(default, |value| u64::try_from(value).unwrap_or(0))
}

fn monitor(value: Option<i64>) -> Duration {
    match nanos(value) {
        Duration::ZERO => DEFAULT_MONITOR,
        monitor => monitor,
    }
}

/// With every default filled in. Counts below zero are zero.
pub fn mode(spec: &ServiceSpec) -> Mode {
    let mode = spec.mode.clone().unwrap_or_default();
    if let Some(job) = mode.replicated_job {
        let max_concurrent = count(job.max_concurrent, 1);
        return Mode::ReplicatedJob {
            max_concurrent,
            total_completions: count(job.total_completions, max_concurrent),
        };
    }
    if mode.global_job.is_some() {
        return Mode::GlobalJob;
    }
    if mode.global.is_some() {
        return Mode::Global;
    }
    Mode::Replicated {
        replicas: count(mode.replicated.and_then(|replicated| replicated.replicas), 1),
    }
}

/// Its tasks are to end, and not to run on.
pub fn is_job(spec: &ServiceSpec) -> bool {
    matches!(mode(spec), Mode::ReplicatedJob { .. } | Mode::GlobalJob)
}

pub fn update_config(spec: &ServiceSpec) -> UpdateConfig {
    let config = spec.update_config.clone().unwrap_or_default();
    let is_given = spec.update_config.is_some();
    UpdateConfig {
        // Where there is a config without a parallelism, it was written as zero.
        parallelism: count(config.parallelism, u64::from(!is_given)),
        delay: nanos(config.delay),
        on_failure: match config.failure_action {
            Some(UpdateAction::CONTINUE) => OnFailure::Continue,
            Some(UpdateAction::ROLLBACK) => OnFailure::Rollback,
            _ => OnFailure::Pause,
        },
        monitor: monitor(config.monitor),
        max_failure_ratio: config.max_failure_ratio.unwrap_or(0.0),
        order: match config.order {
            Some(UpdateOrder::START_FIRST) => Order::StartFirst,
            _ => Order::StopFirst,
        },
    }
}

/// Of the spec that is being returned to.
pub fn rollback_config(spec: &ServiceSpec) -> UpdateConfig {
    let config = spec.rollback_config.clone().unwrap_or_default();
    let is_given = spec.rollback_config.is_some();
    UpdateConfig {
        parallelism: count(config.parallelism, u64::from(!is_given)),
        delay: nanos(config.delay),
        on_failure: match config.failure_action {
            Some(RollbackAction::CONTINUE) => OnFailure::Continue,
            _ => OnFailure::Pause,
        },
        monitor: monitor(config.monitor),
        max_failure_ratio: config.max_failure_ratio.unwrap_or(0.0),
        order: match config.order {
            Some(RollbackOrder::START_FIRST) => Order::StartFirst,
            _ => Order::StopFirst,
        },
    }
}

pub fn restart_policy(spec: &TaskSpec) -> RestartPolicy {
    let policy = spec.restart_policy.clone().unwrap_or_default();
    RestartPolicy {
        condition: match policy.condition {
            Some(Condition::NONE) => RestartCondition::None,
            Some(Condition::ON_FAILURE) => RestartCondition::OnFailure,
            _ => RestartCondition::Any,
        },
        delay: policy.delay.map_or(DEFAULT_RESTART_DELAY, |delay| nanos(Some(delay))),
        max_attempts: count(policy.max_attempts, 0),
        window: nanos(policy.window),
    }
}

/// How long a task's program has between the stop signal and its end by force.
pub fn stop_grace(spec: &TaskSpec) -> Duration {
    let container = spec.container_spec.as_ref();
    let grace = container.and_then(|container| container.stop_grace_period);
    grace.map_or(DEFAULT_STOP_GRACE, |grace| nanos(Some(grace)))
}

/// Whether tasks made by one spec are as good as those made by the other. Where a task may be placed is not part of this,
/// nor are labels of the service, the number of replicas, and how updates go.
pub fn is_same_template(one: &ServiceSpec, other: &ServiceSpec) -> bool {
    canonical_template(one) == canonical_template(other)
}

/// What tasks are made by, spelled in one way: null, empty text, empty lists and objects and defaults left out.
pub fn canonical_template(spec: &ServiceSpec) -> Value {
    let mut template = spec.task_template.clone().unwrap_or_default();
    template.placement = None;
    template.force_update = template.force_update.filter(|force| *force != 0);
    // `container` is what a task runs by if nothing else is said.
    template.runtime = template.runtime.filter(|runtime| runtime != "container");
    if template.networks.as_ref().is_none_or(Vec::is_empty) {
        template.networks = spec.networks.clone();
    }
    let mut canonical = Map::new();
    let restart = restart_policy(&template);
    canonical.insert("restart".to_owned(), Value::String(format!("{restart:?}")));
    template.restart_policy = None;
    // Plain structs with string keys serialize without fail.
    let mut template = serde_json::to_value(template).unwrap_or_default();
    // What Docker shows is as good as what was said.
    tidy(&mut template, "TaskTemplate");
    let mut forget = |pointer: &str, key: &str, silent: Value| {
        if let Some(object) = template.pointer_mut(pointer).and_then(Value::as_object_mut)
            && object.get(key).is_some_and(|value| *value == silent)
        {
            object.remove(key);
        }
    };
    forget("/ContainerSpec", "Isolation", Value::String("default".to_owned()));
    forget("/ContainerSpec/Privileges", "NoNewPrivileges", Value::Bool(false));
    canonical.insert("task".to_owned(), pruned(template));
    canonical.insert("endpoint".to_owned(), canonical_endpoint(spec.endpoint_spec.as_ref()));
    Value::Object(canonical)
}

fn canonical_endpoint(spec: Option<&EndpointSpec>) -> Value {
    let mut spec = spec.cloned().unwrap_or_default();
    if !matches!(spec.mode, Some(EndpointSpecModeEnum::DNSRR)) {
        spec.mode = Some(EndpointSpecModeEnum::VIP);
    }
    for port in spec.ports.iter_mut().flatten() {
        fill_port(port);
        port.published_port = port.published_port.filter(|port| *port != 0);
    }
    let key = |port: &EndpointPortConfig| {
        let protocol = port.protocol.map(|protocol| protocol.to_string());
        (port.target_port, port.published_port, protocol)
    };
    spec.ports.iter_mut().for_each(|ports| ports.sort_by_key(key));
    pruned(serde_json::to_value(spec).unwrap_or_default())
}

/// Fills in what a published port has by default: tcp, through every node.
pub fn fill_port(port: &mut EndpointPortConfig) {
    if matches!(port.protocol, None | Some(EndpointPortConfigProtocolEnum::EMPTY)) {
        port.protocol = Some(EndpointPortConfigProtocolEnum::TCP);
    }
    if matches!(port.publish_mode, None | Some(EndpointPortConfigPublishModeEnum::EMPTY)) {
        port.publish_mode = Some(EndpointPortConfigPublishModeEnum::INGRESS);
    }
}

/// Without what says nothing.
fn pruned(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(key, value)| (key, pruned(value)));
            Value::Object(members.filter(|(_, value)| !is_silent(value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(pruned).collect()),
        value => value,
    }
}

fn is_silent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> ServiceSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_same_however_it_is_spelled() {
        let plain = spec(json!({
            "Name": "web",
            "TaskTemplate": { "ContainerSpec": { "Image": "nginx:1" } },
            "EndpointSpec": { "Ports": [{ "TargetPort": 80, "PublishedPort": 8080 }] },
        }));
        let wordy = spec(json!({
            "Name": "web",
            "Labels": { "a": "b" },
            "TaskTemplate": {
                "ContainerSpec": { "Image": "nginx:1", "Env": [], "Labels": {}, "Dir": "", "Privileges": { "SELinuxContext": null } },
                "Resources": { "Limits": {}, "Reservations": {} },
                "Placement": { "Constraints": ["node.role==manager"] },
                "ForceUpdate": 0,
                "Runtime": "container",
            },
            "Mode": { "Replicated": { "Replicas": 5 } },
            "UpdateConfig": { "Parallelism": 3 },
            "EndpointSpec": {
                "Mode": "vip",
                "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" }],
            },
        }));
        assert!(is_same_template(&plain, &wordy));
    }

    #[test]
    fn what_makes_another_template() {
        let base = json!({ "TaskTemplate": { "ContainerSpec": { "Image": "nginx:1" } } });
        for (what, other) in [
            (
                "image",
                json!({ "TaskTemplate": { "ContainerSpec": { "Image": "nginx:2" } } }),
            ),
            (
                "init",
                json!({ "TaskTemplate": { "ContainerSpec": { "Image": "nginx:1", "Init": false } } }),
            ),
            (
                "force",
                json!({ "TaskTemplate": { "ContainerSpec": { "Image": "nginx:1" }, "ForceUpdate": 1 } }),
            ),
            (
                "port",
                json!({
                    "TaskTemplate": { "ContainerSpec": { "Image": "nginx:1" } },
                    "EndpointSpec": { "Ports": [{ "TargetPort": 80 }] }
                }),
            ),
        ] {
            assert!(!is_same_template(&spec(base.clone()), &spec(other)), "{what}");
        }
    }

    #[test]
    fn defaults_are_dockers() {
        let plain = spec(json!({ "TaskTemplate": {} }));
        let update = update_config(&plain);
        assert_eq!((update.parallelism, update.monitor), (1, Duration::from_secs(5)));
        assert_eq!((update.order, update.on_failure), (Order::StopFirst, OnFailure::Pause));
        let all = spec(json!({ "TaskTemplate": {}, "UpdateConfig": { "Parallelism": 0, "Order": "start-first" } }));
        assert_eq!(update_config(&all).parallelism, 0);
        assert_eq!(update_config(&all).order, Order::StartFirst);
        let restart = restart_policy(plain.task_template.as_ref().unwrap());
        assert_eq!(
            (restart.condition, restart.delay),
            (RestartCondition::Any, Duration::from_secs(5))
        );
        let none: TaskSpec = serde_json::from_value(json!({ "RestartPolicy": { "Delay": 0 } })).unwrap();
        assert_eq!(restart_policy(&none).delay, Duration::ZERO);
    }
}

//! What is wrong with a service's spec, in Docker's words.

use std::collections::{BTreeMap, BTreeSet};

use bollard_stubs::models::{
    EndpointPortConfigPublishModeEnum as PublishMode, EndpointSpecModeEnum, GenericResourcesInner, HealthConfig,
    TaskSpec, TaskSpecContainerSpec,
};

use super::templates;
use super::wire::ApiError;
use crate::control::{Constraint, REPLICAS_MAX, TASKS_MAX, tasks_asked_for};
use crate::model::swarm::{Mode, ServiceSpec, fill_port, mode as mode_of};
use crate::store::Snapshot;

pub(super) fn service(snapshot: &Snapshot, spec: &ServiceSpec) -> Result<(), ApiError> {
    name(spec.name.as_deref().unwrap_or_default())?;
    mode(spec)?;
    replicas(snapshot, spec)?;
    ports(snapshot, spec)?;
    update(spec)?;
    let template = spec.task_template.clone().unwrap_or_default();
    task(&template)?;
    templates::check(spec)?;
    let container = template.container_spec.unwrap_or_default();
    payloads(snapshot, &container)
}

/// Names of services and networks are parts of DNS names.
pub(super) fn name(name: &str) -> Result<(), ApiError> {
    if name.len() > 63 {
        return Err(ApiError::invalid("name must be 63 characters or fewer"));
    }
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let is_good = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        && is_end(name.bytes().next())
        && is_end(name.bytes().last());
    match is_good {
        true => Ok(()),
        false => Err(ApiError::invalid("name must be valid as a DNS name component")),
    }
}

fn mode(spec: &ServiceSpec) -> Result<(), ApiError> {
    let Some(mode) = &spec.mode else { return Ok(()) };
    let jobs = usize::from(mode.replicated_job.is_some()) + usize::from(mode.global_job.is_some());
    let n = jobs + usize::from(mode.replicated.is_some()) + usize::from(mode.global.is_some());
    if n > 1 {
        return Err(ApiError::bad("must specify only one service mode"));
    }
    if jobs > 0 && spec.update_config.is_some() {
        return Err(ApiError::invalid("Jobs may not have an update config"));
    }
    let job = mode.replicated_job.as_ref();
    let counts = [
        (
            "Replicated.Replicas",
            mode.replicated.as_ref().and_then(|replicated| replicated.replicas),
        ),
        ("ReplicatedJob.MaxConcurrent", job.and_then(|job| job.max_concurrent)),
        (
            "ReplicatedJob.TotalCompletions",
            job.and_then(|job| job.total_completions),
        ),
    ];
    for (key, count) in counts {
        if let Some(count @ ..0) = count {
            return Err(ApiError::invalid(format!("Mode.{key} {count}: expected 0 or more")));
        }
    }
    Ok(())
}

/// A service asks for no more tasks than one may, nor than others have left.
pub(super) fn replicas(snapshot: &Snapshot, spec: &ServiceSpec) -> Result<(), ApiError> {
    let (key, asked) = match mode_of(spec) {
        Mode::Replicated { replicas } => ("Replicated.Replicas", replicas),
        Mode::ReplicatedJob { total_completions, .. } => ("ReplicatedJob.TotalCompletions", total_completions),
        Mode::Global | Mode::GlobalJob => return Ok(()),
    };
    if asked > REPLICAS_MAX {
        return Err(ApiError::invalid(format!(
            "Mode.{key} {asked}: expected at most {REPLICAS_MAX}"
        )));
    }
    let left = TASKS_MAX.saturating_sub(tasks_asked_for(snapshot, spec.name.as_deref()));
    // Fewer are always well, as of a service that was there before the bound.
    let has = spec.name.as_deref().and_then(|name| snapshot.service_named(name));
    if asked > left && has.is_none_or(|service| service.replicas() < Some(asked)) {
        return Err(ApiError::invalid(format!(
            "Mode.{key} {asked}: expected at most {left}: all services together may have {TASKS_MAX} tasks"
        )));
    }
    Ok(())
}

fn ports(snapshot: &Snapshot, spec: &ServiceSpec) -> Result<(), ApiError> {
    let Some(endpoint) = &spec.endpoint_spec else {
        return Ok(());
    };
    let mut seen = BTreeSet::new();
    let mut ports = endpoint.ports.clone().unwrap_or_default();
    ports.iter_mut().for_each(fill_port);
    for port in &ports {
        for (key, number, least) in [
            ("TargetPort", port.target_port, 1),
            ("PublishedPort", port.published_port, 0),
        ] {
            let number = number.unwrap_or(0);
            if !(least..=65_535).contains(&number) {
                return Err(ApiError::invalid(format!(
                    "EndpointSpec: {key} {number}: expected a port from {least} to 65535"
                )));
            }
        }
        let is_ingress = port.publish_mode == Some(PublishMode::INGRESS);
        if !is_ingress && port.published_port.unwrap_or(0) == 0 {
            return Err(ApiError::invalid(
                "EndpointSpec: PublishedPort 0 with PublishMode host: expected a number, since a node picks none by itself",
            ));
        }
        if is_ingress && matches!(endpoint.mode, Some(EndpointSpecModeEnum::DNSRR)) {
            return Err(ApiError::invalid(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
            ));
        }
        if is_ingress && !snapshot.networks().any(|network| network.is_ingress) {
            return Err(ApiError::precondition(
                "service needs ingress network, but no ingress network is present",
            ));
        }
        let protocol = port.protocol.map(|protocol| protocol.to_string());
        let published = port.published_port.filter(|number| *number > 0);
        if published.is_some() && !seen.insert((published, protocol)) {
            return Err(ApiError::invalid("EndpointSpec: duplicate published ports provided"));
        }
    }
    Ok(())
}

fn update(spec: &ServiceSpec) -> Result<(), ApiError> {
    let update = spec.update_config.as_ref();
    let rollback = spec.rollback_config.as_ref();
    let of_update = update.map(|c| ("update", c.parallelism, c.delay, c.monitor, c.max_failure_ratio));
    let of_rollback = rollback.map(|c| ("rollback", c.parallelism, c.delay, c.monitor, c.max_failure_ratio));
    for (key, parallelism, delay, monitor, ratio) in [of_update, of_rollback].into_iter().flatten() {
        if delay.is_some_and(|delay| delay < 0) {
            return Err(ApiError::invalid(format!("TaskSpec: {key}-delay cannot be negative")));
        }
        if monitor.is_some_and(|monitor| monitor < 0) {
            return Err(ApiError::invalid(format!("TaskSpec: {key}-monitor cannot be negative")));
        }
        if parallelism.is_some_and(|parallelism| parallelism < 0) {
            return Err(ApiError::invalid(format!(
                "TaskSpec: {key}-parallelism cannot be negative"
            )));
        }
        if ratio.is_some_and(|ratio| !(0.0..=1.0).contains(&ratio)) {
            return Err(ApiError::invalid(format!(
                "TaskSpec: {key}-maxfailureratio cannot be less than 0 or bigger than 1"
            )));
        }
    }
    Ok(())
}

fn task(template: &TaskSpec) -> Result<(), ApiError> {
    if template.plugin_spec.is_some() || template.network_attachment_spec.is_some() {
        return Err(ApiError::not_implemented(
            "only services of containers work: expected a ContainerSpec",
        ));
    }
    let container = template.container_spec.clone().unwrap_or_default();
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        return Err(ApiError::invalid("ContainerSpec: image reference must be provided"));
    }
    if !is_image(image) {
        return Err(ApiError::invalid(format!(
            "ContainerSpec: \"{image}\" is not a valid repository/tag"
        )));
    }
    windows(&container)?;
    if let Some(health) = &container.health_check {
        health_check(health)?;
    }
    let mut targets = BTreeSet::new();
    for mount in container.mounts.iter().flatten() {
        let target = mount.target.clone().unwrap_or_default();
        if target.is_empty() {
            return Err(ApiError::invalid("ContainerSpec: mount target must be provided"));
        }
        if !targets.insert(target.clone()) {
            return Err(ApiError::invalid(format!(
                "ContainerSpec: duplicate mount point: {target}"
            )));
        }
    }
    if container.stop_grace_period.is_some_and(|grace| grace < 0) {
        return Err(ApiError::invalid("ContainerSpec: stop grace period cannot be negative"));
    }
    let resources = template.resources.clone().unwrap_or_default();
    let generic = resources
        .reservations
        .as_ref()
        .and_then(|wanted| wanted.generic_resources.as_ref());
    let is_nothing = |wanted: &GenericResourcesInner| {
        wanted.discrete_resource_spec.is_none() && wanted.named_resource_spec.is_none()
    };
    if generic.into_iter().flatten().any(is_nothing) {
        return Err(ApiError::invalid(
            "TaskSpec: generic resource of nothing: expected a DiscreteResourceSpec or a NamedResourceSpec",
        ));
    }
    let limits = resources.limits.map(|limit| (limit.nano_cpus, limit.memory_bytes));
    let reservations = resources
        .reservations
        .map(|wanted| (wanted.nano_cpus, wanted.memory_bytes));
    for (cpus, memory) in [limits, reservations].into_iter().flatten() {
        if let Some(cpus) = cpus.filter(|cpus| *cpus != 0 && *cpus < 1_000_000) {
            return Err(ApiError::invalid(format!(
                "invalid cpu value {}: Must be at least 0.001",
                as_go(cpus as f64 / 1e9)
            )));
        }
        if let Some(memory) = memory.filter(|memory| *memory != 0 && *memory < 4 << 20) {
            return Err(ApiError::invalid(format!(
                "invalid memory value {memory}: Must be at least 4MiB"
            )));
        }
    }
    let restart = template.restart_policy.clone().unwrap_or_default();
    let max_replicas = template.placement.as_ref().and_then(|placement| placement.max_replicas);
    for (key, number) in [
        ("RestartPolicy.MaxAttempts", restart.max_attempts),
        ("Placement.MaxReplicas", max_replicas),
    ] {
        if let Some(number @ ..0) = number {
            return Err(ApiError::bad(format!(
                "invalid JSON at TaskTemplate.{key}: {number}: expected 0 or more"
            )));
        }
    }
    if restart.delay.is_some_and(|delay| delay < 0) {
        return Err(ApiError::invalid("TaskSpec: restart-delay cannot be negative"));
    }
    if restart.window.is_some_and(|window| window < 0) {
        return Err(ApiError::invalid("TaskSpec: restart-window cannot be negative"));
    }
    let constraints = template
        .placement
        .as_ref()
        .and_then(|placement| placement.constraints.as_ref());
    for constraint in constraints.into_iter().flatten() {
        constraint
            .parse::<Constraint>()
            .map_err(|error| ApiError::unknown(error.to_string()))?;
    }
    Ok(())
}

/// What runs a task is one that there is, and has the spec that it needs.
pub(super) fn runtime(template: &TaskSpec) -> Result<(), ApiError> {
    let is_there = match template.runtime.as_deref().unwrap_or_default() {
        "" | "container" => template.container_spec.is_some(),
        "plugin" => template.plugin_spec.is_some(),
        _ => return Err(ApiError::bad("unsupported runtime: expected container")),
    };
    match is_there {
        true => Ok(()),
        false => Err(ApiError::bad("mismatched Runtime and *Spec fields")),
    }
}

/// What only Windows has is refused: nobody would keep it.
fn windows(container: &TaskSpecContainerSpec) -> Result<(), ApiError> {
    if let Some(isolation) = container.isolation.map(|isolation| isolation.to_string())
        && !matches!(isolation.as_str(), "" | "default")
    {
        return Err(ApiError::bad(format!(
            "invalid isolation '{isolation}' on linux: expected default"
        )));
    }
    let privileges = container.privileges.as_ref();
    let Some(credentials) = privileges.and_then(|privileges| privileges.credential_spec.as_ref()) else {
        return Ok(());
    };
    let given = [
        ("file", credentials.file.as_deref()),
        ("registry", credentials.registry.as_deref()),
        ("config", credentials.config.as_deref()),
    ];
    let given: Vec<&str> = given
        .into_iter()
        .filter(|(_, value)| value.is_some_and(|value| !value.is_empty()))
        .map(|(key, _)| key)
        .collect();
    Err(ApiError::bad(match given.as_slice() {
        [] => "invalid CredentialSpec: must either provide \"file\", \"registry\", or \"config\" for credential spec"
            .to_owned(),
        [_] => "invalid CredentialSpec: only Windows has credential specs, and this node runs linux".to_owned(),
        [first, second] => {
            format!("invalid CredentialSpec: cannot specify both \"{first}\" and \"{second}\" credential specs")
        }
        _ => {
            "invalid CredentialSpec: cannot specify \"config\", \"file\", and \"registry\" credential specs".to_owned()
        }
    }))
}

/// A number as Go writes it: with an exponent where it is small.
fn as_go(number: f64) -> String {
    if number.abs() >= 1e-4 {
        return number.to_string();
    }
    let text = format!("{number:e}");
    match text.split_once("e-") {
        Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
        None => text,
    }
}

/// `[host[:port]/]path[:tag][@digest]`
fn is_image(text: &str) -> bool {
    let (name, digest) = text
        .split_once('@')
        .map_or((text, None), |(name, digest)| (name, Some(digest)));
    let is_digest = |digest: &str| {
        let (algorithm, hex) = digest.split_once(':').unwrap_or_default();
        algorithm.starts_with(|first: char| first.is_ascii_alphabetic())
            && hex.len() >= 32
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    let is_tag = |tag: &str| {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        tag.len() <= 128
            && tag.bytes().next().is_some_and(is_word)
            && tag.bytes().all(|byte| is_word(byte) || b".-".contains(&byte))
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
        _ => (None, name),
    };
    let is_host = |host: &str| {
        host.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte))
    };
    let is_part = |part: &str| {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        part.bytes().next().is_some_and(is_word)
            && part.bytes().last().is_some_and(is_word)
            && part.bytes().all(|byte| is_word(byte) || b"._-".contains(&byte))
    };
    name.len() <= 255
        && host.is_none_or(is_host)
        && path.split('/').all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

fn health_check(health: &HealthConfig) -> Result<(), ApiError> {
    let times = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    for (key, nanos) in times {
        if nanos.is_some_and(|nanos| nanos != 0 && nanos < 1_000_000) {
            return Err(ApiError::invalid(format!(
                "ContainerSpec: {key} in HealthConfig cannot be less than 1ms"
            )));
        }
    }
    if health.retries.is_some_and(|retries| retries < 0) {
        return Err(ApiError::invalid(
            "ContainerSpec: Retries in HealthConfig cannot be negative",
        ));
    }
    let test = health.test.as_deref().unwrap_or_default();
    match test.first().map(String::as_str) {
        None | Some("" | "NONE") => Ok(()),
        Some("CMD") if test.len() > 1 => Ok(()),
        Some("CMD-SHELL") if test.len() == 2 => Ok(()),
        Some(kind) => Err(ApiError::invalid(format!(
            "ContainerSpec: Test in Healthcheck begins with \"{kind}\" and has {} words: expected NONE, CMD and its words, or \
             CMD-SHELL and one",
            test.len()
        ))),
    }
}

/// What a service says of a config or a secret.
struct Reference {
    kind: &'static str,
    id: String,
    name: String,
    /// `None`: no file is asked for.
    target: Option<String>,
    /// It is for the runtime alone, and no file.
    is_for_runtime: bool,
    /// The name of what has that id.
    found: Option<String>,
}

/// Configs and secrets that a service names must be there, each in a place of its own.
fn payloads(snapshot: &Snapshot, container: &TaskSpecContainerSpec) -> Result<(), ApiError> {
    let secrets = container.secrets.iter().flatten().map(|secret| {
        let id = secret.secret_id.clone().unwrap_or_default();
        Reference {
            kind: "secret",
            found: snapshot.secret(&id).map(|secret| secret.name.clone()),
            id,
            name: secret.secret_name.clone().unwrap_or_default(),
            target: secret.file.as_ref().map(|file| file.name.clone().unwrap_or_default()),
            is_for_runtime: false,
        }
    });
    let configs = container.configs.iter().flatten().map(|config| {
        let id = config.config_id.clone().unwrap_or_default();
        Reference {
            kind: "config",
            found: snapshot.config(&id).map(|config| config.name.clone()),
            id,
            name: config.config_name.clone().unwrap_or_default(),
            target: config.file.as_ref().map(|file| file.name.clone().unwrap_or_default()),
            is_for_runtime: config.runtime.is_some(),
        }
    });
    let mut targets: BTreeMap<(&str, String), String> = BTreeMap::new();
    for reference in secrets.chain(configs) {
        let Reference {
            kind,
            id,
            name,
            target,
            is_for_runtime,
            found,
        } = reference;
        if kind == "config" && target.is_none() && !is_for_runtime {
            return Err(ApiError::bad("invalid Config: either File or Runtime should be set"));
        }
        if id.is_empty() || name.is_empty() {
            return Err(ApiError::invalid(format!("malformed {kind} reference")));
        }
        if let Some(target) = target {
            if target.is_empty() || target.split('/').any(|part| part == "..") {
                return Err(ApiError::invalid(format!(
                    "malformed file {kind} reference, invalid target file name provided: {target:?}"
                )));
            }
            if let Some(other) = targets.insert((kind, target.clone()), name.clone()) {
                return Err(ApiError::invalid(format!(
                    "{kind} references '{other}' and '{name}' have a conflicting target: '{target}'"
                )));
            }
        } else if !is_for_runtime {
            return Err(ApiError::invalid(format!(
                "malformed {kind} reference, no target provided"
            )));
        }
        if found.as_ref() != Some(&name) {
            return Err(ApiError::invalid(format!("{kind} not found: {name}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for good in [
            "nginx",
            "nginx:1.27-alpine",
            "a/b/c",
            "localhost/a",
            "a:1/b",
            "registry.example:5000/a/b:1",
            "[::1]:5000/a",
            "a__b",
            &digest,
        ] {
            assert!(is_image(good), "{good}");
        }
        for bad in [
            "",
            "A",
            "a b",
            "a:",
            ":1",
            "a//b",
            "-a",
            "a-",
            "a:-1",
            "a@sha256:0",
            "a@",
            "/a",
            "http://a",
        ] {
            assert!(!is_image(bad), "{bad}");
        }
    }
}

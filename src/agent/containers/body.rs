//! A task's spec as the container that an engine is asked for.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, TaskSpecContainerSpec,
    TaskSpecContainerSpecPrivilegesAppArmorModeEnum as AppArmor,
    TaskSpecContainerSpecPrivilegesSeccompModeEnum as Seccomp,
};

use super::{OWNER_LABEL, TASK_LABEL};
use crate::agent::runtime::Failure;
use crate::agent::{Assignment, template};
use crate::model::swarm::stop_grace;

/// What the engine is asked for.
pub(super) fn of(assignment: &Assignment, owner: &str) -> Result<ContainerCreateBody, Failure> {
    let task = &assignment.task;
    let spec = task.spec.container_spec.clone().unwrap_or_default();
    let expand = |text: &String| template::expand(text, assignment).map_err(|error| Failure(error.to_string()));
    let mut labels = spec.labels.clone().unwrap_or_default();
    let node = &assignment.node.id;
    for (key, value) in [
        ("com.docker.swarm.task", ""),
        (TASK_LABEL, task.id.as_str()),
        ("com.docker.swarm.task.name", &task.name()),
        ("com.docker.swarm.node.id", node.as_str()),
        ("com.docker.swarm.service.id", task.service.as_str()),
        ("com.docker.swarm.service.name", &task.service_name),
        (OWNER_LABEL, owner),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let generic = task.generic.env().into_iter().map(Ok);
    let env: Result<Vec<String>, Failure> = spec.env.iter().flatten().map(expand).chain(generic).collect();
    let mounts: Result<Vec<Mount>, Failure> = spec
        .mounts
        .iter()
        .flatten()
        .map(|mount| {
            let mut mount = mount.clone();
            let volume = mount.volume_options.as_mut();
            for value in volume
                .and_then(|volume| volume.labels.as_mut())
                .into_iter()
                .flat_map(HashMap::values_mut)
            {
                *value = expand(value)?;
            }
            Ok(Mount {
                source: mount.source.as_ref().map(expand).transpose()?,
                target: mount.target.as_ref().map(expand).transpose()?,
                ..mount
            })
        })
        .collect();
    let limits = task.spec.resources.clone().unwrap_or_default();
    let (most, least) = (
        limits.limits.unwrap_or_default(),
        limits.reservations.unwrap_or_default(),
    );
    let dns = spec.dns_config.clone().unwrap_or_default();
    // As `IP name` there, as `name:IP` here.
    let hosts = spec.hosts.iter().flatten().filter_map(|host| {
        let (ip, name) = host.split_once(char::is_whitespace)?;
        Some(format!("{}:{ip}", name.trim()))
    });
    let host_config = HostConfig {
        mounts: Some(mounts?),
        nano_cpus: most.nano_cpus,
        memory: most.memory_bytes,
        pids_limit: most.pids,
        memory_reservation: least.memory_bytes,
        init: spec.init,
        readonly_rootfs: spec.read_only,
        dns: dns.nameservers,
        dns_search: dns.search,
        dns_options: dns.options,
        extra_hosts: Some(hosts.collect()),
        cap_add: spec.capability_add.clone(),
        cap_drop: spec.capability_drop.clone(),
        sysctls: spec.sysctls.clone(),
        group_add: spec.groups.clone(),
        oom_score_adj: spec.oom_score_adj,
        ulimits: spec.ulimits.clone(),
        network_mode: network_of(assignment),
        security_opt: Some(security(&spec)?),
        // Without one, that of the engine with its options.
        log_config: task.spec.log_driver.clone().map(|driver| HostConfigLogConfig {
            typ: driver.name,
            config: driver.options,
        }),
        ..HostConfig::default()
    };
    let some = |words: Option<Vec<String>>| words.filter(|words| !words.is_empty());
    Ok(ContainerCreateBody {
        image: spec.image.as_deref().map(tagged),
        hostname: spec
            .hostname
            .as_ref()
            .filter(|name| !name.is_empty())
            .map(expand)
            .transpose()?,
        env: Some(env?),
        entrypoint: some(spec.command.clone()),
        cmd: some(spec.args.clone()),
        working_dir: spec.dir.clone(),
        user: spec.user.clone(),
        labels: Some(labels),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: i64::try_from(stop_grace(&task.spec).as_secs()).ok(),
        healthcheck: spec.health_check.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    })
}

/// A task on the host's network; any other network is the engine's own bridge for now.
fn network_of(assignment: &Assignment) -> Option<String> {
    let networks = assignment.task.spec.networks.iter().flatten();
    let mut targets = networks.filter_map(|network| network.target.clone());
    targets.find(|target| matches!(target.as_str(), "host" | "none"))
}

/// An image of which neither a tag nor a digest is said is the latest; without a tag, an engine pulls them all.
fn tagged(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    match image.is_empty() || name.contains([':', '@']) {
        true => image.to_owned(),
        false => format!("{image}:latest"),
    }
}

/// What a container may, in the words of `docker run --security-opt`.
fn security(spec: &TaskSpecContainerSpec) -> Result<Vec<String>, Failure> {
    let privileges = spec.privileges.clone().unwrap_or_default();
    let mut options = Vec::new();
    if privileges.no_new_privileges == Some(true) {
        options.push("no-new-privileges:true".to_owned());
    }
    if let Some(selinux) = privileges.se_linux_context {
        if selinux.disable == Some(true) {
            options.push("label=disable".to_owned());
        }
        let parts = [
            ("user", selinux.user),
            ("role", selinux.role),
            ("type", selinux.typ),
            ("level", selinux.level),
        ];
        let said = parts
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.filter(|value| !value.is_empty())?)));
        options.extend(said.map(|(key, value)| format!("label={key}:{value}")));
    }
    if let Some(seccomp) = privileges.seccomp {
        match seccomp.mode {
            Some(Seccomp::UNCONFINED) => options.push("seccomp=unconfined".to_owned()),
            Some(Seccomp::CUSTOM) => {
                let profile = seccomp.profile.and_then(|profile| {
                    let bytes = STANDARD.decode(profile).ok()?;
                    String::from_utf8(bytes).ok()
                });
                let wrong = || Failure("Privileges.Seccomp.Profile: expected a profile in JSON, as base64".to_owned());
                options.push(format!("seccomp={}", profile.ok_or_else(wrong)?));
            }
            Some(Seccomp::DEFAULT | Seccomp::EMPTY) | None => {}
        }
    }
    if let Some(AppArmor::DISABLED) = privileges.app_armor.and_then(|app_armor| app_armor.mode) {
        options.push("apparmor=unconfined".to_owned());
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::tests::assignment;

    fn body(container: serde_json::Value) -> Result<ContainerCreateBody, Failure> {
        let spec = json!({ "TaskTemplate": { "ContainerSpec": container } });
        of(&assignment(spec), "owner")
    }

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        for (image, expected) in [
            ("nginx", "nginx:latest"),
            ("nginx:1", "nginx:1"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
            ("host:5000/a/b:1", "host:5000/a/b:1"),
            ("a@sha256:00", "a@sha256:00"),
            ("", ""),
        ] {
            assert_eq!(tagged(image), expected);
        }
    }

    #[test]
    fn labels_tell_whose_it_is_and_are_not_the_users_to_set() {
        let body = body(json!({ "Image": "a", "Labels": {
            "mine": "1", "com.docker.swarm.task.id": "another", "anynode.owner": "another",
        } }));
        let labels = body.unwrap().labels.unwrap();
        for (key, value) in [
            ("mine", "1"),
            ("com.docker.swarm.task", ""),
            ("com.docker.swarm.task.id", "task"),
            ("com.docker.swarm.task.name", "web.3.task"),
            ("com.docker.swarm.service.name", "web"),
            ("anynode.owner", "owner"),
        ] {
            assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
        }
    }

    #[test]
    fn what_is_filled_in() {
        let body = body(json!({
            "Image": "a",
            "Env": ["SLOT={{.Task.Slot}}"],
            "Hostname": "{{.Service.Name}}-{{.Task.Slot}}",
            "Hosts": ["10.0.0.1 one"],
            "Mounts": [{
                "Type": "volume", "Source": "data-{{.Task.Slot}}", "Target": "/{{.Service.Name}}",
                "VolumeOptions": { "Labels": { "slot": "{{.Task.Slot}}" } },
            }],
        }))
        .unwrap();
        assert_eq!(body.env, Some(vec!["SLOT=3".to_owned()]));
        assert_eq!(body.hostname.as_deref(), Some("web-3"));
        let host = body.host_config.unwrap();
        assert_eq!(host.extra_hosts, Some(vec!["one:10.0.0.1".to_owned()]));
        let mount = host.mounts.unwrap().remove(0);
        assert_eq!(
            (mount.source.as_deref(), mount.target.as_deref()),
            (Some("data-3"), Some("/web"))
        );
        assert_eq!(mount.volume_options.unwrap().labels.unwrap()["slot"], "3");
    }

    #[test]
    fn privileges() {
        let options = |privileges| {
            let body = body(json!({ "Image": "a", "Privileges": privileges }))?;
            Ok::<_, Failure>(body.host_config.unwrap_or_default().security_opt.unwrap_or_default())
        };
        assert_eq!(options(json!({})), Ok(vec![]));
        assert_eq!(
            options(json!({
                "NoNewPrivileges": true, "AppArmor": { "Mode": "disabled" }, "Seccomp": { "Mode": "custom", "Profile": "e30=" },
                "SELinuxContext": { "Type": "t", "Level": "" },
            })),
            Ok([
                "no-new-privileges:true",
                "label=type:t",
                "seccomp={}",
                "apparmor=unconfined"
            ]
            .map(str::to_owned)
            .to_vec())
        );
        assert!(options(json!({ "Seccomp": { "Mode": "custom", "Profile": "?" } })).is_err());
    }
}

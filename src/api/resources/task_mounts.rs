//! What a task that is a process has mounted, as Docker shows it of a container.

use bollard_stubs::models::TaskSpecContainerSpec;
use serde_json::{Value, json};

use super::local_events::nameless;
use super::volumes::DRIVER;
use crate::api::backend::Backend;
use crate::model::swarm::{Id, Task};
use crate::model::volume::{MountOf, TaskMount};

/// In the order in which they are mounted.
pub(super) struct TaskMounts(Vec<TaskMount>);

impl TaskMounts {
    /// Of a task that is gone from this node nothing is known any more. Reads a file.
    pub(super) fn of(backend: &Backend, task: &Task) -> TaskMounts {
        let volumes = backend.outside.volumes();
        TaskMounts(volumes.map(|volumes| volumes.mounts_of(&task.id)).unwrap_or_default())
    }

    pub(super) fn shown(&self, task: &Id) -> Value {
        let shown = self.0.iter().map(|mount| match &mount.of {
            MountOf::Bind { source } => json!({
                "Type": "bind",
                "Source": source,
                "Destination": mount.target,
                "Mode": "",
                "RW": mount.is_writable,
                "Propagation": "rprivate",
            }),
            MountOf::Volume { name, source } => json!({
                "Type": "volume",
                "Name": name.clone().unwrap_or_else(|| nameless(task, source)),
                "Source": source,
                "Destination": mount.target,
                "Driver": DRIVER,
                "Mode": "z",
                "RW": mount.is_writable,
                "Propagation": "",
            }),
            MountOf::Memory => json!({
                "Type": "tmpfs",
                "Source": "",
                "Destination": mount.target,
                "Mode": "",
                "RW": mount.is_writable,
                "Propagation": "",
            }),
        });
        shown.collect()
    }

    /// As the service asks for them. Where it has placeholders, as they were filled in.
    pub(super) fn host_config(&self, spec: &TaskSpecContainerSpec) -> Value {
        let mounts = spec.mounts.as_deref().unwrap_or_default();
        let mut config = json!({ "Binds": null, "NetworkMode": "default" });
        let texts = mounts.iter().flat_map(|mount| [&mount.source, &mount.target]);
        let has_placeholders = texts.flatten().any(|text| text.contains("{{"));
        if !mounts.is_empty() {
            config["Mounts"] = match has_placeholders {
                true => self.0.iter().map(wanted).collect(),
                false => json!(mounts),
            };
        }
        config
    }
}

/// As somebody would have asked for it.
fn wanted(mount: &TaskMount) -> Value {
    let mut wanted = match &mount.of {
        MountOf::Bind { source } => json!({ "Type": "bind", "Source": source }),
        MountOf::Volume { name, .. } => json!({ "Type": "volume", "Source": name }),
        MountOf::Memory => json!({ "Type": "tmpfs" }),
    };
    wanted["Target"] = json!(mount.target);
    if !mount.is_writable {
        wanted["ReadOnly"] = json!(true);
    }
    wanted
}

//! What happens on this node where no engine is to say so: to its volumes, and to programs beside tasks. In Docker's shapes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::processes;
use super::volumes::DRIVER;
use crate::api::outside::Volumes;
use crate::model::swarm::{Id, Task, Time};
use crate::model::volume::{MountOf, VolumeChange};
use crate::store::Snapshot;

const LOCAL: &str = "local";

/// `scope`: whose affair it is, swarm or local.
pub(super) fn event(
    scope: &str,
    kind: &str,
    id: &str,
    action: &str,
    attributes: Map<String, Value>,
    at: Time,
) -> Value {
    json!({
        "Type": kind,
        "Action": action,
        "Actor": { "ID": id, "Attributes": attributes },
        "scope": scope,
        "time": at.0 / 1_000_000_000,
        "timeNano": at.0,
    })
}

pub(super) fn of_volume(change: &VolumeChange, at: Time) -> Value {
    let (name, action) = match change {
        VolumeChange::Made(name) => (name, "create"),
        VolumeChange::Removed(name) => (name, "destroy"),
    };
    event(LOCAL, "volume", name, action, with_driver([]), at)
}

/// So many bytes were freed by a `prune`.
pub(super) fn of_pruned_volumes(n_bytes: u64, at: Time) -> Value {
    let attributes = Map::from_iter([("reclaimed".to_owned(), json!(n_bytes.to_string()))]);
    event(LOCAL, "volume", "", "prune", attributes, at)
}

fn with_driver(others: impl IntoIterator<Item = (&'static str, String)>) -> Map<String, Value> {
    let others = others.into_iter().map(|(key, value)| (key.to_owned(), json!(value)));
    others.chain([("driver".to_owned(), json!(DRIVER))]).collect()
}

/// What is said of the container that a task is, with each of its events.
pub(super) fn about(task: &Task) -> Map<String, Value> {
    let mut about = processes::labels(task);
    let image = task.spec.container_spec.as_ref().and_then(|spec| spec.image.clone());
    about.extend(image.map(|image| ("image".to_owned(), json!(image))));
    about.insert("name".to_owned(), json!(task.name()));
    about
}

/// `about`: as above, and what else is said of this.
pub(super) fn of_container(id: &str, action: &str, about: Map<String, Value>, at: Time) -> Value {
    let image = about.get("image").cloned();
    let mut event = event(LOCAL, "container", id, action, about, at);
    // As older clients know it.
    event["id"] = json!(id);
    event["status"] = json!(action);
    if let Some(image) = image {
        event["from"] = image;
    }
    event
}

/// What tasks that run have mounted of volumes: each with where, of which may be written to. By task, with its container.
#[derive(Default)]
pub(super) struct Mounted(BTreeMap<Id, (String, Vec<OfVolume>)>);

struct OfVolume {
    name: String,
    target: String,
    is_writable: bool,
}

impl Mounted {
    /// What was mounted and unmounted between two snapshots.
    pub(super) fn follow(&mut self, before: &Snapshot, now: &Snapshot, volumes: &dyn Volumes, at: Time) -> Vec<Value> {
        let mut events = Vec::new();
        for (id, task) in now.tasks_since(before) {
            // One that starts has none yet.
            let has_container = |task: &&Arc<Task>| processes::is_running(task) && task.status.container.is_some();
            let was = before.task(id.as_str()).filter(has_container);
            let is = task.filter(has_container);
            match (was, is) {
                (None, Some(task)) => {
                    let Some(container) = task.status.container.as_ref() else {
                        continue;
                    };
                    let mounts = mounts_of(task, volumes);
                    events.extend(mounts.iter().map(|mount| mount.mounted(&container.id, at)));
                    if !mounts.is_empty() {
                        self.0.insert(id.clone(), (container.id.clone(), mounts));
                    }
                }
                (Some(was), None) => {
                    // One that an earlier run of this program saw start is asked for now, while it is there.
                    let found = || Some((was.status.container.as_ref()?.id.clone(), mounts_of(was, volumes)));
                    let Some((container, mounts)) = self.0.remove(id).or_else(found) else {
                        continue;
                    };
                    events.extend(mounts.iter().map(|mount| mount.unmounted(&container, at)));
                }
                _ => {}
            }
        }
        events
    }
}

fn mounts_of(task: &Task, volumes: &dyn Volumes) -> Vec<OfVolume> {
    let spec = task.spec.container_spec.as_ref();
    // Most have none, and need not be asked for.
    if spec.and_then(|spec| spec.mounts.as_ref()).is_none_or(Vec::is_empty) {
        return Vec::new();
    }
    let mounts = volumes.mounts_of(&task.id).into_iter();
    let of_volume = mounts.filter_map(|mount| match mount.of {
        MountOf::Volume { name, source } => Some(OfVolume {
            name: name.unwrap_or_else(|| nameless(&task.id, &source)),
            target: mount.target.display().to_string(),
            is_writable: mount.is_writable,
        }),
        MountOf::Bind { .. } | MountOf::Memory => None,
    });
    of_volume.collect()
}

/// What a volume without a name is called: it is its task's, which may have several.
pub(super) fn nameless(task: &Id, source: &Path) -> String {
    let number = source.file_name().unwrap_or_default().to_string_lossy();
    format!("{task}-{number}")
}

impl OfVolume {
    fn mounted(&self, container: &str, at: Time) -> Value {
        let attributes = with_driver([
            ("container", container.to_owned()),
            ("destination", self.target.clone()),
            ("read/write", self.is_writable.to_string()),
            ("propagation", String::new()),
        ]);
        event(LOCAL, "volume", &self.name, "mount", attributes, at)
    }

    fn unmounted(&self, container: &str, at: Time) -> Value {
        let attributes = with_driver([("container", container.to_owned())]);
        event(LOCAL, "volume", &self.name, "unmount", attributes, at)
    }
}

//! Sees to it that a task can have the mounts that its service asks for: before anything of the task is made, and before it is
//! started, when they are made once where nobody sees them. Not here: how they are made (`mounts`).

use super::job::{Dir, Job};
use super::mounts::plan::{self, Places};
use super::mounts::{Mounts, What};
use super::{Processes, volumes};
use crate::agent::runtime::Failure;
use crate::agent::{Assignment, template};
use crate::sys::mounts::aside;
use crate::sys::private;

impl Processes {
    /// What a task is to have mounted. Nothing is made yet.
    pub(super) fn mounts_of(&self, assignment: &Assignment, dir: &Dir) -> Result<Option<Mounts>, Failure> {
        let container = assignment.task.spec.container_spec.as_ref();
        let specs = container.and_then(|container| container.mounts.as_deref());
        let Some(specs) = specs.filter(|specs| !specs.is_empty()) else {
            return Ok(None);
        };
        if !self.has_views {
            return Err(Failure(format!(
                "ContainerSpec.Mounts: expected this node to run as root with {}, so that a task has mounts of its own",
                private::NEEDED_FOR_VIEWS.join(" and ")
            )));
        }
        let places = Places {
            volumes: self.volumes.dir(),
            own: &dir.volumes(),
        };
        let expand = |text: &String| template::expand(text, assignment).map_err(|error| error.to_string());
        let settings = &self.settings;
        let kept_out = settings.hidden.iter().chain(&settings.hidden_from_root);
        let mounts = Mounts {
            list: plan::of(specs, &places, expand).map_err(Failure)?,
            kept_out: kept_out.chain([&settings.dir]).cloned().collect(),
        };
        mounts.judge().map_err(Failure)?;
        Ok(Some(mounts))
    }

    /// Makes what the mounts of a task are of, and tries them where nobody sees them. `has_own_user`: its service names none.
    pub(super) async fn try_mounts(&self, job: &Job, dir: &Dir, has_own_user: bool) -> Result<(), Failure> {
        let Some(mounts) = job.mounts.clone() else {
            return Ok(());
        };
        for mount in &mounts.list {
            let failed = |error: &dyn std::fmt::Display| {
                Failure(format!("ContainerSpec.Mounts: {}: {error}", mount.target.display()))
            };
            match &mount.what {
                What::Volume {
                    name: Some(name),
                    labels,
                    ..
                } => {
                    let user = job.user.as_ref();
                    let made = self.volumes.make(name, labels, user);
                    made.map_err(|error| failed(&error))?;
                    let closed = user.filter(|_| has_own_user && !mount.read_only);
                    if let Some(reason) = closed.and_then(|user| self.volumes.why_closed(name, user)) {
                        return Err(failed(&reason));
                    }
                }
                What::Volume { name: None, source, .. } => {
                    let made = volumes::make_nameless(dir, source, job.user.as_ref());
                    made.map_err(|error| failed(&error))?;
                }
                What::Bind {
                    source, is_made: true, ..
                } => std::fs::create_dir_all(source)
                    .or_else(|error| match source.exists() {
                        true => Ok(()),
                        false => Err(error),
                    })
                    .map_err(|error| failed(&format!("bind source path {}: {error}", source.display())))?,
                What::Bind { .. } | What::Memory { .. } => {}
            }
        }
        let (own, hidden) = (dir.root(), job.hidden.clone().unwrap_or_default());
        let tried = tokio::task::spawn_blocking(move || aside(|| mounts.make(&own, &hidden))).await;
        match tried {
            Ok(Ok(made)) => made.map(drop).map_err(Failure),
            Ok(Err(error)) => Err(Failure(format!("ContainerSpec.Mounts: mounts of its own: {error}"))),
            Err(error) => Err(Failure(format!("ContainerSpec.Mounts: {error}"))),
        }
    }
}

//! Sees to it that a task can have the mounts that its service asks for: before anything of the task is made, and before it is
//! started, when they are made once where nobody sees them. Not here: how they are made (`mounts`).

use super::Processes;
use super::job::{Dir, Job, User};
use super::mounts::plan::{self, Places};
use super::mounts::{Mounts, What, make_dir};
use super::volumes::{Volumes, make_nameless};
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
        Ok(Some(Mounts {
            list: plan::of(specs, &places, expand).map_err(Failure)?,
            kept_out: kept_out.chain([&settings.dir]).cloned().collect(),
        }))
    }

    /// Makes what the mounts of a task are of, and tries them where nobody sees them. `has_own_user`: its service names none.
    pub(super) async fn try_mounts(&self, job: &Job, dir: &Dir, has_own_user: bool) -> Result<(), Failure> {
        let Some(mounts) = job.mounts.clone() else {
            return Ok(());
        };
        let (own, hidden) = (dir.clone(), job.hidden.clone().unwrap_or_default());
        let (volumes, user) = (self.volumes.clone(), job.user.clone());
        let try_all = move || {
            make_sources(&volumes, &mounts, &own, user.as_ref(), has_own_user)?;
            let tried = aside(|| mounts.make(&own.root(), &hidden));
            let tried = tried.map_err(|error| format!("ContainerSpec.Mounts: mounts of its own: {error}"))?;
            tried.map(drop)
        };
        on_a_thread(try_all).await
    }
}

/// Looks at what a task is to have mounted. Nothing is made yet.
pub(super) async fn judge(job: &Job) -> Result<(), Failure> {
    match job.mounts.clone() {
        Some(mounts) => on_a_thread(move || mounts.judge()).await,
        None => Ok(()),
    }
}

/// A disk may be slow, and one of another machine away.
async fn on_a_thread(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Failure(format!("ContainerSpec.Mounts: {error}")))?;
    done.map_err(Failure)
}

/// Errors: in words, one that cannot be made, or a volume that is closed to the task.
fn make_sources(
    volumes: &Volumes,
    mounts: &Mounts,
    dir: &Dir,
    user: Option<&User>,
    has_own_user: bool,
) -> Result<(), String> {
    for mount in &mounts.list {
        let failed =
            |error: &dyn std::fmt::Display| format!("ContainerSpec.Mounts: {}: {error}", mount.target.display());
        match &mount.what {
            What::Volume {
                name: Some(name),
                labels,
                ..
            } => {
                volumes.make(name, labels, user).map_err(|error| failed(&error))?;
                let closed = user.filter(|_| has_own_user && !mount.read_only);
                if let Some(reason) = closed.and_then(|user| volumes.why_closed(name, user)) {
                    return Err(failed(&reason));
                }
            }
            What::Volume { name: None, source, .. } => {
                let made = make_nameless(dir, source, user);
                made.map_err(|error| failed(&error))?;
            }
            What::Bind {
                source, is_made: true, ..
            } => make_dir(source)
                .map_err(|reason| failed(&format!("bind source path {}: {reason}", source.display())))?,
            What::Bind { .. } | What::Memory { .. } => {}
        }
    }
    Ok(())
}

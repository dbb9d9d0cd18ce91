//! What a task's network namespace needs before the task's program runs: one trait, joined to whoever makes it. Not here: the
//! making, and the namespaces themselves (`containers`, `process`).

use super::Later;
use super::runtime::Failure;
use crate::model::TaskPlace;
use crate::model::swarm::Id;

/// Has the services of a task's networks reached from inside the task, by name and by address.
pub trait TaskNetworks: Send + Sync {
    /// Ready when they are. Called before the task's program starts, and again for a task that an earlier run of this program
    /// started; the last call counts. Errors: its namespace is gone, or the privilege is missing.
    fn open<'a>(&'a self, task: &'a Id, place: TaskPlace) -> Later<'a, Result<(), Failure>>;

    /// Lets go of the task's namespace, which lives no longer than this. Of a task that was never opened: nothing. Does not
    /// wait.
    fn close(&self, task: &Id);
}

/// Nobody reaches anything from inside.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNetworks;

impl TaskNetworks for NoNetworks {
    fn open<'a>(&'a self, _task: &'a Id, _place: TaskPlace) -> Later<'a, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }

    fn close(&self, _task: &Id) {}
}

//! What a runtime does: one trait, for processes and for containers.

use super::{Assignment, Later};
use crate::model::Reach;
use crate::model::exec::{ExecError, ExecSpec};
use crate::model::swarm::{Container, Exit, Id};
use crate::streams::{Exec, LogQuery, LogStream};

/// Makes tasks run. Each call is about one task, and none is made twice at once for the same.
pub trait Runtime: Send + Sync {
    /// Sees to all that `start` needs. May be called again for a task whose preparation was cut short.
    fn prepare<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<(), Failure>>;

    fn start<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, Result<Started, Failure>>;

    /// What there is of a task that an earlier run of this program may have started.
    fn find<'a>(&'a self, task: &'a Id) -> Later<'a, Found>;

    /// Ready when the task's program has ended.
    fn ended<'a>(&'a self, task: &'a Id) -> Later<'a, Exit>;

    /// Ready when the health of a task is other than `before`. A task without a health check is healthy, and stays so.
    fn health<'a>(&'a self, assignment: &'a Assignment, before: HealthState) -> Later<'a, HealthState>;

    /// Asks the task's program to end, by the signal that it is to be asked by. Ready when it was asked, or has ended.
    fn stop<'a>(&'a self, assignment: &'a Assignment) -> Later<'a, ()>;

    /// Ends the task's program by force. Ready when that was done, before it has ended perhaps.
    fn kill<'a>(&'a self, task: &'a Id) -> Later<'a, ()>;

    /// Ends the task and takes away what it left. Nothing to take away is no error.
    fn remove<'a>(&'a self, task: &'a Id) -> Later<'a, ()>;

    /// All tasks that there is something of.
    fn list(&self) -> Later<'_, std::io::Result<Vec<Id>>>;

    /// The output of a task that has begun.
    fn logs(&self, task: &Id, query: LogQuery) -> std::io::Result<LogStream>;

    /// Runs a program beside the task's, with all that the task's has. Where an engine runs tasks, it is asked instead.
    fn exec<'a>(&'a self, _task: &'a Id, _spec: ExecSpec) -> Later<'a, Result<Exec, ExecError>> {
        let reason = "tasks are an engine's containers here: expected the engine to be asked";
        Box::pin(async move { Err(ExecError::Refused(reason.to_owned())) })
    }
}

/// The socket of the Docker API that anynode serves, for tasks that mount one.
pub trait PinnedSocket: Send + Sync {
    fn path(&self) -> &std::path::Path;

    /// Has the socket itself outlive this program: what is mounted is not looked up by its path again. It may block. Errors: it
    /// ends with this program.
    fn pin(&self) -> std::io::Result<()>;
}

/// Why a task does not come to run, in the words that `docker service ps` shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// A task's program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub container: Container,
    /// `None` if it has no network: nobody reaches it.
    pub reach: Option<Reach>,
    /// What was made otherwise than its service says, in a few words for its status.
    pub note: Option<&'static str>,
}

/// What there is of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Prepared,
    Running(Started),
    Ended(Container, Exit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthState {
    /// Not known yet.
    Starting,
    Healthy,
    Unhealthy,
}

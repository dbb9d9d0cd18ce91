//! A program that runs beside a task's, for whoever looks after it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::io::AsyncWrite;
use tokio::sync::watch;

/// A program that runs beside a task's. It goes on when all of this is dropped, until the task ends or this program does.
pub struct Exec {
    pub pid: i64,
    /// What it reads; its end when this is dropped. `None`: it reads nothing.
    pub input: Option<ExecInput>,
    pub output: ExecOutput,
    /// Its exit code. The other end is dropped when nothing is left of what it started either.
    pub ended: watch::Receiver<Option<i64>>,
    pub control: Arc<dyn ExecControl>,
}

pub type ExecInput = Pin<Box<dyn AsyncWrite + Send>>;

/// What it says, and whether on the standard error; nobody else keeps it, so that a program whose words are not taken waits.
/// Ends after the program, with all that this said.
pub type ExecOutput = Pin<Box<dyn Stream<Item = (bool, Bytes)> + Send>>;

/// What may be done to one that runs.
pub trait ExecControl: Send + Sync {
    /// Tells it how large its terminal is. Errors: it has none.
    fn resize(&self, rows: u16, columns: u16) -> io::Result<()>;

    /// Ends it by force, with all that it started. Does not wait.
    fn kill(&self);
}

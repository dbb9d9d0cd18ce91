//! The output of tasks, a line at a time.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

use crate::model::swarm::Time;

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on with what comes.
    pub follow: bool,
    /// Only so many of the last lines; `None` for all.
    pub tail: Option<usize>,
    pub since: Option<Time>,
    pub until: Option<Time>,
    pub stdout: bool,
    pub stderr: bool,
}

/// A line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub at: Time,
    pub is_stderr: bool,
    pub bytes: Bytes,
}

pub type LogStream = Pin<Box<dyn Stream<Item = LogLine> + Send>>;

impl LogQuery {
    pub fn wants(&self, line: &LogLine) -> bool {
        let is_wanted = if line.is_stderr { self.stderr } else { self.stdout };
        is_wanted && self.since.is_none_or(|since| line.at >= since) && self.until.is_none_or(|until| line.at <= until)
    }
}

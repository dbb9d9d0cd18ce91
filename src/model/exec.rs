//! A program that somebody has run beside a task's, as `docker exec` asks for it. Pure.

/// What is to run, and what it is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSpec {
    /// The first is the program.
    pub words: Vec<String>,
    /// In place of what the task's environment says, and beside it: `NAME=VALUE`; a name alone takes the variable away.
    pub env: Vec<String>,
    /// Where it works; empty: where the task does.
    pub dir: String,
    /// Whom it runs as, in the words that services name users by; empty: whom the task runs as.
    pub user: String,
    /// It has a terminal, of so many rows and columns; zero: not known.
    pub terminal: Option<(u16, u16)>,
    /// Which of its streams somebody holds; the others are nobody's.
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Why a program does not run beside a task's, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    #[error("the task does not run")]
    NotRunning,
    /// There is no such program or directory.
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    Refused(String),
}

impl ExecError {
    /// The exit code that stands for it, as shells have it.
    pub fn code(&self) -> i64 {
        match self {
            ExecError::Missing(_) => 127,
            ExecError::NotRunning | ExecError::Refused(_) => 126,
        }
    }
}

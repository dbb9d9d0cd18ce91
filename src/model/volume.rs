//! Volumes of a node, and what a task has mounted of them and of else. Pure.

use std::path::PathBuf;

/// What became of a volume, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeChange {
    Made(String),
    Removed(String),
}

/// What a task that is a process has mounted, its placeholders filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskMount {
    pub of: MountOf,
    pub target: PathBuf,
    pub is_writable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountOf {
    Bind {
        source: PathBuf,
    },
    Volume {
        /// `None`: it is the task's own.
        name: Option<String>,
        /// Where what it holds lies.
        source: PathBuf,
    },
    Memory,
}

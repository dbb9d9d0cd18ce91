//! On whose behalf one node asks another for a port of a task.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Who asks for a port of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// A client of a port that the service publishes.
    Client,
    /// A task, which reaches the service by this network (its id).
    Network(Arc<str>),
}

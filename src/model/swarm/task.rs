//! A task: one run of a service in a slot.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bollard_stubs::models::{EndpointPortConfig, TaskSpec};
use serde::{Deserialize, Serialize};

use super::{Generic, Id, Meta, Time};

/// Where a task is on its way, or is wished to be. What was observed only ever goes forward. The numbers are Swarm's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    New = 0,
    Pending = 64,
    Assigned = 192,
    Accepted = 256,
    Preparing = 320,
    Ready = 384,
    Starting = 448,
    Running = 512,
    Complete = 576,
    Shutdown = 640,
    Failed = 704,
    Rejected = 768,
    /// Only ever wished for: the task is deleted once it has stopped.
    Remove = 800,
    /// Only ever observed: its node is gone.
    Orphaned = 832,
}

impl TaskState {
    pub const ALL: [TaskState; 14] = [
        TaskState::New,
        TaskState::Pending,
        TaskState::Assigned,
        TaskState::Accepted,
        TaskState::Preparing,
        TaskState::Ready,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Shutdown,
        TaskState::Failed,
        TaskState::Rejected,
        TaskState::Remove,
        TaskState::Orphaned,
    ];

    /// As the Docker API has it.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::New => "new",
            TaskState::Pending => "pending",
            TaskState::Assigned => "assigned",
            TaskState::Accepted => "accepted",
            TaskState::Preparing => "preparing",
            TaskState::Ready => "ready",
            TaskState::Starting => "starting",
            TaskState::Running => "running",
            TaskState::Complete => "complete",
            TaskState::Shutdown => "shutdown",
            TaskState::Failed => "failed",
            TaskState::Rejected => "rejected",
            TaskState::Remove => "remove",
            TaskState::Orphaned => "orphaned",
        }
    }

    /// It has ended, one way or another, and will not run again.
    pub fn is_terminal(self) -> bool {
        self > TaskState::Running
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: Id,
    pub meta: Meta,
    pub service: Id,
    /// The service's when the task was made.
    pub service_name: Arc<str>,
    /// From 1, of a job's from 0; 0 for tasks of global services.
    pub slot: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Id>,
    pub spec: Arc<TaskSpec>,
    /// The template of the service that it was made by.
    pub template: u64,
    /// The service's `spec_version` when it was made.
    pub spec_version: u64,
    /// Of a job's task, which run of the job it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRun>,
    /// Why it was made.
    pub cause: Cause,
    /// The manager's wish. Only ever goes forward.
    pub desired: TaskState,
    /// While it is to wait in `Ready` for its turn. The orchestrator lets it go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// What its node saw.
    pub status: TaskStatus,
    /// Its ports in host mode, as the scheduler reserved them.
    #[serde(default)]
    pub host_ports: Vec<EndpointPortConfig>,
    /// What it has of its node's generic resources, likewise.
    #[serde(default, skip_serializing_if = "Generic::is_empty")]
    pub generic: Generic,
    /// Its address on each of its networks, in their order; given before it has a node, and its own until it has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<TaskAddress>,
}

/// An address that no other task and no service of the cluster has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAddress {
    pub network: Id,
    pub addr: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix: u8,
    /// The network has no way out.
    #[serde(default)]
    pub is_internal: bool,
}

/// Which run of a job a task is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRun {
    /// The service's `JobStatus::iteration` when the task was made.
    pub iteration: u64,
    /// The job has one task on each node, and not one in each slot.
    #[serde(default)]
    pub is_global: bool,
}

/// Why a task was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// There were too few.
    Scale,
    /// The one before it in its slot ended.
    Restart,
    /// The one before it in its slot is of an older template.
    Update,
}

/// What a task waits for before it may start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Not before then.
    pub until: Time,
    /// Not while one of these runs, but no longer than `patience`.
    #[serde(default)]
    pub stopped: Vec<Id>,
    /// Until when `stopped` is waited for.
    pub patience: Time,
}

/// What a task's node saw of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub at: Time,
    pub state: TaskState,
    /// In Docker's words, such as `started`.
    pub message: String,
    /// Why it failed or does not get on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What keeps it from the nodes, while it has none for that: what `error` says in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfit: Vec<Unfit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// When it reached `Running`, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_at: Option<Time>,
}

/// Why a node does not take a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfit {
    NotAvailable,
    Resources,
    Constraints,
    Platform,
    HostPort,
    MaxReplicas,
}

/// What runs, or ran, a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Container {
    /// The engine's id of it; for a process the task's own id.
    pub id: String,
    /// Zero when it does not run.
    pub pid: i64,
    pub exit_code: i64,
    /// What its own program takes its machine to be called; empty where it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
}

impl Container {
    /// As `docker ps` shows its id.
    pub fn short_id(&self) -> &str {
        self.id.get(..SHORT_ID).unwrap_or(&self.id)
    }
}

const SHORT_ID: usize = 12;

/// How a task's program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 128 and the signal's number where a signal ended it.
    pub code: i64,
    /// Something of the task was ended since it needed more memory than it may have.
    pub is_out_of_memory: bool,
}

impl Task {
    /// `web.1.ID`, or `web.NODE.ID` for a global service's.
    pub fn name(&self) -> String {
        match (self.slot, &self.node) {
            (0, Some(node)) => format!("{}.{node}.{}", self.service_name, self.id),
            (slot, _) => format!("{}.{slot}.{}", self.service_name, self.id),
        }
    }

    /// What is wished of it once it need not wait: to run, and of a job's task to complete.
    pub fn goal(&self) -> TaskState {
        match self.job {
            Some(_) => TaskState::Complete,
            None => TaskState::Running,
        }
    }

    /// It runs or is on the way there, as far as is wished. So is a job's task that has completed, as was wished.
    pub fn is_wanted(&self) -> bool {
        self.desired <= TaskState::Complete
    }

    /// It is wanted and has not ended.
    pub fn is_live(&self) -> bool {
        self.is_wanted() && !self.status.state.is_terminal()
    }

    /// It reaches the services of its networks, and nothing else.
    pub fn is_internal(&self) -> bool {
        !self.addresses.is_empty() && self.addresses.iter().all(|own| own.is_internal)
    }

    /// It may have traffic.
    pub fn is_serving(&self) -> bool {
        self.is_wanted() && self.status.state == TaskState::Running
    }

    /// Nothing of it runs on any node: it was never given to one, or has ended there.
    pub fn has_stopped(&self) -> bool {
        self.status.state.is_terminal() || self.node.is_none()
    }
}

//! The control plane: reconcilers that compare what is wished for with what there is, and a driver that has them do so
//! whenever something changes.
//!
//! Each reconciler is a pure function from a snapshot and a time to writes and the next time to look. They never call each
//! other: state moves through the store. Every timer comes from times in the objects, so that a crash at any point loses
//! none. At rest nothing moves: a plan of what is so already is empty, what cannot be had is no reason to write, and one plan
//! holds a bounded number of writes (`bounds`). Not here: sockets, containers, the API.

mod addresses;
mod allocator;
mod bounds;
mod constraint;
mod draft;
mod driver;
mod jobs;
#[cfg(test)]
mod law;
mod orchestrator;
#[cfg(test)]
mod promises;
mod reaper;
mod scheduler;
mod shortcomings;
#[cfg(test)]
mod simulation;
mod slots;
#[cfg(test)]
mod testing;
mod updater;

use std::collections::BTreeSet;

use crate::model::swarm::{Id, Task, Time, Write};
use crate::store::Snapshot;

pub use allocator::port_conflict;
pub use bounds::{REPLICAS_MAX, TASKS_MAX, tasks_asked_for};
pub use constraint::{Constraint, ConstraintError};
pub use driver::run;
pub use shortcomings::shortcomings;

/// What a reconciler wants to be done, and when it wants to look again at the latest.
#[derive(Debug, Default)]
pub struct Plan {
    pub writes: Vec<Write>,
    pub wake_at: Option<Time>,
    /// More was to be done than one plan may hold: the next one goes on.
    pub is_cut: bool,
    /// What cannot be had as things are. Said once, by the driver.
    pub complaints: Vec<String>,
}

/// What a reconciler decides by.
pub struct Context<'a> {
    pub snapshot: &'a Snapshot,
    pub now: Time,
    /// Ports of nodes that services share, and none may have to itself.
    pub shared_ports: &'a BTreeSet<u16>,
    /// Draws the id of a new object.
    pub ids: &'a mut dyn FnMut() -> Id,
}

/// A reconciler.
pub type Planner = fn(&mut Context<'_>) -> Plan;

/// All of them, in the order in which a change mostly goes through them.
pub const PLANNERS: &[(&str, Planner)] = &[
    ("orchestrator", orchestrator::plan),
    ("updater", updater::plan),
    ("jobs", jobs::plan),
    ("allocator", allocator::plan),
    ("addresses", addresses::plan),
    ("scheduler", scheduler::plan),
    ("reaper", reaper::plan),
];

/// A task is as its service now declares it: what `docker service update` waits for.
pub fn is_up_to_date(snapshot: &Snapshot, task: &Task) -> bool {
    match snapshot.service(task.service.as_str()) {
        Some(service) => !slots::is_dirty(snapshot, service, task),
        None => false,
    }
}

//! What a service asked for and does not get, in words for users. Read off the snapshot each time, so that nothing needs to
//! be stored or taken back.

use super::allocator;
use super::bounds::{REPLICAS_MAX, Wishes};
use crate::model::swarm::Service;
use crate::store::Snapshot;

/// What `service` asked for and does not have although the control plane has seen it. Mostly empty. Cheap, except for a
/// service that has fewer tasks than it asked for.
pub fn shortcomings(snapshot: &Snapshot, service: &Service) -> Vec<String> {
    let mut said = allocator::lacks(snapshot, service);
    said.extend(fewer_tasks(snapshot, service));
    said
}

/// Of all services, each once: what the log is told. Addresses and ports are the allocator's to say.
pub(super) fn of_replicas(snapshot: &Snapshot) -> Vec<String> {
    let beyond = snapshot
        .services()
        .filter(|service| service.replicas() > Some(REPLICAS_MAX) && !service.is_job());
    beyond
        .filter_map(|service| {
            Some(format!(
                "service {}: {}",
                service.name(),
                fewer_tasks(snapshot, service)?
            ))
        })
        .collect()
}

fn fewer_tasks(snapshot: &Snapshot, service: &Service) -> Option<String> {
    let asked = service.replicas().filter(|asked| *asked > REPLICAS_MAX)?;
    let given = Wishes::of(snapshot).replicas(service)?;
    Some(format!(
        "Mode.Replicated.Replicas {asked}: only {given} tasks are made: expected at most {REPLICAS_MAX}"
    ))
}

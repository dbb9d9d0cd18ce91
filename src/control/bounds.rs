//! Bounds of the control plane: how many tasks may be asked for, how many that have ended are remembered, and how much is
//! planned at once. The API refuses what is beyond them. What was stored by an older version is cut down to them, and said.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::swarm::{Id, Service};
use crate::store::Snapshot;

/// The most tasks that one replicated service may ask for.
pub const REPLICAS_MAX: u64 = 10_000;
/// The most tasks that all services may ask for together; a global one asks for one on each node.
pub const TASKS_MAX: u64 = 100_000;
/// So many writes, at most a few more, are planned at once: between two such portions others have their turn.
pub(super) const PORTION: usize = 1_000;
/// So many of them may be new tasks of one service.
pub(super) const PORTION_OF_SERVICE: usize = 250;
/// A slot is followed no sooner than this after its last task was made, also where the restart delay is shorter.
pub(super) const FOLLOW_LEAST: Duration = Duration::from_millis(100);

/// The most tasks that a slot remembers, whatever was asked for.
const HISTORY_MAX: usize = 1_000;
/// The most tasks that all slots remember together. More than the default of 5 for each of `TASKS_MAX`.
const HISTORY_TOTAL: u64 = 500_000;

/// How many tasks each service gets of those that it asks for.
pub(super) struct Wishes {
    /// Those that get fewer than they may ask for alone.
    reduced: BTreeMap<Id, u64>,
    total: u64,
}

impl Wishes {
    pub(super) fn of(snapshot: &Snapshot) -> Wishes {
        let n_nodes = snapshot.nodes().count() as u64;
        let asked = |service: &Service| {
            service
                .replicas()
                .map_or(n_nodes, |replicas| replicas.min(REPLICAS_MAX))
        };
        let total: u64 = snapshot.services().map(|service| asked(service)).sum();
        let mut wishes = Wishes {
            reduced: BTreeMap::new(),
            total: total.min(TASKS_MAX),
        };
        if total > TASKS_MAX {
            let mut services: Vec<_> = snapshot.services().collect();
            services.sort_by_key(|service| (service.meta.created_at, service.id.clone()));
            let mut left = TASKS_MAX;
            for service in services {
                let given = asked(service).min(left);
                left -= given;
                if given < asked(service) {
                    wishes.reduced.insert(service.id.clone(), given);
                }
            }
        }
        wishes
    }

    /// `None` for a global service.
    pub(super) fn replicas(&self, service: &Service) -> Option<u64> {
        let asked = service.replicas()?.min(REPLICAS_MAX);
        Some(self.reduced.get(&service.id).copied().unwrap_or(asked))
    }

    /// How many tasks a slot may remember, the living one among them. `limit`: what was asked for, `None` for all.
    pub(super) fn history(&self, limit: Option<usize>) -> usize {
        let share = usize::try_from(HISTORY_TOTAL / self.total.max(1)).unwrap_or(HISTORY_MAX);
        limit.unwrap_or(HISTORY_MAX).min(HISTORY_MAX).min(share.max(1))
    }
}

/// How many tasks are asked for by all services, but for the one of this name. Each alone within its bound.
pub fn tasks_asked_for(snapshot: &Snapshot, except: Option<&str>) -> u64 {
    let n_nodes = snapshot.nodes().count() as u64;
    let others = snapshot.services().filter(|service| Some(service.name()) != except);
    others
        .map(|service| {
            service
                .replicas()
                .map_or(n_nodes, |replicas| replicas.min(REPLICAS_MAX))
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, replicated, spec};
    use super::*;

    #[test]
    fn what_was_stored_beyond_the_bounds_is_cut_down_to_them_first_come_first_served() {
        let mut world = World::new(1, 1);
        let one = world.create(spec(replicated("one", "healthy", 1_000_000_000)));
        let wishes = Wishes::of(&world.snapshot);
        assert_eq!(wishes.replicas(world.service(&one)), Some(REPLICAS_MAX));
        assert_eq!(wishes.history(Some(5)), 5);
        assert_eq!(wishes.history(None), 50);
        let others: Vec<Id> = (0..10)
            .map(|i| {
                world.now = world.now + Duration::from_secs(1);
                world.create(spec(replicated(&format!("s{i}"), "healthy", REPLICAS_MAX)))
            })
            .collect();
        let wishes = Wishes::of(&world.snapshot);
        let given = |id: &Id| wishes.replicas(world.service(id)).unwrap();
        assert_eq!(given(&one) + others.iter().map(given).sum::<u64>(), TASKS_MAX);
        assert_eq!(others.iter().map(given).collect::<Vec<u64>>()[8..], [REPLICAS_MAX, 0]);
        assert_eq!(wishes.history(None), 5);
    }
}

//! Has the reconcilers plan whenever something changes or a time has come, and commits what they plan.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Context, PLANNERS, Plan, Planner};
use crate::model::swarm::{Id, Time};
use crate::store::{CommitError, Store};

/// Drives the reconcilers on `store` until `shutdown`.
pub async fn run(store: Arc<dyn Store>, shutdown: impl Future<Output = ()>) {
    let drive = async {
        let mut changed = store.changed();
        loop {
            changed.mark_unchanged();
            let wake_at = reconcile(&*store).await;
            let pause = wake_at.map_or(LOOK_AT_LEAST, |at| at.since(Time::now()).min(LOOK_AT_LEAST));
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(pause) => {}
            }
        }
    };
    tokio::select! {
        () = drive => {}
        () = shutdown => {}
    }
}

/// Plans and commits until nobody wants anything more; returns when somebody will.
async fn reconcile(store: &dyn Store) -> Option<Time> {
    let started = Instant::now();
    let mut wake_at: Option<Time> = None;
    for _ in 0..ROUNDS_MAX {
        let mut is_at_rest = true;
        wake_at = None;
        for (name, planner) in PLANNERS {
            let (plan, is_done) = plan_and_commit(store, name, *planner).await;
            is_at_rest &= is_done;
            wake_at = [wake_at, plan].into_iter().flatten().min();
        }
        if is_at_rest {
            break;
        }
    }
    let took = started.elapsed();
    if took > SLOW {
        tracing::debug!(?took, "reconciled slowly");
    }
    wake_at
}

/// Returns when it wants to look again, and whether it wanted nothing done.
async fn plan_and_commit(store: &dyn Store, name: &str, planner: Planner) -> (Option<Time>, bool) {
    loop {
        let base = store.snapshot();
        let Plan { writes, wake_at } = planner(&mut Context {
            snapshot: &base,
            now: Time::now(),
            ids: &mut || Id::from_bits(fastrand::u128(..)),
        });
        if writes.is_empty() {
            return (wake_at, true);
        }
        let n = writes.len();
        match store.commit(&base, writes).await {
            Ok(snapshot) => {
                tracing::debug!(planner = name, writes = n, revision = snapshot.revision(), "planned");
                return (wake_at, false);
            }
            Err(CommitError::Conflict { .. }) => {}
            // The store says so itself, once, and wakes whoever follows it when it is written again.
            Err(CommitError::Io { .. }) => return (Some(Time::now() + COMMIT_AGAIN), true),
            Err(error) => {
                tracing::error!(planner = name, %error, "what was planned is not written");
                return (Some(Time::now() + COMMIT_AGAIN), true);
            }
        }
    }
}

/// Clocks may be set.
const LOOK_AT_LEAST: Duration = Duration::from_secs(30);
const COMMIT_AGAIN: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_millis(50);
/// Each round moves something forward; that they never end would be a fault, and must not burn a core.
const ROUNDS_MAX: usize = 100;

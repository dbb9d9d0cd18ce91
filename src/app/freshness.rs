//! Whether what a node of a Docker Swarm serves is what the swarm's managers say at this moment, looked at again and again
//! and told to whoever shows it. Not here: how the cluster is learned (`source`, `link`).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::admin::SwarmView;
use crate::source::SourceStatus;
use crate::source::swarm::Way;

/// Tells `status`, until `shutdown`.
pub(super) async fn watch(view: Arc<SwarmView>, status: Arc<SourceStatus>, shutdown: impl Future<Output = ()>) {
    tokio::pin!(shutdown);
    loop {
        match look(&view) {
            // What was learned is served once a table was made of it.
            Ok(()) if status.applied_total.load(Relaxed) == 0 => {}
            Ok(()) => {
                if !status.is_current() && status.known_at().is_some() {
                    tracing::info!("the cluster is current again");
                }
                status.confirmed();
            }
            Err(reason) => {
                let was_current = status.is_current();
                status.stale(reason.clone());
                if was_current {
                    tracing::warn!("the cluster may be old: {reason}");
                }
            }
        }
        tokio::select! {
            () = &mut shutdown => break,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Errors: why what is known may be old.
fn look(view: &SwarmView) -> Result<(), String> {
    let (way, _, error) = view.status.way();
    let because = |what: &str| match &error {
        Some(error) => format!("{what}: {error}"),
        None => what.to_owned(),
    };
    match way {
        Way::Watch | Way::Poll => Ok(()),
        Way::Link if view.peers.is_following() => Ok(()),
        Way::Link => Err(because("no manager's anynode answers on its link")),
        Way::Kept => Err(because(
            "this node's engine is silent, and no manager has anything newer",
        )),
        Way::None => Err(because("this node's engine has not said yet which swarm it is of")),
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(250);

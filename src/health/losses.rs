//! Says, once, when a service has lost its last endpoint, and when it has one again. Not here: what is said of each endpoint
//! by itself (`routing::Endpoint`).

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::model::ServiceName;
use crate::routing::{Listener, RoutingTable, Said, Service, ServiceDiff, TableHandle};

/// Follows the health of all services until `shutdown`. Costs what changes; at rest nothing.
pub async fn say_losses(table: Arc<TableHandle>, shutdown: impl Future<Output = ()>) {
    let mut losses = Losses::default();
    let mut revision = table.subscribe();
    table.health_news().listen(Listener::Losses);
    tokio::pin!(shutdown);
    loop {
        revision.mark_unchanged();
        losses.follow(table.load());
        let heard = tokio::select! {
            () = &mut shutdown => break,
            changed = revision.changed() => match changed {
                Ok(()) => Vec::new(),
                Err(_) => break,
            },
            services = table.health_news().next(Listener::Losses) => services,
        };
        let now = table.load();
        for service in heard.iter().filter_map(|name| now.service(name)) {
            losses.look(service);
        }
        // What comes in a burst is looked at together.
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

#[derive(Default)]
struct Losses {
    seen: Arc<RoutingTable>,
    by_service: HashMap<ServiceName, Loss>,
}

#[derive(Default)]
struct Loss {
    /// It has endpoints, and none is well.
    is_lost: bool,
    said: Said,
}

impl Losses {
    fn follow(&mut self, table: Arc<RoutingTable>) {
        let seen = std::mem::replace(&mut self.seen, table.clone());
        for diff in RoutingTable::diff(&seen, &table) {
            match diff {
                ServiceDiff::Added(after) | ServiceDiff::Changed { after, .. } => self.look(after),
                ServiceDiff::Removed(before) => drop(self.by_service.remove(before.name())),
            }
        }
    }

    fn look(&mut self, service: &Service) {
        service.state().heard_news(Listener::Losses);
        let is_lost = service.is_lost();
        if !is_lost && !self.by_service.contains_key(service.name()) {
            return;
        }
        let loss = self.by_service.entry(service.name().clone()).or_default();
        let (was_lost, now) = (std::mem::replace(&mut loss.is_lost, is_lost), Instant::now());
        let name = service.name();
        if is_lost {
            if !was_lost {
                service.stats().losses.fetch_add(1, Relaxed);
            }
            if let Some(n_unsaid) = loss.said.out(now) {
                let n = service.endpoints().len();
                tracing::error!(service = %name, n_unsaid, "the last endpoint is lost: none of {n} is well, so all are tried");
            }
        } else if was_lost {
            service.stats().recoveries.fetch_add(1, Relaxed);
            // Scaled to nothing, it has none to lose.
            if loss.said.back(now) && !service.endpoints().is_empty() {
                tracing::info!(service = %name, "an endpoint is well again");
            }
        }
    }
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

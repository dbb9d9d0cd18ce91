//! Active health checks: every endpoint of a service that has a check is probed at its interval, and its verdict is
//! written beside the table; and what is said of services that lose their last endpoint. Passive ejection is the endpoint's
//! own affair (`routing`), fed by `proxy`.

mod losses;
mod probe;
mod verdict;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

pub use self::losses::say_losses;
use self::probe::{Fault, Manner, probe};
use self::verdict::Verdict;
use crate::model::{HealthCheck, HealthProbe, Scheme};
use crate::routing::{Endpoint, EndpointId, EndpointState, RoutingTable, Service, ServiceDiff, TableHandle};
use crate::tls::Trust;

/// Probes by their result.
#[derive(Debug, Default)]
pub struct HealthStats {
    pub good: AtomicU64,
    pub bad: AtomicU64,
    pub timed_out: AtomicU64,
}

/// Keeps the endpoints of a table probed.
pub struct Prober {
    table: Arc<TableHandle>,
    stats: Arc<HealthStats>,
    seen: Arc<RoutingTable>,
    running: HashMap<EndpointId, Running>,
    /// Probes at once; at the start of a large table the others take their turn.
    slots: Arc<Semaphore>,
    /// Says whom endpoints are believed to be that speak TLS.
    trust: Arc<Trust>,
}

struct Running {
    task: AbortHandle,
    check: HealthCheck,
    addr: SocketAddr,
    manner: Manner,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    pub fn new(table: Arc<TableHandle>, trust: Arc<Trust>) -> Prober {
        Prober {
            table,
            stats: Arc::default(),
            seen: Arc::default(),
            running: HashMap::new(),
            slots: Arc::new(Semaphore::new(PROBES_AT_ONCE)),
            trust,
        }
    }

    pub fn stats(&self) -> &Arc<HealthStats> {
        &self.stats
    }

    /// Follows the table until `shutdown`. Within a tokio runtime.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut revision = self.table.subscribe();
        tokio::pin!(shutdown);
        loop {
            revision.mark_unchanged();
            self.follow();
            tokio::select! {
                () = &mut shutdown => break,
                changed = revision.changed() => if changed.is_err() { break },
            }
        }
    }

    fn follow(&mut self) {
        let table = self.table.load();
        let seen = std::mem::replace(&mut self.seen, table.clone());
        for diff in RoutingTable::diff(&seen, &table) {
            let (before, after) = match diff {
                ServiceDiff::Added(after) => (None, Some(after)),
                ServiceDiff::Changed { before, after } => (Some(before), Some(after)),
                ServiceDiff::Removed(before) => (Some(before), None),
            };
            for endpoint in before.iter().flat_map(|service| service.endpoints()) {
                let stays = after.is_some_and(|after| after.endpoints().iter().any(|e| e.id() == endpoint.id()));
                if !stays {
                    self.running.remove(&endpoint.id());
                }
            }
            if let Some(after) = after {
                self.keep_probed(after);
            }
        }
    }

    fn keep_probed(&mut self, service: &Service) {
        let target = service.spec().vip_ports().first().copied().unwrap_or_default();
        // Tasks of other nodes are probed there; here the state of the link to their node is what is known of them.
        for endpoint in service
            .endpoints()
            .iter()
            .filter(|endpoint| !endpoint.spec().is_remote())
        {
            let Some(check) = &service.spec().health else {
                self.running.remove(&endpoint.id());
                endpoint.clear_probed();
                continue;
            };
            let addr = endpoint.dial_addr(target);
            let manner = Manner {
                scheme: service.spec().scheme,
                tls: service.spec().endpoint_tls.clone(),
                service: service.name().clone(),
            };
            let is_as_before = self
                .running
                .get(&endpoint.id())
                .is_some_and(|running| running.check == *check && running.addr == addr && running.manner == manner);
            if is_as_before {
                continue;
            }
            let watch = Watch {
                endpoint: endpoint.clone(),
                addr,
                manner: manner.clone(),
                check: check.clone(),
                trust: self.trust.clone(),
                stats: self.stats.clone(),
                slots: self.slots.clone(),
            };
            let running = Running {
                task: tokio::spawn(watch.run()).abort_handle(),
                check: check.clone(),
                addr,
                manner,
            };
            self.running.insert(endpoint.id(), running);
        }
    }
}

/// What came of one probe.
enum Found {
    Good,
    /// And why.
    Bad(String),
    /// It could not be asked, which is this node's own affair.
    Nothing,
}

/// The probing of one endpoint.
struct Watch {
    endpoint: Arc<Endpoint>,
    addr: SocketAddr,
    manner: Manner,
    check: HealthCheck,
    trust: Arc<Trust>,
    stats: Arc<HealthStats>,
    slots: Arc<Semaphore>,
}

impl Watch {
    async fn run(self) {
        let takes_traffic = self.endpoint.state(std::time::Instant::now()) != EndpointState::Unready;
        let mut verdict = Verdict::new(takes_traffic);
        loop {
            let started = tokio::time::Instant::now();
            let found = self.probe_once().await;
            let fault = match found {
                Found::Good => None,
                Found::Bad(fault) => Some(fault),
                Found::Nothing => {
                    // As without a check: that this node has nobody to judge it by is no word on it.
                    self.endpoint.clear_probed();
                    verdict = Verdict::new(true);
                    None
                }
            };
            self.endpoint.checked(fault.as_deref());
            if let Some(is_up) = verdict.take(fault.is_none(), &self.check) {
                self.endpoint.set_probed(is_up);
                let (service, addr) = (self.endpoint.service().name(), self.addr);
                match fault {
                    None => tracing::info!(%service, endpoint = %addr, "healthy"),
                    Some(fault) => tracing::warn!(%service, endpoint = %addr, "unhealthy: {fault}"),
                }
            }
            // Up to a tenth sooner, so that probes that began together do not stay together.
            let jitter = self.check.interval.mul_f64(fastrand::f64() / 10.0);
            tokio::time::sleep_until(started + self.check.interval - jitter).await;
        }
    }

    async fn probe_once(&self) -> Found {
        // The semaphore is never closed.
        let Ok(_slot) = self.slots.acquire().await else {
            return Found::Good;
        };
        let netns = self.endpoint.spec().netns.as_ref();
        let probing = probe(self.addr, netns, &self.manner, &self.trust, &self.check.probe);
        let result = tokio::time::timeout(self.check.timeout, probing).await;
        let is_secured = self.manner.scheme == Scheme::Https && self.check.probe != HealthProbe::Tcp;
        match &result {
            Ok(Ok(())) if is_secured => self.endpoint.set_tls_fault(None),
            Ok(Err(Fault::Tls(fault))) => self.endpoint.set_tls_fault(Some(&fault.text)),
            _ => {}
        }
        match result {
            Ok(Ok(())) => {
                self.stats.good.fetch_add(1, Relaxed);
                Found::Good
            }
            Ok(Err(Fault::Tls(fault))) if !fault.is_of_endpoint() => Found::Nothing,
            Ok(Err(fault)) => {
                self.stats.bad.fetch_add(1, Relaxed);
                let cause = std::error::Error::source(&fault)
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                Found::Bad(format!("{fault}{cause}"))
            }
            Err(_) => {
                self.stats.timed_out.fetch_add(1, Relaxed);
                Found::Bad(format!("no answer within {}", show(self.check.timeout)))
            }
        }
    }
}

fn show(duration: Duration) -> String {
    crate::model::format_duration(duration)
}

const PROBES_AT_ONCE: usize = 256;

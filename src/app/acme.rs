//! Which names certificates are ordered for: the hosts that routes name, of requests and of connections, where TLS ends. Followed with the table, and
//! told to `tls::Acme`. Not here: when and how they are ordered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{AcmeName, RouteTls};
use crate::routing::{Front, RoutingTable, TableHandle};
use crate::tls::{Acme, Wanted, WantedBy, is_host};

/// Tells `acme` what the table's routes want, whenever they change. Never ends.
pub(super) async fn follow(table: Arc<TableHandle>, acme: Arc<Acme>) {
    let known: BTreeSet<AcmeName> = acme.names().into_iter().collect();
    let mut revisions = table.subscribe();
    let mut before: Option<Vec<Front>> = None;
    loop {
        let now = table.load();
        let entry_points = now.entry_points().iter();
        let both = entry_points.flat_map(|one| [one.front().clone(), one.streams().clone()]);
        let fronts: Vec<Front> = both.collect();
        let is_same = |before: &Vec<Front>| before.iter().zip(&fronts).all(|(one, other)| one.is_same_as(other));
        if !before.as_ref().is_some_and(is_same) {
            acme.want(wanted(&now, &known));
            before = Some(fronts);
        }
        drop(now);
        if revisions.changed().await.is_err() {
            return std::future::pending().await;
        }
        // What changes often is looked at now and then.
        tokio::time::sleep(PAUSE).await;
        revisions.mark_unchanged();
    }
}

const PAUSE: Duration = Duration::from_millis(300);

/// `known`: the authorities of the configuration.
fn wanted(table: &RoutingTable, known: &BTreeSet<AcmeName>) -> Wanted {
    let mut wanted = Wanted::default();
    for entry_point in table.entry_points().iter().filter(|one| one.spec().is_tls) {
        let of_requests = entry_point.front().routes();
        for routed in of_requests.chain(entry_point.streams().routes()) {
            if matches!(routed.route.tls, RouteTls::Passthrough | RouteTls::Without) {
                continue;
            }
            let Some(acme) = routed.route.acme.as_ref().or(entry_point.spec().acme.as_ref()) else {
                continue;
            };
            let mut fault = |what: String| {
                let at = format!("service {}: {}", routed.service, routed.route.said_by);
                wanted.faults.insert(format!("{at}: {what}"));
            };
            if !known.contains(acme) {
                fault(format!(
                    "no certificate is ordered, since the configuration has no [acme.{acme}]"
                ));
                continue;
            }
            for host in routed.route.rule.named_hosts() {
                if !is_host(host) {
                    fault(format!(
                        "no certificate is ordered for {host}: expected a name of 246 bytes at most, no address and no wildcard"
                    ));
                    continue;
                }
                let by = WantedBy {
                    acme: acme.clone(),
                    service: routed.service.clone(),
                    said_by: routed.route.said_by.clone(),
                };
                let is_first = |known: &WantedBy| known.acme == by.acme && known.service == by.service;
                match wanted.names.get(host) {
                    None => drop(wanted.names.insert(host.to_owned(), by)),
                    Some(first) if is_first(first) => {}
                    Some(_) => drop(wanted.others.entry(host.to_owned()).or_default().insert(by)),
                }
            }
        }
    }
    wanted
}

//! The one place where the current table is kept and swapped. Writers are few and take a lock; readers take none.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::endpoint::Endpoint;
use super::service::Service;
use super::state::{HealthNews, ServiceState};
use super::table::{Change, RoutingTable, ServiceDiff, TableError};
use crate::model::{EntryPointSpec, Scheme, ServiceName, TaskRef};

/// The current table. Whoever needs to follow it subscribes to its revision, and loads the table when woken: `watch`
/// only wakes, so that a slow follower skips tables instead of queueing them.
#[derive(Debug)]
pub struct TableHandle {
    current: ArcSwap<RoutingTable>,
    revision: watch::Sender<u64>,
    /// Held by whoever commits. std mutex: nothing awaits under it.
    writer: Mutex<Writer>,
    health_news: Arc<HealthNews>,
    place: AtomicU32,
}

#[derive(Debug, Default)]
struct Writer {
    /// Every service still known to someone: a service that comes back while connections last goes on counting.
    states: HashMap<ServiceName, Weak<ServiceState>>,
    /// Endpoints that left the table, for as long as connections hold them: one that comes back is the same again.
    retired: HashMap<ServiceName, Vec<Weak<Endpoint>>>,
}

impl Default for TableHandle {
    fn default() -> TableHandle {
        TableHandle {
            current: ArcSwap::from_pointee(RoutingTable::default()),
            revision: watch::Sender::new(0),
            writer: Mutex::default(),
            health_news: Arc::default(),
            place: AtomicU32::new(0),
        }
    }
}

impl TableHandle {
    /// A handle whose tables all have these entry points. No two may be at one place.
    pub fn with_entry_points(specs: Vec<EntryPointSpec>) -> TableHandle {
        TableHandle {
            current: ArcSwap::from_pointee(RoutingTable::with_entry_points(specs)),
            ..TableHandle::default()
        }
    }

    /// The current table; a reference count, for whoever keeps it a while.
    pub fn load(&self) -> Arc<RoutingTable> {
        self.current.load_full()
    }

    /// The current table; cheaper still, for whoever lets go at once.
    pub fn peek(&self) -> arc_swap::Guard<Arc<RoutingTable>> {
        self.current.load()
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Which services' endpoints changed their health.
    pub fn health_news(&self) -> &Arc<HealthNews> {
        &self.health_news
    }

    /// Where this node begins in the list of a service's endpoints, counted round, where it gave nothing to any of them yet.
    /// Nodes that serve the same table are to have different ones.
    pub fn set_place(&self, place: u32) {
        self.place.store(place, Ordering::Relaxed);
    }

    /// Makes the next table from `changes` and swaps it in; whoever looks from then on sees all of them.
    ///
    /// Returns its revision. Errors: `TableError`, with nothing changed. No changes make no revision.
    pub fn commit(&self, changes: &[Change]) -> Result<u64, TableError> {
        let mut writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = self.current.load_full();
        if changes.is_empty() {
            return Ok(before.revision());
        }
        let table = Arc::new(before.next(changes, |spec, vip, predecessor| {
            let state = writer.states.get(&spec.name).and_then(Weak::upgrade);
            let state =
                state.unwrap_or_else(|| Arc::new(ServiceState::new(spec.name.clone(), self.health_news.clone())));
            let retired = writer.retired(&spec.name);
            Service::build(
                spec,
                vip,
                state,
                predecessor,
                retired,
                self.place.load(Ordering::Relaxed),
            )
        })?);
        let pairs: Vec<(Option<&Service>, Option<&Service>)> = RoutingTable::diff(&before, &table)
            .map(|diff| match diff {
                ServiceDiff::Added(after) => (None, Some(&**after)),
                ServiceDiff::Changed { before, after } => (Some(&**before), Some(&**after)),
                ServiceDiff::Removed(before) => (Some(&**before), None),
            })
            .collect();
        // Who returns is no leaver any more before anybody sees the table with it, and who leaves is one only after
        // everybody sees the table without it: so no table ever holds a leaver.
        pairs.iter().filter_map(|(_, after)| *after).for_each(Service::welcome);
        self.current.store(table.clone());
        for (before, after) in pairs {
            if let Some(before) = before {
                if before.spec().scheme == Scheme::Https && after.is_some_and(|it| it.spec().scheme != Scheme::Https) {
                    before.endpoints().iter().for_each(|endpoint| endpoint.drop_tls_fault());
                }
                writer.retire(before.name(), before.dismiss(after));
            }
        }
        writer.remember(&table, changes);
        self.revision.send_replace(table.revision());
        Ok(table.revision())
    }

    /// Counters of services that left the table while connections of theirs last, beside those in it.
    pub fn lingering(&self) -> Vec<Arc<ServiceState>> {
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let table = self.current.load();
        let gone = writer.states.iter().filter(|(name, _)| table.service(name).is_none());
        gone.filter_map(|(_, state)| state.upgrade()).collect()
    }

    /// Endpoints of a service that left the table and still have connections.
    pub fn draining(&self, service: &ServiceName) -> Vec<Arc<Endpoint>> {
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut retired = writer.retired(service);
        retired.retain(|endpoint| endpoint.is_draining());
        retired
    }

    /// The endpoint that was the task of this node with this id and has left the table, while connections hold it.
    pub fn left_task(&self, id: &str) -> Option<Arc<Endpoint>> {
        // Taken first: whoever commits marks those that left after everybody sees the table without them.
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_meant = |task: &Arc<TaskRef>| *task.id == *id && !task.is_remote;
        let mut left = writer.retired.values().flatten().filter_map(Weak::upgrade);
        left.find(|endpoint| endpoint.is_draining() && endpoint.task().is_some_and(is_meant))
    }
}

impl Writer {
    fn retired(&self, service: &ServiceName) -> Vec<Arc<Endpoint>> {
        let retired = self.retired.get(service);
        retired.into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    fn retire(&mut self, service: &ServiceName, leavers: Vec<&Arc<Endpoint>>) {
        if leavers.is_empty() {
            return;
        }
        let retired = self.retired.entry(service.clone()).or_default();
        retired.retain(|old| {
            old.strong_count() > 0 && !leavers.iter().any(|e| std::ptr::eq(old.as_ptr(), Arc::as_ptr(e)))
        });
        retired.extend(leavers.into_iter().map(Arc::downgrade));
    }

    fn remember(&mut self, table: &RoutingTable, changes: &[Change]) {
        for change in changes {
            let Change::Upsert { spec, .. } = change else { continue };
            let Some(service) = table.service(&spec.name) else {
                continue;
            };
            self.states.insert(spec.name.clone(), Arc::downgrade(service.state()));
        }
        // Amortized: swept when the dead could be as many as the living.
        if self.states.len() > 2 * table.len() + 16 {
            self.states.retain(|_, state| state.strong_count() > 0);
        }
        if self.retired.len() > 2 * table.len() + 16 {
            self.retired
                .retain(|_, left| left.iter().any(|endpoint| endpoint.strong_count() > 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HealthCheck, HealthProbe, ServiceSpec};
    use crate::routing::{Asker, EndpointState, Listen, ListenKind, Listener, Outcome};
    use proptest::collection::vec;
    use proptest::prelude::{prop_assert_eq, proptest};
    use std::time::{Duration, Instant};

    fn spec(name: &str, publish: &[&str], endpoints: &[&str]) -> ServiceSpec {
        let mut spec = ServiceSpec::new(ServiceName::new(name).unwrap());
        spec.publish = publish.iter().map(|port| port.parse().unwrap()).collect();
        spec.endpoints = endpoints
            .iter()
            .map(|port| format!("127.0.0.1:{port}").parse().unwrap())
            .collect();
        spec
    }

    fn upsert(spec: &ServiceSpec) -> Change {
        Change::Upsert {
            spec: Arc::new(spec.clone()),
            vip: None,
        }
    }

    fn web(handle: &TableHandle) -> Arc<Service> {
        handle.load().service_by_key("web").unwrap().clone()
    }

    /// The last digit of the port of the next `n` endpoints in turn.
    fn turns(handle: &TableHandle, n: usize) -> String {
        let service = web(handle);
        let mut shown = String::new();
        for _ in 0..n {
            let i = service.picks(Instant::now()).next().unwrap();
            shown.push(service.endpoints()[i].addr().port().to_string().pop().unwrap());
        }
        shown
    }

    #[test]
    fn turns_are_exact_and_pass_on_to_the_next_table() {
        let handle = TableHandle::default();
        handle
            .commit(&[upsert(&spec("web", &[], &["9001", "9002", "9003"]))])
            .unwrap();
        assert_eq!(turns(&handle, 7), "1231231");
        handle
            .commit(&[upsert(&spec("web", &[], &["9001", "9002", "9003", "9004"]))])
            .unwrap();
        assert_eq!(turns(&handle, 5), "23412");
        handle
            .commit(&[upsert(&spec("web", &[], &["9001", "9004", "9002"]))])
            .unwrap();
        assert_eq!(turns(&handle, 3), "421", "3 is gone, 4 was to follow it");
    }

    #[test]
    fn the_unhealthy_are_skipped_and_without_any_healthy_all_are_used() {
        let handle = TableHandle::default();
        handle
            .commit(&[upsert(&spec("web", &[], &["9001", "9002", "9003"]))])
            .unwrap();
        let service = web(&handle);
        let now = Instant::now();
        let eject = |i: usize| {
            (0..3).for_each(|_| {
                service.endpoints()[i].report(Outcome::Failed(std::io::ErrorKind::ConnectionRefused), now)
            })
        };
        eject(1);
        assert_eq!(turns(&handle, 4), "1313");
        eject(0);
        eject(2);
        assert!(service.picks(now).is_panic());
        assert_eq!(turns(&handle, 3), "123");
        service.endpoints()[2].report(Outcome::Reached, now);
        assert!(!service.picks(now).is_panic());
        assert_eq!(turns(&handle, 2), "33");
        assert_eq!(
            service.picks(now + Duration::from_secs(2)).len(),
            3,
            "ejections end by time alone"
        );
    }

    #[test]
    fn a_new_table_keeps_what_is_known_of_endpoints_that_stay() {
        let handle = TableHandle::default();
        let mut declared = spec("web", &[], &["9001", "9002"]);
        declared.health = Some(HealthCheck::new(HealthProbe::Tcp));
        handle.commit(&[upsert(&declared)]).unwrap();
        let first = web(&handle).endpoints()[0].clone();
        first.set_probed(true);
        assert!(first.begin(0));
        declared.endpoints.remove(1);
        handle.commit(&[upsert(&declared)]).unwrap();
        let service = web(&handle);
        assert!(Arc::ptr_eq(&first, &service.endpoints()[0]));
        assert_eq!(
            (first.in_flight(), first.state(Instant::now())),
            (1, EndpointState::Ready)
        );
    }

    #[test]
    fn nodes_begin_apart_also_where_tasks_come_one_by_one() {
        let node = |place: u32| {
            let handle = TableHandle::default();
            handle.set_place(place);
            for n in 0..=3 {
                let ports = ["9001", "9002", "9003"];
                handle.commit(&[upsert(&spec("web", &[], &ports[..n]))]).unwrap();
            }
            let before = turns(&handle, 4);
            handle
                .commit(&[upsert(&spec("web", &[], &["9001", "9002", "9003", "9004"]))])
                .unwrap();
            (before, turns(&handle, 4))
        };
        let shown = |before: &str, after: &str| (before.to_owned(), after.to_owned());
        assert_eq!(node(0), shown("1231", "2341"));
        assert_eq!(node(1), shown("2312", "3412"));
        assert_eq!(node(2), shown("3123", "1234"), "the turn stays with whose it is");
        assert_eq!(node(7).0, "2312");
    }

    #[test]
    fn no_more_than_half_rests_for_silence_and_never_the_last() {
        for (n, n_rest) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
            let handle = TableHandle::default();
            let ports: Vec<String> = (1..=n).map(|i| (9000 + i).to_string()).collect();
            let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
            handle.commit(&[upsert(&spec("web", &[], &ports))]).unwrap();
            let (service, now) = (web(&handle), Instant::now());
            for endpoint in service.endpoints() {
                for client in 1..=6 {
                    let asker = Asker::of(std::net::SocketAddr::from(([192, 0, 2, client], 1)));
                    service.left_unanswered(endpoint, asker, now);
                }
            }
            let rests = |endpoint: &&Arc<Endpoint>| endpoint.state(now) == EndpointState::Resting;
            assert_eq!(service.endpoints().iter().filter(rests).count(), n_rest, "of {n}");
        }
    }

    #[tokio::test]
    async fn what_changes_in_health_is_news_once_until_it_is_heard() {
        let handle = TableHandle::default();
        handle
            .commit(&[upsert(&spec("web", &[], &["9001"])), upsert(&spec("b", &[], &["9001"]))])
            .unwrap();
        let service = web(&handle);
        let endpoint = &service.endpoints()[0];
        endpoint.set_probed(true);
        for listener in [Listener::Losses, Listener::Page] {
            handle.health_news().listen(listener);
            service.state().heard_news(listener);
        }
        for is_up in [false, true, false] {
            assert!(endpoint.set_probed(is_up));
        }
        assert!(service.is_lost() && !endpoint.set_probed(false));
        let next = |listener| handle.health_news().next(listener);
        assert_eq!(next(Listener::Losses).await, [service.name().clone()]);
        service.state().heard_news(Listener::Losses);
        endpoint.set_probed(true);
        assert!(!service.is_lost());
        assert_eq!(next(Listener::Losses).await, [service.name().clone()]);
        assert_eq!(
            next(Listener::Page).await,
            [service.name().clone()],
            "once for each who listens"
        );
    }

    #[test]
    fn a_task_that_left_is_found_while_connections_hold_it() {
        let handle = TableHandle::default();
        let mut declared = spec("web", &[], &["9001", "9002"]);
        for (i, endpoint) in declared.endpoints.iter_mut().enumerate() {
            endpoint.task = Some(Arc::new(TaskRef {
                id: format!("task{i}").into(),
                name: format!("web.{i}"),
                service: "web".into(),
                node: "node".into(),
                hostname: "host".into(),
                is_remote: false,
                addresses: Vec::new(),
                names: Vec::new(),
            }));
        }
        handle.commit(&[upsert(&declared)]).unwrap();
        let held = web(&handle).endpoints()[1].clone();
        assert!(handle.left_task("task1").is_none(), "it is still there");
        declared.endpoints.pop();
        handle.commit(&[upsert(&declared)]).unwrap();
        assert!(Arc::ptr_eq(&handle.left_task("task1").unwrap(), &held));
        handle.commit(&[Change::Remove(declared.name.clone())]).unwrap();
        assert!(Arc::ptr_eq(&handle.left_task("task1").unwrap(), &held));
        assert!(handle.left_task("task0").is_none(), "nobody holds it");
        drop(held);
        assert!(handle.left_task("task1").is_none());
    }

    #[test]
    fn an_endpoint_that_leaves_drains_and_one_that_returns_is_the_same() {
        let handle = TableHandle::default();
        handle.commit(&[upsert(&spec("web", &["80:80"], &["9001"]))]).unwrap();
        let endpoint = web(&handle).endpoints()[0].clone();
        let state = web(&handle).state().clone();
        handle
            .commit(&[Change::Remove(ServiceName::new("WEB").unwrap())])
            .unwrap();
        assert!(endpoint.is_draining());
        assert_eq!(handle.lingering().len(), 1);
        assert_eq!(handle.load().listens().count(), 0);
        handle.commit(&[upsert(&spec("web", &[], &["9001"]))]).unwrap();
        assert!(Arc::ptr_eq(&endpoint, &web(&handle).endpoints()[0]) && !endpoint.is_draining());
        assert!(Arc::ptr_eq(&state, web(&handle).state()));
        assert!(handle.draining(state.name()).is_empty());
    }

    #[test]
    fn a_change_that_conflicts_changes_nothing() {
        let handle = TableHandle::default();
        handle.commit(&[upsert(&spec("web", &["8080:80"], &["9001"]))]).unwrap();
        for (bad, text) in [
            (
                spec("b", &["8080:80"], &[]),
                "service b: publish: port *:8080 is already published by service web",
            ),
            (
                spec("b", &["127.0.0.1:8080:80"], &[]),
                "service b: publish: port 127.0.0.1:8080 is already published by service web",
            ),
            (
                spec("b", &["1:80", "1:81"], &[]),
                "service b: publish: port *:1 is listed twice",
            ),
            (
                spec("b", &[], &["1", "1"]),
                "service b: endpoints: 127.0.0.1:1 is listed twice",
            ),
        ] {
            let error = handle
                .commit(&[upsert(&spec("c", &[], &[])), upsert(&bad)])
                .unwrap_err();
            assert_eq!(error.to_string(), text);
            assert_eq!((handle.load().revision(), handle.load().len()), (1, 1));
        }
    }

    #[test]
    fn a_port_may_pass_from_one_service_to_another_in_one_commit() {
        let handle = TableHandle::default();
        handle
            .commit(&[
                upsert(&spec("a", &["8080:80"], &[])),
                upsert(&spec("b", &["8081:80"], &[])),
            ])
            .unwrap();
        handle
            .commit(&[
                upsert(&spec("a", &["8081:80"], &[])),
                upsert(&spec("b", &["8080:80"], &[])),
            ])
            .unwrap();
        let table = handle.load();
        let route = table.route(&Listen { ip: None, port: 8080 }).unwrap();
        assert_eq!((route.service.as_str(), route.kind), ("b", ListenKind::Published));
    }

    proptest! {
        #[test]
        fn the_ports_of_a_table_are_those_that_it_listens_on(
            commits in vec(vec(("[a-d]", vec(1_u16..6, 0..3)), 1..4), 1..12)
        ) {
            let handle = TableHandle::default();
            for changes in commits {
                let change = |(name, ports): &(String, Vec<u16>)| match ports.is_empty() {
                    true => Change::Remove(ServiceName::new(name).unwrap()),
                    false => {
                        let publish: Vec<String> = ports.iter().map(|port| format!("{port}:80")).collect();
                        let publish: Vec<&str> = publish.iter().map(String::as_str).collect();
                        upsert(&spec(name, &publish, &[]))
                    }
                };
                // One that conflicts changes nothing.
                let _ = handle.commit(&changes.iter().map(change).collect::<Vec<_>>());
                let table = handle.load();
                for port in 0..8 {
                    let is_listened_on = table.listens().any(|(listen, _)| listen.port == port);
                    prop_assert_eq!(table.listens_on(port), is_listened_on, "{}", port);
                }
            }
        }
    }

    #[test]
    fn a_diff_names_what_differs_and_nothing_else() {
        let handle = TableHandle::default();
        let many: Vec<Change> = (0..100)
            .map(|i| upsert(&spec(&format!("s{i}"), &[&format!("{}:80", 1000 + i)], &["9001"])))
            .collect();
        handle.commit(&many).unwrap();
        let before = handle.load();
        handle
            .commit(&[
                Change::Remove(ServiceName::new("s7").unwrap()),
                upsert(&spec("s8", &["1008:81"], &["9001"])),
                upsert(&spec("new", &[], &[])),
            ])
            .unwrap();
        let after = handle.load();
        let mut shown: Vec<String> = RoutingTable::diff(&before, &after)
            .map(|diff| match diff {
                ServiceDiff::Added(service) => format!("+{}", service.name()),
                ServiceDiff::Changed { after, .. } => format!("~{}", after.name()),
                ServiceDiff::Removed(service) => format!("-{}", service.name()),
            })
            .collect();
        shown.sort();
        assert_eq!(shown, ["+new", "-s7", "~s8"]);
        let listens: Vec<_> = RoutingTable::diff_listens(&before, &after)
            .map(|(listen, ..)| listen.port)
            .collect();
        assert_eq!(listens, [1007, 1008]);
    }

    #[test]
    fn a_route_that_asks_for_tls_is_served_only_where_tls_ends() {
        let at = |name: &str, port, is_tls| EntryPointSpec {
            is_tls,
            ..EntryPointSpec::new(name.parse().unwrap(), None, port)
        };
        // Where none is named, those that end TLS are meant.
        for (entry_points, ends_tls, n_words, n_served) in [
            (vec![], false, 2, 0),
            (vec!["web"], false, 1, 0),
            (vec![], true, 0, 1),
            (vec!["web", "secure"], true, 1, 1),
            (vec!["secure"], true, 0, 1),
        ] {
            let handle = TableHandle::with_entry_points(vec![at("web", 80, false), at("secure", 443, ends_tls)]);
            let mut spec = spec("s", &[], &["9001"]);
            let mut route = crate::model::RouteSpec::new("Host(`a`)".parse().unwrap(), "label");
            route.tls = crate::model::RouteTls::Ended;
            route.entry_points = entry_points.iter().map(|name| name.parse().unwrap()).collect();
            spec.routes.push(route);
            handle.commit(&[upsert(&spec)]).unwrap();
            let table = handle.load();
            let served = table.entry_points().iter().filter(|one| !one.front().is_empty());
            assert_eq!(served.count(), n_served);
            let words: Vec<String> = table.unserved(&spec).iter().map(ToString::to_string).collect();
            assert_eq!(words.len(), n_words, "{words:?}");
            assert!(
                words
                    .iter()
                    .all(|words| words.contains("label: Host(`a`) asks for TLS")),
                "{words:?}"
            );
        }
    }
}

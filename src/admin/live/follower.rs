//! Follows everything that is shown, and says what changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::declared::{Declared, News};
use super::events::{Events, Kind};
use super::figures::Counters;
use super::gather::gather;
use super::nodes::Nodes;
use super::objects::{self, Standing, service_key, task_key};
use super::problems::Problems;
use super::{Batch, Json, Key};
use crate::admin::AdminState;
use crate::admin::moment::unix_ms;
use crate::model::{ServiceName, ServiceSpec, first_of};
use crate::routing::{Endpoint, EndpointState, Listener, RoutingTable, Service, ServiceDiff};
use crate::store::Store;

/// Keeps what is shown of a node as it is, until `shutdown`.
pub async fn follow(state: Arc<AdminState>, shutdown: impl Future<Output = ()>) {
    // Once for each node.
    let _ = state.live.of.set(Arc::downgrade(&state));
    tokio::select! {
        () = shutdown => {}
        () = keep_up(state.clone()) => {}
        () = gather(state) => {}
    }
}

/// Ends with the table.
async fn keep_up(state: Arc<AdminState>) {
    let mut follower = Follower::default();
    state.table.health_news().listen(Listener::Page);
    let mut revision = state.table.subscribe();
    let mut n_readers = state.live.n_readers.subscribe();
    let mut peers = state.swarm.as_ref().map(|swarm| swarm.peers.subscribe());
    let mut cluster = state.swarm.as_ref().map(|swarm| swarm.link.cluster.clone());
    let mut store = store_of(&state).map(|store| store.changed());
    let mut sample_at = tokio::time::Instant::now();
    let mut counters = Counters::default();
    let (mut look_at, mut is_moved) = (sample_at, false);
    let mut heard = Vec::new();
    loop {
        let mut batch = Batch::default();
        // First, so that what the table says of it is said in full.
        let news = store_of(&state).map(|store| follower.declared.look(store.snapshot()));
        revision.mark_unchanged();
        let table = state.table.load();
        follower.table(table.clone(), &mut batch);
        for name in heard.drain(..).chain(follower.rested()) {
            if let Some(service) = table.service(&name) {
                follower.service(service, &mut batch);
            }
        }
        if let Some(news) = news {
            follower.declared(news, &mut batch);
        }
        follower.finish(&mut batch);
        let now = tokio::time::Instant::now();
        if is_moved || now >= look_at {
            follower.nodes.look(&state, &mut follower.events, &mut batch);
        }
        if now >= look_at {
            follower.faults(&state, &mut batch);
            let of_nodes = follower.nodes.problems();
            follower
                .problems
                .look(&state, of_nodes, &mut follower.events, &mut batch);
            look_at = now + LOOK_EVERY;
        }
        if now >= sample_at {
            sample_at = now.max(sample_at + super::figures::EVERY);
            let counted = counters.count(&state.table.load(), super::figures::EVERY);
            state.live.sample(counted, SystemTime::now());
        }
        state.live.commit(batch);
        // What comes in a burst is told together.
        tokio::time::sleep(TOGETHER).await;
        let is_watched = *n_readers.borrow_and_update() > 0;
        let next_look = match is_watched || follower.has_resting() || !follower.leaving.is_empty() {
            true => sample_at.min(look_at),
            false => sample_at,
        };
        is_moved = false;
        heard = tokio::select! {
            changed = revision.changed() => match changed {
                Ok(()) => Vec::new(),
                Err(_) => return,
            },
            services = state.table.health_news().next(Listener::Page) => services,
            () = moved(&mut peers) => {
                is_moved = true;
                Vec::new()
            }
            () = moved(&mut cluster) => {
                is_moved = true;
                Vec::new()
            }
            () = moved(&mut store) => Vec::new(),
            // Whoever begins to look sees what is.
            _ = n_readers.changed(), if !is_watched => {
                look_at = tokio::time::Instant::now();
                Vec::new()
            }
            () = tokio::time::sleep_until(next_look) => Vec::new(),
        };
    }
}

/// What is declared; `None`: nothing, or the store is the next instance's by now.
fn store_of(state: &AdminState) -> Option<Arc<dyn Store>> {
    state.declared.as_ref().and_then(Weak::upgrade)
}

/// Waits for something that there may not be.
async fn moved<T>(receiver: &mut Option<tokio::sync::watch::Receiver<T>>) {
    let is_gone = match receiver {
        Some(receiver) => receiver.changed().await.is_err(),
        None => true,
    };
    if is_gone {
        std::future::pending::<()>().await;
    }
}

/// What was shown last.
#[derive(Default)]
struct Follower {
    table: Arc<RoutingTable>,
    services: HashMap<ServiceName, Known>,
    faults: BTreeMap<String, Vec<String>>,
    declared: Declared,
    /// Endpoints that have left the table with something open.
    leaving: Vec<Leaving>,
    nodes: Nodes,
    problems: Problems,
    events: Events,
    has_table: bool,
}

#[derive(Default)]
struct Known {
    json: Option<Json>,
    tasks: HashMap<Key, KnownTask>,
    /// One of its endpoints rests: that ends without a word.
    is_resting: bool,
}

struct KnownTask {
    state: EndpointState,
    since_ms: u64,
    endpoint: Arc<Endpoint>,
    json: Json,
}

struct Leaving {
    key: Key,
    service: ServiceName,
    endpoint: Weak<Endpoint>,
}

/// What changes of the endpoints of one service at once, for one event.
#[derive(Default)]
struct Moves {
    came: Vec<String>,
    left: Vec<String>,
}

impl Follower {
    /// What differs of what managers know beside the table.
    fn declared(&mut self, news: News, batch: &mut Batch) {
        for (id, name) in news.tasks {
            let key: Key = format!("task/{id}").into();
            let is_endpoint = |known: &Known| known.tasks.contains_key(&key);
            let service = ServiceName::new(&name).ok();
            if !service
                .and_then(|name| self.services.get(&name))
                .is_some_and(is_endpoint)
            {
                self.wait(key, batch);
            }
        }
        for (service, text) in news.failures {
            self.events.say(Kind::Task, Some(&service), None, &text, batch);
        }
        let table = self.table.clone();
        for name in news.services {
            match table.service_by_key(&name.to_ascii_lowercase()) {
                Some(service) => self.service(&service.clone(), batch),
                None => self.bare(&name, batch),
            }
        }
    }

    /// Shows a task that is no endpoint, for as long as there is something to say of it.
    fn wait(&self, key: Key, batch: &mut Batch) {
        let id = key.strip_prefix("task/").unwrap_or(&key);
        match self.declared.waiting(id) {
            Some((key, json)) => batch.put(key, json),
            None => batch.del(key),
        }
    }

    /// Shows an endpoint that has left the table, while it finishes what is open.
    fn leave(&mut self, service: &Service, key: Key, endpoint: &Arc<Endpoint>, batch: &mut Batch) {
        if endpoint.in_flight() == 0 {
            return self.wait(key, batch);
        }
        let standing = Standing {
            state: EndpointState::Draining.as_str(),
            since_ms: unix_ms(SystemTime::now()),
            why: None,
        };
        let more = endpoint.task().map(|task| self.declared.task_more(&task.id));
        let json = objects::task(service, endpoint, &standing, more.unwrap_or_default());
        batch.put(key.clone(), json);
        self.leaving.push(Leaving {
            key,
            service: service.name().clone(),
            endpoint: Arc::downgrade(endpoint),
        });
    }

    /// Takes away those that have finished. One that is back is in the table.
    fn finish(&mut self, batch: &mut Batch) {
        let is_at_it = |endpoint: Arc<Endpoint>| endpoint.is_draining() && endpoint.in_flight() > 0;
        let leaving = std::mem::take(&mut self.leaving);
        let (left, over) = leaving
            .into_iter()
            .partition(|one| one.endpoint.upgrade().is_some_and(is_at_it));
        self.leaving = left;
        for Leaving { key, service, .. } in over {
            let known = self.services.get(&service);
            if !known.is_some_and(|known| known.tasks.contains_key(&key)) {
                self.wait(key, batch);
            }
        }
    }

    /// Shows a service that the table does not have.
    fn bare(&mut self, name: &str, batch: &mut Batch) {
        let key = service_key(name);
        match self.declared.service_more(name) {
            Some(more) => {
                batch.put(key, objects::bare_service(self.declared.n_running(name), more));
            }
            None => batch.del(key),
        }
    }

    /// Follows to `table`: what differs of it.
    fn table(&mut self, table: Arc<RoutingTable>, batch: &mut Batch) {
        let before = std::mem::replace(&mut self.table, table.clone());
        for diff in RoutingTable::diff(&before, &table) {
            match diff {
                ServiceDiff::Added(service) => {
                    if self.has_table {
                        let text = format!("service {} is declared", service.name());
                        self.say_of_service(service.name(), &text, batch);
                    }
                    self.service(service, batch);
                }
                ServiceDiff::Changed { before, after } => {
                    if changed_spec(before, after) {
                        let text = format!("service {} is declared anew", after.name());
                        self.say_of_service(after.name(), &text, batch);
                    }
                    self.service(after, batch);
                }
                ServiceDiff::Removed(service) => {
                    let known = self.services.remove(service.name()).unwrap_or_default();
                    for (key, task) in known.tasks {
                        self.leave(service, key, &task.endpoint, batch);
                    }
                    self.bare(service.name().as_str(), batch);
                    let text = format!("service {} is gone", service.name());
                    self.say_of_service(service.name(), &text, batch);
                }
            }
        }
        self.has_table |= !table.is_empty();
    }

    fn say_of_service(&mut self, name: &ServiceName, text: &str, batch: &mut Batch) {
        self.events.say(Kind::Service, Some(name.as_str()), None, text, batch);
    }

    /// What differs of one service and its endpoints.
    fn service(&mut self, service: &Arc<Service>, batch: &mut Batch) {
        service.state().heard_news(Listener::Page);
        let (now, clock) = (Instant::now(), unix_ms(SystemTime::now()));
        let is_new = !self.services.contains_key(service.name());
        let known = self.services.entry(service.name().clone()).or_default();
        let mut before = std::mem::take(&mut known.tasks);
        let mut moves = Moves::default();
        let mut said = Vec::new();
        known.is_resting = false;
        for endpoint in service.endpoints() {
            let (key, state) = (task_key(service, endpoint), endpoint.state(now));
            known.is_resting |= state == EndpointState::Resting;
            let was = match before.remove(&key) {
                Some(was) if was.state == state && Arc::ptr_eq(&was.endpoint, endpoint) => {
                    known.tasks.insert(key, was);
                    continue;
                }
                was => was,
            };
            let since_ms = match &was {
                Some(was) if was.state == state => was.since_ms,
                _ => clock,
            };
            let why = endpoint.why_not_ready(now);
            let standing = Standing {
                state: state.as_str(),
                since_ms,
                why: why.as_deref(),
            };
            let more = endpoint.task().map(|task| self.declared.task_more(&task.id));
            let json = objects::task(service, endpoint, &standing, more.unwrap_or_default());
            match &was {
                None => moves.came.push(shown(endpoint)),
                Some(was) if is_news(was.state, state) => {
                    let why = why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
                    said.push(format!(
                        "{} of {} is {}, it was {}{why}",
                        shown(endpoint),
                        service.name(),
                        state.as_str(),
                        was.state.as_str()
                    ));
                }
                Some(_) => {}
            }
            if was.is_none_or(|was| was.json != json) {
                batch.put(key.clone(), json.clone());
            }
            let task = KnownTask {
                state,
                since_ms,
                endpoint: endpoint.clone(),
                json,
            };
            known.tasks.insert(key, task);
        }
        let name = service.name().as_str();
        let none = Vec::new();
        let more = self.declared.service_more(name).unwrap_or_default();
        let json = objects::service(service, self.faults.get(name).unwrap_or(&none), more, now);
        if known.json.as_ref() != Some(&json) {
            known.json = Some(json.clone());
            batch.put(service_key(name), json);
        }
        for (key, task) in before {
            moves.left.push(shown(&task.endpoint));
            self.leave(service, key, &task.endpoint, batch);
        }
        if is_new && !self.has_table {
            // All of it is there from the first.
            return;
        }
        for text in said.iter().chain(&moves.texts(name)) {
            self.events.say(Kind::Endpoint, Some(name), None, text, batch);
        }
    }

    /// What differs of what is wrong with services.
    fn faults(&mut self, state: &AdminState, batch: &mut Batch) {
        let Some(faults) = &state.faults else { return };
        let before = std::mem::replace(&mut self.faults, faults.snapshot());
        if before == self.faults {
            return;
        }
        let names: HashSet<&String> = before.keys().chain(self.faults.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|name| before.get(*name) != self.faults.get(*name));
        let changed: Vec<ServiceName> = changed.filter_map(|name| ServiceName::new(name).ok()).collect();
        let table = self.table.clone();
        for service in changed.iter().filter_map(|name| table.service(name)) {
            self.service(service, batch);
        }
    }

    fn has_resting(&self) -> bool {
        self.services.values().any(|known| known.is_resting)
    }

    /// Services some endpoint of which may have ended its rest.
    fn rested(&self) -> Vec<ServiceName> {
        let resting = self.services.iter().filter(|(_, known)| known.is_resting);
        resting.map(|(name, _)| name.clone()).collect()
    }
}

/// Whether an event is made of it.
fn is_news(was: EndpointState, is: EndpointState) -> bool {
    was.is_picked() != is.is_picked()
}

/// Whether more than its endpoints differs.
fn changed_spec(before: &Service, after: &Service) -> bool {
    let apart = |service: &Service| ServiceSpec {
        endpoints: Vec::new(),
        weights: Vec::new(),
        ..(**service.spec()).clone()
    };
    !Arc::ptr_eq(before.spec(), after.spec()) && apart(before) != apart(after)
}

/// As people call it: the task, and where it is.
fn shown(endpoint: &Endpoint) -> String {
    match endpoint.task() {
        Some(task) => format!("{} on {}", task.name, task.hostname),
        None => endpoint.spec().to_string(),
    }
}

impl Moves {
    fn texts(&self, service: &str) -> Vec<String> {
        let told = |names: &[String], what: &str| {
            let first = first_of(names, NAMES_TOLD, ", ");
            (!names.is_empty()).then(|| format!("endpoints of {service} {what}: {first}"))
        };
        [told(&self.came, "came"), told(&self.left, "left")]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Of one service, in one event.
const NAMES_TOLD: usize = 3;
const TOGETHER: Duration = Duration::from_millis(100);
/// At what changes without a word, such as round trips, while somebody looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

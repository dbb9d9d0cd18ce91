//! `docker events`: what changes in the store, a JSON object in each line, tasks among it, which Docker leaves out; what happens on
//! this node where no engine says so (`local_events`); and what the engine beside it says. The last events are kept for those who
//! ask for what was.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, mpsc};

use super::local_events::{self, Mounted, of_volume};
use crate::api::backend::Backend;
use crate::api::outside::Volumes;
use crate::api::wire::{self, Answer, ApiError, Asked, Filters, Version};
use crate::model::swarm::{Id, Key, Kind, Mode, Node, Object, Service, Time};
use crate::model::volume::VolumeChange;
use crate::store::{Snapshot, Store};

/// What changed lately, and who wants to hear of what changes next.
pub(in crate::api) struct Events {
    past: Mutex<Past>,
    live: broadcast::Sender<Arc<Value>>,
    /// Of this node, where no engine has them.
    volumes: Option<Arc<dyn Volumes>>,
}

struct Past {
    /// Up to where events are made. `None`: the swarm was locked, and nothing has happened as long as that.
    until: Option<Arc<Snapshot>>,
    /// How many there were.
    n: u64,
    kept: Kept,
    /// Those of tasks, apart: there are many, and few ask for them.
    of_tasks: Kept,
    /// What became of volumes since the last look.
    volumes: Option<broadcast::Receiver<VolumeChange>>,
    mounted: Mounted,
}

impl Past {
    fn add(&mut self, at: Time, event: &Arc<Value>) {
        self.n += 1;
        let kept = match event["Type"] == "task" {
            true => &mut self.of_tasks,
            false => &mut self.kept,
        };
        kept.add((self.n, at, event.clone()));
    }

    /// All that are kept, in their order.
    fn all(&self) -> Vec<Told> {
        let mut all: Vec<Told> = self.kept.events.iter().chain(&self.of_tasks.events).cloned().collect();
        all.sort_by_key(|(n, ..)| *n);
        all
    }
}

/// The last events, bounded in number and in bytes.
#[derive(Default)]
struct Kept {
    events: VecDeque<Told>,
    bytes: usize,
}

/// Its number, when it was, and what is told.
type Told = (u64, Time, Arc<Value>);

impl Kept {
    fn add(&mut self, event: Told) {
        self.bytes += bytes_of(&event.2);
        self.events.push_back(event);
        while self.events.len() > EVENTS_KEPT || self.bytes > EVENT_BYTES_KEPT {
            let Some((.., oldest)) = self.events.pop_front() else {
                break;
            };
            self.bytes -= bytes_of(&oldest);
        }
    }
}

/// What an event takes, as a line.
fn bytes_of(event: &Value) -> usize {
    line(event).len()
}

impl Events {
    pub(in crate::api) fn new(backend: &Backend) -> Events {
        let volumes = backend.outside.volumes();
        let past = Past {
            volumes: volumes.as_ref().map(|volumes| volumes.changes()),
            mounted: Mounted::default(),
            until: backend.lock().is_none().then(|| backend.store.snapshot()),
            n: 0,
            kept: Kept::default(),
            of_tasks: Kept::default(),
        };
        Events {
            past: Mutex::new(past),
            live: broadcast::Sender::new(EVENTS_AHEAD),
            volumes,
        }
    }

    /// std mutex: nothing awaits under it.
    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes events of all that has changed.
    fn catch_up(&self, store: &dyn Store) -> MutexGuard<'_, Past> {
        let mut past = self.past();
        self.catch_up_with_volumes(&mut past);
        let now = store.snapshot();
        let Some(until) = past.until.clone() else { return past };
        // Of two who catch up at once, one may have an older snapshot.
        if now.revision() > until.revision() {
            let at = Time::now();
            for event in events(&until, &now, at) {
                self.tell(&mut past, at, event);
            }
            if let Some(volumes) = &self.volumes {
                for event in past.mounted.follow(&until, &now, &**volumes, at) {
                    self.tell(&mut past, at, event);
                }
            }
            past.until = Some(now);
        }
        past
    }

    fn catch_up_with_volumes(&self, past: &mut Past) {
        let mut changes = past.volumes.take();
        loop {
            let change = match changes.as_mut().map(broadcast::Receiver::try_recv) {
                Some(Ok(change)) => change,
                Some(Err(broadcast::error::TryRecvError::Lagged(_))) => continue,
                _ => break,
            };
            let at = Time::now();
            self.tell(past, at, of_volume(&change, at));
        }
        past.volumes = changes;
    }

    fn tell(&self, past: &mut Past, at: Time, event: Value) {
        let event = Arc::new(event);
        past.add(at, &event);
        // An error says that nobody listens.
        let _ = self.live.send(event);
    }

    /// What nobody but the API knows of.
    pub(super) fn say(&self, at: Time, event: Value) {
        self.tell(&mut self.past(), at, event);
    }

    /// Makes events as things change, for ever.
    pub(in crate::api) async fn follow(&self, store: &dyn Store) {
        let mut changed = store.changed();
        let mut volumes = self.volumes.as_ref().map(|volumes| volumes.changes());
        self.past().until.get_or_insert_with(|| store.snapshot());
        loop {
            let of_volumes = async {
                match &mut volumes {
                    // Which one it is has the other receiver.
                    Some(volumes) => !matches!(volumes.recv().await, Err(broadcast::error::RecvError::Closed)),
                    None => std::future::pending().await,
                }
            };
            let is_on = tokio::select! {
                changed = changed.changed() => changed.is_ok(),
                is_on = of_volumes => is_on,
            };
            if !is_on {
                break;
            }
            drop(self.catch_up(store));
        }
    }
}

pub(in crate::api) async fn stream(
    known: &Events,
    backend: &Arc<Backend>,
    asked: &Asked,
    version: Version,
) -> Result<Answer, ApiError> {
    let filters = Filters::read(asked.query("filters"), &[&ENGINES_KEYS[..], &["task"]].concat())?;
    let (since, until) = (asked.time("since")?, asked.time("until")?);
    if since.zip(until).is_some_and(|(since, until)| until < since) {
        let said = |key: &str| asked.query(key).unwrap_or_default();
        return Err(ApiError::bad(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            said("since"),
            said("until")
        )));
    }
    let (past, live) = {
        let past = known.catch_up(&*backend.store);
        (past.all(), known.live.subscribe())
    };
    let (lines, received) = mpsc::channel(LINES_AHEAD);
    // Without either only what comes is told.
    let is_past_wanted = since.is_some() || until.is_some();
    let is_wanted = |at: Time| since.is_none_or(|since| at >= since) && until.is_none_or(|until| at <= until);
    // Lines are made one by one, so that who does not read keeps no copy of them.
    let past: Vec<Arc<Value>> = past
        .into_iter()
        .filter(|(_, at, event)| is_past_wanted && is_wanted(*at) && wants(&filters, event))
        .map(|(.., event)| event)
        .collect();
    tokio::spawn(tell(backend.clone(), past, live, filters.clone(), until, lines.clone()));
    if let Some(said) = of_engine(backend, asked, &filters, version).await {
        tokio::spawn(pass(said, lines));
    }
    let received = stream::unfold(received, |mut received| async move {
        let bytes: Bytes = received.recv().await?;
        Some((Ok::<_, io::Error>(Frame::data(bytes)), received))
    });
    let mut answer = Response::new(StreamBody::new(received).boxed_unsync());
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}

/// Tells of the past and then of what comes, until `until`, or until nobody listens any more.
async fn tell(
    backend: Arc<Backend>,
    past: Vec<Arc<Value>>,
    mut live: broadcast::Receiver<Arc<Value>>,
    filters: Filters,
    until: Option<Time>,
    lines: mpsc::Sender<Bytes>,
) {
    for event in past {
        if lines.send(line(&event)).await.is_err() {
            return;
        }
    }
    let mut stopping = backend.stopping.subscribe();
    let is_over = async {
        match until {
            Some(until) => tokio::time::sleep(until.since(Time::now())).await,
            None => std::future::pending().await,
        }
    };
    let tell = async {
        loop {
            match live.recv().await {
                Ok(event) if wants(&filters, &event) => {
                    if lines.send(line(&event)).await.is_err() {
                        break;
                    }
                }
                // Who does not keep up misses some, as with Docker.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => break,
            }
        }
    };
    tokio::select! {
        () = tell => {}
        () = is_over => {}
        () = lines.closed() => {}
        _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
    }
}

/// What the engine says, if there is one and it may have something to say.
async fn of_engine(backend: &Backend, asked: &Asked, filters: &Filters, version: Version) -> Option<Incoming> {
    let is_only_ours = !filters.values("task").is_empty() || !filters.any("scope", |scope| scope != "swarm");
    if is_only_ours || backend.outside.engine().is_none() {
        return None;
    }
    let query = ["since", "until", "filters"].map(|key| asked.query(key).map(|value| (key, value)));
    let opened = backend
        .engine
        .open(version, &wire::with_query("/events", query.into_iter().flatten()))
        .await;
    opened
        .inspect_err(|error| tracing::debug!(error.message, "the engine's events"))
        .ok()
}

/// Passes on whole lines.
async fn pass(mut said: Incoming, lines: mpsc::Sender<Bytes>) {
    let mut part = BytesMut::new();
    loop {
        let frame = tokio::select! {
            frame = said.frame() => frame,
            () = lines.closed() => break,
        };
        let Some(Ok(frame)) = frame else { break };
        let Ok(data) = frame.into_data() else { continue };
        part.extend_from_slice(&data);
        if let Some(end) = part.iter().rposition(|byte| *byte == b'\n') {
            let whole = part.split_to(end + 1).freeze();
            if lines.send(whole).await.is_err() {
                break;
            }
        }
        if part.len() > LINE_BYTES_MAX {
            break;
        }
    }
}

/// As Docker has it: a kind with a name is in what begins so, by its id or its name, whatever kind that is of.
fn wants(filters: &Filters, event: &Value) -> bool {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    let attribute = |key: &str| event["Actor"]["Attributes"][key].as_str();
    let (kind, action) = (text("Type"), text("Action"));
    let id = event["Actor"]["ID"].as_str().unwrap_or_default();
    let name = attribute("name").unwrap_or_default();
    let is_of = |kind: &&str| filters.prefix(kind, id) || filters.prefix(kind, name);
    let image = attribute(if kind == "image" { "name" } else { "image" }).unwrap_or_default();
    let is_image = |wanted: &String| [id, image, without_tag(id), without_tag(image)].contains(&wanted.as_str());
    // Of these Docker's actions say more behind a colon.
    let is_longer = filters
        .values("event")
        .iter()
        .any(|wanted| LONGER.contains(&wanted.as_str()));
    let is_action = |wanted: &String| wanted == action || is_longer && action.starts_with(wanted.as_str());
    // Docker has none of tasks, and clients that know only its types end at one: they are for who asks for them.
    let is_task_asked_for =
        || !filters.values("task").is_empty() || filters.values("type").iter().any(|kind| kind == "task");
    (kind != "task" || is_task_asked_for())
        && filters.any("type", |wanted| wanted == kind)
        && filters.any("event", is_action)
        && filters.any("scope", |wanted| wanted == text("scope"))
        && filters.exact_labels("label", attribute)
        && filters.any("image", is_image)
        && ACTORS.iter().all(is_of)
}

/// A name of an image without its tag or digest.
fn without_tag(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// What was made, changed and removed between two snapshots.
fn events(before: &Snapshot, now: &Snapshot, at: Time) -> Vec<Value> {
    let mut events = Vec::new();
    // Of these there are few.
    for kind in [Kind::Node, Kind::Network, Kind::Config, Kind::Secret] {
        let gone = ids(before, kind).filter(|id| revision(now, kind, id).is_none());
        for id in ids(now, kind).chain(gone) {
            let (was, is) = (revision(before, kind, id), revision(now, kind, id));
            if was == is {
                continue;
            }
            let key = Key::new(kind, id);
            let (old, new) = (before.object(&key), now.object(&key));
            let mut attributes = Map::new();
            let name = match new.as_ref().or(old.as_ref()) {
                Some(Object::Node(node)) => &node.hostname,
                Some(object) => object.unique_name().unwrap_or_default(),
                None => continue,
            };
            attributes.insert("name".to_owned(), json!(name));
            if let (Some(Object::Node(old)), Some(Object::Node(new))) = (&old, &new) {
                differences(&mut attributes, &about_node(old), &about_node(new));
            }
            events.push(event(
                kind.as_str(),
                id,
                action(was.is_some(), is.is_some()),
                attributes,
                at,
            ));
        }
    }
    for (id, service) in now.services_since(before) {
        let was = before.service(id.as_str());
        let Some(known) = service.or(was) else { continue };
        let mut attributes = Map::new();
        attributes.insert("name".to_owned(), json!(known.name()));
        if let (Some(was), Some(is)) = (was, service) {
            differences(&mut attributes, &about_service(was), &about_service(is));
        }
        let action = action(was.is_some(), service.is_some());
        events.push(event("service", id, action, attributes, at));
    }
    for (id, task) in now.tasks_since(before) {
        let was = before.task(id.as_str());
        let Some(known) = task.or(was) else { continue };
        let mut attributes = Map::new();
        attributes.insert("name".to_owned(), json!(known.name()));
        attributes.insert("service.name".to_owned(), json!(&*known.service_name));
        attributes.insert("state".to_owned(), json!(known.status.state.as_str()));
        attributes.insert("desired".to_owned(), json!(known.desired.as_str()));
        events.push(event("task", id, action(was.is_some(), task.is_some()), attributes, at));
    }
    events
}

fn ids(snapshot: &Snapshot, kind: Kind) -> Box<dyn Iterator<Item = &Id> + '_> {
    match kind {
        Kind::Node => Box::new(snapshot.nodes().map(|node| &node.id)),
        Kind::Network => Box::new(snapshot.networks().map(|network| &network.id)),
        Kind::Config => Box::new(snapshot.configs().map(|config| &config.id)),
        Kind::Secret => Box::new(snapshot.secrets().map(|secret| &secret.id)),
        Kind::Swarm | Kind::Service | Kind::Task | Kind::Container => Box::new(std::iter::empty()),
    }
}

fn revision(snapshot: &Snapshot, kind: Kind, id: &Id) -> Option<u64> {
    snapshot.revision_of(&Key::new(kind, id))
}

/// What of a service is told with its old and its new value.
fn about_service(service: &Service) -> [(&'static str, String); 3] {
    let template = service.spec.task_template.as_ref();
    let container = template.and_then(|template| template.container_spec.as_ref());
    let image = container.and_then(|container| container.image.clone());
    let state = service.update.as_ref().map_or("", |update| update.state.as_str());
    [
        ("image", image.unwrap_or_default()),
        (
            "replicas",
            match service.mode() {
                Mode::Replicated { replicas } => replicas.to_string(),
                _ => String::new(),
            },
        ),
        ("updatestate", state.to_owned()),
    ]
}

fn about_node(node: &Node) -> [(&'static str, String); 3] {
    let availability = node.spec.availability.map(|availability| availability.to_string());
    let role = node.spec.role.map(|role| role.to_string());
    let state = if node.is_up { "ready" } else { "down" };
    [
        ("availability", availability.unwrap_or_default()),
        ("role", role.unwrap_or_default()),
        ("state", state.to_owned()),
    ]
}

fn differences(attributes: &mut Map<String, Value>, old: &[(&str, String)], new: &[(&str, String)]) {
    for ((key, old), (_, new)) in old.iter().zip(new) {
        if old != new {
            attributes.insert(format!("{key}.old"), json!(old));
            attributes.insert(format!("{key}.new"), json!(new));
        }
    }
}

fn action(was: bool, is: bool) -> &'static str {
    match (was, is) {
        (false, _) => "create",
        (true, true) => "update",
        (true, false) => "remove",
    }
}

fn event(kind: &str, id: &Id, action: &str, attributes: Map<String, Value>, at: Time) -> Value {
    local_events::event("swarm", kind, id.as_str(), action, attributes, at)
}

/// The kinds that an event can be cut down to by name.
const ACTORS: [&str; 10] = [
    "service",
    "node",
    "network",
    "secret",
    "config",
    "task",
    "container",
    "volume",
    "plugin",
    "daemon",
];
const LONGER: [&str; 3] = ["health_status", "exec_create", "exec_start"];
/// What an engine can cut its events down by.
const ENGINES_KEYS: [&str; 15] = [
    "type",
    "event",
    "scope",
    "label",
    "service",
    "node",
    "network",
    "secret",
    "config",
    "container",
    "image",
    "volume",
    "plugin",
    "daemon",
    "builder",
];
/// More than Docker's 256, which a few deployments fill; so many of tasks, and so many of all else.
const EVENTS_KEPT: usize = 2_000;
/// A name of an image may be as long as a spec.
const EVENT_BYTES_KEPT: usize = 4 << 20;
/// So far may a listener be behind.
const EVENTS_AHEAD: usize = 1024;
const LINES_AHEAD: usize = 64;
const LINE_BYTES_MAX: usize = 1 << 20;

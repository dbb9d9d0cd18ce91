//! What the page shows, kept up as it changes: objects by key, of services, their tasks, nodes, what is wrong, what happened; and
//! figures of the last quarter of an hour. One writer (`follower`, `figures`), any number of readers, each with a stream of its own.
//!
//! It is kept whether anybody looks or not, so that "since when" is true and whoever comes sees all at once: each change costs what
//! it changes, and at rest nothing moves. Not here: what is wrong or ready, which the other rooms say.

mod declared;
mod events;
mod figures;
mod follower;
mod gather;
mod nodes;
mod objects;
mod problems;
mod stream;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use hyper::body::Bytes;
use imbl::OrdMap;
use tokio::sync::{broadcast, watch};

pub use self::follower::follow;
pub(super) use self::stream::stream;
use crate::admin::AdminState;
use crate::places::{Places, Table};
use crate::routing::{Endpoint, Service};

/// Such as `task/ID`.
type Key = Arc<str>;
/// The JSON text of an object.
type Json = Arc<str>;

/// All that is shown now, and who looks.
pub struct Live {
    /// std mutex: held for moves in maps, nothing awaits under it.
    shown: Mutex<Shown>,
    changes: broadcast::Sender<Bytes>,
    /// How many look.
    n_readers: watch::Sender<usize>,
    /// Counts samples.
    sampled: watch::Sender<u64>,
    places: Arc<Places<std::net::IpAddr>>,
    /// Another instance has taken this one's place, and shows what is.
    is_over: watch::Sender<bool>,
    /// The node that it is of, once that is made.
    of: OnceLock<Weak<AdminState>>,
}

#[derive(Debug, Default)]
struct Shown {
    objects: OrdMap<Key, Json>,
    figures: figures::Samples,
}

/// What changes at once: of each key what was said last. `None`: it is gone.
#[derive(Debug, Default)]
struct Batch(BTreeMap<Key, Option<Json>>);

impl Batch {
    fn put(&mut self, key: Key, json: Json) {
        self.0.insert(key, Some(json));
    }

    fn del(&mut self, key: Key) {
        self.0.insert(key, None);
    }
}

impl Default for Live {
    fn default() -> Live {
        Live {
            shown: Mutex::default(),
            changes: broadcast::Sender::new(BATCHES_KEPT),
            n_readers: watch::Sender::new(0),
            sampled: watch::Sender::new(0),
            places: Places::new(Table::AdminStreams, STREAMS_MAX),
            is_over: watch::Sender::new(false),
            of: OnceLock::new(),
        }
    }
}

impl Live {
    /// Shows what changed, and tells whoever looks.
    fn commit(&self, batch: Batch) {
        let mut shown = self.lock();
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for (key, json) in batch.0 {
            match json {
                Some(json) => {
                    shown.objects.insert(key.clone(), json.clone());
                    put.push((key, json));
                }
                // Who is told has it, if it was there.
                None if shown.objects.remove(&key).is_some() => gone.push(key),
                None => {}
            }
        }
        // Under the lock, so that whoever begins to look has either seen it or is told of it.
        if self.changes.receiver_count() > 0 {
            for part in stream::change(&put, &gone) {
                let _ = self.changes.send(part);
            }
        }
    }

    /// Everything as it is now, and what changes from then on.
    fn look(&self) -> (OrdMap<Key, Json>, Bytes, broadcast::Receiver<Bytes>) {
        let shown = self.lock();
        let history = stream::event("history", &shown.figures.history());
        (shown.objects.clone(), history, self.changes.subscribe())
    }

    /// Whoever looks is to look elsewhere.
    pub(super) fn end(&self) {
        self.is_over.send_replace(true);
    }

    /// Takes what was counted by now.
    fn sample(&self, counted: figures::ByService, at: SystemTime) {
        self.lock().figures.take(counted, at);
        self.sampled.send_modify(|n| *n += 1);
    }

    /// Since when an endpoint has been in its state, in milliseconds since 1970, for all that is shown by now.
    pub(super) fn since_ms(&self, service: &Service, endpoint: &Endpoint) -> Option<u64> {
        #[derive(serde::Deserialize)]
        struct Since {
            since_ms: u64,
        }
        let object = self
            .lock()
            .objects
            .get(&objects::task_key(service, endpoint))
            .cloned()?;
        let since: Since = serde_json::from_str(&object).ok()?;
        Some(since.since_ms)
    }

    /// What this node counted of a service in the last sample; `None`: it did nothing.
    pub(super) fn figures_of(&self, service: &str) -> Option<serde_json::Value> {
        let figures = self.lock().figures.last().get(service).cloned()?;
        serde_json::to_value(figures).ok()
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of one reader; who does not keep up is cut off, and begins anew.
const BATCHES_KEPT: usize = 128;
/// Half of the admin server's connections: health is asked for by the others.
const STREAMS_MAX: usize = 32;

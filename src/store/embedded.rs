//! The store of one machine: one file that survives a crash at any moment, and a thread that writes it. Commits that wait
//! at the same time are written together. A locked one opens with its key only.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use redb::{Database, StorageBackend};
use tokio::sync::{mpsc, oneshot, watch};

use super::acknowledged::{self, Acknowledged};
use super::disk::{self, FILE};
use super::health::StoreHealth;
use super::record::{self, FORMAT};
use super::relock::{self, KEY_FILE};
use super::reserve::Reserve;
use super::seal::Seal;
use super::writer::{Log, Reopen, Request, Writer};
use super::{CommitError, Later, OpenError, Snapshot, Store};
use crate::model::swarm::{UnlockKey, Write};

/// So many commits may wait.
const QUEUE: usize = 1024;

/// The store of one machine.
#[derive(Debug)]
pub struct Embedded {
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<u64>,
    health: Arc<StoreHealth>,
    /// `None` once it is being closed.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl OpenError {
    /// With its causes.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        text
    }
}

impl Embedded {
    /// Opens the store in `dir`, which is made if it is not there. Errors: `Locked` where it needs a key.
    pub fn open(dir: &Path) -> Result<Embedded, OpenError> {
        Embedded::open_with(dir, None, Arc::default())
    }

    /// The same, with the key that unlocks it; one that is not locked needs none. `health` says how it fares from here on.
    /// Errors: `Locked` without a key where it needs one, `WrongKey` with another one than its own; both change nothing.
    pub fn open_with(
        dir: &Path,
        unlock_key: Option<&UnlockKey>,
        health: Arc<StoreHealth>,
    ) -> Result<Embedded, OpenError> {
        let path = dir.join(FILE);
        disk::make_dir(dir).map_err(|error| OpenError::Io {
            path: dir.to_owned(),
            error,
        })?;
        let is_new = !path.exists();
        refuse_to_begin_anew(&path, dir)?;
        let database = disk::open(&path, true)?;
        let reopen = {
            let path = path.clone();
            move || disk::open(&path, false)
        };
        let files = Files {
            path: &path,
            dir,
            is_new,
            may_be_locked: true,
        };
        Embedded::start(database, Box::new(reopen), &files, unlock_key, health)
    }

    /// Takes away the store in `dir`, locked or not, overwritten as far as that can be had. Nobody may have it open.
    pub fn erase(dir: &Path) -> io::Result<()> {
        // First, so that a store that is gone is not taken for a lost one.
        acknowledged::forget(dir)?;
        relock::erase(dir)
    }

    /// Opens a store on other storage than a file, with its key in `dir`: for tests that fail each write in turn. It cannot be
    /// locked.
    pub fn open_on(backend: impl StorageBackend + Clone, dir: &Path) -> Result<Embedded, OpenError> {
        let path = dir.join(FILE);
        let database = disk::open_on(backend.clone(), &path)?;
        let is_new = !dir.join(KEY_FILE).exists();
        let reopen = {
            let path = path.clone();
            move || disk::open_on(backend.clone(), &path)
        };
        let files = Files {
            path: &path,
            dir,
            is_new,
            may_be_locked: false,
        };
        Embedded::start(database, Box::new(reopen), &files, None, Arc::default())
    }

    /// How it fares.
    pub fn health(&self) -> Arc<StoreHealth> {
        self.health.clone()
    }

    fn start(
        database: Database,
        reopen: Reopen,
        files: &Files<'_>,
        unlock_key: Option<&UnlockKey>,
        health: Arc<StoreHealth>,
    ) -> Result<Embedded, OpenError> {
        let Files { path, dir, is_new, .. } = *files;
        let damaged = |reason: String| OpenError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let failed = |error: io::Error| OpenError::Io {
            path: path.to_owned(),
            error,
        };
        let has_objects = disk::format_of(&database).map_err(|error| damaged(error.to_string()))?;
        if let Some(found) = has_objects.filter(|found| *found > FORMAT) {
            return Err(OpenError::Newer {
                path: path.to_owned(),
                found: found.to_string(),
            });
        }
        let lock = disk::lock_of(&database).map_err(|error| damaged(error.to_string()))?;
        if (has_objects == Some(record::LOCKED)) != lock.is_some() {
            return Err(damaged(
                "it has a lock and no key of its own, or the other way round".to_owned(),
            ));
        }
        if files.may_be_locked {
            relock::clear(dir, lock.is_some());
        }
        let key = dir.join(KEY_FILE);
        let failed_key = |error| OpenError::Key {
            path: key.clone(),
            error,
        };
        let is_locked = lock.is_some();
        let seal = match (lock, unlock_key) {
            (None, _) => Seal::open(&key, is_new || has_objects.is_none()).map_err(failed_key)?,
            (Some(_), None) => {
                health.set_locked(true);
                return Err(OpenError::Locked { path: path.to_owned() });
            }
            (Some(lock), Some(unlock_key)) => {
                let opened = Seal::unlock(unlock_key, &lock).map_err(failed_key)?;
                opened.ok_or_else(|| OpenError::WrongKey { path: path.to_owned() })?
            }
        };
        if has_objects.is_none() {
            // A disk that is full is no damage, and what was made there is no store yet.
            disk::write_format(&database, None).map_err(|error| match error {
                redb::Error::Io(error) => failed(error),
                error => damaged(error.to_string()),
            })?;
        }
        let mut snapshot = disk::read_all(&database, &seal).map_err(damaged)?;
        let acknowledged = compare(&mut snapshot, dir, &health);
        health.set_revision(snapshot.revision());
        let (requests, received) = mpsc::channel(QUEUE);
        let changed = watch::Sender::new(snapshot.revision());
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let writer = Writer {
            database: Some(database),
            reopen,
            dir: dir.to_owned(),
            seal,
            lock: unlock_key.filter(|_| is_locked).cloned(),
            may_be_locked: files.may_be_locked,
            snapshot: snapshot.clone(),
            changed: changed.clone(),
            health: health.clone(),
            acknowledged,
            reserve: Reserve::new(path),
            is_short: false,
            log: Log::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(failed)?;
        let thread = std::thread::Builder::new().name("store".to_owned());
        let spawned = thread.spawn(move || runtime.block_on(writer.run(received)));
        health.set_locked(false);
        Ok(Embedded {
            snapshot,
            changed,
            health,
            requests: Some(requests),
            writer: Some(spawned.map_err(failed)?),
        })
    }
}

/// Where a store is.
struct Files<'a> {
    path: &'a Path,
    dir: &'a Path,
    /// There was none.
    is_new: bool,
    /// The file can be replaced by another one.
    may_be_locked: bool,
}

/// A file that is gone or empty would be made anew, and all that it declared would be ended as nobody's.
fn refuse_to_begin_anew(path: &Path, dir: &Path) -> Result<(), OpenError> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(());
    }
    match Acknowledged::open(dir) {
        (_, Some(last)) if last > 0 => Err(OpenError::Damaged {
            path: path.to_owned(),
            reason: format!("it is empty or gone, and held revision {last}"),
        }),
        _ => Ok(()),
    }
}

/// Compares what was read with the last revision that was acknowledged, and says what is missing.
fn compare(snapshot: &mut Snapshot, dir: &Path, health: &StoreHealth) -> Acknowledged {
    let (mut acknowledged, last) = Acknowledged::open(dir);
    health.set_lost(acknowledged::lost_before(dir));
    let read = snapshot.revision();
    if let Some(last) = last.filter(|last| *last > read) {
        let lost = acknowledged::keep_lost(dir, read + 1, last);
        if let Some(newest) = lost.last() {
            tracing::error!("store: {newest}");
        }
        health.set_lost(lost);
        // No revision stands for two things.
        snapshot.restore_revision(last);
    } else if last != Some(read) && read > 0 {
        acknowledged.begin(read);
    }
    acknowledged
}

/// What was asked before is written, and the file is let go of.
impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // An error says that it panicked, which it has said itself.
            drop(writer.join());
        }
    }
}

impl Store for Embedded {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn commit<'a>(&'a self, base: &'a Snapshot, writes: Vec<Write>) -> Later<'a, Result<Arc<Snapshot>, CommitError>> {
        Box::pin(async move {
            if writes.is_empty() {
                return Ok(self.snapshot());
            }
            let (answer, answered) = oneshot::channel();
            let base = base.clone();
            let request = Request { base, writes, answer };
            let requests = self.requests.as_ref().ok_or(CommitError::Closed)?;
            requests.send(request).await.map_err(|_| CommitError::Closed)?;
            answered.await.map_err(|_| CommitError::Closed)?
        })
    }
}

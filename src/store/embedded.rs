//! The store of one machine: one file that survives a crash at any moment, and a thread that writes it. Commits that wait
//! at the same time are written together.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use tokio::sync::{mpsc, oneshot, watch};

use super::record::{self, FORMAT};
use super::seal::Seal;
use super::{CommitError, Later, Snapshot, Store};
use crate::model::swarm::Write;

const OBJECTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("objects");
const ABOUT: TableDefinition<'static, &str, u64> = TableDefinition::new("about");
const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// In a directory of its own.
const FILE: &str = "store.redb";
const KEY_FILE: &str = "store.key";
const CACHE_BYTES: usize = 8 << 20;
/// So many commits may wait.
const QUEUE: usize = 1024;
/// So many commits are written at once.
const TOGETHER: usize = 256;

/// Why a store does not open. Whatever it is, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process: expected one anynode for each data directory")]
    InUse { path: PathBuf },
    #[error(
        "{path} has format {found}: this version of anynode knows formats up to {FORMAT}; run the version that wrote it"
    )]
    Newer { path: PathBuf, found: String },
    #[error("{path} is damaged ({reason}): put back a copy, or move it away to begin with nothing")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path}: the key that {} is encrypted with", FILE)]
    Key {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("{path}")]
    Io {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
}

/// The store of one machine.
#[derive(Debug)]
pub struct Embedded {
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<u64>,
    /// `None` once it is being closed.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Request {
    base: Snapshot,
    writes: Vec<Write>,
    answer: oneshot::Sender<Result<Arc<Snapshot>, CommitError>>,
}

impl Embedded {
    /// Opens the store in `dir`, which is made if it is not there.
    pub fn open(dir: &Path) -> Result<Embedded, OpenError> {
        let path = dir.join(FILE);
        make_dir(dir).map_err(|error| OpenError::Io {
            path: dir.to_owned(),
            error,
        })?;
        let is_new = !path.exists();
        let mut builder = Builder::new();
        let database = builder
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create(&path);
        let database = database.map_err(|error| open_error(&path, error))?;
        Embedded::start(database, &path, dir, is_new)
    }

    /// Opens a store on other storage than a file, with its key in `dir`: for tests that fail each write in turn.
    pub fn open_on(backend: impl StorageBackend, dir: &Path) -> Result<Embedded, OpenError> {
        let path = dir.join(FILE);
        let mut builder = Builder::new();
        let database = builder
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend);
        let database = database.map_err(|error| open_error(&path, error))?;
        let is_new = !dir.join(KEY_FILE).exists();
        Embedded::start(database, &path, dir, is_new)
    }

    fn start(database: Database, path: &Path, dir: &Path, is_new: bool) -> Result<Embedded, OpenError> {
        let damaged = |reason: String| OpenError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let has_objects = format_of(&database).map_err(|error| damaged(error.to_string()))?;
        if let Some(found) = has_objects.filter(|found| *found > FORMAT) {
            return Err(OpenError::Newer {
                path: path.to_owned(),
                found: found.to_string(),
            });
        }
        let key = dir.join(KEY_FILE);
        let seal =
            Seal::open(&key, is_new || has_objects.is_none()).map_err(|error| OpenError::Key { path: key, error })?;
        if has_objects.is_none() {
            write_format(&database).map_err(|error| damaged(error.to_string()))?;
        }
        let snapshot = read_all(&database, &seal).map_err(damaged)?;
        let (requests, received) = mpsc::channel(QUEUE);
        let changed = watch::Sender::new(snapshot.revision());
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let writer = Writer {
            database,
            seal,
            snapshot: snapshot.clone(),
            changed: changed.clone(),
        };
        let thread = std::thread::Builder::new().name("store".to_owned());
        let spawned = thread.spawn(move || writer.run(received));
        let writer = spawned.map_err(|error| OpenError::Io {
            path: path.to_owned(),
            error,
        })?;
        Ok(Embedded {
            snapshot,
            changed,
            requests: Some(requests),
            writer: Some(writer),
        })
    }
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

struct Writer {
    database: Database,
    seal: Seal,
    snapshot: Arc<ArcSwap<Snapshot>>,
    changed: watch::Sender<u64>,
}

impl Writer {
    fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut together = Vec::new();
        while requests.blocking_recv_many(&mut together, TOGETHER) > 0 {
            self.write(&mut together);
        }
    }

    /// Writes what waits in one transaction, and answers.
    fn write(&self, together: &mut Vec<Request>) {
        let mut now = Snapshot::clone(&self.snapshot.load());
        let mut made = Vec::new();
        let mut written = Vec::new();
        for request in together.drain(..) {
            match now.next(&request.base, request.writes) {
                Ok((next, writes)) => {
                    now = next;
                    made.extend(writes.into_iter().map(|write| (now.revision(), write)));
                    written.push((request.answer, Arc::new(now.clone())));
                }
                // Whoever asked may have gone away: an error says no more than that.
                Err(error) => drop(request.answer.send(Err(error))),
            }
        }
        if made.is_empty() {
            return;
        }
        match self.write_made(&made, now.revision()) {
            Ok(()) => {
                self.snapshot.store(Arc::new(now));
                self.changed.send_replace(self.snapshot.load().revision());
                for (answer, snapshot) in written {
                    drop(answer.send(Ok(snapshot)));
                }
            }
            Err(reason) => {
                tracing::error!(reason, "the store cannot be written");
                for (answer, _) in written {
                    let reason = reason.clone();
                    drop(answer.send(Err(CommitError::Io { reason })));
                }
            }
        }
    }

    fn write_made(&self, made: &[(u64, Write)], revision: u64) -> Result<(), String> {
        let said = |error: redb::Error| error.to_string();
        let transaction = self.database.begin_write().map_err(|error| said(error.into()))?;
        {
            let mut objects = transaction.open_table(OBJECTS).map_err(|error| said(error.into()))?;
            for (revision, write) in made {
                let key = write.key().to_string();
                let done = match write {
                    Write::Put(object) => {
                        let bytes = record::write(object, *revision, &self.seal)?;
                        objects.insert(key.as_str(), bytes.as_slice()).map(drop)
                    }
                    Write::Remove(_) => objects.remove(key.as_str()).map(drop),
                };
                done.map_err(|error| said(error.into()))?;
            }
            let mut about = transaction.open_table(ABOUT).map_err(|error| said(error.into()))?;
            about
                .insert(REVISION_KEY, revision)
                .map_err(|error| said(error.into()))?;
        }
        transaction.commit().map_err(|error| said(error.into()))
    }
}

/// `None` for a store that was never written.
fn format_of(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    let about = match transaction.open_table(ABOUT) {
        Ok(about) => about,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(about.get(FORMAT_KEY)?.map(|format| format.value()))
}

fn write_format(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(ABOUT)?.insert(FORMAT_KEY, FORMAT)?;
    transaction.open_table(OBJECTS)?;
    transaction.commit()?;
    Ok(())
}

fn read_all(database: &Database, seal: &Seal) -> Result<Snapshot, String> {
    let said = |error: redb::Error| error.to_string();
    let transaction = database.begin_read().map_err(|error| said(error.into()))?;
    let mut snapshot = Snapshot::default();
    let about = transaction.open_table(ABOUT).map_err(|error| said(error.into()))?;
    if let Some(revision) = about.get(REVISION_KEY).map_err(|error| said(error.into()))? {
        snapshot.restore_revision(revision.value());
    }
    let objects = transaction.open_table(OBJECTS).map_err(|error| said(error.into()))?;
    for entry in objects.iter().map_err(|error| said(error.into()))? {
        let (key, bytes) = entry.map_err(|error| said(error.into()))?;
        let text = key.value();
        let key = record::key_of(text).ok_or_else(|| format!("{text:?} is no object's key"))?;
        let (object, revision) =
            record::read(&key, bytes.value(), seal).map_err(|reason| format!("{key}: {reason}"))?;
        snapshot.restore(object, revision).map_err(|error| error.to_string())?;
    }
    Ok(snapshot)
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse { path },
        DatabaseError::UpgradeRequired(version) => OpenError::Newer {
            path,
            found: format!("of the file's own, {version},"),
        },
        // A file that is none of ours is damaged, as far as a user is concerned.
        DatabaseError::Storage(redb::StorageError::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io { path, error }
        }
        error => OpenError::Damaged {
            path,
            reason: error.to_string(),
        },
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

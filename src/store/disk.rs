//! The store's file: what its tables are, reading all of it, and writing a commit. Not here: when (`writer`), and what an
//! object looks like (`record`).

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::record;
use super::seal::Seal;
use super::{OpenError, Snapshot};
use crate::model::swarm::Write;

const OBJECTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("objects");
const ABOUT: TableDefinition<'static, &str, u64> = TableDefinition::new("about");
/// In a locked store: its key, as the unlock key seals it.
const LOCK: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("lock");
const LOCK_KEY: &str = "key";
const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// In a directory of its own.
pub(super) const FILE: &str = "store.redb";
const CACHE_BYTES: usize = 8 << 20;

/// Opens the file at `path`; makes it if it is not there and `may_make`.
pub(super) fn open(path: &Path, may_make: bool) -> Result<Database, OpenError> {
    let mut options = std::fs::File::options();
    options
        .read(true)
        .write(true)
        .create(may_make)
        .truncate(false)
        .mode(0o600);
    // One that is there may be of a version that left its mode to the umask.
    let made = options.open(path).and_then(|file| own(&file));
    made.map_err(|error| OpenError::Io {
        path: path.to_owned(),
        error,
    })?;
    builder().create(path).map_err(|error| open_error(path, error))
}

/// Opens a store on other storage than a file; `path` is what it is called.
pub(super) fn open_on(backend: impl StorageBackend, path: &Path) -> Result<Database, OpenError> {
    builder()
        .create_with_backend(backend)
        .map_err(|error| open_error(path, error))
}

/// Its integrity is checked: without that a damaged file panics.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn own(file: &std::fs::File) -> io::Result<()> {
    match file.metadata()?.permissions().mode() & 0o7777 {
        0o600 => Ok(()),
        _ => file.set_permissions(std::fs::Permissions::from_mode(0o600)),
    }
}

/// The store's directory: its owner's alone.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    match std::fs::metadata(dir)?.permissions().mode() & 0o7777 {
        0o700 => Ok(()),
        _ => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)),
    }
}

/// `None` for a store that was never written.
pub(super) fn format_of(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    let about = match transaction.open_table(ABOUT) {
        Ok(about) => about,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(about.get(FORMAT_KEY)?.map(|format| format.value()))
}

/// Makes a new store of it; `lock`: its key, sealed, if it is to be a locked one.
pub(super) fn write_format(database: &Database, lock: Option<&[u8]>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let format = match lock {
        Some(_) => record::LOCKED,
        None => record::PLAIN,
    };
    transaction.open_table(ABOUT)?.insert(FORMAT_KEY, format)?;
    transaction.open_table(OBJECTS)?;
    if let Some(lock) = lock {
        transaction.open_table(LOCK)?.insert(LOCK_KEY, lock)?;
    }
    transaction.commit()?;
    Ok(())
}

/// The key of a locked store, as it is sealed. `None`: there is none.
pub(super) fn lock_of(database: &Database) -> Result<Option<Vec<u8>>, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(LOCK) {
        Ok(table) => Ok(table.get(LOCK_KEY)?.map(|key| key.value().to_vec())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn read_all(database: &Database, seal: &Seal) -> Result<Snapshot, String> {
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

/// Writes all of `made`, each with the revision that it is of, and the store's revision. On disk when this returns.
pub(super) fn write_all(database: &Database, seal: &Seal, made: &[(u64, Write)], revision: u64) -> Result<(), String> {
    let said = |error: redb::Error| error.to_string();
    let transaction = database.begin_write().map_err(|error| said(error.into()))?;
    {
        let mut objects = transaction.open_table(OBJECTS).map_err(|error| said(error.into()))?;
        for (revision, write) in made {
            let key = write.key().to_string();
            let done = match write {
                Write::Put(object) => {
                    let bytes = record::write(object, *revision, seal)?;
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

//! A store gets another lock, or none: all of it is written to a new file with a new key, which then takes the place of the
//! old one in a single step. So at each moment there is one file, which opens with the one key or the other, and no page of it
//! was ever written with the key before. The old file and its key are overwritten before they are let go of: a file system
//! that writes elsewhere (copy on write, a flash disk's own tables) may keep their blocks all the same.
//!
//! Not here: when that is done (`writer`).

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use redb::Database;

use super::seal::Seal;
use super::{Snapshot, disk};
use crate::model::swarm::{UnlockKey, Write};

/// Beside the store: the key of one that is not locked.
pub(super) const KEY_FILE: &str = "store.key";
/// What is to take the store's place, and what had it. An end at any moment may leave either.
const NEW_FILE: &str = "store.redb.new";
const OLD_FILE: &str = "store.redb.old";
const NEW_KEY_FILE: &str = "store.key.new";

/// A whole store that has not taken its place yet.
pub(super) struct Prepared {
    dir: PathBuf,
    database: Database,
    seal: Seal,
}

/// Writes all of `now` to a new file, which `unlock_key` locks. On disk when this returns.
pub(super) fn prepare(dir: &Path, now: &Snapshot, unlock_key: Option<&UnlockKey>) -> Result<Prepared, String> {
    let said = |error: io::Error| error.to_string();
    shred(&dir.join(NEW_FILE)).map_err(said)?;
    let (seal, lock) = match unlock_key {
        Some(unlock_key) => {
            let (seal, lock) = Seal::new_locked(unlock_key).map_err(said)?;
            (seal, Some(lock))
        }
        // The store that is there now is locked: nothing of it needs what is written over here.
        None => (Seal::renew(&dir.join(KEY_FILE)).map_err(said)?, None),
    };
    let database = disk::open(&dir.join(NEW_FILE), true).map_err(|error| error.chain())?;
    disk::write_format(&database, lock.as_deref()).map_err(|error| error.to_string())?;
    let all: Vec<(u64, Write)> = now
        .keys()
        .into_iter()
        .filter_map(|key| Some((now.revision_of(&key)?, Write::Put(now.object(&key)?))))
        .collect();
    disk::write_all(&database, &seal, &all, now.revision())?;
    Ok(Prepared {
        dir: dir.to_owned(),
        database,
        seal,
    })
}

impl Prepared {
    /// Has it take the place of the store. Errors: the store is what it was.
    pub(super) fn take_place(self) -> io::Result<(Database, Seal)> {
        let Prepared { dir, database, seal } = self;
        let (new, place, old) = (dir.join(NEW_FILE), dir.join(disk::FILE), dir.join(OLD_FILE));
        remove(&old)?;
        // So that it is found and overwritten also after an end in between.
        fs::hard_link(&place, &old)?;
        fs::rename(&new, &place)?;
        if let Err(error) = sync(&dir) {
            // Perhaps it is on disk, and perhaps not. What cannot be put back stays, and is whole.
            if fs::rename(&old, &place).is_ok() {
                return Err(error);
            }
        }
        Ok((database, seal))
    }
}

/// Takes away what changes of the lock have left, whether they were done or not: overwritten first. `is_locked`: the store in
/// its place is. What cannot be taken away is said.
pub(super) fn clear(dir: &Path, is_locked: bool) {
    // Nothing is overwritten before it is certain that it is not the store any more.
    let cleared = sync(dir).and_then(|()| {
        let mut of_others = vec![NEW_FILE, NEW_KEY_FILE];
        if is_locked {
            of_others.push(KEY_FILE);
        }
        for name in of_others {
            shred(&dir.join(name))?;
        }
        let old = dir.join(OLD_FILE);
        match is_same(&old, &dir.join(disk::FILE))? {
            // The change was not made.
            true => remove(&old)?,
            false => shred(&old)?,
        }
        Ok(())
    });
    if let Err(error) = cleared {
        tracing::warn!(dir = %dir.display(), %error, "what the store was before its lock changed is not overwritten");
    }
}

/// Takes the whole store away, and what it was.
pub(super) fn erase(dir: &Path) -> io::Result<()> {
    clear(dir, true);
    shred(&dir.join(disk::FILE))?;
    sync(dir)
}

fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let of = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    Ok(of(one)?.is_some_and(|one| of(other).is_ok_and(|other| other == Some(one))))
}

/// Overwrites a file once, and removes it. None is as good.
fn shred(path: &Path) -> io::Result<()> {
    let mut file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut left = file.metadata()?.len();
    let nothing = vec![0; SHRED_BYTES];
    while left > 0 {
        let n = usize::try_from(left).map_or(SHRED_BYTES, |left| left.min(SHRED_BYTES));
        file.write_all(&nothing[..n])?;
        left -= n as u64;
    }
    file.sync_data()?;
    remove(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

const SHRED_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::model::swarm::{Id, Key, Kind, Meta, Object, Payload, Swarm, SwarmAuthority, Time};
    use crate::store::{Embedded, OpenError, Store, THIS_REVISION};

    const SECRET: &str = "nobody but its tasks";
    const TOKEN: &str = "SWMTKN-1-worker-token";
    const AUTHORITY: &str = "an authority's key";

    fn meta() -> Meta {
        Meta::new(THIS_REVISION, Time::now())
    }

    fn swarm(unlock_key: Option<&UnlockKey>) -> Write {
        Write::Put(Object::Swarm(Arc::new(Swarm {
            id: Id::from("s"),
            meta: meta(),
            spec: Default::default(),
            node: Id::from("n"),
            join_token_worker: TOKEN.to_owned(),
            join_token_manager: TOKEN.to_owned(),
            addr_pool: Vec::new(),
            subnet_size: 24,
            data_path_port: 4789,
            authority: Some(SwarmAuthority {
                certificate: "its certificate".to_owned(),
                subject: String::new(),
                public_key: String::new(),
                key: AUTHORITY.into(),
            }),
            unlock_key: unlock_key.cloned(),
        })))
    }

    fn secret(id: &str) -> Write {
        Write::Put(Object::Secret(Arc::new(Payload {
            id: Id::from(id),
            meta: meta(),
            name: format!("name of {id}"),
            labels: BTreeMap::new(),
            data: SECRET.as_bytes().into(),
            templating: None,
        })))
    }

    async fn put(store: &Embedded, write: Write) -> Arc<Snapshot> {
        store.commit(&store.snapshot(), vec![write]).await.unwrap()
    }

    /// A store with a secret and that lock.
    async fn made(dir: &Path, lock: Option<&UnlockKey>) {
        let store = Embedded::open(dir).unwrap();
        put(&store, swarm(None)).await;
        for n in 0..50 {
            put(&store, secret(&format!("s{n}"))).await;
        }
        if lock.is_some() {
            put(&store, swarm(lock)).await;
        }
    }

    fn open(dir: &Path, key: Option<&UnlockKey>) -> Result<Embedded, OpenError> {
        Embedded::open_with(dir, key, Arc::default())
    }

    fn keys() -> [UnlockKey; 2] {
        [UnlockKey::new([1; 32]), UnlockKey::new([2; 32])]
    }

    /// All changes of a lock: before and after.
    fn changes(keys: &[UnlockKey; 2]) -> [(Option<&UnlockKey>, Option<&UnlockKey>); 3] {
        [
            (None, Some(&keys[0])),
            (Some(&keys[0]), Some(&keys[1])),
            (Some(&keys[0]), None),
        ]
    }

    /// Whatever has been left there opens with one of the two, holds everything, and is tidy afterwards.
    async fn opens_with_one(dir: &Path, before: Option<&UnlockKey>, after: Option<&UnlockKey>, what: &str) -> bool {
        let first = open(dir, before);
        let second = if first.is_err() {
            open(dir, after)
        } else {
            Err(OpenError::Locked { path: dir.to_owned() })
        };
        let opened = [first, second];
        // One that is not locked opens with any.
        let is_after = match &opened {
            [Ok(store), _] => store.snapshot().unlock_key() != before,
            [Err(_), Ok(_)] => true,
            neither => panic!("{what}: it opens with neither: {neither:?}"),
        };
        drop(opened);
        let key = if is_after { after } else { before };
        let store = open(dir, key).unwrap();
        let snapshot = store.snapshot();
        assert_eq!(snapshot.unlock_key(), key, "{what}");
        assert_eq!(snapshot.secrets().count(), 50, "{what}");
        for secret in snapshot.secrets() {
            assert_eq!(&*secret.data, SECRET.as_bytes(), "{what}");
        }
        // It can be written, and is so afterwards.
        put(&store, secret("new")).await;
        drop(store);
        let store = open(dir, key).unwrap();
        assert!(store.snapshot().secret("new").is_some(), "{what}");
        let left = |name: &str| dir.join(name).exists();
        assert!(!left(NEW_FILE) && !left(OLD_FILE) && !left(NEW_KEY_FILE), "{what}");
        assert_eq!(left(KEY_FILE), key.is_none(), "{what}");
        is_after
    }

    /// With links as they are.
    fn copy(from: &Path) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        let all = format!("{}/.", from.display());
        let copied = Command::new("cp").arg("-a").arg(all).arg(to.path()).status().unwrap();
        assert!(copied.success());
        to
    }

    fn truncated(dir: &Path, name: &str, len: u64) {
        let file = File::options().write(true).open(dir.join(name)).unwrap();
        file.set_len(len).unwrap();
    }

    #[tokio::test]
    async fn an_end_at_any_step_leaves_one_key_that_opens_it() {
        let keys = keys();
        for (before, after) in changes(&keys) {
            let dir = tempfile::tempdir().unwrap();
            made(dir.path(), before).await;
            let now = {
                let store = open(dir.path(), before).unwrap();
                let now = store.snapshot();
                now.next(&now, vec![swarm(after)]).unwrap().0
            };
            let whats = |step: &str| format!("{before:?} to {after:?}, {step}");
            let prepared = prepare(dir.path(), &now, after).unwrap();
            // Not yet closed, as a killed one leaves it.
            let at_new = dir.path().join(NEW_FILE);
            let len = fs::metadata(&at_new).unwrap().len();
            for cut in [0, 1, 4096, len / 2, len - 1, len] {
                let copy = copy(dir.path());
                truncated(copy.path(), NEW_FILE, cut);
                let is_after =
                    opens_with_one(copy.path(), before, after, &whats(&format!("{cut} of {len} bytes"))).await;
                assert!(!is_after);
            }
            // What of it was not on disk may be anything.
            let noise = copy(dir.path());
            fs::write(noise.path().join(NEW_FILE), vec![0xa5; usize::try_from(len).unwrap()]).unwrap();
            assert!(!opens_with_one(noise.path(), before, after, &whats("noise")).await);
            let linked = copy(dir.path());
            fs::hard_link(linked.path().join(disk::FILE), linked.path().join(OLD_FILE)).unwrap();
            let again = copy(linked.path());
            assert!(is_same(&again.path().join(OLD_FILE), &again.path().join(disk::FILE)).unwrap());
            assert!(!opens_with_one(again.path(), before, after, &whats("linked")).await);

            drop(prepared.take_place().unwrap());
            let placed = copy(dir.path());
            assert!(opens_with_one(placed.path(), before, after, &whats("in its place")).await);
            for cut in [0, 4096] {
                let half = copy(dir.path());
                truncated(half.path(), OLD_FILE, cut);
                assert!(opens_with_one(half.path(), before, after, &whats("half overwritten")).await);
            }
            clear(dir.path(), after.is_some());
            assert!(opens_with_one(dir.path(), before, after, &whats("done")).await);
        }
    }

    #[tokio::test]
    async fn of_a_locked_store_nothing_is_read_without_its_key() {
        let keys = keys();
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), None).await;
        let path = dir.path().join(disk::FILE);
        // As somebody has them who looks at the disk: what they held is found wherever it was.
        let old = File::open(&path).unwrap();
        let old_key = File::open(dir.path().join(KEY_FILE)).unwrap();
        let key_before = fs::read(dir.path().join(KEY_FILE)).unwrap();
        let holds = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert!(holds(&fs::read(&path).unwrap(), TOKEN.as_bytes()));
        {
            let store = open(dir.path(), None).unwrap();
            put(&store, swarm(Some(&keys[0]))).await;
            put(&store, secret("later")).await;
            put(&store, swarm(Some(&keys[1]))).await;
        }
        for file in fs::read_dir(dir.path()).unwrap().flatten() {
            let bytes = fs::read(file.path()).unwrap();
            let words = [SECRET, TOKEN, AUTHORITY, "its certificate", "name of", "SWMKEY"];
            let bits = words.iter().map(|word| word.as_bytes());
            let bits = bits
                .chain([&key_before[..]])
                .chain(keys.iter().map(|key| &key.bytes()[..]));
            for what in bits {
                let path = file.path();
                assert!(
                    !holds(&bytes, what),
                    "{}: {:?}",
                    path.display(),
                    String::from_utf8_lossy(what)
                );
            }
        }
        let is_nothing = |mut file: &File| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut file, &mut bytes).unwrap();
            !bytes.is_empty() && bytes.iter().all(|byte| *byte == 0)
        };
        assert!(
            is_nothing(&old) && is_nothing(&old_key),
            "overwritten, not only unlinked"
        );
        assert!(matches!(open(dir.path(), None), Err(OpenError::Locked { .. })));
        for wrong in [&keys[0], &UnlockKey::new([0; 32])] {
            assert!(matches!(open(dir.path(), Some(wrong)), Err(OpenError::WrongKey { .. })));
        }
        let store = open(dir.path(), Some(&keys[1])).unwrap();
        assert_eq!(store.snapshot().secrets().count(), 51);
    }

    #[tokio::test]
    async fn what_cannot_be_locked_stays_as_it_was() {
        let keys = keys();
        for (before, after) in changes(&keys) {
            let dir = tempfile::tempdir().unwrap();
            made(dir.path(), before).await;
            let store = open(dir.path(), before).unwrap();
            // Where the new file is to be there is something that is not to be overwritten.
            fs::create_dir(dir.path().join(NEW_FILE)).unwrap();
            let refused = store
                .commit(&store.snapshot(), vec![swarm(after), secret("with it")])
                .await;
            assert!(refused.is_err());
            assert_eq!(store.snapshot().unlock_key(), before);
            put(&store, secret("between")).await;
            fs::remove_dir(dir.path().join(NEW_FILE)).unwrap();
            put(&store, swarm(after)).await;
            drop(store);
            let store = open(dir.path(), after).unwrap();
            assert!(store.snapshot().secret("with it").is_none());
            assert!(store.snapshot().secret("between").is_some());
        }
    }

    #[tokio::test]
    async fn who_leaves_it_behind_begins_with_nothing() {
        let keys = keys();
        for lock in [None, Some(&keys[0])] {
            let dir = tempfile::tempdir().unwrap();
            made(dir.path(), lock).await;
            Embedded::erase(dir.path()).unwrap();
            let store = open(dir.path(), None).unwrap();
            assert!(store.snapshot().keys().is_empty());
            assert_eq!(store.health().lost(), []);
            put(&store, secret("s")).await;
        }
    }

    #[tokio::test]
    async fn removing_a_locked_swarm_leaves_an_open_store() {
        let keys = keys();
        let dir = tempfile::tempdir().unwrap();
        made(dir.path(), Some(&keys[0])).await;
        let store = open(dir.path(), Some(&keys[0])).unwrap();
        let base = store.snapshot();
        let all: Vec<Key> = base.keys();
        assert!(all.iter().any(|key| key.kind == Kind::Swarm));
        store
            .commit(&base, all.into_iter().map(Write::Remove).collect())
            .await
            .unwrap();
        drop(store);
        assert!(open(dir.path(), None).unwrap().snapshot().keys().is_empty());
    }
}

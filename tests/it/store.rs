//! The store, on storage that fails at each write and sync in turn, on damaged files, full disks and with two processes.

use std::io;
use std::sync::{Arc, Mutex};

use anynode::model::swarm::{
    Id, Key, Kind, Meta, Network, Object, Payload, RegistryAuth, Service, ServiceSpec, Time, Write,
};
use anynode::store::{CommitError, Embedded, OpenError, Snapshot, Store, THIS_REVISION, update};
use redb::StorageBackend;

use crate::harness::Seed;

fn meta() -> Meta {
    Meta {
        version: THIS_REVISION,
        created_at: Time(1),
        updated_at: Time(2),
    }
}

fn network(id: &str, name: &str) -> Object {
    Object::Network(Arc::new(Network {
        id: id.into(),
        meta: meta(),
        name: name.to_owned(),
        labels: Default::default(),
        driver: "overlay".to_owned(),
        options: Default::default(),
        is_internal: false,
        is_attachable: false,
        is_ingress: false,
        ipv6: false,
        subnet: None,
        gateway: None,
        range: None,
        auxiliary: Default::default(),
    }))
}

fn secret(id: &str, data: &[u8]) -> Object {
    Object::Secret(Arc::new(Payload {
        id: id.into(),
        meta: meta(),
        name: format!("name-{id}"),
        labels: Default::default(),
        data: data.into(),
        templating: None,
    }))
}

/// A service whose images are pulled with a password, now and before.
fn service(id: &str, before: &str, now: &str) -> Object {
    let auth = |text: &str| Some(RegistryAuth(text.into()));
    let spec = |image: &str| ServiceSpec {
        name: Some(format!("name-{id}")),
        task_template: serde_json::from_value(serde_json::json!({ "ContainerSpec": { "Image": image } })).unwrap(),
        ..ServiceSpec::default()
    };
    let first = Service::new(id.into(), spec("a"), auth(before), Time(1), THIS_REVISION);
    Object::Service(Arc::new(first.declared(spec("b"), auth(now), Time(2), THIS_REVISION)))
}

fn key(kind: Kind, id: &str) -> Key {
    Key { kind, id: id.into() }
}

async fn put(store: &Embedded, object: Object) -> Result<Arc<Snapshot>, CommitError> {
    let base = store.snapshot();
    store.commit(&base, vec![Write::Put(object)]).await
}

/// Storage in memory that fails for good at one of its operations, and then shows what a power cut would have left.
#[derive(Debug, Clone, Default)]
struct Storage(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// As programs see it.
    now: Vec<u8>,
    /// As the last sync left it.
    synced: Vec<u8>,
    /// What was done since.
    since: Vec<(usize, Option<Vec<u8>>)>,
    n_operations: u64,
    fails_at: Option<u64>,
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.n_operations += 1;
        match self.fails_at.is_some_and(|at| self.n_operations > at) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }

    fn apply(image: &mut Vec<u8>, (at, bytes): &(usize, Option<Vec<u8>>)) {
        match bytes {
            None => image.resize(*at, 0),
            Some(bytes) => {
                if image.len() < at + bytes.len() {
                    image.resize(at + bytes.len(), 0);
                }
                image[*at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

impl Storage {
    fn of(image: Vec<u8>, fails_at: Option<u64>) -> Storage {
        Storage(Arc::new(Mutex::new(State {
            now: image.clone(),
            synced: image,
            fails_at,
            ..State::default()
        })))
    }

    /// From now on it takes everything.
    fn heal(&self) {
        self.0.lock().unwrap().fails_at = None;
    }

    fn n_operations(&self) -> u64 {
        self.0.lock().unwrap().n_operations
    }

    /// What is left: what was synced, and of the rest some, in any order, the last of it perhaps in part.
    fn after_power_cut(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut image = state.synced.clone();
        let mut since = state.since.clone();
        random.shuffle(&mut since);
        since.truncate(random.usize(..=since.len()));
        if let Some((_, Some(bytes))) = since.last_mut() {
            bytes.truncate(random.usize(..=bytes.len()));
        }
        since.iter().for_each(|one| State::apply(&mut image, one));
        image
    }
}

impl StorageBackend for Storage {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let state = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        let bytes = state.now.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.change((usize::try_from(len).unwrap(), None))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        state.synced = state.now.clone();
        state.since.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.change((usize::try_from(offset).unwrap(), Some(data.to_vec())))
    }
}

impl Storage {
    fn change(&self, change: (usize, Option<Vec<u8>>)) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        state.step()?;
        State::apply(&mut state.now, &change);
        state.since.push(change);
        Ok(())
    }
}

/// What a test does to a store; returns what was answered: the names by id, and what was asked last without an answer.
async fn some_work(store: &Embedded, n: usize) -> (Vec<usize>, Option<usize>) {
    let mut answered = Vec::new();
    for i in 0..n {
        let written = match i % 3 {
            // Together with the removal of an older one.
            2 => {
                let base = store.snapshot();
                let writes = vec![
                    Write::Put(secret(&format!("s{i}"), format!("secret {i}").as_bytes())),
                    Write::Remove(key(Kind::Secret, &format!("s{}", i - 1))),
                ];
                store.commit(&base, writes).await
            }
            _ => put(store, secret(&format!("s{i}"), format!("secret {i}").as_bytes())).await,
        };
        match written {
            Ok(_) => answered.push(i),
            Err(_) => return (answered, Some(i)),
        }
    }
    (answered, None)
}

/// Whether the store holds what steps up to `last` leave.
fn holds(store: &Embedded, last: Option<usize>) -> bool {
    let snapshot = store.snapshot();
    let expected: Vec<String> = (0..last.map_or(0, |last| last + 1))
        .filter(|i| i % 3 != 1 || last == Some(*i))
        .map(|i| format!("s{i}"))
        .collect();
    let mut expected_sorted = expected.clone();
    expected_sorted.sort();
    let found: Vec<String> = snapshot.secrets().map(|secret| secret.id.to_string()).collect();
    let are_whole = snapshot
        .secrets()
        .all(|secret| *secret.data == *format!("secret {}", &secret.id.as_str()[1..]).as_bytes());
    found == expected_sorted && are_whole
}

#[tokio::test]
async fn a_power_cut_at_any_write_or_sync_loses_nothing_that_was_answered() {
    const STEPS: usize = 9;
    let seed = Seed::new();
    let mut random = seed.rng();
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::of(Vec::new(), None);
    let store = Embedded::open_on(storage.clone(), dir.path()).unwrap();
    let (answered, _) = some_work(&store, STEPS).await;
    assert_eq!(answered.len(), STEPS);
    drop(store);
    let n_all = storage.n_operations();
    assert!(n_all > 20, "{n_all} operations are too few to be all");
    for fails_at in 0..n_all {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::of(Vec::new(), Some(fails_at));
        let (answered, asked) = match Embedded::open_on(storage.clone(), dir.path()) {
            Ok(store) => some_work(&store, STEPS).await,
            Err(_) => (Vec::new(), None),
        };
        let noted = dir.path().join("store.acknowledged");
        let at_the_cut = std::fs::read(&noted);
        for _ in 0..3 {
            let put_back = match &at_the_cut {
                Ok(bytes) => std::fs::write(&noted, bytes),
                Err(_) if noted.exists() => std::fs::remove_file(&noted),
                Err(_) => Ok(()),
            };
            put_back.unwrap();
            let image = storage.after_power_cut(&mut random);
            let again = Storage::of(image, None);
            let store = match Embedded::open_on(again, dir.path()) {
                Ok(store) => store,
                // Before anything was answered there may be nothing that can be opened.
                Err(error) if answered.is_empty() => {
                    assert!(
                        matches!(error, OpenError::Damaged { .. } | OpenError::Io { .. }),
                        "{error}"
                    );
                    continue;
                }
                Err(error) => panic!("operation {fails_at} of {n_all}: {error}"),
            };
            let last = answered.last().copied();
            assert_eq!(store.health().lost(), [], "operation {fails_at}: a false alarm");
            assert!(
                holds(&store, last) || asked.is_some_and(|asked| holds(&store, Some(asked))),
                "operation {fails_at} of {n_all}: {answered:?} answered, {asked:?} asked, {:?} there",
                store
                    .snapshot()
                    .secrets()
                    .map(|secret| secret.id.clone())
                    .collect::<Vec<Id>>()
            );
            put(&store, network("n", "after")).await.unwrap();
        }
    }
}

/// Waits until the store can be written again; the deadline is only there so that a test that fails ends.
async fn is_written_again(store: &Embedded) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while let Some(failing) = store.health().failing() {
        assert!(
            std::time::Instant::now() < deadline,
            "still not written: {}",
            failing.reason
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// At whichever write or sync a device begins to fail: once it works again the store goes on, with all that it answered and
/// nothing that it refused, in memory and in its file.
#[tokio::test]
async fn it_goes_on_by_itself_after_a_failure_at_any_write_or_sync() {
    const STEPS: usize = 9;
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::of(Vec::new(), None);
    let store = Embedded::open_on(storage.clone(), dir.path()).unwrap();
    let n_open = storage.n_operations();
    some_work(&store, STEPS).await;
    let n_all = storage.n_operations();
    drop(store);
    let mut all = tokio::task::JoinSet::new();
    for fails_at in n_open..n_all {
        all.spawn(async move {
            let dir = tempfile::tempdir().unwrap();
            let storage = Storage::of(Vec::new(), Some(fails_at));
            let store = Embedded::open_on(storage.clone(), dir.path()).unwrap();
            let (answered, asked) = some_work(&store, STEPS).await;
            assert!(
                asked.is_some(),
                "operation {fails_at} of {n_all} fails and nobody is told"
            );
            let failing = store.health().failing().expect("it says that it cannot be written");
            assert!(failing.reason.contains("os error 5"), "{}", failing.reason);
            let refused = put(&store, network("n", "meanwhile")).await.unwrap_err().to_string();
            assert!(refused.contains("os error 5"), "{refused}");
            assert!(
                holds(&store, answered.last().copied()),
                "what is there can be read meanwhile"
            );
            let woken = store.changed();
            storage.heal();
            is_written_again(&store).await;
            assert!(woken.has_changed().unwrap(), "whoever has something to write is told");
            assert!(holds(&store, answered.last().copied()), "operation {fails_at}");
            put(&store, network("m", "after")).await.unwrap();
            let now = store.snapshot();
            assert!(
                store
                    .health()
                    .write_failures_total
                    .load(std::sync::atomic::Ordering::Relaxed)
                    >= 2
            );
            drop(store);
            let image = storage.0.lock().unwrap().now.clone();
            let again = Embedded::open_on(Storage::of(image, None), dir.path()).unwrap();
            let reopened = again.snapshot();
            assert!(
                holds(&again, answered.last().copied()),
                "operation {fails_at}: {answered:?} answered, {asked:?} refused, {:?} there",
                reopened.secrets().map(|secret| secret.id.clone()).collect::<Vec<Id>>()
            );
            assert_eq!(reopened.keys(), now.keys(), "operation {fails_at}");
            assert_eq!(reopened.revision(), now.revision());
            assert_eq!(again.health().lost(), []);
        });
    }
    all.join_all().await;
}

#[tokio::test]
async fn commits_that_saw_something_older_are_refused_and_update_tries_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(dir.path()).unwrap());
    let old = store.snapshot();
    put(&store, network("a", "net")).await.unwrap();
    let again = store.commit(&old, vec![Write::Put(network("a", "other"))]).await;
    assert!(matches!(again, Err(CommitError::Conflict { .. })), "{again:?}");
    let taken = put(&store, network("b", "NET")).await;
    assert!(matches!(taken, Err(CommitError::NameTaken { .. })), "{taken:?}");
    assert!(store.snapshot().network("b").is_none());
    // Many count up what one object says, at once.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                let counted = update(&*store, |snapshot| {
                    let mut network = Arc::unwrap_or_clone(snapshot.network("a").unwrap().clone());
                    let n: u32 = network.options.get("n").map_or(0, |n| n.parse().unwrap());
                    network.options.insert("n".to_owned(), (n + 1).to_string());
                    Ok::<_, CommitError>((vec![Write::Put(Object::Network(Arc::new(network)))], ()))
                });
                counted.await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let snapshot = store.snapshot();
    assert_eq!(snapshot.network("a").unwrap().options["n"], "200");
    assert_eq!(snapshot.revision(), 201);
    assert_eq!(
        snapshot.network("a").unwrap().meta.version,
        1,
        "only who asks for it gets a new version"
    );
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_secrets_are_not_readable_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let before = {
        let store = Embedded::open(dir.path()).unwrap();
        put(&store, network("n", "net")).await.unwrap();
        put(&store, secret("s", b"a-very-secret-word")).await.unwrap();
        put(&store, service("w", "an-old-password", "a-new-password"))
            .await
            .unwrap();
        store.snapshot()
    };
    let store = Embedded::open(dir.path()).unwrap();
    let after = store.snapshot();
    assert_eq!(after.revision(), before.revision());
    assert_eq!(after.secret("s").unwrap(), before.secret("s").unwrap());
    assert_eq!(after.network("n"), before.network("n"));
    let service = after.service("w").unwrap();
    assert_eq!(service, before.service("w").unwrap());
    let auth = |template| service.registry_auth_of(template).map(|auth| &*auth.0);
    assert_eq!((auth(1), auth(2)), (Some("an-old-password"), Some("a-new-password")));
    drop(store);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(!has(b"a-very-secret-word"));
        assert!(!has(b"YS12ZXJ5LXNlY3JldC13b3Jk"));
        assert!(!has(b"an-old-password") && !has(b"a-new-password"));
    }
}

#[tokio::test]
async fn a_second_process_a_lost_key_a_newer_format_and_damage_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    put(&store, secret("s", b"secret")).await.unwrap();
    let second = Embedded::open(dir.path());
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    drop(store);
    drop(Embedded::open(dir.path()).unwrap());

    let file = dir.path().join("store.redb");
    let whole = std::fs::read(&file).unwrap();
    let key = dir.path().join("store.key");
    let kept = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let lost = Embedded::open(dir.path());
    assert!(matches!(lost, Err(OpenError::Key { .. })), "{lost:?}");
    assert!(!key.exists(), "no new key in the place of the lost one");
    std::fs::write(&key, [0; 32]).unwrap();
    let other = Embedded::open(dir.path()).unwrap_err().to_string();
    assert!(
        other.contains("secret/s") && other.contains("do not open with the key"),
        "{other}"
    );
    std::fs::write(&key, kept).unwrap();

    {
        let database = redb::Database::create(&file).unwrap();
        let transaction = database.begin_write().unwrap();
        let about = redb::TableDefinition::<&str, u64>::new("about");
        transaction.open_table(about).unwrap().insert("format", 7).unwrap();
        transaction.commit().unwrap();
    }
    let newer = Embedded::open(dir.path()).unwrap_err().to_string();
    assert!(newer.contains("format 7") && newer.contains("up to 2"), "{newer}");

    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let half = Embedded::open(dir.path());
    assert!(
        matches!(half, Err(OpenError::Damaged { .. } | OpenError::Io { .. })),
        "{half:?}"
    );
    std::fs::write(&file, b"not a store at all").unwrap();
    let none = Embedded::open(dir.path());
    assert!(
        matches!(none, Err(OpenError::Damaged { .. } | OpenError::Io { .. })),
        "{none:?}"
    );
    // Nobody begins with nothing where there was something: all that runs here would be ended as nobody's.
    std::fs::write(&file, b"").unwrap();
    let empty = Embedded::open(dir.path()).unwrap_err().to_string();
    assert!(empty.contains("it is empty or gone, and held revision 1"), "{empty}");
    std::fs::remove_file(&file).unwrap();
    let gone = Embedded::open(dir.path());
    assert!(matches!(gone, Err(OpenError::Damaged { .. })), "{gone:?}");
    assert!(!file.exists());
    std::fs::write(&file, &whole).unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    assert!(store.snapshot().secret("s").is_some());
}

/// Bits that turn over are found, or do no harm; nothing panics.
#[tokio::test]
async fn damage_anywhere_never_panics() {
    let seed = Seed::new();
    let mut random = seed.rng();
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Embedded::open(dir.path()).unwrap();
        for i in 0..20 {
            put(&store, secret(&format!("s{i}"), &[i; 200])).await.unwrap();
        }
    }
    drop(Embedded::open(dir.path()).unwrap());
    let file = dir.path().join("store.redb");
    let whole = std::fs::read(&file).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for round in 0..200 {
        let mut image = whole.clone();
        for _ in 0..random.usize(1..20) {
            // Mostly where something stands.
            let at = random.usize(..used);
            image[at] ^= random.u8(1..);
        }
        let storage = Storage::of(image, None);
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Embedded::open_on(storage, dir.path())));
        match opened {
            Ok(Ok(store)) => drop(store.snapshot()),
            Ok(Err(_)) => {}
            Err(_) => panic!("round {round}: opening a damaged store panicked"),
        }
    }
}

/// Storage that is full: the commit fails and says so, what was there stays, and it goes on once there is room.
#[tokio::test]
async fn a_full_disk_is_an_error_and_nothing_is_lost() {
    let Some(disk) = crate::harness::small_disk(3 << 20) else {
        eprintln!("skipped: a small file system cannot be mounted here");
        return;
    };
    let dir = disk.path().join("store");
    let filler = disk.path().join("filler");
    // At the first start: no damage.
    drop(std::fs::write(&filler, vec![1; 8 << 20]));
    let file = std::fs::File::options().write(true).open(&filler).unwrap();
    // Room for a key, and not for a store.
    file.set_len(file.metadata().unwrap().len() - 16_384).unwrap();
    drop(file);
    let full = Embedded::open(&dir);
    let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
    assert!(
        matches!(&full, Err(OpenError::Io { error, .. }) if is_full(error)),
        "{full:?}"
    );
    std::fs::remove_file(&filler).unwrap();
    let store = Embedded::open(&dir).unwrap();
    put(&store, network("n", "first")).await.unwrap();
    drop(std::fs::write(&filler, vec![1; 8 << 20]));
    let mut n_kept = 0;
    let refused = loop {
        match put(&store, secret(&format!("s{n_kept}"), &vec![7; 200_000])).await {
            Ok(_) => n_kept += 1,
            Err(error) => break error,
        }
        assert!(n_kept < 100, "the disk is never full");
    };
    assert!(matches!(&refused, CommitError::Io { .. }), "{refused}");
    assert_eq!(store.snapshot().secrets().count(), n_kept);
    let failing = store.health().failing().expect("it says that it cannot be written");
    assert!(failing.reason.contains("No space left"), "{}", failing.reason);
    std::fs::remove_file(&filler).unwrap();
    is_written_again(&store).await;
    put(&store, network("m", "second")).await.unwrap();
    drop(store);
    let store = Embedded::open(&dir).unwrap();
    assert_eq!(store.snapshot().secrets().count(), n_kept);
    let has = |id: &str| store.snapshot().network(id).is_some();
    assert!(has("n") && has("m"));
    assert_eq!(store.health().lost(), []);
}

/// A file system that is made read-only for a while, as the kernel does after an error of a device.
#[tokio::test]
async fn a_disk_that_is_read_only_for_a_while() {
    let Some(disk) = crate::harness::small_disk(8 << 20) else {
        eprintln!("skipped: a small file system cannot be mounted here");
        return;
    };
    let remount = |how: &str| {
        let mount = std::process::Command::new("mount")
            .args(["-o", how])
            .arg(disk.path())
            .status();
        assert!(mount.unwrap().success(), "{how}");
    };
    let dir = disk.path().join("store");
    let store = Embedded::open(&dir).unwrap();
    put(&store, network("n", "first")).await.unwrap();
    drop(store);
    // The kernel refuses while somebody has a file open for writing.
    remount("remount,ro");
    let error = Embedded::open(&dir).unwrap_err();
    assert!(matches!(&error, OpenError::Io { .. }), "{error}");
    remount("remount,rw");
    put(&Embedded::open(&dir).unwrap(), network("m", "second"))
        .await
        .unwrap();
}

/// With a kill that leaves what is written and no more, one bit of the last commit that turns over takes back what was
/// acknowledged: each time either nothing is lost, or it is said.
#[tokio::test]
async fn what_a_damaged_commit_loses_is_said() {
    let seed = Seed::new();
    let mut random = seed.rng();
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::of(Vec::new(), None);
    let store = Embedded::open_on(storage.clone(), dir.path()).unwrap();
    for i in 0..5 {
        put(&store, secret(&format!("s{i}"), &[i; 300])).await.unwrap();
    }
    let before = storage.0.lock().unwrap().now.clone();
    put(&store, secret("last", b"acknowledged")).await.unwrap();
    let revision = store.snapshot().revision();
    // As a kill -9 leaves it.
    let after = storage.0.lock().unwrap().now.clone();
    let noted = dir.path().join("store.acknowledged");
    let at_the_kill = std::fs::read(&noted).unwrap();
    drop(store);
    let changed: Vec<usize> = (0..after.len())
        .filter(|at| before.get(*at) != Some(&after[*at]))
        .collect();
    assert!(
        changed.len() > 100,
        "{} bytes are too few to be a commit",
        changed.len()
    );
    let (mut n_lost, mut n_refused) = (0, 0);
    for round in 0..40 {
        let mut image = after.clone();
        let at = changed[random.usize(..changed.len())];
        image[at] ^= 1 << random.u32(..8);
        std::fs::write(&noted, &at_the_kill).unwrap();
        let _ = std::fs::remove_file(dir.path().join("store.lost"));
        let Ok(store) = Embedded::open_on(Storage::of(image, None), dir.path()) else {
            n_refused += 1;
            continue;
        };
        let is_there = store
            .snapshot()
            .secret("last")
            .is_some_and(|last| *last.data == *b"acknowledged");
        let lost = store.health().lost();
        assert_eq!(is_there, lost.is_empty(), "round {round}, byte {at}: {lost:?}");
        if let Some(lost) = lost.first() {
            n_lost += 1;
            assert_eq!((lost.first, lost.last), (revision, revision));
            assert!(dir.path().join("store.lost").exists(), "said again at the next start");
            assert_eq!(store.snapshot().secrets().count(), 5, "the rest is there");
        }
        let next = put(&store, network("n", "after")).await.unwrap();
        assert_eq!(next.revision(), revision + 1, "no revision stands for two things");
    }
    eprintln!(
        "of 40 bits {n_lost} took back the last commit and {n_refused} the whole store, which was said each time"
    );
    assert!(
        n_lost + n_refused > 0,
        "no bit did any harm: the test turns over the wrong ones"
    );
}

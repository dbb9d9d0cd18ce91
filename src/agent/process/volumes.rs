//! Volumes that have names: a directory each, beside the tasks' directories, with what is in it below `_data`. They outlive tasks
//! and services. Not here: what tasks have mounted (`mounts`), and volumes without names, which are in the tasks' directories.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::job::{Dir, User};
use super::known::KnownTasks;
use super::removal::{Begun, Remover};
use super::volume_name::{DATA, check_name, data_of};
use crate::model::swarm::Time;
use crate::model::volume::{TaskMount, VolumeChange};
use crate::sys::mounts::mount_points;

/// All that have names.
pub struct Volumes {
    dir: PathBuf,
    tasks: Arc<KnownTasks>,
    remover: Remover,
    /// std mutex: held while one is made, or put aside to be removed.
    changing: Mutex<()>,
    told: broadcast::Sender<VolumeChange>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub created_at: Time,
    pub labels: BTreeMap<String, String>,
    /// Where what it holds lies.
    pub data: PathBuf,
    /// The ids of the tasks that have it mounted, or may have it again.
    pub tasks: Vec<String>,
}

/// Why nothing became of it.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("no such volume")]
    NotFound,
    #[error("{0}")]
    Name(String),
    #[error("volume is in use - [{}]", .0.join(", "))]
    InUse(Vec<String>),
    #[error("{} is mounted there: expected it to be unmounted first", .0.display())]
    Mounted(PathBuf),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What is kept of one beside its data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    created_at: u64,
    labels: BTreeMap<String, String>,
    /// It is somebody's, and stays so.
    has_owner: bool,
}

const KEPT: &str = "volume";
/// So far may a listener be behind.
const CHANGES_AHEAD: usize = 1024;

/// Makes a directory that is the user's, and that others may read. It may be there.
fn make_data(path: &Path, owner: Option<&User>) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    match owner {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

/// Makes one without a name, in its task's directory, which has `path` in `dir`.
pub(super) fn make_nameless(dir: &Dir, path: &Path, owner: Option<&User>) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir.volumes())?;
    make_data(path, owner)
}

impl Volumes {
    /// `tasks_dir`: they are beside it.
    pub(super) fn new(tasks_dir: &Path, tasks: Arc<KnownTasks>) -> Volumes {
        let dir = dir_of(tasks_dir);
        Volumes {
            remover: Remover::new(&dir),
            dir,
            tasks,
            changing: Mutex::default(),
            told: broadcast::Sender::new(CHANGES_AHEAD),
        }
    }

    /// What becomes of them from now on; who does not keep up misses some.
    pub fn changes(&self) -> broadcast::Receiver<VolumeChange> {
        self.told.subscribe()
    }

    /// What a task has mounted; nothing of one that is not there.
    pub fn mounts_of(&self, task: &str) -> Vec<TaskMount> {
        self.tasks.mounts_of(task)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// By their names. Errors: they cannot be read.
    pub fn list(&self) -> io::Result<Vec<Volume>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| self.is_there(name)).collect();
        names.sort();
        let users = self.users();
        Ok(names.into_iter().map(|name| self.volume(name, &users)).collect())
    }

    /// Errors: there is none of that name.
    pub fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        match self.is_there(name) {
            true => Ok(self.volume(name.to_owned(), &self.users())),
            false => Err(VolumeError::NotFound),
        }
    }

    /// Makes one that is nobody's yet; one that is there stays as it is. Errors: its name is none, or it cannot be made.
    pub fn create(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<Volume, VolumeError> {
        self.make(name, labels, None)?;
        self.get(name)
    }

    /// The same for a task of `user`, whose it is if it was nobody's.
    pub(super) fn make(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        user: Option<&User>,
    ) -> Result<(), VolumeError> {
        check_name(name).map_err(VolumeError::Name)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, data) = (self.dir.join(name), data_of(&self.dir, name));
        let mut kept = match self.is_there(name) {
            true => self.kept(name),
            false => {
                let mut builder = fs::DirBuilder::new();
                builder.recursive(true).mode(0o700).create(&path)?;
                let kept = Kept {
                    created_at: Time::now().0,
                    labels: labels.clone(),
                    has_owner: false,
                };
                self.write(name, &kept)?;
                make_data(&data, None)?;
                // An error says that nobody listens.
                let _ = self.told.send(VolumeChange::Made(name.to_owned()));
                kept
            }
        };
        if let Some(user) = user.filter(|_| !kept.has_owner) {
            // What somebody put there is his.
            if fs::read_dir(&data)?.next().is_none() {
                chown(&data, Some(user.uid), Some(user.gid))?;
            }
            kept.has_owner = true;
            self.write(name, &kept)?;
        }
        Ok(())
    }

    /// Its name is free when this returns, what it holds is removed by and by. Errors: there is none, a task has it, or
    /// something is mounted there, whose files are not ours to remove.
    pub fn begin_removal(&self, name: &str) -> Result<Begun, VolumeError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.get(name)?;
        let tasks = self.tasks.holders_of(name)?;
        if !tasks.is_empty() {
            return Err(VolumeError::InUse(tasks));
        }
        let path = self.dir.join(name);
        let real = path.canonicalize()?;
        if let Some(point) = mount_points()?.into_iter().find(|point| point.starts_with(&real)) {
            return Err(VolumeError::Mounted(point));
        }
        let begun = self.remover.begin(&Dir::new(path))?;
        let _ = self.told.send(VolumeChange::Removed(name.to_owned()));
        Ok(begun)
    }

    /// How much the files are that it holds, in bytes, as far as they can be seen, and as long as `is_wanted`.
    pub fn size(&self, name: &str, is_wanted: impl Fn() -> bool) -> u64 {
        let mut dirs = vec![data_of(&self.dir, name)];
        let mut n_bytes = 0_u64;
        while let Some(dir) = dirs.pop().filter(|_| is_wanted()) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(found) if found.is_dir() => dirs.push(entry.path()),
                    Ok(found) if found.is_file() => n_bytes = n_bytes.saturating_add(found.len()),
                    _ => {}
                }
            }
        }
        n_bytes
    }

    /// Why a task of `user` would find a volume that it cannot write to; `None`: it can.
    pub(super) fn why_closed(&self, name: &str, user: &User) -> Option<String> {
        let found = fs::metadata(data_of(&self.dir, name)).ok()?;
        let bit = match () {
            () if found.uid() == user.uid => 0o200,
            () if found.gid() == user.gid || user.groups.contains(&found.gid()) => 0o020,
            () => 0o002,
        };
        let (uid, gid) = (found.uid(), found.gid());
        (found.mode() & bit == 0).then(|| {
            format!(
                "volume {name} is user {uid}'s, and the service, which names no user, has one of its own, {}: expected --user \
                 {uid}:{gid}, or one --user for all services that share it, or the mount to be readonly",
                user.uid
            )
        })
    }

    fn is_there(&self, name: &str) -> bool {
        check_name(name).is_ok() && data_of(&self.dir, name).is_dir()
    }

    fn volume(&self, name: String, users: &BTreeMap<String, Vec<String>>) -> Volume {
        let kept = self.kept(&name);
        Volume {
            created_at: Time(kept.created_at),
            labels: kept.labels,
            data: data_of(&self.dir, &name),
            tasks: users.get(&name).cloned().unwrap_or_default(),
            name,
        }
    }

    /// Which tasks have which.
    fn users(&self) -> BTreeMap<String, Vec<String>> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for known in self.tasks.all() {
            for volume in &known.volumes {
                users.entry(volume.clone()).or_default().push(known.task.clone());
            }
        }
        users
    }

    /// Of what is damaged or gone, that it is somebody's already.
    fn kept(&self, name: &str) -> Kept {
        let path = self.dir.join(name);
        let read = fs::read(path.join(KEPT)).ok();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_else(|| Kept {
                created_at: fs::metadata(&path).map_or(0, |found| {
                    u64::try_from(found.mtime()).unwrap_or(0).saturating_mul(1_000_000_000)
                }),
                labels: BTreeMap::new(),
                has_owner: true,
            })
    }

    fn write(&self, name: &str, kept: &Kept) -> io::Result<()> {
        let file = self.dir.join(name).join(KEPT);
        let unfinished = file.with_extension("new");
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut open = options.open(&unfinished)?;
        open.write_all(&serde_json::to_vec(kept).map_err(io::Error::other)?)?;
        open.sync_all()?;
        fs::rename(&unfinished, &file)?;
        File::open(self.dir.join(name))?.sync_all()
    }
}

fn dir_of(tasks_dir: &Path) -> PathBuf {
    tasks_dir.with_file_name("volumes")
}

/// Whose they are, of those that are beside the tasks in `tasks_dir`.
pub(super) fn owners(tasks_dir: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(dir_of(tasks_dir)).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(fs::metadata(entry.path().join(DATA)).ok()?.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_are_made_once_and_removed_whole() {
        let parent = tempfile::tempdir().unwrap();
        let tasks = parent.path().join("tasks");
        let volumes = Volumes::new(&tasks, Arc::new(KnownTasks::new(tasks.clone())));
        assert_eq!(volumes.list().unwrap(), []);
        assert!(matches!(volumes.get("db"), Err(VolumeError::NotFound)));
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let mut changes = volumes.changes();
        let made = volumes.create("db", &labels).unwrap();
        assert_eq!((&made.labels, made.tasks.len()), (&labels, 0));
        fs::write(made.data.join("file"), "kept").unwrap();
        let again = volumes.create("db", &BTreeMap::new()).unwrap();
        assert_eq!(again, made);
        assert_eq!(fs::read(made.data.join("file")).unwrap(), b"kept");
        assert!(matches!(volumes.create("../db", &labels), Err(VolumeError::Name(_))));
        // Whose metadata are damaged is there all the same.
        fs::write(parent.path().join("volumes/db/volume"), "{").unwrap();
        assert_eq!(volumes.list().unwrap().len(), 1);
        assert_eq!((volumes.size("db", || true), volumes.size("db", || false)), (4, 0));
        volumes.begin_removal("db").unwrap().done().await.unwrap();
        assert!(matches!(volumes.begin_removal("db"), Err(VolumeError::NotFound)));
        assert_eq!(fs::read_dir(parent.path().join("volumes")).unwrap().count(), 0);
        assert_eq!(changes.try_recv(), Ok(VolumeChange::Made("db".to_owned())));
        assert_eq!(changes.try_recv(), Ok(VolumeChange::Removed("db".to_owned())));
        assert!(changes.try_recv().is_err(), "one that was there is not made again");
    }

    #[test]
    fn what_a_task_may_have_is_not_removed() {
        let parent = tempfile::tempdir().unwrap();
        let tasks = parent.path().join("tasks");
        let volumes = Volumes::new(&tasks, Arc::new(KnownTasks::new(tasks.clone())));
        volumes.create("db", &BTreeMap::new()).unwrap();
        fs::create_dir_all(tasks.join("damaged")).unwrap();
        fs::write(tasks.join("damaged/job"), "{").unwrap();
        let keeper = Dir::new(tasks.join("damaged")).lock().unwrap();
        let Err(error) = volumes.begin_removal("db") else {
            panic!("it is removed")
        };
        assert_eq!(error.to_string(), "volume is in use - [damaged]");
        drop(keeper);
        assert!(volumes.begin_removal("db").is_ok());
    }

    #[tokio::test]
    async fn what_a_task_has_is_not_removed() {
        let parent = tempfile::tempdir().unwrap();
        let tasks = parent.path().join("tasks");
        let volumes = Volumes::new(&tasks, Arc::new(KnownTasks::new(tasks.clone())));
        volumes.create("db", &BTreeMap::new()).unwrap();
        let volume = serde_json::json!({ "Volume": { "name": "db", "source": "/x" } });
        let job = serde_json::json!({
            "words": [], "env": {}, "dir": "/", "port": 1, "log_bytes_max": 1, "log_files": 1,
            "mounts": { "list": [{ "target": "/db", "what": volume }], "kept_out": [] },
        });
        fs::create_dir_all(tasks.join("one")).unwrap();
        fs::write(tasks.join("one/job"), job.to_string()).unwrap();
        let Err(error) = volumes.begin_removal("db") else {
            panic!("it is removed")
        };
        assert_eq!(error.to_string(), "volume is in use - [one]");
        // Of another nobody can say what it has.
        fs::create_dir_all(tasks.join("two/job")).unwrap();
        fs::write(tasks.join("one/job"), "{}").unwrap();
        assert!(matches!(volumes.begin_removal("db"), Err(VolumeError::Io(_))));
        fs::remove_dir_all(tasks.join("two")).unwrap();
        fs::write(tasks.join("one/job"), job.to_string()).unwrap();
        assert_eq!(volumes.get("db").unwrap().tasks, ["one"]);
        fs::remove_dir_all(tasks.join("one")).unwrap();
        volumes.begin_removal("db").unwrap().done().await.unwrap();
    }
}

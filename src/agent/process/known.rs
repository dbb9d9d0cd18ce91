//! What the tasks' directories say of whom was given which address, user and volumes, read once for each task: a thousand tasks that
//! start together do not read a thousand files each. Not here: how it is written (`job`).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::job::Dir;
use super::mounts::Mount;
use crate::model::volume::TaskMount;

/// All tasks' directories.
#[derive(Debug)]
pub(super) struct KnownTasks {
    dir: PathBuf,
    /// By the names of their directories; what could not be read is not in it. std mutex: held while new ones are read.
    read: Mutex<BTreeMap<OsString, Arc<Known>>>,
}

/// What one task was given.
#[derive(Debug)]
pub(super) struct Known {
    /// In a network of its own.
    pub(super) address: Option<Ipv4Addr>,
    pub(super) uid: Option<u32>,
    pub(super) service: Option<String>,
    pub(super) task: String,
    /// The names of those that it has mounted.
    pub(super) volumes: Vec<String>,
}

impl KnownTasks {
    pub(super) fn new(dir: PathBuf) -> KnownTasks {
        KnownTasks {
            dir,
            read: Mutex::default(),
        }
    }

    /// Those that are there now.
    pub(super) fn all(&self) -> Vec<Arc<Known>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *read);
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for name in entries.map(|entry| entry.file_name()) {
            if let Some(known) = before.remove(&name).or_else(|| self.read_one(&name)) {
                read.insert(name, known);
            }
        }
        read.values().cloned().collect()
    }

    /// The tasks that have that volume, and those of which nobody knows, which run while their file is damaged or gone. Errors: not
    /// all could be looked at, so that there may be others.
    pub(super) fn holders_of(&self, volume: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut holders = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            // What is about to be removed has a name that no task has.
            let task = name.to_string_lossy();
            if task.starts_with('.') {
                continue;
            }
            let dir = Dir::new(self.dir.join(&name));
            let has_it = match dir.read_job() {
                Ok(job) => job.mounts.unwrap_or_default().volumes().any(|name| name == volume),
                Err(error) => match error.kind() {
                    io::ErrorKind::NotADirectory => false,
                    // It is not there, or nobody can make sense of it.
                    io::ErrorKind::NotFound | io::ErrorKind::Other => match dir.lock() {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                        lock => lock?.is_none(),
                    },
                    _ => return Err(error),
                },
            };
            if has_it {
                holders.push(task.into_owned());
            }
        }
        Ok(holders)
    }

    /// What a task has mounted; nothing of one that is not there.
    pub(super) fn mounts_of(&self, task: &str) -> Vec<TaskMount> {
        let job = Dir::new(self.dir.join(task)).read_job().ok();
        let mounts = job.and_then(|job| job.mounts).unwrap_or_default();
        mounts.list.into_iter().map(Mount::shown).collect()
    }

    /// To be called when a task's file was written anew.
    pub(super) fn forget(&self, task: &str) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.remove(OsStr::new(task));
    }

    fn read_one(&self, name: &OsStr) -> Option<Arc<Known>> {
        let job = Dir::new(self.dir.join(name)).read_job().ok()?;
        let mounts = job.mounts.unwrap_or_default();
        Some(Arc::new(Known {
            task: name.to_string_lossy().into_owned(),
            volumes: mounts.volumes().map(str::to_owned).collect(),
            address: job.network.map(|network| network.address),
            uid: job.user.map(|user| user.uid),
            service: job.service,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(tasks: &KnownTasks, name: &str, uid: u32) {
        let job = serde_json::json!({
            "words": [], "env": {}, "dir": "/", "port": 1, "log_bytes_max": 1, "log_files": 1,
            "user": { "uid": uid, "gid": uid, "groups": [] },
        });
        fs::create_dir_all(tasks.dir.join(name)).unwrap();
        fs::write(tasks.dir.join(name).join("job"), job.to_string()).unwrap();
    }

    fn uids(tasks: &KnownTasks) -> Vec<Option<u32>> {
        tasks.all().iter().map(|known| known.uid).collect()
    }

    #[test]
    fn each_is_read_once_until_it_is_written_anew_or_gone() {
        let parent = tempfile::tempdir().unwrap();
        let tasks = KnownTasks::new(parent.path().join("tasks"));
        assert!(tasks.all().is_empty());
        write(&tasks, "a", 1);
        write(&tasks, "b", 2);
        // One that is not written yet is read when it is.
        fs::create_dir(tasks.dir.join("c")).unwrap();
        assert_eq!(uids(&tasks), [Some(1), Some(2)]);
        write(&tasks, "c", 3);
        write(&tasks, "a", 4);
        assert_eq!(uids(&tasks), [Some(1), Some(2), Some(3)]);
        tasks.forget("a");
        assert_eq!(uids(&tasks), [Some(4), Some(2), Some(3)]);
        fs::remove_dir_all(tasks.dir.join("b")).unwrap();
        assert_eq!(uids(&tasks), [Some(4), Some(3)]);
        write(&tasks, "b", 5);
        assert_eq!(uids(&tasks), [Some(4), Some(5), Some(3)]);
    }
}

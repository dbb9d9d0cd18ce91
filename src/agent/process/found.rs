//! Which processes are a task's: what its directory says of them, whether that can be so, and, where it is damaged or gone,
//! found by looking at all processes. Not here: what is done to them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::sys::process::signal_if;

/// A process, told from others that have its number later by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// In clock ticks since boot.
    started: u64,
}

impl Process {
    /// `None` if there is none of that number.
    pub(super) fn of(pid: i32) -> Option<Process> {
        Some(Process {
            pid,
            started: started(pid)?,
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// In the order in which processes started.
    pub(super) fn age(&self) -> u64 {
        self.started
    }

    /// To this process, and to none that has its number after it.
    pub(super) fn signal(&self, signal: Signal) {
        signal_if(self.pid, signal, || self.is_alive());
    }
}

/// What runs of a task.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Running {
    #[serde(flatten)]
    pub(super) program: Process,
    /// `None`: of an earlier version, which gave tasks no network of their own.
    #[serde(default)]
    pub(super) keeper: Option<Process>,
}

fn started(pid: i32) -> Option<u64> {
    // A number that is not one of a process is nobody's: 1 and below are never a task's.
    let stat = fs::read(format!("/proc/{}/stat", Some(pid).filter(|pid| *pid > 1)?)).ok()?;
    // The program's name may hold anything; it ends with the last parenthesis.
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

/// What runs of the task in `dir`; `None` if that is not a keeper and a program.
pub(super) fn running(dir: &Path) -> Option<Running> {
    let keeper = all().find(|pid| is_keeper(*pid, dir) && holds_lock(*pid, dir))?;
    // Of what it has as children the program is the first: what lost its parent came later.
    let mut children: Vec<Process> = all()
        .filter(|pid| parent(*pid) == Some(keeper) && is_session_leader(*pid))
        .filter_map(Process::of)
        .collect();
    children.sort_by_key(Process::age);
    Some(Running {
        program: *children.first()?,
        keeper: Process::of(keeper),
    })
}

/// Whether both are what they are said to be; what has ended meanwhile is.
pub(super) fn fits(running: &Running, dir: &Path) -> bool {
    let Some(keeper) = running.keeper else {
        // Of an earlier version, which wrote no more.
        return !running.program.is_alive() || parent(running.program.pid).is_some_and(|pid| is_keeper(pid, dir));
    };
    keeper.is_alive()
        && is_keeper(keeper.pid, dir)
        && (!running.program.is_alive() || parent(running.program.pid) == Some(keeper.pid))
}

/// Whether it was started to keep the task in `dir`.
pub(super) fn is_keeper(pid: i32, dir: &Path) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = words.split(|byte| *byte == 0).skip(1);
    let (Some(b"keep"), Some(of)) = (words.next(), words.next()) else {
        return false;
    };
    let of = Path::new(std::ffi::OsStr::from_bytes(of));
    // It may be the same by another name.
    of == dir || (of.file_name() == dir.file_name() && is_same(of, dir))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

fn holds_lock(pid: i32, dir: &Path) -> bool {
    let lock = dir.join("lock");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.into_iter().any(|file| is_same(&file.path(), &lock))
}

/// Every process that is to be seen.
pub(super) fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

pub(super) fn parent(pid: i32) -> Option<i32> {
    stat(pid, 1)
}

fn is_session_leader(pid: i32) -> bool {
    stat(pid, 3) == Some(pid)
}

fn stat(pid: i32, field: usize) -> Option<i32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit(')').next()?.split_whitespace().nth(field)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_of_its_number() {
        let own = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        let earlier = Process {
            started: own.started - 1,
            ..own
        };
        assert!(!earlier.is_alive());
        // Would end the test.
        earlier.signal(Signal::KILL);
        assert_eq!(Process::of(1), None);
        assert_eq!(Process::of(-1), None);
    }
}

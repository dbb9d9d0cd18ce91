//! A task's directory: what its keeper is to do, and what it says of it. All of it survives this program.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// What a keeper is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// The first is the program.
    pub(super) words: Vec<String>,
    /// All of the program's environment.
    pub(super) env: BTreeMap<String, String>,
    pub(super) dir: PathBuf,
    /// Where the program is to listen.
    pub(super) port: u16,
    /// A log file is put aside once it is so long, and so many are kept.
    pub(super) log_bytes_max: u64,
    pub(super) log_files: u32,
}

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

    pub(super) fn to_rustix(self) -> Pid {
        Pid::from_raw(self.pid).unwrap_or(Pid::INIT)
    }
}

fn started(pid: i32) -> Option<u64> {
    // A number that is not one of a process is nobody's: 1 and below are never a task's.
    let stat = fs::read_to_string(format!("/proc/{}/stat", Some(pid).filter(|pid| *pid > 1)?)).ok()?;
    // The program's name may hold anything; it ends with the last parenthesis.
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}

/// The directory of one task.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    path: PathBuf,
}

impl Dir {
    pub(super) fn new(path: PathBuf) -> Dir {
        Dir { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The task's id.
    pub(super) fn task(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Where the task's files lie as if below `/`: its configs and secrets, and where it works.
    pub(super) fn root(&self) -> PathBuf {
        self.path.join("root")
    }

    /// The pipe whose other end a keeper holds as long as it lives.
    pub(super) fn alive(&self) -> PathBuf {
        self.path.join("alive")
    }

    pub(super) fn log(&self, n: u32) -> PathBuf {
        match n {
            0 => self.path.join("log"),
            n => self.path.join(format!("log.{n}")),
        }
    }

    /// Anew, if it is there.
    pub(super) fn make(&self) -> io::Result<()> {
        self.remove()?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.path)?;
        // Tasks may run as other users.
        builder.mode(0o755).create(self.root())?;
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            self.alive(),
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )?;
        Ok(())
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    pub(super) fn write_job(&self, job: &Job) -> io::Result<()> {
        self.write("job", &serde_json::to_vec(job).map_err(io::Error::other)?)
    }

    pub(super) fn read_job(&self) -> io::Result<Job> {
        serde_json::from_slice(&fs::read(self.path.join("job"))?).map_err(io::Error::other)
    }

    pub(super) fn write_pid(&self, process: Process) -> io::Result<()> {
        self.write("pid", &serde_json::to_vec(&process).map_err(io::Error::other)?)
    }

    /// The task's program; `None` before it started.
    pub(super) fn pid(&self) -> Option<Process> {
        serde_json::from_slice(&fs::read(self.path.join("pid")).ok()?).ok()
    }

    pub(super) fn write_exit_code(&self, code: i64) -> io::Result<()> {
        self.write("exit", code.to_string().as_bytes())
    }

    pub(super) fn exit_code(&self) -> Option<i64> {
        fs::read_to_string(self.path.join("exit")).ok()?.trim().parse().ok()
    }

    /// Held by the keeper as long as it lives.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    pub(super) fn has_keeper(&self) -> bool {
        matches!(self.lock(), Ok(None))
    }

    /// Whole, and on disk when this returns.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.path.join(format!("{name}.new"));
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }
}

/// The signal of a name such as `SIGTERM`, `TERM` or `15`.
pub(super) fn signal(name: &str) -> Option<Signal> {
    let name = name.to_ascii_uppercase();
    Some(match name.strip_prefix("SIG").unwrap_or(&name) {
        "TERM" | "15" => Signal::TERM,
        "KILL" | "9" => Signal::KILL,
        "INT" | "2" => Signal::INT,
        "QUIT" | "3" => Signal::QUIT,
        "HUP" | "1" => Signal::HUP,
        "USR1" | "10" => Signal::USR1,
        "USR2" | "12" => Signal::USR2,
        "WINCH" | "28" => Signal::WINCH,
        "ABRT" | "6" => Signal::ABORT,
        "ALRM" | "14" => Signal::ALARM,
        _ => return None,
    })
}

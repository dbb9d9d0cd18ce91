//! A task's directory: what its keeper is to do, and what it says of it. All of it survives this program.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::found::{self, Process, Running};
use super::mounts::Mounts;
use crate::sys::cgroup::Group;
use crate::sys::private::{enter, work_in};
use crate::sys::process::{become_user, by_descriptor, gain_nothing, keep_at_most, pass_nothing_on, signal_if};

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
    /// A network of its own; without one, this host's.
    #[serde(default)]
    pub(super) network: Option<OwnNetwork>,
    /// A log file is put aside once it is so long, and so many are kept.
    pub(super) log_bytes_max: u64,
    pub(super) log_files: u32,
    /// Of this program, if nothing else is said.
    #[serde(default)]
    pub(super) user: Option<User>,
    #[serde(default)]
    pub(super) gains_nothing: bool,
    /// The control group that it is in, if it is in one of its own: a directory in each tree.
    #[serde(default)]
    pub(super) group: Vec<PathBuf>,
    /// Whose task it is. `None`: of an earlier version.
    #[serde(default)]
    pub(super) service: Option<String>,
    /// Directories and files of this host that it does not see, nor other users' processes. `None`: it sees all there is.
    #[serde(default)]
    pub(super) hidden: Option<Vec<PathBuf>>,
    /// It has `CAPABILITIES` at most.
    #[serde(default)]
    pub(super) is_bounded: bool,
    /// What it has mounted; `None`: nothing.
    #[serde(default)]
    pub(super) mounts: Option<Mounts>,
}

/// The network of a task that has one of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnNetwork {
    /// The first of `addresses`; where there is none, what tasks know one another by.
    pub(super) address: Ipv4Addr,
    /// On each of its networks, with the network's prefix.
    #[serde(default)]
    pub(super) addresses: Vec<IpNet>,
    /// Of `addresses`, the first on a network that has a way out; `None`: `address`.
    #[serde(default)]
    pub(super) way_out: Option<Ipv4Addr>,
    /// It reaches its networks alone.
    #[serde(default)]
    pub(super) is_internal: bool,
    /// What the program finds in /etc/hosts; empty: this host's.
    #[serde(default)]
    pub(super) hosts: String,
    /// The ids of the networks that it is on.
    pub(super) networks: Vec<String>,
    /// Who is asked for names that are not the swarm's; empty: whom anynode asks.
    pub(super) nameservers: Vec<IpAddr>,
    /// What the program finds in /etc/resolv.conf.
    pub(super) resolv_conf: String,
}

/// Whom a task runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Besides `gid`.
    pub(super) groups: Vec<u32>,
}

impl Job {
    /// A command that runs as the task's program does; without words, none. `beside`: a process whose view of the network and
    /// of files it is to have; without one, this program's. Errors: that process has ended.
    pub(super) fn command(&self, words: &[String], beside: Option<Process>) -> io::Result<Option<Command>> {
        let Some((program, args)) = words.split_first() else {
            return Ok(None);
        };
        let mut command = match beside.is_some() && self.has_mounted(Path::new(program)) {
            // What lies there for this program is another.
            true => Command::new(program),
            false => self.start_of(program)?,
        };
        if let Some(process) = beside {
            enter(&mut command, process.pid)?;
            // What was opened is its own, and not of another that has its number by now.
            if !process.is_alive() {
                return Err(io::Error::other("the process to run beside has ended"));
            }
        }
        command.args(args).env_clear().envs(&self.env).stdin(Stdio::null());
        self.group().hold(&mut command)?;
        if self.is_bounded {
            keep_at_most(&mut command, CAPABILITIES);
        }
        // Its own directory may be closed to another user, and nobody can put a link in its place.
        let is_own = self.env.get(TASK_DIR).is_some_and(|own| Path::new(own) == self.dir);
        if is_own {
            work_in(&mut command, &self.dir)?;
        }
        if let Some(user) = &self.user {
            become_user(&mut command, user.uid, user.gid, &user.groups);
        }
        if !is_own {
            work_in(&mut command, &self.dir)?;
        }
        if self.gains_nothing {
            gain_nothing(&mut command);
        }
        pass_nothing_on(&mut command);
        Ok(Some(command))
    }

    /// A program that the configuration names is run, also where the way to it is closed to the task's user.
    fn start_of(&self, program: &str) -> io::Result<Command> {
        let named = Path::new(program);
        let is_closed = |path: &Path| {
            let user = self.user.as_ref().filter(|_| self.is_bounded);
            user.is_some_and(|user| user.closed_on_the_way(path).is_some())
        };
        match named.is_absolute() && is_closed(named) {
            true => by_descriptor(named),
            false => Ok(Command::new(program)),
        }
    }

    fn has_mounted(&self, path: &Path) -> bool {
        let mounts = self.mounts.iter().flat_map(|mounts| &mounts.list);
        mounts.into_iter().any(|mount| path.starts_with(&mount.target))
    }

    /// Its program sees other mounts than this one.
    pub(super) fn has_own_view(&self) -> bool {
        self.network.is_some() || self.hidden.is_some()
    }

    pub(super) fn group(&self) -> Group {
        Group {
            dirs: self.group.clone(),
        }
    }
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

    /// What is shown as /etc/resolv.conf to a task that has a network of its own.
    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.path.join("resolv.conf")
    }

    /// What is shown to it as /etc/hosts.
    pub(super) fn hosts(&self) -> PathBuf {
        self.path.join("hosts")
    }

    /// Where its volumes are that have no names.
    pub(super) fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
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

    /// What is to be the first of the logs, for a moment.
    pub(super) fn log_aside(&self) -> PathBuf {
        self.path.join("log-new")
    }

    /// Another name of a log that is given a higher number, for a moment.
    pub(super) fn log_moved(&self) -> PathBuf {
        self.path.join("log-moved")
    }

    /// There must be none. What is below `root` is the user's, if one is named; the rest is nobody else's than ours.
    pub(super) fn make(&self, user: Option<&User>) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        // Tasks that run as other users must come through.
        builder.recursive(true).mode(0o711).create(&self.path)?;
        for dir in self.path.parent().into_iter().chain([&*self.path]) {
            // An umask may have taken that away.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        }
        builder.mode(0o700).create(self.root())?;
        if let Some(user) = user {
            chown(self.root(), Some(user.uid), Some(user.gid))?;
        }
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            self.alive(),
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )?;
        Ok(())
    }

    pub(super) fn write_job(&self, job: &Job) -> io::Result<()> {
        self.write("job", &serde_json::to_vec(job).map_err(io::Error::other)?)
    }

    pub(super) fn read_job(&self) -> io::Result<Job> {
        serde_json::from_slice(&fs::read(self.path.join("job"))?).map_err(io::Error::other)
    }

    pub(super) fn write_running(&self, running: Running) -> io::Result<()> {
        self.write("pid", &serde_json::to_vec(&running).map_err(io::Error::other)?)
    }

    fn written_running(&self) -> Option<Running> {
        serde_json::from_slice(&fs::read(self.path.join("pid")).ok()?).ok()
    }

    /// What runs of it: as its keeper wrote it if that can be so, or as it is found, which is written then. `None`: nothing,
    /// or it has just begun.
    pub(super) fn running(&self) -> Option<Running> {
        let written = self.written_running();
        if let Some(written) = written.filter(|written| found::fits(written, &self.path)) {
            return Some(written);
        }
        if !self.has_keeper() {
            return None;
        }
        let found = found::running(&self.path)?;
        tracing::error!(
            task = self.task(),
            pid = found.program.pid,
            "its file \"pid\" is damaged or gone: it was found by its keeper, and the file is written anew"
        );
        if let Err(error) = self.write_running(found) {
            tracing::warn!(task = self.task(), %error, "its file \"pid\" is not written");
        }
        Some(found)
    }

    /// Whether its program ever ran.
    pub(super) fn has_started(&self) -> bool {
        self.path.join("pid").exists()
    }

    pub(super) fn write_exit_code(&self, code: i64) -> io::Result<()> {
        self.write("exit", code.to_string().as_bytes())
    }

    /// To be said before the exit code is.
    pub(super) fn write_out_of_memory(&self) -> io::Result<()> {
        self.write("oom", b"")
    }

    pub(super) fn is_out_of_memory(&self) -> bool {
        self.path.join("oom").exists()
    }

    pub(super) fn exit_code(&self) -> Option<i64> {
        fs::read_to_string(self.path.join("exit")).ok()?.trim().parse().ok()
    }

    /// Held by a keeper as long as it lives, and for it by whoever starts it. `None`: it is held.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.path.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock over that whoever started this process gave to it as its standard input.
    pub(super) fn adopt_lock(&self) -> io::Result<File> {
        let given = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
        let given = File::from(given);
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let expected = identity(fs::metadata(self.path.join("lock"))?);
        if identity(given.metadata()?) != expected {
            return Err(io::Error::other(
                "expected its lock as the standard input: anynode starts this itself",
            ));
        }
        match given.try_lock() {
            Ok(()) => Ok(given),
            Err(_) => Err(io::Error::other("it has a keeper already")),
        }
    }

    pub(super) fn has_keeper(&self) -> bool {
        matches!(self.lock(), Ok(None))
    }

    /// A keeper that has just been started says soon what it keeps, or ends.
    pub(super) async fn settled(&self) {
        let began = Instant::now();
        while !self.has_started() && self.exit_code().is_none() && self.has_keeper() && began.elapsed() < SETTLES_WITHIN
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Ends what a keeper that was killed, or is not known, could not end: the keeper, and all that has the task's directory
    /// in its environment.
    pub(super) async fn end_leftovers(&self) {
        let mark = format!("{TASK_DIR}={}", self.root().display());
        let is_of_task = |pid: i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()) || found::is_keeper(pid, &self.path)
        };
        // What is killed may have started others meanwhile.
        for _ in 0..LEFTOVERS_ROUNDS {
            let own = i32::try_from(std::process::id()).ok();
            let others = found::all().filter(|pid| Some(*pid) != own);
            let killed = others.filter(|pid| signal_if(*pid, Signal::KILL, || is_of_task(*pid)));
            if killed.count() == 0 {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        tracing::error!(task = self.task(), "there are always more processes of it");
    }

    /// Whole, and on disk when this returns.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.path.join(format!("{name}.new"));
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }
}

/// The signal of a name such as `SIGTERM`, `TERM` or `15`.
pub(super) fn signal(name: &str) -> Option<Signal> {
    if let Ok(number) = name.parse() {
        return Signal::from_named_raw(number);
    }
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, signal)| *signal)
}

const SIGNALS: &[(&str, Signal)] = &[
    ("ABRT", Signal::ABORT),
    ("ALRM", Signal::ALARM),
    ("CONT", Signal::CONT),
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("IO", Signal::IO),
    ("KILL", Signal::KILL),
    ("PIPE", Signal::PIPE),
    ("PROF", Signal::PROF),
    ("PWR", Signal::POWER),
    ("QUIT", Signal::QUIT),
    ("STOP", Signal::STOP),
    ("TERM", Signal::TERM),
    ("TRAP", Signal::TRAP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("VTALRM", Signal::VTALARM),
    ("WINCH", Signal::WINCH),
];

/// What tasks may do at most that are root's, or become so: Docker's set without CAP_MKNOD, since no control group keeps
/// devices from them here.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Where a task finds what its own `/` would be.
pub(super) const TASK_DIR: &str = "ANYNODE_TASK_DIR";
/// A keeper says what it keeps once its task's network is ready.
const SETTLES_WITHIN: Duration = Duration::from_secs(25);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const LEFTOVERS_ROUNDS: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (name, expected) in [
            ("SIGTERM", Some(Signal::TERM)),
            ("term", Some(Signal::TERM)),
            ("15", Some(Signal::TERM)),
            ("SIGQUIT", Some(Signal::QUIT)),
            ("3", Some(Signal::QUIT)),
            ("SIGNOTHING", None),
            ("0", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(signal(name), expected, "{name}");
        }
    }

    #[test]
    fn a_lock_lives_with_whoever_it_was_given_to() {
        let parent = tempfile::tempdir().unwrap();
        let dir = Dir::new(parent.path().join("task"));
        dir.make(None).unwrap();
        assert!(!dir.has_keeper());
        let lock = dir.lock().unwrap().unwrap();
        let mut holder = Command::new("true").stdin(lock).spawn().unwrap();
        holder.wait().unwrap();
        assert!(!dir.has_keeper());
        let lock = dir.lock().unwrap().unwrap();
        let mut holder = Command::new("sleep").arg("60").stdin(lock).spawn().unwrap();
        assert!(dir.has_keeper());
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(!dir.has_keeper());
    }
}

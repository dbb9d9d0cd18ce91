//! A task's keeper: `anynode keep DIR`. It starts the program that the directory's job names, writes what it prints, waits
//! for it, takes along what it left running, and writes its exit code. Before that it gives a task that is to have one a
//! network of its own, and waits until that is made ready. It knows nothing of the rest of anynode, whose end
//! does not concern it; and its own end, however it comes, ends the program. It is never asked to end: signals that ask for
//! it, as a supervisor sends them to whatever it finds, are for the program to answer.

use std::convert::Infallible;
use std::fs::File;
use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use rustix::process::{Signal, WaitOptions};

use super::found::{Process, Running};
use super::job::{Dir, OwnNetwork, User};
use super::log_files::LogFiles;
use crate::sys::cgroup::Group;
use crate::sys::private::{leave_mounts, leave_network, show_instead};
use crate::sys::process::{Step, adopt_orphans, die_with_parent, do_not_listen, lead_session, step_of};
use crate::sys::view::narrow;

/// Keeps the task in `path` until it has ended. Says `ready` on the standard output, which is a socket, where the task has a
/// network of its own, and goes on when `go` comes from there; then `pid N` or `error WHY`, and closes it. Returns the exit
/// code.
pub fn run(path: PathBuf) -> i32 {
    // From here on it is where this process is, whatever is hidden later.
    let dir = Dir::new(PathBuf::from("."));
    let started = rustix::process::chdir(&path).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    });
    match started.and_then(|()| start(&dir, &Dir::new(path).root())) {
        Ok(kept) => {
            say(&format!("pid {}", kept.child.id()));
            kept.wait(&dir);
            0
        }
        Err(error) => {
            say(&format!("error {error}"));
            1
        }
    }
}

/// The line that is waited for; the standard output is then nobody's.
fn say(line: &str) {
    // Whoever waited may be gone, and the task is kept all the same.
    let _ = writeln!(io::stdout(), "{line}");
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

struct Kept {
    child: Child,
    output: [PipeReader; 2],
    log: Arc<Mutex<LogFiles>>,
    group: Group,
    _pins: Vec<OwnedFd>,
    /// Open as long as this process lives.
    _lock: File,
    _alive: File,
}

/// `root`: the directory of the task's own, by the path that it knows.
fn start(dir: &Dir, root: &Path) -> io::Result<Kept> {
    do_not_listen()?;
    let lock = dir.adopt_lock()?;
    let mut job = dir.read_job()?;
    let (group, pins) = job.group().pinned()?;
    job.group.clone_from(&group.dirs);
    // For reading too: it is to be opened whether or not anybody reads.
    let alive = File::options().read(true).write(true).open(dir.alive())?;
    adopt_orphans()?;
    if job.has_own_view() {
        leave_mounts().map_err(failed("mounts of its own"))?;
    }
    if let Some(network) = &job.network {
        make_network(dir, network)?;
    }
    let mut hidden = job.hidden.clone();
    if let Some(mounts) = &job.mounts {
        // What is mounted over is seen no more, and what lies there by now is the task's.
        let left = mounts.make(root, hidden.as_deref().unwrap_or_default());
        hidden = Some(left.map_err(io::Error::other)?);
    }
    // What starts the program is opened before the way there is hidden.
    let mut command = job
        .command(&job.words, None)?
        .ok_or_else(|| io::Error::other("its command has no words"))?;
    if let Some(hidden) = &hidden {
        let is_root = job.user.as_ref().is_none_or(|user| user.uid == 0);
        narrow(hidden, root, is_root).map_err(failed("what it is to see"))?;
    }
    if job.network.is_some() {
        wait_for_go()?;
    }
    let log = Arc::new(Mutex::new(LogFiles::open(dir.clone(), &job)?));
    if !job.dir.is_dir() {
        let reason = format!("{}: expected a directory to work in", job.dir.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, reason));
    }
    let (stdout, stdout_of_program) = pipe(job.user.as_ref())?;
    let (stderr, stderr_of_program) = pipe(job.user.as_ref())?;
    command.stdout(stdout_of_program).stderr(stderr_of_program);
    lead_session(&mut command);
    die_with_parent(&mut command);
    let program = job.words.first().cloned().unwrap_or_default();
    let child = command.spawn().map_err(|error| {
        let user = job
            .user
            .as_ref()
            .map_or(String::new(), |user| format!(" (as user {})", user.uid));
        let (step, error) = step_of(error);
        let what = match step {
            Step::Directory => format!("chdir: {:?}", job.dir),
            Step::Program => format!("exec: {program:?}"),
        };
        io::Error::new(error.kind(), format!("{what}: {error}{user}"))
    })?;
    // With it, this process's ends of the pipes that the program writes to.
    drop(command);
    let process = |pid: u32| i32::try_from(pid).ok().and_then(Process::of);
    dir.write_running(Running {
        program: process(child.id()).ok_or_else(|| io::Error::other("it ended at once"))?,
        keeper: process(std::process::id()),
    })?;
    Ok(Kept {
        child,
        output: [stdout, stderr],
        log,
        group,
        _pins: pins,
        _lock: lock,
        _alive: alive,
    })
}

/// What is asked for names elsewhere, past /etc/resolv.conf, is not there.
const OTHER_RESOLVERS: [&str; 2] = ["/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve"];

fn failed(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// What the program writes to is its user's, so that it may be opened again as /dev/stdout.
fn pipe(user: Option<&User>) -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    if let Some(user) = user {
        fchown(&writer, Some(user.uid), Some(user.gid))?;
    }
    Ok((reader, writer))
}

fn make_network(dir: &Dir, network: &OwnNetwork) -> io::Result<()> {
    leave_network(network.address.into()).map_err(failed("a network of its own"))?;
    std::fs::write(dir.resolv_conf(), &network.resolv_conf)?;
    std::fs::set_permissions(dir.resolv_conf(), Permissions::from_mode(0o644))?;
    let resolv_conf = Path::new("/etc/resolv.conf");
    match show_instead(&dir.resolv_conf(), resolv_conf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = "/etc/resolv.conf: expected a file, since tasks have one of their own in its place";
            return Err(io::Error::new(error.kind(), reason));
        }
        shown => shown.map_err(failed("/etc/resolv.conf"))?,
    }
    if !network.hosts.is_empty() && Path::new("/etc/hosts").exists() {
        std::fs::write(dir.hosts(), &network.hosts)?;
        std::fs::set_permissions(dir.hosts(), Permissions::from_mode(0o644))?;
        show_instead(&dir.hosts(), Path::new("/etc/hosts")).map_err(failed("/etc/hosts"))?;
    }
    for other in OTHER_RESOLVERS.map(Path::new).into_iter().filter(|path| path.exists()) {
        show_instead(Path::new("/dev/null"), other).map_err(failed("other resolvers"))?;
    }
    Ok(())
}

/// Until who started this has made the network ready. Errors: it is gone, and nobody has begun.
fn wait_for_go() -> io::Result<()> {
    writeln!(io::stdout(), "ready")?;
    let mut answer = BufReader::new(File::from(rustix::io::fcntl_dupfd_cloexec(io::stdout().as_fd(), 3)?));
    let mut line = String::new();
    answer.read_line(&mut line)?;
    match line.trim_end() {
        "go" => Ok(()),
        _ => Err(io::Error::other("its network is not ready")),
    }
}

impl Kept {
    fn wait(self, dir: &Dir) {
        let [stdout, stderr] = self.output;
        let (done, both_done) = mpsc::channel();
        copy(stdout, 1, self.log.clone(), done.clone());
        copy(stderr, 2, self.log, done);
        let code = wait_for(&self.child);
        // What starts others faster than they are ended one by one would never be done with.
        self.group.end();
        end_orphans();
        // The pipes end with the last who held them. A program of the same user elsewhere may hold one by /proc for as long as it
        // likes, so that what the task's own has said is waited for, and no more.
        let _ = both_done.recv_timeout(SAID_WITHIN);
        if self.group.is_out_of_memory() {
            let _ = dir.write_out_of_memory();
        }
        self.group.remove();
        // If this cannot be written the task counts as killed.
        let _ = dir.write_exit_code(i64::from(code));
    }
}

/// The exit code of `child`. What it left and has ended meanwhile is waited for too, so that it leaves no zombies.
fn wait_for(child: &Child) -> i32 {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == rustix::process::Pid::from_child(child) => {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                return status.exit_status().or(signal).unwrap_or(255);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return 255,
        }
    }
}

/// Ends what the program started and left: it has become this process's child.
fn end_orphans() {
    loop {
        let own = std::process::id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in pids.filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::empty()) {
            // There may be thousands: not one for each look at all of them.
            Ok(_) => while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {},
            Err(rustix::io::Errno::INTR) => {}
            // There are none.
            Err(_) => break,
        }
    }
}

/// Takes lines as they come, on a thread of its own, which drops `done` at their end.
fn copy(pipe: impl Read + Send + 'static, stream: u8, log: Arc<Mutex<LogFiles>>, done: mpsc::Sender<Infallible>) {
    std::thread::spawn(move || {
        let _done = done;
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match pipe.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    // A full disk must not stop the program; what it says is lost.
                    let _ = log.lock().unwrap_or_else(PoisonError::into_inner).write(stream, &line);
                }
            }
        }
    });
}

/// A pipe holds 1 MiB at most.
const SAID_WITHIN: Duration = Duration::from_secs(5);
/// A longer line is cut.
const LINE_BYTES_MAX: u64 = 16 << 10;

//! What keeps a program that runs beside a task's: `anynode beside DIR`, DIR being the task's, for people to see. It starts the
//! program in the task's view, waits for it, and says its exit code. All that the program started is its own, and ends with the
//! task, or with the anynode that asked for it, however either ends; it is in a control group of its own inside the task's where
//! there can be one, so that none gets away, and whoever finds this process dead can end it too. Not here: what is run (`exec`).

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open};
use serde::{Deserialize, Serialize};

use super::found::{Process, parent};
use super::job::Job;
use crate::sys::cgroup::Group;
use crate::sys::handoff;
use crate::sys::process::{
    Step, adopt_orphans, die_with_parent, do_not_listen, lead_session, lead_session_at_terminal, signal_if, step_of,
};

/// What it is told, as a line, after the program's three standard descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// The task's, with what is to be otherwise.
    pub(super) job: Job,
    /// Whose view the program has, and whose end is its end.
    pub(super) keeper: Process,
    pub(super) has_terminal: bool,
}

/// Keeps one program; the standard input is a socket. Says `pid N` there, or what an `Unstarted` is, then `exit N`. Returns the
/// exit code of this process.
pub fn run() -> i32 {
    let socket = match take_socket() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("error: {error}: anynode starts this itself");
            return 1;
        }
    };
    match start(&socket) {
        Ok(kept) => {
            say(&socket, &format!("pid {}", kept.child.id()));
            kept.wait(&socket);
            0
        }
        Err(unstarted) => {
            say(&socket, &unstarted.to_string());
            1
        }
    }
}

/// Why there is no program: the step that failed, and the kernel's number of the error, or what it is in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unstarted {
    /// It is not come to the directory that it is to work in.
    Directory(i32),
    /// It is not there, or is not run.
    Program(i32),
    Other(String),
}

impl Unstarted {
    /// `None`: that is not what `said` is.
    pub(super) fn of(said: &str) -> Option<Unstarted> {
        match said.split_once(' ')? {
            ("directory", number) => number.parse().ok().map(Unstarted::Directory),
            ("program", number) => number.parse().ok().map(Unstarted::Program),
            ("other", why) => Some(Unstarted::Other(why.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Unstarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unstarted::Directory(number) => write!(f, "directory {number}"),
            Unstarted::Program(number) => write!(f, "program {number}"),
            Unstarted::Other(why) => write!(f, "other {}", why.replace('\n', " ")),
        }
    }
}

impl From<io::Error> for Unstarted {
    fn from(error: io::Error) -> Unstarted {
        Unstarted::Other(error.to_string())
    }
}

fn take_socket() -> io::Result<UnixStream> {
    let taken = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(taken))
}

/// Whoever listens may be gone; then this ends as well.
fn say(mut socket: &UnixStream, line: &str) {
    let _ = writeln!(socket, "{line}");
}

struct Kept {
    child: Child,
    /// Whose end is its end.
    task: Process,
    part: Option<Group>,
}

/// The part of a task's control group that is what the process `keeper` keeps beside it. `None`: it can have none.
pub(super) fn part_of(job: &Job, keeper: u32) -> Option<Group> {
    job.group().part(&format!("beside-{keeper}"))
}

fn start(socket: &UnixStream) -> Result<Kept, Unstarted> {
    do_not_listen()?;
    adopt_orphans()?;
    let (mut wanted, [stdin, stdout, stderr]) = hear(socket)?;
    let part = part_of(&wanted.job, std::process::id());
    if let Some(part) = &part {
        wanted.job.group = wanted.job.group().narrowed(part)?.dirs;
    }
    let beside = wanted.job.has_own_view().then_some(wanted.keeper);
    let command = wanted.job.command(&wanted.job.words, beside).map_err(of_start)?;
    let mut command = command.ok_or_else(|| io::Error::other("it has no words"))?;
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    match wanted.has_terminal {
        true => lead_session_at_terminal(&mut command),
        false => lead_session(&mut command),
    }
    die_with_parent(&mut command);
    // With the command go this process's ends of what the program reads and writes.
    let child = command.spawn().map_err(of_start)?;
    Ok(Kept {
        child,
        task: wanted.keeper,
        part,
    })
}

fn of_start(error: io::Error) -> Unstarted {
    let (step, error) = step_of(error);
    match (step, error.raw_os_error()) {
        (Step::Directory, Some(number)) => Unstarted::Directory(number),
        (Step::Program, Some(number)) => Unstarted::Program(number),
        (_, None) => error.into(),
    }
}

fn hear(mut socket: &UnixStream) -> io::Result<(Wanted, [OwnedFd; 3])> {
    poll(&mut [PollFd::new(&socket, PollFlags::IN)], None)?;
    let (_, given) = handoff::receive(socket, &mut [0; 1])?;
    let given = <[OwnedFd; 3]>::try_from(given);
    let given = given.map_err(|_| io::Error::other("expected three descriptors"))?;
    let mut line = Vec::new();
    let mut part = [0; 4 << 10];
    while line.last() != Some(&b'\n') {
        match socket.read(&mut part)? {
            0 => return Err(io::Error::other("whoever asked for it is gone")),
            n => line.extend_from_slice(&part[..n]),
        }
    }
    Ok((serde_json::from_slice(&line)?, given))
}

impl Kept {
    /// Until nothing is left of it.
    fn wait(&self, socket: &UnixStream) {
        std::thread::scope(|scope| {
            scope.spawn(|| self.end_with(socket));
            let program = Pid::from_child(&self.child);
            loop {
                match rustix::process::wait(WaitOptions::empty()) {
                    Ok(Some((pid, status))) if pid == program => {
                        let signal = status.terminating_signal().map(|signal| 128 + signal);
                        let code = status.exit_status().or(signal).unwrap_or(255);
                        say(socket, &format!("exit {code}"));
                    }
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    // There are none.
                    Err(_) => {
                        self.part.iter().for_each(Group::remove);
                        std::process::exit(0);
                    }
                }
            }
        });
    }

    /// Ends all when the task has ended, or whoever asked for the program is gone; by then for as long as anything is left.
    fn end_with(&self, socket: &UnixStream) {
        let held = Pid::from_raw(self.task.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(held) = held.filter(|_| self.task.is_alive()) {
            let gone = PollFlags::IN | PollFlags::RDHUP;
            let mut both = [PollFd::new(&socket, gone), PollFd::new(&held, PollFlags::IN)];
            while poll(&mut both, None) == Err(rustix::io::Errno::INTR) {}
        }
        let own = std::process::id();
        let is_child = |pid: i32| parent(pid).is_some_and(|parent| u32::try_from(parent) == Ok(own));
        loop {
            self.part.iter().for_each(Group::end);
            let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
            let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            for pid in pids {
                signal_if(pid, Signal::KILL, || is_child(pid));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_millis(5);

//! A program beside a task's, and the process that keeps it (`beside`), as who asked for them sees them. Nothing of this waits
//! for the task, which may hold up the start of a program for as long as it likes; and nothing is left of either, whoever ends them. Not here: what is run, and for whom (`exec`,
//! `health`).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;

use super::KILLED;
use super::beside::{Wanted, part_of};
use super::job::Dir;
use crate::sys::cgroup::Group;
use crate::sys::handoff;
use crate::sys::process::{lead_session, pass_nothing_on};

/// When this is dropped the program is ended, with all that it started.
pub(super) struct Kept {
    /// `None`: it is being waited for.
    keeper: Option<Child>,
    /// The keeper ends the program with this.
    socket: Option<(BufReader<OwnedReadHalf>, OwnedWriteHalf)>,
    has_begun: bool,
    /// What the program and all that it starts are in. `None`: they are in none of their own, or it was not told yet.
    part: Option<Group>,
}

impl Kept {
    /// Starts a keeper by `program`, which is this one, for the task in `dir`. `streams`: what its program reads and writes.
    pub(super) fn start(program: &Path, dir: &Dir, streams: [BorrowedFd<'_>; 3]) -> io::Result<Kept> {
        let (ours, its) = std::os::unix::net::UnixStream::pair()?;
        let mut command = Command::new(program);
        command
            .arg("beside")
            .arg(dir.path())
            .current_dir("/")
            .stdin(OwnedFd::from(its))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        lead_session(&mut command);
        pass_nothing_on(&mut command);
        handoff::send(&ours, b"\n", &streams)?;
        ours.set_nonblocking(true)?;
        let (said, socket) = UnixStream::from_std(ours)?.into_split();
        Ok(Kept {
            keeper: Some(tokio::process::Command::from(command).spawn()?),
            socket: Some((BufReader::new(said), socket)),
            has_begun: false,
            part: None,
        })
    }

    /// Has it start the program. Answers the keeper's first word; none if it has ended.
    pub(super) async fn tell(&mut self, wanted: &Wanted) -> io::Result<String> {
        let keeper = self.keeper.as_ref().and_then(Child::id);
        self.part = keeper.and_then(|keeper| part_of(&wanted.job, keeper));
        let mut line = serde_json::to_vec(wanted)?;
        line.push(b'\n');
        if let Some((_, socket)) = &mut self.socket {
            socket.write_all(&line).await?;
        }
        let word = self.line().await?;
        self.has_begun = true;
        Ok(word)
    }

    /// The program's exit code.
    pub(super) async fn code(&mut self) -> i64 {
        // An error means that the keeper was killed.
        let line = self.line().await.unwrap_or_default();
        let code = line.strip_prefix("exit ").and_then(|code| code.parse().ok());
        code.unwrap_or(KILLED)
    }

    /// Until nothing is left of the program, nor of what it started.
    pub(super) async fn all_ended(&mut self) {
        drop(self.line().await);
    }

    /// Ends what is left, and waits for that.
    pub(super) async fn end(mut self) {
        self.socket = None;
        if let Some(keeper) = self.keeper.take() {
            until_gone(keeper, self.part.take()).await;
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if let Some((said, _)) = &mut self.socket {
            said.read_line(&mut line).await?;
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(mut keeper) = self.keeper.take() else { return };
        // Whoever waits for the task does not see the end of the socket.
        if !self.has_begun {
            let _ = keeper.start_kill();
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(until_gone(keeper, self.part.take()));
        }
    }
}

/// A keeper that was killed took its program along, and left what that had started.
async fn until_gone(mut keeper: Child, part: Option<Group>) {
    drop(keeper.wait().await);
    let left = part.filter(|part| part.dirs.iter().any(|dir| dir.exists()));
    if let Some(left) = left {
        // An error says that it panicked.
        drop(tokio::task::spawn_blocking(move || left.remove()).await);
    }
}

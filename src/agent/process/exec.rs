//! Programs beside tasks that are processes, as `docker exec` has them: who may run what, what each is connected to, and how what
//! it says comes here. Each has a process of its own that keeps it (`kept`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::KEEPER_PATIENCE;
use super::beside::{Unstarted, Wanted};
use super::job::{Dir, Job, TASK_DIR, User};
use super::kept::Kept;
use super::streams::{Said, Streams};
use super::user;
use crate::model::exec::{ExecError, ExecSpec};
use crate::streams::{Exec, ExecControl};
use crate::sys::terminal;

/// Runs a program beside the task in `dir`, by `program`, which is this one. `may_be_any`: this program is root.
pub(super) async fn start(program: &Path, dir: Dir, spec: ExecSpec, may_be_any: bool) -> Result<Exec, ExecError> {
    let of = (dir.clone(), spec.clone());
    // Reads files, of the task's view too.
    let judged = tokio::task::spawn_blocking(move || wanted(&of.0, &of.1, may_be_any)).await;
    let wanted = judged.map_err(|error| ExecError::Refused(error.to_string()))??;
    let refused = |error: io::Error| ExecError::Refused(format!("{FAILED}{error}"));
    let streams = Streams::new(&spec, wanted.job.user.as_ref()).map_err(refused)?;
    let its = streams.its.each_ref().map(AsFd::as_fd);
    let mut kept = Kept::start(program, &dir, its).map_err(refused)?;
    // The ends of these are the program's alone.
    drop(streams.its);
    let told = tokio::time::timeout(KEEPER_PATIENCE, kept.tell(&wanted)).await;
    let told = told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let said = told.map_err(refused)?;
    let pid = match (said.split_once(' '), Unstarted::of(&said)) {
        (Some(("pid", pid)), _) => pid.parse().unwrap_or(0),
        _ if !wanted.keeper.is_alive() => return Err(ExecError::NotRunning),
        (_, Some(unstarted)) => return Err(failed(&wanted.job, &unstarted)),
        _ => return Err(refused(io::Error::other("what keeps it ended without a word"))),
    };
    let (code, ended) = watch::channel(None);
    let kill = CancellationToken::new();
    let control = Control {
        terminal: streams.terminal,
        kill: kill.clone(),
    };
    tokio::spawn(follow(kept, kill, code));
    Ok(Exec {
        pid,
        input: streams.input,
        output: Said::stream(streams.output, ended.clone()),
        ended,
        control: Arc::new(control),
    })
}

/// What is to be run, if it may.
fn wanted(dir: &Dir, spec: &ExecSpec, may_be_any: bool) -> Result<Wanted, ExecError> {
    let job = dir.read_job().map_err(|_| ExecError::NotRunning)?;
    let running = dir.running().filter(|running| running.program.is_alive());
    let running = running.ok_or(ExecError::NotRunning)?;
    let keeper = running.keeper.unwrap_or(running.program);
    let named = match spec.user.as_str() {
        "" => None,
        name => Some(user::of(name, &[]).map_err(ExecError::Refused)?),
    };
    let job = judged(job, spec, named, may_be_any)?;
    Ok(Wanted {
        job,
        keeper,
        has_terminal: spec.terminal.is_some(),
    })
}

/// The task's job with what is to be otherwise for a program beside it. `named`: whom it is to run as, if somebody is named.
fn judged(job: Job, spec: &ExecSpec, named: Option<Option<User>>, may_be_any: bool) -> Result<Job, ExecError> {
    let is_root = |user: &Option<User>| user.as_ref().is_none_or(|user| user.uid == 0);
    let is_hidden_from_root = job.hidden.is_some() && is_root(&job.user);
    let mut job = Job {
        user: named.unwrap_or_else(|| job.user.clone()),
        words: spec.words.clone(),
        is_bounded: job.is_bounded || may_be_any,
        ..job
    };
    if may_be_any && is_root(&job.user) && !is_hidden_from_root {
        return Err(ExecError::Refused(format!(
            "User {:?}: the task is not one of root's, and what it sees is not hidden from root: expected another user, or a service \
             with --user 0",
            spec.user
        )));
    }
    if spec.terminal.is_some() {
        job.env.entry("TERM".to_owned()).or_insert_with(|| "xterm".to_owned());
    }
    let mark = job.env.get(TASK_DIR).cloned();
    for variable in &spec.env {
        match variable.split_once('=') {
            Some((name, value)) => drop(job.env.insert(name.to_owned(), value.to_owned())),
            None => drop(job.env.remove(variable)),
        }
    }
    // It is found by that, whatever it was told.
    job.env.extend(mark.map(|mark| (TASK_DIR.to_owned(), mark)));
    if !spec.dir.is_empty() {
        job.dir = PathBuf::from(&spec.dir);
    }
    Ok(job)
}

/// Why it does not run, in an engine's words.
fn failed(job: &Job, unstarted: &Unstarted) -> ExecError {
    let word = job.words.first().map_or("", String::as_str);
    let (text, error) = match unstarted {
        Unstarted::Other(why) => return ExecError::Refused(format!("{FAILED}{why}: unknown")),
        Unstarted::Directory(number) => {
            let error = Errno::from_raw_os_error(*number);
            let dir = job.dir.display().to_string();
            let why = reason(error);
            (
                format!("chdir to cwd ({dir:?}) set in config.json failed: {why}"),
                error,
            )
        }
        Unstarted::Program(number) => match Errno::from_raw_os_error(*number) {
            // In a directory of $PATH that is closed, or no program there: engines look further, and find none.
            Errno::NOENT | Errno::NOTDIR | Errno::ACCESS if !word.contains('/') => (
                format!("exec: {word:?}: executable file not found in $PATH"),
                Errno::NOENT,
            ),
            error @ (Errno::NOENT | Errno::NOTDIR) => {
                (format!("exec: {word:?}: stat {word}: {}", reason(error)), error)
            }
            error => (format!("exec: {word:?}: {}", reason(error)), error),
        },
    };
    let text = format!("{FAILED}{text}: unknown");
    match error {
        Errno::NOENT | Errno::NOTDIR => ExecError::Missing(text),
        _ => ExecError::Refused(text),
    }
}

/// As Go has it.
fn reason(error: Errno) -> String {
    match error {
        Errno::LOOP => "too many levels of symbolic links".to_owned(),
        error => {
            let text = io::Error::from(error).to_string();
            // Rust says the number too.
            let text = text.split(" (os error").next().unwrap_or_default();
            text.to_lowercase()
        }
    }
}

/// Passes on how the program ends.
async fn follow(mut kept: Kept, kill: CancellationToken, code: watch::Sender<Option<i64>>) {
    let heard = async {
        code.send_replace(Some(kept.code().await));
        kept.all_ended().await;
    };
    tokio::select! {
        () = heard => {}
        () = kill.cancelled() => {}
    }
    code.send_if_modified(|code| code.is_none() && code.replace(super::KILLED).is_none());
    kept.end().await;
}

struct Control {
    terminal: Option<OwnedFd>,
    kill: CancellationToken,
}

impl ExecControl for Control {
    fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        match &self.terminal {
            Some(ours) => terminal::resize(ours, rows, columns),
            None => Err(io::Error::other(
                "it has no terminal: expected one that was made with a terminal (-t)",
            )),
        }
    }

    fn kill(&self) {
        self.kill.cancel();
    }
}

/// What an engine says before what is wrong, which its clients know.
const FAILED: &str = "OCI runtime exec failed: exec failed: unable to start container process: ";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(user: Option<u32>, is_hidden: bool) -> Job {
        let user = user.map(|uid| json!({ "uid": uid, "gid": uid, "groups": [uid] }));
        let job = json!({
            "words": ["task"], "env": { "A": "task", "B": "task", (TASK_DIR): "/task" }, "dir": "/task", "port": 1,
            "log_bytes_max": 1, "log_files": 1, "user": user, "hidden": is_hidden.then_some(["/data"]), "is_bounded": true,
        });
        serde_json::from_value(job).unwrap()
    }

    fn uid(uid: u32) -> Option<User> {
        let groups = Vec::new();
        Some(User { uid, gid: uid, groups })
    }

    #[test]
    fn it_is_the_tasks_but_for_what_is_said() {
        let words = vec!["ls".to_owned()];
        let plain = ExecSpec {
            words,
            ..ExecSpec::default()
        };
        let own = judged(job(Some(7), true), &plain, None, true).unwrap();
        let expected = Job {
            words: plain.words.clone(),
            ..job(Some(7), true)
        };
        assert_eq!(own, expected);
        let other = ExecSpec {
            env: ["A=new", "B", "C=x=y", "ANYNODE_TASK_DIR=/elsewhere"]
                .map(str::to_owned)
                .to_vec(),
            dir: "/tmp".to_owned(),
            terminal: Some((1, 1)),
            ..plain
        };
        let other = judged(job(Some(7), true), &other, Some(uid(8)), true).unwrap();
        let env: Vec<(&str, &str)> = other
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            env,
            [("A", "new"), (TASK_DIR, "/task"), ("C", "x=y"), ("TERM", "xterm")]
        );
        assert_eq!((other.user, other.dir), (uid(8), PathBuf::from("/tmp")));
    }

    #[test]
    fn root_is_where_the_task_is_roots_and_its_view_hides_what_roots_must() {
        let plain = ExecSpec::default();
        for (task, is_hidden, named, may_be_any, is_refused) in [
            (Some(7), true, None, true, false),
            (Some(7), true, Some(uid(8)), true, false),
            (Some(7), true, Some(uid(0)), true, true),
            (Some(0), true, None, true, false),
            (Some(0), true, Some(uid(0)), true, false),
            (Some(0), true, Some(uid(7)), true, false),
            (Some(0), false, None, true, true),
            (None, false, None, true, true),
            // Of a program that is not root, all is its own user's.
            (None, false, None, false, false),
        ] {
            let found = judged(job(task, is_hidden), &plain, named.clone(), may_be_any);
            assert_eq!(
                found.is_err(),
                is_refused,
                "{task:?} {is_hidden} {named:?} {may_be_any}"
            );
        }
        // What an earlier version started may do no more than what this one starts.
        let earlier = Job {
            is_bounded: false,
            ..job(Some(7), true)
        };
        assert!(judged(earlier, &plain, None, true).unwrap().is_bounded);
    }

    #[test]
    fn what_fails_is_said_in_an_engines_words() {
        let said = |word: &str, unstarted: Unstarted| {
            let job = Job {
                words: vec![word.to_owned()],
                ..job(None, false)
            };
            // As it comes from what keeps it.
            let unstarted = Unstarted::of(&unstarted.to_string()).unwrap();
            let error = failed(&job, &unstarted);
            (error.to_string().replace(FAILED, ""), error.code())
        };
        let (directory, program) = (
            |error: Errno| Unstarted::Directory(error.raw_os_error()),
            |error: Errno| Unstarted::Program(error.raw_os_error()),
        );
        let in_path = "exec: \"ls\": executable file not found in $PATH: unknown";
        for (word, unstarted, text, code) in [
            ("ls", program(Errno::NOENT), in_path, 127),
            ("ls", program(Errno::ACCESS), in_path, 127),
            (
                "./ls",
                program(Errno::NOENT),
                "exec: \"./ls\": stat ./ls: no such file or directory: unknown",
                127,
            ),
            (
                "/ls",
                program(Errno::ACCESS),
                "exec: \"/ls\": permission denied: unknown",
                126,
            ),
            (
                "ls",
                directory(Errno::NOENT),
                "chdir to cwd (\"/task\") set in config.json failed: no such file or directory: unknown",
                127,
            ),
            (
                "ls",
                directory(Errno::NOTDIR),
                "chdir to cwd (\"/task\") set in config.json failed: not a directory: unknown",
                127,
            ),
            (
                "ls",
                directory(Errno::ACCESS),
                "chdir to cwd (\"/task\") set in config.json failed: permission denied: unknown",
                126,
            ),
            ("ls", Unstarted::Other("no\nwords".to_owned()), "no words: unknown", 126),
        ] {
            assert_eq!(said(word, unstarted.clone()), (text.to_owned(), code), "{unstarted:?}");
        }
    }
}

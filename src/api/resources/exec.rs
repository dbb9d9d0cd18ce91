//! `docker exec` into tasks that are processes: programs beside them, made, started, resized and looked at. Not here: what becomes of
//! one that was started (`exec_run`), and containers of an engine, which is asked itself.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::watch;

use super::detach::DetachKeys;
use super::events::Events;
use super::exec_run::{Run, failed, see_through};
use super::exec_table::{Kept, Made, State};
use super::{local_events, processes};
use crate::api::backend::Backend;
use crate::api::wire::{self, Answer, ApiError, Asked, Caller, Version};
use crate::model::exec::ExecSpec;
use crate::model::swarm::Time;
use crate::places::{Places, Table};
use crate::sys::limits;

/// All programs beside tasks that this API was asked for.
pub(in crate::api) struct Execs {
    kept: Mutex<Kept>,
    /// For each that runs, or has left something running.
    places: Arc<Places<Caller>>,
}

impl Execs {
    pub(in crate::api) fn new() -> Execs {
        Execs {
            kept: Mutex::default(),
            places: Places::new(Table::ApiExecs, limits::share(RUNNING_MAX, 16)),
        }
    }

    /// std mutex: nothing awaits under it.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Arc<Made>, ApiError> {
        let found = self.kept().get(id);
        found.ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
    }
}

/// What is asked for, as Docker's clients write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Asks {
    user: String,
    privileged: bool,
    tty: bool,
    console_size: Option<[u16; 2]>,
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    detach_keys: String,
    env: Vec<String>,
    working_dir: String,
    cmd: Vec<String>,
}

impl Asks {
    /// Errors: what no process can have.
    fn judged(self) -> Result<ExecSpec, ApiError> {
        if self.cmd.is_empty() {
            return Err(ApiError::bad("No exec command specified"));
        }
        if self.privileged {
            return Err(ApiError::bad(
                "Privileged: tasks are processes of this host here, and a program beside one may do no more than they: expected no \
                 --privileged",
            ));
        }
        if !self.working_dir.is_empty() && !self.working_dir.starts_with('/') {
            let dir = &self.working_dir;
            return Err(ApiError::bad(format!("WorkingDir {dir:?}: expected an absolute path")));
        }
        let is_wrong = |variable: &&String| variable.is_empty() || variable.starts_with('=') || variable.contains('\0');
        if let Some(variable) = self.env.iter().find(is_wrong) {
            return Err(ApiError::bad(format!("Env {variable:?}: expected NAME=VALUE")));
        }
        if let Some(word) = self.cmd.iter().find(|word| word.contains('\0')) {
            return Err(ApiError::bad(format!(
                "Cmd {word:?}: expected words without zero bytes"
            )));
        }
        let n_bytes: usize = self.cmd.iter().chain(&self.env).map(String::len).sum();
        if n_bytes > WORDS_BYTES_MAX {
            return Err(ApiError::bad(format!(
                "Cmd and Env: {n_bytes} bytes: expected {WORDS_BYTES_MAX} at most"
            )));
        }
        let [rows, columns] = self.console_size.unwrap_or_default();
        Ok(ExecSpec {
            words: self.cmd,
            env: self.env,
            dir: self.working_dir,
            user: self.user,
            terminal: self.tty.then_some((rows, columns)),
            stdin: self.attach_stdin,
            stdout: self.attach_stdout,
            stderr: self.attach_stderr,
        })
    }
}

/// `POST /containers/ID/exec`.
pub(in crate::api) async fn create(
    backend: &Backend,
    execs: &Execs,
    events: &Events,
    asked: Asked,
    container: &str,
) -> Result<Answer, ApiError> {
    let caller = asked.caller;
    let mut asks: Asks = asked.json().await?;
    let detach_keys = DetachKeys::read(&std::mem::take(&mut asks.detach_keys))?;
    let spec = asks.judged()?;
    let (task, container) = processes::running(backend, container)?;
    let made = Made {
        id: format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..)),
        about: local_events::about(&task),
        task: task.id.clone(),
        container,
        caller,
        spec,
        detach_keys,
        state: watch::Sender::new(State::Made),
    };
    let (id, at) = (made.id.clone(), Time::now());
    let event = made.event("exec_create", [], at);
    execs.kept().insert(made)?;
    events.say(at, event);
    Ok(wire::json(StatusCode::CREATED, &json!({ "Id": id })))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct StartAsks {
    detach: bool,
    tty: bool,
    console_size: Option<[u16; 2]>,
}

/// `POST /exec/ID/start`: the answer becomes the program's streams, unless nobody is to hold them.
pub(in crate::api) async fn start(
    backend: &Arc<Backend>,
    execs: &Execs,
    events: &Arc<Events>,
    mut asked: Asked,
    id: &str,
    version: Version,
) -> Result<Answer, ApiError> {
    let upgrade = asked.upgrade.take();
    let caller = asked.caller;
    let asks: StartAsks = asked.json().await?;
    let made = execs.find(id)?;
    processes::running(backend, &made.container)?;
    let mut spec = made.spec.clone();
    if asks.detach {
        (spec.stdin, spec.stdout, spec.stderr) = (false, false, false);
    }
    if let (Some(_), Some([rows, columns])) = (spec.terminal, asks.console_size) {
        spec.terminal = Some((rows, columns));
    }
    if spec.stdin && upgrade.is_none() {
        return Err(ApiError::bad(
            "AttachStdin: expected a connection that is upgraded (Connection: Upgrade, Upgrade: tcp), to write to the program",
        ));
    }
    made.begin()?;
    let at = Time::now();
    events.say(at, made.event("exec_start", [], at));
    let events = events.clone();
    let place = execs.places.take(caller);
    let is_framed = !asks.tty;
    if asks.detach {
        let backend = backend.clone();
        // To its end, also where the client goes meanwhile.
        let starting = tokio::spawn(async move {
            let started = backend.outside.exec(&made.task, spec).await;
            let exec = started.map_err(|error| failed(&made, &error))?;
            made.runs(&exec);
            let nobody = None::<(DuplexStream, bool)>;
            tokio::spawn(async move { see_through(&events, made, place, exec, nobody, std::future::pending()).await });
            Ok(wire::empty(StatusCode::OK))
        });
        return starting.await.map_err(|error| ApiError::internal(error.to_string()))?;
    }
    let kind = HeaderValue::from_static(match is_framed && version >= Version(1, 42) {
        true => "application/vnd.docker.multiplexed-stream",
        false => "application/vnd.docker.raw-stream",
    });
    let run = Run {
        backend: backend.clone(),
        events,
        made,
        place,
        spec,
        is_framed,
    };
    match upgrade {
        Some(upgrade) => {
            let stream = backend.streams.take(caller);
            tokio::spawn(async move {
                // Where the client is gone by now, the program runs all the same.
                let client = upgrade.await.ok().map(|client| stream.watch(TokioIo::new(client)));
                run.run(client, stream.told_to_leave()).await;
            });
            let mut answer = wire::empty(StatusCode::SWITCHING_PROTOCOLS);
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("tcp"));
            Ok(answer)
        }
        None => {
            let (ours, its) = tokio::io::duplex(PART);
            tokio::spawn(run.run(Some(ours), std::future::pending()));
            let parts = stream::unfold(its, |mut its| async move {
                let mut part = vec![0; PART];
                let n = its.read(&mut part).await.ok().filter(|n| *n > 0)?;
                part.truncate(n);
                Some((Ok::<_, io::Error>(Frame::data(Bytes::from(part))), its))
            });
            let mut answer = Response::new(StreamBody::new(parts).boxed_unsync());
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            Ok(answer)
        }
    }
}

/// `POST /exec/ID/resize`.
pub(in crate::api) async fn resize(execs: &Execs, asked: &Asked, id: &str) -> Result<Answer, ApiError> {
    let number = |key: &str| {
        let text = asked.query(key).unwrap_or_default();
        let wrong = |_| ApiError::bad(format!("invalid {key} \"{text}\": expected a number from 0 to 65535"));
        text.parse::<u16>().map_err(wrong)
    };
    let (rows, columns) = (number("h")?, number("w")?);
    let made = execs.find(id)?;
    let control = made.control().await?;
    control
        .resize(rows, columns)
        .map_err(|error| ApiError::bad(format!("exec {id}: {error}")))?;
    Ok(wire::empty(StatusCode::OK))
}

/// `GET /exec/ID/json`.
pub(in crate::api) fn inspect(execs: &Execs, id: &str) -> Result<Answer, ApiError> {
    let made = execs.find(id)?;
    let (pid, code, is_running) = match &*made.state.borrow() {
        State::Made | State::Starting => (0, None, false),
        State::Running { pid, .. } => (*pid, None, true),
        State::Ended { pid, code } => (*pid, Some(*code), false),
    };
    let spec = &made.spec;
    let mut config = json!({
        "tty": spec.terminal.is_some(),
        "entrypoint": spec.words.first(),
        "arguments": spec.words.get(1..),
        "privileged": false,
    });
    if !spec.user.is_empty() {
        config["user"] = Value::from(spec.user.as_str());
    }
    let shown = json!({
        "ID": made.id,
        "Running": is_running,
        "ExitCode": code,
        "ProcessConfig": config,
        "OpenStdin": spec.stdin,
        "OpenStderr": spec.stderr,
        "OpenStdout": spec.stdout,
        "CanRemove": false,
        "ContainerID": made.container,
        "DetachKeys": made.detach_keys.said(),
        "Pid": pid,
    });
    Ok(wire::json(StatusCode::OK, &shown))
}

/// Of what each is told, since so many are remembered; no single word may be half as long on Linux.
const WORDS_BYTES_MAX: usize = 256 << 10;
/// Programs that run at once.
const RUNNING_MAX: usize = 256;
const PART: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(asks: Value) -> Result<ExecSpec, String> {
        let asks: Asks = serde_json::from_value(asks).unwrap();
        asks.judged().map_err(|error| error.message)
    }

    #[test]
    fn what_is_asked_for() {
        let spec = judged(json!({
            "Cmd": ["sh", "-c", "true"], "Env": ["A=b", "C"], "WorkingDir": "/tmp", "User": "web", "Tty": true,
            "ConsoleSize": [24, 80], "AttachStdin": true, "AttachStdout": true,
        }));
        let expected = ExecSpec {
            words: ["sh", "-c", "true"].map(str::to_owned).to_vec(),
            env: ["A=b", "C"].map(str::to_owned).to_vec(),
            dir: "/tmp".to_owned(),
            user: "web".to_owned(),
            terminal: Some((24, 80)),
            stdin: true,
            stdout: true,
            stderr: false,
        };
        assert_eq!(spec, Ok(expected));
        // A size of nothing is none.
        let spec = judged(json!({ "Cmd": ["true"], "ConsoleSize": [24, 80] })).unwrap();
        assert_eq!(spec.terminal, None);
    }

    #[test]
    fn what_no_process_can_have() {
        for (asks, expected) in [
            (json!({}), "No exec command specified"),
            (json!({ "Cmd": ["true"], "Privileged": true }), "Privileged: "),
            (
                json!({ "Cmd": ["true"], "WorkingDir": "tmp" }),
                "WorkingDir \"tmp\": expected",
            ),
            (json!({ "Cmd": ["true"], "Env": ["=x"] }), "Env \"=x\": expected"),
            (json!({ "Cmd": ["true"], "Env": ["A=\0"] }), "Env \"A=\\0\": expected"),
            (
                json!({ "Cmd": ["true"], "Env": ["a".repeat(WORDS_BYTES_MAX)] }),
                "Cmd and Env: 262148 bytes: expected",
            ),
            (json!({ "Cmd": ["tr\0ue"] }), "Cmd \"tr\\0ue\": expected"),
        ] {
            let error = judged(asks).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

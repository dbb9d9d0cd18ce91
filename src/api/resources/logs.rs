//! `service logs`: the output of tasks as one stream of frames, a line in each.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use tokio::sync::mpsc;

use crate::api::backend::Backend;
use crate::api::find;
use crate::api::wire::{Answer, ApiError, Asked, Version};
use crate::model::swarm::{Id, Task};
use crate::streams::{LogLine, LogQuery};

pub(in crate::api) fn of_service(
    backend: &Arc<Backend>,
    asked: &Asked,
    id: &str,
    version: Version,
) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    find::swarm(&snapshot)?;
    let service = find::service(&snapshot, id)?;
    let is_tty = {
        let template = service.spec.task_template.as_ref();
        let container = template.and_then(|template| template.container_spec.as_ref());
        container.is_some_and(|container| container.tty == Some(true))
    };
    answer(backend, asked, Of::Service(service.id.clone()), is_tty, version)
}

pub(in crate::api) fn of_task(
    backend: &Arc<Backend>,
    asked: &Asked,
    id: &str,
    version: Version,
) -> Result<Answer, ApiError> {
    let snapshot = backend.store.snapshot();
    find::swarm(&snapshot)?;
    let task = find::task(&snapshot, id)?;
    let is_tty = task
        .spec
        .container_spec
        .as_ref()
        .is_some_and(|container| container.tty == Some(true));
    answer(backend, asked, Of::Task(task.id.clone()), is_tty, version)
}

enum Of {
    /// Tasks that come later among them.
    Service(Id),
    Task(Id),
}

fn answer(backend: &Arc<Backend>, asked: &Asked, of: Of, is_tty: bool, version: Version) -> Result<Answer, ApiError> {
    let query = query(asked)?;
    let form = Form {
        has_details: asked.is_on("details"),
        has_timestamps: asked.is_on("timestamps"),
        is_framed: !is_tty,
    };
    let (frames, received) = mpsc::channel(FRAMES_AHEAD);
    tokio::spawn(pump(backend.clone(), of, query, form, frames));
    let received = stream::unfold(received, |mut received| async move {
        let bytes: Bytes = received.recv().await?;
        Some((Ok::<_, io::Error>(Frame::data(bytes)), received))
    });
    let mut answer = Response::new(StreamBody::new(received).boxed_unsync());
    let kind = match !is_tty && version >= Version(1, 42) {
        true => "application/vnd.docker.multiplexed-stream",
        false => "application/vnd.docker.raw-stream",
    };
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(answer)
}

/// Passes on what the tasks say, until they have said all or nobody listens any more.
async fn pump(backend: Arc<Backend>, of: Of, query: LogQuery, form: Form, frames: mpsc::Sender<Bytes>) {
    let mut changed = backend.store.changed();
    let mut stopping = backend.stopping.subscribe();
    let mut known: HashSet<Id> = HashSet::new();
    loop {
        let snapshot = backend.store.snapshot();
        let tasks: Vec<Arc<Task>> = match &of {
            Of::Service(id) => snapshot.tasks_of_service(id.as_str()).cloned().collect(),
            Of::Task(id) => snapshot.task(id.as_str()).cloned().into_iter().collect(),
        };
        let is_there = match &of {
            Of::Service(id) => snapshot.service(id.as_str()).is_some(),
            Of::Task(_) => !tasks.is_empty(),
        };
        if tasks.is_empty() && !is_there {
            break;
        }
        for task in tasks {
            // One that has not begun says nothing yet.
            if known.contains(&task.id) {
                continue;
            }
            let Ok(lines) = backend.outside.logs(&task.id, query) else {
                continue;
            };
            known.insert(task.id.clone());
            let frames = frames.clone();
            let mut stopping = stopping.clone();
            let pass = async move {
                let mut lines = lines;
                loop {
                    let line = tokio::select! {
                        line = lines.next() => line,
                        // It may be long until the next line.
                        () = frames.closed() => break,
                        _ = stopping.wait_for(|is_stopping| *is_stopping) => break,
                    };
                    let Some(line) = line else { break };
                    if frames.send(form.frame(&task, &line)).await.is_err() {
                        break;
                    }
                }
            };
            match query.follow {
                true => drop(tokio::spawn(pass)),
                false => pass.await,
            }
        }
        if !query.follow {
            break;
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { break },
            () = frames.closed() => break,
            _ = stopping.wait_for(|is_stopping| *is_stopping) => break,
        }
    }
}

fn query(asked: &Asked) -> Result<LogQuery, ApiError> {
    let (stdout, stderr) = (asked.is_on("stdout"), asked.is_on("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::bad("Bad parameters: you must choose at least one stream"));
    }
    let tail = match asked.query("tail") {
        None | Some("" | "all") => None,
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::bad(format!(
                "invalid tail \"{text}\": expected \"all\" or a number of lines"
            ))
        })?),
    };
    Ok(LogQuery {
        follow: asked.is_on("follow"),
        tail,
        since: asked.time("since")?,
        until: asked.time("until")?,
        stdout,
        stderr,
    })
}

/// How lines are written.
#[derive(Debug, Clone, Copy)]
struct Form {
    has_details: bool,
    has_timestamps: bool,
    /// With the stream and the length in front of each.
    is_framed: bool,
}

impl Form {
    fn frame(self, task: &Task, line: &LogLine) -> Bytes {
        let mut text = BytesMut::with_capacity(line.bytes.len() + 160);
        if self.is_framed {
            text.put_slice(&[if line.is_stderr { 2 } else { 1 }, 0, 0, 0, 0, 0, 0, 0]);
        }
        if self.has_timestamps {
            text.put_slice(format!("{} ", line.at).as_bytes());
        }
        if self.has_details {
            let node = task.node.as_ref().map_or("", Id::as_str);
            let details = format!(
                "com.docker.swarm.node.id={node},com.docker.swarm.service.id={},com.docker.swarm.task.id={} ",
                task.service, task.id
            );
            text.put_slice(details.as_bytes());
        }
        text.put_slice(&line.bytes);
        text.put_u8(b'\n');
        if self.is_framed {
            let length = u32::try_from(text.len() - 8).unwrap_or(u32::MAX);
            text[4..8].copy_from_slice(&length.to_be_bytes());
        }
        text.freeze()
    }
}

/// Each may be 16 KiB long.
const FRAMES_AHEAD: usize = 16;

//! A program beside a task while it runs: what it says goes to the connection that started it, framed as Docker frames it, and
//! what comes from there is its to read. Not here: what is asked for (`exec`), and how it is run (`outside`).

use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::detach::Listening;
use super::events::Events;
use super::exec_table::Made;
use super::processes;
use crate::api::backend::Backend;
use crate::api::wire::{ApiError, Caller};
use crate::model::exec::{ExecError, ExecSpec};
use crate::model::swarm::Time;
use crate::places::Place;
use crate::streams::{Exec, ExecInput, ExecOutput};

/// It did not come to run.
pub(super) fn failed(made: &Made, error: &ExecError) -> ApiError {
    made.ended(error.code());
    match error {
        ExecError::NotRunning => processes::not_running(&made.container),
        ExecError::Missing(text) | ExecError::Refused(text) => ApiError::bad(text.as_str()),
    }
}

/// A program that is about to run, for whoever holds its streams.
pub(super) struct Run {
    pub(super) backend: Arc<Backend>,
    pub(super) events: Arc<Events>,
    pub(super) made: Arc<Made>,
    pub(super) place: Place<Caller>,
    pub(super) spec: ExecSpec,
    pub(super) is_framed: bool,
}

impl Run {
    /// `cut`: ready when the client must go; the program goes on.
    pub(super) async fn run<C: AsyncRead + AsyncWrite + Unpin>(
        self,
        mut client: Option<C>,
        cut: impl Future<Output = ()>,
    ) {
        let Run {
            backend,
            events,
            made,
            place,
            spec,
            is_framed,
        } = self;
        let mut stopping = backend.stopping.subscribe();
        let cut = async {
            tokio::select! {
                () = cut => {}
                _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
            }
        };
        let started = backend.outside.exec(&made.task, spec).await;
        // A program may run for long, and an update waits until nobody holds the store.
        drop(backend);
        match started {
            Ok(exec) => {
                made.runs(&exec);
                let client = client.map(|client| (client, is_framed));
                see_through(&events, made, place, exec, client, cut).await;
            }
            Err(error) => {
                // Docker's clients show it in the place of what the program would say, and ask for the exit code then.
                let text = failed(&made, &error).message + "\r\n";
                if let Some(client) = &mut client {
                    let said = async {
                        say(client, is_framed, false, text.as_bytes()).await?;
                        client.shutdown().await
                    };
                    tokio::select! {
                        _ = said => {}
                        () = cut => {}
                    }
                }
            }
        }
    }
}

/// Until nothing is left of a program. `client`: who holds its streams, and whether what it says is framed.
pub(super) async fn see_through<C: AsyncRead + AsyncWrite + Unpin>(
    events: &Events,
    made: Arc<Made>,
    place: Place<Caller>,
    exec: Exec,
    client: Option<(C, bool)>,
    cut: impl Future<Output = ()>,
) {
    let Exec {
        mut input,
        mut output,
        mut ended,
        control,
        ..
    } = exec;
    let to_the_end = async {
        let mut client = client;
        let is_there = match &mut client {
            Some((client, is_framed)) => {
                let keys = made.spec.terminal.map(|_| made.detach_keys.listen());
                tokio::select! {
                    ended = pass(client, *is_framed, &mut input, keys, &mut output, &place) => {
                        if ended == Passed::Detached {
                            let at = Time::now();
                            events.say(at, made.event("exec_detach", [], at));
                        }
                        ended == Passed::All
                    }
                    () = cut => false,
                }
            }
            None => false,
        };
        // A terminal is there without anybody before it too, as in Docker; at its program's end nobody reads this any more.
        input = input.filter(|_| made.spec.terminal.is_some());
        client = client.filter(|_| is_there);
        // Nobody listens any more, or it has said all.
        while output.next().await.is_some() {
            place.moved();
            // There may always be more.
            tokio::task::yield_now().await;
        }
        let code = ended.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        drop(input);
        let code = code.unwrap_or(KILLED);
        // Before the client is told: it asks for the code next.
        made.ended(code);
        let at = Time::now();
        events.say(at, made.event("exec_die", [("exitCode", code.to_string())], at));
        if let Some((client, _)) = &mut client {
            let _ = client.shutdown().await;
        }
        drop(client);
        while ended.changed().await.is_ok() {}
    };
    let given_up = async {
        place.told_to_leave().await;
        tracing::warn!(
            exec = made.id,
            "too many programs beside tasks, and this one was silent for longest: ended"
        );
        control.kill();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = to_the_end => {}
        () = given_up => {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// The program has said all.
    All,
    /// The client takes no more of it.
    Gone,
    /// It was typed that the client is to go.
    Detached,
}

/// Both ways, until one of them ends. Whoever does not read is waited for. `keys`: by which a client at a terminal goes, and leaves
/// the program its input, also where it goes without them.
async fn pass<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut C,
    is_framed: bool,
    input: &mut Option<ExecInput>,
    keys: Option<Listening>,
    output: &mut ExecOutput,
    place: &Place<Caller>,
) -> Passed {
    #[expect(
        clippy::disallowed_methods,
        reason = "what was a connection of HTTP is split by nothing else"
    )]
    let (mut read, mut write) = tokio::io::split(client);
    let feed = async {
        // A client that has gone and one that has closed its side look the same: its program's input ends.
        match (input, keys) {
            // At a terminal, which stays, it goes then altogether.
            (Some(input), Some(keys)) => match typed(&mut read, input, keys).await {
                Ok(true) => return Passed::Detached,
                Ok(false) => return Passed::Gone,
                Err(_) => {}
            },
            (input, _) => {
                if let Some(mut input) = input.take() {
                    let _ = tokio::io::copy(&mut read, &mut input).await;
                }
            }
        }
        std::future::pending::<Passed>().await
    };
    let show = async {
        while let Some((is_stderr, bytes)) = output.next().await {
            place.moved();
            if say(&mut write, is_framed, is_stderr, &bytes).await.is_err() {
                return Passed::Gone;
            }
        }
        Passed::All
    };
    tokio::select! {
        ended = show => ended,
        ended = feed => ended,
    }
}

/// What is typed at a terminal, until the client has gone, or the keys were among it (`true`). Errors: nobody is there to read it.
async fn typed<R: AsyncRead + Unpin>(read: &mut R, input: &mut ExecInput, mut keys: Listening) -> io::Result<bool> {
    let mut part = [0; 4096];
    let mut passed = Vec::new();
    loop {
        let n = read.read(&mut part).await.unwrap_or(0);
        if n == 0 {
            return Ok(false);
        }
        let is_detached = keys.hear(&part[..n], &mut passed);
        input.write_all(&passed).await?;
        input.flush().await?;
        passed.clear();
        if is_detached {
            return Ok(true);
        }
    }
}

async fn say<W: AsyncWrite + Unpin>(client: &mut W, is_framed: bool, is_stderr: bool, bytes: &[u8]) -> io::Result<()> {
    if is_framed {
        client.write_all(&head(is_stderr, bytes.len())).await?;
    }
    client.write_all(bytes).await?;
    client.flush().await
}

/// What is in front of a part of what a program says: the stream, three zeros, the length.
fn head(is_stderr: bool, length: usize) -> [u8; 8] {
    let mut head = [if is_stderr { 2 } else { 1 }, 0, 0, 0, 0, 0, 0, 0];
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    head[4..].copy_from_slice(&length.to_be_bytes());
    head
}

/// As of a program that SIGKILL ended.
const KILLED: i64 = 137;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts_are_framed_as_docker_frames_them() {
        let mut said = Vec::new();
        say(&mut said, true, false, b"out").await.unwrap();
        say(&mut said, true, true, b"error!").await.unwrap();
        assert_eq!(said, b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x06error!");
        said.clear();
        say(&mut said, false, true, b"plain").await.unwrap();
        assert_eq!(said, b"plain");
        assert_eq!(head(true, 0x0102_0304), [2, 0, 0, 0, 1, 2, 3, 4]);
    }
}

//! What a program beside a task is connected to: pipes or a terminal, and what it says, read as it is asked for. Nothing is read
//! ahead, so that a program whose words nobody takes waits. Not here: what runs (`exec`).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::job::User;
use crate::model::exec::ExecSpec;
use crate::streams::{ExecInput, ExecOutput};
use crate::sys::terminal;

/// What a program is connected to: our ends, and its.
pub(super) struct Streams {
    pub(super) its: [OwnedFd; 3],
    pub(super) input: Option<ExecInput>,
    pub(super) output: [Option<pipe::Receiver>; 2],
    pub(super) terminal: Option<OwnedFd>,
}

impl Streams {
    pub(super) fn new(spec: &ExecSpec, user: Option<&User>) -> io::Result<Streams> {
        match spec.terminal {
            Some((rows, columns)) => Streams::at_terminal(spec, rows, columns, user),
            None => Streams::of_pipes(spec, user),
        }
    }

    fn at_terminal(spec: &ExecSpec, rows: u16, columns: u16, user: Option<&User>) -> io::Result<Streams> {
        let (ours, its) = terminal::open(rows, columns, user.map(|user| user.uid))?;
        let input: Option<ExecInput> = match spec.stdin {
            true => Some(Box::pin(TerminalInput(pipe::Sender::from_owned_fd_unchecked(
                ours.try_clone()?,
            )?))),
            false => None,
        };
        Ok(Streams {
            // Whoever takes none of what it says throws it away.
            output: [Some(pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?)?), None],
            its: [its.try_clone()?, its.try_clone()?, its],
            input,
            terminal: Some(ours),
        })
    }

    fn of_pipes(spec: &ExecSpec, user: Option<&User>) -> io::Result<Streams> {
        let null = || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map(OwnedFd::from)
        };
        // What it has is its user's, so that it may be opened again as /dev/stdout.
        let owned = |its: OwnedFd| match user {
            Some(user) => fchown(&its, Some(user.uid), Some(user.gid)).map(|()| its),
            None => Ok(its),
        };
        let input = match spec.stdin {
            true => Some(io::pipe()?),
            false => None,
        };
        let (stdin, input) = match input {
            Some((its, ours)) => {
                let ours: ExecInput = Box::pin(pipe::Sender::from_owned_fd(ours.into())?);
                (owned(its.into())?, Some(ours))
            }
            None => (null()?, None),
        };
        let output = |is_wanted: bool| -> io::Result<(OwnedFd, Option<pipe::Receiver>)> {
            if !is_wanted {
                return Ok((null()?, None));
            }
            let (ours, its) = io::pipe()?;
            Ok((owned(its.into())?, Some(pipe::Receiver::from_owned_fd(ours.into())?)))
        };
        let (stdout, said) = output(spec.stdout)?;
        let (stderr, said_of_errors) = output(spec.stderr)?;
        Ok(Streams {
            its: [stdin, stdout, stderr],
            input,
            output: [said, said_of_errors],
            terminal: None,
        })
    }
}

/// The way to a terminal; whoever is there reads the end of it when this is dropped.
struct TerminalInput(pipe::Sender);

impl Drop for TerminalInput {
    fn drop(&mut self) {
        // One that takes nothing at the moment has not come to the end.
        let _ = rustix::io::write(&self.0, &[terminal::END_OF_INPUT]);
    }
}

impl AsyncWrite for TerminalInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a program says.
pub(super) struct Said {
    pipes: [Option<pipe::Receiver>; 2],
    ended: watch::Receiver<Option<i64>>,
    /// Which of them is read first: each in turn.
    first: usize,
    /// How many bytes more are read of each, once the program has ended: others may go on to write.
    rest: [usize; 2],
}

impl Said {
    /// Once `ended` says a code, it says what is there and no more.
    pub(super) fn stream(pipes: [Option<pipe::Receiver>; 2], ended: watch::Receiver<Option<i64>>) -> ExecOutput {
        let said = Said {
            pipes,
            ended,
            first: 0,
            rest: [REST_MAX; 2],
        };
        let parts = stream::unfold(said, |mut said| async move { Some((said.next().await?, said)) });
        parts.fuse().boxed()
    }

    async fn next(&mut self) -> Option<(bool, Bytes)> {
        let mut part = vec![0; PART];
        loop {
            // What it said before it ended is there by then; what others have to say who hold its pipes is not its.
            let has_ended = self.ended.borrow().is_some();
            self.first = 1 - self.first;
            for at in [self.first, 1 - self.first] {
                let Some(pipe) = &self.pipes[at] else { continue };
                let read = match has_ended {
                    false => pipe.try_read(&mut part),
                    // Not by what is known of it: it may not be known yet that there is something.
                    true => rustix::io::read(pipe, &mut part).map_err(io::Error::from),
                };
                match read {
                    Ok(n @ 1..) => {
                        if has_ended {
                            self.rest[at] = self.rest[at].saturating_sub(n);
                            if self.rest[at] == 0 {
                                self.pipes[at] = None;
                            }
                        }
                        return Some((at == 1, Bytes::copy_from_slice(&part[..n])));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && !has_ended => {}
                    // EIO: nobody is at the terminal any more.
                    Ok(0) | Err(_) => self.pipes[at] = None,
                }
            }
            match has_ended {
                true if self.pipes.iter().all(Option::is_none) => return None,
                true => {}
                false => self.wait().await,
            }
        }
    }

    /// Until there may be something to be read, or it has ended.
    async fn wait(&mut self) {
        let [stdout, stderr] = &self.pipes;
        tokio::select! {
            () = readable(stdout) => {}
            () = readable(stderr) => {}
            _ = self.ended.wait_for(Option::is_some) => {}
        }
    }
}

async fn readable(pipe: &Option<pipe::Receiver>) {
    match pipe {
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

const PART: usize = 16 << 10;
/// As much as a pipe may hold, by default of the kernel's (fs.pipe-max-size).
const REST_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    fn both() -> ExecSpec {
        ExecSpec {
            stdout: true,
            stderr: true,
            ..ExecSpec::default()
        }
    }

    #[tokio::test]
    async fn what_was_said_before_the_end_is_heard_whoever_holds_the_pipe() {
        let Streams { its, output, .. } = Streams::new(&both(), None).unwrap();
        let (code, ended) = watch::channel(None);
        let mut said = Said::stream(output, ended);
        let [_, stdout, stderr] = its;
        let (mut stdout, mut stderr) = (File::from(stdout), File::from(stderr));
        stdout.write_all(b"one").unwrap();
        assert_eq!(said.next().await, Some((false, Bytes::from_static(b"one"))));
        stderr.write_all(b"two").unwrap();
        assert_eq!(said.next().await, Some((true, Bytes::from_static(b"two"))));
        // Whose pipes are closed runs yet.
        drop(stderr);
        let more = tokio::time::timeout(Duration::from_millis(50), said.next()).await;
        assert!(more.is_err(), "{more:?}");
        stdout.write_all(b"last").unwrap();
        code.send_replace(Some(0));
        assert_eq!(said.next().await, Some((false, Bytes::from_static(b"last"))));
        assert_eq!(said.next().await, None);
        assert_eq!(said.next().await, None);
        drop(stdout);
    }

    #[tokio::test]
    async fn who_writes_on_after_the_end_is_heard_no_longer_than_a_pipe_is() {
        let Streams { its, output, .. } = Streams::new(&both(), None).unwrap();
        let (code, ended) = watch::channel(None);
        let mut said = Said::stream(output, ended);
        let [_, stdout, stderr] = its;
        drop(stderr);
        code.send_replace(Some(0));
        let mut other = File::from(stdout);
        let writes = std::thread::spawn(move || while other.write_all(&[b'x'; 64 << 10]).is_ok() {});
        let mut n_bytes = 0;
        while let Some((_, part)) = said.next().await {
            n_bytes += part.len();
        }
        assert!(n_bytes < REST_MAX + PART, "{n_bytes}");
        writes.join().unwrap();
    }

    #[tokio::test]
    async fn neither_stream_waits_for_the_other() {
        let Streams { its, output, .. } = Streams::new(&both(), None).unwrap();
        let (_code, ended) = watch::channel(None);
        let mut said = Said::stream(output, ended);
        let [_, stdout, stderr] = its;
        File::from(stdout).write_all(&vec![b'x'; 60 << 10]).unwrap();
        File::from(stderr).write_all(b"error").unwrap();
        let first = [said.next().await.unwrap(), said.next().await.unwrap()];
        assert!(first.iter().any(|(is_stderr, _)| *is_stderr), "{first:?}");
    }
}

//! Pipes to splice through, and a bounded pool of them per core. Bytes that go this way never enter this program.
//!
//! A pipe may hold more bytes than its nominal size, since a slot holds a whole received packet: never assert otherwise.
//! `SPLICE_F_MORE` is never passed: it corks the receiver's side of the stream for 200 ms.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags};

/// A pipe and how many bytes are in it.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    n_bytes: usize,
}

impl Pipe {
    /// A pipe of about `size_bytes`; smaller where the kernel does not allow as much.
    fn new(size_bytes: usize) -> io::Result<Pipe> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // A refusal leaves the default of 64 kB, which works as well, with more calls.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, size_bytes);
        Ok(Pipe {
            reader,
            writer,
            n_bytes: 0,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.n_bytes == 0
    }

    /// Moves what `from` holds into the pipe, at most `most_bytes`; 0 is the end of the stream.
    ///
    /// Errors: `WouldBlock` when there is nothing to move, or the pipe is full: so only an empty pipe is filled.
    pub fn fill(&mut self, from: impl AsFd, most_bytes: usize) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let n = rustix::pipe::splice(from, None, &self.writer, None, most_bytes, flags)?;
        self.n_bytes += n;
        Ok(n)
    }

    /// Moves what the pipe holds to `to`, as much as it takes now.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let n = rustix::pipe::splice(&self.reader, None, to, None, self.n_bytes, flags)?;
        self.n_bytes = self.n_bytes.saturating_sub(n);
        Ok(n)
    }
}

/// At most so many pipes at once; those given back are kept for the next taker.
#[derive(Debug)]
pub struct PipePool {
    idle: Vec<Pipe>,
    n_out: usize,
    most: usize,
    size_bytes: usize,
}

impl PipePool {
    /// `most` pipes of `size_bytes` each; 0 turns splicing off.
    pub fn new(most: usize, size_bytes: usize) -> PipePool {
        PipePool {
            idle: Vec::new(),
            n_out: 0,
            most,
            size_bytes,
        }
    }

    /// An empty pipe, or `None` when all are in use or none can be made: then copy.
    pub fn take(&mut self) -> Option<Pipe> {
        if self.n_out >= self.most {
            return None;
        }
        let pipe = match self.idle.pop() {
            Some(pipe) => pipe,
            None => match Pipe::new(self.size_bytes) {
                Ok(pipe) => pipe,
                Err(error) => {
                    tracing::debug!(%error, "no pipe to splice through, copying");
                    return None;
                }
            },
        };
        self.n_out += 1;
        Some(pipe)
    }

    /// Gives a pipe back. One that still holds bytes is closed: they belong to a stream that is gone.
    pub fn put(&mut self, pipe: Pipe) {
        self.n_out = self.n_out.saturating_sub(1);
        if pipe.is_empty() {
            self.idle.push(pipe);
        }
    }
}

/// Whether an error of `Pipe::fill` says that this kind of socket cannot be spliced, rather than that it failed.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_pass_and_the_end_shows() {
        let mut pool = PipePool::new(1, 65536);
        let (mut ours, from) = UnixStream::pair().unwrap();
        let (to, mut theirs) = UnixStream::pair().unwrap();
        let mut pipe = pool.take().unwrap();
        assert!(pool.take().is_none(), "the pool is bounded");
        ours.write_all(b"hello").unwrap();
        assert_eq!(pipe.fill(&from, 1 << 20).unwrap(), 5);
        assert_eq!(pipe.fill(&from, 1 << 20).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(pipe.drain(&to).unwrap(), 5);
        let mut buffer = [0; 8];
        assert_eq!(theirs.read(&mut buffer).unwrap(), 5);
        drop(ours);
        assert_eq!(pipe.fill(&from, 1 << 20).unwrap(), 0);
        pool.put(pipe);
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_pipe_with_bytes_left_is_not_used_again() {
        let mut pool = PipePool::new(1, 65536);
        let (mut ours, from) = UnixStream::pair().unwrap();
        ours.write_all(b"stale").unwrap();
        let mut pipe = pool.take().unwrap();
        pipe.fill(&from, 5).unwrap();
        pool.put(pipe);
        assert!(pool.take().unwrap().is_empty());
    }
}

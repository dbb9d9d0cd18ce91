//! Byte buffers of an HTTP connection, from a pool per worker: an idle connection has none. Not here: what is in them.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::proxy::core;
use crate::proxy::wire::Wire;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes on their way: filled at the end, taken from the front. Owns memory only while it holds any.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// Has `bytes` to begin with.
    pub(super) fn of(bytes: Vec<u8>) -> Buffer {
        Buffer { bytes, start: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn rest_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.bytes.len());
        if self.is_empty() {
            self.release();
        }
    }

    /// Gives the memory back, with whatever is in it.
    pub(super) fn release(&mut self) {
        self.start = 0;
        let mut bytes = std::mem::take(&mut self.bytes);
        if (SIZE_BYTES..=KEPT_BYTES_MAX).contains(&bytes.capacity()) {
            bytes.clear();
            // An error means that the thread is ending.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < N_SPARE {
                    spare.push(bytes);
                }
            });
        }
    }

    /// Where to append.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = take_spare();
        }
        &mut self.bytes
    }

    /// All bytes ever appended, consumed or not; from here they may be sent again.
    pub(super) fn rewind(&mut self) {
        self.start = 0;
    }

    /// How many bytes `rewind` finds.
    pub(super) fn n_kept(&self) -> usize {
        self.bytes.len()
    }

    /// Marks bytes as consumed without giving memory back, so that `rewind` finds them.
    pub(super) fn skip(&mut self, n: usize) {
        self.start += n;
    }

    pub(super) fn into_rest(mut self) -> Vec<u8> {
        let start = std::mem::take(&mut self.start);
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..start);
        bytes
    }

    /// Reads once from `stream` to the end of the buffer; 0 is the end of the stream.
    pub(super) fn poll_fill(&mut self, wire: &impl Wire, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match wire.tcp() {
            Some(stream) => self.poll_fill_tcp(stream, cx),
            None => core::with_scratch(|scratch| {
                // A tunnel cannot say whether there is something to read without giving it.
                let n = ready!(wire.poll_read(cx, &mut scratch[..SIZE_BYTES]))?;
                if n > 0 {
                    self.tail().extend_from_slice(&scratch[..n]);
                }
                Poll::Ready(Ok(n))
            }),
        }
    }

    fn poll_fill_tcp(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            // No memory is taken before there is something to put into it.
            ready!(stream.poll_read_ready(cx))?;
            if self.start > 0 {
                self.bytes.drain(..self.start);
                self.start = 0;
            }
            let bytes = self.tail();
            if bytes.capacity() - bytes.len() < SIZE_BYTES / 4 {
                bytes.reserve(bytes.capacity());
            }
            let room = bytes.capacity() - bytes.len();
            let mut n_short = 0;
            let result = stream.try_io(Interest::READABLE, || {
                let n = recv(stream, rustix::buffer::spare_capacity(bytes), RecvFlags::empty())?.0;
                if n > 0 && n < room {
                    n_short = n;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(n)
            });
            let result = match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && n_short > 0 => Ok(n_short),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                result => result,
            };
            if self.is_empty() {
                self.release();
            }
            return Poll::Ready(result);
        }
    }

    /// Writes everything to `stream`. Returns how much was written now.
    pub(super) fn poll_flush(&mut self, wire: &impl Wire, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let n = ready!(wire.poll_write(cx, self.rest()))?;
            self.consume(n);
        }
        wire.poll_flush(cx)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.capacity() > 0 {
            self.release();
        }
    }
}

fn take_spare() -> Vec<u8> {
    let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
    spare.unwrap_or_else(|| Vec::with_capacity(SIZE_BYTES))
}

const SIZE_BYTES: usize = 16 * 1024;
/// A buffer that grew for a large head is not kept.
const KEPT_BYTES_MAX: usize = 64 * 1024;
const N_SPARE: usize = 256;

//! A body that comes as frames, read in HTTP/1.1's words. The sender may send on as the reader reads.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;

use super::head::{Framing, write_trailers};

/// The body of a message.
pub(in crate::proxy) struct Incoming {
    stream: RecvStream,
    is_chunked: bool,
    /// Marks of chunks, to be given before `data`.
    marks: Vec<u8>,
    n_given: usize,
    data: Bytes,
    /// Taken from the connection before anybody had room for it, and joined: many small frames take more room there than their bytes.
    kept: BytesMut,
    /// What came after `kept`.
    after: After,
    state: State,
}

/// What came after data.
#[derive(Debug)]
enum After {
    Unknown,
    /// The end of the data.
    End,
    Fault(h2::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    /// The mark that ends a chunk is due.
    EndOfChunk,
    Trailers,
    /// No more comes.
    Ended,
}

impl Incoming {
    pub(in crate::proxy) fn new(stream: RecvStream, framing: Framing) -> Incoming {
        Incoming {
            stream,
            is_chunked: framing == Framing::Chunked,
            marks: Vec::new(),
            n_given: 0,
            data: Bytes::new(),
            kept: BytesMut::new(),
            after: After::Unknown,
            state: match framing {
                Framing::None => State::Ended,
                _ => State::Data,
            },
        }
    }

    /// Reads into `buffer`; 0 is the end. Errors: the sender has reset it, or its connection is gone.
    pub(in crate::proxy) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut n = 0;
        loop {
            n += self.give(&mut buffer[n..]);
            if n == buffer.len() {
                return Poll::Ready(Ok(n));
            }
            // Everything was given.
            match self.poll_more(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(n)),
                // What came before is told before.
                _ if n > 0 => return Poll::Ready(Ok(n)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes what has come while nobody reads, so that it is there joined. The sender may send no more for it.
    pub(in crate::proxy) fn keep_up(&mut self, cx: &mut Context<'_>) {
        while matches!(self.after, After::Unknown) && matches!(self.state, State::Data | State::EndOfChunk) {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.kept.extend_from_slice(&data),
                Poll::Ready(Some(Err(error))) => self.after = After::Fault(error),
                Poll::Ready(None) => self.after = After::End,
                Poll::Pending => return,
            }
        }
    }

    /// Whether the sender has said that no more comes.
    pub(in crate::proxy) fn has_come(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// Reads and forgets up to the end, as long as it is not much.
    pub(in crate::proxy) async fn discard(mut self) {
        let mut n = 0;
        while let Some(Ok(data)) = poll_fn(|cx| self.stream.poll_data(cx)).await {
            n += data.len();
            // An error means that the connection is gone.
            let _ = self.stream.flow_control().release_capacity(data.len());
            if n > DISCARD_AT_MOST {
                return;
            }
        }
        let _ = poll_fn(|cx| self.stream.poll_trailers(cx)).await;
    }

    fn give(&mut self, buffer: &mut [u8]) -> usize {
        let marks = &self.marks[self.n_given..];
        let n_marks = marks.len().min(buffer.len());
        buffer[..n_marks].copy_from_slice(&marks[..n_marks]);
        self.n_given += n_marks;
        if self.n_given < self.marks.len() {
            return n_marks;
        }
        self.marks.clear();
        self.n_given = 0;
        let n_data = self.data.len().min(buffer.len() - n_marks);
        self.data.copy_to_slice(&mut buffer[n_marks..n_marks + n_data]);
        if n_data > 0 {
            // An error means that the connection is gone, which is told where more is asked for.
            let _ = self.stream.flow_control().release_capacity(n_data);
            if self.data.is_empty() && self.is_chunked {
                self.state = State::EndOfChunk;
            }
        }
        n_marks + n_data
    }

    /// Has something to give, or knows that nothing comes any more (`false`).
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.state == State::EndOfChunk {
            self.marks.extend_from_slice(b"\r\n");
            self.state = State::Data;
            return Poll::Ready(Ok(true));
        }
        if self.state == State::Data {
            let next = match std::mem::replace(&mut self.after, After::Unknown) {
                after if !self.kept.is_empty() => {
                    self.after = after;
                    Poll::Ready(Some(Ok(self.kept.split().freeze())))
                }
                After::Fault(error) => Poll::Ready(Some(Err(error))),
                After::End => Poll::Ready(None),
                After::Unknown => self.stream.poll_data(cx),
            };
            match next {
                Poll::Ready(Some(Ok(data))) => {
                    if self.is_chunked && !data.is_empty() {
                        self.marks.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                    }
                    self.data = data;
                    return Poll::Ready(Ok(true));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io_error(error))),
                Poll::Ready(None) => self.state = State::Trailers,
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.state == State::Trailers {
            match self.stream.poll_trailers(cx) {
                Poll::Ready(Ok(trailers)) => {
                    self.state = State::Ended;
                    if self.is_chunked {
                        write_trailers(trailers.as_ref(), &mut self.marks);
                        return Poll::Ready(Ok(true));
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(io_error(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(false))
    }
}

/// What is left of a body that is not read any more.
const DISCARD_AT_MOST: usize = 64 * 1024;

/// What a fault of a stream means to who knows sockets.
pub(in crate::proxy) fn io_error(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        false => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

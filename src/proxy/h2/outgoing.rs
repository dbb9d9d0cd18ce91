//! A message that is written in HTTP/1.1's words and goes out as frames, as fast as the receiver takes them.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

use super::head::{Framing, Malformed, read_trailers};
use super::incoming::io_error;

/// Where the writer is within a message.
#[derive(Debug)]
pub(in crate::proxy) struct Outgoing {
    state: State,
    /// Of a head, a chunk's mark or trailers that are not whole yet.
    part: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    /// The size of a chunk is next.
    Size,
    /// So much of a chunk is next.
    Chunk(u64),
    /// The line end after a chunk is next.
    EndOfChunk,
    Trailers,
    UntilClose,
    Ended,
}

/// What begins with a head: how its body is marked off, and where that goes. `None` with an interim head.
pub(in crate::proxy) type Opened = Option<(Framing, SendStream<Bytes>)>;

impl Outgoing {
    pub(in crate::proxy) fn new() -> Outgoing {
        Outgoing {
            state: State::Head,
            part: Vec::new(),
        }
    }

    /// Whether everything was said.
    pub(in crate::proxy) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Takes of `bytes` what the receiver takes; never 0. `open` sends a head. Errors: the receiver or the connection is gone, or the
    /// message is malformed.
    pub(in crate::proxy) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        stream: &mut Option<SendStream<Bytes>>,
        mut open: impl FnMut(&[u8]) -> io::Result<Opened>,
    ) -> Poll<io::Result<usize>> {
        let mut n = 0;
        while n < bytes.len() {
            let rest = &bytes[n..];
            let taken = match self.state {
                State::Head => {
                    let Some((taken, head)) = self.part_until(rest, b"\r\n\r\n", HEAD_MOST)? else {
                        return Poll::Ready(Ok(bytes.len()));
                    };
                    if let Some((framing, opened)) = open(&head)? {
                        *stream = Some(opened);
                        self.state = match framing {
                            Framing::None | Framing::Length(0) => State::Ended,
                            Framing::Length(length) => State::Length(length),
                            Framing::Chunked => State::Size,
                            Framing::UntilClose => State::UntilClose,
                        };
                    }
                    taken
                }
                State::Size => {
                    let Some((taken, line)) = self.part_until(rest, b"\r\n", LINE_MOST)? else {
                        return Poll::Ready(Ok(bytes.len()));
                    };
                    self.state = match size(&line)? {
                        0 => State::Trailers,
                        size => State::Chunk(size),
                    };
                    taken
                }
                State::EndOfChunk => {
                    let Some((taken, _)) = self.part_until(rest, b"\r\n", LINE_MOST)? else {
                        return Poll::Ready(Ok(bytes.len()));
                    };
                    self.state = State::Size;
                    taken
                }
                State::Trailers => {
                    // An empty line alone, or lines and an empty one.
                    let end: &[u8] = match self.part.is_empty() && rest.starts_with(b"\r\n") || self.part == b"\r" {
                        true => b"\r\n",
                        false => b"\r\n\r\n",
                    };
                    let Some((taken, lines)) = self.part_until(rest, end, HEAD_MOST)? else {
                        return Poll::Ready(Ok(bytes.len()));
                    };
                    let trailers = read_trailers(&lines).map_err(malformed)?;
                    self.end(stream, trailers)?;
                    taken
                }
                State::Length(_) | State::Chunk(_) | State::UntilClose => {
                    let sent = self.poll_data(cx, rest, stream);
                    match sent {
                        Poll::Ready(taken) => taken?,
                        Poll::Pending if n > 0 => return Poll::Ready(Ok(n)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                // There is more than the message had.
                State::Ended => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            };
            n += taken;
        }
        Poll::Ready(Ok(n))
    }

    /// The message is over. What has no other mark of its end ends with it. `false`: it is not whole.
    pub(in crate::proxy) fn close(&mut self, stream: &mut Option<SendStream<Bytes>>) -> bool {
        if self.state == State::UntilClose {
            // An error means that the receiver is gone.
            let _ = self.end(stream, HeaderMap::new());
        }
        self.has_ended()
    }

    fn end(&mut self, stream: &mut Option<SendStream<Bytes>>, trailers: HeaderMap) -> io::Result<()> {
        self.state = State::Ended;
        let stream = stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        match trailers.is_empty() {
            true => stream.send_data(Bytes::new(), true),
            false => stream.send_trailers(trailers),
        }
        .map_err(io_error)
    }

    /// Sends of `bytes`, of which there are some, what belongs to the body and is taken.
    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        stream: &mut Option<SendStream<Bytes>>,
    ) -> Poll<io::Result<usize>> {
        let Some(stream) = stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let left = match self.state {
            State::Length(left) | State::Chunk(left) => left,
            _ => u64::MAX,
        };
        let most = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        stream.reserve_capacity(most);
        let mut room = stream.capacity();
        while room == 0 {
            room = match ready!(stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let n = most.min(room);
        let data = Bytes::copy_from_slice(&bytes[..n]);
        let is_whole = left == n as u64;
        // The end in the same frame, where it is known.
        let is_last_chunk = is_whole && bytes[n..] == *b"\r\n0\r\n\r\n";
        let (state, is_end, taken) = match self.state {
            State::Length(_) if is_whole => (State::Ended, true, n),
            State::Length(left) => (State::Length(left - n as u64), false, n),
            State::Chunk(_) if is_last_chunk => (State::Ended, true, bytes.len()),
            State::Chunk(_) if is_whole => (State::EndOfChunk, false, n),
            State::Chunk(left) => (State::Chunk(left - n as u64), false, n),
            state => (state, false, n),
        };
        self.state = state;
        Poll::Ready(stream.send_data(data, is_end).map_err(io_error).map(|()| taken))
    }

    /// What comes up to `end`, with it, and how many of `bytes` that takes. `None`: all of `bytes` was kept, and more is needed.
    fn part_until(&mut self, bytes: &[u8], end: &[u8], most: usize) -> io::Result<Option<(usize, Vec<u8>)>> {
        let find = |bytes: &[u8]| bytes.windows(end.len()).position(|window| window == end);
        if self.part.is_empty()
            && let Some(at) = find(bytes)
        {
            let len = at + end.len();
            return Ok(Some((len, bytes[..len].to_vec())));
        }
        let n_kept = self.part.len();
        // It may have begun in what was kept.
        let from = n_kept.saturating_sub(end.len() - 1);
        self.part.extend_from_slice(bytes);
        let Some(at) = find(&self.part[from..]) else {
            return match self.part.len() > most {
                true => Err(malformed(Malformed)),
                false => Ok(None),
            };
        };
        let len = from + at + end.len();
        let mut part = std::mem::take(&mut self.part);
        part.truncate(len);
        Ok(Some((len - n_kept, part)))
    }
}

pub(in crate::proxy) fn malformed(_: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a message of HTTP/1.1")
}

/// The size that a chunk's mark says.
fn size(line: &[u8]) -> io::Result<u64> {
    let digits = std::str::from_utf8(line).ok().map(str::trim_ascii_end);
    let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    size.ok_or_else(|| malformed(Malformed))
}

/// More than `proxy::http` passes on.
const HEAD_MOST: usize = 32 << 20;
/// Sixteen digits and a line end.
const LINE_MOST: usize = 18;

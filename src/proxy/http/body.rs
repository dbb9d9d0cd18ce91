//! Message bodies: where they end, and how they go on. State machines over slices that may be cut anywhere.
//!
//! Chunked bodies are checked byte by byte and go on in the chunks they came in. What is copied of the framing is
//! hexadecimal digits and CR LF, nothing else: extensions are dropped, trailers are written anew. So one read becomes
//! one copy, and the inside of a large chunk may be moved without being looked at (`Body::verbatim`).

use super::Framing;
use super::fields::{TrailerRule, check_line_ends, push_field, trailer_rule};

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// As it is: its length was said in the head, or it ends with the connection.
    Plain,
    Chunked,
}

/// A body on its way: what is still to come.
#[derive(Clone, Copy, Debug)]
pub enum Body {
    /// Nothing (more) comes.
    Done,
    /// This many bytes.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// What one call of `Body::forward` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of input that are dealt with. What is left must come again, with more behind it: it is an unfinished
    /// trailer section of `TRAILERS_BYTES_MAX` at most, or, once `done`, not part of the body.
    pub consumed: usize,
    /// Whether the body has ended.
    pub done: bool,
}

/// Why a body is broken. The request is answered with `status()` if nothing was answered yet; otherwise both connections end,
/// so that nobody takes the rest for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BodyFault {
    /// No CR LF after a chunk's data.
    ChunkEnd,
    /// A control character in an extension, or too much of extensions.
    ChunkExtension,
    /// A chunk size that is not 1 to 16 hexadecimal digits, or that is followed by something else than `;` or CR LF.
    ChunkSize,
    /// It is longer than it may be (`Body::at_most`), as its chunks say.
    TooLong,
    /// A trailer section that is malformed or too large.
    Trailer,
    /// Content-Length, Transfer-Encoding or Host in a request's trailers.
    TrailerForbidden,
    /// The connection ended before the body did.
    Truncated,
}

impl BodyFault {
    /// A short machine-readable name.
    pub fn label(self) -> &'static str {
        match self {
            BodyFault::ChunkEnd => "chunk_end",
            BodyFault::ChunkExtension => "chunk_extension",
            BodyFault::ChunkSize => "chunk_size",
            BodyFault::TooLong => "too_long",
            BodyFault::Trailer => "trailer",
            BodyFault::TrailerForbidden => "trailer_forbidden",
            BodyFault::Truncated => "truncated",
        }
    }

    /// What a client is answered that sent such a body.
    pub fn status(self) -> u16 {
        match self {
            BodyFault::TooLong => 413,
            _ => 400,
        }
    }

    /// What a person reads.
    pub fn text(self) -> &'static str {
        match self {
            BodyFault::ChunkEnd => "no line end after a chunk",
            BodyFault::ChunkExtension => "invalid chunk extension",
            BodyFault::ChunkSize => "invalid chunk size",
            BodyFault::TooLong => "the body is longer than it may be here",
            BodyFault::Trailer => "invalid trailers",
            BodyFault::TrailerForbidden => "a trailer that frames or routes the message",
            BodyFault::Truncated => "the body was cut off",
        }
    }
}

impl std::fmt::Display for BodyFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for BodyFault {}

impl Body {
    pub fn of_request(framing: Framing) -> Body {
        Body::new(framing, true)
    }

    pub fn of_response(framing: Framing) -> Body {
        Body::new(framing, false)
    }

    fn new(framing: Framing, is_request: bool) -> Body {
        match framing {
            Framing::None | Framing::Length(0) => Body::Done,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunked::new(is_request)),
            Framing::UntilClose => Body::UntilClose,
        }
    }

    /// Refuses what is longer than that many bytes of data, before any of what is too much goes on. Errors: its head says that it is.
    pub fn at_most(self, n_bytes: u64) -> Result<Body, BodyFault> {
        match self {
            Body::Length(length) if length > n_bytes => Err(BodyFault::TooLong),
            Body::Chunked(chunked) => Ok(Body::Chunked(Chunked {
                may_come: n_bytes,
                ..chunked
            })),
            body => Ok(body),
        }
    }

    /// Its trailers are left out: they could say what the head is not to say.
    pub fn without_trailers(self) -> Body {
        match self {
            Body::Chunked(chunked) => Body::Chunked(Chunked {
                drops_trailers: true,
                ..chunked
            }),
            body => body,
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Body::Done)
    }

    /// Takes what `input` has of the body and appends it to `out` in `coding`. A known length cannot become chunked.
    ///
    /// `out` grows by at most `input.len() + 64` bytes. After an error the body is broken for good.
    pub fn forward(&mut self, input: &[u8], coding: Coding, out: &mut Vec<u8>) -> Result<Progress, BodyFault> {
        match self {
            Body::Done => Ok(Progress {
                consumed: 0,
                done: true,
            }),
            Body::Length(left) => {
                let taken = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                out.extend_from_slice(&input[..taken]);
                self.advance(taken as u64);
                Ok(Progress {
                    consumed: taken,
                    done: self.is_done(),
                })
            }
            Body::Chunked(chunked) => {
                let progress = chunked.forward(input, coding, out)?;
                if progress.done {
                    *self = Body::Done;
                }
                Ok(progress)
            }
            Body::UntilClose => {
                match coding {
                    Coding::Plain => out.extend_from_slice(input),
                    Coding::Chunked => encode_chunk(input, out),
                }
                Ok(Progress {
                    consumed: input.len(),
                    done: false,
                })
            }
        }
    }

    /// How many of the next bytes go on as they are, whatever they are: they may be moved without passing through
    /// `forward`, if `advance` is told. `u64::MAX` up to the end of the connection.
    pub fn verbatim(&self, coding: Coding) -> u64 {
        match self {
            Body::Length(left) => *left,
            Body::Chunked(chunked) if chunked.state == State::Data => chunked.left,
            Body::UntilClose if coding == Coding::Plain => u64::MAX,
            Body::Chunked(_) | Body::Done | Body::UntilClose => 0,
        }
    }

    /// Tells that `moved` bytes, `verbatim` at most, went by unseen.
    pub fn advance(&mut self, moved: u64) {
        match self {
            Body::Length(left) => match left.saturating_sub(moved) {
                0 => *self = Body::Done,
                rest => *left = rest,
            },
            Body::Chunked(chunked) => chunked.advance(moved),
            Body::Done | Body::UntilClose => {}
        }
    }

    /// Tells that the connection was closed in order. Completes a body that ends so; any other is `Truncated`.
    pub fn end_of_input(&mut self, coding: Coding, out: &mut Vec<u8>) -> Result<(), BodyFault> {
        match self {
            Body::Done => Ok(()),
            Body::UntilClose => {
                if coding == Coding::Chunked {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                *self = Body::Done;
                Ok(())
            }
            Body::Chunked(_) | Body::Length(_) => Err(BodyFault::Truncated),
        }
    }
}

/// Writes `data` as one chunk; nothing if it is empty, since an empty chunk ends the body.
pub fn encode_chunk(data: &[u8], out: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut rest = data.len();
    while rest > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest % 16];
        rest /= 16;
    }
    out.reserve(data.len() + 20);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// A chunked body on its way.
#[derive(Clone, Copy, Debug)]
pub struct Chunked {
    state: State,
    is_request: bool,
    n_digits: u8,
    /// Bytes of this chunk's extensions.
    extension_bytes: u16,
    /// Bytes of extensions beyond those that data has paid for.
    unpaid_bytes: u64,
    /// Bytes of data left in this chunk.
    left: u64,
    /// Bytes of data that chunks after this one may have.
    may_come: u64,
    drops_trailers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLineFeed,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    Trailers,
    Done,
}

impl Chunked {
    fn new(is_request: bool) -> Chunked {
        Chunked {
            state: State::Size,
            is_request,
            n_digits: 0,
            extension_bytes: 0,
            unpaid_bytes: 0,
            left: 0,
            may_come: u64::MAX,
            drops_trailers: false,
        }
    }

    fn advance(&mut self, moved: u64) {
        self.left = self.left.saturating_sub(moved);
        if self.left == 0 && self.state == State::Data {
            self.state = State::DataCarriageReturn;
        }
    }

    fn forward(&mut self, input: &[u8], coding: Coding, out: &mut Vec<u8>) -> Result<Progress, BodyFault> {
        let mut kept = Kept { input, run: 0..0, out };
        let mut at = 0;
        while let Some(&b) = input.get(at) {
            match self.state {
                State::Size => match hex_digit(b) {
                    Some(digit) => {
                        if self.n_digits == SIZE_DIGITS_MAX {
                            return Err(BodyFault::ChunkSize);
                        }
                        self.n_digits += 1;
                        self.left = self.left << 4 | u64::from(digit);
                        kept.framing(at, coding);
                        at += 1;
                    }
                    None if self.n_digits == 0 => return Err(BodyFault::ChunkSize),
                    None => {
                        self.state = match b {
                            b'\r' => State::SizeLineFeed,
                            b';' => State::Extension,
                            _ => return Err(BodyFault::ChunkSize),
                        };
                        if b == b'\r' {
                            kept.framing(at, coding);
                        } else {
                            self.extension_bytes += 1;
                        }
                        at += 1;
                    }
                },
                State::Extension => {
                    match b {
                        b'\r' => {
                            self.state = State::SizeLineFeed;
                            kept.framing(at, coding);
                        }
                        b'\t' | b' '..=0x7e | 0x80.. if self.extension_bytes < EXTENSION_BYTES_MAX => {
                            self.extension_bytes += 1;
                        }
                        _ => return Err(BodyFault::ChunkExtension),
                    }
                    at += 1;
                }
                State::SizeLineFeed => {
                    if b != b'\n' {
                        return Err(match self.extension_bytes {
                            0 => BodyFault::ChunkSize,
                            _ => BodyFault::ChunkExtension,
                        });
                    }
                    kept.framing(at, coding);
                    at += 1;
                    self.start_chunk()?;
                }
                State::Data => {
                    let rest = input.len() - at;
                    let taken = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                    kept.take(at..at + taken);
                    at += taken;
                    self.advance(taken as u64);
                }
                State::DataCarriageReturn => {
                    if b != b'\r' {
                        return Err(BodyFault::ChunkEnd);
                    }
                    kept.framing(at, coding);
                    at += 1;
                    self.state = State::DataLineFeed;
                }
                State::DataLineFeed => {
                    if b != b'\n' {
                        return Err(BodyFault::ChunkEnd);
                    }
                    kept.framing(at, coding);
                    at += 1;
                    self.state = State::Size;
                    self.n_digits = 0;
                }
                State::Trailers => {
                    kept.flush();
                    match self.trailers(&input[at..], coding, kept.out)? {
                        Some(length) => {
                            at += length;
                            self.state = State::Done;
                        }
                        None => break,
                    }
                }
                State::Done => break,
            }
        }
        kept.flush();
        Ok(Progress {
            consumed: at,
            done: self.state == State::Done,
        })
    }

    /// The chunk's first line is complete.
    fn start_chunk(&mut self) -> Result<(), BodyFault> {
        // Tiny chunks with long extensions would make a few bytes of body cost a lot of reading.
        self.unpaid_bytes = (self.unpaid_bytes + u64::from(self.extension_bytes)).saturating_sub(self.left);
        if self.unpaid_bytes > UNPAID_BYTES_MAX {
            return Err(BodyFault::ChunkExtension);
        }
        self.extension_bytes = 0;
        self.may_come = self.may_come.checked_sub(self.left).ok_or(BodyFault::TooLong)?;
        self.state = match self.left {
            0 => State::Trailers,
            _ => State::Data,
        };
        Ok(())
    }

    /// Reads the trailer section, which must be whole; writes what of it may go on. Returns its length in `input`.
    fn trailers(&self, input: &[u8], coding: Coding, out: &mut Vec<u8>) -> Result<Option<usize>, BodyFault> {
        let mut slots = [httparse::EMPTY_HEADER; TRAILERS_MAX];
        let window = &input[..input.len().min(TRAILERS_BYTES_MAX)];
        let (length, fields) = match httparse::parse_headers(window, &mut slots) {
            Ok(httparse::Status::Complete(complete)) => complete,
            Ok(httparse::Status::Partial) if window.len() < TRAILERS_BYTES_MAX => return Ok(None),
            _ => return Err(BodyFault::Trailer),
        };
        let section = &input[..length];
        let is_strict = match fields.split_first() {
            Some((first, rest)) => first.name.as_ptr() == section.as_ptr() && check_line_ends(section, rest).is_ok(),
            None => section == b"\r\n",
        };
        if !is_strict {
            return Err(BodyFault::Trailer);
        }
        for field in fields {
            match trailer_rule(field.name) {
                TrailerRule::Keep if coding == Coding::Chunked && !self.drops_trailers => {
                    push_field(field.name, field.value, out)
                }
                TrailerRule::Refuse if self.is_request => return Err(BodyFault::TrailerForbidden),
                TrailerRule::Drop | TrailerRule::Keep | TrailerRule::Refuse => {}
            }
        }
        if coding == Coding::Chunked {
            out.extend_from_slice(b"\r\n");
        }
        Ok(Some(length))
    }
}

/// The parts of the input that go on, copied in runs as long as possible.
struct Kept<'a> {
    input: &'a [u8],
    run: std::ops::Range<usize>,
    out: &'a mut Vec<u8>,
}

impl Kept<'_> {
    fn take(&mut self, part: std::ops::Range<usize>) {
        if self.run.end != part.start {
            self.flush();
            self.run.start = part.start;
        }
        self.run.end = part.end;
    }

    /// One byte of chunk framing, already checked.
    fn framing(&mut self, at: usize, coding: Coding) {
        if coding == Coding::Chunked {
            self.take(at..at + 1);
        }
    }

    fn flush(&mut self) {
        self.out.extend_from_slice(&self.input[self.run.clone()]);
        self.run.start = self.run.end;
    }
}

fn hex_digit(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

/// 64 bits: one digit more could overflow.
const SIZE_DIGITS_MAX: u8 = 16;
/// Extensions of one chunk. The longest in use, signatures, have some 90 bytes.
const EXTENSION_BYTES_MAX: u16 = 256;
const UNPAID_BYTES_MAX: u64 = 16 * 1024;
/// The longest trailer section, in bytes: an input buffer must hold it whole.
pub const TRAILERS_BYTES_MAX: usize = 8 * 1024;
const TRAILERS_MAX: usize = 32;

#[cfg(test)]
mod tests;

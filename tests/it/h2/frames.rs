//! A client that speaks HTTP/2 in raw frames, so that it can say what no library would. Not here: a reader of fields; of an answer
//! it reads the status alone, which is why it should be told not to use a table (`NO_TABLE`) where it reads more than one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::harness::dial;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
/// A HEADERS frame has the fields of a PRIORITY frame.
pub const WITH_PRIORITY: u8 = 0x20;
/// A whole request in one frame.
pub const WHOLE: u8 = END_STREAM | END_HEADERS;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const HEADER_TABLE_SIZE: u16 = 1;
pub const ENABLE_PUSH: u16 = 2;
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;
pub const MAX_FRAME_SIZE: u16 = 5;
pub const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Settings of a client that reads answers without a table.
pub const NO_TABLE: &[(u16, u32)] = &[(HEADER_TABLE_SIZE, 0)];

/// A frame of any kind, right or wrong. `stream` may have its reserved bit set.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

pub fn continuation(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(CONTINUATION, flags, stream, block)
}

pub fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

pub fn rst(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn settings(of: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in of {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

pub fn ping(flags: u8, payload: &[u8; 8]) -> Vec<u8> {
    frame(PING, flags, 0, payload)
}

pub fn window_update(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

pub fn goaway(stream: u32, code: u32) -> Vec<u8> {
    let payload = [0u32.to_be_bytes(), code.to_be_bytes()].concat();
    frame(GOAWAY, 0, stream, &payload)
}

/// What a PRIORITY frame holds. `weight` is one less than what it stands for; `on` may have the exclusive bit set.
pub fn dependency(on: u32, weight: u8) -> Vec<u8> {
    let mut payload = on.to_be_bytes().to_vec();
    payload.push(weight);
    payload
}

pub fn priority(stream: u32, on: u32, weight: u8) -> Vec<u8> {
    frame(PRIORITY, 0, stream, &dependency(on, weight))
}

/// An integer after `first` with a prefix of so many bits (RFC 7541 5.1).
pub fn integer(first: u8, prefix_bits: u8, value: usize) -> Vec<u8> {
    let most = (1usize << prefix_bits) - 1;
    if value < most {
        return vec![first | u8::try_from(value).unwrap()];
    }
    let mut out = vec![first | u8::try_from(most).unwrap()];
    let mut rest = value - most;
    while rest >= 128 {
        out.push(u8::try_from(rest & 127).unwrap() | 128);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap());
    out
}

/// A field, literally, that enters no table.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        out.extend(integer(0, 7, text.len()));
        out.extend(text);
    }
    out
}

pub fn fields(of: &[(&str, &str)]) -> Vec<u8> {
    let literals = of
        .iter()
        .map(|(name, value)| literal(name.as_bytes(), value.as_bytes()));
    literals.collect::<Vec<_>>().concat()
}

/// A request's block: pseudo fields, and `more`.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "web"),
    ];
    [fields(&pseudo), fields(more)].concat()
}

pub fn get() -> Vec<u8> {
    request("GET", "/", &[])
}

pub fn post() -> Vec<u8> {
    request("POST", "/", &[])
}

/// A frame that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        self.payload
            .get(at..at + 4)
            .map_or(u32::MAX, |code| u32::from_be_bytes(code.try_into().unwrap()))
    }

    pub fn is_ack(&self) -> bool {
        self.flags & ACK != 0
    }

    /// Whether its stream ends with it.
    pub fn ends_stream(&self) -> bool {
        match self.kind {
            DATA | HEADERS => self.flags & END_STREAM != 0,
            RST_STREAM => true,
            _ => false,
        }
    }

    /// The status of an answer, which is first in its block.
    pub fn status(&self) -> Option<u16> {
        let mut block = &self.payload[..];
        // Changes of the table's size, in one byte each: to 0 and the like.
        while let [first, rest @ ..] = block
            && first & 0xe0 == 0x20
            && first & 0x1f < 0x1f
        {
            block = rest;
        }
        match block {
            [index @ 0x88..=0x8e, ..] => Some([200, 204, 206, 304, 400, 404, 500][usize::from(index - 0x88)]),
            // With the name at index 8 of the static table: indexed, not indexed, never indexed.
            [0x48 | 0x08 | 0x18, len, value @ ..] => {
                let text = value.get(..usize::from(len & 127))?;
                match len & 128 == 0 {
                    true => std::str::from_utf8(text).ok()?.parse().ok(),
                    false => huffman_digits(text),
                }
            }
            _ => None,
        }
    }
}

/// Three digits in RFC 7541's code: 0 to 2 have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> Option<u16> {
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | bits.next()?;
        }
        let digit = match code {
            0..=2 => code,
            _ => (code << 1 | bits.next()?).checked_sub(0b01_0110)?,
        };
        number = number * 10 + digit;
    }
    Some(number)
}

/// What comes of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Frame(Frame),
    /// The connection is over, by an end or a reset.
    Closed,
    /// Nothing came for as long as the client waits.
    Silence,
}

pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    /// What the server declared.
    pub settings: Vec<(u16, u32)>,
    /// GOAWAYs that came while something else was waited for.
    pub gone: Option<u32>,
}

impl Client {
    /// Connects and says nothing.
    pub fn mute(addr: SocketAddr) -> Client {
        Client::over(dial(addr))
    }

    pub fn over(stream: TcpStream) -> Client {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        Client {
            stream,
            buffer: Vec::new(),
            settings: Vec::new(),
            gone: None,
        }
    }

    pub fn connect(addr: SocketAddr) -> Client {
        Client::connect_with(addr, &[])
    }

    /// Connects, declares `own` settings, and goes on once both sides' have been acknowledged.
    pub fn connect_with(addr: SocketAddr, own: &[(u16, u32)]) -> Client {
        let mut client = Client::mute(addr);
        client.shake_hands(own);
        client
    }

    pub fn shake_hands(&mut self, own: &[(u16, u32)]) {
        self.say(&[PREFACE.to_vec(), settings(own)]);
        let first = self.next();
        let Event::Frame(first) = first else {
            panic!("{first:?} in place of SETTINGS")
        };
        assert_eq!(
            (first.kind, first.is_ack(), first.stream),
            (SETTINGS, false, 0),
            "{first:?}"
        );
        for setting in first.payload.chunks(6) {
            let (id, value) = setting.split_at(2);
            let value = u32::from_be_bytes(value.try_into().unwrap());
            self.settings.push((u16::from_be_bytes(id.try_into().unwrap()), value));
        }
        self.say(&[frame(SETTINGS, ACK, 0, &[])]);
        self.wait_for("the acknowledgement of settings", |frame| {
            frame.kind == SETTINGS && frame.is_ack()
        });
    }

    /// Sends frames. Whether a server takes them that has had enough is its affair. `false`: it does not.
    pub fn say(&mut self, frames: &[Vec<u8>]) -> bool {
        self.stream.write_all(&frames.concat()).is_ok()
    }

    pub fn next(&mut self) -> Event {
        loop {
            if let Some(frame) = self.take_frame() {
                if frame.kind == GOAWAY {
                    self.gone = Some(frame.code());
                }
                return Event::Frame(frame);
            }
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Event::Closed,
                Ok(n) => self.buffer.extend(&bytes[..n]),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Event::Silence;
                }
                Err(_) => return Event::Closed,
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let head = self.buffer.get(..9)?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.buffer.get(9..9 + len)?.to_vec();
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap()) & (u32::MAX >> 1);
        let (kind, flags) = (head[3], head[4]);
        self.buffer.drain(..9 + len);
        Some(Frame {
            kind,
            flags,
            stream,
            payload,
        })
    }

    /// Reads until a frame is one that is waited for.
    pub fn wait_for(&mut self, what: &str, mut is_it: impl FnMut(&Frame) -> bool) -> Frame {
        loop {
            match self.next() {
                Event::Frame(frame) if is_it(&frame) => return frame,
                Event::Frame(_) => {}
                event => panic!("{event:?} while waiting for {what}; gone: {:?}", self.gone),
            }
        }
    }

    /// Reads until a stream has ended.
    pub fn wait_for_end(&mut self, stream: u32) -> Frame {
        self.wait_for("the stream's end", |frame| {
            frame.stream == stream && frame.ends_stream()
        })
    }

    /// Reads all that comes until the connection is over, and returns the last GOAWAY's code. `Err`: it is not over.
    pub fn read_to_close(&mut self) -> Result<Option<u32>, Option<u32>> {
        loop {
            match self.next() {
                Event::Frame(_) => {}
                Event::Closed => return Ok(self.gone),
                Event::Silence => return Err(self.gone),
            }
        }
    }

    /// One request without a body, answered in whole: its status and body.
    pub fn ask(&mut self, stream: u32, block: &[u8]) -> (Option<u16>, Vec<u8>) {
        self.say(&[headers(stream, WHOLE, block)]);
        self.read_answer(stream)
    }

    /// `None`: there is no answer, but a reset.
    pub fn read_answer(&mut self, stream: u32) -> (Option<u16>, Vec<u8>) {
        let (mut status, mut body) = (None, Vec::new());
        loop {
            let frame = self.wait_for("an answer", |frame| frame.stream == stream);
            match frame.kind {
                HEADERS if status.is_none_or(|status| status < 200) => {
                    status = Some(frame.status().unwrap_or_else(|| panic!("no status in {frame:?}")));
                }
                DATA => body.extend(&frame.payload),
                RST_STREAM => return (status.filter(|_| frame.code() == NO_ERROR), body),
                _ => {}
            }
            if frame.ends_stream() {
                return (status, body);
            }
        }
    }
}

/// How long a client waits for anything. A server that has nothing to say must be waited for as long.
const SILENCE: Duration = Duration::from_secs(10);

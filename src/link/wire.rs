//! What nodes say to each other: JSON messages in frames with a length before them, bounded in size and time. Fields and
//! messages that a version does not know are ignored, so that versions may differ during an update.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::codec::{Decoder, Encoder, Framed, LengthDelimitedCodec};

use crate::model::{ClusterChange, ClusterDigest};

pub(super) const ALPN_CONTROL: &[u8] = b"anynode-control/1";
pub(super) const ALPN_TUNNEL: &[u8] = b"anynode-tunnel/1";
pub(super) const ALPN_JOIN: &[u8] = b"anynode-join/2";

/// How a node is, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeReport {
    pub version: String,
    /// Of this run of the program.
    pub instance: u64,
    /// Of the cluster that it serves by.
    pub revision: u64,
    pub digest: ClusterDigest,
    /// It learns the cluster itself, and gives it to others.
    #[serde(default)]
    pub is_source: bool,
    /// It accepts no more.
    #[serde(default)]
    pub is_draining: bool,
}

/// From the node that opened a control connection.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Ask {
    Ping {
        n: u64,
        report: NodeReport,
    },
    /// Send the cluster from now on, beginning with what differs from this.
    Subscribe {
        revision: u64,
        digest: ClusterDigest,
    },
    /// The change that led to this was taken; the next may come.
    Taken {
        revision: u64,
        digest: ClusterDigest,
    },
    /// A new certificate for this key (hexadecimal).
    Renew {
        public_key: String,
    },
    Call {
        id: u64,
        method: String,
        body: serde_json::Value,
    },
    #[serde(other)]
    Unknown,
}

/// From the node that accepted it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Answer {
    Pong {
        n: u64,
        report: NodeReport,
    },
    Change {
        change: ClusterChange,
    },
    Renewed {
        certificate_pem: String,
        authority_pem: String,
    },
    Result {
        id: u64,
        ok: Option<serde_json::Value>,
        error: Option<String>,
    },
    /// What was asked is not given, and why.
    Refused {
        what: String,
        reason: String,
    },
    #[serde(other)]
    Unknown,
}

/// A frame may be so long: a whole cluster, or anything else.
pub(super) const CLUSTER_BYTES_MAX: usize = 64 << 20;
pub(super) const FRAME_BYTES_MAX: usize = 64 << 10;
/// What a node that gives no cluster may answer, as to a call.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Whoever takes less than `WRITE_LEAST` bytes of a frame in this time is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
const WRITE_LEAST: usize = 64 << 10;

/// A stream of messages.
pub(super) struct Messages<S> {
    framed: Framed<Heard<S>, Frames>,
}

/// A stream that knows when something last came.
struct Heard<S> {
    stream: S,
    at: Instant,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.at = Instant::now();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Frames in are bounded by what this side takes, frames out by what any takes.
struct Frames {
    input: LengthDelimitedCodec,
    output: LengthDelimitedCodec,
}

impl Decoder for Frames {
    type Item = BytesMut;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<BytesMut>> {
        self.input.decode(bytes)
    }
}

impl Encoder<Bytes> for Frames {
    type Error = io::Error;

    fn encode(&mut self, frame: Bytes, bytes: &mut BytesMut) -> io::Result<()> {
        self.output.encode(frame, bytes)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Messages<S> {
    /// `most`: how long a frame of the peer may be.
    pub(super) fn new(stream: S, most: usize) -> Messages<S> {
        let codec = |most| LengthDelimitedCodec::builder().max_frame_length(most).new_codec();
        let frames = Frames {
            input: codec(most),
            output: codec(CLUSTER_BYTES_MAX),
        };
        let at = Instant::now();
        Messages {
            framed: Framed::new(Heard { stream, at }, frames),
        }
    }

    /// When the peer's last byte came: a long frame takes its time.
    pub(super) fn heard_at(&self) -> Instant {
        self.framed.get_ref().at
    }

    /// The next message. Errors: the stream ended or failed, or the frame is too long or no such message.
    /// Cancel-safe: nothing is lost when it is dropped.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let frame = self.framed.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        serde_json::from_slice(&frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Sends a message to a peer that takes it, however slowly, but not to one that has stopped. Not cancel-safe.
    pub(super) async fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let text = serde_json::to_vec(message).map_err(io::Error::other)?;
        // Everything before was flushed: this only moves it into the buffer.
        self.framed.feed(Bytes::from(text)).await?;
        loop {
            let left = self.framed.write_buffer().len();
            match tokio::time::timeout(WRITE_PATIENCE, SinkExt::<Bytes>::flush(&mut self.framed)).await {
                Ok(sent) => return sent,
                Err(_) if self.framed.write_buffer().len() + WRITE_LEAST <= left => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

/// How many messages a peer may send: far more than any that means well.
pub(super) struct Budget {
    since: Instant,
    n: u32,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            since: Instant::now(),
            n: 0,
        }
    }
}

impl Budget {
    pub(super) fn spend(&mut self, cost: u32) -> io::Result<()> {
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Budget::default();
        }
        self.n += cost;
        match self.n {
            ..=MESSAGES_PER_SECOND => Ok(()),
            _ => Err(io::Error::other("more messages than any node has reason to send")),
        }
    }
}

const MESSAGES_PER_SECOND: u32 = 1000;

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

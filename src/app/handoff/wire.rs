//! What the two instances say to each other: one message of JSON at a time, bounded, with the descriptors that it names.
//! Not here: in what order (`give`, `take`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::model::swarm::UnlockKey;
use crate::routing::Listen;
use crate::sys::handoff;

/// The protocol's; one that differs is refused.
pub(super) const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// New: it wants to take over.
    Hello(Hello),
    /// Old: what the descriptors of this message are, in their order.
    Lent(Vec<Key>),
    /// Old: that was all.
    End { instance: String, n_sockets: usize },
    /// New: it has no use for these. May be said several times.
    Left(Vec<Key>),
    /// New: it is a swarm by itself, whose store two cannot have open.
    Release,
    /// Old: it has let go of the store, and this unlocks it if it is locked.
    Released { unlock_key: Option<UnlockKey> },
    /// New: it accepts from now on.
    Ready,
    /// Old: not now, or not with you.
    Refused { reason: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    /// Random, for logs.
    pub(super) instance: String,
    pub(super) n_workers: usize,
    /// The network namespace: sockets of another are of no use. 0: not known.
    pub(super) network: u64,
}

/// What a socket is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Key {
    Port(Option<IpAddr>, u16),
    Named(String),
}

impl Key {
    pub(super) fn of(listen: Listen) -> Key {
        Key::Port(listen.ip, listen.port)
    }
}

/// One end of the conversation.
pub(super) struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Errors: the runtime cannot watch it.
    pub(super) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Channel> {
        Ok(Channel {
            stream: UnixStream::from_std(stream)?,
        })
    }

    pub(super) fn accepted(stream: UnixStream) -> Channel {
        Channel { stream }
    }

    /// The user of the other end, if it is neither ours nor root.
    pub(super) fn stranger(&self) -> io::Result<Option<u32>> {
        let uid = self.stream.peer_cred()?.uid();
        let is_known = uid == 0 || uid == rustix::process::geteuid().as_raw();
        Ok((!is_known).then_some(uid))
    }

    /// Sends one message. Errors: `BrokenPipe` or `ConnectionReset` when the other end takes none.
    pub(super) async fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        loop {
            self.stream.writable().await?;
            let send = || handoff::send(self.stream.as_fd(), &bytes, fds);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Too many descriptors are on their way: the other end has yet to take them.
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => tokio::time::sleep(PAUSE).await,
                result => return result,
            }
        }
    }

    /// The next message and its descriptors; `None`: the other end is closed.
    ///
    /// Errors: `InvalidData` for what is no message.
    pub(super) async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; handoff::BYTES_MAX];
        let mut is_reset = false;
        let (n, fds) = loop {
            let receive = || handoff::receive(self.stream.as_fd(), &mut buffer);
            match self.stream.async_io(Interest::READABLE, receive).await {
                Ok((0, _)) => return Ok(None),
                Ok(received) => break received,
                // It has not read all that we said. That is said once, and before what it has said.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !is_reset => is_reset = true,
                Err(error) => return Err(error),
            }
        };
        let message: Message = serde_json::from_slice(&buffer[..n])?;
        let n_named = match &message {
            Message::Lent(keys) => keys.len(),
            _ => 0,
        };
        match n_named == fds.len() {
            true => Ok(Some((message, fds))),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} descriptors, where {n_named} are named", fds.len()),
            )),
        }
    }

    /// Has the other end's next `send` fail. What was sent before can be received.
    pub(super) fn refuse_more(&self) -> io::Result<()> {
        handoff::refuse_more(&self.stream)
    }
}

const PAUSE: Duration = Duration::from_millis(5);

//! The old instance's side: it answers at `handoff.sock`, lends its sockets to whoever asks, and is done when that one
//! is ready.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::wire::{Channel, Hello, Key, Message, VERSION};
use super::{DOOR, LOCK, PATIENCE, READY_WITHIN, RELEASE_WITHIN};
use crate::app::datadir::DataDirLock;
use crate::model::swarm::UnlockKey;
use crate::proxy::ProxyHandle;
use crate::routing::Listen;
use crate::sys::handoff;

/// What a node offers to the next instance.
pub(in crate::app) struct Offer {
    pub(in crate::app) lock: DataDirLock,
    pub(in crate::app) door: Option<UnixListener>,
    pub(in crate::app) instance: String,
    /// Duplicates of sockets besides those of ports, each with its name.
    pub(in crate::app) named: Vec<(String, OwnedFd)>,
    pub(in crate::app) proxy: ProxyHandle,
    /// Whether the data directory is ours to write to.
    pub(in crate::app) may_write: watch::Sender<bool>,
    /// `None`: it is no swarm by itself.
    pub(in crate::app) release: Option<OwnRelease>,
}

/// How the store of a swarm of our own is let go of.
pub(in crate::app) struct OwnRelease {
    /// Whether it is to be.
    pub(in crate::app) asked: watch::Sender<bool>,
    /// Once it is: what unlocks it, if it is locked.
    pub(in crate::app) released: watch::Receiver<Option<Option<UnlockKey>>>,
    /// It was let go of in vain: this instance cannot go on.
    pub(in crate::app) is_lost: watch::Sender<bool>,
}

impl OwnRelease {
    /// Errors: it takes too long.
    async fn release(&self) -> io::Result<Option<UnlockKey>> {
        tracing::info!("letting go of the store, and serving what is known");
        self.asked.send_replace(true);
        let mut released = self.released.clone();
        let released = timeout(RELEASE_WITHIN, released.wait_for(Option::is_some)).await?;
        let released = released.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(released.clone().flatten())
    }
}

/// What another instance has taken over from this one.
#[derive(Debug, Clone, Default)]
pub(in crate::app) struct Succession {
    /// Names of sockets that it has no use for.
    left: HashSet<String>,
}

impl Succession {
    /// Whether it takes what was lent under `name`.
    pub(in crate::app) fn takes(&self, name: &str) -> bool {
        !self.left.contains(name)
    }
}

impl Offer {
    /// Answers until another instance has taken over, which is then said in `succession`, or until `shutdown`. The lock is
    /// held until then.
    pub(in crate::app) async fn run(
        mut self,
        succession: watch::Sender<Option<Succession>>,
        shutdown: impl Future<Output = ()>,
    ) {
        tokio::pin!(shutdown);
        let door = self.door.take().map(tokio::net::UnixListener::from_std).transpose();
        let door = match door {
            Ok(Some(door)) => door,
            Ok(None) => return shutdown.await,
            Err(error) => {
                tracing::warn!(%error, "handoff: watch the socket");
                return shutdown.await;
            }
        };
        let offer = Arc::new((self, Semaphore::new(1)));
        let door = Arc::new(door);
        let mut visits = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(ended) = visits.join_next() => if let Ok(Some(taken)) = ended {
                    succession.send_replace(Some(taken));
                    break;
                },
                accepted = door.accept(), if visits.len() < VISITS_MAX => match accepted {
                    Ok((stream, _)) => {
                        let (offer, door) = (offer.clone(), door.clone());
                        visits.spawn(async move { visit(Channel::accepted(stream), &offer.0, &offer.1, &door).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "handoff: accept");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    /// Lends everything to an instance that said `hello`. Errors: it is gone.
    async fn lend(&self, channel: &Channel, hello: &Hello, door: BorrowedFd<'_>) -> io::Result<()> {
        // Sockets of another network would make it answer there.
        let is_same_network = hello.network == handoff::network() || hello.network == 0;
        let ports = match is_same_network {
            true => self.proxy.lend().await,
            false => Vec::new(),
        };
        let named = self.named.iter().filter(|_| is_same_network);
        let own = [
            (Key::Named(LOCK.to_owned()), self.lock.as_fd()),
            (Key::Named(DOOR.to_owned()), door),
        ];
        let named = named.map(|(name, fd)| (Key::Named(name.clone()), fd.as_fd()));
        let ports = ports.iter().map(|port| (Key::of(port.listen), port.as_fd()));
        let all: Vec<(Key, BorrowedFd<'_>)> = own.into_iter().chain(named).chain(ports).collect();
        for batch in all.chunks(handoff::FDS_MAX) {
            let (keys, fds): (Vec<Key>, Vec<BorrowedFd<'_>>) = batch.iter().cloned().unzip();
            timeout(PATIENCE, channel.send(&Message::Lent(keys), &fds)).await??;
        }
        let end = Message::End {
            instance: self.instance.clone(),
            n_sockets: all.len(),
        };
        timeout(PATIENCE, channel.send(&end, &[])).await?
    }
}

/// Sees one visitor through. `Some`: it has taken over.
async fn visit(
    channel: Channel,
    offer: &Offer,
    turn: &Semaphore,
    door: &tokio::net::UnixListener,
) -> Option<Succession> {
    let hello = match greet(&channel).await {
        Ok(hello) => hello,
        Err(error) => {
            tracing::warn!(%error, "handoff: a visitor that is no new instance");
            let reason = error.to_string();
            // An error means that it is gone.
            let _ = timeout(PATIENCE, channel.send(&Message::Refused { reason }, &[])).await;
            return None;
        }
    };
    let refuse = async |reason: String| {
        tracing::warn!(to = hello.instance, reason, "not handed over, going on as before");
        // An error means that it is gone.
        let _ = timeout(PATIENCE, channel.send(&Message::Refused { reason }, &[])).await;
    };
    if hello.version != VERSION {
        let theirs = hello.version;
        refuse(format!("it speaks version {VERSION} of the handoff, not {theirs}")).await;
        return None;
    }
    let Ok(_turn) = turn.try_acquire() else {
        refuse("another instance is taking over at this moment".to_owned()).await;
        return None;
    };
    // Aborted in the middle, which is when this node ends, nothing is taken back.
    offer.may_write.send_replace(false);
    tracing::info!(to = hello.instance, workers = hello.n_workers, "handing over");
    let lent = offer.lend(&channel, &hello, door.as_fd()).await;
    let taken = match lent {
        Ok(()) => ready(&channel, offer.release.as_ref()).await,
        Err(error) => Err(error),
    };
    let reason = match taken {
        Ok(Some((left, succession))) => {
            offer.proxy.hand_over(left);
            tracing::info!(by = hello.instance, "superseded, accepting no more");
            return Some(succession);
        }
        Ok(None) => format!("the new one was not ready within {} seconds", READY_WITHIN.as_secs()),
        Err(error) => format!("the new one is gone or does not keep to the protocol: {error}"),
    };
    if let Some(release) = offer.release.as_ref().filter(|release| *release.asked.borrow()) {
        tracing::error!(
            reason,
            "the store was let go of and nobody takes over: this instance ends"
        );
        release.is_lost.send_replace(true);
    }
    offer.proxy.take_back();
    offer.may_write.send_replace(true);
    refuse(reason).await;
    None
}

async fn greet(channel: &Channel) -> io::Result<Hello> {
    if let Some(uid) = channel.stranger()? {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it is of user {uid}: expected this user or root"),
        ));
    }
    match timeout(PATIENCE, channel.receive()).await?? {
        Some((Message::Hello(hello), _)) => Ok(hello),
        Some((other, _)) => Err(unexpected(&other)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Waits for `ready`: what is left to us. `None`: it did not come in time, and cannot come any more.
async fn ready(channel: &Channel, own: Option<&OwnRelease>) -> io::Result<Option<(HashSet<Listen>, Succession)>> {
    let mut ports = HashSet::new();
    let mut succession = Succession::default();
    let mut until = Instant::now() + READY_WITHIN;
    let mut is_late = false;
    loop {
        let received = match timeout_at(until, channel.receive()).await {
            Ok(received) => received?,
            Err(_) if !is_late => {
                // It may be said at this very moment: from here on it either was or cannot be.
                is_late = true;
                until = Instant::now() + PATIENCE;
                channel.refuse_more()?;
                continue;
            }
            Err(_) => return Ok(None),
        };
        match received {
            Some((Message::Left(keys), _)) => {
                for key in keys {
                    match key {
                        Key::Port(ip, port) => drop(ports.insert(Listen { ip, port })),
                        Key::Named(name) => drop(succession.left.insert(name)),
                    }
                }
            }
            Some((Message::Release, _)) => {
                let own = own.ok_or_else(|| io::Error::other("this instance is no swarm by itself"))?;
                let unlock_key = own.release().await?;
                timeout(PATIENCE, channel.send(&Message::Released { unlock_key }, &[])).await??;
                until = Instant::now() + READY_WITHIN;
            }
            Some((Message::Ready, _)) => return Ok(Some((ports, succession))),
            Some((other, _)) => return Err(unexpected(&other)),
            None if is_late => return Ok(None),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not expected here: {message:?}"))
}

const VISITS_MAX: usize = 16;
const PAUSE: Duration = Duration::from_millis(100);

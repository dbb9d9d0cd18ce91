//! The new instance's side: it claims a data directory, from whoever has it, and takes over what comes with it.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::wire::{Channel, Hello, Key, Message, VERSION};
use super::{DNS, DOOR, HandoffError, LOCK, PATIENCE, RELEASE_WITHIN, SOCKET, SOURCE_WITHIN};
use crate::app::datadir::{self, DataDirError, DataDirLock};
use crate::model::swarm::UnlockKey;
use crate::proxy::Proxy;
use crate::routing::{Listen, TableHandle};
use crate::source::SourceStatus;
use crate::sys::{handoff, socket};

/// A data directory that is ours, perhaps together with the instance that had it before.
pub(in crate::app) struct Claim {
    pub(in crate::app) lock: DataDirLock,
    /// Where the next instance will knock; `None` where there can be no such place, which was said.
    pub(in crate::app) door: Option<UnixListener>,
    pub(in crate::app) instance: String,
    pub(in crate::app) inherited: Inherited,
}

/// What the instance before handed over, until it is put to use.
#[derive(Default)]
pub(in crate::app) struct Inherited {
    ports: Vec<(Listen, OwnedFd)>,
    named: HashMap<String, Vec<OwnedFd>>,
    n_taken: usize,
    has_ports: bool,
    /// Ports with a socket that is not usable: their queues are still the other instance's.
    refused: Vec<Listen>,
    before: Option<Predecessor>,
}

/// The instance that still serves.
struct Predecessor {
    channel: Channel,
    instance: String,
    path: PathBuf,
}

/// Makes and locks the data directory `path`; an instance that has it hands it over, with its sockets.
///
/// Time: an instance that does not answer is given five seconds for each message.
pub(in crate::app) async fn claim(path: &Path, n_workers: usize) -> Result<Claim, HandoffError> {
    let hello = Hello {
        version: VERSION,
        instance: format!("{:016x}", fastrand::u64(..)),
        n_workers,
        network: handoff::network(),
    };
    let mut parcel = Parcel::default();
    let mut patience = Instant::now() + STARTS_OR_ENDS_WITHIN;
    let lock = loop {
        if let Some(lock) = datadir::try_lock(path)? {
            break lock;
        }
        // Who cannot be reached starts or ends at this moment, or does not know of this. Who died after it answered holds the
        // lock until all of it is gone.
        if parcel.channel.is_none()
            && let Ok(stream) = handoff::connect(&path.join(SOCKET))
        {
            parcel = receive(stream, path, &hello).await?;
            patience = Instant::now() + PATIENCE;
            if let Some(lock) = parcel.lock.take() {
                break lock;
            }
        }
        if Instant::now() > patience {
            return Err(DataDirError::InUse { path: path.to_owned() }.into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let door = match parcel.door.take() {
        Some(door) => Ok(door),
        None => handoff::listen(&path.join(SOCKET)),
    };
    let door = door.inspect_err(|error| {
        let path = path.join(SOCKET);
        tracing::warn!(path = %path.display(), %error, "cannot listen: an update of anynode will refuse connections");
    });
    let Parcel {
        mut inherited,
        channel,
        instance,
        ..
    } = parcel;
    inherited.before = channel.map(|channel| Predecessor {
        channel,
        instance,
        path: path.to_owned(),
    });
    Ok(Claim {
        lock,
        door: door.ok(),
        instance: hello.instance,
        inherited,
    })
}

/// What came before `end`, or before the other end was gone.
#[derive(Default)]
struct Parcel {
    /// `None`: nobody was there.
    channel: Option<Channel>,
    instance: String,
    lock: Option<DataDirLock>,
    door: Option<UnixListener>,
    inherited: Inherited,
}

async fn receive(stream: std::os::unix::net::UnixStream, path: &Path, hello: &Hello) -> Result<Parcel, HandoffError> {
    let path = || path.to_owned();
    let nonsense = |error| HandoffError::Nonsense { path: path(), error };
    let silent = |_| HandoffError::Silent { path: path() };
    let channel = Channel::new(stream).map_err(nonsense)?;
    if let Some(uid) = channel.stranger().map_err(nonsense)? {
        return Err(HandoffError::Stranger { path: path(), uid });
    }
    let mut parcel = Parcel::default();
    let hello = Message::Hello(hello.clone());
    let said = timeout(PATIENCE, channel.send(&hello, &[])).await;
    // Whoever is gone is seen when nothing is received.
    drop(said.map_err(silent)?);
    let mut n_received = 0;
    while let Some((message, fds)) = timeout(PATIENCE, channel.receive())
        .await
        .map_err(silent)?
        .map_err(nonsense)?
    {
        match message {
            Message::Lent(keys) => {
                n_received += keys.len();
                for (key, fd) in keys.into_iter().zip(fds) {
                    parcel.put(key, fd, &path())?;
                }
            }
            Message::End { instance, n_sockets } if n_sockets == n_received => {
                parcel.instance = instance;
                break;
            }
            Message::Refused { reason } => return Err(HandoffError::Refused { path: path(), reason }),
            other => {
                let error = io::Error::new(io::ErrorKind::InvalidData, format!("not expected here: {other:?}"));
                return Err(nonsense(error));
            }
        }
    }
    parcel.channel = Some(channel);
    Ok(parcel)
}

impl Parcel {
    fn put(&mut self, key: Key, fd: OwnedFd, path: &Path) -> Result<(), HandoffError> {
        match key {
            Key::Port(ip, port) => self.inherited.ports.push((Listen { ip, port }, fd)),
            Key::Named(name) if name == LOCK => self.lock = Some(datadir::adopt(path, fd)?),
            Key::Named(name) if name == DOOR => {
                self.door = handoff::is_listener(&fd).then(|| UnixListener::from(fd));
            }
            Key::Named(name) => self.inherited.named.entry(name).or_default().push(fd),
        }
        Ok(())
    }
}

impl Inherited {
    /// Whether another instance still serves, and waits for `finish`.
    pub(in crate::app) fn is_waited_for(&self) -> bool {
        self.before.is_some()
    }

    /// Has the instance before let go of the store of the swarm that it is by itself, and answers what unlocks that if it is
    /// locked. From then on it does not go on as before. Nobody before, or one that is gone, has let go.
    pub(in crate::app) async fn release(&self) -> Result<Option<UnlockKey>, HandoffError> {
        let Some(before) = &self.before else { return Ok(None) };
        let path = || before.path.clone();
        let said = timeout(PATIENCE, before.channel.send(&Message::Release, &[])).await;
        // Whoever is gone is seen when nothing is received.
        drop(said.map_err(|_| HandoffError::Silent { path: path() })?);
        match timeout(RELEASE_WITHIN + PATIENCE, before.channel.receive()).await {
            Err(_) => Err(HandoffError::Silent { path: path() }),
            Ok(Ok(Some((Message::Released { unlock_key }, _)))) => Ok(unlock_key),
            Ok(Ok(Some((Message::Refused { reason }, _)))) => Err(HandoffError::Refused { path: path(), reason }),
            Ok(Ok(Some((other, _)))) => Err(HandoffError::Nonsense {
                path: path(),
                error: io::Error::new(io::ErrorKind::InvalidData, format!("not expected here: {other:?}")),
            }),
            Ok(Ok(None) | Err(_)) => Ok(None),
        }
    }

    /// The sockets that were lent under `name`, in their order.
    pub(in crate::app) fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let fds = self.named.remove(name).unwrap_or_default();
        self.n_taken += fds.len();
        fds
    }

    /// Gives up what was lent under `name`: whoever lent it lets go of it too.
    pub(in crate::app) fn give_up(&mut self, name: &str) {
        self.named.remove(name);
    }

    /// The one listener that was lent under `name`, if it listens at `addr` (port 0: at any port).
    pub(in crate::app) fn take_listener(&mut self, name: &str, addr: SocketAddr) -> Option<TcpListener> {
        let [fd] = self.named.get(name)?.as_slice() else {
            return None;
        };
        is_at(socket::listens_at(fd)?, addr).then_some(())?;
        self.take(name).pop().map(TcpListener::from)
    }

    /// The DNS server's sockets, and where they are, if that is `addr`.
    pub(in crate::app) fn take_dns(&mut self, addr: SocketAddr) -> Option<(SocketAddr, UdpSocket, TcpListener)> {
        let [udp, tcp] = self.named.get(DNS)?.as_slice() else {
            return None;
        };
        let at = socket::receives_at(udp)?;
        (is_at(at, addr) && socket::listens_at(tcp)? == at).then_some(())?;
        let mut both = self.take(DNS).into_iter();
        Some((at, both.next()?.into(), both.next()?.into()))
    }

    /// The published ports' listeners. What is something else is dropped.
    pub(in crate::app) fn take_ports(&mut self, liveness: &socket::Liveness) -> Vec<(Listen, TcpListener)> {
        self.has_ports = !self.ports.is_empty();
        let mut usable = Vec::new();
        for (listen, fd) in std::mem::take(&mut self.ports) {
            match socket::adopt_listener(fd, listen.ip, listen.port, liveness) {
                Ok(listener) => usable.push((listen, listener)),
                Err(error) => {
                    tracing::warn!(%listen, %error, "handed over, and not usable");
                    self.refused.push(listen);
                }
            }
        }
        usable
    }

    /// Brings `proxy` to the table, and has the instance before accept no more; from then on it is done here. Where there is
    /// no table yet, the source has ten seconds to bring one.
    ///
    /// Errors: the other instance goes on as before, and this one must not begin. Cancelled, that is so as well.
    pub(in crate::app) async fn finish(
        mut self,
        proxy: &mut Proxy,
        table: &TableHandle,
        source: &SourceStatus,
    ) -> Result<(), HandoffError> {
        let until = Instant::now() + SOURCE_WITHIN;
        while self.has_ports && table.load().is_empty() && !source.is_current() {
            if Instant::now() > until
                && let Some(before) = self.before
            {
                // Everything would be closed.
                return Err(HandoffError::NoTable { path: before.path });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        proxy.settle();
        let adopted = proxy.end_adopting();
        let ports = adopted.left.iter().chain(&self.refused).map(|listen| Key::of(*listen));
        let left: Vec<Key> = ports.chain(self.named.keys().cloned().map(Key::Named)).collect();
        self.named.clear();
        let n_sockets = adopted.n_sockets + self.n_taken;
        if let Some(before) = &self.before {
            before.ready(&left).await?;
            tracing::info!(
                sockets = n_sockets,
                left = left.len(),
                from = before.instance,
                "took over from another instance"
            );
        }
        proxy.accept_adopted();
        let total = &proxy.ports().adopted_total;
        total.store(n_sockets as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

impl Predecessor {
    /// Errors: it has lost its patience, and goes on. An instance that is gone is none.
    async fn ready(&self, left: &[Key]) -> Result<(), HandoffError> {
        let say = async {
            for some in left.chunks(KEYS_PER_MESSAGE) {
                self.channel.send(&Message::Left(some.to_vec()), &[]).await?;
            }
            self.channel.send(&Message::Ready, &[]).await
        };
        match timeout(PATIENCE, say).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => {}
            Err(_) => {
                return Err(HandoffError::Silent {
                    path: self.path.clone(),
                });
            }
        }
        if let Ok(Ok(Some((Message::Refused { reason }, _)))) = timeout(PATIENCE, self.channel.receive()).await {
            return Err(HandoffError::Refused {
                path: self.path.clone(),
                reason,
            });
        }
        tracing::warn!(from = self.instance, "the instance before is gone");
        Ok(())
    }
}

fn is_at(at: SocketAddr, wanted: SocketAddr) -> bool {
    at.ip() == wanted.ip() && (wanted.port() == 0 || at.port() == wanted.port())
}

const KEYS_PER_MESSAGE: usize = 500;
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// An instance that has the lock and does not listen is about to, or about to end.
const STARTS_OR_ENDS_WITHIN: Duration = Duration::from_secs(1);

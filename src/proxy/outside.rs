//! Connections from inside namespaces to wherever this program's own namespace leads. Those to this machine's own addresses
//! would come from the machine itself, over its loopback: they are opened in a namespace in between (`sys::transit`), from the
//! caller's address, or not at all. Not here: what goes outside (`within`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::OwnedMutexGuard;

use super::core::OpenConnections;
use super::inside::why;
use super::upstream;
use crate::sys::entrances::Entrances;
use crate::sys::netns::{Netns, NetnsId};
use crate::sys::rtnetlink::RtNetlink;
use crate::sys::socket;
use crate::sys::transit::{self, Transit};
use crate::sys::transparent::{self, ConnectError, Inside};

thread_local! {
    /// Asks where an address is.
    static ROUTING: RefCell<Option<RtNetlink>> = const { RefCell::new(None) };
}

/// The way to this machine's own addresses: made when it is first needed.
pub(super) struct Outside {
    open: Arc<OpenConnections>,
    /// std mutex: taken by threads that may block.
    way: Mutex<Way>,
    ready: Mutex<Ready>,
    /// Held by whoever opens some sockets: the others wait for those.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Way {
    transit: Option<Transit>,
    /// How many callers an address has that is led back.
    n_callers: HashMap<Ipv4Addr, usize>,
    /// Why there is none, and since when.
    failed: Option<(Instant, String)>,
    is_over: bool,
}

/// Sockets that were opened in the transit namespace and are of no address yet. std mutex: held for moments.
#[derive(Default)]
struct Ready {
    of: Option<NetnsId>,
    sockets: Vec<Inside>,
}

/// One caller, who has a way back until this and his connections are gone.
pub(super) struct Sender {
    outside: Arc<Outside>,
    from: Option<Ipv4Addr>,
    /// `None`: it was never led back.
    led: Arc<tokio::sync::Mutex<Option<Led>>>,
}

/// When the caller's address was last seen to be led back, and to which namespace.
struct Led {
    seen_at: Instant,
    netns: Netns,
}

impl Sender {
    /// `from`: whom the caller is known as. Without, it sends nothing to this machine's own addresses.
    pub(super) fn new(outside: Arc<Outside>, from: Option<Ipv4Addr>) -> Arc<Sender> {
        Arc::new(Sender {
            outside,
            from,
            led: Arc::default(),
        })
    }

    /// One attempt at an address; at one of this machine's own from the caller's. Costs two system calls more than the attempt
    /// where it is not.
    ///
    /// Errors: `TimedOut` after `timeout`; `AddrNotAvailable` where it is this machine's and there is no way to it but from the
    /// machine itself; else what the kernel says.
    pub(super) async fn connect(self: Arc<Sender>, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        if !is_local(to.ip())? {
            return upstream::connect_once(to, timeout).await;
        }
        let from = self.from.filter(|_| to.is_ipv4());
        let from = from.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let attempt = async {
            let netns = self.lead_back(from).await?;
            let socket = self.outside.socket(&netns, to.ip()).await?;
            let made = transparent::connect_from(socket, from.into(), to)?;
            let stream = TcpStream::from_std(made.stream)?;
            if !made.is_connected {
                socket::established(&stream).await?;
            }
            Ok(stream)
        };
        match tokio::time::timeout(timeout, Box::pin(attempt)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Has answers find back; the namespace that they find back to. The kernel is asked once a second at most.
    async fn lead_back(self: &Arc<Sender>, from: Ipv4Addr) -> io::Result<Netns> {
        let led = self.led.clone().lock_owned().await;
        if let Some(led) = &*led
            && led.seen_at.elapsed() < LOOK_AGAIN
        {
            return Ok(led.netns.clone());
        }
        let sender = self.clone();
        // It may wait for the kernel's one lock of all that is routing. What has begun ends, whoever waits for it.
        let looking = tokio::task::spawn_blocking(move || sender.outside.lead_back(from, led));
        looking.await?
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let Some(from) = self.from else { return };
        // Whoever looks holds the sender.
        if !self.led.try_lock().is_ok_and(|led| led.is_some()) {
            return;
        }
        let outside = self.outside.clone();
        let forget = move || outside.forget(from);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(forget)),
            Err(_) => forget(),
        }
    }
}

impl Outside {
    pub(super) fn new(open: Arc<OpenConnections>) -> Outside {
        Outside {
            open,
            way: Mutex::default(),
            ready: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// Blocks.
    fn lead_back(&self, from: Ipv4Addr, mut led: OwnedMutexGuard<Option<Led>>) -> io::Result<Netns> {
        let mut way = lock(&self.way);
        let netns = self.way_for(&mut way, from)?;
        let now = Led {
            seen_at: Instant::now(),
            netns: netns.clone(),
        };
        if led.replace(now).is_none() {
            *way.n_callers.entry(from).or_default() += 1;
        }
        Ok(netns)
    }

    /// The namespace to open connections from that address in. Somebody may have taken it down: then it is made again.
    fn way_for(&self, way: &mut Way, from: Ipv4Addr) -> io::Result<Netns> {
        if way.is_over {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        if let Some(transit) = &mut way.transit {
            match transit.lead_back(from) {
                Ok(()) => return Ok(transit.netns().clone()),
                Err(error) => tracing::warn!("the way to the host's own addresses is made again: {}", why(&error)),
            }
            self.take_down(way);
        }
        if let Some((since, why)) = &way.failed
            && since.elapsed() < TRY_AGAIN
        {
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why.clone()));
        }
        let made = Transit::make().and_then(|mut transit| transit.lead_back(from).map(|()| transit));
        match made {
            Ok(transit) => {
                let netns = transit.netns().clone();
                way.transit = Some(transit);
                way.failed = None;
                self.open.n_kept.fetch_add(FILES, Ordering::Relaxed);
                Ok(netns)
            }
            Err(error) => {
                let why = why(&error);
                if way.failed.as_ref().is_none_or(|(_, before)| *before != why) {
                    tracing::warn!(
                        "what tasks send to the host's own addresses is refused, since it could only come from the host \
                         itself: {why}"
                    );
                }
                way.failed = Some((Instant::now(), why.clone()));
                Err(io::Error::new(io::ErrorKind::AddrNotAvailable, why))
            }
        }
    }

    fn take_down(&self, way: &mut Way) {
        let mut ready = lock(&self.ready);
        if way.transit.take().is_some() {
            self.open.n_kept.fetch_sub(FILES, Ordering::Relaxed);
        }
        *ready = Ready::default();
    }

    /// Blocks.
    fn forget(&self, address: Ipv4Addr) {
        let mut way = lock(&self.way);
        let Some(n) = way.n_callers.get_mut(&address) else {
            return;
        };
        *n -= 1;
        if *n > 0 {
            return;
        }
        way.n_callers.remove(&address);
        if let Some(transit) = &mut way.transit
            && let Err(error) = transit.forget(address)
        {
            tracing::debug!(%address, %error, "the way back stays");
        }
    }

    /// A socket of the transit namespace.
    async fn socket(&self, netns: &Netns, to: IpAddr) -> io::Result<Inside> {
        let take = || {
            let mut ready = lock(&self.ready);
            let is_of_it = ready.of == Some(netns.id());
            ready.sockets.pop().filter(|_| is_of_it)
        };
        if let Some(socket) = take() {
            return Ok(socket);
        }
        let _opening = self.opening.lock().await;
        if let Some(socket) = take() {
            return Ok(socket);
        }
        let entrances = Entrances::shared()?;
        let opened = transparent::open(&entrances, netns, to, AT_ONCE, false).await?;
        let mut sockets = opened.sockets;
        let socket = sockets
            .pop()
            .ok_or_else(|| ConnectError::Make(io::ErrorKind::NotFound.into()))?;
        *lock(&self.ready) = Ready {
            of: Some(netns.id()),
            sockets,
        };
        Ok(socket)
    }

    /// Takes the way down for good. Connections over it must have ended.
    pub(super) fn end(&self) {
        let mut way = lock(&self.way);
        way.is_over = true;
        if way.transit.is_some() {
            self.take_down(&mut way);
            // An error: whoever starts next clears away what others left.
            let _ = transit::sweep();
        }
    }
}

/// Clears away what a killed run has left, once the kernel has taken down its cable.
pub(super) async fn sweep() {
    for _ in 0..SWEEPS_MAX {
        match tokio::task::spawn_blocking(transit::sweep).await {
            Ok(Ok(true)) => tokio::time::sleep(TRY_AGAIN).await,
            Ok(Ok(false)) => return,
            Ok(Err(error)) => return tracing::debug!(%error, "whether an earlier run has left rules is not known"),
            // The worker ends.
            Err(_) => return,
        }
    }
}

/// Whether what is sent to an address stays on this machine, as the kernel has it now.
fn is_local(to: IpAddr) -> io::Result<bool> {
    ROUTING.with_borrow_mut(|routing| {
        let mut asked = match routing.take() {
            Some(routing) => routing,
            None => RtNetlink::open()?,
        };
        let is_local = asked.is_local(to)?;
        *routing = Some(asked);
        Ok(is_local)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many sockets are opened by one visit to the transit namespace.
const AT_ONCE: usize = 8;
/// What the way takes: the namespace, a socket to ask and tell, sockets that are ready.
const FILES: usize = 2 + AT_ONCE;
/// That an address is led back is looked at this often: others may flush rules and routes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// So often a start looks whether the kernel has taken down what an earlier run had. Another run that lives may have some.
const SWEEPS_MAX: usize = 10;

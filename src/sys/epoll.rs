//! A watch over sockets that costs this process no memory for each: an epoll instance of its own, apart from tokio's. Not
//! here: what the sockets are, and what to do when one is ready.

#![allow(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells once that something happened to a socket: bytes, an end, a reset. It is readable itself while it has to tell.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
}

/// The most events that are taken at once.
pub const EVENTS_MAX: usize = 64;

impl Watch {
    /// Errors: no descriptor is left, or no memory.
    pub fn new() -> io::Result<Watch> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Watch { epoll })
    }

    /// Watches `socket` until `token` was told or it is removed. What happened before counts too.
    /// `has_ended`: its peer has sent its end already; then only a reset, or the end of both directions, is told.
    ///
    /// Errors: the user has as many watched descriptors as the kernel allows, or it has no memory.
    pub fn add(&self, socket: impl AsFd, token: usize, has_ended: bool) -> io::Result<()> {
        // A reset, and the end of both directions, is told unasked.
        let wanted = match has_ended {
            true => EventFlags::empty(),
            false => EventFlags::IN | EventFlags::RDHUP,
        };
        let data = EventData::new_u64(token as u64);
        Ok(epoll::add(&self.epoll, socket, data, wanted | EventFlags::ONESHOT)?)
    }

    /// Watches `socket` no more: nothing is told of it after this.
    pub fn remove(&self, socket: impl AsFd) {
        // An error means that it is not watched.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// The tokens of what happened, at most `EVENTS_MAX`, without waiting. A token comes once for each socket.
    pub fn take(&self) -> io::Result<impl Iterator<Item = usize> + use<>> {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [empty; EVENTS_MAX];
        let n = rustix::io::retry_on_intr(|| epoll::wait(&self.epoll, &mut events[..], Some(&NOW)))?;
        let token = |event: Event| usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
        Ok(events.into_iter().take(n).map(token))
    }
}

/// Has tokio say when `watch` has something to tell. Errors: the descriptor cannot be watched.
pub fn wait_for_events(watch: Arc<Watch>) -> io::Result<AsyncFd<Arc<Watch>>> {
    // SAFETY: the watch owns its one descriptor, always gives that one, and closes it when it is dropped, which happens
    // after `AsyncFd` has let go of it.
    let events = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) };
    Ok(events?)
}

/// Has tokio say when there is room to write, and nothing else. Gives back what cannot be watched.
pub fn watch_for_room(stream: TcpStream) -> Result<AsyncFd<TcpStream>, TcpStream> {
    // SAFETY: a stream has one descriptor, always gives that one, and closes it when it is dropped, which happens after
    // `AsyncFd` has let go of it.
    let watched = unsafe { AsyncFd::register_with_interest(stream, Interest::WRITABLE) };
    watched.map_err(|error| error.into_parts().0)
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn take(watch: &Watch) -> Vec<usize> {
        watch.take().unwrap().collect()
    }

    #[test]
    fn what_happens_is_told_once_and_what_happened_before_too() {
        let watch = Watch::new().unwrap();
        let (mut client, server) = pair();
        watch.add(&server, 7, false).unwrap();
        assert_eq!(take(&watch), [0; 0]);
        client.write_all(b"x").unwrap();
        assert_eq!(take(&watch), [7]);
        assert_eq!(take(&watch), [0; 0], "told once");
        watch.remove(&server);
        watch.add(&server, 8, false).unwrap();
        assert_eq!(take(&watch), [8], "it was there before");
        watch.remove(&server);
        watch.remove(&server);
    }

    #[test]
    fn an_end_is_told_and_after_it_only_what_follows() {
        let watch = Watch::new().unwrap();
        let (client, server) = pair();
        client.shutdown(Shutdown::Write).unwrap();
        watch.add(&server, 1, false).unwrap();
        assert_eq!(take(&watch), [1]);
        watch.remove(&server);
        watch.add(&server, 2, true).unwrap();
        assert_eq!(take(&watch), [0; 0], "the end is known");
        socket2::SockRef::from(&client)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        drop(client);
        assert_eq!(take(&watch), [2], "a reset is no end");
    }

    #[test]
    fn more_than_fits_is_told_bit_by_bit() {
        let watch = Watch::new().unwrap();
        let pairs: Vec<_> = (0..EVENTS_MAX + 3).map(|_| pair()).collect();
        for (i, (client, server)) in pairs.iter().enumerate() {
            watch.add(server, i, false).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        }
        let mut told = take(&watch);
        assert_eq!(told.len(), EVENTS_MAX);
        told.extend(take(&watch));
        told.sort_unstable();
        assert!(told.into_iter().eq(0..EVENTS_MAX + 3));
    }
}

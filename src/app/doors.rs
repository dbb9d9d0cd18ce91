//! The sockets that a node is asked at by address: admin, DNS, the link. Each is taken from the instance before, or bound; one
//! that cannot be bound yet is tried again until it can, and everything else serves meanwhile. Not here: published ports,
//! which `proxy` keeps in the same way.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::chain;
use super::handoff::Inherited;
use crate::admin::ClosedDoors;
use crate::sys::inet_diag::Holders;

/// A socket that is open, or will be.
pub(super) struct Door<S> {
    /// The configuration's key, with the address.
    key: String,
    port: u16,
    opened: Option<S>,
    open: Open<S>,
    closed: Arc<ClosedDoors>,
    holders: Holders,
}

type Open<S> = Box<dyn FnMut() -> Result<S, Box<dyn std::error::Error + Send + Sync>> + Send>;

impl<S> Door<S> {
    /// `lent`: what the instance before had at this very address.
    pub(super) fn new(
        key: &'static str,
        addr: SocketAddr,
        lent: Option<S>,
        closed: Arc<ClosedDoors>,
        open: impl FnMut() -> Result<S, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    ) -> Door<S> {
        let mut door = Door {
            key: format!("{key} = {addr}"),
            port: addr.port(),
            opened: lent,
            open: Box::new(open),
            closed,
            holders: Holders::default(),
        };
        if door.opened.is_none() {
            door.try_to_open();
        }
        door
    }

    /// The socket, if it is open by now.
    pub(super) fn opened(&self) -> Option<&S> {
        self.opened.as_ref()
    }

    /// Waits until it is open.
    pub(super) async fn wait(mut self) -> S {
        let mut pause = PAUSE_FIRST;
        loop {
            if let Some(socket) = self.opened.take() {
                return socket;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LONGEST);
            self.try_to_open();
        }
    }

    fn try_to_open(&mut self) {
        match (self.open)() {
            Ok(socket) => {
                self.opened = Some(socket);
                if self.closed.set(&self.key, None) {
                    tracing::info!("{}: listening after all", self.key);
                }
            }
            Err(error) => {
                let why = match self.holders.name(self.port) {
                    Some(holder) => format!("in use by another program: {holder}"),
                    None => chain(&*error),
                };
                if self.closed.set(&self.key, Some(why.clone())) {
                    tracing::error!("{}: cannot listen, trying again: {why}", self.key);
                }
            }
        }
    }
}

impl Door<TcpListener> {
    /// The door of a listener that is lent under `name`. One that was lent for another address is given up, so that the
    /// instance before lets go of it.
    pub(super) fn of_listener(
        key: &'static str,
        name: &str,
        addr: SocketAddr,
        inherited: &mut Inherited,
        closed: Arc<ClosedDoors>,
    ) -> Door<TcpListener> {
        let lent = inherited.take_listener(name, addr);
        if lent.is_none() {
            inherited.give_up(name);
        }
        Door::new(key, addr, lent, closed, move || Ok(TcpListener::bind(addr)?))
    }

    /// As `wait`, for the runtime. Errors: it cannot watch it.
    pub(super) async fn listener(self) -> io::Result<tokio::net::TcpListener> {
        let listener = self.wait().await;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }
}

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

//! Listening sockets lent to another process, which may take them over or not. While they are lent, listeners stay as they
//! are; connections and the table go on. Not here: how sockets get to another process.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::{Notify, mpsc};

use super::ProxyHandle;
use super::worker::Command;
use crate::routing::Listen;

/// Whether this data plane's listeners are its own.
#[derive(Debug, Default)]
pub(super) struct Lending {
    state: AtomicU8,
    returned: Notify,
}

const OWN: u8 = 0;
const LENT: u8 = 1;
const OVER: u8 = 2;

impl Lending {
    pub(super) fn is_lent(&self) -> bool {
        self.state.load(Ordering::SeqCst) != OWN
    }

    /// Another process has taken over.
    pub(super) fn is_over(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OVER
    }

    /// Waits until listeners are to be brought to the table again.
    pub(super) async fn returned(&self) {
        self.returned.notified().await;
    }
}

/// A listening socket that a worker accepts on.
#[derive(Debug, Clone)]
pub struct LentListener {
    pub listen: Listen,
    socket: Arc<tokio::net::TcpListener>,
}

impl AsFd for LentListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ProxyHandle {
    /// All listening sockets, which go on being accepted on. From now on no port is opened or closed, until `take_back`.
    /// To be dropped before `hand_over`: as long as one is held, it is open.
    pub async fn lend(&self) -> Vec<LentListener> {
        self.shared.lending.state.store(LENT, Ordering::SeqCst);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for worker in self.commands.iter() {
            // An error means that the worker has ended, with all that it had.
            let _ = worker.send(Command::Lend(sender.clone()));
        }
        drop(sender);
        let mut lent = Vec::new();
        while let Some((listen, socket)) = receiver.recv().await {
            lent.push(LentListener { listen, socket });
        }
        lent
    }

    /// Nobody took over.
    pub fn take_back(&self) {
        self.shared.lending.state.store(OWN, Ordering::SeqCst);
        self.shared.lending.returned.notify_one();
    }

    /// Another process accepts on all that was lent except on `left`, whose queues are emptied before they are closed.
    /// Nothing is accepted here any more. `Proxy::run` is to be told to shut down.
    pub fn hand_over(&self, left: HashSet<Listen>) {
        self.shared.lending.state.store(OVER, Ordering::SeqCst);
        let left = Arc::new(left);
        for worker in self.commands.iter() {
            // An error means that the worker has ended, with all that it had.
            let _ = worker.send(Command::HandOver(left.clone()));
        }
    }
}

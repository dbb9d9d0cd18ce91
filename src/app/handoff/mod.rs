//! An update of anynode itself refuses nobody: a new instance that is started with the data directory of one that runs
//! takes over its sockets, and the old one drains. Not here: what is done with the sockets (`proxy`, `dns`, `admin`).
//!
//! Both have `handoff.sock` in the data directory in common, and messages of `wire` go over it:
//!
//! - new: `hello`. Old: lends its sockets in batches, with the lock of the data directory among them, and says `end`. It
//!   goes on as before, but opens and closes no port and writes nothing to the directory.
//! - new, if it is a swarm by itself: `release`. Old: ends its control plane, says `released` with the key of the store if that is
//!   locked, and serves what it knew last. From here on it does not go on as before: without a `ready` it drains and ends.
//! - new: brings up its table, says what it has no use for (`left`), then `ready`, and accepts from that moment. It may be
//!   gone at any time before: the sockets are only duplicates.
//! - old: accepts no more on what was taken, drains what was left, gives up its share of the lock, and ends when its
//!   connections have.
//!
//! An old one that is gone is no loss: what it sent is used, the rest is bound anew. One that is silent is an error.
//! Connections that wait in the queue of a socket wait for whoever accepts next, so that none is lost on the way.

mod give;
mod take;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

pub(super) use self::give::{Offer, OwnRelease, Succession};
pub(super) use self::take::{Inherited, claim};
use super::datadir::DataDirError;

/// Why another instance's data directory and sockets are not taken over.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(
        "data_dir = {path}: the anynode that uses it has not answered on {SOCKET} within {PATIENCE:?}: \
         expected one that hands over; end it, then start again"
    )]
    Silent { path: PathBuf },
    #[error("data_dir = {path}: the anynode that uses it does not hand over: {reason}")]
    Refused { path: PathBuf, reason: String },
    #[error("data_dir = {path}: {SOCKET} is of user {uid}: expected this user or root")]
    Stranger { path: PathBuf, uid: u32 },
    #[error(
        "data_dir = {path}: there is no table in it, and the source says nothing: \
         expected one within {SOURCE_WITHIN:?}; the anynode that uses it goes on"
    )]
    NoTable { path: PathBuf },
    #[error("data_dir = {path}: expected an anynode behind {SOCKET}")]
    Nonsense {
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
}

/// The socket's name in the data directory.
const SOCKET: &str = "handoff.sock";
/// Names of what is lent besides listeners of ports.
const LOCK: &str = "lock";
const DOOR: &str = "handoff";
pub(super) const ADMIN: &str = "admin";
pub(super) const DNS: &str = "dns";
pub(super) const LINK: &str = "link";

/// How long each side waits for the other's next message, where it has nothing to do but to send it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an old instance may take to let go of its store.
const RELEASE_WITHIN: Duration = Duration::from_secs(30);
/// How long a new instance has from the last socket to `ready`.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a new instance that has no last table waits for its source.
const SOURCE_WITHIN: Duration = Duration::from_secs(10);

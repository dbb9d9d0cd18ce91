//! The thread that writes a store: commits that wait at the same time are written together. When the file cannot be written
//! (a full disk, a device's error, a file system that is read-only) commits are refused, and the file is opened again by
//! itself until it can be. While it only lacks room for more, what is there can be changed and removed. Not here: what is in the file (`disk`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use redb::Database;
use tokio::sync::{mpsc, oneshot, watch};

use super::acknowledged::Acknowledged;
use super::health::{Failing, StoreHealth};
use super::reserve::Reserve;
use super::seal::Seal;
use super::{CommitError, OpenError, Snapshot, disk, relock};
use crate::model::swarm::{UnlockKey, Write};

/// So many commits are written at once.
const TOGETHER: usize = 256;
/// The file is tried again so often while it cannot be written.
const TRY_AGAIN: Duration = Duration::from_millis(300);
/// The pause after a try is so many times as long as it took, up to a bound.
const TRY_SHARE: u32 = 4;
const TRY_AGAIN_MAX: Duration = Duration::from_secs(5);
/// Room for so much has to be there before the file is opened again, which may take long.
const ROOM_BYTES: usize = 64 << 10;
/// In the store's directory, for moments.
const ROOM_FILE: &str = "store.room";
/// The log says that it cannot be written at most so often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// A commit that waits.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) base: Snapshot,
    pub(super) writes: Vec<Write>,
    pub(super) answer: oneshot::Sender<Result<Arc<Snapshot>, CommitError>>,
}

/// Opens the store's file again.
pub(super) type Reopen = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

pub(super) struct Writer {
    /// `None` while it cannot be written.
    pub(super) database: Option<Database>,
    pub(super) reopen: Reopen,
    /// The store's.
    pub(super) dir: PathBuf,
    pub(super) seal: Seal,
    /// What the file is locked with.
    pub(super) lock: Option<UnlockKey>,
    /// The file can be replaced by another one.
    pub(super) may_be_locked: bool,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) health: Arc<StoreHealth>,
    pub(super) acknowledged: Acknowledged,
    pub(super) reserve: Reserve,
    /// There is no room for the reserve: nothing new is taken.
    pub(super) is_short: bool,
    pub(super) log: Log,
}

/// What the log was told.
#[derive(Debug, Default)]
pub(super) struct Log {
    said_at: Option<Instant>,
    refused_at: Option<Instant>,
    /// That it cannot be written, and nothing since.
    is_open: bool,
}

impl Log {
    fn cannot_be_written(&mut self, reason: &str) {
        if self.is_open || !may_say(self.said_at) {
            return;
        }
        self.said_at = Some(Instant::now());
        self.is_open = true;
        tracing::error!(
            reason,
            "the store cannot be written: changes are refused until it can, what is declared goes on"
        );
    }

    fn is_written_again(&mut self, failing: &Failing) {
        if std::mem::take(&mut self.is_open) {
            tracing::warn!(after = ?failing.since.elapsed(), "the store is written again");
        }
    }

    fn refused(&mut self, reason: &str) {
        if may_say(self.refused_at) {
            self.refused_at = Some(Instant::now());
            tracing::warn!(
                reason,
                "the store could not write a commit, which was refused; it goes on"
            );
        }
    }
}

fn may_say(said_at: Option<Instant>) -> bool {
    said_at.is_none_or(|at| at.elapsed() >= SAY_AGAIN)
}

impl Writer {
    /// Runs until nobody can ask any more.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut together = Vec::new();
        let mut try_at = Instant::now();
        loop {
            let n = match &self.database {
                Some(_) if !self.is_short => requests.recv_many(&mut together, TOGETHER).await,
                _ if try_at <= Instant::now() => {
                    try_at = self.try_again();
                    continue;
                }
                _ => {
                    let asked = requests.recv_many(&mut together, TOGETHER);
                    match tokio::time::timeout_at(try_at.into(), asked).await {
                        Ok(n) => n,
                        Err(_) => continue,
                    }
                }
            };
            if n == 0 {
                break;
            }
            let was_well = self.is_well();
            self.write(&mut together);
            if was_well && !self.is_well() {
                try_at = Instant::now() + TRY_AGAIN;
            }
        }
    }

    fn is_well(&self) -> bool {
        self.database.is_some() && !self.is_short
    }

    /// Writes what waits in one transaction, and answers.
    fn write(&mut self, together: &mut Vec<Request>) {
        if self.is_well() {
            self.look_at_room();
        }
        let mut now = Snapshot::clone(&self.snapshot.load());
        let mut made = Vec::new();
        let mut written = Vec::new();
        for request in together.drain(..) {
            let is_new = |write: &Write| matches!(write, Write::Put(_)) && now.revision_of(&write.key()).is_none();
            if self.is_short && request.writes.iter().any(is_new) {
                self.health.write_failures_total.fetch_add(1, Relaxed);
                let reason = self.health.failing().map(|failing| failing.reason).unwrap_or_default();
                drop(request.answer.send(Err(CommitError::Io { reason })));
                continue;
            }
            match now.next(&request.base, request.writes) {
                Ok((next, writes)) => {
                    now = next;
                    made.extend(writes.into_iter().map(|write| (now.revision(), write)));
                    written.push((request.answer, Arc::new(now.clone())));
                }
                // Whoever asked may have gone away: an error says no more than that.
                Err(error) => drop(request.answer.send(Err(error))),
            }
        }
        if made.is_empty() {
            return;
        }
        match self.write_made(&made, &now) {
            Ok(()) => {
                self.acknowledged.note(now.revision());
                self.health.set_revision(now.revision());
                self.snapshot.store(Arc::new(now));
                self.changed.send_replace(self.snapshot.load().revision());
                for (answer, snapshot) in written {
                    drop(answer.send(Ok(snapshot)));
                }
            }
            Err(reason) => {
                self.health
                    .write_failures_total
                    .fetch_add(written.len() as u64, Relaxed);
                for (answer, _) in written {
                    let reason = reason.clone();
                    drop(answer.send(Err(CommitError::Io { reason })));
                }
            }
        }
    }

    /// Whether there is room for more than there is.
    fn look_at_room(&mut self) {
        let Err(error) = self.reserve.hold() else {
            self.is_short = false;
            return;
        };
        if !std::mem::replace(&mut self.is_short, true) {
            let reason = format!("{error}; what is there can be changed and removed");
            self.log.cannot_be_written(&reason);
            let since = Instant::now();
            self.health.set_failing(Some(Failing { since, reason }));
        }
    }

    /// Errors: nothing of it is in the file, as far as that can be had.
    fn write_made(&mut self, made: &[(u64, Write)], now: &Snapshot) -> Result<(), String> {
        let Some(database) = &self.database else {
            let failing = self.health.failing();
            return Err(failing.map(|failing| failing.reason).unwrap_or_default());
        };
        if now.unlock_key() != self.lock.as_ref() {
            return self.relock(now).inspect_err(|reason| self.log.refused(reason));
        }
        let Err(reason) = disk::write_all(database, &self.seal, made, now.revision()) else {
            return Ok(());
        };
        // After an error it takes nothing more, whatever comes.
        self.database = None;
        match self.opened_again() {
            // It failed for a moment, or for this commit only.
            Ok(database) => {
                self.database = Some(database);
                self.log.refused(&reason);
            }
            Err(_) => {
                self.log.cannot_be_written(&reason);
                self.health.set_failing(Some(Failing {
                    since: Instant::now(),
                    reason: reason.clone(),
                }));
            }
        }
        Err(reason)
    }

    /// Has all of `now` in a file that is locked as it says. Errors: the file is what it was.
    fn relock(&mut self, now: &Snapshot) -> Result<(), String> {
        if !self.may_be_locked {
            return Err("it is not in a file, and cannot be locked".to_owned());
        }
        let lock = now.unlock_key();
        let placed = relock::prepare(&self.dir, now, lock)
            .and_then(|prepared| prepared.take_place().map_err(|error| error.to_string()));
        if let Ok((database, seal)) = placed {
            // The one before is closed by that, and writes no more to what is overwritten next.
            self.database = Some(database);
            self.seal = seal;
            self.lock = lock.cloned();
            self.reserve = Reserve::new(&self.dir.join(disk::FILE));
            relock::clear(&self.dir, self.lock.is_some());
            return Ok(());
        }
        relock::clear(&self.dir, self.lock.is_some());
        placed.map(drop)
    }

    /// Returns when to try again, if it is to be.
    fn try_again(&mut self) -> Instant {
        let Some(failing) = self.health.failing() else {
            return Instant::now();
        };
        let started = Instant::now();
        let opened = match self.database.take() {
            Some(database) => Ok(database),
            None => self.opened_again(),
        };
        match opened {
            Ok(database) => {
                self.database = Some(database);
                self.look_at_room();
                if self.is_short {
                    return Instant::now() + TRY_AGAIN;
                }
                // Whoever has something to write that was refused looks again.
                self.changed.send_replace(self.snapshot.load().revision());
                self.health.set_failing(None);
                self.log.is_written_again(&failing);
            }
            Err(reason) => {
                self.log.cannot_be_written(&reason);
                self.health.set_failing(Some(Failing { reason, ..failing }));
            }
        }
        Instant::now() + (started.elapsed() * TRY_SHARE).clamp(TRY_AGAIN, TRY_AGAIN_MAX)
    }

    /// The file, opened again, written to, and with what was acknowledged in it and nothing else.
    fn opened_again(&self) -> Result<Database, String> {
        self.has_room().map_err(|error| error.to_string())?;
        let database = (self.reopen)().map_err(|error| error.chain())?;
        self.put_right(&database)?;
        Ok(database)
    }

    /// Whether the file system takes anything at all: asking the file itself costs all of its length.
    fn has_room(&self) -> std::io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.dir.join(ROOM_FILE);
        let write = || {
            let mut file = std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(&vec![1; ROOM_BYTES])?;
            file.sync_data()
        };
        let written = write();
        // It was perhaps never made.
        let _ = std::fs::remove_file(&path);
        written
    }

    /// A commit that was refused may be in the file, where its very last step failed; and what a device lost may be put back.
    fn put_right(&self, database: &Database) -> Result<(), String> {
        let now = self.snapshot.load();
        let found = disk::read_all(database, &self.seal)?;
        let mut made = Vec::new();
        for key in found.keys() {
            if now.revision_of(&key).is_none() {
                made.push((now.revision(), Write::Remove(key)));
            }
        }
        for key in now.keys() {
            if let (Some(revision), Some(object)) = (now.revision_of(&key), now.object(&key))
                && found.revision_of(&key) != Some(revision)
            {
                made.push((revision, Write::Put(object)));
            }
        }
        // Also where there is nothing to put right: that it can be written is to be seen.
        disk::write_all(database, &self.seal, &made, now.revision())
    }
}

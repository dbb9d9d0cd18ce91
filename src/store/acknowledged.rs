//! The last revision that was acknowledged, in a small file beside the store: a store that opens with less has lost what
//! somebody was told is kept, and that must not pass in silence.
//!
//! It is written in place after the store itself is on disk, and not synced by itself: it costs one system call a commit.
//! So it can be behind the store after a power cut, and is never ahead of it: what it says to be lost is lost. Two places
//! are written in turn, each with a checksum, so that one that is torn or damaged leaves the other.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::swarm::Time;

/// In the store's directory.
const FILE: &str = "store.acknowledged";
/// What was lost, as long as nobody has taken this file away.
const LOST_FILE: &str = "store.lost";
/// A disk writes so much whole or not at all.
const PLACE_BYTES: usize = 512;

/// Acknowledged commits that were gone when the store was opened: their revisions, first and last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub first: u64,
    pub last: u64,
    pub seen_at: Time,
    /// To be removed by whoever has seen to it.
    #[serde(skip)]
    pub file: PathBuf,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "acknowledged changes are gone, revisions {} to {}, seen {}: the store's file was damaged, or an older copy was put \
             back; look at what is declared, then remove {}",
            self.first,
            self.last,
            self.seen_at,
            self.file.display()
        )
    }
}

/// Writes the last acknowledged revision.
#[derive(Debug)]
pub(super) struct Acknowledged {
    path: PathBuf,
    /// `None`: it could not be opened, and is tried again with the next commit.
    file: Option<File>,
    is_failing: bool,
}

impl Acknowledged {
    /// What is in `dir`, and the last revision that it has; `None` where nothing was ever acknowledged, or nothing of it can
    /// be read any more.
    pub(super) fn open(dir: &Path) -> (Acknowledged, Option<u64>) {
        let path = dir.join(FILE);
        let last = match std::fs::read(&path) {
            Ok(bytes) => {
                let last = bytes.chunks(PLACE_BYTES).filter_map(read_place).max();
                if last.is_none() {
                    tracing::warn!(path = %path.display(), "damaged: whether acknowledged changes were lost cannot be told");
                }
                last
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "whether acknowledged changes were lost cannot be told");
                None
            }
        };
        let acknowledged = Acknowledged {
            path,
            file: None,
            is_failing: false,
        };
        (acknowledged, last)
    }

    /// Has the file say this revision and no later one.
    pub(super) fn begin(&mut self, revision: u64) {
        let written = self.write_whole(revision);
        self.said(written);
    }

    /// Notes a revision that is on disk. A failure leaves the file behind the store, which is no false word; it is said once.
    pub(super) fn note(&mut self, revision: u64) {
        let written = match &self.file {
            Some(file) => {
                let at = (revision % 2) * PLACE_BYTES as u64;
                file.write_all_at(&place(revision), at)
            }
            None => self.write_whole(revision),
        };
        self.said(written);
    }

    fn write_whole(&mut self, revision: u64) -> io::Result<()> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)?;
        file.write_all_at(&[place(revision), place(revision)].concat(), 0)?;
        file.sync_all()?;
        self.file = Some(file);
        Ok(())
    }

    fn said(&mut self, written: io::Result<()>) {
        match written {
            Ok(()) => self.is_failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(path = %self.path.display(), %error, "what is acknowledged cannot be noted");
                }
            }
        }
    }
}

/// The store goes, and nothing is to be missed of it.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    for name in [FILE, LOST_FILE] {
        match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What was lost and not seen to yet.
pub(super) fn lost_before(dir: &Path) -> Vec<Lost> {
    let file = dir.join(LOST_FILE);
    // One that cannot be read says nothing more than its being there.
    let bytes = std::fs::read(&file).unwrap_or_default();
    let lost: Vec<Lost> = serde_json::from_slice(&bytes).unwrap_or_default();
    lost.into_iter()
        .map(|lost| Lost {
            file: file.clone(),
            ..lost
        })
        .collect()
}

/// Keeps what was lost, besides what was before, for the next start. Returns all of it.
pub(super) fn keep_lost(dir: &Path, first: u64, last: u64) -> Vec<Lost> {
    let mut all = lost_before(dir);
    // Said before, and nothing was committed since.
    all.retain(|lost| (lost.first, lost.last) != (first, last));
    all.push(Lost {
        first,
        last,
        seen_at: Time::now(),
        file: dir.join(LOST_FILE),
    });
    let write = || {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(dir.join(LOST_FILE))?;
        file.write_all(&serde_json::to_vec(&all)?)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        tracing::warn!(%error, "what was lost is said until the next start only");
    }
    all
}

/// `REVISION CHECKSUM`, and nothing up to the place's end.
fn place(revision: u64) -> [u8; PLACE_BYTES] {
    let mut place = [0; PLACE_BYTES];
    for (to, from) in place.iter_mut().zip(line(revision).bytes()) {
        *to = from;
    }
    place
}

fn read_place(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let revision = text.split(' ').next()?.parse().ok()?;
    (text == line(revision)).then_some(revision)
}

fn line(revision: u64) -> String {
    let digest = Sha256::digest(format!("acknowledged {revision}"));
    let checksum: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{revision} {checksum}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_is_read_and_damage_never_makes_it_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let (mut acknowledged, last) = Acknowledged::open(dir.path());
        assert_eq!(last, None);
        for revision in 1..=12 {
            acknowledged.note(revision);
            assert_eq!(Acknowledged::open(dir.path()).1, Some(revision));
        }
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            let read = Acknowledged::open(dir.path()).1;
            assert!(matches!(read, Some(11 | 12)), "bit {bit}: {read:?}");
        }
        for length in 0..PLACE_BYTES {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(
                Acknowledged::open(dir.path()).1.is_none_or(|read| read <= 12),
                "{length} bytes"
            );
        }
        acknowledged.begin(7);
        assert_eq!(Acknowledged::open(dir.path()).1, Some(7));
    }

    #[test]
    fn what_was_lost_is_said_until_somebody_has_seen_to_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(lost_before(dir.path()), []);
        keep_lost(dir.path(), 5, 6);
        let all = keep_lost(dir.path(), 9, 9);
        assert_eq!(lost_before(dir.path()), all);
        assert_eq!((all[0].first, all[0].last, all[1].first), (5, 6, 9));
        let text = all[0].to_string();
        assert!(
            text.contains("revisions 5 to 6") && text.contains("store.lost"),
            "{text}"
        );
    }
}

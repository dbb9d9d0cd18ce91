//! When a services file has something new to say: after it was closed by whoever wrote it, renamed into place, or removed;
//! never while it is being written. inotify says so; a slow look at the file's metadata is the net below. Not here: what
//! the file says.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use inotify::{EventMask, Inotify, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::sys;

/// What looking at the file gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reading {
    Text(String),
    /// It is missing or cannot be read.
    Failed(String),
}

pub(super) struct Watcher {
    path: PathBuf,
    /// Where the path leads, through links.
    target: Option<PathBuf>,
    events: Option<AsyncFd<Inotify>>,
    /// Until when nothing is heard of, where others are busy beside the file without end: the kernel puts what they do together
    /// meanwhile.
    rests_until: Option<Instant>,
    /// How often in a row only others were heard of, each time soon after the last, and when that was.
    of_others: (u32, Option<Instant>),
    /// Somebody is writing: the file says nothing until it is closed.
    is_being_written: bool,
    /// When it is to be read. Kept here, so that a wait that is given up loses nothing.
    due: Option<Instant>,
    /// How often it was found open since it was said to be closed.
    n_open: u32,
    /// When the next slow look is, however much goes on meanwhile.
    look_at: Option<Instant>,
    /// It has looked the same for a while since: whoever has it open does not write.
    is_overdue: bool,
    /// What the file looked like when it was last read.
    read: Option<Signature>,
    /// What it looked like at the last slow look.
    looked: Option<Signature>,
    last: Option<Reading>,
}

/// Enough of a file's metadata to see that it is another, or was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signature {
    inode: u64,
    device: u64,
    size: u64,
    modified: Option<SystemTime>,
    changed_ns: i64,
}

impl Watcher {
    pub(super) fn new(path: PathBuf) -> Watcher {
        Watcher {
            path,
            target: None,
            events: None,
            rests_until: None,
            of_others: (0, None),
            is_being_written: false,
            due: None,
            n_open: 0,
            look_at: None,
            is_overdue: false,
            read: None,
            looked: None,
            last: None,
        }
    }

    /// Reads the file as it is.
    pub(super) fn read_now(&mut self) -> Reading {
        self.read = signature(&self.path);
        let (reading, _) = read(&self.path);
        self.last = Some(reading.clone());
        reading
    }

    /// Waits until the file says something else. May be cancelled.
    pub(super) async fn changed(&mut self) -> Reading {
        loop {
            if self.events.is_none() {
                self.watch();
                // Whatever happened before the watch stood. Where it was found open, it is looked at again as it is.
                if self.due.is_none() && self.n_open == 0 && signature(&self.path) != self.read {
                    self.is_due();
                }
            }
            if self.due.is_some_and(|due| due <= Instant::now())
                && let Some(reading) = self.read_settled().await
            {
                return reading;
            }
            let every = if self.events.is_some() { LOOK_EVERY } else { RETRY_EVERY };
            let soonest = Instant::now() + every;
            // Where the watch was lost meanwhile, it is tried for more often.
            let look_at = self.look_at.map_or(soonest, |at| at.min(soonest));
            self.look_at = Some(look_at);
            let (events, due, rests_until) = (self.events.as_ref(), self.due, self.rests_until);
            let noticed = async {
                if let Some(until) = rests_until {
                    sleep_until(until).await;
                }
                match events {
                    Some(events) => events.readable().await.map(|mut ready| ready.clear_ready()),
                    None => std::future::pending().await,
                }
            };
            let is_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = noticed => {
                    self.rests_until = None;
                    if self.noticed() && !self.is_being_written {
                        self.is_due();
                    }
                }
                () = is_due => {}
                () = sleep_until(look_at) => {
                    self.look_at = None;
                    if self.look() {
                        self.is_due();
                    }
                }
            }
        }
    }

    /// To be read at once.
    fn is_due(&mut self) {
        self.due = Some(Instant::now());
        self.n_open = 0;
    }

    /// Takes all events that wait in the kernel by now, whether or not the runtime knows of them, and none that come meanwhile:
    /// somebody may write beside the file without end. Whether the file may say something else now.
    fn noticed(&mut self) -> bool {
        let (mut is_due, mut is_of_others) = (false, false);
        let mut buffer = [0; 4096];
        let waiting = self.events.as_ref().map(rustix::io::ioctl_fionread);
        let mut n_bytes = waiting.and_then(Result::ok).unwrap_or(0);
        while n_bytes > 0
            && let Some(events) = &mut self.events
        {
            let taken: Vec<(EventMask, Option<OsString>)> = match events.get_mut().read_events(&mut buffer) {
                Ok(taken) => taken
                    .map(|event| (event.mask, event.name.map(OsStr::to_owned)))
                    .collect(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "watching the services file");
                    self.events = None;
                    return true;
                }
            };
            if taken.is_empty() {
                break;
            }
            for (mask, name) in taken {
                n_bytes = n_bytes.saturating_sub(bytes_of(name.as_deref()));
                match self.noticed_one(mask, name.as_deref()) {
                    Some(may_differ) => is_due |= may_differ,
                    None => is_of_others = true,
                }
            }
        }
        // A link on the way may have been turned elsewhere: that comes with a name of its own.
        if is_of_others && std::fs::canonicalize(&self.path).ok() != self.target {
            self.events = None;
            return true;
        }
        if is_due {
            self.of_others = (0, None);
        } else if is_of_others {
            let now = Instant::now();
            let (n, last) = self.of_others;
            let is_in_a_row = last.is_some_and(|last| now - last < REST * 2);
            let n = if is_in_a_row { n.saturating_add(1) } else { 1 };
            self.of_others = (n, Some(now));
            // A file that is written beside, to be renamed into place, is none of that.
            self.rests_until = (n > ROUNDS_BEFORE_REST).then(|| now + REST);
        }
        is_due
    }

    /// `None`: it is of something beside the file.
    fn noticed_one(&mut self, mask: EventMask, name: Option<&OsStr>) -> Option<bool> {
        if mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT) {
            // The directory went away, or was swapped for another.
            self.events = None;
            return Some(true);
        }
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.is_being_written = false;
            return Some(true);
        }
        let is_ours = name.is_some_and(|name| {
            Some(name) == self.path.file_name() || Some(name) == self.target.as_deref().and_then(Path::file_name)
        });
        if !is_ours {
            return None;
        }
        if mask.contains(EventMask::MODIFY) {
            self.is_being_written = true;
            // Whoever still writes to it is not yet slow to close it.
            (self.looked, self.look_at) = (None, None);
            return Some(false);
        }
        if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO | EventMask::MOVED_FROM | EventMask::DELETE) {
            self.is_being_written = false;
            return Some(true);
        }
        // A link appears whole; a file that was just created is yet to be written.
        Some(
            mask.contains(EventMask::CREATE)
                && self.path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()),
        )
    }

    /// The slow look: the file looks otherwise than when it was read, and has looked so for a while.
    fn look(&mut self) -> bool {
        let now = signature(&self.path);
        let is_settled = now == self.looked;
        self.looked = now;
        if now != self.read && is_settled {
            self.is_being_written = false;
            self.is_overdue = true;
            return true;
        }
        false
    }

    /// Reads the file. `None` if it says what it said before, or somebody writes to it: then its closing will be noticed.
    async fn read_settled(&mut self) -> Option<Reading> {
        loop {
            let before = signature(&self.path);
            let (reading, is_open_for_writing) = read(&self.path);
            // Whoever wrote while this was read has either closed the file since, and that was announced before it
            // could be seen, or has it open still.
            let is_due_again = self.noticed();
            if self.is_being_written {
                self.due = None;
                return None;
            }
            if is_open_for_writing && !self.is_overdue {
                // The kernel says that a file is closed a moment before it is. Whoever has it open after that will close it.
                self.due = (self.n_open < OPEN_LOOKS).then(|| Instant::now() + OPEN_FIRST * (1 << self.n_open));
                self.n_open += 1;
                return None;
            }
            if !is_due_again {
                self.is_overdue = false;
                self.due = None;
                return self.say(before, reading);
            }
            tokio::task::yield_now().await;
        }
    }

    fn say(&mut self, signature: Option<Signature>, reading: Reading) -> Option<Reading> {
        self.read = signature;
        self.n_open = 0;
        if self.last.as_ref() == Some(&reading) {
            return None;
        }
        self.last = Some(reading.clone());
        Some(reading)
    }

    fn watch(&mut self) {
        self.target = std::fs::canonicalize(&self.path).ok();
        self.is_being_written = false;
        let parent = |path: &Path| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut dirs = vec![parent(&self.path)];
        if let Some(target) = &self.target {
            dirs.push(parent(target));
        }
        self.events = watch_dirs(&dirs)
            .inspect_err(|error| tracing::debug!(%error, "no watch, looking slowly"))
            .ok();
    }
}

fn watch_dirs(dirs: &[PathBuf]) -> io::Result<AsyncFd<Inotify>> {
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MODIFY
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let inotify = Inotify::init()?;
    for dir in dirs {
        inotify.watches().add(dir, mask)?;
    }
    sys::file::wait_for_events(inotify)
}

/// What the file says, and whether somebody had it open for writing right after it was read.
fn read(path: &Path) -> (Reading, bool) {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.read_to_end(&mut bytes)?;
        Ok(sys::file::is_open_for_writing(&file).unwrap_or(false))
    });
    match (read, String::from_utf8(bytes)) {
        (Ok(is_open), Ok(text)) => (Reading::Text(text), is_open),
        (Ok(is_open), Err(_)) => (Reading::Failed("is not UTF-8".to_owned()), is_open),
        (Err(error), _) => (Reading::Failed(error.to_string()), false),
    }
}

/// What an event takes in the kernel's queue: a head of 16 bytes, and the name with an end mark, filled up to heads.
fn bytes_of(name: Option<&OsStr>) -> u64 {
    const HEAD: u64 = 16;
    let name = name.map_or(0, |name| (name.len() as u64 + 1).next_multiple_of(HEAD));
    HEAD + name
}

fn signature(path: &Path) -> Option<Signature> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Signature {
        inode: metadata.ino(),
        device: metadata.dev(),
        size: metadata.len(),
        modified: metadata.modified().ok(),
        changed_ns: metadata.ctime_nsec(),
    })
}

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After it was said to be closed and is open still; twice as long from one look to the next.
const OPEN_FIRST: Duration = Duration::from_millis(1);
/// Half a second in all.
const OPEN_LOOKS: u32 = 9;
/// More than writing a file beside this one makes.
const ROUNDS_BEFORE_REST: u32 = 100;
/// Less than anybody notices.
const REST: Duration = Duration::from_millis(5);
const RETRY_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    async fn says(watcher: &mut Watcher, text: &str, within: Duration) {
        let reading = tokio::time::timeout(within, watcher.changed()).await;
        assert_eq!(reading, Ok(Reading::Text(text.to_owned())));
    }

    /// Before any slow look could have seen it: that takes two.
    const BY_EVENT: Duration = Duration::from_millis(2500);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_written_in_place_is_read_once_it_is_closed_and_not_at_a_slow_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.yml");
        std::fs::write(&path, "").unwrap();
        let mut watcher = Watcher::new(path.clone());
        watcher.read_now();
        for n in 0..300 {
            let (path, text) = (path.clone(), n.to_string());
            let written = text.clone();
            let writer = tokio::task::spawn_blocking(move || std::fs::write(path, written).unwrap());
            says(&mut watcher, &text, BY_EVENT).await;
            writer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.yml");
        std::fs::write(&path, "").unwrap();
        let mut watcher = Watcher::new(path.clone());
        watcher.read_now();
        for n in 0..50 {
            std::fs::write(&path, n.to_string()).unwrap();
            // Polled once, and dropped.
            let first = tokio::select! {
                biased;
                reading = watcher.changed() => Some(reading),
                () = std::future::ready(()) => None,
            };
            match first {
                Some(reading) => assert_eq!(reading, Reading::Text(n.to_string())),
                None => says(&mut watcher, &n.to_string(), BY_EVENT).await,
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_written_beside_and_renamed_into_place_waits_for_no_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("services.yml"), dir.path().join("new"));
        std::fs::write(&path, "").unwrap();
        let mut watcher = Watcher::new(path.clone());
        watcher.read_now();
        for n in 0..10 {
            let mut file = File::create(&aside).unwrap();
            for _ in 0..5 {
                io::Write::write_all(&mut file, n.to_string().as_bytes()).unwrap();
                // It hears of each piece, and is not concerned.
                let heard = tokio::time::timeout(Duration::from_millis(1), watcher.changed()).await;
                assert!(heard.is_err() && watcher.rests_until.is_none(), "{heard:?}");
            }
            drop(file);
            std::fs::rename(&aside, &path).unwrap();
            says(&mut watcher, &n.to_string().repeat(5), BY_EVENT).await;
        }
    }

    #[tokio::test]
    async fn what_goes_on_beside_the_file_puts_no_slow_look_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services.yml");
        std::fs::write(&path, "").unwrap();
        let mut watcher = Watcher::new(path.clone());
        watcher.read_now();
        // It stays open, so that only a slow look says what is in it.
        let mut writer = File::options().write(true).open(&path).unwrap();
        io::Write::write_all(&mut writer, b"open").unwrap();
        let noise = dir.path().join("other");
        let churn = async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                std::fs::write(&noise, "").unwrap();
            }
        };
        tokio::select! {
            () = says(&mut watcher, "open", 5 * LOOK_EVERY) => {}
            () = churn => {}
        }
    }
}

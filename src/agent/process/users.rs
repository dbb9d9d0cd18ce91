//! A user for each service whose tasks are processes and which names none: its number is kept by the service's name, so that what
//! its tasks write stays theirs over updates and restarts, and is theirs again when it is removed and made once more. Not here:
//! names of users (`user`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::known::KnownTasks;
use super::volumes;

/// The numbers that users may be given, both ends among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRange {
    first: u32,
    last: u32,
}

impl UserRange {
    /// Where systemd, which divides the numbers up, has nothing.
    pub const DEFAULT: UserRange = UserRange {
        first: 2_000_000_000,
        last: 2_000_065_535,
    };

    /// Such as `2000000000-2000065535`.
    pub fn parse(text: &str) -> Option<UserRange> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first >= LEAST && last <= MOST && first <= last).then_some(UserRange { first, last })
    }

    fn contains(&self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// All of them once, beginning with that one.
    fn from(&self, begin: u32) -> impl Iterator<Item = u32> + use<> {
        let begin = if self.contains(begin) { begin } else { self.first };
        (begin..=self.last).chain(self.first..begin)
    }

    /// Errors: in words, the first line of this host's own lists that has one of them for somebody else.
    pub fn is_nobodys(&self) -> Result<(), String> {
        for (list, kind) in LISTS {
            let text = fs::read_to_string(list).unwrap_or_default();
            self.is_free_of(list, kind, &text)?;
        }
        Ok(())
    }

    fn is_free_of(&self, list: &str, kind: List, text: &str) -> Result<(), String> {
        for line in text.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let number = |at: usize| fields.get(at).and_then(|field| field.trim().parse::<u64>().ok());
            let taken = match kind {
                List::Numbers => number(2).map(|uid| (uid, uid)),
                List::Ranges => number(1)
                    .zip(number(2))
                    .map(|(first, n)| (first, (first + n).saturating_sub(1))),
            };
            let Some((first, last)) = taken else { continue };
            if first <= u64::from(self.last) && last >= u64::from(self.first) {
                let name = fields.first().copied().unwrap_or_default();
                return Err(format!(
                    "{list} has {first} to {last} for {name:?}: expected a range of users that are nobody's"
                ));
            }
        }
        Ok(())
    }
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[derive(Debug, Clone, Copy)]
enum List {
    /// `name:x:NUMBER`.
    Numbers,
    /// `name:FIRST:COUNT`.
    Ranges,
}

const LISTS: [(&str, List); 4] = [
    ("/etc/passwd", List::Numbers),
    ("/etc/group", List::Numbers),
    ("/etc/subuid", List::Ranges),
    ("/etc/subgid", List::Ranges),
];
/// Those below are the system's, those above are nobody's.
const LEAST: u32 = 1_000;
const MOST: u32 = u32::MAX - 2;

/// Gives each service a number of its own.
pub(super) struct Users {
    range: UserRange,
    /// Of the tasks.
    dir: PathBuf,
    /// Beside it.
    file: PathBuf,
    tasks: Arc<KnownTasks>,
    /// std mutex: held while a number is found and written.
    kept: Mutex<Option<Kept>>,
}

/// All numbers in turn are given, so that one comes again only when all others were used since.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    next: u32,
    #[serde(default)]
    by_name: BTreeMap<String, u32>,
    /// By services' ids: what tasks say, and files of earlier versions. Each goes to its name when it is asked for.
    #[serde(default)]
    by_service: BTreeMap<String, u32>,
}

impl Kept {
    fn give(&mut self, name: &str, uid: u32) {
        self.by_name.retain(|_, given| *given != uid);
        self.by_service.retain(|_, given| *given != uid);
        self.by_name.insert(name.to_owned(), uid);
    }
}

impl Users {
    /// `dir`: of the tasks.
    pub(super) fn new(range: UserRange, dir: &Path, tasks: Arc<KnownTasks>) -> Users {
        Users {
            range,
            file: dir.with_file_name("users"),
            dir: dir.to_owned(),
            tasks,
            kept: Mutex::default(),
        }
    }

    /// The number of a service, which is that of its group too. Errors: none is left, or it cannot be kept.
    pub(super) fn of(&self, service: &str, name: &str) -> io::Result<u32> {
        let mut held = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match held.take() {
            Some(kept) => kept,
            None => self.read()?,
        };
        let kept = held.insert(kept);
        let is_in_range = |uid: &u32| self.range.contains(*uid);
        if let Some(known) = kept.by_name.get(name).copied().filter(is_in_range) {
            return Ok(known);
        }
        let mut new = kept.clone();
        let uid = match kept.by_service.get(service).copied().filter(is_in_range) {
            Some(known) => known,
            None => {
                let found = self.find(kept)?;
                new.next = found.saturating_add(1);
                found
            }
        };
        new.give(name, uid);
        self.write(&new)?;
        *kept = new;
        Ok(uid)
    }

    /// One that nobody uses. Errors: none is left.
    fn find(&self, kept: &Kept) -> io::Result<u32> {
        let given: BTreeSet<u32> = kept.by_name.values().chain(kept.by_service.values()).copied().collect();
        let mut used = in_use(&self.tasks);
        used.extend(volumes::owners(&self.dir));
        let numbers = || self.range.from(kept.next).filter(|uid| !used.contains(uid));
        // Then that of a service which has no task and was given its own before all others.
        let found = numbers().find(|uid| !given.contains(uid)).or_else(|| numbers().next());
        found.ok_or_else(|| io::Error::other("process.users: all of them are used: expected a larger range"))
    }

    /// What cannot be read is made anew of the tasks that are there, so that these keep theirs.
    fn read(&self) -> io::Result<Kept> {
        let read = match fs::read(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.of_tasks()),
            read => read?,
        };
        serde_json::from_slice(&read).or_else(|error| {
            tracing::error!(file = %self.file.display(), %error, "who has which user is not known any more: new ones are given");
            let aside = self.file.with_extension("damaged");
            fs::rename(&self.file, aside)?;
            Ok(self.of_tasks())
        })
    }

    fn of_tasks(&self) -> Kept {
        let tasks = self.tasks.all();
        let by_service: BTreeMap<String, u32> = tasks
            .iter()
            .filter_map(|known| Some((known.service.clone()?, known.uid?)))
            .filter(|(_, uid)| self.range.contains(*uid))
            .collect();
        // Hardly where others were given theirs before.
        let next = fastrand::u32(self.range.first..=self.range.last);
        let by_name = BTreeMap::new();
        Kept {
            next,
            by_name,
            by_service,
        }
    }

    fn write(&self, kept: &Kept) -> io::Result<()> {
        let unfinished = self.file.with_extension("new");
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(&serde_json::to_vec(kept).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.file)?;
        match self.file.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Who has a task, a process, or a file where everybody may leave some.
fn in_use(tasks: &KnownTasks) -> BTreeSet<u32> {
    let tasks = tasks.all();
    let of_tasks = tasks.iter().filter_map(|known| known.uid);
    let entries = SHARED
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten();
    let owners = entries.filter_map(|entry| Some(entry.metadata().ok()?.uid()));
    of_tasks.chain(owners).collect()
}

/// In /proc, each process is its user's.
const SHARED: [&str; 4] = ["/proc", "/tmp", "/var/tmp", "/dev/shm"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(
            UserRange::parse(&UserRange::DEFAULT.to_string()),
            Some(UserRange::DEFAULT)
        );
        for bad in ["", "5", "0-10", "2000-1999", "1000-4294967295", "a-b", "-5-10"] {
            assert_eq!(UserRange::parse(bad), None, "{bad}");
        }
        let range = UserRange::parse("5000-5009").unwrap();
        for (kind, text, is_free) in [
            (List::Numbers, "root:x:0:0:::\nweb:x:5010:0::/:/bin/sh\nbroken\n", true),
            (List::Numbers, "web:x:5009:0::/:/bin/sh\n", false),
            (List::Ranges, "me:1000:4000\nyou:5010:65536\n", true),
            (List::Ranges, "me:1000:4001\n", false),
            (List::Ranges, "me:5003:1\n", false),
        ] {
            assert_eq!(range.is_free_of("list", kind, text).is_ok(), is_free, "{text}");
        }
        let error = range
            .is_free_of("/etc/subuid", List::Ranges, "me:1000:4001\n")
            .unwrap_err();
        assert!(
            error.starts_with("/etc/subuid has 1000 to 5000 for \"me\": expected "),
            "{error}"
        );
    }

    /// Users of this range, as after each start.
    fn new_users(parent: &Path, range: UserRange) -> Users {
        let tasks = parent.join("tasks");
        Users::new(range, &tasks, Arc::new(KnownTasks::new(tasks.clone())))
    }

    #[test]
    fn a_service_keeps_its_own_and_no_two_have_the_same() {
        let parent = tempfile::tempdir().unwrap();
        let range = UserRange::parse("5000-5003").unwrap();
        let new = || new_users(parent.path(), range);
        let users = new();
        let mut given: Vec<u32> = ["a", "b", "c", "d"]
            .iter()
            .map(|name| users.of(&format!("id-{name}"), name).unwrap())
            .collect();
        assert_eq!(users.of("id-c", "c").unwrap(), given[2]);
        // Of another run, and one that was removed and made again.
        let users = new();
        assert_eq!(users.of("id-b", "b").unwrap(), given[1]);
        assert_eq!(users.of("another", "b").unwrap(), given[1]);
        // The first that was given, since none of them is used.
        assert_eq!(users.of("id-e", "e").unwrap(), given[0]);
        given.sort_unstable();
        assert_eq!(given, [5000, 5001, 5002, 5003]);
        fs::write(parent.path().join("users"), "{ damaged").unwrap();
        assert!(range.contains(new().of("id-b", "b").unwrap()));
        assert!(parent.path().join("users.damaged").exists());
    }

    #[test]
    fn what_an_earlier_version_gave_by_ids_is_kept_by_name() {
        let parent = tempfile::tempdir().unwrap();
        let range = UserRange::parse("5000-5003").unwrap();
        let before = r#"{"next":5002,"by_service":{"id-a":5000,"id-b":5001}}"#;
        fs::write(parent.path().join("users"), before).unwrap();
        let users = new_users(parent.path(), range);
        assert_eq!(users.of("id-b", "b").unwrap(), 5001);
        assert_eq!(users.of("id-c", "c").unwrap(), 5002);
        let users = new_users(parent.path(), range);
        assert_eq!(users.of("of-later", "b").unwrap(), 5001);
        // Its own is still known by its id alone.
        assert_eq!(users.of("id-a", "a").unwrap(), 5000);
    }
}

//! Where things are mounted: the way there is gone name by name, and what is not there is made. On this host links are followed
//! that are root's; in what the task has mounted already, which others may write to, none. A directory to be bound is made in the
//! same way. Not here: what is mounted.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, mkdirat, openat, readlinkat};
use rustix::io::Errno;

use super::{hold, is_dir};
use crate::sys::mounts::{FileId, Place, path_of, place};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dir,
    File,
}

/// Leads to targets, one after another as they are mounted.
pub(super) struct Walk {
    /// The tops of what the task has mounted by now.
    tops: Vec<Place>,
    /// What would be hidden again.
    hidden: BTreeSet<FileId>,
    /// What the task's own directory lies in.
    kept: BTreeSet<FileId>,
}

impl Walk {
    /// Errors: in words, the task's own directory is not there.
    pub(super) fn new(hidden: &[PathBuf], own: &Path) -> Result<Walk, String> {
        let id = |path: &Path| Some(place(hold(path).ok()?).ok()?.file);
        let own = own
            .canonicalize()
            .map_err(|error| format!("{}: {error}", own.display()))?;
        Ok(Walk {
            tops: Vec::new(),
            hidden: hidden.iter().filter_map(|path| id(path)).collect(),
            kept: own.ancestors().filter_map(id).collect(),
        })
    }

    /// What was mounted.
    pub(super) fn add(&mut self, top: Place) {
        self.tops.push(top);
    }

    /// Something of that kind at `target`, made where there is none. Errors: in words, there can be none, or nothing may be
    /// mounted there.
    pub(super) fn to(&self, target: &Path, kind: Kind) -> Result<OwnedFd, String> {
        let (at, found) = self.go(target, kind)?;
        self.judge(&at, &found, kind)?;
        Ok(at)
    }

    /// What is at `path`, made where there is nothing, along with what it lies in.
    fn go(&self, path: &Path, kind: Kind) -> Result<(OwnedFd, Place), String> {
        let failed = |error: Errno| error.to_string();
        let mut ahead: VecDeque<OsString> = names(path);
        let mut at = hold(Path::new("/")).map_err(failed)?;
        let mut found = place(&at).map_err(|error| error.to_string())?;
        let (mut is_in_own, mut n_links) = (false, 0);
        while let Some(name) = ahead.pop_front() {
            let is_last = ahead.is_empty();
            let (next, next_found) = self.step(&at, &name, if is_last { kind } else { Kind::Dir })?;
            match FileType::from_raw_mode(next_found.mode) {
                FileType::Symlink => {
                    n_links += 1;
                    let link = shown(&at, &name);
                    if is_in_own || next_found.uid != 0 || n_links > LINKS_MAX {
                        return Err(format!(
                            "{link} is a link: expected directories, or links of root outside of the task's other mounts"
                        ));
                    }
                    let to = readlinkat(&next, "", Vec::new()).map_err(failed)?;
                    let to = Path::new(OsStr::from_bytes(to.as_bytes()));
                    if to.is_absolute() {
                        at = hold(Path::new("/")).map_err(failed)?;
                        found = place(&at).map_err(|error| error.to_string())?;
                    }
                    for name in names(to).into_iter().rev() {
                        ahead.push_front(name);
                    }
                    continue;
                }
                FileType::Directory => {}
                _ if is_last => {}
                _ => return Err(format!("{} is no directory", shown(&at, &name))),
            }
            is_in_own |= self.tops.iter().any(|top| top.mount == next_found.mount);
            if !is_in_own && self.hidden.contains(&next_found.file) {
                return Err(format!("{} is hidden from tasks", shown(&at, &name)));
            }
            (at, found) = (next, next_found);
        }
        Ok((at, found))
    }

    /// Whether something may be mounted there.
    fn judge(&self, at: &OwnedFd, found: &Place, kind: Kind) -> Result<(), String> {
        let path = path_of(at).map_err(|error| error.to_string())?;
        let is_top = |top: &Place| top.mount == found.mount && top.file == found.file;
        if self.tops.iter().any(is_top) {
            return Err("another of the task's mounts is there already".to_owned());
        }
        let is_own = self.tops.iter().any(|top| top.mount == found.mount);
        if !is_own && self.kept.contains(&found.file) {
            return Err(format!(
                "{} holds the task's own directory, which must stay in sight",
                path.display()
            ));
        }
        if let Some(reason) = is_kept_free(&path) {
            return Err(reason);
        }
        match (is_dir(found.mode), kind) {
            (true, Kind::Dir) | (false, Kind::File) => Ok(()),
            (true, Kind::File) => Err("it is a directory, and its source is none".to_owned()),
            (false, Kind::Dir) => Err("it is no directory, and its source is one".to_owned()),
        }
    }

    /// One name further; what is not there is made.
    fn step(&self, at: &OwnedFd, name: &OsStr, kind: Kind) -> Result<(OwnedFd, Place), String> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(at, name, flags, Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT) => {
                make(at, name, kind).map_err(|error| {
                    let place = shown(at, name);
                    match error {
                        Errno::ROFS => format!("{place} is not there, and cannot be made on what is read-only"),
                        error => format!("{place} is not there, and cannot be made: {error}"),
                    }
                })?;
                open()
            }
            opened => opened,
        };
        let opened = opened.map_err(|error| format!("{}: {error}", shown(at, name)))?;
        let found = place(&opened).map_err(|error| format!("{}: {error}", shown(at, name)))?;
        Ok((opened, found))
    }
}

/// Makes a directory on this host, with those that it lies in, where there is nothing at `path`. Whoever may write on the way
/// there has it made nowhere else. Errors: in words.
pub(in crate::agent::process) fn make_dir(path: &Path) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    let walk = Walk {
        tops: Vec::new(),
        hidden: BTreeSet::new(),
        kept: BTreeSet::new(),
    };
    walk.go(path, Kind::Dir).map(drop)
}

/// Others may have made it meanwhile.
fn make(at: &OwnedFd, name: &OsStr, kind: Kind) -> rustix::io::Result<()> {
    let made = match kind {
        Kind::Dir => mkdirat(at, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(at, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Why nothing is mounted there, by a path without links.
pub(super) fn is_kept_free(path: &Path) -> Option<String> {
    const MADE_FOR_TASKS: [&str; 3] = ["/proc", "/sys", "/dev"];
    if path == Path::new("/") {
        return Some("invalid specification: destination can't be '/'".to_owned());
    }
    if path.starts_with("/dev/shm") {
        return None;
    }
    let made = MADE_FOR_TASKS.into_iter().find(|made| path.starts_with(made))?;
    Some(format!(
        "what tasks have at {made} is made for them: expected another target"
    ))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

fn shown(at: &OwnedFd, name: &OsStr) -> String {
    let dir = path_of(at).unwrap_or_default();
    dir.join(name).display().to_string()
}

/// As the kernel has it.
const LINKS_MAX: u32 = 40;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    #[test]
    fn a_directory_is_made_nowhere_else_than_where_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["open/deep", "closed"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        make_dir(&at("open/deep/new/newer")).unwrap();
        assert!(at("open/deep/new/newer").is_dir());
        // What is there may be reached by whatever links.
        fs::create_dir(at("closed/there")).unwrap();
        symlink(at("closed"), at("open/link")).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            make_dir(&at("open/link/of/root")).unwrap();
            assert!(at("closed/of/root").is_dir());
            lchown(at("open/link"), Some(65_534), Some(65_534)).unwrap();
        }
        make_dir(&at("open/link/there")).unwrap();
        symlink("none", at("open/to-come")).unwrap();
        if is_root {
            lchown(at("open/to-come"), Some(65_534), Some(65_534)).unwrap();
        }
        for name in ["open/link/new", "open/link/there/new", "open/to-come"] {
            let error = make_dir(&at(name)).unwrap_err();
            assert!(
                error.contains(" is a link: expected directories, or links of root"),
                "{name}: {error}"
            );
        }
        assert!(!at("closed/new").exists() && !at("closed/there/new").exists() && !at("open/none").exists());
        fs::write(at("open/file"), "").unwrap();
        let error = make_dir(&at("open/file/new")).unwrap_err();
        assert!(error.ends_with("open/file is no directory"), "{error}");
    }
}

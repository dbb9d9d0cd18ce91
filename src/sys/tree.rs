//! Takes a directory away with all that is in it, whatever a program made of it: any depth, any number. Not here: which
//! directories there are, and on whose time it is done.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, chmod, fstat, openat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

/// Removes the directory `path` and all below it. Links are removed, not followed, and nothing is done to what is mounted
/// below. It takes three descriptors and no stack, however deep the tree is: a directory that is not empty is moved up to
/// the top before its turn comes, so that each is moved once at most.
///
/// Errors: what cannot be removed, by its place; all else is gone. `NotFound` when there is no such directory.
pub fn remove(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = openat(CWD, parent.unwrap_or_else(|| Path::new(".")), DIRECTORY, Mode::empty())?;
    let name = CString::new(name.as_bytes()).map_err(io::Error::other)?;
    let top = open_below(parent.as_fd(), &name)?;
    let mut emptied = Emptied {
        top: top.as_fd(),
        n_moved: 0,
        failed: None,
    };
    // What is moved up is found in the next round, if not in this one.
    while emptied.round()? {}
    match emptied.failed {
        Some((name, error)) => {
            let place = path.join(OsStr::from_bytes(name.to_bytes()));
            Err(io::Error::new(error.kind(), format!("{}: {error}", place.display())))
        }
        None => Ok(unlinkat(&parent, &*name, AtFlags::REMOVEDIR)?),
    }
}

struct Emptied<'a> {
    top: BorrowedFd<'a>,
    /// The next directory that is moved up gets this as its name.
    n_moved: u64,
    /// The first thing that could not be removed in this round, and why.
    failed: Option<(CString, io::Error)>,
}

impl Emptied<'_> {
    /// Goes once through what the top holds. Whether anything was removed or moved.
    fn round(&mut self) -> io::Result<bool> {
        self.failed = None;
        let (top, mut has_moved) = (self.top, false);
        for entry in Dir::read_from(top)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_self_or_parent(name) {
                continue;
            }
            let removed = match take(top, name, entry.file_type()) {
                Ok(true) => Ok(()),
                Ok(false) => self.empty(name, &mut has_moved),
                Err(error) => Err(error.into()),
            };
            match removed {
                Ok(()) => has_moved = true,
                Err(error) => drop(self.failed.get_or_insert_with(|| (name.to_owned(), error))),
            }
        }
        Ok(has_moved)
    }

    /// A directory of the top: what it holds is removed or moved up, then it.
    fn empty(&mut self, name: &CStr, has_moved: &mut bool) -> io::Result<()> {
        let dir = open_below(self.top, name)?;
        // Once more as long as something goes: meanwhile some may be passed over.
        loop {
            let (mut is_done, mut failed) = (true, None);
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if is_self_or_parent(name) {
                    continue;
                }
                let removed = match take(dir.as_fd(), name, entry.file_type()) {
                    Ok(true) => Ok(()),
                    Ok(false) => self.move_up(dir.as_fd(), name),
                    Err(error) => Err(error.into()),
                };
                match removed {
                    Ok(()) => is_done = false,
                    Err(error) => drop(failed.get_or_insert(error)),
                }
            }
            *has_moved |= !is_done;
            match (is_done, failed) {
                (false, _) => {}
                (true, Some(error)) => return Err(error),
                (true, None) => return Ok(unlinkat(self.top, name, AtFlags::REMOVEDIR)?),
            }
        }
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        loop {
            let new = format!("{MOVED}{}", self.n_moved);
            self.n_moved += 1;
            // An empty directory of that name would be replaced, which is well; another is in the way.
            match renameat(dir, name, self.top, &*new) {
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::ACCESS | Errno::PERM) if allow(dir, name).is_ok() => {
                    return Ok(renameat(dir, name, self.top, &*new)?);
                }
                moved => return Ok(moved?),
            }
        }
    }
}

/// Removes an entry of `dir`. `false`: it is a directory that is not empty.
fn take(dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool, Errno> {
    if kind != FileType::Directory {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            // Some file systems do not say what is what.
            Err(Errno::ISDIR | Errno::PERM) if kind == FileType::Unknown => {}
            Err(error) => return Err(error),
        }
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_self_or_parent(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// A directory of `dir`, and no other that is mounted there. One that its owner, whom we are, closed to himself is opened up.
fn open_below(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let found = open_on_same(dir, name, DIRECTORY)?;
    let mode = fstat(&found)?.st_mode;
    if mode & OWNERS == OWNERS || rustix::process::geteuid().is_root() {
        return Ok(found);
    }
    drop(found);
    allow(dir, name)?;
    Ok(open_on_same(dir, name, DIRECTORY)?)
}

fn open_on_same(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match openat2(dir, name, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and filters of system calls.
        Err(Errno::NOSYS | Errno::PERM) => {
            let found = openat(dir, name, flags, Mode::empty())?;
            match fstat(&found)?.st_dev == fstat(dir)?.st_dev {
                true => Ok(found),
                false => Err(Errno::XDEV),
            }
        }
        Err(Errno::ACCESS) if !flags.contains(OFlags::PATH) && allow(dir, name).is_ok() => {
            openat2(dir, name, flags, Mode::empty(), resolve)
        }
        opened => opened,
    }
}

/// Gives the owner of a directory all rights to it.
fn allow(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let found = open_on_same(dir, name, DIRECTORY | OFlags::PATH)?;
    let mode = fstat(&found)?.st_mode & 0o7777 | OWNERS;
    // A descriptor of this kind has no mode that could be changed otherwise.
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(chmod(itself, Mode::from_raw_mode(mode))?)
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const OWNERS: RawMode = 0o700;
const MOVED: &str = ".anynode-";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{chmodat, mkdirat};

    use super::*;

    /// A chain of directories in `dir`; each holds a file besides.
    fn deepen(dir: &Path, n_levels: usize) {
        let mut at = openat(CWD, dir, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..n_levels {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    }

    fn n_open() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn any_depth_takes_a_small_stack_and_few_descriptors() {
        // In memory: some disks take milliseconds for each directory.
        let in_memory = tempfile::tempdir_in("/dev/shm");
        let parent = in_memory.or_else(|_| tempfile::tempdir()).unwrap();
        let path = parent.path().join("task");
        fs::create_dir(&path).unwrap();
        deepen(&path, 60_000);
        // Names of ours may be there already, as whatever they like.
        fs::write(path.join(".anynode-0"), "").unwrap();
        fs::create_dir_all(path.join(".anynode-1/full")).unwrap();
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let before = n_open();
        let removing = small.spawn(move || remove(&path).unwrap()).unwrap();
        let mut most = 0;
        while !removing.is_finished() {
            most = most.max(n_open());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        removing.join().unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        // Other tests open files too.
        assert!(most < before + 200, "{most} descriptors, {before} before");
    }

    #[test]
    fn a_wide_tree_goes_whole() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("task");
        for n in 0..200 {
            let dir = path.join(format!("a{n}/b/c"));
            fs::create_dir_all(&dir).unwrap();
            (0..20).for_each(|n| fs::write(dir.join(n.to_string()), "").unwrap());
            fs::create_dir(path.join(format!("a{n}/b/empty"))).unwrap();
        }
        (0..2_000).for_each(|n| fs::write(path.join(format!("f{n}")), "").unwrap());
        remove(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(remove(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn links_are_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let outside = parent.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let path = parent.path().join("task");
        fs::create_dir_all(path.join("deep")).unwrap();
        for link in ["link", "deep/link"] {
            symlink(&outside, path.join(link)).unwrap();
        }
        remove(&path).unwrap();
        assert!(!path.exists() && outside.join("kept").exists());
        symlink(&outside, &path).unwrap();
        assert!(remove(&path).is_err());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn what_is_closed_to_its_owner_goes_too() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("task");
        fs::create_dir_all(path.join("closed/inner/more")).unwrap();
        for closed in ["closed/inner", "closed"] {
            fs::set_permissions(path.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        chmodat(CWD, &path, Mode::RUSR, AtFlags::empty()).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_is_mounted_below_stays() {
        if !std::process::Command::new("unshare")
            .args(["-m", "true"])
            .status()
            .is_ok_and(|status| status.success())
        {
            println!("skipped: this needs root and mount namespaces");
            return;
        }
        let parent = tempfile::tempdir().unwrap();
        let (path, outside) = (parent.path().join("task"), parent.path().join("outside"));
        fs::create_dir_all(path.join("deep/mounted")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let (enter, target) = (outside.clone(), path.join("deep/mounted"));
        // A thread of its own sees the mount, and nobody else.
        let removed = std::thread::spawn(move || {
            super::super::private::mount_in_this_thread(&enter, &target).unwrap();
            remove(target.parent().unwrap().parent().unwrap())
        });
        let error = removed.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("task/deep: "), "{error}");
        assert!(outside.join("kept").exists());
    }
}

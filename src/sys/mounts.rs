//! Mounts that are made before they are anywhere: a copy of a directory or a file, or an empty file system in memory. They are
//! put where a descriptor says, so that no path is looked up twice. Not here: which mounts there are to be, and where.

#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FsWord, StatxFlags, fstatfs, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};
use rustix::process::umask;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::view::{READ_ONLY, mount, set_attributes};

/// What a descriptor leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// In the namespace of who asked.
    pub mount: u64,
    pub file: FileId,
    pub mode: u32,
    pub uid: u32,
}

/// One file of this host, wherever it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    device: (u32, u32),
    inode: u64,
}

/// `at` is not followed. Errors: the kernel's.
pub fn place(at: impl AsFd) -> io::Result<Place> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = statx(at, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    Ok(Place {
        mount: found.stx_mnt_id,
        file: FileId {
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
        },
        mode: u32::from(found.stx_mode),
        uid: found.stx_uid,
    })
}

/// What shows the kernel itself, by the name of its kind, wherever it is mounted: of a chroot too. `None`: it holds files.
pub fn shows_kernel(at: impl AsFd) -> io::Result<Option<&'static str>> {
    let kind = fstatfs(at)?.f_type;
    let known = OF_KERNEL.iter().find(|(number, _)| *number == kind);
    Ok(known.map(|(_, name)| *name))
}

/// As linux/magic.h has them.
const OF_KERNEL: [(FsWord, &str); 12] = [
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpf"),
    (0x6265_6570, "configfs"),
    (0xde5e_81e4, "efivarfs"),
    (0x6165_676c, "pstore"),
    (0x4249_4e4d, "binfmt_misc"),
];

/// A mount that is nowhere yet; it is gone when this is dropped.
#[derive(Debug)]
pub struct Loose(OwnedFd);

/// How much of a mount is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOnly {
    /// With all that is mounted below.
    Whole,
    Top,
}

impl Loose {
    /// Of a directory or a file, which must have been opened in the mounts that this process sees. `with_below`: with all that
    /// is mounted below it. Nothing that is mounted there later, here or elsewhere, is seen on the other side.
    pub fn copy_of(source: BorrowedFd<'_>, with_below: bool) -> io::Result<Loose> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if with_below {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let copied = open_tree(source, "", flags)?;
        set_attributes(copied.as_fd(), c"", 0, PRIVATE, true)?;
        Ok(Loose(copied))
    }

    /// An empty one in memory. `size_bytes`: `None` for the kernel's default.
    pub fn in_memory(size_bytes: Option<u64>, mode: u32, has_programs: bool) -> io::Result<Loose> {
        let made = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(made.as_fd(), "source", "tmpfs")?;
        fsconfig_set_string(made.as_fd(), "mode", format!("{mode:o}"))?;
        if let Some(size) = size_bytes {
            fsconfig_set_string(made.as_fd(), "size", size.to_string())?;
        }
        fsconfig_create(made.as_fd())?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if !has_programs {
            attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
        }
        Ok(Loose(fsmount(made.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    pub fn make_read_only(&self, what: ReadOnly) -> io::Result<()> {
        set_attributes(self.0.as_fd(), c"", READ_ONLY, 0, what == ReadOnly::Whole)
    }

    /// Covers what `at` leads to. Answers the top of what is seen there now.
    pub fn put(self, at: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.0.as_fd(), "", at, "", flags)?;
        Ok(self.0)
    }
}

/// Where a descriptor leads, as a path that this thread would use.
pub fn path_of(at: impl AsFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/thread-self/fd/{}", at.as_fd().as_raw_fd()))
}

/// Where something is mounted, as this thread sees it.
pub fn mount_points() -> io::Result<Vec<PathBuf>> {
    let lines = std::fs::read("/proc/thread-self/mountinfo")?;
    let lines = lines.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points
        .map(|point| PathBuf::from(OsString::from_vec(unescaped(point))))
        .collect())
}

/// `\040` and the like stand for what would end a word.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::new(), word);
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let number = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(number.unwrap_or(*first));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    plain
}

/// Does it with mounts that nobody else sees, which are gone afterwards. Errors: the privilege is missing (CAP_SYS_ADMIN).
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("mounts".to_owned());
        let thread = builder.spawn_scoped(scope, || {
            // SAFETY: of this thread alone, which ends here, the view of files changes; descriptors are shared as before.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
            mount(None, "/".as_ref(), None, libc::MS_REC | libc::MS_SLAVE, "")?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Does it with files made as `mode` says, but for what nobody but the owner may write. Of a process with one thread, or of a
/// thread in `aside`.
pub fn with_usual_modes<T>(work: impl FnOnce() -> T) -> T {
    let before = umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    let done = work();
    umask(before);
    done
}

/// MS_PRIVATE, as the kernel has it.
const PRIVATE: u64 = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_places_are_unescaped() {
        for (word, plain) in [
            ("/a/b", "/a/b"),
            (r"/a\040b\134c", r"/a b\c"),
            (r"/\011\012", "/\t\n"),
            (r"/a\04", r"/a\04"),
            (r"/a\999", r"/a\999"),
            (r"\", r"\"),
        ] {
            assert_eq!(unescaped(word.as_bytes()), plain.as_bytes(), "{word}");
        }
    }

    fn hold(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap()
    }

    #[test]
    fn what_is_mounted_below_is_read_only_too_unless_it_is_not_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["source", "whole", "top", "alone"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let tried = aside(|| {
            let memory = |name: &str| {
                Loose::in_memory(None, 0o755, false)
                    .unwrap()
                    .put(hold(&at(name)).as_fd())
            };
            memory("source").unwrap();
            std::fs::create_dir(at("source/below")).unwrap();
            memory("source/below").unwrap();
            let source = hold(&at("source"));
            for (name, with_below, what) in [
                ("whole", true, ReadOnly::Whole),
                ("top", true, ReadOnly::Top),
                ("alone", false, ReadOnly::Whole),
            ] {
                let copy = Loose::copy_of(source.as_fd(), with_below).unwrap();
                copy.make_read_only(what).unwrap();
                copy.put(hold(&at(name)).as_fd()).unwrap();
            }
            std::fs::write(at("source/below/file"), "").unwrap();
            let may_write = |name: &str| std::fs::write(at(name), "").map_err(|error| error.raw_os_error());
            let refused = Err(Some(libc::EROFS));
            for name in ["whole/x", "top/x", "alone/x", "whole/below/x", "alone/below/x"] {
                assert_eq!(may_write(name), refused, "{name}");
            }
            assert_eq!(may_write("top/below/x"), Ok(()));
            assert_eq!(may_write("source/x"), Ok(()));
            assert!(at("whole/below/file").exists() && !at("alone/below/file").exists());
        });
        if tried.is_err() {
            println!("skipped: this needs root and mount namespaces");
        }
    }

    #[test]
    fn what_is_mounted_aside_is_seen_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let seen = aside(|| {
            let top = Loose::in_memory(Some(65_536), 0o700, false)?.put(hold(dir.path()).as_fd())?;
            std::fs::write(dir.path().join("file"), "")?;
            Ok::<_, io::Error>((path_of(&top)?, mount_points()?))
        });
        let Ok(seen) = seen else {
            println!("skipped: this needs root and mount namespaces");
            return;
        };
        let (path, points) = seen.unwrap();
        assert_eq!(path, dir.path());
        assert!(points.contains(&path) && !mount_points().unwrap().contains(&path));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! What a program sees of files, where that is less than what the host has: other users' processes and whole directories are
//! hidden, and what the kernel is told by is read-only. It is made by a process for itself and what it starts. Not here: who is
//! to see what, and the network (`private`).

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Whatever is mounted from here on is seen by this process, which must have its mounts for itself (`private::leave_mounts`),
/// and by what it starts; what others mount is seen here.
///
/// `hidden`: directories that seem empty and files that seem to hold nothing, all that is there of them; but for `shown`, a
/// directory that may be below one of them and stays as it is. What is open stays open. `has_root`: it is made for a program
/// of root, which finds no disks in /dev, and no other way around.
///
/// Errors: a step that failed. What was hidden by then stays hidden.
pub fn narrow(hidden: &[PathBuf], shown: &Path, has_root: bool) -> io::Result<()> {
    let named = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    let shown = fs::canonicalize(shown)?;
    let held = hold(&shown)?;
    let null = hold(Path::new("/dev/null"))?;
    let mut hidden: Vec<PathBuf> = hidden.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    // The upper ones first: what is below is hidden with them.
    hidden.sort();
    for path in hidden {
        let hide = || match fs::symlink_metadata(&path) {
            // It is hidden already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_dir() => hide_dir(&path, &shown, &held),
            Ok(_) => mount(Some(&itself(&null)), &path, None, libc::MS_BIND, ""),
        };
        hide().map_err(named(&path.display().to_string()))?;
    }
    // Made anew, for it is one that the whole host has otherwise. Without a group named, group 0 sees all.
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let proc = Path::new("/proc");
    mount(
        Some(Path::new("proc")),
        proc,
        Some("proc"),
        flags,
        "hidepid=2,gid=4294967294",
    )
    .map_err(named("/proc"))?;
    if has_root {
        for told in [
            "/proc/sys",
            "/proc/sysrq-trigger",
            "/proc/irq",
            "/proc/bus",
            "/proc/fs",
            "/sys",
        ] {
            let path = Path::new(told);
            if path.exists() {
                read_only(path).map_err(named(told))?;
            }
        }
        few_devices().map_err(named("/dev"))?;
    }
    Ok(())
}

fn hold(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn itself(held: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

fn hide_dir(dir: &Path, shown: &Path, held: &OwnedFd) -> io::Result<()> {
    let empty = Some(Path::new("tmpfs"));
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(empty, dir, Some("tmpfs"), flags, "mode=711,size=64k,nr_inodes=64")?;
    if let Ok(below) = shown.strip_prefix(dir) {
        let mut path = dir.to_owned();
        for part in below {
            path.push(part);
            DirBuilder::new().mode(0o711).create(&path)?;
            // Whatever was masked.
            fs::set_permissions(&path, Permissions::from_mode(0o711))?;
        }
        mount(Some(&itself(held)), shown, None, libc::MS_BIND, "")?;
    }
    let flags = flags | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    mount(None, dir, None, flags, "")
}

/// With all that is mounted below.
fn read_only(path: &Path) -> io::Result<()> {
    mount(Some(path), path, None, libc::MS_BIND | libc::MS_REC, "")?;
    set_attributes(rustix::fs::CWD, &text(path)?, READ_ONLY, 0, true)
}

/// Sets attributes of the mount at a path, which is none for that of `dir` itself, and how it takes part in what others mount
/// (`propagation`: 0 for as before). `with_below`: also of those that are mounted below.
pub(super) fn set_attributes(
    dir: BorrowedFd<'_>,
    path: &CStr,
    set: u64,
    propagation: u64,
    with_below: bool,
) -> io::Result<()> {
    let attributes = MountAttributes {
        set,
        propagation,
        ..MountAttributes::default()
    };
    let below = if with_below { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends with a zero and the attributes are of the size that is said; both live until the call has returned.
    let result = unsafe {
        libc::syscall(
            MOUNT_SETATTR,
            dir.as_raw_fd(),
            path.as_ptr(),
            below | libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As the kernel has it.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// The same number on all architectures; since Linux 5.12.
const MOUNT_SETATTR: libc::c_long = 442;
pub(super) const READ_ONLY: u64 = 1;

/// What a container has in /dev.
fn few_devices() -> io::Result<()> {
    let dev = Path::new("/dev");
    let kept = [
        "null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue",
    ];
    let held: Vec<(PathBuf, bool, OwnedFd)> = kept
        .iter()
        .map(|name| dev.join(name))
        .filter(|path| path.exists())
        .map(|path| Ok((path.clone(), path.is_dir(), hold(&path)?)))
        .collect::<io::Result<_>>()?;
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount(
        Some(Path::new("tmpfs")),
        dev,
        Some("tmpfs"),
        flags,
        "mode=755,size=64k,nr_inodes=64",
    )?;
    for (path, is_dir, held) in held {
        match is_dir {
            true => fs::create_dir(&path)?,
            false => drop(fs::File::create(&path)?),
        }
        mount(Some(&itself(&held)), &path, None, libc::MS_BIND | libc::MS_REC, "")?;
    }
    for (name, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(to, dev.join(name))?;
    }
    fs::set_permissions(dev, Permissions::from_mode(0o755))
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

pub(super) fn mount(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let source = source.map(text).transpose()?;
    let target = text(target)?;
    let kind = kind.map(|kind| text(Path::new(kind))).transpose()?;
    let options = text(Path::new(options))?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: the texts end with a zero and live until the call has returned; the first and the third may be null.
    let result = unsafe {
        libc::mount(
            pointer(&source),
            target.as_ptr(),
            pointer(&kind),
            flags,
            options.as_ptr().cast(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

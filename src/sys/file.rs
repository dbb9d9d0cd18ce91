//! What the kernel knows of a file beyond its bytes. Not here: reading it.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use inotify::Inotify;
use tokio::io::unix::AsyncFd;

/// Whether somebody has `file` open for writing; `None` where the kernel does not say (another user's file without
/// CAP_LEASE, or a file system without leases).
///
/// A read lease is only given while nobody does, so one is asked for and returned at once.
pub fn is_open_for_writing(file: &File) -> Option<bool> {
    let fd = file.as_raw_fd();
    // SAFETY: `fd` is open for as long as `file` is borrowed, and F_SETSIG and F_SETLEASE take integers, no pointers.
    // A writer who opens the file in between waits until the lease is returned below; the signal that announces it is
    // one that does nothing unless asked to, instead of SIGIO, which would end the process.
    let (taken, error) = unsafe {
        libc::fcntl(fd, F_SETSIG, libc::SIGURG);
        let taken = libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK);
        let error = std::io::Error::last_os_error();
        if taken == 0 {
            libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
        }
        (taken, error)
    };
    match error.raw_os_error() {
        _ if taken == 0 => Some(false),
        Some(libc::EAGAIN) => Some(true),
        _ => None,
    }
}

/// Lets tokio wait for the events of `inotify`. Errors: those of `epoll_ctl`.
pub fn wait_for_events(inotify: Inotify) -> std::io::Result<AsyncFd<Inotify>> {
    // SAFETY: `Inotify` owns its descriptor, keeps the same one for its life, and closes it only when dropped, which
    // happens after `AsyncFd` has let go of it.
    let events = unsafe { AsyncFd::register(inotify) };
    events.map_err(Into::into)
}

/// Linux: which signal announces that a lease is to be given up. From its uapi `asm-generic/fcntl.h`.
const F_SETSIG: libc::c_int = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_seen_and_not_kept_waiting() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let reader = File::open(&path).unwrap();
        assert_eq!(is_open_for_writing(&reader), Some(false));
        let writer = File::options().write(true).open(&path).unwrap();
        assert_eq!(is_open_for_writing(&reader), Some(true));
        drop(writer);
        assert_eq!(is_open_for_writing(&reader), Some(false));
    }
}

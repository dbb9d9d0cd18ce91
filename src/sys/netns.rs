//! A network namespace by the path that leads to it, whether it is still there, and who is in it. Not here: going in
//! (`entrances`), and what is opened there (`transparent`, `vips`).

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A network namespace and the way to it: `/run/netns/NAME`, `/proc/PID/ns/net`. Cheap to clone; holds no descriptor, so it
/// keeps nothing alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    path: Arc<Path>,
    id: NetnsId,
}

/// What one namespace has and no other, as long as it lives. The kernel gives the number again later: only together with
/// the path that led there does it say that a namespace is still the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    pub device: u64,
    pub inode: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The process has ended, or the name was taken away.
    #[error("network namespace {}: gone", path.display())]
    Gone { path: PathBuf },
    /// The path leads to another namespace by now.
    #[error("network namespace {}: another one is there by now", path.display())]
    Replaced { path: PathBuf },
    #[error("network namespace {}: not a network namespace, expected a path such as /run/netns/NAME or /proc/PID/ns/net", path.display())]
    NotOne { path: PathBuf },
    #[error("open the network namespace {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        err: io::Error,
    },
}

impl Netns {
    /// Looks which namespace is at `path`. Errors: it is none, or cannot be opened.
    pub fn at(path: impl AsRef<Path>) -> Result<Netns, NetnsError> {
        let path = path.as_ref();
        let (_file, id) = open(path)?;
        Ok(Netns { path: path.into(), id })
    }

    /// The namespace of a process. Errors: as `at`.
    pub fn of_process(pid: u32) -> Result<Netns, NetnsError> {
        Netns::at(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace of the calling thread. Its path is that of the thread's process. Errors: as `at`.
    pub fn own() -> Result<Netns, NetnsError> {
        Netns::at("/proc/self/ns/net")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// A descriptor of it; while it is open the namespace stays. Errors: it is gone, or another is in its place.
    pub fn open(&self) -> Result<OwnedFd, NetnsError> {
        let (file, id) = open(&self.path)?;
        match id == self.id {
            true => Ok(file.into()),
            false => Err(NetnsError::Replaced {
                path: self.path.to_path_buf(),
            }),
        }
    }

    /// Whether the path still leads to it. It may live on without: a socket of ours that is left in it is enough.
    pub fn is_there(&self) -> bool {
        self.open().is_ok()
    }

    /// Which processes are in it, as far as /proc shows them to us. Looks at each process there is, so not for every day.
    ///
    /// A namespace with a name of its own (`/run/netns`) may have none and wait for one. Errors: those of reading /proc.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // One that has ended meanwhile, or is another user's, is not found. The file behind the link is the namespace.
            let is_in = fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| id_of(&meta) == self.id);
            if is_in {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// The process whose end takes the path away, if it is one of `/proc/PID`.
    pub fn process(&self) -> Option<u32> {
        let rest = self.path.strip_prefix("/proc").ok()?;
        rest.components().next()?.as_os_str().to_str()?.parse().ok()
    }
}

/// The way to the namespace of a container's process, if it is another than this program's and this program may enter it
/// (CAP_SYS_ADMIN).
///
/// Whoever has another view of processes, as in a container of its own, finds none or its own.
pub fn of_container(pid: i64) -> Option<Arc<Path>> {
    let may_enter = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
    if !may_enter {
        return None;
    }
    let netns = Netns::of_process(u32::try_from(pid).ok()?).ok()?;
    (netns.id != Netns::own().ok()?.id).then_some(netns.path)
}

/// Waits until the process `pid` has ended; at once if there is none. Costs a descriptor while it waits.
///
/// Errors: those of pidfd_open(2); no runtime that does input and output.
pub async fn process_ended(pid: u32) -> io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let held = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(held) => held,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // SAFETY: the descriptor is owned by what is registered, which never gives it away: it is closed after `AsyncFd` has let
    // go of it.
    let held = unsafe { AsyncFd::register_with_interest(held, Interest::READABLE)? };
    held.readable().await.map(drop)
}

/// Tells that something was mounted or unmounted where this process sees it. A namespace with a name is a mount, so that
/// its end is among this. One descriptor for all namespaces, and nothing asks in between.
#[derive(Debug)]
pub struct Mounts {
    table: AsyncFd<File>,
}

impl Mounts {
    /// From now on. Errors: those of `open`; no runtime that does input and output.
    pub fn watch() -> io::Result<Mounts> {
        let table = File::open("/proc/self/mountinfo")?;
        // SAFETY: the file is owned by what is registered, which is private here and never gives it away: it is closed after
        // `AsyncFd` has let go of it.
        let table = unsafe { AsyncFd::register_with_interest(table, Interest::PRIORITY)? };
        Ok(Mounts { table })
    }

    /// Returns when anything changed since the last time. Ask `Netns::is_there` then. Errors: those of the runtime.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.table.ready(Interest::PRIORITY).await?;
        ready.clear_ready();
        Ok(())
    }
}

fn open(path: &Path) -> Result<(File, NetnsId), NetnsError> {
    let failed = |err: io::Error| match err.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => NetnsError::Gone { path: path.into() },
        _ => NetnsError::Open { path: path.into(), err },
    };
    // Whatever else may be there is not waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    if !is_netns(&file) {
        return Err(NetnsError::NotOne { path: path.into() });
    }
    let id = file.metadata().map(|meta| id_of(&meta)).map_err(failed)?;
    Ok((file, id))
}

fn id_of(meta: &fs::Metadata) -> NetnsId {
    NetnsId {
        device: meta.st_dev(),
        inode: meta.st_ino(),
    }
}

/// The kernel is asked by a request that only namespaces know.
fn is_netns(file: &File) -> bool {
    // SAFETY: the descriptor is open during the call; NS_GET_NSTYPE takes no argument and writes nothing.
    unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_has_one_identity() {
        let own = Netns::own().unwrap();
        let same = Netns::of_process(std::process::id()).unwrap();
        assert_eq!(own.id(), same.id());
        assert!(own.is_there());
        assert_eq!((own.process(), same.process()), (None, Some(std::process::id())));
        assert!(own.processes().unwrap().contains(&std::process::id()));
    }

    #[test]
    fn what_is_no_network_namespace_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let others = [
            file.as_path(),
            &fifo,
            dir.path(),
            Path::new("/proc/self/ns/mnt"),
            Path::new("/dev/null"),
        ];
        for path in others {
            let error = Netns::at(path).unwrap_err();
            assert!(matches!(error, NetnsError::NotOne { .. }), "{path:?}: {error:?}");
        }
        for path in [&dir.path().join("none"), Path::new("/proc/999999999/ns/net")] {
            let error = Netns::at(path).unwrap_err();
            assert!(matches!(error, NetnsError::Gone { .. }), "{path:?}: {error:?}");
        }
        let within_file = Netns::at(file.join("x")).unwrap_err();
        assert!(matches!(within_file, NetnsError::Open { .. }), "{within_file:?}");
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_told() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let ended = process_ended(child.id());
        tokio::pin!(ended);
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut ended).await;
        assert!(early.is_err());
        child.kill().unwrap();
        ended.await.unwrap();
        child.wait().unwrap();
        process_ended(child.id()).await.unwrap();
    }
}

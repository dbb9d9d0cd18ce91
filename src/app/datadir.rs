//! The data directory: made when missing, and locked against a second process for as long as this one runs, or longer if it
//! hands the lock on. What is kept in it is its owner's alone; tasks that run as other users pass through it to their files,
//! without seeing what else is there. Modes that an earlier version or an umask left otherwise are put right.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data_dir = {path}: another anynode uses it: expected a directory of its own for each")]
    InUse { path: PathBuf },
    #[error("data_dir = {path}: expected a directory that can be written to")]
    Open {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "data_dir = {path}: another anynode handed over a lock that is not {FILE}: expected it to use this directory"
    )]
    OtherLock { path: PathBuf },
}

/// The lock; held until dropped or the process ends, however it ends, by each process that it was handed to.
#[derive(Debug)]
pub(super) struct DataDirLock {
    file: File,
}

impl AsFd for DataDirLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes and locks `path`. `None`: another process has it.
pub(super) fn try_lock(path: &Path) -> Result<Option<DataDirLock>, DataDirError> {
    let open = |error| DataDirError::Open {
        path: path.to_owned(),
        error,
    };
    let is_new = !path.exists();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(open)?;
    // Some other directory, such as /tmp, stays as it is until it is known to be one of anynode's.
    let is_own = is_new || path.join(FILE).exists();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.join(FILE))
        .map_err(open)?;
    put_modes_right(path, is_own);
    match file.try_lock() {
        Ok(()) => Ok(Some(DataDirLock { file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(open(error)),
    }
}

/// Takes the lock of `path` from the process that has it. Errors: `fd` is another.
pub(super) fn adopt(path: &Path, fd: OwnedFd) -> Result<DataDirLock, DataDirError> {
    let file = File::from(fd);
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let expected = std::fs::metadata(path.join(FILE)).map(identity);
    match (file.metadata().map(identity), expected) {
        (Ok(is), Ok(expected)) if is == expected => Ok(DataDirLock { file }),
        _ => Err(DataDirError::OtherLock { path: path.to_owned() }),
    }
}

/// What cannot be put right (another user's) stays as it is.
fn put_modes_right(dir: &Path, is_own: bool) {
    if is_own || std::fs::read_dir(dir).is_ok_and(|entries| entries.count() == 1) {
        put_right(dir, 0o711);
    }
    put_right(&dir.join(TASKS), 0o711);
    put_right(&dir.join(STORE), 0o700);
    let kept = PRIVATE.iter().flat_map(|name| {
        let besides = ["", ".new", ".damaged", ".broken"];
        besides.map(|end| dir.join(format!("{name}{end}")))
    });
    let store = std::fs::read_dir(dir.join(STORE)).into_iter().flatten().flatten();
    for path in kept.chain(store.map(|entry| entry.path())) {
        put_right(&path, 0o600);
    }
    put_tree_right(&dir.join(ACME), ACME_DEPTH);
}

/// All that is in it is its owner's alone. `depth`: of directories below it. No link is followed.
fn put_tree_right(path: &Path, depth: usize) {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return;
    };
    if !metadata.is_dir() {
        return put_right(path, 0o600);
    }
    put_right(path, 0o700);
    if let Some(depth) = depth.checked_sub(1) {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.for_each(|entry| put_tree_right(&entry.path(), depth));
    }
}

/// A link is not followed.
fn put_right(path: &Path, mode: u32) {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return;
    };
    let is_right = metadata.permissions().mode() & 0o777 == mode;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    // Where many users make their files is nobody's data directory.
    let is_shared = metadata.permissions().mode() & 0o1000 != 0;
    if metadata.is_symlink() || is_right || !is_own || is_shared {
        return;
    }
    let special = metadata.permissions().mode() & 0o6000;
    match std::fs::set_permissions(path, std::fs::Permissions::from_mode(special | mode)) {
        Ok(()) => tracing::debug!(path = %path.display(), "mode {mode:o} now"),
        Err(error) => tracing::warn!(path = %path.display(), %error, "expected mode {mode:o}"),
    }
}

const FILE: &str = "lock";
const STORE: &str = "store";
const TASKS: &str = "tasks";
/// In it a directory for each authority, in that one of certificates, in that files.
const ACME: &str = "acme";
const ACME_DEPTH: usize = 3;
/// What other rooms keep in the directory itself.
const PRIVATE: [&str; 6] = [
    FILE,
    "services.last-good.yaml",
    "vips.json",
    "cluster.json",
    "link.key.pem",
    "link.certificate.pem",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn modes_of_an_earlier_version_are_put_right_and_other_directories_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        drop(try_lock(&dir).unwrap().unwrap());
        assert_eq!((mode(&dir), mode(&dir.join(FILE))), (0o711, 0o600));
        for below in [STORE, TASKS] {
            std::fs::create_dir(dir.join(below)).unwrap();
            set(&dir.join(below), 0o755);
        }
        let files = [
            "services.last-good.yaml",
            "cluster.json",
            "vips.json",
            "store/store.redb",
            "store/store.key",
        ];
        for file in files {
            std::fs::write(dir.join(file), "").unwrap();
            set(&dir.join(file), 0o644);
        }
        let acme = ["acme", "acme/le", "acme/le/certificates"];
        for below in acme {
            std::fs::create_dir(dir.join(below)).unwrap();
            set(&dir.join(below), 0o755);
        }
        let of_acme = ["acme/le/account.json", "acme/le/certificates/a.test.json"];
        for file in of_acme {
            std::fs::write(dir.join(file), "").unwrap();
            set(&dir.join(file), 0o644);
        }
        let outside = parent.path().join("outside");
        std::fs::write(&outside, "").unwrap();
        set(&outside, 0o644);
        std::os::unix::fs::symlink(&outside, dir.join("acme/le/link")).unwrap();
        std::fs::write(dir.join("services.yml"), "").unwrap();
        set(&dir.join("services.yml"), 0o644);
        for wrong in [0o755, 0o700, 0o777] {
            set(&dir, wrong);
            drop(try_lock(&dir).unwrap().unwrap());
            assert_eq!(mode(&dir), 0o711, "{wrong:o}");
        }
        assert_eq!((mode(&dir.join(STORE)), mode(&dir.join(TASKS))), (0o700, 0o711));
        for file in files {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
        for below in acme {
            assert_eq!(mode(&dir.join(below)), 0o700, "{below}");
        }
        for file in of_acme {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
        assert_eq!(mode(&outside), 0o644, "what a link leads to");
        assert_eq!(mode(&dir.join("services.yml")), 0o644, "the user's own");
        // A directory that is not anynode's, and one that is everybody's.
        let other = parent.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("something"), "").unwrap();
        set(&other, 0o755);
        drop(try_lock(&other).unwrap().unwrap());
        assert_eq!(mode(&other), 0o755);
        let shared = parent.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        set(&shared, 0o1777);
        drop(try_lock(&shared).unwrap().unwrap());
        assert_eq!(mode(&shared), 0o1777);
    }
}

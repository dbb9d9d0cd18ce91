//! The data directory: made when missing, and locked against a second process for as long as this one runs, or longer if it
//! hands the lock on.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
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
    std::fs::create_dir_all(path).map_err(open)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(FILE))
        .map_err(open)?;
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

const FILE: &str = "lock";

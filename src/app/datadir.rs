//! The data directory: made when missing, and locked against a second process for as long as this one runs.

use std::fs::{File, TryLockError};
use std::io;
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
}

/// The lock; held until dropped or the process ends, however it ends.
#[derive(Debug)]
pub(super) struct DataDirLock {
    _file: File,
}

/// Makes and locks `path`.
pub(super) fn lock(path: &Path) -> Result<DataDirLock, DataDirError> {
    let open = |error| DataDirError::Open {
        path: path.to_owned(),
        error,
    };
    std::fs::create_dir_all(path).map_err(open)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("lock"))
        .map_err(open)?;
    match file.try_lock() {
        Ok(()) => Ok(DataDirLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(open(error)),
    }
}

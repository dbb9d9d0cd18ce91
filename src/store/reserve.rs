//! Room on disk that is the store's before it needs it: whoever fills the disk cannot keep what is declared from being changed
//! and removed. It is allocated to the store's own file, behind its end: room that is only kept free is anybody's. Not here:
//! what is refused once there is none (`writer`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// As much as the file has, within these bounds: it doubles when it grows.
const MIN_BYTES: u64 = 256 << 10;
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    /// `None` before it is first held.
    file: Option<File>,
    /// As it was the last time.
    len: u64,
    /// Up to here the file has all of its room.
    held_to: u64,
}

impl Reserve {
    /// For the file at `path`. Where there is none, nothing is held.
    pub(super) fn new(path: &Path) -> Reserve {
        Reserve {
            path: path.to_owned(),
            file: None,
            len: 0,
            held_to: 0,
        }
    }

    /// Holds what there should be; one system call where it is held already.
    ///
    /// Errors: the disk has no room for it. What cannot be held for another reason is done without.
    pub(super) fn hold(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = File::options().write(true).open(&self.path).ok();
        }
        let Some(file) = &self.file else { return Ok(()) };
        let Ok(len) = file.metadata().map(|metadata| metadata.len()) else {
            return Ok(());
        };
        if len < self.len {
            // What was behind its end is gone.
            self.held_to = self.held_to.min(len);
        }
        self.len = len;
        let wanted = len + len.clamp(MIN_BYTES, MAX_BYTES);
        if wanted <= self.held_to {
            return Ok(());
        }
        match fallocate(file, FallocateFlags::KEEP_SIZE, self.held_to, wanted - self.held_to) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT)) => return Err(error.into()),
            // A file system that knows no such thing, or one that fails: writing will say.
            Ok(()) | Err(_) => self.held_to = wanted,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn as_much_as_the_file_has_and_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut reserve = Reserve::new(&path);
        reserve.hold().unwrap();
        for len in [1 << 20, 3 << 20, 1 << 20, 0] {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .unwrap();
            file.set_len(len).unwrap();
            reserve.hold().unwrap();
            let metadata = std::fs::metadata(&path).unwrap();
            assert_eq!(metadata.len(), len);
            assert!(
                metadata.blocks() * 512 >= len + len.clamp(MIN_BYTES, MAX_BYTES),
                "{len}"
            );
        }
    }
}

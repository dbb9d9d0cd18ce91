//! The files that a keeper writes its task's output to: one that grows, and older ones, which are put aside and at last removed.
//! Not here: how they are read (`logs`).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::job::{Dir, Job};
use crate::model::swarm::Time;

/// The files of a task's output, numbered from the one that is written.
///
/// Whoever reads may look at any moment. So there is no number without its file between others, not even for a moment: a file
/// has two numbers while it is put aside.
pub(super) struct LogFiles {
    dir: Dir,
    file: File,
    length: u64,
    most: u64,
    n_files: u32,
}

impl LogFiles {
    /// Errors: the first of them cannot be opened.
    pub(super) fn open(dir: Dir, job: &Job) -> io::Result<LogFiles> {
        let file = File::options().append(true).create(true).mode(0o600).open(dir.log(0))?;
        Ok(LogFiles {
            length: file.metadata()?.len(),
            file,
            dir,
            most: job.log_bytes_max,
            n_files: job.log_files.max(1),
        })
    }

    /// Writes a line of the stream 1 or 2. Errors: a full disk, mostly. The line is lost then, or the end of it.
    pub(super) fn write(&mut self, stream: u8, line: &[u8]) -> io::Result<()> {
        let mut record = format!("{} {stream} ", Time::now()).into_bytes();
        record.extend_from_slice(line);
        record.push(b'\n');
        if self.length > 0 && self.length + record.len() as u64 > self.most {
            self.put_aside()?;
        }
        self.file.write_all(&record)?;
        self.length += record.len() as u64;
        Ok(())
    }

    fn put_aside(&mut self) -> io::Result<()> {
        // First, so that all stays as it is where there is no room for another file.
        let new = self.dir.log_aside();
        remove(&new)?;
        let file = File::options().append(true).create_new(true).mode(0o600).open(&new)?;
        let moved = self.dir.log_moved();
        for n in (1..self.n_files).rev() {
            remove(&moved)?;
            match std::fs::hard_link(self.dir.log(n - 1), &moved) {
                Ok(()) => std::fs::rename(&moved, self.dir.log(n))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        std::fs::rename(&new, self.dir.log(0))?;
        (self.file, self.length) = (file, 0);
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

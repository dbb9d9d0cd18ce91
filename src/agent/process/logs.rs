//! Reads what a keeper wrote of its task's output, and goes on with what it writes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream;

use super::job::Dir;
use crate::agent::{LogLine, LogQuery, LogStream};
use crate::model::swarm::Time;

/// Errors: there is no output, since there is no such task.
pub(super) fn read(dir: Dir, query: LogQuery) -> io::Result<LogStream> {
    let newest = match File::open(dir.log(0)) {
        Ok(file) => file,
        // It was never started.
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.path().exists() => {
            return Ok(Box::pin(stream::empty()));
        }
        Err(error) => return Err(error),
    };
    let reader = Reader {
        dir,
        query,
        file: BufReader::new(newest),
        ready: VecDeque::new(),
    };
    let reader = reader.with_older()?;
    Ok(Box::pin(stream::unfold(reader, |mut reader| async move {
        let line = reader.next().await?;
        Some((line, reader))
    })))
}

struct Reader {
    dir: Dir,
    query: LogQuery,
    /// The file that is written, read up to the last whole line.
    file: BufReader<File>,
    ready: VecDeque<LogLine>,
}

impl Reader {
    fn with_older(mut self) -> io::Result<Reader> {
        let mut older: Vec<File> = (1..).map_while(|n| File::open(self.dir.log(n)).ok()).collect();
        older.reverse();
        for file in older {
            let mut file = BufReader::new(file);
            while let Some(line) = next_line(&mut file)? {
                self.take(line);
            }
        }
        while let Some(line) = next_line(&mut self.file)? {
            self.take(line);
        }
        Ok(self)
    }

    fn take(&mut self, line: LogLine) {
        if !self.query.wants(&line) {
            return;
        }
        self.ready.push_back(line);
        if self.query.tail.is_some_and(|tail| self.ready.len() > tail) {
            self.ready.pop_front();
        }
    }

    async fn next(&mut self) -> Option<LogLine> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                // From here on all that comes is wanted.
                self.query.tail = None;
                return Some(line);
            }
            if !self.query.follow {
                return None;
            }
            self.query.tail = None;
            let is_over = self.dir.exit_code().is_some() || !self.dir.path().exists();
            let before = self.ready.len();
            while let Ok(Some(line)) = next_line(&mut self.file) {
                self.take(line);
            }
            if self.ready.len() > before {
                continue;
            }
            if self.is_put_aside() {
                match File::open(self.dir.log(0)) {
                    Ok(file) => self.file = BufReader::new(file),
                    Err(_) => return None,
                }
                continue;
            }
            if is_over {
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Another file is written now.
    fn is_put_aside(&self) -> bool {
        let of = |metadata: io::Result<std::fs::Metadata>| metadata.map(|metadata| metadata.ino()).ok();
        of(self.file.get_ref().metadata()) != of(std::fs::metadata(self.dir.log(0)))
    }
}

/// The next whole line; one that is still being written is left for later.
fn next_line(file: &mut BufReader<File>) -> io::Result<Option<LogLine>> {
    use std::io::Seek;
    loop {
        let mut record = Vec::new();
        let n = file.read_until(b'\n', &mut record)?;
        if record.last() != Some(&b'\n') {
            file.seek_relative(-i64::try_from(n).unwrap_or(0))?;
            let _ = file.stream_position()?;
            return Ok(None);
        }
        // What cannot be read is passed over.
        if let Some(line) = parse(&record) {
            return Ok(Some(line));
        }
    }
}

fn parse(record: &[u8]) -> Option<LogLine> {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    let mut parts = record.splitn(3, |byte| *byte == b' ');
    let at: SystemTime = humantime::parse_rfc3339(std::str::from_utf8(parts.next()?).ok()?).ok()?;
    let is_stderr = parts.next()? == b"2";
    Some(LogLine {
        at: Time::from(at),
        is_stderr,
        bytes: Bytes::copy_from_slice(parts.next()?),
    })
}

const LOOK_EVERY: Duration = Duration::from_millis(100);

//! Reads what a keeper wrote of its task's output, and goes on with what it writes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::job::Dir;
use crate::agent::{LogLine, LogQuery, LogStream};
use crate::model::swarm::Time;

/// Errors: there is no output, since there is no such task.
pub(super) fn read(dir: Dir, query: LogQuery) -> io::Result<LogStream> {
    let Some(oldest) = oldest(&dir) else {
        // It was never started.
        return match dir.path().exists() {
            true => Ok(stream::empty().boxed()),
            false => Err(io::Error::new(io::ErrorKind::NotFound, "it has no output here")),
        };
    };
    let reader = Reader {
        dir,
        query,
        file: BufReader::new(oldest),
        ready: VecDeque::new(),
    };
    let lines = async move {
        // What was written until now may be long, and is read from disk.
        match tokio::task::spawn_blocking(move || reader.caught_up()).await {
            Ok(reader) => stream::unfold(reader, |mut reader| async move {
                let line = reader.next().await?;
                Some((line, reader))
            })
            .boxed(),
            // This program ends.
            Err(_) => stream::empty().boxed(),
        }
    };
    Ok(stream::once(lines).flatten().boxed())
}

struct Reader {
    dir: Dir,
    query: LogQuery,
    /// Read up to the last whole line.
    file: BufReader<File>,
    ready: VecDeque<LogLine>,
}

impl Reader {
    /// With all that was written until now.
    fn caught_up(mut self) -> Reader {
        loop {
            self.take_lines();
            if !self.goes_on() {
                break self;
            }
        }
    }

    fn take_lines(&mut self) {
        // What cannot be read is as good as not there.
        while let Ok(Some(line)) = next_line(&mut self.file) {
            if !self.query.wants(&line) {
                continue;
            }
            self.ready.push_back(line);
            if self.query.tail.is_some_and(|tail| self.ready.len() > tail) {
                self.ready.pop_front();
            }
        }
    }

    /// Whether there is a file after this one; then it is the one that is read.
    fn goes_on(&mut self) -> bool {
        let this = self.file.get_ref().metadata().map(|metadata| metadata.ino()).ok();
        if this == inode(&self.dir, 0) {
            return false;
        }
        // It was put aside, and nothing is written to it any more.
        self.take_lines();
        let next = match (1..)
            .map_while(|n| Some((n, inode(&self.dir, n)?)))
            .find(|(_, ino)| Some(*ino) == this)
        {
            Some((n, _)) => File::open(self.dir.log(n - 1)).ok(),
            // It was removed, having been the oldest.
            None => oldest(&self.dir),
        };
        match next {
            // Put aside once more between two looks: the next look finds out.
            Some(next) if next.metadata().map(|metadata| metadata.ino()).ok() != this => {
                self.file = BufReader::new(next);
                true
            }
            _ => false,
        }
    }

    async fn next(&mut self) -> Option<LogLine> {
        loop {
            // From here on all that comes is wanted.
            self.query.tail = None;
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if !self.query.follow {
                return None;
            }
            // Asked before it is read: what is said last is read then.
            let is_over = self.dir.exit_code().is_some() || !self.dir.has_keeper();
            self.take_lines();
            if self.ready.is_empty() && !self.goes_on() {
                if is_over {
                    return None;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

fn inode(dir: &Dir, n: u32) -> Option<u64> {
    std::fs::metadata(dir.log(n)).map(|metadata| metadata.ino()).ok()
}

fn oldest(dir: &Dir) -> Option<File> {
    let all = (0..).map_while(|n| File::open(dir.log(n)).ok());
    all.last()
}

/// The next whole line; one that is still being written is left for later.
fn next_line(file: &mut BufReader<File>) -> io::Result<Option<LogLine>> {
    loop {
        let mut record = Vec::new();
        let n = file.read_until(b'\n', &mut record)?;
        if record.last() != Some(&b'\n') {
            let n = i64::try_from(n).map_err(io::Error::other)?;
            file.seek(io::SeekFrom::Current(-n))?;
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Written {
        _parent: tempfile::TempDir,
        dir: Dir,
    }

    impl Written {
        fn new() -> Written {
            let parent = tempfile::tempdir().unwrap();
            let dir = Dir::new(parent.path().join("task"));
            dir.make(None).unwrap();
            Written { _parent: parent, dir }
        }

        fn write(&self, text: &str) {
            let file = File::options().append(true).create(true).open(self.dir.log(0));
            file.unwrap().write_all(text.as_bytes()).unwrap();
        }

        fn line(&self, second: u32, stream: u8, text: &str) {
            self.write(&format!("2026-01-01T00:00:{second:02}.000000000Z {stream} {text}\n"));
        }

        fn put_aside(&self) {
            for n in (0..3).rev() {
                drop(std::fs::rename(self.dir.log(n), self.dir.log(n + 1)));
            }
        }

        async fn read(&self, query: LogQuery) -> Vec<String> {
            texts(read(self.dir.clone(), query).unwrap().collect::<Vec<_>>().await)
        }
    }

    fn texts(lines: Vec<LogLine>) -> Vec<String> {
        let text = |line: LogLine| String::from_utf8_lossy(&line.bytes).into_owned();
        lines.into_iter().map(text).collect()
    }

    const ALL: LogQuery = LogQuery {
        follow: false,
        tail: None,
        since: None,
        until: None,
        stdout: true,
        stderr: true,
    };

    fn second(second: u32) -> Option<Time> {
        let text = format!("2026-01-01T00:00:{second:02}Z");
        Some(humantime::parse_rfc3339(&text).unwrap().into())
    }

    #[tokio::test]
    async fn lines_of_all_files_in_their_order() {
        let written = Written::new();
        written.line(1, 1, "one");
        written.line(2, 2, "two");
        written.put_aside();
        written.line(3, 1, "");
        written.put_aside();
        written.line(4, 1, "four 4");
        written.write("nonsense\n2026-01-01T00:00:05Z 1 half");
        for (query, expected) in [
            (ALL, &["one", "two", "", "four 4"][..]),
            (LogQuery { tail: Some(2), ..ALL }, &["", "four 4"]),
            (LogQuery { tail: Some(0), ..ALL }, &[]),
            (LogQuery { stderr: false, ..ALL }, &["one", "", "four 4"]),
            (
                LogQuery {
                    stdout: false,
                    tail: Some(9),
                    ..ALL
                },
                &["two"],
            ),
            (
                LogQuery {
                    since: second(2),
                    until: second(3),
                    ..ALL
                },
                &["two", ""],
            ),
        ] {
            assert_eq!(written.read(query).await, expected, "{query:?}");
        }
    }

    #[tokio::test]
    async fn one_that_was_not_started_has_said_nothing() {
        let written = Written::new();
        assert!(written.read(ALL).await.is_empty());
        assert!(read(Dir::new("/nonexistent".into()), ALL).is_err());
    }

    #[tokio::test]
    async fn who_follows_misses_nothing_that_is_put_aside_and_ends_with_the_task() {
        let written = Written::new();
        let lock = written.dir.lock().unwrap().unwrap();
        written.line(1, 1, "before");
        let lines = read(
            written.dir.clone(),
            LogQuery {
                follow: true,
                tail: Some(0),
                ..ALL
            },
        )
        .unwrap();
        let reading = tokio::spawn(lines.collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(50)).await;
        // All of this between two looks.
        written.line(2, 1, "a");
        written.put_aside();
        written.line(3, 1, "b");
        written.put_aside();
        written.write("2026-01-01T00:00:04Z 1 c");
        tokio::time::sleep(LOOK_EVERY * 2).await;
        written.write("d\n");
        tokio::time::sleep(LOOK_EVERY * 2).await;
        written.line(5, 2, "last");
        drop(lock);
        assert_eq!(texts(reading.await.unwrap()), ["a", "b", "cd", "last"]);
    }
}

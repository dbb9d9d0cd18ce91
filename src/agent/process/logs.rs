//! Reads what a keeper wrote of its task's output, and goes on with what it writes.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::job::Dir;
use crate::model::swarm::Time;
use crate::streams::{LogLine, LogQuery, LogStream};

/// However long it is, little of it is in memory at a time. Errors: there is no output, since there is no such task.
pub(super) fn read(dir: Dir, query: LogQuery) -> io::Result<LogStream> {
    let Some(oldest) = oldest(&dir).and_then(|file| At::beginning_of(&file)) else {
        // It was never started.
        return match dir.path().exists() {
            true => Ok(stream::empty().boxed()),
            false => Err(io::Error::new(io::ErrorKind::NotFound, "it has no output here")),
        };
    };
    let reader = Reader {
        n_bytes_left: length(&dir),
        dir,
        query,
        at: oldest,
        ready: VecDeque::new(),
        is_behind: true,
        n_failures: 0,
    };
    let lines = async move {
        // What was written until now may be long, and is read from disk.
        match tokio::task::spawn_blocking(move || reader.at_tail()).await {
            Ok(Ok(reader)) => stream::unfold(reader, Reader::next).boxed(),
            // It cannot be read, or this program ends.
            _ => stream::empty().boxed(),
        }
    };
    Ok(stream::once(lines).flatten().boxed())
}

/// It holds no file open: who follows mostly waits, and may be many.
struct Reader {
    dir: Dir,
    query: LogQuery,
    /// After the last whole line that was read.
    at: At,
    /// So much of what was written when the reading began, or a little more.
    n_bytes_left: u64,
    ready: VecDeque<LogLine>,
    /// There is more than was read last.
    is_behind: bool,
    /// In a row.
    n_failures: u32,
}

/// A place in one of the files.
#[derive(Clone, Copy)]
struct At {
    file: FileId,
    offset: u64,
}

/// A file, whatever its name is by now. An inode number alone may be another file's later.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    inode: u64,
    made_at: Option<SystemTime>,
}

impl FileId {
    fn of(metadata: &Metadata) -> FileId {
        FileId {
            inode: metadata.ino(),
            made_at: metadata.created().ok(),
        }
    }

    fn named(dir: &Dir, n: u32) -> Option<FileId> {
        std::fs::metadata(dir.log(n)).map(|metadata| FileId::of(&metadata)).ok()
    }
}

impl At {
    fn beginning_of(file: &File) -> Option<At> {
        Some(At {
            file: FileId::of(&file.metadata().ok()?),
            offset: 0,
        })
    }

    /// The file, at this place. `None`: it was removed. Errors: it may be there in a moment.
    fn open(self, dir: &Dir) -> io::Result<Option<BufReader<File>>> {
        let Some(n) = number_of(dir, self.file) else {
            return Ok(None);
        };
        let mut file = File::open(dir.log(n))?;
        if FileId::of(&file.metadata()?) != self.file {
            // It was put aside between the two looks.
            return Err(io::ErrorKind::NotFound.into());
        }
        file.seek(io::SeekFrom::Start(self.offset))?;
        Ok(Some(BufReader::new(file)))
    }
}

/// What reading a portion came to.
#[derive(PartialEq, Eq)]
enum Portion {
    /// There may be more.
    Full,
    /// All that was written.
    Last,
    /// It could not be read just now.
    None,
}

impl Reader {
    /// Before the first of the last lines that are asked for.
    fn at_tail(mut self) -> io::Result<Reader> {
        let Some(tail) = self.query.tail else {
            return Ok(self);
        };
        self.n_bytes_left = 0;
        let (mut n_lines, mut file) = (0, File::open(self.dir.log(0))?);
        loop {
            let metadata = file.metadata()?;
            let mut end = end_of_last_line(&file, metadata.len())?;
            let mut found = None;
            while end > 0 && found.is_none() {
                let (begin, lines) = block_before(&file, end)?;
                let wanted = lines
                    .iter()
                    .filter(|(_, line)| line.as_ref().is_some_and(|line| self.query.wants(line)));
                let wanted: Vec<u64> = wanted.map(|(at, _)| *at).collect();
                let missing = tail - n_lines;
                n_lines += wanted.len().min(missing);
                // With nothing asked for: what comes after the last line.
                found = (n_lines == tail).then(|| wanted.get(wanted.len() - missing).copied().unwrap_or(end));
                self.n_bytes_left += end - found.unwrap_or(begin);
                end = begin;
            }
            // Put aside meanwhile, perhaps; it has two numbers for a moment then.
            let this = FileId::of(&metadata);
            let older = number_of(&self.dir, this).and_then(|number| {
                let mut older = (number + 1..).map_while(|n| File::open(self.dir.log(n)).ok());
                older.find(|file| id_of(file) != Some(this))
            });
            match older {
                Some(older) if found.is_none() => file = older,
                _ => {
                    self.at = At {
                        file: FileId::of(&metadata),
                        offset: found.unwrap_or(0),
                    };
                    return Ok(self);
                }
            }
        }
    }

    fn take_portion(&mut self) -> Portion {
        if self.is_at_end() {
            return Portion::Last;
        }
        let found = match self.at.open(&self.dir) {
            // It was removed, having been the oldest.
            Ok(None) => oldest(&self.dir).map(BufReader::new),
            Ok(found) => found,
            Err(_) => return Portion::None,
        };
        let Some(mut file) = found else {
            return Portion::Last;
        };
        let portion = self.read_portion(&mut file);
        // An error leaves the place: the same again rather than nothing.
        if let (Ok(metadata), Ok(offset)) = (file.get_ref().metadata(), file.stream_position()) {
            self.at = At {
                file: FileId::of(&metadata),
                offset,
            };
        }
        portion
    }

    /// Whether nothing was written since.
    fn is_at_end(&self) -> bool {
        let metadata = std::fs::metadata(self.dir.log(0));
        metadata.is_ok_and(|metadata| FileId::of(&metadata) == self.at.file && metadata.len() == self.at.offset)
    }

    fn read_portion(&mut self, file: &mut BufReader<File>) -> Portion {
        let mut n_bytes = 0;
        loop {
            // What cannot be read is as good as not there.
            let Ok(Some((line, n_read))) = next_line(file) else {
                match self.goes_on(file) {
                    true => continue,
                    false => return Portion::Last,
                }
            };
            n_bytes += n_read;
            self.n_bytes_left = self.n_bytes_left.saturating_sub(n_read);
            if line.as_ref().is_some_and(|line| self.query.wants(line)) {
                self.ready.extend(line);
            }
            let is_asked_for = self.query.follow || self.n_bytes_left > 0;
            if n_bytes >= PORTION_BYTES || !is_asked_for {
                return Portion::Full;
            }
        }
    }

    /// Whether there is a file after this one, which has been read to its end; then it is the one that is read.
    fn goes_on(&self, file: &mut BufReader<File>) -> bool {
        let Some(this) = id_of(file.get_ref()) else {
            return false;
        };
        if FileId::named(&self.dir, 0) == Some(this) {
            return false;
        }
        // It was put aside, and nothing is written to it any more; something may have been before that.
        if is_there_more(file) {
            return true;
        }
        loop {
            let (next, number) = match number_of(&self.dir, this) {
                Some(0) => return false,
                Some(n) => (File::open(self.dir.log(n - 1)).ok(), Some(n)),
                // It was removed, having been the oldest.
                None => (oldest(&self.dir), None),
            };
            let is_still = number.is_none_or(|n| FileId::named(&self.dir, n) == Some(this));
            match next {
                // All were put aside once more between two looks, and what was opened may be a later one.
                Some(_) if !is_still => {}
                Some(next) if id_of(&next) != Some(this) => {
                    *file = BufReader::new(next);
                    return true;
                }
                _ => return false,
            }
        }
    }

    async fn next(mut self) -> Option<(LogLine, Reader)> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some((line, self));
            }
            // Who only asks for what is there has had it.
            if !self.query.follow && (self.n_bytes_left == 0 || !self.is_behind) {
                return None;
            }
            // Asked before it is read: what is said last is read then.
            let is_over = self.dir.exit_code().is_some() || !self.dir.has_keeper();
            let portion = match self.is_behind {
                false => self.take_portion(),
                // An error says that this program ends.
                true => {
                    let reading = tokio::task::spawn_blocking(move || {
                        let portion = self.take_portion();
                        (self, portion)
                    });
                    let (reader, portion) = reading.await.ok()?;
                    self = reader;
                    portion
                }
            };
            if portion == Portion::None {
                self.n_failures += 1;
                if self.n_failures > FAILURES_MAX {
                    return None;
                }
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            self.n_failures = 0;
            self.is_behind = portion == Portion::Full;
            if self.ready.is_empty() && !self.is_behind && self.query.follow {
                if is_over {
                    return None;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

fn end_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    let begin = length.saturating_sub(BLOCK_BYTES);
    let mut block = vec![0; usize::try_from(length - begin).map_err(io::Error::other)?];
    file.read_exact_at(&mut block, begin)?;
    let last = block.iter().rposition(|byte| *byte == b'\n');
    Ok(begin + last.map_or(0, |at| at + 1) as u64)
}

/// Where it begins, and its lines with where they begin.
type Block = (u64, Vec<(u64, Option<LogLine>)>);

/// The last whole lines before `end`, as many as are in a block, each with where it begins, and where the first of them does.
fn block_before(file: &File, end: u64) -> io::Result<Block> {
    let begin = end.saturating_sub(BLOCK_BYTES);
    let mut block = vec![0; usize::try_from(end - begin).map_err(io::Error::other)?];
    file.read_exact_at(&mut block, begin)?;
    // What it begins with is the rest of a line, and belongs to the block before, unless there is none.
    let skipped = match begin {
        0 => 0,
        _ => block.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1),
    };
    let first = begin + skipped as u64;
    let mut at = first;
    let mut lines = Vec::new();
    for record in block[skipped..].split_inclusive(|byte| *byte == b'\n') {
        if record.ends_with(b"\n") {
            lines.push((at, parse(record)));
        }
        at += record.len() as u64;
    }
    // A line that is longer than a block is none of ours: it is passed over.
    let first = if first < end { first } else { begin };
    Ok((first, lines))
}

/// Of all files, in bytes.
fn length(dir: &Dir) -> u64 {
    let all = (0..).map_while(|n| std::fs::metadata(dir.log(n)).ok());
    all.map(|metadata| metadata.len()).sum()
}

fn is_there_more(file: &mut BufReader<File>) -> bool {
    // Less than a line is left for good where a keeper was killed at its word.
    let at = file.stream_position();
    let is_whole = matches!(next_line(file), Ok(Some(_)));
    let back = at.and_then(|at| file.seek(io::SeekFrom::Start(at)));
    is_whole && back.is_ok()
}

fn id_of(file: &File) -> Option<FileId> {
    file.metadata().map(|metadata| FileId::of(&metadata)).ok()
}

/// The lowest that it has. Files are given higher numbers meanwhile, never lower ones, so that none is passed over. `None`: it was removed.
fn number_of(dir: &Dir, file: FileId) -> Option<u32> {
    let mut all = (0..).map_while(|n| Some((n, FileId::named(dir, n)?)));
    all.find_map(|(n, id)| (id == file).then_some(n))
}

fn oldest(dir: &Dir) -> Option<File> {
    let all = (0..).map_while(|n| File::open(dir.log(n)).ok());
    all.last()
}

/// The next whole line and how many bytes it takes; one that is still being written is left for later. What means nothing is no
/// line.
fn next_line(file: &mut BufReader<File>) -> io::Result<Option<(Option<LogLine>, u64)>> {
    let mut record = Vec::new();
    let n = file.read_until(b'\n', &mut record)? as u64;
    if record.last() != Some(&b'\n') {
        file.seek_relative(-i64::try_from(n).map_err(io::Error::other)?)?;
        return Ok(None);
    }
    Ok(Some((parse(&record), n)))
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

/// Then it is as good as over: some seconds.
const FAILURES_MAX: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// In memory at a time, for each who reads.
const PORTION_BYTES: u64 = 64 << 10;
/// More than a line has.
const BLOCK_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::log_files::LogFiles;
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

    /// Longer than a block, in several files, half a line at its end.
    #[tokio::test]
    async fn the_last_lines_of_many() {
        let written = Written::new();
        let all: Vec<String> = (0..9_000).map(|n| format!("{n} {}", "x".repeat(n % 300))).collect();
        for (n, lines) in all.chunks(3_000).enumerate() {
            let lines = lines
                .iter()
                .map(|line| format!("2026-01-01T00:00:01.000000000Z 1 {line}\n"));
            written.write(&lines.collect::<String>());
            if n < 2 {
                written.put_aside();
            }
        }
        written.write("2026-01-01T00:00:02.000000000Z 1 half");
        for tail in [0, 1, 2, 299, 2_999, 3_000, 3_001, 6_500, 8_999, 9_000, 20_000] {
            let query = LogQuery {
                tail: Some(tail),
                ..ALL
            };
            let expected = &all[all.len().saturating_sub(tail)..];
            assert!(written.read(query).await == expected, "{tail}");
        }
        assert!(written.read(ALL).await == all);
    }

    /// However long the output is, whoever reads has little of it in memory.
    #[tokio::test]
    async fn portions_are_small_and_end_where_it_ended_when_it_was_asked_for() {
        let written = Written::new();
        let line = format!("2026-01-01T00:00:01.000000000Z 1 {}\n", "x".repeat(100));
        written.write(&line.repeat(10_000));
        let mut lines = read(written.dir.clone(), ALL).unwrap();
        let mut n_lines = 0;
        // Its task says more and more meanwhile.
        while lines.next().await.is_some() {
            n_lines += 1;
            if n_lines % 100 == 1 {
                written.write(&line.repeat(1_000));
            }
        }
        assert_eq!(n_lines, 10_000);
        let mut reader = Reader {
            n_bytes_left: length(&written.dir),
            dir: written.dir.clone(),
            query: ALL,
            at: At::beginning_of(&oldest(&written.dir).unwrap()).unwrap(),
            ready: VecDeque::new(),
            is_behind: true,
            n_failures: 0,
        };
        assert!(reader.take_portion() == Portion::Full);
        assert!(reader.ready.len() < 1_000, "{}", reader.ready.len());
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

    /// A task that says much has its files put aside all the time, also in the moment in which somebody begins to read.
    #[tokio::test]
    async fn whoever_reads_while_files_are_put_aside_misses_nothing() {
        let written = Written::new();
        let job = serde_json::json!({
            "words": [], "env": {}, "dir": "/", "port": 1, "log_bytes_max": 200, "log_files": 1000,
        });
        let mut files = LogFiles::open(written.dir.clone(), &serde_json::from_value(job).unwrap()).unwrap();
        files.write(1, b"0").unwrap();
        let lock = written.dir.lock().unwrap().unwrap();
        let writing = std::thread::spawn(move || {
            for n in 1..600 {
                files.write(1, n.to_string().as_bytes()).unwrap();
            }
        });
        let (mut followers, mut n_tails) = (Vec::new(), 0);
        while !writing.is_finished() {
            let query = LogQuery { follow: true, ..ALL };
            followers.push(tokio::spawn(
                read(written.dir.clone(), query).unwrap().collect::<Vec<_>>(),
            ));
            let query = LogQuery { tail: Some(1), ..ALL };
            n_tails += 1;
            assert_eq!(written.read(query).await.len(), 1, "of the last line, {n_tails}");
        }
        writing.join().unwrap();
        drop(lock);
        let all: Vec<String> = (0..600).map(|n| n.to_string()).collect();
        assert!(followers.len() > 10, "{}", followers.len());
        for follower in followers {
            assert_eq!(texts(follower.await.unwrap()), all);
        }
    }

    /// Of those who follow without a word, or do not read, there may be many.
    #[tokio::test]
    async fn who_waits_holds_no_file_open() {
        let written = Written::new();
        let lock = written.dir.lock().unwrap().unwrap();
        written.line(1, 1, "before");
        let query = LogQuery { follow: true, ..ALL };
        let mut followers: Vec<_> = (0..20).map(|_| read(written.dir.clone(), query).unwrap()).collect();
        for follower in &mut followers {
            assert_eq!(follower.next().await.unwrap().bytes, "before");
        }
        let log = written.dir.log(0);
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let n_open = open
            .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == log))
            .count();
        assert_eq!(n_open, 0);
        // Removed while it was not looked at: what is left is read.
        written.line(2, 1, "lost");
        for n in 0..4 {
            written.put_aside();
            written.line(3, 1, &n.to_string());
        }
        drop(lock);
        for follower in followers {
            assert_eq!(texts(follower.collect().await), ["0", "1", "2", "3"]);
        }
    }
}

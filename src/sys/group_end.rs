//! Ends all that is in a control group, also what starts others faster than they can be ended one by one. Not here: which groups
//! there are, and who is in them (`cgroup`).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Whether all that is in the group can be ended at once.
pub(super) fn is_sure(dir: &Path) -> bool {
    [KILL, FREEZE, STATE].iter().any(|file| dir.join(file).exists())
}

/// Ends all that is in the group and in those inside it; what has been ended leaves a moment later. At once where the kernel
/// can do that; else it is stood still meanwhile; else one by one, which those that start others may outrun.
pub(super) fn end(dir: &Path) {
    // Since Linux 5.14, version 2.
    if write(&dir.join(KILL), "1").is_ok() {
        return;
    }
    stand_still(dir);
    for group in inside(dir).chain([dir.to_owned()]) {
        let members = fs::read_to_string(group.join(MEMBERS)).unwrap_or_default();
        let pids = members.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
        for pid in pids {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // What has been killed ends only now.
    let _ = write(&dir.join(STATE), "THAWED");
    let _ = write(&dir.join(FREEZE), "0");
}

/// Ends all that is in it, and takes it away with those inside it, until then at most. What is not there is no error.
pub(super) fn remove(dir: &Path, until: Instant) {
    loop {
        for inner in inside(dir) {
            drop(fs::remove_dir(inner));
        }
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {}
            _ => return,
        }
        end(dir);
        std::thread::sleep(LOOK);
    }
}

/// Where it cannot, it goes on.
fn stand_still(dir: &Path) {
    let until = Instant::now() + STILL_WITHIN;
    let reads = |file: &str, expected: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.lines().any(|line| line == expected)
    };
    while Instant::now() < until {
        // One that starts others is not seen whole at the first time.
        let is_still = match (write(&dir.join(STATE), "FROZEN"), write(&dir.join(FREEZE), "1")) {
            (Ok(()), _) => reads(STATE, "FROZEN"),
            (_, Ok(())) => reads("cgroup.events", "frozen 1"),
            _ => return,
        };
        if is_still {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

fn inside(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path())
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(text.as_bytes())
}

const KILL: &str = "cgroup.kill";
const FREEZE: &str = "cgroup.freeze";
/// Of version 1.
const STATE: &str = "freezer.state";
const MEMBERS: &str = "cgroup.procs";
const STILL_WITHIN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::sys::cgroup::Group;

    /// Each goes on as its child, and ends: none is there for long enough to be killed by its number for sure.
    const RUNS: &str = r"
import os
for _ in range(8):
    if os.fork() == 0:
        while True:
            if os.fork():
                os._exit(0)
";

    fn empties(tree: &str) -> bool {
        let name = format!("anynode-test-end-{}", std::process::id());
        let dir = Path::new("/sys/fs/cgroup").join(tree).join(name);
        if fs::create_dir(&dir).is_err() || !is_sure(&dir) {
            drop(fs::remove_dir(&dir));
            return false;
        }
        let part = dir.join("part");
        fs::create_dir(&part).unwrap();
        let group = Group {
            dirs: vec![part.clone()],
        };
        let mut command = Command::new("python3");
        group.hold(command.args(["-c", RUNS])).unwrap();
        if !command.status().is_ok_and(|status| status.success()) {
            drop((fs::remove_dir(&part), fs::remove_dir(&dir)));
            return false;
        }
        let members = || fs::read_to_string(part.join(MEMBERS)).unwrap();
        assert!(!members().is_empty());
        end(&dir);
        // No second look: what is left ends by what was done.
        let started = Instant::now();
        while !members().is_empty() {
            assert!(started.elapsed() < Duration::from_secs(30), "{tree}: {}", members());
            std::thread::sleep(LOOK);
        }
        remove(&dir, Instant::now() + Duration::from_secs(30));
        assert!(!dir.exists());
        true
    }

    #[test]
    fn none_outruns_its_end() {
        // By cgroup.kill, and by standing still.
        for tree in ["unified", "freezer"] {
            if !empties(tree) {
                println!("{tree} skipped: this needs root, that control group and python3");
            }
        }
    }
}

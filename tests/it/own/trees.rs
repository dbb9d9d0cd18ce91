//! What tasks leave behind in their directories, taken away while all else goes on.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use super::rig::{self, LONG, Tasks};

/// Much more than an answer takes, and less than all that is to be removed did.
const PATIENCE: Duration = Duration::from_secs(2);

fn answers(socket: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    };
    ask().is_ok_and(|said| said.contains(" 200 "))
}

fn fill(dir: &Path, n_levels: usize, n_files: usize) {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, dir, flags, Mode::empty()).unwrap();
    for _ in 0..n_levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
    for n in 0..n_files {
        std::fs::write(dir.join(n.to_string()), "").unwrap();
    }
}

#[test]
fn a_deep_and_wide_tree_of_a_task_goes_while_the_api_answers() {
    let Some(mut own) = rig::up("trees", Tasks::Processes) else {
        return;
    };
    // Some disks take milliseconds for each directory.
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: this needs /dev/shm");
        return;
    };
    std::fs::set_permissions(memory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::symlink(memory.path(), own.data_dir()).unwrap();
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["service", "create", "--name", "deep", "anynode/whoami"]);
    let tasks = own.data_dir().join("tasks");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&tasks).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    fill(&tasks.join(&names()[0]).join("root"), 20_000, 40_000);
    own.docker(&["service", "rm", "deep"]);
    let (mut n_asked, mut n_answers) = (0, 0);
    own.wait_for("nothing to be left", LONG, || {
        let names = names();
        // It has begun.
        if names.iter().any(|name| name.starts_with(".gone-")) {
            n_asked += 1;
            n_answers += usize::from(answers(&own.socket()));
        }
        names.is_empty()
    });
    assert_eq!(n_answers, n_asked);
    assert!(answers(&own.socket()));
}

//! What a task or a disk holds up keeps nobody else waiting.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::Command;

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::json;

use super::rig::{self, LONG, Own, Tasks};

/// Copies a program, takes a lease on the copy, and lets go of it only when it is told to.
const HOLDS: &str = r#"
import fcntl, os, shutil, signal, time
os.chdir(os.environ["ANYNODE_TASK_DIR"])
shutil.copy("/bin/true", "check")
os.chmod("check", 0o755)
held = os.open("check", os.O_RDONLY)
signal.signal(signal.SIGIO, lambda *_: open("asked", "w").close())
fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
while not os.path.exists("let"):
    time.sleep(0.01)
fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
os.close(held)
while True:
    time.sleep(1)
"#;

fn ping(own: &Own) -> bool {
    let mut command = own.inside("curl");
    command.args(["-s", "-f", "-m", "10", "-o", "/dev/null", "--unix-socket"]);
    let out = command.arg(own.socket()).arg("http://docker/_ping").status();
    out.unwrap().success()
}

#[test]
fn a_task_that_holds_its_check_up_holds_up_nobody_else() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: this needs python3");
        return;
    }
    let Some(mut own) = rig::up("held", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let spec = json!({
        "Name": "web",
        "TaskTemplate": { "ContainerSpec": {
            "Image": "nginx:latest",
            "Command": ["python3", "-c", HOLDS],
            "HealthCheck": { "Test": ["CMD", "./check"], "Interval": 50_000_000, "Timeout": 120_000_000_000_i64, "Retries": 100_000 },
        } },
    });
    let mut command = own.inside("curl");
    command.args([
        "-s",
        "-f",
        "-H",
        "Content-Type: application/json",
        "-d",
        &spec.to_string(),
        "--unix-socket",
    ]);
    let made = command.arg(own.socket()).arg("http://docker/services/create").output();
    assert!(made.unwrap().status.success(), "{}", own.log_tail());
    let tasks = own.data_dir().join("tasks");
    let of_task = |name: &str| {
        let tasks = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
        let found = tasks.map(|task| task.path().join("root").join(name));
        found.into_iter().find(|path| path.exists())
    };
    own.wait_for("the check to ask for its program", LONG, || of_task("asked").is_some());
    let check = of_task("check").unwrap();
    for n in 0..50 {
        assert!(ping(&own), "ping {n}\n{}", own.log_tail());
    }
    // All that while it was held: the kernel has asked for it, and has not taken it.
    let inode = format!(":{} ", check.metadata().unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let is_held = |line: &str| line.contains("BREAKING") && line.contains(&inode);
    assert!(locks.lines().any(is_held), "{locks}");
    std::fs::write(check.with_file_name("let"), "").unwrap();
    own.wait_for("it to pass", LONG, || {
        own.docker(&["service", "ls", "--format", "{{.Replicas}}"]) == "1/1"
    });
}

#[test]
fn who_waits_for_a_disk_keeps_anynode_from_no_end() {
    let Some(mut own) = rig::up("held-end", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["volume", "create", "held"]);
    // Whoever reads it waits as for a disk of a machine that is away: for ever.
    let kept = own.data_dir().join("volumes/held/volume");
    std::fs::remove_file(&kept).unwrap();
    mkfifoat(CWD, &kept, Mode::RUSR | Mode::WUSR).unwrap();
    let mut asks = own.docker_command(&["volume", "inspect", "held"]).spawn().unwrap();
    let mut writer = None;
    own.wait_for("it to be read", LONG, || {
        let mut options = File::options();
        // Refused while nobody reads.
        writer = options.write(true).custom_flags(libc::O_NONBLOCK).open(&kept).ok();
        writer.is_some()
    });
    own.stop();
    drop(writer);
    assert!(!asks.wait().unwrap().success());
}

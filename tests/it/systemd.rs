//! The units that are shipped for systemd: what its own tools say of them, and that the program can do its work within what the unit of
//! a services file leaves it.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Origin, free_port, wait_until};

const UNITS: [&str; 3] = ["anynode.service", "anynode-docker.service", "anynode-swarm.service"];

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/systemd").join(name)
}

fn text(unit: &str) -> String {
    std::fs::read_to_string(shipped(unit)).unwrap()
}

fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        println!("skipped: there is no {program} here");
    }
    there
}

fn analyze(args: &[&str], unit: &Path) -> Output {
    Command::new("systemd-analyze").args(args).arg(unit).output().unwrap()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !has("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for unit in UNITS {
        // It wants to see the program.
        let here = text(unit).replace("/usr/local/bin/anynode", env!("CARGO_BIN_EXE_anynode"));
        let path = dir.path().join(unit);
        std::fs::write(&path, here).unwrap();
        let out = analyze(&["verify", "--man=no"], &path);
        let said = String::from_utf8_lossy(&out.stderr);
        let of_this: Vec<&str> = said.lines().filter(|line| line.contains("anynode")).collect();
        assert!(out.status.success() && of_this.is_empty(), "{unit}: {said}");
    }
    // At most 3.0 of 10.
    let out = analyze(&["security", "--offline=true", "--threshold=30"], &shipped(UNITS[0]));
    assert!(out.status.success(), "{out:?}");
}

#[test]
fn the_user_and_the_directories_are_made_as_said() {
    if !has("systemd-sysusers") || !has("systemd-tmpfiles") || !rustix::process::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    let root_is = format!("--root={}", root.path().display());
    for (program, more, file) in [
        ("systemd-sysusers", &[][..], "anynode.sysusers"),
        ("systemd-tmpfiles", &["--create"], "anynode.tmpfiles"),
    ] {
        let out = Command::new(program)
            .arg(&root_is)
            .args(more)
            .arg(shipped(file))
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
    }
    let users = std::fs::read_to_string(root.path().join("etc/passwd")).unwrap();
    assert!(users.lines().any(|line| line.starts_with("anynode:x:")), "{users}");
    for (path, mode) in [("", 0o750), ("anynode.toml", 0o640)] {
        let found = std::fs::metadata(root.path().join("etc/anynode").join(path)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }
    // As they are made, they can be used.
    let file = |name: &str| root.path().join("etc/anynode").join(name).display().to_string();
    let out = crate::cli::anynode(&["check", "--config", &file("anynode.toml")])
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// The system calls that a unit's filter lets through.
fn allowed(filter: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut sets = vec![filter.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(set) = sets.pop() {
        if !seen.insert(set.clone()) {
            continue;
        }
        let out = Command::new("systemd-analyze")
            .args(["syscall-filter", &set])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let text = String::from_utf8(out.stdout).unwrap();
        for word in text
            .lines()
            .skip(1)
            .map(str::trim)
            .filter(|word| !word.is_empty() && !word.starts_with('#'))
        {
            match word.starts_with('@') {
                true => sets.push(word.to_owned()),
                false => drop(all.insert(word.to_owned())),
            }
        }
    }
    all
}

#[test]
fn the_program_does_its_work_within_what_the_unit_leaves_it() {
    if !has("systemd-analyze") || !has("strace") || !has("setpriv") || !rustix::process::geteuid().is_root() {
        return;
    }
    let unit = text(UNITS[0]);
    let value = |key: &str| {
        let mut lines = unit
            .lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.next().unwrap_or_else(|| panic!("{key} in the unit")).to_owned()
    };
    let (tcp, http) = (Origin::named("tcp"), Origin::echo());
    let dir = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    // A port below 1024, which takes the capability.
    let port = (81..1000)
        .find(|port| std::net::TcpListener::bind(("127.88.77.1", *port)).is_ok())
        .unwrap();
    std::fs::create_dir(path("state")).unwrap();
    // Not beside the services file, whose directory the node watches: it would be told of its own calls.
    std::fs::create_dir(path("trace")).unwrap();
    let nobody = 65_534;
    chown(path("state"), Some(nobody), Some(nobody)).unwrap();
    let services = format!(
        "services:\n  a:\n    publish: [\"127.88.77.1:{port}:80\"]\n    endpoints: [\"{}\"]\n  b:\n    mode: http\n    publish: [\"127.88.77.2:{port}:80\"]\n    health: {{ http: / }}\n    endpoints: [\"{}\"]\n",
        tcp.addr, http.addr
    );
    std::fs::write(path("services.yml"), services).unwrap();
    std::fs::write(path("anynode.toml"), "").unwrap();
    // The program where whoever has no name may read it.
    std::fs::copy(env!("CARGO_BIN_EXE_anynode"), path("anynode")).unwrap();
    let admin = format!("127.0.0.1:{}", free_port());
    let program = value("ExecStart").replace("/usr/local/bin/anynode", &path("anynode"));
    let mut command = Command::new("strace");
    command
        .args([
            "-f",
            "-qq",
            "-o",
            &path("trace/calls"),
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ])
        .args([
            "--inh-caps=-all,+net_bind_service",
            "--ambient-caps=+net_bind_service",
            "--bounding-set=-all,+net_bind_service",
        ])
        .arg("--no-new-privs")
        .args(program.split_ascii_whitespace())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("ANYNODE_ADMIN", &admin)
        .env("ANYNODE_DNS", format!("127.0.0.1:{}", free_port()))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(path("log")).unwrap());
    for line in unit.lines().filter_map(|line| line.strip_prefix("Environment=")) {
        let (name, value) = line.split_once('=').unwrap();
        let value = value.replace("/etc/anynode", &dir.path().display().to_string());
        command.env(name, value.replace("/var/lib/anynode", &path("state")));
    }
    let mut child = command.spawn().unwrap();
    let log = || std::fs::read_to_string(path("log")).unwrap();
    let get = |host: &str| {
        let out = Command::new("curl")
            .args(["-sS", "-m", "5", "--http0.9", host])
            .output()
            .unwrap();
        out.status.success()
    };
    let mut is_up = false;
    let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("the node to serve", || {
            is_up = get(&format!("http://{admin}/readyz"));
            is_up
        });
    }));
    assert!(came.is_ok(), "{}", log());
    for _ in 0..3 {
        let mut said = String::new();
        std::net::TcpStream::connect(("127.88.77.1", port))
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said, "tcp");
    }
    let _ = get(&format!("http://127.88.77.2:{port}/"));
    assert!(get(&format!("http://{admin}/metrics")) && get(&format!("http://{admin}/v1/status")));
    // It ends as it is to, and has written what it keeps.
    let pids = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let pid: i32 = pids.split_ascii_whitespace().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {}", log());
    assert!(std::fs::read_dir(path("state")).unwrap().next().is_some(), "{}", log());
    // What it asked of the kernel since it was started.
    let calls = std::fs::read_to_string(path("trace/calls")).unwrap();
    let own = calls.split_once("anynode\", [").unwrap().1;
    let name = |line: &str| {
        let call = line.split_ascii_whitespace().nth(1)?.split_once('(')?.0;
        call.chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_')
            .then(|| call.to_owned())
    };
    let asked: BTreeSet<String> = own.lines().filter_map(name).collect();
    assert!(asked.contains("accept4") && asked.contains("epoll_wait"), "{asked:?}");
    let allowed = allowed(&value("SystemCallFilter"));
    // It asks whether it may use BPF, and does without where it is told no, by the lack of a capability or by a filter.
    let refused: Vec<&String> = asked.difference(&allowed).filter(|call| *call != "bpf").collect();
    assert!(refused.is_empty(), "the unit refuses {refused:?}");
}

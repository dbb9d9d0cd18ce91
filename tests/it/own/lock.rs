//! A swarm that is locked (`--autolock`), through the docker command line: what goes on without the key, what waits for it, and
//! that no end of anynode leaves it without a key that opens it.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::rig::{self, LONG, Own, Tasks};
use super::survival::{Load, no_failure};
use crate::harness::Seed;

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to \
                      unlock it.";
const SECRET: &str = "nobody-but-its-tasks-knows";

/// The command line, told `key` where it asks for it.
fn unlock(own: &Own, key: &str) -> Output {
    let mut command = own.docker_command(&["swarm", "unlock"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{key}").unwrap();
    child.wait_with_output().unwrap()
}

fn unlock_fails(own: &Own, key: &str) -> String {
    let out = unlock(own, key);
    assert!(!out.status.success(), "{out:?}");
    String::from_utf8_lossy(&out.stderr).trim_end().to_owned()
}

pub(super) fn unlocks(own: &Own, key: &str) {
    let out = unlock(own, key);
    assert!(out.status.success(), "{out:?}\n{}", own.log_tail());
}

fn state(own: &Own) -> String {
    own.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])
}

/// The key that a command has printed.
pub(super) fn key_in(said: &str) -> String {
    let word = said.split_whitespace().find(|word| word.starts_with("SWMKEY-1-"));
    word.unwrap_or_else(|| panic!("no key in {said:?}")).to_owned()
}

fn secret(own: &Own, name: &str) {
    let mut command = own.docker_command(&["secret", "create", name, "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(SECRET.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn create(own: &Own, name: &str, args: &[&str]) {
    let command = ["service", "create", "--detach", "--no-resolve-image", "--name", name];
    own.docker(&[&command[..], args, &["nginx:latest"]].concat());
}

/// Two tasks that answer on port 8080, have a network of their own and know a secret.
fn serve_web(own: &Own) {
    secret(own, "password");
    own.docker(&["network", "create", "-d", "overlay", "app"]);
    let args = [
        "--replicas=2",
        "--publish=8080:80",
        "--network=app",
        "--secret=password",
    ];
    create(own, "web", &args);
    own.wait_for("two tasks", LONG, || n_running(own, "web") == 2);
}

fn n_running(own: &Own, service: &str) -> usize {
    let format = ["--format", "{{.CurrentState}}", "--filter", "desired-state=running"];
    let states = own.docker(&[&["service", "ps", service][..], &format].concat());
    states.lines().filter(|state| state.starts_with("Running")).count()
}

/// Which tasks answer, by their hostnames.
fn answers(own: &Own) -> BTreeSet<String> {
    let ask = || {
        let answer: Value = serde_json::from_str(&own.curl("http://localhost:8080")?).unwrap();
        Some(answer["hostname"].as_str().unwrap().to_owned())
    };
    (0..6).filter_map(|_| ask()).collect()
}

/// Whether a task reaches its own service by name.
fn asks_web(pid: u32) -> bool {
    let asked = Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-n", "-m"])
        .args(["curl", "-s", "-f", "-m", "5", "-o", "/dev/null", "http://web/"])
        .status();
    asked.unwrap().success()
}

fn metric(own: &Own, name: &str) -> String {
    let all = own.curl("http://localhost:9377/metrics").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name}\n{all}")).to_owned()
}

/// The files of the store and of what is kept beside it that hold these bytes.
fn files_with(own: &Own, what: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![own.data_dir()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            // Tasks' own directories are theirs.
            if kind.is_dir() && !path.ends_with("tasks") {
                dirs.push(path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                if bytes.windows(what.len()).any(|window| window == what.as_bytes()) {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    found
}

/// The whole life of a lock.
fn life(tasks: Tasks) {
    let name = if tasks == Tasks::Processes { "lockp" } else { "lockc" };
    let Some(mut own) = rig::up(name, tasks) else {
        return;
    };
    own.start();
    let said = own.docker(&["swarm", "init", "--autolock"]);
    let key = key_in(&said);
    assert_eq!(own.docker(&["swarm", "unlock-key", "-q"]), key);
    assert!(own.docker(&["swarm", "unlock-key"]).contains(&key));
    assert_eq!(unlock_fails(&own, &key), "Error: swarm is not locked");
    let token = own.docker(&["swarm", "join-token", "-q", "worker"]);
    serve_web(&own);
    own.wait_for("an answer", LONG, || own.curl("http://localhost:8080").is_some());
    own.wait_for("both tasks", LONG, || answers(&own).len() == 2);
    let (living, answered) = (own.living_tasks(), answers(&own));
    // What was known last is kept within moments.
    own.wait_for("the last cluster", LONG, || !files_with(&own, "web").is_empty());
    own.wait_for("its tasks", LONG, || {
        let ids = own.docker(&["service", "ps", "-q", "--no-trunc", "web"]);
        ids.lines().all(|id| !files_with(&own, id).is_empty())
    });
    for what in [SECRET, &token, &key, "PRIVATE KEY"] {
        assert_eq!(files_with(&own, what), [""; 0], "{what}");
    }

    // By whatever it ended, the next one waits for the key; traffic does not.
    for by_kill in [false, true] {
        match by_kill {
            true => own.kill(),
            false => own.stop(),
        }
        own.start();
        own.wait_for("traffic", LONG, || own.curl("http://localhost:8080").is_some());
        own.wait_for("both tasks", LONG, || answers(&own) == answered);
        let held = own
            .curl("http://localhost:8080/file?path=/run/secrets/password")
            .unwrap();
        assert!(held.ends_with(SECRET), "{held}");
        if tasks == Tasks::Processes {
            own.wait_for("names inside a task", LONG, || asks_web(living[0]));
        }
        assert_eq!(own.living_tasks(), living, "nothing was done to them");
        waits(&own, tasks);
        assert_eq!(
            unlock_fails(&own, "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            "Error response from daemon: swarm could not be unlocked: invalid key provided"
        );
        assert_eq!(
            unlock_fails(&own, "open sesame"),
            "Error response from daemon: invalid key string"
        );
        assert_eq!(state(&own), "locked");
        unlocks(&own, &key);
        assert_eq!(state(&own), "active");
        assert_eq!(n_running(&own, "web"), 2);
        assert_eq!(own.docker(&["secret", "ls", "--format", "{{.Name}}"]), "password");
        assert_eq!(metric(&own, "anynode_store_locked"), "0");
        own.wait_for("nothing to be wrong", LONG, || {
            own.curl("http://localhost:9377/readyz").unwrap() == "serving\n"
        });
        assert_eq!(own.living_tasks(), living, "they were found again");
    }
    // It is a swarm as before: what is declared happens, and what dies is replaced.
    own.docker(&["service", "scale", "--detach", "web=3"]);
    own.wait_for("three tasks", LONG, || own.living_tasks().len() == 3);

    // Another key, and none.
    let said = own.docker(&["swarm", "unlock-key", "--rotate"]);
    let other = key_in(&said);
    assert_ne!(other, key);
    own.kill();
    own.start();
    assert!(unlock_fails(&own, &key).contains("invalid key provided"));
    unlocks(&own, &other);
    own.docker(&["swarm", "update", "--autolock=false"]);
    assert_eq!(own.docker_fails(&["swarm", "unlock-key"]), "no unlock key is set");
    assert_eq!(
        own.docker_fails(&["swarm", "unlock-key", "--rotate"]),
        "cannot rotate because autolock is not turned on"
    );
    own.kill();
    own.start();
    assert_eq!(state(&own), "active");
    let last = key_in(&own.docker(&["swarm", "update", "--autolock=true"]));
    assert_ne!(last, other);
    assert_eq!(own.docker(&["swarm", "unlock-key", "-q"]), last);
    own.wait_for("three tasks", LONG, || n_running(&own, "web") == 3);

    // Who has lost the key begins anew.
    own.kill();
    own.start();
    assert_eq!(
        own.docker_fails(&["swarm", "leave"]),
        "Error response from daemon: Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this \
         message."
    );
    own.docker(&["swarm", "leave", "--force"]);
    own.wait_for("the end of its tasks", LONG, || own.living_tasks().is_empty());
    assert_eq!(state(&own), "inactive");
    own.wait_for("its port to close", LONG, || {
        own.curl("http://localhost:8080").is_none()
    });
    own.docker(&["swarm", "init"]);
    create(&own, "next", &["--publish", "8081:80"]);
    own.wait_for("traffic", LONG, || own.curl("http://localhost:8081").is_some());
}

/// What a locked swarm says.
fn waits(own: &Own, tasks: Tasks) {
    assert_eq!(state(own), "locked");
    assert!(own.docker(&["info"]).contains("\n Swarm: locked\n"));
    for args in [
        &["node", "ls"][..],
        &["service", "ls"],
        &["service", "create", "--detach", "nginx"],
        &["service", "ps", "web"],
        &["secret", "ls"],
        &["config", "ls"],
        &["stack", "ls"],
        &["swarm", "unlock-key"],
        &["swarm", "update", "--autolock=false"],
        &["swarm", "join-token", "worker"],
        &["network", "create", "-d", "overlay", "other"],
    ] {
        let said = own.docker_fails(args);
        assert!(said.contains(LOCKED), "{args:?}: {said}");
    }
    let again = own.docker_fails(&["swarm", "init"]);
    assert!(again.contains("This node is already part of a swarm."), "{again}");
    if tasks == Tasks::Containers {
        assert!(own.docker(&["ps"]).contains("web.1."), "what is the engine's goes on");
    }
    let ready = own.curl("http://localhost:9377/readyz").unwrap();
    assert!(
        ready.starts_with("serving\n") && ready.contains("store: locked") && ready.contains("source: stale since"),
        "{ready}"
    );
    let status = own.anynode(&["status"]);
    assert!(status.contains("! store: locked"), "{status}");
    assert_eq!(metric(own, "anynode_store_locked"), "1");
}

#[test]
fn a_locked_swarm_goes_on_and_waits_for_its_key_on_processes() {
    life(Tasks::Processes);
}

#[test]
fn a_locked_swarm_goes_on_and_waits_for_its_key_on_containers() {
    life(Tasks::Containers);
}

/// Killed at any moment while its lock changes, it opens with the key before or the one after. `ANYNODE_KILLS`: so often.
#[test]
fn killed_while_its_lock_changes_it_opens_with_the_one_key_or_the_other() {
    let Some(mut own) = rig::up("lockk", Tasks::Processes) else {
        return;
    };
    let mut random = Seed::new().rng();
    own.start();
    let begin = |own: &Own| {
        own.docker(&["swarm", "init"]);
        for n in 0..5 {
            secret(own, &format!("password-{n}"));
        }
    };
    begin(&own);
    let kills = std::env::var("ANYNODE_KILLS").map_or(6, |n| n.parse().unwrap());
    // All keys that may open it; none: it may be open.
    let mut key = None::<String>;
    let (mut n_before, mut n_after, mut n_untold) = (0, 0, 0);
    for _ in 0..kills {
        let change: &[&str] = match &key {
            None => &["swarm", "update", "--autolock=true"],
            Some(_) if random.bool() => &["swarm", "unlock-key", "--rotate", "-q"],
            Some(_) => &["swarm", "update", "--autolock=false"],
        };
        let mut command = own.docker_command(change);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.u64(0..120)));
        own.kill();
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let new = said
            .split_whitespace()
            .find(|word| word.starts_with("SWMKEY-1-"))
            .map(str::to_owned);
        own.start();
        key = match (state(&own).as_str(), key, new) {
            ("active", before, _) => {
                // Not begun, or turned off.
                if before.is_none() {
                    n_before += 1;
                } else {
                    n_after += 1;
                }
                None
            }
            (_, Some(before), new) => {
                if unlock(&own, &before).status.success() {
                    n_before += 1;
                    Some(before)
                } else if let Some(new) = new {
                    unlocks(&own, &new);
                    n_after += 1;
                    Some(new)
                } else {
                    None
                }
            }
            (_, None, Some(new)) => {
                unlocks(&own, &new);
                n_after += 1;
                Some(new)
            }
            (_, None, None) => None,
        };
        if state(&own) == "locked" {
            // Killed after the change and before anybody was told the key, as may be with Docker.
            n_untold += 1;
            own.docker(&["swarm", "leave", "--force"]);
            begin(&own);
        }
        let all = own.docker(&["secret", "ls", "-q"]);
        assert_eq!(all.lines().count(), 5, "{all}");
    }
    println!(
        "{n_before} with the key before, {n_after} with the one after, {n_untold} with one that nobody was told yet"
    );
}

/// An update of anynode needs no key from anybody, costs no request from outside, and leaves the key to nobody else.
fn update(tasks: Tasks) {
    let name = if tasks == Tasks::Processes { "locku" } else { "lockv" };
    let Some(mut own) = rig::up(name, tasks) else {
        return;
    };
    own.start();
    let key = key_in(&own.docker(&["swarm", "init", "--autolock"]));
    serve_web(&own);
    own.wait_for("both tasks", LONG, || answers(&own).len() == 2);
    let living = own.living_tasks();
    for _ in 0..2 {
        let before = own.pid();
        let loads = [
            Load::start(&own, 8080, &["--new", "--threads", "2", "--pause-us", "10000"]),
            Load::start(&own, 8080, &["--pause-us", "5000"]),
        ];
        own.wait_for("the load", LONG, || answers(&own).len() == 2);
        own.update_without_waiting();
        own.wait_for("the next one", LONG, || {
            own.docker_out(&["secret", "ls", "-q"]).status.success() && own.log_since_update().contains("took over")
        });
        own.wait_for("both tasks", LONG, || answers(&own).len() == 2);
        for load in loads {
            no_failure(&own, "an update", &load.stop());
        }
        own.wait_for_end_of_before();
        assert_ne!(own.pid(), before);
        assert_eq!(state(&own), "active");
        assert_eq!(own.living_tasks(), living, "nothing was done to them");
        assert_eq!(own.docker(&["swarm", "unlock-key", "-q"]), key);
        if tasks == Tasks::Processes {
            own.wait_for("names inside a task", LONG, || asks_web(living[0]));
        }
    }
    // It is a swarm as before.
    own.docker(&["service", "scale", "--detach", "web=3"]);
    own.wait_for("three tasks", LONG, || n_running(&own, "web") == 3);
    own.stop();
    own.start();
    assert_eq!(state(&own), "locked", "who starts again has not been handed it");
    // One that has no key has none to hand over.
    own.update();
    assert_eq!(state(&own), "locked");
    own.wait_for("traffic", LONG, || answers(&own).len() >= 2);
    unlocks(&own, &key);
    assert_eq!(n_running(&own, "web"), 3);
}

#[test]
fn an_update_hands_the_key_over_on_processes() {
    update(Tasks::Processes);
}

#[test]
fn an_update_hands_the_key_over_on_containers() {
    update(Tasks::Containers);
}

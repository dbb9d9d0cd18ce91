//! Tasks as processes: real ones, under real keepers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anynode::agent::process::{ProcessSettings, Processes, UserRange};
use anynode::agent::{NoNetworks, TaskNetworks};
use anynode::model::swarm::{Id, TaskState};
use anynode::streams::LogQuery;
use ipnet::Ipv4Net;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::rig::{self, ALL, PATIENCE, World, is_alive, payload, processes_with, signal, until};
use crate::harness::Seed;

fn is_keeper(pid: &u32) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == b"keep")
}

/// A directory for tasks; nothing of them is left when this is dropped.
pub(super) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        // Tasks that run as other users pass through.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        Place { dir }
    }

    fn runtime(&self) -> Arc<Processes> {
        self.runtime_with(None, Arc::new(NoNetworks))
    }

    pub(super) fn runtime_with(&self, addresses: Option<Ipv4Net>, networks: Arc<dyn TaskNetworks>) -> Arc<Processes> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Arc::new(Processes::new(
            ProcessSettings {
                dir: self.dir.path().join("tasks"),
                program: PathBuf::from(env!("CARGO_BIN_EXE_anynode")),
                images: BTreeMap::from([
                    ("sh".to_owned(), words(&["/bin/sh", "-c"])),
                    ("missing:1".to_owned(), words(&["/nonexistent/program"])),
                ]),
                addresses,
                users: UserRange::DEFAULT,
                hidden: vec![self.dir.path().to_owned()],
                hidden_from_root: Vec::new(),
            },
            networks,
        ))
    }

    fn world(&self) -> World {
        World::start(self.runtime())
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn of_task(&self, id: &Id) -> PathBuf {
        self.dir.path().join("tasks").join(id.as_str())
    }

    /// No process is left but keepers, and they end: each a moment after it has said how its task ended.
    async fn emptied(&self) {
        let left = self.processes();
        let (keepers, others): (Vec<u32>, Vec<u32>) = left.into_iter().partition(is_keeper);
        // Who ended since they were counted has no words any more.
        let others: Vec<u32> = others.into_iter().filter(|pid| is_alive(*pid)).collect();
        assert_eq!(others, [0u32; 0], "beside the keepers {keepers:?}");
        until("their keepers to be gone", || self.processes().is_empty()).await;
    }

    /// All processes of tasks and their keepers.
    pub(super) fn processes(&self) -> Vec<u32> {
        processes_with(self.dir.path())
    }

    pub(super) fn keeper(&self, id: &Id) -> u32 {
        let of_task = processes_with(&self.of_task(id));
        of_task.into_iter().find(is_keeper).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.processes() {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// What runs a script.
pub(super) fn sh(script: &str) -> Value {
    json!({ "Image": "sh", "Args": [script], "StopGracePeriod": 2_000_000_000u64 })
}

/// It says `ready` once it listens to what it is told.
pub(super) const WAITS: &str = "echo ready; while :; do sleep 0.05; done";

#[tokio::test]
async fn what_a_task_is_given() {
    let place = Place::new();
    let world = place.world();
    let mut container = sh(
        "echo port $PORT; echo host $HOSTNAME; echo slot $SLOT; echo dir $ANYNODE_TASK_DIR; pwd >&2; \
                            cat $ANYNODE_TASK_DIR/run/secrets/key $ANYNODE_TASK_DIR/etc/conf; echo ready; sleep 100",
    );
    container["Env"] = json!(["SLOT={{.Task.Slot}}"]);
    container["Configs"] = json!([{ "ConfigID": "conf", "ConfigName": "conf", "File": {
        "Name": "/etc/conf", "UID": "0", "GID": "0", "Mode": 0o440,
    } }]);
    container["Secrets"] =
        json!([{ "SecretID": "key", "SecretName": "key", "File": { "Name": "key", "Mode": 0o400 } }]);
    let id = Id::from_bits(fastrand::u128(..));
    let mut assignment = rig::assignment(&id, container, json!({}));
    assignment
        .configs
        .insert(Id::from("conf"), payload("conf", "configured\n"));
    assignment.secrets.insert(Id::from("key"), payload("key", "hush\n"));
    world.assign(assignment);
    let status = world.wait(&id, TaskState::Running).await;
    assert_eq!(status.message, "started");
    world.wait_said(&id, "ready").await;
    let addr = world.addr(&id).unwrap();
    assert_eq!(addr.ip(), Ipv4Addr::LOCALHOST);
    let root = place.of_task(&id).join("root");
    // What it says on either stream is written by and by.
    world.wait_said(&id, &root.display().to_string()).await;
    let said = world.said(&id).await;
    for expected in [
        format!("port {}", addr.port()),
        format!("host {}", &id.as_str()[..12]),
        "slot 1".to_owned(),
        format!("dir {}", root.display()),
        root.display().to_string(),
        "hush".to_owned(),
        "configured".to_owned(),
    ] {
        assert!(said.contains(&expected), "{expected}: {said:?}");
    }
    let errors = world.logs(&id, LogQuery { stdout: false, ..ALL }).await;
    assert_eq!(errors.len(), 1);
    assert!(errors[0].is_stderr);
    let mode = |path: &str| std::fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("run/secrets/key"), mode("etc/conf")), (0o400, 0o440));
    // Nobody else looks at what a task is given.
    assert_eq!(mode("") & 0o077, 0);
    for held in ["job", "log", "pid"] {
        let mode = std::fs::metadata(place.of_task(&id).join(held)).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{held}");
    }
}

#[tokio::test]
async fn how_a_program_ends_is_how_its_task_ends() {
    let place = Place::new();
    let world = place.world();
    let ok = world.task(sh("exit 0"), json!({}));
    let bad = world.task(sh("exit 3"), json!({}));
    let killed = world.task(sh("kill -KILL $$"), json!({}));
    let status = world.wait(&ok, TaskState::Complete).await;
    assert_eq!((status.message.as_str(), status.error), ("finished", None));
    let status = world.wait(&bad, TaskState::Failed).await;
    assert_eq!(status.error.as_deref(), Some("task: non-zero exit (3)"));
    assert_eq!(status.container.unwrap().exit_code, 3);
    let status = world.wait(&killed, TaskState::Failed).await;
    assert_eq!(status.error.as_deref(), Some("task: non-zero exit (137)"));
    assert_eq!(world.addr(&ok), None);
    // Its output is there as long as it is known.
    assert!(place.of_task(&ok).exists());
    world.forget(&ok);
    until("its directory to be gone", || !place.of_task(&ok).exists()).await;
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let place = Place::new();
    let world = place.world();
    let unmapped = world.task(json!({ "Image": "nginx:1" }), json!({}));
    let status = world.wait(&unmapped, TaskState::Rejected).await;
    let error = status.error.unwrap();
    assert!(
        error.starts_with("No such image: nginx:1") && error.contains("[process.images]"),
        "{error}"
    );
    let missing = world.task(json!({ "Image": "missing:1" }), json!({}));
    let status = world.wait(&missing, TaskState::Failed).await;
    let error = status.error.unwrap();
    assert!(
        error.contains("starting container failed") && error.contains("/nonexistent/program"),
        "{error}"
    );
    for (key, value) in [
        (
            "Mounts",
            json!([{ "Type": "npipe", "Source": "/tmp", "Target": "/data" }]),
        ),
        ("ReadOnly", json!(true)),
        ("CapabilityDrop", json!(["ALL"])),
    ] {
        let mut container = sh("true");
        container[key] = value;
        let refused = world.task(container, json!({}));
        let error = world.wait(&refused, TaskState::Rejected).await.error.unwrap();
        assert!(error.starts_with(&format!("ContainerSpec.{key}: ")), "{error}");
    }
    let mut container = sh("true");
    container["Dir"] = json!("/nonexistent/dir");
    let nowhere = world.task(container, json!({}));
    let error = world.wait(&nowhere, TaskState::Failed).await.error.unwrap();
    assert!(error.contains("/nonexistent/dir: expected a directory"), "{error}");
    place.emptied().await;
}

#[tokio::test]
async fn what_it_binds_is_made_where_that_is_asked_for() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let (place, files) = (Place::new(), tempfile::tempdir().unwrap());
    let at = |name: &str| files.path().join(name);
    let bind = |source: &str, is_made: bool| {
        let mut container = sh(&format!(
            "echo here > {}/file; echo ready; sleep 100",
            at("app").display()
        ));
        container["User"] = json!("0");
        container["Mounts"] = json!([{
            "Type": "bind", "Source": at(source), "Target": at("app"), "BindOptions": { "CreateMountpoint": is_made },
        }]);
        container
    };
    let world = place.world();
    let id = world.task(bind("new/deep", true), json!({}));
    world.wait(&id, TaskState::Running).await;
    world.wait_said(&id, "ready").await;
    assert_eq!(std::fs::read_to_string(at("new/deep/file")).unwrap(), "here\n");
    let id = world.task(bind("none", false), json!({}));
    let error = world.wait(&id, TaskState::Rejected).await.error.unwrap();
    assert!(error.contains("bind source path does not exist: "), "{error}");
    assert!(!at("none").exists());
    // Of one that was rejected nothing is left.
    assert!(!place.of_task(&id).exists());
}

#[tokio::test]
async fn it_is_asked_to_end_and_then_ended() {
    let place = Place::new();
    let world = place.world();
    let graceful = world.task(sh(&format!("trap 'echo asked; exit 0' TERM; {WAITS}")), json!({}));
    let mut other = sh(&format!("trap 'echo asked; exit 0' USR1; trap : TERM; {WAITS}"));
    other["StopSignal"] = json!("SIGUSR1");
    let other = world.task(other, json!({}));
    let mut deaf = sh(&format!("trap : TERM; {WAITS}"));
    deaf["StopGracePeriod"] = json!(400_000_000);
    let deaf = world.task(deaf, json!({}));
    for id in [&graceful, &other, &deaf] {
        world.wait(id, TaskState::Running).await;
        world.wait_said(id, "ready").await;
        world.wish(id, TaskState::Shutdown);
    }
    let asked = Instant::now();
    for id in [&graceful, &other] {
        let status = world.wait(id, TaskState::Shutdown).await;
        assert_eq!(status.container.unwrap().exit_code, 0);
        world.wait_said(id, "asked").await;
    }
    let status = world.wait(&deaf, TaskState::Shutdown).await;
    assert_eq!(status.container.unwrap().exit_code, 137);
    assert!(asked.elapsed() >= Duration::from_millis(350));
    place.emptied().await;
}

#[tokio::test]
async fn what_a_program_started_ends_with_it() {
    let place = Place::new();
    let world = place.world();
    // One in its group, and one that has left it and its session.
    let id = world.task(sh("sleep 1000 & setsid sleep 1001 & sleep 0.2; exit 0"), json!({}));
    world.wait(&id, TaskState::Complete).await;
    place.emptied().await;
}

#[tokio::test]
async fn no_task_outlives_its_keeper() {
    let place = Place::new();
    let world = place.world();
    let id = world.task(sh(&format!("sleep 1000 & setsid sleep 1001 & {WAITS}")), json!({}));
    world.wait(&id, TaskState::Running).await;
    world.wait_said(&id, "ready").await;
    signal(place.keeper(&id), Signal::KILL);
    let status = world.wait(&id, TaskState::Failed).await;
    assert_eq!(status.error.as_deref(), Some("task: non-zero exit (137)"));
    place.emptied().await;
}

#[tokio::test]
async fn a_keeper_does_not_listen_to_who_asks_it_to_end() {
    let place = Place::new();
    let world = place.world();
    let id = world.task(sh(&format!("trap 'echo asked; exit 5' TERM; {WAITS}")), json!({}));
    world.wait(&id, TaskState::Running).await;
    world.wait_said(&id, "ready").await;
    let keeper = place.keeper(&id);
    for what in [Signal::HUP, Signal::INT, Signal::TERM, Signal::QUIT] {
        signal(keeper, what);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(is_alive(keeper) && is_alive(world.pid(&id)));
    // As a service manager that asks all: the program answers, and the keeper says what came of it.
    signal(world.pid(&id), Signal::TERM);
    let status = world.wait(&id, TaskState::Failed).await;
    assert_eq!(status.error.as_deref(), Some("task: non-zero exit (5)"));
}

#[tokio::test]
async fn a_task_lives_on_and_is_found_again() {
    let place = Place::new();
    let mut world = place.world();
    let lives = world.task(sh(WAITS), json!({}));
    let ends = world.task(sh(&format!("trap 'exit 4' TERM; {WAITS}")), json!({}));
    let forgotten = world.task(sh(WAITS), json!({}));
    for id in [&lives, &ends, &forgotten] {
        world.wait(id, TaskState::Running).await;
        world.wait_said(id, "ready").await;
    }
    let (pid, addr) = (world.pid(&lives), world.addr(&lives));
    // A keeper writes what is said while nobody is there.
    let runtime = place.runtime();
    let unknown = forgotten.clone();
    signal(world.pid(&ends), Signal::TERM);
    let of_ends = place.of_task(&ends);
    until("its exit code", || of_ends.join("exit").exists()).await;
    world.restart(runtime).await;
    until("it to be reached", || world.addr(&lives).is_some()).await;
    assert_eq!((world.pid(&lives), world.addr(&lives)), (pid, addr));
    let status = world.wait(&ends, TaskState::Failed).await;
    assert_eq!(status.error.as_deref(), Some("task: non-zero exit (4)"));
    // Nobody knows it any more, and nobody was there to be told.
    world.forget(&unknown);
    until("what is nobody's to be gone", || !place.of_task(&unknown).exists()).await;
    assert!(is_alive(pid));
}

#[tokio::test]
async fn what_nobody_knows_is_taken_away() {
    let place = Place::new();
    let id = {
        let world = place.world();
        let id = world.task(sh(WAITS), json!({}));
        world.wait(&id, TaskState::Running).await;
        id
    };
    // Another run, which has never heard of it.
    let _world = place.world();
    until("it to be gone", || !place.of_task(&id).exists()).await;
    place.emptied().await;
}

/// Whatever becomes of the files that say what runs of a task, no process of it runs on unknown: it is found again, or ended.
#[tokio::test]
async fn damaged_files_of_a_task_leave_nothing_running_untracked() {
    let place = Place::new();
    let mut world = place.world();
    let bystander = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let _bystander = KilledAtLast(bystander);
    fn other(pid: u32) -> Value {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let after_name = stat.rsplit(')').next().unwrap();
        let started: u64 = after_name.split_whitespace().nth(19).unwrap().parse().unwrap();
        json!({ "pid": pid, "started": started })
    }
    let victim = _bystander.0.id();
    // What becomes of a file: `None` is a file that is gone.
    type Damage = Box<dyn Fn(&[u8]) -> Option<Vec<u8>>>;
    let damages: Vec<(&str, Damage)> = vec![
        ("truncated", Box::new(|whole| Some(whole[..whole.len() / 2].to_vec()))),
        ("empty", Box::new(|_| Some(Vec::new()))),
        ("garbage", Box::new(|_| Some(vec![0xff; 100]))),
        ("gone", Box::new(|_| None)),
        (
            "another's",
            Box::new(move |_| {
                let mut text = other(victim);
                text["keeper"] = other(std::process::id());
                Some(text.to_string().into_bytes())
            }),
        ),
        (
            "another's, of an earlier version",
            Box::new(move |_| Some(other(victim).to_string().into_bytes())),
        ),
    ];
    for (name, damage) in &damages {
        for file in ["pid", "job", "lock", "alive"] {
            if *name == "gone" && file == "pid" && std::env::var_os("ANYNODE_SOAK_SECONDS").is_none() {
                // A keeper that has just begun looks the same: this takes half a minute.
                continue;
            }
            if name.starts_with("another's") && file != "pid" || file == "lock" && *name != "gone" {
                continue;
            }
            let id = world.task(sh(WAITS), json!({}));
            world.wait(&id, TaskState::Running).await;
            world.wait_said(&id, "ready").await;
            let (program, keeper) = (world.pid(&id), place.keeper(&id));
            let path = place.of_task(&id).join(file);
            let is_pipe = file == "alive";
            let whole = if is_pipe {
                vec![0; 10]
            } else {
                std::fs::read(&path).unwrap()
            };
            std::fs::remove_file(&path).unwrap();
            if let Some(damaged) = damage(&whole) {
                std::fs::write(&path, damaged).unwrap();
            }
            world.restart(place.runtime()).await;
            // By what is left of the others it is found; without them there is no telling what it is.
            let is_ended = file != "pid";
            until(&format!("{file} {name}: it to be found or ended"), || {
                let latest = world.latest(&id).unwrap();
                latest.state.is_terminal() || !is_ended && world.addr(&id).is_some()
            })
            .await;
            match is_ended {
                true => {
                    until(&format!("{file} {name}: nothing of it to be left"), || {
                        !is_alive(program) && !is_alive(keeper)
                    })
                    .await;
                }
                false => {
                    assert!(is_alive(program) && is_alive(keeper), "{file} {name}");
                    // It is known by the right number again.
                    world.wish(&id, TaskState::Shutdown);
                    world.wait(&id, TaskState::Shutdown).await;
                    assert!(!is_alive(program), "{file} {name}");
                }
            }
            println!("{file} {name}: {}", if is_ended { "ended" } else { "found again" });
            world.forget(&id);
            until("its directory to be gone", || !place.of_task(&id).exists()).await;
            place.emptied().await;
            assert!(
                is_alive(victim),
                "{file} {name}: a process that has nothing to do with it was ended"
            );
        }
    }
}

/// A process that a test started.
struct KilledAtLast(std::process::Child);

impl Drop for KilledAtLast {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ANYNODE_KILLS`: so often the agent is ended at a random moment.
#[tokio::test]
async fn an_agent_that_ends_at_any_moment_loses_no_task_and_makes_none_twice() {
    let place = Place::new();
    let seed = Seed::new();
    let mut random = seed.rng();
    let rounds = std::env::var("ANYNODE_KILLS").map_or(15, |n| n.parse().unwrap());
    let mut world = place.world();
    for round in 0..rounds {
        let ids: Vec<Id> = (0..3).map(|_| world.task(sh(WAITS), json!({}))).collect();
        tokio::time::sleep(Duration::from_micros(random.u64(..30_000))).await;
        world.restart(place.runtime()).await;
        let gone = &ids[0];
        world.wish(gone, TaskState::Remove);
        let mut n_running = 0;
        for id in &ids[1..] {
            let started = Instant::now();
            loop {
                match world.latest(id).map(|status| status.state) {
                    Some(TaskState::Running) => break n_running += 1,
                    // It had begun, and was lost with what was not written yet: replaced by who wants it.
                    Some(TaskState::Failed) => break,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
                assert!(started.elapsed() < PATIENCE, "round {round}: {:?}", world.latest(id));
            }
        }
        until("the first to be gone", || !place.of_task(gone).exists()).await;
        // What a shell starts is one too for a moment, but leads no session.
        let is_program = |pid: &u32| {
            let leads = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap());
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sh")
                && leads.is_some_and(|pid| rustix::process::getsid(Some(pid)) == Ok(pid))
        };
        let n_programs = place.processes().iter().filter(|pid| is_program(pid)).count();
        assert_eq!(n_programs, n_running, "round {round}");
        ids.iter().for_each(|id| world.forget(id));
        until("all to be gone", || place.processes().is_empty()).await;
    }
}

#[tokio::test]
async fn logs_rotate_and_are_followed_all_the_while() {
    let place = Place::new();
    let world = place.world();
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i of many; [ $((i % 200)) = 0 ] && sleep 0.15; done; exit 0";
    let options = json!({ "LogDriver": { "Name": "json-file", "Options": { "max-size": "4k", "max-file": "3" } } });
    let id = world.task(sh(script), options);
    world.wait(&id, TaskState::Running).await;
    let followed = world.logs(&id, LogQuery { follow: true, ..ALL }).await;
    world.wait(&id, TaskState::Complete).await;
    let sizes: Vec<u64> = ["log", "log.1", "log.2", "log.3"]
        .iter()
        .filter_map(|name| Some(std::fs::metadata(place.of_task(&id).join(name)).ok()?.len()))
        .collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 4096), "{sizes:?}");
    let tail = world.logs(&id, LogQuery { tail: Some(3), ..ALL }).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let tail: Vec<String> = tail.iter().map(|line| text(&line.bytes)).collect();
    assert_eq!(tail, ["line 1998 of many", "line 1999 of many", "line 2000 of many"]);
    // 200 lines are more than two files: what was put aside twice between two looks is gone. What is there is in order.
    let numbers: Vec<u32> = followed
        .iter()
        .map(|line| text(&line.bytes).split(' ').nth(1).unwrap().parse().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    assert_eq!(numbers.last(), Some(&2000));
    assert!(followed.windows(2).all(|pair| pair[0].at <= pair[1].at));

    let wrong = json!({ "LogDriver": { "Name": "json-file", "Options": { "max-size": "much" } } });
    let id = world.task(sh("true"), wrong);
    let error = world.wait(&id, TaskState::Rejected).await.error.unwrap();
    assert!(error.starts_with("LogDriver.Options.max-size \"much\""), "{error}");
}

#[tokio::test]
async fn odd_output_is_kept() {
    let place = Place::new();
    let world = place.world();
    let script = r"printf 'no end'; printf '\0\377 bytes\n' >&2; head -c 40000 /dev/zero | tr '\0' x; echo";
    let id = world.task(sh(script), json!({}));
    world.wait(&id, TaskState::Complete).await;
    let lines = world.logs(&id, ALL).await;
    let of = |is_stderr: bool| -> Vec<u8> {
        let lines = lines.iter().filter(|line| line.is_stderr == is_stderr);
        lines.flat_map(|line| line.bytes.to_vec()).collect()
    };
    assert_eq!(of(true), b"\0\xff bytes");
    let expected = [b"no end".to_vec(), vec![b'x'; 40_000]].concat();
    assert!(of(false) == expected, "{} bytes", of(false).len());
    assert!(lines.iter().all(|line| line.bytes.len() <= 16 << 10));
}

pub(super) fn check(test: &str, more: Value) -> Value {
    let mut check = json!({
        "Test": ["CMD-SHELL", test], "Interval": 50_000_000, "Timeout": 300_000_000, "Retries": 2,
    });
    for (key, value) in more.as_object().unwrap() {
        check[key] = value.clone();
    }
    check
}

#[tokio::test]
async fn a_health_check_runs_as_the_task_would() {
    let place = Place::new();
    let world = place.world();
    let mut container = sh(&format!("trap 'exit 0' TERM; {WAITS}"));
    container["Env"] = json!(["WANTED=well"]);
    container["HealthCheck"] = check(
        "test \"$(cat health)\" = $WANTED && test -n \"$PORT\"",
        json!({ "Retries": 1000 }),
    );
    let id = world.task(container.clone(), json!({}));
    world.wait(&id, TaskState::Starting).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.latest(&id).unwrap().state, TaskState::Starting);
    assert_eq!(world.addr(&id), None);
    std::fs::write(place.of_task(&id).join("root/health"), "well").unwrap();
    world.wait(&id, TaskState::Running).await;
    assert!(world.addr(&id).is_some());

    container["HealthCheck"] = check(
        "test -e health",
        json!({ "StartPeriod": 600_000_000, "StartInterval": 20_000_000 }),
    );
    let id = world.task(container, json!({}));
    world.wait(&id, TaskState::Starting).await;
    // Longer than two failures take: they do not count yet.
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::write(place.of_task(&id).join("root/health"), "").unwrap();
    world.wait(&id, TaskState::Running).await;
    std::fs::remove_file(place.of_task(&id).join("root/health")).unwrap();
    let status = world.wait(&id, TaskState::Complete).await;
    assert_eq!(status.error, None);
    assert_eq!(world.addr(&id), None);
}

#[tokio::test]
async fn a_check_that_hangs_has_failed_and_leaves_nothing() {
    let place = Place::new();
    let world = place.world();
    let mut container = sh(WAITS);
    container["HealthCheck"] = check("sleep 1000 & sleep 1001", json!({}));
    let id = world.task(container, json!({}));
    let status = world.wait(&id, TaskState::Failed).await;
    assert_eq!(status.message, "starting");
    let error = status.error.unwrap();
    assert_eq!(error, "task: non-zero exit (143): dockerexec: unhealthy container");
    until("its checks to be gone", || place.processes().is_empty()).await;
}

#[tokio::test]
async fn a_task_runs_as_its_user() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: this needs root");
        return;
    }
    let place = Place::new();
    let world = place.world();
    let script = "echo user $(id -u):$(id -g); echo groups $(id -G); touch mine && echo touched; \
                  cat ../job 2>/dev/null && echo leaked; cat run/secrets/key; sleep 100";
    let mut container = sh(script);
    container["User"] = json!("65534:12345");
    container["Groups"] = json!(["23456"]);
    container["Secrets"] = json!([{ "SecretID": "key", "SecretName": "key", "File": {
        "Name": "key", "UID": "65534", "Mode": 0o400,
    } }]);
    container["HealthCheck"] = check("test $(id -u) = 65534", json!({}));
    let id = Id::from_bits(fastrand::u128(..));
    let mut assignment = rig::assignment(&id, container, json!({}));
    assignment.secrets.insert(Id::from("key"), payload("key", "hush\n"));
    world.assign(assignment);
    world.wait(&id, TaskState::Running).await;
    world.wait_said(&id, "hush").await;
    let said = world.said(&id).await;
    assert_eq!(said, ["user 65534:12345", "groups 12345 23456", "touched", "hush"]);
    // Its keeper's end is still its own.
    signal(place.keeper(&id), Signal::KILL);
    world.wait(&id, TaskState::Failed).await;
    place.emptied().await;

    let mut container = sh("true");
    container["User"] = json!("nobody-of-that-name");
    let id = world.task(container, json!({}));
    let error = world.wait(&id, TaskState::Rejected).await.error.unwrap();
    assert!(error.contains("unable to find user nobody-of-that-name"), "{error}");
}

#[test]
fn a_keeper_starts_for_nobody_else() {
    let place = Place::new();
    std::fs::create_dir_all(place.dir.path().join("task")).unwrap();
    let keep = |dir: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_anynode"));
        command.arg("keep").arg(dir).stdin(std::process::Stdio::null());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert!(keep(Path::new("/nonexistent")).starts_with("error "));
    std::fs::write(place.dir.path().join("task/lock"), "").unwrap();
    let said = keep(&place.dir.path().join("task"));
    assert!(said.starts_with("error expected its lock"), "{said}");
}

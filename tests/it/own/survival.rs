//! What a swarm in one binary survives: updates under load, kill -9 of its tasks and of itself at any moment.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::rig::{self, LONG, Own, Tasks};
use crate::harness::Seed;
use crate::swarm::rig::task_program;

/// Requests from inside until it is waited for.
pub(super) struct Load(Child);

impl Load {
    pub(super) fn start(own: &Own, port: u16, args: &[&str]) -> Load {
        let mut command = own.inside(task_program());
        command.args(["load", &format!("127.0.0.1:{port}")]).args(args);
        Load(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn wait(self) -> Value {
        let out = self.0.wait_with_output().unwrap();
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// Has it end now.
    pub(super) fn stop(self) -> Value {
        drop(std::process::Command::new("kill").arg(self.0.id().to_string()).status());
        self.wait()
    }
}

pub(super) fn no_failure(own: &Own, what: &str, report: &Value) {
    assert!(report["ok"].as_u64().unwrap() > 0, "{what}: {report}");
    assert_eq!(report["failed"], 0, "{what}: {report}\n{}", own.log_tail());
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

fn n_running(own: &Own, service: &str) -> usize {
    let states = own.docker(&[
        "service",
        "ps",
        service,
        "--format",
        "{{.CurrentState}}",
        "--filter",
        "desired-state=running",
    ]);
    states.lines().filter(|state| state.starts_with("Running")).count()
}

fn create(own: &Own, name: &str, args: &[&str]) {
    let command = ["service", "create", "--detach", "--no-resolve-image", "--name", name];
    own.docker(&[&command[..], args, &["nginx:latest"]].concat());
}

/// `ANYNODE_ROUNDS`: so many forced updates.
fn updates(tasks: Tasks) {
    let Some(mut own) = rig::up(
        &format!("u{}", if tasks == Tasks::Processes { "p" } else { "c" }),
        tasks,
    ) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let common = ["--replicas", "3", "--stop-grace-period", "4s"];
    create(&own, "tcp", &[&common[..], &["--publish", "8080:80"]].concat());
    create(
        &own,
        "http",
        &[&common[..], &["--publish", "8081:80", "--label", "anynode.mode=http"]].concat(),
    );
    for service in ["tcp", "http"] {
        own.wait_for("three tasks", LONG, || n_running(&own, service) == 3);
    }
    for round in 0..number("ANYNODE_ROUNDS", 2) {
        let order = ["start-first", "stop-first"][usize::try_from(round % 2).unwrap()];
        let on_term = ["graceful", "exit", "ignore"][usize::try_from(round / 2 % 3).unwrap()];
        let loads = [
            // Five threads that pause 10 ms: 500 new connections a second.
            (
                "tcp, new",
                Load::start(&own, 8080, &["--new", "--threads", "5", "--pause-us", "10000"]),
            ),
            (
                "http, new",
                Load::start(&own, 8081, &["--new", "--threads", "2", "--pause-us", "10000"]),
            ),
            ("http, kept", Load::start(&own, 8081, &["--pause-us", "5000"])),
            ("http, 3 s", Load::start(&own, 8081, &["--path", "/?delay=3000"])),
            (
                "tcp, 3 s",
                Load::start(&own, 8080, &["--new", "--path", "/?delay=3000"]),
            ),
            (
                "http, 5 MB",
                Load::start(
                    &own,
                    8081,
                    &["--threads", "2", "--path", "/?bytes=5000000", "--pause-us", "100000"],
                ),
            ),
        ];
        for service in ["tcp", "http"] {
            let term = format!("ON_TERM={on_term}");
            own.docker(&[
                "service",
                "update",
                "--detach",
                "--no-resolve-image",
                "--force",
                "--update-order",
                order,
                "--update-delay",
                "0s",
                "--update-monitor",
                "1s",
                "--env-add",
                &term,
                service,
            ]);
        }
        for service in ["tcp", "http"] {
            let state = || own.docker(&["service", "inspect", "-f", "{{.UpdateStatus.State}}", service]);
            own.wait_for("the update to end", Duration::from_secs(120), || state() == "completed");
        }
        own.docker(&["service", "scale", "--detach", "tcp=10", "http=10"]);
        own.wait_for("ten tasks", LONG, || {
            ["tcp", "http"].iter().all(|service| n_running(&own, service) == 10)
        });
        own.docker(&["service", "scale", "--detach", "tcp=2", "http=2"]);
        own.wait_for("two tasks", LONG, || own.living_tasks().len() == 4);
        own.docker(&["service", "scale", "--detach", "tcp=10", "http=10"]);
        own.wait_for("ten tasks", LONG, || {
            ["tcp", "http"].iter().all(|service| n_running(&own, service) == 10)
        });
        own.docker(&["service", "scale", "--detach", "tcp=3", "http=3"]);
        own.wait_for("three tasks", LONG, || own.living_tasks().len() == 6);
        for (what, load) in loads {
            no_failure(
                &own,
                &format!("round {round}, {order}, {on_term}, {what}"),
                &load.stop(),
            );
        }
    }
}

#[test]
fn updates_and_scaling_cost_no_request_as_processes() {
    updates(Tasks::Processes);
}

/// One command of a user, and what must hold of the service once it was answered.
fn command(
    random: &mut fastrand::Rng,
    wished: &BTreeMap<String, u32>,
    round: u64,
) -> (Vec<String>, String, Option<u32>) {
    let name = format!("s{}", random.u8(..3));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let replicas = random.u32(1..4);
    match wished.get(&name) {
        None => {
            let replicas_text = replicas.to_string();
            let create = [
                "service",
                "create",
                "--detach",
                "--no-resolve-image",
                "--name",
                &name,
                "--replicas",
                &replicas_text,
            ];
            let delay = ["--restart-delay", "200ms", "nginx:latest"];
            (words(&[&create[..], &delay].concat()), name.clone(), Some(replicas))
        }
        Some(_) if random.u8(..4) == 0 => (words(&["service", "rm", &name]), name, None),
        Some(now) if random.bool() => {
            let now = *now;
            let round = format!("ROUND={round}");
            let update = [
                "service",
                "update",
                "--detach",
                "--no-resolve-image",
                "--update-delay",
                "0s",
                "--env-add",
                &round,
                &name,
            ];
            (words(&update), name, Some(now))
        }
        Some(_) => (
            words(&["service", "scale", "--detach", &format!("{name}={replicas}")]),
            name,
            Some(replicas),
        ),
    }
}

/// `ANYNODE_KILLS`: so often anynode is killed.
fn kills(tasks: Tasks) {
    let Some(mut own) = rig::up(
        &format!("k{}", if tasks == Tasks::Processes { "p" } else { "c" }),
        tasks,
    ) else {
        return;
    };
    let seed = Seed::new();
    let mut random = seed.rng();
    own.start();
    own.docker(&["swarm", "init"]);
    create(&own, "steady", &["--replicas", "2", "--publish", "8080:80"]);
    own.wait_for("two tasks", LONG, || n_running(&own, "steady") == 2);
    let steady: Vec<u32> = own.living_tasks();
    let mut wished: BTreeMap<String, u32> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for round in 0..number("ANYNODE_KILLS", 10) {
        let (words, name, expected) = command(&mut random, &wished, round);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let asked = own
            .docker_command(&words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        std::thread::sleep(Duration::from_millis(random.u64(..400)));
        own.kill();
        let was_answered = asked.unwrap().wait().unwrap().success();
        let started = Instant::now();
        own.start();
        own.wait_for("traffic to go on", LONG, || own.curl("http://localhost:8080").is_some());
        longest = longest.max(started.elapsed());
        let names = own.docker(&["service", "ls", "--format", "{{.Name}} {{.Replicas}}"]);
        let found: BTreeMap<String, u32> = names
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, replicas)| (name.to_owned(), replicas.split('/').nth(1).unwrap().parse().unwrap()))
            .collect();
        if was_answered {
            match expected {
                Some(expected) => drop(wished.insert(name.clone(), expected)),
                None => drop(wished.remove(&name)),
            }
            assert_eq!(
                found.get(&name),
                wished.get(&name),
                "round {round}: {words:?} was answered"
            );
        } else {
            // It was done or it was not.
            match found.get(&name) {
                Some(replicas) => drop(wished.insert(name, *replicas)),
                None => drop(wished.remove(&name)),
            }
        }
        let others: BTreeMap<String, u32> = found.into_iter().filter(|(name, _)| name != "steady").collect();
        assert_eq!(others, wished, "round {round}: after {words:?}");
    }
    println!("{tasks:?}: the longest from a start to an answer was {longest:?}");
    let all: usize = wished.values().map(|n| *n as usize).sum::<usize>() + 2;
    own.wait_for("as many tasks as are wished for", Duration::from_secs(120), || {
        own.living_tasks().len() == all && wished.iter().all(|(name, n)| n_running(&own, name) == *n as usize)
    });
    let living = own.living_tasks();
    assert!(
        steady.iter().all(|pid| living.contains(pid)),
        "the tasks that nobody touched are the same ones"
    );
    for name in wished.keys() {
        let slots = own.docker(&[
            "service",
            "ps",
            name,
            "--filter",
            "desired-state=running",
            "--format",
            "{{.Name}}",
        ]);
        let mut slots: Vec<&str> = slots.lines().collect();
        let n = slots.len();
        slots.dedup();
        assert_eq!(slots.len(), n, "{name}: no slot has two tasks: {slots:?}");
    }
}

#[test]
fn kill_9_of_anynode_at_any_moment_loses_nothing_that_was_answered_as_processes() {
    kills(Tasks::Processes);
}

#[test]
fn a_task_that_is_killed_is_replaced_and_a_crash_loop_is_no_burden() {
    let Some(mut own) = rig::up("crash", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    create(
        &own,
        "web",
        &["--replicas", "2", "--publish", "8080:80", "--restart-delay", "1s"],
    );
    own.wait_for("two tasks", LONG, || n_running(&own, "web") == 2);
    let load = Load::start(&own, 8080, &["--new", "--threads", "1", "--pause-us", "1000"]);
    std::thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    let before = own.living_tasks();
    drop(
        std::process::Command::new("kill")
            .args(["-9", &before[0].to_string()])
            .status(),
    );
    own.wait_for("a replacement", LONG, || {
        let now = own.living_tasks();
        now.len() == 2 && !now.contains(&before[0])
    });
    assert!(
        killed.elapsed() >= Duration::from_secs(1),
        "not before its restart delay: {:?}",
        killed.elapsed()
    );
    own.wait_for("two tasks", LONG, || n_running(&own, "web") == 2);
    let report = load.stop();
    let failed = report["failed"].as_u64().unwrap();
    assert!(failed <= 1, "the dead one got traffic twice: {report}");
    let errors = own.docker(&["service", "ps", "web", "--no-trunc", "--format", "{{.Error}}"]);
    assert!(errors.contains("task: non-zero exit (137)"), "{errors}");

    create(
        &own,
        "loop",
        &[
            "--restart-delay",
            "100ms",
            "--restart-max-attempts",
            "3",
            "--env",
            "HTTP=not-an-address",
        ],
    );
    own.wait_for("the last attempt", LONG, || {
        let states = own.docker(&["service", "ps", "loop", "--format", "{{.CurrentState}}"]);
        states.lines().count() == 4 && states.lines().all(|state| state.starts_with("Failed"))
    });
    create(
        &own,
        "forever",
        &["--restart-delay", "200ms", "--env", "HTTP=not-an-address"],
    );
    std::thread::sleep(Duration::from_secs(1));
    let ticks = |pid: u32| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let (pid, before) = (own.pid(), ticks(own.pid()));
    std::thread::sleep(Duration::from_secs(5));
    let used = ticks(pid) - before;
    println!("a crash loop of 5 a second takes {used} ticks of 10 ms in 5 s");
    assert!(used < 150, "{used} of 500 ticks");
    let history = own.docker(&["service", "ps", "forever", "--format", "{{.Name}}"]);
    assert!(history.lines().count() <= 5, "{history}");
}

/// One task, and it is stopped before the next begins.
fn one_replica(tasks: Tasks) {
    let Some(mut own) = rig::up(
        &format!("one{}", if tasks == Tasks::Processes { "p" } else { "c" }),
        tasks,
    ) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    create(&own, "tcp", &["--publish", "8080:80", "--restart-delay", "500ms"]);
    create(&own, "http", &["--publish", "8081:80", "--label", "anynode.mode=http"]);
    for service in ["tcp", "http"] {
        own.wait_for("a task", LONG, || n_running(&own, service) == 1);
    }
    let load = |port| Load::start(&own, port, &["--new", "--threads", "2", "--pause-us", "5000"]);
    let loads = [("tcp", load(8080)), ("http", load(8081))];
    for _ in 0..2 {
        for service in ["tcp", "http"] {
            let update = ["service", "update", "--no-resolve-image", "--force", "--update-monitor"];
            own.docker(&[&update[..], &["500ms", "--update-order", "stop-first", service]].concat());
        }
    }
    for (what, load) in loads {
        let report = load.stop();
        no_failure(&own, &format!("{tasks:?}, {what}"), &report);
        println!(
            "{tasks:?}, {what}: {} requests, the longest took {} ms",
            report["ok"],
            report["max_us"].as_u64().unwrap() / 1000
        );
    }
    // Killed, its clients wait for the next; at most those that it had are lost.
    let load = load(8080);
    std::thread::sleep(Duration::from_millis(300));
    let killed = own.living_tasks();
    for pid in &killed {
        drop(
            std::process::Command::new("kill")
                .args(["-9", &pid.to_string()])
                .status(),
        );
    }
    own.wait_for("another task", LONG, || {
        n_running(&own, "tcp") == 1 && own.living_tasks().iter().all(|pid| !killed.contains(pid))
    });
    std::thread::sleep(Duration::from_millis(300));
    let report = load.stop();
    assert!(
        report["failed"].as_u64().unwrap() <= 2,
        "one in flight of each thread: {report}"
    );
}

#[test]
fn an_update_of_one_replica_costs_no_request_as_processes() {
    one_replica(Tasks::Processes);
}

#[test]
fn an_update_of_one_replica_costs_no_request_as_containers() {
    one_replica(Tasks::Containers);
}

#[test]
fn updates_and_scaling_cost_no_request_as_containers() {
    updates(Tasks::Containers);
}

#[test]
fn kill_9_of_anynode_at_any_moment_loses_nothing_that_was_answered_as_containers() {
    kills(Tasks::Containers);
}

#[test]
fn a_restart_of_anynode_touches_no_task() {
    let Some(mut own) = rig::up("restart", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    create(&own, "web", &["--replicas", "3", "--publish", "8080:80"]);
    own.wait_for("three tasks", LONG, || n_running(&own, "web") == 3);
    let mut before = own.living_tasks();
    own.stop();
    let mut meanwhile = own.living_tasks();
    own.start();
    own.wait_for("traffic", LONG, || own.curl("http://localhost:8080").is_some());
    let mut after = own.living_tasks();
    for tasks in [&mut before, &mut meanwhile, &mut after] {
        tasks.sort_unstable();
    }
    assert_eq!((&before, &before), (&meanwhile, &after));
    let history = own.docker(&["service", "ps", "web", "--format", "{{.Name}}"]);
    assert_eq!(history.lines().count(), 3, "{history}");
}

/// What whoever starts anynode leaves open reaches no task, no keeper and no health check.
#[test]
fn descriptors_that_anynode_inherits_reach_no_task() {
    let Some(mut own) = rig::up("fds", Tasks::Processes) else {
        return;
    };
    own.start_with_descriptors_left_open();
    let left_open = |pid: u32| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.ends_with("left-open")).count()
    };
    assert_eq!(left_open(own.pid()), 2, "the test leaves them to anynode itself");
    own.docker(&["swarm", "init"]);
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "web",
        "--health-cmd",
        "ls /proc/self/fd > $ANYNODE_TASK_DIR/checked",
        "--health-interval",
        "200ms",
        "--entrypoint",
        "/bin/sh",
        "nginx:latest",
        "-c",
        "ls /proc/self/fd > $ANYNODE_TASK_DIR/begun; exec sleep 600",
    ]);
    own.wait_for("its check", LONG, || n_running(&own, "web") == 1);
    let tasks = std::fs::read_dir(own.data_dir().join("tasks")).unwrap().flatten();
    let task = tasks.map(|entry| entry.path()).next().unwrap();
    for file in ["begun", "checked"] {
        let open = std::fs::read_to_string(task.join("root").join(file)).unwrap();
        // The last is the directory that `ls` reads.
        assert_eq!(
            open.split_whitespace().collect::<Vec<_>>(),
            ["0", "1", "2", "3"],
            "{file}"
        );
    }
    let of_task = crate::agent::rig::processes_with(&task);
    assert!(of_task.len() >= 2, "a keeper and a program: {of_task:?}");
    for pid in of_task {
        assert_eq!(left_open(pid), 0, "process {pid}");
    }
}

/// A full disk below everything that is kept: what is declared goes on and is shown, changes are refused in words, and once
/// there is room all goes on by itself.
#[test]
fn a_disk_that_is_full_for_a_while_is_said_and_survived() {
    let Some(mut own) = rig::up("full", Tasks::Processes) else {
        return;
    };
    std::fs::create_dir(own.data_dir()).unwrap();
    let Some(disk) = crate::harness::small_disk_at(&own.data_dir(), 16 << 20) else {
        println!("skipped: a small file system cannot be mounted here");
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let args = ["--replicas", "2", "--publish", "8080:80", "--restart-delay", "1s"];
    create(&own, "web", &args);
    own.wait_for("two tasks", LONG, || n_running(&own, "web") == 2);
    own.docker(&["network", "create", "-d", "overlay", "before"]);
    let readyz = || own.curl("http://localhost:9377/readyz").unwrap();
    let metric = |name: &str| {
        let all = own.curl("http://localhost:9377/metrics").unwrap();
        let line = all
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name}\n{all}"))
    };
    assert!(!readyz().contains("store"), "{}", readyz());
    assert_eq!(metric("anynode_store_writable"), "1");

    let filler = disk.path().join("filler");
    drop(std::fs::write(&filler, vec![1; 32 << 20]));
    let mut n_kept = 0;
    let refused = loop {
        let network = format!("kept-{n_kept}");
        let out = own.docker_out(&["network", "create", "-d", "overlay", &network]);
        if !out.status.success() {
            break String::from_utf8_lossy(&out.stderr).into_owned();
        }
        n_kept += 1;
        assert!(n_kept < 200, "the disk is never full");
    };
    assert!(
        refused.contains("the store cannot be written") && refused.contains("No space left on device"),
        "{refused}"
    );
    let killed = own.living_tasks()[0];
    drop(
        std::process::Command::new("kill")
            .args(["-9", &killed.to_string()])
            .status(),
    );
    own.wait_for("its end", LONG, || !own.living_tasks().contains(&killed));
    // It goes on with what it has, and says what is wrong.
    for _ in 0..10 {
        assert!(own.curl("http://localhost:8080").is_some(), "traffic goes on");
    }
    let ready = readyz();
    assert!(
        ready.starts_with("serving\n") && ready.contains("store: cannot be written") && ready.contains("No space left"),
        "{ready}"
    );
    let status = own.anynode(&["status"]);
    assert!(
        status.contains("! store: cannot be written") && status.contains("No space left"),
        "{status}"
    );
    assert_eq!(metric("anynode_store_writable"), "0");
    assert_ne!(metric("anynode_store_write_failures_total"), "0");
    assert!(
        own.docker(&["service", "ls"]).contains("web"),
        "what is declared is shown"
    );
    // Some seconds of it are neither work nor many words.
    let said = || own.log().lines().filter(|line| line.contains("No space left")).count();
    std::thread::sleep(Duration::from_secs(3));
    assert!(said() <= 3, "{} lines\n{}", said(), own.log_tail());

    std::fs::remove_file(&filler).unwrap();
    let freed = Instant::now();
    own.wait_for("it to be written again", LONG, || {
        own.docker_out(&["network", "create", "-d", "overlay", "after"])
            .status
            .success()
    });
    println!("written again {:?} after there was room", freed.elapsed());
    own.wait_for("a replacement", LONG, || own.living_tasks().len() == 2);
    own.wait_for("two tasks", LONG, || n_running(&own, "web") == 2);
    assert!(!readyz().contains("store"), "{}", readyz());
    assert_eq!(metric("anynode_store_writable"), "1");
    assert!(own.log().contains("the store is written again"));
    let networks = |own: &Own| {
        let all = own.docker(&["network", "ls", "--format", "{{.Name}}"]);
        let mut all: Vec<String> = all.lines().map(str::to_owned).collect();
        all.sort();
        all
    };
    let has = |all: &[String], name: &str| all.iter().any(|one| one == name);
    for restart in [false, true] {
        if restart {
            own.kill();
            own.start();
        }
        let all = networks(&own);
        for kept in (0..n_kept)
            .map(|n| format!("kept-{n}"))
            .chain(["before".to_owned(), "after".to_owned()])
        {
            assert!(has(&all, &kept), "{kept} was answered: {all:?}");
        }
        assert!(!has(&all, &format!("kept-{n_kept}")), "it was refused: {all:?}");
    }
}

/// README's way without root and without an engine.
#[test]
fn an_ordinary_user_has_a_swarm_too() {
    const NOBODY: u32 = 65_534;
    let Some(mut own) = rig::up("user", Tasks::Processes) else {
        return;
    };
    own.start_as(Some(NOBODY));
    own.docker(&["swarm", "init"]);
    let args = [
        "--name",
        "my-web",
        "--publish",
        "published=8080,target=80",
        "--replicas",
        "3",
    ];
    own.docker(&[&["service", "create"], &args[..], &["anynode/whoami"]].concat());
    let names: std::collections::BTreeSet<String> = (0..6)
        .map(|_| own.curl("http://localhost:8080").expect("an answer"))
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(own.docker(&["service", "ls"]).contains("3/3"));
    own.docker(&["service", "scale", "my-web=5"]);
    own.docker(&["service", "rm", "my-web"]);
    // What cannot be kept is not promised.
    let limited = [
        "service",
        "create",
        "--detach",
        "--name",
        "limited",
        "--limit-pids",
        "5",
        "anynode/whoami",
    ];
    own.docker(&limited);
    own.wait_for("the reason", LONG, || {
        own.docker(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", "limited"])
            .contains("Resources.Limits: no control group for pids can be made")
    });
    own.docker(&["service", "rm", "limited"]);
    own.wait_for("nothing to be left", LONG, || {
        std::fs::read_dir(own.data_dir().join("tasks")).map_or(true, |tasks| tasks.count() == 0)
    });
}

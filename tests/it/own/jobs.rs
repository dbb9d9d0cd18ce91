//! Jobs, through the real docker command line, on both runtimes: what has completed stays so, whatever is killed meanwhile;
//! and the same commands to a real Docker Swarm.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use super::rig::{self, LONG, Own, Tasks};
use crate::swarm;
use crate::swarm::rig::task_program;

fn up(name: &str, tasks: Tasks) -> Option<Own> {
    let mut own = rig::up(name, tasks)?;
    own.start();
    own.docker(&["swarm", "init"]);
    Some(own)
}

/// The program of the tests, which says its hostname and ends well.
fn says_hostname(tasks: Tasks) -> String {
    match tasks {
        Tasks::Processes => format!("{} hostname", task_program().display()),
        Tasks::Containers => "/task hostname".to_owned(),
    }
}

const CREATE: [&str; 3] = ["service", "create", "--no-resolve-image"];

/// As `service ls` has it, such as `2/2 (1/5 completed)`.
fn replicas(own: &Own, service: &str) -> String {
    let filter = format!("name={service}");
    own.docker(&["service", "ls", "--filter", &filter, "--format", "{{.Replicas}}"])
}

fn wait_replicas(own: &Own, service: &str, expect: &str) {
    let mut last = String::new();
    let what = format!("{service}: {expect}");
    own.wait_for(&what, LONG, || {
        last = replicas(own, service);
        last == expect
    });
}

fn signal(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// Ends one of the tasks that run, and waits until it is gone. A program that has just begun does not listen to a signal to
/// end well yet: whoever says `service ls` that it runs has to have waited for its first line.
fn end_one(own: &Own, how: &str) {
    let pid = own.living_tasks()[0];
    signal(pid, how);
    own.wait_for("the end of a task", LONG, || !own.living_tasks().contains(&pid));
}

/// How often tasks of a service have said that they listen.
fn n_listening(own: &Own, service: &str) -> usize {
    let lines = own.docker(&["service", "logs", "--raw", service]);
    lines.lines().filter(|line| line.starts_with("listening")).count()
}

fn wait_listening(own: &Own, service: &str, n: usize) {
    own.wait_for(&format!("{n} tasks that listen"), LONG, || {
        n_listening(own, service) >= n
    });
}

/// How many tasks of a service are in each state, by the first word of it.
fn states(own: &Own, service: &str) -> BTreeMap<String, usize> {
    let all = own.docker(&["service", "ps", service, "--format", "{{.CurrentState}}"]);
    let mut states = BTreeMap::new();
    for state in all.lines().filter_map(|line| line.split_whitespace().next()) {
        *states.entry(state.to_owned()).or_default() += 1;
    }
    states
}

fn inspect(own: &Own, service: &str) -> Value {
    let all: Value = serde_json::from_str(&own.docker(&["service", "inspect", service])).unwrap();
    all[0].clone()
}

fn a_job_s_life(tasks: Tasks) {
    let Some(mut own) = up("job", tasks) else { return };
    let long = [
        "--detach",
        "--name",
        "long",
        "--mode",
        "replicated-job",
        "--replicas",
        "5",
    ];
    let policy = ["--max-concurrent", "2", "--restart-delay", "100ms", "nginx:latest"];
    own.docker(&[&CREATE[..], &long, &policy].concat());
    wait_replicas(&own, "long", "2/2 (0/5 completed)");
    wait_listening(&own, "long", 2);
    assert_eq!(own.living_tasks().len(), 2, "no more at a time than may be");
    // One that ends well makes room for the next slot, one that does not is followed by another in its own.
    end_one(&own, "-TERM");
    wait_replicas(&own, "long", "2/2 (1/5 completed)");
    wait_listening(&own, "long", 3);
    end_one(&own, "-KILL");
    wait_listening(&own, "long", 4);
    wait_replicas(&own, "long", "2/2 (1/5 completed)");
    assert_eq!(states(&own, "long")["Failed"], 1);
    // Nobody sees it end.
    own.kill();
    end_one(&own, "-TERM");
    own.start();
    wait_replicas(&own, "long", "2/2 (2/5 completed)");
    wait_listening(&own, "long", 5);
    own.stop();
    own.start();
    for n in 3..=5 {
        end_one(&own, "-TERM");
        let running = (5 - n).min(2);
        wait_replicas(&own, "long", &format!("{running}/2 ({n}/5 completed)"));
        wait_listening(&own, "long", (n + 3).min(6));
    }
    let expect = [("Complete".to_owned(), 5), ("Failed".to_owned(), 1)];
    assert_eq!(states(&own, "long"), expect.into_iter().collect());
    assert_eq!(own.living_tasks(), [0; 0]);
    let status = inspect(&own, "long")["JobStatus"].clone();
    assert_eq!(status["JobIteration"], json!({}), "{status}");
    // A restart runs nothing again, and a forced update runs all of it.
    own.kill();
    own.start();
    assert_eq!(replicas(&own, "long"), "0/2 (5/5 completed)");
    own.docker(&["service", "update", "--detach", "--force", "long"]);
    wait_replicas(&own, "long", "2/2 (0/5 completed)");
    let again = inspect(&own, "long")["JobStatus"].clone();
    assert_eq!(again["JobIteration"]["Index"], 1, "{again}");
    assert_ne!(again["LastExecution"], status["LastExecution"]);
    // What was going on is no longer part of it.
    own.docker(&["service", "scale", "--detach", "long=1"]);
    wait_replicas(&own, "long", "1/2 (0/1 completed)");
    own.wait_for("one task", LONG, || own.living_tasks().len() == 1);
    wait_listening(&own, "long", 1);
    // A drained node lets go of it, and has it again.
    let node = own.docker(&["node", "ls", "--quiet"]);
    own.docker(&["node", "update", "--availability", "drain", &node]);
    own.wait_for("no task", LONG, || own.living_tasks().is_empty());
    own.docker(&["node", "update", "--availability", "active", &node]);
    wait_replicas(&own, "long", "1/2 (0/1 completed)");
    own.docker(&["service", "rm", "long"]);
    own.wait_for("no task", LONG, || own.living_tasks().is_empty());

    // The command line waits, with its bars, until all of a job is complete.
    let says = says_hostname(tasks);
    for (name, mode) in [
        ("short", &["--mode", "replicated-job", "--replicas", "3"][..]),
        ("everywhere", &["--mode", "global-job"]),
    ] {
        let rest = ["--name", name, "--entrypoint", &says, "nginx:latest"];
        let said = own.docker(&[&CREATE[..], mode, &["--detach=false"], &rest].concat());
        assert!(said.contains("job complete"), "{said}");
        let said = own.docker(&["service", "update", "--detach=false", "--force", name]);
        assert!(said.contains("job complete"), "{said}");
    }
    assert_eq!(replicas(&own, "short"), "0/3 (3/3 completed)");
    assert_eq!(replicas(&own, "everywhere"), "0/0 (1/1 completed)");
    assert_eq!(own.docker(&["service", "logs", "--raw", "short"]).lines().count(), 6);
    let said = own.docker(&["service", "rollback", "--detach=false", "short"]);
    assert!(said.contains("job complete"), "{said}");
    assert_eq!(inspect(&own, "short")["JobStatus"]["JobIteration"]["Index"], 2);
    for (mode, expect) in [
        ("replicated-job", "short"),
        ("global-job", "everywhere"),
        ("replicated", ""),
    ] {
        let filter = format!("mode={mode}");
        let names = own.docker(&["service", "ls", "--filter", &filter, "--format", "{{.Name}}"]);
        assert_eq!(names, expect);
    }
    a_stack_s_job(&own, &says);
}

/// A migration, as stack files have them; each deployment runs it.
fn a_stack_s_job(own: &Own, says: &str) {
    let words: Vec<&str> = says.split_whitespace().collect();
    let file = json!({
        "version": "3.8",
        "services": { "migrate": {
            "image": "nginx:latest",
            "entrypoint": words,
            "deploy": { "mode": "replicated-job", "replicas": 2, "restart_policy": { "condition": "on-failure" } },
        } },
    });
    std::fs::write(own.dir().join("stack.json"), file.to_string()).unwrap();
    for run in 0..2 {
        let deploy = ["stack", "deploy", "--resolve-image", "never", "-c", "stack.json", "app"];
        own.docker(&deploy);
        own.wait_for("the stack's job", LONG, || {
            let status = inspect(own, "app_migrate")["JobStatus"]["JobIteration"].clone();
            status["Index"].as_u64().unwrap_or(0) == run && replicas(own, "app_migrate") == "0/2 (2/2 completed)"
        });
    }
    own.docker(&["stack", "rm", "app"]);
}

#[test]
fn a_job_completes_each_of_its_tasks_once_as_processes() {
    a_job_s_life(Tasks::Processes);
}

#[test]
fn a_job_completes_each_of_its_tasks_once_as_containers() {
    a_job_s_life(Tasks::Containers);
}

/// What comes of each command: its words where it fails, and what the service is at its end.
fn compared(docker: &dyn Fn(&[&str]) -> std::process::Output, image: &str, says: &str) -> Vec<Value> {
    let mut seen = Vec::new();
    let cases: &[(&str, &[&str])] = &[
        ("plain", &["--mode", "replicated-job"]),
        (
            "any",
            &[
                "--mode",
                "replicated-job",
                "--restart-condition",
                "any",
                "--replicas",
                "2",
            ],
        ),
        (
            "few",
            &["--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2"],
        ),
        ("none", &["--mode", "replicated-job", "--replicas", "0"]),
        ("global", &["--mode", "global-job"]),
        ("published", &["--mode", "global-job", "--publish", "8088:80"]),
        ("updates", &["--mode", "replicated-job", "--update-parallelism", "2"]),
        ("rollbacks", &["--mode", "global-job", "--rollback-parallelism", "2"]),
        ("running", &["--mode", "global-job", "--replicas", "2"]),
    ];
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    for (name, options) in cases {
        let rest = ["--detach", "--name", name, "--entrypoint", says, image];
        let made = docker(&[&CREATE[..], options, &rest].concat());
        if !made.status.success() {
            seen.push(json!([name, text(&made.stderr)]));
            continue;
        }
        let n_done = |replicas: &str| {
            let (_, done) = replicas.split_once('(')?;
            let (done, all) = done.split_once('/')?;
            Some(done == all.split_whitespace().next()?)
        };
        for run in ["create", "update"] {
            if run == "update" {
                assert!(
                    docker(&["service", "update", "--detach", "--force", name])
                        .status
                        .success()
                );
            }
            let started = std::time::Instant::now();
            let ls = loop {
                let filter = format!("name={name}");
                let ls = [
                    "service",
                    "ls",
                    "--filter",
                    &filter,
                    "--format",
                    "{{.Mode}} {{.Replicas}} {{.Ports}}",
                ];
                let ls = text(&docker(&ls).stdout);
                if n_done(&ls) == Some(true) {
                    break ls;
                }
                assert!(started.elapsed() < LONG, "{name}: {ls}");
                std::thread::sleep(std::time::Duration::from_millis(50));
            };
            let inspected = docker(&["service", "inspect", name]);
            let service: Value = serde_json::from_slice(&inspected.stdout).unwrap();
            let service = &service[0];
            let ps = ["service", "ps", name, "--format", "{{.DesiredState}} {{.CurrentState}}"];
            let ps = text(&docker(&ps).stdout);
            let mut tasks: Vec<String> = ps
                .lines()
                .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
                .collect();
            tasks.sort_unstable();
            // Docker forgets earlier runs of a global job; here they are remembered, as those of other jobs are.
            if !service["Spec"]["Mode"]["GlobalJob"].is_null() {
                tasks.dedup();
            }
            seen.push(json!([
                name,
                run,
                ls,
                service["Spec"]["Mode"],
                service["JobStatus"]["JobIteration"],
                service["Spec"]["UpdateConfig"],
                service["UpdateStatus"],
                service["Endpoint"]["Ports"],
                tasks
            ]));
        }
    }
    for command in [
        &["service", "update", "--detach", "--update-parallelism", "2", "plain"][..],
        &["service", "update", "--detach", "--replicas", "2", "plain"],
        &["service", "scale", "--detach", "global=2"],
    ] {
        let out = docker(command);
        seen.push(json!([out.status.success(), text(&out.stderr)]));
    }
    seen
}

#[test]
fn jobs_are_as_a_docker_swarm_has_them() {
    let expect = {
        let Some(oracle) = swarm::rig::up("jobs", 1, 1) else {
            return;
        };
        compared(&|args| oracle.try_docker(1, args), swarm::rig::IMAGE, "/task hostname")
    };
    let Some(own) = up("jobs", Tasks::Processes) else {
        return;
    };
    let says = says_hostname(Tasks::Processes);
    let seen = compared(&|args| own.docker_out(args), "nginx:latest", &says);
    let pairs = seen.iter().zip(&expect).filter(|(seen, expect)| seen != expect);
    let differences: Vec<String> = pairs
        .map(|(seen, expect)| format!("{seen}\n  Docker: {expect}"))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(seen.len(), expect.len());
}

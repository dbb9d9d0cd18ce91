//! From inside tasks under trouble: names at a program's first instruction, and what is left when tasks, what holds their
//! networks, and anynode are killed under load.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::names::{dig, pid_of};
use super::rig::{self, LONG, Own, Tasks};
use crate::harness::Seed;
use crate::swarm::rig::task_program;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap())
}

fn create(own: &Own, name: &str, args: &[&str]) {
    let command = [
        "service",
        "create",
        "--detach",
        "--name",
        name,
        "--network",
        "app",
        "-e",
        "PORT=80",
    ];
    own.docker(&[&command[..], args, &["nginx:latest"]].concat());
}

fn up(name: &str, tasks: Tasks) -> Option<Own> {
    let mut own = rig::up(name, tasks)?;
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["network", "create", "-d", "overlay", "app"]);
    Some(own)
}

/// A program that asks once, at its first instruction, and ends; `ANYNODE_STARTS`: so many of them.
fn starts(name: &str, tasks: Tasks) {
    let Some(own) = up(name, tasks) else { return };
    create(&own, "api", &["--replicas", "2"]);
    own.wait_for("api", LONG, || pid_of(&own, "api").is_some());
    let (n, at_once) = (number("ANYNODE_STARTS", 20), 20);
    for round in 0..n / at_once {
        let name = format!("once{round}");
        let (replicas, asks) = (at_once.to_string(), "ASKS_ONCE=api:80");
        create(
            &own,
            &name,
            &["--restart-condition", "none", "-e", asks, "--replicas", &replicas],
        );
        let states = || own.docker(&["service", "ps", "--format", "{{.CurrentState}} {{.Error}}", &name]);
        own.wait_for("all to end", LONG, || {
            let states = states();
            states
                .lines()
                .filter(|line| line.starts_with("Complete") || line.starts_with("Failed"))
                .count()
                == at_once as usize
        });
        let states = states();
        assert!(
            states.lines().all(|line| line.starts_with("Complete")),
            "round {round}: {states}\n{}",
            own.log_tail()
        );
        own.docker(&["service", "rm", &name]);
    }
}

#[test]
fn a_name_is_there_at_the_first_instruction_of_a_container() {
    starts("once-c", Tasks::Containers);
}

#[test]
fn a_name_is_there_at_the_first_instruction_of_a_process() {
    starts("once-p", Tasks::Processes);
}

/// Requests from inside a task's network, each by a connection of its own.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            drop((self.0.kill(), self.0.wait()));
        }
    }
}

impl Load {
    fn start(pid: u32, to: &str) -> Load {
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid.to_string(), "-n"]).arg(task_program());
        command.args(["load", to, "--new", "--threads", "2", "--pause-us", "5000"]);
        Load(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn stop(mut self) -> Value {
        drop(Command::new("kill").arg(self.0.id().to_string()).status());
        serde_json::from_reader(self.0.stdout.take().unwrap()).unwrap()
    }
}

fn kill(pid: u32) {
    drop(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .stderr(Stdio::null())
            .status(),
    );
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

fn netns(pid: u32) -> Option<String> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    Some(link.display().to_string())
}

/// What holds a task's network: its sandbox, or its keeper.
fn holder(own: &Own, pid: u32) -> Option<u32> {
    match own.tasks {
        Tasks::Processes => parent(pid),
        Tasks::Containers => {
            let own_net = netns(pid)?;
            let pids = std::fs::read_dir("/proc").unwrap().flatten();
            let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            pids.find(|other| {
                std::fs::read_to_string(format!("/proc/{other}/comm")).is_ok_and(|name| name == "pause\n")
                    && netns(*other).as_deref() == Some(&own_net)
            })
        }
    }
}

fn n_descriptors(own: &Own) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", own.pid())).unwrap().count()
}

fn n_threads(own: &Own) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", own.pid())).unwrap().count()
}

/// Routes and rules of the network that anynode runs in; what the kernel does for IPv6 by itself, a moment after a link is
/// there, is left out.
fn host_routing(own: &Own) -> String {
    let words = "ip rule; ip route show table all | grep -v -e docker0 -e fe80: -e ff00:";
    let out = own.inside("sh").args(["-c", words]).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// `ANYNODE_SOAK_SECONDS`: so long tasks and what holds their networks are killed; and then anynode too, half as long.
fn soak(name: &str, tasks: Tasks) {
    let Some(mut own) = up(name, tasks) else { return };
    let seed = Seed::new();
    let mut random = seed.rng();
    let routing = host_routing(&own);
    create(&own, "steady", &["--replicas", "1", "--publish", "8080:80"]);
    // Whoever waits for one of these waits longer than the load does.
    let patient = ["--stop-grace-period", "60s", "--label", "anynode.timeout.connect=60s"];
    let words = [&["--replicas", "3", "--restart-delay", "100ms"][..], &patient].concat();
    create(&own, "api", &words);
    let n_running = |own: &Own, service: &str| {
        let states = [
            "service",
            "ps",
            service,
            "--format",
            "{{.CurrentState}}",
            "-f",
            "desired-state=running",
        ];
        own.docker(&states)
            .lines()
            .filter(|state| state.starts_with("Running"))
            .count()
    };
    own.wait_for("all tasks", LONG, || {
        n_running(&own, "api") == 3 && n_running(&own, "steady") == 1
    });
    let steady = pid_of(&own, "steady").unwrap();
    let [api_vip, steady_vip] = ["api", "steady"].map(|name| dig(steady, name));
    let others = |own: &Own| -> Vec<u32> { own.living_tasks().into_iter().filter(|pid| *pid != steady).collect() };
    let settled = |own: &Own| {
        own.wait_for("all tasks again", Duration::from_secs(120), || {
            n_running(own, "api") == 3 && own.living_tasks().len() == 4
        });
    };

    // As many descriptors as it has when all that can be warm is.
    let seconds = number("ANYNODE_SOAK_SECONDS", 10);
    let mut before = None;
    let mut n_kills = 0;
    for part in ["warm", "soak"] {
        let to_api = Load::start(steady, &format!("{api_vip}:80"));
        let to_steady = Load::start(others(&own)[0], &format!("{steady_vip}:80"));
        let until = Instant::now() + Duration::from_secs(if part == "warm" { 4 } else { seconds });
        let kills_before = n_kills;
        while Instant::now() < until {
            let living = others(&own);
            if let Some(pid) = living.get(random.usize(..living.len().max(1))) {
                let pid = match random.bool() {
                    true => Some(*pid),
                    false => holder(&own, *pid),
                };
                pid.into_iter().for_each(kill);
                n_kills += 1;
            }
            std::thread::sleep(Duration::from_millis(300 + random.u64(..700)));
        }
        settled(&own);
        // What it asks from may be gone, before it has asked for anything: it has nothing to report.
        drop(to_steady);
        let report = to_api.stop();
        println!("{part}: {n_kills} kills, {report}");
        // Only what was in flight on a task that was killed may fail: two threads.
        assert!(report["ok"].as_u64().unwrap() > 100, "{report}");
        let failed = report["failed"].as_u64().unwrap();
        assert!(failed <= 2 * (n_kills - kills_before), "{report}\n{}", own.log_tail());
        assert!(report["kinds"]["timeout"].is_null(), "{report}\n{}", own.log_tail());
        let now = (n_descriptors(&own), n_threads(&own));
        let (descriptors, threads) = *before.get_or_insert(now);
        // Sockets that are kept ready come and go.
        own.wait_for(&format!("no more descriptors than {descriptors}"), LONG, || {
            n_descriptors(&own) <= descriptors + 12
        });
        assert!(
            n_threads(&own) <= threads + 1,
            "{} threads, before {threads}",
            n_threads(&own)
        );
    }
    assert_eq!(pid_of(&own, "steady"), Some(steady));

    let until = Instant::now() + Duration::from_secs(seconds / 2);
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.u64(..800)));
        let living = others(&own);
        living.first().copied().into_iter().for_each(kill);
        std::thread::sleep(Duration::from_millis(random.u64(..300)));
        own.kill();
        living
            .last()
            .and_then(|pid| holder(&own, *pid))
            .into_iter()
            .for_each(kill);
        own.start();
        let asks = || {
            let words = ["-t", &steady.to_string(), "-n", "curl", "-s", "-f", "-m", "5"];
            let url = format!("http://{api_vip}:80/");
            Command::new("nsenter")
                .args(words)
                .arg(url)
                .output()
                .unwrap()
                .status
                .success()
        };
        own.wait_for("an answer from inside", LONG, asks);
        own.wait_for("an answer from outside", LONG, || {
            own.curl("http://localhost:8080").is_some()
        });
        assert_eq!(pid_of(&own, "steady"), Some(steady), "nobody touched it");
    }
    settled(&own);
    let networks: BTreeSet<String> = own.living_tasks().into_iter().filter_map(netns).collect();
    assert_eq!(networks.len(), 4);
    own.docker(&["swarm", "leave", "--force"]);
    own.wait_for("all to end", LONG, || own.living_tasks().is_empty());
    own.wait_for("nobody to have their networks", LONG, || {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        !pids.filter_map(netns).any(|of| networks.contains(&of))
    });
    own.wait_for("the kernel to have taken them down", LONG, || {
        let out = own.inside("ip").args(["-br", "link"]).output().unwrap();
        !String::from_utf8_lossy(&out.stdout).contains("veth")
    });
    if tasks == Tasks::Containers {
        own.wait_for("no container to be left", LONG, || {
            own.engine(&["ps", "-aq"]).output().unwrap().stdout.is_empty()
        });
    }
    own.stop();
    assert_eq!(host_routing(&own), routing);
}

#[test]
fn killed_under_load_nothing_is_left_of_containers_networks() {
    soak("soak-c", Tasks::Containers);
}

#[test]
fn killed_under_load_nothing_is_left_of_processes_networks() {
    soak("soak-p", Tasks::Processes);
}

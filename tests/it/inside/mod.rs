//! Endpoints in network namespaces of their own: from outside (`last_hop`), and what they reach from inside (`services`).
//!
//! Three namespaces: a node's, a task's and a client's. The node has a cable to either; client and task know nothing of one
//! another. Nothing of the machine's own network takes part.

mod crowd;
mod last_hop;
mod near;
mod services;

use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::harness::wait_until;
use crate::swarm::rig::task_program;

pub(super) struct Place {
    name: String,
    pub(super) dir: tempfile::TempDir,
    pub(super) running: Vec<Child>,
    _turn: std::fs::File,
}

const PROGRAMS: [&str; 3] = ["ip", "nsenter", "curl"];

pub(super) fn run(command: &mut Command) -> Output {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {out:?}");
    out
}

pub(super) fn ip(words: &str) {
    run(Command::new("ip").args(words.split_whitespace()));
}

impl Place {
    /// `None`, said why: this needs more than there is.
    pub(super) fn set_up(name: &str) -> Option<Place> {
        let has = |program: &&str| {
            Command::new("which")
                .arg(program)
                .output()
                .is_ok_and(|out| out.status.success())
        };
        let missing = PROGRAMS.into_iter().find(|program| !has(program));
        if !rustix::process::geteuid().is_root() || missing.is_some() {
            println!("skipped: this needs {}", missing.unwrap_or("root"));
            return None;
        }
        let place = Place {
            name: format!("an-{name}"),
            dir: tempfile::tempdir().unwrap(),
            running: Vec::new(),
            _turn: crate::harness::turn(),
        };
        place.tear_down();
        let [node, task, client] = ["node", "task", "client"].map(|who| place.netns(who));
        for netns in [&node, &task, &client] {
            ip(&format!("netns add {netns}"));
            ip(&format!("-n {netns} link set lo up"));
        }
        for (n, other) in [(1, &client), (2, &task)] {
            ip(&format!(
                "-n {node} link add to{n} type veth peer name eth0 netns {other}"
            ));
            for (netns, device, host) in [(&node, format!("to{n}"), 1), (other, "eth0".to_owned(), 2)] {
                ip(&format!("-n {netns} addr add 10.99.{n}.{host}/24 dev {device}"));
                ip(&format!("-n {netns} addr add fd99:{n}::{host}/64 dev {device} nodad"));
                ip(&format!("-n {netns} link set {device} up"));
            }
        }
        ip(&format!("-n {client} addr add 10.99.1.3/24 dev eth0"));
        Some(place)
    }

    pub(super) fn netns(&self, who: &str) -> String {
        format!("{}-{who}", self.name)
    }

    pub(super) fn path(&self, who: &str) -> String {
        format!("/run/netns/{}", self.netns(who))
    }

    pub(super) fn inside(&self, who: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(who))).arg(program);
        command
    }

    /// The program of the tests, listening at `addr` of the task's namespace.
    pub(super) fn task(&mut self, addr: &str) {
        self.serve_in("task", addr);
    }

    /// The same in the namespace of `who`.
    pub(super) fn serve_in(&mut self, who: &str, addr: &str) {
        let mut command = self.inside(who, task_program());
        command
            .arg("serve")
            .env("HTTP", addr)
            .env("SLOT", addr.rsplit(':').next().unwrap())
            .env("TCP", "127.0.0.1:0")
            .stdout(Stdio::null());
        self.running.push(command.spawn().unwrap());
        let port = addr.rsplit(':').next().unwrap();
        let listens = || {
            let out = self
                .inside(who, "ss")
                .args(["-Hltn", "sport", "=", port])
                .output()
                .unwrap();
            !out.stdout.is_empty()
        };
        wait_until("the task to listen", listens);
    }

    /// anynode in the node's namespace with these services.
    pub(super) fn node(&mut self, services: &str) {
        self.node_with(services, &[]);
    }

    /// The same, configured by these variables.
    pub(super) fn node_with(&mut self, services: &str, variables: &[(&str, &str)]) {
        self.declare(services);
        let mut command = self.inside("node", env!("CARGO_BIN_EXE_anynode"));
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        command
            .args(["up", "--services"])
            .arg(self.dir.path().join("services.yml"))
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .envs(variables.iter().copied())
            .stderr(log);
        self.running.push(command.spawn().unwrap());
        wait_until("anynode", || self.status().is_some());
    }

    pub(super) fn declare(&self, services: &str) {
        let new = self.dir.path().join("new.yml");
        std::fs::write(&new, services).unwrap();
        std::fs::rename(new, self.dir.path().join("services.yml")).unwrap();
    }

    pub(super) fn status(&self) -> Option<Value> {
        let out = self
            .inside("node", env!("CARGO_BIN_EXE_anynode"))
            .args(["status", "--json"])
            .output()
            .unwrap();
        serde_json::from_slice(&out.stdout).ok()
    }

    /// What the task answers a client that runs in `who`: the address and the port that it sees.
    pub(super) fn peer(&self, who: &str, args: &[&str]) -> Option<(String, u64)> {
        let out = self
            .inside(who, "curl")
            .args(["-s", "-f", "-m", "5"])
            .args(args)
            .output()
            .unwrap();
        let answer: Value = serde_json::from_slice(&out.stdout).ok()?;
        Some((answer["peer"].as_str()?.to_owned(), answer["peer_port"].as_u64()?))
    }

    pub(super) fn n_descriptors(&self) -> usize {
        let pid = self.running.last().unwrap().id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    pub(super) fn tear_down(&self) {
        for who in ["node", "task", "client"] {
            let _ = Command::new("ip").args(["netns", "del", &self.netns(who)]).output();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}",
                std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
        }
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.tear_down();
    }
}

//! Hostile tasks: services whose programs take what they can, and asks that make the node work; and what happens to tasks.

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::super::rig::LONG;
use super::stage::{SERVICES, Stage, Until, running};

const MS: u64 = 1_000_000;

/// A service whose tasks run a shell's script, with limits; on the network of all others. Refused only while nothing can be kept.
fn with_service(stage: &Stage, what: &str, spec: Value, until: Until) {
    let name = stage.name(what);
    let mut spec = spec;
    spec["Name"] = json!(name);
    match stage.api("POST", "/services/create", &spec) {
        Ok((201, _)) => {
            until.wait();
            stage.remove(&format!("/services/{name}"));
        }
        Ok((status, said)) => {
            let is_full = said.contains("the store cannot be written");
            assert!(status >= 500 && is_full, "{what}: {status} {said}");
        }
        // It may have been made nevertheless.
        Err(_) => stage.remove(&format!("/services/{name}")),
    }
}

fn script(script: &str, n: u64, limits: Value) -> Value {
    json!({
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "nginx:latest",
                "Command": ["/bin/sh"],
                "Args": ["-c", script],
                "StopGracePeriod": 300 * MS,
            },
            "Resources": { "Limits": limits },
            "RestartPolicy": { "Condition": "any", "Delay": 100 * MS },
            "Networks": [{ "Target": "app" }],
        },
        "Mode": { "Replicated": { "Replicas": n } },
    })
}

/// A tenth of a core, unless more is said: what a task may take of those is what it was given.
fn slow(mut limits: Value) -> Value {
    limits["NanoCPUs"] = json!(100_000_000);
    limits
}

pub fn forks(stage: &Stage, _: &mut Rng, until: Until) {
    let all = "while :; do sleep 1000 & done; wait";
    with_service(stage, "forks", script(all, 2, slow(json!({ "Pids": 40 }))), until);
}

pub fn eats_memory(stage: &Stage, _: &mut Rng, until: Until) {
    let limits = slow(json!({ "MemoryBytes": 24 << 20 }));
    with_service(stage, "eats", script("exec tail /dev/zero", 2, limits), until);
}

pub fn logs(stage: &Stage, rng: &mut Rng, until: Until) {
    let line = "x".repeat(rng.usize(1..4000));
    let said = format!("exec yes {line}");
    with_service(stage, "logs", script(&said, 1, slow(json!({}))), until);
}

/// Deep, wide and large: a part of the disk.
pub fn fills_its_directory(stage: &Stage, rng: &mut Rng, until: Until) {
    let (n_levels, n_files) = (rng.u32(..3000), rng.u32(..3000));
    let all = format!(
        "cd $ANYNODE_TASK_DIR; head -c 8000000 /dev/zero >big; i=0; while [ $i -lt {n_files} ]; do : >f$i; i=$((i+1)); done; \
         i=0; while [ $i -lt {n_levels} ]; do mkdir d; cd -P d 2>/dev/null || cd d; i=$((i+1)); done; exec sleep 1000"
    );
    with_service(stage, "fills", script(&all, 1, json!({})), until);
}

pub fn ignores_its_end(stage: &Stage, _: &mut Rng, until: Until) {
    let all = "trap '' TERM INT HUP; while :; do sleep 1; done";
    with_service(stage, "ignores", script(all, 3, slow(json!({}))), until);
}

pub fn ends_at_once(stage: &Stage, rng: &mut Rng, until: Until) {
    let status = rng.u8(..3);
    with_service(
        stage,
        "ends",
        script(&format!("exit {status}"), 3, slow(json!({}))),
        until,
    );
}

/// From inside, to a service and to the outside, by a program of its own.
pub fn connects(stage: &Stage, _: &mut Rng, until: Until) {
    let all =
        "for i in $(seq 1500); do exec {a}<>/dev/tcp/10.213.0.1/8080; exec {b}<>/dev/tcp/web/80; done; exec sleep 1000";
    let mut spec = script(all, 1, slow(json!({})));
    spec["TaskTemplate"]["ContainerSpec"]["Command"] = json!(["/bin/bash"]);
    with_service(stage, "connects", spec, until);
}

pub fn no_such_image(stage: &Stage, rng: &mut Rng, until: Until) {
    let mut spec = script("", rng.u64(1..20), json!({}));
    spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("nosuchimage:1");
    with_service(stage, "none", spec, until);
}

/// As many as one service may ask for, where a long run has time for it, and no node is good enough.
pub fn asks_for_many(stage: &Stage, rng: &mut Rng, until: Until) {
    let most = if stage.is_long { 10_000 } else { 600 };
    let mut spec = script("", rng.u64(most / 2..=most), json!({}));
    spec["TaskTemplate"]["Placement"] = json!({ "Constraints": ["node.labels.disk==none"] });
    with_service(stage, "many", spec, until);
}

/// Much to keep, and soon not any more.
pub fn configs(stage: &Stage, rng: &mut Rng, until: Until) {
    let data = "QUJD".repeat(rng.usize(1..100_000));
    let mut made = Vec::new();
    while !until.is_over() && made.len() < 20 {
        let name = stage.name("config");
        let spec = json!({ "Name": name, "Data": data });
        match stage.api("POST", "/configs/create", &spec) {
            Ok((201, _)) | Err(_) => made.push(name),
            Ok((status, said)) => {
                let is_named = said.contains("the store cannot be written") || said.contains("long request bodies");
                assert!(status >= 500 && is_named, "{status} {said}");
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    until.wait();
    for name in made {
        stage.remove(&format!("/configs/{name}"));
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may have ended meanwhile.
    let _ = kill_process(pid, signal);
}

/// Who watches over a task's program, if that is still there.
fn keeper(stage: &Stage, task: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{task}/stat")).ok()?;
    let parent: u32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
    let exe = std::fs::read_link(format!("/proc/{parent}/exe")).ok()?;
    let is_ours = exe == Path::new(env!("CARGO_BIN_EXE_anynode")) && parent != stage.own.pid();
    is_ours.then_some(parent)
}

fn expected(service: &str) -> usize {
    SERVICES.iter().find(|(name, _)| *name == service).unwrap().1
}

/// Kills a task of two services or who keeps it, once all of its service are there, and waits for the next.
pub fn kills(stage: &Stage, rng: &mut Rng, until: Until) {
    let _turn = stage.killing.lock().unwrap_or_else(|poison| poison.into_inner());
    while !until.is_over() {
        let service = ["http", "victim"][rng.usize(..2)];
        let all = running(&stage.own, service);
        if all.len() == expected(service) {
            let task = all[rng.usize(..all.len())];
            let whom = match rng.bool() {
                true => Some(task),
                false => keeper(stage, task),
            };
            whom.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            // Longer than the disk may be full.
            stage.own.wait_for("another task", LONG, || {
                let now = running(&stage.own, service);
                now.len() == expected(service) && (whom.is_none() || !now.contains(&task))
            });
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Stops a task that nobody else needs, or a keeper, for a while.
pub fn stops(stage: &Stage, rng: &mut Rng, until: Until) {
    let _turn = stage.killing.lock().unwrap_or_else(|poison| poison.into_inner());
    let of_victim = running(&stage.own, "victim");
    let of_http = running(&stage.own, "http");
    let mut stopped = Vec::new();
    stopped.extend(of_victim.first().copied());
    if rng.bool() {
        stopped.extend(of_http.first().and_then(|task| keeper(stage, *task)));
    }
    stopped.iter().for_each(|pid| signal(*pid, Signal::STOP));
    until.wait();
    stopped.iter().for_each(|pid| signal(*pid, Signal::CONT));
}

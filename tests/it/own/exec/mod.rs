//! `docker exec` into tasks that are processes: what a program beside a task is given, what it is connected to, and when it ends.

mod api;
mod ends;
mod given;
mod streams;

use std::process::Output;

use crate::own::rig::{self, LONG, Own, Tasks};

/// A swarm with a service of one task, and the id of its container.
fn up(name: &str) -> Option<(Own, String)> {
    let mut own = rig::up(name, Tasks::Processes)?;
    own.start();
    own.docker(&["swarm", "init"]);
    let container = service(&own, "web", &[]);
    Some((own, container))
}

fn service(own: &Own, name: &str, args: &[&str]) -> String {
    own.docker(
        &[
            &[
                "service",
                "create",
                "--detach",
                "--name",
                name,
                "-e",
                "OF_TASK=one",
                "-e",
                "PORT=80",
            ],
            args,
            &["nginx:latest"],
        ]
        .concat(),
    );
    container_of(own, name)
}

fn container_of(own: &Own, service: &str) -> String {
    let filter = format!("name={service}.");
    let list = || own.docker(&["ps", "--quiet", "--no-trunc", "--filter", &filter]);
    own.wait_for("its task", LONG, || !list().is_empty());
    list()
}

fn exec(own: &Own, args: &[&str]) -> Output {
    own.docker_out(&[&["exec"], args].concat())
}

/// What it says, each stream, and its exit code.
fn said(own: &Own, args: &[&str]) -> (String, String, Option<i32>) {
    let out = exec(own, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr), out.status.code())
}

fn words(own: &Own, args: &[&str]) -> String {
    let (stdout, stderr, code) = said(own, args);
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{args:?} {stdout}");
    stdout.trim_end().to_owned()
}

/// Processes with this among their words, but for clients.
fn running(word: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.contains(&word.as_bytes()) && !words.iter().any(|word| word.ends_with(b"docker"))
    };
    pids.filter(is_it).collect()
}

/// A number of seconds that nothing else sleeps for.
fn a_while() -> String {
    format!("{}.{}", fastrand::u32(100_000..900_000), fastrand::u32(..))
}

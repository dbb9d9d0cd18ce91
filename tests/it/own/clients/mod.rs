//! Other programs' clients of the Docker API, from PyPI and npm: each goes through the life of a swarm's things against
//! anynode's socket, in the default runtime of processes. What cannot be installed is skipped, and said.

use std::path::Path;

use super::rig::{self, Tasks};
use crate::harness::installed::{from_npm, from_pypi};
use crate::swarm::rig::task_program;

/// `program script SOCKET PROGRAM`, with what was installed to be found by `variable`.
fn goes_through(name: &str, program: &str, script: &str, variable: &str, libraries: &Path) {
    let Some(mut own) = rig::up(name, Tasks::Processes) else {
        return;
    };
    own.start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/own/clients")
        .join(script);
    let mut command = own.inside("timeout");
    command.args(["300", program]).arg(script).arg(own.socket());
    command.arg(format!("{} hostname", task_program().display()));
    let out = command.env(variable, libraries).output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(
        out.status.success() && stdout.ends_with("end\n"),
        "{stdout}{stderr}{}",
        own.log_tail()
    );
}

#[test]
fn docker_py() {
    let Some(libraries) = from_pypi("docker", &["docker"]) else {
        return;
    };
    goes_through("docker-py", "python3", "docker_py.py", "PYTHONPATH", &libraries);
}

#[test]
fn aiodocker() {
    let Some(libraries) = from_pypi("aiodocker", &["aiodocker"]) else {
        return;
    };
    goes_through("aiodocker", "python3", "aio.py", "PYTHONPATH", &libraries);
}

#[test]
fn dockerode() {
    let Some(libraries) = from_npm("dockerode") else { return };
    goes_through(
        "dockerode",
        "node",
        "dockerode.js",
        "NODE_PATH",
        &libraries.join("node_modules"),
    );
}

/// Two runs, of which the second changes nothing. Ansible with its collections takes half a gigabyte: where ANYNODE_ANSIBLE is set.
#[test]
fn ansible() {
    if std::env::var_os("ANYNODE_ANSIBLE").is_none() {
        println!("skipped: ANYNODE_ANSIBLE is not set");
        return;
    }
    let Some(libraries) = from_pypi("ansible", &["ansible", "docker", "requests"]) else {
        return;
    };
    let Some(mut own) = rig::up("ansible", Tasks::Processes) else {
        return;
    };
    own.start();
    let play = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/own/clients/play.yml");
    let recap = || {
        let mut command = own.inside("timeout");
        command
            .args(["300", "python3", "-m", "ansible", "playbook", "-i", "localhost,"])
            .arg("-e")
            .arg(format!("host=unix://{}", own.socket().display()))
            .arg(&play)
            .env("PYTHONPATH", &libraries)
            .env("HOME", own.dir());
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{text}{}{}",
            String::from_utf8_lossy(&out.stderr),
            own.log_tail()
        );
        text
    };
    let first = recap();
    assert!(first.contains("changed=6"), "{first}");
    let second = recap();
    assert!(second.contains("changed=0"), "{second}");
}

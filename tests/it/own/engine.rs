//! The Docker Engine beside anynode: what is not the swarm's goes to it, and one in Swarm mode itself is refused.

use std::io::Write;
use std::process::Stdio;

use super::rig::{self, LONG, Tasks};

#[test]
fn all_else_goes_to_the_engine() {
    let Some(mut own) = rig::up("engine", Tasks::Containers) else {
        return;
    };
    own.start();
    let id = own.docker(&["run", "-d", "--name", "plain", "-e", "APP_VERSION=7", "nginx:latest"]);
    assert_eq!(own.docker(&["ps", "-q", "--no-trunc"]), id);
    own.wait_for("it to listen", LONG, || {
        own.docker(&["logs", "plain"]).contains("listening")
    });
    own.docker(&["exec", "plain", "curl", "-f", "http://localhost:80/"]);
    assert_eq!(
        own.docker_out(&["exec", "plain", "curl", "-f", "http://localhost:81/"])
            .status
            .code(),
        Some(7)
    );
    // An upgraded connection, both ways.
    let mut attached = own
        .docker_command(&["run", "-i", "--rm", "--entrypoint", "/task", "nginx:latest", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    attached.stdin.take().unwrap().write_all(b"there and back").unwrap();
    let said = attached.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "there and back");
    own.docker(&["cp", "plain:/task", "copied"]);
    assert!(std::fs::metadata(own.dir().join("copied")).unwrap().len() > 100_000);
    assert!(own.docker(&["info", "-f", "{{.Driver}} {{.Swarm.LocalNodeState}}"]) == "vfs inactive");
    let networks = own.docker(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(networks.contains("bridge") && networks.contains("host"), "{networks}");

    // What others made is left alone, whatever becomes of the swarm.
    own.docker(&["swarm", "init"]);
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--replicas",
        "2",
        "nginx:latest",
    ]);
    own.wait_for("two tasks", LONG, || own.living_tasks().len() == 3);
    let networks = own.docker(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(
        networks.contains("ingress") && networks.contains("bridge"),
        "{networks}"
    );
    own.docker(&["swarm", "leave", "--force"]);
    own.wait_for("the tasks to end", LONG, || {
        own.docker(&["ps", "-aq", "--no-trunc"]) == id
    });
    own.stop();
    own.start();
    assert_eq!(own.docker(&["ps", "-q", "--no-trunc"]), id);
    own.docker(&["rm", "-f", "plain"]);
}

#[test]
fn an_engine_in_swarm_mode_is_refused() {
    let Some(mut own) = rig::up("inswarm", Tasks::Containers) else {
        return;
    };
    let made = own
        .engine(&["swarm", "init", "--advertise-addr", "127.0.0.1"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let said = own.start_fails();
    assert!(
        said.contains("this engine is in Swarm mode itself") && said.contains("--swarm"),
        "{said}"
    );
}

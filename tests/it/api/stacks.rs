//! Stacks: deployed, shown, deployed again without a change, changed, removed.

use std::process::Stdio;
use std::time::Duration;

use super::rig::{LONG, Rig};

const STACK: &str = "\
services:
  web:
    image: nginx:1
    ports: [\"8080:80\"]
    networks: [front]
    configs: [{source: conf, target: /c}]
    secrets: [key]
    healthcheck: {test: [CMD, curl, x], interval: 10s}
    deploy: {replicas: 2, update_config: {order: start-first, monitor: 10ms}}
  db:
    image: postgres:1
    networks: [front]
    environment: {A: b}
networks: {front: {}}
configs: {conf: {file: ./file}}
secrets: {key: {file: ./file}}
";

#[test]
fn of_a_file() {
    let rig = Rig::swarm();
    let dir = rig.dir.path().to_owned();
    std::fs::write(dir.join("file"), "hello").unwrap();
    std::fs::write(dir.join("stack.yml"), STACK).unwrap();
    let deploy = ["stack", "deploy", "--detach=true", "-c", "stack.yml", "app"];
    let mut said: Vec<String> = rig.docker(&deploy).lines().map(str::to_owned).collect();
    said[3..].sort();
    let creating = [
        "network app_front",
        "secret app_key",
        "config app_conf",
        "service app_db",
        "service app_web",
    ];
    assert_eq!(said, creating.map(|what| format!("Creating {what}")));
    rig.wait_running("app_web", 2);
    rig.wait_running("app_db", 1);
    assert_eq!(
        rig.docker(&["stack", "ls", "--format", "{{.Name}} {{.Services}}"]),
        "app 2"
    );
    let mut services: Vec<String> = rig
        .docker(&[
            "stack",
            "services",
            "--format",
            "{{.Name}} {{.Replicas}} {{.Image}} {{.Ports}}",
            "app",
        ])
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    services.sort();
    assert_eq!(
        services,
        ["app_db 1/1 postgres:1", "app_web 2/2 nginx:1 *:8080->80/tcp"]
    );
    let mut tasks: Vec<String> = rig
        .docker(&["stack", "ps", "--format", "{{.Name}}", "app"])
        .lines()
        .map(str::to_owned)
        .collect();
    tasks.sort();
    assert_eq!(tasks, ["app_db.1", "app_web.1", "app_web.2"]);
    // The same file again changes no task, and neither does one that only says the defaults.
    let ids = |rig: &Rig| {
        let mut ids: Vec<String> = rig
            .docker(&["stack", "ps", "-q", "app"])
            .lines()
            .map(str::to_owned)
            .collect();
        ids.sort();
        ids
    };
    let before = ids(&rig);
    rig.docker(&deploy);
    let wordy = STACK
        .replace(
            "    environment: {A: b}\n",
            "    environment: {A: b}\n    labels: {}\n    deploy: {replicas: 1}\n",
        )
        .replace(
            "\"8080:80\"",
            "{target: 80, published: 8080, protocol: tcp, mode: ingress}",
        );
    std::fs::write(dir.join("stack.yml"), wordy).unwrap();
    rig.docker(&deploy);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ids(&rig), before);
    for service in rig.snapshot().services() {
        assert_eq!(service.template, 1, "{}", service.name());
        assert_eq!(service.update, None, "{}", service.name());
    }
    std::fs::write(
        dir.join("stack.yml"),
        STACK
            .replace("nginx:1", "nginx:2")
            .replace("replicas: 2", "replicas: 3"),
    )
    .unwrap();
    let mut attached = rig.docker_command(&["stack", "deploy", "--detach=false", "-c", "stack.yml", "app"]);
    let out = attached.output().unwrap();
    assert!(out.status.success(), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains(" converged"), "{out:?}");
    rig.wait_updated("app_web", "completed");
    let external = STACK.replace("{front: {}}", "{front: {external: true}}");
    std::fs::write(dir.join("external.yml"), external).unwrap();
    let missing = rig.docker_fails(&["stack", "deploy", "--detach=true", "-c", "external.yml", "other"]);
    assert!(
        missing.contains("network \"front\" is declared as external, but could not be found"),
        "{missing}"
    );
    // It asks for the stack's tasks until there are none, and must see an end.
    let mut rm = rig
        .docker_command(&["stack", "rm", "--detach=false", "app"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    let status = loop {
        if let Some(status) = rm.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > LONG {
            rm.kill().unwrap();
            panic!("docker stack rm does not end");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success());
    assert_eq!(rig.docker(&["stack", "ls", "--format", "{{.Name}}"]), "");
    assert!(
        rig.docker_fails(&["stack", "ps", "app"])
            .contains("nothing found in stack: app")
    );
    rig.wait_for("nothing to be left", || rig.snapshot().tasks().count() == 0);
    let left = rig.snapshot().keys();
    assert_eq!(left.len(), 3, "the swarm, its node and ingress: {left:?}");
}

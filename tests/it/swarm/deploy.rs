//! The form that is shipped: `docker stack deploy` of config/swarm.stack.yml with a certificate in a secret, its update to another one, and
//! `docker run` on a drained node.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{ALL, no_failure, rig};
use crate::tls::Authority;

const IMAGE: &str = "127.0.0.1:1/anynode";

/// As README has it.
const CERTIFICATES: &str = r#"
services:
  node:
    secrets: [site.pem]
    environment:
      ANYNODE_ENTRYPOINTS: "{ websecure = { listen = ':8443', tls = true } }"
      ANYNODE_TLS_CERTIFICATES: "[{ cert = '/run/secrets/site.pem', key = '/run/secrets/site.pem' }]"
secrets:
  site.pem:
    external: true
"#;

/// The image's file system: a static program alone, or the test's own with its libraries.
fn rootfs() -> PathBuf {
    let program =
        std::env::var_os("ANYNODE_IMAGE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_anynode").into(), PathBuf::from);
    rig::rootfs(&program, "anynode")
}

#[test]
fn a_stack_of_it_serves_is_updated_under_load_and_leaves_a_drained_node_to_docker_run() {
    let Some(swarm) = rig::up("deploy", 3, 1) else { return };
    let rootfs = rootfs();
    for node in ALL {
        let change = r#"ENTRYPOINT ["/anynode"]"#;
        swarm.docker(
            node,
            &["import", "--change", change, &rootfs.display().to_string(), IMAGE],
        );
    }
    swarm.create("before", &["--publish", "8080:80", "--replicas", "3"]);
    let secret = swarm.dir().join("secret");
    std::fs::write(&secret, "a token for the stack, long enough to be taken").unwrap();
    swarm.docker(1, &["secret", "create", "anynode-token", &secret.display().to_string()]);
    let authority = Authority::new("tests");
    let (ca, certificates) = (swarm.dir().join("ca.pem"), swarm.dir().join("certificates.yml"));
    std::fs::write(&ca, &authority.pem).unwrap();
    std::fs::write(&certificates, CERTIFICATES).unwrap();
    let secret_of = |name: &str, days: i64| {
        let (certificate, key) = authority.issue(&["site.test"], days);
        let path = swarm.dir().join(name);
        std::fs::write(&path, format!("{certificate}{key}")).unwrap();
        swarm.docker(1, &["secret", "create", name, &path.display().to_string()]);
    };
    secret_of("site.pem", 30);
    let deploy = |image: &str| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/swarm.stack.yml");
        let mut command = Command::new("docker");
        command
            .args([
                "-H",
                &swarm.docker_host(1),
                "stack",
                "deploy",
                "--detach=true",
                "--resolve-image",
                "never",
            ])
            .args(["--compose-file", file, "--compose-file"])
            .arg(&certificates)
            .arg("anynode")
            .env("ANYNODE_IMAGE", image)
            // Each node's engine has a directory of its own here; elsewhere all have the same.
            .env(
                "DOCKER_RUN_DIR",
                format!("{}/{{{{.Node.Hostname}}}}", swarm.cluster_dir()),
            )
            .env("CONTROL_SOCKET", "run/swarm/control.sock");
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    deploy(IMAGE);
    swarm.create(
        "after",
        &[
            "--label",
            "anynode.mode=http",
            "--label",
            "anynode.route=Host(`site.test`)",
            "--label",
            "anynode.port=80",
            "--publish",
            "8081:80",
            "--replicas",
            "3",
        ],
    );
    let serves = |node: usize| swarm.curl(node, 8080, "/").is_ok() && swarm.curl(node, 8081, "/").is_ok();
    swarm.wait_for("every node to answer", Duration::from_secs(90), || {
        ALL.into_iter().all(serves)
    });
    // When the certificate ends that a node shows, to a client that believes its authority.
    let until = |node: usize| -> Option<String> {
        let at = format!("site.test:8443:{}", swarm.ip(node));
        let url = "https://site.test:8443/";
        let (ca, ask) = (
            ca.display().to_string(),
            ["curl", "-sSv", "--fail", "-m", "10", "--resolve"],
        );
        let out = swarm.client(&[&ask[..], &[&at, "--cacert", &ca, url]].concat());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let line = said.lines().find(|line| line.contains("expire date: "))?;
        out.status.success().then(|| line.to_owned())
    };
    swarm.wait_for("the certificate of a secret", Duration::from_secs(30), || {
        ALL.into_iter().all(|node| until(node).is_some())
    });
    let first = until(1);
    for node in ALL {
        swarm.wait_for("three tasks in turn", Duration::from_secs(30), || {
            swarm
                .tasks_at(node, 8080, 6)
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len()
                == 3
        });
    }
    swarm.wait_for("its tasks to be healthy", Duration::from_secs(60), || {
        let states = swarm.docker(
            1,
            &[
                "service",
                "ps",
                "anynode_node",
                "--filter",
                "desired-state=running",
                "--format",
                "{{.CurrentState}}",
            ],
        );
        states.lines().filter(|state| state.starts_with("Running")).count() == 3
    });

    // Its own update, as Swarm does it, here to another certificate.
    secret_of("site-2.pem", 90);
    let loads = [
        (
            "tcp, new connections",
            swarm.load(&ALL, 8080, &["--seconds", "60", "--new", "--pause-us", "3000"]),
        ),
        (
            "http, kept connections",
            swarm.load(&ALL, 8081, &["--seconds", "60", "--pause-us", "3000"]),
        ),
    ];
    let renewed = [
        "--secret-rm",
        "site.pem",
        "--secret-add",
        "source=site-2.pem,target=site.pem",
    ];
    swarm.docker(
        1,
        &[&["service", "update", "--detach"][..], &renewed, &["anynode_node"]].concat(),
    );
    for (what, load) in loads {
        no_failure(&format!("update of the stack, {what}"), &load.wait());
    }
    let state = swarm.docker(
        1,
        &["service", "inspect", "-f", "{{.UpdateStatus.State}}", "anynode_node"],
    );
    assert!(state == "completed" || state == "updating", "{state}");
    let old = swarm.docker(
        1,
        &[
            "service",
            "ps",
            "anynode_node",
            "--format",
            "{{.DesiredState}} {{.CurrentState}}",
        ],
    );
    println!("{old}");
    assert!(!old.contains("Failed"), "{old}");
    swarm.wait_for("the other certificate", Duration::from_secs(30), || {
        let shown = ALL.map(until);
        shown.iter().all(|one| one.is_some() && *one != first)
    });

    // Swarm stops it on a node that is drained; the form outside Swarm goes on there.
    swarm.docker(1, &["node", "update", "--availability", "drain", "node3"]);
    swarm.wait_for("Swarm to stop it on node3", Duration::from_secs(60), || {
        let running = swarm.docker(3, &["ps", "-q", "--filter", "name=anynode_node"]);
        running.is_empty()
    });
    assert!(swarm.curl(3, 8080, "/").is_err());
    let engine = format!("{}/node3:/host/run", swarm.cluster_dir());
    let token = format!("{}:/run/secrets/anynode-token:ro", secret.display());
    let run = [
        "run",
        "-d",
        "--name",
        "anynode",
        "--restart",
        "always",
        "--network",
        "host",
        "--user",
        "0:0",
    ];
    let caps = [
        "--cap-drop",
        "ALL",
        "--cap-add",
        "NET_ADMIN",
        "--cap-add",
        "SYS_ADMIN",
        "--cap-add",
        "NET_BIND_SERVICE",
    ];
    let rest = [
        "-v",
        &engine,
        "-v",
        "anynode_data:/var/lib/anynode",
        "-v",
        &token,
        "-e",
        "ANYNODE_DATA_DIR=/var/lib/anynode",
        "-e",
        "ANYNODE_SWARM_DOCKER_SOCKET=/host/run/docker.sock",
        "-e",
        "ANYNODE_SWARM_CONTROL_SOCKET=/host/run/run/swarm/control.sock",
        IMAGE,
        "up",
        "--swarm",
    ];
    swarm.docker(3, &[&run[..], &caps, &rest].concat());
    swarm.wait_for("node3 to answer", Duration::from_secs(60), || serves(3));
}

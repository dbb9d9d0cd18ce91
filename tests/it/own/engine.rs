//! The Docker Engine beside anynode: what is not the swarm's goes to it, and one in Swarm mode itself is refused.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::rig::{self, LONG, Own, Tasks};

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
    // What the engine knows nothing of: the swarm's networks, and where tasks are reached.
    own.docker(&["network", "create", "-d", "overlay", "app"]);
    let ports = [
        "--publish",
        "8081:80",
        "--publish",
        "mode=host,published=8082,target=81",
    ];
    let create = ["service", "create", "--detach", "--name", "api", "--network", "app"];
    own.docker(&[&create[..], &ports, &["nginx:latest"]].concat());
    let row = "{{.Networks}} {{.Ports}}";
    own.wait_for("ports and networks", LONG, || {
        own.docker(&["ps", "--filter", "name=api", "--format", row]) == "app 80/tcp, 0.0.0.0:8082->81/tcp"
    });
    assert_eq!(own.docker(&["ps", "-q", "--filter", "network=app"]).lines().count(), 1);
    let container = own.docker(&["ps", "-q", "--filter", "name=api"]);
    let look = "{{.HostConfig.NetworkMode}} {{(index .NetworkSettings.Networks \"app\").IPAddress}} {{.NetworkSettings.Ports}}";
    let said = own.docker(&["inspect", "-f", look, &container]);
    assert!(
        said.starts_with("default 10.") && said.ends_with("map[80/tcp:[] 81/tcp:[{0.0.0.0 8082}]]"),
        "{said}"
    );
    assert_eq!(
        own.docker(&["ps", "--filter", "name=plain", "--format", row])
            .split_whitespace()
            .next(),
        Some("bridge")
    );
    own.docker(&["service", "rm", "api"]);
    // The engine's components are beside ours.
    let components = own.docker(&[
        "version",
        "-f",
        "{{range .Server.Components}}{{.Name}}={{.Details.ApiVersion}},{{end}}",
    ]);
    assert!(
        components.starts_with("Engine=") && components.contains(",Docker Engine=1.41,containerd="),
        "{components}"
    );
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

/// What a container hears at `/_ping` and `/services` of the socket that it sees at `path`.
fn heard_inside(own: &Own, service: &str, path: &str) -> Option<String> {
    let name = format!("name={service}");
    let id = own.docker(&["ps", "-q", "--no-trunc", "--filter", &name]);
    let pid = own.docker(&["inspect", "-f", "{{.State.Pid}}", id.lines().next()?]);
    // By the mounts that it sees.
    let socket = PathBuf::from(format!("/proc/{}/root", pid.trim())).join(path.trim_start_matches('/'));
    let ask = |what: &str| {
        let url = format!("http://docker{what}");
        let out = Command::new("curl")
            .args(["-s", "-m", "5", "--unix-socket"])
            .arg(&socket)
            .arg(url)
            .output();
        String::from_utf8(out.unwrap().stdout).unwrap()
    };
    (ask("/_ping") == "OK").then(|| ask("/services"))
}

#[test]
fn a_container_that_mounts_the_docker_socket_sees_the_swarm_also_after_a_kill() {
    let Some(mut own) = rig::up("sockets", Tasks::Containers) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let engine = own.engine_socket();
    let link = own.dir().join("linked.sock");
    std::os::unix::fs::symlink(&engine, &link).unwrap();
    let dir = engine.parent().unwrap().display().to_string();
    let name = engine.file_name().unwrap().to_str().unwrap().to_owned();
    let engine = engine.display().to_string();
    let in_dir = format!("/host/{name}");
    let cases = [
        (
            "direct",
            engine.as_str(),
            "/var/run/docker.sock",
            "/var/run/docker.sock",
            "swarm",
        ),
        (
            "linked",
            link.to_str().unwrap(),
            "/docker.sock",
            "/docker.sock",
            "swarm",
        ),
        ("within", dir.as_str(), "/host", in_dir.as_str(), "swarm"),
        (
            "theirs",
            engine.as_str(),
            "/var/run/docker.sock",
            "/var/run/docker.sock",
            "engine",
        ),
    ];
    for (service, source, target, _, whose) in cases {
        let mount = format!("type=bind,source={source},target={target},readonly");
        let label = format!("anynode.docker-socket={whose}");
        let create = ["service", "create", "--detach", "--name", service, "--label", &label];
        own.docker(&[&create[..], &["--mount", &mount, "nginx:latest"]].concat());
        let shown = own.docker(&[
            "service",
            "inspect",
            "-f",
            "{{(index .Spec.TaskTemplate.ContainerSpec.Mounts 0).Source}}",
            service,
        ]);
        assert_eq!(shown.trim(), source);
    }
    let is_as_it_should = |own: &Own| {
        cases.iter().all(|(service, _, _, path, whose)| {
            let heard = heard_inside(own, service, path);
            match *whose {
                "swarm" => heard.is_some_and(|heard| heard.contains("\"direct\"") && heard.contains("\"theirs\"")),
                _ => heard.is_some_and(|heard| heard.contains("This node is not a swarm manager")),
            }
        })
    };
    own.wait_for("each to see its own", LONG, || is_as_it_should(&own));
    for (service, _, _, _, whose) in cases {
        let task = own.docker(&["service", "ps", "-q", "--no-trunc", service]);
        let said = own.docker(&["inspect", "-f", "{{.Status.Message}}", &task]);
        let is_said = said.starts_with("started (its docker.sock is anynode's");
        assert_eq!(is_said, whose == "swarm", "{service}: {said}");
    }
    let ids = own.docker(&["ps", "-q", "--no-trunc"]);
    for is_kill in [true, false, true] {
        match is_kill {
            true => own.kill(),
            false => own.stop(),
        }
        own.start();
        own.wait_for("each to see its own again", LONG, || is_as_it_should(&own));
        assert_eq!(own.docker(&["ps", "-q", "--no-trunc"]), ids, "{}", own.log_tail());
    }
    // Nobody is there: that is said.
    own.stop();
    let asked = Command::new("curl")
        .args(["-s", "-m", "60", "--unix-socket"])
        .arg(own.socket())
        .arg("http://docker/_ping")
        .output();
    let said = String::from_utf8(asked.unwrap().stdout).unwrap();
    assert!(
        said.is_empty() || said.contains("anynode does not run on this node"),
        "{said}"
    );
    own.start();
    assert!(is_as_it_should(&own));
    // Whoever has taken the file away has taken nothing else away.
    own.stop();
    std::fs::remove_file(own.socket()).unwrap();
    own.start();
    own.docker(&["service", "ls"]);
    own.docker(&["swarm", "leave", "--force"]);
    own.wait_for("the tasks to end", LONG, || own.docker(&["ps", "-q"]).is_empty());
    own.stop();
    assert!(!own.socket().exists());
}

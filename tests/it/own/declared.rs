//! What users declare besides replicas: ports that are held, labels, nodes that rest, global services, ports of one task,
//! configs and secrets, and what a service says that cannot be had.

use std::process::{Child, Command, Stdio};

use super::rig::{self, LONG, Own, Tasks};
use crate::swarm::rig::task_program;

impl Own {
    fn create(&self, name: &str, args: &[&str]) {
        let mut words = vec!["service", "create", "--name", name, "--detach"];
        words.extend(args);
        words.push("nginx");
        self.docker(&words);
    }

    fn column(&self, service: &str, column: &str) -> Vec<String> {
        let format = format!("{{{{.{column}}}}}");
        let out = self.docker(&[
            "service",
            "ps",
            service,
            "--no-trunc",
            "--filter",
            "desired-state=running",
            "--filter",
            "desired-state=ready",
            "--filter",
            "desired-state=accepted",
            "--format",
            &format,
        ]);
        out.lines().map(str::to_owned).collect()
    }

    /// The tasks that run and are to run.
    fn running(&self, service: &str) -> Vec<String> {
        let (ids, states) = (self.column(service, "ID"), self.column(service, "CurrentState"));
        let tasks = ids.into_iter().zip(states);
        let running = tasks.filter(|(_, state)| state.starts_with("Running"));
        running.map(|(id, _)| id).collect()
    }

    pub(super) fn wait_for_running(&self, service: &str, n: usize) -> Vec<String> {
        self.wait_for(&format!("{n} of {service}"), LONG, || self.running(service).len() == n);
        self.running(service)
    }

    fn wait_for_error(&self, service: &str, wanted: &str) {
        self.wait_for(&format!("{service}: {wanted:?}"), LONG, || {
            self.column(service, "Error").iter().any(|error| error.contains(wanted))
        });
    }

    fn wait_for_answer(&self, url: &str) -> String {
        self.wait_for(url, LONG, || self.curl(url).is_some());
        self.curl(url).unwrap()
    }

    fn node(&self) -> String {
        self.docker(&["node", "ls", "--format", "{{.ID}}"])
    }

    /// Another program on this host that listens there.
    fn hold(&self, port: u16) -> Held {
        let mut program = self.inside(task_program());
        program.arg("serve").env("PORT", port.to_string()).stdout(Stdio::null());
        let held = Held(program.spawn().unwrap());
        self.wait_for_answer(&format!("http://127.0.0.1:{port}/health"));
        held
    }
}

struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_port_that_another_program_holds_is_told_and_served_once_it_lets_go() {
    let Some(mut own) = rig::up("held", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let held = own.hold(8099);
    let words = "service create --name web --detach --publish 8099:80 --publish 5353:53/udp nginx";
    let out = own.docker_out(&words.split(' ').collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    own.wait_for_running("web", 1);
    own.wait_for_error("web", "port 8099: ");
    own.wait_for_error("web", "port 5353/udp: not served yet, only tcp is");
    let status = own.anynode(&["status"]);
    assert!(
        status.contains("! port [::]:8099 of web") || status.contains(":8099 of web"),
        "{status}"
    );
    assert!(
        status.contains("! service web: port 5353/udp: not served yet"),
        "{status}"
    );
    // Others are served meanwhile.
    own.create("other", &["--publish", "8098:80"]);
    own.wait_for_answer("http://127.0.0.1:8098/");
    drop(held);
    own.wait_for("the port", LONG, || {
        own.column("web", "Error").iter().all(|error| !error.contains("8099"))
    });
    own.wait_for_answer("http://127.0.0.1:8099/");
}

#[test]
fn labels_change_how_a_service_is_served_and_replace_no_task() {
    let Some(mut own) = rig::up("labels", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.create("web", &["--replicas", "2", "--publish", "8080:80"]);
    let before = own.wait_for_running("web", 2);
    let pids = own.living_tasks();
    let is_http = || {
        own.wait_for_answer("http://127.0.0.1:8080/")
            .contains("x-forwarded-for")
    };
    assert!(!is_http());
    own.docker(&[
        "service",
        "update",
        "--detach",
        "--label-add",
        "anynode.mode=http",
        "web",
    ]);
    own.wait_for("mode http", LONG, is_http);
    // A slip is refused, and changes nothing.
    for (label, said) in [
        (
            "anynode.mode=htttp",
            "label anynode.mode: \"htttp\" is not valid: expected tcp or http",
        ),
        (
            "Anynode.mode=http",
            "label Anynode.mode: no such option; there is anynode.mode",
        ),
        (
            "anynode.moda=tcp",
            "label anynode.moda: no such option; there is anynode.mode",
        ),
    ] {
        let refused = own.docker_fails(&["service", "update", "--detach", "--label-add", label, "web"]);
        assert!(refused.contains(said), "{refused}");
        let refused = own.docker_fails(&["service", "create", "--detach", "--label", label, "anynode/whoami"]);
        assert!(refused.contains(said), "{refused}");
    }
    assert!(is_http());
    own.docker(&["service", "update", "--detach", "--label-rm", "anynode.mode", "web"]);
    own.wait_for("mode tcp", LONG, || !is_http());
    assert_eq!(own.running("web"), before);
    let (mut pids, mut now) = (pids, own.living_tasks());
    pids.sort_unstable();
    now.sort_unstable();
    assert_eq!(now, pids, "the same programs all the while");
    // Ports are a matter of the tasks for Docker, and so they are here.
    own.docker(&["service", "update", "--publish-add", "8081:80", "web"]);
    own.wait_for_answer("http://127.0.0.1:8081/");
    own.docker(&["service", "update", "--publish-rm", "80", "web"]);
    own.wait_for("closed ports", LONG, || {
        own.curl("http://127.0.0.1:8080/").is_none() && own.curl("http://127.0.0.1:8081/").is_none()
    });
}

#[test]
fn a_node_that_rests_and_services_on_every_node() {
    let Some(mut own) = rig::up("rests", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let node = own.node();
    let availability = |wanted: &str| own.docker(&["node", "update", "--availability", wanted, &node]);
    own.create("web", &["--replicas", "2", "--publish", "8080:80"]);
    own.create("each", &["--mode", "global", "--publish", "8081:80"]);
    let before = own.wait_for_running("web", 2);
    own.wait_for_running("each", 1);
    let services = own.docker(&["service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}"]);
    assert!(
        services.contains("each global 1/1") && services.contains("web replicated 2/2"),
        "{services}"
    );

    availability("pause");
    own.docker(&["service", "scale", "--detach", "web=3"]);
    own.wait_for_error("web", "no suitable node (1 node not available for new tasks)");
    let still: Vec<String> = own.running("web");
    assert_eq!(still.len(), 2);
    assert!(before.iter().all(|task| still.contains(task)), "those that run stay");
    availability("active");
    own.wait_for_running("web", 3);

    availability("drain");
    own.wait_for("an empty node", LONG, || own.living_tasks().is_empty());
    own.wait_for_running("web", 0);
    own.wait_for("closed or silent ports", LONG, || {
        own.curl("http://127.0.0.1:8081/").is_none()
    });
    availability("active");
    own.wait_for_running("web", 3);
    own.wait_for_running("each", 1);
    own.wait_for_answer("http://127.0.0.1:8080/");
    own.wait_for_answer("http://127.0.0.1:8081/");
    own.docker(&["service", "rm", "web", "each"]);
    own.wait_for("nothing", LONG, || own.living_tasks().is_empty());
}

#[test]
fn what_a_node_cannot_give_is_said_and_waited_for() {
    let Some(mut own) = rig::up("cannot", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.create("picky", &["--constraint", "node.labels.disk==ssd"]);
    own.wait_for_error(
        "picky",
        "no suitable node (scheduling constraints not satisfied on 1 node)",
    );
    own.docker(&["node", "update", "--label-add", "disk=ssd", &own.node()]);
    own.wait_for_running("picky", 1);
    own.create("big", &["--reserve-memory", "64T"]);
    own.wait_for_error("big", "no suitable node (insufficient resources on 1 node)");
    own.docker(&["service", "update", "--detach", "--reserve-memory", "8M", "big"]);
    own.wait_for_running("big", 1);
    // No such program is known here.
    own.docker(&[
        "service",
        "create",
        "--name",
        "none",
        "--detach",
        "--restart-condition",
        "none",
        "nowhere:1",
    ]);
    own.wait_for("a refusal", LONG, || {
        let errors = own.docker(&[
            "service",
            "ps",
            "none",
            "--no-trunc",
            "--format",
            "{{.CurrentState}} {{.Error}}",
        ]);
        errors.starts_with("Rejected")
            && errors.contains("No such image: nowhere:1")
            && errors.contains("process.images")
    });
}

fn host_ports(tasks: Tasks) {
    let Some(mut own) = rig::up("hostports", tasks) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.create(
        "web",
        &["--replicas", "2", "--publish", "mode=host,published=8097,target=80"],
    );
    own.wait_for_error("web", "no suitable node (host-mode port already in use on 1 node)");
    own.wait_for_running("web", 1);
    own.wait_for_answer("http://127.0.0.1:8097/");
    let ports = own.column("web", "Ports");
    assert!(ports.contains(&"*:8097->80/tcp".to_owned()), "{ports:?}");
    // An update of stop-first frees the port and takes it again.
    own.docker(&["service", "scale", "--detach", "web=1"]);
    let before = own.wait_for_running("web", 1);
    own.docker(&["service", "update", "--force", "web"]);
    let after = own.wait_for_running("web", 1);
    assert_ne!(after, before);
    own.wait_for_answer("http://127.0.0.1:8097/");
}

#[test]
fn a_port_of_one_task_is_served_as_processes() {
    host_ports(Tasks::Processes);
}

#[test]
fn a_port_of_one_task_is_served_as_containers() {
    host_ports(Tasks::Containers);
}

/// README's words: `--network host`.
fn on_the_hosts_network(tasks: Tasks) {
    let Some(mut own) = rig::up("host-network", tasks) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.create(
        "web",
        &[
            "--network",
            "host",
            "--label",
            "anynode.mode=http",
            "--publish",
            "8080:80",
        ],
    );
    own.wait_for("the task", LONG, || own.living_tasks().len() == 1);
    let network = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(network(own.living_tasks()[0]), network(own.pid()));
    // Nobody has asked it for anything yet: that is no fault.
    own.wait_for("an endpoint", LONG, || own.anynode(&["status"]).contains("untried"));
    let said = own.anynode(&["verify"]);
    assert!(
        said.contains("service web: nothing has come to its endpoints yet (1)"),
        "{said}"
    );
    assert!(own.curl("http://localhost:8080/").is_some());
    own.wait_for("a service that is ready", LONG, || {
        own.anynode(&["verify"])
            .ends_with("and somebody is ready behind each\n")
    });
}

#[test]
fn on_the_hosts_network_as_processes() {
    on_the_hosts_network(Tasks::Processes);
}

fn files(tasks: Tasks) {
    let Some(mut own) = rig::up("files", tasks) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    for (name, text) in [
        ("plain", "held {{.Task.Slot}}"),
        (
            "shaped",
            "slot {{.Task.Slot}} of {{.Service.Name}} at {{env \"LEVEL\"}}",
        ),
        ("word", "hush"),
        ("next", "hush hush"),
    ] {
        std::fs::write(own.dir().join(name), text).unwrap();
    }
    own.docker(&["config", "create", "plain", "plain"]);
    own.docker(&["config", "create", "--template-driver", "golang", "shaped", "shaped"]);
    own.docker(&["secret", "create", "word", "word"]);
    own.docker(&["secret", "create", "next", "next"]);
    own.create(
        "web",
        &[
            "--publish",
            "8080:80",
            "--env",
            "LEVEL=level-{{.Task.Slot}}",
            "--env",
            "SLOT={{.Task.Name}}",
            "--config",
            "source=plain,target=/etc/app/plain.conf,mode=0440",
            "--config",
            "shaped",
            "--secret",
            "word",
            "--secret",
            "source=word,target=other,mode=0400",
        ],
    );
    let before = own.wait_for_running("web", 1);
    let file = |path: &str| own.wait_for_answer(&format!("http://127.0.0.1:8080/file?path={path}"));
    assert_eq!(file("/etc/app/plain.conf"), "440 held {{.Task.Slot}}");
    assert_eq!(file("/shaped"), "444 slot 1 of web at level-1");
    assert_eq!(file("/run/secrets/word"), "444 hush");
    assert_eq!(file("/run/secrets/other"), "400 hush");
    let who = own.wait_for_answer("http://127.0.0.1:8080/");
    assert!(who.contains(&format!("\"slot\":\"web.1.{}", &before[0][..12])), "{who}");
    let refused = own.docker_fails(&["secret", "rm", "word"]);
    assert!(
        refused.contains("secret 'word' is in use by the following service: web"),
        "{refused}"
    );
    // Rotated: another secret under the same name, in a new task.
    own.docker(&[
        "service",
        "update",
        "--secret-rm",
        "word",
        "--secret-add",
        "source=next,target=word",
        "web",
    ]);
    assert_eq!(file("/run/secrets/word"), "444 hush hush");
    own.docker(&["secret", "rm", "word"]);
    own.docker(&["service", "rm", "web"]);
    own.wait_for("nothing", LONG, || own.living_tasks().is_empty());
    own.docker(&["secret", "rm", "next"]);
    own.docker(&["config", "rm", "plain", "shaped"]);
    if tasks == Tasks::Processes {
        own.wait_for("no files", LONG, || {
            std::fs::read_dir(own.data_dir().join("tasks")).map_or(true, |mut dirs| dirs.next().is_none())
        });
    }
}

#[test]
fn configs_and_secrets_are_files_as_processes() {
    files(Tasks::Processes);
}

#[test]
fn configs_and_secrets_are_files_as_containers() {
    files(Tasks::Containers);
}

fn logs(tasks: Tasks) {
    let Some(mut own) = rig::up("logs", tasks) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.create("web", &["--replicas", "2", "--publish", "8080:80"]);
    own.wait_for_running("web", 2);
    let lines = |args: &[&str]| -> Vec<String> {
        let mut words = vec!["service", "logs"];
        words.extend(args);
        words.push("web");
        own.docker(&words).lines().map(str::to_owned).collect()
    };
    own.wait_for("their first words", LONG, || lines(&[]).len() == 2);
    let node = own.docker(&["node", "ls", "--format", "{{.Hostname}}"]);
    for line in lines(&[]) {
        let (prefix, text) = line.split_once("| ").unwrap();
        assert!(
            prefix.starts_with("web.") && prefix.trim_end().ends_with(&format!("@{node}")),
            "{line}"
        );
        assert!(text.starts_with("listening on"), "{line}");
    }
    assert_eq!(lines(&["--tail", "0"]).len(), 0);
    assert_eq!(lines(&["--since", "2020-01-01T00:00:00Z"]).len(), 2);
    assert_eq!(lines(&["--since", "2037-01-01T00:00:00Z"]).len(), 0);
    for line in lines(&["--timestamps", "--raw"]) {
        let (at, text) = line.split_once(' ').unwrap();
        assert!(
            humantime::parse_rfc3339(at).is_ok() && text.starts_with("listening"),
            "{line}"
        );
    }
    // Who follows hears tasks that come later, and of nobody twice.
    let path = own.dir().join("followed");
    let mut follow = own
        .docker_command(&["service", "logs", "--follow", "web"])
        .stdout(std::fs::File::create(&path).unwrap())
        .spawn()
        .unwrap();
    let heard = || std::fs::read_to_string(&path).unwrap().lines().count();
    own.wait_for("what was said before", LONG, || heard() == 2);
    own.docker(&["service", "scale", "--detach", "web=3"]);
    own.wait_for("the third", LONG, || heard() == 3);
    let stopped = Command::new("kill").arg(follow.id().to_string()).status();
    assert!(stopped.is_ok_and(|status| status.success()));
    follow.wait().unwrap();
}

#[test]
fn logs_of_services_as_processes() {
    logs(Tasks::Processes);
}

#[test]
fn logs_of_services_as_containers() {
    logs(Tasks::Containers);
}

#[test]
fn a_container_sees_its_clients() {
    let Some(mut own) = rig::up("clients", Tasks::Containers) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    own.create("web", &["--replicas", "2", "--publish", "8080:80"]);
    own.create("http", &["--publish", "8081:80", "--label", "anynode.mode=http"]);
    own.wait_for_running("web", 2);
    own.wait_for_running("http", 1);
    let ask = |port: u16, args: &[&str]| -> serde_json::Value {
        let url = format!("http://10.213.0.1:{port}");
        let out = own
            .client("curl")
            .args(["-s", "-f", "-m", "10", &url])
            .args(args)
            .output()
            .unwrap();
        serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"))
    };
    for n in 0..6 {
        let port = 40_000 + n;
        let answer = ask(8080, &["--local-port", &port.to_string()]);
        assert_eq!(
            (&answer["peer"], &answer["peer_port"]),
            (&"10.213.0.100".into(), &port.into())
        );
    }
    let answer = ask(8081, &[]);
    assert_eq!(answer["headers"]["x-forwarded-for"], "10.213.0.100");
    // As it likes, live, with the same tasks.
    let before = own.running("web");
    own.docker(&[
        "service",
        "update",
        "--detach",
        "--label-add",
        "anynode.client-address=none",
        "web",
    ]);
    own.wait_for("another address", LONG, || ask(8080, &[])["peer"] != "10.213.0.100");
    assert_eq!(own.running("web"), before);
    let status = own.anynode(&["status", "--json"]);
    assert!(!status.contains("opaque"), "{status}");
    // Nothing of a task is held when it has gone.
    let pid = own.pid();
    let n_descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = n_descriptors();
    for _ in 0..3 {
        own.docker(&["service", "scale", "web=6"]);
        for _ in 0..12 {
            ask(8080, &[]);
        }
        own.docker(&["service", "scale", "web=2"]);
    }
    own.wait_for("six of them to go", LONG, || own.living_tasks().len() == 3);
    own.wait_for("their descriptors to go", LONG, || n_descriptors() <= before + 4);
}

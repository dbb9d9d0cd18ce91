//! The two walkthroughs, each command in its order, on both runtimes. ANYNODE_WALKTHROUGH=whole has their own times, which
//! are mostly waits; the short form has each delay of 10 s as 1 s.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use super::rig::{self, Images, LONG, Own, Tasks};

fn is_whole() -> bool {
    std::env::var("ANYNODE_WALKTHROUGH").is_ok_and(|form| form == "whole")
}

/// Ten seconds of the walkthrough.
fn ten_seconds() -> &'static str {
    if is_whole() { "10s" } else { "1s" }
}

/// The columns of a table, by its header: `CURRENT STATE` is one, since there are at least two blanks between columns.
fn columns(table: &str) -> Vec<BTreeMap<String, String>> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let mut starts = Vec::new();
    let bytes = header.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        let is_gap = |at: usize| bytes[at] == b' ';
        if *byte != b' ' && (i == 0 || (i >= 2 && is_gap(i - 1) && is_gap(i - 2))) {
            starts.push(i);
        }
    }
    let cell = |line: &str, i: usize| -> String {
        let from = line.char_indices().nth(starts[i]).map_or(line.len(), |(at, _)| at);
        let to = starts
            .get(i + 1)
            .and_then(|to| line.char_indices().nth(*to))
            .map_or(line.len(), |(at, _)| at);
        line[from..to].trim_end().to_owned()
    };
    lines
        .map(|line| (0..starts.len()).map(|i| (cell(header, i), cell(line, i))).collect())
        .collect()
}

fn header(table: &str) -> String {
    table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

const PS_HEADER: &str = "ID NAME IMAGE NODE DESIRED STATE CURRENT STATE ERROR PORTS";

/// Six requests: so many hostnames, and how often each in turn.
fn six(own: &Own, url: &str) -> Vec<String> {
    let names: Vec<String> = (0..6)
        .map(|_| {
            let answer: serde_json::Value = serde_json::from_str(&own.curl(url).expect("an answer")).unwrap();
            answer["hostname"].as_str().unwrap().to_owned()
        })
        .collect();
    names
}

fn in_turn(names: &[String], n: usize) -> bool {
    let distinct: BTreeSet<&String> = names.iter().collect();
    distinct.len() == n && names.iter().zip(&names[n..]).all(|(one, later)| one == later)
}

/// The first walkthrough.
pub(super) fn services(own: &mut Own) {
    own.start();
    let said = own.docker(&["swarm", "init"]);
    assert!(
        said.starts_with("Swarm initialized: current node (") && said.contains("docker swarm join --token SWMTKN-1-"),
        "{said}"
    );
    let said = own.docker(&[
        "service",
        "create",
        "--name",
        "my-web",
        "--publish",
        "published=8080,target=80",
        "--replicas",
        "3",
        "nginx:latest",
    ]);
    assert!(
        said.contains("overall progress: 3 out of 3 tasks") && said.contains("verify: Service"),
        "{said}"
    );
    let ls = own.docker(&["service", "ls"]);
    assert_eq!(header(&ls), "ID NAME MODE REPLICAS IMAGE PORTS");
    let row = &columns(&ls)[0];
    let shown = ["NAME", "MODE", "REPLICAS", "IMAGE", "PORTS"].map(|column| row[column].as_str());
    assert_eq!(shown, ["my-web", "replicated", "3/3", "nginx:latest", "*:8080->80/tcp"]);
    assert_eq!(row["ID"].len(), 12);
    let ps = own.docker(&["service", "ps", "my-web"]);
    assert_eq!(header(&ps), PS_HEADER);
    let hostname = own.docker(&["node", "ls", "--format", "{{.Hostname}}"]);
    for (i, row) in columns(&ps).iter().enumerate() {
        assert_eq!(row["NAME"], format!("my-web.{}", i + 1));
        assert_eq!(
            (&*row["IMAGE"], &*row["NODE"], &*row["DESIRED STATE"]),
            ("nginx:latest", &*hostname, "Running")
        );
        assert!(
            row["CURRENT STATE"].starts_with("Running ") && row["CURRENT STATE"].ends_with(" ago"),
            "{row:?}"
        );
        assert_eq!((&*row["ERROR"], &*row["PORTS"]), ("", ""));
    }
    assert_eq!(columns(&ps).len(), 3);
    assert_eq!(own.living_tasks().len(), 3);
    let names = six(own, "http://localhost:8080");
    assert!(in_turn(&names, 3), "{names:?}");

    let said = own.docker(&["service", "scale", "my-web=5"]);
    assert!(
        said.starts_with("my-web scaled to 5") && said.contains("5 out of 5 tasks"),
        "{said}"
    );
    let names: Vec<String> = columns(&own.docker(&["service", "ps", "my-web"]))
        .iter()
        .map(|row| row["NAME"].clone())
        .collect();
    assert_eq!(names, ["my-web.1", "my-web.2", "my-web.3", "my-web.4", "my-web.5"]);
    assert_eq!(own.living_tasks().len(), 5);

    let said = own.docker(&[
        "service",
        "update",
        "--image",
        "httpd:latest",
        "--update-delay",
        ten_seconds(),
        "my-web",
    ]);
    assert!(
        said.starts_with("my-web")
            && said.contains("5 out of 5 tasks")
            && said.contains("verify: Service my-web converged"),
        "{said}"
    );
    let ps = columns(&own.docker(&["service", "ps", "my-web"]));
    assert_eq!(ps.len(), 10);
    for (i, pair) in ps.chunks(2).enumerate() {
        assert_eq!(pair[0]["NAME"], format!("my-web.{}", i + 1));
        assert_eq!(pair[1]["NAME"], format!(" \\_ my-web.{}", i + 1));
        assert_eq!(
            (&*pair[0]["IMAGE"], &*pair[1]["IMAGE"]),
            ("httpd:latest", "nginx:latest")
        );
        assert_eq!((&*pair[1]["DESIRED STATE"], &*pair[1]["ERROR"]), ("Shutdown", ""));
        assert!(pair[1]["CURRENT STATE"].starts_with("Shutdown "), "{pair:?}");
    }
    assert_eq!(own.docker(&["service", "rm", "my-web"]), "my-web");
    own.wait_for("all tasks to end", LONG, || own.living_tasks().is_empty());
    assert_eq!(own.docker(&["service", "ls"]).lines().count(), 1);
    assert!(
        own.docker_fails(&["service", "ps", "my-web"])
            .contains("no such service: my-web")
    );
    own.wait_for("the port to close", LONG, || {
        own.curl("http://localhost:8080").is_none()
    });

    own.docker(&[
        "service",
        "create",
        "--name",
        "my-fastapi-whoami-app",
        "--publish",
        "published=8000,target=8000",
        "--replicas",
        "3",
        "my-fastapi-whoami",
    ]);
    assert_eq!(
        columns(&own.docker(&["service", "ps", "my-fastapi-whoami-app"])).len(),
        3
    );
    // It has no health check: it runs before it listens, and who comes then is held.
    let names = six(own, "http://localhost:8000");
    assert!(in_turn(&names, 3), "{names:?}");
    own.docker(&["service", "rm", "my-fastapi-whoami-app"]);
    own.wait_for("all tasks to end", LONG, || own.living_tasks().is_empty());
}

/// The compose file of the second walkthrough, as it is written but for its delays.
fn compose(image: &str, version: &str, replicas: u32, deploy: &str) -> String {
    let ten = ten_seconds();
    format!(
        r#"services:
  web:
    image: {image}
    environment:
      - APP_VERSION={version}
    deploy:
      replicas: {replicas}
      update_config:
        parallelism: 1
        delay: {ten}
        order: start-first
{deploy}    healthcheck:
      test: ["CMD", "curl", "-f", "http://localhost:8000/healthz"]
      interval: {ten}
      timeout: 5s
      retries: 3

  nginx:
    image: nginx:latest
    ports:
      - "80:80"
    configs:
      - source: nginx_config
        target: /etc/nginx/conf.d/default.conf
    depends_on:
      - web

configs:
  nginx_config:
    external: true
"#
    )
}

/// The walkthrough's curl loop; says each answer that is none, and which versions came in which order.
struct Loop<'a> {
    own: &'a Own,
    is_over: AtomicBool,
    versions: std::sync::Mutex<Vec<String>>,
    failures: std::sync::Mutex<Vec<String>>,
}

impl Loop<'_> {
    fn run(&self) {
        let pause = Duration::from_millis(if is_whole() { 1000 } else { 20 });
        while !self.is_over.load(SeqCst) {
            match self.own.curl("http://localhost") {
                Some(answer) => {
                    let version = answer.split("version: ").nth(1).and_then(|rest| rest.split('"').next());
                    let version = version.unwrap_or("none").to_owned();
                    let mut versions = self.versions.lock().unwrap();
                    if versions.last() != Some(&version) {
                        versions.push(version);
                    }
                }
                None => self
                    .failures
                    .lock()
                    .unwrap()
                    .push(format!("after {:?}", self.versions.lock().unwrap().last())),
            }
            std::thread::sleep(pause);
        }
    }
}

/// Runs `work` under the walkthrough's curl loop; returns the versions that were seen, one after another. No request fails.
fn under_load(own: &Own, work: impl FnOnce()) -> Vec<String> {
    let curls = Loop {
        own,
        is_over: AtomicBool::new(false),
        versions: Default::default(),
        failures: Default::default(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| curls.run());
        // The loop must end even when the work fails.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }
        let _ends = Ends(&curls.is_over);
        work();
    });
    let failures = curls.failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:?}\n{}", own.log_tail());
    curls.versions.into_inner().unwrap()
}

/// The second walkthrough.
pub(super) fn stack(own: &mut Own) {
    own.start();
    own.docker(&["swarm", "init"]);
    let write = |name: &str, text: &str| std::fs::write(own.dir().join(name), text).unwrap();
    write(
        "nginx.conf",
        "server {\n  listen 80;\n  location / {\n    proxy_pass http://web:8000;\n  }\n}\n",
    );
    let id = own.docker(&["config", "create", "nginx_config", "./nginx.conf"]);
    assert_eq!(id.len(), 25, "{id}");
    let one = "masungil/my-fastapi-app:1.0";
    write("docker-compose.yml", &compose(one, "v1.0", 3, ""));
    let deploy = |file: &str| own.docker(&["stack", "deploy", "--detach=false", "-c", file, "myappstack"]);
    let said = deploy("docker-compose.yml");
    for line in [
        "Creating network myappstack_default",
        "Creating service myappstack_web",
        "Creating service myappstack_nginx",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let ls = own.docker(&["stack", "ls"]);
    assert_eq!(header(&ls), "NAME SERVICES");
    assert_eq!(
        (&*columns(&ls)[0]["NAME"], &*columns(&ls)[0]["SERVICES"]),
        ("myappstack", "2")
    );
    let services = own.docker(&["stack", "services", "myappstack"]);
    assert_eq!(header(&services), "ID NAME MODE REPLICAS IMAGE PORTS");
    let rows: BTreeMap<String, [String; 3]> = columns(&services)
        .into_iter()
        .map(|row| {
            (
                row["NAME"].clone(),
                ["REPLICAS", "IMAGE", "PORTS"].map(|column| row[column].clone()),
            )
        })
        .collect();
    assert_eq!(rows["myappstack_web"], ["3/3", one, ""]);
    assert_eq!(rows["myappstack_nginx"], ["1/1", "nginx:latest", "*:80->80/tcp"]);
    let ps = own.docker(&["stack", "ps", "myappstack"]);
    assert_eq!(header(&ps), PS_HEADER);
    assert_eq!(columns(&ps).len(), 4);
    let answer = own.curl("http://localhost").unwrap();
    assert!(
        answer.starts_with(r#"{"message":"Hello from version: v1.0","container_id":""#),
        "{answer}"
    );
    assert!(in_turn(&six(own, "http://localhost"), 3));

    let logs = own.docker(&["service", "logs", "myappstack_web"]);
    let hostname = own.docker(&["node", "ls", "--format", "{{.Hostname}}"]);
    if own.images != Images::FastApi {
        assert_eq!(logs.lines().count(), 3, "{logs}");
    }
    let first = match own.images {
        Images::Program | Images::Nginx => "listening on",
        Images::FastApi => "INFO: ",
    };
    for line in logs.lines() {
        let (prefix, text) = line.split_once('|').unwrap();
        assert!(text.trim_start().starts_with(first), "{line}");
        assert!(
            prefix.starts_with("myappstack_web.") && prefix.trim_end().ends_with(&format!("@{hostname}")),
            "{line}"
        );
    }

    let said = own.docker(&["service", "scale", "myappstack_web=5"]);
    assert!(
        said.starts_with("myappstack_web scaled to 5") && said.contains("verify: Service myappstack_web converged"),
        "{said}"
    );
    assert_eq!(own.living_tasks().len(), 6);
    // The file is what counts in the end.
    write("docker-compose.yml", &compose(one, "v1.0", 4, ""));
    deploy("docker-compose.yml");
    assert_eq!(own.living_tasks().len(), 5);
    write("docker-compose.yml", &compose(one, "v1.0", 3, ""));
    deploy("docker-compose.yml");
    // Nothing else of it was touched: no task has a history.
    let ps = own.docker(&["stack", "ps", "myappstack"]);
    assert!(!ps.contains("\\_"), "{ps}");

    write(
        "docker-compose-rolling-update.yml",
        &compose("masungil/my-fastapi-app:2.0", "v2.0", 3, ""),
    );
    let versions = under_load(own, || drop(deploy("docker-compose-rolling-update.yml")));
    assert_eq!(versions.first().map(String::as_str), Some("v1.0"));
    assert_eq!(versions.last().map(String::as_str), Some("v2.0"));
    assert!(in_turn(&six(own, "http://localhost"), 3));
    // Back, for what comes next.
    under_load(own, || drop(deploy("docker-compose.yml")));

    let rollback = format!(
        "        failure_action: rollback\n      rollback_config:\n        parallelism: 1\n        delay: {}\n        order: stop-first\n",
        if is_whole() { "5s" } else { "1s" }
    );
    let file = "docker-compose-unhealthy-rollback.yml";
    write(
        file,
        &compose("masungil/my-fastapi-app:2.0-unhealthy", "v2.0", 3, &rollback),
    );
    let versions = under_load(own, || {
        own.docker(&["stack", "deploy", "-c", file, "myappstack"]);
        let state = || own.docker(&["service", "inspect", "-f", "{{.UpdateStatus.State}}", "myappstack_web"]);
        own.wait_for("the update to roll itself back", Duration::from_secs(180), || {
            state() == "rollback_completed"
        });
    });
    assert_eq!(versions, ["v1.0"]);
    let ps = columns(&own.docker(&["stack", "ps", "myappstack"]));
    let failed: Vec<_> = ps
        .iter()
        .filter(|row| row["IMAGE"].ends_with("2.0-unhealthy"))
        .collect();
    assert!(!failed.is_empty(), "{ps:?}");
    assert!(failed.iter().all(|row| row["DESIRED STATE"] == "Shutdown"), "{ps:?}");
    // Its predecessor serves all the while, and so is the older of the two.
    let end = failed.iter().find(|row| row["CURRENT STATE"].starts_with("Complete "));
    assert!(end.is_some_and(|row| row["ERROR"].is_empty()), "{ps:?}");
    assert!(
        ps.iter().any(|row| row["NAME"].starts_with(" \\_ myappstack_web.")),
        "{ps:?}"
    );
    let running = ps
        .iter()
        .filter(|row| row["IMAGE"] == one && row["CURRENT STATE"].starts_with("Running "));
    assert_eq!(running.count(), 3);

    let said = own.docker(&["stack", "rm", "--detach=false", "myappstack"]);
    for line in [
        "Removing service myappstack_nginx",
        "Removing service myappstack_web",
        "Removing network myappstack_default",
    ] {
        assert!(said.contains(line), "{said}");
    }
    own.wait_for("all tasks to end", LONG, || own.living_tasks().is_empty());
    assert_eq!(own.docker(&["stack", "ls"]).lines().count(), 1);
    own.wait_for("the ports to close", LONG, || own.curl("http://localhost").is_none());
    own.wait_for("nothing to be left", LONG, || is_nothing_left(own));
    let networks = own.docker(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(!networks.contains("myappstack"), "{networks}");
    own.docker(&["config", "rm", "nginx_config"]);
}

/// No container, no keeper and no file of a task.
fn is_nothing_left(own: &Own) -> bool {
    match own.tasks {
        Tasks::Processes => std::fs::read_dir(own.data_dir().join("tasks")).map_or(true, |tasks| tasks.count() == 0),
        Tasks::Containers => {
            let out = own.engine(&["ps", "-aq"]).stdout(Stdio::piped()).output().unwrap();
            out.stdout.is_empty()
        }
    }
}

fn run(name: &str, tasks: Tasks, images: Images, walkthrough: fn(&mut Own)) {
    if let Some(mut own) = rig::up_with(name, tasks, images) {
        walkthrough(&mut own);
    }
}

#[test]
fn services_as_processes() {
    run("w1p", Tasks::Processes, Images::Program, services);
}

#[test]
fn a_stack_as_processes() {
    run("w2p", Tasks::Processes, Images::Nginx, stack);
}

#[test]
fn services_as_containers() {
    run("w1c", Tasks::Containers, Images::Program, services);
}

#[test]
fn a_stack_as_containers() {
    run("w2c", Tasks::Containers, Images::Nginx, stack);
}

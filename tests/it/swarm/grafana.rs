//! The dashboard that is shipped for Grafana: each of its expressions gives data where Debian's Prometheus scrapes a real cluster
//! under load.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{no_failure, rig};

const NODES: [usize; 2] = [1, 2];

struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop((self.0.kill(), self.0.wait()));
    }
}

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/grafana/anynode.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn panels_have_names_and_units_and_do_not_overlap() {
    let dashboard = dashboard();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(!panel["title"].as_str().unwrap().is_empty());
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(places.insert((x, y)), "{} covers another", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        }
    }
}

#[test]
fn each_expression_of_the_dashboard_gives_data_of_a_cluster_under_load() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        println!("skipped: there is no prometheus here");
        return;
    }
    let Some(mut swarm) = rig::up("grafana", 2, 1) else {
        return;
    };
    for node in NODES {
        swarm.start_with(node, &[("ANYNODE_ADMIN", "0.0.0.0:9377")]);
    }
    swarm.create("tcp", &["--publish", "8080:80", "--replicas", "2"]);
    let http = [
        "--publish",
        "8081:80",
        "--replicas",
        "2",
        "--label",
        "anynode.mode=http",
    ];
    swarm.create("http", &http);
    for service in ["tcp", "http"] {
        swarm.wait_ready(&NODES, service, 2);
    }
    let targets = NODES.map(|node| format!("'{}:9377'", swarm.ip(node))).join(", ");
    let config = swarm.dir().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: anynode\n    static_configs: [{{ targets: [{targets}] }}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(swarm.dir().join("prometheus.log")).unwrap();
    let data = swarm.dir().join("prometheus");
    let child = swarm
        .client_command("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", data.display()))
        .arg("--web.listen-address=127.0.0.1:9090")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _prometheus = Prometheus(child);
    let loads = [8080, 8081].map(|port| swarm.load(&NODES, port, &["--pause-us", "5000", "--new"]));
    // An instant's vector, or a scalar: anything that is drawn.
    let has_data = |expr: &str| {
        let query = format!("query={expr}");
        let url = "http://127.0.0.1:9090/api/v1/query";
        let out = swarm.client(&["curl", "-sS", "-m", "10", "--data-urlencode", &query, url]);
        let answer: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        assert_ne!(answer["status"], "error", "{expr}: {answer}");
        let values = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let is_number = |value: &Value| value["value"][1].as_str().is_some_and(|text| text != "NaN");
        values.iter().any(is_number)
    };
    let mut exprs = BTreeSet::new();
    for panel in dashboard()["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap();
            let expr = expr.replace("$service", ".+").replace("$instance", ".+");
            let expr = expr.replace("$__rate_interval", "15s");
            assert!(!expr.contains('$'), "{expr}");
            exprs.insert(expr);
        }
    }
    assert!(exprs.len() > 30);
    // What names are chosen from.
    exprs.extend(["anynode_connections_active", "anynode_build_info"].map(str::to_owned));
    let begun = Instant::now();
    while !exprs.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no data of {exprs:#?}");
        for node in NODES {
            swarm.on_node(
                node,
                &["dig", "+time=1", "+tries=1", "@127.0.0.1", "-p", "8553", "http"],
            );
        }
        exprs.retain(|expr| !has_data(expr));
    }
    for (what, load) in ["tcp", "http"].iter().zip(loads) {
        no_failure(what, &load.stop());
    }
}

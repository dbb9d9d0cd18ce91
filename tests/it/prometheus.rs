//! What is shipped for Prometheus: judged by its own tool, and by what a node counts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/prometheus")
}

#[test]
fn each_alert_fires_when_it_is_to_and_not_before() {
    if Command::new("promtool").arg("--version").output().is_err() {
        println!("skipped: there is no promtool here");
        return;
    }
    for args in [
        &["check", "rules", "alerts.yml"][..],
        &["check", "config", "prometheus.yml"],
        &["test", "rules", "alerts.test.yml"],
    ] {
        let out = Command::new("promtool")
            .args(args)
            .current_dir(shipped())
            .output()
            .unwrap();
        assert!(out.status.success(), "{args:?}: {out:?}");
    }
    // None of them is without a test.
    let text = |name: &str| std::fs::read_to_string(shipped().join(name)).unwrap();
    let names = |text: &str, before: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(before));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(
        names(&text("alerts.yml"), "- alert: "),
        names(&text("alerts.test.yml"), "alertname: ")
    );
}

#[test]
fn alerts_ask_for_nothing_that_a_node_does_not_count() {
    let alerts = std::fs::read_to_string(shipped().join("alerts.yml")).unwrap();
    let mut counted = String::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            counted += &std::fs::read_to_string(path).unwrap();
        }
    }
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
    let names: BTreeSet<&str> = alerts
        .split(|c| !is_part(c))
        .filter(|word| word.starts_with("anynode_") || word.starts_with("process_"))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let family = ["_total", "_bucket"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        assert!(counted.contains(&format!("\"{family}\"")), "nobody counts {name}");
    }
}

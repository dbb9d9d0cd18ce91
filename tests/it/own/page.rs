//! What the page is told of a swarm in one binary: each step of a deployment, an update, and what fails.

use std::process::Command;

use super::rig::{self, LONG, Own, Tasks};
use crate::harness::wait_until;
use crate::page::Watcher;

fn watch(own: &Own) -> Watcher {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", own.netns_path().display())).arg("curl");
    let watcher = Watcher::with(nsenter, "http://127.0.0.1:9377/v1/stream");
    wait_until("the stream to tell all", || watcher.seen().is_whole);
    watcher
}

/// The key of the only node.
fn node_key(own: &Own) -> String {
    format!("node/{}", own.docker(&["node", "ls", "--quiet"]).trim())
}

/// States of the tasks of a service, in the order of their keys.
fn states(page: &Watcher, service: &str) -> Vec<String> {
    let seen = page.seen();
    let tasks = seen.objects.iter().filter(|(key, _)| key.starts_with("task/"));
    let of_service = tasks.filter(|(_, task)| task["service"] == service);
    of_service
        .map(|(_, task)| task["state"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_deployment_an_update_and_what_fails_are_told_as_they_go() {
    let Some(mut own) = rig::up("page", Tasks::Processes) else {
        return;
    };
    own.start();
    own.docker(&["swarm", "init"]);
    let page = watch(&own);
    assert_eq!(page.seen().hello["way"], "own");
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "web",
        "--replicas",
        "3",
        "--publish",
        "8080:8000",
        "--update-parallelism",
        "1",
        "--update-delay",
        "0s",
        "my-fastapi-whoami:latest",
    ]);
    let web = page.until("service/web", |web| web["wanted"] == 3 && web["ready"] == 3);
    assert_eq!(web["image"], "my-fastapi-whoami:latest", "{web}");
    let is_up =
        |states: &[String]| states.len() == 3 && states.iter().all(|state| ["ready", "untried"].contains(&&**state));
    wait_until("three tasks to take traffic", || is_up(&states(&page, "web")));
    page.until(&node_key(&own), |node| node["is_self"] == true);
    {
        let seen = page.seen();
        let own = seen
            .objects
            .iter()
            .find(|(key, node)| key.starts_with("node/") && node["is_self"] == true);
        let node = own.unwrap().0.strip_prefix("node/").unwrap();
        let mut tasks = seen.objects.iter().filter(|(key, _)| key.starts_with("task/"));
        assert!(
            tasks.all(|(_, task)| task["node"] == node && task["made_ms"].is_u64()),
            "{seen:?}"
        );
    }

    // Every step of an update is told.
    own.docker(&["service", "update", "--detach", "--force", "web"]);
    page.until("service/web", |web| web["update"]["state"] == "updating");
    page.until("service/web", |web| {
        web["update"]["state"] == "completed" && web["update"]["done"] == 3 && web["ready"] == 3
    });
    let is_over = || is_up(&states(&page, "web"));
    if std::panic::catch_unwind(|| wait_until("the old tasks to be gone", is_over)).is_err() {
        panic!("{:#?}", page.seen().objects);
    }

    // What cannot be placed or fails says why.
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "odd",
        "--constraint",
        "node.hostname==nowhere",
        "my-fastapi-whoami:latest",
    ]);
    wait_until("a task that waits for a node", || states(&page, "odd") == ["pending"]);
    let why = page
        .seen()
        .objects
        .values()
        .find(|task| task["service"] == "odd" && task["state"] == "pending")
        .cloned();
    assert!(
        why.unwrap()["why"].as_str().unwrap().contains("no suitable node"),
        "{:?}",
        page.seen()
    );
    own.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        "bad",
        "--restart-condition",
        "none",
        "--entrypoint",
        "/bin/false",
        "my-fastapi-whoami:latest",
    ]);
    page.until_event("has failed");
    own.docker(&["service", "rm", "web", "odd", "bad"]);
    for name in ["web", "odd", "bad"] {
        page.until_gone(&format!("service/{name}"));
    }
    own.wait_for("all tasks to be gone", LONG, || page.seen().names("task").is_empty());
    page.until_event("service web is gone");

    // The page goes on at the next run.
    own.update();
    page.until_over();
    let after = watch(&own);
    assert!(after.seen().names("service").is_empty(), "{:?}", after.seen());
}

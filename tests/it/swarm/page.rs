//! The page of a real Docker Swarm of three nodes: an update under load and a cable that is out, by the stream of every node and in a
//! browser.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{ALL, no_failure, rig};
use crate::harness::wait_until;
use crate::page::Watcher;
use crate::page::browser::Browser;

fn within(swarm: &rig::Swarm, node: usize, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", swarm.netns(node))).arg(program);
    command
}

/// The keys of the tasks of a service that are shown, and take traffic.
fn tasks(page: &Watcher, service: &str) -> BTreeSet<String> {
    let seen = page.seen();
    let is_it = |(key, task): &(&String, &serde_json::Value)| {
        let state = task["state"].as_str().unwrap_or_default();
        key.starts_with("task/") && task["service"] == service && ["ready", "untried"].contains(&state)
    };
    seen.objects.iter().filter(is_it).map(|(key, _)| key.clone()).collect()
}

#[test]
fn an_update_and_a_node_that_is_cut_off_are_on_the_page_of_every_node() {
    let Some(mut swarm) = rig::up("page", 3, 1) else { return };
    swarm.start_all();
    let options = [
        "--publish",
        "8080:80",
        "--replicas",
        "6",
        "--label",
        "anynode.mode=http",
    ];
    swarm.create("web", &options);
    swarm.wait_ready(&ALL, "web", 6);
    let pages = ALL.map(|node| {
        let page = Watcher::with(within(&swarm, node, "curl"), "http://127.0.0.1:9377/v1/stream");
        wait_until("the stream to tell all", || page.seen().is_whole);
        page
    });
    for page in &pages {
        assert_eq!(page.seen().hello["way"], "docker");
        wait_until("three nodes", || page.seen().names("node").len() == 3);
        wait_until("six tasks", || tasks(page, "web").len() == 6);
    }
    let first = tasks(&pages[0], "web");
    assert!(
        pages.iter().all(|page| tasks(page, "web") == first),
        "all show the same"
    );
    let browser = Browser::within(|program| within(&swarm, 2, program));
    if let Some(browser) = &browser {
        browser.view(1280, 900, false);
        browser.open("http://127.0.0.1:9377/");
        browser.until_text("1 services, 6 tasks");
        browser.until_text("Nothing is known to be wrong.");
    }

    // Each step of an update under load: what one node shows, all others show, and at once.
    let load = swarm.load(&ALL, 8080, &["--pause-us", "2000"]);
    let update = ["service", "update", "--detach", "--no-resolve-image", "--force"];
    let slowly = ["--update-order", "start-first", "--update-monitor", "500ms", "web"];
    swarm.docker(1, &[&update[..], &slowly].concat());
    let mut before = first.clone();
    let mut late_ms = Vec::new();
    let shown = || pages.each_ref().map(|page| tasks(page, "web"));
    let is_over = |now: &BTreeSet<String>| now.len() == 6 && now.is_disjoint(&first);
    let begun = Instant::now();
    while !is_over(&before) {
        assert!(begun.elapsed() < Duration::from_secs(90), "{before:?}");
        let now = shown();
        if now.iter().all(|one| *one == before) {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        // The first shows a step: it is over where all show the same.
        let at = Instant::now();
        let mut same = None;
        swarm.wait_for("all nodes to show a step", Duration::from_secs(30), || {
            let now = shown();
            let is_same = now.iter().all(|one| *one == now[0]);
            same = is_same.then(|| now[0].clone());
            is_same
        });
        late_ms.push(at.elapsed().as_millis());
        before = same.unwrap_or(before);
    }
    late_ms.sort_unstable();
    println!("all nodes show a step of the update after, in ms: {late_ms:?}");
    assert!(late_ms.len() >= 6, "six tasks were replaced one by one: {late_ms:?}");
    no_failure("an update that is watched", &load.stop());
    for page in &pages {
        page.until_event("endpoints of web came");
        page.until_event("endpoints of web left");
        // Figures are the cluster's.
        wait_until("the load to be seen", || {
            page.seen().figures["services"]["web"]["rate"].as_f64() > Some(10.0)
        });
        assert_eq!(page.seen().figures["nodes"], serde_json::json!([3, 3]));
    }

    // A cable that is out is seen by the others, and by the node itself.
    let key = |hostname: &str| {
        let seen = pages[0].seen();
        let mut nodes = seen.objects.iter().filter(|(key, _)| key.starts_with("node/"));
        nodes.find(|(_, node)| node["name"] == hostname).unwrap().0.clone()
    };
    let keys = ALL.map(|node| key(&format!("node{node}")));
    swarm.cluster(&["partition", "3"]);
    for page in &pages[..2] {
        page.until(&keys[2], |node| node["state"] == "down" && node["error"].is_string());
        page.until_problem("node node3 is down");
        page.until_event("node node3 is down, it was up");
    }
    for other in &keys[..2] {
        pages[2].until(other, |node| node["state"] == "down");
    }
    pages[2].until_problem("this node reaches none of the 2 other nodes");
    if let Some(browser) = &browser {
        browser.until_text("node node3 is down");
        assert_eq!(browser.run("document.querySelectorAll('.nodes li.down').length"), 1);
        browser.open(&format!("http://127.0.0.1:9377/#/{}", keys[2]));
        browser.until_text("State\ndown since");
        browser.open("http://127.0.0.1:9377/#/");
    }
    swarm.cluster(&["heal", "3"]);
    for page in &pages {
        for node in &keys {
            page.until(node, |node| node["state"] == "up");
        }
        wait_until("nothing to be wrong", || page.seen().names("problem").is_empty());
    }
    pages[2].until_event("no more: this node reaches none");
    if let Some(browser) = &browser {
        browser.until_text("Nothing is known to be wrong.");
        assert_eq!(browser.errors(), Vec::<String>::new());
    }
}

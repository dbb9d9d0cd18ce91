//! This node's endpoints before those of others: the machine is the node's namespace, and the far endpoint is in the task's.

use serde_json::Value;

use super::Place;
use crate::harness::wait_until;

#[test]
fn all_goes_to_what_is_near_until_it_fails_or_has_too_much() {
    let Some(mut place) = Place::set_up("near") else {
        return;
    };
    place.serve_in("node", "10.99.1.1:7001");
    place.serve_in("task", "10.99.2.2:7002");
    place.serve_in("client", "10.99.1.2:7003");
    let far = "10.99.2.2:7002, 10.99.1.2:7003";
    let declared = |more: &str| {
        format!(
            "services:\n  web: {{ publish: ['8080:80'], mode: http, prefer: local, {more}endpoints: [10.99.1.1:7001, {far}] }}\n"
        )
    };
    place.node(&declared(""));
    wait_until("an answer", || shares(&place, 1) != [0, 0, 0]);
    assert_eq!(shares(&place, 300), [300, 0, 0]);
    // With a hundred there the others get what comes next, in turn.
    let url = "http://10.99.1.1:8080/?delay=6000&[1-100]";
    let mut waiting = place
        .inside("client", "curl")
        .args(["-s", "-Z", "--parallel-immediate", "--parallel-max", "100", url])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a hundred in flight", || in_flight(&place) == 100);
    let [near, one, other] = shares(&place, 20);
    // Each worker gives in turn, by itself: which of them a connection comes to is for the kernel to say.
    assert!(near == 0 && one.min(other) >= 4, "{near}, {one}, {other}");
    waiting.wait().unwrap();
    assert_eq!(shares(&place, 20), [20, 0, 0]);
    // What fails is not waited for: the first that comes is answered from afar.
    let mut first = place.running.remove(0);
    first.kill().unwrap();
    first.wait().unwrap();
    let [near, one, other] = shares(&place, 40);
    assert!(near == 0 && one + other == 40 && one.min(other) >= 8, "{one}, {other}");
}

/// How many of `n` requests each of the three answered, one after the other.
fn shares(place: &Place, n: usize) -> [usize; 3] {
    let url = format!("http://10.99.1.1:8080/?[1-{n}]");
    let out = place
        .inside("client", "curl")
        .args(["-s", "-f", "-m", "20", &url])
        .output()
        .unwrap();
    let answers = serde_json::Deserializer::from_slice(&out.stdout).into_iter::<Value>();
    let slots: Vec<String> = answers
        .filter_map(|answer| Some(answer.ok()?["slot"].as_str()?.to_owned()))
        .collect();
    ["7001", "7002", "7003"].map(|slot| slots.iter().filter(|one| *one == slot).count())
}

/// At the near one.
fn in_flight(place: &Place) -> u64 {
    let status = place.status().unwrap_or_default();
    status["services"][0]["endpoints"][0]["in_flight"].as_u64().unwrap_or(0)
}

//! The link between nodes, on loopback: who gets in, what a bad peer may do, and what a tunnel keeps.
#![allow(
    clippy::disallowed_methods,
    reason = "both ends of a TLS stream by one test: its lock costs nothing that is measured"
)]

mod bad_peers;
mod certificates;
mod replication;
mod rig;
mod strangers;
mod succession;
mod tunnels;

use serde_json::json;

use crate::harness::PATIENCE;

#[tokio::test]
async fn calls_are_answered_and_say_who_called() {
    let all = ["w1", "w2"];
    let site = rig::Site::new();
    let w1 = site.start("w1", rig::cluster(1, &all));
    let w2 = site.start("w2", rig::cluster(1, &all));
    w1.links_to(&[&w2]);
    rig::until("the link", || w1.is_up("w2")).await;
    let answer = w1.peers.call("w2", "echo", json!(7), PATIENCE).await.unwrap();
    assert_eq!(answer, json!({ "caller": "w1", "role": "worker", "body": 7 }));
    let error = w1.peers.call("w2", "nonsense", json!(7), PATIENCE).await.unwrap_err();
    assert!(error.contains("no such call: nonsense"), "{error}");
    assert!(w1.peers.call("w9", "echo", json!(7), PATIENCE).await.is_err());
}

//! What a tunnel keeps of a connection, what it costs to open one, and what is seen of a node that ends or freezes.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anynode::link::TunnelRequest;
use anynode::model::Asker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::rig::*;

const ALL: [&str; 3] = ["m1", "w1", "w2"];

fn pair(site: &Site) -> (Node, Node) {
    (site.start("w1", cluster(1, &ALL)), site.start("w2", cluster(1, &ALL)))
}

#[tokio::test]
async fn an_end_goes_one_way_only_and_leaves_the_other_open() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    let mut tunnel = w1.dial(&w2, "listens").await.unwrap();
    tunnel.write_all(b"everything").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut text = String::new();
    ends("the answer", tunnel.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "heard everything");
    let mut tunnel = w1.dial(&w2, "speaks").await.unwrap();
    let mut text = String::new();
    ends("the speech", tunnel.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "all I have to say");
    tunnel.write_all(b"and I go on").await.unwrap();
    tunnel.shutdown().await.unwrap();
    until("it to be heard", || w2.log.has("speaks: and I go on")).await;
}

#[tokio::test]
async fn an_end_without_goodbye_is_a_reset_on_either_side() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    let mut tunnel = w1.dial(&w2, "resets").await.unwrap();
    let mut text = [0; 9];
    ends("the start", tunnel.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"half a wo");
    tunnel.write_all(b"!").await.unwrap();
    let error = ends("the reset", tunnel.read_exact(&mut text)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    for n in [0, 1, 100_000] {
        let before = w2.stat(|stats| &stats.accepted);
        let mut tunnel = w1.dial(&w2, "reads").await.unwrap();
        tunnel.write_all(&vec![7; n]).await.unwrap();
        tunnel.flush().await.unwrap();
        drop(tunnel);
        until("the reset", || w2.log.has("reads: ConnectionReset")).await;
        w2.log.clear();
        assert!(w2.stat(|stats| &stats.accepted) >= before);
    }
    // An orderly end is none.
    let mut tunnel = w1.dial(&w2, "reads").await.unwrap();
    tunnel.write_all(b"12345").await.unwrap();
    tunnel.shutdown().await.unwrap();
    until("the end", || w2.log.has("reads: 5")).await;
    // A node that dies says no goodbye.
    let mut w2 = w2;
    let mut tunnel = w1.dial(&w2, "echo").await.unwrap();
    w2.kill();
    let error = ends("the reset", tunnel.read_exact(&mut text)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn who_does_not_read_is_not_written_for() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    let mut tunnel = w1.dial(&w2, "waits").await.unwrap();
    let piece = noise(3, 64 << 10);
    let mut sent = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_millis(700), tunnel.write(&piece)).await {
            Ok(n) => sent.extend_from_slice(&piece[..n.unwrap()]),
            Err(_) => break,
        }
        assert!(sent.len() < 64 << 20, "nothing holds it back");
    }
    println!("{} KiB lie between a writer and who does not read", sent.len() >> 10);
    // All of it arrives once it is read.
    tunnel.shutdown().await.unwrap();
    let mut digest = Vec::new();
    ends("the digest", tunnel.read_to_end(&mut digest)).await.unwrap();
    assert_eq!(digest, sha(&sent));
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    let tunnel = w1.dial(&w2, "both").await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(tunnel);
    let mine = noise(1, BOTH_BYTES);
    let write = async {
        writer.write_all(&mine).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let digest = digest_of(&mut reader, BOTH_BYTES).await.unwrap();
        let mut theirs = Vec::new();
        reader.read_to_end(&mut theirs).await.unwrap();
        (digest, theirs)
    };
    let ((got, heard), ()) = ends("both ways", async { tokio::join!(read, write) }).await;
    assert_eq!(got, sha(&noise(2, BOTH_BYTES)));
    assert_eq!(heard, sha(&mine));
}

#[tokio::test]
async fn each_refusal_has_its_kind_of_error() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    for round in 0..3 {
        for (task, kind) in [
            ("refused", ErrorKind::ConnectionRefused),
            ("slow", ErrorKind::TimedOut),
            ("gone", ErrorKind::NotFound),
            ("not-allowed", ErrorKind::PermissionDenied),
        ] {
            let error = w1.dial(&w2, task).await.err().unwrap();
            assert_eq!(error.kind(), kind, "{task}, round {round}: {error}");
        }
    }
    let mut w2 = w2;
    w2.kill();
    w1.dial(&w2, "echo").await.err().unwrap();
}

#[tokio::test]
async fn the_client_is_carried_along() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    let client = Some((
        "[2001:db8::7]:4711".parse().unwrap(),
        "[2001:db8::1]:80".parse().unwrap(),
    ));
    let request = TunnelRequest {
        task: "client".to_owned(),
        target: 80,
        client,
        asker: Some(Asker::Network("back".into())),
    };
    let (dialer, node, addr) = (w1.dialer.clone(), Arc::from("w2"), w2.addr);
    let mut tunnel = w1
        .on(async move { dialer.dial(node, addr, request).await })
        .await
        .unwrap();
    let mut text = String::new();
    tunnel.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, format!("{client:?} {:?}", Some(Asker::Network("back".into()))));
}

#[tokio::test]
async fn tunnels_opened_ahead_are_used() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    w1.echo(&w2).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let unready = w1.stat(|stats| &stats.dials_unready);
    for _ in 0..200 {
        w1.echo(&w2).await.unwrap();
        // As fast as they can be opened again, debug builds being slow.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let unready = w1.stat(|stats| &stats.dials_unready) - unready;
    println!("{unready} of 200 dials found none ready");
    assert!(unready <= 20, "{unready} of 200");
    assert_eq!(w1.stat(|stats| &stats.dials), 201);
}

#[tokio::test]
async fn tunnels_opened_ahead_to_where_the_node_was_are_not_used() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    w1.echo(&w2).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // The machine is gone, and nobody says so; its node comes up elsewhere.
    let frozen = w2.freeze();
    let again = site.start("w2", cluster(1, &ALL));
    w1.echo(&again).await.unwrap();
    drop(frozen);
}

#[tokio::test]
async fn tunnels_opened_ahead_that_ended_cost_no_failure() {
    let site = Site::new();
    let (w1, mut w2) = pair(&site);
    for _ in 0..5 {
        w1.echo(&w2).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        w2.kill();
        let options = Options {
            addr: w2.addr,
            ..Options::default()
        };
        w2 = site.start_with("w2", cluster(1, &ALL), options);
        w1.echo(&w2).await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_drains_is_left_by_what_is_new_and_finishes_what_is_open() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    w1.links_to(&[&w2]);
    w1.echo(&w2).await.unwrap();
    let mut open = w1.dial(&w2, "echo").await.unwrap();
    until("tunnels ahead, and the link", || w2.n_sockets() >= 4 && w1.is_up("w2")).await;
    assert!(!open.is_leaving());
    let since = Instant::now();
    w2.state.drain();
    until("it to be known", || open.is_leaving()).await;
    println!("known after {:?}", since.elapsed());
    until("the idle ones to end", || w2.n_sockets() <= 2).await;
    let said = w1.peers.table()["w2"].report.clone().unwrap();
    assert!(said.is_draining);
    open.write_all(b"still").await.unwrap();
    let mut back = [0; 5];
    ends("the echo", open.read_exact(&mut back)).await.unwrap();
    open.shutdown().await.unwrap();
    ends("the end", open.read_to_end(&mut Vec::new())).await.unwrap();
    // A new run of the program in its place is not leaving. Meanwhile the node is not up, and not silent: it refuses.
    let addr = w2.addr;
    drop(w2);
    until("the link to be lost", || !w1.is_up("w2")).await;
    assert!(!w1.is_silent("w2"));
    let options = Options {
        addr,
        ..Options::default()
    };
    let w2 = site.start_with("w2", cluster(1, &ALL), options);
    w1.echo(&w2).await.unwrap();
    let tunnel = w1.dial(&w2, "echo").await.unwrap();
    assert!(!tunnel.is_leaving());
}

#[tokio::test]
async fn a_dial_to_a_frozen_node_ends_when_the_caller_says() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    w1.links_to(&[&w2]);
    w1.echo(&w2).await.unwrap();
    until("the link", || w1.is_up("w2")).await;
    let frozen = w2.freeze();
    for _ in 0..10 {
        let (dialer, addr) = (w1.dialer.clone(), w2.addr);
        let dialed = w1
            .on(async move {
                let dial = dialer.dial("w2".into(), addr, request("echo"));
                tokio::time::timeout(Duration::from_millis(100), dial).await.is_ok()
            })
            .await;
        assert!(!dialed);
    }
    until("the link to be lost", || !w1.is_up("w2")).await;
    assert!(w1.is_silent("w2"));
    drop(frozen);
    until("the link again", || w1.is_up("w2")).await;
    assert!(!w1.is_silent("w2"));
    w1.echo(&w2).await.unwrap();
    let n = w1.n_tasks();
    assert!(n < 50, "{n} tasks are left");
}

/// `cargo test --test it -- link::tunnels::figures --ignored --nocapture`, alone on a quiet machine.
#[tokio::test]
#[ignore = "measures; asserts nothing"]
async fn figures() {
    let site = Site::new();
    let (w1, w2) = pair(&site);
    let (dialer, addr) = (w1.dialer.clone(), w2.addr);
    let (mut ready, mut unready) = w1
        .on(async move {
            let (mut ready, mut unready) = (Vec::new(), Vec::new());
            for n in 0..300 {
                // Another node's name is another pool; the name is the same in lower case.
                let since = Instant::now();
                let tunnel = dialer.dial("w2".into(), addr, request("echo")).await.unwrap();
                match n {
                    0 => unready.push(since.elapsed()),
                    _ => ready.push(since.elapsed()),
                }
                drop(tunnel);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (ready, unready)
        })
        .await;
    for _ in 0..30 {
        let fresh = site.start("m1", cluster(1, &ALL));
        let (dialer, addr) = (fresh.dialer.clone(), w2.addr);
        let took = fresh
            .on(async move {
                let since = Instant::now();
                dialer.dial("w2".into(), addr, request("echo")).await.unwrap();
                since.elapsed()
            })
            .await;
        unready.push(took);
    }
    for (what, took) in [("opened ahead", &mut ready), ("not opened ahead", &mut unready)] {
        took.sort_unstable();
        println!(
            "dial, {what}: p50 {:?}, p99 {:?}",
            took[took.len() / 2],
            took[took.len() * 99 / 100]
        );
    }
    let tunnel = w1.dial(&w2, "reads").await.unwrap();
    let (cpu, since) = (cpu_ms(), Instant::now());
    let bytes = w1
        .on(async move {
            let mut tunnel = tunnel;
            let piece = vec![7; 256 << 10];
            for _ in 0..2048 {
                tunnel.write_all(&piece).await.unwrap();
            }
            tunnel.shutdown().await.unwrap();
            ends("the end", tunnel.read_to_end(&mut Vec::new())).await.unwrap();
            2048_u64 * (256 << 10)
        })
        .await;
    let gb = bytes as f64 / 1e9;
    println!(
        "{gb:.2} GB in {:?}: {:.0} ms of CPU a GB, both ends",
        since.elapsed(),
        (cpu_ms() - cpu) / gb
    );
}

/// Of this process so far.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // In ticks of 10 ms.
    [11, 12].map(|n| fields[n].parse::<f64>().unwrap()).iter().sum::<f64>() * 10.0
}

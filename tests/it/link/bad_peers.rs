//! A peer that stalls, floods or sends garbage costs its own connection only, and gives everything back.

use std::time::{Duration, Instant};

use anynode::link::Role;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::rig::*;
use super::strangers::preface;

/// Plays one bad peer until the node ends its connection. The node must do so by itself.
async fn misbehave(how: &str, node: std::net::SocketAddr, own: Certificate) {
    match how {
        "garbage before TLS" => {
            let mut stream = TcpStream::connect(node).await.unwrap();
            // Whether all of it is read does not matter.
            let _ = stream.write_all(&noise(1, 5000)).await;
            gone(stream).await;
        }
        "silence before TLS" => gone(TcpStream::connect(node).await.unwrap()).await,
        "half a handshake" => {
            let mut stream = TcpStream::connect(node).await.unwrap();
            stream.write_all(b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc").await.unwrap();
            gone(stream).await;
        }
        "garbage for frames" => {
            let mut stream = raw(node, CONTROL, Some(&own)).await.unwrap();
            stream.write_all(b"\x00\x00\x00\x05{what").await.unwrap();
            gone(stream).await;
        }
        "a frame of 1 GiB" => {
            let mut stream = raw(node, CONTROL, Some(&own)).await.unwrap();
            stream.write_all(&(1_u32 << 30).to_be_bytes()).await.unwrap();
            gone(stream).await;
        }
        "silence after the handshake" => gone(raw(node, CONTROL, Some(&own)).await.unwrap()).await,
        "half a frame" => {
            let mut stream = raw(node, CONTROL, Some(&own)).await.unwrap();
            stream.write_all(b"\x00\x00\x00\x50{\"type\":").await.unwrap();
            gone(stream).await;
        }
        // Never says what for.
        "half a preface" => {
            let mut stream = raw(node, TUNNEL, Some(&own)).await.unwrap();
            stream.read_u64().await.unwrap();
            stream.write_all(&preface("echo")[..20]).await.unwrap();
            gone(stream).await;
        }
        "a garbled preface" => {
            let mut stream = raw(node, TUNNEL, Some(&own)).await.unwrap();
            stream.write_all(b"\x00\x02{}\r\n\r\n\0\r\nQUIT\n").await.unwrap();
            gone(stream).await;
        }
        "a preface without a PROXY header" => {
            let mut stream = raw(node, TUNNEL, Some(&own)).await.unwrap();
            let good = preface("echo");
            let head = &good[..good.len() - 16];
            stream.write_all(&[head, &[b'x'; 400]].concat()).await.unwrap();
            gone(stream).await;
        }
        "a flood of pings" => {
            let stream = raw(node, CONTROL, Some(&own)).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let write = async { while tell(&mut writer, &ping(1)).await.is_ok() {} };
            let read = async { while hear(&mut reader).await.is_ok() {} };
            ends(how, async { tokio::join!(read, write) }).await;
        }
        "a flood of calls" => {
            let stream = raw(node, CONTROL, Some(&own)).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let call = json!({ "type": "call", "id": 1, "method": "never", "body": null });
            let write = async { while tell(&mut writer, &call).await.is_ok() {} };
            let read = async { while hear(&mut reader).await.is_ok() {} };
            ends(how, async { tokio::join!(read, write) }).await;
        }
        // Asks for the cluster again and again, and reads nothing.
        "reads nothing" => {
            let mut stream = raw(node, CONTROL, Some(&own)).await.unwrap();
            let subscribe = json!({ "type": "subscribe", "revision": 0, "digest": "0".repeat(32) });
            let write = async {
                while tell(&mut stream, &subscribe).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            ends(how, write).await;
        }
        _ => unreachable!("{how}"),
    }
}

async fn gone(mut stream: impl AsyncReadExt + Unpin) {
    let mut bytes = Vec::new();
    // How it ends does not matter here.
    let _ = ends("a bad peer's connection", stream.read_to_end(&mut bytes)).await;
}

const BAD: [&str; 13] = [
    "garbage before TLS",
    "silence before TLS",
    "half a handshake",
    "garbage for frames",
    "a frame of 1 GiB",
    "silence after the handshake",
    "half a frame",
    "half a preface",
    "a garbled preface",
    "a preface without a PROXY header",
    "a flood of pings",
    "a flood of calls",
    "reads nothing",
];

#[tokio::test]
async fn bad_peers_cost_their_own_connection_only_and_all_is_given_back() {
    let site = Site::new();
    let mut large = cluster(1, &["m1", "w1", "w2"]);
    // Larger than what fits into sockets' buffers a few times.
    for n in 0..5000 {
        large.put(node(&format!("x{n:030}"), LOOPBACK));
    }
    let m1 = site.start("m1", large.clone());
    let w1 = site.start("w1", large);
    let (n_tasks, n_sockets) = (m1.n_tasks(), m1.n_sockets());
    w1.links_to(&[&m1]);
    until("the link", || w1.is_up("m1")).await;
    let mut bad = tokio::task::JoinSet::new();
    for how in BAD {
        for _ in 0..3 {
            let own = site.certificate("w2", Role::Worker, LONG_LIFE);
            let node = m1.addr;
            bad.spawn(async move {
                misbehave(how, node, own).await;
                how
            });
        }
    }
    let started = Instant::now();
    let (mut n_good, mut longest) = (0, Duration::ZERO);
    while !bad.is_empty() {
        let since = Instant::now();
        w1.echo(&m1).await.unwrap();
        longest = longest.max(since.elapsed());
        n_good += 1;
        assert!(w1.is_up("m1"), "the good link stays up");
        tokio::time::sleep(Duration::from_millis(20)).await;
        while let Some(ended) = bad.try_join_next() {
            println!("{:?}: {}", started.elapsed(), ended.unwrap());
        }
        assert!(started.elapsed() < PATIENCE);
    }
    println!("{n_good} good tunnels meanwhile, the slowest took {longest:?}");
    assert!(n_good > 10);
    drop(w1);
    until("all tasks to end", || m1.n_tasks() <= n_tasks).await;
    until("all sockets to be closed", || m1.n_sockets() <= n_sockets).await;
}

#[tokio::test]
async fn one_node_does_not_take_all_control_connections() {
    let site = Site::new();
    let all = ["m1", "w1", "w2"];
    let m1 = site.start("m1", cluster(1, &all));
    let own = site.certificate("w2", Role::Worker, LONG_LIFE);
    let mut held = Vec::new();
    for n in 0..100 {
        let mut stream = raw(m1.addr, CONTROL, Some(&own)).await.unwrap();
        // The newest is served always: those before it may be of a run that is gone.
        tell(&mut stream, &ping(n)).await.unwrap();
        assert_eq!(hear_type(&mut stream, "pong").await.unwrap()["n"], n);
        held.push(stream);
    }
    let mut n_open = 0;
    for mut stream in held {
        n_open += usize::from(tell(&mut stream, &ping(1)).await.is_ok() && hear(&mut stream).await.is_ok());
    }
    assert!((2..50).contains(&n_open), "{n_open} of 100 are open still");
    let w1 = site.start("w1", cluster(1, &all));
    w1.links_to(&[&m1]);
    until("the link of another", || w1.is_up("m1")).await;
}

#[tokio::test]
async fn a_node_that_floods_whoever_dials_it_is_hung_up_on() {
    let site = Site::new();
    let all = ["m1", "w1", "w2"];
    let w1 = site.start("w1", cluster(1, &all));
    let m1 = site.start("m1", cluster(1, &all));
    let own = site.certificate("w2", Role::Worker, LONG_LIFE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bad = m1.target();
    (bad.node, bad.addr, bad.is_manager) = ("w2".into(), listener.local_addr().unwrap(), false);
    w1.targets.send_replace(vec![m1.target(), bad]);
    let stream = raw_accept(&listener, CONTROL, &own).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut instance = 0;
    let flood = async {
        loop {
            instance += 1;
            let pong = json!({ "type": "pong", "n": 0, "report": report(instance, false) });
            if tell(&mut writer, &pong).await.is_err() {
                break;
            }
        }
    };
    let read = async { while hear(&mut reader).await.is_ok() {} };
    ends("the flood", async {
        tokio::select! {
            () = flood => {}
            () = read => {}
        }
    })
    .await;
    assert!(instance > 100, "a few are borne");
    w1.echo(&m1).await.unwrap();
    until("the good link", || w1.is_up("m1")).await;
    // Nor may a worker hold much of our memory.
    let mut stream = raw_accept(&listener, CONTROL, &own).await.unwrap();
    stream.write_all(&(32_u32 << 20).to_be_bytes()).await.unwrap();
    gone(stream).await;
}

#[tokio::test]
async fn nobody_says_of_another_that_it_is_leaving() {
    let site = Site::new();
    let all = ["m1", "w1", "w2"];
    let (m1, w1) = (site.start("m1", cluster(1, &all)), site.start("w1", cluster(1, &all)));
    let own = site.certificate("w2", Role::Worker, LONG_LIFE);
    let tunnel = w1.dial(&m1, "echo").await.unwrap();
    let mut control = raw(w1.addr, CONTROL, Some(&own)).await.unwrap();
    let mut lie = ping(1);
    lie["report"]["instance"] = json!(m1.state.instance);
    lie["report"]["is_draining"] = json!(true);
    tell(&mut control, &lie).await.unwrap();
    hear_type(&mut control, "pong").await.unwrap();
    assert!(!tunnel.is_leaving(), "w2 has nothing to say about m1");
}

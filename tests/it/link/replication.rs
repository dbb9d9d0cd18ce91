//! All nodes come to hold the cluster that the managers hold, whatever happens to managers and messages, and never go back
//! on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anynode::link::Role;
use anynode::model::{Cluster, ClusterObject, ClusterTask};
use serde_json::json;
use tokio::net::TcpListener;

use super::rig::*;

fn task(n: u64, slot: u64) -> ClusterObject {
    ClusterObject::Task(ClusterTask {
        id: format!("t{n}"),
        service: "s1".to_owned(),
        node: "w1".to_owned(),
        slot,
        addresses: Default::default(),
        names: Vec::new(),
    })
}

fn holds(node: &Node, truth: &Cluster) -> bool {
    let has = node.cluster.borrow();
    has.revision() == truth.revision() && has.digest() == truth.digest()
}

#[tokio::test]
async fn a_follower_of_managers_that_come_and_go_ends_with_the_same_and_never_goes_back() {
    let all = ["m1", "m2", "w1"];
    let site = Site::new();
    let mut truth = cluster(1, &all);
    let mut managers = ["m1", "m2"].map(|id| Some(site.start(id, truth.clone())));
    let addrs = managers.each_ref().map(|manager| manager.as_ref().unwrap().addr);
    let targets: Vec<_> = managers.iter().flatten().map(Node::target).collect();
    let w1 = site.start("w1", Cluster::default());
    let mut published = w1.cluster.subscribe();
    let watched = tokio::spawn(async move {
        let (mut revision, mut n) = (0, 0);
        while published.changed().await.is_ok() {
            let now = published.borrow_and_update().revision();
            assert!(now >= revision, "{now} after {revision}");
            (revision, n) = (now, n + 1);
        }
        n
    });
    w1.targets.send_replace(targets);
    let mut random = fastrand::Rng::with_seed(7);
    let mut n_kills = 0;
    let mut behind = [truth.clone(), truth.clone()];
    for revision in 2..1002 {
        for _ in 0..random.u64(1..4) {
            let n = random.u64(..50);
            match random.u8(..3) {
                0 => truth.remove(&format!("task/t{n}")),
                _ => truth.put(task(n, random.u64(..5))),
            }
        }
        truth.set_revision(revision);
        for (n, manager) in managers.iter_mut().enumerate() {
            // One may be behind the other, but not for ever.
            if random.u8(..4) > 0 {
                behind[n] = truth.clone();
            }
            match manager {
                Some(running) if random.u8(..100) == 0 => {
                    running.kill();
                    *manager = None;
                    n_kills += 1;
                }
                Some(running) => drop(running.cluster.send_replace(Arc::new(behind[n].clone()))),
                None if random.u8(..20) == 0 => {
                    let options = Options {
                        addr: addrs[n],
                        ..Options::default()
                    };
                    *manager = Some(site.start_with(["m1", "m2"][n], behind[n].clone(), options));
                }
                None => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..6))).await;
    }
    assert!(n_kills >= 5, "{n_kills}");
    for (n, manager) in managers.iter_mut().enumerate() {
        let options = Options {
            addr: addrs[n],
            ..Options::default()
        };
        let running = manager.get_or_insert_with(|| site.start_with(["m1", "m2"][n], truth.clone(), options));
        running.cluster.send_replace(Arc::new(truth.clone()));
    }
    until("the follower to hold the truth", || holds(&w1, &truth)).await;
    let changes = w1.stat(|stats| &stats.changes);
    let resyncs = w1.stat(|stats| &stats.resyncs);
    drop(w1);
    let n = watched.await.unwrap();
    println!("{n_kills} kills, {changes} changes taken, {n} clusters published, {resyncs} resyncs");
    assert!(n > 50);
    assert_eq!(resyncs, 0);
}

#[tokio::test]
async fn what_a_manager_says_wrongly_leads_to_asking_for_the_whole() {
    let site = Site::new();
    let own = site.certificate("m1", Role::Manager, LONG_LIFE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let w1 = site.start("w1", Cluster::default());
    let mut target = w1.target();
    (target.node, target.addr, target.is_manager) = ("m1".into(), listener.local_addr().unwrap(), true);
    w1.targets.send_replace(vec![target]);
    let truth = cluster(5, &["m1", "w1"]);
    let mut lie = truth.whole();
    lie.digest = cluster(5, &["m1"]).digest();
    let mut stream = raw_accept(&listener, CONTROL, &own).await.unwrap();
    hear_type(&mut stream, "subscribe").await.unwrap();
    // A change that is not the whole.
    let mut step = lie.clone();
    step.is_whole = false;
    tell(&mut stream, &json!({ "type": "change", "change": step }))
        .await
        .unwrap();
    let again = hear_type(&mut stream, "subscribe").await.unwrap();
    assert_eq!(
        (&again["revision"], &again["digest"]),
        (&json!(0), &json!("0".repeat(32)))
    );
    assert!(w1.cluster.borrow().is_empty(), "nothing of it is believed");
    assert_eq!(w1.stat(|stats| &stats.resyncs), 1);
    tell(&mut stream, &json!({ "type": "change", "change": truth.whole() }))
        .await
        .unwrap();
    let taken = hear_type(&mut stream, "taken").await.unwrap();
    assert_eq!(taken["digest"], json!(truth.digest()));
    until("the cluster", || holds(&w1, &truth)).await;
    // Who says the whole wrongly too is not asked as fast as it answers.
    let since = Instant::now();
    let mut n_asked = 0;
    while since.elapsed() < Duration::from_secs(3) {
        lie.revision += 1;
        let said = tell(&mut stream, &json!({ "type": "change", "change": lie })).await;
        let heard = match said {
            Ok(()) => hear_type(&mut stream, "subscribe").await,
            Err(error) => Err(error),
        };
        match heard {
            Ok(_) => n_asked += 1,
            Err(_) => {
                stream = raw_accept(&listener, CONTROL, &own).await.unwrap();
                hear_type(&mut stream, "subscribe").await.unwrap();
                n_asked += 1;
            }
        }
    }
    assert!((1..40).contains(&n_asked), "asked {n_asked} times in 3 s");
    assert!(holds(&w1, &truth), "what was good stays");
}

#[tokio::test]
async fn the_loss_of_one_manager_is_not_noticed() {
    let all = ["m1", "m2", "w1"];
    let site = Site::new();
    let mut m1 = site.start("m1", cluster(1, &all));
    let m2 = site.start("m2", cluster(1, &all));
    let w1 = site.start("w1", Cluster::default());
    w1.links_to(&[&m1, &m2]);
    until("the first", || holds(&w1, &cluster(1, &all))).await;
    until("both links", || w1.is_up("m1") && w1.is_up("m2")).await;
    m1.kill();
    for revision in 2..22 {
        let mut next = cluster(revision, &all);
        next.put(task(revision, 1));
        let since = Instant::now();
        m2.cluster.send_replace(Arc::new(next.clone()));
        until("the other's change", || holds(&w1, &next)).await;
        if revision == 2 {
            println!("the next change came after {:?}", since.elapsed());
        }
    }
    assert_eq!(w1.stat(|stats| &stats.resyncs), 0);
}

#[tokio::test]
async fn a_worker_that_says_that_it_gives_the_cluster_is_not_believed() {
    let site = Site::new();
    let truth = cluster(5, &["m1", "w1", "w2"]);
    let own = site.certificate("w2", Role::Worker, LONG_LIFE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let w1 = site.start("w1", truth.clone());
    let mut target = w1.target();
    // Even where the swarm calls it a manager: its certificate counts.
    (target.node, target.addr, target.is_manager) = ("w2".into(), listener.local_addr().unwrap(), true);
    w1.targets.send_replace(vec![target]);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        let mut stream = raw_accept(&listener, CONTROL, &own).await.unwrap();
        while let Ok(Ok(message)) = tokio::time::timeout(Duration::from_secs(2), hear(&mut stream)).await {
            assert_ne!(message["type"], "subscribe");
            if message["type"] == "ping" {
                let pong = json!({ "type": "pong", "n": message["n"], "report": report(9, true) });
                let lie = json!({ "type": "change", "change": cluster(99, &["w2"]).whole() });
                if tell(&mut stream, &pong).await.is_err() || tell(&mut stream, &lie).await.is_err() {
                    break;
                }
            }
            if since.elapsed() >= Duration::from_secs(4) {
                break;
            }
        }
    }
    assert!(holds(&w1, &truth));
}

#[tokio::test]
async fn a_cluster_that_takes_long_to_send_arrives_all_the_same() {
    let site = Site::new();
    let own = site.certificate("m1", Role::Manager, LONG_LIFE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let w1 = site.start("w1", Cluster::default());
    let mut target = w1.target();
    (target.node, target.addr, target.is_manager) = ("m1".into(), listener.local_addr().unwrap(), true);
    w1.targets.send_replace(vec![target]);
    let truth = cluster(5, &["m1", "w1"]);
    let mut stream = raw_accept(&listener, CONTROL, &own).await.unwrap();
    hear_type(&mut stream, "subscribe").await.unwrap();
    // As over a thin line: a piece every 200 ms, for longer than silence is borne.
    let text = json!({ "type": "change", "change": truth.whole() }).to_string();
    let mut frame = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    for piece in frame.chunks(frame.len() / 15) {
        use tokio::io::AsyncWriteExt;
        stream.write_all(piece).await.unwrap();
        stream.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    until("the cluster", || holds(&w1, &truth)).await;
}

#[tokio::test]
async fn a_reader_on_a_thin_line_gets_the_whole_cluster() {
    use tokio::io::AsyncReadExt;
    let site = Site::new();
    let mut large = cluster(1, &["m1", "w1"]);
    for n in 0..60_000 {
        large.put(task(n, 1));
    }
    let m1 = site.start("m1", large.clone());
    let own = site.certificate("w1", Role::Worker, LONG_LIFE);
    // A small window, so that what is not read stays with the manager.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let stream = socket.connect(m1.addr).await.unwrap();
    let stream = raw_with(stream, raw_config(CONTROL, Some(&own))).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let subscribe = json!({ "type": "subscribe", "revision": 0, "digest": "0".repeat(32) });
    tell(&mut writer, &subscribe).await.unwrap();
    let length = ends("the head", reader.read_u32()).await.unwrap() as usize;
    let since = Instant::now();
    let (mut n, mut piece) = (0, vec![0; length / 90]);
    while n < length {
        let most = piece.len().min(length - n);
        reader.read_exact(&mut piece[..most]).await.unwrap();
        n += most;
        tokio::time::sleep(Duration::from_millis(80)).await;
    }
    println!("{length} bytes in {:?}", since.elapsed());
    assert!(
        since.elapsed() > Duration::from_secs(6),
        "as slow as it was meant to be"
    );
}

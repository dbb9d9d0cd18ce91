//! An update of a node: the links of the others go over to its next run at once, and what is open to the one before stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anynode::link::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use super::rig::*;

const ALL: [&str; 2] = ["m1", "w1"];

fn hands_over() -> Options {
    Options {
        hands_over: true,
        ..Options::default()
    }
}

/// A manager that may hand over, and a worker that is linked to it.
async fn pair(site: &Site) -> (Node, Node) {
    let m1 = site.start_with("m1", cluster(1, &ALL), hands_over());
    let w1 = site.start("w1", cluster(1, &ALL));
    w1.links_to(&[&m1]);
    until("the link", || w1.is_up("m1") && w1.peers.is_following()).await;
    (m1, w1)
}

/// A worker, and the listener of a manager that is played by hand, with its certificate.
async fn by_hand(site: &Site) -> (Node, TcpListener, Certificate) {
    let own = site.certificate("m1", Role::Manager, LONG_LIFE);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let w1 = site.start("w1", cluster(1, &ALL));
    let mut target = w1.target();
    (target.node, target.addr, target.is_manager) = ("m1".into(), listener.local_addr().unwrap(), true);
    w1.targets.send_replace(vec![target]);
    (w1, listener, own)
}

/// What a run answers that ends.
fn ending(instance: u64, ping: &Value) -> Value {
    let mut report = report(instance, false);
    report["is_draining"] = json!(true);
    json!({ "type": "pong", "n": ping["n"], "report": report })
}

/// Answers whoever asks how it is, and says that it ends once it is talked to. `None`: who had connected is gone.
async fn answer_as(listener: &TcpListener, own: &Certificate, instance: u64) -> Option<TlsStream<TcpStream>> {
    let mut stream = raw_accept(listener, CONTROL, own).await.ok()?;
    let ping = hear_type(&mut stream, "ping").await.ok()?;
    let pong = json!({ "type": "pong", "n": ping["n"], "report": report(instance, false) });
    tell(&mut stream, &pong).await.ok()?;
    let ping = hear_type(&mut stream, "ping").await.ok()?;
    tell(&mut stream, &ending(instance, &ping)).await.ok()?;
    Some(stream)
}

/// Which run of the manager answers.
async fn who(w1: &Node) -> Result<Value, String> {
    w1.peers.call("m1", "who", json!(null), PATIENCE).await
}

/// A call that is never answered, and has been asked when this returns.
async fn held(w1: &Node) -> tokio::task::JoinHandle<Result<Value, String>> {
    let peers = w1.peers.clone();
    let (polled, is_polled) = tokio::sync::oneshot::channel();
    let held = tokio::spawn(async move {
        let call = peers.call("m1", "never", json!(null), PATIENCE);
        tokio::pin!(call);
        // It stands in the row of what is to be asked.
        assert!(futures_util::poll!(&mut call).is_pending());
        polled.send(()).unwrap();
        call.await
    });
    is_polled.await.unwrap();
    // Which is asked in its order.
    who(w1).await.unwrap();
    held
}

#[tokio::test]
async fn links_go_over_to_the_next_run_and_what_is_open_to_the_one_before_stays() {
    let site = Site::new();
    let (mut before, w1) = pair(&site).await;
    let mut tunnel = w1.dial(&before, "echo").await.unwrap();
    let held = held(&w1).await;
    let up_since = w1.peers.table()["m1"].since;
    let next = site.succeed(&mut before);
    let instance = |w1: &Node| w1.peers.table()["m1"].report.as_ref().map(|report| report.instance);
    until("the link to the next run", || {
        instance(&w1) == Some(next.state.instance)
    })
    .await;
    // Whoever had asked the one before is told, and asks the next one.
    let told = ends("the held call", held).await.unwrap();
    assert_eq!(told, Err("the connection to it ended".to_owned()));
    assert_eq!(who(&w1).await, Ok(json!(next.state.instance)));
    // What it says of the cluster counts.
    let news = cluster(2, &["m1", "w1", "w2"]);
    next.cluster.send_replace(Arc::new(news.clone()));
    until("the change", || w1.cluster.borrow().digest() == news.digest()).await;
    // It was up all the while, and so was what is open.
    let state = w1.peers.table()["m1"].clone();
    assert!(state.is_up && !state.is_silent && state.since == up_since, "{state:?}");
    tunnel.write_all(b"still there").await.unwrap();
    let mut text = [0; 11];
    ends("an echo", tunnel.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"still there");
    tunnel.shutdown().await.unwrap();
    until("its end", || before.log.has("echo: done")).await;
    // The end of the one before is no news.
    before.kill();
    assert_eq!(who(&w1).await, Ok(json!(next.state.instance)));
    assert_eq!(w1.peers.table()["m1"].since, up_since);
}

#[tokio::test]
async fn who_ends_and_has_nobody_after_it_is_talked_to_until_its_end_or_until_somebody_comes() {
    let site = Site::new();
    let (mut before, w1) = pair(&site).await;
    let held = held(&w1).await;
    let up_since = w1.peers.table()["m1"].since;
    let n_before = before.stat(|stats| &stats.accepted);
    before.state.drain();
    until("two looks for the next run", || {
        before.stat(|stats| &stats.accepted) >= n_before + 2
    })
    .await;
    assert_eq!(who(&w1).await, Ok(json!(before.state.instance)));
    assert!(!held.is_finished() && w1.peers.table()["m1"].since == up_since);
    let next = site.succeed(&mut before);
    let told = ends("the held call", held).await.unwrap();
    assert!(told.is_err(), "{told:?}");
    assert_eq!(who(&w1).await, Ok(json!(next.state.instance)));
    assert_eq!(w1.peers.table()["m1"].since, up_since);
}

#[tokio::test]
async fn a_node_whose_every_run_says_that_it_ends_is_not_changed_for_another() {
    let site = Site::new();
    let (w1, listener, own) = by_hand(&site).await;
    let mut first = raw_accept(&listener, CONTROL, &own).await.unwrap();
    let n_answered = Arc::new(AtomicU64::new(0));
    let count = n_answered.clone();
    let answering = tokio::spawn(async move {
        loop {
            let ping = hear_type(&mut first, "ping").await.unwrap();
            tell(&mut first, &ending(1, &ping)).await.unwrap();
            count.fetch_add(1, Relaxed);
        }
    });
    for instance in 2..4 {
        let mut stream = raw_accept(&listener, CONTROL, &own).await.unwrap();
        let ping = hear_type(&mut stream, "ping").await.unwrap();
        tell(&mut stream, &ending(instance, &ping)).await.unwrap();
        // It is left without another word.
        assert!(hear(&mut stream).await.is_err());
    }
    let before = n_answered.load(Relaxed);
    until("more pings", || {
        n_answered.load(Relaxed) >= before + 2 || answering.is_finished()
    })
    .await;
    assert!(!answering.is_finished());
    let state = &w1.peers.table()["m1"];
    assert!(
        state.is_up && state.report.as_ref().is_some_and(|report| report.instance == 1),
        "{state:?}"
    );
}

#[tokio::test]
async fn a_node_that_ended_before_another_look_is_not_lost_where_its_next_run_answers() {
    // The look at once takes half a second at most, which a machine that is busy may not have.
    while !is_kept_over_its_end().await {}
}

/// `false`: this test was too slow to see it.
async fn is_kept_over_its_end() -> bool {
    let site = Site::new();
    let (w1, listener, own) = by_hand(&site).await;
    let mut first = raw_accept(&listener, CONTROL, &own).await.unwrap();
    let ping = hear_type(&mut first, "ping").await.unwrap();
    let pong = json!({ "type": "pong", "n": ping["n"], "report": report(1, false) });
    tell(&mut first, &pong).await.unwrap();
    until("the link", || w1.is_up("m1")).await;
    let up_since = w1.peers.table()["m1"].since;
    // It ends with the very word.
    let ping = hear_type(&mut first, "ping").await.unwrap();
    tell(&mut first, &ending(1, &ping)).await.unwrap();
    drop(first);
    let ended_at = Instant::now();
    // A look that was begun before is given up.
    let second = loop {
        if let Some(second) = answer_as(&listener, &own, 2).await {
            break second;
        }
    };
    until("its word", || {
        w1.peers.table()["m1"]
            .report
            .as_ref()
            .is_some_and(|report| report.instance == 2)
    })
    .await;
    let state = w1.peers.table()["m1"].clone();
    if state.since != up_since && ended_at.elapsed() >= Duration::from_millis(500) {
        return false;
    }
    assert!(state.is_up && state.since == up_since, "{state:?}");
    // Another look at once is not made so soon: where runs end as they begin, that would be without end.
    drop(second);
    until("the loss", || !w1.is_up("m1")).await;
    // And it is reached again as any other.
    let _third = loop {
        if let Some(third) = answer_as(&listener, &own, 3).await {
            break third;
        }
    };
    until("the link", || w1.is_up("m1")).await;
    true
}

#[tokio::test]
async fn a_node_that_ends_for_good_is_lost_and_refuses() {
    let site = Site::new();
    let mut m1 = site.start("m1", cluster(1, &ALL));
    let w1 = site.start("w1", cluster(1, &ALL));
    w1.links_to(&[&m1]);
    m1.links_to(&[&w1]);
    until("the link", || w1.is_up("m1")).await;
    let tunnel = w1.dial(&m1, "echo").await.unwrap();
    m1.state.drain();
    until("the word that it ends", || tunnel.is_leaving()).await;
    m1.kill();
    until("the loss", || !w1.is_up("m1")).await;
    assert!(!w1.is_silent("m1"));
}

#[tokio::test]
async fn a_node_is_silent_only_when_none_of_its_runs_answers() {
    let site = Site::new();
    let (mut before, w1) = pair(&site).await;
    let mut tunnel = w1.dial(&before, "echo").await.unwrap();
    let next = site.succeed(&mut before);
    let state = |w1: &Node| w1.peers.table()["m1"].clone();
    until("the link to the next run", || {
        state(&w1)
            .report
            .is_some_and(|report| report.instance == next.state.instance)
    })
    .await;
    let frozen = next.freeze();
    // It is lost, and not reached again either.
    until("a connection in vain", || {
        state(&w1).error.is_some_and(|error| error == "no connection in time")
    })
    .await;
    assert!(!state(&w1).is_silent, "{:?}", state(&w1));
    tunnel.write_all(b"still there").await.unwrap();
    let mut text = [0; 11];
    ends("an echo", tunnel.read_exact(&mut text)).await.unwrap();
    assert_eq!(&text, b"still there");
    let frozen_too = before.freeze();
    until("silence", || w1.is_silent("m1")).await;
    drop((frozen, frozen_too));
    until("its next word", || w1.is_up("m1")).await;
}

//! Certificates turn over while everything goes on, end when they say, and are kept.

use std::time::{Duration, Instant, SystemTime};

use anynode::link::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rig::*;

#[tokio::test]
async fn certificates_are_renewed_at_half_life_while_a_tunnel_streams() {
    let site = Site::new();
    let all = ["m1", "m2", "w1"];
    let life = Duration::from_secs(4);
    let short = || Options {
        certificate_life: life,
        ..Options::default()
    };
    let m1 = site.start_with("m1", cluster(1, &all), short());
    let m2 = site.start_with("m2", cluster(1, &all), short());
    let first = Options {
        first_life: Some(life),
        ..short()
    };
    let w1 = site.start_with("w1", cluster(1, &all), first);
    w1.links_to(&[&m1, &m2]);
    m1.links_to(&[&w1, &m2]);
    let mut tunnel = w1.dial(&m1, "echo").await.unwrap();
    let started = Instant::now();
    let (mut n_renewed, mut n_tunnels) = (0, 0);
    let mut expires_at = w1.identity.expires_at().unwrap();
    while started.elapsed() < Duration::from_secs(15) {
        // The one that was opened first goes on; new ones go both ways.
        tunnel.write_all(b"still here").await.unwrap();
        let mut back = [0; 10];
        ends("the echo", tunnel.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, b"still here");
        w1.echo(&m2).await.unwrap();
        m1.echo(&w1).await.unwrap();
        n_tunnels += 2;
        let now = w1.identity.expires_at().expect("always one that is good");
        if now != expires_at {
            (expires_at, n_renewed) = (now, n_renewed + 1);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{n_renewed} renewals, {n_tunnels} tunnels");
    assert!(n_renewed >= 3, "{n_renewed} renewals in 15 s");
    assert!(w1.is_up("m1") && w1.is_up("m2") && m1.is_up("w1"));
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_not_accepted_even_by_who_knew_it() {
    let site = Site::new();
    let m1 = site.start("m1", cluster(1, &["m1", "w1"]));
    let own = site.certificate("w1", Role::Worker, Duration::from_secs(3));
    // One configuration, so that sessions could be resumed if the node let them be.
    let config = raw_config(TUNNEL, Some(&own));
    let connect = || async { raw_with(TcpStream::connect(m1.addr).await.unwrap(), config.clone()).await };
    for _ in 0..3 {
        let mut stream = connect().await.unwrap();
        stream.read_u64().await.unwrap();
    }
    let ended = SystemTime::now() + Duration::from_secs(4);
    tokio::time::sleep(ended.duration_since(SystemTime::now()).unwrap()).await;
    assert!(is_turned_away(connect().await).await);
}

#[tokio::test]
async fn a_node_without_a_good_certificate_serves_and_dials_nobody() {
    let site = Site::new();
    let all = ["m1", "w1"];
    let m1 = site.start("m1", cluster(1, &all));
    let short = Options {
        first_life: Some(Duration::from_secs(2)),
        ..Options::default()
    };
    // Nobody to renew with.
    let w1 = site.start_with("w1", cluster(1, &all), short);
    w1.echo(&m1).await.unwrap();
    m1.echo(&w1).await.unwrap();
    until("the certificate to end", || w1.identity.role().is_none()).await;
    let own = site.certificate("m1", Role::Manager, LONG_LIFE);
    assert!(is_turned_away(raw(w1.addr, CONTROL, Some(&own)).await).await);
    let none = Options {
        first_life: None,
        ..Options::default()
    };
    drop(w1);
    let again = site.start_with("w1", cluster(1, &all), none);
    assert_eq!(again.identity.role(), None, "what was kept has ended");
    let error = again.dial(&m1, "echo").await.err().unwrap();
    assert!(error.to_string().contains("no certificate"), "{error}");
}

#[tokio::test]
async fn the_kept_certificate_is_used_after_a_restart() {
    let site = Site::new();
    let all = ["m1", "w1"];
    let m1 = site.start("m1", cluster(1, &all));
    let w1 = site.start("w1", cluster(1, &all));
    let expires_at = w1.identity.expires_at();
    drop(w1);
    let none = Options {
        first_life: None,
        ..Options::default()
    };
    let w1 = site.start_with("w1", cluster(1, &all), none);
    assert_eq!(w1.identity.expires_at(), expires_at);
    w1.echo(&m1).await.unwrap();
    m1.echo(&w1).await.unwrap();
}

//! Whoever is not of the cluster gets nothing, and whoever is gets what its certificate allows.

use std::net::IpAddr;

use anynode::link::{Authority, Role, Token, TokenError, join};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::rig::*;

#[tokio::test]
async fn strangers_are_turned_away() {
    let (site, other) = (Site::new(), Site::new());
    let m1 = site.start("m1", cluster(1, &["m1", "w1"]));
    let theirs = other.certificate("w1", Role::Worker, LONG_LIFE);
    let ours = site.certificate("w1", Role::Worker, LONG_LIFE);
    for alpn in [CONTROL, TUNNEL] {
        assert!(is_turned_away(raw(m1.addr, alpn, None).await).await, "{alpn}");
        assert!(is_turned_away(raw(m1.addr, alpn, Some(&theirs)).await).await, "{alpn}");
    }
    assert!(is_turned_away(raw(m1.addr, "h2", Some(&ours)).await).await);
    until("all to be counted", || m1.stat(|stats| &stats.failed) >= 5).await;
    // The very same things get a good peer in.
    let mut stream = raw(m1.addr, CONTROL, Some(&ours)).await.unwrap();
    tell(&mut stream, &ping(5)).await.unwrap();
    assert_eq!(hear(&mut stream).await.unwrap()["n"], 5);
    let mut stream = raw(m1.addr, TUNNEL, Some(&ours)).await.unwrap();
    assert_eq!(stream.read_u64().await.unwrap(), m1.state.instance);
}

#[tokio::test]
async fn who_is_another_than_was_dialed_is_refused_by_the_one_who_dials() {
    let (site, other) = (Site::new(), Site::new());
    let all = ["m1", "w1", "w2"];
    let (w1, w2) = (site.start("w1", cluster(1, &all)), site.start("w2", cluster(1, &all)));
    let stranger = other.start("w3", cluster(1, &all));
    let error = w1.dial_as("w3", w2.addr, "echo").await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = w1.dial_as("w3", stranger.addr, "echo").await.err().unwrap();
    assert!(error.to_string().contains("certificate"), "{error}");
    let mut targets = vec![w2.target(), stranger.target()];
    targets[0].node = "w4".into();
    w1.targets.send_replace(targets);
    until("both to be tried", || w1.peers.table().len() == 2).await;
    for (node, peer) in w1.peers.table() {
        assert!(!peer.is_up, "{node}");
        assert!(peer.error.as_deref().unwrap().contains("certificate"), "{peer:?}");
    }
    w1.echo(&w2).await.unwrap();
}

#[tokio::test]
async fn a_node_that_left_the_cluster_gets_nothing_more() {
    let site = Site::new();
    let m1 = site.start("m1", cluster(1, &["m1", "w1"]));
    let own = site.certificate("w1", Role::Worker, LONG_LIFE);
    let mut control = raw(m1.addr, CONTROL, Some(&own)).await.unwrap();
    let subscribe = json!({ "type": "subscribe", "revision": 0, "digest": "0".repeat(32) });
    tell(&mut control, &subscribe).await.unwrap();
    let first = hear_type(&mut control, "change").await.unwrap();
    assert_eq!(first["change"]["revision"], 1);
    let taken = json!({ "type": "taken", "revision": 1, "digest": first["change"]["digest"] });
    tell(&mut control, &taken).await.unwrap();
    tell(&mut control, &ping(1)).await.unwrap();
    hear_type(&mut control, "pong").await.unwrap();
    // It goes, and what follows is none of its business, on the connection that it has too.
    m1.cluster.send_replace(cluster(2, &["m1", "w2"]).into());
    let next = hear(&mut control).await.unwrap();
    assert_eq!((&next["type"], &next["what"]), (&json!("refused"), &json!("subscribe")));
    let key = "00".to_owned();
    for (ask, what) in [
        (subscribe, "subscribe"),
        (json!({ "type": "renew", "public_key": key }), "renew"),
    ] {
        tell(&mut control, &ask).await.unwrap();
        assert_eq!(hear_type(&mut control, "refused").await.unwrap()["what"], what);
    }
    tell(
        &mut control,
        &json!({ "type": "call", "id": 1, "method": "echo", "body": null }),
    )
    .await
    .unwrap();
    let result = hear_type(&mut control, "result").await.unwrap();
    assert!(result["ok"].is_null() && result["error"].is_string(), "{result}");
    assert!(
        is_turned_away(raw(m1.addr, TUNNEL, Some(&own)).await).await,
        "no tunnel"
    );
    assert!(m1.stat(|stats| &stats.refused) >= 5);
}

/// As `TunnelRequest` goes over the wire, with a PROXY v2 header that names no client.
pub(super) fn preface(task: &str) -> Vec<u8> {
    let head = json!({ "task": task, "target": 80 }).to_string();
    let mut preface = u16::try_from(head.len()).unwrap().to_be_bytes().to_vec();
    preface.extend_from_slice(head.as_bytes());
    preface.extend_from_slice(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00");
    preface
}

#[tokio::test]
async fn a_worker_gives_neither_cluster_nor_certificate_nor_entry() {
    let site = Site::new();
    let w1 = site.start("w1", cluster(1, &["m1", "w1", "w2"]));
    let own = site.certificate("w2", Role::Worker, LONG_LIFE);
    let mut control = raw(w1.addr, CONTROL, Some(&own)).await.unwrap();
    for (ask, what) in [
        (
            json!({ "type": "subscribe", "revision": 0, "digest": "0".repeat(32) }),
            "subscribe",
        ),
        (json!({ "type": "renew", "public_key": "00" }), "renew"),
        (json!({ "type": "of another version" }), "unknown"),
    ] {
        tell(&mut control, &ask).await.unwrap();
        let answer = hear(&mut control).await.unwrap();
        assert_eq!((&answer["type"], &answer["what"]), (&json!("refused"), &json!(what)));
    }
    let joining = site.start_with(
        "w2",
        cluster(0, &[]),
        Options {
            first_life: None,
            ..Options::default()
        },
    );
    join(&joining.identity, &site.token, w1.addr).await.unwrap_err();
    assert_eq!(joining.identity.role(), None);
}

#[tokio::test]
async fn a_renewed_certificate_is_a_workers_and_its_own() {
    let site = Site::new();
    let m1 = site.start("m1", cluster(1, &["m1", "m2", "w1"]));
    let key = rcgen::KeyPair::generate().unwrap();
    let public_key: String = rcgen::PublicKeyData::subject_public_key_info(&key)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    for (id, role) in [("w1", Role::Worker), ("m2", Role::Manager)] {
        let own = site.certificate(id, role, LONG_LIFE);
        let mut control = raw(m1.addr, CONTROL, Some(&own)).await.unwrap();
        for wrong in ["", "0", "xy", "00ff"] {
            tell(&mut control, &json!({ "type": "renew", "public_key": wrong }))
                .await
                .unwrap();
            assert_eq!(hear(&mut control).await.unwrap()["what"], "renew");
        }
        let ask = json!({ "type": "renew", "public_key": public_key, "role": "manager", "node": "m1" });
        tell(&mut control, &ask).await.unwrap();
        let answer = hear(&mut control).await.unwrap();
        let pem = answer["certificate_pem"].as_str().unwrap();
        let der = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
        let peer = anynode::link::identity::peer_of(Some(&[der])).unwrap();
        assert_eq!((&*peer.node, peer.role), (id, Role::Worker));
    }
}

#[tokio::test]
async fn only_who_knows_the_token_and_is_a_worker_of_the_swarm_joins() {
    let site = Site::new();
    let m1 = site.start("m1", cluster(1, &["m1", "m2", "w1"]));
    let without = || Options {
        first_life: None,
        ..Options::default()
    };
    let w1 = site.start_with("w1", cluster(0, &[]), without());
    let wrong = Site::write_token(&site.dir("w1"), &"x".repeat(32));
    let wrong = Token::read("link.token_file", &wrong).unwrap();
    let error = join(&w1.identity, &wrong, m1.addr).await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
    for (id, reason) in [("w9", "no node"), ("m2", "manager")] {
        let identity = anynode::link::Identity::open(&site.dir(id), id).unwrap();
        let error = join(&identity, &site.token, m1.addr).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(identity.role(), None);
    }
    join(&w1.identity, &site.token, m1.addr).await.unwrap();
    assert_eq!(w1.identity.role(), Some(Role::Worker));
    w1.dial(&m1, "echo").await.unwrap();
}

#[test]
fn a_token_that_is_missing_or_short_says_so() {
    let site = Site::new();
    let missing = Token::read("link.token_file", &site.dir("x").join("nothing")).unwrap_err();
    assert!(matches!(missing, TokenError::File { .. }), "{missing}");
    let short = Site::write_token(&site.dir("x"), &format!("  {}\n\n", "x".repeat(31)));
    assert!(matches!(
        Token::read("link.token_file", &short).unwrap_err(),
        TokenError::Short { found: 31, .. }
    ));
    let binary = site.dir("x").join("binary");
    std::fs::write(&binary, [0xff; 64]).unwrap();
    assert!(matches!(
        Token::read("link.token_file", &binary).unwrap_err(),
        TokenError::File { .. }
    ));
}

#[tokio::test]
async fn who_joins_from_another_address_is_refused_where_that_is_checked() {
    let site = Site::new();
    let elsewhere = IpAddr::from([127, 0, 0, 9]);
    let mut cluster = cluster(1, &["m1"]);
    cluster.put(node("w1", elsewhere));
    for checks_address in [true, false] {
        let options = Options {
            checks_address,
            ..Options::default()
        };
        let m1 = site.start_with("m1", cluster.clone(), options);
        let dir = site.dir(&format!("w1-{checks_address}"));
        let identity = anynode::link::Identity::open(&dir, "w1").unwrap();
        let joined = join(&identity, &site.token, m1.addr).await;
        match checks_address {
            true => {
                let error = joined.unwrap_err().to_string();
                assert!(error.contains("127.0.0.1") && error.contains("127.0.0.9"), "{error}");
            }
            false => joined.unwrap(),
        }
    }
}

#[tokio::test]
async fn what_is_heard_of_one_join_is_of_no_use_in_another() {
    let site = Site::new();
    let m1 = site.start("m1", cluster(1, &["m1", "w1"]));
    // Somebody in between, with a manager's key even: passes all messages on, each within a TLS session of its own.
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = between.local_addr().unwrap();
    let own = site.certificate("m1", Role::Manager, LONG_LIFE);
    let identity = anynode::link::Identity::open(&site.dir("w1"), "w1").unwrap();
    let relay = async {
        let mut node = raw_accept(&between, JOIN, &own).await.unwrap();
        let mut manager = raw(m1.addr, JOIN, None).await.unwrap();
        let hello = hear(&mut manager).await.unwrap();
        tell(&mut node, &hello).await.unwrap();
        let request = hear(&mut node).await.unwrap();
        tell(&mut manager, &request).await.unwrap();
        let reply = hear(&mut manager).await.unwrap();
        tell(&mut node, &reply).await.unwrap();
        (hello, request, reply)
    };
    let (joined, (hello, request, reply)) = tokio::join!(join(&identity, &site.token, addr), relay);
    assert!(joined.unwrap_err().to_string().contains("token"));
    assert_eq!(identity.role(), None);
    assert!(
        reply["certificate_pem"].is_null() && reply["proof"].is_null(),
        "{reply}"
    );
    assert!(reply["error"].as_str().unwrap().contains("token"), "{reply}");
    // Who stands in the manager's place cannot make up the end of it either.
    let answer = async {
        let mut node = raw_accept(&between, JOIN, &own).await.unwrap();
        tell(&mut node, &hello).await.unwrap();
        hear(&mut node).await.unwrap();
        let proof = &request["proof"];
        let reply = json!({ "certificate_pem": hello["authority_pem"], "proof": proof, "error": null });
        tell(&mut node, &reply).await.unwrap();
    };
    let (joined, ()) = tokio::join!(join(&identity, &site.token, addr), answer);
    assert!(joined.unwrap_err().to_string().contains("does not know"));
    assert_eq!(identity.role(), None);
}

#[tokio::test]
async fn who_asks_is_given_nothing_to_try_tokens_on() {
    let site = Site::new();
    let m1 = site.start("m1", cluster(1, &["m1", "w1"]));
    let mut stranger = raw(m1.addr, JOIN, None).await.unwrap();
    let hello = hear(&mut stranger).await.unwrap();
    let keys: Vec<&String> = hello.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["authority_pem"], "no proof before there was one");
    for proof in [json!("00".repeat(32)), json!(""), json!("zz")] {
        let mut again = raw(m1.addr, JOIN, None).await.unwrap();
        hear(&mut again).await.unwrap();
        tell(&mut again, &json!({ "node": "w1", "public_key": "00", "proof": proof }))
            .await
            .unwrap();
        let reply = hear(&mut again).await.unwrap();
        assert!(
            reply["certificate_pem"].is_null() && reply["proof"].is_null(),
            "{reply}"
        );
        assert!(reply["error"].as_str().unwrap().contains("token"), "{reply}");
    }
    // Nor does a node give any to who is no manager of the authority that he shows.
    let other = Site::new();
    let theirs = Authority::generate().unwrap();
    for (own, authority) in [
        (
            site.certificate("w2", Role::Worker, LONG_LIFE),
            site.authority.certificate_pem().to_owned(),
        ),
        (
            other.certificate("m1", Role::Manager, LONG_LIFE),
            site.authority.certificate_pem().to_owned(),
        ),
        (site.certificate("m1", Role::Manager, LONG_LIFE), theirs),
    ] {
        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = between.local_addr().unwrap();
        let identity = anynode::link::Identity::open(&site.dir("w1"), "w1").unwrap();
        let answer = async {
            let mut node = raw_accept(&between, JOIN, &own).await.unwrap();
            tell(&mut node, &json!({ "authority_pem": authority })).await.unwrap();
            assert!(hear(&mut node).await.is_err(), "it says nothing");
        };
        let (joined, ()) = tokio::join!(join(&identity, &site.token, addr), answer);
        assert!(joined.unwrap_err().to_string().contains("no manager's certificate"));
    }
}

#[tokio::test]
async fn tries_to_join_are_limited_by_address() {
    let site = Site::new();
    let m1 = site.start("m1", cluster(1, &["m1", "w1"]));
    let mut n_heard = 0;
    for _ in 0..30 {
        let mut stream = raw(m1.addr, JOIN, None).await.unwrap();
        n_heard += usize::from(hear(&mut stream).await.is_ok());
    }
    assert!((1..30).contains(&n_heard), "{n_heard} of 30 tries were listened to");
    // Another address has tries of its own.
    let stream = connect_from(IpAddr::from([127, 0, 0, 2]), m1.addr).await.unwrap();
    let mut stream = raw_with(stream, raw_config(JOIN, None)).await.unwrap();
    hear(&mut stream).await.unwrap();
}

#[tokio::test]
async fn strangers_that_stall_do_not_keep_nodes_or_other_strangers_out() {
    let site = Site::new();
    let all = ["m1", "w1"];
    let (m1, w1) = (site.start("m1", cluster(1, &all)), site.start("w1", cluster(1, &all)));
    // They connect and say nothing: more than there are handshakes at once.
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..300 {
        held.push(connect_from(IpAddr::from([127, 0, 0, 2]), m1.addr).await.unwrap());
    }
    until("all to be accepted", || m1.stat(|stats| &stats.accepted) >= 300).await;
    w1.echo(&m1).await.unwrap();
    w1.links_to(&[&m1]);
    until("the link", || w1.is_up("m1")).await;
    // One that is to join comes from an address that is not known either.
    let stream = connect_from(IpAddr::from([127, 0, 0, 3]), m1.addr).await.unwrap();
    let mut stream = raw_with(stream, raw_config(JOIN, None)).await.unwrap();
    hear(&mut stream).await.unwrap();
    drop(held);
    until("the places to be given back", || m1.n_sockets() < 20).await;
}

#[tokio::test]
async fn what_stalls_at_a_nodes_own_address_does_not_keep_that_node_out() {
    let site = Site::new();
    let all = ["m1", "w1"];
    let (m1, w1) = (site.start("m1", cluster(1, &all)), site.start("w1", cluster(1, &all)));
    // Another program there, or whoever is seen at its address.
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..700 {
        held.push(connect_from(LOOPBACK, m1.addr).await.unwrap());
    }
    until("all to be accepted", || m1.stat(|stats| &stats.accepted) >= 700).await;
    w1.echo(&m1).await.unwrap();
    w1.links_to(&[&m1]);
    until("the link", || w1.is_up("m1")).await;
    drop(held);
}

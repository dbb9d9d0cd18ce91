//! Certificates that are ordered by ACME, from an authority that we did not write: Debian's pebble. It asks nodes as Let's Encrypt
//! does, refuses a nonce now and then, and is killed and started anew.

pub mod rig;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rig::{Node, Pebble, Wish, local, server_pair, wait_long};

use crate::cli::anynode;
use crate::harness::{Origin, dial, free_port, read_head, read_to_end, turn};

fn origin() -> Origin {
    Origin::start(|mut stream| {
        while read_head(&mut stream).is_some() {
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .is_err()
            {
                return;
            }
        }
    })
}

/// A service with one route for each of `hosts`; `more`: further keys.
fn service(name: &str, origin: &Origin, hosts: &[&str], more: &str) -> String {
    let hosts: Vec<String> = hosts.iter().map(|host| format!("`{host}`")).collect();
    format!(
        "  {name}:\n    endpoints: [\"{}\"]\n    route: Host({}) && PathPrefix(`/`)\n{more}",
        origin.addr,
        hosts.join(", ")
    )
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_certificate_is_ordered_kept_and_renewed_and_no_request_fails_meanwhile() {
    let wish = Wish {
        life: 24,
        ..Wish::default()
    };
    let Some(pebble) = Pebble::start(wish) else { return };
    let _turn = turn();
    let origin = origin();
    // One has a certificate in a file.
    let (_, certificate, key) = server_pair();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a.pem"), certificate).unwrap();
    std::fs::write(at("a.key"), key).unwrap();
    let files = format!(
        "[tls]\ncertificates = [{{ cert = '{}', key = '{}' }}]\n",
        at("a.pem").display(),
        at("a.key").display()
    );
    let services = format!(
        "services:\n{}",
        service("a", &origin, &["a.test", "b.test", "localhost"], "")
    );
    let config = pebble.config("email = 'me@a.test'") + &files;
    let mut node = Node::start(&pebble, &config, "{ acme = 'le' }", &services);
    wait_long("the first certificates", || {
        node.is_served("a.test") && node.is_served("b.test")
    });
    let status = node.status(&[]);
    assert!(
        status.contains("certificate of acme.le for a.test: until 20"),
        "{status}"
    );
    assert!(
        status.contains("certificate of acme.le for localhost: from a file"),
        "{status}"
    );
    assert!(node.metric("anynode_acme_certificate_not_after_seconds{acme=\"le\",name=\"a.test\"}") > 1_000_000_000);
    // It was asked for at the entry point that sends everybody elsewhere.
    assert!(ask_for(node.web, "/.well-known/acme-challenge/x").starts_with("HTTP/1.1 301"));
    let kept = node.path("data/acme/le/certificates/a.test.json");
    assert_eq!(
        (mode(&kept), mode(&node.path("data/acme/le/account.json"))),
        (0o600, 0o600)
    );
    assert_eq!(mode(&node.path("data/acme")), 0o700);

    // Clients come all the time, and each time with a handshake of their own.
    let first = node.shown("a.test");
    let is_over = AtomicBool::new(false);
    let n_asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let out = node.curl("a.test");
                assert!(out.status.success() && out.stdout == b"ok", "{out:?}");
                n_asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        let started = Instant::now();
        while node.shown("a.test") == first && !client.is_finished() && started.elapsed() < Duration::from_secs(40) {
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(
            started.elapsed() < Duration::from_secs(pebble.life().into()),
            "renewed too late"
        );
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(n_asked.load(Ordering::Relaxed) > 20, "{n_asked:?}");
    assert_eq!(node.n_orders("failed"), 0, "{}", node.log());

    // A start without the authority shows what was kept.
    assert_eq!(pebble.n_accounts(), 1);
    wait_long("another renewal", || node.n_orders("ordered") >= 4);
    node.down();
    let shown_again = Instant::now();
    node.up();
    assert!(node.is_served("a.test") && node.is_served("b.test"), "{}", node.log());
    assert!(shown_again.elapsed() < Duration::from_secs(5));
    wait_long("a renewal after the start", || node.n_orders("ordered") >= 2);
    assert!(node.is_served("a.test"));
    assert_eq!(pebble.n_accounts(), 1, "the account is kept");
    // Who is declared no more is ordered no more.
    node.declare(&format!("services:\n{}", service("a", &origin, &["b.test"], "")));
    wait_long("it is forgotten", || {
        !node.path("data/acme/le/certificates/a.test.json").exists()
    });
    assert!(node.path("data/acme/le/certificates/b.test.json").exists());
}

/// What is answered there by HTTP without TLS.
fn ask_for(addr: std::net::SocketAddr, path: &str) -> String {
    let mut stream = dial(addr);
    let request = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
}

#[test]
fn an_authority_that_asks_by_tls_is_answered_and_one_that_has_forgotten_us_is_told_anew() {
    let wish = Wish {
        external: Some((
            "kid-1",
            "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
        )),
        ..Wish::default()
    };
    let Some(mut pebble) = Pebble::start(wish) else { return };
    let origin = origin();
    let of_key = tempfile::tempdir().unwrap();
    let key_file = of_key.path().join("eab");
    std::fs::write(
        &key_file,
        "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n",
    )
    .unwrap();
    let more = format!(
        "challenge = 'tls-alpn-01'\neab_kid = 'kid-1'\neab_key_file = '{}'",
        key_file.display()
    );
    // Asked for by a route, not by the entry point.
    let services = format!("services:\n{}", service("a", &origin, &["a.test"], "    acme: le\n"));
    // By HTTP it would find nobody.
    let web = local(free_port());
    let node = Node::at(
        web,
        pebble.tls,
        &pebble.config(&more),
        "true",
        &services,
        &pebble.root(),
    );
    wait_long("the certificate", || node.is_served("a.test"));
    // While nobody is to ask, that protocol is not spoken; and never is anything served by it.
    let said = node.s_client("a.test", &["-alpn", "acme-tls/1"]);
    assert!(
        said.contains("no application protocol") || said.contains("alert number 120"),
        "{said}"
    );
    assert!(
        node.s_client("a.test", &["-alpn", "acme-tls/1,http/1.1"])
            .contains("ALPN protocol: http/1.1")
    );

    pebble.restart();
    let two = service("b", &origin, &["b.test"], "    acme: le\n");
    node.declare(&format!("{services}{two}"));
    wait_long("a certificate by a new account", || node.n_orders("ordered") == 2);
    assert!(node.has_log("the authority does not know the account: another one is made"));
    std::fs::write(node.path("root.pem"), pebble.root()).unwrap();
    assert!(node.is_served("b.test"));
    assert_eq!(node.n_orders("failed"), 0, "{}", node.log());
}

#[test]
fn what_fails_is_said_waits_longer_each_time_and_keeps_nobody_else_waiting() {
    let wish = Wish {
        blocked: vec!["blocked.test"],
        ..Wish::default()
    };
    let Some(pebble) = Pebble::start(wish) else { return };
    let origin = origin();
    let services = format!(
        "services:\n{}{}{}{}",
        service("bad", &origin, &["blocked.test", "192.0.2.1"], ""),
        service("good", &origin, &["good.test"], ""),
        service("lost", &origin, &["lost.test"], "    acme: nobody\n"),
        // No authority asks that port.
        service("plain", &origin, &["plain.test"], "    entrypoints: [web]\n"),
    );
    let mut node = Node::start(&pebble, &pebble.config(""), "{ acme = 'le' }", &services);
    wait_long("the good one", || {
        node.is_served("good.test") && node.n_orders("ordered") == 1
    });
    wait_long("the bad one", || node.n_orders("failed") == 1);
    let status = node.status(&[]);
    for expected in [
        "! acme.le: no certificate for blocked.test: ",
        "(rejectedIdentifier) (failed 1 times, tried again at 20",
        "certificate of acme.le for blocked.test: none yet, next order 20",
        "service bad: route: no certificate is ordered for 192.0.2.1: expected a name",
        "service lost: route: no certificate is ordered, since the configuration has no [acme.nobody]",
    ] {
        assert!(status.contains(expected), "{expected} in {status}");
    }
    assert!(!status.contains("for plain.test"), "{status}");
    assert!(node.ready().contains("no certificate for blocked.test"));
    assert_eq!(
        node.metric("anynode_acme_failing{acme=\"le\",name=\"blocked.test\"}"),
        1
    );
    // A start is no reason to ask again.
    node.down();
    node.up();
    wait_long("it is known", || {
        node.status(&[]).contains("for blocked.test: none yet, next order 20")
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        (node.n_orders("failed"), node.n_orders("ordered")),
        (0, 0),
        "{}",
        node.log()
    );
    assert!(node.is_served("good.test"));
}

#[test]
fn a_name_that_cannot_be_seen_to_be_ours_is_told_with_the_authoritys_own_words() {
    let Some(pebble) = Pebble::start(Wish::default()) else {
        return;
    };
    let origin = origin();
    let services = format!("services:\n{}", service("a", &origin, &["a.test"], ""));
    // Another port than the one that the authority asks.
    let web = local(free_port());
    let node = Node::at(
        web,
        pebble.tls,
        &pebble.config(""),
        "{ acme = 'le' }",
        &services,
        &pebble.root(),
    );
    wait_long("a failure", || node.n_orders("failed") == 1);
    let status = node.status(&[]);
    assert!(
        status.contains("no certificate for a.test: ") && status.contains("connection refused"),
        "{status}"
    );
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    let length = head
        .split("content-length:")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    body.len() >= length.map_or(0, |length| length.trim().parse().unwrap())
}

/// An authority of our own: it answers so, by what it is asked, and counts.
fn busy(
    certificate: &str,
    key: &str,
    answer: impl Fn(&str) -> String + Send + 'static,
) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    use rustls::pki_types::pem::PemObject;
    let chain = vec![rustls::pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, n_asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = n_asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            let mut asked = String::new();
            let mut bytes = [0; 4096];
            while !is_whole(&asked) {
                match stream.read(&mut bytes) {
                    Ok(n @ 1..) => asked.push_str(&String::from_utf8_lossy(&bytes[..n])),
                    _ => break,
                }
            }
            if is_whole(&asked) {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(answer(&asked).as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    (addr, n_asked)
}

/// A directory whose nonces are at no URL, as JSON.
const NO_DIRECTORY: &str = r#"{"newNonce":"not a uri \u0001","newAccount":"https://a/","newOrder":"https://a/"}"#;

#[test]
fn what_an_authority_answers_amiss_is_said_and_ends_nobody() {
    let (root, certificate, key) = server_pair();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{NO_DIRECTORY}",
        NO_DIRECTORY.len()
    );
    let (addr, _) = busy(&certificate, &key, move |_| answer.clone());
    // As RFC 8555 has it, up to an order that is to be asked for again in 584 thousand million years.
    let at = std::sync::OnceLock::new();
    let at = Arc::new(at);
    let known = at.clone();
    let (second, n_asked) = busy(&certificate, &key, move |request| {
        let base = format!("https://{}", known.get().unwrap());
        let path = request.split(' ').nth(1).unwrap_or_default();
        let (more, body) = match path {
            "/dir" => (
                String::new(),
                format!(
                    r#"{{"newNonce":"{base}/nonce","newAccount":"{base}/account","newOrder":"{base}/order","meta":{{}}}}"#
                ),
            ),
            "/account" => (
                format!("Location: {base}/account/1\r\n"),
                r#"{"status":"valid"}"#.to_owned(),
            ),
            "/authorization" => (
                String::new(),
                r#"{"status":"valid","identifier":{"type":"dns","value":"a.test"},"challenges":[]}"#.to_owned(),
            ),
            _ => (
                format!("Location: {base}/order/1\r\nRetry-After: 18446744073709551615\r\n"),
                format!(
                    r#"{{"status":"processing","authorizations":["{base}/authorization"],"finalize":"{base}/finalize"}}"#
                ),
            ),
        };
        let length = if request.starts_with("HEAD") { 0 } else { body.len() };
        format!(
            "HTTP/1.1 200 OK\r\nReplay-Nonce: abc\r\n{more}Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{}",
            &body[..length]
        )
    });
    at.set(second).unwrap();
    let origin = origin();
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &root).unwrap();
    let config = |addr| format!("[acme.le]\ndirectory = 'https://{addr}/dir'\nca = '{}'\n", ca.display());
    let services = format!("services:\n{}", service("a", &origin, &["a.test"], ""));
    for (addr, expected) in [
        (addr, "its directory has newNonce = \"not a uri"),
        (second, "no certificate for a.test"),
    ] {
        let (web, secure) = (local(free_port()), local(free_port()));
        let node = Node::at(web, secure, &config(addr), "{ acme = 'le' }", &services, &root);
        wait_long("a failure", || node.n_orders("failed") == 1);
        let said = node.status(&[]);
        assert!(said.contains(expected), "{said}");
        assert!(ask_for(node.web, "/").starts_with("HTTP/1.1 301"));
    }
    assert!(n_asked.load(Ordering::Relaxed) >= 6);
}

#[test]
fn connections_that_are_a_services_by_name_have_their_certificate_too() {
    let Some(pebble) = Pebble::start(Wish::default()) else {
        return;
    };
    let origin = origin();
    let by_name = |name: &str, host: &str, more: &str| {
        format!(
            "  {name}:\n    mode: tcp\n    endpoints: [\"{}\"]\n    route: HostSNI(`{host}`)\n    entrypoints: [websecure]\n{more}",
            origin.addr
        )
    };
    let services = format!(
        "services:\n{}{}",
        by_name("a", "a.test", ""),
        by_name("own", "own.test", "    tls: passthrough\n")
    );
    let config = pebble.config("");
    let node = Node::start(&pebble, &config, "{ acme = 'le' }", &services);
    // It is counted once it is on disk.
    let is_had = |node: &Node| node.is_served("a.test") && node.n_orders("ordered") == 1;
    wait_long("the certificate", || is_had(&node));
    let status = node.status(&[]);
    assert!(!status.contains("for own.test"), "{status}");
    assert_eq!(node.n_orders("failed"), 0, "{}", node.log());
    drop(node);

    // By TLS, at the very port that those connections come to.
    let config = pebble.config("challenge = 'tls-alpn-01'");
    let web = local(free_port());
    let node = Node::at(web, pebble.tls, &config, "{ acme = 'le' }", &services, &pebble.root());
    wait_long("the certificate by TLS", || is_had(&node));
    assert_eq!(node.n_orders("failed"), 0, "{}", node.log());
}

#[test]
fn another_service_takes_no_host_to_another_authority_and_what_cannot_be_read_is_not_taken_for_nothing() {
    let Some(pebble) = Pebble::start(Wish::default()) else {
        return;
    };
    let origin = origin();
    // Nobody is there.
    let other = format!("[acme.another]\ndirectory = 'https://{}/dir'\n", local(free_port()));
    let config = pebble.config("") + &other;
    let services = format!("services:\n{}", service("z", &origin, &["a.test"], ""));
    let mut node = Node::start(&pebble, &config, "{ acme = 'le' }", &services);
    wait_long("the certificate", || {
        node.is_served("a.test") && node.n_orders("ordered") == 1
    });
    let first = node.shown("a.test");
    let thief = format!(
        "  a:\n    endpoints: [\"{}\"]\n    route: Host(`a.test`) && Path(`/a`)\n    acme: another\n",
        origin.addr
    );
    node.declare(&format!("{services}{thief}"));
    let said =
        "service a: route: no certificate is ordered from acme.another for a.test: service z has it from acme.le";
    wait_long("the other to be told", || node.status(&[]).contains(said));
    // As after a start, when none has had it before.
    node.down();
    node.up();
    wait_long("the other to be told again", || node.status(&[]).contains(said));
    assert_eq!((node.shown("a.test"), pebble.n_orders()), (first, 1), "{}", node.log());
    assert!(!node.has_log("no certificate: "), "{}", node.log());

    node.down();
    let kept = node.path("data/acme/le/certificates");
    std::fs::rename(&kept, node.path("aside")).unwrap();
    std::fs::write(&kept, "").unwrap();
    node.declare(&services);
    node.up();
    wait_long("a failure", || node.n_orders("failed") == 1);
    let said = node.status(&[]);
    assert!(said.contains("has to be readable before anything is ordered"), "{said}");
    assert_eq!(pebble.n_orders(), 1);
}

#[test]
fn an_account_that_the_disk_does_not_take_is_said_and_written_once_it_does() {
    let Some(pebble) = Pebble::start(Wish::default()) else {
        return;
    };
    let origin = origin();
    // Where no TLS ends nothing is ordered.
    let plain = service("plain", &origin, &["plain.test"], "    entrypoints: [web]\n");
    let services = format!("services:\n{plain}");
    let mut node = Node::start(&pebble, &pebble.config(""), "{ acme = 'le' }", &services);
    // What it would write first cannot be made there.
    let in_the_way = node.path("data/acme/le/account.json.new");
    std::fs::create_dir_all(&in_the_way).unwrap();
    node.declare(&format!("services:\n{}", service("a", &origin, &["a.test"], "")));
    wait_long("the certificate", || {
        node.is_served("a.test") && node.n_orders("ordered") == 1
    });
    let said = "acme: certificates and accounts cannot be kept for a restart";
    assert!(node.status(&[]).contains(said), "{}", node.status(&[]));
    std::fs::remove_dir(&in_the_way).unwrap();
    wait_long("the account", || node.path("data/acme/le/account.json").exists());
    wait_long("it to be over", || !node.status(&[]).contains(said));
    node.down();
    node.declare(&format!(
        "services:\n{}",
        service("a", &origin, &["a.test", "b.test"], "")
    ));
    node.up();
    wait_long("another by the same account", || node.n_orders("ordered") == 1);
    assert_eq!((pebble.n_accounts(), pebble.n_orders()), (1, 2), "{}", node.log());
}

#[test]
fn an_authority_that_asks_for_patience_is_given_it() {
    let (root, certificate, key) = server_pair();
    let answer =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7200\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy";
    let (addr, n_asked) = busy(&certificate, &key, |_| answer.to_owned());
    let origin = origin();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), &root).unwrap();
    let config = format!(
        "[acme.le]\ndirectory = 'https://{addr}/dir'\nca = '{}'\n",
        dir.path().join("ca.pem").display()
    );
    let services = format!(
        "services:\n{}",
        service("a", &origin, &["a.test", "b.test", "c.test"], "")
    );
    let (web, secure) = (local(free_port()), local(free_port()));
    let node = Node::at(web, secure, &config, "{ acme = 'le' }", &services, &root);
    wait_long("a failure", || node.n_orders("failed") == 1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        (n_asked.load(Ordering::Relaxed), node.n_orders("failed")),
        (1, 1),
        "{}",
        node.log()
    );
    let status: serde_json::Value = serde_json::from_str(&node.status(&["--json"])).unwrap();
    let ordered = status["tls"]["ordered"].as_array().unwrap().clone();
    assert_eq!(ordered.len(), 3);
    for name in ordered {
        let next = humantime::parse_rfc3339(name["next_order_at"].as_str().unwrap()).unwrap();
        let left = next.duration_since(std::time::SystemTime::now()).unwrap().as_secs();
        assert!((7100..=7200).contains(&left), "{left}: {name}");
    }
    let said = node.status(&[]);
    assert!(
        said.contains("! acme.le: 127.0.0.1: it answers 503 Service Unavailable (failed 1 times"),
        "{said}"
    );
    // Whom it does not believe it tells nothing.
    let (strange, _, _) = server_pair();
    std::fs::write(dir.path().join("ca.pem"), strange).unwrap();
    let other = Node::at(
        local(free_port()),
        local(free_port()),
        &config,
        "{ acme = 'le' }",
        &services,
        &root,
    );
    wait_long("a failure", || other.n_orders("failed") == 1);
    assert!(
        other.status(&[]).contains("invalid peer certificate"),
        "{}",
        other.status(&[])
    );
    assert_eq!(n_asked.load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_wrong_in_the_configuration_is_said_with_key_value_and_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        std::fs::write(dir.path().join("anynode.toml"), text).unwrap();
        let out = anynode(&["check", "--config"])
            .arg(dir.path().join("anynode.toml"))
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let doors =
        "[entrypoints.web]\nlisten = ':1080'\n[entrypoints.websecure]\nlisten = ':1443'\ntls = { acme = 'le' }\n";
    let good = "directory = 'https://ca.test/dir'\n";
    for (text, expected) in [
        (
            format!("{doors}[acme.le]\n"),
            "acme.le.directory = nothing: expected the https URL",
        ),
        (
            format!("{doors}[acme.le]\ndirectory = 'http://ca.test/dir'\n"),
            "acme.le.directory = \"http://ca.test/dir\": expected the https URL",
        ),
        (
            format!("{doors}[acme.le]\n{good}challenge = 'dns-01'\n"),
            "acme.le.challenge = \"dns-01\": expected \"http-01\" or \"tls-alpn-01\": names are not written to",
        ),
        (
            format!("{doors}[acme.le]\n{good}dnsChallenge = {{ provider = 'x' }}\n"),
            "acme.le.dnsChallenge = { provider = \"x\" }: expected no such key: names are not written to",
        ),
        (
            format!("{doors}[acme.le]\n{good}emial = 'x'\n"),
            "acme.le.emial = \"x\": expected no such key: there is directory, email",
        ),
        (
            format!("{doors}[acme.le]\n{good}email = 'nobody'\n"),
            "acme.le.email = \"nobody\": expected an address",
        ),
        (
            format!("{doors}[acme.le]\n{good}eab_kid = 'x'\n"),
            "acme.le.eab_kid = \"x\": expected eab_key_file beside it",
        ),
        (
            format!("{doors}[acme.le]\n{good}ca = '/nowhere.pem'\n"),
            "acme.le.ca = \"/nowhere.pem\": No such file",
        ),
        (
            format!("{doors}[acme.le]\n{good}eab_kid = 'x'\neab_key_file = '/nowhere'\n"),
            "acme.le.eab_key_file = \"/nowhere\": No such file",
        ),
        (
            format!("{doors}[acme.other]\n{good}"),
            "entrypoints.websecure.tls.acme = \"le\": expected the NAME of an [acme.NAME]",
        ),
        (
            format!("[entrypoints.web]\nlisten = ':1080'\n[acme.le]\n{good}"),
            "acme.le.challenge = \"http-01\": expected an entry point with tls",
        ),
        (
            format!("[entrypoints.s]\nlisten = ':1443'\ntls = true\n[acme.le]\n{good}"),
            "acme.le.challenge = \"http-01\": expected an entry point without tls",
        ),
        (
            format!(
                "[entrypoints.s]\nlisten = ':1443'\ntls = {{ client_ca = 'x' }}\n[acme.le]\n{good}challenge = 'tls-alpn-01'\n"
            ),
            "acme.le.challenge = \"tls-alpn-01\": expected an entry point that lets in who shows no certificate",
        ),
        (
            format!("{doors}[swarm]\nenabled = true\n[link]\nlisten = 'none'\n[acme.le]\n{good}"),
            "expected none where link.listen = \"none\" in a swarm",
        ),
    ] {
        let (code, said) = check(&text);
        assert!(
            code == Some(64) && said.contains(expected),
            "{expected}\nin {said}\nof {text}"
        );
    }
    for swarm in ["", "[swarm]\nenabled = true\n"] {
        let (code, said) = check(&format!("{doors}{swarm}[acme.le]\n{good}"));
        assert_eq!(code, Some(0), "{said}");
    }
}

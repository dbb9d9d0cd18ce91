//! Which version of HTTP is spoken over TLS, and what is waited for: endpoints that know HTTP/2 alone, both, or change meanwhile.

use std::convert::Infallible;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::rig::{Authority, Endpoint, Node, Pair, answer, ask, at, get, read_head, service};
use crate::harness::{dial, free_port, wait_until};

const BY_CA: &str = "endpoint_tls: { ca: internal }";
const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// An endpoint of hyper's that knows these versions, and says by which it was asked. Ends with this.
struct Versions {
    addr: SocketAddr,
    n_connections: Arc<AtomicUsize>,
    /// It ends once this is dropped.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Versions {
    fn start(pair: &Pair, alpn: &[&str]) -> Versions {
        Versions::start_at(at(0), pair, alpn)
    }

    fn start_at(addr: SocketAddr, pair: &Pair, alpn: &[&str]) -> Versions {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(pair.config(alpn));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(addr)).unwrap();
        let addr = listener.local_addr().unwrap();
        let n_connections: Arc<AtomicUsize> = Arc::default();
        let counted = n_connections.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counted) = (acceptor.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else {
                        return;
                    };
                    counted.fetch_add(1, Ordering::SeqCst);
                    let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
                    let say = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                        let body = http_body_util::Full::new(bytes::Bytes::from(format!("{:?}", request.version())));
                        Ok::<_, Infallible>(hyper::Response::new(body))
                    });
                    let io = TokioIo::new(tls);
                    let _ = match is_http2 {
                        true => {
                            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            builder.serve_connection(io, say).await
                        }
                        false => {
                            let builder = hyper::server::conn::http1::Builder::new();
                            builder.serve_connection(io, say).await
                        }
                    };
                });
            }
        };
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
        });
        Versions {
            addr,
            n_connections,
            _stop: stop,
        }
    }
}

/// The status of what an upgrade is answered with, and what follows as far as it is there.
fn upgrade(addr: SocketAddr) -> (u16, TcpStream) {
    let mut client = dial(addr);
    client.write_all(UPGRADE.as_bytes()).unwrap();
    let head = read_head(&mut client).unwrap();
    (head[9..12].parse().unwrap(), client)
}

#[test]
fn an_upgrade_takes_http_2_from_nobody() {
    let authority = Authority::new("internal");
    let endpoint = Versions::start(&authority.issue(&["web"]), &["h2", "http/1.1"]);
    let port = free_port();
    let _node = Node::start(
        &service("web", port, &[endpoint.addr], &[BY_CA]),
        &[("internal", &authority.pem)],
    );
    for _ in 0..8 {
        // Its connection is kept, and for whom.
        assert_eq!(upgrade(at(port)).0, 200);
    }
    for _ in 0..8 {
        let (status, text) = get(at(port), "/");
        assert!(status == 200 && text.ends_with("HTTP/2.0"), "{text}");
    }
}

#[test]
fn who_asks_an_endpoint_for_http_1_1_that_it_has_not_takes_it_from_nobody() {
    let authority = Authority::new("internal");
    let endpoint = Versions::start(&authority.issue(&["web"]), &["h2"]);
    let port = free_port();
    let services = service("web", port, &[endpoint.addr], &[BY_CA]);
    let node = Node::start(
        &services.replace("hold_timeout: 0s", "hold_timeout: 20s"),
        &[("internal", &authority.pem)],
    );
    assert_eq!(get(at(port), "/").0, 200);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let asked = Instant::now();
                    let (status, client) = upgrade(at(port));
                    assert_eq!(status, 502);
                    drop(client);
                    let (status, text) = ask(at(port), "GET / HTTP/1.1\r\nHost: a%62c\r\nConnection: close\r\n\r\n");
                    assert!(status == 502 && text.contains("speaks HTTP/1.1"), "{text}");
                    assert!(asked.elapsed() < Duration::from_secs(5), "it is not waited for");
                }
            });
        }
        for _ in 0..100 {
            let asked = Instant::now();
            assert_eq!(get(at(port), "/").0, 200);
            assert!(asked.elapsed() < Duration::from_secs(2));
        }
    });
    assert_eq!(node.states("web"), ["ready"]);
    assert!(!node.status().contains("! TLS:"), "{}", node.status());
    assert_eq!(node.handshakes("web", "no_http1"), 80);
}

#[test]
fn who_asks_for_http_1_1_does_not_look_out_for_others() {
    let authority = Authority::new("internal");
    let port = free_port();
    let addr = at(free_port());
    let services = service("web", port, &[addr], &[BY_CA]);
    let node = Node::start(
        &services.replace("hold_timeout: 0s", "hold_timeout: 30s"),
        &[("internal", &authority.pem)],
    );
    std::thread::scope(|scope| {
        let upgrades: Vec<_> = (0..12).map(|_| scope.spawn(|| upgrade(at(port)).0)).collect();
        std::thread::sleep(Duration::from_millis(500));
        let gets: Vec<_> = (0..4).map(|_| scope.spawn(|| get(at(port), "/").0)).collect();
        wait_until("all to wait", || {
            node.metric("anynode_held{service=\"web\"") >= 16 || node.metric("anynode_hold_depth{service=\"web\"") >= 16
        });
        let began = Instant::now();
        let _endpoint = Versions::start_at(addr, &authority.issue(&["web"]), &["h2"]);
        for get in gets {
            assert_eq!(get.join().unwrap(), 200);
        }
        println!("after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        for upgrade in upgrades {
            assert_eq!(upgrade.join().unwrap(), 502);
        }
    });
    // Where nobody else waits they look out themselves.
    let both = at(free_port());
    node.declare(&service("web", port, &[both], &[BY_CA]).replace("hold_timeout: 0s", "hold_timeout: 30s"));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| upgrade(at(port)).0);
        std::thread::sleep(Duration::from_millis(500));
        let _endpoint = Versions::start_at(both, &authority.issue(&["web"]), &["h2", "http/1.1"]);
        assert_eq!(waits.join().unwrap(), 200);
    });
}

#[test]
fn who_waited_is_brought_to_its_endpoint_as_the_service_asks_by_then() {
    let authority = Authority::new("internal");
    let port = free_port();
    let addr = at(free_port());
    let with = |scheme: &str, more: &str| {
        let text = service("web", port, &[addr], &[more]);
        text.replace("hold_timeout: 0s", "hold_timeout: 30s")
            .replace("scheme: https", scheme)
    };
    let node = Node::start(&with("scheme: http", "stop_grace: 1s"), &[("internal", &authority.pem)]);
    std::thread::scope(|scope| {
        let waits: Vec<_> = (0..4).map(|_| scope.spawn(|| get(at(port), "/"))).collect();
        std::thread::sleep(Duration::from_millis(500));
        node.declare(&with("scheme: https", BY_CA));
        let _endpoint = Versions::start_at(addr, &authority.issue(&["web"]), &["h2", "http/1.1"]);
        for one in waits {
            let (status, text) = one.join().unwrap();
            assert!(status == 200 && text.ends_with("HTTP/2.0"), "{text}");
        }
    });
}

#[test]
fn who_waited_in_the_queue_is_brought_to_nobody_who_is_not_believed_by_then() {
    let (ours, theirs) = (Authority::new("internal"), Authority::new("somebody"));
    let endpoint = Endpoint::start(&theirs.issue(&["web"]), |stream| {
        while let Some(head) = read_head(stream) {
            if head.starts_with("GET /slow ") {
                std::thread::sleep(Duration::from_secs(3));
            }
            if answer(stream, &head).is_err() {
                return;
            }
        }
    });
    let port = free_port();
    let with = |more: &str| {
        let text = service("web", port, &[endpoint.addr()], &[more]);
        text.replace(
            "limits: {",
            "limits: { endpoint_connections: 1, queue: 10, queue_timeout: 20s,",
        )
    };
    let node = Node::start(
        &with("endpoint_tls: { ca: theirs }"),
        &[("internal", &ours.pem), ("theirs", &theirs.pem)],
    );
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| get(at(port), "/slow").0);
        std::thread::sleep(Duration::from_millis(500));
        let waits: Vec<_> = (0..3).map(|_| scope.spawn(|| get(at(port), "/later").0)).collect();
        std::thread::sleep(Duration::from_millis(500));
        node.declare(&with(BY_CA));
        assert_eq!(slow.join().unwrap(), 200);
        for one in waits {
            assert_eq!(one.join().unwrap(), 502);
        }
    });
    assert!(node.handshakes("web", "unknown_issuer") >= 1);
}

#[test]
fn an_endpoint_that_asks_for_a_certificate_after_the_handshake_is_named() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::asking(&authority.issue(&["web"]), &authority);
    let port = free_port();
    let node = Node::start(
        &service("web", port, &[endpoint.addr()], &[BY_CA]),
        &[("internal", &authority.pem)],
    );
    for i in 1..=3 {
        assert_eq!(get(at(port), "/").0, 502);
        assert!(node.handshakes("web", "refused") >= i, "{i}");
        let status = node.status();
        assert!(
            status.contains("! TLS: ") && status.contains("CertificateRequired"),
            "{status}"
        );
    }
}

#[test]
fn a_node_without_the_authority_makes_no_word_on_endpoints_of_it() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::mirror(&authority.issue(&["web"]));
    let port = free_port();
    let with = |ca: &str| {
        let tls = format!("endpoint_tls: {{ ca: {ca}, server_name: web }}");
        service(
            "web",
            port,
            &[endpoint.addr()],
            &[&tls, "health: { http: /health, interval: 50ms }"],
        )
    };
    let node = Node::start(&with("elsewhere"), &[("internal", &authority.pem)]);
    let said = "service web: endpoint_tls.ca = elsewhere: this node's configuration has no authorities.elsewhere";
    assert!(node.ready().contains(said), "{}", node.ready());
    assert!(node.status().contains(said), "{}", node.status());
    for _ in 0..5 {
        assert_eq!(get(at(port), "/").0, 502);
        std::thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(node.states("web"), ["untried"]);
    assert_eq!(endpoint.origin.accepted.load(Ordering::SeqCst), 0, "nobody connects");
    node.declare(&with("internal"));
    wait_until("an answer", || get(at(port), "/").0 == 200);
    assert!(!node.status().contains("authorities.elsewhere"), "{}", node.status());
}

#[test]
fn what_was_said_of_tls_goes_with_it() {
    let (ours, theirs) = (Authority::new("internal"), Authority::new("somebody"));
    let port = free_port();
    let addr = at(free_port());
    let with = |scheme: &str, more: &str| service("web", port, &[addr], &[more]).replace("scheme: https", scheme);
    let node = Node::start(&with("scheme: https", BY_CA), &[("internal", &ours.pem)]);
    let pair = theirs.issue(&["web"]);
    let secured = Versions::start_at(addr, &pair, &["http/1.1"]);
    assert_eq!(get(at(port), "/").0, 502);
    assert!(node.status().contains("! TLS:"), "{}", node.status());
    assert_eq!(secured.n_connections.load(Ordering::SeqCst), 0);
    node.declare(&with("scheme: http", "stop_grace: 1s"));
    assert!(!node.status().contains("! TLS:"), "{}", node.status());
}

/// The answers to so many requests that begin at the same time.
fn burst(port: u16, n: usize) -> Vec<u16> {
    let ready = std::sync::Barrier::new(n);
    std::thread::scope(|scope| {
        let ask = || {
            ready.wait();
            get(at(port), "/").0
        };
        let asking: Vec<_> = (0..n).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[test]
fn of_many_who_come_at_once_few_make_a_connection_of_http_2() {
    let authority = Authority::new("internal");
    let endpoint = Versions::start(&authority.issue(&["web"]), &["h2"]);
    let port = free_port();
    let _node = Node::start(
        &service("web", port, &[endpoint.addr], &[BY_CA]),
        &[("internal", &authority.pem)],
    );
    let n = 300;
    assert_eq!(burst(port, n), vec![200; n]);
    let n_made = endpoint.n_connections.load(Ordering::SeqCst);
    println!("{n_made} connections for {n} requests");
    assert!(n_made < n / 2, "{n_made}");
}

#[test]
fn an_endpoint_that_is_slow_to_shake_hands_with_a_crowd_does_not_rest() {
    let authority = Authority::new("internal");
    let pair = authority.issue(&["web"]);
    let endpoint = Endpoint::start_with(pair.config(&["http/1.1"]), Duration::from_millis(40), |stream| {
        while let Some(head) = read_head(stream) {
            std::thread::sleep(Duration::from_secs(3));
            if answer(stream, &head).is_err() {
                return;
            }
        }
    });
    let port = free_port();
    let node = Node::start(
        &service("web", port, &[endpoint.addr()], &[BY_CA, "timeouts: { connect: 1s }"]),
        &[("internal", &authority.pem)],
    );
    let answers = burst(port, 60);
    let n_late = answers.iter().filter(|status| **status == 504).count();
    let n_good = answers.iter().filter(|status| **status == 200).count();
    assert!(n_late >= 3 && n_good >= 3 && n_late + n_good == 60, "{answers:?}");
    assert_eq!(node.states("web"), ["ready"], "{n_late} were too late");
}

//! What goes through: kept connections, sessions, bodies, upgrades, ends; also through another node.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anynode::model::{Mode, Scheme, TaskRef, Verify};
use anynode::proxy::{Beside, Dialer, Dialing, ProxyConfig, Tunnel, TunnelFor};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::rig::{Authority, Endpoint, Node, Stream, answer, ask, at, get, goodbye, read_head, service};
use crate::harness::{self, Origin, dial, door, free_port, wait_until};

const BY_CA: &str = "endpoint_tls: { ca: internal }";

fn node(endpoint: &Endpoint, authority: &Authority) -> (Node, u16) {
    let port = free_port();
    let services = service("web", port, &[endpoint.addr()], &[BY_CA]);
    (Node::start(&services, &[("internal", &authority.pem)]), port)
}

/// One request after the other on one connection of a client.
fn exchange(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).unwrap();
    let head = read_head(client).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    client.read_exact(&mut body).unwrap();
    format!("{head}{}", String::from_utf8_lossy(&body))
}

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";

#[test]
fn a_connection_is_kept_and_a_session_goes_on() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::mirror(&authority.issue(&["web"]));
    let (node, port) = node(&endpoint, &authority);
    let mut client = dial(at(port));
    for _ in 0..50 {
        assert!(exchange(&mut client, GET).starts_with("HTTP/1.1 200 "));
        // What cannot be sent twice is sent on a kept one too.
        let post = "POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n";
        assert!(exchange(&mut client, post).starts_with("HTTP/1.1 200 "));
    }
    let seen = endpoint.seen();
    assert_eq!((seen.n_full, seen.n_resumed), (1, 0), "one handshake for all");
    drop((client, node));

    let closing = Endpoint::closing(&authority.issue(&["web"]));
    let (node, port) = self::node(&closing, &authority);
    let mut client = dial(at(port));
    for _ in 0..20 {
        assert!(exchange(&mut client, GET).starts_with("HTTP/1.1 200 "));
    }
    let seen = closing.seen();
    // One in full, and as many as ran beside it before it gave a session.
    assert!(seen.n_full <= 2 && seen.n_resumed >= 18, "{seen:?}");
    assert!(node.handshakes("web", "resumed") >= 18);
}

#[test]
fn a_session_ends_with_the_certificate_that_it_was_begun_by() {
    let authority = Authority::new("internal");
    let lasts = Duration::from_secs(5);
    let until = Instant::now() + lasts;
    let closing = Endpoint::closing(&authority.issue_for(&["web"], lasts.try_into().unwrap()));
    let (node, port) = node(&closing, &authority);
    while Instant::now() + Duration::from_millis(1500) < until {
        assert_eq!(get(at(port), "/").0, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(node.handshakes("web", "resumed") > 3);
    std::thread::sleep(until.saturating_duration_since(Instant::now()) + Duration::from_secs(1));
    for i in 1..=2 {
        assert_eq!(get(at(port), "/").0, 502);
        assert_eq!(node.handshakes("web", "expired"), i);
    }
    assert!(
        node.status().contains("its certificate has expired"),
        "{}",
        node.status()
    );
}

/// Answers `GET /n` with n bytes, and anything with a body with its length and sum.
fn bodies(stream: &mut Stream) {
    while let Some(head) = read_head(stream) {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse::<usize>().unwrap())
        });
        if let Some(mut left) = length {
            let (mut buffer, mut sum) = (vec![0; 64 * 1024], 0_u64);
            while left > 0 {
                let most = left.min(buffer.len());
                let Ok(n @ 1..) = stream.read(&mut buffer[..most]) else {
                    return;
                };
                sum += buffer[..n].iter().map(|byte| u64::from(*byte)).sum::<u64>();
                left -= n;
            }
            if answer(stream, &format!("{} {sum}", length.unwrap())).is_err() {
                return;
            }
        } else if let Ok(n) = path[1..].parse::<usize>() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n");
            if stream.write_all(head.as_bytes()).is_err() || stream.write_all(&noise(n)).is_err() {
                return;
            }
        } else {
            // Until the end, which is said or not.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it");
            let _ = stream.flush();
            if path == "/whole" {
                goodbye(stream);
            }
            return;
        }
    }
}

fn noise(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i % 251) as u8 ^ (i >> 13) as u8).collect()
}

#[test]
fn bodies_pass_whole_and_what_is_cut_off_is_not_taken_for_whole() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::start(&authority.issue(&["web"]), bodies);
    let (_node, port) = node(&endpoint, &authority);
    let n = 24 << 20;
    let body = noise(n);
    let mut client = dial(at(port));
    client
        .write_all(format!("GET /{n} HTTP/1.1\r\nHost: shop.test\r\n\r\n").as_bytes())
        .unwrap();
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 200 "));
    let mut got = vec![0; n];
    client.read_exact(&mut got).unwrap();
    assert!(got == body, "another body");
    let head = format!("PUT / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {n}\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&body).unwrap();
    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
    let said = exchange(&mut client, "");
    assert!(said.ends_with(&format!("{n} {sum}")), "{said}");
    assert_eq!(endpoint.seen().n_full, 1);
    // One that lasts until the end.
    let (status, text) = get(at(port), "/whole");
    assert!(status == 200 && text.contains("half of it"), "{text}");
    let mut client = dial(at(port));
    client
        .write_all(b"GET /cut HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        .unwrap();
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn an_upgrade_goes_by_http_1_1_and_either_side_ends_by_itself() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::start(&authority.issue(&["web"]), |stream| {
        let head = read_head(stream).unwrap();
        assert!(
            head.contains("Upgrade: websocket\r\n") && head.contains("Connection: upgrade\r\n"),
            "{head}"
        );
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst ";
        stream.write_all(switch).unwrap();
        stream.flush().unwrap();
        // To its end, and then it goes on.
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        stream.write_all(format!("heard {said}").as_bytes()).unwrap();
        goodbye(stream);
    });
    let (_node, port) = node(&endpoint, &authority);
    let mut client = dial(at(port));
    client
        .write_all(b"GET /chat HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
        .unwrap();
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 101 "));
    client.write_all(b"late").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert_eq!(said, "first heard early late");
}

#[test]
fn handshakes_and_endpoints_that_end_none_hold_nobody_up() {
    let authority = Authority::new("internal");
    let silent = Origin::start(|mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer) {}
    });
    let busy = Endpoint::closing(&authority.issue(&["busy"]));
    let plain = Origin::start(|mut stream| {
        while harness::read_head(&mut stream).is_some() {
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .is_err()
            {
                return;
            }
        }
    });
    let ports = [free_port(), free_port(), free_port()];
    let node = Node::start(
        &[
            service(
                "silent",
                ports[0],
                &[silent.addr],
                &[BY_CA, "timeouts: { connect: 3s }"],
            ),
            service("busy", ports[1], &[busy.addr()], &[BY_CA]),
            service("plain", ports[2], &[plain.addr], &[]).replace("scheme: https", "scheme: http"),
        ]
        .concat(),
        &[("internal", &authority.pem)],
    );
    let is_over = AtomicBool::new(false);
    let n_late = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| assert_eq!(get(at(ports[0]), "/").0, 504));
        }
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = dial(at(ports[1]));
                while !is_over.load(Ordering::SeqCst) {
                    assert!(exchange(&mut client, GET).starts_with("HTTP/1.1 200 "));
                }
            });
        }
        let mut client = dial(at(ports[2]));
        let mut longest = Duration::ZERO;
        for _ in 0..1000 {
            let asked = Instant::now();
            assert!(exchange(&mut client, GET).ends_with("hi"));
            longest = longest.max(asked.elapsed());
            n_late.fetch_add(usize::from(asked.elapsed() > Duration::from_secs(1)), Ordering::SeqCst);
        }
        is_over.store(true, Ordering::SeqCst);
        println!("longest: {longest:?}");
    });
    assert_eq!(n_late.load(Ordering::SeqCst), 0);
    assert!(node.handshakes("busy", "resumed") + node.handshakes("busy", "full") > 50);
    assert_eq!(node.handshakes("silent", "timed_out"), 40);
}

#[test]
fn another_way_of_judging_takes_up_no_connection_of_the_one_before() {
    let (ours, theirs) = (Authority::new("internal"), Authority::new("somebody"));
    let endpoint = Endpoint::mirror(&theirs.issue(&["web"]));
    let port = free_port();
    let with = |more: &str| service("web", port, &[endpoint.addr()], &[more]);
    let node = Node::start(
        &with("endpoint_tls: { verify: none }"),
        &[("internal", &ours.pem), ("theirs", &theirs.pem)],
    );
    let mut client = dial(at(port));
    assert!(exchange(&mut client, GET).starts_with("HTTP/1.1 200 "));
    node.declare(&with(BY_CA));
    assert_eq!(get(at(port), "/").0, 502);
    node.declare(&with("endpoint_tls: { ca: theirs }"));
    wait_until("a rest to end", || get(at(port), "/").0 == 200);
    assert_eq!(endpoint.seen().n_resumed, 0, "no session of the one before either");
    // Without TLS it understands nothing.
    node.declare(&with("stop_grace: 1s").replace("scheme: https", "scheme: http"));
    assert_eq!(get(at(port), "/").0, 502);
}

#[test]
fn requests_without_a_host_and_by_http_1_0_go_by_http_1_1() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::mirror(&authority.issue(&["web"]));
    let (_node, port) = node(&endpoint, &authority);
    let (status, text) = ask(at(port), "GET /old HTTP/1.0\r\n\r\n");
    assert!(status == 200 && text.contains("GET /old HTTP/1.1\r\n"), "{text}");
}

/// A way to other nodes that is a plain connection to the task, whose socket is nobody's to see.
struct Elsewhere;

struct Plain(tokio::net::TcpStream);

impl Dialer for Elsewhere {
    fn dial(&self, target: TunnelFor<'_>) -> Dialing {
        let link = target.link;
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(link).await?;
            Ok(Box::new(Plain(stream)) as Box<dyn Tunnel>)
        })
    }
}

impl Tunnel for Plain {
    fn socket(&self) -> Option<&tokio::net::TcpStream> {
        None
    }

    fn is_leaving(&self) -> bool {
        false
    }
}

impl AsyncRead for Plain {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn the_node_that_has_the_client_begins_tls_with_a_task_of_another_node() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::start(&authority.issue(&["web"]), bodies);
    let beside = Beside {
        dialer: Some(Arc::new(Elsewhere)),
        ..Beside::default()
    };
    let node = harness::Node::start_beside(ProxyConfig::default(), Duration::ZERO, beside);
    let mut spec = harness::service("web", &[endpoint.addr()]);
    (spec.mode, spec.scheme) = (Mode::Http, Scheme::Https);
    spec.endpoint_tls.verify = Verify::None;
    spec.endpoints[0].task = Some(Arc::new(TaskRef {
        id: "task".into(),
        name: "web.1".to_owned(),
        service: "web".into(),
        node: "other".into(),
        hostname: "other".into(),
        is_remote: true,
        addresses: Vec::new(),
        names: Vec::new(),
    }));
    node.apply(&spec);
    let mut client = dial(door(&spec));
    let n = 4 << 20;
    for _ in 0..3 {
        client
            .write_all(format!("GET /{n} HTTP/1.1\r\nHost: shop.test\r\n\r\n").as_bytes())
            .unwrap();
        read_head(&mut client).unwrap();
        let mut got = vec![0; n];
        client.read_exact(&mut got).unwrap();
        assert!(got == noise(n), "another body");
        let body = "x".repeat(100_000);
        let said = exchange(
            &mut client,
            &format!("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 100000\r\n\r\n{body}"),
        );
        assert!(said.ends_with("100000 12000000"), "{said}");
    }
    assert_eq!(endpoint.seen().n_full + endpoint.seen().n_resumed, 1, "and it is kept");
    let cut = get(door(&spec), "/cut");
    assert!(!cut.1.contains("\r\n0\r\n"), "{cut:?}");
}

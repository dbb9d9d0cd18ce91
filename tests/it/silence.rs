//! Endpoints that accept and say nothing: those that die without an answer, and those whose node has fallen silent.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anynode::model::{Mode, Passive, ServiceSpec, TaskRef};
use anynode::proxy::{Beside, Dialer, Dialing, ProxyConfig, Tunnel, TunnelFor};
use anynode::routing::{CloseReason, EndpointState};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::harness::{Node, Origin, PATIENCE, dial, door, reset, service, wait_until};

/// Answers every request, on connections that stay.
fn well() -> Origin {
    Origin::start(|mut stream| {
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer), Ok(1..)) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        }
    })
}

/// Takes a request, and is gone.
fn dies() -> Origin {
    Origin::start(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        reset(stream);
    })
}

const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// The status of a request's answer, and its body.
fn exchange(client: &mut TcpStream, request: &[u8]) -> (u16, String) {
    client.write_all(request).unwrap();
    answer(client)
}

fn answer(client: &mut TcpStream) -> (u16, String) {
    let (mut head, mut byte) = (String::new(), [0]);
    while !head.ends_with("\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0] as char);
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap()];
    client.read_exact(&mut body).unwrap();
    (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
}

fn web(endpoints: &[&Origin]) -> ServiceSpec {
    let addrs: Vec<SocketAddr> = endpoints.iter().map(|origin| origin.addr).collect();
    let mut spec = service("web", &addrs);
    spec.mode = Mode::Http;
    spec
}

fn state(node: &Node, i: usize) -> EndpointState {
    node.service("web").endpoints()[i].state(Instant::now())
}

/// Every second POST was a 502, for ever.
#[test]
fn an_endpoint_that_dies_without_an_answer_is_rested() {
    let (good, bad) = (well(), dies());
    let node = Node::start();
    let web = web(&[&good, &bad]);
    node.apply(&web);
    let mut n_failed = 0;
    for _ in 0..60 {
        match exchange(&mut dial(door(&web)), POST) {
            (200, _) => {}
            (502, _) => n_failed += 1,
            other => panic!("{other:?}"),
        }
    }
    println!("{n_failed} of 60 failed, {} reached the bad one", bad.n_accepted());
    // Three, and three more after each rest of a second, two, four and so on.
    assert!((3..=15).contains(&n_failed), "{n_failed}");
    assert!(node.service("web").stats().ejections.load(Ordering::Relaxed) >= 1);
}

#[test]
fn one_client_alone_takes_no_endpoint_away_and_nobody_takes_the_last() {
    let (good, bad) = (well(), dies());
    let node = Node::start();
    let alone = web(&[&good, &bad]);
    node.apply(&alone);
    // On loopback each connection is a client: this is one.
    let mut client = dial(door(&alone));
    let n_failed = (0..20).filter(|_| exchange(&mut client, POST).0 == 502).count();
    assert_eq!(n_failed, 10);
    assert_eq!(state(&node, 1), EndpointState::Ready, "it accepts");
    // All of them die on everybody: half of them stay.
    let others = [dies(), dies(), dies()];
    let all = web(&[&bad, &others[0], &others[1], &others[2]]);
    let all = ServiceSpec {
        publish: alone.publish.clone(),
        ..all
    };
    node.apply(&all);
    for _ in 0..40 {
        assert_eq!(exchange(&mut dial(door(&all)), POST).0, 502);
        let rest = |i: &usize| state(&node, *i) == EndpointState::Resting;
        assert!((0..4).filter(rest).count() <= 2);
    }
    assert!(!node.service("web").is_lost());
}

#[test]
fn in_tcp_mode_that_is_so_where_it_is_asked_for() {
    for passive in [Passive::Normal, Passive::Strict] {
        let (good, bad) = (Origin::named("good"), dies());
        let node = Node::start();
        let mut web = service("web", &[good.addr, bad.addr]);
        web.passive = passive;
        node.apply(&web);
        for _ in 0..12 {
            let mut client = dial(door(&web));
            client.write_all(b"x").unwrap();
            let _ = client.read_to_end(&mut Vec::new());
        }
        let ejections = || node.service("web").stats().ejections.load(Ordering::Relaxed);
        match passive {
            Passive::Normal => assert_eq!((ejections(), state(&node, 1)), (0, EndpointState::Ready)),
            Passive::Strict => wait_until("the bad one to rest", || ejections() >= 1),
        }
        assert_eq!(state(&node, 0), EndpointState::Ready);
    }
}

/// A way to other nodes that is a plain connection to the task.
struct Plain;

struct PlainTunnel(tokio::net::TcpStream);

impl Dialer for Plain {
    fn dial(&self, target: TunnelFor<'_>) -> Dialing {
        let link = target.link;
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(link).await?;
            Ok(Box::new(PlainTunnel(stream)) as Box<dyn Tunnel>)
        })
    }
}

impl Tunnel for PlainTunnel {
    fn socket(&self) -> Option<&tokio::net::TcpStream> {
        Some(&self.0)
    }

    fn is_leaving(&self) -> bool {
        false
    }
}

impl AsyncRead for PlainTunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PlainTunnel {
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

/// The endpoints as tasks of other nodes.
fn as_remote(spec: &mut ServiceSpec) {
    for (i, endpoint) in spec.endpoints.iter_mut().enumerate() {
        endpoint.task = Some(Arc::new(TaskRef {
            id: format!("task{i}").into(),
            name: format!("web.{i}"),
            service: "web".into(),
            node: format!("node{i}").into(),
            hostname: "host".into(),
            is_remote: true,
            addresses: Vec::new(),
            names: Vec::new(),
        }));
    }
}

/// They hung until the kernel gave up, for 25 s.
#[test]
fn requests_at_a_node_that_falls_silent_go_elsewhere_or_end() {
    let n_heard = Arc::new(AtomicUsize::new(0));
    let silent = {
        let n_heard = n_heard.clone();
        Origin::start(move |mut stream| {
            let mut buffer = [0; 4096];
            let Ok(n @ 1..) = stream.read(&mut buffer) else { return };
            if buffer[..n].starts_with(b"GET /half") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            }
            n_heard.fetch_add(1, Ordering::SeqCst);
            // Until the other end has gone.
            let _ = stream.read(&mut buffer);
        })
    };
    let good = well();
    let beside = Beside {
        tls: None,
        dialer: Some(Arc::new(Plain)),
        ..Beside::default()
    };
    let node = Node::start_beside(ProxyConfig::default(), Duration::ZERO, beside);
    let mut web = web(&[&silent, &good]);
    as_remote(&mut web);
    let both = web.clone();
    web.endpoints.truncate(1);
    node.apply(&web);
    let begin = |request: &[u8]| {
        let mut client = dial(door(&web));
        client.write_all(request).unwrap();
        client
    };
    let mut get = begin(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut post = begin(POST);
    let mut half = begin(b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut text = [0; 512];
    wait_until("all to be asked", || n_heard.load(Ordering::SeqCst) == 3);
    let n = half.read(&mut text).unwrap();
    assert!(text[..n].starts_with(b"HTTP/1.1 200 "));
    node.apply(&both);
    // As `app` does it once the link to the node is silent.
    let endpoint = node.service("web").endpoints()[0].clone();
    endpoint.set_probed(false);
    let started = Instant::now();
    node.proxy.endpoints_lost(&[endpoint.id()]);
    assert_eq!(answer(&mut get), (200, "hi".to_owned()));
    let (status, text) = answer(&mut post);
    assert_eq!(status, 504);
    assert!(text.contains("the endpoint's node does not answer"), "{text}");
    let error = half.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    // Nothing more goes there, and the connections of those who asked go on.
    for client in [&mut get, &mut post] {
        assert_eq!(exchange(client, POST), (200, "hi".to_owned()));
    }
    assert_eq!(silent.n_accepted(), 3);
    assert_eq!(node.closed("web", CloseReason::UpstreamError), 1);
    assert_eq!(endpoint.in_flight(), 0);
}

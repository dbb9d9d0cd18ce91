//! Clients that go before they have their answer: what their endpoint is told, who keeps a place in a queue, and what is
//! counted.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use anynode::model::{Mode, ServiceSpec, TaskRef};
use anynode::proxy::{Beside, Dialer, Dialing, ProxyConfig, Tunnel, TunnelFor};
use anynode::routing::CloseReason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::harness::{Node, Origin, PATIENCE, dial, door, reset, service, wait_until};

fn http_service(name: &str, endpoints: &[SocketAddr]) -> ServiceSpec {
    let mut spec = service(name, endpoints);
    spec.mode = Mode::Http;
    spec
}

/// How a connection ended, as its endpoint saw it, and what came before.
#[derive(Debug)]
struct Seen {
    bytes: String,
    /// `None`: an orderly end.
    error: Option<ErrorKind>,
}

/// Reads each connection to its end and answers nothing. Says when the first byte of one has come, and how it ended.
fn recording(say: &'static [u8]) -> (Origin, Receiver<()>, Receiver<Seen>) {
    let (begun, has_begun): (Sender<()>, _) = channel();
    let (ended, has_ended) = channel();
    let origin = Origin::start(move |mut stream| {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
        let error = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => {
                    if bytes.is_empty() {
                        let _ = stream.write_all(say);
                        let _ = begun.send(());
                    }
                    bytes.extend_from_slice(&buffer[..n]);
                }
                Err(error) => break Some(error.kind()),
            }
        };
        let bytes = String::from_utf8_lossy(&bytes).into_owned();
        let _ = ended.send(Seen { bytes, error });
    });
    (origin, has_begun, has_ended)
}

/// How a client goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goes {
    Ends,
    Resets,
    /// Sends this, and stays.
    Says(&'static [u8]),
}

/// An endpoint that took an orderly end for the end of the body would run its handler on a part of it.
#[test]
fn an_upload_cut_short_is_reset_at_its_endpoint() {
    let length = "POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc";
    let chunked = "POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let within = "POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc";
    let bad: &[u8] = b"zz\r\n";
    let early: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let begun: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok";
    let node = Node::start();
    for (i, (request, goes, says, reason)) in [
        (length, Goes::Ends, &b""[..], CloseReason::ClientAbort),
        (length, Goes::Resets, b"", CloseReason::ClientRst),
        (chunked, Goes::Ends, b"", CloseReason::ClientAbort),
        (chunked, Goes::Resets, b"", CloseReason::ClientRst),
        (within, Goes::Ends, b"", CloseReason::ClientAbort),
        (chunked, Goes::Says(bad), b"", CloseReason::BadRequest),
        // The endpoint answers before it has the body, and still reads it.
        (length, Goes::Ends, begun, CloseReason::ClientAbort),
        (length, Goes::Ends, early, CloseReason::ResponseEnd),
        (chunked, Goes::Resets, early, CloseReason::ResponseEnd),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{request:?}, {goes:?}, {:?}", String::from_utf8_lossy(says));
        let (origin, has_begun, has_ended) = recording(says);
        let web = http_service(&format!("web{i}"), &[origin.addr]);
        node.apply(&web);
        let mut client = dial(door(&web));
        client.write_all(request.as_bytes()).unwrap();
        has_begun.recv_timeout(PATIENCE).unwrap();
        let mut answer = Vec::new();
        while !says.is_empty() && !answer.ends_with(b"ok") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            answer.extend(byte);
        }
        match goes {
            Goes::Ends => {
                client.shutdown(Shutdown::Write).unwrap();
                let _ = client.read_to_end(&mut Vec::new());
            }
            Goes::Resets => reset(client),
            Goes::Says(bytes) => {
                client.write_all(bytes).unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
            }
        }
        let seen = has_ended.recv_timeout(PATIENCE).expect(&what);
        assert_eq!(seen.error, Some(ErrorKind::ConnectionReset), "{what}: {seen:?}");
        assert!(seen.bytes.starts_with("POST /up HTTP/1.1\r\n"), "{what}: {seen:?}");
        wait_until(&what, || node.closed(web.name.as_str(), reason) == 1);
    }
}

/// A tunnel's goodbye is its orderly end, and its absence a reset.
#[test]
fn an_upload_cut_short_leaves_a_tunnel_without_goodbye() {
    let (said, has_said) = channel();
    let node = Node::start_beside(
        ProxyConfig::default(),
        Duration::ZERO,
        Beside {
            dialer: Some(Arc::new(Tunnels(Mutex::new(said)))),
            ..Beside::default()
        },
    );
    let (origin, has_begun, has_ended) = recording(b"");
    let mut web = http_service("web", &[origin.addr]);
    web.endpoints[0].task = Some(Arc::new(TaskRef {
        id: "task".into(),
        name: "web.1".into(),
        service: "web".into(),
        node: "other".into(),
        hostname: "host".into(),
        is_remote: true,
        addresses: Vec::new(),
        names: Vec::new(),
    }));
    node.apply(&web);
    let mut client = dial(door(&web));
    client
        .write_all(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        .unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let seen = has_ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen.error, Some(ErrorKind::ConnectionReset), "{seen:?}");
    assert!(has_said.try_recv().is_err(), "it said goodbye");
    wait_until("the close", || node.closed("web", CloseReason::ClientAbort) == 1);
}

/// Connects straight to the link's address, in place of another node, and notes goodbyes.
struct Tunnels(Mutex<Sender<()>>);

impl Dialer for Tunnels {
    fn dial(&self, target: TunnelFor<'_>) -> Dialing {
        let (link, said) = (target.link, self.0.lock().unwrap().clone());
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(link).await?;
            Ok(Box::new(Overt { stream, said }) as Box<dyn Tunnel>)
        })
    }
}

struct Overt {
    stream: tokio::net::TcpStream,
    said: Sender<()>,
}

impl Tunnel for Overt {
    fn socket(&self) -> Option<&tokio::net::TcpStream> {
        Some(&self.stream)
    }

    fn is_leaving(&self) -> bool {
        false
    }
}

impl AsyncRead for Overt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Overt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let _ = self.said.send(());
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn held(node: &Node, name: &str) -> u32 {
    node.service(name).state().hold_gate.depth()
}

fn post(path: &str) -> String {
    format!("POST /{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
}

/// Answers each request with its path, and notes it.
fn echoing_paths() -> (Origin, Arc<Mutex<Vec<String>>>) {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = seen.clone();
    let origin = Origin::start(move |mut stream| {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            if !(text.ends_with("abc") || text.ends_with("0\r\n\r\n")) {
                continue;
            }
            let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
            text.clear();
            record.lock().unwrap().push(path.clone());
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}",
                path.len()
            );
        }
    });
    (origin, seen)
}

#[test]
fn those_who_have_gone_keep_nobody_out_and_their_posts_are_not_made() {
    const N: u32 = 50;
    let (origin, seen) = echoing_paths();
    let node = Node::start();
    let mut web = http_service("web", &[]);
    web.limits.hold = N;
    node.apply(&web);
    for _ in 0..N {
        // Closed in order, after all was said: it could still be a half.
        dial(door(&web)).write_all(post("gone").as_bytes()).unwrap();
    }
    wait_until("the queue to fill", || held(&node, "web") == N);
    let living: Vec<_> = (0..N)
        .map(|_| {
            let mut client = dial(door(&web));
            client.write_all(post("lives").as_bytes()).unwrap();
            client
        })
        .collect();
    wait_until("the gone to be out", || {
        node.closed("web", CloseReason::ResponseEnd) == u64::from(N)
    });
    assert_eq!(held(&node, "web"), N);
    // Nobody gives way to the next.
    let mut next = dial(door(&web));
    next.write_all(post("next").as_bytes()).unwrap();
    let mut answer = String::new();
    next.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    web.endpoints = service("web", &[origin.addr]).endpoints;
    node.apply(&web);
    for mut client in living {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("/lives"), "{answer}");
    }
    assert_eq!(*seen.lock().unwrap(), vec!["/lives"; N as usize]);
}

#[test]
fn who_waits_and_ends_is_kept_only_with_a_whole_request() {
    let large = "x".repeat(40_000) + "abc";
    let whole = [
        post("small"),
        format!("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{large}", large.len()),
        "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            .to_owned(),
    ];
    let cut = [
        post("small").replace("abc", "ab"),
        format!(
            "POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{large}",
            large.len() + 1
        ),
        "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n".to_owned(),
        "POST /expects HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n".to_owned(),
    ];
    let (origin, seen) = echoing_paths();
    let node = Node::start();
    let mut web = http_service("web", &[]);
    node.apply(&web);
    // In the second round all waits in the kernel, since one place is all there is.
    for round in ["held", "queued"] {
        let depth = || {
            let state = node.service("web").state().clone();
            state.hold_gate.depth() + state.connection_gate.depth()
        };
        let first = (round == "queued").then(|| {
            web.limits.connections = 1;
            node.apply(&web);
            let mut first = dial(door(&web));
            first
                .write_all(post("first").replace("Connection: close\r\n", "").as_bytes())
                .unwrap();
            let mut byte = [0];
            first.read_exact(&mut byte).unwrap();
            first
        });
        assert_eq!(depth(), 0, "{round}");
        let before = node.closed("web", CloseReason::ClientAbort);
        for (i, request) in cut.iter().enumerate() {
            let mut client = dial(door(&web));
            client.write_all(request.as_bytes()).unwrap();
            wait_until("it to wait", || depth() == 1);
            client.shutdown(Shutdown::Write).unwrap();
            wait_until(&format!("{round}: {}", &request[..20]), || depth() == 0);
            wait_until("its reason", || {
                node.closed("web", CloseReason::ClientAbort) == before + 1 + i as u64
            });
        }
        for request in &whole {
            let mut client = dial(door(&web));
            client.write_all(request.as_bytes()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            wait_until("it to wait", || depth() == 1);
            // It is there for good, not until somebody looks.
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(depth(), 1, "{round}: {}", &request[..20]);
            reset(client);
            wait_until("a reset to end it", || depth() == 0);
        }
        if round == "held" {
            let clients = whole.each_ref().map(|request| {
                let mut client = dial(door(&web));
                client.write_all(request.as_bytes()).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client
            });
            wait_until("all to wait", || depth() == 3);
            web.endpoints = service("web", &[origin.addr]).endpoints;
            node.apply(&web);
            for (mut client, path) in clients.into_iter().zip(["/small", "/large", "/chunked"]) {
                let mut answer = String::new();
                client.read_to_string(&mut answer).unwrap();
                assert!(answer.ends_with(path), "{answer}");
            }
        }
        drop(first);
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, ["/chunked", "/first", "/large", "/small"]);
}

#[test]
fn in_tcp_mode_the_oldest_that_has_ended_gives_way() {
    let node = Node::start();
    let mut web = service("web", &[]);
    web.limits.hold = 2;
    node.apply(&web);
    let ended = |text: &str| {
        let mut client = dial(door(&web));
        client.write_all(text.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    };
    let mut first = ended("first");
    wait_until("one to wait", || held(&node, "web") == 1);
    let second = ended("second");
    wait_until("two to wait", || held(&node, "web") == 2);
    // Both are known to have ended by the time that a third comes, or soon after: it may have to come again.
    let mut third = loop {
        let mut client = dial(door(&web));
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        match client.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            _ => break client,
        }
    };
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(first.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(node.closed("web", CloseReason::Limit) >= 1);
    reset(second);
    wait_until("a reset to end it", || held(&node, "web") == 1);
    wait_until("its reason", || node.closed("web", CloseReason::ClientRst) == 1);
    third.write_all(b"third").unwrap();
    third.shutdown(Shutdown::Write).unwrap();
    let echo = Origin::echo();
    web.endpoints = service("web", &[echo.addr]).endpoints;
    node.apply(&web);
    let mut answer = String::new();
    third.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "third");
}

/// Sends a request, waits until its endpoint has it, and goes.
fn ask_and_go(web: &ServiceSpec, has_begun: &Receiver<()>, goes: Goes, more: &str) -> std::net::TcpStream {
    let mut client = dial(door(web));
    client
        .write_all(format!("GET /poll HTTP/1.1\r\nHost: a\r\n\r\n{more}").as_bytes())
        .unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    if goes == Goes::Resets {
        // After an end, as a browser that closes and is written to.
        std::thread::sleep(Duration::from_millis(20));
        reset(client.try_clone().unwrap());
    }
    client
}

/// A long poll whose client has gone goes on only where an end may be a half.
#[test]
fn a_client_that_goes_while_it_waits_is_told_to_its_endpoint_as_its_service_says() {
    let node = Node::start();
    for (i, (aborts, goes, more, reason)) in [
        (true, Goes::Ends, "", Some(CloseReason::ClientAbort)),
        (
            true,
            Goes::Ends,
            "GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
            Some(CloseReason::ClientAbort),
        ),
        (true, Goes::Resets, "", None),
        (false, Goes::Resets, "", Some(CloseReason::ClientRst)),
        (
            false,
            Goes::Resets,
            "GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
            Some(CloseReason::ClientRst),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{aborts} {goes:?} {more:?}");
        let (origin, has_begun, has_ended) = recording(b"");
        let mut web = http_service(&format!("web{i}"), &[origin.addr]);
        web.abort_on_client_close = aborts;
        node.apply(&web);
        let client = ask_and_go(&web, &has_begun, goes, more);
        if goes == Goes::Resets {
            drop(client);
        }
        let seen = has_ended.recv_timeout(PATIENCE).expect(&what);
        assert_eq!(seen.error, Some(ErrorKind::ConnectionReset), "{what}: {seen:?}");
        if let Some(reason) = reason {
            wait_until(&what, || node.closed(web.name.as_str(), reason) == 1);
        }
    }
    // By default whoever has ended is answered.
    let (origin, has_begun, has_ended) = recording(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = ask_and_go(&web, &has_begun, Goes::Ends, "");
    assert!(has_ended.recv_timeout(Duration::from_millis(100)).is_err());
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

/// An upload that its endpoint does not take, so that nobody reads from the client.
#[test]
fn a_reset_is_noticed_while_the_upload_is_held_up() {
    let (ended, has_ended) = channel();
    let origin = Origin::start(move |mut stream| {
        let _ = stream.read(&mut [0; 64]);
        // The rest is left alone until the client has gone.
        while rustix::net::recv(&stream, &mut [0], rustix::net::RecvFlags::PEEK).is_ok()
            && !matches!(stream.take_error(), Ok(Some(_)) | Err(_))
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = ended.send(());
    });
    let node = Node::start();
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    client
        .write_all(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        .unwrap();
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while client.write(&[0; 65536]).is_ok() {}
    reset(client);
    wait_until("the close", || node.closed("web", CloseReason::ClientRst) == 1);
    has_ended.recv_timeout(PATIENCE).unwrap();
}

//! HTTP/1.1 through the data plane, with raw bytes on both sides: what the client gets and what the origin sees.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anynode::model::{Mode, ServiceSpec};
use anynode::routing::{CloseReason, HttpCode};

use crate::harness::{Node, Origin, dial, door, free_port, read_to_end, reset, service, wait_until};

fn http_service(name: &str, endpoints: &[SocketAddr]) -> ServiceSpec {
    let mut spec = service(name, endpoints);
    spec.mode = Mode::Http;
    spec
}

/// An origin that answers every request with what `answer` makes of its head and body, on one connection for long.
struct Web {
    origin: Origin,
    /// Every request as it was received.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Web {
    fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Web {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = seen.clone();
        let origin = Origin::start(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                record.lock().unwrap().push(request.clone());
                if stream.write_all(answer(&request).as_bytes()).is_err() {
                    return;
                }
            }
        });
        Web { origin, seen }
    }

    fn hello(name: &'static str) -> Web {
        Web::start(move |_| ok(name))
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Reads a head and the body that its Content-Length or chunks announce. `None` at the end.
fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => text.push(byte[0] as char),
            _ => return None,
        }
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    text.push_str(&String::from_utf8_lossy(&body));
    if text.contains("Transfer-Encoding: chunked") {
        while !text.ends_with("0\r\n\r\n") {
            stream.read_exact(&mut byte).ok()?;
            text.push(byte[0] as char);
        }
    }
    Some(text)
}

/// Sends one request on a connection of its own and returns everything that comes back.
fn once(addr: SocketAddr, request: &str) -> String {
    let mut client = dial(addr);
    client.write_all(request.as_bytes()).unwrap();
    String::from_utf8_lossy(&read_to_end(&client)).into_owned()
}

/// Sends a request on a connection that stays and returns the response, by its Content-Length.
fn on(mut client: &TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).unwrap();
    read_response(client)
}

fn read_response(mut client: &TcpStream) -> String {
    let mut text = String::new();
    let mut byte = [0];
    while !text.ends_with("\r\n\r\n") {
        client.read_exact(&mut byte).unwrap();
        text.push(byte[0] as char);
    }
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    client.read_exact(&mut body).unwrap();
    text.push_str(&String::from_utf8_lossy(&body));
    text
}

const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
const GET_AND_CLOSE: &str = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

#[test]
fn requests_of_one_connection_are_balanced_in_turn_over_kept_connections() {
    let webs = [Web::hello("a"), Web::hello("b"), Web::hello("c")];
    let node = Node::start();
    let web = http_service("web", &webs.each_ref().map(|web| web.origin.addr));
    node.apply(&web);
    let client = dial(door(&web));
    let answers: String = (0..9).map(|_| on(&client, GET).pop().unwrap()).collect();
    assert_eq!(answers, "abcabcabc");
    assert_eq!(webs.each_ref().map(|web| web.origin.n_accepted()), [1, 1, 1]);
    let service = node.service("web");
    wait_until("the last to be counted", || {
        service.stats().request_count(HttpCode::Success) == 9
    });
}

#[test]
fn the_origin_is_told_who_asks_and_spoofed_fields_are_gone() {
    let origin = Web::hello("a");
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let request = "GET /x?y HTTP/1.1\r\nHost: example.org\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                   Connection: close, X-Secret\r\nX-Secret: 1\r\nX-Kept: 2\r\n\r\n";
    let answer = once(door(&web), request);
    assert!(
        answer.contains("Connection: close\r\n") && answer.ends_with("\r\n\r\na"),
        "{answer}"
    );
    let seen = origin.seen().remove(0);
    assert!(seen.starts_with("GET /x?y HTTP/1.1\r\n"), "{seen}");
    for field in [
        "Host: example.org",
        "X-Kept: 2",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: example.org",
        "Forwarded: for=127.0.0.1;host=example.org;proto=http",
    ] {
        assert!(seen.contains(&format!("\r\n{field}\r\n")), "{field} in {seen}");
    }
    assert!(!seen.contains("6.6.6.6") && !seen.contains("X-Secret"), "{seen}");
}

#[test]
fn bodies_stream_both_ways_in_either_framing() {
    let origin = Web::start(|request| {
        let body = request.split_once("\r\n\r\n").unwrap().1.to_owned();
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\nX-Sum: 1\r\n\r\n",
            body.len()
        )
    });
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let sized = once(
        door(&web),
        "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    );
    assert!(
        sized.ends_with("\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
        "{sized}"
    );
    let mut client = dial(door(&web));
    for part in [
        "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3",
        "\r\nab",
        "c\r",
        "\n0\r\n",
        "\r\n",
    ] {
        client.write_all(part.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    let chunked = String::from_utf8(read_to_end(&client)).unwrap();
    assert!(chunked.contains("3\r\nabc\r\n0\r\n\r\n"), "{chunked}");
}

#[test]
fn large_bodies_arrive_whole_both_ways() {
    let origin = Origin::start(|mut stream| {
        let mut byte = [0];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let mut body = vec![0; 20 << 20];
        stream.read_exact(&mut body).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        stream.write_all(&body).unwrap();
    });
    let node = Node::start();
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let body: Vec<u8> = (0..20u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut client = dial(door(&web));
    write!(
        client,
        "PUT / HTTP/1.1\r\nHost: web\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    client.write_all(&body).unwrap();
    let answer = read_to_end(&client);
    assert!(
        answer.ends_with(&body) && answer.len() < body.len() + 200,
        "{}",
        answer.len()
    );
}

#[test]
fn an_upgrade_goes_on_as_bytes() {
    let origin = Origin::start(|mut stream| {
        let request = read_request(&mut stream).unwrap();
        assert!(
            request.contains("Connection: upgrade\r\n") && request.contains("Upgrade: websocket\r\n"),
            "{request}"
        );
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
            .unwrap();
        let mut buffer = [0; 16];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..n]).unwrap();
        }
    });
    let node = Node::start();
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    client
        .write_all(b"GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
        .unwrap();
    let head = read_response(&client);
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("Upgrade: websocket\r\n"),
        "{head}"
    );
    let mut buffer = [0; 10];
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"firstearly");
    client.write_all(b"more").unwrap();
    client.read_exact(&mut buffer[..4]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(&client).is_empty());
    wait_until("the close", || node.closed("web", CloseReason::ClientFin) == 1);
}

#[test]
fn a_client_that_waits_for_100_gets_it_from_the_origin() {
    let origin = Origin::start(|mut stream| {
        let mut byte = [0];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).unwrap();
        stream
            .write_all(ok(std::str::from_utf8(&body).unwrap()).as_bytes())
            .unwrap();
    });
    let node = Node::start();
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    let head = "PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    assert!(on(&client, head).starts_with("HTTP/1.1 100 "));
    client.write_all(b"body").unwrap();
    assert!(read_response(&client).ends_with("body"));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Web::start(|request| ok(request.split(' ').nth(1).unwrap()));
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    let requests: String = (0..20)
        .map(|i| format!("GET /{i} HTTP/1.1\r\nHost: web\r\n\r\n"))
        .collect();
    client.write_all(requests.as_bytes()).unwrap();
    for i in 0..20 {
        assert!(read_response(&client).ends_with(&format!("/{i}")));
    }
}

#[test]
fn a_kept_connection_that_the_origin_closed_costs_no_request() {
    // Answers one request on each connection and closes it at once, having promised to keep it.
    let origin = Origin::start(|mut stream| {
        if read_request(&mut stream).is_some() {
            stream.write_all(ok("a").as_bytes()).unwrap();
        }
    });
    let node = Node::start();
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let client = dial(door(&web));
    for i in 0..50 {
        let request = match i % 2 {
            0 => GET.to_owned(),
            _ => "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\nx".to_owned(),
        };
        let answer = on(&client, &request);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{i}: {answer}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn an_idempotent_request_is_tried_elsewhere_and_others_are_told() {
    let bad = Origin::start(|mut stream| drop(read_request(&mut stream)));
    let good = Web::hello("good");
    let node = Node::start();
    let web = http_service("web", &[bad.addr, good.origin.addr]);
    node.apply(&web);
    // Three without an answer would have it rest: the third is a POST.
    for _ in 0..2 {
        assert!(once(door(&web), GET_AND_CLOSE).ends_with("good"));
    }
    let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    let answers = [once(door(&web), post), once(door(&web), post)];
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.starts_with("HTTP/1.1 200 "))
            .count(),
        1
    );
    let told = answers
        .iter()
        .find(|answer| answer.starts_with("HTTP/1.1 502 "))
        .unwrap();
    assert!(told.contains("closed the connection without a response"), "{told}");
}

#[test]
fn failures_have_a_status_and_a_reason() {
    let silent = Origin::start(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let nonsense = Origin::start(|mut stream| {
        let _ = read_request(&mut stream);
        let _ = stream.write_all(b"SSH-2.0-OpenSSH\r\n\r\n");
    });
    let closing = Origin::start(drop);
    let refusing: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let node = Node::start();
    for (name, endpoints, status, text) in [
        (
            "closing",
            vec![closing.addr],
            "502",
            "the endpoint closed the connection without a response, and no other took the request",
        ),
        ("none", vec![], "503", "service none: no endpoint"),
        ("refusing", vec![refusing], "502", "no endpoint accepted a connection"),
        ("silent", vec![silent.addr], "504", "did not answer in time"),
        ("nonsense", vec![nonsense.addr], "502", "refused"),
    ] {
        let mut web = http_service(name, &endpoints);
        web.timeouts.response = Duration::from_millis(100);
        web.limits.hold_timeout = Duration::ZERO;
        node.apply(&web);
        let answer = once(door(&web), GET_AND_CLOSE);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text),
            "{name}: {answer}"
        );
        let client = dial(door(&web));
        for _ in 0..2 {
            let answer = on(&client, GET);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{name} kept: {answer}"
            );
        }
        let service = node.service(name);
        wait_until("the last to be counted", || {
            service.stats().request_count(HttpCode::ServerError) == 3
        });
    }
}

#[test]
fn a_response_cut_short_never_looks_whole() {
    for framing in [
        "Content-Length: 100\r\n\r\nonly this",
        "Transfer-Encoding: chunked\r\n\r\n64\r\nonly this",
    ] {
        let origin = Origin::start(move |mut stream| {
            let _ = read_request(&mut stream);
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}").as_bytes());
        });
        let node = Node::start();
        let web = http_service("web", &[origin.addr]);
        node.apply(&web);
        let mut client = dial(door(&web));
        client.write_all(GET.as_bytes()).unwrap();
        let error = client.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        wait_until("the close", || node.closed("web", CloseReason::UpstreamError) == 1);
    }
}

#[test]
fn slow_heads_and_broken_requests_end_with_a_reason() {
    let origin = Web::hello("a");
    let node = Node::start();
    let mut web = http_service("web", &[origin.origin.addr]);
    web.timeouts.request_head = Duration::from_millis(150);
    node.apply(&web);
    let slow = once(door(&web), "GET / HTTP/1.1\r\nHos");
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    wait_until("the close", || node.closed("web", CloseReason::ClientTimeout) == 1);
    let broken = once(door(&web), "GET / HTTP/1.1\nHost: web\n\n");
    assert!(broken.starts_with("HTTP/1.1 400 "), "{broken}");
    wait_until("the close", || node.closed("web", CloseReason::BadRequest) == 1);
    assert!(origin.seen().is_empty());
}

#[test]
fn a_client_that_resets_ends_its_request_upstream_too() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut stream| {
        let _ = read_request(&mut stream);
        // Never answers; sees the end when the proxy gives up.
        let _ = stream.read(&mut [0]);
        sender.send(()).unwrap();
    });
    let node = Node::start();
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    client.write_all(GET.as_bytes()).unwrap();
    wait_until("the request to arrive", || origin.n_accepted() == 1);
    std::thread::sleep(Duration::from_millis(30));
    reset(client);
    receiver.recv_timeout(Duration::from_secs(5)).unwrap();
    wait_until("the close", || node.closed("web", CloseReason::ClientRst) == 1);
}

#[test]
fn a_client_that_ends_its_half_is_still_answered() {
    let origin = Web::start(|_| {
        std::thread::sleep(Duration::from_millis(50));
        ok("late")
    });
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    client.write_all(GET.as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(String::from_utf8(read_to_end(&client)).unwrap().ends_with("late"));
}

#[test]
fn http_1_0_is_answered_in_its_own_way() {
    let origin =
        Web::start(|_| "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_owned());
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let answer = once(door(&web), "GET / HTTP/1.0\r\n\r\n");
    assert!(
        answer.ends_with("\r\n\r\nabc") && !answer.contains("chunked"),
        "{answer}"
    );
}

#[test]
fn endpoints_may_change_under_a_connection_that_stays() {
    let (first, second) = (Web::hello("1"), Web::hello("2"));
    let node = Node::start();
    let mut web = http_service("web", &[first.origin.addr]);
    node.apply(&web);
    let client = dial(door(&web));
    assert!(on(&client, GET).ends_with('1'));
    web.endpoints = vec![second.origin.addr.to_string().parse().unwrap()];
    node.apply(&web);
    for _ in 0..3 {
        assert!(on(&client, GET).ends_with('2'));
    }
}

#[test]
fn stopping_ends_idle_connections_and_finishes_requests() {
    let origin = Web::start(|request| {
        if request.starts_with("GET /slow") {
            std::thread::sleep(Duration::from_millis(300));
        }
        ok("done")
    });
    let mut node = Node::start_draining(Default::default(), Duration::from_secs(5));
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let (idle, mut busy) = (dial(door(&web)), dial(door(&web)));
    assert!(on(&idle, GET).ends_with("done"));
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    wait_until("the request to arrive", || origin.seen().len() == 2);
    let stopping = std::thread::spawn(move || node.stop());
    assert!(read_to_end(&idle).is_empty());
    let answer = String::from_utf8(read_to_end(&busy)).unwrap();
    assert!(
        answer.contains("Connection: close") && answer.ends_with("done"),
        "{answer}"
    );
    assert_eq!(stopping.join().unwrap(), 0);
}

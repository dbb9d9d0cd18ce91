//! Origins that answer what they should not: the client is told 502 or sees its connection cut, and whoever comes next
//! gets an answer to its own request.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anynode::proxy::ProxyConfig;

use super::{EVIL, Recorder, http_service, ok, read_all, statuses, talk};
use crate::harness::{Node, Origin, dial, door, wait_until};

const GET: &str = "GET /first HTTP/1.1\r\nHost: web\r\n\r\n";
const HEAD: &str = "HEAD /first HTTP/1.1\r\nHost: web\r\n\r\n";

/// What becomes of a response.
#[derive(Clone, Copy)]
enum Expect {
    /// The client is told 502, and may go on.
    BadGateway,
    /// The client gets exactly these, and may go on.
    Statuses(&'static [u16]),
}

use Expect::{BadGateway, Statuses};

/// Plays rows of (name, request, the origin's first response, what is expected). Two more clients come after; each
/// must get what the origin answers to it, `clean`.
fn play(rows: &[(&str, &str, &[u8], Expect)]) {
    // One worker, so that a connection that is kept is the next one used.
    let node = Node::start_with(ProxyConfig::default());
    let mut failures = Vec::new();
    for (name, request, response, expect) in rows {
        let response = response.to_vec();
        let origin = Recorder::answering(move |n_before| match n_before {
            0 => response.clone(),
            _ => ok("clean").into_bytes(),
        });
        let mut web = http_service("web", &[origin.origin.addr]);
        web.timeouts.response = Duration::from_secs(2);
        node.apply(&web);
        let mut client = dial(door(&web));
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (answer, error) = read_all(&client);
        let is_right = match expect {
            BadGateway => statuses(&answer) == [502] && error.is_none(),
            Statuses(expected) => answered(&answer, request.starts_with("HEAD")) == *expected && error.is_none(),
        };
        if !is_right {
            failures.push(format!("{name}: {answer:?}, {error:?}"));
        }
        for _ in 0..2 {
            let next = talk(door(&web), b"GET /next HTTP/1.1\r\nHost: web\r\n\r\n");
            if !(statuses(&next) == [200] && next.ends_with("\r\n\r\nclean")) {
                failures.push(format!("{name}: the next client got {next:?}"));
            }
        }
        if origin.requests().len() != 3 {
            failures.push(format!("{name}: the origin saw {:?}", origin.requests()));
        }
        node.table
            .commit(&[anynode::routing::Change::Remove(web.name.clone())])
            .unwrap();
    }
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

/// The statuses, where the body of a HEAD's answer never comes.
fn answered(answer: &str, is_head: bool) -> Vec<u16> {
    match is_head {
        true => answer
            .split_inclusive("\r\n\r\n")
            .map(|head| head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0))
            .collect(),
        false => statuses(answer),
    }
}

#[test]
fn heads_that_split_responses_become_502() {
    let many: String = (0..101).map(|i| format!("X-{i}: 1\r\n")).collect();
    let many = format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 0\r\n\r\n");
    let long = format!(
        "HTTP/1.1 200 OK\r\nX-Long: {}\r\nContent-Length: 0\r\n\r\n",
        "x".repeat(70_000)
    );
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20) + &ok("late");
    play(&[
        (
            "CL and TE",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "two CL that differ",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
            BadGateway,
        ),
        (
            "two CL",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            BadGateway,
        ),
        (
            "CL list",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc",
            BadGateway,
        ),
        (
            "CL sign",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
            BadGateway,
        ),
        (
            "TE unknown",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "TE list",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "TE twice",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "TE in HTTP/1.0",
            GET,
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            BadGateway,
        ),
        ("no HTTP", GET, b"SSH-2.0-OpenSSH\r\n\r\n", BadGateway),
        (
            "another protocol",
            GET,
            b"ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "HTTP/2.0",
            GET,
            b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "status of two digits",
            GET,
            b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "status of four digits",
            GET,
            b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "status that is no number",
            GET,
            b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "status 099",
            GET,
            b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "status 600",
            GET,
            b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
            Statuses(&[600]),
        ),
        (
            "status 999 with a body",
            GET,
            b"HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\nok",
            Statuses(&[999]),
        ),
        (
            "version 1.2",
            GET,
            b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok",
            Statuses(&[200]),
        ),
        (
            "a reason beyond ASCII",
            GET,
            b"HTTP/1.1 404 Pas trouv\xe9\r\nContent-Length: 0\r\n\r\n",
            Statuses(&[404]),
        ),
        (
            "an empty line first",
            GET,
            b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "obs-fold",
            GET,
            b"HTTP/1.1 200 OK\r\nX-A: 1\r\n Content-Length: 3\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "bare LF",
            GET,
            b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
            Statuses(&[200]),
        ),
        (
            "bare LF behind one field",
            GET,
            b"HTTP/1.1 200 OK\r\nX-A: 1\nContent-Length: 0\r\n\r\n",
            Statuses(&[200]),
        ),
        (
            "bare CR in a value",
            GET,
            b"HTTP/1.1 200 OK\r\nX-A: 1\rSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "bare CR in the reason",
            GET,
            b"HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "NUL in a value",
            GET,
            b"HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 0\r\n\r\n",
            BadGateway,
        ),
        (
            "space before the colon",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc",
            BadGateway,
        ),
        (
            "101 unasked",
            GET,
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
            BadGateway,
        ),
        (
            "interim with a length",
            GET,
            b"HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\nabc",
            BadGateway,
        ),
        ("too many fields", GET, many.as_bytes(), BadGateway),
        ("a head too long", GET, long.as_bytes(), BadGateway),
    ]);
    let some_and_the_end = Statuses(&[103, 103, 103, 103, 103, 103, 103, 103, 502]);
    play(&[(
        "interim responses without end",
        GET,
        interim.as_bytes(),
        some_and_the_end,
    )]);
}

#[test]
fn surplus_bytes_are_nobodys_answer() {
    play(&[
        (
            "a second response",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            Statuses(&[200]),
        ),
        (
            "a byte too many",
            GET,
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodx",
            Statuses(&[200]),
        ),
        (
            "behind the last chunk",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            // The chunk that ends the body is no response to `statuses`.
            Statuses(&[200, 0]),
        ),
        (
            "204 with a body",
            GET,
            b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
            Statuses(&[204]),
        ),
        (
            "204 with chunks",
            GET,
            b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
            Statuses(&[204]),
        ),
        (
            "204 with a response behind it",
            GET,
            b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            Statuses(&[204]),
        ),
        (
            "HEAD with a body",
            HEAD,
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            Statuses(&[200]),
        ),
        (
            "HEAD with chunks",
            HEAD,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
            Statuses(&[200]),
        ),
        (
            "HEAD as it should be",
            HEAD,
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
            Statuses(&[200]),
        ),
    ]);
}

#[test]
fn bodies_that_break_before_anything_was_sent_become_502() {
    play(&[
        (
            "chunk size",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\nevil\r\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "chunk size overflow",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000004\r\nevil\r\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "chunk end",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevilX\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "chunk extension with bare LF",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a\nevil\r\n0\r\n\r\n",
            BadGateway,
        ),
        (
            "trailers with bare LF",
            GET,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: 1\n\r\n",
            BadGateway,
        ),
    ]);
}

#[test]
fn bodies_that_break_later_cut_the_client_off() {
    for bad in [
        "0x4\r\nevil\r\n0\r\n\r\n",
        "4;a\nevil\r\n0\r\n\r\n",
        "0\r\nX-A: 1\n\r\n",
    ] {
        let (sender, receiver) = std::sync::mpsc::channel();
        let receiver = Mutex::new(receiver);
        let origin = Origin::start(move |mut stream| {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n");
            let _ = receiver.lock().unwrap().recv();
            let _ = stream.write_all(bad.as_bytes());
            let _ = stream.read(&mut [0]);
        });
        let node = Node::start_with(ProxyConfig::default());
        let web = http_service("web", &[origin.addr]);
        node.apply(&web);
        let mut client = dial(door(&web));
        client.write_all(GET.as_bytes()).unwrap();
        let mut begun = Vec::new();
        while !begun.ends_with(b"good\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            begun.extend(byte);
        }
        sender.send(()).unwrap();
        assert_eq!(read_all(&client).1, Some(ErrorKind::ConnectionReset), "{bad:?}");
    }
}

#[test]
fn surplus_bytes_that_come_later_are_nobodys_answer() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let receiver = Mutex::new(receiver);
    // Answers, and sends another response when it is told to, long after the first was taken.
    let origin = Origin::start(move |mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(ok("good").as_bytes());
            if receiver.lock().unwrap().recv().is_ok() {
                let _ = stream.write_all(ok("evil").as_bytes());
            }
        }
    });
    let node = Node::start_with(ProxyConfig::default());
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    for i in 1..=5 {
        let answer = talk(door(&web), GET.as_bytes());
        assert!(answer.ends_with("\r\n\r\ngood"), "{i}: {answer}");
        assert_eq!(origin.n_accepted(), i);
        sender.send(()).unwrap();
        // It is written at once; on loopback it has arrived when the write returns, and a moment later for sure.
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn hop_by_hop_fields_of_responses_stay_on_their_hop() {
    let origin = Recorder::start(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Authenticate: Basic\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: x\r\nTrailer: X-Sum\r\n\
         Set-Cookie: a=b\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok"
            .to_owned(),
    );
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let answer = talk(door(&web), GET.as_bytes());
    for part in [
        "\r\nSet-Cookie: a=b\r\n",
        "\r\nX-Kept: 1\r\n",
        "\r\nVia: 1.1 anynode\r\n",
    ] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    for part in [
        "X-Secret",
        "Keep-Alive",
        "Proxy-",
        "Upgrade",
        "TE:",
        "Trailer",
        "Connection",
    ] {
        assert!(!answer.contains(part), "{part} in {answer}");
    }
}

#[test]
fn an_upgrade_that_was_asked_for_is_not_one_to_http2() {
    let node = Node::start();
    let origin =
        Recorder::start("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".into());
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert_eq!(statuses(&talk(door(&web), request.as_bytes())), [502]);
}

#[test]
fn kept_connections_serve_large_responses_too() {
    let origin = Recorder::start(ok(&"b".repeat(4 << 20)));
    let node = Node::start_with(ProxyConfig::default());
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    for _ in 0..10 {
        assert!(talk(door(&web), GET.as_bytes()).len() > 4 << 20);
    }
    wait_until("the requests", || origin.requests().len() == 10);
    assert_eq!(
        origin.origin.n_accepted(),
        1,
        "a new connection for each of 10 requests in turn"
    );
}

#[test]
fn an_answer_before_the_expected_body_ends_both_connections() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let hearing = heard.clone();
    // Answers as soon as it has seen a head, and takes what follows for what it likes.
    let origin = Origin::start(move |mut stream| {
        let mut received = Vec::new();
        let mut byte = [0];
        while !received.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            received.push(byte[0]);
        }
        let _ = stream.write_all(ok("early").as_bytes());
        let _ = stream.read_to_end(&mut received);
        hearing
            .lock()
            .unwrap()
            .push(String::from_utf8_lossy(&received).into_owned());
    });
    let node = Node::start_with(ProxyConfig::default());
    let web = http_service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    client
        .write_all(b"PUT /first HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 33\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"early") {
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.contains("Connection: close\r\n"), "{head}");
    // The body after all, or the next request: nobody can tell any more.
    let _ = client.write_all(EVIL.as_bytes());
    let (rest, _) = read_all(&client);
    assert_eq!(rest, "");
    let next = talk(door(&web), b"GET /next HTTP/1.1\r\nHost: web\r\n\r\n");
    assert_eq!(statuses(&next), [200]);
    assert_eq!(origin.n_accepted(), 2);
    node.table
        .commit(&[anynode::routing::Change::Remove(web.name.clone())])
        .unwrap();
    wait_until("the origin's connections to end", || heard.lock().unwrap().len() == 2);
    for one in heard.lock().unwrap().iter() {
        assert_eq!(one.matches("HTTP/1.1\r\n").count(), 1, "{one}");
    }
}

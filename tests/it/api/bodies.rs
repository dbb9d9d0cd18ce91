//! Bodies that are malformed, huge, slow or of the wrong type, and heads that never end: refused within bounded memory.

use std::io::{Read, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use super::rig::{LONG, Reply, Rig, service};

fn post(kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "POST /services/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}Content-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

#[test]
fn what_is_no_such_json_is_refused_and_said_where() {
    let rig = Rig::swarm();
    let json = "Content-Type: application/json\r\n";
    let deep = format!("{{\"Labels\":{}", "[".repeat(100_000));
    for (kind, body, status, words) in [
        (json, "", 400, "got EOF while reading request body"),
        (json, "{", 400, "invalid JSON: unexpected EOF"),
        (json, "null", 400, "mismatched Runtime and *Spec fields"),
        (json, "[]", 400, "invalid JSON"),
        (json, "\"x\"", 400, "invalid JSON"),
        (json, "{} {}", 400, "unexpected content after JSON"),
        (json, &deep, 400, "invalid JSON"),
        (json, "{\"Name\": 7}", 400, "Name"),
        (json, "{\"Name\": \"\\ud800\"}", 400, "invalid JSON"),
        (json, "{\"Labels\": {\"a\": 1}}", 400, "Labels.a"),
        (
            json,
            "{\"TaskTemplate\": {\"ContainerSpec\": []}}",
            400,
            "TaskTemplate.ContainerSpec",
        ),
        (
            json,
            "{\"TaskTemplate\": {\"ForceUpdate\": 1e99}}",
            400,
            "TaskTemplate.ForceUpdate",
        ),
        (
            "Content-Type: text/plain\r\n",
            "{}",
            400,
            "unsupported Content-Type header (text/plain)",
        ),
        (
            "Content-Type: application/jsonx\r\n",
            "{}",
            400,
            "unsupported Content-Type header",
        ),
    ] {
        let reply = rig.raw(&post(kind, body.as_bytes()));
        let shown: String = body.chars().take(80).collect();
        assert_eq!(reply.status, status, "{shown}: {reply:?}");
        let message = reply.message();
        assert!(message.contains(words), "{shown}: {message}");
        assert!(message.len() < 1000, "{shown}: {message}");
    }
    let invalid = rig.raw(&post(json, b"{\"Name\": \"\xff\xfe\"}"));
    assert_eq!(invalid.status, 400);
    // Both spellings of the type, and none.
    for kind in ["Content-Type: application/json; charset=utf-8\r\n", ""] {
        let reply = rig.raw(&post(kind, service("", None).to_string().as_bytes()));
        assert_eq!(reply.status, 201, "{kind}: {reply:?}");
    }
}

#[test]
fn what_is_too_long_is_refused_before_it_was_read() {
    let rig = Rig::swarm();
    let head = "POST /services/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n";
    let announced = rig.raw(format!("{head}Content-Length: 50000000000\r\n\r\n{{").as_bytes());
    assert_eq!(announced.status, 413);
    assert!(announced.message().contains("4194304"), "{announced:?}");
    // One that does not say how long it is.
    let mut stream = rig.connect();
    stream
        .write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes())
        .unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(65_536));
    for _ in 0..200 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    assert_eq!(Reply::read(&mut stream).status, 413);
    // A head.
    let mut stream = rig.connect();
    let _ = stream.write_all(b"GET /info HTTP/1.1\r\nHost: x\r\n");
    let line = format!("A: {}\r\n", "x".repeat(1000));
    for _ in 0..200 {
        if stream.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    assert_eq!(Reply::read(&mut stream).status, 431);
    assert_eq!(
        rig.raw(format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(80_000)).as_bytes())
            .status
            / 100,
        4
    );
    assert_eq!(
        rig.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").status,
        400
    );
    assert_eq!(rig.get("/_ping").status, 200);
}

#[test]
fn what_is_too_slow_is_refused_and_holds_nobody_up() {
    let rig = Rig::swarm();
    let head = "POST /services/create HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n";
    let started = Instant::now();
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = rig.connect();
            // As long as may be, and most of it never comes.
            stream
                .write_all(format!("{head}Content-Length: 4194304\r\n\r\n{{").as_bytes())
                .unwrap();
            stream
        })
        .collect();
    let other = rig.post("/services/create", &service("web", None));
    assert_eq!(other.status, 201);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for mut stream in slow {
        let reply = Reply::read(&mut stream);
        assert!([408, 503].contains(&reply.status), "{reply:?}");
        assert!(!reply.message().is_empty());
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

/// Clients that go away without a word while an answer is still to come: their places are free again.
#[test]
fn who_has_gone_holds_no_place() {
    let rig = Rig::swarm();
    rig.post("/services/create", &service("web", None));
    rig.wait_running("web", 1);
    for _ in 0..3 {
        let gone: Vec<_> = (0..300)
            .map(|i| {
                let path = match i % 2 {
                    0 => "/events",
                    _ => "/services/web/logs?stdout=1&follow=1",
                };
                let mut stream = rig.connect();
                stream
                    .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
                    .unwrap();
                let mut head = [0; 12];
                stream.read_exact(&mut head).unwrap();
                assert_eq!(&head, b"HTTP/1.1 200");
                stream
            })
            .collect();
        drop(gone);
    }
    assert_eq!(rig.get("/_ping").status, 200);
    rig.wait_for("the followers to be let go", || {
        let followers = rig.around.followers.lock().unwrap();
        followers.iter().all(|follower| follower.is_closed())
    });
}

#[test]
fn one_connection_serves_many_requests() {
    let rig = Rig::swarm();
    let mut stream = rig.connect();
    let body = service("web", None).to_string();
    let requests = format!(
        "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n\
         POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}\
         GET /services/nothing HTTP/1.1\r\nHost: x\r\n\r\n\
         DELETE /services/web HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(requests.as_bytes()).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    let statuses: Vec<&str> = all
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|answer| answer.lines().next())
        .collect();
    assert_eq!(statuses, ["200 OK", "201 Created", "404 Not Found", "200 OK"]);
    assert_eq!(rig.get("/services").json(), json!([]));
}

/// Most clients send all that they have before they read a word: an error that is known before is no reason to break that off.
#[test]
fn who_sends_all_before_reading_reads_why_it_was_refused() {
    let rig = Rig::up();
    let long = vec![b' '; 3 << 20];
    let too_long = vec![b' '; 8 << 20];
    for (path, body, status) in [
        ("/services/create", &long, 503),
        ("/v1.10/services/create", &long, 400),
        ("/v1.40/nothing", &long, 404),
        ("/v1.40/containers/create", &long, 501),
        ("/networks/create", &too_long, 413),
    ] {
        for coding in ["length", "chunked"] {
            let mut stream = rig.connect();
            stream.set_write_timeout(Some(LONG)).unwrap();
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
            let sent = match coding {
                "length" => {
                    let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
                    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body))
                }
                _ => {
                    let head = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
                    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
                    sent.and_then(|()| stream.write_all(b"\r\n0\r\n\r\n"))
                }
            };
            sent.unwrap_or_else(|error| panic!("{path} {coding}: {error}"));
            // Clients keep their connection for another request: it does not end here.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let reply = Reply::read(&mut stream);
            assert_eq!(reply.status, status, "{path} {coding}: {reply:?}");
            assert!(!reply.message().is_empty(), "{path} {coding}");
        }
    }
}

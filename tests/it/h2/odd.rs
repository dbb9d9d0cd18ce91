//! What endpoints see of requests that are odd: HTTP/2 says where each part of a request begins and ends, HTTP/1.1 does so by marks
//! between them, and no part may hold a mark. Each is either refused, and no endpoint sees anything of it, or passed on as one request.

use super::Rig;
use super::frames::{
    CANCEL, Client, DATA, END_HEADERS, END_STREAM, Event, GOAWAY, HEADERS, NO_TABLE, RST_STREAM, WHOLE, continuation,
    data, fields, headers, literal, request, rst,
};
use crate::harness::wait_until;

/// What comes of one request, on a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// By a reset, or with the connection.
    Refused,
    Answered(u16),
}

fn outcome(client: &mut Client) -> Outcome {
    loop {
        match client.next() {
            Event::Frame(frame) if frame.kind == HEADERS => return Outcome::Answered(frame.status().unwrap()),
            Event::Frame(frame) if frame.kind == RST_STREAM || frame.kind == GOAWAY => return Outcome::Refused,
            Event::Frame(_) => {}
            Event::Closed => return Outcome::Refused,
            Event::Silence => panic!("neither refused nor answered"),
        }
    }
}

fn send(rig: &Rig, frames: &[Vec<u8>]) -> Outcome {
    let mut client = Client::connect_with(rig.door, NO_TABLE);
    client.say(frames);
    outcome(&mut client)
}

/// Pseudo fields of the test's own choosing.
fn pseudo(method: &str, scheme: &str, path: &str, authority: &str) -> Vec<u8> {
    fields(&[
        (":method", method),
        (":scheme", scheme),
        (":path", path),
        (":authority", authority),
    ])
}

fn get_with(name: &str, value: &str) -> Vec<u8> {
    request("GET", "/", &[(name, value)])
}

#[test]
fn what_http_1_1_could_not_say_reaches_no_endpoint() {
    let rig = Rig::start();
    let smuggled = "x HTTP/1.1\r\nHost: other\r\n\r\nGET /smuggled";
    let mut blocks = vec![
        ("a space in the path", pseudo("GET", "http", "/a b", "web")),
        ("a tab in the path", pseudo("GET", "http", "/a\tb", "web")),
        (
            "a line end in the path",
            pseudo("GET", "http", &format!("/{smuggled}"), "web"),
        ),
        ("NUL in the path", pseudo("GET", "http", "/\0", "web")),
        ("a URI for a path", pseudo("GET", "http", "http://other/x", "web")),
        ("a path without a slash", pseudo("GET", "http", "x", "web")),
        ("a query without a path", pseudo("GET", "http", "?x", "web")),
        ("the whole server, by GET", pseudo("GET", "http", "*", "web")),
        ("a method with a space", pseudo("GET /smuggled", "http", "/", "web")),
        (
            "a method with a line end",
            pseudo(&format!("GET {smuggled}"), "http", "/", "web"),
        ),
        ("an empty method", pseudo("", "http", "/", "web")),
        ("the preface's method", pseudo("PRI", "http", "*", "web")),
        ("user information", pseudo("GET", "http", "/", "user@web")),
        ("two ports", pseudo("GET", "http", "/", "web:80:90")),
        ("a port that is none", pseudo("GET", "http", "/", "web:99999")),
        ("a path in the authority", pseudo("GET", "http", "/", "web/x")),
        ("two authorities in one", pseudo("GET", "http", "/", "web,other")),
        ("a space in the authority", pseudo("GET", "http", "/", "web other")),
        (
            "a line end in the authority",
            pseudo("GET", "http", "/", "web\r\nx-a: 1"),
        ),
        ("an empty authority", pseudo("GET", "http", "/", "")),
        ("a scheme that is none", pseudo("GET", "ht tp", "/", "web")),
        (
            "neither authority nor Host",
            fields(&[(":method", "GET"), (":scheme", "http"), (":path", "/")]),
        ),
        (
            "two Hosts",
            fields(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                ("host", "web"),
                ("host", "other"),
            ]),
        ),
        ("a Host beside another authority", get_with("host", "other")),
        ("an empty Host beside an authority", get_with("host", "")),
        ("CONNECT", fields(&[(":method", "CONNECT"), (":authority", "web:80")])),
        ("CONNECT with a path", pseudo("CONNECT", "http", "/", "web:80")),
        (
            "extended CONNECT, which is not offered",
            [
                pseudo("CONNECT", "http", "/", "web"),
                fields(&[(":protocol", "websocket")]),
            ]
            .concat(),
        ),
        ("a name with a colon", get_with("x:y", "1")),
        ("a name with a line end", get_with("x-a: 1\r\nx-b", "2")),
        (
            "a name with a byte above 127",
            [request("GET", "/", &[]), literal(b"x-\xe4", b"1")].concat(),
        ),
        ("a value with LF alone", get_with("x-a", "1\nx-b: 2")),
        ("a value with CR alone", get_with("x-a", "1\rx-b: 2")),
        ("a cookie with a line end", get_with("cookie", "a=1\r\nx-b: 2")),
        ("Transfer-Encoding", get_with("transfer-encoding", "chunked")),
        ("Connection", get_with("connection", "close")),
        ("Connection with names", get_with("connection", "x-a")),
        ("Upgrade", get_with("upgrade", "websocket")),
        ("Keep-Alive", get_with("keep-alive", "5")),
        ("Proxy-Connection", get_with("proxy-connection", "keep-alive")),
        ("TE other than trailers", get_with("te", "gzip")),
    ];
    for length in [
        "+5",
        "-1",
        "0x5",
        "5,5",
        "5 ",
        "5a",
        "",
        "18446744073709551616",
        "99999999999999999999999999",
    ] {
        blocks.push((
            "a length that is none",
            request("POST", "/", &[("content-length", length)]),
        ));
    }
    let twice = [("content-length", "5"), ("content-length", "5")];
    blocks.push(("a length that is said twice", request("POST", "/", &twice)));
    for (what, block) in &blocks {
        // With a body, so that nothing of it could be one more request.
        let frames = [headers(1, END_HEADERS, block), data(1, END_STREAM, b"hello")];
        let outcome = send(&rig, &frames);
        let is_refused = matches!(outcome, Outcome::Refused | Outcome::Answered(400..=405 | 501));
        assert!(is_refused, "{what}: {outcome:?}, {:?}", rig.endpoint.seen());
        let outcome = send(&rig, &[headers(1, WHOLE, block)]);
        let is_refused = matches!(outcome, Outcome::Refused | Outcome::Answered(400..=405 | 501));
        assert!(is_refused, "{what}, no body: {outcome:?}, {:?}", rig.endpoint.seen());
    }
    assert_eq!(
        send(&rig, &[headers(1, WHOLE, &request("GET", "/last", &[]))]),
        Outcome::Answered(200)
    );
    let seen = rig.endpoint.seen();
    assert!(
        seen.len() == 1 && seen[0].starts_with("GET /last HTTP/1.1\r\n"),
        "{seen:?}"
    );
}

#[test]
fn odd_requests_reach_an_endpoint_as_one_each() {
    let rig = Rig::start();
    let ask = |frames: &[Vec<u8>]| {
        let n_before = rig.endpoint.seen().len();
        assert_eq!(send(&rig, frames), Outcome::Answered(200));
        let mut seen = rig.endpoint.seen();
        assert_eq!(seen.len(), n_before + 1, "{seen:?}");
        seen.pop().unwrap()
    };
    let whole = |block: &[u8]| [headers(1, WHOLE, block)];

    let seen = ask(&whole(&pseudo("GET", "http", "/a#b", "web")));
    assert!(seen.starts_with("GET /a HTTP/1.1\r\n"), "{seen}");
    let seen = ask(&whole(&pseudo("GET", "http", "#b", "web")));
    assert!(seen.starts_with("GET / HTTP/1.1\r\n"), "{seen}");
    let seen = ask(&whole(&pseudo("GET", "http", "//other/x?y#z", "web")));
    assert!(seen.starts_with("GET //other/x?y HTTP/1.1\r\n"), "{seen}");
    let seen = ask(&whole(&pseudo("OPTIONS", "http", "*", "web")));
    assert!(seen.starts_with("OPTIONS * HTTP/1.1\r\n"), "{seen}");
    let seen = ask(&whole(&pseudo("get", "http", "/", "web")));
    assert!(seen.starts_with("get / HTTP/1.1\r\n"), "{seen}");

    // Whose a request is is said once.
    let seen = ask(&whole(&request("GET", "/", &[("host", "WEB")])));
    assert_eq!(
        seen.to_ascii_lowercase().matches("\r\nhost: web\r\n").count(),
        1,
        "{seen}"
    );
    // What was said of the scheme is not what we know.
    let seen = ask(&whole(&pseudo("GET", "https", "/", "web")));
    assert!(seen.contains("\r\nX-Forwarded-Proto: http\r\n"), "{seen}");
    let more = [
        ("x-forwarded-for", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("x-forwarded-proto", "https"),
    ];
    let seen = ask(&whole(&request("GET", "/", &more)));
    assert!(!seen.contains("6.6.6.6") && !seen.contains("https"), "{seen}");
    assert!(seen.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n"), "{seen}");

    // Cookies that came one by one are one field, where they are looked for.
    let seen = ask(&whole(&request(
        "GET",
        "/",
        &[("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2")],
    )));
    assert_eq!(seen.to_ascii_lowercase().matches("\r\ncookie: ").count(), 1, "{seen}");
    assert!(seen.contains("a=1; b=2\r\n"), "{seen}");

    // What looks like HTTP/1.1 in a body is the body.
    let body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: web\r\n\r\n";
    let frames = [
        headers(1, END_HEADERS, &request("POST", "/", &[])),
        data(1, END_STREAM, body),
    ];
    let seen = ask(&frames);
    assert!(seen.contains("\r\nTransfer-Encoding: chunked\r\n"), "{seen}");
    let chunk = format!(
        "\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        body.len(),
        std::str::from_utf8(body).unwrap()
    );
    assert!(seen.ends_with(&chunk), "{seen}");
    let length = body.len().to_string();
    let block = request("POST", "/", &[("content-length", &length)]);
    let seen = ask(&[
        headers(1, END_HEADERS, &block),
        data(1, 0, &body[..3]),
        data(1, END_STREAM, &body[3..]),
    ]);
    assert_eq!(
        seen.to_ascii_lowercase().matches("\r\ncontent-length: ").count(),
        1,
        "{seen}"
    );
    assert!(seen.ends_with(std::str::from_utf8(body).unwrap()), "{seen}");

    // A body of none, in each way to say so.
    let none = request("POST", "/", &[("content-length", "0")]);
    for frames in [
        vec![headers(1, WHOLE, &none)],
        vec![headers(1, END_HEADERS, &none), data(1, END_STREAM, b"")],
    ] {
        let seen = ask(&frames);
        assert!(
            seen.to_ascii_lowercase().contains("\r\ncontent-length: 0\r\n"),
            "{seen}"
        );
    }
    let frames = [
        headers(1, END_HEADERS, &request("POST", "/", &[])),
        data(1, END_STREAM, b""),
    ];
    assert!(ask(&frames).ends_with("\r\n\r\n0\r\n\r\n"));

    // A block in parts, cut within a name.
    let block = request("GET", "/", &[("x-long-name", "1")]);
    let (begin, end) = block.split_at(block.len() - 9);
    let seen = ask(&[headers(1, END_STREAM, begin), continuation(1, END_HEADERS, end)]);
    assert!(seen.contains("\r\nx-long-name: 1\r\n"), "{seen}");
}

#[test]
fn trailers_neither_frame_nor_route() {
    let rig = Rig::start();
    let with_trailers = |trailers: &[(&str, &str)]| {
        let post = request("POST", "/", &[("te", "trailers")]);
        [
            headers(1, END_HEADERS, &post),
            data(1, 0, b"hello"),
            headers(1, WHOLE, &fields(trailers)),
        ]
    };
    assert_eq!(send(&rig, &with_trailers(&[("x-sum", "1")])), Outcome::Answered(200));
    let seen = rig.endpoint.seen();
    assert!(
        seen[0].ends_with("\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"),
        "{seen:?}"
    );
    // Who may not be believed, and what a proxy alone says, is left out.
    for name in [
        "authorization",
        "cookie",
        "x-forwarded-for",
        "set-cookie",
        "te",
        "trailer",
    ] {
        assert_eq!(
            send(&rig, &with_trailers(&[(name, "trailers")])),
            Outcome::Answered(200),
            "{name}"
        );
        let seen = rig.endpoint.seen().pop().unwrap();
        assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{name}: {seen}");
    }
    let n_before = rig.endpoint.seen().len();
    let forbidden = [
        ("content-length", "5"),
        ("host", "other"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
    ];
    for (name, value) in forbidden {
        let outcome = send(&rig, &with_trailers(&[(name, value)]));
        assert!(
            matches!(outcome, Outcome::Refused | Outcome::Answered(400)),
            "{name}: {outcome:?}"
        );
    }
    // None of these came whole.
    wait_until("the last to be cut off", || rig.endpoint.origin.n_accepted() > 0);
    let cut_off = rig.endpoint.seen().split_off(n_before);
    assert!(
        cut_off.iter().all(|request| !request.ends_with("0\r\n\r\n")),
        "{cut_off:?}"
    );
}

#[test]
fn what_is_taken_back_never_looks_whole() {
    let rig = Rig::start();
    for frames in [
        vec![
            headers(1, END_HEADERS, &request("POST", "/", &[])),
            data(1, 0, b"hel"),
            rst(1, CANCEL),
        ],
        vec![
            headers(1, END_HEADERS, &request("POST", "/", &[("content-length", "5")])),
            data(1, 0, b"hel"),
            rst(1, CANCEL),
        ],
        // More than was announced: an error of the stream.
        vec![
            headers(1, END_HEADERS, &request("POST", "/", &[("content-length", "5")])),
            data(1, 0, b"hel"),
            data(1, END_STREAM, b"lo, and more"),
        ],
    ] {
        let mut client = Client::connect_with(rig.door, NO_TABLE);
        client.say(&frames[..2]);
        // The endpoint has its part before the rest comes.
        std::thread::sleep(std::time::Duration::from_millis(50));
        client.say(&frames[2..]);
        assert_eq!(client.ask(3, &request("GET", "/after", &[])).0, Some(200));
    }
    let seen = rig.endpoint.seen();
    let posts: Vec<_> = seen.iter().filter(|request| request.starts_with("POST")).collect();
    assert!(
        posts
            .iter()
            .all(|post| !post.ends_with("0\r\n\r\n") && !post.ends_with("hello")),
        "{posts:?}"
    );
    assert_eq!(
        seen.iter().filter(|request| request.starts_with("GET /after ")).count(),
        3,
        "{seen:?}"
    );
}

#[test]
fn too_many_fields_or_too_long_ones_are_refused_and_the_connection_goes_on() {
    let rig = Rig::start();
    let mut client = Client::connect_with(rig.door, NO_TABLE);
    // More than 64 KiB, in frames that are small enough; 431 comes of the list's size.
    let value = "x".repeat(15_000);
    let more = fields(&[("x-a", &value)]);
    let parts = [
        headers(1, END_STREAM, &request("GET", "/", &[])),
        continuation(1, 0, &more).repeat(4),
    ];
    client.say(&[parts.concat(), continuation(1, END_HEADERS, &more)]);
    assert_eq!(client.read_answer(1).0, Some(431));
    let many: Vec<_> = (0..200).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "1")).collect();
    assert_eq!(client.ask(3, &request("GET", "/", &many)).0, Some(431));
    assert_eq!(client.ask(5, &request("GET", "/", &[])).0, Some(200));
    assert_eq!(rig.endpoint.seen().len(), 1);
    // A body of a kind that the client never sends is nobody's to wait for.
    client.say(&[headers(7, END_HEADERS, &request("POST", "/", &many))]);
    let frame = client.wait_for("an answer", |frame| frame.stream == 7 && frame.kind != DATA);
    assert_eq!(frame.status(), Some(431));
}

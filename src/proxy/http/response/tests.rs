//! Response heads: what is refused from an endpoint, what frames the body, what the client sees.

use super::*;

fn request(method: Method, version: Version) -> RequestMeta {
    RequestMeta {
        head_len: 0,
        method,
        version,
        framing: Framing::None,
        keep_alive: true,
        expects_continue: false,
        upgrade: false,
        local_answer: None,
    }
}

fn get() -> RequestMeta {
    request(Method::Get, Version::Http11)
}

fn asks_upgrade() -> RequestMeta {
    RequestMeta { upgrade: true, ..get() }
}

/// Parses and forwards `input`, written with `|` for CR LF, and writes what comes out in the same way.
fn answered(input: &str, request: &RequestMeta) -> Result<Option<(ResponseMeta, Onward, String)>, Refusal> {
    let input = input.replace('|', "\r\n");
    let mut slots = HeaderSlots::new();
    let head = parse_response(
        input.as_bytes(),
        0,
        super::super::DEFAULT_HEAD_BYTES_MAX,
        request,
        &mut slots,
    )?;
    Ok(head.map(|head| {
        let mut out = Vec::new();
        let onward = head.forward(request, true, &mut out);
        (
            head.meta,
            onward,
            String::from_utf8(out).unwrap().trim_end().replace("\r\n", "|"),
        )
    }))
}

#[test]
fn refused() {
    let upgrade = &asks_upgrade();
    let get = &get();
    for (item, input, request, refusal) in [
        (
            "CL and TE",
            "HTTP/1.1 200 OK|Content-Length: 3|Transfer-Encoding: chunked||",
            get,
            Refusal::BothLengths,
        ),
        (
            "differing CL",
            "HTTP/1.1 200 OK|Content-Length: 3|Content-Length: 4||",
            get,
            Refusal::ContentLengthRepeated,
        ),
        (
            "equal CL",
            "HTTP/1.1 200 OK|Content-Length: 3|Content-Length: 3||",
            get,
            Refusal::ContentLengthRepeated,
        ),
        (
            "CL list",
            "HTTP/1.1 200 OK|Content-Length: 3,3||",
            get,
            Refusal::ContentLength,
        ),
        (
            "CL sign",
            "HTTP/1.1 200 OK|Content-Length: +3||",
            get,
            Refusal::ContentLength,
        ),
        (
            "TE gzip",
            "HTTP/1.1 200 OK|Transfer-Encoding: gzip||",
            get,
            Refusal::TransferEncoding,
        ),
        (
            "TE in 1.0",
            "HTTP/1.0 200 OK|Transfer-Encoding: chunked||",
            get,
            Refusal::TransferEncodingIn10,
        ),
        ("status 99", "HTTP/1.1 099 OK||", get, Refusal::Status),
        ("status 1000", "HTTP/1.1 1000 OK||", get, Refusal::Status),
        ("status short", "HTTP/1.1 20 OK||", get, Refusal::Status),
        ("status long", "HTTP/1.1 2000 OK||", get, Refusal::Status),
        ("status text", "HTTP/1.1 abc OK||", get, Refusal::Status),
        ("reason with CTL", "HTTP/1.1 200 O\x01K||", get, Refusal::Status),
        ("bare CR", "HTTP/1.1 200 OK|A: b\rc||", get, Refusal::FieldValue),
        ("obs-fold", "HTTP/1.1 200 OK|A: b| c||", get, Refusal::FieldName),
        ("space before colon", "HTTP/1.1 200 OK|A : b||", get, Refusal::FieldName),
        ("NUL", "HTTP/1.1 200 OK|A: \0||", get, Refusal::FieldValue),
        ("version", "HTTP/2.0 200 OK||", get, Refusal::Version),
        ("not HTTP", "SSH-2.0-OpenSSH||", get, Refusal::Version),
        ("empty line before", "|HTTP/1.1 200 OK||", get, Refusal::LeadingLines),
        (
            "101 unasked",
            "HTTP/1.1 101 S|Connection: upgrade|Upgrade: x||",
            get,
            Refusal::UpgradeUnasked,
        ),
        (
            "101 to nothing",
            "HTTP/1.1 101 S|Connection: upgrade||",
            upgrade,
            Refusal::UpgradeUnasked,
        ),
        (
            "101 not connected",
            "HTTP/1.1 101 S|Upgrade: x||",
            upgrade,
            Refusal::UpgradeUnasked,
        ),
        (
            "100 with body",
            "HTTP/1.1 100 Continue|Content-Length: 3||",
            get,
            Refusal::Status,
        ),
        (
            "103 chunked",
            "HTTP/1.1 103 H|Transfer-Encoding: chunked||",
            get,
            Refusal::Status,
        ),
    ] {
        assert_eq!(answered(input, request).map(|_| ()), Err(refusal), "{item}");
    }
    let large = format!("HTTP/1.1 200 OK|A: {}||", "x".repeat(70_000));
    assert_eq!(answered(&large, get).map(|_| ()), Err(Refusal::HeadTooLarge));
    let many = format!("HTTP/1.1 200 OK|{}|", "A: b|".repeat(101));
    assert_eq!(answered(&many, get).map(|_| ()), Err(Refusal::TooManyFields));
    assert_eq!(answered("HTTP/1.1 200 OK|A", get).map(|a| a.is_some()), Ok(false));
    assert_eq!(answered("", get).map(|a| a.is_some()), Ok(false));
}

#[test]
fn framing_and_reuse() {
    let (get, head) = (get(), request(Method::Head, Version::Http11));
    for (item, input, request, framing, keep_alive) in [
        (
            "length",
            "HTTP/1.1 200 OK|Content-Length: 3||",
            get,
            Framing::Length(3),
            true,
        ),
        (
            "chunked",
            "HTTP/1.1 200 OK|Transfer-Encoding: Chunked||",
            get,
            Framing::Chunked,
            true,
        ),
        ("close", "HTTP/1.1 200 OK||", get, Framing::UntilClose, false),
        (
            "close said",
            "HTTP/1.1 200 OK|Content-Length: 3|Connection: close||",
            get,
            Framing::Length(3),
            false,
        ),
        (
            "1.0",
            "HTTP/1.0 200 OK|Content-Length: 3||",
            get,
            Framing::Length(3),
            false,
        ),
        (
            "1.0 keep-alive",
            "HTTP/1.0 200 OK|Content-Length: 3|Connection: keep-alive||",
            get,
            Framing::Length(3),
            true,
        ),
        ("HEAD", "HTTP/1.1 200 OK|Content-Length: 3||", head, Framing::None, true),
        (
            "HEAD chunked",
            "HTTP/1.1 200 OK|Transfer-Encoding: chunked||",
            head,
            Framing::None,
            true,
        ),
        ("HEAD unknown", "HTTP/1.1 200 OK||", head, Framing::None, true),
        ("204", "HTTP/1.1 204 N||", get, Framing::None, true),
        (
            "204 with 0",
            "HTTP/1.1 204 N|Content-Length: 0||",
            get,
            Framing::None,
            true,
        ),
        (
            "204 with 3",
            "HTTP/1.1 204 N|Content-Length: 3||",
            get,
            Framing::None,
            false,
        ),
        (
            "204 chunked",
            "HTTP/1.1 204 N|Transfer-Encoding: chunked||",
            get,
            Framing::None,
            false,
        ),
        ("304", "HTTP/1.1 304 N|Content-Length: 3||", get, Framing::None, true),
        ("100", "HTTP/1.1 100 C||", get, Framing::None, true),
    ] {
        let (meta, _, _) = answered(input, &request).unwrap().expect("a whole head");
        assert_eq!((meta.framing, meta.keep_alive), (framing, keep_alive), "{item}");
    }
}

#[test]
fn forwarded() {
    let get = get();
    let head = request(Method::Head, Version::Http11);
    let old = request(Method::Get, Version::Http10);
    let closing = RequestMeta {
        keep_alive: false,
        ..get
    };
    let (plain, chunked) = (Coding::Plain, Coding::Chunked);
    for (item, input, request, coding, keep_alive, expect) in [
        (
            "length",
            "HTTP/1.1 200 Fine|Server: s|Connection: keep-alive|Keep-Alive: 5|Content-Length: 3||",
            get,
            plain,
            true,
            "HTTP/1.1 200 Fine|Server: s|Content-Length: 3|Via: 1.1 anynode",
        ),
        (
            "no reason",
            "HTTP/1.1 200|Content-Length: 03||",
            get,
            plain,
            true,
            "HTTP/1.1 200 |Via: 1.1 anynode|Content-Length: 3",
        ),
        (
            "listed",
            "HTTP/1.1 200 OK|Connection: a, set-cookie, content-length|A: b|Set-Cookie: c|Content-Length: 3||",
            get,
            plain,
            true,
            "HTTP/1.1 200 OK|Set-Cookie: c|Content-Length: 3|Via: 1.1 anynode",
        ),
        (
            "proxy fields",
            "HTTP/1.1 200 OK|Proxy-Authenticate: a|Upgrade: h2c|Content-Length: 3||",
            get,
            plain,
            true,
            "HTTP/1.1 200 OK|Content-Length: 3|Via: 1.1 anynode",
        ),
        (
            "chunked",
            "HTTP/1.1 200 OK|Trailer: T|Transfer-Encoding: chunked||",
            get,
            chunked,
            true,
            "HTTP/1.1 200 OK|Trailer: T|Via: 1.1 anynode|Transfer-Encoding: chunked",
        ),
        (
            "chunked to 1.0",
            "HTTP/1.1 200 OK|Trailer: T|Transfer-Encoding: chunked||",
            old,
            plain,
            false,
            "HTTP/1.1 200 OK|Via: 1.1 anynode|Connection: close",
        ),
        (
            "close-delimited",
            "HTTP/1.0 200 OK|A: b||",
            get,
            chunked,
            true,
            "HTTP/1.1 200 OK|A: b|Via: 1.0 anynode|Transfer-Encoding: chunked",
        ),
        (
            "close-delimited to 1.0",
            "HTTP/1.0 200 OK|A: b||",
            old,
            plain,
            false,
            "HTTP/1.1 200 OK|A: b|Via: 1.0 anynode|Connection: close",
        ),
        (
            "length to 1.0",
            "HTTP/1.1 200 OK|Content-Length: 3||",
            old,
            plain,
            true,
            "HTTP/1.1 200 OK|Content-Length: 3|Via: 1.1 anynode|Connection: keep-alive",
        ),
        (
            "client closes",
            "HTTP/1.1 200 OK|Content-Length: 3||",
            closing,
            plain,
            false,
            "HTTP/1.1 200 OK|Content-Length: 3|Via: 1.1 anynode|Connection: close",
        ),
        (
            "endpoint closes",
            "HTTP/1.1 200 OK|Content-Length: 3|Connection: close||",
            get,
            plain,
            true,
            "HTTP/1.1 200 OK|Content-Length: 3|Via: 1.1 anynode",
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK|Content-Length: 3||",
            head,
            plain,
            true,
            "HTTP/1.1 200 OK|Content-Length: 3|Via: 1.1 anynode",
        ),
        (
            "HEAD chunked",
            "HTTP/1.1 200 OK|Transfer-Encoding: chunked||",
            head,
            plain,
            true,
            "HTTP/1.1 200 OK|Via: 1.1 anynode",
        ),
        (
            "204",
            "HTTP/1.1 204 N|Content-Length: 0||",
            get,
            plain,
            true,
            "HTTP/1.1 204 N|Via: 1.1 anynode",
        ),
        (
            "304",
            "HTTP/1.1 304 N|Content-Length: 3||",
            get,
            plain,
            true,
            "HTTP/1.1 304 N|Content-Length: 3|Via: 1.1 anynode",
        ),
        (
            "103",
            "HTTP/1.1 103 H|Link: l|Connection: close||",
            get,
            plain,
            true,
            "HTTP/1.1 103 H|Link: l|Via: 1.1 anynode",
        ),
        (
            "101",
            "HTTP/1.1 101 S|upgrade: websocket|connection: Upgrade|Sec-WebSocket-Accept: k||",
            asks_upgrade(),
            plain,
            true,
            "HTTP/1.1 101 S|upgrade: websocket|Sec-WebSocket-Accept: k|Via: 1.1 anynode|Connection: upgrade",
        ),
        (
            "426",
            "HTTP/1.1 426 U|Upgrade: TLS/1.0|Connection: Upgrade|Content-Length: 0||",
            get,
            plain,
            true,
            "HTTP/1.1 426 U|Upgrade: TLS/1.0|Content-Length: 0|Via: 1.1 anynode|Connection: upgrade",
        ),
    ] {
        let (meta, onward, out) = answered(input, &request).unwrap().expect("a whole head");
        assert_eq!(out, expect, "{item}");
        assert_eq!(onward, Onward { coding, keep_alive }, "{item}");
        assert_eq!(meta.head_len, input.replace('|', "\r\n").len(), "{item}");
    }
}

#[test]
fn endpoints_may_do_what_other_proxies_let_them() {
    let get = &get();
    for (item, input, line) in [
        (
            "bare LF",
            "HTTP/1.1 200 OK\nA: b\nContent-Length: 0\n\n",
            "HTTP/1.1 200 OK",
        ),
        (
            "bare LF, no reason",
            "HTTP/1.1 200\nA: b|Content-Length: 0||",
            "HTTP/1.1 200 ",
        ),
        ("mixed", "HTTP/1.1 200 OK|A: b\nContent-Length: 0|\n", "HTTP/1.1 200 OK"),
        (
            "status 600",
            "HTTP/1.1 600 So|A: b|Content-Length: 0||",
            "HTTP/1.1 600 So",
        ),
        ("status 999", "HTTP/1.1 999|A: b|Content-Length: 0||", "HTTP/1.1 999 "),
        (
            "spaces",
            "HTTP/1.1  200  OK|A: b|Content-Length: 0||",
            "HTTP/1.1 200 OK",
        ),
        (
            "UTF-8 reason",
            "HTTP/1.1 404 Seite nicht verfügbar\nA: b|Content-Length: 0||",
            "HTTP/1.1 404 Seite nicht verfügbar",
        ),
    ] {
        let (_, _, answer) = answered(input, get).expect(item).expect(item);
        assert_eq!(
            answer,
            format!("{line}|A: b|Content-Length: 0|Via: 1.1 anynode"),
            "{item}"
        );
    }
    let mut later = b"HTTP/1.7 200 OK\r\n\r\n".to_vec();
    assert!(lower_response(&mut later) && later.starts_with(b"HTTP/1.1 200 "));
    for other in [&b"HTTP/1.1 200"[..], b"HTTP/1.0 200", b"HTTP/2.2 200", b"HTTP/1.", b""] {
        assert!(!lower_response(&mut other.to_vec()), "{other:?}");
    }
}

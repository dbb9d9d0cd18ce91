//! Request heads: each item of the security list by name, and what an endpoint sees of a request.

use super::*;

const LIMIT: usize = super::super::DEFAULT_HEAD_BYTES_MAX;

fn peer(ip: &str, is_trusted: bool) -> Peer {
    Peer::new(
        ip.parse().unwrap(),
        "[::ffff:10.0.0.1]:8080".parse().unwrap(),
        is_trusted,
    )
}

/// Parses and forwards `input`, written with `|` for CR LF. `Ok(None)`: more bytes wanted.
fn forwarded(input: &str, peer: &Peer) -> Result<Option<(RequestMeta, String)>, Refusal> {
    let input = input.replace('|', "\r\n");
    let out = forwarded_raw(input.as_bytes(), peer)?;
    Ok(out.map(|(meta, out)| (meta, String::from_utf8(out).unwrap())))
}

fn forwarded_raw(input: &[u8], peer: &Peer) -> Result<Option<(RequestMeta, Vec<u8>)>, Refusal> {
    let mut slots = HeaderSlots::new();
    let head = parse_request(input, 0, LIMIT, &mut slots)?;
    Ok(head.map(|head| {
        let mut out = Vec::new();
        head.forward(peer, &mut out);
        (head.meta, out)
    }))
}

fn meta(input: &str) -> RequestMeta {
    forwarded(input, &peer("192.0.2.7", false))
        .unwrap()
        .expect("a whole head")
        .0
}

/// What an endpoint sees of `input`, from an untrusted client at 192.0.2.7, without the lines that every request
/// gets.
fn seen(input: &str) -> String {
    seen_from(input, &peer("192.0.2.7", false))
}

fn seen_from(input: &str, peer: &Peer) -> String {
    let (_, out) = forwarded(input, peer).unwrap().expect("a whole head");
    assert!(
        out.ends_with("\r\n\r\n") && !out[..out.len() - 4].contains("\r\n\r\n"),
        "{out:?}"
    );
    let lines = out.trim_end().split("\r\n").filter(|line| !ALWAYS.contains(line));
    lines.collect::<Vec<_>>().join("|")
}

const ALWAYS: &[&str] = &[
    "X-Forwarded-For: 192.0.2.7",
    "X-Real-IP: 192.0.2.7",
    "X-Forwarded-Proto: http",
    "X-Forwarded-Port: 8080",
    "X-Forwarded-Host: a.b",
    "Forwarded: for=192.0.2.7;host=a.b;proto=http",
    "Via: 1.1 anynode",
];

#[test]
fn refused() {
    for (item, input, refusal) in [
        (
            "CL and TE",
            "POST / HTTP/1.1|Host: a|Content-Length: 3|Transfer-Encoding: chunked||",
            Refusal::BothLengths,
        ),
        (
            "TE and CL",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Content-Length: 3||",
            Refusal::BothLengths,
        ),
        (
            "TE and CL 0",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Content-Length: 0||",
            Refusal::BothLengths,
        ),
        (
            "differing CL",
            "POST / HTTP/1.1|Host: a|Content-Length: 3|Content-Length: 4||",
            Refusal::ContentLengthRepeated,
        ),
        (
            "equal CL",
            "POST / HTTP/1.1|Host: a|Content-Length: 3|content-length: 3||",
            Refusal::ContentLengthRepeated,
        ),
        (
            "CL list",
            "POST / HTTP/1.1|Host: a|Content-Length: 3, 3||",
            Refusal::ContentLength,
        ),
        (
            "CL plus",
            "POST / HTTP/1.1|Host: a|Content-Length: +3||",
            Refusal::ContentLength,
        ),
        (
            "CL minus",
            "POST / HTTP/1.1|Host: a|Content-Length: -3||",
            Refusal::ContentLength,
        ),
        (
            "CL hex",
            "POST / HTTP/1.1|Host: a|Content-Length: 0x3||",
            Refusal::ContentLength,
        ),
        (
            "CL space inside",
            "POST / HTTP/1.1|Host: a|Content-Length: 1 3||",
            Refusal::ContentLength,
        ),
        (
            "CL tab inside",
            "POST / HTTP/1.1|Host: a|Content-Length: 1\t3||",
            Refusal::ContentLength,
        ),
        (
            "CL underscore",
            "POST / HTTP/1.1|Host: a|Content-Length: 1_3||",
            Refusal::ContentLength,
        ),
        (
            "CL empty",
            "POST / HTTP/1.1|Host: a|Content-Length:||",
            Refusal::ContentLength,
        ),
        (
            "CL overflow",
            "POST / HTTP/1.1|Host: a|Content-Length: 18446744073709551616||",
            Refusal::ContentLength,
        ),
        (
            "CL fraction",
            "POST / HTTP/1.1|Host: a|Content-Length: 1.0||",
            Refusal::ContentLength,
        ),
        (
            "CL alias",
            "POST / HTTP/1.1|Host: a|Content_Length: 3||",
            Refusal::UnderscoreAlias,
        ),
        (
            "TE alias",
            "POST / HTTP/1.1|Host: a|Transfer_Encoding: chunked||",
            Refusal::UnderscoreAlias,
        ),
        (
            "TE identity",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: identity||",
            Refusal::TransferEncoding,
        ),
        (
            "TE gzip",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip||",
            Refusal::TransferEncoding,
        ),
        (
            "TE not last",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, gzip||",
            Refusal::TransferEncoding,
        ),
        (
            "TE last",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip, chunked||",
            Refusal::TransferCoding,
        ),
        (
            "TE twice in one",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, chunked||",
            Refusal::TransferEncoding,
        ),
        (
            "TE twice",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: chunked||",
            Refusal::TransferEncoding,
        ),
        (
            "TE twice, other",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: x||",
            Refusal::TransferEncoding,
        ),
        (
            "TE xchunked",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: xchunked||",
            Refusal::TransferEncoding,
        ),
        (
            "TE parameter",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked;q=1||",
            Refusal::TransferEncoding,
        ),
        (
            "TE quoted",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: \"chunked\"||",
            Refusal::TransferEncoding,
        ),
        (
            "TE comma",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: ,chunked||",
            Refusal::TransferEncoding,
        ),
        (
            "TE empty",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding:||",
            Refusal::TransferEncoding,
        ),
        (
            "TE VT",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: \x0bchunked||",
            Refusal::FieldValue,
        ),
        (
            "TE obs-text",
            "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked\u{a0}||",
            Refusal::TransferEncoding,
        ),
        (
            "TE in 1.0",
            "POST / HTTP/1.0|Host: a|Transfer-Encoding: chunked||",
            Refusal::TransferEncodingIn10,
        ),
        ("space before colon", "GET / HTTP/1.1|Host : a||", Refusal::FieldName),
        (
            "tab before colon",
            "GET / HTTP/1.1|Host: a|Content-Length\t: 3||",
            Refusal::FieldName,
        ),
        ("obs-fold", "GET / HTTP/1.1|Host: a|X: b| c||", Refusal::FieldName),
        (
            "obs-fold by tab",
            "GET / HTTP/1.1|Host: a|X: b|\tc||",
            Refusal::FieldName,
        ),
        (
            "obs-fold of nothing",
            "GET / HTTP/1.1|Host: a|X:| c||",
            Refusal::FieldName,
        ),
        (
            "space before first field",
            "GET / HTTP/1.1| Host: a||",
            Refusal::FieldName,
        ),
        ("no colon", "GET / HTTP/1.1|Host: a|X||", Refusal::FieldName),
        ("empty name", "GET / HTTP/1.1|Host: a|: x||", Refusal::FieldName),
        (
            "name beyond ASCII",
            "GET / HTTP/1.1|Host: a|X\u{e9}: x||",
            Refusal::FieldName,
        ),
        ("NUL in name", "GET / HTTP/1.1|Host: a|X\0: x||", Refusal::FieldName),
        (
            "bare CR in value",
            "GET / HTTP/1.1|Host: a|X: b\rY: c||",
            Refusal::FieldValue,
        ),
        (
            "bare CR before CRLF",
            "GET / HTTP/1.1|Host: a|X: b\r||",
            Refusal::FieldValue,
        ),
        ("bare CR in request line", "GET / HTTP/1.1\rHost: a||", Refusal::NewLine),
        ("bare CR at the end", "GET / HTTP/1.1|Host: a|\rX", Refusal::NewLine),
        (
            "bare LF after field",
            "GET / HTTP/1.1|Host: a\nX: b||",
            Refusal::BareLineFeed,
        ),
        (
            "bare LF after last field",
            "GET / HTTP/1.1|Host: a\n|",
            Refusal::BareLineFeed,
        ),
        (
            "bare LF after empty field",
            "GET / HTTP/1.1|Host: a|X:\nY: b||",
            Refusal::BareLineFeed,
        ),
        (
            "bare LF after blanks",
            "GET / HTTP/1.1|Host: a|X: \t\nY: b||",
            Refusal::BareLineFeed,
        ),
        (
            "bare LF after request line",
            "GET / HTTP/1.1\nHost: a||",
            Refusal::BareLineFeed,
        ),
        ("bare LF at the end", "GET / HTTP/1.1|Host: a|\n", Refusal::BareLineFeed),
        (
            "bare LF everywhere",
            "GET / HTTP/1.1\nHost: a\n\n",
            Refusal::BareLineFeed,
        ),
        ("bare LF, no fields", "GET / HTTP/1.0\n|", Refusal::BareLineFeed),
        ("bare LF before", "\nGET / HTTP/1.1|Host: a||", Refusal::BareLineFeed),
        ("CR before", "\rGET / HTTP/1.1|Host: a||", Refusal::NewLine),
        (
            "many lines before",
            "|||||GET / HTTP/1.1|Host: a||",
            Refusal::LeadingLines,
        ),
        ("NUL in value", "GET / HTTP/1.1|Host: a|X: b\0c||", Refusal::FieldValue),
        (
            "DEL in value",
            "GET / HTTP/1.1|Host: a|X: b\x7fc||",
            Refusal::FieldValue,
        ),
        ("no Host", "GET / HTTP/1.1||", Refusal::HostMissing),
        ("two Hosts", "GET / HTTP/1.1|Host: a|Host: b||", Refusal::HostRepeated),
        (
            "two equal Hosts",
            "GET / HTTP/1.1|Host: a|host: a||",
            Refusal::HostRepeated,
        ),
        (
            "two Hosts in 1.0",
            "GET / HTTP/1.0|Host: a|Host: b||",
            Refusal::HostRepeated,
        ),
        ("Host empty", "GET / HTTP/1.1|Host:||", Refusal::Host),
        ("Host list", "GET / HTTP/1.1|Host: a, b||", Refusal::Host),
        ("Host comma", "GET / HTTP/1.1|Host: a,b||", Refusal::Host),
        ("Host with user", "GET / HTTP/1.1|Host: u@a||", Refusal::Host),
        ("Host with path", "GET / HTTP/1.1|Host: a/b||", Refusal::Host),
        ("Host with quote", "GET / HTTP/1.1|Host: a\"b||", Refusal::Host),
        ("Host with backslash", "GET / HTTP/1.1|Host: a\\b||", Refusal::Host),
        ("Host beyond ASCII", "GET / HTTP/1.1|Host: \u{e9}||", Refusal::Host),
        ("Host port text", "GET / HTTP/1.1|Host: a:b||", Refusal::Host),
        ("Host port large", "GET / HTTP/1.1|Host: a:65536||", Refusal::Host),
        ("Host two ports", "GET / HTTP/1.1|Host: a:1:2||", Refusal::Host),
        ("Host only port", "GET / HTTP/1.1|Host: :80||", Refusal::Host),
        ("Host bad IPv6", "GET / HTTP/1.1|Host: [::g]||", Refusal::Host),
        ("Host open IPv6", "GET / HTTP/1.1|Host: [::1||", Refusal::Host),
        ("Host IPv6 tail", "GET / HTTP/1.1|Host: [::1]a||", Refusal::Host),
        ("URI, bad Host", "GET http://a/ HTTP/1.1|Host: a b||", Refusal::Host),
        ("URI, no Host", "GET http://a/ HTTP/1.1||", Refusal::HostMissing),
        ("URI with user", "GET http://u:p@a/ HTTP/1.1|Host: a||", Refusal::Host),
        ("URI without host", "GET http:///x HTTP/1.1|Host: a||", Refusal::Host),
        ("URI ftp", "GET ftp://a/ HTTP/1.1|Host: a||", Refusal::Target),
        (
            "URI with half a scheme",
            "GET httpss://a/ HTTP/1.1|Host: a||",
            Refusal::Target,
        ),
        ("CONNECT", "CONNECT a:443 HTTP/1.1|Host: a:443||", Refusal::Connect),
        ("method with bracket", "GE[T / HTTP/1.1|Host: a||", Refusal::RequestLine),
        (
            "method beyond ASCII",
            "G\u{e9}T / HTTP/1.1|Host: a||",
            Refusal::RequestLine,
        ),
        ("method missing", " / HTTP/1.1|Host: a||", Refusal::RequestLine),
        ("method with colon", "GET: / HTTP/1.1|Host: a||", Refusal::RequestLine),
        ("target missing", "GET HTTP/1.1|Host: a||", Refusal::RequestLine),
        ("target with space", "GET /a b HTTP/1.1|Host: a||", Refusal::RequestLine),
        ("target with tab", "GET /a\tb HTTP/1.1|Host: a||", Refusal::RequestLine),
        ("target with NUL", "GET /a\0b HTTP/1.1|Host: a||", Refusal::RequestLine),
        (
            "target with DEL",
            "GET /a\x7fb HTTP/1.1|Host: a||",
            Refusal::RequestLine,
        ),
        ("target beyond ASCII", "GET /\u{e9} HTTP/1.1|Host: a||", Refusal::Target),
        ("target with fragment", "GET /a#b HTTP/1.1|Host: a||", Refusal::Target),
        ("target relative", "GET a HTTP/1.1|Host: a||", Refusal::Target),
        ("target authority", "GET a:80 HTTP/1.1|Host: a||", Refusal::Target),
        ("asterisk", "GET * HTTP/1.1|Host: a||", Refusal::Target),
        ("two spaces", "GET  / HTTP/1.1|Host: a||", Refusal::RequestLine),
        (
            "two spaces after target",
            "GET /  HTTP/1.1|Host: a||",
            Refusal::RequestLine,
        ),
        ("space after version", "GET / HTTP/1.1 |Host: a||", Refusal::NewLine),
        ("HTTP/0.9", "GET /||", Refusal::RequestLine),
        ("HTTP/1.2", "GET / HTTP/1.2|Host: a||", Refusal::Version),
        ("HTTP/2.0", "GET / HTTP/2.0|Host: a||", Refusal::Version),
        ("HTTP/01.1", "GET / HTTP/01.1|Host: a||", Refusal::RequestLine),
        ("HTTP/1", "GET / HTTP/1|Host: a||", Refusal::RequestLine),
        ("http/1.1", "GET / http/1.1|Host: a||", Refusal::RequestLine),
        ("h2 preface", "PRI * HTTP/2.0||SM||", Refusal::Version),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\x01", Refusal::RequestLine),
        (
            "expectation",
            "POST / HTTP/1.1|Host: a|Expect: 200-ok|Content-Length: 3||",
            Refusal::Expectation,
        ),
        (
            "expectation list",
            "POST / HTTP/1.1|Host: a|Expect: 100-continue, x|Content-Length: 3||",
            Refusal::Expectation,
        ),
        (
            "expectation twice",
            "POST / HTTP/1.1|Host: a|Expect: 100-continue|Expect: 100-continue|Content-Length: 3||",
            Refusal::Expectation,
        ),
        (
            "TRACE with body",
            "TRACE / HTTP/1.1|Host: a|Content-Length: 3||",
            Refusal::TraceBody,
        ),
        (
            "Max-Forwards text",
            "OPTIONS / HTTP/1.1|Host: a|Max-Forwards: x||",
            Refusal::MaxForwards,
        ),
        (
            "Max-Forwards twice",
            "TRACE / HTTP/1.1|Host: a|Max-Forwards: 1|Max-Forwards: 0||",
            Refusal::MaxForwards,
        ),
    ] {
        let got = forwarded(input, &peer("192.0.2.7", false)).map(|_| ());
        assert_eq!(got, Err(refusal), "{item}");
        assert!((400..=508).contains(&refusal.status()) && !refusal.text().is_empty());
    }
}

#[test]
fn statuses() {
    for (refusal, status) in [
        (Refusal::BothLengths, 400),
        (Refusal::Connect, 501),
        (Refusal::Expectation, 417),
        (Refusal::HeadTooLarge, 431),
        (Refusal::TooManyFields, 431),
        (Refusal::TransferCoding, 501),
        (Refusal::TransferEncoding, 400),
        (Refusal::Version, 505),
    ] {
        assert_eq!(refusal.status(), status);
    }
}

/// Every byte at every place, so that no vectorised path of httparse lets one through that the table forbids.
#[test]
fn every_byte_in_every_place() {
    for b in 0..=255u8 {
        for at in 0..70 {
            let put = |before: &str, after: &str| {
                let mut input = [before.as_bytes(), &[b'a'; 70], after.as_bytes()].concat();
                input[before.len() + at] = b;
                input
            };
            let is_taken = |input: &[u8]| match forwarded_raw(input, &peer("192.0.2.7", false)) {
                Ok(Some((_, out))) => !out.is_empty(),
                _ => false,
            };
            let value_ok = b == b'\t' || b == b' ' || (0x21..=0x7e).contains(&b) || b >= 0x80;
            assert_eq!(
                is_taken(&put("GET / HTTP/1.1\r\nHost: a\r\nX: ", "\r\n\r\n")),
                value_ok,
                "value {b:#x} {at}"
            );
            // A colon inside the name ends it, which is fine unless it ends it at once.
            let name_ok = is_token_byte(b) || (b == b':' && at > 0);
            assert_eq!(
                is_taken(&put("GET / HTTP/1.1\r\nHost: a\r\n", ": x\r\n\r\n")),
                name_ok,
                "name {b:#x} {at}"
            );
            let target_ok = (0x21..=0x7e).contains(&b) && b != b'#';
            assert_eq!(
                is_taken(&put("GET /", " HTTP/1.1\r\nHost: a\r\n\r\n")),
                target_ok,
                "target {b:#x} {at}"
            );
            let method_ok = is_token_byte(b);
            assert_eq!(
                is_taken(&put("", " / HTTP/1.1\r\nHost: a\r\n\r\n")),
                method_ok,
                "method {b:#x} {at}"
            );
        }
    }
}

#[test]
fn limits() {
    let many = |n| format!("GET / HTTP/1.1|Host: a|{}|", "X: y|".repeat(n));
    assert!(forwarded(&many(MAX_FIELDS_BESIDE_HOST), &peer("::1", false)).is_ok());
    let refusal = forwarded(&many(MAX_FIELDS_BESIDE_HOST + 1), &peer("::1", false)).map(|_| ());
    assert_eq!(refusal, Err(Refusal::TooManyFields));

    let whole = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (input, bytes_max, expect) in [
        (whole, whole.len(), Ok(true)),
        (whole, whole.len() - 1, Err(Refusal::HeadTooLarge)),
        (&whole[..20], 21, Ok(false)),
        (&whole[..20], 20, Err(Refusal::HeadTooLarge)),
        ("\r\n\r\n", 3, Err(Refusal::HeadTooLarge)),
        ("", 0, Err(Refusal::HeadTooLarge)),
    ] {
        let mut slots = HeaderSlots::new();
        let got = parse_request(input.as_bytes(), 0, bytes_max, &mut slots).map(|head| head.is_some());
        assert_eq!(got, expect, "{input:?} within {bytes_max}");
    }
    let listed = format!("GET / HTTP/1.1|Host: a|Connection: {}||", "x,".repeat(33));
    let refusal = forwarded(&listed, &peer("::1", false)).map(|_| ());
    assert_eq!(refusal, Err(Refusal::ConnectionOptions));
}

const MAX_FIELDS_BESIDE_HOST: usize = super::super::DEFAULT_FIELDS_MAX - 1;

#[test]
fn forwarded_fields() {
    for (item, input, expect) in [
        (
            "plain",
            "GET /x?y HTTP/1.1|Host: a.b|ACCEPT: */*||",
            "GET /x?y HTTP/1.1|Host: a.b|ACCEPT: */*",
        ),
        (
            "spelling of values",
            "GET / HTTP/1.1|Host:a.b|X:\t y z \t|Tab:\tt|Empty:||",
            "GET / HTTP/1.1|Host: a.b|X: y z|Tab: t|Empty: ",
        ),
        (
            "empty lines before",
            "||GET / HTTP/1.1|Host: a.b||",
            "GET / HTTP/1.1|Host: a.b",
        ),
        (
            "hop-by-hop",
            "GET / HTTP/1.1|A: 1|Keep-Alive: 5|Proxy-Connection: x|Proxy-Authorization: x|Proxy: x|B: 2|TE: gzip|Trailer: T|Upgrade: x|Connection: close|Host: a.b||",
            "GET / HTTP/1.1|A: 1|B: 2|Host: a.b",
        ),
        (
            "listed",
            "GET / HTTP/1.1|Host: a.b|foo: 1|Connection: close, Foo ,bar|BAR: 2|baz: 3|FOO: 4||",
            "GET / HTTP/1.1|Host: a.b|baz: 3",
        ),
        (
            "listed in vain",
            "POST / HTTP/1.1|Connection: host, content-length, x-forwarded-for, cookie, authorization|Host: a.b|Content-Length: 3|Cookie: c|Authorization: d||",
            "POST / HTTP/1.1|Host: a.b|Content-Length: 3|Cookie: c|Authorization: d",
        ),
        (
            "TE trailers",
            "GET / HTTP/1.1|Host: a.b|TE: gzip;q=1, trailers|Connection: te||",
            "GET / HTTP/1.1|Host: a.b|TE: trailers|Connection: TE",
        ),
        (
            "chunked",
            "POST / HTTP/1.1|Host: a.b|Transfer-Encoding: CHUNKED|Trailer: T||",
            "POST / HTTP/1.1|Host: a.b|Trailer: T|Transfer-Encoding: chunked",
        ),
        (
            "leading zeros",
            "POST / HTTP/1.1|Host: a.b|Content-Length: 0010||",
            "POST / HTTP/1.1|Host: a.b|Content-Length: 10",
        ),
        (
            "no length",
            "POST / HTTP/1.1|Host: a.b||",
            "POST / HTTP/1.1|Host: a.b|Content-Length: 0",
        ),
        (
            "length zero",
            "POST / HTTP/1.1|Host: a.b|Content-Length: 00||",
            "POST / HTTP/1.1|Host: a.b|Content-Length: 0",
        ),
        (
            "underscore",
            "GET / HTTP/1.1|Host: a.b|my_field: 1|X_Forwarded_For: 6.6.6.6||",
            "GET / HTTP/1.1|Host: a.b|my_field: 1",
        ),
        (
            "upgrade",
            "GET / HTTP/1.1|Host: a.b|Upgrade: websocket|Connection: keep-alive, Upgrade||",
            "GET / HTTP/1.1|Host: a.b|Upgrade: websocket|Connection: upgrade",
        ),
        (
            "upgrade with TE",
            "GET / HTTP/1.1|Host: a.b|TE: trailers|Upgrade: websocket|Connection: Upgrade||",
            "GET / HTTP/1.1|Host: a.b|Upgrade: websocket|TE: trailers|Connection: upgrade, TE",
        ),
        (
            "upgrade unlisted",
            "GET / HTTP/1.1|Host: a.b|Upgrade: websocket||",
            "GET / HTTP/1.1|Host: a.b",
        ),
        (
            "upgrade h2c",
            "GET / HTTP/1.1|Host: a.b|Upgrade: H2C|HTTP2-Settings: x|Connection: Upgrade, HTTP2-Settings||",
            "GET / HTTP/1.1|Host: a.b",
        ),
        (
            "upgrade h2c listed",
            "GET / HTTP/1.1|Host: a.b|Upgrade: websocket, h2c|Connection: Upgrade||",
            "GET / HTTP/1.1|Host: a.b",
        ),
        (
            "upgrade with body",
            "POST / HTTP/1.1|Host: a.b|Upgrade: x|Connection: Upgrade|Content-Length: 1||",
            "POST / HTTP/1.1|Host: a.b|Content-Length: 1",
        ),
        (
            "expect",
            "PUT / HTTP/1.1|Host: a.b|Expect: 100-Continue|Content-Length: 1||",
            "PUT / HTTP/1.1|Host: a.b|Expect: 100-Continue|Content-Length: 1",
        ),
        (
            "expect without body",
            "GET / HTTP/1.1|Host: a.b|Expect: 100-continue||",
            "GET / HTTP/1.1|Host: a.b",
        ),
        (
            "max-forwards",
            "OPTIONS / HTTP/1.1|Host: a.b|Max-Forwards: 7||",
            "OPTIONS / HTTP/1.1|Host: a.b|Max-Forwards: 6",
        ),
        (
            "max-forwards of others",
            "GET / HTTP/1.1|Host: a.b|Max-Forwards: x||",
            "GET / HTTP/1.1|Host: a.b|Max-Forwards: x",
        ),
        (
            "asterisk",
            "OPTIONS * HTTP/1.1|Host: a.b||",
            "OPTIONS * HTTP/1.1|Host: a.b",
        ),
        (
            "absolute",
            "GET http://a.b/x HTTP/1.1|A: 1|Host: a.b||",
            "GET /x HTTP/1.1|Host: a.b|A: 1",
        ),
        (
            "absolute, other Host",
            "GET HTTP://a.b/x HTTP/1.1|Host: evil||",
            "GET /x HTTP/1.1|Host: a.b",
        ),
        (
            "absolute, no path",
            "GET http://a.b HTTP/1.1|Host: a.b||",
            "GET / HTTP/1.1|Host: a.b",
        ),
        (
            "absolute, query",
            "GET http://a.b?q HTTP/1.1|Host: a.b||",
            "GET /?q HTTP/1.1|Host: a.b",
        ),
        (
            "absolute OPTIONS",
            "OPTIONS http://a.b HTTP/1.1|Host: a.b||",
            "OPTIONS * HTTP/1.1|Host: a.b",
        ),
        (
            "path with slashes",
            "GET //evil/../x HTTP/1.1|Host: a.b||",
            "GET //evil/../x HTTP/1.1|Host: a.b",
        ),
        (
            "existing Via",
            "GET / HTTP/1.1|Host: a.b|Via: 1.0 fred||",
            "GET / HTTP/1.1|Host: a.b|Via: 1.0 fred",
        ),
        (
            "spoofed",
            "GET / HTTP/1.1|Host: a.b|X-Forwarded-For: 1.1.1.1|X-Forwarded-Proto: https|X-Forwarded-Host: evil|X-Forwarded-Port: 1|X-Forwarded-Prefix: /x|X-Real-IP: 1.1.1.1|Forwarded: for=1.1.1.1||",
            "GET / HTTP/1.1|Host: a.b",
        ),
    ] {
        assert_eq!(seen(input), expect, "{item}");
    }
}

#[test]
fn forwarding_fields() {
    let input = "GET / HTTP/1.1|Host: a.b:8080||";
    assert_eq!(
        seen_from(input, &peer("2001:db8::1", false)),
        "GET / HTTP/1.1|Host: a.b:8080|X-Forwarded-For: 2001:db8::1|X-Real-IP: 2001:db8::1|\
         X-Forwarded-Host: a.b:8080|Forwarded: for=\"[2001:db8::1]\";host=\"a.b:8080\";proto=http"
    );
    assert_eq!(
        seen_from("GET / HTTP/1.1|Host: a.b||", &peer("::ffff:192.0.2.7", false)),
        "GET / HTTP/1.1|Host: a.b"
    );
    let input = "GET / HTTP/1.1|Host: a.b|X-Forwarded-For: 1.1.1.1|x-forwarded-proto: https|\
                 X-Forwarded-Host: c|X-Forwarded-For: 2.2.2.2, 3.3.3.3|X-Forwarded-Prefix: /x|\
                 Forwarded: for=1.1.1.1|X-Real-IP: 1.1.1.1||";
    assert_eq!(
        seen_from(input, &peer("192.0.2.7", true)),
        "GET / HTTP/1.1|Host: a.b|x-forwarded-proto: https|X-Forwarded-Host: c|X-Forwarded-Prefix: /x|\
         X-Real-IP: 1.1.1.1|X-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 192.0.2.7|\
         Forwarded: for=1.1.1.1, for=192.0.2.7;host=a.b;proto=http"
    );
    assert_eq!(
        seen_from("GET / HTTP/1.1|Host: a.b||", &peer("192.0.2.7", true)),
        "GET / HTTP/1.1|Host: a.b"
    );
}

#[test]
fn http10() {
    assert_eq!(
        seen("GET / HTTP/1.0|Connection: keep-alive|Expect: 200-ok||"),
        "GET / HTTP/1.1|Host: 10.0.0.1:8080|Forwarded: for=192.0.2.7;proto=http|Via: 1.0 anynode"
    );
    assert!(meta("GET / HTTP/1.0|Connection: keep-alive||").keep_alive);
    assert!(!meta("GET / HTTP/1.0||").keep_alive);
    assert!(!meta("GET / HTTP/1.0|Connection: keep-alive, close||").keep_alive);
    assert!(!meta("GET / HTTP/1.0|Upgrade: x|Connection: upgrade||").upgrade);
}

#[test]
fn meta_of_a_request() {
    let input = "|POST / HTTP/1.1|Host: a|Content-Length: 5|Expect: 100-continue||";
    let expect = RequestMeta {
        head_len: input.replace('|', "\r\n").len(),
        method: Method::Post,
        version: Version::Http11,
        framing: Framing::Length(5),
        keep_alive: true,
        expects_continue: true,
        upgrade: false,
        local_answer: None,
    };
    assert_eq!(meta(&format!("{input}hello")), expect);
    assert!(!meta("GET / HTTP/1.1|Host: a|Connection: x|Connection: Close||").keep_alive);
    assert!(meta("GET / HTTP/1.1|Host: a|Upgrade: x|Connection: upgrade||").upgrade);
    for (input, answer) in [
        (
            "OPTIONS * HTTP/1.1|Host: a|Max-Forwards: 0||",
            Some(LocalAnswer::Options),
        ),
        ("TRACE / HTTP/1.1|Host: a|Max-Forwards: 0||", Some(LocalAnswer::Trace)),
        ("TRACE / HTTP/1.1|Host: a|Max-Forwards: 1||", None),
        ("GET / HTTP/1.1|Host: a|Max-Forwards: 0||", None),
    ] {
        assert_eq!(meta(input).local_answer, answer, "{input}");
    }
}

#[test]
fn later_minor_versions_are_read_as_1_1() {
    for (input, expect) in [
        ("GET / HTTP/1.2\r\n", Some("GET / HTTP/1.1\r\n")),
        ("\r\nGET / HTTP/1.9", Some("\r\nGET / HTTP/1.1")),
        ("GET / HTTP/1.1\r\n", None),
        ("GET / HTTP/1.0\r\n", None),
        ("GET / HTTP/2.2\r\n", None),
        ("GET / HTTP/1.", None),
        ("GET /", None),
        ("", None),
        ("\n", None),
    ] {
        let mut bytes = input.as_bytes().to_vec();
        assert_eq!(lower_request(&mut bytes), expect.is_some(), "{input:?}");
        assert_eq!(bytes, expect.unwrap_or(input).as_bytes());
    }
    assert_eq!(
        forwarded("GET / HTTP/2", &peer("::1", false)).map(|_| ()),
        Ok(()),
        "it may become 2.0"
    );
}

#[test]
fn a_request_that_comes_round_too_often_is_a_loop() {
    let hops = |n: usize| {
        let via = "Via: 1.1 anynode|Via: 1.0 other, 1.1 anynode (x)|".repeat(n / 2);
        let one = "Via: 1.1 AnyNode|".repeat(n % 2);
        forwarded(&format!("GET / HTTP/1.1|Host: a|{via}{one}|"), &peer("::1", false)).map(|_| ())
    };
    assert_eq!(hops(OWN_HOPS_MAX), Ok(()));
    assert_eq!(hops(OWN_HOPS_MAX + 1), Err(Refusal::Loop));
    let others = "Via: 1.1 anynode.example, HTTP/2 any, anynode, 1.1 x anynode|".repeat(20);
    assert!(forwarded(&format!("GET / HTTP/1.1|Host: a|{others}|"), &peer("::1", false)).is_ok());
}

#[test]
fn a_broken_forwarded_is_dropped_and_a_whole_one_added_to() {
    for value in [
        "for=1.1.1.1",
        "for=\"[2001:db8::1]:80\";by=_x; proto=https , for=unknown",
        ", ,for=1.1.1.1;;",
        "for=2001:db8::1",
        "for=\"a\\\"b,c\"",
        "",
    ] {
        assert!(is_forwarded(value.as_bytes()), "{value}");
    }
    for value in [
        "for=\"1.1.1.1",
        "for=\"a\\\"",
        "for",
        "for=",
        "for=a b",
        "=x",
        "for=\"a\"b",
        "for = a",
        "\"",
        "for=a\"b",
    ] {
        assert!(!is_forwarded(value.as_bytes()), "{value}");
        let input = format!("GET / HTTP/1.1|Host: a.b|Forwarded: for=1.1.1.1|Forwarded: {value}||");
        let out = seen_from(&input, &peer("192.0.2.7", true));
        assert!(!out.contains("Forwarded: for=1.1.1.1"), "{out}");
        let (_, out) = forwarded(&input, &peer("192.0.2.7", true)).unwrap().unwrap();
        assert!(
            out.contains("\r\nForwarded: for=192.0.2.7;host=a.b;proto=http\r\n"),
            "{out}"
        );
    }
}

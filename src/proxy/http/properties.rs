//! What holds for all heads and bodies, tried on random and on damaged ones.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

const LIMIT: usize = 4096;

/// A head's meaning, detached from its bytes.
#[derive(Debug, PartialEq)]
struct Meaning {
    meta: RequestMeta,
    method: String,
    target: String,
    host: Option<String>,
    out: Vec<u8>,
}

fn peer(is_trusted: bool) -> Peer {
    Peer::new("192.0.2.7".parse().unwrap(), "10.0.0.1:80".parse().unwrap(), is_trusted)
}

fn request(input: &[u8], seen: usize, is_trusted: bool) -> Result<Option<Meaning>, Refusal> {
    let mut slots = HeaderSlots::new();
    let mut lowered = input.to_vec();
    if let Err(Refusal::Version) = parse_request(input, seen, LIMIT, &mut slots).map(drop)
        && lower_request(&mut lowered)
    {
        return request(&lowered, 0, is_trusted);
    }
    let mut slots = HeaderSlots::new();
    Ok(parse_request(input, seen, LIMIT, &mut slots)?.map(|head| {
        let mut out = Vec::new();
        head.forward(&peer(is_trusted), &mut out);
        Meaning {
            meta: head.meta,
            method: head.method_name.to_owned(),
            target: head.target().into_owned(),
            host: head.host.map(str::to_owned),
            out,
        }
    }))
}

fn response(input: &[u8], seen: usize, to: &RequestMeta) -> Result<Option<(ResponseMeta, Onward, Vec<u8>)>, Refusal> {
    let mut slots = HeaderSlots::new();
    Ok(parse_response(input, seen, LIMIT, to, &mut slots)?.map(|head| {
        let mut out = Vec::new();
        let onward = head.forward(to, true, &mut out);
        (head.meta, onward, out)
    }))
}

fn a_request_meta() -> RequestMeta {
    let input = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    request(input, 0, false).unwrap().expect("a whole head").meta
}

/// Lines as a peer might write them, well and badly.
fn a_line() -> impl Strategy<Value = String> {
    let known = select(vec![
        "host:x",
        "Content-Length: 5",
        "Content-Length: 05",
        "content-length: 0",
        "Transfer-Encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "Connection: close",
        "Connection: keep-alive, x-a, host",
        "Connection: upgrade",
        "Upgrade: websocket",
        "Upgrade: h2c",
        "TE: trailers",
        "Trailer: T",
        "Expect: 100-continue",
        "Max-Forwards: 3",
        "X-Forwarded-For: 1.1.1.1, 2.2.2.2",
        "X-Forwarded-Proto: https",
        "X_Forwarded_For: 3.3.3.3",
        "Forwarded: for=\"[::1]\"",
        "Forwarded: for=\"[::1]",
        "Via: 1.1 other",
        "Via: 1.1 anynode, 1.0 anynode",
        "X-A: b",
        "X-A:\t c \t",
        "X-B:",
        "Proxy-Connection: close",
    ]);
    prop_oneof![
        40 => known.prop_map(str::to_owned),
        20 => "[A-Za-z_-]{1,12}: ?[ -~\u{80}-\u{ff}]{0,20}",
        1 => "[ -~\t]{0,20}",
    ]
}

fn an_end() -> impl Strategy<Value = &'static str> {
    prop_oneof![200 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("\r\r\n"), 1 => Just("\r\n ")]
}

fn a_request() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        "GET / HTTP/1.1",
        "GET /x?y=%20 HTTP/1.1",
        "HEAD / HTTP/1.0",
        "POST /a HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "OPTIONS http://h HTTP/1.1",
        "PUT http://a.b:80?q HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET /later HTTP/1.2",
        "GET /odd HTTP/01.1",
        "TRACE / HTTP/1.1",
    ]);
    let host = select(vec!["\r\nHost: a.b", "\r\nHost: [::1]:80", "\r\nHOST:\tx \t", ""]);
    (line, vec((an_end(), a_line()), 0..8), an_end(), an_end(), host).prop_map(|(line, fields, e1, e2, host)| {
        let mut head = line.to_owned();
        head.push_str(host);
        for (end, field) in fields {
            head.push_str(end);
            head.push_str(&field);
        }
        head.push_str(e1);
        head.push_str(e2);
        head.into_bytes()
    })
}

fn a_response() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        "HTTP/1.1 200 OK",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 204",
        "HTTP/1.1 304 Not Modified",
        "HTTP/1.1 101 Switch",
        "HTTP/1.1 103 Hints",
        "HTTP/1.1 426 Up",
        "HTTP/1.1 999 Odd",
        "HTTP/1.1 600",
        "HTTP/1.1 404 Nicht verf\u{fc}gbar",
        "HTTP/1.3 200 OK",
    ]);
    (line, vec((an_end(), a_line()), 0..8), an_end(), an_end()).prop_map(|(line, fields, e1, e2)| {
        let mut head = line.to_owned();
        for (end, field) in fields {
            head.push_str(end);
            head.push_str(&field);
        }
        head.push_str(e1);
        head.push_str(e2);
        head.into_bytes()
    })
}

/// Replaces, inserts and removes single bytes.
fn damaged(mut bytes: Vec<u8>, changes: &[(Index, u8, u8)]) -> Vec<u8> {
    for (at, kind, byte) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match kind % 3 {
            0 => bytes[at] = *byte,
            1 => bytes.insert(at, *byte),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    let byte = prop_oneof![any::<u8>(), select(b"\r\n :;,\0\t0a".to_vec())];
    let changes = vec((any::<Index>(), any::<u8>(), byte), 1..4);
    prop_oneof![2 => Just(Vec::new()), 1 => changes]
}

/// One line each, CR LF between, an empty line at the end, no control character inside, no field that must be gone.
fn check_written(out: &[u8]) -> Result<(), TestCaseError> {
    let text: String = out.iter().map(|&b| char::from(b)).collect();
    prop_assert!(text.ends_with("\r\n\r\n"));
    let lines: Vec<&str> = text[..text.len() - 4].split("\r\n").collect();
    for line in &lines {
        prop_assert!(
            !line.is_empty() && !line.contains(|c: char| c != '\t' && c < ' ' || c == '\x7f'),
            "{:?}",
            line
        );
    }
    let names: Vec<String> = lines[1..]
        .iter()
        .map(|line| line.split(':').next().unwrap_or_default().to_ascii_lowercase())
        .collect();
    let count = |name: &str| names.iter().filter(|n| *n == name).count();
    prop_assert!(count("content-length") + count("transfer-encoding") <= 1, "{}", text);
    prop_assert!(count("connection") <= 1);
    prop_assert_eq!(
        count("keep-alive") + count("proxy-connection") + count("http2-settings"),
        0
    );
    Ok(())
}

proptest! {
    // Eight times the usual number, or of PROPTEST_CASES.
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    #[test]
    fn request_heads_survive(input in a_request(), changes in changes(), cut in any::<Index>(), trusted: bool) {
        let input = damaged(input, &changes);
        let whole = request(&input, 0, trusted);

        // In two pieces the same comes out as in one, whenever anything final does.
        let cut = cut.index(input.len() + 1);
        let part = request(&input[..cut], 0, trusted);
        match &part {
            Ok(None) => {
                let rest = request(&input, cut, trusted);
                // Damage in a line that has not ended yet may be noticed later.
                if input[cut..].contains(&b'\n') {
                    prop_assert_eq!(&rest, &whole);
                }
            }
            _ => prop_assert_eq!(&part, &whole),
        }

        if let Ok(Some(first)) = whole {
            check_written(&first.out)?;
            prop_assert!(first.meta.head_len <= input.len());
            // What we write, we read in the same way; and writing it again, as a trusted peer, changes no meaning.
            let again = request(&first.out, 0, true).expect("own head").expect("whole");
            check_written(&again.out)?;
            prop_assert_eq!(again.meta.framing, first.meta.framing);
            prop_assert_eq!(again.meta.upgrade, first.meta.upgrade);
            prop_assert_eq!(again.meta.expects_continue, first.meta.expects_continue);
            prop_assert_eq!(again.meta.head_len, first.out.len());
            prop_assert_eq!(&again.method, &first.method);
            prop_assert_eq!(&again.target, &first.target);
            if first.host.is_some() {
                prop_assert_eq!(&again.host, &first.host);
            }
        }
    }

    #[test]
    fn response_heads_survive(input in a_response(), changes in changes(), cut in any::<Index>(), old: bool) {
        let mut to = a_request_meta();
        if old {
            to.version = Version::Http10;
        }
        let input = damaged(input, &changes);
        let whole = response(&input, 0, &to);
        let cut = cut.index(input.len() + 1);
        match response(&input[..cut], 0, &to) {
            Ok(None) if input[cut..].contains(&b'\n') => prop_assert_eq!(&response(&input, cut, &to), &whole),
            Ok(None) => {}
            part => prop_assert_eq!(&part, &whole),
        }
        if let Ok(Some((meta, onward, out))) = whole {
            check_written(&out)?;
            let (again, _, _) = response(&out, 0, &to).expect("own head").expect("whole");
            prop_assert_eq!(again.status, meta.status);
            let expect = match (meta.framing, onward.coding) {
                (Framing::Chunked | Framing::UntilClose, Coding::Chunked) => Framing::Chunked,
                (Framing::Chunked | Framing::UntilClose, Coding::Plain) => Framing::UntilClose,
                (framing, _) => framing,
            };
            prop_assert_eq!(again.framing, expect);
            let says_close = String::from_utf8_lossy(&out).contains("\r\nConnection: close\r\n");
            if meta.status >= 200 && !old && meta.status != 426 {
                prop_assert_eq!(onward.keep_alive, !says_close);
            }
        }
    }

    /// What ends the lines of an endpoint's head changes nothing of what its client gets.
    #[test]
    fn line_ends_of_responses_do_not_matter(
        line in select(vec!["HTTP/1.1 200 OK", "HTTP/1.1 200", "HTTP/1.0 404 Nicht verf\u{fc}gbar", "HTTP/1.1 777 "]),
        fields in vec("[A-Za-z-]{1,12}:[ \t]{0,2}[!-~\u{80}-\u{ff}]{0,20}", 0..8),
        ends in vec(select(vec!["\r\n", "\n"]), 10),
    ) {
        let write = |end: &dyn Fn(usize) -> &'static str| {
            let mut head = format!("{line}{}", end(0));
            for (i, field) in fields.iter().enumerate() {
                head.push_str(field);
                head.push_str(end(i + 1));
            }
            head + end(9)
        };
        let to = a_request_meta();
        let strict = response(write(&|_| "\r\n").as_bytes(), 0, &to);
        let loose = response(write(&|i| ends[i]).as_bytes(), 0, &to);
        let told = |result: Result<Option<(ResponseMeta, Onward, Vec<u8>)>, Refusal>| {
            result.map(|head| head.map(|(meta, onward, out)| (meta.status, meta.framing, meta.keep_alive, onward, out)))
        };
        prop_assert_eq!(told(loose), told(strict));
    }

    /// Whatever a trusted proxy writes, our own element of Forwarded stands by itself at the end.
    #[test]
    fn ours_is_never_inside_theirs(
        theirs in vec("(for=|by=|;|,|\"|\\\\|[a-z0-9.:_ ]|\"[a-z,;=]{0,4}\"){0,8}", 0..3),
    ) {
        let fields: String = theirs.iter().map(|value| format!("Forwarded: {value}\r\n")).collect();
        let input = format!("GET / HTTP/1.1\r\nHost: a.b\r\n{fields}\r\n");
        let Ok(Some(got)) = request(input.as_bytes(), 0, true) else { return Ok(()) };
        let out = String::from_utf8_lossy(&got.out).into_owned();
        let lines: Vec<&str> = out.split("\r\n").filter_map(|line| line.strip_prefix("Forwarded: ")).collect();
        prop_assert_eq!(lines.len(), 1);
        let before = lines[0].strip_suffix("for=192.0.2.7;host=a.b;proto=http");
        let before = before.expect("ours is the last");
        prop_assert!(before.is_empty() || before.ends_with(", "));
        let (mut is_quoted, mut bytes) = (false, before.bytes());
        while let Some(b) = bytes.next() {
            match b {
                b'"' => is_quoted = !is_quoted,
                b'\\' if is_quoted => drop(bytes.next()),
                _ => {}
            }
        }
        prop_assert!(!is_quoted, "{}", lines[0]);
    }

    #[test]
    fn noise_is_no_trouble(input in vec(any::<u8>(), 0..300), seen in 0usize..400) {
        let _ = request(&input, seen, true);
        let _ = response(&input, seen, &a_request_meta());
        let mut out = Vec::new();
        let _ = Body::of_request(Framing::Chunked).forward(&input, Coding::Chunked, &mut out);
    }

    #[test]
    fn chunks_come_back(parts in vec(vec(any::<u8>(), 0..60), 0..8), cuts in vec(1usize..40, 1..20), trailer: bool) {
        let mut input = Vec::new();
        for part in &parts {
            encode_chunk(part, &mut input);
        }
        input.extend_from_slice(if trailer { b"0\r\nT: x\r\n\r\n" } else { b"0\r\n\r\n" });
        let encoded = input.len();
        input.extend_from_slice(b"GET / HTTP/1.1");
        for coding in [Coding::Plain, Coding::Chunked] {
            let (mut body, mut out, mut pending) = (Body::of_request(Framing::Chunked), Vec::new(), Vec::new());
            let (mut taken, mut at, mut cuts) = (0, 0, cuts.iter().cycle());
            while !body.is_done() {
                let end = (at + cuts.next().expect("cycle")).min(input.len());
                pending.extend_from_slice(&input[at..end]);
                at = end;
                let progress = body.forward(&pending, coding, &mut out).expect("own chunks");
                pending.drain(..progress.consumed);
                taken += progress.consumed;
            }
            prop_assert_eq!(taken, encoded);
            match coding {
                Coding::Plain => prop_assert_eq!(out, parts.concat()),
                Coding::Chunked => prop_assert_eq!(&out[..], &input[..encoded]),
            }
        }
    }

    #[test]
    fn damaged_chunks_end_alike(
        parts in vec(vec(any::<u8>(), 0..20), 0..5),
        changes in changes(),
        cut in any::<Index>(),
        is_plain: bool,
    ) {
        let mut input = Vec::new();
        for part in &parts {
            encode_chunk(part, &mut input);
        }
        input.extend_from_slice(b"0\r\nT: x\r\n\r\n");
        let input = damaged(input, &changes);
        let coding = if is_plain { Coding::Plain } else { Coding::Chunked };
        let run = |pieces: &[&[u8]]| {
            let (mut body, mut out, mut pending) = (Body::of_request(Framing::Chunked), Vec::new(), Vec::new());
            for piece in pieces {
                pending.extend_from_slice(piece);
                let progress = body.forward(&pending, coding, &mut out)?;
                pending.drain(..progress.consumed);
            }
            Ok::<_, BodyFault>((out, pending, body.is_done()))
        };
        let cut = cut.index(input.len() + 1);
        prop_assert_eq!(run(&[&input]), run(&[&input[..cut], &input[cut..]]));
        if let Ok((out, _, true)) = run(&[&input])
            && coding == Coding::Chunked
        {
            // What goes on is well formed, and means the same.
            let mut plain = Vec::new();
            let progress = Body::of_request(Framing::Chunked).forward(&out, Coding::Plain, &mut plain).expect("own");
            prop_assert!(progress.done && progress.consumed == out.len());
            let mut direct = Vec::new();
            let _ = Body::of_request(Framing::Chunked).forward(&input, Coding::Plain, &mut direct);
            prop_assert_eq!(plain, direct);
        }
    }
}

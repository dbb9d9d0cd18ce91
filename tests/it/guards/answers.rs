//! Answers that are compressed on their way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, mpsc};

use flate2::read::MultiGzDecoder;

use super::Node;
use crate::admin::Scrape;
use crate::harness::{Origin, Seed, dial, read_head, read_to_end};

/// Some text of that length, the same each time.
fn text(n_bytes: usize) -> Vec<u8> {
    let words = ["mesh ", "node ", "of ", "service ", "\n", "a ", "routing "];
    let mut rng = fastrand::Rng::with_seed(7);
    let mut text = Vec::new();
    while text.len() < n_bytes {
        text.extend_from_slice(words[rng.usize(..words.len())].as_bytes());
    }
    text.truncate(n_bytes);
    text
}

/// What is asked for says how it is answered: `/length/5000?text/html`, `/chunked/N?TYPE`, `/close/N?TYPE`, `/cut/N?TYPE`, the type with more
/// fields behind it, `%0d%0a` between them.
fn origin() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let target = head.split(' ').nth(1).unwrap();
            let (path, fields) = target.split_once('?').unwrap();
            let (how, n_bytes) = path[1..].split_once('/').unwrap();
            let body = text(n_bytes.parse().unwrap());
            let fields = fields
                .replace("%0d%0a", "\r\n")
                .replace("%20", " ")
                .replace("%22", "\"");
            let framing = match how {
                "length" | "cut" => format!("Content-Length: {}", body.len()),
                "chunked" => "Transfer-Encoding: chunked".to_owned(),
                _ => "Connection: close".to_owned(),
            };
            let answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\nETag: \"one\"\r\nContent-Type: {fields}\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            if head.starts_with("HEAD ") {
                continue;
            }
            let mut rng = fastrand::Rng::with_seed(body.len() as u64);
            let mut rest = match how {
                "cut" => &body[..body.len() / 2],
                _ => &body[..],
            };
            while !rest.is_empty() {
                let (piece, others) = rest.split_at(rng.usize(1..=rest.len().min(40_000)));
                rest = others;
                let written = match how {
                    "chunked" => write!(stream, "{:x}\r\n", piece.len())
                        .and_then(|()| stream.write_all(piece))
                        .and_then(|()| stream.write_all(b"\r\n")),
                    _ => stream.write_all(piece),
                };
                if written.is_err() {
                    return;
                }
            }
            match how {
                "chunked" => stream.write_all(b"0\r\n\r\n").unwrap(),
                "length" => {}
                _ => return,
            }
        }
    })
}

/// The head, and the body out of its chunks, and whether it was whole.
fn parts(answer: &[u8]) -> (String, Vec<u8>, bool) {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let (head, mut rest) = answer.split_at(end);
    let head = String::from_utf8_lossy(head).into_owned();
    if !head.contains("Transfer-Encoding: chunked") {
        return (head, rest.to_vec(), true);
    }
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else {
            return (head, body, false);
        };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        rest = &rest[line + 2..];
        if size == 0 {
            assert_eq!(rest, b"\r\n");
            return (head, body, true);
        }
        if rest.len() < size + 2 {
            return (head, body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn ask(node: &Node, method: &str, target: &str, version: &str, fields: &str) -> Vec<u8> {
    let mut stream = dial(node.addr);
    let request = format!("{method} {target} HTTP/{version}\r\nHost: a.test\r\n{fields}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    read_to_end(&stream)
}

const GZIP: &str = "Accept-Encoding: gzip\r\n";

#[test]
fn an_answer_is_compressed_for_who_takes_it_and_where_there_is_a_point() {
    let origin = origin();
    let node = Node::start(origin.addr, "compress: {}\n");
    let whole = text(50_000);
    for how in ["length", "chunked", "close"] {
        let target = format!("/{how}/50000?text/html");
        let (head, body, is_whole) = parts(&ask(&node, "GET", &target, "1.1", GZIP));
        assert!(is_whole && head.contains("Content-Encoding: gzip\r\n"), "{head}");
        assert!(
            head.contains("ETag: W/\"one\"\r\n") && head.contains("Vary: Accept-Encoding\r\n"),
            "{head}"
        );
        assert!(!head.contains("Content-Length"), "{head}");
        assert!(
            body.len() < whole.len() / 3 && unpacked(&body) == whole,
            "{how}: {}",
            body.len()
        );
        for (fields, version) in [("", "1.1"), ("Accept-Encoding: br\r\n", "1.1"), (GZIP, "1.0")] {
            let (head, body, is_whole) = parts(&ask(&node, "GET", &target, version, fields));
            assert!(
                is_whole && body == whole && !head.contains("Content-Encoding"),
                "{head}"
            );
            assert!(version == "1.0" || head.contains("Vary: Accept-Encoding\r\n"), "{head}");
        }
    }
    for other in [
        "/length/1023?text/html",
        "/length/2000?image/png",
        "/chunked/2000?text/event-stream",
        "/chunked/2000?application/grpc",
        "/length/2000?text/html%0d%0aContent-Encoding:%20br",
        "/length/2000?text/html%0d%0aCache-Control:%20no-transform",
    ] {
        let (head, body, _) = parts(&ask(&node, "GET", other, "1.1", GZIP));
        let length = other.split(['/', '?']).nth(2).unwrap().parse().unwrap();
        assert_eq!(body, text(length), "{head}");
        assert!(
            !head.contains("Encoding: gzip") && head.contains("ETag: \"one\""),
            "{head}"
        );
    }
    let (head, body, _) = parts(&ask(&node, "HEAD", "/length/50000?text/html", "1.1", GZIP));
    assert!(head.contains("Content-Length: 50000") && body.is_empty(), "{head}");
    node.declare("");
    crate::harness::wait_until("no compression", || {
        let (head, ..) = parts(&ask(&node, "GET", "/length/50000?text/html", "1.1", GZIP));
        !head.contains("gzip") && !head.contains("Vary")
    });
    let (_, _, metrics) = crate::admin::request(node.admin, "GET", "/metrics");
    let of = |stage| {
        let labels = [("service", "web"), ("stage", stage)];
        Scrape::parse(&metrics)
            .unwrap()
            .sum("anynode_compressed_bytes_total", &labels) as u64
    };
    assert!(
        of("before") >= 150_000 && of("after") * 3 < of("before"),
        "{} {}",
        of("before"),
        of("after")
    );
}

/// Other people's client, by both protocols.
#[test]
fn curl_unpacks_what_it_is_sent_by_either_protocol() {
    let origin = origin();
    let node = Node::start(origin.addr, "compress: { types: [application/json], min_size: 10 }\n");
    let whole = String::from_utf8(text(20_000)).unwrap();
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        for how in ["length", "chunked", "close", "length"] {
            let url = format!("http://{}/{how}/20000?application/json", node.addr);
            let mut curl = std::process::Command::new("curl");
            curl.args([
                "-s",
                "-m",
                "20",
                "--compressed",
                protocol,
                "-w",
                "%header{content-encoding} %{size_download}",
            ]);
            let out = curl.arg(url).output().unwrap();
            let said = String::from_utf8(out.stdout).unwrap();
            let rest = said
                .strip_prefix(&whole)
                .unwrap_or_else(|| panic!("{protocol} {how}: {:?}", out.status));
            let (encoding, n_bytes) = rest.split_once(' ').unwrap();
            let n_bytes: usize = n_bytes.parse().unwrap();
            assert!(encoding == "gzip" && n_bytes < 8000, "{protocol}: {rest}");
        }
    }
}

#[test]
fn bodies_of_any_length_and_in_any_pieces_are_what_they_were() {
    let origin = origin();
    let node = Node::start(origin.addr, "compress: { min_size: 1 }\n");
    let seed = Seed::new();
    let mut rng = seed.rng();
    for _ in 0..60 {
        let how = ["length", "chunked", "close"][rng.usize(..3)];
        let most = [10, 70_000, 1_000_000][rng.usize(..3)];
        let n_bytes = rng.usize(1..most);
        let answer = ask(&node, "GET", &format!("/{how}/{n_bytes}?text/plain"), "1.1", GZIP);
        let (head, body, is_whole) = parts(&answer);
        assert!(
            is_whole && head.contains("Content-Encoding: gzip"),
            "{how} {n_bytes} {head}"
        );
        assert!(unpacked(&body) == text(n_bytes), "{how} {n_bytes}");
    }
}

/// Whoever waits for the first line of a page that is slow to come sees it.
#[test]
fn what_an_endpoint_has_said_is_there_before_it_goes_on() {
    let (go_on, may_go) = mpsc::channel::<()>();
    let may_go = Mutex::new(may_go);
    let origin = Origin::start(move |mut stream| {
        while read_head(&mut stream).is_some() {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            for line in ["first\n", "second\n", "third\n"] {
                write!(stream, "{:x}\r\n{line}\r\n", line.len()).unwrap();
                if may_go.lock().unwrap().recv().is_err() {
                    return;
                }
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
    });
    let node = Node::start(origin.addr, "compress: {}\n");
    let mut stream: TcpStream = dial(node.addr);
    write!(stream, "GET / HTTP/1.1\r\nHost: a.test\r\n{GZIP}\r\n").unwrap();
    let head = read_head(&mut stream).unwrap();
    assert!(head.contains("Content-Encoding: gzip"), "{head}");
    let mut chunks = Vec::new();
    let mut unpacker = flate2::Decompress::new_gzip(15);
    let mut plain = Vec::with_capacity(4096);
    for expected in ["first\n", "first\nsecond\n", "first\nsecond\nthird\n"] {
        while plain.len() < expected.len() {
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "it ended");
            chunks.extend_from_slice(&bytes[..n]);
            // Whole chunks only.
            while let Some(line) = chunks.windows(2).position(|two| two == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&chunks[..line]).unwrap(), 16).unwrap();
                if size == 0 || chunks.len() < line + 4 + size {
                    break;
                }
                let data = &chunks[line + 2..line + 2 + size];
                unpacker
                    .decompress_vec(data, &mut plain, flate2::FlushDecompress::Sync)
                    .unwrap();
                chunks.drain(..line + 4 + size);
            }
        }
        assert_eq!(plain, expected.as_bytes());
        go_on.send(()).unwrap();
    }
}

#[test]
fn what_is_cut_off_is_not_taken_for_whole() {
    let origin = origin();
    let node = Node::start(origin.addr, "compress: {}\n");
    let mut stream = dial(node.addr);
    write!(
        stream,
        "GET /cut/90000?text/html HTTP/1.1\r\nHost: a.test\r\n{GZIP}\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    // It may be reset.
    let _ = stream.read_to_end(&mut answer);
    let is_whole = answer.windows(5).any(|five| five == b"0\r\n\r\n");
    assert!(!is_whole, "{}", answer.len());
    let (head, ..) = parts(&ask(&node, "GET", "/length/5000?text/html", "1.1", GZIP));
    assert!(head.contains("gzip"), "{head}");
}

#[test]
fn what_would_not_be_done_is_refused() {
    let origin = origin();
    let node = Node::start(origin.addr, "");
    for (options, expected) in [
        ("compress: true\n", "compress"),
        ("compress:\n", "compress"),
        (
            "compress: { types: [text] }\n",
            "expected a media type such as text/html",
        ),
        ("compress: { except: ['*/*'] }\n", "expected a media type"),
        ("compress: { types: [application/grpc] }\n", "gRPC compresses by itself"),
        ("compress: { min_size: 0 }\n", "expected a number of bytes"),
        ("compress: { level: 9 }\n", "level"),
    ] {
        let said = node.refusal(options);
        assert!(said.contains(expected), "{options}: {said}");
    }
    let text = format!(
        "services:\n  web:\n    mode: tcp\n    publish: [\"{}:80\"]\n    endpoints: [\"{}\"]\n    compress: {{}}\n",
        crate::harness::free_port(),
        origin.addr
    );
    let file = node.dir.path().join("tcp.yml");
    std::fs::write(&file, text).unwrap();
    let out = crate::cli::anynode(&["check"]).arg(&file).output().unwrap();
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("expected mode: http"),
        "{out:?}"
    );
}

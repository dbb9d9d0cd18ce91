//! Bodies that are longer than they may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// What an endpoint has seen: bodies that ended in order, and those that were cut off.
#[derive(Default)]
struct Seen {
    n_whole: AtomicUsize,
    n_cut: AtomicUsize,
}

/// Takes chunked bodies; asked for `/early` it begins its answer before it has one.
fn taker(seen: &Arc<Seen>) -> Origin {
    let seen = seen.clone();
    Origin::start(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            if head.contains(" /early ") {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
                    .unwrap();
            }
            let mut body = Vec::new();
            let mut byte = [0];
            let is_chunked = head.contains("chunked");
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
            while !(is_chunked && body.ends_with(b"0\r\n\r\n") || !is_chunked && body.len() == length) {
                if !matches!(stream.read(&mut byte), Ok(1)) {
                    seen.n_cut.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                body.push(byte[0]);
            }
            seen.n_whole.fetch_add(1, Ordering::SeqCst);
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .is_err()
            {
                return;
            }
        }
    })
}

#[test]
fn a_body_that_is_too_long_is_refused_by_its_length_or_cut_where_it_is() {
    let seen = Arc::new(Seen::default());
    let origin = taker(&seen);
    let node = Node::start(origin.addr, "max_body: 1kB");
    let post = |target: &str, fields: &str, body: &[u8]| {
        let mut stream = dial(node.addr);
        let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        stream
    };
    let answer = |mut stream: TcpStream| read_head(&mut stream).map_or(0, |head| status_of(&head));
    // By its length, and nobody is asked; who waits for a word hears it at once.
    for (fields, body) in [
        ("Content-Length: 1001\r\n", &[b'x'; 1001][..]),
        ("Content-Length: 1001\r\nExpect: 100-continue\r\n", b""),
        ("Content-Length: 18446744073709551615\r\n", b""),
    ] {
        let mut stream = post("/", fields, body);
        let head = read_head(&mut stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 413 Content Too Large\r\n"), "{head}");
    }
    // What came with the head is known before anybody is asked.
    let too_long = [&b"3e9\r\n"[..], &[b'x'; 1001], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(answer(post("/", "Transfer-Encoding: chunked\r\n", &too_long)), 413);
    assert_eq!((origin.n_accepted(), node.n_denied("body_too_long")), (0, 4));
    // As long as it may be.
    assert_eq!(answer(post("/", "Content-Length: 1000\r\n", &[b'x'; 1000])), 200);
    let just = [&b"3e7;ext=1\r\n"[..], &[b'x'; 999], b"\r\n1\r\nx\r\n0\r\n\r\n"].concat();
    assert_eq!(answer(post("/", "Transfer-Encoding: chunked\r\n", &just)), 200);
    assert_eq!(seen.n_whole.load(Ordering::SeqCst), 2);
    // What comes later is cut: the endpoint does not take it for the whole, and the client is told.
    let mut stream = post("/", "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n");
    wait_until("the endpoint's part", || {
        stream.write_all(b"c8\r\n").unwrap();
        stream.write_all(&[b'x'; 200]).unwrap();
        stream.write_all(b"\r\n").unwrap();
        stream.set_nonblocking(true).unwrap();
        let is_told = !matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        is_told || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            false
        }
    });
    assert_eq!(answer(stream), 413);
    wait_until("the cut", || seen.n_cut.load(Ordering::SeqCst) == 1);
    // Where an answer has begun it is too late to say so.
    let mut stream = post("/early", "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n");
    assert_eq!(status_of(&read_head(&mut stream).unwrap()), 200);
    stream.write_all(b"3e9\r\nxxx").unwrap();
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    assert!(end.is_err() && b"hello".starts_with(&rest), "{end:?} {rest:?}");
    // HTTP/2: with a length, without one, and many frames.
    let file = node.dir.path().join("body");
    for (n, expected, length) in [
        (1000, "200 2", true),
        (1001, "413 2", true),
        (1000, "200 2", false),
        (1_000_000, "413 2", false),
    ] {
        std::fs::write(&file, vec![b'x'; n]).unwrap();
        let url = format!("http://{}/", node.addr);
        let named = format!("@{}", file.display());
        let out = Command::new("curl")
            .args([
                "-s",
                "-m",
                "20",
                "-X",
                "POST",
                "--http2-prior-knowledge",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{http_version}",
            ])
            .args(if length { ["--data-binary", &named] } else { ["-T", "-"] })
            .arg(url)
            .stdin(std::fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), expected, "{n} {length}");
    }
    assert!(
        node.refusal("max_body: 1m")
            .contains("expected a number of bytes from 1, such as 1048576")
    );
}

/// What the head is not to say is not said behind the body either.
#[test]
fn what_is_taken_off_the_head_comes_by_no_trailer() {
    let origin = Origin::start(|mut stream| {
        if read_head(&mut stream).is_none() {
            return;
        }
        let mut body = Vec::new();
        let mut byte = [0];
        while !body.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
            body.extend_from_slice(&byte);
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    });
    let hash = "alice:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.";
    for (options, is_passed) in [
        (String::new(), true),
        ("request_headers: { X-User: null }".to_owned(), false),
        ("request_headers: { X-Other: a }".to_owned(), false),
        (
            format!("basic_auth: {{ users: [\"{hash}\"], user_header: X-User }}"),
            false,
        ),
    ] {
        let node = Node::start(origin.addr, &options);
        let mut stream = dial(node.addr);
        let fields = format!("Host: a\r\nConnection: close\r\n{}", basic("alice", "builder"));
        let body = "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX_User: evil\r\n\r\n";
        stream
            .write_all(format!("POST / HTTP/1.1\r\n{fields}{body}").as_bytes())
            .unwrap();
        let answer = String::from_utf8_lossy(&read_to_end(&stream)).into_owned();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("body"),
            "{options}: {answer}"
        );
        assert_eq!(answer.contains("evil"), is_passed, "{options}: {answer}");
    }
}

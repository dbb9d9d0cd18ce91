//! How fast requests come, and how many are under way.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[test]
fn each_client_asks_as_fast_as_it_may_and_the_next_file_forgets_nothing_of_it() {
    let origin = mirror();
    let node = Node::start(origin.addr, "rate: 1/1h, 3");
    let n_of = |from: [u8; 4]| {
        let answers = std::iter::repeat_with(|| node.ask_from(from, ""));
        answers.take_while(|answer| status_of(answer) == 200).count()
    };
    // A client that says it is another is not.
    assert_eq!(
        status_of(&node.ask_from([127, 0, 0, 2], "X-Forwarded-For: 192.0.2.1\r\n")),
        200
    );
    assert_eq!(n_of([127, 0, 0, 2]), 2);
    let refused = node.ask_from([127, 0, 0, 2], "");
    assert!(refused.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{refused}");
    let wait = refused.lines().find_map(|line| line.strip_prefix("Retry-After: "));
    assert!(
        (3500..=3600).contains(&wait.unwrap().parse::<u32>().unwrap()),
        "{refused}"
    );
    assert_eq!(n_of([127, 0, 0, 3]), 3);
    assert_eq!(node.n_denied("rate"), 3);
    // Something else changes; then the rate itself.
    node.declare("rate: 1/1h, 3\nresponse_headers: { X-New: \"1\" }");
    wait_until("the next file", || node.ask_from([127, 0, 0, 4], "").contains("X-New"));
    assert_eq!((n_of([127, 0, 0, 2]), n_of([127, 0, 0, 3])), (0, 0));
    node.declare("rate: 1/1h, 2");
    wait_until("the next rate", || n_of([127, 0, 0, 2]) > 0);
    assert_eq!(n_of([127, 0, 0, 3]), 2);
    // By HTTP/2 it is the same place.
    let h2 = ["--http2-prior-knowledge", "--interface", "127.0.0.9"];
    let statuses = [(); 3].map(|()| node.curl(&h2).0);
    assert_eq!(statuses, ["200 2", "200 2", "429 2"]);
    for (wrong, expected) in [
        ("rate: fast", "expected a rate such as 100/1s, 50"),
        ("rate: 1/25h", "expected a rate such as"),
        ("in_flight: 0", "expected a whole number from 1"),
        ("mode: tcp\nrate: 1", "twice"),
    ] {
        let said = node.refusal(wrong);
        assert!(said.contains(expected), "{wrong}: {said}");
    }
}

#[test]
fn a_full_table_refuses_no_stranger() {
    let origin = mirror();
    let node = Node::start(origin.addr, "rate: 1/1h, 1");
    // More than there is room for, of whom each is let in once.
    for i in 0..20_000u32 {
        let [_, _, high, low] = i.to_be_bytes();
        let mut stream = node.connect_from([127, 9, high, low.max(1)]);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        let is_first = low > 1 || low == 0;
        assert_eq!(&status[9..] == b"200", is_first, "{i}: {status:?}");
    }
    assert_eq!(
        status_of(&node.ask_from([127, 9, 78, 31], "")),
        429,
        "who came last is known"
    );
    assert_eq!(
        status_of(&node.ask_from([127, 9, 0, 2], "")),
        200,
        "who came first is forgotten"
    );
}

#[test]
fn what_is_under_way_is_counted_until_it_ends_however_it_does() {
    // Answers what is asked for `/now`; the rest waits for good, or switches.
    let n_asked = Arc::new(AtomicUsize::new(0));
    let asked = n_asked.clone();
    let origin = Origin::start(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            if !head.contains(" /now ") {
                asked.fetch_add(1, Ordering::SeqCst);
            }
            let answer = match head.split(' ').nth(1) {
                Some("/now") => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                Some("/ws") => "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                _ => "",
            };
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    let node = Node::start(
        origin.addr,
        "in_flight: 3\nin_flight_per_client: 2\nabort_on_client_close: true",
    );
    let begin = |from: [u8; 4], target: &str, fields: &str| {
        let mut stream = node.connect_from(from);
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let status = |from: [u8; 4]| status_of(&read_head(&mut begin(from, "/now", "")).unwrap());
    let (one, other) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    for end in ["close", "reset", "tunnel"] {
        let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
        // One that is refused comes again: those before may have been answered and not have ended.
        let start = |from: [u8; 4]| loop {
            let n_before = n_asked.load(Ordering::SeqCst);
            let mut stream = match end {
                "tunnel" => begin(from, "/ws", upgrade),
                _ => begin(from, "/wait", ""),
            };
            let is_answered = |stream: &TcpStream| {
                stream.set_nonblocking(true).unwrap();
                let is_answered = stream.peek(&mut [0]).is_ok();
                stream.set_nonblocking(false).unwrap();
                is_answered
            };
            wait_until("the endpoint, or an answer", || {
                n_asked.load(Ordering::SeqCst) > n_before || is_answered(&stream)
            });
            if n_asked.load(Ordering::SeqCst) > n_before {
                if end == "tunnel" {
                    assert_eq!(status_of(&read_head(&mut stream).unwrap()), 101);
                }
                break stream;
            }
        };
        let held = [start(one), start(one)];
        for _ in 0..5 {
            assert_eq!(status(one), 429, "{end}");
            // The one before may have been answered and not have ended.
            wait_until("a place for another", || status(other) == 200);
        }
        let third = start(other);
        assert_eq!(status([127, 0, 0, 4]), 429);
        drop(third);
        wait_until("two again", || status([127, 0, 0, 4]) == 200);
        for stream in held {
            match end {
                "reset" => crate::harness::reset(stream),
                _ => drop(stream),
            }
        }
        wait_until("none under way", || status(one) == 200);
    }
    assert!(node.n_denied("in_flight") >= 18);
    // A stream that is taken back; and those that end are no more counted, however many there were.
    let h2 = ["--http2-prior-knowledge", "--interface", "127.0.0.2", "-m", "1"];
    for _ in 0..3 {
        let url = format!("http://{}/wait", node.addr);
        let out = Command::new("curl").args(["-s"]).args(h2).arg(url).output().unwrap();
        assert!(!out.status.success());
    }
    wait_until("none under way", || status(one) == 200);
    for _ in 0..50 {
        assert_eq!(status(one), 200);
    }
}

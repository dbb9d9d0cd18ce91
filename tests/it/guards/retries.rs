//! How often a request is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Endpoints that take a request and end without a word, and how many requests they have taken.
fn silent(n: usize) -> (Vec<Origin>, Arc<AtomicUsize>) {
    let n_taken = Arc::new(AtomicUsize::new(0));
    let origin = |_| {
        let n_taken = n_taken.clone();
        Origin::start(move |mut stream| {
            if read_head(&mut stream).is_some() {
                n_taken.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    ((0..n).map(origin).collect(), n_taken)
}

#[test]
fn a_request_is_sent_again_as_often_as_is_said() {
    for (options, method, expected) in [
        ("", "GET", 3),
        ("retries: 0", "GET", 1),
        ("retries: 1", "GET", 2),
        ("retries: 5", "GET", 6),
        ("retries: 10", "GET", 8),
        ("retries: 5", "POST", 1),
    ] {
        let (origins, n_taken) = silent(8);
        let addrs: Vec<String> = origins.iter().map(|origin| origin.addr.to_string()).collect();
        let node = Node::start(addrs.join(", "), options);
        let h2: &[&str] = if expected == 6 {
            &["--http2-prior-knowledge"]
        } else {
            &[]
        };
        let (status, _) = node.curl(&[&["-X", method], h2].concat());
        assert!(
            status.starts_with("502") || status.starts_with("503"),
            "{options}: {status}"
        );
        assert_eq!(n_taken.load(Ordering::SeqCst), expected, "{options} {method}");
    }
    // Another answers in the end.
    let (origins, _) = silent(3);
    let good = mirror();
    let addrs: Vec<String> = origins
        .iter()
        .chain([&good])
        .map(|origin| origin.addr.to_string())
        .collect();
    let node = Node::start(addrs.join(", "), "retries: 3");
    for _ in 0..8 {
        assert_eq!(node.curl(&[]).0, "200 1.1");
    }
}

/// A connection that was kept for longer than the endpoint keeps it says nothing of the endpoint.
#[test]
fn a_kept_connection_that_is_ended_costs_no_try() {
    let origin = Origin::start(|mut stream| {
        if read_head(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        // The next one is taken, and nothing is said.
        let _ = read_head(&mut stream);
    });
    let node = Node::start(origin.addr, "retries: 0");
    for i in 0..10 {
        let answer = node.ask("");
        assert!(answer.starts_with("HTTP/1.1 200"), "{i}: {answer}");
    }
}

//! Clients that are sent elsewhere by a regular expression.

use std::time::{Duration, Instant};

use super::*;

fn of(regex: &str, replacement: &str, more: &str) -> String {
    format!("redirect_regex: {{ regex: '{regex}', replacement: '{replacement}'{more} }}")
}

#[test]
fn clients_are_sent_where_the_expression_leads_and_nowhere_else() {
    let origin = mirror();
    let users = "basic_auth: { users: [\"bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.\"] }";
    let www = of(
        "^https?://a\\.test(?::80)?/(.*)",
        "https://www.a.test/${1}",
        ", permanent: true",
    );
    let node = Node::start(origin.addr, &format!("{www}\n{users}"));
    let raw = |head: &str| {
        let mut stream = dial(node.addr);
        stream
            .write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())
            .unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    };
    let place = |answer: &str| {
        let place = answer.lines().find_map(|line| line.strip_prefix("Location: "));
        (status_of(answer), place.unwrap_or_default().to_owned())
    };
    // Before anybody is asked for a password.
    let www = (301, "https://www.a.test/a?b".to_owned());
    assert_eq!(place(&node.ask("")), www);
    assert_eq!(place(&raw("HEAD /a?b HTTP/1.1\r\nHost: A.TEST:80\r\n")), www);
    assert_eq!(
        place(&raw("POST /a?b HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n")),
        (308, www.1.clone())
    );
    assert_eq!(node.curl(&["--http2-prior-knowledge", "-H", "Host: a.test"]).0, "301 2");
    assert_eq!(place(&raw("GET / HTTP/1.1\r\nHost: www.a.test\r\n")).0, 401);
    assert_eq!((origin.n_accepted(), node.n_denied("no_password")), (0, 1));
    // What a client asks for makes no place of its own.
    node.declare(&of("^http://a\\.test(/.*)", "/$1", ""));
    wait_until("the next file", || node.ask("").starts_with("HTTP/1.1 400 "));
    for target in ["//evil.test/x", "/x", "/%0d%0aSet-Cookie:%20a=b"] {
        let answer = raw(&format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n"));
        assert!(
            place(&answer) == (400, String::new()) && !answer.contains("Set-Cookie"),
            "{answer}"
        );
    }
    node.declare(&of("^http://a\\.test/(.*)", "https://b.test/${1}", ""));
    wait_until("the next file", || place(&node.ask("")).0 == 302);
    let answer = raw("GET /%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\nHost: a.test\r\n");
    assert_eq!(
        place(&answer),
        (302, "https://b.test/%0d%0aSet-Cookie:%20a=b".to_owned())
    );
    assert!(!answer.contains("\nSet-Cookie"), "{answer}");
    let long = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n", "x".repeat(20_000));
    assert_eq!(place(&raw(&long)).0, 400);
    assert_eq!(place(&raw("GET /x HTTP/1.1\r\nHost: c.test\r\n")).0, 200);
    // A path is on the same host.
    node.declare(&of("^https?://[^/]+/old(.*)", "/new$1", ""));
    wait_until("the next file", || place(&node.ask("")).0 == 200);
    let old = "GET /old//evil.test/x?y HTTP/1.1\r\nHost: a.test\r\n";
    assert_eq!(place(&raw(old)), (302, "/new//evil.test/x?y".to_owned()));
    // An expression that would be slow elsewhere, and one that is slow each time that it is found.
    node.declare(&of("^http://a\\.test/(a*)*b$", "https://b.test/$1", ""));
    wait_until("the next file", || place(&node.ask("")).0 == 200);
    let many = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n", "a".repeat(8_000));
    for _ in 0..50 {
        assert_eq!(place(&raw(&many)).0, 200);
    }
    node.declare(&of("(.*[^a])|a", "$1", ""));
    let began_at = Instant::now();
    wait_until("the next file", || place(&raw(&many)).0 == 400);
    let longer = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n", "a".repeat(30_000));
    for _ in 0..50 {
        assert_eq!(place(&raw(&longer)).0, 400);
    }
    assert!(began_at.elapsed() < Duration::from_secs(15), "{:?}", began_at.elapsed());
    for (wrong, expected) in [
        (
            of("(", "https://a/", ""),
            "redirect_regex.regex: \"(\" is not valid: expected a regular expression",
        ),
        (
            of("x", "https://a/$1", ""),
            "redirect_regex.replacement: \"https://a/$1\" is not valid: expected groups",
        ),
        (of("x", "https://a/ b", ""), "without spaces"),
        (of("x", "y", ", permanent: perhaps"), "permanent"),
    ] {
        let said = node.refusal(&wrong);
        assert!(said.contains(expected), "{wrong}: {said}");
    }
}

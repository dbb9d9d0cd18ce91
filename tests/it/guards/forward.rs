//! A service is asked whether requests may pass.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use super::{Node, text};
use crate::harness::{Origin, dial, free_port, read_head, read_to_end, wait_until};

/// Says what it was asked, head and body.
fn origin() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            stream.read_exact(&mut body).unwrap();
            let said = format!("{head}{}", String::from_utf8(body).unwrap());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len());
            let _ = stream.write_all(answer.as_bytes());
        }
    })
}

/// Answers as it is told, and keeps what it was asked.
struct Authority {
    origin: Origin,
    asked: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<String>>,
}

impl Authority {
    fn start() -> Authority {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(Mutex::new(String::new()));
        let (keep, say) = (asked.clone(), answer.clone());
        let origin = Origin::start(move |mut stream| {
            while let Some(head) = read_head(&mut stream) {
                keep.lock().unwrap().push(head);
                let answer = say.lock().unwrap().clone();
                let _ = stream.write_all(answer.as_bytes());
                if answer.contains("Connection: close") || answer.is_empty() {
                    return;
                }
            }
        });
        let authority = Authority { origin, asked, answer };
        authority.says("HTTP/1.1 200 OK|Remote-User: ann|Content-Length: 2||ok");
        authority
    }

    fn says(&self, answer: &str) {
        *self.answer.lock().unwrap() = answer.replace('|', "\r\n");
    }

    fn last(&self) -> String {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

fn declare(node: &Node, auth: &str, endpoint: &str) {
    let options = format!(
        "forward_auth: {{ address: '{auth}', response_headers: [Remote-User, X-Groups] }}\nstrip_prefix: [/app]\n"
    );
    let file = format!(
        "{}  auth:\n    mode: http\n    expose: [9091]\n    endpoints: [\"{endpoint}\"]\n    limits: {{ hold_timeout: 200ms }}\n",
        text(node.addr, &node.endpoints, &options)
    );
    let new = node.dir.path().join("new.yml");
    std::fs::write(&new, file).unwrap();
    std::fs::rename(new, node.dir.path().join("services.yml")).unwrap();
}

fn start(origin: &Origin, authority: &Authority) -> Node {
    let node = Node::start(origin.addr, "max_body: 1\n");
    declare(&node, "http://auth:9091/verify?x=1", &authority.origin.addr.to_string());
    wait_until("it is asked", || {
        node.ask("");
        !authority.asked.lock().unwrap().is_empty()
    });
    node
}

#[test]
fn who_may_pass_is_told_to_the_endpoint_and_nothing_is_believed_of_the_client() {
    let (origin, authority) = (origin(), Authority::start());
    let node = start(&origin, &authority);
    let mut stream = dial(node.addr);
    for body in ["hello", "once more"] {
        let request = format!(
            "POST /app/a?b HTTP/1.1\r\nHost: a.test\r\nCookie: c=1\r\nRemote-User: evil\r\nremote_user: evil\r\nx-groups: admin\r\n\
             X-Forwarded-Uri: /public\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut stream).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .unwrap();
        let mut said = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(
            said.starts_with("POST /a?b HTTP/1.1\r\n") && said.ends_with(body),
            "{said}"
        );
        assert!(
            said.contains("Remote-User: ann\r\n") && said.contains("Cookie: c=1\r\n"),
            "{said}"
        );
        assert!(
            !said.contains("evil") && !said.to_lowercase().contains("x-groups"),
            "{said}"
        );
        let asked = authority.last();
        assert!(
            asked.starts_with("GET /verify?x=1 HTTP/1.1\r\nHost: auth:9091\r\n"),
            "{asked}"
        );
        for field in [
            "Cookie: c=1",
            "X-Forwarded-Method: POST",
            "X-Forwarded-Uri: /app/a?b",
            "X-Forwarded-Host: a.test",
            "X-Forwarded-Proto: http",
            "X-Forwarded-For: 127.0.0.1",
        ] {
            assert!(asked.contains(&format!("\r\n{field}\r\n")), "{field}: {asked}");
        }
        assert!(
            !asked.contains("Content-Length") && !asked.contains("public"),
            "{asked}"
        );
    }
}

#[test]
fn who_may_not_gets_the_services_answer_by_either_protocol() {
    let (origin, authority) = (origin(), Authority::start());
    let node = start(&origin, &authority);
    authority.says("HTTP/1.1 302 Found|Location: https://login.test/?rd=x|Set-Cookie: a=1|Set-Cookie: b=2|Transfer-Encoding: chunked||5|login|0||");
    let answer = node.ask("");
    assert!(
        answer.starts_with("HTTP/1.1 302 Found\r\n") && answer.ends_with("\r\n\r\nlogin"),
        "{answer}"
    );
    for field in [
        "Location: https://login.test/?rd=x",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
        "Content-Length: 5",
    ] {
        assert!(answer.contains(&format!("\r\n{field}\r\n")), "{answer}");
    }
    assert!(!answer.contains("chunked"), "{answer}");
    for (args, version) in [(&["--http2-prior-knowledge"][..], "2"), (&["--http1.1"], "1.1")] {
        assert_eq!(node.curl(args), (format!("302 {version}"), "login".to_owned()));
        let put = [args, &["-X", "PUT", "-d", "body"]].concat();
        assert_eq!(node.curl(&put), (format!("302 {version}"), "login".to_owned()));
        let (status, _) = node.curl(&[args, &["-I"]].concat());
        assert_eq!(status, format!("302 {version}"));
    }
    // A page of any length up to the limit is whole.
    let page = "x".repeat(900_000);
    authority.says(&format!(
        "HTTP/1.1 403 Forbidden|Content-Length: {}||{page}",
        page.len()
    ));
    for protocol in ["--http2-prior-knowledge", "--http1.1"] {
        let (status, body) = node.curl(&[protocol]);
        assert!(status.starts_with("403 ") && body == page, "{status} {}", body.len());
    }
    authority.says("HTTP/1.1 401 Unauthorized|WWW-Authenticate: Bearer|Content-Length: 0||");
    // Who asks for another protocol is asked too.
    let mut stream = dial(node.addr);
    write!(
        stream,
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    .unwrap();
    let head = read_head(&mut stream).unwrap();
    assert!(
        head.starts_with("HTTP/1.1 401 ") && head.contains("WWW-Authenticate: Bearer\r\n"),
        "{head}"
    );
    assert!(
        !authority.last().to_lowercase().contains("upgrade"),
        "{}",
        authority.last()
    );
    assert!(node.n_denied("forward_auth") >= 8);
}

#[test]
fn where_nobody_says_that_it_may_nothing_passes() {
    let (origin, authority) = (origin(), Authority::start());
    let node = start(&origin, &authority);
    let long = format!("HTTP/1.1 200 OK|Content-Length: 2000000||{}", "x".repeat(2_000_000));
    for answer in [
        "",
        "HTTP/1.1 200 OK|Content-Length: 10|Connection: close||x",
        "HTTP/1.1 101 Switching Protocols|Upgrade: x|Connection: upgrade||",
        "nothing of the kind|Connection: close||",
        &long,
    ] {
        authority.says(answer);
        let before = node.n_denied("auth_unavailable");
        let said = node.ask("");
        assert!(said.starts_with("HTTP/1.1 503 "), "{answer:.40}: {said}");
        assert_eq!(node.n_denied("auth_unavailable"), before + 1, "{answer:.40}");
    }
    authority.says("HTTP/1.1 200 OK|Content-Length: 0||");
    wait_until("it is back", || node.ask("").starts_with("HTTP/1.1 200 "));
    declare(&node, "http://auth/verify", &format!("127.0.0.1:{}", free_port()));
    let said = "is there of the service that says whether requests may pass: auth";
    wait_until("nobody there", || {
        let answer = node.ask("");
        answer.starts_with("HTTP/1.1 503 ") && answer.contains(said)
    });
    declare(&node, "http://auth/verify", &authority.origin.addr.to_string());
    wait_until("it is back", || node.ask("").starts_with("HTTP/1.1 200 "));
}

/// What is asked before has its say in what is shown, and a path that could be read in two ways is judged by nobody.
#[test]
fn what_is_shown_is_what_the_endpoint_would_get() {
    let (origin, authority) = (origin(), Authority::start());
    let node = start(&origin, &authority);
    for target in [
        "/public/../app",
        "/public/%2e%2e/app",
        "//app",
        "/public%2f..%2fapp",
        "/a\\b",
    ] {
        let mut stream = dial(node.addr);
        write!(stream, "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let said = String::from_utf8(read_to_end(&stream)).unwrap();
        assert!(said.starts_with("HTTP/1.1 400 "), "{target}: {said}");
    }
    let users =
        "basic_auth: { users: ['ann:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY='], user_header: X-User, remove_header: true }\n";
    let options = format!("{users}forward_auth: {{ address: 'http://auth/', response_headers: [X-User] }}\n");
    let file = format!(
        "{}  auth:\n    mode: http\n    expose: [80]\n    endpoints: [\"{}\"]\n",
        text(node.addr, &node.endpoints, &options),
        authority.origin.addr
    );
    std::fs::write(node.dir.path().join("services.yml"), file).unwrap();
    wait_until("a password", || node.ask("").starts_with("HTTP/1.1 401 "));
    let n_asked = || authority.asked.lock().unwrap().len();
    let before = n_asked();
    assert!(node.ask("").starts_with("HTTP/1.1 401 "));
    assert_eq!(n_asked(), before, "who says none is not asked about");
    let fields = format!("{}X-User: admin\r\n", super::basic("ann", "sha"));
    let said = node.ask(&fields);
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    let asked = authority.last();
    assert!(!asked.contains("admin") && !asked.contains("Authorization"), "{asked}");
    // It says no user, so that the endpoint is told of none.
    assert!(!said.contains("X-User") && !said.contains("Authorization"), "{said}");
}

/// Its connections may end after each answer, or be kept, while many ask.
#[test]
fn many_are_asked_for_and_none_is_lost() {
    let (origin, authority) = (origin(), Authority::start());
    let node = start(&origin, &authority);
    let n_passed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut stream = dial(node.addr);
                    write!(stream, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
                    let said = String::from_utf8(read_to_end(&stream)).unwrap();
                    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
                    n_passed.fetch_add(1, Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while n_passed.load(Relaxed) < 200 {
                authority.says("HTTP/1.1 200 OK|Content-Length: 0|Connection: close||");
                std::thread::yield_now();
                authority.says("HTTP/1.1 204 No Content||");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
    });
    assert!(authority.asked.lock().unwrap().len() >= 200);
}

#[test]
fn what_would_not_be_asked_is_refused() {
    let origin = origin();
    let node = Node::start(origin.addr, "");
    for (options, expected) in [
        ("forward_auth: http://auth/\n", "forward_auth"),
        ("forward_auth:\n", "forward_auth"),
        ("forward_auth: {}\n", "address"),
        (
            "forward_auth: { address: 'https://auth/' }\n",
            "expected http://SERVICE:PORT/PATH",
        ),
        (
            "forward_auth: { address: 'http://10.0.0.1/' }\n",
            "the name of a service here",
        ),
        (
            "forward_auth: { address: 'http://Nobody/' }\n",
            "forward_auth.address: there is no service \"nobody\": expected one of this file",
        ),
        (
            "forward_auth: { address: 'http://a/', response_headers: [Host] }\n",
            "expected another header",
        ),
        (
            "forward_auth: { address: 'http://a/', response_header: [X] }\n",
            "response_header",
        ),
    ] {
        let said = node.refusal(options);
        assert!(said.contains(expected), "{options}: {said}");
    }
}

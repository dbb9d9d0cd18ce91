//! What is done to requests and answers on the way: through the program, with a services file and raw requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};

use crate::cli::anynode;
use crate::harness::{Origin, PATIENCE, dial, free_port, read_head, read_to_end, wait_until};

struct Node {
    child: Child,
    addr: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(port: u16, origin: &Origin, options: &str) -> String {
    let options: String = options.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "services:\n  web:\n    mode: http\n    publish: [\"{port}:80\"]\n    endpoints: [\"{}\"]\n{options}",
        origin.addr
    )
}

impl Node {
    fn start(origin: &Origin, options: &str) -> Node {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let services = dir.path().join("services.yml");
        std::fs::write(&services, text(port, origin, options)).unwrap();
        let child = anynode(&["up", "--dns", "none", "--admin", "none", "--services"])
            .arg(&services)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let node = Node { child, addr, dir };
        wait_until("the port", || TcpStream::connect(addr).is_ok());
        node
    }

    fn declare(&self, origin: &Origin, options: &str) {
        let new = self.dir.path().join("new.yml");
        std::fs::write(&new, text(self.addr.port(), origin, options)).unwrap();
        std::fs::rename(new, self.dir.path().join("services.yml")).unwrap();
    }

    /// What `anynode check` says of a file.
    fn refusal(&self, origin: &Origin, options: &str) -> String {
        let file = self.dir.path().join("checked.yml");
        std::fs::write(&file, text(self.addr.port(), origin, options)).unwrap();
        let out = anynode(&["check"]).arg(&file).output().unwrap();
        assert_eq!(out.status.code(), Some(64), "{options}: {out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    fn ask_from(&self, from: [u8; 4], request: &str) -> String {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    }

    fn ask(&self, target: &str, fields: &str) -> String {
        self.ask_from(
            [127, 0, 0, 1],
            &format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n{fields}Connection: close\r\n\r\n"),
        )
    }
}

/// An endpoint that answers with what it was asked, body included.
fn mirror() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
            if stream.read_exact(&mut body).is_err() {
                return;
            }
            let said = format!("{head}{}", String::from_utf8_lossy(&body));
            let answer = format!(
                "HTTP/1.1 200 OK\r\nServer: old\r\nX-Powered-By: php\r\nContent-Length: {}\r\n\r\n{said}",
                said.len()
            );
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn paths_and_headers_are_what_the_service_asks_for() {
    let origin = mirror();
    let options = "strip_prefix: [/api, /v2]\nadd_prefix: /inner\n\
                   request_headers: { X-User: me, Cookie: null, X-Empty: \"\" }\n\
                   response_headers: { Server: null, X-Frame-Options: DENY }";
    let node = Node::start(&origin, options);
    let said = node.ask(
        "/%61pi/x?y=/api",
        "Cookie: a=b\r\nx-user: evil\r\nX-Empty: 1\r\nX-Kept: 1\r\n",
    );
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(body.starts_with("GET /inner/x?y=/api HTTP/1.1\r\n"), "{said}");
    for (there, field) in [
        (true, "X-User: me\r\n"),
        (true, "X-Forwarded-Prefix: /api\r\n"),
        (true, "X-Kept: 1\r\n"),
        (true, "Host: a.test\r\n"),
        (false, "evil"),
        (false, "ookie"),
        (false, "X-Empty"),
    ] {
        assert_eq!(body.contains(field), there, "{field} in {body}");
    }
    assert!(
        head.contains("X-Frame-Options: DENY") && head.contains("X-Powered-By: php"),
        "{head}"
    );
    assert!(!head.contains("Server: old"), "{head}");
    // Nothing gets out of what it is led into.
    for target in ["/api../secret", "/%2e%2e/secret", "/api/..%2fx"] {
        let said = node.ask(target, "");
        assert!(said.starts_with("HTTP/1.1 400 "), "{target}: {said}");
    }
    // With a body that comes with the head, and one that comes after it; and many on one connection.
    let mut stream = dial(node.addr);
    for (i, split) in [(0, 5), (1, 0), (2, 3)] {
        let request = format!("POST /v2/{i} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n");
        let (now, later) = "hello".split_at(split);
        stream.write_all(format!("{request}{now}").as_bytes()).unwrap();
        stream.write_all(later.as_bytes()).unwrap();
        let head = read_head(&mut stream).unwrap();
        assert!(head.contains("X-Frame-Options: DENY\r\n"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        assert!(
            body.starts_with(&format!("POST /inner/{i} HTTP/1.1\r\n")) && body.ends_with("\r\n\r\nhello"),
            "{body}"
        );
    }
    // Taken up with the file.
    node.declare(&origin, "replace_path: /one");
    wait_until("the next file", || {
        node.ask("/api?q", "").contains("GET /one?q HTTP/1.1\r\n")
    });
    assert!(node.ask("/api?q", "").contains("X-Replaced-Path: /api\r\n"));
}

#[test]
fn who_is_not_let_in_and_who_has_no_tls_is_told_so() {
    let origin = mirror();
    let node = Node::start(&origin, "allow: [127.0.0.1, 10.0.0.0/8]");
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 10.0.0.1\r\nConnection: close\r\n\r\n";
    assert!(node.ask("/", "").starts_with("HTTP/1.1 200 "));
    // What a client says of itself counts for nothing.
    let refused = node.ask_from([127, 0, 0, 2], request);
    assert!(refused.starts_with("HTTP/1.1 403 Forbidden"), "{refused}");
    node.declare(&origin, "https_only: true");
    wait_until("the next file", || node.ask("/", "").starts_with("HTTP/1.1 301 "));
    assert!(node.ask("/a?b", "").contains("\r\nLocation: https://a.test/a?b\r\n"));
    let post = node.ask_from(
        [127, 0, 0, 1],
        "POST /a HTTP/1.1\r\nHost: a.test:80\r\nX-Forwarded-Proto: https\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert!(
        post.starts_with("HTTP/1.1 308 ") && post.contains("\r\nLocation: https://a.test/a\r\n"),
        "{post}"
    );
    for (options, expected) in [
        ("allow: [10.0.0.0/33]", "expected a network such as"),
        ("strip_prefix: [api]", "expected a path that begins"),
        (
            "request_headers: { Host: x }",
            "request_headers.Host: \"Host\" is not valid: expected another header",
        ),
        ("response_headers: { X-A: \"a\\nb\" }", "response_headers.X-A: "),
        ("https_only: perhaps", "https_only"),
    ] {
        let said = node.refusal(&origin, options);
        assert!(said.contains(expected), "{expected} in {said}");
    }
    std::fs::write(
        node.dir.path().join("tcp.yml"),
        text(1, &origin, "add_prefix: /x").replace("mode: http", "mode: tcp"),
    )
    .unwrap();
    let out = anynode(&["check"])
        .arg(node.dir.path().join("tcp.yml"))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("expected mode: http"),
        "{out:?}"
    );
}

//! What an entry point asks of connections before a request: whose they are, as proxies in front say (PROXY protocol), and by when.
//! Through the program, with its configuration; curl says such headers too.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anynode::model::{ProxyProtocol, proxy_protocol};

use crate::cli::anynode;
use crate::harness::{Origin, dial, free_port, read_head, read_to_end, wait_until};

struct Node {
    child: Child,
    web: SocketAddr,
    other: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// With one entry point that is told more, and one that is not.
    fn start(services: &str, options: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (web, other) = (local(free_port()), local(free_port()));
        let config = format!(
            "[entrypoints.other]\nlisten = ':{}'\n[entrypoints.web]\nlisten = ':{}'\n{options}",
            other.port(),
            web.port()
        );
        std::fs::write(dir.path().join("anynode.toml"), config).unwrap();
        std::fs::write(dir.path().join("services.yml"), services).unwrap();
        let child = anynode(&["up", "--dns", "none", "--admin", "none"])
            .arg("--config")
            .arg(dir.path().join("anynode.toml"))
            .arg("--services")
            .arg(dir.path().join("services.yml"))
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let node = Node {
            child,
            web,
            other,
            _dir: dir,
        };
        wait_until("the first table", || {
            let asked = TcpStream::connect(other)
                .map(|_| answer(other, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
            asked.is_ok_and(|said| said.starts_with("HTTP/1.1 200"))
        });
        node
    }
}

fn answer(addr: SocketAddr, request: &[u8]) -> String {
    let mut stream = dial(addr);
    stream.write_all(request).unwrap();
    String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
}

/// From another address of this machine.
fn answer_from(from: [u8; 4], addr: SocketAddr, request: &[u8]) -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&addr.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
}

/// An endpoint that answers with the head that it was sent.
fn mirror() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn header(version: ProxyProtocol, client: Option<&str>) -> Vec<u8> {
    let client = client.map(|client| (client.parse().unwrap(), "[2001:db8::9]:80".parse().unwrap()));
    let alike = client.map(|(source, destination): (SocketAddr, SocketAddr)| match source.ip() {
        IpAddr::V4(_) => (source, "10.0.0.1:80".parse().unwrap()),
        IpAddr::V6(_) => (source, destination),
    });
    proxy_protocol::header(version, alike)
}

#[test]
fn a_proxy_in_front_says_whose_connections_are() {
    let (origin, chosen) = (mirror(), mirror());
    let services = format!(
        "services:\n  all:\n    endpoints: [\"{}\"]\n    route: PathPrefix(`/`)\n  \
         chosen:\n    endpoints: [\"{}\"]\n    route: ClientIP(`198.51.100.0/24`)\n    priority: 1000\n",
        origin.addr, chosen.addr
    );
    let node = Node::start(&services, "proxy_protocol = ['127.0.0.1', '2001:db8::/32']\n");
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        for (client, expected) in [
            (Some("203.0.113.7:5555"), "203.0.113.7"),
            (Some("[2001:db8::7]:5555"), "2001:db8::7"),
            (None, "127.0.0.1"),
        ] {
            let said = answer(node.web, &[&header(version, client), REQUEST].concat());
            assert!(
                said.contains(&format!("\r\nX-Forwarded-For: {expected}\r\n")),
                "{version:?} {said}"
            );
        }
        // In pieces, and with something after it that is the client's.
        let mut stream = dial(node.web);
        stream.set_nodelay(true).unwrap();
        for byte in header(version, Some("203.0.113.8:1")) {
            stream.write_all(&[byte]).unwrap();
            std::thread::yield_now();
        }
        stream.write_all(REQUEST).unwrap();
        let said = String::from_utf8_lossy(&read_to_end(&stream)).into_owned();
        assert!(
            said.contains("\r\nX-Forwarded-For: 203.0.113.8\r\n"),
            "{version:?} {said}"
        );
        // Rules see whom it says.
        let said = answer(node.web, &[&header(version, Some("198.51.100.1:1")), REQUEST].concat());
        assert!(
            said.starts_with("HTTP/1.1 200") && said.contains("198.51.100.1"),
            "{said}"
        );
    }
    assert!(chosen.accepted.load(Ordering::SeqCst) >= 1);
    // curl says such a header by itself.
    let out = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--haproxy-protocol"])
        .arg(format!("http://{}/", node.web))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&out.stdout).contains("X-Forwarded-For: 127.0.0.1"),
        "{out:?}"
    );
    // Who is to say it and does not is not served; who is not to say it is not believed.
    let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200], b"\r\n"].concat();
    for wrong in [
        REQUEST,
        b"PROXY TCP4 1.2.3.4\r\n",
        b"PROXY nonsense and more of it\r\n",
        &long,
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x0c\x01\x02\x03\x04\x01\x02\x03\x04\x00\x01\x00\x01",
    ] {
        let mut stream = dial(node.web);
        let _ = stream.write_all(&[wrong, REQUEST].concat());
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }
    let with = [&header(ProxyProtocol::V1, Some("203.0.113.7:5555")), REQUEST].concat();
    for said in [answer_from([127, 0, 0, 2], node.web, &with), answer(node.other, &with)] {
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
    }
    let said = answer_from([127, 0, 0, 2], node.web, REQUEST);
    assert!(said.contains("\r\nX-Forwarded-For: 127.0.0.2\r\n"), "{said}");
}

#[test]
fn an_entry_point_has_its_own_trusted_proxies() {
    let origin = mirror();
    let services = format!(
        "services:\n  all:\n    endpoints: [\"{}\"]\n    route: PathPrefix(`/`)\n",
        origin.addr
    );
    let node = Node::start(&services, "trusted_proxies = ['127.0.0.1/32']\n");
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n";
    for (said, expected) in [
        (answer(node.web, request), "203.0.113.9, 127.0.0.1"),
        (answer(node.other, request), "127.0.0.1"),
        (answer_from([127, 0, 0, 2], node.web, request), "127.0.0.2"),
    ] {
        assert!(said.contains(&format!("\r\nX-Forwarded-For: {expected}\r\n")), "{said}");
    }
}

#[test]
fn who_takes_too_long_is_let_go_and_an_upgraded_connection_is_its_services() {
    let origin = Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            if head.contains("Upgrade: echo") {
                let _ = stream
                    .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
                return;
            }
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .is_err()
            {
                return;
            }
        }
    });
    let services = format!(
        "services:\n  all:\n    endpoints: [\"{}\"]\n    route: PathPrefix(`/`)\n",
        origin.addr
    );
    let options = "proxy_protocol = ['127.0.0.2']\nidle_timeout = '300ms'\nrequest_head_timeout = '300ms'\n";
    let node = Node::start(&services, options);
    let mut upgraded = dial(node.web);
    upgraded
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        .unwrap();
    assert!(read_head(&mut upgraded).unwrap().starts_with("HTTP/1.1 101"));
    // Between requests.
    let kept = answer(node.web, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(kept.starts_with("HTTP/1.1 200"), "{kept}");
    // In the midst of a head, and of a header before it.
    let cut = answer(node.web, b"GET / HTTP/1.1\r\nHost");
    assert!(cut.starts_with("HTTP/1.1 408"), "{cut}");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&node.web.into()).unwrap();
    let mut begun = TcpStream::from(socket);
    begun.write_all(b"PROXY TCP4 ").unwrap();
    begun.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    let ended = begun.read(&mut [0]).map_err(|error| error.kind());
    assert!(
        matches!(ended, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)),
        "{ended:?}"
    );
    // All of that took longer than a request may: this one is none any more.
    std::thread::sleep(Duration::from_millis(400));
    upgraded.write_all(b"x").unwrap();
    upgraded.read_exact(&mut [0]).unwrap();
}

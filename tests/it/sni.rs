//! Connections to entry points that are a service's as a whole, by the name that a client of TLS says first: passed through, or with
//! TLS ended here, beside requests. Through the program, with its configuration; rustls and openssl are the clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anynode::model::{ProxyProtocol, proxy_protocol};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::cli::anynode;
use crate::harness::{Origin, dial, free_port, read_head, read_to_end, wait_until};

/// A certificate and its key.
struct Pair {
    cert: CertificateDer<'static>,
    cert_pem: String,
    key_pem: String,
    key: PrivateKeyDer<'static>,
}

impl Pair {
    fn of(names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Pair {
            cert: made.cert.der().clone(),
            cert_pem: made.cert.pem(),
            key_pem: made.signing_key.serialize_pem(),
            key: PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
        }
    }
}

/// Whom the node's certificate is for.
const NAMES: [&str; 8] = [
    "ended.test",
    "also.test",
    "web.test",
    "other.test",
    "db.test",
    "x.test",
    "capped.test",
    "hashed.test",
];

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// An endpoint that speaks TLS itself: says a word, then says everything again.
fn tls_origin(pair: &Pair, word: &'static str) -> Origin {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.clone()], pair.key.clone_key())
        .unwrap();
    let config = Arc::new(config);
    Origin::start(move |stream| {
        let session = ServerConnection::new(config.clone()).unwrap();
        echo(StreamOwned::new(session, stream), word);
    })
}

/// The same without TLS.
fn plain_origin(word: &'static str) -> Origin {
    Origin::start(move |stream| echo(stream, word))
}

fn echo(mut stream: impl Read + Write, word: &str) {
    if stream.write_all(word.as_bytes()).is_err() {
        return;
    }
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..n]).is_err() || stream.flush().is_err() {
            return;
        }
    }
}

struct Node {
    child: Child,
    /// By the names of their entry points.
    plain: SocketAddr,
    secure: SocketAddr,
    admin: SocketAddr,
    dir: tempfile::TempDir,
    pair: Pair,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// With `plain` and `secure`, which ends TLS. `options`: of both.
    fn start(services: &str, options: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (plain, secure, admin) = (local(free_port()), local(free_port()), local(free_port()));
        let pair = Pair::of(&NAMES);
        let at = dir.path().display();
        std::fs::write(dir.path().join("a.pem"), &pair.cert_pem).unwrap();
        std::fs::write(dir.path().join("a.key"), &pair.key_pem).unwrap();
        let config = format!(
            "[entrypoints.plain]\nlisten = '{plain}'\n{options}[entrypoints.secure]\nlisten = '{secure}'\ntls = true\n{options}\
             [tls]\ncertificates = [{{ cert = '{at}/a.pem', key = '{at}/a.key' }}]\n"
        );
        std::fs::write(dir.path().join("anynode.toml"), config).unwrap();
        std::fs::write(dir.path().join("services.yml"), services).unwrap();
        let child = command(&dir, "up")
            .args(["--dns", "none", "--admin", &admin.to_string()])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "warn")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let node = Node {
            child,
            plain,
            secure,
            admin,
            dir,
            pair,
        };
        wait_until("the first table", || {
            TcpStream::connect(admin).is_ok() && node.metric("anynode_config_revision") > 0
        });
        node
    }

    fn metrics(&self) -> String {
        let mut stream = dial(self.admin);
        let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    }

    /// The sum of all series that have each of these in them.
    fn sum(&self, parts: &[&str]) -> u64 {
        let text = self.metrics();
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let lines = series.filter(|line| parts.iter().all(|part| line.contains(part)));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    fn metric(&self, series: &str) -> u64 {
        self.sum(&[series])
    }

    /// A client that believes the node's certificate alone.
    fn tls(&self, addr: SocketAddr, name: &str) -> StreamOwned<ClientConnection, TcpStream> {
        tls(dial(addr), name, &self.pair)
    }

    /// What one request by that host over TLS is answered.
    fn https(&self, host: &str) -> String {
        let mut stream = self.tls(self.secure, host);
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    }

    fn http(&self, host: &str) -> String {
        let mut stream = dial(self.plain);
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    }
}

fn command(dir: &tempfile::TempDir, command: &str) -> Command {
    let mut run = anynode(&[command]);
    run.arg("--config").arg(dir.path().join("anynode.toml"));
    run.arg("--services").arg(dir.path().join("services.yml"));
    run
}

fn session(name: &str, pair: &Pair, protocols: Vec<Vec<u8>>) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols;
    ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap()
}

fn tls(stream: TcpStream, name: &str, pair: &Pair) -> StreamOwned<ClientConnection, TcpStream> {
    StreamOwned::new(session(name, pair, Vec::new()), stream)
}

/// What a client begins with.
fn hello(name: &str, pair: &Pair, protocols: Vec<Vec<u8>>) -> (ClientConnection, Vec<u8>) {
    let mut session = session(name, pair, protocols);
    let mut bytes = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut bytes).unwrap();
    }
    (session, bytes)
}

/// Hears the endpoint's word, and sends bytes there and back.
fn talks(stream: &mut (impl Read + Write), word: &str, n: usize) {
    let mut heard = vec![0; word.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), word);
    let sent: Vec<u8> = (0..n).map(|i| (i * 31 % 251) as u8).collect();
    for piece in sent.chunks(128 * 1024) {
        stream.write_all(piece).unwrap();
        let mut back = vec![0; piece.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == piece);
    }
}

fn entry(name: &str, options: &str, endpoints: &[&Origin]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|origin| format!("\"{}\"", origin.addr)).collect();
    let options: String = options.lines().map(|line| format!("    {line}\n")).collect();
    format!("  {name}:\n    endpoints: [{}]\n{options}", endpoints.join(", "))
}

fn file(services: &[String]) -> String {
    format!("services:\n{}", services.concat())
}

fn web_origin() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let body = if head.contains("X-Forwarded-Proto: https") {
                "https"
            } else {
                "http!"
            };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{body}");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn three_services_share_a_port_that_ends_tls() {
    let theirs = Pair::of(&["passed.test", "a.sub.test"]);
    let (passed, ended, web) = (tls_origin(&theirs, "passed"), plain_origin("ended"), web_origin());
    let services = file(&[
        entry(
            "passed",
            "route: HostSNI(`passed.test`)\ntls: passthrough\nentrypoints: [secure]",
            &[&passed],
        ),
        entry(
            "sub",
            "route: HostSNIRegexp(`^.+\\.sub\\.test$`)\ntls: passthrough",
            &[&passed],
        ),
        entry(
            "ended",
            "route: HostSNI(`ended.test`) || HostSNI(`also.test`)",
            &[&ended],
        ),
        entry("web", "route: Host(`web.test`)", &[&web]),
    ]);
    let node = Node::start(&services, "");
    // Whose certificate it is shows who has ended TLS.
    for name in ["passed.test", "a.sub.test"] {
        let mut client = tls(dial(node.secure), name, &theirs);
        talks(&mut client, "passed", 1 << 20);
        client.conn.send_close_notify();
        client.flush().unwrap();
    }
    for name in ["ended.test", "ALSO.test"] {
        let mut client = node.tls(node.secure, name);
        talks(&mut client, "ended", 1 << 20);
        // What is spoken in it is theirs to agree on.
        let offers = session(name, &node.pair, vec![b"postgresql".to_vec()]);
        talks(&mut StreamOwned::new(offers, dial(node.secure)), "ended", 10);
    }
    let said = node.https("web.test");
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("https"), "{said}");
    assert!(node.https("other.test").starts_with("HTTP/1.1 404"));
    // By another program; the endpoint's end ends it.
    let out = Command::new("openssl")
        .args([
            "s_client",
            "-quiet",
            "-connect",
            &node.secure.to_string(),
            "-servername",
            "ended.test",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .and_then(|mut child| {
            child.stdin.take().unwrap().write_all(b"by openssl\n")?;
            let mut heard = [0; 16];
            let read = child.stdout.take().unwrap().read_exact(&mut heard);
            child.kill()?;
            child.wait()?;
            read.map(|()| String::from_utf8_lossy(&heard).into_owned())
        });
    assert_eq!(out.unwrap(), "endedby openssl\n");
    // Each is counted where it is, and the sum is what came.
    let closed = |name: &str| node.sum(&["anynode_connections_closed_total{", &format!("service=\"{name}\"")]);
    wait_until("closed connections to be counted", || {
        (closed("passed"), closed("sub"), closed("ended")) == (1, 1, 5)
    });
    let routed = [
        "anynode_entrypoint_connections_closed_total{",
        "entrypoint=\"secure\"",
        "reason=\"routed\"",
    ];
    assert_eq!(node.sum(&routed), 7);
    let bytes = |name: &str| node.sum(&["anynode_bytes_total{", &format!("service=\"{name}\"")]);
    assert!(bytes("passed") > 2 << 20 && bytes("ended") > 4 << 20);
    // What is passed through goes by the kernel once it is much.
    let spliced = ["anynode_bytes_total{", "service=\"passed\"", "path=\"splice\""];
    assert!(node.sum(&spliced) > 0);
    assert_eq!(node.sum(&["anynode_entrypoint_connections_active{", "secure"]), 0);
}

#[test]
fn a_plain_port_tells_names_apart_and_waits_for_none_where_all_are_one_services() {
    let theirs = Pair::of(&["db.test"]);
    let (db, web, first) = (tls_origin(&theirs, "db"), web_origin(), plain_origin("220 mail\r\n"));
    let services = [
        entry("db", "route: HostSNI(`db.test`)\nentrypoints: [plain]", &[&db]),
        entry("web", "route: PathPrefix(`/`)", &[&web]),
    ];
    let node = Node::start(&file(&services), "request_head_timeout = '1s'\n");
    talks(&mut tls(dial(node.plain), "db.test", &theirs), "db", 100_000);
    let said = node.http("db.test");
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("http!"), "{said}");
    assert!(node.https("db.test").ends_with("https"));
    // Who says nothing has nothing to wait for.
    let mut silent = dial(node.plain);
    assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));

    // The whole port: who speaks first does.
    let services = file(&[
        entry("mail", "route: HostSNI(`*`)\nentrypoints: [plain]", &[&first]),
        entry("web", "route: Host(`web.test`)\nentrypoints: [secure]", &[&web]),
        entry("rest", "route: HostSNI(\"*\")\ntls: ended", &[&first]),
    ]);
    let node = Node::start(&services, "request_head_timeout = '5s'\n");
    let begun = Instant::now();
    talks(&mut dial(node.plain), "220 mail\r\n", 1000);
    assert!(begun.elapsed() < Duration::from_secs(2));
    // Where TLS ends, what no request's route is for.
    assert!(node.https("web.test").starts_with("HTTP/1.1 200"));
    talks(&mut node.tls(node.secure, "x.test"), "220 mail\r\n", 1000);

    // Beside a name it has to be waited for, and who says nothing at all is still somebody's.
    let services = file(&[
        entry("db", "route: HostSNI(`db.test`)\ntls: passthrough", &[&db]),
        entry("mail", "route: HostSNI(`*`)\nentrypoints: [plain]", &[&first]),
    ]);
    let node = Node::start(&services, "request_head_timeout = '300ms'\n");
    talks(&mut tls(dial(node.plain), "db.test", &theirs), "db", 100);
    talks(&mut dial(node.plain), "220 mail\r\n", 100);
    let mut speaks = dial(node.plain);
    speaks.write_all(b"EHLO").unwrap();
    let mut heard = [0; 14];
    speaks.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"220 mail\r\nEHLO");
}

/// The same hello in records of `n` bytes of the message.
/// A browser takes a connection for each name that its certificate is for. Told that it may not, it asks again by another.
#[test]
fn a_name_that_needs_a_connection_of_its_own_is_misdirected_on_anothers() {
    let (database, web) = (tls_origin(&Pair::of(&["db.test"]), "db"), web_origin());
    let services = file(&[
        entry("db", "route: HostSNI(`db.test`)\ntls: passthrough", &[&database]),
        entry("web", "route: Host(`web.test`)", &[&web]),
    ]);
    let node = Node::start(&services, "");
    for version in ["--http1.1", "--http2"] {
        let asked = |host: &str| {
            let out = Command::new("curl")
                .args(["-sk", version, "--max-time", "20", "-w", "%{http_code}", "--resolve"])
                .arg(format!("web.test:{}:127.0.0.1", node.secure.port()))
                .args(["-H", &format!("Host: {host}")])
                .arg(format!("https://web.test:{}/", node.secure.port()))
                .output()
                .unwrap();
            String::from_utf8(out.stdout).unwrap()
        };
        assert!(asked("web.test").ends_with("200"), "{}", asked("web.test"));
        let said = asked("db.test");
        assert!(
            said.ends_with("421") && said.contains("connection of its own"),
            "{said}"
        );
        assert!(asked("nobody.test").ends_with("404"));
        // In the clear no connection is told apart by name.
        let said = node.http("db.test");
        assert!(said.starts_with("HTTP/1.1 404"), "{said}");
    }
}

fn in_records(hello: &[u8], n: usize) -> Vec<u8> {
    let mut message = Vec::new();
    let mut rest = hello;
    while let Some((head, after)) = rest.split_first_chunk::<5>() {
        let (body, after) = after.split_at(u16::from_be_bytes([head[3], head[4]]).into());
        message.extend_from_slice(body);
        rest = after;
    }
    let record = |piece: &[u8]| [&[22, 3, 1], &(piece.len() as u16).to_be_bytes()[..], piece].concat();
    message.chunks(n).flat_map(record).collect()
}

#[test]
fn a_hello_may_come_in_pieces_and_be_longer_than_a_record() {
    let theirs = Pair::of(&["passed.test"]);
    let (passed, ended) = (tls_origin(&theirs, "word"), plain_origin("word"));
    let services = file(&[
        entry("passed", "route: HostSNI(`passed.test`)\ntls: passthrough", &[&passed]),
        entry(
            "ended",
            "route: HostSNI(`ended.test`)\nentrypoints: [secure]",
            &[&ended],
        ),
    ]);
    let node = Node::start(&services, "");
    let long: Vec<Vec<u8>> = (0..90_u8).map(|i| vec![b'a' + i % 26; 200]).collect();
    for (name, pair, addr) in [
        ("passed.test", &theirs, node.secure),
        ("passed.test", &theirs, node.plain),
        ("ended.test", &node.pair, node.secure),
    ] {
        for (protocols, n, piece) in [
            (Vec::new(), 16_000, 1),
            (Vec::new(), 7, 40),
            (Vec::new(), 100, 4096),
            (long.clone(), 16_000, 30_000),
            (long.clone(), 9_000, 1_000),
        ] {
            let (session, bytes) = hello(name, pair, protocols);
            let mut stream = dial(addr);
            stream.set_nodelay(true).unwrap();
            for piece in in_records(&bytes, n).chunks(piece) {
                stream.write_all(piece).unwrap();
                std::thread::yield_now();
            }
            talks(&mut StreamOwned::new(session, stream), "word", 1000);
        }
    }
}

#[test]
fn what_is_no_hello_goes_where_it_went() {
    let (ended, web) = (plain_origin("word"), web_origin());
    let services = file(&[
        entry("ended", "route: HostSNI(`ended.test`)", &[&ended]),
        entry("web", "route: PathPrefix(`/`)", &[&web]),
    ]);
    let node = Node::start(&services, "request_head_timeout = '1s'\n");
    let (_, whole) = hello("ended.test", &node.pair, Vec::new());
    let answer = |addr: SocketAddr, bytes: &[u8], ends: bool| {
        let mut stream = dial(addr);
        // It may have been refused by the first of them.
        let _ = stream.write_all(bytes);
        if ends {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut said = Vec::new();
        // A reset is an answer too.
        let _ = stream.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    };
    let mut wrong_length = whole.clone();
    wrong_length[8] ^= 0x40;
    let endless = in_records(
        &[&[22, 3, 1, 0, 4, 1, 0, 0x70, 0][..], &[22, 3, 1, 0x40, 0], &[0; 16_384]].concat(),
        100,
    );
    for bytes in [
        b"\x16\x03\x01\0\0".to_vec(),
        b"\x16\x03\x01\0\x04\x01\xff\xff\xff".to_vec(),
        b"\x16\x03\x01\xff\xff\x01".to_vec(),
        b"\x80\x2e\x01\0\x02".to_vec(),
        wrong_length,
        endless,
        vec![0; 40_000],
        vec![0x16; 40_000],
    ] {
        for ends in [false, true] {
            let said = answer(node.secure, &bytes, ends);
            assert!(!said.contains("word") && !said.contains("200 OK"), "{said}");
            let said = answer(node.plain, &bytes, ends);
            assert!(!said.contains("word") && !said.contains("200 OK"), "{said}");
        }
    }
    for cut in [1, 5, 9, 60, whole.len() - 1] {
        for addr in [node.secure, node.plain] {
            assert_eq!(answer(addr, &whole[..cut], true), "", "{cut}");
        }
    }
    let said = answer(node.secure, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", false);
    assert!(
        said.starts_with("HTTP/1.1 400") && said.contains("this port speaks TLS"),
        "{said}"
    );
    assert_eq!(ended.n_accepted(), 0);
    talks(&mut node.tls(node.secure, "ended.test"), "word", 10);
    assert!(node.https("x.test").starts_with("HTTP/1.1 200") && node.http("x").starts_with("HTTP/1.1 200"));
}

#[test]
fn half_hellos_hold_nobody_up_and_are_let_go() {
    let (ended, web) = (plain_origin("word"), web_origin());
    let services = file(&[
        entry("ended", "route: HostSNI(`ended.test`)", &[&ended]),
        entry("web", "route: Host(`web.test`)", &[&web]),
    ]);
    let node = Node::start(&services, "request_head_timeout = '3s'\n");
    let (_, whole) = hello("ended.test", &node.pair, Vec::new());
    let half: Vec<TcpStream> = (0..400_usize)
        .map(|i| {
            let mut stream = dial(if i % 2 == 0 { node.secure } else { node.plain });
            stream.write_all(&whole[..1 + i % (whole.len() - 1)]).unwrap();
            stream
        })
        .collect();
    for _ in 0..10 {
        let begun = Instant::now();
        talks(&mut node.tls(node.secure, "ended.test"), "word", 1000);
        assert!(
            node.https("web.test").starts_with("HTTP/1.1 200") && node.http("web.test").starts_with("HTTP/1.1 200")
        );
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    let timed_out = [
        "anynode_entrypoint_connections_closed_total{",
        "reason=\"client_timeout\"",
    ];
    wait_until("half hellos to be let go", || node.sum(&timed_out) == 400);
    drop(half);
    assert_eq!(node.sum(&["anynode_entrypoint_connections_active{"]), 0);
}

/// Says the first line that it hears, which is not the client's.
fn line_origin() -> Origin {
    Origin::start(|mut stream| {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") && stream.read_exact(&mut byte).is_ok() {
            line.push(byte[0]);
        }
        let _ = stream.write_all(&line);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

fn announced(client: &str) -> Vec<u8> {
    let client = client.parse().unwrap();
    proxy_protocol::header(ProxyProtocol::V2, Some((client, "10.0.0.1:443".parse().unwrap())))
}

#[test]
fn who_a_proxy_in_front_says_is_who_the_endpoint_is_told_and_rules_see() {
    let (told, chosen) = (line_origin(), plain_origin("chosen"));
    let services = file(&[
        entry(
            "ended",
            "route: HostSNI(`ended.test`)\nproxy_protocol: v1\nentrypoints: [secure]",
            &[&told],
        ),
        entry(
            "passed",
            "route: HostSNI(`passed.test`)\ntls: passthrough\nproxy_protocol: v1",
            &[&told],
        ),
        entry(
            "chosen",
            "route: HostSNI(`*`) && ClientIP(`198.51.100.0/24`)\npriority: 1000\nentrypoints: [plain]",
            &[&chosen],
        ),
    ]);
    let node = Node::start(&services, "proxy_protocol = ['127.0.0.1']\n");
    let line = |mut stream: Box<dyn Read>| {
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    };
    let begin = |addr: SocketAddr, client: &str| {
        let mut stream = dial(addr);
        stream.write_all(&announced(client)).unwrap();
        stream
    };
    let client = tls(begin(node.secure, "203.0.113.7:5555"), "ended.test", &node.pair);
    let said = line(Box::new(client));
    assert!(said.starts_with("PROXY TCP4 203.0.113.7 127.0.0.1 5555 "), "{said}");
    for addr in [node.secure, node.plain] {
        let mut client = begin(addr, "203.0.113.9:77");
        client
            .write_all(&hello("passed.test", &node.pair, Vec::new()).1)
            .unwrap();
        let said = line(Box::new(client));
        assert!(said.starts_with("PROXY TCP4 203.0.113.9 127.0.0.1 77 "), "{said}");
    }
    let mut client = begin(node.plain, "198.51.100.3:1");
    client.write_all(b"x").unwrap();
    talks_after(&mut client, "chosenx");
}

#[test]
fn strict_judges_by_the_clients_that_a_proxy_names_and_not_by_the_proxy() {
    let bad = Origin::start(|mut stream| drop(stream.read(&mut [0; 4096])));
    let good = plain_origin("good");
    let passed = "route: HostSNI(`passed.test`)\ntls: passthrough\nentrypoints: [secure]\nhealth: { passive: strict }";
    let services = file(&[entry("passed", passed, &[&good, &bad])]);
    let node = Node::start(&services, "proxy_protocol = ['127.0.0.1']\n");
    let ejections = || node.sum(&["anynode_ejections_total{", "service=\"passed\""]);
    let come = |client: &str, n: usize| {
        for _ in 0..n {
            let mut stream = dial(node.secure);
            stream.write_all(&announced(client)).unwrap();
            stream
                .write_all(&hello("passed.test", &node.pair, Vec::new()).1)
                .unwrap();
            let _ = stream.read(&mut [0; 4]);
        }
    };
    // On loopback each connection would be another client's.
    come("203.0.113.7:5555", 20);
    assert!(bad.n_accepted() >= 8);
    assert_eq!(ejections(), 0);
    come("203.0.113.8:5555", 20);
    wait_until("the bad one to rest", || ejections() >= 1);
}

#[test]
fn a_service_that_is_of_requests_by_the_end_of_a_handshake_gets_no_raw_connection() {
    let ended = plain_origin("ended");
    let by_name = file(&[entry(
        "ended",
        "route: HostSNI(`ended.test`)\nentrypoints: [secure]",
        &[&ended],
    )]);
    let node = Node::start(&by_name, "");
    let begin = || {
        let (mut session, bytes) = hello("ended.test", &node.pair, Vec::new());
        let mut stream = dial(node.secure);
        stream.write_all(&bytes).unwrap();
        // What it is to say last it keeps for later.
        while session.is_handshaking() {
            session.read_tls(&mut stream).unwrap();
            session.process_new_packets().unwrap();
        }
        StreamOwned::new(session, stream)
    };
    talks(&mut begin(), "ended", 10);
    let (mut late, n_before) = (begin(), ended.n_accepted());
    let before = node.metric("anynode_config_revision");
    let by_request = file(&[entry(
        "ended",
        "route: Host(`ended.test`)\nentrypoints: [secure]",
        &[&ended],
    )]);
    std::fs::write(node.dir.path().join("services.yml"), by_request).unwrap();
    wait_until("the change", || node.metric("anynode_config_revision") > before);
    let _ = late.write_all(b"x");
    let mut heard = Vec::new();
    let _ = late.read_to_end(&mut heard);
    assert_eq!(
        (String::from_utf8_lossy(&heard).into_owned(), ended.n_accepted()),
        (String::new(), n_before)
    );
}

fn talks_after(stream: &mut impl Read, expected: &str) {
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), expected);
}

#[test]
fn a_services_limits_and_balancing_are_its_own_by_this_way_too() {
    let (one, other) = (plain_origin("one"), plain_origin("two"));
    let services = file(&[
        entry(
            "capped",
            "route: HostSNI(`capped.test`)\nlimits: { connections: 1, queue: 0 }\nentrypoints: [secure]",
            &[&one],
        ),
        entry(
            "hashed",
            "route: HostSNI(`hashed.test`)\nbalance: hash\nentrypoints: [secure]",
            &[&one, &other],
        ),
    ]);
    let node = Node::start(&services, "proxy_protocol = ['127.0.0.1']\n");
    let open = |client: usize, name: &str| {
        let mut stream = dial(node.secure);
        stream.write_all(&announced(&format!("203.0.113.{client}:9"))).unwrap();
        tls(stream, name, &node.pair)
    };
    let mut first = open(1, "capped.test");
    talks(&mut first, "one", 10);
    assert!(open(2, "capped.test").read(&mut [0]).is_err());
    let limited = [
        "anynode_connections_closed_total{",
        "service=\"capped\"",
        "reason=\"limit\"",
    ];
    wait_until("the second one to be refused", || node.sum(&limited) == 1);
    // By the address that the proxy says.
    let word = |client: usize| {
        let mut heard = [0; 3];
        open(client, "hashed.test").read_exact(&mut heard).unwrap();
        heard
    };
    let words: Vec<[u8; 3]> = (1..25).map(word).collect();
    assert_eq!((1..25).map(word).collect::<Vec<_>>(), words);
    assert!(words.contains(b"one") && words.contains(b"two"));
    drop(first);
}

#[test]
fn what_a_route_of_connections_cannot_have_is_refused_with_its_key() {
    let origin = plain_origin("x");
    let node = Node::start(&file(&[entry("a", "route: HostSNI(`a.test`)", &[&origin])]), "");
    let check = |services: &[(&str, &str)]| {
        let services: Vec<String> = services
            .iter()
            .map(|(name, options)| entry(name, options, &[&origin]))
            .collect();
        let path = node.dir.path().join("other.yml");
        std::fs::write(&path, file(&services)).unwrap();
        let out = anynode(&["check", "--config"])
            .arg(node.dir.path().join("anynode.toml"))
            .arg("--services")
            .arg(&path)
            .output()
            .unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    for (services, expected) in [
        (
            &[("a", "mode: http\nroute: HostSNI(`a.test`)")][..],
            "service a: route: HostSNI(`a.test`): expected mode tcp: in http mode",
        ),
        (
            &[("a", "mode: tcp\nroute: Host(`a.test`)")],
            "service a: route: Host(`a.test`): expected mode http: in tcp mode",
        ),
        (
            &[("a", "routes: [{ rule: Host(`a`) }, { rule: HostSNI(`a`) }]")],
            "service a: routes[1]: HostSNI(`a`): expected mode tcp",
        ),
        (
            &[("a", "route: HostSNI(`a`) && Path(`/`)")],
            "expected HostSNI, HostSNIRegexp and ClientIP alone",
        ),
        (
            &[("a", "route: Host(`a`)\ntls: passthrough")],
            "service a: tls: expected ended or none beside that route",
        ),
        (
            &[("a", "route: HostSNI(`a`)\ntls: open")],
            "services.a.tls: \"open\" is not valid: expected ended, passthrough or none",
        ),
        (&[("a", "tls: ended")], "service a: tls: expected a route beside it"),
        (
            &[("a", "route: HostSNI(`a`)\ntls: ended\nentrypoints: [plain]")],
            "service a: route: HostSNI(`a`) asks for TLS, and entry point plain ends none",
        ),
        (
            &[("a", "route: HostSNI(`*`)\ntls: none\nentrypoints: [secure]")],
            "service a: route: HostSNI(`*`) asks for connections without TLS, and entry point secure ends it",
        ),
        (
            &[
                ("a", "route: HostSNI(`a`)\ntls: passthrough"),
                ("b", "route: HostSNI(`A.`)"),
            ],
            "service b: route: HostSNI(`A.`) is already that of service a at entry point plain",
        ),
        (
            &[("a", "route: HostSNI(`a`)\nstrip_prefix: [/x]")],
            "expected mode: http",
        ),
        (
            &[("a", "route: HostSNI(`a`)\nsticky: { key: 0123456789abcdef }")],
            "sticky: expected mode http",
        ),
    ] {
        let (is_well, said) = check(services);
        assert!(!is_well && said.contains(expected), "{said}");
    }
    // A host's requests and the connections of clients that say its name are two things.
    let (is_well, said) = check(&[("a", "route: HostSNI(`a`)"), ("b", "route: Host(`a`)")]);
    assert!(is_well, "{said}");
    drop(node);
}

//! Other people's servers: nginx by HTTP/2 and HTTP/1.1, Python's, OpenSSL's, gRPC's.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::rig::{Authority, Node, Pair, Program, ask, at, get, has, read_head, service};
use crate::harness::installed::from_pypi;
use crate::harness::{dial, free_port, wait_until};

const BY_CA: &str = "endpoint_tls: { ca: internal }";

/// nginx with `pair`, HTTP/2 offered or not. What it was asked by is in `NAME.log`.
fn nginx(dir: &Path, name: &str, pair: &Pair, protocols: &str) -> (Program, u16) {
    let port = free_port();
    pair.write(dir, name);
    let at = dir.display();
    let conf = format!(
        "master_process off; daemon off; error_log {at}/{name}.err warn; pid {at}/{name}.pid;\n\
         user root; events {{ worker_connections 512; }}\n\
         http {{ client_body_temp_path {at}/{name}-body; proxy_temp_path {at}/{name}-proxy; fastcgi_temp_path {at}/{name}-f;\n\
         uwsgi_temp_path {at}/{name}-u; scgi_temp_path {at}/{name}-s;\n\
         log_format seen '$server_protocol $scheme $ssl_server_name $host $http_x_forwarded_proto $ssl_session_reused $connection';\n\
         access_log {at}/{name}.log seen; client_max_body_size 0; keepalive_requests 100000;\n\
         server {{ listen 127.0.0.1:{port} ssl {protocols}; ssl_certificate {at}/{name}.pem; ssl_certificate_key {at}/{name}.key;\n\
         location / {{ root {at}/www; dav_methods PUT; }}\n\
         location /who {{ return 200 '{name} by $server_protocol'; }} }} }}\n"
    );
    let path = dir.join(format!("{name}.conf"));
    std::fs::write(&path, conf).unwrap();
    std::fs::create_dir_all(dir.join("www")).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(&path).stderr(Stdio::null());
    (Program::start(&mut command, super::rig::at(port)), port)
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn nginx_is_asked_by_http_2_where_it_offers_it_and_by_http_1_1_otherwise() {
    if !has("nginx") {
        return;
    }
    let authority = Authority::new("internal");
    let dir = tempfile::tempdir().unwrap();
    let (_two, two_port) = nginx(dir.path(), "two", &authority.issue(&["two"]), "http2");
    let (_one, one_port) = nginx(dir.path(), "one", &authority.issue(&["one"]), "");
    let large: Vec<u8> = (0..8 << 20).map(|i: u32| (i % 249) as u8).collect();
    std::fs::write(dir.path().join("www/large"), &large).unwrap();
    let ports = [free_port(), free_port()];
    let node = Node::start(
        &[
            service(
                "two",
                ports[0],
                &[at(two_port)],
                &[BY_CA, "health: { http: /who, interval: 100ms }"],
            ),
            service("one", ports[1], &[at(one_port)], &[BY_CA]),
        ]
        .concat(),
        &[("internal", &authority.pem)],
    );
    for (name, port, version) in [("two", ports[0], "HTTP/2.0"), ("one", ports[1], "HTTP/1.1")] {
        let said = || get(at(port), "/who").1;
        wait_until("an answer", || said().contains(&format!("{name} by {version}")));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        assert_eq!(get(at(port), "/who").0, 200);
                    }
                });
            }
        });
        // Both ways, by other people's client, of either version.
        for by in ["--http1.1", "--http2-prior-knowledge"] {
            let url = format!("http://127.0.0.1:{port}");
            let put = Command::new("curl")
                .args(["-sS", "-f", "--max-time", "30", by, "-T"])
                .arg(dir.path().join("www/large"))
                .arg(format!("{url}/up-{name}{by}"))
                .output()
                .unwrap();
            assert!(put.status.success(), "{put:?}");
            assert!(std::fs::read(dir.path().join(format!("www/up-{name}{by}"))).unwrap() == large);
            let got = Command::new("curl")
                .args(["-sS", "-f", "--max-time", "30", by])
                .arg(format!("{url}/large"))
                .output()
                .unwrap();
            assert!(
                got.status.success() && got.stdout == large,
                "{:?}",
                String::from_utf8_lossy(&got.stderr)
            );
        }
        let seen = lines(&dir.path().join(format!("{name}.log")));
        let asked = format!("{version} https {name} shop.test http ");
        let n_asked = seen.iter().filter(|line| line.starts_with(&asked)).count();
        assert!(n_asked >= 200, "{n_asked} of {}: {:?}", seen.len(), seen.first());
        let mut connections: Vec<&str> = seen.iter().filter_map(|line| line.rsplit(' ').next()).collect();
        connections.sort_unstable();
        connections.dedup();
        let n_checks = seen.iter().filter(|line| line.contains(" 127.0.0.1 - ")).count();
        assert!(connections.len() <= 24 + n_checks, "{} connections", connections.len());
    }
    assert_eq!(node.states("two"), ["ready"]);
    // WebSockets and the like are no matter of HTTP/2: it is asked by HTTP/1.1, and answers as it likes.
    let upgrade = "GET /who HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut client = dial(at(ports[0]));
    client.write_all(upgrade.as_bytes()).unwrap();
    assert!(read_head(&mut client).unwrap().starts_with("HTTP/1.1 200 "));
    let mut body = [0; 15];
    client.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"two by HTTP/1.1");
}

#[test]
fn endpoints_of_python_and_openssl_are_spoken_to() {
    if !has("python3") || !has("openssl") {
        return;
    }
    let authority = Authority::new("internal");
    let dir = tempfile::tempdir().unwrap();
    authority.issue(&["web"]).write(dir.path(), "web");
    std::fs::write(dir.path().join("hello"), "hello from a file").unwrap();
    let (python, openssl) = (free_port(), free_port());
    let script = "import http.server, ssl, sys\n\
        class H(http.server.SimpleHTTPRequestHandler):\n    protocol_version = 'HTTP/1.1'\n\
        server = http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H)\n\
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
        context.load_cert_chain('web.pem', 'web.key')\n\
        server.socket = context.wrap_socket(server.socket, server_side=True)\n\
        server.serve_forever()\n";
    let mut command = Command::new("python3");
    command
        .args(["-c", script, &python.to_string()])
        .current_dir(dir.path())
        .stderr(Stdio::null());
    // Each connect that only looks whether it is there holds up a server that shakes hands where it accepts: for a moment.
    let _python = Program::start(&mut command, at(python));
    let mut command = Command::new("openssl");
    command
        .args(["s_server", "-accept", &openssl.to_string(), "-WWW", "-tls1_2", "-quiet"])
        .args(["-cert", "web.pem", "-key", "web.key"])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _openssl = Program::start(&mut command, at(openssl));
    let ports = [free_port(), free_port()];
    let by_name = "endpoint_tls: { ca: internal, server_name: web }";
    let node = Node::start(
        &[
            service("python", ports[0], &[at(python)], &[by_name]),
            service("openssl", ports[1], &[at(openssl)], &[by_name]),
        ]
        .concat(),
        &[("internal", &authority.pem)],
    );
    for _ in 0..5 {
        for port in ports {
            let (status, text) = get(at(port), "/hello");
            assert!(
                status == 200 && text.contains("hello from a file"),
                "{text}{}",
                node.status()
            );
        }
    }
    // One connection for each file, by TLS 1.2: a session all the same.
    assert!(
        node.handshakes("openssl", "resumed") >= 2,
        "{}",
        node.handshakes("openssl", "full")
    );
    let head = ask(
        at(ports[0]),
        "HEAD /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(head.0, 200);
}

#[test]
fn calls_of_grpc_are_shared_out_over_servers_with_tls() {
    let Some(libraries) = from_pypi("grpcio", &["grpcio"]) else {
        return;
    };
    let authority = Authority::new("internal");
    let dir = tempfile::tempdir().unwrap();
    authority.issue(&["rpc"]).write(dir.path(), "rpc");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/grpc");
    let mut servers = Vec::new();
    let addrs: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let mut child = Command::new("python3")
                .arg(scripts.join("server.py"))
                .arg(name)
                .arg(dir.path().join("rpc.pem"))
                .arg(dir.path().join("rpc.key"))
                .env("PYTHONPATH", &libraries)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            servers.push(Program(child));
            at(line.trim().parse().unwrap())
        })
        .collect();
    let port = free_port();
    let node = Node::start(&service("rpc", port, &addrs, &[BY_CA]), &[("internal", &authority.pem)]);
    let out = Command::new("python3")
        .arg(scripts.join("client.py"))
        .args(["shares", &at(port).to_string()])
        .env("PYTHONPATH", &libraries)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let shares: Vec<u32> = said
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.parse().ok())
        .collect();
    assert_eq!(shares.len(), 3, "{said}");
    assert_eq!(shares.iter().sum::<u32>(), 10_000, "{said}");
    assert!(shares.iter().all(|n| (2900..=3800).contains(n)), "{said}");
    assert!(node.handshakes("rpc", "full") >= 3);
}

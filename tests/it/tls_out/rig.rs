//! A node whose endpoints speak TLS, authorities for them, and endpoints that do as they are told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::cli::anynode;
use crate::harness::{Origin, PATIENCE, dial, free_port, read_to_end, wait_until};

pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What an endpoint shows, and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
    /// As curl's --pinnedpubkey spells it.
    pub pin: String,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        Authority {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_until(names, 30)
    }

    /// Good from three days ago to so many from now.
    pub fn issue_until(&self, names: &[&str], days: i64) -> Pair {
        self.issue_for(names, time::Duration::days(days))
    }

    /// The same, more exactly.
    pub fn issue_for(&self, names: &[&str], from_now: time::Duration) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = params(names, from_now);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair::of(certificate.pem(), &key)
    }
}

/// By nobody but itself.
pub fn self_signed(names: &[&str]) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = params(names, time::Duration::days(30)).self_signed(&key).unwrap();
    Pair::of(certificate.pem(), &key)
}

fn params(names: &[&str], from_now: time::Duration) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(3);
    params.not_after = time::OffsetDateTime::now_utc() + from_now;
    params
}

impl Pair {
    fn of(certificate: String, key: &KeyPair) -> Pair {
        use base64::Engine;
        let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
        let pin = base64::prelude::BASE64_STANDARD.encode(digest);
        Pair {
            certificate,
            key: key.serialize_pem(),
            pin: format!("sha256//{pin}"),
        }
    }

    /// `NAME.pem` and `NAME.key`.
    pub fn write(&self, dir: &Path, name: &str) {
        std::fs::write(dir.join(format!("{name}.pem")), &self.certificate).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), &self.key).unwrap();
    }

    pub fn config(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        self.config_asking(alpn, None)
    }

    /// `whom`: whose certificates it asks for.
    fn config_asking(&self, alpn: &[&str], whom: Option<&Authority>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = match whom {
            None => rustls::server::WebPkiClientVerifier::no_client_auth(),
            Some(whom) => {
                let mut roots = rustls::RootCertStore::empty();
                let root = CertificateDer::from_pem_slice(whom.pem.as_bytes()).unwrap();
                roots.add(root).unwrap();
                let builder =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
                builder.build().unwrap()
            }
        };
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                chain.map(Result::unwrap).collect(),
                PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

pub type Stream = StreamOwned<ServerConnection, TcpStream>;

/// What was said in the handshakes with an endpoint.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub names: Vec<String>,
    pub n_full: usize,
    pub n_resumed: usize,
}

/// An endpoint of rustls' own that speaks HTTP/1.1.
pub struct Endpoint {
    pub origin: Origin,
    pub seen: Arc<Mutex<Seen>>,
}

impl Endpoint {
    /// `serve` has each connection once TLS was agreed on.
    pub fn start(pair: &Pair, serve: impl Fn(&mut Stream) + Send + Sync + 'static) -> Endpoint {
        Endpoint::start_with(pair.config(&["http/1.1"]), Duration::ZERO, serve)
    }

    /// Serves nobody without a certificate of `whom`.
    pub fn asking(pair: &Pair, whom: &Authority) -> Endpoint {
        Endpoint::start_with(pair.config_asking(&["http/1.1"], Some(whom)), Duration::ZERO, |_| {})
    }

    /// `pace`: how long it takes for a handshake, one after the other.
    pub fn start_with(
        config: Arc<ServerConfig>,
        pace: Duration,
        serve: impl Fn(&mut Stream) + Send + Sync + 'static,
    ) -> Endpoint {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let noted = seen.clone();
        let one_at_a_time = Mutex::new(());
        let origin = Origin::start(move |mut stream| {
            if !pace.is_zero() {
                let _one = one_at_a_time.lock().unwrap();
                std::thread::sleep(pace);
            }
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut tls = ServerConnection::new(config.clone()).unwrap();
            while tls.is_handshaking() {
                if tls.complete_io(&mut stream).is_err() {
                    return;
                }
            }
            {
                let mut seen = noted.lock().unwrap();
                seen.names.push(tls.server_name().unwrap_or_default().to_owned());
                match tls.handshake_kind() {
                    Some(rustls::HandshakeKind::Resumed) => seen.n_resumed += 1,
                    _ => seen.n_full += 1,
                }
            }
            serve(&mut StreamOwned::new(tls, stream));
        });
        Endpoint { origin, seen }
    }

    /// Answers with the head that it was sent.
    pub fn mirror(pair: &Pair) -> Endpoint {
        Endpoint::start(pair, |stream| {
            while let Some(head) = read_head(stream) {
                if answer(stream, &head).is_err() {
                    return;
                }
            }
        })
    }

    /// The same, and says goodbye after each.
    pub fn closing(pair: &Pair) -> Endpoint {
        Endpoint::start(pair, |stream| {
            if let Some(head) = read_head(stream) {
                let _ = answer(stream, &head);
            }
            goodbye(stream);
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.origin.addr
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

pub fn answer(stream: &mut Stream, body: &str) -> std::io::Result<()> {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes())?;
    stream.flush()
}

pub fn goodbye(stream: &mut Stream) {
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

/// `None`: it ends before.
pub fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// A node of the program.
pub struct Node {
    child: Child,
    pub admin: SocketAddr,
    pub dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// `services`: as in a file, below `services:`. `authorities`: by name, in files `NAME-ca.pem` of its directory.
    pub fn start(services: &str, authorities: &[(&str, &str)]) -> Node {
        Node::start_in(tempfile::tempdir().unwrap(), services, authorities)
    }

    pub fn start_in(dir: tempfile::TempDir, services: &str, authorities: &[(&str, &str)]) -> Node {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut config = "[authorities]\n".to_owned();
        for (name, pem) in authorities {
            let path = dir.path().join(format!("{name}-ca.pem"));
            std::fs::write(&path, pem).unwrap();
            config += &format!("{name} = '{}'\n", path.display());
        }
        std::fs::write(dir.path().join("anynode.toml"), config).unwrap();
        write_services(dir.path(), services);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Node::command(dir.path(), "up")
            .args(["--dns", "none", "--admin", &admin.to_string()])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "info")
            .stderr(log)
            .spawn()
            .unwrap();
        let node = Node { child, admin, dir };
        wait_until("the node", || TcpStream::connect(admin).is_ok());
        wait_until("the first table", || node.metric("anynode_config_revision") > 0);
        node
    }

    pub fn command(dir: &Path, command: &str) -> Command {
        let mut run = anynode(&[command]);
        run.arg("--config").arg(dir.join("anynode.toml"));
        run.arg("--services").arg(dir.join("services.yml"));
        run
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Declares others in the place of these, and waits until they are served.
    pub fn declare(&self, services: &str) {
        let before = self.metric("anynode_config_revision");
        write_services(self.dir.path(), services);
        wait_until("the next table", || self.metric("anynode_config_revision") > before);
    }

    fn admin(&self, path: &str) -> String {
        let mut stream = dial(self.admin);
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    }

    pub fn ready(&self) -> String {
        self.admin("/readyz")
    }

    pub fn metric(&self, series: &str) -> u64 {
        let text = self.admin("/metrics");
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    pub fn handshakes(&self, service: &str, result: &str) -> u64 {
        self.metric(&format!(
            "anynode_endpoint_tls_handshakes_total{{service=\"{service}\",result=\"{result}\"}}"
        ))
    }

    pub fn status(&self) -> String {
        let out = anynode(&["status", "--admin", &self.admin.to_string()])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// The states of a service's endpoints, in order.
    pub fn states(&self, service: &str) -> Vec<String> {
        let text = self.admin("/v1/status");
        let (_, json) = text.split_once("\r\n\r\n").unwrap();
        let status: Value = serde_json::from_str(json.trim()).unwrap();
        let services = status["services"].as_array().unwrap();
        let service = services.iter().find(|one| one["name"] == service).unwrap();
        let endpoints = service["endpoints"].as_array().unwrap().iter();
        endpoints.map(|one| one["state"].as_str().unwrap().to_owned()).collect()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }
}

fn write_services(dir: &Path, services: &str) {
    let new = dir.join("services.new");
    std::fs::write(&new, format!("services:\n{services}")).unwrap();
    std::fs::rename(new, dir.join("services.yml")).unwrap();
}

/// A service in mode http whose endpoints speak TLS. `more`: further lines, such as `endpoint_tls: {...}`.
pub fn service(name: &str, port: u16, endpoints: &[SocketAddr], more: &[&str]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|addr| format!("\"{addr}\"")).collect();
    let mut text = format!(
        "  {name}:\n    mode: http\n    scheme: https\n    publish: [\"127.0.0.1:{port}:443\"]\n    limits: {{ hold_timeout: 0s }}\n    \
         endpoints: [{}]\n",
        endpoints.join(", ")
    );
    for line in more {
        text += &format!("    {line}\n");
    }
    text
}

pub fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The status and the rest of what a request is answered with.
pub fn ask(addr: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = dial(addr);
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text)
}

pub fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    ask(
        addr,
        &format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n"),
    )
}

/// Ends with this.
pub struct Program(pub Child);

impl Program {
    pub fn start(command: &mut Command, addr: SocketAddr) -> Program {
        let program = Program(command.stdin(Stdio::null()).spawn().unwrap());
        wait_until("an endpoint", || TcpStream::connect(addr).is_ok());
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether there is such a program; says so where there is none.
pub fn has(program: &str) -> bool {
    let is_there = Command::new("which")
        .arg(program)
        .output()
        .is_ok_and(|out| out.status.success());
    if !is_there {
        println!("skipped: this needs {program}");
    }
    is_there
}

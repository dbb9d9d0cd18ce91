//! An authority (Debian's pebble, with its challtestsrv for names) and a node that orders from it.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::cli::anynode;
use crate::harness::{dial, free_port, read_to_end};

/// A process, ended when dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// As `wait_until`, for what takes an order, and another where the first fails: that comes after 75 s at the latest.
pub fn wait_long(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(
            started.elapsed() < Duration::from_secs(180),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Certificates of a root of its own for 127.0.0.1: the root, the certificate and its key, as PEM.
pub fn server_pair() -> (String, String, String) {
    server_pair_at(Ipv4Addr::LOCALHOST)
}

fn server_pair_at(ip: Ipv4Addr) -> (String, String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "directory root");
    let root = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = vec![ip.to_string(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    (root, certificate.pem(), key.serialize_pem())
}

/// What an authority is to be like.
#[derive(Clone, Default)]
pub struct Wish {
    /// Seconds; 0: pebble's own.
    pub life: u32,
    /// A key's identifier and the key in base64url.
    pub external: Option<(&'static str, &'static str)>,
    pub blocked: Vec<&'static str>,
    /// Where it is, and where the names lead that it asks; `None`: 127.0.0.1.
    pub at: Option<Ipv4Addr>,
    pub names_lead_to: Option<Ipv4Addr>,
}

pub struct Pebble {
    running: Option<Running>,
    _names: Running,
    names: SocketAddr,
    directory: SocketAddr,
    management: SocketAddr,
    /// Where it asks whether names are its client's.
    pub http: SocketAddr,
    pub tls: SocketAddr,
    /// The root of its directory's certificate, and its log.
    pub dir: tempfile::TempDir,
    wish: Wish,
    command: Arc<dyn Fn(&str) -> Command + Send + Sync>,
}

impl Pebble {
    /// `None`: there is none here, as is said.
    pub fn start(wish: Wish) -> Option<Pebble> {
        let ports = [0; 6].map(|_| free_port());
        Pebble::start_as(wish, ports, Arc::new(|program| Command::new(program)))
    }

    /// By commands that `run` makes. `ports`: the first two are those where it asks whether names are its client's, by HTTP and TLS.
    pub fn start_as(wish: Wish, ports: [u16; 6], run: Arc<dyn Fn(&str) -> Command + Send + Sync>) -> Option<Pebble> {
        for program in ["pebble", "pebble-challtestsrv"] {
            if Command::new(program).arg("-h").output().is_err() {
                println!("skipped: there is no {program} here");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let ip = wish.at.unwrap_or(Ipv4Addr::LOCALHOST);
        let (root, certificate, key) = server_pair_at(ip);
        for (name, text) in [("ca.pem", root), ("cert.pem", certificate), ("key.pem", key)] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let [http, tls, directory, management, names, names_management] =
            ports.map(|port| SocketAddr::from((ip, port)));
        let names_lead_to = wish.names_lead_to.unwrap_or(Ipv4Addr::LOCALHOST).to_string();
        let names_server = run("pebble-challtestsrv")
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""])
            .args(["-defaultIPv4", &names_lead_to, "-dns01", &names.to_string()])
            .args(["-management", &names_management.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let names_server = Running(names_server);
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (kid, mac) = wish.external.unwrap_or(("", ""));
        let macs = match kid {
            "" => String::new(),
            _ => format!("{kid:?}: {mac:?}"),
        };
        let life = if wish.life == 0 { 3600 } else { wish.life };
        let config = format!(
            r#"{{"pebble": {{"listenAddress": "{directory}", "managementListenAddress": "{management}", "certificate": {:?},
            "privateKey": {:?}, "httpPort": {}, "tlsPort": {}, "ocspResponderURL": "", "externalAccountBindingRequired": {},
            "externalAccountMACKeys": {{{macs}}}, "domainBlocklist": {:?}, "certificateValidityPeriod": {life}}}}}"#,
            at("cert.pem"),
            at("key.pem"),
            http.port(),
            tls.port(),
            !kid.is_empty(),
            wish.blocked,
        );
        std::fs::write(dir.path().join("pebble.json"), config).unwrap();
        let mut pebble = Pebble {
            running: None,
            _names: names_server,
            names,
            directory,
            management,
            http,
            tls,
            dir,
            wish,
            command: run,
        };
        pebble.restart();
        Some(pebble)
    }

    /// Another one in its place, which knows nothing of its accounts and has another root.
    pub fn restart(&mut self) {
        self.running = None;
        let dir = self.dir.path();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .unwrap();
        let child = (self.command)("pebble")
            .args(["-strict", "-dnsserver", &self.names.to_string(), "-config"])
            .arg(dir.join("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running = Some(Running(child));
        wait_long("pebble", || self.curl("/dir", self.directory).is_some());
    }

    fn curl(&self, path: &str, at: SocketAddr) -> Option<String> {
        let mut curl = (self.command)("curl");
        curl.args(["-sS", "--cacert"]).arg(self.dir.path().join("ca.pem"));
        let out = curl.arg(format!("https://{at}{path}")).output().unwrap();
        out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
    }

    /// The root of the certificates that it gives.
    pub fn root(&self) -> String {
        self.curl("/roots/0", self.management).unwrap()
    }

    /// `[acme.le]`.
    pub fn config(&self, more: &str) -> String {
        let ca = self.dir.path().join("ca.pem");
        format!(
            "[acme.le]\ndirectory = '{}'\nca = '{}'\n{more}\n",
            self.directory(),
            ca.display()
        )
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.directory)
    }

    /// How often it has been asked for an account since it was started first.
    pub fn n_accounts(&self) -> usize {
        self.log().matches("accounts in memory").count()
    }

    pub fn n_orders(&self) -> usize {
        self.log().matches("orders in the db").count()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub fn life(&self) -> u32 {
        self.wish.life
    }
}

/// A node with `web`, which sends clients on to `websecure`.
pub struct Node {
    running: Option<Running>,
    pub web: SocketAddr,
    pub secure: SocketAddr,
    admin: SocketAddr,
    pub dir: tempfile::TempDir,
    root: PathBuf,
}

impl Node {
    /// `config`: beside the entry points; `tls`: of `websecure`.
    pub fn start(pebble: &Pebble, config: &str, tls: &str, services: &str) -> Node {
        Node::at(pebble.http, pebble.tls, config, tls, services, &pebble.root())
    }

    pub fn at(web: SocketAddr, secure: SocketAddr, config: &str, tls: &str, services: &str, root: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node {
            running: None,
            web,
            secure,
            admin: local(free_port()),
            root: dir.path().join("root.pem"),
            dir,
        };
        std::fs::write(&node.root, root).unwrap();
        let config = format!(
            "[entrypoints.web]\nlisten = '{web}'\nredirect = 'websecure'\n[entrypoints.websecure]\nlisten = '{secure}'\ntls = {tls}\n{config}"
        );
        std::fs::write(node.path("anynode.toml"), config).unwrap();
        node.declare(services);
        node.up();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces the services file.
    pub fn declare(&self, services: &str) {
        std::fs::write(self.path("new.yml"), services).unwrap();
        std::fs::rename(self.path("new.yml"), self.path("services.yml")).unwrap();
    }

    pub fn up(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let child = anynode(&["up", "--dns", "none", "--admin", &self.admin.to_string(), "--config"])
            .arg(self.path("anynode.toml"))
            .arg("--services")
            .arg(self.path("services.yml"))
            .arg("--data-dir")
            .arg(self.path("data"))
            .env("ANYNODE_LOG", "info")
            .env("NO_COLOR", "1")
            .stderr(log)
            .spawn()
            .unwrap();
        self.running = Some(Running(child));
        wait_long("the node", || {
            let doors = [self.web, self.secure, self.admin];
            doors.iter().all(|addr| TcpStream::connect(addr).is_ok()) && self.metric("anynode_config_revision") > 0
        });
    }

    /// Kills it.
    pub fn down(&mut self) {
        self.running = None;
    }

    pub fn has_log(&self, text: &str) -> bool {
        self.log().contains(text)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
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

    pub fn n_orders(&self, result: &str) -> u64 {
        self.metric(&format!("anynode_acme_orders_total{{acme=\"le\",result=\"{result}\"}}"))
    }

    pub fn status(&self, more: &[&str]) -> String {
        let out = anynode(&["status", "--admin", &self.admin.to_string()])
            .args(more)
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// curl, for `host` at `websecure`, believing the authority's root.
    pub fn curl(&self, host: &str) -> Output {
        let port = self.secure.port();
        Command::new("curl")
            .args([
                "-sS",
                "--max-time",
                "10",
                "--resolve",
                &format!("{host}:{port}:127.0.0.1"),
            ])
            .arg("--cacert")
            .arg(&self.root)
            .arg(format!("https://{host}:{port}/"))
            .output()
            .unwrap()
    }

    pub fn is_served(&self, host: &str) -> bool {
        self.curl(host).status.success()
    }

    /// What openssl tells of a connection for `host`.
    pub fn s_client(&self, host: &str, more: &[&str]) -> String {
        let out = Command::new("openssl")
            .args(["s_client", "-connect", &self.secure.to_string(), "-servername", host])
            .args(more)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    }

    /// The certificate that is shown for `host`, as PEM.
    pub fn shown(&self, host: &str) -> String {
        let said = self.s_client(host, &[]);
        let certificate = said.split_once("-----BEGIN CERTIFICATE-----").map(|(_, rest)| rest);
        let certificate = certificate.and_then(|rest| rest.split_once("-----END"));
        certificate.unwrap_or_else(|| panic!("{said}")).0.to_owned()
    }
}

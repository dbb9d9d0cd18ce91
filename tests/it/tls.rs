//! TLS that ends at entry points, asked by other people's clients: curl and openssl. Through the program, with its configuration.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::cli::anynode;
use crate::harness::{Origin, dial, free_port, read_head, read_to_end, wait_until};

/// Whom the tests' clients believe.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
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

    /// A certificate of these names and its key, as PEM, `days` from now on good.
    pub fn issue(&self, names: &[&str], days: i64) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        // Not for ever before today: that is a fault too.
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(1);
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A node with `web`, which sends clients to `websecure`, which ends TLS.
pub struct Node {
    child: Child,
    web: SocketAddr,
    pub secure: SocketAddr,
    admin: SocketAddr,
    pub dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// What else there is to configure; `DIR` is the node's directory.
pub struct Options<'a> {
    tls: &'a str,
    more: &'a str,
}

impl Node {
    /// `pairs`: names of files `NAME.pem` and `NAME.key`, which `write` makes in the directory first.
    pub fn start(services: &str, options: Options<'_>, pairs: &[&str], write: impl FnOnce(&Path)) -> Node {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let (web, secure, admin) = (local(free_port()), local(free_port()), local(free_port()));
        let at = dir.path().display().to_string();
        let list: Vec<String> = pairs
            .iter()
            .map(|name| format!("{{ cert = '{at}/{name}.pem', key = '{at}/{name}.key' }}"))
            .collect();
        let config = format!(
            "[entrypoints.web]\nlisten = '{web}'\nredirect = 'websecure'\n[entrypoints.websecure]\nlisten = '{secure}'\ntls = {}\n\
             [tls]\ncertificates = [{}]\n{}",
            options.tls,
            list.join(", "),
            options.more
        );
        std::fs::write(dir.path().join("anynode.toml"), config.replace("DIR", &at)).unwrap();
        std::fs::write(dir.path().join("services.yml"), services).unwrap();
        let child = Node::command(dir.path(), "up")
            .args(["--dns", "none", "--admin", &admin.to_string()])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "warn")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let node = Node {
            child,
            web,
            secure,
            admin,
            dir,
        };
        wait_until("the entry points", || {
            [web, secure, admin].iter().all(|addr| TcpStream::connect(addr).is_ok())
        });
        wait_until("the first table", || node.metric("anynode_config_revision") > 0);
        node
    }

    fn command(dir: &Path, command: &str) -> Command {
        let mut run = anynode(&[command]);
        run.arg("--config").arg(dir.join("anynode.toml"));
        run.arg("--services").arg(dir.join("services.yml"));
        run
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn admin(&self, path: &str) -> String {
        let mut stream = dial(self.admin);
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    }

    fn ready(&self) -> String {
        self.admin("/readyz")
    }

    pub fn metric(&self, series: &str) -> u64 {
        let text = self.admin("/metrics");
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    fn status(&self) -> String {
        let out = anynode(&["status", "--admin", &self.admin.to_string()])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// curl, for `host` at the entry point that ends TLS, believing `ca.pem`.
    fn curl(&self, host: &str, path: &str, more: &[&str]) -> Output {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--resolve"])
            .arg(format!("{host}:{}:127.0.0.1", self.secure.port()))
            .arg("--cacert")
            .arg(self.path("ca.pem"))
            .args(more)
            .arg(format!("https://{host}:{}{path}", self.secure.port()));
        curl.output().unwrap()
    }

    pub fn body(&self, host: &str, path: &str, more: &[&str]) -> String {
        let out = self.curl(host, path, more);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
        said
    }

    /// What openssl tells of a connection for `host` on which a request is sent.
    fn s_client(&self, host: &str, more: &[&str]) -> String {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &self.secure.to_string(), "-servername", host])
            .arg("-CAfile")
            .arg(self.path("ca.pem"))
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        // An error means that it has ended already, and what it said tells why. Its input stays open: at its end openssl goes.
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(request.as_bytes());
        let out = child.wait_with_output().unwrap();
        drop(stdin);
        format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
    }
}

/// An endpoint that answers with what it was asked.
pub fn mirror() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn services(origin: &Origin) -> String {
    format!(
        "services:\n  all:\n    endpoints: [\"{}\"]\n    route: PathPrefix(`/`)\n",
        origin.addr
    )
}

pub fn write_pair(dir: &Path, name: &str, (certificate, key): &(String, String)) {
    std::fs::write(dir.join(format!("{name}.pem")), certificate).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), key).unwrap();
}

pub const ON: Options<'_> = Options { tls: "true", more: "" };

#[test]
fn who_asks_by_https_is_answered_with_the_certificate_of_the_host() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let node = Node::start(&services(&origin), ON, &["a", "b"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test", "127.0.0.1"], 5));
        write_pair(dir, "b", &authority.issue(&["*.b.test"], 90));
    });
    for version in [&["--tlsv1.3"][..], &["--tls-max", "1.2"]] {
        for host in ["a.test", "x.b.test"] {
            let head = node.body(host, "/x?y", version);
            for field in [
                "GET /x?y HTTP/1.1".to_owned(),
                format!("host: {host}:{}", node.secure.port()),
                "X-Forwarded-Proto: https".to_owned(),
                format!("X-Forwarded-Port: {}", node.secure.port()),
            ] {
                assert!(head.contains(&field), "{field} in {head}");
            }
            assert!(head.contains(";proto=https\r\n"), "{head}");
        }
        // Whoever names no host that there is one for is shown the first.
        let stranger = node.curl("y.x.b.test", "/", version);
        assert!(!stranger.status.success());
        assert!(
            String::from_utf8_lossy(&stranger.stderr).contains("no alternative certificate subject name matches"),
            "{stranger:?}"
        );
    }
    let by_address = node.body("127.0.0.1", "/", &[]);
    assert!(by_address.contains("X-Forwarded-Proto: https"));
    // In absolute form, as to a proxy.
    let absolute = node.body("a.test", "/", &["--http1.1", "--request-target", "https://a.test/abs"]);
    assert!(absolute.starts_with("GET /abs HTTP/1.1"), "{absolute}");
    assert!(
        node.s_client("a.test", &["-alpn", "h2,http/1.1"])
            .contains("ALPN protocol: h2")
    );
    // One that expires soon is told apart.
    let status = node.status();
    let soon = format!("! certificate {} expires at ", node.path("a.pem").display());
    assert!(status.contains(&soon) && !status.contains("b.pem expires"), "{status}");
    let shown = format!("certificate {} until ", node.path("b.pem").display());
    assert!(status.contains(&shown) && status.contains(": *.b.test\n"), "{status}");
    assert!(node.metric("anynode_tls_handshakes_total{entrypoint=\"websecure\",result=\"full\"}") >= 5);
    let file = format!(
        "anynode_tls_certificate_not_after_seconds{{file=\"{}\"}}",
        node.path("a.pem").display()
    );
    let left = node.metric(&file) - std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!((4 * 86_400..=5 * 86_400).contains(&left), "{left}");
}

#[test]
fn who_asks_without_tls_is_sent_where_it_is_spoken() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let node = Node::start(&services(&origin), ON, &["a"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    let answer = |addr: SocketAddr, request: &str| {
        let mut stream = dial(addr);
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    };
    let port = node.secure.port();
    for (request, status, location) in [
        (
            "GET /a/b?c=d HTTP/1.1\r\nHost: A.test:80\r\n",
            301,
            format!("https://a.test:{port}/a/b?c=d"),
        ),
        (
            "HEAD http://a.test HTTP/1.1\r\nHost: b.test\r\n",
            301,
            format!("https://a.test:{port}/"),
        ),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n",
            308,
            format!("https://a.test:{port}/"),
        ),
        ("GET / HTTP/1.0\r\n", 301, format!("https://127.0.0.1:{port}/")),
        (
            "GET / HTTP/1.1\r\nHost: [::1]:80\r\n",
            301,
            format!("https://[::1]:{port}/"),
        ),
    ] {
        let answer = answer(node.web, &format!("{request}Connection: close\r\n\r\n"));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        assert!(
            answer.contains(&format!("\r\nLocation: {location}\r\n")),
            "{request}: {answer}"
        );
    }
    // The connection goes on.
    let both = answer(
        node.web,
        "GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
    );
    assert!(both.contains("/1\r\n") && both.contains("/2\r\n"), "{both}");
    // Followed by a client that knows what it means.
    let followed = Command::new("curl")
        .args(["-sSL", "--max-time", "20", "--cacert"])
        .arg(node.path("ca.pem"))
        .args(["--resolve", &format!("a.test:{}:127.0.0.1", node.web.port())])
        .args(["--resolve", &format!("a.test:{port}:127.0.0.1")])
        .arg(format!("http://a.test:{}/x", node.web.port()))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&followed.stdout).starts_with("GET /x "),
        "{followed:?}"
    );
    let plain = answer(node.secure, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert!(plain.starts_with("HTTP/1.1 400 ") && plain.contains("https"), "{plain}");
    // What is neither gets an alert, and no answer.
    let noise = answer(node.secure, "\u{1}\u{2}\u{3}noise that is no record of TLS");
    assert!(!noise.contains("HTTP"), "{noise}");
    wait_until("two refused", || {
        let closed = "anynode_entrypoint_connections_closed_total{entrypoint=\"websecure\",reason=\"tls_handshake\"}";
        let refused = "anynode_tls_handshakes_total{entrypoint=\"websecure\",result=\"refused\"}";
        [closed, refused].iter().all(|series| node.metric(series) == 2)
    });
}

/// The first certificate in a text, line by line.
fn first_pem(text: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| !line.contains("BEGIN CERTIFICATE"));
    let lines = lines.take_while(|line| !line.contains("END CERTIFICATE"));
    lines.map(|line| line.trim().to_owned()).collect()
}

/// Says that it is over, however it ends.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn certificates_are_taken_up_within_a_second_while_requests_go_on() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let node = Node::start(&services(&origin), ON, &["a"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    let is_over = AtomicBool::new(false);
    let (n_answers, n_failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let out = node.curl("a.test", "/", &[]);
                    n_answers.fetch_add(1, Ordering::SeqCst);
                    if !out.status.success() {
                        n_failed.fetch_add(1, Ordering::SeqCst);
                        eprintln!("{out:?}");
                    }
                }
            });
        }
        let _over = Over(&is_over);
        let shown = || first_pem(&node.s_client("a.test", &[]));
        let mut longest = Duration::ZERO;
        for i in 0..6 {
            let next = authority.issue(&["a.test"], 91 + i);
            // As ACME clients do, one file after the other; and once in place.
            let written = Instant::now();
            match i % 2 {
                0 => write_pair(node.dir.path(), "a", &next),
                _ => {
                    write_pair(node.dir.path(), "next", &next);
                    std::fs::rename(node.path("next.key"), node.path("a.key")).unwrap();
                    std::fs::rename(node.path("next.pem"), node.path("a.pem")).unwrap();
                }
            }
            wait_until("the new certificate", || shown() == first_pem(&next.0));
            longest = longest.max(written.elapsed());
        }
        println!("taken up within {longest:?}");
        // Damage leaves what was.
        std::fs::write(node.path("a.key"), "no key").unwrap();
        wait_until("the fault", || node.status().contains("! tls.certificates: key = "));
        let ready = node.ready();
        assert!(
            ready.starts_with("HTTP/1.1 200 ") && ready.contains("tls.certificates: key = "),
            "{ready}"
        );
        assert_eq!(
            node.metric(&format!(
                "anynode_tls_certificate_faulty{{file=\"{}\"}}",
                node.path("a.pem").display()
            )),
            1
        );
        node.body("a.test", "/", &[]);
        write_pair(node.dir.path(), "a", &authority.issue(&["a.test", "later.test"], 99));
        wait_until("the repair", || node.curl("later.test", "/", &[]).status.success());
        assert!(!node.status().contains("! tls"), "{}", node.status());
    });
    let (n_answers, n_failed) = (n_answers.into_inner(), n_failed.into_inner());
    println!("{n_answers} answers");
    assert_eq!(n_failed, 0, "of {n_answers}");
    assert!(n_answers > 20);
}

#[test]
fn an_entry_point_asks_what_it_is_told_to_ask() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let clients = Authority::new("clients");
    let write = |dir: &Path| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        std::fs::write(dir.join("clients.pem"), &clients.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
        write_pair(dir, "good", &clients.issue(&["client"], 9));
        write_pair(dir, "other", &authority.issue(&["client"], 9));
    };
    let is_served = |node: &Node, host: &str, more: &[&str]| node.curl(host, "/", more).status.success();
    let newest = Options {
        tls: "{ min_version = '1.3', strict = true }",
        more: "",
    };
    let node = Node::start(&services(&origin), newest, &["a"], write);
    assert!(is_served(&node, "a.test", &[]));
    assert!(!is_served(&node, "a.test", &["--tls-max", "1.2"]));
    assert!(!is_served(&node, "b.test", &["-k"]), "no certificate is for it");
    drop(node);

    let of = |node: &Node, name: &str| {
        [format!("{name}.pem"), format!("{name}.key")].map(|file| node.path(&file).display().to_string())
    };
    for (client_auth, nobody) in [("required", false), ("optional", true)] {
        let options = format!("{{ client_ca = 'DIR/clients.pem', client_auth = '{client_auth}' }}");
        let options = Options {
            tls: &options,
            more: "",
        };
        let node = Node::start(&services(&origin), options, &["a"], write);
        let ([good, good_key], [other, other_key]) = (of(&node, "good"), of(&node, "other"));
        let with = |certificate: &str, key: &str| is_served(&node, "a.test", &["--cert", certificate, "--key", key]);
        assert_eq!(is_served(&node, "a.test", &[]), nobody, "{client_auth}");
        assert!(with(&good, &good_key), "{client_auth}");
        assert!(!with(&other, &other_key), "{client_auth}");
        // Authorities are taken up as certificates are; what is no authority leaves those that were.
        std::fs::write(node.path("clients.pem"), &authority.pem).unwrap();
        wait_until("the other authority", || with(&other, &other_key));
        assert!(!with(&good, &good_key), "{client_auth}");
        std::fs::write(node.path("clients.pem"), "nobody").unwrap();
        wait_until("the fault", || {
            node.status()
                .contains("! entry point websecure: entrypoints.websecure.tls.client_ca = ")
        });
        assert!(with(&other, &other_key), "{client_auth}");
    }
}

/// A scanner finds fault with a server that lets its clients choose, and a client that names a costly one first need not have it.
#[test]
fn which_cipher_is_spoken_is_not_the_clients_to_say() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let node = Node::start(&services(&origin), ON, &["a"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    let spoken = |more: &[&str]| {
        let said = node.s_client("a.test", more);
        let line = said
            .lines()
            .find(|line| line.starts_with("New, TLSv1."))
            .map(str::to_owned);
        line.unwrap_or_else(|| panic!("{said}"))
    };
    let (small, large, other) = (
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    );
    for (offered, expected) in [
        (format!("{other}:{large}:{small}"), small),
        (format!("{small}:{large}:{other}"), small),
        (format!("{other}:{large}"), large),
        (other.to_owned(), other),
    ] {
        let said = spoken(&["-tls1_3", "-ciphersuites", &offered]);
        assert!(said.ends_with(&format!("Cipher is {expected}")), "{offered}: {said}");
    }
    let (small, large) = ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384");
    for offered in [format!("{large}:{small}"), format!("{small}:{large}")] {
        let said = spoken(&["-tls1_2", "-cipher", &offered]);
        assert!(said.ends_with(&format!("Cipher is {small}")), "{offered}: {said}");
    }
}

/// Everything that testssl.sh has to say of it: minutes. `cargo test --test it -- tls::what_testssl --ignored --nocapture`.
#[test]
#[ignore = "takes two minutes, and testssl.sh"]
fn what_testssl_finds_is_no_fault_of_ours() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let services = services(&origin)
        + "    response_headers: { Strict-Transport-Security: \"max-age=31536000\", X-Frame-Options: DENY, \
           X-Content-Type-Options: nosniff, Content-Security-Policy: \"default-src 'self'\" }\n";
    let node = Node::start(&services, ON, &["a"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    let mut command = Command::new("testssl");
    command.arg("--ip=127.0.0.1");
    let host = format!("a.test:{}", node.secure.port());
    let n = testssl(&mut command, &node.path("ca.pem"), &node.path("found.json"), &host);
    println!("{n} findings");
}

/// Has testssl.sh, by that command, look at a host and write to `found`. How many findings there are.
///
/// Panics: one is above low.
pub fn testssl(command: &mut Command, ca: &Path, found: &Path, host: &str) -> usize {
    let out = command
        .args(["--quiet", "--color", "0", "--warnings", "batch", "--add-ca"])
        .arg(ca)
        .arg("--jsonfile")
        .arg(found)
        .arg(host)
        .current_dir(found.parent().unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = std::fs::read_to_string(found).unwrap_or_else(|_| panic!("{out:?}"));
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let word = |one: &serde_json::Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    // Its own checks fail at times (WARN): its openssl may be gone before a ticket has come. And nobody can revoke what a test's own authority has issued.
    let is_ours = |one: &&serde_json::Value| {
        let is_grave = ["MEDIUM", "HIGH", "CRITICAL", "FATAL"].contains(&&*word(one, "severity"));
        is_grave && word(one, "id") != "cert_revocation"
    };
    let faults: Vec<String> = all.iter().filter(is_ours).map(ToString::to_string).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    assert!(all.len() > 100, "{text}");
    all.len()
}

#[test]
fn a_session_goes_on_at_another_node_and_at_no_other_policy() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let pair = authority.issue(&["a.test"], 90);
    let write = |dir: &Path| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &pair);
        std::fs::write(dir.join("tickets"), [7; 32]).unwrap();
    };
    let shared = "ticket_key_file = 'DIR/tickets'";
    let start = |tls, more| Node::start(&services(&origin), Options { tls, more }, &["a"], write);
    let (one, other) = (start("true", shared), start("true", shared));
    let (alone, asking) = (
        start("true", ""),
        start("{ client_ca = 'DIR/ca.pem', client_auth = 'optional' }", shared),
    );
    let session = one.path("session").display().to_string();
    for version in ["-tls1_3", "-tls1_2"] {
        let first = one.s_client("a.test", &[version, "-sess_out", &session]);
        assert!(
            first.contains("New, TLSv1") && first.contains("HTTP/1.1 200 OK"),
            "{first}"
        );
        for (node, is_resumed) in [(&one, true), (&other, true), (&alone, false), (&asking, false)] {
            let next = node.s_client("a.test", &[version, "-sess_in", &session]);
            assert_eq!(next.contains("Reused, TLSv1"), is_resumed, "{version} {next}");
            assert!(next.contains("HTTP/1.1 200 OK"), "{version} {next}");
        }
        // A ticket is for the host that it was given to.
        let elsewhere = one.s_client("b.test", &[version, "-sess_in", &session]);
        assert!(!elsewhere.contains("Reused, TLSv1"), "{version} {elsewhere}");
    }
    assert!(other.metric("anynode_tls_handshakes_total{entrypoint=\"websecure\",result=\"resumed\"}") == 2);
}

/// Answers a request with as many bytes as its path says, or with the digest of its body.
fn bulk() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")
                    .map(str::to_owned)
            });
            let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
            if stream.read_exact(&mut body).is_err() {
                return;
            }
            let n = head
                .split(' ')
                .nth(1)
                .and_then(|path| path[1..].parse().ok())
                .unwrap_or(0);
            let answer = match n {
                0 => digest(&body).into_bytes(),
                n => noise(n),
            };
            let begin = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
            if stream
                .write_all(begin.as_bytes())
                .and_then(|()| stream.write_all(&answer))
                .is_err()
            {
                return;
            }
        }
    })
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Bytes that no two places share.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..n).map(step).collect()
}

#[test]
fn bodies_of_any_length_pass_both_ways() {
    let (origin, authority) = (bulk(), Authority::new("tests"));
    let node = Node::start(&services(&origin), ON, &["a"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    for n in [1, 100, 16_383, 16_384, 16_385, 65_536, 1 << 20, 48 << 20] {
        let bytes = noise(n);
        std::fs::write(node.path("up"), &bytes).unwrap();
        let upload = format!("@{}", node.path("up").display());
        let version: &[&str] = if n % 2 == 1 { &["--tls-max", "1.2"] } else { &[] };
        let more = [version, &["--data-binary", &upload, "-H", "Expect:"]].concat();
        assert_eq!(node.body("a.test", "/0", &more), digest(&bytes), "{n} bytes up");
        let down = node.curl("a.test", &format!("/{n}"), version);
        assert_eq!(digest(&down.stdout), digest(&bytes), "{n} bytes down");
    }
    // One that takes its time over what it is sent.
    let slow = node.curl("a.test", &format!("/{}", 3 << 20), &["--limit-rate", "2M"]);
    assert_eq!(digest(&slow.stdout), digest(&noise(3 << 20)));
    // Many requests on one connection.
    let path = format!("https://a.test:{}/[1000-1200]", node.secure.port());
    let many = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert"])
        .arg(node.path("ca.pem"))
        .args([
            "--resolve",
            &format!("a.test:{}:127.0.0.1", node.secure.port()),
            "-w",
            "%{num_connects}\n",
            "-o",
            "/dev/null",
        ])
        .arg(path)
        .output()
        .unwrap();
    let connects: Vec<u32> = String::from_utf8_lossy(&many.stdout)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!((connects.len(), connects.iter().sum::<u32>()), (201, 1), "{many:?}");
}

#[test]
fn a_protocol_that_is_agreed_on_passes_inside_tls_with_its_halves() {
    let origin = Origin::start(|mut stream| {
        let Some(_) = read_head(&mut stream) else { return };
        let _ =
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello ");
        // Answered once the client's half has ended.
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        let _ = stream.write_all(&said);
    });
    let authority = Authority::new("tests");
    let node = Node::start(&services(&origin), ON, &["a"], |dir| {
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    let (mut tls, mut socket) = client(node.secure, &authority);
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        .unwrap();
    let mut byte = [0];
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello ") {
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    let said = noise(300_000);
    stream.write_all(&said).unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    let mut back = Vec::new();
    // Its end is said by TLS itself: rustls has it for an error where it is not.
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(digest(&back), digest(&said));
}

/// A client that believes `authority`, over a connection of its own.
fn client(addr: SocketAddr, authority: &Authority) -> (rustls::ClientConnection, TcpStream) {
    let mut roots = rustls::RootCertStore::empty();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(authority.pem.as_bytes()).unwrap();
    roots.add(der).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    let name = "a.test".try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut socket = dial(addr);
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).unwrap();
    }
    (tls, socket)
}

/// Seals a record of any kind, as nobody's library would.
fn seal(tls: rustls::ClientConnection, records: &[(u8, &[u8])]) -> Vec<u8> {
    use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let (first, secrets) = tls.dangerous_extract_secrets().unwrap().tx;
    let rustls::ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
        panic!("another cipher");
    };
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
    let mut sealed = Vec::new();
    for ((kind, content), number) in records.iter().zip(first..) {
        let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
        nonce[4..]
            .iter_mut()
            .zip(number.to_be_bytes())
            .for_each(|(to, byte)| *to ^= byte);
        let mut inner = [content, &[*kind][..]].concat();
        let length = (inner.len() as u16 + 16).to_be_bytes();
        let head = [23, 3, 3, length[0], length[1]];
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head), &mut inner)
            .unwrap();
        sealed.extend_from_slice(&head);
        sealed.extend_from_slice(&inner);
    }
    sealed
}

#[test]
fn whatever_is_said_instead_of_tls_is_nobody_elses_affair() {
    let (origin, authority) = (mirror(), Authority::new("tests"));
    let node = Node::start(&services(&origin), ON, &["a"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    // A part of a message, and then what cannot follow it, or the end.
    let part = [22, 3, 1, 0, 1, 1];
    for after in [
        &[23, 3, 3, 0, 1, 0][..],
        &[99, 3, 3, 0, 1, 0],
        &[21, 3, 3, 0, 2, 1, 0],
        &[21, 3, 3, 0, 2, 2, 40],
        &[22, 3, 3, 0xff, 0xff],
        &[],
    ] {
        let mut stream = dial(node.secure);
        let _ = stream.write_all(&[&part, after].concat());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!said.windows(4).any(|bytes| bytes == b"HTTP"), "{said:?}");
    }
    // The same inside: a request, and a part of a message that never becomes whole.
    let request = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for records in [
        &[(23, &request[..]), (22, &[24])][..],
        &[(22, &[24])],
        &[(22, &[24]), (23, request)],
        &[(23, request), (22, &[24]), (21, &[1, 0])],
        &[(23, request), (20, &[1])],
        &[(99, b"?")],
    ] {
        let (tls, mut socket) = client(node.secure, &authority);
        let _ = socket.write_all(&seal(tls, records));
        let mut some = [0; 64];
        if let Some((23, _)) = records.first() {
            assert!(
                socket.read(&mut some).unwrap() > 0,
                "the request before it was answered"
            );
        }
        let _ = socket.shutdown(std::net::Shutdown::Both);
        drop(socket);
        node.body("a.test", "/", &[]);
    }
    node.body("a.test", "/", &[]);
}

#[test]
fn what_is_wrong_with_the_configuration_is_said_by_key() {
    let authority = Authority::new("tests");
    let dir = tempfile::tempdir().unwrap();
    write_pair(dir.path(), "a", &authority.issue(&["a.test"], 90));
    write_pair(dir.path(), "b", &authority.issue(&["b.test"], 90));
    write_pair(dir.path(), "old", &authority.issue(&["b.test"], -1));
    std::fs::write(dir.path().join("short"), "short").unwrap();
    let command = |config: &str| {
        std::fs::write(dir.path().join("anynode.toml"), config).unwrap();
        let mut run = anynode(&["check"]);
        run.arg("--config").arg(dir.path().join("anynode.toml"));
        run
    };
    let check = |config: &str| {
        let at = dir.path().display().to_string();
        let out = command(&config.replace("DIR", &at)).output().unwrap();
        assert_eq!(out.status.code(), Some(64), "{config}: {out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let secure = "[entrypoints.s]\nlisten = ':443'\ntls = true\n";
    let pair = "[tls]\ncertificates = [{ cert = 'DIR/a.pem', key = 'DIR/a.key' }]\n";
    for (config, expected) in [
        (
            format!("services = 's.yml'\n{secure}"),
            "tls.certificates = []: expected a certificate at least",
        ),
        (
            format!("api = {{ socket = 'none' }}\n{secure}"),
            "tls.certificates = []: expected a certificate at least",
        ),
        (
            format!("swarm = {{ enabled = true }}\n{secure}"),
            "tls.certificates = []: expected a certificate at least",
        ),
        (
            format!("{secure}[tls]\ncertificates = ['a.pem']\n"),
            "tls.certificates = [\"a.pem\"]: expected a list of pairs",
        ),
        (
            format!("{secure}[tls]\ncertificates = [{{ cert = 'a', key = 'b', x = 'c' }}]\n"),
            "expected a list of pairs",
        ),
        (
            format!("{secure}{pair}min_version = '1.1'\n"),
            "tls.min_version = \"1.1\": expected \"1.2\" or \"1.3\"",
        ),
        (
            format!("{secure}{pair}ticket_key_file = 'DIR/short'\n"),
            "/short\": expected at least 32 random bytes",
        ),
        (
            format!("{secure}[tls]\ncertificates = [{{ cert = 'DIR/a.pem', key = 'DIR/b.key' }}]\n"),
            "/b.key\": the key is not the certificate's",
        ),
        (
            format!("{secure}[tls]\ncertificates = [{{ cert = 'DIR/a.key', key = 'DIR/a.key' }}]\n"),
            "/a.key\": expected a certificate in PEM",
        ),
        (
            format!("{secure}[tls]\ncertificates = [{{ cert = 'DIR/none.pem', key = 'DIR/a.key' }}]\n"),
            "/none.pem\": No such file",
        ),
        (
            format!("[entrypoints.s]\nlisten = ':443'\ntls = 'on'\n{pair}"),
            "entrypoints.s.tls = \"on\": expected true, false, or a table",
        ),
        (
            format!("[entrypoints.s]\nlisten = ':443'\ntls = {{ min = '1.2' }}\n{pair}"),
            "entrypoints.s.tls.min = \"1.2\": expected no such key: there is min_version",
        ),
        (
            format!("[entrypoints.s]\nlisten = ':443'\ntls = {{ client_auth = 'required' }}\n{pair}"),
            "entrypoints.s.tls.client_auth = \"required\": expected client_ca",
        ),
        (
            format!("[entrypoints.s]\nlisten = ':443'\ntls = {{ client_ca = 'DIR/short' }}\n{pair}"),
            "entrypoints.s.tls.client_ca = ",
        ),
        (
            format!("{secure}[tls]\ncertificates = [{{ cert = 'DIR/old.pem', key = 'DIR/old.key' }}]\n"),
            "/old.pem has expired",
        ),
        (
            format!("[entrypoints.w]\nlisten = ':80'\nredirect = 'w'\n{secure}{pair}"),
            "entrypoints.w.redirect = \"w\": expected the name of another entry point with tls",
        ),
        (
            format!("[entrypoints.w]\nlisten = ':80'\nredirect = 'x'\n{secure}{pair}"),
            "entrypoints.w.redirect = \"x\": expected",
        ),
        (
            format!("[entrypoints.w]\nlisten = ':80'\n[entrypoints.v]\nlisten = ':81'\nredirect = 'w'\n{secure}{pair}"),
            "entrypoints.v.redirect = \"w\": expected",
        ),
    ] {
        let said = check(&config);
        assert!(said.contains(expected), "{expected}\nin\n{said}");
    }
    let at = dir.path().display().to_string();
    let out = command("")
        .env(
            "ANYNODE_ENTRYPOINTS",
            "{ web = { listen = ':80', redirect = 's' }, s = { listen = ':443', tls = true } }",
        )
        .env(
            "ANYNODE_TLS_CERTIFICATES",
            format!("[{{ cert = '{at}/a.pem', key = '{at}/a.key' }}]"),
        )
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    // A swarm by itself may be told of certificates while it runs.
    let out = command(secure).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

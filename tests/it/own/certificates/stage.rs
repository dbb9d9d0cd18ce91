//! A swarm by itself whose TLS has no certificate of a file, and clients that ask it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::own::rig::{self, LONG, Own, Tasks};
use crate::tls::Authority;

pub const LABEL: &str = "anynode.certificate=true";
pub const SOON: Duration = Duration::from_secs(1);

/// A swarm with an entry point that ends TLS, no certificate, and a service that has all requests.
pub struct Stage {
    pub own: Own,
    pub authority: Authority,
}

pub fn stage(name: &str, init: &[&str]) -> Option<(Stage, String)> {
    let entry_points = "{ web = { listen = ':80' }, websecure = { listen = ':443', tls = true } }";
    stage_with(name, init, entry_points)
}

/// With these entry points.
pub fn stage_with(name: &str, init: &[&str], entry_points: &'static str) -> Option<(Stage, String)> {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: this needs openssl");
        return None;
    }
    let mut own = rig::up(name, Tasks::Processes)?;
    own.env.push(("ANYNODE_ENTRYPOINTS", entry_points));
    own.start();
    let said = own.docker(&[&["swarm", "init"], init].concat());
    let authority = Authority::new("tests");
    std::fs::write(own.dir().join("ca.pem"), &authority.pem).unwrap();
    own.docker(&[
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--label",
        "anynode.route=PathPrefix(`/`)",
        "--label",
        "anynode.port=8080",
        "anynode/whoami",
    ]);
    own.wait_for("the service", LONG, || own.curl("http://127.0.0.1/").is_some());
    Some((Stage { own, authority }, said))
}

impl Stage {
    pub fn create_out(&self, kind: &str, name: &str, labels: &[&str], data: &str) -> Output {
        let mut args = vec![kind, "create"];
        labels.iter().for_each(|label| args.extend(["--label", label]));
        args.extend([name, "-"]);
        let mut command = self.own.docker_command(&args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(data.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// With the label. Answers its id.
    pub fn create(&self, kind: &str, name: &str, data: &str) -> String {
        let out = self.create_out(kind, name, &[LABEL], data);
        assert!(out.status.success(), "{out:?}\n{}", self.own.log_tail());
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    pub fn refuses(&self, kind: &str, labels: &[&str], data: &str) -> String {
        let out = self.create_out(kind, "refused", labels, data);
        assert!(!out.status.success(), "{out:?}");
        let said = String::from_utf8(out.stderr).unwrap();
        said.trim()
            .trim_start_matches("Error response from daemon: ")
            .to_owned()
    }

    /// The certificate that is shown for that host, without lines and ends.
    pub fn shown(&self, host: &str) -> Option<String> {
        let out = self
            .own
            .inside("openssl")
            .args(["s_client", "-connect", "127.0.0.1:443", "-servername", host])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let from = text.find("-----BEGIN CERTIFICATE-----")?;
        let to = text[from..].find("-----END")? + from;
        Some(body(&text[from..to]))
    }

    /// Within a second of what was done last that one is shown; `None`: none at all.
    pub fn shows_soon(&self, host: &str, certificate: Option<&str>) {
        let started = Instant::now();
        let certificate = certificate.map(body);
        while self.shown(host) != certificate {
            assert!(
                started.elapsed() < SOON,
                "{host} {certificate:?}\n{}",
                self.own.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a client that believes the authority is answered.
    pub fn is_served(&self, host: &str) -> bool {
        let out = self
            .own
            .inside("curl")
            .args(["-sS", "-f", "-m", "10", "--resolve", &format!("{host}:443:127.0.0.1")])
            .arg("--cacert")
            .arg(self.own.dir().join("ca.pem"))
            .arg(format!("https://{host}/"))
            .output()
            .unwrap();
        out.status.success()
    }

    pub fn ready(&self) -> String {
        self.own.curl("http://localhost:9377/readyz").unwrap()
    }

    pub fn status(&self) -> String {
        self.own.anynode(&["status"])
    }

    pub fn metric(&self, series: &str) -> Option<String> {
        let all = self.own.curl("http://localhost:9377/metrics").unwrap();
        let line = all.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
        line.map(str::to_owned)
    }

    pub fn remove(&self, kind: &str, name: &str) {
        self.own.docker(&[kind, "rm", name]);
    }

    /// `POST`, and what is answered: the status, and the message.
    pub fn post(&self, path: &str, body: &Value) -> (String, String) {
        let out = self
            .own
            .inside("curl")
            .args(["-s", "-w", "\n%{http_code}", "--unix-socket"])
            .arg(self.own.socket())
            .args(["-H", "Content-Type: application/json", "-d", &body.to_string()])
            .arg(format!("http://localhost{path}"))
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let (said, status) = text.rsplit_once('\n').unwrap();
        let message = serde_json::from_str::<Value>(said)
            .ok()
            .and_then(|said| Some(said["message"].as_str()?.to_owned()));
        (status.to_owned(), message.unwrap_or_default())
    }

    /// Puts labels in the place of those of a secret or config, as only the API can.
    pub fn relabel(&self, kind: &str, name: &str, labels: Value) -> (String, String) {
        let inspect = |format: &str| self.own.docker(&[kind, "inspect", "-f", format, name]);
        let (id, version) = (inspect("{{.ID}}"), inspect("{{.Version.Index}}"));
        let path = format!("/{kind}s/{id}/update?version={version}");
        self.post(&path, &json!({ "Name": name, "Labels": labels }))
    }

    pub fn load(&self, host: &str) -> Load {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/own/certificates/load.py");
        let mut command = self.own.inside("python3");
        command.arg(script).arg(self.own.dir().join("ca.pem"));
        command.args([host, "443"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut begun = String::new();
        said.read_line(&mut begun).unwrap();
        assert_eq!(begun, "begun\n");
        Load { child, said }
    }
}

/// Clients that ask until they are told to end.
pub struct Load {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Load {
    /// Has it end, and answers what it says; nothing has failed.
    pub fn end(self, own: &Own) -> Value {
        let said = self.cut_off();
        assert_eq!(said["failed"], json!([]), "{said}\n{}", own.log_tail());
        said
    }

    /// The same where some were cut off.
    pub fn cut_off(mut self) -> Value {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        self.child.wait().unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        let asked = |what: &str| said[what].as_u64().unwrap();
        assert!(asked("new") > 20 && asked("kept") > 20, "{said}");
        said
    }
}

/// What stands in the first section, without lines and ends.
fn body(pem: &str) -> String {
    let lines = pem.lines().skip(1).take_while(|line| !line.starts_with("-----"));
    lines.map(str::trim).collect()
}

pub fn bundle((certificate, key): &(String, String)) -> String {
    format!("{certificate}{key}")
}

//! A real Docker Engine in Swarm mode and anynode's own swarm, side by side: the same request to both, and what differs in
//! the answers and in what is there afterwards.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::table::Table;
use crate::api::rig::{LONG, Reply, Rig};

/// Images that nobody has, of a registry that refuses at once.
pub const IMAGE: &str = "127.0.0.1:1/demo:1";

/// A request, written once for both: `<id:services:web>` and `<version:services:web>` stand for what each has there.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub body: Option<String>,
    pub headers: &'static str,
}

impl Ask {
    pub fn get(path: impl Into<String>) -> Ask {
        Ask::of("GET", path, None)
    }

    pub fn post(path: impl Into<String>, body: &Value) -> Ask {
        Ask::of("POST", path, Some(body.to_string()))
    }

    /// A body that need be no JSON.
    pub fn raw(path: impl Into<String>, body: impl Into<String>) -> Ask {
        Ask::of("POST", path, Some(body.into()))
    }

    pub fn delete(path: impl Into<String>) -> Ask {
        Ask::of("DELETE", path, None)
    }

    pub fn of(method: &'static str, path: impl Into<String>, body: Option<String>) -> Ask {
        Ask {
            method,
            path: path.into(),
            body,
            headers: "Content-Type: application/json\r\n",
        }
    }
}

/// One of the two.
pub struct Side {
    name: &'static str,
    socket: PathBuf,
}

impl Side {
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// As `docker -H` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    pub fn ask(&self, method: &str, path: &str, body: Option<&str>, headers: &str) -> Reply {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let body = body.unwrap_or_default();
        let headers = if body.is_empty() { "" } else { headers };
        let head = format!(
            "{method} /v1.41{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        match all.is_empty() {
            false => Reply::parse(&all),
            // As when Go's handler of a request panics.
            true => Reply {
                status: 0,
                headers: BTreeMap::new(),
                body: Vec::new(),
            },
        }
    }

    pub fn get(&self, path: &str) -> Value {
        let reply = self.ask("GET", path, None, "");
        serde_json::from_slice(&reply.body).unwrap_or_default()
    }

    /// What must succeed.
    fn done(&self, method: &str, path: &str, body: Option<&Value>) {
        let body = body.map(Value::to_string);
        let reply = self.ask(method, path, body.as_deref(), "Content-Type: application/json\r\n");
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(
            reply.status < 300,
            "{}: {method} {path}: {} {text}",
            self.name,
            reply.status
        );
    }

    fn all(&self, kind: &str) -> Vec<Value> {
        let path = match kind {
            "networks" => "/networks?filters=%7B%22scope%22:%5B%22swarm%22%5D%7D".to_owned(),
            kind => format!("/{kind}"),
        };
        let all = self.get(&path);
        let mut all = all.as_array().cloned().unwrap_or_default();
        all.sort_by_key(name_of);
        all
    }

    /// `<id:KIND:NAME>` and `<version:KIND:NAME>` filled in.
    fn filled(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('<') {
            out.push_str(before);
            let Some((inner, after)) = after.split_once('>') else {
                out.push('<');
                rest = after;
                continue;
            };
            let words: Vec<&str> = inner.split(':').collect();
            match words.as_slice() {
                ["version", "swarm", _] => out.push_str(&self.get("/swarm")["Version"]["Index"].to_string()),
                [what @ ("id" | "version"), kind, name] => {
                    let found = self.all(kind);
                    let found = found.iter().find(|object| name_of(object) == *name || *name == "self");
                    let found = found.unwrap_or_else(|| panic!("{}: no {kind} {name}", self.name));
                    match *what {
                        "id" => out.push_str(id_of(found)),
                        _ => out.push_str(&found["Version"]["Index"].to_string()),
                    }
                }
                _ => {
                    out.push('<');
                    out.push_str(inner);
                    out.push('>');
                }
            }
            rest = after;
        }
        out + rest
    }

    /// All that is there, for people to compare: what must differ is taken out.
    fn state(&self) -> Value {
        let all: Vec<(&str, Vec<Value>)> = KINDS.into_iter().map(|kind| (kind, self.all(kind))).collect();
        let name_of = |kind: &str, object: &Value| match kind {
            "nodes" => "self".to_owned(),
            _ => name_of(object),
        };
        let objects = all
            .iter()
            .flat_map(|(kind, all)| all.iter().map(move |object| (kind, object)));
        let ids =
            objects.map(|(kind, object)| (id_of(object).to_owned(), format!("<{kind}:{}>", name_of(kind, object))));
        let ids = ids.collect();
        let mut state = json!({ "swarm": normal(&self.get("/swarm"), &ids, "") });
        for (kind, all) in &all {
            for object in all {
                let name = name_of(kind, object);
                state[kind][&name] = normal(object, &ids, "");
                // Of most only what was said to it changes.
                if *kind == "services" {
                    let shown = self.get(&format!("/services/{}?insertDefaults=true", id_of(object)));
                    state[kind][&name]["WithDefaults"] = normal(&shown["Spec"], &ids, "");
                }
            }
        }
        state
    }

    /// Takes away what a request may have left, and makes anew what is not as it was.
    fn furnish(&self) {
        for kind in ["services", "networks", "configs", "secrets"] {
            for object in self.all(kind) {
                let kept = furniture()
                    .into_iter()
                    .find(|(of, _)| *of == kind)
                    .map(|(_, spec)| spec)
                    .unwrap_or_default();
                let labels = object["Spec"]["Labels"]
                    .as_object()
                    .or_else(|| object["Labels"].as_object());
                let is_kept = name_of(&object) == kept["Name"] && labels == kept["Labels"].as_object();
                if object["Ingress"] == true || is_kept && kind != "services" {
                    continue;
                }
                self.until("DELETE", &format!("/{kind}/{}", id_of(&object)), None);
            }
        }
        for (kind, spec) in furniture() {
            if !self.all(kind).iter().any(|object| name_of(object) == spec["Name"]) {
                self.until("POST", &format!("/{kind}/create"), Some(&spec));
            }
        }
        let node = &self.get("/nodes")[0];
        let plain = json!({ "Labels": {}, "Role": "manager", "Availability": "active" });
        if node["Spec"] != plain {
            let path = format!("/nodes/{}/update?version={}", id_of(node), node["Version"]["Index"]);
            self.done("POST", &path, Some(&plain));
        }
    }

    /// Asks until it succeeds: what is taken away may still be in others' way for a moment.
    fn until(&self, method: &str, path: &str, body: Option<&Value>) {
        let (started, body) = (Instant::now(), body.map(Value::to_string));
        loop {
            let reply = self.ask(method, path, body.as_deref(), "Content-Type: application/json\r\n");
            if reply.status < 300 || (method, reply.status) == ("DELETE", 404) {
                return;
            }
            let said = String::from_utf8_lossy(&reply.body);
            assert!(
                started.elapsed() < LONG,
                "{}: {method} {path}: {} {said}",
                self.name,
                reply.status
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What both have: a network, a config, a secret, and a service that has no tasks.
fn furniture() -> [(&'static str, Value); 4] {
    [
        (
            "networks",
            json!({ "Name": "net", "Driver": "overlay", "Labels": { "of": "net" } }),
        ),
        (
            "configs",
            json!({ "Name": "conf", "Data": "YQ==", "Labels": { "of": "conf" } }),
        ),
        (
            "secrets",
            json!({ "Name": "sec", "Data": "Yg==", "Labels": { "of": "sec" } }),
        ),
        ("services", web()),
    ]
}

const KINDS: [&str; 5] = ["services", "networks", "configs", "secrets", "nodes"];

fn name_of(object: &Value) -> String {
    let name = object["Spec"]["Name"].as_str().or_else(|| object["Name"].as_str());
    name.unwrap_or_default().to_owned()
}

fn id_of(object: &Value) -> &str {
    object["ID"]
        .as_str()
        .or_else(|| object["Id"].as_str())
        .unwrap_or_default()
}

/// Times, numbers of versions and addresses differ by themselves; ids are shown by what they stand for.
fn normal(value: &Value, ids: &BTreeMap<String, String>, key: &str) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| {
                let shown = match (key.as_str(), value) {
                    ("Version", Value::Object(_)) => json!("<version>"),
                    // Of this machine, and of one that is made up.
                    ("NanoCPUs" | "MemoryBytes", Value::Number(n)) if n.as_u64().is_some_and(|n| n > 1 << 30) => {
                        json!("<any>")
                    }
                    ("VirtualIPs", Value::Array(addresses)) => {
                        let mut shown: Vec<Value> = addresses.iter().map(|addr| normal(addr, ids, key)).collect();
                        shown.sort_by_key(Value::to_string);
                        Value::Array(shown)
                    }
                    ("PublishedPort", Value::Number(n)) if n.as_u64().is_some_and(|n| n >= 30_000) => json!("<any>"),
                    _ => normal(value, ids, key),
                };
                (key.clone(), shown)
            })
            .collect(),
        Value::Array(items) => items.iter().map(|item| normal(item, ids, key)).collect(),
        Value::String(text) => json!(match key {
            "CreatedAt" | "UpdatedAt" | "Created" | "StartedAt" | "CompletedAt" | "Timestamp" | "LastExecution" =>
                "<time>".to_owned(),
            "Addr"
            | "Subnet"
            | "Gateway"
            | "Worker"
            | "Manager"
            | "Hostname"
            | "EngineVersion"
            | "TrustRoot"
            | "CertIssuerSubject"
            | "CertIssuerPublicKey" => "<any>".to_owned(),
            _ => plain(text, ids),
        }),
        other => other.clone(),
    }
}

/// A text without ids, of which nobody knows those that were made and taken away meanwhile.
pub fn plain(text: &str, ids: &BTreeMap<String, String>) -> String {
    let mut text = text.to_owned();
    for (id, meaning) in ids {
        text = text.replace(id.as_str(), meaning);
    }
    let is_of_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let words: Vec<String> = text
        .split(' ')
        .map(|word| match word.trim_matches(|c| !is_of_id(c)) {
            id if id.len() == 25 && id.chars().all(is_of_id) => word.replace(id, "<id>"),
            _ => word.to_owned(),
        })
        .collect();
    words.join(" ")
}

/// One thing that is otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// `status`, `message`, or the path in what is there.
    pub at: String,
    pub docker: String,
    pub ours: String,
}

fn compare(at: &str, docker: &Value, ours: &Value, found: &mut Vec<Difference>) {
    let shown = |value: &Value| match value {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    };
    match (docker, ours) {
        (Value::Object(theirs), Value::Object(own)) => {
            let mut keys: Vec<&String> = theirs.keys().chain(own.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let at = format!("{at}.{key}");
                match (theirs.get(key), own.get(key)) {
                    (Some(theirs), Some(own)) => compare(&at, theirs, own, found),
                    (theirs, own) => {
                        let shown = |value: Option<&Value>| value.map_or_else(|| "(none)".to_owned(), shown);
                        found.push(Difference {
                            at,
                            docker: shown(theirs),
                            ours: shown(own),
                        });
                    }
                }
            }
        }
        (Value::Array(theirs), Value::Array(own)) if theirs.len() == own.len() => {
            for (theirs, own) in theirs.iter().zip(own) {
                compare(&format!("{at}[]"), theirs, own, found);
            }
        }
        (docker, ours) if docker == ours => {}
        (docker, ours) => found.push(Difference {
            at: at.to_owned(),
            docker: shown(docker),
            ours: shown(ours),
        }),
    }
}

/// Both.
pub struct Pair {
    pub docker: Side,
    pub ours: Side,
    _rig: Rig,
    _cluster: Cluster,
}

struct Cluster {
    name: String,
    _turn: std::fs::File,
}

impl Cluster {
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/cluster"));
        command.args(["--name", &self.name]).args(args);
        // A folder with another dockerd and its containerd, to be compared with in its place.
        if let Some(folder) = std::env::var_os("ANYNODE_ORACLE") {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = [PathBuf::from(folder)].into_iter().chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(folders).unwrap());
        }
        command.output().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

impl Pair {
    /// Neither is a swarm yet. `None`: there is no engine to compare with.
    pub fn up(name: &str) -> Option<Pair> {
        let has = |program: &str| {
            Command::new("which")
                .arg(program)
                .output()
                .is_ok_and(|out| out.status.success())
        };
        let missing = ["docker", "dockerd", "iptables", "nsenter", "ip", "python3"]
            .into_iter()
            .find(|program| !has(program));
        if !rustix::process::geteuid().is_root() || missing.is_some() {
            println!("skipped: this needs {}", missing.unwrap_or("root"));
            return None;
        }
        let cluster = Cluster {
            name: format!("oracle-{name}"),
            _turn: crate::harness::turn(),
        };
        cluster.run(&["down"]);
        let out = cluster.run(&["up", "--nodes", "1", "--managers", "0"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let socket = format!("/tmp/anynode-cluster-{}/node1/docker.sock", cluster.name);
        let rig = Rig::up();
        let ours = Side {
            name: "anynode",
            socket: rig.socket(),
        };
        let docker = Side {
            name: "docker",
            socket: Path::new(&socket).to_owned(),
        };
        println!("compared with Docker {}", docker.get("/version")["Version"]);
        Some(Pair {
            docker,
            ours,
            _rig: rig,
            _cluster: cluster,
        })
    }

    /// Both are swarms, with the same in them.
    pub fn swarm(name: &str) -> Option<Pair> {
        let pair = Pair::up(name)?;
        for side in pair.sides() {
            let init = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": ADDR });
            side.done("POST", "/swarm/init", Some(&init));
        }
        pair.furnish();
        Some(pair)
    }

    pub fn sides(&self) -> [&Side; 2] {
        [&self.docker, &self.ours]
    }

    /// Begins with the same again.
    pub fn furnish(&self) {
        self.sides().into_iter().for_each(Side::furnish);
    }

    /// Asks both. What differs in the answers: `status`, `message`, and what a GET shows.
    pub fn ask(&self, ask: &Ask) -> (bool, Vec<Difference>) {
        let mut found = Vec::new();
        let mut said = Vec::new();
        let mut has_changed = false;
        for side in self.sides() {
            let (path, body) = (
                side.filled(&ask.path),
                ask.body.as_deref().map(|body| side.filled(body)),
            );
            let ids = BTreeMap::new();
            let reply = side.ask(ask.method, &path, body.as_deref(), ask.headers);
            has_changed |= reply.status < 300 && ask.method != "GET";
            let value: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            let message = value["message"].as_str().map(|message| plain(message, &ids));
            let mut shown = json!({ "status": reply.status });
            if let Some(message) = message {
                shown["message"] = json!(message);
            } else if ask.method == "GET" {
                shown["shown"] = normal(&sorted(value), &ids, "");
            } else {
                // Ids of what was made are anything.
                shown["shown"] = json!(value.as_object().map(|all| all.keys().cloned().collect::<Vec<_>>()));
            }
            said.push(shown);
        }
        compare("", &said[0], &said[1], &mut found);
        (has_changed, found)
    }

    /// What differs in what is there.
    pub fn state(&self) -> Vec<Difference> {
        let mut found = Vec::new();
        let states = self.sides().map(Side::state);
        compare("", &states[0], &states[1], &mut found);
        found
    }

    /// What differs in what is there, and the table does not have, once what follows from `ask` has come: that takes each its
    /// own time.
    pub fn settled_state(&self, ask: &Ask, table: &mut Table) -> Vec<Difference> {
        let started = Instant::now();
        loop {
            let unknown = table.unknown(ask, self.state());
            let is_settled = |difference: &Difference| !LATE.iter().any(|late| difference.at.contains(late));
            if unknown.iter().all(is_settled) || started.elapsed() > SETTLED {
                return unknown;
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Asks both, compares what they say and what is there afterwards, and furnishes anew if anything was changed. What the
    /// table does not have is returned.
    pub fn check(&self, ask: &Ask, table: &mut Table) -> Vec<Difference> {
        let (has_changed, found) = self.ask(ask);
        let is_refused = table.refuses(&found);
        let mut left = match is_refused {
            true => Vec::new(),
            false => table.unknown(ask, found),
        };
        if has_changed && !is_refused {
            left.extend(self.settled_state(ask, table));
        }
        if has_changed {
            self.furnish();
        }
        left
    }
}

/// Lists have no order of their own.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(mut items) => {
            items.sort_by_key(name_of);
            Value::Array(items)
        }
        other => other,
    }
}

/// A service that has no tasks.
pub fn web() -> Value {
    json!({
        "Name": "web",
        "Labels": { "tier": "front" },
        "TaskTemplate": { "ContainerSpec": { "Image": IMAGE }, "Networks": [{ "Target": "net" }] },
        "Mode": { "Replicated": { "Replicas": 0 } },
    })
}

pub const ADDR: &str = "10.213.0.1";
/// What follows from a spec, and not at once.
const LATE: [&str; 3] = [".Endpoint", ".UpdateStatus", ".networks."];
const SETTLED: Duration = Duration::from_secs(2);

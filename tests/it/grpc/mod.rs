//! gRPC through the mesh, with the clients and servers of the gRPC project itself (Python's, from PyPI): one channel, whose calls are
//! balanced one by one.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anynode::model::{Mode, Scheme, ServiceSpec};

use crate::harness::installed::from_pypi;
use crate::harness::{Node, door, service, wait_until};

/// A program of this directory.
struct Program {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(libraries: &Path, script: &str, args: &[&str]) -> Program {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/grpc").join(script);
        let mut child = Command::new("python3")
            .arg(script)
            .args(args)
            .env("PYTHONPATH", libraries)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Program { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn lines_until(&mut self, last: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "it ended before {last:?}, after {lines:?}");
            if line == last {
                return lines;
            }
            lines.push(line);
        }
    }
}

struct Server {
    program: Program,
    addr: SocketAddr,
}

impl Server {
    fn start(libraries: &Path, name: &str) -> Server {
        let mut program = Program::start(libraries, "server.py", &[name]);
        let port: u16 = program.line().parse().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        Server { program, addr }
    }

    /// It takes nothing new and lets what it has end.
    fn stop(&mut self) {
        drop(self.program.child.stdin.take());
    }
}

fn libraries() -> Option<PathBuf> {
    from_pypi("grpcio", &["grpcio"])
}

fn spec(servers: &[&Server]) -> ServiceSpec {
    let addrs: Vec<SocketAddr> = servers.iter().map(|server| server.addr).collect();
    let mut spec = service("rpc", &addrs);
    spec.mode = Mode::Http;
    spec.scheme = Scheme::H2c;
    spec
}

fn scenario(libraries: &Path, name: &str, spec: &ServiceSpec) -> Program {
    Program::start(libraries, "client.py", &[name, &door(spec).to_string()])
}

#[test]
fn ten_thousand_calls_of_one_channel_are_shared_out_evenly() {
    let Some(libraries) = libraries() else { return };
    let servers = ["a", "b", "c", "d"].map(|name| Server::start(&libraries, name));
    let node = Node::start();
    let spec = spec(&servers.each_ref());
    node.apply(&spec);
    let seen = scenario(&libraries, "shares", &spec).lines_until("end");
    assert_eq!(seen.len(), 4, "{seen:?}");
    for line in seen {
        let (_, n) = line.split_once(' ').unwrap();
        let n: u32 = n.parse().unwrap();
        assert!((2200..=2800).contains(&n), "{line}");
    }
}

#[test]
fn calls_of_every_kind_pass_with_messages_trailers_errors_and_cancelling() {
    let Some(libraries) = libraries() else { return };
    let server = Server::start(&libraries, "a");
    let node = Node::start();
    let spec = spec(&[&server]);
    node.apply(&spec);
    assert_eq!(scenario(&libraries, "kinds", &spec).lines_until("end"), [""; 0]);
}

#[test]
fn a_server_that_stops_loses_no_call_and_ends_its_own_streams_alone() {
    let Some(libraries) = libraries() else { return };
    let [mut old, kept] = ["old", "kept"].map(|name| Server::start(&libraries, name));
    let node = Node::start();
    let mut spec = spec(&[&old, &kept]);
    spec.stop_grace = Duration::from_secs(2);
    node.apply(&spec);
    let mut client = scenario(&libraries, "roll", &spec);
    let held = client.lines_until("held");
    let of = |name: &str| held.iter().filter(|line| **line == format!("at {name}")).count();
    assert_eq!((of("old"), of("kept")), (4, 4), "{held:?}");
    // As a rolling update does: another takes its place, and then it is told to stop. (What it has not begun by then it cancels itself,
    // whoever asks: without a table that comes before, calls of a direct client fail too.)
    let new = Server::start(&libraries, "new");
    let service = node.service("rpc");
    let endpoints = service.endpoints().iter();
    let leaving = endpoints.filter(|endpoint| endpoint.addr() == old.addr).cloned();
    let leaving: Vec<_> = leaving.collect();
    spec.endpoints = self::spec(&[&kept, &new]).endpoints;
    node.apply(&spec);
    wait_until("the old server's calls to end", || leaving[0].in_flight() == 4);
    old.stop();
    // Its streams end once its time is over.
    for _ in 0..4 {
        let line = client.line();
        assert!(line.starts_with("ended old"), "{line}");
    }
    client.child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let seen = client.lines_until("end");
    assert_eq!(seen.len(), 1, "nobody else's streams end, and no call fails: {seen:?}");
    assert!(seen[0].starts_with("calls "), "{seen:?}");
}

#[test]
fn a_call_that_nobody_takes_is_unavailable() {
    let Some(libraries) = libraries() else { return };
    let mut server = Server::start(&libraries, "a");
    let spec = spec(&[&server]);
    let node = Node::start();
    node.apply(&spec);
    server.stop();
    server.program.child.wait().unwrap();
    assert_eq!(scenario(&libraries, "down", &spec).lines_until("end"), ["UNAVAILABLE"]);
}

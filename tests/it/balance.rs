//! Which endpoint gets how much. Through the program, with its services file.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Child;

use crate::cli::anynode;
use crate::harness::{Origin, dial, free_port, read_to_end, wait_until};

/// An endpoint that answers each request with its name. It does not go on for long: each connection is one request.
fn named(name: &'static str) -> Origin {
    Origin::start(move |mut stream| {
        if read_head(&mut stream).is_some() {
            let _ = stream.write_all(answer_of(name).as_bytes());
        }
    })
}

fn answer_of(name: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    )
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
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

/// A node with one service, `web`.
struct Node {
    child: Child,
    door: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// `options`: the service's lines, without its port.
    fn start(options: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let door: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        std::fs::write(dir.path().join("services.yml"), file(door, options)).unwrap();
        let child = anynode(&["up", "--dns", "none", "--admin", "none", "--services"])
            .arg(dir.path().join("services.yml"))
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "warn")
            .spawn()
            .unwrap();
        let node = Node { child, door, dir };
        wait_until("the port", || TcpStream::connect(door).is_ok());
        node
    }

    /// Puts a whole file in the place of the one that is there.
    fn declare(&self, options: &str) {
        let new = self.dir.path().join("new.yml");
        std::fs::write(&new, file(self.door, options)).unwrap();
        std::fs::rename(new, self.dir.path().join("services.yml")).unwrap();
    }

    /// Who answers a request with these fields; empty: nobody.
    fn ask(&self, fields: &str) -> String {
        let mut stream = dial(self.door);
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let answer = String::from_utf8_lossy(&read_to_end(&stream)).into_owned();
        match answer.split_once("\r\n\r\n") {
            Some((head, name)) if head.starts_with("HTTP/1.1 200") => name.to_owned(),
            _ => String::new(),
        }
    }

    /// How many of `n` requests each of these answered.
    fn shares<const N: usize>(&self, n: usize, names: [&str; N]) -> [usize; N] {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..n {
            *counts.entry(self.ask("")).or_default() += 1;
        }
        let shares = names.map(|name| counts.remove(name).unwrap_or(0));
        assert_eq!(counts, BTreeMap::new(), "nobody else answers");
        shares
    }

    /// What is said of a file that is not taken.
    fn refusal(&self, options: &str) -> String {
        let path = self.dir.path().join("wrong.yml");
        std::fs::write(&path, file(self.door, options)).unwrap();
        let out = anynode(&["check"]).arg(path).output().unwrap();
        assert_eq!(out.status.code(), Some(64), "{out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }
}

fn file(door: SocketAddr, options: &str) -> String {
    let options: String = options.lines().map(|line| format!("    {line}\n")).collect();
    format!("services:\n  web:\n    publish: [\"{door}:80\"]\n{options}")
}

#[test]
fn weights_hold_in_turn_and_by_lot() {
    for mode in ["tcp", "http"] {
        let [a, b, c] = ["a", "b", "c"].map(named);
        let declared = |balance: &str, weights: [u32; 3]| {
            let endpoint =
                |origin: &Origin, weight: u32| format!("{{ address: \"{}\", weight: {weight} }}", origin.addr);
            let [x, y, z] = weights;
            let endpoints = [endpoint(&a, x), endpoint(&b, y), endpoint(&c, z)].join(", ");
            format!("mode: {mode}\nbalance: {balance}\nendpoints: [{endpoints}]")
        };
        let node = Node::start(&declared("round-robin", [3, 1, 0]));
        // Some went there to see whether it is up.
        let [in_a, in_b, in_c] = node.shares(400, ["a", "b", "c"]);
        assert!(
            in_a.abs_diff(300) <= 6 && in_a + in_b == 400,
            "{mode}: {in_a}, {in_b}, {in_c}"
        );
        node.declare(&declared("round-robin", [1, 2, 5]));
        wait_until("the other weights", || node.ask("") == "c");
        let [in_a, in_b, in_c] = node.shares(400, ["a", "b", "c"]);
        let is_near = |n: usize, due: usize| n.abs_diff(due) <= 6;
        let is_well = is_near(in_a, 50) && is_near(in_b, 100) && is_near(in_c, 250);
        assert!(is_well, "{mode}: {in_a}, {in_b}, {in_c}");
        // Five standard deviations of what is drawn by lot.
        node.declare(&declared("least-request", [0, 1, 3]));
        wait_until("the last weights", || (0..20).all(|_| node.ask("") != "a"));
        let [in_a, in_b, in_c] = node.shares(400, ["a", "b", "c"]);
        assert!(
            in_a == 0 && in_c.abs_diff(300) <= 44 && in_b + in_c == 400,
            "{mode}: {in_a}, {in_b}, {in_c}"
        );
        // Who has none gets something once nobody else takes it, from the first client on.
        drop((b, c));
        assert_eq!(node.shares(20, ["a"]), [20], "{mode}");
    }
}

#[test]
fn a_weight_that_is_none_is_refused() {
    let node = Node::start("endpoints: [\"127.0.0.1:1\"]");
    for wrong in ["1001", "-1", "x", "1.5"] {
        let said = node.refusal(&format!("endpoints: [{{ address: \"127.0.0.1:1\", weight: {wrong} }}]"));
        assert!(
            said.contains("weight") && said.contains("expected a weight from 0 to 1000"),
            "{said}"
        );
    }
}

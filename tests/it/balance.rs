//! Which endpoint gets how much. Through the program, with its services file.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Child;
use std::time::Duration;

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
        self.ask_on(dial(self.door), fields)
    }

    /// Who answers a client with this address.
    fn ask_from(&self, addr: [u8; 4]) -> String {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((addr, 0)).into()).unwrap();
        socket.connect(&self.door.into()).unwrap();
        self.ask_on(socket.into(), "")
    }

    fn ask_on(&self, mut stream: TcpStream, fields: &str) -> String {
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

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn hashed(mode: &str, hash: &str, origins: &[&Origin]) -> String {
    let endpoints: Vec<String> = origins.iter().map(|origin| format!("\"{}\"", origin.addr)).collect();
    format!(
        "mode: {mode}\nbalance: hash\nhash: {hash}\nendpoints: [{}]",
        endpoints.join(", ")
    )
}

#[test]
fn a_key_leads_to_one_endpoint_on_every_node_and_few_move_when_one_goes() {
    let origins = NAMES.map(named);
    let all: Vec<&Origin> = origins.iter().collect();
    let node = Node::start(&hashed("http", "header:X-User", &all));
    // Another node, which has the same text in another order.
    let reversed: Vec<&Origin> = origins.iter().rev().collect();
    let other = Node::start(&hashed("http", "cookie:user", &reversed));
    const N: usize = 400;
    let by_field = |node: &Node, n: usize| node.ask(&format!("X-User: user-{n}\r\n"));
    let before: Vec<String> = (0..N).map(|n| by_field(&node, n)).collect();
    for name in NAMES {
        let share = before.iter().filter(|is| *is == name).count();
        // Six standard deviations of a fifth.
        assert!(share.abs_diff(N / 5) <= 48, "{name}: {share}");
    }
    for (n, was) in before.iter().enumerate() {
        assert_eq!(&by_field(&node, n), was);
        assert_eq!(&other.ask(&format!("Cookie: a=b; user=user-{n}\r\n")), was);
    }
    // One goes: what was its own goes elsewhere, each key to its next, and nothing else does.
    let left: Vec<&Origin> = origins[1..].iter().collect();
    node.declare(&hashed("http", "header:X-User", &left));
    let [gone] = [before.iter().position(|is| is == "a").unwrap()];
    wait_until("four are left", || by_field(&node, gone) != "a");
    let after: Vec<String> = (0..N).map(|n| by_field(&node, n)).collect();
    let n_moved = before.iter().zip(&after).filter(|(was, is)| was != is).count();
    assert_eq!(n_moved, before.iter().filter(|was| *was == "a").count());
    assert!(
        n_moved as f64 <= N as f64 * (0.2 + 0.02) + 48.0,
        "{n_moved} of {N} keys moved"
    );
    // One dies, where nobody says so: a key's next is the same, from the first request on.
    let [first, rest @ ..] = origins;
    drop(first);
    for (n, is) in after.iter().enumerate() {
        assert_eq!(&other.ask(&format!("Cookie: user=user-{n}\r\n")), is);
    }
    drop(rest);
    // A request without a key has turns.
    let fresh = NAMES.map(named);
    node.declare(&hashed("http", "header:X-User", &fresh.iter().collect::<Vec<_>>()));
    wait_until("the new ones", || !node.ask("X-User: a\r\n").is_empty());
    assert_eq!(node.shares(50, NAMES), [10; 5]);
}

#[test]
fn a_client_keeps_its_endpoint_whatever_its_port() {
    for mode in ["tcp", "http"] {
        let origins = NAMES.map(named);
        let node = Node::start(&hashed(mode, "client-address", &origins.iter().collect::<Vec<_>>()));
        let mut seen = std::collections::BTreeSet::new();
        for n in 1..60 {
            let is = node.ask_from([127, 0, 0, n]);
            assert!((0..3).all(|_| node.ask_from([127, 0, 0, n]) == is), "{mode}: {n}");
            seen.insert(is);
        }
        assert_eq!(seen.len(), NAMES.len(), "{mode}: {seen:?}");
    }
}

#[test]
fn what_cannot_be_hashed_is_refused_with_its_key() {
    let node = Node::start("endpoints: [\"127.0.0.1:1\"]");
    let end = "endpoints: [\"127.0.0.1:1\"]";
    for (options, expected) in [
        (
            "balance: hash\nhash: header:X-User",
            "hash: expected mode http: in tcp mode there is client-address alone",
        ),
        (
            "mode: http\nbalance: hash\nhash: header",
            "\"header\" is not valid: expected client-address, header:NAME or cookie:NAME",
        ),
        (
            "mode: http\nbalance: hash\nhash: 'cookie:a b'",
            "expected client-address, header:NAME",
        ),
        ("hash: client-address", "hash: expected balance hash beside it"),
        (
            "balance: hash\nprefer: local",
            "prefer: expected another balance than hash",
        ),
        ("prefer: near", "\"near\" is not valid: expected any or local"),
    ] {
        let said = node.refusal(&format!("{options}\n{end}"));
        assert!(said.contains(expected), "{said}");
    }
}

/// One of four takes ten times as long as the others.
#[test]
fn the_slow_one_of_four_gets_little_by_least_request() {
    let at = |name: &'static str, ms: u64| {
        Origin::start(move |mut stream| {
            if read_head(&mut stream).is_some() {
                std::thread::sleep(Duration::from_millis(ms));
                let _ = stream.write_all(answer_of(name).as_bytes());
            }
        })
    };
    let origins = [at("a", 100), at("b", 10), at("c", 10), at("d", 10)];
    for mode in ["http", "tcp"] {
        let endpoints = origins
            .each_ref()
            .map(|origin| format!("\"{}\"", origin.addr))
            .join(", ");
        let node = Node::start(&format!(
            "mode: {mode}\nbalance: least-request\nendpoints: [{endpoints}]"
        ));
        let counts = std::thread::scope(|scope| {
            let clients = [(); 16].map(|()| scope.spawn(|| node.shares(100, ["a", "b", "c", "d"])));
            clients
                .map(|client| client.join().unwrap())
                .iter()
                .fold([0; 4], |sum, one| [0, 1, 2, 3].map(|i| sum[i] + one[i]))
        });
        println!("{mode}: {counts:?}");
        assert!(counts[0] * 100 <= 15 * 1600, "{mode}: {counts:?}");
    }
}

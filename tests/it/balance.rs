//! Which endpoint gets how much. Through the program, with its services file.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Child;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crate::cli::anynode;
use crate::harness::{Origin, dial, free_port, read_head, read_to_end, wait_until};

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
        // Five standard deviations of what is drawn by lot, and as much for connections that are still to end when the next one comes:
        // on a busy machine they count as in flight.
        node.declare(&declared("least-request", [0, 1, 3]));
        wait_until("the last weights", || (0..20).all(|_| node.ask("") != "a"));
        let [in_a, in_b, in_c] = node.shares(400, ["a", "b", "c"]);
        assert!(
            in_a == 0 && in_c.abs_diff(300) <= 88 && in_b + in_c == 400,
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
        (
            "balance: hash\nslow_start: 30s",
            "slow_start: expected another balance than hash",
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

/// What a request is answered with, head and all.
fn whole_answer(node: &Node, fields: &str) -> String {
    let mut stream = dial(node.door);
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
}

/// The cookie that an answer sets, as a client sends it back, and all that is said of it.
fn cookie_of(answer: &str) -> Option<(String, String)> {
    let mut lines = answer.lines();
    let said = lines.find_map(|line| line.strip_prefix("Set-Cookie: "))?;
    let (cookie, attributes) = said.split_once("; ")?;
    Some((cookie.to_owned(), attributes.to_owned()))
}

#[test]
fn a_cookie_leads_to_one_endpoint_by_any_node_while_it_takes_traffic() {
    let origins = NAMES.map(named);
    let declared = |origins: &[Origin], more: &str| {
        let endpoints: Vec<String> = origins.iter().map(|origin| format!("\"{}\"", origin.addr)).collect();
        let key = "key: 'not-quite-drawn-at-random', cookie: at, same_site: lax";
        format!(
            "mode: http\nsticky: {{ {key} }}\nendpoints: [{}]\n{more}",
            endpoints.join(", ")
        )
    };
    let nodes = [(); 3].map(|()| Node::start(&declared(&origins, "")));
    let mut cookies: BTreeMap<String, String> = BTreeMap::new();
    let mut n = 0;
    // Until each has answered: whose turn it is first is drawn by lot, on each worker of each node.
    wait_until("a cookie of each", || {
        n += 1;
        let answer = whole_answer(&nodes[n % 3], "");
        let (cookie, attributes) = cookie_of(&answer).expect("a cookie");
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=lax".replace("lax", "Lax"));
        let value = cookie.strip_prefix("at=").unwrap();
        assert!(
            value.len() == 32 && value.bytes().all(|b| b.is_ascii_hexdigit()),
            "{cookie}"
        );
        let name = answer.rsplit("\r\n").next().unwrap().to_owned();
        assert_eq!(cookies.entry(cookie).or_insert_with(|| name.clone()), &name);
        cookies.len() == NAMES.len()
    });
    for (cookie, name) in &cookies {
        for node in nodes.iter().cycle().take(9) {
            let answer = whole_answer(node, &format!("Cookie: x=y; {cookie}\r\n"));
            // Said once: who has a good one is told nothing.
            assert!(
                answer.ends_with(name.as_str()) && cookie_of(&answer).is_none(),
                "{name}: {answer}"
            );
        }
    }
    // What is no cookie of ours, or one of a service with another key, is none.
    for wrong in ["at=", "at=0", "at=00000000000000000000000000000000", "at=../../x"] {
        let answer = whole_answer(&nodes[0], &format!("Cookie: {wrong}\r\n"));
        assert!(
            cookies.contains_key(&cookie_of(&answer).expect("a cookie").0),
            "{wrong}"
        );
    }
    let (cookie, name) = cookies.iter().next().unwrap();
    let fields = format!("Cookie: {cookie}\r\n");
    // Its endpoint goes: another one answers, and the client is told which; on the other nodes it is good for as long as
    // the endpoint is there.
    let (gone, left): (Vec<Origin>, Vec<Origin>) = {
        let place = NAMES.iter().position(|one| one == name).unwrap();
        let mut left: Vec<Origin> = origins.into_iter().collect();
        (vec![left.remove(place)], left)
    };
    nodes[0].declare(&declared(&left, ""));
    wait_until("it has gone", || {
        !whole_answer(&nodes[0], &fields).ends_with(name.as_str())
    });
    let (other, _) = cookie_of(&whole_answer(&nodes[0], &fields)).expect("a new cookie");
    assert!(other != *cookie && cookies.get(&other).is_none_or(|is| is != name));
    assert!(whole_answer(&nodes[1], &fields).ends_with(name.as_str()));
    // It dies where nobody says so: likewise, from the first request on.
    drop(gone);
    let answer = whole_answer(&nodes[1], &fields);
    assert!(
        answer.starts_with("HTTP/1.1 200") && cookie_of(&answer).is_some(),
        "{answer}"
    );
}

#[test]
fn who_has_a_cookie_waits_for_a_place_at_its_endpoint() {
    let gate = Arc::new(RwLock::new(()));
    let open = gate.clone();
    let slow = Origin::start(move |mut stream| {
        if read_head(&mut stream).is_some() {
            drop(open.read());
            let _ = stream.write_all(answer_of("slow").as_bytes());
        }
    });
    let quick = named("quick");
    let node = Node::start(&format!(
        "mode: http\nsticky: {{ key: 'not-quite-drawn-at-random' }}\nlimits: {{ endpoint_connections: 1 }}\n\
         endpoints: [\"{}\", \"{}\"]",
        slow.addr, quick.addr
    ));
    let cookie = (0..10).find_map(|_| {
        let answer = whole_answer(&node, "");
        cookie_of(&answer).filter(|_| answer.ends_with("slow"))
    });
    let fields = format!("Cookie: {}\r\n", cookie.expect("a cookie of the slow one").0);
    let held = gate.write().unwrap();
    std::thread::scope(|scope| {
        let before = slow.n_accepted();
        let first = scope.spawn(|| node.ask(&fields));
        wait_until("its only place is taken", || slow.n_accepted() > before);
        let second = scope.spawn(|| node.ask(&fields));
        // Who has none goes where there is room.
        assert_eq!(node.shares(4, ["quick"]), [4]);
        drop(held);
        assert_eq!([first, second].map(|one| one.join().unwrap()), ["slow", "slow"]);
    });
}

#[test]
fn a_cookie_that_cannot_be_kept_is_refused_with_its_key() {
    let node = Node::start("endpoints: [\"127.0.0.1:1\"]");
    let key = "key: 'not-quite-drawn-at-random'";
    for (options, expected) in [
        (
            format!("sticky: {{ {key} }}"),
            "sticky: expected mode http: in tcp mode there are no cookies",
        ),
        (
            "mode: http\nsticky: {}".to_owned(),
            "sticky.key: expected 16 characters at least, drawn at random",
        ),
        (
            "mode: http\nsticky: { key: short }".to_owned(),
            "expected 16 characters at least, drawn at random",
        ),
        (
            format!("mode: http\nsticky: {{ {key}, cookie: 'a b' }}"),
            "\"a b\" is not valid: expected a cookie's name",
        ),
        (
            format!("mode: http\nsticky: {{ {key}, same_site: none }}"),
            "sticky.same_site: expected secure beside it",
        ),
        (
            format!("mode: http\nsticky: {{ {key}, same_site: some }}"),
            "expected none, lax or strict",
        ),
    ] {
        let said = node.refusal(&format!("{options}\nendpoints: [\"127.0.0.1:1\"]"));
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains("short"), "a key is nobody's to read: {said}");
    }
}

#[test]
fn the_share_of_a_new_endpoint_grows() {
    let [a, b] = ["a", "b"].map(named);
    const GROWS: Duration = Duration::from_secs(6);
    for balance in ["round-robin", "least-request"] {
        let declared = |endpoints: &[&Origin]| {
            let endpoints: Vec<String> = endpoints.iter().map(|origin| format!("\"{}\"", origin.addr)).collect();
            format!(
                "balance: {balance}\nslow_start: 6s\nendpoints: [{}]",
                endpoints.join(", ")
            )
        };
        let node = Node::start(&declared(&[&a]));
        let began = Instant::now();
        while began.elapsed() < GROWS + Duration::from_millis(200) {
            assert_eq!(node.ask(""), "a");
        }
        node.declare(&declared(&[&a, &b]));
        wait_until("the new one", || node.ask("") == "b");
        let began = Instant::now();
        let part_until = |until: Duration| {
            let (mut n, mut new) = (0, 0);
            while began.elapsed() < until {
                n += 1;
                new += usize::from(node.ask("") == "b");
            }
            assert!(n > 100, "{n}");
            new as f64 / n as f64
        };
        // Of shares 1 and t: t / (1 + t), which is 19 in 100 on average in the first half, and 43 in the second.
        let [first, second] = [part_until(GROWS / 2), part_until(GROWS)];
        println!("{balance}: {first:.2}, {second:.2}");
        assert!(
            (0.05..0.30).contains(&first) && (0.33..0.50).contains(&second),
            "{first}, {second}"
        );
        let [in_a, in_b] = node.shares(400, ["a", "b"]);
        assert!(in_a.abs_diff(in_b) <= 100, "{in_a}, {in_b}");
    }
}

//! Basic authentication.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

/// By htpasswd 2.4: `secret`, `builder`, `sha`.
const ALICE: &str = "alice:$2y$04$msQ1sHWgtV4boouDqyARX.kIAqxi.71LejqhphusJ7UabiB5tFMKC";
const BOB: &str = "bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.";
const CAROL: &str = "carol:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=";

/// What a program that writes such hashes writes now. `None`: there is no such program.
fn written_by(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    assert!(out.status.success(), "{out:?}");
    Some(String::from_utf8(out.stdout).unwrap().trim().to_owned())
}

#[test]
fn only_who_has_the_password_comes_in() {
    let origin = mirror();
    let mut users = vec![ALICE.to_owned(), BOB.to_owned(), CAROL.to_owned()];
    let mut right = vec![("alice", "secret"), ("bob", "builder"), ("carol", "sha")];
    users.extend(
        written_by("htpasswd", &["-nbB", "-C", "5", "dora", "new-1"]).inspect(|_| right.push(("dora", "new-1"))),
    );
    users.extend(written_by("htpasswd", &["-nbm", "emil", "new-2"]).inspect(|_| right.push(("emil", "new-2"))));
    users.extend(written_by("htpasswd", &["-nbs", "frida", "new-3"]).inspect(|_| right.push(("frida", "new-3"))));
    let by_openssl = written_by("openssl", &["passwd", "-apr1", "new: 4"]);
    users.extend(
        by_openssl
            .map(|hash| format!("gerd:{hash}"))
            .inspect(|_| right.push(("gerd", "new: 4"))),
    );
    let options =
        format!("basic_auth: {{ users: {users:?}, realm: The shop, user_header: X-User, remove_header: true }}");
    let node = Node::start(origin.addr, &options);
    let asked = node.ask("");
    assert!(asked.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{asked}");
    assert!(
        asked.contains("\r\nWWW-Authenticate: Basic realm=\"The shop\"\r\n"),
        "{asked}"
    );
    for (name, password) in &right {
        for _ in 0..2 {
            let answer = node.ask(&format!("{}X-User: root\r\nX_USER: root\r\n", basic(name, password)));
            assert_eq!(status_of(&answer), 200, "{name}: {answer}");
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(body.contains(&format!("X-User: {name}\r\n")), "{body}");
            assert!(!body.contains("root") && !body.contains("uthorization"), "{body}");
        }
    }
    for (name, password) in [
        ("alice", "builder"),
        ("alice", ""),
        ("nobody", "secret"),
        ("Alice", "secret"),
        ("", ""),
    ] {
        let answer = node.ask(&basic(name, password));
        assert!(
            status_of(&answer) == 401 && answer.contains("\r\nWWW-Authenticate: "),
            "{name}: {answer}"
        );
    }
    // Two are none.
    let two = format!("{}{}", basic("alice", "secret"), basic("bob", "builder"));
    assert_eq!(status_of(&node.ask(&two)), 401);
    assert_eq!(node.n_denied("wrong_password"), 5);
    assert_eq!(node.n_denied("no_password"), 2);
    // Over HTTP/2 it is the same place.
    let h2 = "--http2-prior-knowledge";
    assert_eq!(node.curl(&[h2]).0, "401 2");
    assert_eq!(node.curl(&[h2, "-u", "alice:wrong"]).0, "401 2");
    let (status, body) = node.curl(&[h2, "-u", "alice:secret"]);
    assert!(
        status == "200 2" && body.contains("X-User: alice\r\n"),
        "{status} {body}"
    );
    assert_eq!(
        node.curl(&[h2, "-u", "alice:secret", "-d", &"x".repeat(100_000)]).0,
        "200 2"
    );
    assert_eq!(node.curl(&["-d", &"x".repeat(100_000)]).0, "401 1.1");
    // And for what is no request after the first.
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let mut stream = dial(node.addr);
    let head = |auth: &str| format!("GET /ws HTTP/1.1\r\nHost: a\r\n{auth}{upgrade}\r\n");
    stream.write_all(head("").as_bytes()).unwrap();
    assert_eq!(status_of(&read_head(&mut stream).unwrap()), 401);
    let mut stream = dial(node.addr);
    stream.write_all(head(&basic("bob", "builder")).as_bytes()).unwrap();
    assert_eq!(status_of(&read_head(&mut stream).unwrap()), 101);
    stream.write_all(b"hello").unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hello");
    // Nobody asks the endpoint who has not come in: it was asked once for each 200 and 101 at most.
    let n_let_in = 2 * right.len() + 3;
    assert!(
        origin.n_accepted() <= n_let_in + 1,
        "{} of {n_let_in}",
        origin.n_accepted()
    );
}

#[test]
fn changed_users_hold_at_once_and_nothing_shows_their_hashes() {
    let origin = mirror();
    let options = |users: &[&str]| format!("basic_auth: {{ users: {users:?} }}");
    let node = Node::start(origin.addr, &options(&[ALICE, BOB]));
    let is_in = |name: &str, password: &str| status_of(&node.ask(&basic(name, password))) == 200;
    assert!(is_in("alice", "secret") && is_in("bob", "builder") && is_in("alice", "secret"));
    let answer = node.ask(&basic("alice", "secret"));
    assert!(
        answer.contains("\r\nAuthorization: Basic "),
        "the endpoint gets it, where nothing else is said: {answer}"
    );
    // Another password, and one who has gone, whose right ones were known.
    node.declare(&options(&["alice:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY="]));
    wait_until("the next users", || is_in("alice", "sha"));
    assert!(!is_in("alice", "secret") && !is_in("bob", "builder"));
    // A file that is wrong is not taken, and does not show what it says.
    for (wrong, expected) in [
        (
            "users: [\"dave:hidden\"]",
            "basic_auth.users: user dave: expected a hash as htpasswd",
        ),
        (
            "users: [\"hidden\"]",
            "basic_auth.users: user number 1: expected name:hash",
        ),
        (
            "users: [\"f:$2y$17$hidden\"]",
            "user f: expected a cost of bcrypt from 4 to 14",
        ),
        ("users: \"f:hidden\"", "expected { users: "),
        ("users: [], realm: x", "expected users as htpasswd"),
        ("realm: hidden", "users"),
        ("users: [\"f:hidden\"], pasword: hidden", "no such key: `pasword`"),
        ("f:hidden", "basic_auth: expected { users: "),
        ("\"f:hidden, expected\": x", "basic_auth: expected { users: "),
        ("users: [], f:hidden: x, f:hidden: x", "basic_auth: expected { users: "),
        (
            "users: [\"bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.\"], realm: 'a\"b'",
            "without quotes",
        ),
        (
            "users: [\"bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.\"], user_header: Host",
            "expected another header",
        ),
    ] {
        let said = node.refusal(&format!("basic_auth: {{ {wrong} }}"));
        assert!(said.contains(expected), "{wrong}: {expected} in {said}");
        assert!(!said.contains("hidden") && !said.contains("iC.Lv"), "{wrong}: {said}");
    }
    for odd in [
        "basic_auth: \"f:hidden\"",
        "basic_auth: [\"f:hidden\"]",
        "basic_auth: { users: { f: hidden } }",
    ] {
        let said = node.refusal(odd);
        assert!(!said.contains("hidden"), "{odd}: {said}");
    }
    node.declare("basic_auth: { users: [\"dave:hidden\"] }");
    wait_until("the wrong file", || node.running.stderr().contains("user dave"));
    assert!(is_in("alice", "sha"), "the last good one holds");
    let admin = |path: &str| crate::admin::request(node.admin, "GET", path);
    let status = anynode(&["status", "--json", "--admin"])
        .arg(node.admin.to_string())
        .output()
        .unwrap();
    let mut shown = vec![node.running.stdout(), node.running.stderr()];
    shown.push(String::from_utf8_lossy(&status.stdout).into_owned());
    shown.extend(
        [
            "/metrics",
            "/v1/table",
            "/v1/status",
            "/readyz",
            "/metrics?detail=endpoint",
        ]
        .map(|path| format!("{:?}", admin(path))),
    );
    for shown in shown {
        for hash in ["msQ1sHWg", "iC.LvVHG", "2PRZAyDh", "hidden"] {
            assert!(!shown.contains(hash), "{hash} in {shown}");
        }
    }
}

#[test]
fn nobody_is_asked_in_the_clear_where_the_route_redirects_nor_who_is_not_let_in() {
    let origin = mirror();
    let node = Node::start(
        origin.addr,
        &format!("basic_auth: {{ users: [{ALICE:?}] }}\nhttps_only: true"),
    );
    let answer = node.ask("");
    assert!(
        status_of(&answer) == 301 && !answer.contains("WWW-Authenticate"),
        "{answer}"
    );
    assert_eq!(status_of(&node.ask(&basic("alice", "secret"))), 301);
    node.declare(&format!("basic_auth: {{ users: [{ALICE:?}] }}\nallow: [127.0.0.2]"));
    wait_until("the next file", || status_of(&node.ask("")) == 403);
    assert_eq!(status_of(&node.ask(&basic("alice", "secret"))), 403);
    assert_eq!(status_of(&node.ask_from([127, 0, 0, 2], "")), 401);
    // What is changed on the way is changed for who has come in.
    node.declare(&format!("basic_auth: {{ users: [{ALICE:?}] }}\nstrip_prefix: [/a]"));
    wait_until("the next file", || status_of(&node.ask("")) == 401);
    assert!(node.ask(&basic("alice", "secret")).contains("GET /?b HTTP/1.1\r\n"));
}

/// A flood of wrong passwords, each of which costs much, from many addresses: whoever is known goes on, and so does what asks for none.
#[test]
fn a_flood_of_wrong_passwords_holds_nobody_up() {
    let origin = mirror();
    let open = free_port();
    let slow = ALICE.replace("alice:$2y$04$", "slow:$2y$11$");
    let options = format!("basic_auth: {{ users: [{ALICE:?}, {slow:?}] }}");
    let node = Node::start(origin.addr, &options);
    let beside = format!(
        "  open:\n    mode: http\n    publish: [\"127.0.0.1:{open}:80\"]\n    endpoints: [\"{}\"]\n",
        origin.addr
    );
    let whole = text(node.addr, &node.endpoints, &options) + &beside;
    let new = node.dir.path().join("new.yml");
    std::fs::write(&new, whole).unwrap();
    std::fs::rename(new, node.dir.path().join("services.yml")).unwrap();
    wait_until("the open service", || TcpStream::connect(("127.0.0.1", open)).is_ok());
    assert_eq!(status_of(&node.ask(&basic("alice", "secret"))), 200);
    let is_over = Arc::new(AtomicBool::new(false));
    let counts: Arc<[AtomicUsize; 4]> = Arc::default();
    let addr = node.addr;
    let flood: Vec<_> = (0..200u32)
        .map(|i| {
            let (is_over, counts) = (is_over.clone(), counts.clone());
            std::thread::spawn(move || {
                for n in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                    let from = [127, 1, (i % 50) as u8, 1];
                    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
                    socket.connect(&addr.into()).unwrap();
                    let mut stream = TcpStream::from(socket);
                    let auth = basic("slow", &format!("guess {i} {n}"));
                    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{auth}Connection: close\r\n\r\n");
                    stream.write_all(request.as_bytes()).unwrap();
                    let answer = String::from_utf8_lossy(&read_to_end(&stream)).into_owned();
                    let place = [401, 429, 503].iter().position(|status| *status == status_of(&answer));
                    counts[place.unwrap_or(3)].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let count = |place: usize| counts[place].load(Ordering::Relaxed);
    wait_until("a full row", || count(2) > 0);
    let n_tried = count(0);
    for i in 0..100 {
        let mut stream = dial(SocketAddr::from(([127, 0, 0, 1], open)));
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert_eq!(status_of(&String::from_utf8_lossy(&read_to_end(&stream))), 200, "{i}");
        assert_eq!(status_of(&node.ask(&basic("alice", "secret"))), 200, "{i}");
    }
    // Each of them took far less than all who wait together: a row of 128 was not gone through meanwhile.
    let n_tried = count(0) - n_tried;
    assert!(n_tried < 128, "{n_tried} were tried while 200 others were served");
    is_over.store(true, Ordering::Relaxed);
    flood.into_iter().for_each(|one| one.join().unwrap());
    assert_eq!(count(3), 0, "nobody guessed it, nobody was left without an answer");
    assert!(node.n_denied("password_busy") > 0);
}

#[test]
fn who_guesses_is_to_wait_and_others_are_not() {
    let origin = mirror();
    let node = Node::start(origin.addr, &format!("basic_auth: {{ users: [{ALICE:?}, {BOB:?}] }}"));
    assert_eq!(status_of(&node.ask(&basic("alice", "secret"))), 200);
    let mut n_tried = 0;
    let refused = loop {
        let answer = node.ask(&basic("bob", &format!("guess {n_tried}")));
        match status_of(&answer) {
            401 => n_tried += 1,
            _ => break answer,
        }
    };
    assert!((20..60).contains(&n_tried), "{n_tried}");
    assert!(refused.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{refused}");
    assert!(refused.contains("\r\nRetry-After: "), "{refused}");
    assert!(node.n_denied("password_guesses") > 0);
    // The right one would be one more guess; but whose is known already has not to guess, and another client has not guessed.
    for i in 0..30 {
        assert_eq!(status_of(&node.ask(&basic("alice", "secret"))), 200, "{i}");
    }
    assert_eq!(status_of(&node.ask_from([127, 0, 0, 2], &basic("bob", "builder"))), 200);
}

/// An empty variable of a template is no way in.
#[test]
fn a_guard_without_a_value_is_refused_and_not_left_out() {
    let node = Node::start(mirror().addr, "");
    for key in [
        "allow",
        "https_only",
        "redirect_regex",
        "basic_auth",
        "rate",
        "in_flight",
        "in_flight_per_client",
        "max_body",
    ] {
        for value in ["", "null", "~"] {
            let said = node.refusal(&format!("{key}: {value}"));
            assert!(said.contains(key), "{key}: {value}: {said}");
        }
    }
}

//! Updates of anynode itself: an instance that is started with the data directory of another takes over, and nobody who
//! connects meanwhile notices. Real processes under load, and made-up ones that speak the handoff badly;
//! ANYNODE_SOAK_SECONDS makes more updates than the ten of the short form.

use std::collections::HashMap;
use std::fs::{File, Permissions, TryLockError};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anynode::sys::handoff::{self, BYTES_MAX};
use anynode::sys::sk_lookup;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::admin::request;
use crate::churn::{Endpoint, Tally, keep_alive, one_by_one};
use crate::cli::{Home, Running, anynode, curl, dig, one_service, run, web};
use crate::harness::{Origin, PATIENCE, dial, free_port, read_to_end, wait_until};

#[test]
fn ten_updates_in_a_row_refuse_nobody() {
    let _turn = crate::harness::turn();
    let home = Home::new();
    let posts: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    let endpoints: Vec<Endpoint> = (0..3).map(|_| Endpoint::start(&posts)).collect();
    let list: Vec<String> = endpoints.iter().map(|e| format!("\"{}\"", e.addr)).collect();
    let (tcp, http, target) = (free_port(), home.port, free_port());
    home.serve(&format!(
        "services:\n  t: {{ publish: [\"{tcp}:{target}\"], endpoints: [{list}] }}\n  h: {{ mode: http, publish: [\"{http}:{target}\"], endpoints: [{list}] }}\n",
        list = list.join(", "),
        // A port that no other program of this machine is likely to have.
        target = target,
    ));
    // Without the privileges they are bound, to be handed over as well.
    let has_vips = sk_lookup::missing_capabilities().is_empty();
    let up = || {
        let mut up = home.up();
        up.env("ANYNODE_WORKERS", "2").env("ANYNODE_SHUTDOWN_GRACE", "1m");
        if !has_vips {
            up.env("ANYNODE_VIPS", "bind");
        }
        up
    };
    let mut now = home.start(&mut up());
    let vip = dig(home.dns, "h").unwrap();
    let files_before = n_files_at_rest(&now);
    let sockets = listening(&now);
    // Two workers at two published ports and all VIPs or two of them, the admin server, DNS over TCP.
    let n_sockets = if has_vips { 8 } else { 10 };
    assert_eq!(sockets.len(), n_sockets, "{sockets:?}");
    let door = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let stop = AtomicBool::new(false);
    let (by_connection, by_request) = (Tally::default(), Tally::default());
    let (n_asked, n_looks) = (AtomicU64::new(0), AtomicU64::new(0));
    let soak = std::env::var("ANYNODE_SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let rounds = soak.map_or(10, |seconds: usize| seconds * 4);
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| keep_alive(door(http), true, &by_request, &stop));
            scope.spawn(|| one_by_one(door(http), &by_connection, &stop));
            scope.spawn(|| one_by_one(door(tcp), &by_connection, &stop));
        }
        scope.spawn(|| one_by_one((vip, target).into(), &by_connection, &stop));
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(dig(home.dns, "h"), Some(vip));
                n_asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Nobody ever gets in between.
        scope.spawn(|| {
            let lock = File::options().write(true).open(home.path("data/lock")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                assert!(matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
                n_looks.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let stops = Stops(&stop);
        for round in 0..rounds {
            std::thread::sleep(Duration::from_millis(100));
            let began = Instant::now();
            let mut next = Running::start(&mut up());
            wait_until("the next to take over", || {
                assert_eq!(next.child.try_wait().unwrap(), None, "{}", next.stderr());
                next.stderr().contains("took over from another instance")
            });
            took.push(began.elapsed());
            assert!(
                next.stderr().contains(&format!("sockets={} left=0", n_sockets + 1)),
                "round {round}: {}",
                next.stderr()
            );
            assert_eq!(ended(&mut now), Some(0));
            // It has ended, and what it wrote may still be on its way.
            wait_until("its last words", || {
                let said = now.stderr();
                said.contains("superseded") && said.contains("drained")
            });
            let said = now.stderr();
            assert!(!said.contains("ERROR"), "{said}");
            // The very sockets, not others at the same ports.
            let own = inodes(&next);
            assert!(sockets.iter().all(|(inode, _)| own.contains(inode)));
            now = next;
        }
        drop(stops);
    });
    for (name, tally) in [("connections", &by_connection), ("requests", &by_request)] {
        let failed = tally.failed.lock().unwrap();
        let n_ok = tally.n_ok.load(Ordering::Relaxed);
        println!("{name}: {n_ok} well, {} failed", failed.len());
        assert!(failed.is_empty(), "{name}: {}", failed[0].what);
        assert!(n_ok > 500);
    }
    took.sort_unstable();
    println!(
        "from start to takeover: median {:?}, longest {:?}; {} names asked for, the lock looked at {} times",
        took[rounds / 2],
        took[rounds - 1],
        n_asked.load(Ordering::Relaxed),
        n_looks.load(Ordering::Relaxed)
    );
    assert!(posts.lock().unwrap().values().all(|n| *n == 1), "a POST arrived twice");
    assert_eq!(home.metric("anynode_sockets_adopted_total"), (n_sockets + 1) as f64);
    let started = Instant::now();
    while n_files(&now) != files_before {
        assert!(
            started.elapsed() < PATIENCE,
            "{files_before} descriptors before, now {:?}",
            files(&now)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(n_instances(&home), 1);
    now.signal(Signal::TERM);
    assert_eq!(ended(&mut now), Some(0));
    assert!(TcpStream::connect(door(http)).is_err());
}

#[test]
fn what_is_open_stays_with_the_old_one_for_its_grace() {
    let home = Home::new();
    let (echo, http) = (Origin::echo(), web_kept_alive());
    let kept = free_port();
    home.serve(&format!(
        "{}  kept: {{ mode: http, publish: [\"127.0.0.1:{kept}:{kept}\"], endpoints: [\"{}\"] }}\n",
        one_service(&home, "tcp", echo.addr),
        http.addr
    ));
    let mut up = home.up();
    up.env("ANYNODE_SHUTDOWN_GRACE", "1s")
        .env("ANYNODE_HANDOFF_GRACE", "3s");
    let mut old = home.start(&mut up);
    let mut long = dial(home.door());
    echoes(&mut long);
    let mut idle = dial(([127, 0, 0, 1], kept).into());
    assert!(!get(&mut idle).contains("Connection: close"));
    // An admin connection stays with the instance that it was opened to.
    let mut admin = dial(home.admin);
    assert!(ready(&mut admin).contains("200 OK"));
    let new = take_over(&home, &mut home.up());
    let superseded_at = Instant::now();
    wait_until("the old one to drain", || old.stderr().contains("superseded"));
    assert!(ready(&mut admin).contains("\r\n\r\ndraining\n"));
    assert_eq!(home.readyz().0, 200);
    // One more request is answered on a connection that was idle, and is its last.
    assert!(get(&mut idle).contains("Connection: close"));
    assert!(read_to_end(&idle).is_empty());
    let mut fresh = dial(home.door());
    echoes(&mut fresh);
    echoes(&mut long);
    assert_eq!(old.child.try_wait().unwrap(), None);
    let error = long.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(
        superseded_at.elapsed() > Duration::from_secs(2),
        "the grace was cut short"
    );
    assert_eq!(ended(&mut old), Some(0));
    wait_until("the log", || old.stderr().contains("connections=1"));
    echoes(&mut fresh);
    drop(new);
}

/// They were reset after `shutdown_grace`.
#[test]
fn what_is_open_is_finished_unless_the_old_one_is_asked_to_end() {
    let home = Home::new();
    let echo = Origin::echo();
    home.serve(&one_service(&home, "tcp", echo.addr));
    let grace = Duration::from_millis(300);
    let mut old = home.start(home.up().env("ANYNODE_SHUTDOWN_GRACE", "300ms"));
    let (mut ended_by_client, mut cut) = (dial(home.door()), dial(home.door()));
    let new = take_over(&home, &mut home.up());
    wait_until("the old one to drain", || old.stderr().contains("superseded"));
    // Nothing is to happen: there is no other way than to wait.
    let superseded_at = Instant::now();
    while superseded_at.elapsed() < 5 * grace {
        echoes(&mut ended_by_client);
        echoes(&mut cut);
        std::thread::sleep(grace / 3);
    }
    drop(ended_by_client);
    echoes(&mut cut);
    assert_eq!(old.child.try_wait().unwrap(), None);
    // A supervisor that stops it does not wait for an hour.
    old.signal(Signal::TERM);
    let error = cut.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(ended(&mut old), Some(0));
    wait_until("the log", || old.stderr().contains("connections=1"));
    echoes(&mut dial(home.door()));
    drop(new);
}

#[test]
fn any_number_of_workers_takes_over_from_any_other() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let mut now = home.start(home.up().env("ANYNODE_WORKERS", "1"));
    let mut n_before = 1;
    for n_workers in [4, 2, 3, 1, 5] {
        let next = take_over(&home, home.up().env("ANYNODE_WORKERS", n_workers.to_string()));
        assert_eq!(ended(&mut now), Some(0));
        // Enough connections that each socket of the port gets some.
        for _ in 0..64 {
            assert_eq!(curl(home.door()).as_deref(), Some("one"));
        }
        n_before = n_before.max(n_workers);
        let n_sockets = n_before * 2 + 2;
        assert_eq!(listening(&next).len(), n_sockets, "{n_workers} workers");
        now = next;
    }
}

#[test]
fn ports_that_only_one_of_both_knows_are_opened_and_closed() {
    let home = Home::new();
    let (one, two) = (web("one"), web("two"));
    let [shared, widened, gone, new] = [0; 4].map(|_| free_port());
    let target = free_port();
    let services = |ports: [String; 3], endpoint: &Origin| {
        let list = ports.map(|port| format!("\"{port}:{target}\"")).join(", ");
        format!(
            "services:\n  w: {{ mode: http, publish: [{list}], endpoints: [\"{}\"] }}\n",
            endpoint.addr
        )
    };
    home.serve(&services(
        [
            format!("127.0.0.1:{shared}"),
            format!("127.0.0.1:{widened}"),
            gone.to_string(),
        ],
        &one,
    ));
    let mut old = home.start(&mut home.up());
    let door = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let other = home.write(
        "other.yaml",
        &services(
            [
                format!("127.0.0.1:{shared}"),
                // Was on one address: its socket is the old one's, and no other program's.
                widened.to_string(),
                new.to_string(),
            ],
            &two,
        ),
    );
    let new_one = take_over(&home, &mut beside(&home, &other, home.admin));
    assert!(new_one.stderr().contains("left=2"), "{}", new_one.stderr());
    assert!(!new_one.stderr().contains("cannot listen"), "{}", new_one.stderr());
    assert_eq!(ended(&mut old), Some(0));
    for port in [shared, widened, new] {
        assert_eq!(curl(door(port)).as_deref(), Some("two"), "{port}");
    }
    assert!(TcpStream::connect(door(gone)).is_err());
    assert_eq!(new_one.stderr().matches("ERROR").count(), 0);
}

#[test]
fn admin_and_dns_change_their_addresses_with_an_update() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let mut old = home.start(&mut home.up());
    // The same ports, on all addresses: they are free only once the old one has let go of them.
    let everywhere = |addr: SocketAddr| SocketAddr::from(([0, 0, 0, 0], addr.port())).to_string();
    let mut up = anynode(&[
        "up",
        "--services",
        &home.text("services.yaml"),
        "--data-dir",
        &home.text("data"),
    ]);
    up.args(["--admin", &everywhere(home.admin), "--dns", &everywhere(home.dns)]);
    let new = Running::start(&mut up);
    wait_until("the new one to take over", || {
        new.stderr().contains("took over from another instance")
    });
    assert_eq!(ended(&mut old), Some(0));
    let elsewhere = SocketAddr::from(([127, 0, 0, 9], home.admin.port()));
    wait_until("the admin server everywhere", || TcpStream::connect(elsewhere).is_ok());
    wait_until("nothing to be wrong", || {
        request(elsewhere, "GET", "/readyz").2 == "serving\n"
    });
    assert!(dig(SocketAddr::from(([127, 0, 0, 9], home.dns.port())), "my-web").is_some());
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    drop(new);
}

#[test]
fn a_new_one_that_dies_before_it_is_ready_changes_nothing() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let mut old = home.start(&mut home.up());
    let (files, table) = (n_files(&old), home.path("data/services.last-good.yaml"));
    wait_until("the table to be kept", || table.exists());
    let later = free_port();
    for round in 0..3 {
        let visitor = Visitor::knock(&home);
        visitor.say(&hello(1));
        let lent = visitor.lent();
        assert!(lent.iter().any(|(key, _)| key == "{\"named\":\"lock\"}"), "{lent:?}");
        assert_eq!(curl(home.door()).as_deref(), Some("one"));
        if round == 0 {
            // The table goes on, ports and the data directory wait.
            let kept = std::fs::read(&table).unwrap();
            home.serve(&format!(
                "{}  later: {{ mode: http, publish: [\"127.0.0.1:{later}:{later}\"], endpoints: [\"{}\"] }}\n",
                one_service(&home, "http", one.addr),
                one.addr
            ));
            wait_until("the table", || home.metric("anynode_services") == 2.0);
            std::thread::sleep(Duration::from_millis(300));
            assert!(TcpStream::connect(("127.0.0.1", later)).is_err());
            assert_eq!(std::fs::read(&table).unwrap(), kept);
        }
        // A third is told so, at once.
        let (code, _, stderr) = run(&mut home.up());
        assert_eq!(code, 64);
        assert!(
            stderr.contains("does not hand over: another instance is taking over at this moment"),
            "{stderr}"
        );
        drop((visitor, lent));
        wait_until("the old one to notice", || {
            old.stderr().matches("going on as before").count() == 2 * (round + 1)
        });
        wait_until("the port", || {
            curl(([127, 0, 0, 1], later).into()).as_deref() == Some("one")
        });
    }
    wait_until("the table to be kept", || {
        std::fs::read_to_string(&table).unwrap().contains("later")
    });
    // The later port has a listener for each worker, and so has the VIP of its service.
    let n_workers = listening(&old).iter().filter(|(_, port)| *port == later).count();
    wait_until("descriptors to be given back", || {
        n_files(&old) <= files + 2 * n_workers + one.n_accepted()
    });
    assert_eq!(home.readyz().0, 200);
    // Nobody lost anything by it: the next takes over all the same.
    let new = take_over(&home, &mut home.up());
    assert_eq!(ended(&mut old), Some(0));
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    drop(new);
}

#[test]
fn visitors_that_are_no_new_instance_get_nothing() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let old = home.start(&mut home.up());
    let silent = Visitor::knock(&home);
    for (said, expected) in [
        (b"garbage".to_vec(), "expected value"),
        (b"{}".to_vec(), "expected value"),
        (vec![b'['; BYTES_MAX], "expected value"),
        (json!("ready").to_string().into_bytes(), "not expected here: Ready"),
        (
            json!({"lent": [{"named": "x"}]}).to_string().into_bytes(),
            "0 descriptors",
        ),
        (
            hello(2).to_string().into_bytes(),
            "it speaks version 1 of the handoff, not 2",
        ),
    ] {
        let visitor = Visitor::knock(&home);
        visitor.send(&said, &[]);
        let (answer, fds) = visitor.hear().unwrap();
        let reason = answer["refused"]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(expected), "{reason:?}, not {expected}");
        assert!(fds.is_empty());
        assert!(visitor.hear().is_none());
    }
    // Descriptors that nobody asked for are closed.
    let files = n_files(&old);
    let null = File::open("/dev/null").unwrap();
    let visitor = Visitor::knock(&home);
    visitor.send(hello(1).to_string().as_bytes(), &[null.as_fd(); 200]);
    assert!(visitor.hear().unwrap().0["refused"]["reason"].is_string());
    drop(visitor);
    wait_until("descriptors to be given back", || n_files(&old) <= files);
    // Whoever is silent is in nobody's way.
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    let new = take_over(&home, &mut home.up());
    drop((silent, new, old));
}

#[test]
fn another_user_gets_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root, to be another user");
        return;
    }
    const NOBODY: u32 = 65534;
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let old = home.start(&mut home.up());
    let as_nobody = || {
        let mut up = home.up();
        up.uid(NOBODY).gid(NOBODY);
        up
    };
    let mode = |path: PathBuf, mode: u32| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(home.dir.path().to_owned(), 0o755);
    if Command::new(env!("CARGO_BIN_EXE_anynode"))
        .arg("--version")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .is_err()
    {
        println!("skipped: another user cannot run the program where it is");
        return;
    }
    let (code, _, stderr) = run(&mut as_nobody());
    assert_eq!(code, 64);
    assert!(
        stderr.contains("expected a directory that can be written to"),
        "{stderr}"
    );
    // Even where all files are open to everybody.
    mode(home.path("data"), 0o777);
    mode(home.path("data/lock"), 0o666);
    mode(home.path("data/handoff.sock"), 0o666);
    let (code, _, stderr) = run(&mut as_nobody());
    assert_eq!(code, 64);
    assert!(
        stderr.contains("does not hand over: it is of user 65534: expected this user or root"),
        "{stderr}"
    );
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    drop(old);
    // Nor does root take anything from somebody else.
    let fake = Predecessor::start_as(&home, Some(NOBODY));
    let (code, _, stderr) = run(&mut home.up());
    assert_eq!(code, 64);
    assert!(
        stderr.contains("handoff.sock is of user 65534: expected this user or root"),
        "{stderr}"
    );
    drop(fake);
}

#[test]
fn a_predecessor_that_is_silent_or_speaks_nonsense_is_an_error() {
    let home = Home::new();
    home.serve("services:\n  my-web:\n    endpoints: []\n");
    let fake = Predecessor::start_as(&home, None);
    let null = File::open("/dev/null").unwrap();
    for (answer, fds, expected) in [
        (Some("garbage".to_owned()), 0, "expected an anynode behind handoff.sock"),
        (Some(json!("ready").to_string()), 0, "not expected here: Ready"),
        (
            Some(json!({"refused": {"reason": "of this"}}).to_string()),
            0,
            "does not hand over: of this",
        ),
        (
            Some(json!({"lent": [{"named": "lock"}]}).to_string()),
            1,
            "handed over a lock that is not lock",
        ),
        (
            Some(json!({"lent": [{"named": "lock"}]}).to_string()),
            0,
            "0 descriptors, where 1 are named",
        ),
        (
            Some(json!({"end": {"instance": "x", "n_sockets": 1}}).to_string()),
            0,
            "not expected here: End",
        ),
        (None, 0, "has not answered on handoff.sock within 5s"),
    ] {
        let new = std::thread::scope(|scope| {
            let new = scope.spawn(|| run(&mut home.up()));
            let visitor = fake.visitor();
            assert_eq!(visitor.hear().unwrap().0["hello"]["version"], 1);
            if let Some(answer) = &answer {
                visitor.send(answer.as_bytes(), &vec![null.as_fd(); fds]);
            }
            new.join().unwrap()
        });
        let (code, _, stderr) = new;
        assert_eq!(code, 64, "{stderr}");
        assert!(stderr.contains(expected), "no {expected:?} in {stderr}");
        assert!(stderr.contains(&home.text("data")), "{stderr}");
    }
    // One that has the lock and no socket, as earlier versions did.
    std::fs::remove_file(home.path("data/handoff.sock")).unwrap();
    let (code, _, stderr) = run(&mut home.up());
    assert_eq!(code, 64);
    assert!(stderr.contains("another anynode uses it"), "{stderr}");
}

#[test]
fn what_a_predecessor_lent_before_it_died_is_used() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    for has_lock in [true, false] {
        let mut fake = Predecessor::start_as(&home, None);
        let listener = TcpListener::bind(home.door()).unwrap();
        let null = File::open("/dev/null").unwrap();
        let stray = TcpListener::bind("127.0.0.1:0").unwrap();
        // It waits in the queue through all this.
        let mut early = dial(home.door());
        let mut new = Running::start(&mut home.up());
        let visitor = fake.visitor();
        visitor.hear().unwrap();
        let port = json!({"port": ["127.0.0.1", home.port]});
        // What is not what it is said to be is dropped: a socket that listens elsewhere, and one that is none.
        let wrong = json!({"port": ["127.0.0.1", 1]});
        visitor.send(
            json!({"lent": [port, wrong, wrong, {"named": "admin"}]})
                .to_string()
                .as_bytes(),
            &[listener.as_fd(), stray.as_fd(), null.as_fd(), stray.as_fd()],
        );
        if has_lock {
            let lock = json!({"lent": [{"named": "lock"}]}).to_string();
            visitor.send(lock.as_bytes(), &[fake.lock.as_fd()]);
        }
        drop((listener, stray, visitor));
        // Its end, as far as anybody can see.
        fake.die();
        wait_until("the new one to be up", || {
            assert_eq!(new.child.try_wait().unwrap(), None, "{}", new.stderr());
            new.stderr().contains("the instance before is gone")
        });
        assert!(get(&mut early).ends_with("one"));
        assert_eq!(curl(home.door()).as_deref(), Some("one"));
        assert_eq!(home.metric("anynode_sockets_adopted_total"), 1.0);
        let mut swarm = anynode(&["up", "--data-dir", &home.text("data"), "--engine", "none"]);
        swarm.args(["--admin", "none", "--dns", "none", "--api", &home.text("docker.sock")]);
        let (code, _, stderr) = run(&mut swarm);
        assert_eq!(code, 64, "{stderr}");
        // That one failed before it was ready, since a swarm takes over from nobody: nothing came of it.
        assert_eq!(curl(home.door()).as_deref(), Some("one"));
        new.signal(Signal::TERM);
        assert_eq!(ended(&mut new), Some(0));
    }
}

#[test]
fn what_is_not_used_is_said_before_anything_begins() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let mut fake = Predecessor::start_as(&home, None);
    let listener = TcpListener::bind(home.door()).unwrap();
    let new = Running::start(&mut home.up());
    let visitor = fake.visitor();
    visitor.hear().unwrap();
    let [here, wrong] = [home.port, 1].map(|port| json!({"port": ["127.0.0.1", port]}));
    let mut keys = vec![json!({"named": "lock"}), here, wrong.clone(), json!({"named": "other"})];
    let mut fds = vec![fake.lock.as_fd()];
    fds.resize(keys.len(), listener.as_fd());
    visitor.send(json!({ "lent": keys }).to_string().as_bytes(), &fds);
    // Ports that the table does not name, more of them than one message has room for.
    let gone: Vec<TcpListener> = (1..600u16)
        .map(|i| {
            let [high, low] = i.to_be_bytes();
            TcpListener::bind(SocketAddr::from(([127, 1, high, low], home.port))).unwrap()
        })
        .collect();
    let key = |listener: &TcpListener| json!({"port": [listener.local_addr().unwrap().ip(), home.port]});
    for some in gone.chunks(handoff::FDS_MAX) {
        let fds: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
        keys = some.iter().map(key).collect();
        visitor.send(json!({ "lent": keys }).to_string().as_bytes(), &fds);
    }
    visitor.say(&json!({"end": {"instance": "x", "n_sockets": 4 + 599}}));
    let mut left = Vec::new();
    loop {
        match visitor.hear().unwrap().0 {
            Value::String(word) => break assert_eq!(word, "ready"),
            said => left.extend(said["left"].as_array().unwrap().clone()),
        }
    }
    assert_eq!(left.len(), 601);
    assert!(left.contains(&wrong) && left.contains(&json!({"named": "other"})) && left.contains(&key(&gone[598])));
    drop((listener, visitor));
    fake.die();
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    drop(new);
}

#[test]
fn a_signal_while_sockets_are_lent_drains_as_always() {
    let home = Home::new();
    let echo = Origin::echo();
    home.serve(&one_service(&home, "tcp", echo.addr));
    let mut old = home.start(&mut home.up());
    let visitor = Visitor::knock(&home);
    visitor.say(&hello(1));
    let lent = visitor.lent();
    old.signal(Signal::TERM);
    assert_eq!(ended(&mut old), Some(0));
    assert!(visitor.hear().is_none());
    // Whoever has the sockets has the connections, too.
    drop(dial(home.door()));
    drop(lent);
    assert!(TcpStream::connect(home.door()).is_err());

    // One that drains already gives up its directory and what it still has.
    let mut old = home.start(home.up().env("ANYNODE_SHUTDOWN_GRACE", "1m"));
    let mut long = dial(home.door());
    echoes(&mut long);
    old.signal(Signal::TERM);
    wait_until("the port to close", || TcpStream::connect(home.door()).is_err());
    let new = take_over(&home, &mut home.up());
    let mut fresh = dial(home.door());
    echoes(&mut fresh);
    echoes(&mut long);
    drop(long);
    assert_eq!(ended(&mut old), Some(0));
    assert_eq!(home.readyz().0, 200);

    // One that is superseded is still asked to end by a signal, and ended by a second.
    let mut old = new;
    let new = take_over(&home, home.up().env("ANYNODE_SHUTDOWN_GRACE", "1m"));
    echoes(&mut fresh);
    old.signal(Signal::TERM);
    wait_until("the signal to be seen", || {
        old.stderr().contains("another signal ends at once")
    });
    echoes(&mut fresh);
    old.signal(Signal::TERM);
    assert_eq!(ended(&mut old), Some(130));
    drop(new);
}

#[test]
fn a_new_one_without_a_table_takes_nothing_over() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let old = home.start(&mut home.up());
    let kept = home.path("data/services.last-good.yaml");
    wait_until("the table to be kept", || kept.exists());
    std::fs::remove_file(&kept).unwrap();
    let up = || beside(&home, &home.text("missing.yaml"), home.admin);
    let goes_on = |times: usize| {
        wait_until("the old one to go on", || {
            old.stderr().matches("going on as before").count() == times
        });
        assert_eq!(home.readyz().0, 200);
        assert_eq!(curl(home.door()).as_deref(), Some("one"));
    };
    // One that is asked to end meanwhile does.
    let mut new = Running::start(&mut up());
    wait_until("the new one to wait", || new.stderr().contains("is up"));
    new.signal(Signal::TERM);
    assert_eq!(ended(&mut new), Some(0));
    goes_on(1);
    let (code, _, stderr) = run(&mut up());
    assert_eq!(code, 64);
    assert!(
        stderr.contains(&format!("data_dir = {}: there is no table in it", home.text("data"))),
        "{stderr}"
    );
    goes_on(2);
}

#[test]
fn the_links_socket_is_handed_over_too() {
    let home = Home::new();
    let link = SocketAddr::from(([127, 0, 0, 1], free_port()));
    // A node of a swarm whose engine never answers.
    let up = || {
        let mut up = anynode(&["up", "--data-dir", &home.text("data"), "--dns", "none"]);
        up.args(["--admin", &home.admin.to_string()])
            .env("ANYNODE_SWARM", "true")
            .env("ANYNODE_SWARM_TAKEOVER", "off")
            .env("ANYNODE_SWARM_DOCKER_SOCKET", home.path("docker.sock"))
            .env("ANYNODE_SWARM_CONTROL_SOCKET", home.path("control.sock"))
            .env("ANYNODE_LINK_LISTEN", link.to_string());
        up
    };
    let mut old = Running::start(&mut up());
    wait_until("the node to live", || {
        TcpStream::connect(home.admin).is_ok() && request(home.admin, "GET", "/livez").0 == 200
    });
    assert_eq!(home.readyz().0, 503, "it has nothing to serve");
    let visitor = Visitor::knock(&home);
    visitor.say(&hello(1));
    let keys: Vec<String> = visitor.lent().into_iter().map(|(key, _)| key).collect();
    let expected = ["lock", "handoff", "admin", "link"].map(|name| json!({ "named": name }).to_string());
    assert_eq!(keys, expected);
    drop(visitor);
    wait_until("the old one to go on", || old.stderr().contains("going on as before"));
    let sockets = listening(&old);
    let mut new = Running::start(&mut up());
    wait_until("the new one to take over", || {
        new.stderr().contains("took over from another instance")
    });
    assert_eq!(ended(&mut old), Some(0));
    assert_eq!(listening(&new), sockets);
    drop(dial(link));
    new.signal(Signal::TERM);
    assert_eq!(ended(&mut new), Some(0));
    assert!(TcpStream::connect(link).is_err());
}

#[test]
fn an_instance_of_another_network_gets_the_directory_and_no_sockets() {
    let home = Home::new();
    let one = web("one");
    home.serve(&one_service(&home, "http", one.addr));
    let mut old = home.start(&mut home.up());
    let visitor = Visitor::knock(&home);
    let mut hello = hello(1);
    hello["hello"]["network"] = json!(1);
    visitor.say(&hello);
    let keys: Vec<String> = visitor.lent().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["{\"named\":\"lock\"}", "{\"named\":\"handoff\"}"]);
    assert_eq!(curl(home.door()).as_deref(), Some("one"));
    visitor.say(&json!({"left": [{"port": ["127.0.0.1", home.port]}, {"named": "admin"}]}));
    visitor.say(&json!("ready"));
    assert_eq!(ended(&mut old), Some(0));
    assert!(old.stderr().contains("superseded"), "{}", old.stderr());
    assert!(TcpStream::connect(home.door()).is_err());
}

/// How a process ended. Where the kernel is busy, it takes its time to close what watches files, with the process in it.
fn ended(program: &mut Running) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = program.child.try_wait().unwrap() {
            return status.code();
        }
        assert!(started.elapsed() < 6 * PATIENCE, "it does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts an instance beside one that runs, and waits until it has taken over.
fn take_over(home: &Home, up: &mut Command) -> Running {
    let mut new = Running::start(up);
    wait_until("the new one to take over", || {
        assert_eq!(new.child.try_wait().unwrap(), None, "{}", new.stderr());
        new.stderr().contains("took over from another instance")
    });
    wait_until("the new one to serve", || home.readyz().0 == 200);
    new
}

/// As `Home::up`, with another services file and admin address.
fn beside(home: &Home, services: &str, admin: SocketAddr) -> Command {
    let mut up = anynode(&["up", "--services", services, "--data-dir", &home.text("data")]);
    up.args(["--admin", &admin.to_string(), "--dns", &home.dns.to_string()]);
    up
}

fn hello(version: u32) -> Value {
    json!({"hello": {"version": version, "instance": "test", "n_workers": 2, "network": handoff::network()}})
}

/// A new instance of our own making.
struct Visitor {
    stream: UnixStream,
}

impl Visitor {
    fn knock(home: &Home) -> Visitor {
        let stream = handoff::connect(&home.path("data/handoff.sock")).unwrap();
        Visitor { stream }
    }

    fn say(&self, message: &Value) {
        self.send(message.to_string().as_bytes(), &[]);
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        handoff::send(&self.stream, bytes, fds).unwrap();
    }

    /// The next message; `None` when there will be none.
    fn hear(&self) -> Option<(Value, Vec<OwnedFd>)> {
        let mut buffer = vec![0; BYTES_MAX];
        let mut heard = None;
        wait_until("a message", || match handoff::receive(&self.stream, &mut buffer) {
            Ok(received) => {
                heard = Some(received);
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                false
            }
        });
        match heard.unwrap() {
            (0, _) => None,
            (n, fds) => Some((serde_json::from_slice(&buffer[..n]).unwrap(), fds)),
        }
    }

    /// Everything that is lent.
    fn lent(&self) -> Vec<(String, OwnedFd)> {
        let mut all = Vec::new();
        loop {
            let (message, fds) = self.hear().unwrap();
            if let Some(end) = message.get("end") {
                assert_eq!(end["n_sockets"], all.len());
                return all;
            }
            let keys = message["lent"].as_array().unwrap();
            assert_eq!(keys.len(), fds.len());
            all.extend(keys.iter().map(ToString::to_string).zip(fds));
        }
    }
}

/// An old instance of our own making: it has the lock, and listens.
struct Predecessor {
    lock: File,
    door: Option<UnixListener>,
}

impl Predecessor {
    fn start_as(home: &Home, user: Option<u32>) -> Predecessor {
        std::fs::create_dir_all(home.path("data")).unwrap();
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(home.path("data/lock"))
            .unwrap();
        wait_until("the lock", || lock.try_lock().is_ok());
        let path = home.path("data/handoff.sock");
        let door = match user {
            None => handoff::listen(&path).unwrap(),
            // A socket is of the user who called listen(2); a thread may be another user than its process.
            Some(user) => std::thread::scope(|scope| {
                let listen = scope.spawn(|| {
                    let user = rustix::process::Uid::from_raw(user);
                    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                    handoff::listen(&path).unwrap()
                });
                listen.join().unwrap()
            }),
        };
        Predecessor { lock, door: Some(door) }
    }

    fn visitor(&self) -> Visitor {
        let mut accepted = None;
        wait_until("a visitor", || {
            accepted = self.door.as_ref().unwrap().accept().ok();
            accepted.is_some()
        });
        let stream = accepted.unwrap().0;
        stream.set_nonblocking(true).unwrap();
        Visitor { stream }
    }

    /// As the kernel closes what a process had.
    fn die(&mut self) {
        self.door = None;
        self.lock = File::open("/dev/null").unwrap();
    }
}

/// Has the loaders stop even if the test fails, since it waits for them.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn echoes(client: &mut TcpStream) {
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// One request on a connection that may stay: its head and a short body.
fn get(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: my-web\r\n\r\n").unwrap();
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0] as char);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    text + &String::from_utf8(body).unwrap()
}

/// `/readyz`, on a connection that stays.
fn ready(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut buffer = [0; 4096];
    let n = stream.read(&mut buffer).unwrap();
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

/// Answers every request of a connection.
fn web_kept_alive() -> Origin {
    Origin::start(|mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            head.push(byte[0]);
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nkept");
            }
        }
    })
}

fn n_files(program: &Running) -> usize {
    files(program).len()
}

/// Once those who asked whether it is ready are gone.
fn n_files_at_rest(program: &Running) -> usize {
    loop {
        let n = n_files(program);
        std::thread::sleep(Duration::from_millis(300));
        if n_files(program) == n {
            return n;
        }
    }
}

/// What a process has open.
fn files(program: &Running) -> Vec<String> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap();
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets.map(|target| target.display().to_string()).collect()
}

/// The inodes of all sockets that a process has.
fn inodes(program: &Running) -> Vec<u64> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap();
    let inodes = files.filter_map(|file| {
        let target = std::fs::read_link(file.ok()?.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        inode.parse().ok()
    });
    inodes.collect()
}

/// The TCP sockets that a process listens on: their inodes and ports. Slow where many connections just ended.
fn listening(program: &Running) -> Vec<(u64, u16)> {
    let own = inodes(program);
    let mut found = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in std::fs::read_to_string(path).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let inode: u64 = fields[9].parse().unwrap();
            if fields[3] == "0A" && own.contains(&inode) {
                let port = fields[1].rsplit(':').next().unwrap();
                found.push((inode, u16::from_str_radix(port, 16).unwrap()));
            }
        }
    }
    found.sort_unstable();
    found
}

/// How many processes were started with this home's data directory.
fn n_instances(home: &Home) -> usize {
    let data = home.text("data");
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|process| std::fs::read_to_string(process.ok()?.path().join("cmdline")).ok())
        .filter(|line| line.split('\0').any(|word| word == data))
        .count()
}

/// A node that was told nothing of a handoff still refuses what it always did.
#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let home = Home::new();
    let file = home.write("file", "");
    let (code, _, stderr) = run(anynode(&["up", "--admin", "none", "--dns", "none"]).args(["--data-dir", &file]));
    assert_eq!(code, 64);
    assert!(
        stderr.contains(&file) && stderr.contains("can be written to"),
        "{stderr}"
    );
}

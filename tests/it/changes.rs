//! Other people's load, wrk and h2load, while everything that may change does, ten times a second: endpoints, routes, certificates.
//! Seconds of it: `ANYNODE_CHANGES_SECONDS`, 6 otherwise.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Origin, free_port};
use crate::tls::{Authority, Node, ON, Over, local, mirror, write_pair};

/// What one run of h2load says of its requests: how many there were, and how many of them were answered with 2xx.
///
/// Panics: it says of any that it failed, or nothing.
pub fn h2load_counts(out: &Output) -> (usize, usize) {
    let said = String::from_utf8_lossy(&out.stdout);
    let number_before = |line: &str, word: &str| {
        let part = line.split([',', ':']).find(|part| part.trim().ends_with(word));
        let number = part.and_then(|part| part.split_whitespace().next());
        number.and_then(|number| number.parse::<usize>().ok())
    };
    let line = |begins: &str| said.lines().find(|line| line.starts_with(begins));
    let (Some(requests), Some(codes)) = (line("requests:"), line("status codes:")) else {
        panic!("h2load says nothing of its requests: {out:?}");
    };
    for fault in ["failed", "errored", "timeout"] {
        assert_eq!(number_before(requests, fault), Some(0), "{fault}: {said}");
    }
    let both = number_before(requests, "total").zip(number_before(codes, "2xx"));
    both.unwrap_or_else(|| panic!("{said}"))
}

/// How many requests of one run of wrk were answered.
///
/// Panics: it says that one was not, or not with 2xx.
fn wrk_count(out: &Output) -> usize {
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{out:?}");
    assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let line = said.lines().find(|line| line.contains(" requests in "));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).expect("a count")
}

/// The services as of that change.
fn services(i: usize, plain: SocketAddr, origins: &[Origin]) -> String {
    let endpoints = format!(
        "[\"{}\", \"{}\"]",
        origins[i % origins.len()].addr,
        origins[(i + 1) % origins.len()].addr
    );
    let priority = 100 + i % 2;
    format!(
        "services:
  plain:
    mode: http
    publish: [\"{plain}:80\"]
    endpoints: {endpoints}
  all:
    route: PathPrefix(`/`)
    priority: {priority}
    endpoints: {endpoints}
  come-and-gone-{i}:
    route: Host(`a.test`) && PathPrefix(`/other-{i}`)
    endpoints: {endpoints}
"
    )
}

#[test]
fn nothing_fails_while_endpoints_routes_and_certificates_change_ten_times_a_second() {
    let seconds = std::env::var("ANYNODE_CHANGES_SECONDS").map_or(6, |text| text.parse::<u64>().unwrap());
    let origins = [mirror(), mirror(), mirror()];
    let authority = Authority::new("tests");
    let plain = local(free_port());
    let node = Node::start(&services(0, plain, &origins), ON, &["a"], |dir| {
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    let pairs = [authority.issue(&["a.test"], 91), authority.issue(&["a.test"], 92)];
    let secure = format!("https://a.test:{}/", node.secure.port());
    let is_over = AtomicBool::new(false);
    let n_answered = [const { AtomicUsize::new(0) }; 3];
    let n_changes = std::thread::scope(|scope| {
        let (is_over, n_answered, secure) = (&is_over, &n_answered, &secure);
        for (way, version) in [(0, &["--npn-list=h2", "-m8"][..]), (1, &["--h1"])] {
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    let mut h2load = Command::new("h2load");
                    h2load.args(["-n500", "-c4", "-t1"]).args(version);
                    h2load.arg(format!("--connect-to=127.0.0.1:{}", secure_port(secure)));
                    let (n, n_2xx) = h2load_counts(&h2load.arg(secure).output().unwrap());
                    assert_eq!((n, n_2xx), (500, 500));
                    n_answered[way].fetch_add(n, Ordering::SeqCst);
                }
            });
        }
        scope.spawn(move || {
            let mut wrk = Command::new("wrk");
            wrk.args(["-t1", "-c8", &format!("-d{seconds}s"), "--timeout=20s"]);
            let n = wrk_count(&wrk.arg(format!("http://{plain}/")).output().unwrap());
            n_answered[2].fetch_add(n, Ordering::SeqCst);
        });
        let _over = Over(is_over);
        let begun = Instant::now();
        let mut n_changes = 0;
        while begun.elapsed() < Duration::from_secs(seconds) {
            n_changes += 1;
            std::fs::write(node.path("next.yml"), services(n_changes, plain, &origins)).unwrap();
            std::fs::rename(node.path("next.yml"), node.path("services.yml")).unwrap();
            // One file after the other, as most programs do: for a moment they do not belong together.
            write_pair(node.dir.path(), "a", &pairs[n_changes % 2]);
            std::thread::sleep(Duration::from_millis(100));
        }
        n_changes
    });
    let n_answered = n_answered.map(AtomicUsize::into_inner);
    println!("{n_changes} changes, {n_answered:?} requests by HTTP/2, HTTP/1.1 over TLS, and HTTP/1.1");
    assert!(n_answered.iter().all(|n| *n >= 500), "{n_answered:?}");
    // All of it was taken up, and not only the last.
    let revision = node.metric("anynode_config_revision");
    assert!(revision as usize > n_changes / 2, "{revision} tables of {n_changes}");
}

fn secure_port(url: &str) -> &str {
    url.trim_end_matches('/').rsplit(':').next().unwrap()
}

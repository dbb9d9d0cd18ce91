//! Changes while requests go on: none of them fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use super::rig::{Authority, Endpoint, Node, answer, at, get, read_head, service};
use crate::harness::{free_port, wait_until};

/// Ends what runs beside it, however a test ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks again and again from four clients while `change` is done. Returns how many answers there were; none of them but 200.
fn while_asking(port: u16, change: impl FnOnce(&AtomicUsize)) -> usize {
    let is_over = AtomicBool::new(false);
    let (n_answers, n_failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let (status, text) = get(at(port), "/");
                    n_answers.fetch_add(1, Ordering::SeqCst);
                    if status != 200 {
                        n_failed.fetch_add(1, Ordering::SeqCst);
                        eprintln!("{text}");
                    }
                }
            });
        }
        let _over = Over(&is_over);
        change(&n_answers);
    });
    assert_eq!(n_failed.load(Ordering::SeqCst), 0);
    n_answers.load(Ordering::SeqCst)
}

#[test]
fn a_file_of_authorities_is_replaced_and_no_request_fails() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let names = &["web"];
    let (old, new) = (before.issue(names), after.issue(names));
    let [first, second] = [Endpoint::mirror(&old), Endpoint::mirror(&new)];
    let port = free_port();
    let with = |endpoint: &Endpoint| service("web", port, &[endpoint.addr()], &["endpoint_tls: { ca: internal }"]);
    let node = Node::start(&with(&first), &[("internal", &before.pem)]);
    let write = |pem: &str| {
        let path = node.path("internal-ca.pem");
        std::fs::write(node.path("next.pem"), pem).unwrap();
        std::fs::rename(node.path("next.pem"), path).unwrap();
    };
    let taken = |n: usize| wait_until("the file", || node.log().matches("taken up").count() == n);
    let n = while_asking(port, |n_answers| {
        let settle = || {
            let n = n_answers.load(Ordering::SeqCst);
            wait_until("more answers", || n_answers.load(Ordering::SeqCst) > n + 50);
        };
        settle();
        write(&format!("{}{}", before.pem, after.pem));
        taken(1);
        settle();
        node.declare(&with(&second));
        settle();
        write(&after.pem);
        taken(2);
        settle();
        // Half of a file leaves what was.
        std::fs::write(node.path("internal-ca.pem"), &after.pem[..100]).unwrap();
        wait_until("the fault", || node.status().contains("! authorities.internal = "));
        assert!(node.ready().contains("authorities.internal = "), "{}", node.ready());
        settle();
        write(&after.pem);
        wait_until("no fault", || !node.status().contains("! authorities"));
    });
    println!("{n} answers");
    // It counts, for connections that stand too: whom the file does not have is not believed any more.
    write(&before.pem);
    wait_until("nobody to be believed", || get(at(port), "/").0 == 502);
    assert!(node.handshakes("web", "unknown_issuer") >= 1);
}

#[test]
fn a_file_of_authorities_that_is_only_touched_costs_no_connection() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::mirror(&authority.issue(&["web"]));
    let port = free_port();
    let node = Node::start(
        &service("web", port, &[endpoint.addr()], &["endpoint_tls: { ca: internal }"]),
        &[("internal", &authority.pem)],
    );
    while_asking(port, |n_answers| {
        let settle = || {
            let n = n_answers.load(Ordering::SeqCst);
            wait_until("more answers", || n_answers.load(Ordering::SeqCst) > n + 50);
        };
        settle();
        let before = endpoint.seen();
        for _ in 0..3 {
            std::fs::write(node.path("internal-ca.pem"), &authority.pem).unwrap();
            std::thread::sleep(Duration::from_millis(1200));
        }
        settle();
        // As many as clients ask at once, on two workers, and none anew.
        let after = endpoint.seen();
        assert!(after.n_full + after.n_resumed <= before.n_full + before.n_resumed + 4);
        assert_eq!(after.n_full, before.n_full);
    });
    assert_eq!(node.log().matches("taken up").count(), 0);
    // What is being written may be half of it.
    let other = Authority::new("other");
    for i in 0..20 {
        let half = format!("{}# {i}\n", other.pem);
        std::fs::write(node.path("internal-ca.pem"), half).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(node.log().matches("taken up").count(), 0);
    assert_eq!(get(at(port), "/").0, 200);
    wait_until("the file", || node.log().matches("taken up").count() == 1);
}

#[test]
fn endpoints_are_replaced_one_by_one_and_no_request_fails() {
    let authority = Authority::new("internal");
    let start = |name: &'static str| {
        Endpoint::start(&authority.issue(&["web"]), move |stream| {
            while read_head(stream).is_some() {
                if answer(stream, name).is_err() {
                    return;
                }
            }
        })
    };
    let mut endpoints = [start("old"), start("old"), start("old")];
    let port = free_port();
    let with = |endpoints: &[Endpoint]| {
        let addrs: Vec<_> = endpoints.iter().map(Endpoint::addr).collect();
        service("web", port, &addrs, &["endpoint_tls: { ca: internal }"])
    };
    let node = Node::start(&with(&endpoints), &[("internal", &authority.pem)]);
    let gone: Arc<RwLock<Vec<Endpoint>>> = Arc::default();
    while_asking(port, |n_answers| {
        for i in 0..3 {
            let n = n_answers.load(Ordering::SeqCst);
            wait_until("more answers", || n_answers.load(Ordering::SeqCst) > n + 50);
            let before = std::mem::replace(&mut endpoints[i], start("new"));
            node.declare(&with(&endpoints));
            // What it was at it ends.
            std::thread::sleep(Duration::from_millis(200));
            gone.write().unwrap().push(before);
        }
    });
    let answers: Vec<String> = (0..6).map(|_| get(at(port), "/").1).collect();
    assert!(answers.iter().all(|text| text.ends_with("new")), "{answers:?}");
}

//! slowhttptest, a tool that others wrote to hold servers up: slow heads, slow bodies, ranges without end, slow readers. Against a
//! port of one service and against TLS at an entry point, all at once, while others are served.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::harness::{Origin, free_port, read_head, wait_until};
use crate::tls::{Authority, Node, ON, Over, local, write_pair};

/// Enough of it that readers who are slow leave some behind.
fn large() -> Origin {
    Origin::start(|mut stream| {
        use std::io::Write;
        let body = vec![b'a'; 64 << 10];
        while read_head(&mut stream).is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            if stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&body))
                .is_err()
            {
                return;
            }
        }
    })
}

const SECONDS: usize = 10;

fn slow(way: &str, url: &str) -> Child {
    let mut command = Command::new("slowhttptest");
    command.args([way, "-u", url, "-t", if way == "-B" { "POST" } else { "GET" }]);
    // Handshakes take time, the tool's own too: with more of them it would find itself slow.
    let (most, rate) = if url.starts_with("https") {
        ("100", "20")
    } else {
        ("250", "125")
    };
    command.args(["-c", most, "-r", rate, "-l", &SECONDS.to_string()]);
    // Followed up each second; a small window and a read of a few bytes a second for those that read.
    command.args(["-i", "1", "-p", "9", "-w", "512", "-y", "1024", "-n", "2", "-z", "32"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn slow_clients_hold_nobody_up() {
    let (origin, authority) = (large(), Authority::new("tests"));
    let plain = local(free_port());
    let services = format!(
        "services:
  plain:
    mode: http
    publish: [\"{plain}:80\"]
    endpoints: [\"{0}\"]
  all:
    route: PathPrefix(`/`)
    endpoints: [\"{0}\"]
",
        origin.addr
    );
    let node = Node::start(&services, ON, &["a"], |dir| {
        std::fs::write(dir.join("ca.pem"), &authority.pem).unwrap();
        write_pair(dir, "a", &authority.issue(&["a.test"], 90));
    });
    let urls = [format!("http://{plain}/"), format!("https://{}/", node.secure)];
    let attacks = urls
        .iter()
        .flat_map(|url| ["-H", "-B", "-R", "-X"].map(|way| (format!("{way} {url}"), slow(way, url))));
    let attacks: Vec<(String, Child)> = attacks.collect();
    wait_until("the attacks", || n_open(&node) > 250);
    let is_over = AtomicBool::new(false);
    let n_answers = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (is_over, n_answers, node) = (&is_over, &n_answers, &node);
        scope.spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                assert_eq!(node.body("a.test", "/", &[]).len(), 64 << 10);
                let curl = ["-sS", "--max-time", "20", &format!("http://{plain}/")];
                let out = Command::new("curl").args(curl).output().unwrap();
                assert!(out.status.success() && out.stdout.len() == 64 << 10, "{:?}", out.status);
                n_answers.fetch_add(2, Ordering::SeqCst);
            }
        });
        let _over = Over(is_over);
        for (what, attack) in attacks {
            let out = attack.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&out.stdout);
            let seen: Vec<&str> = said.lines().filter(|line| line.contains("service available")).collect();
            assert!(
                !seen.is_empty() && seen.iter().all(|line| line.contains("YES")),
                "{what}: {said}"
            );
        }
    });
    let n_answers = n_answers.into_inner();
    println!("{n_answers} answers meanwhile");
    // Each was answered within its time, which counts; how many is for the machine to say.
    assert!(n_answers >= 4, "{n_answers}");
    wait_until("all of them gone", || n_open(&node) == 0);
}

fn n_open(node: &Node) -> u64 {
    node.metric("anynode_connections_active{service=\"plain\"}")
        + node.metric("anynode_entrypoint_connections_active{entrypoint=\"websecure\"}")
}

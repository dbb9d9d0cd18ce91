//! A thousand services of ten endpoints on a thousand ports: they all answer, the node stays small, and one change
//! touches nothing but what it changes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::admin::request;
use crate::harness::{Origin, dial, free_port, wait_until};

const N_SERVICES: usize = 1000;

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// The inodes of everything that it listens on or is connected by.
    fn sockets(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap();
        let names = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        names
            .map(|name| name.display().to_string())
            .filter(|name| name.starts_with("socket:"))
            .collect()
    }

    /// The memory that it has of its own, in kB: not the pages of its program file, of which a debug build has 35 MB
    /// and each new line more.
    fn own_memory_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Ports of loopback addresses that nobody else uses: a service is at 127.88.x.y, always on one port.
fn address(i: usize) -> String {
    format!("127.88.{}.{}", i / 250, i % 250 + 1)
}

fn write(path: &Path, port: u16, origin: SocketAddr, changed: Option<usize>) {
    let mut text = "services:\n".to_owned();
    for i in 0..N_SERVICES {
        let others: Vec<String> = (1..10)
            .map(|j| format!("\"127.99.{}.{}:{j}\"", i / 250, i % 250 + 1))
            .collect();
        text.push_str(&format!("  s{i}:\n    publish: [\"{}:{port}:80\"]\n", address(i)));
        if changed == Some(i) {
            text.push_str("    stop_grace: 99s\n    expose: [8099]\n");
        }
        text.push_str(&format!("    endpoints: [\"{origin}\", {}]\n", others.join(", ")));
    }
    let aside = path.with_extension("new");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(aside, path).unwrap();
}

#[test]
fn a_thousand_services_are_small_and_change_one_at_a_time() {
    let origin = Origin::echo();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("services.yml");
    let port = free_port();
    write(&path, port, origin.addr, None);
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let started = Instant::now();
    let program = Program(
        Command::new(env!("CARGO_BIN_EXE_anynode"))
            .args(["up", "--dns", "none", "--admin", &admin.to_string()])
            .arg("--services")
            .arg(&path)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let door = |i: usize| -> SocketAddr { format!("{}:{port}", address(i)).parse().unwrap() };
    wait_until("the last port", || TcpStream::connect(door(N_SERVICES - 1)).is_ok());
    println!("up after {:?}", started.elapsed());
    for i in 0..N_SERVICES {
        drop(dial(door(i)));
    }
    let mut kept = dial(door(7));
    kept.write_all(b"x").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    let memory = program.own_memory_kb();
    println!("{memory} kB of its own");
    assert!(memory < 28 * 1024, "{memory} kB");

    // The connections of the loop above come to their end first.
    wait_until("the sockets to settle", || {
        let before = program.sockets();
        std::thread::sleep(std::time::Duration::from_millis(50));
        before == program.sockets()
    });
    let before = program.sockets();
    write(&path, port, origin.addr, Some(500));
    wait_until("the new port of its VIP", || {
        let (_, _, body) = request(admin, "GET", "/v1/status");
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        let ports = status["ports"].as_array().unwrap();
        let is_new = |port: &serde_json::Value| port["listen"].as_str().unwrap().ends_with(":8099");
        ports.iter().any(|port| is_new(port) && port["state"] != "starting")
    });
    // VIPs have no sockets of their own.
    let after = program.sockets();
    assert!(
        before.is_subset(&after),
        "a socket that had nothing to do with it is gone"
    );
    // That of who asked for the status may be there still.
    assert!(
        after.len() <= before.len() + 1,
        "{} new sockets",
        after.len() - before.len()
    );
    kept.write_all(b"y").unwrap();
    kept.read_exact(&mut [0]).unwrap();
}

//! Namespaces that go away: what is held of them, how it is noticed, and what stays when anynode is killed.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anynode::sys::netns::{Mounts, Netns, process_ended};
use anynode::sys::sk_lookup::AddressLookup;
use anynode::sys::socket::Liveness;
use anynode::sys::transparent::{self, Caller};
use anynode::sys::vips::{LocalAddresses, Vips, open_dns};

use super::{DEADLINE, Space, Stage, addr, entrances};

/// Whether the other end of the task's link is still there, which goes with its namespace.
fn is_linked(node: &Space) -> bool {
    node.sh("ip -br link").lines().any(|line| line.starts_with("v0"))
}

/// The kernel takes namespaces down a moment later.
fn is_unlinked_soon(node: &Space) -> bool {
    let deadline = Instant::now() + DEADLINE;
    while is_linked(node) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[tokio::test]
async fn a_socket_keeps_its_namespace_alive_and_nothing_else_does() {
    for held in ["nothing", "handle", "bpf", "listener", "connection", "dns"] {
        let Some(stage) = Stage::new() else { return };
        let entrances = entrances();
        let (node, task) = (stage.node, stage.task);
        let netns = task.netns();
        let listener = task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let kept: Box<dyn std::any::Any> = match held {
            "handle" => Box::new((netns.clone(), entrances.clone())),
            "bpf" => Box::new(task.run(|| AddressLookup::attach(listener.as_fd()).unwrap())),
            "listener" => Box::new(Vips::open(&entrances, &netns, &Liveness::default()).await.unwrap()),
            "connection" => {
                let target = addr("10.9.0.2:80");
                Box::new(
                    transparent::connect(&entrances, &netns, Caller::Nobody, target, &[])
                        .await
                        .unwrap(),
                )
            }
            "dns" => {
                let ip: IpAddr = "127.0.0.53".parse().unwrap();
                Box::new(open_dns(&entrances, &netns, ip).await.unwrap())
            }
            _ => Box::new(()),
        };
        drop(listener);
        drop(task);
        assert!(!netns.is_there());
        if ["listener", "connection", "dns"].contains(&held) {
            std::thread::sleep(Duration::from_millis(300));
            assert!(is_linked(&node), "held by {held}");
            drop(kept);
        } else {
            assert!(is_unlinked_soon(&node), "held by {held}");
        }
        assert!(is_unlinked_soon(&node), "held by {held} no more");
    }
}

#[tokio::test]
async fn a_name_that_goes_is_noticed() {
    let (Some(space), Some(other)) = (Space::new(), Space::new()) else {
        return;
    };
    let (netns, stays) = (space.netns(), other.netns());
    assert!(netns.processes().unwrap().is_empty());
    let mounts = Mounts::watch().unwrap();
    let noticed = tokio::time::timeout(DEADLINE, async {
        while netns.is_there() {
            mounts.changed().await.unwrap();
        }
    });
    let goes = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(space);
    };
    let (noticed, ()) = tokio::join!(noticed, goes);
    noticed.unwrap();
    assert!(stays.is_there());
}

#[tokio::test]
async fn a_process_that_ends_takes_its_namespace_along() {
    let Some(_root) = Space::new() else { return };
    let mut child = Unshared::new();
    let netns = Netns::of_process(child.0.id()).unwrap();
    assert_ne!(netns.id(), Netns::own().unwrap().id());
    assert_eq!(netns.processes().unwrap(), [child.0.id()]);
    assert_eq!(netns.process(), Some(child.0.id()));
    let entrances = entrances();
    entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
    let (_vips, listener) = Vips::open(&entrances, &netns, &Liveness::default()).await.unwrap();
    child.0.kill().unwrap();
    tokio::time::timeout(DEADLINE, process_ended(child.0.id()))
        .await
        .unwrap()
        .unwrap();
    child.0.wait().unwrap();
    assert!(!netns.is_there());
    // The listener still has it, with nobody inside; nobody gets in any more either.
    assert!(netns.processes().unwrap().is_empty());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    entrances.run(&netns, || ()).await.unwrap_err();
}

/// A program in a network namespace that has no name.
struct Unshared(Child);

impl Unshared {
    fn new() -> Unshared {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Unshared(child)
    }
}

impl Drop for Unshared {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn killed_at_any_moment_it_leaves_nothing_that_does_anything() {
    let Some(stage) = Stage::new() else { return };
    let before = stage.task.routing();
    for moment_ms in [0, 1, 3, 10, 100] {
        let mut killed = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "netns::away::child", "--ignored", "--nocapture"])
            .env("NETNS_TEST_PATH", stage.task.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(killed.stdout.take().unwrap());
        let began = said.lines().map_while(Result::ok).any(|line| line.contains("begins"));
        assert!(began);
        std::thread::sleep(Duration::from_millis(moment_ms));
        killed.kill().unwrap();
        killed.wait().unwrap();
        // Whatever stays, programs work on as ever, over the wire and inside.
        let web = stage.task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let target = addr("10.9.0.2:80");
        for space in [&stage.node, &stage.task] {
            super::exchange(
                &web,
                space.run(|| TcpStream::connect_timeout(&target, DEADLINE).unwrap()),
            );
        }
        let vip = stage
            .task
            .run(|| TcpStream::connect_timeout(&addr("10.200.0.1:81"), Duration::from_millis(300)));
        assert!(vip.is_err(), "nobody listens any more");
    }
    // The next instance takes it from there.
    let (entrances, netns) = (entrances(), stage.task.netns());
    entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
    let (mut vips, listener) = Vips::open(&entrances, &netns, &Liveness::default()).await.unwrap();
    vips.set(&entrances, &LocalAddresses::default()).await.unwrap();
    entrances.run(&netns, transparent::tear_down).await.unwrap().unwrap();
    assert_eq!(stage.task.routing(), before);
    drop((vips, listener, entrances));
    // And all of it goes with the namespace.
    let Stage { node, task } = stage;
    drop(task);
    assert!(is_unlinked_soon(&node));
}

#[tokio::test]
#[ignore = "not a test: what the process that is killed does"]
async fn child() {
    let Ok(path) = std::env::var("NETNS_TEST_PATH") else {
        return;
    };
    println!("begins");
    let (entrances, netns) = (entrances(), Netns::at(path).unwrap());
    loop {
        entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
        let (mut vips, _listener) = Vips::open(&entrances, &netns, &Liveness::default()).await.unwrap();
        for n in 1..10 {
            let local = LocalAddresses {
                taken: vec![
                    format!("10.200.0.{n}/32").parse().unwrap(),
                    "fd00:200::1/128".parse().unwrap(),
                ],
                ..LocalAddresses::default()
            };
            vips.set(&entrances, &local).await.unwrap();
        }
        entrances.run(&netns, transparent::tear_down).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn namespaces_that_come_and_go_leave_no_descriptor() {
    let Some(_possible) = Space::new() else { return };
    // Other tests of this process open and close theirs, so a process of its own counts.
    let counted = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "netns::away::counter", "--ignored", "--nocapture"])
        .env("NETNS_TEST_COUNT", "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&counted.stdout);
    assert!(
        counted.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&counted.stderr)
    );
    println!("{said}");
}

#[tokio::test]
#[ignore = "not a test: what the process that counts does"]
async fn counter() {
    if std::env::var("NETNS_TEST_COUNT").is_err() {
        return;
    }
    let n_open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let entrances = entrances();
    let first = Space::new().unwrap();
    entrances.run(&first.netns(), || ()).await.unwrap();
    let before = n_open();
    for _ in 0..10 {
        let space = Space::new().unwrap();
        let netns = space.netns();
        entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
        assert_eq!(n_open(), before);
        let vips = Vips::open(&entrances, &netns, &Liveness::default()).await.unwrap();
        assert_eq!(n_open(), before + 3, "listener, BPF link, trie");
        let dns = open_dns(&entrances, &netns, "127.0.0.53".parse().unwrap())
            .await
            .unwrap();
        assert_eq!(n_open(), before + 4, "and UDP");
        // The namespace goes first, as it does when a task dies.
        drop(space);
        drop((vips, dns));
        assert_eq!(n_open(), before);
    }
}

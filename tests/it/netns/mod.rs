//! Sockets inside network namespaces, against real ones: going in, clients' addresses, services' addresses, the end.

mod away;
mod entrances;
mod listing;
mod transit;
mod transparent;
mod vips;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anynode::sys::entrances::Entrances;
use anynode::sys::netns::Netns;
use ipnet::IpNet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PATIENCE: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(10);

/// A network namespace with a name, gone when dropped.
pub(super) struct Space {
    name: String,
}

impl Space {
    /// `None`, with a word, where none can be made.
    pub(super) fn new() -> Option<Space> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            println!("skipped: not root");
            return None;
        }
        let name = format!("any-ns-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            println!("skipped: no network namespaces here");
            return None;
        }
        Some(Space { name })
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    fn netns(&self) -> Netns {
        Netns::at(self.path()).unwrap()
    }

    /// Does `act` on a thread that is inside and then ends.
    pub(super) fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(self.path()).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(super) fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.name))
    }

    /// A program that runs inside.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        crate::cli::forget_variables(&mut command);
        command
    }

    /// The rules and routes of both families, as `ip` shows them; without those of link-local addresses, which come late.
    fn routing(&self) -> String {
        let asked = "ip rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all";
        self.sh(&format!("sh -c '{asked}'"))
            .lines()
            .filter(|line| !line.contains("fe80:"))
            .map(|line| format!("{line}\n"))
            .collect()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A node and a task on the two ends of a veth pair.
struct Stage {
    node: Space,
    task: Space,
}

const TASK: &str = "10.9.0.2";
const TASK6: &str = "fd00:9::2";
const NODE: &str = "10.9.0.1";
const NODE6: &str = "fd00:9::1";

impl Stage {
    fn new() -> Option<Stage> {
        let (node, task) = (Space::new()?, Space::new()?);
        let (n, t) = (&node.name, &task.name);
        sh(&format!("ip link add v0 netns {n} type veth peer name eth0 netns {t}"));
        for (space, link, ip, ip6) in [(n, "v0", NODE, NODE6), (t, "eth0", TASK, TASK6)] {
            sh(&format!(
                "ip -n {space} addr add {ip}/24 dev {link} && ip -n {space} addr add {ip6}/64 dev {link} nodad && \
                 ip -n {space} link set lo up && ip -n {space} link set {link} up"
            ));
        }
        sh(&format!(
            "ip -n {t} route add default via {NODE} && ip -n {t} route add default via {NODE6}"
        ));
        // What the kernel makes of an address of IPv6 comes once both ends are up, a moment later.
        for (space, ip6) in [(&node, NODE6), (&task, TASK6)] {
            crate::harness::wait_until("the routes of IPv6", || {
                space
                    .sh("ip -6 route show table local")
                    .contains(&format!("local {ip6} "))
            });
        }
        Some(Stage { node, task })
    }

    fn own(&self) -> Vec<IpNet> {
        ["127.0.0.1/8", "10.9.0.2/24", "fd00:9::2/64"]
            .map(|net| net.parse().unwrap())
            .to_vec()
    }
}

/// Sends a byte each way, and returns whom the accepting side saw.
fn exchange(listener: &TcpListener, mut stream: TcpStream) -> SocketAddr {
    let (mut accepted, peer) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    for end in [&stream, &accepted] {
        end.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    stream.write_all(b"question").unwrap();
    accepted.read_exact(&mut [0; 8]).unwrap();
    accepted.write_all(b"answer").unwrap();
    stream.read_exact(&mut [0; 6]).unwrap();
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Waits until a connection that was begun stands: mostly it does, but not on a busy machine.
fn stands(stream: &TcpStream) {
    let mut asked = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::OUT)];
    let timeout = DEADLINE.try_into().unwrap();
    assert_eq!(rustix::event::poll(&mut asked, Some(&timeout)).unwrap(), 1, "it stands");
    assert!(stream.take_error().unwrap().is_none());
}

fn entrances() -> Entrances {
    Entrances::open(PATIENCE).unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

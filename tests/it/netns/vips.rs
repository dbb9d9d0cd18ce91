//! Services' addresses inside a task's namespace, and DNS there.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anynode::sys::entrances::Entrances;
use anynode::sys::socket::Liveness;
use anynode::sys::transparent;
use anynode::sys::vips::{self, LocalAddresses, VipError, remove_routes};
use ipnet::IpNet;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::{DEADLINE, Space, Stage, TASK, TASK6, addr, entrances, exchange};

/// What takes connections in a task's namespace, with its listener.
struct Vips {
    vips: vips::Vips,
    listener: TcpListener,
}

impl Vips {
    fn listener(&self) -> &TcpListener {
        &self.listener
    }

    async fn set(&mut self, entrances: &Entrances, local: &LocalAddresses) -> Result<(), VipError> {
        self.vips.set(entrances, local).await
    }
}

async fn open(stage: &Stage, entrances: &Entrances) -> Vips {
    let (netns, liveness) = (stage.task.netns(), Liveness::default());
    let (vips, listener) = vips::Vips::open(entrances, &netns, &liveness).await.unwrap();
    Vips { vips, listener }
}

fn own(ip: &str) -> IpNet {
    ip.parse::<IpAddr>().unwrap().into()
}

fn local(taken: &[&str]) -> LocalAddresses {
    LocalAddresses {
        taken: taken.iter().map(|net| net.parse().unwrap()).collect(),
        sources: [TASK, TASK6].map(own).to_vec(),
        ..LocalAddresses::default()
    }
}

/// Connects as a program inside would.
fn connect(space: &Space, to: &str) -> io::Result<TcpStream> {
    let connected = space.run(|| TcpStream::connect_timeout(&addr(to), Duration::from_secs(3)));
    connected.map_err(|error| io::Error::new(error.kind(), format!("{to}: {error}")))
}

/// Whom the listener of the addresses took a connection from, and where that wanted to go.
fn taken(vips: &Vips, stream: TcpStream) -> (SocketAddr, SocketAddr) {
    let to = stream.peer_addr().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let deadline = Instant::now() + DEADLINE;
    let (mut accepted, from) = loop {
        match vips.listener().accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "a connection to {to} went elsewhere");
                std::thread::sleep(Duration::from_millis(1));
            }
            accepted => break accepted.unwrap(),
        }
    };
    let local = accepted.local_addr().unwrap();
    assert_eq!((local.ip().to_canonical(), local.port()), (to.ip(), to.port()));
    accepted.write_all(b"answer").unwrap();
    (&stream).read_exact(&mut [0; 6]).unwrap();
    (SocketAddr::new(from.ip().to_canonical(), from.port()), to)
}

/// As where Docker's own resolver is, which listens on another port of the address.
#[tokio::test]
async fn of_an_address_for_names_one_port_alone_comes_to_the_listener() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let mut vips = open(&stage, &entrances).await;
    let names = LocalAddresses {
        names: vec!["127.0.0.11".parse().unwrap()],
        ..local(&[])
    };
    vips.set(&entrances, &names).await.unwrap();
    let other = stage.task.run(|| TcpListener::bind("127.0.0.11:35353")).unwrap();
    taken(&vips, connect(&stage.task, "127.0.0.11:53").unwrap());
    let stream = connect(&stage.task, "127.0.0.11:35353").unwrap();
    let (_, from) = other.accept().unwrap();
    assert_eq!(from, stream.local_addr().unwrap());
    let refused = connect(&stage.task, "127.0.0.11:54").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    vips.set(&entrances, &local(&[])).await.unwrap();
    assert!(connect(&stage.task, "127.0.0.11:53").is_err());
}

#[tokio::test]
async fn any_port_of_an_address_comes_to_the_listener() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let mut vips = open(&stage, &entrances).await;
    // The program itself listens everywhere, on one of the ports.
    let web = stage.task.run(|| TcpListener::bind("[::]:8000").unwrap());
    let addresses = local(&["10.200.3.4/32", "10.201.0.0/16", "fd00:200::4/128", "fd00:201::/64"]);
    vips.set(&entrances, &addresses).await.unwrap();
    for to in [
        "10.200.3.4:80",
        "10.200.3.4:8000",
        "10.200.3.4:65535",
        "10.200.3.4:1",
        "10.201.255.1:53",
        "[fd00:200::4]:8000",
        "[fd00:201::abcd]:1",
    ] {
        let (from, _) = taken(&vips, connect(&stage.task, to).unwrap());
        let own = if to.starts_with('[') { TASK6 } else { TASK };
        assert_eq!(from.ip(), own.parse::<IpAddr>().unwrap(), "to {to}");
    }
    // What is not ours is where it was.
    for to in ["127.0.0.1:8000", "10.9.0.2:8000", "[fd00:9::2]:8000", "[::1]:8000"] {
        exchange(&web, connect(&stage.task, to).unwrap());
    }
    for to in ["10.9.0.2:80", "[fd00:9::2]:80"] {
        assert_eq!(
            connect(&stage.task, to).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
    for to in ["10.200.3.5:80", "[fd00:200::5]:80"] {
        assert!(connect(&stage.task, to).is_err(), "{to} is not local");
    }
    assert_eq!(vips.listener().accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn neighbours_do_not_reach_the_listener() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let mut vips = open(&stage, &entrances).await;
    let addresses = local(&["10.200.3.4/32", "fd00:200::4/128"]);
    vips.set(&entrances, &addresses).await.unwrap();
    stage.node.sh("ip route add 10.200.3.4 via 10.9.0.2");
    stage.node.sh("ip route add fd00:200::4 via fd00:9::2");
    for to in ["10.200.3.4:80", "[fd00:200::4]:80"] {
        let refused = connect(&stage.node, to).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{to}");
    }
    // But the program, who then has the address too, if it listens everywhere.
    let web = stage.task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    exchange(&web, connect(&stage.node, "10.200.3.4:80").unwrap());
    taken(&vips, connect(&stage.task, "10.200.3.4:80").unwrap());
}

#[tokio::test]
async fn addresses_come_and_go_and_routes_with_them() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let before = stage.task.routing();
    let mut vips = open(&stage, &entrances).await;
    let both = ["10.200.0.1/32", "10.200.0.2/32", "fd00:200::1/128"];
    vips.set(&entrances, &local(&both)).await.unwrap();
    let held = connect(&stage.task, "10.200.0.1:80").unwrap();
    taken(&vips, held.try_clone().unwrap());
    let stands = connect(&stage.task, "10.200.0.1:80").unwrap();
    let mut accepted = vips.listener().accept().unwrap().0;
    vips.set(&entrances, &local(&["10.200.0.2/32"])).await.unwrap();
    assert!(connect(&stage.task, "10.200.0.1:80").is_err());
    assert!(connect(&stage.task, "[fd00:200::1]:80").is_err());
    taken(&vips, connect(&stage.task, "10.200.0.2:80").unwrap());
    // What stood goes on while its address is local; it cannot without.
    vips.set(&entrances, &local(&both)).await.unwrap();
    accepted.write_all(b"still").unwrap();
    stands.set_read_timeout(Some(DEADLINE)).unwrap();
    (&stands).read_exact(&mut [0; 5]).unwrap();
    // Another source, and none.
    let mut nobody = local(&both);
    nobody.sources.clear();
    vips.set(&entrances, &nobody).await.unwrap();
    for to in ["10.200.0.1:80", "[fd00:200::1]:80"] {
        let (from, to) = taken(&vips, connect(&stage.task, to).unwrap());
        let kernels = if to.is_ipv4() { to.ip() } else { TASK6.parse().unwrap() };
        assert_eq!(from.ip(), kernels);
    }
    vips.set(&entrances, &LocalAddresses::default()).await.unwrap();
    assert_eq!(stage.task.routing(), before);
}

#[tokio::test]
async fn what_an_instance_before_left_is_replaced() {
    let Some(stage) = Stage::new() else { return };
    let (entrances, netns) = (entrances(), stage.task.netns());
    let before = stage.task.routing();
    stage.task.sh("ip route add local 10.77.0.1 dev lo");
    let others = stage.task.routing();
    let mut first = open(&stage, &entrances).await;
    first
        .set(
            &entrances,
            &local(&["10.200.0.1/32", "10.200.0.2/32", "fd00:200::1/128"]),
        )
        .await
        .unwrap();
    drop(first);
    let mut second = open(&stage, &entrances).await;
    second.set(&entrances, &local(&["10.200.0.2/32"])).await.unwrap();
    taken(&second, connect(&stage.task, "10.200.0.2:80").unwrap());
    assert!(!stage.task.routing().contains("10.200.0.1"));
    // Two at work: who came last takes what it wants, and the other what is left when that one goes.
    let mut third = open(&stage, &entrances).await;
    third.set(&entrances, &local(&["10.200.0.2/32"])).await.unwrap();
    taken(&third, connect(&stage.task, "10.200.0.2:80").unwrap());
    drop(third);
    taken(&second, connect(&stage.task, "10.200.0.2:80").unwrap());
    drop(second);
    entrances.run(&netns, remove_routes).await.unwrap().unwrap();
    assert_eq!(stage.task.routing(), others);
    assert_ne!(others, before);
}

/// As a child holds all descriptors from its fork until it runs its program.
fn held_by_a_fork() -> Vec<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let is_link = |fd: &RawFd| {
        let name = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        name.is_ok_and(|name| name.to_string_lossy().contains("bpf_link"))
    };
    let names = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let fds = names.filter_map(|name| name.file_name().to_str()?.parse().ok());
    fds.filter(is_link)
        .filter_map(|fd| pidfd_getfd(&this, fd, PidfdGetfdFlags::empty()).ok())
        .collect()
}

#[tokio::test]
async fn what_is_given_up_takes_nothing_though_a_fork_holds_it() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let addresses = local(&["10.200.0.2/32"]);
    let mut before = open(&stage, &entrances).await;
    before.set(&entrances, &addresses).await.unwrap();
    let mut gone = open(&stage, &entrances).await;
    gone.set(&entrances, &addresses).await.unwrap();
    taken(&gone, connect(&stage.task, "10.200.0.2:80").unwrap());
    let held = held_by_a_fork();
    assert!(held.len() >= 2);
    drop(gone);
    taken(&before, connect(&stage.task, "10.200.0.2:80").unwrap());
    drop(held);
}

#[tokio::test]
async fn the_listener_takes_no_port_that_a_program_may_want() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let held: Vec<Vips> = [open(&stage, &entrances).await, open(&stage, &entrances).await].into();
    let ports: BTreeSet<u16> = held
        .iter()
        .map(|vips| vips.listener().local_addr().unwrap().port())
        .collect();
    assert_eq!(ports, BTreeSet::from([1, 2]));
    // Who goes there directly gets a connection that is nobody's, and the local address says so.
    let _stray = connect(&stage.task, "127.0.0.1:1").unwrap();
    let (accepted, _) = held[0].listener().accept().unwrap();
    assert!(accepted.local_addr().unwrap().ip().to_canonical().is_loopback());
}

#[tokio::test]
async fn a_source_that_is_not_the_tasks_own_is_told() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let mut vips = open(&stage, &entrances).await;
    let mut wrong = local(&["10.200.0.1/32"]);
    wrong.sources = vec![own("10.9.0.99")];
    let error = vips.set(&entrances, &wrong).await.unwrap_err();
    assert!(
        matches!(&error, VipError::Route { to, .. } if *to == "10.200.0.1/32".parse::<IpNet>().unwrap()),
        "{error:?}"
    );
    vips.set(&entrances, &local(&["10.200.0.1/32"])).await.unwrap();
    taken(&vips, connect(&stage.task, "10.200.0.1:80").unwrap());
}

#[tokio::test]
async fn it_goes_together_with_clients_addresses() {
    let Some(stage) = Stage::new() else { return };
    let (entrances, netns) = (entrances(), stage.task.netns());
    entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
    let mut vips = open(&stage, &entrances).await;
    vips.set(&entrances, &local(&["10.200.0.1/32"])).await.unwrap();
    let web = stage.task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let caller = transparent::Caller::Client {
        client: addr("203.0.113.7:5555"),
        stand_in: None,
    };
    let target = SocketAddr::new(TASK.parse().unwrap(), 80);
    let made = transparent::connect(&entrances, &netns, caller, target, &stage.own())
        .await
        .unwrap();
    assert_eq!(exchange(&web, made.stream), addr("203.0.113.7:5555"));
    taken(&vips, connect(&stage.task, "10.200.0.1:80").unwrap());
    entrances.run(&netns, transparent::tear_down).await.unwrap().unwrap();
    taken(&vips, connect(&stage.task, "10.200.0.1:80").unwrap());
}

#[tokio::test]
async fn a_thousand_addresses_are_set_at_once() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let mut vips = open(&stage, &entrances).await;
    let all: Vec<String> = (0..1000)
        .map(|n| format!("10.200.{}.{}/32", n / 250, n % 250 + 1))
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for (what, addresses) in [("1000 come", &all[..]), ("1 goes", &all[1..]), ("999 go", &[])] {
        let began = Instant::now();
        vips.set(&entrances, &local(addresses)).await.unwrap();
        println!("{what}: {:?}", began.elapsed());
    }
    let began = Instant::now();
    for _ in 0..20 {
        let mut vips = open(&stage, &entrances).await;
        vips.set(&entrances, &local(&["10.200.0.0/16"])).await.unwrap();
        vips.set(&entrances, &local(&[])).await.unwrap();
    }
    println!(
        "a listener, its program and one prefix, made and taken away: {:?}",
        began.elapsed() / 20
    );
}

#[tokio::test]
async fn dns_is_answered_at_an_address_inside() {
    let Some(stage) = Stage::new() else { return };
    let (entrances, netns) = (entrances(), stage.task.netns());
    let mut vips = open(&stage, &entrances).await;
    for ip in ["127.0.0.53", "10.200.0.53", "fd00:200::53"] {
        let ip: IpAddr = ip.parse().unwrap();
        let dns = vips::open_dns(&entrances, &netns, ip).await.unwrap();
        let mut addresses = local(&["10.201.0.0/16"]);
        addresses.bound = if ip.is_loopback() { vec![] } else { vec![ip] };
        // Streams come to the listener.
        addresses.taken.push(ip.into());
        vips.set(&entrances, &addresses).await.unwrap();
        let (at, any) = (
            SocketAddr::new(ip, 53),
            if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" },
        );
        let asking = stage.task.run(|| {
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(at).unwrap();
            socket
        });
        asking.set_read_timeout(Some(DEADLINE)).unwrap();
        asking.send(b"question").unwrap();
        let (_, from) = dns.recv_from(&mut [0; 64]).expect("on one machine it is there at once");
        assert_eq!(from.port(), asking.local_addr().unwrap().port());
        dns.send_to(b"answer", from).unwrap();
        assert_eq!(asking.recv(&mut [0; 64]).unwrap(), 6);
        taken(&vips, connect(&stage.task, &at.to_string()).unwrap());
        // A program may answer DNS itself at its own address, but not at all of them.
        let own = SocketAddr::new(if ip.is_ipv4() { TASK } else { TASK6 }.parse().unwrap(), 53);
        stage
            .task
            .run(|| (UdpSocket::bind(own).unwrap(), TcpListener::bind(own).unwrap()));
        let everywhere = stage.task.run(|| UdpSocket::bind("[::]:53").map(drop)).unwrap_err();
        assert_eq!(everywhere.kind(), io::ErrorKind::AddrInUse);
        drop(dns);
        if ip.is_ipv4() {
            let _other = stage
                .task
                .run(move || UdpSocket::bind(SocketAddr::new(ip, 53)).unwrap());
            let refused = vips::open_dns(&entrances, &netns, ip).await.unwrap_err();
            assert!(matches!(refused, VipError::Dns { .. }), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_and_what_is_passed_stand_within_what_is_taken() {
    let Some(stage) = Stage::new() else { return };
    let entrances = entrances();
    let mut vips = open(&stage, &entrances).await;
    let web = stage.task.run(|| TcpListener::bind("0.0.0.0:8000").unwrap());
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let everything = LocalAddresses {
        taken: vec![net("0.0.0.0/0"), net("10.200.1.4/32")],
        refused: vec![net("10.200.1.0/24")],
        passed: vec![net("127.0.0.0/8"), net("10.9.0.2/32")],
        routed: vec![net("0.0.0.0/0")],
        sources: vec![own(TASK)],
        ..LocalAddresses::default()
    };
    vips.set(&entrances, &everything).await.unwrap();
    for to in ["192.0.2.1:80", "10.200.1.4:8000"] {
        let (from, _) = taken(&vips, connect(&stage.task, to).unwrap());
        assert_eq!(from.ip(), TASK.parse::<IpAddr>().unwrap());
    }
    for to in ["127.0.0.1:8000", "10.9.0.2:8000"] {
        exchange(&web, connect(&stage.task, to).unwrap());
    }
    // Also where a program listens everywhere.
    let refused = connect(&stage.task, "10.200.1.5:8000").unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    // Another verdict, without a visit.
    let mut other = everything.clone();
    other.taken.push(net("10.200.1.5/32"));
    vips.set(&entrances, &other).await.unwrap();
    taken(&vips, connect(&stage.task, "10.200.1.5:8000").unwrap());
    vips.set(&entrances, &everything).await.unwrap();
    connect(&stage.task, "10.200.1.5:8000").unwrap_err();
    vips.set(&entrances, &LocalAddresses::default()).await.unwrap();
    assert!(connect(&stage.task, "192.0.2.1:80").is_err());
}

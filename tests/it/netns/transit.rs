//! Ways from a namespace in between to a machine's own addresses, several to one machine, and what is left of one that ended.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use anynode::sys::rtnetlink::RtNetlink;
use anynode::sys::transit::{self, Transit};
use anynode::sys::transparent;

use super::{DEADLINE, Entrances, PATIENCE, Space};

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CALLER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);

/// Whom a listener sees of a connection by that way.
fn seen(way: &Transit, at: SocketAddr, listener: &TcpListener) -> SocketAddr {
    let entrances = Entrances::open(PATIENCE).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let opened = runtime.block_on(transparent::open(&entrances, way.netns(), at.ip(), 1, false));
    let socket = opened.unwrap().sockets.pop().unwrap();
    let made = transparent::connect_from(socket, CALLER.into(), at).unwrap();
    let (_accepted, peer) = listener.accept().unwrap();
    assert_eq!(made.stream.local_addr().unwrap(), peer);
    peer
}

#[test]
fn two_ways_to_one_machine_do_not_meet_and_leave_nothing() {
    let Some(machine) = Space::new() else { return };
    machine.sh("ip link set lo up");
    machine.sh(&format!("ip addr add {OURS}/32 dev lo"));
    let before = machine.routing();
    machine.run(|| {
        let mut routing = RtNetlink::open().unwrap();
        for (ip, is_local) in [(OURS, true), (CALLER, false), (Ipv4Addr::new(127, 1, 2, 3), true)] {
            assert_eq!(routing.is_local(IpAddr::V4(ip)).unwrap(), is_local, "{ip}");
        }
        for (ip, is_local) in [("::1", true), ("2001:db8::1", false)] {
            assert_eq!(routing.is_local(ip.parse().unwrap()).unwrap(), is_local, "{ip}");
        }
        let listener = TcpListener::bind((OURS, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let (mut one, mut other) = (Transit::make().unwrap(), Transit::make().unwrap());
        for way in [&mut one, &mut other] {
            way.lead_back(CALLER).unwrap();
            way.lead_back(CALLER).unwrap();
        }
        let [by_one, by_other] = [&one, &other].map(|way| seen(way, at, &listener));
        assert_eq!([by_one.ip(), by_other.ip()], [IpAddr::V4(CALLER); 2]);
        assert_eq!(by_one.port() / 1024, 28);
        assert_eq!(by_other.port() / 1024, 29);
        // What lives is nobody's to clear away.
        assert!(transit::sweep().unwrap());
        drop(one);
        assert!(transit::sweep().unwrap());
        assert_eq!(seen(&other, at, &listener).port() / 1024, 29);
        let mut one = Transit::make().unwrap();
        one.lead_back(CALLER).unwrap();
        assert_eq!(seen(&one, at, &listener).port() / 1024, 28);
        one.forget(CALLER).unwrap();
        one.forget(CALLER).unwrap();
        drop(other);
        drop(one);
    });
    assert_eq!(machine.routing(), before);
    // As after a kill: the cable goes with the namespace, the rules stay.
    let _left = machine.run(|| std::mem::ManuallyDrop::new(Transit::make().unwrap()));
    machine.sh("ip link del anynode-0");
    assert!(machine.routing().contains("24942"));
    let began_at = Instant::now();
    while machine.run(transit::sweep).unwrap() {
        assert!(began_at.elapsed() < DEADLINE);
    }
    assert_eq!(machine.routing(), before);
}

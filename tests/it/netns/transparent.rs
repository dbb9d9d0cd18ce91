//! The program in a namespace sees its client's own address, and whoever else talks to it notices nothing.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anynode::sys::entrances::Entrances;
use anynode::sys::transparent::{self, Caller, ConnectError, Connecting, Families, Shown};

use super::{DEADLINE, NODE, NODE6, Space, Stage, TASK, TASK6, addr, entrances, exchange, stands};

const CLIENT: &str = "203.0.113.7:5555";
const CLIENT6: &str = "[2001:db8::7]:5555";

async fn prepared() -> Option<(Stage, Entrances)> {
    let (stage, entrances) = (Stage::new()?, entrances());
    let families = entrances.run(&stage.task.netns(), transparent::set_up).await;
    assert_eq!(families.unwrap().unwrap(), Families { is_ipv6: true });
    Some((stage, entrances))
}

async fn connect(
    (stage, entrances): (&Stage, &Entrances),
    client: &str,
    target: &str,
) -> Result<Connecting, ConnectError> {
    let caller = Caller::Client {
        client: addr(client),
        stand_in: None,
    };
    transparent::connect(entrances, &stage.task.netns(), caller, addr(target), &stage.own()).await
}

#[tokio::test]
async fn programs_see_the_client_wherever_they_listen() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let at = (&stage, &entrances);
    let (own, own6) = (format!("{TASK}:80"), format!("[{TASK6}]:80"));
    for (listens, target, clients) in [
        (
            "0.0.0.0:80",
            own.as_str(),
            &[CLIENT, "10.9.0.1:5555", "10.9.0.77:81"][..],
        ),
        ("0.0.0.0:80", "127.0.0.1:80", &[CLIENT]),
        (
            own.as_str(),
            own.as_str(),
            &[CLIENT, "10.9.0.2:5555", "240.0.0.1:5555", "203.0.113.7:80"],
        ),
        ("127.0.0.1:80", "127.0.0.1:80", &[CLIENT, "10.9.0.2:5555"]),
        ("[::]:80", own.as_str(), &[CLIENT, "[::ffff:203.0.113.8]:5555"]),
        ("[::]:80", own6.as_str(), &[CLIENT6, "[fd00:9::1]:5555"]),
        (
            own6.as_str(),
            own6.as_str(),
            &[CLIENT6, "[fd00:9::2]:5555", "[fd00:9::77]:9"],
        ),
        ("[::1]:80", "[::1]:80", &[CLIENT6]),
    ] {
        let listener = stage.task.run(|| TcpListener::bind(listens).unwrap());
        for client in clients {
            let made = connect(at, client, target).await.unwrap();
            stands(&made.stream);
            assert_eq!(made.shown, Shown::AddressAndPort, "{client} to {listens}");
            let client = addr(client);
            let seen = exchange(&listener, made.stream);
            assert_eq!(
                seen,
                SocketAddr::new(client.ip().to_canonical(), client.port()),
                "at {listens}"
            );
            ended(&stage).await;
        }
    }
}

/// Waits until nothing of an ended connection is left that would hold its four: its last words are delivered a moment later on a
/// busy machine.
async fn ended(stage: &Stage) {
    let (listens, waits_out) = ("0A", "06");
    let left = || {
        let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
            .map(|path| std::fs::read_to_string(path).unwrap());
        let lines = tables.iter().flat_map(|table| table.lines().skip(1));
        lines
            .filter(|line| ![Some(listens), Some(waits_out)].contains(&line.split_ascii_whitespace().nth(3)))
            .count()
    };
    let until = Instant::now() + DEADLINE;
    while stage.task.run(left) > 0 {
        assert!(Instant::now() < until, "a connection stays");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn whoever_else_talks_to_the_program_is_undisturbed() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let listener = stage.task.run(|| TcpListener::bind("[::]:80").unwrap());
    let mut ours = Vec::new();
    for (ip, from) in [(TASK, NODE), (TASK6, NODE6)] {
        let target = SocketAddr::new(ip.parse().unwrap(), 80);
        let over_the_wire = || {
            stage
                .node
                .run(|| TcpStream::connect_timeout(&target, DEADLINE).unwrap())
        };
        let mut before = over_the_wire();
        let (mut accepted, _) = listener.accept().unwrap();
        // The node's very own address and port, which are in use over the wire at this moment.
        let same = before.local_addr().unwrap().to_string();
        let answer = connect((&stage, &entrances), &same, &target.to_string()).await.unwrap();
        assert_eq!(answer.shown, Shown::Address, "these four are in use");
        assert_eq!(exchange(&listener, answer.stream).ip(), from.parse::<IpAddr>().unwrap());
        let client = if target.is_ipv4() { CLIENT } else { CLIENT6 };
        ours.push(
            connect((&stage, &entrances), client, &target.to_string())
                .await
                .unwrap(),
        );
        let _ = listener.accept().unwrap();
        // What stood before goes on, and new ones come.
        before.set_read_timeout(Some(DEADLINE)).unwrap();
        accepted.write_all(b"still").unwrap();
        before.read_exact(&mut [0; 5]).unwrap();
        let after = over_the_wire();
        assert_eq!(exchange(&listener, after).ip(), from.parse::<IpAddr>().unwrap());
    }
}

#[tokio::test]
async fn a_connection_over_the_wire_that_just_ended_is_not_mistaken_for_ours() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let listener = stage.task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let target = SocketAddr::new(TASK.parse().unwrap(), 80);
    for _ in 0..3 {
        let over_the_wire = stage
            .node
            .run(|| TcpStream::connect_timeout(&target, DEADLINE).unwrap());
        let client = over_the_wire.local_addr().unwrap().to_string();
        // The program ends it, so that its side remembers it for a minute.
        drop(listener.accept().unwrap());
        std::thread::sleep(Duration::from_millis(20));
        drop(over_the_wire);
        std::thread::sleep(Duration::from_millis(20));
        let made = connect((&stage, &entrances), &client, &target.to_string())
            .await
            .unwrap();
        stands(&made.stream);
        assert_eq!(exchange(&listener, made.stream).ip(), addr(&client).ip());
    }
}

#[tokio::test]
async fn a_closed_port_refuses_at_once() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    for (client, target) in [
        (CLIENT, format!("{TASK}:99")),
        (CLIENT, "127.0.0.1:99".to_owned()),
        (CLIENT6, format!("[{TASK6}]:99")),
    ] {
        let began = Instant::now();
        let refused = connect((&stage, &entrances), client, &target).await.unwrap_err();
        let ConnectError::Connect { err, .. } = &refused else {
            panic!("{refused:?}")
        };
        assert_eq!(err.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
        assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
        assert!(refused.to_string().contains(&target), "{refused}");
    }
}

#[tokio::test]
async fn a_program_that_ends_resets_its_connections() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let listener = stage.task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let mut stream = connect((&stage, &entrances), CLIENT, &format!("{TASK}:80"))
        .await
        .unwrap()
        .stream;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    stream.write_all(b"unread").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    drop(accepted);
    assert_eq!(
        stream.read(&mut [0; 8]).unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn clients_may_have_the_same_port() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let at = (&stage, &entrances);
    let web = stage.task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let other = stage.task.run(|| TcpListener::bind("0.0.0.0:81").unwrap());
    let (to_web, to_other) = (format!("{TASK}:80"), format!("{TASK}:81"));
    let mut held = Vec::new();
    for (client, target, listener, shown) in [
        ("203.0.113.7:5555", &to_web, &web, Shown::AddressAndPort),
        ("203.0.113.8:5555", &to_web, &web, Shown::AddressAndPort),
        // One client's port, to two places.
        ("203.0.113.7:5555", &to_other, &other, Shown::AddressAndPort),
        // All four the same: it keeps its address.
        ("203.0.113.7:5555", &to_web, &web, Shown::Address),
        // The program listens on that port, everywhere.
        ("203.0.113.7:80", &to_other, &other, Shown::Address),
        ("203.0.113.7:0", &to_other, &other, Shown::Address),
    ] {
        let made = connect(at, client, target).await.unwrap();
        assert_eq!(made.shown, shown, "{client} to {target}");
        held.push(made.stream.try_clone().unwrap());
        let seen = exchange(listener, made.stream);
        assert_eq!(seen.ip(), addr(client).ip());
        assert_eq!(seen.port() == addr(client).port(), shown == Shown::AddressAndPort);
    }
}

#[tokio::test]
async fn a_port_comes_back_though_its_last_connection_just_ended() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let listener = stage.task.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let mut shown = Vec::new();
    for who_ends in ["client", "program", "client"] {
        let made = connect((&stage, &entrances), CLIENT, &format!("{TASK}:80"))
            .await
            .unwrap();
        shown.push(made.shown);
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), addr(CLIENT).ip());
        let (first, second) = match who_ends {
            "client" => (made.stream, accepted),
            _ => (accepted, made.stream),
        };
        drop(first);
        std::thread::sleep(Duration::from_millis(20));
        drop(second);
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("one after the other within 60 s: {shown:?}");
    assert_eq!(shown[0], Shown::AddressAndPort);
}

#[tokio::test]
async fn who_cannot_be_answered_is_stood_in_for() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let listener = stage.task.run(|| TcpListener::bind("[::]:80").unwrap());
    let (own, own6) = (format!("{TASK}:80"), format!("[{TASK6}]:80"));
    for (client, stand_in, target, shown, seen) in [
        ("127.0.0.1:5555", Some(NODE), &own, Shown::StandIn, NODE),
        ("127.0.0.1:5555", None, &own, Shown::Nothing, TASK),
        ("127.0.0.1:5555", Some("127.0.0.1"), &own, Shown::Nothing, TASK),
        ("[::1]:5555", Some(NODE6), &own6, Shown::StandIn, NODE6),
        (CLIENT6, Some(NODE), &own, Shown::StandIn, NODE),
        (CLIENT6, Some(NODE6), &own, Shown::Nothing, TASK),
        (CLIENT, None, &own6, Shown::Nothing, TASK6),
        ("[fe80::1]:5555", None, &own6, Shown::Nothing, TASK6),
        ("0.0.0.0:5555", None, &own, Shown::Nothing, TASK),
        ("224.0.0.5:5555", None, &own, Shown::Nothing, TASK),
        ("10.9.0.255:5555", Some(NODE), &own, Shown::StandIn, NODE),
    ] {
        let caller = Caller::Client {
            client: addr(client),
            stand_in: stand_in.map(|ip| ip.parse().unwrap()),
        };
        let netns = stage.task.netns();
        let made = transparent::connect(&entrances, &netns, caller, addr(target), &stage.own())
            .await
            .unwrap();
        assert_eq!(made.shown, shown, "{client} to {target}");
        assert_eq!(
            exchange(&listener, made.stream).ip(),
            seen.parse::<IpAddr>().unwrap(),
            "{client}"
        );
    }
}

#[tokio::test]
async fn a_program_of_the_other_family_is_not_reached() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    let _v6_only = stage.task.run(|| TcpListener::bind(format!("[{TASK6}]:80")).unwrap());
    let refused = connect((&stage, &entrances), CLIENT, &format!("{TASK}:80"))
        .await
        .unwrap_err();
    assert!(matches!(&refused, ConnectError::Connect { err, .. } if err.kind() == io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn setting_up_twice_is_once_and_tearing_down_leaves_nothing() {
    let Some(stage) = Stage::new() else { return };
    let (entrances, netns) = (entrances(), stage.task.netns());
    let before = stage.task.routing();
    for _ in 0..2 {
        entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
    }
    let between = stage.task.routing();
    let added: Vec<&str> = between.lines().filter(|line| !before.contains(*line)).collect();
    let unlike: HashSet<&&str> = added.iter().collect();
    println!("{added:#?}");
    // Rules of the two families read the same.
    assert_eq!((added.len(), unlike.len()), (4, 3));
    for _ in 0..2 {
        entrances.run(&netns, transparent::tear_down).await.unwrap().unwrap();
        assert_eq!(stage.task.routing(), before);
    }
    let mut spent = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
        entrances.run(&netns, transparent::tear_down).await.unwrap().unwrap();
        spent.push(began.elapsed());
    }
    spent.sort();
    println!("set-up and tear-down: median {:?}, slowest {:?}", spent[25], spent[49]);
}

#[tokio::test]
async fn only_that_namespace_is_changed() {
    let (Some(stage), Some(other)) = (Stage::new(), Space::new()) else {
        return;
    };
    let keys = "net.ipv4.tcp_fwmark_accept net.ipv4.fwmark_reflect net.ipv6.fwmark_reflect";
    let settings = |space: &Space| space.sh(&format!("sysctl -n {keys}"));
    let before = (other.routing(), settings(&other), settings(&stage.node));
    let own_before = super::sh(&format!("sysctl -n {keys}; ip rule; ip -6 rule"));
    entrances()
        .run(&stage.task.netns(), transparent::set_up)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(settings(&stage.task), "1\n1\n1\n");
    assert_eq!((other.routing(), settings(&other), settings(&stage.node)), before);
    assert_eq!(super::sh(&format!("sysctl -n {keys}; ip rule; ip -6 rule")), own_before);
}

#[tokio::test]
async fn a_namespace_without_ipv6_or_with_loopback_down_will_do() {
    let Some(space) = Space::new() else { return };
    let (entrances, netns) = (entrances(), space.netns());
    space.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let families = entrances.run(&netns, transparent::set_up).await.unwrap().unwrap();
    assert_eq!(families, Families { is_ipv6: false });
    let listener = space.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
    let caller = Caller::Client {
        client: addr(CLIENT),
        stand_in: None,
    };
    let made = transparent::connect(&entrances, &netns, caller, addr("127.0.0.1:80"), &[])
        .await
        .unwrap();
    assert_eq!(exchange(&listener, made.stream), addr(CLIENT));
    entrances.run(&netns, transparent::tear_down).await.unwrap().unwrap();
    assert!(!space.routing().contains("24942"), "{}", space.routing());
}

#[tokio::test]
async fn a_program_with_no_room_keeps_others_waiting_not_us() {
    let Some((stage, entrances)) = prepared().await else {
        return;
    };
    // A backlog of one, and nobody accepts.
    let listener = stage.task.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&addr("0.0.0.0:80").into()).unwrap();
        socket.listen(1).unwrap();
        TcpListener::from(socket)
    });
    let mut held = Vec::new();
    let began = Instant::now();
    for port in 6000..6005 {
        held.push(
            connect(
                (&stage, &entrances),
                &format!("203.0.113.7:{port}"),
                &format!("{TASK}:80"),
            )
            .await
            .unwrap(),
        );
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(held.iter().any(|made| !made.is_connected));
    drop(listener);
}

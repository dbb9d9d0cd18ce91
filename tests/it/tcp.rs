//! TCP through the data plane: what a client and an endpoint see of each other.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anynode::model::{ProxyProtocol, ServiceSpec, proxy_protocol};
use anynode::proxy::ProxyConfig;
use anynode::routing::{Change, CloseReason, Listen};

use crate::harness::{Node, Origin, Silent, ask, dial, door, free_port, read_to_end, reset, service, wait_until};

#[test]
fn six_connections_over_three_endpoints_are_two_each_in_turn() {
    let origins = [Origin::named("a"), Origin::named("b"), Origin::named("c")];
    let node = Node::start();
    let web = service("web", &origins.each_ref().map(|origin| origin.addr));
    node.apply(&web);
    let answers: String = (0..6).map(|_| ask(door(&web))).collect();
    assert_eq!(answers, "abcabc");
}

#[test]
fn each_side_may_end_its_half_first() {
    let origin = Origin::start(|mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes.reverse();
        stream.write_all(&bytes).unwrap();
    });
    let node = Node::start();
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    client.write_all(b"stressed").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&client), b"desserts");
    wait_until("the close", || node.closed("web", CloseReason::ClientFin) == 1);

    let listening = Origin::start(|mut stream| {
        stream.write_all(b"only listening").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"goes on");
    });
    let other = service("other", &[listening.addr]);
    node.apply(&other);
    let mut client = dial(door(&other));
    assert_eq!(read_to_end(&client), b"only listening");
    std::thread::sleep(Duration::from_millis(20));
    client.write_all(b"goes on").unwrap();
    drop(client);
    wait_until("the close", || node.closed("other", CloseReason::UpstreamFin) == 1);
}

#[test]
fn a_reset_is_passed_on_and_never_looks_like_an_end() {
    let origin = Origin::start(|mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        match byte[0] {
            b'r' => reset(stream),
            _ => {
                let error = stream.read(&mut byte).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
        }
    });
    let node = Node::start();
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    client.write_all(b"r").unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    wait_until("the close", || node.closed("web", CloseReason::UpstreamRst) == 1);

    let mut client = dial(door(&web));
    client.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    reset(client);
    wait_until("the close", || node.closed("web", CloseReason::ClientRst) == 1);
}

#[test]
fn a_reset_after_an_end_is_noticed_while_the_other_side_is_silent() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let origin = Origin::start(move |mut stream| {
        let mut bytes = Vec::new();
        // Reads the client's end, then waits in silence until it is reset itself.
        stream.read_to_end(&mut bytes).unwrap();
        sender.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let _ = stream.write_all(b"x");
        std::thread::sleep(Duration::from_millis(50));
        sender.send(()).unwrap();
    });
    let node = Node::start();
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let client = dial(door(&web));
    client.shutdown(Shutdown::Write).unwrap();
    receiver.recv().unwrap();
    reset(client);
    wait_until("the close", || node.closed("web", CloseReason::ClientRst) == 1);
    receiver.recv().unwrap();
}

#[test]
fn a_refusing_endpoint_costs_no_client_anything() {
    let origin = Origin::echo();
    let refusing = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    let node = Node::start();
    let web = service("web", &[refusing, origin.addr]);
    node.apply(&web);
    for _ in 0..8 {
        let mut client = dial(door(&web));
        client.write_all(b"early").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&client), b"early");
    }
    assert_eq!(
        node.service("web").endpoints()[0].connect_failures_total(),
        3,
        "then it was ejected"
    );
}

/// The table changes between accept and connect, all of it: whoever was on the way is taken along.
#[test]
fn replacing_all_endpoints_costs_no_client_anything() {
    let origins = [Origin::named("a"), Origin::named("b")];
    let node = Node::start();
    let web = service("web", &[origins[0].addr]);
    node.apply(&web);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = ask(door(&web));
                    assert!(answer == "a" || answer == "b", "{answer:?}");
                }
            });
        }
        let mut next = web.clone();
        for i in 0..3000 {
            next.endpoints = vec![origins[i % 2].addr.to_string().parse().unwrap()];
            node.apply(&next);
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Of a machine that is gone, or whose network is, nothing is heard: whoever takes its endpoints away ends the waiting.
#[test]
fn a_silent_endpoint_is_waited_for_no_longer_than_it_is_in_the_table() {
    let (silent, origin) = (Silent::start(), Origin::named("a"));
    let node = Node::start();
    let mut web = service("web", &[silent.addr]);
    web.timeouts.connect = Duration::from_secs(3600);
    web.limits.hold_timeout = Duration::from_secs(3600);
    let waiting = || {
        node.apply(&web);
        let endpoint = node.service("web").endpoints()[0].clone();
        let client = dial(door(&web));
        wait_until("the attempt", || endpoint.in_flight() == 1);
        client
    };
    let answered = |client: TcpStream| assert_eq!(read_to_end(&client), b"a");
    let client = waiting();
    node.apply(&ServiceSpec {
        endpoints: vec![origin.addr.to_string().parse().unwrap()],
        ..web.clone()
    });
    answered(client);

    // Nobody else at first: it is held.
    let client = waiting();
    node.apply(&ServiceSpec {
        endpoints: Vec::new(),
        ..web.clone()
    });
    node.apply(&ServiceSpec {
        endpoints: vec![origin.addr.to_string().parse().unwrap()],
        ..web.clone()
    });
    answered(client);

    let client = waiting();
    node.table.commit(&[Change::Remove(web.name.clone())]).unwrap();
    let error = (&client).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A full accept queue drops the first packet of a connection, and the kernel sends it again after a second.
#[test]
fn a_packet_that_is_lost_once_fails_no_attempt() {
    let full = Silent::start();
    let node = Node::start();
    let mut web = service("web", &[full.addr]);
    // There is no second attempt.
    web.limits.hold_timeout = Duration::ZERO;
    node.apply(&web);
    let endpoint = node.service("web").endpoints()[0].clone();
    let mut client = dial(door(&web));
    wait_until("the attempt", || endpoint.in_flight() == 1);
    for _ in 0..full.queued.len() {
        drop(full.accept());
    }
    full.accept().write_all(b"a").unwrap();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"a");
}

#[test]
fn nobody_to_connect_to_is_a_reset_with_its_reason() {
    let node = Node::start();
    let refusing = format!("127.0.0.1:{}", free_port()).parse().unwrap();
    for (name, endpoints, reason) in [
        ("none", &[][..], CloseReason::NoEndpoint),
        ("refusing", &[refusing][..], CloseReason::ConnectFailed),
    ] {
        let mut spec = service(name, endpoints);
        spec.limits.hold_timeout = Duration::ZERO;
        node.apply(&spec);
        let error = dial(door(&spec)).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        wait_until("the close", || node.closed(name, reason) == 1);
    }
}

#[test]
fn a_removed_endpoint_keeps_its_connections_until_its_grace_is_over() {
    let (first, second) = (Origin::echo(), Origin::echo());
    let node = Node::start();
    let mut web = service("web", &[first.addr, second.addr]);
    web.stop_grace = Duration::from_millis(400);
    node.apply(&web);
    let exchange = |mut stream: &TcpStream| {
        let mut buffer = [0; 4];
        stream.write_all(b"ping")?;
        stream.read_exact(&mut buffer).map(|()| buffer)
    };
    let on_first = dial(door(&web));
    assert_eq!(&exchange(&on_first).unwrap(), b"ping");
    web.endpoints.remove(0);
    node.apply(&web);
    let after = first.n_accepted();
    for _ in 0..4 {
        assert_eq!(&exchange(&dial(door(&web))).unwrap(), b"ping");
    }
    assert_eq!(first.n_accepted(), after, "nothing new");
    assert_eq!(&exchange(&on_first).unwrap(), b"ping", "still open");
    wait_until("the reset", || node.closed("web", CloseReason::DrainForced) == 1);
    assert!(exchange(&on_first).is_err());
}

#[test]
fn an_endpoint_that_returns_within_its_grace_keeps_its_connections_for_good() {
    let origin = Origin::echo();
    let node = Node::start();
    let mut web = service("web", &[origin.addr]);
    web.stop_grace = Duration::from_millis(150);
    node.apply(&web);
    let mut client = dial(door(&web));
    client.write_all(b"a").unwrap();
    client.read_exact(&mut [0]).unwrap();
    let endpoints = std::mem::take(&mut web.endpoints);
    node.apply(&web);
    web.endpoints = endpoints;
    node.apply(&web);
    std::thread::sleep(Duration::from_millis(300));
    client.write_all(b"b").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_port_that_another_program_holds_is_an_error_of_that_port_until_it_is_free() {
    let origin = Origin::named("web");
    let node = Node::start();
    let mut web = service("web", &[origin.addr]);
    let holder = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // It would even share the port.
    holder.set_reuse_port(true).unwrap();
    let taken = free_port();
    let addr: std::net::SocketAddr = ([0, 0, 0, 0], taken).into();
    holder.bind(&addr.into()).unwrap();
    holder.listen(1).unwrap();
    web.publish.push(format!("127.0.0.1:{taken}:80").parse().unwrap());
    node.apply(&web);
    let listen = Listen {
        ip: Some([127, 0, 0, 1].into()),
        port: taken,
    };
    let shown = format!("{:?}", node.ports.get(&listen).unwrap());
    assert!(shown.contains("in use by another program"), "{shown}");
    assert_eq!(ask(door(&web)), "web", "the other port is served");
    drop(holder);
    wait_until("the port", || {
        node.ports.get(&listen) == Some(anynode::proxy::PortState::Listening)
    });
    assert_eq!(ask(([127, 0, 0, 1], taken).into()), "web");
}

#[test]
fn clients_of_both_families_reach_a_port_that_is_published_everywhere() {
    let origin = Origin::named("web");
    let node = Node::start();
    let mut web = service("web", &[origin.addr]);
    let port = free_port();
    web.publish = vec![format!("{port}:80").parse().unwrap()];
    node.apply(&web);
    for ip in ["127.0.0.1", "::1", "127.77.0.9"] {
        assert_eq!(
            ask((ip.parse::<std::net::IpAddr>().unwrap(), port).into()),
            "web",
            "{ip}"
        );
    }
}

#[test]
fn caps_make_clients_wait_and_a_full_queue_refuses() {
    let origin = Origin::echo();
    let node = Node::start();
    for (name, connections, endpoint_connections) in [("service", 1, 0), ("endpoint", 0, 1)] {
        let mut web = service(name, &[origin.addr]);
        web.limits.connections = connections;
        web.limits.endpoint_connections = endpoint_connections;
        web.limits.queue = 1;
        web.limits.queue_timeout = Duration::from_secs(5);
        node.apply(&web);
        let ping = |mut stream: &TcpStream| {
            stream.write_all(b"p").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        };
        let first = dial(door(&web));
        ping(&first);
        let second = dial(door(&web));
        let state = node.service(name).state().clone();
        wait_until("the second to wait", || {
            state.connection_gate.depth() + state.endpoint_gate.depth() == 1
        });
        let error = dial(door(&web)).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        wait_until("the third to be refused", || node.closed(name, CloseReason::Limit) == 1);
        drop(first);
        ping(&second);
    }
}

#[test]
fn an_idle_limit_closes_with_its_reason_and_bytes_put_it_off() {
    let origin = Origin::echo();
    let node = Node::start();
    let mut web = service("web", &[origin.addr]);
    web.timeouts.idle = Duration::from_millis(300);
    node.apply(&web);
    let mut client = dial(door(&web));
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(150));
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    wait_until("the close", || node.closed("web", CloseReason::IdleTimeout) == 1);
}

#[test]
fn stopping_lets_connections_end_and_resets_those_that_do_not() {
    let origin = Origin::echo();
    let mut node = Node::start_draining(Default::default(), Duration::from_millis(300));
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let (mut ends, mut stays) = (dial(door(&web)), dial(door(&web)));
    for client in [&mut ends, &mut stays] {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    let state = node.service("web");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        ends.write_all(b"y").unwrap();
        ends.read_exact(&mut [0]).unwrap();
    });
    assert_eq!(node.stop(), 1);
    ending.join().unwrap();
    assert_eq!(stays.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(state.stats().closed_count(CloseReason::ProxyShutdown), 1);
    assert_eq!(state.stats().closed_count(CloseReason::ClientFin), 1);
}

#[test]
fn bulk_goes_by_splice_and_arrives_whole() {
    use anynode::routing::{BytePath, Direction};
    let origin = Origin::echo();
    let node = Node::start();
    let web = service("web", &[origin.addr]);
    node.apply(&web);
    let mut client = dial(door(&web));
    let sent: Vec<u8> = (0..32u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut writing = client.try_clone().unwrap();
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&bytes).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == sent);
    let service = node.service("web");
    let bytes = |direction, path| service.stats().byte_count(direction, path);
    for direction in Direction::ALL {
        let (spliced, copied) = (bytes(direction, BytePath::Splice), bytes(direction, BytePath::Copy));
        assert_eq!(spliced + copied, sent.len() as u64);
        assert!(copied < spliced, "{direction:?}: {copied} copied, {spliced} spliced");
    }
}

#[test]
fn an_endpoint_is_told_its_client_by_the_proxy_protocol_where_it_asks_for_it() {
    let node = Node::start();
    let echo = Origin::echo();
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let mut spec = service(&format!("told-{}", version.as_str()), &[echo.addr]);
        spec.proxy_protocol = Some(version);
        node.apply(&spec);
        let mut client = dial(door(&spec));
        let expected = proxy_protocol::header(
            version,
            Some((client.local_addr().unwrap(), client.peer_addr().unwrap())),
        );
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let echoed = read_to_end(&client);
        let (header, rest) = echoed.split_at(expected.len().min(echoed.len()));
        assert_eq!(header, expected, "{}", version.as_str());
        assert_eq!(rest, b"hello");
        // Also where the endpoint would be the first to speak.
        let mut silent = dial(door(&spec));
        let mut told = vec![0; 16];
        silent.read_exact(&mut told).unwrap();
    }
}

#[test]
fn a_node_that_is_full_has_others_wait_and_still_gives_up_ports() {
    let origin = Origin::echo();
    let node = Node::start_with(ProxyConfig {
        connections_max: 1,
        ..ProxyConfig::default()
    });
    let (web, mut gone) = (service("web", &[origin.addr]), service("gone", &[origin.addr]));
    node.apply(&web);
    node.apply(&gone);
    let says = |client: &mut TcpStream| {
        client.write_all(b"hello").unwrap();
        let mut said = [0; 5];
        client.read_exact(&mut said).map(|()| assert_eq!(&said, b"hello"))
    };
    let mut first = dial(door(&web));
    says(&mut first).unwrap();
    let mut second = dial(door(&web));
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let error = says(&mut second).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "there is no room");
    let old = door(&gone);
    gone.publish.clear();
    node.apply(&gone);
    wait_until("the port to be nobody's", || {
        TcpStream::connect(old).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    drop(first);
    second.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut said = [0; 5];
    second.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
}

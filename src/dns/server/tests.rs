//! The server with real sockets, before upstream servers that are slow, dead, or lie.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};

use super::*;
use std::time::Instant;

use crate::dns::wire::tests::query;
use crate::dns::zone::tests::{commit, remove, table, upsert};
use crate::dns::{Rcode, Source, UpstreamFailure};

/// A server in a thread of its own, ended when this is dropped.
struct Running {
    addr: SocketAddr,
    table: Arc<TableHandle>,
    stats: Arc<DnsStats>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn start(upstreams: &[SocketAddr]) -> Running {
    start_at("127.0.0.1:0", upstreams, Duration::from_millis(400))
}

fn start_at(listen: &str, upstreams: &[SocketAddr], upstream_timeout: Duration) -> Running {
    try_start(listen.parse().unwrap(), upstreams, upstream_timeout).unwrap()
}

fn try_start(listen: SocketAddr, upstreams: &[SocketAddr], upstream_timeout: Duration) -> Result<Running, BindError> {
    let config = DnsConfig {
        listen,
        upstreams: upstreams.to_vec(),
        upstream_timeout,
        resolv_conf: PathBuf::from("/nonexistent/resolv.conf"),
        ..DnsConfig::default()
    };
    let table = Arc::new(table());
    let server = DnsServer::bind(config, table.clone())?;
    let (addr, stats) = (server.local_addr(), server.stats());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(server.run(std::future::pending::<()>(), stopped))
            .unwrap();
    });
    Ok(Running {
        addr,
        table,
        stats,
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// Asks by UDP; `None` if nothing comes within a second and a half.
fn ask(server: SocketAddr, query: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    socket.send(query).unwrap();
    let mut buffer = vec![0; 65_535];
    let len = socket.recv(&mut buffer).ok()?;
    Some(Message::from_vec(&buffer[..len]).unwrap())
}

fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut prefix = [0; 2];
    stream.read_exact(&mut prefix)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(prefix))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn ask_tcp(stream: &mut TcpStream, query: &[u8]) -> Message {
    stream.write_all(&framed(query)).unwrap();
    Message::from_vec(&read_framed(stream).unwrap()).unwrap()
}

/// An upstream server for UDP and TCP whose answers `reply` decides: each of the datagrams, or the first over TCP.
fn upstream(reply: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let (udp, tcp, addr) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = udp.local_addr().unwrap();
        if let Ok(tcp) = std::net::TcpListener::bind(addr) {
            break (udp, tcp, addr);
        }
    };
    let reply = Arc::new(reply);
    let by_tcp = reply.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = udp.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..len]).unwrap();
            for datagram in reply(&query, false) {
                udp.send_to(&datagram, from).unwrap();
            }
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let query = Message::from_vec(&read_framed(&mut stream).unwrap()).unwrap();
            if let Some(answer) = by_tcp(&query, true).first() {
                stream.write_all(&framed(answer)).unwrap();
            }
        }
    });
    addr
}

fn answer_to(query: &Message, last: u8) -> Message {
    let mut answer = query.clone().into_response();
    let name = query.queries[0].name.clone();
    answer.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, last))));
    answer
}

fn honest(last: u8) -> SocketAddr {
    upstream(move |query, _| vec![answer_to(query, last).to_vec().unwrap()])
}

fn code(code: ResponseCode) -> SocketAddr {
    upstream(move |query, _| {
        let mut answer = query.clone().into_response();
        answer.metadata.response_code = code;
        vec![answer.to_vec().unwrap()]
    })
}

/// A server that takes queries and says nothing. The socket is to be kept.
fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// An address where nobody listens, nor any other test.
fn dead() -> SocketAddr {
    static N: AtomicUsize = AtomicUsize::new(1);
    let n = u8::try_from(N.fetch_add(1, Ordering::Relaxed)).unwrap();
    SocketAddr::from(([127, 66, 6, n], 9))
}

fn foreign(id: u16) -> Vec<u8> {
    query(id, "Example.org.", RecordType::A, Some(1232))
}

fn first_answer(message: &Message) -> String {
    message.answers[0].data.to_string()
}

#[test]
fn names_of_ours_are_answered_by_udp_and_tcp() {
    let server = start(&[]);
    let asked = query(4711, "My-WEB.", RecordType::A, None);
    let reply = ask(server.addr, &asked).unwrap();
    assert_eq!((reply.id, first_answer(&reply)), (4711, "127.77.0.9".to_owned()));
    let mut stream = connect(server.addr);
    assert_eq!(first_answer(&ask_tcp(&mut stream, &asked)), "127.77.0.9");
    let reply = ask_tcp(&mut stream, &query(1, "tasks.my-web.", RecordType::AAAA, None));
    assert_eq!(first_answer(&reply), "fd00::7", "on the same connection");
    assert_eq!(server.stats.queries(Rcode::NoError, Source::Local), 3);
}

#[test]
fn a_new_table_is_answered_from_at_once_and_reverse_names_follow() {
    let server = start(&[]);
    commit(
        &server.table,
        &[remove("my-web"), upsert("new", Some("127.77.0.77"), &["10.9.9.9:80"])],
    );
    let reply = ask(server.addr, &query(1, "new.", RecordType::A, None)).unwrap();
    assert_eq!(first_answer(&reply), "127.77.0.77");
    let gone = ask(server.addr, &query(1, "my-web.", RecordType::A, None)).unwrap();
    assert_eq!(gone.response_code, ResponseCode::ServFail, "no upstream");
    let deadline = Instant::now() + Duration::from_secs(5);
    let name = "9.9.9.10.in-addr.arpa.";
    while ask(server.addr, &query(1, name, RecordType::PTR, None))
        .unwrap()
        .answers
        .is_empty()
    {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn other_names_are_asked_upstream_and_come_back_as_they_are() {
    let server = start(&[honest(1)]);
    for id in [0, 1, 65_535] {
        let reply = ask(server.addr, &foreign(id)).unwrap();
        assert_eq!((reply.id, first_answer(&reply)), (id, "192.0.2.1".to_owned()));
        assert_eq!(reply.queries[0].name.to_ascii(), "Example.org.");
    }
    let single_label = ask(server.addr, &query(3, "unknown.", RecordType::A, None)).unwrap();
    assert_eq!(first_answer(&single_label), "192.0.2.1");
    assert_eq!(
        first_answer(&ask_tcp(&mut connect(server.addr), &foreign(9))),
        "192.0.2.1"
    );
    assert_eq!(server.stats.queries(Rcode::NoError, Source::Upstream), 5);
    assert_eq!(server.stats.forwards_in_flight(), 0);
}

#[test]
fn the_next_server_is_asked_when_one_does_not_answer_well() {
    let (_kept, silent) = silent();
    for (bad, failure) in [
        (dead(), UpstreamFailure::Unreachable),
        (silent, UpstreamFailure::Timeout),
        (code(ResponseCode::ServFail), UpstreamFailure::ServFail),
        (code(ResponseCode::Refused), UpstreamFailure::Refused),
    ] {
        let server = start(&[bad, honest(2)]);
        let reply = ask(server.addr, &foreign(7)).unwrap();
        assert_eq!(first_answer(&reply), "192.0.2.2", "{failure:?}");
        assert_eq!(server.stats.upstream_failures(failure), 1, "{failure:?}");
        assert_eq!(
            first_answer(&ask_tcp(&mut connect(server.addr), &foreign(8))),
            "192.0.2.2"
        );
    }
}

#[test]
fn a_port_where_nobody_listens_costs_no_time() {
    let server = start_at("127.0.0.1:0", &[dead(), dead(), honest(2)], Duration::from_secs(60));
    let started = Instant::now();
    assert_eq!(first_answer(&ask(server.addr, &foreign(7)).unwrap()), "192.0.2.2");
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(server.stats.upstream_failures(UpstreamFailure::Unreachable), 2);
}

#[test]
fn a_servers_no_is_an_answer_and_no_server_is_a_failure() {
    let server = start(&[code(ResponseCode::NXDomain), honest(3)]);
    let reply = ask(server.addr, &foreign(7)).unwrap();
    assert_eq!(reply.response_code, ResponseCode::NXDomain);
    for upstreams in [vec![], vec![dead(), dead()], vec![code(ResponseCode::Refused)]] {
        let server = start(&upstreams);
        let reply = ask(server.addr, &foreign(7)).unwrap();
        assert_eq!((reply.id, reply.response_code), (7, ResponseCode::ServFail));
        assert!(reply.edns.is_some() && reply.queries.len() == 1);
        assert_eq!(server.stats.queries(Rcode::ServFail, Source::Upstream), 1);
    }
}

#[test]
fn forged_answers_are_passed_over() {
    let lying = upstream(|query, is_tcp| {
        if is_tcp {
            return Vec::new();
        }
        let mut other_id = answer_to(query, 66);
        other_id.metadata.id ^= 1;
        let mut other_name = answer_to(query, 66);
        other_name.queries[0].name = "example.net.".parse().unwrap();
        let mut no_response = answer_to(query, 66);
        no_response.metadata.message_type = hickory_proto::op::MessageType::Query;
        let forged = [other_id, other_name, no_response].map(|message| message.to_vec().unwrap());
        let garbage = vec![vec![], vec![0; 5], vec![255; 40]];
        let good = vec![answer_to(query, 4).to_vec().unwrap()];
        [forged.into(), garbage, good].concat()
    });
    let server = start(&[lying]);
    assert_eq!(first_answer(&ask(server.addr, &foreign(7)).unwrap()), "192.0.2.4");
    assert_eq!(server.stats.mismatches_total(), 6);
}

#[test]
fn a_lost_datagram_is_sent_again() {
    let n = AtomicUsize::new(0);
    let lossy = upstream(move |query, _| match n.fetch_add(1, Ordering::Relaxed) {
        0 => Vec::new(),
        _ => vec![answer_to(query, 5).to_vec().unwrap()],
    });
    let server = start(&[lossy]);
    assert_eq!(first_answer(&ask(server.addr, &foreign(7)).unwrap()), "192.0.2.5");
    assert_eq!(server.stats.upstream_failures(UpstreamFailure::Timeout), 0);
}

#[test]
fn a_truncated_answer_is_whole_by_tcp() {
    let truncating = upstream(|query, is_tcp| {
        let mut answer = answer_to(query, 6);
        if is_tcp {
            for i in 0..200 {
                answer.add_answer(answer_to(query, i).answers.remove(0));
            }
        } else {
            answer = answer.truncate();
        }
        vec![answer.to_vec().unwrap()]
    });
    let server = start(&[truncating]);
    let reply = ask(server.addr, &foreign(7)).unwrap();
    assert!(reply.truncation && reply.answers.is_empty());
    let reply = ask_tcp(&mut connect(server.addr), &foreign(7));
    assert!(!reply.truncation && reply.answers.len() == 201);
}

#[test]
fn too_many_queries_in_flight_are_refused_and_ours_do_not_wait() {
    let (_kept, silent) = silent();
    let server = start_at("127.0.0.1:0", &[silent], Duration::from_secs(3));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server.addr).unwrap();
    for id in 0..1200 {
        socket.send(&foreign(id)).unwrap();
        if id % 50 == 0 {
            // Paced, so that no socket buffer overflows.
            let started = Instant::now();
            let ours = query(id, "my-web.", RecordType::A, None);
            assert_eq!(ask(server.addr, &ours).unwrap().response_code, ResponseCode::NoError);
            assert!(started.elapsed() < Duration::from_millis(300));
        }
    }
    let until = |rcode: Rcode, n: u64| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while server.stats.queries(rcode, Source::Upstream) != n {
            assert!(Instant::now() < deadline, "{rcode:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    until(Rcode::Refused, 1200 - 1024);
    assert_eq!(server.stats.forwards_in_flight(), 1024);
    until(Rcode::ServFail, 1024);
    assert_eq!(server.stats.forwards_in_flight(), 0);
}

#[test]
fn pipelined_answers_come_when_they_are_ready() {
    let slow = upstream(|query, _| {
        std::thread::sleep(Duration::from_millis(150));
        vec![answer_to(query, 8).to_vec().unwrap()]
    });
    let server = start(&[slow]);
    let mut stream = connect(server.addr);
    let mut queries = framed(&foreign(1));
    for id in 2..200 {
        queries.extend(framed(&query(id, "my-web.", RecordType::A, None)));
    }
    // Split where it hurts: in the middle of prefixes and messages.
    for piece in queries.chunks(7) {
        stream.write_all(piece).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut ids = Vec::new();
    while let Ok(message) = read_framed(&mut stream) {
        ids.push(Message::from_vec(&message).unwrap().id);
    }
    let local: Vec<u16> = (2..200).collect();
    assert_eq!(ids[..198], local);
    assert_eq!(ids[198..], [1], "last, and after the client's end");
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let server = start(&[]);
    let mut stream = connect(server.addr);
    stream.set_nonblocking(true).unwrap();
    let many = framed(&query(1, "tasks.my-web.", RecordType::A, None)).repeat(1000);
    let mut n_written = 0usize;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut stuck_since = Instant::now();
    // Socket buffers on both sides fill, then nothing moves.
    while stuck_since.elapsed() < Duration::from_millis(1500) {
        assert!(Instant::now() < deadline, "{n_written} bytes were taken");
        match stream.write(&many) {
            Ok(n) => {
                n_written += n;
                stuck_since = Instant::now();
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    let answered = server.stats.queries(Rcode::NoError, Source::Local);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(server.stats.queries(Rcode::NoError, Source::Local), answered);
    assert!(ask(server.addr, &query(1, "my-web.", RecordType::A, None)).is_some());
}

#[test]
fn a_message_that_is_too_long_ends_the_connection() {
    let server = start(&[]);
    let mut stream = connect(server.addr);
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).unwrap();
    assert!(matches!(read_framed(&mut stream), Err(error) if error.kind() != io::ErrorKind::WouldBlock));
    let mut stream = connect(server.addr);
    stream.write_all(&framed(&[0; 12])).unwrap();
    let reply = read_framed(&mut stream).unwrap();
    assert_eq!(reply[3] & 15, 1, "no question is a format error");
}

#[test]
fn replies_leave_from_the_address_that_was_asked() {
    let server = start_at("0.0.0.0:0", &[honest(9)], Duration::from_secs(1));
    let asked = SocketAddr::new("127.0.0.7".parse().unwrap(), server.addr.port());
    // A connected socket takes nothing from any other address.
    assert!(ask(asked, &query(1, "my-web.", RecordType::A, None)).is_some());
    assert_eq!(first_answer(&ask(asked, &foreign(2)).unwrap()), "192.0.2.9");
}

#[test]
fn a_circle_is_noticed() {
    // The port must be known before it is bound, and another test may be quicker.
    let server = std::iter::repeat_with(|| {
        let port = silent().1.port();
        let circle = SocketAddr::from(([127, 0, 0, 9], port));
        let listen = SocketAddr::from(([0, 0, 0, 0], port));
        try_start(listen, &[circle, honest(1)], Duration::from_secs(1))
    });
    let server = server.take(20).find_map(Result::ok).unwrap();
    assert_eq!(first_answer(&ask(server.addr, &foreign(2)).unwrap()), "192.0.2.1");
    assert_eq!(server.stats.upstream_failures(UpstreamFailure::Refused), 1);
    assert_eq!(
        first_answer(&ask_tcp(&mut connect(server.addr), &foreign(2))),
        "192.0.2.1"
    );
}

#[test]
fn an_address_in_use_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let config = DnsConfig {
        listen: addr,
        upstreams: vec![dead()],
        ..DnsConfig::default()
    };
    let error = DnsServer::bind(config, Arc::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("DNS: listen on {addr}/udp"));
    assert!(std::error::Error::source(&error).is_some());
}

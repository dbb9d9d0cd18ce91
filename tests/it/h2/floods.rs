//! Floods of frames: what costs a client nothing and a server something. Each is sent to a node of its own process, whose memory and
//! processor time are counted, while another client asks and is answered. A flood that asks for nothing ends with its connection; one
//! that asks for something is bounded by what a connection may hold.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::frames::{
    CANCEL, Client, END_HEADERS, ENHANCE_YOUR_CALM, Event, GOAWAY, INITIAL_WINDOW_SIZE, NO_TABLE, PING, PROTOCOL_ERROR,
    WHOLE, continuation, data, fields, frame, get, headers, ping, priority, request, rst, settings, window_update,
};
use super::{Endpoint, HELLO, Rig, web};
use crate::harness::{Node, Origin, door, free_port, read_head, wait_until};

/// A node in a process of its own, with one service in http mode.
struct Program {
    child: Child,
    endpoint: Endpoint,
    door: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start() -> Program {
        let endpoint = Endpoint::start();
        let dir = tempfile::tempdir().unwrap();
        let door: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let services = dir.path().join("services.yml");
        let text = format!(
            "services:\n  web:\n    mode: http\n    publish: [\"{door}:80\"]\n    endpoints: [\"{}\"]\n",
            endpoint.origin.addr
        );
        std::fs::write(&services, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_anynode"))
            .args(["up", "--dns", "none", "--admin", "127.0.0.1:0", "--services"])
            .arg(&services)
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            // One, so that whoever holds it up holds up everybody.
            .env("ANYNODE_WORKERS", "1")
            .env("ANYNODE_LOG", "error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let program = Program {
            child,
            endpoint,
            door,
            _dir: dir,
        };
        wait_until("the door", || TcpStream::connect(door).is_ok());
        program
    }

    /// Memory of its own, in kB.
    fn memory_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time that it has used, in hundredths of a second.
    fn processor_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
        next() + next()
    }
}

/// A client like any other, who is to notice nothing.
struct Other {
    client: Client,
    next: u32,
}

impl Other {
    fn new(door: SocketAddr) -> Other {
        let client = Client::connect_with(door, NO_TABLE);
        Other { client, next: 1 }
    }

    fn ask(&mut self) {
        let answer = self.client.ask(self.next, &get());
        assert_eq!(answer, (Some(200), HELLO.to_vec()));
        // Its windows are as wide as before.
        self.client.say(&[window_update(0, 65_535)]);
        self.next += 2;
    }
}

struct Flood {
    what: &'static str,
    /// Frames that begin it.
    begin: fn() -> Vec<u8>,
    /// The frames that come after so many others.
    next: fn(u32) -> Vec<u8>,
    /// What it may be told in the end. None: it may go on, since it is what it seems to be.
    codes: &'static [u32],
}

const CALM: &[u32] = &[ENHANCE_YOUR_CALM];

fn nothing() -> Vec<u8> {
    Vec::new()
}

fn never() -> Vec<u8> {
    request("GET", "/never", &[])
}

const FLOODS: &[Flood] = &[
    Flood {
        what: "requests that are taken back at once",
        begin: nothing,
        next: |n| [headers(2 * n + 1, WHOLE, &never()), rst(2 * n + 1, CANCEL)].concat(),
        codes: CALM,
    },
    Flood {
        what: "requests that the server takes back, since they are malformed",
        begin: nothing,
        next: |n| headers(2 * n + 1, WHOLE, &request("GET", "/", &[("connection", "close")])),
        codes: CALM,
    },
    Flood {
        what: "requests that the server takes back, since their window is widened by too much",
        begin: nothing,
        next: |n| {
            let id = 2 * n + 1;
            let wide = window_update(id, (1 << 31) - 1);
            [headers(id, WHOLE, &never()), wide.clone(), wide].concat()
        },
        codes: CALM,
    },
    Flood {
        what: "more requests than may be under way",
        begin: nothing,
        next: |n| headers(2 * n + 1, WHOLE, &never()),
        codes: CALM,
    },
    Flood {
        what: "CONTINUATION without an end, with fields",
        begin: || headers(1, 0, &get()),
        next: |_| continuation(1, 0, &fields(&[("x-a", "1")])),
        codes: CALM,
    },
    Flood {
        what: "CONTINUATION without an end, with nothing",
        begin: || headers(1, 0, &get()),
        next: |_| continuation(1, 0, b""),
        codes: CALM,
    },
    Flood {
        what: "CONTINUATION without an end, large",
        begin: || headers(1, 0, &get()),
        next: |_| continuation(1, 0, &fields(&[("x-a", &"x".repeat(16_000))])),
        codes: CALM,
    },
    Flood {
        what: "SETTINGS",
        begin: nothing,
        next: |n| settings(&[(INITIAL_WINDOW_SIZE, n)]),
        codes: CALM,
    },
    Flood {
        what: "SETTINGS that move the windows of a hundred requests",
        begin: || {
            (0..100)
                .map(|n| headers(2 * n + 1, WHOLE, &never()))
                .collect::<Vec<_>>()
                .concat()
        },
        next: |n| settings(&[(INITIAL_WINDOW_SIZE, n % 2)]),
        codes: CALM,
    },
    Flood {
        what: "PING",
        begin: nothing,
        next: |_| ping(0, b"a flood!"),
        codes: CALM,
    },
    Flood {
        what: "PRIORITY",
        begin: nothing,
        next: |n| priority(2 * n + 1, 0, 7),
        codes: CALM,
    },
    Flood {
        what: "frames that nobody knows",
        begin: nothing,
        next: |_| frame(0x42, 0, 0, b"what"),
        codes: CALM,
    },
    Flood {
        what: "WINDOW_UPDATE by 1",
        begin: nothing,
        next: |_| window_update(0, 1),
        codes: CALM,
    },
    Flood {
        what: "DATA without anything",
        begin: || headers(1, END_HEADERS, &request("POST", "/", &[])),
        next: |_| data(1, 0, b""),
        codes: CALM,
    },
    Flood {
        what: "DATA of padding alone",
        begin: || headers(1, END_HEADERS, &request("POST", "/", &[])),
        next: |_| data(1, 8, &[200; 201]),
        codes: CALM,
    },
    Flood {
        what: "DATA of one byte, which the endpoint takes",
        begin: || {
            headers(
                1,
                END_HEADERS,
                &request("POST", "/never", &[("content-length", "100000000")]),
            )
        },
        next: |_| data(1, 0, b"x"),
        codes: &[],
    },
    Flood {
        what: "RST_STREAM of requests that are none yet",
        begin: nothing,
        next: |n| rst(2 * n + 1, CANCEL),
        codes: &[PROTOCOL_ERROR],
    },
    Flood {
        what: "RST_STREAM of one request",
        begin: || headers(1, WHOLE, &get()),
        next: |_| rst(1, CANCEL),
        codes: CALM,
    },
    Flood {
        what: "GOAWAY",
        begin: nothing,
        next: |_| frame(GOAWAY, 0, 0, &[0; 8]),
        // It has asked for the end.
        codes: &[ENHANCE_YOUR_CALM, 0],
    },
];

/// Sends a flood until the connection is over. Returns the code that was told, and how many frames were taken.
fn send(flood: &Flood, door: SocketAddr, other: &mut Other) -> (Result<Option<u32>, Option<u32>>, u32) {
    let mut client = Client::connect_with(door, NO_TABLE);
    client.say(&[(flood.begin)()]);
    let mut n = 0;
    while n < FRAMES_MOST {
        let batch: Vec<_> = (n..n + BATCH).map(flood.next).collect();
        n += BATCH;
        let is_taken = client.say(&batch);
        other.ask();
        if !is_taken {
            break;
        }
    }
    match flood.codes.is_empty() {
        true => (Ok(None), n),
        false => (client.read_to_close(), n),
    }
}

const FRAMES_MOST: u32 = 100_000;
const BATCH: u32 = 500;

#[test]
fn a_flood_of_any_kind_ends_with_its_connection_and_nobody_else_notices() {
    let program = Program::start();
    let mut other = Other::new(program.door);
    other.ask();
    let (mut faults, mut n_told) = (Vec::new(), 0);
    let memory_before = program.memory_kb();
    for flood in FLOODS {
        let ticks = program.processor_ticks();
        let n_accepted = program.endpoint.origin.n_accepted();
        for _ in 0..2 {
            let (told, n) = send(flood, program.door, &mut other);
            // Who still sends may not get to hear why: closing a socket that has more to read resets it.
            let is_right = told.is_ok_and(|code| code.is_none_or(|code| flood.codes.contains(&code)));
            n_told += u32::from(told.is_ok_and(|code| code.is_some()));
            let has_ended = is_right && n < FRAMES_MOST;
            if !has_ended && !flood.codes.is_empty() {
                faults.push(format!("{}: {told:?} after {n}", flood.what));
                break;
            }
        }
        let ticks = program.processor_ticks() - ticks;
        let n_accepted = program.endpoint.origin.n_accepted() - n_accepted;
        println!(
            "{}: {ticks} ticks, {n_accepted} connections to the endpoint, {} kB",
            flood.what,
            program.memory_kb()
        );
        if n_accepted > 2 * CONNECTIONS_MOST {
            faults.push(format!("{}: {n_accepted} connections to the endpoint", flood.what));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(n_told > 18, "{n_told} were told");
    let memory = program.memory_kb().saturating_sub(memory_before);
    assert!(memory < 16 * 1024, "{memory} kB more");
}

/// What one client may have under way, and what it may take back.
const CONNECTIONS_MOST: usize = 320;

/// Each request that is taken back after an endpoint has it costs the endpoint's connection: they are counted.
#[test]
fn requests_that_are_taken_back_from_endpoints_are_bounded() {
    let rig = Rig::start();
    let mut other = Other::new(rig.door);
    let mut client = Client::connect_with(rig.door, NO_TABLE);
    let mut next = 1;
    let n_accepted = || rig.endpoint.origin.n_accepted();
    while client.gone.is_none() && n_accepted() < 2 * CONNECTIONS_MOST {
        let before = rig.endpoint.seen().len();
        let streams: Vec<_> = (0..20).map(|n| next + 2 * n).collect();
        next += 40;
        client.say(
            &streams
                .iter()
                .map(|id| headers(*id, WHOLE, &never()))
                .collect::<Vec<_>>(),
        );
        // It may have had enough meanwhile.
        for _ in 0..200 {
            if rig.endpoint.seen().len() >= before + 20 {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        client.say(&streams.iter().map(|id| rst(*id, CANCEL)).collect::<Vec<_>>());
        other.ask();
        client.say(&[ping(0, b"are you?")]);
        while let Event::Frame(frame) = client.next() {
            if frame.kind == PING || frame.kind == GOAWAY {
                break;
            }
        }
    }
    assert_eq!(client.read_to_close(), Ok(Some(ENHANCE_YOUR_CALM)));
    assert!((200..CONNECTIONS_MOST).contains(&n_accepted()), "{}", n_accepted());
    other.ask();
}

/// A field that is in the table once and in the list a thousand times.
#[test]
fn a_block_that_unfolds_is_refused_for_what_it_unfolds_to() {
    let program = Program::start();
    let mut other = Other::new(program.door);
    other.ask();
    let before = program.memory_kb();
    // A literal that enters the table, of 3,000 bytes.
    let mut large = vec![0x40, 3];
    large.extend(b"x-a");
    large.extend(super::frames::integer(0, 7, 3000));
    large.extend([b'x'; 3000]);
    let bomb = |n: usize| [get(), large.clone(), vec![0xbe; n]].concat();
    // Above what is taken, and not by much: the request alone is refused.
    let mut client = Client::connect_with(program.door, NO_TABLE);
    client.say(&[headers(1, WHOLE, &bomb(40))]);
    assert_eq!(client.read_answer(1).0, Some(431));
    assert_eq!(client.ask(3, &get()).0, Some(200));
    for _ in 0..20 {
        let mut client = Client::connect_with(program.door, NO_TABLE);
        client.say(&[headers(1, WHOLE, &bomb(10_000))]);
        assert_eq!(client.read_to_close(), Ok(Some(ENHANCE_YOUR_CALM)));
        other.ask();
    }
    let memory = program.memory_kb().saturating_sub(before);
    println!("{memory} kB more");
    assert!(memory < 8 * 1024, "{memory} kB more");
}

/// Large answers that the client does not let out, by its windows or by its socket.
#[test]
fn answers_that_nobody_reads_are_held_within_bounds() {
    const CONNECTIONS: u64 = 10;
    let block = request("GET", "/bytes/4000000", &[]);
    let hundred: Vec<_> = (0..100).map(|n| headers(2 * n + 1, WHOLE, &block)).collect();
    // In kB for a hundred requests. A window lets nothing out; wide ones let the kernel's buffers and ours fill.
    for (what, window, most) in [
        ("no window", 0, 5_000),
        ("a tiny window", 1, 5_000),
        ("wide windows", (1 << 31) - 1, 18_000),
    ] {
        // Memory that was held once is not given back at once.
        let program = Program::start();
        let mut other = Other::new(program.door);
        other.ask();
        let before = program.memory_kb();
        let held: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut client = Client::connect_with(program.door, &[(INITIAL_WINDOW_SIZE, window)]);
                client.say(&[window_update(0, (1 << 30) - 1), hundred.concat()]);
                other.ask();
                client
            })
            .collect();
        let mut last = 0;
        wait_until("the buffers to fill", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = program.memory_kb();
            std::mem::replace(&mut last, now) == now
        });
        let each = last.saturating_sub(before) / CONNECTIONS;
        println!("{what}: {each} kB for each connection");
        assert!(each < most, "{what}: {each} kB");
        // Who waits for nothing costs nothing.
        let ticks = program.processor_ticks();
        for _ in 0..20 {
            other.ask();
        }
        std::thread::sleep(Duration::from_millis(500));
        let ticks = program.processor_ticks() - ticks;
        assert!(ticks < 25, "{what}: {ticks} hundredths of a second of half a second");
        drop(held);
        other.ask();
    }
}

/// It asks for an answer byte by byte: as much work as it causes by asking, and no more than a thousand frames ahead.
#[test]
fn a_window_opened_byte_by_byte_is_answered_byte_by_byte() {
    let rig = Rig::start();
    let mut client = Client::connect_with(rig.door, &[(INITIAL_WINDOW_SIZE, 0)]);
    client.say(&[headers(1, WHOLE, &get())]);
    for n in 0..HELLO.len() {
        client.say(&[window_update(1, 1)]);
        let part = client.wait_for("a byte", |frame| frame.kind == 0 && !frame.payload.is_empty());
        assert_eq!(part.payload, &HELLO[n..=n]);
    }
}

/// What an endpoint cuts off is not held against the client.
#[test]
fn a_client_whose_answers_are_cut_off_keeps_its_connection() {
    let origin = Origin::start(|mut stream| {
        if read_head(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel");
        }
    });
    let node = Node::start();
    let spec = web(&[origin.addr]);
    node.apply(&spec);
    let mut client = Client::connect_with(door(&spec), NO_TABLE);
    for n in 0..300 {
        assert_eq!(client.ask(2 * n + 1, &get()).0, None, "{n}");
    }
}

//! The security list of an HTTP proxy, raw bytes on both sides: what is refused never reaches an origin, what passes is
//! one well-formed request, and nothing hidden inside or behind a request becomes one of its own. What origins answer is
//! in `responses`.

mod responses;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anynode::model::{Mode, ServiceSpec};
use anynode::proxy::ProxyConfig;
use anynode::routing::{Change, CloseReason, HttpCode};

use crate::harness::{Node, Origin, dial, door, service, wait_until};

/// What an attacker wants an origin to take for a request.
const EVIL: &str = "GET /evil HTTP/1.1\r\nHost: web\r\n\r\n";

/// What must become of a row.
#[derive(Clone, Copy)]
enum Expect {
    /// This status, the connection ends, and no origin was connected to.
    Refused(u16),
    /// The head was good, the body turned out not to be: this status, the end, and no origin saw a whole request.
    Cut(u16),
    /// So many well-formed requests at the origin, the first with each of these in it. A text that begins with `!` must
    /// not be there.
    Passed(usize, &'static [&'static str]),
    /// This status from the proxy itself; the connection stays, and the next request is served.
    Answered(u16),
    /// The client ended its half within the body: no answer, and no origin saw a whole request.
    Unanswered,
}

use Expect::{Answered, Cut, Passed, Refused, Unanswered};

/// Plays rows of (name, bytes, what is expected). `EVIL` follows the bytes of each row that is to end the connection.
fn play(rows: &[(&str, &[u8], Expect)]) {
    let node = Node::start();
    let mut failures = Vec::new();
    for (name, bytes, expect) in rows {
        let origin = Recorder::start(ok("fine"));
        let web = http_service("web", &[origin.origin.addr]);
        node.apply(&web);
        let mut sent = bytes.to_vec();
        match expect {
            Refused(_) | Cut(_) => sent.extend_from_slice(EVIL.as_bytes()),
            Answered(_) => sent.extend_from_slice(EVIL.replace("evil", "next").as_bytes()),
            Passed(..) | Unanswered => {}
        }
        let answer = talk(door(&web), &sent);
        // What the origin was sent last shows once its connections end, as they do with the service.
        node.table.commit(&[Change::Remove(web.name.clone())]).unwrap();
        wait_until("the origin's connections to end", || origin.n_open() == 0);
        let judged = judge(*expect, &answer, &origin);
        if let Err(what) = judged {
            failures.push(format!(
                "{name}: {what}\n  sent: {:?}\n  answer: {answer:?}\n  origin: {:?} and unfinished {:?}",
                shorten(&String::from_utf8_lossy(bytes)),
                origin.requests(),
                origin.unfinished(),
            ));
        }
    }
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}

fn judge(expect: Expect, answer: &str, origin: &Recorder) -> Result<(), String> {
    let requests = origin.requests();
    let statuses = statuses(answer);
    for request in &requests {
        check_well_formed(request)?;
        if target_of(request) == "/evil" {
            return Err("a smuggled request".to_owned());
        }
    }
    let ensure = |is_so: bool, what: &str| if is_so { Ok(()) } else { Err(what.to_owned()) };
    match expect {
        Refused(status) => {
            ensure(statuses == [status], &format!("expected one {status} and the end"))?;
            ensure(answer.contains("Connection: close\r\n"), "the end is not announced")?;
            ensure(origin.origin.n_accepted() == 0, "an origin was connected to")
        }
        Cut(status) => {
            ensure(statuses == [status], &format!("expected one {status} and the end"))?;
            ensure(answer.contains("Connection: close\r\n"), "the end is not announced")?;
            ensure(requests.is_empty(), "the origin saw a whole request")
        }
        Answered(status) => {
            ensure(statuses == [status, 200], &format!("expected {status} and then 200"))?;
            ensure(requests.len() == 1, "expected only the request that follows")
        }
        Unanswered => {
            ensure(answer.is_empty(), "expected no answer")?;
            ensure(requests.is_empty(), "the origin saw a whole request")
        }
        Passed(n, parts) => {
            ensure(requests.len() == n, &format!("expected {n} requests"))?;
            ensure(statuses == vec![200; n], "expected an answer to each")?;
            for part in parts {
                let is_right = match part.strip_prefix('!') {
                    Some(part) => !requests[0].contains(part),
                    None => requests[0].contains(part),
                };
                ensure(is_right, &format!("expected {part:?}"))?;
            }
            ensure(origin.unfinished().is_empty(), "the origin was sent more")
        }
    }
}

/// The checks that a strict server would make of what we sent it.
fn check_well_formed(request: &str) -> Result<(), String> {
    let (head, _) = request.split_once("\r\n\r\n").ok_or("no end of the head")?;
    let mut lines = head.split("\r\n");
    let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    if words.len() != 3 || words[2] != "HTTP/1.1" || !(words[1].starts_with('/') || words[1] == "*") {
        return Err(format!("request line {words:?}"));
    }
    let (mut n_host, mut n_length, mut n_coding) = (0, 0, 0);
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or_else(|| format!("field line {line:?}"))?;
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return Err(format!("field name {name:?}"));
        }
        if value.chars().any(|c| c.is_control() && c != '\t') || value.trim() != value {
            return Err(format!("field value {value:?}"));
        }
        match name.to_ascii_lowercase().as_str() {
            "host" => n_host += 1,
            "content-length" => n_length += 1,
            "transfer-encoding" => n_coding += 1,
            _ => {}
        }
    }
    match n_host == 1 && n_length + n_coding <= 1 {
        true => Ok(()),
        false => Err(format!("{n_host} Host, {n_length} lengths, {n_coding} codings")),
    }
}

fn target_of(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

/// The statuses of all responses in a row, framed by their Content-Length. Bytes that are no response count as 0.
fn statuses(mut answer: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !answer.is_empty() {
        let status = answer
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok());
        let parts = answer.split_once("\r\n\r\n");
        let (Some(status), Some((head, rest))) = (status, parts) else {
            statuses.push(0);
            break;
        };
        statuses.push(status);
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.map_or(0, |n| n.parse().unwrap());
        answer = rest.get(length..).unwrap_or("the body is cut");
    }
    statuses
}

/// An origin that records every byte, takes requests apart strictly and gives each the same answer.
struct Recorder {
    origin: Origin,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    requests: Mutex<Vec<String>>,
    /// What was left of a connection when it ended.
    unfinished: Mutex<Vec<String>>,
    n_ended: AtomicUsize,
}

impl Recorder {
    fn start(answer: String) -> Recorder {
        Recorder::answering(move |_| answer.clone().into_bytes())
    }

    /// `answer` is told how many requests came before.
    fn answering(answer: impl Fn(usize) -> Vec<u8> + Send + Sync + 'static) -> Recorder {
        let log: Arc<Log> = Arc::default();
        let record = log.clone();
        let origin = Origin::start(move |mut stream| {
            let mut received = Vec::new();
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                received.extend_from_slice(&buffer[..n]);
                while let Some(length) = length_of_request(&received) {
                    let request: Vec<u8> = received.drain(..length).collect();
                    let n_before = {
                        let mut requests = record.requests.lock().unwrap();
                        requests.push(String::from_utf8_lossy(&request).into_owned());
                        requests.len() - 1
                    };
                    let _ = stream.write_all(&answer(n_before));
                }
            }
            if !received.is_empty() {
                let text = String::from_utf8_lossy(&received).into_owned();
                record.unfinished.lock().unwrap().push(text);
            }
            record.n_ended.fetch_add(1, Ordering::SeqCst);
        });
        Recorder { origin, log }
    }

    fn requests(&self) -> Vec<String> {
        self.log.requests.lock().unwrap().clone()
    }

    fn unfinished(&self) -> Vec<String> {
        self.log.unfinished.lock().unwrap().clone()
    }

    fn n_open(&self) -> usize {
        self.origin.n_accepted() - self.log.n_ended.load(Ordering::SeqCst)
    }
}

/// How long the whole request at the front is, as RFC 9112 says. `None`: it is not whole.
fn length_of_request(bytes: &[u8]) -> Option<usize> {
    let head_end = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name));
    if field("transfer-encoding: ").is_some() {
        let mut at = head_end;
        loop {
            let line_end = at + find(&bytes[at..], b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..line_end]).ok()?, 16).ok()?;
            at = line_end + 2;
            if size == 0 {
                break;
            }
            at = at.checked_add(size)?.checked_add(2)?;
            if bytes.get(at - 2..at)? != b"\r\n" {
                return None;
            }
        }
        loop {
            let line_end = at + find(&bytes[at..], b"\r\n")?;
            let is_last = line_end == at;
            at = line_end + 2;
            if is_last {
                return Some(at);
            }
        }
    }
    let length = field("content-length: ").map_or(0, |n| n.parse().unwrap());
    (bytes.len() >= head_end + length).then_some(head_end + length)
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn http_service(name: &str, endpoints: &[SocketAddr]) -> ServiceSpec {
    let mut spec = service(name, endpoints);
    spec.mode = Mode::Http;
    spec
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Sends everything, ends its half, and returns all that comes back, up to the end or a reset.
fn talk(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut client = dial(addr);
    // A peer that has refused already may not take the rest.
    let _ = client.write_all(bytes);
    let _ = client.shutdown(Shutdown::Write);
    let (answer, _) = read_all(&client);
    answer
}

/// What comes until the end, and the error that ended it, if one did.
fn read_all(mut client: &TcpStream) -> (String, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let result = client.read_to_end(&mut bytes);
    (
        String::from_utf8_lossy(&bytes).into_owned(),
        result.err().map(|e| e.kind()),
    )
}

/// A request whose head has these fields after its Host, and this body.
macro_rules! post {
    ($fields:literal, $body:literal) => {
        concat!("POST /p HTTP/1.1\r\nHost: web\r\n", $fields, "\r\n\r\n", $body).as_bytes()
    };
}

macro_rules! get {
    ($fields:literal) => {
        concat!("GET /g HTTP/1.1\r\nHost: web\r\n", $fields, "\r\n\r\n").as_bytes()
    };
}

macro_rules! chunked {
    ($body:literal) => {
        post!("Transfer-Encoding: chunked", $body)
    };
}

#[test]
fn two_lengths() {
    play(&[
        (
            "CL and TE",
            post!("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "TE and CL",
            post!("Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "CL 0 and TE",
            post!("Content-Length: 0\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "CL differing",
            post!("Content-Length: 0\r\nContent-Length: 33", ""),
            Refused(400),
        ),
        (
            "CL repeated",
            post!("Content-Length: 1\r\nContent-Length: 1", "x"),
            Refused(400),
        ),
        (
            "CL repeated in another case",
            post!("Content-Length: 1\r\ncONTENT-lENGTH: 1", "x"),
            Refused(400),
        ),
        ("CL list", post!("Content-Length: 1, 1", "x"), Refused(400)),
        ("CL list differing", post!("Content-Length: 0, 33", ""), Refused(400)),
        ("CL comma", post!("Content-Length: 1,", "x"), Refused(400)),
        ("CL plus", post!("Content-Length: +1", "x"), Refused(400)),
        ("CL minus", post!("Content-Length: -1", "x"), Refused(400)),
        ("CL hexadecimal", post!("Content-Length: 0x1", "x"), Refused(400)),
        ("CL hexadecimal digit", post!("Content-Length: a", "x"), Refused(400)),
        ("CL space inside", post!("Content-Length: 1 0", "x"), Refused(400)),
        ("CL underscore", post!("Content-Length: 1_0", "x"), Refused(400)),
        ("CL fraction", post!("Content-Length: 1.0", "x"), Refused(400)),
        ("CL exponent", post!("Content-Length: 1e0", "x"), Refused(400)),
        ("CL empty", post!("Content-Length: ", "x"), Refused(400)),
        ("CL quoted", post!("Content-Length: \"1\"", "x"), Refused(400)),
        ("CL form feed", post!("Content-Length: \x0c1", "x"), Refused(400)),
        (
            "CL other digits",
            "POST /p HTTP/1.1\r\nHost: web\r\nContent-Length: \u{661}\r\n\r\nx".as_bytes(),
            Refused(400),
        ),
        (
            "CL overflow to one",
            post!("Content-Length: 18446744073709551617", "x"),
            Refused(400),
        ),
        (
            "CL leading zeros are written anew",
            post!("Content-Length: 001", "x"),
            Passed(1, &["\r\nContent-Length: 1\r\n", "\r\n\r\nx"]),
        ),
        (
            "CL with spaces around",
            post!("Content-Length: \t 1 \t", "x"),
            Passed(1, &["\r\nContent-Length: 1\r\n"]),
        ),
        (
            "a request inside a body stays inside",
            post!("Content-Length: 33", "GET /evil HTTP/1.1\r\nHost: web\r\n\r\n"),
            Passed(1, &["\r\nContent-Length: 33\r\n", "GET /evil"]),
        ),
        (
            "GET with a body",
            b"GET /g HTTP/1.1\r\nHost: web\r\nContent-Length: 33\r\n\r\nGET /evil HTTP/1.1\r\nHost: web\r\n\r\n",
            Passed(1, &["\r\nContent-Length: 33\r\n"]),
        ),
        (
            "a request behind a body is one of its own",
            post!("Content-Length: 1", "xGET /next HTTP/1.1\r\nHost: web\r\n\r\n"),
            Passed(2, &["\r\n\r\nx"]),
        ),
        (
            "CL of a body that never comes",
            post!("Content-Length: 100", ""),
            Unanswered,
        ),
    ]);
}

#[test]
fn transfer_codings() {
    play(&[
        (
            "xchunked",
            post!("Transfer-Encoding: xchunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "chunkedx",
            post!("Transfer-Encoding: chunkedx", "0\r\n\r\n"),
            Refused(400),
        ),
        ("identity", post!("Transfer-Encoding: identity", ""), Refused(400)),
        (
            "chunked, identity",
            post!("Transfer-Encoding: chunked, identity", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "identity, chunked",
            post!("Transfer-Encoding: identity, chunked", "0\r\n\r\n"),
            Refused(501),
        ),
        (
            "gzip, chunked",
            post!("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
            Refused(501),
        ),
        (
            "chunked, chunked",
            post!("Transfer-Encoding: chunked, chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "a comma before",
            post!("Transfer-Encoding: ,chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "a comma after",
            post!("Transfer-Encoding: chunked,", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "quoted",
            post!("Transfer-Encoding: \"chunked\"", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "with a parameter",
            post!("Transfer-Encoding: chunked;q=1", "0\r\n\r\n"),
            Refused(400),
        ),
        ("empty", post!("Transfer-Encoding: ", ""), Refused(400)),
        (
            "on a folded line",
            post!("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "vertical tab before",
            post!("Transfer-Encoding: \x0bchunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "form feed after",
            post!("Transfer-Encoding: chunked\x0c", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "no-break space before",
            b"POST /p HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: \xa0chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "two fields",
            post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "two fields, one nonsense",
            post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: cow", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "two fields that make a list",
            post!("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "in HTTP/1.0",
            b"POST /p HTTP/1.0\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "space before the colon",
            post!("Transfer-Encoding : chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "written with an underscore",
            post!("Transfer_Encoding: chunked", "0\r\n\r\n"),
            Refused(400),
        ),
        (
            "in another case",
            post!("tRANSFER-ENCODING: CHUNKED", "1\r\nx\r\n0\r\n\r\n"),
            Passed(
                1,
                &["\r\nTransfer-Encoding: chunked\r\n", "!ENCODING", "1\r\nx\r\n0\r\n\r\n"],
            ),
        ),
        (
            "listed by Connection, it still counts",
            post!(
                "Connection: Transfer-Encoding, Content-Length\r\nTransfer-Encoding: chunked",
                "1\r\nx\r\n0\r\n\r\n"
            ),
            Passed(1, &["\r\nTransfer-Encoding: chunked\r\n"]),
        ),
        (
            "TE of the request is no coding",
            get!("TE: chunked, trailers;q=0.5"),
            Passed(1, &["!TE: chunked", "!Transfer-Encoding"]),
        ),
    ]);
}

#[test]
fn field_lines() {
    play(&[
        ("space before the colon", get!("X-A : 1"), Refused(400)),
        ("tab before the colon", get!("X-A\t: 1"), Refused(400)),
        (
            "CL with space before the colon",
            post!("Content-Length : 33", ""),
            Refused(400),
        ),
        ("no name", get!(": 1"), Refused(400)),
        ("no colon", get!("X-A"), Refused(400)),
        ("obs-fold with space", get!("X-A: 1\r\n 2"), Refused(400)),
        ("obs-fold with tab", get!("X-A: 1\r\n\t2"), Refused(400)),
        (
            "obs-fold that hides a length",
            get!("X-A: 1\r\n Content-Length: 33"),
            Refused(400),
        ),
        (
            "space before the first field",
            b"GET /g HTTP/1.1\r\n Host: web\r\n\r\n",
            Refused(400),
        ),
        ("space inside a name", get!("X A: 1"), Refused(400)),
        ("bare CR in a value", get!("X-A: 1\rContent-Length: 33"), Refused(400)),
        ("bare CR at the end of a value", get!("X-A: 1\r\r"), Refused(400)),
        ("bare LF in the head", get!("X-A: 1\nContent-Length: 33"), Refused(400)),
        (
            "bare LF after the request line",
            b"GET /g HTTP/1.1\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "bare LF before the empty line",
            b"GET /g HTTP/1.1\r\nHost: web\n\r\n",
            Refused(400),
        ),
        (
            "bare LF as empty line",
            b"GET /g HTTP/1.1\r\nHost: web\r\n\n",
            Refused(400),
        ),
        ("only bare LF", b"GET /g HTTP/1.1\nHost: web\n\n", Refused(400)),
        ("only bare CR", b"GET /g HTTP/1.1\rHost: web\r\r", Refused(400)),
        ("NUL in a value", get!("X-A: 1\x002"), Refused(400)),
        ("NUL in a name", get!("X-A\x00: 1"), Refused(400)),
        ("control character in a value", get!("X-A: 1\x012"), Refused(400)),
        ("escape in a value", get!("X-A: \x1b[2J"), Refused(400)),
        ("delete in a value", get!("X-A: 1\x7f2"), Refused(400)),
        ("control character in a name", get!("X-A\x01: 1"), Refused(400)),
        (
            "high byte in a name",
            b"GET /g HTTP/1.1\r\nHost: web\r\nX-\xe9: 1\r\n\r\n",
            Refused(400),
        ),
        ("brackets in a name", get!("X[A]: 1"), Refused(400)),
        ("tab in a value", get!("X-A: 1\t2"), Passed(1, &["\r\nX-A: 1\t2\r\n"])),
        ("empty value", get!("X-A:"), Passed(1, &["\r\nX-A: \r\n"])),
        (
            "no space after the colon",
            get!("X-A:1"),
            Passed(1, &["\r\nX-A: 1\r\n"]),
        ),
        (
            "underscore in a name",
            get!("X_Custom: 1"),
            Passed(1, &["\r\nX_Custom: 1\r\n"]),
        ),
        ("length with an underscore", get!("Content_Length: 33"), Refused(400)),
        (
            "forwarding field with an underscore",
            get!("X_Forwarded_For: 6.6.6.6"),
            Passed(1, &["!6.6.6.6", "\r\nX-Forwarded-For: 127.0.0.1\r\n"]),
        ),
        (
            "an empty line before the request is skipped",
            b"\r\nGET /g HTTP/1.1\r\nHost: web\r\n\r\n",
            Passed(1, &["GET /g HTTP/1.1\r\n"]),
        ),
        (
            "many empty lines are not",
            b"\r\n\r\n\r\n\r\n\r\n\r\nGET /g HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "an empty line of bare LF",
            b"\nGET /g HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
    ]);
}

#[test]
fn chunks() {
    play(&[
        (
            "size overflow",
            chunked!("10000000000000000\r\nx\r\n0\r\n\r\n"),
            Cut(400),
        ),
        (
            "size overflow to one",
            chunked!("10000000000000001\r\nx\r\n0\r\n\r\n"),
            Cut(400),
        ),
        ("size underscore", chunked!("1_0\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size 0x", chunked!("0x1\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("space before the size", chunked!(" 1\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("space after the size", chunked!("1 \r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("tab after the size", chunked!("1\t\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size plus", chunked!("+1\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size minus", chunked!("-1\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size missing", chunked!("\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size not hexadecimal", chunked!("g\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size in other digits", chunked!("\u{661}\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size then NUL", chunked!("1\x00\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size then bare LF", chunked!("1\nx\r\n0\r\n\r\n"), Cut(400)),
        ("size then bare CR", chunked!("1\rx\r\n0\r\n\r\n"), Cut(400)),
        ("last size then bare LF", chunked!("0\n\r\n"), Cut(400)),
        ("extension with bare LF", chunked!("1;a\nx\r\n0\r\n\r\n"), Cut(400)),
        (
            "extension with bare LF on the last chunk",
            chunked!("0;a\n\r\n"),
            Cut(400),
        ),
        ("extension with bare CR", chunked!("1;a\rb\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("extension with NUL", chunked!("1;a\x00\r\nx\r\n0\r\n\r\n"), Cut(400)),
        ("nothing after the data", chunked!("1\r\nx0\r\n\r\n"), Cut(400)),
        ("more data than said", chunked!("1\r\nxyz\r\n0\r\n\r\n"), Cut(400)),
        ("bare LF after the data", chunked!("1\r\nx\n0\r\n\r\n"), Cut(400)),
        ("bare CR after the data", chunked!("1\r\nx\r0\r\n\r\n"), Cut(400)),
        (
            "two bytes other than CR LF after the data",
            chunked!("1\r\nxyy0\r\n\r\n"),
            Cut(400),
        ),
        (
            "trailer Content-Length",
            chunked!("0\r\nContent-Length: 33\r\n\r\n"),
            Cut(400),
        ),
        (
            "trailer Transfer-Encoding",
            chunked!("0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Cut(400),
        ),
        ("trailer Host", chunked!("0\r\nHost: evil\r\n\r\n"), Cut(400)),
        (
            "trailer Content_Length",
            chunked!("0\r\nContent_Length: 33\r\n\r\n"),
            Cut(400),
        ),
        (
            "trailer with space before the colon",
            chunked!("0\r\nX-A : 1\r\n\r\n"),
            Cut(400),
        ),
        ("trailer with bare LF", chunked!("0\r\nX-A: 1\n\r\n"), Cut(400)),
        ("trailer folded", chunked!("0\r\nX-A: 1\r\n 2\r\n\r\n"), Cut(400)),
        ("trailer with NUL", chunked!("0\r\nX-A: \x00\r\n\r\n"), Cut(400)),
        ("trailers ended by bare LF", chunked!("0\r\n\n"), Cut(400)),
        // The data may be as long as it says; nothing behind it is a request.
        (
            "the largest size that is one",
            chunked!("ffffffffffffffff\r\nGET /evil HTTP/1.1\r\nHost: web\r\n\r\n"),
            Unanswered,
        ),
        (
            "a request inside a chunk stays inside",
            chunked!("21\r\nGET /evil HTTP/1.1\r\nHost: web\r\n\r\n\r\n0\r\n\r\n"),
            Passed(1, &["21\r\nGET /evil"]),
        ),
        (
            "extensions are dropped",
            chunked!("1;a=b;c=\"d\"\r\nx\r\n0;e\r\n\r\n"),
            Passed(1, &["\r\n\r\n1\r\nx\r\n0\r\n\r\n", "!a=b"]),
        ),
        (
            "trailers are forwarded, without those that are not meant for it",
            chunked!(
                "1\r\nx\r\n0\r\nX-Sum: 1\r\nAuthorization: x\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n"
            ),
            Passed(
                1,
                &[
                    "1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n",
                    "!Authorization",
                    "!6.6.6.6",
                    "!Connection",
                ],
            ),
        ),
        (
            "a request behind the last chunk is one of its own",
            chunked!("1\r\nx\r\n000\r\n\r\nGET /next HTTP/1.1\r\nHost: web\r\n\r\n"),
            Passed(2, &["1\r\nx\r\n"]),
        ),
    ]);
}

#[test]
fn hosts() {
    play(&[
        ("missing", b"GET /g HTTP/1.1\r\n\r\n", Refused(400)),
        ("twice", get!("Host: evil"), Refused(400)),
        ("twice the same", get!("Host: web"), Refused(400)),
        ("twice in another case", get!("hOST: web"), Refused(400)),
        ("list", b"GET /g HTTP/1.1\r\nHost: web, evil\r\n\r\n", Refused(400)),
        ("empty", b"GET /g HTTP/1.1\r\nHost: \r\n\r\n", Refused(400)),
        (
            "space inside",
            b"GET /g HTTP/1.1\r\nHost: web evil\r\n\r\n",
            Refused(400),
        ),
        ("with user", b"GET /g HTTP/1.1\r\nHost: user@web\r\n\r\n", Refused(400)),
        ("with path", b"GET /g HTTP/1.1\r\nHost: web/evil\r\n\r\n", Refused(400)),
        (
            "with backslash",
            b"GET /g HTTP/1.1\r\nHost: web\\evil\r\n\r\n",
            Refused(400),
        ),
        (
            "with quote",
            b"GET /g HTTP/1.1\r\nHost: web\"evil\r\n\r\n",
            Refused(400),
        ),
        (
            "with high bytes",
            b"GET /g HTTP/1.1\r\nHost: w\xc3\xa9b\r\n\r\n",
            Refused(400),
        ),
        (
            "port too large",
            b"GET /g HTTP/1.1\r\nHost: web:65536\r\n\r\n",
            Refused(400),
        ),
        (
            "port not a number",
            b"GET /g HTTP/1.1\r\nHost: web:80a\r\n\r\n",
            Refused(400),
        ),
        ("two ports", b"GET /g HTTP/1.1\r\nHost: web:80:80\r\n\r\n", Refused(400)),
        (
            "bracket not closed",
            b"GET /g HTTP/1.1\r\nHost: [::1\r\n\r\n",
            Refused(400),
        ),
        (
            "IPv6 with a port",
            b"GET /g HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            Passed(1, &["\r\nHost: [::1]:80\r\n"]),
        ),
        (
            "absolute URI wins over Host",
            b"GET http://right:81/x?y HTTP/1.1\r\nHost: wrong\r\n\r\n",
            Passed(
                1,
                &[
                    "GET /x?y HTTP/1.1\r\nHost: right:81\r\n",
                    "!wrong",
                    "\r\nX-Forwarded-Host: right:81\r\n",
                ],
            ),
        ),
        (
            "absolute URI without path",
            b"GET http://right?y HTTP/1.1\r\nHost: wrong\r\n\r\n",
            Passed(1, &["GET /?y HTTP/1.1\r\nHost: right\r\n"]),
        ),
        (
            "absolute URI without Host",
            b"GET http://right/x HTTP/1.1\r\n\r\n",
            Refused(400),
        ),
        (
            "absolute URI with user",
            b"GET http://u:p@right/x HTTP/1.1\r\nHost: right\r\n\r\n",
            Refused(400),
        ),
        (
            "absolute URI without host",
            b"GET http:///x HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "absolute URI of another scheme",
            b"GET ftp://right/x HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "absolute URI with a second Host",
            b"GET http://right/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            Refused(400),
        ),
        (
            "a path that looks like an authority",
            b"GET //evil/x HTTP/1.1\r\nHost: web\r\n\r\n",
            Passed(1, &["GET //evil/x HTTP/1.1\r\nHost: web\r\n"]),
        ),
        (
            "Connection cannot strip Host",
            get!("Connection: Host"),
            Passed(1, &["\r\nHost: web\r\n"]),
        ),
        (
            "HTTP/1.0 without Host gets one",
            b"GET /g HTTP/1.0\r\n\r\n",
            Passed(1, &["GET /g HTTP/1.1\r\nHost: 127.0.0.1:", "!X-Forwarded-Host"]),
        ),
    ]);
}

#[test]
fn request_lines() {
    play(&[
        (
            "control character in the target",
            b"GET /\x01 HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "NUL in the target",
            b"GET /\x00 HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "tab in the target",
            b"GET /\tx HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "delete in the target",
            b"GET /\x7f HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "high byte in the target",
            b"GET /\xff HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "space in the target",
            b"GET /a b HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "bare CR in the target",
            b"GET /a\rb HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        ("fragment", b"GET /a#b HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400)),
        ("no slash", b"GET evil HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400)),
        (
            "asterisk without OPTIONS",
            b"GET * HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        ("two spaces", b"GET  /g HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400)),
        (
            "two spaces before the version",
            b"GET /g  HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "space after the version",
            b"GET /g HTTP/1.1 \r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "tabs instead of spaces",
            b"GET\t/g\tHTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        ("space first", b" GET /g HTTP/1.1\r\nHost: web\r\n\r\n", Refused(400)),
        (
            "method that is no token",
            b"G@T /g HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        ("no version", b"GET /g\r\nHost: web\r\n\r\n", Refused(400)),
        (
            "version in small letters",
            b"GET /g http/1.1\r\nHost: web\r\n\r\n",
            Refused(400),
        ),
        (
            "version 1.2",
            b"GET /g HTTP/1.2\r\nHost: web\r\n\r\n",
            Passed(1, &["GET /g HTTP/1.1\r\n", "\r\nVia: 1.1 anynode\r\n"]),
        ),
        (
            "version 1.9 of a client that sends a body",
            b"POST /g HTTP/1.9\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            Passed(1, &["POST /g HTTP/1.1\r\n", "\r\nTransfer-Encoding: chunked\r\n"]),
        ),
        ("version 01.1", b"GET /g HTTP/01.1\r\nHost: web\r\n\r\n", Refused(400)),
        ("version 1", b"GET /g HTTP/1\r\nHost: web\r\n\r\n", Refused(400)),
        ("version 1.20", b"GET /g HTTP/1.20\r\nHost: web\r\n\r\n", Refused(400)),
        ("version 0.9", b"GET /g HTTP/0.9\r\nHost: web\r\n\r\n", Refused(505)),
        ("version 2.0", b"GET /g HTTP/2.0\r\nHost: web\r\n\r\n", Refused(505)),
        ("version 1.10", b"GET /g HTTP/1.10\r\nHost: web\r\n\r\n", Refused(400)),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            Refused(400),
        ),
        (
            "CONNECT",
            b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n",
            Refused(501),
        ),
        (
            "CONNECT of a path",
            b"CONNECT / HTTP/1.1\r\nHost: web\r\n\r\n",
            Refused(501),
        ),
        (
            "TRACE with a body",
            b"TRACE / HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\n\r\nx",
            Refused(400),
        ),
        (
            "TRACE with Max-Forwards 0",
            b"TRACE /t HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\n\r\n",
            Answered(501),
        ),
        (
            "OPTIONS with Max-Forwards 0",
            b"OPTIONS * HTTP/1.1\r\nHost: web\r\nMax-Forwards: 0\r\n\r\n",
            Answered(200),
        ),
        (
            "TRACE with Max-Forwards 5",
            b"TRACE /t HTTP/1.1\r\nHost: web\r\nMax-Forwards: 5\r\n\r\n",
            Passed(1, &["\r\nMax-Forwards: 4\r\n", "!: 5"]),
        ),
        (
            "Max-Forwards of OPTIONS nonsense",
            b"OPTIONS / HTTP/1.1\r\nHost: web\r\nMax-Forwards: x\r\n\r\n",
            Refused(400),
        ),
        (
            "Max-Forwards of OPTIONS repeated",
            b"OPTIONS / HTTP/1.1\r\nHost: web\r\nMax-Forwards: 1\r\nMax-Forwards: 0\r\n\r\n",
            Refused(400),
        ),
        (
            "Max-Forwards of GET is the endpoint's",
            get!("Max-Forwards: 0"),
            Passed(1, &["\r\nMax-Forwards: 0\r\n"]),
        ),
        (
            "the path is not normalised",
            b"GET /a/../b//c/%2e%2e/?x=%0d%0a HTTP/1.1\r\nHost: web\r\n\r\n",
            Passed(1, &["GET /a/../b//c/%2e%2e/?x=%0d%0a HTTP/1.1\r\n"]),
        ),
    ]);
}

#[test]
fn expectations() {
    play(&[
        (
            "unknown",
            post!("Expect: 200-ok\r\nContent-Length: 1", "x"),
            Refused(417),
        ),
        (
            "list",
            post!("Expect: 100-continue, x\r\nContent-Length: 1", "x"),
            Refused(417),
        ),
        (
            "twice",
            post!("Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 1", "x"),
            Refused(417),
        ),
        ("empty", post!("Expect: \r\nContent-Length: 1", "x"), Refused(417)),
        (
            "with two lengths",
            post!(
                "Expect: 100-continue\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
                "0\r\n\r\n"
            ),
            Refused(400),
        ),
        (
            "with a body that came along",
            post!(
                "Expect: 100-Continue\r\nContent-Length: 1",
                "xGET /next HTTP/1.1\r\nHost: web\r\n\r\n"
            ),
            Passed(2, &["\r\nExpect: 100-Continue\r\n", "\r\n\r\nx"]),
        ),
        (
            "without a body it is not passed on",
            get!("Expect: 100-continue"),
            Passed(1, &["!Expect"]),
        ),
        (
            "with length 0 it is not passed on",
            post!(
                "Expect: 100-continue\r\nContent-Length: 0",
                "GET /next HTTP/1.1\r\nHost: web\r\n\r\n"
            ),
            Passed(2, &["!Expect"]),
        ),
        (
            "of HTTP/1.0 is not passed on",
            b"POST /p HTTP/1.0\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
            Passed(1, &["!Expect"]),
        ),
    ]);
}

#[test]
fn heads_have_limits() {
    let fields = |n: usize| -> String { (0..n).map(|i| format!("X-{i}: {i}\r\n")).collect() };
    let with_fields = |n| format!("GET /g HTTP/1.1\r\nHost: web\r\n{}\r\n", fields(n));
    let of_length = |length: usize| {
        let head = "GET /g HTTP/1.1\r\nHost: web\r\nX-Long: ";
        format!("{head}{}\r\n\r\n", "x".repeat(length - head.len() - 4))
    };
    let long_line = format!("GET /{} HTTP/1.1\r\nHost: web\r\n\r\n", "x".repeat(70_000));
    let endless_line = format!("GET /{}", "x".repeat(200_000));
    let endless_name = format!("GET /g HTTP/1.1\r\n{}", "x".repeat(200_000));
    let many_options = format!(
        "GET /g HTTP/1.1\r\nHost: web\r\nConnection: {}\r\n\r\n",
        "a,".repeat(100)
    );
    play(&[
        (
            "100 fields",
            with_fields(99).as_bytes(),
            Passed(1, &["\r\nX-98: 98\r\n"]),
        ),
        ("101 fields", with_fields(100).as_bytes(), Refused(431)),
        ("64 KiB", of_length(64 * 1024).as_bytes(), Passed(1, &["\r\nX-Long: x"])),
        ("one more", of_length(64 * 1024 + 1).as_bytes(), Refused(431)),
        ("request line too long", long_line.as_bytes(), Refused(431)),
        ("request line without end", endless_line.as_bytes(), Refused(431)),
        ("field name without end", endless_name.as_bytes(), Refused(431)),
        ("connection options without end", many_options.as_bytes(), Refused(400)),
    ]);
}

#[test]
fn hop_by_hop_fields_stay_on_their_hop() {
    play(&[
        (
            "of a request",
            get!(
                "Connection: keep-alive, X-Secret, x-other\r\nX-Secret: 1\r\nX-OTHER: 1\r\nKeep-Alive: timeout=5\r\n\
                 Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nProxy-Custom: 1\r\nProxy: evil\r\n\
                 TE: gzip\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Kept: 1"
            ),
            Passed(
                1,
                &[
                    "\r\nX-Kept: 1\r\n",
                    "!X-Secret",
                    "!X-OTHER",
                    "!Keep-Alive",
                    "!Proxy",
                    "!TE: ",
                    "!Trailer",
                    "!Upgrade",
                    "!HTTP2",
                    "!Connection",
                ],
            ),
        ),
        (
            "Connection cannot list what end points rely on",
            get!(
                "Connection: Authorization, Cookie, X-Forwarded-For, Forwarded, Via, Host\r\nAuthorization: a\r\nCookie: b"
            ),
            Passed(
                1,
                &[
                    "\r\nAuthorization: a\r\n",
                    "\r\nCookie: b\r\n",
                    "\r\nX-Forwarded-For: 127.0.0.1\r\n",
                    "\r\nForwarded: for=127.0.0.1;",
                    "\r\nVia: 1.1 anynode\r\n",
                ],
            ),
        ),
        (
            "an upgrade to HTTP/2 is no upgrade",
            get!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
            Passed(1, &["!Upgrade", "!HTTP2-Settings", "!Connection"]),
        ),
        (
            "an upgrade that the endpoint declines leaves requests what they are",
            b"GET /g HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
              GET /next HTTP/1.1\r\nHost: web\r\n\r\n",
            Passed(2, &["\r\nUpgrade: websocket\r\n", "\r\nConnection: upgrade\r\n"]),
        ),
        (
            "TE: trailers is said anew",
            get!("TE: trailers, gzip"),
            Passed(1, &["\r\nTE: trailers\r\nConnection: TE\r\n"]),
        ),
    ]);
}

const SPOOFED: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\
                       X-Forwarded-Host: bank\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Prefix: /p\r\nX-Real-IP: 6.6.6.6\r\n\
                       Forwarded: for=6.6.6.6;proto=https";

#[test]
fn forwarding_fields_of_strangers_are_dropped() {
    let request = format!("GET /g HTTP/1.1\r\nHost: web\r\n{SPOOFED}\r\n\r\n");
    play(&[(
        "from nobody we know",
        request.as_bytes(),
        Passed(
            1,
            &[
                "!6.6.6.6",
                "!7.7.7.7",
                "!https",
                "!bank",
                "!443",
                "!Prefix",
                "\r\nX-Forwarded-For: 127.0.0.1\r\n",
                "\r\nX-Real-IP: 127.0.0.1\r\n",
                "\r\nX-Forwarded-Proto: http\r\n",
                "\r\nX-Forwarded-Host: web\r\n",
                "\r\nForwarded: for=127.0.0.1;host=web;proto=http\r\n",
            ],
        ),
    )]);
}

#[test]
fn forwarding_fields_of_trusted_proxies_are_kept_and_added_to() {
    let node = Node::start_with(ProxyConfig {
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
        ..ProxyConfig::default()
    });
    let origin = Recorder::start(ok("fine"));
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    talk(
        door(&web),
        format!("GET /g HTTP/1.1\r\nHost: web\r\n{SPOOFED}\r\n\r\n").as_bytes(),
    );
    let seen = origin.requests().remove(0);
    check_well_formed(&seen).unwrap();
    for field in [
        "X-Forwarded-For: 6.6.6.6, 7.7.7.7, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: bank",
        "X-Forwarded-Port: 443",
        "X-Forwarded-Prefix: /p",
        "X-Real-IP: 6.6.6.6",
        "Forwarded: for=6.6.6.6;proto=https, for=127.0.0.1;host=web;proto=http",
    ] {
        assert!(seen.contains(&format!("\r\n{field}\r\n")), "{field} in {seen}");
    }
    assert_eq!(seen.matches("X-Forwarded-").count(), 5, "{seen}");
}

#[test]
fn what_is_pipelined_behind_an_error_is_not_served() {
    let origin = Recorder::start(ok("fine"));
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let requests =
        format!("GET /1 HTTP/1.1\r\nHost: web\r\n\r\nGET /2 HTTP/1.1\r\nHost: web\r\nHost: web\r\n\r\n{EVIL}");
    let answer = talk(door(&web), requests.as_bytes());
    assert_eq!(statuses(&answer), [200, 400]);
    let closed = "GET /3 HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    let answer = talk(door(&web), format!("{closed}{EVIL}").as_bytes());
    assert_eq!(statuses(&answer), [200]);
    let seen = origin.requests();
    let targets: Vec<&str> = seen.iter().map(|request| target_of(request)).collect();
    assert_eq!(targets, ["/1", "/3"]);
    wait_until("the close", || node.closed("web", CloseReason::BadRequest) == 1);
    talk(door(&web), chunked!("x"));
    let stats = node.service("web");
    let n_requests = |code| stats.stats().request_count(code);
    wait_until("the requests to be counted", || {
        (n_requests(HttpCode::Success), n_requests(HttpCode::ClientError)) == (2, 2)
    });
}

#[test]
fn the_last_response_arrives_although_the_client_sends_on() {
    let node = Node::start();
    let body = "b".repeat(2 << 20);
    let origin = Recorder::start(ok(&body));
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    for _ in 0..10 {
        let mut client = dial(door(&web));
        let request = "GET /last HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
        client
            .write_all((request.to_owned() + &EVIL.repeat(1000)).as_bytes())
            .unwrap();
        let (answer, error) = read_all(&client);
        assert!(
            answer.ends_with(&body) && error.is_none(),
            "{} bytes, {error:?}",
            answer.len()
        );
    }
    assert!(origin.requests().iter().all(|request| target_of(request) == "/last"));
}

#[test]
fn a_head_that_drips_is_ended() {
    let origin = Recorder::start(ok("fine"));
    let node = Node::start();
    let mut web = http_service("web", &[origin.origin.addr]);
    web.timeouts.request_head = Duration::from_millis(150);
    node.apply(&web);
    let mut client = dial(door(&web));
    let dripping = client.try_clone().unwrap();
    std::thread::spawn(move || {
        let head = format!("GET / HTTP/1.1\r\nHost: web\r\nX-Long: {}\r\n\r\n", "x".repeat(100_000));
        for byte in head.bytes() {
            if (&dripping).write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let mut answer = vec![0; "HTTP/1.1 408 ".len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, b"HTTP/1.1 408 ");
    let (rest, _) = read_all(&client);
    assert!(rest.contains("Connection: close\r\n"), "{rest}");
    wait_until("the close", || node.closed("web", CloseReason::ClientTimeout) == 1);
    assert_eq!(node.service("web").stats().request_count(HttpCode::ClientError), 1);
    assert_eq!(origin.origin.n_accepted(), 0);
}

#[test]
fn requests_cut_anywhere_are_the_same_requests() {
    let origin = Recorder::start(ok("fine"));
    let node = Node::start();
    let web = http_service("web", &[origin.origin.addr]);
    node.apply(&web);
    let request =
        b"POST /p HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n";
    let mut client = dial(door(&web));
    client.set_nodelay(true).unwrap();
    for byte in request {
        client.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_micros(500));
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(statuses(&read_all(&client).0), [200]);
    let seen = origin.requests();
    assert_eq!(seen.len(), 1);
    check_well_formed(&seen[0]).unwrap();
    assert!(
        seen[0].ends_with("\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"),
        "{seen:?}"
    );
}

//! h2spec's cases for servers, as raw frames, with its numbers (part, section, case) so that the two lists can be compared; its
//! sections are RFC 7540's, and what RFC 9113 asks for instead is said where it differs. A table of cases in four files, and what
//! runs them. What must come back is what the RFC says, code and all: h2spec itself takes any end of the connection for a right one.

mod connection;
mod frames;
mod generic;
mod hpack;
mod messages;

use super::frames::{
    Client, DATA, Event, Frame, GOAWAY, HEADERS, MAX_FRAME_SIZE, PING, PROTOCOL_ERROR, RST_STREAM, SETTINGS, ping,
};
use super::{HELLO, Rig};

/// How much the RFC wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Must,
    Should,
}

struct Case {
    id: &'static str,
    what: &'static str,
    level: Level,
    /// What the client does, beyond the handshake unless `is_mute`.
    talk: fn(&mut Client),
    expect: Expect,
    is_mute: bool,
    known: Option<Known>,
}

/// What is known to be otherwise, and whose affair that is.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// The connection ends as it must, and is told another code.
    Code(&'static str),
    /// It is passed over.
    Passed(&'static str),
}

impl Known {
    fn why(self) -> &'static str {
        match self {
            Known::Code(why) | Known::Passed(why) => why,
        }
    }
}

/// What ends a connection with the code that means any fault.
const BY_CRATE: Known = Known::Code("the h2 crate says PROTOCOL_ERROR of all that a frame can have wrong");

const fn must(id: &'static str, what: &'static str, talk: fn(&mut Client), expect: Expect) -> Case {
    Case {
        id,
        what,
        level: Level::Must,
        talk,
        expect,
        is_mute: false,
        known: None,
    }
}

impl Case {
    const fn should(self) -> Case {
        Case {
            level: Level::Should,
            ..self
        }
    }

    const fn mute(self) -> Case {
        Case { is_mute: true, ..self }
    }

    const fn known(self, why: Known) -> Case {
        Case {
            known: Some(why),
            ..self
        }
    }
}

/// What is to come back.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// GOAWAY with one of these codes, and the end.
    ConnectionError(&'static [u32]),
    /// The end, whatever is said before.
    End,
    /// The end without GOAWAY, or with one of this code: who speaks something else may not be told.
    EndOr(u32),
    /// RST_STREAM of this stream with one of these codes, and the connection goes on; or all of it ends with one of them.
    StreamError(u32, &'static [u32]),
    /// A response on this stream, with status 200 and all of its body.
    Answer(u32),
    /// So many bytes of DATA in the first frame of it.
    FirstData(usize),
    Pong([u8; 8]),
    PongOrEnd([u8; 8]),
    /// SETTINGS without ACK, before anything else.
    SettingsFirst,
    SettingsAck,
}

/// What came of a case.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// What was to end has ended, by another code.
    OtherCode(Option<u32>),
    Failed(String),
}

/// Waits for a frame; the others are passed over. `Err`: what came in its place.
fn seek(client: &mut Client, is_it: impl Fn(&Frame) -> bool) -> Result<Frame, String> {
    loop {
        match client.next() {
            Event::Frame(frame) if is_it(&frame) => return Ok(frame),
            Event::Frame(frame) if frame.kind == GOAWAY => return Err(format!("{frame:?}")),
            Event::Frame(_) => {}
            event => return Err(format!("{event:?}")),
        }
    }
}

fn judge(result: Result<bool, String>) -> Verdict {
    match result {
        Ok(true) => Verdict::Passed,
        Ok(false) => Verdict::Failed("another one".into()),
        Err(what) => Verdict::Failed(what),
    }
}

impl Expect {
    fn check(self, client: &mut Client) -> Verdict {
        match self {
            Expect::ConnectionError(codes) => match client.read_to_close() {
                Ok(Some(code)) if codes.contains(&code) => Verdict::Passed,
                Ok(code) => Verdict::OtherCode(code),
                Err(code) => Verdict::Failed(format!("not over, after GOAWAY {code:?}")),
            },
            Expect::End => judge(client.read_to_close().map(|_| true).map_err(|_| "not over".into())),
            Expect::EndOr(code) => match client.read_to_close() {
                Ok(said) if said.is_none_or(|said| said == code) => Verdict::Passed,
                other => Verdict::Failed(format!("{other:?}")),
            },
            Expect::StreamError(stream, codes) => self.check_stream(client, stream, codes),
            Expect::Answer(stream) => match client.read_answer(stream) {
                (Some(200), body) if body == HELLO || body.is_empty() => Verdict::Passed,
                other => Verdict::Failed(format!("{other:?}")),
            },
            Expect::FirstData(len) => {
                let first = seek(client, |frame| frame.kind == DATA);
                judge(first.map(|frame| frame.payload.len() == len))
            }
            Expect::Pong(payload) => {
                let pong = seek(client, |frame| frame.kind == PING);
                judge(pong.map(|frame| frame.is_ack() && frame.payload == payload))
            }
            Expect::PongOrEnd(payload) => loop {
                match client.next() {
                    Event::Frame(frame) if frame.kind == PING => {
                        break judge(Ok(frame.is_ack() && frame.payload == payload));
                    }
                    Event::Frame(_) => {}
                    Event::Closed => break Verdict::Passed,
                    Event::Silence => break Verdict::Failed("silence".into()),
                }
            },
            Expect::SettingsFirst => match client.next() {
                Event::Frame(frame) if frame.kind == SETTINGS && !frame.is_ack() => Verdict::Passed,
                event => Verdict::Failed(format!("{event:?}")),
            },
            Expect::SettingsAck => {
                let settings = seek(client, |frame| frame.kind == SETTINGS);
                judge(settings.map(|frame| frame.is_ack() && frame.payload.is_empty()))
            }
        }
    }

    fn check_stream(self, client: &mut Client, stream: u32, codes: &[u32]) -> Verdict {
        loop {
            match client.next() {
                Event::Frame(frame) if frame.kind == RST_STREAM && frame.stream == stream => {
                    if !codes.contains(&frame.code()) {
                        return Verdict::Failed(format!("{frame:?}"));
                    }
                    // An error of a stream is none of the connection's.
                    client.say(&[ping(0, b"still up")]);
                    let pong = seek(client, |frame| frame.kind == PING && frame.is_ack());
                    return judge(pong.map(|pong| pong.payload == b"still up"));
                }
                Event::Frame(frame) if frame.kind == GOAWAY => {
                    let code = frame.code();
                    return match client.read_to_close() {
                        Ok(_) if codes.contains(&code) => Verdict::Passed,
                        Ok(_) => Verdict::OtherCode(Some(code)),
                        Err(_) => Verdict::Failed("GOAWAY, and not over".into()),
                    };
                }
                Event::Frame(_) => {}
                Event::Closed => return Verdict::OtherCode(None),
                Event::Silence => return Verdict::Failed("silence".into()),
            }
        }
    }
}

/// Runs cases of one table, each on a connection of its own.
fn run(cases: &[Case]) {
    let rig = Rig::start();
    let mut faults = Vec::new();
    for case in cases {
        println!("{}", case.id);
        let mut client = match case.is_mute {
            true => Client::mute(rig.door),
            false => Client::connect(rig.door),
        };
        (case.talk)(&mut client);
        let verdict = case.expect.check(&mut client);
        let fault = match (&verdict, case.known) {
            (Verdict::Passed, None) => None,
            (Verdict::OtherCode(Some(PROTOCOL_ERROR)), Some(Known::Code(_))) => None,
            (Verdict::Failed(_), Some(Known::Passed(_))) => None,
            (Verdict::Passed, Some(known)) => Some(format!("passes by now; it was known: {}", known.why())),
            (verdict, _) => Some(format!("{verdict:?} in place of {:?}", case.expect)),
        };
        if let Some(fault) = fault {
            faults.push(format!("{} ({:?}: {}): {fault}", case.id, case.level, case.what));
        }
    }
    assert!(
        faults.is_empty(),
        "{} of {}:\n{}",
        faults.len(),
        cases.len(),
        faults.join("\n")
    );
    // Whoever made all these faults has kept nobody from anything.
    let mut client = Client::connect(rig.door);
    assert_eq!(client.ask(1, &super::frames::get()), (Some(200), HELLO.to_vec()));
}

/// The largest frame that the server takes.
fn frame_bytes_most(client: &Client) -> usize {
    let declared = client.settings.iter().rfind(|(id, _)| *id == MAX_FRAME_SIZE);
    declared.map_or(16_384, |(_, value)| *value as usize)
}

/// Waits until the answer on a stream has ended.
fn until_answered(client: &mut Client, stream: u32) {
    client.wait_for("an answer", |frame| frame.kind == HEADERS && frame.stream == stream);
    client.wait_for_end(stream);
}

#[test]
fn connections_and_streams_conform() {
    run(connection::CASES);
}

#[test]
fn frames_conform() {
    run(frames::CASES);
}

#[test]
fn messages_conform() {
    run(messages::CASES);
}

#[test]
fn what_is_right_is_taken() {
    run(generic::CASES);
}

#[test]
fn compression_conforms() {
    run(hpack::CASES);
}

#[test]
fn the_whole_list_is_there_and_nothing_is_there_twice() {
    let tables = [
        connection::CASES,
        frames::CASES,
        messages::CASES,
        generic::CASES,
        hpack::CASES,
    ];
    let mut ids: Vec<_> = tables.iter().copied().flatten().map(|case| case.id).collect();
    let n_of = |part: &str| ids.iter().filter(|id| id.starts_with(part)).count();
    // As many as h2spec has.
    assert_eq!([n_of("http2/"), n_of("generic/"), n_of("hpack/")], [95, 44, 8]);
    let n = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), n, "an id is there twice");
}

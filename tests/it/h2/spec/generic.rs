//! What every server must take: h2spec's generic part.

use super::super::frames::{
    CANCEL, ENABLE_PUSH, END_HEADERS, END_STREAM, HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE, NO_ERROR, PADDED, PREFACE, WHOLE, WITH_PRIORITY, continuation, data,
    dependency, fields, frame, get, goaway, headers, integer, ping, post, priority, request, rst, settings,
    window_update,
};
use super::{Case, Expect, must, until_answered};
use crate::h2::frames::{Client, GOAWAY};

use Expect::{Answer, FirstData, Pong, PongOrEnd};

const NAMED: &[u8; 8] = b"h2spec\0\0";

/// A request with these bytes behind its fields.
fn ask_with(c: &mut Client, bytes: &[u8]) {
    c.say(&[headers(1, WHOLE, &[&get(), bytes].concat())]);
}

/// The same behind fields of which the last enters the table.
fn ask_indexed(c: &mut Client, bytes: &[u8]) {
    ask_with(c, &[b"\x40\x06x-test\x06h2spec", bytes].concat());
}

const EXCLUSIVE: u32 = 1 << 31;

pub(super) const CASES: &[Case] = &[
    must(
        "generic/1/1",
        "the client's preface",
        |c| {
            c.say(&[PREFACE.to_vec(), settings(&[(INITIAL_WINDOW_SIZE, 65_535)])]);
        },
        Expect::SettingsFirst,
    )
    .mute(),
    must(
        "generic/2/1",
        "PRIORITY of an idle stream",
        |c| {
            c.say(&[priority(1, 0, 255), ping(0, &[0; 8])]);
        },
        Pong([0; 8]),
    ),
    must(
        "generic/2/2",
        "WINDOW_UPDATE of a half closed stream",
        |c| {
            let window = settings(&[(INITIAL_WINDOW_SIZE, 0)]);
            c.say(&[window, headers(1, WHOLE, &get()), window_update(1, 1)]);
        },
        FirstData(1),
    ),
    must(
        "generic/2/3",
        "PRIORITY of a half closed stream",
        |c| {
            let window = settings(&[(INITIAL_WINDOW_SIZE, 0)]);
            c.say(&[
                window,
                headers(1, WHOLE, &get()),
                priority(1, 0, 255),
                window_update(1, 1),
            ]);
        },
        FirstData(1),
    ),
    must(
        "generic/2/4",
        "RST_STREAM of a half closed stream",
        |c| {
            c.say(&[
                headers(1, WHOLE, &request("GET", "/never", &[])),
                rst(1, CANCEL),
                ping(0, &[0; 8]),
            ]);
        },
        PongOrEnd([0; 8]),
    ),
    must(
        "generic/2/5",
        "PRIORITY of a closed stream",
        |c| {
            c.say(&[headers(1, WHOLE, &get())]);
            until_answered(c, 1);
            c.say(&[priority(1, 0, 255), ping(0, &[0; 8])]);
        },
        Pong([0; 8]),
    ),
    must(
        "generic/3.1/1",
        "DATA",
        |c| {
            c.say(&[headers(1, END_HEADERS, &post()), data(1, END_STREAM, b"test")]);
        },
        Answer(1),
    ),
    must(
        "generic/3.1/2",
        "DATA twice",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &post()),
                data(1, 0, b"test"),
                data(1, END_STREAM, b"test"),
            ]);
        },
        Answer(1),
    ),
    must(
        "generic/3.1/3",
        "DATA with padding",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &post()),
                data(1, END_STREAM | PADDED, b"\x05test\0\0\0\0\0"),
            ]);
        },
        Answer(1),
    ),
    must("generic/3.2/1", "HEADERS", |c| ask_with(c, b""), Answer(1)),
    must(
        "generic/3.2/2",
        "HEADERS with padding",
        |c| {
            c.say(&[headers(1, WHOLE | PADDED, &[vec![8], get(), vec![0; 8]].concat())]);
        },
        Answer(1),
    ),
    must(
        "generic/3.2/3",
        "HEADERS with a priority",
        |c| {
            c.say(&[headers(1, WHOLE | WITH_PRIORITY, &[dependency(0, 255), get()].concat())]);
        },
        Answer(1),
    ),
    must(
        "generic/3.3/1",
        "PRIORITY with weight 1",
        |c| {
            c.say(&[priority(1, 0, 0), headers(1, WHOLE, &get())]);
        },
        Answer(1),
    ),
    must(
        "generic/3.3/2",
        "PRIORITY with weight 256",
        |c| {
            c.say(&[priority(1, 0, 255), headers(1, WHOLE, &get())]);
        },
        Answer(1),
    ),
    must(
        "generic/3.3/3",
        "PRIORITY that depends on another stream",
        |c| {
            c.say(&[priority(3, 1, 0), headers(1, WHOLE, &get())]);
        },
        Answer(1),
    ),
    must(
        "generic/3.3/4",
        "PRIORITY that is exclusive",
        |c| {
            c.say(&[priority(1, EXCLUSIVE, 0), headers(1, WHOLE, &get())]);
        },
        Answer(1),
    ),
    must(
        "generic/3.3/5",
        "PRIORITY of an idle stream, and HEADERS of a lower one",
        |c| {
            c.say(&[priority(3, 0, 255), headers(1, WHOLE, &get())]);
        },
        Answer(1),
    ),
    must(
        "generic/3.4/1",
        "RST_STREAM",
        |c| {
            c.say(&[headers(1, END_HEADERS, &get()), rst(1, CANCEL), ping(0, &[0; 8])]);
        },
        PongOrEnd([0; 8]),
    ),
    must(
        "generic/3.5/1",
        "SETTINGS",
        |c| {
            c.say(&[settings(&[
                (HEADER_TABLE_SIZE, 4096),
                (ENABLE_PUSH, 1),
                (MAX_CONCURRENT_STREAMS, 100),
                (INITIAL_WINDOW_SIZE, 65_535),
                (MAX_FRAME_SIZE, 16_384),
                (MAX_HEADER_LIST_SIZE, 100),
            ])]);
        },
        Expect::SettingsAck,
    ),
    must(
        "generic/3.7/1",
        "PING",
        |c| {
            c.say(&[ping(0, NAMED)]);
        },
        Pong(*NAMED),
    ),
    must(
        "generic/3.8/1",
        "GOAWAY",
        |c| {
            c.say(&[goaway(0, NO_ERROR), ping(0, NAMED)]);
        },
        PongOrEnd(*NAMED),
    ),
    must(
        "rfc9113/6.8/1",
        "GOAWAY with words, while a request is under way: it is answered",
        |c| {
            let words = [&[0; 8][..], b"so long"].concat();
            c.say(&[headers(1, WHOLE, &get()), frame(GOAWAY, 0, 0, &words)]);
        },
        Answer(1),
    ),
    must(
        "generic/3.9/1",
        "WINDOW_UPDATE of the connection",
        |c| {
            c.say(&[window_update(0, 1), ping(0, &[0; 8])]);
        },
        Pong([0; 8]),
    ),
    must(
        "generic/3.9/2",
        "WINDOW_UPDATE of a stream",
        |c| {
            c.say(&[headers(1, WHOLE, &get()), window_update(1, 1)]);
        },
        Answer(1),
    ),
    must(
        "generic/3.10/1",
        "CONTINUATION",
        |c| {
            let (first, rest) = (get()[..5].to_vec(), get()[5..].to_vec());
            c.say(&[headers(1, END_STREAM, &first), continuation(1, END_HEADERS, &rest)]);
        },
        Answer(1),
    ),
    must(
        "generic/3.10/2",
        "CONTINUATION twice",
        |c| {
            let block = get();
            c.say(&[
                headers(1, END_STREAM, &block[..5]),
                continuation(1, 0, &block[5..10]),
                continuation(1, END_HEADERS, &block[10..]),
            ]);
        },
        Answer(1),
    ),
    must("generic/4/1", "GET", |c| ask_with(c, b""), Answer(1)),
    must(
        "generic/4/2",
        "HEAD",
        |c| {
            c.say(&[headers(1, WHOLE, &request("HEAD", "/", &[]))]);
        },
        Answer(1),
    ),
    must(
        "generic/4/3",
        "POST",
        |c| {
            c.say(&[headers(1, END_HEADERS, &post()), data(1, END_STREAM, b"test")]);
        },
        Answer(1),
    ),
    must(
        "generic/4/4",
        "POST with trailers",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &request("POST", "/", &[("trailer", "x-test")])),
                data(1, 0, b"test"),
                headers(1, WHOLE, &fields(&[("x-test", "ok")])),
            ]);
        },
        Answer(1),
    ),
    must(
        "generic/5/1",
        "an indexed field",
        |c| ask_indexed(c, b"\xbe"),
        Answer(1),
    ),
    must(
        "generic/5/2",
        "a literal that is indexed, with an indexed name",
        |c| ask_with(c, b"\x7a\x06h2spec"),
        Answer(1),
    ),
    must(
        "generic/5/3",
        "a literal that is indexed, with an indexed name, in Huffman code",
        |c| ask_with(c, b"\x7a\x84\x9c\x48\xac\xa4"),
        Answer(1),
    ),
    must(
        "generic/5/4",
        "a literal that is indexed, with a new name",
        |c| ask_with(c, b"\x40\x06x-test\x06h2spec"),
        Answer(1),
    ),
    must(
        "generic/5/5",
        "a literal that is indexed, with a new name, in Huffman code",
        |c| ask_with(c, b"\x40\x85\xf2\xb2\x4a\x84\xff\x84\x9c\x48\xac\xa4"),
        Answer(1),
    ),
    must(
        "generic/5/6",
        "a literal that is not indexed, with an indexed name",
        |c| ask_with(c, b"\x0f\x2b\x06h2spec"),
        Answer(1),
    ),
    must(
        "generic/5/7",
        "a literal that is not indexed, with an indexed name, in Huffman code",
        |c| ask_with(c, b"\x0f\x2b\x84\x9c\x48\xac\xa4"),
        Answer(1),
    ),
    must(
        "generic/5/8",
        "a literal that is not indexed, with a new name",
        |c| ask_with(c, b"\x00\x06x-test\x06h2spec"),
        Answer(1),
    ),
    must(
        "generic/5/9",
        "a literal that is not indexed, with a new name, in Huffman code",
        |c| ask_with(c, b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x9c\x48\xac\xa4"),
        Answer(1),
    ),
    must(
        "generic/5/10",
        "a literal that is never indexed, with an indexed name",
        |c| ask_with(c, b"\x1f\x2b\x06h2spec"),
        Answer(1),
    ),
    must(
        "generic/5/11",
        "a literal that is never indexed, with an indexed name, in Huffman code",
        |c| ask_with(c, b"\x1f\x2b\x84\x9c\x48\xac\xa4"),
        Answer(1),
    ),
    must(
        "generic/5/12",
        "a literal that is never indexed, with a new name",
        |c| ask_with(c, b"\x10\x06x-test\x06h2spec"),
        Answer(1),
    ),
    must(
        "generic/5/13",
        "a literal that is never indexed, with a new name, in Huffman code",
        |c| ask_with(c, b"\x10\x85\xf2\xb2\x4a\x84\xff\x84\x9c\x48\xac\xa4"),
        Answer(1),
    ),
    must(
        "generic/5/14",
        "a change of the table's size",
        |c| {
            c.say(&[headers(1, WHOLE, &[integer(0x20, 5, 128), get()].concat())]);
        },
        Answer(1),
    ),
    must(
        "generic/5/15",
        "two changes of the table's size",
        |c| {
            c.say(&[headers(1, WHOLE, &[b"\x3f\x61\x3f\xe1\x1f".to_vec(), get()].concat())]);
        },
        Answer(1),
    ),
];

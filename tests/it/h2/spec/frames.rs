//! RFC 9113's sections 6 and 7: each kind of frame, and error codes.

use super::super::frames::{
    ACK, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, GOAWAY,
    HEADERS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, PADDED, PING, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, RST_STREAM,
    SETTINGS, STREAM_CLOSED, WHOLE, WINDOW_UPDATE, continuation, data, fields, frame, get, goaway, headers, ping, post,
    priority, request, rst, settings, window_update,
};
use super::{BY_CRATE, Case, Expect, must};
use crate::h2::frames::{CANCEL, Client};

use Expect::{ConnectionError, FirstData, Pong, StreamError};

/// One more field.
fn more() -> Vec<u8> {
    fields(&[("x-dummy0", "dummy")])
}

fn say_and_wait_for_ack(c: &mut Client, of: &[(u16, u32)]) {
    c.say(&[settings(of)]);
    c.wait_for("an acknowledgement", |frame| frame.kind == SETTINGS && frame.is_ack());
}

const WINDOW_MOST: u32 = (1 << 31) - 1;

pub(super) const CASES: &[Case] = &[
    must(
        "http2/6.1/1",
        "DATA of stream 0",
        |c| {
            c.say(&[data(0, END_STREAM, b"test")]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.1/2",
        "DATA of a stream that has ended",
        |c| {
            let block = request("POST", "/never", &[]);
            c.say(&[headers(1, WHOLE, &block), data(1, END_STREAM, b"test")]);
        },
        StreamError(1, &[STREAM_CLOSED]),
    )
    .known(BY_CRATE),
    must(
        "http2/6.1/3",
        "DATA with more padding than payload",
        |c| {
            let block = request("POST", "/", &[("content-length", "4")]);
            c.say(&[
                headers(1, END_HEADERS, &block),
                data(1, END_STREAM | PADDED, b"\x06Test"),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.2/1",
        "PRIORITY after HEADERS whose block goes on",
        |c| {
            c.say(&[
                headers(1, 0, &get()),
                priority(1, 0, 255),
                continuation(1, END_HEADERS, &more()),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.2/2",
        "HEADERS of another stream after HEADERS whose block goes on",
        |c| {
            c.say(&[
                headers(1, 0, &get()),
                headers(3, WHOLE, &get()),
                continuation(1, END_HEADERS, &more()),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.2/3",
        "HEADERS of stream 0",
        |c| {
            c.say(&[headers(0, WHOLE, &get())]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.2/4",
        "HEADERS with more padding than payload",
        |c| {
            let block = get();
            let padding = u8::try_from(block.len() + 2).unwrap();
            c.say(&[headers(1, WHOLE | PADDED, &[vec![padding], block].concat())]);
        },
        StreamError(1, &[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.3/1",
        "PRIORITY of stream 0",
        |c| {
            c.say(&[priority(0, 0, 255)]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.3/2",
        "PRIORITY of another length than 5",
        |c| {
            let block = request("GET", "/never", &[]);
            c.say(&[headers(1, WHOLE, &block), frame(PRIORITY, 0, 1, &[0x80, 0, 0, 1])]);
        },
        StreamError(1, &[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/6.4/1",
        "RST_STREAM of stream 0",
        |c| {
            c.say(&[rst(0, CANCEL)]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.4/2",
        "RST_STREAM of an idle stream",
        |c| {
            c.say(&[rst(1, CANCEL)]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.4/3",
        "RST_STREAM of another length than 4",
        |c| {
            let block = request("GET", "/never", &[]);
            c.say(&[headers(1, WHOLE, &block), frame(RST_STREAM, 0, 1, &[0; 3])]);
        },
        ConnectionError(&[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/6.5/1",
        "SETTINGS that acknowledge and have a payload",
        |c| {
            c.say(&[frame(SETTINGS, ACK, 0, &[0])]);
        },
        ConnectionError(&[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/6.5/2",
        "SETTINGS of a stream",
        |c| {
            c.say(&[frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 0x64])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.5/3",
        "SETTINGS whose length is no multiple of 6",
        |c| {
            c.say(&[frame(SETTINGS, 0, 0, &[0, 3, 0])]);
        },
        ConnectionError(&[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/6.5.2/1",
        "SETTINGS_ENABLE_PUSH other than 0 and 1",
        |c| {
            c.say(&[settings(&[(ENABLE_PUSH, 2)])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.5.2/2",
        "SETTINGS_INITIAL_WINDOW_SIZE above what a window may be",
        |c| {
            c.say(&[settings(&[(INITIAL_WINDOW_SIZE, 1 << 31)])]);
        },
        ConnectionError(&[FLOW_CONTROL_ERROR]),
    )
    .known(BY_CRATE),
    must(
        "http2/6.5.2/3",
        "SETTINGS_MAX_FRAME_SIZE below the least",
        |c| {
            c.say(&[settings(&[(MAX_FRAME_SIZE, 16_383)])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.5.2/4",
        "SETTINGS_MAX_FRAME_SIZE above the most",
        |c| {
            c.say(&[settings(&[(MAX_FRAME_SIZE, 1 << 24)])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.5.2/5",
        "SETTINGS of an unknown identifier",
        |c| {
            c.say(&[settings(&[(0xff, 1)]), ping(0, &[0; 8])]);
        },
        Pong([0; 8]),
    ),
    must(
        "http2/6.5.3/1",
        "the same setting twice: the later holds",
        |c| {
            say_and_wait_for_ack(c, &[(INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)]);
            c.say(&[headers(1, WHOLE, &get())]);
        },
        FirstData(1),
    ),
    must(
        "http2/6.5.3/2",
        "SETTINGS are acknowledged",
        |c| {
            c.say(&[settings(&[(ENABLE_PUSH, 0)])]);
        },
        Expect::SettingsAck,
    ),
    must(
        "http2/6.7/1",
        "PING is answered with what it holds",
        |c| {
            c.say(&[ping(0, b"h2spec\0\0")]);
        },
        Pong(*b"h2spec\0\0"),
    ),
    must(
        "http2/6.7/2",
        "PING that acknowledges is not answered",
        |c| {
            c.say(&[ping(ACK, b"invalid\0"), ping(0, b"h2spec\0\0")]);
        },
        Pong(*b"h2spec\0\0"),
    ),
    must(
        "http2/6.7/3",
        "PING of a stream",
        |c| {
            c.say(&[frame(PING, 0, 1, &[0; 8])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.7/4",
        "PING of another length than 8",
        |c| {
            c.say(&[frame(PING, 0, 0, &[0; 6])]);
        },
        ConnectionError(&[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/6.8/1",
        "GOAWAY of a stream",
        |c| {
            c.say(&[frame(GOAWAY, 0, 1, &[0; 8])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "rfc9113/6.8/2",
        "GOAWAY too short for what it must hold",
        |c| {
            c.say(&[frame(GOAWAY, 0, 0, &[0; 7])]);
        },
        ConnectionError(&[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/6.9/1",
        "WINDOW_UPDATE by 0",
        |c| {
            c.say(&[window_update(0, 0)]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.9/2",
        "WINDOW_UPDATE of a stream by 0",
        |c| {
            c.say(&[headers(1, END_HEADERS, &get()), window_update(1, 0)]);
        },
        StreamError(1, &[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.9/3",
        "WINDOW_UPDATE of another length than 4",
        |c| {
            c.say(&[frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])]);
        },
        ConnectionError(&[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/6.9.1/1",
        "a window of 1: no more than 1 byte comes",
        |c| {
            say_and_wait_for_ack(c, &[(INITIAL_WINDOW_SIZE, 1)]);
            c.say(&[headers(1, WHOLE, &get())]);
        },
        FirstData(1),
    ),
    must(
        "http2/6.9.1/2",
        "WINDOW_UPDATE above what a window may be",
        |c| {
            c.say(&[window_update(0, WINDOW_MOST), window_update(0, WINDOW_MOST)]);
        },
        ConnectionError(&[FLOW_CONTROL_ERROR]),
    ),
    must(
        "http2/6.9.1/3",
        "WINDOW_UPDATE of a stream above what a window may be",
        |c| {
            let windows = [window_update(1, WINDOW_MOST), window_update(1, WINDOW_MOST)];
            c.say(&[headers(1, END_HEADERS, &get()), windows.concat()]);
        },
        StreamError(1, &[FLOW_CONTROL_ERROR]),
    ),
    must(
        "http2/6.9.2/1",
        "a changed initial window changes that of streams that are there",
        |c| {
            say_and_wait_for_ack(c, &[(INITIAL_WINDOW_SIZE, 0)]);
            c.say(&[headers(1, WHOLE, &get()), settings(&[(INITIAL_WINDOW_SIZE, 1)])]);
        },
        FirstData(1),
    ),
    must(
        "http2/6.9.2/2",
        "a window may become negative",
        |c| {
            say_and_wait_for_ack(c, &[(INITIAL_WINDOW_SIZE, 3)]);
            c.say(&[headers(1, WHOLE, &get())]);
            c.wait_for("DATA", |frame| frame.kind == DATA);
            say_and_wait_for_ack(c, &[(INITIAL_WINDOW_SIZE, 2)]);
            c.say(&[window_update(1, 2)]);
        },
        FirstData(1),
    ),
    must(
        "http2/6.9.2/3",
        "an initial window above what a window may be",
        |c| {
            c.say(&[frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])]);
        },
        ConnectionError(&[FLOW_CONTROL_ERROR]),
    )
    .known(BY_CRATE),
    must(
        "http2/6.10/1",
        "HEADERS and two CONTINUATIONs",
        |c| {
            c.say(&[
                headers(1, END_STREAM, &get()),
                continuation(1, 0, &more()),
                continuation(1, END_HEADERS, &more()),
            ]);
        },
        Expect::Answer(1),
    ),
    must(
        "http2/6.10/2",
        "CONTINUATION, and another frame before the block has ended",
        |c| {
            c.say(&[
                headers(1, 0, &post()),
                continuation(1, 0, &more()),
                data(1, END_STREAM, b"test"),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.10/3",
        "CONTINUATION of stream 0",
        |c| {
            c.say(&[
                headers(1, END_STREAM, &get()),
                frame(CONTINUATION, END_HEADERS, 0, &more()),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.10/4",
        "CONTINUATION after HEADERS that end the block",
        |c| {
            let block = request("GET", "/never", &[]);
            c.say(&[frame(HEADERS, WHOLE, 1, &block), continuation(1, END_HEADERS, &more())]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.10/5",
        "CONTINUATION after CONTINUATION that ends the block",
        |c| {
            let block = request("GET", "/never", &[]);
            let more = continuation(1, END_HEADERS, &more());
            c.say(&[headers(1, END_STREAM, &block), more.clone(), more]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/6.10/6",
        "CONTINUATION after DATA",
        |c| {
            c.say(&[
                headers(1, 0, &post()),
                data(1, END_STREAM, b"test"),
                continuation(1, 0, &more()),
                continuation(0, END_HEADERS, &more()),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/7/1",
        "GOAWAY with an unknown code",
        |c| {
            c.say(&[goaway(0, 0xff), ping(0, b"h2spec\0\0")]);
        },
        Expect::PongOrEnd(*b"h2spec\0\0"),
    ),
    must(
        "http2/7/2",
        "RST_STREAM with an unknown code",
        |c| {
            c.say(&[headers(1, END_HEADERS, &post()), rst(1, 0xff), ping(0, &[0; 8])]);
        },
        Expect::PongOrEnd([0; 8]),
    ),
    must(
        "http2/8.2/1",
        "PUSH_PROMISE of a client",
        |c| {
            let payload = [3u32.to_be_bytes().to_vec(), get()].concat();
            c.say(&[
                headers(1, END_HEADERS, &post()),
                frame(PUSH_PROMISE, END_HEADERS, 1, &payload),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
];

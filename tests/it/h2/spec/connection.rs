//! RFC 9113's sections 3 to 5: the preface, frames as such, streams and their states, errors, extensions.

use super::super::frames::{
    CANCEL, COMPRESSION_ERROR, END_HEADERS, END_STREAM, FRAME_SIZE_ERROR, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS,
    PING, PREFACE, PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED, WHOLE, WITH_PRIORITY, continuation, data, dependency,
    fields, frame, get, headers, ping, post, priority, request, rst, settings, window_update,
};
use super::{BY_CRATE, Case, Expect, frame_bytes_most, must, until_answered};

use Expect::{ConnectionError, StreamError};

/// A kind of frame that there is none of.
const UNKNOWN: u8 = 0x16;

pub(super) const CASES: &[Case] = &[
    must(
        "http2/3.5/1",
        "the client's preface: SETTINGS are the first that comes back",
        |c| {
            c.say(&[PREFACE.to_vec(), settings(&[(INITIAL_WINDOW_SIZE, 65_535)])]);
        },
        Expect::SettingsFirst,
    )
    .mute(),
    must(
        "http2/3.5/2",
        "a preface that is none",
        |c| {
            c.say(&[b"INVALID CONNECTION PREFACE\r\n\r\n".to_vec()]);
        },
        Expect::End,
    )
    .mute(),
    must(
        "rfc9113/3.4/1",
        "a preface whose second half is wrong",
        |c| {
            c.say(&[b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), settings(&[])]);
        },
        Expect::EndOr(PROTOCOL_ERROR),
    )
    .mute(),
    must(
        "rfc9113/3.4/2",
        "something else than SETTINGS after the preface",
        |c| {
            c.say(&[PREFACE.to_vec(), ping(0, b"too soon"), headers(1, WHOLE, &get())]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    )
    .mute(),
    must(
        "http2/4.1/1",
        "a frame of an unknown kind",
        |c| {
            c.say(&[frame(UNKNOWN, 0, 0, &[0; 8]), ping(0, &[0; 8])]);
        },
        Expect::Pong([0; 8]),
    ),
    must(
        "http2/4.1/2",
        "a frame with flags that it does not have",
        |c| {
            c.say(&[frame(PING, 0x16, 0, &[0; 8])]);
        },
        Expect::Pong([0; 8]),
    ),
    must(
        "http2/4.1/3",
        "a frame with the reserved bit set",
        |c| {
            c.say(&[frame(PING, 0x16, 1 << 31, &[0; 8])]);
        },
        Expect::Pong([0; 8]),
    ),
    must(
        "http2/4.2/1",
        "DATA of 2^14 bytes",
        |c| {
            c.say(&[headers(1, END_HEADERS, &post()), data(1, END_STREAM, &[b'x'; 1 << 14])]);
        },
        Expect::Answer(1),
    ),
    must(
        "http2/4.2/2",
        "DATA larger than the server takes frames",
        |c| {
            let bytes = vec![b'x'; frame_bytes_most(c) + 1];
            c.say(&[headers(1, END_HEADERS, &post()), data(1, END_STREAM, &bytes)]);
        },
        StreamError(1, &[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/4.2/3",
        "HEADERS larger than the server takes frames",
        |c| {
            let value = "x".repeat(frame_bytes_most(c) + 1);
            let block = [get(), fields(&[("x-large", &value)])].concat();
            c.say(&[headers(1, WHOLE, &block)]);
        },
        ConnectionError(&[FRAME_SIZE_ERROR]),
    ),
    must(
        "http2/4.3/1",
        "a block that is no compressed one",
        |c| {
            c.say(&[headers(1, WHOLE, b"\x40")]);
        },
        ConnectionError(&[COMPRESSION_ERROR]),
    )
    .known(BY_CRATE),
    must(
        "http2/4.3/2",
        "PRIORITY within a block",
        |c| {
            c.say(&[
                headers(1, 0, &get()),
                priority(1, 0, 255),
                continuation(1, END_HEADERS, &fields(&[("x-a", "1")])),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/4.3/3",
        "HEADERS of another stream within a block",
        |c| {
            c.say(&[
                headers(1, 0, &get()),
                headers(3, WHOLE, &get()),
                continuation(1, END_HEADERS, &fields(&[("x-a", "1")])),
            ]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1/1",
        "idle: DATA",
        |c| {
            c.say(&[data(1, END_STREAM, b"test")]);
        },
        ConnectionError(&[PROTOCOL_ERROR, STREAM_CLOSED]),
    ),
    must(
        "http2/5.1/2",
        "idle: RST_STREAM",
        |c| {
            c.say(&[rst(1, CANCEL)]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1/3",
        "idle: WINDOW_UPDATE",
        |c| {
            c.say(&[window_update(1, 100)]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1/4",
        "idle: CONTINUATION",
        |c| {
            c.say(&[continuation(1, END_HEADERS, &get())]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1/5",
        "half closed (remote): DATA",
        |c| {
            c.say(&[
                headers(1, WHOLE, &request("GET", "/never", &[])),
                data(1, END_STREAM, b"test"),
            ]);
        },
        StreamError(1, &[STREAM_CLOSED]),
    )
    .known(BY_CRATE),
    must(
        "http2/5.1/6",
        "half closed (remote): HEADERS",
        |c| {
            let block = request("GET", "/never", &[]);
            c.say(&[headers(1, WHOLE, &block), headers(1, WHOLE, &block)]);
        },
        StreamError(1, &[STREAM_CLOSED]),
    )
    .known(BY_CRATE),
    must(
        "http2/5.1/7",
        "half closed (remote): CONTINUATION",
        |c| {
            c.say(&[
                headers(1, WHOLE, &request("GET", "/never", &[])),
                continuation(1, END_HEADERS, &fields(&[("x-a", "1")])),
            ]);
        },
        ConnectionError(&[STREAM_CLOSED, PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1/8",
        "closed: DATA after RST_STREAM",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &get()),
                rst(1, CANCEL),
                data(1, END_STREAM, b"test"),
            ]);
        },
        StreamError(1, &[STREAM_CLOSED]),
    ),
    must(
        "http2/5.1/9",
        "closed: HEADERS after RST_STREAM",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &get()),
                rst(1, CANCEL),
                headers(1, WHOLE, &get()),
            ]);
        },
        StreamError(1, &[STREAM_CLOSED]),
    )
    .known(BY_CRATE),
    must(
        "http2/5.1/10",
        "closed: CONTINUATION after RST_STREAM",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &get()),
                rst(1, CANCEL),
                continuation(1, END_HEADERS, &fields(&[("x-a", "1")])),
            ]);
        },
        StreamError(1, &[STREAM_CLOSED, PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1/11",
        "closed: DATA",
        |c| {
            c.say(&[headers(1, WHOLE, &get())]);
            until_answered(c, 1);
            c.say(&[data(1, END_STREAM, b"test")]);
        },
        StreamError(1, &[STREAM_CLOSED]),
    ),
    must(
        "http2/5.1/12",
        "closed: HEADERS",
        |c| {
            c.say(&[headers(1, WHOLE, &get())]);
            until_answered(c, 1);
            c.say(&[headers(1, WHOLE, &get())]);
        },
        ConnectionError(&[STREAM_CLOSED]),
    )
    .known(BY_CRATE),
    must(
        "http2/5.1/13",
        "closed: CONTINUATION",
        |c| {
            c.say(&[headers(1, WHOLE, &get())]);
            until_answered(c, 1);
            c.say(&[continuation(1, END_HEADERS, &fields(&[("x-a", "1")]))]);
        },
        ConnectionError(&[STREAM_CLOSED, PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1.1/1",
        "an even stream",
        |c| {
            c.say(&[headers(2, WHOLE, &get())]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1.1/2",
        "a stream below one that was there",
        |c| {
            c.say(&[headers(5, WHOLE, &get()), headers(3, WHOLE, &get())]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.1.2/1",
        "more streams than the server takes at once",
        |c| {
            let most = c
                .settings
                .iter()
                .find(|(id, _)| *id == MAX_CONCURRENT_STREAMS)
                .unwrap()
                .1;
            c.say(&[settings(&[(INITIAL_WINDOW_SIZE, 0)])]);
            let block = request("GET", "/never", &[]);
            let streams = (0..=most).map(|n| headers(2 * n + 1, WHOLE, &block));
            c.say(&streams.collect::<Vec<_>>());
        },
        // The server declares 100.
        StreamError(201, &[PROTOCOL_ERROR, REFUSED_STREAM]),
    ),
    must(
        "http2/5.3.1/1",
        "HEADERS of a stream that depends on itself",
        |c| {
            let payload = [dependency(1, 255), get()].concat();
            c.say(&[headers(1, WHOLE | WITH_PRIORITY, &payload)]);
        },
        StreamError(1, &[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.3.1/2",
        "PRIORITY of a stream that depends on itself",
        |c| {
            c.say(&[priority(1, 1, 255)]);
        },
        StreamError(1, &[PROTOCOL_ERROR]),
    ),
    must(
        "http2/5.4.1/1",
        "PING with a fault: the connection ends",
        |c| {
            c.say(&[frame(PING, 0, 3, &[0; 8])]);
        },
        Expect::End,
    ),
    must(
        "http2/5.4.1/2",
        "PING with a fault: GOAWAY is said before",
        |c| {
            c.say(&[frame(PING, 0, 3, &[0; 8])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    )
    .should(),
    must(
        "http2/5.5/1",
        "a frame of an extension",
        |c| {
            c.say(&[frame(UNKNOWN, 0, 0, &[0; 8]), ping(0, &[0; 8])]);
        },
        Expect::Pong([0; 8]),
    ),
    must(
        "http2/5.5/2",
        "a frame of an extension within a block",
        |c| {
            c.say(&[headers(1, END_STREAM, &get()), frame(UNKNOWN, 0, 0, &[0; 8])]);
        },
        ConnectionError(&[PROTOCOL_ERROR]),
    ),
];

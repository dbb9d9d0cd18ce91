//! RFC 9113's section 8: requests that are malformed. Each is an error of its stream, and none of it reaches an endpoint as a whole.

use super::super::frames::{
    END_HEADERS, END_STREAM, PROTOCOL_ERROR, WHOLE, data, fields, get, headers, literal, post, request,
};
use super::{Case, Expect, Known, must};

const MALFORMED: Expect = Expect::StreamError(1, &[PROTOCOL_ERROR]);

pub(super) const CASES: &[Case] = &[
    must(
        "http2/8.1/1",
        "HEADERS after DATA that do not end the stream",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &post()),
                data(1, 0, b"test"),
                headers(1, END_HEADERS, &fields(&[("x-test", "ok")])),
            ]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2/1",
        "a name with upper case",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("X-TEST", "ok")]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.1/1",
        "an unknown pseudo field",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[(":test", "ok")]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.1/2",
        "a response's pseudo field",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[(":status", "200")]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.1/3",
        "a pseudo field in trailers",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &post()),
                data(1, 0, b"test"),
                headers(1, END_HEADERS, &fields(&[(":method", "POST")])),
            ]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.1/1",
        "a pseudo field in trailers that are right otherwise",
        |c| {
            c.say(&[
                headers(1, END_HEADERS, &post()),
                data(1, 0, b"test"),
                headers(1, WHOLE, &fields(&[(":method", "POST")])),
            ]);
        },
        MALFORMED,
    )
    .known(Known::Passed("the h2 crate leaves them out and tells nobody")),
    must(
        "http2/8.1.2.1/4",
        "a pseudo field after others",
        |c| {
            c.say(&[headers(1, WHOLE, &[fields(&[("x-test", "ok")]), get()].concat())]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.2/1",
        "a field of the connection",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("connection", "keep-alive")]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.2/2",
        "TE other than trailers",
        |c| {
            let more = [("trailers", "test"), ("te", "trailers, deflate")];
            c.say(&[headers(1, WHOLE, &request("GET", "/", &more))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.2.2/1",
        "Transfer-Encoding",
        |c| {
            c.say(&[headers(
                1,
                WHOLE,
                &request("POST", "/", &[("transfer-encoding", "chunked")]),
            )]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.2.1/1",
        "a name with a space",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("x a", "1")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.2.1/2",
        "a value with a line end",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("x-a", "1\r\nx-b: 2")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.2.1/3",
        "a value with NUL",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("x-a", "1\0")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.2.1/4",
        "a value that begins with a space",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("x-a", " 1")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.2.1/5",
        "a value that ends with a tab",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("x-a", "1\t")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.2.1/6",
        "an empty name",
        |c| {
            c.say(&[headers(1, WHOLE, &[get(), literal(b"", b"1")].concat())]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.3/1",
        "an empty :path",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "", &[]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.3/2",
        "no :method",
        |c| {
            c.say(&[headers(
                1,
                WHOLE,
                &fields(&[(":scheme", "http"), (":path", "/"), (":authority", "web")]),
            )]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.3/3",
        "no :scheme",
        |c| {
            c.say(&[headers(
                1,
                WHOLE,
                &fields(&[(":method", "GET"), (":path", "/"), (":authority", "web")]),
            )]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.3/4",
        "no :path",
        |c| {
            c.say(&[headers(
                1,
                WHOLE,
                &fields(&[(":method", "GET"), (":scheme", "http"), (":authority", "web")]),
            )]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.3.1/1",
        "no :path, and Host in place of :authority",
        |c| {
            c.say(&[headers(
                1,
                WHOLE,
                &fields(&[(":method", "GET"), (":scheme", "http"), ("host", "web")]),
            )]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.3/5",
        ":method twice",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[(":method", "GET")]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.3/6",
        ":scheme twice",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[(":scheme", "http")]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.3/7",
        ":path twice",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[(":path", "/")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.3.1/2",
        ":authority twice",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[(":authority", "web")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.3.1/3",
        "Host other than :authority",
        |c| {
            c.say(&[headers(1, WHOLE, &request("GET", "/", &[("host", "other")]))]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.6/1",
        "Content-Length other than DATA has",
        |c| {
            let block = request("POST", "/", &[("content-length", "1")]);
            c.say(&[headers(1, END_HEADERS, &block), data(1, END_STREAM, b"test")]);
        },
        MALFORMED,
    ),
    must(
        "http2/8.1.2.6/2",
        "Content-Length other than all DATA have",
        |c| {
            let block = request("POST", "/", &[("content-length", "1")]);
            c.say(&[
                headers(1, END_HEADERS, &block),
                data(1, 0, b"test"),
                data(1, END_STREAM, b"test"),
            ]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.1.1/1",
        "Content-Length more than DATA has",
        |c| {
            let block = request("POST", "/", &[("content-length", "5")]);
            c.say(&[headers(1, END_HEADERS, &block), data(1, END_STREAM, b"test")]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.1.1/2",
        "Content-Length more than DATA has, and trailers",
        |c| {
            let block = request("POST", "/", &[("content-length", "5")]);
            c.say(&[
                headers(1, END_HEADERS, &block),
                data(1, 0, b"test"),
                headers(1, WHOLE, &fields(&[("x-a", "1")])),
            ]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.1.1/3",
        "Content-Length without any DATA",
        |c| {
            c.say(&[headers(1, WHOLE, &request("POST", "/", &[("content-length", "5")]))]);
        },
        MALFORMED,
    ),
    must(
        "rfc9113/8.1.1/4",
        "two Content-Lengths",
        |c| {
            let block = request("POST", "/", &[("content-length", "4"), ("content-length", "5")]);
            c.say(&[headers(1, END_HEADERS, &block), data(1, END_STREAM, b"test")]);
        },
        MALFORMED,
    ),
];

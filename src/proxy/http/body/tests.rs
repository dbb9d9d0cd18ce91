//! Bodies: what is taken and refused, however the input is cut. In tables `|` stands for CR LF.

use super::*;

/// Feeds `input` in pieces as a shell would: what was not consumed comes again with the next piece.
fn feed(mut body: Body, pieces: &[&[u8]], coding: Coding) -> Result<(String, String, bool), BodyFault> {
    let (mut pending, mut out, mut done) = (Vec::new(), Vec::new(), false);
    for piece in pieces {
        pending.extend_from_slice(piece);
        let progress = body.forward(&pending, coding, &mut out)?;
        pending.drain(..progress.consumed);
        done = progress.done;
    }
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ok((text(out), text(pending), done))
}

fn chunked() -> Body {
    Body::of_request(Framing::Chunked)
}

fn both_ways(item: &str, input: &[u8], coding: Coding, expect: Result<(&str, &str, bool), BodyFault>) {
    let expect = expect.map(|(out, left, done)| (out.to_owned(), left.to_owned(), done));
    assert_eq!(feed(chunked(), &[input], coding), expect, "{item}");
    let bytes: Vec<_> = input.chunks(1).collect();
    assert_eq!(feed(chunked(), &bytes, coding), expect, "{item}, byte by byte");
    for at in 0..input.len() {
        assert_eq!(
            feed(chunked(), &[&input[..at], &input[at..]], coding),
            expect,
            "{item}, cut at {at}"
        );
    }
}

fn text(text: &str) -> String {
    text.replace('|', "\r\n")
}

fn crlf(text: &str) -> Vec<u8> {
    self::text(text).into_bytes()
}

#[test]
fn taken() {
    for (item, input, plain, onward, left) in [
        ("one chunk", "5|hello|0||", "hello", "5|hello|0||", ""),
        ("two chunks", "5|hello|1|!|0||", "hello!", "5|hello|1|!|0||", ""),
        ("upper case", "A|0123456789|0||", "0123456789", "A|0123456789|0||", ""),
        (
            "zeros before",
            "000000000000000a|0123456789|000||",
            "0123456789",
            "000000000000000a|0123456789|000||",
            "",
        ),
        ("empty", "0||", "", "0||", ""),
        ("next request", "0||GET", "", "0||", "GET"),
        ("data like framing", "7|0||||0||", "0|||", "7|0||||0||", ""),
        ("extension", "5;a=b;c=\"d e\"|hello|0;x||", "hello", "5|hello|0||", ""),
        ("trailers", "1|x|0|T:  a |U: b||", "x", "1|x|0|T: a|U: b||", ""),
        (
            "trailers dropped",
            "0|Authorization: a|T: a|Connection: b|X-Forwarded-For: c|If-Match: d|Set-Cookie: d||",
            "",
            "0|T: a||",
            "",
        ),
    ] {
        both_ways(item, &crlf(input), Coding::Plain, Ok((&text(plain), left, true)));
        both_ways(item, &crlf(input), Coding::Chunked, Ok((&text(onward), left, true)));
    }
}

#[test]
fn refused() {
    let long_extension = format!("1;{}|x|0||", "e".repeat(256));
    let long_trailer = format!("0|T: {}||", "t".repeat(TRAILERS_BYTES_MAX));
    let many_trailers = format!("0|{}|", "T: t|".repeat(TRAILERS_MAX + 1));
    for (item, input, fault) in [
        ("no size", "|hello|0||", BodyFault::ChunkSize),
        ("0x", "0x5|hello|0||", BodyFault::ChunkSize),
        ("underscore", "1_0|hello|0||", BodyFault::ChunkSize),
        ("plus", "+5|hello|0||", BodyFault::ChunkSize),
        ("minus", "-5|hello|0||", BodyFault::ChunkSize),
        ("space before", " 5|hello|0||", BodyFault::ChunkSize),
        ("space after", "5 |hello|0||", BodyFault::ChunkSize),
        ("tab after", "5\t|hello|0||", BodyFault::ChunkSize),
        ("space before extension", "5 ;a|hello|0||", BodyFault::ChunkSize),
        ("not hex", "g|hello|0||", BodyFault::ChunkSize),
        ("overflow", "10000000000000005|hello|0||", BodyFault::ChunkSize),
        ("too many zeros", "00000000000000005|hello|0||", BodyFault::ChunkSize),
        ("bare LF after size", "5\nhello|0||", BodyFault::ChunkSize),
        ("bare CR after size", "5\rhello|0||", BodyFault::ChunkSize),
        ("NUL after size", "5\0|hello|0||", BodyFault::ChunkSize),
        ("bare LF in extension", "5;a\nhello|0||", BodyFault::ChunkExtension),
        ("bare CR in extension", "5;a\rb|hello|0||", BodyFault::ChunkExtension),
        ("NUL in extension", "5;a\0|hello|0||", BodyFault::ChunkExtension),
        ("DEL in extension", "5;\x7f|hello|0||", BodyFault::ChunkExtension),
        ("long extension", &long_extension, BodyFault::ChunkExtension),
        ("nothing after chunk", "5|hello0||", BodyFault::ChunkEnd),
        ("LF after chunk", "5|hello\n0||", BodyFault::ChunkEnd),
        ("CR after chunk", "5|hello\r0||", BodyFault::ChunkEnd),
        ("chunk too long", "5|hello!|0||", BodyFault::ChunkEnd),
        ("bare LF ends trailers", "0|\n", BodyFault::Trailer),
        ("bare LF after trailer", "0|T: a\nU: b||", BodyFault::Trailer),
        ("bare LF after last trailer", "0|T: a\n|", BodyFault::Trailer),
        ("bare CR in trailer", "0|T: a\rb||", BodyFault::Trailer),
        ("space before colon", "0|T : a||", BodyFault::Trailer),
        ("folded trailer", "0|T: a| b||", BodyFault::Trailer),
        ("NUL in trailer", "0|T: \0||", BodyFault::Trailer),
        ("long trailer", &long_trailer, BodyFault::Trailer),
        ("many trailers", &many_trailers, BodyFault::Trailer),
        ("CL trailer", "0|Content-Length: 5||", BodyFault::TrailerForbidden),
        (
            "TE trailer",
            "0|Transfer-Encoding: chunked||",
            BodyFault::TrailerForbidden,
        ),
        ("Host trailer", "0|T: a|host: b||", BodyFault::TrailerForbidden),
    ] {
        if input.len() < 1000 {
            both_ways(item, &crlf(input), Coding::Plain, Err(fault));
            both_ways(item, &crlf(input), Coding::Chunked, Err(fault));
        } else {
            assert_eq!(feed(chunked(), &[&crlf(input)], Coding::Plain), Err(fault), "{item}");
        }
    }
    // In a response the body is sent by now, so framing trailers are only left out.
    let answer = Body::of_response(Framing::Chunked);
    let taken = feed(answer, &[&crlf("0|Content-Length: 5|T: a||")], Coding::Chunked);
    assert_eq!(taken, Ok(("0\r\nT: a\r\n\r\n".into(), String::new(), true)));
    // Extensions must be paid for by data.
    let flood = format!("1;{}|x|", "e".repeat(200)).repeat(100);
    assert_eq!(
        feed(chunked(), &[&crlf(&flood)], Coding::Plain),
        Err(BodyFault::ChunkExtension)
    );
    let paid = format!("200;{}|{}|", "e".repeat(200), "x".repeat(512)).repeat(100);
    assert!(feed(chunked(), &[&crlf(&paid)], Coding::Plain).is_ok());
}

#[test]
fn length_and_close() {
    let fed = |framing, coding| feed(Body::of_response(framing), &[b"hel", b"lo!"], coding).unwrap();
    assert_eq!(
        fed(Framing::Length(5), Coding::Plain),
        ("hello".into(), "!".into(), true)
    );
    assert_eq!(
        fed(Framing::Length(7), Coding::Plain),
        ("hello!".into(), String::new(), false)
    );
    assert_eq!(
        fed(Framing::None, Coding::Plain),
        (String::new(), "hello!".into(), true)
    );
    assert_eq!(
        fed(Framing::UntilClose, Coding::Plain),
        ("hello!".into(), String::new(), false)
    );
    let again = ("3\r\nhel\r\n3\r\nlo!\r\n".into(), String::new(), false);
    assert_eq!(fed(Framing::UntilClose, Coding::Chunked), again);

    for (framing, coding, expect) in [
        (Framing::None, Coding::Plain, Ok("")),
        (Framing::Length(1), Coding::Plain, Err(BodyFault::Truncated)),
        (Framing::Chunked, Coding::Chunked, Err(BodyFault::Truncated)),
        (Framing::UntilClose, Coding::Plain, Ok("")),
        (Framing::UntilClose, Coding::Chunked, Ok("0\r\n\r\n")),
    ] {
        let mut out = Vec::new();
        let ended = Body::of_response(framing).end_of_input(coding, &mut out);
        assert_eq!(
            ended.map(|()| String::from_utf8(out).unwrap()),
            expect.map(String::from)
        );
    }
}

#[test]
fn moved_unseen() {
    let mut out = Vec::new();
    let mut body = chunked();
    assert_eq!(body.verbatim(Coding::Chunked), 0);
    body.forward(b"10\r\nab", Coding::Chunked, &mut out).unwrap();
    assert_eq!(body.verbatim(Coding::Chunked), 14);
    body.advance(10);
    assert_eq!(body.verbatim(Coding::Chunked), 4);
    body.advance(4);
    assert_eq!(body.verbatim(Coding::Chunked), 0);
    let progress = body.forward(b"\r\n0\r\n\r\n", Coding::Chunked, &mut out).unwrap();
    assert!(progress.done && body.is_done());
    assert_eq!(out, b"10\r\nab\r\n0\r\n\r\n");

    let mut body = Body::of_response(Framing::Length(10));
    body.advance(10);
    assert!(body.is_done());
    assert_eq!(Body::UntilClose.verbatim(Coding::Plain), u64::MAX);
    assert_eq!(Body::UntilClose.verbatim(Coding::Chunked), 0);
}

#[test]
fn a_body_that_is_too_long_ends_before_what_is_too_much() {
    assert!(Body::of_request(Framing::Length(10)).at_most(10).is_ok());
    assert_eq!(
        Body::of_request(Framing::Length(11)).at_most(10).err(),
        Some(BodyFault::TooLong)
    );
    assert!(Body::of_request(Framing::None).at_most(1).unwrap().is_done());
    for (text, n_most, expected) in [
        ("5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n", 10, Ok(10)),
        ("5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n", 9, Err(5)),
        ("1;x=y\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", 2, Err(2)),
        ("ffffffffffffffff\r\na", 1, Err(0)),
        ("ffffffffffffffff\r\na", u64::MAX, Ok(1)),
    ] {
        let mut body = Body::of_request(Framing::Chunked).at_most(n_most).unwrap();
        let mut out = Vec::new();
        // A byte more each time, so that nothing of what is too much is taken before it is known.
        let (mut result, mut start) = (Ok(()), 0);
        for end in 1..=text.len() {
            match body.forward(&text.as_bytes()[start..end], Coding::Plain, &mut out) {
                Ok(progress) => start += progress.consumed,
                Err(fault) => {
                    result = Err(fault);
                    break;
                }
            }
        }
        match expected {
            Ok(n) => assert!(result.is_ok() && out.len() == n, "{text}: {result:?}"),
            Err(n) => assert!(
                result == Err(BodyFault::TooLong) && out.len() == n,
                "{text}: {result:?}"
            ),
        }
    }
}

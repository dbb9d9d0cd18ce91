//! Heads of answers that are compressed on their way: whether they may be, and what they say then. Pure. Not here: the bytes of bodies
//! (`h1::gzip`).

use super::filtered::{lines, split_field, split_line};
use super::response::add_field;
use super::{Framing, ResponseMeta};
use crate::model::compress::Compress;

/// Whether a request's head says that the client takes gzip (RFC 9110, 12.5.3).
pub fn takes_gzip(head: &[u8]) -> bool {
    let (_, fields) = split_line(head);
    let (mut by_name, mut by_any) = (None, None);
    let values = fields_of(fields).filter(|(name, _)| name.eq_ignore_ascii_case(b"accept-encoding"));
    for coding in values.flat_map(|(_, value)| value.split(|b| *b == b',')) {
        let mut parts = coding.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let is_taken = !parts.any(is_zero);
        if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") {
            by_name = Some(is_taken);
        } else if name == b"*" {
            by_any = Some(is_taken);
        }
    }
    by_name.or(by_any).unwrap_or(false)
}

/// `q=0`, `q=0.000`. What cannot be read as a weight is none that we know to be more than that.
fn is_zero(parameter: &[u8]) -> bool {
    let Some(b"q=" | b"Q=") = parameter.get(..2) else {
        return false;
    };
    let weight = std::str::from_utf8(&parameter[2..]).ok();
    !weight
        .and_then(|weight| weight.parse::<f32>().ok())
        .is_some_and(|weight| weight > 0.0)
}

/// Of the answer whose head `out` has from `start` on: says in it that its body is gzip in chunks, if it may be that and the client takes it.
/// Returns whether it is so. Where it might have been, caches are told that it depends on the client.
pub fn code_response(
    out: &mut Vec<u8>,
    start: usize,
    compress: &Compress,
    meta: &ResponseMeta,
    is_taken: bool,
) -> bool {
    if !may_be(&out[start..], compress, meta) {
        return false;
    }
    // What it is of might have been; it has no body itself.
    let has_body = meta.framing != Framing::None;
    if !is_taken {
        let varies = fields_of(split_line(&out[start..]).1).any(|(name, value)| varies_by_it(name, value));
        if !varies {
            add_field("Vary: Accept-Encoding", out);
        }
        return false;
    }
    let written = out.split_off(start);
    let (line, fields) = split_line(&written);
    out.extend_from_slice(line);
    let mut varies = false;
    for field in lines(fields) {
        let Some((name, value)) = split_field(field) else {
            continue;
        };
        varies |= varies_by_it(name, value);
        if name.eq_ignore_ascii_case(b"etag") && value.starts_with(b"\"") {
            // Another representation of the same.
            out.extend_from_slice(b"ETag: W/");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        } else if !has_body || !OF_THE_BYTES.iter().any(|other| name.eq_ignore_ascii_case(other)) {
            out.extend_from_slice(field);
        }
    }
    if !varies {
        out.extend_from_slice(b"Vary: Accept-Encoding\r\n");
    }
    out.extend_from_slice(match has_body {
        true => b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        false => b"\r\n",
    });
    has_body
}

fn may_be(head: &[u8], compress: &Compress, meta: &ResponseMeta) -> bool {
    if meta.framing == Framing::Length(0) || meta.status < 200 || meta.status == 206 {
        return false;
    }
    let mut is_of_type = None;
    for (name, value) in fields_of(split_line(head).1) {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("content-type") {
            // Of two nobody knows which holds.
            if is_of_type.replace(compress.takes(value)).is_some() {
                return false;
            }
        } else if is("content-encoding") || is("content-range") {
            return false;
        } else if is("cache-control") {
            let no_transform = |part: &[u8]| part.trim_ascii().eq_ignore_ascii_case(b"no-transform");
            if value.split(|b| *b == b',').any(no_transform) {
                return false;
            }
        } else if is("content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            if length.is_none_or(|length: u64| length < compress.min_size) {
                return false;
            }
        }
    }
    match meta.status {
        // It mostly says no type.
        304 => is_of_type.unwrap_or(true),
        _ => is_of_type.unwrap_or(false),
    }
}

fn varies_by_it(name: &[u8], value: &[u8]) -> bool {
    let is_it = |part: &[u8]| {
        let part = part.trim_ascii();
        part == b"*" || part.eq_ignore_ascii_case(b"accept-encoding")
    };
    name.eq_ignore_ascii_case(b"vary") && value.split(|b| *b == b',').any(is_it)
}

fn fields_of(fields: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(fields).filter_map(split_field)
}

/// What is said of the bytes as the endpoint has them, and of how they are framed.
const OF_THE_BYTES: [&[u8]; 8] = [
    b"content-length",
    b"transfer-encoding",
    b"trailer",
    b"accept-ranges",
    b"content-md5",
    b"digest",
    b"content-digest",
    b"repr-digest",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::http::Version;

    #[test]
    fn a_client_takes_what_it_says() {
        let takes = |fields: &str| takes_gzip(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes());
        for yes in [
            "Accept-Encoding: gzip",
            "accept-encoding: br, GZIP;q=0.5",
            "Accept-Encoding: x-gzip",
            "Accept-Encoding: *",
            "Accept-Encoding: br\r\nAccept-Encoding: gzip",
            "Accept-Encoding: *;q=0, gzip;q=0.001",
        ] {
            assert!(takes(yes), "{yes}");
        }
        for no in [
            "Host: a",
            "Accept-Encoding: ",
            "Accept-Encoding: identity, br",
            "Accept-Encoding: gzip;q=0",
            "Accept-Encoding: gzip; Q=0.00, *",
            "Accept-Encoding: *;q=0",
            "Accept-Encoding: gzip;q=x",
            "Accept-Encoding: gzip;q=NaN",
            "Accept: gzip",
        ] {
            assert!(!takes(no), "{no}");
        }
    }

    #[test]
    fn an_answer_says_what_became_of_it() {
        let coded = |head: &str, status, framing, is_taken| {
            let mut out = b"before".to_vec();
            out.extend_from_slice(head.replace('|', "\r\n").as_bytes());
            let meta = ResponseMeta {
                head_len: 0,
                status,
                version: Version::Http11,
                framing,
                keep_alive: true,
            };
            let is = code_response(&mut out, 6, &Compress::default(), &meta, is_taken);
            (is, String::from_utf8(out).unwrap()[6..].replace("\r\n", "|"))
        };
        let of = |fields: &str| format!("HTTP/1.1 200 OK|{fields}|");
        let long = Framing::Length(2000);
        assert_eq!(
            coded(
                &of(
                    "ETag: \"x\"|Content-Type: text/css|Content-Length: 2000|Accept-Ranges: bytes|Repr-Digest: x|Vary: Cookie|Via: 1.1 anynode|"
                ),
                200,
                long,
                true
            ),
            (
                true,
                of(
                    "ETag: W/\"x\"|Content-Type: text/css|Vary: Cookie|Via: 1.1 anynode|Vary: Accept-Encoding|Content-Encoding: gzip|Transfer-Encoding: chunked|"
                )
            )
        );
        assert_eq!(
            coded(
                &of(
                    "Content-Type: text/css|Vary: a, accept-encoding|Trailer: X|Transfer-Encoding: chunked|ETag: W/\"x\"|"
                ),
                200,
                Framing::Chunked,
                true
            ),
            (
                true,
                of(
                    "Content-Type: text/css|Vary: a, accept-encoding|ETag: W/\"x\"|Content-Encoding: gzip|Transfer-Encoding: chunked|"
                )
            )
        );
        // Of what has no body, to a HEAD or where it has not changed, the same is said.
        for (fields, status) in [("Content-Type: text/css|Content-Length: 2000|", 200), ("", 304)] {
            let said = of(&format!("ETag: \"x\"|{fields}"));
            let weak = of(&format!("ETag: W/\"x\"|{fields}Vary: Accept-Encoding|"));
            let strong = of(&format!("ETag: \"x\"|{fields}Vary: Accept-Encoding|"));
            assert_eq!(coded(&said, status, Framing::None, true), (false, weak));
            assert_eq!(coded(&said, status, Framing::None, false), (false, strong));
        }
        let plain = of("Content-Type: text/css|Content-Length: 2000|");
        assert_eq!(
            coded(&plain, 200, long, false),
            (
                false,
                of("Content-Type: text/css|Content-Length: 2000|Vary: Accept-Encoding|")
            )
        );
        for (fields, status, framing) in [
            (
                "Content-Type: text/css|Content-Length: 1023|",
                200,
                Framing::Length(1023),
            ),
            ("Content-Type: image/png|Content-Length: 2000|", 200, long),
            ("Content-Length: 2000|", 200, long),
            (
                "Content-Type: text/css|Content-Type: image/png|Content-Length: 2000|",
                200,
                long,
            ),
            (
                "Content-Type: text/css|Content-Encoding: br|Content-Length: 2000|",
                200,
                long,
            ),
            (
                "Content-Type: text/css|Cache-Control: public, No-Transform|Content-Length: 2000|",
                200,
                long,
            ),
            (
                "Content-Type: text/css|Content-Range: bytes 0-1999/4000|Content-Length: 2000|",
                206,
                long,
            ),
            ("Content-Type: text/css|Content-Length: 2000|", 206, long),
            ("Content-Type: text/css|Content-Length: 0|", 200, Framing::Length(0)),
            ("Content-Type: image/png|ETag: \"x\"|", 304, Framing::None),
            ("Content-Length: 2000|", 200, Framing::None),
        ] {
            for is_taken in [true, false] {
                assert_eq!(
                    coded(&of(fields), status, framing, is_taken),
                    (false, of(fields)),
                    "{fields} {status}"
                );
            }
        }
    }
}

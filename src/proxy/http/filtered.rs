//! Heads that were written for the other side, changed as a service's filters say. Pure. Every line of such a head is `Name: value` and
//! ends in CRLF, since we have written it.

use std::net::IpAddr;

use super::Refusal;
use super::asked::plain_path;
use crate::model::filters::{FieldEdit, Filters, PathText};

/// Changes a request's head, the whole of `head`. What a prefix was taken from is told by `X-Forwarded-Prefix`, what a path was
/// before by `X-Replaced-Path`.
///
/// Errors: the path is to be changed, and could be read in two ways, before or after: `/api../x` without its `/api`.
pub fn filter_request(head: &mut Vec<u8>, filters: &Filters) -> Result<(), Refusal> {
    if !filters.changes_requests() {
        return Ok(());
    }
    let written = std::mem::take(head);
    let (line, fields) = split_line(&written);
    head.reserve(written.len() + ROOM);
    let target = target_of(line);
    let (path, query) = match target.iter().position(|b| *b == b'?') {
        Some(at) => target.split_at(at),
        None => (target, &b""[..]),
    };
    let mut added = Vec::new();
    // `*` is of the server as a whole.
    let changed = match path.starts_with(b"/") {
        true if filters.changes_paths() => {
            let changed = changed_path(path, filters, &mut added);
            for path in [path, &changed] {
                let path = std::str::from_utf8(path).map_err(|_| Refusal::AmbiguousPath)?;
                plain_path(path)?;
            }
            changed
        }
        _ => path.to_vec(),
    };
    let method_len = line.iter().position(|b| *b == b' ').map_or(0, |at| at + 1);
    head.extend_from_slice(&line[..method_len]);
    head.extend_from_slice(&changed);
    head.extend_from_slice(query);
    head.extend_from_slice(&line[method_len + target.len()..]);
    push_fields(fields, &filters.request_fields, &added, head);
    Ok(())
}

/// Refuses a request whose path could be read in two ways. `head`: of one that was written for an endpoint.
pub fn check_path(head: &[u8]) -> Result<(), Refusal> {
    let target = target_of(split_line(head).0);
    let path = target.split(|b| *b == b'?').next().unwrap_or_default();
    match std::str::from_utf8(path) {
        Ok(path) if path.starts_with('/') => plain_path(path).map(drop),
        // `*` is of the server as a whole.
        Ok("*") => Ok(()),
        _ => Err(Refusal::AmbiguousPath),
    }
}

/// Changes a response's head, which is what `out` has from `start` on.
pub fn filter_response(out: &mut Vec<u8>, start: usize, filters: &Filters) {
    if filters.response_fields.is_empty() {
        return;
    }
    let written = out.split_off(start);
    let (line, fields) = split_line(&written);
    out.extend_from_slice(line);
    push_fields(fields, &filters.response_fields, &[], out);
}

/// The whole URI that a request's head asks for, its host in lower case. `local`: the address that the client came to, for one that names
/// no host.
pub fn uri_of(head: &[u8], is_tls: bool, local: IpAddr) -> String {
    let (line, fields) = split_line(head);
    let scheme = if is_tls { "https" } else { "http" };
    let host = host_of(fields, local).to_ascii_lowercase();
    let target = String::from_utf8_lossy(target_of(line));
    let target = if target.starts_with('/') { &*target } else { "/" };
    format!("{scheme}://{host}{target}")
}

fn host_of(fields: &[u8], local: IpAddr) -> String {
    let host = lines(fields).find_map(|line| {
        let (name, value) = split_field(line)?;
        name.eq_ignore_ascii_case(b"host")
            .then(|| String::from_utf8_lossy(value).into_owned())
    });
    host.unwrap_or_else(|| match local.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    })
}

/// Where the same is by https: of a request's head as it was written.
pub fn https_place(head: &[u8], local: IpAddr, port: Option<u16>) -> String {
    let (line, fields) = split_line(head);
    let host = host_of(fields, local);
    let end = host
        .rfind(']')
        .map_or_else(|| host.find(':').unwrap_or(host.len()), |at| at + 1);
    let port = port
        .filter(|port| *port != 443)
        .map_or_else(String::new, |port| format!(":{port}"));
    let target = String::from_utf8_lossy(target_of(line));
    let target = if target.starts_with('/') { &*target } else { "/" };
    format!("https://{}{port}{target}", &host[..end])
}

fn changed_path(path: &[u8], filters: &Filters, added: &mut Vec<(&'static str, Vec<u8>)>) -> Vec<u8> {
    let mut path = path.to_vec();
    let stripped = filters
        .strip_prefix
        .iter()
        .find_map(|prefix| Some((prefix, beginning(&path, prefix)?)));
    if let Some((prefix, n)) = stripped {
        added.push(("X-Forwarded-Prefix", prefix.as_str().as_bytes().to_vec()));
        path.drain(..n);
        if !path.starts_with(b"/") {
            path.insert(0, b'/');
        }
        // What is left must be no host to anybody.
        let n_slashes = path.iter().take_while(|b| **b == b'/').count();
        path.drain(..n_slashes - 1);
    }
    if let Some(replacement) = &filters.replace_path {
        added.push(("X-Replaced-Path", path));
        path = replacement.as_str().as_bytes().to_vec();
    }
    if let Some(prefix) = &filters.add_prefix {
        let prefix = prefix.as_str().trim_end_matches('/').as_bytes();
        path.splice(..0, prefix.iter().copied());
    }
    path
}

/// How much of a path is that prefix, read as endpoints read it: `%61` is an a.
fn beginning(path: &[u8], prefix: &PathText) -> Option<usize> {
    let mut at = 0;
    for wanted in prefix.as_str().bytes() {
        let (byte, n) = match path.get(at..)? {
            [b'%', high, low, ..] => (hex(*high)? << 4 | hex(*low)?, 3),
            [byte, ..] => (*byte, 1),
            [] => return None,
        };
        if byte != wanted {
            return None;
        }
        at += n;
        // A row of slashes counts as one, as where routes are judged.
        while wanted == b'/' && path.get(at) == Some(&b'/') {
            at += 1;
        }
    }
    Some(at)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

/// The first line with its end, and what follows.
pub(super) fn split_line(head: &[u8]) -> (&[u8], &[u8]) {
    let end = head
        .windows(2)
        .position(|two| two == b"\r\n")
        .map_or(head.len(), |at| at + 2);
    head.split_at(end)
}

/// Of a request's first line.
fn target_of(line: &[u8]) -> &[u8] {
    line.split(|b| *b == b' ').nth(1).unwrap_or_default()
}

pub(super) fn lines(fields: &[u8]) -> impl Iterator<Item = &[u8]> {
    fields.split_inclusive(|b| *b == b'\n')
}

pub(super) fn split_field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

/// Copies fields but for those that are edited, then writes those that are set, and those that are added.
fn push_fields(fields: &[u8], edits: &[FieldEdit], added: &[(&'static str, Vec<u8>)], out: &mut Vec<u8>) {
    for line in lines(fields) {
        let Some((name, _)) = split_field(line) else { continue };
        let is_added = |added: &str| name.eq_ignore_ascii_case(added.as_bytes());
        if edits.iter().any(|(edited, _)| edited.is_named(name)) || added.iter().any(|(added, _)| is_added(added)) {
            continue;
        }
        out.extend_from_slice(line);
    }
    let set = edits
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_ref()?.as_str().as_bytes())));
    let is_edited = |added: &str| edits.iter().any(|(name, _)| name.as_str().eq_ignore_ascii_case(added));
    let added = added
        .iter()
        .filter(|(name, _)| !is_edited(name))
        .map(|(name, value)| (*name, value.as_slice()));
    for (name, value) in set.chain(added) {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

const ROOM: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(edits: &[(&str, Option<&str>)]) -> std::sync::Arc<[FieldEdit]> {
        let edit =
            |(name, value): &(&str, Option<&str>)| (name.parse().unwrap(), value.map(|value| value.parse().unwrap()));
        edits.iter().map(edit).collect()
    }

    fn requested(head: &str, filters: &Filters) -> String {
        let mut bytes = head.replace('|', "\r\n").into_bytes();
        if let Err(refusal) = filter_request(&mut bytes, filters) {
            return refusal.status().to_string();
        }
        String::from_utf8(bytes).unwrap().replace("\r\n", "|")
    }

    #[test]
    fn paths_are_read_as_endpoints_read_them() {
        let strip = |prefixes: &[&str]| Filters {
            strip_prefix: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            ..Filters::default()
        };
        for (prefixes, target, expected, prefix) in [
            (&["/api"][..], "/api/x?y=/api", "/x?y=/api", Some("/api")),
            (&["/api"], "/api", "/", Some("/api")),
            (&["/api"], "/api?x", "/?x", Some("/api")),
            (&["/api"], "/%61pi/x", "/x", Some("/api")),
            (&["/api"], "/apix", "/x", Some("/api")),
            (&["/api"], "/API/x", "/API/x", None),
            (&["/api"], "/x/api", "/x/api", None),
            (&["/api"], "/api//evil.test/x", "/evil.test/x", Some("/api")),
            (&["/api/"], "/api///evil.test", "/evil.test", Some("/api/")),
            (&["/a/b"], "/a//b/c", "/c", Some("/a/b")),
            (&["/x", "/api"], "/api/%41", "/%41", Some("/api")),
            (&["/api"], "*", "*", None),
        ] {
            let changed = requested(&format!("GET {target} HTTP/1.1|Host: a||"), &strip(prefixes));
            let told = prefix.map_or_else(String::new, |prefix| format!("X-Forwarded-Prefix: {prefix}|"));
            assert_eq!(changed, format!("GET {expected} HTTP/1.1|Host: a|{told}|"), "{target}");
        }
        for target in [
            "/api../secret",
            "/api%2f..%2fx",
            "/api/%2e%2e/x",
            "/api/../x",
            "/api;x/a",
            "/api%5cevil.test",
            "/%6",
            "/other/../x",
        ] {
            assert_eq!(
                requested(&format!("GET {target} HTTP/1.1|Host: a||"), &strip(&["/api"])),
                "400",
                "{target}"
            );
        }
        let all = Filters {
            add_prefix: Some("/v2/".parse().unwrap()),
            replace_path: Some("/one".parse().unwrap()),
            ..strip(&["/api"])
        };
        assert_eq!(
            requested("GET /api/x?q HTTP/1.1|Host: a||", &all),
            "GET /v2/one?q HTTP/1.1|Host: a|X-Forwarded-Prefix: /api|X-Replaced-Path: /x||"
        );
    }

    #[test]
    fn fields_are_set_and_taken_away_whatever_their_case() {
        let filters = Filters {
            request_fields: edits(&[
                ("X-User", Some("me")),
                ("cookie", None),
                ("X-Forwarded-Prefix", Some("/own")),
            ]),
            response_fields: edits(&[("Server", None), ("Strict-Transport-Security", Some("max-age=1"))]),
            strip_prefix: ["/a".parse().unwrap()].into(),
            ..Filters::default()
        };
        assert_eq!(
            requested(
                "GET /a HTTP/1.1|Host: a|x-user: evil|Cookie: a=b|X-USER: two|X_User: three|B: c||",
                &filters
            ),
            "GET / HTTP/1.1|Host: a|B: c|X-User: me|X-Forwarded-Prefix: /own||"
        );
        let mut out = b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
        let start = out.len();
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\nserver: x\r\nVia: 1.1 anynode\r\n\r\n");
        filter_response(&mut out, start, &filters);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nVia: 1.1 anynode\r\nStrict-Transport-Security: max-age=1\r\n\r\n"
        );
        let untouched = "GET /a HTTP/1.1|Host: a||";
        assert_eq!(requested(untouched, &Filters::default()), untouched);
    }

    #[test]
    fn the_same_place_by_https_has_the_same_path() {
        let place = |head: &str, port| https_place(head.replace('|', "\r\n").as_bytes(), [192, 0, 2, 1].into(), port);
        assert_eq!(place("GET /a?b HTTP/1.1|Host: a.test:80||", None), "https://a.test/a?b");
        assert_eq!(
            place("GET /a HTTP/1.1|host: [::1]:80||", Some(8443)),
            "https://[::1]:8443/a"
        );
        assert_eq!(place("OPTIONS * HTTP/1.1|Host: a||", Some(443)), "https://a/");
        assert_eq!(place("GET / HTTP/1.1||", None), "https://192.0.2.1/");
        let uri = |head: &str, is_tls, local: &str| {
            uri_of(head.replace('|', "\r\n").as_bytes(), is_tls, local.parse().unwrap())
        };
        let head = "GET /a?b HTTP/1.1|Host: A.test:80||";
        assert_eq!(uri(head, false, "::1"), "http://a.test:80/a?b");
        assert_eq!(uri("OPTIONS * HTTP/1.1|Host: a||", true, "::1"), "https://a/");
        assert_eq!(uri("GET /x HTTP/1.0||", false, "2001:db8::1"), "http://[2001:db8::1]/x");
    }
}

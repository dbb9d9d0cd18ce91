//! What routes are asked about a request: its host, its path as endpoints will read it, its query and its fields. A path that two
//! programs could read in two ways is refused where paths decide. Nothing of this changes what is forwarded.

use std::borrow::Cow;
use std::net::IpAddr;

use percent_encoding::percent_decode;

use super::{Refusal, RequestHead};
use crate::model::rule::{Asked, Fields};

/// Of one head. Allocates only for what is not written as it is meant.
#[derive(Debug)]
pub struct RouteKey<'h, 'b> {
    host: Cow<'b, str>,
    path: Cow<'b, [u8]>,
    query: &'b [u8],
    head: &'h RequestHead<'h, 'b>,
    is_trusted: bool,
}

impl<'h, 'b> RouteKey<'h, 'b> {
    /// `asks_for_path`: whether any route for that host, in lower case and without a port, looks at it; it is always asked.
    /// `is_trusted`: whether forwarding fields of who has sent it are believed.
    ///
    /// Errors: `Refusal::AmbiguousPath`, where one does: dot segments, two slashes in front, encoded slashes, backslashes and
    /// control characters, and what is no encoding at all.
    pub fn of(
        head: &'h RequestHead<'h, 'b>,
        is_trusted: bool,
        asks_for_path: impl FnOnce(&str) -> bool,
    ) -> Result<RouteKey<'h, 'b>, Refusal> {
        let host = plain_host(head.host.unwrap_or_default());
        let target = head.path_and_query();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = match (asks_for_path(&host), path.is_empty()) {
            (_, true) => Cow::Borrowed(&b"/"[..]),
            (true, false) => plain_path(path)?,
            (false, false) => Cow::Borrowed(path.as_bytes()),
        };
        Ok(RouteKey {
            host,
            path,
            query: query.as_bytes(),
            head,
            is_trusted,
        })
    }

    /// Without a port, in lower case.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn asked(&self, client: IpAddr) -> Asked<'_> {
        Asked {
            host: &self.host,
            path: &self.path,
            query: self.query,
            method: self.head.method_name,
            client,
            fields: self,
        }
    }
}

impl Fields for RouteKey<'_, '_> {
    /// Of those that the endpoint will see: what is dropped decides nothing.
    fn any(&self, name: &str, is: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if name.eq_ignore_ascii_case("host") {
            return self.head.host.is_some_and(|host| is(host.as_bytes()));
        }
        self.head.forwarded_values(name, self.is_trusted).any(is)
    }
}

/// The same place by https, at that port. `local`: the address that the client came to, for one that names no host.
pub fn https_location(head: &RequestHead<'_, '_>, local: IpAddr, port: u16) -> String {
    let local = || match local.to_canonical() {
        IpAddr::V4(ip) => ip.to_string().into(),
        IpAddr::V6(ip) => format!("[{ip}]").into(),
    };
    let host = head.host.map_or_else(local, plain_host);
    let port = match port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let (slash, target) = match head.path_and_query() {
        "*" => ("/", ""),
        target if target.starts_with('/') => ("", target),
        target => ("/", target),
    };
    format!("https://{host}{port}{slash}{target}")
}

/// Without its port and a dot at its end, in lower case.
fn plain_host(authority: &str) -> Cow<'_, str> {
    let bytes = authority.as_bytes();
    // Short, and an address in brackets is rare: no search of words pays.
    let in_brackets = match bytes.first() {
        Some(b'[') => bytes.iter().rposition(|byte| *byte == b']').map(|bracket| bracket + 1),
        _ => None,
    };
    let port = || bytes.iter().position(|byte| *byte == b':');
    let end = in_brackets.or_else(port).unwrap_or(bytes.len());
    let host = &authority[..end];
    let host = host.strip_suffix('.').unwrap_or(host);
    match host.bytes().any(|b| b.is_ascii_uppercase()) {
        true => host.to_ascii_lowercase().into(),
        false => host.into(),
    }
}

/// Decoded, each row of slashes as one, as most programs read it.
pub(super) fn plain_path(path: &str) -> Result<Cow<'_, [u8]>, Refusal> {
    let bytes = path.as_bytes();
    let decoded = match bytes.contains(&b'%') {
        true => Cow::from(decode(bytes)?),
        false => bytes.into(),
    };
    let is_odd = |b: &u8| b.is_ascii_control() || *b == b'\\';
    // What begins with two slashes is a host to some.
    if decoded.starts_with(b"//") || decoded.iter().any(is_odd) || decoded.split(|b| *b == b'/').any(is_dropped) {
        return Err(Refusal::AmbiguousPath);
    }
    Ok(match decoded.windows(2).any(|two| two == b"//") {
        true => {
            let mut merged = decoded.into_owned();
            merged.dedup_by(|b, before| *b == b'/' && *before == b'/');
            merged.into()
        }
        false => decoded,
    })
}

fn decode(path: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut rest = path;
    while let Some(at) = rest.iter().position(|b| *b == b'%') {
        rest = match &rest[at + 1..] {
            [b'2', b'f' | b'F', ..] => return Err(Refusal::AmbiguousPath),
            [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => after,
            _ => return Err(Refusal::AmbiguousPath),
        };
    }
    Ok(percent_decode(path).collect())
}

/// `.` and `..`, also with parameters behind them, which some servers cut off first, and parameters of nothing.
fn is_dropped(segment: &[u8]) -> bool {
    let name = segment.split(|b| *b == b';').next().unwrap_or_default();
    matches!(name, b"." | b"..") || (name.is_empty() && !segment.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_endpoints_read_them_or_refused() {
        for (path, plain) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/%61/b", Some("/a/b")),
            ("/%41", Some("/A")),
            ("/a///b//", Some("/a/b/")),
            ("//a", None),
            ("/%2f", None),
            ("/;x/a", None),
            ("/a;x/b", Some("/a;x/b")),
            ("/a%0ab", None),
            ("/a%7f", None),
            ("/a%2", None),
            ("/a%zz", None),
            ("/a%2fb", None),
            ("/a%2Fb", None),
            ("/a%5cb", None),
            ("/a\\b", None),
            ("/a%00", None),
            ("/./a", None),
            ("/a/..", None),
            ("/a/%2e%2e/b", None),
            ("/a/.%2E/b", None),
            ("/a/..;x=y/b", None),
            ("/a/%2e%2e%3bx/b", None),
            ("/a/...", Some("/a/...")),
            ("/a/..b", Some("/a/..b")),
            ("/a/.well-known", Some("/a/.well-known")),
            // What is encoded twice is decoded once, as endpoints do.
            ("/a%252fb", Some("/a%2fb")),
            ("/%C3%A4", Some("/ä")),
        ] {
            let read = plain_path(path);
            assert_eq!(read.as_deref().ok(), plain.map(str::as_bytes), "{path}");
        }
    }

    #[test]
    fn hosts_are_names_alone() {
        for (authority, host) in [
            ("a.test", "a.test"),
            ("A.Test:8080", "a.test"),
            ("a.test.", "a.test"),
            ("a.test.:80", "a.test"),
            ("[2001:DB8::1]:80", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("", ""),
        ] {
            assert_eq!(plain_host(authority), host, "{authority}");
        }
    }
}

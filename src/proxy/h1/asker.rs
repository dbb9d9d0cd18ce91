//! Whose request a trusted proxy passed on, read from the head that was sent to the endpoint. Not here: whom to trust.

use std::net::{IpAddr, SocketAddr};

/// The address that the proxy says its client has. `None`: it says none.
///
/// `head`: as it was sent, with our own entry, which is the proxy, as the last of X-Forwarded-For.
pub(super) fn of_forwarded(head: &[u8]) -> Option<IpAddr> {
    let values = values(head);
    let by_proxy = entries(&values).nth(1)?;
    address(by_proxy)
}

/// The first address before the proxy's that is no proxy's itself; `None`: the proxy says nobody, or only proxies. Errors: what it
/// says cannot be read, so that nobody knows who it is.
pub(super) fn client_of(head: &[u8], is_trusted: impl Fn(IpAddr) -> bool) -> Result<Option<IpAddr>, Unreadable> {
    let values = values(head);
    let mut last = None;
    for entry in entries(&values).skip(1) {
        let ip = address(entry).ok_or(Unreadable)?;
        last = Some(ip);
        if !is_trusted(ip) {
            break;
        }
    }
    Ok(last)
}

/// Who the client is cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

fn values(head: &[u8]) -> Vec<Vec<u8>> {
    let lines = head
        .split(|byte| *byte == b'\n')
        .take_while(|line| !line.trim_ascii().is_empty());
    let of_line = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        name.eq_ignore_ascii_case(b"x-forwarded-for")
            .then(|| value[1..].to_vec())
    };
    lines.filter_map(of_line).collect()
}

/// The last one first.
fn entries(values: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
    values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','))
}

/// With or without a port, as several proxies say it.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let with_port = || text.parse::<SocketAddr>().ok().map(|addr| addr.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(with_port).or_else(in_brackets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_before_the_last_is_the_proxys_client() {
        let of = |fields: &str| {
            of_forwarded(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\nX-Forwarded-For: 9.9.9.9, b").as_bytes())
        };
        let some = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("X-Forwarded-For: 192.0.2.1, 10.0.0.1"), some("192.0.2.1"));
        assert_eq!(
            of("a: b\r\nx-forwarded-for: 1.1.1.1, 2001:db8::1,10.0.0.1"),
            some("2001:db8::1")
        );
        assert_eq!(
            of("X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 10.0.0.1"),
            some("1.1.1.1")
        );
        assert_eq!(of("X-Forwarded-For: 10.0.0.1"), None);
        assert_eq!(of("X-Forwarded-For: unknown, 10.0.0.1"), None);
        assert_eq!(of("Host: a"), None);
    }

    #[test]
    fn a_client_behind_several_proxies_is_found_or_nobody_is() {
        let of = |value: &str| {
            let head = format!("GET / HTTP/1.1\r\nX-Forwarded-For: {value}\r\n\r\n");
            client_of(
                head.as_bytes(),
                |ip| matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 10),
            )
        };
        let some = |text: &str| Ok(Some(text.parse::<IpAddr>().unwrap()));
        assert_eq!(of("192.0.2.1, 10.0.0.1"), some("192.0.2.1"));
        assert_eq!(of("10.9.9.9, 192.0.2.1, 10.0.0.2, 10.0.0.1"), some("192.0.2.1"));
        assert_eq!(of("192.0.2.1:51234, 10.0.0.1"), some("192.0.2.1"));
        assert_eq!(of("[2001:db8::1]:443,10.0.0.1"), some("2001:db8::1"));
        assert_eq!(of("[2001:db8::1], 10.0.0.1"), some("2001:db8::1"));
        assert_eq!(of("10.0.0.3, 10.0.0.2, 10.0.0.1"), some("10.0.0.3"));
        assert_eq!(of("10.0.0.1"), Ok(None));
        for unreadable in [
            "unknown, 10.0.0.1",
            "fe80::1%eth0, 10.0.0.1",
            ", 10.0.0.1",
            "x, 10.0.0.2, 10.0.0.1",
        ] {
            assert_eq!(of(unreadable), Err(Unreadable), "{unreadable}");
        }
    }
}

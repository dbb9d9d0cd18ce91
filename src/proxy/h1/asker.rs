//! Whose request a trusted proxy passed on, read from the head that was sent to the endpoint. Not here: whom to trust.

use std::net::IpAddr;

/// The address that the proxy says its client has. `None`: it says none.
///
/// `head`: as it was sent, with our own entry, which is the proxy, as the last of X-Forwarded-For.
pub(super) fn of_forwarded(head: &[u8]) -> Option<IpAddr> {
    let lines = head
        .split(|byte| *byte == b'\n')
        .take_while(|line| !line.trim_ascii().is_empty());
    let of_line = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        name.eq_ignore_ascii_case(b"x-forwarded-for")
            .then(|| value[1..].to_vec())
    };
    let values: Vec<Vec<u8>> = lines.filter_map(of_line).collect();
    let mut entries = values.iter().flat_map(|value| value.split(|byte| *byte == b',')).rev();
    let by_proxy = entries.nth(1)?;
    std::str::from_utf8(by_proxy.trim_ascii()).ok()?.parse().ok()
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
}

//! A hosts file, as in hosts(5). Pure. Not here: reading it (`lookup`).

use std::net::IpAddr;

/// The addresses of `host`, in lower case, of either family. What is no line of a hosts file is passed over.
pub(super) fn addresses(text: &str, host: &str) -> Vec<IpAddr> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let ip: IpAddr = words.next()?.parse().ok()?;
        let is_meant = |name: &str| name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(host);
        words.any(is_meant).then_some(ip)
    };
    text.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_system_does() {
        let text = "127.0.0.1\tlocalhost\n\
            # 10.0.0.9 db\n\
            10.0.0.1 db.internal DB # db2\r\n\
            fe80::1%eth0 db\n\
            ::1 other db.\n\
            db 10.0.0.8\n\
            10.0.0.7\n\
            \u{0}\u{1} ü\n\
            10.0.0.2 dba a.db";
        let shown = |host: &str| addresses(text, host).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(shown("db"), ["10.0.0.1", "::1"]);
        assert_eq!(shown("db.internal"), ["10.0.0.1"]);
        assert_eq!(shown("localhost"), ["127.0.0.1"]);
        for none in ["db2", "internal", "10.0.0.8", "b"] {
            assert_eq!(shown(none), [""; 0], "{none}");
        }
    }
}

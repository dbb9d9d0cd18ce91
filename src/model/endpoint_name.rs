//! The name of a host whose addresses are endpoints. Pure. Not here: who is asked for them (`source::names`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::InvalidValue;

/// A host name as RFC 1123 has them, in lower case. A dot at its end, which stays, says that no search domain is for it. Cloning is a
/// reference count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointName(Arc<str>);

impl EndpointName {
    /// As it is asked for and shown.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the dot at its end, as certificates and hosts files have it.
    pub fn host(&self) -> &str {
        self.0.strip_suffix('.').unwrap_or(&self.0)
    }

    /// Whether it ends in a dot.
    pub fn is_whole(&self) -> bool {
        self.0.ends_with('.')
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EndpointName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<EndpointName, InvalidValue> {
        let host = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // Resolvers of the system take `10.1` and `0x7f.1` for addresses, and so does whoever reads them.
        let last = host.rsplit('.').next().unwrap_or(host);
        let is_number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X");
        if host.len() > NAME_BYTES_MAX || !host.split('.').all(is_label) || is_number {
            return Err(InvalidValue::new(
                text,
                "a host name of at most 253 characters, in labels of 1 to 63 letters, digits and inner '-', the last of which is no \
                 number, such as db.internal",
            ));
        }
        Ok(EndpointName(text.to_ascii_lowercase().into()))
    }
}

const LABEL_BYTES_MAX: usize = 63;
const NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hosts() {
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        for (text, shown, host, is_whole) in [
            ("db", "db", "db", false),
            ("Db-1.Internal", "db-1.internal", "db-1.internal", false),
            ("db.internal.", "db.internal.", "db.internal", true),
            ("3com.example", "3com.example", "3com.example", false),
            ("1.2.3.4x", "1.2.3.4x", "1.2.3.4x", false),
            (&longest, &longest, &longest, false),
        ] {
            let name: EndpointName = text.parse().unwrap();
            assert_eq!((name.as_str(), name.host(), name.is_whole()), (shown, host, is_whole));
        }
        let too_long = format!("{longest}e");
        let long_label = "a".repeat(64);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a.b..",
            "-a",
            "a-",
            "a.-b",
            "a_b",
            "a b",
            "ü.test",
            "a/b",
            "a:1",
            "1.2.3",
            "10.0.0.256",
            "127.0.0.1.",
            "0x7f.0x1",
            "7",
            "[::1]",
            "*.a",
            &too_long,
            &long_label,
        ] {
            assert!(text.parse::<EndpointName>().is_err(), "{text}");
        }
    }
}

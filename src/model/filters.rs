//! What is done to requests and answers on the way, as declared. Pure. Not here: the bytes of heads (`proxy::http`).

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::InvalidValue;
use super::balance::is_token;
use super::compress::Compress;
use super::guards::Guards;
use super::redirect::Redirect;

/// Done in this order, each where it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters {
    /// The clients that are let in. `None`: all.
    pub allow: Option<Arc<[IpNet]>>,
    /// Clients that speak no TLS are sent to it.
    pub to_https: Option<ToHttps>,
    /// Clients that ask for what it is found in are sent elsewhere.
    pub redirect: Option<Arc<Redirect>>,
    /// What is asked of requests besides. `None`: nothing.
    pub guards: Option<Arc<Guards>>,
    /// The first of these that a path begins with is taken off it.
    pub strip_prefix: Arc<[PathText]>,
    /// Comes in the place of the path.
    pub replace_path: Option<PathText>,
    /// Comes in front of the path.
    pub add_prefix: Option<PathText>,
    /// Fields that the endpoint gets in the place of those of that name; `None`: there are none of that name.
    pub request_fields: Arc<[FieldEdit]>,
    /// The same of the client's answer.
    pub response_fields: Arc<[FieldEdit]>,
    /// Which answers are compressed. `None`: none.
    pub compress: Option<Arc<Compress>>,
}

/// A field that is set or taken away.
pub type FieldEdit = (FieldName, Option<FieldValue>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToHttps {
    /// The client may keep in mind where it was sent.
    pub is_permanent: bool,
    /// `None`: 443.
    pub port: Option<u16>,
}

impl Filters {
    pub fn is_empty(&self) -> bool {
        *self == Filters::default()
    }

    /// Whether that client is let in.
    pub fn lets_in(&self, client: IpAddr) -> bool {
        let ip = client.to_canonical();
        let is_among = |networks: &Arc<[IpNet]>| networks.iter().any(|network| network.contains(&ip));
        self.allow.as_ref().is_none_or(is_among)
    }

    /// Whether anything is done to a request's head.
    pub fn changes_requests(&self) -> bool {
        self.changes_paths() || !self.request_fields.is_empty()
    }

    pub fn changes_paths(&self) -> bool {
        !self.strip_prefix.is_empty() || self.replace_path.is_some() || self.add_prefix.is_some()
    }
}

/// A path, or the beginning of one, as it stands in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathText(Arc<str>);

impl PathText {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PathText {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<PathText, InvalidValue> {
        let is_plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%' | b'\\');
        match text.starts_with('/') && !text.starts_with("//") && text.bytes().all(is_plain) {
            true => Ok(PathText(text.into())),
            false => Err(InvalidValue::new(
                text,
                "a path that begins with one /, such as /api, without ? and %",
            )),
        }
    }
}

/// The name of a field that may be changed: none that says where a message ends, or who the next one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldName(Arc<str>);

impl FieldName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether programs may take that name for this one: in any case, and `_` for `-`, as gateways to CGI and WSGI have it.
    pub fn is_named(&self, name: &[u8]) -> bool {
        is_same_name(self.0.as_bytes(), name)
    }

    pub fn is_same(&self, other: &FieldName) -> bool {
        self.is_named(other.0.as_bytes())
    }
}

/// Whether programs may take one name of a field for the other: in any case, and `_` for `-`, as gateways to CGI and WSGI have it.
pub fn is_same_name(one: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.len() == other.len() && one.iter().map(plain).eq(other.iter().map(plain))
}

/// Those that the proxy itself writes, or that hold messages together.
const KEPT: [&str; 16] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "max-forwards",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "forwarded",
    "http2-settings",
    "proxy",
    "proxy-authorization",
];

impl FromStr for FieldName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<FieldName, InvalidValue> {
        if !is_token(text) {
            return Err(InvalidValue::new(text, "a header's name, such as X-Frame-Options"));
        }
        let name = FieldName(text.into());
        match KEPT.iter().any(|kept| name.is_named(kept.as_bytes())) {
            true => Err(InvalidValue::new(
                text,
                "another header: this one says where messages end or lead, and is the proxy's to write",
            )),
            false => Ok(name),
        }
    }
}

/// What a field says: no control characters, no space at either end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldValue(Arc<str>);

impl FieldValue {
    /// What somebody else has said, of letters of any script. `None`: it is not UTF-8, or has control characters.
    pub fn received(value: &[u8]) -> Option<FieldValue> {
        let text = std::str::from_utf8(value).ok()?.trim();
        let is_plain = |c: char| c == '\t' || !c.is_control();
        text.chars().all(is_plain).then(|| FieldValue(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FieldValue {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<FieldValue, InvalidValue> {
        let text = text.trim();
        match text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            true => Ok(FieldValue(text.into())),
            false => Err(InvalidValue::new(text, "printable ASCII characters")),
        }
    }
}

/// A network, or one address.
pub fn network(text: &str) -> Result<IpNet, InvalidValue> {
    let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = text.parse::<IpNet>().ok().or_else(alone);
    network.ok_or_else(|| InvalidValue::new(text, "a network such as 10.0.0.0/8, or an address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_break_a_message_is_no_filter() {
        for name in [
            "Content_Length",
            "Proxy",
            "Host",
            "content-length",
            "Transfer-Encoding",
            "a b",
            "",
            "X:",
            "Ü",
        ] {
            assert!(name.parse::<FieldName>().is_err(), "{name}");
        }
        assert_eq!(
            "X-Frame-Options".parse::<FieldName>().unwrap().as_str(),
            "X-Frame-Options"
        );
        for value in ["a\r\nb", "a\0", "ü"] {
            assert!(value.parse::<FieldValue>().is_err(), "{value:?}");
        }
        assert_eq!(" a b ".parse::<FieldValue>().unwrap().as_str(), "a b");
        for path in ["", "api", "//api", "/a?b", "/a%2f", "/a b", "/a\\b", "/a#b"] {
            assert!(path.parse::<PathText>().is_err(), "{path}");
        }
        assert_eq!("/api/".parse::<PathText>().unwrap().as_str(), "/api/");
        let filters = Filters {
            allow: Some([network("10.0.0.0/8").unwrap(), network("192.0.2.1").unwrap()].into()),
            ..Filters::default()
        };
        for (client, is_let_in) in [
            ("10.9.9.9", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.2.2", false),
            ("::1", false),
        ] {
            assert_eq!(filters.lets_in(client.parse().unwrap()), is_let_in, "{client}");
        }
        assert!(!filters.is_empty() && Filters::default().is_empty());
    }
}

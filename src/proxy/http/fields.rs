//! Header fields, the same for requests and responses: which ones mean something to a proxy, what frames the body, and
//! how the end-to-end fields are copied. What a request or a response makes of them is beside, in their own files.

use std::mem::MaybeUninit;

use httparse::Header;

use super::{Refusal, Version};

/// The most header fields of one head, unless a user says otherwise.
pub const DEFAULT_FIELDS_MAX: usize = 100;
/// The most that a user may say.
pub const FIELDS_MOST: usize = 128;

/// Room for the fields of one head while it is parsed and written anew: 4,096 bytes that cost nothing to make. Belongs
/// on the stack of a function that does not wait.
pub struct HeaderSlots<'b> {
    slots: [MaybeUninit<Header<'b>>; FIELDS_MOST],
    fields_max: usize,
}

impl<'b> HeaderSlots<'b> {
    pub fn new() -> Self {
        HeaderSlots::with_most(DEFAULT_FIELDS_MAX)
    }

    /// For so many fields, `FIELDS_MOST` at most.
    pub fn with_most(fields_max: usize) -> Self {
        HeaderSlots {
            slots: [const { MaybeUninit::uninit() }; FIELDS_MOST],
            fields_max: fields_max.min(FIELDS_MOST),
        }
    }

    pub(super) fn slots(&mut self) -> &mut [MaybeUninit<Header<'b>>] {
        &mut self.slots[..self.fields_max]
    }
}

impl Default for HeaderSlots<'_> {
    fn default() -> Self {
        HeaderSlots::new()
    }
}

impl std::fmt::Debug for HeaderSlots<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeaderSlots")
    }
}

/// A set of fields of one head, by index.
pub(super) type FieldSet = u128;

const _: () = assert!(FIELDS_MOST <= FieldSet::BITS as usize);

/// The fields that mean something to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Connection,
    ContentLength,
    Expect,
    Forwarded,
    /// A forwarding field once `_` is read as `-`.
    ForwardingAlias,
    /// A field that frames the body once `_` is read as `-`.
    FramingAlias,
    Host,
    /// Hop-by-hop whatever Connection says: Keep-Alive, Proxy-*, HTTP2-Settings; and Proxy, which CGI mistakes for
    /// the variable HTTP_PROXY.
    HopByHop,
    MaxForwards,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    Via,
    XForwardedFor,
    XForwardedHost,
    /// X-Forwarded-Prefix, -Ssl, -Server and the like.
    XForwardedOther,
    XForwardedPort,
    XForwardedProto,
    XRealIp,
    /// Everything else, end to end.
    Other,
}

impl Field {
    /// The kind of a field by its name. Looks at the length first, so that most names cost one comparison at most.
    pub(super) fn of(name: &str) -> Field {
        let n = name.as_bytes();
        let is = |known: &str| n.eq_ignore_ascii_case(known.as_bytes());
        let field = match n.len() {
            2 if is("te") => Field::Te,
            3 if is("via") => Field::Via,
            4 if is("host") => Field::Host,
            5 if is("proxy") => Field::HopByHop,
            6 if is("expect") => Field::Expect,
            7 if is("trailer") => Field::Trailer,
            7 if is("upgrade") => Field::Upgrade,
            9 if is("forwarded") => Field::Forwarded,
            9 if is("x-real-ip") => Field::XRealIp,
            10 if is("connection") => Field::Connection,
            10 if is("keep-alive") => Field::HopByHop,
            12 if is("max-forwards") => Field::MaxForwards,
            14 if is("content-length") => Field::ContentLength,
            14 if is("http2-settings") => Field::HopByHop,
            15 if is("x-forwarded-for") => Field::XForwardedFor,
            16 if is("x-forwarded-host") => Field::XForwardedHost,
            16 if is("x-forwarded-port") => Field::XForwardedPort,
            17 if is("transfer-encoding") => Field::TransferEncoding,
            17 if is("x-forwarded-proto") => Field::XForwardedProto,
            _ => Field::Other,
        };
        if field != Field::Other {
            return field;
        }
        match n.first() {
            _ if n.contains(&b'_') => Field::alias(n),
            Some(b'p' | b'P') if has_prefix(n, b"proxy-") => Field::HopByHop,
            Some(b'x' | b'X') if has_prefix(n, b"x-forwarded-") => Field::XForwardedOther,
            _ => Field::Other,
        }
    }

    fn alias(name: &[u8]) -> Field {
        let reads_as = |known: &[u8]| name.len() == known.len() && has_prefix(name, known);
        if reads_as(b"content-length") || reads_as(b"transfer-encoding") {
            Field::FramingAlias
        } else if reads_as(b"x-real-ip") || has_prefix(name, b"x-forwarded-") {
            Field::ForwardingAlias
        } else {
            Field::Other
        }
    }
}

/// Whether a name begins with `prefix` (lower case), `_` read as `-`.
fn has_prefix(name: &[u8], prefix: &[u8]) -> bool {
    let fold = |b: &u8| if *b == b'_' { b'-' } else { b.to_ascii_lowercase() };
    name.len() >= prefix.len() && name.iter().map(fold).zip(prefix).all(|(have, &want)| have == want)
}

/// What of a head's fields decides about the connection and the body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hop {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// The number, and whether its field is written as we would write it.
    pub(super) content_length: Option<(u64, bool)>,
    pub(super) chunked: bool,
    /// Connection options that name fields.
    n_listed: usize,
    connection: FieldSet,
}

impl Hop {
    /// Takes one Connection field.
    pub(super) fn connection(&mut self, index: usize, value: &[u8]) -> Result<(), Refusal> {
        for option in list(value) {
            match known_option(option) {
                Some(KnownOption::Close) => self.close = true,
                Some(KnownOption::KeepAlive) => self.keep_alive = true,
                Some(KnownOption::Upgrade) => self.upgrade = true,
                Some(KnownOption::Te) => {}
                None => {
                    self.n_listed += 1;
                    self.connection |= 1 << index;
                }
            }
        }
        if self.n_listed > MAX_LISTED {
            return Err(Refusal::ConnectionOptions);
        }
        Ok(())
    }

    /// Takes one Content-Length field.
    pub(super) fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.content_length.is_some() {
            return Err(Refusal::ContentLengthRepeated);
        }
        let length = decimal(value).ok_or(Refusal::ContentLength)?;
        let is_canonical = value.len() == 1 || value[0] != b'0';
        self.content_length = Some((length, is_canonical));
        Ok(())
    }

    /// Takes one Transfer-Encoding field.
    pub(super) fn transfer_encoding(&mut self, value: &[u8], version: Version) -> Result<(), Refusal> {
        if version == Version::Http10 {
            return Err(Refusal::TransferEncodingIn10);
        }
        if self.chunked {
            return Err(Refusal::TransferEncoding);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            let n_chunked = list(value)
                .filter(|coding| coding.eq_ignore_ascii_case(b"chunked"))
                .count();
            let ends_chunked = list(value)
                .last()
                .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
            let is_plain_list = value.iter().all(|&b| is_token_byte(b) || b == b',' || b == b' ');
            return Err(
                match n_chunked == 1 && ends_chunked && is_plain_list && list(value).count() > 1 {
                    true => Refusal::TransferCoding,
                    false => Refusal::TransferEncoding,
                },
            );
        }
        self.chunked = true;
        Ok(())
    }

    /// Refuses a message that says its length twice. Call after all fields.
    pub(super) fn check_lengths(&self) -> Result<(), Refusal> {
        match self.chunked && self.content_length.is_some() {
            true => Err(Refusal::BothLengths),
            false => Ok(()),
        }
    }

    /// The fields that Connection lists, without those it must not list.
    pub(super) fn listed(&self, fields: &[Header<'_>]) -> FieldSet {
        if self.connection == 0 {
            return 0;
        }
        let mut set = 0;
        for (_, connection) in members(self.connection, fields) {
            for option in list(connection.value) {
                if known_option(option).is_some() || PROTECTED.iter().any(|p| option.eq_ignore_ascii_case(p.as_bytes()))
                {
                    continue;
                }
                for (index, field) in fields.iter().enumerate() {
                    if field.name.as_bytes().eq_ignore_ascii_case(option) {
                        set |= 1 << index;
                    }
                }
            }
        }
        set
    }

    /// Whether the sender leaves its connection open for another message.
    pub(super) fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}

enum KnownOption {
    Close,
    KeepAlive,
    Te,
    Upgrade,
}

fn known_option(option: &[u8]) -> Option<KnownOption> {
    match option.len() {
        2 if option.eq_ignore_ascii_case(b"te") => Some(KnownOption::Te),
        5 if option.eq_ignore_ascii_case(b"close") => Some(KnownOption::Close),
        7 if option.eq_ignore_ascii_case(b"upgrade") => Some(KnownOption::Upgrade),
        10 if option.eq_ignore_ascii_case(b"keep-alive") => Some(KnownOption::KeepAlive),
        _ => None,
    }
}

/// The fields of a set, with their indices.
pub(super) fn members<'a, 'b>(
    set: FieldSet,
    fields: &'a [Header<'b>],
) -> impl Iterator<Item = (usize, &'a Header<'b>)> {
    fields
        .iter()
        .enumerate()
        .filter(move |(index, _)| set >> index & 1 == 1)
}

/// The elements of a comma-separated list, trimmed, empty ones left out.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// A number of decimal digits and nothing else. `None` at 2^64 too.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, &b| match b {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// Writes a number in decimal.
pub(super) fn push_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

pub(super) fn is_token_byte(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.'
        | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// What httparse says against a head, in our words. `Version` and `Token` need a look at the line.
pub(super) fn refusal_of(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::HeaderName => Refusal::FieldName,
        httparse::Error::HeaderValue => Refusal::FieldValue,
        httparse::Error::NewLine => Refusal::NewLine,
        httparse::Error::Status => Refusal::Status,
        httparse::Error::Token => Refusal::RequestLine,
        httparse::Error::TooManyHeaders => Refusal::TooManyFields,
        httparse::Error::Version => Refusal::Version,
    }
}

/// Refuses a client's head with a line that ends in LF alone, which httparse takes. `head` ends with the empty line.
///
/// A line's end is what stands before the next field's name, so this looks at two bytes per field and reads nothing
/// twice.
pub(super) fn check_line_ends(head: &[u8], fields: &[Header<'_>]) -> Result<(), Refusal> {
    let is_strict = fields
        .iter()
        .all(|field| match offset(head, field.name.as_bytes()).checked_sub(2) {
            Some(before) => head.get(before..before + 2) == Some(b"\r\n"),
            None => false,
        });
    // Trailers may be one empty line with nothing before it; heads have a first line.
    match is_strict && head.ends_with(b"\r\n\r\n") {
        true => Ok(()),
        false => Err(Refusal::BareLineFeed),
    }
}

/// Where `part`, a slice of `whole`, begins. Far out of bounds if it is not one.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize)
}

/// Writes the fields that are not in `skip`, in order, each as `Name: value`.
///
/// Lines that already look like what we would write are copied together in one piece: the common head costs two or
/// three copies. The bytes are the same either way.
pub(super) fn copy_fields(head: &[u8], fields: &[Header<'_>], skip: FieldSet, out: &mut Vec<u8>) {
    let mut run = 0..0;
    for (index, field) in fields.iter().enumerate() {
        if skip >> index & 1 == 1 {
            continue;
        }
        let start = offset(head, field.name.as_bytes());
        let value = start.wrapping_add(field.name.len() + 2);
        let end = value.wrapping_add(field.value.len() + 2);
        let is_canonical = offset(head, field.value) == value
            && head.get(value - 2..value) == Some(b": ")
            && head.get(end - 2..end) == Some(b"\r\n");
        if is_canonical && run.end == start {
            run.end = end;
            continue;
        }
        out.extend_from_slice(head.get(run).unwrap_or_default());
        run = 0..0;
        if is_canonical {
            run = start..end;
        } else {
            push_field(field.name, field.value, out);
        }
    }
    out.extend_from_slice(head.get(run).unwrap_or_default());
}

/// Writes one field line.
pub(super) fn push_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What a proxy does with a field of the trailer section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrailerRule {
    Drop,
    Keep,
    /// Frames or routes the message: an attack, in a request.
    Refuse,
}

pub(super) fn trailer_rule(name: &str) -> TrailerRule {
    match Field::of(name) {
        Field::ContentLength | Field::FramingAlias | Field::Host | Field::TransferEncoding => TrailerRule::Refuse,
        Field::Other | Field::Via => {
            match NEVER_TRAILERS.iter().any(|n| name.eq_ignore_ascii_case(n)) || has_prefix(name.as_bytes(), b"if-") {
                true => TrailerRule::Drop,
                false => TrailerRule::Keep,
            }
        }
        _ => TrailerRule::Drop,
    }
}

/// Connection options that name fields; nobody needs more.
const MAX_LISTED: usize = 32;

/// Fields that a Connection field must not make vanish (RFC 9110 7.6.1: those meant for every recipient).
pub(super) const PROTECTED: &[&str] = &[
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "forwarded",
    "host",
    "location",
    "max-forwards",
    "origin",
    "range",
    "referer",
    "retry-after",
    "set-cookie",
    "trailer",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// Fields that have no place after the body (RFC 9110 6.5.1), beside those that `Field` knows.
const NEVER_TRAILERS: &[&str] = &[
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expires",
    "location",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "vary",
    "via",
    "warning",
    "www-authenticate",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (name, kind) in [
            ("Host", Field::Host),
            ("hOST", Field::Host),
            ("Hos", Field::Other),
            ("TE", Field::Te),
            ("Proxy", Field::HopByHop),
            ("Proxy-Connection", Field::HopByHop),
            ("proxy-authorization", Field::HopByHop),
            ("Keep-Alive", Field::HopByHop),
            ("HTTP2-Settings", Field::HopByHop),
            ("Transfer-Encoding", Field::TransferEncoding),
            ("Transfer_Encoding", Field::FramingAlias),
            ("content_length", Field::FramingAlias),
            ("X-Forwarded-For", Field::XForwardedFor),
            ("X_Forwarded_For", Field::ForwardingAlias),
            ("x-forwarded_for", Field::ForwardingAlias),
            ("X_Real-IP", Field::ForwardingAlias),
            ("X-Forwarded-Ssl", Field::XForwardedOther),
            ("X-Forwarded", Field::Other),
            ("my_own_field", Field::Other),
            ("", Field::Other),
        ] {
            assert_eq!(Field::of(name), kind, "{name}");
        }
    }

    #[test]
    fn decimals() {
        for (text, number) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1 ", None),
            ("0x10", None),
            ("1_0", None),
            ("1,1", None),
            ("\u{663}", None),
        ] {
            assert_eq!(decimal(text.as_bytes()), number, "{text}");
        }
        for number in [0, 9, 10, 12345, u64::MAX] {
            let mut out = Vec::new();
            push_decimal(number, &mut out);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }
}

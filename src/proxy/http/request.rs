//! Request heads: from bytes to `RequestHead`, and from there to the head that goes to an endpoint.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use httparse::Header;

use super::fields::{
    Field, FieldSet, HeaderSlots, Hop, check_line_ends, copy_fields, decimal, is_token_byte, list, members,
    push_decimal, push_field, refusal_of,
};
use super::{Framing, Method, Refusal, Version};

/// Parses the request head at the front of `buf`. `None`: more bytes are needed.
///
/// `seen` is how many bytes of `buf` an earlier call has looked at in vain (0 at first); the head is parsed again only
/// when a line was completed since, so that a head that trickles in costs a hundred parses at most. `bytes_max` limits
/// the head, the empty lines before it included. O(length of the head); nothing is allocated.
// Its result is large: copied once for each call that is not inlined, 2 % of a small request's instructions.
#[inline(always)]
pub fn parse_request<'h, 'b>(
    buf: &'b [u8],
    seen: usize,
    bytes_max: usize,
    slots: &'h mut HeaderSlots<'b>,
) -> Result<Option<RequestHead<'h, 'b>>, Refusal> {
    let is_full = buf.len() >= bytes_max;
    let window = &buf[..buf.len().min(bytes_max)];
    if seen > 0 && !is_full && !window.get(seen..).unwrap_or_default().contains(&b'\n') {
        return Ok(None);
    }
    let partial = || if is_full { Err(Refusal::HeadTooLarge) } else { Ok(None) };

    let Some(start) = skip_empty_lines(window)? else {
        return partial();
    };
    let head = &window[start..];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(head, slots.slots()) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return partial(),
        Err(httparse::Error::Version) => {
            return match version_of(head) {
                VersionText::Whole => Err(Refusal::Version),
                VersionText::Begun => partial(),
                VersionText::Wrong => Err(Refusal::RequestLine),
            };
        }
        Err(error) => return Err(refusal_of(error)),
    };
    let head = &head[..length];
    let (method_name, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let version = Version::from_minor(request.version);
    let fields: &'h [Header<'b>] = request.headers;
    check_line_ends(head, fields)?;

    let method = Method::of(method_name);
    if method == Method::Connect {
        return Err(Refusal::Connect);
    }
    let target = Target::parse(target, method)?;
    let found = Found::of(fields, version)?;
    if found.n_own_hops > OWN_HOPS_MAX {
        return Err(Refusal::Loop);
    }
    RequestHead::assemble(
        head,
        start + length,
        method_name,
        method,
        version,
        target,
        fields,
        found,
    )
}

/// After `Refusal::Version`: whether the head at the front of `buf` is of a later HTTP/1.x and now says 1.1, so that it may be
/// parsed again.
pub fn lower_request(buf: &mut [u8]) -> bool {
    let Ok(Some(start)) = skip_empty_lines(buf) else {
        return false;
    };
    let head = &buf[start..];
    let mut spaces = head.iter().enumerate().filter(|(_, b)| **b == b' ');
    match spaces.nth(1).map(|(at, _)| start + at + 1) {
        Some(at) => Version::lower(buf, at),
        None => false,
    }
}

/// A request head that was parsed, borrowed from the input buffer, ready to be written anew.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'h, 'b> {
    pub meta: RequestMeta,
    /// The method's token.
    pub method_name: &'b str,
    /// The target in origin form (or `*`), neither decoded nor normalised. Begins with `?` where an absolute URI had
    /// no path; read it through `target()`.
    path: &'b str,
    /// Host, or the authority of a target in absolute form. `None` only in HTTP/1.0.
    pub host: Option<&'b str>,
    head: &'b [u8],
    fields: &'h [Header<'b>],
    found: Found,
    drop: FieldSet,
    /// Whether the Host field is written anew instead of copied.
    writes_host: bool,
}

/// What remains of a request once its head is forwarded: small, and borrows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestMeta {
    /// Bytes of input that the head took, empty lines before it included. The body begins there.
    pub head_len: usize,
    pub method: Method,
    pub version: Version,
    /// Never `UntilClose`.
    pub framing: Framing,
    /// Whether the client leaves its connection open for another request.
    pub keep_alive: bool,
    /// Whether the client waits for a 100 before it sends the body. The field is forwarded.
    pub expects_continue: bool,
    /// Whether the client asks for another protocol: a 101 may come back. Never with a body.
    pub upgrade: bool,
    /// A request the proxy answers itself.
    pub local_answer: Option<LocalAnswer>,
}

/// What the proxy answers itself, because Max-Forwards is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalAnswer {
    /// `write_options_reply`.
    Options,
    /// A 501: reflecting a request would show what others added to it.
    Trace,
}

/// Who sent a request, in the forms in which the next hop is told. Made once per connection; some 80 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    text: [u8; IP_TEXT_MAX],
    text_len: u8,
    is_v6: bool,
    /// Whether forwarding fields that came with the request are kept and appended to.
    is_trusted: bool,
    /// The client speaks TLS, which ends here.
    is_secure: bool,
    local: SocketAddr,
}

impl Peer {
    /// `ip`: the client's address, `local`: the address it connected to; v4-mapped ones count as IPv4. `is_trusted`:
    /// whether `ip` is in the networks whose X-Forwarded-For and the like are believed.
    pub fn new(ip: IpAddr, local: SocketAddr, is_trusted: bool) -> Peer {
        let ip = ip.to_canonical();
        let mut text = [0; IP_TEXT_MAX];
        let mut rest = &mut text[..];
        // The longest address fits; a write that does not would leave the text cut, nothing worse.
        let _ = write!(rest, "{ip}");
        let text_len = (IP_TEXT_MAX - rest.len()) as u8;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        Peer {
            text,
            text_len,
            is_v6: ip.is_ipv6(),
            is_trusted,
            is_secure: false,
            local,
        }
    }

    /// The same, of a client that speaks TLS, which ends here.
    pub fn over_tls(self) -> Peer {
        Peer {
            is_secure: true,
            ..self
        }
    }

    fn ip(&self) -> &[u8] {
        &self.text[..usize::from(self.text_len)]
    }
}

impl<'b> RequestHead<'_, 'b> {
    /// The value of the first field of this name, in any case.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.fields
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// The values of all fields of this name, in any case, that `forward` will write. `is_trusted`: whether forwarding fields of
    /// who has sent it are believed.
    pub(super) fn forwarded_values(&self, name: &str, is_trusted: bool) -> impl Iterator<Item = &'b [u8]> {
        let skip = match is_trusted {
            true => self.drop,
            false => self.drop | self.found.forwarding,
        };
        let fields = self.fields.iter().enumerate();
        let named =
            fields.filter(move |(index, field)| skip & (1 << index) == 0 && field.name.eq_ignore_ascii_case(name));
        named.map(|(_, field)| field.value)
    }

    /// As in `path`: it may begin with `?`.
    pub(super) fn path_and_query(&self) -> &'b str {
        self.path
    }

    /// Writes the head that the endpoint gets: origin form, HTTP/1.1, end-to-end fields in their order and spelling,
    /// forwarding fields, Via, framing. Grows `out` once at most.
    pub fn forward(&self, peer: &Peer, out: &mut Vec<u8>) {
        out.reserve(self.head.len() + ADDED_BYTES);
        out.extend_from_slice(self.method_name.as_bytes());
        out.push(b' ');
        if !self.path.starts_with(['/', '*']) {
            out.push(b'/');
        }
        out.extend_from_slice(self.path.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        match self.host {
            Some(host) if self.writes_host => push_field("Host", host.as_bytes(), out),
            Some(_) => {}
            // HTTP/1.0 without Host. The address the client connected to is all it said.
            None => {
                let _ = write!(out, "Host: {}\r\n", peer.local);
            }
        }

        let found = &self.found;
        let skip = match peer.is_trusted {
            true => self.drop | found.x_forwarded_for | found.forwarded,
            false => self.drop | found.forwarding,
        };
        copy_fields(self.head, self.fields, skip, out);
        self.push_forwarding(peer, out);

        out.extend_from_slice(match self.meta.version {
            Version::Http11 => b"Via: 1.1 anynode\r\n",
            Version::Http10 => b"Via: 1.0 anynode\r\n",
        });
        if let Some(left) = found.max_forwards
            && self.meta.counts_forwards()
        {
            out.extend_from_slice(b"Max-Forwards: ");
            push_decimal(left.saturating_sub(1), out);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(match (self.meta.upgrade, found.takes_trailers) {
            (false, false) => b"",
            (true, false) => b"Connection: upgrade\r\n",
            (false, true) => b"TE: trailers\r\nConnection: TE\r\n",
            (true, true) => b"TE: trailers\r\nConnection: upgrade, TE\r\n",
        });
        match (self.meta.framing, found.hop.content_length) {
            (Framing::Chunked, _) => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            (_, Some((length, false))) => {
                out.extend_from_slice(b"Content-Length: ");
                push_decimal(length, out);
                out.extend_from_slice(b"\r\n");
            }
            (_, None) if self.meta.method.expects_body() => {
                out.extend_from_slice(b"Content-Length: 0\r\n");
            }
            // Copied with the other fields, or there is none.
            _ => {}
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The target as it is forwarded, for logs and routing.
    pub fn target(&self) -> std::borrow::Cow<'b, str> {
        match self.path.starts_with(['/', '*']) {
            true => self.path.into(),
            false => format!("/{}", self.path).into(),
        }
    }

    fn push_forwarding(&self, peer: &Peer, out: &mut Vec<u8>) {
        let found = &self.found;
        let believed = |set: FieldSet| peer.is_trusted && set != 0;
        let secure: &[u8] = if peer.is_secure { b"s" } else { b"" };

        out.extend_from_slice(b"X-Forwarded-For: ");
        if peer.is_trusted {
            push_joined(found.x_forwarded_for, self.fields, out);
        }
        out.extend_from_slice(peer.ip());
        if !believed(found.x_real_ip) {
            out.extend_from_slice(b"\r\nX-Real-IP: ");
            out.extend_from_slice(peer.ip());
        }
        if !believed(found.x_forwarded_proto) {
            out.extend_from_slice(b"\r\nX-Forwarded-Proto: http");
            out.extend_from_slice(secure);
        }
        if !believed(found.x_forwarded_port) {
            out.extend_from_slice(b"\r\nX-Forwarded-Port: ");
            push_decimal(u64::from(peer.local.port()), out);
        }
        if let Some(host) = self.host
            && !believed(found.x_forwarded_host)
        {
            out.extend_from_slice(b"\r\nX-Forwarded-Host: ");
            out.extend_from_slice(host.as_bytes());
        }

        out.extend_from_slice(b"\r\nForwarded: ");
        // What is broken could swallow ours, as an open quotation mark would.
        if peer.is_trusted && members(found.forwarded, self.fields).all(|(_, field)| is_forwarded(field.value)) {
            push_joined(found.forwarded, self.fields, out);
        }
        out.extend_from_slice(if peer.is_v6 { b"for=\"[" } else { b"for=" });
        out.extend_from_slice(peer.ip());
        out.extend_from_slice(if peer.is_v6 { b"]\"" } else { b"" });
        if let Some(host) = self.host {
            // A valid Host has no quote and no backslash, so quoting it needs no escapes.
            let quote: &[u8] = if host.bytes().all(is_token_byte) { b"" } else { b"\"" };
            out.extend_from_slice(b";host=");
            out.extend_from_slice(quote);
            out.extend_from_slice(host.as_bytes());
            out.extend_from_slice(quote);
        }
        out.extend_from_slice(b";proto=http");
        out.extend_from_slice(secure);
        out.extend_from_slice(b"\r\n");
    }

    /// Never `Ok(None)`: it is the whole of what `parse_request` gives, which would be copied to be wrapped.
    #[expect(clippy::too_many_arguments, reason = "the parts of one head, joined in one place")]
    fn assemble<'h>(
        head: &'b [u8],
        head_len: usize,
        method_name: &'b str,
        method: Method,
        version: Version,
        target: Target<'b>,
        fields: &'h [Header<'b>],
        found: Found,
    ) -> Result<Option<RequestHead<'h, 'b>>, Refusal> {
        let host_field = match found.host {
            Some(index) => Some(valid_authority(fields.get(index).map_or(b"", |field| field.value))?),
            None if version == Version::Http11 => return Err(Refusal::HostMissing),
            None => None,
        };
        let framing = match found.hop.content_length {
            _ if found.hop.chunked => Framing::Chunked,
            Some((0, _)) | None => Framing::None,
            Some((length, _)) => Framing::Length(length),
        };
        if method == Method::Trace && framing != Framing::None {
            return Err(Refusal::TraceBody);
        }

        let expects_continue = found.expect != 0 && version == Version::Http11 && framing != Framing::None;
        let upgrade = version == Version::Http11
            && framing == Framing::None
            && found.hop.upgrade
            && found.upgrade.count_ones() == 1
            && members(found.upgrade, fields).all(|(_, field)| is_upgrade_we_pass(field.value));
        let mut meta = RequestMeta {
            head_len,
            method,
            version,
            framing,
            keep_alive: found.hop.persists(version),
            expects_continue,
            upgrade,
            local_answer: None,
        };
        let mut drop = found.drop | found.hop.listed(fields);
        if meta.counts_forwards() && found.max_forwards_fields != 0 {
            drop |= found.max_forwards_fields;
            meta.local_answer = match (found.max_forwards, method) {
                (None, _) => return Err(Refusal::MaxForwards),
                (Some(0), Method::Trace) => Some(LocalAnswer::Trace),
                (Some(0), _) => Some(LocalAnswer::Options),
                (Some(_), _) => None,
            };
        }
        if !upgrade {
            drop |= found.upgrade;
        }
        if !expects_continue {
            drop |= found.expect;
        }
        if framing != Framing::Chunked {
            drop |= found.trailer;
        }
        let writes_host = target.authority.is_some();
        if let Some(index) = found.host
            && writes_host
        {
            drop |= 1 << index;
        }
        Ok(Some(RequestHead {
            meta,
            method_name,
            path: target.path,
            host: target.authority.or(host_field),
            head,
            fields,
            found,
            drop,
            writes_host,
        }))
    }
}

impl RequestMeta {
    /// Whether Max-Forwards means something to this method.
    fn counts_forwards(&self) -> bool {
        matches!(self.method, Method::Options | Method::Trace)
    }
}

/// What one pass over the fields found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    hop: Hop,
    host: Option<usize>,
    /// The number, if there is exactly one field and it is one.
    max_forwards: Option<u64>,
    takes_trailers: bool,
    /// How often Via names us.
    n_own_hops: usize,
    /// Dropped whatever else the head says.
    drop: FieldSet,
    expect: FieldSet,
    max_forwards_fields: FieldSet,
    trailer: FieldSet,
    upgrade: FieldSet,
    /// All forwarding fields: dropped unless the peer is trusted.
    forwarding: FieldSet,
    forwarded: FieldSet,
    x_forwarded_for: FieldSet,
    x_forwarded_host: FieldSet,
    x_forwarded_port: FieldSet,
    x_forwarded_proto: FieldSet,
    x_real_ip: FieldSet,
}

impl Found {
    fn of(fields: &[Header<'_>], version: Version) -> Result<Found, Refusal> {
        let mut found = Found::default();
        for (index, field) in fields.iter().enumerate() {
            let bit: FieldSet = 1 << index;
            match Field::of(field.name) {
                Field::Other => {}
                Field::Host if found.host.is_some() => return Err(Refusal::HostRepeated),
                Field::Host => found.host = Some(index),
                Field::Connection => {
                    found.drop |= bit;
                    found.hop.connection(index, field.value)?;
                }
                Field::ContentLength => {
                    found.hop.content_length(field.value)?;
                    if let Some((_, false)) = found.hop.content_length {
                        found.drop |= bit;
                    }
                }
                Field::TransferEncoding => {
                    found.drop |= bit;
                    found.hop.transfer_encoding(field.value, version)?;
                }
                Field::Expect => {
                    let is_known = field.value.eq_ignore_ascii_case(b"100-continue") && found.expect == 0;
                    if version == Version::Http11 && !is_known {
                        return Err(Refusal::Expectation);
                    }
                    found.expect |= bit;
                }
                Field::FramingAlias => return Err(Refusal::UnderscoreAlias),
                Field::ForwardingAlias | Field::HopByHop => found.drop |= bit,
                Field::MaxForwards => {
                    found.max_forwards = match found.max_forwards_fields {
                        0 => decimal(field.value),
                        _ => None,
                    };
                    found.max_forwards_fields |= bit;
                }
                Field::Te => {
                    found.drop |= bit;
                    found.takes_trailers |= list(field.value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
                }
                Field::Trailer => found.trailer |= bit,
                Field::Upgrade => found.upgrade |= bit,
                Field::Via => found.n_own_hops += list(field.value).filter(|hop| is_own_hop(hop)).count(),
                Field::Forwarded => found.forwarded |= bit,
                Field::XForwardedFor => found.x_forwarded_for |= bit,
                Field::XForwardedHost => found.x_forwarded_host |= bit,
                Field::XForwardedOther => found.forwarding |= bit,
                Field::XForwardedPort => found.x_forwarded_port |= bit,
                Field::XForwardedProto => found.x_forwarded_proto |= bit,
                Field::XRealIp => found.x_real_ip |= bit,
            }
        }
        found.hop.check_lengths()?;
        found.forwarding |= found.forwarded
            | found.x_forwarded_for
            | found.x_forwarded_host
            | found.x_forwarded_port
            | found.x_forwarded_proto
            | found.x_real_ip;
        Ok(found)
    }
}

/// A request target, taken apart.
#[derive(Clone, Copy, Debug)]
struct Target<'b> {
    /// Of an absolute form.
    authority: Option<&'b str>,
    /// Begins with `/`, is `*`, or begins with `?` or is empty after an absolute form without path.
    path: &'b str,
}

impl<'b> Target<'b> {
    fn parse(target: &'b str, method: Method) -> Result<Target<'b>, Refusal> {
        if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(Refusal::Target);
        }
        if target.starts_with('/') || (target == "*" && method == Method::Options) {
            return Ok(Target {
                authority: None,
                path: target,
            });
        }
        // Which of them a client means is said by its connection.
        let rest = SCHEMES.into_iter().find_map(|scheme| {
            let (begin, rest) = target.split_at_checked(scheme.len())?;
            begin.eq_ignore_ascii_case(scheme).then_some(rest)
        });
        let rest = rest.ok_or(Refusal::Target)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // RFC 9112 3.2.4: for the server as a whole, the last proxy says `*`.
        let path = if path.is_empty() && method == Method::Options {
            "*"
        } else {
            path
        };
        Ok(Target {
            authority: Some(valid_authority(authority.as_bytes())?),
            path,
        })
    }
}

/// `host[:port]` without user information. An empty host is invalid in an http URI (RFC 9110 4.2.1).
fn valid_authority(authority: &[u8]) -> Result<&str, Refusal> {
    let authority = str::from_utf8(authority).map_err(|_| Refusal::Host)?;
    let (is_host_valid, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(Refusal::Host)?;
            let is_valid = address.parse::<std::net::Ipv6Addr>().is_ok();
            (
                is_valid && (port.is_empty() || port.starts_with(':')),
                port.strip_prefix(':'),
            )
        }
        None => {
            let (name, port) = match authority.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (authority, None),
            };
            (!name.is_empty() && name.bytes().all(is_host_byte), port)
        }
    };
    let is_port_valid = port.is_none_or(|port| match decimal(port.as_bytes()) {
        Some(number) => port.len() <= 5 && number <= u64::from(u16::MAX),
        None => port.is_empty(),
    });
    match is_host_valid && is_port_valid {
        true => Ok(authority),
        false => Err(Refusal::Host),
    }
}

/// RFC 3986's reg-name, without the comma: two Host fields that someone joined look like one with a comma.
fn is_host_byte(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\''
        | b'(' | b')' | b'*' | b'+' | b';' | b'=')
}

/// Whether an Upgrade field names protocols, none of them HTTP.
fn is_upgrade_we_pass(value: &[u8]) -> bool {
    let is_http = |protocol: &[u8]| {
        let starts = |prefix: &[u8]| {
            protocol
                .get(..prefix.len())
                .is_some_and(|p| p.eq_ignore_ascii_case(prefix))
        };
        starts(b"h2") || starts(b"http")
    };
    list(value).next().is_some() && !list(value).any(is_http)
}

/// Whether an element of Via, `protocol received-by comment`, is one that we wrote.
fn is_own_hop(hop: &[u8]) -> bool {
    let mut words = hop.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(b"anynode"))
}

/// Whether a Forwarded field is what RFC 7239 says: elements between commas, pairs between semicolons, each a token, `=`
/// and a token or a quoted string. A value may have what a token may not, as a bare IPv6 address does, but no quotation mark.
fn is_forwarded(value: &[u8]) -> bool {
    let mut rest = value;
    loop {
        // A pair, or nothing between two separators.
        rest = rest.trim_ascii_start();
        let n_name = rest.iter().take_while(|b| is_token_byte(**b)).count();
        if n_name > 0 {
            let Some((b'=', value)) = rest[n_name..].split_first() else {
                return false;
            };
            let length = match value.first() {
                Some(b'"') => quoted_length(value),
                _ => Some(value.iter().take_while(|b| is_bare_byte(**b)).count()).filter(|n| *n > 0),
            };
            let Some(length) = length else { return false };
            rest = value[length..].trim_ascii_start();
        }
        match rest.split_first() {
            None => return true,
            Some((b',' | b';', more)) => rest = more,
            Some(_) => return false,
        }
    }
}

fn is_bare_byte(b: u8) -> bool {
    is_token_byte(b) || matches!(b, b':' | b'[' | b']' | b'/')
}

/// The length of the quoted string that begins here; `None` if it does not end.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Writes the values of a set, a comma after each.
fn push_joined(set: FieldSet, fields: &[Header<'_>], out: &mut Vec<u8>) {
    for (_, field) in members(set, fields) {
        if !field.value.is_empty() {
            out.extend_from_slice(field.value);
            out.extend_from_slice(b", ");
        }
    }
}

/// Where the request line begins. `None`: not seen yet.
fn skip_empty_lines(buf: &[u8]) -> Result<Option<usize>, Refusal> {
    for line in 0..=LEADING_LINES_MAX {
        let at = 2 * line;
        match (buf.get(at), buf.get(at + 1)) {
            (None, _) | (Some(b'\r'), None) => return Ok(None),
            (Some(b'\r'), Some(b'\n')) => {}
            (Some(b'\r'), Some(_)) => return Err(Refusal::NewLine),
            (Some(b'\n'), _) => return Err(Refusal::BareLineFeed),
            (Some(_), _) => return Ok(Some(at)),
        }
    }
    Err(Refusal::LeadingLines)
}

/// What the third word of the first line is, where it is none of ours.
enum VersionText {
    /// `HTTP/`, a digit, a dot, a digit.
    Whole,
    /// It may become one.
    Begun,
    Wrong,
}

fn version_of(head: &[u8]) -> VersionText {
    let word = head.splitn(3, |&b| b == b' ').nth(2).unwrap_or_default();
    let fits = |(b, form): (&u8, &u8)| match form {
        b'd' => b.is_ascii_digit(),
        _ => b == form,
    };
    match word.iter().zip(b"HTTP/d.d").all(fits) {
        false => VersionText::Wrong,
        true if word.len() < "HTTP/d.d".len() => VersionText::Begun,
        true => VersionText::Whole,
    }
}

/// RFC 9112 2.2: a server should ignore at least one empty line before the request line.
const LEADING_LINES_MAX: usize = 4;
/// How often a request may have passed a node of this kind. Chains of services that reach one another by their published
/// ports are shorter.
const OWN_HOPS_MAX: usize = 8;
const SCHEMES: [&str; 2] = ["http://", "https://"];
/// What `forward` adds, with room for a long Host.
const ADDED_BYTES: usize = 512;
const IP_TEXT_MAX: usize = 45;

#[cfg(test)]
mod tests;

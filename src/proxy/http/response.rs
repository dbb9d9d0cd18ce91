//! Response heads: from an endpoint's bytes, which are trusted no more than a client's, to `ResponseHead`, and from
//! there to the head that goes to the client.

use httparse::Header;

use super::body::Coding;
use super::fields::{Field, FieldSet, HeaderSlots, Hop, copy_fields, push_decimal, refusal_of};
use super::{Framing, Method, Refusal, RequestMeta, Version};

/// Parses the response head at the front of `buf`, the answer to `request`. `None`: more bytes are needed.
///
/// Endpoints may do what other proxies let them: end lines in LF alone, answer with a status up to 999, or with bytes beyond
/// ASCII in the reason, and have spaces before the status. What goes on to the client is written anew.
///
/// `seen` and `bytes_max` as in `parse_request`. A refusal is answered with 502. Interim responses (1xx) are heads of
/// their own: `ResponseMeta::is_interim` says that another one follows; the caller bounds their number.
// As `parse_request`.
#[inline(always)]
pub fn parse_response<'h, 'b>(
    buf: &'b [u8],
    seen: usize,
    bytes_max: usize,
    request: &RequestMeta,
    slots: &'h mut HeaderSlots<'b>,
) -> Result<Option<ResponseHead<'h, 'b>>, Refusal> {
    let is_full = buf.len() >= bytes_max;
    let window = &buf[..buf.len().min(bytes_max)];
    if seen > 0 && !is_full && !window.get(seen..).unwrap_or_default().contains(&b'\n') {
        return Ok(None);
    }
    match window.first() {
        Some(b'\r' | b'\n') => return Err(Refusal::LeadingLines),
        Some(_) => {}
        None => return Ok(None),
    }
    let mut response = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    let parsed = config.parse_response_with_uninit_headers(&mut response, window, slots.slots());
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if is_full => return Err(Refusal::HeadTooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal_of(error)),
    };
    let head = &window[..length];
    let version = Version::from_minor(response.version);
    let status = response.code.unwrap_or_default();
    let reason = match response.reason.unwrap_or_default() {
        "" => reason_beyond_ascii(head),
        reason => reason.as_bytes(),
    };
    let fields: &'h [Header<'b>] = response.headers;
    if !(100..=999).contains(&status) {
        return Err(Refusal::Status);
    }
    let found = Found::of(fields, version)?;

    let is_switch = status == 101;
    if is_switch && !(request.upgrade && found.hop.upgrade && found.upgrade != 0) {
        return Err(Refusal::UpgradeUnasked);
    }
    let has_no_body = status < 200 || status == 204;
    let framing = match found.hop.content_length {
        _ if has_no_body || status == 304 || request.method == Method::Head => Framing::None,
        _ if found.hop.chunked => Framing::Chunked,
        Some((length, _)) => Framing::Length(length),
        None => Framing::UntilClose,
    };
    // An endpoint that announces a body where none can be may well send it: never listen to that connection again.
    let is_contradictory = has_no_body && (found.hop.chunked || found.hop.content_length.is_some_and(|(n, _)| n != 0));
    if is_contradictory && status < 200 {
        return Err(Refusal::Status);
    }
    let keep_alive = found.hop.persists(version) && framing != Framing::UntilClose && !is_contradictory;

    let mut drop = found.drop | found.hop.listed(fields);
    if has_no_body {
        drop |= found.content_length;
    }
    if !(is_switch || status == 426) {
        drop |= found.upgrade;
    }
    let meta = ResponseMeta {
        head_len: length,
        status,
        version,
        framing,
        keep_alive,
    };
    Ok(Some(ResponseHead {
        meta,
        reason,
        head,
        fields,
        found,
        drop,
    }))
}

/// After `Refusal::Version`: whether the head at the front of `buf` is of a later HTTP/1.x and now says 1.1, so that it may be
/// parsed again.
pub fn lower_response(buf: &mut [u8]) -> bool {
    Version::lower(buf, 0)
}

/// The reason of a status line where httparse gives none: it checked the bytes, but shows only ASCII.
fn reason_beyond_ascii(head: &[u8]) -> &[u8] {
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii_end().splitn(2, |b| *b == b' ');
    let rest = words.nth(1).unwrap_or_default().trim_ascii_start();
    rest.splitn(2, |b| *b == b' ').nth(1).unwrap_or_default()
}

/// A response head that was parsed, borrowed from the input buffer, ready to be written anew.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'h, 'b> {
    pub meta: ResponseMeta,
    /// No control characters. Empty if the endpoint sent none.
    pub reason: &'b [u8],
    head: &'b [u8],
    fields: &'h [Header<'b>],
    found: Found,
    drop: FieldSet,
}

/// What remains of a response once its head is forwarded: small, and borrows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseMeta {
    /// Bytes of input that the head took. The body begins there.
    pub head_len: usize,
    /// 100 to 999.
    pub status: u16,
    pub version: Version,
    /// How the endpoint frames the body. `None` for HEAD, 1xx, 204, 304.
    pub framing: Framing,
    /// Whether the endpoint's connection may carry another request, once this body has ended and no byte came after
    /// it. A byte too many forbids it.
    pub keep_alive: bool,
}

impl ResponseMeta {
    /// Whether this is not yet the answer: another head follows. A client of HTTP/1.0 must not be sent it.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Whether the connection now speaks another protocol: what follows is relayed, unread, both ways.
    pub fn is_switch(&self) -> bool {
        self.status == 101
    }
}

/// How the response goes on to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward {
    pub coding: Coding,
    /// Whether the client's connection stays open after this response, as its head now says.
    pub keep_alive: bool,
}

impl<'b> ResponseHead<'_, 'b> {
    /// The value of the first field of this name, in any case.
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.fields
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// Writes the head that the client gets. `may_stay`: whether the proxy would leave the client's connection open
    /// (no drain, the request's body was or will be read to its end); the client's own wish is in `request`.
    ///
    /// A body whose length is unknown goes out chunked, so that its end is told from a failure; to HTTP/1.0, which
    /// knows no chunks, up to the end of the connection.
    pub fn forward(&self, request: &RequestMeta, may_stay: bool, out: &mut Vec<u8>) -> Onward {
        let status = self.meta.status;
        let is_final = !self.meta.is_interim() && !self.meta.is_switch();
        let is_unsized = matches!(self.meta.framing, Framing::Chunked | Framing::UntilClose);
        let coding = match (is_unsized, request.version) {
            (true, Version::Http11) => Coding::Chunked,
            _ => Coding::Plain,
        };
        let ends_by_close = is_unsized && coding == Coding::Plain;
        let keep_alive = request.keep_alive && may_stay && !ends_by_close;

        out.reserve(self.head.len() + ADDED_BYTES);
        out.extend_from_slice(b"HTTP/1.1 ");
        push_decimal(u64::from(status), out);
        out.push(b' ');
        out.extend_from_slice(self.reason);
        out.extend_from_slice(b"\r\n");
        let mut skip = self.drop;
        if coding != Coding::Chunked {
            skip |= self.found.trailer;
        }
        let rewritten_length = match self.found.hop.content_length {
            Some((length, false)) if self.drop & self.found.content_length == 0 => Some(length),
            _ => None,
        };
        if rewritten_length.is_some() {
            skip |= self.found.content_length;
        }
        copy_fields(self.head, self.fields, skip, out);
        out.extend_from_slice(match self.meta.version {
            Version::Http11 => b"Via: 1.1 anynode\r\n",
            Version::Http10 => b"Via: 1.0 anynode\r\n",
        });
        if coding == Coding::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if let Some(length) = rewritten_length {
            out.extend_from_slice(b"Content-Length: ");
            push_decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        let offers_upgrade = status == 426 && self.found.upgrade != 0;
        out.extend_from_slice(match (is_final, keep_alive) {
            (false, _) if self.meta.is_switch() => b"Connection: upgrade\r\n",
            (false, _) => b"",
            (true, true) if offers_upgrade => b"Connection: upgrade\r\n",
            (true, true) if request.version == Version::Http10 => b"Connection: keep-alive\r\n",
            (true, true) => b"",
            (true, false) if offers_upgrade => b"Connection: upgrade, close\r\n",
            (true, false) => b"Connection: close\r\n",
        });
        out.extend_from_slice(b"\r\n");
        Onward { coding, keep_alive }
    }
}

/// Adds a field to the head that was just written, the last thing in `out`.
pub fn add_field(field: &str, out: &mut Vec<u8>) {
    debug_assert!(out.ends_with(b"\r\n\r\n"));
    out.truncate(out.len().saturating_sub(2));
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

/// What one pass over the fields found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    hop: Hop,
    /// Dropped whatever else the head says.
    drop: FieldSet,
    content_length: FieldSet,
    trailer: FieldSet,
    upgrade: FieldSet,
}

impl Found {
    fn of(fields: &[Header<'_>], version: Version) -> Result<Found, Refusal> {
        let mut found = Found::default();
        for (index, field) in fields.iter().enumerate() {
            let bit: FieldSet = 1 << index;
            match Field::of(field.name) {
                Field::Connection => {
                    found.drop |= bit;
                    found.hop.connection(index, field.value)?;
                }
                Field::ContentLength => {
                    found.hop.content_length(field.value)?;
                    found.content_length |= bit;
                }
                Field::TransferEncoding => {
                    found.drop |= bit;
                    found.hop.transfer_encoding(field.value, version)?;
                }
                Field::HopByHop | Field::Te => found.drop |= bit,
                Field::Trailer => found.trailer |= bit,
                Field::Upgrade => found.upgrade |= bit,
                _ => {}
            }
        }
        found.hop.check_lengths()?;
        Ok(found)
    }
}

/// What `forward` adds.
const ADDED_BYTES: usize = 128;

#[cfg(test)]
mod tests;

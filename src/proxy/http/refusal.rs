//! Why a head is refused: one closed list for requests and responses.

/// The reason for which a head is not taken.
///
/// To a request the proxy answers `status()` and `text()` and closes; a response that is refused becomes a 502 with
/// `text()`, whatever `status()` says. `label()` is for metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The path has dot segments, an encoded slash or what is no encoding, and routes look at paths here.
    AmbiguousPath,
    /// A line of a request ends in LF alone.
    BareLineFeed,
    /// Content-Length together with Transfer-Encoding.
    BothLengths,
    /// The method CONNECT: no forward proxy lives here.
    Connect,
    /// More connection options than a message has use for.
    ConnectionOptions,
    /// Content-Length is not a plain decimal number below 2^64.
    ContentLength,
    /// More than one Content-Length, be they equal or not.
    ContentLengthRepeated,
    /// An expectation other than `100-continue`.
    Expectation,
    /// A field name with a character that no name has: a space before the colon and a folded line are such.
    FieldName,
    /// A control character in a field value.
    FieldValue,
    /// The head is longer than the limit.
    HeadTooLarge,
    /// Host (or the target's authority) is not `name[:port]`.
    Host,
    /// HTTP/1.1 without Host.
    HostMissing,
    /// More than one Host.
    HostRepeated,
    /// More empty lines before the request line than a careless client sends.
    LeadingLines,
    /// It has passed nodes of this kind more often than any chain of services is long.
    Loop,
    /// Max-Forwards is not one number.
    MaxForwards,
    /// A line that does not end in CR LF, such as a bare CR.
    NewLine,
    /// The request line is not `token target version`.
    RequestLine,
    /// The status is not between 100 and 999, or its line is malformed.
    Status,
    /// The target is neither a path nor an http URI, has bytes beyond ASCII, a fragment, or is `*` without OPTIONS.
    Target,
    /// More header fields than a head may have (`http.fields_max`).
    TooManyFields,
    /// TRACE with a body.
    TraceBody,
    /// A known way of writing a transfer coding that we do not speak, such as `gzip, chunked`.
    TransferCoding,
    /// Transfer-Encoding is not exactly one `chunked`.
    TransferEncoding,
    /// Transfer-Encoding in HTTP/1.0.
    TransferEncodingIn10,
    /// `Content_Length` or `Transfer_Encoding`.
    UnderscoreAlias,
    /// A 101 that nobody asked for, or that names no protocol.
    UpgradeUnasked,
    /// Not HTTP/1.
    Version,
}

impl Refusal {
    /// The status with which a request is refused.
    pub fn status(self) -> u16 {
        match self {
            Refusal::Connect | Refusal::TransferCoding => 501,
            Refusal::Expectation => 417,
            Refusal::HeadTooLarge | Refusal::TooManyFields => 431,
            Refusal::Loop => 508,
            Refusal::Version => 505,
            _ => 400,
        }
    }

    /// A short machine-readable name.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::AmbiguousPath => "ambiguous_path",
            Refusal::BareLineFeed => "bare_line_feed",
            Refusal::BothLengths => "both_lengths",
            Refusal::Connect => "connect",
            Refusal::ConnectionOptions => "connection_options",
            Refusal::ContentLength => "content_length",
            Refusal::ContentLengthRepeated => "content_length_repeated",
            Refusal::Expectation => "expectation",
            Refusal::FieldName => "field_name",
            Refusal::FieldValue => "field_value",
            Refusal::HeadTooLarge => "head_too_large",
            Refusal::Host => "host",
            Refusal::HostMissing => "host_missing",
            Refusal::HostRepeated => "host_repeated",
            Refusal::LeadingLines => "leading_lines",
            Refusal::Loop => "loop",
            Refusal::MaxForwards => "max_forwards",
            Refusal::NewLine => "new_line",
            Refusal::RequestLine => "request_line",
            Refusal::Status => "status",
            Refusal::Target => "target",
            Refusal::TooManyFields => "too_many_fields",
            Refusal::TraceBody => "trace_body",
            Refusal::TransferCoding => "transfer_coding",
            Refusal::TransferEncoding => "transfer_encoding",
            Refusal::TransferEncodingIn10 => "transfer_encoding_in_10",
            Refusal::UnderscoreAlias => "underscore_alias",
            Refusal::UpgradeUnasked => "upgrade_unasked",
            Refusal::Version => "version",
        }
    }

    /// What a person reads.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::AmbiguousPath => {
                "a path that can be read in two ways: dot segments, encoded slashes, or bad encoding"
            }
            Refusal::BareLineFeed => "a line of the head ends without carriage return",
            Refusal::BothLengths => "both Content-Length and Transfer-Encoding",
            Refusal::Connect => "CONNECT is not served",
            Refusal::ConnectionOptions => "too many connection options",
            Refusal::ContentLength => "invalid Content-Length",
            Refusal::ContentLengthRepeated => "more than one Content-Length",
            Refusal::Expectation => "unknown expectation",
            Refusal::FieldName => "invalid character in a header field name",
            Refusal::FieldValue => "invalid character in a header field value",
            Refusal::HeadTooLarge => "header fields too large",
            Refusal::Host => "invalid Host",
            Refusal::HostMissing => "no Host",
            Refusal::HostRepeated => "more than one Host",
            Refusal::LeadingLines => "empty lines before the message",
            Refusal::Loop => "loop detected: the request has passed this proxy too often",
            Refusal::MaxForwards => "invalid Max-Forwards",
            Refusal::NewLine => "invalid end of line",
            Refusal::RequestLine => "invalid request line",
            Refusal::Status => "invalid status line",
            Refusal::Target => "invalid request target",
            Refusal::TooManyFields => "more header fields than http.fields_max allows",
            Refusal::TraceBody => "TRACE with a body",
            Refusal::TransferCoding => "transfer coding not supported",
            Refusal::TransferEncoding => "invalid Transfer-Encoding",
            Refusal::TransferEncodingIn10 => "Transfer-Encoding in HTTP/1.0",
            Refusal::UnderscoreAlias => "a length field written with an underscore",
            Refusal::UpgradeUnasked => "upgrade to a protocol nobody asked for",
            Refusal::Version => "HTTP version not supported",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Refusal {}

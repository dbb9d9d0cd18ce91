//! Heads in HTTP/1.1's words: those that came as frames, and back. Pure; what is written here is parsed by `proxy::http` like
//! anybody's, so that its limits and refusals hold.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, request, response};

/// How a message's body is marked off in HTTP/1.1's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Framing {
    /// There is none.
    None,
    Length(u64),
    Chunked,
    /// It lasts as long as the connection.
    UntilClose,
}

/// Why a message is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) struct Malformed;

/// Writes a client's request. `has_ended`: it has no body. Errors: its Host is not its authority, its path is none (RFC 9113 8.3.1), or
/// a value of a field begins or ends with a space (8.2.1).
pub(in crate::proxy) fn write_request(
    request: &request::Parts,
    has_ended: bool,
    out: &mut Vec<u8>,
) -> Result<Framing, Malformed> {
    let authority = request.uri.authority().map(|authority| authority.as_str());
    if !has_path(request) || request.headers.values().any(has_space_around) {
        return Err(Malformed);
    }
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.push(b' ');
    let target = match request.method {
        Method::CONNECT => authority.unwrap_or_default(),
        _ => request.uri.path_and_query().map_or("/", |target| target.as_str()),
    };
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = authority {
        let mut said = request.headers.get_all(HOST).iter();
        if said.any(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())) {
            return Err(Malformed);
        }
        push(out, b"host", authority.as_bytes());
    }
    let has_host = authority.is_some();
    let mut cookies = request.headers.get_all(COOKIE).iter();
    if let Some(first) = cookies.next() {
        // They may come one by one (RFC 9113 8.2.3).
        out.extend_from_slice(b"cookie: ");
        out.extend_from_slice(first.as_bytes());
        for cookie in cookies {
            out.extend_from_slice(b"; ");
            out.extend_from_slice(cookie.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in &request.headers {
        if name == COOKIE || (name == HOST && has_host) {
            continue;
        }
        push(out, name.as_str().as_bytes(), value.as_bytes());
    }
    Ok(end(&request.headers, has_ended, out))
}

/// Whether the target is a path, as it must be but for CONNECT and for OPTIONS of the whole server. A URI is none: whose the request is
/// is said by its authority alone.
fn has_path(request: &request::Parts) -> bool {
    let path = request.uri.path();
    match request.method {
        Method::CONNECT => true,
        Method::OPTIONS => path.starts_with('/') || path == "*",
        _ => path.starts_with('/'),
    }
}

fn has_space_around(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// Writes an endpoint's response. `is_bodiless`: whatever its fields say. `has_ended`: no body follows.
pub(in crate::proxy) fn write_response(
    response: &response::Parts,
    is_bodiless: bool,
    has_ended: bool,
    out: &mut Vec<u8>,
) -> Framing {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(response.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(response.status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &response.headers {
        push(out, name.as_str().as_bytes(), value.as_bytes());
    }
    if is_bodiless {
        out.extend_from_slice(b"\r\n");
        return Framing::None;
    }
    if has_ended && !response.headers.contains_key(CONTENT_LENGTH) {
        push(out, b"content-length", b"0");
    }
    end(&response.headers, has_ended, out)
}

/// Ends a head by saying how its body is marked off.
fn end(fields: &HeaderMap, has_ended: bool, out: &mut Vec<u8>) -> Framing {
    let length = fields
        .get(CONTENT_LENGTH)
        .map(|length| length.to_str().ok()?.parse().ok());
    let framing = match (has_ended, length) {
        (true, _) => Framing::None,
        (false, Some(length)) => Framing::Length(length.unwrap_or(0)),
        (false, None) => {
            push(out, b"transfer-encoding", b"chunked");
            Framing::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    framing
}

/// Writes trailers, and the end of a chunked body.
pub(in crate::proxy) fn write_trailers(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        push(out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn push(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Reads a whole response head as we write them. `is_to_head`: it answers HEAD.
pub(in crate::proxy) fn read_response(head: &[u8], is_to_head: bool) -> Result<(Response<()>, Framing), Malformed> {
    let mut slots = [httparse::EMPTY_HEADER; FIELDS_MOST];
    let mut parsed = httparse::Response::new(&mut slots);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Err(Malformed),
    }
    let status = StatusCode::from_u16(parsed.code.unwrap_or_default()).map_err(|_| Malformed)?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    let framing = read_fields(parsed.headers, response.headers_mut())?;
    let has_none = is_to_head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    Ok((
        response,
        if has_none {
            Framing::None
        } else {
            framing.unwrap_or(Framing::UntilClose)
        },
    ))
}

/// Reads a whole request head as we write them, for an endpoint that is asked by `scheme`.
pub(in crate::proxy) fn read_request(head: &[u8], scheme: &str) -> Result<(Request<()>, Framing), Malformed> {
    let mut slots = [httparse::EMPTY_HEADER; FIELDS_MOST];
    let mut parsed = httparse::Request::new(&mut slots);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Err(Malformed),
    }
    let mut request = Request::new(());
    let method = parsed.method.unwrap_or_default().as_bytes();
    *request.method_mut() = Method::from_bytes(method).map_err(|_| Malformed)?;
    let framing = read_fields(parsed.headers, request.headers_mut())?;
    let host = request.headers_mut().remove(HOST).ok_or(Malformed)?;
    let uri = Uri::builder().scheme(scheme).authority(host.as_bytes());
    let target = parsed.path.unwrap_or_default();
    let target = PathAndQuery::try_from(target).or_else(|_| PathAndQuery::try_from(escaped(target)));
    let uri = uri.path_and_query(target.map_err(|_| Malformed)?);
    *request.uri_mut() = uri.build().map_err(|_| Malformed)?;
    // Trailers are passed on whoever asks, and some servers of gRPC insist on being told.
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    Ok((request, framing.unwrap_or(Framing::None)))
}

/// Whether HTTP/2 has such a Host.
pub(in crate::proxy) fn is_authority(host: &[u8]) -> bool {
    Authority::try_from(host).is_ok()
}

/// A target in which everything is escaped that no URI has (RFC 3986), as clients should have written it.
fn escaped(target: &str) -> String {
    let mut out = String::with_capacity(target.len() + 16);
    for byte in target.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%[]".contains(&byte) {
            true => out.push(byte.into()),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Reads trailers: lines up to an empty one.
pub(in crate::proxy) fn read_trailers(lines: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut slots = [httparse::EMPTY_HEADER; FIELDS_MOST];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(lines, &mut slots) else {
        return Err(Malformed);
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    read_fields(fields, &mut trailers)?;
    Ok(trailers)
}

/// Takes over the fields that HTTP/2 has, and tells how the body is marked off, if they say so.
fn read_fields(fields: &[httparse::Header<'_>], into: &mut HeaderMap) -> Result<Option<Framing>, Malformed> {
    let mut framing = None;
    into.reserve(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| Malformed)?;
        if name == TRANSFER_ENCODING {
            framing = Some(Framing::Chunked);
            continue;
        }
        if name == CONTENT_LENGTH {
            let length = value
                .to_str()
                .ok()
                .and_then(|length| length.parse().ok())
                .ok_or(Malformed)?;
            framing = framing.or(Some(Framing::Length(length)));
        }
        // Of one connection alone (RFC 9113 8.2.2).
        let is_of_connection = name == CONNECTION || name == UPGRADE || name == TE;
        if is_of_connection || matches!(name.as_str(), "keep-alive" | "proxy-connection") {
            continue;
        }
        into.append(name, value);
    }
    Ok(framing)
}

/// More than `proxy::http` lets anybody send, with what it adds.
const FIELDS_MOST: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    fn request_text(request: Request<()>, has_ended: bool) -> Result<(String, Framing), Malformed> {
        let mut out = Vec::new();
        let framing = write_request(&request.into_parts().0, has_ended, &mut out)?;
        Ok((String::from_utf8(out).unwrap(), framing))
    }

    #[test]
    fn a_request_reads_as_one_of_http_1_1() {
        let get = Request::get("https://a.example/x?y=1")
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        let (text, framing) = request_text(get.header("te", "trailers").body(()).unwrap(), true).unwrap();
        assert_eq!(
            text,
            "GET /x?y=1 HTTP/1.1\r\nhost: a.example\r\ncookie: a=1; b=2\r\nte: trailers\r\n\r\n"
        );
        assert_eq!(framing, Framing::None);
        let post = Request::post("http://a.example:8080")
            .header("host", "A.example:8080")
            .body(())
            .unwrap();
        let (text, framing) = request_text(post, false).unwrap();
        assert_eq!(
            text,
            "POST / HTTP/1.1\r\nhost: a.example:8080\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        assert_eq!(framing, Framing::Chunked);
        let put = Request::put("/p")
            .header("host", "b.example")
            .header("content-length", "7")
            .body(())
            .unwrap();
        let (text, framing) = request_text(put, false).unwrap();
        assert_eq!(text, "PUT /p HTTP/1.1\r\nhost: b.example\r\ncontent-length: 7\r\n\r\n");
        assert_eq!(framing, Framing::Length(7));
    }

    #[test]
    fn a_host_beside_another_authority_is_malformed() {
        let get = Request::get("https://a.example/")
            .header("host", "b.example")
            .body(())
            .unwrap();
        assert_eq!(request_text(get, true), Err(Malformed));
    }

    #[test]
    fn a_response_loses_what_is_of_one_connection() {
        let head = b"HTTP/1.1 200 OK\r\nServer: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 5\r\n\r\n";
        let (response, framing) = read_response(head, false).unwrap();
        assert_eq!((response.status(), framing), (StatusCode::OK, Framing::Chunked));
        let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["server"]);
        let head = b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(read_response(head, false).unwrap().1, Framing::None);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(read_response(head, false).unwrap().1, Framing::Length(3));
        assert_eq!(read_response(head, true).unwrap().1, Framing::None);
        assert_eq!(
            read_response(b"HTTP/1.1 200 OK\r\n\r\n", false).unwrap().1,
            Framing::UntilClose
        );
        assert!(read_response(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", false).is_err());
    }

    #[test]
    fn an_endpoint_is_asked_by_authority_and_told_that_trailers_are_taken() {
        let head = b"POST /a?b HTTP/1.1\r\nHost: a.example\r\nConnection: TE\r\nContent-Length: 2\r\nX-A: 1\r\n\r\n";
        let (request, framing) = read_request(head, "http").unwrap();
        assert_eq!(request.uri(), "http://a.example/a?b");
        assert_eq!(framing, Framing::Length(2));
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "te", "x-a"]);
        assert!(
            read_request(b"GET / HTTP/1.1\r\n\r\n", "http").is_err(),
            "without a host"
        );
    }

    #[test]
    fn trailers_go_there_and_back() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let mut out = Vec::new();
        write_trailers(Some(&trailers), &mut out);
        assert_eq!(out, b"0\r\ngrpc-status: 0\r\n\r\n");
        assert_eq!(read_trailers(&out[3..]).unwrap(), trailers);
    }
}

//! Responses that the proxy makes itself: errors with a short body, and the few words it may have to say in between.

use super::fields::push_decimal;

/// Tells a client that waits to go on with the body. For a proxy that wants the body before an endpoint has asked.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A response with a line of text, such as `503 no healthy endpoint for service my-web`.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    pub status: u16,
    /// What happened, for a person. Goes into the body only, so it may hold any character.
    pub text: &'a str,
    pub keep_alive: bool,
    /// A field of its head besides, without its end of line; none if it is empty.
    pub field: &'a str,
    /// Whether the request was HEAD: the same head, no body.
    pub to_head: bool,
}

impl Reply<'_> {
    pub fn write(&self, out: &mut Vec<u8>) {
        push_status_line(self.status, out);
        out.extend_from_slice(b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: ");
        push_decimal(self.text.len() as u64 + 5, out);
        out.extend_from_slice(b"\r\n");
        push_connection(self.keep_alive, out);
        if !self.field.is_empty() {
            out.extend_from_slice(self.field.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !self.to_head {
            push_code(self.status, out);
            out.push(b' ');
            out.extend_from_slice(self.text.as_bytes());
            out.push(b'\n');
        }
    }
}

/// Sends a client elsewhere: `location` is a URI without spaces and control characters.
pub fn write_redirect(status: u16, location: &str, keep_alive: bool, out: &mut Vec<u8>) {
    push_status_line(status, out);
    out.extend_from_slice(b"Location: ");
    out.extend_from_slice(location.as_bytes());
    out.extend_from_slice(b"\r\nContent-Length: 0\r\n");
    push_connection(keep_alive, out);
    out.extend_from_slice(b"\r\n");
}

/// Tells an authority that a name is ours (RFC 8555, 8.3), on a connection that ends with it.
pub fn write_challenge(answer: &str, to_head: bool, out: &mut Vec<u8>) {
    push_status_line(200, out);
    out.extend_from_slice(b"Content-Type: application/octet-stream\r\nContent-Length: ");
    push_decimal(answer.len() as u64, out);
    out.extend_from_slice(b"\r\n");
    push_connection(false, out);
    out.extend_from_slice(b"\r\n");
    if !to_head {
        out.extend_from_slice(answer.as_bytes());
    }
}

/// Answers an OPTIONS request whose Max-Forwards is used up.
pub fn write_options_reply(keep_alive: bool, out: &mut Vec<u8>) {
    push_status_line(200, out);
    out.extend_from_slice(b"Content-Length: 0\r\n");
    push_connection(keep_alive, out);
    out.extend_from_slice(b"\r\n");
}

fn push_status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_code(status, out);
    out.push(b' ');
    out.extend_from_slice(phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Three digits, always: the length of the body counts on it.
fn push_code(status: u16, out: &mut Vec<u8>) {
    debug_assert!((100..=999).contains(&status));
    push_decimal(u64::from(status.clamp(100, 999)), out);
}

fn push_connection(keep_alive: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(match keep_alive {
        true => b"Connection: keep-alive\r\n",
        false => b"Connection: close\r\n",
    });
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_whole() {
        let mut reply = Reply {
            status: 503,
            text: "no healthy endpoint for service my-web",
            keep_alive: true,
            field: "",
            to_head: false,
        };
        let mut out = Vec::new();
        reply.write(&mut out);
        let body = "503 no healthy endpoint for service my-web\n";
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: keep-alive\r\n\r\n",
            body.len()
        );
        assert_eq!(String::from_utf8_lossy(&out), format!("{head}{body}"));
        out.clear();
        reply.to_head = true;
        reply.write(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), head);
        out.clear();
        reply.field = "Retry-After: 1";
        reply.write(&mut out);
        let with_field = head.replace("\r\n\r\n", "\r\nRetry-After: 1\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&out), with_field);
    }
}

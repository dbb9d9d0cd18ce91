//! What a request says of the endpoint that it is to have, read from the head that is sent there: fields that are not sent on
//! say nothing. And what it is told of that one.

use crate::model::{SameSite, Sticky};
use crate::routing::{Endpoint, Mark, Service};

/// The field by which a client is told where it is: none where its cookie says so already.
#[inline(always)]
pub(super) fn set_cookie(service: &Service, endpoint: &Endpoint, said: Option<Mark>) -> Option<Box<str>> {
    let sticky = service.spec().sticky.as_ref()?;
    cookie_of(sticky, service, endpoint, said)
}

fn cookie_of(sticky: &Sticky, service: &Service, endpoint: &Endpoint, said: Option<Mark>) -> Option<Box<str>> {
    let mark = service.mark_of(endpoint).filter(|mark| said != Some(*mark))?;
    let secure = if sticky.secure { "; Secure" } else { "" };
    let http_only = if sticky.http_only { "; HttpOnly" } else { "" };
    let same_site = match sticky.same_site.map(SameSite::as_str) {
        Some(word) => format!("; SameSite={word}"),
        None => String::new(),
    };
    let name = sticky.cookie.as_str();
    Some(format!("Set-Cookie: {name}={mark}; Path=/{secure}{http_only}{same_site}").into())
}

/// The value of the first field of this name; empty is none.
pub(super) fn field<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    fields(head, name).next().filter(|value| !value.is_empty())
}

/// The value of the field of this name, if there is one and no second.
pub(super) fn only_field<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    let mut values = fields(head, name);
    values.next().filter(|_| values.next().is_none())
}

/// The value of the first cookie of this name, as it was sent; empty is none.
pub(super) fn cookie<'h>(head: &'h [u8], name: &str) -> Option<&'h [u8]> {
    let pairs = fields(head, "cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (of, value) = pair.split_at(equals);
        (of.trim_ascii() == name.as_bytes()).then(|| value[1..].trim_ascii())
    });
    values.next().filter(|value| !value.is_empty())
}

pub(super) fn fields<'h>(head: &'h [u8], name: &str) -> impl Iterator<Item = &'h [u8]> {
    let lines = head.split(|byte| *byte == b'\n');
    // The request's own line has no name, and after an empty one the body begins.
    let lines = lines.skip(1).take_while(|line| !line.trim_ascii().is_empty());
    lines.filter_map(move |line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (of, value) = line.split_at(colon);
        of.eq_ignore_ascii_case(name.as_bytes())
            .then(|| value[1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_cookies_are_found_by_their_names() {
        let head = b"GET /x:1 HTTP/1.1\r\nHost: a\r\nX-User:  u 1 \r\ncookie: a=1;b=2=3; c=\r\nCookie: d=4\r\n\r\nX-Other: 1\r\n";
        let of_field = |name| field(head, name).map(|value| String::from_utf8_lossy(value).into_owned());
        let of_cookie = |name| cookie(head, name).map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(of_field("x-user").as_deref(), Some("u 1"));
        assert_eq!((of_field("x-other"), of_field("get /x")), (None, None));
        for (name, value) in [
            ("a", Some("1")),
            ("b", Some("2=3")),
            ("c", None),
            ("d", Some("4")),
            ("A", None),
        ] {
            assert_eq!(of_cookie(name).as_deref(), value, "{name}");
        }
    }
}

//! From a rule's text to its term: matchers with arguments in backticks or quotes, `&&`, `||`, `!`, parentheses.

use std::net::IpAddr;

use ipnet::IpNet;

use super::pattern::of_braces;
use super::{Matcher, Pattern, Term};

/// Errors: what was expected, in words, with the place.
pub(super) fn parse(text: &str) -> Result<Term, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("a rule of at most {BYTES_MAX} bytes"));
    }
    let mut reader = Reader { text, at: 0 };
    let term = reader.any(0)?;
    reader.space();
    if !reader.rest().is_empty() {
        return Err(reader.expected("&&, || or the end"));
    }
    if term.any(&Matcher::is_of_connections) && term.any(&Matcher::is_of_requests) {
        return Err(
            "HostSNI, HostSNIRegexp and ClientIP alone, or none of the former: a connection has no Host, Path and the like".to_owned(),
        );
    }
    Ok(term)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Whether it was there; then it is behind.
    fn skip(&mut self, what: &str) -> bool {
        self.space();
        let is_there = self.rest().starts_with(what);
        if is_there {
            self.at += what.len();
        }
        is_there
    }

    fn expected(&self, what: &str) -> String {
        let rest = self.rest();
        match rest.chars().next() {
            None => format!("{what} behind it"),
            Some(_) => {
                let found: String = rest.chars().take(SHOWN_CHARS).collect();
                format!("{what} instead of {found:?} at byte {}", self.at)
            }
        }
    }

    fn any(&mut self, depth: usize) -> Result<Term, String> {
        let mut terms = vec![self.all(depth)?];
        while self.skip("||") {
            terms.push(self.all(depth)?);
        }
        Ok(Term::Any(terms))
    }

    fn all(&mut self, depth: usize) -> Result<Term, String> {
        let mut terms = vec![self.one(depth)?];
        while self.skip("&&") {
            terms.push(self.one(depth)?);
        }
        Ok(Term::All(terms))
    }

    fn one(&mut self, depth: usize) -> Result<Term, String> {
        if depth > DEPTH_MAX {
            return Err(format!("at most {DEPTH_MAX} parentheses and ! around one another"));
        }
        if self.skip("!") {
            return Ok(Term::Not(Box::new(self.one(depth + 1)?)));
        }
        if self.skip("(") {
            let term = self.any(depth + 1)?;
            return match self.skip(")") {
                true => Ok(term),
                false => Err(self.expected("a closing parenthesis")),
            };
        }
        self.matcher()
    }

    fn matcher(&mut self) -> Result<Term, String> {
        self.space();
        let name_at = self.at;
        let end = self.rest().find(|c: char| !c.is_ascii_alphanumeric());
        let name = &self.rest()[..end.unwrap_or_else(|| self.rest().len())];
        if name.is_empty() {
            return Err(self.expected(A_MATCHER));
        }
        self.at += name.len();
        if !self.skip("(") {
            return Err(self.expected(&format!("arguments of {name} in parentheses")));
        }
        let mut arguments = Vec::new();
        while !self.skip(")") {
            if !arguments.is_empty() && !self.skip(",") {
                return Err(self.expected("a comma or a closing parenthesis"));
            }
            arguments.push(self.string()?);
        }
        term_of(name, &arguments).map_err(|expected| format!("{expected}, at byte {name_at}"))
    }

    fn string(&mut self) -> Result<String, String> {
        self.space();
        if self.skip("`") {
            let Some((raw, _)) = self.rest().split_once('`') else {
                return Err("a closing backtick behind it".to_owned());
            };
            self.at += raw.len() + 1;
            return Ok(raw.to_owned());
        }
        if !self.skip("\"") {
            return Err(self.expected("an argument in backticks or quotes"));
        }
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\'))) => out.push(escaped),
                    _ => return Err(format!("\\\" or \\\\ at byte {}, or backticks around", self.at + at)),
                },
                c => out.push(c),
            }
        }
        Err("a closing quote behind it".to_owned())
    }
}

/// Errors: what was expected.
fn term_of(name: &str, arguments: &[String]) -> Result<Term, String> {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let any = |one: fn(&str) -> Result<Matcher, String>| match arguments {
        [] => Err(format!("an argument of {name}")),
        some => {
            let terms: Result<Vec<Term>, String> = some.iter().map(|text| one(text).map(Term::Is)).collect();
            Ok(Term::Any(terms?))
        }
    };
    match () {
        () if is("Host") || is("HostHeader") => any(host),
        () if is("HostRegexp") => any(host_regexp),
        () if is("Path") => any(|text| path(text, false)),
        () if is("PathPrefix") => any(|text| path(text, true)),
        () if is("PathRegexp") => any(|text| Pattern::new(text, false).map(Matcher::PathRegexp)),
        () if is("Method") => any(method),
        () if is("ClientIP") => any(client),
        () if is("Header") || is("Headers") => {
            let (field, value) = two(name, arguments)?;
            Ok(Term::Is(Matcher::Header(field_name(field)?, value.into())))
        }
        () if is("HeaderRegexp") || is("HeadersRegexp") => {
            let (field, value) = two(name, arguments)?;
            Ok(Term::Is(Matcher::HeaderRegexp(
                field_name(field)?,
                Pattern::new(value, false)?,
            )))
        }
        () if is("Query") => query(arguments),
        () if is("QueryRegexp") => {
            let (key, value) = two(name, arguments)?;
            Ok(Term::Is(Matcher::QueryRegexp(key.into(), Pattern::new(value, false)?)))
        }
        () if is("HostSNI") => any(sni),
        () if is("HostSNIRegexp") => any(sni_regexp),
        () => Err(format!("{A_MATCHER} instead of {name}")),
    }
}

fn two<'a>(name: &str, arguments: &'a [String]) -> Result<(&'a str, &'a str), String> {
    match arguments {
        [first, second] => Ok((first, second)),
        other => Err(format!("two arguments of {name} instead of {}", other.len())),
    }
}

fn host(text: &str) -> Result<Matcher, String> {
    host_name(text, "HostRegexp").map(Matcher::Host)
}

/// `several`: what there is for more than one.
fn host_name(text: &str, several: &str) -> Result<Box<str>, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_literal = name.starts_with('[') && name.ends_with(']');
    let inner =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.') || (is_literal && b"[]:".contains(&b));
    match !name.is_empty() && name.bytes().all(inner) {
        true => Ok(name.into()),
        false => Err(format!(
            "a host name in ASCII without a port instead of {text:?} (for several of a domain: {several})"
        )),
    }
}

fn host_regexp(text: &str) -> Result<Matcher, String> {
    host_pattern(text).map(Matcher::HostRegexp)
}

fn host_pattern(text: &str) -> Result<Pattern, String> {
    let translated = of_braces(text, "[^.]+", false);
    Pattern::new(translated.as_deref().unwrap_or(text), true)
}

fn sni(text: &str) -> Result<Matcher, String> {
    match text {
        "*" => Ok(Matcher::AnySni),
        name => host_name(name, "HostSNIRegexp; for all: *").map(Matcher::HostSni),
    }
}

fn sni_regexp(text: &str) -> Result<Matcher, String> {
    host_pattern(text).map(Matcher::HostSniRegexp)
}

fn path(text: &str, is_prefix: bool) -> Result<Matcher, String> {
    if !text.starts_with('/') {
        return Err(format!("a path that begins with / instead of {text:?}"));
    }
    if let Some(translated) = of_braces(text, "[^/]+", is_prefix) {
        return Pattern::new(&translated, false).map(Matcher::PathRegexp);
    }
    // As requests' are read (`proxy::http::asked`).
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    if text.contains(['?', '#', '%', '\\']) || text.contains("//") || text.split('/').any(is_dots) {
        return Err(format!(
            "a path as it is read, decoded and without ?, dot segments and double slashes, instead of {text:?}"
        ));
    }
    Ok(match is_prefix {
        true => Matcher::PathPrefix(text.into()),
        false => Matcher::Path(text.into()),
    })
}

fn method(text: &str) -> Result<Matcher, String> {
    match !text.is_empty() && text.bytes().all(is_token_byte) {
        true => Ok(Matcher::Method(text.to_ascii_uppercase().into())),
        false => Err(format!("a method such as GET instead of {text:?}")),
    }
}

fn client(text: &str) -> Result<Matcher, String> {
    let alone = || text.parse::<IpAddr>().map(IpNet::from);
    match text.parse::<IpNet>().or_else(|_| alone()) {
        Ok(net) => Ok(Matcher::ClientIp(net.trunc())),
        Err(_) => Err(format!(
            "an address or a network such as 10.0.0.0/8 instead of {text:?}"
        )),
    }
}

fn field_name(text: &str) -> Result<Box<str>, String> {
    match !text.is_empty() && text.bytes().all(is_token_byte) {
        true => Ok(text.to_ascii_lowercase().into()),
        false => Err(format!("a header's name instead of {text:?}")),
    }
}

/// RFC 9110 5.6.2.
fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// `key`, or `key` and `value`; in Traefik 2 any number of `key=value`, all of which are asked for.
fn query(arguments: &[String]) -> Result<Term, String> {
    let is = |key: &str, value: Option<&str>| Term::Is(Matcher::Query(key.into(), value.map(Into::into)));
    if !arguments.is_empty() && arguments.iter().all(|text| text.contains('=')) {
        let pairs = arguments.iter().filter_map(|text| text.split_once('='));
        return Ok(Term::All(pairs.map(|(key, value)| is(key, Some(value))).collect()));
    }
    match arguments {
        [key] => Ok(is(key, None)),
        [key, value] => Ok(is(key, Some(value))),
        other => Err(format!(
            "a key, or a key and its value, in Query instead of {} arguments",
            other.len()
        )),
    }
}

const A_MATCHER: &str = "Host, HostRegexp, Path, PathPrefix, PathRegexp, Method, Header, HeaderRegexp, Query, QueryRegexp, ClientIP, HostSNI or HostSNIRegexp";
const BYTES_MAX: usize = 8 * 1024;
/// Each takes some of the stack.
const DEPTH_MAX: usize = 64;
const SHOWN_CHARS: usize = 16;

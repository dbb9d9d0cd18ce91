//! Sending clients elsewhere by a regular expression, as declared. Pure. Where a client is sent is a whole http or https URI, whatever it
//! has asked for, or nowhere.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::Uri;
use regex::bytes::{Regex, RegexBuilder};

/// A regular expression over the whole URI of a request, and what comes in the place of each part that it is found at.
pub struct Redirect {
    key: Key,
    regex: Regex,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    regex: Box<str>,
    replacement: Box<str>,
    is_permanent: bool,
}

/// Which of the two texts is wrong, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WrongRedirect {
    Regex(String),
    Replacement(String),
}

/// What comes of a replacement is no place that a client can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nowhere;

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

impl PartialEq for Redirect {
    fn eq(&self, other: &Redirect) -> bool {
        self.key == other.key
    }
}

impl Eq for Redirect {}

impl Redirect {
    /// `replacement`: with `$1` or `${name}` for groups, `$$` for a dollar. The same texts are compiled once for as long as anybody uses
    /// them, so that a task that comes or goes compiles nothing.
    pub fn new(regex: &str, replacement: &str, is_permanent: bool) -> Result<Arc<Redirect>, WrongRedirect> {
        let key = Key {
            regex: regex.into(),
            replacement: replacement.into(),
            is_permanent,
        };
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if let Some(redirect) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(redirect);
        }
        let redirect = Arc::new(Redirect {
            regex: compile(regex)?,
            key,
        });
        check_replacement(replacement, &redirect.regex)?;
        known.retain(|_, redirect| redirect.strong_count() > 0);
        known.insert(redirect.key.clone(), Arc::downgrade(&redirect));
        Ok(redirect)
    }

    /// The client may keep in mind where it was sent.
    pub fn is_permanent(&self) -> bool {
        self.key.is_permanent
    }

    /// Where a client is sent that asks for `uri`; `None`: nowhere else.
    ///
    /// Each match may read all that is left, whatever comes of it: what is read is bounded by how long `uri` may be, times how often
    /// the expression may be found in it.
    pub fn place(&self, uri: &str) -> Option<Result<String, Nowhere>> {
        if uri.len() > PLACE_LEN_MAX {
            return Some(Err(Nowhere));
        }
        let mut place = Vec::new();
        let mut at = 0;
        for (n, found) in self.regex.captures_iter(uri.as_bytes()).enumerate() {
            if n == MATCHES_MAX {
                return Some(Err(Nowhere));
            }
            let whole = found.get(0)?;
            place.extend_from_slice(&uri.as_bytes()[at..whole.start()]);
            found.expand(self.key.replacement.as_bytes(), &mut place);
            at = whole.end();
            if place.len() > PLACE_LEN_MAX {
                return Some(Err(Nowhere));
            }
        }
        place.extend_from_slice(&uri.as_bytes()[at..]);
        if place == uri.as_bytes() {
            return None;
        }
        let place = String::from_utf8(place).map_err(|_| Nowhere);
        Some(place.and_then(|place| is_place(&place).then_some(place).ok_or(Nowhere)))
    }
}

/// Whether it says itself whom it leads to, or that it is the same host (a path), and can stand in a head.
fn is_place(place: &str) -> bool {
    let is_of_same_host = place.starts_with('/') && !place.starts_with("//");
    let is_of_http = place.starts_with("http://") || place.starts_with("https://");
    let is_plain = place.len() <= PLACE_LEN_MAX && place.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    if is_of_same_host {
        return is_plain;
    }
    is_of_http
        && is_plain
        && place.parse::<Uri>().is_ok_and(|uri| {
            let authority = uri.authority();
            authority.is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
        })
}

/// Of a text what errors show.
pub fn part(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

fn compile(text: &str) -> Result<Regex, WrongRedirect> {
    if text.len() > TEXT_LEN_MAX {
        return Err(WrongRedirect::Regex(format!(
            "expected a regular expression of {TEXT_LEN_MAX} bytes at most"
        )));
    }
    let mut builder = RegexBuilder::new(text);
    builder
        .unicode(false)
        .size_limit(PROGRAM_BYTES_MAX)
        .dfa_size_limit(CACHE_BYTES_MAX);
    let regex = builder.build().map_err(|error| {
        let error = error.to_string();
        let last = error
            .lines()
            .next_back()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        WrongRedirect::Regex(format!("expected a regular expression ({})", part(last)))
    })?;
    // What a search keeps grows with groups times states.
    if regex.captures_len() > GROUPS_MAX + 1 {
        return Err(WrongRedirect::Regex(format!(
            "expected a regular expression with {GROUPS_MAX} groups at most: (?:...) where nothing is taken over"
        )));
    }
    match text.is_empty() {
        true => Err(WrongRedirect::Regex("expected a regular expression".to_owned())),
        false => Ok(regex),
    }
}

/// Names of groups are read as they will be: as long as they go on.
fn check_replacement(text: &str, regex: &Regex) -> Result<(), WrongRedirect> {
    let wrong = |expected: String| Err(WrongRedirect::Replacement(expected));
    let n_groups = text.bytes().filter(|b| *b == b'$').count();
    if text.is_empty()
        || text.len() > TEXT_LEN_MAX
        || n_groups > GROUPS_MAX
        || !text.bytes().all(|b| b.is_ascii_graphic())
    {
        return wrong(format!(
            "expected up to {TEXT_LEN_MAX} printable ASCII characters without spaces, and {GROUPS_MAX} $ at most, such as https://www.example.com/$1"
        ));
    }
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
            continue;
        }
        let name = match rest.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some((name, _)) => name,
            None => {
                let n = rest
                    .bytes()
                    .take_while(|b| b.is_ascii_alphanumeric() || *b == b'_')
                    .count();
                &rest[..n]
            }
        };
        let is_there = match name.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => regex.capture_names().flatten().any(|known| known == name),
        };
        if !is_there {
            return wrong(format!(
                "expected groups that the regular expression has, and not {:?}: ${{1}} where more letters follow, $$ for a dollar",
                part(name)
            ));
        }
    }
    Ok(())
}

static KNOWN: Mutex<Option<HashMap<Key, Weak<Redirect>>>> = Mutex::new(None);

/// Of an expression as compiled: an ordinary one takes 2 KiB, one with forty hosts 34.
const PROGRAM_BYTES_MAX: usize = 48 * 1024;
/// Of what a search remembers of an expression to go on faster.
const CACHE_BYTES_MAX: usize = 1 << 18;
const TEXT_LEN_MAX: usize = 2048;
const SHOWN_CHARS_MAX: usize = 64;
const MATCHES_MAX: usize = 16;
const PLACE_LEN_MAX: usize = 8 * 1024;
const GROUPS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(regex: &str, replacement: &str, uri: &str) -> Option<Result<String, Nowhere>> {
        Redirect::new(regex, replacement, false).unwrap().place(uri)
    }

    #[test]
    fn a_place_is_what_the_replacement_makes_of_the_uri() {
        for (regex, replacement, uri, expected) in [
            (
                "^https?://example.com/(.*)",
                "https://www.example.com/${1}",
                "http://example.com/a?b=c",
                "https://www.example.com/a?b=c",
            ),
            (
                "^http://(?P<host>[^/]+)/old",
                "https://$host/new",
                "http://a.test:8080/old/x",
                "https://a.test:8080/new/x",
            ),
            ("/old", "/new", "http://a/old/old", "http://a/new/new"),
            (".*", "https://b/", "http://a/x", "https://b/"),
            ("^http://a/(.*)$", "https://a/$$$1", "http://a/x", "https://a/$x"),
            (
                "^https?://[^/]+/old(.*)",
                "/new$1",
                "https://a:8443/old/x?y",
                "/new/x?y",
            ),
            ("^https?://[^/]+/old$", "/", "http://a/old", "/"),
        ] {
            assert_eq!(place(regex, replacement, uri), Some(Ok(expected.to_owned())), "{regex}");
        }
        for (regex, replacement, uri) in [
            ("^http://a/", "https://a/", "https://a/x"),
            ("^https?://a/(.*)", "https://a/$1", "https://a/x"),
        ] {
            assert_eq!(place(regex, replacement, uri), None, "{regex}");
        }
    }

    #[test]
    fn no_request_makes_a_place_that_is_none() {
        for (regex, replacement, uri) in [
            ("^http://a(/.*)", "$1", "http://a//evil.test/x"),
            ("^http://a/(.*)", "$1", "http://a/javascript:alert(1)"),
            ("^http://a/(.*)", "//$1", "http://a/evil.test"),
            ("^http://a/(.*)", "https://$1", "http://a/"),
            ("^http://a/(.*)", "https://$1", "http://a/user@evil.test"),
            ("^http://a/(.*)", "https://b$1", "http://a/@evil.test"),
            ("^http://a/(.*)", "https://b/$1", "http://a/x\r\nSet-Cookie: a=b"),
            ("^http://a/(.*)", "https://b/$1", "http://a/x y"),
            ("^http://a/(.*)", "https://b/$1", "http://a/\\evil"),
            (
                "^http://a/(.*)",
                "https://b/$1",
                &format!("http://a/{}", "x".repeat(9000)),
            ),
            ("x*", "y", &format!("http://a/{}", "z".repeat(60_000))),
            ("x", "yyyyyyyyyy", &format!("http://a/{}", "x".repeat(60_000))),
            ("(.*[^a])|a", "$1", &format!("http://x/{}", "a".repeat(30_000))),
            ("(.*[^a])|a", "$1", &format!("http://x/{}", "a".repeat(8_000))),
            ("a", "b", &format!("http://x/{}", "a".repeat(17))),
            ("^https?://[^/]+(.*)", "/$1", "http://a/evil.test"),
            ("^https?://[^/]+/(.*)", "/$1", "http://a/\\evil.test"),
            ("^https?://[^/]+/(.*)", "/$1", "http://a/x\r\nSet-Cookie: a=b"),
            ("^https?://[^/]+/(.*)", "new/$1", "http://a/x"),
        ] {
            assert_eq!(
                place(regex, replacement, uri),
                Some(Err(Nowhere)),
                "{regex} {replacement}"
            );
        }
    }

    #[test]
    fn what_people_write_is_taken() {
        let hosts = (0..40).map(|n| format!("www{n}\\.example\\.com")).collect::<Vec<_>>();
        for regex in [
            "^https?://(?:www\\.)?(.+)$",
            "(?i)^https?://([^/:]+)(?::[0-9]{1,5})?/([a-z0-9_-]{1,64})/(\\d{4})/(\\d{2})/(.*)$",
            "^https://([^/]+)/\\.well-known/(card|cal)dav$",
            &"(a)".repeat(16),
            &format!("^https?://(?:{})/(.*)", hosts.join("|")),
        ] {
            assert!(Redirect::new(regex, "https://a/$1", false).is_ok(), "{regex}");
        }
    }

    #[test]
    fn what_could_not_work_is_refused() {
        for regex in [
            "(",
            "",
            "(?:a{1000}){1000}",
            "(?=a)",
            &"()".repeat(17),
            &"()".repeat(2000),
            &"a".repeat(2049),
            &format!("(?P<{}", "n".repeat(2000)),
        ] {
            let wrong = Redirect::new(regex, "x", false).unwrap_err();
            assert!(
                matches!(&wrong, WrongRedirect::Regex(expected) if expected.len() < 200),
                "{regex}: {wrong:?}"
            );
        }
        let long_name = format!("${}", "n".repeat(2000));
        let wrong = Redirect::new("^(a)", &long_name, false).unwrap_err();
        assert!(matches!(wrong, WrongRedirect::Replacement(expected) if expected.len() < 250));
        assert_eq!(
            (part(&"ü".repeat(65)), part("a")),
            (format!("{}...", "ü".repeat(64)), "a".to_owned())
        );
        for replacement in [
            "",
            "a b",
            "a\nb",
            "$2",
            "$1x",
            "$name",
            "ü",
            &"$1".repeat(17),
            &"x".repeat(2049),
        ] {
            let wrong = Redirect::new("^(a)", replacement, false).unwrap_err();
            assert!(
                matches!(wrong, WrongRedirect::Replacement(_)),
                "{replacement}: {wrong:?}"
            );
        }
        let one = Redirect::new("^once-only", "https://a/", true).unwrap();
        let same = Redirect::new("^once-only", "https://a/", true).unwrap();
        assert!(Arc::ptr_eq(&one, &same) && one.is_permanent());
        assert_ne!(*one, *Redirect::new("^once-only", "https://a/", false).unwrap());
    }
}

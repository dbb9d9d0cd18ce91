//! Regular expressions of rules, as Go's but for what few use (`&&` and `--` in a class), and what Traefik 2 wrote in braces.

use std::cmp::Ordering;
use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// A regular expression over bytes; `\d`, `\w` and the like are ASCII's, as Go's are.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

impl Pattern {
    /// Errors: what was expected, in words.
    pub(super) fn new(text: &str, is_case_ignored: bool) -> Result<Pattern, String> {
        let mut builder = RegexBuilder::new(text);
        builder
            .unicode(false)
            .case_insensitive(is_case_ignored)
            .size_limit(PROGRAM_BYTES_MAX)
            .dfa_size_limit(CACHE_BYTES_MAX);
        let regex = builder
            .build()
            .map_err(|error| format!("a regular expression instead of {text:?} ({})", last_line(&error)))?;
        Ok(Pattern {
            text: text.into(),
            regex,
        })
    }

    /// Whether it is found anywhere, as Go's MatchString has it.
    pub(super) fn is_in(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }
}

/// The rest of it shows where, over several lines.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines()
        .next_back()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned()
}

/// A template of Traefik 2, such as `{name:[a-z]+}.example.test`, as a regular expression of the whole; `None`: there are no
/// names in braces. `part`: what a name without an expression stands for.
pub(super) fn of_braces(text: &str, part: &str, is_prefix: bool) -> Option<String> {
    let mut out = String::from("^");
    let (mut rest, mut is_any) = (text, false);
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        let close = closing(from)?;
        let inside = &from[1..close];
        let (name, expression) = inside.split_once(':').unwrap_or((inside, part));
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !begins
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            return None;
        }
        out.push_str(&regex::escape(before));
        out.push_str("(?:");
        out.push_str(expression);
        out.push(')');
        rest = &from[close + 1..];
        is_any = true;
    }
    out.push_str(&regex::escape(rest));
    if !is_prefix {
        out.push('$');
    }
    is_any.then_some(out)
}

/// Where the brace that `text` begins with is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Pattern) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Pattern) -> Ordering {
        self.text.cmp(&other.text)
    }
}

/// Of the compiled expression: what it costs to look for one grows with it, and `(a{1000}){1000}` would take gigabytes.
const PROGRAM_BYTES_MAX: usize = 64 << 10;
/// What each thread may remember of it.
const CACHE_BYTES_MAX: usize = 256 << 10;

//! Text and actions, and the words of an action. Not here: what they mean together (`parse`).

/// A stretch of text, or an action.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Action(Vec<Word>),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    Space,
    /// A name, a keyword, `true`, `false` or `nil`.
    Name(String),
    /// `.name`
    Field(String),
    /// `$name`; empty: `$`.
    Variable(String),
    Dot,
    Text(String),
    Char(char),
    Number(String),
    Declare,
    Assign,
    Pipe,
    Comma,
    Open,
    Close,
}

pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trims = false;
    while let Some((before, after)) = rest.split_once("{{") {
        let trims_before = is_trim_at_start(after);
        let before = if trims {
            before.trim_start_matches(SPACES)
        } else {
            before
        };
        let before = if trims_before {
            before.trim_end_matches(SPACES)
        } else {
            before
        };
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let after = if trims_before { &after[1..] } else { after };
        let comment = if trims_before {
            after.trim_start_matches(SPACES)
        } else {
            after
        };
        if let Some(comment) = comment.strip_prefix("/*") {
            let (_, end) = comment.split_once("*/").ok_or("unclosed comment")?;
            (rest, trims) = end_of_comment(end)?;
            continue;
        }
        let (words, end, trims_after) = words(after)?;
        pieces.push(Piece::Action(words));
        (rest, trims) = (end, trims_after);
    }
    let rest = if trims { rest.trim_start_matches(SPACES) } else { rest };
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// What follows, and whether white space before it goes.
fn end_of_comment(rest: &str) -> Result<(&str, bool), String> {
    if let Some(rest) = rest.strip_prefix("}}") {
        return Ok((rest, false));
    }
    let trimmed = rest.trim_start_matches(SPACES);
    match trimmed.strip_prefix("-}}") {
        Some(end) if trimmed.len() < rest.len() => Ok((end, true)),
        _ => Err("comment ends before closing delimiter".to_owned()),
    }
}

/// `{{- `
fn is_trim_at_start(rest: &str) -> bool {
    rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(SPACES))
}

/// Up to the end of the action; what follows it, and whether white space before that goes.
fn words(text: &str) -> Result<(Vec<Word>, &str, bool), String> {
    let mut words = Vec::new();
    let mut rest = text;
    let mut depth = 0_u32;
    loop {
        let Some(first) = rest.chars().next() else {
            return Err("unclosed action".to_owned());
        };
        if let Some(end) = rest.strip_prefix("}}") {
            return match depth {
                0 => Ok((words, end, false)),
                _ => Err("unclosed left paren".to_owned()),
            };
        }
        if SPACES.contains(&first) {
            let trimmed = rest.trim_start_matches(SPACES);
            if let Some(end) = trimmed.strip_prefix("-}}") {
                return match depth {
                    0 => Ok((words, end, true)),
                    _ => Err("unclosed left paren".to_owned()),
                };
            }
            words.push(Word::Space);
            rest = trimmed;
            continue;
        }
        let (word, length) = word(rest)?;
        match word {
            Word::Open => depth += 1,
            Word::Close => depth = depth.checked_sub(1).ok_or("unexpected right paren")?,
            _ => {}
        }
        words.push(word);
        rest = &rest[length..];
    }
}

/// The word at the front, and its length.
fn word(rest: &str) -> Result<(Word, usize), String> {
    let first = rest.chars().next().unwrap_or_default();
    let mark = |word| Ok((word, first.len_utf8()));
    match first {
        '=' => mark(Word::Assign),
        '|' => mark(Word::Pipe),
        ',' => mark(Word::Comma),
        '(' => mark(Word::Open),
        ')' => mark(Word::Close),
        ':' if rest.starts_with(":=") => Ok((Word::Declare, 2)),
        ':' => Err("expected :=".to_owned()),
        '"' => quoted(rest),
        '`' => {
            let (text, _) = rest[1..].split_once('`').ok_or("unterminated raw quoted string")?;
            Ok((Word::Text(text.to_owned()), text.len() + 2))
        }
        '\'' => character(rest),
        '$' => {
            let name = name_at(&rest[1..]);
            ends_well(&rest[1 + name.len()..])?;
            Ok((Word::Variable(name.to_owned()), 1 + name.len()))
        }
        '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
            let name = name_at(&rest[1..]);
            ends_well(&rest[1 + name.len()..])?;
            let word = if name.is_empty() {
                Word::Dot
            } else {
                Word::Field(name.to_owned())
            };
            Ok((word, 1 + name.len()))
        }
        '+' | '-' | '.' | '0'..='9' => {
            let length = number_at(rest);
            ends_well(&rest[length..]).map_err(|_| format!("bad number syntax: {:?}", &rest[..length + 1]))?;
            Ok((Word::Number(rest[..length].to_owned()), length))
        }
        _ if first == '_' || first.is_alphabetic() => {
            let name = name_at(rest);
            ends_well(&rest[name.len()..])?;
            Ok((Word::Name(name.to_owned()), name.len()))
        }
        _ => Err(format!("unexpected {first:?} in an action")),
    }
}

/// Whether a word may end before `rest`.
fn ends_well(rest: &str) -> Result<(), String> {
    match rest.chars().next() {
        None => Ok(()),
        Some(c) if SPACES.contains(&c) || ".,|:=()".contains(c) || rest.starts_with("}}") => Ok(()),
        Some(c) => Err(format!("bad character {c:?}")),
    }
}

fn name_at(text: &str) -> &str {
    let end = text.find(|c: char| !(c == '_' || c.is_alphanumeric()));
    &text[..end.unwrap_or(text.len())]
}

/// How many bytes look like a number.
fn number_at(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = usize::from(text.starts_with(['+', '-']));
    let lower = text[at..].get(..2).unwrap_or_default().to_ascii_lowercase();
    let is_digit: fn(&u8) -> bool = match lower.as_str() {
        "0x" => |b| b.is_ascii_hexdigit() || *b == b'_',
        "0o" => |b| matches!(b, b'0'..=b'7' | b'_'),
        "0b" => |b| matches!(b, b'0' | b'1' | b'_'),
        _ => |b| b.is_ascii_digit() || *b == b'_',
    };
    let is_plain = !matches!(lower.as_str(), "0x" | "0o" | "0b");
    if !is_plain {
        at += 2;
    }
    let digits = |at: usize| bytes[at..].iter().take_while(|byte| is_digit(byte)).count();
    at += digits(at);
    if is_plain && bytes.get(at) == Some(&b'.') {
        at += 1;
        at += digits(at);
    }
    if is_plain && matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        at += digits(at);
    }
    at
}

/// A string in double quotes.
fn quoted(rest: &str) -> Result<(Word, usize), String> {
    let mut bytes = Vec::new();
    let mut chars = rest[1..].char_indices();
    loop {
        match chars.next() {
            None | Some((_, '\n')) => return Err("unterminated quoted string".to_owned()),
            Some((at, '"')) => {
                let text = String::from_utf8(bytes).map_err(|_| "a quoted string that is not UTF-8".to_owned())?;
                return Ok((Word::Text(text), at + 2));
            }
            Some((at, '\\')) => {
                let (escaped, length) = escaped(&rest[1 + at..], '"')?;
                bytes.extend(escaped);
                while chars.clone().next().is_some_and(|(next, _)| next < at + length) {
                    chars.next();
                }
            }
            Some((_, c)) => bytes.extend(c.to_string().bytes()),
        }
    }
}

/// One in single quotes.
fn character(rest: &str) -> Result<(Word, usize), String> {
    let wrong = || {
        format!(
            "malformed character constant: {:?}",
            rest.chars().take(8).collect::<String>()
        )
    };
    let first = rest[1..].chars().next().ok_or_else(wrong)?;
    let (bytes, length) = match first {
        '\'' | '\n' => return Err(wrong()),
        '\\' => escaped(&rest[1..], '\'')?,
        c => (c.to_string().into_bytes(), c.len_utf8()),
    };
    if !rest[1 + length..].starts_with('\'') {
        return Err(wrong());
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    Ok((Word::Char(text.chars().next().ok_or_else(wrong)?), length + 2))
}

/// What stands for what begins with a backslash, and how many bytes that takes.
fn escaped(rest: &str, quote: char) -> Result<(Vec<u8>, usize), String> {
    let wrong = || "invalid syntax in a quoted string".to_owned();
    let kind = rest[1..].chars().next().ok_or_else(wrong)?;
    let plain = |byte: u8| Ok((vec![byte], 2));
    let number = |from: usize, n: usize, radix: u32| {
        let digits = rest.get(from..from + n).ok_or_else(wrong)?;
        let is_plain = digits.chars().all(|c| c.is_digit(radix));
        is_plain
            .then(|| u32::from_str_radix(digits, radix).ok())
            .flatten()
            .ok_or_else(wrong)
    };
    match kind {
        'a' => plain(7),
        'b' => plain(8),
        'f' => plain(12),
        'n' => plain(b'\n'),
        'r' => plain(b'\r'),
        't' => plain(b'\t'),
        'v' => plain(11),
        '\\' => plain(b'\\'),
        'x' => Ok((vec![u8::try_from(number(2, 2, 16)?).map_err(|_| wrong())?], 4)),
        'u' | 'U' => {
            let n = if kind == 'u' { 4 } else { 8 };
            let c = char::from_u32(number(2, n, 16)?).ok_or_else(wrong)?;
            Ok((c.to_string().into_bytes(), 2 + n))
        }
        '0'..='7' => Ok((vec![u8::try_from(number(1, 3, 8)?).map_err(|_| wrong())?], 4)),
        c if c == quote => plain(u8::try_from(c).map_err(|_| wrong())?),
        _ => Err(wrong()),
    }
}

/// White space that Go trims and that ends words.
const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];

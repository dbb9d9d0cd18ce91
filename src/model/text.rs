//! Text to value, for what services files, labels and flags have in common. Not here: the files themselves.

use std::borrow::Cow;
use std::time::Duration;

/// A value that could not be understood: what was given, and what would have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not valid: expected {expected}")]
pub struct InvalidValue {
    pub value: String,
    pub expected: Cow<'static, str>,
}

impl InvalidValue {
    pub fn new(value: impl Into<String>, expected: impl Into<Cow<'static, str>>) -> InvalidValue {
        InvalidValue {
            value: value.into(),
            expected: expected.into(),
        }
    }
}

/// The first `most` of `words`, with `between` them, and how many more there are: such as "a, b and 3 more".
pub fn first_of(words: &[impl AsRef<str>], most: usize, between: &str) -> String {
    let (first, more) = words.split_at(words.len().min(most));
    let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
    match more.len() {
        0 => first.join(between),
        n => format!("{} and {n} more", first.join(between)),
    }
}

/// The name that is spelled most like `name`, if one is much like it.
pub fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let scored = known.map(|known| (strsim::normalized_damerau_levenshtein(name, &known), known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score >= MUCH_LIKE).map(|(_, known)| known)
}

/// Of 1 for the same; two letters that changed places in a word of seven have 0.86.
const MUCH_LIKE: f64 = 0.7;

/// Parses a duration such as `500ms`, `10s`, `1m30s` or `0s`; a bare `0` is zero too.
///
/// Errors: `InvalidValue` for anything else, a bare number included (its unit would be a guess), and for more than a
/// hundred years, which no clock arithmetic survives.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidValue> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) | Err(_) => Err(InvalidValue::new(text, "a duration such as 500ms, 10s or 1m30s")),
    }
}

/// Writes a duration so that `parse_duration` reads the same value again.
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_many_are_named_and_the_others_counted() {
        let all = ["a", "b", "c"];
        assert_eq!(first_of(&all, 3, ", "), "a, b, c");
        assert_eq!(first_of(&all, 2, ", "), "a, b and 1 more");
        assert_eq!(first_of(&all[..0], 2, ", "), "");
    }

    #[test]
    fn durations_need_a_unit_and_an_end() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("0", 0),
            (" 2s ", 2000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "-1s", "s", "1 parsec", "999999999999y", "1e3s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn written_durations_are_read_back() {
        for millis in [0, 1, 500, 1500, 90_061_001] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}

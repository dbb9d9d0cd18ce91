//! Which answers are compressed on their way to clients, as declared. Pure. Not here: the bytes (`proxy::http`, `proxy::h1`).

use std::str::FromStr;
use std::sync::Arc;

use super::InvalidValue;
use super::balance::is_token;
use super::guards::BodyMost;

/// By gzip, for clients that take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compress {
    /// Answers of these types are, but for those of `except`.
    pub types: Arc<[MediaRange]>,
    pub except: Arc<[MediaRange]>,
    /// Answers that say a smaller length go on as they are. In bytes.
    pub min_size: u64,
}

impl Default for Compress {
    fn default() -> Compress {
        Compress {
            types: TYPES
                .iter()
                .map(|(kind, subtype)| MediaRange::of(kind, subtype))
                .collect(),
            except: Arc::default(),
            min_size: MIN_SIZE,
        }
    }
}

impl Compress {
    /// What nothing but a length makes of it: no answer is of no byte.
    pub fn set_min_size(&mut self, min_size: Option<BodyMost>) {
        self.min_size = min_size.map_or(self.min_size, BodyMost::bytes);
    }

    /// Whether answers are compressed that say this of themselves (Content-Type's value).
    pub fn takes(&self, content_type: &[u8]) -> bool {
        let essence = content_type
            .split(|b| *b == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii();
        let is_among = |ranges: &[MediaRange]| ranges.iter().any(|range| range.has(essence));
        is_among(&self.types) && !is_among(&self.except)
    }
}

/// `text/html`, or `text/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaRange {
    /// In lower case, as the other.
    kind: Box<str>,
    /// `None`: any.
    subtype: Option<Box<str>>,
}

impl MediaRange {
    fn of(kind: &str, subtype: &str) -> MediaRange {
        MediaRange {
            kind: kind.to_ascii_lowercase().into(),
            subtype: (subtype != "*").then(|| subtype.to_ascii_lowercase().into()),
        }
    }

    /// An event stream is only where it is named itself: each of them would hold a compressor's memory for as long as it lasts.
    fn has(&self, essence: &[u8]) -> bool {
        let Some(slash) = essence.iter().position(|b| *b == b'/') else {
            return false;
        };
        let (kind, subtype) = (&essence[..slash], &essence[slash + 1..]);
        kind.eq_ignore_ascii_case(self.kind.as_bytes())
            && match &self.subtype {
                Some(own) => subtype.eq_ignore_ascii_case(own.as_bytes()),
                None => !essence.eq_ignore_ascii_case(b"text/event-stream") && !is_grpc(kind, subtype),
            }
    }
}

impl FromStr for MediaRange {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<MediaRange, InvalidValue> {
        let parts = text.split_once('/');
        let is_token = |(kind, subtype): &(&str, &str)| is_token(kind) && *kind != "*" && is_token(subtype);
        match parts.filter(is_token) {
            Some((kind, subtype)) if !is_grpc(kind.as_bytes(), subtype.as_bytes()) => Ok(MediaRange::of(kind, subtype)),
            _ => Err(InvalidValue::new(
                text,
                "a media type such as text/html or text/* (gRPC compresses by itself)",
            )),
        }
    }
}

/// Its messages have a compression of their own, and its clients take no other.
fn is_grpc(kind: &[u8], subtype: &[u8]) -> bool {
    let begins = |begin: &[u8]| begin.eq_ignore_ascii_case(b"grpc");
    kind.eq_ignore_ascii_case(b"application") && subtype.get(..4).is_some_and(begins)
}

/// What is text, by another name or not, and not compressed in itself.
const TYPES: [(&str, &str); 15] = [
    ("text", "*"),
    ("application", "json"),
    ("application", "ld+json"),
    ("application", "problem+json"),
    ("application", "manifest+json"),
    ("application", "geo+json"),
    ("application", "javascript"),
    ("application", "x-javascript"),
    ("application", "xml"),
    ("application", "atom+xml"),
    ("application", "rss+xml"),
    ("application", "xhtml+xml"),
    ("application", "wasm"),
    ("image", "svg+xml"),
    ("font", "ttf"),
];

const MIN_SIZE: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_what_they_are_in_any_case_and_with_parameters() {
        let all = Compress::default();
        for yes in [
            "text/html",
            "Text/HTML; charset=utf-8",
            " application/json ;x=y",
            "image/svg+xml",
        ] {
            assert!(all.takes(yes.as_bytes()), "{yes}");
        }
        for no in [
            "",
            "text",
            "image/png",
            "application/grpc",
            "text/event-stream",
            "TEXT/Event-Stream;a",
            "application/json2",
        ] {
            assert!(!all.takes(no.as_bytes()), "{no}");
        }
        let some = Compress {
            types: ["text/*", "text/event-stream"].map(|text| text.parse().unwrap()).into(),
            except: ["text/css".parse().unwrap()].into(),
            ..Compress::default()
        };
        assert!(some.takes(b"text/event-stream") && some.takes(b"text/plain"));
        assert!(!some.takes(b"text/css") && !some.takes(b"application/json"));
        let any = Compress {
            types: ["application/*".parse().unwrap()].into(),
            ..Compress::default()
        };
        assert!(any.takes(b"application/json") && !any.takes(b"application/grpc+proto"));
        for wrong in [
            "",
            "text",
            "*/*",
            "text/",
            "/html",
            "text/a b",
            "application/grpc",
            "Application/GRPC-web",
        ] {
            assert!(wrong.parse::<MediaRange>().is_err(), "{wrong}");
        }
    }
}

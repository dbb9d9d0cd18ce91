//! What is wrong with a text that is no JSON, in the words of Go's reader, which are Docker's: clients and people know them. Not
//! here: what JSON says (`json`), and members of a wrong kind.

/// Where a text of JSON stops being one. `None`: nothing is wrong with its syntax, up to the end of its first value.
pub(super) fn fault(text: &[u8]) -> Option<String> {
    let mut reader = Reader { text, at: 0 };
    reader.value(0).err()
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

type Read = Result<(), String>;

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// The next byte, or that there is none.
    fn next(&mut self) -> Result<u8, String> {
        let byte = self.peek().ok_or_else(|| "unexpected EOF".to_owned())?;
        self.at += 1;
        Ok(byte)
    }

    /// The next byte that is no white space.
    fn next_word(&mut self) -> Result<u8, String> {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.next()
    }

    fn value(&mut self, depth: usize) -> Read {
        let first = self.next_word()?;
        self.value_from(first, depth)
    }

    fn value_from(&mut self, first: u8, depth: usize) -> Read {
        if depth > DEPTH_MAX {
            return Err("exceeded max depth".to_owned());
        }
        match first {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(),
            b'-' => match self.next()? {
                digit @ b'0'..=b'9' => self.number(digit),
                other => Err(invalid(other, "in numeric literal")),
            },
            b'0'..=b'9' => self.number(first),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            other => Err(invalid(other, "looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Read {
        let mut first = self.next_word()?;
        if first == b'}' {
            return Ok(());
        }
        loop {
            if first != b'"' {
                return Err(invalid(first, "looking for beginning of object key string"));
            }
            self.string()?;
            match self.next_word()? {
                b':' => self.value(depth + 1)?,
                other => return Err(invalid(other, "after object key")),
            }
            match self.next_word()? {
                b'}' => return Ok(()),
                b',' => first = self.next_word()?,
                other => return Err(invalid(other, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Read {
        let mut first = self.next_word()?;
        if first == b']' {
            return Ok(());
        }
        loop {
            self.value_from(first, depth + 1)?;
            match self.next_word()? {
                b']' => return Ok(()),
                b',' => first = self.next_word()?,
                other => return Err(invalid(other, "after array element")),
            }
        }
    }

    fn string(&mut self) -> Read {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => match self.next()? {
                    b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                    b'u' => {
                        for _ in 0..4 {
                            let digit = self.next()?;
                            if !digit.is_ascii_hexdigit() {
                                return Err(invalid(digit, "in \\u hexadecimal character escape"));
                            }
                        }
                    }
                    other => return Err(invalid(other, "in string escape code")),
                },
                control @ ..0x20 => return Err(invalid(control, "in string literal")),
                _ => {}
            }
        }
    }

    /// After its first digit. It ends where something else begins.
    fn number(&mut self, first: u8) -> Read {
        if first != b'0' {
            self.digits();
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digit("after decimal point in numeric literal")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digit("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn digit(&mut self, place: &str) -> Read {
        match self.next()? {
            b'0'..=b'9' => {
                self.digits();
                Ok(())
            }
            other => Err(invalid(other, place)),
        }
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    /// After its first letter.
    fn literal(&mut self, word: &str) -> Read {
        for expected in word.bytes().skip(1) {
            let found = self.next()?;
            if found != expected {
                let expected = char::from(expected);
                return Err(invalid(found, &format!("in literal {word} (expecting '{expected}')")));
            }
        }
        Ok(())
    }
}

fn invalid(byte: u8, place: &str) -> String {
    let quoted = match byte {
        b'\'' => "\\'".to_owned(),
        b'"' => "\"".to_owned(),
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        b'\t' => "\\t".to_owned(),
        b'\\' => "\\\\".to_owned(),
        0x07 => "\\a".to_owned(),
        0x08 => "\\b".to_owned(),
        0x0b => "\\v".to_owned(),
        0x0c => "\\f".to_owned(),
        0..0x20 | 0x7f => format!("\\x{byte:02x}"),
        0x80..=0xa0 | 0xad => format!("\\u{byte:04x}"),
        // Go reads bytes, and shows each as a letter of its own.
        other => char::from(other).to_string(),
    };
    format!("invalid character '{quoted}' {place}")
}

/// As deep as our own reader goes; Go's goes to 10,000.
const DEPTH_MAX: usize = 127;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_in_gos_words() {
        for (text, said) in [
            ("x", "invalid character 'x' looking for beginning of value"),
            ("", "unexpected EOF"),
            ("{", "unexpected EOF"),
            ("{\"a\": 1", "unexpected EOF"),
            ("{a", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":}", "invalid character '}' looking for beginning of value"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            (
                "{\"a\":1,}",
                "invalid character '}' looking for beginning of object key string",
            ),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("[01]", "invalid character '1' after array element"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            (
                "\"\\u00g0\"",
                "invalid character 'g' in \\u hexadecimal character escape",
            ),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("trie", "invalid character 'i' in literal true (expecting 'u')"),
            ("\u{e9}", "invalid character 'Ã' looking for beginning of value"),
            ("'a'", "invalid character '\\'' looking for beginning of value"),
        ] {
            assert_eq!(fault(text.as_bytes()).as_deref(), Some(said), "{text}");
        }
        for good in [
            "{}",
            " [1, -2.5e+3, \"\\u00e9\\n\", null, true, false, {\"a\": []}] ",
            "0",
            "{} x",
        ] {
            assert_eq!(fault(good.as_bytes()), None, "{good}");
        }
        assert_eq!(
            fault("[".repeat(100_000).as_bytes()).as_deref(),
            Some("exceeded max depth")
        );
    }
}

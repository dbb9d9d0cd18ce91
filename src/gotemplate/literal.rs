//! Numbers as they stand in a template.

use super::value::Value;

/// A number as it stands in a template. Errors: it is none, or too large.
pub(super) fn read(text: &str) -> Result<Value, String> {
    let wrong = || format!("bad number syntax: {text:?}");
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text),
    };
    let lower = digits.to_ascii_lowercase();
    let starts_well = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let has_good_underscores = !digits.ends_with('_') && !digits.contains("__") && !digits.starts_with('_');
    if !starts_well || !has_good_underscores {
        return Err(wrong());
    }
    let (radix, rest) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit() || b == b'_') => {
            (8, &lower[1..])
        }
        _ => (10, lower.as_str()),
    };
    let plain = rest.replace('_', "");
    if radix == 10 && plain.contains(['.', 'e']) {
        // Underscores are for numbers whose base is told by a prefix, and for whole ones.
        if rest.contains('_') {
            return Err(wrong());
        }
        let number: f64 = format!("{sign}{plain}").parse().map_err(|_| wrong())?;
        return match number.is_finite() {
            true => Ok(Value::Float(number)),
            false => Err(wrong()),
        };
    }
    if radix == 10 && rest.contains('_') {
        // As Go's ParseInt with base 0 has it.
        return format!("{sign}{plain}")
            .parse::<i64>()
            .map(Value::Int)
            .map_err(|_| wrong());
    }
    match i64::from_str_radix(&format!("{sign}{plain}"), radix) {
        Ok(number) => Ok(Value::Int(number)),
        Err(_) if radix == 10 && !plain.is_empty() && plain.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("integer overflow: {text:?}"))
        }
        Err(_) => Err(wrong()),
    }
}

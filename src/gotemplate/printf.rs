//! `printf` as Go's fmt has it, for the values that there are.

use super::number;
use super::value::Value;

/// Between the percent sign and the verb.
#[derive(Debug, Clone, Copy, Default)]
struct Spec {
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Errors: a verb or a width that is not known here. What Go prints about values that do not fit is printed.
pub(super) fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let (spec, after) = spec(after)?;
        let Some(verb) = after.chars().next() else {
            out.push_str("%!(NOVERB)");
            rest = after;
            break;
        };
        rest = &after[verb.len_utf8()..];
        if verb == '%' {
            out.push('%');
            continue;
        }
        match values.next() {
            None => out.push_str(&format!("%!{verb}(MISSING)")),
            Some(value) => out.push_str(&one(verb, spec, value)?),
        }
        if out.len() > BYTES_MAX {
            return Err(format!("more than {BYTES_MAX} bytes"));
        }
    }
    out.push_str(rest);
    let more: Vec<String> = values.map(typed).collect();
    if !more.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", more.join(", ")));
    }
    Ok(out)
}

fn spec(text: &str) -> Result<(Spec, &str), String> {
    let mut spec = Spec::default();
    let mut rest = text;
    while let Some(flag) = rest.chars().next().filter(|c| "+-# 0".contains(*c)) {
        match flag {
            '+' => spec.plus = true,
            '-' => spec.minus = true,
            '#' => spec.sharp = true,
            ' ' => spec.space = true,
            _ => spec.zero = true,
        }
        rest = &rest[1..];
    }
    spec.zero &= !spec.minus;
    if let Some((width, after)) = digits(rest)? {
        (spec.width, rest) = (width, after);
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = digits(after)?.unwrap_or((0, after));
        (spec.precision, rest) = (Some(precision), after);
    }
    match rest.starts_with(['*', '[']) {
        true => Err(format!(
            "%{}: expected a width in digits",
            &text[..text.len() - rest.len() + 1]
        )),
        false => Ok((spec, rest)),
    }
}

fn digits(text: &str) -> Result<Option<(usize, &str)>, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Ok(None);
    }
    let number = text[..end].parse().ok().filter(|number| *number <= WIDTH_MAX);
    let number = number.ok_or_else(|| format!("{}: expected at most {WIDTH_MAX}", &text[..end]))?;
    Ok(Some((number, &text[end..])))
}

fn one(verb: char, spec: Spec, value: &Value) -> Result<String, String> {
    let is_known = "vsdqtxXobceEfFgGT".contains(verb);
    if !is_known || spec.sharp {
        let sharp = if spec.sharp { "#" } else { "" };
        return Err(format!(
            "%{sharp}{verb}: expected one of %v %s %d %q %t %x %X %o %b %c %e %f %g %T"
        ));
    }
    // As Go names a value that does not fit: formatted like one that does.
    let bad = || Ok(format!("%!{verb}({}={})", value.type_name(), one('v', spec, value)?));
    let text = match (verb, value) {
        ('T', value) => value.type_name().to_owned(),
        ('v', Value::Nil) => "<nil>".to_owned(),
        (_, Value::Nil) => return Ok(format!("%!{verb}(<nil>)")),
        ('v' | 'd', Value::Int(number)) => return Ok(integer(&number.unsigned_abs().to_string(), *number < 0, spec)),
        ('v' | 'd', Value::Byte(number)) => return Ok(integer(&number.to_string(), false, spec)),
        ('x', Value::Int(number)) => return Ok(integer(&format!("{:x}", number.unsigned_abs()), *number < 0, spec)),
        ('X', Value::Int(number)) => return Ok(integer(&format!("{:X}", number.unsigned_abs()), *number < 0, spec)),
        ('o', Value::Int(number)) => return Ok(integer(&format!("{:o}", number.unsigned_abs()), *number < 0, spec)),
        ('b', Value::Int(number)) => return Ok(integer(&format!("{:b}", number.unsigned_abs()), *number < 0, spec)),
        ('c', Value::Int(number)) => character(*number).to_string(),
        ('q', Value::Int(number)) => quoted_character(character(*number)),
        ('v' | 'g' | 'G' | 'e' | 'E' | 'f' | 'F', Value::Float(number)) => return Ok(float(verb, *number, spec)),
        ('v' | 's', Value::Text(text)) => shortened(text, spec),
        ('q', Value::Text(text)) => quoted(&shortened(text, spec)),
        ('x', Value::Text(text)) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
        ('X', Value::Text(text)) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
        ('v' | 't', Value::Bool(is_true)) => is_true.to_string(),
        ('v', Value::Struct(fields)) if spec.plus => {
            let fields = fields.iter().map(|(name, value)| format!("{name}:{value}"));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(" "))
        }
        // Of texts all through.
        ('v' | 's', Value::Map(_) | Value::Struct(_)) => value.to_string(),
        (_, Value::Map(_) | Value::Struct(_)) => {
            return Err(format!("%{verb} of a {} is not known here", value.type_name()));
        }
        ('x' | 'X' | 'b', Value::Float(_)) => return Err(format!("%{verb} of a float64 is not known here")),
        _ => return bad(),
    };
    Ok(padded(&text, spec))
}

/// As Go names a value that does not fit.
fn typed(value: &Value) -> String {
    match value {
        Value::Nil => "<nil>".to_owned(),
        value => format!("{}={value}", value.type_name()),
    }
}

fn integer(digits: &str, is_negative: bool, spec: Spec) -> String {
    let mut digits = match spec.precision {
        Some(0) if digits == "0" => return padded("", spec),
        Some(precision) => format!("{digits:0>precision$}"),
        None => digits.to_owned(),
    };
    let sign = sign(is_negative, spec);
    if spec.zero && spec.precision.is_none() {
        let width = spec.width.saturating_sub(sign.len());
        digits = format!("{digits:0>width$}");
    }
    padded(&format!("{sign}{digits}"), spec)
}

fn sign(is_negative: bool, spec: Spec) -> &'static str {
    match is_negative {
        true => "-",
        false if spec.plus => "+",
        false if spec.space => " ",
        false => "",
    }
}

fn float(verb: char, number: f64, spec: Spec) -> String {
    let size = number.abs();
    let text = match (verb, spec.precision) {
        ('f' | 'F', precision) => {
            let precision = precision.unwrap_or(6);
            format!("{size:.precision$}")
        }
        ('e' | 'E', precision) => number::scientific(size, precision.unwrap_or(6)),
        (_, None) => number::shortest(size),
        (_, Some(precision)) => general_with(size, precision.max(1)),
    };
    let text = if verb.is_ascii_uppercase() {
        text.to_ascii_uppercase()
    } else {
        text
    };
    let sign = sign(number.is_sign_negative(), spec);
    let text = match spec.zero {
        true => {
            let width = spec.width.saturating_sub(sign.len());
            format!("{text:0>width$}")
        }
        false => text,
    };
    padded(&format!("{sign}{text}"), spec)
}

/// `%g` with so many digits that count.
fn general_with(size: f64, precision: usize) -> String {
    let scientific = number::scientific(size, precision - 1);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let places: i32 = exponent.parse().unwrap_or_default();
    let without_zeros = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    let most = i32::try_from(precision).unwrap_or(i32::MAX);
    if places < -4 || places >= most {
        return format!("{}e{exponent}", without_zeros(digits));
    }
    let behind = usize::try_from(most - 1 - places).unwrap_or_default();
    without_zeros(&format!("{size:.behind$}"))
}

fn shortened(text: &str, spec: Spec) -> String {
    match spec.precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text.to_owned(),
    }
}

fn padded(text: &str, spec: Spec) -> String {
    let missing = spec.width.saturating_sub(text.chars().count());
    let padding: String = std::iter::repeat_n(if spec.zero { '0' } else { ' ' }, missing).collect();
    match spec.minus {
        true => format!("{text}{}", " ".repeat(missing)),
        false => format!("{padding}{text}"),
    }
}

fn character(number: i64) -> char {
    u32::try_from(number)
        .ok()
        .and_then(char::from_u32)
        .unwrap_or('\u{fffd}')
}

fn quoted(text: &str) -> String {
    let inner: String = text.chars().map(|c| escaped(c, '"')).collect();
    format!("\"{inner}\"")
}

fn quoted_character(c: char) -> String {
    format!("'{}'", escaped(c, '\''))
}

fn escaped(c: char, quote: char) -> String {
    match c {
        '\x07' => "\\a".to_owned(),
        '\x08' => "\\b".to_owned(),
        '\x0c' => "\\f".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        '\x0b' => "\\v".to_owned(),
        '\\' => "\\\\".to_owned(),
        c if c == quote => format!("\\{c}"),
        c if u32::from(c) < 0x20 || c == '\x7f' => format!("\\x{:02x}", u32::from(c)),
        c => c.to_string(),
    }
}

const WIDTH_MAX: usize = 1000;
const BYTES_MAX: usize = 1 << 20;

//! The functions that every template may call, `and` and `or` excepted (`eval`).

use std::cmp::Ordering;

use super::printf;
use super::value::{Answer, Value};

pub(super) const NAMES: [&str; 18] = [
    "and", "or", "not", "len", "index", "slice", "print", "printf", "println", "html", "js", "urlquery", "eq", "ne",
    "lt", "le", "gt", "ge",
];

/// `None`: it is none of these.
pub(super) fn call(name: &str, values: &[Value]) -> Option<Answer> {
    Some(match name {
        "not" => one(name, values).map(|value| Value::Bool(!value.is_true())),
        "len" => one(name, values).and_then(length),
        "index" => index(values),
        "slice" => slice(values),
        "print" => Ok(Value::text(print(values))),
        "println" => {
            let words: Vec<String> = values.iter().map(Value::to_string).collect();
            Ok(Value::text(words.join(" ") + "\n"))
        }
        "printf" => match values.split_first() {
            Some((Value::Text(format), values)) => printf::printf(format, values).map(Value::text),
            Some((other, _)) => Err(format!(
                "wrong type for value; expected string; got {}",
                other.type_name()
            )),
            None => Err("wrong number of args: want at least 1 got 0".to_owned()),
        },
        "html" => Ok(Value::text(html(&print(values)))),
        "js" => Ok(Value::text(js(&print(values)))),
        "urlquery" => Ok(Value::text(urlquery(&print(values)))),
        "eq" => equal(values).map(Value::Bool),
        "ne" => two(values)
            .and_then(|(one, other)| are_equal(one, other))
            .map(|is_equal| Value::Bool(!is_equal)),
        "lt" => order(values).map(|order| Value::Bool(order == Some(Ordering::Less))),
        "le" => order(values).map(|order| Value::Bool(matches!(order, Some(Ordering::Less | Ordering::Equal)))),
        "gt" => order(values).map(|order| Value::Bool(order == Some(Ordering::Greater))),
        "ge" => order(values).map(|order| Value::Bool(matches!(order, Some(Ordering::Greater | Ordering::Equal)))),
        _ => return None,
    })
}

fn one<'v>(name: &str, values: &'v [Value]) -> Result<&'v Value, String> {
    match values {
        [value] => Ok(value),
        _ => Err(format!("wrong number of args for {name}: want 1 got {}", values.len())),
    }
}

fn two(values: &[Value]) -> Result<(&Value, &Value), String> {
    match values {
        [one, other] => Ok((one, other)),
        _ => Err(format!("wrong number of args: want 2 got {}", values.len())),
    }
}

fn whole(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn length(value: &Value) -> Answer {
    match value {
        Value::Text(text) => Ok(whole(text.len())),
        Value::Map(map) => Ok(whole(map.len())),
        Value::Nil => Err("len of nil pointer".to_owned()),
        other => Err(format!("len of type {}", other.type_name())),
    }
}

/// A place in something that is `length` long.
fn place(value: &Value, length: usize) -> Result<usize, String> {
    let at = match value {
        Value::Int(at) => *at,
        Value::Byte(at) => i64::from(*at),
        Value::Nil => return Err("cannot index slice/array with nil".to_owned()),
        other => return Err(format!("cannot index slice/array with type {}", other.type_name())),
    };
    let found = usize::try_from(at).ok().filter(|at| *at <= length);
    found.ok_or_else(|| format!("index out of range: {at}"))
}

fn index(values: &[Value]) -> Answer {
    let (first, indices) = values
        .split_first()
        .ok_or("wrong number of args: want at least 1 got 0")?;
    let mut value = first.clone();
    for index in indices {
        value = match (&value, index) {
            (Value::Map(map), Value::Text(key)) => Value::text(map.get(key).cloned().unwrap_or_default()),
            (Value::Map(_), other) => return Err(format!("value has type {}; should be string", other.type_name())),
            (Value::Text(text), at) => {
                let at = place(at, text.len())?;
                let byte = text
                    .as_bytes()
                    .get(at)
                    .ok_or_else(|| format!("index out of range: {at}"))?;
                Value::Byte(*byte)
            }
            (Value::Nil, _) => return Err("index of untyped nil".to_owned()),
            (other, _) => return Err(format!("can't index item of type {}", other.type_name())),
        };
    }
    Ok(value)
}

fn slice(values: &[Value]) -> Answer {
    let (text, places) = match values.split_first() {
        Some((Value::Text(text), places)) => (text, places),
        Some((other, _)) => return Err(format!("can't slice item of type {}", other.type_name())),
        None => return Err("wrong number of args: want at least 1 got 0".to_owned()),
    };
    let (from, to) = match places {
        [] => (0, text.len()),
        [from] => (place(from, text.len())?, text.len()),
        [from, to] => (place(from, text.len())?, place(to, text.len())?),
        [_, _, _] => return Err("cannot 3-index slice a string".to_owned()),
        _ => return Err(format!("too many slice indexes: {}", places.len())),
    };
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    let cut = text
        .as_bytes()
        .get(from..to)
        .map(|bytes| String::from_utf8(bytes.to_vec()));
    match cut {
        Some(Ok(text)) => Ok(Value::text(text)),
        _ => Err(format!("the bytes from {from} to {to} are not UTF-8")),
    }
}

/// With a space between two of which neither is text.
pub(super) fn print(values: &[Value]) -> String {
    let mut out = String::new();
    let mut was_text = true;
    for (i, value) in values.iter().enumerate() {
        let is_text = matches!(value, Value::Text(_));
        if i > 0 && !is_text && !was_text {
            out.push(' ');
        }
        out.push_str(&value.to_string());
        was_text = is_text;
    }
    out
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0' => out.push('\u{fffd}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

fn urlquery(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn equal(values: &[Value]) -> Result<bool, String> {
    let (first, others) = values
        .split_first()
        .ok_or("wrong number of args: want at least 1 got 0")?;
    if matches!(first, Value::Map(_) | Value::Struct(_)) {
        return Err("non-comparable type".to_owned());
    }
    if others.is_empty() {
        return Err("missing argument for comparison".to_owned());
    }
    for other in others {
        if are_equal(first, other)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn are_equal(one: &Value, other: &Value) -> Result<bool, String> {
    match (one, other) {
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        _ => Ok(compared(one, other)? == Some(Ordering::Equal)),
    }
}

fn order(values: &[Value]) -> Result<Option<Ordering>, String> {
    let (one, other) = two(values)?;
    match one {
        Value::Bool(_) => Err("invalid type for comparison".to_owned()),
        _ => compared(one, other),
    }
}

/// `None`: a number that is none.
fn compared(one: &Value, other: &Value) -> Result<Option<Ordering>, String> {
    match (one, other) {
        (Value::Bool(one), Value::Bool(other)) => Ok(Some(one.cmp(other))),
        (Value::Text(one), Value::Text(other)) => Ok(Some(one.cmp(other))),
        (Value::Float(one), Value::Float(other)) => Ok(one.partial_cmp(other)),
        (Value::Int(one), Value::Int(other)) => Ok(Some(one.cmp(other))),
        (Value::Byte(one), Value::Byte(other)) => Ok(Some(one.cmp(other))),
        (Value::Int(one), Value::Byte(other)) => Ok(Some(one.cmp(&i64::from(*other)))),
        (Value::Byte(one), Value::Int(other)) => Ok(Some(i64::from(*one).cmp(other))),
        (Value::Map(_) | Value::Struct(_) | Value::Nil, _) | (_, Value::Map(_) | Value::Struct(_) | Value::Nil) => {
            Err("invalid type for comparison".to_owned())
        }
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

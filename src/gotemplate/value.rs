//! What templates work on. Not here: what is done with them (`eval`, `functions`).

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use super::number;

/// What a function answers. Errors: in words.
pub type Answer = Result<Value, String>;

/// A value as Go's reflection sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: Go's untyped nil.
    Nil,
    Bool(bool),
    Int(i64),
    /// One byte of a string.
    Byte(u8),
    Float(f64),
    Text(String),
    /// From text to text.
    Map(BTreeMap<String, String>),
    /// Named fields, in their order.
    Struct(Vec<(&'static str, Value)>),
}

impl Value {
    pub fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }

    /// As `if` has it: neither nothing, false, zero nor empty.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(is_true) => *is_true,
            Value::Int(number) => *number != 0,
            Value::Byte(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::Map(map) => !map.is_empty(),
            Value::Struct(_) => true,
        }
    }

    /// Its type in Go.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Nil => "<nil>",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Byte(_) => "uint8",
            Value::Float(_) => "float64",
            Value::Text(_) => "string",
            Value::Map(_) => "map[string]string",
            Value::Struct(_) => "struct",
        }
    }
}

/// As `%v` prints it.
impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nil => f.write_str("<nil>"),
            Value::Bool(is_true) => write!(f, "{is_true}"),
            Value::Int(number) => write!(f, "{number}"),
            Value::Byte(number) => write!(f, "{number}"),
            Value::Float(number) => f.write_str(&number::shortest(*number)),
            Value::Text(text) => f.write_str(text),
            Value::Map(map) => {
                let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                write!(f, "map[{}]", pairs.join(" "))
            }
            Value::Struct(fields) => {
                let fields: Vec<String> = fields.iter().map(|(_, value)| value.to_string()).collect();
                write!(f, "{{{}}}", fields.join(" "))
            }
        }
    }
}

//! Placement constraints: `node.role==manager`, `node.labels.disk!=ssd`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::model::swarm::Node;

/// What a node must, or must not, be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: String,
    is_equal: bool,
    value: String,
}

/// In Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("constraint expected one operator from {}", OPERATORS.join(", "))]
    Operator,
    #[error("key '{0}' is invalid")]
    Key(String),
    #[error("value '{0}' is invalid")]
    Value(String),
}

const OPERATORS: [&str; 2] = ["==", "!="];

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Constraint, ConstraintError> {
        let found = OPERATORS
            .iter()
            .filter_map(|operator| Some((text.split_once(operator)?, *operator)));
        let ((key, value), operator) = found
            .min_by_key(|((key, _), _)| key.len())
            .ok_or(ConstraintError::Operator)?;
        let (key, value) = (key.trim(), value.trim());
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let starts_well = |text: &str| {
            text.bytes()
                .next()
                .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if key.len() < 2 || !starts_well(key) || !key.bytes().all(is_word) {
            return Err(ConstraintError::Key(key.to_owned()));
        }
        let is_value = |byte: u8| is_word(byte) || b": *()?+[]\\^$|/".contains(&byte);
        if value.is_empty() || !value.bytes().all(is_value) {
            return Err(ConstraintError::Value(value.to_owned()));
        }
        Ok(Constraint {
            key: key.to_owned(),
            is_equal: operator == "==",
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.is_equal { "==" } else { "!=" };
        write!(f, "{}{operator}{}", self.key, self.value)
    }
}

impl Constraint {
    /// Keys and values whatever the case of their letters, names of labels exactly. A key that nobody knows is never met.
    pub fn is_met_by(&self, node: &Node) -> bool {
        let is = |found: &str| found.eq_ignore_ascii_case(&self.value) == self.is_equal;
        if let Some(label) = strip(&self.key, "node.labels.") {
            let labels = node.spec.labels.as_ref();
            return is(labels.and_then(|labels| labels.get(label)).map_or("", String::as_str));
        }
        if let Some(label) = strip(&self.key, "engine.labels.") {
            return is(node.engine_labels.get(label).map_or("", String::as_str));
        }
        match self.key.to_ascii_lowercase().as_str() {
            "node.id" => is(node.id.as_str()),
            "node.hostname" => is(&node.hostname),
            "node.ip" => self.is_ip_met(node.addr),
            "node.role" => is(if node.is_manager { "manager" } else { "worker" }),
            "node.platform.os" => is(&node.os),
            "node.platform.arch" => is(&node.architecture),
            _ => false,
        }
    }

    fn is_ip_met(&self, addr: IpAddr) -> bool {
        let is_in = match (self.value.parse::<IpAddr>(), self.value.parse::<IpNet>()) {
            (Ok(ip), _) => ip == addr,
            (_, Ok(net)) => net.contains(&addr),
            _ => return false,
        };
        is_in == self.is_equal
    }
}

fn strip<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = key.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_constraint_is_said_in_dockers_words() {
        for (text, error) in [
            ("node.role", "constraint expected one operator from ==, !="),
            ("node.role=manager", "constraint expected one operator from ==, !="),
            ("==manager", "key '' is invalid"),
            ("a b==c", "key 'a b' is invalid"),
            ("node.role==", "value '' is invalid"),
            ("node.role==ä", "value 'ä' is invalid"),
        ] {
            assert_eq!(text.parse::<Constraint>().unwrap_err().to_string(), error, "{text}");
        }
        assert_eq!(
            " node.role != worker ".parse::<Constraint>().unwrap().to_string(),
            "node.role!=worker"
        );
    }
}

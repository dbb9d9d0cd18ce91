//! What Docker's templates may name, and the functions that it adds to Go's own.

use std::collections::BTreeMap;

use super::value::{Answer, Value};

/// What `{{.Service}}`, `{{.Node}}` and `{{.Task}}` stand for.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub service_id: String,
    pub service_name: String,
    pub service_labels: BTreeMap<String, String>,
    pub node_id: String,
    pub node_hostname: String,
    pub node_architecture: String,
    pub node_os: String,
    pub task_id: String,
    pub task_name: String,
    /// The node's id for global services.
    pub task_slot: String,
}

impl Names {
    pub fn into_value(self) -> Value {
        let service = vec![
            ("ID", Value::Text(self.service_id)),
            ("Name", Value::Text(self.service_name)),
            ("Labels", Value::Map(self.service_labels)),
        ];
        let platform = vec![
            ("Architecture", Value::Text(self.node_architecture)),
            ("OS", Value::Text(self.node_os)),
        ];
        let node = vec![
            ("ID", Value::Text(self.node_id)),
            ("Hostname", Value::Text(self.node_hostname)),
            ("Platform", Value::Struct(platform)),
        ];
        let task = vec![
            ("ID", Value::Text(self.task_id)),
            ("Name", Value::Text(self.task_name)),
            ("Slot", Value::Text(self.task_slot)),
        ];
        Value::Struct(vec![
            ("Service", Value::Struct(service)),
            ("Node", Value::Struct(node)),
            ("Task", Value::Struct(task)),
        ])
    }
}

/// Docker's functions for every template.
pub const FUNCTIONS: [&str; 1] = ["join"];

/// Answers for `FUNCTIONS`.
pub fn function(name: &str, values: &[Value]) -> Answer {
    let texts: Result<Vec<&str>, String> = values.iter().map(text_of).collect();
    match (name, texts?.split_first()) {
        ("join", Some((separator, texts))) => Ok(Value::text(texts.join(separator))),
        ("join", None) => Err("expected a separator, and what to join".to_owned()),
        _ => Err("it is not known".to_owned()),
    }
}

/// Errors: it is something else.
pub fn text_of(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(format!("expected text, found {other}")),
    }
}

//! How text is laid out and painted for whoever reads it.

use std::io::{IsTerminal, Stdout};

use serde_json::Value;

/// What a value of the status is in words; `-`: there is none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// Whether colours are seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    has_colour: bool,
}

impl Look {
    /// Colour where there is a terminal that has it, and nobody has said no (NO_COLOR).
    pub(super) fn of(out: &Stdout) -> Look {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Look {
            has_colour: out.is_terminal() && !is_set("NO_COLOR") && !is_dumb,
        }
    }

    /// What is wrong in red, names of services in bold, states in the colours that the page has.
    pub(super) fn painted(self, text: &str) -> String {
        if !self.has_colour {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len() + 1024);
        for line in text.split_inclusive('\n') {
            let (line, end) = match line.strip_suffix('\n') {
                Some(line) => (line, "\n"),
                None => (line, ""),
            };
            if line.starts_with("! ") {
                out.push_str(&format!("\x1b[31m{line}\x1b[0m"));
            } else if line.starts_with("service ") {
                out.push_str(&format!("\x1b[1m{line}\x1b[0m"));
            } else {
                out.push_str(&painted_state(line));
            }
            out.push_str(end);
        }
        out
    }
}

/// A line with the first state in it painted.
fn painted_state(line: &str) -> String {
    for (state, colour) in [
        ("ready", 32),
        ("untried", 33),
        ("failing", 33),
        ("draining", 33),
        ("leaving", 33),
        ("resting", 31),
        ("unready", 31),
    ] {
        let (before, after) = (format!("   {state}"), format!("   \x1b[{colour}m{state}\x1b[0m"));
        if let Some(at) = line.find(&before)
            && line[at + before.len()..].chars().next().is_none_or(char::is_whitespace)
        {
            return line.replacen(&before, &after, 1);
        }
    }
    line.to_owned()
}

pub(in crate::app) fn push_columns<const N: usize>(rows: &[[String; N]], out: &mut String) {
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(line.join("   ").trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_painted_where_they_stand_alone() {
        assert_eq!(
            painted_state("  web.1   node1   ready   0"),
            "  web.1   node1   \x1b[32mready\x1b[0m   0"
        );
        for line in ["  ready.1   node1   x", "  a   readyish   b", ""] {
            assert_eq!(painted_state(line), line);
        }
    }
}

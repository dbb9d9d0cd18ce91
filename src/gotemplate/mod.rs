//! Templates as Go's `text/template` has them, over a value: what Docker's users write in environments, hostnames, mounts,
//! configs and secrets. Pure. What is not known here (`define`, `template`, `block`, `break`, `continue`, complex numbers)
//! is an error that names it. Source: the documentation of Go's text/template and fmt packages.

mod eval;
mod functions;
mod lex;
mod literal;
mod names;
mod number;
mod parse;
mod printf;
mod tree;
mod value;

pub use self::names::{FUNCTIONS, Names, function, text_of};
use self::tree::Node;
pub use self::value::{Answer, Value};

/// Why a template is none, or comes to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template {text:?}: {reason}")]
pub struct TemplateError {
    /// Its beginning.
    pub text: String,
    pub reason: String,
}

/// A template that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
}

impl Template {
    /// `functions`: names besides Go's own that it may call. Errors: it is none; the reason names what was found.
    pub fn parse(text: &str, functions: &[&str]) -> Result<Template, TemplateError> {
        let fault = |reason| TemplateError {
            text: shortened(text),
            reason,
        };
        let pieces = lex::pieces(text).map_err(fault)?;
        let nodes = parse::parse(pieces, functions).map_err(fault)?;
        Ok(Template {
            text: shortened(text),
            nodes,
        })
    }

    /// Fills it in with `dot`. `call` answers for the functions that `parse` was told of. Errors: it asks for what is not
    /// there, or comes to more than a megabyte.
    pub fn fill_in(&self, dot: &Value, call: &dyn Fn(&str, &[Value]) -> Answer) -> Result<String, TemplateError> {
        eval::fill_in(&self.nodes, dot, call).map_err(|reason| TemplateError {
            text: self.text.clone(),
            reason,
        })
    }
}

/// Enough to find it by.
fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

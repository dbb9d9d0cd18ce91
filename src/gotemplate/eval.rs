//! What a template comes to. Not here: what functions answer (`functions`).

use super::functions;
use super::tree::{Base, Branch, Command, Node, Operand, Pipe};
use super::value::{Answer, Value};

/// Answers for functions of one's own.
pub(super) type Call<'a> = &'a dyn Fn(&str, &[Value]) -> Answer;

pub(super) fn fill_in(nodes: &[Node], dot: &Value, call: Call<'_>) -> Result<String, String> {
    let mut run = Run {
        out: String::new(),
        variables: vec![(String::new(), dot.clone())],
        n_steps: 0,
        call,
    };
    run.nodes(nodes, dot)?;
    Ok(run.out)
}

struct Run<'a> {
    out: String,
    /// By name, the innermost last; `$` is the empty one.
    variables: Vec<(String, Value)>,
    n_steps: usize,
    call: Call<'a>,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        for node in nodes {
            self.step()?;
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    if pipe.variables.is_empty() {
                        match value {
                            Value::Nil => self.out.push_str("<no value>"),
                            value => self.out.push_str(&value.to_string()),
                        }
                    }
                }
                Node::If(branch) => {
                    self.within(|run| {
                        let nodes = match run.pipe(&branch.pipe, dot)?.is_true() {
                            true => &branch.then,
                            false => &branch.otherwise,
                        };
                        run.nodes(nodes, dot)
                    })?;
                }
                Node::With(branch) => {
                    self.within(|run| {
                        let value = run.pipe(&branch.pipe, dot)?;
                        match value.is_true() {
                            true => run.nodes(&branch.then, &value),
                            false => run.nodes(&branch.otherwise, dot),
                        }
                    })?;
                }
                Node::Range(branch) => self.within(|run| run.range(branch, dot))?,
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.n_steps += 1;
        match self.n_steps > STEPS_MAX || self.out.len() > BYTES_MAX {
            true => Err(format!(
                "it comes to more than {BYTES_MAX} bytes, or takes more than {STEPS_MAX} steps"
            )),
            false => Ok(()),
        }
    }

    /// Variables that are declared meanwhile are gone afterwards.
    fn within(&mut self, act: impl FnOnce(&mut Self) -> Result<(), String>) -> Result<(), String> {
        let n = self.variables.len();
        let result = act(self);
        self.variables.truncate(n);
        result
    }

    fn range(&mut self, branch: &Branch, dot: &Value) -> Result<(), String> {
        let over = self.value_of(&branch.pipe, dot)?;
        let items: Box<dyn Iterator<Item = (Value, Value)>> = match over {
            Value::Map(map) => Box::new(
                map.into_iter()
                    .map(|(key, value)| (Value::Text(key), Value::Text(value))),
            ),
            Value::Int(n) => Box::new((0..n).map(|i| (Value::Int(i), Value::Int(i)))),
            Value::Nil => Box::new(std::iter::empty()),
            other => return Err(format!("range can't iterate over {other}")),
        };
        let mut any = false;
        for (key, value) in items {
            any = true;
            self.step()?;
            let item = value.clone();
            let variables = &branch.pipe.variables;
            let values = match variables.len() {
                2 => vec![key, value],
                _ => vec![value],
            };
            self.within(|run| {
                for (name, value) in variables.iter().zip(values) {
                    run.set(name, value, branch.pipe.is_assignment);
                }
                run.nodes(&branch.then, &item)
            })?;
        }
        match any {
            true => Ok(()),
            false => self.nodes(&branch.otherwise, dot),
        }
    }

    fn set(&mut self, name: &str, value: Value, is_assignment: bool) {
        let there = self.variables.iter_mut().rev().find(|(known, _)| known == name);
        match there {
            Some((_, there)) if is_assignment => *there = value,
            _ => self.variables.push((name.to_owned(), value)),
        }
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Answer {
        let value = self.value_of(pipe, dot)?;
        for name in &pipe.variables {
            self.set(name, value.clone(), pipe.is_assignment);
        }
        Ok(value)
    }

    fn value_of(&mut self, pipe: &Pipe, dot: &Value) -> Answer {
        let mut last = None;
        for command in &pipe.commands {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or(Value::Nil))
    }

    /// `last`: what the command before came to, which is the last argument.
    fn command(&mut self, Command(words): &Command, dot: &Value, last: Option<Value>) -> Answer {
        let (first, arguments) = words.split_first().ok_or("a command without words")?;
        let Operand::Function(name) = first else {
            if !arguments.is_empty() || last.is_some() {
                return Err(match first {
                    Operand::Of(_, fields) if !fields.is_empty() => {
                        format!("{} has arguments but cannot be invoked as function", fields.join("."))
                    }
                    _ => "can't give argument to non-function".to_owned(),
                });
            }
            return self.operand(first, dot);
        };
        if matches!(name.as_str(), "and" | "or") {
            return self.logic(name == "and", arguments, dot, last);
        }
        let mut values = Vec::with_capacity(arguments.len() + 1);
        for argument in arguments {
            values.push(self.operand(argument, dot)?);
        }
        values.extend(last);
        match functions::call(name, &values) {
            Some(answer) => answer,
            None => (self.call)(name, &values),
        }
        .map_err(|error| format!("error calling {name}: {error}"))
    }

    /// The first that decides; what comes after it is not looked at.
    fn logic(&mut self, is_and: bool, arguments: &[Operand], dot: &Value, last: Option<Value>) -> Answer {
        let mut value = None;
        for argument in arguments {
            let this = self.operand(argument, dot)?;
            if this.is_true() != is_and {
                return Ok(this);
            }
            value = Some(this);
        }
        last.or(value).ok_or_else(|| {
            let name = if is_and { "and" } else { "or" };
            format!("wrong number of args for {name}: want at least 1 got 0")
        })
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Answer {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Nil => Ok(Value::Nil),
            Operand::Function(_) => self.command(&Command(vec![operand.clone()]), dot, None),
            Operand::Of(base, fields) => {
                let mut value = match base {
                    Base::Dot => dot.clone(),
                    Base::Variable(name) => {
                        let known = self.variables.iter().rev().find(|(known, _)| known == name);
                        known
                            .map(|(_, value)| value.clone())
                            .ok_or_else(|| format!("undefined variable: ${name}"))?
                    }
                    Base::Pipe(pipe) => self.pipe(pipe, dot)?,
                };
                for field in fields {
                    value = field_of(value, field)?;
                }
                Ok(value)
            }
        }
    }
}

fn field_of(value: Value, name: &str) -> Answer {
    match value {
        Value::Struct(fields) => {
            let known: Vec<&str> = fields.iter().map(|(known, _)| *known).collect();
            let wrong = || format!("can't evaluate field {name}: expected one of {}", known.join(", "));
            let found = fields.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.clone()).ok_or_else(wrong)
        }
        Value::Map(map) => match map.get(name) {
            Some(value) => Ok(Value::text(value)),
            None => Err(format!("map has no entry for key {name:?}")),
        },
        Value::Nil => Err(format!("nil data; no entry for key {name:?}")),
        other => Err(format!("can't evaluate field {name} in type {}", other.type_name())),
    }
}

const STEPS_MAX: usize = 100_000;
const BYTES_MAX: usize = 1 << 20;

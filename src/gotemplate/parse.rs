//! From words to a tree. What cannot be is said here already where Go says it then: names that nobody knows, values that are
//! called. Not here: what it comes to (`eval`).

use super::functions;
use super::lex::{Piece, Word};
use super::literal;
use super::tree::{Base, Branch, Command, Node, Operand, Pipe};
use super::value::Value;

type Pieces = std::iter::Peekable<std::vec::IntoIter<Piece>>;

pub(super) fn parse(pieces: Vec<Piece>, functions: &[&str]) -> Result<Vec<Node>, String> {
    let mut parser = Parser {
        pieces: pieces.into_iter().peekable(),
        functions,
        variables: vec![String::new()],
        depth: 0,
    };
    match parser.nodes()? {
        (nodes, None) => Ok(nodes),
        (_, Some(end)) => Err(format!("unexpected {{{{{}}}}}", end.name())),
    }
}

struct Parser<'a> {
    pieces: Pieces,
    functions: &'a [&'a str],
    /// Those that may be named here; `$` is the empty one.
    variables: Vec<String>,
    depth: usize,
}

/// What ends a branch.
enum End {
    End,
    /// With what stands behind it: `if` or `with` and their pipeline.
    Else(Vec<Word>),
}

impl End {
    fn name(&self) -> &'static str {
        match self {
            End::End => "end",
            End::Else(_) => "else",
        }
    }
}

impl Parser<'_> {
    /// Up to an end, or to the end of everything.
    fn nodes(&mut self) -> Result<(Vec<Node>, Option<End>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let words = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(words) => words,
            };
            let words = trimmed(&words);
            let (keyword, rest) = match words.split_first() {
                Some((Word::Name(name), rest)) => (name.as_str(), rest),
                _ => ("", words),
            };
            match keyword {
                "end" if trimmed(rest).is_empty() => return Ok((nodes, Some(End::End))),
                "end" => return Err("unexpected words in end".to_owned()),
                "else" => return Ok((nodes, Some(End::Else(trimmed(rest).to_vec())))),
                "if" | "with" | "range" => nodes.push(self.branch(keyword, rest)?),
                "define" | "template" | "block" | "break" | "continue" => {
                    return Err(format!("{{{{{keyword}}}}} is not known here"));
                }
                _ => nodes.push(Node::Action(self.pipe(words, "command")?)),
            }
        }
        Ok((nodes, None))
    }

    fn branch(&mut self, keyword: &str, words: &[Word]) -> Result<Node, String> {
        self.deeper()?;
        let n_variables = self.variables.len();
        let pipe = self.pipe(trimmed(words), keyword)?;
        let most = if keyword == "range" { 2 } else { 1 };
        if pipe.variables.len() > most {
            return Err(format!("too many declarations in {keyword}"));
        }
        let (then, end) = self.nodes()?;
        self.variables
            .truncate(n_variables + pipe.variables.len() * usize::from(!pipe.is_assignment));
        let otherwise = match end {
            None => return Err(format!("unexpected EOF: {{{{{keyword}}}}} has no {{{{end}}}}")),
            Some(End::End) => Vec::new(),
            Some(End::Else(words)) => match words.split_first() {
                None => match self.nodes()? {
                    (nodes, Some(End::End)) => nodes,
                    (_, Some(End::Else(_))) => return Err("expected end; found {{else}}".to_owned()),
                    (_, None) => return Err("unexpected EOF: {{else}} has no {{end}}".to_owned()),
                },
                // It takes the end of the whole along.
                Some((Word::Name(also), rest)) if (also == "if" || also == "with") && also == keyword => {
                    vec![self.branch(also, rest)?]
                }
                Some(_) => return Err(format!("unexpected words in else of {keyword}")),
            },
        };
        self.variables.truncate(n_variables);
        self.depth -= 1;
        let branch = Branch { pipe, then, otherwise };
        Ok(match keyword {
            "if" => Node::If(branch),
            "with" => Node::With(branch),
            _ => Node::Range(branch),
        })
    }

    fn deeper(&mut self) -> Result<(), String> {
        self.depth += 1;
        match self.depth > DEPTH_MAX {
            true => Err(format!("nested deeper than {DEPTH_MAX}")),
            false => Ok(()),
        }
    }

    /// A pipeline that takes all of `words`. `context`: what it is for.
    fn pipe(&mut self, words: &[Word], context: &str) -> Result<Pipe, String> {
        let (variables, is_assignment, words) = self.declarations(words, context)?;
        let mut commands = Vec::new();
        let stages = split(words);
        let n_stages = stages.len();
        for (i, words) in stages.into_iter().enumerate() {
            let words = trimmed(words);
            if words.is_empty() && i > 0 && i + 1 == n_stages {
                // Go lets a pipe lead nowhere.
                break;
            }
            if words.is_empty() {
                return Err(format!("missing value for {context}"));
            }
            let command = self.command(words)?;
            if i > 0 && !matches!(command.0[0], Operand::Function(_) | Operand::Of(..)) {
                return Err(format!("non executable command in pipeline stage {}", i + 1));
            }
            commands.push(command);
        }
        if !is_assignment {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipe {
            variables,
            is_assignment,
            commands,
        })
    }

    /// `$a :=`, `$a, $b :=`, `$a =`, or nothing; and the rest.
    fn declarations<'w>(&self, words: &'w [Word], context: &str) -> Result<(Vec<String>, bool, &'w [Word]), String> {
        let mut names = Vec::new();
        let mut rest = words;
        while let Some((Word::Variable(name), after)) = rest.split_first() {
            let after = trimmed_start(after);
            names.push(name.clone());
            match after.split_first() {
                Some((Word::Comma, after)) if context == "range" && names.len() < 2 => rest = trimmed_start(after),
                Some((mark @ (Word::Declare | Word::Assign), after)) => {
                    let is_assignment = *mark == Word::Assign;
                    if let Some(unknown) = names
                        .iter()
                        .find(|name| is_assignment && !self.variables.contains(name))
                    {
                        return Err(format!("undefined variable \"${unknown}\""));
                    }
                    return Ok((names, is_assignment, after));
                }
                _ => break,
            }
        }
        Ok((Vec::new(), false, words))
    }

    fn command(&mut self, words: &[Word]) -> Result<Command, String> {
        let mut operands = Vec::new();
        let mut rest = words;
        while !rest.is_empty() {
            let (operand, after) = self.operand(rest)?;
            operands.push(operand);
            match after.split_first() {
                None => rest = after,
                Some((Word::Space, after)) => rest = trimmed_start(after),
                Some((word, _)) => return Err(format!("unexpected {} in operand", shown(word))),
            }
        }
        match &operands[0] {
            Operand::Nil => return Err("nil is not a command".to_owned()),
            Operand::Literal(value) if operands.len() > 1 => {
                return Err(format!("can't give argument to non-function {value}"));
            }
            _ => {}
        }
        Ok(Command(operands))
    }

    fn operand<'w>(&mut self, words: &'w [Word]) -> Result<(Operand, &'w [Word]), String> {
        let (first, mut rest) = words.split_first().ok_or("missing operand")?;
        let mut fields = Vec::new();
        let base = match first {
            Word::Dot => Base::Dot,
            Word::Field(name) => {
                fields.push(name.clone());
                Base::Dot
            }
            Word::Variable(name) => match self.variables.contains(name) {
                true => Base::Variable(name.clone()),
                false => return Err(format!("undefined variable \"${name}\"")),
            },
            Word::Open => {
                self.deeper()?;
                let (inside, after) = closed(rest)?;
                rest = after;
                let pipe = self.pipe(trimmed(inside), "parenthesized pipeline")?;
                self.depth -= 1;
                Base::Pipe(Box::new(pipe))
            }
            Word::Name(name) => {
                let operand = match name.as_str() {
                    "true" | "false" => Operand::Literal(Value::Bool(name == "true")),
                    "nil" => Operand::Nil,
                    _ if functions::NAMES.contains(&name.as_str()) || self.functions.contains(&name.as_str()) => {
                        Operand::Function(name.clone())
                    }
                    _ => return Err(format!("function {name:?} not defined")),
                };
                return without_fields(operand, rest);
            }
            Word::Text(text) => return without_fields(Operand::Literal(Value::text(text)), rest),
            Word::Char(c) => return without_fields(Operand::Literal(Value::Int(i64::from(u32::from(*c)))), rest),
            Word::Number(text) => return without_fields(Operand::Literal(literal::read(text)?), rest),
            word => return Err(format!("unexpected {} in operand", shown(word))),
        };
        while let Some((Word::Field(name), after)) = rest.split_first() {
            if base == Base::Dot && fields.is_empty() {
                return Err(format!("unexpected .{name} after ."));
            }
            fields.push(name.clone());
            rest = after;
        }
        Ok((Operand::Of(base, fields), rest))
    }
}

fn without_fields(operand: Operand, rest: &[Word]) -> Result<(Operand, &[Word]), String> {
    match rest.first() {
        Some(Word::Field(name)) => Err(format!("unexpected .{name} after term")),
        _ => Ok((operand, rest)),
    }
}

/// What stands before the parenthesis that closes, and after it.
fn closed(words: &[Word]) -> Result<(&[Word], &[Word]), String> {
    let mut depth = 0_usize;
    for (at, word) in words.iter().enumerate() {
        match word {
            Word::Open => depth += 1,
            Word::Close if depth == 0 => return Ok((&words[..at], &words[at + 1..])),
            Word::Close => depth -= 1,
            _ => {}
        }
    }
    Err("unclosed left paren".to_owned())
}

/// Where pipes are that no parentheses have.
fn split(words: &[Word]) -> Vec<&[Word]> {
    let mut depth = 0_usize;
    let pipes = |word: &Word| {
        match word {
            Word::Open => depth += 1,
            Word::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && *word == Word::Pipe
    };
    words.split(pipes).collect()
}

fn trimmed(words: &[Word]) -> &[Word] {
    let mut words = trimmed_start(words);
    while let Some((Word::Space, rest)) = words.split_last() {
        words = rest;
    }
    words
}

fn trimmed_start(mut words: &[Word]) -> &[Word] {
    while let Some((Word::Space, rest)) = words.split_first() {
        words = rest;
    }
    words
}

fn shown(word: &Word) -> String {
    match word {
        Word::Space => "a space".to_owned(),
        Word::Name(text) | Word::Number(text) => format!("{text:?}"),
        Word::Field(name) => format!("\".{name}\""),
        Word::Variable(name) => format!("\"${name}\""),
        Word::Dot => "\".\"".to_owned(),
        Word::Text(text) => format!("{text:?}"),
        Word::Char(c) => format!("{c:?}"),
        Word::Declare => "\":=\"".to_owned(),
        Word::Assign => "\"=\"".to_owned(),
        Word::Pipe => "\"|\"".to_owned(),
        Word::Comma => "\",\"".to_owned(),
        Word::Open => "\"(\"".to_owned(),
        Word::Close => "\")\"".to_owned(),
    }
}

const DEPTH_MAX: usize = 100;

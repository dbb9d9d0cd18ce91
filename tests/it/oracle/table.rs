//! The differences that are meant, each with its reason. Any other is a fault.

use super::pair::{Ask, Difference};

/// `*` stands for anything, in each.
pub struct Row {
    /// Method and path.
    pub of: &'static str,
    pub at: &'static str,
    pub docker: &'static str,
    pub ours: &'static str,
    pub why: &'static str,
}

const fn row(of: &'static str, at: &'static str, docker: &'static str, ours: &'static str, why: &'static str) -> Row {
    Row {
        of,
        at,
        docker,
        ours,
        why,
    }
}

/// Of Docker 28: what 20.10 does otherwise is its age.
const NEWER: &str = "as Docker 28 has it";
/// Nobody acts on these texts.
const READER: &str = "Go's own words for JSON, numbers and truths: ours name the member, and what was expected";
const DEFAULTS: &str = "what an update of the swarm leaves out is Docker's default again, where Docker has 0";
const OPEN_NETWORKS: &str = "open: item 3, networks";
const OPEN_TLS: &str = "open: item 8, `swarm ca` and TLS info";

pub const ROWS: &[Row] = &[
    row("*", ".message", "\"json: *", "\"*", READER),
    row("*", ".message", "\"*invalid character *", "\"*", READER),
    row("*", ".message", "\"unexpected EOF\"", "\"invalid JSON: *", READER),
    row("*", ".message", "\"illegal base64 data*", "\"*", READER),
    row("*", ".message", "*", "\"unsupported Content-Type header *", NEWER),
    row("*", "*.EnableIPv4", "(none)", "true", NEWER),
    row("*", "*.vxlanid_list", "*", "(none)", OPEN_NETWORKS),
    row("*", "*.IPAM.Options", "null", "{}", OPEN_NETWORKS),
    row("*", ".networks.ingress.Labels", "null", "{}", OPEN_NETWORKS),
    row("*", "*.TLSInfo.*", "*", "(none)", OPEN_TLS),
    row(
        "*",
        "*.Engine.Plugins",
        "*",
        "(none)",
        "plugins are the engine's own affair: no task is placed by them",
    ),
    row("POST /swarm/update*", ".swarm.Spec.*", "*", "*", DEFAULTS),
];

/// The rows, and how often each was needed.
pub struct Table(Vec<usize>);

impl Table {
    pub fn new() -> Table {
        Table(vec![0; ROWS.len()])
    }

    /// Those that no row has.
    pub fn unknown(&mut self, ask: &Ask, mut found: Vec<Difference>) -> Vec<Difference> {
        let of = format!("{} {}", ask.method, ask.path);
        found.retain(|difference| {
            if difference.at == ".message" && says_more(&difference.docker, &difference.ours) {
                return false;
            }
            let row = ROWS.iter().position(|row| {
                matches(row.of, &of)
                    && matches(row.at, &difference.at)
                    && matches(row.docker, &difference.docker)
                    && matches(row.ours, &difference.ours)
            });
            row.inspect(|row| self.0[*row] += 1).is_none()
        });
        found
    }

    pub fn print(&self) {
        for (row, n) in ROWS.iter().zip(&self.0).filter(|(_, n)| **n > 0) {
            println!("{n:5} {} {}: {}", row.of, row.at, row.why);
        }
    }
}

/// Docker's own words, and then what was expected; later versions begin them with small letters, and end before a Go
/// function's own words.
fn says_more(docker: &str, ours: &str) -> bool {
    let (docker, ours) = (
        docker.trim_matches('"').to_lowercase(),
        ours.trim_matches('"').to_lowercase(),
    );
    let docker = docker.split_once("strconv.").map_or(&*docker, |(before, _)| before);
    ours.starts_with(docker)
}

/// Whether a text is as a pattern has it.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

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

const NEWER: &str = "as Docker 28 has it; 20.10 is older";
const READER: &str = "Go's own words for JSON, numbers and templates: ours name the member, and what was expected";
const DEFAULTS: &str = "what an update of the swarm leaves out is Docker's default again, where Docker has 0";
const AT_ONCE: &str =
    "what no task could ever do is refused when it is declared; with Docker each task fails by itself";
const WORD: &str = "a word that there is none of is refused; Docker takes another without saying so";
const HOST: &str =
    "the host's network is each node's own, and known by its name; Docker names an object that no list shows";
const BYTES: &str = "Go reads a list of numbers as bytes";
const THEIRS: &str = "a fault of whoever asks, which Docker says is its own";
const SHOWN: &str = "shown at once; Docker shows nothing of an endpoint that needs no address";
const OLD: &str = "networks of old clients are found as those of new ones";
const EMPTY: &str = "an empty body says nothing; to Docker 28 it says `{}`, which takes back all that a swarm was told";
const UNTOLD: &str = "a body of no Content-Type is read as JSON, as before Docker 28";
const NO_NAME: &str = "to Docker an empty name is the beginning of every network's id; here it is none's";

pub const ROWS: &[Row] = &[
    // Texts alone.
    row("*", ".message", "\"json: *", "\"*", READER),
    row("*", ".message", "\"invalid JSON: json: *", "\"invalid JSON*", READER),
    row(
        "*",
        ".message",
        "\"*json: cannot unmarshal number -*",
        "\"* expected 0 or more\"",
        READER,
    ),
    row(
        "*",
        ".message",
        "\"*json: cannot unmarshal number -*",
        "\"*cannot be negative\"",
        READER,
    ),
    row("*filters=*", ".message", "\"*invalid character *", "\"*", READER),
    row(
        "*",
        ".message",
        "\"*illegal base64 data*",
        "\"*expected base64\"",
        READER,
    ),
    row(
        "*",
        ".message",
        "\"*template: expansion:*",
        "\"*ContainerSpec: template *",
        READER,
    ),
    row("*", ".message", "*", "\"unsupported Content-Type header *", NEWER),
    row("*", ".message", "*", "\"unexpected content after JSON\"", NEWER),
    // Statuses.
    row("POST /services/web/update*", ".status", "500", "400", THEIRS),
    row("POST /services/*", ".status", "500", "404", THEIRS),
    row(
        "POST /services/create",
        ".shown",
        "[\"ID\"]",
        "[\"ID\",\"Warnings\"]",
        NEWER,
    ),
    row(
        "GET /configs?*names*",
        ".*",
        "*",
        "*",
        "`names` finds configs as it finds secrets",
    ),
    row(
        "POST /services/*",
        ".message",
        "\"network  is ambiguous*",
        "\"network  not found\"",
        NO_NAME,
    ),
    row("POST /services/*", ".status", "400", "404", NO_NAME),
    // What is there.
    row("*", "*.EnableIPv4", "(none)", "true", NEWER),
    row("*", "*.Privileges.NoNewPrivileges", "(none)", "false", NEWER),
    row(
        "*",
        "*.Engine.Plugins",
        "*",
        "(none)",
        "plugins are the engine's own affair: no task is placed by them",
    ),
    row("POST /swarm/update*", ".swarm.Spec.*", "*", "*", DEFAULTS),
    row(
        "*",
        "*.RollbackConfig.FailureAction",
        "\"rollback\"",
        "\"pause\"",
        "a rollback is not rolled back: shown is what is done",
    ),
    row("*", "*.Spec.Networks[].Target", "\"net\"", "\"<networks:net>\"", OLD),
    row(
        "*",
        "*.WithDefaults.Networks[].Target",
        "\"net\"",
        "\"<networks:net>\"",
        OLD,
    ),
    row(
        "*",
        "*.Spec.Templating*",
        "{*}",
        "(none)",
        "a template driver without a name, and its options, are nothing",
    ),
    row("*", ".services.*.Endpoint.Spec.Mode", "(none)", "\"dnsrr\"", SHOWN),
    row(
        "POST /services/web/update*",
        ".services.web.Endpoint.Spec.Mode",
        "(none)",
        "\"vip\"",
        SHOWN,
    ),
    row(
        "GET stack *",
        ".services.*.Networks[].Target",
        "\"<id>\"",
        "\"host\"",
        HOST,
    ),
    row(
        "GET stack *",
        ".services.*.VirtualIPs",
        "[{\"NetworkID\":\"<id>\"}]",
        "(none)",
        HOST,
    ),
    row(
        "DELETE /networks/ingress",
        ".*",
        "*",
        "*",
        "the ingress network stays: nothing would be without it",
    ),
    row("*", "*.vxlanid_list", "*", "(none)", "there is no VXLAN here"),
];

/// What is refused in these words, whatever Docker does.
pub const REFUSALS: &[(&str, &str)] = &[
    ("invalid Mode: *", "what would silently become another mode is refused"),
    ("*stop grace period cannot be negative", AT_ONCE),
    ("*Test in Healthcheck begins with *", AT_ONCE),
    ("*mount target must be provided", AT_ONCE),
    ("*malformed file *invalid target file name*", AT_ONCE),
    ("*rollback-* cannot be *", AT_ONCE),
    ("*Port *: expected a port from *", AT_ONCE),
    ("invalid isolation *", AT_ONCE),
    (
        "*generic resource of nothing: *",
        "nothing is reserved by it; Docker's handler panics at it",
    ),
    ("secret drivers do not work: *", "no plugins are run here"),
    ("invalid CredentialSpec: only Windows *", AT_ONCE),
    (
        "*PublishedPort 0 with PublishMode host*",
        "a node does not pick a port of its own for a task",
    ),
    ("*is no such word: *", WORD),
    ("network nobody not found", OLD),
    ("invalid JSON at Data: *sequence*", BYTES),
    (
        "there is no Docker Engine beside this anynode*",
        "what is no overlay is an engine's, and the anynode that is compared has none",
    ),
    ("unexpected content after JSON", NEWER),
    ("unsupported Content-Type header *", NEWER),
    ("got EOF while reading request body", EMPTY),
];

/// What Docker refuses in these words, whatever is done here.
pub const TAKEN: &[(&str, &str)] = &[
    ("malformed Content-Type header (): *", UNTOLD),
    ("*networks must be migrated to TaskSpec before being changed", OLD),
];

/// The rows, and how often each was needed.
pub struct Table {
    needed: Vec<usize>,
    /// Requests have several faults: which of them is said is nobody's promise.
    has_several_faults: bool,
}

impl Table {
    pub fn new(has_several_faults: bool) -> Table {
        Table {
            needed: vec![0; ROWS.len()],
            has_several_faults,
        }
    }

    /// Whether one of the two refused the request in words that the table has.
    pub fn refuses(&self, found: &[Difference]) -> bool {
        let said = |at: &str| found.iter().find(|difference| difference.at == at);
        let are_both = said(".message").is_some_and(|message| message.docker != "(none)" && message.ours != "(none)");
        if are_both && self.has_several_faults {
            return true;
        }
        let has = |rows: &[(&str, &str)], said: &str| {
            let said = said.trim_matches('"');
            rows.iter().any(|(pattern, _)| matches(pattern, said))
        };
        said(".message").is_some_and(|message| has(REFUSALS, &message.ours) || has(TAKEN, &message.docker))
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
            row.inspect(|row| self.needed[*row] += 1).is_none()
        });
        found
    }

    pub fn print(&self) {
        for (row, n) in ROWS.iter().zip(&self.needed).filter(|(_, n)| **n > 0) {
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
    // Later versions say so first.
    ours.strip_prefix("invalid json: ").unwrap_or(&ours).starts_with(docker) || ours.starts_with(docker)
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

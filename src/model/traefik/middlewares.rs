//! What is done to requests on the way, by Traefik's names: which of it has a counterpart. A route that names another is refused.

use super::tree::{Options, Tree, local};

/// What becomes of a middleware, by its kind in lower case.
const KINDS: [(&str, Counterpart); 24] = [
    ("addprefix", Counterpart::NotYet),
    ("basicauth", Counterpart::NotYet),
    ("buffering", Counterpart::NotYet),
    ("chain", Counterpart::NotYet),
    ("circuitbreaker", Counterpart::NotYet),
    ("compress", Counterpart::NotYet),
    ("contenttype", Counterpart::NotYet),
    ("digestauth", Counterpart::NotYet),
    ("errors", Counterpart::NotYet),
    ("forwardauth", Counterpart::NotYet),
    ("grpcweb", Counterpart::NotYet),
    ("headers", Counterpart::NotYet),
    ("inflightreq", Counterpart::NotYet),
    ("ipallowlist", Counterpart::NotYet),
    ("ipwhitelist", Counterpart::NotYet),
    ("passtlsclientcert", Counterpart::NotYet),
    ("plugin", Counterpart::Never("plugins are programs of Traefik's")),
    ("ratelimit", Counterpart::NotYet),
    ("redirectregex", Counterpart::NotYet),
    ("redirectscheme", Counterpart::NotYet),
    ("replacepath", Counterpart::NotYet),
    ("replacepathregex", Counterpart::NotYet),
    ("retry", Counterpart::NotYet),
    ("stripprefix", Counterpart::NotYet),
];

#[derive(Debug, Clone, Copy)]
enum Counterpart {
    NotYet,
    Never(&'static str),
}

/// Errors: why the middleware of that name cannot be, in words.
pub(super) fn take(reference: &str, tree: &Tree<'_>) -> Result<(), String> {
    let name = local(reference)?;
    let declared = tree.section("http.middlewares");
    let Some(options) = declared.get(&name) else {
        return Err(format!(
            "there is no middleware {name} among the labels of this service"
        ));
    };
    let kind = kind_of(options).unwrap_or_default();
    match KINDS.iter().find(|(known, _)| *known == kind) {
        Some((_, Counterpart::NotYet)) => Err(format!("middleware {name} ({kind}) has no counterpart yet")),
        Some((_, Counterpart::Never(why))) => Err(format!("middleware {name} ({kind}) has no counterpart: {why}")),
        None => Err(format!("middleware {name} is of no known kind ({kind})")),
    }
}

/// What the options of one begin with.
fn kind_of<'a>(options: &'a Options<'_>) -> Option<&'a str> {
    let (option, _) = options.first_key_value()?;
    Some(option.split(['.', '[']).next().unwrap_or(option))
}

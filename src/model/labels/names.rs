//! The labels that are understood, by their names.

use crate::model::{EndpointTls, RoutePart, nearest};

/// Every label that is understood.
pub const KNOWN: [&str; 68] = [
    MODE,
    "anynode.balance",
    HASH,
    "anynode.prefer",
    SCHEME,
    EndpointTls::CA.label,
    EndpointTls::SERVER_NAME.label,
    EndpointTls::PIN.label,
    EndpointTls::VERIFY.label,
    "anynode.slow-start",
    "anynode.allow",
    "anynode.https-only",
    REDIRECT,
    REPLACEMENT,
    PERMANENT,
    BASIC_AUTH,
    REALM,
    USER_HEADER,
    REMOVE_HEADER,
    FORWARD_AUTH,
    FORWARD_REQUEST,
    FORWARD_RESPONSE,
    RATE,
    IN_FLIGHT,
    IN_FLIGHT_PER_CLIENT,
    MAX_BODY,
    RETRIES,
    "anynode.strip-prefix",
    "anynode.replace-path",
    "anynode.add-prefix",
    COMPRESS,
    COMPRESS_TYPES,
    COMPRESS_EXCEPT,
    COMPRESS_MIN_SIZE,
    STICKY,
    COOKIE,
    SECURE,
    HTTP_ONLY,
    SAME_SITE,
    "anynode.bind",
    ROUTE,
    "anynode.priority",
    "anynode.entrypoints",
    PORT,
    "anynode.tls",
    "anynode.acme",
    "anynode.proxy-protocol",
    "anynode.health.http",
    "anynode.health.tcp",
    "anynode.health.interval",
    "anynode.health.timeout",
    "anynode.health.rise",
    "anynode.health.fall",
    "anynode.health.passive",
    "anynode.timeout.connect",
    "anynode.timeout.idle",
    "anynode.timeout.half-closed",
    "anynode.timeout.request-head",
    "anynode.timeout.response",
    "anynode.limit.connections",
    "anynode.limit.endpoint-connections",
    "anynode.limit.queue",
    "anynode.limit.queue-timeout",
    "anynode.limit.hold",
    "anynode.limit.hold-timeout",
    "anynode.client-address",
    "anynode.abort-on-client-close",
    DOCKER_SOCKET,
];

const LABEL_LEN_MAX: usize = 128;

/// What our labels begin with.
const PREFIX: &str = "anynode.";

/// Whether a label is meant for us. In other letters than small ones it is none of our options, which is to be said.
pub fn is_ours(label: &str) -> bool {
    let begin = label.get(..PREFIX.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX))
}

pub const STICKY: &str = "anynode.sticky";
pub(super) const COOKIE: &str = "anynode.sticky.cookie";
pub(super) const SECURE: &str = "anynode.sticky.secure";
pub(super) const HTTP_ONLY: &str = "anynode.sticky.http-only";
pub(super) const SAME_SITE: &str = "anynode.sticky.same-site";

pub(super) const SCHEME: &str = "anynode.scheme";

pub(super) const HASH: &str = "anynode.hash";

pub const MODE: &str = "anynode.mode";

/// Which requests, or connections, to entry points are the service's.
pub const ROUTE: &str = "anynode.route";

/// What labels of several routes begin with: a name of each follows, and one of `ROUTE_OPTIONS`.
pub const ROUTES: &str = "anynode.routes.";

pub(super) const ROUTE_OPTIONS: [RoutePart; 6] = [
    RoutePart::Rule,
    RoutePart::Priority,
    RoutePart::EntryPoints,
    RoutePart::Port,
    RoutePart::Tls,
    RoutePart::Acme,
];

/// The port that tasks listen on for them.
pub const PORT: &str = "anynode.port";

pub(super) const REDIRECT: &str = "anynode.redirect-regex";
pub(super) const REPLACEMENT: &str = "anynode.redirect-regex.replacement";
pub(super) const PERMANENT: &str = "anynode.redirect-regex.permanent";

/// Users and hashes of their passwords: no value of it is shown.
pub const BASIC_AUTH: &str = "anynode.basic-auth";
pub(super) const REALM: &str = "anynode.basic-auth.realm";
pub(super) const USER_HEADER: &str = "anynode.basic-auth.user-header";
pub(super) const REMOVE_HEADER: &str = "anynode.basic-auth.remove-header";

/// Which service says whether requests may pass.
pub(super) const FORWARD_AUTH: &str = "anynode.forward-auth";
pub(super) const FORWARD_REQUEST: &str = "anynode.forward-auth.request-headers";
pub(super) const FORWARD_RESPONSE: &str = "anynode.forward-auth.response-headers";

pub(super) const RATE: &str = "anynode.rate";
pub(super) const IN_FLIGHT: &str = "anynode.in-flight";
pub(super) const IN_FLIGHT_PER_CLIENT: &str = "anynode.in-flight-per-client";

pub(super) const MAX_BODY: &str = "anynode.max-body";
pub(super) const RETRIES: &str = "anynode.retries";

/// What is asked of requests besides.
const GUARDS: [&str; 15] = [
    REDIRECT,
    REPLACEMENT,
    PERMANENT,
    BASIC_AUTH,
    REALM,
    USER_HEADER,
    REMOVE_HEADER,
    FORWARD_AUTH,
    FORWARD_REQUEST,
    FORWARD_RESPONSE,
    RATE,
    IN_FLIGHT,
    IN_FLIGHT_PER_CLIENT,
    MAX_BODY,
    RETRIES,
];

/// Whether a label that is no option may have been meant to keep requests out.
pub(super) fn may_ask_of_requests(label: &str) -> bool {
    let label = label.to_ascii_lowercase();
    let asks = |known: &str| GUARDS.contains(&known) || known == FILTERS[0];
    let mut beginnings = label.match_indices('.').map(|(at, _)| &label[..at]);
    let like = || nearest(&label, KNOWN.map(str::to_owned).into_iter());
    label.contains("auth")
        || beginnings.any(asks)
        || (label.len() <= LABEL_LEN_MAX && like().is_some_and(|known| asks(&known)))
}

/// Of those that tell who comes in, the ones whose values are no secret.
const SHOWN: [&str; 6] = [
    REALM,
    USER_HEADER,
    REMOVE_HEADER,
    FORWARD_AUTH,
    FORWARD_REQUEST,
    FORWARD_RESPONSE,
];

/// A value as it may be shown: not where it may be a password, or the hash of one, nor under a name that is no option.
pub fn shown<'a>(label: &str, value: &'a str) -> &'a str {
    let is_known = KNOWN.contains(&label) || named_route(label).is_some() || is_field(label) || label == WEIGHT;
    let label = label.to_ascii_lowercase();
    let is_like_users = label.contains("auth") && !SHOWN.contains(&&*label);
    let is_like_hash = ["$apr1$", "$2", "{SHA}"].iter().any(|begin| value.contains(begin));
    match is_like_users
        || is_like_hash
        || (label == FORWARD_AUTH && value.contains('@'))
        || (is_ours(&label) && !is_known)
    {
        true => "(not shown)",
        false => value,
    }
}

/// What is done to requests, in the order in which it is.
pub(super) const FILTERS: [&str; 5] = [
    "anynode.allow",
    "anynode.https-only",
    "anynode.strip-prefix",
    "anynode.replace-path",
    "anynode.add-prefix",
];

/// Which answers are compressed.
pub(super) const COMPRESS: &str = "anynode.compress";
pub(super) const COMPRESS_TYPES: &str = "anynode.compress.types";
pub(super) const COMPRESS_EXCEPT: &str = "anynode.compress.except";
pub(super) const COMPRESS_MIN_SIZE: &str = "anynode.compress.min-size";
const OF_COMPRESS: [&str; 4] = [COMPRESS, COMPRESS_TYPES, COMPRESS_EXCEPT, COMPRESS_MIN_SIZE];

/// The name of a field follows.
pub(super) const REQUEST_HEADER: &str = "anynode.request-header.";
pub(super) const RESPONSE_HEADER: &str = "anynode.response-header.";

/// Whether a label says what is done to requests or answers.
pub(super) fn is_filter(label: &str) -> bool {
    FILTERS.contains(&label) || GUARDS.contains(&label) || OF_COMPRESS.contains(&label) || is_field(label)
}

/// Whether it is of a header, whose name it has.
pub(super) fn is_field(label: &str) -> bool {
    let is_of = |prefix: &str| label.strip_prefix(prefix).is_some_and(|name| !name.is_empty());
    is_of(REQUEST_HEADER) || is_of(RESPONSE_HEADER)
}

/// How much the tasks on a node get beside those of other nodes: a label of nodes.
pub const WEIGHT: &str = "anynode.weight";

/// Whose socket tasks get that mount the engine's. It says nothing of connections to the service.
pub const DOCKER_SOCKET: &str = "anynode.docker-socket";

/// Which option was meant, by its spelling; all there are where it is like none.
pub(super) fn hint(label: &str) -> String {
    let label = label.to_ascii_lowercase();
    let route = label.strip_prefix(ROUTES).and_then(|rest| rest.split_once('.'));
    let named = ROUTE_OPTIONS.map(|part| label_of(Some(route.map_or("NAME", |(name, _)| name)), part));
    let known = KNOWN.map(str::to_owned).into_iter().chain(named);
    // Nobody means anything by a longer one, and comparing costs its length.
    match nearest(&label, known.clone().filter(|_| label.len() <= LABEL_LEN_MAX)) {
        Some(nearest) => format!("; there is {nearest}"),
        None => format!(": expected one of {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// The name of the route that a label is of, and which part of it.
pub(super) fn named_route(label: &str) -> Option<(&str, RoutePart)> {
    let (name, option) = label.strip_prefix(ROUTES)?.split_once('.')?;
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let part = ROUTE_OPTIONS.into_iter().find(|part| part.as_str() == option)?;
    (!name.is_empty() && name.bytes().all(is_name)).then_some((name, part))
}

/// The label of a part of the route whose rule the label `rule` says.
pub fn beside(rule: &str, part: RoutePart) -> String {
    match rule.strip_suffix(".rule") {
        Some(route) => format!("{route}.{}", part.as_str()),
        None => label_of(None, part),
    }
}

/// The label of a part of that route; `None`: of the one without a name.
pub(super) fn label_of(name: Option<&str>, part: RoutePart) -> String {
    match (name, part) {
        (Some(name), part) => format!("{ROUTES}{name}.{}", part.as_str()),
        (None, RoutePart::Rule) => ROUTE.to_owned(),
        (None, part) => format!("anynode.{}", part.as_str()),
    }
}

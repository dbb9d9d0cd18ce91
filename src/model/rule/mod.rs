//! Rules: which requests a route takes, or which connections (`HostSNI`), in the language that Traefik's users know (its versions 2 and 3).
//! Pure. Not here: which of several routes is asked first (`routing::front`).

pub(crate) mod compiled;
mod parse;
mod pattern;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::pattern::Pattern;
use super::InvalidValue;

/// A rule, as written and as understood. Cloning is a reference count, and so is reading a text that is in use already.
#[derive(Clone)]
pub struct Rule(Arc<Inner>);

struct Inner {
    text: Box<str>,
    canonical: Box<str>,
    term: Term,
}

impl Rule {
    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The same for two rules that ask the same in the same words, in whatever order.
    pub fn canonical(&self) -> &str {
        &self.0.canonical
    }

    /// How a rule comes before others where nothing else is said: the longest first.
    pub fn priority(&self) -> i64 {
        self.0.text.len().try_into().unwrap_or(i64::MAX)
    }

    /// Whether it is of connections, of which nothing is known but what the client says first; otherwise it is of requests.
    pub fn is_of_connections(&self) -> bool {
        self.0.term.any(&Matcher::is_of_connections)
    }

    /// Whether it takes every connection, whatever the client says first.
    pub fn is_catch_all(&self) -> bool {
        self.0.term == Term::Is(Matcher::AnySni)
    }

    /// Whether anything of it looks at the name that a client says first.
    pub fn asks_for_name(&self) -> bool {
        let looks = |matcher: &Matcher| matches!(matcher, Matcher::HostSni(_) | Matcher::HostSniRegexp(_));
        self.0.term.any(&looks)
    }

    /// Whether the request, or the connection, is one of this rule's.
    pub fn takes(&self, asked: &Asked<'_>) -> bool {
        // Who says no name is of none that asks for one, in whatever way.
        let is_nameless = asked.host.is_empty() && self.asks_for_name();
        !is_nameless && self.0.term.takes(asked)
    }

    /// The hosts that alone this rule takes requests or connections for, in lower case; `None`: others too, perhaps.
    pub fn hosts(&self) -> Option<BTreeSet<&str>> {
        self.0.term.hosts()
    }

    /// The hosts that it names by `Host` or `HostSNI`, in lower case, whatever else it takes.
    pub fn named_hosts(&self) -> BTreeSet<&str> {
        let mut hosts = BTreeSet::new();
        self.0.term.name_hosts(&mut hosts);
        hosts
    }

    /// What every path that it takes begins with.
    pub fn beginning(&self) -> &str {
        self.0.term.beginning()
    }

    /// Whether anything of it looks at the path, which every path's beginning with / does not.
    pub fn asks_for_path(&self) -> bool {
        self.0.term.any(&|matcher| match matcher {
            Matcher::PathPrefix(prefix) => &**prefix != "/",
            Matcher::Path(_) | Matcher::PathRegexp(_) => true,
            _ => false,
        })
    }
}

impl PartialEq for Rule {
    /// By the text, whose length says which of several comes first.
    fn eq(&self, other: &Rule) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Rule {}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Rule {
    type Err = InvalidValue;

    /// Errors: the value and what was expected, with the place where that is not a rule.
    fn from_str(text: &str) -> Result<Rule, InvalidValue> {
        if let Some(known) = compiled::known(text.trim()) {
            return Ok(Rule(known));
        }
        let term = parse::parse(text).map_err(|expected| InvalidValue::new(text, expected))?;
        let term = term.in_order();
        let rule = Arc::new(Inner {
            text: text.trim().into(),
            canonical: format!("{term:?}").into(),
            term,
        });
        compiled::keep(&rule);
        Ok(Rule(rule))
    }
}

/// What rules are asked about.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Without a port, in lower case, without a dot at the end. Of a connection the name that the client says first; empty: it says none.
    pub host: &'a str,
    /// Decoded, without what two programs could read in two ways.
    pub path: &'a [u8],
    /// Behind the `?`, as sent.
    pub query: &'a [u8],
    pub method: &'a str,
    pub client: IpAddr,
    pub fields: &'a dyn Fields,
}

impl<'a> Asked<'a> {
    /// About a connection: `name` as `host` has it, `client` without IPv6's form of an IPv4 address.
    pub fn connection(name: &'a str, client: IpAddr) -> Asked<'a> {
        Asked {
            host: name,
            path: b"",
            query: b"",
            method: "",
            client,
            fields: &NoFields,
        }
    }
}

struct NoFields;

impl Fields for NoFields {
    fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

/// The fields of a request's head.
pub trait Fields {
    /// Whether `is` holds for the value of any field of this name, in any case.
    fn any(&self, name: &str, is: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Term {
    All(Vec<Term>),
    Any(Vec<Term>),
    Not(Box<Term>),
    Is(Matcher),
}

/// What of a request is looked at, and how it must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Matcher {
    /// In lower case, without a port and a dot at the end.
    Host(Box<str>),
    HostRegexp(Pattern),
    Path(Box<str>),
    PathPrefix(Box<str>),
    PathRegexp(Pattern),
    /// In upper case.
    Method(Box<str>),
    Header(Box<str>, Box<str>),
    HeaderRegexp(Box<str>, Pattern),
    /// `None`: whatever its value.
    Query(Box<str>, Option<Box<str>>),
    QueryRegexp(Box<str>, Pattern),
    ClientIp(IpNet),
    /// As `Host`, of what a client of TLS says first.
    HostSni(Box<str>),
    HostSniRegexp(Pattern),
    /// `HostSNI(`*`)`: with a name or without, with TLS or without.
    AnySni,
}

impl Term {
    /// Terms of the same kind as one, those beside one another in one order, none twice.
    fn in_order(self) -> Term {
        let (all, is_all) = match self {
            Term::All(all) => (all, true),
            Term::Any(any) => (any, false),
            Term::Not(term) => {
                return match term.in_order() {
                    Term::Not(term) => *term,
                    term => Term::Not(Box::new(term)),
                };
            }
            Term::Is(matcher) => return Term::Is(matcher),
        };
        let mut flat = Vec::new();
        for term in all {
            match term.in_order() {
                Term::All(inner) if is_all => flat.extend(inner),
                Term::Any(inner) if !is_all => flat.extend(inner),
                term => flat.push(term),
            }
        }
        flat.sort();
        flat.dedup();
        match (flat.len(), is_all) {
            (1, _) => flat.remove(0),
            (_, true) => Term::All(flat),
            (_, false) => Term::Any(flat),
        }
    }

    fn takes(&self, asked: &Asked<'_>) -> bool {
        match self {
            Term::All(all) => all.iter().all(|term| term.takes(asked)),
            Term::Any(any) => any.iter().any(|term| term.takes(asked)),
            Term::Not(term) => !term.takes(asked),
            Term::Is(matcher) => matcher.takes(asked),
        }
    }

    fn hosts(&self) -> Option<BTreeSet<&str>> {
        match self {
            Term::All(all) => all.iter().filter_map(Term::hosts).min_by_key(BTreeSet::len),
            Term::Any(any) => any
                .iter()
                .map(Term::hosts)
                .try_fold(BTreeSet::new(), |mut hosts, more| {
                    hosts.extend(more?);
                    Some(hosts)
                }),
            Term::Is(Matcher::Host(host) | Matcher::HostSni(host)) => Some(BTreeSet::from([&**host])),
            Term::Not(_) | Term::Is(_) => None,
        }
    }

    fn name_hosts<'a>(&'a self, hosts: &mut BTreeSet<&'a str>) {
        match self {
            Term::All(terms) | Term::Any(terms) => terms.iter().for_each(|term| term.name_hosts(hosts)),
            Term::Is(Matcher::Host(host) | Matcher::HostSni(host)) => drop(hosts.insert(host)),
            Term::Not(_) | Term::Is(_) => {}
        }
    }

    fn beginning(&self) -> &str {
        match self {
            Term::All(all) => all
                .iter()
                .map(Term::beginning)
                .max_by_key(|text| text.len())
                .unwrap_or(""),
            Term::Any(any) => any.iter().map(Term::beginning).reduce(in_common).unwrap_or(""),
            Term::Is(Matcher::Path(path) | Matcher::PathPrefix(path)) => path,
            Term::Not(_) | Term::Is(_) => "",
        }
    }

    fn any(&self, is: &impl Fn(&Matcher) -> bool) -> bool {
        match self {
            Term::All(terms) | Term::Any(terms) => terms.iter().any(|term| term.any(is)),
            Term::Not(term) => term.any(is),
            Term::Is(matcher) => is(matcher),
        }
    }
}

impl Matcher {
    fn is_of_connections(&self) -> bool {
        matches!(self, Matcher::HostSni(_) | Matcher::HostSniRegexp(_) | Matcher::AnySni)
    }

    /// Requests come over connections, and have a client too.
    fn is_of_requests(&self) -> bool {
        !self.is_of_connections() && !matches!(self, Matcher::ClientIp(_))
    }

    fn takes(&self, asked: &Asked<'_>) -> bool {
        match self {
            Matcher::Host(host) => asked.host == &**host,
            Matcher::HostRegexp(pattern) => pattern.is_in(asked.host.as_bytes()),
            Matcher::Path(path) => asked.path == path.as_bytes(),
            Matcher::PathPrefix(prefix) => asked.path.starts_with(prefix.as_bytes()),
            Matcher::PathRegexp(pattern) => pattern.is_in(asked.path),
            // There are endpoints that take one in small letters for the same.
            Matcher::Method(method) => asked.method.eq_ignore_ascii_case(method),
            Matcher::Header(name, value) => asked.fields.any(name, &mut |found| found == value.as_bytes()),
            Matcher::HeaderRegexp(name, pattern) => asked.fields.any(name, &mut |found| pattern.is_in(found)),
            Matcher::Query(key, None) => pairs(asked).any(|(found, _)| found == **key),
            Matcher::Query(key, Some(value)) => pairs(asked).any(|(found, has)| found == **key && has == **value),
            Matcher::QueryRegexp(key, pattern) => {
                pairs(asked).any(|(found, has)| found == **key && pattern.is_in(has.as_bytes()))
            }
            Matcher::ClientIp(net) => net.contains(&asked.client),
            Matcher::HostSni(name) => asked.host == &**name,
            // Who says no name says none that is like any.
            Matcher::HostSniRegexp(pattern) => !asked.host.is_empty() && pattern.is_in(asked.host.as_bytes()),
            Matcher::AnySni => true,
        }
    }
}

/// What both begin with.
fn in_common<'a>(one: &'a str, other: &str) -> &'a str {
    let differs = |((at, one), other): ((usize, char), char)| (one != other).then_some(at);
    let at = one.char_indices().zip(other.chars()).find_map(differs);
    &one[..at.unwrap_or_else(|| one.len().min(other.len()))]
}

fn pairs<'a>(asked: &Asked<'a>) -> form_urlencoded::Parse<'a> {
    form_urlencoded::parse(asked.query)
}

#[cfg(test)]
mod tests;

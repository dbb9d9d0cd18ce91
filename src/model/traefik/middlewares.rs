//! What is done to requests on the way, by Traefik's names. What has no counterpart is refused, and the route with it.

use std::sync::Arc;

use super::guards::{self, Whose};
use super::tree::{Label, Options, Tree, elements, flag, is_list, local};
use crate::model::InvalidValue;
use crate::model::filters::{FieldEdit, FieldName, Filters, ToHttps, network};
use crate::model::guards::{BasicAuth, ForwardAuth, Guards};
use crate::model::rule::Rule;

/// Those of one router, one after the other.
#[derive(Default)]
pub(super) struct Chain {
    filters: Filters,
    request_fields: Vec<FieldEdit>,
    response_fields: Vec<FieldEdit>,
    guards: Guards,
    /// How far the order has come in which ours are done.
    step: Step,
    n_taken: usize,
    /// Requests under way are counted of each host, which is all of a route that has one.
    counts_by_host: bool,
}

/// The order in which filters are done. Headers go with any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Step {
    #[default]
    Begin,
    Allow,
    Https,
    Redirect,
    Strip,
    Replace,
    Add,
}

impl Chain {
    /// `None`: nothing is done.
    pub(super) fn into_filters(self) -> Option<Arc<Filters>> {
        let filters = Filters {
            request_fields: self.request_fields.into(),
            response_fields: self.response_fields.into(),
            guards: self.guards.into_some(),
            ..self.filters
        };
        (!filters.is_empty()).then(|| Arc::new(filters))
    }

    /// What is wrong with it for a route with that rule, in words.
    pub(super) fn fault_beside(&self, rule: &Rule) -> Option<&'static str> {
        let has_one_host = || rule.hosts().is_some_and(|hosts| hosts.len() <= 1);
        (self.counts_by_host && !has_one_host()).then_some(
            "inFlightReq counts each host by itself, and ours the whole route: expected a rule of one Host, or sourceCriterion.ipStrategy",
        )
    }

    /// Adds the middleware of that name. Errors: why it cannot be, in words.
    pub(super) fn take(&mut self, reference: &str, tree: &Tree<'_>) -> Result<(), String> {
        self.take_within(reference, tree, CHAIN_DEPTH_MAX)
    }

    fn take_within(&mut self, reference: &str, tree: &Tree<'_>, depth_left: usize) -> Result<(), String> {
        let name = local(reference)?;
        self.n_taken += 1;
        if self.n_taken > MIDDLEWARES_MAX {
            return Err(format!("middleware {name} is one of more than {MIDDLEWARES_MAX}"));
        }
        let declared = tree.section("http.middlewares");
        let Some(options) = declared.get(&name) else {
            return Err(format!(
                "there is no middleware {name} among the labels of this service"
            ));
        };
        let mut kinds: Vec<&str> = options.keys().map(|option| kind_of(option)).collect();
        kinds.dedup();
        let [kind] = kinds.as_slice() else {
            return Err(format!("middleware {name} is of several kinds ({})", kinds.join(", ")));
        };
        let wrong = |what: String| format!("middleware {name} ({kind}) {what}");
        match *kind {
            "chain" => {
                let depth_left = depth_left
                    .checked_sub(1)
                    .ok_or_else(|| wrong("leads to itself".to_owned()))?;
                let mut is_empty = true;
                for (option, label) in options {
                    if !is_list(option, "chain.middlewares") {
                        return Err(wrong(no_counterpart(label)));
                    }
                    for reference in elements(label.value) {
                        is_empty = false;
                        self.take_within(reference, tree, depth_left)?;
                    }
                }
                match is_empty {
                    true => Err(wrong("names none".to_owned())),
                    false => Ok(()),
                }
            }
            "plugin" => Err(wrong(
                "has no counterpart: plugins are programs of Traefik's".to_owned(),
            )),
            kind if KINDS.contains(&kind) => self.take_options(kind, options).map_err(wrong),
            kind if NOT_YET.contains(&kind) => Err(wrong("has no counterpart yet".to_owned())),
            _ => Err(format!("middleware {name} is of no known kind ({kind})")),
        }
    }

    fn take_options(&mut self, kind: &str, options: &Options<'_>) -> Result<(), String> {
        let step = match kind {
            "ipallowlist" | "ipwhitelist" => Some(Step::Allow),
            "redirectscheme" => Some(Step::Https),
            "redirectregex" => Some(Step::Redirect),
            "stripprefix" => Some(Step::Strip),
            "replacepath" => Some(Step::Replace),
            "addprefix" => Some(Step::Add),
            _ => None,
        };
        if let Some(step) = step {
            if step <= self.step {
                return Err(
                    "has no counterpart behind those before it: once each of ipAllowList, redirectScheme, redirectRegex, stripPrefix, \
                     replacePath and addPrefix, in this order"
                        .to_owned(),
                );
            }
            self.step = step;
        }
        match kind {
            "compress" => put(&mut self.filters.compress, Arc::new(guards::compress(options)?))?,
            "redirectscheme" => self.filters.to_https = Some(to_https(options)?),
            "headers" => self.take_headers(options)?,
            "basicauth" => self.take_auth(guards::basic_auth(options)?)?,
            "forwardauth" => self.take_forward(guards::forward_auth(options)?)?,
            "inflightreq" => match guards::in_flight(options)? {
                (cap, Whose::All | Whose::Host) => {
                    put(&mut self.guards.in_flight, cap)?;
                    self.counts_by_host = true;
                }
                (cap, Whose::Client) => put(&mut self.guards.in_flight_per_client, cap)?,
            },
            "redirectregex" if self.guards.auth.is_some() || self.guards.forward.is_some() => {
                return Err(
                    "has no counterpart behind basicAuth or forwardAuth: clients are sent elsewhere first".to_owned(),
                );
            }
            "redirectregex" => self.filters.redirect = Some(guards::redirect(options)?),
            "buffering" => put(&mut self.guards.max_body, guards::max_body(options)?)?,
            "retry" => put(&mut self.guards.retries, guards::retries(options)?)?,
            "ratelimit" => {
                if let Some(rate) = guards::rate(options)? {
                    put(&mut self.guards.rate, rate)?;
                }
            }
            _ => {
                for (option, label) in options {
                    self.take_option(option, label)
                        .map_err(|expected| format!("has {}: {expected}", label.key))?;
                }
            }
        }
        let is_whole = match step {
            Some(Step::Allow) => self.filters.allow.is_some(),
            Some(Step::Strip) => !self.filters.strip_prefix.is_empty(),
            Some(Step::Replace) => self.filters.replace_path.is_some(),
            Some(Step::Add) => self.filters.add_prefix.is_some(),
            _ => true,
        };
        match is_whole {
            true => Ok(()),
            false => Err("says nothing of what it is to do".to_owned()),
        }
    }

    /// Errors: what comes before it would be done after it.
    fn take_auth(&mut self, auth: BasicAuth) -> Result<(), String> {
        let guards = &self.guards;
        if guards.forward.is_some() {
            return Err("has no counterpart behind forwardAuth: expected in front of it".to_owned());
        }
        if guards.rate.is_some() || guards.in_flight.is_some() || guards.in_flight_per_client.is_some() {
            return Err(
                "has no counterpart behind rateLimit or inFlightReq: expected in front of them, a password is asked before anything \
                 is counted"
                    .to_owned(),
            );
        }
        let is_set_before = |field: &FieldName| self.request_fields.iter().any(|(name, _)| name.is_same(field));
        if let Some(field) = auth.user_field.as_ref().filter(|field| is_set_before(field)) {
            return Err(format!(
                "has no counterpart behind customRequestHeaders.{}: its headerField would not tell the user, but what is set there",
                field.as_str()
            ));
        }
        put(&mut self.guards.auth, Arc::new(auth))
    }

    /// Errors: what comes before it would be done after it.
    fn take_forward(&mut self, auth: ForwardAuth) -> Result<(), String> {
        let guards = &self.guards;
        if guards.rate.is_some() || guards.in_flight.is_some() || guards.in_flight_per_client.is_some() {
            return Err("has no counterpart behind rateLimit or inFlightReq: expected in front of them".to_owned());
        }
        if self.step >= Step::Strip || !self.request_fields.is_empty() {
            return Err(
                "has no counterpart behind what changes requests (stripPrefix, replacePath, addPrefix, customRequestHeaders): expected in \
                 front of it, the request is shown as it came"
                    .to_owned(),
            );
        }
        put(&mut self.guards.forward, Arc::new(auth))
    }

    fn take_option(&mut self, option: &str, label: &Label<'_>) -> Result<(), String> {
        let text = label.value;
        let of = |error: InvalidValue| format!("expected {}", error.expected);
        match option {
            "addprefix.prefix" => self.filters.add_prefix = Some(text.parse().map_err(of)?),
            "replacepath.path" => self.filters.replace_path = Some(text.parse().map_err(of)?),
            // Of an earlier version: ours is always so.
            "stripprefix.forceslash" if flag(text) == Some(true) => {}
            _ if is_list(option, "stripprefix.prefixes") => {
                let more: Result<Vec<_>, _> = elements(text).map(|text| text.parse().map_err(of)).collect();
                let all = self.filters.strip_prefix.iter().cloned().chain(more?);
                self.filters.strip_prefix = all.collect();
            }
            _ if is_list(option, "ipallowlist.sourcerange") || is_list(option, "ipwhitelist.sourcerange") => {
                let more: Result<Vec<_>, _> = elements(text).map(|text| network(text).map_err(of)).collect();
                let before = self.filters.allow.take();
                let all = before.iter().flat_map(|all| all.iter().copied()).chain(more?);
                self.filters.allow = Some(all.collect());
            }
            _ => return Err("no counterpart yet".to_owned()),
        }
        Ok(())
    }

    fn take_headers(&mut self, options: &Options<'_>) -> Result<(), String> {
        let mut transport = Transport::default();
        for (option, label) in options {
            let taken = match option.strip_prefix("headers.").unwrap_or_default() {
                "stsseconds" => label
                    .value
                    .parse()
                    .map(|seconds| transport.seconds = Some(seconds))
                    .ok(),
                "stsincludesubdomains" => flag(label.value).map(|is| transport.with_subdomains = is),
                "stspreload" => flag(label.value).map(|is| transport.is_preloaded = is),
                "framedeny" => self.answer_if(label, "X-Frame-Options", "DENY"),
                "contenttypenosniff" => self.answer_if(label, "X-Content-Type-Options", "nosniff"),
                "browserxssfilter" => self.answer_if(label, "X-XSS-Protection", "1; mode=block"),
                // It is so always: browsers pass it over where there is no TLS.
                "forcestsheader" => flag(label.value).map(drop),
                // Nothing is said.
                "customframeoptionsvalue" | "referrerpolicy" | "contentsecuritypolicy" | "permissionspolicy"
                    if label.value.is_empty() =>
                {
                    Some(())
                }
                "customframeoptionsvalue" => self.answer("X-Frame-Options", label.value),
                "referrerpolicy" => self.answer("Referrer-Policy", label.value),
                "contentsecuritypolicy" => self.answer("Content-Security-Policy", label.value),
                "permissionspolicy" => self.answer("Permissions-Policy", label.value),
                of_field => match of_field.split_once('.') {
                    Some(("customrequestheaders", _)) => edit(label).map(|edit| {
                        // Who comes later is nearer to the endpoint.
                        self.request_fields.retain(|(name, _)| !name.is_same(&edit.0));
                        self.request_fields.push(edit);
                    }),
                    Some(("customresponseheaders", _)) => edit(label).map(|edit| self.answer_by(edit)),
                    _ => None,
                },
            };
            taken.ok_or_else(|| no_counterpart(label))?;
        }
        match transport.seconds {
            Some(1..) => self.answer("Strict-Transport-Security", &transport.value()),
            _ => Some(()),
        }
        .ok_or_else(|| "cannot be written".to_owned())
    }

    /// Has answers say that.
    fn answer(&mut self, name: &str, value: &str) -> Option<()> {
        self.answer_by((name.parse().ok()?, Some(value.parse().ok()?)));
        Some(())
    }

    /// Who comes first is nearer to the client, and has the last word.
    fn answer_by(&mut self, edit: FieldEdit) {
        if !self.response_fields.iter().any(|(name, _)| name.is_same(&edit.0)) {
            self.response_fields.push(edit);
        }
    }

    fn answer_if(&mut self, label: &Label<'_>, name: &str, value: &str) -> Option<()> {
        match flag(label.value)? {
            true => self.answer(name, value),
            false => Some(()),
        }
    }
}

#[derive(Default)]
struct Transport {
    seconds: Option<u64>,
    with_subdomains: bool,
    is_preloaded: bool,
}

impl Transport {
    fn value(&self) -> String {
        let seconds = self.seconds.unwrap_or(0);
        let subdomains = if self.with_subdomains {
            "; includeSubDomains"
        } else {
            ""
        };
        let preload = if self.is_preloaded { "; preload" } else { "" };
        format!("max-age={seconds}{subdomains}{preload}")
    }
}

/// A field by the last part of its label; no value takes it away.
fn edit(label: &Label<'_>) -> Option<FieldEdit> {
    let name = label.key.splitn(7, '.').nth(6)?.parse().ok()?;
    match label.value {
        "" => Some((name, None)),
        value => Some((name, Some(value.parse().ok()?))),
    }
}

fn to_https(options: &Options<'_>) -> Result<ToHttps, String> {
    let mut to = ToHttps {
        is_permanent: false,
        port: None,
    };
    let mut is_https = false;
    for (option, label) in options {
        let taken = match option.as_str() {
            "redirectscheme.scheme" => (label.value == "https").then(|| is_https = true),
            "redirectscheme.permanent" => flag(label.value).map(|is| to.is_permanent = is),
            "redirectscheme.port" => label.value.parse().ok().map(|port| to.port = Some(port)),
            _ => None,
        };
        taken.ok_or_else(|| no_counterpart(label))?;
    }
    match is_https {
        true => Ok(to),
        false => Err("says no scheme: expected https".to_owned()),
    }
}

/// Errors: there is one already.
fn put<T>(to: &mut Option<T>, value: T) -> Result<(), String> {
    match to.replace(value) {
        Some(_) => Err("has no counterpart behind another of its kind: expected one".to_owned()),
        None => Ok(()),
    }
}

pub(super) fn no_counterpart(label: &Label<'_>) -> String {
    format!("has no counterpart yet for {}", label.key)
}

fn kind_of(option: &str) -> &str {
    option.split(['.', '[']).next().unwrap_or(option)
}

const KINDS: [&str; 15] = [
    "addprefix",
    "basicauth",
    "buffering",
    "compress",
    "forwardauth",
    "headers",
    "inflightreq",
    "ipallowlist",
    "ipwhitelist",
    "ratelimit",
    "redirectregex",
    "redirectscheme",
    "replacepath",
    "retry",
    "stripprefix",
];
const NOT_YET: [&str; 7] = [
    "circuitbreaker",
    "contenttype",
    "digestauth",
    "errors",
    "grpcweb",
    "passtlsclientcert",
    "replacepathregex",
];
const CHAIN_DEPTH_MAX: usize = 8;
const MIDDLEWARES_MAX: usize = 64;

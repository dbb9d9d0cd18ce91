//! What Traefik's middlewares ask of requests before they go on, as ours. What has no counterpart is refused, and no fault shows what may be a password.

use std::sync::Arc;
use std::time::Duration;

use super::middlewares::no_counterpart;
use super::tree::{Label, Options, elements, flag, is_list};
use crate::model::InvalidValue;
use crate::model::compress::{Compress, MediaRange};
use crate::model::guards::{AuthAddress, BasicAuth, BodyMost, Cap, ForwardAuth, Rate, Retries, Users};
use crate::model::parse_duration;
use crate::model::redirect::{Redirect, WrongRedirect, part};

/// Errors: what is wrong, in words.
pub(super) fn basic_auth(options: &Options<'_>) -> Result<BasicAuth, String> {
    let users = options.iter().filter(|(option, _)| is_list(option, "basicauth.users"));
    let users = Users::of(users.flat_map(|(_, label)| elements(label.value)));
    let mut auth = BasicAuth::new(users.map_err(|wrong| format!("has users: {wrong}"))?);
    if let Ok(realm) = TRAEFIKS_REALM.parse() {
        auth.realm = realm;
    }
    for (option, label) in options {
        let taken = match option.as_str() {
            "basicauth.realm" if label.value.is_empty() => Some(()),
            "basicauth.realm" => label.value.parse().ok().map(|realm| auth.realm = realm),
            "basicauth.headerfield" if label.value.is_empty() => Some(()),
            "basicauth.headerfield" => label.value.parse().ok().map(|field| auth.user_field = Some(field)),
            "basicauth.removeheader" => flag(label.value).map(|is| auth.removes_field = is),
            _ if is_list(option, "basicauth.users") => Some(()),
            _ => None,
        };
        taken.ok_or_else(|| no_counterpart(label))?;
    }
    Ok(auth)
}

/// Whom clients come through is for our `trusted_proxies` to say, whatever `trustForwardHeader` does. Errors as above.
pub(super) fn forward_auth(options: &Options<'_>) -> Result<ForwardAuth, String> {
    let (mut address, mut asked, mut told) = (None, Vec::new(), Vec::new());
    for (option, label) in options {
        let wrong = |wrong: InvalidValue| format!("has {}: expected {}", label.key, wrong.expected);
        match option.as_str() {
            "forwardauth.address" => address = Some(label.value.parse::<AuthAddress>().map_err(wrong)?),
            "forwardauth.trustforwardheader" if flag(label.value).is_some() => {}
            "forwardauth.preservelocationheader" if flag(label.value) == Some(true) => {}
            "forwardauth.preserverequestmethod" | "forwardauth.forwardbody" if flag(label.value) == Some(false) => {}
            _ if is_list(option, "forwardauth.authresponseheaders") => {
                for text in elements(label.value) {
                    told.push(text.parse().map_err(wrong)?);
                }
            }
            _ if is_list(option, "forwardauth.authrequestheaders") => {
                for text in elements(label.value) {
                    asked.push(text.parse().map_err(wrong)?);
                }
            }
            _ => return Err(no_counterpart(label)),
        }
    }
    let address = address.ok_or_else(|| "says no address".to_owned())?;
    Ok(ForwardAuth {
        request_fields: (!asked.is_empty()).then(|| asked.into()),
        response_fields: told.into(),
        ..ForwardAuth::new(address)
    })
}

/// `None`: no limit. Errors as above.
pub(super) fn rate(options: &Options<'_>) -> Result<Option<Rate>, String> {
    let (mut average, mut period, mut burst) = (None, Duration::from_secs(1), 1);
    for (option, label) in options {
        let wrong = || format!("has {}={}: expected a rate that there can be", label.key, label.value);
        match option.as_str() {
            "ratelimit.average" => average = Some(label.value.parse::<u32>().map_err(|_| wrong())?),
            "ratelimit.burst" => burst = label.value.parse().map_err(|_| wrong())?,
            "ratelimit.period" => period = span(label.value).ok_or_else(wrong)?,
            _ => match option.strip_prefix("ratelimit.sourcecriterion.") {
                Some(criterion) => {
                    whose(criterion, label)?;
                }
                None => return Err(no_counterpart(label)),
            },
        }
    }
    match average {
        None => Err("says no average".to_owned()),
        Some(0) => Ok(None),
        Some(average) => match Rate::new(average, period, burst) {
            Some(rate) => Ok(Some(rate)),
            None => {
                Err("has a rate that there cannot be: expected a period up to 24h and a burst of 1 at least".to_owned())
            }
        },
    }
}

/// Of whom requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    All,
    /// Those to one host: all, where a route has one.
    Host,
    Client,
}

/// Errors as above.
pub(super) fn in_flight(options: &Options<'_>) -> Result<(Cap, Whose), String> {
    let mut amount = None;
    let (mut by_client, mut by_host) = (false, None);
    for (option, label) in options {
        match (option.as_str(), option.strip_prefix("inflightreq.sourcecriterion.")) {
            ("inflightreq.amount", _) => {
                let cap = label.value.parse::<Cap>();
                amount = Some(cap.map_err(|wrong| format!("has {}: expected {}", label.key, wrong.expected))?);
            }
            (_, Some("requesthost")) if flag(label.value) == Some(true) => by_host = Some(label),
            (_, Some(criterion)) => by_client |= whose(criterion, label)? == Whose::Client,
            _ => return Err(no_counterpart(label)),
        }
    }
    let amount = amount.ok_or_else(|| "says no amount".to_owned())?;
    match (by_client, by_host) {
        (true, Some(label)) => Err(format!(
            "has {}={}: expected one criterion, and there is ipStrategy too",
            label.key, label.value
        )),
        (true, None) => Ok((amount, Whose::Client)),
        // As Traefik has it where nothing is said.
        (false, _) => Ok((amount, Whose::Host)),
    }
}

/// Errors as above.
pub(super) fn max_body(options: &Options<'_>) -> Result<BodyMost, String> {
    let mut most = None;
    for (option, label) in options {
        match option.as_str() {
            "buffering.maxrequestbodybytes" => {
                let bytes = label.value.parse::<BodyMost>();
                most = Some(bytes.map_err(|wrong| format!("has {}: expected {}", label.key, wrong.expected))?);
            }
            _ => return Err(no_counterpart(label)),
        }
    }
    most.ok_or_else(|| "says no maxRequestBodyBytes".to_owned())
}

/// Traefik counts the first time too. Errors as above.
pub(super) fn retries(options: &Options<'_>) -> Result<Retries, String> {
    let mut retries = None;
    for (option, label) in options {
        match option.as_str() {
            "retry.attempts" => {
                let attempts = label.value.parse::<u32>().ok();
                let again = attempts.and_then(|attempts| attempts.checked_sub(1)?.to_string().parse().ok());
                retries =
                    Some(again.ok_or_else(|| format!("has {}: expected a whole number from 1 to 11", label.key))?);
            }
            _ => return Err(no_counterpart(label)),
        }
    }
    retries.ok_or_else(|| "says no attempts".to_owned())
}

/// Traefik asks of the types that are left out only whether there is a point in it: ours are those that there is. Errors as above.
pub(super) fn compress(options: &Options<'_>) -> Result<Compress, String> {
    let mut compress = Compress::default();
    let (mut types, mut except): (Vec<MediaRange>, Vec<MediaRange>) = (Vec::new(), Vec::new());
    for (option, label) in options {
        let wrong = |wrong: InvalidValue| format!("has {}: expected {}", label.key, wrong.expected);
        let ranges = || -> Result<Vec<MediaRange>, String> {
            elements(label.value).map(|text| text.parse().map_err(wrong)).collect()
        };
        match option.as_str() {
            "compress" if flag(label.value) == Some(true) => {}
            "compress.minresponsebodybytes" => match label.value.parse::<u64>() {
                // As where nothing is said.
                Ok(0) => {}
                Ok(bytes) => compress.min_size = bytes,
                Err(_) => return Err(format!("has {}: expected a number of bytes", label.key)),
            },
            // No client gets gRPC compressed.
            _ if is_list(option, "compress.excludedcontenttypes") => {
                let others = elements(label.value).filter(|text| *text != "application/grpc");
                for text in others {
                    except.push(text.parse().map_err(wrong)?);
                }
            }
            _ if is_list(option, "compress.includedcontenttypes") => types.extend(ranges()?),
            _ if is_list(option, "compress.encodings") => {
                if !elements(label.value).any(|text| text == "gzip") {
                    return Err(format!("{}: expected gzip among them", no_counterpart(label)));
                }
            }
            _ => return Err(no_counterpart(label)),
        }
    }
    if !types.is_empty() {
        compress.types = types.into();
    }
    compress.except = except.into();
    Ok(compress)
}

/// Errors as above.
pub(super) fn redirect(options: &Options<'_>) -> Result<Arc<Redirect>, String> {
    let (mut regex, mut replacement, mut is_permanent) = (None, None, false);
    for (option, label) in options {
        match option.as_str() {
            "redirectregex.regex" => regex = Some(label),
            "redirectregex.replacement" => replacement = Some(label),
            "redirectregex.permanent" => is_permanent = flag(label.value).ok_or_else(|| no_counterpart(label))?,
            _ => return Err(no_counterpart(label)),
        }
    }
    let (Some(regex), Some(replacement)) = (regex, replacement) else {
        return Err("says no regex or no replacement".to_owned());
    };
    let redirect = Redirect::new(regex.value, replacement.value, is_permanent);
    redirect.map_err(|wrong| {
        let (label, expected) = match wrong {
            WrongRedirect::Regex(expected) => (regex, expected),
            WrongRedirect::Replacement(expected) => (replacement, expected),
        };
        format!("has {}={}: {expected}", label.key, part(label.value))
    })
}

/// By what requests are told apart: ours by the client's address alone, behind trusted proxies as those say.
fn whose(criterion: &str, label: &Label<'_>) -> Result<Whose, String> {
    let is_so = match criterion {
        "ipstrategy" => flag(label.value) == Some(true) || label.value.is_empty(),
        "ipstrategy.depth" => label.value.parse::<i64>().is_ok_and(|depth| depth <= 0),
        "ipstrategy.ipv6subnet" => label.value == "64",
        "requesthost" => flag(label.value) == Some(false),
        _ => false,
    };
    match (is_so, criterion) {
        (true, "requesthost") => Ok(Whose::All),
        (true, _) => Ok(Whose::Client),
        (false, _) => Err(format!(
            "{}: clients are told apart by their address, as trusted_proxies in the configuration say it",
            no_counterpart(label)
        )),
    }
}

/// A number alone is seconds.
fn span(text: &str) -> Option<Duration> {
    let seconds = text
        .parse::<u32>()
        .ok()
        .map(|seconds| Duration::from_secs(seconds.into()));
    seconds.or_else(|| parse_duration(text).ok())
}

const TRAEFIKS_REALM: &str = "traefik";

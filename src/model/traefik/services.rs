//! `traefik.http.services.NAME`: how tasks are reached for its routes. What has no counterpart is a fault of every route to it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::tree::{Label, Options, Tree, flag};
use super::{Kind, Translated};
use crate::model::{Balance, HealthCheck, HealthProbe, InvalidValue, ProxyProtocol, Scheme, Sticky, parse_duration};

#[derive(Debug, Default)]
pub(super) struct Service {
    pub(super) port: Option<u16>,
    health: Option<HealthCheck>,
    balance: Option<Balance>,
    scheme: Option<Scheme>,
    sticky: Option<Sticky>,
    /// Of connections.
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// Nothing is routed to it then.
    pub(super) faults: Vec<String>,
}

pub(super) fn all(tree: &Tree<'_>) -> BTreeMap<String, Service> {
    let named = tree.section("http.services");
    named
        .into_iter()
        .map(|(name, options)| (name, read(&options)))
        .collect()
}

/// There is one check, one way of balancing and one cookie, for all ports of a service: whose labels say another than those before are
/// refused.
pub(super) fn agree(kind: Kind, services: &mut BTreeMap<String, Service>, out: &mut Translated) {
    for (name, service) in services.iter_mut().filter(|(_, service)| service.faults.is_empty()) {
        let is_same = goes_with(&out.health, &service.health)
            && goes_with(&out.balance, &service.balance)
            && goes_with(&out.scheme, &service.scheme)
            && goes_with(&out.sticky, &service.sticky)
            && goes_with(&out.proxy_protocol, &service.proxy_protocol);
        if !is_same {
            service.faults.push(format!(
                "labels traefik.{}.services.{name}: expected the health check, the strategy, the scheme, the cookie and the PROXY protocol of the services before it, since tasks have one of each",
                kind.as_str()
            ));
            continue;
        }
        out.health = out.health.take().or_else(|| service.health.clone());
        out.balance = out.balance.or(service.balance);
        out.scheme = out.scheme.or(service.scheme);
        out.sticky = out.sticky.take().or_else(|| service.sticky.clone());
        out.proxy_protocol = out.proxy_protocol.or(service.proxy_protocol);
    }
    // Nothing is routed to those that are refused, but their tasks are the same, and may be reached by published ports.
    for service in services.values().filter(|service| !service.faults.is_empty()) {
        out.scheme = out.scheme.or(service.scheme);
    }
}

fn goes_with<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
    one.is_none() || other.is_none() || one == other
}

fn read(options: &Options<'_>) -> Service {
    let mut service = Service::default();
    let mut check = Check::default();
    let mut cookie = Cookie::default();
    for (option, label) in options {
        if let Err(expected) = take(option, *label, &mut service, &mut check, &mut cookie) {
            service.faults.push(format!("{label}: {expected}"));
        }
    }
    match check.into_health() {
        Ok(health) => service.health = health,
        Err(fault) => service.faults.push(fault),
    }
    match cookie.into_sticky() {
        Ok(sticky) => service.sticky = sticky,
        Err(fault) => service.faults.push(fault),
    }
    service
}

/// Errors: what was expected, or that there is no counterpart.
fn take<'a>(
    option: &str,
    label: Label<'a>,
    service: &mut Service,
    check: &mut Check<'a>,
    cookie: &mut Cookie<'a>,
) -> Result<(), String> {
    let text = label.value;
    let Some(option) = option.strip_prefix("loadbalancer.") else {
        return Err("no counterpart: expected loadbalancer".to_owned());
    };
    match option {
        "server.port" => service.port = Some(port(text)?),
        "server.scheme" => match text {
            "http" => service.scheme = Some(Scheme::Http),
            "h2c" => service.scheme = Some(Scheme::H2c),
            "https" => service.scheme = Some(Scheme::Https),
            _ => return Err("expected http, https or h2c".to_owned()),
        },
        "serverstransport" => {
            return Err(
                "no counterpart: it is in a file of Traefik's. Labels anynode.endpoint-tls.* in the place of this one say whom \
                 endpoints are believed to be"
                    .to_owned(),
            );
        }
        "passhostheader" => match flag(text) {
            Some(true) => {}
            Some(false) => return Err("no counterpart yet: requests keep their Host".to_owned()),
            None => return Err("expected true or false".to_owned()),
        },
        "strategy" => match text {
            "wrr" => service.balance = Some(Balance::RoundRobin),
            "p2c" => service.balance = Some(Balance::LeastRequest),
            _ => return Err("no counterpart yet: expected wrr or p2c".to_owned()),
        },
        // It is sent on as it comes, which is what a short one is for.
        "responseforwarding.flushinterval" => {}
        "sticky" | "sticky.cookie" => cookie.is_on = Some(flag(text).ok_or("expected true or false")?),
        "sticky.cookie.name" => cookie.part(label, |sticky| text.parse().map(|name| sticky.cookie = name))?,
        "sticky.cookie.samesite" => {
            let lower = text.to_ascii_lowercase();
            cookie.part(label, |sticky| lower.parse().map(|site| sticky.same_site = Some(site)))?;
        }
        "sticky.cookie.secure" => {
            cookie.last = Some(label);
            cookie.sticky.secure = flag(text).ok_or("expected true or false")?;
        }
        "sticky.cookie.httponly" => {
            cookie.last = Some(label);
            cookie.sticky.http_only = flag(text).ok_or("expected true or false")?;
        }
        "healthcheck.path" => match text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) {
            true => check.path = Some(text),
            false => return Err("expected a path that begins with /".to_owned()),
        },
        "healthcheck.interval" => check.interval = Some((label, span(text, SHORTEST_INTERVAL)?)),
        "healthcheck.timeout" => check.timeout = Some((label, span(text, Duration::from_millis(1))?)),
        _ => return Err("no counterpart yet".to_owned()),
    }
    Ok(())
}

/// Errors: what was expected.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| "expected a port from 1 to 65535".to_owned())
}

/// A cookie as it is written: any part of it asks for one.
#[derive(Default)]
struct Cookie<'a> {
    is_on: Option<bool>,
    last: Option<Label<'a>>,
    sticky: Sticky,
}

impl<'a> Cookie<'a> {
    fn part(
        &mut self,
        label: Label<'a>,
        set: impl FnOnce(&mut Sticky) -> Result<(), InvalidValue>,
    ) -> Result<(), String> {
        self.last = Some(label);
        set(&mut self.sticky).map_err(|error| format!("expected {}", error.expected))
    }

    /// Errors: what browsers would drop.
    fn into_sticky(self) -> Result<Option<Sticky>, String> {
        let is_on = self.is_on.unwrap_or_else(|| self.last.is_some());
        match (is_on, self.sticky.check(), self.last) {
            (false, ..) => Ok(None),
            (true, Err(expected), Some(label)) => Err(format!("{label}: {expected}")),
            (true, ..) => Ok(Some(self.sticky)),
        }
    }
}

/// A health check as it is written.
#[derive(Default)]
struct Check<'a> {
    path: Option<&'a str>,
    interval: Option<(Label<'a>, Duration)>,
    timeout: Option<(Label<'a>, Duration)>,
}

impl Check<'_> {
    /// Errors: there is none to which an option could belong.
    fn into_health(self) -> Result<Option<HealthCheck>, String> {
        let Some(path) = self.path else {
            return match self.interval.or(self.timeout) {
                Some((label, _)) => Err(format!("{label}: expected healthcheck.path beside it")),
                None => Ok(None),
            };
        };
        let mut check = HealthCheck::new(HealthProbe::Http { path: path.to_owned() });
        check.interval = self.interval.map_or(INTERVAL, |(_, interval)| interval);
        check.timeout = self.timeout.map_or(TIMEOUT, |(_, timeout)| timeout);
        Ok(Some(check))
    }
}

/// A number alone is of seconds.
fn span(text: &str, least: Duration) -> Result<Duration, String> {
    let seconds = text
        .parse::<u32>()
        .ok()
        .map(|seconds| Duration::from_secs(seconds.into()));
    let span = seconds.or_else(|| parse_duration(text).ok());
    span.filter(|span| *span >= least)
        .ok_or_else(|| "expected a duration such as 10s, or a number of seconds".to_owned())
}

/// Traefik's own, where nothing is said.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

//! The values of labels, one option after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::names::{COOKIE, HTTP_ONLY, ROUTE, SAME_SITE, SCHEME, SECURE, STICKY, label_of, named_route};
use crate::model::{
    EndpointTls, EntryPointName, HealthCheck, HealthProbe, HostName, InvalidValue, RoutePart, RouteParts, RouteSpec,
    Scheme, ServiceSpec, Sticky, TlsOption, parse_duration,
};

/// Reads labels one by one, and notes what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) faults: Vec<String>,
    pub(super) wrong: BTreeSet<String>,
    pub(super) wrong_of_routes: BTreeSet<String>,
}

impl Reader<'_> {
    /// Gives the label's text to `take`, if there is such a label, and notes what it refuses.
    pub(super) fn read<E: Display>(&mut self, label: &str, take: impl FnOnce(&str) -> Result<(), E>) {
        if let Some(text) = self.labels.get(label)
            && let Err(error) = take(text.trim())
        {
            self.faults.push(format!("label {label}: {error}"));
            self.wrong.insert(label.to_owned());
        }
    }

    pub(super) fn set<T: FromStr<Err: Display>>(&mut self, label: &str, to: &mut T) {
        self.read(label, |text| text.parse().map(|value| *to = value));
    }

    pub(super) fn set_some<T: FromStr<Err: Display>>(&mut self, label: &str, to: &mut Option<T>) {
        self.read(label, |text| text.parse().map(|value| *to = Some(value)));
    }

    pub(super) fn span(&mut self, label: &str, least: Duration, to: &mut Duration) {
        self.read(label, |text| {
            let span = parse_duration(text)?;
            if span < least {
                return Err(InvalidValue::new(
                    text,
                    "a longer duration: 1ms at least, for health.interval 10ms",
                ));
            }
            *to = span;
            Ok(())
        });
    }

    pub(super) fn number(&mut self, label: &str, least: u32, to: &mut u32) {
        self.read(label, |text| match text.parse::<u32>() {
            Ok(number) if number >= least => {
                *to = number;
                Ok(())
            }
            _ if least > 0 => Err(InvalidValue::new(text, "a whole number from 1 to 4294967295")),
            _ => Err(InvalidValue::new(
                text,
                "a whole number up to 4294967295; 0 means no limit",
            )),
        });
    }

    pub(super) fn flag(&mut self, label: &str, to: &mut bool) {
        self.read(label, |text| match text {
            "true" | "false" => {
                *to = text == "true";
                Ok(())
            }
            _ => Err(InvalidValue::new(text, "true or false")),
        });
    }

    /// Whom the endpoints are believed to be.
    pub(super) fn endpoint_tls(&mut self, spec: &mut ServiceSpec) {
        let tls = &mut spec.endpoint_tls;
        self.set_some(EndpointTls::CA.label, &mut tls.ca);
        self.read(EndpointTls::SERVER_NAME.label, |text| {
            text.parse().map(|HostName(name)| tls.server_name = Some(name))
        });
        self.set(EndpointTls::PIN.label, &mut tls.pins);
        self.set(EndpointTls::VERIFY.label, &mut tls.verify);
    }

    /// Of options that mean nothing it is not known what goes with them.
    pub(super) fn refuse_endpoint_tls_at_odds(&mut self, spec: &ServiceSpec) {
        let mut read_by = EndpointTls::OPTIONS.iter().map(|option| option.label).chain([SCHEME]);
        // Nor of a scheme that other labels say and that means nothing, where all that they say is closed.
        let is_closed =
            spec.scheme != Scheme::Https && !spec.routes.is_empty() && spec.routes.iter().all(|route| route.is_closed);
        if is_closed || read_by.any(|label| self.wrong.contains(label)) {
            return;
        }
        let labels = self.labels;
        let was_said = |option: TlsOption| labels.contains_key(option.label);
        if let Some((TlsOption { label, .. }, expected)) = EndpointTls::at_odds(spec, was_said) {
            let value = labels.get(label).map_or("", String::as_str);
            self.faults.push(format!("label {label}={value}: {expected}"));
            self.wrong.insert(label.to_owned());
        }
    }

    /// The cookie that is asked for; `before`: what other labels ask for.
    pub(super) fn sticky(&mut self, before: Option<Sticky>) -> Option<Sticky> {
        let (mut is_on, mut sticky) = (false, Sticky::default());
        self.flag(STICKY, &mut is_on);
        self.set(COOKIE, &mut sticky.cookie);
        self.flag(SECURE, &mut sticky.secure);
        self.flag(HTTP_ONLY, &mut sticky.http_only);
        self.set_some(SAME_SITE, &mut sticky.same_site);
        if let Err(expected) = sticky.check()
            && let Some(value) = self.labels.get(SAME_SITE)
        {
            self.faults.push(format!("label {SAME_SITE}={value}: {expected}"));
            self.wrong.insert(SAME_SITE.to_owned());
        }
        let is_alone = !is_on && !self.wrong.contains(STICKY);
        for label in [COOKIE, SECURE, HTTP_ONLY, SAME_SITE] {
            if let Some(value) = self.labels.get(label)
                && is_alone
                && !self.wrong.contains(label)
            {
                // It asks for nothing by itself, so that nothing is served otherwise for it.
                let fault = format!("label {label}={value}: expected {STICKY}=true beside it");
                self.faults.push(fault);
            }
        }
        match self.labels.contains_key(STICKY) && !self.wrong.contains(STICKY) {
            true => is_on.then_some(sticky),
            false => before,
        }
    }

    /// The route with that name, or the one without.
    pub(super) fn route(&mut self, name: Option<&str>) -> Option<RouteSpec> {
        let label = |part| label_of(name, part);
        let mut parts = RouteParts::default();
        self.set_some(&label(RoutePart::Rule), &mut parts.rule);
        self.read(&label(RoutePart::Priority), |text| match text.parse::<i64>() {
            // As Traefik has it: nothing is said.
            Ok(0) => Ok(()),
            Ok(priority) => {
                parts.priority = Some(priority);
                Ok(())
            }
            Err(_) => Err(InvalidValue::new(text, "a whole number, such as 100")),
        });
        self.read(&label(RoutePart::EntryPoints), |text| {
            let names: Result<Vec<EntryPointName>, _> = text.split(',').map(|name| name.trim().parse()).collect();
            names.map(|names| parts.entry_points = Some(names))
        });
        self.read(&label(RoutePart::Port), |text| match text.parse::<u16>() {
            Ok(port @ 1..) => {
                parts.port = Some(port);
                Ok(())
            }
            _ => Err(InvalidValue::new(text, "a port from 1 to 65535")),
        });
        self.set_some(&label(RoutePart::Tls), &mut parts.tls);
        self.set_some(&label(RoutePart::Acme), &mut parts.acme);
        if self.wrong.contains(&label(RoutePart::Rule)) {
            return None;
        }
        let route = parts.into_route(&label(RoutePart::Rule));
        route.unwrap_or_else(|(part, expected)| {
            let label = label(part);
            let value = self.labels.get(&label).map_or("", String::as_str);
            // It asks for nothing by itself, so that nothing is served otherwise for it.
            self.faults.push(format!("label {label}={value}: {expected}"));
            None
        })
    }

    /// Those with names. One that is wrong in anything lets nobody through, and nothing else is lost for it.
    pub(super) fn named_routes(&mut self) -> Vec<RouteSpec> {
        let labels = self.labels;
        let names: BTreeSet<&str> = labels.keys().filter_map(|label| Some(named_route(label)?.0)).collect();
        let of_service = std::mem::take(&mut self.wrong);
        let mut routes = Vec::new();
        for name in names {
            let mut route = self.route(Some(name));
            let wrong = std::mem::take(&mut self.wrong);
            if let Some(route) = route.as_mut().filter(|_| !wrong.is_empty()) {
                route.close(|part| wrong.contains(&label_of(Some(name), part)));
            }
            routes.extend(route);
            self.wrong_of_routes.extend(wrong);
        }
        self.wrong = of_service;
        routes
    }

    /// Takes away routes of requests in mode tcp, and of connections in mode http. The one without a name is refused with its service.
    pub(super) fn refuse_routes_of_the_other_mode(&mut self, spec: &mut ServiceSpec) {
        let mode = spec.mode;
        spec.routes.retain(|route| {
            let Some(expected) = route.out_of_place(mode).filter(|_| !route.is_closed) else {
                return true;
            };
            let RouteSpec { rule, said_by, .. } = route;
            self.faults.push(format!("label {said_by}={rule}: {expected}"));
            let is_alone = &**said_by == ROUTE;
            let wrong = if is_alone {
                &mut self.wrong
            } else {
                &mut self.wrong_of_routes
            };
            wrong.insert(said_by.to_string());
            is_alone
        });
    }

    pub(super) fn health(&mut self) -> Option<HealthCheck> {
        let mut path = None;
        self.read("anynode.health.http", |text| {
            match text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) {
                true => {
                    path = Some(text.to_owned());
                    Ok(())
                }
                false => Err(InvalidValue::new(text, "a path that begins with /, such as /health")),
            }
        });
        let mut is_tcp = false;
        self.flag("anynode.health.tcp", &mut is_tcp);
        let probe = match (path, is_tcp) {
            (Some(path), false) => Some(HealthProbe::Http { path }),
            (None, true) => Some(HealthProbe::Tcp),
            (Some(path), true) => {
                let fault = "labels anynode.health.http and anynode.health.tcp: expected one of them; http is used";
                self.faults.push(fault.to_owned());
                Some(HealthProbe::Http { path })
            }
            (None, false) => None,
        };
        let mut check = HealthCheck::new(probe.clone().unwrap_or(HealthProbe::Tcp));
        self.span(
            "anynode.health.interval",
            Duration::from_millis(10),
            &mut check.interval,
        );
        self.span("anynode.health.timeout", Duration::from_millis(1), &mut check.timeout);
        self.number("anynode.health.rise", 1, &mut check.rise);
        self.number("anynode.health.fall", 1, &mut check.fall);
        probe.map(|_| check)
    }
}

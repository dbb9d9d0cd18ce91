//! Whose a request is, and what its route and service ask of it before an endpoint is: routes, filters, and what leads to which
//! endpoint. Not here: what comes of it (`through`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::asker;
use super::buffer::Buffer;
use super::wish;
use crate::model::filters::Filters;
use crate::model::{Balance, HashKey, ServiceSpec};
use crate::proxy::balancer::Wish;
use crate::proxy::http::{Refusal, RequestHead, RouteKey, https_location, https_place, uri_of};
use crate::proxy::wire::Client;
use crate::routing::{Asker, First, Listen, Mark, Service};

use super::server::{Entry, Instead, Server, is_trusted};

/// Whose a request to an entry point is.
pub(super) enum Found {
    Service(Arc<Service>, u16, Option<(Arc<str>, Arc<Filters>)>),
    /// No route's.
    Nobody,
    Instead(Instead),
}

/// What a filter answers.
pub(super) enum Filtered {
    Forbidden,
    /// Where, and whether for good.
    Elsewhere(String, bool),
    /// It would be sent where nobody can be.
    Nowhere,
}

/// Whether the client has come by TLS, as we or a trusted proxy say in the head; of several proxies the first.
pub(super) fn came_by_tls(head: &[u8]) -> bool {
    let said = wish::field(head, "x-forwarded-proto").unwrap_or_default();
    let first = said.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
    first.eq_ignore_ascii_case(b"https") || first.eq_ignore_ascii_case(b"wss")
}

impl<C: Client> Server<'_, C> {
    /// Whose a request to an entry point is.
    pub(super) fn find_route(&self, listen: Listen, head: &RequestHead<'_, '_>) -> Result<Found, Refusal> {
        let table = self.shared.table.peek();
        let Some(entry_point) = table.entry_point_at(&listen) else {
            return Ok(Found::Nobody);
        };
        if let Some(tls) = &self.shared.tls
            && let Some(answer) = tls.challenges().answer(&head.target())
        {
            return Ok(Found::Instead(Instead::Challenge(answer)));
        }
        if let Some(port) = entry_point.spec().redirect {
            let local = self
                .client
                .watched()
                .local_addr()
                .map_or_else(|_| self.from.ip(), |local| local.ip());
            let location = https_location(head, local, port).into();
            return Ok(Found::Instead(Instead::Elsewhere(location)));
        }
        let front = entry_point.front();
        let mut hosted = front.at("");
        let key = RouteKey::of(head, self.asks_for_others, |host| {
            hosted = front.at(host);
            hosted.asks_for_path()
        })?;
        let found = hosted.find(&key.asked(self.from.ip().to_canonical()));
        let found = found.and_then(|routed| Some((table.service_of(routed)?.clone(), &routed.route)));
        Ok(match found {
            None => {
                let ip = self.from.ip().to_canonical();
                let is_elsewhere = |host| entry_point.find_stream(First::Tls(Some(host)), ip).is_some();
                match entry_point.spec().is_tls && is_elsewhere(key.host()) {
                    true => Found::Instead(Instead::Misdirected),
                    false => Found::Nobody,
                }
            }
            Some((service, route)) if route.is_closed => Found::Instead(Instead::Closed(service)),
            Some((service, route)) => {
                let said_by = |filters: &Arc<Filters>| (route.said_by.clone(), filters.clone());
                Found::Service(service, route.target, route.filters.as_ref().map(said_by))
            }
        })
    }

    /// The service behind the port now.
    pub(super) fn current_route(&mut self) -> Option<(Arc<Service>, u16)> {
        if let Entry::Front(_) = self.entry {
            // Found when the head was read. Between two requests the connection holds none.
            return self.route.take();
        }
        let table = self.shared.table.peek();
        if table.revision() != self.revision {
            self.revision = table.revision();
            let route = match (&self.entry, &self.route) {
                (Entry::Listener(listen), _) => table.route(listen).map(|route| (&route.service, route.target)),
                (Entry::Inside(_), Some((service, target))) => Some((service.name(), *target)),
                (Entry::Inside(_), None) | (Entry::Front(_), _) => None,
            };
            self.route = route.and_then(|(name, target)| Some((table.service(name)?.clone(), target)));
        }
        self.route.clone()
    }

    /// Whose request it is. `sent`: what was sent of it, where that is kept.
    pub(super) fn asker(&self, sent: Option<&mut Buffer>) -> Asker {
        let by_proxy = sent.filter(|_| self.asks_for_others).and_then(|sent| {
            sent.rewind();
            asker::of_forwarded(sent.rest())
        });
        Asker::of(by_proxy.map_or(self.from, |ip| SocketAddr::new(ip, 0)))
    }

    /// Which endpoint a request is to have. `sent`: its head, as the endpoint would have it without filters.
    pub(super) fn wish(&self, spec: &ServiceSpec, sent: &Buffer) -> Wish {
        let head = sent.rest();
        let mark = spec.sticky.as_ref().and_then(|sticky| {
            let said = wish::cookie(head, sticky.cookie.as_str())?;
            Mark::read(said)
        });
        let wish = match &spec.hash {
            _ if spec.balance != Balance::Hash => Wish::default(),
            HashKey::ClientAddress => {
                let by_proxy = self.asks_for_others.then(|| asker::of_forwarded(head)).flatten();
                Wish::of_client(by_proxy.unwrap_or_else(|| self.from.ip()))
            }
            HashKey::Header(name) => wish::field(head, name).map_or_else(Wish::default, Wish::of_key),
            HashKey::Cookie(name) => wish::cookie(head, name).map_or_else(Wish::default, Wish::of_key),
        };
        Wish { mark, ..wish }
    }

    /// What the client is told in the place of an endpoint's answer, where it is not to come so. `head`: as the endpoint would have it.
    pub(super) fn judge(&self, filters: &[Arc<Filters>], head: &[u8]) -> Option<Filtered> {
        let is_let_in = |ip: IpAddr| filters.iter().all(|filters| filters.lets_in(ip));
        if filters.iter().any(|filters| filters.allow.is_some()) && !self.client_of(head).is_ok_and(is_let_in) {
            return Some(Filtered::Forbidden);
        }
        let local = || {
            let local = self.client.watched().local_addr();
            local.map_or_else(|_| self.from.ip(), |local| local.ip())
        };
        let to_https = filters.iter().find_map(|filters| filters.to_https);
        if let Some(to) = to_https.filter(|_| !came_by_tls(head)) {
            return Some(Filtered::Elsewhere(
                https_place(head, local(), to.port),
                to.is_permanent,
            ));
        }
        let redirect = |filters: &Arc<Filters>| {
            let redirect = filters.redirect.as_ref()?;
            let place = redirect.place(&uri_of(head, came_by_tls(head), local()))?;
            let elsewhere = |place| Filtered::Elsewhere(place, redirect.is_permanent());
            Some(place.map_or(Filtered::Nowhere, elsewhere))
        };
        filters.iter().find_map(redirect)
    }

    /// The client's address: who has connected, or whom a trusted proxy names.
    pub(super) fn client_of(&self, head: &[u8]) -> Result<IpAddr, asker::Unreadable> {
        if !self.asks_for_others {
            return Ok(self.from.ip());
        }
        let is_trusted = |ip| is_trusted(SocketAddr::new(ip, 0), &self.entry, self.shared);
        let named = asker::client_of(head, is_trusted)?;
        Ok(named.unwrap_or_else(|| self.from.ip()))
    }
}

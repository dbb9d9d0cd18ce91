//! Entry points: ports that services share, and whose a request or a connection to one is. Pure. Found by the host first, so that a
//! thousand hosts cost what one does. Not here: heads of requests (`proxy::http`), what a client says first (`proxy::hello`).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};

use super::listen::Listen;
use super::ranked::{Ranked, Routed};
use super::service::Service;
use crate::model::rule::Asked;
use crate::model::{EntryPointName, EntryPointSpec, Mode, RouteSpec, ServiceName, ServiceSpec};

/// An entry point of one table.
#[derive(Debug, Clone)]
pub struct EntryPoint {
    spec: Arc<EntryPointSpec>,
    /// In no table: what its connections are counted by, before it is known whose their requests are.
    connections: Arc<Service>,
    front: Front,
    /// Whose connections are whose, before there is any request.
    streams: Front,
    /// The same without those of whatever connections there are.
    named_streams: Front,
}

impl EntryPoint {
    pub(super) fn new(spec: EntryPointSpec) -> EntryPoint {
        let mut counted = ServiceSpec::new(spec.name.as_counted().clone());
        counted.mode = Mode::Http;
        counted.timeouts.request_head = spec.request_head_timeout;
        counted.timeouts.idle = spec.idle_timeout;
        EntryPoint {
            connections: Arc::new(Service::apart(counted)),
            spec: Arc::new(spec),
            front: Front::default(),
            streams: Front::default(),
            named_streams: Front::default(),
        }
    }

    pub fn spec(&self) -> &Arc<EntryPointSpec> {
        &self.spec
    }

    pub fn name(&self) -> &EntryPointName {
        &self.spec.name
    }

    pub fn listen(&self) -> Listen {
        Listen {
            port: self.spec.port,
            ip: self.spec.ip,
        }
    }

    /// What its connections are counted by, and which have its timeouts.
    pub fn connections(&self) -> &Arc<Service> {
        &self.connections
    }

    /// Whose requests are whose.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// Whose connections as a whole are whose.
    pub fn streams(&self) -> &Front {
        &self.streams
    }

    /// How many routes there are, of requests and of connections.
    pub fn n_routes(&self) -> usize {
        self.front.len() + self.streams.len()
    }

    /// Whether a connection may be a service's as a whole.
    pub fn has_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Whether what the client says first decides whose a connection is. Otherwise nothing is to be waited for: there are clients that
    /// wait themselves.
    pub fn asks_for_hello(&self) -> bool {
        self.has_streams() && (self.spec.is_tls || self.streams.n_by_name > 0)
    }

    /// The route that takes a connection as a whole; `None`: it is of requests. `client`: in its shortest form.
    ///
    /// A route of connections comes before all of requests, but for one of whatever connections there are where TLS ends: it has those
    /// whose name no route of requests is for, as Traefik has it.
    pub fn find_stream(&self, first: First<'_>, client: IpAddr) -> Option<&Arc<Routed>> {
        let name = match first {
            First::Tls(name) => name.unwrap_or(""),
            First::Other if self.spec.is_tls => return None,
            First::Other => "",
        };
        let asked = Asked::connection(name, client);
        let found = self.streams.find(&asked)?;
        let is_left_over = self.spec.is_tls && found.route.rule.is_catch_all();
        match is_left_over && self.front.may_be_for(name) {
            // Whatever its priority, it hides no other.
            true => self.named_streams.find(&asked),
            false => Some(found),
        }
    }

    fn front_of(&mut self, route: &RouteSpec) -> &mut Front {
        match route.rule.is_of_connections() {
            true => &mut self.streams,
            false => &mut self.front,
        }
    }

    /// `service`: its name and number. Errors: whose the rule is already.
    pub(super) fn insert(&mut self, service: (&ServiceName, u64), route: &RouteSpec) -> Result<(), ServiceName> {
        self.front_of(route).insert(service, route)?;
        match is_named_stream(route) {
            true => self.named_streams.insert(service, route),
            false => Ok(()),
        }
    }

    /// Forgets the route, if it is this service's.
    pub(super) fn remove(&mut self, service: &ServiceName, route: &RouteSpec) {
        self.front_of(route).remove(service, route);
        if is_named_stream(route) {
            self.named_streams.remove(service, route);
        }
    }
}

fn is_named_stream(route: &RouteSpec) -> bool {
    route.rule.is_of_connections() && !route.rule.is_catch_all()
}

/// What a client says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First<'a> {
    /// It begins with TLS, for that name (in lower case), if it says one.
    Tls(Option<&'a str>),
    /// It says something else, or is not waited for.
    Other,
}

/// Whose a request is, or a connection. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Front {
    /// Routes for some hosts alone, by each of them.
    by_host: HashMap<Box<str>, Ranked>,
    /// The others.
    others: Ranked,
    /// Whose each rule is, by its canonical text.
    owners: OrdMap<Arc<str>, Arc<Routed>>,
    /// How many of them look at the name that a client says first.
    n_by_name: usize,
}

/// The routes that a request to one host may be of.
#[derive(Debug, Clone, Copy)]
pub struct Hosted<'a> {
    its_own: Option<&'a Ranked>,
    others: &'a Ranked,
}

impl<'a> Hosted<'a> {
    /// The route that takes this request, which is to that host: of those that do, the first by priority.
    pub fn find(self, asked: &Asked<'_>) -> Option<&'a Arc<Routed>> {
        let best = self.its_own.and_then(|ranked| ranked.find(asked, None));
        self.others.find(asked, best)
    }

    /// Whether a path decides whose a request is, so that it may not be one that is read in two ways.
    pub fn asks_for_path(self) -> bool {
        self.others.asks_for_path() || self.its_own.is_some_and(Ranked::asks_for_path)
    }
}

impl Front {
    /// `host`: in lower case, without a port.
    pub fn at(&self, host: &str) -> Hosted<'_> {
        Hosted {
            its_own: self.by_host.get(host),
            others: &self.others,
        }
    }

    /// The route that takes this request.
    pub fn find(&self, asked: &Asked<'_>) -> Option<&Arc<Routed>> {
        self.at(asked.host).find(asked)
    }

    /// Whether a request for that host may be one of any route.
    fn may_be_for(&self, host: &str) -> bool {
        !self.others.is_empty() || self.by_host.contains_key(host)
    }

    /// Whether that very route is one of them still.
    pub fn has(&self, routed: &Routed) -> bool {
        let owner = self.owners.get(routed.route.rule.canonical());
        owner.is_some_and(|owner| **owner == *routed)
    }

    /// All of them, in the order of their rules.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Routed>> {
        self.owners.values()
    }

    /// Whether they are known to be the same, without looking at them.
    pub fn is_same_as(&self, other: &Front) -> bool {
        self.owners.ptr_eq(&other.owners)
    }

    /// Whether there is any route.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// `service`: its name and number. Errors: whose the rule is already.
    pub(super) fn insert(&mut self, service: (&ServiceName, u64), route: &RouteSpec) -> Result<(), ServiceName> {
        if let Some(owner) = self.owners.get(route.rule.canonical()) {
            return Err(owner.service.clone());
        }
        let (service, number) = service;
        let routed = Arc::new(Routed {
            service: service.clone(),
            number,
            route: route.clone(),
        });
        self.owners.insert(route.rule.canonical().into(), routed.clone());
        self.n_by_name += usize::from(route.rule.asks_for_name());
        match route.rule.hosts() {
            None => self.others.insert(routed),
            Some(hosts) => {
                for host in hosts {
                    let ranked = self.by_host.entry(host.into()).or_default();
                    ranked.insert(routed.clone());
                }
            }
        }
        Ok(())
    }

    /// Forgets the route, if it is this service's.
    pub(super) fn remove(&mut self, service: &ServiceName, route: &RouteSpec) {
        let owner = self.owners.get(route.rule.canonical());
        let Some(routed) = owner.filter(|owner| owner.service == *service).cloned() else {
            return;
        };
        self.owners.remove(route.rule.canonical());
        self.n_by_name -= usize::from(routed.route.rule.asks_for_name());
        match routed.route.rule.hosts() {
            None => self.others.remove(&routed),
            Some(hosts) => {
                for host in hosts {
                    let Some(ranked) = self.by_host.get_mut(host) else {
                        continue;
                    };
                    ranked.remove(&routed);
                    if ranked.is_empty() {
                        self.by_host.remove(host);
                    }
                }
            }
        }
    }
}

impl fmt::Display for EntryPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry point {}", self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::model::rule::Fields;

    struct None_;

    impl Fields for None_ {
        fn any(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
            false
        }
    }

    fn asked<'a>(host: &'a str, path: &'a str) -> Asked<'a> {
        Asked {
            host,
            path: path.as_bytes(),
            query: b"",
            method: "GET",
            client: IpAddr::from([127, 0, 0, 1]),
            fields: &None_,
        }
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn route(rule: &str, priority: Option<i64>) -> RouteSpec {
        RouteSpec {
            priority,
            target: 80,
            ..RouteSpec::new(rule.parse().unwrap(), "route")
        }
    }

    fn owner(front: &Front, host: &str, path: &str) -> Option<String> {
        let found = front.find(&asked(host, path));
        found.map(|routed| routed.service.to_string())
    }

    #[test]
    fn what_a_client_says_first_decides_whose_a_connection_is() {
        let made = |is_tls: bool, routes: &[(&str, &str)]| {
            let mut one = EntryPoint::new(EntryPointSpec {
                is_tls,
                ..EntryPointSpec::new("web".parse().unwrap(), None, 443)
            });
            for (service, rule) in routes {
                one.insert((&name(service), 0), &route(rule, None)).unwrap();
            }
            one
        };
        let of = |one: &EntryPoint, first: First<'_>| {
            let found = one.find_stream(first, IpAddr::from([10, 0, 0, 1]));
            found.map(|routed| routed.service.to_string())
        };
        let routes = [
            ("db", "HostSNI(`db.test`)"),
            ("any", "HostSNI(`*`)"),
            ("web", "Host(`web.test`)"),
            ("sub", "HostSNIRegexp(`^.+\\.db\\.test$`)"),
        ];
        let (secure, plain) = (made(true, &routes), made(false, &routes));
        for (first, at_secure, at_plain) in [
            (First::Tls(Some("db.test")), Some("db"), Some("db")),
            (First::Tls(Some("a.db.test")), Some("sub"), Some("sub")),
            (First::Tls(Some("web.test")), None, Some("any")),
            (First::Tls(Some("x.test")), Some("any"), Some("any")),
            (First::Tls(None), Some("any"), Some("any")),
            (First::Other, None, Some("any")),
        ] {
            assert_eq!(of(&secure, first).as_deref(), at_secure, "{first:?}");
            assert_eq!(of(&plain, first).as_deref(), at_plain, "{first:?}");
        }
        assert!(secure.asks_for_hello() && plain.asks_for_hello() && plain.n_routes() == 4);
        let mut alone = made(false, &[routes[1]]);
        assert!(alone.has_streams() && !alone.asks_for_hello() && made(true, &[routes[1]]).asks_for_hello());
        alone.insert((&name("db"), 0), &route(routes[0].1, None)).unwrap();
        assert_eq!(
            alone.insert((&name("other"), 0), &route(routes[0].1, None)),
            Err(name("db"))
        );
        assert!(alone.asks_for_hello());
        alone.remove(&name("db"), &route(routes[0].1, None));
        assert!(!alone.asks_for_hello());
        // Routes of requests for whatever host are before what is left over.
        let beside = made(true, &[routes[1], ("web", "PathPrefix(`/`)")]);
        assert_eq!(of(&beside, First::Tls(Some("x.test"))), None);
        // Nor does it hide a name, however early it is asked.
        let mut hiding = made(true, &[routes[0], ("web", "PathPrefix(`/`)")]);
        hiding
            .insert((&name("any"), 0), &route(routes[1].1, Some(1_000)))
            .unwrap();
        assert_eq!(of(&hiding, First::Tls(Some("db.test"))).as_deref(), Some("db"));
        assert_eq!(of(&hiding, First::Tls(Some("x.test"))), None);
        hiding.remove(&name("db"), &route(routes[0].1, None));
        assert_eq!(of(&hiding, First::Tls(Some("db.test"))), None);
        // Who says no name is of none that asks for one.
        let but = made(true, &[("but", "!HostSNI(`a.test`)")]);
        assert_eq!(of(&but, First::Tls(Some("x.test"))).as_deref(), Some("but"));
        assert_eq!(
            (of(&but, First::Tls(None)), of(&but, First::Tls(Some("a.test")))),
            (None, None)
        );
        let only = made(true, &[("web", "Host(`web.test`)")]);
        assert!(!only.has_streams() && !only.asks_for_hello());
    }

    #[test]
    fn the_longest_rule_comes_first_unless_priorities_say_otherwise() {
        let mut front = Front::default();
        for (service, rule, priority) in [
            ("all", "PathPrefix(`/`)", None),
            ("shop", "Host(`shop.test`)", None),
            ("api", "Host(`shop.test`) && PathPrefix(`/api`)", None),
            ("admin", "PathPrefix(`/admin`)", Some(1_000)),
            (
                "last",
                "HostRegexp(`.*`) && PathPrefix(`/a-long-path-that-does-not-count`)",
                Some(1),
            ),
        ] {
            front.insert((&name(service), 0), &route(rule, priority)).unwrap();
        }
        for (host, path, expected) in [
            ("shop.test", "/", "shop"),
            ("shop.test", "/api/x", "api"),
            ("shop.test", "/admin", "admin"),
            ("other.test", "/api", "all"),
            ("other.test", "/a-long-path-that-does-not-count", "all"),
        ] {
            assert_eq!(owner(&front, host, path).as_deref(), Some(expected), "{host}{path}");
        }
        front.remove(&name("all"), &route("PathPrefix(`/`)", None));
        assert_eq!(owner(&front, "other.test", "/"), None);
        assert_eq!(
            front.insert(
                (&name("b"), 0),
                &route("PathPrefix(`/api`) && Host(`shop.test`)", Some(9))
            ),
            Err(name("api"))
        );
        // Whose it is not, he does not take it away.
        front.remove(&name("b"), &route("Host(`shop.test`)", None));
        assert_eq!(owner(&front, "shop.test", "/").as_deref(), Some("shop"));
    }

    const HOSTS: [&str; 3] = ["a.test", "b.test", "c.test"];
    const PATHS: [&str; 6] = [
        "/",
        "/x",
        "/x/y",
        "/xy",
        "/a-path-that-is-longer-than-what-is-looked-up/x",
        "/a-path-that-is-longer-than-what-is-looked-up/y",
    ];

    fn any_rule() -> impl Strategy<Value = String> {
        let host = prop::sample::select(&HOSTS[..]).prop_map(|host| format!("Host(`{host}`)"));
        let hosts =
            prop::sample::subsequence(&HOSTS[..], 1..3).prop_map(|hosts| format!("Host(`{}`)", hosts.join("`, `")));
        let kinds = prop::sample::select(&["Path", "PathPrefix", "!Path"][..]);
        let path = (prop::sample::select(&PATHS[..]), kinds).prop_map(|(path, kind)| format!("{kind}(`{path}`)"));
        prop_oneof![
            host,
            hosts.clone(),
            path.clone(),
            (hosts.clone(), path.clone()).prop_map(|(host, path)| format!("{host} && {path}")),
            (hosts, path).prop_map(|(host, path)| format!("!{host} || {path}")),
        ]
    }

    proptest! {
           /// Against asking every route in turn, over routes that come and go.
           #[test]
           fn what_is_found_is_what_asking_all_would_find(
               steps in prop::collection::vec((prop::bool::weighted(0.7), 0..8_usize, any_rule(), prop::option::of(0..40_i64)), 1..48)
           ) {
               let mut front = Front::default();
               let mut all: Vec<Routed> = Vec::new();
               for (comes, service, rule, priority) in steps {
                   let (service, route) = (name(&format!("s{service}")), route(&rule, priority));
                   let known = all.iter().position(|routed| routed.route.rule.canonical() == route.rule.canonical());
                   match (comes, known) {
                       (true, None) => {
                           front.insert((&service, 0), &route).unwrap();
                           all.push(Routed {
    number: 0, service, route });
                       }
                       (true, Some(known)) => prop_assert_eq!(front.insert((&service, 0), &route), Err(all[known].service.clone())),
                       (false, Some(known)) => {
                           let Routed { service, route, .. } = all.remove(known);
                           front.remove(&service, &route);
                       }
                       (false, None) => front.remove(&service, &route),
                   }
                   prop_assert_eq!(front.len(), all.len());
                   for host in HOSTS {
                       let may_be_asked = |routed: &&Routed| routed.route.rule.hosts().is_none_or(|hosts| hosts.contains(host));
                       let by_path = all.iter().filter(may_be_asked).any(|routed| routed.route.rule.asks_for_path());
                       prop_assert_eq!(front.at(host).asks_for_path(), by_path);
                   }
                   all.sort_by(|one, other| one.rank().cmp(&other.rank()));
                   for (host, path) in HOSTS.iter().flat_map(|host| PATHS.iter().map(move |path| (host, path))) {
                       let expected = all.iter().find(|routed| routed.route.rule.takes(&asked(host, path)));
                       prop_assert_eq!(front.find(&asked(host, path)).map(|found| &**found), expected);
                   }
               }
               for Routed { service, route, .. } in all.drain(..) {
                   front.remove(&service, &route);
               }
               prop_assert!(front.is_empty() && front.by_host.is_empty() && front.others.is_empty());
           }
       }
}

//! What Traefik's labels mean here, and which routes they lose.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::{HealthProbe, Mode, RouteTls, SameSite, ServiceName, labels};

fn map(text: &[&str]) -> BTreeMap<String, String> {
    let pair = |line: &&str| {
        let (label, value) = line.split_once('=').unwrap();
        (label.to_owned(), value.to_owned())
    };
    text.iter().map(pair).collect()
}

/// With what is asked for in any case.
fn read(text: &[&str]) -> (ServiceSpec, Vec<String>) {
    let mut labels = map(text);
    labels.insert("traefik.enable".to_owned(), "true".to_owned());
    let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
    let mut faults = apply(&labels, &mut spec);
    faults.extend(labels::apply(&labels, &mut spec).faults);
    (spec, faults)
}

#[test]
fn tasks_that_speak_tls_do_so_behind_a_published_port_too_whatever_is_wrong_with_their_routes() {
    let https = "traefik.http.services.app.loadbalancer.server.scheme=https";
    let transport = "traefik.http.services.app.loadbalancer.serverstransport=own@file";
    for labels in [
        &[RULE, https, transport][..],
        &[RULE, https, transport, "anynode.mode=http"],
        &[
            RULE,
            https,
            transport,
            "anynode.mode=http",
            "anynode.endpoint-tls.verify=none",
        ],
        &[
            RULE,
            https,
            transport,
            "traefik.http.routers.good.rule=Host(`b.test`)",
            "traefik.http.routers.good.service=good",
            "traefik.http.services.good.loadbalancer.server.port=80",
        ],
    ] {
        let (spec, faults) = read(labels);
        assert_eq!(spec.scheme, Scheme::Https, "{labels:?}");
        assert!(
            !faults.iter().any(|fault| fault.contains("endpoint-tls.verify")),
            "{faults:?}"
        );
    }
}

const RULE: &str = "traefik.http.routers.app.rule=Host(`a.test`)";

#[test]
fn a_router_with_its_service_is_a_route() {
    let (spec, faults) = read(&[
        "Traefik.HTTP.Routers.App.Rule=Host(`a.test`) && PathPrefix(`/api`, `/v2`)",
        "traefik.http.routers.app.entryPoints=web, websecure",
        "traefik.http.routers.app.priority=42",
        "traefik.http.routers.app.service=app@swarm",
        "traefik.http.services.App.loadBalancer.server.port=8080",
        "traefik.http.services.app.loadbalancer.server.scheme=http",
        "traefik.http.services.app.loadbalancer.passhostheader=true",
        "traefik.http.services.app.loadbalancer.healthcheck.path=/health",
        "traefik.http.services.app.loadbalancer.healthcheck.interval=10s",
        "traefik.http.services.app.loadbalancer.strategy=p2c",
        "traefik.docker.network=front",
        "traefik.swarm.lbswarm=false",
        "traefik.constraint-label=public",
    ]);
    assert_eq!(faults, [] as [String; 0]);
    let [route] = &*spec.routes else { panic!("{spec:?}") };
    assert_eq!(
        (route.target, route.priority(), route.tls),
        (8080, 42, RouteTls::AsEntryPoint)
    );
    assert_eq!(&*route.said_by, "Traefik.HTTP.Routers.App.Rule");
    let names: Vec<&str> = route
        .entry_points
        .iter()
        .map(crate::model::EntryPointName::as_str)
        .collect();
    assert_eq!(names, ["web", "websecure"]);
    assert_eq!((spec.mode, spec.balance), (Mode::Http, Balance::LeastRequest));
    let check = spec.health.unwrap();
    assert_eq!(
        check.probe,
        HealthProbe::Http {
            path: "/health".to_owned()
        }
    );
    assert_eq!(
        (check.interval, check.timeout),
        (Duration::from_secs(10), Duration::from_secs(5))
    );
}

#[test]
fn what_is_not_enabled_says_nothing() {
    for enable in ["false", "0", "yes", ""] {
        let mut labels = map(&[RULE]);
        labels.insert("traefik.enable".to_owned(), enable.to_owned());
        let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
        assert_eq!((apply(&labels, &mut spec), spec.routes.len()), (Vec::new(), 0));
        assert!(!ask_for_routes(&labels));
    }
    assert!(ask_for_routes(&map(&[
        "TRAEFIK.enable=True",
        "traefik.http.Routers.a.rule=x"
    ])));
    assert!(!ask_for_routes(&map(&[
        "traefik.enable=true",
        "traefik.http.services.a.loadbalancer.server.port=80"
    ])));
}

/// Each alone beside a good router, which is refused for it, in words that name the label.
#[test]
fn what_has_no_counterpart_takes_its_route_away() {
    for (label, expected) in [
        (
            "traefik.http.routers.app.middlewares=auth@file",
            "auth@file is of a configuration that is not read here",
        ),
        (
            "traefik.http.routers.app.middlewares=auth",
            "there is no middleware auth among the labels",
        ),
        (
            "traefik.http.routers.app.middlewares[0]=auth",
            "there is no middleware auth among the labels",
        ),
        (
            "traefik.http.routers.app.service=api@internal",
            "api@internal is a part of Traefik itself",
        ),
        (
            "traefik.http.routers.app.service=other",
            "there is no service other among the labels",
        ),
        ("traefik.http.routers.app.tls.options=mtls@file", "no counterpart yet"),
        ("traefik.http.routers.app.tls=maybe", "expected true or false"),
        ("traefik.http.routers.app.priority=high", "expected a whole number"),
        (
            "traefik.http.routers.app.entrypoints=a b",
            "expected an entry point's name",
        ),
        ("traefik.http.routers.app.parentrefs=x", "no such option"),
        (
            "traefik.http.services.app.loadbalancer.server.scheme=wss",
            "expected http, https or h2c",
        ),
        (
            "traefik.http.services.app.loadbalancer.server.port=0",
            "expected a port from 1 to 65535",
        ),
        (
            "traefik.http.services.app.loadbalancer.sticky.cookie=perhaps",
            "expected true or false",
        ),
        (
            "traefik.http.services.app.loadbalancer.sticky.cookie.name=s d",
            "a cookie's name",
        ),
        (
            "traefik.http.services.app.loadbalancer.sticky.cookie.samesite=none",
            "expected secure beside it",
        ),
        (
            "traefik.http.services.app.loadbalancer.sticky.cookie.maxage=60",
            "no counterpart yet",
        ),
        (
            "traefik.http.services.app.loadbalancer.passhostheader=false",
            "requests keep their Host",
        ),
        (
            "traefik.http.services.app.loadbalancer.healthcheck.port=9",
            "no counterpart yet",
        ),
        (
            "traefik.http.services.app.loadbalancer.healthcheck.interval=9s",
            "expected healthcheck.path beside it",
        ),
        (
            "traefik.http.services.app.loadbalancer.serverstransport=x@file",
            "no counterpart: it is in a file of Traefik's",
        ),
        ("traefik.http.services.app.weighted.services=x", "expected loadbalancer"),
    ] {
        let (spec, faults) = read(&[RULE, label]);
        let (key, _) = label.split_once('=').unwrap();
        // It keeps its place, and lets nobody through: by another route its requests would be served without.
        let is_closed: Vec<bool> = spec.routes.iter().map(|route| route.is_closed).collect();
        assert_eq!((is_closed, spec.mode), (vec![true], Mode::Tcp), "{label}");
        let is_said = |fault: &String| fault.contains(expected) && fault.contains(key);
        assert!(faults.iter().any(is_said), "{label}: {faults:?}");
        assert!(
            faults.iter().any(|fault| fault.contains("not served")),
            "{label}: {faults:?}"
        );
        // It is another's only.
        let (spec, _) = read(&[
            RULE,
            label,
            "traefik.http.routers.good.rule=Host(`b.test`)",
            "traefik.http.routers.good.service=good",
            "traefik.http.services.good.loadbalancer.server.port=80",
        ]);
        let open = spec.routes.iter().filter(|route| !route.is_closed);
        let rules: Vec<&str> = open.map(|route| route.rule.as_str()).collect();
        assert_eq!(rules, ["Host(`b.test`)"], "{label}");
    }
}

/// Also where it is declared beside: a list of kinds that is not whole would let one through.
#[test]
fn no_middleware_is_left_out_in_silence() {
    for kind in [
        "basicAuth.users=a:b",
        "ipWhiteList.ipStrategy.depth=1",
        "headers.accessControlAllowMethods=GET",
        "headers.customRequestHeaders.Host=evil",
        "stripPrefix.prefixes=api",
        "redirectScheme.scheme=http",
        "chain.middlewares=m",
        "plugin.x.y=z",
        "new.thing=1",
        "forwardAuth.address=https://a",
        "forwardAuth.tls.ca=x",
        "digestAuth.users=a",
        "compress=false",
        "compress.defaultEncoding=gzip",
        "compress.encodings=br",
        "compress.excludedContentTypes=text",
    ] {
        let declared = format!("traefik.http.middlewares.m.{kind}");
        let (spec, faults) = read(&[RULE, &declared, "traefik.http.routers.app.middlewares=m@docker"]);
        assert!(spec.routes.iter().all(|route| route.is_closed), "{kind}");
        let named = kind.split(['.', '=']).next().unwrap().to_ascii_lowercase();
        assert!(
            faults[0].contains("middleware m") && faults[0].contains(&named),
            "{faults:?}"
        );
        // One that nobody names is nobody's.
        let (spec, faults) = read(&[RULE, &declared]);
        assert_eq!((spec.routes.len(), faults.len()), (1, 0), "{kind}");
    }
}

#[test]
fn several_routers_stand_each_by_itself() {
    let (spec, faults) = read(&[
        "traefik.http.routers.a.rule=Host(`a.test`)",
        "traefik.http.routers.a.service=one",
        "traefik.http.routers.b.rule=Hots(`b.test`)",
        "traefik.http.routers.b.service=one",
        "traefik.http.routers.c.rule=Host(`c.test`)",
        "traefik.http.routers.d.service=two",
        "traefik.http.services.one.loadbalancer.server.port=8080",
        "traefik.http.services.two.loadbalancer.server.port=8081",
        "traefik.tcp.routers.t.rule=HostSNI(`*`)",
        "traefik.http.router.x.rule=Host(`x`)",
    ]);
    let routes: Vec<_> = spec
        .routes
        .iter()
        .map(|route| (route.rule.as_str(), route.target, route.is_closed))
        .collect();
    assert_eq!(
        routes,
        [
            ("Host(`a.test`)", 8080, false),
            ("Host(`c.test`)", 0, true),
            ("HostSNI(`*`)", 0, true)
        ]
    );
    for expected in [
        "label traefik.http.routers.b.rule=Hots(`b.test`): expected Host, ",
        "label traefik.http.routers.c.service: expected one of one, two",
        "label traefik.http.routers.d.rule: expected one, such as",
        "label traefik.tcp.routers.t.rule=HostSNI(`*`): expected routers of one kind, http or tcp",
        "label traefik.http.router.x.rule: no such section",
    ] {
        assert!(
            faults.iter().any(|fault| fault.starts_with(expected)),
            "{expected}: {faults:?}"
        );
    }
    assert_eq!(faults.len(), 5, "{faults:?}");
    let (_, faults) = read(&[]);
    assert!(
        faults[0].starts_with("label traefik.enable=true: no label says a route"),
        "{faults:?}"
    );
}

#[test]
fn tls_is_asked_for_in_several_ways_and_domains_without_certificates_are_said() {
    let (ended, unsaid) = (RouteTls::Ended, RouteTls::AsEntryPoint);
    for (label, tls, n_faults) in [
        ("traefik.http.routers.app.tls=true", ended, 0),
        ("traefik.http.routers.app.tls=false", unsaid, 0),
        ("traefik.http.routers.app.tls.certresolver=le", ended, 0),
        ("traefik.http.routers.app.tls.domains[0].main=a.test", ended, 0),
        ("traefik.http.routers.app.tls.domains[0].main=other.test", ended, 1),
        ("traefik.http.routers.app.tls.domains[0].sans=*.a.test", ended, 1),
        ("traefik.http.routers.app.tls.options=default", ended, 0),
    ] {
        let (spec, faults) = read(&[RULE, label]);
        assert_eq!(
            (spec.routes[0].tls, faults.len()),
            (tls, n_faults),
            "{label}: {faults:?}"
        );
    }
}

#[test]
fn routers_of_connections_are_routes_too() {
    let rule = "traefik.tcp.routers.db.rule=HostSNI(`db.test`)";
    let (spec, faults) = read(&[
        "Traefik.TCP.Routers.Db.Rule=HostSNI(`db.test`, `sql.test`)",
        "traefik.tcp.routers.db.entryPoints=websecure",
        "traefik.tcp.routers.db.tls.passthrough=true",
        "traefik.tcp.routers.db.tls=true",
        "traefik.tcp.routers.db.priority=7",
        "traefik.tcp.routers.db.service=db@docker",
        "traefik.tcp.services.Db.loadBalancer.server.port=5432",
        "traefik.tcp.services.db.loadbalancer.proxyProtocol.version=1",
    ]);
    assert_eq!(faults, [] as [String; 0]);
    let [route] = &*spec.routes else { panic!("{spec:?}") };
    assert_eq!(
        (route.target, route.priority, route.tls),
        (5432, Some(7), RouteTls::Passthrough)
    );
    assert_eq!((spec.mode, spec.proxy_protocol), (Mode::Tcp, Some(ProxyProtocol::V1)));
    for (labels, tls) in [
        (&[rule, "traefik.tcp.routers.db.tls=true"][..], RouteTls::Ended),
        (&[rule, "traefik.tcp.routers.db.tls.certresolver=le"], RouteTls::Ended),
        (&["traefik.tcp.routers.all.rule=HostSNI(`*`)"], RouteTls::Without),
    ] {
        let (spec, _) = read(labels);
        let [route] = &*spec.routes else { panic!("{spec:?}") };
        assert_eq!(
            (route.is_closed, route.tls, spec.mode),
            (false, tls, Mode::Tcp),
            "{labels:?}"
        );
    }
    for (label, expected) in [
        (
            "traefik.tcp.routers.db.middlewares=office",
            "no counterpart: in mode tcp",
        ),
        ("traefik.tcp.routers.db.tls.options=strict@file", "no counterpart"),
        ("traefik.tcp.routers.db.tls.passthrough=maybe", "expected true or false"),
        (
            "traefik.tcp.services.db.loadbalancer.serverstransport=x@file",
            "no counterpart",
        ),
        (
            "traefik.tcp.services.db.loadbalancer.terminationdelay=5",
            "no counterpart",
        ),
        (
            "traefik.tcp.services.db.loadbalancer.proxyprotocol.version=3",
            "expected 1 or 2",
        ),
        ("traefik.tcp.services.db.weighted.services=x", "expected loadbalancer"),
    ] {
        let (spec, faults) = read(&[rule, "traefik.tcp.routers.db.tls=true", label]);
        let is_closed: Vec<bool> = spec.routes.iter().map(|route| route.is_closed).collect();
        assert_eq!(is_closed, [true], "{label}");
        let (key, _) = label.split_once('=').unwrap();
        let is_said = |fault: &String| fault.contains(expected) && fault.contains(key);
        assert!(faults.iter().any(is_said), "{label}: {faults:?}");
    }
    // A name that nobody can say keeps its place where it could be.
    let (spec, faults) = read(&[rule]);
    assert_eq!(
        (spec.routes[0].is_closed, spec.routes[0].tls),
        (true, RouteTls::AsEntryPoint)
    );
    assert!(
        faults[0].contains("expected traefik.tcp.routers.db.tls=true beside it"),
        "{faults:?}"
    );
    // Rules of the other kind are nobody's.
    for (wrong, expected) in [
        ("traefik.tcp.routers.x.rule=Host(`a`)", "expected HostSNI"),
        ("traefik.tcp.routers.x.rule=ClientIP(`10.0.0.0/8`)", "expected HostSNI"),
        (
            "traefik.http.routers.x.rule=HostSNI(`a`)",
            "HostSNI is of traefik.tcp.routers",
        ),
        ("traefik.tcp.routers.x.service=y", "expected one, such as HostSNI"),
        ("traefik.tcp.router.x.rule=HostSNI(`a`)", "no such section"),
    ] {
        let (spec, faults) = read(&[wrong]);
        assert!(spec.routes.is_empty(), "{wrong}: {spec:?}");
        assert!(
            faults.iter().any(|fault| fault.contains(expected)),
            "{wrong}: {faults:?}"
        );
    }
    let labels = map(&[
        rule,
        "traefik.tcp.services.db.loadbalancer.server.port=5432",
        "traefik.enable=true",
    ]);
    assert!(ask_for_routes(&labels) && ports(&labels) == [5432]);
}

#[test]
fn one_check_is_of_all_ports() {
    let (spec, faults) = read(&[
        "traefik.http.routers.a.rule=Host(`a.test`)",
        "traefik.http.routers.a.service=one",
        "traefik.http.routers.b.rule=Host(`b.test`)",
        "traefik.http.routers.b.service=two",
        "traefik.http.services.one.loadbalancer.server.port=8080",
        "traefik.http.services.one.loadbalancer.healthcheck.path=/",
        "traefik.http.services.two.loadbalancer.server.port=8081",
        "traefik.http.services.two.loadbalancer.healthcheck.path=/other",
    ]);
    let is_closed: Vec<bool> = spec.routes.iter().map(|route| route.is_closed).collect();
    assert_eq!(is_closed, [false, true]);
    assert!(
        faults
            .iter()
            .any(|fault| fault.contains("services.two: expected the health check")),
        "{faults:?}"
    );
}

#[test]
fn our_own_labels_come_first_and_are_judged_beside_them() {
    let checked = [
        RULE,
        "traefik.http.services.app.loadbalancer.healthcheck.path=/theirs",
        "traefik.http.services.app.loadbalancer.strategy=p2c",
    ];
    let (spec, faults) = read(&checked);
    let http = |path: &str| HealthProbe::Http { path: path.to_owned() };
    assert_eq!(
        (spec.health.unwrap().probe, spec.balance, faults.len()),
        (http("/theirs"), Balance::LeastRequest, 0)
    );
    let ours = [
        "anynode.health.http=/ours",
        "anynode.balance=round-robin",
        "anynode.timeout.response=5s",
    ];
    let (spec, faults) = read(&[&checked[..], &ours].concat());
    assert_eq!(
        (spec.health.unwrap().probe, spec.balance, faults.len()),
        (http("/ours"), Balance::RoundRobin, 0)
    );
    // What there is in one mode only.
    let (spec, faults) = read(&[RULE, "anynode.mode=tcp"]);
    assert_eq!((spec.mode, spec.routes.len()), (Mode::Tcp, 0));
    assert!(
        faults[0].contains("routers.app.rule=Host(`a.test`): expected mode http"),
        "{faults:?}"
    );
    let (_, faults) = read(&[RULE, "anynode.proxy-protocol=v1"]);
    assert!(
        faults[0].contains("anynode.proxy-protocol=v1: expected mode tcp"),
        "{faults:?}"
    );
}

proptest! {
    #[test]
    fn nothing_is_too_strange(
        keys in prop::collection::vec("(http|tcp|tls)?[.]?(routers|services|middlewares)?[.]?[a-zA-Z\u{e4}\\[\\].@]{0,12}", 1..6),
        value in "[a-zA-Z@`(),.\u{e4} ]{0,12}",
    ) {
        let lines: Vec<String> = keys.iter().map(|key| format!("traefik.{key}={value}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let _ = read(&lines);
    }
}

#[test]
fn a_cookie_keeps_clients_where_any_part_of_one_is_said() {
    let sticky = |labels: &[&str]| {
        let labels: Vec<String> = labels
            .iter()
            .map(|label| format!("traefik.http.services.app.loadbalancer.sticky{label}"))
            .collect();
        let all: Vec<&str> = [RULE].into_iter().chain(labels.iter().map(String::as_str)).collect();
        let (spec, faults) = read(&all);
        assert!(faults.is_empty(), "{faults:?}");
        spec.sticky
    };
    assert_eq!(sticky(&[]), None);
    assert_eq!(sticky(&["=false"]), None);
    assert_eq!(sticky(&["=true"]), Some(Sticky::default()));
    assert_eq!(sticky(&[".cookie=false", ".cookie.name=sid"]), None);
    let said = sticky(&[
        ".cookie=true",
        ".cookie.name=sid",
        ".cookie.secure=true",
        ".cookie.httpOnly=false",
        ".cookie.sameSite=Strict",
    ]);
    let expected = Sticky {
        cookie: "sid".parse().unwrap(),
        secure: true,
        http_only: false,
        same_site: Some(SameSite::Strict),
        ..Sticky::default()
    };
    assert_eq!(said, Some(expected));
    assert_eq!(sticky(&[".cookie.name=sid"]).unwrap().cookie.as_str(), "sid");
    // Our own come first.
    let (spec, _) = read(&[
        RULE,
        "traefik.http.services.app.loadbalancer.sticky.cookie.name=theirs",
        "anynode.sticky=true",
        "anynode.sticky.cookie=ours",
    ]);
    assert_eq!(spec.sticky.unwrap().cookie.as_str(), "ours");
}

#[test]
fn what_is_not_known_of_a_closed_route_is_taken_for_as_much_as_it_may_be() {
    let closed = |labels: &[&str]| {
        let labels: Vec<&str> = [RULE].into_iter().chain(labels.iter().copied()).collect();
        let (spec, _) = read(&labels);
        let [route] = &*spec.routes else { panic!("{spec:?}") };
        assert!(route.is_closed, "{labels:?}");
        (route.priority, route.entry_points.len(), route.tls)
    };
    let place = "traefik.http.routers.app.entrypoints=web";
    let auth = "traefik.http.routers.app.middlewares=auth@file";
    assert_eq!(closed(&[place, auth]), (None, 1, RouteTls::AsEntryPoint));
    assert_eq!(
        closed(&["traefik.http.routers.app.entrypoints=web,a b"]),
        (None, 0, RouteTls::AsEntryPoint)
    );
    assert_eq!(
        closed(&[place, "traefik.http.routers.app.priority=high"]),
        (Some(i64::MAX), 1, RouteTls::AsEntryPoint)
    );
    assert_eq!(
        closed(&[auth, "traefik.http.routers.app.tls=true"]),
        (None, 0, RouteTls::Ended)
    );
    // Whose requests would be another's, nobody knows, so that nobody has any.
    for rule in [
        "traefik.http.routers.b.rule=Hots(`b`)",
        "traefik.http.routers.b.priority=1",
    ] {
        let others = [RULE, rule, "traefik.http.routers.b.middlewares=auth@file"];
        let (spec, faults) = read(&others);
        assert!(spec.routes.len() == 1 && spec.routes[0].is_closed, "{rule}");
        let is_said = |fault: &String| fault.contains("requests are those of b, of which something is to be asked");
        assert!(faults.iter().any(is_said), "{faults:?}");
        // One that asks for nothing takes nothing from the others.
        let (spec, _) = read(&[RULE, rule]);
        assert!(spec.routes.len() == 1 && !spec.routes[0].is_closed, "{rule}");
    }
}

fn filtered(
    middlewares: &[&str],
    order: &str,
) -> (Option<std::sync::Arc<crate::model::filters::Filters>>, Vec<String>) {
    let declared: Vec<String> = middlewares
        .iter()
        .map(|one| format!("traefik.http.middlewares.{one}"))
        .collect();
    let named = format!("traefik.http.routers.app.middlewares={order}");
    let all: Vec<&str> = [RULE, named.as_str()]
        .into_iter()
        .chain(declared.iter().map(String::as_str))
        .collect();
    let (spec, faults) = read(&all);
    let [route] = &*spec.routes else { panic!("{spec:?}") };
    assert_eq!(route.is_closed, !faults.is_empty(), "{faults:?}");
    (route.filters.clone(), faults)
}

#[test]
fn middlewares_with_a_counterpart_are_done_in_their_order() {
    let all = [
        "lan.ipAllowList.sourceRange=10.0.0.0/8, 192.0.2.1",
        "tls.redirectScheme.scheme=https",
        "tls.redirectScheme.permanent=true",
        "tls.redirectScheme.port=8443",
        "strip.stripPrefix.prefixes=/api,/v2",
        "strip.stripPrefix.forceSlash=true",
        "add.addPrefix.prefix=/one",
        "sec.headers.customRequestHeaders.X-Script-Name=test",
        "sec.headers.customRequestHeaders.Cookie=",
        "sec.headers.customResponseHeaders.Server=",
        "sec.headers.stsSeconds=60",
        "sec.headers.stsIncludeSubdomains=true",
        "sec.headers.frameDeny=true",
        "sec.headers.contentTypeNosniff=false",
        "both.chain.middlewares=lan,tls@docker",
    ];
    let (filters, faults) = filtered(&all, "both@docker, sec, strip@swarm,add");
    assert!(faults.is_empty(), "{faults:?}");
    let filters = filters.unwrap();
    assert!(filters.lets_in("10.1.1.1".parse().unwrap()) && !filters.lets_in("192.0.2.2".parse().unwrap()));
    let to = filters.to_https.unwrap();
    assert_eq!((to.is_permanent, to.port), (true, Some(8443)));
    let prefixes: Vec<&str> = filters.strip_prefix.iter().map(|prefix| prefix.as_str()).collect();
    assert_eq!(
        (prefixes, filters.add_prefix.as_ref().unwrap().as_str()),
        (vec!["/api", "/v2"], "/one")
    );
    let fields = |edits: &[crate::model::filters::FieldEdit]| -> Vec<String> {
        let shown = edits.iter().map(|(name, value)| {
            let value = value.as_ref().map_or("-", |value| value.as_str());
            format!("{}: {value}", name.as_str())
        });
        shown.collect()
    };
    assert_eq!(fields(&filters.request_fields), ["Cookie: -", "X-Script-Name: test"]);
    assert_eq!(
        fields(&filters.response_fields),
        [
            "Server: -",
            "X-Frame-Options: DENY",
            "Strict-Transport-Security: max-age=60; includeSubDomains"
        ]
    );
    // Nothing that is not done as it was asked for.
    for (order, expected) in [
        (
            "add,strip",
            "strip (stripprefix) has no counterpart behind those before it",
        ),
        ("strip,lan", "lan (ipallowlist) has no counterpart behind"),
        ("strip,strip", "strip (stripprefix) has no counterpart behind"),
        ("none", "there is no middleware none"),
    ] {
        let (_, faults) = filtered(&all, order);
        assert!(faults[0].contains(expected), "{order}: {faults:?}");
    }
    for (wrong, expected) in [
        (
            &["m.stripPrefix.prefixes=/a", "m.addPrefix.prefix=/b"][..],
            "is of several kinds (addprefix, stripprefix)",
        ),
        (&["m.ipAllowList.sourceRange=10.0.0.0/33"], "expected a network"),
        (&["m.chain.middlewares=n", "n.chain.middlewares=m"], "leads to itself"),
        (&["m.chain.middlewares="], "names none"),
        (
            &[
                "m.chain.middlewares=n,n,n,n,n,n,n,n,n,n",
                "n.chain.middlewares=o,o,o,o,o,o,o,o,o,o",
                "o.headers.stsSeconds=0",
            ],
            "is one of more than 64",
        ),
        (&["m.ipAllowList=true"], "no counterpart yet"),
    ] {
        let (_, faults) = filtered(wrong, "m");
        assert!(faults[0].contains(expected), "{wrong:?}: {faults:?}");
    }
    assert_eq!(filtered(&["m.headers.stsSeconds=0"], "m"), (None, Vec::new()));
}

/// As they come to whoever makes tables: without what may be a password, and with all that is done.
#[test]
fn what_a_middleware_is_called_hides_nothing_of_what_it_does() {
    let faults_of = |middlewares: &[&str]| {
        let declared: Vec<String> = middlewares
            .iter()
            .map(|one| format!("traefik.http.middlewares.{one}"))
            .collect();
        let mut all = map(&[RULE, "traefik.enable=true", "traefik.http.routers.app.middlewares=auth"]);
        all.extend(declared.iter().flat_map(|one| map(&[one])));
        let meant = labels::meant(all.iter().map(|(label, value)| (label.as_str(), value.as_str())));
        let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
        let faults = apply(&meant, &mut spec);
        let [route] = &*spec.routes else { panic!("{spec:?}") };
        assert_eq!(route.is_closed, !faults.is_empty(), "{faults:?}");
        (route.filters.clone(), faults, meant)
    };
    let (_, faults, meant) = faults_of(&[
        "auth.chain.middlewares=pw,lan",
        "pw.basicAuth.users=u:secret",
        "lan.ipAllowList.sourceRange=10.0.0.0/8",
    ]);
    assert!(
        faults[0].contains("pw (basicauth) has users: user u: expected a hash as htpasswd"),
        "{faults:?}"
    );
    assert!(meant.values().all(|value| !value.contains("secret")), "{meant:?}");
    let (filters, faults, _) = faults_of(&[
        "auth.chain.middlewares=lan,pw",
        "pw.basicAuth.users=u:$apr1$H6uskkkW$IgXLP6ewTrSuBkTrqE8wj/, v:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=",
        "pw.basicAuth.removeHeader=true",
        "pw.basicAuth.headerField=X-WebAuth-User",
        "lan.ipAllowList.sourceRange=10.0.0.0/8",
    ]);
    assert!(faults.is_empty(), "{faults:?}");
    let auth = filters.unwrap().guards.clone().unwrap().auth.clone().unwrap();
    assert_eq!((auth.users.iter().len(), auth.realm.as_str()), (2, "traefik"));
    assert!(auth.removes_field && auth.user_field.is_some());
    for (wrong, expected) in [
        ("pw.basicAuth.usersFile=/hidden", "has users: expected users"),
        (
            "pw.basicAuth.users=hidden",
            "has users: user number 1: expected name:hash",
        ),
        ("pw.digestAuth.users=hidden", "has no counterpart yet"),
    ] {
        let (_, faults, meant) = faults_of(&["auth.chain.middlewares=pw", wrong]);
        assert!(faults[0].contains(expected), "{faults:?}");
        assert!(
            !format!("{faults:?}{meant:?}").contains("hidden"),
            "{faults:?} {meant:?}"
        );
    }
    let (filters, ..) = faults_of(&["auth.chain.middlewares=lan", "lan.ipAllowList.sourceRange=10.0.0.0/8"]);
    assert!(!filters.unwrap().lets_in("192.0.2.1".parse().unwrap()));
    let (filters, ..) = faults_of(&["auth.headers.customRequestHeaders.Authorization=Basic x"]);
    assert_eq!(
        filters.unwrap().request_fields[0].1.as_ref().unwrap().as_str(),
        "Basic x"
    );
    for label in [
        "traefik.http.middleware.x.basicauth.users",
        "Traefik.HTTP.Middlewares.X.plugin.a.b",
        "traefik.http.middlewares.x.basicAuth.usersFile",
        "traefik.http.middlewares.x.digestAuth.users",
    ] {
        assert!(is_secret(label), "{label}");
    }
    for label in [
        "traefik.http.middlewares.basicauth.headers.framedeny",
        "traefik.http.routers.plugin.rule",
        "auth",
    ] {
        assert!(!is_secret(label), "{label}");
    }
}

#[test]
fn limits_are_counted_by_client_as_ours_are() {
    let (filters, faults) = filtered(
        &[
            "r.rateLimit.average=6",
            "r.rateLimit.period=1m",
            "r.rateLimit.burst=20",
            "r.rateLimit.sourceCriterion.ipStrategy.depth=0",
            "all.inFlightReq.amount=10",
            "each.inFlightReq.amount=3",
            "each.inFlightReq.sourceCriterion.ipStrategy=true",
            "strip.stripPrefix.prefixes=/api",
            "body.buffering.maxRequestBodyBytes=2000000",
            "again.retry.attempts=4",
        ],
        "strip,r,all,each,body,again",
    );
    assert!(faults.is_empty(), "{faults:?}");
    let guards = filters.unwrap().guards.clone().unwrap();
    assert_eq!(guards.rate, "6/1m, 20".parse().ok());
    assert_eq!(
        (guards.max_body, guards.retries),
        ("2MB".parse().ok(), "3".parse().ok())
    );
    assert_eq!(
        (guards.in_flight, guards.in_flight_per_client),
        ("10".parse().ok(), "3".parse().ok())
    );
    let (filters, faults) = filtered(
        &[
            "z.compress.minResponseBodyBytes=200",
            "z.compress.excludedContentTypes=text/event-stream,application/grpc",
            "z.compress.encodings=br,gzip",
        ],
        "z",
    );
    assert!(faults.is_empty(), "{faults:?}");
    let compress = filters.unwrap().compress.clone().unwrap();
    assert!(compress.takes(b"text/html") && compress.min_size == 200);
    let (filters, _) = filtered(&["z.compress=true"], "z");
    assert_eq!(filters.unwrap().compress, Some(Default::default()));
    let (filters, _) = filtered(&["r.rateLimit.average=10"], "r");
    assert_eq!(filters.unwrap().guards.clone().unwrap().rate, "10, 1".parse().ok());
    assert_eq!(filtered(&["r.rateLimit.average=0"], "r"), (None, Vec::new()));
    for (wrong, expected) in [
        (&["m.rateLimit.burst=1"][..], "says no average"),
        (&["m.rateLimit.average=-1"], "expected a rate that there can be"),
        (
            &["m.rateLimit.average=1", "m.rateLimit.burst=0"],
            "has a rate that there cannot be",
        ),
        (
            &[
                "m.rateLimit.average=1",
                "m.rateLimit.sourceCriterion.requestHeaderName=X-A",
            ],
            "requestHeaderName: clients are told apart by their address",
        ),
        (
            &[
                "m.rateLimit.average=1",
                "m.rateLimit.sourceCriterion.ipStrategy.depth=2",
            ],
            "depth: clients are told apart by their address",
        ),
        (
            &["m.buffering.maxRequestBodyBytes=1", "m.buffering.memRequestBodyBytes=1"],
            "no counterpart yet for traefik.http.middlewares.m.buffering.mem",
        ),
        (&["m.buffering.retryExpression=x"], "no counterpart yet"),
        (&["m.buffering.maxRequestBodyBytes=x"], "expected a number of bytes"),
        (&["m.retry.attempts=0"], "expected a whole number from 1 to 11"),
        (
            &["m.retry.attempts=2", "m.retry.initialInterval=100ms"],
            "no counterpart yet",
        ),
        (&["m.inFlightReq.amount=0"], "expected a whole number from 1"),
        (&["m.inFlightReq.sourceCriterion.requestHost=true"], "says no amount"),
        (
            &[
                "m.inFlightReq.amount=1",
                "m.inFlightReq.sourceCriterion.ipStrategy.depth=0",
                "m.inFlightReq.sourceCriterion.requestHost=true",
            ],
            "requestHost=true: expected one criterion",
        ),
        (
            &["m.rateLimit.average=1", "m.rateLimit.redis.endpoints=x"],
            "no counterpart yet",
        ),
    ] {
        let (_, faults) = filtered(wrong, "m");
        assert!(faults[0].contains(expected), "{wrong:?}: {faults:?}");
    }
    let (_, faults) = filtered(&["m.rateLimit.average=1", "n.rateLimit.average=2"], "m,n");
    assert!(faults[0].contains("behind another of its kind"), "{faults:?}");
    for criterion in ["ipStrategy=true", "ipStrategy.depth=0"] {
        let criterion = format!("m.inFlightReq.sourceCriterion.{criterion}");
        let all = [
            "m.inFlightReq.amount=3",
            &*criterion,
            "m.inFlightReq.sourceCriterion.requestHost=false",
        ];
        let guards = filtered(&all, "m").0.unwrap().guards.clone().unwrap();
        assert_eq!(
            (guards.in_flight, guards.in_flight_per_client),
            (None, "3".parse().ok())
        );
    }
}

#[test]
fn requests_under_way_to_each_host_are_those_of_a_route_with_one() {
    let of_rule = |rule: &str, criterion: &str| {
        let rule = format!("traefik.http.routers.app.rule={rule}");
        let (spec, faults) = read(&[
            "traefik.enable=true",
            &rule,
            "traefik.http.routers.app.middlewares=m",
            "traefik.http.middlewares.m.inFlightReq.amount=3",
            &format!("traefik.http.middlewares.m.inFlightReq.sourceCriterion.{criterion}"),
        ]);
        (spec.routes[0].is_closed, faults)
    };
    for (rule, criterion) in [
        ("Host(`a.test`) && PathPrefix(`/x`)", "requestHost=true"),
        ("Host(`a.test`)", "requestHost=false"),
        ("Host(`a.test`) || Host(`b.test`)", "ipStrategy=true"),
    ] {
        assert_eq!(of_rule(rule, criterion), (false, Vec::new()), "{rule} {criterion}");
    }
    for (rule, criterion) in [
        ("Host(`a.test`) || Host(`b.test`)", "requestHost=true"),
        ("Host(`a.test`, `b.test`)", "requestHost=false"),
        ("PathPrefix(`/x`)", "requestHost=false"),
        ("HostRegexp(`.+`)", "requestHost=false"),
    ] {
        let (is_closed, faults) = of_rule(rule, criterion);
        assert!(
            is_closed && faults[0].contains("counts each host by itself"),
            "{rule}: {faults:?}"
        );
    }
}

#[test]
fn what_would_be_done_in_another_order_is_refused() {
    let all = [
        "pw.basicAuth.users=u:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=",
        "pw.basicAuth.headerField=X-User",
        "r.rateLimit.average=6",
        "f.inFlightReq.amount=6",
        "c.inFlightReq.amount=6",
        "c.inFlightReq.sourceCriterion.ipStrategy=true",
        "none.rateLimit.average=0",
        "h.headers.customRequestHeaders.x_user=ann",
        "i.headers.customRequestHeaders.X-Other=ann",
    ];
    for order in ["pw,r,f,c", "none,pw", "i,pw,r"] {
        let (_, faults) = filtered(&all, order);
        assert!(faults.is_empty(), "{order}: {faults:?}");
    }
    for order in ["r,pw", "f,pw", "c,i,pw"] {
        let (_, faults) = filtered(&all, order);
        assert!(
            faults[0].contains("pw (basicauth) has no counterpart behind rateLimit or inFlightReq"),
            "{faults:?}"
        );
    }
    let (_, faults) = filtered(&all, "h,pw");
    assert!(
        faults[0].contains("behind customRequestHeaders.X-User: its headerField"),
        "{faults:?}"
    );
}

#[test]
fn clients_are_sent_elsewhere_before_anything_is_asked() {
    let www = [
        "www.redirectRegex.regex=^https?://example.com/(.*)",
        "www.redirectRegex.replacement=https://www.example.com/${1}",
        "www.redirectRegex.permanent=true",
        "pw.basicAuth.users=u:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=",
        "strip.stripPrefix.prefixes=/api",
    ];
    let (filters, faults) = filtered(&www, "www,pw,strip");
    assert!(faults.is_empty(), "{faults:?}");
    let redirect = filters.unwrap().redirect.clone().unwrap();
    assert_eq!(
        redirect.place("http://example.com/a"),
        Some(Ok("https://www.example.com/a".to_owned()))
    );
    for (order, expected) in [
        ("pw,www", "www (redirectregex) has no counterpart behind basicAuth"),
        (
            "strip,www",
            "www (redirectregex) has no counterpart behind those before it",
        ),
        (
            "www,www",
            "www (redirectregex) has no counterpart behind those before it",
        ),
    ] {
        let (_, faults) = filtered(&www, order);
        assert!(faults[0].contains(expected), "{order}: {faults:?}");
    }
    for (wrong, expected) in [
        (&["m.redirectRegex.regex=x"][..], "says no regex or no replacement"),
        (
            &["m.redirectRegex.regex=(", "m.redirectRegex.replacement=x"],
            "expected a regular expression",
        ),
        (
            &["m.redirectRegex.regex=x", "m.redirectRegex.replacement=$1"],
            "expected groups",
        ),
    ] {
        let (_, faults) = filtered(wrong, "m");
        assert!(faults[0].contains(expected), "{wrong:?}: {faults:?}");
    }
}

//! What labels say, and what is wrong with them.

use super::names::COOKIE;
use super::*;
use crate::model::{Balance, EndpointTls, EntryPointName, HealthProbe, Pins, ProxyProtocol, RouteTls, Verify};

fn read(labels: &[(&str, &str)]) -> (ServiceSpec, Labels) {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut spec = ServiceSpec::new(ServiceName::new("web").unwrap());
    let rest = apply(&labels, &mut spec);
    (spec, rest)
}

#[test]
fn labels_set_what_the_services_file_sets() {
    let (spec, labels) = read(&[
        ("anynode.mode", "tcp"),
        ("anynode.balance", "least-request"),
        ("anynode.bind", "192.0.2.1"),
        ("anynode.proxy-protocol", "v2"),
        ("anynode.health.http", "/health"),
        ("anynode.health.interval", "2s"),
        ("anynode.timeout.idle", "1m"),
        ("anynode.limit.connections", "7"),
    ]);
    assert_eq!(labels.faults, [] as [String; 0]);
    assert_eq!(labels.bind, Some("192.0.2.1".parse().unwrap()));
    assert_eq!((spec.mode, spec.balance), (Mode::Tcp, Balance::LeastRequest));
    assert_eq!(spec.proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!(spec.timeouts.idle, Duration::from_secs(60));
    assert_eq!(spec.limits.connections, 7);
    let check = spec.health.unwrap();
    assert_eq!(
        check.probe,
        HealthProbe::Http {
            path: "/health".to_owned()
        }
    );
    assert_eq!(check.interval, Duration::from_secs(2));
}

#[test]
fn whom_endpoints_are_believed_to_be_is_said_beside_https() {
    let pin = Pins::text_of(&[7; 32]);
    let (spec, labels) = read(&[
        ("anynode.mode", "http"),
        ("anynode.scheme", "https"),
        ("anynode.endpoint-tls.ca", "Internal"),
        ("anynode.endpoint-tls.server-name", "web.internal"),
        ("anynode.endpoint-tls.pin", &pin),
        ("anynode.endpoint-tls.verify", "full"),
    ]);
    assert_eq!(labels, Labels::default());
    let tls = spec.endpoint_tls;
    assert_eq!((tls.ca, tls.verify), ("internal".parse().ok(), Verify::Full));
    assert!(tls.pins.has(&[7; 32]));
    assert_eq!(tls.server_name.unwrap().to_str(), "web.internal");
    let of = |label: &'static str, value: &'static str, scheme: &'static str| {
        let (_, labels) = read(&[("anynode.mode", "http"), ("anynode.scheme", scheme), (label, value)]);
        assert!(labels.wrong.contains(label), "{labels:?}");
        labels.faults.concat()
    };
    let said = of("anynode.endpoint-tls.ca", "internal", "h2c");
    assert!(
        said.starts_with("label anynode.endpoint-tls.ca=internal: expected scheme https beside it"),
        "{said}"
    );
    let said = of("anynode.endpoint-tls.verify", "pin", "https");
    assert_eq!(said, "label anynode.endpoint-tls.verify=pin: expected a pin beside it");
    let said = of("anynode.endpoint-tls.verify", "no", "https");
    assert!(
        said.ends_with("\"no\" is not valid: expected full, pin or none"),
        "{said}"
    );
    // Of a scheme that means nothing it is not known what goes with it.
    let (_, labels) = read(&[
        ("anynode.mode", "http"),
        ("anynode.scheme", "htps"),
        ("anynode.endpoint-tls.verify", "none"),
    ]);
    assert_eq!(labels.faults.len(), 1, "{labels:?}");
}

#[test]
fn a_route_is_of_several_labels_and_makes_the_mode_http() {
    let (spec, labels) = read(&[
        ("anynode.route", "Host(`a.test`) && PathPrefix(`/api`)"),
        ("anynode.priority", "7"),
        ("anynode.entrypoints", "web, other"),
        ("anynode.port", "8080"),
    ]);
    assert_eq!(labels, Labels::default());
    assert_eq!(
        (spec.mode, spec.routes[0].target, spec.routes[0].priority()),
        (Mode::Http, 8080, 7)
    );
    let names: Vec<&str> = spec.routes[0].entry_points.iter().map(EntryPointName::as_str).collect();
    assert_eq!(names, ["web", "other"]);
    for (wrong, expected) in [
        (
            ("anynode.route", "Hots(`a`)"),
            "label anynode.route: \"Hots(`a`)\" is not valid: expected Host, ",
        ),
        (
            ("anynode.priority", "5"),
            "label anynode.priority=5: expected a route beside it",
        ),
        (
            ("anynode.entrypoints", "web"),
            "label anynode.entrypoints=web: expected a route beside it",
        ),
        (
            ("anynode.port", "80"),
            "label anynode.port=80: expected a route beside it",
        ),
        (
            ("anynode.port", "0"),
            "label anynode.port: \"0\" is not valid: expected a port from 1",
        ),
        (
            ("anynode.entrypoints", "a b"),
            "label anynode.entrypoints: \"a b\" is not valid: expected an entry point's name",
        ),
    ] {
        let (spec, labels) = read(&[wrong]);
        assert!(labels.faults[0].starts_with(expected), "{labels:?}");
        // What asks for nothing by itself takes nothing away either.
        let is_left_over = expected.contains("expected a route");
        assert_eq!((labels.wrong.is_empty(), spec.routes.len()), (is_left_over, 0));
    }
    let (spec, labels) = read(&[("anynode.route", "HostSNI(`a`)"), ("anynode.tls", "passthrough")]);
    assert_eq!(
        (labels.faults.len(), spec.mode, spec.routes[0].tls),
        (0, Mode::Tcp, RouteTls::Passthrough)
    );
    for (labels, expected) in [
        (
            [("anynode.mode", "http"), ("anynode.route", "HostSNI(`a`)")],
            "label anynode.route=HostSNI(`a`): expected mode tcp: in http mode requests are told apart",
        ),
        (
            [("anynode.tls", "passthrough"), ("anynode.route", "Host(`a`)")],
            "label anynode.tls=passthrough: expected ended or none beside that route",
        ),
        (
            [("anynode.tls", "open"), ("anynode.route", "HostSNI(`a`)")],
            "label anynode.tls: \"open\" is not valid: expected ended, passthrough or none",
        ),
        (
            [("anynode.sticky", "true"), ("anynode.route", "HostSNI(`a`)")],
            "label anynode.sticky=true: expected mode http",
        ),
        (
            [("anynode.strip-prefix", "/a"), ("anynode.route", "HostSNI(`a`)")],
            "label anynode.strip-prefix: expected mode http",
        ),
    ] {
        let (_, labels) = read(&labels);
        assert!(labels.faults[0].starts_with(expected), "{labels:?}");
    }
    let (spec, labels) = read(&[
        ("anynode.routes.a.rule", "Host(`a`)"),
        ("anynode.routes.b.rule", "HostSNI(`b`)"),
    ]);
    assert_eq!((spec.mode, spec.routes.len()), (Mode::Http, 1));
    assert!(labels.faults[0].starts_with("label anynode.routes.b.rule=HostSNI(`b`): expected mode tcp"));
    let (_, labels) = read(&[("anynode.mode", "tcp"), ("anynode.route", "Host(`a`)")]);
    assert_eq!(
        labels.faults,
        [
            "label anynode.route=Host(`a`): expected mode http: in tcp mode there are no requests, and a route is of HostSNI"
        ]
    );
}

#[test]
fn routes_with_names_stand_and_fall_each_by_itself() {
    let (spec, labels) = read(&[
        ("anynode.route", "Host(`a.test`)"),
        ("anynode.port", "80"),
        ("anynode.routes.admin.rule", "Host(`a.test`) && PathPrefix(`/admin`)"),
        ("anynode.routes.admin.port", "8080"),
        ("anynode.routes.admin.priority", "900"),
        ("anynode.routes.admin.entrypoints", "inner"),
        ("anynode.routes.wrong.rule", "Hots(`a`)"),
        ("anynode.routes.port.rule", "Host(`b.test`)"),
        ("anynode.routes.port.port", "0"),
        ("anynode.routes.none.port", "80"),
        ("anynode.routes.a.b.rule", "Host(`c.test`)"),
    ]);
    let routes: Vec<_> = spec
        .routes
        .iter()
        .map(|route| (&*route.said_by, route.target, route.priority(), route.is_closed))
        .collect();
    let first = spec.routes[0].rule.priority();
    assert_eq!(
        routes,
        [
            ("anynode.route", 80, first, false),
            ("anynode.routes.admin.rule", 8080, 900, false),
            // Nobody is let through, and no other route has its requests.
            ("anynode.routes.port.rule", 0, spec.routes[2].rule.priority(), true),
        ]
    );
    assert_eq!(spec.routes[1].entry_points, ["inner".parse().unwrap()]);
    assert_eq!(labels.wrong, BTreeSet::new());
    let wrong = ["anynode.routes.port.port", "anynode.routes.wrong.rule"];
    assert_eq!(labels.wrong_of_routes, wrong.map(str::to_owned).into());
    for expected in [
        "label anynode.routes.wrong.rule: \"Hots(`a`)\" is not valid: expected Host, ",
        "label anynode.routes.port.port: \"0\" is not valid: expected a port",
        "label anynode.routes.none.port=80: expected a route beside it",
        "label anynode.routes.a.b.rule: no such option; there is anynode.routes.a.rule",
    ] {
        let is_said = labels.faults.iter().any(|fault| fault.starts_with(expected));
        assert!(is_said, "{expected}: {labels:?}");
    }
    assert_eq!(labels.faults.len(), 4);

    let (spec, labels) = read(&[("anynode.mode", "tcp"), ("anynode.routes.x.rule", "Host(`a`)")]);
    assert_eq!((spec.mode, spec.routes.len(), labels.wrong.len()), (Mode::Tcp, 0, 0));
    assert!(labels.faults[0].starts_with("label anynode.routes.x.rule=Host(`a`): expected mode http"));
}

#[test]
fn an_option_of_the_other_mode_is_refused() {
    let of_http = [
        ("anynode.abort-on-client-close", "true"),
        ("anynode.timeout.request-head", "1s"),
        ("anynode.timeout.response", "5s"),
    ];
    let of_tcp = [
        ("anynode.proxy-protocol", "v1"),
        ("anynode.client-address", "transparent"),
    ];
    for (mode, fits, others) in [("http", &of_http[..], &of_tcp[..]), ("tcp", &of_tcp, &of_http)] {
        for option in fits {
            assert_eq!(read(&[("anynode.mode", mode), *option]).1, Labels::default());
        }
        for option in others {
            let (_, labels) = read(&[("anynode.mode", mode), *option]);
            let begin = format!("label {}={}: expected mode ", option.0, option.1);
            assert!(labels.faults[0].starts_with(&begin), "{labels:?}");
            assert_eq!(labels.wrong, BTreeSet::from([option.0.to_owned()]));
            // Of a mode that is none nothing follows.
            assert_eq!(read(&[("anynode.mode", "htp"), *option]).1.faults.len(), 1);
        }
    }
    for said_and_kept in [
        ("anynode.abort-on-client-close", "false"),
        ("anynode.timeout.response", "0s"),
    ] {
        assert_eq!(read(&[said_and_kept]).1, Labels::default());
    }
    let none = read(&[("anynode.mode", "http"), ("anynode.client-address", "none")]);
    assert_eq!(none.1, Labels::default());
}

#[test]
fn what_goes_only_with_other_labels_is_refused_without_them() {
    for (labels, expected) in [
        (
            &[("anynode.hash", "header:X-User"), ("anynode.mode", "http")][..],
            "label anynode.hash=header:X-User: expected balance hash",
        ),
        (
            &[("anynode.hash", "cookie:a"), ("anynode.balance", "hash")],
            "label anynode.hash=cookie:a: expected mode http",
        ),
        (
            &[("anynode.prefer", "local"), ("anynode.balance", "hash")],
            "label anynode.prefer=local: expected another balance",
        ),
        (
            &[("anynode.slow-start", "1s"), ("anynode.balance", "hash")],
            "label anynode.slow-start=1s: expected another balance",
        ),
        (
            &[("anynode.sticky", "true")],
            "label anynode.sticky=true: expected mode http",
        ),
        (
            &[("anynode.sticky.secure", "true"), ("anynode.mode", "http")],
            "label anynode.sticky.secure=true: expected anynode.sticky=true",
        ),
        (
            &[
                ("anynode.sticky", "true"),
                ("anynode.sticky.same-site", "none"),
                ("anynode.mode", "http"),
            ],
            "label anynode.sticky.same-site=none: expected secure",
        ),
        (&[("anynode.weight", "2")], "label anynode.weight=2: expected on nodes"),
    ] {
        let (_, said) = read(labels);
        assert!(
            said.faults.len() == 1 && said.faults[0].starts_with(expected),
            "{said:?}"
        );
    }
    let (spec, labels) = read(&[
        ("anynode.mode", "http"),
        ("anynode.sticky", "true"),
        ("anynode.sticky.cookie", "at"),
        ("anynode.sticky.http-only", "false"),
        ("anynode.balance", "hash"),
        ("anynode.hash", "cookie:user"),
    ]);
    assert_eq!(labels, Labels::default());
    let sticky = spec.sticky.unwrap();
    assert_eq!((sticky.cookie.as_str(), sticky.http_only), ("at", false));
    assert_eq!(spec.hash, crate::model::HashKey::Cookie("user".into()));
}

#[test]
fn each_wrong_label_is_named_and_changes_nothing() {
    let default = read(&[]).0;
    for label in KNOWN {
        // A word is a name, of an entry point, an authority, a host or a cookie.
        let (ca, host) = (EndpointTls::CA.label, EndpointTls::SERVER_NAME.label);
        let wrong = if ["anynode.entrypoints", "anynode.acme", ca, host, COOKIE].contains(&label) {
            "z z"
        } else {
            "zzz"
        };
        let (spec, labels) = read(&[(label, wrong)]);
        assert_eq!(labels.faults.len(), 1, "{label}");
        let shown = match label {
            BASIC_AUTH => "",
            _ => wrong,
        };
        let fault = &labels.faults[0];
        assert!(fault.contains(label) && fault.contains(shown), "{label}");
        assert!(label != BASIC_AUTH || !fault.contains(wrong), "it may be a password");
        assert!(labels.faults[0].contains("expected"), "{label}");
        assert_eq!(labels.wrong, BTreeSet::from([label.to_owned()]));
        assert_eq!(spec, default, "{label}");
    }
    let (spec, labels) = read(&[("anynode.moda", "http"), ("anynode.mode", "http")]);
    assert_eq!(spec.mode, Mode::Http);
    assert_eq!(
        labels.faults,
        ["label anynode.moda: no such option; there is anynode.mode"]
    );
    // A password stays one where its label is misspelled.
    for label in ["anynode.basic-auht", "anynode.basic-auth.user", "anynode.users"] {
        let (_, labels) = read(&[(label, "bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.")]);
        assert!(labels.faults[0].starts_with(&format!("label {label}: no such option")));
        assert!(!labels.faults[0].contains("bob") && shown(label, "bob:secret") == "(not shown)");
    }
    assert_eq!(
        (shown("anynode.mode", "x"), shown("anynode.routes.a.rule", "y")),
        ("x", "y")
    );
    // What was to keep requests out is missed as a wrong value of it is.
    for label in [
        "anynode.basicauth",
        "anynode.basic-auht",
        "anynode.auth",
        "Anynode.Basic-Auth",
        "anynode.basic-auth.users",
        "anynode.alow",
        "anynode.allow.networks",
        "anynode.rates",
        "anynode.inflight",
        "anynode.in-flight-per-clients",
        "anynode.maxbody",
    ] {
        let (_, labels) = read(&[("anynode.mode", "http"), (label, "x")]);
        assert_eq!(labels.wrong, BTreeSet::from([label.to_owned()]), "{labels:?}");
        assert!(wrong(&BTreeMap::from([(label.to_owned(), "x".to_owned())])).contains(label));
    }
    for (label, hint) in [
        ("Anynode.Mode", "; there is anynode.mode"),
        ("ANYNODE.routes.shop.rule", "; there is anynode.routes.shop.rule"),
        ("anynode.routes.shop.prority", "; there is anynode.routes.shop.priority"),
        ("anynode.entrypoint", "; there is anynode.entrypoints"),
        (
            "anynode.something-else",
            ": expected one of anynode.mode, anynode.balance, ",
        ),
    ] {
        let (spec, labels) = read(&[(label, "http")]);
        let expected = format!("label {label}: no such option{hint}");
        assert!(labels.faults[0].starts_with(&expected), "{labels:?}");
        assert_eq!((spec.mode, labels.wrong.len()), (Mode::Tcp, 0));
    }
}

#[test]
fn what_is_done_on_the_way_is_of_mode_http_and_takes_the_service_down_where_it_is_wrong() {
    let (spec, labels) = read(&[
        ("anynode.mode", "http"),
        ("anynode.allow", "10.0.0.0/8, 192.0.2.1"),
        ("anynode.https-only", "true"),
        ("anynode.strip-prefix", "/api"),
        ("anynode.add-prefix", "/v1"),
        ("anynode.request-header.X-User", "me"),
        ("anynode.response-header.Server", ""),
    ]);
    assert!(labels.faults.is_empty(), "{labels:?}");
    let filters = spec.filters.unwrap();
    assert!(filters.to_https.unwrap().is_permanent && !filters.lets_in("192.0.2.2".parse().unwrap()));
    assert_eq!(filters.strip_prefix[0].as_str(), "/api");
    assert_eq!(
        (filters.request_fields.len(), filters.response_fields[0].1.is_none()),
        (1, true)
    );
    const BOB: (&str, &str) = (BASIC_AUTH, "bob:$apr1$THpN.lrg$iC.LvVHGuyOhmZyRJ2rZ4.");
    let (spec, labels) = read(&[
        ("anynode.mode", "http"),
        BOB,
        ("anynode.basic-auth.realm", "The shop"),
        ("anynode.basic-auth.user-header", "X-User"),
        ("anynode.basic-auth.remove-header", "true"),
        ("anynode.rate", "6/1m, 20"),
        ("anynode.in-flight", "10"),
        ("anynode.in-flight-per-client", "3"),
        ("anynode.max-body", "10MiB"),
        ("anynode.retries", "0"),
        ("anynode.redirect-regex", "^https?://a/(.*)"),
        ("anynode.redirect-regex.replacement", "https://b/${1}"),
        ("anynode.redirect-regex.permanent", "true"),
    ]);
    assert!(labels.faults.is_empty(), "{labels:?}");
    let filters = spec.filters.unwrap();
    let redirect = filters.redirect.clone().unwrap();
    assert_eq!(redirect.place("http://a/x"), Some(Ok("https://b/x".to_owned())));
    assert!(redirect.is_permanent());
    for (regex, replacement, expected) in [
        (
            "(",
            "x",
            "label anynode.redirect-regex=(: expected a regular expression",
        ),
        (
            "x",
            "$1",
            "label anynode.redirect-regex.replacement=$1: expected groups that",
        ),
    ] {
        let (spec, labels) = read(&[
            ("anynode.mode", "http"),
            ("anynode.redirect-regex", regex),
            ("anynode.redirect-regex.replacement", replacement),
        ]);
        // Of what was there before, one must not go with the other of now.
        assert!(spec.filters.is_none() && labels.wrong.len() == 2, "{labels:?}");
        assert!(labels.faults[0].starts_with(expected), "{labels:?}");
        assert!(labels.faults.len() == 1 && labels.faults[0].len() < 300, "{labels:?}");
    }
    let (spec, labels) = read(&[
        ("anynode.mode", "http"),
        ("anynode.redirect-regex", "x"),
        ("anynode.redirect-regex.replacement", "/y"),
        ("anynode.redirect-regex.permanent", "yes"),
    ]);
    assert!(spec.filters.is_none() && labels.wrong.len() == 3, "{labels:?}");
    assert!(filters.compress.is_none());
    let (spec, labels) = read(&[
        ("anynode.mode", "http"),
        ("anynode.compress", "true"),
        ("anynode.compress.types", "text/*, application/json"),
        ("anynode.compress.except", "text/css"),
        ("anynode.compress.min-size", "2kB"),
    ]);
    assert!(labels.faults.is_empty(), "{labels:?}");
    let compress = spec.filters.unwrap().compress.clone().unwrap();
    assert!(compress.takes(b"text/html") && !compress.takes(b"text/css") && !compress.takes(b"image/svg+xml"));
    assert_eq!(compress.min_size, 2000);
    let (spec, labels) = read(&[("anynode.mode", "http"), ("anynode.compress", "false")]);
    assert!(spec.filters.is_none() && labels.faults.is_empty(), "{labels:?}");
    let guards = filters.guards.clone().unwrap();
    assert_eq!(guards.rate, "6/1m, 20".parse().ok());
    assert_eq!(
        (guards.in_flight, guards.in_flight_per_client),
        ("10".parse().ok(), "3".parse().ok())
    );
    assert_eq!(
        (guards.max_body, guards.retries),
        ("10485760".parse().ok(), "0".parse().ok())
    );
    let auth = guards.auth.clone().unwrap();
    assert_eq!((auth.realm.as_str(), auth.users.iter().len()), ("The shop", 1));
    assert!(auth.removes_field && auth.user_field.as_ref().is_some_and(|field| field.as_str() == "X-User"));
    for (label, value, expected) in [
        ("anynode.allow", "10.0.0.0/8,x", "expected a network such as"),
        ("anynode.rate", "0/1s", "expected a rate such as"),
        ("anynode.compress", "gzip", "expected true or false"),
        (
            "anynode.compress.types",
            "text/*",
            "expected anynode.compress beside it",
        ),
        (
            "anynode.redirect-regex",
            "x",
            "expected anynode.redirect-regex.replacement beside it",
        ),
        (
            "anynode.redirect-regex.permanent",
            "true",
            "expected anynode.redirect-regex beside it",
        ),
        ("anynode.max-body", "1m", "expected a number of bytes"),
        ("anynode.retries", "11", "expected a whole number from 0 to 10"),
        ("anynode.in-flight", "0", "expected a whole number from 1"),
        ("anynode.in-flight-per-client", "x", "expected a whole number from 1"),
        (BASIC_AUTH, "bob:x", "user bob: expected a hash as htpasswd"),
        ("anynode.https-only", "yes", "expected true or false"),
        ("anynode.strip-prefix", "api", "expected a path that begins"),
        ("anynode.add-prefix", "/a?b", "expected a path that begins"),
        ("anynode.request-header.Host", "x", "expected another header"),
        ("anynode.response-header.a b", "x", "expected a header's name"),
        ("anynode.response-header.X", "a\nb", "expected printable"),
    ] {
        let (spec, labels) = read(&[("anynode.mode", "http"), (label, value)]);
        assert!(
            spec.filters.is_none() && labels.wrong.contains(label),
            "{label}: {labels:?}"
        );
        let begins = [": ", "="].map(|after| format!("label {label}{after}"));
        let fault = &labels.faults[0];
        assert!(begins.iter().any(|begin| fault.starts_with(begin)), "{labels:?}");
        assert!(labels.faults[0].contains(expected), "{expected}: {labels:?}");
    }
    let (spec, labels) = read(&[("anynode.response-header.X", "y"), ("anynode.allow", "10.0.0.0/8")]);
    assert!(spec.filters.is_none() && labels.wrong.len() == 2, "{labels:?}");
    assert!(labels.faults[0].contains("expected mode http"), "{labels:?}");
    let (_, labels) = read(&[("anynode.response-header.", "y")]);
    assert!(labels.faults[0].contains("no such option"), "{labels:?}");
}

//! What rules take, what is none, and that putting them in order changes nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

struct Request {
    host: &'static str,
    path: &'static str,
    query: &'static str,
    method: &'static str,
    client: &'static str,
    fields: BTreeMap<&'static str, &'static str>,
}

impl Fields for BTreeMap<&'static str, &'static str> {
    fn any(&self, name: &str, is: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.iter()
            .any(|(known, value)| known.eq_ignore_ascii_case(name) && is(value.as_bytes()))
    }
}

impl Request {
    fn new() -> Request {
        Request {
            host: "shop.example.test",
            path: "/api/items/42",
            query: "page=2&q=a+b%26c&empty",
            method: "GET",
            client: "10.1.2.3",
            fields: BTreeMap::from([("X-Beta", "yes"), ("Accept", "text/html, */*")]),
        }
    }

    fn is_of(&self, rule: &Rule) -> bool {
        rule.takes(&Asked {
            host: self.host,
            path: self.path.as_bytes(),
            query: self.query.as_bytes(),
            method: self.method,
            client: self.client.parse().unwrap(),
            fields: &self.fields,
        })
    }
}

fn rule(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_rules_take() {
    for (text, takes) in [
        ("Host(`shop.example.test`)", true),
        ("Host(\"Shop.Example.TEST.\")", true),
        ("Host(`example.test`)", false),
        ("Host(`a.test`, `shop.example.test`)", true),
        ("host(`shop.example.test`)", true),
        ("HostRegexp(`^[a-z]+\\.example\\.test$`)", true),
        ("HostRegexp(`^EXAMPLE`)", false),
        ("HostRegexp(`{any:[a-z]+}.example.test`)", true),
        ("HostRegexp(`{any:[a-z]{2,3}}.example.test`)", false),
        ("HostRegexp(`{one}.test`)", false),
        ("HostRegexp(`{one}.{two}.test`)", true),
        ("Path(`/api/items/42`)", true),
        ("Path(`/api/items`)", false),
        ("Path(`/api/items/{id:[0-9]+}`)", true),
        ("Path(`/api/{all}`)", false),
        ("PathPrefix(`/api`)", true),
        ("PathPrefix(`/ap`)", true),
        ("PathPrefix(`/API`)", false),
        ("PathPrefix(`/{which}/items`)", true),
        ("PathPrefix(`/web`, `/api`)", true),
        ("PathRegexp(`/items/\\d+$`)", true),
        ("Method(`get`)", true),
        ("Path(`/api/items/42`) && PathPrefix(`/`)", true),
        ("Method(`POST`, `PUT`)", false),
        ("Header(`x-beta`, `yes`)", true),
        ("Headers(`X-Beta`, `no`)", false),
        ("HeaderRegexp(`Accept`, `text/.*`)", true),
        ("HeadersRegexp(`Absent`, `.*`)", false),
        ("Query(`page`)", true),
        ("Query(`page`, `2`)", true),
        ("Query(`page=2`)", true),
        ("Query(`page=2`, `q=x`)", false),
        ("Query(`q`, `a b&c`)", true),
        ("Query(`empty`, ``)", true),
        ("QueryRegexp(`page`, `^[0-9]$`)", true),
        ("ClientIP(`10.0.0.0/8`)", true),
        ("ClientIP(`10.1.2.3`)", true),
        ("ClientIP(`192.0.2.0/24`, `::1`)", false),
        ("!Host(`a.test`)", true),
        ("!!Host(`a.test`)", false),
        ("Host(`a.test`) || PathPrefix(`/api`) && Method(`POST`)", false),
        ("(Host(`a.test`) || PathPrefix(`/api`)) && Method(`GET`)", true),
        ("Host(`shop.example.test`)&&!(Path(`/`)||Query(`page`,`3`))", true),
    ] {
        assert_eq!(Request::new().is_of(&rule(text)), takes, "{text}");
    }
}

#[test]
fn what_rules_of_connections_take() {
    let takes = |text: &str, name: &str| rule(text).takes(&Asked::connection(name, "10.1.2.3".parse().unwrap()));
    for (text, name, expected) in [
        ("HostSNI(`Db.test.`)", "db.test", true),
        ("HostSNI(`db.test`)", "a.db.test", false),
        ("HostSNI(`db.test`)", "", false),
        ("HostSNI(`*`)", "", true),
        ("HostSNI(`*`)", "db.test", true),
        ("HostSNI(`a`, `b`)", "b", true),
        ("HostSNI(`a`) || HostSNI(`b`)", "b", true),
        ("HostSNIRegexp(`^.+\\.db\\.test$`)", "a.db.test", true),
        ("HostSNIRegexp(`.*`)", "", false),
        ("HostSNIRegexp(`{one}.test`)", "a.b.test", false),
        ("HostSNI(`*`) && ClientIP(`10.0.0.0/8`)", "x", true),
        ("HostSNI(`*`) && !ClientIP(`10.0.0.0/8`)", "x", false),
        ("!HostSNI(`a`)", "", false),
        ("!HostSNI(`a`)", "b", true),
    ] {
        assert_eq!(takes(text, name), expected, "{text} of {name:?}");
        assert!(rule(text).is_of_connections(), "{text}");
    }
    assert!(!rule("ClientIP(`10.0.0.0/8`)").is_of_connections() && !rule("Host(`a`)").is_of_connections());
    assert!(rule("HostSNI(`*`)").is_catch_all() && !rule("HostSNI(`*`)").asks_for_name());
    assert!(!rule("HostSNI(`*`) && ClientIP(`::1`)").is_catch_all() && rule("!HostSNI(`a`)").asks_for_name());
    assert_ne!(rule("HostSNI(`a`)").canonical(), rule("Host(`a`)").canonical());
    assert_eq!(rule("HostSNI(`a`, `b`)").hosts(), Some(BTreeSet::from(["a", "b"])));
    assert_eq!(rule("HostSNI(`*`)").hosts(), None);
}

#[test]
fn what_is_no_rule() {
    for (text, expected) in [
        ("", "Host, HostRegexp, Path, "),
        (
            "example.test",
            "arguments of example in parentheses instead of \".test\" at byte 7",
        ),
        ("Hots(`a`)", "instead of Hots, at byte 0"),
        ("Host(`a`", "a comma or a closing parenthesis behind it"),
        ("Host(`a`) &&", " behind it"),
        (
            "Host(`a`) Path(`/`)",
            "&&, || or the end instead of \"Path(`/`)\" at byte 10",
        ),
        ("Host(`a) ", "a closing backtick behind it"),
        ("Host(\"a", "a closing quote behind it"),
        ("Host(\"a\\n\")", "\\\" or \\\\ at byte"),
        (
            "Host(a)",
            "an argument in backticks or quotes instead of \"a)\" at byte 5",
        ),
        ("Host()", "an argument of Host, at byte 0"),
        ("Host(`a.test:80`)", "without a port instead of \"a.test:80\""),
        ("Host(`*.test`)", "for several of a domain: HostRegexp"),
        ("Host(`müsli.test`)", "in ASCII"),
        ("Path(`api`)", "a path that begins with / instead of \"api\""),
        ("Path(`/a?b`)", "a path as it is read, decoded and without ?, "),
        ("PathPrefix(`/a/../b`)", "instead of \"/a/../b\""),
        ("PathPrefix(`//a`)", "double slashes"),
        ("Path(`/a%20b`)", "decoded"),
        ("Header(`a`)", "two arguments of Header instead of 1"),
        ("Header(`a b`, `c`)", "a header's name instead of \"a b\""),
        ("Query()", "instead of 0 arguments"),
        (
            "ClientIP(`10.0.0.0/40`)",
            "such as 10.0.0.0/8 instead of \"10.0.0.0/40\"",
        ),
        (
            "PathRegexp(`(`)",
            "a regular expression instead of \"(\" (unclosed group)",
        ),
        (
            "PathRegexp(`((a{1000}){1000}){1000}`)",
            "a regular expression instead of",
        ),
        (
            "HostSNI(`*.test`)",
            "for several of a domain: HostSNIRegexp; for all: *",
        ),
        (
            "HostSNI(`a.test`) && PathPrefix(`/`)",
            "expected HostSNI, HostSNIRegexp and ClientIP alone, or none of the former",
        ),
        ("ALPN(`h2`)", "HostSNI or HostSNIRegexp instead of ALPN, at byte 0"),
        ("(Host(`a`)", "a closing parenthesis behind it"),
    ] {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let deep = format!("{}Host(`a`){}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(deep.parse::<Rule>().is_err());
    let deep = format!("{}Host(`a`)", "!".repeat(5_000));
    assert!(deep.parse::<Rule>().unwrap_err().to_string().contains("at most 64"));
}

#[test]
fn the_same_in_another_order_is_the_same() {
    for (one, other, is_same) in [
        ("Host(`a`) && Path(`/`)", "Path(`/`)  &&  Host(\"A\")", true),
        ("Host(`a`, `b`)", "Host(`b`) || Host(`a`) || Host(`a`)", true),
        (
            "(Host(`a`) && (Path(`/`) && Method(`GET`)))",
            "Method(`get`) && Host(`a`) && Path(`/`)",
            true,
        ),
        ("!!Host(`a`)", "Host(`a`)", true),
        ("Host(`a`)", "HostRegexp(`a`)", false),
        ("Host(`a`) && Path(`/`)", "Host(`a`) || Path(`/`)", false),
    ] {
        assert_eq!(
            rule(one).canonical() == rule(other).canonical(),
            is_same,
            "{one} and {other}"
        );
    }
}

#[test]
fn hosts_that_a_rule_is_found_by() {
    for (text, hosts) in [
        ("Host(`a`, `B`)", Some(vec!["a", "b"])),
        ("Host(`a`) && PathPrefix(`/x`)", Some(vec!["a"])),
        ("(Host(`a`) || Host(`b`)) && Host(`a`)", Some(vec!["a"])),
        ("Host(`a`) || PathPrefix(`/x`)", None),
        ("!Host(`a`)", None),
        ("HostRegexp(`a`)", None),
    ] {
        assert_eq!(rule(text).hosts(), hosts.map(BTreeSet::from_iter), "{text}");
    }
}

#[test]
fn what_paths_begin_with() {
    for (text, beginning) in [
        ("Path(`/api/x`)", "/api/x"),
        ("PathPrefix(`/api`) && Path(`/api/x`)", "/api/x"),
        ("PathPrefix(`/api`, `/app`)", "/ap"),
        ("Path(`/\u{e4}b`) || Path(`/\u{e5}b`)", "/"),
        ("PathPrefix(`/api`) || Path(`/api/x`)", "/api"),
        ("PathPrefix(`/api`) || Host(`a`)", ""),
        ("!PathPrefix(`/api`)", ""),
        ("PathRegexp(`^/api`) && Host(`a`)", ""),
    ] {
        assert_eq!(rule(text).beginning(), beginning, "{text}");
    }
}

fn any_rule() -> impl Strategy<Value = String> {
    let matcher = prop_oneof![
        Just("Host(`shop.example.test`)".to_owned()),
        Just("Host(`a.test`, `b.test`)".to_owned()),
        Just("PathPrefix(`/api`)".to_owned()),
        Just("Path(`/`)".to_owned()),
        Just("Method(`GET`)".to_owned()),
        Just("Query(`page`, `3`)".to_owned()),
        Just("HeaderRegexp(`X-Beta`, `y`)".to_owned()),
    ];
    matcher.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| format!("!({one})")),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|all| format!("({})", all.join(" && "))),
            prop::collection::vec(inner, 1..4).prop_map(|any| format!("({})", any.join(" || "))),
        ]
    })
}

/// As it is written, without putting it in order.
fn as_written(text: &str) -> Term {
    parse::parse(text).unwrap()
}

proptest! {
    #[test]
    fn order_changes_no_meaning_and_hosts_hide_no_request(text in any_rule()) {
        let (in_order, written) = (rule(&text), as_written(&text));
        for host in ["shop.example.test", "a.test", "c.test"] {
            for path in ["/", "/api"] {
                let request = Request { host, path, ..Request::new() };
                let asked = Asked {
                    host,
                    path: path.as_bytes(),
                    query: request.query.as_bytes(),
                    method: request.method,
                    client: request.client.parse().unwrap(),
                    fields: &request.fields,
                };
                let takes = in_order.takes(&asked);
                prop_assert_eq!(takes, written.takes(&asked));
                if takes {
                    prop_assert!(in_order.hosts().is_none_or(|hosts| hosts.contains(host)));
                    prop_assert!(path.starts_with(in_order.beginning()));
                }
            }
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "[A-Za-z(){}`\"!&|,.:/\\\\ *\u{e4}-]{0,60}") {
        let _ = text.parse::<Rule>();
    }
}

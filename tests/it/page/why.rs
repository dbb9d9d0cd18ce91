//! `anynode why`: what it says is what happens.

use serde_json::Value;
use std::net::SocketAddr;

use super::Home;
use crate::admin::request;
use crate::cli::anynode;
use crate::harness::{Origin, ask, dial, free_port, read_to_end, wait_until};
use crate::tls::{Authority, write_pair};

impl Home {
    /// The exit code of `anynode why`, and what it prints.
    fn why(&self, args: &[&str]) -> (i32, String) {
        let out = anynode(&["why", "--admin", &self.admin.to_string()])
            .args(args)
            .output()
            .unwrap();
        let said = [out.stdout, out.stderr].concat();
        (out.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    fn why_json(&self, query: &str) -> Value {
        let (status, _, body) = request(self.admin, "GET", &format!("/v1/why?{query}"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[test]
fn the_next_endpoint_is_named_and_gets_the_next_connection() {
    let (a, b) = (Origin::named("a"), Origin::named("b"));
    let home = Home::with(&[a.addr, b.addr]);
    let door = home.door().to_string();
    for _ in 0..6 {
        let answer = home.why_json(&format!("ask={door}"));
        let again = home.why_json(&format!("ask={door}"));
        assert_eq!(answer["next"], again["next"], "no turn is taken by asking");
        let name = if answer["next"] == a.addr.to_string() { "a" } else { "b" };
        assert_eq!(ask(home.door()), name);
    }
    let (code, said) = home.why(&[&door]);
    assert_eq!(code, 0, "{said}");
    for part in [
        "service web: 2 of 2 endpoints get traffic, the next is ",
        "is service web's (listening)",
        "service    web (tcp)",
        &a.addr.to_string(),
        "upstream_fin",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let closes = home.why_json(&format!("ask={door}"))["closes"].clone();
    let newest = &closes.as_array().unwrap()[0];
    assert!(newest["at_ms"].as_u64() >= closes[5]["at_ms"].as_u64(), "{closes}");
}

#[test]
fn an_endpoint_that_gets_nothing_says_why_and_a_service_without_any_what_clients_get() {
    let a = Origin::named("a");
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let home = Home::with(&[a.addr, gone]);
    let door = home.door().to_string();
    wait_until("the endpoint to rest", || {
        ask(home.door());
        let answer = home.why_json(&format!("ask={door}"));
        let against = answer["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["is_for"] == false);
        against.is_some_and(|one| {
            assert_eq!(one["address"], gone.to_string());
            one["why"].as_str().unwrap().contains("3 connects in a row failed")
        })
    });
    home.declare(&[gone], "");
    let waiting: Vec<_> = (0..4).map(|_| dial(home.door())).collect();
    wait_until("the last to be lost", || {
        let text = home.why_json(&format!("ask={door}"))["text"]
            .as_str()
            .unwrap()
            .to_owned();
        text.contains("none of its 1 endpoints is well, so all are tried")
    });
    drop(waiting);
}

#[test]
fn who_holds_a_port_that_is_no_services_is_named() {
    let a = Origin::named("a");
    let home = Home::with(&[a.addr]);
    let (code, said) = home.why(&[&a.addr.to_string()]);
    assert_eq!(code, 1, "{said}");
    let pid = format!("(pid {}) listens on {}", std::process::id(), a.addr);
    assert!(
        said.contains("no service is published at") && said.contains(&pid),
        "{said}"
    );
    let nobody = free_port();
    let (code, said) = home.why(&[&format!("127.0.0.1:{nobody}")]);
    assert!(code == 1 && said.contains("nobody listens there"), "{said}");
    for (args, part) in [
        (&["web"][..], "ask = \"web\": expected HOST:PORT"),
        (&["web:80", "--path", "x"], "path = \"x\""),
        (&["web:80", "--node", "b"], "node = \"b\": this node is alone"),
    ] {
        let (code, said) = home.why(args);
        assert!(code == 69 && said.contains(part), "{said}");
    }
}

#[test]
fn at_an_entry_point_the_rule_that_takes_it_is_named() {
    let a = Origin::named("a");
    let keys = tempfile::tempdir().unwrap();
    write_pair(keys.path(), "a", &Authority::new("tests").issue(&["a.example"], 30));
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let settings = format!(
        "[entrypoints.web]\nlisten = '127.0.0.1:{}'\n[entrypoints.plain]\nlisten = '127.0.0.1:{}'\nredirect = 'secure'\n\
         [entrypoints.secure]\nlisten = '127.0.0.1:{}'\ntls = true\n\
         [tls]\ncertificates = [{{ cert = '{}/a.pem', key = '{}/a.key' }}]\n",
        ports[0],
        ports[1],
        ports[2],
        keys.path().display(),
        keys.path().display()
    );
    let home = Home::configured(&[a.addr], &settings);
    let routed = |name: &str, rule: &str, more: &str| {
        format!(
            "  {name}:\n    mode: http\n    route: \"{rule}\"\n    entrypoints: [web]\n    endpoints: [\"{}\"]\n{more}",
            a.addr
        )
    };
    let more = [
        routed("site", "Host(`a.example`)", ""),
        routed("api", "Host(`a.example`) && PathPrefix(`/api`)", ""),
        routed("shut", "Host(`b.example`)", "    allow: [\"10.0.0.0/8\"]\n"),
    ];
    home.declare(&[a.addr], &more.concat());
    let door = format!("127.0.0.1:{}", ports[0]);
    wait_until("the routes", || {
        home.why_json(&format!("ask={door}&host=b.example"))["rule"].is_object()
    });
    for (query, service, text) in [
        (
            "host=A.Example:80",
            Some("site"),
            "service site: 1 of 1 endpoints get traffic",
        ),
        ("host=a.example&path=%2Fapi%2Fv1", Some("api"), "service api"),
        (
            "host=c.example",
            None,
            "none of the 3 rules of entry point web takes GET / for \"c.example\": 404",
        ),
        (
            "host=a.example&path=%2Fapi%2F..%2Fx",
            None,
            "entry point web refuses such a request",
        ),
        (
            "host=b.example",
            Some("shut"),
            "127.0.0.1 is not among those that service shut lets in (allow): 403",
        ),
        (
            "host=b.example&from=10.1.2.3",
            Some("shut"),
            "service shut: 1 of 1 endpoints get traffic",
        ),
    ] {
        let answer = home.why_json(&format!("ask={door}&{query}"));
        assert_eq!(answer["service"].as_str(), service, "{query}: {answer}");
        assert!(answer["text"].as_str().unwrap().contains(text), "{query}: {answer}");
        assert_eq!(answer["rule"].is_object(), service.is_some(), "{query}: {answer}");
    }
    let redirected = home.why_json(&format!("ask=127.0.0.1:{}&host=a.example", ports[1]));
    assert!(
        redirected["text"]
            .as_str()
            .unwrap()
            .contains("sends every request to the same place by https"),
        "{redirected}"
    );
    // What it says is what happens.
    let mut client = dial(door.parse().unwrap());
    std::io::Write::write_all(
        &mut client,
        b"GET / HTTP/1.1\r\nHost: c.example\r\nConnection: close\r\n\r\n",
    )
    .unwrap();
    let got = String::from_utf8(read_to_end(&client)).unwrap();
    assert!(got.starts_with("HTTP/1.1 404"), "{got}");
}

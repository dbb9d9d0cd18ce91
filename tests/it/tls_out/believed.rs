//! Who is believed and who is not, and what is said of it.

use std::io::{Read, Write};
use std::process::Output;
use std::time::{Duration, Instant};

use super::rig::{Authority, Endpoint, Node, at, get, self_signed, service};
use crate::harness::{Origin, free_port, reset, wait_until};

#[test]
fn an_endpoint_is_asked_by_the_services_name_and_gets_the_request_as_it_is() {
    let authority = Authority::new("internal");
    let endpoint = Endpoint::mirror(&authority.issue(&["web"]));
    let other = Endpoint::mirror(&authority.issue(&["shop.internal"]));
    let (port, other_port) = (free_port(), free_port());
    let node = Node::start(
        &[
            service("web", port, &[endpoint.addr()], &["endpoint_tls: { ca: internal }"]),
            service(
                "named",
                other_port,
                &[other.addr()],
                &["endpoint_tls: { ca: Internal, server_name: Shop.Internal }"],
            ),
        ]
        .concat(),
        &[("internal", &authority.pem)],
    );
    for (port, endpoint, name) in [(port, &endpoint, "web"), (other_port, &other, "shop.internal")] {
        let (status, text) = get(at(port), "/a?b=c");
        assert_eq!(status, 200, "{text}");
        for line in [
            "GET /a?b=c HTTP/1.1\r\n",
            "\r\nhost: shop.test\r\n",
            "\r\nx-forwarded-for: 127.0.0.1\r\n",
            "\r\nx-forwarded-proto: http\r\n",
        ] {
            assert!(text.to_lowercase().contains(&line.to_lowercase()), "{line} in {text}");
        }
        assert_eq!(endpoint.seen().names, [name]);
    }
    assert_eq!(node.handshakes("web", "full"), 1);
    assert!(!node.status().contains("TLS:"), "{}", node.status());
}

#[test]
fn who_is_not_believed_gets_no_request_and_the_operator_is_told_why() {
    let (ours, theirs) = (Authority::new("internal"), Authority::new("somebody"));
    let right = ours.issue(&["web"]);
    let plain = Origin::start(|mut stream| {
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    });
    let resets = Origin::start(|mut stream| {
        let _ = stream.read(&mut [0]);
        reset(stream);
    });
    let ends = Origin::start(|mut stream| drop(stream.read(&mut [0; 4096])));
    let silent = Origin::start(|mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer) {}
    });
    let mirrors: Vec<Endpoint> = [
        &theirs.issue(&["web"]),
        &ours.issue(&["api", "*.api"]),
        &ours.issue_until(&["web"], -1),
        &self_signed(&["web"]),
        &right,
        &right,
        &right,
        &right,
    ]
    .map(Endpoint::mirror)
    .into_iter()
    .collect();
    let other_pin = ours.issue(&["web"]).pin;
    let by_ca = "endpoint_tls: { ca: internal, server_name: web }".to_owned();
    let pinned = |verify: &str, ca: &str| {
        format!("endpoint_tls: {{ pin: {other_pin}, verify: {verify}, server_name: web{ca} }}")
    };
    let full = pinned("full", ", ca: internal");
    let alone = pinned("pin", "");
    let none = "endpoint_tls: { server_name: web }".to_owned();
    let unknown = "endpoint_tls: { ca: elsewhere, server_name: web }".to_owned();
    let mirror = |i: usize| mirrors[i].addr();
    let cases = [
        (
            "theirs",
            mirror(0),
            &by_ca,
            "unknown_issuer",
            "by no authority that it is judged by",
        ),
        (
            "misnamed",
            mirror(1),
            &by_ca,
            "wrong_name",
            "is for api, *.api, and not for web",
        ),
        ("expired", mirror(2), &by_ca, "expired", "has expired"),
        (
            "selfmade",
            mirror(3),
            &by_ca,
            "unknown_issuer",
            "by no authority that it is judged by",
        ),
        ("pinned", mirror(4), &full, "wrong_pin", right.pin.as_str()),
        ("pinonly", mirror(5), &alone, "wrong_pin", right.pin.as_str()),
        (
            "public",
            mirror(6),
            &none,
            "unknown_issuer",
            "by no authority that it is judged by",
        ),
        (
            "nobody",
            mirror(7),
            &unknown,
            "no_authority",
            "no authorities.elsewhere",
        ),
        ("plain", plain.addr, &by_ca, "not_tls", "does it speak plain HTTP?"),
        ("resets", resets.addr, &by_ca, "cut_off", "within the handshake"),
        ("ends", ends.addr, &by_ca, "cut_off", "within the handshake"),
        ("silent", silent.addr, &by_ca, "timed_out", "in time"),
    ];
    let ports: Vec<u16> = cases.iter().map(|_| free_port()).collect();
    let services: String = cases
        .iter()
        .zip(&ports)
        .map(|((name, addr, tls, ..), port)| {
            service(name, *port, &[*addr], &[tls.as_str(), "timeouts: { connect: 1s }"])
        })
        .collect();
    let node = Node::start(&services, &[("internal", &ours.pem)]);
    for ((name, addr, _, result, why), port) in cases.iter().zip(&ports) {
        let is_late = *result == "timed_out";
        let asked = Instant::now();
        let (status, text) = get(at(*port), "/");
        assert_eq!(status, if is_late { 504 } else { 502 }, "{name}: {text}");
        assert_eq!(is_late, asked.elapsed() >= Duration::from_secs(1), "{name}");
        assert!(
            asked.elapsed() < Duration::from_secs(4),
            "{name}: the limit is of all of it"
        );
        assert_eq!(node.handshakes(name, result), 1, "{name}");
        let said = format!("! TLS: {addr} of {name} is not spoken to: ");
        let lines = node.status();
        let line = lines.lines().find(|line| line.starts_with(&said));
        assert!(
            line.is_some_and(|line| line.contains(why)),
            "{name}: {line:?} of {lines}"
        );
        assert!(node.log().contains(why), "{name}");
        assert!(
            is_late || text.contains("was believed: anynode status says more"),
            "{text}"
        );
    }
    // Nobody of them was sent a request.
    assert!(mirrors.iter().all(|mirror| mirror.seen().n_resumed == 0));
}

#[test]
fn a_pin_or_nothing_is_asked_for_by_an_explicit_word() {
    let made = self_signed(&["localhost"]);
    let other = self_signed(&["localhost"]);
    let endpoints = [
        Endpoint::mirror(&made),
        Endpoint::mirror(&made),
        Endpoint::mirror(&made),
    ];
    let ports = [free_port(), free_port(), free_port()];
    let both = format!("endpoint_tls: {{ verify: pin, pin: \"{};{}\" }}", other.pin, made.pin);
    // A certificate that is its own authority is believed by being in the file.
    let as_authority = format!(
        "endpoint_tls: {{ ca: internal, server_name: localhost, pin: {} }}",
        made.pin
    );
    let node = Node::start(
        &[
            service("pinned", ports[0], &[endpoints[0].addr()], &[&both]),
            service(
                "any",
                ports[1],
                &[endpoints[1].addr()],
                &["endpoint_tls: { verify: none }"],
            ),
            service("own", ports[2], &[endpoints[2].addr()], &[&as_authority]),
        ]
        .concat(),
        &[("internal", &made.certificate)],
    );
    for port in ports {
        let (status, text) = get(at(port), "/");
        assert_eq!(status, 200, "{port}: {text}\n{}", node.status());
    }
}

#[test]
fn one_that_is_not_believed_costs_no_request_while_another_is() {
    let (ours, theirs) = (Authority::new("internal"), Authority::new("somebody"));
    let good = Endpoint::mirror(&ours.issue(&["web"]));
    let bad = Endpoint::mirror(&theirs.issue(&["web"]));
    let port = free_port();
    let node = Node::start(
        &service(
            "web",
            port,
            &[bad.addr(), good.addr()],
            &["endpoint_tls: { ca: internal }"],
        ),
        &[("internal", &ours.pem)],
    );
    for i in 0..20 {
        let body = "x".repeat(i);
        let request =
            format!("POST /{i} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {i}\r\nConnection: close\r\n\r\n{body}");
        // The mirror takes the body for what follows, which is its own affair.
        let (status, text) = super::rig::ask(at(port), &request);
        assert_eq!(status, 200, "{text}");
    }
    // It rests after three in a row.
    wait_until("a rest", || node.states("web").contains(&"resting".to_owned()));
    assert!(bad.seen().n_full + bad.seen().n_resumed <= 3);
    assert!(node.handshakes("web", "unknown_issuer") >= 3);
}

fn check(dir: &std::path::Path) -> Output {
    Node::command(dir, "check").output().unwrap()
}

#[test]
fn what_would_not_be_kept_is_refused_with_key_value_and_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("internal");
    std::fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
    let ca = dir.path().join("ca.pem").display().to_string();
    let good = format!("[authorities]\ninternal = '{ca}'\n");
    let says = |config: &str, more: &[&str], scheme: &str, expected: &str| {
        std::fs::write(dir.path().join("anynode.toml"), config).unwrap();
        let mut text = format!("services:\n{}", service("web", 8443, &[at(1)], more));
        text = text.replace("scheme: https", scheme);
        std::fs::write(dir.path().join("services.yml"), text).unwrap();
        let out = check(dir.path());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(expected), "{more:?}: {said}");
    };
    let https = "scheme: https";
    for (more, scheme, expected) in [
        (
            &["endpoint_tls: { verify: never }"][..],
            https,
            "\"never\" is not valid: expected full, pin or none",
        ),
        (
            &["endpoint_tls: { verify: pin }"],
            https,
            "endpoint_tls.verify: expected a pin beside it",
        ),
        (
            &["endpoint_tls: { pin: abc }"],
            https,
            "expected sha256//BASE64 of a public key",
        ),
        (
            &["endpoint_tls: { server_name: \"*.a.test\" }"],
            https,
            "expected one host",
        ),
        (
            &["endpoint_tls: { ca: internal, verify: none }"],
            https,
            "endpoint_tls.ca: expected verify full beside it",
        ),
        (
            &["endpoint_tls: { client_certificate: a.pem }"],
            https,
            "no such key: `client_certificate`",
        ),
        (&["endpoint_tls: { ca: elsewhere }"], https, "no authorities.elsewhere"),
        (
            &["endpoint_tls: { ca: internal }"],
            "scheme: http",
            "endpoint_tls.ca: expected scheme https beside it",
        ),
        (
            &["endpoint_tls: { verify: full }"],
            "scheme: h2c",
            "endpoint_tls.verify: expected scheme https beside it",
        ),
        (&[], "scheme: wss", "expected http, https or h2c"),
        // Without a value a key would turn off what whoever wrote it meant.
        (&["endpoint_tls: { pin: , ca: internal }"], https, "endpoint_tls.pin: "),
        (&["endpoint_tls: { ca: }"], https, "endpoint_tls.ca: "),
        (&["endpoint_tls: { ca: null }"], https, "endpoint_tls.ca: "),
        (
            &["endpoint_tls: { server_name: ~ }"],
            https,
            "endpoint_tls.server_name: ",
        ),
        (&["endpoint_tls: { verify: null }"], https, "endpoint_tls.verify: "),
        (&["endpoint_tls:"], https, "endpoint_tls: expected keys with values"),
        (&["endpoint_tls: ~"], https, "endpoint_tls: "),
        (&[], "scheme:", "services.web.scheme: "),
        (
            &["endpoint_tls: {}"],
            "scheme: http",
            "endpoint_tls: expected scheme https beside it",
        ),
    ] {
        says(&good, more, scheme, expected);
    }
    let pipe = dir.path().join("pipe").display().to_string();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let long = dir.path().join("long.pem").display().to_string();
    std::fs::write(&long, authority.pem.repeat((5 << 20) / authority.pem.len())).unwrap();
    for (config, expected) in [
        (
            &*format!("[authorities]\ninternal = '{pipe}'\n"),
            "pipe\": expected certificates of authorities in PEM: it is no file",
        ),
        (
            &format!("[authorities]\ninternal = '{long}'\n"),
            "or has more than 4 MiB",
        ),
        (
            "authorities = 'a.pem'\n",
            "authorities = \"a.pem\": expected paths by name",
        ),
        (
            "[authorities]\ninternal = 7\n",
            "authorities.internal = 7: expected a path",
        ),
        (
            "[authorities]\n\"a b\" = 'a.pem'\n",
            "authorities.a b = \"a.pem\": expected the NAME",
        ),
        (
            "[authorities]\ninternal = '/nowhere/ca.pem'\n",
            "authorities.internal = \"/nowhere/ca.pem\": No such file",
        ),
        (
            &format!("[authorities]\na = '{ca}'\nA = '{ca}'\n"),
            "expected another name",
        ),
        (
            &format!(
                "[authorities]\ninternal = '{}'\n",
                dir.path().join("services.yml").display()
            ),
            "expected certificates of authorities in PEM",
        ),
    ] {
        says(config, &[], https, expected);
    }
}

#[test]
fn a_check_by_https_judges_endpoints_as_requests_do() {
    let (ours, theirs) = (Authority::new("internal"), Authority::new("somebody"));
    let good = Endpoint::mirror(&ours.issue(&["web"]));
    let bad = Endpoint::mirror(&theirs.issue(&["web"]));
    let port = free_port();
    let node = Node::start(
        &service(
            "web",
            port,
            &[good.addr(), bad.addr()],
            &[
                "endpoint_tls: { ca: internal }",
                "health: { http: /health, interval: 100ms }",
            ],
        ),
        &[("internal", &ours.pem)],
    );
    wait_until("both verdicts", || {
        node.states("web") == ["ready", "unready"] || node.states("web") == ["untried", "unready"]
    });
    let line = format!(
        "! TLS: {} of web is not spoken to: its certificate is by no authority",
        bad.addr()
    );
    assert!(node.status().contains(&line), "{}", node.status());
    assert!(
        node.log()
            .contains("unhealthy: TLS: its certificate is by no authority"),
        "{}",
        node.log()
    );
    for _ in 0..4 {
        assert_eq!(get(at(port), "/").0, 200);
    }
    // Believed from now on.
    std::fs::write(node.path("internal-ca.pem"), format!("{}{}", ours.pem, theirs.pem)).unwrap();
    wait_until("the second one", || !node.states("web").contains(&"unready".to_owned()));
    wait_until("no fault", || !node.status().contains("! TLS:"));
}

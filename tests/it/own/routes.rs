//! Services of the own swarm that share an entry point by labels, driven by the docker command line.

use super::rig::{self, LONG, Own, Tasks};

const IMAGE: &str = "anynode/whoami";

fn stage() -> Option<Own> {
    let mut own = rig::up("routes", Tasks::Processes)?;
    let entry_points = "{ web = { listen = ':80' }, other = { listen = ':8081' }, raw = { listen = ':8082' } }";
    own.env.push(("ANYNODE_ENTRYPOINTS", entry_points));
    own.start();
    own.docker(&["swarm", "init"]);
    Some(own)
}

/// What a request for that host and path is answered with: the status, and the name that the task says.
pub(super) fn ask(own: &Own, host: &str, path: &str) -> (String, String) {
    ask_at(own, 80, host, path)
}

/// The same, by a name and a password.
pub(super) fn ask_as(own: &Own, user: &str, host: &str) -> (String, String) {
    ask_with(own, &["-u", user], 80, host, "/")
}

fn ask_at(own: &Own, port: u16, host: &str, path: &str) -> (String, String) {
    ask_with(own, &[], port, host, path)
}

/// The same, at that port and with more of curl's options.
pub(super) fn ask_with(own: &Own, more: &[&str], port: u16, host: &str, path: &str) -> (String, String) {
    let url = format!("http://127.0.0.1:{port}{path}");
    let host = format!("Host: {host}");
    let args = ["-s", "-m", "10", "-w", "\n%{http_code}", "-H", &host, &url];
    let out = own.inside("curl").args(more).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    (status.to_owned(), body.to_owned())
}

#[test]
fn services_share_a_port_by_labels() {
    let Some(own) = stage() else { return };
    let create = |name: &str, labels: &[&str]| {
        let mut args = vec!["service", "create", "-d", "--name", name];
        labels.iter().for_each(|label| args.extend(["--label", label]));
        args.push(IMAGE);
        own.docker(&args);
    };
    create("shop", &["anynode.route=Host(`shop.test`)", "anynode.port=8080"]);
    create(
        "api",
        &[
            "anynode.route=Host(`shop.test`) && PathPrefix(`/api`)",
            "anynode.port=9000",
            "anynode.entrypoints=web",
        ],
    );
    let hostname = |service: &str| {
        let ids = own.docker(&["service", "ps", "-q", "--no-trunc", service]);
        ids.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(12)
            .collect::<String>()
    };
    for (service, path) in [("shop", "/"), ("api", "/api")] {
        own.wait_for(&format!("{service} behind its route"), LONG, || {
            let (status, body) = ask(&own, "shop.test", path);
            status == "200" && body.contains(&hostname(service))
        });
    }
    assert_eq!(ask(&own, "other.test", "/").0, "404");
    create(
        "many",
        &[
            "anynode.routes.one.rule=Host(`one.test`)",
            "anynode.routes.one.port=8080",
            "anynode.routes.two.rule=Host(`two.test`)",
            "anynode.routes.two.port=8080",
            "anynode.routes.two.entrypoints=other",
        ],
    );
    own.wait_for("the first of several routes", LONG, || {
        ask(&own, "one.test", "/").1.contains(&hostname("many"))
    });
    assert_eq!(ask(&own, "two.test", "/").0, "404");
    assert!(ask_at(&own, 8081, "two.test", "/").1.contains(&hostname("many")));
    // A whole port, by the same labels.
    create(
        "stream",
        &[
            "anynode.route=HostSNI(`*`)",
            "anynode.port=8080",
            "anynode.entrypoints=raw",
        ],
    );
    own.wait_for("a route of connections", LONG, || {
        ask_at(&own, 8082, "any.test", "/").1.contains(&hostname("stream"))
    });
    // What cannot be served is refused, and names what is in its way.
    for (args, expected) in [
        (
            vec![
                "--label",
                "anynode.routes.x.rule=Host(`one.test`)",
                "--label",
                "anynode.routes.x.port=1",
            ],
            "label anynode.routes.x.rule=Host(`one.test`): it is already that of service many at entry point ",
        ),
        (
            vec![
                "--label",
                "anynode.routes.x.rule=Host(`x`)",
                "--label",
                "anynode.routes.y.rule=Host(`x`)",
                "--label",
                "anynode.routes.x.port=1",
            ],
            "label anynode.routes.y.rule=Host(`x`): expected the label anynode.routes.y.port",
        ),
        (
            vec![
                "--label",
                "anynode.routes.x.rule=Host(`x`)",
                "--label",
                "anynode.route=Host(`x`)",
                "-p",
                "9090:80",
            ],
            "label anynode.routes.x.rule=Host(`x`): it is already that of label anynode.route",
        ),
        (
            vec![
                "--label",
                "anynode.route=PathPrefix(`/api`) && Host(`shop.test`)",
                "--label",
                "anynode.port=1",
            ],
            "it is already that of service api at entry point web",
        ),
        (
            vec![
                "--label",
                "anynode.route=Host(`a`)",
                "--label",
                "anynode.entrypoints=wbe",
                "--label",
                "anynode.port=1",
            ],
            "there is no entry point wbe: expected ",
        ),
        (
            vec!["--label", "anynode.route=Hots(`a`)"],
            "label anynode.route: \"Hots(`a`)\" is not valid",
        ),
        (
            vec!["--label", "anynode.route=Host(`a`)"],
            "expected the label anynode.port, the port that tasks listen on, since the service publishes none",
        ),
        (
            vec![
                "--label",
                "anynode.mode=http",
                "--label",
                "anynode.route=HostSNI(`x`)",
                "--label",
                "anynode.port=1",
            ],
            "label anynode.route=HostSNI(`x`): expected mode tcp: in http mode requests are told apart",
        ),
        (
            vec!["--label", "anynode.route=HostSNI(`*`)", "--label", "anynode.port=1"],
            "label anynode.route=HostSNI(`*`): it is already that of service stream at entry point raw",
        ),
        (vec!["-p", "80:80"], "port '80' is already in use by entry point 'web'"),
    ] {
        let args = [vec!["service", "create", "-d", "--name", "bad"], args, vec![IMAGE]].concat();
        let said = own.docker_fails(&args);
        assert!(said.contains(expected), "{said}");
    }
    // So is what an update leaves of the others, though it is another label that is new.
    for (change, expected) in [
        (
            ["--label-add", "anynode.mode=tcp"],
            "label anynode.route=Host(`shop.test`): expected mode http",
        ),
        (
            ["--label-rm", "anynode.route"],
            "label anynode.port=8080: expected a route beside it",
        ),
        (["--label-rm", "anynode.port"], "expected the label anynode.port"),
    ] {
        let args = [&["service", "update", "-d"][..], &change, &["shop"]].concat();
        let said = own.docker_fails(&args);
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(ask(&own, "shop.test", "/").0, "200");
    let warned = own.docker_out(&[
        "service",
        "create",
        "-d",
        "--container-label",
        "anynode.route=Host(`a`)",
        IMAGE,
    ]);
    let warned = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(warned.contains("label anynode.route is the container's"), "{warned}");
    // A route moves with an update, and none is left behind.
    own.docker(&[
        "service",
        "update",
        "-d",
        "--label-add",
        "anynode.route=Host(`api.test`)",
        "api",
    ]);
    own.wait_for("the new route", LONG, || ask(&own, "api.test", "/").0 == "200");
    own.wait_for("the old one's end", LONG, || {
        ask(&own, "shop.test", "/api").1.contains(&hostname("shop"))
    });
    own.docker(&["service", "rm", "api"]);
    own.wait_for("its end", LONG, || ask(&own, "api.test", "/").0 == "404");
}

//! A stack file as people write it for Traefik, deployed as it is: what has a counterpart is served, and nothing is served without
//! what it asks for besides.

use super::rig::{self, LONG, Own, Tasks};
use super::routes::{ask, ask_as, ask_with};

const STACK: &str = r#"
version: "3.8"

x-labels: &traefik
  traefik.enable: "true"
  traefik.docker.network: shop_traefik-public
  traefik.constraint-label: traefik-public

services:
  whoami:
    image: anynode/whoami
    networks: [traefik-public]
    deploy:
      replicas: 2
      labels:
        - traefik.enable=true
        - traefik.docker.network=shop_traefik-public
        - traefik.constraint-label=traefik-public
        - traefik.http.routers.whoami.rule=Host(`app.example.com`) || Host(`www.example.com`)
        - traefik.http.routers.whoami.entrypoints=web
        - "traefik.http.services.whoami.loadbalancer.server.port=8080"
        - traefik.http.services.whoami.loadbalancer.healthcheck.path=/
        - traefik.http.services.whoami.loadbalancer.healthcheck.interval=1s
        - traefik.http.routers.whoami.middlewares=small
        - traefik.http.middlewares.small.compress=true
        - traefik.http.routers.limited.rule=Host(`limited.example.com`) || Host(`old.example.com`)
        - traefik.http.routers.limited.entrypoints=web
        - traefik.http.routers.limited.middlewares=old,limit,size,again,few
        - traefik.http.middlewares.old.redirectregex.regex=^http://old\.example\.com/(.*)
        - traefik.http.middlewares.old.redirectregex.replacement=http://limited.example.com/$${1}
        - traefik.http.middlewares.limit.ratelimit.average=1
        - traefik.http.middlewares.limit.ratelimit.period=1h
        - traefik.http.middlewares.limit.ratelimit.burst=3
        - traefik.http.middlewares.size.buffering.maxrequestbodybytes=10
        - traefik.http.middlewares.again.retry.attempts=2
        - traefik.http.middlewares.few.inflightreq.amount=10
        - traefik.http.middlewares.few.inflightreq.sourcecriterion.ipstrategy.depth=0
  api:
    image: anynode/whoami
    networks: [traefik-public]
    deploy:
      labels:
        <<: *traefik
        traefik.http.routers.api.rule: "Host(`app.example.com`) && PathPrefix(`/api`, `/v2`)"
        traefik.http.routers.api.entryPoints: web
        traefik.http.routers.api.service: api@swarm
        traefik.http.routers.api.middlewares: api-strip@docker, api-headers
        traefik.http.middlewares.api-strip.stripprefix.prefixes: /api
        traefik.http.middlewares.api-headers.headers.customrequestheaders.X-Script-Name: shop
        traefik.http.middlewares.api-headers.headers.stsseconds: "60"
        traefik.http.services.api.loadBalancer.server.port: "9000"
  tenants:
    image: anynode/whoami
    networks: [traefik-public]
    deploy:
      labels:
        <<: *traefik
        traefik.http.routers.tenants.rule: "HostRegexp(`{tenant:[a-z]+}.tenants.example.com`)"
        traefik.http.services.tenants.loadbalancer.server.port: "8080"
        traefik.http.routers.locked.rule: "Host(`admin.tenants.example.com`) && PathPrefix(`/locked`)"
        traefik.http.routers.locked.priority: "1000"
        traefik.http.routers.locked.middlewares: auth
        traefik.http.middlewares.auth.digestauth.users: "test:traefik:a2688e031edb4be6a3797f3882655c05"
        traefik.http.routers.members.rule: "Host(`members.example.com`)"
        traefik.http.routers.members.middlewares: ask
        traefik.http.middlewares.ask.forwardauth.address: "http://hidden:8080/verify"
        traefik.http.middlewares.ask.forwardauth.trustForwardHeader: "true"
        traefik.http.middlewares.ask.forwardauth.authResponseHeaders: "Content-Type, Remote-User"
        traefik.http.routers.lost.rule: "Host(`lost.example.com`)"
        traefik.http.routers.lost.middlewares: ask-nobody
        traefik.http.middlewares.ask-nobody.forwardauth.address: "http://nobody:8080/"
  admin:
    image: anynode/whoami
    networks: [traefik-public]
    deploy:
      labels:
        <<: *traefik
        traefik.http.routers.admin.rule: "Host(`admin.example.com`)"
        traefik.http.routers.admin.entrypoints: web
        traefik.http.routers.admin.middlewares: auth@docker
        traefik.http.middlewares.auth.basicauth.users: "admin:$$apr1$$H6uskkkW$$IgXLP6ewTrSuBkTrqE8wj/"
        traefik.http.services.admin.loadbalancer.server.port: "8080"
  secure:
    image: anynode/whoami
    networks: [traefik-public]
    deploy:
      labels:
        <<: *traefik
        traefik.http.routers.secure.rule: "Host(`secure.example.com`)"
        traefik.http.routers.secure.entrypoints: other
        traefik.http.routers.secure.tls.certresolver: letsencrypt
        traefik.http.routers.secured.rule: "Host(`secured.example.com`)"
        traefik.http.routers.secured.entrypoints: websecure
        traefik.http.routers.secured.tls: "true"
        traefik.http.services.secure.loadbalancer.server.port: "8080"
  db:
    image: anynode/whoami
    networks: [traefik-public]
    deploy:
      labels:
        <<: *traefik
        traefik.tcp.routers.db.rule: "HostSNI(`db.example.com`)"
        traefik.tcp.routers.db.entrypoints: websecure
        traefik.tcp.routers.db.tls: "true"
        traefik.tcp.services.db.loadbalancer.server.port: "8080"
        traefik.tcp.routers.guarded.rule: "HostSNI(`guarded.example.com`)"
        traefik.tcp.routers.guarded.entrypoints: websecure
        traefik.tcp.routers.guarded.tls: "true"
        traefik.tcp.routers.guarded.middlewares: office
        traefik.tcp.middlewares.office.ipallowlist.sourcerange: 192.0.2.0/24
  elsewhere:
    image: anynode/whoami
    networks: [traefik-public]
    labels:
      traefik.enable: "true"
      traefik.http.routers.elsewhere.rule: "Host(`container.example.com`)"
  hidden:
    image: anynode/whoami
    networks: [traefik-public]
    deploy:
      labels:
        traefik.enable: "false"
        traefik.http.routers.hidden.rule: "Host(`hidden.example.com`)"
        traefik.http.services.hidden.loadbalancer.server.port: "8080"

networks:
  traefik-public:
    driver: overlay
    attachable: true
"#;

fn stage(name: &str, variables: &[(&'static str, &'static str)]) -> Option<Own> {
    let mut own = rig::up(name, Tasks::Processes)?;
    let entry_points =
        "{ web = { listen = ':80' }, other = { listen = ':8081' }, websecure = { listen = ':443', tls = true } }";
    own.env.push(("ANYNODE_ENTRYPOINTS", entry_points));
    let pair = rcgen::generate_simple_self_signed(["secured.example.com".to_owned()]).unwrap();
    let (cert, key) = (own.dir().join("cert.pem"), own.dir().join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let certificates = format!("[{{ cert = '{}', key = '{}' }}]", cert.display(), key.display());
    own.env.push(("ANYNODE_TLS_CERTIFICATES", certificates.leak()));
    own.env.extend(variables);
    own.start();
    own.docker(&["swarm", "init"]);
    std::fs::write(own.dir().join("stack.yml"), STACK).unwrap();
    Some(own)
}

fn deploy(own: &Own) -> String {
    let out = own.docker_out(&["stack", "deploy", "--resolve-image", "never", "-c", "stack.yml", "shop"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    said
}

#[test]
fn a_stack_for_traefik_is_served_as_it_is() {
    let Some(own) = stage("traefik", &[("ANYNODE_LABELS_TRAEFIK", "true")]) else {
        return;
    };
    deploy(&own);
    // An option of mode http, which Traefik's routes make it.
    own.docker(&[
        "service",
        "update",
        "-d",
        "--label-add",
        "anynode.timeout.response=30s",
        "shop_api",
    ]);
    let tasks = |service: &str| -> Vec<String> {
        let ids = own.docker(&["service", "ps", "-q", "--no-trunc", &format!("shop_{service}")]);
        ids.lines().map(|id| id.chars().take(12).collect()).collect()
    };
    let is_of = |service: &str, host: &str, path: &str| {
        let (status, body) = ask(&own, host, path);
        status == "200" && tasks(service).iter().any(|task| body.contains(task))
    };
    for (service, host, path) in [
        ("whoami", "app.example.com", "/"),
        ("whoami", "WWW.example.com", "/api"),
        ("api", "app.example.com", "/api/x"),
        ("api", "app.example.com", "/v2"),
        ("tenants", "blue.tenants.example.com", "/"),
        ("tenants", "admin.tenants.example.com", "/other"),
    ] {
        own.wait_for(&format!("{host}{path}"), LONG, || is_of(service, host, path));
    }
    // What is done on the way.
    let (_, stripped) = ask(&own, "app.example.com", "/api/x");
    for there in [
        r#""path":"/x""#,
        r#""x-forwarded-prefix":"/api""#,
        r#""x-script-name":"shop""#,
    ] {
        assert!(stripped.contains(there), "{there} in {stripped}");
    }
    // What is asked of requests, of which the redirect comes first.
    own.wait_for("a redirect", LONG, || ask(&own, "old.example.com", "/x").0 == "302");
    let too_long = ["-d", "more than ten bytes"];
    assert_eq!(ask_with(&own, &too_long, 80, "limited.example.com", "/").0, "413");
    let statuses = [(); 3].map(|()| ask(&own, "limited.example.com", "/").0);
    assert_eq!(statuses, ["200", "200", "429"]);
    // Where TLS ends, what asks for it and what does not.
    for (service, host) in [
        ("secure", "secured.example.com"),
        ("tenants", "blue.tenants.example.com"),
        ("db", "db.example.com"),
    ] {
        let (url, at) = (format!("https://{host}/"), format!("{host}:443:127.0.0.1"));
        let args = ["-sk", "-m", "10", "--resolve", &at, &url];
        own.wait_for(&url, LONG, || {
            let out = own.inside("curl").args(args).output().unwrap();
            let body = String::from_utf8_lossy(&out.stdout).into_owned();
            tasks(service).iter().any(|task| body.contains(task))
        });
    }
    assert_eq!(ask(&own, "secured.example.com", "/").0, "404");
    let guarded = [
        "-sk",
        "-m",
        "10",
        "--resolve",
        "guarded.example.com:443:127.0.0.1",
        "https://guarded.example.com/",
    ];
    assert!(!own.inside("curl").args(guarded).output().unwrap().status.success());
    // What asks for a password is not served without, and by no other route that would take it.
    assert_eq!(ask(&own, "admin.example.com", "/").0, "401");
    assert_eq!(ask_as(&own, "admin:wrong", "admin.example.com").0, "401");
    let (status, body) = ask_as(&own, "admin:test", "admin.example.com");
    assert!(
        status == "200" && tasks("admin").iter().any(|task| body.contains(task)),
        "{status} {body}"
    );
    // By the name that it has beside it in the stack, and on no port that anybody else reaches.
    own.wait_for("who says that it may", LONG, || {
        ask(&own, "members.example.com", "/").0 == "200"
    });
    let (_, body) = ask_with(&own, &["-H", "Remote-User: evil"], 80, "members.example.com", "/");
    assert!(
        !body.contains("evil") && body.contains(r#""content-type":"application/json"#),
        "{body}"
    );
    assert_eq!(ask(&own, "lost.example.com", "/").0, "503");
    let (status, body) = ask(&own, "admin.tenants.example.com", "/locked/x");
    assert!(status == "503" && body.contains("closed"), "{status} {body}");
    // By our own label too, and whatever is wrong with that is told without what it says.
    let guard = |users: &str| {
        let label = format!("anynode.basic-auth={users}");
        own.docker_out(&["service", "update", "-d", "--label-add", &label, "shop_whoami"])
    };
    assert!(guard("ann:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=").status.success());
    own.wait_for("a password", LONG, || ask(&own, "app.example.com", "/").0 == "401");
    assert_eq!(ask_as(&own, "ann:sha", "app.example.com").0, "200");
    let refused = guard("ann:passw0rd");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("user ann: expected a hash"),
        "{said}"
    );
    for text in [
        &said,
        &own.log(),
        &own.anynode(&["status"]),
        &own.anynode(&["status", "--json"]),
    ] {
        for secret in ["passw0rd", "2PRZAyDh", "H6uskkkW"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    own.docker(&[
        "service",
        "update",
        "-d",
        "--label-rm",
        "anynode.basic-auth",
        "shop_whoami",
    ]);
    own.wait_for("no password", LONG, || ask(&own, "app.example.com", "/").0 == "200");
    for host in ["secure.example.com", "container.example.com", "hidden.example.com"] {
        assert_eq!(ask(&own, host, "/").0, "404", "{host}");
    }
    // Why, is in status, in the log and in service ps.
    let status = own.anynode(&["status"]);
    for expected in [
        "routers.locked.middlewares=auth: middleware auth (digestauth) has no counterpart yet: the route is not served",
        "routers.secure.rule: Host(`secure.example.com`) asks for TLS, and entry point other ends none",
        "traefik.tcp.routers.guarded.middlewares=office: no counterpart: in mode tcp nothing is done on the way: the route is not served",
    ] {
        assert!(status.contains(expected), "{expected}: {status}");
        assert!(own.log().contains(expected), "{expected}");
    }
    let shown = own.docker(&["service", "ps", "--no-trunc", "shop_tenants"]);
    assert!(shown.contains("middleware auth (digestauth)"), "{shown}");
    // Without what it asked for besides, it is served.
    let without = [
        "service",
        "update",
        "-d",
        "--label-rm",
        "traefik.http.routers.admin.middlewares",
        "shop_admin",
    ];
    own.docker(&without);
    own.wait_for("the route without its middleware", LONG, || {
        is_of("admin", "admin.example.com", "/")
    });
    own.docker(&[
        "service",
        "update",
        "-d",
        "--label-add",
        "traefik.enable=false",
        "shop_admin",
    ]);
    own.wait_for("its end", LONG, || ask(&own, "admin.example.com", "/").0 == "404");
    let warned = own.docker_out(&[
        "service",
        "create",
        "-d",
        "--label",
        "traefik.enable=true",
        "--label",
        "traefik.http.routers.x.service=api@internal",
        "anynode/whoami",
    ]);
    let warned = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(warned.contains("api@internal is a part of Traefik itself"), "{warned}");
    own.docker(&["stack", "rm", "shop"]);
    own.wait_for("the stack's end", LONG, || ask(&own, "app.example.com", "/").0 == "404");
}

#[test]
fn labels_of_traefik_are_read_where_that_is_asked_for_alone() {
    let Some(own) = stage("no-traefik", &[]) else { return };
    own.docker(&[
        "service",
        "create",
        "-d",
        "--name",
        "ours",
        "--label",
        "anynode.route=Host(`ours.test`)",
        "--label",
        "anynode.port=8080",
        "anynode/whoami",
    ]);
    deploy(&own);
    let warned = own.docker_out(&[
        "service",
        "create",
        "-d",
        "--label",
        "traefik.enable=true",
        "--label",
        "traefik.http.routers.x.rule=Host(`x`)",
        "anynode/whoami",
    ]);
    let warned = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(warned.contains("labels traefik.* are not read"), "{warned}");
    own.wait_for("the stack", LONG, || {
        let shown = own.docker(&["stack", "services", "shop", "--format", "{{.Replicas}}"]);
        shown.lines().count() == 8 && shown.lines().all(|line| line == "1/1" || line == "2/2")
    });
    own.wait_for("a route of ours", LONG, || ask(&own, "ours.test", "/").0 == "200");
    assert_eq!(ask(&own, "app.example.com", "/").0, "404");
    assert!(
        !own.anynode(&["status"]).contains("traefik."),
        "{}",
        own.anynode(&["status"])
    );
}

//! Services that share an entry point: whose a request is, by host, path and what else rules ask for. Through the program, with its
//! services file, its configuration and raw requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cli::anynode;
use crate::harness::installed::from_pypi;
use crate::harness::{Origin, PATIENCE, dial, free_port, read_head, read_to_end, wait_until};

/// An endpoint that says who it is, and the target that it was asked for.
fn named(name: &'static str) -> Origin {
    Origin::start(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let body = format!("{name} {target}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

/// A node with two entry points.
struct Node {
    child: Child,
    web: SocketAddr,
    other: SocketAddr,
    admin: SocketAddr,
    dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

impl Node {
    fn start(services: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let (web, other, admin) = (local(free_port()), local(free_port()), local(free_port()));
        let config = format!("[entrypoints.web]\nlisten = '{web}'\n[entrypoints.other]\nlisten = '{other}'\n");
        std::fs::write(dir.path().join("anynode.toml"), config).unwrap();
        std::fs::write(dir.path().join("services.yml"), services).unwrap();
        let child = Node::command(dir.path(), "up")
            .args(["--dns", "none", "--admin", &admin.to_string()])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .env("ANYNODE_LOG", "warn")
            .spawn()
            .unwrap();
        let node = Node {
            child,
            web,
            other,
            admin,
            dir,
        };
        wait_until("the entry points", || {
            [web, other, admin].iter().all(|addr| TcpStream::connect(addr).is_ok())
        });
        node
    }

    fn command(dir: &std::path::Path, command: &str) -> Command {
        let mut run = anynode(&[command]);
        run.arg("--config")
            .arg(dir.join("anynode.toml"))
            .arg("--services")
            .arg(dir.join("services.yml"));
        run
    }

    fn services(&self) -> PathBuf {
        self.dir.path().join("services.yml")
    }

    /// Puts a whole file in the place of the one that is there.
    fn declare(&self, services: &str) {
        let new = self.dir.path().join("new.yml");
        std::fs::write(&new, services).unwrap();
        std::fs::rename(new, self.services()).unwrap();
    }

    /// What the program says of a file that it does not take.
    fn check(&self, services: &str) -> String {
        self.declare(services);
        let out: Output = Node::command(self.dir.path(), "check").output().unwrap();
        assert_eq!(out.status.code(), Some(64), "{out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    fn metric(&self, series: &str) -> u64 {
        let text = answer(
            self.admin,
            "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        );
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

fn answer(addr: SocketAddr, request: &str) -> String {
    let mut stream = dial(addr);
    stream.write_all(request.as_bytes()).unwrap();
    String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
}

/// Status and body of one request on a connection of its own.
fn get(addr: SocketAddr, host: &str, target: &str) -> (u16, String) {
    ask(addr, "GET", host, target, "")
}

fn ask(addr: SocketAddr, method: &str, host: &str, target: &str, fields: &str) -> (u16, String) {
    let text = answer(
        addr,
        &format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n"),
    );
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.unwrap_or(0), body.trim().to_owned())
}

/// A services file: name, what else there is of it, endpoint.
fn file(services: &[(&str, &str, &Origin)]) -> String {
    let mut text = "services:\n".to_owned();
    for (name, options, origin) in services {
        text.push_str(&format!("  {name}:\n    endpoints: [\"{}\"]\n", origin.addr));
        for option in options.lines() {
            text.push_str(&format!("    {option}\n"));
        }
    }
    text
}

#[test]
fn requests_go_where_the_first_rule_that_takes_them_leads() {
    let [shop, api, beta, admin, every] = ["shop", "api", "beta", "admin", "every"].map(named);
    let node = Node::start(&file(&[
        ("shop", "route: Host(`shop.test`, `www.shop.test`)", &shop),
        ("api", "route: Host(`shop.test`) && PathPrefix(`/api`)", &api),
        (
            "beta",
            "route: Host(`shop.test`) && Header(`X-Beta`, `1`)\npriority: 1000",
            &beta,
        ),
        (
            "admin",
            "route: Host(`shop.test`)\nentrypoints: [other]\npriority: 1",
            &admin,
        ),
        (
            "every",
            "routes:\n  - { rule: Method(`PUT`), entrypoints: [web] }\n  - { rule: Query(`any`), entrypoints: [web] }",
            &every,
        ),
    ]));
    let is_served = || get(node.web, "shop.test", "/").0 == 200;
    wait_until("the first table", is_served);
    for (addr, method, host, target, fields, expected) in [
        (node.web, "GET", "shop.test", "/", "", "shop /"),
        (node.web, "GET", "SHOP.test.:8080", "/a?b=c", "", "shop /a?b=c"),
        (node.web, "GET", "www.shop.test", "/api", "", "shop /api"),
        (node.web, "GET", "shop.test", "/api/x", "", "api /api/x"),
        // Decoded to be judged, and forwarded as it came.
        (node.web, "GET", "shop.test", "/%61pi//x", "", "api /%61pi//x"),
        (node.web, "GET", "shop.test", "/api", "X-Beta: 1\r\n", "beta /api"),
        (
            node.web,
            "PUT",
            "elsewhere.test",
            "/",
            "Content-Length: 0\r\n",
            "every /",
        ),
        (node.web, "GET", "elsewhere.test", "/?any", "", "every /?any"),
        (node.web, "GET", "ignored.test", "http://shop.test/api", "", "api /api"),
        (node.other, "GET", "www.shop.test", "/", "", "shop /"),
        (node.other, "GET", "shop.test", "/api", "", "api /api"),
    ] {
        let got = ask(addr, method, host, target, fields);
        assert_eq!(got, (200, expected.to_owned()), "{method} {host} {target} {fields}");
    }
    // The same rule at another entry point is another's there; of this one `shop` is without names at both.
    let (status, text) = get(node.web, "nobody.test", "/");
    assert_eq!(
        (status, &*text),
        (404, "404 no route of entry point web takes this request")
    );
    assert_eq!(get(node.other, "elsewhere.test", "/?any").0, 404);
    assert_eq!(ask(node.web, "GET", "shop.test", "/a/%2e%2e/api", "").0, 400);
    wait_until("the counts", || {
        node.metric("anynode_entrypoint_unrouted_requests_total{entrypoint=\"web\",code_class=\"4xx\"}") == 2
    });
    assert_eq!(node.metric("anynode_entrypoint_routes{entrypoint=\"other\"}"), 4);
    assert_eq!(
        node.metric("anynode_requests_total{service=\"beta\",code_class=\"2xx\"}"),
        1
    );
}

#[test]
fn one_connection_asks_for_many_services_and_each_request_is_decided_by_itself() {
    let [a, b] = ["a", "b"].map(named);
    let node = Node::start(&file(&[
        ("a", "route: Host(`a.test`)", &a),
        ("b", "route: Host(`b.test`)", &b),
    ]));
    wait_until("the first table", || get(node.web, "a.test", "/").0 == 200);
    let mut stream = dial(node.web);
    let mut expected = Vec::new();
    let mut text = String::new();
    for n in 0..40 {
        let host = ["a", "b", "c"][n % 3];
        // Some in one segment.
        text.push_str(&format!("GET /{n} HTTP/1.1\r\nHost: {host}.test\r\n\r\n"));
        if n % 4 == 3 {
            stream.write_all(text.as_bytes()).unwrap();
            text.clear();
        }
        expected.push(match host {
            "c" => "404 404 no route of entry point web takes this request".to_owned(),
            host => format!("200 {host} /{n}"),
        });
    }
    for expected in expected {
        let head = read_head(&mut stream).expect("an answer");
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        let mut body = vec![0; length.unwrap().trim().parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        let status = head.split(' ').nth(1).unwrap();
        assert_eq!(format!("{status} {}", String::from_utf8_lossy(&body).trim()), expected);
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_its_key() {
    let [a, b] = ["a", "b"].map(named);
    let node = Node::start(&file(&[("a", "route: Host(`a.test`)", &a)]));
    for (services, expected) in [
        (
            file(&[("a", "route: Host(`a.test`)", &a), ("b", "route: Host(\"A.test\")", &b)]),
            "service b: route: Host(\"A.test\") is already that of service a at entry point ".to_owned(),
        ),
        (
            file(&[("a", "route: Host(`a.test`)\nentrypoints: [wbe]", &a)]),
            "service a: entrypoints: there is no entry point wbe: expected other, web".to_owned(),
        ),
        (
            file(&[(
                "a",
                "routes: [{ rule: Host(`a`) }, { rule: Host(`b`), entrypoints: [] }]",
                &a,
            )]),
            "service a: routes[1].entrypoints: expected at least one".to_owned(),
        ),
        (
            file(&[("a", "routes: [{ rule: Host(`a`) }, { rule: Hots(`b`) }]", &a)]),
            "services.a.routes[1].rule: \"Hots(`b`)\" is not valid".to_owned(),
        ),
        (
            file(&[("a", "route: Host(`a`)\nroutes: [{ rule: Host(\"A\") }]", &a)]),
            "service a: route: Host(\"A\") is already that of service a at entry point ".to_owned(),
        ),
        (
            file(&[("a", &format!("publish: [\"{}:80\"]", node.web.port()), &a)]),
            format!(
                "service a: publish: port *:{} is that of entry point web",
                node.web.port()
            ),
        ),
        (
            file(&[("a", "route: Host(`a.test` || Path(`/`)", &a)]),
            "line 4: services.a.route: \"Host(`a.test` || Path(`/`)\" is not valid: expected a comma".to_owned(),
        ),
    ] {
        let said = node.check(&services);
        assert!(said.contains(&expected), "{said}");
    }
    std::fs::write(node.dir.path().join("anynode.toml"), "").unwrap();
    let said = node.check(&file(&[("a", "route: Host(`a.test`)", &a)]));
    assert!(
        said.contains("service a: route: this node has no entry point"),
        "{said}"
    );
    // The node has gone on with the last good file meanwhile.
    assert_eq!(get(node.web, "a.test", "/"), (200, "a /".to_owned()));
}

#[test]
fn no_request_fails_while_routes_change() {
    let [a, b, c] = ["a", "b", "c"].map(named);
    let files = [
        file(&[("a", "route: Host(`a.test`)", &a), ("b", "route: Host(`b.test`)", &b)]),
        file(&[
            ("a", "route: Host(`a.test`) && PathPrefix(`/`)", &a),
            ("b", "route: HostRegexp(`^b[.]test$`)", &b),
            ("c", "route: Host(`c.test`)", &c),
        ]),
        file(&[
            ("b", "route: Host(`b.test`, `d.test`)", &b),
            ("a", "route: Host(`a.test`) || Host(`e.test`)", &a),
        ]),
    ];
    let node = Node::start(&files[0]);
    wait_until("the first table", || get(node.web, "a.test", "/").0 == 200);
    let is_over = AtomicBool::new(false);
    let counted = std::thread::scope(|scope| {
        let clients: Vec<_> = ["a", "b"]
            .map(|name| {
                let (is_over, web) = (&is_over, node.web);
                scope.spawn(move || {
                    let mut n = 0;
                    let host = format!("{name}.test");
                    while !is_over.load(Ordering::Relaxed) {
                        assert_eq!(get(web, &host, "/"), (200, format!("{name} /")));
                        n += 1;
                    }
                    n
                })
            })
            .into_iter()
            .collect();
        let before = node.metric("anynode_config_revision");
        let began = Instant::now();
        for round in 1..=30 {
            node.declare(&files[round % 3]);
            std::thread::sleep(Duration::from_millis(30));
        }
        // Some are taken together; the last one is there.
        wait_until("the last file", || {
            get(node.web, "c.test", "/").0 == 404 && get(node.web, "b.test", "/").0 == 200
        });
        assert!(began.elapsed() < 10 * PATIENCE);
        let n_tables = node.metric("anynode_config_revision") - before;
        is_over.store(true, Ordering::Relaxed);
        let n: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        (n_tables, n)
    });
    println!("{} tables, {} requests", counted.0, counted.1);
    assert!(counted.0 >= 10 && counted.1 >= 10, "{counted:?}");
}

/// Spellings of one path that have led past prefixes elsewhere.
const SPELLINGS: &[&str] = &[
    "/admin",
    "/admin/",
    "/admin/x",
    "//admin",
    "///admin//x",
    "/./admin",
    "/x/../admin",
    "/x/..//admin",
    "/%61dmin",
    "/adm%69n/x",
    "/%2e/admin",
    "/x/%2e%2e/admin",
    "/x/.%2e/admin",
    "/x/%2E./admin",
    "/x%2f..%2fadmin",
    "/%2fadmin",
    "/x/..%2fadmin",
    "/x\\..\\admin",
    "/x/..%5cadmin",
    "/..;/admin",
    "/x/..;a=b/admin",
    "/x/%2e%2e;/admin",
    "/admin%00",
    "/%00/../admin",
    "/admin?",
    "/?/../admin",
    "/%2561dmin",
    "/%252e%252e/admin",
    "/x/%252e%252e/admin",
    "/%zzadmin",
    "/admin%2",
    "/ADMIN",
    "/.admin",
    "/admin;x",
    "/%61%64%6d%69%6e",
    "/;x/admin",
    "/%3bx/admin",
    "//x/admin",
    "/admin/%0ax",
    "/x/;/../admin",
    "http://a.test/admin",
    "http://a.test//admin",
    "http://a.test/x/../admin",
];

/// As README has it: headers, and a preflight that needs no password.
#[test]
fn a_page_of_another_origin_is_told_that_it_may_ask() {
    let app = named("app");
    let cors = "response_headers: { Access-Control-Allow-Origin: \"https://a.example\", Access-Control-Allow-Headers: Authorization, Vary: Origin }";
    let (endpoints, hash) = (
        format!("endpoints: [\"{}\"]", app.addr),
        "$apr1$H6uskkkW$IgXLP6ewTrSuBkTrqE8wj/",
    );
    let node = Node::start(&format!(
        "services:\n  app:\n    route: Host(`a.test`)\n    {endpoints}\n    {cors}\n    basic_auth: {{ users: [\"ann:{hash}\"] }}\n  \
         preflight:\n    route: Host(`a.test`) && Method(`OPTIONS`)\n    {endpoints}\n    {cors}\n"
    ));
    wait_until("the first table", || get(node.web, "a.test", "/").0 == 401);
    let asked = |method: &str, fields: &str| {
        let request = format!(
            "{method} /x HTTP/1.1\r\nHost: a.test\r\nOrigin: https://a.example\r\n{fields}Connection: close\r\n\r\n"
        );
        answer(node.web, &request)
    };
    // ann:test
    for (method, fields) in [
        (
            "OPTIONS",
            "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: authorization\r\n",
        ),
        ("GET", "Authorization: Basic YW5uOnRlc3Q=\r\n"),
    ] {
        let text = asked(method, fields).to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 200"), "{method}: {text}");
        for there in [
            "\r\naccess-control-allow-origin: https://a.example\r\n",
            "\r\naccess-control-allow-headers: authorization\r\n",
            "\r\nvary: origin\r\n",
        ] {
            assert!(text.contains(there), "{method}: {there} in {text}");
        }
    }
    assert!(asked("GET", "").starts_with("HTTP/1.1 401"));
}

/// A program, ended when dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// nginx has a page that it shows at /admin alone.
#[test]
fn no_spelling_of_a_path_slips_past_a_prefix_to_nginx() {
    if !Command::new("which")
        .arg("nginx")
        .output()
        .is_ok_and(|out| out.status.success())
    {
        println!("skipped: this needs nginx");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let addr = local(free_port());
    let d = dir.path().display();
    let config = format!(
        "worker_processes 1; daemon off; pid {d}/pid; error_log {d}/error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f;\n\
         uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;\n\
         server {{ listen {addr}; location / {{ return 200 public; }} location /admin {{ return 200 secret; }} }} }}\n"
    );
    std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
    let nginx = Command::new("nginx")
        .arg("-c")
        .arg(dir.path().join("nginx.conf"))
        .stderr(Stdio::null())
        .spawn();
    let _nginx = Program(nginx.unwrap());
    no_spelling_slips_past(addr, 15);
}

/// An application of uvicorn takes its path as it was decoded, and puts it in order as many do.
#[test]
fn no_spelling_of_a_path_slips_past_a_prefix_to_uvicorn() {
    const APPLICATION: &str = "
import posixpath, sys, uvicorn

async def app(scope, receive, send):
    if scope['type'] != 'http':
        return
    path = posixpath.normpath('/' + scope['path'].lstrip('/'))
    body = b'secret' if path.startswith('/admin') else b'public'
    headers = [(b'content-length', b'6')]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})

uvicorn.run(app, host='127.0.0.1', port=int(sys.argv[1]), log_level='critical')
";
    let Some(libraries) = from_pypi("uvicorn", &["uvicorn"]) else {
        return;
    };
    let addr = local(free_port());
    let uvicorn = Command::new("python3")
        .args(["-c", APPLICATION, &addr.port().to_string()])
        .env("PYTHONPATH", libraries)
        .spawn();
    let _uvicorn = Program(uvicorn.unwrap());
    no_spelling_slips_past(addr, 15);
}

/// That the endpoint shows what it has at /admin for at least `n_least` spellings is what makes this a test. The route to it has everything but
/// /admin.
fn no_spelling_slips_past(addr: SocketAddr, n_least: usize) {
    wait_until("the endpoint", || TcpStream::connect(addr).is_ok());
    let guard = named("guard");
    let services = format!(
        "services:\n  app:\n    route: Host(`a.test`)\n    endpoints: [\"{addr}\"]\n  guard:\n    route: Host(`a.test`) && PathPrefix(`/admin`)\n    endpoints: [\"{}\"]\n",
        guard.addr
    );
    let node = Node::start(&services);
    wait_until("the first table", || {
        get(node.web, "a.test", "/") == (200, "public".to_owned())
    });
    let mut n_secret = 0;
    for spelling in SPELLINGS {
        n_secret += usize::from(get(addr, "a.test", spelling).1 == "secret");
        let (status, body) = get(node.web, "a.test", spelling);
        assert_ne!(body, "secret", "{spelling}");
        let is_well = matches!(status, 200 | 400 | 404) || (status == 0 && spelling.contains('\\'));
        assert!(is_well, "{spelling}: {status} {body}");
    }
    println!("shown for {n_secret} of {} spellings", SPELLINGS.len());
    assert!(n_secret >= n_least, "shown for {n_secret} spellings");
}

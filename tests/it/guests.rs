//! Who is shown what by the admin server: on the machine, from elsewhere, out of a browser that another site's page is open in.

use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::cli::anynode;
use crate::harness::wait_until;
use crate::netns::Space;
use crate::page::browser::Browser;

/// An address of the machine that is not a loopback address.
const HERE: &str = "10.9.7.1:9377";
const NEAR: &str = "127.0.0.1:9377";
const TOKEN: &str = "9f86d081884c7d659a2feaa0c55ad015";

/// A node in a namespace of its own, whose admin server listens at all addresses.
struct Stage {
    space: Space,
    dir: tempfile::TempDir,
    node: Child,
}

impl Stage {
    /// `None`, with a word, where there are no namespaces.
    fn new(settings: &str) -> Option<Stage> {
        let space = Space::new()?;
        space.sh("sh -c 'ip link set lo up && ip addr add 10.9.7.1/32 dev lo'");
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("token"), TOKEN).unwrap();
        std::fs::write(
            at("services.yml"),
            "services:\n  web:\n    publish: [\"8080:80\"]\n    endpoints: [\"127.0.0.1:9\"]\n",
        )
        .unwrap();
        let settings = settings.replace("DIR", &dir.path().display().to_string());
        let config = format!(
            "services = '{}'\ndata_dir = '{}'\n[admin]\nlisten = '0.0.0.0:9377'\n{settings}\n[dns]\nlisten = 'none'\n",
            at("services.yml").display(),
            at("data").display()
        );
        std::fs::write(at("anynode.toml"), config).unwrap();
        let node = space
            .command(env!("CARGO_BIN_EXE_anynode"))
            .args(["up", "--config"])
            .arg(at("anynode.toml"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let stage = Stage { space, dir, node };
        wait_until("the node to serve", || stage.get(NEAR, "/readyz", &[]).0 == 200);
        Some(stage)
    }

    /// The status, the head and the body of an answer.
    fn ask(&self, method: &str, addr: &str, path: &str, more: &[&str]) -> (u16, String, String) {
        let mut curl = self.space.command("curl");
        curl.args(["-s", "-i", "-m", "10", "-X", method]);
        curl.args(more).arg(format!("http://{addr}{path}"));
        let said = String::from_utf8(curl.output().unwrap().stdout).unwrap();
        let Some((head, body)) = said.split_once("\r\n\r\n") else {
            return (0, String::new(), said);
        };
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), head.to_ascii_lowercase(), body.to_owned())
    }

    fn get(&self, addr: &str, path: &str, fields: &[&str]) -> (u16, String) {
        let more: Vec<&str> = fields.iter().flat_map(|field| ["-H", field]).collect();
        let (status, _, body) = self.ask("GET", addr, path, &more);
        (status, body)
    }

    /// What the program says, with its exit code.
    fn anynode(&self, args: &[&str]) -> (i32, String) {
        let out = self
            .space
            .command(env!("CARGO_BIN_EXE_anynode"))
            .args(args)
            .output()
            .unwrap();
        let said = [out.stdout, out.stderr].concat();
        (out.status.code().unwrap_or(-1), String::from_utf8(said).unwrap())
    }

    fn config(&self) -> String {
        self.path("anynode.toml")
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(Path::new(&self.path("log"))).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

const HEALTH: [&str; 4] = ["/livez", "/readyz", "/healthz", "/metrics"];
const STATE: [&str; 3] = ["/v1/status", "/v1/table", "/v1/verify"];

#[test]
fn without_a_token_whoever_is_elsewhere_sees_health_and_metrics_alone() {
    let Some(stage) = Stage::new("") else { return };
    for path in HEALTH {
        assert_eq!(stage.get(HERE, path, &[]).0, 200, "{path}");
        assert_eq!(stage.get(HERE, path, &["Host: evil.example"]).0, 200, "{path}");
    }
    for path in STATE.into_iter().chain(["/", "/nothing"]) {
        let (status, said) = stage.get(HERE, path, &[]);
        assert_eq!(status, 403, "{path}: {said}");
        assert!(said.contains("admin.token_file"), "{path}: {said}");
        let claims = ["Host: localhost", "Host: 127.0.0.1"];
        assert!(
            claims.iter().all(|host| stage.get(HERE, path, &[host]).0 == 403),
            "{path}"
        );
        assert_ne!(stage.get(NEAR, path, &[]).0, 403, "{path}");
    }
    let (status, _, said) = stage.ask("POST", HERE, "/login", &["-d", TOKEN]);
    assert!(status == 403 && said.contains("admin.token_file"), "{said}");
    // A proxy on the machine asks for somebody else.
    for field in [
        "X-Forwarded-For: 10.1.2.3",
        "Forwarded: for=10.1.2.3",
        "Via: 1.1 proxy",
        "Host: 10.9.7.1",
    ] {
        assert_eq!(stage.get(NEAR, "/v1/status", &[field]).0, 403, "{field}");
    }
    let (code, said) = stage.anynode(&["status", "--admin", HERE]);
    assert!(code == 69 && said.contains("admin.token_file is not set"), "{said}");
    let (code, said) = stage.anynode(&["status", "--admin", "localhost:9377"]);
    assert!(code == 0 && said.contains("serving"), "by a name: {said}");
    let (code, said) = stage.anynode(&["health", "--admin", HERE]);
    assert_eq!(code, 0, "{said}");
    assert!(stage.log().contains("health and metrics alone"), "{}", stage.log());
}

#[test]
fn whoever_knows_the_token_sees_all_and_who_does_not_is_told_what_is_missing() {
    let Some(stage) = Stage::new("token_file = 'DIR/token'\nhosts = ['Mesh.Example']") else {
        return;
    };
    for path in STATE {
        let (status, head, said) = stage.ask("GET", HERE, path, &[]);
        assert_eq!(status, 401, "{path}: {said}");
        assert!(head.contains("www-authenticate: bearer"), "{head}");
        for wrong in [
            "Authorization: Bearer 9f86d081884c7d659a2feaa0c55ad016",
            "Authorization: Bearer ",
            "Authorization: Basic OWY4NmQwODE4ODRjN2Q2NTlhMmZlYWEwYzU1YWQwMTU=",
            "Authorization: Bearer 99999999999.0000",
        ] {
            assert_eq!(stage.get(HERE, path, &[wrong]).0, 401, "{path}, {wrong}");
        }
        let right = format!("Authorization: bearer {TOKEN}");
        assert_eq!(stage.get(HERE, path, &[&right]).0, 200, "{path}");
        assert_eq!(stage.get(HERE, path, &[&right, "Host: mesh.example"]).0, 200, "{path}");
        assert_eq!(stage.get(NEAR, path, &[]).0, 200, "{path}");
    }
    assert_eq!(stage.get(HERE, "/", &[]).0, 200, "the form is for everybody");

    let (status, _, said) = stage.ask("POST", HERE, "/login", &["-d", "wrong"]);
    assert_eq!(status, 401, "{said}");
    let (status, head, said) = stage.ask("POST", HERE, "/login", &["--data-binary", &format!("{TOKEN}\n")]);
    assert_eq!(status, 200, "{said}");
    assert!(
        !head.contains("set-cookie"),
        "it would go to every port of the host: {head}"
    );
    let begun: Value = serde_json::from_str(&said).unwrap();
    let session = format!("Authorization: Bearer {}", begun["session"].as_str().unwrap());
    assert_eq!(stage.get(HERE, "/v1/status", &[&session]).0, 200);
    let (status, head, _) = stage.ask("GET", HERE, "/login", &[]);
    assert!(status == 405 && head.contains("allow: post"), "{head}");
    let large = "x".repeat(5000);
    assert_eq!(stage.ask("POST", HERE, "/login", &["-d", &large]).0, 400);

    let asked = ["--admin", HERE, "--config", &stage.config()];
    let with = |command: &'static str| stage.anynode(&[&[command], &asked[..]].concat());
    let (code, said) = with("status");
    assert!(code == 0 && said.contains("serving"), "{said}");
    let (_, said) = with("verify");
    assert!(said.contains("REVISION"), "{said}");

    // Another token counts at once, and ends what the old one began.
    std::fs::write(stage.path("token"), "0f86d081884c7d659a2feaa0c55ad015").unwrap();
    let old = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(stage.get(HERE, "/v1/status", &[&old]).0, 401);
    assert_eq!(stage.get(HERE, "/v1/status", &[&session]).0, 401);
    // None at all lets nobody in, and is said on the machine.
    std::fs::write(stage.path("token"), "short").unwrap();
    let (status, said) = stage.get(HERE, "/v1/status", &[&old]);
    assert!(status == 403 && said.contains("admin.token_file"), "{said}");
    assert!(
        !said.contains(&stage.path("token")),
        "strangers need not know where it is: {said}"
    );
    let (_, said) = stage.get(NEAR, "/readyz", &[]);
    assert!(
        said.contains("admin.token_file: ") && said.contains("has 5 characters"),
        "{said}"
    );
    std::fs::write(stage.path("token"), TOKEN).unwrap();
    assert_eq!(stage.get(HERE, "/v1/status", &[&old]).0, 200);
    assert!(!stage.get(NEAR, "/readyz", &[]).1.contains("token_file"));
}

#[test]
fn a_browser_that_is_led_here_by_strangers_is_shown_nothing() {
    let Some(stage) = Stage::new("") else { return };
    // A name of theirs that leads to this machine.
    for host in ["evil.example", "evil.example:9377", "localhost.evil.example"] {
        let host = format!("Host: {host}");
        for path in STATE.into_iter().chain(["/"]) {
            let (status, said) = stage.get(NEAR, path, &[&host]);
            assert!(status == 421 && said.contains("admin.hosts"), "{path}: {said}");
        }
    }
    for (fields, is_shown) in [
        (&["Sec-Fetch-Site: cross-site"][..], false),
        (&["Sec-Fetch-Site: same-site"], false),
        (&["Sec-Fetch-Site: same-origin"], true),
        (&["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"], true),
        (&["Sec-Fetch-Site: same-origin", "Sec-Fetch-Dest: iframe"], false),
        (&["Origin: http://127.0.0.1:8080"], false),
        (&["Origin: http://127.0.0.1:9377"], true),
        (&["Origin: null"], false),
    ] {
        for path in STATE {
            let (status, said) = stage.get(NEAR, path, fields);
            assert_eq!(status, if is_shown { 200 } else { 403 }, "{path}, {fields:?}: {said}");
        }
    }
    let link = [
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-Dest: document",
    ];
    assert_eq!(stage.get(NEAR, "/", &link).0, 200, "a link leads to the page");
    for path in ["/", "/v1/status", "/livez", "/nothing"] {
        let (_, head, _) = stage.ask("GET", NEAR, path, &[]);
        for field in [
            "content-security-policy: default-src 'none'",
            "frame-ancestors 'none'",
            "x-frame-options: deny",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
            "cache-control: ",
        ] {
            assert!(head.contains(field), "{path}: {field} in {head}");
        }
        assert!(!head.contains("access-control"), "{head}");
    }
    let (status, _, _) = stage.ask("OPTIONS", NEAR, "/v1/status", &["-H", "Origin: http://evil.example"]);
    assert_eq!(status, 403);
}

#[test]
fn settings_of_the_admin_server_are_judged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("anynode.toml");
    let check = |settings: &str| {
        std::fs::write(&path, format!("[admin]\n{settings}\n")).unwrap();
        let out = anynode(&["check", "--config"]).arg(&path).output().unwrap();
        String::from_utf8(out.stderr).unwrap()
    };
    let weak = dir.path().join("weak");
    std::fs::write(&weak, "secret").unwrap();
    let said = check(&format!("token_file = '{}'", weak.display()));
    assert!(
        said.contains("admin.token_file = ") && said.contains("has 6 characters"),
        "{said}"
    );
    for hosts in ["'mesh.example'", "['']", "['http://mesh.example']", "[1]"] {
        let said = check(&format!("hosts = {hosts}"));
        assert!(
            said.contains("admin.hosts = ") && said.contains("expected names such as"),
            "{hosts}: {said}"
        );
    }
    assert_eq!(check("hosts = ['mesh.example', 'a-b_c.d']"), "");
}

#[test]
fn a_person_signs_in_with_the_token_and_out_again() {
    let Some(stage) = Stage::new("token_file = 'DIR/token'") else {
        return;
    };
    let Some(browser) = Browser::within(|program| stage.space.command(program)) else {
        return;
    };
    browser.open(&format!("http://{HERE}/"));
    browser.until_text("Sign in");
    assert!(!browser.text().contains("Services"), "{}", browser.text());
    browser.type_into("#token", "wrong");
    browser.press("Enter");
    browser.until_text("this is not the token of admin.token_file");
    browser.run("document.querySelector('#token').value = ''");
    browser.type_into("#token", TOKEN);
    browser.press("Enter");
    browser.until_text("1 services, 1 tasks");
    // It is kept, until one signs out or the token is another.
    browser.open(&format!("http://{HERE}/"));
    browser.until_text("1 services, 1 tasks");
    browser.run("document.querySelector('#leave').click()");
    browser.until_text("The token in admin.token_file");
    let errors = browser.errors();
    assert!(errors.iter().all(|error| error.contains("401")), "{errors:?}");
    // Where there is no token to be known, it says so in words.
    browser.open(&format!("http://{NEAR}/"));
    browser.until_text("1 services, 1 tasks");
}

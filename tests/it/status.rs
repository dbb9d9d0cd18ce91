//! `anynode status`, as people read it: in 80 columns, by name, with why and since when of what is out.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::admin::request;
use crate::cli::anynode;
use crate::harness::{Origin, ask, dial, free_port, wait_until};

/// A node with the services `a-service-with-a-rather-long-name`, of which one endpoint of three is gone, and `web`, of twelve.
struct Home {
    _dir: tempfile::TempDir,
    admin: String,
    port: u16,
    _origins: Vec<Origin>,
    gone: SocketAddr,
    node: Child,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let admin: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let port = free_port();
        let origins: Vec<Origin> = (0..2).map(|_| Origin::named("a")).collect();
        let gone: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let names = |n: u16| {
            (1..=n)
                .map(|i| format!("\"127.9.9.{i}:80\""))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let services = format!(
            "services:\n  web:\n    endpoints: [{}]\n  a-service-with-a-rather-long-name:\n    publish: [\"127.0.0.1:{port}:80\", \"127.0.0.1:{}:81\", \"127.0.0.1:{}:82\"]\n    endpoints: [\"{}\", \"{}\", \"{gone}\"]\n",
            names(12),
            free_port(),
            free_port(),
            origins[0].addr,
            origins[1].addr,
        );
        std::fs::write(dir.path().join("services.yml"), services).unwrap();
        let node = anynode(&["up", "--dns", "none", "--admin", &admin.to_string()])
            .arg("--services")
            .arg(dir.path().join("services.yml"))
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the node to serve", || {
            std::net::TcpStream::connect(admin).is_ok() && request(admin, "GET", "/readyz").0 == 200
        });
        Home {
            _dir: dir,
            admin: admin.to_string(),
            port,
            _origins: origins,
            gone,
            node,
        }
    }

    /// Exit code, standard output and error output.
    fn status(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let out = anynode(&["status", "--admin", &self.admin])
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop((self.node.kill(), self.node.wait()));
    }
}

#[test]
fn services_are_told_in_80_columns_by_name_and_why_what_is_out() {
    let home = Home::new();
    let door: SocketAddr = ([127, 0, 0, 1], home.port).into();
    wait_until("the endpoint that is gone to rest", || {
        (0..6).for_each(|_| drop(ask(door)));
        home.status(&[]).1.contains("resting")
    });
    let _open = dial(door);
    let mut said = String::new();
    wait_until("figures of it", || {
        said = home.status(&[]).1;
        said.contains("connections/s")
    });
    for line in said.lines().filter(|line| !line.starts_with("! ")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let at = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text:?} in\n{said}"));
    assert!(at("service a-service-with-a-rather-long-name   tcp") < at("service web   tcp"));
    assert!(at("  127.9.9.2:80 ") < at("  127.9.9.10:80"), "{said}");
    assert!(at("2 ready, 1 ") < at("service web"), "{said}");
    assert!(at("0 ready, 12 untried") > at("service web"), "{said}");
    // Below its line: since when, and why.
    let mut lines = said.lines().skip_while(|line| !line.contains(&home.gone.to_string()));
    let (line, below) = (lines.next().unwrap(), lines.next().unwrap());
    // Once its rest is over it is tried again.
    assert!(line.contains("resting") || line.contains("failing"), "{line}");
    assert!(
        below.starts_with("    since ") && below.contains("connection refused"),
        "{below}"
    );

    // One alone, by any case of its letters; and one that there is not.
    let (code, one, _) = home.status(&["WEB"]);
    assert!(
        code == Some(0) && one.starts_with("service web   tcp") && !one.contains("rather-long"),
        "{one}"
    );
    let (code, one, error) = home.status(&["weg"]);
    assert_eq!((code, &*one), (Some(64), ""), "{error}");
    assert_eq!(error, "error: weg: expected a service of this node; is web meant?\n");
    let (code, json, _) = home.status(&["--json", "web"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json[0]["name"], json.as_array().unwrap().len()),
        (Some(0), &"web".into(), 1)
    );
    let (_, more, _) = home.status(&["--verbose", "web"]);
    assert!(more.contains("since ") && more.contains("at 127.9.9.1:80"), "{more}");
}

/// A command whose standard output is a terminal.
fn in_terminal(command: &str, vars: &[(&str, &str)]) -> Option<String> {
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: there is no script here");
        return None;
    }
    let mut script = Command::new("script");
    script
        .args(["-qec", command, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR");
    let out = script.envs(vars.iter().copied()).stdin(Stdio::null()).output().unwrap();
    Some(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn colours_are_for_terminals_whose_owners_have_not_said_no() {
    let home = Home::new();
    let command = format!("{} status --admin {}", env!("CARGO_BIN_EXE_anynode"), home.admin);
    let Some(said) = in_terminal(&command, &[]) else { return };
    assert!(said.contains("\x1b[1mservice web"), "{said:?}");
    assert!(said.contains("\x1b[33muntried\x1b[0m"), "{said:?}");
    for no in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let said = in_terminal(&command, &[no]).unwrap();
        assert!(
            said.contains("service web") && !said.contains('\x1b'),
            "{no:?}: {said:?}"
        );
    }
    assert!(!home.status(&[]).1.contains('\x1b'));
}

#[test]
fn who_watches_sees_what_changes_and_a_node_that_is_away() {
    let mut home = Home::new();
    let watch = |admin: &str| {
        anynode(&["status", "--watch", "--admin", admin, "web"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut watcher = watch(&home.admin);
    let mut lines = BufReader::new(watcher.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    for _ in 0..2 {
        assert!(lines.any(|line| line.starts_with("service web")));
    }
    drop((home.node.kill(), home.node.wait()));
    assert!(lines.any(|line| line.starts_with("! no node answers at ")));
    drop(lines);
    // It ends by itself once nobody reads.
    assert_eq!(watcher.wait().unwrap().code(), Some(0));
    // Who names a service that there is not is told at once.
    let home = Home::new();
    let mut mistyped = anynode(&["status", "--watch", "--admin", &home.admin, "webb"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut error = String::new();
    mistyped.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(mistyped.wait().unwrap().code(), Some(64));
    assert!(error.contains("is web meant?"), "{error}");
}

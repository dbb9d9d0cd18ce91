//! Services' own addresses on the node: they are answered, and are in nobody's way. The real program, and a real nginx where it
//! is installed; ANYNODE_N_SERVICES=10000 is the long form of the last. Where the privileges are missing, VIPs are off, and that is what is looked at.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anynode::sys::sk_lookup::missing_capabilities;
use rustix::process::Signal;
use serde_json::Value;

use crate::admin::request;
use crate::cli::{Home, Running, curl, dig, web};
use crate::harness::{free_port, wait_until};

const NOBODY: u32 = 65534;

fn may_have_vips() -> bool {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        println!("skipped: VIPs are off, missing: {missing:?}");
    }
    missing.is_empty()
}

fn status(home: &Home) -> Value {
    let (_, _, body) = request(home.admin, "GET", "/v1/status");
    serde_json::from_str(&body).unwrap()
}

fn vip_of(home: &Home, service: &str, port: u16) -> SocketAddr {
    let ip = dig(home.dns, service).unwrap();
    assert_eq!(ip.octets()[..2], [127, 77], "{service} is at {ip}");
    (ip, port).into()
}

/// An nginx that listens on all addresses, as Debian's does.
fn nginx(dir: &Path, port: u16) -> Running {
    let dir = dir.display();
    let config = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;\n\
         uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
         server {{ listen {port}; location / {{ return 200 nginx; }} }} }}\n"
    );
    let path = format!("{dir}/nginx.conf");
    std::fs::write(&path, config).unwrap();
    Running::start(Command::new("nginx").args(["-e", "stderr", "-c", &path]))
}

fn has_nginx() -> bool {
    let found = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: there is no nginx here");
    }
    found
}

/// README's first example, with an endpoint that is stopped and started again.
fn endpoint_starts_again(home: &Home, up: &mut Command) -> Running {
    let endpoint = free_port();
    home.serve(&format!(
        "services:\n  my-web:\n    publish: [\"127.0.0.1:{}:80\"]\n    expose: [{endpoint}]\n    endpoints: [\"127.0.0.1:{endpoint}\"]\n",
        home.port
    ));
    let mut first = nginx(home.dir.path(), endpoint);
    wait_until("nginx to answer", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, endpoint)).is_ok()
    });
    let node = home.start(up);
    assert_eq!(curl(home.door()).as_deref(), Some("nginx"));
    first.signal(Signal::TERM);
    first.ended();
    // It gives up after five tries in a row.
    let mut second = nginx(home.dir.path(), endpoint);
    wait_until("nginx to answer again", || {
        assert_eq!(second.child.try_wait().unwrap(), None, "{}", second.stderr());
        curl(home.door()).as_deref() == Some("nginx")
    });
    // Also when it comes after us.
    drop(second);
    drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, endpoint)).unwrap());
    let _third = nginx(home.dir.path(), endpoint);
    wait_until("nginx to answer", || curl(home.door()).as_deref() == Some("nginx"));
    match status(home)["vips"].as_str().unwrap() {
        "answered" => {
            let vip = vip_of(home, "my-web", endpoint);
            assert_eq!(curl(vip).as_deref(), Some("nginx"));
            let mine = status(home)["services"][0]["connections_total"].as_u64();
            assert_eq!(curl(vip).as_deref(), Some("nginx"));
            let one_more = status(home)["services"][0]["connections_total"].as_u64();
            assert_eq!(one_more, mine.map(|n| n + 1), "nginx itself took the connection");
        }
        why => {
            assert!(why.starts_with("missing: "), "{why}");
            assert_eq!(dig(home.dns, "my-web"), Some(Ipv4Addr::LOCALHOST), "the endpoint's");
        }
    }
    node
}

#[test]
fn an_endpoint_of_all_addresses_starts_again_while_we_run() {
    if has_nginx() {
        let home = Home::new();
        endpoint_starts_again(&home, &mut home.up());
    }
}

#[test]
fn an_endpoint_starts_again_beside_a_user_without_privileges_and_it_is_said_once_that_vips_are_off() {
    if !has_nginx() || !rustix::process::geteuid().is_root() {
        println!("skipped: needs root, to be another user, and nginx");
        return;
    }
    let home = Home::new();
    std::fs::set_permissions(home.dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut up = home.up();
    up.uid(NOBODY).gid(NOBODY);
    let is_runnable = Command::new(env!("CARGO_BIN_EXE_anynode"))
        .arg("--version")
        .stdout(Stdio::null())
        .uid(NOBODY)
        .gid(NOBODY)
        .status();
    if is_runnable.is_err() {
        println!("skipped: another user cannot run the program where it is");
        return;
    }
    let node = endpoint_starts_again(&home, &mut up);
    assert_eq!(status(&home)["vips"], "missing: CAP_NET_ADMIN, CAP_BPF");
    assert_eq!(
        node.stderr().matches("VIPs are not answered").count(),
        1,
        "{}",
        node.stderr()
    );
    assert_eq!(home.readyz(), (200, "serving\n".to_owned()));
    let shown = crate::cli::anynode(&["status", "--admin", &home.admin.to_string()])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("! VIPs are not answered on this node: missing: CAP_NET_ADMIN, CAP_BPF\n"),
        "{shown}"
    );
}

#[test]
fn vips_are_answered_in_either_mode_for_as_long_as_they_are_there_and_bind_nothing() {
    if !may_have_vips() {
        return;
    }
    let home = Home::new();
    let (one, two) = (web("one"), web("two"));
    let [http, tcp, other] = [free_port(), free_port(), free_port()];
    let text = |more: &str| {
        format!(
            "services:\n  h: {{ mode: http, expose: [{http}, {other}], endpoints: [\"{}\"] }}\n  t: {{ expose: [{tcp}{more}], endpoints: [\"{}\"] }}\n",
            one.addr, two.addr
        )
    };
    home.serve(&text(""));
    let _node = home.start(&mut home.up());
    let at = |service: &str, port: u16| vip_of(&home, service, port);
    assert_eq!(curl(at("h", http)).as_deref(), Some("one"));
    assert_eq!(curl(at("h", other)).as_deref(), Some("one"));
    assert_eq!(curl(at("t", tcp)).as_deref(), Some("two"));
    // Everybody else may have the ports, at all addresses; and what is no port of the VIP is theirs.
    let theirs = TcpListener::bind((Ipv4Addr::UNSPECIFIED, tcp)).unwrap();
    assert_eq!(curl(at("t", tcp)).as_deref(), Some("two"));
    let to_them = TcpStream::connect(at("h", tcp)).unwrap();
    assert_eq!(theirs.accept().unwrap().1, to_them.local_addr().unwrap());
    // Where one listens at the VIP itself it was there first.
    let port = free_port();
    let theirs = TcpListener::bind(at("t", port)).unwrap();
    home.serve(&text(&format!(", {port}")));
    let listen = format!("{}", at("t", port));
    let state = || {
        let ports = status(&home)["ports"].as_array().unwrap().clone();
        ports.into_iter().find(|p| p["listen"] == listen.as_str())
    };
    wait_until("the port to be said to be in use", || {
        state().is_some_and(|port| port["error"] == "in use by another program")
    });
    drop(theirs);
    wait_until("the port to be answered after all", || {
        curl(at("t", port)).as_deref() == Some("two")
    });
    home.serve(&text(""));
    wait_until("the port to be gone", || TcpStream::connect(at("t", port)).is_err());
    // Who finds the listener itself is nobody's.
    let shown = status(&home);
    assert_eq!(shown["vips"], "answered", "{shown}");
}

#[test]
fn without_answering_vips_names_stand_for_endpoints_and_bound_ones_say_so() {
    let home = Home::new();
    let one = web("one");
    let port = free_port();
    home.serve(&format!(
        "services:\n  s: {{ expose: [{port}], endpoints: [\"{}\"] }}\n",
        one.addr
    ));
    let node = home.start(home.up().env("ANYNODE_VIPS", "off"));
    assert_eq!(dig(home.dns, "s"), Some(Ipv4Addr::LOCALHOST));
    let shown = status(&home);
    assert_eq!(
        (&shown["vips"], &shown["ports"][0]["state"]),
        (&"vips = \"off\"".into(), &"off".into())
    );
    drop(node);
    let _node = home.start(home.up().env("ANYNODE_VIPS", "bind"));
    assert_eq!(curl(vip_of(&home, "s", port)).as_deref(), Some("one"));
    assert_eq!(status(&home)["vips"], "bound");
    let (code, _, stderr) = crate::cli::run(crate::cli::anynode(&["check"]).env("ANYNODE_VIPS", "on"));
    assert_eq!(code, 64);
    assert!(
        stderr.contains("vips = \"on\": expected \"auto\", \"bind\" or \"off\""),
        "{stderr}"
    );
}

/// As many descriptors as many systems give by default.
fn limited(home: &Home) -> Command {
    let up = home.up();
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 1024 && exec \"$0\" \"$@\""])
        .arg(up.get_program())
        .args(up.get_args())
        .stdin(Stdio::null());
    for (name, value) in up.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[test]
fn listeners_leave_descriptors_for_all_else() {
    let home = Home::new();
    let one = web("one");
    let port = free_port();
    // Two workers: twice as many sockets as there may be.
    let text = |n: usize| {
        let first = format!(
            "services:\n  a: {{ publish: [\"127.0.0.1:{}:80\"], endpoints: [\"{}\"] }}\n",
            home.port, one.addr
        );
        let others = (0..n).map(|i| format!("  s{i}: {{ expose: [{port}], endpoints: [\"{}\"] }}\n", one.addr));
        first + &others.collect::<String>()
    };
    home.serve(&text(1_000));
    let mut up = limited(&home);
    let _node = home.start(up.env("ANYNODE_VIPS", "bind").env("ANYNODE_WORKERS", "2"));
    for n in 1_000..1_003 {
        let (_, said) = home.readyz();
        assert!(said.contains("no descriptor is left for it: of 1024"), "{said}");
        assert_eq!(curl(home.door()).as_deref(), Some("one"));
        let added = format!("s{n}");
        home.serve(&text(n + 1));
        wait_until("the change to be taken", || dig(home.dns, &added).is_some());
    }
}

#[test]
fn services_by_the_thousand_take_no_descriptors() {
    if !may_have_vips() {
        return;
    }
    let home = Home::new();
    let one = web("one");
    let port = free_port();
    let text = |n: usize| {
        let mut text = "services:\n".to_owned();
        for i in 0..n {
            text += &format!("  s{i}: {{ expose: [{port}], endpoints: [\"{}\"] }}\n", one.addr);
        }
        text
    };
    let n = std::env::var("ANYNODE_N_SERVICES")
        .ok()
        .and_then(|text| text.parse().ok());
    let n: usize = n.unwrap_or(2_000);
    home.serve(&text(n));
    let node = home.start(&mut limited(&home));
    let n_files = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count();
    assert!(n_files < 200, "{n_files} descriptors");
    for service in [0, 1, n / 2, n - 1] {
        assert_eq!(
            curl(vip_of(&home, &format!("s{service}"), port)).as_deref(),
            Some("one")
        );
    }
    home.serve(&text(n + 1));
    let added = format!("s{n}");
    wait_until("the change to be taken", || dig(home.dns, &added).is_some());
    let vip = vip_of(&home, &added, port);
    wait_until("the new one to be answered", || curl(vip).as_deref() == Some("one"));
    assert_eq!(home.readyz().0, 200);
    println!("{n_files} descriptors for {n} services");
}

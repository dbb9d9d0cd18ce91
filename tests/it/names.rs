//! Endpoints by name, by the program: its name server is one of the test's own, on loopback. The machine's is never asked.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use rustix::process::Signal;
use serde_json::Value;

use crate::admin::request;
use crate::cli::{Home, Running, anynode, run};
use crate::harness::{Origin, dial, free_port, wait_until};

/// What a name is answered.
#[derive(Clone)]
enum Said {
    /// With their TTL in seconds.
    Addresses(Vec<IpAddr>, u32),
    /// The same, one place further with each answer.
    Rotated(Vec<IpAddr>, u32),
    Code(ResponseCode),
    Nothing,
}

/// A name server that says what it is told to, and remembers what it was asked. Of names that it was told nothing it says that
/// there are none.
struct NameServer {
    addr: SocketAddr,
    said: Arc<Mutex<HashMap<String, Said>>>,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
}

impl NameServer {
    fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = NameServer {
            addr: socket.local_addr().unwrap(),
            said: Arc::default(),
            asked: Arc::default(),
        };
        let (said, asked) = (server.said.clone(), server.asked.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut n_answers = 0;
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let query = Message::from_vec(&buffer[..len]).unwrap();
                let (name, record) = (query.queries[0].name.clone(), query.queries[0].query_type);
                let text = name.to_ascii().to_ascii_lowercase();
                asked.lock().unwrap().push((text.clone(), record));
                let mut answer = query.clone().into_response();
                let said = said.lock().unwrap().get(&text).cloned();
                n_answers += 1;
                let (addresses, ttl) = match said.unwrap_or(Said::Code(ResponseCode::NXDomain)) {
                    Said::Addresses(addresses, ttl) => (addresses, ttl),
                    Said::Rotated(mut addresses, ttl) => {
                        let n = addresses.len();
                        addresses.rotate_left(n_answers % n);
                        (addresses, ttl)
                    }
                    Said::Code(code) => {
                        answer.metadata.response_code = code;
                        (Vec::new(), 0)
                    }
                    Said::Nothing => continue,
                };
                let is_asked_for = |ip: &IpAddr| ip.is_ipv4() == (record == RecordType::A);
                for ip in addresses.into_iter().filter(is_asked_for) {
                    answer.add_answer(Record::from_rdata(name.clone(), ttl, RData::from(ip)));
                }
                socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        });
        server
    }

    fn says(&self, name: &str, said: Said) {
        self.said.lock().unwrap().insert(name.to_owned(), said);
    }

    fn gives(&self, name: &str, addresses: &str, ttl: u32) {
        self.says(name, Said::Addresses(ips(addresses), ttl));
    }

    fn n_asked(&self, name: &str, record: RecordType) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(of, by)| of == name && *by == record).count()
    }

    fn up(&self, home: &Home) -> Command {
        up(home, &[self.addr])
    }
}

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

fn up(home: &Home, servers: &[SocketAddr]) -> Command {
    let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    let mut command = home.up();
    command
        .env("ANYNODE_DNS_UPSTREAMS", servers.join(","))
        .env("ANYNODE_DNS_UPSTREAM_TIMEOUT", "300ms");
    command
}

/// Says the last part of its own address, then what it is sent.
fn origin_at(ip: &str, port: u16) -> Origin {
    let ip: IpAddr = ip.parse().unwrap();
    let name = ip.to_string();
    let name = name.rsplit(['.', ':']).next().unwrap().to_owned();
    Origin::start_at(SocketAddr::new(ip, port), move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    })
}

/// Who answers a new connection.
fn who(door: SocketAddr) -> String {
    let mut client = dial(door);
    let mut name = [0; 1];
    match client.read(&mut name) {
        Ok(1) => String::from_utf8_lossy(&name).into_owned(),
        _ => "nobody".to_owned(),
    }
}

/// Who answers some connections in a row.
fn all_who(door: SocketAddr) -> String {
    let all: BTreeSet<String> = (0..9).map(|_| who(door)).collect();
    all.into_iter().collect::<Vec<_>>().join("")
}

fn wait_who(door: SocketAddr, expect: &str) {
    let mut seen = String::new();
    wait_until(&format!("{expect} to answer"), || {
        seen = all_who(door);
        seen == expect
    });
}

fn services(home: &Home, endpoints: &str) -> String {
    format!(
        "services:\n  web:\n    publish: [\"127.0.0.1:{}:80\"]\n    endpoints: [{endpoints}]\n",
        home.port
    )
}

fn status(home: &Home) -> String {
    let (code, out, err) = run(&mut anynode(&["status", "--admin", &home.admin.to_string()]));
    assert_eq!(code, 0, "{err}");
    out
}

fn json(home: &Home) -> Value {
    serde_json::from_str(&request(home.admin, "GET", "/v1/status").2).unwrap()
}

fn wait_status(home: &Home, line: &str) {
    let mut seen = String::new();
    wait_until(line, || {
        seen = status(home);
        seen.lines().any(|it| it.contains(line))
    });
}

#[test]
fn all_addresses_are_endpoints_and_others_once_their_time_is_over() {
    let (home, dns, port) = (Home::new(), NameServer::start(), free_port());
    let _origins = ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|ip| origin_at(ip, port));
    dns.gives("db.test.", "127.0.0.2 127.0.0.3", 1);
    home.serve(&services(&home, &format!("\"DB.test:{port}\"")));
    let _node = home.start(&mut dns.up(&home));
    wait_who(home.door(), "23");
    let mut held: Vec<TcpStream> = (0..2).map(|_| dial(home.door())).collect();
    let mut names: Vec<u8> = held
        .iter_mut()
        .map(|client| {
            let mut name = [0];
            client.read_exact(&mut name).unwrap();
            name[0]
        })
        .collect();
    names.sort_unstable();
    assert_eq!(names, b"23");
    let before = json(&home);
    dns.gives("db.test.", "127.0.0.4 127.0.0.3", 1);
    let changed = Instant::now();
    wait_who(home.door(), "34");
    assert!(changed.elapsed() < Duration::from_secs(4), "{:?}", changed.elapsed());
    for client in &mut held {
        client.write_all(b"x").unwrap();
        let mut echo = [0];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"x", "what was open goes on, also at an endpoint that has left");
    }
    let total = |status: &Value, ip: &str| {
        let endpoints = status["services"][0]["endpoints"].as_array().unwrap().clone();
        let found = endpoints
            .iter()
            .find(|it| it["address"].as_str().unwrap().starts_with(ip));
        found.map(|it| (it["state"].as_str().unwrap().to_owned(), it["total"].as_u64().unwrap()))
    };
    let after = json(&home);
    let (_, kept_before) = total(&before, "127.0.0.3:").unwrap();
    let (_, kept_after) = total(&after, "127.0.0.3:").unwrap();
    assert!(
        kept_after > kept_before && kept_before > 0,
        "{kept_before} then {kept_after}"
    );
    assert_eq!(total(&after, "127.0.0.2:").unwrap().0, "draining");
    let name = &after["names"][0];
    assert_eq!(
        (&name["name"], &name["services"][0]),
        (&"db.test".into(), &"web".into())
    );
    assert_eq!(name["addresses"], serde_json::json!(["127.0.0.3", "127.0.0.4"]));
    assert!(
        status(&home).contains("\nname db.test of web: 127.0.0.3 127.0.0.4\n"),
        "{}",
        status(&home)
    );
}

#[test]
fn both_families_are_endpoints_beside_addresses_each_with_the_name_s_weight() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: there is no IPv6 here");
        return;
    }
    let (home, dns, port) = (Home::new(), NameServer::start(), free_port());
    let _origins = ["127.0.0.2", "127.0.0.3", "::1"].map(|ip| origin_at(ip, port));
    dns.gives("db.test.", "127.0.0.3 ::1", 3600);
    let endpoints = format!("\"127.0.0.2:{port}\", {{ address: \"db.test:{port}\", weight: 4 }}");
    home.serve(&services(&home, &endpoints));
    let _node = home.start(&mut dns.up(&home));
    wait_who(home.door(), "123");
    let n_first = (0..90).filter(|_| who(home.door()) == "2").count();
    assert!(
        (9..=11).contains(&n_first),
        "{n_first} of 90 for a weight of 1 beside two of 4"
    );
}

#[test]
fn another_order_makes_no_other_table_and_a_name_of_two_services_is_asked_for_once() {
    let (home, dns, port, other) = (Home::new(), NameServer::start(), free_port(), free_port());
    let _origins = ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|ip| origin_at(ip, port));
    dns.says("db.test.", Said::Rotated(ips("127.0.0.2 127.0.0.3 127.0.0.4"), 0));
    let two = format!(
        "{}  other:\n    publish: [\"127.0.0.1:{other}:80\"]\n    endpoints: [\"db.test:{port}\"]\n",
        services(&home, &format!("\"db.test:{port}\""))
    );
    home.serve(&two);
    let _node = home.start(&mut dns.up(&home));
    wait_who(home.door(), "234");
    assert_eq!(all_who(([127, 0, 0, 1], other).into()), "234");
    let revision = home.metric("anynode_config_revision");
    let (n_before, began) = (dns.n_asked("db.test.", RecordType::A), Instant::now());
    wait_until("four more answers", || {
        dns.n_asked("db.test.", RecordType::A) >= n_before + 4
    });
    // A TTL of 0 is taken for a second, and two services for one.
    assert!(began.elapsed() > Duration::from_millis(2900), "{:?}", began.elapsed());
    assert_eq!(home.metric("anynode_config_revision"), revision);
    assert_eq!(all_who(home.door()), "234");
    // A name that is needed no more is asked for no more.
    home.serve(&services(&home, &format!("\"127.0.0.2:{port}\"")));
    wait_who(home.door(), "2");
    std::thread::sleep(Duration::from_millis(100));
    let n = dns.n_asked("db.test.", RecordType::A);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(dns.n_asked("db.test.", RecordType::A), n);
    assert_eq!(json(&home)["names"], Value::Null);
}

#[test]
fn a_name_that_fails_keeps_its_last_answer_and_shows_until_it_is_back() {
    let (home, dns, port) = (Home::new(), NameServer::start(), free_port());
    let _origins = ["127.0.0.2", "127.0.0.3"].map(|ip| origin_at(ip, port));
    dns.gives("db.test.", "127.0.0.2", 1);
    home.serve(&services(&home, &format!("\"db.test:{port}\"")));
    let node = home.start(&mut dns.up(&home));
    wait_who(home.door(), "2");
    assert_eq!(home.metric("anynode_name_resolution_failing"), 0.0);
    let server = dns.addr;
    let mut n_failures = 0.0;
    for (said, why) in [
        (
            Said::Code(ResponseCode::ServFail),
            format!("the name server {server} answers SERVFAIL"),
        ),
        (
            Said::Code(ResponseCode::NXDomain),
            "there is no such name (NXDOMAIN)".to_owned(),
        ),
        (Said::Addresses(Vec::new(), 60), "the name has no address".to_owned()),
        (Said::Nothing, "no answer in time".to_owned()),
    ] {
        dns.says("db.test.", said);
        wait_status(&home, &format!("the 1 that were known last are endpoints: {why}"));
        assert_eq!(all_who(home.door()), "2", "{why}");
        let (code, readyz) = home.readyz();
        assert!(
            code == 200 && readyz.contains("name db.test of web: not resolved since "),
            "{readyz}"
        );
        assert_eq!(home.metric("anynode_name_resolution_failing"), 1.0);
        assert_eq!(home.metric("anynode_name_addresses"), 1.0);
        let n = home.metric("anynode_name_resolution_failures_total");
        assert!(n > n_failures, "{n} after {n_failures}");
        n_failures = n;
    }
    let since = json(&home)["names"][0]["fault_since"].as_str().unwrap().to_owned();
    assert!(status(&home).contains(&format!("! name db.test of web: not resolved since {since}, ")));
    dns.gives("db.test.", "127.0.0.3", 3600);
    let back = Instant::now();
    while all_who(home.door()) != "3" {
        assert!(back.elapsed() < Duration::from_secs(35), "asked again too late");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(home.metric("anynode_name_resolution_failing"), 0.0);
    assert!(!home.readyz().1.contains("db.test") && !status(&home).contains("! name"));
    let said = node.stderr();
    assert_eq!(said.matches("is not resolved").count(), 1, "{said}");
    assert_eq!(said.matches("is resolved again").count(), 1, "{said}");
    assert!(!said.contains("hickory"), "{said}");
}

#[test]
fn a_name_server_that_is_silent_or_refuses_is_passed_over() {
    let (home, dns, port) = (Home::new(), NameServer::start(), free_port());
    let _origin = origin_at("127.0.0.2", port);
    dns.gives("db.test.", "127.0.0.2", 3600);
    let (refuses, dead) = (NameServer::start(), UdpSocket::bind("127.0.0.1:0").unwrap());
    refuses.says("db.test.", Said::Code(ResponseCode::Refused));
    home.serve(&services(&home, &format!("\"db.test:{port}\"")));
    let _node = home.start(&mut up(&home, &[dead.local_addr().unwrap(), refuses.addr, dns.addr]));
    wait_who(home.door(), "2");
    assert_eq!(refuses.n_asked("db.test.", RecordType::A), 1);
    assert_eq!(json(&home)["names"][0]["fault"], Value::Null);
}

#[test]
fn a_name_without_an_answer_holds_up_nobody_and_its_clients_wait() {
    let (home, dns, port, other) = (Home::new(), NameServer::start(), free_port(), free_port());
    let _origins = ["127.0.0.2", "127.0.0.3"].map(|ip| origin_at(ip, port));
    dns.says("db.test.", Said::Nothing);
    let two = format!(
        "{}  other:\n    publish: [\"127.0.0.1:{other}:80\"]\n    endpoints: [\"127.0.0.3:{port}\"]\n",
        services(&home, &format!("\"db.test:{port}\""))
    );
    home.serve(&two);
    let _node = home.start(&mut dns.up(&home));
    assert_eq!(who(([127, 0, 0, 1], other).into()), "3");
    wait_status(&home, "name db.test of web: no address yet");
    let door = home.door();
    let waiting = std::thread::spawn(move || who(door));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    dns.gives("db.test.", "127.0.0.2", 3600);
    assert_eq!(waiting.join().unwrap(), "2");
}

#[test]
fn after_a_restart_without_a_name_server_the_last_addresses_are_endpoints() {
    let (home, dns, port) = (Home::new(), NameServer::start(), free_port());
    let _origins = ["127.0.0.2", "127.0.0.3"].map(|ip| origin_at(ip, port));
    dns.gives("db.test.", "127.0.0.3 127.0.0.2", 3600);
    home.serve(&services(&home, &format!("\"db.test:{port}\"")));
    let mut node = home.start(&mut dns.up(&home));
    wait_who(home.door(), "23");
    let kept = home.path("data/names.json");
    wait_until("the addresses to be kept", || {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("127.0.0.3"))
    });
    node.signal(Signal::KILL);
    node.ended();
    dns.says("db.test.", Said::Nothing);
    // Without the file too: then it is the last good one.
    for is_file_there in [true, false] {
        if !is_file_there {
            std::fs::remove_file(home.path("services.yaml")).unwrap();
        }
        let mut node = Running::start(&mut dns.up(&home));
        wait_until("the port", || TcpStream::connect(home.door()).is_ok());
        assert_eq!(all_who(home.door()), "23");
        wait_status(&home, "the 2 that were known last are endpoints: no answer in time");
        node.signal(Signal::KILL);
        node.ended();
    }
}

#[test]
fn an_address_that_leads_back_is_left_out_and_said() {
    let (home, dns) = (Home::new(), NameServer::start());
    let port = home.port;
    let end = free_port();
    let _end = origin_at("127.0.0.5", end);
    dns.gives("itself.test.", "127.0.0.1 127.0.0.2", 1);
    home.serve(&format!(
        "services:\n  web:\n    publish: [\"{port}:80\"]\n    endpoints: [\"itself.test:{port}\", \"127.0.0.5:{end}\"]\n"
    ));
    let node = home.start(&mut dns.up(&home));
    let what = format!("service web: 127.0.0.1:{port} is a published port of the service itself");
    wait_status(&home, &format!("! name itself.test: an address is left out: {what}"));
    assert_eq!(all_who(home.door()), "5");
    let endpoints = json(&home)["services"][0]["endpoints"].as_array().unwrap().len();
    assert_eq!(endpoints, 1);
    let n_before = dns.n_asked("itself.test.", RecordType::A);
    wait_until("more answers", || {
        dns.n_asked("itself.test.", RecordType::A) >= n_before + 2
    });
    assert_eq!(
        node.stderr().matches("is left out").count(),
        2,
        "each address once: {}",
        node.stderr()
    );
}

#[test]
fn of_many_addresses_some_are_endpoints_and_that_is_said() {
    let (home, dns) = (Home::new(), NameServer::start());
    let many: Vec<String> = (1..=70).map(|i| format!("127.0.9.{i}")).collect();
    dns.gives("many.test.", &many.join(" "), 3600);
    home.serve(&services(&home, "\"many.test:9\""));
    let _node = home.start(&mut dns.up(&home));
    wait_status(
        &home,
        "! name many.test of web: 6 of its addresses are too many, and no endpoints",
    );
    let status = json(&home);
    let endpoints = status["services"][0]["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 64);
    assert_eq!(endpoints[63]["address"], "127.0.9.64:9");
}

#[test]
fn names_that_are_none_are_refused_with_key_value_and_expectation() {
    let home = Home::new();
    for (endpoint, parts) in [
        (
            "1.2.3:80",
            &["services.web.endpoints[1]", "\"1.2.3:80\"", "no number at its end"][..],
        ),
        (
            "a_b:80",
            &["services.web.endpoints[1]", "\"a_b:80\"", "db.internal:5432"],
        ),
        (
            "db.test:0",
            &["services.web.endpoints[1]", "\"db.test:0\"", "a port from 1 to 65535"],
        ),
        (
            "db..test:1",
            &["services.web.endpoints[1]", "\"db..test:1\"", "labels of 1 to 63"],
        ),
    ] {
        let file = home.write(
            "bad.yaml",
            &services(&home, &format!("\"127.0.0.1:1\", \"{endpoint}\"")),
        );
        let (code, _, said) = run(&mut anynode(&["check", "--services", &file]));
        assert_eq!(code, 64, "{endpoint}: {said}");
        for part in parts {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
    let inside = "{ address: \"db.test:80\", netns: /run/netns/x }";
    let file = home.write("bad.yaml", &services(&home, inside));
    let (code, _, said) = run(&mut anynode(&["check", "--services", &file]));
    assert!(
        code == 64 && said.contains("\"db.test:80\" is not valid: expected an address beside netns"),
        "{said}"
    );
    // Whether there is such a name is not asked.
    let file = home.write("good.yaml", &services(&home, "\"db.test:80\", db.test.,  db"));
    let (code, said, _) = run(&mut anynode(&["check", "--services", &file]));
    assert!(code == 0 && said.contains("1 services"), "{said}");
}

#[test]
fn the_hosts_file_and_the_search_domains_of_the_system_hold() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root has a hosts file of its own");
        return;
    }
    let (home, dns, port) = (Home::new(), NameServer::start(), free_port());
    let _origins = ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|ip| origin_at(ip, port));
    dns.gives("db.inner.test.", "127.0.0.3", 3600);
    let hosts = home.write("hosts", "127.0.0.2 box box.test # 127.0.0.4\n");
    let resolv_conf = home.write("resolv.conf", "nameserver 192.0.2.1\nsearch outer.test inner.test\n");
    home.serve(&services(&home, &format!("\"box:{port}\", \"db:{port}\"")));
    let as_up = dns.up(&home);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/resolv.conf && shift 2 && exec \"$@\"")
        .args(["sh", &hosts, &resolv_conf])
        .arg(as_up.get_program())
        .args(as_up.get_args());
    for (name, value) in as_up.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let _node = home.start(&mut command);
    wait_who(home.door(), "23");
    assert_eq!(dns.n_asked("db.outer.test.", RecordType::A), 1);
    let asked = dns.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|(name, _)| !name.starts_with("box")), "{asked:?}");
    std::fs::write(&hosts, "127.0.0.4 box\n").unwrap();
    wait_who(home.door(), "34");
}

#[test]
fn names_that_are_needed_no_more_hold_up_nobody() {
    let (home, dns, port) = (Home::new(), NameServer::start(), free_port());
    let _origin = origin_at("127.0.0.2", port);
    let dead: Vec<String> = (0..20).map(|n| format!("dead-{n}.test")).collect();
    dead.iter()
        .for_each(|name| dns.says(&format!("{name}."), Said::Nothing));
    dns.gives("db.test.", "127.0.0.2", 3600);
    let endpoints: Vec<String> = dead.iter().map(|name| format!("\"{name}:{port}\"")).collect();
    home.serve(&services(&home, &endpoints.join(", ")));
    // Longer than this test waits for anything.
    let _node = home.start(dns.up(&home).env("ANYNODE_DNS_UPSTREAM_TIMEOUT", "60s"));
    let n_asked = || {
        dead.iter()
            .filter(|name| dns.n_asked(&format!("{name}."), RecordType::A) > 0)
            .count()
    };
    wait_until("as many to be asked for as may be", || n_asked() == 12);
    home.serve(&services(&home, &format!("\"db.test:{port}\"")));
    wait_who(home.door(), "2");
    assert_eq!(n_asked(), 12);
    // Nor are they taken for asked where they are needed again.
    dead.iter()
        .for_each(|name| dns.gives(&format!("{name}."), "127.0.0.2", 3600));
    home.serve(&services(&home, &endpoints.join(", ")));
    wait_until("all of them to be asked for", || n_asked() == 20);
    wait_who(home.door(), "2");
}

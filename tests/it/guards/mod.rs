//! What is asked of requests before they go on, and done to answers: through the program, with a services file.

mod answers;
mod auth;
mod bodies;
mod forward;
mod limits;
mod redirects;
mod retries;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::admin::Scrape;
use crate::cli::{Running, anynode};
use crate::harness::{Origin, dial, free_port, read_head, read_to_end, wait_until};

/// A node with one service, and its admin listener.
struct Node {
    running: Running,
    addr: SocketAddr,
    admin: SocketAddr,
    dir: tempfile::TempDir,
    /// Separated by commas.
    endpoints: String,
}

impl Node {
    /// `options`: of the service `web`, and behind them whatever else is to be in the file.
    fn start(endpoints: impl ToString, options: &str) -> Node {
        let endpoints = endpoints.to_string();
        let [port, admin] = [(); 2].map(|()| free_port());
        let [addr, admin] = [port, admin].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let dir = tempfile::tempdir().unwrap();
        let services = dir.path().join("services.yml");
        std::fs::write(&services, text(addr, &endpoints, options)).unwrap();
        let mut command = anynode(&["up", "--dns", "none", "--admin"]);
        command.arg(admin.to_string()).arg("--services").arg(&services);
        command.arg("--data-dir").arg(dir.path().join("data"));
        let running = Running::start(&mut command);
        wait_until("the port", || TcpStream::connect(addr).is_ok());
        Node {
            running,
            addr,
            admin,
            dir,
            endpoints,
        }
    }

    fn declare(&self, options: &str) {
        let new = self.dir.path().join("new.yml");
        std::fs::write(&new, text(self.addr, &self.endpoints, options)).unwrap();
        std::fs::rename(new, self.dir.path().join("services.yml")).unwrap();
    }

    /// What `anynode check` says of a file.
    fn refusal(&self, options: &str) -> String {
        let file = self.dir.path().join("checked.yml");
        std::fs::write(&file, text(self.addr, &self.endpoints, options)).unwrap();
        let out = anynode(&["check"]).arg(&file).output().unwrap();
        assert_eq!(out.status.code(), Some(64), "{options}: {out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    fn connect_from(&self, from: [u8; 4]) -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
        stream
    }

    fn ask_from(&self, from: [u8; 4], fields: &str) -> String {
        let mut stream = self.connect_from(from);
        let request = format!("GET /a?b HTTP/1.1\r\nHost: a.test\r\n{fields}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8_lossy(&read_to_end(&stream)).into_owned()
    }

    fn ask(&self, fields: &str) -> String {
        self.ask_from([127, 0, 0, 1], fields)
    }

    /// What curl is answered: the status and what it wrote.
    fn curl(&self, args: &[&str]) -> (String, String) {
        let url = format!("http://{}/a?b", self.addr);
        let out = Command::new("curl")
            .args(["-s", "-m", "20", "-w", "\n%{http_code} %{http_version}"])
            .args(args)
            .arg(url)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, status) = said.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }

    /// How many requests were answered for that reason.
    fn n_denied(&self, reason: &str) -> u64 {
        let (_, _, text) = crate::admin::request(self.admin, "GET", "/metrics");
        let scrape = Scrape::parse(&text).unwrap();
        scrape.sum(
            "anynode_requests_denied_total",
            &[("service", "web"), ("reason", reason)],
        ) as u64
    }
}

fn text(addr: SocketAddr, endpoints: &str, options: &str) -> String {
    let options: String = options.lines().map(|line| format!("    {line}\n")).collect();
    format!("services:\n  web:\n    mode: http\n    publish: [\"{addr}:80\"]\n    endpoints: [{endpoints}]\n{options}")
}

/// The field by which a client says who it is.
fn basic(name: &str, password: &str) -> String {
    let said = STANDARD.encode(format!("{name}:{password}"));
    format!("Authorization: Basic {said}\r\n")
}

fn status_of(answer: &str) -> u16 {
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    status
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// An endpoint that answers with the head that it was asked by, after it has read the body, and then goes on; asked for an upgrade, it
/// switches, and says what it is told.
fn mirror() -> Origin {
    Origin::start(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            if head.to_ascii_lowercase().contains("\r\nupgrade: ") {
                let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                if stream.write_all(switch.as_bytes()).is_err() {
                    return;
                }
                let mut bytes = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..n]).is_err() {
                        return;
                    }
                }
                return;
            }
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
            if stream.read_exact(&mut body).is_err() {
                return;
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

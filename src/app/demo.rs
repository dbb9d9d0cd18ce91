//! `anynode demo`: a node, three endpoints and a published port in one command, and on the screen who answers.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{Config, Flags};
use super::node::Node;
use super::up::{Signals, block_on};
use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, chain, print};
use crate::routing::{Endpoint, EndpointState, Listen, TableHandle};

/// What the command line says.
#[derive(Debug, Clone, Copy)]
pub struct DemoArgs {
    /// The port to publish.
    pub port: u16,
}

/// Runs the demo until SIGINT or SIGTERM. Returns the exit code; nothing is left behind.
pub fn demo(args: DemoArgs) -> i32 {
    let Ok(dir) = TemporaryDir::new() else {
        eprintln!("error: no temporary directory can be made");
        return EXIT_FAILURE;
    };
    let endpoints = match start_endpoints() {
        Ok(endpoints) => endpoints,
        Err(error) => {
            eprintln!("error: the endpoints cannot be started: {error}");
            return EXIT_FAILURE;
        }
    };
    let services = services_file(args.port, &endpoints);
    let path = dir.path.join("services.yml");
    if let Err(error) = std::fs::write(&path, &services) {
        eprintln!("error: {}: {error}", path.display());
        return EXIT_FAILURE;
    }
    let flags = Flags {
        services: Some(path.display().to_string()),
        data_dir: Some(dir.path.join("data").display().to_string()),
        admin: beside_another_node("127.0.0.1:9377"),
        dns: beside_another_node("127.0.0.1:8553"),
        ..Flags::default()
    };
    let config = match Config::load_or_say(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    block_on(async {
        let mut signals = Signals::new()?;
        let node = match Node::start(config).await {
            Ok(node) => node,
            Err(error) => {
                eprintln!("error: {}", chain(&error));
                return Ok(EXIT_FAILURE);
            }
        };
        let listen = Listen {
            port: args.port,
            ip: None,
        };
        if let Some(error) = node.port_error(&listen) {
            eprintln!(
                "error: port {} cannot be published: {error}; --port takes another",
                args.port
            );
            return Ok(EXIT_UNAVAILABLE);
        }
        let (table, names) = (node.table.clone(), endpoints_names(&endpoints));
        let watching = tokio::spawn(async move {
            // Until their first probes are good, endpoints do not take turns as we are about to say.
            let _ = tokio::time::timeout(READY_WITHIN, all_ready(&table)).await;
            introduce(args.port, &services);
            show_answers(table, names).await;
        });
        let ran = node.run(async { signals.next().await }).await;
        watching.abort();
        if let Err(error) = ran {
            eprintln!("error: {}", chain(&error));
            return Ok(EXIT_FAILURE);
        }
        print("\nThe endpoints are stopped, nothing is left.\n");
        Ok(0)
    })
}

struct Whoami {
    name: String,
    port: u16,
    process: Child,
}

impl Drop for Whoami {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start_endpoints() -> std::io::Result<Vec<Whoami>> {
    let program = std::env::current_exe()?;
    let start = |i: usize| {
        let port = free_port()?;
        let name = format!("whoami-{i}");
        let process = Command::new(&program)
            .args([
                "whoami",
                "--die-with-parent",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--name",
                &name,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        wait_for(port)?;
        Ok(Whoami { name, port, process })
    };
    (1..=3).map(start).collect()
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until something listens; a program takes a moment to start.
fn wait_for(port: u16) -> std::io::Result<()> {
    for _ in 0..500 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

/// `None`, which is the default address, unless another program has it: then "none".
fn beside_another_node(addr: &str) -> Option<String> {
    TcpListener::bind(addr).is_err().then(|| "none".to_owned())
}

fn services_file(port: u16, endpoints: &[Whoami]) -> String {
    let addresses: Vec<String> = endpoints
        .iter()
        .map(|endpoint| format!("\"127.0.0.1:{}\"", endpoint.port))
        .collect();
    format!(
        "services:\n  whoami:\n    mode: http\n    publish: [\"{port}:8000\"]\n    health: {{ http: /health }}\n    endpoints: [{}]\n",
        addresses.join(", ")
    )
}

fn endpoints_names(endpoints: &[Whoami]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.name.clone()).collect()
}

fn introduce(port: u16, services: &str) {
    let shown: String = services.lines().map(|line| format!("    {line}\n")).collect();
    print(&format!(
        "A node is up, with three endpoints of one service behind one port. Its services file:\n\n\
         {shown}\n\
         In another shell:\n\n    \
         for i in 1 2 3 4 5 6; do curl -s localhost:{port}; done\n    \
         anynode status\n    \
         curl \"http://$(dig +short @127.0.0.1 -p 8553 whoami):8000/\"\n\n\
         Who answers is shown here. Ctrl-C ends it all.\n\n"
    ));
}

async fn all_ready(table: &TableHandle) {
    let is_ready = |endpoint: &Arc<Endpoint>| endpoint.state(Instant::now()) == EndpointState::Ready;
    while !table
        .load()
        .services()
        .all(|service| service.endpoints().iter().all(is_ready))
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Prints each endpoint whose count of requests has grown.
async fn show_answers(table: Arc<TableHandle>, names: Vec<String>) {
    let mut shown = vec![0; names.len()];
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        let table = table.load();
        let Some(service) = table.services().next() else {
            continue;
        };
        for (i, endpoint) in service.endpoints().iter().enumerate() {
            let total = endpoint.picks_total();
            if let (Some(name), Some(shown)) = (names.get(i), shown.get_mut(i))
                && total > *shown
            {
                let n = total - *shown;
                *shown = total;
                match n {
                    1 => print(&format!("  {name} answered a request, {total} by now\n")),
                    _ => print(&format!("  {name} answered {n} requests, {total} by now\n")),
                }
            }
        }
    }
}

/// How long to wait for the first probes. They take milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// A directory that is removed with all that is in it.
struct TemporaryDir {
    path: std::path::PathBuf,
}

impl TemporaryDir {
    fn new() -> std::io::Result<TemporaryDir> {
        // The process id alone would do until a demo is killed in a container: the next one there has the same.
        let name = format!("anynode-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(TemporaryDir { path })
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

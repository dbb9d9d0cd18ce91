//! `anynode demo`: a node, three endpoints and a published port in one command, and on the screen who answers.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::config::{Config, Flags};
use super::keys::Keys;
use super::node::Node;
use super::up::{Signals, block_on};
use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, chain, print};
use crate::routing::{Endpoint, EndpointState, Listen, TableHandle};

/// What the command line says.
#[derive(Debug, Clone, Copy)]
pub struct DemoArgs {
    /// The port to publish; 0: any that is free.
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
    let port = match args.port {
        0 => free_port(),
        port => Ok(port),
    };
    let port = match port {
        Ok(port) => port,
        Err(error) => {
            eprintln!("error: no port is free: {error}");
            return EXIT_FAILURE;
        }
    };
    let services = services_file(port, &endpoints);
    let path = dir.path.join("services.yml");
    if let Err(error) = std::fs::write(&path, &services) {
        eprintln!("error: {}: {error}", path.display());
        return EXIT_FAILURE;
    }
    let flags = Flags {
        services: Some(path.display().to_string()),
        data_dir: Some(dir.path.join("data").display().to_string()),
        admin: beside_another_node("ANYNODE_ADMIN", "127.0.0.1:9377"),
        dns: beside_another_node("ANYNODE_DNS", "127.0.0.1:8553"),
        ..Flags::default()
    };
    let config = match Config::load_or_say(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let doors = Doors {
        port,
        admin: config.admin,
        dns: config.dns,
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
        let listen = Listen { port, ip: None };
        if let Some(error) = node.port_error(&listen) {
            eprintln!("error: port {port} cannot be published: {error}; --port takes another");
            return Ok(EXIT_UNAVAILABLE);
        }
        let (table, names) = (node.table.clone(), endpoints_names(&endpoints));
        let endpoints = Arc::new(Mutex::new(endpoints));
        let typed = endpoints.clone();
        let _keys = Keys::listen(move |key| {
            if let Some(i) = usize::from(key).checked_sub(usize::from(b'1')) {
                toggle(&mut typed.lock().unwrap_or_else(PoisonError::into_inner), i);
            }
        });
        let watching = tokio::spawn(async move {
            // Until their first probes are good, endpoints do not take turns as we are about to say.
            let _ = tokio::time::timeout(READY_WITHIN, all_ready(&table)).await;
            introduce(&doors, &services);
            show_answers(table, names).await;
        });
        let ran = node.run(async { signals.next().await }).await;
        watching.abort();
        endpoints.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
    /// `None`: it is stopped.
    process: Option<Child>,
}

impl Whoami {
    fn start(name: String, port: u16) -> std::io::Result<Whoami> {
        let process = Command::new(std::env::current_exe()?)
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
        let whoami = Whoami {
            name,
            port,
            process: Some(process),
        };
        wait_for(port)?;
        Ok(whoami)
    }
}

impl Drop for Whoami {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // An error means that it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Stops an endpoint, without a word to anybody, or starts it again where it was.
fn toggle(endpoints: &mut [Whoami], i: usize) {
    let Some(endpoint) = endpoints.get_mut(i) else { return };
    let (name, port) = (endpoint.name.clone(), endpoint.port);
    let said = match endpoint.process {
        Some(_) => {
            *endpoint = Whoami {
                name: name.clone(),
                port,
                process: None,
            };
            format!("  {name} is killed; {} starts it again\n", i + 1)
        }
        None => match Whoami::start(name.clone(), port) {
            Ok(started) => {
                *endpoint = started;
                format!("  {name} runs again\n")
            }
            Err(error) => format!("  {name} cannot be started: {error}\n"),
        },
    };
    print(&said);
}

fn start_endpoints() -> std::io::Result<Vec<Whoami>> {
    (1..=3)
        .map(|i| Whoami::start(format!("whoami-{i}"), free_port()?))
        .collect()
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

/// `None`, which is what the configuration says, unless that is the default and another program has it: then an address
/// that is free.
fn beside_another_node(variable: &str, addr: &str) -> Option<String> {
    let is_told = std::env::var_os(variable).is_some() || std::env::var_os("ANYNODE_CONFIG").is_some();
    if is_told || TcpListener::bind(addr).is_ok() {
        return None;
    }
    Some(free_port().map_or_else(|_| "none".to_owned(), |port| format!("127.0.0.1:{port}")))
}

/// Where the node is asked.
struct Doors {
    port: u16,
    admin: Option<SocketAddr>,
    dns: Option<SocketAddr>,
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

/// As whoever started this one called it: it may be in no directory of PATH yet.
fn program() -> String {
    let called = std::env::args_os().next().and_then(|path| path.into_string().ok());
    let is_plain =
        |text: &String| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c));
    called.filter(is_plain).unwrap_or_else(|| "anynode".to_owned())
}

fn introduce(doors: &Doors, services: &str) {
    let shown: String = services.lines().map(|line| format!("    {line}\n")).collect();
    let mut commands = vec![format!(
        "for i in 1 2 3 4 5 6; do curl -s localhost:{}; done",
        doors.port
    )];
    // What is where it always is need not be said.
    let program = program();
    commands.extend(doors.admin.map(|admin| match admin.to_string().as_str() {
        "127.0.0.1:9377" => format!("{program} status"),
        admin => format!("{program} status --admin {admin}"),
    }));
    commands.extend(doors.dns.map(|dns| {
        let (ip, port) = (dns.ip(), dns.port());
        format!("curl \"http://$(dig +short @{ip} -p {port} whoami):8000/\"")
    }));
    let page = doors.admin.map(|admin| format!("To see it all: http://{admin}/\n"));
    let page = page.unwrap_or_default();
    let commands: String = commands.iter().map(|command| format!("    {command}\n")).collect();
    print(&format!(
        "A node is up, with three endpoints of one service behind one port. Its services file:\n\n\
         {shown}\n\
         In another shell:\n\n\
         {commands}\n\
         {page}Who answers is shown here. 1, 2 and 3 kill an endpoint and start it again: nobody who asks notices.\n\
         Ctrl-C ends it all.\n\n"
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

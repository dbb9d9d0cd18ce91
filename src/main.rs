//! The `anynode` program. Parses arguments; everything else is `anynode::app`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anynode::app::{self, DemoArgs, Flags, StatusArgs, WhyArgs};
use clap::{Args, Parser, Subcommand};

/// Connections are many small objects that live long: its size classes waste less on them than glibc's headers do.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A routing mesh for container clusters: any node answers every published port.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a node until SIGTERM or SIGINT, then drains it
    Up {
        /// No file is taken without its flag
        #[arg(hide = true, value_name = "SERVICES")]
        stray: Option<String>,
        #[command(flatten)]
        up: Up,
    },
    /// Shows it at work: a node, three endpoints, one published port
    Demo {
        /// The port to publish; 0: any that is free
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Answers who it is, for trying things out
    Whoami {
        /// Where to listen; 0.0.0.0 and $PORT, or port 8000, otherwise
        #[arg(long, value_name = "ADDR")]
        listen: Option<SocketAddr>,
        /// What to call itself; $HOSTNAME or the host's name otherwise
        #[arg(long)]
        name: Option<String>,
        #[arg(long, hide = true)]
        die_with_parent: bool,
    },
    /// Shows services, ports, endpoints and their state of a running node
    Status {
        /// Of these services alone
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        /// With the ids of tasks, and addresses
        #[arg(long, short)]
        verbose: bool,
        /// Shows it again each second
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The node's admin server
        #[arg(long, value_name = "ADDR")]
        admin: Option<String>,
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Tells whether a running node does its work: for the health checks of containers
    Health {
        /// The node's admin server
        #[arg(long, value_name = "ADDR")]
        admin: Option<String>,
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Compares the tables of all nodes of a swarm, and opens every published port of every node from every node
    Verify {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The node's admin server
        #[arg(long, value_name = "ADDR")]
        admin: Option<String>,
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Says why a client's connection or request goes where it goes
    Why {
        /// What the client dials
        #[arg(value_name = "HOST:PORT")]
        ask: String,
        /// The Host of its request; HOST otherwise
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// The path of its request, with its query
        #[arg(long)]
        path: Option<String>,
        #[arg(long)]
        method: Option<String>,
        /// The name that its TLS begins with
        #[arg(long, value_name = "NAME")]
        sni: Option<String>,
        /// The client's address
        #[arg(long, value_name = "ADDR")]
        from: Option<String>,
        /// The node that is dialed; the one that is asked otherwise
        #[arg(long)]
        node: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// The node's admin server
        #[arg(long, value_name = "ADDR")]
        admin: Option<String>,
        /// The node's configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Keeps one task that is a process; started by anynode itself
    #[command(hide = true)]
    Keep { dir: PathBuf },
    /// Keeps a program beside such a task; started by anynode itself
    #[command(hide = true)]
    Beside { dir: PathBuf },
    /// Keeps the API's socket for the next run; started by anynode itself
    #[command(hide = true)]
    Hold { door: PathBuf, socket: PathBuf },
    /// Tells whether a configuration and its services file can be used
    Check {
        /// The services file, as --services
        #[arg(value_name = "FILE", conflicts_with = "services")]
        file: Option<String>,
        #[command(flatten)]
        up: Up,
    },
}

#[derive(Args)]
#[group(id = "node")]
struct Up {
    /// The configuration file; config/anynode.toml has every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The services file
    #[arg(long, value_name = "FILE")]
    services: Option<String>,
    /// Where to keep what must survive a restart
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where metrics and status are served, or "none"
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Where DNS is served, or "none"
    #[arg(long, value_name = "ADDR")]
    dns: Option<String>,
    /// Serve the Docker Swarm that this node belongs to
    #[arg(long)]
    swarm: bool,
    /// Where the Docker Engine API of this node's own swarm is served, such as unix:///run/anynode/docker.sock, or "none"
    #[arg(long, value_name = "ADDR")]
    api: Option<String>,
    /// The Docker Engine that runs the tasks, such as unix:///var/run/docker.sock, or "none"
    #[arg(long, value_name = "ADDR")]
    engine: Option<String>,
}

impl From<Up> for Flags {
    fn from(up: Up) -> Flags {
        Flags {
            config: up.config,
            services: up.services,
            data_dir: up.data_dir,
            admin: up.admin,
            dns: up.dns,
            is_swarm: up.swarm,
            api: up.api,
            engine: up.engine,
        }
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::Up { stray: None, .. }) {
        // Before anything is said of descriptors: whoever started this may have left some on purpose.
        anynode::sys::copies::begin_again_where_slow();
    }
    anynode::sys::process::pass_nothing_on_at_exec();
    anynode::sys::limits::use_small_pages();
    let code = match command {
        Command::Up { stray: Some(file), .. } => {
            eprintln!("error: {file:?}: expected a flag before it: anynode up --services {file}");
            app::EXIT_CONFIG
        }
        Command::Up { stray: None, up } => app::up(up.into()),
        Command::Keep { dir } => anynode::agent::process::keeper::run(dir),
        Command::Beside { dir: _ } => anynode::agent::process::beside::run(),
        Command::Hold { door, socket } => app::hold(&door, &socket),
        Command::Demo { port } => app::demo(DemoArgs { port }),
        Command::Whoami {
            listen,
            name,
            die_with_parent,
        } => app::whoami(listen, name, die_with_parent),
        Command::Status {
            services,
            verbose,
            watch,
            json,
            admin,
            config,
        } => {
            let flags = Flags {
                admin,
                config,
                ..Flags::default()
            };
            let args = StatusArgs {
                services,
                is_json: json,
                is_verbose: verbose,
                is_watch: watch,
            };
            app::status(flags, &args)
        }
        Command::Health { admin, config } => app::health(Flags {
            admin,
            config,
            ..Flags::default()
        }),
        Command::Verify { json, admin, config } => {
            let flags = Flags {
                admin,
                config,
                ..Flags::default()
            };
            app::verify(flags, json)
        }
        Command::Why {
            ask,
            host,
            path,
            method,
            sni,
            from,
            node,
            json,
            admin,
            config,
        } => {
            let flags = Flags {
                admin,
                config,
                ..Flags::default()
            };
            let args = WhyArgs {
                ask,
                host,
                path,
                method,
                sni,
                from,
                node,
                is_json: json,
            };
            app::why(flags, &args)
        }
        Command::Check { file, up } => {
            let flags = Flags::from(up);
            app::check(Flags {
                services: flags.services.or(file),
                ..flags
            })
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

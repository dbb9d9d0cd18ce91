//! `anynode up` runs a node until a signal; `anynode whoami` runs the program that answers who it is.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::config::Config;
use super::node::Node;
use super::{EXIT_CONFIG, EXIT_FAILURE, Flags, chain};
use crate::whoami::{self, WhoamiConfig};

/// Runs a node until SIGTERM or SIGINT, then drains it; a second signal ends it at once. Returns the exit code.
pub fn up(flags: Flags) -> i32 {
    let config = match Config::load_or_say(flags) {
        Ok(config) => config,
        Err(code) => return code,
    };
    // Errors are silenced by a filter that says so only, not by one that is about some module.
    // What the resolver says of each datagram is ours to say, once.
    let filter = EnvFilter::new(format!("error,hickory_net=error,hickory_resolver=error,{}", config.log));
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !is_plain)
        .init();
    block_on(async {
        let mut signals = Signals::new()?;
        if !config.unknown_variables.is_empty() {
            let unknown: Vec<String> = config.unknown_variables.iter().map(ToString::to_string).collect();
            tracing::warn!("{}", unknown.join("; "));
        }
        let node = match Node::start(config).await {
            Ok(node) => node,
            Err(error) => {
                eprintln!("error: {}", chain(&error));
                return Ok(EXIT_CONFIG);
            }
        };
        tracing::info!(
            services = node.table.load().len(),
            "anynode {} is up",
            env!("CARGO_PKG_VERSION")
        );
        match node.run(async { signals.drain_then_exit().await }).await {
            Ok(()) => Ok(0),
            Err(error) => {
                eprintln!("error: {}", chain(&error));
                Ok(EXIT_CONFIG)
            }
        }
    })
}

/// Runs whoami until SIGTERM or SIGINT. Returns the exit code.
pub fn whoami(listen: Option<SocketAddr>, name: Option<String>, dies_with_parent: bool) -> i32 {
    if dies_with_parent
        && rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)).is_err()
    {
        return EXIT_FAILURE;
    }
    let listen = match listen {
        Some(listen) => listen,
        None => match whoami::default_listen(std::env::var("PORT").ok().as_deref()) {
            Ok(listen) => listen,
            Err(error) => {
                eprintln!("error: {error}");
                return EXIT_CONFIG;
            }
        },
    };
    block_on(async {
        let mut signals = Signals::new()?;
        let shutdown = async move { signals.next().await };
        match whoami::run(WhoamiConfig { listen, name }, shutdown).await {
            Ok(()) => Ok(0),
            Err(error) => {
                eprintln!("error: {}", chain(&error));
                Ok(EXIT_FAILURE)
            }
        }
    })
}

/// Runs `main` on this thread and returns its exit code.
pub(super) fn block_on(main: impl Future<Output = std::io::Result<i32>>) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let run = runtime.and_then(|runtime| {
        let ended = runtime.block_on(main);
        // A disk of a machine that is away may keep a thread for ever. What it had begun is as after kill -9.
        runtime.shutdown_timeout(BLOCKED_LONGEST);
        ended
    });
    match run {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            EXIT_FAILURE
        }
    }
}

/// The signals that ask this program to end.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From then on SIGHUP, which others send when files have changed or a terminal has gone, ends nothing: files are looked at
    /// all the time.
    pub(super) fn new() -> std::io::Result<Signals> {
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tracing::info!(
                    "SIGHUP: nothing to do: services, certificates and the like are taken up when they change"
                );
            }
        });
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for the first signal; from then on the next one ends the program at once.
    pub(super) async fn drain_then_exit(&mut self) {
        self.next().await;
        tracing::info!("draining; another signal ends at once");
        let (Ok(interrupt), Ok(terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
            return;
        };
        let mut second = Signals { interrupt, terminate };
        tokio::spawn(async move {
            second.next().await;
            std::process::exit(130);
        });
    }
}

/// What was asked of a disk is mostly done by then.
const BLOCKED_LONGEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blocks_keeps_nobody_from_the_end() {
        let (lets_go, held) = std::sync::mpsc::channel::<()>();
        let code = block_on(async {
            let (begins, begun) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                begins.send(()).unwrap();
                held.recv()
            });
            begun.await.unwrap();
            Ok(7)
        });
        assert_eq!(code, 7);
        // It was held until here.
        assert!(lets_go.send(()).is_ok());
    }
}

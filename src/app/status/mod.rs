//! `anynode status`: what a running node says of itself, for people or as JSON. It asks the node's admin server.

mod ask;
mod node;
mod services;
mod text;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

pub(super) use self::ask::admin_of;
use self::ask::{Admin, HEALTH};
use self::text::Look;
pub(super) use self::text::push_columns;
use super::up::block_on;
use super::{EXIT_CONFIG, EXIT_UNAVAILABLE, Flags, print};

/// What is asked, as it was typed.
#[derive(Debug, Clone, Default)]
pub struct StatusArgs {
    /// Names of services; empty: all.
    pub services: Vec<String>,
    pub is_json: bool,
    /// Ids and addresses too.
    pub is_verbose: bool,
    /// Again each second, until it is ended.
    pub is_watch: bool,
}

/// Prints the status of the node that `flags` lead to. Returns the exit code.
pub fn status(flags: Flags, args: &StatusArgs) -> i32 {
    let admin = match admin_of(flags) {
        Ok(admin) => admin,
        Err(code) => return code,
    };
    block_on(async {
        if args.is_watch {
            return watch(&admin, args).await;
        }
        match shown(&admin, args).await {
            Ok(text) => {
                print(&text);
                Ok(0)
            }
            Err((code, error)) => {
                eprintln!("error: {error}");
                Ok(code)
            }
        }
    })
}

/// The text of one look. Errors: the exit code, and what is wrong.
async fn shown(admin: &Admin, args: &StatusArgs) -> Result<String, (i32, String)> {
    let unavailable = |error: String| (EXIT_UNAVAILABLE, error);
    let asked = tokio::time::timeout(PATIENCE, admin.ask("/v1/status")).await;
    let body = asked
        .context("no answer in time")
        .and_then(|answer| answer)
        .map_err(|error| {
            unavailable(format!(
                "no node answers at {admin} (another address: --admin, or admin.listen): {error:#}"
            ))
        })?;
    let mut status: Value = serde_json::from_slice(&body)
        .map_err(|error| unavailable(format!("{admin} answers something else than a node would: {error}")))?;
    let look = Look::of(&std::io::stdout());
    if !args.services.is_empty() {
        services::keep(&mut status, &args.services).map_err(|error| (EXIT_CONFIG, error))?;
    }
    if args.is_json {
        return Ok(match args.services.is_empty() {
            true => String::from_utf8_lossy(&body).into_owned() + "\n",
            false => format!("{}\n", status["services"]),
        });
    }
    let mut out = String::new();
    if args.services.is_empty() {
        out = node::describe(&status);
        services::faults(&status, &mut out);
        out.push('\n');
    }
    services::describe(&status, args.is_verbose, &mut out);
    Ok(look.painted(&out))
}

/// Shows it each second, for as long as somebody reads. A node that is away may come back.
async fn watch(admin: &Admin, args: &StatusArgs) -> std::io::Result<i32> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut every = tokio::time::interval(WATCHED_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_first = true;
    loop {
        every.tick().await;
        let text = match shown(admin, args).await {
            Ok(text) => text,
            // Who has mistyped is told at once.
            Err((EXIT_CONFIG, error)) if is_first => {
                eprintln!("error: {error}");
                return Ok(EXIT_CONFIG);
            }
            Err((_, error)) => format!("! {error}\n"),
        };
        let before = match (is_terminal, is_first) {
            // From the first line on, and nothing of what was there.
            (true, _) => "\x1b[H\x1b[2J",
            (false, true) => "",
            (false, false) => "\n",
        };
        let mut out = std::io::stdout();
        // Nobody reads it any more, as behind `| head`.
        if out
            .write_all(format!("{before}{text}").as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            return Ok(0);
        }
        is_first = false;
    }
}

/// Whether the node that `flags` lead to does its work, on one line. Returns the exit code: 0, or 69.
pub fn health(flags: Flags) -> i32 {
    let admin = match admin_of(flags) {
        Ok(admin) => admin,
        Err(code) => return code,
    };
    block_on(async {
        let asked = tokio::time::timeout(PATIENCE, admin.ask(HEALTH)).await;
        match asked.context("no answer in time").and_then(|answer| answer) {
            Ok(said) => {
                print(&String::from_utf8_lossy(&said));
                Ok(0)
            }
            Err(error) => {
                eprintln!("error: the node at {admin}: {error:#}");
                Ok(EXIT_UNAVAILABLE)
            }
        }
    })
}

const PATIENCE: Duration = Duration::from_secs(5);
const WATCHED_EVERY: Duration = Duration::from_secs(1);

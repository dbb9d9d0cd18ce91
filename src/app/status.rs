//! `anynode status`: what a running node says of itself, for people or as JSON. It asks the node's admin server.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::config::Config;
use super::up::block_on;
use super::{EXIT_CONFIG, EXIT_UNAVAILABLE, Flags, print};
use crate::admin::read_token;
use crate::link::Token;
use crate::model::first_of;

/// Prints the status of the node that `flags` lead to. Returns the exit code.
pub fn status(flags: Flags, is_json: bool) -> i32 {
    let admin = match admin_of(flags) {
        Ok(admin) => admin,
        Err(code) => return code,
    };
    block_on(async {
        let asked = tokio::time::timeout(PATIENCE, admin.ask("/v1/status")).await;
        let shown = match asked.context("no answer in time").and_then(|answer| answer) {
            Ok(body) if is_json => String::from_utf8_lossy(&body).into_owned() + "\n",
            Ok(body) => match serde_json::from_slice(&body) {
                Ok(status) => describe(&status),
                Err(error) => {
                    eprintln!("error: {admin} answers something else than a node would: {error}");
                    return Ok(EXIT_UNAVAILABLE);
                }
            },
            Err(error) => {
                eprintln!("error: no node answers at {admin} (another address: --admin, or admin.listen): {error:#}");
                return Ok(EXIT_UNAVAILABLE);
            }
        };
        print(&shown);
        Ok(0)
    })
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

const HEALTH: &str = "/healthz";

/// The admin server that is asked, and what lets in where it is another machine's.
pub(super) struct Admin {
    /// As it was said.
    shown: String,
    /// One after the other is tried.
    addresses: Vec<SocketAddr>,
    /// Errors: why there is none. Health is told without.
    token: Result<Option<Token>, String>,
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Where the node that `flags` lead to is asked: an address, or with `--admin` a name with a port too. Errors: the exit code, what
/// is wrong having been printed.
pub(super) fn admin_of(mut flags: Flags) -> Result<Admin, i32> {
    let is_name = |text: &String| text.parse::<SocketAddr>().is_err() && text.contains(':');
    let name = flags.admin.take_if(|text| is_name(text));
    let config = Config::load_or_say(flags)?;
    let (shown, addresses) = match (name, config.admin) {
        (Some(name), _) => match name.to_socket_addrs() {
            Ok(addresses) => (name, addresses.collect()),
            Err(error) => {
                eprintln!(
                    "error: --admin {name}: expected an address or a name with a port, such as 127.0.0.1:9377: {error}"
                );
                return Err(EXIT_CONFIG);
            }
        },
        (None, Some(address)) => (address.to_string(), vec![address]),
        (None, None) => {
            eprintln!("error: admin.listen = \"none\": expected the address of a node's admin server");
            return Err(EXIT_CONFIG);
        }
    };
    // All addresses lead to this machine's own.
    let is_near = addresses.iter().all(|address| {
        let ip = address.ip().to_canonical();
        ip.is_loopback() || ip.is_unspecified()
    });
    // Who asks on the node itself need not be able to read it.
    let token = match config.admin_settings.token_file {
        Some(path) if !is_near => read_token(&path)
            .map(Some)
            .map_err(|why| format!("admin.token_file: {why}")),
        _ => Ok(None),
    };
    Ok(Admin {
        shown,
        addresses,
        token,
    })
}

impl Admin {
    /// Errors: it does not answer, or not with success; then what it says is part of it.
    pub(super) async fn ask(&self, path: &str) -> anyhow::Result<Bytes> {
        let stream = TcpStream::connect(&self.addresses[..]).await.context("connect")?;
        let host = stream.peer_addr().context("connect")?.to_string();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::get(path).header(header::HOST, host);
        let token = match &self.token {
            _ if path == HEALTH => None,
            Ok(token) => token.as_ref(),
            Err(why) => bail!("{why}"),
        };
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.as_str()));
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        connection.abort();
        match body {
            Ok(body) if status.is_success() => Ok(body.to_bytes()),
            Ok(body) => bail!("{status}: {}", String::from_utf8_lossy(&body.to_bytes()).trim()),
            Err(error) => bail!("{error}"),
        }
    }
}

fn describe(status: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out = format!(
        "node {}   anynode {}   {}   up {}   revision {}   source {}\n",
        text(&status["hostname"]),
        text(&status["version"]),
        text(&status["phase"]),
        humantime::format_duration(std::time::Duration::from_secs(
            status["uptime_seconds"].as_u64().unwrap_or(0)
        )),
        text(&status["revision"]),
        text(&status["source"]["state"]),
    );
    if let Some(reason) = status["source"]["reason"].as_str() {
        let known = match (&status["source"]["is_known"], status["source"]["known_at"].as_str()) {
            (Value::Bool(false), _) => "nothing was learned yet, and nothing kept".to_owned(),
            (_, Some(at)) => format!("stale since {at}, the last good table is served"),
            _ => "the last good table is served".to_owned(),
        };
        out.push_str(&format!("! source: {known}: {reason}\n"));
    }
    if let Some(reason) = status["source"]["not_kept"].as_str() {
        out.push_str(&format!(
            "! source: what is served cannot be kept for a restart: {reason}\n"
        ));
    }
    if status["cluster"].is_object() {
        describe_cluster(&status["cluster"], &mut out);
    }
    if status["store"]["state"] == "locked" {
        out.push_str("! store: locked: nothing can be declared before \"docker swarm unlock\"\n");
    }
    if let Some(reason) = status["store"]["reason"].as_str() {
        out.push_str(&format!(
            "! store: cannot be written for {} s, what is declared goes on and changes are refused: {reason}\n",
            text(&status["store"]["failing_seconds"])
        ));
    }
    for lost in list(&status["store"]["lost"]) {
        out.push_str(&format!("! store: {}\n", text(&lost["what"])));
    }
    for (service, faults) in status["faults"].as_object().into_iter().flatten() {
        for fault in list(faults) {
            out.push_str(&format!("! service {service}: {}\n", text(&fault)));
        }
    }
    for feature in ["redirect", "assign"] {
        if let Some(missing) = status["takeover"][feature].as_str().filter(|state| *state != "on") {
            out.push_str(&format!(
                "! takeover of ports that Docker holds, {feature}: {missing}\n"
            ));
        }
    }
    for (task, fault) in status["task_network_faults"].as_object().into_iter().flatten() {
        out.push_str(&format!("! network of {task}: {}\n", text(fault)));
    }
    if let Some(why) = status["vips"].as_str()
        && !["unused", "answered", "bound", "vips = \"off\""].contains(&why)
    {
        out.push_str(&format!("! VIPs are not answered on this node: {why}\n"));
    }
    for (key, why) in status["closed"].as_object().into_iter().flatten() {
        out.push_str(&format!("! {key}: {}\n", text(why)));
    }
    describe_tls(&status["tls"], &mut out);
    for fault in list(&status["authority_faults"]) {
        out.push_str(&format!("! {}\n", text(&fault)));
    }
    describe_names(&status["names"], &mut out);
    for port in list(&status["ports"]) {
        if let Some(error) = port["error"].as_str() {
            out.push_str(&format!(
                "! port {} of {}: {error}\n",
                text(&port["listen"]),
                text(&port["service"])
            ));
        }
    }
    for port in list(&status["ports"]) {
        let of = text(&port["service"]);
        if of.starts_with("entry point ") && port["error"].is_null() {
            out.push_str(&format!(
                "{of} at {}: {}\n",
                text(&port["listen"]),
                text(&port["state"])
            ));
        }
    }
    let mut rows = vec![["SERVICE", "MODE", "VIP", "PORTS", "ENDPOINTS", "CONNECTIONS"].map(str::to_owned)];
    let mut of_endpoints = String::new();
    let mut endpoints =
        vec![["ENDPOINT", "SERVICE", "STATE", "IN FLIGHT", "TOTAL", "FAILED CONNECTS"].map(str::to_owned)];
    for service in list(&status["services"]) {
        let all = list(&service["endpoints"]);
        let doors = [list(&service["publish"]), list(&service["routes"])].concat();
        let ports: Vec<String> = doors.iter().map(text).collect();
        rows.push([
            text(&service["name"]),
            text(&service["mode"]),
            text(&service["vip"]),
            if ports.is_empty() {
                "-".to_owned()
            } else {
                ports.join(",")
            },
            count_endpoints(&all),
            text(&service["connections"]),
        ]);
        for endpoint in all {
            if let Some(why) = endpoint["opaque"].as_str() {
                of_endpoints.push_str(&format!(
                    "! opaque: {} of {} does not see its clients' addresses: {why}\n",
                    text(&endpoint["address"]),
                    text(&service["name"])
                ));
            }
            if let Some(why) = endpoint["tls_fault"].as_str() {
                of_endpoints.push_str(&format!(
                    "! TLS: {} of {} is not spoken to: {why}\n",
                    text(&endpoint["address"]),
                    text(&service["name"])
                ));
            }
            endpoints.push([
                match (endpoint["task"].as_str(), endpoint["node"].as_str()) {
                    (Some(task), Some(node)) => format!("{task} on {node} ({})", text(&endpoint["address"])),
                    _ => text(&endpoint["address"]),
                },
                text(&service["name"]),
                text(&endpoint["state"]),
                text(&endpoint["in_flight"]),
                text(&endpoint["total"]),
                text(&endpoint["connect_failures"]),
            ]);
        }
    }
    out.push_str(&of_endpoints);
    out.push('\n');
    push_columns(&rows, &mut out);
    out.push('\n');
    push_columns(&endpoints, &mut out);
    out
}

/// Names of endpoints, what is wrong with them first.
fn describe_names(names: &Value, out: &mut String) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let texts = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let all = || names.as_array().into_iter().flatten();
    for name in all() {
        let of = format!("{} of {}", text(&name["name"]), texts(&name["services"]).join(", "));
        if let Some(why) = name["fault"].as_str() {
            let known = match texts(&name["addresses"]).len() {
                0 => "no address is known".to_owned(),
                n => format!("the {n} that were known last are endpoints"),
            };
            let since = text(&name["fault_since"]);
            out.push_str(&format!("! name {of}: not resolved since {since}, {known}: {why}\n"));
        }
        if let Some(n @ 1..) = name["addresses_cut"].as_u64() {
            out.push_str(&format!(
                "! name {of}: {n} of its addresses are too many, and no endpoints\n"
            ));
        }
        for why in texts(&name["left_out"]) {
            out.push_str(&format!(
                "! name {}: an address is left out: {why}\n",
                text(&name["name"])
            ));
        }
    }
    for name in all() {
        let addresses = texts(&name["addresses"]);
        let shown = match addresses.is_empty() {
            true => "no address yet".to_owned(),
            false => first_of(&addresses, ADDRESSES_SHOWN, " "),
        };
        out.push_str(&format!(
            "name {} of {}: {shown}\n",
            text(&name["name"]),
            texts(&name["services"]).join(", ")
        ));
    }
}

/// Of one name; the endpoints below are all of them.
const ADDRESSES_SHOWN: usize = 8;

/// Certificates, what is wrong with them first.
fn describe_tls(tls: &Value, out: &mut String) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let certificates = list(&tls["certificates"]);
    for fault in list(&tls["faults"]) {
        out.push_str(&format!("! {}\n", text(&fault)));
    }
    for certificate in &certificates {
        let file = text(&certificate["file"]);
        if let Some(1..EXPIRES_SOON) = certificate["expires_seconds"].as_i64() {
            out.push_str(&format!(
                "! certificate {file} expires at {}\n",
                text(&certificate["expires_at"])
            ));
        }
    }
    for certificate in certificates
        .iter()
        .filter(|certificate| certificate["expires_at"].is_string())
    {
        let names: Vec<String> = list(&certificate["names"]).iter().map(text).collect();
        out.push_str(&format!(
            "certificate {} until {}: {}\n",
            text(&certificate["file"]),
            text(&certificate["expires_at"]),
            names.join(" ")
        ));
    }
    describe_orders(tls, out);
}

/// Certificates that are ordered.
fn describe_orders(tls: &Value, out: &mut String) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    for name in tls["ordered"].as_array().into_iter().flatten() {
        let (host, acme, state) = (text(&name["name"]), text(&name["acme"]), text(&name["state"]));
        let what = match (&*state, name["expires_at"].as_str()) {
            ("file", _) => "from a file, or declared".to_owned(),
            (_, Some(until)) => format!("until {until}, next order {}", text(&name["next_order_at"])),
            ("failed", None) => format!("none yet, next order {}", text(&name["next_order_at"])),
            _ => "none yet".to_owned(),
        };
        let by = match name["ordered_by"].as_str() {
            Some(node) => format!(", ordered by {node}"),
            None => String::new(),
        };
        let at_it = if state == "ordering" { ", being ordered" } else { "" };
        out.push_str(&format!("certificate of acme.{acme} for {host}: {what}{at_it}{by}\n"));
    }
}

/// Seconds. Whoever renews by himself has done so long before.
const EXPIRES_SOON: i64 = 14 * 24 * 3600;

/// How many of a service's endpoints take traffic for all that is known, of how many that it has, and how the others are.
fn count_endpoints(endpoints: &[Value]) -> String {
    let count = |state: &str| endpoints.iter().filter(|endpoint| endpoint["state"] == *state).count();
    let n_draining = count("draining");
    let mut shown = format!("{}/{} ready", count("ready"), endpoints.len() - n_draining);
    for state in ["untried", "failing", "resting", "unready", "draining"] {
        let n = count(state);
        if n > 0 {
            shown.push_str(&format!(", {n} {state}"));
        }
    }
    shown
}

/// The cluster: how it is learned, what is wrong, and every node.
fn describe_cluster(cluster: &Value, out: &mut String) {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let way = match cluster["way"].as_str() {
        Some("watch") => "managers' watch stream",
        Some("poll") => "polling the engine, the slow way: mount Docker's run directory for the control socket",
        Some("link") => "other nodes",
        Some("kept") => "nobody at the moment: this node's engine is silent, and no manager has anything newer",
        _ => "nobody yet",
    };
    out.push_str(&format!("cluster learned from {way}\n"));
    if let Some(error) = cluster["error"].as_str() {
        out.push_str(&format!("! cluster: {error}\n"));
    }
    let mut rows = vec![["NODE", "ROLE", "SWARM", "LINK", "ROUND TRIP", "REVISION", "LAG", "HASH"].map(str::to_owned)];
    for node in cluster["nodes"].as_array().into_iter().flatten() {
        let round_trip = node["round_trip_us"]
            .as_f64()
            .map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us / 1000.0));
        rows.push([
            text(&node["hostname"]),
            text(&node["role"]),
            format!("{} {}", text(&node["swarm"]), text(&node["availability"])),
            text(&node["link"]),
            round_trip,
            text(&node["revision"]),
            text(&node["lag"]),
            text(&node["digest"]).chars().take(12).collect(),
        ]);
        if let Some(error) = node["error"].as_str() {
            out.push_str(&format!("! node {}: {error}\n", text(&node["hostname"])));
        }
    }
    out.push('\n');
    push_columns(&rows, out);
}

pub(super) fn push_columns<const N: usize>(rows: &[[String; N]], out: &mut String) {
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(line.join("   ").trim_end());
        out.push('\n');
    }
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

//! What `anynode status` says of the node itself, what is wrong first. Not here: its services (`services`).

use serde_json::Value;

use super::text::{list, push_columns, text};
use crate::model::first_of;

pub(super) fn describe(status: &Value) -> String {
    let mut out = format!(
        "node {}   anynode {}   {}   up {}\nrevision {}   source {}\n",
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

/// The cluster: how it is learned, what is wrong, and every node.
fn describe_cluster(cluster: &Value, out: &mut String) {
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
    let mut rows = vec![["NODE", "ROLE", "SWARM", "LINK", "TRIP", "REVISION", "LAG", "HASH"].map(str::to_owned)];
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
            text(&node["digest"]).chars().take(8).collect(),
        ]);
        if let Some(error) = node["error"].as_str() {
            out.push_str(&format!("! node {}: {error}\n", text(&node["hostname"])));
        }
    }
    out.push('\n');
    push_columns(&rows, out);
}

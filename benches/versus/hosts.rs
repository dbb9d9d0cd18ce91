//! A thousand hosts of one port, in the words of each proxy: every one of them with something of its own to find.

use std::fmt::Write;
use std::path::Path;

use crate::origin::HOST;
use crate::proxies::Name;

/// How many there are.
const N_HOSTS: usize = 1000;

/// Writes the hosts into a template, in the place of `{{HOSTS}}`, and for HAProxy into a file beside it.
pub fn fill(name: Name, template: &str, dir: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut map = String::new();
    for i in 0..N_HOSTS {
        // The one that is asked for is among them.
        let host = match i {
            0 => HOST.to_owned(),
            _ => format!("h{i}.{HOST}"),
        };
        match name {
            Name::HaProxy => {
                writeln!(map, "{host} many{i}")?;
                writeln!(
                    text,
                    "backend many{i}\n  server one {{{{ENDPOINT_1}}}}\n  server two {{{{ENDPOINT_2}}}}\n  server three {{{{ENDPOINT_3}}}}"
                )?;
            }
            Name::Nginx => writeln!(
                text,
                "  server {{\n    listen {{{{MANY_HOSTS}}}};\n    server_name {host};\n    include {{{{DIR}}}}/proxied.conf;\n  }}"
            )?,
            Name::Envoy => writeln!(
                text,
                "                    - {{ name: many{i}, domains: [\"{host}\"], routes: [{{ match: {{ prefix: \"/\" }}, route: {{ cluster: origin, timeout: 0s }} }}] }}"
            )?,
            Name::Traefik => writeln!(
                text,
                "    many{i}: {{ rule: \"Host(`{host}`)\", entryPoints: [many], service: origin }}"
            )?,
            Name::Anynode | Name::AnynodeOpaque => writeln!(
                text,
                "  many{i}:\n    route: Host(`{host}`)\n    entrypoints: [many]\n    endpoints: [{{{{ENDPOINT_1}}}}, {{{{ENDPOINT_2}}}}, {{{{ENDPOINT_3}}}}]"
            )?,
        }
    }
    match name {
        Name::HaProxy => std::fs::write(dir.join("hosts.map"), map)?,
        Name::Nginx => std::fs::write(dir.join("proxied.conf"), include_str!("peers/nginx-proxied.conf"))?,
        _ => {}
    }
    Ok(template.replace("{{HOSTS}}", text.trim_end()))
}

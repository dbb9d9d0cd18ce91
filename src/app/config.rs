//! The configuration of a node: the only place that reads its file and its environment variables, and that knows which
//! key is whose. Defaults stand once, in `config/anynode.toml`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::Ipv4Net;
use toml::Value;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::EXIT_CONFIG;
use super::entry_points::networks;
use super::settings::{SettingError, Settings, UnknownVariable};
use crate::admin::AdminSettings;
use crate::agent::process::UserRange;
use crate::model::swarm::Generic;
use crate::model::{CaName, EntryPointSpec, parse_duration};
use crate::proxy::{ProxyConfig, VipMode};
use crate::sys::socket::Liveness;
use crate::takeover::Mode;
use crate::tls::TlsConfig;

/// Everything that a node is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `None`: no services file.
    pub services: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub log: String,
    pub shutdown_grace: Duration,
    /// How long connections may go on at an instance whose place was taken by a new one, unless it is asked to end.
    pub handoff_grace: Duration,
    /// How long an instance whose place was taken waits to be stopped before it ends by itself.
    pub superseded_wait: Duration,
    pub vip_network: Ipv4Net,
    /// `None`: off.
    pub admin: Option<SocketAddr>,
    pub admin_settings: AdminSettings,
    pub dns: Option<SocketAddr>,
    pub dns_upstreams: Vec<SocketAddr>,
    pub dns_upstream_timeout: Duration,
    pub proxy: ProxyConfig,
    /// Ports that services share by routes; no two at one place.
    pub entry_points: Vec<EntryPointSpec>,
    /// For those of them that end TLS.
    pub tls: TlsConfig,
    /// Files of authorities (PEM) by which endpoints are judged, by name.
    pub authorities: BTreeMap<CaName, PathBuf>,
    /// `None`: this node serves no Docker Swarm.
    pub swarm: Option<SwarmConfig>,
    /// `None`: this node is no swarm by itself.
    pub own: Option<OwnConfig>,
    /// Variables that look like ours and mean nothing.
    pub unknown_variables: Vec<UnknownVariable>,
}

/// What a node that is a swarm by itself is told.
#[derive(Debug, Clone)]
pub struct OwnConfig {
    /// Traefik's labels are read beside ours.
    pub reads_traefik: bool,
    /// Where the Docker Engine API is served.
    pub api: PathBuf,
    pub engine: EngineChoice,
    /// Commands of tasks that run as processes, by image name.
    pub images: BTreeMap<String, Vec<String>>,
    /// Where such tasks' addresses are from, if each has a network of its own.
    pub process_addresses: Option<Ipv4Net>,
    /// Whom they run as where nobody is named, if this program is root.
    pub process_users: UserRange,
    /// What this node has of kinds that users name.
    pub generic: Generic,
}

/// Which Docker Engine runs the tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineChoice {
    /// The usual one, if it answers.
    Usual,
    None,
    Socket(PathBuf),
}

/// What a node of a Docker Swarm is told.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Traefik's labels are read beside ours.
    pub reads_traefik: bool,
    pub docker_socket: PathBuf,
    pub control_socket: PathBuf,
    pub takeover: Mode,
    /// Tasks reach services of their networks through anynode, and not through Docker's overlay.
    pub services_inside: bool,
    /// Where other nodes connect to; `None`: no link, and only tasks of this node are reached.
    pub link: Option<SocketAddr>,
    pub token_file: PathBuf,
    pub certificate_life: Duration,
    /// Joining nodes must come from the address that the swarm knows them by.
    pub link_checks_address: bool,
}

/// What the command line may say; it wins over everything else.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub services: Option<String>,
    pub data_dir: Option<String>,
    pub admin: Option<String>,
    pub dns: Option<String>,
    /// Belong to a Docker Swarm.
    pub is_swarm: bool,
    pub api: Option<String>,
    pub engine: Option<String>,
}

/// The file with every key and its default.
pub const DEFAULTS: &str = include_str!("../../config/anynode.toml");

/// Variables with a name of their own, beside those that are spelled like their key.
const SHORT: &[(&str, &str)] = &[
    ("ADMIN", "admin.listen"),
    ("DNS", "dns.listen"),
    ("SWARM", "swarm.enabled"),
    ("API", "api.socket"),
    ("ENGINE", "api.engine"),
];

impl Config {
    /// Reads the file that `flags` or ANYNODE_CONFIG name, the environment and the flags.
    ///
    /// Errors: everything that is wrong, each with where it was said, key, value and what was expected.
    pub fn load(flags: Flags) -> Result<Config, Vec<SettingError>> {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Config::load_from(flags, &variables)
    }

    /// Reads the configuration as a command does. Errors: the exit code, everything that is wrong having been printed.
    pub(super) fn load_or_say(flags: Flags) -> Result<Config, i32> {
        Config::load(flags).map_err(|errors| {
            errors.iter().for_each(|error| eprintln!("error: {error}"));
            EXIT_CONFIG
        })
    }

    fn load_from(flags: Flags, variables: &[(String, String)]) -> Result<Config, Vec<SettingError>> {
        let mut settings = Settings::defaults(DEFAULTS).map_err(|error| vec![error])?;
        let named = variables
            .iter()
            .find(|(name, _)| name == "ANYNODE_CONFIG")
            .map(|(_, path)| PathBuf::from(path));
        if let Some(path) = flags.config.or(named) {
            let shown = path.display().to_string();
            match std::fs::read_to_string(&path) {
                Ok(text) => settings.take_file(&shown, &text),
                Err(error) => {
                    let message = format!("cannot be read: {error}");
                    return Err(vec![SettingError::File { path: shown, message }]);
                }
            }
        }
        settings.take_variables(variables.iter().cloned(), SHORT);
        settings.take_flag("--services", "services", flags.services);
        settings.take_flag("--data-dir", "data_dir", flags.data_dir);
        settings.take_flag("--admin", "admin.listen", flags.admin);
        settings.take_flag("--dns", "dns.listen", flags.dns);
        let is_swarm = flags.is_swarm.then(|| "true".to_owned());
        settings.take_flag("--swarm", "swarm.enabled", is_swarm);
        settings.take_flag("--api", "api.socket", flags.api);
        settings.take_flag("--engine", "api.engine", flags.engine);
        Config::read(settings)
    }

    fn read(mut settings: Settings) -> Result<Config, Vec<SettingError>> {
        let s = &mut settings;
        let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
        let liveness = Liveness {
            keepalive_idle: duration(s, "tcp.keepalive_idle"),
            keepalive_interval: duration(s, "tcp.keepalive_interval"),
            keepalive_count: integer(s, "tcp.keepalive_count", 1, 127) as u32,
            user_timeout: duration(s, "tcp.user_timeout"),
        };
        let vip_network = s.value(
            "vip_network",
            "an IPv4 network such as \"127.77.0.0/16\"",
            FALLBACK_NETWORK,
            |value| Some(value.as_str()?.parse::<Ipv4Net>().ok()?.trunc()),
        );
        let proxy = ProxyConfig {
            n_workers: match integer(s, "workers", 0, 1024) {
                0 => n_cores,
                n => n,
            },
            liveness,
            connections_max: match integer(s, "tcp.connections_max", 0, 1 << 30) {
                0 => usize::MAX,
                n => n,
            },
            files_max: usize::MAX,
            park_after: duration(s, "tcp.park_after"),
            splice_pipes: integer(s, "splice.pipes", 0, 1 << 20),
            splice_pipe_bytes: integer(s, "splice.pipe_bytes", 4096, 1 << 30),
            http_head_bytes_max: integer(s, "http.head_bytes_max", 1024, 16 << 20),
            http_fields_max: integer(s, "http.fields_max", 1, crate::proxy::http::FIELDS_MOST),
            http_pool_idle: duration(s, "http.pool_idle"),
            http_pool_per_endpoint: integer(s, "http.pool_per_endpoint", 0, 1 << 20),
            trusted_proxies: s.value(
                "trusted_proxies",
                "networks such as [\"10.0.0.0/8\"]",
                Vec::new(),
                networks,
            ),
            vips: s.value("vips", "\"auto\", \"bind\" or \"off\"", VipMode::default(), |value| {
                value.as_str()?.parse().ok()
            }),
            vip_network,
        };
        let reads_traefik = boolean(s, "labels.traefik");
        let swarm = SwarmConfig {
            reads_traefik,
            docker_socket: PathBuf::from(text(s, "swarm.docker_socket")),
            control_socket: PathBuf::from(text(s, "swarm.control_socket")),
            services_inside: boolean(s, "swarm.services_inside"),
            takeover: s.value(
                "swarm.takeover",
                "\"auto\", \"on\" or \"off\"",
                Mode::default(),
                |value| value.as_str()?.parse().ok(),
            ),
            link: address(s, "link.listen"),
            token_file: PathBuf::from(text(s, "link.token_file")),
            certificate_life: duration(s, "link.certificate_life"),
            link_checks_address: boolean(s, "link.check_address"),
        };
        let is_swarm = boolean(s, "swarm.enabled");
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let api = s.value(
            "api.socket",
            "a path such as \"unix:///run/anynode/docker.sock\", or \"none\"",
            None,
            |value| match value.as_str()? {
                "none" => Some(None),
                "" => Some(Some(default_api_socket())),
                text => socket_path(text).map(Some),
            },
        );
        let engine = s.value(
            "api.engine",
            "a path such as \"unix:///var/run/docker.sock\", or \"none\"",
            EngineChoice::Usual,
            |value| match value.as_str()? {
                "none" => Some(EngineChoice::None),
                "" => Some(EngineChoice::Usual),
                text => socket_path(text).map(EngineChoice::Socket),
            },
        );
        let images = s.value(
            "process.images",
            "a command for each image, such as { \"web:1.0\" = [\"/usr/bin/web\", \"--port\", \"8000\"] }",
            BTreeMap::new(),
            commands,
        );
        let has_own_network = s.value("process.network", "\"own\", or \"host\"", true, |value| {
            match value.as_str()? {
                "own" => Some(true),
                "host" => Some(false),
                _ => None,
            }
        });
        let addresses = s.value(
            "process.addresses",
            "an IPv4 network of at least 4 addresses, such as \"198.18.0.0/16\"",
            PROCESS_ADDRESSES,
            |value| {
                let network = value.as_str()?.parse::<Ipv4Net>().ok()?.trunc();
                (network.prefix_len() <= 30).then_some(network)
            },
        );
        let process_addresses = has_own_network.then_some(addresses);
        let process_users = s.value(
            "process.users",
            "two numbers from 1000 on, the lower one first, such as \"2000000000-2000065535\"",
            UserRange::DEFAULT,
            |value| UserRange::parse(value.as_str()?),
        );
        let generic = s.value(
            "api.node_generic_resources",
            "KIND=NUMBER or KIND=NAME for each, such as [\"ssd=3\", \"gpu=GPU-1\", \"gpu=GPU-2\"]",
            Generic::default(),
            |value| {
                let terms: Option<Vec<&str>> = value.as_array()?.iter().map(|term| term.as_str()).collect();
                Generic::read(terms?).ok()
            },
        );
        let own = api.map(|api| OwnConfig {
            reads_traefik,
            api,
            engine,
            images,
            process_addresses,
            process_users,
            generic,
        });
        let services = path(text(s, "services"));
        // Services come from one source.
        let own = own.filter(|_| !is_swarm && services.is_none());
        let (entry_points, tls) = super::entry_points::read(s, own.is_some());
        let authorities = authorities(s);
        let config = Config {
            services,
            data_dir: path(text(s, "data_dir")).unwrap_or_else(default_data_dir),
            log: s.value(
                "log",
                "a level (off, error, warn, info, debug or trace), or levels by module such as \"info,anynode::proxy=debug\"",
                String::new(),
                |value| value.as_str().filter(|text| is_log_filter(text)).map(str::to_owned),
            ),
            shutdown_grace: duration(s, "shutdown_grace"),
            handoff_grace: duration(s, "handoff_grace"),
            superseded_wait: duration(s, "superseded_wait"),
            vip_network,
            admin: address(s, "admin.listen"),
            admin_settings: AdminSettings {
                token_file: path(text(s, "admin.token_file")),
                hosts: s.value("admin.hosts", "names such as [\"mesh.example\"]", Vec::new(), |value| {
                    value.as_array()?.iter().map(|name| host_name(name.as_str()?)).collect()
                }),
            },
            dns: address(s, "dns.listen"),
            dns_upstreams: list(s, "dns.upstreams", "addresses with ports such as [\"10.0.0.53:53\"]"),
            dns_upstream_timeout: duration(s, "dns.upstream_timeout"),
            proxy,
            entry_points,
            tls,
            authorities,
            own,
            swarm: is_swarm.then_some(swarm),
            unknown_variables: s.strangers().to_vec(),
        };
        let is_unlinked = config.swarm.as_ref().is_some_and(|swarm| swarm.link.is_none());
        if is_unlinked && !config.tls.acme.is_empty() {
            settings.conflict(
                "acme",
                "none where link.listen = \"none\" in a swarm: authorities may ask any node, so that nodes have to tell one another",
            );
        }
        if config.swarm.is_some() && config.services.is_some() {
            settings.conflict(
                "services",
                "no services file, since swarm.enabled = true: services come from one source",
            );
        }
        match settings.into_errors() {
            errors if errors.is_empty() => Ok(config),
            errors => Err(errors),
        }
    }
}

/// Given to measurements of devices, so that no network has them (RFC 2544).
const PROCESS_ADDRESSES: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(198, 18, 0, 0), 16);
const FALLBACK_NETWORK: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 77, 0, 0), 16);

/// Whether a filter of logs means something. A word that is no level would be taken for a module, and silence all others.
fn is_log_filter(text: &str) -> bool {
    let is_meant = |word: &str| {
        let is_level = word.parse::<LevelFilter>().is_ok();
        let is_module = word.contains(['=', '[', ':']) || word == "anynode";
        is_level || is_module
    };
    // What stands in brackets may have commas of its own, and is the parser's to judge.
    let plain = text.contains('[') || text.split(',').map(str::trim).all(is_meant);
    plain && text.parse::<EnvFilter>().is_ok()
}

fn text(settings: &mut Settings, key: &str) -> String {
    settings.value(key, "a string", String::new(), |value| {
        value.as_str().map(str::to_owned)
    })
}

fn duration(settings: &mut Settings, key: &str) -> Duration {
    settings.value(
        key,
        "a duration such as \"500ms\" or \"10s\"",
        Duration::ZERO,
        |value| parse_duration(value.as_str()?).ok(),
    )
}

fn boolean(settings: &mut Settings, key: &str) -> bool {
    settings.value(key, "true or false", false, |value| match value {
        Value::Boolean(is) => Some(*is),
        _ => match value.as_str()? {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        },
    })
}

fn integer(settings: &mut Settings, key: &str, least: usize, most: usize) -> usize {
    let expected = format!("a whole number from {least} to {most}");
    settings.value(key, &expected, least, |value| {
        let number = usize::try_from(value.as_integer()?).ok()?;
        (least..=most).contains(&number).then_some(number)
    })
}

fn address(settings: &mut Settings, key: &str) -> Option<SocketAddr> {
    settings.value(
        key,
        "an address with a port such as \"127.0.0.1:9377\", or \"none\"",
        None,
        |value| match value.as_str()? {
            "none" => Some(None),
            text => text.parse().ok().map(Some),
        },
    )
}

fn list<T: FromStr>(settings: &mut Settings, key: &str, expected: &str) -> Vec<T> {
    settings.value(key, expected, Vec::new(), |value| {
        let items = value.as_array()?.iter();
        items.map(|item: &Value| item.as_str()?.parse().ok()).collect()
    })
}

/// A name that a browser may ask by, in lower case.
fn host_name(text: &str) -> Option<String> {
    let is_meant = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let name = text.trim_end_matches('.');
    (!name.is_empty() && name.chars().all(is_meant)).then(|| name.to_ascii_lowercase())
}

/// `unix://PATH`, or the path alone if it is whole.
fn socket_path(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(text));
    path.is_absolute().then_some(path)
}

/// Files by names. What is wrong is noted.
fn authorities(settings: &mut Settings) -> BTreeMap<CaName, PathBuf> {
    let key = "authorities";
    let expected = "paths by name, such as { internal = \"ca.pem\" }";
    let declared = settings.value(key, expected, toml::Table::new(), |value| value.as_table().cloned());
    let mut files = BTreeMap::new();
    for (name, value) in &declared {
        let path = value.as_str().filter(|path| !path.is_empty());
        let expected = match (name.parse::<CaName>(), path) {
            (Ok(parsed), Some(path)) => match files.insert(parsed, PathBuf::from(path)) {
                None => continue,
                Some(_) => "another name: letters of either case are the same".to_owned(),
            },
            (Ok(_), None) => "a path to certificates of authorities in PEM".to_owned(),
            (Err(error), _) => error.expected.to_string(),
        };
        settings.wrong_within(key, name, &value.to_string(), &expected);
    }
    files
}

fn commands(value: &Value) -> Option<BTreeMap<String, Vec<String>>> {
    let command = |value: &Value| -> Option<Vec<String>> {
        let words = value.as_array()?.iter();
        let words: Option<Vec<String>> = words.map(|word| word.as_str().map(str::to_owned)).collect();
        words.filter(|words| !words.is_empty())
    };
    let images = value.as_table()?.iter();
    images
        .map(|(image, words)| Some((image.clone(), command(words)?)))
        .collect()
}

fn default_api_socket() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match runtime {
        Some(dir) if !rustix::process::geteuid().is_root() => PathBuf::from(dir).join("anynode/docker.sock"),
        _ if rustix::process::geteuid().is_root() => PathBuf::from("/run/anynode/docker.sock"),
        _ => default_data_dir().join("docker.sock"),
    }
}

fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/anynode");
    }
    let dir = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let state = dir("XDG_STATE_HOME").or_else(|| Some(dir("HOME")?.join(".local/state")));
    state.unwrap_or_else(std::env::temp_dir).join("anynode")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, variables: &[(&str, &str)], flags: Flags) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let flags = Flags {
            config: Some(path),
            ..flags
        };
        Config::load_from(flags, &variables).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            lines.join("\n").replace(&dir.path().display().to_string(), "")
        })
    }

    #[test]
    fn the_file_with_every_key_says_what_the_rooms_have_as_defaults() {
        let config = load(DEFAULTS, &[], Flags::default()).unwrap();
        let rooms = ProxyConfig {
            n_workers: config.proxy.n_workers,
            ..ProxyConfig::default()
        };
        assert_eq!(format!("{:?}", config.proxy), format!("{rooms:?}"));
        assert_eq!(config.vip_network, FALLBACK_NETWORK);
        let empty = load("", &[], Flags::default()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{empty:?}"));
    }

    #[test]
    fn flags_override_variables_override_the_file() {
        let file = "services = 'file'\nworkers = 3\n[admin]\nlisten = '127.0.0.1:1'\n[dns]\nlisten = '127.0.0.1:2'\n";
        let variables = [
            ("ANYNODE_SERVICES", "variable"),
            ("ANYNODE_ADMIN", "127.0.0.1:3"),
            ("ANYNODE_TCP_USER_TIMEOUT", "7s"),
        ];
        let flags = Flags {
            services: Some("flag".to_owned()),
            ..Flags::default()
        };
        let config = load(file, &variables, flags).unwrap();
        assert_eq!(config.services, Some("flag".into()));
        assert_eq!(config.admin, Some("127.0.0.1:3".parse().unwrap()));
        assert_eq!(config.dns, Some("127.0.0.1:2".parse().unwrap()));
        assert_eq!(
            (config.proxy.n_workers, config.proxy.liveness.user_timeout),
            (3, Duration::from_secs(7))
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_place_key_value_and_expectation() {
        let file = "workers = -1\nshutdown_grace = 10\n[admin]\nlisten = 'here'\n[tcp]\nuser_timout = '1s'\nsplice = {pipes = 1}\n";
        let variables = [
            ("ANYNODE_VIP_NETWORK", "10.0.0.0"),
            ("ANYNODE_TRUSTED_PROXIES", "10.0.0.0/8, x"),
        ];
        let error = load(file, &variables, Flags::default()).unwrap_err();
        for line in [
            "/c.toml:1: workers = -1: expected a whole number from 0 to 1024",
            "/c.toml:2: shutdown_grace = 10: expected a duration",
            "/c.toml:4: admin.listen = 'here': expected an address with a port",
            "/c.toml:6: tcp.user_timout: no such key",
            "tcp.splice.pipes: no such key; there is splice.pipes",
            "variable ANYNODE_VIP_NETWORK: vip_network = ",
            "variable ANYNODE_TRUSTED_PROXIES: trusted_proxies = ",
        ] {
            let quoted = line.replace('\'', "\"");
            assert!(error.contains(line) || error.contains(&quoted), "{line}\nin\n{error}");
        }
        let file = "[entrypoints.web]\nlisten = ':80'\n[entrypoints.same]\nlisten = '127.0.0.1:80'\n[entrypoints.none]\nlisten = ':0'\ntsl = true\n[entrypoints.'a b']\nlisten = '[::1]:81'\n";
        let error = load(file, &[], Flags::default()).unwrap_err();
        for line in [
            "/c.toml: entrypoints.web.listen = \":80\": expected another address or port than that of entrypoints.same",
            "/c.toml: entrypoints.none.listen = \":0\": expected an address with a port from 1",
            "/c.toml: entrypoints.none.tsl = true: expected no such key: there is listen, tls, redirect",
            "/c.toml: entrypoints.a b = ",
        ] {
            assert!(error.contains(line), "{line}\nin\n{error}");
        }
        let variable = [("ANYNODE_ENTRYPOINTS", "{ web = { listen = '[::]:80' } }")];
        let config = load("", &variable, Flags::default()).unwrap();
        let web = &config.entry_points[0];
        assert_eq!((web.name.as_str(), web.ip, web.port), ("web", None, 80));
        let error = load("workers = \n", &[], Flags::default()).unwrap_err();
        assert!(error.starts_with("/c.toml:1: "), "{error}");
    }
}

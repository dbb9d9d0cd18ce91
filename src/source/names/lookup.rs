//! Asks for the addresses of one name: the hosts file, then name servers, one after the other, with the search domains of
//! resolv.conf. Both files are read again when they change. Not here: when to ask, and what becomes of an answer (`book`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;

use super::book::{Answer, Failure};
use super::hosts;
use crate::model::EndpointName;

/// Who knows the addresses of names.
#[derive(Debug, Clone)]
pub struct NamesConfig {
    /// Name servers, in the order in which they are asked; empty: those of `resolv_conf`.
    pub servers: Vec<SocketAddr>,
    /// How long one of them has.
    pub timeout: Duration,
    /// Has the search domains also where `servers` names the servers.
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
}

impl Default for NamesConfig {
    fn default() -> NamesConfig {
        NamesConfig {
            servers: Vec::new(),
            timeout: Duration::from_secs(2),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            hosts: PathBuf::from("/etc/hosts"),
        }
    }
}

pub(super) struct Resolver {
    config: NamesConfig,
    /// Held while files are read: whoever asks meanwhile is to know what they say.
    state: Mutex<Option<State>>,
}

struct State {
    looked_at: Instant,
    resolv_conf: Option<Seen>,
    hosts: Option<Seen>,
    known: Arc<Known>,
}

/// What the files say.
struct Known {
    servers: Vec<Arc<Server>>,
    /// Why there are none.
    no_servers: String,
    search: Vec<Name>,
    n_dots: usize,
    hosts: Arc<str>,
}

struct Server {
    addr: SocketAddr,
    /// Of this server alone, so that the order is ours. It keeps nothing: names are asked for when they are due.
    resolver: TokioResolver,
    /// std mutex: nothing awaits under it.
    health: std::sync::Mutex<Health>,
}

#[derive(Default)]
struct Health {
    failed_until: Option<Instant>,
    answered_at: Option<Instant>,
}

/// By what a file that changed is told from one that did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    modified: SystemTime,
    len: u64,
}

impl Resolver {
    pub(super) fn new(config: NamesConfig) -> Resolver {
        Resolver {
            config,
            state: Mutex::new(None),
        }
    }

    /// Asks for both families. Time: for each server at most the timeout, for each search domain that it is asked about.
    pub(super) async fn look_up(&self, name: &EndpointName) -> Answer {
        let known = self.refreshed().await;
        let listed = hosts::addresses(&known.hosts, name.host());
        if !listed.is_empty() {
            let (v4, v6) = listed.into_iter().partition(IpAddr::is_ipv4);
            return Answer {
                v4: Ok(v4),
                v6: Ok(v6),
                ttl: HOSTS_TTL,
            };
        }
        let mut last = Answer {
            v4: Err(Failure::NoSuchName),
            v6: Err(Failure::NoSuchName),
            ttl: Duration::ZERO,
        };
        for candidate in known.candidates(name) {
            let (v4, v6) = futures_util::future::join(
                known.ask(&candidate, RecordType::A, self.config.timeout),
                known.ask(&candidate, RecordType::AAAA, self.config.timeout),
            )
            .await;
            let ttl = |family: &Result<(Vec<IpAddr>, Duration), Failure>| family.as_ref().ok().map(|(_, ttl)| *ttl);
            let answer = Answer {
                ttl: ttl(&v4).into_iter().chain(ttl(&v6)).min().unwrap_or_default(),
                v4: v4.map(|(addresses, _)| addresses),
                v6: v6.map(|(addresses, _)| addresses),
            };
            // Where it is not known whether this one is there, the next one may be another host altogether.
            let is_none = |family: &Result<Vec<IpAddr>, Failure>| family.as_ref().is_err_and(Failure::is_said);
            if !is_none(&answer.v4) || !is_none(&answer.v6) {
                return answer;
            }
            if [&answer.v4, &answer.v6].contains(&&Err(Failure::NoAddress)) {
                last = answer;
            }
        }
        last
    }

    /// What the files say, read again if they changed and were not looked at a moment ago.
    async fn refreshed(&self) -> Arc<Known> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        if let Some(state) = state
            .as_ref()
            .filter(|state| now.duration_since(state.looked_at) < LOOK_EVERY)
        {
            return state.known.clone();
        }
        let resolv_conf = seen(&self.config.resolv_conf).await;
        let hosts = seen(&self.config.hosts).await;
        if let Some(state) = state.as_mut()
            && (state.resolv_conf, state.hosts) == (resolv_conf, hosts)
        {
            state.looked_at = now;
            return state.known.clone();
        }
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let text = read(&self.config.hosts).await;
        let conf = read(&self.config.resolv_conf).await;
        // What cannot be read for now says what it said, and is read again with the next look.
        let before = state.as_ref().map(|state| state.known.clone());
        let unread = [
            text.as_ref().is_err_and(|error| !is_missing(error)),
            conf.as_ref().is_err_and(|error| !is_missing(error)),
        ];
        let known = match (&before, unread) {
            (Some(before), [true, true]) => before.clone(),
            (Some(before), [false, true]) => Arc::new(before.with_hosts(text.unwrap_or_default())),
            (Some(before), [true, false]) => Arc::new(Known::new(&self.config, conf, before.hosts.to_string())),
            (_, _) => Arc::new(Known::new(&self.config, conf, text.unwrap_or_default())),
        };
        *state = Some(State {
            looked_at: now,
            resolv_conf: resolv_conf.filter(|_| !unread[1]),
            hosts: hosts.filter(|_| !unread[0]),
            known: known.clone(),
        });
        known
    }
}

impl Known {
    fn new(config: &NamesConfig, resolv_conf: io::Result<String>, hosts: String) -> Known {
        let path = config.resolv_conf.display();
        let system = match resolv_conf {
            // One without a name server is no fault where others are given.
            Ok(text) if !config.servers.is_empty() => {
                let text = format!("{text}\nnameserver 127.0.0.1\n");
                parse_resolv_conf(&text).map_err(|error| format!("{path}: {error}"))
            }
            Ok(text) => parse_resolv_conf(&text).map_err(|error| format!("{path}: {error}")),
            Err(error) => Err(format!("{path}: {error}")),
        };
        let (mut servers, mut no_servers) = (config.servers.clone(), String::new());
        let (mut search, mut n_dots) = (Vec::new(), ResolverOpts::default().ndots);
        match system {
            Ok((system, options)) => {
                let (domain, of_system, of_servers) = system.into_parts();
                // Without any, the domain of this machine's own name is searched.
                search = if of_system.is_empty() {
                    domain.into_iter().collect()
                } else {
                    of_system
                };
                search.truncate(SEARCH_MAX);
                n_dots = options.ndots;
                if servers.is_empty() {
                    let of_servers = of_servers.into_iter().take(SERVERS_MAX);
                    servers = of_servers.map(|server| SocketAddr::new(server.ip, 53)).collect();
                }
            }
            Err(error) => no_servers = error,
        }
        let server = |addr: SocketAddr| Server::new(addr, config.timeout).map(Arc::new);
        let servers: Result<Vec<_>, NetError> = servers.into_iter().map(server).collect();
        let servers = servers.unwrap_or_else(|error| {
            no_servers = error.to_string();
            Vec::new()
        });
        Known {
            servers,
            no_servers,
            search,
            n_dots,
            hosts: hosts.into(),
        }
    }

    fn with_hosts(&self, hosts: String) -> Known {
        Known {
            servers: self.servers.clone(),
            no_servers: self.no_servers.clone(),
            search: self.search.clone(),
            n_dots: self.n_dots,
            hosts: hosts.into(),
        }
    }

    /// The whole names that `name` may stand for, in the order in which they are tried.
    fn candidates(&self, name: &EndpointName) -> Vec<Name> {
        let Ok(mut as_it_is) = Name::from_ascii(name.host()) else {
            return Vec::new();
        };
        let relative = as_it_is.clone();
        as_it_is.set_fqdn(true);
        if name.is_whole() {
            return vec![as_it_is];
        }
        let mut all: Vec<Name> = Vec::with_capacity(self.search.len() + 1);
        for domain in &self.search {
            // Too long together: then there is no such name.
            all.extend(relative.clone().append_domain(domain).ok().map(|mut name| {
                name.set_fqdn(true);
                name
            }));
        }
        let n_dots = name.host().matches('.').count();
        let place = if n_dots >= self.n_dots { 0 } else { all.len() };
        all.insert(place, as_it_is);
        all
    }

    /// Asks the servers in their order, those that failed lately last, until one answers.
    async fn ask(
        &self,
        name: &Name,
        record: RecordType,
        timeout: Duration,
    ) -> Result<(Vec<IpAddr>, Duration), Failure> {
        let mut failure = Failure::Other(match self.no_servers.is_empty() {
            true => "no name server is known".to_owned(),
            false => format!("no name server is known: {}", self.no_servers),
        });
        let now = Instant::now();
        let (well, ill): (Vec<_>, Vec<_>) = self.servers.iter().partition(|server| !server.has_failed(now));
        for server in well.into_iter().chain(ill) {
            let asked_at = Instant::now();
            match tokio::time::timeout(timeout, server.resolver.lookup(name.clone(), record)).await {
                Ok(Ok(lookup)) => {
                    server.answered();
                    let answers = lookup.answers();
                    let meant = answers.iter().filter(|answer| answer.record_type() == record);
                    let addresses = meant.filter_map(|answer| answer.data.ip_addr()).collect();
                    let ttl = answers.iter().map(|answer| answer.ttl).min().unwrap_or(0);
                    return Ok((addresses, Duration::from_secs(ttl.into())));
                }
                Ok(Err(error)) => match judge(&error, server.addr) {
                    Judged::Final(failure) => {
                        server.answered();
                        return Err(failure);
                    }
                    Judged::AskAnother(of_server) => failure = of_server,
                    Judged::Ill(of_server) => {
                        server.failed(asked_at);
                        failure = of_server;
                    }
                },
                Err(_) => {
                    server.failed(asked_at);
                    failure = Failure::Silence;
                }
            }
        }
        Err(failure)
    }
}

enum Judged {
    /// It is so.
    Final(Failure),
    /// The server cannot say.
    AskAnother(Failure),
    /// Nor is it likely to soon.
    Ill(Failure),
}

fn judge(error: &NetError, server: SocketAddr) -> Judged {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Judged::Final(Failure::NoSuchName),
            ResponseCode::NoError => Judged::Final(Failure::NoAddress),
            code => Judged::AskAnother(refused(code, server)),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => Judged::AskAnother(refused(*code, server)),
        NetError::Timeout => Judged::Ill(Failure::Silence),
        NetError::Io(_) | NetError::NoConnections => Judged::Ill(Failure::Other(format!(
            "the name server {server} cannot be reached: {error}"
        ))),
        _ => Judged::AskAnother(Failure::Other(format!("the name server {server}: {error}"))),
    }
}

fn refused(code: ResponseCode, server: SocketAddr) -> Failure {
    let said = match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        code => code.to_string(),
    };
    Failure::Other(format!("the name server {server} answers {said}"))
}

impl Server {
    fn new(addr: SocketAddr, timeout: Duration) -> Result<Server, NetError> {
        let at_port = |mut connection: ConnectionConfig| {
            connection.port = addr.port();
            connection
        };
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(at_port);
        let server = NameServerConfig::new(addr.ip(), true, connections.into());
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = timeout;
        options.attempts = 0;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        // Ports that other programs are to have are not taken from them.
        options.os_port_selection = true;
        Ok(Server {
            addr,
            resolver: builder.build()?,
            health: std::sync::Mutex::default(),
        })
    }

    fn has_failed(&self, now: Instant) -> bool {
        self.health().failed_until.is_some_and(|until| until > now)
    }

    fn answered(&self) {
        *self.health() = Health {
            failed_until: None,
            answered_at: Some(Instant::now()),
        };
    }

    /// It was asked then, and said nothing. Where it has answered others meanwhile the zone is slow, and the server is well.
    fn failed(&self, asked_at: Instant) {
        let mut health = self.health();
        if health.answered_at.is_none_or(|at| at < asked_at) {
            health.failed_until = Some(Instant::now() + FAILED_FOR);
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn seen(path: &Path) -> Option<Seen> {
    let file = tokio::fs::metadata(path).await.ok()?;
    Some(Seen {
        modified: file.modified().ok()?,
        len: file.len(),
    })
}

/// The beginning of a file, as far as it is text.
async fn read(path: &Path) -> io::Result<String> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A hosts file says nothing of how long its addresses are good for.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// How long a server that failed is asked last.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// As the C library has them.
const SERVERS_MAX: usize = 3;
const SEARCH_MAX: usize = 6;
/// A hosts file of so many bytes has some 100,000 lines.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(resolv_conf: &str, name: &str) -> Vec<String> {
        let known = Known::new(&NamesConfig::default(), Ok(resolv_conf.to_owned()), String::new());
        let all = known.candidates(&name.parse().unwrap());
        all.iter().map(Name::to_ascii).collect()
    }

    #[tokio::test]
    async fn search_domains_are_tried_as_the_system_does() {
        let two = "nameserver 127.0.0.1\nsearch a.test b.test\n";
        for (conf, name, expect) in [
            (two, "db", &["db.a.test.", "db.b.test.", "db."][..]),
            (two, "db.x", &["db.x.", "db.x.a.test.", "db.x.b.test."]),
            (two, "db.", &["db."]),
            (two, "db.x.", &["db.x."]),
            (
                "nameserver 127.0.0.1\nsearch a.test\noptions ndots:2\n",
                "db.x",
                &["db.x.a.test.", "db.x."],
            ),
        ] {
            assert_eq!(candidates(conf, name), expect, "{name}");
        }
    }

    #[tokio::test]
    async fn servers_are_the_configuration_s_or_resolv_conf_s() {
        let servers = |config: &NamesConfig, conf: io::Result<&str>| {
            let known = Known::new(config, conf.map(str::to_owned), String::new());
            let shown: Vec<String> = known.servers.iter().map(|server| server.addr.to_string()).collect();
            (shown.join(" "), known.no_servers)
        };
        let (usual, said) = (
            NamesConfig::default(),
            NamesConfig {
                servers: vec!["10.0.0.9:5353".parse().unwrap()],
                ..NamesConfig::default()
            },
        );
        let conf = "nameserver 10.0.0.1\nnameserver ::1\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        assert_eq!(servers(&usual, Ok(conf)).0, "10.0.0.1:53 [::1]:53 10.0.0.3:53");
        assert_eq!(servers(&said, Ok(conf)).0, "10.0.0.9:5353");
        assert_eq!(
            servers(&said, Ok("search a.test\n")),
            ("10.0.0.9:5353".to_owned(), String::new())
        );
        assert_eq!(servers(&said, Err(io::ErrorKind::NotFound.into())).0, "10.0.0.9:5353");
        let (none, why) = servers(&usual, Ok("search a.test\n"));
        assert!(none.is_empty() && why.starts_with("/etc/resolv.conf: "), "{none} {why}");
    }

    #[tokio::test]
    async fn a_name_of_the_hosts_file_is_asked_of_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "10.0.0.1 db\n::5 db\n").unwrap();
        let config = NamesConfig {
            servers: vec![SocketAddr::from(([127, 0, 0, 1], 9))],
            timeout: Duration::from_millis(50),
            resolv_conf: dir.path().join("none"),
            hosts,
        };
        let resolver = Resolver::new(config);
        let answer = resolver.look_up(&"DB.".parse().unwrap()).await;
        assert_eq!(answer.v4, Ok(vec![[10, 0, 0, 1].into()]));
        assert_eq!(answer.v6, Ok(vec!["::5".parse().unwrap()]));
        assert_eq!(answer.ttl, HOSTS_TTL);
        let other = resolver.look_up(&"other".parse().unwrap()).await;
        assert!(other.v4.is_err_and(|failure| !failure.is_said()));
    }
}

//! Which servers know the names that are not ours: those of the configuration, or of resolv.conf, which is read again
//! when it changes. Not here: asking them (`forward`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// resolv.conf has no use for more; the C library ignores them as well.
const MAX_NAMESERVERS: usize = 3;
const MAX_FILE_BYTES: usize = 64 * 1024;
/// How often the file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long a server that failed is asked last.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// The upstream servers in the order in which they are asked.
#[derive(Debug)]
pub(super) struct Upstreams {
    listen: SocketAddr,
    /// `None`: the configuration names the servers.
    resolv_conf: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    servers: Vec<Server>,
    seen: Option<Seen>,
    looked_at: Instant,
}

#[derive(Debug)]
struct Server {
    addr: SocketAddr,
    failed_until: Option<Instant>,
}

/// By what a file that changed is told from one that did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    modified: SystemTime,
    len: u64,
}

impl Upstreams {
    /// `configured` empty: those of `resolv_conf`, which is read here, where it may block.
    pub(super) fn new(configured: &[SocketAddr], resolv_conf: PathBuf, listen: SocketAddr) -> Upstreams {
        let mut state = State {
            servers: Vec::new(),
            seen: None,
            looked_at: Instant::now(),
        };
        if !configured.is_empty() {
            state.servers = servers(configured, listen);
            return Upstreams {
                listen,
                resolv_conf: None,
                state: Mutex::new(state),
            };
        }
        match std::fs::metadata(&resolv_conf).and_then(|file| Ok((seen(&file), std::fs::read(&resolv_conf)?))) {
            Ok((seen, content)) => {
                state.seen = seen;
                state.servers = servers(&parse(&content), listen);
            }
            Err(error) => {
                let path = resolv_conf.display();
                tracing::warn!(%path, %error, "no upstream DNS servers: resolv.conf cannot be read");
            }
        }
        Upstreams {
            listen,
            resolv_conf: Some(resolv_conf),
            state: Mutex::new(state),
        }
    }

    /// The servers in the order to ask them: those that failed lately come last.
    pub(super) fn in_order(&self, now: Instant) -> Vec<SocketAddr> {
        let state = self.lock();
        let failed = |server: &Server| server.failed_until.is_some_and(|until| until > now);
        let well = state.servers.iter().filter(|server| !failed(server));
        let ill = state.servers.iter().filter(|server| failed(server));
        well.chain(ill).map(|server| server.addr).collect()
    }

    pub(super) fn failed(&self, addr: SocketAddr, now: Instant) {
        self.set_failed_until(addr, Some(now + FAILED_FOR));
    }

    pub(super) fn answered(&self, addr: SocketAddr) {
        self.set_failed_until(addr, None);
    }

    /// Reads resolv.conf again if it changed, and if it was not looked at a moment ago. While it cannot be read, the
    /// servers stay as they are.
    pub(super) async fn refresh(&self, now: Instant) {
        let Some(path) = &self.resolv_conf else { return };
        let before = {
            let mut state = self.lock();
            if now.duration_since(state.looked_at) < LOOK_EVERY {
                return;
            }
            state.looked_at = now;
            state.seen
        };
        let Ok(file) = tokio::fs::metadata(path).await else {
            return;
        };
        let seen = seen(&file);
        if seen == before {
            return;
        }
        let Ok(content) = tokio::fs::read(path).await else {
            return;
        };
        let servers = servers(&parse(&content), self.listen);
        let path = path.display();
        tracing::info!(%path, servers = servers.len(), "resolv.conf changed");
        let mut state = self.lock();
        state.servers = servers;
        state.seen = seen;
    }

    fn set_failed_until(&self, addr: SocketAddr, until: Option<Instant>) {
        if let Some(server) = self.lock().servers.iter_mut().find(|server| server.addr == addr) {
            server.failed_until = until;
        }
    }

    /// std mutex: nothing awaits under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn seen(file: &std::fs::Metadata) -> Option<Seen> {
    Some(Seen {
        modified: file.modified().ok()?,
        len: file.len(),
    })
}

fn servers(addrs: &[SocketAddr], listen: SocketAddr) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for addr in addrs {
        if is_ourselves(*addr, listen) {
            tracing::warn!(%addr, "an upstream DNS server is this one, and is left out");
        } else if servers.iter().all(|server| server.addr != *addr) {
            servers.push(Server {
                addr: *addr,
                failed_until: None,
            });
        }
    }
    servers
}

/// Whether a query sent to `addr` comes back to `listen`, as far as addresses tell. What they do not tell (a wildcard
/// listener has addresses that are not known here) `forward` notices when it happens.
fn is_ourselves(addr: SocketAddr, listen: SocketAddr) -> bool {
    let (ip, own) = (addr.ip().to_canonical(), listen.ip().to_canonical());
    let is_own_host = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&ip);
    addr.port() == listen.port() && (ip == own || ip.is_unspecified() || (own.is_unspecified() && is_own_host))
}

/// The name servers of a resolv.conf, at most three. What cannot be used is passed over, as the C library does:
/// addresses with a scope among them, since the scope's name belongs to a machine's set-up and not to an address.
fn parse(content: &[u8]) -> Vec<SocketAddr> {
    let content = &content[..content.len().min(MAX_FILE_BYTES)];
    let content = String::from_utf8_lossy(content);
    let servers = content.lines().filter_map(|line| {
        let mut words = line.split(['#', ';']).next()?.split_ascii_whitespace();
        if words.next()? != "nameserver" {
            return None;
        }
        let ip: IpAddr = words.next()?.parse().ok()?;
        Some(SocketAddr::new(ip, 53))
    });
    servers.take(MAX_NAMESERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(content: &str) -> Vec<String> {
        parse(content.as_bytes()).iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn resolv_conf_is_read_as_it_is_written() {
        let content = "# nameserver 9.9.9.1\n\
            ;nameserver 9.9.9.2\n\
            search example.org\r\n\
            nameserver\t10.0.0.1 # the first\r\n  nameserver   2001:db8::1\n\
            nameserver\n\
            nameserver localhost\n\
            nameserver fe80::1%eth0\n\
            nameserver 1.2.3.4.5\n\
            nameservers 9.9.9.3\n\
            options ndots:0\n\
            nameserver 10.0.0.2;x\n\
            nameserver 10.0.0.3";
        assert_eq!(parsed(content), ["10.0.0.1:53", "[2001:db8::1]:53", "10.0.0.2:53"]);
        assert!(parsed("").is_empty());
        assert!(parse(b"\xff\xfe\nnameserver \xff").is_empty());
    }

    #[test]
    fn we_are_never_our_own_upstream() {
        for (addr, listen, expect) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.1:8553", false),
            ("127.0.0.1:53", "0.0.0.0:53", true),
            ("[::1]:53", "[::]:53", true),
            ("[::ffff:127.0.0.1]:53", "127.0.0.1:53", true),
            ("0.0.0.0:53", "10.0.0.1:53", true),
            ("127.0.0.11:53", "0.0.0.0:53", false),
            ("10.0.0.2:53", "10.0.0.1:53", false),
        ] {
            let (addr, listen) = (addr.parse().unwrap(), listen.parse().unwrap());
            assert_eq!(is_ourselves(addr, listen), expect, "{addr} {listen}");
        }
    }

    #[test]
    fn a_server_that_failed_is_asked_last_for_a_while() {
        let addrs: Vec<SocketAddr> = ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.1:53"]
            .map(|a| a.parse().unwrap())
            .into();
        let upstreams = Upstreams::new(&addrs, PathBuf::new(), "127.0.0.1:53".parse().unwrap());
        let now = Instant::now();
        assert_eq!(upstreams.in_order(now), addrs[..2]);
        upstreams.failed(addrs[0], now);
        assert_eq!(upstreams.in_order(now), [addrs[1], addrs[0]]);
        upstreams.failed(addrs[1], now);
        assert_eq!(upstreams.in_order(now), addrs[..2]);
        upstreams.answered(addrs[1]);
        assert_eq!(upstreams.in_order(now), [addrs[1], addrs[0]]);
        assert_eq!(upstreams.in_order(now + FAILED_FOR), addrs[..2]);
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_missing_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let upstreams = Upstreams::new(&[], path.clone(), "127.0.0.1:53".parse().unwrap());
        let shown = |now| {
            upstreams
                .in_order(now)
                .iter()
                .map(|a| a.ip().to_string())
                .collect::<Vec<_>>()
        };
        let mut now = Instant::now();
        assert_eq!(shown(now), ["10.0.0.1"]);
        std::fs::write(&path, "nameserver 10.0.0.22\n").unwrap();
        upstreams.refresh(now).await;
        assert_eq!(shown(now), ["10.0.0.1"], "it was looked at a moment ago");
        now += LOOK_EVERY;
        upstreams.refresh(now).await;
        assert_eq!(shown(now), ["10.0.0.22"]);
        std::fs::remove_file(&path).unwrap();
        now += LOOK_EVERY;
        upstreams.refresh(now).await;
        assert_eq!(shown(now), ["10.0.0.22"]);
    }
}

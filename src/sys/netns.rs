//! Sockets inside other network namespaces. One thread of its own enters a namespace, opens sockets there, and leaves; a
//! socket stays where it was opened, whoever uses it. Not here: which namespaces, and what goes over the sockets.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::AddressFamily;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use super::netlink::{Messages, NetlinkSocket};
use super::socket::try_connect;

/// Sockets opened in one visit, and whether they may speak from addresses that are not the namespace's.
#[derive(Debug)]
pub struct Opened {
    pub sockets: Vec<Inside>,
    /// Why they may not, if so.
    pub opaque: Option<Arc<str>>,
}

/// A TCP socket in another network namespace that is not connected yet.
#[derive(Debug)]
pub struct Inside(Socket);

/// Opens `n` sockets for addresses of the family of `to` in the namespace at `path`, such as `/run/netns/x` or
/// `/proc/7/ns/net`.
///
/// `is_transparent`: they are to speak from clients' addresses. What that takes inside the namespace is set up: rules for
/// packets that bear our mark, which nobody else's do.
/// Errors: there is no such namespace, or this program may not enter it (CAP_SYS_ADMIN).
pub async fn open(path: Arc<Path>, to: IpAddr, n: usize, is_transparent: bool) -> io::Result<Opened> {
    let (answer, answered) = oneshot::channel();
    send(Visit {
        path,
        to,
        n,
        is_transparent,
        answer,
    })?;
    answered
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the thread that enters namespaces has ended")))
}

impl Inside {
    /// Begins to connect to `to`, from the address of `client` if that can be. Returns whether the connection stands
    /// already, and whether it is from the client's address.
    ///
    /// Errors: those of `connect`.
    pub fn connect(self, to: SocketAddr, client: Option<SocketAddr>) -> io::Result<(TcpStream, bool, bool)> {
        let Inside(socket) = self;
        let from = client.filter(|client| can_be_answered(client.ip(), to.ip()));
        let is_own = from.is_some_and(|from| speak_from(&socket, from).is_ok());
        let to = to.into();
        let mut is_connected = try_connect(&socket, &to)?;
        if !is_connected {
            // On one machine the handshake ended while the first call returned.
            is_connected = try_connect(&socket, &to)?;
        }
        Ok((socket.into(), is_connected, is_own))
    }
}

/// Whether a program at `to` could answer a peer that speaks from `client`. Loopback addresses are left out: a program may
/// trust them.
pub fn can_be_answered(client: IpAddr, to: IpAddr) -> bool {
    let is_someone = match client {
        IpAddr::V4(ip) => !ip.is_broadcast() && ip.octets()[0] != 0,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    client.is_ipv4() == to.is_ipv4()
        && is_someone
        && client != to
        && !(client.is_unspecified() || client.is_multicast() || client.is_loopback())
}

fn speak_from(socket: &Socket, from: SocketAddr) -> io::Result<()> {
    match from {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => set_transparent_v6(socket)?,
    }
    socket.set_mark(MARK)?;
    // An earlier connection of that address may not be forgotten yet.
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())
}

struct Visit {
    path: Arc<Path>,
    to: IpAddr,
    n: usize,
    is_transparent: bool,
    answer: oneshot::Sender<io::Result<Opened>>,
}

/// The way to the thread. A new one is started when there is none.
fn send(visit: Visit) -> io::Result<()> {
    static VISITOR: Mutex<Option<Sender<Visit>>> = Mutex::new(None);
    let mut visitor = VISITOR.lock().unwrap_or_else(PoisonError::into_inner);
    let visit = match visitor.as_ref() {
        None => visit,
        Some(sender) => match sender.send(visit) {
            Ok(()) => return Ok(()),
            Err(back) => back.0,
        },
    };
    let home = File::open("/proc/thread-self/ns/net")?;
    let (sender, visits) = channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || make_visits(&home, &visits))?;
    // It has just begun to listen.
    let _ = sender.send(visit);
    *visitor = Some(sender);
    Ok(())
}

/// Ends when it cannot go home: it would open the next sockets in the wrong place.
fn make_visits(home: &File, visits: &Receiver<Visit>) {
    while let Ok(first) = visits.recv() {
        let mut waiting: Vec<Visit> = std::iter::once(first).chain(visits.try_iter()).collect();
        // Those for one namespace are one visit.
        waiting.sort_by(|one, other| one.path.cmp(&other.path));
        for together in waiting.chunk_by_mut(|one, other| one.path == other.path) {
            let Some(path) = together.first().map(|visit| visit.path.clone()) else {
                continue;
            };
            let entered = enter(&path);
            for visit in &mut *together {
                let opened = match &entered {
                    Ok(()) => open_here(visit),
                    Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
                };
                let (unheard, _) = oneshot::channel();
                // Whoever asked may have gone.
                let _ = std::mem::replace(&mut visit.answer, unheard).send(opened);
            }
            if entered.is_ok() && go_to(home).is_err() {
                return;
            }
        }
    }
}

fn go_to(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

fn enter(path: &Path) -> io::Result<()> {
    go_to(&File::open(path)?).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(error.kind(), "expected a network namespace"),
        Some(libc::EPERM) => io::Error::new(
            error.kind(),
            "entering a network namespace takes CAP_SYS_ADMIN (or root)",
        ),
        _ => error,
    })
}

fn open_here(visit: &Visit) -> io::Result<Opened> {
    let opaque = visit.is_transparent.then(|| set_up(visit.to)).and_then(Result::err);
    let domain = Domain::for_address(SocketAddr::new(visit.to, 0));
    let open = || -> io::Result<Inside> {
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        Ok(Inside(socket))
    };
    Ok(Opened {
        sockets: (0..visit.n).map(|_| open()).collect::<io::Result<_>>()?,
        opaque: opaque.map(|error| error.to_string().into()),
    })
}

/// What answers to a client's address take, in the calling thread's namespace: packets that bear our mark are local,
/// wherever they are to go, and answers bear the mark of what they answer. Nobody else's packets are touched. It is there
/// as long as the namespace.
fn set_up(to: IpAddr) -> io::Result<()> {
    let sysctls: &[&str] = match to {
        // The first is of TCP as a whole.
        IpAddr::V4(_) => &["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect"],
        IpAddr::V6(_) => &["ipv4/tcp_fwmark_accept", "ipv6/fwmark_reflect"],
    };
    for name in sysctls {
        let path = format!("/proc/sys/net/{name}");
        if std::fs::read_to_string(&path)?.trim() != "1" {
            std::fs::write(&path, "1").map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        }
    }
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    // Families are small numbers.
    let family = family.as_raw() as u8;
    let mut netlink = NetlinkSocket::open(None, 0)?;
    for make in [rule, route] {
        let seq = netlink.seq();
        let mut messages = Messages::default();
        make(&mut messages, family, seq);
        match netlink.transact(&messages, (seq, seq)) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

const MAKE: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// Packets that bear our mark look into our table.
fn rule(messages: &mut Messages, family: u8, seq: u32) {
    // family, lengths of destination and source, tos, table, two that are reserved, action; flags.
    let header = [family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    messages
        .begin(libc::RTM_NEWRULE, MAKE, seq, &header)
        .attr(RULE_PRIORITY, &PRIORITY.to_ne_bytes())
        .attr(RULE_MARK, &MARK.to_ne_bytes())
        .attr(RULE_MARK_MASK, &u32::MAX.to_ne_bytes())
        .attr(RULE_TABLE, &TABLE.to_ne_bytes());
}

/// In our table, everything is here.
fn route(messages: &mut Messages, family: u8, seq: u32) {
    // family, lengths of destination and source, tos, table, protocol, scope, type; flags.
    let header = [
        family,
        0,
        0,
        0,
        0,
        libc::RTPROT_STATIC,
        libc::RT_SCOPE_HOST,
        libc::RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    messages
        .begin(libc::RTM_NEWROUTE, MAKE, seq, &header)
        .attr(libc::RTA_TABLE, &TABLE.to_ne_bytes())
        .attr(libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
}

/// Ours, on packets within a task's namespace only.
const MARK: u32 = 0x616e_796e;
const TABLE: u32 = 7377;
/// Before the table `main`.
const PRIORITY: u32 = 7377;
/// It is the first interface of each namespace.
const LOOPBACK: u32 = 1;
const TO_TABLE: u8 = 1;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_MARK_MASK: u16 = 16;

#[allow(unsafe_code, reason = "socket2 has this option for IPv4 only")]
fn set_transparent_v6(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call; the value points to a live `c_int` of that length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_TRANSPARENT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_address_can_be_spoken_from() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (client, to, expected) in [
            ("203.0.113.7", "127.0.0.1", true),
            ("203.0.113.7", "10.0.0.2", true),
            ("2001:db8::1", "::1", true),
            ("127.0.0.1", "10.0.0.2", false),
            ("::1", "::1", false),
            ("10.0.0.2", "10.0.0.2", false),
            ("203.0.113.7", "::1", false),
            ("2001:db8::1", "127.0.0.1", false),
            ("0.0.0.0", "127.0.0.1", false),
            ("0.1.2.3", "127.0.0.1", false),
            ("224.0.0.1", "127.0.0.1", false),
            ("255.255.255.255", "127.0.0.1", false),
            ("fe80::1", "::1", false),
        ] {
            assert_eq!(can_be_answered(ip(client), ip(to)), expected, "{client} {to}");
        }
    }

    #[tokio::test]
    async fn what_is_no_namespace_is_said() {
        for (path, expected) in [
            ("/proc/self/stat", "expected a network namespace"),
            ("/none", "No such file"),
        ] {
            let opened = open(Path::new(path).into(), IpAddr::from([127, 0, 0, 1]), 1, true).await;
            let error = opened.unwrap_err().to_string();
            // Without privilege nobody gets as far as to look.
            let is_told = error.contains(expected) || error.contains("CAP_SYS_ADMIN");
            assert!(error.starts_with(path) && is_told, "{error}");
        }
    }
}

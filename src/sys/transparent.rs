//! Connections to a program in a network namespace, made there, that bear the client's own address and port; and the little
//! that the namespace needs so that its answers find back. Not here: going in (`entrances`), and whose client it is.
//!
//! What stands in the namespace after `set_up` is told apart by the mark, which only our sockets bear, and which the kernel
//! takes off what leaves the namespace: whoever else talks to the program is undisturbed. It goes with the namespace, and
//! does nothing without us.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::entrances::{EnterError, Entrances};
use super::inet_diag::InetDiag;
use super::netns::{Netns, NetnsError};
use super::rtnetlink::{LocalRoute, MarkRule, RtNetlink};
use super::socket::{begin, try_connect};

/// Where a connection is to seem to come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// This client; if it cannot be (`can_be_answered`), `stand_in` for it, such as the node's own address.
    Client {
        client: SocketAddr,
        stand_in: Option<IpAddr>,
    },
    /// Whatever the namespace gives. Needs no `set_up`.
    Nobody,
}

/// A TCP socket in a network namespace that is not connected yet. It holds the namespace.
#[derive(Debug)]
pub struct Inside(Socket);

/// What one visit made.
#[derive(Debug)]
pub struct Opened {
    pub sockets: Vec<Inside>,
    /// Why they may not bear clients' addresses, where they were to.
    pub opaque: Option<SetUpError>,
}

/// A connection that was begun.
#[derive(Debug)]
pub struct Connecting {
    pub stream: TcpStream,
    /// Whether it stands already. If not it will be writable when it does, or `SO_ERROR` says why not.
    pub is_connected: bool,
    pub shown: Shown,
}

/// What the program sees of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    /// Its address and its port.
    AddressAndPort,
    /// Its address alone: the port was taken inside, by a program that listens there or by a connection to the same place.
    Address,
    /// The address that stands in for it.
    StandIn,
    Nothing,
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// The privilege (CAP_NET_ADMIN) is not there, mostly.
    #[error("make a socket that bears another's address")]
    Make(#[source] io::Error),
    #[error("take the address {address} inside a network namespace")]
    Take {
        address: SocketAddr,
        #[source]
        err: io::Error,
    },
    /// The program's doing, or its absence: `ConnectionRefused` when nobody listens.
    #[error("connect to {target} inside a network namespace")]
    Connect {
        target: SocketAddr,
        #[source]
        err: io::Error,
    },
}

/// Why a program could not answer a client of that address, or had better not be told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    #[error("the client is of IPv4 and the program of IPv6, or the other way round")]
    Family,
    /// The kernel would show the program's own address instead.
    #[error("0.0.0.0, :: and addresses of groups are nobody's")]
    Nobodys,
    #[error("a link-local address of IPv6 means something on its own link alone")]
    LinkLocal,
    /// It could be answered. But programs trust whoever calls from loopback, and this one is not inside.
    #[error("a loopback address would pass for the program's own")]
    Loopback,
}

/// Says whether a program at `target` can answer `client`. `own`: the addresses of the namespace with their prefixes.
///
/// An address of the namespace itself, and any neighbour's, can be answered.
pub fn can_be_answered(client: IpAddr, target: SocketAddr, own: &[IpNet]) -> Result<(), Unanswerable> {
    let (client, target) = (client.to_canonical(), target.ip().to_canonical());
    let is_link_local = matches!(client, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let is_broadcast_here = own.iter().any(|net| match net {
        IpNet::V4(net) => net.prefix_len() < 31 && client == net.broadcast(),
        IpNet::V6(_) => false,
    });
    if client.is_ipv4() != target.is_ipv4() {
        Err(Unanswerable::Family)
    } else if client.is_unspecified() || client.is_multicast() || client == Ipv4Addr::BROADCAST || is_broadcast_here {
        Err(Unanswerable::Nobodys)
    } else if is_link_local {
        Err(Unanswerable::LinkLocal)
    } else if client.is_loopback() {
        Err(Unanswerable::Loopback)
    } else {
        Ok(())
    }
}

/// Makes `n` sockets for addresses of the family of `to`, in one visit. `is_transparent`: they are to bear clients' addresses,
/// and the namespace is `set_up` for that.
///
/// Errors: `Enter`, `Make`.
pub async fn open(
    entrances: &Entrances,
    netns: &Netns,
    to: IpAddr,
    n: usize,
    is_transparent: bool,
) -> Result<Opened, ConnectError> {
    let make = move || -> io::Result<Opened> {
        let opaque = is_transparent.then(set_up).and_then(Result::err);
        let domain = Domain::for_address(SocketAddr::new(to.to_canonical(), 0));
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = || Socket::new(domain, kind, Some(Protocol::TCP)).map(Inside);
        Ok(Opened {
            sockets: (0..n).map(|_| socket()).collect::<io::Result<_>>()?,
            opaque,
        })
    };
    entrances.run(netns, make).await?.map_err(ConnectError::Make)
}

/// Begins to connect to `target` inside `netns`, which was `set_up`. `own`: as for `can_be_answered`.
///
/// Costs one visit to the namespace, and what `connect_by` costs.
/// Errors: see `ConnectError`; a connection that cannot be made may also show later, in `SO_ERROR`.
pub async fn connect(
    entrances: &Entrances,
    netns: &Netns,
    caller: Caller,
    target: SocketAddr,
    own: &[IpNet],
) -> Result<Connecting, ConnectError> {
    let socket = one(entrances, netns, target).await?;
    connect_by(entrances, &|| Ok(netns.clone()), socket, caller, target, own).await
}

/// Begins to connect a socket that was made before. Errors: as `connect`.
///
/// Costs no visit, and `netns` is not asked for, but for one or two when the very same four addresses and ports are in use there, or when the program does
/// not take the connection at once.
pub async fn connect_by(
    entrances: &Entrances,
    netns: &(dyn Fn() -> Result<Netns, NetnsError> + Sync),
    socket: Inside,
    caller: Caller,
    target: SocketAddr,
    own: &[IpNet],
) -> Result<Connecting, ConnectError> {
    let target = SocketAddr::new(target.ip().to_canonical(), target.port());
    let (from, shown) = choose(caller, target, own);
    let made = attempt(socket, from, shown, target);
    let Some(client) = from.filter(|_| shown == Shown::AddressAndPort) else {
        return made;
    };
    let made = match made {
        // The socket would keep the port that it was bound to, so another one is needed.
        Err(error) if error.is_tuple_in_use() => None,
        Ok(mut made) if !made.is_connected => {
            let is_other = is_taken_for_another(entrances, &netns()?, &mut made, client, target).await?;
            (!is_other).then_some(made)
        }
        result => return result,
    };
    match made {
        Some(made) => Ok(made),
        None => {
            let client = SocketAddr::new(client.ip(), 0);
            let socket = one(entrances, &netns()?, target).await?;
            attempt(socket, Some(client), Shown::Address, target)
        }
    }
}

/// Begins to connect a socket that was made before, from this address and any port. Errors: as `connect`.
pub fn connect_from(socket: Inside, from: IpAddr, target: SocketAddr) -> Result<Connecting, ConnectError> {
    attempt(socket, Some(SocketAddr::new(from, 0)), Shown::Address, target)
}

/// Whether the program has a connection with the same client, port and all, that came another way, over the client's own
/// wire. It takes ours for that one and answers over the wire, so that ours would wait for ever.
async fn is_taken_for_another(
    entrances: &Entrances,
    netns: &Netns,
    made: &mut Connecting,
    client: SocketAddr,
    target: SocketAddr,
) -> Result<bool, ConnectError> {
    // On one machine the handshake is a matter of microseconds, unless the program has no room.
    tokio::time::sleep(HANDSHAKE).await;
    let failed = |err| ConnectError::Connect { target, err };
    made.is_connected = try_connect(&SockRef::from(&made.stream), &target.into()).map_err(failed)?;
    if made.is_connected {
        return Ok(false);
    }
    let ask = move || InetDiag::open()?.is_connected(target, client);
    // A kernel that cannot be asked leaves it to the time that a connection may take.
    if !entrances.run(netns, ask).await?.unwrap_or(false) {
        return Ok(false);
    }
    // What was seen may be ours, on a busy machine: it stands out here before it does inside.
    made.is_connected = try_connect(&SockRef::from(&made.stream), &target.into()).map_err(failed)?;
    Ok(!made.is_connected)
}

async fn one(entrances: &Entrances, netns: &Netns, target: SocketAddr) -> Result<Inside, ConnectError> {
    let opened = open(entrances, netns, target.ip(), 1, false).await?;
    let socket = opened.sockets.into_iter().next();
    socket.ok_or_else(|| ConnectError::Make(io::ErrorKind::NotFound.into()))
}

/// Where a socket is made is where it stays; all the rest is done out here.
fn attempt(
    socket: Inside,
    from: Option<SocketAddr>,
    shown: Shown,
    target: SocketAddr,
) -> Result<Connecting, ConnectError> {
    let Inside(socket) = socket;
    socket.set_tcp_nodelay(true).map_err(ConnectError::Make)?;
    let shown = match from {
        Some(from) => take_address(&socket, from, shown)?,
        None => Shown::Nothing,
    };
    let (stream, is_connected) = begin(socket, target).map_err(|err| ConnectError::Connect { target, err })?;
    Ok(Connecting {
        stream,
        is_connected,
        shown,
    })
}

/// Binds to an address that is not the namespace's, with its port or, if that is zero or taken, with any.
fn take_address(socket: &Socket, from: SocketAddr, shown: Shown) -> Result<Shown, ConnectError> {
    let prepare = || -> io::Result<()> {
        match from {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
        socket.set_mark(MARK)?;
        // Connections to different places may come from the same port.
        socket.set_reuse_address(true)
    };
    prepare().map_err(ConnectError::Make)?;
    let failed = |err| ConnectError::Take { address: from, err };
    if from.port() != 0 {
        match socket.bind(&from.into()) {
            Ok(()) => return Ok(shown),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed(error)),
        }
    }
    // The port is picked when the place to go is known, so that there are as many as there are for each place.
    late_port(socket).map_err(ConnectError::Make)?;
    socket.bind(&SocketAddr::new(from.ip(), 0).into()).map_err(failed)?;
    Ok(match shown {
        Shown::AddressAndPort => Shown::Address,
        shown => shown,
    })
}

/// Which address to come from, and how much of the client that is.
fn choose(caller: Caller, target: SocketAddr, own: &[IpNet]) -> (Option<SocketAddr>, Shown) {
    let Caller::Client { client, stand_in } = caller else {
        return (None, Shown::Nothing);
    };
    if can_be_answered(client.ip(), target, own).is_ok() {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        return (Some(client), Shown::AddressAndPort);
    }
    match stand_in.filter(|ip| can_be_answered(*ip, target, own).is_ok()) {
        Some(ip) => (Some(SocketAddr::new(ip.to_canonical(), 0)), Shown::StandIn),
        None => (None, Shown::Nothing),
    }
}

fn late_port(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call; the option's value points to a live `c_int`, and its length is that of a
    // `c_int`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `set_up` found the namespace to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    pub is_ipv6: bool,
}

/// Which step of `set_up` or `tear_down` failed.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error("ask for the routing of a network namespace")]
    Open(#[source] io::Error),
    #[error("bring loopback up")]
    Loopback(#[source] io::Error),
    #[error("the rule that mark {MARK:#x} goes to routing table {TABLE}")]
    Rule(#[source] io::Error),
    #[error("the local route to everywhere in routing table {TABLE}")]
    Route(#[source] io::Error),
    #[error("set {key} to {value} in a network namespace")]
    Sysctl {
        key: &'static str,
        value: &'static str,
        #[source]
        err: io::Error,
    },
}

/// Makes answers find back to connections that bear a client's address, in the network namespace of the calling thread:
/// give it to `Entrances::run`. Does nothing where all is done already. IPv6 is left out where the namespace has none.
pub fn set_up() -> Result<Families, SetUpError> {
    let mut routing = RtNetlink::open().map_err(SetUpError::Open)?;
    routing.loopback_up().map_err(SetUpError::Loopback)?;
    answer_family(&mut routing, false)?;
    let is_ipv6 = match answer_family(&mut routing, true) {
        Ok(()) => true,
        Err(SetUpError::Rule(err) | SetUpError::Route(err)) if err.kind() == io::ErrorKind::Unsupported => false,
        Err(error) => return Err(error),
    };
    for key in SYSCTLS.iter().take(if is_ipv6 { 3 } else { 2 }) {
        set_sysctl(key, "1")?;
    }
    Ok(Families { is_ipv6 })
}

/// Takes away what `set_up` made in the network namespace of the calling thread, if it is there. Connections that stand get
/// no answer any more. What the kernel does with marks stays allowed, for there may be others who count on it.
pub fn tear_down() -> Result<(), SetUpError> {
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::Unsupported => Ok(false),
        _ => Err(error),
    };
    let mut routing = RtNetlink::open().map_err(SetUpError::Open)?;
    for is_ipv6 in [false, true] {
        let (rule, route) = ways_back(is_ipv6);
        routing.remove_rule(&rule).or_else(absent).map_err(SetUpError::Rule)?;
        let removed = routing.remove_local_route(&route);
        removed.or_else(absent).map_err(SetUpError::Route)?;
    }
    Ok(())
}

fn answer_family(routing: &mut RtNetlink, is_ipv6: bool) -> Result<(), SetUpError> {
    let (rule, route) = ways_back(is_ipv6);
    // The route first: a rule without it leads nowhere.
    routing.set_local_route(&route).map_err(SetUpError::Route)?;
    routing.add_rule(&rule).map_err(SetUpError::Rule)?;
    Ok(())
}

fn ways_back(is_ipv6: bool) -> (MarkRule, LocalRoute) {
    let any: IpAddr = match is_ipv6 {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let rule = MarkRule {
        is_ipv6,
        mark: MARK,
        table: TABLE,
        priority: PRIORITY,
    };
    let route = LocalRoute {
        to: IpNet::new_assert(any, 0),
        table: TABLE,
        source: None,
    };
    (rule, route)
}

/// Sets a key of the calling thread's network namespace: /proc/sys/net is that of whoever opens it.
fn set_sysctl(key: &'static str, value: &'static str) -> Result<(), SetUpError> {
    let path = format!("/proc/sys/{key}");
    match fs::write(&path, value) {
        Ok(()) => Ok(()),
        // It may be set, by whoever has the right to.
        Err(_) if fs::read_to_string(&path).is_ok_and(|found| found.trim_end() == value) => Ok(()),
        Err(err) => Err(SetUpError::Sysctl { key, value, err }),
    }
}

impl From<NetnsError> for ConnectError {
    fn from(error: NetnsError) -> ConnectError {
        ConnectError::Enter(error.into())
    }
}

/// Keeps the kind, and says all that is known.
impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

impl ConnectError {
    /// What went wrong, as far as the kernel said so.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            ConnectError::Enter(EnterError::Netns(NetnsError::Gone { .. })) => io::ErrorKind::NotFound,
            ConnectError::Enter(EnterError::TimedOut { .. }) => io::ErrorKind::TimedOut,
            ConnectError::Enter(EnterError::Enter { err, .. }) => err.kind(),
            ConnectError::Enter(_) => io::ErrorKind::Other,
            ConnectError::Make(err) | ConnectError::Take { err, .. } | ConnectError::Connect { err, .. } => err.kind(),
        }
    }

    fn is_tuple_in_use(&self) -> bool {
        matches!(self, ConnectError::Connect { err, .. } if err.kind() == io::ErrorKind::AddrNotAvailable)
    }
}

/// What our sockets bear and their answers are told by ("an").
pub const MARK: u32 = 0x616e;
/// The routing table where everything is local.
pub const TABLE: u32 = MARK;
/// Time for a handshake within one machine.
const HANDSHAKE: Duration = Duration::from_millis(1);
/// Of the rule: behind the kernel's own for local addresses, ahead of what others may have put in.
const PRIORITY: u32 = 1;
/// Answers of a listener bear the mark of the question; so do refusals. The last one is IPv6's.
const SYSCTLS: [&str; 3] = [
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/fwmark_reflect",
    "net/ipv6/fwmark_reflect",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_be_answered() {
        let own: Vec<IpNet> = ["127.0.0.1/8", "10.0.0.2/24", "10.9.0.0/31", "fd00::2/64"]
            .map(|net| net.parse().unwrap())
            .to_vec();
        let v4 = "10.0.0.2:80";
        for (client, target, expected) in [
            ("203.0.113.7", v4, Ok(())),
            ("203.0.113.7", "127.0.0.1:80", Ok(())),
            ("::ffff:203.0.113.7", v4, Ok(())),
            ("10.0.0.2", v4, Ok(())),
            ("10.0.0.1", v4, Ok(())),
            ("10.9.0.1", v4, Ok(())),
            ("2001:db8::7", "[fd00::2]:80", Ok(())),
            ("2001:db8::7", v4, Err(Unanswerable::Family)),
            ("203.0.113.7", "[fd00::2]:80", Err(Unanswerable::Family)),
            ("0.0.0.0", v4, Err(Unanswerable::Nobodys)),
            ("224.0.0.5", v4, Err(Unanswerable::Nobodys)),
            ("255.255.255.255", v4, Err(Unanswerable::Nobodys)),
            ("10.0.0.255", v4, Err(Unanswerable::Nobodys)),
            ("::", "[fd00::2]:80", Err(Unanswerable::Nobodys)),
            ("ff02::1", "[fd00::2]:80", Err(Unanswerable::Nobodys)),
            ("fe80::1", "[fd00::2]:80", Err(Unanswerable::LinkLocal)),
            ("127.0.0.1", v4, Err(Unanswerable::Loopback)),
            ("::1", "[fd00::2]:80", Err(Unanswerable::Loopback)),
        ] {
            let found = can_be_answered(client.parse().unwrap(), target.parse().unwrap(), &own);
            assert_eq!(found, expected, "{client} at {target}");
        }
    }
}

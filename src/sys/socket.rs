//! TCP sockets with the options that this project wants of them. Not here: tokio, and what is sent.

use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How a dead peer is noticed. Both are needed: keep-alive is not asked while data is unacknowledged, the user timeout
/// does nothing on an idle connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Liveness {
    /// Silence after which the first probe is sent; zero turns keep-alive off.
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_count: u32,
    /// How long sent data may stay unacknowledged; zero leaves it to the kernel.
    pub user_timeout: Duration,
}

impl Default for Liveness {
    fn default() -> Liveness {
        Liveness {
            keepalive_idle: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            keepalive_count: 3,
            user_timeout: Duration::from_secs(90),
        }
    }
}

/// Sets what a proxied connection has: no delay, and liveness. A listener passes these on to what it accepts.
pub fn set_stream_options(socket: &SockRef<'_>, liveness: &Liveness) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    set_liveness(socket, liveness)
}

/// Sets keep-alive and the user timeout: five calls, so that short connections had better live without.
pub fn set_liveness(socket: &SockRef<'_>, liveness: &Liveness) -> io::Result<()> {
    if !liveness.keepalive_idle.is_zero() {
        let keepalive = TcpKeepalive::new()
            .with_time(liveness.keepalive_idle)
            .with_interval(liveness.keepalive_interval)
            .with_retries(liveness.keepalive_count);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if !liveness.user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(liveness.user_timeout))?;
    }
    Ok(())
}

/// Closing the socket will reset the connection, so that its peer never takes a truncated stream for a complete one.
pub fn reset_on_close(socket: impl AsFd) {
    // An error means that the connection is gone already.
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Begins to connect to `addr`. Returns whether the connection stands already, as on one machine it mostly does.
///
/// Errors: those of `socket` and `connect`; a connection that cannot be made may also show later, in `SO_ERROR`.
pub fn connect(addr: SocketAddr) -> io::Result<(std::net::TcpStream, bool)> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    begin(socket, addr)
}

/// Begins to connect a socket that is there already. Returns and errors as `connect`.
pub(super) fn begin(socket: Socket, addr: SocketAddr) -> io::Result<(std::net::TcpStream, bool)> {
    let addr = addr.into();
    let mut is_connected = try_connect(&socket, &addr)?;
    if !is_connected {
        // On one machine the handshake ended while the first call returned. Asking again costs less than an event.
        is_connected = try_connect(&socket, &addr)?;
    }
    Ok((socket.into(), is_connected))
}

/// Waits until a connection that was begun stands. Errors: what the kernel says of it.
pub async fn established(stream: &TcpStream) -> io::Result<()> {
    stream.ready(Interest::WRITABLE).await?;
    stream.take_error()?.map_or(Ok(()), Err)
}

pub(super) fn try_connect(socket: &Socket, addr: &socket2::SockAddr) -> io::Result<bool> {
    match socket.connect(addr) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINPROGRESS | libc::EALREADY) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Binds `n` listening sockets to one port, among which the kernel spreads connections.
///
/// `ip`: `None` is every address, IPv4 and IPv6 (IPv4 alone where the kernel has no IPv6).
/// `is_ours`: whether this program itself already listens on that port number elsewhere.
/// Errors: `AddrInUse` also when another program holds the port in a way that would share it with us.
pub fn listen(
    ip: Option<IpAddr>,
    port: u16,
    n: usize,
    liveness: &Liveness,
    is_ours: impl Fn(u64) -> bool,
) -> io::Result<Vec<TcpListener>> {
    match ip {
        Some(ip) => listen_at(SocketAddr::new(ip, port), n, liveness, is_ours),
        None => match listen_at(
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
            n,
            liveness,
            &is_ours,
        ) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                listen_at(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port), n, liveness, is_ours)
            }
            result => result,
        },
    }
}

fn listen_at(
    addr: SocketAddr,
    n: usize,
    liveness: &Liveness,
    is_ours: impl Fn(u64) -> bool,
) -> io::Result<Vec<TcpListener>> {
    let new = || new_listener(addr, liveness);
    // The first socket is bound without sharing: that fails when anybody has the port. Sharing is allowed afterwards.
    let first = new()?;
    match first.bind(&addr.into()) {
        Ok(()) => first.set_reuse_port(true)?,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // It may be ourselves: a VIP on a port that is published everywhere, or the other way round.
            first.set_reuse_port(true)?;
            first.bind(&addr.into())?;
            if foreign_listener(addr, &is_ours)? {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    let mut sockets = vec![first];
    for _ in 1..n {
        let socket = new()?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        sockets.push(socket);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

/// A socket that is to be bound to `addr`.
fn new_listener(addr: SocketAddr, liveness: &Liveness) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(addr),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    set_stream_options(&SockRef::from(&socket), liveness)?;
    Ok(socket)
}

/// Binds `n` more listening sockets beside `first`, which allows it. Errors: as `bind`; `PermissionDenied` or `AddrInUse`
/// also where another user bound `first`.
pub fn listen_beside(first: &TcpListener, n: usize, liveness: &Liveness) -> io::Result<Vec<TcpListener>> {
    let addr = first.local_addr()?;
    let more: io::Result<Vec<Socket>> = (0..n)
        .map(|_| {
            let socket = new_listener(addr, liveness)?;
            socket.set_reuse_port(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        })
        .collect();
    Ok(more?.into_iter().map(TcpListener::from).collect())
}

/// Makes sure that `fd`, which came from elsewhere, is a TCP socket that listens at `ip` (`None`: everywhere) and `port`,
/// or stands for all addresses as `sk_lookup::listen_hidden` makes them, and gives it the options of our own.
///
/// Errors: `InvalidInput` when it is something else.
pub fn adopt_listener(fd: OwnedFd, ip: Option<IpAddr>, port: u16, liveness: &Liveness) -> io::Result<TcpListener> {
    let is_there = listens_at(&fd).is_some_and(|at| {
        let at_ip = (!at.ip().is_unspecified()).then_some(at.ip());
        let is_hidden = ip.is_none() && at.ip().to_canonical().is_loopback();
        (at_ip, at.port()) == (ip, port) || (is_hidden && SockRef::from(&fd).reuse_port().unwrap_or(false))
    });
    if !is_there {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let socket = Socket::from(fd);
    socket.set_nonblocking(true)?;
    set_stream_options(&SockRef::from(&socket), liveness)?;
    Ok(socket.into())
}

/// Where `fd` listens; `None` when it is no TCP socket that does.
pub fn listens_at(fd: impl AsFd) -> Option<SocketAddr> {
    let socket = SockRef::from(&fd);
    let addr = bound_at(&socket, Type::STREAM, Protocol::TCP)?;
    socket.is_listener().ok()?.then_some(addr)
}

/// Where `fd` receives; `None` when it is no UDP socket that does.
pub fn receives_at(fd: impl AsFd) -> Option<SocketAddr> {
    bound_at(&SockRef::from(&fd), Type::DGRAM, Protocol::UDP)
}

fn bound_at(socket: &SockRef<'_>, kind: Type, protocol: Protocol) -> Option<SocketAddr> {
    let is_such = socket.r#type().ok()? == kind && socket.protocol().ok()? == Some(protocol);
    let addr = is_such.then(|| socket.local_addr().ok())??.as_socket()?;
    (addr.port() > 0).then_some(addr)
}

/// The inode that `/proc/net/tcp` knows a socket by.
pub fn inode(socket: impl AsFd) -> io::Result<u64> {
    let file = std::fs::File::from(socket.as_fd().try_clone_to_owned()?);
    Ok(file.metadata()?.st_ino())
}

/// Whether a socket that is not ours listens where `addr` does, on the same address or everywhere.
fn foreign_listener(addr: SocketAddr, is_ours: impl Fn(u64) -> bool) -> io::Result<bool> {
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let table = match std::fs::File::open(path) {
            Ok(table) => io::BufReader::new(table),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in table.lines().skip(1) {
            // The kernel shows those that listen first; connections may be very many.
            let Some(listener) = parse_listener(&line?) else { break };
            if listener.port != addr.port() {
                continue;
            }
            let overlaps = listener.ip.is_none() || addr.ip().is_unspecified() || listener.ip == Some(addr.ip());
            if overlaps && !is_ours(listener.inode) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[derive(Debug, PartialEq)]
struct ProcListener {
    ip: Option<IpAddr>,
    port: u16,
    inode: u64,
}

/// Reads a line of `/proc/net/tcp` or `tcp6`; `None` for what does not listen.
fn parse_listener(line: &str) -> Option<ProcListener> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (ip, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    // Words of 32 bits, each printed as this machine holds it.
    let words: Vec<u32> = (0..ip.len() / 8)
        .filter_map(|i| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok())
        .collect();
    let ip = match words.as_slice() {
        [v4] => IpAddr::from(v4.to_ne_bytes()),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (chunk, word) in bytes.chunks_mut(4).zip([a, b, c, d]) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(ProcListener {
        ip: (!ip.is_unspecified()).then_some(ip),
        port: u16::from_str_radix(port, 16).ok()?,
        inode,
    })
}

/// Given to services that nobody runs (tcpmux and its neighbours): for what listens and is not meant to be found.
pub(super) const UNWANTED_PORTS: std::ops::RangeInclusive<u16> = 1..=6;

/// Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
pub(super) const BACKLOG: i32 = 4096;

/// Whether this node has the address: only then can something be bound to it, unless the kernel lets programs bind to any
/// (`ip_nonlocal_bind`), and says by itself which it has.
pub fn is_own_address(ip: IpAddr) -> bool {
    let binds = |ip: IpAddr| std::net::UdpSocket::bind((ip, 0)).is_ok();
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let nobodys = match ip {
        IpAddr::V4(_) => IpAddr::from([192, 0, 2, 1]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    };
    binds(ip) && (!binds(nobodys) || is_listed(ip))
}

/// Whether the kernel lists the address as one of this node.
fn is_listed(ip: IpAddr) -> bool {
    let text = |path| std::fs::read_to_string(path).unwrap_or_default();
    match ip {
        IpAddr::V4(ip) => is_local_v4(&text("/proc/net/fib_trie"), ip),
        IpAddr::V6(ip) => {
            let hex: String = ip.octets().iter().map(|byte| format!("{byte:02x}")).collect();
            text("/proc/net/if_inet6").lines().any(|line| line.starts_with(&hex))
        }
    }
}

/// Whether the routes, as the kernel draws them, have the address as local.
fn is_local_v4(fib_trie: &str, ip: std::net::Ipv4Addr) -> bool {
    let leaf = format!("|-- {ip}");
    let mut is_leaf = false;
    for line in fib_trie.lines().map(str::trim) {
        match line.starts_with("|-- ") {
            true => is_leaf = line == leaf,
            false if is_leaf && line == "/32 host LOCAL" => return true,
            false => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_OURS: fn(u64) -> bool = |_| false;

    #[test]
    fn addresses_are_read_as_the_kernel_lists_them() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     +-- 10.0.0.0/24 2 0 2\n        |-- 10.0.0.0\n           /24 link UNICAST\n        \
                    |-- 10.0.0.5\n           /32 host LOCAL\n        |-- 10.0.0.255\n           /32 link BROADCAST\n";
        for (ip, is_local) in [
            ([10, 0, 0, 5], true),
            ([10, 0, 0, 0], false),
            ([10, 0, 0, 255], false),
            ([10, 0, 0, 6], false),
        ] {
            assert_eq!(is_local_v4(trie, ip.into()), is_local, "{ip:?}");
        }
        assert!(is_local_v4(
            &std::fs::read_to_string("/proc/net/fib_trie").unwrap(),
            [127, 0, 0, 1].into()
        ));
        assert!(is_own_address([127, 0, 0, 1].into()) && !is_own_address([192, 0, 2, 7].into()));
    }

    #[test]
    fn lines_of_proc_net_tcp_are_read() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0";
        let v6 = "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100 0 0 10 0";
        let established = v4.replace(" 0A ", " 01 ");
        let listener = parse_listener(v4).unwrap();
        assert_eq!(
            (listener.ip, listener.port, listener.inode),
            (Some([127, 0, 0, 1].into()), 8080, 4242)
        );
        let listener = parse_listener(v6).unwrap();
        assert_eq!((listener.ip, listener.port, listener.inode), (None, 80, 7));
        assert_eq!(parse_listener(&established), None);
        for broken in ["", "0: x", "0: 1:2 3 0A", "0: ZZ:ZZ 0:0 0A a b c d e"] {
            assert_eq!(parse_listener(broken), None);
        }
    }

    #[test]
    fn only_sockets_that_listen_where_they_should_are_adopted() {
        let liveness = Liveness::default();
        let adopt = |socket: &dyn AsFd, ip, port| {
            let fd = socket.as_fd().try_clone_to_owned().unwrap();
            adopt_listener(fd, ip, port, &liveness).map_err(|error| error.kind())
        };
        let loopback = Some(IpAddr::from([127, 0, 0, 1]));
        let one = &listen(loopback, 0, 1, &liveness, NOT_OURS).unwrap()[0];
        let port = one.local_addr().unwrap().port();
        let all = &listen(None, 0, 1, &liveness, NOT_OURS).unwrap()[0];
        let hidden = &crate::sys::sk_lookup::listen_hidden(1, &liveness).unwrap()[0];
        let alone = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(one.local_addr().unwrap()).unwrap();
        assert!(adopt(one, loopback, port).is_ok());
        assert!(adopt(all, None, all.local_addr().unwrap().port()).is_ok());
        assert!(adopt(hidden, None, 80).is_ok());
        let refused = Err(io::ErrorKind::InvalidInput);
        for (socket, ip, port) in [
            (one as &dyn AsFd, loopback, port + 1),
            (one, Some([127, 0, 0, 2].into()), port),
            (all, loopback, all.local_addr().unwrap().port()),
            (all, None, 1),
            (hidden, loopback, 80),
            (&alone, None, 80),
            (&udp, loopback, udp.local_addr().unwrap().port()),
            (&connected, loopback, connected.local_addr().unwrap().port()),
        ] {
            assert_eq!(adopt(socket, ip, port).map(drop), refused, "{ip:?} {port}");
        }
    }

    #[test]
    fn several_sockets_share_a_port_and_nobody_else_does() {
        let liveness = Liveness::default();
        let any = listen(None, 0, 1, &liveness, NOT_OURS).unwrap();
        let port = any[0].local_addr().unwrap().port();
        let ours: Vec<u64> = any.iter().map(|socket| inode(socket).unwrap()).collect();
        let taken = listen(None, port, 2, &liveness, NOT_OURS).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse, "though both would share it");
        let vip = Some("127.77.1.2".parse().unwrap());
        assert_eq!(
            listen(vip, port, 1, &liveness, NOT_OURS).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        let beside = listen(vip, port, 2, &liveness, |inode| ours.contains(&inode)).unwrap();
        assert_eq!(beside.len(), 2);
    }

    #[test]
    fn a_connection_on_one_machine_stands_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_stream, is_connected) = connect(listener.local_addr().unwrap()).unwrap();
        assert!(is_connected);
        let addr = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(connect(addr).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}

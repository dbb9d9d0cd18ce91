//! Small BPF programs that, for TCP connections to some local ports or to some addresses, pick a listening socket of ours
//! before the kernel looks who is bound there. Not here: what programs are made of (`bpf`); which ports, and when
//! (`takeover`); which addresses (`vips` inside tasks, `proxy` on the node).

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::{IpNet, Ipv4Net};
use rustix::thread::CapabilitySet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::bpf::{Instruction, Map, PASS, R0, R1, R2, R3, R6, R7, R10, SocketMap};
use super::bpf::{Link, load};
use super::socket::{BACKLOG, Liveness, UNWANTED_PORTS, listen, listen_beside, set_stream_options};

/// The program for ports at work in one network namespace, until this is dropped or the process dies.
#[derive(Debug)]
pub struct SkLookup {
    /// From protocol and port to a listening socket; the kernel takes out what is closed.
    sockets: SocketMap,
    /// Holds the program in its place.
    _link: Link,
}

/// Which step failed, for one cannot tell by the error number.
#[derive(Debug, thiserror::Error)]
pub enum SkLookupError {
    #[error("make a BPF map of sockets")]
    Map(#[source] io::Error),
    #[error("load a BPF program of type sk_lookup")]
    Program(#[source] io::Error),
    #[error("attach a BPF program to the network namespace")]
    Attach(#[source] io::Error),
}

impl SkLookup {
    /// Loads the program and attaches it to the network namespace of the calling thread. Nothing is assigned yet.
    ///
    /// Several processes may have such a program at work; what the one attached last has assigned wins.
    /// Errors: `PermissionDenied` without CAP_BPF and CAP_NET_ADMIN; `InvalidInput` before Linux 5.9.
    pub fn attach() -> Result<SkLookup, SkLookupError> {
        let sockets = SocketMap::sockets(PORTS_MAX).map_err(SkLookupError::Map)?;
        let link = attach(&port_program(sockets.fd()), b"anynode_takeove\0")?;
        Ok(SkLookup { sockets, _link: link })
    }

    /// Sends new connections to `port`, on any address of this node, to `socket`, which must be listening; if others
    /// share its port (SO_REUSEPORT), to all of them in turn. Replaces what was assigned before without a gap.
    ///
    /// Errors: `InvalidInput` for a socket of another kind or one that does not listen, `E2BIG` when too many ports are
    /// assigned.
    pub fn assign(&self, port: u16, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = u64::from(socket.as_raw_fd().cast_unsigned());
        for key in keys(port, socket)? {
            self.sockets.update(&key, &value)?;
        }
        Ok(())
    }

    /// New connections to `port` go where they went before. Whether any was assigned.
    pub fn unassign(&self, port: u16) -> io::Result<bool> {
        let mut is_any = false;
        for key in [u32::from(port), IS_IPV6 | u32::from(port)] {
            is_any |= self.sockets.remove(&key)?;
        }
        Ok(is_any)
    }

    /// Whether a listening socket is assigned to `port` and still open.
    pub fn is_assigned(&self, port: u16) -> bool {
        [u32::from(port), IS_IPV6 | u32::from(port)]
            .into_iter()
            .any(|key| self.sockets.cookie(key).is_ok())
    }
}

/// The program for addresses at work in one network namespace, until this is dropped, the process dies or the namespace goes,
/// which it does not keep. Two descriptors.
#[derive(Debug)]
pub struct AddressLookup {
    /// A trie of prefixes; those of IPv4 as IPv6 writes them.
    addresses: Map<Prefix, u32>,
    /// Holds the program in its place, and the program the socket in its map.
    _link: Link,
}

impl AddressLookup {
    /// Loads the program and attaches it to the network namespace of the calling thread, with `socket`, which must be
    /// listening, for the connections to all addresses that are set to be taken. None is yet.
    ///
    /// Only connections that come from inside are taken (over loopback), for the kernel answers the neighbours on every link
    /// for what is local. Several such programs may be at work; what the one attached last takes is taken by it.
    /// Errors: as `SkLookup::attach`; `InvalidInput` before Linux 5.17, or for a socket that does not listen.
    pub fn attach(socket: BorrowedFd<'_>) -> Result<AddressLookup, SkLookupError> {
        let sockets = socket_alone(socket).map_err(SkLookupError::Map)?;
        let addresses = Map::trie(ADDRESSES_MAX).map_err(SkLookupError::Map)?;
        let code = address_program(addresses.fd(), sockets.fd());
        let link = attach(&code, b"anynode_vips\0\0\0\0")?;
        Ok(AddressLookup { addresses, _link: link })
    }

    /// What becomes of connections to these addresses from now on, but for those that a longer prefix is known for.
    /// Errors: `NoSpace` for too many.
    pub fn set(&self, addresses: IpNet, verdict: Verdict) -> io::Result<()> {
        self.addresses.update(&Prefix::from(addresses), &(verdict as u32))
    }

    /// Forgets these addresses: what is known of others that contain them counts. Whether they were known.
    pub fn remove(&self, addresses: IpNet) -> io::Result<bool> {
        self.addresses.remove(&Prefix::from(addresses))
    }
}

/// What becomes of a connection from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes where it would have gone.
    Pass = 0,
    /// It is ours.
    Take = 1,
    /// It is refused.
    Refuse = 2,
    /// It is ours if it is to port 53; to another, it goes where it would have gone.
    TakeNames = 3,
}

/// The program for services' addresses on the node itself, at work in one network namespace until this is dropped or the
/// process dies. Connections to the address and port of what is taken come to one group of listening sockets; nothing is
/// bound to any of these ports. Two descriptors.
#[derive(Debug)]
pub struct VipLookup {
    taken: Map<Vip, u32>,
    /// Holds the program in its place, and the program the sockets.
    _link: Link,
}

impl VipLookup {
    /// Loads the program and attaches it to the network namespace of the calling thread, with `socket`, which must be
    /// listening, and those that share its port (SO_REUSEPORT). Nothing is taken yet, and nothing outside of `network` ever.
    ///
    /// What a program that was attached before this one picks a socket for is left to it.
    /// Errors: as `SkLookup::attach`; `InvalidInput` also for a socket that does not listen.
    pub fn attach(socket: BorrowedFd<'_>, network: Ipv4Net) -> Result<VipLookup, SkLookupError> {
        let sockets = socket_alone(socket).map_err(SkLookupError::Map)?;
        let taken = Map::hash(VIP_PORTS_MAX).map_err(SkLookupError::Map)?;
        let link = attach(&vip_program(network, taken.fd(), sockets.fd()), b"anynode_hosts\0\0\0")?;
        Ok(VipLookup { taken, _link: link })
    }

    /// Takes new connections to this address and port. Errors: `E2BIG` for too many.
    pub fn take(&self, at: SocketAddrV4) -> io::Result<()> {
        self.taken.update(&Vip::from(at), &1)
    }

    /// New connections go where they went before. Whether they were taken.
    pub fn pass(&self, at: SocketAddrV4) -> io::Result<bool> {
        self.taken.remove(&Vip::from(at))
    }
}

/// An address in network byte order, and a port as the kernel gives it to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Vip {
    address: [u8; 4],
    port: u32,
}

impl From<SocketAddrV4> for Vip {
    fn from(at: SocketAddrV4) -> Vip {
        Vip {
            address: at.ip().octets(),
            port: at.port().into(),
        }
    }
}

/// A key of the trie (struct bpf_lpm_trie_key): how many bits count, and the address in network byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Prefix {
    n_bits: u32,
    address: [u8; 16],
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Prefix {
        let n_bits = u32::from(net.prefix_len());
        match net.network() {
            IpAddr::V4(ip) => Prefix {
                n_bits: n_bits + 96,
                address: ip.to_ipv6_mapped().octets(),
            },
            IpAddr::V6(ip) => Prefix {
                n_bits,
                address: ip.octets(),
            },
        }
    }
}

/// Binds `n` listening sockets that are reached by assignment only: on loopback, on a port that the kernel picks, sharing
/// it. They take IPv4 and IPv6 (IPv4 alone where the kernel has no IPv6). Do not wait in `accept` (non-blocking).
///
/// Errors: those of `socket`, `bind` and `listen`.
pub fn listen_hidden(n: usize, liveness: &Liveness) -> io::Result<Vec<TcpListener>> {
    let new = |addr: SocketAddr| -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(true)?;
        set_stream_options(&SockRef::from(&socket), liveness)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    // An IPv6 socket bound to an address of IPv6 would refuse IPv4; one bound to 127.0.0.1 in IPv6's writing takes both
    // when they are assigned to it.
    let loopback = Ipv4Addr::LOCALHOST;
    let first = new((loopback.to_ipv6_mapped(), 0).into()).or_else(|_| new((loopback, 0).into()))?;
    let addr = first.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    let mut sockets = vec![first];
    for _ in 1..n {
        sockets.push(new(addr)?);
    }
    for socket in &sockets {
        // What they accept has the port that was asked for, and inherits this: others may listen there once it is theirs.
        socket.set_reuse_address(true)?;
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

/// Binds `n` listening sockets for `VipLookup`, which share a port of 127.0.0.1 that no program wants. They do not wait in
/// `accept`. Errors: those of `socket`, `bind` and `listen`.
pub fn listen_for_vips(n: usize, liveness: &Liveness) -> io::Result<Vec<TcpListener>> {
    let first = |port| listen(Some(Ipv4Addr::LOCALHOST.into()), port, 1, liveness, |_| false);
    let unwanted = UNWANTED_PORTS.into_iter().find_map(|port| first(port).ok());
    let mut sockets = unwanted.map_or_else(|| first(0), Ok)?;
    let more = listen_beside(&sockets[0], n.saturating_sub(1), liveness)?;
    sockets.extend(more);
    Ok(sockets)
}

/// Why a program is not at work, for a person: what is missing, or what the kernel says.
pub fn explain(error: &SkLookupError) -> String {
    let (SkLookupError::Map(source) | SkLookupError::Program(source) | SkLookupError::Attach(source)) = error;
    match (source.kind(), missing_capabilities()) {
        (io::ErrorKind::PermissionDenied, missing) if missing.is_empty() => {
            format!(
                "{error}: {source}, though the capabilities are there: a seccomp profile or a user namespace forbids it"
            )
        }
        (io::ErrorKind::PermissionDenied, missing) => format!("missing: {}", missing.join(", ")),
        _ => format!("this kernel cannot: {error}: {source}"),
    }
}

/// The names of those capabilities, of the ones that a takeover needs, that this thread does not have.
pub fn missing_capabilities() -> Vec<&'static str> {
    let Ok(sets) = rustix::thread::capabilities(None) else {
        return Vec::new();
    };
    let has = |capability| sets.effective.contains(capability);
    let mut missing = Vec::new();
    if !has(CapabilitySet::NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    // The older kernels know CAP_SYS_ADMIN alone; the newer ones take it as well.
    if !has(CapabilitySet::BPF) && !has(CapabilitySet::SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    missing
}

/// A map of one socket, which must be listening.
fn socket_alone(socket: BorrowedFd<'_>) -> io::Result<SocketMap> {
    let sockets = SocketMap::sockets(1)?;
    // Refuses what does not listen.
    keys(0, socket)?;
    sockets.update(&ONLY_KEY, &u64::from(socket.as_raw_fd().cast_unsigned()))?;
    Ok(sockets)
}

/// The keys of the protocols that `socket` can take connections of.
fn keys(port: u16, socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let socket = SockRef::from(&socket);
    // The kernel would take a connected one too, and never pick it.
    if !socket.is_listener()? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket does not listen",
        ));
    }
    let (v4, v6) = (u32::from(port), IS_IPV6 | u32::from(port));
    match socket.local_addr()?.as_socket() {
        Some(SocketAddr::V4(_)) => Ok(vec![v4]),
        Some(SocketAddr::V6(_)) if socket.only_v6()? => Ok(vec![v6]),
        Some(SocketAddr::V6(_)) => Ok(vec![v4, v6]),
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The program for ports, for a map with that descriptor: one look at the map, and the socket if there is one.
fn port_program(map: i32) -> Vec<Instruction> {
    let mut code = vec![
        // r6 = the context; it is lost in r1 with the first call.
        Instruction::mov(R6, R1),
        Instruction::load(R2, R6, CTX_PROTOCOL),
        Instruction::jump_unless(R2, libc::IPPROTO_TCP, PASS),
        Instruction::load(R3, R6, CTX_FAMILY),
        Instruction::load(R2, R6, CTX_LOCAL_PORT),
        // IPv6: the bit above the port.
        Instruction::skip_unless(R3, libc::AF_INET6, 1),
        Instruction::or(R2, IS_IPV6.cast_signed()),
        Instruction::store(R10, -4, R2),
    ];
    pick(&mut code, map, -4, SK_LOOKUP_F_REPLACE);
    finish(code)
}

/// The program for addresses: a look at the trie of addresses, then the one socket.
fn address_program(addresses: i32, sockets: i32) -> Vec<Instruction> {
    // Where on the stack the key of the trie is, and within it the address.
    const KEY: i16 = -20;
    const ADDRESS: i16 = KEY + 4;
    let mut code = vec![
        Instruction::mov(R6, R1),
        Instruction::load(R2, R6, CTX_PROTOCOL),
        Instruction::jump_unless(R2, libc::IPPROTO_TCP, PASS),
        Instruction::load(R2, R6, CTX_INGRESS),
        Instruction::jump_unless(R2, LOOPBACK_INDEX, PASS),
        Instruction::store_number(R10, KEY, 128),
    ];
    // The words of an address of IPv6; for IPv4 the kernel gives zeros, and the last two are written over.
    for word in 0..4 {
        code.push(Instruction::load(R2, R6, CTX_LOCAL_IP6 + 4 * word));
        code.push(Instruction::store(R10, ADDRESS + 4 * word, R2));
    }
    code.extend([
        Instruction::load(R3, R6, CTX_FAMILY),
        Instruction::skip_unless(R3, libc::AF_INET, 3),
        Instruction::store_number(R10, ADDRESS + 8, 0xffff_i32.to_be()),
        Instruction::load(R2, R6, CTX_LOCAL_IP4),
        Instruction::store(R10, ADDRESS + 12, R2),
    ]);
    look_up(&mut code, addresses, KEY);
    code.extend([
        Instruction::load(R1, R0, 0),
        Instruction::jump_if(R1, Verdict::Pass as i32, PASS),
        Instruction::skip_unless(R1, Verdict::Refuse as i32, 2),
        Instruction::mov32(R0, SK_DROP),
        Instruction::exit(),
        Instruction::skip_unless(R1, Verdict::TakeNames as i32, 2),
        Instruction::load(R2, R6, CTX_LOCAL_PORT),
        Instruction::jump_unless(R2, DNS_PORT, PASS),
    ]);
    code.push(Instruction::store_number(R10, -4, ONLY_KEY.cast_signed()));
    pick(&mut code, sockets, -4, SK_LOOKUP_F_REPLACE);
    finish(code)
}

/// The program for addresses and ports: whether it is of the network, a look at the map of what is taken, then the one socket.
fn vip_program(network: Ipv4Net, taken: i32, sockets: i32) -> Vec<Instruction> {
    const KEY: i16 = -8;
    // As they lie in memory, which is how the kernel gives the address.
    let word = |ip: Ipv4Addr| i32::from_ne_bytes(ip.octets());
    let mut code = vec![
        Instruction::mov(R6, R1),
        Instruction::load(R2, R6, CTX_PROTOCOL),
        Instruction::jump_unless(R2, libc::IPPROTO_TCP, PASS),
        // Zero for IPv6.
        Instruction::load(R2, R6, CTX_LOCAL_IP4),
        Instruction::store(R10, KEY, R2),
        Instruction::and32(R2, word(network.netmask())),
        Instruction::jump_unless32(R2, word(network.network()), PASS),
        Instruction::load(R2, R6, CTX_LOCAL_PORT),
        Instruction::store(R10, KEY + 4, R2),
    ];
    look_up(&mut code, taken, KEY);
    code.push(Instruction::store_number(R10, -12, ONLY_KEY.cast_signed()));
    pick(&mut code, sockets, -12, 0);
    finish(code)
}

/// r0 = what the map has under the key at `key` on the stack; without it the program ends.
fn look_up(code: &mut Vec<Instruction>, map: i32, key: i16) {
    code.extend(Instruction::load_map(R1, map));
    code.extend([
        Instruction::mov(R2, R10),
        Instruction::add(R2, i32::from(key)),
        Instruction::call(HELPER_MAP_LOOKUP),
        Instruction::jump_if(R0, 0, PASS),
    ]);
}

/// The connection is for the socket that the map has under the key at `key` on the stack. Without `SK_LOOKUP_F_REPLACE` only
/// where no program before this one has picked one.
fn pick(code: &mut Vec<Instruction>, map: i32, key: i16, flags: i32) {
    look_up(code, map, key);
    code.extend([
        // r7 = the socket, which is ours until released.
        Instruction::mov(R7, R0),
        Instruction::mov(R1, R6),
        Instruction::mov(R2, R0),
        Instruction::mov32(R3, flags),
        Instruction::call(HELPER_SK_ASSIGN),
        Instruction::mov(R1, R7),
        Instruction::call(HELPER_SK_RELEASE),
    ]);
}

/// Whatever happened, the connection goes on; without a socket assigned, as it would have without us.
fn finish(mut code: Vec<Instruction>) -> Vec<Instruction> {
    let pass = code.len();
    code.extend([Instruction::mov32(R0, SK_PASS), Instruction::exit()]);
    for (at, instruction) in code.iter_mut().enumerate() {
        if instruction.offset == PASS {
            instruction.offset = (pass - at - 1) as i16;
        }
    }
    code
}

/// Loads a program and attaches it to the network namespace of the calling thread. The link alone holds it.
fn attach(code: &[Instruction], name: &[u8; 16]) -> Result<Link, SkLookupError> {
    let program = load(code, name).map_err(SkLookupError::Program)?;
    File::open("/proc/thread-self/ns/net")
        .and_then(|namespace| Link::create(&program, &namespace))
        .map_err(SkLookupError::Attach)
}

/// Stands above the port in a key.
const IS_IPV6: u32 = 1 << 16;
/// One of IPv4 and one of IPv6 for each of 8,192 ports. The kernel takes 16 bytes for each in advance.
const PORTS_MAX: u32 = 16 << 10;
/// Prefixes in one namespace; the kernel takes memory for those that are there only.
const ADDRESSES_MAX: u32 = 64 << 10;
/// Addresses and ports of services on one node. The kernel takes 16 bytes for each in advance.
const VIP_PORTS_MAX: u32 = 64 << 10;
/// Of the map for one socket.
const ONLY_KEY: u32 = 0;
/// Where names are asked for.
const DNS_PORT: i32 = 53;
/// Of loopback, in every network namespace.
const LOOPBACK_INDEX: i32 = 1;

// From the uapi header `linux/bpf.h`.
const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_SK_RELEASE: i32 = 86;
const HELPER_SK_ASSIGN: i32 = 124;
/// A socket that a program before this one picked is replaced: whoever attached last wins.
const SK_LOOKUP_F_REPLACE: i32 = 1;
const SK_DROP: i32 = 0;
const SK_PASS: i32 = 1;
/// Where things are in struct bpf_sk_lookup.
const CTX_FAMILY: i16 = 8;
const CTX_PROTOCOL: i16 = 12;
const CTX_LOCAL_IP4: i16 = 40;
const CTX_LOCAL_IP6: i16 = 44;
const CTX_LOCAL_PORT: i16 = 60;
const CTX_INGRESS: i16 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_stays_within_the_program() {
        let network = Ipv4Net::new_assert(Ipv4Addr::new(127, 77, 0, 0), 16);
        for code in [port_program(3), address_program(3, 4), vip_program(network, 3, 4)] {
            for (at, instruction) in code.iter().enumerate() {
                let is_jump = matches!(instruction.code, 0x15 | 0x55 | 0x56);
                let target = at as i64 + 1 + i64::from(instruction.offset);
                assert!(
                    !is_jump || (0..code.len() as i64).contains(&target),
                    "{at}: {instruction:?}"
                );
            }
            assert_eq!(code.last(), Some(&Instruction::exit()));
        }
        assert_eq!(size_of::<Instruction>(), 8);
    }

    #[test]
    fn hidden_listeners_share_one_port_of_loopback() {
        let listeners = listen_hidden(3, &Liveness::default()).unwrap();
        let addrs: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        assert!(
            addrs[0].ip().to_canonical().is_loopback() && addrs.iter().all(|addr| *addr == addrs[0]),
            "{addrs:?}"
        );
    }
}

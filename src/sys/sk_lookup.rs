//! Small BPF programs that, for TCP connections to some local ports or to some addresses, pick a listening socket of ours
//! before the kernel looks who is bound there. They are written here instruction by instruction; no compiler and no library
//! of C is asked. Not here: which ports, and when (`takeover`); which addresses (`vips`).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use ipnet::IpNet;
use rustix::thread::CapabilitySet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::socket::{BACKLOG, Liveness, set_stream_options};

/// The program for ports at work in one network namespace, until this is dropped or the process dies.
#[derive(Debug)]
pub struct SkLookup {
    /// From protocol and port to a listening socket; the kernel takes out what is closed.
    sockets: OwnedFd,
    /// Holds the program in its place.
    _link: OwnedFd,
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
        let sockets = create_map(&socket_map(PORTS_MAX)).map_err(SkLookupError::Map)?;
        let link = attach(&port_program(sockets.as_raw_fd()), b"anynode_takeove\0")?;
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
            update(&self.sockets, &key, &value)?;
        }
        Ok(())
    }

    /// New connections to `port` go where they went before. Whether any was assigned.
    pub fn unassign(&self, port: u16) -> io::Result<bool> {
        let mut is_any = false;
        for key in [u32::from(port), IS_IPV6 | u32::from(port)] {
            is_any |= delete(&self.sockets, &key)?;
        }
        Ok(is_any)
    }

    /// Whether a listening socket is assigned to `port` and still open.
    pub fn is_assigned(&self, port: u16) -> bool {
        [u32::from(port), IS_IPV6 | u32::from(port)]
            .into_iter()
            .any(|key| lookup(&self.sockets, key).is_ok())
    }
}

/// The program for addresses at work in one network namespace, until this is dropped, the process dies or the namespace goes,
/// which it does not keep. Two descriptors.
#[derive(Debug)]
pub struct AddressLookup {
    /// A trie of prefixes; those of IPv4 as IPv6 writes them.
    addresses: OwnedFd,
    /// Holds the program in its place, and the program the socket in its map.
    _link: OwnedFd,
}

impl AddressLookup {
    /// Loads the program and attaches it to the network namespace of the calling thread, with `socket`, which must be
    /// listening, for the connections to all addresses that are set to be taken. None is yet.
    ///
    /// Only connections that come from inside are taken (over loopback), for the kernel answers the neighbours on every link
    /// for what is local. Several such programs may be at work; what the one attached last takes is taken by it.
    /// Errors: as `SkLookup::attach`; `InvalidInput` before Linux 5.17, or for a socket that does not listen.
    pub fn attach(socket: BorrowedFd<'_>) -> Result<AddressLookup, SkLookupError> {
        let sockets = create_map(&socket_map(1)).map_err(SkLookupError::Map)?;
        let addresses = create_map(&MapCreate {
            map_type: BPF_MAP_TYPE_LPM_TRIE,
            key_size: size_of::<Prefix>() as u32,
            value_size: 4,
            max_entries: ADDRESSES_MAX,
            flags: BPF_F_NO_PREALLOC,
        })
        .map_err(SkLookupError::Map)?;
        // Refuses what does not listen.
        keys(0, socket).map_err(SkLookupError::Map)?;
        let value = u64::from(socket.as_raw_fd().cast_unsigned());
        update(&sockets, &ONLY_KEY, &value).map_err(SkLookupError::Map)?;
        let code = address_program(addresses.as_raw_fd(), sockets.as_raw_fd());
        let link = attach(&code, b"anynode_vips\0\0\0\0")?;
        Ok(AddressLookup { addresses, _link: link })
    }

    /// What becomes of connections to these addresses from now on, but for those that a longer prefix is known for.
    /// Errors: `NoSpace` for too many.
    pub fn set(&self, addresses: IpNet, verdict: Verdict) -> io::Result<()> {
        update(&self.addresses, &Prefix::from(addresses), &(verdict as u32))
    }

    /// Forgets these addresses: what is known of others that contain them counts. Whether they were known.
    pub fn remove(&self, addresses: IpNet) -> io::Result<bool> {
        delete(&self.addresses, &Prefix::from(addresses))
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

/// Loads a program and attaches it to the network namespace of the calling thread. The link alone holds it.
fn attach(code: &[Instruction], name: &[u8; 16]) -> Result<OwnedFd, SkLookupError> {
    let program = load(code, name).map_err(SkLookupError::Program)?;
    File::open("/proc/thread-self/ns/net")
        .and_then(|namespace| create_link(&program, &namespace))
        .map_err(SkLookupError::Attach)
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
        socket.listen(BACKLOG)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
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
    pick(&mut code, map, -4);
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
    ]);
    code.push(Instruction::store_number(R10, -4, ONLY_KEY.cast_signed()));
    pick(&mut code, sockets, -4);
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

/// The connection is for the socket that the map has under the key at `key` on the stack.
fn pick(code: &mut Vec<Instruction>, map: i32, key: i16) {
    look_up(code, map, key);
    code.extend([
        // r7 = the socket, which is ours until released.
        Instruction::mov(R7, R0),
        Instruction::mov(R1, R6),
        Instruction::mov(R2, R0),
        Instruction::mov32(R3, SK_LOOKUP_F_REPLACE),
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

/// One instruction, as the kernel has it (struct bpf_insn).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination register in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        let registers = match cfg!(target_endian = "little") {
            true => source << 4 | destination,
            false => destination << 4 | source,
        };
        Instruction {
            code,
            registers,
            offset,
            immediate,
        }
    }

    const fn mov(destination: u8, source: u8) -> Instruction {
        Instruction::new(0xbf, destination, source, 0, 0)
    }

    const fn mov32(destination: u8, value: i32) -> Instruction {
        Instruction::new(0xb4, destination, 0, 0, value)
    }

    const fn add(destination: u8, value: i32) -> Instruction {
        Instruction::new(0x07, destination, 0, 0, value)
    }

    const fn or(destination: u8, value: i32) -> Instruction {
        Instruction::new(0x47, destination, 0, 0, value)
    }

    /// 32 bits from memory.
    const fn load(destination: u8, source: u8, offset: i16) -> Instruction {
        Instruction::new(0x61, destination, source, offset, 0)
    }

    const fn store(destination: u8, offset: i16, source: u8) -> Instruction {
        Instruction::new(0x63, destination, source, offset, 0)
    }

    const fn store_number(destination: u8, offset: i16, value: i32) -> Instruction {
        Instruction::new(0x62, destination, 0, offset, value)
    }

    const fn jump_if(register: u8, value: i32, offset: i16) -> Instruction {
        Instruction::new(0x15, register, 0, offset, value)
    }

    const fn jump_unless(register: u8, value: i32, offset: i16) -> Instruction {
        Instruction::new(0x55, register, 0, offset, value)
    }

    const fn skip_unless(register: u8, value: i32, n: i16) -> Instruction {
        Instruction::jump_unless(register, value, n)
    }

    /// The address of a map, of 64 bits, so that it takes two places.
    const fn load_map(destination: u8, map: i32) -> [Instruction; 2] {
        const PSEUDO_MAP_FD: u8 = 1;
        [
            Instruction::new(0x18, destination, PSEUDO_MAP_FD, 0, map),
            Instruction::new(0, 0, 0, 0, 0),
        ]
    }

    const fn call(helper: i32) -> Instruction {
        Instruction::new(0x85, 0, 0, 0, helper)
    }

    const fn exit() -> Instruction {
        Instruction::new(0x95, 0, 0, 0, 0)
    }
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R6: u8 = 6;
const R7: u8 = 7;
/// The stack's end.
const R10: u8 = 10;
/// Stands for the way to the program's end, until its length is known.
const PASS: i16 = i16::MAX;

/// A map from a number to a listening socket.
fn socket_map(n_max: u32) -> MapCreate {
    MapCreate {
        map_type: BPF_MAP_TYPE_SOCKHASH,
        key_size: 4,
        // As wide as a socket's cookie, so that it can be looked up from here too.
        value_size: 8,
        max_entries: n_max,
        ..MapCreate::default()
    }
}

fn create_map(attr: &MapCreate) -> io::Result<OwnedFd> {
    // SAFETY: BPF_MAP_CREATE takes no pointers; it returns a new descriptor, which nobody else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(BPF_MAP_CREATE, attr)?)) }
}

/// `name`: with a zero at its end.
fn load(code: &[Instruction], name: &[u8; 16]) -> io::Result<OwnedFd> {
    let attr = ProgramLoad {
        program_type: BPF_PROG_TYPE_SK_LOOKUP,
        n_instructions: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name: *name,
        expected_attach_type: BPF_SK_LOOKUP,
        ..ProgramLoad::default()
    };
    // SAFETY: the pointers lead to as many instructions as said and to a text with a zero at its end, both alive during
    // the call, which only reads them and returns a new descriptor, which nobody else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(BPF_PROG_LOAD, &attr)?)) }
}

fn create_link(program: &OwnedFd, namespace: &File) -> io::Result<OwnedFd> {
    let attr = LinkCreate {
        program: program.as_raw_fd(),
        target: namespace.as_raw_fd(),
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: BPF_LINK_CREATE takes no pointers here; it returns a new descriptor, which nobody else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(bpf(BPF_LINK_CREATE, &attr)?)) }
}

fn update<K, V>(map: &OwnedFd, key: &K, value: &V) -> io::Result<()> {
    let attr = MapElement::new(map, key, std::ptr::from_ref(value) as u64);
    // SAFETY: key and value point to as many bytes as the map was made for, alive during the call, which reads them.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop) }
}

fn delete<K>(map: &OwnedFd, key: &K) -> io::Result<bool> {
    let attr = MapElement::new(map, key, 0);
    // SAFETY: the key points to as many bytes as the map was made for, alive during the call, which reads them.
    match unsafe { bpf(BPF_MAP_DELETE_ELEM, &attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The cookie of the socket under `key`.
fn lookup(map: &OwnedFd, key: u32) -> io::Result<u64> {
    let mut cookie = 0u64;
    let attr = MapElement::new(map, &key, (&raw mut cookie) as u64);
    // SAFETY: the key points to as many bytes as the map was made for and is read; the value to as many, which are
    // written; both are alive during the call and nobody else looks at them.
    unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attr)? };
    Ok(cookie)
}

/// Calls bpf(2). Errors: its own.
///
/// # Safety
/// `attr` is what `command` takes, without padding, and every pointer and length in it holds for the call. What is
/// returned as a descriptor is the caller's to own.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: the attribute's address and length are those of a live value; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match result {
        0.. => Ok(result as i32),
        _ => Err(io::Error::last_os_error()),
    }
}

// Parts of union bpf_attr, cut off behind the last field in use; the kernel takes the rest for zero.

#[derive(Default)]
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

#[derive(Default)]
#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    n_instructions: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: i32,
    target: i32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl MapElement {
    fn new<K>(map: &OwnedFd, key: &K, value: u64) -> MapElement {
        MapElement {
            map: map.as_fd().as_raw_fd().cast_unsigned(),
            padding: 0,
            key: std::ptr::from_ref(key) as u64,
            value,
            flags: 0,
        }
    }
}

/// Stands above the port in a key.
const IS_IPV6: u32 = 1 << 16;
/// One of IPv4 and one of IPv6 for each of 8,192 ports. The kernel takes 16 bytes for each in advance.
const PORTS_MAX: u32 = 16 << 10;
/// Prefixes in one namespace; the kernel takes memory for those that are there only.
const ADDRESSES_MAX: u32 = 64 << 10;
/// Of the map for one socket.
const ONLY_KEY: u32 = 0;
/// Of loopback, in every network namespace.
const LOOPBACK_INDEX: i32 = 1;

// From the uapi header `linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
const BPF_MAP_TYPE_SOCKHASH: u32 = 18;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
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
        for code in [port_program(3), address_program(3, 4)] {
            for (at, instruction) in code.iter().enumerate() {
                let is_jump = matches!(instruction.code, 0x15 | 0x55);
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

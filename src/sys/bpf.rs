//! What BPF programs and their maps are made of, and the calls that load them; instruction by instruction, so that no compiler
//! and no library of C is asked. Not here: what the programs do (`sk_lookup`).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One instruction, as the kernel has it (struct bpf_insn).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) code: u8,
    /// Destination register in the low half, source in the high one.
    registers: u8,
    pub(super) offset: i16,
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

    pub(super) const fn mov(destination: u8, source: u8) -> Instruction {
        Instruction::new(0xbf, destination, source, 0, 0)
    }

    pub(super) const fn mov32(destination: u8, value: i32) -> Instruction {
        Instruction::new(0xb4, destination, 0, 0, value)
    }

    pub(super) const fn add(destination: u8, value: i32) -> Instruction {
        Instruction::new(0x07, destination, 0, 0, value)
    }

    pub(super) const fn or(destination: u8, value: i32) -> Instruction {
        Instruction::new(0x47, destination, 0, 0, value)
    }

    /// The low 32 bits; the others become zero.
    pub(super) const fn and32(destination: u8, value: i32) -> Instruction {
        Instruction::new(0x54, destination, 0, 0, value)
    }

    /// 32 bits from memory.
    pub(super) const fn load(destination: u8, source: u8, offset: i16) -> Instruction {
        Instruction::new(0x61, destination, source, offset, 0)
    }

    pub(super) const fn store(destination: u8, offset: i16, source: u8) -> Instruction {
        Instruction::new(0x63, destination, source, offset, 0)
    }

    pub(super) const fn store_number(destination: u8, offset: i16, value: i32) -> Instruction {
        Instruction::new(0x62, destination, 0, offset, value)
    }

    pub(super) const fn jump_if(register: u8, value: i32, offset: i16) -> Instruction {
        Instruction::new(0x15, register, 0, offset, value)
    }

    pub(super) const fn jump_unless(register: u8, value: i32, offset: i16) -> Instruction {
        Instruction::new(0x55, register, 0, offset, value)
    }

    /// Compares the low 32 bits alone.
    pub(super) const fn jump_unless32(register: u8, value: i32, offset: i16) -> Instruction {
        Instruction::new(0x56, register, 0, offset, value)
    }

    pub(super) const fn skip_unless(register: u8, value: i32, n: i16) -> Instruction {
        Instruction::jump_unless(register, value, n)
    }

    /// The address of a map, of 64 bits, so that it takes two places.
    pub(super) const fn load_map(destination: u8, map: i32) -> [Instruction; 2] {
        const PSEUDO_MAP_FD: u8 = 1;
        [
            Instruction::new(0x18, destination, PSEUDO_MAP_FD, 0, map),
            Instruction::new(0, 0, 0, 0, 0),
        ]
    }

    pub(super) const fn call(helper: i32) -> Instruction {
        Instruction::new(0x85, 0, 0, 0, helper)
    }

    pub(super) const fn exit() -> Instruction {
        Instruction::new(0x95, 0, 0, 0, 0)
    }
}

pub(super) const R0: u8 = 0;
pub(super) const R1: u8 = 1;
pub(super) const R2: u8 = 2;
pub(super) const R3: u8 = 3;
pub(super) const R6: u8 = 6;
pub(super) const R7: u8 = 7;
/// The stack's end.
pub(super) const R10: u8 = 10;
/// Stands for the way to the program's end, until its length is known.
pub(super) const PASS: i16 = i16::MAX;

/// Values of `V` by keys of `K`, which have no padding.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    _of: PhantomData<fn(K) -> V>,
}

/// Listening sockets by number; the kernel takes out what is closed. What is read is a socket's cookie, what is written its
/// descriptor.
pub(super) type SocketMap = Map<u32, u64>;

impl SocketMap {
    pub(super) fn sockets(n_max: u32) -> io::Result<SocketMap> {
        Map::create(BPF_MAP_TYPE_SOCKHASH, n_max, 0)
    }

    /// The cookie of the socket under `key`.
    pub(super) fn cookie(&self, key: u32) -> io::Result<u64> {
        let mut cookie = 0u64;
        let attr = self.element(&key, (&raw mut cookie) as u64);
        // SAFETY: the key points to as many bytes as the map was made for and is read; the value to as many, which are
        // written; both are alive during the call and nobody else looks at them.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &attr)? };
        Ok(cookie)
    }
}

impl<K, V> Map<K, V> {
    /// By the whole key. The kernel takes 16 bytes for each of `n_max` in advance, and more for what is there.
    pub(super) fn hash(n_max: u32) -> io::Result<Map<K, V>> {
        Map::create(BPF_MAP_TYPE_HASH, n_max, BPF_F_NO_PREALLOC)
    }

    /// By the longest prefix; the key begins with its length in bits. The kernel takes memory for what is there only.
    pub(super) fn trie(n_max: u32) -> io::Result<Map<K, V>> {
        Map::create(BPF_MAP_TYPE_LPM_TRIE, n_max, BPF_F_NO_PREALLOC)
    }

    fn create(map_type: u32, max_entries: u32, flags: u32) -> io::Result<Map<K, V>> {
        let attr = MapCreate {
            map_type,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            max_entries,
            flags,
        };
        // SAFETY: BPF_MAP_CREATE takes no pointers; it returns a new descriptor, which nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(bpf(BPF_MAP_CREATE, &attr)?) };
        Ok(Map { fd, _of: PhantomData })
    }

    /// For `Instruction::load_map`.
    pub(super) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub(super) fn update(&self, key: &K, value: &V) -> io::Result<()> {
        let attr = self.element(key, std::ptr::from_ref(value) as u64);
        // SAFETY: key and value point to as many bytes as the map was made for, alive during the call, which reads them.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop) }
    }

    /// Whether there was one.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let attr = self.element(key, 0);
        // SAFETY: the key points to as many bytes as the map was made for, alive during the call, which reads them.
        match unsafe { bpf(BPF_MAP_DELETE_ELEM, &attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn element(&self, key: &K, value: u64) -> MapElement {
        MapElement {
            map: self.fd().cast_unsigned(),
            padding: 0,
            key: std::ptr::from_ref(key) as u64,
            value,
            flags: 0,
        }
    }
}

/// Loads a program of type sk_lookup. `name`: with a zero at its end.
pub(super) fn load(code: &[Instruction], name: &[u8; 16]) -> io::Result<OwnedFd> {
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

/// A program at work in a network namespace, until this is dropped or the process dies.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Link {
    /// Puts a program to work. The link alone holds it.
    pub(super) fn create(program: &OwnedFd, namespace: &File) -> io::Result<Link> {
        let attr = LinkCreate {
            program: program.as_raw_fd(),
            target: namespace.as_raw_fd(),
            attach_type: BPF_SK_LOOKUP,
            flags: 0,
        };
        // SAFETY: BPF_LINK_CREATE takes no pointers here; it returns a new descriptor, which nobody else owns.
        unsafe { Ok(Link(OwnedFd::from_raw_fd(bpf(BPF_LINK_CREATE, &attr)?))) }
    }
}

impl Drop for Link {
    /// To close it is not enough: a child that another thread has just forked holds the descriptor until it runs its program,
    /// and meanwhile this program's would take connections for a socket that is closed.
    fn drop(&mut self) {
        let attr = LinkDetach {
            link: self.0.as_raw_fd(),
        };
        // SAFETY: BPF_LINK_DETACH takes no pointers; the descriptor is alive during the call.
        let detached = unsafe { bpf(BPF_LINK_DETACH, &attr) };
        if let Err(error) = detached {
            // Before Linux 5.9, and where the namespace is gone.
            tracing::debug!(%error, "a BPF program is left to its descriptor's end");
        }
    }
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
struct LinkDetach {
    link: i32,
}

#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// From the uapi header `linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
const BPF_MAP_TYPE_SOCKHASH: u32 = 18;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

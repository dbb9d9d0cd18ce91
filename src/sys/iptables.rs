//! The rules of iptables-legacy, which the kernel keeps apart from nf_tables: read, never written. Not here: the rules of
//! iptables-nft (`nft`), which most systems have.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use super::netlink::{u16_ne, u32_ne};

/// The TCP ports that rules of `chain` in the IPv4 table `nat` send elsewhere (DNAT), in the network namespace of the
/// calling thread; empty where iptables-legacy is not in use there.
///
/// Errors: `PermissionDenied` without CAP_NET_ADMIN; `InvalidData` when the kernel's answer does not make sense.
pub fn legacy_dnat_ports(chain: &str) -> io::Result<BTreeSet<u16>> {
    // Asking the kernel for the table makes it, and may load modules for it: only where it is already.
    let names = match std::fs::read_to_string("/proc/thread-self/net/ip_tables_names") {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    if !names.lines().any(|name| name == "nat") {
        return Ok(BTreeSet::new());
    }
    // Any IPv4 socket will do.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for _ in 0..TRIES {
        let mut info = vec![0; INFO_LEN];
        info[..3].copy_from_slice(b"nat");
        option(&socket, GET_INFO, &mut info)?;
        let size = u32_ne(&info, INFO_LEN - 4).ok_or(io::ErrorKind::InvalidData)?;
        let mut table = vec![0; ENTRIES_HEADER + size as usize];
        table[..3].copy_from_slice(b"nat");
        table[32..36].copy_from_slice(&size.to_ne_bytes());
        match option(&socket, GET_ENTRIES, &mut table) {
            Ok(()) => return Ok(dnat_ports(&table[ENTRIES_HEADER..], chain)),
            // It changed its size in between.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Reads entries (struct ipt_entry) one behind the other; those that do not fit end them.
fn dnat_ports(mut entries: &[u8], chain: &str) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    let mut is_inside = false;
    while let Some((entry, rest)) = next_entry(entries) {
        entries = rest;
        let Some((target, data)) = target(entry) else {
            continue;
        };
        match target {
            // The head of a chain is an entry whose target says its name.
            "ERROR" => is_inside = text(data) == Some(chain),
            "DNAT" if is_inside => ports.extend(tcp_port(entry)),
            _ => {}
        }
    }
    ports
}

fn next_entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(u16_ne(entries, NEXT_OFFSET)?);
    let is_sane = len >= ENTRY_LEN && len <= entries.len();
    is_sane.then(|| entries.split_at(len))
}

/// The name of an entry's target, and what belongs to it.
fn target(entry: &[u8]) -> Option<(&str, &[u8])> {
    let target = entry.get(usize::from(u16_ne(entry, TARGET_OFFSET)?)..)?;
    Some((text(target.get(2..EXTENSION_LEN - 1)?)?, target.get(EXTENSION_LEN..)?))
}

/// The one destination port of an entry for TCP.
fn tcp_port(entry: &[u8]) -> Option<u16> {
    let end = usize::from(u16_ne(entry, TARGET_OFFSET)?);
    let mut matches = entry.get(ENTRY_LEN..end)?;
    loop {
        let len = usize::from(u16_ne(matches, 0)?);
        if len < EXTENSION_LEN || len > matches.len() {
            return None;
        }
        let (one, rest) = matches.split_at(len);
        matches = rest;
        if text(&one[2..EXTENSION_LEN - 1]) == Some("tcp") {
            // struct xt_tcp: the lowest and highest source port, the same for the destination, in host order.
            let [low, high] = [4, 6].map(|at| u16_ne(one, EXTENSION_LEN + at));
            return low.filter(|_| low == high);
        }
    }
}

/// Up to the first zero.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

/// Calls getsockopt(2), which fills all of `value`. Errors: its own.
fn option(socket: &UdpSocket, name: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the socket is open; value and length are live and nobody else's, and the kernel writes no more than that
    // length says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const TRIES: usize = 10;
// From the uapi headers `linux/netfilter_ipv4/ip_tables.h` and `linux/netfilter/x_tables.h`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// struct ipt_getinfo; the size of all entries stands last.
const INFO_LEN: usize = 84;
/// struct ipt_get_entries: the table's name, the size, and filling up to 8 bytes.
const ENTRIES_HEADER: usize = 40;
/// struct ipt_entry, and where it says where its target and the next entry begin.
const ENTRY_LEN: usize = 112;
const TARGET_OFFSET: usize = 88;
const NEXT_OFFSET: usize = 90;
/// A match or target: its size, its name of 29 bytes, its revision.
const EXTENSION_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = ((EXTENSION_LEN + data.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(EXTENSION_LEN, 0);
        bytes.extend_from_slice(data);
        bytes
    }

    fn entry(matches: &[Vec<u8>], target: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; ENTRY_LEN];
        bytes.extend(matches.concat());
        let target_at = bytes.len() as u16;
        bytes.extend_from_slice(target);
        let len = bytes.len() as u16;
        bytes[TARGET_OFFSET..TARGET_OFFSET + 2].copy_from_slice(&target_at.to_ne_bytes());
        bytes[NEXT_OFFSET..NEXT_OFFSET + 2].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    fn chain(name: &str) -> Vec<u8> {
        let mut data = name.as_bytes().to_vec();
        data.resize(32, 0);
        entry(&[], &extension("ERROR", &data))
    }

    fn to_port(protocol: &str, low: u16, high: u16, target: &str) -> Vec<u8> {
        let mut data: Vec<u8> = [0, 65535, low, high]
            .iter()
            .flat_map(|port| port.to_ne_bytes())
            .collect();
        data.extend([0; 8]);
        let other = extension("addrtype", &[0; 8]);
        entry(&[other, extension(protocol, &data)], &extension(target, &[0; 24]))
    }

    #[test]
    fn ports_are_read_from_one_chain_alone() {
        let table = [
            to_port("tcp", 1, 1, "DNAT"),
            chain("DOCKER"),
            to_port("tcp", 2, 2, "DNAT"),
            chain("DOCKER-INGRESS"),
            to_port("tcp", 8080, 8080, "DNAT"),
            to_port("udp", 3, 3, "DNAT"),
            to_port("tcp", 4, 9, "DNAT"),
            to_port("tcp", 5, 5, "REDIRECT"),
            to_port("tcp", 443, 443, "DNAT"),
            chain("OTHER"),
            to_port("tcp", 6, 6, "DNAT"),
        ]
        .concat();
        assert_eq!(dnat_ports(&table, "DOCKER-INGRESS"), BTreeSet::from([443, 8080]));
        for len in 0..table.len() {
            assert!(dnat_ports(&table[..len], "DOCKER-INGRESS").is_subset(&BTreeSet::from([443, 8080])));
        }
        assert!(dnat_ports(&[0xff; 4096], "DOCKER-INGRESS").is_empty());
    }
}

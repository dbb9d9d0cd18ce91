//! nf_tables over netlink: a table of our own that keeps connections to some ports on this node from being sent elsewhere,
//! and a look at what others' rules send elsewhere. No program and no library of C is asked. Not here: which ports, and when
//! (`takeover`).
//!
//! The table, as `nft list ruleset` shows it:
//!
//! ```text
//! table inet NAME {
//!     set ports { type inet_service; elements = { 8080 } }
//!     chain prerouting {
//!         type nat hook prerouting priority -110; policy accept;
//!         meta nfproto ipv4 fib daddr type local tcp dport @ports dnat ip to ip daddr
//!         meta nfproto ipv6 fib daddr type local tcp dport @ports dnat ip6 to ip6 daddr
//!     }
//!     chain output { the same, type nat hook output priority -110 }
//! }
//! ```
//!
//! The address is rewritten to itself: nothing changes, and the connection counts as translated, so that rules behind
//! (Docker's stand at -100) are not asked. `redirect` would do that too, but to the interface's first address, or to
//! 127.0.0.1 for local clients, and the listener would see another address than the one that was asked for.

#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink::{Message, Messages, NetlinkSocket, attr, attr_str, attr_u32, attrs};

/// A table of our own. It is removed when this is dropped; if the kernel knows owners, also when the process dies.
#[derive(Debug)]
pub struct NftTable {
    socket: NetlinkSocket,
    name: String,
    family: Family,
    is_owned: bool,
}

/// Another's or our table, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    pub name: String,
    family: u8,
    /// A process holds it: only that one may change it, and it goes when that one does.
    pub is_owned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4 alone, where the kernel has no NAT for both at once (before Linux 5.2).
    Ip,
}

impl NftTable {
    /// Makes the table, empty, in the network namespace of the calling thread.
    ///
    /// `name`: letters, digits and `_`, of no other table.
    /// `wants_owner`: ask the kernel to tie it to this process (since Linux 5.12); without that it is an ordinary table.
    /// Errors: `PermissionDenied` without CAP_NET_ADMIN; `Unsupported` or `NotFound` where the kernel has no nf_tables
    /// or not all of fib, set and nat in it.
    pub fn create(name: &str, wants_owner: bool) -> io::Result<NftTable> {
        let mut table = NftTable {
            socket: NetlinkSocket::open(rustix::net::netlink::NETFILTER, 0)?,
            name: name.to_owned(),
            family: Family::Inet,
            is_owned: wants_owner,
        };
        let mut first_error = None;
        for (family, is_owned) in [
            (Family::Inet, true),
            (Family::Inet, false),
            (Family::Ip, true),
            (Family::Ip, false),
        ] {
            if is_owned && !wants_owner {
                continue;
            }
            (table.family, table.is_owned) = (family, is_owned);
            match table.replace(&BTreeSet::new()) {
                Ok(()) => return Ok(table),
                Err(error) if is_for_lack_of_support(&error) => _ = first_error.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        Err(first_error.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether the kernel ties the table to this process.
    pub fn is_owned(&self) -> bool {
        self.is_owned
    }

    /// Makes the table anew with these ports, in one step: there is no moment without it. Errors: as `create`.
    pub fn replace(&mut self, ports: &BTreeSet<u16>) -> io::Result<()> {
        let (family, name, is_owned) = (self.family, self.name.clone(), self.is_owned);
        self.batch(|batch| {
            // Made first, so that there is one to delete.
            batch.table(family.code(), &name, is_owned);
            batch.delete_table(family.code(), &name);
            batch.table(family.code(), &name, is_owned);
            batch.ruleset(family, &name);
            batch.elements(libc::NFT_MSG_NEWSETELEM, family.code(), &name, ports);
        })
    }

    /// Adds ports; those that are there already stay. Errors: `NotFound` when somebody removed the table.
    pub fn add(&mut self, ports: &BTreeSet<u16>) -> io::Result<()> {
        let (family, name) = (self.family.code(), self.name.clone());
        self.batch(|batch| batch.elements(libc::NFT_MSG_NEWSETELEM, family, &name, ports))
    }

    /// Takes ports out. Errors: `NotFound` when one of them is not in, or somebody removed the table.
    pub fn remove(&mut self, ports: &BTreeSet<u16>) -> io::Result<()> {
        let (family, name) = (self.family.code(), self.name.clone());
        self.batch(|batch| batch.elements(libc::NFT_MSG_DELSETELEM, family, &name, ports))
    }

    /// Whether the table is in the kernel as it was made, with these ports. Errors: the kernel's.
    pub fn is_whole(&mut self, ports: &BTreeSet<u16>) -> io::Result<bool> {
        let (family, name) = (self.family.code(), self.name.clone());
        let seq = self.socket.seq();
        let mut question = Messages::default();
        question
            .begin(kind(libc::NFT_MSG_GETSETELEM), DUMP, seq, &[family, 0, 0, 0])
            .attr_str(NFTA_SET_ELEM_LIST_TABLE, &name)
            .attr_str(NFTA_SET_ELEM_LIST_SET, SET);
        let mut found = BTreeSet::new();
        let mut take = |message: &Message<'_>| found.extend(elements_of(payload(message)));
        match self.socket.ask(&question, seq, &mut take) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        if found != *ports {
            return Ok(false);
        }
        let mut n_rules = 0;
        dump_rules(&mut self.socket, family, &name, None, |_| n_rules += 1)?;
        Ok(n_rules == CHAINS.len() * self.family.protocols().len())
    }

    /// All tables whose name begins with `prefix`. Errors: the kernel's.
    pub fn tables(&mut self, prefix: &str) -> io::Result<Vec<TableInfo>> {
        let seq = self.socket.seq();
        let mut question = Messages::default();
        question.begin(kind(libc::NFT_MSG_GETTABLE), DUMP, seq, &[0, 0, 0, 0]);
        let mut tables = Vec::new();
        self.socket.ask(&question, seq, |message| {
            let body = payload(message);
            if let Some(name) = attr_str(body, NFTA_TABLE_NAME).filter(|name| name.starts_with(prefix)) {
                tables.push(TableInfo {
                    name: name.to_owned(),
                    family: message.body.first().copied().unwrap_or(0),
                    is_owned: attr_u32(body, NFTA_TABLE_FLAGS).unwrap_or(0) & NFT_TABLE_F_OWNER != 0,
                });
            }
        })?;
        Ok(tables)
    }

    /// Removes a table with all that is in it. Errors: `NotFound` when it is gone; `PermissionDenied` when it is owned.
    pub fn delete(&mut self, table: &TableInfo) -> io::Result<()> {
        self.batch(|batch| batch.delete_table(table.family, &table.name))
    }

    fn batch(&mut self, fill: impl FnOnce(&mut Batch<'_>)) -> io::Result<()> {
        let mut batch = Batch::begin(&mut self.socket);
        fill(&mut batch);
        let (messages, seqs) = batch.end();
        if seqs.0 == seqs.1 {
            return Ok(());
        }
        self.socket.transact(&messages, seqs)
    }
}

impl Drop for NftTable {
    fn drop(&mut self) {
        let table = TableInfo {
            name: self.name.clone(),
            family: self.family.code(),
            is_owned: self.is_owned,
        };
        // An error: it is gone already, or goes with the socket, or is cleared away by whoever starts next.
        let _ = self.delete(&table);
    }
}

impl Family {
    fn code(self) -> u8 {
        match self {
            Family::Inet => libc::NFPROTO_INET as u8,
            Family::Ip => libc::NFPROTO_IPV4 as u8,
        }
    }

    fn protocols(self) -> &'static [Layer3] {
        match self {
            Family::Inet => &[IPV4, IPV6],
            Family::Ip => &[IPV4],
        }
    }
}

/// Where the destination address is in a header.
struct Layer3 {
    protocol: u8,
    daddr_offset: u32,
    addr_len: u32,
}

const IPV4: Layer3 = Layer3 {
    protocol: libc::NFPROTO_IPV4 as u8,
    daddr_offset: 16,
    addr_len: 4,
};

const IPV6: Layer3 = Layer3 {
    protocol: libc::NFPROTO_IPV6 as u8,
    daddr_offset: 24,
    addr_len: 16,
};

/// Messages that the kernel carries out together or not at all.
struct Batch<'a> {
    socket: &'a mut NetlinkSocket,
    messages: Messages,
    first: u32,
    last: u32,
}

impl Batch<'_> {
    fn begin(socket: &mut NetlinkSocket) -> Batch<'_> {
        let first = socket.seq();
        let mut messages = Messages::default();
        let flags = libc::NLM_F_REQUEST as u16;
        messages.begin(libc::NFNL_MSG_BATCH_BEGIN as u16, flags, first, &BATCH_HEADER);
        Batch {
            socket,
            messages,
            first,
            last: first,
        }
    }

    fn end(mut self) -> (Messages, (u32, u32)) {
        let seq = self.socket.seq();
        let flags = libc::NLM_F_REQUEST as u16;
        self.messages
            .begin(libc::NFNL_MSG_BATCH_END as u16, flags, seq, &BATCH_HEADER);
        (self.messages, (self.first, self.last))
    }

    fn message(&mut self, of: libc::c_int, flags: libc::c_int, family: u8) -> &mut Messages {
        self.last = self.socket.seq();
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        self.messages.begin(kind(of), flags, self.last, &[family, 0, 0, 0])
    }

    fn table(&mut self, family: u8, name: &str, is_owned: bool) {
        let message = self.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, family);
        message.attr_str(NFTA_TABLE_NAME, name);
        if is_owned {
            message.attr_u32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
        }
        // As `nft` writes a comment: its type, its length, the text.
        let mut comment = vec![0, COMMENT.len() as u8 + 1];
        comment.extend_from_slice(COMMENT.as_bytes());
        comment.push(0);
        message.attr(NFTA_TABLE_USERDATA, &comment);
    }

    fn delete_table(&mut self, family: u8, name: &str) {
        self.message(libc::NFT_MSG_DELTABLE, 0, family)
            .attr_str(NFTA_TABLE_NAME, name);
    }

    /// The set and the chains with their rules.
    fn ruleset(&mut self, family: Family, table: &str) {
        self.message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, family.code())
            .attr_str(NFTA_SET_TABLE, table)
            .attr_str(NFTA_SET_NAME, SET)
            .attr_u32(NFTA_SET_FLAGS, 0)
            .attr_u32(NFTA_SET_KEY_TYPE, NFT_TYPE_INET_SERVICE)
            .attr_u32(NFTA_SET_KEY_LEN, 2)
            .attr_u32(NFTA_SET_ID, SET_ID);
        for (name, hook) in CHAINS {
            self.message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, family.code())
                .attr_str(NFTA_CHAIN_TABLE, table)
                .attr_str(NFTA_CHAIN_NAME, name)
                .nest(NFTA_CHAIN_HOOK, |m| {
                    m.attr_u32(NFTA_HOOK_HOOKNUM, *hook)
                        .attr_u32(NFTA_HOOK_PRIORITY, PRIORITY.cast_unsigned());
                })
                .attr_u32(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32)
                .attr_str(NFTA_CHAIN_TYPE, "nat");
            for layer3 in family.protocols() {
                self.message(
                    libc::NFT_MSG_NEWRULE,
                    libc::NLM_F_CREATE | libc::NLM_F_APPEND,
                    family.code(),
                )
                .attr_str(NFTA_RULE_TABLE, table)
                .attr_str(NFTA_RULE_CHAIN, name)
                .nest(NFTA_RULE_EXPRESSIONS, |m| rule(m, layer3));
            }
        }
    }

    fn elements(&mut self, of: libc::c_int, family: u8, table: &str, ports: &BTreeSet<u16>) {
        let flags = match of {
            libc::NFT_MSG_NEWSETELEM => libc::NLM_F_CREATE,
            _ => 0,
        };
        let ports: Vec<u16> = ports.iter().copied().collect();
        for ports in ports.chunks(ELEMENTS_PER_MESSAGE) {
            self.message(of, flags, family)
                .attr_str(NFTA_SET_ELEM_LIST_TABLE, table)
                .attr_str(NFTA_SET_ELEM_LIST_SET, SET)
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                    for port in ports {
                        m.nest(NFTA_LIST_ELEM, |m| {
                            m.nest(NFTA_SET_ELEM_KEY, |m| {
                                m.attr(NFTA_DATA_VALUE, &port.to_be_bytes());
                            });
                        });
                    }
                });
        }
    }
}

/// A TCP connection of that protocol to this node on one of our ports keeps its destination.
fn rule(m: &mut Messages, layer3: &Layer3) {
    expression(m, "meta", |m| {
        m.attr_u32(NFTA_META_DREG, NFT_REG_1)
            .attr_u32(NFTA_META_KEY, libc::NFT_META_NFPROTO as u32);
    });
    equals(m, &[layer3.protocol]);
    expression(m, "meta", |m| {
        m.attr_u32(NFTA_META_DREG, NFT_REG_1)
            .attr_u32(NFTA_META_KEY, libc::NFT_META_L4PROTO as u32);
    });
    equals(m, &[libc::IPPROTO_TCP as u8]);
    load(m, NFT_PAYLOAD_TRANSPORT_HEADER, DPORT_OFFSET, 2);
    expression(m, "lookup", |m| {
        m.attr_str(NFTA_LOOKUP_SET, SET)
            .attr_u32(NFTA_LOOKUP_SREG, NFT_REG_1)
            .attr_u32(NFTA_LOOKUP_SET_ID, SET_ID);
    });
    expression(m, "fib", |m| {
        m.attr_u32(NFTA_FIB_DREG, NFT_REG_1)
            .attr_u32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .attr_u32(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
    });
    equals(m, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
    load(m, NFT_PAYLOAD_NETWORK_HEADER, layer3.daddr_offset, layer3.addr_len);
    expression(m, "nat", |m| {
        m.attr_u32(NFTA_NAT_TYPE, NFT_NAT_DNAT)
            .attr_u32(NFTA_NAT_FAMILY, u32::from(layer3.protocol))
            .attr_u32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
    });
}

fn expression(m: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    m.nest(NFTA_LIST_ELEM, |m| {
        m.attr_str(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data);
    });
}

fn equals(m: &mut Messages, value: &[u8]) {
    expression(m, "cmp", |m| {
        m.attr_u32(NFTA_CMP_SREG, NFT_REG_1)
            .attr_u32(NFTA_CMP_OP, NFT_CMP_EQ)
            .nest(NFTA_CMP_DATA, |m| {
                m.attr(NFTA_DATA_VALUE, value);
            });
    });
}

fn load(m: &mut Messages, base: u32, offset: u32, len: u32) {
    expression(m, "payload", |m| {
        m.attr_u32(NFTA_PAYLOAD_DREG, NFT_REG_1)
            .attr_u32(NFTA_PAYLOAD_BASE, base)
            .attr_u32(NFTA_PAYLOAD_OFFSET, offset)
            .attr_u32(NFTA_PAYLOAD_LEN, len);
    });
}

/// Looks at what others have in nf_tables. Reading takes CAP_NET_ADMIN too.
#[derive(Debug)]
pub struct NftReader {
    socket: NetlinkSocket,
}

impl NftReader {
    /// In the network namespace of the calling thread. Errors: those of `socket` and `bind`.
    pub fn open() -> io::Result<NftReader> {
        Ok(NftReader {
            socket: NetlinkSocket::open(rustix::net::netlink::NETFILTER, 0)?,
        })
    }

    /// A number that moves with every change of anybody's rules. Errors: the kernel's.
    pub fn generation(&mut self) -> io::Result<u32> {
        let seq = self.socket.seq();
        let mut question = Messages::default();
        let flags = libc::NLM_F_REQUEST as u16;
        question.begin(kind(libc::NFT_MSG_GETGEN), flags, seq, &[0, 0, 0, 0]);
        let mut generation = None;
        self.socket.ask(&question, seq, |message| {
            generation = attr_u32(payload(message), NFTA_GEN_ID);
        })?;
        generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The TCP ports that rules of `chain` in a table called `nat` send elsewhere (DNAT), in either family; empty where
    /// there is no such chain. What iptables-legacy wrote does not show here. Errors: the kernel's.
    pub fn dnat_ports(&mut self, chain: &str) -> io::Result<BTreeSet<u16>> {
        loop {
            let mut ports = BTreeSet::new();
            let mut read = || -> io::Result<()> {
                for family in [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6] {
                    dump_rules(&mut self.socket, family as u8, "nat", Some(chain), |body| {
                        ports.extend(attr(body, NFTA_RULE_EXPRESSIONS).and_then(dnat_port));
                    })?;
                }
                Ok(())
            };
            match read() {
                Ok(()) => return Ok(ports),
                // Somebody changed the rules meanwhile.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Hears of every change of rules in its network namespace.
#[derive(Debug)]
pub struct NftMonitor {
    socket: NetlinkSocket,
}

impl NftMonitor {
    /// In the network namespace of the calling thread. Errors: `PermissionDenied` without CAP_NET_ADMIN.
    pub fn open() -> io::Result<NftMonitor> {
        let groups = 1 << (libc::NFNLGRP_NFTABLES - 1);
        Ok(NftMonitor {
            socket: NetlinkSocket::open(rustix::net::netlink::NETFILTER, groups)?,
        })
    }

    /// Lets tokio wait for what is heard. Errors: those of `epoll_ctl`.
    pub fn wait_for_changes(self) -> io::Result<AsyncFd<NftMonitor>> {
        // SAFETY: the monitor owns its descriptor, keeps the same one for its life, and closes it only when dropped, which
        // happens after `AsyncFd` has let go of it.
        let changes = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        changes.map_err(Into::into)
    }

    /// Takes all that was heard, without waiting, and says whether there was anything. Errors: those of `recv`.
    pub fn drain(&mut self) -> io::Result<bool> {
        self.socket.drain()
    }
}

impl AsRawFd for NftMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

impl AsFd for NftMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Hands the attributes of each rule to `take`. No table or no chain of that name: no rules.
fn dump_rules(
    socket: &mut NetlinkSocket,
    family: u8,
    table: &str,
    chain: Option<&str>,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let seq = socket.seq();
    let mut question = Messages::default();
    question
        .begin(kind(libc::NFT_MSG_GETRULE), DUMP, seq, &[family, 0, 0, 0])
        .attr_str(NFTA_RULE_TABLE, table);
    if let Some(chain) = chain {
        question.attr_str(NFTA_RULE_CHAIN, chain);
    }
    let asked = socket.ask(&question, seq, |message| {
        let body = payload(message);
        // The kernel filters; were it not to, others' rules must not count.
        if attr_str(body, NFTA_RULE_TABLE) == Some(table)
            && chain.is_none_or(|chain| attr_str(body, NFTA_RULE_CHAIN) == Some(chain))
        {
            take(body);
        }
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        asked => asked,
    }
}

/// The port of a rule that sends TCP connections to one port elsewhere; `None` for any other rule.
///
/// iptables writes such a rule in expressions of nf_tables or, in some versions, as matches of its own.
fn dnat_port(expressions: &[u8]) -> Option<u16> {
    let mut is_tcp = false;
    let mut port = None;
    let mut is_dnat = false;
    // What the register holds, as far as it matters here.
    let mut loaded = Loaded::Other;
    for (_, expression) in attrs(expressions) {
        let data = attr(expression, NFTA_EXPR_DATA).unwrap_or_default();
        match attr_str(expression, NFTA_EXPR_NAME)? {
            "meta" if attr_u32(data, NFTA_META_KEY) == Some(libc::NFT_META_L4PROTO as u32) => {
                loaded = Loaded::Protocol;
            }
            "payload" => {
                let at = [NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN].map(|kind| attr_u32(data, kind));
                loaded = match at {
                    [Some(NFT_PAYLOAD_TRANSPORT_HEADER), Some(DPORT_OFFSET), Some(2)] => Loaded::Port,
                    [Some(NFT_PAYLOAD_NETWORK_HEADER), Some(9), Some(1)] => Loaded::Protocol,
                    _ => Loaded::Other,
                };
            }
            "cmp" => {
                let value = attr(data, NFTA_CMP_DATA).and_then(|data| attr(data, NFTA_DATA_VALUE))?;
                let is_equal = attr_u32(data, NFTA_CMP_OP) == Some(NFT_CMP_EQ);
                match (loaded, value) {
                    (Loaded::Protocol, [protocol, ..]) if is_equal => {
                        is_tcp |= i32::from(*protocol) == libc::IPPROTO_TCP;
                    }
                    (Loaded::Port, [high, low]) if is_equal => port = Some(u16::from_be_bytes([*high, *low])),
                    _ => {}
                }
            }
            "match" if attr_str(data, NFTA_MATCH_NAME) == Some("tcp") => {
                // struct xt_tcp: the lowest and highest source port, the same for the destination, in host order.
                let info = attr(data, NFTA_MATCH_INFO)?;
                let [low, high] = [4, 6].map(|at| super::netlink::u16_ne(info, at));
                is_tcp = true;
                port = low.filter(|_| low == high).or(port);
            }
            "target" => is_dnat |= attr_str(data, NFTA_TARGET_NAME) == Some("DNAT"),
            "nat" => is_dnat |= attr_u32(data, NFTA_NAT_TYPE) == Some(NFT_NAT_DNAT),
            _ => {}
        }
    }
    port.filter(|_| is_tcp && is_dnat)
}

#[derive(Clone, Copy)]
enum Loaded {
    Protocol,
    Port,
    Other,
}

/// The ports in one message of a set's elements.
fn elements_of(body: &[u8]) -> impl Iterator<Item = u16> {
    attrs(attr(body, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default()).filter_map(|(_, element)| {
        let key = attr(element, NFTA_SET_ELEM_KEY)?;
        Some(u16::from_be_bytes(attr(key, NFTA_DATA_VALUE)?.try_into().ok()?))
    })
}

/// The attributes of a message, behind netfilter's own header.
fn payload<'a>(message: &Message<'a>) -> &'a [u8] {
    message.body.get(NFGEN_HEADER..).unwrap_or_default()
}

fn kind(of: libc::c_int) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES << 8) | of) as u16
}

/// Whether the kernel lacks what was asked for, so that asking for less may do.
fn is_for_lack_of_support(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOENT | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
    )
}

const COMMENT: &str = "made by anynode: its published ports stay on this node";
const SET: &str = "ports";
const SET_ID: u32 = 1;
const CHAINS: &[(&str, u32)] = &[
    ("prerouting", libc::NF_INET_PRE_ROUTING as u32),
    ("output", libc::NF_INET_LOCAL_OUT as u32),
];
/// Before iptables' and Docker's NAT at -100, after connection tracking at -200.
const PRIORITY: i32 = -110;
/// Each takes 20 bytes of the 64 KiB that an attribute may have.
const ELEMENTS_PER_MESSAGE: usize = 1024;
const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
const NFGEN_HEADER: usize = 4;
/// Family, version, and which part of netfilter the batch is for.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8];
const DPORT_OFFSET: u32 = 2;

// From the uapi headers `linux/netfilter/nf_tables.h` and `nf_tables_compat.h`.
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFT_NAT_DNAT: u32 = 1;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
const NFTA_TARGET_NAME: u16 = 1;
const NFT_REG_1: u32 = 1;
/// What `nft` calls `inet_service`; the kernel keeps the number and gives it no meaning.
const NFT_TYPE_INET_SERVICE: u32 = 13;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::messages;

    fn expressions(fill: impl FnOnce(&mut Messages)) -> Vec<u8> {
        let mut m = Messages::default();
        m.begin(0, 0, 0, &[]).nest(NFTA_RULE_EXPRESSIONS, fill);
        let message = messages(m.as_bytes()).next().unwrap();
        attr(message.body, NFTA_RULE_EXPRESSIONS).unwrap().to_vec()
    }

    fn protocol(m: &mut Messages, protocol: libc::c_int) {
        expression(m, "meta", |m| {
            m.attr_u32(NFTA_META_DREG, NFT_REG_1)
                .attr_u32(NFTA_META_KEY, libc::NFT_META_L4PROTO as u32);
        });
        equals(m, &[protocol as u8]);
    }

    fn target(m: &mut Messages, name: &str) {
        expression(m, "target", |m| {
            m.attr_str(NFTA_TARGET_NAME, name);
        });
    }

    #[test]
    fn a_port_is_read_from_rules_as_iptables_writes_them() {
        let native = expressions(|m| {
            protocol(m, libc::IPPROTO_TCP);
            load(m, NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
            equals(m, &8080u16.to_be_bytes());
            expression(m, "counter", |_| {});
            target(m, "DNAT");
        });
        assert_eq!(dnat_port(&native), Some(8080));
        let by_match = |low: u16, high: u16| {
            expressions(|m| {
                load(m, NFT_PAYLOAD_NETWORK_HEADER, 9, 1);
                equals(m, &[libc::IPPROTO_TCP as u8]);
                expression(m, "match", |m| {
                    let mut info: Vec<u8> = [0, 65535, low, high].iter().flat_map(|p| p.to_ne_bytes()).collect();
                    info.extend([0; 4]);
                    m.attr_str(NFTA_MATCH_NAME, "tcp").attr(NFTA_MATCH_INFO, &info);
                });
                target(m, "DNAT");
            })
        };
        assert_eq!(dnat_port(&by_match(443, 443)), Some(443));
        assert_eq!(dnat_port(&by_match(1, 443)), None, "a range");
    }

    #[test]
    fn other_rules_name_no_port() {
        let rule = |ip_protocol, offset, name| {
            expressions(|m| {
                protocol(m, ip_protocol);
                load(m, NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2);
                equals(m, &8080u16.to_be_bytes());
                target(m, name);
            })
        };
        assert_eq!(dnat_port(&rule(libc::IPPROTO_TCP, 2, "DNAT")), Some(8080));
        assert_eq!(dnat_port(&rule(libc::IPPROTO_UDP, 2, "DNAT")), None);
        assert_eq!(dnat_port(&rule(libc::IPPROTO_TCP, 0, "DNAT")), None, "the source port");
        assert_eq!(dnat_port(&rule(libc::IPPROTO_TCP, 2, "RETURN")), None);
        assert_eq!(dnat_port(&[]), None);
        let whole = rule(libc::IPPROTO_TCP, 2, "DNAT");
        for len in 0..whole.len() {
            assert_eq!(dnat_port(&whole[..len]), None, "cut at {len}");
        }
    }

    #[test]
    fn many_elements_are_split_and_read_back() {
        let ports: BTreeSet<u16> = (1..=5000).collect();
        let mut batch = Batch {
            socket: &mut NetlinkSocket::open(rustix::net::netlink::NETFILTER, 0).unwrap(),
            messages: Messages::default(),
            first: 0,
            last: 0,
        };
        batch.elements(libc::NFT_MSG_NEWSETELEM, Family::Inet.code(), "t", &ports);
        let made: Vec<Message<'_>> = messages(batch.messages.as_bytes()).collect();
        assert_eq!(made.len(), 5);
        let read: BTreeSet<u16> = made.iter().flat_map(|m| elements_of(payload(m))).collect();
        assert_eq!(read, ports);
    }
}

//! A way to this machine's own addresses that its loopback has no part in: a small network namespace of our own, and a cable
//! from it to the one that we are in. A connection that is opened there, from an address that is nobody's here, arrives over
//! the cable: what the machine's firewall says of that address holds for it. Not here: whose connections (`proxy`).
//!
//! ```text
//!   the transit namespace                    |  ours
//!   default dev cable                        |  anynode-N, without an address
//!   from cable: everything is local          |  table 24942+N: ADDRESS dev anynode-N, for each that is led back
//!   ports of N's range only                  |  rule 1: tcp to a port of N's range: table 24942+N
//! ```
//!
//! Answers find back by a rule that asks for the port, too, and a table that has the addresses that were asked for alone. So
//! nobody else's packets are led there but those to the same address *and* a port of the range, which hardly anybody calls from
//! or listens on; `ip route get ADDRESS` says what it always did. The rule names no
//! interface, so that it counts also where the machine sends on what came over the cable (DNAT), and where it looks whether
//! packets come from where answers would go (rp_filter): no setting of the machine is touched. A second rule has its refusals
//! (ICMP, destination unreachable) find back.
//!
//! The name of the cable's end is the claim to N. All goes with the namespace, when its last descriptor is closed, but for the
//! rules: those of a number that nobody has are taken away by `sweep`.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::netlink::{Messages, u32_ne};
use super::netns::{Netns, NetnsError};
use super::rtnetlink::{
    FR_ACT_TO_TBL, FRA_PRIORITY, FRA_PROTOCOL, FRA_TABLE, LocalRoute, ONLY_NEW, PROTOCOL, RtNetlink, family_byte,
    found_before, octets,
};

/// The namespace with its cable. Without it answers find back no longer.
#[derive(Debug)]
pub struct Transit {
    netns: Netns,
    number: u8,
    /// Of the cable's end with us.
    link: u32,
    routing: RtNetlink,
    _held: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum TransitError {
    #[error("start a thread")]
    Thread(#[source] io::Error),
    #[error("make a network namespace")]
    Namespace(#[source] io::Error),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel has no veth, mostly, or the privilege (CAP_NET_ADMIN) is missing.
    #[error("make a cable to a network namespace")]
    Cable(#[source] io::Error),
    #[error("make a cable to a network namespace: all names from anynode-0 to anynode-{} are taken", N_MAX - 1)]
    Taken,
    #[error("the routes of a network namespace")]
    Inside(#[source] io::Error),
    #[error("set {key} in a network namespace")]
    Sysctl {
        key: &'static str,
        #[source]
        err: io::Error,
    },
    #[error("the rule that leads answers back")]
    Rule(#[source] io::Error),
    #[error("the route by which answers to {address} come back")]
    Route {
        address: Ipv4Addr,
        #[source]
        err: io::Error,
    },
}

impl Transit {
    /// Makes it, for the network namespace of the calling thread. Blocks, for some milliseconds.
    /// Errors: see `TransitError`. What was made is taken down then.
    pub fn make() -> Result<Transit, TransitError> {
        // A thread that leaves its namespace is of no more use.
        let maker = std::thread::Builder::new().name("transit".to_owned()).spawn(make);
        let made = maker.map_err(TransitError::Thread)?.join();
        made.unwrap_or_else(|_| Err(TransitError::Namespace(io::ErrorKind::Other.into())))
    }

    /// Sockets that were opened there keep it alive, but without a way back.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Has answers to connections from `address` find back, if they do not. Two questions to the kernel where they do.
    /// Errors: `Rule`, `Route`; the cable is gone.
    pub fn lead_back(&mut self, address: Ipv4Addr) -> Result<(), TransitError> {
        // A rule that others took away is put back.
        add_rules(&mut self.routing, self.number).map_err(TransitError::Rule)?;
        let (number, link) = (self.number, self.link);
        let told = self
            .routing
            .tell(libc::RTM_NEWROUTE, ONLY_NEW, &back_header(), |message| {
                back_attrs(message, address, number, link);
            });
        found_before(told, libc::EEXIST).map_err(|err| TransitError::Route { address, err })?;
        Ok(())
    }

    /// Leads nothing back to that address any more.
    pub fn forget(&mut self, address: Ipv4Addr) -> io::Result<()> {
        let (number, link) = (self.number, self.link);
        let told = self.routing.tell(libc::RTM_DELROUTE, 0, &back_header(), |message| {
            back_attrs(message, address, number, link);
        });
        found_before(told, libc::ESRCH).map(drop)
    }
}

impl Drop for Transit {
    fn drop(&mut self) {
        // Errors: they are gone, or whoever starts next clears them away.
        let _ = remove_rules(&mut self.routing, self.number);
        let _ = self.routing.remove_link(self.link);
    }
}

/// Takes away the rules of those that were killed, in the network namespace of the calling thread. Returns whether any are left,
/// of those that live, or whose cables the kernel has yet to take down. Errors: the kernel's.
pub fn sweep() -> io::Result<bool> {
    let mut routing = RtNetlink::open()?;
    let mut is_any_left = false;
    for number in 0..N_MAX {
        let name = name(number);
        if routing.link(&name)?.is_some() {
            is_any_left = true;
            continue;
        }
        // Whoever has taken the number meanwhile gets back what it had.
        if remove_rules(&mut routing, number)? && routing.link(&name)?.is_some() {
            add_rules(&mut routing, number)?;
            is_any_left = true;
        }
    }
    Ok(is_any_left)
}

fn make() -> Result<Transit, TransitError> {
    let mut routing = RtNetlink::open().map_err(TransitError::Cable)?;
    // SAFETY: only the network namespace of this thread changes, which ends soon; descriptors are shared as before.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|err| TransitError::Namespace(err.into()))?;
    let held = File::open("/proc/thread-self/ns/net").map_err(TransitError::Namespace)?;
    // It has no name: the descriptor is the way to it, from any thread.
    let netns = Netns::at(format!("/proc/self/fd/{}", held.as_raw_fd()))?;
    let mut inside = RtNetlink::open().map_err(TransitError::Inside)?;
    let (number, link) = plug_in(&mut routing, &held)?;
    let mut transit = Transit {
        netns,
        number,
        link,
        routing,
        _held: held.into(),
    };
    let cable = inside.link(CABLE).map_err(TransitError::Inside)?;
    let cable = cable.ok_or_else(|| TransitError::Inside(io::ErrorKind::NotFound.into()))?;
    inside.lay_out(cable).map_err(TransitError::Inside)?;
    let ports = ports(number);
    set(PORT_RANGE, &format!("{} {}", ports[0], ports[1]))?;
    // A port that was used a moment ago may be used again: there are few.
    let _ = set("net/ipv4/tcp_tw_reuse", "1");
    let _ = set("net/ipv4/tcp_tw_reuse_delay", "1");
    transit.routing.bring_up(link).map_err(TransitError::Cable)?;
    add_rules(&mut transit.routing, number).map_err(TransitError::Rule)?;
    Ok(transit)
}

/// Makes a cable from `routing`'s namespace to that of `inside`. Returns the first number whose name is free, and the link.
fn plug_in(routing: &mut RtNetlink, inside: &File) -> Result<(u8, u32), TransitError> {
    for number in 0..N_MAX {
        let name = name(number);
        match routing.add_cable(&name, inside) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(TransitError::Cable(error)),
        }
        let link = routing.link(&name).map_err(TransitError::Cable)?;
        let link = link.ok_or_else(|| TransitError::Cable(io::ErrorKind::NotFound.into()))?;
        // Without IPv6 there is nothing to leave out.
        let _ = routing.leave_out_ipv6(link);
        return Ok((number, link));
    }
    Err(TransitError::Taken)
}

impl RtNetlink {
    /// Whether packets to `to` stay on this machine, in the network namespace of the socket: two system calls, and no lock.
    /// Errors: the kernel's; that there is no way to it is none.
    pub fn is_local(&mut self, to: IpAddr) -> io::Result<bool> {
        let octets = octets(to);
        // struct rtmsg: family, prefix of the destination, and the rest is zero in a question.
        let mut header = [0; 12];
        (header[0], header[1]) = (family_byte(to.is_ipv6()), 8 * octets.len() as u8);
        let mut is_local = false;
        let asked = self.ask(
            libc::RTM_GETROUTE,
            &header,
            |message| {
                message.attr(libc::RTA_DST, &octets);
            },
            |body| is_local = body.get(7) == Some(&libc::RTN_LOCAL),
        );
        match asked.map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) => Ok(is_local),
            // Unreachable, prohibited, blackhole.
            Err((Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL), _)) => Ok(false),
            Err((_, error)) => Err(error),
        }
    }

    /// The number of the link of that name.
    fn link(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut found = None;
        let asked = self.ask(
            libc::RTM_GETLINK,
            &link_header(0, 0),
            |message| {
                message.attr_str(libc::IFLA_IFNAME, name);
            },
            |body| found = u32_ne(body, 4),
        );
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            asked => asked.map(|()| found),
        }
    }

    /// Both ends have one address and ask nobody for the other's.
    fn add_cable(&mut self, name: &str, inside: &File) -> io::Result<()> {
        let inside = inside.as_raw_fd().to_ne_bytes();
        self.tell(
            libc::RTM_NEWLINK,
            ONLY_NEW,
            &link_header(0, libc::IFF_NOARP),
            |message| {
                message
                    .attr_str(libc::IFLA_IFNAME, name)
                    .attr(libc::IFLA_ADDRESS, &MAC)
                    .nest(libc::IFLA_LINKINFO, |message| {
                        message
                            .attr_str(libc::IFLA_INFO_KIND, "veth")
                            .nest(libc::IFLA_INFO_DATA, |message| {
                                message.nest(VETH_INFO_PEER, |message| {
                                    message
                                        .header(&link_header(0, libc::IFF_NOARP))
                                        .attr_str(libc::IFLA_IFNAME, CABLE)
                                        .attr(libc::IFLA_ADDRESS, &MAC)
                                        .attr(libc::IFLA_NET_NS_FD, &inside);
                                });
                            });
                    });
            },
        )
    }

    /// It gets no address of IPv6 by itself.
    fn leave_out_ipv6(&mut self, link: u32) -> io::Result<()> {
        self.tell(libc::RTM_SETLINK, 0, &link_header(link, 0), |message| {
            message.nest(libc::IFLA_AF_SPEC, |message| {
                message.nest(libc::AF_INET6 as u16, |message| {
                    message.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
                });
            });
        })
    }

    fn bring_up(&mut self, link: u32) -> io::Result<()> {
        self.tell(libc::RTM_SETLINK, 0, &link_header(link, libc::IFF_UP), |_| {})
    }

    fn remove_link(&mut self, link: u32) -> io::Result<()> {
        self.tell(libc::RTM_DELLINK, 0, &link_header(link, 0), |_| {})
    }

    /// The routes of the transit namespace: out by the cable, and whatever comes from it is local.
    fn lay_out(&mut self, cable: u32) -> io::Result<()> {
        self.loopback_up()?;
        self.bring_up(cable)?;
        let everything = LocalRoute {
            to: ipnet::Ipv4Net::default().into(),
            table: INSIDE_TABLE,
            source: None,
        };
        self.set_local_route(&everything)?;
        self.tell(libc::RTM_NEWRULE, ONLY_NEW, &rule_header(), |message| {
            message
                .attr(FRA_PRIORITY, &PRIORITY.to_ne_bytes())
                .attr_str(FRA_IIFNAME, CABLE)
                .attr(FRA_TABLE, &INSIDE_TABLE.to_ne_bytes());
        })?;
        let main = u32::from(libc::RT_TABLE_MAIN);
        self.tell(libc::RTM_NEWROUTE, ONLY_NEW, &route_header(0), |message| {
            message
                .attr(libc::RTA_OIF, &cable.to_ne_bytes())
                .attr(libc::RTA_TABLE, &main.to_ne_bytes());
        })
    }
}

fn add_rules(routing: &mut RtNetlink, number: u8) -> io::Result<()> {
    for (protocol, ports) in rules(number) {
        let told = routing.tell(libc::RTM_NEWRULE, ONLY_NEW, &rule_header(), |message| {
            rule_attrs(message, number, protocol, ports);
        });
        found_before(told, libc::EEXIST)?;
    }
    Ok(())
}

/// Whether there were any.
fn remove_rules(routing: &mut RtNetlink, number: u8) -> io::Result<bool> {
    let mut is_any = false;
    for (protocol, ports) in rules(number) {
        let told = routing.tell(libc::RTM_DELRULE, 0, &rule_header(), |message| {
            rule_attrs(message, number, protocol, ports);
        });
        is_any |= found_before(told, libc::ENOENT)?;
    }
    Ok(is_any)
}

fn rules(number: u8) -> [(libc::c_int, [u16; 2]); 2] {
    [(libc::IPPROTO_TCP, ports(number)), (libc::IPPROTO_ICMP, UNREACHABLE)]
}

fn rule_attrs(message: &mut Messages, number: u8, protocol: libc::c_int, ports: [u16; 2]) {
    let range: Vec<u8> = ports.into_iter().flat_map(u16::to_ne_bytes).collect();
    message
        .attr(FRA_PRIORITY, &PRIORITY.to_ne_bytes())
        .attr(FRA_TABLE, &table(number).to_ne_bytes())
        .attr(FRA_PROTOCOL, &[PROTOCOL])
        .attr(FRA_IP_PROTO, &[protocol as u8])
        .attr(FRA_DPORT_RANGE, &range);
}

/// A struct fib_rule_hdr.
fn rule_header() -> [u8; 12] {
    let mut header = [0; 12];
    (header[0], header[7]) = (libc::AF_INET as u8, FR_ACT_TO_TBL);
    header
}

/// A struct rtmsg, of a route to what is at the other end of a link.
fn route_header(prefix: u8) -> [u8; 12] {
    let mut header = [0; 12];
    (header[0], header[1]) = (libc::AF_INET as u8, prefix);
    (header[5], header[6], header[7]) = (PROTOCOL, libc::RT_SCOPE_LINK, libc::RTN_UNICAST);
    header
}

fn back_header() -> [u8; 12] {
    route_header(32)
}

fn back_attrs(message: &mut Messages, address: Ipv4Addr, number: u8, link: u32) {
    message
        .attr(libc::RTA_DST, &address.octets())
        .attr(libc::RTA_OIF, &link.to_ne_bytes())
        .attr(libc::RTA_TABLE, &table(number).to_ne_bytes());
}

/// A struct ifinfomsg; `flags` are to be set.
fn link_header(link: u32, flags: libc::c_int) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// Sets a key of the calling thread's network namespace.
fn set(key: &'static str, value: &str) -> Result<(), TransitError> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(|err| TransitError::Sysctl { key, err })
}

fn name(number: u8) -> String {
    format!("anynode-{number}")
}

fn table(number: u8) -> u32 {
    FIRST_TABLE + u32::from(number)
}

/// The first and the last.
fn ports(number: u8) -> [u16; 2] {
    let first = FIRST_PORT + N_PORTS * u16::from(number);
    [first, first + (N_PORTS - 1)]
}

/// So many programs like this one may be in a network namespace.
const N_MAX: u8 = 4;
/// Below the ports that most systems call from (Linux 32768, Windows and macOS 49152; FreeBSD 10000), and hardly any of the first
/// thousand is registered for a service. So many connections an address may have at once to one port of an address.
const FIRST_PORT: u16 = 28_672;
const N_PORTS: u16 = 1024;
/// "an".
const FIRST_TABLE: u32 = 0x616e;
const INSIDE_TABLE: u32 = 0x616e;
/// Of the rules: behind the kernel's own for local addresses, ahead of what others may have put in.
const PRIORITY: u32 = 1;
/// Type 3 of ICMP with any code, as rules see it: in the place of a port.
const UNREACHABLE: [u16; 2] = [3 << 8, 3 << 8 | 15];
/// The cable's end inside.
const CABLE: &str = "cable";
/// Of both ends: who asks for nobody's address sends to his own. Locally administered.
const MAC: [u8; 6] = [0x02, b'a', b'n', b'y', 0, 1];
const PORT_RANGE: &str = "net/ipv4/ip_local_port_range";

// From the uapi headers `linux/fib_rules.h`, `linux/veth.h` and `linux/if_link.h`.
const FRA_IIFNAME: u16 = 3;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

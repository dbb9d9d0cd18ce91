//! The cables of a network namespace that end in a bridge elsewhere: made to lead to the host and out of it alone, whatever
//! the program inside sends. All of it is at the bridge's end, goes with the cable, and needs nobody to look after it. Not here:
//! whose namespaces (`agent`).
//!
//! Two ways lead from one port of a bridge to another. The bridge's own, which ends where both ports are isolated; and by way
//! of the host, which forwards what comes from a bridge to an address on it. So a filter where packets come from the cable
//! (`tc filter show dev VETH ingress`) drops what is for an address on the bridge, the bridge's own left out.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::entrances::{EnterError, Entrances};
use super::netlink::{attr, attr_str, u32_ne};
use super::netns::Netns;
use super::rtnetlink::RtNetlink;

/// Addresses that nothing may be sent to, but for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    pub net: IpNet,
    /// The bridge's own.
    pub except: IpAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum CableError {
    #[error(transparent)]
    Enter(#[from] EnterError),
    #[error("ask for the links of a network namespace")]
    Links(#[source] io::Error),
    #[error("the other end of link {link} is not where the engine is, or is on no bridge")]
    NoPort { link: u32 },
    #[error("isolate the bridge's port of link {link}")]
    Isolate {
        link: u32,
        #[source]
        err: io::Error,
    },
    /// The kernel is without sch_ingress or cls_bpf, mostly.
    #[error("filter what comes from link {link}")]
    Filter {
        link: u32,
        #[source]
        err: io::Error,
    },
}

/// Has all cables of `inside` lead to the host alone; `outside` is where their other ends are. None is no error, and twice is
/// as once. Needs CAP_NET_ADMIN. Two visits.
pub async fn shut_off(
    entrances: &Entrances,
    inside: &Netns,
    outside: &Netns,
    fences: Vec<Fence>,
) -> Result<(), CableError> {
    let all = || RtNetlink::open()?.links();
    let cables: Vec<Link> = entrances.run(inside, all).await?.map_err(CableError::Links)?;
    let cables: Vec<Link> = cables.into_iter().filter(|link| link.is_veth).collect();
    if cables.is_empty() {
        return Ok(());
    }
    let shut = move || {
        let mut routing = RtNetlink::open().map_err(CableError::Links)?;
        let there = routing.links().map_err(CableError::Links)?;
        for cable in &cables {
            let is_port = |link: &&Link| {
                link.is_veth && Some(link.index) == cable.peer && link.peer == Some(cable.index) && link.has_master
            };
            let link = cable.index;
            let port = there.iter().find(is_port).ok_or(CableError::NoPort { link })?.index;
            routing
                .filter(port, &program(&fences))
                .map_err(|err| CableError::Filter { link, err })?;
            routing.isolate(port).map_err(|err| CableError::Isolate { link, err })?;
        }
        Ok(())
    };
    entrances.run(outside, shut).await?
}

/// A link, as far as it matters to who looks for the other end of a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    index: u32,
    is_veth: bool,
    /// The number that the other end has where it is.
    peer: Option<u32>,
    has_master: bool,
}

impl RtNetlink {
    fn links(&mut self) -> io::Result<Vec<Link>> {
        // struct ifinfomsg: family (any), and the rest is zero in a question.
        self.dump(libc::RTM_GETLINK, &[0; 16], parse_link)
    }

    /// Frames from this port of a bridge are for no other port that is isolated as well.
    fn isolate(&mut self, port: u32) -> io::Result<()> {
        let mut header = vec![libc::AF_BRIDGE as u8, 0, 0, 0];
        header.extend_from_slice(&port.to_ne_bytes());
        header.extend_from_slice(&[0; 8]);
        self.tell(libc::RTM_SETLINK, 0, &header, |message| {
            message.nest(libc::IFLA_PROTINFO, |message| {
                message.attr(IFLA_BRPORT_ISOLATED, &[1]);
            });
        })
    }

    /// Asks `program` about each packet that comes from a link. Replaces the one that was asked before.
    fn filter(&mut self, link: u32, program: &[Instruction]) -> io::Result<()> {
        let add = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        let place = tc_header(link, CLSACT & 0xffff_0000, CLSACT, 0);
        match self.tell(libc::RTM_NEWQDISC, add, &place, |message| {
            message.attr_str(libc::TCA_KIND, "clsact");
        }) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
        let info = PRIORITY << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
        let header = tc_header(link, HANDLE, CLSACT_INGRESS, info);
        let code: Vec<u8> = program.iter().flat_map(|instruction| instruction.bytes()).collect();
        self.tell(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE as u16, &header, |message| {
            message
                .attr_str(libc::TCA_KIND, "bpf")
                .nest(libc::TCA_OPTIONS, |message| {
                    message
                        .attr(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes())
                        .attr(TCA_BPF_OPS_LEN, &(program.len() as u16).to_ne_bytes())
                        .attr(TCA_BPF_OPS, &code);
                });
        })
    }
}

/// A struct tcmsg.
fn tc_header(link: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let words = [link, handle, parent, info];
    let mut header = vec![0; 4];
    header.extend(words.into_iter().flat_map(u32::to_ne_bytes));
    header
}

/// Reads a struct ifinfomsg and its attributes; `None` when it is none.
fn parse_link(body: &[u8]) -> Option<Link> {
    let (header, attrs) = (body.get(..16)?, body.get(16..)?);
    let number = |kind| attr(attrs, kind).and_then(|value| u32_ne(value, 0));
    let info = attr(attrs, libc::IFLA_LINKINFO).unwrap_or_default();
    Some(Link {
        index: u32_ne(header, 4)?,
        is_veth: attr_str(info, libc::IFLA_INFO_KIND) == Some("veth"),
        peer: number(libc::IFLA_LINK),
        has_master: number(libc::IFLA_MASTER).is_some_and(|master| master > 0),
    })
}

/// One instruction of classic BPF (struct sock_filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jump_if: u8,
    jump_unless: u8,
    value: u32,
}

impl Instruction {
    const fn new(code: u16, jump_if: u8, jump_unless: u8, value: u32) -> Instruction {
        Instruction {
            code,
            jump_if,
            jump_unless,
            value,
        }
    }

    fn bytes(self) -> [u8; 8] {
        let [c, d] = self.code.to_ne_bytes();
        let [e, f, g, h] = self.value.to_ne_bytes();
        [c, d, self.jump_if, self.jump_unless, e, f, g, h]
    }
}

/// What is asked about a packet: whether it is for an address behind one of the fences. All else goes on.
fn program(fences: &[Fence]) -> Vec<Instruction> {
    let mut code = Vec::new();
    for fence in fences {
        code.extend(behind(fence));
    }
    code.push(Instruction::new(RETURN, 0, 0, TC_ACT_UNSPEC));
    code
}

/// Drops what is for an address behind one fence; all else leaves it at its end.
fn behind(fence: &Fence) -> Vec<Instruction> {
    let (ethertype, at) = match fence.net {
        IpNet::V4(_) => (libc::ETH_P_IP, ETHERNET_HEADER + 16),
        IpNet::V6(_) => (libc::ETH_P_IPV6, ETHERNET_HEADER + 24),
    };
    let words = |ip: IpAddr| -> Vec<u32> {
        let octets = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let word = |octets: &[u8]| octets.iter().fold(0, |word, octet| word << 8 | u32::from(*octet));
        octets.chunks(4).map(word).collect()
    };
    let mut code = vec![
        Instruction::new(LOAD_HALF, 0, 0, ETHERNET_HEADER - 2),
        Instruction::new(JUMP_IF_EQUAL, 0, LEAVE, ethertype as u32),
    ];
    let net = words(fence.net.network()).into_iter().zip(words(fence.net.netmask()));
    for (i, (net, mask)) in (0..).zip(net).filter(|(_, (_, mask))| *mask != 0) {
        code.extend([
            Instruction::new(LOAD_WORD, 0, 0, at + 4 * i),
            Instruction::new(AND, 0, 0, mask),
            Instruction::new(JUMP_IF_EQUAL, 0, LEAVE, net),
        ]);
    }
    let except = words(fence.except);
    for (i, word) in (0..).zip(&except) {
        let left = (except.len() - 1 - i as usize) as u8;
        let is_last = left == 0;
        code.extend([
            Instruction::new(LOAD_WORD, 0, 0, at + 4 * i),
            // The last word that is the same too is the exception; any that differs is none.
            Instruction::new(JUMP_IF_EQUAL, if is_last { LEAVE } else { 0 }, 2 * left, *word),
        ]);
    }
    code.push(Instruction::new(RETURN, 0, 0, TC_ACT_SHOT));
    let end = code.len();
    for (i, instruction) in code.iter_mut().enumerate() {
        for jump in [&mut instruction.jump_if, &mut instruction.jump_unless] {
            if *jump == LEAVE {
                *jump = (end - i - 1) as u8;
            }
        }
    }
    code
}

const ETHERNET_HEADER: u32 = 14;
/// A jump to the end of a fence's part, whose length is not known yet. No part is as long.
const LEAVE: u8 = u8::MAX;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

// Of <linux/pkt_cls.h>, <linux/pkt_sched.h> and <linux/if_link.h>.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const IFLA_BRPORT_ISOLATED: u16 = 33;
/// Before all others'.
const PRIORITY: u32 = 1;
const HANDLE: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program answers about a packet, as the kernel would run it.
    fn run(program: &[Instruction], packet: &[u8]) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        loop {
            let Instruction {
                code,
                jump_if,
                jump_unless,
                value,
            } = program[at];
            at += 1;
            let load = |n: usize| {
                let bytes = packet.get(value as usize..value as usize + n);
                bytes.map(|bytes| bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
            };
            match code {
                LOAD_WORD | LOAD_HALF => match load(if code == LOAD_WORD { 4 } else { 2 }) {
                    Some(word) => accumulator = word,
                    None => return 0,
                },
                AND => accumulator &= value,
                JUMP_IF_EQUAL => at += usize::from(if accumulator == value { jump_if } else { jump_unless }),
                RETURN => return value,
                code => panic!("{code}"),
            }
        }
    }

    fn packet(to: &str) -> Vec<u8> {
        let mut packet = vec![0; 60];
        match to.parse().unwrap() {
            IpAddr::V4(ip) => {
                packet[12..14].copy_from_slice(&[8, 0]);
                packet[30..34].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                packet[12..14].copy_from_slice(&[0x86, 0xdd]);
                packet[38..54].copy_from_slice(&ip.octets());
            }
        }
        packet
    }

    #[test]
    fn what_is_for_a_neighbour_is_dropped() {
        let fence = |net: &str, except: &str| Fence {
            net: net.parse().unwrap(),
            except: except.parse().unwrap(),
        };
        let program = program(&[
            fence("172.17.0.0/16", "172.17.0.1"),
            fence("fd00:17::/64", "fd00:17::1"),
            fence("10.1.2.0/25", "10.1.2.1"),
        ]);
        for to in [
            "172.17.0.2",
            "172.17.0.0",
            "172.17.255.255",
            "172.17.1.1",
            "fd00:17::2",
            "fd00:17::1:0:1",
            "10.1.2.127",
        ] {
            assert_eq!(run(&program, &packet(to)), TC_ACT_SHOT, "{to}");
        }
        for to in [
            "172.17.0.1",
            "172.16.0.2",
            "172.18.0.2",
            "10.0.0.2",
            "192.0.2.1",
            "255.255.255.255",
            "fd00:17::1",
            "fd00:18::2",
            "fe80::1",
            "fd00:17:0:1::2",
            "10.1.2.128",
            "10.1.2.1",
        ] {
            assert_eq!(run(&program, &packet(to)), TC_ACT_UNSPEC, "{to}");
        }
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(run(&program, &arp), TC_ACT_UNSPEC);
        // The kernel refuses one that leaves itself.
        for (i, instruction) in program.iter().enumerate().filter(|(_, i)| i.code == JUMP_IF_EQUAL) {
            let farthest = usize::from(instruction.jump_if.max(instruction.jump_unless));
            assert!(i + 1 + farthest < program.len());
        }
    }
}

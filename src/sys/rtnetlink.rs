//! Addresses, routes and rules of a network namespace, asked and told over netlink. Not here: what they are for
//! (`transparent`, `vips`, `transit`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::netlink::{Messages, NetlinkSocket, attr, u32_ne};

/// Asks and tells one network namespace about its routing.
#[derive(Debug)]
pub struct RtNetlink {
    socket: NetlinkSocket,
}

/// A rule that sends what bears a mark to a routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkRule {
    pub is_ipv6: bool,
    pub mark: u32,
    pub table: u32,
    /// Among the rules of the namespace, lower ones first; the kernel's own are 0, 32766 and 32767.
    pub priority: u32,
}

/// A route that has what it leads to taken for the namespace's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LocalRoute {
    pub to: IpNet,
    pub table: u32,
    /// Whom a program inside that connects there calls from; `None` leaves it to the kernel.
    pub source: Option<IpAddr>,
}

impl RtNetlink {
    /// In the network namespace of the calling thread; may be used from any other then.
    /// Errors: those of `socket` and `bind`.
    pub fn open() -> io::Result<RtNetlink> {
        Ok(RtNetlink {
            socket: NetlinkSocket::open(None, 0)?,
        })
    }

    /// The addresses of the namespace with their prefixes, loopback's among them. Errors: the kernel's.
    pub fn addresses(&mut self) -> io::Result<Vec<IpNet>> {
        // struct ifaddrmsg: family (any), and the rest is zero in a question.
        self.dump(libc::RTM_GETADDR, &[0; 8], parse_address)
    }

    /// The addresses of one interface; `None` where none has that name. Errors: the kernel's.
    pub fn addresses_of(&mut self, interface: &str) -> io::Result<Option<Vec<IpAddr>>> {
        // struct ifinfomsg, and the rest is zero in a question.
        let names = self.dump(libc::RTM_GETLINK, &[0; 16], parse_link)?;
        let Some((index, _)) = names.into_iter().find(|(_, name)| name == interface) else {
            return Ok(None);
        };
        let is_of = |body: &[u8]| u32_ne(body, 4) == Some(index);
        let parse = |body: &[u8]| Some(parse_address(body).filter(|_| is_of(body))?.addr());
        self.dump(libc::RTM_GETADDR, &[0; 8], parse).map(Some)
    }

    /// Brings loopback up. Does nothing when it is. Errors: the kernel's; those of a namespace that is not ours to change.
    pub fn loopback_up(&mut self) -> io::Result<()> {
        let up = libc::IFF_UP.cast_unsigned().to_ne_bytes();
        // struct ifinfomsg: family, padding, type, index, flags, and which flags are meant.
        let mut header = vec![0; 4];
        header.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
        header.extend_from_slice(&up);
        header.extend_from_slice(&up);
        self.tell(libc::RTM_NEWLINK, 0, &header, |_| {})
    }

    /// Gives loopback an address more, for itself alone. Errors: the kernel's; `AlreadyExists`.
    pub fn add_loopback_address(&mut self, address: IpAddr) -> io::Result<()> {
        let bits = if address.is_ipv6() { 128 } else { 32 };
        // struct ifaddrmsg: family, prefix, flags, scope, index.
        let mut header = vec![family_byte(address.is_ipv6()), bits, 0, libc::RT_SCOPE_UNIVERSE];
        header.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
        let octets = octets(address);
        self.tell(libc::RTM_NEWADDR, ONLY_NEW, &header, |message| {
            message.attr(libc::IFA_LOCAL, &octets).attr(libc::IFA_ADDRESS, &octets);
        })
    }

    /// Whether the rule was not there. Errors: the kernel's; `Unsupported` where the namespace has no such family.
    pub fn add_rule(&mut self, rule: &MarkRule) -> io::Result<bool> {
        let is_new = self.tell(libc::RTM_NEWRULE, ONLY_NEW, &rule.header(), |m| rule.attrs(m));
        found_before(is_new, libc::EEXIST)
    }

    /// Whether the rule was there. Errors: as `add_rule`.
    pub fn remove_rule(&mut self, rule: &MarkRule) -> io::Result<bool> {
        found_before(
            self.tell(libc::RTM_DELRULE, 0, &rule.header(), |m| rule.attrs(m)),
            libc::ENOENT,
        )
    }

    /// Adds a local route, or gives the one to the same place another source.
    /// Errors: the kernel's; `Unsupported` where the namespace has no such family.
    pub fn set_local_route(&mut self, route: &LocalRoute) -> io::Result<()> {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        self.tell(libc::RTM_NEWROUTE, flags, &route.header(), |m| route.attrs(m))
    }

    /// Whether the route was there; one of IPv6 goes whatever its source. Errors: as `set_local_route`.
    pub fn remove_local_route(&mut self, route: &LocalRoute) -> io::Result<bool> {
        found_before(
            self.tell(libc::RTM_DELROUTE, 0, &route.header(), |m| route.attrs(m)),
            libc::ESRCH,
        )
    }

    /// The local routes that `set_local_route` made in that table, whoever called it. Errors: the kernel's.
    pub fn local_routes(&mut self, table: u32) -> io::Result<Vec<LocalRoute>> {
        // struct rtmsg: family (any), and the rest is zero in a question.
        self.dump(libc::RTM_GETROUTE, &[0; 12], |body| {
            parse_route(body).filter(|route| route.table == table)
        })
    }

    pub(super) fn tell(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attrs: impl FnOnce(&mut Messages),
    ) -> io::Result<()> {
        let seq = self.socket.seq();
        let mut message = Messages::default();
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        attrs(message.begin(kind, flags, seq, header));
        self.socket
            .transact(&message, (seq, seq))
            .map_err(|error| match error.raw_os_error() {
                // IPv6 that is turned off says either, by whether it was there when the namespace was made.
                Some(libc::EAFNOSUPPORT | libc::EACCES) => io::Error::new(io::ErrorKind::Unsupported, error),
                _ => error,
            })
    }

    /// Asks one question, and hands the body of its answer to `take`. Errors: what the kernel says instead.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        header: &[u8],
        attrs: impl FnOnce(&mut Messages),
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let seq = self.socket.seq();
        let mut question = Messages::default();
        attrs(question.begin(kind, libc::NLM_F_REQUEST as u16, seq, header));
        self.socket.ask(&question, seq, |message| take(message.body))
    }

    /// All that `parse` makes something of. What changes while it is listed is listed again, some times: the kernel itself
    /// gives a link that comes up addresses and routes. Errors: the kernel's.
    pub(super) fn dump<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut n_left = DUMPS_MAX;
        loop {
            n_left -= 1;
            let seq = self.socket.seq();
            let mut question = Messages::default();
            question.begin(kind, (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16, seq, header);
            let mut found = Vec::new();
            match self
                .socket
                .ask(&question, seq, |message| found.extend(parse(message.body)))
            {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && n_left > 0 => {}
                asked => return asked.map(|()| found),
            }
        }
    }
}

impl MarkRule {
    /// A struct fib_rule_hdr.
    fn header(&self) -> [u8; 12] {
        let mut header = [0; 12];
        header[0] = family_byte(self.is_ipv6);
        header[7] = FR_ACT_TO_TBL;
        header
    }

    fn attrs(&self, message: &mut Messages) {
        message
            .attr(FRA_PRIORITY, &self.priority.to_ne_bytes())
            .attr(FRA_FWMARK, &self.mark.to_ne_bytes())
            .attr(FRA_FWMASK, &u32::MAX.to_ne_bytes())
            .attr(FRA_TABLE, &self.table.to_ne_bytes())
            .attr(FRA_PROTOCOL, &[PROTOCOL]);
    }
}

impl LocalRoute {
    /// A struct rtmsg.
    fn header(&self) -> [u8; 12] {
        let mut header = [0; 12];
        header[0] = family_byte(self.to.addr().is_ipv6());
        header[1] = self.to.prefix_len();
        header[5] = PROTOCOL;
        header[6] = libc::RT_SCOPE_HOST;
        header[7] = libc::RTN_LOCAL;
        header
    }

    fn attrs(&self, message: &mut Messages) {
        message
            .attr(libc::RTA_DST, &octets(self.to.network()))
            .attr(libc::RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes())
            .attr(libc::RTA_TABLE, &self.table.to_ne_bytes());
        if let Some(source) = self.source {
            message.attr(libc::RTA_PREFSRC, &octets(source));
        }
    }
}

/// Reads a struct rtmsg and its attributes; `None` when it is not a local route of ours.
fn parse_route(body: &[u8]) -> Option<LocalRoute> {
    let header = body.get(..12)?;
    if header[5] != PROTOCOL || header[7] != libc::RTN_LOCAL {
        return None;
    }
    let attrs = &body[12..];
    let to = match attr(attrs, libc::RTA_DST) {
        Some(to) => ip(to)?,
        None if header[0] == family_byte(true) => Ipv6Addr::UNSPECIFIED.into(),
        None => Ipv4Addr::UNSPECIFIED.into(),
    };
    Some(LocalRoute {
        to: IpNet::new(to, header[1]).ok()?,
        table: attr(attrs, libc::RTA_TABLE).and_then(|table| u32_ne(table, 0))?,
        source: attr(attrs, libc::RTA_PREFSRC).and_then(ip),
    })
}

/// Reads a struct ifaddrmsg and its attributes; `None` when it is none.
fn parse_address(body: &[u8]) -> Option<IpNet> {
    let (header, attrs) = (body.get(..8)?, body.get(8..)?);
    // The peer's of a point-to-point link is in the one, the own in the other.
    let own = attr(attrs, libc::IFA_LOCAL).or_else(|| attr(attrs, libc::IFA_ADDRESS))?;
    IpNet::new(ip(own)?, header[1]).ok()
}

/// Reads a struct ifinfomsg and its attributes: an interface's index and name.
fn parse_link(body: &[u8]) -> Option<(u32, String)> {
    let (header, attrs) = (body.get(..16)?, body.get(16..)?);
    let name = attr(attrs, libc::IFLA_IFNAME)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Some((u32_ne(header, 4)?, String::from_utf8(name.to_vec()).ok()?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(super) fn family_byte(is_ipv6: bool) -> u8 {
    match is_ipv6 {
        true => libc::AF_INET6 as u8,
        false => libc::AF_INET as u8,
    }
}

/// Whether something was done; that there was nothing to do is no error, but `nothing`.
pub(super) fn found_before(result: io::Result<()>, nothing: libc::c_int) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(nothing) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The table of what is local, to which the kernel's own first rule leads.
pub const LOCAL_TABLE: u32 = 255;
/// So often what changes meanwhile is listed.
const DUMPS_MAX: usize = 20;
/// In every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Routes and rules bear it as their origin, which `ip route` shows as `proto 97`. Given to nobody.
pub(super) const PROTOCOL: u8 = 97;
pub(super) const ONLY_NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

// From the uapi header `linux/fib_rules.h`.
pub(super) const FR_ACT_TO_TBL: u8 = 1;
pub(super) const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
pub(super) const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
pub(super) const FRA_PROTOCOL: u16 = 21;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::messages;

    #[test]
    fn a_route_is_read_as_it_was_told() {
        for (to, source) in [
            ("10.200.0.0/16", Some("10.0.0.2")),
            ("0.0.0.0/0", None),
            ("fd00::/64", Some("fd01::2")),
        ] {
            let route = LocalRoute {
                to: to.parse().unwrap(),
                table: 24_942,
                source: source.map(|source| source.parse().unwrap()),
            };
            let mut made = Messages::default();
            route.attrs(made.begin(libc::RTM_NEWROUTE, 0, 1, &route.header()));
            let message = messages(made.as_bytes()).next().unwrap();
            assert_eq!(parse_route(message.body), Some(route));
            for len in 0..message.body.len() {
                // Whatever is cut short is read as less or not at all.
                let _ = parse_route(&message.body[..len]);
                let _ = parse_address(&message.body[..len]);
            }
        }
    }

    #[test]
    fn loopback_has_its_address() {
        let found = RtNetlink::open().unwrap().addresses().unwrap();
        assert!(found.contains(&"127.0.0.1/8".parse().unwrap()), "{found:?}");
    }
}

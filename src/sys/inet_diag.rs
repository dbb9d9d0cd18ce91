//! Who listens on a TCP port, as sock_diag knows it, and which process has that socket open, as far as /proc shows. Not
//! here: what to do about it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::netlink::{Messages, NetlinkSocket, u32_ne};

/// A socket that listens, whoever has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub addr: SocketAddr,
    pub inode: u32,
    pub uid: u32,
}

/// A process that has a listening socket open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    /// The program's name as the kernel keeps it, 15 bytes at most.
    pub name: String,
    pub addr: SocketAddr,
}

/// Asks which sockets listen in one network namespace.
#[derive(Debug)]
pub struct InetDiag {
    socket: NetlinkSocket,
}

impl InetDiag {
    /// In the network namespace of the calling thread. Needs no privilege. Errors: those of `socket` and `bind`.
    pub fn open() -> io::Result<InetDiag> {
        Ok(InetDiag {
            socket: NetlinkSocket::open(rustix::net::netlink::SOCK_DIAG, 0)?,
        })
    }

    /// All TCP sockets that listen on `port`, in both families; `None` is every port.
    /// Errors: the kernel's; `NotFound` where it has no inet_diag.
    pub fn listeners(&mut self, port: Option<u16>) -> io::Result<Vec<Listener>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let seq = self.socket.seq();
            let question = question(family as u8, port.unwrap_or(0), seq);
            let mut take = |body: &[u8]| found.extend(parse(body));
            self.socket.ask(&question, seq, |message| take(message.body))?;
        }
        Ok(found)
    }

    /// Whether there is a TCP connection between these two, seen from `local`: one that stands, is about to end or just did.
    /// Errors: as `listeners`; `InvalidInput` when one is of IPv4 and the other of IPv6.
    pub fn is_connected(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let seq = self.socket.seq();
        let question = question_for(local, remote, seq).ok_or(io::ErrorKind::InvalidInput)?;
        let mut state = None;
        let answered = self
            .socket
            .ask(&question, seq, |message| state = message.body.get(1).copied());
        match answered {
            // Who listens there is named too, and who has just begun to ask.
            Ok(()) => {
                Ok(state.is_some_and(|state| ![TCP_LISTEN, TCP_SYN_RECV, TCP_NEW_SYN_RECV].contains(&state.into())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The question for one connection; `None` when the two are of different families.
fn question_for(local: SocketAddr, remote: SocketAddr, seq: u32) -> Option<Messages> {
    let (family, local_ip, remote_ip) = match (local.ip(), remote.ip()) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => (libc::AF_INET, padded(&local.octets()), padded(&remote.octets())),
        (IpAddr::V6(local), IpAddr::V6(remote)) => (libc::AF_INET6, local.octets(), remote.octets()),
        _ => return None,
    };
    let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&local.port().to_be_bytes());
    request.extend_from_slice(&remote.port().to_be_bytes());
    request.extend_from_slice(&local_ip);
    request.extend_from_slice(&remote_ip);
    // Any interface, and whichever socket it is.
    request.extend_from_slice(&0u32.to_ne_bytes());
    request.extend_from_slice(&u64::MAX.to_ne_bytes());
    debug_assert_eq!(request.len(), REQUEST_LEN);
    let mut question = Messages::default();
    question.begin(SOCK_DIAG_BY_FAMILY, libc::NLM_F_REQUEST as u16, seq, &request);
    Some(question)
}

fn padded(ip: &[u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(ip);
    bytes
}

/// A dump of what listens on `port`; zero is every port.
fn question(family: u8, port: u16, seq: u32) -> Messages {
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states, and the socket that is looked for.
    let mut request = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    request.resize(REQUEST_LEN, 0);
    let mut question = Messages::default();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    question.begin(SOCK_DIAG_BY_FAMILY, flags, seq, &request);
    question
}

/// Reads a struct inet_diag_msg; `None` when it is shorter than one.
fn parse(body: &[u8]) -> Option<Listener> {
    let family = libc::c_int::from(*body.first()?);
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let ip: IpAddr = match family {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(body.get(8..12)?).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(body.get(8..24)?).ok()?).into(),
        _ => return None,
    };
    Some(Listener {
        addr: SocketAddr::new(ip, port),
        uid: u32_ne(body, 64)?,
        inode: u32_ne(body, 68)?,
    })
}

/// Says who listens on ports, and looks each socket's process up once: that reads all of /proc.
#[derive(Debug, Default)]
pub struct Holders {
    /// By inode; `None`: /proc does not show whose it is.
    seen: HashMap<u32, Option<(u32, String)>>,
}

impl Holders {
    /// Whoever listens on `port` and is not this process, such as "nginx (pid 123) listens on 0.0.0.0:80". `None`: nobody, or
    /// nobody whom /proc shows.
    pub fn name(&mut self, port: u16) -> Option<String> {
        let listeners = InetDiag::open().and_then(|mut diag| diag.listeners(Some(port))).ok()?;
        // Inodes come and go.
        if self.seen.len() > SEEN_MAX {
            self.seen.clear();
        }
        let inodes = listeners.iter().map(|listener| listener.inode);
        let unseen: HashSet<u32> = inodes.filter(|inode| !self.seen.contains_key(inode)).collect();
        if !unseen.is_empty() {
            let mut found = holders(&unseen, "");
            self.seen
                .extend(unseen.into_iter().map(|inode| (inode, found.remove(&inode))));
        }
        let own = std::process::id();
        listeners.iter().find_map(|listener| {
            let (pid, name) = self.seen.get(&listener.inode)?.as_ref()?;
            (*pid != own).then(|| format!("{name} (pid {pid}) listens on {}", listener.addr))
        })
    }
}

/// The inodes of all sockets that this process has open. Errors: those of reading /proc/self/fd.
pub fn own_sockets() -> io::Result<HashSet<u32>> {
    Ok(sockets_of("self")?.collect())
}

/// Finds which processes have the sockets with these inodes open. Processes called `likely` are looked at first, and the
/// others only as long as a socket is missing. What /proc does not show to us is not found.
///
/// Returns pid and name by inode. Of several processes that share a socket, the one that was found first.
pub fn holders(inodes: &HashSet<u32>, likely: &str) -> HashMap<u32, (u32, String)> {
    let mut found = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return found;
    };
    let mut processes: Vec<(u32, String)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((pid, name.trim_end().to_owned()))
        })
        .collect();
    processes.sort_by_key(|(_, name)| name != likely);
    for (pid, name) in processes {
        if found.len() == inodes.len() {
            break;
        }
        // One that has ended meanwhile, or is another user's.
        let Ok(sockets) = sockets_of(&pid.to_string()) else {
            continue;
        };
        for inode in sockets.filter(|inode| inodes.contains(inode)) {
            found.entry(inode).or_insert_with(|| (pid, name.clone()));
        }
    }
    found
}

fn sockets_of(process: &str) -> io::Result<impl Iterator<Item = u32> + use<>> {
    let entries = fs::read_dir(format!("/proc/{process}/fd"))?;
    Ok(entries.filter_map(|entry| {
        let target = fs::read_link(entry.ok()?.path()).ok()?;
        target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    }))
}

const SEEN_MAX: usize = 4096;

/// From the uapi headers `linux/sock_diag.h`, `linux/inet_diag.h` and `linux/tcp_states.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_LEN: usize = 56;
const TCP_SYN_RECV: u32 = 3;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn listener_on(addr: &str) -> Option<TcpListener> {
        TcpListener::bind(addr).ok()
    }

    #[test]
    fn a_listening_socket_is_found_with_its_process() {
        let v4 = listener_on("127.0.0.1:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        let mut diag = InetDiag::open().unwrap();
        let found = diag.listeners(Some(port)).unwrap();
        let ours: Vec<&Listener> = found.iter().filter(|l| l.addr == v4.local_addr().unwrap()).collect();
        assert_eq!(ours.len(), 1, "{found:?}");
        let inode = ours[0].inode;
        assert!(own_sockets().unwrap().contains(&inode));
        let by_inode = holders(&HashSet::from([inode]), "no-such-program");
        assert_eq!(by_inode[&inode].0, std::process::id());
        drop(v4);
        // What another thread has just forked holds all descriptors until it runs its program.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while diag
            .listeners(Some(port))
            .unwrap()
            .iter()
            .any(|listener| listener.inode == inode)
        {
            assert!(std::time::Instant::now() < until, "it is listened on for ever");
            std::thread::yield_now();
        }
    }

    #[test]
    fn so_is_one_of_ipv6_and_all_ports_at_once() {
        let Some(v6) = listener_on("[::1]:0") else {
            println!("skipped: no IPv6 here");
            return;
        };
        let v4 = listener_on("127.0.0.1:0").unwrap();
        let all = InetDiag::open().unwrap().listeners(None).unwrap();
        for addr in [v6.local_addr().unwrap(), v4.local_addr().unwrap()] {
            assert!(all.iter().any(|l| l.addr == addr), "{addr} in {all:?}");
        }
    }

    #[test]
    fn a_short_answer_is_not_read() {
        for len in 0..72 {
            assert_eq!(parse(&vec![2; len]), None, "{len}");
        }
        let mut whole = vec![0; 72];
        whole[0] = libc::AF_INET as u8;
        whole[4..6].copy_from_slice(&8080u16.to_be_bytes());
        whole[8..12].copy_from_slice(&[10, 0, 0, 1]);
        whole[68..72].copy_from_slice(&7u32.to_ne_bytes());
        let listener = parse(&whole).unwrap();
        assert_eq!((listener.addr, listener.inode), ("10.0.0.1:8080".parse().unwrap(), 7));
    }
}

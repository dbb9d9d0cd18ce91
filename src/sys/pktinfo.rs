//! UDP datagrams together with the local address they were sent to, and answers that leave from that address. A socket
//! bound to a wildcard address needs it: left alone, the kernel answers from the address of the outgoing route, and the
//! client drops what it did not ask. Not here: what is in the datagrams.

#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::SockAddr;

/// One datagram taken from a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    pub len: usize,
    pub from: SocketAddr,
    /// The local address it was sent to; `None` on a socket that `enable` was not called for.
    pub to: Option<IpAddr>,
    /// It was longer than the buffer.
    pub is_truncated: bool,
}

/// Lets the kernel say of each datagram which address it was sent to. `family`: an address of the socket's family.
pub fn enable(socket: BorrowedFd<'_>, family: IpAddr) -> io::Result<()> {
    let (level, name) = match family {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is borrowed and so open for the call; the option's value points to a live `c_int`, and its
    // length is that of a `c_int`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes one datagram without waiting. Errors: as recvmsg(2), `WouldBlock` when there is none.
pub fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = Control::default();
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut receive = |name: *mut libc::c_void, name_len: &mut libc::socklen_t| {
        // SAFETY: `msghdr` is plain integers and pointers, for which zero is a value (musl adds padding fields).
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_name = name;
        message.msg_namelen = *name_len;
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = Control::LEN as _;
        // SAFETY: the descriptor is borrowed and so open. Name, vector and control point to live, exclusively borrowed
        // memory of the lengths given, all of which outlive the call.
        let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        *name_len = message.msg_namelen;
        let to = local_address(&message);
        Ok((len, to, message.msg_flags & libc::MSG_TRUNC != 0))
    };
    // SAFETY: recvmsg writes a socket address to the storage and its length to the length; on an error nothing is used.
    let ((len, to, is_truncated), from) = unsafe {
        SockAddr::try_init(|storage, name_len| {
            // SAFETY: `try_init` gives a valid pointer to a length that nobody else uses.
            receive(storage.cast(), &mut *name_len)
        })
    }?;
    let from = from
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Datagram {
        len,
        from,
        to,
        is_truncated,
    })
}

/// Sends one datagram without waiting, from the local address `from` if one is given.
/// Errors: as sendmsg(2), `WouldBlock` when the socket's buffer is full.
pub fn send(socket: BorrowedFd<'_>, datagram: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
    let to = SockAddr::from(to);
    let mut control = Control::default();
    let mut iov = libc::iovec {
        iov_base: datagram.as_ptr().cast_mut().cast(),
        iov_len: datagram.len(),
    };
    // SAFETY: `msghdr` is plain integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    match from {
        None => {}
        Some(IpAddr::V4(from)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(from).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            control.put(&mut message, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(from)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                ipi6_ifindex: 0,
            };
            control.put(&mut message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }
    // SAFETY: the descriptor is borrowed and so open. Name, vector and control point to live memory of the lengths given,
    // which outlives the call; the kernel reads the datagram through the vector and does not write to it.
    let sent = unsafe {
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Room for one control message of either family, aligned as `cmsghdr` must be.
#[repr(align(8))]
#[derive(Default)]
struct Control([u64; Control::LEN / 8]);

impl Control {
    const LEN: usize = 64;

    /// Makes `info` the one control message of `message`. `T` is a plain structure of the C library.
    fn put<T: Copy>(&mut self, message: &mut libc::msghdr, level: libc::c_int, kind: libc::c_int, info: T) {
        let info_len = size_of::<T>() as libc::c_uint;
        // SAFETY: these only compute from their argument.
        let (space, len) = unsafe { (libc::CMSG_SPACE(info_len), libc::CMSG_LEN(info_len)) };
        assert!(space as usize <= Control::LEN, "both pktinfo structures fit");
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = space as _;
        // SAFETY: control memory is set above, aligned and at least `space` long, so the first header is inside it, and
        // so is its data of `info_len` bytes, which are written unaligned.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const *message);
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(info);
        }
    }
}

/// The address that a received `message` was sent to, where its control messages say so.
fn local_address(message: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: recvmsg filled the control memory and set its length; the macros stay within that length, and a control
    // message of these types holds the structure it is named for, which is read unaligned.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => header = libc::CMSG_NXTHDR(message, header),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    /// What a client that asked `asked` hears back from a server bound to `bound`.
    fn answered_from(bound: &str, asked: &str) -> (Option<IpAddr>, SocketAddr) {
        let server = UdpSocket::bind(bound).unwrap();
        let bound = server.local_addr().unwrap();
        enable(server.as_fd(), bound.ip()).unwrap();
        let asked = SocketAddr::new(asked.parse().unwrap(), bound.port());
        let client = UdpSocket::bind(if asked.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.send_to(b"question", asked).unwrap();
        let mut buffer = [0u8; 4];
        let datagram = loop {
            match recv(server.as_fd(), &mut buffer) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                other => break other.unwrap(),
            }
        };
        assert_eq!((datagram.len, datagram.is_truncated, &buffer), (4, true, b"ques"));
        send(server.as_fd(), b"answer", datagram.from, datagram.to).unwrap();
        let (len, from) = client.recv_from(&mut [0u8; 64]).unwrap();
        assert_eq!(len, 6);
        (datagram.to, from)
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let (to, from) = answered_from("0.0.0.0:0", "127.0.0.5");
        assert_eq!((to, from.ip().to_string().as_str()), (Some(from.ip()), "127.0.0.5"));
    }

    #[test]
    fn so_it_does_from_a_socket_of_both_families() {
        if UdpSocket::bind("[::1]:0").is_err() {
            return; // No IPv6 here.
        }
        assert_eq!(answered_from("[::]:0", "127.0.0.5").1.ip().to_string(), "127.0.0.5");
        assert_eq!(answered_from("[::]:0", "::1").1.ip().to_string(), "::1");
    }
}

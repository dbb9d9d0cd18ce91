//! Netlink: messages made and read, pure, and a socket that asks the kernel and takes its answers. Not here: what nf_tables
//! (`nft`), sock_diag (`inet_diag`) or routing (`rtnetlink`) want to hear.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

/// Messages one behind the other, as a datagram holds them. Lengths are set as attributes are added.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

/// A message within a datagram from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
    pub(super) body: &'a [u8],
}

impl Messages {
    /// Begins a message. `header`: the fixed part that follows netlink's own header.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, seq: u32, header: &[u8]) -> &mut Messages {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(header);
        self.align();
        self
    }

    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Messages {
        // A value here is a name, a number, an address: never near the 64 KiB that the field can say.
        let len = (ATTR_HEADER + value.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.align();
        self
    }

    /// In network byte order, as netfilter wants its numbers.
    pub(super) fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Messages {
        self.attr(kind, &value.to_be_bytes())
    }

    /// With the zero at its end that the kernel asks for.
    pub(super) fn attr_str(&mut self, kind: u16, value: &str) -> &mut Messages {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// A header within an attribute: what is nested follows it.
    pub(super) fn header(&mut self, bytes: &[u8]) -> &mut Messages {
        self.bytes.extend_from_slice(bytes);
        self.align();
        self
    }

    /// An attribute made of those that `inside` adds; they must stay below 64 KiB together.
    pub(super) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Messages)) -> &mut Messages {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inside(self);
        let len = self.bytes.len() - start;
        debug_assert!(len <= usize::from(u16::MAX), "a nested attribute of {len} bytes");
        self.bytes[start..start + 2].copy_from_slice(&(len as u16).to_ne_bytes());
        self.align();
        self
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Fills up to four bytes, and says how long the last message is by now.
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let len = (self.bytes.len() - self.last) as u32;
        self.bytes[self.last..self.last + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The messages of a datagram; what is cut short or says a wrong length ends them.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..MESSAGE_HEADER)?;
        let len = u32_ne(header, 0)? as usize;
        let message = Message {
            kind: u16_ne(header, 4)?,
            flags: u16_ne(header, 6)?,
            seq: u32_ne(header, 8)?,
            body: bytes.get(MESSAGE_HEADER..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes within `bytes`, each with its kind; what is cut short ends them.
pub(super) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_ne(bytes, 0)?);
        let kind = u16_ne(bytes, 2)? & !(NESTED | NET_BYTE_ORDER);
        let value = bytes.get(ATTR_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of that kind.
pub(super) fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// An attribute that netfilter wrote as a number.
pub(super) fn attr_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    let value = attr(bytes, kind)?.try_into().ok()?;
    Some(u32::from_be_bytes(value))
}

/// An attribute that is a text; without the zeros at its end.
pub(super) fn attr_str(bytes: &[u8], kind: u16) -> Option<&str> {
    let value = attr(bytes, kind)?;
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok()
}

pub(super) fn u16_ne(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_ne(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A netlink socket, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct NetlinkSocket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    next_seq: u32,
}

impl NetlinkSocket {
    /// `groups`: the mask of groups whose notifications are wanted; a socket for them does not wait when it reads.
    /// `protocol`: `None` is routing, whose number is zero.
    /// Errors: those of `socket` and `bind`; `EPROTONOSUPPORT` where the kernel does not know the protocol.
    pub(super) fn open(protocol: impl Into<Option<Protocol>>, groups: u32) -> io::Result<NetlinkSocket> {
        let mut flags = SocketFlags::CLOEXEC;
        flags.set(SocketFlags::NONBLOCK, groups != 0);
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol.into())?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        // The kernel answers while it is being asked; waiting is for the case that this is ever untrue.
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_WAIT))?;
        // As many answers come as questions were sent at once. What the system's limit leaves of it is enough mostly.
        let _ = set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER);
        Ok(NetlinkSocket {
            fd,
            buffer: vec![0; DATAGRAM_MAX],
            next_seq: 1,
        })
    }

    /// A number for a message that was never used on this socket.
    pub(super) fn seq(&mut self) -> u32 {
        let seq = self.next_seq;
        self.next_seq = seq.wrapping_add(1);
        seq
    }

    /// Sends messages that each ask to be acknowledged and waits for that. `seqs`: the first and the last number in use.
    ///
    /// Errors: the first that the kernel reported; with a batch nothing of it was done then.
    pub(super) fn transact(&mut self, messages: &Messages, seqs: (u32, u32)) -> io::Result<()> {
        self.send(messages)?;
        let (first, last) = seqs;
        let mut failed = None;
        loop {
            let datagram = self.receive()?;
            for message in self::messages(datagram) {
                let offset = message.seq.wrapping_sub(first);
                if offset > last.wrapping_sub(first) || message.kind != libc::NLMSG_ERROR as u16 {
                    continue;
                }
                let error = error_of(&message);
                if let Err(error) = error {
                    // The kernel refuses a batch as a whole by its first message; no other answer follows for sure.
                    if offset == 0 {
                        return Err(error);
                    }
                    failed.get_or_insert(error);
                }
                if message.seq == last {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends one question and hands each message of the answer to `take`, until the answer is complete.
    ///
    /// Errors: what the kernel said; `Interrupted` when what was listed changed meanwhile, so that it is to be asked again.
    pub(super) fn ask(&mut self, question: &Messages, seq: u32, mut take: impl FnMut(&Message<'_>)) -> io::Result<()> {
        self.send(question)?;
        let mut is_torn = false;
        loop {
            let datagram = self.receive()?;
            for message in messages(datagram) {
                if message.seq != seq {
                    continue;
                }
                is_torn |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match libc::c_int::from(message.kind) {
                    libc::NLMSG_ERROR => return error_of(&message),
                    libc::NLMSG_DONE => {
                        // A dump that failed on its way says so in its end.
                        error_of(&message)?;
                        return match is_torn {
                            true => Err(io::ErrorKind::Interrupted.into()),
                            false => Ok(()),
                        };
                    }
                    _ => take(&message),
                }
                if message.flags & libc::NLM_F_MULTI as u16 == 0 {
                    return Ok(());
                }
            }
        }
    }

    /// Takes all notifications that wait, and says whether there were any. One that was lost counts as one.
    pub(super) fn drain(&mut self) -> io::Result<bool> {
        let mut is_any = false;
        loop {
            match recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC) {
                Ok(_) => is_any = true,
                Err(rustix::io::Errno::NOBUFS) => is_any = true,
                Err(rustix::io::Errno::AGAIN) => return Ok(is_any),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, messages: &Messages) -> io::Result<()> {
        sendto(
            &self.fd,
            messages.as_bytes(),
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<&[u8]> {
        let len = loop {
            match recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => break len,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the kernel gave no answer over netlink",
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        };
        Ok(&self.buffer[..len])
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What an acknowledgement or the end of a dump says: both begin with an error number, negative, or zero.
fn error_of(message: &Message<'_>) -> io::Result<()> {
    match u32_ne(message.body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        // A dump ends with the length of what it wrote, in some kernels.
        Some(code) if code > 0 => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None if libc::c_int::from(message.kind) == libc::NLMSG_DONE => Ok(()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

const ALIGN: usize = 4;
const MESSAGE_HEADER: usize = 16;
const ATTR_HEADER: usize = 4;
/// Bits of an attribute's kind that say how its value is written.
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const NET_BYTE_ORDER: u16 = libc::NLA_F_NET_BYTEORDER as u16;
/// The kernel fills at most 32 KiB of a dump at once; notifications of others may be longer and are not read.
const DATAGRAM_MAX: usize = 64 << 10;
const RECEIVE_BUFFER: usize = 4 << 20;
const ANSWER_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_made() {
        let mut made = Messages::default();
        made.begin(7, 5, 42, &[1, 2, 3, 4])
            .attr_str(1, "ab")
            .attr_u32(2, 0x0102_0304)
            .nest(3, |m| {
                m.attr(1, &[9]).attr(2, b"xyz");
            });
        made.begin(8, 0, 43, &[]);
        let read: Vec<Message<'_>> = messages(made.as_bytes()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].flags, read[0].seq), (7, 5, 42));
        assert_eq!((read[1].kind, read[1].seq, read[1].body), (8, 43, &[][..]));
        let body = &read[0].body[4..];
        assert_eq!(attr_str(body, 1), Some("ab"));
        assert_eq!(attr_u32(body, 2), Some(0x0102_0304));
        assert_eq!(attr(body, 2), Some(&[1, 2, 3, 4][..]), "network byte order");
        let nested: Vec<(u16, &[u8])> = attrs(attr(body, 3).unwrap()).collect();
        assert_eq!(nested, [(1, &[9][..]), (2, &b"xyz"[..])]);
        assert_eq!(attr(body, 4), None);
    }

    #[test]
    fn bytes_are_laid_out_as_the_kernel_wants_them() {
        let mut made = Messages::default();
        made.begin(0x10, 1, 5, &[0, 0, 0, 10]).attr(1, &[7]);
        let mut expected = Vec::new();
        expected.extend_from_slice(&28u32.to_ne_bytes());
        expected.extend_from_slice(&0x10u16.to_ne_bytes());
        expected.extend_from_slice(&1u16.to_ne_bytes());
        expected.extend_from_slice(&5u32.to_ne_bytes());
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 10]);
        expected.extend_from_slice(&5u16.to_ne_bytes());
        expected.extend_from_slice(&1u16.to_ne_bytes());
        expected.extend_from_slice(&[7, 0, 0, 0]);
        assert_eq!(made.as_bytes(), expected);
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        let mut made = Messages::default();
        made.begin(7, 0, 1, &[]).attr(1, &[1; 9]).attr(2, &[2; 5]);
        let whole = made.as_bytes();
        for len in 0..whole.len() {
            assert_eq!(messages(&whole[..len]).count(), 0, "{len}");
        }
        let body = &whole[MESSAGE_HEADER..];
        for len in 0..body.len() {
            for (kind, value) in attrs(&body[..len]) {
                assert!(value.iter().all(|byte| u16::from(*byte) == kind), "{len}");
            }
        }
        // Lengths that lie: shorter than the header itself.
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attrs(&[0; 64]).count(), 0);
        assert_eq!(attrs(&[3, 0, 0, 0, 1, 1]).count(), 0);
    }
}

//! Messages that carry descriptors from one process to another, over a unix socket that keeps their bounds
//! (SOCK_SEQPACKET). Not here: what messages say, and who may send them.

use std::fs::{File, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Descriptors that one message may carry. The kernel takes up to 253.
pub const FDS_MAX: usize = 200;
/// Bytes that one message may have.
pub const BYTES_MAX: usize = 64 * 1024;

/// Listens at `path`, for this user only. Whatever is there is replaced. Does not block.
///
/// Errors: as `bind`; `Unsupported` or `PermissionDenied` where the file system has no sockets.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket()?;
    // Before it has a name: the file is made with the mode of the socket.
    File::from(socket.as_fd().try_clone_to_owned()?).set_permissions(Permissions::from_mode(0o600))?;
    at(path, |addr| socket.bind(addr))?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// Connects to `path`. Does not block; `WouldBlock`: too many wait there already.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket()?;
    at(path, |addr| socket.connect(addr))?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// Whether `fd` is a socket that `listen` may have made.
pub fn is_listener(fd: impl AsFd) -> bool {
    let socket = socket2::SockRef::from(&fd);
    let is_unix = socket.domain().is_ok_and(|domain| domain == Domain::UNIX);
    is_unix && socket.r#type().is_ok_and(|kind| kind == Type::SEQPACKET) && socket.is_listener().unwrap_or(false)
}

/// Sends one message with up to `FDS_MAX` descriptors. Does not block.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // The space may have room for one more, by alignment.
    let is_too_much = bytes.len() > BYTES_MAX || fds.len() > FDS_MAX;
    if is_too_much || !(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Receives one message: how many bytes of `buffer` it fills, and its descriptors. Does not block; no bytes: the other end
/// is closed.
///
/// Errors: `InvalidData` for what is longer, or carries more, than a message may, or more than this process may open.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds: Vec<OwnedFd> = fds.flatten().collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message that is too long, or more descriptors than this process may have",
        ));
    }
    Ok((received.bytes, fds))
}

/// Nothing more is taken from the other end, which sees an error when it sends. What was sent before can be received.
pub fn refuse_more(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::shutdown(socket, rustix::net::Shutdown::Read)?)
}

/// Which network this process is in, to be compared with another's; 0 where that cannot be known.
pub fn network() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").map_or(0, |metadata| metadata.st_ino())
}

fn socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)
}

/// A path may be longer than an address of a socket: then the way there leads through its open directory.
fn at(path: &Path, use_it: impl FnOnce(&SockAddr) -> io::Result<()>) -> io::Result<()> {
    if let Ok(addr) = SockAddr::unix(path) {
        return use_it(&addr);
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(dir)?;
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    use_it(&SockAddr::unix(path)?)
}

const BACKLOG: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(path: &Path) -> (UnixStream, UnixStream) {
        let listener = listen(path).unwrap();
        let client = connect(path).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn messages_arrive_one_by_one_with_their_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than an address.
        let deep = dir.path().join("d".repeat(100));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("s");
        let (client, server) = pair(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let many: Vec<File> = (0..FDS_MAX).map(|_| File::open("/dev/null").unwrap()).collect();
        let many: Vec<BorrowedFd<'_>> = many.iter().map(AsFd::as_fd).collect();
        send(&client, b"all", &many).unwrap();
        send(&client, b"none", &[]).unwrap();
        let mut buffer = [0; 16];
        let (n, fds) = receive(&server, &mut buffer).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"all"[..], FDS_MAX));
        for fd in &fds {
            assert!(
                rustix::io::fcntl_getfd(fd)
                    .unwrap()
                    .contains(rustix::io::FdFlags::CLOEXEC)
            );
        }
        assert_eq!(receive(&server, &mut buffer).unwrap().0, 4);
        let nothing = receive(&server, &mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let too_many: Vec<BorrowedFd<'_>> = many.iter().chain(&many[..1]).copied().collect();
        assert_eq!(
            send(&client, b"x", &too_many).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        send(&client, &[0; 17], &many[..1]).unwrap();
        assert_eq!(
            receive(&server, &mut buffer).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn what_was_sent_before_the_refusal_is_received_and_nothing_after() {
        let dir = tempfile::tempdir().unwrap();
        let (client, server) = pair(&dir.path().join("s"));
        send(&client, b"before", &[]).unwrap();
        refuse_more(&server).unwrap();
        let error = send(&client, b"after", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let mut buffer = [0; 16];
        assert_eq!(receive(&server, &mut buffer).unwrap().0, 6);
        assert_eq!(receive(&server, &mut buffer).unwrap().0, 0);
        send(&server, b"no", &[]).unwrap();
        drop(server);
        assert_eq!(receive(&client, &mut buffer).unwrap().0, 2);
        assert_eq!(receive(&client, &mut buffer).unwrap().0, 0);
    }
}

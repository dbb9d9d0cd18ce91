//! The header by which a proxy in front says who its client is (PROXY protocol, both versions), read off a socket and not a byte
//! further. Not here: whom to believe.

use std::io;
use std::net::SocketAddr;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::model::proxy_protocol::{read_v1, read_v2};

/// Why nobody is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unannounced {
    /// The connection ended.
    Gone,
    /// It begins otherwise.
    Wrong,
}

/// The client's address. `None`: the proxy speaks for itself, or does not know.
pub(super) async fn read(socket: &TcpStream) -> Result<Option<SocketAddr>, Unannounced> {
    let mut header = Vec::with_capacity(V1_LEN_MAX);
    take(socket, &mut header, BEGIN_LEN).await?;
    if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") {
            let line_end = line_end(socket, V1_LEN_MAX - header.len()).await?;
            take(socket, &mut header, line_end).await?;
        }
        let client = read_v1(&header).map_err(|_| Unannounced::Wrong)?;
        return Ok(client.map(|(source, _)| source));
    }
    if header != V2_SIGNATURE {
        return Err(Unannounced::Wrong);
    }
    take(socket, &mut header, V2_FIXED_LEN - BEGIN_LEN).await?;
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if length > V2_LEN_MAX {
        return Err(Unannounced::Wrong);
    }
    take(socket, &mut header, length).await?;
    match read_v2(&header) {
        Ok(Some((_, client))) => Ok(client.map(|(source, _)| source)),
        Ok(None) | Err(_) => Err(Unannounced::Wrong),
    }
}

/// Appends exactly `n` bytes.
async fn take(socket: &TcpStream, header: &mut Vec<u8>, n: usize) -> Result<(), Unannounced> {
    let end = header.len() + n;
    while header.len() < end {
        let mut bytes = [0; V2_LEN_MAX];
        let wanted = end - header.len();
        let n = receive(socket, &mut bytes[..wanted.min(V2_LEN_MAX)], RecvFlags::empty()).await?;
        header.extend_from_slice(&bytes[..n]);
    }
    Ok(())
}

/// How many of the bytes that are there belong to the line, of which at most `most` are left.
async fn line_end(socket: &TcpStream, most: usize) -> Result<usize, Unannounced> {
    if most == 0 {
        return Err(Unannounced::Wrong);
    }
    let mut bytes = [0; V1_LEN_MAX];
    let n = receive(socket, &mut bytes[..most], RecvFlags::PEEK).await?;
    Ok(bytes[..n].iter().position(|byte| *byte == b'\n').map_or(n, |at| at + 1))
}

async fn receive(socket: &TcpStream, bytes: &mut [u8], flags: RecvFlags) -> Result<usize, Unannounced> {
    let receive = || Ok(recv(socket, &mut *bytes, flags)?.0);
    let received: io::Result<usize> = socket.async_io(Interest::READABLE, receive).await;
    match received {
        Ok(n @ 1..) => Ok(n),
        Ok(_) | Err(_) => Err(Unannounced::Gone),
    }
}

const V2_SIGNATURE: [u8; BEGIN_LEN] = *b"\r\n\r\n\0\r\nQUIT\n";
/// No header of either version is shorter.
const BEGIN_LEN: usize = 12;
const V2_FIXED_LEN: usize = 16;
/// What follows it, with whatever else the proxy tells.
const V2_LEN_MAX: usize = 2048;
const V1_LEN_MAX: usize = 107;

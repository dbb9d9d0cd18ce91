//! Asking a node's admin server, for whichever command.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin::read_token;
use crate::app::config::Config;
use crate::app::{EXIT_CONFIG, Flags};
use crate::link::Token;

/// Where health is told, without a token.
pub(super) const HEALTH: &str = "/healthz";

/// The admin server that is asked, and what lets in where it is another machine's.
pub(in crate::app) struct Admin {
    /// As it was said.
    shown: String,
    /// One after the other is tried.
    addresses: Vec<SocketAddr>,
    /// Errors: why there is none. Health is told without.
    token: Result<Option<Token>, String>,
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Where the node that `flags` lead to is asked: an address, or with `--admin` a name with a port too. Errors: the exit code, what
/// is wrong having been printed.
pub(in crate::app) fn admin_of(mut flags: Flags) -> Result<Admin, i32> {
    let is_name = |text: &String| text.parse::<SocketAddr>().is_err() && text.contains(':');
    let name = flags.admin.take_if(|text| is_name(text));
    let config = Config::load_or_say(flags)?;
    let (shown, addresses) = match (name, config.admin) {
        (Some(name), _) => match name.to_socket_addrs() {
            Ok(addresses) => (name, addresses.collect()),
            Err(error) => {
                eprintln!(
                    "error: --admin {name}: expected an address or a name with a port, such as 127.0.0.1:9377: {error}"
                );
                return Err(EXIT_CONFIG);
            }
        },
        (None, Some(address)) => (address.to_string(), vec![address]),
        (None, None) => {
            eprintln!("error: admin.listen = \"none\": expected the address of a node's admin server");
            return Err(EXIT_CONFIG);
        }
    };
    // All addresses lead to this machine's own.
    let is_near = addresses.iter().all(|address| {
        let ip = address.ip().to_canonical();
        ip.is_loopback() || ip.is_unspecified()
    });
    // Who asks on the node itself need not be able to read it.
    let token = match config.admin_settings.token_file {
        Some(path) if !is_near => read_token(&path)
            .map(Some)
            .map_err(|why| format!("admin.token_file: {why}")),
        _ => Ok(None),
    };
    Ok(Admin {
        shown,
        addresses,
        token,
    })
}

impl Admin {
    /// Errors: it does not answer, or not with success; then what it says is part of it.
    pub(in crate::app) async fn ask(&self, path: &str) -> anyhow::Result<Bytes> {
        let stream = TcpStream::connect(&self.addresses[..]).await.context("connect")?;
        let host = stream.peer_addr().context("connect")?.to_string();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::get(path).header(header::HOST, host);
        let token = match &self.token {
            _ if path == HEALTH => None,
            Ok(token) => token.as_ref(),
            Err(why) => bail!("{why}"),
        };
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.as_str()));
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        connection.abort();
        match body {
            Ok(body) if status.is_success() => Ok(body.to_bytes()),
            Ok(body) => bail!("{status}: {}", String::from_utf8_lossy(&body.to_bytes()).trim()),
            Err(error) => bail!("{error}"),
        }
    }
}

const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

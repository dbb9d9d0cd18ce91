//! One probe of one endpoint. Not here: when, and what follows from it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::model::HealthProbe;
use crate::sys::entrances::Entrances;
use crate::sys::netns::Netns;
use crate::sys::socket;
use crate::sys::transparent::{self, Caller};

/// Why a probe is bad.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("request")]
    Http(#[source] hyper::Error),
    #[error("path {path:?} cannot be requested")]
    Path {
        path: String,
        #[source]
        error: http::Error,
    },
    #[error("status {0}: expected 200 to 399")]
    Status(u16),
}

/// Probes `addr` once, in the network namespace `netns` if there is one. The caller limits the time.
pub(super) async fn probe(addr: SocketAddr, netns: Option<&Arc<Path>>, how: &HealthProbe) -> Result<(), Fault> {
    let stream = match netns {
        None => TcpStream::connect(addr).await,
        Some(netns) => connect_inside(addr, netns).await,
    };
    let stream = stream.map_err(Fault::Connect)?;
    let HealthProbe::Http { path } = how else { return Ok(()) };
    let request = Request::get(path.as_str())
        .header(header::HOST, addr.to_string())
        .header(header::USER_AGENT, "anynode-health")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Fault::Path {
            path: path.clone(),
            error,
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Fault::Http)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(Fault::Http)?;
        match response.status().as_u16() {
            200..400 => Ok(()),
            status => Err(Fault::Status(status)),
        }
    };
    tokio::pin!(exchange);
    // The connection makes no progress of its own; it ends with the exchange.
    tokio::select! {
        biased;
        result = &mut exchange => result,
        result = connection => match result {
            Ok(()) => exchange.await,
            Err(error) => Err(Fault::Http(error)),
        },
    }
}

async fn connect_inside(addr: SocketAddr, netns: &Arc<Path>) -> io::Result<TcpStream> {
    let (entrances, netns) = (Entrances::shared()?, Netns::at(netns).map_err(io::Error::other)?);
    let made = transparent::connect(&entrances, &netns, Caller::Nobody, addr, &[]).await?;
    let stream = TcpStream::from_std(made.stream)?;
    if !made.is_connected {
        socket::established(&stream).await?;
    }
    Ok(stream)
}

//! One probe of one endpoint. Not here: when, and what follows from it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::model::{HealthProbe, Scheme};
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

/// Probes `addr` once, in the network namespace `netns` if there is one, by the version of HTTP that it speaks. The caller limits the
/// time.
pub(super) async fn probe(
    addr: SocketAddr,
    netns: Option<&Arc<Path>>,
    scheme: Scheme,
    how: &HealthProbe,
) -> Result<(), Fault> {
    let stream = match netns {
        None => TcpStream::connect(addr).await,
        Some(netns) => connect_inside(addr, netns).await,
    };
    let stream = stream.map_err(Fault::Connect)?;
    let HealthProbe::Http { path } = how else { return Ok(()) };
    let request = Request::get(path.as_str()).header(header::USER_AGENT, "anynode-health");
    let request = match scheme {
        Scheme::Http => request
            .header(header::HOST, addr.to_string())
            .header(header::CONNECTION, "close"),
        Scheme::H2c => request.uri(format!("http://{addr}{path}")),
    };
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| Fault::Path {
        path: path.clone(),
        error,
    })?;
    let io = TokioIo::new(stream);
    match scheme {
        Scheme::Http => {
            let (mut sender, connection) = http1::handshake(io).await.map_err(Fault::Http)?;
            judge(sender.send_request(request), connection).await
        }
        Scheme::H2c => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(Fault::Http)?;
            judge(sender.send_request(request), connection).await
        }
    }
}

/// Waits for the response. The connection makes no progress of its own; it ends with this.
async fn judge(
    response: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<(), Fault> {
    let exchange = async {
        match response.await.map_err(Fault::Http)?.status().as_u16() {
            200..400 => Ok(()),
            status => Err(Fault::Status(status)),
        }
    };
    tokio::pin!(exchange);
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

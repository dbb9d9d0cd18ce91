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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::model::{EndpointTls, HealthProbe, Scheme, ServiceName};
use crate::sys::entrances::Entrances;
use crate::sys::netns::Netns;
use crate::sys::socket;
use crate::sys::transparent::{self, Caller};
use crate::tls::{Sessions, TlsFault, Trust};

/// Why a probe is bad.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("TLS: {0}")]
    Tls(TlsFault),
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

/// How an endpoint is spoken to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manner {
    pub(super) scheme: Scheme,
    /// Where that is over TLS.
    pub(super) tls: EndpointTls,
    /// Whom it is asked to be then.
    pub(super) service: ServiceName,
}

/// Probes `addr` once, in the network namespace `netns` if there is one, by the version of HTTP that it speaks. The caller limits the
/// time.
pub(super) async fn probe(
    addr: SocketAddr,
    netns: Option<&Arc<Path>>,
    manner: &Manner,
    trust: &Trust,
    how: &HealthProbe,
) -> Result<(), Fault> {
    // Nobody is asked whom this node cannot believe.
    let sessions = match (how, manner.scheme) {
        (HealthProbe::Http { .. }, Scheme::Https) => Some(trust.towards(&manner.tls).map_err(Fault::Tls)?.sessions()),
        _ => None,
    };
    let stream = match netns {
        None => TcpStream::connect(addr).await,
        Some(netns) => connect_inside(addr, netns).await,
    };
    let stream = stream.map_err(Fault::Connect)?;
    let HealthProbe::Http { path } = how else { return Ok(()) };
    let mut speaks_http2 = manner.scheme == Scheme::H2c;
    // Boxed: what speaks HTTP is made once for all kinds.
    let stream: Box<dyn Stream> = match sessions {
        None => Box::new(stream),
        Some(sessions) => {
            let stream = secure(stream, addr, manner, sessions).await.map_err(Fault::Tls)?;
            speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Box::new(stream)
        }
    };
    match (speaks_http2, manner.scheme) {
        (false, _) => ask_http1(stream, addr, path).await,
        (true, Scheme::Https) => ask_http2(stream, addr, "https", path).await,
        (true, Scheme::Http | Scheme::H2c) => ask_http2(stream, addr, "http", path).await,
    }
}

async fn secure(
    stream: TcpStream,
    addr: SocketAddr,
    manner: &Manner,
    sessions: Sessions,
) -> Result<TlsStream<TcpStream>, TlsFault> {
    let name = manner.tls.server_name_for(&manner.service, addr.ip());
    let connecting = TlsConnector::from(sessions.any).connect(name, stream);
    connecting
        .await
        .map_err(|error| TlsFault::of(&error, manner.tls.verify))
}

async fn ask_http1(stream: Box<dyn Stream>, addr: SocketAddr, path: &str) -> Result<(), Fault> {
    let request = request(path)
        .header(header::HOST, addr.to_string())
        .header(header::CONNECTION, "close");
    let request = whole(request, path)?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http1::handshake(io).await.map_err(Fault::Http)?;
    judge(sender.send_request(request), connection).await
}

async fn ask_http2(stream: Box<dyn Stream>, addr: SocketAddr, scheme: &str, path: &str) -> Result<(), Fault> {
    let request = whole(request(&format!("{scheme}://{addr}{path}")), path)?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(Fault::Http)?;
    judge(sender.send_request(request), connection).await
}

fn request(uri: &str) -> http::request::Builder {
    Request::get(uri).header(header::USER_AGENT, "anynode-health")
}

fn whole(request: http::request::Builder, path: &str) -> Result<Request<Empty<Bytes>>, Fault> {
    request.body(Empty::new()).map_err(|error| Fault::Path {
        path: path.to_owned(),
        error,
    })
}

/// What a request can be sent through.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

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

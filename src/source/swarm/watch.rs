//! The quick way to a swarm's objects: the Watch stream that managers serve on their control socket, gRPC over TLS on a unix
//! socket. Nothing here is kept but the stream; what the objects mean is `picture`'s.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::picture::Seen;
use super::proto::{self, Kind, ListRequest, WatchEntry, WatchMessage, WatchRequest};

/// Why the stream cannot be had, or broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error("{path}: no connection")]
    Connect {
        path: PathBuf,
        #[source]
        error: tonic::transport::Error,
    },
    #[error("{what}: {} ({:?})", .status.message(), .status.code())]
    Call {
        what: &'static str,
        #[source]
        status: tonic::Status,
    },
    #[error("{what}: no answer in time")]
    Silent { what: &'static str },
    #[error("the stream ended")]
    Ended,
}

impl WatchError {
    /// There was patience enough: whoever listens there is frozen.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, WatchError::Silent { .. })
    }
}

/// A connection to a manager's control socket; clones share it.
#[derive(Clone)]
pub(super) struct Control {
    grpc: Grpc<Channel>,
}

impl Control {
    pub(super) async fn connect(path: &Path) -> Result<Control, WatchError> {
        let socket = path.to_owned();
        let tls = TlsConnector::from(Arc::new(tls_config()));
        let connector = tower::service_fn(move |_| {
            let (socket, tls) = (socket.clone(), tls.clone());
            async move {
                let stream = UnixStream::connect(socket).await?;
                let name = ServerName::try_from("swarm-manager").map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        });
        // The address is not used: the connector has its own. No keep-alive pings: swarmkit takes offence at them.
        let endpoint = Endpoint::from_static("http://swarm-manager");
        let connecting = tokio::time::timeout(PATIENCE, endpoint.connect_with_connector(connector));
        let channel = connecting.await.map_err(|_| WatchError::Silent { what: "connect" })?;
        let channel = channel.map_err(|error| WatchError::Connect {
            path: path.to_owned(),
            error,
        })?;
        Ok(Control {
            grpc: Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
        })
    }

    /// Opens the stream of what changes. When this returns, it stands: whatever is committed from here on comes.
    ///
    /// `resume_from`: the index of the last commit seen; what came after it is sent first. Errors: also that the manager
    /// has forgotten what came after it.
    pub(super) async fn watch(&mut self, resume_from: Option<u64>) -> Result<Watch, WatchError> {
        let entry = |kind: &str| WatchEntry {
            kind: kind.to_owned(),
            action: proto::ACTION_ALL,
        };
        let request = WatchRequest {
            entries: ["node", "service", "task"].map(entry).to_vec(),
            resume_from: resume_from.map(|index| proto::Version { index }),
        };
        let opening = async {
            self.ready("watch").await?;
            let path = PathAndQuery::from_static("/docker.swarmkit.v1.Watch/Watch");
            let codec: ProstCodec<WatchRequest, WatchMessage> = ProstCodec::default();
            let opened = self.grpc.server_streaming(Request::new(request), path, codec).await;
            opened.map_err(|status| WatchError::Call { what: "watch", status })
        };
        let opened = tokio::time::timeout(PATIENCE, opening).await;
        let opened = opened.map_err(|_| WatchError::Silent { what: "watch" })?;
        let stream = opened?.into_inner();
        let mut watch = Watch { stream };
        let first = tokio::time::timeout(PATIENCE, watch.next()).await;
        first.map_err(|_| WatchError::Silent { what: "watch" })??;
        Ok(watch)
    }

    /// Everything there is, as the leader knows it.
    pub(super) async fn list(&mut self) -> Result<Vec<Seen>, WatchError> {
        let nodes = self.list_nodes().await?;
        let services: proto::Services = self.call("/docker.swarmkit.v1.Control/ListServices").await?;
        let tasks: proto::Tasks = self.call("/docker.swarmkit.v1.Control/ListTasks").await?;
        let services = services.services.into_iter().map(Seen::from);
        let tasks = tasks.tasks.into_iter().map(Seen::from);
        Ok(nodes.into_iter().chain(services).chain(tasks).collect())
    }

    /// All nodes, with the addresses that managers have for each other.
    pub(super) async fn list_nodes(&mut self) -> Result<Vec<Seen>, WatchError> {
        let nodes: proto::Nodes = self.call("/docker.swarmkit.v1.Control/ListNodes").await?;
        Ok(nodes.nodes.into_iter().map(Seen::from).collect())
    }

    /// Whether the manager answers at all: a frozen one keeps its connections.
    pub(super) async fn is_alive(&mut self) -> Result<(), WatchError> {
        let what = "/docker.swarmkit.v1.Health/Check";
        match self.call::<ListRequest>(what).await {
            Err(error @ (WatchError::Silent { .. } | WatchError::Connect { .. })) => Err(error),
            // Whatever it says, it says something.
            _ => Ok(()),
        }
    }

    async fn call<T: prost::Message + Default + 'static>(&mut self, path: &'static str) -> Result<T, WatchError> {
        let calling = async {
            self.ready(path).await?;
            let codec: ProstCodec<ListRequest, T> = ProstCodec::default();
            let request = Request::new(ListRequest {});
            let answer = self.grpc.unary(request, PathAndQuery::from_static(path), codec).await;
            answer.map_err(|status| WatchError::Call { what: path, status })
        };
        let answer = tokio::time::timeout(PATIENCE, calling).await;
        Ok(answer.map_err(|_| WatchError::Silent { what: path })??.into_inner())
    }

    async fn ready(&mut self, what: &'static str) -> Result<(), WatchError> {
        let ready = self.grpc.ready().await;
        ready.map_err(|error| WatchError::Call {
            what,
            status: tonic::Status::unavailable(error.to_string()),
        })
    }
}

/// A stream that stands.
pub(super) struct Watch {
    stream: Streaming<WatchMessage>,
}

/// What one commit changed.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) index: Option<u64>,
    /// Each object as it is now, or as it was when it was removed.
    pub(super) changes: Vec<(Seen, bool)>,
}

impl Watch {
    /// The next commit. Errors: the stream broke. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Commit, WatchError> {
        let message = self.stream.message().await;
        let message = message.map_err(|status| WatchError::Call { what: "watch", status })?;
        let message = message.ok_or(WatchError::Ended)?;
        let change = |event: proto::Event| {
            let seen = match event.object?.kind? {
                Kind::Node(node) => Seen::from(node),
                Kind::Service(service) => Seen::from(service),
                Kind::Task(task) => Seen::from(task),
            };
            Some((seen, event.action == proto::ACTION_REMOVE))
        };
        Ok(Commit {
            index: message.version.map(|version| version.index),
            changes: message.events.into_iter().filter_map(change).collect(),
        })
    }
}

fn tls_config() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let mut config = match builder.with_safe_default_protocol_versions() {
        Ok(builder) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ByThePath(provider)))
            .with_no_client_auth(),
        Err(_) => unreachable!("the provider speaks the versions that it comes with"),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Whoever listens at the socket's path is who we mean: only root can make it, and only root can connect to it. Its
/// certificate is that of a node of the swarm, by an authority that we have no other word of.
#[derive(Debug)]
struct ByThePath(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for ByThePath {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
/// The lists of a large swarm.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

//! TLS beside TLS: the certificate that all proxies have, and the client's side of it.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::ensure;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::TLS13_AES_256_GCM_SHA384;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::origin::HOST;

/// Of P-256, as most that are made today.
pub struct Certificate {
    /// Whom clients believe, as PEM.
    pub authority: String,
    certificate: String,
    key: String,
}

impl Certificate {
    pub fn make() -> anyhow::Result<Certificate> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![HOST.to_owned()])?.signed_by(&key, &issuer)?;
        Ok(Certificate {
            authority,
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes cert.pem, cert.key, and both in one file.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::write(dir.join("cert.pem"), &self.certificate)?;
        std::fs::write(dir.join("cert.key"), &self.key)?;
        std::fs::write(dir.join("both.pem"), format!("{}{}", self.certificate, self.key))
    }
}

/// How a generator speaks TLS.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Speaks {
    pub authority: String,
    /// Sessions go on, by tickets.
    pub resumes: bool,
    /// The protocol to be spoken.
    pub alpn: String,
}

/// Opens connections.
#[derive(Clone)]
pub struct Opener(Option<(TlsConnector, bool)>);

impl Opener {
    pub fn new(speaks: Option<&Speaks>) -> anyhow::Result<Opener> {
        let Some(speaks) = speaks else {
            return Ok(Opener(None));
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(speaks.authority.as_bytes())?)?;
        // One suite for all, whichever they would choose.
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![TLS13_AES_256_GCM_SHA384],
            ..rustls::crypto::ring::default_provider()
        });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !speaks.resumes {
            config.resumption = Resumption::disabled();
        }
        config.alpn_protocols = vec![speaks.alpn.clone().into_bytes()];
        Ok(Opener(Some((TlsConnector::from(Arc::new(config)), speaks.resumes))))
    }

    /// Errors: also a session that was to go on and did not, but for the `first` ones.
    pub async fn open(&self, stream: TcpStream, is_first: bool) -> anyhow::Result<Stream> {
        let Some((connector, resumes)) = &self.0 else {
            return Ok(Stream::Plain(stream));
        };
        let stream = connector.connect(HOST.try_into()?, stream).await?;
        let (spoken, wanted) = (
            stream.get_ref().1.alpn_protocol(),
            &connector.config().alpn_protocols[0],
        );
        // Who speaks HTTP/1.1 alone need not say so.
        ensure!(
            spoken.map_or(wanted == b"http/1.1", |spoken| spoken == wanted),
            "another protocol than {:?} was chosen",
            String::from_utf8_lossy(wanted)
        );
        let is_resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        ensure!(
            is_resumed == *resumes || is_first,
            "resumed: {is_resumed}, instead of {resumes}"
        );
        Ok(Stream::Tls(Box::new(stream)))
    }
}

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    /// An end without TLS's own goodbye is an end: not everybody says it.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => match Pin::new(stream).poll_read(cx, buf) {
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                polled => polled,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

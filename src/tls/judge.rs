//! What judges the certificate of an endpoint, and what is said of a handshake with one that failed. Not here: the authorities
//! (`trust`).

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::model::{EndpointHandshake, Pins, Verify};

/// Judges by what a service asks for.
#[derive(Debug)]
pub(super) struct Judge {
    /// `None`: nobody asks who wrote it.
    pub(super) chain: Option<Arc<WebPkiServerVerifier>>,
    /// None: any key.
    pub(super) pins: Pins,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Judge {
    /// Judges what was found good once, as it is `now`. Cheap while all that was shown is good by its dates; else all of it is judged, since
    /// not all that is shown needs to be good. Errors: what is wrong with it.
    pub(super) fn judge_again(
        &self,
        shown: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), TlsFault> {
        let (Some(chain), Some((certificate, others))) = (&self.chain, shown.split_first()) else {
            return Ok(());
        };
        let seconds = i64::try_from(now.as_secs()).ok();
        let at = seconds.and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
        let is_good = |one: &CertificateDer<'_>| {
            let parsed = X509Certificate::from_der(one).ok();
            let parsed = parsed.zip(at);
            parsed.is_some_and(|((_, parsed), at)| parsed.validity().is_valid_at(at))
        };
        if shown.iter().all(is_good) {
            return Ok(());
        }
        match chain.verify_server_cert(certificate, others, name, &[], now) {
            Ok(_) => Ok(()),
            Err(error) => Err(TlsFault::of_error(&error, Verify::Full)),
        }
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.pins.is_empty() {
            let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
            let digest = ring::digest::digest(&ring::digest::SHA256, parsed.public_key().raw);
            if !self.pins.has(digest.as_ref()) {
                let other = WrongPin(Pins::text_of(digest.as_ref()));
                return Err(CertificateError::Other(OtherError(Arc::new(other))).into());
            }
        }
        match &self.chain {
            Some(chain) => chain.verify_server_cert(certificate, others, name, ocsp, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The key is none of those named.
#[derive(Debug, thiserror::Error)]
#[error("its key is {0}, which is none of those named (pin)")]
struct WrongPin(String);

/// Why nothing came of TLS with an endpoint.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct TlsFault {
    pub result: EndpointHandshake,
    /// In words, for whoever has the endpoint.
    pub text: String,
}

impl TlsFault {
    pub(super) fn new(result: EndpointHandshake, text: impl Into<String>) -> TlsFault {
        TlsFault {
            result,
            text: text.into(),
        }
    }

    /// Whether it is a word on the endpoint: not where the request asked for too much, or this node has nobody to judge by.
    pub fn is_of_endpoint(&self) -> bool {
        !matches!(self.result, EndpointHandshake::NoHttp1 | EndpointHandshake::NoAuthority)
    }

    /// As `of`, of an endpoint that was offered HTTP/1.1 alone.
    pub fn of_http1(error: &io::Error, verify: Verify) -> TlsFault {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => TlsFault::new(
                EndpointHandshake::NoHttp1,
                "it does not speak HTTP/1.1, which the request needs",
            ),
            _ => TlsFault::of(error, verify),
        }
    }

    /// It has not ended the handshake in time.
    pub fn timed_out() -> TlsFault {
        TlsFault::new(EndpointHandshake::TimedOut, "it did not end the handshake in time")
    }

    /// What a handshake that went by `verify` failed with.
    pub fn of(error: &io::Error, verify: Verify) -> TlsFault {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => TlsFault::of_error(error, verify),
            None => TlsFault::new(
                EndpointHandshake::CutOff,
                format!("it ended the connection within the handshake: {error}"),
            ),
        }
    }

    fn of_error(error: &Error, verify: Verify) -> TlsFault {
        let (result, text) = match error {
            Error::InvalidCertificate(error) => of_certificate(error, verify),
            Error::AlertReceived(alert) => (
                EndpointHandshake::Refused,
                format!(
                    "it ended the handshake: {alert:?} (it may ask for a certificate of ours, or for another server name)"
                ),
            ),
            Error::InvalidMessage(_) => (
                EndpointHandshake::NotTls,
                "what it answered is no TLS: does it speak plain HTTP?".to_owned(),
            ),
            Error::PeerIncompatible(why) => (
                EndpointHandshake::Refused,
                format!("it has no version or cipher in common with this node: {why:?}"),
            ),
            error => (EndpointHandshake::NotTls, format!("the handshake failed: {error}")),
        };
        TlsFault::new(result, text)
    }
}

fn of_certificate(error: &CertificateError, verify: Verify) -> (EndpointHandshake, String) {
    use EndpointHandshake::{BadCertificate, Expired, UnknownIssuer, WrongName, WrongPin as Pin};
    let (result, text) = match error {
        CertificateError::UnknownIssuer => (
            UnknownIssuer,
            "its certificate is by no authority that it is judged by (endpoint_tls.ca)".to_owned(),
        ),
        CertificateError::NotValidForName => (
            WrongName,
            "its certificate is for another host (endpoint_tls.server_name)".to_owned(),
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            // As the library's debugging shows them.
            let of = |name: &String| {
                let within = |begin, end| name.strip_prefix(begin).and_then(|name| name.strip_suffix(end));
                let plain = within("DnsName(\"", "\")").or_else(|| within("IpAddress(", ")"));
                plain.unwrap_or(name).to_owned()
            };
            let mut names: Vec<String> = presented.iter().take(NAMES_SHOWN).map(of).collect();
            if presented.is_empty() {
                names.push("no host".to_owned());
            }
            (
                WrongName,
                format!(
                    "its certificate is for {}, and not for {} (endpoint_tls.server_name)",
                    names.join(", "),
                    expected.to_str()
                ),
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (Expired, "its certificate has expired".to_owned())
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            (Expired, "its certificate is not good yet".to_owned())
        }
        CertificateError::Other(OtherError(other)) => match other.downcast_ref::<WrongPin>() {
            Some(wrong) => (Pin, wrong.to_string()),
            None => (
                BadCertificate,
                format!("its certificate is not good for a server: {other}"),
            ),
        },
        error => (BadCertificate, format!("its certificate is not good: {error}")),
    };
    match (result, verify) {
        // Signatures by a key that is not the certificate's are all that can be wrong otherwise.
        (Pin | BadCertificate, _) | (_, Verify::Full) => (result, text),
        _ => (BadCertificate, text),
    }
}

/// Of a certificate's hosts.
const NAMES_SHOWN: usize = 8;

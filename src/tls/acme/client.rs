//! How an authority is asked: HTTP/1.1 over TLS, a connection for each request. Not here: what is asked (`order`).

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Asks one authority. Clones share what is known of it.
#[derive(Clone)]
pub(super) struct Client {
    tls: Arc<ClientConfig>,
    /// Seconds that it last asked for with a refusal. std mutex: for a moment each.
    retry_after: Arc<Mutex<Option<i64>>>,
}

impl Client {
    /// `authorities`: a file with the roots (PEM) that it is checked by; `None`: those that browsers come with.
    ///
    /// Errors: what is wrong with the file.
    pub(super) fn new(authorities: Option<&Path>) -> Result<Client, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?;
        let tls = builder
            .with_root_certificates(roots(authorities)?)
            .with_no_client_auth();
        Ok(Client {
            tls: Arc::new(tls),
            retry_after: Arc::default(),
        })
    }

    /// Seconds that the last refusal since the last call asked for.
    pub(super) fn take_retry_after(&self) -> Option<i64> {
        self.retry_after.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, Error> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        // The directory alone is asked for so (RFC 8555, 6.3).
        let is_for_directory = request.method() == Method::GET;
        let failed = |error: &dyn std::fmt::Display| Error::Other(format!("{host}: {error}").into());
        let asking = async {
            if request.uri().scheme_str() != Some("https") {
                return Err(failed(&"expected https"));
            }
            let port = request.uri().port_u16().unwrap_or(443);
            let plain = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let server = ServerName::try_from(plain.clone()).map_err(|error| failed(&error))?;
            let socket = TcpStream::connect((plain, port))
                .await
                .map_err(|error| failed(&error))?;
            let wire = TlsConnector::from(self.tls.clone()).connect(server, socket).await;
            let wire = wire.map_err(|error| failed(&error))?;
            let handshake = http1::handshake(TokioIo::new(wire)).await;
            let (mut sender, connection) = handshake.map_err(|error| failed(&error))?;
            let request = in_origin_form(request)?;
            let answering = async {
                let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
                let (parts, body) = response.into_parts();
                let body = Limited::new(body, BODY_MOST).collect().await;
                let body = body.map_err(|error| failed(&error))?.to_bytes();
                Ok(Response::from_parts(parts, Full::new(body)))
            };
            tokio::pin!(answering);
            tokio::select! {
                biased;
                answer = &mut answering => answer,
                // What it has received is given to who waits for it first.
                _ = connection => answering.await,
            }
        };
        let mut response = match tokio::time::timeout(ANSWER_WITHIN, asking).await {
            Ok(response) => response?,
            Err(_) => return Err(failed(&"no answer in time")),
        };
        if matches!(response.status().as_u16(), 429 | 503) {
            let asked = response.headers().get(RETRY_AFTER).and_then(seconds);
            *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = asked;
        }
        keep_short(response.headers_mut());
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let tells_why = kind.is_some_and(|kind| kind.contains("json"));
        match response.status() {
            status if (status.is_client_error() || status.is_server_error()) && !tells_why => {
                Err(failed(&format_args!("it answers {status}")))
            }
            status if is_for_directory && status.is_success() => {
                let (parts, body) = response.into_parts();
                // Whole already: what is in a `Full` cannot fail.
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                check_directory(&body).map_err(|fault| failed(&fault))?;
                Ok(Response::from_parts(parts, Full::new(body)))
            }
            _ => Ok(response),
        }
    }
}

/// Leaves of a `Retry-After` what can be waited for, in seconds: the library panics at one that no clock can show.
fn keep_short(headers: &mut HeaderMap) {
    let asked = headers.remove(RETRY_AFTER).as_ref().and_then(seconds);
    if let Some(asked) = asked {
        headers.insert(RETRY_AFTER, HeaderValue::from(asked.min(WAIT_MOST)));
    }
}

/// Errors: which of a directory's URLs is none, at which the library would panic.
fn check_directory(body: &[u8]) -> Result<(), String> {
    let Ok(serde_json::Value::Object(directory)) = serde_json::from_slice(body) else {
        return Err("what it answers is no directory of an authority (RFC 8555)".to_owned());
    };
    for (key, value) in directory.iter().filter(|(key, _)| *key != "meta") {
        let uri = value.as_str().and_then(|text| text.parse::<Uri>().ok());
        let is_good = uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
        // What it adds by itself, under whatever name, is not asked for.
        if !is_good && URLS.contains(&key.as_str()) {
            return Err(format!("its directory has {key} = {value}: expected an https URL"));
        }
    }
    Ok(())
}

/// Of a directory (RFC 8555, 7.1.1, RFC 9773).
const URLS: [&str; 7] = [
    "newNonce",
    "newAccount",
    "newOrder",
    "newAuthz",
    "revokeCert",
    "keyChange",
    "renewalInfo",
];
/// Seconds.
const WAIT_MOST: i64 = 24 * 3600;

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let asking = self.clone().ask(request);
        Box::pin(async move { asking.await.map(BytesResponse::from) })
    }
}

/// As a server is asked, not a proxy.
fn in_origin_form(mut request: Request<BodyWrapper<Bytes>>) -> Result<Request<BodyWrapper<Bytes>>, Error> {
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = HeaderValue::from_str(&authority.unwrap_or_default()).map_err(|error| Error::Other(error.into()))?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = path.parse()?;
    request.headers_mut().insert(HOST, host);
    *request.uri_mut() = uri;
    Ok(request)
}

/// Of a `Retry-After`: seconds, or a date.
fn seconds(value: &HeaderValue) -> Option<i64> {
    let text = value.to_str().ok()?.trim();
    let of_date = || {
        let until = httpdate::parse_http_date(text).ok()?;
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        i64::try_from(left.as_secs()).ok()
    };
    match !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        true => Some(text.parse().unwrap_or(i64::MAX)),
        false => of_date(),
    }
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let Some(path) = file else {
        return Ok(RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        });
    };
    let wrong = |what: &str| format!("ca = {:?}: {what}", path.display().to_string());
    let pem = std::fs::read(path).map_err(|error| wrong(&error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
        added.ok_or_else(|| wrong("expected certificates of authorities in PEM"))?;
    }
    match roots.is_empty() {
        true => Err(wrong("expected certificates of authorities in PEM")),
        false => Ok(roots),
    }
}

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const BODY_MOST: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |text: &'static str| seconds(&HeaderValue::from_static(text));
        assert_eq!(read(" 120 "), Some(120));
        assert_eq!(read("Fri, 31 Dec 1999 23:59:59 GMT"), Some(0));
        assert_eq!((read("soon"), read("-1"), read("")), (None, None, None));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(1000));
        let later = seconds(&HeaderValue::from_str(&later).unwrap()).unwrap();
        assert!((990..=1000).contains(&later), "{later}");
        assert_eq!(read("18446744073709551616"), Some(i64::MAX));
    }

    #[test]
    fn what_cannot_be_waited_for_is_not_handed_on() {
        for (asked, expected) in [
            (&["18446744073709551615"][..], Some("86400")),
            (&["99999999999999999999999999"], Some("86400")),
            (&["Fri, 31 Dec 9999 23:59:59 GMT"], Some("86400")),
            (&["Fri, 31 Dec 1999 23:59:59 GMT"], Some("0")),
            (&["3", "18446744073709551615"], Some("3")),
            (&["soon", "18446744073709551615"], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in asked {
                headers.append(RETRY_AFTER, HeaderValue::from_static(value));
            }
            keep_short(&mut headers);
            let left = headers.get_all(RETRY_AFTER).iter().map(|value| value.to_str().unwrap());
            assert_eq!(
                left.collect::<Vec<_>>(),
                expected.into_iter().collect::<Vec<_>>(),
                "{asked:?}"
            );
        }
    }
}

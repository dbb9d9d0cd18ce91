//! A service is asked whether a request may pass (forward auth). Not here: which requests it is asked of (`passing`).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{fmt, io};

use tokio::net::TcpStream;

use super::buffer::Buffer;
use super::exchange::{Ended, Exchange, Failure, Watch};
use super::pool;
use super::server::Server;
use super::through::{Asked, Outcome, run};
use super::way::Way;
use super::wish;
use crate::model::filters::{FieldEdit, FieldValue, is_same_name};
use crate::model::guards::ForwardAuth;
use crate::model::{Attachment, ServiceName};
use crate::proxy::balancer::Wish;
use crate::proxy::http::{Body, Framing, Method, RequestMeta, Version};
use crate::proxy::side::Side;
use crate::proxy::upstream::{Tries, Upstream};
use crate::proxy::wire::{Client, Leg, Streamed, Watched, Wire};
use crate::routing::{CloseReason, Service};

/// What has come of asking.
pub(super) enum Verdict {
    /// It may pass, and the endpoint is told this.
    Passes(Vec<FieldEdit>),
    /// The client gets this answer.
    Answer(Answer),
    /// Nobody could be asked, or what was answered is none: why.
    Unknown(std::borrow::Cow<'static, str>),
}

/// An answer that was taken whole.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The head up to its last field, without what says how the body is framed and what becomes of the connection.
    pub(super) head: Vec<u8>,
    pub(super) body: Vec<u8>,
}

impl<C: Client> Server<'_, C> {
    /// Asks whether a request for `guarded`, whose head is `head` as its endpoint would get it, may pass. Errors: the reason to close with.
    pub(super) async fn ask_service(
        &mut self,
        auth: &ForwardAuth,
        guarded: &Service,
        head: &[u8],
        meta: &RequestMeta,
    ) -> Result<Verdict, CloseReason> {
        let Some((service, network)) = self.who_is_asked(auth, guarded) else {
            return Ok(Verdict::Unknown(nobody(auth).into()));
        };
        let question = question(auth, head);
        let verdict = self
            .ask_endpoints(&service, network.as_ref(), auth, question, meta)
            .await;
        if let Ok(Verdict::Unknown(why)) = &verdict {
            tracing::debug!(service = %guarded.name(), asked = %service.name(), "{why}");
        }
        verdict
    }

    /// The service of that name, as it is called on a network that `guarded` is on too; or, where neither is on any, as the file names it. One of
    /// the same stack comes first, since its services call each other without what all their names begin with.
    fn who_is_asked(&self, auth: &ForwardAuth, guarded: &Service) -> Option<(Arc<Service>, Option<Arc<str>>)> {
        let table = self.shared.table.peek();
        let own = guarded.spec();
        let called = auth.address.service();
        let named = |name: &str| table.service(&ServiceName::new(name).ok()?).cloned();
        let is_shared = |it: &&Attachment| own.attachments.iter().any(|own| own.network == it.network);
        let reached = |service: Arc<Service>| {
            let theirs = &service.spec().attachments;
            let network = theirs.iter().find(is_shared).map(|it| it.network.clone());
            let are_none = theirs.is_empty() && own.attachments.is_empty();
            (network.is_some() || are_none).then_some((service, network))
        };
        let beside = auth.address.names_beside(own.name.as_str());
        let beside = beside.filter_map(|name| named(&name));
        let by_alias = || {
            table.services().find_map(|service| {
                let is_called = |alias: &Arc<str>| alias.eq_ignore_ascii_case(called);
                let mut theirs = service.spec().attachments.iter().filter(is_shared);
                let met = theirs.find(|it| it.aliases.iter().any(is_called))?;
                Some((service.clone(), Some(met.network.clone())))
            })
        };
        let found = beside.filter_map(reached).next();
        found.or_else(by_alias).or_else(|| reached(named(called)?))
    }

    async fn ask_endpoints(
        &mut self,
        service: &Arc<Service>,
        network: Option<&Arc<str>>,
        auth: &ForwardAuth,
        mut question: Buffer,
        meta: &RequestMeta,
    ) -> Result<Verdict, CloseReason> {
        let port = auth.address.port();
        let request = RequestMeta {
            head_len: 0,
            method: Method::Get,
            // So that the answer comes without chunks.
            version: Version::Http10,
            framing: Framing::None,
            keep_alive: true,
            expects_continue: false,
            upgrade: false,
            local_answer: None,
        };
        if Way::of(service.spec(), question.rest()).is_err() {
            return Ok(Verdict::Unknown(NO_WAY.into()));
        }
        let due = tokio::time::Instant::now() + ANSWERS_WITHIN;
        let stats = service.stats();
        let mut tries = Tries::default();
        for i in 0..ASKED_AT_MOST {
            let asked = Asked {
                wish: Wish::default(),
                method: Method::Get,
                is_anew: i > 0,
            };
            let body = Body::of_request(meta.framing);
            let acquiring = self.acquire(service, port, asked, question.rest(), &mut tries, body, network);
            let Ok(acquired) = tokio::time::timeout_at(due, Box::pin(acquiring)).await else {
                return Ok(Verdict::Unknown(TOO_LATE.into()));
            };
            let Ok(upstream) = acquired? else {
                let called = auth.address.service();
                return Ok(Verdict::Unknown(format!("{NO_ENDPOINT}: {called}").into()));
            };
            let Upstream {
                stream,
                lease,
                is_reused,
                ..
            } = upstream;
            let began_at = Instant::now();
            let endpoint = lease.endpoint().clone();
            let taker = Taker::new(self.client.watched().local_addr().unwrap_or(self.from));
            let mut stream = Side::Hears(stream);
            self.connection.hold(Some(endpoint.id()));
            let mut nothing = Buffer::default();
            let request = (request, Body::Done);
            let sides = (&taker, &mut stream);
            let mut exchange = Exchange::new(
                sides,
                request,
                (&mut nothing, &mut question),
                stats,
                &self.shared.config,
            );
            // It is watched here.
            exchange.watch = Watch::HasSaid;
            let outcome = tokio::select! {
                biased;
                outcome = run(self.connection, &mut exchange, service.spec()) => outcome,
                _ = self.client.watched().news(false) => Outcome::Cut(CloseReason::ClientRst),
                () = tokio::time::sleep_until(due) => Outcome::TooLate,
            };
            let has_responded = exchange.response.is_some();
            if let Some(response) = &exchange.response {
                stats.add_request(response.meta.status);
                stats.request_ttfb.observe(response.at - began_at);
                stats.request_duration.observe(began_at.elapsed());
                endpoint.answered();
            }
            drop(exchange);
            self.connection.hold(None);
            match outcome {
                Outcome::Ended(Ended::Response { upstream_stays, .. }) => {
                    let stays = upstream_stays && !endpoint.is_draining();
                    if let Some(stream) = stream.into_wire().filter(|stream| stays && !stream.is_leaving()) {
                        let most = self.shared.config.http_pool_per_endpoint;
                        pool::put(endpoint.id(), port, stream, Instant::now(), most);
                    }
                    return Ok(taker.verdict(auth));
                }
                Outcome::Cut(reason) => {
                    stream.reset_on_close();
                    return Err(reason);
                }
                Outcome::Ended(Ended::Failed(Failure::NoResponse)) | Outcome::Lost if !has_responded => {
                    stream.reset_on_close();
                    if !is_reused {
                        service.left_unanswered(&endpoint, self.asker(None), Instant::now());
                        tries.tried.push(endpoint.id());
                    }
                    question.rewind();
                }
                Outcome::TooLate => {
                    stream.wire().into_iter().for_each(Leg::distrust);
                    stream.reset_on_close();
                    return Ok(Verdict::Unknown(TOO_LATE.into()));
                }
                Outcome::Ended(_) | Outcome::Lost => {
                    stream.reset_on_close();
                    return Ok(Verdict::Unknown(NO_ANSWER.into()));
                }
            }
        }
        Ok(Verdict::Unknown(NO_ANSWER.into()))
    }
}

fn nobody(auth: &ForwardAuth) -> String {
    let called = auth.address.service();
    format!("there is no service {called} here, which is to say whether requests may pass")
}

const NO_WAY: &str = "the service that says whether requests may pass cannot be asked by the HTTP that it speaks";
const NO_ENDPOINT: &str = "no endpoint is there of the service that says whether requests may pass";
const NO_ANSWER: &str = "the service that says whether requests may pass gives no answer that can be taken";
const TOO_LATE: &str = "the service that says whether requests may pass does not answer in time";

/// What is asked: the request itself without its body, and by which method and for what it came.
fn question(auth: &ForwardAuth, head: &[u8]) -> Buffer {
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(|byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut out = Buffer::default();
    let text = out.tail();
    let mut push = |parts: &[&[u8]]| parts.iter().for_each(|part| text.extend_from_slice(part));
    let authority = auth.address.authority();
    push(&[
        b"GET ",
        auth.address.target().as_bytes(),
        b" HTTP/1.1\r\nHost: ",
        authority.as_bytes(),
        b"\r\n",
    ]);
    for line in lines.take_while(|line| !line.is_empty()) {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        let is = |other: &&str| is_same_name(name, other.as_bytes());
        let is_asked_for = || {
            let named = auth.request_fields.as_ref();
            named.is_none_or(|named| named.iter().any(|field| field.is_named(name)))
        };
        // What is not believed of the client is not shown either.
        let is_told = || auth.response_fields.iter().any(|field| field.is_named(name));
        if !OF_THE_MESSAGE.iter().any(is) && !is_told() && (FORWARDING.iter().any(is) || is_asked_for()) {
            push(&[line, b"\r\n"]);
        }
    }
    push(&[
        b"X-Forwarded-Method: ",
        method,
        b"\r\nX-Forwarded-Uri: ",
        target,
        b"\r\n\r\n",
    ]);
    out
}

/// What is of the request's own way and body, or of the endpoint's answer, or is said anew.
const OF_THE_MESSAGE: [&str; 25] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "max-forwards",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-method",
    "x-forwarded-uri",
    // Other names of these, by which a client would say for itself what it asks for.
    "x-original-host",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// What is told in any case.
const FORWARDING: [&str; 7] = [
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// What of an answer is of its own way, or written anew.
const OF_THE_ANSWER: [&str; 7] = [
    "connection",
    "content-length",
    "keep-alive",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// Takes an answer in the place of a client.
struct Taker {
    local: SocketAddr,
    /// std mutex: one task has it, and nothing awaits under it.
    taken: Mutex<Vec<u8>>,
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Taker")
    }
}

impl Taker {
    fn new(local: SocketAddr) -> Taker {
        Taker {
            local,
            taken: Mutex::default(),
        }
    }

    fn verdict(self, auth: &ForwardAuth) -> Verdict {
        let taken = self.taken.into_inner().unwrap_or_else(PoisonError::into_inner);
        read(&taken, auth).unwrap_or_else(|| Verdict::Unknown(NO_ANSWER.into()))
    }
}

/// `None`: it is no answer to that.
fn read(mut taken: &[u8], auth: &ForwardAuth) -> Option<Verdict> {
    loop {
        let end = taken.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let (head, body) = taken.split_at(end);
        let status: u16 = std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()?;
        match status {
            101 => return None,
            // Not yet the answer.
            100..200 => taken = body,
            200..300 => return told(auth, head).map(Verdict::Passes),
            _ => {
                let head = head.strip_suffix(b"\r\n")?;
                let lines = head.split_inclusive(|byte| *byte == b'\n').enumerate();
                let is_kept = |line: &[u8]| {
                    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
                    !OF_THE_ANSWER.iter().any(|other| is_same_name(name, other.as_bytes()))
                };
                let kept = lines.filter(|(i, line)| *i == 0 || is_kept(line));
                return Some(Verdict::Answer(Answer {
                    status,
                    head: kept.flat_map(|(_, line)| line.iter().copied()).collect(),
                    body: body.to_vec(),
                }));
            }
        }
    }
}

/// What the endpoint is told: nothing that the client has said by these names. `None`: it cannot be told all of it.
fn told(auth: &ForwardAuth, head: &[u8]) -> Option<Vec<FieldEdit>> {
    let mut edits = Vec::new();
    for name in auth.response_fields.iter() {
        let values = wish::fields(head, name.as_str());
        let before = edits.len();
        for value in values {
            edits.push((name.clone(), Some(FieldValue::received(value)?)));
        }
        if edits.len() == before {
            edits.push((name.clone(), None));
        }
    }
    Some(edits)
}

impl Client for Taker {
    fn watched(&self) -> Watched<'_> {
        Watched::Stream(self)
    }
}

impl Streamed for Taker {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn poll_reset(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Wire for Taker {
    fn poll_read(&self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_write(&self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.len() + bytes.len() > ANSWER_BYTES_MAX {
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        taken.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_end(&self, _: &mut Context<'_>, _: bool) -> Poll<()> {
        Poll::Ready(())
    }

    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(None)
    }

    fn reset_on_close(&self) {}

    fn set_liveness(&self) {}
}

/// An answer that is longer is none.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
const ASKED_AT_MOST: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> ForwardAuth {
        ForwardAuth {
            response_fields: ["Remote-User", "X-Groups"].map(|name| name.parse().unwrap()).into(),
            ..ForwardAuth::new("http://auth:9091/verify?x".parse().unwrap())
        }
    }

    #[test]
    fn the_question_is_the_request_without_its_body() {
        let head = "POST /a?b HTTP/1.1\r\nHost: a.test\r\nCookie: c=1\r\nContent-Length: 5\r\nX_Forwarded_Uri: /evil\r\nX-Original-URL: /evil\r\nremote_user: evil\r\nIf-None-Match: x\r\nContent-Type: x\r\n\
                    X-Forwarded-For: 192.0.2.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX-Own: 1\r\n\r\nhello";
        let said = |auth: &ForwardAuth| {
            let text = String::from_utf8(question(auth, head.as_bytes()).rest().to_vec()).unwrap();
            text.replace("\r\n", "|")
        };
        let begin = "GET /verify?x HTTP/1.1|Host: auth:9091|";
        let end = "X-Forwarded-Method: POST|X-Forwarded-Uri: /a?b||";
        assert_eq!(
            said(&auth()),
            format!("{begin}Cookie: c=1|X-Forwarded-For: 192.0.2.1|X-Own: 1|{end}")
        );
        let some = ForwardAuth {
            request_fields: Some(["cookie".parse().unwrap()].into()),
            ..auth()
        };
        assert_eq!(
            said(&some),
            format!("{begin}Cookie: c=1|X-Forwarded-For: 192.0.2.1|{end}")
        );
    }

    #[test]
    fn what_is_no_answer_of_2xx_does_not_pass() {
        let of = |text: &str| read(text.replace('|', "\r\n").as_bytes(), &auth());
        let Some(Verdict::Passes(edits)) = of("HTTP/1.1 100 Continue||HTTP/1.1 204 No|remote-user: ann|X-Other: 1||")
        else {
            panic!()
        };
        let edits: Vec<_> = edits
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_ref().map(|value| value.as_str())))
            .collect();
        assert_eq!(edits, [("Remote-User", Some("ann")), ("X-Groups", None)]);
        let Some(Verdict::Answer(answer)) = of(
            "HTTP/1.1 302 Found|Location: /login|Content-Length: 2|Via: x|Set-Cookie: a|Set-Cookie: b|Connection: close||hi",
        ) else {
            panic!()
        };
        let head = String::from_utf8(answer.head).unwrap().replace("\r\n", "|");
        assert_eq!(
            (answer.status, &*head, &*answer.body),
            (
                302,
                "HTTP/1.1 302 Found|Location: /login|Set-Cookie: a|Set-Cookie: b|",
                &b"hi"[..]
            )
        );
        for none in [
            "HTTP/1.1 200 OK|Remote-User: \u{1}||",
            "",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK|",
            "HTTP/1.1 101 x||",
            "HTTP/1.1 100 x||",
            "HTTP/1.1 2x0 x||",
        ] {
            assert!(of(none).is_none(), "{none}");
        }
    }
}

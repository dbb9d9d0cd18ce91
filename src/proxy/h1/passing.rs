//! What is asked of a request on the way to an endpoint: it is answered in the place of one, or goes on. Not here: which filters those are
//! (`whose`), and how heads are changed (`http`).

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::buffer::Buffer;
use super::forward::{self, Answer};
use super::server::Server;
use super::whose::Filtered;
use super::wish;
use crate::model::RouteSpec;
use crate::model::filters::{FieldEdit, Filters};
use crate::model::guards::{BasicAuth, Guards};
use crate::proxy::auth::Verdict;
use crate::proxy::http::{Body, BodyFault, Framing, RequestMeta, check_path, filter_request};
use crate::proxy::wire::Client;
use crate::routing::{ClientKey, CloseReason, GuardState, RequestRefusal, Service, UnderWayOne};

/// Why a guard answers in the place of an endpoint.
struct Denied {
    refusal: RequestRefusal,
    status: u16,
    what: Cow<'static, str>,
    /// A field of the answer; none if it is empty.
    field: String,
    /// What the client is answered in the place of all that.
    answer: Option<Answer>,
}

/// A request that goes on.
#[derive(Default)]
pub(super) struct Passed {
    /// It is counted as under way for as long as these are.
    _under_way: Vec<UnderWayOne>,
    /// Its body, which may be no longer than its guards let it.
    pub(super) body: Option<Body>,
    /// The endpoint is told who it is, or is not told by what.
    pub(super) tells_user: bool,
    /// How often it may be sent again, where that is said.
    pub(super) retries: Option<u32>,
}

impl<C: Client> Server<'_, C> {
    /// Asks all that they ask of a request whose head, and nothing else, is in `head`. `said_by`: what says the route whose filters are
    /// the first. `answer`: what the client is told in any case (`judge`). Errors: the client was answered, and whether it may go on, or
    /// the reason to close with.
    pub(super) async fn pass(
        &mut self,
        service: &Service,
        said_by: Option<&str>,
        filters: &[Arc<Filters>],
        answer: Option<Filtered>,
        head: &mut Buffer,
        meta: &RequestMeta,
    ) -> Result<Passed, Result<(), CloseReason>> {
        if let Some(answer) = answer {
            return Err(self.answer_for(service, answer, meta).await);
        }
        let said_by = said_by.into_iter().chain([OF_SERVICE]);
        let guards = filters.iter().zip(said_by);
        let guards: Vec<_> = guards
            .filter_map(|(filters, said_by)| Some((said_by, filters.guards.as_ref()?)))
            .collect();
        // What another service judges by its path has to have one.
        let is_judged = guards.iter().any(|(_, guards)| guards.forward.is_some());
        if is_judged && let Err(refusal) = check_path(head.rest()) {
            return Err(Err(self.refuse(refusal).await));
        }
        match self.guard(service, &guards, head.tail(), meta).await.map_err(Err)? {
            Ok(passed) => Ok(passed),
            Err(denied) => Err(self.deny(service, denied, meta).await),
        }
    }

    async fn deny(&mut self, service: &Service, denied: Denied, meta: &RequestMeta) -> Result<(), CloseReason> {
        service.stats().add_refusal(denied.refusal);
        if let Some(answer) = denied.answer {
            return self.say_anothers(service, answer, meta).await;
        }
        let text = format!("service {}: {}", service.name(), denied.what);
        let is_read = meta.framing == Framing::None;
        self.fail_with(service, denied.status, text, &denied.field, meta, is_read)
            .await
    }

    async fn answer_for(&mut self, service: &Service, answer: Filtered, meta: &RequestMeta) -> Result<(), CloseReason> {
        match answer {
            Filtered::Forbidden => {
                let text = format!("service {}: not for clients of that address", service.name());
                self.fail(service, 403, text, meta, meta.framing == Framing::None).await
            }
            Filtered::Nowhere => {
                let text = format!("service {}: the redirect for this leads nowhere", service.name());
                self.fail(service, 400, text, meta, meta.framing == Framing::None).await
            }
            Filtered::Elsewhere(location, is_permanent) => {
                service.stats().add_request(301);
                self.say_elsewhere(&location, is_permanent, meta).await
            }
        }
    }

    /// Asks all that is to be asked, who it is first. The outer error is the reason to close with.
    async fn guard(
        &mut self,
        service: &Service,
        guards: &[(&str, &Arc<Guards>)],
        head: &mut Vec<u8>,
        meta: &RequestMeta,
    ) -> Result<Result<Passed, Denied>, CloseReason> {
        // One that cannot be read counts as the proxy's own.
        let client = self.client_of(head).unwrap_or_else(|_| self.from.ip());
        let mut tells_user = false;
        // One after the other: each is shown what those before it have made of the request.
        let mut tell = |head: &mut Vec<u8>, edits: Vec<FieldEdit>| {
            if edits.is_empty() {
                return;
            }
            tells_user = true;
            let filters = Filters {
                request_fields: edits.into(),
                ..Filters::default()
            };
            // Only fields are changed, which cannot be refused.
            let _ = filter_request(head, &filters);
        };
        for auth in guards.iter().filter_map(|(_, guards)| guards.auth.as_ref()) {
            match self.who_is(auth, head, client).await? {
                Ok(edits) => tell(head, edits),
                Err(denied) => return Ok(Err(denied)),
            }
        }
        for auth in guards.iter().filter_map(|(_, guards)| guards.forward.as_ref()) {
            let (refusal, what, answer) = match self.ask_service(auth, service, head, meta).await? {
                forward::Verdict::Passes(edits) => {
                    tell(head, edits);
                    continue;
                }
                forward::Verdict::Answer(answer) => (RequestRefusal::ForwardAuth, "".into(), Some(answer)),
                forward::Verdict::Unknown(why) => (RequestRefusal::AuthUnavailable, why, None),
            };
            return Ok(Err(Denied {
                refusal,
                status: 503,
                what,
                field: String::new(),
                answer,
            }));
        }
        let client = ClientKey::of(client);
        let is_said = |said_by: &str| {
            let is_of = |route: &RouteSpec| &*route.said_by == said_by;
            said_by == OF_SERVICE || service.spec().routes.iter().any(is_of)
        };
        let counted = guards.iter().filter(|(_, guards)| guards.counts());
        let counted: Vec<Arc<GuardState>> = counted
            .map(|(said_by, guards)| service.state().guards.of(said_by, guards, is_said))
            .collect();
        if let Some(wait) = counted.iter().find_map(|counted| counted.rate(client).err()) {
            return Ok(Err(Denied {
                refusal: RequestRefusal::Rate,
                status: 429,
                what: "too many requests from that address".into(),
                field: retry_after(wait),
                answer: None,
            }));
        }
        let under_way: Option<Vec<_>> = counted.iter().map(|counted| counted.enter(client)).collect();
        let Some(_under_way) = under_way else {
            return Ok(Err(Denied {
                refusal: RequestRefusal::InFlight,
                status: 429,
                what: "too many requests are under way".into(),
                field: String::new(),
                answer: None,
            }));
        };
        let n_most = guards.iter().filter_map(|(_, guards)| guards.max_body).min();
        let body = n_most.map(|most| Body::of_request(meta.framing).at_most(most.bytes()));
        let Ok(body) = body.transpose() else {
            return Ok(Err(too_long()));
        };
        Ok(Ok(Passed {
            _under_way,
            body,
            tells_user,
            // The route's come first.
            retries: guards.iter().find_map(|(_, guards)| Some(guards.retries?.get())),
        }))
    }

    /// Tells a client that its body is broken, or longer than it may be. Nothing was answered before.
    pub(super) async fn say_broken(&mut self, service: &Service, fault: BodyFault, meta: &RequestMeta) -> CloseReason {
        if fault == BodyFault::TooLong {
            service.stats().add_refusal(RequestRefusal::BodyTooLong);
        }
        service.stats().add_request(fault.status());
        self.say(fault.status(), fault.text(), false, meta.method).await;
        self.finish().await;
        CloseReason::BadRequest
    }

    /// Whether a request is of one of the users, and how the endpoint is told. The outer error is the reason to close with.
    async fn who_is(
        &mut self,
        auth: &BasicAuth,
        head: &[u8],
        client: IpAddr,
    ) -> Result<Result<Vec<FieldEdit>, Denied>, CloseReason> {
        let ask = |refusal, what: &'static str| Denied {
            refusal,
            status: 401,
            what: what.into(),
            field: format!("WWW-Authenticate: Basic realm=\"{}\"", auth.realm.as_str()),
            answer: None,
        };
        let Some((name, password)) = said(head) else {
            return Ok(Err(ask(
                RequestRefusal::NoPassword,
                "a name and a password are asked for",
            )));
        };
        let verdict = tokio::select! {
            biased;
            verdict = self.shared.passwords.check(auth, &name, &password, client) => verdict,
            reason = self.connection.ended() => return Err(reason),
            _ = self.client.watched().news(false) => return Err(CloseReason::ClientRst),
        };
        let denied = match verdict {
            Verdict::Right => {
                let field = |name: &str| name.parse().ok();
                let removed = auth.removes_field.then(|| field("authorization")).flatten();
                let told = auth.user_field.clone().zip(name.parse().ok());
                let told = told.map(|(field, name)| (field, Some(name)));
                return Ok(Ok(told.into_iter().chain(removed.map(|field| (field, None))).collect()));
            }
            Verdict::Wrong => ask(RequestRefusal::WrongPassword, "no such name and password"),
            Verdict::TooMany(wait) => Denied {
                refusal: RequestRefusal::PasswordGuesses,
                status: 429,
                what: "too many wrong passwords from that address".into(),
                field: retry_after(wait),
                answer: None,
            },
            Verdict::Busy => Denied {
                refusal: RequestRefusal::PasswordBusy,
                status: 503,
                what: "too many passwords are to be tried".into(),
                field: "Retry-After: 1".to_owned(),
                answer: None,
            },
        };
        Ok(Err(denied))
    }
}

fn too_long() -> Denied {
    Denied {
        refusal: RequestRefusal::BodyTooLong,
        status: BodyFault::TooLong.status(),
        what: BodyFault::TooLong.text().into(),
        field: String::new(),
        answer: None,
    }
}

fn retry_after(wait: Duration) -> String {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    format!("Retry-After: {}", seconds.max(1))
}

/// The name and the password that a request says; `None`: none, or it could be read in two ways.
fn said(head: &[u8]) -> Option<(String, Vec<u8>)> {
    let value = wish::only_field(head, "authorization")?;
    let (scheme, encoded) = value.split_at_checked(BASIC.len())?;
    if !scheme.eq_ignore_ascii_case(BASIC) {
        return None;
    }
    let mut decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let password = decoded.split_off(colon + 1);
    decoded.truncate(colon);
    Some((String::from_utf8(decoded).ok()?, password))
}

/// What is no route's is said by this, which no label or key is.
const OF_SERVICE: &str = "";
const BASIC: &[u8] = b"basic ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_password_are_said_in_one_way_only() {
        let of = |fields: &str| {
            let (name, password) = said(format!("GET / HTTP/1.1\r\n{fields}\r\n\r\nAuthorization: x").as_bytes())?;
            Some(format!("{name} {}", String::from_utf8_lossy(&password)))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of("Authorization: Basic YTpiOmM="), some("a b:c"));
        assert_eq!(of("authorization: bASIC   YTo="), some("a "));
        for none in [
            "Host: a",
            "Authorization: Bearer YTpi",
            "Authorization: Basic",
            "Authorization: BasicYTpi",
            "Authorization: Basic YTpi!",
            "Authorization: Basic YWI=",
            "Authorization: Basic /zpi",
            "Authorization: Basic YTpi\r\nAuthorization: Basic YTpi",
            "Authorization: Basic YTpi, Basic YTpi",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}

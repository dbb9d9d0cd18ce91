//! What a client is told by us, in the place of an endpoint's answer.

use std::future::poll_fn;
use std::time::Duration;

use super::buffer::Buffer;
use super::forward::Answer;
use crate::proxy::core;
use crate::proxy::http::{
    Framing, LocalAnswer, Method, Refusal, Reply, RequestMeta, Version, write_challenge, write_options_reply,
    write_redirect,
};
use crate::proxy::relay;
use crate::proxy::wire::Client;
use crate::routing::{CloseReason, Service};

use super::server::{Server, Spoken};

impl<C: Client> Server<'_, C> {
    pub(super) async fn refuse(&mut self, refusal: Refusal) -> CloseReason {
        if self.wire == Spoken::Http2 {
            // It goes on elsewhere.
            return CloseReason::BadRequest;
        }
        self.connection.service().stats().add_request(refusal.status());
        self.say(refusal.status(), refusal.text(), false, Method::Get).await;
        self.finish().await;
        CloseReason::BadRequest
    }

    /// Answers for an endpoint that did not.
    pub(super) async fn fail(
        &mut self,
        service: &Service,
        status: u16,
        text: String,
        meta: &RequestMeta,
        is_request_read: bool,
    ) -> Result<(), CloseReason> {
        self.fail_with(service, status, text, "", meta, is_request_read).await
    }

    /// As `fail`, with a field besides.
    pub(super) async fn fail_with(
        &mut self,
        service: &Service,
        status: u16,
        text: String,
        field: &str,
        meta: &RequestMeta,
        is_request_read: bool,
    ) -> Result<(), CloseReason> {
        service.stats().add_request(status);
        let stays = meta.keep_alive && meta.version == Version::Http11 && is_request_read && !core::is_draining();
        self.say_with(status, &text, field, stays, meta.method).await;
        if stays {
            return Ok(());
        }
        self.finish().await;
        Err(CloseReason::ResponseEnd)
    }

    /// Passes on what another service answers in the place of this one.
    pub(super) async fn say_anothers(
        &mut self,
        service: &Service,
        answer: Answer,
        meta: &RequestMeta,
    ) -> Result<(), CloseReason> {
        service.stats().add_request(answer.status);
        let is_read = meta.framing == Framing::None;
        let stays = meta.keep_alive && meta.version == Version::Http11 && is_read && !core::is_draining();
        let mut out = Buffer::of(answer.head);
        let text = out.tail();
        if answer.status != 304 {
            text.extend_from_slice(format!("Content-Length: {}\r\n", answer.body.len()).as_bytes());
        }
        text.extend_from_slice(if stays { b"\r\n" } else { b"Connection: close\r\n\r\n" });
        if meta.method != Method::Head && answer.status != 304 {
            text.extend_from_slice(&answer.body);
        }
        if !self.send_whole(out).await {
            // Nobody is to take what it got of it for the whole, or what comes next for the rest.
            self.client.reset_on_close();
            return Err(CloseReason::ClientRst);
        }
        if stays {
            return Ok(());
        }
        self.finish().await;
        Err(CloseReason::ResponseEnd)
    }

    pub(super) async fn say_no_route(&mut self, meta: &RequestMeta) -> Result<(), CloseReason> {
        let entry_point = self.connection.service().clone();
        let text = format!("no route of entry point {} takes this request", entry_point.name());
        self.fail(&entry_point, 404, text, meta, meta.framing == Framing::None)
            .await
    }

    /// Browsers ask again, by a connection of their own to that name (RFC 9110, 15.5.20).
    pub(super) async fn say_misdirected(&mut self, meta: &RequestMeta) -> Result<(), CloseReason> {
        let entry_point = self.connection.service().clone();
        let text = format!("{}: this name needs a connection of its own", entry_point.name());
        self.fail(&entry_point, 421, text, meta, meta.framing == Framing::None)
            .await
    }

    pub(super) async fn say_challenge(&mut self, answer: &str, meta: &RequestMeta) -> Result<(), CloseReason> {
        self.connection.service().stats().add_request(200);
        let mut out = Buffer::default();
        write_challenge(answer, meta.method == Method::Head, out.tail());
        self.send(out).await;
        self.finish().await;
        Err(CloseReason::ResponseEnd)
    }

    /// Sends the client on, for good or for now. Methods besides GET and HEAD are kept by it.
    pub(super) async fn say_elsewhere(
        &mut self,
        location: &str,
        is_permanent: bool,
        meta: &RequestMeta,
    ) -> Result<(), CloseReason> {
        let status = match (meta.method, is_permanent) {
            (Method::Get | Method::Head, true) => 301,
            (Method::Get | Method::Head, false) => 302,
            (_, true) => 308,
            (_, false) => 307,
        };
        let stays = meta.keep_alive && meta.framing == Framing::None && !core::is_draining();
        let mut out = Buffer::default();
        write_redirect(status, location, stays, out.tail());
        self.send(out).await;
        if stays {
            return Ok(());
        }
        self.finish().await;
        Err(CloseReason::ResponseEnd)
    }

    pub(super) async fn answer_locally(&mut self, answer: LocalAnswer, meta: &RequestMeta) -> Result<(), CloseReason> {
        let stays = meta.keep_alive && meta.framing == Framing::None && !core::is_draining();
        match answer {
            LocalAnswer::Options => {
                let mut out = Buffer::default();
                write_options_reply(stays, out.tail());
                self.send(out).await;
            }
            LocalAnswer::Trace => self.say(501, "TRACE is not reflected", stays, meta.method).await,
        }
        match stays {
            true => Ok(()),
            false => Err(CloseReason::ResponseEnd),
        }
    }

    /// Sends a response of our own. Whether the client still takes it is the client's affair.
    pub(super) async fn say(&mut self, status: u16, text: &str, keep_alive: bool, method: Method) {
        self.say_with(status, text, "", keep_alive, method).await;
    }

    async fn say_with(&mut self, status: u16, text: &str, field: &str, keep_alive: bool, method: Method) {
        let reply = Reply {
            status,
            text,
            keep_alive,
            field,
            to_head: method == Method::Head,
        };
        let mut out = Buffer::default();
        reply.write(out.tail());
        self.send(out).await;
    }

    pub(super) async fn send(&mut self, mut out: Buffer) {
        let flush = poll_fn(|cx| out.poll_flush(self.client, cx));
        let _ = tokio::time::timeout(SEND_AT_MOST, flush).await;
    }

    /// Whether all of it was sent, to a client that goes on taking it.
    async fn send_whole(&mut self, mut out: Buffer) -> bool {
        for _ in 0..SPANS_AT_MOST {
            let before = out.rest().len();
            let flush = poll_fn(|cx| out.poll_flush(self.client, cx));
            match tokio::time::timeout(SEND_AT_MOST, flush).await {
                Ok(sent) => return sent.is_ok(),
                Err(_) if out.rest().len() < before => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Ends our half and lets the client finish, so that closing does not reset what it has yet to read.
    pub(super) async fn finish(&mut self) {
        let end = poll_fn(|cx| self.client.poll_end(cx, false));
        let _ = tokio::time::timeout(SEND_AT_MOST, end).await;
        relay::discard_a_while(self.client).await;
    }
}

/// A client may take so long to take a short answer.
pub(super) const SEND_AT_MOST: Duration = Duration::from_secs(5);
/// And so many times as long to take a longer one, if it takes some each time.
const SPANS_AT_MOST: u32 = 24;

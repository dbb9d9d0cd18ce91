//! Bodies of requests, bounded in size, in time, and in how many are read at once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde::de::DeserializeOwned;

use super::asked::Caller;
use super::error::ApiError;
use super::json::{Json, explained};
use crate::places::{Place, Places, Table};

/// What JSON says. Errors: at which member it says something else.
pub(in crate::api) fn typed<T: DeserializeOwned>(json: &Json) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(json)
        .map_err(|error| ApiError::bad(explained(&error.path().to_string(), error.inner())))
}

/// A request's body. What of it is unread when nobody wants it any more is read and thrown away, within bounds: a client that
/// still sends would find its connection closed, and never read the answer.
pub(in crate::api) struct RequestBody(Option<Incoming>);

impl RequestBody {
    pub(in crate::api) fn new(body: Incoming) -> RequestBody {
        RequestBody(Some(body))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let unread = self.0.take().filter(|body| !body.is_end_stream());
        // Outside of a runtime the connection is gone as well.
        if let (Some(body), Ok(runtime)) = (unread, tokio::runtime::Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(REST_PATIENCE, throw_away(body)));
        }
    }
}

async fn throw_away(mut body: Incoming) {
    let mut left = REST_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(length) {
            Some(less) => left = less,
            None => return,
        }
    }
}

/// Reads bodies, few long ones at a time.
pub(in crate::api) struct Bodies {
    long: Arc<Places<Caller>>,
}

impl Default for Bodies {
    fn default() -> Bodies {
        Bodies {
            long: Places::new(Table::ApiBodies, LONG_BODIES_MAX),
        }
    }
}

impl Bodies {
    /// A body, and if it may be long, the place among the long ones that it holds.
    pub(super) async fn read(
        &self,
        caller: Caller,
        body: RequestBody,
    ) -> Result<(Bytes, Option<Place<Caller>>), ApiError> {
        let too_large = || {
            ApiError::too_large(format!(
                "request body too large: expected at most {BODY_BYTES_MAX} bytes"
            ))
        };
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        let until = tokio::time::Instant::now() + BODY_PATIENCE;
        let place = match body.size_hint().upper() {
            Some(..=SHORT_BODY_BYTES) => None,
            _ => Some(self.long.take_within(caller, OTHERS_PATIENCE).await),
        };
        let body = body.map_frame(|frame| {
            place.iter().for_each(Place::moved);
            frame
        });
        let told_to_leave = async {
            match &place {
                Some(place) => place.told_to_leave().await,
                None => std::future::pending().await,
            }
        };
        let collected = tokio::select! {
            collected = tokio::time::timeout_at(until, Limited::new(body, BODY_BYTES_MAX).collect()) => collected,
            () = told_to_leave => {
                return Err(ApiError::unavailable(format!(
                    "{LONG_BODIES_MAX} long request bodies are being read already, and this one did not go on: try again"
                )));
            }
        };
        match collected {
            Ok(Ok(body)) => Ok((body.to_bytes(), place)),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(ApiError::bad(format!("the request's body cannot be read: {error}"))),
            Err(_) => Err(ApiError::timed_out(format!(
                "the request's body did not come within {BODY_PATIENCE:?}"
            ))),
        }
    }
}

const BODY_BYTES_MAX: usize = 4 << 20;
const BODY_PATIENCE: Duration = Duration::from_secs(20);
/// A body that says of itself that it is no longer waits for no other.
const SHORT_BODY_BYTES: u64 = 64 << 10;
/// So many longer ones are read at a time: each may become many times as long in memory.
const LONG_BODIES_MAX: usize = 4;
/// How long they have to end by themselves while another long one waits.
const OTHERS_PATIENCE: Duration = Duration::from_millis(500);
/// So much of what nobody wants is read for the client's sake, and for so long.
const REST_BYTES_MAX: usize = 16 << 20;
const REST_PATIENCE: Duration = Duration::from_secs(10);

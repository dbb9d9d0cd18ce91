//! One request for the swarm part, with what it says in its query and its body.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request};
use serde::de::DeserializeOwned;

use super::body::{Bodies, RequestBody, typed};
use super::error::ApiError;
use super::json::Json;
use super::syntax;
use crate::model::swarm::Time;

/// A request for the swarm part, its body still to be read.
pub(in crate::api) struct Asked {
    pub(in crate::api) method: Method,
    /// Without the version, split at slashes, decoded.
    pub(in crate::api) path: Vec<String>,
    pub(in crate::api) query: BTreeMap<String, String>,
    pub(in crate::api) headers: HeaderMap,
    pub(in crate::api) body: RequestBody,
    /// The connection, where the client would have it for something else.
    pub(in crate::api) upgrade: Option<hyper::upgrade::OnUpgrade>,
    pub(in crate::api) caller: Caller,
    pub(in crate::api) bodies: Arc<Bodies>,
}

impl Asked {
    pub(in crate::api) fn query(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str)
    }

    /// A switch as most of them are: on unless it says no.
    pub(in crate::api) fn is_on(&self, key: &str) -> bool {
        let value = self.query(key).unwrap_or_default().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A switch of the stricter kind. Errors: it is neither on nor off.
    pub(in crate::api) fn truth(&self, key: &str) -> Result<bool, ApiError> {
        let text = self.query(key).unwrap_or_default();
        match is_true(text) {
            Some(is_true) => Ok(is_true),
            None if text.is_empty() => Ok(false),
            None => Err(ApiError::bad(format!(
                "invalid value for {key}: {text}: expected true or false"
            ))),
        }
    }

    /// `version` of an update of `what`. Errors: it is no number.
    pub(in crate::api) fn version(&self, what: &str) -> Result<u64, ApiError> {
        let text = self.query("version").unwrap_or_default();
        text.parse().map_err(|_| {
            ApiError::bad(format!(
                "invalid {what} version '{text}': expected the object's Version.Index"
            ))
        })
    }

    /// Seconds since 1970, with or without a fraction, or RFC 3339.
    pub(in crate::api) fn time(&self, key: &str) -> Result<Option<Time>, ApiError> {
        let text = self.query(key).filter(|text| !text.is_empty() && *text != "0");
        text.map(|text| parse_time(key, text)).transpose()
    }

    /// The body as JSON. Errors: it is too long, too slow, or no such JSON.
    pub(in crate::api) async fn json<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        let (_, json) = self.json_and_bytes().await?;
        typed(&json)
    }

    /// The body as it came, and as JSON of whatever kind. Errors: as of `json`.
    pub(in crate::api) async fn json_and_bytes(self) -> Result<(Bytes, Json), ApiError> {
        let kind = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        let is_json = kind
            .split(';')
            .next()
            .is_none_or(|kind| matches!(kind.trim(), "" | "application/json"));
        if !is_json {
            return Err(ApiError::bad(format!(
                "unsupported Content-Type header ({kind}): must be 'application/json'"
            )));
        }
        let (bytes, _place) = self.bodies.read(self.caller, self.body).await?;
        if bytes.is_empty() {
            return Err(ApiError::bad("got EOF while reading request body"));
        }
        match Json::parse(&bytes) {
            Ok(json) => Ok((bytes, json)),
            Err(error) => Err(ApiError::bad(match syntax::fault(&bytes) {
                Some(fault) => format!("invalid JSON: {fault}"),
                None if error.to_string().starts_with("trailing") => "unexpected content after JSON".to_owned(),
                None => format!("invalid JSON: {error}"),
            })),
        }
    }

    /// Reads a body that must say something, whatever it is. Errors: it is no JSON of an object.
    pub(in crate::api) async fn object(self) -> Result<(), ApiError> {
        match self.json_and_bytes().await? {
            (_, Json::Object(_) | Json::Null) => Ok(()),
            _ => Err(ApiError::bad("invalid JSON: expected an object")),
        }
    }

    /// Reads a body that says nothing here.
    pub(in crate::api) async fn no_body(self) -> Result<(), ApiError> {
        self.bodies.read(self.caller, self.body).await.map(drop)
    }
}

/// As Go reads what is on or off; `None`: it is neither.
pub(in crate::api) fn is_true(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Seconds since 1970, with or without a fraction, or RFC 3339.
pub(in crate::api) fn parse_time(key: &str, text: &str) -> Result<Time, ApiError> {
    let wrong = || {
        ApiError::bad(format!(
            "invalid {key} \"{text}\": expected seconds since 1970 or a time as RFC 3339 has it"
        ))
    };
    if let Ok(at) = humantime::parse_rfc3339_weak(text) {
        return Ok(at.into());
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().map_err(|_| wrong())?;
    let nanos: u64 = match fraction {
        "" => 0,
        fraction => format!("{fraction:0<9}")
            .get(..9)
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(wrong)?,
    };
    Ok(Time(seconds.saturating_mul(1_000_000_000).saturating_add(nanos)))
}

/// The user whose program asks, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::api) struct Caller(pub(in crate::api) u32);

impl Caller {
    /// Who asks, as the door has noted it.
    pub(in crate::api) fn of<B>(request: &Request<B>) -> Caller {
        request.extensions().get().copied().unwrap_or(Caller(u32::MAX))
    }
}

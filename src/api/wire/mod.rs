//! Requests and answers as they are on the wire: versions, paths, bodies in JSON, errors. Not here: what is asked for.

mod asked;
mod body;
mod error;
mod filters;
mod json;
mod syntax;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

pub(super) use asked::{Asked, Caller, is_true, parse_time};
pub(super) use body::{Bodies, RequestBody, typed};
pub(super) use error::{ApiError, LOCKED};
pub(super) use filters::{Filters, Patterns};
pub(super) use json::Json;

/// What is sent.
pub(super) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// The API version that is spoken where none is asked for, and the newest.
pub(super) const NEWEST: Version = Version(1, 48);
pub(super) const OLDEST: Version = Version(1, 24);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u16, pub(super) u16);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Values that were made here serialize without fail.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    let mut answer = Response::new(whole(bytes));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(whole(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

pub(super) fn whole(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// The version in front of a path, and the path without it.
pub(super) fn split_version(path: &str) -> Result<(Option<Version>, String), ApiError> {
    let Some(rest) = path.strip_prefix("/v") else {
        return Ok((None, path.to_owned()));
    };
    let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
    // `/volumes` is no version.
    if !version.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok((None, path.to_owned()));
    }
    let parsed = version
        .split_once('.')
        .and_then(|(major, minor)| Some(Version(major.parse().ok()?, minor.parse().ok()?)));
    match parsed {
        Some(version) => Ok((Some(version), format!("/{rest}"))),
        None => Err(ApiError::bad(format!(
            "invalid API version v{version}: expected one such as v{NEWEST}"
        ))),
    }
}

/// `%2F` and the like. What is no such thing stays.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes
            .get(i + 1..i + 3)
            .filter(|_| bytes[i] == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One part of a path, or a value of a query: all but letters and digits as `%2F` and the like.
pub(super) fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A path with a query of these keys and values; without any, the path alone. Keys stay as they are.
pub(super) fn with_query<K: AsRef<str>, V: AsRef<str>>(path: &str, pairs: impl IntoIterator<Item = (K, V)>) -> String {
    let pairs = pairs
        .into_iter()
        .map(|(key, value)| format!("{}={}", key.as_ref(), encode(value.as_ref())));
    let pairs: Vec<String> = pairs.collect();
    match pairs.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", pairs.join("&")),
    }
}

pub(super) fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let read = |text: &str| decode(&text.replace('+', " "));
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (read(key), read(value))
        })
        .collect()
}

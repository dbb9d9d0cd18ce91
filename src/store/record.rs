//! How an object is written: JSON with the revision that it was written in; what configs and secrets hold,
//! what images are pulled with, the key of the swarm's authority and what opens the swarm is sealed. In a locked store all of it
//! is, once more.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::seal::Seal;
use crate::model::swarm::{Id, Key, Kind, Meta, Object, Payload};

/// The newest version of this format. One that is newer is not read, and not written over.
pub(super) const FORMAT: u64 = LOCKED;
/// Of a store that is not locked, as earlier versions of anynode read it.
pub(super) const PLAIN: u64 = 1;
/// Of a locked one.
pub(super) const LOCKED: u64 = 2;

#[derive(Serialize, Deserialize)]
struct Record {
    revision: u64,
    object: Value,
}

/// A config or a secret on disk.
#[derive(Serialize, Deserialize)]
struct SealedPayload {
    id: Id,
    meta: Meta,
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    templating: Option<String>,
    /// Base64.
    sealed: String,
}

pub(super) fn key_of(text: &str) -> Option<Key> {
    let (kind, id) = text.split_once('/')?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some(Key { kind, id: id.into() })
}

pub(super) fn write(object: &Object, revision: u64, seal: &Seal) -> Result<Vec<u8>, String> {
    let key = object.key();
    let (place, object_kind) = (key.to_string(), key.kind);
    let value = match object {
        Object::Swarm(object) => serde_json::to_value(&**object),
        Object::Node(object) => serde_json::to_value(&**object),
        Object::Network(object) => serde_json::to_value(&**object),
        Object::Service(object) => serde_json::to_value(&**object),
        Object::Task(object) => serde_json::to_value(&**object),
        Object::Container(object) => serde_json::to_value(&**object),
        Object::Config(payload) | Object::Secret(payload) => {
            let sealed = seal.seal(&place, &payload.data).map_err(|error| error.to_string())?;
            serde_json::to_value(SealedPayload {
                id: payload.id.clone(),
                meta: payload.meta.clone(),
                name: payload.name.clone(),
                labels: payload.labels.clone(),
                templating: payload.templating.clone(),
                sealed: STANDARD.encode(sealed),
            })
        }
    };
    let mut object = value.map_err(|error| error.to_string())?;
    for pointer in secrets_of(object_kind) {
        if let Some(secret) = object.pointer_mut(pointer) {
            let plain = secret.as_str().unwrap_or_default().as_bytes();
            let sealed = seal.seal(&place, plain).map_err(|error| error.to_string())?;
            *secret = STANDARD.encode(sealed).into();
        }
    }
    let bytes = serde_json::to_vec(&Record { revision, object }).map_err(|error| error.to_string())?;
    match seal.is_of_all() {
        true => seal.seal(&whole(&place), &bytes).map_err(|error| error.to_string()),
        false => Ok(bytes),
    }
}

/// Where a record as a whole stands, which is another place than that of what is in it.
fn whole(place: &str) -> String {
    format!("record {place}")
}

pub(super) fn read(key: &Key, bytes: &[u8], seal: &Seal) -> Result<(Object, u64), String> {
    let opened = match seal.is_of_all() {
        true => Some(seal.open_sealed(&whole(&key.to_string()), bytes).ok_or(DOES_NOT_OPEN)?),
        false => None,
    };
    let bytes = opened.as_deref().unwrap_or(bytes);
    let Record { revision, mut object } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    for pointer in secrets_of(key.kind) {
        if let Some(secret) = object.pointer_mut(pointer) {
            let sealed = secret.as_str().and_then(|text| STANDARD.decode(text).ok());
            let plain = sealed.and_then(|sealed| seal.open_sealed(&key.to_string(), &sealed));
            let plain = plain.and_then(|plain| String::from_utf8(plain).ok());
            *secret = plain.ok_or(DOES_NOT_OPEN)?.into();
        }
    }
    let said = |error: serde_json::Error| error.to_string();
    let object = match key.kind {
        Kind::Swarm => Object::Swarm(serde_json::from_value(object).map_err(said)?),
        Kind::Node => Object::Node(serde_json::from_value(object).map_err(said)?),
        Kind::Network => Object::Network(serde_json::from_value(object).map_err(said)?),
        Kind::Service => Object::Service(serde_json::from_value(object).map_err(said)?),
        Kind::Task => Object::Task(serde_json::from_value(object).map_err(said)?),
        Kind::Container => Object::Container(serde_json::from_value(object).map_err(said)?),
        Kind::Config => Object::Config(open(key, object, seal)?),
        Kind::Secret => Object::Secret(open(key, object, seal)?),
    };
    match object.key() == *key {
        true => Ok((object, revision)),
        false => Err(format!("it says that it is {}", object.key())),
    }
}

/// Where an object of this kind keeps what is sealed: what images are pulled with, an authority's key, what opens the swarm.
fn secrets_of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &["/registry_auth", "/previous/registry_auth"],
        Kind::Swarm => &["/authority/key", "/unlock_key"],
        Kind::Node | Kind::Network | Kind::Task | Kind::Container | Kind::Config | Kind::Secret => &[],
    }
}

const DOES_NOT_OPEN: &str = "its contents do not open with the key of this store";

fn open(key: &Key, object: Value, seal: &Seal) -> Result<Arc<Payload>, String> {
    let payload: SealedPayload = serde_json::from_value(object).map_err(|error| error.to_string())?;
    let sealed = STANDARD.decode(&payload.sealed).map_err(|error| error.to_string())?;
    let data = seal.open_sealed(&key.to_string(), &sealed).ok_or(DOES_NOT_OPEN)?;
    Ok(Arc::new(Payload {
        id: payload.id,
        meta: payload.meta,
        name: payload.name,
        labels: payload.labels,
        templating: payload.templating,
        data: data.into(),
    }))
}

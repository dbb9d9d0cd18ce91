//! How endpoints are written in a services file. Pure. Not here: the rest of a service (`parse`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use super::text::Text;
use crate::model::{EndpointSpec, InvalidValue, Weight};

/// An address alone, or with the network namespace that it is of and how much it gets.
pub(super) struct EndpointDto(pub(super) EndpointSpec, pub(super) Weight);

impl<'de> Deserialize<'de> for EndpointDto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EndpointDto, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            address: Text<EndpointSpec>,
            netns: Option<Text<Namespace>>,
            weight: Option<Text<Weight>>,
        }
        struct Endpoint;
        impl<'de> Visitor<'de> for Endpoint {
            type Value = EndpointDto;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or { address: 127.0.0.1:80, netns: /run/netns/x, weight: 1 }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndpointDto, E> {
                let endpoint = text.parse().map_err(E::custom)?;
                Ok(EndpointDto(endpoint, Weight::default()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EndpointDto, A::Error> {
                let endpoint = Whole::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let netns = endpoint.netns.map(|netns| netns.0.0);
                let spec = EndpointSpec {
                    netns,
                    ..endpoint.address.0
                };
                Ok(EndpointDto(
                    spec,
                    endpoint.weight.map_or_else(Weight::default, |weight| weight.0),
                ))
            }
        }
        deserializer.deserialize_any(Endpoint)
    }
}

struct Namespace(Arc<std::path::Path>);

impl FromStr for Namespace {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Namespace, Self::Err> {
        let path = std::path::Path::new(text);
        match path.is_absolute() {
            true => Ok(Namespace(path.into())),
            false => Err(InvalidValue::new(
                text,
                "the whole path of a network namespace, such as /run/netns/x",
            )),
        }
    }
}

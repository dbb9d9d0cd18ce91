//! JSON as Go reads it, which Docker's clients take for granted: names of members match whatever the case of their letters,
//! members that nobody knows are passed over, and null says nothing. Under all types, so that none needs to say so itself.
//! Keys of maps, such as labels, stay as they are.

use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Number};

/// What a text of JSON says, members in their order.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Errors: the text is no JSON, or goes on after its end.
    pub(in crate::api) fn parse(text: &[u8]) -> Result<Json, Error> {
        serde_json::from_slice(text)
    }

    /// Of an object, the member that Go would read for a field of that name.
    pub(in crate::api) fn member(&self, name: &str) -> Option<&Json> {
        let Json::Object(members) = self else { return None };
        let mut found = members
            .iter()
            .rev()
            .filter(|(key, value)| key.eq_ignore_ascii_case(name) && *value != Json::Null);
        found.next().map(|(_, value)| value)
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Json::Null => Unexpected::Unit,
            Json::Bool(it) => Unexpected::Bool(*it),
            Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(it), ..) => Unexpected::Unsigned(it),
                (None, Some(it), _) => Unexpected::Signed(it),
                (None, None, Some(it)) => Unexpected::Float(it),
                (None, None, None) => Unexpected::Other("number"),
            },
            Json::String(it) => Unexpected::Str(it),
            Json::Array(_) => Unexpected::Seq,
            Json::Object(_) => Unexpected::Map,
        }
    }

    fn mismatch<T>(&self, expected: &dyn de::Expected) -> Result<T, Error> {
        Err(de::Error::invalid_type(self.unexpected(), expected))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, it: bool) -> Result<Json, E> {
                Ok(Json::Bool(it))
            }
            fn visit_u64<E>(self, it: u64) -> Result<Json, E> {
                Ok(Json::Number(it.into()))
            }
            fn visit_i64<E>(self, it: i64) -> Result<Json, E> {
                Ok(Json::Number(it.into()))
            }
            fn visit_f64<E>(self, it: f64) -> Result<Json, E> {
                Ok(Number::from_f64(it).map_or(Json::Null, Json::Number))
            }
            fn visit_str<E>(self, it: &str) -> Result<Json, E> {
                Ok(Json::String(it.to_owned()))
            }
            fn visit_string<E>(self, it: String) -> Result<Json, E> {
                Ok(Json::String(it))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Json::Array(all))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = members.next_entry()? {
                    all.push(member);
                }
                Ok(Json::Object(all))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

macro_rules! null_is {
    ($($method:ident $visit:ident $zero:expr,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self {
                Json::Null => visitor.$visit($zero),
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Json {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Json::Null => visitor.visit_unit(),
            Json::Bool(it) => visitor.visit_bool(*it),
            Json::Number(number) => number.deserialize_any(visitor),
            Json::String(it) => visitor.visit_borrowed_str(it),
            Json::Array(items) => visitor.visit_seq(Items(items.iter())),
            Json::Object(members) => visitor.visit_map(Entries {
                left: members.iter(),
                value: None,
            }),
        }
    }

    // What is null where nothing may be missing is what Go begins with.
    null_is! {
        deserialize_bool visit_bool false,
        deserialize_i8 visit_i64 0,
        deserialize_i16 visit_i64 0,
        deserialize_i32 visit_i64 0,
        deserialize_i64 visit_i64 0,
        deserialize_u8 visit_u64 0,
        deserialize_u16 visit_u64 0,
        deserialize_u32 visit_u64 0,
        deserialize_u64 visit_u64 0,
        deserialize_f32 visit_f64 0.0,
        deserialize_f64 visit_f64 0.0,
        deserialize_str visit_str "",
        deserialize_string visit_str "",
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Json::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Json::Null => visitor.visit_seq(Items([].iter())),
            Json::Array(_) => self.deserialize_any(visitor),
            _ => self.mismatch(&visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Json::Null => visitor.visit_map(Entries {
                left: [].iter(),
                value: None,
            }),
            Json::Object(_) => self.deserialize_any(visitor),
            _ => self.mismatch(&visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let members: &[(String, Json)] = match self {
            Json::Null => &[],
            Json::Object(members) => members,
            _ => return self.mismatch(&visitor),
        };
        // Of several that mean the same the last counts, and null is none.
        let mut by_field: Vec<Option<&Json>> = vec![None; fields.len()];
        for (key, value) in members {
            let exact = fields.iter().position(|field| field == key);
            let field = exact.or_else(|| fields.iter().position(|field| field.eq_ignore_ascii_case(key)));
            if let (Some(field), true) = (field, *value != Json::Null) {
                by_field[field] = Some(value);
            }
        }
        let said = fields.iter().zip(by_field);
        let said: Vec<(&'static str, &Json)> = said.filter_map(|(field, value)| Some((*field, value?))).collect();
        visitor.visit_map(Members {
            left: said.into_iter(),
            value: None,
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let text = match self {
            Json::Null => "",
            Json::String(text) => text,
            _ => return self.mismatch(&"a word"),
        };
        match word(name, variants, text) {
            Some(variant) => visitor.visit_enum(Word(variant)),
            None => Err(de::Error::custom(refusal(name, variants, text))),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit_struct tuple tuple_struct identifier }
}

struct Items<'de>(std::slice::Iter<'de, Json>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|item| seed.deserialize(item)).transpose()
    }
}

/// Of a map: each key as it is written.
struct Entries<'de> {
    left: std::slice::Iter<'de, (String, Json)>,
    value: Option<&'de Json>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.left.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.value.take().unwrap_or(&Json::Null))
    }
}

/// A key of a map. Of a type without members, which our types write as a map of nothing, any key is passed over.
struct Key<'de>(&'de str);

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        BorrowedStrDeserializer::new(self.0).deserialize_any(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit_struct newtype_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Of a struct: the fields that are said something of.
struct Members<'de> {
    left: std::vec::IntoIter<(&'static str, &'de Json)>,
    value: Option<&'de Json>,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((field, value)) = self.left.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(StrDeserializer::new(field)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(self.value.take().unwrap_or(&Json::Null))
    }
}

struct Word(&'static str);

impl<'de> EnumAccess<'de> for Word {
    type Error = Error;
    type Variant = Word;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Word), Error> {
        Ok((seed.deserialize(StrDeserializer::new(self.0))?, self))
    }
}

impl<'de> VariantAccess<'de> for Word {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Error> {
        Err(de::Error::custom("a word has nothing in it"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("a word has nothing in it"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("a word has nothing in it"))
    }
}

/// Which of the words of the type `name` is meant by `text`.
fn word(name: &str, variants: &'static [&'static str], text: &str) -> Option<&'static str> {
    // A rollback is never rolled back: Docker pauses it then, and takes either word.
    let text = match (name, text) {
        ("ServiceSpecRollbackConfigFailureActionEnum", "rollback") => "pause",
        _ => text,
    };
    let is_folded = IN_ANY_CASE.contains(&name);
    let is_meant = |variant: &&&str| **variant == text || is_folded && variant.eq_ignore_ascii_case(text);
    variants.iter().find(is_meant).copied()
}

/// In Docker's words where it has some, with what was expected.
fn refusal(name: &str, variants: &[&str], text: &str) -> String {
    let words: Vec<&str> = variants.iter().copied().filter(|variant| !variant.is_empty()).collect();
    let expected = words.join(", ");
    let said = match name {
        name if name.ends_with("FailureActionEnum") => format!("unrecognized update failure action {text}"),
        name if name.ends_with("ConfigOrderEnum") => format!("unrecognized update order {text}"),
        "EndpointSpecModeEnum" => format!("invalid resolution mode: \"{text}\""),
        "TaskSpecContainerSpecIsolationEnum" => format!("invalid isolation '{text}' on linux"),
        "TaskSpecRestartPolicyConditionEnum" => format!("invalid RestartCondition: \"{text}\""),
        "NodeSpecRoleEnum" => format!("invalid Role: \"{text}\""),
        "NodeSpecAvailabilityEnum" => format!("invalid Availability: \"{text}\""),
        "MountType" => format!("invalid MountType: \"{text}\""),
        "MountBindOptionsPropagationEnum" => format!("invalid MountPropagation: \"{text}\""),
        _ => format!("\"{text}\" is no such word"),
    };
    format!("{REFUSED}{said}: expected one of {expected}")
}

/// Before a refusal of a word, in an error's text: it stands by itself.
const REFUSED: &str = "refused word: ";

/// What is wrong at `path` (`.` for the whole), for people: Docker's words begin the sentence where it has some.
pub(super) fn explained(path: &str, error: &Error) -> String {
    let text = error.to_string();
    match (text.strip_prefix(REFUSED), path) {
        (Some(said), path) => format!("{said} (at {path})"),
        (None, ".") => format!("invalid JSON: {text}"),
        (None, path) => format!("invalid JSON at {path}: {text}"),
    }
}

/// Words that Docker takes in capitals as well.
const IN_ANY_CASE: [&str; 6] = [
    "EndpointPortConfigProtocolEnum",
    "EndpointPortConfigPublishModeEnum",
    "NodeSpecRoleEnum",
    "NodeSpecAvailabilityEnum",
    "MountType",
    "MountBindOptionsPropagationEnum",
];

#[cfg(test)]
mod tests {
    use bollard_stubs::models::{NodeSpec, ServiceSpec, SwarmSpec};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read<T: de::DeserializeOwned>(value: &Value) -> Result<T, String> {
        let json = Json::parse(value.to_string().as_bytes()).unwrap();
        T::deserialize(&json).map_err(|error| error.to_string())
    }

    /// A service that says all that one can, with maps whose keys are people's own.
    fn whole() -> Value {
        json!({
            "Name": "web",
            "Labels": { "Tier": "front", "tier": "back" },
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "nginx:1", "Env": ["A=b"], "Hostname": "h", "TTY": true, "ReadOnly": false,
                    "Labels": { "ONE": "1" }, "Sysctls": { "net.core.Somaxconn": "9" }, "StopGracePeriod": 3,
                    "Healthcheck": { "Test": ["CMD", "x"], "Interval": 5, "Retries": 2 },
                    "Mounts": [{ "Type": "volume", "Source": "v", "Target": "/v", "ReadOnly": true,
                        "VolumeOptions": { "NoCopy": true, "Labels": { "K": "v" }, "DriverConfig": { "Name": "local", "Options": { "Type": "nfs" } } } }],
                    "DNSConfig": { "Nameservers": ["192.0.2.1"] },
                    "Secrets": [{ "File": { "Name": "s", "UID": "0", "GID": "0", "Mode": 292 }, "SecretID": "x", "SecretName": "s" }],
                    "CapabilityAdd": ["CAP_NET_ADMIN"],
                },
                "Resources": { "Limits": { "NanoCPUs": 1, "MemoryBytes": 2, "Pids": 3 } },
                "RestartPolicy": { "Condition": "on-failure", "Delay": 4, "MaxAttempts": 5 },
                "Placement": { "Constraints": ["node.role==manager"], "MaxReplicas": 2 },
                "Networks": [{ "Target": "n", "Aliases": ["a.b"] }],
                "LogDriver": { "Name": "json-file", "Options": { "Max-Size": "1m" } },
                "ForceUpdate": 7,
            },
            "Mode": { "Replicated": { "Replicas": 5 } },
            "UpdateConfig": { "Parallelism": 2, "FailureAction": "rollback", "MaxFailureRatio": 0.5, "Order": "start-first" },
            "RollbackConfig": { "FailureAction": "continue", "Order": "stop-first" },
            "EndpointSpec": { "Mode": "vip", "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" }] },
        })
    }

    /// The same in other words: members in any case, some said to be null before or after, and some that nobody knows.
    fn respelled(value: &Value, dice: &mut impl FnMut() -> bool, is_map: bool) -> String {
        match value {
            Value::Object(members) => {
                let mut parts = Vec::new();
                for (name, value) in members {
                    let other: String = name
                        .chars()
                        .map(|c| {
                            if dice() {
                                c.to_ascii_uppercase()
                            } else {
                                c.to_ascii_lowercase()
                            }
                        })
                        .collect();
                    let name = if is_map { name.clone() } else { other };
                    if !is_map && dice() && dice() {
                        parts.push(format!("{:?}:null", name.to_ascii_uppercase()));
                    }
                    let keys_are_peoples =
                        matches!(name.to_ascii_lowercase().as_str(), "labels" | "sysctls" | "options");
                    parts.push(format!("{name:?}:{}", respelled(value, dice, keys_are_peoples)));
                    if !is_map && dice() && dice() {
                        parts.push(format!("{:?}:null", name.to_ascii_lowercase()));
                        parts.push(format!("\"X{name}\":[{{\"a\":null}},1.5]"));
                    }
                }
                format!("{{{}}}", parts.join(","))
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| respelled(item, dice, false)).collect();
                format!("[{}]", items.join(","))
            }
            other => other.to_string(),
        }
    }

    proptest! {
        #[test]
        fn case_nulls_and_unknown_members_change_nothing(bits in prop::collection::vec(any::<bool>(), 600)) {
            let mut bits = bits.into_iter().cycle();
            let text = respelled(&whole(), &mut || bits.next().unwrap(), false);
            let json = Json::parse(text.as_bytes()).unwrap();
            let said = ServiceSpec::deserialize(&json).map_err(|error| format!("{error}: {text}")).unwrap();
            let meant: ServiceSpec = read(&whole()).unwrap();
            prop_assert_eq!(said, meant);
        }

        /// Whatever stands where something else is expected: an error, or what Go makes of it; never a panic.
        #[test]
        fn anything_in_place_of_anything_is_read_or_refused(at in 0usize..120, with in 0usize..8) {
            let wrong = [json!(null), json!(true), json!(-1), json!(1.5), json!("x"), json!([]), json!([null]), json!({ "a": {} })];
            let (mut value, mut left) = (whole(), at);
            fn replace(value: &mut Value, left: &mut usize, with: &Value) {
                if *left == 0 {
                    *value = with.clone();
                }
                *left = left.wrapping_sub(1);
                match value {
                    Value::Object(members) => members.values_mut().for_each(|value| replace(value, left, with)),
                    Value::Array(items) => items.iter_mut().for_each(|value| replace(value, left, with)),
                    _ => {}
                }
            }
            replace(&mut value, &mut left, &wrong[with]);
            let said = read::<ServiceSpec>(&value);
            if with == 0 {
                prop_assert!(said.is_ok(), "null says nothing: {said:?}");
            }
        }
    }

    #[test]
    fn of_two_that_mean_the_same_the_last_counts() {
        let json = Json::parse(br#"{"name":"a","NAME":"b","Name":null}"#).unwrap();
        assert_eq!(ServiceSpec::deserialize(&json).unwrap().name.as_deref(), Some("b"));
        assert_eq!(json.member("Name"), Some(&Json::String("b".to_owned())));
    }

    #[test]
    fn keys_of_maps_stay_as_they_are() {
        let labels = read::<ServiceSpec>(&whole()).unwrap().labels.unwrap();
        assert_eq!((labels["Tier"].as_str(), labels["tier"].as_str()), ("front", "back"));
    }

    #[test]
    fn words_are_taken_as_docker_takes_them() {
        let port = |protocol: &str| json!({ "EndpointSpec": { "Ports": [{ "Protocol": protocol }] } });
        assert_eq!(read::<ServiceSpec>(&port("TCP")), read(&port("tcp")));
        let node = |role: &str| json!({ "Role": role });
        assert_eq!(read::<NodeSpec>(&node("MANAGER")), read(&node("manager")));
        let rollback = |action: &str| json!({ "RollbackConfig": { "FailureAction": action } });
        assert_eq!(read::<ServiceSpec>(&rollback("rollback")), read(&rollback("pause")));
        for (value, error) in [
            (port("quic"), "\"quic\" is no such word: expected one of tcp, udp, sctp"),
            (
                rollback("Pause"),
                "unrecognized update failure action Pause: expected one of continue, pause",
            ),
            (
                json!({ "TaskTemplate": { "RestartPolicy": { "Condition": "always" } } }),
                "invalid RestartCondition: \"always\": expected one of none, on-failure, any",
            ),
            (
                json!({ "Mode": [] }),
                "invalid type: sequence, expected struct ServiceSpecMode",
            ),
            (
                json!({ "Mode": { "Replicated": { "Replicas": "5" } } }),
                "invalid type: string \"5\", expected i64",
            ),
        ] {
            assert_eq!(
                read::<ServiceSpec>(&value).unwrap_err().trim_start_matches(REFUSED),
                error
            );
        }
    }

    #[test]
    fn nothing_at_all_is_a_spec() {
        for nothing in [json!({}), json!(null)] {
            assert_eq!(read::<ServiceSpec>(&nothing).unwrap(), ServiceSpec::default());
            assert_eq!(read::<SwarmSpec>(&nothing).unwrap(), SwarmSpec::default());
        }
    }
}

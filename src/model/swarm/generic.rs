//! Generic resources: of what kinds that users name a node has how much, and what of it tasks are given. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bollard_stubs::models::{
    GenericResources, GenericResourcesInner, GenericResourcesInnerDiscreteResourceSpec as Number,
    GenericResourcesInnerNamedResourceSpec as Name, TaskSpec,
};
use serde::{Deserialize, Serialize};

/// By kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generic(BTreeMap<String, Amount>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Amount {
    /// So many, one like the other.
    Number(i64),
    /// Each has a name.
    Names(Vec<String>),
}

impl Generic {
    /// As dockerd's `node-generic-resources` has them: `KIND=NUMBER` once, or `KIND=NAME` for each. Errors: what is wrong, in words.
    pub fn read<'a>(terms: impl IntoIterator<Item = &'a str>) -> Result<Generic, String> {
        let mut by_kind: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for term in terms {
            let parts: Vec<&str> = term.split('=').map(str::trim).collect();
            match parts.as_slice() {
                [kind, value] if !kind.is_empty() && !value.is_empty() => {
                    by_kind.entry((*kind).to_owned()).or_default().push((*value).to_owned());
                }
                _ => return Err(format!("{term:?}: expected KIND=NUMBER or KIND=NAME")),
            }
        }
        let amount = |(kind, mut values): (String, Vec<String>)| {
            let numbers: Vec<i64> = values.iter().filter_map(|value| value.parse().ok()).collect();
            let amount = match (numbers.as_slice(), values.len()) {
                ([number], 1) if *number >= 0 => Amount::Number(*number),
                ([], _) => {
                    values.sort();
                    values.dedup();
                    Amount::Names(values)
                }
                _ => {
                    let values = values.join(", ");
                    return Err(format!(
                        "{kind}={values}: expected one number from 0 on, or names alone"
                    ));
                }
            };
            Ok((kind, amount))
        };
        by_kind.into_iter().map(amount).collect::<Result<_, _>>().map(Generic)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// There is as much as `wanted` asks for.
    pub fn has(&self, wanted: &BTreeMap<String, i64>) -> bool {
        let has_enough = |(kind, n): (&String, &i64)| match self.0.get(kind) {
            Some(Amount::Number(number)) => number >= n,
            Some(Amount::Names(names)) => usize::try_from(*n).is_ok_and(|n| names.len() >= n),
            None => false,
        };
        wanted.iter().all(has_enough)
    }

    /// What `wanted` asks for, taken out of this. `None`: there is not so much, and nothing was taken.
    pub fn take(&mut self, wanted: &BTreeMap<String, i64>) -> Option<Generic> {
        if !self.has(wanted) {
            return None;
        }
        let mut given = Generic::default();
        for (kind, n) in wanted.iter().filter(|(_, n)| **n > 0) {
            let amount = match self.0.get_mut(kind)? {
                Amount::Number(number) => {
                    *number -= n;
                    Amount::Number(*n)
                }
                Amount::Names(names) => {
                    let n = usize::try_from(*n).unwrap_or(usize::MAX).min(names.len());
                    Amount::Names(names.drain(..n).collect())
                }
            };
            given.0.insert(kind.clone(), amount);
        }
        Some(given)
    }

    /// Without what somebody was given, as far as it is still there.
    pub fn without(&mut self, given: &Generic) {
        for (kind, given) in &given.0 {
            match (self.0.get_mut(kind), given) {
                (Some(Amount::Number(number)), Amount::Number(n)) => *number -= n,
                (Some(Amount::Names(names)), Amount::Names(given)) => names.retain(|name| !given.contains(name)),
                // It is said otherwise by now what there is.
                _ => {}
            }
        }
    }

    /// What a task finds in its environment.
    pub fn env(&self) -> Vec<String> {
        let variable = |(kind, amount): (&String, &Amount)| {
            let mut variable = format!("DOCKER_RESOURCE_{}=", kind.to_uppercase());
            match amount {
                // Writing to a text does not fail.
                Amount::Number(number) => drop(write!(variable, "{number}")),
                Amount::Names(names) => variable.push_str(&names.join(",")),
            }
            variable
        };
        self.0.iter().map(variable).collect()
    }

    /// As the API has it.
    pub fn shown(&self) -> GenericResources {
        let of_kind = |(kind, amount): (&String, &Amount)| match amount {
            Amount::Number(number) => vec![GenericResourcesInner {
                discrete_resource_spec: Some(Number {
                    kind: Some(kind.clone()),
                    value: Some(*number),
                }),
                named_resource_spec: None,
            }],
            Amount::Names(names) => {
                let one = |name: &String| GenericResourcesInner {
                    discrete_resource_spec: None,
                    named_resource_spec: Some(Name {
                        kind: Some(kind.clone()),
                        value: Some(name.clone()),
                    }),
                };
                names.iter().map(one).collect()
            }
        };
        self.0.iter().flat_map(of_kind).collect()
    }
}

/// How much of each kind a task reserves.
pub fn reserved(spec: &TaskSpec) -> BTreeMap<String, i64> {
    let reservations = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.reservations.as_ref());
    let wanted = reservations.and_then(|wanted| wanted.generic_resources.as_ref());
    let mut by_kind: BTreeMap<String, i64> = BTreeMap::new();
    for wanted in wanted.into_iter().flatten() {
        let (kind, n) = match (&wanted.discrete_resource_spec, &wanted.named_resource_spec) {
            (Some(number), _) => (&number.kind, number.value.unwrap_or(0).max(0)),
            // One by its name cannot be had, as in Docker.
            (None, Some(name)) => (&name.kind, i64::MAX),
            (None, None) => (&None, i64::MAX),
        };
        let of_kind = by_kind.entry(kind.clone().unwrap_or_default()).or_default();
        *of_kind = of_kind.saturating_add(n);
    }
    by_kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(wanted: &[(&str, i64)]) -> BTreeMap<String, i64> {
        wanted.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect()
    }

    #[test]
    fn what_is_said_of_a_node() {
        let read = |terms: &[&str]| Generic::read(terms.iter().copied());
        let has = read(&["gpu=b", " gpu = a", "ssd=3", "none=0"]).unwrap();
        assert_eq!(
            has.env(),
            [
                "DOCKER_RESOURCE_GPU=a,b",
                "DOCKER_RESOURCE_NONE=0",
                "DOCKER_RESOURCE_SSD=3"
            ]
        );
        assert!(read(&[]).unwrap().is_empty());
        for (terms, error) in [
            (&["gpu"][..], "\"gpu\": expected KIND=NUMBER or KIND=NAME"),
            (&["gpu=1=2"], "\"gpu=1=2\": expected KIND"),
            (&["=1"], "\"=1\": expected KIND"),
            (&["gpu="], "\"gpu=\": expected KIND"),
            (&["gpu=-1"], "gpu=-1: expected one number from 0 on"),
            (&["gpu=1", "gpu=2"], "gpu=1, 2: expected one number from 0 on"),
            (
                &["gpu=1", "gpu=a"],
                "gpu=1, a: expected one number from 0 on, or names alone",
            ),
        ] {
            let said = read(terms).unwrap_err();
            assert!(said.starts_with(error), "{said}");
        }
    }

    #[test]
    fn what_is_taken_is_there_no_more() {
        let all = Generic::read(["gpu=a", "gpu=b", "gpu=c", "ssd=3"]).unwrap();
        let mut left = all.clone();
        let first = left.take(&wanted(&[("gpu", 2), ("ssd", 1)])).unwrap();
        assert_eq!(first.env(), ["DOCKER_RESOURCE_GPU=a,b", "DOCKER_RESOURCE_SSD=1"]);
        let before = left.clone();
        assert_eq!(left.take(&wanted(&[("gpu", 1), ("ssd", 3)])), None);
        assert_eq!(left.take(&wanted(&[("fpga", 1)])), None);
        assert_eq!(left, before);
        assert_eq!(left.take(&wanted(&[("fpga", 0)])), None);
        assert!(left.take(&wanted(&[("ssd", 0)])).unwrap().is_empty());
        assert_eq!(
            left.take(&wanted(&[("gpu", 1), ("ssd", 2)])).unwrap().env()[0],
            "DOCKER_RESOURCE_GPU=c"
        );
        // The same from what tasks were given.
        let mut counted = all;
        counted.without(&first);
        assert_eq!(counted, before);
    }
}

//! Which certificate a client is shown, by the host that it names. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;

use super::pair::Pair;

/// Certificates by host.
#[derive(Debug, Default)]
pub(super) struct ByName {
    /// Whole names, and what follows `*.` in others, each with the best one first.
    exact: HashMap<String, Vec<Arc<Pair>>>,
    below: HashMap<String, Vec<Arc<Pair>>>,
    first: Option<Arc<Pair>>,
}

impl ByName {
    pub(super) fn new(pairs: &[Arc<Pair>]) -> ByName {
        let mut by_name = ByName {
            first: pairs.first().cloned(),
            ..ByName::default()
        };
        for pair in pairs {
            for name in &pair.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(rest) => (&mut by_name.below, rest),
                    None => (&mut by_name.exact, name.as_str()),
                };
                map.entry(name.to_owned()).or_default().push(pair.clone());
            }
        }
        for pairs in by_name.exact.values_mut().chain(by_name.below.values_mut()) {
            pairs.sort_by_key(|pair| (!pair.is_cheap(), std::cmp::Reverse(pair.not_after)));
        }
        by_name
    }

    /// The one for a host, of those whose signatures the client takes. `None` for a host: the client named none. `is_strict`: there
    /// is none for everybody else.
    pub(super) fn find(&self, host: Option<&str>, schemes: &[SignatureScheme], is_strict: bool) -> Option<&Arc<Pair>> {
        let of_host = host.and_then(|host| {
            let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            let below = || self.below.get(host.split_once('.')?.1);
            self.exact.get(&host).or_else(below)
        });
        match of_host {
            Some(pairs) => {
                let takes = |pair: &&Arc<Pair>| pair.key.key.choose_scheme(schemes).is_some();
                // Where none is taken the first one fails for a reason that the client can tell.
                pairs.iter().find(takes).or_else(|| pairs.first())
            }
            None => self.first.as_ref().filter(|_| !is_strict),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pair::tests::pem;
    use super::*;

    #[test]
    fn the_most_exact_name_wins_and_the_first_is_for_strangers() {
        let pair = |names: &[&str]| {
            let (certificate, key) = pem(names);
            Arc::new(Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap())
        };
        let pairs = [
            pair(&["first.test"]),
            pair(&["*.b.test", "b.test"]),
            pair(&["x.b.test"]),
        ];
        let by_name = ByName::new(&pairs);
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        for (host, found) in [
            (None, Some(0)),
            (Some("first.test"), Some(0)),
            (Some("B.Test."), Some(1)),
            (Some("y.b.test"), Some(1)),
            (Some("x.b.test"), Some(2)),
            // A star is one label.
            (Some("z.y.b.test"), Some(0)),
            (Some("other.test"), Some(0)),
        ] {
            let is_found = |found: Option<&Arc<Pair>>, expected: Option<usize>| match (found, expected) {
                (Some(found), Some(expected)) => Arc::ptr_eq(found, &pairs[expected]),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(is_found(by_name.find(host, &schemes, false), found), "{host:?}");
            let strictly = found.filter(|found| host.is_some_and(|host| *found != 0 || host == "first.test"));
            assert!(
                is_found(by_name.find(host, &schemes, true), strictly),
                "strictly {host:?}"
            );
        }
        assert!(ByName::default().find(Some("a.test"), &schemes, false).is_none());
    }
}

//! Which certificate a client is shown, by the host that it names. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rustls::SignatureScheme;

use super::pair::Pair;

/// Certificates by host.
#[derive(Debug, Default)]
pub(super) struct ByName {
    /// Whole names, and what follows `*.` in others, each with the best one first.
    exact: HashMap<String, Vec<Arc<Pair>>>,
    below: HashMap<String, Vec<Arc<Pair>>>,
    /// Those that were ordered, each for that host alone, whoever else its authority has it for.
    ordered: HashMap<String, Arc<Pair>>,
    /// For whoever names none of these hosts, in this order.
    all: Vec<Arc<Pair>>,
}

impl ByName {
    /// `pairs`: of files, and declared; `ordered`: by host.
    pub(super) fn new(pairs: &[Arc<Pair>], ordered: &BTreeMap<String, Arc<Pair>>) -> ByName {
        let mut by_name = ByName {
            all: pairs.iter().chain(ordered.values()).cloned().collect(),
            ordered: ordered.clone().into_iter().collect(),
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

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The one for a host, of those whose signatures the client takes: one that is good now, be it for the very name, by a star, or
    /// ordered, before others. `None` for a host: the client named none. `is_strict`: there is none for everybody else.
    pub(super) fn find(
        &self,
        host: Option<&str>,
        schemes: &[SignatureScheme],
        is_strict: bool,
        now: i64,
    ) -> Option<&Arc<Pair>> {
        let is_good = |pair: &&Arc<Pair>| (pair.not_before..pair.not_after).contains(&now);
        let of_host = |host: &str| {
            let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            let below = host.split_once('.').and_then(|(_, rest)| self.below.get(rest));
            let of_files = self.exact.get(&host).into_iter().chain(below).flatten();
            let pairs = of_files.chain(self.ordered.get(&host));
            let takes = |pair: &&Arc<Pair>| pair.key.key.choose_scheme(schemes).is_some();
            let good = pairs.clone().find(|pair| takes(pair) && is_good(pair));
            // Where none is taken the first one fails for a reason that the client can tell.
            good.or_else(|| pairs.clone().find(takes))
                .or_else(|| pairs.clone().next())
        };
        let first = || {
            let first = self.all.first().filter(|_| !is_strict)?;
            // One that is over may have been followed by another, which stands elsewhere; otherwise any is better.
            let next = || {
                let names = first.names.iter();
                let mut of_names = names.filter_map(|name| of_host(name).filter(is_good));
                of_names.next().or_else(|| self.all.iter().find(is_good))
            };
            match is_good(&first) {
                true => Some(first),
                false => next().or(Some(first)),
            }
        };
        host.and_then(of_host).or_else(first)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pair::tests::pem;
    use super::*;

    /// Within what rcgen makes by itself, 1975 to 4096.
    const NOW: i64 = 2_000_000_000;

    #[test]
    fn one_that_is_good_now_comes_before_one_that_was() {
        let pair = |not_before, not_after| {
            let (certificate, key) = pem(&["a.test"]);
            let pair = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
            Arc::new(Pair {
                not_before,
                not_after,
                ..pair
            })
        };
        let (good, expired, early) = (pair(0, NOW + 1), pair(0, NOW), pair(NOW + 1, NOW + 9));
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        let first = |pairs: &[&Arc<Pair>]| {
            let pairs: Vec<_> = pairs.iter().map(|pair| Arc::clone(pair)).collect();
            ByName::new(&pairs, &BTreeMap::new())
                .find(Some("a.test"), &schemes, false, NOW)
                .cloned()
                .unwrap()
        };
        assert!(Arc::ptr_eq(&first(&[&early, &expired, &good]), &good));
        assert!(Arc::ptr_eq(&first(&[&expired]), &expired), "better than none");
        // Strangers have the first one, while that is good.
        let stranger = |pairs: &[&Arc<Pair>]| {
            let pairs: Vec<_> = pairs.iter().map(|pair| Arc::clone(pair)).collect();
            ByName::new(&pairs, &BTreeMap::new())
                .find(None, &schemes, false, NOW)
                .cloned()
                .unwrap()
        };
        let later = pair(0, NOW + 2);
        assert!(Arc::ptr_eq(&stranger(&[&good, &later]), &good));
        assert!(Arc::ptr_eq(&stranger(&[&expired, &good]), &good));
        assert!(
            Arc::ptr_eq(&stranger(&[&expired, &early]), &expired),
            "better than none"
        );
    }

    #[test]
    fn one_that_is_good_now_is_found_wherever_it_is_and_an_ordered_one_for_its_host_alone() {
        let pair = |names: &[&str], not_after| {
            let (certificate, key) = pem(names);
            let pair = Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
            Arc::new(Pair {
                not_before: 0,
                not_after,
                ..pair
            })
        };
        let (exact, wide) = (["a.b.test"], ["*.b.test"]);
        let (good, over) = (NOW + 1, NOW);
        let ordered = pair(&["a.b.test", "other.test"], good + 9);
        let by_host = BTreeMap::from([("a.b.test".to_owned(), ordered.clone())]);
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        for (files, expected) in [
            (vec![pair(&exact, over)], None),
            (vec![pair(&exact, good)], Some(0)),
            (vec![pair(&exact, over), pair(&wide, good)], Some(1)),
            (vec![pair(&exact, over), pair(&wide, over)], None),
            (vec![], None),
        ] {
            let by_name = ByName::new(&files, &by_host);
            let found = by_name.find(Some("a.b.test"), &schemes, true, NOW).unwrap();
            let expected = expected.map_or(&ordered, |i: usize| &files[i]);
            assert!(Arc::ptr_eq(found, expected), "{:?} {}", found.names, found.not_after);
            assert!(by_name.find(Some("other.test"), &schemes, true, NOW).is_none());
        }
        let only = ByName::new(&[pair(&exact, over)], &BTreeMap::new());
        assert!(
            only.find(Some("a.b.test"), &schemes, true, NOW).is_some(),
            "better than none"
        );
    }

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
        let by_name = ByName::new(&pairs, &BTreeMap::new());
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
            assert!(is_found(by_name.find(host, &schemes, false, NOW), found), "{host:?}");
            let strictly = found.filter(|found| host.is_some_and(|host| *found != 0 || host == "first.test"));
            assert!(
                is_found(by_name.find(host, &schemes, true, NOW), strictly),
                "strictly {host:?}"
            );
        }
        assert!(ByName::default().find(Some("a.test"), &schemes, false, NOW).is_none());
    }
}

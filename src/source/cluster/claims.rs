//! Whose a rule is, where several services ask for the same at one entry point: the service's that was made first, on every node and
//! after every start. Pure. Not here: what becomes of the others (`ClusterSource`).

use std::collections::{BTreeMap, BTreeSet};

/// An entry point, in lower case, and a rule's canonical text.
pub(super) type Claim = (String, String);

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Who claims, the first one first: when it was made, and its id.
    by_claim: BTreeMap<Claim, BTreeSet<(u64, String)>>,
    /// What each service claims.
    of: BTreeMap<String, (u64, BTreeSet<Claim>)>,
}

impl Claims {
    /// What a service claims from now on. Returns those whose claims may have come or gone by that, itself not among them.
    pub(super) fn set(&mut self, service: &str, made_at: u64, claims: BTreeSet<Claim>) -> BTreeSet<String> {
        let before = match claims.is_empty() {
            true => self.of.remove(service),
            false => self.of.insert(service.to_owned(), (made_at, claims.clone())),
        };
        let (made_before, before) = before.unwrap_or_default();
        if made_before == made_at && before == claims {
            return BTreeSet::new();
        }
        let mut touched = BTreeSet::new();
        for claim in &before {
            if let Some(all) = self.by_claim.get_mut(claim) {
                all.remove(&(made_before, service.to_owned()));
                touched.extend(all.iter().map(|(_, other)| other.clone()));
                if all.is_empty() {
                    self.by_claim.remove(claim);
                }
            }
        }
        for claim in claims {
            let all = self.by_claim.entry(claim).or_default();
            touched.extend(all.iter().map(|(_, other)| other.clone()));
            all.insert((made_at, service.to_owned()));
        }
        touched.remove(service);
        touched
    }

    /// The id of the service that has it instead; `None`: nobody else has.
    pub(super) fn other_owner(&self, service: &str, claim: &Claim) -> Option<&str> {
        let (_, first) = self.by_claim.get(claim)?.first()?;
        (first != service).then_some(first.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(rule: &str) -> Claim {
        ("web".to_owned(), rule.to_owned())
    }

    fn claims(rules: &[&str]) -> BTreeSet<Claim> {
        rules.iter().map(|rule| claim(rule)).collect()
    }

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn the_first_made_has_it_in_whatever_order_they_are_heard_of() {
        let services = [("z", 1), ("a", 2), ("m", 2)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let mut all = Claims::default();
            for i in order {
                all.set(services[i].0, services[i].1, claims(&["r"]));
            }
            assert_eq!(all.other_owner("z", &claim("r")), None);
            assert_eq!(all.other_owner("a", &claim("r")), Some("z"));
            // Who goes, or asks for something else, leaves it to the next.
            assert_eq!(all.set("z", 1, claims(&["other"])), ids(&["a", "m"]));
            assert_eq!(all.other_owner("m", &claim("r")), Some("a"));
            assert_eq!(all.set("a", 2, BTreeSet::new()), ids(&["m"]));
            assert_eq!(all.other_owner("m", &claim("r")), None);
            assert_eq!(all.set("m", 2, claims(&["r"])), ids(&[]));
            assert_eq!(all.set("z", 1, claims(&["r"])), ids(&["m"]));
            assert_eq!(all.other_owner("m", &claim("r")), Some("z"));
        }
    }
}

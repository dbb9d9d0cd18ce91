//! Consistent hashing: which endpoint a key is for, the same on every node that has the same endpoints, and the next should that
//! one not take it. Pure.
//!
//! Rendezvous hashing (Thaler and Ravishankar 1998; with weights as Schindelhauer and Schomaker 2005): each endpoint has a score for
//! each key, and the highest is it. Nothing is built when an endpoint comes or goes, and only the keys of one that goes move. A
//! look at all of them is what a pick costs.

use std::cmp::Ordering;

/// What tells endpoints of a list apart on all nodes, with their weights.
#[derive(Debug)]
pub(super) struct Ranks {
    ids: Box<[u64]>,
    /// None where all weigh the same.
    weights: Box<[f64]>,
}

/// A score beside the place that has it: two of one score are told apart.
type Scored = (f64, usize);

impl Ranks {
    /// `parts`: an identity that all nodes agree on, with a weight above zero.
    pub(super) fn new(parts: impl Iterator<Item = (u64, u32)> + Clone) -> Ranks {
        let first = parts.clone().next().map(|(_, weight)| weight);
        let are_alike = parts.clone().all(|(_, weight)| Some(weight) == first);
        Ranks {
            ids: parts.clone().map(|(id, _)| id).collect(),
            weights: match are_alike {
                true => Box::default(),
                false => parts.map(|(_, weight)| f64::from(weight)).collect(),
            },
        }
    }

    /// The places of all, the first for `key` first. O(n) each.
    pub(super) fn of(&self, key: u64) -> impl Iterator<Item = usize> {
        let mut last: Option<Scored> = None;
        std::iter::from_fn(move || {
            last = match (last, self.weights.is_empty()) {
                // The way of nearly all.
                (None, true) => self.first(key),
                (None, false) => self.first_by_weight(key),
                (Some(last), _) => self.next(key, last),
            };
            last.map(|(_, place)| place)
        })
    }

    fn first(&self, key: u64) -> Option<Scored> {
        let mut best = (0, usize::MAX);
        for (place, id) in self.ids.iter().enumerate() {
            let score = mix(key ^ id);
            if score >= best.0 {
                best = (score, place);
            }
        }
        (best.1 != usize::MAX).then(|| (self.score(key, best.1), best.1))
    }

    fn first_by_weight(&self, key: u64) -> Option<Scored> {
        let mut best: Option<Scored> = None;
        for (place, (id, weight)) in self.ids.iter().zip(&self.weights).enumerate() {
            let drawn = draw(mix(key ^ id));
            // Nobody's score is above this, since -ln(x) >= 1 - x: a logarithm is for the few that may be first.
            if best.is_some_and(|(score, _)| *weight < score * (1.0 - drawn)) {
                continue;
            }
            let scored = (weight / -drawn.ln(), place);
            if best.is_none_or(|best| compare(&scored, &best) == Ordering::Greater) {
                best = Some(scored);
            }
        }
        best
    }

    fn next(&self, key: u64, last: Scored) -> Option<Scored> {
        let scored = (0..self.ids.len()).map(|place| (self.score(key, place), place));
        let is_left = |scored: &Scored| compare(scored, &last) == Ordering::Less;
        scored.filter(is_left).max_by(compare)
    }

    fn score(&self, key: u64, place: usize) -> f64 {
        let drawn = draw(mix(key ^ self.ids[place]));
        match self.weights.get(place) {
            None => drawn,
            Some(weight) => weight / -drawn.ln(),
        }
    }
}

fn compare(one: &Scored, other: &Scored) -> Ordering {
    one.0.total_cmp(&other.0).then(one.1.cmp(&other.1))
}

/// A hash that is the same in every version of this program, on every machine: nodes that are updated one by one agree.
pub fn stable_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // So that what is one part's end is not another's beginning.
        hash = (hash ^ part.len() as u64).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

/// Above 0 and below 1.
fn draw(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

/// The finalizer of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> u64 {
        stable_hash([format!("task-{n}").as_bytes()])
    }

    fn ranks(members: &[(usize, u32)]) -> Ranks {
        Ranks::new(members.iter().map(|(n, weight)| (id(*n), *weight)))
    }

    const N_KEYS: usize = 20_000;

    fn keys() -> impl Iterator<Item = u64> {
        (0..N_KEYS).map(|n| stable_hash([format!("key {n}").as_bytes()]))
    }

    fn shares(members: &[(usize, u32)]) -> Vec<usize> {
        let ranks = ranks(members);
        let mut counts = vec![0; members.len()];
        keys().for_each(|key| counts[ranks.of(key).next().unwrap()] += 1);
        counts
    }

    #[test]
    fn keys_are_spread_by_weight_and_only_those_of_who_goes_move() {
        for n in [2, 4, 10, 100] {
            let all: Vec<(usize, u32)> = (0..n).map(|i| (i, 1)).collect();
            // Six standard deviations.
            let due = N_KEYS as f64 / n as f64;
            for share in shares(&all) {
                assert!((share as f64 - due).abs() <= 6.0 * due.sqrt(), "{share} of {due}");
            }
            let mut left = all.clone();
            left.remove(n / 2);
            let (before, after) = (ranks(&all), ranks(&left));
            for key in keys() {
                let was = all[before.of(key).next().unwrap()].0;
                let is = left[after.of(key).next().unwrap()].0;
                assert!(was == is || was == n / 2, "a key of another moved");
                // The next in the ranks is whom it is for once the first has gone.
                let next = before.of(key).map(|place| all[place].0).find(|one| *one != n / 2);
                assert_eq!(next, Some(is));
            }
        }
        let [one, three, four] = shares(&[(0, 1), (1, 3), (2, 4)])[..] else {
            panic!()
        };
        assert!(one.abs_diff(2_500) < 300 && three.abs_diff(7_500) < 450 && four.abs_diff(10_000) < 450);
    }

    #[test]
    fn all_come_once_and_the_order_in_the_list_is_nothing() {
        let (forth, back) = (
            ranks(&[(0, 1), (1, 1), (2, 1), (3, 1)]),
            ranks(&[(3, 1), (2, 1), (1, 1), (0, 1)]),
        );
        for key in keys().take(100) {
            let one: Vec<usize> = forth.of(key).collect();
            let other: Vec<usize> = back.of(key).map(|place| 3 - place).collect();
            assert_eq!(one, other);
            let mut sorted = one.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        assert_eq!(ranks(&[]).of(7).next(), None);
    }

    #[test]
    fn a_hash_is_what_it_was() {
        assert_eq!(stable_hash([&b"web"[..], b"a"]), 0x3bef_924e_9f80_0acf);
    }
}

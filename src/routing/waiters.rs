//! Who waits at a gate, in the order in which they came, and who gives a place up once all are taken: who may have gone already,
//! then the party that has most. Pure, but that it tells whoever loses a place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// By when they came.
    places: BTreeMap<u64, Waiter>,
    /// Of those, they whose clients may have gone.
    yielding: BTreeSet<u64>,
    /// How many each party has; none of them zero.
    held: HashMap<u64, usize>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    party: Option<u64>,
    /// Told when the place is another's.
    lost: Arc<Notify>,
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// A place at the end, where fewer than `limit` are taken or one is given up for it: its number, and what is told when it
    /// is another's. `party`: whose it is; `None` is nobody's who has others.
    pub(super) fn enter(&mut self, limit: usize, party: Option<u64>) -> Option<(u64, Arc<Notify>)> {
        if self.places.len() >= limit {
            let given_up = match limit {
                0 => None,
                _ => self.yielding.first().copied().or_else(|| self.of_who_has_most(party)),
            };
            self.leave(given_up?)?.notify_one();
        }
        let n = self.next;
        self.next += 1;
        let lost: Arc<Notify> = Arc::default();
        self.places.insert(
            n,
            Waiter {
                party,
                lost: lost.clone(),
            },
        );
        if let Some(party) = party {
            *self.held.entry(party).or_default() += 1;
        }
        Some((n, lost))
    }

    /// The newest place of the party that has most, if it has more than `newcomer` would: who came before is nearer to what all
    /// wait for.
    ///
    /// Time: that of a look at all.
    fn of_who_has_most(&self, newcomer: Option<u64>) -> Option<u64> {
        let would_hold = 1 + newcomer.and_then(|party| self.held.get(&party)).copied().unwrap_or(0);
        let most = self.held.iter().max_by_key(|(party, n)| (**n, Reverse(**party)));
        let (party, _) = most.filter(|(_, n)| **n > would_hold)?;
        let newest_first = self.places.iter().rev();
        let mut of_party = newest_first.filter(|(_, waiter)| waiter.party == Some(*party));
        of_party.next().map(|(n, _)| *n)
    }

    /// From now on the place is kept only until somebody needs it.
    pub(super) fn yields(&mut self, n: u64) {
        if self.places.contains_key(&n) {
            self.yielding.insert(n);
        }
    }

    /// Gives a place back. `None`: it is another's already.
    pub(super) fn leave(&mut self, n: u64) -> Option<Arc<Notify>> {
        let waiter = self.places.remove(&n)?;
        self.yielding.remove(&n);
        if let Some(party) = waiter.party
            && let Some(held) = self.held.get_mut(&party)
        {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&party);
            }
        }
        Some(waiter.lost)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_has_most_gives_up_the_newest() {
        let mut waiters = Waiters::default();
        let mut enter = |party| waiters.enter(4, party).map(|(n, _)| n);
        assert_eq!([Some(1); 4].map(&mut enter), [0, 1, 2, 3].map(Some));
        assert_eq!(enter(Some(1)), None, "it has most itself");
        assert_eq!([Some(2), None].map(&mut enter), [4, 5].map(Some));
        assert_eq!(enter(Some(2)), None, "then it would have as many");
        assert_eq!(enter(None), Some(6), "the first has two still");
        let left: Vec<u64> = waiters.places.keys().copied().collect();
        assert_eq!(left, [0, 4, 5, 6]);
        assert!(waiters.enter(4, None).is_none(), "one each");
        assert!(waiters.enter(0, None).is_none());
    }

    proptest! {
        /// Whatever the others do, who has fewer places than another finds one.
        #[test]
        fn nobody_takes_what_another_needs(
            steps in prop::collection::vec((prop::option::of(0..4_u64), 0..10_u8), 1..200),
            limit in 1..8_usize,
        ) {
            let mut waiters = Waiters::default();
            let mut places: Vec<(u64, Option<u64>, Arc<Notify>)> = Vec::new();
            for (party, act) in steps {
                match act {
                    0 => if let Some((n, ..)) = places.first() {
                        waiters.yields(*n);
                    },
                    1 => if let Some((n, ..)) = places.pop() {
                        waiters.leave(n);
                    },
                    _ => {
                        let before = (waiters.held.clone(), waiters.len(), waiters.yielding.len());
                        let has = party.and_then(|party| before.0.get(&party)).copied().unwrap_or(0);
                        let most = before.0.values().max().copied().unwrap_or(0);
                        let entered = waiters.enter(limit, party);
                        prop_assert_eq!(entered.is_some(), before.1 < limit || before.2 > 0 || most > has + 1);
                        places.extend(entered.map(|(n, lost)| (n, party, lost)));
                    }
                }
                places.retain(|(n, ..)| waiters.places.contains_key(n));
                prop_assert!(waiters.len() <= limit && places.len() == waiters.len());
                for of in 0..4 {
                    let n = places.iter().filter(|(_, party, _)| *party == Some(of)).count();
                    prop_assert_eq!(waiters.held.get(&of).copied().unwrap_or(0), n);
                }
            }
        }
    }
}

//! Who holds the places of a table, and who gives one up when all are taken: of the parties that hold most, the place that
//! has been silent for longest. Pure: what silence is, is asked of who keeps the ledger.

use std::collections::HashMap;
use std::hash::Hash;

/// Names one place of a ledger; never used again.
pub type PlaceId = u64;

/// The places of one table. `P` names a party, `T` is what is kept for each place.
#[derive(Debug)]
pub struct Ledger<P, T> {
    most: usize,
    most_each: usize,
    taken: HashMap<PlaceId, (P, T)>,
    /// How many each party holds; none of them zero.
    held: HashMap<P, usize>,
    next: PlaceId,
}

impl<P: Eq + Hash + Clone, T> Ledger<P, T> {
    /// At least one place, and at least one for each party.
    pub fn new(most: usize, most_each: usize) -> Ledger<P, T> {
        Ledger {
            most: most.max(1),
            most_each: most_each.max(1),
            taken: HashMap::new(),
            held: HashMap::new(),
            next: 0,
        }
    }

    /// How many there may be. Those that are over go one by one, with the next that are taken.
    pub fn set_most(&mut self, most: usize) {
        self.most = most.max(1);
    }

    pub fn len(&self) -> usize {
        self.taken.len()
    }

    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Whether one more could come without another's place.
    pub fn has_room(&self) -> bool {
        self.len() < self.most
    }

    /// How many places `party` holds.
    pub fn held_by(&self, party: &P) -> usize {
        self.held.get(party).copied().unwrap_or_default()
    }

    /// A place for `party`, always; and what others kept for the places that they give up for it. The lower `rank`, the
    /// sooner a place is given up.
    ///
    /// Time: constant while there are places, and that of a look at all of them when there are none.
    pub fn take<R: Ord>(&mut self, party: P, kept: T, rank: impl Fn(&T) -> R) -> (PlaceId, Vec<T>) {
        let mut given_up = Vec::new();
        while self.held_by(&party) >= self.most_each {
            given_up.extend(self.give_up(|ledger, of| *of == party && ledger.held_by(of) > 0, &rank));
        }
        while !self.has_room() {
            // As if the new one had its place already: who would hold most gives.
            let would_hold = |ledger: &Self, of: &P| ledger.held_by(of) + usize::from(*of == party);
            let most = self
                .held
                .keys()
                .map(|of| would_hold(self, of))
                .max()
                .unwrap_or_default();
            given_up.extend(self.give_up(|ledger, of| would_hold(ledger, of) == most, &rank));
        }
        let id = self.next;
        self.next += 1;
        *self.held.entry(party.clone()).or_default() += 1;
        self.taken.insert(id, (party, kept));
        (id, given_up)
    }

    /// Takes the place of lowest rank away from the parties that are meant.
    fn give_up<R: Ord>(&mut self, is_meant: impl Fn(&Self, &P) -> bool, rank: impl Fn(&T) -> R) -> Option<T> {
        let meant = self.taken.iter().filter(|(_, (of, _))| is_meant(self, of));
        let (id, _) = meant.min_by_key(|(id, (_, kept))| (rank(kept), **id))?;
        self.give_back(*id)
    }

    /// Gives a place back. `None`: it was given up before.
    pub fn give_back(&mut self, id: PlaceId) -> Option<T> {
        let (party, kept) = self.taken.remove(&id)?;
        if let Some(held) = self.held.get_mut(&party) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&party);
            }
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// What is kept is the rank itself: when it was last heard of.
    fn ledger(most: usize, most_each: usize, parties: &[(&'static str, u32)]) -> Ledger<&'static str, u32> {
        let mut ledger = Ledger::new(most, most_each);
        for (party, heard) in parties {
            assert_eq!(ledger.take(*party, *heard, |heard| *heard).1, [0; 0]);
        }
        ledger
    }

    #[test]
    fn who_holds_most_gives_up_its_silent_oldest() {
        let mut few = ledger(4, 4, &[("a", 1), ("b", 7), ("b", 5), ("b", 6)]);
        assert_eq!(few.take("c", 8, |heard| *heard).1, [5], "not the older one of a");
        // Now b holds two, and so would c: the silent oldest of both.
        assert_eq!(few.take("c", 9, |heard| *heard).1, [6]);
        assert_eq!((few.held_by(&"a"), few.held_by(&"b"), few.held_by(&"c")), (1, 1, 2));
    }

    #[test]
    fn who_would_hold_most_gives_up_its_own() {
        let mut few = ledger(3, 3, &[("a", 1), ("b", 2), ("b", 3)]);
        assert_eq!(few.take("b", 4, |heard| *heard).1, [2]);
        assert_eq!(few.held_by(&"a"), 1);
    }

    #[test]
    fn among_equals_the_silent_oldest_of_all_goes() {
        let mut few = ledger(3, 3, &[("a", 3), ("b", 1), ("c", 2)]);
        assert_eq!(few.take("d", 4, |heard| *heard).1, [1]);
    }

    #[test]
    fn a_party_has_a_bound_of_its_own_where_one_is_set() {
        let mut few = ledger(10, 2, &[("a", 3), ("a", 1), ("b", 0)]);
        assert_eq!(few.take("a", 4, |heard| *heard).1, [1]);
        assert_eq!((few.len(), few.held_by(&"a")), (3, 2));
    }

    #[test]
    fn what_is_over_a_lowered_bound_goes_with_the_next() {
        let mut few = ledger(4, 4, &[("a", 1), ("a", 2), ("a", 3), ("b", 0)]);
        few.set_most(2);
        assert_eq!(few.take("c", 4, |heard| *heard).1, [1, 2, 0]);
        assert_eq!(few.len(), 2);
    }

    proptest! {
        /// Whatever comes and goes: never more than there may be; who holds less than others never gives up for them; and
        /// the counts are those of the places.
        #[test]
        fn a_party_never_takes_what_another_needs(
            most in 1_usize..12,
            steps in prop::collection::vec((0_u8..5, 0_u32..100, any::<bool>()), 1..200),
        ) {
            let mut ledger: Ledger<u8, (u8, u32)> = Ledger::new(most, usize::MAX);
            let mut places: HashMap<PlaceId, u8> = HashMap::new();
            for (party, heard, is_new) in steps {
                let before: HashMap<u8, usize> = (0..5).map(|of| (of, ledger.held_by(&of))).collect();
                if !is_new {
                    let id = places.iter().filter(|(_, of)| **of == party).map(|(id, _)| *id).min();
                    if let Some(id) = id {
                        places.remove(&id);
                        ledger.give_back(id);
                    }
                    continue;
                }
                let (id, given_up) = ledger.take(party, (party, heard), |kept| kept.1);
                places.insert(id, party);
                places.retain(|id, _| ledger.taken.contains_key(id));
                prop_assert!(ledger.len() <= most);
                prop_assert!(given_up.len() <= 1);
                prop_assert_eq!(given_up.is_empty(), before.values().sum::<usize>() < most);
                for (giver, heard) in given_up {
                    let would_hold = |of: u8| before[&of] + usize::from(of == party);
                    let most = (0..5).filter(|of| before[of] > 0).map(would_hold).max().unwrap();
                    prop_assert_eq!(would_hold(giver), most);
                    let is_older = ledger.taken.values().any(|(of, kept)| *of == giver && kept.1 < heard);
                    prop_assert!(!is_older || giver == party, "a silent older one was left");
                }
                for of in 0..5 {
                    prop_assert_eq!(ledger.held_by(&of), places.values().filter(|party| **party == of).count());
                }
            }
        }
    }
}

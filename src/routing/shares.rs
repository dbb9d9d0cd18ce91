//! Turns of endpoints that are not to have as much as one another. Pure.
//!
//! A ring of slots, each an endpoint's, as many as its share. A turn is a step of the golden ratio around it, so that an
//! endpoint's turns lie apart, and as many steps as there are slots come to each slot once: what is exact in the ring is exact in
//! as many turns. (Smooth weighted round robin, as nginx has it, looks at every endpoint in each pick.)

/// Who has which part of the turns.
#[derive(Debug)]
pub(super) struct Shares {
    /// Indices into the service's endpoints; as many as a power of two.
    slots: Box<[u32]>,
    /// By index into the service's endpoints; 0 of those that have no turns.
    weights: Box<[u32]>,
}

impl Shares {
    /// `parts`: indices with weights above zero, of `n` endpoints.
    ///
    /// Each gets a slot at least: who weighs less than 1 in 128 of what the others weigh on average gets so much.
    pub(super) fn new(parts: &[(u32, u32)], n: usize) -> Shares {
        let n_slots = (parts.len() * SLOTS_PER_ENDPOINT)
            .next_power_of_two()
            .clamp(SLOTS_LEAST, SLOTS_MOST);
        let n_slots_wide = n_slots as u64;
        let total: u64 = parts.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let least = 2 * total.div_ceil(n_slots_wide);
        let of = |weight: u32| match total > n_slots_wide {
            true => u64::from(weight).max(least),
            false => u64::from(weight),
        };
        let total: u64 = parts.iter().map(|(_, weight)| of(*weight)).sum();
        let mut slots = Vec::with_capacity(n_slots);
        let mut weights = vec![0; n];
        let mut so_far = 0;
        for (index, weight) in parts {
            so_far += of(*weight);
            let end = n_slots_wide * so_far / total.max(1);
            slots.resize(usize::try_from(end).unwrap_or(n_slots), *index);
            if let Some(of) = weights.get_mut(*index as usize) {
                *of = *weight;
            }
        }
        Shares {
            slots: slots.into(),
            weights: weights.into(),
        }
    }

    /// Whose turn it is.
    pub(super) fn at(&self, turn: usize) -> usize {
        let step = ((self.slots.len() as u64 * GOLDEN) >> 32) as usize | 1;
        self.slots[turn.wrapping_mul(step) & (self.slots.len() - 1)] as usize
    }

    pub(super) fn weight(&self, index: usize) -> u32 {
        self.weights[index]
    }

    /// How many turns come to each slot once.
    pub(super) fn period(&self) -> usize {
        self.slots.len()
    }
}

/// 2^32 divided by the golden ratio.
const GOLDEN: u64 = 2_654_435_769;
const SLOTS_PER_ENDPOINT: usize = 256;
const SLOTS_LEAST: usize = 1 << 10;
const SLOTS_MOST: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::{prop_assert, proptest};

    fn counts(shares: &Shares, from: usize, n_turns: usize, n: usize) -> Vec<usize> {
        let mut counts = vec![0; n];
        (from..from + n_turns).for_each(|turn| counts[shares.at(turn)] += 1);
        counts
    }

    #[test]
    fn turns_are_exact_over_the_ring_and_lie_apart() {
        let shares = Shares::new(&[(0, 3), (2, 1)], 3);
        assert_eq!(counts(&shares, 17, 1024, 3), [768, 0, 256]);
        assert_eq!((shares.weight(0), shares.weight(1)), (3, 0));
        for from in 0..1000 {
            let [three, _, one] = counts(&shares, from, 40, 3)[..] else {
                panic!()
            };
            assert!((28..=32).contains(&three) && three + one == 40, "{three} of 40");
        }
    }

    proptest! {
        #[test]
        fn everybody_has_turns_as_weights_say(weights in vec(1u32..1000, 1..200), from in 0usize..1_000_000) {
            let parts: Vec<(u32, u32)> = weights.iter().enumerate().map(|(i, w)| (i as u32, *w)).collect();
            let shares = Shares::new(&parts, parts.len());
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            let counts = counts(&shares, from, shares.period(), parts.len());
            for (count, weight) in counts.iter().zip(&weights) {
                let due = shares.period() as f64 * f64::from(*weight) / total as f64;
                // The least is up to four slots where the sum is little more than the ring, and an end is rounded.
                prop_assert!(*count >= 1 && (*count as f64 - due).abs() <= 5.0 + due / 32.0, "{count} where {due} are due");
            }
        }
    }
}

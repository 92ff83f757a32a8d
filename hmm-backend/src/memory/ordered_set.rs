//! A set of small numbers that gives its least member in constant time: bitmaps over bitmaps.

/// Numbers below a bound that is given when the set is made.
#[derive(Debug, PartialEq)]
pub(super) struct OrderedSet {
    /// The first bitmap has a bit for each number. Each further one has a bit for each word of the one before, which says
    /// whether any bit of that word is set; the last one is a single word.
    levels: Vec<Box<[u64]>>,
}

impl OrderedSet {
    /// An empty set for numbers below `bound`.
    pub(super) fn below(bound: u32) -> OrderedSet {
        let mut levels: Vec<Box<[u64]>> = Vec::new();
        let mut bits = bound as usize;
        while levels.is_empty() || bits > 1 {
            let words = bits.div_ceil(64).max(1);
            levels.push(vec![0; words].into_boxed_slice());
            bits = words;
        }
        OrderedSet { levels }
    }

    /// Adds a number. Returns whether it was not a member.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        let mut at = number as usize;
        let fresh = self.levels[0][at / 64] >> (at % 64) & 1 == 0;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let before = *word;
            *word |= 1 << (at % 64);
            // The levels above say already that there are bits.
            if before != 0 {
                break;
            }
            at /= 64;
        }
        fresh
    }

    /// Removes a number. Returns whether it was a member.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        let mut at = number as usize;
        let word = self.levels[0].get(at / 64);
        if word.is_none_or(|word| word >> (at % 64) & 1 == 0) {
            return false;
        }
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                break;
            }
            at /= 64;
        }
        true
    }

    /// Removes and returns the least number.
    pub(super) fn take_first(&mut self) -> Option<u32> {
        let mut at = 0;
        for level in self.levels.iter().rev() {
            // Only the last level's word can be empty: a set bit above says that there is one here.
            let word = level[at];
            if word == 0 {
                return None;
            }
            at = at * 64 + word.trailing_zeros() as usize;
        }
        self.remove(at as u32);
        Some(at as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Compares with the standard library's set, with bounds around those where the number of levels changes.
        #[test]
        fn agrees_with_a_tree(
            bound in prop_oneof![1u32..200, 4090u32..4200, 262_140u32..262_150],
            ops in prop::collection::vec((0u8..3, any::<u32>()), 1..300),
        ) {
            let mut set = OrderedSet::below(bound);
            let mut tree = BTreeSet::new();
            for (op, pick) in ops {
                let number = pick % bound;
                match op {
                    0 => prop_assert_eq!(set.insert(number), tree.insert(number)),
                    1 => prop_assert_eq!(set.remove(number), tree.remove(&number)),
                    _ => prop_assert_eq!(set.take_first(), tree.pop_first()),
                }
            }
            while let Some(first) = tree.pop_first() {
                prop_assert_eq!(set.take_first(), Some(first));
            }
            prop_assert_eq!(set, OrderedSet::below(bound));
        }
    }
}

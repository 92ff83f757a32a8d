//! The lapse: the time between two migrations of a page that counts as thrashing. It adapts.

use std::time::Duration;

use crate::policy::catalogue::{LONGEST_LAPSE, SHORTEST_LAPSE};

/// Surplus of votes in one direction after which the lapse changes by an eighth.
const VOTES: i32 = 32;

/// The time within which a migration after another one counts as thrashing, in nanoseconds. It follows the gaps
/// between migrations of thrashing pages: each gap is a vote for longer or shorter, and the lapse changes by an
/// eighth when one side is ahead by [`VOTES`].
#[derive(Debug)]
pub(super) struct Lapse {
    now: u64,
    votes: i32,
}

impl Lapse {
    pub(super) fn new(time: Duration) -> Lapse {
        Lapse {
            now: nanos(time),
            votes: 0,
        }
    }

    pub(super) fn nanos(&self) -> u64 {
        self.now
    }

    /// Counts the vote of a thrashing page that has migrated `gap` nanoseconds after the time before.
    pub(super) fn vote(&mut self, gap: u64) {
        self.votes += if gap >= self.now { 1 } else { -1 };
        if self.votes.abs() < VOTES {
            return;
        }
        let eighth = self.now / 8;
        let lapse = match self.votes > 0 {
            true => self.now + eighth,
            false => self.now - eighth,
        };
        self.now = lapse.clamp(nanos(SHORTEST_LAPSE), nanos(LONGEST_LAPSE));
        self.votes = 0;
    }
}

pub(super) fn nanos(time: Duration) -> u64 {
    time.as_nanos().min(u64::MAX.into()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lapse_follows_the_votes_both_ways() {
        let mut lapse = Lapse::new(Duration::from_micros(80));
        let mut votes = |gaps: &[u64], times| {
            for _ in 0..times {
                gaps.iter().for_each(|gap| lapse.vote(*gap));
            }
            lapse.nanos()
        };
        assert_eq!(votes(&[90_000], 31), 80_000);
        assert_eq!(votes(&[80_000], 1), 90_000);
        assert_eq!(votes(&[1], 32), 78_750);
        assert_eq!(
            votes(&[1, u64::MAX], 1000),
            78_750,
            "as many for as against"
        );
        assert_eq!(votes(&[0], 32 * 100), nanos(SHORTEST_LAPSE));
        assert_eq!(votes(&[u64::MAX], 32 * 200), nanos(LONGEST_LAPSE));
    }
}

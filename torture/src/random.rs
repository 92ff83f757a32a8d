//! Pseudo-random numbers that threads may share: splitmix64 of a counter.

use std::sync::atomic::{AtomicU64, Ordering};

/// A generator; which thread gets which number is a matter of timing.
pub(crate) struct Random(AtomicU64);

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// One of many sequences of a seed.
    pub(crate) fn new(seed: u64, sequence: u64) -> Random {
        let start = Random(AtomicU64::new(
            seed ^ sequence.wrapping_mul(0xd6e8_feb8_6659_fd93),
        ));
        Random(AtomicU64::new(start.next()))
    }

    pub(crate) fn next(&self) -> u64 {
        let z = self
            .0
            .fetch_add(GAMMA, Ordering::Relaxed)
            .wrapping_add(GAMMA);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number less than `bound`, which is not 0.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

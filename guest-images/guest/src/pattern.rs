//! Contents that both sides can write and check without storing them: arithmetic progressions.

use crate::random::Random;

/// Word `i` is `start + i·step`, wrapping.
#[derive(Clone, Copy)]
pub struct Pattern {
    pub start: u64,
    pub step: u64,
}

impl Pattern {
    /// All zeros: memory that was never written, or was freed.
    pub const ZERO: Pattern = Pattern { start: 0, step: 0 };

    /// One in which no two words of an array are the same.
    pub fn random(random: &mut Random) -> Self {
        Self {
            start: random.next(),
            step: random.next() | 1,
        }
    }

    pub fn at(self, index: u64) -> u64 {
        self.start.wrapping_add(index.wrapping_mul(self.step))
    }

    /// The pattern of the words from `index` on.
    pub fn from(self, index: u64) -> Self {
        Self {
            start: self.at(index),
            ..self
        }
    }

    /// The pattern of the sums.
    pub fn plus(self, other: Self) -> Self {
        Self {
            start: self.start.wrapping_add(other.start),
            step: self.step.wrapping_add(other.step),
        }
    }

    /// The wrapping sum of the first `len` words.
    pub fn sum(self, len: u64) -> u64 {
        let steps = (u128::from(len) * u128::from(len.saturating_sub(1)) / 2) as u64;
        len.wrapping_mul(self.start)
            .wrapping_add(steps.wrapping_mul(self.step))
    }
}

//! Sums over time, in a bounded number of bins, whatever the duration turns out to be.

use std::ops::AddAssign;

/// The most bins.
pub(super) const BINS: usize = 256;

/// The width of bins. When there are too many bins, the width doubles and the caller adds up neighbours with [`fold`].
#[derive(Clone)]
pub(super) struct Bins {
    /// The time that a bin stands for, in nanoseconds.
    pub(super) width: u64,
}

impl Bins {
    pub(super) fn new() -> Bins {
        Bins { width: 64 }
    }

    /// Doubles the width until this time has a bin; returns how many times, and so how often the caller must fold its bins.
    pub(super) fn reach(&mut self, time: u64) -> u32 {
        let mut folds = 0;
        while time / self.width >= BINS as u64 {
            self.width *= 2;
            folds += 1;
        }
        folds
    }

    pub(super) fn bin(&self, time: u64) -> usize {
        (time / self.width) as usize
    }
}

/// Adds up pairs of neighbours.
pub(super) fn fold<T: Default + Copy + AddAssign>(bins: &mut [T]) {
    for index in 0..bins.len() {
        let mut sum = T::default();
        for part in bins.iter().skip(index * 2).take(2) {
            sum += *part;
        }
        bins[index] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_keeps_sums() {
        let mut bins = [1, 2, 3, 4, 5];
        fold(&mut bins);
        assert_eq!(bins, [3, 7, 5, 0, 0]);
        let mut clock = Bins::new();
        assert_eq!(clock.reach(64 * 256 - 1), 0);
        assert_eq!(clock.reach(64 * 256), 1);
        assert_eq!((clock.bin(64 * 256), clock.width), (128, 128));
    }
}

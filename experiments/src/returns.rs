//! How often a page returned to a device after it had been brought back: what thrashing is.

/// A page that returned at least as often is called thrashing.
pub(crate) const THRASHING: u32 = 3;

/// One page's account. Takes 31 bits, so that others can keep a flag beside it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Returns(u32);

/// Set while a page that has been brought back from a device is elsewhere; below it is the count.
const AWAY: u32 = 1 << 30;

impl Returns {
    /// Makes the count that [`Self::bits`] has returned. The upper bit is ignored.
    pub(crate) fn from_bits(bits: u32) -> Returns {
        Returns(bits & (AWAY | (AWAY - 1)))
    }

    /// Returns the count and the mark as a number less than 2^31.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// Returns the count of a page that has now been brought back from a device.
    pub(crate) fn left(self) -> Returns {
        Returns(self.0 | AWAY)
    }

    /// Returns the count of a page that now comes to a device.
    pub(crate) fn arrived(self) -> Returns {
        let returned = self.is_away() && self.count() < AWAY - 1;
        Returns(self.count() + u32::from(returned))
    }

    /// Returns the count of a page that is now freed: its next contents have another history.
    pub(crate) fn freed(self) -> Returns {
        Returns(self.count())
    }

    /// Whether its next arrival is a return.
    pub(crate) fn is_away(self) -> bool {
        self.0 & AWAY != 0
    }

    pub(crate) fn count(self) -> u32 {
        self.0 & (AWAY - 1)
    }

    pub(crate) fn is_thrashing(self) -> bool {
        self.count() >= THRASHING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_brought_back_returns() {
        let mut page = Returns::default().arrived().arrived();
        assert_eq!((page.count(), page.is_away()), (0, false));
        for round in 0..3 {
            assert!(!page.is_thrashing());
            page = page.left();
            assert!(page.is_away());
            page = page.arrived();
            assert_eq!((page.count(), page.is_away()), (round + 1, false));
        }
        assert!(page.is_thrashing());
        // Freed while it was away: what comes next is another page.
        assert_eq!(page.left().freed().arrived(), page);
        assert_eq!(
            Returns::from_bits(page.left().bits() | 1 << 31),
            page.left()
        );
        // And it stops at the most.
        let most = Returns(AWAY - 1);
        assert_eq!(most.left().arrived(), most);
    }
}

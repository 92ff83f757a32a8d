//! The advice of a policy, and how it is cut to what is possible.

use std::time::Duration;

use super::view::{BlockFault, BlockView};
use crate::pages::time::MAX_HOLD;
use crate::pages::{PageRange, PageSet, Place};

/// Maximum number of wishes in one advice and of pages in one wish. They bound the work that a policy can cause.
pub(crate) const MAX_WISHES: usize = 8;
pub(crate) const MAX_WISH: u32 = 4096;

/// Pages anywhere in guest memory that should migrate when the service has nothing more urgent to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The pages, at most 4096.
    pub pages: PageRange,
    /// The destination.
    pub to: Place,
}

/// What to do about a fault besides serving it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// For a device fault on a system page: leave the page in system memory and let the device access it in place.
    pub stay: bool,
    /// Pages of the same block to migrate with the faulting pages.
    pub prefetch: PageSet,
    /// How long the migrated pages stay at their destination although the other side wants them (at most
    /// [`MAX_HOLD`]).
    pub hold: Duration,
    /// How long the faulting CPU or device waits before it is served (at most [`MAX_HOLD`]).
    pub throttle: Duration,
    /// Further pages to migrate, in this or other blocks: at most 8 wishes.
    pub migrate: Vec<Wish>,
    /// For a CPU fault: the touched and prefetched pages that also stay in a device's memory. CPUs and that device
    /// then read their own copies until one of them writes. Pages that this fault writes migrate in any case.
    pub duplicate: PageSet,
}

impl Advice {
    /// Returns the advice cut to what is possible, and whether anything was cut. Prefetched pages must exist, must
    /// not be among the faulting ones and must not be at the destination already; times are bounded; CPUs cannot
    /// access pages in place; only pages that come to system memory can be duplicated.
    pub fn validated(mut self, fault: &BlockFault, view: &BlockView<'_>) -> (Advice, bool) {
        let cut = self.validate(fault, view);
        (self, cut)
    }

    /// Cuts the advice as [`Self::validated`] and returns whether anything was cut.
    pub(crate) fn validate(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> bool {
        let exist = || PageSet::from_range(0..view.len());
        let (hold, throttle) = (self.hold.min(MAX_HOLD), self.throttle.min(MAX_HOLD));
        let stay = self.stay && fault.to != Place::System;
        let mut cut = (hold, throttle, stay) != (self.hold, self.throttle, self.stay);
        (self.hold, self.throttle, self.stay) = (hold, throttle, stay);
        if !self.prefetch.is_empty() {
            let possible = self.prefetch.intersection(&exist());
            let possible = possible.difference(&fault.pages);
            cut |= possible != self.prefetch;
            // Migrating a page to where it already is would do nothing. Removing such pages does not count as a cut.
            self.prefetch = possible.difference(&view.resident(fault.to));
        }
        if !self.duplicate.is_empty() {
            let possible = match fault.to {
                Place::System => self.duplicate.intersection(&exist()),
                Place::Device(_) => PageSet::EMPTY,
            };
            cut |= possible != self.duplicate;
            self.duplicate = possible;
        }
        // The length of each wish is cut when the wish is queued.
        cut |= self.migrate.len() > MAX_WISHES;
        self.migrate.truncate(MAX_WISHES);
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_view::*;
    use super::*;
    use crate::pages::{DeviceId, Page};

    #[test]
    fn impossible_advice_is_cut_and_noticed() {
        let system = PageSet::from_range(0..50);
        let words = block(100, &system, &PageSet::EMPTY);
        let view = view(&words);
        let fault = fault([3], Place::System);
        let wild = Advice {
            stay: true,
            prefetch: PageSet::from_range(0..512),
            hold: Duration::from_secs(3600),
            throttle: Duration::MAX,
            migrate: vec![
                Wish {
                    pages: PageRange::with_len(Page(0), MAX_WISH + 1),
                    to: Place::System,
                };
                MAX_WISHES + 1
            ],
            duplicate: PageSet::from_range(90..110),
        };
        let (advice, cut) = wild.validated(&fault, &view);
        assert!(cut);
        assert_eq!(advice.prefetch, PageSet::from_range(50..100));
        assert_eq!(advice.duplicate, PageSet::from_range(90..100));
        assert_eq!(
            advice.migrate.len(),
            MAX_WISHES,
            "their lengths are cut later"
        );
        assert_eq!(
            (advice.stay, advice.hold, advice.throttle),
            (false, MAX_HOLD, MAX_HOLD)
        );
        let modest = Advice {
            prefetch: PageSet::from_range(40..60),
            ..Advice::default()
        };
        let (advice, cut) = modest.validated(&fault, &view);
        assert!(!cut);
        assert_eq!(advice.prefetch, PageSet::from_range(50..60));
        let read = Advice {
            duplicate: PageSet::from_range(0..100),
            ..Advice::default()
        };
        let (advice, cut) = read.clone().validated(&fault, &view);
        assert!(!cut && advice == read);
        let by_device = BlockFault {
            to: Place::Device(DeviceId(0)),
            ..fault
        };
        let (advice, cut) = read.validated(&by_device, &view);
        assert!(cut && advice.duplicate.is_empty());
    }
}

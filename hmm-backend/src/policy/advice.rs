//! What a policy says, and what of it is possible.

use std::time::Duration;

use super::view::{BlockFault, BlockView};
use crate::pages::time::MAX_HOLD;
use crate::pages::{PageRange, PageSet, Place};

/// Most wishes in one advice, and most pages in one wish: a policy cannot keep the service busy for long.
pub(crate) const MAX_WISHES: usize = 8;
pub(crate) const MAX_WISH: u32 = 4096;

/// Pages anywhere in guest memory that should move when nothing more urgent is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// Which pages, at most 4096.
    pub pages: PageRange,
    /// Where to.
    pub to: Place,
}

/// What to do about a fault beyond serving it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// A device fault on a system page: leave the page there and let the device reach it in place.
    pub stay: bool,
    /// Pages of the same block to bring along.
    pub prefetch: PageSet,
    /// How long the migrated pages stay where they go, whoever else wants them (at most
    /// [`MAX_HOLD`]).
    pub hold: Duration,
    /// How long the toucher waits before it is served (at most [`MAX_HOLD`]).
    pub throttle: Duration,
    /// More to migrate, in this or other blocks: at most 8 wishes.
    pub migrate: Vec<Wish>,
    /// A CPU fault: those of the touched and prefetched pages that stay in a device's memory, too. From then on CPUs
    /// and that device read copies of their own, until somebody writes. Pages that are written now migrate all the same.
    pub duplicate: PageSet,
}

impl Advice {
    /// The advice cut to what is possible: prefetched pages exist, are not among the faulting ones and
    /// not at the destination already; times are bounded; CPUs cannot reach pages in place; only what comes to
    /// system memory can be duplicated. Returns also whether anything had to be cut.
    pub fn validated(mut self, fault: &BlockFault, view: &BlockView<'_>) -> (Advice, bool) {
        let exist = PageSet::from_range(0..view.len());
        let prefetch = self.prefetch.intersection(&exist).difference(&fault.pages);
        let (hold, throttle) = (self.hold.min(MAX_HOLD), self.throttle.min(MAX_HOLD));
        let stay = self.stay && fault.to != Place::System;
        let duplicate = match fault.to {
            Place::System => self.duplicate.intersection(&exist),
            Place::Device(_) => PageSet::EMPTY,
        };
        // Each of them is cut when it is queued.
        let wishes = self.migrate.len() <= MAX_WISHES;
        let cut = !wishes
            || (prefetch, hold, throttle, stay, duplicate)
                != (
                    self.prefetch,
                    self.hold,
                    self.throttle,
                    self.stay,
                    self.duplicate,
                );
        (self.prefetch, self.hold, self.throttle) = (prefetch, hold, throttle);
        (self.stay, self.duplicate) = (stay, duplicate);
        self.migrate.truncate(MAX_WISHES);
        // A migration of a page to where it is would do nothing: no cause for complaint.
        if !self.prefetch.is_empty() {
            self.prefetch = self.prefetch.difference(&view.resident(fault.to));
        }
        (self, cut)
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

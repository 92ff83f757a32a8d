//! How many neighbours come with a page: an aligned window that grows while faults follow each other, and shrinks when what
//! it has brought was not worth it.

use std::ops::Range;

use crate::pages::MAX_ORDER;

/// A window grows to four times its size, and shrinks to a quarter: three steps from 64 KiB to 2 MiB.
const STEP: u8 = 2;
/// Pages beyond what the last fault has brought in which the next fault counts as following it.
const REACH: usize = 16;

/// The window of one block in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// It has `1 << order` pages.
    order: u8,
    /// The window of the last fault; empty before the first one.
    start: u16,
    end: u16,
}

impl Window {
    pub(super) fn new(order: u8) -> Window {
        Window {
            order,
            start: 0,
            end: 0,
        }
    }

    /// A fault on this page: the window grows if it follows the fault before it, upwards or downwards.
    pub(super) fn faulted(&mut self, index: usize) {
        let (start, end) = (usize::from(self.start), usize::from(self.end));
        let first_or_again = start == end || (start..end).contains(&index);
        let far = index + REACH < start || index >= end + REACH;
        if !first_or_again && !far {
            self.order = (self.order + STEP).min(MAX_ORDER);
        }
    }

    /// Returns the window of the last fault.
    pub(super) fn last(&self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }

    pub(super) fn shrink(&mut self) {
        self.order = self.order.saturating_sub(STEP);
    }

    /// Returns the window around a page, as a fault on that page brings it; of at least `1 << least` pages.
    pub(super) fn around(&mut self, index: usize, least: u8) -> Range<usize> {
        let order = self.order.max(least);
        let start = index >> order << order;
        let end = start + (1 << order);
        (self.start, self.end) = (start as u16, end as u16);
        start..end
    }
}

//! Counts how often a device uses pages of system memory in place, per 64 KiB, for policies.

use crate::pages::{Page, PageRange};

/// The number of pages that are counted together as a group: 64 KiB.
const GROUP: u32 = 16;
/// The most groups that wait to be reported. A group beyond that is not reported, and its count starts again.
const MOST_HOT: usize = 256;

/// Counters of accesses in place, for devices that report them ([`crate::mirror::Mirror::used_in_place`]).
#[derive(Debug)]
pub struct RemoteCounters {
    /// The counts by group; empty until a threshold is set.
    counts: Vec<u32>,
    groups: usize,
    threshold: Option<u32>,
    hot: Vec<Page>,
}

impl RemoteCounters {
    /// Makes counters for `pages` pages of managed memory.
    pub fn new(pages: u32) -> RemoteCounters {
        RemoteCounters {
            counts: Vec::new(),
            groups: pages.div_ceil(GROUP) as usize,
            threshold: None,
            hot: Vec::new(),
        }
    }

    /// Sets the number of accesses from which a group is reported; `None` for never.
    pub fn set_threshold(&mut self, threshold: Option<u32>) {
        self.threshold = threshold;
        if threshold.is_some() && self.counts.is_empty() {
            self.counts = vec![0; self.groups];
        }
    }

    /// Returns the number of the group that counts this page.
    pub fn group(page: Page) -> u32 {
        page.0 / GROUP
    }

    /// Returns how many more accesses to the page's group it takes until the group is reported; `None` without
    /// a threshold.
    pub fn until_hot(&self, page: Page) -> Option<u32> {
        let count = self.counts.get(Self::group(page) as usize)?;
        Some(self.threshold?.saturating_sub(*count).max(1))
    }

    /// Counts accesses in place to a page.
    pub fn count(&mut self, page: Page, accesses: u32) {
        let Some(threshold) = self.threshold else {
            return;
        };
        let Some(count) = self.counts.get_mut(Self::group(page) as usize) else {
            return;
        };
        *count = count.saturating_add(accesses);
        if *count >= threshold {
            *count = 0;
            if self.hot.len() < MOST_HOT {
                self.hot.push(Page(page.0 / GROUP * GROUP));
            }
        }
    }

    /// Returns the groups that have reached the threshold since the last call, and the threshold; `None` if
    /// there are no such groups.
    pub fn take_hot(&mut self) -> Option<(Vec<PageRange>, u32)> {
        if self.hot.is_empty() {
            return None;
        }
        let ranges = self
            .hot
            .drain(..)
            .map(|page| PageRange::with_len(page, GROUP));
        Some((ranges.collect(), self.threshold.unwrap_or(0)))
    }

    /// Resets the counts of these pages' groups, because the counts belong to translations that have been
    /// invalidated.
    pub fn forget(&mut self, pages: PageRange) {
        if !self.counts.is_empty() && !pages.is_empty() {
            let first = (pages.start.0 / GROUP) as usize;
            let end = (pages.end.0.div_ceil(GROUP) as usize).min(self.groups);
            self.counts[first.min(end)..end].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_reported_at_the_threshold_and_counted_anew() {
        let mut remote = RemoteCounters::new(100);
        let count = |remote: &mut RemoteCounters, pages: &[u32]| -> Vec<u32> {
            pages.iter().for_each(|page| remote.count(Page(*page), 2));
            let hot = remote.take_hot().map_or(Vec::new(), |(hot, _)| hot);
            hot.iter().map(|range| range.start.0).collect()
        };
        assert_eq!(count(&mut remote, &[0; 9]), [], "no threshold");
        remote.set_threshold(Some(6));
        assert_eq!(count(&mut remote, &[16, 31, 32, 99, 99]), []);
        assert_eq!(
            (remote.until_hot(Page(17)), remote.until_hot(Page(0))),
            (Some(2), Some(6))
        );
        assert_eq!(remote.until_hot(Page(112)), None, "no such group");
        assert_eq!(count(&mut remote, &[17, 99]), [16, 96]);
        assert_eq!(count(&mut remote, &[17, 17]), [], "anew");
        remote.forget(PageRange::new(Page(20), Page(21)));
        assert_eq!(count(&mut remote, &[17, 17]), [], "invalidated");
        assert_eq!(count(&mut remote, &[17]), [16]);
        remote.forget(PageRange::new(Page(0), Page(u32::MAX)));
        assert_eq!(count(&mut remote, &[32, 32]), []);
    }
}

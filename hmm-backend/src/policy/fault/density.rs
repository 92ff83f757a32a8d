//! NVIDIA UVM's density-tree prefetcher (`uvm_perf_prefetch.c` of the open kernel modules, 595.45).
//!
//! A block is a binary tree over its pages. Every 64 KiB group with a fault counts as wanted completely. Then, for
//! each faulting page, the policy prefetches the largest subtree around the page of which more than `threshold`
//! percent is at the destination or wanted. Sequential access doubles the region with nearly every fault; a scattered
//! access costs at most 64 KiB.
//!
//! The modifiers `hints` and `thrash` remove pages with another preferred location and thrashing pages from the
//! prefetch sets. Two parts of UVM are left out: range groups, which do not exist here, and the rule that a 64 KiB
//! group with a thrashing page is not filled.

use std::collections::HashMap;
use std::ops::Range;

use crate::pages::{Block, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy};

/// Pages in the group that a fault fills completely: 64 KiB.
pub(super) const BIG_PAGE: usize = 16;

/// The density policy.
#[derive(Debug)]
pub struct Density {
    /// Percentage of a subtree that must be exceeded.
    threshold: u32,
    /// Number of faults on a block towards one place before pages are prefetched.
    min_faults: u32,
    /// Number of faults on each block since its destination last changed; only kept if `min_faults` needs it.
    faults: HashMap<Block, (Place, u32)>,
}

impl Density {
    /// `threshold` is in percent (UVM: 51); `min_faults` is at least 1 (UVM: 1).
    pub fn new(threshold: u32, min_faults: u32) -> Density {
        Density {
            threshold,
            min_faults,
            faults: HashMap::new(),
        }
    }

    /// Counts the faults. Returns whether the block has had enough of them.
    fn enough_faults(&mut self, fault: &BlockFault) -> bool {
        if self.min_faults <= 1 {
            return true;
        }
        let (place, count) = self.faults.entry(fault.block).or_insert((fault.to, 0));
        if *place != fault.to {
            (*place, *count) = (fault.to, 0);
        }
        *count = count.saturating_add(fault.pages.count() as u32);
        *count >= self.min_faults
    }
}

/// Returns the pages of a block's group of 64 KiB with this number.
pub(super) fn big_page(number: usize) -> Range<usize> {
    number * BIG_PAGE..(number + 1) * BIG_PAGE
}

/// Returns the largest subtree around a page of a block with `len` pages of which more than `threshold` percent is in
/// `wanted`; the page alone if there is none.
pub(super) fn largest_dense(
    wanted: &PageSet,
    index: usize,
    len: usize,
    threshold: u32,
) -> Range<usize> {
    let mut best = index..index + 1;
    let mut size = 1;
    while size < len.next_power_of_two() {
        size *= 2;
        let start = index / size * size;
        let node = start..(start + size).min(len);
        let dense = wanted.count_in(node.clone()) * 100;
        if dense > node.len() * threshold as usize {
            best = node;
        }
    }
    best
}

impl Default for Density {
    fn default() -> Self {
        Density::new(51, 1)
    }
}

impl FaultPolicy for Density {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        if !self.enough_faults(fault) {
            return Advice::default();
        }
        let len = view.len();
        let resident = view.resident(fault.to);
        let mut wanted = resident.union(&fault.pages);
        for index in fault.pages.iter() {
            let start = index / BIG_PAGE * BIG_PAGE;
            wanted.insert_range(start..(start + BIG_PAGE).min(len));
        }
        let mut prefetch = PageSet::EMPTY;
        for index in fault.pages.iter() {
            let best = largest_dense(&wanted, index, len, self.threshold);
            prefetch.insert_range(best.clone());
            if best.end == len && best.start == 0 {
                break;
            }
        }
        Advice {
            prefetch: prefetch.difference(&fault.pages).difference(&resident),
            ..Advice::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::test_view::*;

    fn runs(set: &PageSet) -> Vec<std::ops::Range<usize>> {
        set.runs().collect()
    }

    #[test]
    fn a_lone_fault_brings_its_64_kib() {
        let words = block(512, &PageSet::EMPTY, &PageSet::from_range(0..512));
        let advice = Density::default().advise(&fault([20], Place::System), &view(&words));
        assert_eq!(runs(&advice.prefetch), [16..20, 21..32]);
    }

    #[test]
    fn a_sequential_walk_over_a_block_takes_seven_faults() {
        let mut policy = Density::default();
        let mut system = PageSet::EMPTY;
        let mut sizes = Vec::new();
        for page in 0..512 {
            if system.contains(page) {
                continue;
            }
            let words = block(
                512,
                &system,
                &PageSet::from_range(0..512).difference(&system),
            );
            let advice = policy.advise(&fault([page], Place::System), &view(&words));
            let moved = advice.prefetch.count() + 1;
            system = system.union(&advice.prefetch);
            system.insert(page);
            sizes.push(moved);
        }
        assert_eq!(sizes, [16, 16, 32, 64, 128, 256]);
    }

    #[test]
    fn the_threshold_is_strict() {
        // 262 of 512 are more than 51 percent, 261 are not.
        for (resident, whole) in [(246, true), (245, false)] {
            let there = PageSet::from_range(0..resident);
            let words = block(512, &there, &PageSet::EMPTY);
            let advice = Density::default().advise(&fault([500], Place::System), &view(&words));
            assert_eq!(advice.prefetch.contains(300), whole, "{resident} resident");
        }
    }

    #[test]
    fn min_faults_gates_and_resets_with_the_destination() {
        let words = block(512, &PageSet::EMPTY, &PageSet::EMPTY);
        let mut policy = Density::new(51, 3);
        let device = Place::Device(crate::pages::DeviceId(0));
        for (place, prefetches) in [
            (Place::System, false),
            (Place::System, false),
            (device, false),
            (device, false),
            (device, true),
        ] {
            let advice = policy.advise(&fault([0], place), &view(&words));
            assert_eq!(!advice.prefetch.is_empty(), prefetches);
        }
    }

    #[test]
    fn the_last_block_may_be_short() {
        let words = block(20, &PageSet::EMPTY, &PageSet::EMPTY);
        let advice = Density::default().advise(&fault([18], Place::System), &view(&words));
        assert_eq!(runs(&advice.prefetch), [16..18, 19..20]);
    }
}

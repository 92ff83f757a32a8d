//! Which neighbours come with a page: those that UVM's density tree finds. But the 64 KiB around a fault count as wanted
//! only if second faults have shown that they are.

use crate::pages::{PageSet, Place};
use crate::policy::fault::density::{BIG_PAGE, big_page, largest_dense};
use crate::policy::{BlockFault, BlockView};

/// Percentage of a subtree that must be exceeded: the smallest with which a walk over a block doubles what it brings at
/// each fault, from single pages on.
const THRESHOLD: u32 = 50;
/// One group in so many brings one page first, whatever is known. Without it, nothing would be learned any more.
const SAMPLED: u32 = 8;
/// A second fault on a group weighs twice as much as a first one, because a group of which all pages are used has one of
/// each.
const SECOND: i8 = 2;
/// Bound of the confidence: the number of first faults without a second one that change the policy's mind.
const MOST_CONFIDENCE: i8 = 8;

/// The groups of a block on which there has been one fault, towards system memory and towards devices; a bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstFaults([u32; 2]);

/// How much is known about neighbours, towards system memory and towards devices.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    confidence: [i8; 2],
}

/// The direction of a fault as an index.
fn direction(to: Place) -> usize {
    match to {
        Place::System => 0,
        Place::Device(_) => 1,
    }
}

/// Whether this group of this block is one of the sample: a hash, the same in each run.
fn is_sampled(block: u32, group: usize) -> bool {
    let number = block.wrapping_mul(32).wrapping_add(group as u32);
    (number.wrapping_mul(0x9e37_79b1) >> 16).is_multiple_of(SAMPLED)
}

impl Neighbours {
    /// Returns the neighbours of the faulting pages. A fault on a page of `known`, which has moved before, tells nothing
    /// about neighbours; the known pages of its group come with it.
    pub(super) fn of(
        &mut self,
        fault: &BlockFault,
        view: &BlockView<'_>,
        first: &mut FirstFaults,
        known: &PageSet,
    ) -> PageSet {
        let resident = view.resident(fault.to);
        let mut wanted = resident.union(&fault.pages);
        for index in fault.pages.iter() {
            let group = PageSet::from_range(big_page(index / BIG_PAGE));
            if known.contains(index) {
                wanted = wanted.union(&group.intersection(known));
            } else if self.wants_group(fault, index / BIG_PAGE, first) {
                wanted = wanted.union(&group);
            }
        }
        let mut neighbours = PageSet::EMPTY;
        for index in fault.pages.iter() {
            neighbours.insert_range(largest_dense(&wanted, index, view.len(), THRESHOLD));
        }
        let wanted = wanted.union(&neighbours);
        let exist = PageSet::from_range(0..view.len());
        let wanted = wanted.intersection(&exist);
        wanted.difference(&fault.pages).difference(&resident)
    }

    /// Learns from a fault on a group, and returns whether all of the group is wanted.
    fn wants_group(&mut self, fault: &BlockFault, group: usize, first: &mut FirstFaults) -> bool {
        let (here, bit) = (direction(fault.to), 1 << group);
        // Pages that the other side has taken are no news about neighbours.
        first.0[1 - here] &= !bit;
        let confidence = &mut self.confidence[here];
        if first.0[here] & bit != 0 {
            first.0[here] &= !bit;
            *confidence = (*confidence + SECOND).min(MOST_CONFIDENCE);
            true
        } else if *confidence > 0 && !is_sampled(fault.block.0, group) {
            true
        } else {
            first.0[here] |= bit;
            *confidence = (*confidence - 1).max(-MOST_CONFIDENCE);
            false
        }
    }
}

//! The regions that the policy knows, at most so many.

use std::collections::{HashMap, VecDeque};

use super::region::Region;
use crate::pages::Block;

/// The most blocks that are known: 16 GiB of memory, with [`REGION_BYTES`] each 8 MiB of state for each shard. Beyond that, the
/// block that has been known for longest is forgotten, and learned again.
pub(super) const MOST_BLOCKS: usize = 8192;

/// The most bytes of one region.
const REGION_BYTES: usize = 1104;
const _: () = assert!(
    size_of::<Region>() <= REGION_BYTES,
    "the documentation names this size"
);

/// Regions by their block.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    regions: HashMap<Block, Region>,
    /// The blocks in the order in which they became known.
    order: VecDeque<Block>,
}

impl Tracked {
    /// Returns the region of a block, a blank one if it is not known.
    pub(super) fn region(&mut self, block: Block) -> &mut Region {
        if !self.regions.contains_key(&block) {
            if self.order.len() == MOST_BLOCKS
                && let Some(oldest) = self.order.pop_front()
            {
                self.regions.remove(&oldest);
            }
            self.order.push_back(block);
        }
        self.regions.entry(block).or_default()
    }

    /// Returns the region of a block if it is known.
    pub(super) fn known(&mut self, block: Block) -> Option<&mut Region> {
        self.regions.get_mut(&block)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.regions.len()
    }
}

//! When a policy that counts uses looks at accessed bits instead, which tell only that there was one.
//!
//! The policy looks at the bits of all folios from time to time, and takes a set bit for one use: the kernel's multi-generational
//! LRU ages pages so. Between two looks, one use and a thousand are the same, and their order is not known.

use super::lists::Lists;
use crate::pages::Frame;
use crate::policy::AccessedBits;

/// Looks while new folios fill all of the device's memory once.
const LOOKS: u32 = 8;

/// Says when to look.
#[derive(Debug)]
pub(super) struct Aging {
    /// Frames that are allocated between two looks.
    interval: u32,
    allocated: u32,
}

impl Aging {
    /// For a device with this many frames.
    pub(super) fn new(frames: u32) -> Aging {
        Aging {
            interval: (frames / LOOKS).max(1),
            allocated: 0,
        }
    }

    pub(super) fn allocated(&mut self, order: u8) {
        self.allocated = self.allocated.saturating_add(1 << order);
    }

    /// Looks at the folios of these lists if it is time to. Returns those that were used, the oldest of each list first.
    pub(super) fn used(
        &mut self,
        bits: &mut dyn AccessedBits,
        folios: &Lists,
        lists: impl IntoIterator<Item = usize>,
    ) -> Vec<Frame> {
        if self.allocated < self.interval || !bits.there() {
            return Vec::new();
        }
        self.allocated = 0;
        let all = lists
            .into_iter()
            .flat_map(|list| folios.first(list, u32::MAX));
        all.filter(|head| bits.take(*head).is_some()).collect()
    }
}

//! Whether the neighbours that come with a page are worth it, over all blocks: what a block learns of its own comes too late
//! for the next block, and there may be a thousand of them.

/// The most faults and uses that are remembered: then both are halved.
const REMEMBERED: u32 = 64;

/// What became of the pages that were brought along with those that devices asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Neighbours {
    /// Pages brought along, and those of them that were used; both halved whenever more than the device holds were brought.
    brought: u32,
    used: u32,
    /// The last faults, and the uses of pages brought along between them.
    faults: u32,
    uses: u32,
}

impl Neighbours {
    /// A device faults.
    pub(super) fn faulted(&mut self) {
        self.faults += 1;
        self.forget();
    }

    /// A device uses a page that was brought along, for the first time.
    pub(super) fn used(&mut self) {
        self.used += 1;
        self.uses += 1;
        self.forget();
    }

    fn forget(&mut self) {
        if self.faults + self.uses > REMEMBERED {
            (self.faults, self.uses) = (self.faults / 2, self.uses / 2);
        }
    }

    /// So many pages are brought along, to a device with a memory of `capacity` pages.
    pub(super) fn brought(&mut self, pages: u32, capacity: u32) {
        self.brought = self.brought.saturating_add(pages);
        if self.brought > capacity {
            (self.brought, self.used) = (self.brought / 2, self.used / 2);
        }
    }

    /// Whether unused neighbours fill a quarter of the device's memory, and are used less than a quarter as often as pages that
    /// are as likely to be used as any others would be: then more of them only push out what is in use.
    pub(super) fn in_vain(&self, capacity: u32) -> bool {
        let [capacity, uses, faults] = [capacity, self.uses, self.faults].map(u64::from);
        let unused = u64::from(self.brought.saturating_sub(self.used));
        unused > capacity / 4 && uses * 4 * capacity < unused * (uses + faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u32 = 1024;

    fn after(faults: u32, brought: u32, uses: u32) -> Neighbours {
        let mut neighbours = Neighbours::default();
        neighbours.brought(brought, CAPACITY);
        (0..faults).for_each(|_| neighbours.faulted());
        (0..uses).for_each(|_| neighbours.used());
        neighbours
    }

    #[test]
    fn neighbours_are_in_vain_when_many_are_there_and_hardly_any_is_used() {
        assert!(after(20, 512, 1).in_vain(CAPACITY));
        // Few are there.
        assert!(!after(20, 256, 0).in_vain(CAPACITY));
        // Half of the memory is used as often as a fault comes in eight.
        assert!(!after(20, 512, 4).in_vain(CAPACITY));
        // The same number, long ago.
        let mut changed = after(20, 512, 1);
        (0..16).for_each(|_| changed.used());
        assert!(!changed.in_vain(CAPACITY));
    }
}

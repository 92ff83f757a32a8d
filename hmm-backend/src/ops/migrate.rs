//! Migrations that the VMM or the guest requests.

use crate::fault::Faults;
use crate::migrate::{Core, Leaving, Reason, collect_to_system, to_device, to_system};
use crate::observe::Cause;
use crate::pages::{BLOCK_PAGES, Block, DeviceId, Error, PageRange, PageSet};

/// The number of blocks that migrate together on a request for a range. Moving pages flushes the TLB; the
/// bookkeeping for several blocks refills it only once. But a CPU that touches one of the pages waits for all
/// of them.
const MOST_BLOCKS: u32 = 8;

/// See [`crate::Backend::migrate_to_device`].
pub(crate) fn migrate_to_device(
    faults: &Faults,
    device: DeviceId,
    range: PageRange,
) -> Result<u64, Error> {
    let core = &faults.core;
    core.settle(range)?;
    let device = core.device(device)?;
    let mut moved = 0;
    let mut left = range;
    while !left.is_empty() {
        // If the device has little room, migrate block by block: the room for a block can then come from
        // evicting the previous one.
        let short = device.free_frames() < MOST_BLOCKS * BLOCK_PAGES as u32;
        let part = left.take_blocks(if short { 1 } else { MOST_BLOCKS });
        // Count the movable pages only if the free frames may not suffice.
        if device.free_frames() < part.len() {
            faults.make_room(device, core.movable(part).min(device.capacity()));
        }
        moved += to_device(core, device, sets_of(part), Reason::of(Cause::User));
    }
    Ok(moved)
}

/// See [`crate::Backend::migrate_to_system`].
pub(crate) fn migrate_to_system(core: &Core, range: PageRange) -> Result<u64, Error> {
    core.settle(range)?;
    let mut moved = 0;
    let mut left = range;
    while !left.is_empty() {
        let part = left.take_blocks(MOST_BLOCKS);
        core.end_exclusive_access(part, |_| true);
        for (device, sources) in collect_to_system(core, sets_of(part), Leaving::All) {
            let reason = Reason::of(Cause::User);
            moved += to_system(core, device, sources, reason, None)
                .map_or(0, |done| u64::from(done.pages()));
        }
    }
    Ok(moved)
}

/// Splits a range into the page sets of its blocks.
fn sets_of(range: PageRange) -> impl Iterator<Item = (Block, PageSet)> {
    range
        .split_by_block()
        .map(|part| (part.start.block(), PageSet::of(part)))
}

//! Migrations that the VMM or the guest requests.

use super::Progress;
use crate::fault::Faults;
use crate::migrate::{
    Core, Leaving, Reason, between_devices, collect_from_devices, to_device, to_system,
};
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
    progress: &Progress,
) -> Result<u64, Error> {
    let core = &faults.core;
    core.settle(range)?;
    let device = core.device(device)?;
    progress.begin(range.len());
    let mut moved = 0;
    let mut left = range;
    while !left.is_empty() {
        // If the device has little room, migrate block by block: the room for a block can then come from
        // evicting the previous one.
        let short = device.free_frames() < MOST_BLOCKS * BLOCK_PAGES as u32;
        let part = left.take_blocks(if short { 1 } else { MOST_BLOCKS });
        let on_peers = |(block, pages)| (block, core.on_peers(device, block, &pages));
        let on_peers = sets_of(part).map(on_peers);
        let on_peers: Vec<_> = on_peers.filter(|(_, pages)| !pages.is_empty()).collect();
        // Count the movable pages only if the free frames may not suffice.
        if device.free_frames() < part.len() {
            let direct: usize = on_peers.iter().map(|(_, pages)| pages.count()).sum();
            let want = core.movable(part) + direct as u32;
            faults.make_room(device, want.min(device.capacity()));
        }
        let reason = Reason::of(Cause::User);
        // First the direct migrations: the pages that a driver refuses are in system memory afterwards.
        moved += between_devices(core, device, on_peers, reason, None).pages;
        moved += to_device(core, device, sets_of(part), reason);
        progress.left(left.len())?;
    }
    Ok(moved)
}

/// See [`crate::Backend::migrate_to_system`].
pub(crate) fn migrate_to_system(
    core: &Core,
    range: PageRange,
    progress: &Progress,
) -> Result<u64, Error> {
    core.settle(range)?;
    progress.begin(range.len());
    let mut moved = 0;
    let mut left = range;
    while !left.is_empty() {
        let part = left.take_blocks(MOST_BLOCKS);
        core.end_exclusive_access(part, |_| true);
        for (device, sources) in collect_from_devices(core, sets_of(part), Leaving::All) {
            let reason = Reason::of(Cause::User);
            moved += to_system(core, device, sources, reason, None)
                .map_or(0, |done| u64::from(done.pages()));
        }
        progress.left(left.len())?;
    }
    Ok(moved)
}

/// Splits a range into the page sets of its blocks.
fn sets_of(range: PageRange) -> impl Iterator<Item = (Block, PageSet)> {
    range
        .split_by_block()
        .map(|part| (part.start.block(), PageSet::of(part)))
}

//! Migrations that somebody asks for, and what can go to a device at all.

use crate::backend::Backend;
use crate::migrate::{Device, Reason, Take, ToDevice, collect_to_system};
use crate::observe::Cause;
use crate::pages::{BLOCK_PAGES, Block, DeviceId, Error, Page, PageRange, PageSet};
use crate::residency::Residency;

/// Blocks that migrate together when somebody asks for a range. Moving pages empties the TLB, and doing the
/// book-keeping for several blocks fills it once; but CPUs that touch one of the pages wait for all of them.
const MOST_BLOCKS: u32 = 8;

impl Backend {
    /// Migrates pages to a device because somebody asked for it; pages that cannot move stay. Waits for pages
    /// in motion. Returns how many moved.
    pub fn migrate_to_device(&self, device: DeviceId, range: PageRange) -> Result<u64, Error> {
        self.settle(range)?;
        let device = self.device(device)?;
        let mut moved = 0;
        let mut left = range;
        while !left.is_empty() {
            // Where room is short, block by block: the next may need the frames of the one before.
            let short = device.free_frames() < MOST_BLOCKS * BLOCK_PAGES as u32;
            let part = left.take_blocks(if short { 1 } else { MOST_BLOCKS });
            // The words are counted only where room could be short.
            if device.free_frames() < part.len() {
                self.make_room(device, self.movable(part).min(device.capacity()));
            }
            moved += self.migrate_with(device, sets_of(part), Reason::of(Cause::User));
        }
        Ok(moved)
    }

    /// How many pages of the range could go to a device now.
    pub(crate) fn movable(&self, part: PageRange) -> u32 {
        let movable = part.pages().filter(|page| self.is_movable(*page));
        movable.count() as u32
    }

    /// Whether the page could go to a device now.
    pub(crate) fn is_movable(&self, page: Page) -> bool {
        let word = self.table.word(page);
        match word.residency() {
            Residency::Untouched => self.first_outside(PageRange::single(page)).is_none(),
            Residency::System => word.pins() == 0 && !self.guest.is_shared(page),
            _ => false,
        }
    }

    /// Migrates what can be of these pages of ascending blocks through the driver. Returns how many moved.
    pub(crate) fn migrate_with(
        &self,
        device: &Device,
        wanted: impl IntoIterator<Item = (Block, PageSet)>,
        reason: Reason,
    ) -> u64 {
        let Some(migration) = ToDevice::collect(self, device, wanted, reason) else {
            return 0;
        };
        // An error has rolled everything back: to the caller, nothing moved.
        let first = migration.folios().next().map_or(Page(0), |f| f.page);
        self.call_driver(device, first, |driver| driver.migrate_to_device(migration))
            .map_or(0, |done| done.pages.into())
    }

    /// Migrates pages to system memory because somebody asked for it; pages that cannot move stay. Ends exclusive
    /// access; of duplicates, the device's copy goes. Waits for pages in motion. Returns how many moved.
    pub fn migrate_to_system(&self, range: PageRange) -> Result<u64, Error> {
        self.settle(range)?;
        let mut moved = 0;
        let mut left = range;
        while !left.is_empty() {
            let part = left.take_blocks(MOST_BLOCKS);
            self.end_exclusive_access(part, |_| true);
            for (device, sources) in collect_to_system(self, sets_of(part), Take::All) {
                let reason = Reason::of(Cause::User);
                moved += self
                    .send_back(device, sources, reason, None)
                    .map_or(0, |done| done.pages.into());
            }
        }
        Ok(moved)
    }
}

/// The pages of a range, block by block.
fn sets_of(range: PageRange) -> impl Iterator<Item = (Block, PageSet)> {
    range
        .split_by_block()
        .map(|part| (part.start.block(), PageSet::of(part)))
}

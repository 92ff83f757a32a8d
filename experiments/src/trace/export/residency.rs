//! How many pages each device holds, followed from event to event.

use std::collections::BTreeMap;
use std::ops::Range;

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{BLOCK_PAGES, Block, DeviceId, Page, PageRange};

/// Marks a page that is in no device's memory.
const SYSTEM: u16 = u16::MAX;

/// The places of pages. Memory grows with the blocks of 2 MiB that were ever on a device.
pub struct ResidencyTracker {
    /// Pages of the machine: an event that says it has more cannot make this grow without bounds.
    limit: u32,
    blocks: BTreeMap<Block, Box<[u16; BLOCK_PAGES as usize]>>,
    pages: BTreeMap<DeviceId, u64>,
}

impl ResidencyTracker {
    /// Makes a tracker of this many pages, none of which is on a device.
    pub fn new(pages: u32) -> ResidencyTracker {
        ResidencyTracker {
            limit: pages,
            blocks: BTreeMap::new(),
            pages: BTreeMap::new(),
        }
    }

    /// Takes notice of an event. Returns whether it may have changed how many pages a device holds.
    pub fn apply(&mut self, event: &Event) -> bool {
        let place = match (event.kind, event.device) {
            (EventKind::ToDevice | EventKind::BetweenDevices | EventKind::Placed, Some(device)) => {
                u16::from(device.0)
            }
            (EventKind::ToSystem | EventKind::Freed, _) | (EventKind::Collapsed, None) => SYSTEM,
            // Duplicates are in the device's memory all the while.
            _ => return false,
        };
        let range = event.within(self.limit);
        if place == SYSTEM {
            self.leave(range);
        } else {
            for part in range.split_by_block() {
                self.arrive(part, place);
            }
        }
        true
    }

    /// Pages of one block come to a device.
    fn arrive(&mut self, part: PageRange, place: u16) {
        let block = self.blocks.entry(part.start.block());
        let block = block.or_insert_with(|| Box::new([SYSTEM; BLOCK_PAGES as usize]));
        for cell in &mut block[within(part)] {
            let old = std::mem::replace(cell, place);
            count(&mut self.pages, old, u64::MAX);
            count(&mut self.pages, place, 1);
        }
    }

    /// Pages leave their devices. What is freed may be large, and never have been on one: only blocks are looked at that
    /// have pages on devices, and those of which all pages leave are looked at once.
    fn leave(&mut self, range: PageRange) {
        if range.is_empty() {
            return;
        }
        let blocks = range.start.block()..=Page(range.end.0 - 1).block();
        let mut empty = Vec::new();
        for (block, cells) in self.blocks.range_mut(blocks) {
            let part = PageRange::new(
                range.start.max(block.first_page()),
                range.end.min(block.first_page().plus(BLOCK_PAGES as u32)),
            );
            for cell in &mut cells[within(part)] {
                let old = std::mem::replace(cell, SYSTEM);
                count(&mut self.pages, old, u64::MAX);
            }
            if u64::from(part.len()) == BLOCK_PAGES {
                empty.push(*block);
            }
        }
        for block in empty {
            self.blocks.remove(&block);
        }
    }

    /// Returns the number of pages on each device that ever held any.
    pub fn pages(&self) -> &BTreeMap<DeviceId, u64> {
        &self.pages
    }
}

/// Returns the cells of pages of one block.
fn within(part: PageRange) -> Range<usize> {
    let start = part.start.index_in_block();
    start..start + part.len() as usize
}

fn count(pages: &mut BTreeMap<DeviceId, u64>, place: u16, change: u64) {
    if let Ok(device) = u8::try_from(place) {
        let pages = pages.entry(DeviceId(device)).or_default();
        *pages = pages.wrapping_add(change);
    }
}

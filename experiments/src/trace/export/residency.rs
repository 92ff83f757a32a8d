//! How many pages each device holds, followed from event to event.

use std::collections::{BTreeMap, HashMap};

use hmm_backend::{BLOCK_PAGES, Block, DeviceId, Event, EventKind};

/// Nobody's page.
const SYSTEM: u16 = u16::MAX;

/// Where pages are. Memory grows with the blocks of 2 MiB that were ever on a device.
pub struct Residency {
    /// Pages of the machine: an event that says it has more cannot make this grow without bounds.
    limit: u32,
    blocks: HashMap<Block, Box<[u16; BLOCK_PAGES as usize]>>,
    pages: BTreeMap<DeviceId, u64>,
}

impl Residency {
    /// Nothing is on a device yet, of so many pages.
    pub fn new(pages: u32) -> Residency {
        Residency {
            limit: pages,
            blocks: HashMap::new(),
            pages: BTreeMap::new(),
        }
    }

    /// Takes notice of an event. Returns whether it may have changed how many pages a device holds.
    pub fn apply(&mut self, event: &Event) -> bool {
        let place = match (event.kind, event.device) {
            (EventKind::ToDevice, Some(device)) => u16::from(device.0),
            (EventKind::ToSystem | EventKind::Freed, _) | (EventKind::Collapsed, None) => SYSTEM,
            // Duplicates are in the device's memory all the while.
            _ => return false,
        };
        for page in event.within(self.limit).pages() {
            // What is freed may be large, and never have been on a device.
            let block = match (place, self.blocks.get_mut(&page.block())) {
                (_, Some(block)) => block,
                (SYSTEM, None) => continue,
                (_, None) => self
                    .blocks
                    .entry(page.block())
                    .or_insert_with(|| Box::new([SYSTEM; BLOCK_PAGES as usize])),
            };
            let old = std::mem::replace(&mut block[page.index_in_block()], place);
            for (place, change) in [(old, u64::MAX), (place, 1)] {
                if let Ok(device) = u8::try_from(place) {
                    let pages = self.pages.entry(DeviceId(device)).or_default();
                    *pages = pages.wrapping_add(change);
                }
            }
        }
        true
    }

    /// Pages on each device that ever held any.
    pub fn pages(&self) -> &BTreeMap<DeviceId, u64> {
        &self.pages
    }
}

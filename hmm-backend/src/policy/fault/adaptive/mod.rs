//! Learns, for each block and over time, how many neighbours a fault should bring, whether it should follow a stride, or
//! whether the device should use the page in system memory in place. It learns from where the next fault is, from what was
//! evicted before it was used, and from pages that come back. `docs/policies.md` explains each mechanism and names its source.

mod neighbours;
mod region;
mod tracked;
mod window;

use std::time::Duration;

use neighbours::Neighbours;
use region::{Returned, Room};
use tracked::Tracked;

use super::density::BIG_PAGE;
use super::sequential::Sequential;
use crate::pages::{DeviceId, Page, PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy};

/// Accesses in place to 64 KiB between two reports. Pages pay off after 40 of them or more on a link like PCIe 4.0: the policy
/// hears of it soon enough.
const REPORT: u32 = 32;
/// Pages that `sequential` fetches ahead of a stride, and the equal strides before it does: its defaults.
const STREAM: (u32, u32) = (32, 2);
/// A device's memory counts as full from the first time that it is short of frames until more than this part of it is free:
/// evictions free up to an eighth of a small memory at a time.
const ROOM: u32 = 8;

/// While there is room, a fault brings at least `1 << ROOMY` pages, 512 KiB: the bytes cost less than a few faults.
const ROOMY: u8 = 7;
/// A fault that moves fewer pages than this moves single pages: too few to pay for the fault, if they come back soon.
const FEW: usize = 8;

/// The adaptive policy. Its state is bounded: a record of about 1 KiB for each of the last 8,192 blocks.
#[derive(Debug)]
pub struct Adaptive {
    regions: Tracked,
    streams: Sequential,
    /// The devices whose memory is full, as bits.
    full: u64,
    neighbours: Neighbours,
}

impl Default for Adaptive {
    fn default() -> Self {
        Adaptive {
            regions: Tracked::default(),
            streams: Sequential::new(STREAM.0, STREAM.1),
            full: 0,
            neighbours: Neighbours::default(),
        }
    }
}

impl Adaptive {
    /// Returns whether a device's memory is full, now that `wanted` frames of it are needed.
    fn is_full(&mut self, device: DeviceId, wanted: u32, view: &BlockView<'_>) -> bool {
        let bit = 1 << (device.0 % 64);
        if wanted > view.free_frames {
            self.full |= bit;
        } else if view.free_frames > view.capacity / ROOM {
            self.full &= !bit;
        }
        self.full & bit != 0
    }

    /// A device faults.
    fn device_faults(
        &mut self,
        device: DeviceId,
        fault: &BlockFault,
        view: &BlockView<'_>,
    ) -> Advice {
        let now = nanos(fault.now);
        self.neighbours.faulted();
        let full = self.is_full(device, fault.pages.count() as u32, view);
        let system = view.resident(Place::System);
        let mut advice = self.streams.advise(fault, view);
        // Pages of other blocks may wait there: their own faults decide.
        advice.migrate.clear();
        let in_vain = self.neighbours.in_vain(view.capacity);
        let region = self.regions.region(fault.block);
        region.lost(&system, now);
        let index = fault.pages.first().unwrap_or_default();
        region.missed(index);
        if !in_vain || region.last_window_was_used() {
            region.to_device.faulted(index);
        }
        let least = if full || in_vain { 0 } else { ROOMY };
        let mut around = region.to_device.around(index, least);
        if in_vain && around.len() <= BIG_PAGE {
            around = index..index + 1;
        }
        let around = PageSet::from_range(around);
        let absent = system.union(&view.untouched());
        let wanted = around.union(&advice.prefetch).intersection(&absent);
        let wanted = wanted.difference(&region.in_place(&system));
        let moving = wanted.union(&fault.pages);
        if moving.count() < FEW && region.waits(index) {
            region.use_in_place(&fault.pages, now);
            return Advice {
                stay: true,
                ..Advice::default()
            };
        }
        self.is_full(device, moving.count() as u32, view);
        let region = self.regions.region(fault.block);
        region.send(&moving, &fault.pages, now);
        advice.prefetch = moving.difference(&fault.pages);
        self.neighbours
            .brought(advice.prefetch.count() as u32, view.capacity);
        advice
    }

    /// A CPU faults.
    fn cpu_faults(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let mut advice = self.streams.advise(fault, view);
        let region = self.regions.region(fault.block);
        let mut moving = fault.pages.union(&advice.prefetch);
        for index in fault.pages.iter() {
            region.to_system.faulted(index);
            moving.insert_range(region.to_system.around(index, 0));
        }
        let there = PageSet::from_range(0..view.len()).difference(&view.resident(Place::System));
        advice.prefetch = moving.intersection(&there).difference(&fault.pages);
        region.pull(&advice.prefetch.difference(&view.untouched()));
        region.come_back(&moving, Returned::ByCpu, nanos(fault.now));
        advice
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl FaultPolicy for Adaptive {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        match fault.to {
            Place::Device(device) => self.device_faults(device, fault, view),
            Place::System => self.cpu_faults(fault, view),
        }
    }

    fn used(&mut self, page: Page) {
        if let Some(region) = self.regions.known(page.block())
            && region.used(page.index_in_block())
        {
            self.neighbours.used();
        }
    }

    fn remote_access_threshold(&self) -> Option<u32> {
        Some(REPORT)
    }

    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        let pages = seen.pages.intersection(&view.resident(Place::System));
        let room = match view.free_frames < view.capacity / ROOM {
            true => Room::Full,
            false => Room::Free,
        };
        let region = self.regions.region(seen.block);
        region.used_in_place(&pages, count, &view.link, room, nanos(seen.now))
    }

    fn freed(&mut self, pages: PageRange) {
        for part in pages.split_by_block() {
            if let Some(region) = self.regions.known(part.start.block()) {
                region.freed(&PageSet::of(part));
            }
        }
    }
}

#[cfg(test)]
mod tests;

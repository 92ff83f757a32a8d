//! Learns, for each 64 KiB of each block and over time, whether a fault should bring its page, the page's neighbours or
//! the next pages of a stride, or should leave the page in system memory for the device to use in place. It learns from
//! returns: pages that it sent to a device and that a CPU or an eviction brought back. `docs/policies.md` explains each
//! mechanism and names its source.

mod neighbours;
mod region;
mod tracked;

use std::time::Duration;

use neighbours::Neighbours;
use region::{Returned, groups_of};
use tracked::Tracked;

use super::sequential::Sequential;
use crate::pages::{DeviceId, PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy};

/// Accesses in place to 64 KiB between two reports. A page that moves alone pays off after 60 of them on a link like PCIe
/// 4.0: the policy hears of it within half of that.
const REPORT: u32 = 32;
/// Pages that `sequential` fetches ahead of a stride, and the equal strides before it does: its defaults.
const STREAM: (u32, u32) = (32, 2);
/// A device's memory counts as full from the first time that it is short of frames until more than this part of it is free:
/// evictions free up to an eighth of a small memory at a time.
const ROOM: u32 = 8;
/// A page that returns after an eviction weighs as much as this many pages that a device uses for the first time: with
/// more returns than one in four, new pages push out pages that are still in use.
const RETURN: i32 = 4;
/// Bound of the balance of new pages and returns: what a new phase needs to overrule the one before.
const MOST_BALANCE: i32 = 256;

/// The adaptive policy. Its state is bounded: a record of about 1 KiB for each of the last 8,192 blocks.
#[derive(Debug)]
pub struct Adaptive {
    regions: Tracked,
    neighbours: Neighbours,
    streams: Sequential,
    /// New pages less returns after evictions. While it is negative and device memory is full, pages that are new to a
    /// device are used in place until they prove hot: they would evict pages that return.
    balance: i32,
    /// The devices whose memory is full, as bits.
    full: u64,
}

impl Default for Adaptive {
    /// A full device memory is worth protecting until new pages have shown otherwise.
    fn default() -> Self {
        Adaptive {
            regions: Tracked::default(),
            neighbours: Neighbours::default(),
            streams: Sequential::new(STREAM.0, STREAM.1),
            balance: -MOST_BALANCE,
            full: 0,
        }
    }
}

impl Adaptive {
    fn shift_balance(&mut self, by: i32) {
        self.balance = (self.balance + by).clamp(-MOST_BALANCE, MOST_BALANCE);
    }

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
        let full = self.is_full(device, fault.pages.count() as u32, view);
        let system = view.resident(Place::System);
        let region = self.regions.region(fault.block);
        let lost = region.lost(&fault.pages, &system, nanos(fault.now));
        self.shift_balance(-RETURN * lost);
        let waits = self.waits(fault, view, full);
        let region = self.regions.region(fault.block);
        if fault.pages.difference(&waits).is_empty() {
            let new = region.count_new(&fault.pages);
            region.use_in_place(&fault.pages, nanos(fault.now));
            self.shift_balance(new);
            return Advice {
                stay: true,
                ..Advice::default()
            };
        }
        let (known, never) = (region.known(), waits.union(&region.in_place(&system)));
        let mut advice = self.bring(fault, view, &known, &never);
        // Pages of other blocks may wait there: their own faults decide.
        advice.migrate.clear();
        if advice.prefetch.count() + fault.pages.count() > view.free_frames as usize {
            // What is in use is worth more than what may be used: no more than 64 KiB push other pages out.
            advice.prefetch = advice.prefetch.intersection(&groups_of(&fault.pages));
        }
        let moving = advice.prefetch.union(&fault.pages);
        self.is_full(device, moving.count() as u32, view);
        let region = self.regions.region(fault.block);
        let new = region.count_new(&moving);
        region.send(&moving, nanos(fault.now));
        if full {
            self.shift_balance(new);
        }
        advice
    }

    /// Returns the pages of the block that the device uses in place until they prove hot.
    fn waits(&mut self, fault: &BlockFault, view: &BlockView<'_>, full: bool) -> PageSet {
        let admits = !full || self.balance >= 0;
        let system = view.resident(Place::System);
        let region = self.regions.region(fault.block);
        let waits = region.waiting(&system);
        match admits {
            true => waits,
            false => waits.union(&region.unproven(&system.union(&view.untouched()))),
        }
    }

    /// A CPU faults.
    fn cpu_faults(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let advice = self.bring(fault, view, &PageSet::EMPTY, &PageSet::EMPTY);
        let moving = advice.prefetch.union(&fault.pages);
        let region = self.regions.region(fault.block);
        region.come_back(&moving, Returned::ByCpu, nanos(fault.now));
        advice
    }

    /// Returns what to bring with the faulting pages: the next pages of strides, and neighbours; no pages of `never`.
    fn bring(
        &mut self,
        fault: &BlockFault,
        view: &BlockView<'_>,
        known: &PageSet,
        never: &PageSet,
    ) -> Advice {
        let mut advice = self.streams.advise(fault, view);
        let first = &mut self.regions.region(fault.block).first_faults;
        let near = self.neighbours.of(fault, view, first, known);
        advice.prefetch = advice.prefetch.union(&near).difference(never);
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

    fn remote_access_threshold(&self) -> Option<u32> {
        Some(REPORT)
    }

    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        let pages = seen.pages.intersection(&view.resident(Place::System));
        let region = self.regions.region(seen.block);
        region.used_in_place(&pages, count, &view.link, nanos(seen.now))
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

//! Learns, for each 64 KiB of each block and over time, whether a fault should bring its page, the page's neighbours or
//! the next pages of a stride, or should leave the page in system memory for the device to use in place. It learns from
//! returns: pages that it sent to a device and that a CPU or an eviction brought back. `docs/policies.md` explains each
//! mechanism and names its source.

mod neighbours;
mod region;
mod tracked;

use std::time::Duration;

use neighbours::Neighbours;
use region::Returned;
use tracked::Tracked;

use super::sequential::Sequential;
use crate::pages::{PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy};

/// Accesses in place to 64 KiB between two reports. A page that moves alone pays off after 61 of them on a link like PCIe
/// 4.0: the policy hears of it within half of that.
const REPORT: u32 = 32;
/// Pages that `sequential` fetches ahead of a stride, and the equal strides before it does: its defaults.
const STREAM: (u32, u32) = (32, 2);
/// Device memory counts as full when less than this part of it is free. Evictions free up to an eighth of a small memory
/// at a time, so a memory in which all is in use has some free frames most of the time.
const FULL: u32 = 16;
/// A page that returns after an eviction weighs as much as this many pages that a device uses for the first time: with
/// more returns than one in four, new pages push out pages that are still in use.
const RETURN: i32 = 4;
/// Bound of the balance of new pages and returns: what a new phase needs to overrule the one before.
const MOST_BALANCE: i32 = 256;

/// The adaptive policy. Its state is bounded: [`tracked::MOST_BLOCKS`] blocks, each with [`region::Region`].
#[derive(Debug)]
pub struct Adaptive {
    regions: Tracked,
    neighbours: Neighbours,
    streams: Sequential,
    /// New pages less returns after evictions. While it is negative and device memory is full, pages that are new to a
    /// device are used in place until they prove hot: they would evict pages that return.
    balance: i32,
}

impl Default for Adaptive {
    /// A full device memory is worth protecting until new pages have shown otherwise.
    fn default() -> Self {
        Adaptive {
            regions: Tracked::default(),
            neighbours: Neighbours::default(),
            streams: Sequential::new(STREAM.0, STREAM.1),
            balance: -MOST_BALANCE,
        }
    }
}

impl Adaptive {
    fn shift_balance(&mut self, by: i32) {
        self.balance = (self.balance + by).clamp(-MOST_BALANCE, MOST_BALANCE);
    }

    /// A device faults.
    fn device_faults(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let full = view.free_frames < view.capacity / FULL;
        let admits = !full || self.balance >= 0;
        let system = view.resident(Place::System);
        let outside = system.union(&view.untouched());
        let region = self.regions.region(fault.block);
        let lost = region.lost(&fault.pages, &system, nanos(fault.now));
        let mut waits = region.waiting(&system);
        if !admits {
            waits = waits.union(&region.unproven(&outside));
        }
        let new = region.count_new(&fault.pages);
        self.shift_balance(-RETURN * lost);
        if fault.pages.difference(&waits).is_empty() {
            self.shift_balance(new);
            self.regions
                .region(fault.block)
                .use_in_place(&fault.pages, nanos(fault.now));
            return Advice {
                stay: true,
                ..Advice::default()
            };
        }
        let region = self.regions.region(fault.block);
        let known = region.known();
        let never = waits.union(&region.in_place(&system));
        let mut advice = self.bring(fault, view, &known, &never);
        // Pages of other blocks may wait there: their own faults decide.
        advice.migrate.clear();
        let moving = advice.prefetch.union(&fault.pages);
        let region = self.regions.region(fault.block);
        let new = region.count_new(&moving);
        region.send(&moving, nanos(fault.now));
        if full {
            self.shift_balance(new);
        }
        advice
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
            Place::Device(_) => self.device_faults(fault, view),
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

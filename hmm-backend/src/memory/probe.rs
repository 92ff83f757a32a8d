//! Tests whether this kernel reports correctly which pages it has moved.

use std::sync::Barrier;
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::presence::PageTables;
use super::ranged;
use crate::host::limits::{Refusal, Resource};
use crate::memory::mmap::MemoryMap;
use crate::memory::uffd::{FaultKinds, Uffd};
use crate::pages::{BLOCK_PAGES, Error, PAGE_SIZE};

/// The result of moving pages with `UFFDIO_MOVE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveProbe {
    /// How often two threads moved neighbouring parts of one huge page at the same time.
    pub rounds: u32,
    /// Pages that moved although the kernel reported that they did not.
    pub unreported: u32,
}

/// Number of pages that each of two threads moves. The first thread splits the huge page, and the second one finds it
/// locked.
const PAGES: u64 = 16;

/// Moves parts of huge pages until `limit` is over or a page has moved without the kernel reporting it. Linux 6.18
/// does so now and then. This does no harm, because Hmmvisor checks where each page is. Finding none proves nothing:
/// on a busy machine the two threads rarely meet, and without huge pages the error cannot occur.
pub fn probe_moves(limit: Duration) -> Result<MoveProbe, Error> {
    let block = BLOCK_PAGES * PAGE_SIZE;
    let made = MemoryMap::new(block, "hmm-probe")?;
    let guest = MemoryMap::new(block, "hmm-probe")?;
    made.prefer_huge_pages();
    guest.prefer_huge_pages();
    let arrival = Uffd::for_faults()?;
    arrival.register(guest.start(), block, FaultKinds::Missing)?;
    let device = || -> Result<(MemoryMap, Uffd), Error> {
        let (mapping, uffd) = (
            MemoryMap::new(block, "hmm-probe")?,
            Uffd::for_device_memory()?,
        );
        uffd.register(mapping.start(), block, FaultKinds::Missing)?;
        Ok((mapping, uffd))
    };
    let devices = [device()?, device()?];
    let tables = PageTables::open();
    let begin = Instant::now();
    let mut probe = MoveProbe {
        rounds: 0,
        unreported: 0,
    };
    while probe.unreported == 0 && begin.elapsed() < limit {
        made.populate(0, block)?;
        // SAFETY: the mapping belongs to this function and is present. The bytes are not zero, because splitting a
        // huge page of zeros would leave no pages to move.
        unsafe { std::ptr::write_bytes(made.start() as *mut u8, 1, block as usize) };
        // SAFETY: both mappings belong to this function.
        let whole = unsafe { arrival.move_pages(guest.start(), made.start(), block) };
        if whole.error.is_none() {
            probe.rounds += 1;
            // Take another part each time, so that the threads meet in different ways.
            let first = u64::from(probe.rounds) * 7 % (BLOCK_PAGES - devices.len() as u64 * PAGES);
            let start = Barrier::new(devices.len());
            let half = |which: u64| {
                let src = guest.address((first + which * PAGES) * PAGE_SIZE);
                let (device, uffd) = &devices[which as usize];
                start.wait();
                move_away(&tables, uffd, src, device.start())
            };
            let unreported = std::thread::scope(|scope| {
                let other = Builder::new().spawn_scoped(scope, || half(1));
                // Check this before waiting for the other thread at the barrier.
                let other = other.map_err(|error| Refusal::new(Resource::Thread, error))?;
                let own = half(0);
                Ok(own + other.join().unwrap_or(0))
            });
            let unreported: u32 = unreported.map_err(Error::Thread)?;
            probe.unreported += unreported;
        }
        for mapping in [&made, &guest, &devices[0].0, &devices[1].0] {
            // SAFETY: the contents are no longer needed. If the call fails, pages stay in the way of the next round,
            // which then finds nothing.
            let _ = unsafe { mapping.discard(0, block) };
        }
    }
    Ok(probe)
}

/// Moves [`PAGES`] pages. Returns how many of them moved although the kernel reported that they did not.
fn move_away(tables: &PageTables, uffd: &Uffd, src: u64, dst: u64) -> u32 {
    let there = |address| tables.look(address).is_ok_and(|presence| presence.there);
    let mut unreported = 0;
    let failed = |at: u32, _| {
        let offset = u64::from(at) * PAGE_SIZE;
        unreported += u32::from(there(dst + offset) && !there(src + offset));
    };
    ranged::each(PAGES as u32, failed, |at, left| {
        let (offset, len) = (u64::from(at) * PAGE_SIZE, u64::from(left) * PAGE_SIZE);
        // SAFETY: the caller made both ranges for this call.
        unsafe { uffd.move_pages(dst + offset, src + offset, len) }
    });
    unreported
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of unreported pages depends on the kernel, so it is not checked.
    #[test]
    fn the_probe_comes_to_an_end() {
        let moves = crate::memory::probe_userfaultfd().unwrap().remap;
        let probe = probe_moves(Duration::from_millis(50)).unwrap();
        assert_eq!(probe.rounds > 0, moves);
    }
}

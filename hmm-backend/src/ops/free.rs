//! Frees pages whose contents the guest no longer needs.

use crate::fault::Faults;
use crate::migrate::{Core, Refused};
use crate::observe::{Counter, Event, EventKind};
use crate::pages::time::Tick;
use crate::pages::{Error, PageRange, PageSet};
use crate::residency::{FolioLock, Residency, Word};

/// See [`crate::Backend::guest_freed`].
pub(crate) fn guest_freed(faults: &Faults, range: PageRange) -> Result<u64, Error> {
    let core = &faults.core;
    core.check_range(range)?;
    let mut freed = 0;
    let mut refused = None;
    for part in range.split_by_block() {
        freed += free_in_block(core, part, &mut refused);
        faults.with_policy(part.start.block(), |policy| policy.freed(part));
    }
    core.recorder.add(Counter::PagesFreed, freed);
    core.recorder
        .event(|| Event::new(core.clock.now(), EventKind::Freed, range));
    match refused {
        None => Ok(freed),
        Some((range, error)) => Err(Error::Discard { range, error }),
    }
}

fn free_in_block(core: &Core, part: PageRange, refused: &mut Option<Refused>) -> u64 {
    let mut freed = 0;
    let mut system = Vec::new();
    let mut page = part.start;
    while page < part.end {
        // Never sleep with locks held: two frees that wait for each other's pages would deadlock.
        if core.table.locked(page) {
            freed += free_system(core, std::mem::take(&mut system), refused);
        }
        let lock = match core.table.try_lock(page) {
            crate::residency::TryLock::Locked(lock) => lock,
            crate::residency::TryLock::Busy if system.is_empty() => core.lock_waiting(page),
            crate::residency::TryLock::Busy => continue,
        };
        let next = lock.range().end.min(part.end);
        match lock.word().residency() {
            Residency::System if lock.word().pins() > 0 => {
                core.recorder.add(Counter::PagesSkippedPinned, 1);
            }
            Residency::System => lock.carve(&|range| range.overlap(part), &mut system),
            Residency::Device(_) | Residency::Coherent(_) | Residency::Duplicated(_) => {
                // No other lock may be held when the driver is called.
                freed += free_system(core, std::mem::take(&mut system), refused);
                let inside = |range: PageRange| range.overlap(part);
                freed += core.drop_on_device(lock, inside, Word::to_untouched, refused);
            }
            Residency::Exclusive(_) => {
                core.drop_exclusive(lock, Word::to_untouched);
                freed += 1;
            }
            Residency::Poisoned => {
                lock.publish_pages(|word| word.to_untouched());
                freed += 1;
            }
            Residency::Untouched => {}
        }
        page = next;
    }
    freed + free_system(core, system, refused)
}

/// Gives the pages' memory back to the host, with one call for neighbouring pages. Returns how many pages are
/// free; those that the host does not take keep their contents, and `refused` gets the error.
fn free_system(core: &Core, mut locks: Vec<FolioLock<'_>>, refused: &mut Option<Refused>) -> u64 {
    core.invalidate_mirrors(locks.iter_mut());
    let mut pages = PageSet::EMPTY;
    for lock in &locks {
        pages = pages.union(&PageSet::of(lock.range()));
    }
    let mut kept = PageSet::EMPTY;
    if let Some(first) = locks.first() {
        let block = first.head().block();
        for run in pages.runs() {
            let range = PageRange::new(block.page(run.start), block.page(run.end - 1).plus(1));
            if let Err(error) = core.guest.discard(range) {
                kept.insert_range(run);
                *refused = Some((range, error));
            }
        }
    }
    for lock in locks {
        if kept.contains(lock.head().index_in_block()) {
            continue;
        }
        // Shared memory never faults, so it stays in system memory, as zeros.
        let shared = core.guest.is_shared(lock.head());
        lock.publish_pages(|word| match shared {
            true => word.to_system(Tick::default()),
            false => word.to_untouched(),
        });
    }
    pages.difference(&kept).count() as u64
}

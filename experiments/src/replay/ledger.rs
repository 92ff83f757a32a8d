//! The driver of a replay's devices: does nothing to migrations but keep accounts of them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use hmm_backend::driver::{
    DeviceFolio, Driver, FaultError, Finalized, MigrateError, ToDevice, ToSystem,
};
use hmm_backend::observe::Cause;
use hmm_backend::pages::{BLOCK_PAGES, Block, PAGE_SIZE, Page, PageRange, Place};

use zerocopy::FromZeros;

use crate::returns::Returns;

/// Set from the prefetch of a page until the page is accessed or moves on. The other bits are its [`Returns`].
const UNUSED: u32 = 1 << 31;

/// Four bytes for each page, and sums. Pages that nothing happens to take no memory.
pub(super) struct Ledger {
    pages: Box<[AtomicU32]>,
    /// A bit for each block in which any page may have contents.
    blocks: Box<[AtomicU64]>,
    transfers: AtomicU64,
    to_device: AtomicU64,
    to_system: AtomicU64,
    between: AtomicU64,
    unused: AtomicU64,
    /// Pages that have thrashed. They are counted when they begin to, because looking at all pages at the end takes long.
    thrashing: AtomicU64,
}

impl Ledger {
    pub(super) fn new(pages: u32) -> Ledger {
        Ledger {
            pages: zeroed(pages as usize),
            blocks: zeroed(pages.div_ceil(64 * BLOCK_PAGES as u32) as usize),
            transfers: AtomicU64::new(0),
            to_device: AtomicU64::new(0),
            to_system: AtomicU64::new(0),
            between: AtomicU64::new(0),
            unused: AtomicU64::new(0),
            thrashing: AtomicU64::new(0),
        }
    }

    /// Notes that the pages get contents.
    pub(super) fn touched(&self, range: PageRange) {
        for part in range.split_by_block() {
            let block = part.start.block().0;
            let (word, bit) = (&self.blocks[(block / 64) as usize], 1 << (block % 64));
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, Relaxed);
            }
        }
    }

    /// Returns the parts of a range, block by block, that may have contents.
    pub(super) fn with_contents(&self, range: PageRange) -> Vec<PageRange> {
        let mut parts = Vec::new();
        let first = range.start.block().0;
        let end = range.end.0.div_ceil(BLOCK_PAGES as u32);
        for word in first / 64..end.div_ceil(64) {
            let mut bits = self.blocks[word as usize].load(Relaxed);
            while bits != 0 {
                let start = Block(word * 64 + bits.trailing_zeros()).first_page();
                bits &= bits - 1;
                let (start, end) = (
                    range.start.max(start),
                    range.end.min(start.plus(BLOCK_PAGES as u32)),
                );
                if start < end {
                    parts.push(PageRange::new(start, end));
                }
            }
        }
        parts
    }

    /// Notes that the page is accessed.
    #[inline]
    pub(super) fn used(&self, page: Page) {
        let cell = &self.pages[page.0 as usize];
        let state = cell.load(Relaxed);
        if state & UNUSED != 0 {
            cell.store(state & !UNUSED, Relaxed);
        }
    }

    /// Notes that pages leave where they were. Those that were brought there and not accessed since were unused.
    fn leave(&self, pages: PageRange) {
        for page in pages.pages() {
            if self.pages[page.0 as usize].load(Relaxed) & UNUSED != 0 {
                add(&self.unused, 1);
            }
        }
    }

    /// Notes that pages are freed: their next contents have another history. Without pins, all contents of a whole block are gone.
    pub(super) fn freed(&self, part: PageRange, pins: usize) {
        for page in part.pages() {
            let cell = &self.pages[page.0 as usize];
            let returns = Returns::from_bits(cell.load(Relaxed));
            cell.store(returns.freed().bits(), Relaxed);
        }
        if pins == 0 && u64::from(part.len()) == BLOCK_PAGES {
            let block = part.start.block().0;
            self.blocks[(block / 64) as usize].fetch_and(!(1 << (block % 64)), Relaxed);
        }
    }

    /// Notes that pages come somewhere, also pages without contents, which have left no place.
    fn arrive(&self, cause: Cause, pages: PageRange, change: impl Fn(Returns) -> Returns) {
        self.touched(pages);
        let unused = match cause {
            Cause::Prefetch => UNUSED,
            Cause::Demand | Cause::Eviction | Cause::User | Cause::Detach => 0,
        };
        for page in pages.pages() {
            let cell = &self.pages[page.0 as usize];
            let returns = Returns::from_bits(cell.load(Relaxed));
            let changed = change(returns);
            // A page that has thrashed once stays marked.
            if changed.is_thrashing() && !returns.is_thrashing() {
                add(&self.thrashing, 1);
            }
            cell.store(changed.bits() | unused, Relaxed);
        }
    }

    /// Returns the number of transfers so far, and that of their pages.
    pub(super) fn transferred(&self) -> (u64, u64) {
        let all = [&self.to_device, &self.to_system, &self.between];
        let pages = all.iter().map(|pages| pages.load(Relaxed)).sum();
        (self.transfers.load(Relaxed), pages)
    }

    /// Returns the bytes transferred to devices, to the system, and from one device to another.
    pub(super) fn bytes(&self) -> [u64; 3] {
        let all = [&self.to_device, &self.to_system, &self.between];
        all.map(|pages| pages.load(Relaxed) * PAGE_SIZE)
    }

    pub(super) fn unused(&self) -> u64 {
        self.unused.load(Relaxed)
    }

    pub(super) fn thrashing(&self) -> u64 {
        self.thrashing.load(Relaxed)
    }
}

/// Returns this many zeros, which take no memory until something is written.
pub(super) fn zeroed<T: FromZeros>(length: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(length).expect("sizes have been checked")
}

/// Adds to a sum. One thread at a time drives a replay, so this needs no atomic addition, which takes ten times as long.
fn add(sum: &AtomicU64, n: u64) {
    sum.store(sum.load(Relaxed) + n, Relaxed);
}

impl Driver for Ledger {
    fn migrate_to_device(&self, migration: ToDevice<'_>) -> Result<Finalized, MigrateError> {
        let mut pages = 0;
        for range in migration.contents() {
            self.leave(range);
            pages += u64::from(range.len());
        }
        let sum = match migration.source() {
            Place::System => &self.to_device,
            Place::Device(_) => &self.between,
        };
        for (cause, range) in migration.causes() {
            self.arrive(cause, range, |returns| match migration.source() {
                Place::System => returns.arrived(),
                // The page was in device memory all the while.
                Place::Device(_) => returns,
            });
        }
        add(sum, pages);
        add(&self.transfers, u64::from(pages > 0));
        migration.run()
    }

    fn migrate_to_ram(&self, migration: ToSystem<'_>) -> Result<Finalized, FaultError> {
        let mut pages = 0;
        for range in migration.contents() {
            pages += u64::from(range.len());
            // A duplicate leaves nothing.
            if !migration.keeps_frames() {
                self.leave(range);
            }
        }
        if !migration.keeps_frames() {
            for (cause, range) in migration.causes() {
                self.arrive(cause, range, Returns::left);
            }
        }
        add(&self.to_system, pages);
        add(&self.transfers, u64::from(pages > 0));
        migration.run()
    }

    fn page_free(&self, _: DeviceFolio) {}
}

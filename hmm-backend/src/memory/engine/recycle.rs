//! Engine `copy` with a kernel that can move pages. A guest page that migrates to a device is moved into a slot of a
//! staging area, atomically for all CPUs, and copied from there. The slot keeps the page. The next contents that come
//! back are copied into such a used page, which is then moved into the guest: a new page from `UFFDIO_COPY` would
//! cost more than the copy itself.
//!
//! The area is bounded and counts as memory of the VMM. A slot's page is overwritten completely before it is moved to
//! a guest, so the guest never sees its old contents.

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::memory::buddy::Buddy;
use crate::memory::kernel::{Effect, Kernel, KernelCall, bytes};
use crate::memory::mmap::MemoryMap;
use crate::memory::ranged::EngineError;
use crate::memory::uffd::{FaultKinds, Uffd};
use crate::pages::{Error, Frame, MAX_ORDER, PAGE_SIZE, PageRange, PageSet};

pub(in crate::memory) struct Recycler {
    kernel: Kernel,
    area: MemoryMap,
    /// Slots are filled by moves, and the destination of a move must be registered.
    uffd: Uffd,
    slots: Mutex<Slots>,
    returned: Condvar,
}

/// The slots that no thread uses at the moment.
struct Slots {
    /// Slots without a page.
    vacant: Buddy,
    /// Slots with a page whose contents are dead.
    filled: Buddy,
    /// Number of threads that wait for a slot.
    waiting: u32,
}

/// `1 << order` neighbouring slots used by one thread. The thread only makes kernel calls and copies before it
/// returns them. Therefore a thread that waits for slots waits only briefly, and a deadlock cannot arise.
#[derive(Clone, Copy)]
struct Piece {
    first: Frame,
    order: u8,
}

impl Piece {
    fn pages(self) -> u32 {
        1 << self.order
    }
}

/// For smaller pieces `UFFDIO_COPY` is cheaper, because a move has a fixed cost.
const WORTHWHILE_ORDER: u8 = 3;

impl Recycler {
    pub(in crate::memory) fn new(bytes: u64, kernel: Kernel) -> Result<Recycler, Error> {
        let slots = bytes.div_ceil(PAGE_SIZE).min(u32::MAX.into()) as u32;
        let area = MemoryMap::new(u64::from(slots) * PAGE_SIZE, "hmm-recycled")?;
        let uffd = Uffd::for_device_memory()?;
        uffd.register(area.start(), area.len(), FaultKinds::Missing)?;
        Ok(Recycler {
            kernel,
            area,
            uffd,
            slots: Mutex::new(Slots {
                vacant: Buddy::new(slots),
                filled: Buddy::taken(slots),
                waiting: 0,
            }),
            returned: Condvar::new(),
        })
    }

    /// Moves pages away from the guest at `src` and copies their contents to `dst`. `failed` gets the index and error
    /// of each page that could not be moved.
    ///
    /// # Safety
    /// The caller must have the right to take the pages, and must own the memory at `dst`.
    pub(in crate::memory) unsafe fn take(
        &self,
        pages: PageRange,
        src: u64,
        dst: u64,
        mut failed: impl FnMut(u32, EngineError),
    ) {
        let mut at = 0;
        while at < pages.len() {
            let piece = match self.vacant(pages.len() - at) {
                Ok(piece) => piece,
                Err(error) => return (at..pages.len()).for_each(|at| failed(at, error)),
            };
            let slot = self.address(piece);
            let part = PageRange::with_len(pages.start.plus(at), piece.pages());
            let mut missed = PageSet::EMPTY;
            let mut in_the_way = PageSet::EMPTY;
            let miss = |i: u32, error| {
                missed.insert(i as usize);
                if error == EngineError::InTheWay {
                    in_the_way.insert(i as usize);
                }
                failed(at + i, error);
            };
            let effect = Effect::Moved {
                src: src + bytes(at),
                dst: slot,
            };
            // No CPU sleeps for a slot, so late arrivals need no wake-up.
            let late = |_| ();
            self.kernel
                .each(KernelCall::Take, part, effect, miss, late, |i, left| {
                    // SAFETY: the caller gives the source away; the slots are vacant and used by this thread only.
                    unsafe {
                        let (to, from) = (slot + bytes(i), src + bytes(at + i));
                        self.uffd.move_pages(to, from, bytes(left))
                    }
                });
            let moved = PageSet::from_range(0..piece.pages() as usize).difference(&missed);
            for run in moved.runs() {
                let (start, len) = (run.start as u32, run.len() as u32);
                // SAFETY: these slots have just been filled (checked in the page tables if the kernel's answer left a
                // doubt) and are used by this thread only; the caller vouches for `dst`.
                unsafe { copy(slot + bytes(start), dst + bytes(at + start), bytes(len)) };
            }
            self.put(piece, &moved.union(&in_the_way));
            at += piece.pages();
        }
    }

    /// Copies contents from `src` into recycled pages and moves those into the guest at `dst`, where `guest` wakes
    /// the CPUs that wait for them. `failed` gets the pages that could not be moved; `late` gets those that moved
    /// although the kernel reported an error, and whose CPUs still sleep. Stops when no recycled page is left.
    /// Returns how many pages it has handled.
    ///
    /// # Safety
    /// The caller must have the right to fill the missing pages at `dst`, and `src` must be readable.
    pub(in crate::memory) unsafe fn give(
        &self,
        guest: &Uffd,
        pages: PageRange,
        src: u64,
        dst: u64,
        mut failed: impl FnMut(u32, EngineError),
        mut late: impl FnMut(u32),
    ) -> u32 {
        let mut at = 0;
        while at < pages.len() {
            let Some(piece) = self.filled(pages.len() - at) else {
                break;
            };
            let slot = self.address(piece);
            let part = PageRange::with_len(pages.start.plus(at), piece.pages());
            // The pages are overwritten completely: none of their old contents gets into the guest.
            // SAFETY: the slots are filled and used by this thread only; the caller vouches for `src`.
            unsafe { copy(src + bytes(at), slot, bytes(piece.pages())) };
            let mut left_over = PageSet::EMPTY;
            let miss = |i: u32, error| {
                let error = match error {
                    // The slot's page is lost, but the contents are still at `src`: the caller can try again.
                    EngineError::Lost => EngineError::Busy,
                    error => {
                        if self.has_page(slot + bytes(i)) {
                            left_over.insert(i as usize);
                        }
                        error
                    }
                };
                failed(at + i, error);
            };
            let effect = Effect::Moved {
                src: slot,
                dst: dst + bytes(at),
            };
            let late = |i| late(at + i);
            self.kernel
                .each(KernelCall::Give, part, effect, miss, late, |i, left| {
                    // SAFETY: the slots are used by this thread only; the caller vouches for `dst`.
                    unsafe {
                        let (to, from) = (dst + bytes(at + i), slot + bytes(i));
                        guest.move_pages(to, from, bytes(left))
                    }
                });
            self.put(piece, &left_over);
            at += piece.pages();
        }
        at
    }

    fn address(&self, piece: Piece) -> u64 {
        self.area.address(u64::from(piece.first.0) * PAGE_SIZE)
    }

    /// Returns at most `most` slots without pages; waits if no slot is free. If all free slots have pages, drops the
    /// pages of some; returns an error if the host refuses that.
    fn vacant(&self, most: u32) -> Result<Piece, EngineError> {
        let mut slots = self.lock();
        loop {
            for order in (0..=largest_order(most)).rev() {
                if let Some(first) = slots.vacant.alloc(order) {
                    return Ok(Piece { first, order });
                }
                if let Some(first) = slots.filled.alloc(order) {
                    drop(slots);
                    let piece = Piece { first, order };
                    let offset = u64::from(first.0) * PAGE_SIZE;
                    // SAFETY: the slots are used by this thread only, and their contents are dead.
                    let done = unsafe { self.area.discard(offset, PAGE_SIZE << order) };
                    return match done {
                        Ok(()) => Ok(piece),
                        Err(_) => {
                            self.put(piece, &self.still_filled(piece));
                            Err(EngineError::Busy)
                        }
                    };
                }
            }
            slots.waiting += 1;
            self.returned.wait(&mut slots);
            slots.waiting -= 1;
        }
    }

    /// The slots of a piece that still have a page after the call to drop them all has failed.
    fn still_filled(&self, piece: Piece) -> PageSet {
        let first = self.address(piece);
        let has_page = |i: &usize| self.has_page(first + bytes(*i as u32));
        (0..piece.pages() as usize).filter(has_page).collect()
    }

    /// Whether a slot has a page. A slot whose state cannot be read counts as vacant, because copying into one
    /// without a page would raise `SIGBUS`.
    fn has_page(&self, slot: u64) -> bool {
        let look = self.kernel.tables().look(slot);
        look.is_ok_and(|presence| presence.there)
    }

    /// Returns at most `most` slots with pages to recycle, or `None` if there are none.
    fn filled(&self, most: u32) -> Option<Piece> {
        let mut slots = self.lock();
        (WORTHWHILE_ORDER..=largest_order(most))
            .rev()
            .find_map(|order| {
                let first = slots.filled.alloc(order)?;
                Some(Piece { first, order })
            })
    }

    /// Returns the slots of a piece; those with index in `filled` have a page.
    fn put(&self, piece: Piece, filled: &PageSet) {
        let count = filled.count() as u32;
        let mut slots = self.lock();
        if count == piece.pages() {
            slots.filled.free(piece.first, piece.order);
        } else if count == 0 {
            slots.vacant.free(piece.first, piece.order);
        } else {
            for i in 0..piece.pages() {
                let slot = Frame(piece.first.0 + i);
                if filled.contains(i as usize) {
                    slots.filled.free(slot, 0);
                } else {
                    slots.vacant.free(slot, 0);
                }
            }
        }
        let waiting = slots.waiting > 0;
        drop(slots);
        if waiting {
            self.returned.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock()
    }
}

fn largest_order(most: u32) -> u8 {
    (most.ilog2() as u8).min(MAX_ORDER)
}

/// # Safety
/// Both ranges must be present and must not overlap, and the destination must belong to the caller.
unsafe fn copy(src: u64, dst: u64, bytes: u64) {
    // SAFETY: the caller guarantees the conditions above.
    unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, bytes as usize) };
}

//! Engine `copy` where the kernel can move pages: a guest page that goes to a device is moved out into a slot of
//! a staging area, atomically towards every CPU, and copied from there. What is left in the slot is a page
//! that has been used before: the next contents that come back are copied into it, and it is moved
//! into the guest. A fresh page from `UFFDIO_COPY` costs more than the copy itself.
//!
//! The area is bounded, and counted as the VMM's own memory. A slot's page is overwritten as a whole
//! before it is moved to a guest, so what it held before is seen by nobody.

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::kernel::{Effect, Kernel, KernelCall, bytes};
use super::ranged::EngineError;
use crate::memory::buddy::Buddy;
use crate::memory::mmap::Mapping;
use crate::memory::uffd::Uffd;
use crate::pages::{Error, Frame, MAX_ORDER, PAGE_SIZE, PageRange, PageSet};

pub(super) struct Recycler {
    kernel: Kernel,
    area: Mapping,
    /// Slots are filled by moves, which need a registered destination.
    uffd: Uffd,
    slots: Mutex<Slots>,
    returned: Condvar,
}

/// The slots that nobody uses at the moment.
struct Slots {
    /// Without a page.
    vacant: Buddy,
    /// With a page whose contents are dead.
    filled: Buddy,
    /// Threads that wait for any slot.
    waiting: u32,
}

/// `1 << order` neighbouring slots in the hands of one thread, which does nothing but kernel calls and
/// copies until it returns them: whoever waits for slots does not wait for long, and not in a circle.
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

/// Smaller pieces come cheaper with `UFFDIO_COPY`: a move has its own fixed cost.
const WORTHWHILE_ORDER: u8 = 3;

impl Recycler {
    pub(super) fn new(bytes: u64, kernel: Kernel) -> Result<Recycler, Error> {
        let slots = bytes.div_ceil(PAGE_SIZE).min(u32::MAX.into()) as u32;
        let area = Mapping::new(u64::from(slots) * PAGE_SIZE, "hmm-recycled")?;
        let uffd = Uffd::for_device_memory()?;
        uffd.register(area.start(), area.len(), false)?;
        Ok(Recycler {
            kernel,
            area,
            uffd,
            slots: Mutex::new(Slots {
                vacant: Buddy::new(slots),
                filled: Buddy::empty(),
                waiting: 0,
            }),
            returned: Condvar::new(),
        })
    }

    /// Takes pages away from the guest at `src` and copies their contents to `dst`; `failed` gets those that
    /// could not be moved.
    ///
    /// # Safety
    /// The caller must own the decision to take the pages, and the memory at `dst`.
    pub(super) unsafe fn take(
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
            // No CPU sleeps for a slot.
            let late = |_| ();
            self.kernel
                .each(KernelCall::Take, part, effect, miss, late, |i, left| {
                    // SAFETY: the caller gives the source away; the slots are vacant and ours.
                    unsafe {
                        let (to, from) = (slot + bytes(i), src + bytes(at + i));
                        self.uffd.move_pages(to, from, bytes(left))
                    }
                });
            let moved = PageSet::from_range(0..piece.pages() as usize).difference(&missed);
            for run in moved.runs() {
                let (start, len) = (run.start as u32, run.len() as u32);
                // SAFETY: these slots have just been filled, by the page tables where the kernel's answer left a doubt, and
                // are ours; the caller vouches for `dst`.
                unsafe { copy(slot + bytes(start), dst + bytes(at + start), bytes(len)) };
            }
            self.put(piece, &moved.union(&in_the_way));
            at += piece.pages();
        }
    }

    /// Copies contents from `src` into recycled pages and moves those into the guest at `dst`, where `guest`
    /// wakes the CPUs that wait for them; `failed` gets those that could not be moved, `late` those that moved although the
    /// kernel said no, and whose CPUs still sleep. Ends when there is no page to recycle; returns how far it came.
    ///
    /// # Safety
    /// The caller must own the decision to fill the missing pages at `dst`, and `src` must be readable.
    pub(super) unsafe fn give(
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
            // Wholly overwritten: nothing of what the pages held before gets into the guest.
            // SAFETY: the slots are ours and filled; the caller vouches for `src`.
            unsafe { copy(src + bytes(at), slot, bytes(piece.pages())) };
            let mut left_over = PageSet::EMPTY;
            let miss = |i: u32, error| {
                let error = match error {
                    // The slot's page is gone; the contents are still at `src`.
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
                    // SAFETY: the slots are ours; the caller vouches for `dst`.
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

    /// Slots without pages, at most this many. Where all have one, some lose it; an error if the host does not take it.
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
                    // SAFETY: the slots are this thread's now, and their contents are dead.
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

    /// The slots of a piece that have a page, after a call that was to take them all away has failed.
    fn still_filled(&self, piece: Piece) -> PageSet {
        let first = self.address(piece);
        let has_page = |i: &usize| self.has_page(first + bytes(*i as u32));
        (0..piece.pages() as usize).filter(has_page).collect()
    }

    /// Whether a slot has a page. Copying into one that has none would be a `SIGBUS`, so a slot that cannot be looked at
    /// counts as vacant.
    fn has_page(&self, slot: u64) -> bool {
        let look = self.kernel.tables().look(slot);
        look.is_ok_and(|presence| presence.there)
    }

    /// Slots with pages to recycle, at most this many.
    fn filled(&self, most: u32) -> Option<Piece> {
        let mut slots = self.lock();
        (WORTHWHILE_ORDER..=largest_order(most))
            .rev()
            .find_map(|order| {
                let first = slots.filled.alloc(order)?;
                Some(Piece { first, order })
            })
    }

    /// Returns slots, of which those with index in `filled` have a page.
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
/// Both ranges must be present, the destination the caller's, and they must not overlap.
unsafe fn copy(src: u64, dst: u64, bytes: u64) {
    // SAFETY: as the caller says.
    unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst as *mut u8, bytes as usize) };
}

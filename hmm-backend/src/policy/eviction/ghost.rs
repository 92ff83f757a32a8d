//! The pages that an eviction policy has recently evicted, in bounded memory.

use super::lists::Lists;
use crate::pages::Frame;

/// No entry. An entry's index is stored plus one, so that an unused table is all zeros.
const NIL: u32 = 0;

#[derive(Clone, Copy, Debug)]
struct Entry {
    page: u32,
    /// The next entry with the same hash.
    next: u32,
}

/// Pages beyond the capacity until [`Ghost::trim`].
const SLACK: u32 = 64;

/// The last `capacity` pages that were inserted and not taken out since: a queue with a hash table.
#[derive(Debug)]
pub(super) struct Ghost {
    capacity: u32,
    /// The entries in use, by their index, the oldest first; then those that were taken out.
    order: Lists,
    entries: Box<[Entry]>,
    /// Entries that were ever in use.
    begun: u32,
    /// The first entry for each hash.
    buckets: Box<[u32]>,
}

const USED: usize = 0;
const FREE: usize = 1;

impl Ghost {
    pub(super) fn new(capacity: u32) -> Ghost {
        let buckets = (capacity as usize).next_power_of_two();
        let most = capacity.saturating_add(SLACK);
        // SAFETY: all fields are integers, for which zero is a valid value; entries are written before they are read.
        let entries = unsafe { Box::<[Entry]>::new_zeroed_slice(most as usize).assume_init() };
        Ghost {
            capacity,
            order: Lists::new(most, 2),
            entries,
            begun: 0,
            buckets: vec![NIL; buckets].into_boxed_slice(),
        }
    }

    fn bucket(&self, page: u32) -> usize {
        // Fibonacci hashing: the upper bits are the best mixed ones.
        let hash = page.wrapping_mul(0x9e37_79b9);
        ((u64::from(hash) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Removes the oldest pages until there are no more than the capacity.
    pub(super) fn trim(&mut self) {
        while self.order.frames_in(USED) > self.capacity
            && let Some(oldest) = self.order.oldest(USED)
        {
            self.take(self.entries[oldest.0 as usize].page);
        }
    }

    /// Inserts a page. There may be more than the capacity until [`Self::trim`].
    pub(super) fn insert(&mut self, page: u32) {
        self.take(page);
        let entry = match (self.order.oldest(FREE), self.order.oldest(USED)) {
            (Some(free), _) => free,
            (None, _) if (self.begun as usize) < self.entries.len() => {
                let fresh = Frame(self.begun);
                self.order.push(FREE, fresh, 0);
                self.begun += 1;
                fresh
            }
            (None, Some(oldest)) => {
                self.take(self.entries[oldest.0 as usize].page);
                oldest
            }
            (None, None) => return,
        };
        let bucket = self.bucket(page);
        let next = self.buckets[bucket];
        self.entries[entry.0 as usize] = Entry { page, next };
        self.buckets[bucket] = entry.0 + 1;
        self.order.move_to(USED, entry);
    }

    /// Takes a page out. Returns whether it was there.
    pub(super) fn take(&mut self, page: u32) -> bool {
        let bucket = self.bucket(page);
        let mut before = NIL;
        let mut at = self.buckets[bucket];
        while at != NIL {
            let entry = self.entries[at as usize - 1];
            if entry.page == page {
                match before {
                    NIL => self.buckets[bucket] = entry.next,
                    before => self.entries[before as usize - 1].next = entry.next,
                }
                self.order.move_to(FREE, Frame(at - 1));
                return true;
            }
            (before, at) = (at, entry.next);
        }
        false
    }
}

//! The pages that an eviction policy has recently evicted, in bounded memory.

/// No entry. An entry's index is stored plus one, so that an unused table is all zeros.
const NIL: u32 = 0;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The page plus one; 0 if it was taken out.
    page_plus_1: u32,
    /// The next entry with the same hash.
    next: u32,
}

/// The last `capacity` pages that were inserted, without those taken out: a ring with a hash table.
#[derive(Debug)]
pub(super) struct Ghost {
    ring: Box<[Entry]>,
    at: usize,
    /// The first entry for each hash.
    buckets: Box<[u32]>,
}

impl Ghost {
    pub(super) fn new(capacity: u32) -> Ghost {
        let buckets = (capacity as usize).next_power_of_two();
        // SAFETY: all fields are integers, for which zero is a valid value; it means an unused entry.
        let ring = unsafe { Box::<[Entry]>::new_zeroed_slice(capacity as usize).assume_init() };
        Ghost {
            ring,
            at: 0,
            buckets: vec![NIL; buckets].into_boxed_slice(),
        }
    }

    fn bucket(&self, page: u32) -> usize {
        // Fibonacci hashing: the upper bits are the best mixed ones.
        let hash = page.wrapping_mul(0x9e37_79b9);
        ((u64::from(hash) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Inserts a page. If the ring is full, the oldest page is removed.
    pub(super) fn insert(&mut self, page: u32) {
        if self.ring.is_empty() || page == u32::MAX {
            return;
        }
        self.take(page);
        let oldest = self.ring[self.at].page_plus_1;
        if oldest != 0 {
            self.take(oldest - 1);
        }
        let bucket = self.bucket(page);
        self.ring[self.at] = Entry {
            page_plus_1: page + 1,
            next: self.buckets[bucket],
        };
        self.buckets[bucket] = self.at as u32 + 1;
        self.at = (self.at + 1) % self.ring.len();
    }

    /// Takes a page out. Returns whether it was there.
    pub(super) fn take(&mut self, page: u32) -> bool {
        let bucket = self.bucket(page);
        let mut before = NIL;
        let mut entry = self.buckets[bucket];
        while entry != NIL {
            let Entry { page_plus_1, next } = self.ring[entry as usize - 1];
            if page_plus_1.checked_sub(1) == Some(page) {
                match before {
                    NIL => self.buckets[bucket] = next,
                    before => self.ring[before as usize - 1].next = next,
                }
                self.ring[entry as usize - 1].page_plus_1 = 0;
                return true;
            }
            (before, entry) = (entry, next);
        }
        false
    }
}

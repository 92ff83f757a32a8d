//! Which pages of a range are free: first fit over a sorted table of free extents.

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    first: u64,
    pages: u64,
}

/// Hands out runs of pages. The table of at most `N` free extents is all its memory.
pub struct Pages<const N: usize> {
    free: [Extent; N],
    extents: usize,
}

impl<const N: usize> Pages<N> {
    /// Nothing is free.
    pub const fn new() -> Self {
        Self {
            free: [Extent { first: 0, pages: 0 }; N],
            extents: 0,
        }
    }

    /// Takes a run of pages; the answer is the first one's number.
    pub fn take(&mut self, pages: u64) -> Option<u64> {
        let index = self.free[..self.extents]
            .iter()
            .position(|extent| extent.pages >= pages)?;
        let first = self.free[index].first;
        self.free[index].first += pages;
        self.free[index].pages -= pages;
        if self.free[index].pages == 0 {
            self.remove(index);
        }
        Some(first)
    }

    /// Makes pages free, merging them with free neighbours.
    ///
    /// Panics if some are free already, or if there are more than `N` extents.
    pub fn give(&mut self, first: u64, pages: u64) {
        let index = self.free[..self.extents].partition_point(|extent| extent.first < first);
        let below = index.checked_sub(1).map(|below| self.free[below]);
        let above = self.free[index..self.extents].first().copied();
        let below_end = below.map(|extent| extent.first + extent.pages);
        assert!(
            below_end.is_none_or(|end| end <= first)
                && above.is_none_or(|extent| first + pages <= extent.first),
            "pages {first}+{pages} are freed twice"
        );
        let joins_below = below_end == Some(first);
        let joins_above = above.is_some_and(|extent| extent.first == first + pages);
        match (joins_below, joins_above) {
            (true, true) => {
                self.free[index - 1].pages += pages + self.free[index].pages;
                self.remove(index);
            }
            (true, false) => self.free[index - 1].pages += pages,
            (false, true) => {
                self.free[index] = Extent {
                    first,
                    pages: pages + self.free[index].pages,
                }
            }
            (false, false) => {
                assert!(self.extents < N, "free memory is in more than {N} pieces");
                self.free.copy_within(index..self.extents, index + 1);
                self.free[index] = Extent { first, pages };
                self.extents += 1;
            }
        }
    }

    /// Number of free pages.
    pub fn available(&self) -> u64 {
        self.free[..self.extents]
            .iter()
            .map(|extent| extent.pages)
            .sum()
    }

    fn remove(&mut self, index: usize) {
        self.free.copy_within(index + 1..self.extents, index);
        self.extents -= 1;
    }
}

//! The addresses in commands: which there are, and which of them are pages of managed memory.

use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};

use super::error::CommandError;
use crate::guest_bytes::GuestBytes;

/// Bytes in a word: the unit of everything the accelerator computes with.
pub const WORD: u64 = 8;

/// The addresses that a command may name: managed memory, or an address space. Pages are numbered from the first one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// First address, page-aligned.
    pub base: u64,
    /// How many bytes, whole pages.
    pub bytes: u64,
}

impl Addresses {
    /// Whether the whole range is among them. An empty range must be, too, or touch their end.
    pub fn contains(&self, addr: u64, bytes: u64) -> bool {
        self.first_outside(addr, bytes).is_none()
    }

    /// The words `addr[0..len]`, if the address is aligned and all of them are among these addresses.
    pub fn words(&self, addr: u64, len: u64) -> Result<Words, CommandError> {
        if !addr.is_multiple_of(WORD) {
            return Err(CommandError::Argument);
        }
        // A saturated size is larger than any memory.
        match self.first_outside(addr, len.saturating_mul(WORD)) {
            None => Ok(Words { addr, len }),
            Some(outside) => Err(CommandError::Address(outside)),
        }
    }

    /// The bytes `addr[0..bytes]`, if all of them are among these addresses.
    pub fn span(&self, addr: u64, bytes: u64) -> Result<GuestBytes, CommandError> {
        match self.first_outside(addr, bytes) {
            None => Ok(GuestBytes { addr, len: bytes }),
            Some(outside) => Err(CommandError::Address(outside)),
        }
    }

    fn first_outside(&self, addr: u64, bytes: u64) -> Option<u64> {
        match addr.checked_sub(self.base) {
            Some(offset) if offset <= self.bytes => {
                (bytes > self.bytes - offset).then_some(self.base + self.bytes)
            }
            _ => Some(addr),
        }
    }

    /// The pages that lie wholly or partly in the range.
    pub fn pages(&self, addr: u64, bytes: u64) -> Result<PageRange, CommandError> {
        self.span(addr, bytes)?;
        let start = addr - self.base;
        let end = start + bytes;
        if bytes == 0 {
            return Ok(PageRange::with_len(page_at(start), 0));
        }
        Ok(PageRange::new(
            page_at(start),
            page_at(end.next_multiple_of(PAGE_SIZE)),
        ))
    }

    /// The page that holds this address, which must be among these.
    pub fn page(&self, addr: u64) -> Page {
        debug_assert!(self.contains(addr, 1));
        page_at(addr.wrapping_sub(self.base))
    }

    /// The address of a page.
    pub fn addr(&self, page: Page) -> u64 {
        self.base + page.offset()
    }
}

fn page_at(offset: u64) -> Page {
    Page((offset / PAGE_SIZE) as u32)
}

/// A run of aligned 64-bit words: `len` of them from `addr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Words {
    /// Address of the first one.
    pub addr: u64,
    /// How many there are.
    pub len: u64,
}

impl Words {
    /// No words.
    pub const NONE: Words = Words { addr: 0, len: 0 };

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The words `start..end` of this run.
    pub fn slice(&self, start: u64, end: u64) -> Words {
        debug_assert!(start <= end && end <= self.len);
        Words {
            addr: self.at(start),
            len: end - start,
        }
    }

    /// Address of the word at `index`.
    pub fn at(&self, index: u64) -> u64 {
        debug_assert!(index <= self.len);
        self.addr + index * WORD
    }

    /// The word at `index`.
    pub fn word(&self, index: u64) -> Words {
        self.slice(index, index + 1)
    }

    /// The rest after the first `n` words.
    pub fn skip(&self, n: u64) -> Words {
        self.slice(n, self.len)
    }

    /// Cuts the run into pieces of at most `n` words; yields each piece's first index and its length.
    pub fn chunks(&self, n: usize) -> impl Iterator<Item = (u64, usize)> + use<> {
        let len = self.len;
        (0..len.div_ceil(n as u64)).map(move |i| {
            let start = i * n as u64;
            (start, (len - start).min(n as u64) as usize)
        })
    }

    /// Whether a word is in both runs.
    pub fn overlaps(&self, other: &Words) -> bool {
        let before = |a: &Words, b: &Words| a.addr + a.len * WORD <= b.addr;
        !self.is_empty() && !other.is_empty() && !before(self, other) && !before(other, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANAGED: Addresses = Addresses {
        base: 0x1_0000_0000,
        bytes: 16 * PAGE_SIZE,
    };

    #[test]
    fn ranges_are_checked_without_overflow() {
        let end = MANAGED.base + MANAGED.bytes;
        assert!(MANAGED.contains(MANAGED.base, MANAGED.bytes));
        assert!(MANAGED.contains(end, 0));
        assert!(!MANAGED.contains(MANAGED.base, MANAGED.bytes + 1));
        assert!(!MANAGED.contains(MANAGED.base - 1, 1));
        assert!(!MANAGED.contains(MANAGED.base, u64::MAX));
        assert!(!MANAGED.contains(u64::MAX, u64::MAX));
        assert_eq!(
            MANAGED.words(MANAGED.base, u64::MAX),
            Err(CommandError::Address(end))
        );
        assert_eq!(MANAGED.words(8, 1), Err(CommandError::Address(8)));
        assert_eq!(
            MANAGED.words(MANAGED.base + 4, 1),
            Err(CommandError::Argument)
        );
    }

    #[test]
    fn partly_covered_pages_count() {
        let pages = |addr, bytes| {
            let range = MANAGED.pages(MANAGED.base + addr, bytes).unwrap();
            (range.start.0, range.end.0)
        };
        assert_eq!(pages(0, PAGE_SIZE), (0, 1));
        assert_eq!(pages(8, PAGE_SIZE), (0, 2));
        assert_eq!(pages(PAGE_SIZE - 8, 8), (0, 1));
        assert_eq!(pages(3 * PAGE_SIZE, 0), (3, 3));
        assert_eq!(pages(3 * PAGE_SIZE + 8, 0), (3, 3));
        assert_eq!(pages(0, MANAGED.bytes), (0, 16));
    }

    #[test]
    fn overlap_needs_a_common_word() {
        let run = |addr, len| Words { addr, len };
        assert!(run(0, 2).overlaps(&run(8, 1)));
        assert!(!run(0, 1).overlaps(&run(8, 1)));
        assert!(!run(0, 2).overlaps(&run(8, 0)));
    }
}

//! Guest memory that commands and requests name.

use hmm_backend::pages::PAGE_SIZE;

/// Bytes at a guest's addresses: `len` of them from `addr`. There need not be memory at all of these addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct GuestBytes {
    /// The address of the first one.
    pub addr: u64,
    /// How many there are.
    pub len: u64,
}

impl GuestBytes {
    /// `len` bytes from `addr`.
    pub fn new(addr: u64, len: u64) -> GuestBytes {
        GuestBytes { addr, len }
    }

    /// One past the last byte; none if that is beyond the address space.
    pub fn end(self) -> Option<u64> {
        self.addr.checked_add(self.len)
    }

    /// The pages that have a byte of it.
    pub fn touched_pages(self) -> Option<GuestBytes> {
        let start = self.addr - self.addr % PAGE_SIZE;
        let end = self.end()?.checked_next_multiple_of(PAGE_SIZE)?;
        Some(GuestBytes::new(start, end - start))
    }

    /// The pages all of whose bytes are in it; none if there is no such page.
    pub fn whole_pages(self) -> Option<GuestBytes> {
        let start = self.addr.checked_next_multiple_of(PAGE_SIZE)?;
        let end = self.end()? / PAGE_SIZE * PAGE_SIZE;
        (start < end).then(|| GuestBytes::new(start, end - start))
    }
}

/// Sorts the bytes and joins those that touch or overlap.
pub fn merged(mut spans: Vec<GuestBytes>) -> Vec<GuestBytes> {
    spans.sort_unstable();
    let mut joined: Vec<GuestBytes> = Vec::with_capacity(spans.len());
    for span in spans {
        match joined.last_mut() {
            Some(last) if last.addr.saturating_add(last.len) >= span.addr => {
                let end = span.addr.saturating_add(span.len);
                last.len = last.len.max(end - last.addr);
            }
            _ => joined.push(span),
        }
    }
    joined
}

/// Bytes of guest-physical memory in several pieces, in the order in which a request names them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct GuestBuffer(pub Vec<GuestBytes>);

impl GuestBuffer {
    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        // A queue's chains have fewer bytes than 2^32; no other code makes longer ones.
        self.0.iter().map(|span| span.len).sum()
    }

    /// The bytes `from..from + len`, or as many of them as there are.
    pub fn part(&self, from: u64, len: u64) -> GuestBuffer {
        let (mut skip, mut left) = (from, len);
        let mut part = Vec::new();
        for span in &self.0 {
            if left == 0 {
                break;
            }
            if skip >= span.len {
                skip -= span.len;
                continue;
            }
            let taken = left.min(span.len - skip);
            part.push(GuestBytes::new(span.addr + skip, taken));
            left -= taken;
            skip = 0;
        }
        GuestBuffer(part)
    }

    /// The bytes from `from` on, as many as are in at most `pages` pages and `spans` spans; at least one if there is one.
    pub fn portion(&self, from: u64, pages: u64, spans: usize) -> GuestBuffer {
        let mut left = pages;
        let mut portion = Vec::new();
        for span in self.part(from, u64::MAX).0.into_iter().take(spans) {
            let reach = (left * PAGE_SIZE).saturating_sub(span.addr % PAGE_SIZE);
            let taken = span.len.min(reach);
            if taken == 0 {
                break;
            }
            left -= (span.addr % PAGE_SIZE + taken).div_ceil(PAGE_SIZE);
            portion.push(GuestBytes { len: taken, ..span });
            if taken < span.len {
                break;
            }
        }
        GuestBuffer(portion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(addr: u64, len: u64) -> GuestBytes {
        GuestBytes { addr, len }
    }

    #[test]
    fn pages_are_rounded_without_overflow() {
        assert_eq!(span(1, 1).touched_pages(), Some(span(0, 4096)));
        assert_eq!(span(4095, 2).touched_pages(), Some(span(0, 8192)));
        assert_eq!(span(u64::MAX, 1).touched_pages(), None);
        assert_eq!(span(u64::MAX - 10, 5).touched_pages(), None);
        assert_eq!(span(1, 8191).whole_pages(), Some(span(4096, 4096)));
        assert_eq!(span(1, 4096).whole_pages(), None);
        assert_eq!(span(u64::MAX - 1, 1).whole_pages(), None);
        assert_eq!(
            span(0, u64::MAX).whole_pages(),
            Some(span(0, 0u64.wrapping_sub(4096)))
        );
    }

    #[test]
    fn neighbours_are_joined() {
        let spans = vec![
            span(8192, 4096),
            span(0, 4096),
            span(4096, 4096),
            span(20480, 1),
        ];
        assert_eq!(merged(spans), [span(0, 12288), span(20480, 1)]);
        assert_eq!(merged(vec![span(0, 100), span(10, 5)]), [span(0, 100)]);
        let top = span(4096, u64::MAX - 4096);
        assert_eq!(
            merged(vec![span(0, 4096), span(8192, 5), top]),
            [span(0, u64::MAX)]
        );
        assert_eq!(merged(Vec::new()), []);
    }

    #[test]
    fn parts_and_portions() {
        let spans = GuestBuffer(vec![span(4090, 10), span(100_000, 20_000), span(0, 1)]);
        assert_eq!(spans.bytes(), 20_011);
        assert_eq!(spans.part(5, 7).0, [span(4095, 5), span(100_000, 2)]);
        assert_eq!(spans.part(20_010, 100).0, [span(0, 1)]);
        assert_eq!(spans.part(20_011, 1).0, []);
        // Two pages by the first span, one more; 100 000 is 1 696 bytes into its page.
        assert_eq!(
            spans.portion(0, 3, 8).0,
            [span(4090, 10), span(100_000, 2400)]
        );
        assert_eq!(spans.portion(0, 3, 1).0, [span(4090, 10)]);
        assert_eq!(spans.portion(0, 1, 8).0, [span(4090, 6)]);
        assert_eq!(spans.portion(0, 100, 8), spans);
        // From portion to portion, everything is there once.
        let mut at = 0;
        while at < spans.bytes() {
            let portion = spans.portion(at, 2, 2);
            assert_eq!(portion, spans.part(at, portion.bytes()));
            assert!(portion.bytes() > 0);
            at += portion.bytes();
        }
        assert_eq!(at, spans.bytes());
    }
}

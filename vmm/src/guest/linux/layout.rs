//! The memory map of an operating system: where its memory is, and where boot parameters and tables are in it.
//!
//! All of it is managed memory. A page's number is its guest-physical address divided by the page size, everywhere: the pages
//! between the two parts of a large memory exist as numbers only.

use std::ops::Range;

use hmm_backend::pages::{PAGE_SIZE, Page, PageRange};

use hmmvisor_experiments::size::Size;

/// No memory here: device windows, the I/O APIC, the local APICs, what KVM needs for itself.
pub const MMIO_GAP: Range<u64> = 0xc000_0000..0x1_0000_0000;

/// A descriptor table with flat segments, for the 64-bit entry.
pub const GDT: u64 = 0x500;
/// The start information of a kernel that is entered by PVH.
pub const START_INFO: u64 = 0x6000;
/// The boot parameters ("zero page") of a kernel that is entered as a bzImage.
pub const ZERO_PAGE: u64 = 0x7000;
/// Root of the page tables that map the first 4 GiB one to one, for the 64-bit entry.
pub const PML4: u64 = 0x9000;
/// End (exclusive) of the page tables.
pub const PAGE_TABLES_END: u64 = PML4 + 6 * 0x1000;
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line in bytes, the final zero included.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// End of the low part of memory. What follows, up to 1 MiB, is never the kernel's to use.
const LOW_END: u64 = 0x9_fc00;
/// The ACPI tables, where a kernel also finds them by looking.
pub const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// Where a processor begins after a reset, in real mode: what a kernel jumps to when it wants the BIOS to reset the machine.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Kernels are loaded from here on.
pub const HIGH_START: u64 = 0x10_0000;

const _: () = assert!(PAGE_TABLES_END <= CMDLINE && CMDLINE + CMDLINE_ROOM <= LOW_END);

/// The type of a range of addresses, numbered as in e820 and PVH memory maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Memory that the kernel may use.
    Ram = 1,
    /// Addresses that the kernel must not touch.
    Reserved = 2,
}

/// The memory map of memory of a given size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    bytes: u64,
}

impl Layout {
    /// Makes the layout of this much memory, which must be whole pages and more than [`HIGH_START`].
    pub fn new(memory: Size) -> Layout {
        assert!(memory.0 > HIGH_START && memory.0.is_multiple_of(4096));
        Layout { bytes: memory.0 }
    }

    /// Returns the memory below 4 GiB.
    pub fn low(&self) -> Range<u64> {
        0..self.bytes.min(MMIO_GAP.start)
    }

    /// Returns the memory from 4 GiB on; none if all of it fits below.
    pub fn high(&self) -> Option<Range<u64>> {
        let rest = self.bytes.checked_sub(MMIO_GAP.start)?;
        (rest > 0).then(|| MMIO_GAP.end..MMIO_GAP.end + rest)
    }

    /// Returns the pieces of memory, in ascending order.
    pub fn parts(&self) -> impl Iterator<Item = Range<u64>> {
        [Some(self.low()), self.high()].into_iter().flatten()
    }

    /// Returns the last piece of memory.
    pub fn last(&self) -> Range<u64> {
        self.high().unwrap_or(self.low())
    }

    /// Returns the address behind the last byte of memory: how much managed memory is to be made, the part without memory included.
    pub fn end(&self) -> u64 {
        self.last().end
    }

    /// Returns the pages below [`Self::end`] that do not exist.
    pub fn hole(&self) -> PageRange {
        let page = |address: u64| Page((address / PAGE_SIZE) as u32);
        match self.high() {
            Some(_) => PageRange::new(page(MMIO_GAP.start), page(MMIO_GAP.end)),
            None => PageRange::with_len(Page(0), 0),
        }
    }

    /// Returns the memory map that the kernel gets.
    pub fn map(&self) -> Vec<(Range<u64>, Kind)> {
        let mut map = vec![
            (0..LOW_END, Kind::Ram),
            (LOW_END..HIGH_START, Kind::Reserved),
            (HIGH_START..self.low().end, Kind::Ram),
        ];
        map.extend(self.high().map(|high| (high, Kind::Ram)));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn layout(bytes: u64) -> Layout {
        Layout::new(Size(bytes))
    }

    #[test]
    fn small_memory_is_in_one_piece() {
        for bytes in [2 * MIB, 512 * MIB, 3 * GIB] {
            let layout = layout(bytes);
            assert_eq!((layout.low(), layout.high()), (0..bytes, None));
            assert_eq!((layout.end(), layout.hole().len()), (bytes, 0));
            assert_eq!(layout.map().last(), Some(&(MIB..bytes, Kind::Ram)));
        }
    }

    #[test]
    fn large_memory_leaves_the_gap_free() {
        for more in [2 * MIB, 5 * GIB] {
            let layout = layout(3 * GIB + more);
            let high = 4 * GIB..4 * GIB + more;
            assert_eq!((layout.low().end, layout.high()), (3 * GIB, Some(high)));
            assert_eq!(layout.end(), 4 * GIB + more);
            let hole = PageRange::new(Page(3 << 18), Page(4 << 18));
            assert_eq!(layout.hole(), hole);
            let sum: u64 = layout.parts().map(|part| part.end - part.start).sum();
            assert_eq!(sum, 3 * GIB + more);
        }
    }

    #[test]
    fn maps_are_sorted_without_overlaps_and_tables_are_reserved() {
        for bytes in [2 * MIB, 3 * GIB, 8 * GIB] {
            let map = layout(bytes).map();
            let sorted = map.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start);
            assert!(sorted, "{map:x?}");
            for (range, kind) in map {
                assert!(!range.is_empty());
                let tables = range.start < ACPI.end && ACPI.start < range.end;
                let gap = range.start < MMIO_GAP.end && MMIO_GAP.start < range.end;
                assert!(!tables || kind == Kind::Reserved);
                assert!(!gap);
            }
        }
    }
}

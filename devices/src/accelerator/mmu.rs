//! The device's page table and TLB.

use std::sync::atomic::AtomicU64;

use hmm_backend::mirror::{DeviceMmu, Mapping, RemoteCounters, Target};
use hmm_backend::pages::{Access, BLOCK_PAGES, PAGE_SIZE, Page, PageRange};

use crate::commands::managed::WORD;

/// Words in a page.
pub const PAGE_WORDS: usize = (PAGE_SIZE / WORD) as usize;
const TLB_SLOTS: usize = 256;

/// A page-table entry: the host address of a page, bit 0 set if the page is writable, bit 1 if it is the
/// device's alone, bit 2 if it is in system memory, in place; null if there is no translation.
#[derive(Clone, Copy, PartialEq, Eq)]
struct HostEntry(*mut u8);

// SAFETY: an entry is only an address. It is dereferenced through `Mmu::translate` alone, by the thread
// that holds the mirror's guard.
unsafe impl Send for HostEntry {}

impl HostEntry {
    const NONE: HostEntry = HostEntry(std::ptr::null_mut());
    const WRITABLE: usize = 1;
    const EXCLUSIVE: usize = 2;
    const REMOTE: usize = 4;
    const BITS: usize = HostEntry::WRITABLE | HostEntry::EXCLUSIVE | HostEntry::REMOTE;

    /// An entry with this page and these of the bits.
    fn new(host: *mut u8, bits: usize) -> HostEntry {
        debug_assert!(
            host.addr().is_multiple_of(PAGE_SIZE as usize) && bits & !HostEntry::BITS == 0
        );
        HostEntry(host.map_addr(|addr| addr | bits))
    }

    fn remote(self) -> bool {
        self.0.addr() & HostEntry::REMOTE != 0
    }

    fn permits(self, access: Access) -> bool {
        match access {
            Access::Read => self != HostEntry::NONE,
            Access::Write => self.0.addr() & HostEntry::WRITABLE != 0,
        }
    }

    fn host(self) -> *mut u8 {
        self.0.map_addr(|addr| addr & !HostEntry::BITS)
    }
}

#[derive(Clone, Copy)]
struct TlbSlot {
    page: Page,
    entry: HostEntry,
}

impl TlbSlot {
    const EMPTY: TlbSlot = TlbSlot {
        page: Page(u32::MAX),
        entry: HostEntry::NONE,
    };
}

type BlockTable = Box<[HostEntry; BLOCK_PAGES as usize]>;

/// A page table with one table for each 2 MiB block that the device uses, and a direct-mapped TLB.
pub struct Mmu {
    blocks: Vec<Option<BlockTable>>,
    tlb: Box<[TlbSlot; TLB_SLOTS]>,
    /// Accesses to system memory in place.
    pub remote: RemoteCounters,
    /// Whether the last translation was one to system memory in place.
    pub last_was_remote: bool,
    /// Number of translations found in the TLB.
    pub tlb_hits: u64,
    /// Number of translations not found there.
    pub tlb_misses: u64,
}

impl Mmu {
    /// An MMU without translations, for this many pages of managed memory.
    pub fn new(pages: u32) -> Mmu {
        let blocks = u64::from(pages).div_ceil(BLOCK_PAGES) as usize;
        Mmu {
            blocks: (0..blocks).map(|_| None).collect(),
            tlb: Box::new([TlbSlot::EMPTY; TLB_SLOTS]),
            remote: RemoteCounters::new(pages),
            last_was_remote: false,
            tlb_hits: 0,
            tlb_misses: 0,
        }
    }

    /// Enters a translation into the page table; a device fault ends with this.
    pub fn map(&mut self, mapping: Mapping) {
        let mut bits = 0;
        if mapping.writable {
            bits |= HostEntry::WRITABLE;
        }
        // A page that the device has for itself is never counted as one in place: it is where the device asked for it.
        if mapping.exclusive {
            bits |= HostEntry::EXCLUSIVE;
        } else if mapping.target == Target::System {
            bits |= HostEntry::REMOTE;
        }
        let entry = HostEntry::new(mapping.host.as_ptr(), bits);
        self.insert(mapping.page, entry);
    }

    fn insert(&mut self, page: Page, entry: HostEntry) {
        let table = self.blocks[page.block().0 as usize]
            .get_or_insert_with(|| Box::new([HostEntry::NONE; BLOCK_PAGES as usize]));
        table[page.index_in_block()] = entry;
        let slot = &mut self.tlb[tlb_index(page)];
        if slot.page == page {
            // A read-only translation may be in the TLB.
            *slot = TlbSlot::EMPTY;
        }
    }

    /// The words of a page, unless the access must fault first. A caller that asked with [`Access::Read`]
    /// must only load.
    pub fn translate(&mut self, page: Page, access: Access) -> Option<&[AtomicU64; PAGE_WORDS]> {
        let slot = &mut self.tlb[tlb_index(page)];
        let entry = if slot.page == page && slot.entry.permits(access) {
            self.tlb_hits += 1;
            slot.entry
        } else {
            self.tlb_misses += 1;
            let table = self.blocks.get(page.block().0 as usize)?.as_deref()?;
            let entry = table[page.index_in_block()];
            if !entry.permits(access) {
                return None;
            }
            *slot = TlbSlot { page, entry };
            entry
        };
        self.last_was_remote = entry.remote();
        // SAFETY: entries come from mappings that the backend handed out, so they point at the 4096
        // mapped bytes of a page, aligned to a page. `self` lives in the mirror and can only be borrowed
        // under its guard, and the backend does not take the page away before `invalidate`, which needs
        // the guard, too; the result does not outlive that borrow. All others that access the page
        // meanwhile are vCPUs and other devices, which do so atomically.
        Some(unsafe { &*entry.host().cast::<[AtomicU64; PAGE_WORDS]>() })
    }
}

impl Mmu {
    /// The words of a page for writing, if the device has the page for itself.
    pub fn translate_exclusive(&mut self, page: Page) -> Option<&[AtomicU64; PAGE_WORDS]> {
        let table = self.blocks.get(page.block().0 as usize)?.as_deref()?;
        let entry = table[page.index_in_block()];
        match entry.0.addr() & HostEntry::EXCLUSIVE {
            0 => None,
            _ => self.translate(page, Access::Write),
        }
    }
}

impl DeviceMmu for Mmu {
    fn invalidate(&mut self, pages: PageRange) {
        self.remote.forget(pages);
        for part in pages.split_by_block() {
            let Some(block) = self.blocks.get_mut(part.start.block().0 as usize) else {
                break;
            };
            if u64::from(part.len()) == BLOCK_PAGES {
                *block = None;
            } else if let Some(table) = block {
                let first = part.start.index_in_block();
                table[first..first + part.len() as usize].fill(HostEntry::NONE);
            }
        }
        if pages.len() as usize >= TLB_SLOTS {
            for slot in self.tlb.iter_mut() {
                if pages.contains(slot.page) {
                    *slot = TlbSlot::EMPTY;
                }
            }
        } else {
            for page in pages.pages() {
                let slot = &mut self.tlb[tlb_index(page)];
                if slot.page == page {
                    *slot = TlbSlot::EMPTY;
                }
            }
        }
    }
}

fn tlb_index(page: Page) -> usize {
    page.0 as usize % TLB_SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[repr(C, align(4096))]
    struct HostPages([[u64; PAGE_WORDS]; 2]);

    /// An MMU with host pages to map, numbered in their first word.
    struct Fixture {
        mmu: Mmu,
        host: Box<HostPages>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let mut host = Box::new(HostPages([[0; PAGE_WORDS]; 2]));
            host.0[1][0] = 1;
            Fixture {
                mmu: Mmu::new(2048),
                host,
            }
        }

        fn map(&mut self, page: u32, host: usize, writable: bool) {
            let host = (&raw mut self.host.0[host]).cast();
            let bits = if writable { HostEntry::WRITABLE } else { 0 };
            self.mmu.insert(Page(page), HostEntry::new(host, bits));
        }

        fn read(&mut self, page: u32) -> Option<u64> {
            let words = self.mmu.translate(Page(page), Access::Read)?;
            Some(words[0].load(Ordering::Relaxed))
        }

        fn writable(&mut self, page: u32) -> bool {
            self.mmu.translate(Page(page), Access::Write).is_some()
        }

        fn invalidate(&mut self, start: u32, end: u32) {
            self.mmu.invalidate(PageRange::new(Page(start), Page(end)));
        }
    }

    #[test]
    fn translates_what_was_mapped() {
        let mut it = Fixture::new();
        it.map(3, 0, true);
        it.map(3 + TLB_SLOTS as u32, 1, true);
        assert_eq!(it.read(2), None);
        // The two collide in the TLB.
        for _ in 0..3 {
            assert_eq!(it.read(3), Some(0));
            assert_eq!(it.read(3 + TLB_SLOTS as u32), Some(1));
        }
        assert_eq!((it.mmu.tlb_hits, it.mmu.tlb_misses), (0, 7));
        assert_eq!(it.read(3 + TLB_SLOTS as u32), Some(1));
        assert_eq!(it.mmu.tlb_hits, 1);
        assert_eq!(it.read(u32::MAX), None);
        assert_eq!(it.read(2048), None);
    }

    #[test]
    fn read_only_pages_fault_on_write_until_upgraded() {
        let mut it = Fixture::new();
        it.map(3, 0, false);
        assert_eq!(it.read(3), Some(0));
        assert!(!it.writable(3));
        it.map(3, 1, true);
        assert!(it.writable(3));
        assert_eq!(it.read(3), Some(1));
        it.map(3, 0, false);
        assert!(!it.writable(3), "the TLB does not outlive a downgrade");
    }

    #[test]
    fn invalidation_zaps_page_table_and_tlb() {
        let mut it = Fixture::new();
        for page in [0, 511, 512, 1023, 1024] {
            it.map(page, 1, true);
            assert_eq!(it.read(page), Some(1));
        }
        it.invalidate(511, 1024);
        let left: Vec<_> = [0, 511, 512, 1023, 1024]
            .map(|p| it.read(p).is_some())
            .into();
        assert_eq!(left, [true, false, false, false, true]);
        it.invalidate(1024, 1025);
        assert_eq!(it.read(1024), None);
        it.invalidate(0, u32::MAX);
        assert_eq!(it.read(0), None);
    }

    #[test]
    fn accesses_in_place_are_told_apart_and_forgotten_with_the_translation() {
        let mut it = Fixture::new();
        it.map(3, 0, true);
        let host = (&raw mut it.host.0[1]).cast();
        let bits = HostEntry::WRITABLE | HostEntry::REMOTE;
        it.mmu.insert(Page(4), HostEntry::new(host, bits));
        for (page, remote) in [(3, false), (4, true), (3, false), (4, true)] {
            it.read(page).unwrap();
            assert_eq!(it.mmu.last_was_remote, remote);
        }
        it.mmu.remote.set_threshold(Some(2));
        it.mmu.remote.count(Page(4), 1);
        it.invalidate(4, 5);
        it.mmu.remote.count(Page(4), 1);
        assert_eq!(it.mmu.remote.take_hot(), None);
    }

    #[test]
    fn tables_of_whole_blocks_are_given_back() {
        let mut it = Fixture::new();
        it.map(512, 1, true);
        it.invalidate(512, 1024);
        assert!(it.mmu.blocks.iter().all(Option::is_none));
    }
}

//! The device's page table and TLB.

use std::sync::atomic::AtomicU64;

use hmm_backend::mirror::{DeviceMmu, Mapping, RemoteCounters, Target};
use hmm_backend::pages::{Access, BLOCK_PAGES, Fidelity, PAGE_SIZE, Page, PageRange, Visit};

use crate::commands::managed::WORD;

/// Words in a page.
pub const PAGE_WORDS: usize = (PAGE_SIZE / WORD) as usize;
const TLB_SLOTS: usize = 256;

/// Visits that are kept until the backend is told of them.
const MOST_VISITS: usize = 4096;

/// A page-table entry: the host address of a page, and the bits below; null if there is no translation.
#[derive(Clone, Copy, PartialEq, Eq)]
struct HostEntry(*mut u8);

// SAFETY: an entry is only an address. It is dereferenced through `Mmu::translate` alone, by the thread
// that holds the mirror's guard.
unsafe impl Send for HostEntry {}

impl HostEntry {
    const NONE: HostEntry = HostEntry(std::ptr::null_mut());
    const WRITABLE: usize = 1;
    /// The page is the device's alone.
    const EXCLUSIVE: usize = 2;
    /// The page is in system memory, in place.
    const REMOTE: usize = 4;
    const ACCESSED: usize = 8;
    const DIRTY: usize = 16;
    const USE: usize = HostEntry::ACCESSED | HostEntry::DIRTY;
    const BITS: usize =
        HostEntry::WRITABLE | HostEntry::EXCLUSIVE | HostEntry::REMOTE | HostEntry::USE;

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

    /// The bits that an access sets.
    fn bits_of(access: Access) -> usize {
        match access {
            Access::Read => HostEntry::ACCESSED,
            Access::Write => HostEntry::USE,
        }
    }

    /// Whether the bits say already what this access would set.
    fn notes(self, access: Access) -> bool {
        let set = HostEntry::bits_of(access);
        self.0.addr() & set == set
    }

    /// The entry with the bits that this access sets.
    fn used(self, access: Access) -> HostEntry {
        HostEntry(self.0.map_addr(|addr| addr | HostEntry::bits_of(access)))
    }

    /// The entry without accessed and dirty bit.
    fn unused(self) -> HostEntry {
        HostEntry(self.0.map_addr(|addr| addr & !HostEntry::USE))
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
///
/// With [`Fidelity::Bits`] the bits are as on hardware: a walk sets them in the page table, and an entry in the TLB hides further
/// accesses, but for the first write.
pub struct Mmu {
    blocks: Vec<Option<BlockTable>>,
    tlb: Box<[TlbSlot; TLB_SLOTS]>,
    fidelity: Fidelity,
    /// Visits in order, with [`Fidelity::All`].
    visits: Vec<Visit>,
    /// The page that the last fault was made for: the next access to it is the one that the fault has told of.
    faulted: Option<Page>,
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
    pub fn new(pages: u32, fidelity: Fidelity) -> Mmu {
        let blocks = u64::from(pages).div_ceil(BLOCK_PAGES) as usize;
        Mmu {
            blocks: (0..blocks).map(|_| None).collect(),
            tlb: Box::new([TlbSlot::EMPTY; TLB_SLOTS]),
            fidelity,
            visits: Vec::new(),
            faulted: None,
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
        self.faulted = Some(mapping.page);
    }

    /// Whether so many visits are kept that the backend should be told of them.
    pub fn is_full_of_visits(&self) -> bool {
        self.visits.len() >= MOST_VISITS
    }

    /// Notes that the device accesses a page whose entry, in the TLB or from a walk, is this. Returns what the TLB may keep; `None`
    /// if it must not keep an entry, which would hide the next access.
    fn note(&mut self, page: Page, access: Access, entry: HostEntry) -> Option<HostEntry> {
        let told = self.faulted.take_if(|it| *it == page).is_some();
        match self.fidelity {
            Fidelity::Bits if told => None,
            Fidelity::Bits if entry.notes(access) => Some(entry),
            Fidelity::Bits => {
                let used = entry.used(access);
                if let Some(Some(table)) = self.blocks.get_mut(page.block().0 as usize) {
                    table[page.index_in_block()] = used;
                }
                Some(used)
            }
            Fidelity::Faults | Fidelity::All => {
                if !told {
                    self.visited(page, access);
                }
                Some(entry)
            }
        }
    }

    fn visited(&mut self, page: Page, access: Access) {
        match self.visits.last_mut() {
            Some(last) if last.page == page => {
                last.times = last.times.saturating_add(1);
                last.access = last.access.max(access);
            }
            _ => self.visits.push(Visit {
                page,
                access,
                times: 1,
            }),
        }
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
        let slot = self.tlb[tlb_index(page)];
        let mut entry = slot.entry;
        if slot.page == page && entry.permits(access) {
            self.tlb_hits += 1;
        } else {
            self.tlb_misses += 1;
            let table = self.blocks.get(page.block().0 as usize)?.as_deref()?;
            entry = table[page.index_in_block()];
            if !entry.permits(access) {
                return None;
            }
        }
        let kept = match self.fidelity {
            Fidelity::Faults => Some(entry),
            Fidelity::Bits | Fidelity::All => self.note(page, access, entry),
        };
        if slot.page != page || kept != Some(slot.entry) {
            self.tlb[tlb_index(page)] = match kept {
                Some(entry) => TlbSlot { page, entry },
                None => TlbSlot::EMPTY,
            };
        }
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
    fn fidelity(&self) -> Fidelity {
        self.fidelity
    }

    fn take_bits(&mut self, pages: PageRange, each: &mut dyn FnMut(Page, Access)) {
        for page in pages.pages() {
            let Some(Some(table)) = self.blocks.get_mut(page.block().0 as usize) else {
                continue;
            };
            let entry = &mut table[page.index_in_block()];
            if entry.notes(Access::Read) {
                let access = match entry.notes(Access::Write) {
                    true => Access::Write,
                    false => Access::Read,
                };
                *entry = entry.unused();
                each(page, access);
                let slot = &mut self.tlb[tlb_index(page)];
                if slot.page == page {
                    *slot = TlbSlot::EMPTY;
                }
            }
        }
    }

    fn take_visits(&mut self, each: &mut dyn FnMut(Visit)) {
        self.visits.drain(..).for_each(each);
    }

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
                mmu: Mmu::new(2048, Fidelity::Faults),
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

    /// The bits of the first 8 pages, as often as there are accesses.
    fn bits(mmu: &mut Mmu) -> Vec<(u32, Access)> {
        let mut bits = Vec::new();
        let pages = PageRange::new(Page(0), Page(8));
        mmu.take_bits(pages, &mut |page, access| bits.push((page.0, access)));
        bits
    }

    #[test]
    fn bits_are_set_by_walks_and_hidden_by_no_tlb() {
        let mut it = Fixture::new();
        it.mmu.fidelity = Fidelity::Bits;
        it.map(3, 0, true);
        it.map(4, 1, true);
        assert_eq!(bits(&mut it.mmu), []);
        assert!(it.read(3).is_some() && it.read(3).is_some());
        assert_eq!(bits(&mut it.mmu), [(3, Access::Read)]);
        assert_eq!(bits(&mut it.mmu), [], "cleared");
        assert!(it.read(3).is_some(), "and not hidden by the TLB");
        assert!(it.read(4).is_some() && it.writable(4));
        assert_eq!(bits(&mut it.mmu), [(3, Access::Read), (4, Access::Write)]);
        assert!(it.writable(4) && it.writable(4));
        assert_eq!(bits(&mut it.mmu), [(4, Access::Write)]);
        // The access that a fault was made for.
        it.mmu.faulted = Some(Page(3));
        assert!(it.read(3).is_some());
        assert_eq!(bits(&mut it.mmu), []);
        assert!(it.read(3).is_some());
        assert_eq!(bits(&mut it.mmu), [(3, Access::Read)]);
    }

    #[test]
    fn all_visits_are_kept_in_order_but_those_that_faults_tell_of() {
        let mut it = Fixture::new();
        it.mmu.fidelity = Fidelity::All;
        it.map(3, 0, true);
        it.map(4, 1, true);
        it.mmu.faulted = Some(Page(3));
        for page in [3, 3, 3, 4, 3] {
            assert!(it.read(page).is_some());
        }
        assert!(it.writable(3));
        let mut visits = Vec::new();
        it.mmu
            .take_visits(&mut |visit| visits.push((visit.page.0, visit.access, visit.times)));
        use Access::{Read, Write};
        assert_eq!(visits, [(3, Read, 2), (4, Read, 1), (3, Write, 2)]);
        it.mmu.take_visits(&mut |visit| panic!("again: {visit:?}"));
        assert_eq!(bits(&mut it.mmu), []);
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

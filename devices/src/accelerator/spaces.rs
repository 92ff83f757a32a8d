//! Address spaces: the guest's translations from virtual addresses to pages of managed memory.
//!
//! The guest enters them, the device uses them, and an invalidation returns only when the device uses none of them any
//! more: as with the mirror, whose translations come behind these, they are only reached under a guard, which
//! invalidations wait for. The device may forget translations at any time; that is what bounds them.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicU32, Ordering};

use hmm_backend::pages::{Access, PAGE_SIZE, Page};
use hmmvisor_abi::accel::{
    SPACE_BLOCK, SPACE_END, SPACES, TRANSLATION_VALID, TRANSLATION_WRITABLE, TRANSLATIONS,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::commands::managed::Addresses;

/// The addresses of every space.
pub const VIRTUAL: Addresses = Addresses {
    base: 0,
    bytes: SPACE_END,
};

/// A page of managed memory, and whether the device may write to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct GuestEntry(u32);

impl GuestEntry {
    const NONE: GuestEntry = GuestEntry(0);
    const VALID: u32 = TRANSLATION_VALID as u32;
    const WRITABLE: u32 = TRANSLATION_WRITABLE as u32;
    const SHIFT: u32 = 2;

    /// A translation as the guest writes it; `None` if it is not one.
    fn from_guest(word: u64, managed: &Addresses) -> Option<GuestEntry> {
        let bits = word % PAGE_SIZE;
        let addr = word - bits;
        let known = TRANSLATION_VALID | TRANSLATION_WRITABLE;
        if bits & !known != 0 || bits & TRANSLATION_VALID == 0 {
            return None;
        }
        if !managed.contains(addr, PAGE_SIZE) {
            return None;
        }
        let page = managed.page(addr).0;
        (page <= u32::MAX >> GuestEntry::SHIFT)
            .then_some(GuestEntry(page << GuestEntry::SHIFT | bits as u32))
    }

    fn page(self, access: Access) -> Option<Page> {
        let needed = match access {
            Access::Read => GuestEntry::VALID,
            Access::Write => GuestEntry::VALID | GuestEntry::WRITABLE,
        };
        (self.0 & needed == needed).then_some(Page(self.0 >> GuestEntry::SHIFT))
    }
}

type Block = Box<[GuestEntry; TRANSLATIONS]>;
/// Address space, and virtual address divided by [`SPACE_BLOCK`].
type Key = (u16, u64);

/// The result of a look-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The address is in this page.
    Page(Page),
    /// The guest has to enter a translation first.
    Missing,
    /// The address space is closed.
    Closed,
}

/// The guest wanted to enter a word that is no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadTranslation;

/// All translations of all address spaces.
pub struct Tables {
    managed: Addresses,
    open: Box<[bool]>,
    blocks: BTreeMap<Key, Block>,
    /// The most blocks to keep.
    limit: usize,
    /// The key of the block that was forgotten last to make room.
    hand: Key,
    /// Whether the device waits for invalidations.
    waiting: bool,
}

impl Tables {
    fn new(managed: Addresses) -> Tables {
        // All of managed memory twice, and some for scattered pages.
        let limit = 1024 + 2 * managed.bytes.div_ceil(SPACE_BLOCK) as usize;
        Tables {
            managed,
            open: vec![false; SPACES as usize + 1].into(),
            blocks: BTreeMap::new(),
            limit,
            hand: (0, 0),
            waiting: false,
        }
    }

    /// Looks up the page of this virtual address.
    pub fn translate(&self, space: u16, addr: u64, access: Access) -> Lookup {
        if !self.is_open(space) {
            return Lookup::Closed;
        }
        let index = (addr % SPACE_BLOCK / PAGE_SIZE) as usize;
        let entry = match self.blocks.get(&(space, addr / SPACE_BLOCK)) {
            Some(block) => block[index],
            None => GuestEntry::NONE,
        };
        match entry.page(access) {
            Some(page) => Lookup::Page(page),
            None => Lookup::Missing,
        }
    }

    fn is_open(&self, space: u16) -> bool {
        self.open.get(usize::from(space)) == Some(&true)
    }

    fn open(&mut self, space: u16) {
        self.forget(space);
        self.open[usize::from(space)] = true;
    }

    fn close(&mut self, space: u16) {
        self.forget(space);
        self.open[usize::from(space)] = false;
    }

    fn forget(&mut self, space: u16) {
        self.blocks.retain(|(it, _), _| *it != space);
    }

    fn map(
        &mut self,
        space: u16,
        start: u64,
        words: impl Iterator<Item = u64>,
    ) -> Result<(), BadTranslation> {
        if !self.is_open(space) {
            // The space has been closed meanwhile.
            return Ok(());
        }
        let key = (space, start / SPACE_BLOCK);
        if !self.blocks.contains_key(&key) {
            self.make_room();
        }
        let block = self
            .blocks
            .entry(key)
            .or_insert_with(|| Box::new([GuestEntry::NONE; TRANSLATIONS]));
        let mut result = Ok(());
        for (entry, word) in block.iter_mut().zip(words).filter(|(_, word)| *word != 0) {
            match GuestEntry::from_guest(word, &self.managed) {
                Some(new) => *entry = new,
                None => result = Err(BadTranslation),
            }
        }
        result
    }

    /// Forgets a block if there is no room for another one. Goes round, so that a block that has just come stays for as
    /// long as possible.
    fn make_room(&mut self) {
        if self.blocks.len() < self.limit {
            return;
        }
        let behind = self.blocks.range((Excluded(self.hand), Unbounded)).next();
        let victim = behind.or_else(|| self.blocks.iter().next());
        if let Some((key, _)) = victim {
            self.hand = *key;
            self.blocks.remove(&self.hand);
        }
    }

    fn invalidate(&mut self, space: u16, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (first, last) = (start / SPACE_BLOCK, (end - 1) / SPACE_BLOCK);
        let mut whole = Vec::new();
        for (key, block) in self.blocks.range_mut((space, first)..=(space, last)) {
            let base = key.1 * SPACE_BLOCK;
            let from = start.saturating_sub(base) / PAGE_SIZE;
            let to = (end - base).min(SPACE_BLOCK).div_ceil(PAGE_SIZE);
            if (from, to) == (0, TRANSLATIONS as u64) {
                whole.push(*key);
            } else {
                block[from as usize..to as usize].fill(GuestEntry::NONE);
            }
        }
        for key in whole {
            self.blocks.remove(&key);
        }
    }
}

/// The address spaces of one accelerator.
pub struct Spaces {
    tables: Mutex<Tables>,
    /// Number of vCPUs that wait to change something.
    wanted: AtomicU32,
    /// Notified when a vCPU has made its change and the device waits.
    no_longer_wanted: Condvar,
}

/// The device's guard of the translations. Changes wait for it.
pub struct SpacesGuard<'a> {
    tables: MutexGuard<'a, Tables>,
    wanted: &'a AtomicU32,
}

impl SpacesGuard<'_> {
    /// Whether a vCPU waits to change a translation. If so, the device should drop the guard soon.
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    /// The page of a virtual address, valid as long as the guard lives.
    pub fn translate(&self, space: u16, addr: u64, access: Access) -> Lookup {
        self.tables.translate(space, addr, access)
    }
}

impl Spaces {
    /// Address spaces that are all closed.
    pub fn new(managed: Addresses) -> Spaces {
        Spaces {
            tables: Mutex::new(Tables::new(managed)),
            wanted: AtomicU32::new(0),
            no_longer_wanted: Condvar::new(),
        }
    }

    /// Locks the translations for the device, the only caller. Waits until no vCPU waits to change them: otherwise a busy
    /// device would take the lock again and again before them.
    pub fn lock(&self) -> SpacesGuard<'_> {
        let mut tables = self.tables.lock();
        while self.wanted.load(Ordering::SeqCst) > 0 {
            tables.waiting = true;
            self.no_longer_wanted.wait(&mut tables);
            tables.waiting = false;
        }
        SpacesGuard {
            tables,
            wanted: &self.wanted,
        }
    }

    /// Makes a change while the device is not translating.
    fn change<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> T {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let mut tables = self.tables.lock();
        let result = change(&mut tables);
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        if tables.waiting {
            self.no_longer_wanted.notify_all();
        }
        result
    }

    /// Whether commands may use the space.
    pub fn is_open(&self, space: u16) -> bool {
        self.change(|tables| tables.is_open(space))
    }

    /// Lets commands use the space, which has no translations.
    pub fn open(&self, space: u16) {
        self.change(|tables| tables.open(space));
    }

    /// Closes the space and forgets its translations. When this returns, the device uses none of them any more.
    pub fn close(&self, space: u16) {
        self.change(|tables| tables.close(space));
    }

    /// Closes all spaces.
    pub fn close_all(&self) {
        self.change(|tables| {
            tables.blocks.clear();
            tables.open.fill(false);
        });
    }

    /// Enters translations of the block that begins at `start`. Words that are 0 change nothing; words that are no
    /// translations are left out, and make the result an error.
    pub fn map(
        &self,
        space: u16,
        start: u64,
        words: impl Iterator<Item = u64>,
    ) -> Result<(), BadTranslation> {
        self.change(|tables| tables.map(space, start, words))
    }

    /// Forgets the translations of `start..end`. When this returns, the device uses none of them any more.
    pub fn invalidate(&self, space: u16, start: u64, end: u64) {
        self.change(|tables| tables.invalidate(space, start, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1_0000_0000;
    const V: u64 = 0x7f00_0000_0000;
    const RW: u64 = TRANSLATION_VALID | TRANSLATION_WRITABLE;

    fn spaces() -> Spaces {
        let spaces = Spaces::new(Addresses {
            base: BASE,
            bytes: 64 * PAGE_SIZE,
        });
        spaces.open(1);
        spaces
    }

    /// The words of a page with these translations in it.
    fn page(entries: &[(usize, u64)]) -> impl Iterator<Item = u64> + use<> {
        let mut words = vec![0; TRANSLATIONS];
        for (index, word) in entries {
            words[*index] = *word;
        }
        words.into_iter()
    }

    fn read(spaces: &Spaces, space: u16, addr: u64) -> Lookup {
        spaces.lock().translate(space, addr, Access::Read)
    }

    #[test]
    fn translations_are_of_one_space_one_page_and_one_kind_of_access() {
        let it = spaces();
        it.open(2);
        let words = page(&[
            (0, BASE | TRANSLATION_VALID),
            (511, (BASE + PAGE_SIZE) | RW),
        ]);
        assert_eq!(it.map(1, V, words), Ok(()));
        let at = |space, addr, access| it.lock().translate(space, addr, access);
        let last = V + 511 * PAGE_SIZE;
        assert_eq!(at(1, V + 8, Access::Read), Lookup::Page(Page(0)));
        assert_eq!(at(1, V + 8, Access::Write), Lookup::Missing);
        assert_eq!(at(1, last, Access::Write), Lookup::Page(Page(1)));
        assert_eq!(at(1, V + PAGE_SIZE, Access::Read), Lookup::Missing);
        assert_eq!(at(1, last + PAGE_SIZE, Access::Read), Lookup::Missing);
        assert_eq!(at(2, V, Access::Read), Lookup::Missing);
        assert_eq!(at(3, V, Access::Read), Lookup::Closed);
        assert_eq!(at(9999, V, Access::Read), Lookup::Closed);
        // What is not named stays, what is named is replaced.
        assert_eq!(
            it.map(1, V, page(&[(0, (BASE + 2 * PAGE_SIZE) | RW)])),
            Ok(())
        );
        assert_eq!(at(1, V, Access::Write), Lookup::Page(Page(2)));
        assert_eq!(at(1, last, Access::Write), Lookup::Page(Page(1)));
    }

    #[test]
    fn bad_translations_are_left_out() {
        let it = spaces();
        let end = BASE + 64 * PAGE_SIZE;
        for bad in [
            BASE,
            BASE | 4,
            BASE | 5,
            BASE | 2,
            end | 1,
            1,
            u64::MAX,
            !0 << 12 | 1,
        ] {
            let words = page(&[(3, bad), (4, BASE | 1)]);
            assert_eq!(it.map(1, V, words), Err(BadTranslation), "{bad:#x}");
            assert_eq!(read(&it, 1, V + 3 * PAGE_SIZE), Lookup::Missing);
            assert_eq!(read(&it, 1, V + 4 * PAGE_SIZE), Lookup::Page(Page(0)));
        }
    }

    #[test]
    fn invalidation_takes_what_it_names_and_nothing_else() {
        let it = spaces();
        let addrs: Vec<u64> = [0, 1, 510, 511, 512, 1023, 1024, 1535, 1536]
            .map(|page| V + page * PAGE_SIZE)
            .into();
        let fill = || {
            it.open(1);
            it.open(2);
            for addr in &addrs {
                let index = (addr % SPACE_BLOCK / PAGE_SIZE) as usize;
                for space in [1, 2] {
                    let words = page(&[(index, BASE | 1)]);
                    it.map(space, addr - addr % SPACE_BLOCK, words).unwrap();
                }
            }
        };
        for (from, to) in [
            (0, 0),
            (1, 2),
            (1, 511),
            (511, 512),
            (511, 1025),
            (512, 1024),
            (0, 1 << 40),
        ] {
            fill();
            let (start, end) = (V + from * PAGE_SIZE, (V + to * PAGE_SIZE).min(SPACE_END));
            it.invalidate(1, start, end);
            for addr in &addrs {
                let gone = (start..end).contains(addr);
                assert_eq!(
                    read(&it, 1, *addr) == Lookup::Missing,
                    gone,
                    "{from} {to} {addr:#x}"
                );
                assert_eq!(read(&it, 2, *addr), Lookup::Page(Page(0)));
            }
        }
    }

    #[test]
    fn closing_forgets_everything() {
        let it = spaces();
        it.map(1, V, page(&[(0, BASE | 1)])).unwrap();
        it.close(1);
        assert!(!it.is_open(1));
        assert_eq!(it.map(1, V, page(&[(0, BASE | 1)])), Ok(()));
        assert_eq!(read(&it, 1, V), Lookup::Closed);
        it.open(1);
        assert_eq!(read(&it, 1, V), Lookup::Missing);
        it.map(1, V, page(&[(0, BASE | 1)])).unwrap();
        it.close_all();
        it.open(1);
        assert_eq!(read(&it, 1, V), Lookup::Missing);
    }

    #[test]
    fn changes_wait_for_the_device_and_then_go_first() {
        use std::sync::atomic::AtomicBool;
        let it = spaces();
        it.map(1, V, page(&[(0, BASE | 1)])).unwrap();
        let returned = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let guard = it.lock();
            scope.spawn(|| {
                it.invalidate(1, V, V + PAGE_SIZE);
                returned.store(true, Ordering::SeqCst);
            });
            while !guard.wanted() {
                std::thread::yield_now();
            }
            assert_eq!(guard.translate(1, V, Access::Read), Lookup::Page(Page(0)));
            assert!(!returned.load(Ordering::SeqCst));
            drop(guard);
            // The device comes back at once, but a change was waiting.
            assert_eq!(read(&it, 1, V), Lookup::Missing);
        });
    }

    #[test]
    fn there_is_a_limit_and_what_came_last_is_there() {
        let it = spaces();
        let limit = it.tables.lock().limit as u64;
        for block in 0..3 * limit {
            let start = V + block * SPACE_BLOCK;
            it.map(1, start, page(&[(7, BASE | 1)])).unwrap();
            assert_eq!(read(&it, 1, start + 7 * PAGE_SIZE), Lookup::Page(Page(0)));
            assert!(it.tables.lock().blocks.len() as u64 <= limit);
        }
        assert_eq!(it.tables.lock().blocks.len() as u64, limit);
    }
}

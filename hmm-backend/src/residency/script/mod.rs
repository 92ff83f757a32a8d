//! Scripts of operations on the residency table, run beside a naive model of it. Property tests draw the scripts at
//! random, and a fuzzer makes them from bytes. One thread only; `residency::loom` tries the interleavings.
//!
//! The model keeps a plain record for each page, although the table keeps one word for each folio: the model must not
//! repeat the table's trick.

mod op;
mod plain;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use crate::pages::time::Tick;
use crate::pages::{DeviceId, Frame, Page, PageRange, Permission};
use crate::residency::{
    AUX_MAX, FolioLock, PinError, Placed, Residency, ResidencyTable, TryLock, WakeFaults, Word,
};

pub use op::Op;
use plain::{Plain, UNTOUCHED};

/// Pages of the table. Fewer under Miri, which is slow.
pub const PAGES: u32 = if cfg!(miri) { 8 } else { 32 };

#[derive(Clone, Default)]
struct Woken(Arc<Mutex<Vec<PageRange>>>);

impl WakeFaults for Woken {
    fn wake_faults(&self, range: PageRange) {
        self.0.lock().unwrap().push(range);
    }
}

/// Runs a script; panics if table and model differ.
pub fn run(ops: &[Op]) {
    let woken = Woken::default();
    let table = ResidencyTable::new(PAGES, Box::new(woken.clone()));
    let mut script = Script {
        table: &table,
        woken,
        expected_wakes: Vec::new(),
        pages: vec![UNTOUCHED; PAGES as usize],
        locks: Vec::new(),
    };
    script.check();
    for op in ops {
        script.step(op);
        script.check();
    }
    while !script.locks.is_empty() {
        script.unlock(0);
        script.check();
    }
    for page in 0..PAGES {
        let end = script.folio_of(page).end;
        assert_eq!(table.settle(Page(page)), end, "all locks were released");
    }
}

struct Script<'t> {
    table: &'t ResidencyTable,
    woken: Woken,
    expected_wakes: Vec<PageRange>,
    pages: Vec<Plain>,
    locks: Vec<FolioLock<'t>>,
}

impl Script<'_> {
    fn folio_of(&self, page: u32) -> PageRange {
        let len = 1 << self.pages[page as usize].order;
        PageRange::with_len(Page(page / len * len), len)
    }

    fn of(&mut self, range: PageRange) -> &mut [Plain] {
        &mut self.pages[range.start.0 as usize..range.end.0 as usize]
    }

    /// The index of the lock that a step names.
    fn chosen(&self, lock: u8) -> Option<usize> {
        (!self.locks.is_empty()).then(|| usize::from(lock) % self.locks.len())
    }

    /// Models the unlock of a folio: its waiters are woken.
    fn let_go(&mut self, range: PageRange) {
        if self.of(range)[0].waiters {
            self.expected_wakes.push(range);
        }
        for page in self.of(range) {
            (page.locked, page.waiters) = (false, false);
        }
    }

    fn unlock(&mut self, i: usize) {
        let lock = self.locks.remove(i);
        let range = lock.range();
        drop(lock);
        self.let_go(range);
    }

    fn lock(&mut self, page: u32) -> bool {
        let range = self.folio_of(page);
        let busy = self.pages[page as usize].locked;
        match self.table.try_lock(Page(page)) {
            TryLock::Busy => assert!(busy, "page {page} is free, but not to be had"),
            TryLock::Locked(lock) => {
                assert!(!busy, "two winners for page {page}");
                assert_eq!((lock.head(), lock.range()), (range.start, range));
                assert!(!lock.word().locked() && !lock.word().waiters());
                assert_eq!(
                    lock.word().mirrored(),
                    self.pages[range.start.0 as usize].mirrored
                );
                self.locks.push(lock);
                self.of(range).iter_mut().for_each(|p| p.locked = true);
            }
        }
        !busy
    }

    /// Publishes a locked folio. A folio with a pinned page is left alone, as every holder of a lock must do.
    fn publish(
        &mut self,
        lock: u8,
        residency: Residency,
        until: Option<u32>,
        whole: bool,
        word: impl Fn(Word) -> Word,
    ) {
        let Some(i) = self.chosen(lock) else { return };
        let range = self.locks[i].range();
        if self.of(range).iter().any(|p| p.pins > 0) {
            return;
        }
        let lock = self.locks.remove(i);
        let order = if whole { lock.order() } else { 0 };
        if whole {
            lock.publish_folio(word);
        } else {
            lock.publish_pages(word);
        }
        self.let_go(range);
        for page in self.of(range) {
            page.become_(residency, order);
            page.until = until;
        }
    }

    fn step(&mut self, op: &Op) {
        let page_of = |page: u8| u32::from(page) % PAGES;
        match *op {
            Op::Lock(page) => {
                self.lock(page_of(page));
            }
            Op::Unlock(lock) => {
                if let Some(i) = self.chosen(lock) {
                    self.unlock(i);
                }
            }
            Op::Halve(lock) => {
                let Some(i) = self.chosen(lock).filter(|i| self.locks[*i].order() > 0) else {
                    return;
                };
                let whole = self.locks[i].range();
                let upper = self.locks[i].halve();
                let middle = Page(whole.start.0 + whole.len() / 2);
                assert_eq!(
                    self.locks[i].range(),
                    PageRange::new(whole.start, middle),
                    "lower half"
                );
                assert_eq!(upper.range(), PageRange::new(middle, whole.end), "upper");
                self.locks.push(upper);
                self.of(whole).iter_mut().for_each(|p| p.order -= 1);
            }
            Op::Carve { lock, from, len } => self.carve(lock, page_of(from), len),
            Op::ToDevice {
                page,
                order,
                device,
                frame,
            } => self.migrate(
                page_of(page),
                order % (PAGES.ilog2() as u8 + 1),
                DeviceId(device % 64),
                frame >> 1,
            ),
            Op::ToSystem { lock, until } => {
                self.publish(lock, Residency::System, Some(until), true, |w| {
                    w.to_system(Tick(until))
                })
            }
            Op::ToSystemPages { lock, until } => {
                self.publish(lock, Residency::System, Some(until), false, |w| {
                    w.to_system(Tick(until))
                })
            }
            Op::Duplicate(lock) => self.copies(lock, true),
            Op::Alone(lock) => self.copies(lock, false),
            Op::Free(lock) => self.publish(lock, Residency::Untouched, None, false, |w| {
                w.to_untouched()
            }),
            Op::Poison(lock) => {
                self.publish(lock, Residency::Poisoned, None, false, |w| w.to_poisoned())
            }
            Op::SetReadOnly { lock, value } => {
                if let Some(i) = self.chosen(lock) {
                    let range = self.locks[i].range();
                    let permission = match value {
                        true => Permission::ReadOnly,
                        false => Permission::Writable,
                    };
                    self.locks[i].set_permission(permission);
                    self.of(range).iter_mut().for_each(|p| p.read_only = value);
                }
            }
            Op::ClearMirrored(lock) => {
                if let Some(i) = self.chosen(lock) {
                    let range = self.locks[i].range();
                    self.locks[i].clear_mirrored();
                    self.of(range).iter_mut().for_each(|p| p.mirrored = false);
                }
            }
            Op::Mark(page) => {
                let page = page_of(page);
                let folio = self.folio_of(page);
                let marked = self.table.mark_mirrored(Page(page));
                assert_eq!(marked.is_some(), !self.pages[page as usize].locked);
                if let Some(word) = marked {
                    self.of(folio).iter_mut().for_each(|p| p.mirrored = true);
                    assert_eq!(word.generation(), self.pages[page as usize].generation);
                }
            }
            Op::Pin(page) => {
                let page = page_of(page);
                let plain = &mut self.pages[page as usize];
                let expected = if plain.residency != Residency::System {
                    Err(PinError::NotNow)
                } else if plain.order > 0 {
                    // If the folio is locked, too, either error is correct.
                    Err(PinError::InFolio)
                } else if plain.locked {
                    Err(PinError::NotNow)
                } else if plain.pins == AUX_MAX {
                    Err(PinError::TooMany)
                } else {
                    plain.pins += 1;
                    Ok(())
                };
                match self.table.pin(Page(page)) {
                    Err(PinError::NotNow) if expected == Err(PinError::InFolio) => {
                        assert!(self.pages[page as usize].locked);
                    }
                    answer => assert_eq!(answer, expected),
                }
            }
            Op::Unpin(page) => {
                let page = page_of(page);
                if self.pages[page as usize].pins > 0 {
                    self.table.unpin(Page(page));
                    self.pages[page as usize].pins -= 1;
                }
            }
            Op::Announce(page) => {
                let page = page_of(page);
                let locked = self.pages[page as usize].locked;
                assert_eq!(self.table.announce_waiter(Page(page)), locked);
                if locked {
                    let folio = self.folio_of(page);
                    self.of(folio).iter_mut().for_each(|p| p.waiters = true);
                }
            }
        }
    }

    /// Publishes a locked device folio as a duplicate (`two`), or a duplicate as the device's alone.
    fn copies(&mut self, lock: u8, two: bool) {
        let Some(i) = self.chosen(lock) else { return };
        let range = self.locks[i].range();
        let changes = |page: &Plain| match page.residency {
            Residency::Device(_) => two,
            Residency::Duplicated(_) => !two,
            _ => false,
        };
        // All pages of a folio have the same state.
        let all = self.of(range).iter().filter(|p| changes(p)).count();
        if all == 0 {
            return;
        }
        assert_eq!(all, range.len() as usize);
        let lock = self.locks.remove(i);
        lock.publish_folio(match two {
            true => Word::to_duplicated,
            false => Word::to_device_alone,
        });
        self.let_go(range);
        for page in self.of(range) {
            let place = page.residency.placed().expect("a page on a device");
            let residency = match two {
                true => Residency::Duplicated(place),
                false => Residency::Device(place),
            };
            page.become_(residency, page.order);
        }
    }

    fn carve(&mut self, lock: u8, from: u32, len: u8) {
        let Some(i) = self.chosen(lock) else { return };
        let lock = self.locks.remove(i);
        let whole = lock.range();
        let wanted = PageRange::with_len(Page(from), u32::from(len) % (PAGES + 1));
        let mut kept = Vec::new();
        lock.carve(&|range| range.overlap(wanted), &mut kept);
        // The kept pieces must be the wanted pages, in order.
        let found: Vec<Page> = kept.iter().flat_map(|l| l.range().pages()).collect();
        let expected: Vec<Page> = whole.pages().filter(|p| wanted.contains(*p)).collect();
        assert_eq!(found, expected);
        // The model cuts the folio in the same way, piece by piece.
        let mut todo = vec![whole];
        while let Some(range) = todo.pop() {
            match range.overlap(wanted) {
                0 => self.let_go(range),
                n if n == range.len() => {}
                _ => {
                    self.of(range).iter_mut().for_each(|p| p.order -= 1);
                    let middle = Page(range.start.0 + range.len() / 2);
                    todo.push(PageRange::new(middle, range.end));
                    todo.push(PageRange::new(range.start, middle));
                }
            }
        }
        self.locks.extend(kept);
    }

    fn migrate(&mut self, page: u32, order: u8, device: DeviceId, frame: u32) {
        let len = 1 << order;
        let group = PageRange::with_len(Page(page / len * len), len);
        // All pages of a folio have the same permission.
        let read_only = self.of(group)[0].read_only;
        let possible =
            |p: &Plain| !p.locked && p.pins == 0 && p.order <= order && p.read_only == read_only;
        if !self.of(group).iter().all(possible) {
            return;
        }
        let latest = self.of(group).iter().map(|p| p.generation).max();
        let mut at = group.start;
        let before = self.locks.len();
        while at < group.end {
            assert!(self.lock(at.0));
            at = self.locks.last().expect("just locked").range().end;
        }
        let locks = self.locks.split_off(before);
        let folio = FolioLock::merge(locks, order, |word| {
            word.to_private(device, Frame(frame), order)
        });
        assert_eq!(folio.range(), group);
        self.locks.push(folio);
        for (i, page) in (0..).zip(self.of(group)) {
            let residency = Residency::Device(Placed {
                device,
                frame: Frame(frame + i),
                order,
            });
            page.generation = latest.expect("a folio has pages");
            page.become_(residency, order);
        }
    }

    /// Compares all visible state of table and model.
    fn check(&mut self) {
        let mut woken = std::mem::take(&mut *self.woken.0.lock().unwrap());
        let mut expected = std::mem::take(&mut self.expected_wakes);
        let order = |r: &PageRange| r.start;
        woken.sort_by_key(order);
        expected.sort_by_key(order);
        assert_eq!(woken, expected, "woken");
        for page in 0..PAGES {
            let (word, plain) = (self.table.word(Page(page)), &self.pages[page as usize]);
            let context = || format!("page {page}: {word:?}, expected {plain:?}");
            let mut residency = plain.residency;
            if let Residency::Device(Placed { order, .. })
            | Residency::Duplicated(Placed { order, .. }) = &mut residency
            {
                *order = plain.order;
            }
            assert_eq!(word.residency(), residency, "{}", context());
            assert_eq!(word.order(), plain.order, "{}", context());
            assert_eq!(word.generation(), plain.generation, "{}", context());
            assert_eq!(word.pins(), plain.pins, "{}", context());
            assert_eq!(word.read_only(), plain.read_only, "{}", context());
            let until = word.system_held_until().map(|t| t.0);
            assert_eq!(until, plain.until, "{}", context());
            let flags = (word.locked(), word.waiters(), word.mirrored());
            let expected = (plain.locked, plain.waiters, plain.mirrored);
            assert_eq!(flags, expected, "{}", context());
            assert_eq!(self.table.locked(Page(page)), plain.locked, "{}", context());
        }
    }
}

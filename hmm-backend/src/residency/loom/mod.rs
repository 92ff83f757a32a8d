//! The lock protocol under `loom`: CPUs, devices, migrations, evictions, frees and pins race for one or two pages, in
//! every interleaving with at most as many preemptions as each test states.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p hmm-backend --release --lib residency::loom
//!
//! The words, locks and waits are the real ones. The steps around them follow `fault/cpu.rs`, `ops/free.rs`,
//! `fault/evict.rs`, `ops/pin.rs`, `fault/mirror/mod.rs` and `migrate/`, with one number as the contents of a page.
//! System pages are behind a mutex, which models what is atomic in hardware: an access against the page's removal.
//! Frames are unprotected cells: `loom` reports every access that the protocol does not order. The kernel's part is
//! modelled as the kernel does it: a faulting CPU is queued before a service thread can read its message, then checks
//! once more whether the page is present, and sleeps until a wake-up for its page. Filling a page wakes its sleepers.

mod actors;
mod crowd;
mod duplicates;
mod races;

use std::sync::Mutex as Books;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering::SeqCst};
use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use loom::thread;

use crate::pages::time::Tick;
use crate::pages::{DeviceId, Frame, Page, PageRange};
use crate::residency::{
    FolioLock, PinError, Placed, Residency, ResidencyTable, TryLock, WakeFaults,
};

const PAGES: u32 = 2;
const CPUS: usize = 2;
/// As few as possible, so that frames are reused at once.
const FRAMES: usize = 2;

/// The kernel's queue of sleeping CPUs.
struct Sleepers {
    asleep_on: Mutex<[Option<Page>; CPUS]>,
    woken: Condvar,
}

impl WakeFaults for Arc<Sleepers> {
    fn wake_faults(&self, range: PageRange) {
        let mut asleep = self.asleep_on.lock().unwrap();
        for page in asleep.iter_mut() {
            if page.is_some_and(|p| range.contains(p)) {
                *page = None;
            }
        }
        self.woken.notify_all();
    }
}

/// A page in system memory as the hardware sees it.
#[derive(Clone, Copy, Default)]
struct SystemPage {
    /// Whether the page is in the CPUs' page tables.
    present: bool,
    /// Whether CPUs may only read it.
    protected: bool,
    value: u64,
}

/// The target of a device's translation.
#[derive(Clone, Copy, PartialEq)]
enum Target {
    System,
    Frame(u32),
    /// The frame of a duplicate, for reading only.
    ReadOnly(u32),
}

struct World {
    table: ResidencyTable,
    sleepers: Arc<Sleepers>,
    pages: [Mutex<SystemPage>; PAGES as usize],
    frames: [UnsafeCell<u64>; FRAMES],
    /// For the first frame of each folio: the folio's first page plus one.
    page_of: [AtomicU64; FRAMES],
    pool: Mutex<Vec<u32>>,
    /// The device's translations, one per page, behind the mirror's lock.
    mmu: Mutex<[Option<Target>; PAGES as usize]>,
    sequence: AtomicU64,
    /// The driver's state: which frames are the first of a folio in use. It takes no part in the race.
    in_use: Books<[bool; FRAMES]>,
    /// Number of device folios that have been freed.
    freed: Books<u64>,
}

// SAFETY: the frames are accessed only under the protocol under test; loom reports a violation.
unsafe impl Sync for World {}

impl World {
    /// A world in which both pages are in one device folio; each page's contents are its number plus 10.
    fn new() -> Arc<World> {
        let sleepers = Arc::new(Sleepers {
            asleep_on: Mutex::new([None; CPUS]),
            woken: Condvar::new(),
        });
        let world = Arc::new(World {
            table: ResidencyTable::new(PAGES, Box::new(sleepers.clone())),
            sleepers,
            pages: [(); 2].map(|_| Mutex::new(SystemPage::default())),
            frames: [UnsafeCell::new(10), UnsafeCell::new(11)],
            page_of: [AtomicU64::new(1), AtomicU64::new(0)],
            pool: Mutex::new(Vec::new()),
            mmu: Mutex::new([None; PAGES as usize]),
            sequence: AtomicU64::new(0),
            in_use: Books::new([true, false]),
            freed: Books::new(0),
        });
        let locks: Vec<_> = (0..PAGES).map(|p| world.try_lock(p).unwrap()).collect();
        FolioLock::merge(locks, 1, |w| w.to_private(DeviceId(0), Frame(0), 1));
        world
    }

    fn page(&self, page: u32) -> MutexGuard<'_, SystemPage> {
        self.pages[page as usize].lock().unwrap()
    }

    fn try_lock(&self, page: u32) -> Option<FolioLock<'_>> {
        match self.table.try_lock(Page(page)) {
            TryLock::Locked(lock) => Some(lock),
            TryLock::Busy => None,
        }
    }

    fn lock_waiting(&self, page: u32) -> FolioLock<'_> {
        loop {
            match self.try_lock(page) {
                Some(lock) => return lock,
                None => self.table.wait(Page(page)),
            }
        }
    }

    fn read_frame(&self, frame: u32) -> u64 {
        // SAFETY: the reader holds the page's lock or the mirror's lock.
        self.frames[frame as usize].with(|value| unsafe { *value })
    }

    fn write_frame(&self, frame: u32, new: impl FnOnce(u64) -> u64) {
        // SAFETY: as above, or the frame has just been allocated or is not yet in the pool.
        self.frames[frame as usize].with_mut(|value| unsafe { *value = new(*value) });
    }

    // --- device memory (`device.rs`)

    fn alloc(&self, page: u32) -> Option<u32> {
        let frame = self.pool.lock().unwrap().pop()?;
        let was = std::mem::replace(&mut self.in_use.lock().unwrap()[frame as usize], true);
        assert!(!was, "frame {frame} is handed out twice");
        self.page_of[frame as usize].store(u64::from(page) + 1, SeqCst);
        Some(frame)
    }

    /// Cuts a device folio of two pages and returns the lock of the half with `page`.
    fn halve_for<'w>(&'w self, page: u32, mut lock: FolioLock<'w>) -> FolioLock<'w> {
        if let Residency::Device(Placed { frame, order, .. })
        | Residency::Duplicated(Placed { frame, order, .. }) = lock.word().residency()
            && order == 1
        {
            self.in_use.lock().unwrap()[frame.0 as usize + 1] = true;
            self.page_of[frame.0 as usize + 1].store(u64::from(lock.head().0) + 2, SeqCst);
            let upper = lock.halve();
            if page == upper.head().0 {
                drop(std::mem::replace(&mut lock, upper));
            }
        }
        lock
    }

    /// Returns `frames` frames to the pool. The locks on their pages have been released.
    fn release(&self, first: u32, frames: u32, scrub: bool) {
        self.page_of[first as usize].store(0, SeqCst);
        let was = std::mem::take(&mut self.in_use.lock().unwrap()[first as usize]);
        assert!(was, "page_free twice for frame {first}");
        *self.freed.lock().unwrap() += 1;
        for frame in first..first + frames {
            if scrub {
                self.write_frame(frame, |_| 0);
            }
            self.pool.lock().unwrap().push(frame);
        }
    }

    // --- the steps of migrations (`migrate/`)

    /// Removes the device's translations before contents move.
    fn invalidate(&self, lock: &mut FolioLock<'_>) {
        if !lock.word().mirrored() {
            return;
        }
        lock.clear_mirrored();
        let mut mmu = self.mmu.lock().unwrap();
        self.sequence.fetch_add(1, SeqCst);
        for page in lock.range().pages() {
            mmu[page.0 as usize] = None;
        }
    }

    /// Brings a device folio back to system memory: all phases.
    fn bring_back(&self, mut lock: FolioLock<'_>) {
        let (Residency::Device(Placed { frame, .. }) | Residency::Duplicated(Placed { frame, .. })) =
            lock.word().residency()
        else {
            panic!("only device folios come back");
        };
        self.invalidate(&mut lock);
        let range = lock.range();
        if lock.word().residency().duplicated() {
            self.lift_protection(range);
        } else {
            self.give(range, frame.0, false);
        }
        lock.publish_folio(|w| w.to_system(Tick(0)));
        self.release(frame.0, range.len(), false);
    }

    /// Migrates one page to the device, if that is possible at this moment.
    fn to_device(&self, page: u32) {
        let free = |w: Residency| matches!(w, Residency::System | Residency::Untouched);
        if !free(self.table.word(Page(page)).residency()) {
            return;
        }
        let Some(lock) = self.try_lock(page) else {
            return;
        };
        if !free(lock.word().residency()) || lock.word().pins() > 0 {
            return;
        }
        let mut locks: Vec<FolioLock<'_>> = Vec::new();
        lock.carve(&|range| range.contains(Page(page)).into(), &mut locks);
        let Some(frame) = self.alloc(page) else {
            return;
        };
        self.invalidate(&mut locks[0]);
        let taken = std::mem::take(&mut *self.page(page));
        self.write_frame(frame, |_| taken.value);
        drop(FolioLock::merge(locks, 0, |w| {
            w.to_private(DeviceId(0), Frame(frame), 0)
        }));
    }

    /// Migrates both pages to the device, in one folio, if that is possible at this moment.
    fn to_device_together(&self) {
        let mut locks: Vec<FolioLock<'_>> = Vec::new();
        for page in (0..PAGES).map(Page) {
            if locks.last().is_some_and(|lock| lock.range().contains(page)) {
                continue;
            }
            let Some(lock) = self.try_lock(page.0) else {
                return;
            };
            let free = matches!(
                lock.word().residency(),
                Residency::System | Residency::Untouched
            );
            if !free || lock.word().pins() > 0 {
                return;
            }
            locks.push(lock);
        }
        let mut pool = self.pool.lock().unwrap();
        if pool.len() < FRAMES {
            return;
        }
        pool.clear();
        drop(pool);
        self.in_use.lock().unwrap()[0] = true;
        self.page_of[0].store(1, SeqCst);
        for lock in &mut locks {
            self.invalidate(lock);
        }
        for page in 0..PAGES {
            let taken = std::mem::take(&mut *self.page(page));
            self.write_frame(page, |_| taken.value);
        }
        drop(FolioLock::merge(locks, 1, |w| {
            w.to_private(DeviceId(0), Frame(0), 1)
        }));
    }

    /// Passes one page from the device to another one, or back, if that is possible at this moment (`migrate/between.rs`).
    /// The two devices have one pool, so that a page may get the frame that another one has just left.
    fn pass(&self, page: u32) {
        let on_device = |residency| matches!(residency, Residency::Device(_));
        if !on_device(self.table.word(Page(page)).residency()) {
            return;
        }
        let Some(lock) = self.try_lock(page) else {
            return;
        };
        if !on_device(lock.word().residency()) {
            return;
        }
        let mut lock = self.halve_for(page, lock);
        let Residency::Device(Placed { device, frame, .. }) = lock.word().residency() else {
            panic!("a half of a device folio is one, too");
        };
        let Some(to) = self.alloc(page) else {
            return;
        };
        self.invalidate(&mut lock);
        let contents = self.read_frame(frame.0);
        self.write_frame(to, |_| contents);
        let other = DeviceId(1 - device.0);
        drop(FolioLock::merge(vec![lock], 0, |w| {
            w.to_private(other, Frame(to), 0)
        }));
        self.release(frame.0, 1, true);
    }

    /// Evicts the folio that starts at a frame, if there is one (`fault/evict.rs`).
    fn evict(&self, frame: u32) {
        let page = self.page_of[frame as usize].load(SeqCst);
        let Some(page) = page.checked_sub(1) else {
            return;
        };
        let page = page as u32;
        let on_device = |residency| match residency {
            Residency::Device(Placed { frame, .. })
            | Residency::Duplicated(Placed { frame, .. }) => Some(frame.0),
            _ => None,
        };
        if on_device(self.table.word(Page(page)).residency()).is_none() {
            return;
        }
        let Some(lock) = self.try_lock(page) else {
            return;
        };
        // Between the two checks the page may have moved, and the frame may have been reused.
        if on_device(lock.word().residency()) == Some(frame) {
            self.bring_back(lock);
        }
    }

    // --- checks afterwards

    /// The page's contents, in system memory or in a frame.
    fn contents(&self, page: u32) -> u64 {
        match self.table.word(Page(page)).residency() {
            Residency::Device(Placed { frame, .. }) => self.read_frame(frame.0),
            Residency::Duplicated(Placed { frame, .. }) => {
                let value = self.page(page).value;
                assert_eq!(self.read_frame(frame.0), value, "two copies of page {page}");
                value
            }
            _ => self.page(page).value,
        }
    }

    /// Checks that every frame is in use by a page or in the pool, and that the driver's state agrees.
    fn check_frames(&self) {
        let mut known = [false; FRAMES];
        let mut used = 0;
        for page in 0..PAGES {
            let word = self.table.word(Page(page));
            assert!(!self.table.locked(Page(page)), "page {page}: {word:?}");
            let duplicated = word.residency().duplicated();
            let it = *self.page(page);
            assert_eq!(
                (it.present, it.protected),
                (
                    duplicated || word.residency() == Residency::System,
                    duplicated
                ),
                "page {page}: {word:?}"
            );
            if let Residency::Device(Placed { frame, order, .. })
            | Residency::Duplicated(Placed { frame, order, .. }) = word.residency()
            {
                used += 1;
                if Page(page).folio_head(order) == Page(page) {
                    known[frame.0 as usize] = true;
                    let back = self.page_of[frame.0 as usize].load(SeqCst);
                    assert_eq!(back, u64::from(page) + 1, "the reverse map");
                }
            }
        }
        assert_eq!(*self.in_use.lock().unwrap(), known);
        assert_eq!(self.pool.lock().unwrap().len() + used, FRAMES);
    }
}

/// Tries all interleavings of a test with at most `preemptions` preemptions. The test starts with both pages on the
/// device.
fn model(preemptions: usize, test: impl Fn(Arc<World>) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = runs.clone();
    let started = std::time::Instant::now();
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let world = World::new();
        test(world.clone());
        world.check_frames();
    });
    eprintln!(
        "{} interleavings with up to {preemptions} preemptions in {:.1?}",
        runs.load(std::sync::atomic::Ordering::Relaxed),
        started.elapsed()
    );
}

/// Runs `work` in another thread.
fn meanwhile(world: &Arc<World>, work: impl Fn(&World) + 'static) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || work(&world))
}

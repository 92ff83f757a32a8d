//! The lock protocol under `loom`: CPUs, a device migration and a free race for one or two pages, in every
//! interleaving with at most [`PREEMPTIONS`] preemptions.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p hmm-backend --release --lib residency_model
//!
//! The model keeps the contents as a number in one of two places. The kernel's part is modelled as the kernel
//! does it: a faulting CPU is queued before anybody can read its message, looks once more whether the page is
//! there, and sleeps until a wake-up for its page; filling a page wakes its sleepers.

use loom::sync::atomic::{AtomicU64, Ordering::SeqCst};
use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
use loom::thread;

use crate::driver::{DeviceId, Frame};
use crate::folio_lock::FolioLock;
use crate::page::{Page, PageRange};
use crate::residency::{ResidencyTable, TryLock, WakeFaults};
use crate::time::Tick;
use crate::word::Residency;

const PREEMPTIONS: usize = 3;
const PAGES: u32 = 2;
const CPUS: usize = 2;

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

/// A page as hardware sees it. A lock stands for what is atomic there: an access against the page's removal.
#[derive(Clone, Copy, Default)]
struct Frames {
    /// Whether the CPUs' page tables have the page.
    present: bool,
    system: u64,
    device: u64,
}

struct World {
    table: ResidencyTable,
    sleepers: Arc<Sleepers>,
    pages: [Mutex<Frames>; PAGES as usize],
    /// Ends of life of device folios.
    freed: AtomicU64,
}

impl World {
    fn new() -> Arc<World> {
        let sleepers = Arc::new(Sleepers {
            asleep_on: Mutex::new([None; CPUS]),
            woken: Condvar::new(),
        });
        Arc::new(World {
            table: ResidencyTable::new(PAGES, Box::new(sleepers.clone())),
            sleepers,
            pages: [(); 2].map(|_| Mutex::new(Frames::default())),
            freed: AtomicU64::new(0),
        })
    }

    fn page(&self, page: u32) -> MutexGuard<'_, Frames> {
        self.pages[page as usize].lock().unwrap()
    }

    fn lock(&self, page: u32) -> FolioLock<'_> {
        match self.table.try_lock(Page(page)) {
            TryLock::Locked(lock) => lock,
            TryLock::Busy => panic!("nobody else runs yet"),
        }
    }

    /// Puts both pages into one device folio, each holding its number plus 10.
    fn start_on_device(&self) {
        let locks = (0..PAGES).map(|p| self.lock(p)).collect();
        for page in 0..PAGES {
            self.page(page).device = u64::from(page) + 10;
        }
        FolioLock::merge(locks, 1, |i, w| {
            w.to_device(DeviceId(0), Frame(i as u32), 1)
        });
    }

    /// What the engines' `give` does: fills the page and wakes who sleeps for it.
    fn give(&self, page: Page) {
        let mut frames = self.page(page.0);
        frames.system = std::mem::take(&mut frames.device);
        frames.present = true;
        drop(frames);
        self.sleepers.wake_faults(PageRange::single(page));
    }

    /// A CPU increments the page's number, if the page is there.
    fn access(&self, page: u32) -> bool {
        let mut frames = self.page(page);
        frames.system += u64::from(frames.present);
        frames.present
    }

    /// A CPU increments the page's number.
    fn cpu(&self, cpu: usize, page: u32) {
        while !self.access(page) {
            self.sleepers.asleep_on.lock().unwrap()[cpu] = Some(Page(page));
            if self.page(page).present {
                self.sleepers.asleep_on.lock().unwrap()[cpu] = None;
                continue;
            }
            while !self.serve(Page(page)) {
                thread::yield_now();
            }
            let mut asleep = self.sleepers.asleep_on.lock().unwrap();
            while asleep[cpu].is_some() {
                asleep = self.sleepers.woken.wait(asleep).unwrap();
            }
        }
    }

    /// A service thread on a fault, step by step as `fault.rs` does it. False: to be tried again.
    fn serve(&self, page: Page) -> bool {
        if self.table.announce_waiter(page) {
            return true;
        }
        let before = self.table.word(page);
        match before.residency() {
            Residency::System => {
                self.sleepers.wake_faults(PageRange::single(page));
                return true;
            }
            Residency::Device { .. } | Residency::Untouched => {}
            Residency::Poisoned => panic!("nobody poisons"),
        }
        if let TryLock::Locked(mut lock) = self.table.try_lock(page) {
            match lock.word().residency() {
                Residency::Device { order, .. } => {
                    if order == 1 {
                        let upper = lock.halve();
                        // Only the wanted half moves.
                        if page.0 == 1 {
                            drop(std::mem::replace(&mut lock, upper));
                        } else {
                            drop(upper);
                        }
                    }
                    self.give(page);
                    lock.publish_pages(|w| w.to_system(Tick(0)));
                    self.freed.fetch_add(1, SeqCst);
                }
                Residency::Untouched => {
                    self.give(page);
                    lock.publish_pages(|w| w.to_system(Tick(0)));
                }
                _ => {}
            }
        }
        // `check_resolved`
        if self.table.announce_waiter(page) {
            return true;
        }
        let after = self.table.word(page);
        if after.residency() == Residency::System {
            return true;
        }
        if after.generation() == before.generation() {
            return false;
        }
        self.sleepers.wake_faults(PageRange::single(page));
        true
    }

    /// A migration of one page to the device, where it can be done now.
    fn to_device(&self, page: u32) {
        if let TryLock::Locked(lock) = self.table.try_lock(Page(page))
            && lock.word().residency() == Residency::System
            && lock.word().pins() == 0
        {
            let mut frames = self.page(page);
            frames.present = false;
            frames.device = std::mem::take(&mut frames.system);
            drop(frames);
            drop(FolioLock::merge(vec![lock], 0, |_, w| {
                w.to_device(DeviceId(0), Frame(page), 0)
            }));
        }
    }

    /// The guest frees one page.
    fn free(&self, page: u32) {
        let lock = loop {
            match self.table.try_lock(Page(page)) {
                TryLock::Locked(mut lock) if lock.order() == 1 => {
                    let upper = lock.halve();
                    if page == 1 {
                        drop(std::mem::replace(&mut lock, upper));
                    } else {
                        drop(upper);
                    }
                    break lock;
                }
                TryLock::Locked(lock) => break lock,
                TryLock::Busy => self.table.wait(Page(page)),
            }
        };
        *self.page(page) = Frames::default();
        lock.publish_pages(|w| w.to_untouched());
    }

    /// The page's contents, wherever they are.
    fn contents(&self, page: u32) -> u64 {
        let frames = *self.page(page);
        match self.table.word(Page(page)).residency() {
            Residency::Device { .. } => frames.device,
            _ => frames.system,
        }
    }
}

/// Tries all interleavings of a test that starts with both pages on the device.
fn model(test: impl Fn(Arc<World>) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || {
        let world = World::new();
        world.start_on_device();
        test(world);
    });
}

/// Somebody else at work.
fn meanwhile(world: &Arc<World>, work: impl Fn(&World) + 'static) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || work(&world))
}

#[test]
fn two_cpus_fault_on_one_page() {
    model(|world| {
        let cpu = meanwhile(&world, |w| w.cpu(1, 1));
        world.cpu(0, 1);
        cpu.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (10, 13));
        assert_eq!(world.freed.load(SeqCst), 1, "one winner");
    });
}

#[test]
fn two_cpus_fault_on_two_pages_of_one_folio() {
    model(|world| {
        let cpu = meanwhile(&world, |w| w.cpu(1, 1));
        world.cpu(0, 0);
        cpu.join().unwrap();
        assert_eq!((world.contents(0), world.contents(1)), (11, 12));
        assert_eq!(world.freed.load(SeqCst), 2);
    });
}

#[test]
fn a_fault_races_a_migration_to_the_device() {
    model(|world| {
        world.cpu(0, 0);
        let device = meanwhile(&world, |w| w.to_device(0));
        world.cpu(0, 0);
        device.join().unwrap();
        assert_eq!(world.contents(0), 12);
    });
}

#[test]
fn a_fault_races_a_free() {
    model(|world| {
        let free = meanwhile(&world, |w| w.free(1));
        world.cpu(0, 1);
        free.join().unwrap();
        // Before or after: never the old contents with the free forgotten.
        assert!([0, 1].contains(&world.contents(1)), "{}", world.contents(1));
        assert_eq!(world.contents(0), 10);
    });
}

#[test]
fn a_fault_a_migration_and_a_free_race() {
    model(|world| {
        world.cpu(0, 0);
        let device = meanwhile(&world, |w| w.to_device(0));
        let free = meanwhile(&world, |w| w.free(0));
        world.cpu(0, 0);
        device.join().unwrap();
        free.join().unwrap();
        assert!([0, 1].contains(&world.contents(0)), "{}", world.contents(0));
    });
}

#[test]
fn a_pinned_page_never_leaves() {
    model(|world| {
        world.cpu(0, 0);
        let device = meanwhile(&world, |w| w.to_device(0));
        if world.table.pin(Page(0)).is_ok() {
            assert!(world.page(0).present);
            assert_eq!(world.contents(0), 11);
            world.table.unpin(Page(0));
        }
        device.join().unwrap();
        assert_eq!(world.contents(0), 11);
    });
}

#[test]
fn a_translation_is_invalidated_or_never_made() {
    model(|world| {
        let other = world.clone();
        // A holder that sees no mark takes the page without asking the device.
        let holder = thread::spawn(move || match other.table.try_lock(Page(1)) {
            TryLock::Locked(lock) => Some(lock.word().mirrored()),
            TryLock::Busy => None,
        });
        let marked = world.table.mark_mirrored(Page(1)).is_some();
        let seen = holder.join().unwrap();
        let marked_now = match world.table.try_lock(Page(0)) {
            TryLock::Locked(lock) => lock.word().mirrored(),
            TryLock::Busy => panic!("all are done"),
        };
        // A note may stay behind without a translation, which costs an invalidation; not the other way
        // round.
        assert!(marked_now || !marked);
        assert!(seen.is_some());
    });
}

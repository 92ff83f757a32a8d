//! The mirror: a device's view of managed memory. Its rules are in the documentation of [`crate::mirror`].

mod page_table;
mod remote;

pub use page_table::{PageTable, TranslationTable};
pub use remote::RemoteCounters;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::faults::Faults;
use crate::migrate::{Device, Invalidate};
use crate::pages::{Access, DeviceId, Error, Fidelity, Frame, Page, PageRange, Visit};

/// A device's translation table with its TLB.
pub trait DeviceMmu: Send + 'static {
    /// Removes all translations of these pages. The device cannot be using one, because the mirror's lock is
    /// held.
    fn invalidate(&mut self, pages: PageRange);

    /// How much the device tells of its accesses to pages that it reaches without a fault. It stays the same. The access for
    /// which a fault was made is told of by the fault: it sets no bit and is no visit.
    fn fidelity(&self) -> Fidelity {
        Fidelity::Faults
    }

    /// Tests and clears the accessed and dirty bits of these pages. Calls `each` with those that were accessed since their bits
    /// were last cleared, or since their translations were entered: [`Access::Write`] if the dirty bit was set. The TLB must not
    /// keep what would hide the next access. Called only with [`Fidelity::Bits`].
    fn take_bits(&mut self, pages: PageRange, each: &mut dyn FnMut(Page, Access)) {
        let _ = (pages, each);
    }

    /// Calls `each` with the visits since the last call, in order, and forgets them. Called only with [`Fidelity::All`], at every
    /// fault and every eviction; a device that keeps few of them also calls [`Mirror::tell_visits`].
    fn take_visits(&mut self, each: &mut dyn FnMut(Visit)) {
        let _ = each;
    }
}

/// The place that a translation leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Into system memory (or another device's coherent memory), in place.
    System,
    /// Into the device's own memory.
    Device(Frame),
}

/// Host address of a page's bytes. The memory behind it stays mapped while the backend lives, but it belongs to
/// *this page* only as long as the translation is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPage(pub(super) u64);

impl HostPage {
    /// Returns the address of the page's first byte. Other processors change the bytes concurrently: access
    /// them only through volatile or atomic operations, and only under the guard.
    pub fn as_ptr(self) -> *mut u8 {
        self.0 as *mut u8
    }
}

/// A translation for the device to enter into its table.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// The page.
    pub page: Page,
    /// Where the page is.
    pub target: Target,
    /// Whether the device may write.
    pub writable: bool,
    /// Whether the device may write, and no CPU and no other device reaches the page while this translation is
    /// valid. Atomic operations need this.
    pub exclusive: bool,
    /// The page's bytes.
    pub host: HostPage,
}

/// A fault on its way from finding pages to entering their translations.
#[derive(Default)]
pub(super) struct InFlight {
    /// Pages found so far.
    pub(super) found: Option<PageRange>,
    /// Whether a page in `found` has been invalidated since.
    pub(super) stale: bool,
}

pub(super) struct Tables<M> {
    mmu: M,
    pub(super) in_flight: InFlight,
    /// Whether the device waits for invalidations. An invalidation signals only then, because a signal costs a
    /// system call even without a waiting thread.
    waiting: bool,
}

pub(super) struct MirrorState<M> {
    device: DeviceId,
    fidelity: Fidelity,
    /// Whether the device is in a fault, at whose beginning it has told of its visits. It makes none meanwhile.
    told: AtomicBool,
    tables: Mutex<Tables<M>>,
    /// The number of invalidations that want the mutex.
    wanted: AtomicU32,
    no_longer_wanted: Condvar,
}

impl<M> MirrorState<M> {
    /// Notes whether the device is in a fault and has told of its visits.
    pub(super) fn set_told(&self, told: bool) {
        self.told.store(told, Ordering::Relaxed);
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables<M>> {
        self.tables.lock()
    }
}

impl<M> MirrorState<M> {
    /// Calls `act` with the tables between two of the device's guards; the device does not take the next one before.
    fn interrupt<R>(&self, act: impl FnOnce(&mut Tables<M>) -> R) -> R {
        // If the mutex is free, the device need not be told that an invalidation wants it.
        if let Some(mut tables) = self.tables.try_lock() {
            return act(&mut tables);
        }
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let mut tables = self.tables();
        let result = act(&mut tables);
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        let waiting = tables.waiting;
        drop(tables);
        if waiting {
            self.no_longer_wanted.notify_all();
        }
        result
    }
}

impl<M: DeviceMmu> Invalidate for MirrorState<M> {
    fn device(&self) -> DeviceId {
        self.device
    }

    fn invalidate(&self, pages: PageRange) {
        self.interrupt(|tables| {
            let in_flight = &mut tables.in_flight;
            in_flight.stale |= in_flight
                .found
                .is_some_and(|found| found.overlap(pages) > 0);
            tables.mmu.invalidate(pages);
        });
    }

    fn fidelity(&self) -> Fidelity {
        self.fidelity
    }

    fn take_bits(&self, pages: PageRange, each: &mut dyn FnMut(Page, Access)) {
        self.interrupt(|tables| tables.mmu.take_bits(pages, each));
    }

    fn take_visits(&self, each: &mut dyn FnMut(Visit)) {
        // A value that is about to change is as good as the next one: only the device's own thread makes visits.
        if self.told.load(Ordering::Relaxed) {
            return;
        }
        self.interrupt(|tables| tables.mmu.take_visits(each));
    }
}

/// A device's access to managed memory, for the one thread that runs the device.
pub struct Mirror<M: DeviceMmu> {
    pub(super) faults: Arc<Faults>,
    pub(super) device: Arc<Device>,
    pub(super) shared: Arc<MirrorState<M>>,
}

/// Gives access to the device's translations while it lives; invalidations wait until it is dropped.
pub struct MirrorGuard<'a, M> {
    pub(super) tables: MutexGuard<'a, Tables<M>>,
    wanted: &'a AtomicU32,
}

impl<M> MirrorGuard<'_, M> {
    /// Returns whether an invalidation waits for the guard: drop the guard soon.
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }
}

impl<M> Deref for MirrorGuard<'_, M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.tables.mmu
    }
}

impl<M> DerefMut for MirrorGuard<'_, M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.tables.mmu
    }
}

impl<M: DeviceMmu> Mirror<M> {
    /// See [`crate::Backend::mirror`].
    pub(crate) fn new(faults: Arc<Faults>, device: DeviceId, mmu: M) -> Result<Mirror<M>, Error> {
        let device = faults.core.device(device)?.clone();
        let shared = Arc::new(MirrorState {
            device: device.id,
            fidelity: mmu.fidelity(),
            told: AtomicBool::new(false),
            tables: Mutex::new(Tables {
                mmu,
                in_flight: InFlight::default(),
                waiting: false,
            }),
            wanted: AtomicU32::new(0),
            no_longer_wanted: Condvar::new(),
        });
        faults.core.mirrors.add(shared.clone());
        Ok(Mirror {
            faults,
            device,
            shared,
        })
    }

    /// Returns from how many accesses in place, in system memory, to the 16 pages of an aligned 64 KiB group
    /// the device should report them with [`Self::used_in_place`]; `None` if no policy wants reports. The
    /// number may change.
    pub fn remote_access_threshold(&self) -> Option<u32> {
        let threshold = &self.faults.remote_access_threshold;
        match threshold.load(Ordering::Relaxed) {
            0 => None,
            n => Some(n),
        }
    }

    /// Reports that the device has used these pages in place `count` times each or more since their
    /// translations were made, or since its last report. The policy may migrate them, a little later.
    pub fn used_in_place(&mut self, pages: PageRange, count: u32) -> Result<(), Error> {
        self.faults.core.check_range(pages)?;
        self.faults.used_in_place(&self.device, pages, count);
        Ok(())
    }

    /// Tells the eviction policy of the visits that the MMU has kept. For a device that runs long without a fault: every fault does it,
    /// too.
    pub fn tell_visits(&mut self) {
        if self.shared.fidelity == Fidelity::All {
            self.faults.tell_visits(&self.device, &*self.shared);
        }
    }

    /// Locks and returns the device's translations. Invalidations that wait go first. While the guard is held,
    /// call nothing else of the backend: every migration waits for the guard, so the call may deadlock.
    pub fn lock(&mut self) -> MirrorGuard<'_, M> {
        let shared = &*self.shared;
        let mut tables = shared.tables();
        // With the mutex alone, a busy device could win it against a waiting invalidation for ever.
        while shared.wanted.load(Ordering::SeqCst) > 0 {
            tables.waiting = true;
            shared.no_longer_wanted.wait(&mut tables);
            tables.waiting = false;
        }
        MirrorGuard {
            tables,
            wanted: &shared.wanted,
        }
    }
}

impl<M: DeviceMmu> Drop for Mirror<M> {
    fn drop(&mut self) {
        let mine: Arc<dyn Invalidate> = self.shared.clone();
        self.faults.core.mirrors.remove(&mine);
    }
}

//! The mirror: a device's view of managed memory.
//!
//! The device keeps its own translation table (a [`DeviceMmu`]), but the table lives *inside* the
//! mirror, behind the lock that invalidation takes. So the rules of Linux's `mmu_interval_notifier`
//! cannot be broken by forgetting one:
//!
//! * entries are looked up and used only under a [`MirrorGuard`], and an invalidation returns only when
//!   no guard is held: nobody uses an old translation;
//! * new entries are made only by [`Mirror::fault`], which checks under the same lock that no
//!   invalidation came between finding the page and entering it;
//! * a fault needs the mirror mutably, so it cannot be taken with a guard held, which would deadlock
//!   against the migration it may cause.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{Backend, set_of};
use crate::device::Device;
use crate::driver::{DeviceId, Frame};
use crate::error::{Error, MirrorError};
use crate::events::EventKind;
use crate::migrate::Reason;
use crate::page::{Page, PageRange, PageSet};
use crate::policy::{Access, Advice, BlockFault, BlockView, Place};
use crate::stats::{Cause, Counter, Toucher};
use crate::word::{Residency, Word};

/// A device's translation table with its TLB.
pub trait DeviceMmu: Send + 'static {
    /// Forgets all translations of these pages. The device cannot be using one: the lock is held.
    fn invalidate(&mut self, pages: PageRange);
}

/// Where a translation leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Into system memory, in place.
    System,
    /// Into the device's own memory.
    Device(Frame),
}

/// Host address of a page's bytes. The memory behind it is always mapped while the backend lives, but it
/// is *this page* only as long as the translation is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPage(u64);

impl HostPage {
    /// The address of the page's first byte. Other processors change the bytes concurrently: access
    /// them through volatile or atomic operations only, and only under the guard.
    pub fn as_ptr(self) -> *mut u8 {
        self.0 as *mut u8
    }
}

/// A translation for the device to enter into its table.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// The page.
    pub page: Page,
    /// Where it is.
    pub target: Target,
    /// Whether the device may write.
    pub writable: bool,
    /// Its bytes.
    pub host: HostPage,
}

/// What migrations need of a mirror.
pub(crate) trait Invalidate: Send + Sync {
    fn device(&self) -> DeviceId;
    /// Takes translations away; returns when none is in use.
    fn invalidate(&self, pages: PageRange);
}

struct Shared<M> {
    device: DeviceId,
    mmu: Mutex<M>,
    /// Counts invalidations. Changes only with the mutex held.
    sequence: AtomicU64,
    /// Invalidations waiting for the mutex.
    wanted: AtomicU32,
    no_longer_wanted: Condvar,
}

impl<M> Shared<M> {
    fn mmu(&self) -> MutexGuard<'_, M> {
        self.mmu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: DeviceMmu> Invalidate for Shared<M> {
    fn device(&self) -> DeviceId {
        self.device
    }

    fn invalidate(&self, pages: PageRange) {
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let mut mmu = self.mmu();
        self.sequence.fetch_add(1, Ordering::SeqCst);
        mmu.invalidate(pages);
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        drop(mmu);
        self.no_longer_wanted.notify_all();
    }
}

/// A device's access to managed memory, for the one thread that is the device.
pub struct Mirror<M: DeviceMmu> {
    backend: Arc<Backend>,
    device: Arc<Device>,
    shared: Arc<Shared<M>>,
}

/// The device's translations, for as long as it lives; invalidations wait for it.
pub struct MirrorGuard<'a, M> {
    mmu: MutexGuard<'a, M>,
    wanted: &'a AtomicU32,
}

impl<M> MirrorGuard<'_, M> {
    /// Somebody waits to invalidate: let go of the guard soon.
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }
}

impl<M> Deref for MirrorGuard<'_, M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.mmu
    }
}

impl<M> DerefMut for MirrorGuard<'_, M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.mmu
    }
}

/// After this many fruitless attempts to get a page into its own memory, a device takes it in place:
/// progress before placement.
const MIGRATION_ATTEMPTS: u32 = 3;

impl Backend {
    /// Makes a mirror for a device. A device may have several.
    pub fn mirror<M: DeviceMmu>(
        self: &Arc<Self>,
        device: DeviceId,
        mmu: M,
    ) -> Result<Mirror<M>, Error> {
        let device = self.device(device)?.clone();
        let shared = Arc::new(Shared {
            device: device.id,
            mmu: Mutex::new(mmu),
            sequence: AtomicU64::new(0),
            wanted: AtomicU32::new(0),
            no_longer_wanted: Condvar::new(),
        });
        self.mirrors
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(shared.clone());
        Ok(Mirror {
            backend: self.clone(),
            device,
            shared,
        })
    }
}

impl<M: DeviceMmu> Mirror<M> {
    /// The device's translations. Waits for invalidations, which go first. With the guard held, call nothing
    /// else of the backend: whatever migrates waits for the guard.
    pub fn lock(&mut self) -> MirrorGuard<'_, M> {
        let shared = &*self.shared;
        let mut mmu = shared.mmu();
        // A mutex alone would let a busy device win against a waiting invalidation for ever.
        while shared.wanted.load(Ordering::SeqCst) > 0 {
            mmu = shared
                .no_longer_wanted
                .wait(mmu)
                .unwrap_or_else(PoisonError::into_inner);
        }
        MirrorGuard {
            mmu,
            wanted: &shared.wanted,
        }
    }

    /// Makes a page accessible and lets `program` enter its translation. See [`Self::fault_range`].
    pub fn fault(
        &mut self,
        page: Page,
        access: Access,
        mut program: impl FnMut(&mut M, Mapping),
    ) -> Result<(), MirrorError> {
        self.fault_range(PageRange::single(page), access, |mmu, mappings| {
            program(mmu, mappings[0])
        })
    }

    /// Makes all pages of a range accessible at the same time and lets `program` enter their translations
    /// under the lock, after checking that none was invalidated meanwhile. Migrates as the policy
    /// says; sleeps while pages are in motion.
    pub fn fault_range(
        &mut self,
        range: PageRange,
        access: Access,
        mut program: impl FnMut(&mut M, &[Mapping]),
    ) -> Result<(), MirrorError> {
        if range.end.0 > self.backend.pages() {
            let first = range.start.max(Page(self.backend.pages()));
            return Err(MirrorError::OutOfRange(first));
        }
        let started = Instant::now();
        let mut serviced = false;
        let mut rounds = 0;
        loop {
            let sequence = self.shared.sequence.load(Ordering::SeqCst);
            let mut mappings = Vec::with_capacity(range.len() as usize);
            for page in range.pages() {
                let in_place = rounds >= MIGRATION_ATTEMPTS;
                mappings.push(self.make_accessible(page, access, in_place, &mut serviced)?);
            }
            let shared = self.shared.clone();
            let mut guard = self.lock();
            // Whatever was invalidated since the first look, it may have been one of these.
            if shared.sequence.load(Ordering::SeqCst) == sequence {
                program(&mut guard, &mappings);
                break;
            }
            rounds += 1;
        }
        if serviced {
            let latency = started.elapsed();
            self.backend.recorder.latency(Toucher::Device, latency);
            let device = Some(self.device.id);
            self.backend
                .fault_event(EventKind::DeviceFault, range.start, device, latency);
        }
        Ok(())
    }

    /// Gets one page to where the device can reach it. Sets `serviced` if that took more than a look.
    fn make_accessible(
        &self,
        page: Page,
        access: Access,
        mut in_place: bool,
        serviced: &mut bool,
    ) -> Result<Mapping, MirrorError> {
        let backend = &*self.backend;
        let fatal = |cause| MirrorError::Fatal { page, cause };
        let mut attempts = 0;
        let mut patient = true;
        loop {
            if self.device.detaching() {
                return Err(MirrorError::Detached);
            }
            backend.table.settle(page);
            let word = backend.table.word(page);
            if word.read_only() && access == Access::Write {
                return Err(MirrorError::Permission(page));
            }
            if self.reaches(word, in_place) {
                // Noted before the translation exists: a migration that locks the page from here on
                // invalidates, which the sequence check will see. What counts is the word with the note.
                match backend.table.mark_mirrored(page) {
                    Some(marked) if marked.generation() == word.generation() => {
                        return Ok(self.translation(page, marked, serviced));
                    }
                    _ => continue,
                }
            }
            if word.residency() == Residency::Poisoned {
                return Err(fatal("its contents were lost".into()));
            }
            *serviced = true;
            if attempts == 0 {
                backend.recorder.add(Counter::DeviceFaults, 1);
            }
            attempts += 1;
            in_place |= attempts > MIGRATION_ATTEMPTS;
            let foreign = matches!(word.residency(), Residency::Device { .. });
            if foreign || in_place {
                // Another device's private memory: back through its driver first. Or an untouched page for
                // which there is no room in device memory.
                backend.fault_in(page, access).map_err(fatal)?;
            } else {
                in_place = self.migrate_here(page, access, word, &mut patient);
            }
        }
    }

    /// Whether the device can use a page with this word as it is.
    fn reaches(&self, word: Word, in_place: bool) -> bool {
        match word.residency() {
            Residency::Device { device, .. } => device == self.device.id,
            Residency::System => in_place || word.pins() > 0,
            _ => false,
        }
    }

    fn translation(&self, page: Page, word: Word, serviced: &mut bool) -> Mapping {
        let backend = &*self.backend;
        let (target, host) = match word.residency() {
            Residency::Device { frame, order, .. } => {
                let head = Frame(frame.0 - (page.0 - page.folio_head(order).0));
                self.device.eviction().touched(head);
                (Target::Device(frame), self.device.memory.address(frame))
            }
            _ => {
                *serviced = true;
                backend.recorder.add(Counter::MappedInPlace, 1);
                let device = Some(self.device.id);
                backend.fault_event(EventKind::MappedInPlace, page, device, Duration::ZERO);
                (
                    Target::System,
                    backend.guest.mapping().address(page.offset()),
                )
            }
        };
        Mapping {
            page,
            target,
            writable: !word.read_only(),
            host: HostPage(host),
        }
    }

    /// Migrates a system or untouched page into the device's memory, with what the policy adds. Returns whether
    /// the policy wants it left in place instead.
    fn migrate_here(&self, page: Page, access: Access, word: Word, patient: &mut bool) -> bool {
        let backend = &*self.backend;
        let block = page.block();
        let words = backend.block_words(block);
        let fault = BlockFault {
            block,
            pages: PageSet::from_iter([page.index_in_block()]),
            access,
            to: Place::Device(self.device.id),
            now: backend.now(),
        };
        let view = BlockView {
            words: &words,
            free_frames: self.device.free_frames(),
            capacity: self.device.capacity(),
        };
        let advice: Advice = backend.advise(&fault, &view);
        if advice.stay {
            return true;
        }
        // Whoever got the page last is to make progress with it first; then nobody waits twice.
        let held = backend.system_hold(word).unwrap_or_default();
        let wait = if *patient {
            held.max(advice.throttle)
        } else {
            held
        };
        *patient = false;
        if !wait.is_zero() {
            backend.recorder.add(Counter::FaultsDeferred, 1);
            // A moment is waited for, not an event: nothing ends a hold early but its time.
            std::thread::sleep(wait);
            return false;
        }
        // Prefetching more than a part of the device's memory would evict what it works on.
        let most = (self.device.capacity() / 4).max(1);
        let wanted = window(&advice.prefetch.union(&fault.pages), page, most);
        let room = backend.make_room(&self.device, wanted.count() as u32);
        if room == 0 {
            return false;
        }
        let pages = window(&wanted, page, room);
        let reason = Reason {
            cause: Cause::Demand,
            faulting: fault.pages,
            hold: advice.hold,
        };
        backend.migrate_block(&self.device, block, &pages, reason);
        false
    }
}

impl<M: DeviceMmu> Drop for Mirror<M> {
    fn drop(&mut self) {
        let mine: Arc<dyn Invalidate> = self.shared.clone();
        let mut mirrors = self
            .backend
            .mirrors
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        mirrors.retain(|m| !Arc::ptr_eq(m, &mine));
    }
}

/// The part of `pages` in the largest aligned window around `page` that has at most `most` of them.
fn window(pages: &PageSet, page: Page, most: u32) -> PageSet {
    let mut order = crate::page::MAX_ORDER;
    loop {
        let around = set_of(PageRange::with_len(page.folio_head(order), 1 << order));
        let part = pages.intersection(&around);
        if order == 0 || part.count() as u32 <= most {
            return part;
        }
        order -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shrinks_around_the_page() {
        let all = PageSet::from_range(0..512);
        assert_eq!(window(&all, Page(100), 512).count(), 512);
        assert_eq!(window(&all, Page(100), 511), PageSet::from_range(0..256));
        assert_eq!(window(&all, Page(100), 20), PageSet::from_range(96..112));
        assert_eq!(
            window(&all, Page(512 + 100), 1),
            PageSet::from_range(100..101)
        );
    }
}

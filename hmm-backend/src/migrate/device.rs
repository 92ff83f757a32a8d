//! One attached device: its driver, its memory and what is in each frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::driver::Driver;
use crate::memory::{Buddy, DeviceMemory};
use crate::observe::{Counter, Recorder};
use crate::pages::time::Tick;
use crate::pages::{DeviceFolio, DeviceId, Frame, Page};
use crate::policy::EvictionPolicy;

/// What is known of the folio that starts at a frame: 16 bytes per frame, all zeros at first.
struct FrameMeta {
    /// The driver's word.
    cookie: AtomicU64,
    /// One more than the guest page in the folio's first frame; 0 if no folio starts here.
    page_plus_1: AtomicU32,
    /// The folio stays here until this tick.
    held_until: AtomicU32,
}

/// The free frames, and how many threads wait for more: waking nobody would cost a system call for each
/// folio.
struct Pool {
    buddy: Buddy,
    waiting: u32,
}

/// How many pages are in the memory of all devices together, and the most that ever were at a time.
#[derive(Default)]
pub(crate) struct Occupancy {
    pages: AtomicU64,
    peak: AtomicU64,
}

impl Occupancy {
    /// The sum takes every value once, and the page that makes it the highest sees it: the peak is exact.
    fn arrive(&self, pages: u32) {
        let pages = self.pages.fetch_add(pages.into(), Ordering::Relaxed) + u64::from(pages);
        // Most of the time it has been higher before; a look takes the cache line from no other thread.
        if pages > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(pages, Ordering::Relaxed);
        }
    }

    fn leave(&self, pages: u32) {
        self.pages.fetch_sub(pages.into(), Ordering::Relaxed);
    }

    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) driver: Arc<dyn Driver>,
    /// Private memory; none if the device's memory is coherent, that is, mapped into managed memory: then a
    /// page's bytes are always at its guest address, and a frame is a share of the capacity.
    pub(crate) memory: Option<DeviceMemory>,
    frames: Box<[FrameMeta]>,
    pool: Mutex<Pool>,
    /// Signalled when frames come back to the pool and somebody waits for that.
    freed: Condvar,
    pub(crate) eviction: Mutex<Box<dyn EvictionPolicy>>,
    occupancy: Arc<Occupancy>,
    detaching: AtomicBool,
}

impl Device {
    pub(crate) fn new(
        id: DeviceId,
        driver: Arc<dyn Driver>,
        memory: Option<DeviceMemory>,
        frames: u32,
        eviction: Box<dyn EvictionPolicy>,
        occupancy: Arc<Occupancy>,
    ) -> Device {
        // SAFETY: all fields are atomic integers, for which zero is a valid value. Frames that are never used
        // cost no memory.
        let frames = unsafe { Box::<[FrameMeta]>::new_zeroed_slice(frames as usize).assume_init() };
        Device {
            id,
            driver,
            memory,
            pool: Mutex::new(Pool {
                buddy: Buddy::new(frames.len() as u32),
                waiting: 0,
            }),
            frames,
            freed: Condvar::new(),
            eviction: Mutex::new(eviction),
            occupancy,
            detaching: AtomicBool::new(false),
        }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.frames.len() as u32
    }

    pub(crate) fn free_frames(&self) -> u32 {
        self.pool().buddy.free_frames()
    }

    /// No page may come here any more.
    pub(crate) fn start_detaching(&self) {
        self.detaching.store(true, Ordering::SeqCst);
    }

    pub(crate) fn detaching(&self) -> bool {
        self.detaching.load(Ordering::SeqCst)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock()
    }

    pub(crate) fn eviction(&self) -> MutexGuard<'_, Box<dyn EvictionPolicy>> {
        self.eviction.lock()
    }

    fn meta(&self, frame: Frame) -> &FrameMeta {
        &self.frames[frame.0 as usize]
    }

    /// Frames for `1 << order` pages from `page`, if there is such a run.
    pub(crate) fn alloc(&self, page: Page, order: u8) -> Option<DeviceFolio> {
        let mut pool = self.pool();
        // Checked under the pool's mutex, which detaching takes after setting the flag: whatever was
        // handed out before is seen by it.
        if self.detaching() {
            return None;
        }
        let frame = pool.buddy.alloc(order)?;
        drop(pool);
        let meta = self.meta(frame);
        meta.cookie.store(0, Ordering::Relaxed);
        meta.held_until.store(0, Ordering::Relaxed);
        meta.page_plus_1.store(page.0 + 1, Ordering::Release);
        Some(DeviceFolio {
            device: self.id,
            frame,
            order,
            page,
            cookie: 0,
        })
    }

    pub(crate) fn set_cookie(&self, frame: Frame, cookie: u64) {
        self.meta(frame).cookie.store(cookie, Ordering::Relaxed);
    }

    /// The folio in these frames; the caller holds its lock.
    pub(crate) fn folio(&self, page: Page, frame: Frame, order: u8) -> DeviceFolio {
        let cookie = self.meta(frame).cookie.load(Ordering::Relaxed);
        DeviceFolio {
            device: self.id,
            frame,
            order,
            page,
            cookie,
        }
    }

    /// The guest page of the folio that starts at `frame`, if one does. It may be gone in the next moment:
    /// to be checked again with the page's lock held.
    pub(crate) fn page_of(&self, frame: Frame) -> Option<Page> {
        let page = self.meta(frame).page_plus_1.load(Ordering::Acquire);
        page.checked_sub(1).map(Page)
    }

    pub(crate) fn hold(&self, frame: Frame, until: Tick) {
        self.meta(frame)
            .held_until
            .store(until.0, Ordering::Relaxed);
    }

    /// How long the folio that starts at `frame` still stays here. A device that goes away holds nothing.
    pub(crate) fn held(&self, frame: Frame, now: Duration) -> Option<Duration> {
        if self.detaching() {
            return None;
        }
        Tick(self.meta(frame).held_until.load(Ordering::Relaxed)).remaining(now)
    }

    /// Cuts a folio in two, asking the driver for the upper half's cookie. The caller holds its lock
    /// and does the same to the words; `resident` if the eviction policy knows the folio.
    pub(crate) fn halve(
        &self,
        folio: DeviceFolio,
        resident: bool,
        recorder: &Recorder,
    ) -> (DeviceFolio, DeviceFolio) {
        let order = folio.order - 1;
        let half = 1 << order;
        let upper = DeviceFolio {
            frame: Frame(folio.frame.0 + half),
            page: folio.page.plus(half),
            order,
            cookie: self.driver.folio_split(folio),
            ..folio
        };
        let held = self.meta(folio.frame).held_until.load(Ordering::Relaxed);
        let meta = self.meta(upper.frame);
        meta.cookie.store(upper.cookie, Ordering::Relaxed);
        meta.held_until.store(held, Ordering::Relaxed);
        meta.page_plus_1.store(upper.page.0 + 1, Ordering::Release);
        if resident {
            self.eviction().split(folio.frame, upper.frame, order);
        }
        recorder.add(Counter::FolioSplits, 1);
        (DeviceFolio { order, ..folio }, upper)
    }

    /// So many pages are about to leave. To be called before any thread can know, so that what takes their place comes later.
    pub(crate) fn leaving(&self, pages: u32) {
        self.occupancy.leave(pages);
    }

    /// The folio is no longer in use: tells the driver, then gives the frames back. No lock on its
    /// pages is held any more, nobody can find it. `dead` if the frames hold contents that nobody needs: the host gets
    /// their memory back (and engine `remap` can only move pages to where none is); frames whose memory it does not
    /// take are never used again. `resident` if the eviction policy knows the folio.
    pub(crate) fn release(
        &self,
        folio: DeviceFolio,
        dead: bool,
        resident: bool,
        recorder: &Recorder,
    ) {
        // Out of the reverse map first: an evictor must not find the page's next home under this frame.
        self.meta(folio.frame)
            .page_plus_1
            .store(0, Ordering::Release);
        if resident {
            self.eviction().freed(folio.frame);
        }
        recorder.add(Counter::PageFreeCalls, 1);
        self.driver.page_free(folio);
        if let (true, Some(memory)) = (dead, &self.memory)
            && memory.forget(folio.frame, folio.pages()).is_err()
        {
            return;
        }
        let mut pool = self.pool();
        pool.buddy.free(folio.frame, folio.order);
        let waiting = pool.waiting > 0;
        drop(pool);
        if waiting {
            self.freed.notify_all();
        }
    }

    /// Waits until fewer frames than `before` are in use, at most this long. Returns how many are.
    pub(crate) fn wait_for_frames(&self, before: u32, timeout: Duration) -> u32 {
        let mut pool = self.pool();
        let used = |pool: &Pool| self.capacity() - pool.buddy.free_frames();
        pool.waiting += 1;
        self.freed
            .wait_while_for(&mut pool, |p| used(p) >= before, timeout);
        pool.waiting -= 1;
        used(&pool)
    }

    /// The first frames of all folios there are at this moment.
    pub(crate) fn folios(&self) -> Vec<Frame> {
        let frames = (0..self.capacity()).map(Frame);
        frames.filter(|f| self.page_of(*f).is_some()).collect()
    }

    pub(crate) fn used_frames(&self) -> u32 {
        self.capacity() - self.free_frames()
    }
}

/// Frames that no residency word names yet. Dropping it tells the driver that they are free again,
/// so it must be dropped after the pages' locks.
pub(crate) struct Allocation<'d> {
    pub(crate) device: &'d Device,
    pub(crate) folio: DeviceFolio,
    recorder: &'d Recorder,
    /// The frames may hold contents that nobody needs.
    pub(crate) dirty: bool,
}

impl<'d> Allocation<'d> {
    pub(crate) fn new(
        device: &'d Device,
        page: Page,
        order: u8,
        recorder: &'d Recorder,
    ) -> Option<Allocation<'d>> {
        let folio = device.alloc(page, order)?;
        Some(Allocation {
            device,
            folio,
            recorder,
            dirty: false,
        })
    }

    pub(crate) fn set_cookie(&mut self, cookie: u64) {
        self.device.set_cookie(self.folio.frame, cookie);
        self.folio.cookie = cookie;
    }

    /// Keeps the lower half, returns the upper one.
    pub(crate) fn halve(&mut self) -> Allocation<'d> {
        let (lower, upper) = self.device.halve(self.folio, false, self.recorder);
        self.folio = lower;
        Allocation {
            device: self.device,
            folio: upper,
            recorder: self.recorder,
            dirty: self.dirty,
        }
    }

    /// Residency words name the frames now.
    pub(crate) fn into_resident(self) -> DeviceFolio {
        let this = std::mem::ManuallyDrop::new(self);
        let DeviceFolio {
            frame, order, page, ..
        } = this.folio;
        this.device.occupancy.arrive(this.folio.pages());
        this.device.eviction().allocated(frame, order, page);
        this.folio
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        self.recorder.add(Counter::FoliosRolledBack, 1);
        self.device
            .release(self.folio, self.dirty, false, self.recorder);
    }
}

//! One attached device: its driver, its memory and what is in each frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::driver::Driver;
use super::eviction::Eviction;
use crate::memory::{Buddy, DeviceMemory};
use crate::observe::{Counter, Recorder};
use crate::pages::time::Tick;
use crate::pages::{DeviceFolio, DeviceId, Frame, Page};
use crate::policy::EvictionPolicy;

/// The data of the folio that starts at a frame: 16 bytes per frame, all zeros at first.
struct FrameMeta {
    /// The driver's 64-bit word.
    cookie: AtomicU64,
    /// One more than the guest page in the folio's first frame; 0 if no folio starts here.
    page_plus_1: AtomicU32,
    /// The folio stays here until this tick.
    held_until: AtomicU32,
}

/// The free frames, how many may be in use, and how many threads wait for free ones. A freed folio signals only if a thread
/// waits, because a signal costs a system call even without one.
struct Pool {
    buddy: Buddy,
    /// No folio is allocated that would have more frames than this be in use. While the memory shrinks, more are in use.
    limit: u32,
    waiting: u32,
}

impl Pool {
    fn used(&self, reserved: u32) -> u32 {
        reserved - self.buddy.free_frames()
    }
}

/// The number of pages in the memory of all devices together, and its peak.
#[derive(Default)]
pub(crate) struct Occupancy {
    pages: AtomicU64,
    peak: AtomicU64,
}

impl Occupancy {
    /// Counts pages that have arrived. The peak is exact: `fetch_add` shows each value of the sum to one
    /// thread, which updates the peak.
    fn arrive(&self, pages: u32) {
        let pages = self.pages.fetch_add(pages.into(), Ordering::Relaxed) + u64::from(pages);
        // The peak is usually higher already. This load does not take the cache line away from other threads.
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

/// What is in the frames of a folio that is no longer in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Contents {
    /// Nothing: they have moved away, or never came.
    Gone,
    /// Something that is not needed. The memory returns to the host (engine `remap` can move pages only to where there is
    /// no memory); frames whose memory the host does not take are never used again.
    Dead,
}

pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) driver: Arc<dyn Driver>,
    /// The private memory; `None` if the device's memory is coherent, that is, mapped into managed memory. Then
    /// a page's bytes are always at its guest address, and a frame is only a share of the capacity.
    pub(crate) memory: Option<DeviceMemory>,
    frames: Box<[FrameMeta]>,
    pool: Mutex<Pool>,
    /// A copy of the pool's limit.
    capacity: AtomicU32,
    /// How many more frames may be in use; changed only under the pool's mutex.
    free_frames: AtomicU32,
    /// Signalled when frames return to the pool and a thread waits for that.
    freed: Condvar,
    eviction: Mutex<Eviction>,
    occupancy: Arc<Occupancy>,
    detaching: AtomicBool,
    /// Held by the thread that changes the memory's size or detaches the device: one at a time.
    pub(crate) changing: Mutex<()>,
    /// Nanoseconds of the backend's clock at which the device's present fault began; 0 if there is none.
    fault_began: AtomicU64,
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
        let eviction = Eviction::new(eviction, frames);
        // SAFETY: all fields are atomic integers, for which zero is a valid value. Frames that are never used
        // cost no memory.
        let frames = unsafe { Box::<[FrameMeta]>::new_zeroed_slice(frames as usize).assume_init() };
        Device {
            id,
            driver,
            memory,
            pool: Mutex::new(Pool {
                buddy: Buddy::new(frames.len() as u32),
                limit: frames.len() as u32,
                waiting: 0,
            }),
            capacity: AtomicU32::new(frames.len() as u32),
            free_frames: AtomicU32::new(frames.len() as u32),
            frames,
            freed: Condvar::new(),
            eviction: Mutex::new(eviction),
            occupancy,
            detaching: AtomicBool::new(false),
            changing: Mutex::new(()),
            fault_began: AtomicU64::new(0),
        }
    }

    /// Returns the number of frames: as many as can ever be in use.
    pub(crate) fn reserved(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Returns how many frames may be in use at this moment.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Acquire)
    }

    /// From now on this many frames may be in use, at most [`Self::reserved`]. Returns how many could be before. Frames
    /// beyond stay in use until they are freed; until then, none is allocated.
    pub(crate) fn set_capacity(&self, frames: u32) -> u32 {
        let mut pool = self.pool();
        let before = std::mem::replace(&mut pool.limit, frames.min(self.reserved()));
        self.capacity.store(pool.limit, Ordering::Release);
        self.note_free(&pool);
        before
    }

    /// Returns how many more frames may be in use at this moment. They may be allocated at any time, also to a fault that
    /// asks.
    pub(crate) fn free_frames(&self) -> u32 {
        self.free_frames.load(Ordering::Acquire)
    }

    /// Notes how many frames are free, before the pool is unlocked.
    fn note_free(&self, pool: &Pool) {
        let free = pool.limit.saturating_sub(pool.used(self.reserved()));
        self.free_frames.store(free, Ordering::Release);
    }

    /// Begins a detach: from now on no frame is allocated.
    pub(crate) fn start_detaching(&self) {
        self.detaching.store(true, Ordering::SeqCst);
    }

    /// Ends a detach before its end: the device is attached as before.
    pub(crate) fn stay_attached(&self) {
        self.detaching.store(false, Ordering::SeqCst);
    }

    pub(crate) fn detaching(&self) -> bool {
        self.detaching.load(Ordering::SeqCst)
    }

    /// Notes the beginning of a fault, or its end.
    pub(crate) fn set_fault_began(&self, began: Option<Duration>) {
        let nanos = began.map_or(0, |began| began.as_nanos() as u64);
        self.fault_began.store(nanos, Ordering::Relaxed);
    }

    /// Returns when the device's present fault began.
    pub(crate) fn fault_began(&self) -> Option<Duration> {
        match self.fault_began.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock()
    }

    pub(crate) fn eviction(&self) -> MutexGuard<'_, Eviction> {
        self.eviction.lock()
    }

    /// Replaces the eviction policy.
    pub(crate) fn replace_eviction(&self, policy: Box<dyn EvictionPolicy>) {
        self.eviction().replace(policy, |frame| self.page_of(frame));
    }

    fn meta(&self, frame: Frame) -> &FrameMeta {
        &self.frames[frame.0 as usize]
    }

    /// Allocates frames for `1 << order` pages from `page`. `None` if there is no such run of free frames, if more would be
    /// in use than may be, or if the device is being detached.
    pub(crate) fn alloc(&self, page: Page, order: u8) -> Option<DeviceFolio> {
        let mut pool = self.pool();
        // Check under the pool's mutex. Detaching takes the same mutex after setting the flag, so it sees every
        // folio that was allocated before.
        if self.detaching() || pool.used(self.reserved()) + (1 << order) > pool.limit {
            return None;
        }
        let frame = pool.buddy.alloc(order)?;
        self.note_free(&pool);
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

    /// Returns the folio in these frames; the caller holds its lock.
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

    /// Returns the guest page of the folio that starts at `frame`, if there is one. The folio may leave at any
    /// time: the caller must check again under the page's lock.
    pub(crate) fn page_of(&self, frame: Frame) -> Option<Page> {
        let page = self.meta(frame).page_plus_1.load(Ordering::Acquire);
        page.checked_sub(1).map(Page)
    }

    pub(crate) fn hold(&self, frame: Frame, until: Tick) {
        self.meta(frame)
            .held_until
            .store(until.0, Ordering::Relaxed);
    }

    /// Returns the rest of the hold of the folio that starts at `frame`. A device that is being detached holds
    /// nothing.
    pub(crate) fn held(&self, frame: Frame, now: Duration) -> Option<Duration> {
        if self.detaching() {
            return None;
        }
        Tick(self.meta(frame).held_until.load(Ordering::Relaxed)).remaining(now)
    }

    /// Cuts a folio in two and returns the lower and the upper half; asks the driver for the upper half's
    /// cookie. The caller holds the folio's lock and cuts it, too, and tells the eviction policy if that knows the folio.
    pub(crate) fn halve(
        &self,
        folio: DeviceFolio,
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
        recorder.add(Counter::FolioSplits, 1);
        (DeviceFolio { order, ..folio }, upper)
    }

    /// Cuts a folio in two, as [`Self::halve`], that the eviction policy knows.
    pub(crate) fn halve_resident(
        &self,
        folio: DeviceFolio,
        recorder: &Recorder,
    ) -> (DeviceFolio, DeviceFolio) {
        let (lower, upper) = self.halve(folio, recorder);
        self.eviction().split(lower.frame, upper.frame, upper.order);
        (lower, upper)
    }

    /// Counts pages that are about to leave. Call it before another thread can see that they have left:
    /// otherwise pages that take their place could be counted first, and the peak would be too high.
    pub(crate) fn leaving(&self, pages: u32) {
        self.occupancy.leave(pages);
    }

    /// Lets go of a folio whose pages have left: the eviction policy forgets it, then [`Self::free`].
    pub(crate) fn release(&self, folio: DeviceFolio, contents: Contents, recorder: &Recorder) {
        self.forget_page(folio.frame);
        self.eviction().freed(folio.frame);
        self.free(folio, contents, recorder);
    }

    /// Clears the frame's page: otherwise an evicting thread could look up this page under the frame when the page
    /// already has another place.
    fn forget_page(&self, frame: Frame) {
        self.meta(frame).page_plus_1.store(0, Ordering::Release);
    }

    /// Calls the driver's `page_free` for a folio that is no longer in use, then returns its frames to the
    /// pool. The caller must have unlocked its pages, and no word may name the frames.
    fn free(&self, folio: DeviceFolio, contents: Contents, recorder: &Recorder) {
        recorder.add(Counter::PageFreeCalls, 1);
        self.driver.page_free(folio);
        if let (Contents::Dead, Some(memory)) = (contents, &self.memory)
            && memory.forget(folio.frame, folio.pages()).is_err()
        {
            return;
        }
        let mut pool = self.pool();
        pool.buddy.free(folio.frame, folio.order);
        self.note_free(&pool);
        let waiting = pool.waiting > 0;
        drop(pool);
        if waiting {
            self.freed.notify_all();
        }
    }

    /// Waits until fewer than `before` frames are in use, at most `timeout`. Returns the number of frames in
    /// use.
    pub(crate) fn wait_for_frames(&self, before: u32, timeout: Duration) -> u32 {
        let mut pool = self.pool();
        let used = |pool: &Pool| pool.used(self.reserved());
        pool.waiting += 1;
        self.freed
            .wait_while_for(&mut pool, |p| used(p) >= before, timeout);
        pool.waiting -= 1;
        used(&pool)
    }

    /// Returns the first frames of all folios that the device has at this moment.
    pub(crate) fn folios(&self) -> Vec<Frame> {
        let frames = (0..self.reserved()).map(Frame);
        frames.filter(|f| self.page_of(*f).is_some()).collect()
    }

    /// Returns how many frames are in use. Takes the pool's mutex, unlike [`Self::free_frames`]: so a thread that has called
    /// [`Self::start_detaching`] also counts the allocation that was in progress then.
    pub(crate) fn used_frames(&self) -> u32 {
        self.pool().used(self.reserved())
    }
}

/// Frames that no residency word names yet. A drop calls the driver's `page_free`, so it must come after the
/// drop of the pages' locks.
pub(crate) struct Allocation<'d> {
    pub(crate) device: &'d Device,
    pub(crate) folio: DeviceFolio,
    recorder: &'d Recorder,
    pub(crate) contents: Contents,
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
            contents: Contents::Gone,
        })
    }

    pub(crate) fn set_cookie(&mut self, cookie: u64) {
        self.device.set_cookie(self.folio.frame, cookie);
        self.folio.cookie = cookie;
    }

    /// Keeps the lower half and returns the upper one.
    pub(crate) fn halve(&mut self) -> Allocation<'d> {
        let (lower, upper) = self.device.halve(self.folio, self.recorder);
        self.folio = lower;
        Allocation {
            device: self.device,
            folio: upper,
            recorder: self.recorder,
            contents: self.contents,
        }
    }

    /// Ends the allocation because residency words are about to name the frames. Returns the folio.
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
        self.device.forget_page(self.folio.frame);
        self.device.free(self.folio, self.contents, self.recorder);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::migrate::DefaultDriver;
    use crate::policy::{PolicyFactory, PolicySpec};

    #[test]
    fn no_more_frames_are_in_use_than_may_be() {
        let eviction = PolicySpec::default().eviction_policy(8);
        let (driver, recorder) = (Arc::new(DefaultDriver), Recorder::new(0));
        let device = Device::new(DeviceId(0), driver, None, 8, eviction, Arc::default());
        let take = |order| Allocation::new(&device, Page(0), order, &recorder);
        assert_eq!(device.set_capacity(3), 8);
        let two = take(1).unwrap();
        assert!(take(1).is_none());
        let one = take(0).unwrap();
        assert!(take(0).is_none());
        // What is in use stays, and nothing comes until less is in use than may be.
        assert_eq!(device.set_capacity(1), 3);
        assert_eq!((device.used_frames(), device.free_frames()), (3, 0));
        drop(one);
        assert!(take(0).is_none());
        drop(two);
        assert_eq!((device.used_frames(), device.free_frames()), (0, 1));
        assert!(take(0).is_some());
        // Not more than there are.
        device.set_capacity(100);
        assert_eq!((device.capacity(), device.free_frames()), (8, 8));
    }
}

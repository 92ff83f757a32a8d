//! Migration into a device's memory: of system pages and untouched pages, or of pages in another device's private memory.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::core::{Core, held_in_system};
use super::device::{Allocation, Contents, Device};
use super::phases::{Finalized, Reason, count_of, passages, runs};
use super::watch::{Step, Watch, notify, notify_finalized, pages_to_report};
use crate::memory::{DeviceMemory, Fill, Passage, Run};
use crate::observe::{Cause, Counter, Direction, Event, EventKind};
use crate::pages::time::Tick;
use crate::pages::{
    Block, DeviceFolio, DeviceId, Frame, MAX_ORDER, MigrateError, Page, PageRange, PageSet,
    Permission, Place,
};
use crate::residency::{FolioLock, MemoryKind, Residency, TryLock, Word};

/// Locked folios. Most migrations are of one folio, and allocate nothing for the lists.
type Locks<'b> = SmallVec<[FolioLock<'b>; 1]>;
type Targets<'b> = SmallVec<[DestinationFolio<'b>; 1]>;

/// A destination folio with the locks of the pages that go there.
struct DestinationFolio<'b> {
    // Declared, and so dropped, before the allocation: the driver's `page_free` may be called only when none
    // of the folio's pages is locked.
    locks: Locks<'b>,
    allocation: Allocation<'b>,
}

impl<'b> DestinationFolio<'b> {
    fn range(&self) -> PageRange {
        PageRange::with_len(self.allocation.folio.page, self.allocation.folio.pages())
    }

    /// Keeps the lower half and returns the upper one.
    fn halve(&mut self, core: &'b Core) -> DestinationFolio<'b> {
        let allocation = self.allocation.halve();
        let middle = allocation.folio.page;
        let mut upper = Locks::new();
        if let [whole] = &mut self.locks[..] {
            upper.push(core.halve(whole));
        } else {
            let cut = self.locks.partition_point(|l| l.head() < middle);
            upper.extend(self.locks.drain(cut..));
        }
        DestinationFolio {
            locks: upper,
            allocation,
        }
    }

    /// Returns the pieces with this residency (`System`, or `Untouched` and so without contents), each with its first
    /// frame and its word.
    fn pieces(&self, residency: Residency) -> impl Iterator<Item = (PageRange, Frame, Word)> + '_ {
        let folio = self.allocation.folio;
        let wanted = move |l: &&FolioLock<'_>| l.word().residency() == residency;
        self.locks.iter().filter(wanted).map(move |lock| {
            let offset = lock.head().0 - folio.page.0;
            (lock.range(), Frame(folio.frame.0 + offset), lock.word())
        })
    }

    /// Returns the pieces that are in another device's memory.
    fn passages(&self) -> impl Iterator<Item = Passage> + '_ {
        let folio = self.allocation.folio;
        self.locks.iter().filter_map(move |lock| {
            let place = lock.word().residency().placed()?;
            let offset = lock.head().0 - folio.page.0;
            Some(Passage {
                page: lock.head(),
                from: place.frame,
                to: Frame(folio.frame.0 + offset),
                pages: lock.range().len(),
            })
        })
    }
}

/// The device that the pages come from, which has private memory.
#[derive(Clone, Copy)]
pub(super) struct Source<'b> {
    pub(super) device: &'b Device,
    pub(super) memory: &'b DeviceMemory,
}

/// What a migration works on. Boxed, so that the phases and drivers pass it on without copying it.
struct Parts<'b> {
    core: &'b Core,
    /// `None`: system memory.
    source: Option<Source<'b>>,
    device: &'b Device,
    targets: Targets<'b>,
    reason: Reason,
    watch: Option<Arc<dyn Watch>>,
}

/// Phase *collected*: source pages are locked, frames allocated; nothing has moved.
pub struct ToDevice<'b>(Box<Parts<'b>>);

/// Phase *copied*: the frames hold the contents, and no CPU and no device can reach the old place.
pub struct CopiedToDevice<'b>(Option<Box<Parts<'b>>>);

/// Phase *committed*: the residency words name the device; the pages are still locked.
pub struct CommittedToDevice<'b> {
    /// Without targets.
    parts: Box<Parts<'b>>,
    /// The folios that the pages had in the source's memory.
    emptied: Vec<DeviceFolio>,
    folios: Locks<'b>,
}

impl<'b> Parts<'b> {
    fn from(&self) -> Place {
        self.source
            .map_or(Place::System, |it| Place::Device(it.device.id))
    }

    fn folios(&self) -> impl Iterator<Item = DeviceFolio> + '_ {
        self.targets.iter().map(|t| t.allocation.folio)
    }

    /// Returns the number of pages without contents.
    fn untouched(&self) -> u32 {
        let mut pages = 0;
        for target in &self.targets {
            for lock in &target.locks {
                if lock.word().residency() == Residency::Untouched {
                    pages += lock.range().len();
                }
            }
        }
        pages
    }

    /// Returns the runs of pages with this residency.
    fn runs(&self, residency: Residency) -> impl Iterator<Item = Run> + '_ {
        let pieces = self.targets.iter();
        runs(
            self.core.guest.reach(),
            pieces.flat_map(move |t| t.pieces(residency)),
        )
    }

    fn notify(&self, step: Step) -> Result<(), MigrateError> {
        notify(
            &self.watch,
            step,
            self.targets.iter().map(DestinationFolio::range),
        )
        .map_err(|error| MigrateError::Device(error.to_string()))
    }

    /// Moves the contents of `all` pages, of which `untouched` have none, and returns the pages that stay where they are.
    fn move_contents(&self, all: u32, untouched: u32) -> Vec<Page> {
        let mut failed = Vec::new();
        let guest = &self.core.guest;
        let mut fail = |run: Run, at| failed.push(run.page.plus(at));
        if let (Some(memory), Some(source)) = (&self.device.memory, self.source) {
            for passage in self.passages() {
                guest.pass(passage, source.memory, memory, |at| {
                    failed.push(passage.page.plus(at));
                });
            }
        } else if let Some(memory) = &self.device.memory {
            if all > untouched {
                for run in self.runs(Residency::System) {
                    guest.take(run, memory, |at, _| fail(run, at));
                }
            }
            if untouched > 0 {
                for run in self.runs(Residency::Untouched) {
                    memory.fill_zero(run.frame, run.pages, |at, _| fail(run, at));
                }
            }
        } else {
            // Coherent memory: CPUs keep reaching the page, so only untouched pages have to be filled.
            for run in self.runs(Residency::Untouched) {
                let fill = match run.permission {
                    Permission::ReadOnly => Fill::ReadOnly,
                    Permission::Writable => Fill::Memory,
                };
                guest.fill_zero(run.range(), fill, |at, _| fail(run, at));
            }
        }
        failed
    }

    /// Drops the targets of the failed pages, splitting larger folios so that the other pages still move.
    fn leave_behind(&mut self, failed: &[Page]) {
        let mut todo = std::mem::take(&mut self.targets);
        todo.reverse();
        while let Some(mut target) = todo.pop() {
            let range = target.range();
            match count_of(failed, range) {
                0 => self.targets.push(target),
                _ if range.len() == 1 => {
                    // The failed call may have left contents in the frame.
                    target.allocation.contents = Contents::Dead;
                    drop(target);
                }
                _ => {
                    let upper = target.halve(self.core);
                    todo.push(upper);
                    todo.push(target);
                }
            }
        }
    }

    fn passages(&self) -> Vec<Passage> {
        passages(self.targets.iter().flat_map(DestinationFolio::passages))
    }
}

impl<'b> ToDevice<'b> {
    /// Locks those of these pages that can migrate, and allocates frames for them, in folios as large as
    /// alignment and free memory permit. The blocks must ascend. Skips pages that are locked, pinned, held or
    /// not in system memory, and pages for which there is no frame. `None` if no page is left.
    pub(crate) fn collect(
        core: &'b Core,
        device: &'b Device,
        wanted: impl IntoIterator<Item = (Block, PageSet)>,
        reason: Reason,
    ) -> Option<ToDevice<'b>> {
        let now = core.clock.now();
        let mut targets = Targets::new();
        for (block, pages) in wanted {
            let mut locks = Locks::new();
            let mut left = pages;
            while let Some(index) = left.first() {
                left.remove(index);
                if let Some(lock) = core.lock_for_device(block.page(index), reason.cause, now) {
                    if lock.order() == 0 {
                        locks.push(lock);
                        continue;
                    }
                    left = left.difference(&PageSet::of(lock.range()));
                    lock.carve(&|range| pages.count_of(range), &mut locks);
                }
            }
            allocate_for_block(core, device, block, locks, &mut targets);
        }
        ToDevice::new(core, None, device, targets, reason)
    }

    /// Allocates frames for pages in the memory of `source`. The locks must ascend. `None` if there is no frame for any
    /// of them.
    pub(super) fn from_device(
        core: &'b Core,
        source: Source<'b>,
        device: &'b Device,
        mut locks: Vec<FolioLock<'b>>,
        reason: Reason,
    ) -> Option<ToDevice<'b>> {
        let mut targets = Targets::new();
        while let Some(first) = locks.first() {
            let block = first.head().block();
            let end = locks.partition_point(|l| l.head().block() == block);
            let of_block = locks.drain(..end).collect();
            allocate_for_block(core, device, block, of_block, &mut targets);
        }
        ToDevice::new(core, Some(source), device, targets, reason)
    }

    /// `None` if there are no targets.
    fn new(
        core: &'b Core,
        source: Option<Source<'b>>,
        device: &'b Device,
        targets: Targets<'b>,
        reason: Reason,
    ) -> Option<ToDevice<'b>> {
        (!targets.is_empty()).then(|| {
            ToDevice(Box::new(Parts {
                core,
                source,
                device,
                targets,
                reason,
                watch: None,
            }))
        })
    }

    /// Returns where the pages are: in system memory (or untouched), or in another device's private memory.
    pub fn source(&self) -> Place {
        self.0.from()
    }

    /// Returns the destination.
    pub fn device(&self) -> DeviceId {
        self.0.device.id
    }

    /// Returns why the pages move.
    pub fn cause(&self) -> Cause {
        self.0.reason.cause
    }

    /// Returns the folios that will be filled, in page order.
    pub fn folios(&self) -> impl Iterator<Item = DeviceFolio> + '_ {
        self.0.folios()
    }

    /// Returns the source pages that have contents, in page order; the other pages are untouched and become
    /// zeros.
    pub fn contents(&self) -> impl Iterator<Item = PageRange> + '_ {
        let locks = self.0.targets.iter().flat_map(|t| &t.locks);
        locks
            .filter(|l| l.word().residency() != Residency::Untouched)
            .map(FolioLock::range)
    }

    /// Returns the pages of the folios with the cause of each: a fault's migration may include prefetched
    /// pages.
    pub fn causes(&self) -> impl Iterator<Item = (Cause, PageRange)> + '_ {
        let ranges = self
            .folios()
            .map(|folio| PageRange::with_len(folio.page, folio.pages()));
        ranges.flat_map(|range| self.0.reason.causes(range))
    }

    /// Gives each folio the cookie that `cookie` returns.
    pub fn set_cookies(&mut self, mut cookie: impl FnMut(DeviceFolio) -> u64) {
        for target in &mut self.0.targets {
            let value = cookie(target.allocation.folio);
            target.allocation.set_cookie(value);
        }
    }

    /// Keeps only the folios for which `keep` returns true; the pages of the other folios stay where they are.
    pub fn retain(&mut self, mut keep: impl FnMut(DeviceFolio) -> bool) {
        self.0.targets.retain(|t| keep(t.allocation.folio));
    }

    /// Sets the watch, which is called at each [`Step`].
    pub fn watch(&mut self, watch: Arc<dyn Watch>) {
        self.0.watch = Some(watch);
    }

    /// Runs the remaining phases.
    #[inline]
    pub fn run(self) -> Result<Finalized, MigrateError> {
        Ok(self.copy()?.commit().finalize())
    }

    /// Moves the contents into the frames, out of reach of CPUs and devices. Pages that cannot move now are
    /// left behind.
    #[inline]
    pub fn copy(mut self) -> Result<CopiedToDevice<'b>, MigrateError> {
        let parts = &mut *self.0;
        let core = parts.core;
        parts.notify(Step::BeforeCopy)?;
        let locks = parts.targets.iter_mut().flat_map(|t| t.locks.iter_mut());
        core.invalidate_mirrors(locks);
        let all: u32 = parts.folios().map(|folio| folio.pages()).sum();
        let untouched = parts.untouched();
        let to = Place::Device(parts.device.id);
        core.links
            .transfer(&core.clock, parts.from(), to, all - untouched);
        let failed = match core.guest.has_contents() {
            true => parts.move_contents(all, untouched),
            false => Vec::new(),
        };
        if !failed.is_empty() {
            core.recorder
                .add(Counter::PagesSkippedBusy, failed.len() as u64);
            parts.leave_behind(&failed);
        }
        // From here on, a drop on an error rolls back.
        let copied = CopiedToDevice(Some(self.0));
        copied.notify()?;
        Ok(copied)
    }
}

impl<'b> CopiedToDevice<'b> {
    /// Returns the folios, which hold the contents now.
    pub fn folios(&self) -> impl Iterator<Item = DeviceFolio> + '_ {
        self.0.iter().flat_map(|parts| parts.folios())
    }

    fn notify(&self) -> Result<(), MigrateError> {
        self.0.iter().try_for_each(|it| it.notify(Step::Copied))
    }

    /// Makes the frames the valid place of the pages.
    #[inline]
    pub fn commit(mut self) -> CommittedToDevice<'b> {
        let Some(mut parts) = self.0.take() else {
            unreachable!("only a commit and a drop take the parts, and both end this phase");
        };
        let (source, device) = (parts.source, parts.device);
        let until = Tick::end_of_hold(parts.core.clock.now(), parts.reason.hold);
        let mut emptied = Vec::new();
        let mut folios = Locks::new();
        for target in parts.targets.drain(..) {
            folios.push(make_resident(target, source, device, until, &mut emptied));
        }
        let pages = folios.iter().map(FolioLock::range);
        // The watch's error is ignored: after the commit there is no rollback.
        let _ = notify(&parts.watch, Step::Committed, pages);
        CommittedToDevice {
            parts,
            emptied,
            folios,
        }
    }
}

/// Allocates frames for these pages of one block. All pages of a folio have the same permission, so read-only pages get
/// folios of their own.
fn allocate_for_block<'b>(
    core: &'b Core,
    device: &'b Device,
    block: Block,
    mut locks: Locks<'b>,
    targets: &mut Targets<'b>,
) {
    let mut read_only = Locks::new();
    if locks.iter().any(|l| l.word().read_only()) {
        (read_only, locks) = locks.into_iter().partition(|l| l.word().read_only());
    }
    allocate(core, device, block, locks, targets);
    if !read_only.is_empty() {
        allocate(core, device, block, read_only, targets);
        targets.sort_by_key(|t| t.allocation.folio.page);
    }
}

/// Allocates frames for these pages, in folios as large as alignment and free memory permit; unlocks the pages
/// for which there is no frame.
fn allocate<'b>(
    core: &'b Core,
    device: &'b Device,
    block: Block,
    mut locks: Locks<'b>,
    targets: &mut Targets<'b>,
) {
    // Most often, one folio goes to a folio of the same size.
    if let [lock] = &locks[..]
        && let Some(allocation) = Allocation::new(device, lock.head(), lock.order(), &core.recorder)
    {
        targets.push(DestinationFolio { locks, allocation });
        return;
    }
    let mut taken = PageSet::EMPTY;
    for lock in &locks {
        taken = taken.union(&PageSet::of(lock.range()));
    }
    // The locks are taken from the end of the list.
    locks.reverse();
    for run in taken.runs() {
        let mut at = run.start;
        while at < run.end {
            let page = block.page(at);
            let fits = (run.end - at).ilog2() as u8;
            let mut order = fits.min(at.trailing_zeros().min(MAX_ORDER.into()) as u8);
            let allocation = loop {
                if let Some(a) = Allocation::new(device, page, order, &core.recorder) {
                    break a;
                }
                // Device memory is fragmented or short: try smaller folios, then give up on the rest of the
                // pages.
                match order.checked_sub(1) {
                    Some(smaller) => order = smaller,
                    None => return,
                }
            };
            at += 1 << order;
            targets.push(DestinationFolio {
                locks: take_locks(core, &mut locks, page.plus(1 << order)),
                allocation,
            });
        }
    }
}

/// Removes and returns the locks of the pages below `end` from the end of the list, cutting a folio that
/// crosses `end`.
fn take_locks<'b>(core: &'b Core, locks: &mut Locks<'b>, end: Page) -> Locks<'b> {
    let mut taken = Locks::new();
    while locks.last().is_some_and(|l| l.head() < end)
        && let Some(mut lock) = locks.pop()
    {
        while lock.range().end > end {
            locks.push(core.halve(&mut lock));
        }
        taken.push(lock);
    }
    taken
}

/// Writes the words of a target's pages and returns the lock of the new folio. `emptied` gets the folios that the pages
/// had in the source's memory; they are to be released when the pages are unlocked.
fn make_resident<'b>(
    target: DestinationFolio<'b>,
    source: Option<Source<'b>>,
    device: &Device,
    until: Tick,
    emptied: &mut Vec<DeviceFolio>,
) -> FolioLock<'b> {
    if let Some(Source { device, .. }) = source {
        for lock in &target.locks {
            if let Some(place) = lock.word().residency().placed() {
                emptied.push(device.folio(lock.head(), place.frame, place.order));
                device.leaving(lock.range().len());
            }
        }
    }
    device.hold(target.allocation.folio.frame, until);
    let folio = target.allocation.into_resident();
    let kind = match device.memory {
        Some(_) => MemoryKind::Private,
        None => MemoryKind::Coherent,
    };
    FolioLock::merge(target.locks, folio.order, |word| {
        word.to_device(device.id, kind, folio.frame, folio.order)
    })
}

impl Drop for CopiedToDevice<'_> {
    /// Rolls back: the contents return to where they were.
    fn drop(&mut self) {
        let Some(mut parts) = self.0.take() else {
            return;
        };
        let now = parts.core.clock.now();
        let until = Tick::end_of_hold(now, Duration::ZERO);
        let Some(memory) = &parts.device.memory else {
            // Coherent memory: the contents have not moved. Untouched pages have been filled, and CPUs may have
            // written to them since: they become system pages.
            for target in std::mem::take(&mut parts.targets) {
                for lock in target.locks {
                    if lock.word().residency() == Residency::Untouched {
                        lock.publish_pages(|word| word.to_system(until));
                    }
                }
            }
            return;
        };
        let (core, source, device) = (parts.core, parts.source, parts.device);
        let mut stuck = Vec::new();
        for run in parts.runs(Residency::System) {
            core.guest.undo_take(run, memory, |at| {
                stuck.push(run.page.plus(at));
            });
        }
        if let Some(source) = source {
            for passage in parts.passages() {
                core.guest
                    .pass(passage.back(), memory, source.memory, |at| {
                        stuck.push(passage.page.plus(at));
                    });
            }
        }
        let mut emptied = Vec::new();
        // If the host has no memory to take a page back, its contents are safe in the frame: the page stays in
        // the device's memory. All other pages are as before.
        let targets = std::mem::take(&mut parts.targets);
        let mut todo = targets;
        while let Some(mut target) = todo.pop() {
            let range = target.range();
            match count_of(&stuck, range) {
                // Dropping the target unlocks the pages and frees the frames.
                0 => target.allocation.contents = Contents::Dead,
                n if n == range.len() => {
                    drop(make_resident(target, source, device, until, &mut emptied));
                }
                _ => {
                    let upper = target.halve(core);
                    todo.extend([target, upper]);
                }
            }
        }
        release_all(core, source, emptied);
    }
}

impl CommittedToDevice<'_> {
    /// Unlocks the pages and wakes the threads that wait for them.
    pub fn finalize(mut self) -> Finalized {
        Finalized {
            pages: self.publish(),
        }
    }

    fn publish(&mut self) -> u32 {
        let parts = &*self.parts;
        let (core, recorder) = (parts.core, &parts.core.recorder);
        let (direction, kind) = match parts.source {
            None => (Direction::ToDevice, EventKind::ToDevice),
            Some(_) => (Direction::BetweenDevices, EventKind::BetweenDevices),
        };
        let mut pages = 0;
        let finalized = pages_to_report(&parts.watch, self.folios.iter().map(FolioLock::range));
        for folio in std::mem::take(&mut self.folios) {
            let range = folio.range();
            pages += range.len();
            for (cause, part) in parts.reason.causes(range) {
                recorder.migrated(direction, cause, part.len().into());
                recorder.event(|| Event {
                    device: Some(parts.device.id),
                    cause: Some(cause),
                    ..Event::new(core.clock.now(), kind, part)
                });
            }
        }
        release_all(core, parts.source, std::mem::take(&mut self.emptied));
        notify_finalized(&parts.watch, &finalized);
        pages
    }
}

impl Drop for CommittedToDevice<'_> {
    /// Finalizes: the residency words name the device, so a committed migration cannot be rolled back.
    fn drop(&mut self) {
        if !self.folios.is_empty() {
            self.publish();
        }
    }
}

/// Releases the folios that pages have left in the source's memory. The pages must be unlocked.
fn release_all(core: &Core, source: Option<Source<'_>>, emptied: Vec<DeviceFolio>) {
    for folio in emptied {
        if let Some(Source { device, .. }) = source {
            device.release(folio, Contents::Gone, &core.recorder);
        }
    }
}

/// Migrates those of these pages that are untouched or in system memory and can migrate through the device's driver, and
/// returns how many moved. The blocks must ascend.
pub(crate) fn to_device(
    core: &Core,
    device: &Device,
    wanted: impl IntoIterator<Item = (Block, PageSet)>,
    reason: Reason,
) -> u64 {
    match ToDevice::collect(core, device, wanted, reason) {
        Some(migration) => migrate(core, device, migration),
        None => 0,
    }
}

/// Calls the device's driver for a migration, and returns how many pages moved. Every migration to a device goes
/// through this function.
pub(super) fn migrate(core: &Core, device: &Device, migration: ToDevice<'_>) -> u64 {
    let first = migration.folios().next().map_or(Page(0), |f| f.page);
    let now = core.clock.now();
    // Before the commit, an error has rolled everything back. Pages that were committed before a later error have
    // moved, but are not counted.
    core.driver_calls
        .call(device, first, now, |driver| {
            driver.migrate_to_device(migration)
        })
        .map_or(0, |done| done.pages.into())
}

impl Core {
    /// Keeps the lower half of a folio and returns the upper one. Tells the driver and the eviction policy of the device
    /// that has the folio, if one has.
    fn halve<'b>(&self, lock: &mut FolioLock<'b>) -> FolioLock<'b> {
        if let Some(place) = lock.word().residency().placed() {
            let device = self.device_of(place.device);
            let folio = device.folio(lock.head(), place.frame, place.order);
            device.halve_resident(folio, &self.recorder);
        }
        lock.halve()
    }

    /// Locks a page's folio if it can migrate to a device: it is untouched, or in private system memory,
    /// unpinned and not held at `now`.
    fn lock_for_device(&self, page: Page, cause: Cause, now: Duration) -> Option<FolioLock<'_>> {
        // Check first without the lock, so as not to disturb pages that are on a device already.
        if !matches!(
            self.table.word(page).residency(),
            Residency::System | Residency::Untouched
        ) || self.guest.is_shared(page)
        {
            return None;
        }
        let TryLock::Locked(lock) = self.table.try_lock(page) else {
            self.recorder.add(Counter::PagesSkippedBusy, 1);
            return None;
        };
        match lock.word().residency() {
            Residency::Untouched => Some(lock),
            Residency::System if lock.word().pins() > 0 => {
                self.recorder.add(Counter::PagesSkippedPinned, 1);
                None
            }
            // An explicit request overrides the hold.
            Residency::System
                if cause != Cause::User && held_in_system(lock.word(), now).is_some() =>
            {
                self.recorder.add(Counter::PagesSkippedHeld, 1);
                None
            }
            Residency::System => Some(lock),
            Residency::Device(_)
            | Residency::Coherent(_)
            | Residency::Duplicated(_)
            | Residency::Exclusive(_)
            | Residency::Poisoned => None,
        }
    }
}

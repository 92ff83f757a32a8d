//! Migration from a device's memory into system memory: for CPU faults, eviction, detach, requests and
//! prefetches.

use std::sync::Arc;

use smallvec::SmallVec;

use super::core::Core;
use super::device::{Contents, Device};
use super::phases::{Finalized, Reason, count_of, runs};
use super::watch::{Step, Watch, notify, notify_finalized, pages_to_report};
use crate::memory::EngineError;
use crate::observe::{Cause, Counter, Direction, Event, EventKind};
use crate::pages::time::Tick;
use crate::pages::{
    Block, DeviceFolio, DeviceId, FaultError, Page, PageRange, PageSet, Permission, Place,
};
use crate::residency::{FolioLock, TryLock, Word};

/// A folio in device memory, locked.
pub(crate) struct Source<'b> {
    pub(crate) lock: FolioLock<'b>,
    pub(crate) folio: DeviceFolio,
}

/// Folios of one device. Most migrations are of one folio, and allocate nothing for the list.
pub(crate) type Sources<'b> = SmallVec<[Source<'b>; 1]>;

impl<'b> Source<'b> {
    /// Returns whether system memory has the contents, too.
    pub(crate) fn duplicated(&self) -> bool {
        self.lock.word().residency().duplicated()
    }

    /// Cuts the folio until each piece is wholly wanted or wholly unwanted; adds the wanted pieces to `out` and
    /// unlocks the unwanted ones. `wanted` returns how many pages of a range are wanted.
    pub(crate) fn carve(
        mut self,
        core: &'b Core,
        device: &Device,
        wanted: &impl Fn(PageRange) -> u32,
        out: &mut impl Extend<Source<'b>>,
    ) {
        let count = wanted(self.lock.range());
        if count == self.folio.pages() {
            out.extend([self]);
        } else if count > 0 {
            let upper = self.halve(core, device);
            self.carve(core, device, wanted, out);
            upper.carve(core, device, wanted, out);
        }
    }

    /// Keeps the lower half and returns the upper one.
    fn halve(&mut self, core: &Core, device: &Device) -> Source<'b> {
        let (lower, upper) = device.halve_resident(self.folio, &core.recorder);
        self.folio = lower;
        Source {
            lock: self.lock.halve(),
            folio: upper,
        }
    }
}

/// What a migration works on. Boxed, so that the phases and drivers pass it on without copying it.
struct Parts<'b> {
    core: &'b Core,
    device: &'b Device,
    sources: Sources<'b>,
    reason: Reason,
    fault: Option<Page>,
    keeps_frames: bool,
    watch: Option<Arc<dyn Watch>>,
}

impl Parts<'_> {
    fn folios(&self) -> impl Iterator<Item = DeviceFolio> + '_ {
        self.sources.iter().map(|s| s.folio)
    }

    fn contents(&self) -> impl Iterator<Item = PageRange> + '_ {
        let single = self.sources.iter().filter(|s| !s.duplicated());
        single.map(|s| s.lock.range())
    }

    fn notify(&self, step: Step) -> Result<(), FaultError> {
        notify(
            &self.watch,
            step,
            self.sources.iter().map(|s| s.lock.range()),
        )
    }
}

/// Phase *collected*: device folios are locked; nothing has moved.
pub struct ToSystem<'b>(Box<Parts<'b>>);

/// Phase *copied*: no device can reach the pages any more, and their contents are stable.
pub struct CopiedToSystem<'b>(Box<Parts<'b>>);

/// Phase *committed*: the pages are in system memory, where CPUs can use them; they are still locked.
pub struct CommittedToSystem<'b>(Box<Parts<'b>>);

/// Folios in one device's memory, locked.
type Group<'b> = (&'b Arc<Device>, Sources<'b>);

/// Locks the folios of these pages that are in device memory and returns them, grouped by device, in page order. Cuts
/// them so that no other pages move with them. Skips folios that another thread has locked, and those that `leaving`
/// excludes. The blocks must ascend.
pub(crate) fn collect_from_devices<'b>(
    core: &'b Core,
    wanted: impl IntoIterator<Item = (Block, PageSet)>,
    leaving: Leaving,
) -> SmallVec<[Group<'b>; 1]> {
    let mut groups = SmallVec::new();
    for (block, pages) in wanted {
        collect_block(core, block, &pages, leaving, &mut groups);
    }
    groups
}

/// Which folios in device memory are to leave it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    All,
    /// Those that are not duplicated.
    Single,
    /// Those that are neither duplicated nor held.
    SingleAndFree,
}

fn collect_block<'b>(
    core: &'b Core,
    block: Block,
    pages: &PageSet,
    leaving: Leaving,
    groups: &mut SmallVec<[Group<'b>; 1]>,
) {
    let mut left = *pages;
    while let Some(index) = left.first() {
        left.remove(index);
        let Some((device, source)) = core.lock_device_folio(block.page(index)) else {
            continue;
        };
        if source.folio.order > 0 {
            left = left.difference(&PageSet::of(source.lock.range()));
        }
        if leaving != Leaving::All && source.duplicated() {
            continue;
        }
        if leaving == Leaving::SingleAndFree
            && device.held(source.folio.frame, core.clock.now()).is_some()
        {
            core.recorder
                .add(Counter::PagesSkippedHeld, source.folio.pages().into());
            continue;
        }
        let group = match groups.iter().position(|(d, _)| d.id == device.id) {
            Some(i) => &mut groups[i].1,
            None => {
                groups.push((device, Sources::new()));
                &mut groups.last_mut().expect("just pushed").1
            }
        };
        source.carve(core, device, &|range| pages.count_of(range), group);
    }
}

impl<'b> ToSystem<'b> {
    pub(crate) fn new(
        core: &'b Core,
        device: &'b Device,
        sources: Sources<'b>,
        reason: Reason,
        fault: Option<Page>,
    ) -> ToSystem<'b> {
        // A device that is being detached cannot keep a copy; coherent memory has nothing to duplicate.
        let keeps_frames = reason.duplicate && device.memory.is_some() && !device.detaching();
        ToSystem(Box::new(Parts {
            core,
            device,
            sources,
            reason,
            fault,
            keeps_frames,
            watch: None,
        }))
    }

    /// Sets the watch, which is called at each [`Step`].
    pub fn watch(&mut self, watch: Arc<dyn Watch>) {
        self.0.watch = Some(watch);
    }

    /// Returns the device whose memory the pages leave.
    pub fn device(&self) -> DeviceId {
        self.0.device.id
    }

    /// Returns why the pages move.
    pub fn cause(&self) -> Cause {
        self.0.reason.cause
    }

    /// Returns the page that a CPU or a device touched, if a fault is the reason. That page should move; the
    /// other pages are optional.
    pub fn fault(&self) -> Option<Page> {
        self.0.fault
    }

    /// Returns the folios to be emptied, or duplicated.
    pub fn folios(&self) -> impl Iterator<Item = DeviceFolio> + '_ {
        self.0.folios()
    }

    /// Returns whether the folios are only duplicated: they stay in their frames with their cookies, for the
    /// device to read, and [`crate::driver::Driver::page_free`] is not called for them. When the duplication ends, they
    /// are migrated once more, or freed.
    pub fn keeps_frames(&self) -> bool {
        self.0.keeps_frames
    }

    /// Returns the pages whose contents move or are copied, in the order of the folios. The other pages are
    /// duplicates, which system memory has already.
    pub fn contents(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.0.contents()
    }

    /// Returns the pages of the folios with the cause of each: a fault's migration may include prefetched
    /// pages.
    pub fn causes(&self) -> impl Iterator<Item = (Cause, PageRange)> + '_ {
        let ranges = self.0.sources.iter().map(|s| s.lock.range());
        ranges.flat_map(|range| self.0.reason.causes(range))
    }

    /// Keeps only the folios for which `keep` returns true; the pages of the other folios stay where they are.
    pub fn retain(&mut self, mut keep: impl FnMut(DeviceFolio) -> bool) {
        self.0.sources.retain(|s| keep(s.folio));
    }

    /// Runs the remaining phases.
    #[inline]
    pub fn run(self) -> Result<Finalized, FaultError> {
        Ok(self.copy()?.commit()?.finalize())
    }

    /// Takes the pages' translations away from devices: when it returns, no device uses one.
    #[inline]
    pub fn copy(mut self) -> Result<CopiedToSystem<'b>, FaultError> {
        self.0.notify(Step::BeforeCopy)?;
        let parts = &mut *self.0;
        let locks = parts.sources.iter_mut().map(|s| &mut s.lock);
        parts.core.invalidate_mirrors(locks);
        self.0.notify(Step::Copied)?;
        Ok(CopiedToSystem(self.0))
    }
}

impl<'b> CopiedToSystem<'b> {
    /// Returns the folios about to be emptied, or duplicated.
    pub fn folios(&self) -> impl Iterator<Item = DeviceFolio> + '_ {
        self.0.folios()
    }

    /// Moves the contents to system memory. Pages that cannot move now are left behind; returns an error only
    /// if no page could move.
    #[inline]
    pub fn commit(self) -> Result<CommittedToSystem<'b>, FaultError> {
        let mut this = self.0;
        let pages = this.contents().map(|range| range.len()).sum();
        let (from, links) = (Place::Device(this.device.id), &this.core.links);
        links.transfer(&this.core.clock, from, Place::System, pages);
        let mut failed: Vec<(Page, EngineError)> = Vec::new();
        let reach = this.core.guest.reach();
        let those = |wanted: fn(&&Source<'_>) -> bool| {
            let pieces = this.sources.iter().filter(wanted);
            runs(
                reach,
                pieces.map(|s| (s.lock.range(), s.folio.frame, s.lock.word())),
            )
        };
        // Coherent memory needs no move: CPUs reach it already.
        if let Some(memory) = &this.device.memory
            && this.core.guest.has_contents()
        {
            for mut run in those(|source| !source.duplicated()) {
                // A duplicate is write-protected.
                if this.keeps_frames {
                    run.permission = Permission::ReadOnly;
                }
                this.core.guest.give(run, memory, |at, error| {
                    failed.push((run.page.plus(at), error));
                });
            }
            // The device no longer uses its copies: let CPUs write to the system copies, and wake those that
            // wait to write.
            for run in those(|source| source.duplicated()) {
                this.core.guest.lift_protection(run);
            }
        }
        // The error of the faulting page counts first.
        let at_fault = failed.iter().find(|(page, _)| Some(*page) == this.fault);
        if let Some((page, error)) = at_fault.or(failed.first()).copied() {
            this.core
                .recorder
                .add(Counter::PagesSkippedBusy, failed.len() as u64);
            let failed: Vec<Page> = failed.iter().map(|(page, _)| *page).collect();
            let moves = |range: PageRange| range.len() - count_of(&failed, range);
            let mut moved = Sources::new();
            for source in std::mem::take(&mut this.sources) {
                source.carve(this.core, this.device, &moves, &mut moved);
            }
            this.sources = moved;
            if this.sources.is_empty() {
                return Err(match error {
                    EngineError::Busy => FaultError::Retry,
                    EngineError::NoMemory => FaultError::OutOfMemory,
                    EngineError::InTheWay | EngineError::Lost | EngineError::Unexpected(_) => {
                        FaultError::Fatal(format!(
                            "{page:?} cannot be moved to system memory: {error}"
                        ))
                    }
                });
            }
        }
        let committed = CommittedToSystem(this);
        // The watch's error is ignored: after the commit there is no rollback.
        let _ = committed.0.notify(Step::Committed);
        Ok(committed)
    }
}

impl CommittedToSystem<'_> {
    /// Unlocks the pages, wakes the threads that wait for them, and calls the driver's `page_free` for the
    /// folios, unless the device keeps them.
    pub fn finalize(mut self) -> Finalized {
        Finalized {
            pages: self.publish(),
        }
    }

    fn publish(&mut self) -> u32 {
        let parts = &mut *self.0;
        let (core, device, reason) = (parts.core, parts.device, &parts.reason);
        let recorder = &core.recorder;
        let now = core.clock.now();
        let until = Tick::end_of_hold(now, reason.hold);
        let mut pages = 0;
        let finalized = pages_to_report(&parts.watch, parts.sources.iter().map(|s| s.lock.range()));
        let mut empty = SmallVec::<[_; 1]>::new();
        for source in std::mem::take(&mut parts.sources) {
            let collapses = source.duplicated();
            let Source { lock, folio } = source;
            let range = lock.range();
            pages += range.len();
            let kind = match (parts.keeps_frames, collapses) {
                (true, _) => EventKind::Duplicated,
                (false, true) => EventKind::Collapsed,
                (false, false) => EventKind::ToSystem,
            };
            // Before the unlock: what another thread does with the pages afterwards is recorded later. The events' times would
            // not order them if the rings are emptied in between.
            for (cause, part) in reason.causes(range) {
                if !collapses {
                    recorder.migrated(Direction::ToSystem, cause, part.len().into());
                }
                recorder.event(|| Event {
                    device: (!collapses).then_some(device.id),
                    cause: Some(cause),
                    ..Event::new(now, kind, part)
                });
            }
            if parts.keeps_frames {
                recorder.add(Counter::Duplicated, range.len().into());
                // The hold gives the CPUs time with their copy; set it before the device can write again.
                device.hold(folio.frame, until);
                lock.publish_folio(Word::to_duplicated);
            } else {
                // Read-only pages were copied, so their frames still have contents. So have the frames of
                // duplicates.
                let contents = match collapses || lock.word().read_only() {
                    true => Contents::Dead,
                    false => Contents::Gone,
                };
                empty.push((folio, contents));
                device.leaving(range.len());
                // The pages stay one folio, so that the next migration takes them with one lock.
                lock.publish_folio(move |word| word.to_system(until));
                if collapses {
                    recorder.add(Counter::Collapsed, range.len().into());
                }
            }
        }
        // Release the frames with no lock held.
        for (folio, contents) in empty {
            device.release(folio, contents, recorder);
        }
        notify_finalized(&parts.watch, &finalized);
        pages
    }
}

impl Drop for CommittedToSystem<'_> {
    /// Finalizes: CPUs use the pages already, so a committed migration cannot be rolled back.
    fn drop(&mut self) {
        if !self.0.sources.is_empty() {
            self.publish();
        }
    }
}

/// Calls a device's driver to migrate folios to system memory. Every migration to system memory goes through
/// this function. `fault` is the page that a thread waits for.
pub(crate) fn to_system<'b>(
    core: &'b Core,
    device: &'b Device,
    sources: Sources<'b>,
    reason: Reason,
    fault: Option<Page>,
) -> Result<Finalized, FaultError> {
    let first = sources.first().map_or(Page(0), |source| source.lock.head());
    let now = core.clock.now();
    let migration = ToSystem::new(core, device, sources, reason, fault);
    core.driver_calls.call(device, first, now, |driver| {
        driver.migrate_to_ram(migration)
    })
}

impl Core {
    /// Locks the folio of a page that is in device memory, and returns it with its device. `None` if another
    /// thread has locked it, or the page is not in device memory.
    pub(crate) fn lock_device_folio(&self, page: Page) -> Option<(&Arc<Device>, Source<'_>)> {
        // Check first without the lock, so as not to disturb pages of other kinds.
        self.table.word(page).residency().placed()?;
        let TryLock::Locked(lock) = self.table.try_lock(page) else {
            self.recorder.add(Counter::PagesSkippedBusy, 1);
            return None;
        };
        self.device_source(lock)
    }

    /// Returns the device and the folio of a locked page, if it is in device memory.
    pub(crate) fn device_source<'b>(
        &'b self,
        lock: FolioLock<'b>,
    ) -> Option<(&'b Arc<Device>, Source<'b>)> {
        let place = lock.word().residency().placed()?;
        let device = self.device_of(place.device);
        let folio = device.folio(lock.head(), place.frame, place.order);
        Some((device, Source { lock, folio }))
    }
}

//! Device faults: make pages reachable for a device, and give it their translations.

use std::time::Duration;

use smallvec::SmallVec;

use super::mirror::{DeviceMmu, HostPage, InFlight, Mapping, Mirror, Target};
use super::retry::{Attempts, Unresolved};
use crate::migrate::{Reason, between_devices, to_device};
use crate::observe::{Cause, Counter, Event, EventKind, FaultCause};
use crate::pages::time::Tick;
use crate::pages::{
    Access, FatalCause, FaultError, Frame, MirrorError, Page, PageRange, PageSet, Place,
};
use crate::policy::{Advice, BlockFault};
use crate::residency::{Pattern, Placed, Residency, Word};

/// The access that a device wants to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Want {
    Access(Access),
    /// An atomic operation, for which the page must be exclusive to the device.
    Exclusive,
}

impl Want {
    fn access(self) -> Access {
        match self {
            Want::Access(access) => access,
            Want::Exclusive => Access::Write,
        }
    }
}

/// What it took to give a device its translations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// All pages were in the device's own memory already, for instance because they had been prefetched. This does not count
    /// as a fault: real drivers enter the translations of pages that they prefetch.
    There,
    /// A page had to move, or a translation in place had to be given: one fault in [`crate::observe::Stats::device_faults`].
    Fault,
}

/// Where a device wants to reach a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// In the device's own memory.
    OwnMemory,
    /// Where CPUs reach it.
    InPlace,
}

/// The state of one fault between its attempts.
#[derive(Default)]
struct Turn {
    /// Whether the fault has waited already: a fault is throttled only once.
    waited: bool,
    /// The policy's advice that is not used up yet, with the page's generation at that time. While the
    /// generation stays the same, an access is reported to the policy only once.
    advice: Option<(u16, Advice)>,
}

/// After this many failed attempts to get a page into the device's own memory, the device uses the page in
/// place: progress comes before placement.
const MIGRATION_ATTEMPTS: u32 = 3;

impl<M: DeviceMmu> Mirror<M> {
    /// Makes a page accessible and calls `program` to enter its translation. See [`Self::fault_range`].
    pub fn fault(
        &mut self,
        page: Page,
        access: Access,
        mut program: impl FnMut(&mut M, Mapping),
    ) -> Result<(), MirrorError> {
        self.fault_range(PageRange::single(page), access, |mmu, mappings| {
            program(mmu, mappings[0])
        })?;
        Ok(())
    }

    /// Makes all pages of a range accessible at the same time and calls `program` to enter their translations.
    /// The call is made under the mirror's lock, after a check that no translation was invalidated meanwhile.
    /// Migrates pages as the policy says; sleeps while pages are in motion. Returns whether that was a fault.
    pub fn fault_range(
        &mut self,
        range: PageRange,
        access: Access,
        program: impl FnMut(&mut M, &[Mapping]),
    ) -> Result<Served, MirrorError> {
        self.fault_as(range, Want::Access(access), program)
    }

    /// Makes a page exclusive to this device and calls `program` to enter its translation. This is for atomic
    /// operations: no CPU and no other device reaches the page while the translation is valid. Any other access
    /// ends the exclusive access, after the policy's hold. A page in the device's own private memory is always
    /// exclusive; any other page becomes an exclusive page of system memory, without using device memory.
    pub fn fault_exclusive(
        &mut self,
        page: Page,
        mut program: impl FnMut(&mut M, Mapping),
    ) -> Result<(), MirrorError> {
        self.fault_as(PageRange::single(page), Want::Exclusive, |mmu, mappings| {
            program(mmu, mappings[0])
        })?;
        Ok(())
    }

    fn fault_as(
        &mut self,
        range: PageRange,
        want: Want,
        mut program: impl FnMut(&mut M, &[Mapping]),
    ) -> Result<Served, MirrorError> {
        if let Some(first) = self.faults.core.first_outside(range) {
            return Err(MirrorError::OutOfRange(first));
        }
        self.tell_visits();
        let started = self.faults.core.clock.now();
        self.device.set_fault_began(Some(started));
        self.shared.set_told(true);
        let cause = self.resolve(range, want, &mut program);
        self.shared.set_told(false);
        self.device.set_fault_began(None);
        let cause = cause?;
        let latency = self.faults.core.clock.now().saturating_sub(started);
        let served = match cause {
            None => Served::There,
            Some(cause) => {
                self.faults.core.recorder.device_fault(cause, latency);
                Served::Fault
            }
        };
        self.faults.core.recorder.event(|| Event {
            device: Some(self.device.id),
            access: Some(want.access()),
            latency,
            ..Event::new(
                self.faults.core.clock.now(),
                match served {
                    Served::Fault => EventKind::DeviceFault,
                    Served::There => EventKind::Access,
                },
                range,
            )
        });
        Ok(served)
    }

    /// Makes the pages accessible and enters their translations. Returns why that was a fault, if it was one: of several
    /// pages, what was done about the last one that needed something.
    fn resolve(
        &mut self,
        range: PageRange,
        want: Want,
        program: &mut impl FnMut(&mut M, &[Mapping]),
    ) -> Result<Option<FaultCause>, MirrorError> {
        let mut cause = None;
        let mut rounds = 0;
        loop {
            let mut mappings: SmallVec<[Mapping; 1]> = SmallVec::new();
            for page in range.pages() {
                let aim = match rounds {
                    ..MIGRATION_ATTEMPTS => Aim::OwnMemory,
                    _ => Aim::InPlace,
                };
                let made = self.make_accessible(page, want, aim, &mut cause);
                mappings.push(
                    made.inspect_err(|_| self.shared.tables().in_flight = InFlight::default())?,
                );
            }
            let mut guard = self.lock();
            let in_flight = std::mem::take(&mut guard.tables.in_flight);
            if !in_flight.stale {
                program(&mut guard, &mappings);
                return Ok(cause);
            }
            drop(guard);
            rounds += 1;
        }
    }

    /// Notes that the page's place was found: if the page is invalidated from now on, the fault starts again.
    fn found(&self, page: Page) {
        let in_flight = &mut self.shared.tables().in_flight;
        let start = in_flight.found.map_or(page, |found| found.start);
        in_flight.found = Some(PageRange::new(start, page.plus(1)));
    }

    /// Makes one page reachable for the device and returns its translation. Sets `cause` unless the page was
    /// in the device's own memory already.
    fn make_accessible(
        &self,
        page: Page,
        want: Want,
        mut aim: Aim,
        cause: &mut Option<FaultCause>,
    ) -> Result<Mapping, MirrorError> {
        let faults = &*self.faults;
        let fatal = |cause| MirrorError::Fatal { page, cause };
        let mut attempts = 0;
        let mut turn = Turn::default();
        let mut busy = Attempts::default();
        let access = want.access();
        let asker = Some(&*self.device);
        // A device with coherent memory leaves pages where they are, because it and the CPUs reach each other's
        // memory.
        if self.device.memory.is_none() {
            aim = Aim::InPlace;
        }
        loop {
            if self.device.detaching() {
                return Err(MirrorError::Detached);
            }
            faults.core.table.settle(page);
            let word = faults.core.table.word(page);
            if word.read_only() && access == Access::Write {
                return Err(MirrorError::Permission(page));
            }
            if self.reaches(page, word, want, aim) {
                self.found(page);
                // Set the mirrored flag before the translation exists: a migration that locks the page from
                // here on invalidates it, and `fault_as` sees that the fault is stale. The translation is made
                // from the word that has the flag.
                match faults.core.table.mark_mirrored(page) {
                    Some(marked) if marked.generation() == word.generation() => {
                        if attempts == 0 {
                            self.used(page, marked);
                        }
                        return Ok(self.translation(page, marked, cause));
                    }
                    _ => continue,
                }
            }
            if word.residency() == Residency::Poisoned {
                return Err(fatal(FatalCause::ContentsLost));
            }
            *cause = Some(match word.residency() {
                Residency::Untouched => FaultCause::FirstTouch,
                Residency::Duplicated(_) => FaultCause::Duplicated,
                Residency::Exclusive(_) => FaultCause::Exclusive,
                _ if want == Want::Exclusive => FaultCause::Exclusive,
                _ => FaultCause::Migrated,
            });
            attempts += 1;
            if attempts > MIGRATION_ATTEMPTS {
                aim = Aim::InPlace;
            }
            let by_system = matches!(
                word.residency(),
                Residency::Duplicated(_) | Residency::Exclusive(_)
            );
            let own = word.residency().device() == Some(self.device.id);
            if own && word.residency().duplicated() && aim == Aim::OwnMemory {
                self.end_duplication(page, word, &mut turn);
            } else if let (Want::Exclusive, Residency::System) = (want, word.residency()) {
                if word.pins() > 0 || faults.core.guest.is_shared(page) {
                    return Err(MirrorError::NotExclusive(page));
                }
                if let Err(reason) = self.make_exclusive_here(page, word, &mut turn) {
                    let wait = busy.next(&reason).map_err(fatal)?;
                    self.put_off(page, Counter::FaultsRetried, wait);
                }
            } else if want == Want::Exclusive {
                faults.fault_in(page, access, asker).map_err(fatal)?;
            } else if by_system || aim == Aim::InPlace {
                // The page is another device's duplicate or exclusive to it, or it is untouched or in another
                // device's memory and there is no room for it in device memory, or it is this device's own
                // duplicate, which CPUs read again and again. Bring it to system memory first.
                faults.fault_in(page, access, asker).map_err(fatal)?;
            } else {
                aim = self
                    .migrate_here(page, access, word, &mut turn)
                    .map_err(fatal)?;
            }
        }
    }

    /// Returns whether the device can use a page with this word where it is.
    fn reaches(&self, page: Page, word: Word, want: Want, aim: Aim) -> bool {
        match word.residency() {
            Residency::Device(Placed { device, .. }) | Residency::Exclusive(device) => {
                device == self.device.id
            }
            Residency::System => {
                let stays = aim == Aim::InPlace
                    || word.pins() > 0
                    || self.faults.core.guest.is_shared(page);
                stays && want != Want::Exclusive
            }
            Residency::Coherent(_) => want != Want::Exclusive,
            // The device reads its own copy, or, in place, the system copy of another device's duplicate.
            Residency::Duplicated(_) => want == Want::Access(Access::Read),
            Residency::Untouched | Residency::Poisoned => false,
        }
    }

    /// Ends the duplication of a page of this device's memory, so that the device can write to it; first waits
    /// for the hold that protects the CPUs' copy.
    fn end_duplication(&self, page: Page, word: Word, turn: &mut Turn) {
        let held = self.faults.core.device_hold(page, word);
        match held {
            Some(time) if !turn.waited => {
                turn.waited = true;
                self.put_off(page, Counter::FaultsDeferred, time);
            }
            _ => self.faults.core.drop_system_copy(page),
        }
    }

    /// Makes a system page exclusive to this device, after the policy's throttle and the page's hold. `Ok` also
    /// means that the caller must check the page again after a wait.
    fn make_exclusive_here(
        &self,
        page: Page,
        word: Word,
        turn: &mut Turn,
    ) -> Result<(), Unresolved> {
        let advice = self.ask_policy(page, Access::Write, word, turn);
        let hold = advice.hold;
        if !self.wait_for_turn(page, word, advice, turn) {
            // The page may have changed during the wait: the caller checks it again.
            return Ok(());
        }
        let faults = &*self.faults;
        let until = Tick::end_of_hold(faults.core.clock.now(), hold);
        let taken = faults.core.make_exclusive(self.device.id, page, until);
        taken.map_err(Unresolved::from)
    }

    /// Notes the access of a fault that found its page in the device's own memory, for instance prefetched. A page that the
    /// fault has brought is new there.
    fn used(&self, page: Page, word: Word) {
        let own = word.residency().placed();
        if let Some(place) = own.filter(|place| place.device == self.device.id) {
            self.device.eviction().touched(place.folio_frame(page), 1);
            self.faults
                .with_policy(page.block(), |policy| policy.used(page));
        }
    }

    fn translation(&self, page: Page, word: Word, cause: &mut Option<FaultCause>) -> Mapping {
        let faults = &*self.faults;
        let in_place = || faults.core.guest.mapping().address(page.offset());
        let own = word.residency().placed();
        let own = own.filter(|place| place.device == self.device.id);
        let (target, host) = match (own, word.residency()) {
            (Some(place), _) => {
                let memory = self.device.memory.as_ref();
                let host = memory.map_or_else(in_place, |memory| memory.address(place.frame));
                (Target::Device(place.frame), host)
            }
            (None, Residency::Exclusive(_)) => {
                (Target::System, faults.core.exclusive.address(Frame(page.0)))
            }
            _ => {
                *cause = Some(FaultCause::InPlace);
                faults.core.recorder.add(Counter::MappedInPlace, 1);
                let device = Some(self.device.id);
                faults
                    .core
                    .page_event(EventKind::MappedInPlace, page, device, Duration::ZERO);
                (Target::System, in_place())
            }
        };
        let writable = !word.read_only() && !word.residency().duplicated();
        let alone = matches!(
            word.residency(),
            Residency::Device(_) | Residency::Exclusive(_)
        );
        Mapping {
            page,
            target,
            writable,
            exclusive: writable && alone,
            host: HostPage(host),
        }
    }

    /// Migrates a page into the device's memory, together with the pages at the same place that the policy adds: from
    /// system memory (with untouched ones), or directly from another device's memory. Returns where the policy wants the
    /// page: it may want it left in place instead; or why the page can never leave the other device's memory.
    fn migrate_here(
        &self,
        page: Page,
        access: Access,
        word: Word,
        turn: &mut Turn,
    ) -> Result<Aim, FatalCause> {
        let faults = &*self.faults;
        let block = page.block();
        let faulting = PageSet::from_iter([page.index_in_block()]);
        faults.settle_in_lockstep(block);
        let advice = self.ask_policy(page, access, word, turn);
        if advice.stay {
            return Ok(Aim::InPlace);
        }
        let (prefetch, hold) = (advice.prefetch, advice.hold);
        if !self.wait_for_turn(page, word, advice, turn) {
            return Ok(Aim::OwnMemory);
        }
        // Prefetching more than a quarter of the device's memory would evict pages that the device works on.
        let most = (self.device.capacity() / 4).max(1);
        let mut wanted = prefetch.union(&faulting);
        let source = word.residency().placed().map(|place| place.device);
        if let Some(source) = source {
            let there = Pattern::on_device(source).find(&faults.core.block_words(block));
            wanted = wanted.intersection(&there.union(&faulting));
        }
        let wanted = window(&wanted, page, most);
        let count = wanted.count() as u32;
        let room = faults.make_room(&self.device, count);
        if room == 0 {
            return Ok(Aim::OwnMemory);
        }
        let pages = match room < count {
            true => window(&wanted, page, room),
            false => wanted,
        };
        let reason = Reason {
            cause: Cause::Demand,
            faulting,
            hold,
            duplicate: false,
        };
        let (core, pages) = (&faults.core, [(block, pages)]);
        if source.is_none() {
            to_device(core, &self.device, pages, reason);
            return Ok(Aim::OwnMemory);
        }
        let handed = between_devices(core, &self.device, pages, reason, Some(page));
        match handed.kept {
            // A driver may return an error after pages have moved: this one has not.
            Some(FaultError::Fatal(cause))
                if core.table.word(page).residency().device() == source =>
            {
                Err(FatalCause::DriverFailed(cause))
            }
            _ => Ok(Aim::OwnMemory),
        }
    }

    /// Returns the policy's advice on this device's access to a page with this word.
    fn ask_policy(&self, page: Page, access: Access, word: Word, turn: &mut Turn) -> Advice {
        if let Some((generation, advice)) = turn.advice.take()
            && generation == word.generation()
        {
            return advice;
        }
        let faults = &*self.faults;
        let block = page.block();
        let words = faults.core.block_words(block);
        let fault = BlockFault {
            block,
            pages: PageSet::from_iter([page.index_in_block()]),
            access,
            to: Place::Device(self.device.id),
            now: faults.core.clock.now(),
            waited: turn.waited,
        };
        let advice = faults.advise(&fault, &words, Some(&self.device));
        faults.serve_wishes_in_lockstep();
        advice
    }

    /// Waits as long as the page is held or the policy throttles. Returns false after a wait, because the page
    /// may have changed; true if there was nothing to wait for. Keeps advice that does not throttle for the next attempt.
    fn wait_for_turn(&self, page: Page, word: Word, advice: Advice, turn: &mut Turn) -> bool {
        let faults = &*self.faults;
        let throttle = match turn.waited {
            true => Duration::ZERO,
            false => advice.throttle,
        };
        if throttle.is_zero() {
            turn.advice = Some((word.generation(), advice));
        }
        // The CPU or device that got the page last must make progress with it first.
        let core = &faults.core;
        let held = core
            .system_hold(word)
            .or_else(|| core.device_hold(page, word))
            .unwrap_or_default();
        let wait = held.max(throttle);
        if wait.is_zero() {
            return true;
        }
        turn.waited = true;
        self.put_off(page, Counter::FaultsDeferred, wait);
        false
    }

    /// Records that this fault is put off and waits that long, or until the device is detached, or the one that has the
    /// page.
    fn put_off(&self, page: Page, counter: Counter, time: Duration) {
        let faults = &*self.faults;
        faults.core.recorder.add(counter, 1);
        faults
            .core
            .page_event(EventKind::Deferred, page, Some(self.device.id), time);
        let holder = faults.core.table.word(page).residency().device();
        let holder = holder.map(|id| faults.core.device_of(id));
        faults.let_pass(time, || {
            self.device.detaching() || holder.is_some_and(|holder| holder.detaching())
        });
    }
}

/// Returns the part of `pages` in the largest aligned window around `page` that has at most `most` of them.
fn window(pages: &PageSet, page: Page, most: u32) -> PageSet {
    // The largest window is the block.
    let mut order = crate::pages::MAX_ORDER;
    let mut part = *pages;
    if most >= 1 << order {
        return part;
    }
    while order > 0 && part.count() as u32 > most {
        order -= 1;
        let around = PageRange::with_len(page.folio_head(order), 1 << order);
        part = pages.intersection(&PageSet::of(around));
    }
    part
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

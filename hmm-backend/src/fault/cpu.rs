//! Serving CPU faults: what becomes of pages of one block that CPUs have touched. Called by the service
//! threads, and directly by the VMM when it wants pages for itself.

use std::time::Duration;

use super::faults::Faults;
use super::retry::{Attempts, Unresolved};
use crate::memory::Fill;
use crate::migrate::{Device, Reason, Take, collect_to_system, to_system};
use crate::observe::{Cause, Counter};
use crate::pages::time::Tick;
use crate::pages::{Access, BLOCK_PAGES, Block, FatalCause, Page, PageRange, PageSet, Place};
use crate::policy::BlockFault;
use crate::residency::{Residency, TryLock, Word};

/// What came of serving faults. Pages not mentioned are resolved, or somebody who works on them
/// wakes the CPU.
#[derive(Debug, Default)]
pub(crate) struct Served {
    pub(crate) unresolved: Vec<(Page, Unresolved)>,
    /// Pages filled with zeros because they were touched for the first time.
    pub(crate) first_touches: u64,
    /// What the policy would like to see prefetched, still to be done.
    pub(crate) prefetch: PageSet,
    /// Which of that devices keep, too.
    pub(crate) duplicate: PageSet,
}

impl Faults {
    /// Serves faults on `pages` of one block; those in `writes` need the permission to write. With `patient`, the policy may throttle and holds are
    /// respected; a fault that has waited its time is not.
    pub(crate) fn serve_cpu_faults(
        &self,
        block: Block,
        pages: &PageSet,
        access: Access,
        writes: &PageSet,
        patient: bool,
    ) -> Served {
        let mut served = Served::default();
        let mut needed = self.sort_out(block, pages, writes, &mut served);
        let words = self.core.block_words(block);
        if patient {
            needed = self.put_off_held(block, &needed, &words, &mut served);
        }
        if needed.is_empty() {
            return served;
        }
        let fault = BlockFault {
            block,
            pages: needed,
            access,
            to: Place::System,
            now: self.core.clock.now(),
            waited: !patient,
        };
        let advice = self.advise(&fault, &words, None);
        if patient && !advice.throttle.is_zero() {
            let wait = |index| (block.page(index), Unresolved::Wait(advice.throttle));
            served.unresolved.extend(needed.iter().map(wait));
            return served;
        }
        let mut prefetch = advice.prefetch;
        if self.lockstep {
            // Before the faulting pages: with them, the CPU goes on.
            self.prefetch_to_system(block, &prefetch, &advice.duplicate, access);
            prefetch = PageSet::EMPTY;
        }
        let is_device = |i: &usize| {
            use Residency::*;
            matches!(words[*i].residency(), Device { .. } | Duplicated { .. })
        };
        let on_device: PageSet = needed.iter().filter(is_device).collect();
        let is_exclusive = |i: &usize| matches!(words[*i].residency(), Residency::Exclusive(_));
        let exclusive: PageSet = needed.iter().filter(is_exclusive).collect();
        let untouched = needed.difference(&on_device).difference(&exclusive);
        let reason = Reason {
            cause: Cause::Demand,
            faulting: needed,
            hold: advice.hold,
            duplicate: false,
        };
        if !untouched.is_empty() {
            self.first_touch(block, &untouched, access, advice.hold, &words, &mut served);
        }
        for index in exclusive.iter() {
            let page = block.page(index);
            if let TryLock::Locked(lock) = self.core.table.try_lock(page)
                && let Residency::Exclusive(_) = lock.word().residency()
                && let Err(error) = self.core.revoke(lock)
            {
                served.unresolved.push((page, error.into()));
            }
        }
        if !on_device.is_empty() {
            let demand = with_whole_folios(&on_device, &prefetch, &words, block);
            // What is written is not duplicated; nor what a thread wants to write that has no message to say so (`fault_in`).
            let duplicate = match access {
                Access::Write if writes.is_empty() => PageSet::EMPTY,
                _ => advice.duplicate.difference(writes),
            };
            for (pages, duplicate) in [
                (demand.intersection(&duplicate), true),
                (demand.difference(&duplicate), false),
            ] {
                let reason = Reason {
                    duplicate,
                    ..reason
                };
                self.bring_back(block, &pages, reason, &mut served.unresolved);
            }
        }
        self.check_resolved(block, &needed, writes, &words, &mut served);
        served.prefetch = prefetch;
        served.duplicate = advice.duplicate;
        served
    }

    /// Answers the faults that need no work and returns the others.
    fn sort_out(
        &self,
        block: Block,
        pages: &PageSet,
        writes: &PageSet,
        served: &mut Served,
    ) -> PageSet {
        let mut needed = PageSet::EMPTY;
        for index in pages.iter() {
            let page = block.page(index);
            if self.core.table.announce_waiter(page) {
                // A loser: the winner wakes its CPU when it lets go.
                self.core.recorder.add(Counter::FaultsLost, 1);
                continue;
            }
            let word = self.core.table.word(page);
            if word.read_only() && writes.contains(index) {
                let forbidden = Unresolved::Fatal(FatalCause::ReadOnly);
                served.unresolved.push((page, forbidden));
                continue;
            }
            match word.residency() {
                // A duplicate is written: that must end first.
                Residency::Duplicated { .. } if writes.contains(index) => needed.insert(index),
                Residency::System | Residency::Coherent { .. } | Residency::Duplicated { .. } => {
                    if let Err(reason) = self.answer_stale(page, writes.contains(index)) {
                        served.unresolved.push((page, reason));
                    }
                }
                Residency::Poisoned => {
                    let lost = Unresolved::Fatal(FatalCause::ContentsLost);
                    served.unresolved.push((page, lost));
                }
                Residency::Untouched | Residency::Device { .. } | Residency::Exclusive(_) => {
                    needed.insert(index)
                }
            }
        }
        needed
    }

    /// Puts off faults on pages that are held; returns the rest. The policy will be asked about a fault when it can be
    /// served.
    fn put_off_held(
        &self,
        block: Block,
        pages: &PageSet,
        words: &[Word],
        served: &mut Served,
    ) -> PageSet {
        let mut rest = *pages;
        for index in pages.iter() {
            let page = block.page(index);
            let held = match words[index].residency() {
                Residency::Device { .. } => self.core.device_hold(page, words[index]),
                Residency::Exclusive(_) => self.core.system_hold(words[index]),
                // A duplicate is held for the CPUs, one of which now writes it.
                _ => None,
            };
            if let Some(wait) = held.filter(|wait| !wait.is_zero()) {
                rest.remove(index);
                served.unresolved.push((page, Unresolved::Wait(wait)));
            }
        }
        rest
    }

    /// Fills pages that CPUs have touched for the first time; with them all of a block that has been blank.
    fn first_touch(
        &self,
        block: Block,
        touched: &PageSet,
        access: Access,
        hold: Duration,
        words: &[Word],
        served: &mut Served,
    ) {
        let blank = |word: &Word| word.residency() == Residency::Untouched && !word.read_only();
        let all = PageRange::with_len(block.first_page(), BLOCK_PAGES as u32);
        let whole =
            self.fill_blocks && words.iter().all(blank) && self.core.check_range(all).is_ok();
        let (pages, access) = match whole {
            // Memory, not the kernel's zero page, though this may be a read: what the other pages are for is not known.
            true => (PageSet::of(all), Access::Write),
            false => (*touched, access),
        };
        let mut failed = Vec::new();
        let filled = self.populate(block, &pages, access, hold, &mut failed);
        served.first_touches = filled.intersection(touched).count() as u64;
        // Nobody waits for the others.
        let waited_for = failed
            .into_iter()
            .filter(|(page, _)| touched.contains(page.index_in_block()));
        served.unresolved.extend(waited_for);
    }

    /// Fills untouched pages with zeros. Returns which.
    pub(crate) fn populate(
        &self,
        block: Block,
        pages: &PageSet,
        access: Access,
        hold: Duration,
        unresolved: &mut Vec<(Page, Unresolved)>,
    ) -> PageSet {
        let mut locks = Vec::new();
        let mut taken = PageSet::EMPTY;
        for index in pages.iter() {
            if let TryLock::Locked(lock) = self.core.table.try_lock(block.page(index))
                && lock.word().residency() == Residency::Untouched
            {
                taken.insert(index);
                locks.push(lock);
            }
        }
        let protected = locks.iter().filter(|l| l.word().read_only());
        let protected: PageSet = protected.map(|l| l.head().index_in_block()).collect();
        let fill = match access {
            Access::Write => Fill::Memory,
            Access::Read => Fill::ZeroPage,
        };
        let mut failed = PageSet::EMPTY;
        for (pages, fill) in [
            (taken.difference(&protected), fill),
            (protected, Fill::ReadOnly),
        ] {
            for run in pages.runs() {
                let first = block.page(run.start);
                let range = PageRange::with_len(first, run.len() as u32);
                self.core.guest.fill_zero(range, fill, |at, error| {
                    let page = first.plus(at);
                    failed.insert(page.index_in_block());
                    unresolved.push((page, error.into()));
                });
            }
        }
        let until = Tick::end_of_hold(self.core.clock.now(), hold);
        for lock in locks {
            if !failed.contains(lock.head().index_in_block()) {
                lock.publish_pages(|word| word.to_system(until));
            }
        }
        taken.difference(&failed)
    }

    /// Migrates (or duplicates) device pages of one block back through their drivers.
    pub(crate) fn bring_back(
        &self,
        block: Block,
        pages: &PageSet,
        reason: Reason,
        unresolved: &mut Vec<(Page, Unresolved)>,
    ) {
        let take = match reason.duplicate {
            true => Take::Single,
            false => Take::All,
        };
        for (device, sources) in collect_to_system(&self.core, [(block, *pages)], take) {
            let faulting: Vec<Page> = sources
                .iter()
                .flat_map(|s| s.lock.range().pages())
                .filter(|p| reason.faulting.contains(p.index_in_block()))
                .collect();
            let fault = faulting.first().copied();
            if let Err(error) = to_system(&self.core, device, sources, reason, fault) {
                let answer = Unresolved::from(error);
                // A driver may complain about something else after its pages have moved.
                let stayed = |p: &Page| match self.core.table.word(*p).residency() {
                    Residency::System => false,
                    Residency::Duplicated { .. } => !reason.duplicate,
                    _ => true,
                };
                let stayed = faulting.into_iter().filter(stayed);
                unresolved.extend(stayed.map(|p| (p, answer.clone())));
            }
        }
    }

    /// Looks at the faulting pages again: "resolved" is what the residency says, not what a driver says.
    /// `before` are the words as they were when the service started.
    fn check_resolved(
        &self,
        block: Block,
        needed: &PageSet,
        writes: &PageSet,
        before: &[Word],
        served: &mut Served,
    ) {
        for index in needed.iter() {
            let page = block.page(index);
            let known = served.unresolved.iter().any(|(p, _)| *p == page);
            if known || self.core.table.announce_waiter(page) {
                continue;
            }
            let word = self.core.table.word(page);
            let readable_only = word.residency().duplicated() && writes.contains(index);
            if word.reached_by_cpus() && !readable_only {
                continue;
            }
            if word.generation() == before[index].generation() {
                served.unresolved.push((page, Unresolved::Retry));
            } else {
                // It came and has left again. Serving it once more would steal it from its new owner for
                // a CPU that most likely has had its turn; if not, it faults again.
                self.core.guest.wake_range(PageRange::single(page));
            }
        }
    }

    /// Makes one page present in system memory on behalf of the calling thread, which sleeps as long as
    /// that takes; for reading, a duplicate will do. Used where no userfaultfd message stands for the access: pins,
    /// and devices (`asker`) that want a foreign device's page. If the asker is detached meanwhile, returns without
    /// the page.
    pub(crate) fn fault_in(
        &self,
        page: Page,
        access: Access,
        asker: Option<&Device>,
    ) -> Result<(), FatalCause> {
        let mut attempts = Attempts::default();
        let mut patient = true;
        let leaves = |device: Option<&Device>| device.is_some_and(Device::detaching);
        loop {
            if leaves(asker) {
                return Ok(());
            }
            if self.core.table.locked(page) {
                self.core.table.wait(page);
                continue;
            }
            let pages = PageSet::from_iter([page.index_in_block()]);
            let mut unresolved = Vec::new();
            let word = self.core.table.word(page);
            let residency = word.residency();
            match residency {
                Residency::System => return Ok(()),
                Residency::Duplicated { .. } if access == Access::Read => return Ok(()),
                Residency::Duplicated { .. } => match self.core.device_hold(page, word) {
                    Some(wait) if patient => unresolved.push((page, Unresolved::Wait(wait))),
                    _ => {
                        let reason = Reason {
                            faulting: pages,
                            ..Reason::of(Cause::Demand)
                        };
                        self.bring_back(page.block(), &pages, reason, &mut unresolved);
                    }
                },
                Residency::Poisoned => return Err(FatalCause::ContentsLost),
                // No CPU's fault would bring it here.
                Residency::Coherent { .. } => {
                    let reason = Reason {
                        faulting: pages,
                        ..Reason::of(Cause::User)
                    };
                    self.bring_back(page.block(), &pages, reason, &mut unresolved);
                }
                _ => {
                    // Permissions are checked by whoever asks for the page.
                    let none = PageSet::EMPTY;
                    let served =
                        self.serve_cpu_faults(page.block(), &pages, access, &none, patient);
                    unresolved = served.unresolved;
                }
            }
            for (_, unresolved) in unresolved {
                // A device that goes away holds nothing any more; but that a page could not be moved is no
                // better then, and there are only so many attempts.
                let is_hold = matches!(unresolved, Unresolved::Wait(_));
                match attempts.next(&unresolved) {
                    Ok(wait) => {
                        let holder = residency.device().filter(|_| is_hold);
                        let holder = holder.map(|id| &**self.core.device_of(id));
                        self.let_pass(wait, || leaves(asker) || leaves(holder));
                    }
                    Err(cause) => return Err(cause),
                }
                patient = !is_hold;
            }
        }
    }
}

/// The faulting pages, and with each the rest of its folio if the policy wants all of that anyway: a
/// folio that moves as one needs no split and one call.
fn with_whole_folios(
    faulting: &PageSet,
    prefetch: &PageSet,
    words: &[Word],
    block: Block,
) -> PageSet {
    let wanted = faulting.union(prefetch);
    let mut demand = *faulting;
    for index in faulting.iter() {
        let order = words[index].order();
        let head = block.page(index).folio_head(order).index_in_block();
        let folio = head..head + (1 << order);
        if wanted.count_in(folio.clone()) == folio.len() {
            demand.insert_range(folio);
        }
    }
    demand
}

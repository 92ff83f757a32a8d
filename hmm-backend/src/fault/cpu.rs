//! Serves CPU faults on pages of one block. Called by the service threads, and by threads that need a page in
//! system memory themselves (pins, devices).

use std::time::Duration;

use smallvec::SmallVec;

use super::faults::Faults;
use super::retry::{Attempts, Unresolved};
use crate::memory::Fill;
use crate::migrate::{Core, Device, Leaving, Reason, collect_from_devices, to_system};
use crate::observe::{Cause, Counter, FaultCause};
use crate::pages::time::Tick;
use crate::pages::{Access, BLOCK_PAGES, Block, FatalCause, Page, PageRange, PageSet, Place};
use crate::policy::BlockFault;
use crate::residency::{BlockWords, Residency, TryLock, Word};

/// The result of serving faults. A page that is not in `unresolved` is resolved, or the thread that has its
/// lock wakes the CPU when it unlocks the page.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) unresolved: Vec<(Page, Unresolved)>,
    /// Pages filled with zeros because they were touched for the first time.
    pub(crate) first_touches: u64,
    /// Pages that the policy wants prefetched and that are not prefetched yet.
    pub(crate) prefetch: PageSet,
    /// Those of the pages in `prefetch` of which the devices keep a copy.
    pub(crate) duplicate: PageSet,
    /// Why pages faulted; those that are in none were there.
    causes: [(FaultCause, PageSet); 4],
}

impl Default for Served {
    fn default() -> Served {
        let causes = [
            FaultCause::FirstTouch,
            FaultCause::Migrated,
            FaultCause::Duplicated,
            FaultCause::Exclusive,
        ];
        Served {
            unresolved: Vec::new(),
            first_touches: 0,
            prefetch: PageSet::EMPTY,
            duplicate: PageSet::EMPTY,
            causes: causes.map(|cause| (cause, PageSet::EMPTY)),
        }
    }
}

impl Served {
    /// Returns why a page faulted.
    pub(crate) fn cause(&self, page: Page) -> FaultCause {
        let mut causes = self.causes.iter();
        let its = causes.find(|(_, pages)| pages.contains(page.index_in_block()));
        its.map_or(FaultCause::There, |(cause, _)| *cause)
    }

    fn because(&mut self, cause: FaultCause, index: usize) {
        let mut causes = self.causes.iter_mut();
        if let Some((_, pages)) = causes.find(|(its, _)| *its == cause) {
            pages.insert(index);
        }
    }
}

/// CPU faults on pages of one block that are served together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuFaults {
    pub(crate) block: Block,
    pub(crate) pages: PageSet,
    /// The strongest access among them: what the policy is told, and how untouched pages are filled.
    pub(crate) access: Access,
    /// The pages that are written and whose permission is to be checked. [`Faults::fault_in`] writes without any,
    /// because its caller has checked the permission.
    pub(crate) writes: PageSet,
    /// They have waited for a hold or a throttle already, and are served at once.
    pub(crate) waited: bool,
}

impl CpuFaults {
    /// A fault on one page that has not waited.
    pub(crate) fn one(page: Page, access: Access) -> CpuFaults {
        let pages = PageSet::from_iter([page.index_in_block()]);
        let writes = match access {
            Access::Read => PageSet::EMPTY,
            Access::Write => pages,
        };
        CpuFaults {
            block: page.block(),
            pages,
            access,
            writes,
            waited: false,
        }
    }
}

/// The words of faulting pages at the start of the service, by their index in the block.
struct Before(SmallVec<[(usize, Word); 4]>);

impl Before {
    fn of(core: &Core, block: Block, pages: &PageSet) -> Before {
        let words = pages.iter().map(|i| (i, core.table.word(block.page(i))));
        Before(words.collect())
    }

    fn all(&self) -> impl Iterator<Item = (usize, Word)> {
        self.0.iter().copied()
    }

    /// Returns those of these pages.
    fn among(&self, pages: &PageSet) -> impl Iterator<Item = (usize, Word)> {
        self.all().filter(|(index, _)| pages.contains(*index))
    }
}

impl Faults {
    /// Serves faults and returns which of them are not resolved. They wait for holds and for the policy's throttle,
    /// unless they have waited already.
    pub(crate) fn serve_cpu_faults(&self, faults: &CpuFaults) -> Served {
        let CpuFaults {
            block,
            access,
            ref writes,
            waited,
            ..
        } = *faults;
        let mut served = Served::default();
        let mut needed = self.sort_out(block, &faults.pages, writes, &mut served);
        let before = Before::of(&self.core, block, &needed);
        if !waited {
            needed = self.put_off_held(block, &before, &mut served);
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
            waited,
        };
        self.settle_in_lockstep(block);
        let words = self.core.block_words(block);
        let advice = self.advise(&fault, &words, None);
        self.serve_wishes_in_lockstep();
        if !waited && !advice.throttle.is_zero() {
            let wait = |index| (block.page(index), Unresolved::Wait(advice.throttle));
            served.unresolved.extend(needed.iter().map(wait));
            return served;
        }
        // Before a prefetch fills a part of the block.
        let blank = self.blank_block(block, &words);
        let mut prefetch = advice.prefetch;
        if self.lockstep {
            // Prefetch first: filling the faulting pages wakes the CPU.
            self.prefetch_to_system(block, &prefetch, &advice.duplicate, access);
            prefetch = PageSet::EMPTY;
        }
        // A page that is written is not duplicated. `fault_in` asks for a write without `writes`: then no page is
        // duplicated.
        let duplicate = match access {
            Access::Write if writes.is_empty() => PageSet::EMPTY,
            _ => advice.duplicate.difference(writes),
        };
        let (mut on_device, mut exclusive) = (PageSet::EMPTY, PageSet::EMPTY);
        for (index, word) in before.among(&needed) {
            let cause = match word.residency() {
                Residency::Device(_) | Residency::Duplicated(_) => {
                    on_device.insert(index);
                    match word.residency().duplicated() || duplicate.contains(index) {
                        true => FaultCause::Duplicated,
                        false => FaultCause::Migrated,
                    }
                }
                Residency::Exclusive(_) => {
                    exclusive.insert(index);
                    FaultCause::Exclusive
                }
                Residency::Untouched => FaultCause::FirstTouch,
                // It has come since the fault was sorted.
                _ => FaultCause::There,
            };
            served.because(cause, index);
        }
        let untouched = needed.difference(&on_device).difference(&exclusive);
        let reason = Reason {
            cause: Cause::Demand,
            faulting: needed,
            hold: advice.hold,
            duplicate: false,
        };
        if !untouched.is_empty() {
            self.first_touch(block, &untouched, blank, access, advice.hold, &mut served);
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
            let demand = with_whole_folios(&before, &on_device, &prefetch, block);
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
        self.check_resolved(block, &needed, writes, &before, &mut served);
        served.prefetch = prefetch;
        served.duplicate = advice.duplicate;
        served
    }

    /// Answers the faults that need no work, and returns the pages of the other faults.
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
                // Another thread has locked the page. It wakes this fault's CPU when it unlocks the page.
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
                // A write to a duplicate must end the duplication first.
                Residency::Duplicated(_) if writes.contains(index) => needed.insert(index),
                Residency::System | Residency::Coherent(_) | Residency::Duplicated(_) => {
                    let access = match writes.contains(index) {
                        true => Access::Write,
                        false => Access::Read,
                    };
                    if let Err(reason) = self.answer_stale(page, access) {
                        served.unresolved.push((page, reason));
                    }
                }
                Residency::Poisoned => {
                    let lost = Unresolved::Fatal(FatalCause::ContentsLost);
                    served.unresolved.push((page, lost));
                }
                Residency::Untouched | Residency::Device(_) | Residency::Exclusive(_) => {
                    needed.insert(index)
                }
            }
        }
        needed
    }

    /// Puts off faults on pages that are held; returns the rest. A fault that is put off reaches the policy
    /// later, when it can be served.
    fn put_off_held(&self, block: Block, before: &Before, served: &mut Served) -> PageSet {
        let mut rest = PageSet::EMPTY;
        for (index, word) in before.all() {
            let page = block.page(index);
            let held = match word.residency() {
                Residency::Device(_) => self.core.device_hold(page, word),
                Residency::Exclusive(_) => self.core.system_hold(word),
                // The hold of a duplicate protects the CPUs' copy from the device; a CPU that writes does not
                // wait for it.
                _ => None,
            };
            match held.filter(|wait| !wait.is_zero()) {
                Some(wait) => served.unresolved.push((page, Unresolved::Wait(wait))),
                None => rest.insert(index),
            }
        }
        rest
    }

    /// With `fill_blocks`, returns all pages of the block if none of them has been touched.
    fn blank_block(&self, block: Block, words: &BlockWords<'_>) -> Option<PageSet> {
        let blank = |word: &Word| word.residency() == Residency::Untouched && !word.read_only();
        let all = PageRange::with_len(block.first_page(), BLOCK_PAGES as u32);
        let whole =
            self.fill_blocks && words.iter().all(blank) && self.core.check_range(all).is_ok();
        whole.then(|| PageSet::of(all))
    }

    /// Fills pages that CPUs have touched for the first time; all pages of a `blank` block.
    fn first_touch(
        &self,
        block: Block,
        touched: &PageSet,
        blank: Option<PageSet>,
        access: Access,
        hold: Duration,
        served: &mut Served,
    ) {
        let (pages, access) = match blank {
            // Use memory, not the kernel's zero page, even if this fault is a read: the first access to the
            // other pages is not known, and may be a write.
            Some(all) => (all, Access::Write),
            None => (*touched, access),
        };
        let mut failed = Vec::new();
        let filled = self.populate(block, &pages, access, hold, &mut failed);
        served.first_touches = filled.intersection(touched).count() as u64;
        // No CPU waits for the pages that were not touched, so their failures are dropped.
        let waited_for = failed
            .into_iter()
            .filter(|(page, _)| touched.contains(page.index_in_block()));
        served.unresolved.extend(waited_for);
    }

    /// Fills untouched pages with zeros. Returns the pages that it has filled; those that failed go to
    /// `unresolved`. Skips pages that are locked or no longer untouched.
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

    /// Migrates (or duplicates) device pages of one block to system memory, through their drivers. Faulting
    /// pages that have not moved go to `unresolved`.
    pub(crate) fn bring_back(
        &self,
        block: Block,
        pages: &PageSet,
        reason: Reason,
        unresolved: &mut Vec<(Page, Unresolved)>,
    ) {
        let take = match reason.duplicate {
            true => Leaving::Single,
            false => Leaving::All,
        };
        for (device, sources) in collect_from_devices(&self.core, [(block, *pages)], take) {
            let faulting: Vec<Page> = sources
                .iter()
                .flat_map(|s| s.lock.range().pages())
                .filter(|p| reason.faulting.contains(p.index_in_block()))
                .collect();
            let fault = faulting.first().copied();
            if let Err(error) = to_system(&self.core, device, sources, reason, fault) {
                let answer = Unresolved::from(error);
                // A driver may return an error after its pages have moved: only pages that have not moved are
                // unresolved.
                let stayed = |p: &Page| match self.core.table.word(*p).residency() {
                    Residency::System => false,
                    Residency::Duplicated(_) => !reason.duplicate,
                    _ => true,
                };
                let stayed = faulting.into_iter().filter(stayed);
                unresolved.extend(stayed.map(|p| (p, answer.clone())));
            }
        }
    }

    /// Checks the faulting pages again and adds a retry for those that have not moved. The residency word
    /// decides whether a page is resolved, not the driver's answer.
    fn check_resolved(
        &self,
        block: Block,
        needed: &PageSet,
        writes: &PageSet,
        before: &Before,
        served: &mut Served,
    ) {
        for (index, earlier) in before.among(needed) {
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
            if word.generation() == earlier.generation() {
                served.unresolved.push((page, Unresolved::Retry));
            } else {
                // The page came and has left again. Serving this fault once more would take the page from its
                // new owner, although the CPU has most likely made its access. If it has not, it faults again
                // after the wake-up.
                self.core.guest.wake_range(PageRange::single(page));
            }
        }
    }

    /// Makes one page present in system memory for the calling thread, which sleeps as long as that takes; for
    /// a read, a duplicate suffices. For accesses without a userfaultfd message: pins, and a device (`asker`)
    /// that wants a page of another device or of its own. If the asker is detached meanwhile, returns `Ok`
    /// without the page.
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
                Residency::Duplicated(_) if access == Access::Read => return Ok(()),
                Residency::Duplicated(_) => match self.core.device_hold(page, word) {
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
                // CPUs reach coherent memory without a fault, so no CPU fault brings this page back: migrate it
                // here.
                Residency::Coherent(_) => {
                    let reason = Reason {
                        faulting: pages,
                        ..Reason::of(Cause::User)
                    };
                    self.bring_back(page.block(), &pages, reason, &mut unresolved);
                }
                _ => {
                    // The caller checks the permission to write.
                    let served = self.serve_cpu_faults(&CpuFaults {
                        writes: PageSet::EMPTY,
                        waited: !patient,
                        ..CpuFaults::one(page, access)
                    });
                    unresolved = served.unresolved;
                }
            }
            for (_, unresolved) in unresolved {
                // The holds of a device end when it is detached, so a wait for a hold ends then. A wait after a
                // failed move does not: the detach does not make the next attempt more likely to succeed, and
                // the number of attempts is limited.
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

/// Returns the faulting pages, and for each the rest of its folio if the policy wants all of that folio anyway:
/// a folio that moves as a whole needs no split and only one call.
fn with_whole_folios(
    before: &Before,
    faulting: &PageSet,
    prefetch: &PageSet,
    block: Block,
) -> PageSet {
    let wanted = faulting.union(prefetch);
    let mut demand = *faulting;
    for (index, word) in before.among(faulting) {
        let head = block.page(index).folio_head(word.order()).index_in_block();
        let folio = head..head + (1 << word.order());
        if wanted.count_in(folio.clone()) == folio.len() {
            demand.insert_range(folio);
        }
    }
    demand
}

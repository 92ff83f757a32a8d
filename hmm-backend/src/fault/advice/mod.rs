//! Calls policies: asks for advice, and passes on hints, accesses in place and ticks.

mod advisor;
mod prefetch;
mod prefetch_queue;

pub(crate) use advisor::Advisor;
pub(crate) use prefetch_queue::{Prefetch, PrefetchQueue};

use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;

use self::advisor::first_page;
use super::faults::Faults;
use crate::migrate::Device;
use crate::observe::{Counter, Event, EventKind};
use crate::pages::{Access, Block, Error, Hint, Page, PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, MAX_WISHES, Wish};
use crate::residency::BlockWords;

/// A decision that takes longer is counted as late: the fault that asks waits for it, and so do the other
/// faults of the shard.
const LATE: Duration = Duration::from_millis(1);

impl Faults {
    /// Locks and returns the advisor of this block's shard.
    fn advisor(&self, block: Block) -> MutexGuard<'_, Advisor> {
        let shard = block.0 as usize % self.advisors.len();
        self.advisors[shard].lock()
    }

    /// Calls `tell` with the policy of this block's shard, under the shard's lock, and returns its result.
    pub(crate) fn with_policy<R>(
        &self,
        block: Block,
        tell: impl FnOnce(&mut dyn FaultPolicy) -> R,
    ) -> R {
        tell(self.advisor(block).policy(block))
    }

    /// Has other policies, one for each shard, decide about these pages (whole blocks), or about all: about faults that
    /// come, and about those that wait, when their wait is over. What the old policies have wished for is no longer
    /// wanted.
    pub(crate) fn replace_policies(
        &self,
        pages: Option<PageRange>,
        policies: impl Iterator<Item = Box<dyn FaultPolicy>>,
    ) {
        for (advisor, policy) in self.advisors.iter().zip(policies) {
            let mut advisor = advisor.lock();
            advisor.replace(pages, policy);
            let threshold = advisor.remote_access_threshold();
            self.remote_access_threshold
                .store(threshold.unwrap_or(0), Ordering::Relaxed);
        }
        let all = PageRange::new(Page(0), Page(self.core.pages()));
        self.prefetches.forget_wishes(pages.unwrap_or(all));
    }

    fn view<'a>(
        &'a self,
        words: &'a BlockWords<'_>,
        fault: &BlockFault,
        device: Option<&Device>,
    ) -> BlockView<'a> {
        let links = self.core.links.matrix();
        let first = fault.pages.first().and_then(|index| words.get(index));
        let place = first.and_then(|word| word.residency().placed());
        let from = place.map_or(Place::System, |it| Place::Device(it.device));
        let link = match (from, fault.to) {
            // A CPU touches an untouched page, which crosses no link.
            (Place::System, Place::System) => links.default,
            (from, to) if from == to => links.between(Place::System, to),
            (from, to) => links.between(from, to),
        };
        let room = |frames: fn(&Device) -> u32| device.map_or(u32::MAX, frames);
        BlockView {
            free_frames: room(Device::free_frames),
            capacity: room(Device::capacity),
            pages: self.core.pages(),
            link,
            links,
            ..BlockView::of(words)
        }
    }

    /// Asks the policy about a fault and returns its advice, cut to what is possible. `words` are those of the
    /// block's pages. With `device`, the pages are to go to that device's memory, otherwise to system memory.
    /// Queues the advice's wishes.
    pub(crate) fn advise(
        &self,
        fault: &BlockFault,
        words: &BlockWords<'_>,
        device: Option<&Device>,
    ) -> Advice {
        let view = self.view(words, fault, device);
        let mut advisor = self.advisor(fault.block);
        let started = self.core.clock.now();
        let (mut advice, cut) = advisor.advise(fault, view);
        let took = self.core.clock.now().saturating_sub(started);
        let threshold = advisor.remote_access_threshold();
        drop(advisor);
        self.remote_access_threshold
            .store(threshold.unwrap_or(0), Ordering::Relaxed);
        if cut {
            self.core.recorder.add(Counter::AdviceCut, 1);
        }
        if took > LATE {
            self.core.recorder.add(Counter::AdviceLate, 1);
        }
        for wish in std::mem::take(&mut advice.migrate) {
            self.wish(wish);
        }
        self.core.recorder.event(|| Event {
            device: device.map(|d| d.id),
            access: Some(fault.access),
            pages: advice.prefetch.count() as u32,
            latency: advice.hold,
            ..Event::new(
                fault.now,
                EventKind::Advice,
                PageRange::single(first_page(fault)),
            )
        });
        advice
    }

    /// Passes a hint about pages to the policy, which decides what follows from it. The device that a hint
    /// names need not be attached (yet).
    pub fn hint(&self, pages: PageRange, hint: Hint) -> Result<(), Error> {
        self.core.check_range(pages)?;
        for part in pages.split_by_block() {
            self.with_policy(part.start.block(), |policy| policy.hinted(part, hint));
        }
        self.core.recorder.event(|| Event {
            hint: Some(hint),
            ..Event::new(self.core.clock.now(), EventKind::Hint, pages)
        });
        Ok(())
    }

    /// Tells the policy that a device has used these pages in place, in system memory, `count` times since they
    /// got there or since its last report. Queues those that the policy wants to migrate.
    pub(crate) fn used_in_place(&self, device: &Device, pages: PageRange, count: u32) {
        for part in pages.split_by_block() {
            let block = part.start.block();
            let words = self.core.block_words(block);
            let seen = BlockFault {
                block,
                pages: PageSet::of(part),
                access: Access::Read,
                to: Place::Device(device.id),
                now: self.core.clock.now(),
                waited: false,
            };
            let view = self.view(&words, &seen, Some(device));
            let wanted = self.advisor(block).used_in_place(&seen, count, view);
            let possible = wanted.intersection(&seen.pages);
            if possible != wanted {
                self.core.recorder.add(Counter::AdviceCut, 1);
            }
            for run in possible.runs() {
                self.wish(Wish {
                    pages: PageRange::with_len(block.page(run.start), run.len() as u32),
                    to: seen.to,
                });
            }
            self.serve_wishes_in_lockstep();
        }
    }

    /// Calls the policies whose ticks are due and queues their wishes. Returns the time until the next tick;
    /// `None` if no policy wants ticks.
    pub(crate) fn tick_policies(&self) -> Option<Duration> {
        let mut next = None;
        for advisor in &self.advisors {
            let mut advisor = advisor.lock();
            let (wishes, rest) = advisor.tick(self.core.clock.now());
            drop(advisor);
            next = next.into_iter().chain(rest).min();
            for mut wishes in wishes {
                if wishes.len() > MAX_WISHES {
                    self.core.recorder.add(Counter::AdviceCut, 1);
                    wishes.truncate(MAX_WISHES);
                }
                wishes.into_iter().for_each(|wish| self.wish(wish));
            }
            self.serve_wishes_in_lockstep();
        }
        next
    }
}

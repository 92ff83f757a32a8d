//! One shard's policies and the shard's recent faults.

use std::time::Duration;

use crate::pages::{Block, Page, PageRange, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, Recent, Regions, Seen, Wish};

/// The number of recent faults that a policy sees.
const RECENT: usize = 16;

/// The shortest interval between two ticks of a policy.
const SHORTEST_TICK: Duration = Duration::from_micros(100);

/// A policy with its next tick.
struct Decider {
    policy: Box<dyn FaultPolicy>,
    /// When the next tick is due.
    next_tick: Duration,
}

impl Decider {
    fn new(policy: Box<dyn FaultPolicy>) -> Decider {
        Decider {
            policy,
            next_tick: Duration::ZERO,
        }
    }
}

/// The policies with the recent faults of their shard.
pub(crate) struct Advisor {
    deciders: Regions<Decider>,
    recent: RecentFaults,
    seen: Seen,
}

impl Advisor {
    pub(crate) fn new(policy: Box<dyn FaultPolicy>) -> Advisor {
        Advisor {
            deciders: Regions::new(Decider::new(policy)),
            recent: RecentFaults::default(),
            seen: Seen::default(),
        }
    }

    /// Has another policy decide about these pages, or about all.
    pub(super) fn replace(&mut self, pages: Option<PageRange>, policy: Box<dyn FaultPolicy>) {
        self.deciders.set(pages, Decider::new(policy));
    }

    /// Returns the policy that decides about this block.
    pub(super) fn policy(&mut self, block: Block) -> &mut dyn FaultPolicy {
        &mut *self.deciders.of(block.first_page()).policy
    }

    /// Returns the least number of accesses in place of which a policy wants a report.
    pub(crate) fn remote_access_threshold(&self) -> Option<u32> {
        let thresholds = self.deciders.iter();
        thresholds
            .filter_map(|decider| decider.policy.remote_access_threshold())
            .min()
    }

    /// Calls the policies whose ticks are due. Returns the wishes of each, and the time until the next tick; `None` if no
    /// policy wants ticks.
    pub(super) fn tick(&mut self, now: Duration) -> (Vec<Vec<Wish>>, Option<Duration>) {
        let mut wishes = Vec::new();
        let mut next = None;
        for decider in self.deciders.iter_mut() {
            let Some(interval) = decider.policy.tick_interval() else {
                continue;
            };
            if decider.next_tick <= now {
                wishes.push(decider.policy.tick(now, self.seen));
                // Ask for the interval again: a policy that has not returned all its wishes yet wants its next tick
                // soon.
                let interval = decider.policy.tick_interval().unwrap_or(interval);
                decider.next_tick = now + interval.max(SHORTEST_TICK);
            }
            let rest = decider.next_tick - now;
            next = Some(next.map_or(rest, |next: Duration| next.min(rest)));
        }
        (wishes, next)
    }

    pub(super) fn advise(&mut self, fault: &BlockFault, view: BlockView<'_>) -> (Advice, bool) {
        let view = BlockView {
            recent: self.recent.list(),
            seen: self.seen,
            ..view
        };
        let page = fault.block.first_page();
        let mut advice = self.deciders.of(page).policy.advise(fault, &view);
        let cut = advice.validate(fault, &view);
        match fault.to {
            Place::System => self.seen.cpu_faults += 1,
            Place::Device(_) => self.seen.device_faults += 1,
        }
        self.seen.prefetched += advice.prefetch.count() as u64;
        self.recent.push(Recent {
            page: first_page(fault),
            to: fault.to,
            time: fault.now,
        });
        (advice, cut)
    }

    pub(super) fn used_in_place(
        &mut self,
        seen: &BlockFault,
        count: u32,
        view: BlockView<'_>,
    ) -> PageSet {
        let view = BlockView {
            recent: self.recent.list(),
            seen: self.seen,
            ..view
        };
        let decider = self.deciders.of(seen.block.first_page());
        decider.policy.remote_accesses(seen, count, &view)
    }
}

/// The last [`RECENT`] faults, one behind the other in memory.
#[derive(Default)]
struct RecentFaults(Vec<Recent>);

impl RecentFaults {
    fn push(&mut self, fault: Recent) {
        // The list moves to the front of its memory only once for many faults.
        if self.0.len() == 8 * RECENT {
            self.0.drain(..=7 * RECENT);
        }
        self.0.push(fault);
    }

    /// Returns the faults, the newest last.
    fn list(&self) -> &[Recent] {
        &self.0[self.0.len().saturating_sub(RECENT)..]
    }
}

/// Returns the first page that was touched.
pub(super) fn first_page(fault: &BlockFault) -> Page {
    fault.block.page(fault.pages.first().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_sees_the_last_faults_in_order() {
        let mut recent = RecentFaults::default();
        for n in 0..1000u32 {
            recent.push(Recent {
                page: Page(n),
                to: Place::System,
                time: Duration::ZERO,
            });
            let first = (n + 1).saturating_sub(RECENT as u32);
            let seen = recent.list().iter().map(|fault| fault.page.0);
            assert!(seen.eq(first..=n), "after fault {n}");
        }
    }
}

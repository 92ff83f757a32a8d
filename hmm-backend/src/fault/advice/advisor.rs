//! One shard's policy and the shard's recent faults.

use std::time::Duration;

use crate::pages::{Page, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, Recent, Seen};

/// The number of recent faults that a policy sees.
const RECENT: usize = 16;

/// A policy with the recent faults of its shard.
pub(crate) struct Advisor {
    pub(crate) policy: Box<dyn FaultPolicy>,
    recent: RecentFaults,
    pub(super) seen: Seen,
    /// When the next tick is due.
    pub(super) next_tick: Duration,
}

impl Advisor {
    pub(crate) fn new(policy: Box<dyn FaultPolicy>) -> Advisor {
        Advisor {
            policy,
            recent: RecentFaults::default(),
            seen: Seen::default(),
            next_tick: Duration::ZERO,
        }
    }

    pub(super) fn advise(&mut self, fault: &BlockFault, view: BlockView<'_>) -> (Advice, bool) {
        let view = BlockView {
            recent: self.recent.list(),
            seen: self.seen,
            ..view
        };
        let (advice, cut) = self.policy.advise(fault, &view).validated(fault, &view);
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
        self.policy.remote_accesses(seen, count, &view)
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

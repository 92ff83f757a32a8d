//! One shard's policy and the shard's recent faults.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pages::{Page, PageSet, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, Recent, Seen};

/// The number of recent faults that a policy sees.
const RECENT: usize = 16;

/// A policy with the recent faults of its shard.
pub(crate) struct Advisor {
    pub(crate) policy: Box<dyn FaultPolicy>,
    recent: VecDeque<Recent>,
    pub(super) seen: Seen,
    /// When the next tick is due.
    pub(super) next_tick: Duration,
}

impl Advisor {
    pub(crate) fn new(policy: Box<dyn FaultPolicy>) -> Advisor {
        Advisor {
            policy,
            recent: VecDeque::with_capacity(RECENT),
            seen: Seen::default(),
            next_tick: Duration::ZERO,
        }
    }

    pub(super) fn advise(&mut self, fault: &BlockFault, view: BlockView<'_>) -> (Advice, bool) {
        let view = BlockView {
            recent: self.recent.make_contiguous(),
            seen: self.seen,
            ..view
        };
        let advice = self.policy.advise(fault, &view);
        let (advice, cut) = advice.validated(fault, &view);
        match fault.to {
            Place::System => self.seen.cpu_faults += 1,
            Place::Device(_) => self.seen.device_faults += 1,
        }
        self.seen.prefetched += advice.prefetch.count() as u64;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent {
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
            recent: self.recent.make_contiguous(),
            seen: self.seen,
            ..view
        };
        self.policy.remote_accesses(seen, count, &view)
    }
}

/// Returns the first page that was touched.
pub(super) fn first_page(fault: &BlockFault) -> Page {
    fault.block.page(fault.pages.first().unwrap_or_default())
}

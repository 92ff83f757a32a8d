//! One shard's policy and what it remembers: the backend's side of asking for advice.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::backend::Backend;
use crate::device::Device;
use crate::events::{Event, EventKind};
use crate::page::{Page, PageRange};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, Place, Recent, Seen};
use crate::stats::Counter;
use crate::word::Word;

/// Faults that a policy can look back on.
const RECENT: usize = 16;

/// A policy with its shard's recent past.
pub(crate) struct Advisor {
    pub(crate) policy: Box<dyn FaultPolicy>,
    recent: VecDeque<Recent>,
    seen: Seen,
}

impl Advisor {
    pub(crate) fn new(policy: Box<dyn FaultPolicy>) -> Advisor {
        Advisor {
            policy,
            recent: VecDeque::with_capacity(RECENT),
            seen: Seen::default(),
        }
    }

    fn advise(&mut self, fault: &BlockFault, view: BlockView<'_>) -> (Advice, bool) {
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
}

fn first_page(fault: &BlockFault) -> Page {
    fault.block.page(fault.pages.first().unwrap_or_default())
}

impl Backend {
    /// Asks the policy about faults on a block with these words, towards this device's memory or the system's, and
    /// cuts what it says to what is possible.
    pub(crate) fn advise(
        &self,
        fault: &BlockFault,
        words: &[Word],
        device: Option<&Device>,
    ) -> Advice {
        let room = |frames: fn(&Device) -> u32| device.map_or(u32::MAX, frames);
        let view = BlockView {
            free_frames: room(Device::free_frames),
            capacity: room(Device::capacity),
            link: self.link,
            ..BlockView::of(words)
        };
        let shard = fault.block.0 as usize % self.advisors.len();
        let (advice, cut) = self.advisors[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .advise(fault, view);
        if cut {
            self.recorder.add(Counter::AdviceCut, 1);
        }
        self.recorder.event(|| Event {
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
}

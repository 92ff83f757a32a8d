//! A device's eviction policy, which can be replaced at any moment.

use crate::pages::{Frame, Page};
use crate::policy::{AccessedBits, EvictionPolicy};

/// An eviction policy, with the folios that it has been told of, so that its successor can be told of them, too.
pub(crate) struct Eviction {
    policy: Box<dyn EvictionPolicy>,
    /// One more than the order of the folio that starts at each frame; 0 if the policy knows of none.
    orders: Box<[u8]>,
}

impl Eviction {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, frames: u32) -> Eviction {
        Eviction {
            policy,
            orders: vec![0; frames as usize].into(),
        }
    }

    /// Replaces the policy. The new one is told of all folios, in the order of their frames: what the old one knew of
    /// their use is lost. `page_of` returns the page of the folio that starts at a frame; `None` for a folio that is
    /// being freed, which the new policy is not told of.
    pub(crate) fn replace(
        &mut self,
        policy: Box<dyn EvictionPolicy>,
        page_of: impl Fn(Frame) -> Option<Page>,
    ) {
        self.policy = policy;
        for (frame, known) in (0..).map(Frame).zip(&mut self.orders) {
            let Some(order) = known.checked_sub(1) else {
                continue;
            };
            match page_of(frame) {
                Some(page) => self.policy.allocated(frame, order, page),
                None => *known = 0,
            }
        }
    }

    // The calls of `EvictionPolicy`.

    pub(crate) fn allocated(&mut self, head: Frame, order: u8, page: Page) {
        self.orders[head.0 as usize] = order + 1;
        self.policy.allocated(head, order, page);
    }

    pub(crate) fn touched(&mut self, head: Frame, times: u32) {
        self.policy.touched(head, times);
    }

    pub(crate) fn refused(&mut self, head: Frame) {
        self.policy.refused(head);
    }

    pub(crate) fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.orders[head.0 as usize] = order + 1;
        self.orders[upper.0 as usize] = order + 1;
        self.policy.split(head, upper, order);
    }

    pub(crate) fn freed(&mut self, head: Frame) {
        if std::mem::take(&mut self.orders[head.0 as usize]) != 0 {
            self.policy.freed(head);
        }
    }

    pub(crate) fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        self.policy.victims(frames, bits)
    }
}

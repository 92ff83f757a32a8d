//! For the tests of eviction policies: gives the same notices to a policy and to a naive model of it.

use proptest::prelude::*;

use crate::pages::{Frame, Page};
use crate::policy::{EvictionPolicy, NoBits};

/// A folio as the models keep it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Folio {
    pub(super) head: u32,
    pub(super) order: u8,
    pub(super) page: u32,
    /// A value for the model's own use.
    pub(super) note: u32,
}

impl Folio {
    /// Keeps the lower half and returns the upper half.
    pub(super) fn halve(&mut self) -> Folio {
        self.order -= 1;
        let half = 1 << self.order;
        Folio {
            head: self.head + half,
            page: self.page + half,
            ..*self
        }
    }

    pub(super) fn frames(&self) -> u32 {
        1 << self.order
    }
}

/// A naive model of a policy, with the same methods.
pub(super) trait Model {
    fn allocated(&mut self, folio: Folio);
    fn touched(&mut self, head: u32);
    fn refused(&mut self, head: u32) {
        self.touched(head);
    }
    fn split(&mut self, head: u32);
    fn freed(&mut self, head: u32);
    fn victims(&mut self, frames: u32) -> Vec<u32>;
}

/// The first folios that have at least this many frames in total.
pub(super) fn until(folios: impl Iterator<Item = Folio>, frames: u32) -> Vec<u32> {
    let mut sum = 0;
    let taken = folios.take_while(|f| {
        let more = sum < frames;
        sum += f.frames();
        more
    });
    taken.map(|f| f.head).collect()
}

/// Random operations: the kind, and which folio or how many frames.
pub(super) fn ops() -> impl Strategy<Value = Vec<(u8, u16)>> {
    prop::collection::vec((0u8..9, any::<u16>()), 1..400)
}

/// Runs the operations on policy and model of a device with 64 frames, and compares the victims.
pub(super) fn check(
    mut policy: impl EvictionPolicy,
    mut model: impl Model,
    ops: Vec<(u8, u16)>,
) -> Result<(), TestCaseError> {
    let mut there: Vec<Folio> = Vec::new();
    let mut proposed = Vec::new();
    for (op, pick) in ops {
        let chosen = (!there.is_empty()).then(|| pick as usize % there.len());
        match (op, chosen) {
            (0 | 1, _) => {
                // Folios of order 2 at multiples of 4, if free. Few different pages, so that some return.
                let head = u32::from(pick) % 16 * 4;
                if there.iter().all(|f| f.head / 4 != head / 4) {
                    let page = u32::from(pick / 16) % 24 * 4;
                    let folio = Folio {
                        head,
                        order: 2,
                        page,
                        note: 0,
                    };
                    policy.allocated(Frame(head), 2, Page(page));
                    model.allocated(folio);
                    there.push(folio);
                }
            }
            (2 | 3, _) => {
                // Sometimes no folio starts there: the notice arrives after the folio has gone.
                let head = chosen.map_or(u32::from(pick) % 64, |i| there[i].head);
                let head = if pick % 16 == 0 {
                    u32::from(pick) % 64
                } else {
                    head
                };
                policy.touched(Frame(head), 1);
                model.touched(head);
            }
            (4, Some(i)) => {
                let head = there.swap_remove(i).head;
                policy.freed(Frame(head));
                model.freed(head);
            }
            (5, Some(i)) if there[i].order > 0 => {
                let upper = there[i].halve();
                policy.split(Frame(there[i].head), Frame(upper.head), upper.order);
                model.split(there[i].head);
                there.push(upper);
            }
            (6, _) => {
                // Some of the proposed folios are evicted, the remaining ones are refused.
                for (n, head) in std::mem::take(&mut proposed).into_iter().enumerate() {
                    let Some(at) = there.iter().position(|f| f.head == head) else {
                        continue;
                    };
                    if (pick >> (n % 16)) & 1 == 0 {
                        policy.refused(Frame(head));
                        model.refused(head);
                    } else {
                        there.swap_remove(at);
                        policy.freed(Frame(head));
                        model.freed(head);
                    }
                }
            }
            _ => {
                let frames = u32::from(pick % 70);
                proposed = model.victims(frames);
                let victims: Vec<u32> = policy
                    .victims(frames, &mut NoBits)
                    .iter()
                    .map(|f| f.0)
                    .collect();
                prop_assert_eq!(&victims, &proposed);
                let all: u32 = there.iter().map(Folio::frames).sum();
                let found = there.iter().filter(|f| victims.contains(&f.head));
                let found: u32 = found.map(Folio::frames).sum();
                prop_assert!(
                    found >= frames.min(all),
                    "too few, or a folio that is not there"
                );
            }
        }
    }
    Ok(())
}

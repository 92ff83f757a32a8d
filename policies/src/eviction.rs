//! Victims chosen by a script among those that a built-in policy proposes.

use std::collections::{HashMap, HashSet};

use hmm_backend::pages::{Access, Frame, Page};
use hmm_backend::policy::{AccessedBits, EvictionPolicy};

use crate::sandbox::candidates::{Candidate, MOST};
use crate::script::instance::SharedInstance;

/// How many times more frames than are wanted a script may choose from.
const CHOICE: u32 = 4;

#[derive(Clone, Copy)]
struct Folio {
    order: u8,
    page: Page,
    uses: u32,
    /// The count of events when it arrived.
    since: u64,
    /// The count of events when it was last used, or arrived.
    last: u64,
    /// Whether it could not be evicted in this round of evictions.
    refused: bool,
}

/// The state of a device's folios for a script, kept in front of the policy that proposes some of them.
pub(crate) struct ScriptEviction {
    instance: SharedInstance,
    inner: Box<dyn EvictionPolicy>,
    folios: HashMap<u32, Folio>,
    /// The count of events, which stands in for a clock.
    now: u64,
    /// Heads of folios that have been refused since a folio last arrived.
    refused: Vec<u32>,
}

impl ScriptEviction {
    pub(crate) fn new(instance: SharedInstance, inner: Box<dyn EvictionPolicy>) -> ScriptEviction {
        ScriptEviction {
            instance,
            inner,
            folios: HashMap::new(),
            now: 0,
            refused: Vec::new(),
        }
    }

    fn candidate(&self, head: u32) -> Option<Candidate> {
        let folio = self.folios.get(&head)?;
        Some(Candidate {
            frame: head,
            page: folio.page.0,
            pages: 1 << folio.order,
            uses: folio.uses,
            age: self.now - folio.since,
            idle: self.now - folio.last,
        })
    }
}

/// Accessed bits that count as uses of the script's folios when the built-in policy looks at them.
struct Noting<'a> {
    bits: &'a mut dyn AccessedBits,
    folios: &'a mut HashMap<u32, Folio>,
    now: u64,
}

impl AccessedBits for Noting<'_> {
    fn there(&self) -> bool {
        self.bits.there()
    }

    fn take(&mut self, head: Frame) -> Option<Access> {
        let access = self.bits.take(head)?;
        if let Some(folio) = self.folios.get_mut(&head.0) {
            folio.uses = folio.uses.saturating_add(1);
            folio.last = self.now;
        }
        Some(access)
    }
}

impl EvictionPolicy for ScriptEviction {
    fn allocated(&mut self, head: Frame, order: u8, page: Page) {
        self.now += 1;
        let folio = Folio {
            order,
            page,
            uses: 0,
            since: self.now,
            last: self.now,
            refused: false,
        };
        self.folios.insert(head.0, folio);
        // There was room, so this round of evictions is over: in the next one, all may be asked again.
        for head in self.refused.drain(..) {
            if let Some(folio) = self.folios.get_mut(&head) {
                folio.refused = false;
            }
        }
        self.inner.allocated(head, order, page);
    }

    fn touched(&mut self, head: Frame, times: u32) {
        self.now += 1;
        if let Some(folio) = self.folios.get_mut(&head.0) {
            folio.uses = folio.uses.saturating_add(times);
            folio.last = self.now;
        }
        self.inner.touched(head, times);
    }

    fn refused(&mut self, head: Frame) {
        if let Some(folio) = self.folios.get_mut(&head.0)
            && !std::mem::replace(&mut folio.refused, true)
        {
            self.refused.push(head.0);
        }
        self.inner.refused(head);
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        if let Some(folio) = self.folios.get_mut(&head.0) {
            folio.order = order;
            let upper_half = Folio {
                page: folio.page.plus(1 << order),
                ..*folio
            };
            if upper_half.refused {
                self.refused.push(upper.0);
            }
            self.folios.insert(upper.0, upper_half);
        }
        self.inner.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.folios.remove(&head.0);
        self.inner.freed(head);
    }

    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        let mut bits = Noting {
            bits,
            folios: &mut self.folios,
            now: self.now,
        };
        let proposed = self.inner.victims(frames.saturating_mul(CHOICE), &mut bits);
        // A script that insists on a folio that cannot go would keep the others from being tried.
        let refused = |frame: &Frame| self.folios.get(&frame.0).is_none_or(|folio| folio.refused);
        let (refused, possible): (Vec<Frame>, Vec<Frame>) = proposed.into_iter().partition(refused);
        let candidates = possible.iter().take(MOST);
        let candidates: Vec<Candidate> = candidates
            .filter_map(|frame| self.candidate(frame.0))
            .collect();
        let chosen = match candidates.is_empty() {
            true => Vec::new(),
            false => self
                .instance
                .ask(|script| script.victims(frames, &candidates))
                .unwrap_or_default(),
        };
        // The script's choice first; then, as far as that is not enough, what the built-in policy proposed.
        let chosen = chosen.into_iter().map(|i| Frame(candidates[i].frame));
        let mut taken = HashSet::new();
        let mut victims = Vec::new();
        let mut sum = 0;
        for frame in chosen.chain(possible).chain(refused) {
            if sum < frames && taken.insert(frame.0) {
                sum += self
                    .folios
                    .get(&frame.0)
                    .map_or(1, |folio| 1 << folio.order);
                victims.push(frame);
            }
        }
        victims
    }
}

//! Victims chosen by a script among those that a built-in policy proposes.

use std::collections::HashMap;

use hmm_backend::{EvictionPolicy, Frame, Page};

use crate::script::Candidate;
use crate::scripts::Instance;

/// How many times more frames than are wanted a script may choose from.
const CHOICE: u32 = 4;
/// Most candidates, so that a script looks at few.
const MOST: usize = 256;

struct Folio {
    order: u8,
    uses: u32,
    since: u64,
}

/// What a script knows of a device's folios, in front of the policy that proposes some of them.
pub(crate) struct ScriptEviction {
    instance: Instance,
    inner: Box<dyn EvictionPolicy>,
    folios: HashMap<u32, Folio>,
    /// Counts what happens: there is no clock here.
    now: u64,
}

impl ScriptEviction {
    pub(crate) fn new(instance: Instance, inner: Box<dyn EvictionPolicy>) -> ScriptEviction {
        ScriptEviction {
            instance,
            inner,
            folios: HashMap::new(),
            now: 0,
        }
    }
}

impl EvictionPolicy for ScriptEviction {
    fn allocated(&mut self, head: Frame, order: u8, page: Page) {
        self.now += 1;
        let folio = Folio {
            order,
            uses: 0,
            since: self.now,
        };
        self.folios.insert(head.0, folio);
        self.inner.allocated(head, order, page);
    }

    fn touched(&mut self, head: Frame) {
        self.now += 1;
        if let Some(folio) = self.folios.get_mut(&head.0) {
            folio.uses = folio.uses.saturating_add(1);
        }
        self.inner.touched(head);
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        if let Some(folio) = self.folios.get_mut(&head.0) {
            folio.order = order;
            let (uses, since) = (folio.uses, folio.since);
            self.folios.insert(upper.0, Folio { order, uses, since });
        }
        self.inner.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.folios.remove(&head.0);
        self.inner.freed(head);
    }

    fn victims(&mut self, frames: u32) -> Vec<Frame> {
        let mut proposed = self.inner.victims(frames.saturating_mul(CHOICE));
        proposed.truncate(MOST.max(frames as usize));
        let candidates: Vec<Candidate> = proposed
            .iter()
            .filter_map(|frame| {
                let folio = self.folios.get(&frame.0)?;
                Some(Candidate {
                    frame: frame.0,
                    pages: 1 << folio.order,
                    uses: folio.uses,
                    age: self.now - folio.since,
                })
            })
            .collect();
        let chosen = self
            .instance
            .ask(|script| script.victims(frames, &candidates))
            .unwrap_or_default();
        // The script's choice first; then, as far as that is not enough, what the built-in policy proposed.
        let rest = 0..candidates.len();
        let mut taken = vec![false; candidates.len()];
        let mut victims = Vec::new();
        let mut sum = 0;
        for i in chosen.into_iter().chain(rest) {
            if sum < frames && !std::mem::replace(&mut taken[i], true) {
                sum += candidates[i].pages;
                victims.push(Frame(candidates[i].frame));
            }
        }
        victims
    }
}

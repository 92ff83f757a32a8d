//! Least recently used: evicts the folio whose last use is longest ago. A use is what the device tells of: an access, a device
//! fault, or an accessed bit ([`super::aging`]), where the folios that were used since the last look keep their order.

use super::aging::Aging;
use super::lists::Lists;
use crate::pages::{Frame, Page};
use crate::policy::{AccessedBits, EvictionPolicy};

/// The least-recently-used policy.
#[derive(Debug)]
pub struct Lru {
    folios: Lists,
    aging: Aging,
}

impl Lru {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Lru {
        Lru {
            folios: Lists::new(frames, 1),
            aging: Aging::new(frames),
        }
    }
}

impl EvictionPolicy for Lru {
    fn allocated(&mut self, head: Frame, order: u8, _: Page) {
        self.aging.allocated(order);
        self.folios.push(0, head, order);
    }

    fn touched(&mut self, head: Frame, _: u32) {
        if self.folios.contains(head) {
            self.folios.move_to(0, head);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.folios.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.folios.remove(head);
    }

    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        for head in self.aging.used(bits, &self.folios, [0]) {
            self.folios.move_to(0, head);
        }
        self.folios.first(0, frames)
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Folio, Model, check};
    use super::*;
    use proptest::prelude::*;

    /// Folios in order of use, the least recently used first.
    #[derive(Default)]
    struct Naive(Vec<Folio>);

    impl Model for Naive {
        fn allocated(&mut self, folio: Folio) {
            self.0.push(folio);
        }
        fn touched(&mut self, head: u32) {
            if let Some(at) = self.0.iter().position(|f| f.head == head) {
                let folio = self.0.remove(at);
                self.0.push(folio);
            }
        }
        fn split(&mut self, head: u32) {
            let at = self.0.iter().position(|f| f.head == head).unwrap();
            let upper = self.0[at].halve();
            self.0.insert(at + 1, upper);
        }
        fn freed(&mut self, head: u32) {
            self.0.retain(|f| f.head != head);
        }
        fn victims(&mut self, frames: u32) -> Vec<u32> {
            super::super::model::until(self.0.iter().copied(), frames)
        }
    }

    proptest! {
        /// Compares with a vector in order of use.
        #[test]
        fn agrees_with_a_vector(ops in super::super::model::ops()) {
            check(Lru::new(64), Naive::default(), ops)?;
        }
    }
}

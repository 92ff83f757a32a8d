//! Least recently used: evicts the folio whose last migration or device fault is longest ago.

use super::lists::Lists;
use crate::pages::{Frame, Page};
use crate::policy::EvictionPolicy;

/// The least-recently-used policy.
#[derive(Debug)]
pub struct Lru(Lists<1>);

impl Lru {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Lru {
        Lru(Lists::new(frames))
    }
}

impl EvictionPolicy for Lru {
    fn allocated(&mut self, head: Frame, order: u8, _: Page) {
        self.0.push(0, head, order);
    }

    fn touched(&mut self, head: Frame) {
        if self.0.contains(head) {
            self.0.move_to(0, head);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.0.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.0.remove(head);
    }

    fn victims(&mut self, frames: u32) -> Vec<Frame> {
        self.0.first(0, frames)
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

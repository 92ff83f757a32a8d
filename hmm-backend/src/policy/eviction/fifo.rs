//! First in, first out: evicts the folio that has been in the device's memory longest, used or not.

use super::lists::Lists;
use crate::pages::{Frame, Page};
use crate::policy::{AccessedBits, EvictionPolicy};

/// The first-in-first-out policy.
#[derive(Debug)]
pub struct Fifo(Lists);

impl Fifo {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Fifo {
        Fifo(Lists::new(frames, 1))
    }
}

impl EvictionPolicy for Fifo {
    fn allocated(&mut self, head: Frame, order: u8, _: Page) {
        self.0.push(0, head, order);
    }

    fn touched(&mut self, _: Frame, _: u32) {}

    fn refused(&mut self, head: Frame) {
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

    fn victims(&mut self, frames: u32, _: &mut dyn AccessedBits) -> Vec<Frame> {
        self.0.first(0, frames)
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Folio, Model, check, ops, until};
    use super::*;
    use proptest::prelude::*;

    /// Each folio with its number in order of arrival. A refused folio gets a new number.
    #[derive(Default)]
    struct Naive {
        folios: Vec<Folio>,
        arrivals: u32,
    }

    impl Naive {
        fn arrive(&mut self, head: u32) {
            self.arrivals += 1;
            for folio in self.folios.iter_mut().filter(|f| f.head == head) {
                folio.note = self.arrivals;
            }
        }
    }

    impl Model for Naive {
        fn allocated(&mut self, folio: Folio) {
            self.folios.push(folio);
            self.arrive(folio.head);
        }
        fn touched(&mut self, _: u32) {}
        fn refused(&mut self, head: u32) {
            self.arrive(head);
        }
        fn split(&mut self, head: u32) {
            let at = self.folios.iter().position(|f| f.head == head).unwrap();
            let upper = self.folios[at].halve();
            self.folios.push(upper);
        }
        fn freed(&mut self, head: u32) {
            self.folios.retain(|f| f.head != head);
        }
        fn victims(&mut self, frames: u32) -> Vec<u32> {
            // Halves of a folio have the same number and are ordered by their frames.
            self.folios.sort_by_key(|f| (f.note, f.head));
            until(self.folios.iter().copied(), frames)
        }
    }

    proptest! {
        #[test]
        fn agrees_with_numbers(ops in ops()) {
            check(Fifo::new(64), Naive::default(), ops)?;
        }
    }
}

//! Clock, or second chance: first in, first out, but a folio that was used since the hand last passed it is spared
//! once. Nearly as good as `lru` at a fraction of the work, which is why kernels and databases use it. Accessed bits are all
//! that it needs: it looks at a folio's when the hand gets there.

use super::lists::Lists;
use crate::pages::{Frame, Page};
use crate::policy::{AccessedBits, EvictionPolicy};

/// The note of a folio that was used since the hand last passed it.
const USED: u8 = 1;
/// The note of a folio that is already among the victims.
const PROPOSED: u8 = 2;

/// The clock policy. The list is the clock's face, and its first folio is where the hand points.
#[derive(Debug)]
pub struct Clock(Lists);

impl Clock {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Clock {
        Clock(Lists::new(frames, 1))
    }
}

impl EvictionPolicy for Clock {
    fn allocated(&mut self, head: Frame, order: u8, _: Page) {
        self.0.push(0, head, order);
    }

    fn touched(&mut self, head: Frame, _: u32) {
        if self.0.contains(head) {
            self.0.set_note(head, USED);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.0.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.0.remove(head);
    }

    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        let wanted = frames.min(self.0.frames_in(0));
        let mut victims = Vec::with_capacity(wanted.min(64) as usize);
        let mut sum = 0;
        while sum < wanted
            && let Some(head) = self.0.oldest(0)
        {
            match self.0.note(head) {
                PROPOSED => {}
                USED => {
                    self.0.set_note(head, 0);
                    bits.take(head);
                }
                _ if bits.take(head).is_some() => {}
                _ => {
                    self.0.set_note(head, PROPOSED);
                    sum += self.0.frames(head);
                    victims.push(head);
                }
            }
            // The hand moves on: the folio that it has passed becomes the last one.
            self.0.move_to(0, head);
        }
        for head in &victims {
            self.0.set_note(*head, 0);
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Folio, Model, check, ops};
    use super::*;
    use crate::policy::NoBits;
    use proptest::prelude::*;

    /// A ring of folios and the position of the hand. Note 1 marks a used folio.
    #[derive(Default)]
    struct Naive {
        ring: Vec<Folio>,
        hand: usize,
    }

    impl Naive {
        fn at(&self, head: u32) -> Option<usize> {
            self.ring.iter().position(|f| f.head == head)
        }
    }

    impl Model for Naive {
        fn allocated(&mut self, folio: Folio) {
            // Right behind the hand, so that the hand reaches it last.
            self.ring.insert(self.hand, folio);
            self.hand += 1;
            if self.hand == self.ring.len() {
                self.hand = 0;
            }
        }
        fn touched(&mut self, head: u32) {
            if let Some(at) = self.at(head) {
                self.ring[at].note = 1;
            }
        }
        fn split(&mut self, head: u32) {
            let at = self.at(head).unwrap();
            let upper = self.ring[at].halve();
            self.ring.insert(at + 1, upper);
            if at < self.hand {
                self.hand += 1;
            }
            if at + 2 == self.ring.len() && self.hand == self.ring.len() {
                self.hand = 0;
            }
        }
        fn freed(&mut self, head: u32) {
            let at = self.at(head).unwrap();
            self.ring.remove(at);
            if at < self.hand {
                self.hand -= 1;
            }
            if self.hand == self.ring.len() {
                self.hand = 0;
            }
        }
        fn victims(&mut self, frames: u32) -> Vec<u32> {
            let all: u32 = self.ring.iter().map(Folio::frames).sum();
            let mut victims = Vec::new();
            let mut sum = 0;
            while sum < frames.min(all) {
                let folio = &mut self.ring[self.hand];
                if !victims.contains(&folio.head) {
                    if folio.note == 1 {
                        folio.note = 0;
                    } else {
                        victims.push(folio.head);
                        sum += folio.frames();
                    }
                }
                self.hand = (self.hand + 1) % self.ring.len();
            }
            victims
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_ring(ops in ops()) {
            check(Clock::new(64), Naive::default(), ops)?;
        }
    }

    #[test]
    fn what_was_used_is_let_off_once() {
        let mut clock = Clock::new(4);
        for frame in 0..3 {
            clock.allocated(Frame(frame), 0, Page(frame));
        }
        clock.touched(Frame(0), 1);
        assert_eq!(clock.victims(1, &mut NoBits), [Frame(1)]);
        assert_eq!(clock.victims(2, &mut NoBits), [Frame(2), Frame(0)]);
    }
}

//! Least recently used: evicts the folio whose last migration or device fault is longest ago.
//!
//! A doubly linked list threaded through two arrays indexed by frame, so every notice costs constant
//! time and no allocation.

use super::EvictionPolicy;
use crate::driver::Frame;

/// No frame.
const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: u32,
    next: u32,
    /// Order of the folio that starts here; [`NOT_A_HEAD`] if none does.
    order: u8,
}

const NOT_A_HEAD: u8 = u8::MAX;

/// The least-recently-used policy.
#[derive(Debug)]
pub struct Lru {
    links: Vec<Links>,
    oldest: u32,
    newest: u32,
}

impl Lru {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Lru {
        let free = Links {
            prev: NIL,
            next: NIL,
            order: NOT_A_HEAD,
        };
        Lru {
            links: vec![free; frames as usize],
            oldest: NIL,
            newest: NIL,
        }
    }

    fn at(&mut self, frame: u32) -> &mut Links {
        &mut self.links[frame as usize]
    }

    /// Puts `frame` behind `prev`, or first if that is [`NIL`].
    fn link_behind(&mut self, prev: u32, frame: u32) {
        let next = if prev == NIL {
            self.oldest
        } else {
            self.at(prev).next
        };
        let links = self.at(frame);
        (links.prev, links.next) = (prev, next);
        match prev {
            NIL => self.oldest = frame,
            p => self.at(p).next = frame,
        }
        match next {
            NIL => self.newest = frame,
            n => self.at(n).prev = frame,
        }
    }

    fn unlink(&mut self, frame: u32) {
        let Links { prev, next, .. } = *self.at(frame);
        match prev {
            NIL => self.oldest = next,
            p => self.at(p).next = next,
        }
        match next {
            NIL => self.newest = prev,
            n => self.at(n).prev = prev,
        }
    }
}

impl EvictionPolicy for Lru {
    fn allocated(&mut self, head: Frame, order: u8) {
        debug_assert_eq!(self.at(head.0).order, NOT_A_HEAD);
        self.at(head.0).order = order;
        self.link_behind(self.newest, head.0);
    }

    fn touched(&mut self, head: Frame) {
        // A device's notice may be late: the folio may be gone by now.
        if self.at(head.0).order != NOT_A_HEAD && self.newest != head.0 {
            self.unlink(head.0);
            self.link_behind(self.newest, head.0);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.at(head.0).order = order;
        self.at(upper.0).order = order;
        self.link_behind(head.0, upper.0);
    }

    fn freed(&mut self, head: Frame) {
        debug_assert_ne!(self.at(head.0).order, NOT_A_HEAD);
        self.at(head.0).order = NOT_A_HEAD;
        self.unlink(head.0);
    }

    fn victims(&mut self, frames: u32) -> Vec<Frame> {
        let mut victims = Vec::new();
        let mut sum = 0;
        let mut at = self.oldest;
        while at != NIL && sum < frames {
            victims.push(Frame(at));
            sum += 1 << self.at(at).order;
            at = self.at(at).next;
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain vector in order of use.
        #[test]
        fn agrees_with_a_vector(ops in prop::collection::vec((0u8..5, any::<u16>()), 1..300)) {
            let mut lru = Lru::new(64);
            let mut model: Vec<(u32, u8)> = Vec::new();
            for (op, pick) in ops {
                let chosen = (!model.is_empty()).then(|| pick as usize % model.len());
                match (op, chosen) {
                    (0, _) => {
                        // Folios of order 2 at multiples of 4, if free.
                        let head = u32::from(pick) % 16 * 4;
                        if model.iter().all(|(f, _)| f / 4 != head / 4) {
                            lru.allocated(Frame(head), 2);
                            model.push((head, 2));
                        }
                    }
                    (1, Some(i)) => {
                        let folio = model.remove(i);
                        lru.touched(Frame(folio.0));
                        model.push(folio);
                    }
                    (2, Some(i)) => {
                        lru.freed(Frame(model.remove(i).0));
                    }
                    (3, Some(i)) if model[i].1 > 0 => {
                        let (head, order) = (model[i].0, model[i].1 - 1);
                        let upper = head + (1 << order);
                        lru.split(Frame(head), Frame(upper), order);
                        model[i].1 = order;
                        model.insert(i + 1, (upper, order));
                    }
                    _ => {
                        let mut sum = 0;
                        let expected: Vec<_> = model
                            .iter()
                            .take_while(|(_, order)| {
                                let more = sum < u32::from(pick % 70);
                                sum += 1 << order;
                                more
                            })
                            .map(|(f, _)| Frame(*f))
                            .collect();
                        prop_assert_eq!(lru.victims(u32::from(pick % 70)), expected);
                    }
                }
            }
        }
    }
}

//! Least recently used: evicts the folio whose last migration or device fault is longest ago.
//!
//! A doubly linked list threaded through two arrays indexed by frame, so every notice costs constant
//! time and no allocation.

use super::EvictionPolicy;
use crate::driver::Frame;

/// No frame. Frames are kept as one more than their number, so that an unused list is all zeros and costs
/// no memory.
const NIL: u32 = 0;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Links {
    prev: u32,
    next: u32,
    /// Number of frames in the folio that starts here; 0 if none does.
    frames: u32,
}

const FREE: Links = Links {
    prev: NIL,
    next: NIL,
    frames: 0,
};

/// The least-recently-used policy.
#[derive(Debug)]
pub struct Lru {
    links: Box<[Links]>,
    oldest: u32,
    newest: u32,
}

impl Lru {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Lru {
        // SAFETY: zeros are three valid integers, a free frame's.
        let links = unsafe { Box::<[Links]>::new_zeroed_slice(frames as usize).assume_init() };
        Lru {
            links,
            oldest: NIL,
            newest: NIL,
        }
    }

    fn at(&mut self, frame: u32) -> &mut Links {
        &mut self.links[frame as usize - 1]
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
        let frame = head.0 + 1;
        debug_assert_eq!(*self.at(frame), FREE);
        self.at(frame).frames = 1 << order;
        self.link_behind(self.newest, frame);
    }

    fn touched(&mut self, head: Frame) {
        let frame = head.0 + 1;
        // A device's notice may be late: the folio may be gone by now.
        if self.at(frame).frames != 0 && self.newest != frame {
            self.unlink(frame);
            self.link_behind(self.newest, frame);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.at(head.0 + 1).frames = 1 << order;
        self.at(upper.0 + 1).frames = 1 << order;
        self.link_behind(head.0 + 1, upper.0 + 1);
    }

    fn freed(&mut self, head: Frame) {
        let frame = head.0 + 1;
        debug_assert_ne!(self.at(frame).frames, 0);
        self.unlink(frame);
        *self.at(frame) = FREE;
    }

    fn victims(&mut self, frames: u32) -> Vec<Frame> {
        let mut victims = Vec::new();
        let mut sum = 0;
        let mut at = self.oldest;
        while at != NIL && sum < frames {
            victims.push(Frame(at - 1));
            sum += self.at(at).frames;
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
                    (1, None) => {
                        // A notice that comes after the folio has gone.
                        lru.touched(Frame(u32::from(pick) % 64));
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

//! Least frequently used: evicts the folio with the fewest device faults, and among equals the one that has had that
//! count for the longest time. Good if the same pages stay hot for a long time; bad if the hot pages change, because
//! no use is ever forgotten.

use super::lists::Lists;
use crate::pages::{Frame, Page};
use crate::policy::EvictionPolicy;

/// Uses are counted up to this number.
const MOST: usize = 63;
/// The list of folios that could not be evicted lately; their note is their count.
const ASIDE: usize = MOST + 1;

/// The least-frequently-used policy: one list for each number of uses.
#[derive(Debug)]
pub struct Lfu(Lists<{ ASIDE + 1 }>);

impl Lfu {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Lfu {
        Lfu(Lists::new(frames))
    }
}

impl EvictionPolicy for Lfu {
    fn allocated(&mut self, head: Frame, order: u8, _: Page) {
        // The evicting thread has found room. Folios that could not be evicted before may be evictable now.
        while let Some(aside) = self.0.oldest(ASIDE) {
            self.0.move_to(self.0.note(aside).into(), aside);
        }
        self.0.push(0, head, order);
    }

    fn touched(&mut self, head: Frame) {
        if self.0.contains(head) {
            let uses = (self.0.note(head) + 1).min(MOST as u8);
            self.0.set_note(head, uses);
            self.0.move_to(uses.into(), head);
        }
    }

    fn refused(&mut self, head: Frame) {
        if self.0.contains(head) {
            self.0.move_to(ASIDE, head);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.0.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.0.remove(head);
    }

    fn victims(&mut self, frames: u32) -> Vec<Frame> {
        let mut victims = Vec::new();
        let mut left = frames;
        for list in 0..=ASIDE {
            if left == 0 {
                break;
            }
            victims.extend(self.0.first(list, left));
            left = left.saturating_sub(self.0.frames_in(list));
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Folio, Model, check, ops, until};
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy)]
    struct Entry {
        folio: Folio,
        uses: u32,
        aside: bool,
        /// When it got its place among its equals.
        since: u32,
    }

    /// Every folio with its count; sorted when victims are asked for.
    #[derive(Default)]
    struct Naive {
        entries: Vec<Entry>,
        time: u32,
    }

    impl Naive {
        fn change(&mut self, head: u32, change: impl Fn(&mut Entry)) {
            self.time += 1;
            if let Some(entry) = self.entries.iter_mut().find(|e| e.folio.head == head) {
                change(entry);
                entry.since = self.time;
            }
        }
        fn sort(&mut self) {
            self.entries.sort_by_key(|e| {
                (
                    e.aside,
                    if e.aside { 0 } else { e.uses },
                    e.since,
                    e.folio.head,
                )
            });
        }
    }

    impl Model for Naive {
        fn allocated(&mut self, folio: Folio) {
            self.sort();
            let aside: Vec<u32> = self
                .entries
                .iter()
                .filter(|e| e.aside)
                .map(|e| e.folio.head)
                .collect();
            for head in aside {
                self.change(head, |e| e.aside = false);
            }
            self.time += 1;
            self.entries.push(Entry {
                folio,
                uses: 0,
                aside: false,
                since: self.time,
            });
        }
        fn touched(&mut self, head: u32) {
            // Folios with the highest count also move behind their equals when they are used.
            self.change(head, |e| {
                (e.uses, e.aside) = ((e.uses + 1).min(MOST as u32), false);
            });
        }
        fn refused(&mut self, head: u32) {
            self.change(head, |e| e.aside = true);
        }
        fn split(&mut self, head: u32) {
            let entry = self
                .entries
                .iter_mut()
                .find(|e| e.folio.head == head)
                .unwrap();
            let upper = Entry {
                folio: entry.folio.halve(),
                ..*entry
            };
            self.entries.push(upper);
        }
        fn freed(&mut self, head: u32) {
            self.entries.retain(|e| e.folio.head != head);
        }
        fn victims(&mut self, frames: u32) -> Vec<u32> {
            self.sort();
            until(self.entries.iter().map(|e| e.folio), frames)
        }
    }

    proptest! {
        #[test]
        fn agrees_with_counts(ops in ops()) {
            check(Lfu::new(64), Naive::default(), ops)?;
        }
    }

    #[test]
    fn few_uses_go_before_many() {
        let mut lfu = Lfu::new(4);
        for frame in 0..3 {
            lfu.allocated(Frame(frame), 0, Page(frame));
        }
        for frame in [0, 0, 0, 2] {
            lfu.touched(Frame(frame));
        }
        assert_eq!(lfu.victims(3), [Frame(1), Frame(2), Frame(0)]);
    }
}

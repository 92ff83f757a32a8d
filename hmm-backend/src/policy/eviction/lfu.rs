//! Least frequently used: evicts the folio with the fewest uses, and among equals the one that has had that count for the
//! longest time. Good if the same pages stay hot for a long time; bad if the hot pages change, because no use is ever
//! forgotten. With accessed bits, the count is of looks ([`super::aging`]) that found a use.

use std::collections::BTreeMap;

use super::aging::Aging;
use super::lists::Lists;
use crate::pages::{Frame, Page};
use crate::policy::{AccessedBits, EvictionPolicy};

/// The list of folios that could not be evicted lately.
const ASIDE: usize = 0;
/// The list of folios without uses. It is there without a search: where most accesses miss, most folios are in it.
const UNUSED: usize = 1;

/// The least-frequently-used policy: one list for each number of uses that a folio has.
#[derive(Debug)]
pub struct Lfu {
    folios: Lists,
    /// The uses of the folio that starts at each frame.
    uses: Box<[u32]>,
    /// The list of each number of uses but none. As many lists as folios are enough.
    lists: BTreeMap<u32, usize>,
    /// Lists that are not needed at the moment.
    spare: Vec<usize>,
    aging: Aging,
}

impl Lfu {
    /// For a device with this many frames.
    pub fn new(frames: u32) -> Lfu {
        Lfu {
            folios: Lists::new(frames, 2),
            uses: vec![0; frames as usize].into_boxed_slice(),
            lists: BTreeMap::new(),
            spare: Vec::new(),
            aging: Aging::new(frames),
        }
    }

    fn list(&mut self, uses: u32) -> usize {
        if uses == 0 {
            return UNUSED;
        }
        let (folios, spare) = (&mut self.folios, &mut self.spare);
        let list = self.lists.entry(uses);
        *list.or_insert_with(|| spare.pop().unwrap_or_else(|| folios.add()))
    }

    /// Makes the folio the last of those with this many uses.
    fn move_to(&mut self, uses: u32, head: Frame) {
        let list = self.list(uses);
        self.folios.move_to(list, head);
    }

    /// Takes back the list of this many uses if no folio is in it any more.
    fn tidy(&mut self, uses: u32) {
        if uses > 0
            && let Some(list) = self.lists.get(&uses)
            && self.folios.frames_in(*list) == 0
        {
            self.spare.push(*list);
            self.lists.remove(&uses);
        }
    }
}

impl EvictionPolicy for Lfu {
    fn allocated(&mut self, head: Frame, order: u8, _: Page) {
        // The evicting thread has found room. Folios that could not be evicted before may be evictable now.
        while let Some(aside) = self.folios.oldest(ASIDE) {
            self.move_to(self.uses[aside.0 as usize], aside);
        }
        self.uses[head.0 as usize] = 0;
        self.folios.push(UNUSED, head, order);
        self.aging.allocated(order);
    }

    fn touched(&mut self, head: Frame, times: u32) {
        if self.folios.contains(head) {
            let before = self.uses[head.0 as usize];
            let uses = before.saturating_add(times);
            self.uses[head.0 as usize] = uses;
            self.move_to(uses, head);
            self.tidy(before);
        }
    }

    fn refused(&mut self, head: Frame) {
        if self.folios.contains(head) {
            self.folios.move_to(ASIDE, head);
            self.tidy(self.uses[head.0 as usize]);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.uses[upper.0 as usize] = self.uses[head.0 as usize];
        self.folios.split(head, upper, order);
    }

    fn freed(&mut self, head: Frame) {
        self.folios.remove(head);
        self.tidy(self.uses[head.0 as usize]);
    }

    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        let lists = [UNUSED].into_iter().chain(self.lists.values().copied());
        for head in self.aging.used(bits, &self.folios, lists) {
            self.touched(head, 1);
        }
        let mut victims = Vec::new();
        let mut left = frames;
        let lists = [UNUSED].into_iter().chain(self.lists.values().copied());
        for list in lists.chain([ASIDE]) {
            if left == 0 {
                break;
            }
            self.folios.add_first(list, left, &mut victims);
            left = left.saturating_sub(self.folios.frames_in(list));
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Folio, Model, check, ops, until};
    use super::*;
    use crate::policy::NoBits;
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
            self.change(head, |e| {
                (e.uses, e.aside) = (e.uses + 1, false);
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
            lfu.touched(Frame(frame), 1);
        }
        assert_eq!(lfu.victims(3, &mut NoBits), [Frame(1), Frame(2), Frame(0)]);
    }
}

//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a small queue that new folios
//! pass through, a main queue for folios that are used again, and a *ghost* queue of pages recently evicted from the
//! small queue. Pages that are used once, as in a scan, leave quickly and do not push out pages that are used
//! repeatedly.

use smallvec::SmallVec;

use super::aging::Aging;
use super::ghost::Ghost;
use super::lists::Lists;
use crate::pages::{Frame, Page};
use crate::policy::{AccessedBits, EvictionPolicy};

const SMALL: usize = 0;
const MAIN: usize = 1;
/// The list of victims while more of them are chosen.
const ASIDE: usize = 2;
/// The list of folios that could not be evicted lately. In their own queue they would be proposed again before the
/// other queue.
const REFUSED: usize = 3;

/// Uses are counted up to this number, in the note's lower bits.
const MOST: u8 = 3;
/// Note of a folio that was proposed from the small queue: if it is evicted, its pages become ghosts.
const PROPOSED: u8 = 4;
/// Note of a refused folio that belongs in the main queue.
const OF_MAIN: u8 = 8;
/// A folio with more uses than this in the small queue moves to the main queue.
const ENOUGH: u8 = 1;

/// The S3-FIFO policy.
#[derive(Debug)]
pub struct S3Fifo {
    queues: Lists,
    /// The first page of the folio that starts at each frame.
    pages: Box<[u32]>,
    ghost: Ghost,
    /// The small queue is evicted from while it has at least this many frames: a tenth of the device's.
    small: u32,
    /// Where folios go until the first eviction, if the small queue has its tenth.
    fill: Fill,
    aging: Aging,
}

/// The queue of the folios that arrive when the small queue has its tenth, but the device has room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// The main queue, as in the authors' simulator, libCacheSim. Later folios need not wait until the many first ones have left
    /// the small queue.
    Main,
    /// The small queue, as in the paper.
    Small,
}

impl S3Fifo {
    /// For a device with this many frames.
    pub fn new(frames: u32, fill: Fill) -> S3Fifo {
        let small = (frames / 10).max(1);
        S3Fifo {
            queues: Lists::new(frames, 4),
            pages: vec![0; frames as usize].into_boxed_slice(),
            ghost: Ghost::new((u64::from(frames) * 9 / 10) as u32),
            small,
            fill,
            aging: Aging::new(frames),
        }
    }

    fn uses(&self, head: Frame) -> u8 {
        self.queues.note(head) & MOST
    }

    /// Returns the queue that the next victim is from.
    fn queue(&self) -> usize {
        let small = self.queues.frames_in(SMALL);
        match small >= self.small || self.queues.frames_in(MAIN) == 0 {
            true => SMALL,
            false => MAIN,
        }
    }

    /// Moves refused folios back to their queues.
    fn forgive(&mut self) {
        while let Some(head) = self.queues.oldest(REFUSED) {
            let queue = match self.queues.note(head) & OF_MAIN {
                0 => SMALL,
                _ => MAIN,
            };
            self.queues.set_note(head, self.uses(head));
            self.queues.move_to(queue, head);
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn allocated(&mut self, head: Frame, order: u8, page: Page) {
        // The evicting thread has found room. Folios that could not be evicted before may be evictable now.
        self.forgive();
        let pages = page.0..page.0 + (1 << order);
        let known = pages.filter(|page| self.ghost.take(*page)).count() > 0;
        // Only now: the folios that made room for this page do not push it out of the ghost queue.
        self.ghost.trim();
        let overflows = self.fill == Fill::Main && self.queues.frames_in(SMALL) >= self.small;
        let queue = if known || overflows { MAIN } else { SMALL };
        self.aging.allocated(order);
        self.pages[head.0 as usize] = page.0;
        self.queues.push(queue, head, order);
    }

    fn touched(&mut self, head: Frame, times: u32) {
        if self.queues.contains(head) {
            let uses = times
                .saturating_add(self.uses(head).into())
                .min(MOST.into()) as u8;
            self.queues
                .set_note(head, self.queues.note(head) & OF_MAIN | uses);
        }
    }

    fn refused(&mut self, head: Frame) {
        if self.queues.contains(head) {
            let queue = match self.queues.list_of(head) {
                REFUSED => self.queues.note(head) & OF_MAIN,
                MAIN => OF_MAIN,
                _ => 0,
            };
            self.queues.set_note(head, queue | self.uses(head));
            self.queues.move_to(REFUSED, head);
        }
    }

    fn split(&mut self, head: Frame, upper: Frame, order: u8) {
        self.queues.split(head, upper, order);
        self.pages[upper.0 as usize] = self.pages[head.0 as usize] + (1 << order);
    }

    fn freed(&mut self, head: Frame) {
        if self.queues.note(head) & PROPOSED != 0 {
            let first = self.pages[head.0 as usize];
            for page in first..first + self.queues.frames(head) {
                self.ghost.insert(page);
            }
        }
        self.queues.remove(head);
    }

    fn victims(&mut self, frames: u32, bits: &mut dyn AccessedBits) -> Vec<Frame> {
        for head in self.aging.used(bits, &self.queues, [SMALL, MAIN]) {
            self.touched(head, 1);
        }
        if frames > 0 {
            self.fill = Fill::Small;
        }
        let mut victims: SmallVec<[(Frame, usize); 8]> = SmallVec::new();
        let mut sum = 0;
        let mut queue = self.queue();
        while sum < frames {
            let Some(head) = self.queues.oldest(queue) else {
                queue = self.queue();
                match self.queues.oldest(queue) {
                    Some(_) => continue,
                    None => break,
                }
            };
            let uses = self.uses(head);
            let (to, note) = match queue {
                SMALL if uses > ENOUGH => (MAIN, 0),
                MAIN if uses > 0 => (MAIN, uses - 1),
                SMALL => (ASIDE, uses | PROPOSED),
                _ => (ASIDE, 0),
            };
            self.queues.set_note(head, note);
            self.queues.move_to(to, head);
            if to == ASIDE {
                sum += self.queues.frames(head);
                victims.push((head, queue));
                queue = self.queue();
            }
        }
        // Until they are evicted, the victims are the last of their queues.
        for (head, queue) in &victims {
            self.queues.move_to(*queue, *head);
        }
        let mut victims: Vec<Frame> = victims.into_iter().map(|(head, _)| head).collect();
        for head in self.queues.first(REFUSED, frames.saturating_sub(sum)) {
            let note = self.queues.note(head);
            if note & OF_MAIN == 0 {
                self.queues.set_note(head, note | PROPOSED);
            }
            victims.push(head);
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

    const FRAMES: u32 = 64;

    #[derive(Clone, Copy)]
    struct Entry {
        folio: Folio,
        uses: u32,
        proposed: bool,
        /// For refused folios: whether they belong in the main queue.
        of_main: bool,
    }

    /// The paper's algorithm on vectors, the oldest folio first.
    #[derive(Default)]
    struct Naive {
        small: Vec<Entry>,
        main: Vec<Entry>,
        refused: Vec<Entry>,
        /// The last evicted pages, the oldest first.
        ghost: Vec<u32>,
        evicted: bool,
    }

    fn frames(entries: &[Entry]) -> u32 {
        entries.iter().map(|e| e.folio.frames()).sum()
    }

    impl Naive {
        fn find(&mut self, head: u32) -> Option<(&mut Vec<Entry>, usize)> {
            for queue in [&mut self.small, &mut self.main, &mut self.refused] {
                if let Some(at) = queue.iter().position(|e| e.folio.head == head) {
                    return Some((queue, at));
                }
            }
            None
        }

        fn take_ghost(&mut self, page: u32) -> bool {
            let at = self.ghost.iter().position(|p| *p == page);
            at.map(|at| self.ghost.remove(at)).is_some()
        }
    }

    impl Model for Naive {
        fn allocated(&mut self, folio: Folio) {
            for entry in std::mem::take(&mut self.refused) {
                let queue = match entry.of_main {
                    true => &mut self.main,
                    false => &mut self.small,
                };
                queue.push(Entry {
                    proposed: false,
                    ..entry
                });
            }
            let pages = folio.page..folio.page + folio.frames();
            let mut known = false;
            for page in pages {
                known |= self.take_ghost(page);
            }
            let surplus = self.ghost.len().saturating_sub(FRAMES as usize * 9 / 10);
            self.ghost.drain(..surplus);
            let entry = Entry {
                folio,
                uses: 0,
                proposed: false,
                of_main: false,
            };
            if known || !self.evicted && frames(&self.small) >= FRAMES / 10 {
                &mut self.main
            } else {
                &mut self.small
            }
            .push(entry);
        }
        fn touched(&mut self, head: u32) {
            if let Some((queue, at)) = self.find(head) {
                queue[at].uses = (queue[at].uses + 1).min(3);
                queue[at].proposed = false;
            }
        }
        fn refused(&mut self, head: u32) {
            let in_main = self.main.iter().any(|e| e.folio.head == head);
            if let Some((queue, at)) = self.find(head) {
                let entry = queue.remove(at);
                self.refused.push(Entry {
                    proposed: false,
                    of_main: in_main || entry.of_main,
                    ..entry
                });
            }
        }
        fn split(&mut self, head: u32) {
            let (queue, at) = self.find(head).unwrap();
            let upper = Entry {
                folio: queue[at].folio.halve(),
                ..queue[at]
            };
            queue.insert(at + 1, upper);
        }
        fn freed(&mut self, head: u32) {
            let (queue, at) = self.find(head).unwrap();
            let Entry {
                folio, proposed, ..
            } = queue.remove(at);
            if proposed {
                for page in folio.page..folio.page + folio.frames() {
                    self.take_ghost(page);
                    self.ghost.push(page);
                }
            }
        }
        fn victims(&mut self, wanted: u32) -> Vec<u32> {
            let (mut from_small, mut from_main) = (Vec::new(), Vec::new());
            let mut victims: Vec<Folio> = Vec::new();
            self.evicted |= wanted > 0;
            // A queue is stayed with until it has given a victim or is empty.
            let mut of_small = None;
            while victims.iter().map(Folio::frames).sum::<u32>() < wanted {
                if self.small.is_empty() && self.main.is_empty() {
                    break;
                }
                let staying = match of_small {
                    Some(true) => !self.small.is_empty(),
                    Some(false) => !self.main.is_empty(),
                    None => false,
                };
                if !staying {
                    of_small = Some(frames(&self.small) >= FRAMES / 10 || self.main.is_empty());
                }
                if of_small == Some(true) {
                    let entry = self.small.remove(0);
                    if entry.uses > 1 {
                        self.main.push(Entry { uses: 0, ..entry });
                    } else {
                        of_small = None;
                        victims.push(entry.folio);
                        from_small.push(Entry {
                            proposed: true,
                            ..entry
                        });
                    }
                } else {
                    let entry = self.main.remove(0);
                    if entry.uses > 0 {
                        self.main.push(Entry {
                            uses: entry.uses - 1,
                            ..entry
                        });
                    } else {
                        of_small = None;
                        victims.push(entry.folio);
                        from_main.push(entry);
                    }
                }
            }
            self.small.append(&mut from_small);
            self.main.append(&mut from_main);
            for entry in &mut self.refused {
                if victims.iter().map(Folio::frames).sum::<u32>() < wanted {
                    entry.proposed |= !entry.of_main;
                    victims.push(entry.folio);
                }
            }
            victims.iter().map(|f| f.head).collect()
        }
    }

    proptest! {
        #[test]
        fn agrees_with_queues_in_vectors(ops in ops()) {
            check(S3Fifo::new(FRAMES, Fill::Main), Naive::default(), ops)?;
        }
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_used_again() {
        let mut policy = S3Fifo::new(20, Fill::Main);
        policy.allocated(Frame(0), 0, Page(0));
        policy.touched(Frame(0), 1);
        policy.touched(Frame(0), 1);
        policy.allocated(Frame(1), 0, Page(1));
        // Pages that are used once, one after the other in two frames.
        for page in 2..100 {
            let (new, old) = (Frame(1 + (page + 1) % 2), Frame(1 + page % 2));
            policy.allocated(new, 0, Page(page));
            assert_eq!(policy.victims(1, &mut NoBits), [old], "page {page}");
            policy.freed(old);
        }
        // A page that returns soon goes to the main queue at once, behind the other one there.
        policy.allocated(Frame(3), 0, Page(98));
        assert_eq!(
            policy.victims(3, &mut NoBits),
            [Frame(0), Frame(3), Frame(1)]
        );
    }
}

//! A buddy allocator for frames. It hands out naturally aligned runs of `1 << order` frames up to [`MAX_ORDER`], the
//! lowest address first: frames that are allocated one after the other are then usually neighbours, and one kernel
//! call can move many of them. It makes no system calls, and allocates memory only when it is made.

use super::ordered_set::OrderedSet;
use crate::pages::{Frame, MAX_ORDER};

/// The free frames of one device.
#[derive(Debug)]
pub(crate) struct Buddy {
    /// The free runs of each order, by their first frame divided by their length.
    free: [OrderedSet; MAX_ORDER as usize + 1],
    free_frames: u32,
}

impl Buddy {
    /// An allocator whose `frames` frames are all free.
    pub(crate) fn new(frames: u32) -> Buddy {
        let mut buddy = Buddy::taken(frames);
        buddy.free_frames = frames;
        let mut at = 0;
        while at < frames {
            let fits = (frames - at).ilog2() as u8;
            let order = fits.min(MAX_ORDER).min(at.trailing_zeros().min(31) as u8);
            buddy.free[order as usize].insert(at >> order);
            at += 1 << order;
        }
        buddy
    }

    /// An allocator for `frames` frames of which none is free: they come by [`Self::free`].
    pub(crate) fn taken(frames: u32) -> Buddy {
        Buddy {
            free: std::array::from_fn(|order| OrderedSet::below(frames >> order)),
            free_frames: 0,
        }
    }

    /// Number of free frames.
    pub(crate) fn free_frames(&self) -> u32 {
        self.free_frames
    }

    /// Takes a naturally aligned run of `1 << order` frames. Returns its first frame, or `None` if no such run is
    /// free.
    pub(crate) fn alloc(&mut self, order: u8) -> Option<Frame> {
        let mut run = order..=MAX_ORDER;
        let (from, number) = run.find_map(|o| Some((o, self.free[o as usize].take_first()?)))?;
        let start = number << from;
        for o in order..from {
            self.free[o as usize].insert((start >> o) + 1);
        }
        self.free_frames -= 1 << order;
        Some(Frame(start))
    }

    /// Frees a run that [`Self::alloc`] returned, or a naturally aligned part of it.
    pub(crate) fn free(&mut self, frame: Frame, order: u8) {
        let (mut number, mut order) = (frame.0 >> order, order);
        self.free_frames += 1 << order;
        while order < MAX_ORDER && self.free[order as usize].remove(number ^ 1) {
            number >>= 1;
            order += 1;
        }
        let fresh = self.free[order as usize].insert(number);
        debug_assert!(fresh, "run {number:#x} of order {order} was free already");
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Compares with a bitmap: no frame is handed out twice, all runs are aligned, and all frames come back.
        #[test]
        fn agrees_with_a_bitmap(frames in 1u32..3000, ops in prop::collection::vec((0u8..=MAX_ORDER, any::<u16>()), 1..200)) {
            let mut buddy = Buddy::new(frames);
            let mut used = vec![false; frames as usize];
            let mut live: Vec<(Frame, u8)> = Vec::new();
            for (order, pick) in ops {
                if pick % 7 == 1 && live.iter().any(|(_, order)| *order > 0) {
                    // Only one half of a run is freed.
                    let i = live.iter().position(|(_, order)| *order > 0).expect("there is one");
                    let (frame, order) = (live[i].0, live[i].1 - 1);
                    let upper = Frame(frame.0 + (1 << order));
                    let (kept, freed) = if pick % 2 == 0 { (frame, upper) } else { (upper, frame) };
                    live[i] = (kept, order);
                    buddy.free(freed, order);
                    used[freed.0 as usize..][..1 << order].fill(false);
                } else if pick % 3 == 0 && !live.is_empty() {
                    let (frame, order) = live.swap_remove(pick as usize % live.len());
                    buddy.free(frame, order);
                    used[frame.0 as usize..][..1 << order].fill(false);
                } else if let Some(frame) = buddy.alloc(order) {
                    prop_assert_eq!(frame.0 % (1 << order), 0);
                    let run = &mut used[frame.0 as usize..][..1 << order];
                    prop_assert!(run.iter().all(|u| !u));
                    run.fill(true);
                    live.push((frame, order));
                } else {
                    // No aligned run of this size is free.
                    for run in used.chunks_exact(1 << order) {
                        prop_assert!(run.iter().any(|u| *u));
                    }
                }
                prop_assert_eq!(buddy.free_frames() as usize, used.iter().filter(|u| !**u).count());
            }
            for (frame, order) in live {
                buddy.free(frame, order);
            }
            prop_assert_eq!(buddy.free, Buddy::new(frames).free);
        }
    }
}

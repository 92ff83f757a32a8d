//! The least that any policy could have migrated to the device: Belady's MIN (1966), for a device whose pages the CPUs
//! take back when they touch them.
//!
//! MIN fetches a page when the device accesses it and, where memory is short, gives up the page whose next device
//! access is farthest away. Here a page that a CPU touches next, or that is freed, leaves anyhow: it counts as never
//! accessed again. So no policy that migrates on access has fewer arrivals. One that maps pages in place may.
//!
//! That says nothing of the way back: which pages are given up so that arrivals are fewest is not always how the fewest
//! pages with contents leave.
//!
//! With prefetching the number of *faults* can be lower, not the number of pages: a fault on a 2 MiB block brings
//! at most 512 pages, so there are at least a 512th as many faults.

use std::collections::BinaryHeap;

use hmm_backend::limits::Refusal;
use hmm_backend::pages::{BLOCK_PAGES, Page};
use serde::Serialize;

/// An event of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Cpu,
    Device,
    Freed,
}

/// Everything that happens, four bytes each; up to eight while the list grows.
pub(super) struct Steps {
    list: Vec<u32>,
    most: usize,
}

impl Default for Steps {
    fn default() -> Steps {
        // Numbers of steps have 32 bits.
        Steps::at_most(NOT_THERE as usize)
    }
}

/// Why there is no optimum to compare with.
#[derive(Debug, thiserror::Error)]
pub enum OptimalError {
    /// Several devices.
    #[error("the optimum is known for one device only, and the replay has {0}")]
    Devices(u8),
    /// More accesses than can be numbered.
    #[error(
        "the trace has more than {0} accesses, too many to compare with the optimum; leave that out"
    )]
    TooLong(u64),
    /// The host refused the memory.
    #[error(
        "keeping account of each access to find the optimum: {0}; or leave it out with --no-optimal"
    )]
    Memory(#[source] Refusal),
}

/// The least possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Optimal {
    /// Pages that arrive in device memory, first touches there included.
    pub pages_to_device: u64,
    /// A bound for the number of device faults with prefetching inside 2 MiB blocks.
    pub device_faults: u64,
}

/// A page number fits beside the kind: managed memory has at most 2^30 pages.
const KIND_BITS: u32 = 2;
const NEVER: u32 = u32::MAX;

impl Steps {
    fn at_most(most: usize) -> Steps {
        let list = Vec::new();
        Steps { list, most }
    }

    pub(super) fn push(&mut self, page: Page, step: Step) -> Result<(), OptimalError> {
        let packed = page.0 << KIND_BITS | step as u32;
        // The same again changes nothing.
        if self.list.last() == Some(&packed) {
            return Ok(());
        }
        if self.list.len() == self.most {
            return Err(OptimalError::TooLong(self.most as u64));
        }
        reserve(&mut self.list, 1)?;
        self.list.push(packed);
        Ok(())
    }

    fn get(&self, i: usize) -> (usize, Step) {
        let packed = self.list[i];
        let step = match packed & 3 {
            0 => Step::Cpu,
            1 => Step::Device,
            _ => Step::Freed,
        };
        ((packed >> KIND_BITS) as usize, step)
    }

    pub(super) fn optimal(&self, frames: u64, devices: u8) -> Result<Optimal, OptimalError> {
        if devices != 1 {
            return Err(OptimalError::Devices(devices));
        }
        let page = |packed: &u32| (packed >> KIND_BITS) as usize;
        let pages = self.list.iter().map(page).max().map_or(0, |last| last + 1);
        let next = self.next_uses(pages)?;
        let mut resident = filled(NOT_THERE, pages)?;
        let mut farthest = Farthest::of(frames);
        let mut used = 0;
        let mut least = Optimal {
            pages_to_device: 0,
            device_faults: 0,
        };
        for (i, next) in next.iter().enumerate() {
            let (page, step) = self.get(i);
            let there = resident[page] != NOT_THERE;
            match step {
                Step::Cpu | Step::Freed if there => {
                    resident[page] = NOT_THERE;
                    used -= 1;
                }
                Step::Device => {
                    if !there {
                        least.pages_to_device += 1;
                        if used == frames {
                            farthest.evict(&mut resident);
                            used -= 1;
                        }
                        used += 1;
                    }
                    resident[page] = *next;
                    farthest.push(*next, page as u32, &resident)?;
                }
                Step::Cpu | Step::Freed => {}
            }
        }
        least.device_faults = least.pages_to_device.div_ceil(BLOCK_PAGES);
        Ok(least)
    }

    /// For each step, the number of the next one if that is the device's, on the same page.
    fn next_uses(&self, pages: usize) -> Result<Vec<u32>, OptimalError> {
        let mut upcoming = filled(NEVER, pages)?;
        let mut next = filled(NEVER, self.list.len())?;
        for i in (0..self.list.len()).rev() {
            let (page, step) = self.get(i);
            next[i] = upcoming[page];
            upcoming[page] = match step {
                Step::Device => i as u32,
                Step::Cpu | Step::Freed => NEVER,
            };
        }
        Ok(next)
    }
}

/// Room for so many more. The length of a trace sets it, so that the host may refuse it.
fn reserve(list: &mut Vec<u32>, more: usize) -> Result<(), OptimalError> {
    let length = list.len();
    let size = size_of::<u32>();
    // A list grows to at least twice its length, so that is what was refused.
    list.try_reserve(more)
        .map_err(|_| refused(length.saturating_add(more.max(length)), size))
}

fn filled(value: u32, length: usize) -> Result<Vec<u32>, OptimalError> {
    let mut list = Vec::new();
    reserve(&mut list, length)?;
    list.resize(length, value);
    Ok(list)
}

/// Returns the error for memory that was refused for this many entries of that size.
fn refused(entries: usize, size: usize) -> OptimalError {
    OptimalError::Memory(Refusal::of_memory(entries.saturating_mul(size) as u64))
}

/// Marks pages that are not in device memory: no step has this number as its next use, except as never.
const NOT_THERE: u32 = u32::MAX - 1;

/// Pages in device memory by their next use, the farthest first. Entries of the past are among them: no more than
/// there are frames, or a few.
struct Farthest {
    heap: BinaryHeap<(u32, u32)>,
    most: usize,
}

/// Fewer entries are not worth looking at.
const FEW: usize = 1024;

impl Farthest {
    fn of(frames: u64) -> Farthest {
        let most = usize::try_from(frames.saturating_mul(2)).unwrap_or(usize::MAX);
        Farthest {
            heap: BinaryHeap::new(),
            most: most.max(FEW),
        }
    }

    fn push(&mut self, next: u32, page: u32, resident: &[u32]) -> Result<(), OptimalError> {
        let length = self.heap.len();
        self.heap
            .try_reserve(1)
            .map_err(|_| refused(2 * length, size_of::<(u32, u32)>()))?;
        self.heap.push((next, page));
        if self.heap.len() > self.most {
            // Each page that is there has one next use, so half of the entries go at least.
            let mut entries = std::mem::take(&mut self.heap).into_vec();
            entries.retain(|(next, page)| resident[*page as usize] == *next);
            entries.sort_unstable();
            entries.dedup();
            self.heap = entries.into();
        }
        Ok(())
    }

    /// Gives up the page that is needed last.
    fn evict(&mut self, resident: &mut [u32]) {
        while let Some((next, page)) = self.heap.pop() {
            let entry = &mut resident[page as usize];
            if *entry == next {
                *entry = NOT_THERE;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn steps(list: &[(u32, Step)]) -> Steps {
        let mut steps = Steps::default();
        for (page, step) in list {
            steps.push(Page(*page), *step).unwrap();
        }
        steps
    }

    fn arrivals(list: &[(u32, Step)], frames: u64) -> u64 {
        steps(list).optimal(frames, 1).unwrap().pages_to_device
    }

    #[test]
    fn the_textbook_sequence_has_nine_faults_with_three_frames() {
        // Silberschatz: 7 0 1 2 0 3 0 4 2 3 0 3 2 1 2 0 1 7 0 1.
        let pages = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        assert_eq!(arrivals(&pages.map(|p| (p, Step::Device)), 3), 9);
    }

    #[test]
    fn pages_that_the_cpu_takes_are_given_up_first() {
        use Step::{Cpu, Device, Freed};
        // Page 0 is taken back before the device needs it again: page 1 stays.
        let list = [
            (0, Device),
            (1, Device),
            (2, Device),
            (0, Cpu),
            (1, Device),
            (0, Device),
        ];
        assert_eq!(arrivals(&list, 2), 4);
        let freed = [(0, Device), (0, Freed), (0, Device), (0, Cpu), (0, Device)];
        assert_eq!(arrivals(&freed, 9), 3);
        let refused = steps(&freed).optimal(9, 2);
        assert!(matches!(refused, Err(OptimalError::Devices(2))));
    }

    #[test]
    fn many_hits_take_no_memory_and_change_nothing() {
        let mut farthest = Farthest::of(2);
        let mut resident = vec![NOT_THERE; 3];
        // Pages 0 and 1 are used in turns; only their last next uses count.
        for step in 0..100_000 {
            let page = step % 2;
            resident[page as usize] = step + 2;
            farthest.push(step + 2, page, &resident).unwrap();
            assert!(farthest.heap.len() <= FEW);
        }
        // Given up, and there again until the end: the same entry twice.
        resident[2] = NEVER;
        for _ in 0..3 * FEW {
            farthest.push(NEVER, 2, &resident).unwrap();
            assert!(farthest.heap.len() <= FEW);
        }
        for page in [2, 1, 0] {
            assert_ne!(resident[page], NOT_THERE);
            farthest.evict(&mut resident);
            assert_eq!(resident[page], NOT_THERE);
        }
    }

    #[test]
    fn more_steps_than_can_be_numbered_are_refused() {
        let mut steps = Steps::at_most(2);
        steps.push(Page(0), Step::Device).unwrap();
        steps.push(Page(1), Step::Device).unwrap();
        steps.push(Page(1), Step::Device).unwrap();
        let refused = steps.push(Page(2), Step::Device);
        assert!(matches!(refused, Err(OptimalError::TooLong(2))));
    }

    #[test]
    fn memory_that_the_host_refuses_is_an_error() {
        let Err(OptimalError::Memory(refusal)) = filled(NEVER, usize::MAX / 8) else {
            panic!("there is not so much");
        };
        assert!(refusal.has_advice(), "{refusal}");
    }

    /// Tries every choice of victims.
    fn brute_force(list: &[(u32, Step)], frames: usize, there: &mut Vec<u32>) -> u64 {
        let Some(((page, step), rest)) = list.split_first() else {
            return 0;
        };
        match step {
            Step::Device if !there.contains(page) => {
                let mut best = u64::MAX;
                if there.len() < frames {
                    let mut next = there.clone();
                    next.push(*page);
                    best = brute_force(rest, frames, &mut next);
                } else {
                    for victim in 0..there.len() {
                        let mut next = there.clone();
                        next[victim] = *page;
                        best = best.min(brute_force(rest, frames, &mut next));
                    }
                }
                best + 1
            }
            Step::Device => brute_force(rest, frames, there),
            Step::Cpu | Step::Freed => {
                there.retain(|p| p != page);
                brute_force(rest, frames, there)
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_does_better(list in prop::collection::vec((0u32..5, 0u8..5), 0..14), frames in 1usize..4) {
            let kinds = [Step::Device, Step::Device, Step::Device, Step::Cpu, Step::Freed];
            let list: Vec<_> = list.into_iter().map(|(p, k)| (p, kinds[k as usize])).collect();
            prop_assert_eq!(arrivals(&list, frames as u64), brute_force(&list, frames, &mut Vec::new()));
        }
    }
}

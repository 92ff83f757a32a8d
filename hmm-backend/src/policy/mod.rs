//! Policies: *what* to migrate, prefetch, hold or evict, never *how*.
//!
//! A policy sees numbers and returns advice. It has no file descriptors, threads or clock, so the same
//! code runs under a live guest and over a recorded trace. The backend validates all advice
//! ([`Advice::validated`]) and stays correct whatever it says.

mod density;
mod lru;
mod on_demand;
mod spec;

use std::time::Duration;

pub use density::Density;
pub use lru::Lru;
pub use on_demand::OnDemand;
pub use spec::{PolicyError, PolicyInfo, PolicyParam, PolicySpec, policies};

use crate::driver::{DeviceId, Frame};
use crate::page::{BLOCK_PAGES, Block, PageSet};
use crate::time::MAX_HOLD;
use crate::word::{Residency, Word};

/// How a page is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store or an atomic operation.
    Write,
}

/// Where pages can be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// System memory.
    System,
    /// A device's memory.
    Device(DeviceId),
}

/// Faults on one block that are served together.
#[derive(Clone, Copy, Debug)]
pub struct BlockFault {
    /// The block.
    pub block: Block,
    /// The pages that were touched and are not where the toucher can reach them. Not empty.
    pub pages: PageSet,
    /// The strongest access among the faults.
    pub access: Access,
    /// Where the toucher can reach pages: the vCPUs' place is the system.
    pub to: Place,
    /// Time since the backend was made.
    pub now: Duration,
}

/// What a policy may look at: the block's residency and the room at the destination.
#[derive(Clone, Copy)]
pub struct BlockView<'a> {
    pub(crate) words: &'a [Word],
    /// Free frames of the destination device; unlimited for the system.
    pub free_frames: u32,
    /// All frames of the destination device; unlimited for the system.
    pub capacity: u32,
}

impl BlockView<'_> {
    /// Number of managed pages in the block; less than [`BLOCK_PAGES`] only in the last one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Where the page with this index in the block is.
    pub fn residency(&self, index: usize) -> Residency {
        self.words[index].residency()
    }

    /// The pages whose contents are at `place`.
    pub fn resident(&self, place: Place) -> PageSet {
        let (words, len) = (self.words, self.len());
        match place {
            Place::System => PageSet::from_fn(len, |i| words[i].reached_by_cpus()),
            Place::Device(device) => PageSet::from_fn(len, |i| words[i].on_device(device)),
        }
    }
}

/// What to do about a fault beyond serving it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// A device fault on a system page: leave the page there and let the device reach it in place.
    pub stay: bool,
    /// Pages of the same block to bring along.
    pub prefetch: PageSet,
    /// How long the migrated pages stay where they go, whoever else wants them (at most
    /// [`MAX_HOLD`]).
    pub hold: Duration,
    /// How long the toucher waits before it is served (at most [`MAX_HOLD`]).
    pub throttle: Duration,
}

impl Advice {
    /// The advice cut to what is possible: prefetched pages exist, are not among the faulting ones and
    /// not at the destination already; times are bounded; CPUs cannot reach pages in place. Returns also
    /// whether anything had to be cut.
    pub fn validated(mut self, fault: &BlockFault, view: &BlockView<'_>) -> (Advice, bool) {
        let given = self.clone();
        let exist = PageSet::from_range(0..view.len());
        self.prefetch = self.prefetch.intersection(&exist).difference(&fault.pages);
        self.hold = self.hold.min(MAX_HOLD);
        self.throttle = self.throttle.min(MAX_HOLD);
        self.stay &= fault.to != Place::System;
        let cut = self != given;
        // A migration of a page to where it is would do nothing: no cause for complaint.
        if !self.prefetch.is_empty() {
            self.prefetch = self.prefetch.difference(&view.resident(fault.to));
        }
        (self, cut)
    }
}

/// Decides about faults. One instance serves one shard of guest memory.
pub trait FaultPolicy: Send {
    /// Called once for the faults on one block. The faulting pages are served in any case.
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice;
}

/// Decides about victims. One instance serves one device; it is told of every folio there.
pub trait EvictionPolicy: Send {
    /// `1 << order` frames from `head` hold pages now.
    fn allocated(&mut self, head: Frame, order: u8);
    /// The device used the folio, or it could not be evicted when it was proposed.
    fn touched(&mut self, head: Frame);
    /// A folio has been cut into halves of this order; the upper half starts at `upper`.
    fn split(&mut self, head: Frame, upper: Frame, order: u8);
    /// The folio is no longer there.
    fn freed(&mut self, head: Frame);
    /// The folios to evict first, of at least `frames` frames together if there are as many.
    fn victims(&mut self, frames: u32) -> Vec<Frame>;
}

/// Makes the policies of a backend.
pub trait PolicyFactory: Send + Sync {
    /// The policy for one shard of guest memory.
    fn fault_policy(&self) -> Box<dyn FaultPolicy>;
    /// The policy for one device with this many frames.
    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy>;
    /// The name in reports.
    fn name(&self) -> String;
}

const _: () = assert!(BLOCK_PAGES == 512, "page sets and views cover one block");

#[cfg(test)]
pub(crate) mod test_view {
    //! Hand-made blocks for the tests of policies.
    use super::*;
    use crate::time::Tick;

    /// A block where the given pages are in system memory or on device 0; the others are untouched.
    pub(crate) fn block(len: usize, system: &PageSet, device: &PageSet) -> Vec<Word> {
        let word = |i| {
            if device.contains(i) {
                Word(0).to_device(DeviceId(0), Frame(i as u32), 0)
            } else if system.contains(i) {
                Word(0).to_system(Tick(0))
            } else {
                Word(0)
            }
        };
        (0..len).map(word).collect()
    }

    pub(crate) fn view(words: &[Word]) -> BlockView<'_> {
        BlockView {
            words,
            free_frames: u32::MAX,
            capacity: u32::MAX,
        }
    }

    pub(crate) fn fault(pages: impl IntoIterator<Item = usize>, to: Place) -> BlockFault {
        BlockFault {
            block: Block(0),
            pages: pages.into_iter().collect(),
            access: Access::Write,
            to,
            now: Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::test_view::*;
    use super::*;

    #[test]
    fn impossible_advice_is_cut_and_noticed() {
        let system = PageSet::from_range(0..50);
        let words = block(100, &system, &PageSet::EMPTY);
        let view = view(&words);
        let fault = fault([3], Place::System);
        let wild = Advice {
            stay: true,
            prefetch: PageSet::from_range(0..512),
            hold: Duration::from_secs(3600),
            throttle: Duration::MAX,
        };
        let (advice, cut) = wild.validated(&fault, &view);
        assert!(cut);
        assert_eq!(advice.prefetch, PageSet::from_range(50..100));
        assert_eq!(
            (advice.stay, advice.hold, advice.throttle),
            (false, MAX_HOLD, MAX_HOLD)
        );
        let modest = Advice {
            prefetch: PageSet::from_range(40..60),
            ..Advice::default()
        };
        let (advice, cut) = modest.validated(&fault, &view);
        assert!(!cut);
        assert_eq!(advice.prefetch, PageSet::from_range(50..60));
    }
}

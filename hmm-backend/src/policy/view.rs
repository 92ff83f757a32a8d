//! What a policy sees: a fault and the state around it.

use std::time::Duration;

use crate::pages::{Access, Block, Page, PageSet, Place};
use crate::policy::{LinkMatrix, LinkModel};
use crate::residency::{BlockWords, Pattern, Residency};

/// The faults on one block that are served together.
#[derive(Clone, Copy, Debug)]
pub struct BlockFault {
    /// The block.
    pub block: Block,
    /// The touched pages that the faulting CPU or device cannot reach where they are. Not empty.
    pub pages: PageSet,
    /// The strongest access among the faults.
    pub access: Access,
    /// The place whose pages the faulting side can reach: system memory for CPUs, its own memory for a device.
    pub to: Place,
    /// Time since the backend was made.
    pub now: Duration,
    /// Whether the faults have already waited, because the page was held or the policy throttled them. They are not
    /// throttled again.
    pub waited: bool,
}

/// A fault that was served before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recent {
    /// The first page that was touched.
    pub page: Page,
    /// The place that it had to migrate to.
    pub to: Place,
    /// Time since the backend was made.
    pub time: Duration,
}

/// Counters of what the policy of one shard was asked and what it answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// How often it was asked about CPU faults.
    pub cpu_faults: u64,
    /// How often it was asked about device faults.
    pub device_faults: u64,
    /// Number of pages it wanted to prefetch.
    pub prefetched: u64,
}

/// The state that a policy may look at: the block's residency, recent faults, and the room at the destination.
#[derive(Clone, Copy)]
pub struct BlockView<'a> {
    pub(crate) words: &'a BlockWords<'a>,
    /// Number of free frames of the destination device; `u32::MAX` for system memory.
    pub free_frames: u32,
    /// Number of all frames of the destination device; `u32::MAX` for system memory.
    pub capacity: u32,
    /// Number of pages of guest memory; `u32::MAX` if unknown.
    pub pages: u32,
    /// The most recent faults in this shard of guest memory, the newest last.
    pub recent: &'a [Recent],
    /// The cost of a migration of the first touched page from where it is to the place that the faults are to; if it is there, or
    /// has no place yet, of one between the faulting device, or any device, and system memory.
    pub link: LinkModel,
    /// The costs of migrations between all places.
    pub links: &'a LinkMatrix,
    /// Counters of this shard.
    pub seen: Seen,
}

/// The links that a view has if nothing else is said.
static DEFAULT_LINKS: LinkMatrix = LinkMatrix::DEFAULT;

impl<'a> BlockView<'a> {
    /// A view of a block with unlimited room and no known past.
    pub(crate) fn of(words: &'a BlockWords<'a>) -> BlockView<'a> {
        BlockView {
            words,
            free_frames: u32::MAX,
            capacity: u32::MAX,
            pages: u32::MAX,
            recent: &[],
            link: LinkModel::default(),
            links: &DEFAULT_LINKS,
            seen: Seen::default(),
        }
    }

    /// Number of managed pages in the block; less than [`crate::pages::BLOCK_PAGES`] only in the last one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// The residency of the page with this index in the block.
    pub fn residency(&self, index: usize) -> Residency {
        self.words[index].residency()
    }

    /// The pages whose contents are at `place`. Duplicated pages are at both of their places.
    pub fn resident(&self, place: Place) -> PageSet {
        let find = |pattern: Pattern| pattern.find(self.words);
        self.words.resident(place, || match place {
            Place::System => find(Pattern::REACHED_BY_CPUS),
            Place::Device(device) => {
                find(Pattern::on_device(device)).union(&find(Pattern::duplicated_on(device)))
            }
        })
    }

    /// The pages without contents.
    pub fn untouched(&self) -> PageSet {
        Pattern::UNTOUCHED.find(self.words)
    }
}

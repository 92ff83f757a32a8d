//! What a policy sees: a fault and its surroundings.

use std::time::Duration;

use crate::pages::{Access, Block, Page, PageSet, Place};
use crate::policy::LinkModel;
use crate::residency::{Pattern, Residency, Word};

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
    /// The faults have waited because the page was held or the policy throttled them. They are not throttled again.
    pub waited: bool,
}

/// A fault that was served before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recent {
    /// The first page that was touched.
    pub page: Page,
    /// Where it had to go.
    pub to: Place,
    /// When.
    pub time: Duration,
}

/// What the policy of one shard has seen and said so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Times it was asked about CPU faults.
    pub cpu_faults: u64,
    /// Times it was asked about device faults.
    pub device_faults: u64,
    /// Pages it wanted to be prefetched.
    pub prefetched: u64,
}

/// What a policy may look at: the block's residency, what happened lately, and the room at the destination.
#[derive(Clone, Copy)]
pub struct BlockView<'a> {
    pub(crate) words: &'a [Word],
    /// Free frames of the destination device; unlimited for the system.
    pub free_frames: u32,
    /// All frames of the destination device; unlimited for the system.
    pub capacity: u32,
    /// All pages of guest memory; unlimited if that is not known.
    pub pages: u32,
    /// The last faults in this shard of guest memory, the newest last.
    pub recent: &'a [Recent],
    /// What a migration costs.
    pub link: LinkModel,
    /// Counters of this shard.
    pub seen: Seen,
}

impl<'a> BlockView<'a> {
    /// A block with room without limit, nothing known of the past.
    pub(crate) fn of(words: &'a [Word]) -> BlockView<'a> {
        BlockView {
            words,
            free_frames: u32::MAX,
            capacity: u32::MAX,
            pages: u32::MAX,
            recent: &[],
            link: LinkModel::default(),
            seen: Seen::default(),
        }
    }

    /// Number of managed pages in the block; less than [`crate::BLOCK_PAGES`] only in the last one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Where the page with this index in the block is.
    pub fn residency(&self, index: usize) -> Residency {
        self.words[index].residency()
    }

    /// The pages whose contents are at `place`; duplicates are at both of theirs.
    pub fn resident(&self, place: Place) -> PageSet {
        let find = |pattern: Pattern| pattern.find(self.words);
        match place {
            Place::System => find(Pattern::REACHED_BY_CPUS),
            Place::Device(device) => {
                find(Pattern::on_device(device)).union(&find(Pattern::duplicated_on(device)))
            }
        }
    }

    /// The pages without contents.
    pub fn untouched(&self) -> PageSet {
        Pattern::UNTOUCHED.find(self.words)
    }
}

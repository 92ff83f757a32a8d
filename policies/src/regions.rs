//! Different policies for different parts of guest memory.

use std::sync::Arc;
use std::time::Duration;

use hmm_backend::pages::{BLOCK_PAGES, Block, Hint, PAGE_SIZE, PageRange, PageSet};
use hmm_backend::policy::{
    Advice, BlockFault, BlockView, EvictionPolicy, FaultPolicy, PolicyFactory, PolicyFile, Seen,
    Wish,
};

/// Whole blocks with a policy of their own.
pub struct Region {
    /// The first block.
    pub first: Block,
    /// The number of blocks.
    pub blocks: u32,
    /// Decides about faults there.
    pub policy: Arc<dyn PolicyFactory>,
}

impl Region {
    fn contains(&self, block: Block) -> bool {
        (self.first.0..self.first.0.saturating_add(self.blocks)).contains(&block.0)
    }
}

/// The text before each part of memory in the name of a policy by region.
pub const PART: &str = "; memory ";
/// The size of a block.
const BLOCK_BYTES: u64 = BLOCK_PAGES * PAGE_SIZE;

/// Policies by region. Regions do not overlap. Devices belong to no region: evictions are the
/// common policy's.
pub struct Regions {
    /// The policy of all memory outside the regions.
    pub common: Arc<dyn PolicyFactory>,
    /// The regions that have policies of their own.
    pub regions: Vec<Region>,
}

impl Regions {
    /// The description of each policy, with the memory it is for, as in a configuration.
    fn join(&self, say: impl Fn(&dyn PolicyFactory) -> String) -> String {
        let mut text = say(&*self.common);
        for region in &self.regions {
            let mib = |block: u32| u64::from(block) * (BLOCK_BYTES >> 20);
            let (start, end) = (region.first.0, region.first.0.saturating_add(region.blocks));
            let policy = say(&*region.policy);
            text += &format!("{PART}{} MiB to {} MiB: {policy}", mib(start), mib(end));
        }
        text
    }
}

impl PolicyFactory for Regions {
    fn fault_policy(&self) -> Box<dyn FaultPolicy> {
        let mut policies = vec![Due::new(self.common.fault_policy())];
        let mut ranges = Vec::new();
        for region in &self.regions {
            policies.push(Due::new(region.policy.fault_policy()));
            ranges.push(Region {
                policy: region.policy.clone(),
                ..*region
            });
        }
        Box::new(RegionPolicy { policies, ranges })
    }

    fn eviction_policy(&self, frames: u32) -> Box<dyn EvictionPolicy> {
        self.common.eviction_policy(frames)
    }

    fn name(&self) -> String {
        self.join(|policy| policy.name())
    }

    fn exact(&self) -> String {
        self.join(|policy| policy.exact())
    }

    fn files(&self) -> Vec<PolicyFile> {
        let regions = self.regions.iter().map(|region| &region.policy);
        [&self.common]
            .into_iter()
            .chain(regions)
            .flat_map(|policy| policy.files())
            .collect()
    }
}

/// A policy and when its next tick is due.
struct Due {
    policy: Box<dyn FaultPolicy>,
    next: Duration,
}

impl Due {
    fn new(policy: Box<dyn FaultPolicy>) -> Due {
        let next = policy.tick_interval().unwrap_or_default();
        Due { policy, next }
    }
}

struct RegionPolicy {
    /// The common one, then one for each range.
    policies: Vec<Due>,
    ranges: Vec<Region>,
}

impl RegionPolicy {
    fn of(&mut self, block: Block) -> &mut dyn FaultPolicy {
        let range = self.ranges.iter().position(|range| range.contains(block));
        &mut *self.policies[range.map_or(0, |i| i + 1)].policy
    }
}

impl FaultPolicy for RegionPolicy {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        self.of(fault.block).advise(fault, view)
    }

    /// Returns the lowest threshold of all policies, because there is one for all of memory.
    fn remote_access_threshold(&self) -> Option<u32> {
        let thresholds = self
            .policies
            .iter()
            .map(|due| due.policy.remote_access_threshold());
        thresholds.flatten().min()
    }

    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        self.of(seen.block).remote_accesses(seen, count, view)
    }

    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        for part in pages.split_by_block() {
            self.of(part.start.block()).hinted(part, hint);
        }
    }

    fn freed(&mut self, pages: PageRange) {
        for part in pages.split_by_block() {
            self.of(part.start.block()).freed(part);
        }
    }

    fn tick_interval(&self) -> Option<Duration> {
        let intervals = self.policies.iter().map(|due| due.policy.tick_interval());
        intervals.flatten().min()
    }

    fn tick(&mut self, now: Duration, seen: Seen) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for due in &mut self.policies {
            if let Some(interval) = due.policy.tick_interval()
                && due.next <= now
            {
                due.next = now + interval;
                wishes.extend(due.policy.tick(now, seen));
            }
        }
        wishes
    }
}

//! Migration in phases that are types: *collect* (lock the pages), *copy* (nobody can change or see the
//! old contents any more), *commit* (the new place counts), *finalize* (let go, wake who waits).
//! Each step consumes the one before, so an order that breaks the contract does not compile; dropping an
//! unfinished migration rolls it back with every page unharmed.

mod to_device;
mod to_system;

use std::time::Duration;

pub use to_device::{CommittedToDevice, CopiedToDevice, ToDevice};
pub use to_system::{CommittedToSystem, CopiedToSystem, ToSystem};
pub(crate) use to_system::{Source, collect_to_system};

use crate::driver::Frame;
use crate::memory::Run;
use crate::page::{Page, PageSet};
use crate::stats::Cause;

/// Proof that a migration went through all its phases; only their last one makes it.
#[derive(Debug)]
pub struct Finalized {
    pub(crate) pages: u32,
}

impl Finalized {
    /// Pages that moved.
    pub fn pages(&self) -> u32 {
        self.pages
    }
}

/// Why a migration takes place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reason {
    pub(crate) cause: Cause,
    /// The pages of the (only) block that were touched; with cause demand, the others are prefetched.
    pub(crate) faulting: PageSet,
    /// How long the pages stay at their destination.
    pub(crate) hold: Duration,
}

impl Reason {
    /// Not caused by a fault.
    pub(crate) fn of(cause: Cause) -> Reason {
        Reason {
            cause,
            faulting: PageSet::EMPTY,
            hold: Duration::ZERO,
        }
    }

    /// Why this one page moves.
    fn cause_of(&self, page: Page) -> Cause {
        match self.cause {
            Cause::Demand if !self.faulting.contains(page.index_in_block()) => Cause::Prefetch,
            cause => cause,
        }
    }
}

/// Joins neighbouring pages in neighbouring frames of one block into runs.
fn runs(pages: impl Iterator<Item = (Page, Frame)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (page, frame) in pages {
        match runs.last_mut() {
            Some(run)
                if page == run.page.plus(run.pages)
                    && frame.0 == run.frame.0 + run.pages
                    && page.block() == run.page.block() =>
            {
                run.pages += 1;
            }
            _ => runs.push(Run {
                page,
                frame,
                pages: 1,
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_break_at_gaps_and_blocks() {
        let pairs = [(1, 8), (2, 9), (3, 11), (511, 12), (512, 13)];
        let runs = runs(pairs.into_iter().map(|(p, f)| (Page(p), Frame(f))));
        let found: Vec<_> = runs
            .iter()
            .map(|r| (r.page.0, r.frame.0, r.pages))
            .collect();
        assert_eq!(found, [(1, 8, 2), (3, 11, 1), (511, 12, 1), (512, 13, 1)]);
    }
}

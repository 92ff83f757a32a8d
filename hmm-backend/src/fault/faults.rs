//! The object that serves faults: what migrations work on ([`Core`]), policies, their wishes, and pauses.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::advice::{Advisor, PrefetchQueue};
use super::fatal::FatalFault;
use super::pause::Pauses;
use crate::migrate::Core;
use crate::pages::time::Clock;
use crate::pages::{Error, FatalCause};
use crate::policy::FaultPolicy;

/// Serves the faults on managed memory. Shared by service threads and devices.
pub(crate) struct Faults {
    pub(crate) core: Core,
    /// One advisor for each shard of guest memory.
    pub(super) advisors: Box<[Mutex<Advisor>]>,
    /// Migrations that policies want when no fault waits.
    pub(crate) prefetches: PrefetchQueue,
    /// The number of accesses in place from which policies want a report; 0 if they want none.
    pub(super) remote_access_threshold: AtomicU32,
    pub(crate) lockstep: bool,
    pub(super) fill_blocks: bool,
    /// The least number of frames that are evicted at a time.
    pub(super) eviction_batch: u32,
    pub(crate) pauses: Pauses,
}

/// The configuration for [`Faults::new`].
pub(crate) struct FaultConfig {
    /// Whether prefetches finish before the CPU resumes.
    pub(crate) lockstep: bool,
    /// Whether a CPU's first touch of a blank block fills the whole block.
    pub(crate) fill_blocks: bool,
    /// The least number of frames that are evicted at a time.
    pub(crate) eviction_batch: u32,
}

impl Faults {
    /// Takes one policy for each shard of guest memory. Fails if the host gives no eventfd.
    pub(crate) fn new(
        core: Core,
        policies: impl Iterator<Item = Box<dyn FaultPolicy>>,
        config: FaultConfig,
    ) -> Result<Faults, Error> {
        let threshold = AtomicU32::new(0);
        let advisor = |policy: Box<dyn FaultPolicy>| {
            let remote = policy.remote_access_threshold().unwrap_or(0);
            threshold.store(remote, Ordering::Relaxed);
            Mutex::new(Advisor::new(policy))
        };
        Ok(Faults {
            advisors: policies.map(advisor).collect(),
            prefetches: PrefetchQueue::new(core.guest.host_failures().clone())?,
            remote_access_threshold: threshold,
            lockstep: config.lockstep,
            fill_blocks: config.fill_blocks,
            eviction_batch: config.eviction_batch,
            pauses: Pauses::default(),
            core,
        })
    }

    /// Sleeps for `time`, or until `pointless` returns true ([`Pauses::pause`]). In a replay, only advances the
    /// clock.
    pub(crate) fn let_pass(&self, time: Duration, pointless: impl FnMut() -> bool) {
        let clock = &self.core.clock;
        match clock {
            Clock::Real(_) => self.pauses.pause(time, pointless),
            Clock::Model(_) => clock.advance_to(clock.now() + time),
        }
    }

    /// Returns whether the page is in the state that made this fault fatal.
    pub(crate) fn is_current(&self, fault: &FatalFault) -> bool {
        let word = self.core.table.word(fault.page);
        // A change of permission does not change the generation, so check the permission itself.
        let still_forbidden = fault.cause != FatalCause::ReadOnly || word.read_only();
        word.generation() == fault.generation && still_forbidden
    }
}

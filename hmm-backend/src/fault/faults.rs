//! What the serving of faults needs besides what migrations work on: policies, what they want to migrate, and pauses.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::advisor::Advisor;
use super::fatal::FatalFault;
use super::pause::Pauses;
use super::wishes::Wishes;
use crate::migrate::Core;
use crate::pages::time::Clock;
use crate::pages::{Error, FatalCause};
use crate::policy::{FaultPolicy, LinkModel};

/// Serves the faults on managed memory. Shared by service threads and devices.
pub(crate) struct Faults {
    pub(crate) core: Core,
    /// One for each shard of guest memory.
    pub(super) advisors: Box<[Mutex<Advisor>]>,
    /// What policies want to migrate when there is time.
    pub(crate) wishes: Wishes,
    /// Accesses in place that policies want to hear of; 0 for none.
    pub(super) remote_access_threshold: AtomicU32,
    pub(super) link: LinkModel,
    pub(crate) lockstep: bool,
    pub(super) fill_blocks: bool,
    pub(crate) pauses: Pauses,
}

/// How faults are served.
pub(crate) struct FaultConfig {
    /// What a migration costs on the modelled hardware.
    pub(crate) link: LinkModel,
    /// Prefetches are there before the CPU resumes.
    pub(crate) lockstep: bool,
    /// A CPU's first touch of a blank block fills all of it.
    pub(crate) fill_blocks: bool,
}

impl Faults {
    /// With one policy for each shard of guest memory.
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
            wishes: Wishes::new(core.guest.host_failures().clone())?,
            remote_access_threshold: threshold,
            link: config.link,
            lockstep: config.lockstep,
            fill_blocks: config.fill_blocks,
            pauses: Pauses::default(),
            core,
        })
    }

    /// Lets this much time pass, or ends early when that is `pointless` ([`Pauses::pause`]). In a replay, it has
    /// passed at once.
    pub(crate) fn let_pass(&self, time: Duration, pointless: impl FnMut() -> bool) {
        let clock = &self.core.clock;
        match clock {
            Clock::Real(_) => self.pauses.pause(time, pointless),
            Clock::Model(_) => clock.advance_to(clock.now() + time),
        }
    }

    /// Whether the page is in the state that made this fault fatal.
    pub(crate) fn is_current(&self, fault: &FatalFault) -> bool {
        let word = self.core.table.word(fault.page);
        // A permission is no state.
        let still_forbidden = fault.cause != FatalCause::ReadOnly || word.read_only();
        word.generation() == fault.generation && still_forbidden
    }
}

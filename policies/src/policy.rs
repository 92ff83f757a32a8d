//! A script in the place of a built-in policy.

use std::time::Duration;

use hmm_backend::pages::{Hint, PageRange, PageSet};
use hmm_backend::policy::{Advice, BlockFault, BlockView, FaultPolicy, Seen, Wish};

use crate::script::instance::SharedInstance;

/// What a script decides, on top of what stands beside it (minimum residency, for example); and what decides when the
/// script fails.
pub(crate) struct ScriptPolicy {
    instance: SharedInstance,
    beside: Box<dyn FaultPolicy>,
    default: Box<dyn FaultPolicy>,
}

impl ScriptPolicy {
    pub(crate) fn new(
        instance: SharedInstance,
        beside: Box<dyn FaultPolicy>,
        default: Box<dyn FaultPolicy>,
    ) -> ScriptPolicy {
        ScriptPolicy {
            instance,
            beside,
            default,
        }
    }
}

/// Adds other advice: takes the longer times, and all pages of both.
fn merge(into: &mut Advice, other: Advice) {
    into.stay |= other.stay;
    into.prefetch = into.prefetch.union(&other.prefetch);
    into.duplicate = into.duplicate.union(&other.duplicate);
    into.hold = into.hold.max(other.hold);
    into.throttle = into.throttle.max(other.throttle);
    into.migrate.extend(other.migrate);
}

impl FaultPolicy for ScriptPolicy {
    fn advise(&mut self, fault: &BlockFault, view: &BlockView<'_>) -> Advice {
        let mut advice = self.beside.advise(fault, view);
        let answer = self.instance.ask(|script| match script.decides_faults() {
            true => script.on_fault(fault, view, &mut advice),
            false => Ok(None),
        });
        match answer {
            Some(false) => {}
            Some(true) => {
                let default = self.default.advise(fault, view);
                advice.prefetch = advice.prefetch.union(&default.prefetch);
            }
            None => merge(&mut advice, self.default.advise(fault, view)),
        }
        advice
    }

    fn remote_access_threshold(&self) -> Option<u32> {
        let own = self.instance.lock().remote_access_threshold();
        let both = [self.beside.remote_access_threshold(), own];
        both.into_iter().flatten().min()
    }

    fn remote_accesses(&mut self, seen: &BlockFault, count: u32, view: &BlockView<'_>) -> PageSet {
        let beside = self.beside.remote_accesses(seen, count, view);
        let answer = self
            .instance
            .ask(|script| script.on_remote_accesses(seen, count, view));
        match answer {
            Some(pages) => beside.union(&pages),
            None => beside.union(&self.default.remote_accesses(seen, count, view)),
        }
    }

    fn hinted(&mut self, pages: PageRange, hint: Hint) {
        self.beside.hinted(pages, hint);
        self.default.hinted(pages, hint);
        self.instance.ask(|script| script.on_hint(pages, hint));
    }

    fn freed(&mut self, pages: PageRange) {
        self.beside.freed(pages);
        self.default.freed(pages);
        self.instance.ask(|script| script.on_free(pages));
    }

    fn tick_interval(&self) -> Option<Duration> {
        let own = self.instance.lock().tick_interval();
        let both = [self.beside.tick_interval(), own];
        both.into_iter().flatten().min()
    }

    fn tick(&mut self, now: Duration, seen: Seen) -> Vec<Wish> {
        let mut wishes = self.beside.tick(now, seen);
        if self.instance.lock().tick_is_due(now) {
            let asked = self.instance.ask(|script| script.on_tick(now, seen));
            wishes.extend(asked.unwrap_or_default());
        }
        wishes
    }
}

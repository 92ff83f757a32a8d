//! Serves a CPU's fault by a call, without threads and messages, for replays.

use crate::fault::{Attempts, CpuFaults, Faults, Unresolved};
use crate::observe::{Counter, Event, EventKind};
use crate::pages::{Access, FatalCause, Page, PageRange};

/// Serves a CPU's fault on a page as the service threads do. Where they would put the fault off, lets that time
/// pass. Returns the cause if the fault cannot be resolved.
pub(crate) fn serve_by_call(faults: &Faults, page: Page, access: Access) -> Result<(), FatalCause> {
    let since = faults.core.clock.now();
    let mut fault = CpuFaults::one(page, access);
    let mut attempts = Attempts::default();
    loop {
        let served = faults.serve_cpu_faults(&fault);
        faults
            .core
            .recorder
            .add(Counter::FirstTouchFaults, served.first_touches);
        let Some((_, unresolved)) = served.unresolved.first() else {
            break;
        };
        let wait = attempts.next(unresolved)?;
        let counter = match unresolved {
            Unresolved::Wait(_) => {
                fault.waited = true;
                Counter::FaultsDeferred
            }
            _ => Counter::FaultsRetried,
        };
        faults.core.recorder.add(counter, 1);
        faults
            .core
            .page_event(EventKind::Deferred, page, None, wait);
        faults.let_pass(wait, || false);
    }
    faults.core.recorder.add(Counter::CpuFaults, 1);
    faults.core.recorder.event(|| Event {
        access: Some(access),
        latency: faults.core.clock.now() - since,
        ..Event::new(
            faults.core.clock.now(),
            EventKind::CpuFault,
            PageRange::single(page),
        )
    });
    Ok(())
}

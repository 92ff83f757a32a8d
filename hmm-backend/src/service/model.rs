//! A backend without contents: the same page states, policies and decisions, driven by a replay instead of faults.
//!
//! Everything that makes a system call is left out ([`Engine::Model`]), and time is what the replay says. One thread
//! at a time drives it; so what happens depends on the calls alone.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, BackendConfig};
use crate::fault::retry::{Attempts, Unresolved};
use crate::memory::{Engine, EngineChoice};
use crate::observe::{Counter, Event, EventKind};
use crate::pages::{Access, Error, FatalCause, Page, PageRange, PageSet};

/// Managed memory of which only the books are kept; and whether its policies want to know of time.
pub struct ModelBackend(Arc<Backend>, bool);

impl ModelBackend {
    /// With this configuration, whatever engine it names. Needs no userfaultfd and no permission.
    pub fn new(mut config: BackendConfig) -> Result<ModelBackend, Error> {
        config.engine = EngineChoice::Only(Engine::Model);
        config.lockstep = true;
        let backend = Backend::new(config)?;
        // Taking each policy's lock for each access would be felt.
        let ticks = backend.tick_policies().is_some();
        Ok(ModelBackend(backend, ticks))
    }

    /// The backend: devices are attached to it, mirrors made, pages freed and statistics read as on a live one.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }

    /// Lets time go on to this point; never back. Policies that want to know of it are told.
    pub fn advance_to(&self, time: Duration) {
        self.0.clock.advance_to(time);
        if self.1 {
            self.0.tick_policies();
        }
    }

    /// Whether a CPU's access to this page, which must exist, would fault.
    #[inline]
    pub fn cpu_faults(&self, page: Page, access: Access) -> bool {
        !self.0.table.word(page).serves_cpus(access)
    }

    /// A CPU's fault on a page, served as the service threads serve it in lockstep.
    pub fn serve_cpu_fault(&self, page: Page, access: Access) -> Result<(), FatalCause> {
        let backend = &*self.0;
        let since = backend.clock.now();
        let block = page.block();
        let pages = PageSet::from_iter([page.index_in_block()]);
        let writes = match access {
            Access::Read => PageSet::EMPTY,
            Access::Write => pages,
        };
        let mut attempts = Attempts::default();
        let mut patient = true;
        loop {
            let served = backend.serve_cpu_faults(block, &pages, access, &writes, patient);
            backend
                .recorder
                .add(Counter::FirstTouchFaults, served.first_touches);
            let Some((_, unresolved)) = served.unresolved.first() else {
                break;
            };
            let wait = attempts.next(unresolved)?;
            let counter = match unresolved {
                Unresolved::Wait(_) => {
                    patient = false;
                    Counter::FaultsDeferred
                }
                _ => Counter::FaultsRetried,
            };
            backend.recorder.add(counter, 1);
            backend.fault_event(EventKind::Deferred, page, None, wait);
            backend.let_pass(wait, || false);
        }
        backend.recorder.add(Counter::CpuFaults, 1);
        backend.recorder.event(|| Event {
            access: Some(access),
            latency: backend.clock.now() - since,
            ..Event::new(
                backend.clock.now(),
                EventKind::CpuFault,
                PageRange::single(page),
            )
        });
        Ok(())
    }
}

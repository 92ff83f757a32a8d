//! A backend without page contents: the same page states, policies and decisions, driven by a replay instead of
//! faults.
//!
//! Engine [`Engine::Model`] makes no system calls, and the replay sets the time. One thread at a time drives
//! the backend, so the calls alone decide what happens.

use std::sync::Arc;
use std::time::Duration;

use super::{Backend, BackendConfig};
use crate::memory::{Engine, EngineChoice};
use crate::pages::{Access, Error, FatalCause, Page, PageRange};
use crate::residency::Residency;
use crate::service::serve_by_call;

/// Managed memory with residency words, but without bytes.
pub struct ModelBackend {
    backend: Arc<Backend>,
    /// Whether a policy wants ticks.
    ticks: bool,
}

impl ModelBackend {
    /// Makes a model from this configuration, whatever engine it names. Needs no userfaultfd and no permission.
    pub fn new(mut config: BackendConfig) -> Result<ModelBackend, Error> {
        config.engine = EngineChoice::Only(Engine::Model);
        config.lockstep = true;
        let backend = Backend::new(config)?;
        // Checked once: taking each policy's lock at each access would slow a replay down.
        let ticks = backend.faults.tick_policies().is_some();
        Ok(ModelBackend { backend, ticks })
    }

    /// Returns the backend, for attaching devices, making mirrors, freeing pages and reading statistics, as on
    /// a live one.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Advances the clock to `time`, never back, and gives the policies that want ticks those that are due.
    pub fn advance_to(&self, time: Duration) {
        self.backend.core().clock.advance_to(time);
        if self.ticks {
            self.backend.faults.tick_policies();
        }
    }

    /// Gives untouched pages contents in system memory, without an access and without the policy. Other pages stay as they are.
    pub fn place_in_system(&self, range: PageRange) -> Result<(), Error> {
        let core = self.backend.core();
        core.check_range(range)?;
        let untouched = |page: &Page| core.table.word(*page).residency() == Residency::Untouched;
        for page in range.pages().filter(untouched) {
            core.table.set_present(PageRange::single(page));
        }
        Ok(())
    }

    /// Returns whether a CPU's access to this page would fault. The page must exist.
    #[inline]
    pub fn cpu_faults(&self, page: Page, access: Access) -> bool {
        !self.backend.core().table.word(page).serves_cpus(access)
    }

    /// Serves a CPU's fault on a page as the service threads serve it in lockstep. Returns the cause if the
    /// fault cannot be resolved.
    pub fn serve_cpu_fault(&self, page: Page, access: Access) -> Result<(), FatalCause> {
        serve_by_call(&self.backend.faults, page, access)
    }
}

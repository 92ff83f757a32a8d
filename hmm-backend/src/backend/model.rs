//! A backend without contents: the same page states, policies and decisions, driven by a replay instead of faults.
//!
//! Everything that makes a system call is left out ([`Engine::Model`]), and time is what the replay says. One thread
//! at a time drives it; so what happens depends on the calls alone.

use std::sync::Arc;
use std::time::Duration;

use super::{Backend, BackendConfig};
use crate::memory::{Engine, EngineChoice};
use crate::pages::{Access, Error, FatalCause, Page};
use crate::service::serve_by_call;

/// Managed memory of which only the books are kept.
pub struct ModelBackend {
    backend: Arc<Backend>,
    /// Whether a policy wants to know of time.
    ticks: bool,
}

impl ModelBackend {
    /// With this configuration, whatever engine it names. Needs no userfaultfd and no permission.
    pub fn new(mut config: BackendConfig) -> Result<ModelBackend, Error> {
        config.engine = EngineChoice::Only(Engine::Model);
        config.lockstep = true;
        let backend = Backend::new(config)?;
        // Taking each policy's lock for each access would be felt.
        let ticks = backend.faults.tick_policies().is_some();
        Ok(ModelBackend { backend, ticks })
    }

    /// The backend: devices are attached to it, mirrors made, pages freed and statistics read as on a live one.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Lets time go on to this point; never back. Policies that want to know of it are told.
    pub fn advance_to(&self, time: Duration) {
        self.backend.core().clock.advance_to(time);
        if self.ticks {
            self.backend.faults.tick_policies();
        }
    }

    /// Whether a CPU's access to this page, which must exist, would fault.
    #[inline]
    pub fn cpu_faults(&self, page: Page, access: Access) -> bool {
        !self.backend.core().table.word(page).serves_cpus(access)
    }

    /// A CPU's fault on a page, served as the service threads serve it in lockstep.
    pub fn serve_cpu_fault(&self, page: Page, access: Access) -> Result<(), FatalCause> {
        serve_by_call(&self.backend.faults, page, access)
    }
}

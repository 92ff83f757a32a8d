//! The fault service as its owner sees it.

use std::sync::Arc;
use std::time::Duration;

use super::watchdog::Watchdog;
use super::worker::{OnFatal, WorkerSpawner};
use crate::fault::Faults;
use crate::host::doorbell::Doorbell;
use crate::pages::Error;

/// How many service threads, and where they run.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// A thread for each entry, bound to that host CPU if one is given. A fault is answered fastest by a
    /// thread on the CPU of the vCPU that took it: waking an idle CPU is what costs.
    pub threads: Vec<Option<usize>>,
    /// A driver's call that takes longer is reported (counter `slow_driver_calls`, event `SlowDriver`), and if it keeps
    /// a service thread, another thread stands in, so that only the pages of that call wait.
    pub slow_driver: Duration,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        ServiceConfig {
            threads: vec![None],
            slow_driver: Duration::from_secs(1),
        }
    }
}

/// The running service. Dropping it stops the threads after they have served what they have read; stop
/// everything that can fault first.
pub struct FaultService {
    watch: Watchdog,
}

impl FaultService {
    /// See [`crate::Backend::start_service`].
    pub(crate) fn start(
        faults: Arc<Faults>,
        config: ServiceConfig,
        on_fatal: Arc<OnFatal>,
    ) -> Result<FaultService, Error> {
        if config.threads.is_empty() {
            return Err(Error::Service("no threads; configure at least one".into()));
        }
        let stop = Doorbell::new().map_err(|error| Error::Event(error.into()))?;
        let spawner = WorkerSpawner {
            faults,
            stop: Arc::new(stop),
            on_fatal,
        };
        let watch = Watchdog::start(spawner, config.threads, config.slow_driver)?;
        Ok(FaultService { watch })
    }
}

impl Drop for FaultService {
    fn drop(&mut self) {
        self.watch.stop();
    }
}

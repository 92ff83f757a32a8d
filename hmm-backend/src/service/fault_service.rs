//! The public handle of the fault service.

use std::sync::Arc;
use std::time::Duration;

use super::watchdog::Watchdog;
use super::worker::{OnFatal, WorkerSpawner};
use crate::fault::Faults;
use crate::host::doorbell::Doorbell;
use crate::pages::Error;

/// The number of service threads, the CPUs they run on, and when a driver's call counts as slow.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// One service thread for each entry, bound to that host CPU if one is given. A thread on the CPU of the
    /// vCPU that took the fault answers fastest, because waking an idle CPU takes most of the time.
    pub threads: Vec<Option<usize>>,
    /// A driver's call that takes longer is reported (counter `slow_driver_calls`, event `SlowDriver`). If the
    /// call blocks a service thread, another thread replaces it, so that only the pages of that call wait.
    pub slow_driver: Duration,
    /// Called by each thread of the service when it begins, with the thread's name (`hmm-fault0`, `hmm-watch`, ...),
    /// before it does anything else. A program that confines its threads does so here. Threads that begin while the
    /// service runs call it, too.
    pub on_begin: fn(&str),
}

impl Default for ServiceConfig {
    fn default() -> Self {
        ServiceConfig {
            threads: vec![None],
            slow_driver: Duration::from_secs(1),
            on_begin: |_| {},
        }
    }
}

/// The running fault service. Dropping it stops the threads after they have served the messages they have read;
/// first stop everything that can fault.
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
            return Err(Error::NoServiceThreads);
        }
        let stop = Doorbell::new().map_err(|error| Error::Event(error.into()))?;
        let spawner = WorkerSpawner {
            faults,
            stop: Arc::new(stop),
            on_fatal,
            on_begin: config.on_begin,
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

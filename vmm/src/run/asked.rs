//! A run whose guest never begins, and the requests to it: what the fuzzer asks.

use std::io;
use std::time::Instant;

use super::RunError;
use super::prepare::Prepared;
use super::stop::{Stopper, Stopping};
use crate::api::Resources;
use crate::config::Config;
use crate::ending::End;
use crate::vm::VmError;

/// A machine whose vCPUs have not started. It is like any other machine to requests: memory, accelerators and the threads that serve
/// them are there.
pub struct Asked {
    run: Prepared,
    stopper: Stopper,
    resources: Resources,
}

impl Asked {
    /// Makes the machine.
    pub fn new(config: &Config) -> Result<Asked, RunError> {
        let mut run = Prepared::new(config, Box::new(io::sink()), None, Instant::now())?;
        let failed = VmError::system("a thread");
        let stopper = Stopper::start(run.vm.ending()).map_err(failed)?;
        run.observed.began.get_or_init(Instant::now);
        let failed = VmError::system("the API");
        let resources = Resources::of(run.live(None)).map_err(failed)?;
        Ok(Asked {
            run,
            stopper,
            resources,
        })
    }

    /// Returns what answers requests.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Stops everything, in the order of a run's end; returns how that went.
    pub fn end(self) -> End {
        let Asked {
            run,
            stopper,
            resources,
        } = self;
        drop(resources);
        run.end_provocations();
        let stopping = Stopping {
            end: End::Quit,
            vm: run.vm,
            torture: run.torture,
            console: None,
            recording: run.observed.close_recordings(),
        };
        stopper.stop(stopping, None).end
    }
}

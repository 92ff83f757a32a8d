//! What a device tells its machine.

use std::io;
use std::sync::Arc;

/// Why a device does not work any more.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFailure {
    /// One of its threads panicked.
    #[error("thread {thread} panicked; this is a bug in Hmmvisor or in the device")]
    Panicked {
        /// The thread's name.
        thread: String,
    },
    /// The system refuses an event, at every try.
    #[error("{what} failed: {error}")]
    Event {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        #[source]
        error: io::Error,
    },
}

/// The interrupt line of one device, and what else the device can tell its machine.
pub trait Interrupt: Send + Sync {
    /// Routes the line to a vCPU; false if that is impossible. Must not access the accelerator.
    fn route(&self, vcpu: u32) -> bool;
    /// Raises it.
    fn trigger(&self);
    /// Tells the machine that the device does not work any more, so that the run ends with an error instead of leaving the
    /// guest to wait for the device. Does nothing by default.
    fn device_failed(&self, _failure: DeviceFailure) {}
}

impl dyn Interrupt {
    /// Returns what a thread of the device calls when it panics: it tells the machine.
    pub(crate) fn on_panic(self: &Arc<Self>) -> impl FnOnce(&str) + Send + use<> {
        let irq = self.clone();
        move |thread| {
            let thread = thread.to_owned();
            irq.device_failed(DeviceFailure::Panicked { thread });
        }
    }

    /// Tells the machine if waking a thread or sleeping has failed, which ends the run.
    pub(crate) fn report_failure(&self, what: &'static str, result: io::Result<()>) {
        if let Err(error) = result {
            self.device_failed(DeviceFailure::Event { what, error });
        }
    }
}

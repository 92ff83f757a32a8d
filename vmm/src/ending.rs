//! How a run ends: the first reason wins.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::failure::Failure;

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest asked for it, with this code.
    Exit(u32),
    /// The VMM got this signal.
    Signal(i32),
    /// Something went wrong.
    Failed(Failure),
}

/// Where vCPUs, devices and the fault service say that the run is over, and where the main thread
/// learns it.
pub struct Ending {
    end: OnceLock<End>,
    event: EventFd,
}

impl Ending {
    /// Not ended yet.
    pub fn new() -> io::Result<Ending> {
        Ok(Ending {
            end: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Ends the run, unless it has already ended.
    pub fn set(&self, end: End) {
        if self.end.set(end).is_ok() {
            // Cannot fail: the counter is far from its limit.
            let _ = self.event.write(1);
        }
    }

    /// Why the run ended, if it did.
    pub fn get(&self) -> Option<&End> {
        self.end.get()
    }
}

impl AsRawFd for Ending {
    /// Readable once the run has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

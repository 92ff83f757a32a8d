//! How a run ends: the first reason wins.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::failure::Failure;

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest asked for it, with this code.
    Exit(u32),
    /// The guest's operating system switched the machine off.
    PowerOff,
    /// The guest's operating system reset the machine, without having panicked.
    Reboot,
    /// The user typed the sequence for it at the guest's console.
    Quit,
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

    /// Waits for the run's end, at most this long.
    pub fn wait(&self, timeout: Duration) -> Option<&End> {
        let deadline = Instant::now() + timeout;
        while self.get().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut ended = libc::pollfd {
                fd: self.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // Rounded up: a rest of less than a millisecond is no reason to spin.
            let milliseconds = left.as_millis().saturating_add(1).min(i32::MAX as u128) as i32;
            // SAFETY: one valid structure, as the count says; the descriptor is ours. An interrupted
            // call is repeated.
            unsafe { libc::poll(&mut ended, 1, milliseconds) };
        }
        self.get()
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

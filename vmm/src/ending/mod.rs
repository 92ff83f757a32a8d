//! The end of a run: its reason, of which the first counts, and an event that is readable from then on.

pub mod failure;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hmmvisor_devices::{DeviceFailure, bell};
use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use failure::Failure;

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

/// Ends a run: vCPUs, devices and the fault service set the reason, and the main thread waits for it.
pub struct Ending {
    end: OnceLock<End>,
    event: EventFd,
    /// Threads that did not end when they were to.
    left_behind: Mutex<Vec<String>>,
}

/// The longest sleep of a thread that waits for the end: if the system refuses the event, the thread sees the end when it looks again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Ending {
    /// Makes one that has not ended.
    pub fn new() -> io::Result<Ending> {
        Ok(Ending {
            end: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
            left_behind: Mutex::default(),
        })
    }

    /// Ends the run, unless it has already ended.
    pub fn set(&self, end: End) {
        if self.end.set(end).is_ok() {
            // If the system refuses, the threads that wait see the end when they look again.
            let _ = bell::ring(&self.event);
        }
    }

    /// Returns what a thread is to call if it panics: it ends the run.
    pub fn on_panic(self: &Arc<Self>) -> impl FnOnce(&str) + Send + use<> {
        let ending = self.clone();
        move |thread| {
            let thread = thread.to_owned();
            ending.set(End::Failed(Failure::Panicked { thread }));
        }
    }

    /// Ends the run because a device does not work any more.
    pub fn device_failed(&self, failure: DeviceFailure) {
        self.set(End::Failed(match failure {
            DeviceFailure::Panicked { thread } => Failure::Panicked { thread },
            DeviceFailure::Event { what, error } => Failure::event(what, &error),
        }));
    }

    /// Ends the run because the system refuses an event at every try.
    pub fn event_failed(&self, what: &str, error: &io::Error) {
        self.set(End::Failed(Failure::event(what, error)));
    }

    /// Notes that this thread does not end and is no longer waited for.
    pub fn leave_behind(&self, thread: &str) {
        self.left_behind.lock().push(thread.to_owned());
    }

    /// Returns the threads that did not end when they were to.
    pub fn left_behind(&self) -> Vec<String> {
        self.left_behind.lock().clone()
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
            // Rounded up, so that less than a millisecond does not become a busy loop.
            let milliseconds = left.min(LOOK_AGAIN).as_millis() as i32 + 1;
            // SAFETY: one valid structure, as the count says; the descriptor is ours.
            let ready = unsafe { libc::poll(&mut ended, 1, milliseconds) };
            if ready < 0 {
                // Interrupted. The pause avoids a busy loop should that repeat.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.get()
    }

    /// Returns why the run ended, if it did.
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

//! Faults that cannot be resolved: what the backend tells about them, and whether that is still true.

use std::time::Duration;

use crate::backend::Backend;
use crate::page::Page;

/// Why a page cannot be supplied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalCause {
    /// Memory failed ([`Backend::memory_failure`]).
    #[error("its contents were lost")]
    ContentsLost,
    /// The driver of the device that holds it said so.
    #[error("{0}")]
    DriverFailed(String),
    /// The host had no memory, however often it was tried.
    #[error("the host has no memory for it (tried {attempts} times)")]
    OutOfMemory {
        /// How often.
        attempts: u32,
    },
    /// The page could not be moved, however often it was tried.
    #[error("it stays busy (tried {attempts} times)")]
    Busy {
        /// How often.
        attempts: u32,
    },
    /// A CPU wrote to a page that it may only read.
    #[error("it is read-only")]
    ReadOnly,
    /// The host's kernel refused for an unexpected reason.
    #[error("the kernel cannot supply it: {0}")]
    Host(String),
    /// Its contents were in system memory, and the host's kernel has no such page any more.
    #[error("its contents were lost: the host's kernel has no page where they were")]
    Vanished,
    /// The host refused a call without which CPUs or devices may wait for ever. The page says nothing.
    #[error("the host refused a call: {0}")]
    HostFailed(String),
    /// The fault service has died: no thread serves faults any more. The page says nothing.
    #[error("{0}")]
    ServiceDied(String),
}

/// A fault that cannot be resolved. The CPU stays asleep in it, interruptible by a signal, and never sees
/// wrong data.
///
/// Interrupting the CPU and keeping it from executing the access again answers the fault. If it does
/// execute it again, that is another fault with a report of its own; each CPU that touches the page gets
/// its own, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatalFault {
    /// The page.
    pub page: Page,
    /// Kernel id of the thread that touched it; 0 if unknown.
    pub thread: u32,
    /// Why.
    pub cause: FatalCause,
    /// A moment just before the service learned of the access, on the backend's clock ([`Backend::now`]). A thread that
    /// has left the access at any time since has been answered, or woken, already.
    pub since: Duration,
    /// The page's generation then.
    pub(crate) generation: u16,
}

impl Backend {
    /// Whether the page is in the state that made this fault fatal. If not - it was freed, or a driver has brought
    /// it after all - the access should be executed again, whatever comes of it.
    pub fn is_current(&self, fault: &FatalFault) -> bool {
        let word = self.table.word(fault.page);
        // A permission is no state.
        let still_forbidden = fault.cause != FatalCause::ReadOnly || word.read_only();
        word.generation() == fault.generation && still_forbidden
    }
}

//! Faults that cannot be resolved: what the backend tells about them, and whether that is still true.

use std::time::Duration;

use crate::pages::{FatalCause, Page};

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
    /// A moment just before the service learned of the access, on the backend's clock ([`crate::Backend::now`]). A thread that
    /// has left the access at any time since has been answered, or woken, already.
    pub since: Duration,
    /// The page's generation then.
    pub(crate) generation: u16,
}

//! Faults that cannot be resolved: what the backend tells about them, and whether that is still true.

use std::time::Duration;

use crate::backend::Backend;
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

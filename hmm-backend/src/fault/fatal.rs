//! Reports of the fault service: of a fault that cannot be resolved, and of its own failure.

use std::time::Duration;

use crate::pages::{FatalCause, Page, ServiceFailure};

/// What the fault service cannot mend by itself, and so reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// One fault cannot be resolved.
    Fault(FatalFault),
    /// No fault can be relied on to be resolved any more.
    Service(ServiceFailure),
}

/// A report of a fault that cannot be resolved. The CPU stays asleep in the access, where a signal can
/// interrupt it, and never sees wrong data.
///
/// To answer the report, interrupt the CPU and keep it from executing the access again. If the CPU executes it
/// again, that is another fault, with a report of its own. Each CPU that touches the page gets its own report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatalFault {
    /// The page.
    pub page: Page,
    /// Kernel id of the thread that touched the page; 0 if unknown.
    pub thread: u32,
    /// Why the fault cannot be resolved.
    pub cause: FatalCause,
    /// A moment just before the service read the fault's message, on the backend's clock
    /// ([`crate::Backend::now`]). If the thread has left the access at any time after this moment, the report
    /// has been answered or the thread was woken.
    pub since: Duration,
    /// The page's generation when the message was read.
    pub(crate) generation: u16,
}

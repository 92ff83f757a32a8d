//! Errors: what was attempted, on what, why it failed and what to do.

use std::io;

use super::ids::DeviceId;
use super::page::{Page, PageRange};
use crate::host::limits::Refusal;

const DENIED: &str =
    "run as root, or set vm.unprivileged_userfaultfd=1, or give access to /dev/userfaultfd";
const DENIED_TO_ROOT: &str = "root is not enough here: have the container or sandbox permit the system call (capability CAP_SYS_PTRACE, seccomp), or give access to /dev/userfaultfd";

/// Why a page cannot be supplied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalCause {
    /// The memory that held its contents failed ([`crate::Backend::memory_failure`]).
    #[error("its contents were lost")]
    ContentsLost,
    /// The driver of the device that holds the page reported this failure.
    #[error("{0}")]
    DriverFailed(String),
    /// The host had no memory in any of the attempts.
    #[error("the host has no memory for it (tried {attempts} times)")]
    OutOfMemory {
        /// Number of attempts.
        attempts: u32,
    },
    /// The page could not be moved in any of the attempts.
    #[error("it stays busy (tried {attempts} times)")]
    Busy {
        /// Number of attempts.
        attempts: u32,
    },
    /// A CPU wrote to a read-only page.
    #[error("it is read-only")]
    ReadOnly,
    /// The host's kernel refused for an unexpected reason.
    #[error("the kernel cannot supply it: {0}")]
    Host(String),
    /// The contents were in system memory, and the host's kernel no longer has the page.
    #[error("its contents were lost: the host's kernel has no page where they were")]
    Vanished,
}

/// Why the fault service as a whole cannot do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceFailure {
    /// The host refused a call without which CPUs or devices may wait for ever.
    #[error("the host refused a call: {0}")]
    HostFailed(String),
    /// The fault service has ended unexpectedly: no thread serves faults any more.
    #[error("{0}")]
    Died(String),
}

/// Why a call of the backend failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel was built without userfaultfd.
    #[error(
        "userfaultfd: this kernel has none; use a kernel with CONFIG_USERFAULTFD (Linux 5.7 or later)"
    )]
    NoUserfaultfd,
    /// This process has no permission for userfaultfd.
    #[error("userfaultfd: {error}; {}", if *root { DENIED_TO_ROOT } else { DENIED })]
    UserfaultfdDenied {
        /// Whether this process already has root's rights.
        root: bool,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The kernel refused to create a userfaultfd because a resource is short.
    #[error("userfaultfd: {0}")]
    Userfaultfd(#[source] Refusal),
    /// The kernel lacks a userfaultfd feature that every engine needs.
    #[error(
        "userfaultfd: this kernel lacks features {features:#x} ({error}); Linux 5.7 or later is needed"
    )]
    UserfaultfdFeatures {
        /// The features asked for, as a bit mask.
        features: u64,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// Memory could not be registered with userfaultfd.
    #[error("userfaultfd: cannot register {len} bytes of memory: {refusal}")]
    Register {
        /// Size in bytes.
        len: u64,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// The engine needs a kernel feature that this kernel does not have.
    #[error(
        "engine {engine}: this kernel has no {feature} ({since}); use a newer kernel or another engine"
    )]
    EngineUnsupported {
        /// The engine asked for.
        engine: &'static str,
        /// The missing feature.
        feature: &'static str,
        /// The kernel version that introduced it.
        since: &'static str,
    },
    /// A memory mapping could not be made.
    #[error("cannot map {len} bytes for {what}: {refusal}")]
    Map {
        /// Size in bytes.
        len: u64,
        /// Purpose of the mapping.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// A region that is to have a policy of its own does not consist of whole blocks.
    #[error(
        "{0:?} does not consist of whole blocks of 2 MiB (512 pages), as a region with a policy must"
    )]
    NotWholeBlocks(PageRange),
    /// There are as many regions with policies of their own as there can be.
    #[error(
        "there are {0} regions with policies of their own already; a policy for all pages ends them"
    )]
    TooManyRegions(usize),
    /// A size is zero, too large or not a multiple of its unit.
    #[error("{what} of {bytes} bytes: must be a multiple of {unit} bytes from {unit} to {max}")]
    BadSize {
        /// What the size belongs to.
        what: &'static str,
        /// The size in bytes.
        bytes: u64,
        /// The unit in bytes.
        unit: u64,
        /// The largest allowed size in bytes.
        max: u64,
    },
    /// More devices were attached than the residency word can name.
    #[error("too many devices: a backend can attach {0} in its life")]
    TooManyDevices(usize),
    /// The device was never attached or is detached.
    #[error("device {} is not attached", .0.0)]
    NoDevice(DeviceId),
    /// The range reaches outside managed memory, or into its hole.
    #[error("{range:?} are not all in managed memory, which has {pages:#x} pages")]
    OutOfRange {
        /// The range.
        range: PageRange,
        /// Number of pages of managed memory.
        pages: u32,
    },
    /// The contents of a page cannot be supplied.
    #[error("{page:?}: {cause}")]
    Fatal {
        /// The page.
        page: Page,
        /// The cause.
        cause: FatalCause,
    },
    /// The page is pinned and cannot be taken away from the holder of the pin.
    #[error("{0:?} is pinned")]
    Pinned(Page),
    /// The page is shared memory: it cannot migrate, be poisoned or be protected.
    #[error("{0:?} is shared memory: it cannot migrate, fail or be protected")]
    Shared(Page),
    /// The host refused to take back the memory of pages whose contents are dead.
    #[error(
        "{range:?}: the host refused to take back their memory: {error}; the pages keep their contents and are not freed"
    )]
    Discard {
        /// The pages.
        range: PageRange,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The permission of a page could not be changed.
    #[error("{page:?}: cannot change its permission: {error}; try again")]
    Protect {
        /// The page.
        page: Page,
        /// The kernel's answer, or why a device's exclusive access to the page could not be ended.
        #[source]
        error: io::Error,
    },
    /// The page has as many pins as the residency word can count.
    #[error("{0:?} has as many pins as can be counted; unpin it first")]
    TooManyPins(Page),
    /// Some pages could not be brought back from a device that is being detached.
    #[error("device {}: {left} pages could not be brought back: {cause}", device.0)]
    Detach {
        /// The device.
        device: DeviceId,
        /// Number of pages still in its memory.
        left: u32,
        /// The reason of the last failure.
        #[source]
        cause: FatalCause,
    },
    /// Some pages could not leave a memory that was to shrink.
    #[error(
        "device {}: its memory keeps its size, because {left} pages could not leave it: {cause}",
        device.0
    )]
    Resize {
        /// The device.
        device: DeviceId,
        /// Number of pages that would have had to leave.
        left: u32,
        /// The reason of the last failure.
        #[source]
        cause: FatalCause,
    },
    /// An operation was cancelled ([`crate::Progress::cancel`]). Each page is where it was, or where it was to go.
    #[error("cancelled after {done} of {total} pages")]
    Cancelled {
        /// Number of pages that were done.
        done: u32,
        /// Number of pages that there were to do.
        total: u32,
    },
    /// A service thread could not be started.
    #[error("cannot start service thread: {0}")]
    Thread(#[source] Refusal),
    /// An eventfd, which wakes threads, could not be made.
    #[error("cannot make an event: {0}")]
    Event(#[source] Refusal),
    /// The fault service was to have no thread.
    #[error("fault service: no threads; configure at least one")]
    NoServiceThreads,
    /// A service thread cannot run on the CPU that was chosen for it.
    #[error("fault service: thread {thread} cannot run on CPU {cpu}: {error}")]
    Bind {
        /// The thread's name.
        thread: String,
        /// The CPU's number.
        cpu: usize,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The number of userfaultfds is out of range.
    #[error("guest memory cannot be spread over {0} userfaultfds; use 1 to 64")]
    BadShards(usize),
}

/// Why a driver could not resolve a fault ([`crate::driver::Driver::migrate_to_ram`]).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The page cannot be moved now; the backend tries the fault again later, and reports it as fatal after about a
    /// second.
    #[error("busy")]
    Retry,
    /// There is no system memory; the backend tries the fault again later, and reports it as fatal after about a
    /// second.
    #[error("out of system memory")]
    OutOfMemory,
    /// The contents cannot be supplied.
    #[error("{0}")]
    Fatal(String),
}

/// Why pages could not be migrated to a device. The fault or request continues with the pages where they are: in system
/// memory if the error came before the commit. Nothing else is done with the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// The driver reported an error in one of the steps of the migration.
    #[error("device error: {0}")]
    Device(String),
}

/// Why a device cannot access a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// The page is not in managed memory.
    #[error("{0:?} is not in managed memory")]
    OutOfRange(Page),
    /// The device wrote to a read-only page.
    #[error("{0:?} is read-only")]
    Permission(Page),
    /// Exclusive access was asked for on a page that has other users whom the backend cannot stop: shared or pinned
    /// memory.
    #[error("{0:?} is shared or pinned: no device can have it exclusively")]
    NotExclusive(Page),
    /// The contents of the page cannot be supplied.
    #[error("{page:?}: {cause}")]
    Fatal {
        /// The page.
        page: Page,
        /// The cause.
        cause: FatalCause,
    },
    /// The device has been detached.
    #[error("the device is detached")]
    Detached,
}

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
    /// Memory failed ([`crate::Backend::memory_failure`]).
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

/// Why a call of the backend failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel was built without userfaultfd.
    #[error(
        "userfaultfd: this kernel has none; use a kernel with CONFIG_USERFAULTFD (Linux 5.7 or later)"
    )]
    NoUserfaultfd,
    /// No permission for userfaultfd.
    #[error("userfaultfd: {error}; {}", if *root { DENIED_TO_ROOT } else { DENIED })]
    UserfaultfdDenied {
        /// Whether this process has root's rights already.
        root: bool,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The kernel refused a userfaultfd for want of something.
    #[error("userfaultfd: {0}")]
    Userfaultfd(#[source] Refusal),
    /// The kernel lacks a feature every engine needs.
    #[error(
        "userfaultfd: this kernel lacks features {features:#x} ({error}); Linux 5.7 or later is needed"
    )]
    UserfaultfdFeatures {
        /// What was asked for.
        features: u64,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// Memory could not be registered for faults.
    #[error("userfaultfd: cannot register {len} bytes of memory: {refusal}")]
    Register {
        /// Size.
        len: u64,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// The engine needs a kernel feature that is not there.
    #[error(
        "engine {engine}: this kernel has no {feature} ({since}); use a newer kernel or another engine"
    )]
    EngineUnsupported {
        /// Engine asked for.
        engine: &'static str,
        /// What is missing.
        feature: &'static str,
        /// Since when kernels have it.
        since: &'static str,
    },
    /// A mapping could not be made.
    #[error("cannot map {len} bytes for {what}: {refusal}")]
    Map {
        /// Size.
        len: u64,
        /// Purpose.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// A size that is zero, too large or not a multiple of its unit.
    #[error("{what} of {bytes} bytes: must be a multiple of {unit} bytes from {unit} to {max}")]
    BadSize {
        /// What has the size.
        what: &'static str,
        /// The size.
        bytes: u64,
        /// Its unit.
        unit: u64,
        /// The largest allowed.
        max: u64,
    },
    /// More devices than the residency word can name.
    #[error("too many devices: a backend can attach {0} in its life")]
    TooManyDevices(usize),
    /// The device was never attached or is detached.
    #[error("device {0:?} is not attached")]
    NoDevice(DeviceId),
    /// The range reaches outside managed memory, or into its hole.
    #[error("{range:?} are not all in managed memory, which has {pages:#x} pages")]
    OutOfRange {
        /// The range.
        range: PageRange,
        /// Pages there are.
        pages: u32,
    },
    /// The contents of a page cannot be supplied.
    #[error("{page:?}: {cause}")]
    Fatal {
        /// The page.
        page: Page,
        /// Why.
        cause: FatalCause,
    },
    /// The page is pinned, and cannot be taken away from whoever uses it.
    #[error("{0:?} is pinned")]
    Pinned(Page),
    /// The page is shared memory, which stays where it is and as it is.
    #[error("{0:?} is shared memory: it cannot migrate, fail or be protected")]
    Shared(Page),
    /// The host did not take the memory of dead contents back.
    #[error(
        "{range:?}: the host does not take their memory back: {error}; they keep their contents, and are not free"
    )]
    Discard {
        /// The pages.
        range: PageRange,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The permission of a page could not be changed.
    #[error("{page:?}: cannot change its permission: {error}; try again")]
    Protect {
        /// The page.
        page: Page,
        /// The kernel's answer.
        error: String,
    },
    /// A page has as many pins as can be counted.
    #[error("{0:?} is pinned too often")]
    TooManyPins(Page),
    /// Pages did not leave a device that is being detached.
    #[error("device {device:?}: {left} pages could not be brought back: {cause}")]
    Detach {
        /// The device.
        device: DeviceId,
        /// Pages still in its memory.
        left: u32,
        /// The last reason.
        cause: String,
    },
    /// A thread could not be started.
    #[error("cannot start service thread: {0}")]
    Thread(#[source] Refusal),
    /// An event, by which threads are woken, could not be made.
    #[error("cannot make an event: {0}")]
    Event(#[source] Refusal),
    /// The fault service needs at least one thread; each can be pinned to a CPU that exists.
    #[error("fault service: {0}")]
    Service(String),
    /// There must be at least one userfaultfd.
    #[error("guest memory cannot be spread over {0} userfaultfds; use 1 to 64")]
    BadShards(usize),
}

/// What became of a fault that a driver could not resolve
/// ([`crate::Driver::migrate_to_ram`]).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// Not now; the fault is tried again after a while.
    #[error("busy")]
    Retry,
    /// No system memory; tried again after a while, fatal in the end.
    #[error("out of system memory")]
    OutOfMemory,
    /// The contents cannot be supplied.
    #[error("{0}")]
    Fatal(String),
}

/// Why nothing could be migrated to a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// The device reported an error at one of its way-points.
    #[error("device error: {0}")]
    Device(String),
}

/// Why a device cannot access a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// The page is not in managed memory.
    #[error("{0:?} is not in managed memory")]
    OutOfRange(Page),
    /// A write to a read-only page.
    #[error("{0:?} is read-only")]
    Permission(Page),
    /// Exclusive access to a page that others use without asking: shared or pinned memory.
    #[error("{0:?} is shared or pinned: no device can have it exclusively")]
    NotExclusive(Page),
    /// The contents of the page cannot be supplied.
    #[error("{page:?}: {cause}")]
    Fatal {
        /// The page.
        page: Page,
        /// Why.
        cause: FatalCause,
    },
    /// The device has been detached.
    #[error("the device is detached")]
    Detached,
}

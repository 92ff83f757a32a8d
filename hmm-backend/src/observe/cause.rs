//! Causes of migrations and of faults.

/// Why pages were migrated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cause {
    /// A CPU or a device accessed them.
    Demand,
    /// The policy prefetched them.
    Prefetch,
    /// Device memory was short.
    Eviction,
    /// The guest or the user asked for it.
    User,
    /// Their device is being detached.
    Detach,
}

impl Cause {
    /// All causes.
    pub const ALL: [Cause; 5] = [
        Cause::Demand,
        Cause::Prefetch,
        Cause::Eviction,
        Cause::User,
        Cause::Detach,
    ];

    /// The name of the cause in reports.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Demand => "demand",
            Cause::Prefetch => "prefetch",
            Cause::Eviction => "eviction",
            Cause::User => "user",
            Cause::Detach => "detach",
        }
    }
}

/// Why an access faulted, by what was done about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FaultCause {
    /// The page had no contents.
    FirstTouch,
    /// The contents were in other memory, and have moved.
    Migrated,
    /// The page was duplicated for reading, or a write ended that.
    Duplicated,
    /// A device got exclusive access, or an access of another one ended that.
    Exclusive,
    /// Of a device: it got a translation of the page where that is.
    InPlace,
    /// Of a CPU: the page had come when the fault was looked at, or another thread was bringing it.
    There,
}

impl FaultCause {
    /// The causes of CPUs' faults.
    pub const OF_CPUS: &[FaultCause] = &[
        FaultCause::FirstTouch,
        FaultCause::Migrated,
        FaultCause::Duplicated,
        FaultCause::Exclusive,
        FaultCause::There,
    ];
    /// The causes of devices' faults.
    pub const OF_DEVICES: &[FaultCause] = &[
        FaultCause::FirstTouch,
        FaultCause::Migrated,
        FaultCause::Duplicated,
        FaultCause::Exclusive,
        FaultCause::InPlace,
    ];
    /// The number of causes.
    pub(crate) const COUNT: usize = FaultCause::There as usize + 1;

    /// The name of the cause in reports.
    pub fn name(self) -> &'static str {
        match self {
            FaultCause::FirstTouch => "first-touch",
            FaultCause::Migrated => "migrated",
            FaultCause::Duplicated => "duplicated",
            FaultCause::Exclusive => "exclusive",
            FaultCause::InPlace => "in-place",
            FaultCause::There => "there",
        }
    }
}

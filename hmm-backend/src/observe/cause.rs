//! Causes of migrations.

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

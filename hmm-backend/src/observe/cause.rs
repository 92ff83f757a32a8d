//! Why pages migrate.

/// Why pages were migrated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cause {
    /// Somebody touched them.
    Demand,
    /// The policy brought them along.
    Prefetch,
    /// Device memory was short.
    Eviction,
    /// The guest or the user asked for it.
    User,
    /// Their device goes away.
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

    /// The name in reports.
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
